//! Random writes, losses of links, promotions and demotions on some nodes, beside a book of what every revision of every slot
//! held when it was first seen.
//!
//! Whatever happens, a node that is at a revision holds what the book says of it, leader or follower. So no revision is used
//! twice, no batch is lost or applied twice, and nothing of a lost leader is mixed with what its successor wrote. Readers go
//! from leader to leader with what they hold, and what they are told leads them to what the book says.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use slotcast_engine::{
    change_log::ChangeLogLimits,
    compact::CompactionSettings,
    id::{DataId, ReaderId, ReplicaId, Revision, SessionId, SlotId},
    shard::ShardConfig,
    slot_state::SlotState,
};

use super::{Row, Sent, assert_same, content, held, poll};
use crate::{
    model::proptest_config,
    support::{Frame, Held, LEASE, List, MILLI, Node, config, data_id, list_of, version},
};

const SLOTS: u32 = 2;
const NODES: usize = 3;
const SESSIONS: u64 = 3;
const READERS: usize = 3;
const DATA_IDS: usize = 5;
const REGISTERS: u64 = 5;

#[derive(Clone, Debug)]
enum Op {
    Write {
        node: usize,
        session: u64,
        datum: usize,
        register: u64,
        is_put: bool,
    },
    Turn {
        node: usize,
    },
    /// The leader hands over about so many bytes.
    Send {
        from: usize,
        to: usize,
        budget: usize,
    },
    /// So many messages arrive.
    Arrive {
        from: usize,
        to: usize,
        count: usize,
    },
    /// All that is under way is lost; the follower asks again.
    Cut {
        from: usize,
        to: usize,
    },
    /// Another node is made leader; of the others not everybody hears of it at once.
    Move {
        slot: u16,
        to: usize,
        hears: usize,
    },
    /// A node hears of the table as it is.
    Hear {
        node: usize,
    },
    Leave {
        slot: u16,
        node: usize,
    },
    Heartbeat {
        node: usize,
        session: u64,
    },
    Tick {
        node: usize,
        millis: u64,
    },
    Lease {
        node: usize,
        session: u64,
    },
    Read {
        reader: usize,
        datum: usize,
        node: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let node = || 0..NODES;
    let session = || 1..=SESSIONS;
    let slot = || 0..SLOTS as u16;
    prop_oneof![
        24 => (node(), session(), 0..DATA_IDS, 0..REGISTERS, prop::bool::weighted(0.65))
            .prop_map(|(node, session, datum, register, is_put)| Op::Write { node, session, datum, register, is_put }),
        14 => node().prop_map(|node| Op::Turn { node }),
        16 => (node(), node(), prop::sample::select(vec![1usize, 200, 3000, 100_000]))
            .prop_map(|(from, to, budget)| Op::Send { from, to, budget }),
        16 => (node(), node(), 1..6usize).prop_map(|(from, to, count)| Op::Arrive { from, to, count }),
        2 => (node(), node()).prop_map(|(from, to)| Op::Cut { from, to }),
        3 => (slot(), node(), 0..8usize).prop_map(|(slot, to, hears)| Op::Move { slot, to, hears }),
        4 => node().prop_map(|node| Op::Hear { node }),
        1 => (slot(), node()).prop_map(|(slot, node)| Op::Leave { slot, node }),
        6 => (node(), session()).prop_map(|(node, session)| Op::Heartbeat { node, session }),
        8 => (node(), prop::sample::select(vec![20u64, 900])).prop_map(|(node, millis)| Op::Tick { node, millis }),
        1 => (node(), session()).prop_map(|(node, session)| Op::Lease { node, session }),
        10 => (0..READERS, 0..DATA_IDS, node()).prop_map(|(reader, datum, node)| Op::Read { reader, datum, node }),
    ]
}

#[derive(Clone, Default)]
struct Entry {
    leader: usize,
    epoch: u32,
    /// Nodes that are to hold no copy.
    out: Vec<usize>,
}

/// What is under way from a leader to a follower.
#[derive(Default)]
struct Wire(VecDeque<Sent>);

struct World {
    nodes: Vec<Node>,
    /// What each node has heard of each slot: epoch and leader.
    heard: Vec<BTreeMap<SlotId, u32>>,
    table: BTreeMap<SlotId, Entry>,
    wires: BTreeMap<(usize, usize), Wire>,
    ids: Vec<DataId>,
    book: BTreeMap<(SlotId, Revision), Vec<Row>>,
    lists: BTreeMap<(usize, Revision), List>,
    readers: Vec<BTreeMap<usize, Held>>,
    /// Versions are the clients', so they rise whoever leads.
    versions: BTreeMap<(usize, u64), u64>,
    marks: BTreeMap<(usize, u64), u64>,
    /// The incarnation that each session has at each node.
    sessions: BTreeMap<(usize, u64), u64>,
    numbers: u32,
    copies_allowed: bool,
}

fn replica(to: usize) -> ReplicaId {
    ReplicaId(to as u32)
}

impl World {
    fn new(limits: ChangeLogLimits, ring_bytes: usize, batch_limit: usize) -> Self {
        let shard =
            ShardConfig { change_log: limits, settle: 200 * MILLI, compaction_budget: 1500, ..config(SLOTS) };
        let compaction = CompactionSettings {
            interval: 0,
            sleep_interval: 0,
            batch_limit,
            utilization_min: 1.0,
            ..CompactionSettings::default()
        };
        let mut world = Self {
            nodes: (0..NODES).map(|_| Node::clustered(shard.clone())).collect(),
            heard: vec![BTreeMap::new(); NODES],
            table: (0..SLOTS as u16).map(|slot| (SlotId(slot), Entry::default())).collect(),
            wires: BTreeMap::new(),
            ids: (0..DATA_IDS).map(|index| data_id(&format!("service-{index}"))).collect(),
            book: BTreeMap::new(),
            lists: BTreeMap::new(),
            readers: vec![BTreeMap::new(); READERS],
            versions: BTreeMap::new(),
            marks: BTreeMap::new(),
            sessions: BTreeMap::new(),
            numbers: SESSIONS as u32,
            copies_allowed: true,
        };
        for node in 0..NODES {
            world.nodes[node].shard.set_ring_bytes(ring_bytes, ring_bytes);
            world.nodes[node].shard.set_compaction(compaction);
            (1..=SESSIONS).for_each(|session| {
                world.nodes[node].open(session);
                world.sessions.insert((node, session), session);
            });
        }
        for slot in 0..SLOTS as u16 {
            world.change_leader(SlotId(slot), usize::from(slot));
        }
        (0..NODES).for_each(|node| world.hear(node));
        world
    }

