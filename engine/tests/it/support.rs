//! What the tests share: writing as a session does, and reading as a subscriber does.

use std::collections::BTreeMap;

use slotcast_engine::{
    batch::{Change, ChangeKind, Durability, write_change, write_name, write_put},
    change_log::ChangeLogLimits,
    diff::{Answer, Diff},
    error::Refusal,
    id::{DataId, DatumKey, Nanos, ReaderId, RegisterId, Revision, SessionId, SlotId, Version},
    record::{Encoder, Instance, Record},
    shard::{LinkError, Shard, ShardConfig},
    slot::Slot,
};

/// Nanoseconds of a millisecond.
pub(crate) const MILLI: u64 = Nanos::SECOND / 1000;
/// The lease of the sessions in these tests.
pub(crate) const LEASE: u64 = 3 * Nanos::SECOND;

pub(crate) fn data_id(service: &str) -> DataId {
    DataId::new("public", "default", service).expect("a valid name")
}

pub(crate) fn version(number: u64, attach: u32) -> Version {
    Version { number, attach }
}

pub(crate) fn config(slot_count: u32) -> ShardConfig {
    ShardConfig {
        slot_count,
        slots: 0..=(slot_count - 1) as u16,
        shard: 0,
        shards: 1,
        epoch: 1,
        seed: 0x5eed,
        session_lease: LEASE,
        settle: 0,
        change_log: ChangeLogLimits::default(),
        validate: true,
        compaction_budget: 1 << 20,
    }
}

pub(crate) fn instance(client: u64, payload: &[u8]) -> Instance {
    Instance { client, name: format!("host-{client}.example"), zone: "z1".into(), payload: payload.to_vec() }
}

/// The change entries of one write frame.
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
    owner: SessionId,
    epoch: u32,
    encoder: Encoder,
}

impl Frame {
    pub(crate) fn of(session: u64) -> Self {
        Self { bytes: Vec::new(), owner: SessionId(session), epoch: 0, encoder: Encoder::default() }
    }

    /// Entries after this one claim a leader epoch.
    pub(crate) fn in_epoch(mut self, epoch: u32) -> Self {
        self.epoch = epoch;
        self
    }

    pub(crate) fn name(mut self, id: &DataId) -> Self {
        write_name(&mut self.bytes, id.key(), id.as_bytes());
        self
    }

    pub(crate) fn put(
        mut self,
        id: &DataId,
        register: u64,
        version: Version,
        client: u64,
        payload: &[u8],
    ) -> Self {
        let change = self.change(ChangeKind::Put, id, register, version);
        let bytes = self
            .encoder
            .encode(id.key(), RegisterId(register), &instance(client, payload))
            .expect("a valid instance");
        write_put(&mut self.bytes, &change, Record::read(bytes).expect("just written"));
        self
    }

    pub(crate) fn remove(mut self, id: &DataId, register: u64, version: Version) -> Self {
        let change = self.change(ChangeKind::Remove, id, register, version);
        write_change(&mut self.bytes, &change);
        self
    }

    fn change(&self, kind: ChangeKind, id: &DataId, register: u64, version: Version) -> Change {
        Change {
            kind,
            // What nobody owns is persistent.
            durability: Durability::of_owner(self.owner),
            datum: id.key(),
            register: RegisterId(register),
            version,
            epoch: self.epoch,
            owner: self.owner,
        }
    }
}

/// Registrations of a data id: publishing client and payload.
pub(crate) type List = BTreeMap<RegisterId, (u64, Vec<u8>)>;

pub(crate) fn content(record: Record<'_>) -> (u64, Vec<u8>) {
    record.verify_checksum().expect("stored bytes are whole");
    let instance = record.instance().expect("stored records are valid");
    (instance.client, instance.payload)
}

/// The list of a data id as the slot's own index has it.
pub(crate) fn list_of(slot: &Slot, datum: DatumKey) -> List {
    slot.records(datum).map(|(record, _)| (record.register(), content(record))).collect()
}

/// What a reader holds of one data id, put together from the diffs it got and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) revision: Revision,
    pub(crate) list: List,
}

