//! Slots that come and go on a node with a disk: what a start finds is what the node held, and nothing that it let go of.

use std::collections::BTreeMap;

use proptest::prelude::*;
use slotcast_engine::{
    change_log::ChangeLogLimits,
    disk_op::DiskDone,
    error::Refusal,
    id::{DataId, Nanos, ReaderId, ReplicaId, Revision, SessionId, SlotId},
    journal::JournalConfig,
    memory_disk::MemoryDisk,
    recover::{Layout, RecoverConfig, recover_clustered, salvage},
    shard::Shard,
    slot::Slot,
    slot_state::SlotState,
    storage::{StorageConfig, StorageState},
};

use super::{Row, Sent, assert_same, catch_up, content, held};
use crate::{
    model::proptest_config,
    support::{Frame, MILLI, config, data_id, version},
};

const SLOT: SlotId = SlotId(0);
const REPLICA: ReplicaId = ReplicaId(1);
const SLOTS: u32 = 2;

/// A node of a cluster on a directory in memory.
struct Kept {
    shard: Shard,
    memory: MemoryDisk,
    now: Nanos,
    sequences: BTreeMap<u32, u64>,
}

impl Kept {
    fn start(memory: MemoryDisk) -> Self {
        Self::paced(memory, 1 << 30)
    }

    /// Snapshots but those of copied slots are written with so many bytes per second.
    fn paced(mut memory: MemoryDisk, snapshot_rate: u64) -> Self {
        let layout = Layout::read(&mut memory, SLOTS, &[]).expect("a directory that can be read");
        let epoch = layout.next_epoch();
        let recover_config = RecoverConfig {
            slot_count: SLOTS,
            slots: 0..=(SLOTS - 1) as u16,
            shard: 0,
            shards: 1,
            epoch,
            seed: 1,
            change_log: ChangeLogLimits::default(),
        };
        let found = recover_clustered(&layout, &mut memory, &recover_config, &mut |_| ());
        let found = found.expect("a directory that can be read");
        let storage = StorageConfig {
            journal: JournalConfig {
                slot_count: SLOTS,
                shard: 0,
                shards: 1,
                batch_records: 100,
                batch_interval: 100 * MILLI,
                segment_bytes: 16 * 1024,
                waiting_bytes_max: 64 * 1024,
                retry_interval: 100 * MILLI,
            },
            snapshot_rate,
            copied_snapshot_rate: 1 << 30,
            snapshot_step: 4096,
            journal_bytes_max: 48 * 1024,
        };
        let config = slotcast_engine::shard::ShardConfig { epoch, session_lease: 1 << 50, ..config(SLOTS) };
        let shard = Shard::clustered_on_disk(config, found, storage);
        let mut kept = Self { shard, memory, now: Nanos(1), sequences: BTreeMap::new() };
        kept.settle();
        kept
    }

    fn empty() -> Self {
        Self::start(MemoryDisk::default())
    }

    /// The process ends without a word, and another one begins with what was durable.
    fn restart(self) -> Self {
        Self::start(self.memory.crashed(&mut |_| 0))
    }

    /// Carries out so many of the operations that are asked for.
    fn disk(&mut self, limit: usize) {
        self.shard.seal(self.now);
        for _ in 0..limit {
            let Some(request) = self.shard.poll_disk(self.now) else { return };
            let result = self.memory.run(&request.op);
            self.shard.handle_disk(&DiskDone { id: request.id, result }, self.now);
        }
    }

    fn settle(&mut self) {
        for _ in 0..50 {
            self.now = self.now.after(20 * MILLI);
            self.disk(usize::MAX);
        }
    }

    fn open(&mut self, session: u32) {
        self.shard
            .handle_link_open(ReaderId(session), SessionId(session.into()), 0, true, self.now)
            .expect("a fresh session");
    }

    fn write(&mut self, session: u32, frame: &Frame) {
        if self.sequences.is_empty() {
            self.open(1);
        }
        let sequence = self.sequences.entry(session).or_insert(0);
        *sequence += 1;
        self.shard.handle_write(ReaderId(session), *sequence, &frame.bytes, self.now).expect("taken");
        self.shard.seal(self.now);
    }

    fn put(&mut self, id: &DataId, register: u64, number: u64) {
        let payload = format!("{register} in {number}");
        self.write(
            1,
            &Frame::of(1).name(id).put(id, register, version(number, 1), register, payload.as_bytes()),
        );
    }

