//! A population of publishers, known by number: who they are and what each publishes in each round, without keeping any of
//! it in memory.

use serde::{Deserialize, Serialize};
use slotcast_engine::{
    batch::{Change, ChangeKind, Durability, write_name, write_put},
    id::{DatumKey, RegisterId, SessionId, SlotId, Version, mix64},
    record::{Encoder, Instance, Record},
};

use crate::formats::data_id;

/// How many there are, and what they are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Population {
    /// Publishers of the whole node.
    pub publishers: u64,
    /// Publishers of each data id; the last may have fewer.
    pub per_data_id: u64,
    /// Opaque bytes that each publishes.
    pub payload_bytes: usize,
    /// Bytes of each instance's name; up to 8 of them cost no room of their own in a record.
    pub name_bytes: usize,
    /// Sessions that own them, in turn.
    pub sessions: u32,
}

impl Population {
    /// Data ids of the whole node.
    pub fn data_ids(&self) -> u64 {
        self.publishers.div_ceil(self.per_data_id)
    }

    /// Those of one shard, in the order of their slots.
    pub fn share(&self, slot_count: u32, shard: u32, shards: u32) -> Share {
        let mut ids: Vec<(SlotId, DatumKey, u32)> = (0..self.data_ids())
            .map(|number| (data_id(number as usize).key(), number as u32))
            .map(|(key, number)| (key.slot(slot_count), key, number))
            .filter(|(slot, ..)| slot.shard(shards) == shard)
            .collect();
        ids.sort_unstable();
        let full = ids.len() as u64 * self.per_data_id;
        let last = self.data_ids() - 1;
        let lacking = self.data_ids() * self.per_data_id - self.publishers;
        // The one data id with fewer comes last, so that a number tells its publisher.
        let short = ids.iter().position(|(.., number)| u64::from(*number) == last);
        let publishers = match short {
            Some(at) => {
                let id = ids.remove(at);
                ids.push(id);
                full - lacking
            }
            None => full,
        };
        let ids = ids.into_iter().map(|(_, key, number)| (key, number)).collect();
        Share { population: *self, ids, publishers }
    }
}

/// The publishers of one shard, numbered from 0.
pub struct Share {
    population: Population,
    ids: Vec<(DatumKey, u32)>,
    publishers: u64,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publisher {
    /// Its data id.
    pub datum: DatumKey,
    /// Its registration.
    pub register: RegisterId,
    number: u64,
    data_id: u32,
}

impl Share {
    /// How many there are.
    pub fn len(&self) -> u64 {
        self.publishers
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.publishers == 0
    }

    /// The publisher numbered `at`.
    pub fn publisher(&self, at: u64) -> Publisher {
        let (datum, data_id) = self.ids[(at / self.population.per_data_id) as usize];
        let number = u64::from(data_id) * self.population.per_data_id + at % self.population.per_data_id;
        Publisher { datum, register: RegisterId(mix64(number)), number, data_id }
    }
}

/// Encodes records and puts, with memory that is used again.
pub struct Writer {
    population: Population,
    encoder: Encoder,
    instance: Instance,
    named: Vec<DatumKey>,
}

impl Writer {
    /// For publishers of `population`.
    pub fn new(population: Population) -> Self {
        let instance =
            Instance { client: 0, name: String::new(), zone: "zone-a".into(), payload: Vec::new() };
        Self { population, encoder: Encoder::default(), instance, named: Vec::new() }
    }