    fn change_leader(&mut self, slot: SlotId, leader: usize) {
        let epoch = self.table.values().map(|entry| entry.epoch).max().unwrap_or(0) + 1;
        let entry = self.table.entry(slot).or_default();
        *entry = Entry { leader, epoch, out: Vec::new() };
    }

    /// The node learns the table as it is.
    fn hear(&mut self, node: usize) {
        self.turn(node);
        for (slot, entry) in self.table.clone() {
            let known = self.heard[node].insert(slot, entry.epoch);
            let now = self.nodes[node].now;
            let shard = &mut self.nodes[node].shard;
            if entry.leader == node {
                shard.lead(slot, entry.epoch, now).expect("epochs rise");
                shard.expect_replicas(slot, true);
            } else if entry.out.contains(&node) {
                shard.leave(slot, now);
            } else {
                shard.follow(slot, entry.epoch, now).expect("epochs rise");
                if known != Some(entry.epoch) {
                    (0..NODES).for_each(|from| self.wires.entry((from, node)).or_default().drop_slot(slot));
                }
                self.ask(node, slot, None);
            }
        }
        self.check(node);
    }

    /// A follower asks the leader that it knows for a slot.
    fn ask(&mut self, node: usize, slot: SlotId, from: Option<Revision>) {
        let entry = self.table[&slot].clone();
        if entry.leader == node || self.nodes[node].shard.state(slot) != SlotState::Following {
            return;
        }
        let since = from.unwrap_or(self.nodes[node].shard.followed(slot).0);
        let known = self.nodes[node].shard.known_epoch(slot);
        // What the leader sent before it was asked anew is void.
        self.wires.entry((entry.leader, node)).or_default().drop_slot(slot);
        let leader = &mut self.nodes[entry.leader].shard;
        if self.heard[entry.leader].get(&slot) == Some(&known) && entry.epoch == known {
            leader.replica_open(replica(node), slot, known, since).expect("it leads in that epoch");
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Write { node, session, datum, register, is_put } => {
                self.write(node, session, datum, register, is_put);
            }
            Op::Turn { node } => self.turn(node),
            Op::Send { from, to, budget } => self.send(from, to, budget),
            Op::Arrive { from, to, count } => self.arrive(from, to, count),
            Op::Cut { from, to } => self.cut(from, to),
            Op::Move { slot, to, hears } => {
                self.change_leader(SlotId(slot), to);
                (0..NODES).filter(|node| hears >> node & 1 == 1).for_each(|node| self.hear(node));
            }
            Op::Hear { node } => self.hear(node),
            Op::Leave { slot, node } => {
                let entry = self.table.entry(SlotId(slot)).or_default();
                if entry.leader != node && self.nodes[node].shard.state(SlotId(slot)) == SlotState::Following
                {
                    entry.out.push(node);
                    let leader = entry.leader;
                    self.hear(node);
                    self.nodes[leader].shard.replica_leave(replica(node), SlotId(slot));
                }
            }
            Op::Heartbeat { node, session } => self.heartbeat(node, session),
            Op::Tick { node, millis } => {
                for session in 1..=SESSIONS {
                    let alive = Frame::of(self.sessions[&(node, session)]);
                    self.nodes[node].send(ReaderId(session as u32), &alive).expect("a living session");
                }
                self.turn(node);
                self.nodes[node].tick_after(millis * MILLI);
                self.turn(node);
            }
            Op::Lease { node, session } => self.end_lease(node, session),
            Op::Read { reader, datum, node } => self.read(reader, datum, node),
        }
        (0..NODES).for_each(|node| self.check(node));
    }