    fn put_persistent(&mut self, id: &DataId, register: u64, number: u64) {
        self.open(1);
        let frame = Frame::of(0).name(id).put(id, register, version(number, 1), register, b"stays");
        self.write(1, &frame);
    }

    fn acks(&mut self) -> Vec<Result<Revision, Refusal>> {
        std::iter::from_fn(|| self.shard.poll_ack()).flat_map(|ack| ack.outcomes).collect()
    }

    fn slot(&self, slot: SlotId) -> Option<&Slot> {
        self.shard.slots().find(|held| held.id() == slot)
    }

    fn files(&self) -> usize {
        self.memory.names(".scs").len()
    }
}

/// A data id of the slot.
fn in_slot(slot: SlotId) -> DataId {
    let mut ids = (0..).map(|at| data_id(&format!("service-{at}")));
    ids.find(|id| id.key().slot(SLOTS) == slot).expect("there is one")
}

fn pair() -> (Kept, Kept, DataId) {
    let (mut leader, mut follower) = (Kept::empty(), Kept::empty());
    let id = in_slot(SLOT);
    leader.shard.lead(SLOT, 1, leader.now).expect("nothing is known of it");
    follower.shard.follow(SLOT, 1, follower.now).expect("nothing is known of it");
    leader.put(&id, 1, 1);
    catch_up(&mut leader.shard, &mut follower.shard, (REPLICA, SLOT), leader.now);
    (leader, follower, id)
}

#[test]
fn a_restarted_follower_goes_on_by_batches_from_what_its_disk_had() {
    let (mut leader, mut follower, id) = pair();
    follower.settle();
    (2..20).for_each(|register| leader.put(&id, register, 1));
    catch_up(&mut leader.shard, &mut follower.shard, (REPLICA, SLOT), leader.now);
    follower.settle();
    let (applied, durable) = follower.shard.followed(SLOT);
    assert_eq!(applied, durable);
    let mut follower = follower.restart();
    assert_eq!(follower.shard.held_back().collect::<Vec<_>>(), [SLOT]);
    assert_eq!(follower.shard.state(SLOT), SlotState::Absent);
    assert_eq!(follower.slot(SLOT).map(Slot::revision), Some(applied));
    (20..25).for_each(|register| leader.put(&id, register, 1));
    follower.shard.follow(SLOT, 1, follower.now).expect("the same leader");
    let sent = catch_up(&mut leader.shard, &mut follower.shard, (REPLICA, SLOT), leader.now);
    assert!(!sent.is_empty() && !sent.iter().any(Sent::is_part));
    assert_same(&leader.shard, &follower.shard, SLOT);
}

#[test]
fn a_restarted_leader_leads_on_with_what_its_disk_had() {
    let (mut leader, _, id) = pair();
    leader.settle();
    let before = content(held(&leader.shard, SLOT));
    let forked = held(&leader.shard, SLOT).revision();
    leader.put(&id, 9, 1);
    let lost = held(&leader.shard, SLOT).revision();
    let mut leader = leader.restart();
    leader.shard.lead(SLOT, 2, leader.now).expect("a larger epoch");
    let slot = held(&leader.shard, SLOT);
    assert_eq!(content(slot), before);
    assert!(slot.trusts(forked) && !slot.trusts(lost));
}

#[test]
fn a_slot_that_was_let_go_of_returns_empty_also_over_a_restart() {
    for with_snapshot in [false, true] {
        let (mut leader, _, id) = pair();
        let numbers = if with_snapshot { 400 } else { 3 };
        (0..numbers).for_each(|number| {
            leader.put(&id, number % 10, 1 + number);
            leader.settle();
        });
        assert_eq!(leader.files() > 0, with_snapshot);
        leader.shard.leave(SLOT, leader.now);
        leader.settle();
        assert_eq!((leader.files(), leader.shard.state(SLOT)), (0, SlotState::Absent));
        let mut leader = leader.restart();
        assert_eq!(leader.shard.held_back().count(), 0);
        leader.shard.lead(SLOT, 2, leader.now).expect("a larger epoch");
        leader.put(&id, 77, 1);
        leader.settle();
        let leader = leader.restart();
        let rows = content(leader.slot(SLOT).expect("it is held back"));
        assert_eq!(rows.iter().map(|row| row.1).collect::<Vec<_>>(), [77], "nothing from before it left");
    }
}

