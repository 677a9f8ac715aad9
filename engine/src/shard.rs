//! The shard: all slots of one core, and the only type a data node holds.
//!
//! Call order: any number of `handle_*`, then [`Shard::tick`] when it is time, then [`Shard::seal`] once per turn, then
//! `poll_*` until each says there is nothing more. Nothing is read between a write and the seal that follows it, so every
//! list a reader sees is the list at a sealed revision.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    change_log::ChangeLogLimits,
    faults::{Fault, Faults},
    id::{DatumKey, Nanos, ReaderId, RegisterId, Revision, SessionId, SlotId},
    interest::Interests,
    lease::{HeldBack, Leases, TICK_GAP_MAX},
    limits::BATCH_CHANGES_MAX,
    memory::Memory,
    record::Record,
    slot::{Slot, SlotCounts},
    slots::Slots,
    storage::Storage,
};

mod cluster;

mod compaction;

mod durable;

mod following;

mod heartbeat;

mod insight;

mod laggards;

mod links;

mod pushes;

mod repair;

mod replicas;

mod writes;

use cluster::Cluster;
pub use cluster::{ClusterRefusal, ClusterStats, Turns};
use compaction::Compactor;
pub use compaction::{CompactionState, CompactionStatus, OldestReader};
use durable::DurableAcks;
pub use following::FollowStats;
pub use heartbeat::HeartbeatAnswer;
use insight::Insight;
pub use insight::{TopAnswer, TopKind, TopScan};
use links::Link;
pub use links::LinkError;
pub use pushes::Push;
use pushes::Since;
pub use replicas::{PART_BYTES, Part, ReplicaLag, ReplicaSend, ReplicaStats};
pub use writes::Acknowledgement;
use writes::PendingAck;

/// What a shard is told at its start.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    /// Slots of the whole cluster, a power of two.
    pub slot_count: u32,
    /// The slots that this node leads; of these the shard takes its share.
    pub slots: std::ops::RangeInclusive<u16>,
    /// This shard's number, below `shards`.
    pub shard: u32,
    /// Shards of this node.
    pub shards: u32,
    /// First leader epoch; raised when a session has seen a larger one.
    pub epoch: u32,
    /// Makes indexes unpredictable from outside.
    pub seed: u64,
    /// Lease of a session incarnation, in nanoseconds.
    pub session_lease: u64,
    /// How long a fresh leader takes writes before it answers readers, so that the sessions that it does not know yet can
    /// come back with what they hold (nanoseconds).
    pub settle: u64,
    /// Bounds of each slot's change log.
    pub change_log: ChangeLogLimits,
    /// Whether records from sessions are validated here too.
    pub validate: bool,
    /// Arena bytes that compaction walks per step at most.
    pub compaction_budget: usize,
}

/// Bytes of a record for which memory is taken ahead.
const RESERVE_RECORD_BYTES: usize = 256;
/// What is taken ahead per slot is larger than its share by this part.
const RESERVE_MARGIN: usize = 16;
struct Seal {
    slot: SlotId,
    previous: Revision,
    changed: Vec<DatumKey>,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShardStats {
    /// Write entries admitted (also those that changed nothing).
    pub admitted: u64,
    /// Write entries refused.
    pub refused: u64,
    /// Batches sealed.
    pub batches: u64,
    /// Data ids changed, summed over batches.
    pub changed_datums: u64,
    /// Diffs handed out, each once however many readers it had.
    pub diffs: u64,
    /// Snapshots handed out.
    pub snapshots: u64,
    /// Sessions whose lease ended.
    pub leases_ended: u64,
    /// Tombstones dropped.
    pub tombstones_dropped: u64,
}

/// All slots of one core.
pub struct Shard {
    config: ShardConfig,
    epoch: u32,
    slots: Slots,
    leases: Leases,
    sequences: BTreeMap<SessionId, u64>,
    links: BTreeMap<ReaderId, Link>,
    interests: Interests,
    /// Every slot with an open batch, in no order, some twice.
    dirty: Vec<SlotId>,
    acks: VecDeque<PendingAck>,
    durable_acks: DurableAcks,
    sealed: VecDeque<Seal>,
    asked: BTreeMap<(ReaderId, SlotId, DatumKey), Since>,
    catching_up: BTreeMap<(ReaderId, SlotId), Revision>,
    ending: VecDeque<(SessionId, SlotId)>,
    mark: u64,
    confirmed_marks: BTreeMap<SessionId, u64>,
    opened_at: Option<Nanos>,
    last_tick: Option<Nanos>,
    settled: bool,
    now: Nanos,
    compactor: Compactor,
    insight: Insight,
    stats: ShardStats,
    storage: Option<Storage>,
    /// Owners of what was recovered, whose leases begin with the first tick.
    owners: BTreeSet<SessionId>,
    /// What a shard has in a cluster; none where the slots are configured.
    cluster: Option<Box<Cluster>>,
    faults: Faults,
}

impl Shard {
    /// A shard that leads, in a fresh epoch, every slot that maps to it.
    pub fn new(config: ShardConfig) -> Self {
        Self::leading(config, false)
    }