    fn write(&mut self, node: usize, session: u64, datum: usize, register: u64, is_put: bool) {
        let id = self.ids[datum].clone();
        let number = self.versions.entry((datum, register)).or_insert(0);
        *number += 1;
        let payload = vec![*number as u8; 1 + (*number as usize * 737 + register as usize * 311) % 1700];
        let version = version(*number, 1);
        let incarnation = self.sessions[&(node, session)];
        let frame = Frame::of(incarnation);
        let frame = if is_put {
            frame.name(&id).put(&id, register, version, register, &payload)
        } else {
            frame.remove(&id, register, version)
        };
        self.nodes[node].send(ReaderId(session as u32), &frame).expect("a living session");
    }

    fn turn(&mut self, node: usize) {
        self.nodes[node].turn();
        self.check(node);
    }

    fn send(&mut self, from: usize, to: usize, budget: usize) {
        if from == to {
            return;
        }
        self.turn(from);
        let (sent, _) = poll(&mut self.nodes[from].shard, replica(to), budget);
        self.wires.entry((from, to)).or_default().0.extend(sent);
    }

    fn arrive(&mut self, from: usize, to: usize, count: usize) {
        for _ in 0..count {
            let Some(sent) = self.wires.entry((from, to)).or_default().0.pop_front() else { return };
            let (slot, now) = (sent.slot(), self.nodes[to].now);
            // Only the leader that the follower knows is listened to.
            let heard = self.heard[to].get(&slot).copied();
            if self.table[&slot].leader != from || heard != Some(self.table[&slot].epoch) {
                continue;
            }
            assert!(self.copies_allowed || !sent.is_part());
            match sent.take(&mut self.nodes[to].shard, now) {
                Ok(applied) => {
                    let durable = self.nodes[to].shard.followed(slot).1;
                    self.nodes[from].shard.replica_ack(replica(to), slot, applied, durable);
                }
                Err(error) => {
                    let applied = self.nodes[to].shard.followed(slot).0;
                    let since = error.ask_from(applied);
                    assert!(since.is_some() || self.nodes[to].shard.state(slot) != SlotState::Following);
                    self.ask(to, slot, since);
                }
            }
            self.check(to);
        }
    }