#[test]
fn a_slot_that_returned_unchanged_is_found_at_every_start() {
    let (mut leader, mut follower, _) = pair();
    follower.settle();
    follower.shard.leave(SLOT, follower.now);
    follower.settle();
    follower.shard.follow(SLOT, 1, follower.now).expect("the same leader");
    catch_up(&mut leader.shard, &mut follower.shard, (REPLICA, SLOT), leader.now);
    follower.settle();
    assert_eq!(follower.files(), 1);
    // What one start would take for a leftover is missed by the next.
    for _ in 0..3 {
        let salvaged =
            salvage(&mut follower.memory.clone(), SLOTS, &[]).expect("a directory that can be read");
        let found = salvaged.slots.get(&SLOT).expect("it is salvaged, too");
        assert_eq!(content(held(&leader.shard, SLOT)), content(&found.slot));
        assert!(found.is_whole && salvaged.faults.is_empty(), "{:?}", salvaged.faults);
        follower = follower.restart();
        assert_eq!(content(held(&leader.shard, SLOT)), content(follower.slot(SLOT).expect("held back")));
    }
}

#[test]
fn a_whole_slot_is_durable_once_a_snapshot_stands_for_it() {
    let (mut leader, mut follower, id) = pair();
    (2..30).for_each(|register| leader.put(&id, register, 1));
    follower.shard.leave(SLOT, follower.now);
    follower.shard.follow(SLOT, 1, follower.now).expect("the same leader");
    let sent = catch_up(&mut leader.shard, &mut follower.shard, (REPLICA, SLOT), leader.now);
    assert!(sent.iter().any(Sent::is_part));
    let (applied, durable) = follower.shard.followed(SLOT);
    assert!(durable < applied);
    assert_eq!(follower.shard.storage().map(|storage| storage.state()), Some(StorageState::Catching));
    follower.settle();
    assert_eq!(follower.shard.followed(SLOT), (applied, applied));
    let follower = follower.restart();
    assert_eq!(content(held(&leader.shard, SLOT)), content(follower.slot(SLOT).expect("held back")));
}

#[test]
fn a_whole_slot_waits_neither_for_the_pace_of_other_snapshots_nor_for_the_journal() {
    let (mut leader, _, id) = pair();
    (2..600).for_each(|register| leader.put(&id, register, 1));
    let mut follower = Kept::paced(MemoryDisk::default(), 16 * 1024);
    follower.shard.follow(SLOT, 1, follower.now).expect("nothing is known of it");
    catch_up(&mut leader.shard, &mut follower.shard, (REPLICA, SLOT), leader.now);
    let is_durable = |follower: &mut Kept| {
        let (applied, durable) = follower.shard.followed(SLOT);
        applied == durable
    };
    // Batches during the scan are in the journal before the snapshot counts.
    follower.disk(6);
    leader.put(&id, 600, 1);
    super::arrive(&mut leader.shard, &mut follower.shard, REPLICA, leader.now);
    assert!(!is_durable(&mut follower));
    for _ in 0..60 {
        follower.now = follower.now.after(MILLI);
        follower.disk(usize::MAX);
    }
    assert!(is_durable(&mut follower), "within less than an interval of the journal");
    let follower = follower.restart();
    assert_eq!(content(held(&leader.shard, SLOT)), content(follower.slot(SLOT).expect("held back")));
}

