//! What a run does, known to the last byte before it starts: data ids, publishers, subscriptions and the row of operations.
//!
//! Every process derives the same workload from the same parameters. An operation is one write of one publisher; the
//! numbers of a publisher's operations count from 1 and are also the versions it publishes under. Operations that set the
//! stage come first (`at` 0), the planned changes follow in the order of their intended times.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use hashbrown::HashMap;
use slotcast_engine::{
    id::{ClientId, DataId, DatumKey, RegisterId, mix64},
    record::{Encoder, Instance},
};

use crate::{draw::Subscriptions, random::Random};

/// Opens every payload, so that a record names its publisher and number by itself.
pub const PAYLOAD_MAGIC: [u8; 8] = *b"slotcast";
/// Bytes of a payload that are not filler: magic, publisher, number.
pub const PAYLOAD_HEAD_BYTES: usize = 16;
/// Odd, so that multiplying by it can be undone: spreads register ids over all 64 bits.
const REGISTER_SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
const REGISTER_UNDO: u64 = inverse(REGISTER_SPREAD);

/// What an operation does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// The publisher appears.
    Register,
    /// Its payload changes.
    Update,
    /// It leaves.
    Unregister,
}

/// One write of one publisher.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Op {
    /// Intended time, nanoseconds after the start of the changes.
    pub at: u64,
    /// Whose.
    pub publisher: u32,
    /// Position among the publisher's operations, from 1.
    pub number: u32,
    /// What it does.
    pub kind: Kind,
}

/// One registered instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Publisher {
    /// The client that publishes it.
    pub client: u32,
    /// The service it belongs to.
    pub service: u32,
    /// Its place among the publishers of the service.
    pub place: u32,
}

/// The names of a publisher from a trace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Naming {
    /// Instance name.
    pub name: String,
    /// Zone name.
    pub zone: String,
    /// `address:port`, carried at the start of the filler.
    pub endpoint: String,
}

/// Parts that a workload is put together from.
#[derive(Default)]
pub struct Parts {
    /// Clients in all.
    pub clients: u32,
    /// The data id of each service.
    pub services: Vec<DataId>,
    /// Client and service of each publisher.
    pub publishers: Vec<(u32, u32)>,
    /// Names of the publishers; empty: made up.
    pub names: Vec<Naming>,
    /// All operations, with numbers not yet given: stage first, then planned ones by time.
    pub ops: Vec<(u64, u32, Kind)>,
    /// How many of the operations set the stage.
    pub staged: usize,
    /// Publishers that nothing happens to on purpose.
    pub canaries: u32,
    /// Subscriptions of the clients that this process keeps.
    pub subscriptions: Subscriptions,
    /// Subscribers of each service over all clients.
    pub subscribers: Vec<u32>,
    /// Bytes of each payload.
    pub payload_bytes: usize,
    /// Fixes the filler of the payloads.
    pub seed: u64,
    /// Makes the client ids of two runs against one cluster differ.
    pub tag: u64,
    /// The changes inside the measuring window are those intended at these offsets.
    pub window: Range<u64>,
    /// What was scaled, capped or drawn, for the report.
    pub notes: Vec<String>,
}

/// See the module.
pub struct Workload {
    parts: Parts,
    publishers: Vec<Publisher>,
    ops: Vec<Op>,
    /// Operations of publisher `p`: `of_publisher[starts[p]..starts[p + 1]]`, by number.
    starts: Vec<u32>,
    of_publisher: Vec<u32>,
    by_key: HashMap<DatumKey, u32>,
    by_service: Vec<Vec<u32>>,
    planned_by_service: Vec<u32>,
}

impl Workload {
    /// Puts a workload together and numbers its operations.
    pub fn new(mut parts: Parts) -> Result<Self> {
        ensure!(
            parts.payload_bytes >= PAYLOAD_HEAD_BYTES,
            "a payload needs {PAYLOAD_HEAD_BYTES} bytes at least"
        );
        let mut by_service = vec![Vec::new(); parts.services.len()];
        let mut publishers = Vec::with_capacity(parts.publishers.len());
        for (index, &(client, service)) in parts.publishers.iter().enumerate() {
            let of_service = &mut by_service[service as usize];
            publishers.push(Publisher { client, service, place: of_service.len() as u32 });
            of_service.push(index as u32);
        }
        let (ops, starts, of_publisher) = number(std::mem::take(&mut parts.ops), publishers.len());
        let mut planned_by_service = vec![0; parts.services.len()];
        for op in &ops[parts.staged..] {
            planned_by_service[publishers[op.publisher as usize].service as usize] += 1;
        }
        let by_key: HashMap<_, _> =
            parts.services.iter().zip(0..).map(|(id, service)| (id.key(), service)).collect();
        ensure!(by_key.len() == parts.services.len(), "two services share a name or a key");
        parts.publishers = Vec::new();
        Ok(Self { parts, publishers, ops, starts, of_publisher, by_key, by_service, planned_by_service })
    }