    fn cut(&mut self, from: usize, to: usize) {
        if from == to {
            return;
        }
        self.wires.insert((from, to), Wire::default());
        self.nodes[from].shard.replica_close(replica(to));
        (0..SLOTS as u16).for_each(|slot| {
            if self.table[&SlotId(slot)].leader == from {
                self.ask(to, SlotId(slot), None);
            }
        });
    }

    fn heartbeat(&mut self, node: usize, session: u64) {
        self.turn(node);
        let incarnation = self.sessions[&(node, session)];
        let mark = self.marks.get(&(node, incarnation)).copied().unwrap_or(0);
        let shard = &self.nodes[node].shard;
        let (mut sum, mut count) = (0u64, 0);
        for slot in shard.slots().filter(|slot| shard.state(slot.id()).is_led()) {
            let digest = slot.session_digest(SessionId(incarnation));
            (sum, count) = (sum.wrapping_add(digest.sum), count + digest.count);
        }
        let (routes, now) = (shard.routes(), self.nodes[node].now);
        let digest = slotcast_engine::digest::Digest { sum, count };
        let reader = ReaderId(session as u32);
        let answer = self.nodes[node].shard.handle_heartbeat(reader, mark, digest, routes, now);
        self.marks.insert((node, incarnation), answer.expect("a living session").mark);
    }

    /// A session goes for good at a node, and comes back as another incarnation.
    fn end_lease(&mut self, node: usize, session: u64) {
        let reader = ReaderId(session as u32);
        self.nodes[node].shard.handle_goodbye(reader);
        self.nodes[node].shard.handle_link_close(reader);
        self.numbers += 1;
        let incarnation = u64::from(self.numbers);
        self.sessions.insert((node, session), incarnation);
        self.nodes[node].open_link(reader, SessionId(incarnation), 0, true).expect("a fresh session");
    }

    /// A reader asks a node with what it holds from wherever it was before.
    fn read(&mut self, reader: usize, datum: usize, node: usize) {
        let id = self.ids[datum].clone();
        let slot = id.key().slot(SLOTS);
        self.turn(node);
        if self.nodes[node].shard.state(slot) != SlotState::Accept {
            return;
        }
        let before = self.readers[reader].get(&datum).cloned();
        let since = before.as_ref().map_or(Revision::ZERO, |held| held.revision);
        let asker = ReaderId(1 + reader as u32);
        self.nodes[node].shard.handle_interest(asker, &id, since).expect("it is led");
        let (_, pushes) = self.nodes[node].turn();
        self.nodes[node].shard.handle_uninterest(asker, id.key());
        let answers: Vec<_> =
            pushes.iter().filter(|seen| seen.datum == id.key() && seen.readers.contains(&asker)).collect();
        assert_eq!(answers.len(), 1, "one answer");
        let diff = answers[0].diff();
        let slot = held(&self.nodes[node].shard, slot);
        assert_eq!(diff.to, slot.revision());
        assert!(diff.is_snapshot || slot.trusts(since), "a diff from {since}, forks {:?}", slot.forks());
        let mut after = before.filter(|_| !diff.is_snapshot);
        Held::apply(&mut after, &diff);
        let after = after.expect("it holds a list");
        assert_eq!(after.list, list_of(slot, id.key()), "from {since} to {}", diff.to);
        let known = self.lists.entry((datum, after.revision)).or_insert_with(|| after.list.clone());
        assert_eq!(*known, after.list);
        self.readers[reader].insert(datum, after);
        self.check(node);
    }

