//! Cases of the store: what a data node does with a write, a diff and a heartbeat.

use std::collections::{BTreeMap, BTreeSet};

use slotcast_engine::{
    batch::{Change, ChangeKind, Durability, write_name, write_put},
    change_log::ChangeLogLimits,
    diff,
    digest::{self, Digest},
    id::{DataId, DatumKey, Nanos, ReaderId, RegisterId, Revision, SessionId, Version, mix64},
    limits::SLOTS_DEFAULT,
    record::{Encoder, Record},
    shard::{Shard, ShardConfig},
};

use crate::{
    Prepared,
    formats::{data_id, instance},
};

const SESSION: SessionId = SessionId(1);
const WRITER: ReaderId = ReaderId(0);
const NOW: Nanos = Nanos(Nanos::SECOND);
/// Publishers of a data id where a case does not say otherwise.
const PUBLISHERS: usize = 10;
/// Entries of a write frame.
const FRAME: usize = 100;
const PAYLOAD: usize = 128;
/// Where an entry keeps its publisher version.
const VERSION_AT: usize = 24;

/// A shard with one session, and the frames that session has sent.
struct Node {
    shard: Shard,
    sequence: u64,
    version: u64,
    reads: u64,
}

/// A write frame, and where its puts begin.
struct Frame {
    bytes: Vec<u8>,
    puts: Vec<usize>,
}

impl Node {
    fn new(slot_count: u32) -> Self {
        let mut shard = Shard::new(ShardConfig {
            slot_count,
            slots: 0..=(slot_count - 1) as u16,
            shard: 0,
            shards: 1,
            epoch: 1,
            seed: 0x5eed,
            session_lease: 30 * Nanos::SECOND,
            settle: 0,
            change_log: ChangeLogLimits::default(),
            validate: true,
            compaction_budget: 1 << 20,
        });
        shard.handle_link_open(WRITER, SESSION, 0, true, NOW).expect("a fresh session");
        Self { shard, sequence: 0, version: 0, reads: 0 }
    }

    /// Sends a frame with a version above all before it.
    fn send(&mut self, frame: &mut Frame) {
        self.version += 1;
        for &put in &frame.puts {
            frame.bytes[put + VERSION_AT..put + VERSION_AT + 8].copy_from_slice(&self.version.to_le_bytes());
        }
        self.sequence += 1;
        self.shard.handle_write(WRITER, self.sequence, &frame.bytes, NOW).expect("a frame that can be read");
    }

    /// Ends a turn as a data node does; returns the writes that were taken. `body` is where diffs are written.
    fn turn(&mut self, body: &mut Vec<u8>) -> u64 {
        self.shard.seal(NOW);
        let mut taken = 0;
        while let Some(ack) = self.shard.poll_ack() {
            taken += ack.outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u64;
        }
        let reads = &mut self.reads;
        self.shard.poll_push(|push| {
            body.clear();
            push.answer.write(push.datum, body);
            *reads += push.readers.len() as u64;
        });
        taken
    }

    fn check(&self, taken: u64) -> u64 {
        let counts = self.shard.counts();
        mix64(taken ^ mix64(counts.publishers as u64) ^ mix64(counts.arena.live as u64).rotate_left(7))
    }
}

/// Frames that put `publishers` registrations in each of `ids`.
fn frames(ids: &[DataId], publishers: usize, fill: u8) -> Vec<Frame> {
    let (mut frames, mut encoder) = (Vec::<Frame>::new(), Encoder::default());
    for (at, id) in ids.iter().enumerate() {
        for register in 0..publishers {
            if frames.last().is_none_or(|frame| frame.puts.len() >= FRAME) {
                frames.push(Frame { bytes: Vec::new(), puts: Vec::new() });
            }
            let Some(frame) = frames.last_mut() else { continue };
            if register == 0 || frame.puts.is_empty() {
                write_name(&mut frame.bytes, id.key(), id.as_bytes());
            }
            let client = (at * publishers + register) as u64;
            let change = Change {
                kind: ChangeKind::Put,
                durability: Durability::Ephemeral,
                datum: id.key(),
                register: RegisterId(mix64(register as u64)),
                version: Version { number: 0, attach: 1 },
                epoch: 0,
                owner: SESSION,
            };
            let content = instance(client, PAYLOAD, fill);
            let bytes = encoder.encode(id.key(), change.register, &content).expect("it is valid");
            frame.puts.push(frame.bytes.len());
            write_put(&mut frame.bytes, &change, Record::read(bytes).expect("just written"));
        }
    }
    frames
}