#[test]
fn persistent_changes_are_acknowledged_when_every_replica_in_sync_has_them() {
    let (mut leader, mut follower, id) = pair();
    leader.settle();
    leader.acks();
    leader.shard.set_in_sync(SLOT, &[REPLICA]);
    leader.put_persistent(&id, 50, 1);
    leader.settle();
    assert_eq!(leader.acks(), [], "its own disk is not enough");
    super::arrive(&mut leader.shard, &mut follower.shard, REPLICA, leader.now);
    assert_eq!(leader.acks(), [], "applied there, and not durable");
    follower.settle();
    let (applied, durable) = follower.shard.followed(SLOT);
    assert_eq!(applied, durable);
    leader.shard.replica_ack(REPLICA, SLOT, applied, durable);
    assert_eq!(leader.acks(), [Ok(applied)]);

    leader.put_persistent(&id, 51, 1);
    leader.settle();
    leader.shard.replica_close(REPLICA);
    assert_eq!(leader.acks(), [], "a replica that is gone has nothing");
    leader.shard.set_in_sync(SLOT, &[]);
    assert!(leader.acks()[0].is_ok(), "until the table leaves it out");

    leader.shard.set_in_sync(SLOT, &[REPLICA]);
    leader.put_persistent(&id, 52, 1);
    leader.settle();
    leader.shard.follow(SLOT, 2, leader.now).expect("a larger epoch");
    assert_eq!(leader.acks(), [Err(Refusal::SlotMoved)], "its next leader may not have it");

    leader.shard.lead(SLOT, 3, leader.now).expect("a larger epoch");
    leader.shard.hold_persistent(true);
    leader.put_persistent(&id, 53, 1);
    assert_eq!(leader.acks(), [Err(Refusal::PersistentUnavailable)]);
    leader.shard.hold_persistent(false);
    leader.put_persistent(&id, 53, 1);
    leader.settle();
    assert!(leader.acks()[0].is_ok());
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Put {
        slot: u16,
        register: u64,
    },
    Remove {
        slot: u16,
        register: u64,
    },
    Lead {
        slot: u16,
    },
    Follow {
        slot: u16,
    },
    /// The other node sends all that it has.
    Copy {
        slot: u16,
    },
    Leave {
        slot: u16,
    },
    Disk {
        operations: usize,
    },
    Settle,
    Crash {
        keeps: u8,
    },
    Full {
        is_full: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let slot = || 0..SLOTS as u16;
    prop_oneof![
        16 => (slot(), 0..6u64).prop_map(|(slot, register)| Op::Put { slot, register }),
        6 => (slot(), 0..6u64).prop_map(|(slot, register)| Op::Remove { slot, register }),
        3 => slot().prop_map(|slot| Op::Lead { slot }),
        3 => slot().prop_map(|slot| Op::Follow { slot }),
        6 => slot().prop_map(|slot| Op::Copy { slot }),
        2 => slot().prop_map(|slot| Op::Leave { slot }),
        10 => (1..12usize).prop_map(|operations| Op::Disk { operations }),
        4 => Just(Op::Settle),
        3 => any::<u8>().prop_map(|keeps| Op::Crash { keeps }),
        1 => any::<bool>().prop_map(|is_full| Op::Full { is_full }),
    ]
}

/// A node on a disk and another without one that leads when it does not, and what every revision of every slot held.
struct World {
    node: Option<Kept>,
    other: Kept,
    epoch: u32,
    number: u64,
    book: BTreeMap<(SlotId, Revision), Vec<Row>>,
    /// What certainly is on the disk.
    durable: BTreeMap<SlotId, Revision>,
    /// What was let go of, and whether the disk certainly says so: nothing up to there may come back then.
    gone: BTreeMap<SlotId, (Revision, bool)>,
}

impl World {
    fn new() -> Self {
        Self {
            node: Some(Kept::empty()),
            other: Kept::empty(),
            epoch: 0,
            number: 0,
            book: BTreeMap::new(),
            durable: BTreeMap::new(),
            gone: BTreeMap::new(),
        }
    }

    fn node(&mut self) -> &mut Kept {
        self.node.as_mut().expect("it is there between two operations")
    }

    fn apply(&mut self, op: Op) {
        self.number += 1;
        let number = self.number;
        match op {
            Op::Put { slot, register } => {
                let slot = SlotId(slot);
                let leads = self.node().shard.state(slot).is_led();
                let kept = if leads { self.node() } else { &mut self.other };
                kept.put(&in_slot(slot), register, number);
            }
            Op::Remove { slot, register } => {
                let slot = SlotId(slot);
                let leads = self.node().shard.state(slot).is_led();
                let kept = if leads { self.node() } else { &mut self.other };
                kept.write(1, &Frame::of(1).remove(&in_slot(slot), register, version(number, 1)));
            }
            Op::Lead { slot } => {
                self.epoch += 1;
                let (epoch, now) = (self.epoch, self.node().now);
                self.node().shard.lead(SlotId(slot), epoch, now).expect("epochs rise");
                self.other.shard.leave(SlotId(slot), now);
            }
            Op::Follow { slot } => {
                self.epoch += 1;
                let (epoch, now) = (self.epoch, self.node().now);
                self.node().shard.follow(SlotId(slot), epoch, now).expect("epochs rise");
                self.other.shard.lead(SlotId(slot), epoch, now).expect("epochs rise");
            }
            Op::Copy { slot } => {
                let Self { node: Some(node), other, .. } = self else { return };
                let slot = SlotId(slot);
                if node.shard.state(slot) == SlotState::Following {
                    other.shard.seal(other.now);
                    catch_up(&mut other.shard, &mut node.shard, (REPLICA, slot), node.now);
                }
            }
            Op::Leave { slot } => {
                let now = self.node().now;
                let slot = SlotId(slot);
                let at = self.node().slot(slot).map(Slot::revision);
                self.node().shard.leave(slot, now);
                self.durable.remove(&slot);
                self.other.shard.replica_leave(REPLICA, slot);
                if let Some(at) = at.filter(|at| *at > Revision::ZERO) {
                    self.gone.insert(slot, (at, false));
                }
            }
            Op::Disk { operations } => {
                self.node().now = self.node().now.after(30 * MILLI);
                self.node().disk(operations);
            }
            Op::Settle => {
                self.node().settle();
                let node = self.node();
                let whole = node.shard.storage().map(|storage| storage.state()) == Some(StorageState::Whole);
                let at: BTreeMap<SlotId, Revision> =
                    node.shard.slots().map(|slot| (slot.id(), slot.revision())).collect();
                if whole && node.shard.is_disk_idle() {
                    self.durable = at;
                    self.gone.values_mut().for_each(|gone| gone.1 = true);
                }
            }
            Op::Crash { keeps } => self.crash(keeps),
            Op::Full { is_full } => self.node().memory.is_full = is_full,
        }
        self.check();
    }

    fn crash(&mut self, keeps: u8) {
        let Some(node) = self.node.take() else { return };
        self.other.shard.replica_close(REPLICA);
        let mut chance = u64::from(keeps);
        let crashed = node.memory.crashed(&mut |below| {
            chance = slotcast_engine::id::mix64(chance);
            if keeps == 0 { 0 } else { chance % below.max(1) }
        });
        let node = Kept::start(crashed);
        for slot in (0..SLOTS as u16).map(SlotId) {
            let found = node.slot(slot).map_or(Revision::ZERO, Slot::revision);
            let rows = node.slot(slot).map(content).unwrap_or_default();
            if let Some(durable) = self.durable.get(&slot) {
                // An empty slot is not written: it may be found as nothing.
                let later = self.book.range((slot, *durable)..=(slot, Revision(u64::MAX)));
                let was_so = *durable == Revision::ZERO || later.into_iter().any(|(_, had)| rows == *had);
                assert!(found >= *durable || was_so, "slot {} had {durable}, and {found} is found", slot.0);
            }
            if let Some((gone, true)) = self.gone.get(&slot) {
                assert!(found > *gone || rows.is_empty(), "slot {} was let go of at {gone}", slot.0);
            }
        }
        self.node = Some(node);
        self.durable.clear();
        // What the disk had not said yet is as if it had not happened.
        self.gone.retain(|_, gone| gone.1);
    }

    fn check(&mut self) {
        let Self { node: Some(node), other, book, .. } = self else { return };
        for kept in [node, other] {
            kept.shard.seal(kept.now);
            for slot in kept.shard.slots().filter(|slot| slot.revision() > Revision::ZERO) {
                let rows = content(slot);
                let known = book.entry((slot.id(), slot.revision())).or_insert_with(|| rows.clone());
                assert_eq!(*known, rows, "slot {} at {}", slot.id().0, slot.revision());
            }
        }
    }
}

proptest! {
    #![proptest_config(proptest_config())]

    #[test]
    fn a_start_finds_every_slot_as_it_once_was(ops in prop::collection::vec(op(), 1..120)) {
        let mut world = World::new();
        ops.into_iter().for_each(|op| world.apply(op));
        world.apply(Op::Full { is_full: false });
        world.apply(Op::Settle);
        let before: BTreeMap<SlotId, Vec<Row>> =
            world.node().shard.slots().map(|slot| (slot.id(), content(slot))).collect();
        world.apply(Op::Crash { keeps: 0 });
        let after: BTreeMap<SlotId, Vec<Row>> =
            world.node().shard.slots().map(|slot| (slot.id(), content(slot))).collect();
        for (slot, rows) in &before {
            prop_assert_eq!(&after.get(slot).cloned().unwrap_or_default(), rows);
        }
        prop_assert!(after.keys().all(|slot| before.contains_key(slot)), "what was let go of stays away");
    }
}