impl Held {
    /// Applies a diff as every reader has to: a snapshot replaces, a diff needs a revision inside its range.
    pub(crate) fn apply(held: &mut Option<Held>, diff: &Diff<'_>) {
        if diff.is_snapshot {
            assert!(held.as_ref().is_none_or(|held| held.revision <= diff.to), "a snapshot went back");
            *held = Some(Held { revision: diff.to, list: List::new() });
        }
        let held = held.as_mut().expect("the first answer is a snapshot");
        assert!(
            diff.from <= held.revision && held.revision <= diff.to,
            "a reader at {} got a diff from {} to {}",
            held.revision,
            diff.from,
            diff.to
        );
        for register in diff.removes() {
            held.list.remove(&register);
        }
        for record in diff.puts() {
            held.list.insert(record.register(), content(record));
        }
        held.revision = diff.to;
    }
}

/// One push as it goes over the wire.
pub(crate) struct Seen {
    pub(crate) readers: Vec<ReaderId>,
    pub(crate) slot: SlotId,
    pub(crate) datum: DatumKey,
    flags: u8,
    body: Vec<u8>,
}

impl Seen {
    pub(crate) fn of(readers: &[ReaderId], slot: SlotId, datum: DatumKey, answer: &Answer<'_>) -> Self {
        let mut body = Vec::new();
        let flags = answer.write(datum, &mut body);
        Self { readers: readers.to_vec(), slot, datum, flags, body }
    }

    pub(crate) fn diff(&self) -> Diff<'_> {
        let diff = Diff::read(self.flags, &self.body).expect("what was written reads back");
        assert_eq!(diff.datum, self.datum);
        diff
    }

    /// Whether it says what `answer` does, byte for byte.
    pub(crate) fn is_like(&self, answer: &Answer<'_>) -> bool {
        let alone = Seen::of(&self.readers, self.slot, self.datum, answer);
        (self.flags, &self.body) == (alone.flags, &alone.body)
    }

    /// Registrations put and removed.
    pub(crate) fn registers(&self) -> (Vec<u64>, Vec<u64>) {
        let diff = self.diff();
        (diff.puts().map(|put| put.register().0).collect(), diff.removes().map(|gone| gone.0).collect())
    }
}

/// The outcome of one write frame: reader, sequence, outcomes.
pub(crate) type Ack = (ReaderId, u64, Vec<Result<Revision, Refusal>>);

/// A shard with the links that tests open to it. Link and session have the same number unless told otherwise.
pub(crate) struct Node {
    pub(crate) shard: Shard,
    pub(crate) now: Nanos,
    slot_count: u32,
    sequences: BTreeMap<SessionId, u64>,
    sessions: BTreeMap<ReaderId, SessionId>,
}

impl Node {
    pub(crate) fn new(config: ShardConfig) -> Self {
        Self::of(config.slot_count, Shard::new(config))
    }

    /// A node of a cluster, which holds no slot yet.
    pub(crate) fn clustered(config: ShardConfig) -> Self {
        Self::of(config.slot_count, Shard::clustered(config))
    }

    pub(crate) fn of(slot_count: u32, shard: Shard) -> Self {
        Self {
            slot_count,
            shard,
            now: Nanos(Nanos::SECOND),
            sequences: BTreeMap::new(),
            sessions: BTreeMap::new(),
        }
    }

    /// One slot and a link for each of `sessions`.
    pub(crate) fn with_sessions(sessions: std::ops::RangeInclusive<u64>) -> Self {
        let mut node = Self::new(config(1));
        sessions.for_each(|session| node.open(session));
        node
    }

    pub(crate) fn open(&mut self, session: u64) {
        self.open_link(ReaderId(session as u32), SessionId(session), 0, true).expect("a fresh session");
    }

    pub(crate) fn open_link(
        &mut self,
        reader: ReaderId,
        session: SessionId,
        epoch_seen: u32,
        same_run: bool,
    ) -> Result<u64, Refusal> {
        let last = self.shard.handle_link_open(reader, session, epoch_seen, same_run, self.now)?;
        assert_eq!(last, *self.sequences.entry(session).or_insert(0), "the sequence goes on where it was");
        self.sessions.insert(reader, session);
        Ok(last)
    }