    /// Clients in all.
    pub fn clients(&self) -> u32 {
        self.parts.clients
    }

    /// The data ids, one per service.
    pub fn services(&self) -> &[DataId] {
        &self.parts.services
    }

    /// The service behind a key.
    pub fn service_of_key(&self, key: DatumKey) -> Option<u32> {
        self.by_key.get(&key).copied()
    }

    /// All publishers.
    pub fn publishers(&self) -> &[Publisher] {
        &self.publishers
    }

    /// Publishers of a service, by place.
    pub fn publishers_of(&self, service: u32) -> &[u32] {
        &self.by_service[service as usize]
    }

    /// Publishers left alone on purpose.
    pub fn canaries(&self) -> u32 {
        self.parts.canaries
    }

    /// All operations, staged ones first.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// The operations that set the stage.
    pub fn staged(&self) -> Range<usize> {
        0..self.parts.staged
    }

    /// The planned changes.
    pub fn planned(&self) -> Range<usize> {
        self.parts.staged..self.ops.len()
    }

    /// Whether an operation is a planned change.
    pub fn is_planned(&self, op: u32) -> bool {
        op as usize >= self.parts.staged
    }

    /// Whether an operation is a planned change of the measuring window.
    pub fn in_window(&self, op: u32) -> bool {
        self.is_planned(op) && self.parts.window.contains(&self.ops[op as usize].at)
    }

    /// The measuring window, nanoseconds after the start of the changes.
    pub fn window(&self) -> Range<u64> {
        self.parts.window.clone()
    }

    /// Planned changes of a service.
    pub fn planned_of(&self, service: u32) -> u32 {
        self.planned_by_service[service as usize]
    }

    /// Operations of a publisher; the one numbered `n` is at `n - 1`.
    pub fn ops_of(&self, publisher: u32) -> &[u32] {
        let publisher = publisher as usize;
        &self.of_publisher[self.starts[publisher] as usize..self.starts[publisher + 1] as usize]
    }

    /// Subscriptions that this process keeps.
    pub fn subscriptions(&self) -> &Subscriptions {
        &self.parts.subscriptions
    }

    /// Subscribers of each service over all clients.
    pub fn subscribers(&self) -> &[u32] {
        &self.parts.subscribers
    }

    /// Planned (change, subscriber) pairs of the window, over all clients.
    pub fn deliveries(&self) -> u64 {
        let range = self.planned();
        range.filter(|&op| self.in_window(op as u32)).map(|op| u64::from(self.subscribers_of_op(op))).sum()
    }

    /// Subscribers that an operation concerns, over all clients.
    pub fn subscribers_of_op(&self, op: usize) -> u32 {
        self.parts.subscribers[self.publishers[self.ops[op].publisher as usize].service as usize]
    }

    /// What was scaled, capped or drawn.
    pub fn notes(&self) -> &[String] {
        &self.parts.notes
    }

    /// Bytes of each payload.
    pub fn payload_bytes(&self) -> usize {
        self.parts.payload_bytes
    }

    /// The id that a client says hello with.
    pub fn client_id(&self, client: u32) -> ClientId {
        ClientId(mix64(self.parts.tag ^ mix64(u64::from(client))))
    }

    /// The register id of a publisher.
    pub fn register(&self, publisher: u32) -> RegisterId {
        RegisterId((u64::from(publisher) + 1).wrapping_mul(REGISTER_SPREAD))
    }

    /// The publisher behind a register id, if it is one of ours.
    pub fn publisher_of(&self, register: RegisterId) -> Option<u32> {
        let index = register.0.wrapping_mul(REGISTER_UNDO).wrapping_sub(1);
        (index < self.publishers.len() as u64).then_some(index as u32)
    }