/// Data ids for `size` registrations.
fn ids(size: usize) -> Vec<DataId> {
    (0..size.div_ceil(PUBLISHERS)).map(data_id).collect()
}

/// Registers `size` publishers, 10 per data id, in an empty shard; a turn per frame of 100. Includes opening the shard.
pub fn register(size: usize) -> Prepared {
    let (ids, mut body) = (ids(size), Vec::new());
    let mut sent = frames(&ids, PUBLISHERS, 0);
    Prepared::new(ids.len() * PUBLISHERS, move || {
        let (mut node, mut taken) = (Node::new(SLOTS_DEFAULT), 0);
        for frame in &mut sent {
            node.send(frame);
            taken += node.turn(&mut body);
        }
        node.check(taken)
    })
}

/// Gives `size` registrations another payload; a turn per frame of 100.
pub fn update(size: usize) -> Prepared {
    rewrite(size, 1)
}

/// Registers `size` publishers again with a larger version and the payload that they have.
pub fn renew(size: usize) -> Prepared {
    rewrite(size, 0)
}

fn rewrite(size: usize, other: u8) -> Prepared {
    let (ids, mut body, mut node) = (ids(size), Vec::new(), Node::new(SLOTS_DEFAULT));
    let mut sent = [frames(&ids, PUBLISHERS, 0), frames(&ids, PUBLISHERS, other)];
    for frame in &mut sent[0] {
        node.send(frame);
        node.turn(&mut body);
    }
    let mut turn = 0;
    Prepared::new(ids.len() * PUBLISHERS, move || {
        turn += 1;
        let mut taken = 0;
        for frame in &mut sent[turn % 2] {
            node.send(frame);
            taken += node.turn(&mut body);
        }
        node.shard.tick(NOW);
        node.check(taken)
    })
}

/// A data id of `size` publishers, one of which has changed since the revision returned.
fn changed_once(size: usize) -> (Node, DatumKey, Revision) {
    let (id, mut body, mut node) = (data_id(0), Vec::new(), Node::new(1));
    for frame in &mut frames(std::slice::from_ref(&id), size, 0) {
        node.send(frame);
    }
    node.turn(&mut body);
    let since = slot_revision(&node);
    for frame in &mut frames(std::slice::from_ref(&id), 1, 9) {
        node.send(frame);
    }
    node.turn(&mut body);
    (node, id.key(), since)
}

fn slot_revision(node: &Node) -> Revision {
    node.shard.slots().next().map_or(Revision::ZERO, |slot| slot.revision())
}

/// Collects and writes what a reader lacks of a data id of `size` publishers when one has changed.
pub fn diff(size: usize) -> Prepared {
    let (node, datum, since) = changed_once(size);
    let mut body = Vec::new();
    Prepared::new(1, move || {
        let Some(slot) = node.shard.slots().next() else { return 0 };
        body.clear();
        let answer = diff::collect(slot, datum, since);
        let flags = answer.write(datum, &mut body);
        mix64(u64::from(flags) ^ mix64(body.len() as u64) ^ answer.to.0)
    })
}

/// Collects and writes a snapshot of a data id of `size` publishers.
pub fn snapshot(size: usize) -> Prepared {
    let (node, datum, _) = changed_once(size);
    let mut body = Vec::new();
    Prepared::new(1, move || {
        let Some(slot) = node.shard.slots().next() else { return 0 };
        body.clear();
        let answer = diff::snapshot(slot, datum);
        let flags = answer.write(datum, &mut body);
        mix64(u64::from(flags) ^ mix64(body.len() as u64) ^ answer.to.0)
    })
}