    /// Sends a frame over a link without ending the turn; returns its sequence.
    pub(crate) fn send(&mut self, reader: ReaderId, frame: &Frame) -> Result<u64, LinkError> {
        let session = self.sessions.get(&reader).copied().unwrap_or(SessionId(0));
        let sequence = self.sequences.get(&session).map_or(1, |last| last + 1);
        self.shard.handle_write(reader, sequence, &frame.bytes, self.now)?;
        self.sequences.insert(session, sequence);
        Ok(sequence)
    }

    /// Ends the turn: seals, and takes acknowledgements and pushes.
    pub(crate) fn turn(&mut self) -> (Vec<Ack>, Vec<Seen>) {
        self.now = self.now.after(MILLI);
        self.shard.seal(self.now);
        let acks = std::iter::from_fn(|| self.shard.poll_ack())
            .map(|ack| (ack.reader, ack.sequence, ack.outcomes))
            .collect();
        let mut pushes = Vec::new();
        self.shard.poll_push(|push| {
            pushes.push(Seen::of(push.readers, push.slot, push.datum, &push.answer));
        });
        (acks, pushes)
    }

    /// Sends one frame over the link of the session with the same number and ends the turn.
    pub(crate) fn write(
        &mut self,
        session: u64,
        frame: &Frame,
    ) -> (Vec<Result<Revision, Refusal>>, Vec<Seen>) {
        self.send(ReaderId(session as u32), frame).expect("a frame that can be read");
        let (mut acks, pushes) = self.turn();
        let (_, _, outcomes) = acks.pop().expect("one frame, one acknowledgement");
        assert!(acks.is_empty());
        (outcomes, pushes)
    }

    /// Like [`Node::write`], and every outcome has to be good.
    pub(crate) fn write_ok(&mut self, session: u64, frame: &Frame) -> Vec<Seen> {
        let (outcomes, pushes) = self.write(session, frame);
        let refused: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.err()).collect();
        assert!(refused.is_empty(), "{refused:?}");
        pushes
    }

    /// Subscribes from nothing and takes the first answer.
    pub(crate) fn subscribe(&mut self, session: u64, id: &DataId) -> Held {
        self.shard.handle_interest(ReaderId(session as u32), id, Revision::ZERO).expect("a slot held here");
        let (_, pushes) = self.turn();
        let mut held = None;
        let answers = pushes.iter().filter(|seen| seen.datum == id.key());
        answers.for_each(|seen| Held::apply(&mut held, &seen.diff()));
        held.expect("the first answer comes at once")
    }

    /// A heartbeat with a true digest; returns the mark to confirm in the next one.
    pub(crate) fn heartbeat(&mut self, session: u64, mark: u64) -> u64 {
        let (routes, shard) = (self.shard.routes(), &self.shard);
        let digest = shard
            .slots()
            .filter(|slot| shard.state(slot.id()).is_led())
            .map(|slot| slot.session_digest(SessionId(session)))
            .reduce(|a, b| slotcast_engine::digest::Digest {
                sum: a.sum.wrapping_add(b.sum),
                count: a.count + b.count,
            })
            .unwrap_or_default();
        let answer = self
            .shard
            .handle_heartbeat(ReaderId(session as u32), mark, digest, routes, self.now)
            .expect("a living session");
        assert_eq!(answer.differs, None);
        answer.mark
    }

    /// Lets a lease pass in which every session of `sessions` lives: nobody unknown is waited for any more.
    pub(crate) fn outlive_a_lease(&mut self, sessions: std::ops::RangeInclusive<u64>) {
        let end = self.now.after(LEASE + Nanos::SECOND);
        while self.now < end {
            self.tick_after(500 * MILLI);
            sessions.clone().for_each(|session| _ = self.heartbeat(session, 0));
        }
    }

    pub(crate) fn tick_after(&mut self, nanos: u64) {
        self.now = self.now.after(nanos);
        self.shard.tick(self.now);
    }

    pub(crate) fn slot_of(&self, id: &DataId) -> &Slot {
        let wanted = id.key().slot(self.slot_count);
        self.shard.slots().find(|slot| slot.id() == wanted).expect("a slot held here")
    }

    pub(crate) fn list(&self, id: &DataId) -> List {
        list_of(self.slot_of(id), id.key())
    }

    /// Register ids of the live registrations of a data id.
    pub(crate) fn registers(&self, id: &DataId) -> Vec<u64> {
        self.list(id).keys().map(|register| register.0).collect()
    }
}