    /// Encodes what `publisher` publishes as its operation `number`.
    pub fn encode<'e>(&self, encoder: &'e mut Encoder, publisher: u32, number: u32) -> Result<&'e [u8]> {
        let Publisher { client, service, .. } = self.publishers[publisher as usize];
        let naming = self.parts.names.get(publisher as usize);
        let instance = Instance {
            client: self.client_id(client).0,
            name: naming.map_or_else(|| format!("instance-{publisher}"), |naming| naming.name.clone()),
            zone: naming.map_or_else(|| format!("zone-{}", publisher % 3), |naming| naming.zone.clone()),
            payload: self.payload(publisher, number),
        };
        let key = self.parts.services[service as usize].key();
        encoder
            .encode(key, self.register(publisher), &instance)
            .with_context(|| format!("publisher {publisher} of {}", self.parts.services[service as usize]))
    }

    fn payload(&self, publisher: u32, number: u32) -> Vec<u8> {
        let mut payload = Vec::with_capacity(self.parts.payload_bytes + 8);
        payload.extend_from_slice(&PAYLOAD_MAGIC);
        payload.extend_from_slice(&publisher.to_le_bytes());
        payload.extend_from_slice(&number.to_le_bytes());
        if let Some(naming) = self.parts.names.get(publisher as usize) {
            payload.extend_from_slice(naming.endpoint.as_bytes());
        }
        let mut filler = Random::new(self.parts.seed, u64::from(publisher) << 32 | u64::from(number));
        while payload.len() < self.parts.payload_bytes {
            payload.extend_from_slice(&filler.bits().to_le_bytes());
        }
        payload.truncate(self.parts.payload_bytes);
        payload
    }

    /// Reads publisher and number out of a record's archive. Whether the bytes are right is another question.
    pub fn identify(archive: &[u8]) -> Option<(u32, u32)> {
        let at = archive.windows(PAYLOAD_MAGIC.len()).position(|window| window == PAYLOAD_MAGIC)?;
        let head = archive.get(at + 8..at + PAYLOAD_HEAD_BYTES)?;
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        Some((word(0), word(4)))
    }
}

/// Numbers the operations of each publisher and lists them by publisher.
fn number(ops: Vec<(u64, u32, Kind)>, publishers: usize) -> (Vec<Op>, Vec<u32>, Vec<u32>) {
    let mut counts = vec![0u32; publishers];
    let numbered: Vec<Op> = ops
        .into_iter()
        .map(|(at, publisher, kind)| {
            counts[publisher as usize] += 1;
            Op { at, publisher, number: counts[publisher as usize], kind }
        })
        .collect();
    let mut starts = vec![0u32];
    for count in counts {
        starts.push(starts[starts.len() - 1] + count);
    }
    let mut of_publisher = vec![0; numbered.len()];
    for (index, op) in numbered.iter().enumerate() {
        of_publisher[(starts[op.publisher as usize] + op.number - 1) as usize] = index as u32;
    }
    (numbered, starts, of_publisher)
}

/// The inverse of an odd number modulo 2^64; each step doubles the right bits.
const fn inverse(odd: u64) -> u64 {
    let mut found = odd;
    let mut step = 0;
    while step < 6 {
        found = found.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(found)));
        step += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Workload {
        Workload::new(Parts {
            clients: 2,
            services: ["a", "b"].map(|name| DataId::new("n", "g", name).unwrap()).to_vec(),
            publishers: vec![(0, 0), (1, 1), (1, 0)],
            ops: vec![
                (0, 0, Kind::Register),
                (0, 2, Kind::Register),
                (5, 0, Kind::Update),
                (6, 1, Kind::Register),
                (9, 0, Kind::Unregister),
            ],
            staged: 2,
            subscribers: vec![3, 4],
            payload_bytes: 40,
            window: 6..10,
            ..Parts::default()
        })
        .unwrap()
    }

    #[test]
    fn operations_are_numbered_per_publisher() {
        let workload = small();
        assert_eq!(workload.ops_of(0), [0, 2, 4]);
        assert_eq!(workload.ops_of(1), [3]);
        assert_eq!(workload.ops()[4], Op { at: 9, publisher: 0, number: 3, kind: Kind::Unregister });
        assert_eq!(workload.publishers_of(0), [0, 2]);
        assert_eq!((workload.planned_of(0), workload.planned_of(1)), (2, 1));
        assert_eq!(workload.deliveries(), 3 + 4, "the update lies before the window");
    }

    #[test]
    fn a_record_names_its_publisher_and_number() {
        let workload = small();
        let mut encoder = Encoder::default();
        let bytes = workload.encode(&mut encoder, 2, 7).unwrap();
        assert_eq!(Workload::identify(bytes), Some((2, 7)));
        assert_eq!(Workload::identify(&bytes[..32]), None);
    }

    #[test]
    fn register_ids_lead_back_to_their_publisher() {
        let workload = small();
        for publisher in 0..3 {
            assert_eq!(workload.publisher_of(workload.register(publisher)), Some(publisher));
        }
        assert_eq!(workload.publisher_of(RegisterId(12345)), None);
        assert_eq!(workload.publisher_of(workload.register(3)), None);
    }
}