    /// The same; without a disk nobody reads the batches of its slots, and they are not written.
    fn leading(config: ShardConfig, has_disk: bool) -> Self {
        assert!(u32::from(*config.slots.end()) < config.slot_count);
        let slots = (config.slots.clone())
            .map(SlotId)
            .filter(|slot| slot.shard(config.shards) == config.shard)
            .map(|slot| {
                let mut slot = Slot::open(slot, config.epoch, config.shards, config.seed, config.change_log);
                if !has_disk {
                    slot.forgo_batches();
                }
                slot
            });
        let slots = Slots::leading(config.slot_count, slots);
        Self::with(config, slots, None)
    }

    /// Makes something wrong on purpose.
    #[cfg(feature = "planted-faults")]
    pub fn plant(&mut self, fault: Option<Fault>) {
        self.faults.planted = fault;
    }

    fn with(config: ShardConfig, slots: Slots, cluster: Option<Box<Cluster>>) -> Self {
        assert!(config.slot_count.is_power_of_two() && config.shard < config.shards && config.epoch > 0);
        Self {
            epoch: config.epoch,
            leases: Leases::new(config.session_lease),
            slots,
            sequences: BTreeMap::new(),
            links: BTreeMap::new(),
            interests: Interests::default(),
            dirty: Vec::new(),
            acks: VecDeque::new(),
            durable_acks: DurableAcks::default(),
            sealed: VecDeque::new(),
            asked: BTreeMap::new(),
            catching_up: BTreeMap::new(),
            ending: VecDeque::new(),
            mark: 1,
            confirmed_marks: BTreeMap::new(),
            opened_at: None,
            last_tick: None,
            settled: false,
            now: Nanos(0),
            compactor: Compactor::default(),
            insight: Insight::new(config.seed),
            stats: ShardStats::default(),
            storage: None,
            owners: BTreeSet::new(),
            cluster,
            faults: Faults::default(),
            config,
        }
    }

    /// Takes memory for `publishers` registrations ahead, spread evenly over the slots (see [`Slot::reserve`]).
    pub fn reserve(&mut self, publishers: usize) {
        let slots = self.slots.iter().count().max(1);
        let each = publishers.div_ceil(slots);
        // Data ids are spread by chance: some slots get more than their share.
        let each = if publishers == 0 { 0 } else { each + each / RESERVE_MARGIN };
        self.slots.iter_mut().for_each(|slot| slot.reserve(each, RESERVE_RECORD_BYTES));
    }

    /// The leader epoch of this shard's slots.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// This shard's number and the node's shard count.
    pub fn placement(&self) -> (u32, u32) {
        (self.config.shard, self.config.shards)
    }

    /// Counts since the start.
    pub fn stats(&self) -> ShardStats {
        self.stats
    }

    /// The slots held.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    /// Counts and bytes over all slots.
    pub fn counts(&self) -> SlotCounts {
        self.slots.iter().map(Slot::counts).fold(SlotCounts::default(), |mut sum, counts| {
            sum.datums += counts.datums;
            sum.publishers += counts.publishers;
            sum.persistent += counts.persistent;
            sum.tombstones += counts.tombstones;
            sum.log_entries += counts.log_entries;
            sum.arena.live += counts.arena.live;
            sum.arena.dead += counts.arena.dead;
            sum.arena.free += counts.arena.free;
            sum
        })
    }