/// A whole turn that changes one of 100 publishers of a data id that `size` readers want: write, seal, acknowledge, push.
pub fn turn(size: usize) -> Prepared {
    let (mut node, mut body, id) = (Node::new(1), Vec::new(), data_id(0));
    for frame in &mut frames(std::slice::from_ref(&id), 100, 0) {
        node.send(frame);
    }
    subscribe(&mut node, size, std::slice::from_ref(&id));
    let mut sent = [0, 1].map(|fill| frames(std::slice::from_ref(&id), 1, fill));
    sent.iter_mut().flatten().for_each(|frame| node.send(frame));
    node.turn(&mut body);
    let mut run = 1;
    Prepared::new(1, move || {
        run += 1;
        let before = node.reads;
        sent[run % 2].iter_mut().for_each(|frame| node.send(frame));
        let taken = node.turn(&mut body);
        mix64(taken ^ mix64(node.reads - before) ^ mix64(body.len() as u64))
    })
}

/// A whole turn that changes one publisher each of `size` data ids that one reader wants; an operation is one data id.
pub fn turn_wide(size: usize) -> Prepared {
    let (mut node, mut body) = (Node::new(SLOTS_DEFAULT), Vec::new());
    let ids: Vec<DataId> = (0..size).map(data_id).collect();
    for frame in &mut frames(&ids, PUBLISHERS, 0) {
        node.send(frame);
    }
    subscribe(&mut node, 1, &ids);
    let mut sent = [1, 0].map(|fill| frames(&ids, 1, fill));
    node.turn(&mut body);
    let mut run = 1;
    Prepared::new(size, move || {
        run += 1;
        let before = node.reads;
        sent[run % 2].iter_mut().for_each(|frame| node.send(frame));
        let taken = node.turn(&mut body);
        mix64(taken ^ mix64(node.reads - before))
    })
}

fn subscribe(node: &mut Node, readers: usize, ids: &[DataId]) {
    for reader in 1..=readers as u32 {
        let session = SessionId(u64::from(reader) + 100);
        node.shard.handle_link_open(ReaderId(reader), session, 0, true, NOW).expect("a fresh session");
        for id in ids {
            node.shard.handle_interest(ReaderId(reader), id, Revision::ZERO).expect("a slot held here");
        }
    }
    node.turn(&mut Vec::new());
}

/// Compares digests of `size` data ids of which one differs.
pub fn compare(size: usize) -> Prepared {
    let mine: BTreeMap<DatumKey, Digest> =
        (0..size as u64).map(|at| (DatumKey(mix64(at)), Digest { sum: at, count: 1 })).collect();
    let mut theirs = mine.clone();
    theirs.insert(DatumKey(mix64(0)), Digest { sum: 1, count: 1 });
    Prepared::new(size, move || {
        let found = digest::compare(&mine, &theirs);
        let keys: BTreeSet<DatumKey> =
            found.updated.iter().chain(&found.added).chain(&found.removed).copied().collect();
        keys.iter().fold(0, |check, key| mix64(check ^ key.0))
    })
}

/// A heartbeat of a session that has one publisher in each of about `size` slots, all of them in step.
pub fn heartbeat(size: usize) -> Prepared {
    let (mut node, mut body) = (Node::new(size.next_power_of_two() as u32), Vec::new());
    let ids: Vec<DataId> = (0..size).map(data_id).collect();
    frames(&ids, 1, 0).iter_mut().for_each(|frame| node.send(frame));
    node.turn(&mut body);
    let held =
        node.shard.slots().map(|slot| slot.session_digest(SESSION)).fold(Digest::default(), |sum, one| {
            Digest { sum: sum.sum.wrapping_add(one.sum), count: sum.count + one.count }
        });
    Prepared::new(1, move || {
        let answer = node.shard.handle_heartbeat(WRITER, 0, held, 0, NOW).expect("a living session");
        mix64(answer.mark ^ u64::from(answer.differs.is_none()) << 1)
    })
}
