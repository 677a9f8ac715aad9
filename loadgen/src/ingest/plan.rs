//! What is registered: numbered publishers, so many to a data id, whose bytes follow from their number.

use anyhow::{Context, Result};
use slotcast_engine::{
    batch::{Change, ChangeKind, Durability, ENTRY_BYTES, write_put},
    id::{DataId, DatumKey, RegisterId, SessionId, Version, mix64},
    record::{Encoder, Instance, Record},
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Version and attach count of everything.
pub const VERSION: Version = Version { number: 1, attach: 1 };
const DIGITS: usize = 10;
/// Where an entry has key, register id and owner.
const ENTRY_KEY_AT: usize = 8;
const ENTRY_REGISTER_AT: usize = 16;
const ENTRY_OWNER_AT: usize = 40;
/// Where a record has them, its checksum, and its archive.
const RECORD_KEY_AT: usize = 8;
const RECORD_REGISTER_AT: usize = 16;
const RECORD_CHECKSUM_AT: usize = 24;
const ARCHIVE_AT: usize = 32;
const CLIENT_MARK: u64 = 0x1dea_11fe_c0de_4bed;

/// Makes the bytes of any publisher from those of one, which is much faster than to encode each.
pub struct Plan {
    /// Publishers of each data id.
    pub per_datum: u32,
    entry: Vec<u8>,
    client_at: usize,
    digits_at: usize,
    payload: std::ops::Range<usize>,
}

impl Plan {
    /// Publishers with payloads of `payload_bytes`, `per_datum` to a data id.
    pub fn new(per_datum: u32, payload_bytes: usize) -> Result<Self> {
        let instance = Instance {
            client: CLIENT_MARK,
            name: format!("instance-{}", "#".repeat(DIGITS)),
            zone: "zone-1".into(),
            payload: vec![0xa7; payload_bytes],
        };
        let change = Change {
            kind: ChangeKind::Put,
            durability: Durability::Ephemeral,
            datum: DatumKey(0),
            register: RegisterId(0),
            version: VERSION,
            epoch: 0,
            owner: SessionId(0),
        };
        let mut encoder = Encoder::default();
        let record = encoder.encode(change.datum, change.register, &instance)?;
        let mut entry = Vec::new();
        write_put(&mut entry, &change, Record::read(record)?);
        let find = |what: &[u8]| entry.windows(what.len().max(1)).position(|window| window == what);
        let place = "the encoder has put it somewhere else";
        let client_at = find(&CLIENT_MARK.to_le_bytes()).context(place)?;
        let digits_at = find(&[b'#'; DIGITS]).context(place)?;
        let start = find(&instance.payload).context(place)?;
        Ok(Self { per_datum, entry, client_at, digits_at, payload: start..start + payload_bytes })
    }

    /// Bytes of one entry.
    pub fn entry_bytes(&self) -> usize {
        self.entry.len()
    }

    /// The data id numbered `datum`.
    pub fn data_id(datum: u64) -> Result<DataId> {
        Ok(DataId::new("loadgen", "ingest", &format!("service-{datum:08}"))?)
    }

    /// The register id of a publisher; it leads back to its number.
    pub fn register(publisher: u64) -> RegisterId {
        RegisterId(publisher.wrapping_add(1).rotate_right(20))
    }

    /// The publisher behind a register id.
    pub fn publisher(register: RegisterId) -> u64 {
        register.0.rotate_left(20).wrapping_sub(1)
    }

    /// Appends the entry that registers a publisher under `owner`; returns the checksum of its record.
    pub fn write(&self, publisher: u64, datum: DatumKey, owner: SessionId, out: &mut Vec<u8>) -> u64 {
        let start = out.len();
        out.extend_from_slice(&self.entry);
        let entry = &mut out[start..];
        let register = Self::register(publisher).0.to_le_bytes();
        let put = |entry: &mut [u8], at: usize, bytes: &[u8]| {
            entry[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(entry, ENTRY_KEY_AT, &datum.0.to_le_bytes());
        put(entry, ENTRY_REGISTER_AT, &register);
        put(entry, ENTRY_OWNER_AT, &owner.0.to_le_bytes());
        put(entry, ENTRY_BYTES + RECORD_KEY_AT, &datum.0.to_le_bytes());
        put(entry, ENTRY_BYTES + RECORD_REGISTER_AT, &register);
        put(entry, self.client_at, &mix64(publisher).to_le_bytes());
        let mut rest = publisher;
        for digit in entry[self.digits_at..self.digits_at + DIGITS].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        for (word, at) in (0u64..).zip(entry[self.payload.clone()].chunks_mut(8)) {
            let bytes = mix64(publisher << 16 | word).to_le_bytes();
            at.copy_from_slice(&bytes[..at.len()]);
        }
        let record = &mut entry[ENTRY_BYTES..];
        let sum = xxh3_64_with_seed(&record[ARCHIVE_AT..], xxh3_64(&record[..RECORD_CHECKSUM_AT]));
        put(record, RECORD_CHECKSUM_AT, &sum.to_le_bytes());
        sum
    }

    /// Whether `record` is, byte for byte, what the publisher registered. `scratch` is overwritten.
    pub fn is_exactly(&self, publisher: u64, datum: DatumKey, record: &[u8], scratch: &mut Vec<u8>) -> bool {
        scratch.clear();
        self.write(publisher, datum, SessionId(0), scratch);
        scratch[ENTRY_BYTES..] == *record
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use slotcast_engine::batch::Entry;

    #[test]
    fn patched_entries_are_as_good_as_encoded_ones() {
        let plan = Plan::new(10, 128).unwrap();
        let id = Plan::data_id(4).unwrap();
        let mut out = Vec::new();
        for publisher in [0, 47, u64::from(u32::MAX)] {
            out.clear();
            plan.write(publisher, id.key(), SessionId(9), &mut out);
            let entry = Entry::read(&out).unwrap();
            let record = entry.record().unwrap();
            assert_eq!(record.validate().unwrap().0, mix64(publisher));
            assert_eq!(
                (entry.change.owner, entry.change.register),
                (SessionId(9), Plan::register(publisher))
            );
            let instance = record.instance().unwrap();
            assert_eq!(instance.name, format!("instance-{publisher:010}"));
            let encoded =
                Encoder::default().encode(id.key(), Plan::register(publisher), &instance).unwrap().to_vec();
            assert_eq!(record.bytes(), encoded);
            assert_eq!(Plan::publisher(record.register()), publisher);
            let mut scratch = Vec::new();
            assert!(plan.is_exactly(publisher, id.key(), record.bytes(), &mut scratch));
            assert!(!plan.is_exactly(publisher + 1, id.key(), record.bytes(), &mut scratch));
        }
    }
}