    /// The live record and owner of a registration, if this shard has it.
    pub fn record(&self, datum: DatumKey, register: RegisterId) -> Option<(Record<'_>, SessionId)> {
        self.slots.get(datum.slot(self.config.slot_count))?.get(datum, register)
    }

    /// Memory by kind over all slots. Costs a look at each segment of each slot, not at each registration.
    pub fn memory(&self) -> Memory {
        let (readers, insight) = (self.interests.bytes(), self.insight.bytes());
        let replication = self.cluster.as_ref().map_or(0, |cluster| cluster.bytes());
        let index = self.cluster.as_ref().map_or(0, |_| self.slots.bytes());
        let own = Memory { readers, insight, replication, index, ..Memory::default() };
        self.slots.iter().map(Slot::memory).fold(own, |sum, memory| sum + memory)
    }

    /// Interests, readers that are behind, and sessions whose overdue leases are kept.
    pub fn reader_counts(&self) -> (usize, usize, usize) {
        (self.interests.len(), self.interests.behind(), self.leases.held_back())
    }

    /// The sessions whose overdue leases are kept because too many ended together.
    pub fn leases_held_back(&self) -> impl Iterator<Item = HeldBack> {
        self.leases.list_held_back()
    }

    /// Lets them end with the next tick (see [`Leases::release`]). Returns how many.
    pub fn release_leases(&mut self) -> usize {
        self.leases.release()
    }

    /// Sessions whose leases run.
    pub fn sessions(&self) -> usize {
        self.leases.alive().count()
    }

    /// Data ids that a reader is interested in.
    pub fn interests_of(&self, reader: ReaderId) -> usize {
        self.interests.count_of(reader)
    }

    /// Whether readers are answered yet (see [`ShardConfig::settle`]); in a cluster, of every slot that is led.
    pub fn is_serving(&self) -> bool {
        if let Some(cluster) = &self.cluster {
            return self.may_tell() && cluster.is_serving();
        }
        self.may_tell() && self.opened_at.is_some_and(|opened| self.now.since(opened) >= self.config.settle)
    }

    /// Whether this run has waited for sessions for a whole lease, as far as is known after the last tick: what has passed
    /// since then may be a pause of this node, in which nobody could be heard.
    fn waited(&self, now: Nanos) -> bool {
        let known = self.last_tick.map_or(now, |last| now.min(last));
        self.opened_at.is_some_and(|at| known.since(at) > self.config.session_lease)
    }

    /// Time passes: leases end, tombstones that everybody has confirmed go, compaction walks on. What has arrived is to be
    /// handled before.
    pub fn tick(&mut self, now: Nanos) {
        self.now = now;
        let gap = self.last_tick.replace(now).map_or(0, |last| now.since(last));
        if gap > TICK_GAP_MAX {
            // What opened after the gap has not lived through it.
            self.opened_at = self.opened_at.map(|at| at.after(gap).min(now));
        }
        if !self.settled && self.waited(now) {
            self.settled = true;
            self.advance_all();
        }
        self.lease_owners(now);
        if self.faults.has(Fault::LeaseOverPause) {
            self.leases.overlook_gap(now);
        }
        for session in self.end_leases(now) {
            self.stats.leases_ended += 1;
            self.end_session(session);
        }
        // Until everybody has had the time to come, a session that this run has not heard of may hold what was removed.
        let lowest = self
            .leases
            .alive()
            .map(|session| self.confirmed_marks.get(&session).copied().unwrap_or(0))
            .min()
            .unwrap_or(self.mark);
        let lowest = if self.settled { lowest } else { 0 };
        self.cluster_tick(now);
        let marks = self.tombstone_marks(lowest);
        let is_early = self.faults.has(Fault::TombstoneEarly);
        let (is_clustered, settled) = (self.cluster.is_some(), lowest);
        for slot in self.slots.iter_led_mut() {
            let lowest = match marks.get(&slot.id()) {
                _ if is_early => u64::MAX,
                None if is_clustered => continue,
                marks => marks.copied().unwrap_or(settled),
            };
            let room = BATCH_CHANGES_MAX.saturating_sub(slot.open_changes());
            let forgotten = slot.forget_tombstones(lowest, room);
            if forgotten > 0 {
                self.stats.tombstones_dropped += forgotten as u64;
                self.dirty.push(slot.id());
            }
        }
        self.mark += 1;
        self.insight.pass(now);
        self.hurry(now);
        self.compact(now);
    }