    /// Every slot of a node holds what the book says of its revision.
    fn check(&mut self, node: usize) {
        for slot in self.nodes[node].shard.slots().filter(|slot| slot.open_changes() == 0) {
            if slot.revision() == Revision::ZERO {
                assert_eq!(slot.publishers(), 0);
                continue;
            }
            let rows = content(slot);
            let known = self.book.entry((slot.id(), slot.revision())).or_insert_with(|| rows.clone());
            assert_eq!(*known, rows, "node {node}, slot {} at {}", slot.id().0, slot.revision());
        }
    }

    /// Everybody hears of the table, and everything arrives.
    fn settle(&mut self) {
        for _ in 0..3 {
            (0..NODES).for_each(|node| self.hear(node));
        }
        for _ in 0..50 {
            for from in 0..NODES {
                for to in 0..NODES {
                    self.send(from, to, 5000);
                    self.arrive(from, to, usize::MAX);
                }
            }
        }
        for (slot, entry) in self.table.clone() {
            for node in (0..NODES).filter(|node| *node != entry.leader) {
                if entry.out.contains(&node) {
                    assert!(matches!(
                        self.nodes[node].shard.state(slot),
                        SlotState::Moved | SlotState::Absent
                    ));
                    continue;
                }
                assert_same(&self.nodes[entry.leader].shard, &self.nodes[node].shard, slot);
            }
            let lags = self.nodes[entry.leader].shard.replica_lag(slot);
            assert!(lags.into_iter().all(|lag| lag.behind == 0 && lag.lag == 0 && !lag.is_copying));
        }
    }
}

impl Wire {
    fn drop_slot(&mut self, slot: SlotId) {
        self.0.retain(|sent| sent.slot() != slot);
    }
}

proptest! {
    #![proptest_config(proptest_config())]

    #[test]
    fn a_revision_is_the_same_everywhere_whoever_leads(
        entries_max in prop::sample::select(vec![2usize, 6, 1000]),
        ring_bytes in prop::sample::select(vec![0usize, 5000, 1 << 20]),
        batch_limit in prop::sample::select(vec![1usize, 3, 1000]),
        ops in prop::collection::vec(op(), 1..220),
    ) {
        let limits = ChangeLogLimits { entries_max, age_max: u64::MAX };
        let mut world = World::new(limits, ring_bytes, batch_limit);
        ops.into_iter().for_each(|op| world.apply(op));
        world.settle();
        // And once more from there, with every link in step: then batches are enough.
        world.copies_allowed = ring_bytes < 1 << 20;
        let leader = world.table[&SlotId(0)].leader;
        for number in 0..20 {
            world.write(leader, 1, number % DATA_IDS, number as u64 % REGISTERS, number % 3 != 0);
            world.turn(leader);
        }
        world.settle_links();
    }
}

impl World {
    /// What is under way arrives.
    fn settle_links(&mut self) {
        for _ in 0..50 {
            for from in 0..NODES {
                for to in 0..NODES {
                    self.send(from, to, 5000);
                    self.arrive(from, to, usize::MAX);
                }
            }
        }
        let (slot, entry) = (SlotId(0), self.table[&SlotId(0)].clone());
        for node in (0..NODES).filter(|node| *node != entry.leader && !entry.out.contains(node)) {
            assert_same(&self.nodes[entry.leader].shard, &self.nodes[node].shard, slot);
        }
        assert!(self.nodes.iter().all(|node| node.now.0 < 1000 * LEASE));
    }
}