    /// The record that a publisher publishes in a round.
    pub fn record(&mut self, publisher: &Publisher, round: u64) -> &[u8] {
        use std::fmt::Write;
        let instance = &mut self.instance;
        instance.client = publisher.number + 1;
        instance.name.clear();
        let width = self.population.name_bytes;
        if width > 0 {
            let _ = write!(instance.name, "{:0width$}", publisher.number);
            instance.name.truncate(width);
        }
        let mut noise = mix64(publisher.number ^ mix64(round));
        instance.payload.clear();
        while instance.payload.len() < self.population.payload_bytes {
            let left = self.population.payload_bytes - instance.payload.len();
            instance.payload.extend_from_slice(&noise.to_le_bytes()[..left.min(8)]);
            noise = noise.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
        self.encoder.encode(publisher.datum, publisher.register, instance).expect("it is valid")
    }

    /// Ends a frame: the next names its data ids anew.
    pub fn next_frame(&mut self) {
        self.named.clear();
    }

    /// Appends to a frame the put of a publisher in a round, and the name before it if the frame has not told it yet.
    pub fn put(&mut self, publisher: &Publisher, round: u64, owner: SessionId, frame: &mut Vec<u8>) {
        if !self.named.contains(&publisher.datum) {
            self.named.push(publisher.datum);
            let id = data_id(publisher.data_id as usize);
            write_name(frame, publisher.datum, id.as_bytes());
        }
        let change = Change {
            kind: ChangeKind::Put,
            durability: Durability::Ephemeral,
            datum: publisher.datum,
            register: publisher.register,
            version: Version { number: round + 1, attach: 1 },
            epoch: 0,
            owner,
        };
        let record = Record::read(self.record(publisher, round)).expect("just written");
        write_put(frame, &change, record);
    }
}

/// The numbers below a bound in an order that only a seed knows; each once.
#[derive(Clone, Copy, Debug)]
pub struct Shuffle {
    bound: u64,
    half: u32,
    seed: u64,
}

impl Shuffle {
    /// Of the numbers below `bound`.
    pub fn new(bound: u64, seed: u64) -> Self {
        let bits = 64 - bound.saturating_sub(1).leading_zeros();
        Self { bound, half: bits.div_ceil(2).max(1), seed }
    }

    /// The number at `place`.
    pub fn at(&self, place: u64) -> u64 {
        assert!(place < self.bound);
        // A Feistel network permutes the next power of four; what leads beyond the bound is led on until it comes back.
        let (mask, mut value) = ((1 << self.half) - 1, place);
        loop {
            let (mut left, mut right) = (value >> self.half, value & mask);
            for round in 0..4 {
                (left, right) = (right, left ^ mix64(right ^ mix64(self.seed ^ round)) & mask);
            }
            value = left << self.half | right;
            if value < self.bound {
                return value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SOME: Population =
        Population { publishers: 1_003, per_data_id: 10, payload_bytes: 33, name_bytes: 8, sessions: 3 };

    #[test]
    fn the_shards_share_all_publishers_without_overlap() {
        let shares: Vec<Share> = (0..3).map(|shard| SOME.share(64, shard, 3)).collect();
        let all: BTreeSet<(u64, u64)> = shares
            .iter()
            .flat_map(|share| (0..share.len()).map(|at| share.publisher(at)))
            .map(|publisher| (publisher.datum.0, publisher.register.0))
            .collect();
        assert_eq!(shares.iter().map(Share::len).sum::<u64>(), 1_003);
        assert_eq!(all.len(), 1_003);
    }

    #[test]
    fn a_shuffle_meets_every_number_once_and_is_no_straight_line() {
        for bound in [1, 2, 7, 1000, 1025] {
            let shuffle = Shuffle::new(bound, 9);
            let met: BTreeSet<u64> = (0..bound).map(|place| shuffle.at(place)).collect();
            assert_eq!(met.len() as u64, bound);
        }
        let shuffle = Shuffle::new(1000, 9);
        assert!((0..999).filter(|place| shuffle.at(place + 1) > shuffle.at(*place)).count() < 700);
    }

    #[test]
    fn a_record_tells_its_publisher_and_round() {
        let (share, mut writer) = (SOME.share(64, 0, 1), Writer::new(SOME));
        let (one, other) = (share.publisher(5), share.publisher(6));
        let bytes = writer.record(&one, 0).to_vec();
        let record = Record::read(&bytes).unwrap();
        assert!(record.validate().is_ok());
        assert_eq!((record.datum(), record.register()), (one.datum, one.register));
        assert_eq!(record.instance().unwrap().payload.len(), 33);
        assert_ne!(writer.record(&one, 1), bytes);
        assert_ne!(writer.record(&other, 0), bytes);
    }
}