    /// Ends a turn: seals the open batch of every slot that was written to. Returns the batches sealed.
    pub fn seal(&mut self, now: Nanos) -> usize {
        self.now = now;
        self.end_some_registrations();
        let before = self.stats.batches;
        self.seal_dirty(now);
        self.await_durable();
        self.cluster_turn();
        (self.stats.batches - before) as usize
    }

    fn seal_if_full(&mut self, id: SlotId, now: Nanos) {
        if self.slots.get(id).is_some_and(|slot| slot.open_changes() >= BATCH_CHANGES_MAX) {
            self.seal_slot(id, now);
        }
    }

    /// In the order of the slots' numbers, whatever the order in which they were written to.
    fn seal_dirty(&mut self, now: Nanos) {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        for id in dirty.drain(..) {
            self.seal_slot(id, now);
        }
        self.dirty = dirty;
    }

    fn seal_slot(&mut self, id: SlotId, now: Nanos) {
        let Some(slot) = self.slots.get_mut(id) else { return };
        let changes = slot.open_changes();
        let Some(sealed) = slot.seal(now) else { return };
        if let Some(storage) = &mut self.storage {
            storage.append(id, slot.revision(), &sealed.batch, changes, sealed.persistent, now);
        }
        if let Some(cluster) = &mut self.cluster {
            cluster.replicas.moved(id, slot.revision(), Some(&sealed.batch), now);
        }
        slot.recycle(sealed.batch);
        self.stats.batches += 1;
        self.stats.changed_datums += sealed.changed.len() as u64;
        self.insight.changed(&sealed.changed);
        // Before a slot answers, whoever reads from it has asked for it and gets all of it then.
        if !sealed.changed.is_empty() && self.slots.accepting(id).is_some() {
            self.sealed.push_back(Seal { slot: id, previous: sealed.previous, changed: sealed.changed });
        }
    }

    fn raise_epoch(&mut self, epoch: u32) {
        self.epoch = epoch;
        self.seal_all();
        if let Some(storage) = &mut self.storage {
            storage.raise_epoch(epoch);
        }
        self.slots.iter_mut().for_each(|slot| slot.reopen(epoch));
    }

    fn seal_all(&mut self) {
        self.seal_dirty(self.now);
    }

    fn end_session(&mut self, session: SessionId) {
        self.confirmed_marks.remove(&session);
        self.sequences.remove(&session);
        self.forget_turns(session);
        self.ending.extend(self.slots.iter_led().map(|slot| (session, slot.id())));
    }

    /// Removes registrations of ended sessions, some slots per turn.
    fn end_some_registrations(&mut self) {
        let mut budget = BATCH_CHANGES_MAX;
        while budget > 0 {
            let Some((session, id)) = self.ending.pop_front() else { break };
            let (mark, now) = (self.mark, self.now);
            self.seal_if_full(id, now);
            let Some(slot) = self.slots.led_mut(id) else { continue };
            let room = budget.min(BATCH_CHANGES_MAX.saturating_sub(slot.open_changes()));
            let removed = slot.remove_session(session, mark, room);
            if removed > 0 {
                self.dirty.push(id);
            }
            if removed == room {
                self.ending.push_front((session, id));
            }
            budget = budget.saturating_sub(removed + 1);
        }
    }

    /// Whether [`Shard::seal`] has work left over from this turn.
    pub fn has_backlog(&self) -> bool {
        !self.ending.is_empty() || self.cluster.as_ref().is_some_and(|cluster| cluster.has_backlog())
    }
}
