//! The shard: all slots of one core, and the only type a data node holds.
//!
//! Call order: any number of `handle_*`, then [`Shard::tick`] when it is time, then [`Shard::seal`] once per turn, then
//! `poll_*` until each says there is nothing more. Nothing is read between a write and the seal that follows it, so every
//! list a reader sees is the list at a sealed revision.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    batch::{ChangeKind, Entry, entries},
    change_log::ChangeLogLimits,
    diff::{self, Answer},
    error::Refusal,
    faults::{Fault, Faults},
    id::{DataId, DatumKey, Nanos, ReaderId, RegisterId, Revision, SessionId, SlotId},
    interest::Interests,
    lease::{Leases, TICK_GAP_MAX},
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

mod repair;

mod replicas;

use cluster::Cluster;
pub use cluster::{ClusterRefusal, ClusterStats, Turns};
use compaction::Compactor;
pub use compaction::{CompactionState, CompactionStatus, OldestReader};
use durable::DurableAcks;
pub use following::FollowStats;
pub use heartbeat::HeartbeatAnswer;
use insight::{Insight, note_reads};
pub use insight::{TopAnswer, TopKind, TopScan};
pub use replicas::{PART_BYTES, Part, ReplicaLag, ReplicaSend, ReplicaStats};

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

/// The outcome of one write frame, to be told once its batches are sealed.
pub struct Acknowledgement {
    /// Whose frame it was.
    pub reader: ReaderId,
    /// Its sequence.
    pub sequence: u64,
    /// For each put and removal in it, in order: the slot's revision that contains it, or why it was refused. With changes
    /// of persistent registrations in it, it comes when those are durable; other frames do not wait for it.
    pub outcomes: Vec<Result<Revision, Refusal>>,
}

/// One diff for some readers. Written once, whoever gets it.
pub struct Push<'a> {
    /// Who gets it, in rising order. Data ids that the same readers want have equal slices here.
    pub readers: &'a [ReaderId],
    /// The data id's slot.
    pub slot: SlotId,
    /// The data id.
    pub datum: DatumKey,
    /// What they lack.
    pub answer: Answer<'a>,
}

/// Why a link has to be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The session or the sequence is refused.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The reader was never opened.
    #[error("write on a link that has not introduced itself")]
    Unknown,
    /// A write frame that cannot be read.
    #[error("write frame: {0}")]
    Malformed(#[from] crate::batch::BatchError),
}

#[derive(Default)]
struct Link {
    session: Option<SessionId>,
    refused_names: BTreeSet<DatumKey>,
}

/// Bytes of a record for which memory is taken ahead.
const RESERVE_RECORD_BYTES: usize = 256;
/// What is taken ahead per slot is larger than its share by this part.
const RESERVE_MARGIN: usize = 16;
/// Bytes of a put as they usually are; a frame has about so many outcomes.
const ENTRY_BYTES_USUAL: usize = 192;

struct PendingAck {
    reader: ReaderId,
    sequence: u64,
    outcomes: Vec<Result<SlotId, Refusal>>,
}

impl PendingAck {
    /// The slot is led here no more, and whether its next leader has what was taken is not known.
    fn refuse_moved(&mut self, slot: SlotId) {
        self.outcomes.iter_mut().for_each(|outcome| {
            if *outcome == Ok(slot) {
                *outcome = Err(Refusal::SlotMoved);
            }
        });
    }
}

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
    asked: BTreeMap<(ReaderId, SlotId, DatumKey), Revision>,
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
        assert!(u32::from(*config.slots.end()) < config.slot_count);
        let slots = (config.slots.clone())
            .map(SlotId)
            .filter(|slot| slot.shard(config.shards) == config.shard)
            .map(|slot| Slot::open(slot, config.epoch, config.shards, config.seed, config.change_log));
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

    /// A session's link comes up. `epoch_seen` is the largest leader epoch the session has seen of this shard's slots:
    /// this shard then moves to a larger one unless it was told in this run (`same_run`). Returns the last write sequence
    /// taken from this incarnation.
    pub fn handle_link_open(
        &mut self,
        reader: ReaderId,
        session: SessionId,
        epoch_seen: u32,
        same_run: bool,
        now: Nanos,
    ) -> Result<u64, Refusal> {
        self.now = now;
        if session == SessionId::NOBODY {
            return Err(Refusal::SessionEnded);
        }
        // A larger epoch than this shard's is of another run, whatever the session was linked to before. In a cluster epochs
        // come from the slot table.
        let foreign = epoch_seen > self.epoch || !same_run && epoch_seen == self.epoch;
        let foreign = foreign && self.cluster.is_none();
        let foreign = foreign && !self.faults.has(Fault::EpochReused);
        if foreign && epoch_seen >= Revision::EPOCH_MAX {
            return Err(Refusal::EpochMismatch);
        }
        self.leases.renew(session, now)?;
        if foreign {
            self.raise_epoch(epoch_seen + 1);
        }
        self.opened_at.get_or_insert(now);
        // Whatever still arrives over an earlier link of this incarnation was sent before what comes over this one.
        for (other, link) in
            self.links.iter_mut().filter(|(other, link)| **other != reader && link.session == Some(session))
        {
            link.session = None;
            note_reads(&mut self.slots, &self.interests, *other, now);
            self.interests.close(*other);
        }
        self.links.insert(reader, Link { session: Some(session), refused_names: BTreeSet::new() });
        self.interests.open(reader);
        self.links_changed();
        Ok(*self.sequences.entry(session).or_insert(0))
    }

    /// Whether a session that was linked to another run may still come: if this run has not heard of it for a lease, its
    /// lease has ended, and what it holds may have been removed since without a trace.
    pub fn expects(&self, session: SessionId, now: Nanos) -> bool {
        self.leases.is_alive(session) || !self.waited(now) || self.leads_nothing()
    }

    /// Whether this run has waited for sessions for a whole lease, as far as is known after the last tick: what has passed
    /// since then may be a pause of this node, in which nobody could be heard.
    fn waited(&self, now: Nanos) -> bool {
        let known = self.last_tick.map_or(now, |last| now.min(last));
        self.opened_at.is_some_and(|at| known.since(at) > self.config.session_lease)
    }

    /// Whether the lease of a session incarnation is running.
    pub fn is_alive(&self, session: SessionId) -> bool {
        self.leases.is_alive(session)
    }

    /// A link is gone. The session's lease runs on.
    pub fn handle_link_close(&mut self, reader: ReaderId) {
        self.links.remove(&reader);
        note_reads(&mut self.slots, &self.interests, reader, self.now);
        self.interests.close(reader);
        self.asked.retain(|(other, ..), _| *other != reader);
        self.catching_up.retain(|(other, _), _| *other != reader);
        self.acks.retain(|ack| ack.reader != reader);
        self.durable_acks.close(reader);
        self.links_changed();
    }

    fn links_changed(&mut self) {
        if let Some(cluster) = &mut self.cluster {
            cluster.links_changed();
        }
    }

    /// The session behind a link leaves for good; its registrations go at once.
    pub fn handle_goodbye(&mut self, reader: ReaderId) {
        if let Some(session) = self.links.get(&reader).and_then(|link| link.session) {
            self.leases.end(session);
            self.end_session(session);
        }
    }

    /// A write frame: change entries one behind the other. Each put and removal is decided on its own; the frame is
    /// refused as a whole only if it cannot be read or its sequence is not the next one.
    pub fn handle_write(
        &mut self,
        reader: ReaderId,
        sequence: u64,
        bytes: &[u8],
        now: Nanos,
    ) -> Result<(), LinkError> {
        self.now = now;
        let session = self.session_of(reader)?;
        self.leases.renew(session, now)?;
        let last = self.sequences.entry(session).or_insert(0);
        if sequence != *last + 1 {
            return Err(Refusal::SequenceBroken.into());
        }
        for entry in entries(bytes) {
            entry?;
        }
        *last = sequence;
        let mut outcomes = Vec::with_capacity(bytes.len() / ENTRY_BYTES_USUAL);
        let mut persistent = Vec::new();
        let mut refused_names = std::mem::take(&mut self.links.entry(reader).or_default().refused_names);
        for entry in entries(bytes) {
            let entry = entry?;
            let slot = entry.change.datum.slot(self.config.slot_count);
            let outcome = self.admit(session, &mut refused_names, slot, entry);
            match outcome {
                Ok(()) => self.stats.admitted += 1,
                Err(_) => self.stats.refused += 1,
            }
            if entry.change.kind != ChangeKind::Name {
                if entry.change.is_persistent() && outcome.is_ok() {
                    persistent.push(outcomes.len());
                }
                outcomes.push(outcome.map(|()| slot));
            }
        }
        self.links.entry(reader).or_default().refused_names = refused_names;
        let ack = PendingAck { reader, sequence, outcomes };
        if persistent.is_empty() {
            self.acks.push_back(ack);
        } else {
            self.durable_acks.open(ack, persistent);
        }
        Ok(())
    }

    /// A reader wants a data id, of which it holds the state at `since` (zero: nothing, or not from this run). The first
    /// answer comes with the next pushes and is complete.
    pub fn handle_interest(&mut self, reader: ReaderId, id: &DataId, since: Revision) -> Result<(), Refusal> {
        let datum = id.key();
        let slot = datum.slot(self.config.slot_count);
        let held = self.slots.led(slot).ok_or(Refusal::SlotMoved)?;
        if held.collides(datum, id.as_bytes()) {
            return Err(Refusal::KeyCollision);
        }
        // In a cluster a revision may be of an epoch that ended before it.
        let is_trusted =
            self.cluster.is_none() || held.trusts(since) || self.faults.has(Fault::DiffAcrossFork);
        if !self.interests.add(reader, slot, datum) && since == Revision::ZERO {
            // The reader holds a list and asks for it once more, because it would read an absence differently by now. Its
            // answer has to be told apart from what it was told before.
            self.seal_slot(slot, self.now);
            if self.cluster.is_some() {
                self.advance_slot(slot);
            } else if let Some(slot) = self.slots.get_mut(slot) {
                slot.advance();
            }
        }
        self.note_read(slot, datum);
        self.asked.insert((reader, slot, datum), if is_trusted { since } else { Revision::ZERO });
        Ok(())
    }

    /// A reader no longer wants a data id.
    pub fn handle_uninterest(&mut self, reader: ReaderId, datum: DatumKey) {
        let slot = datum.slot(self.config.slot_count);
        self.note_read(slot, datum);
        self.interests.remove(reader, slot, datum);
        self.asked.remove(&(reader, slot, datum));
    }

    /// The reader's link cannot take more for now.
    pub fn handle_reader_blocked(&mut self, reader: ReaderId) {
        // What has been sealed and not handed out yet is still to come for this reader.
        let sealed = self.sealed.iter().rev().map(|seal| (seal.slot, seal.previous));
        let mut marks: BTreeMap<SlotId, Revision> = sealed.collect();
        marks.extend(
            self.catching_up
                .extract_if((reader, SlotId(0))..=(reader, SlotId::NONE), |_, _| true)
                .map(|((_, slot), since)| (slot, since)),
        );
        let slots = &self.slots;
        self.interests.fall_behind(reader, |slot| {
            marks.get(&slot).copied().or_else(|| slots.get(slot).map(Slot::revision))
        });
    }

    /// The reader's link can take more again.
    pub fn handle_reader_writable(&mut self, reader: ReaderId) {
        for (slot, revision) in self.interests.catch_up(reader) {
            self.catching_up.insert((reader, slot), revision);
        }
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

    /// The next outcome of a write frame.
    pub fn poll_ack(&mut self) -> Option<Acknowledgement> {
        if !self.may_tell() {
            return None;
        }
        if let Some(ack) = self.durable_acks.poll() {
            return Some(ack);
        }
        let pending = self.acks.pop_front()?;
        let outcomes = pending
            .outcomes
            .into_iter()
            .map(|outcome| outcome.map(|slot| self.slots.get(slot).map_or(Revision::ZERO, Slot::revision)))
            .collect();
        Some(Acknowledgement { reader: pending.reader, sequence: pending.sequence, outcomes })
    }

    /// Hands every diff that is due to `deliver`. Call after [`Shard::seal`].
    pub fn poll_push(&mut self, mut deliver: impl FnMut(Push<'_>)) {
        debug_assert!(self.dirty.is_empty(), "seal before reading");
        // In a cluster each slot is asked for itself.
        if !self.may_tell() || self.cluster.is_none() && !self.is_serving() {
            return;
        }
        // Almost always every reader is in step, and there is nothing to pick.
        let all_in_step =
            self.catching_up.is_empty() && self.asked.is_empty() && self.interests.behind() == 0;
        let mut picked = Vec::new();
        // What was sealed more than once in this turn is told once, from before the first time: every answer leads to the
        // present, and no two may lead there by different ways.
        let mut sealed: Vec<SlotId> = self.sealed.iter().map(|seal| seal.slot).collect();
        sealed.sort_unstable();
        let again: BTreeSet<SlotId> =
            sealed.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
        let mut told = BTreeSet::new();
        while let Some(seal) = self.sealed.pop_front() {
            let Some(slot) = self.slots.get(seal.slot) else { continue };
            let is_again = again.contains(&seal.slot);
            for datum in seal.changed {
                if is_again && !told.insert(datum) {
                    continue;
                }
                let mut readers = self.interests.readers(seal.slot, datum);
                if !all_in_step {
                    picked.clear();
                    picked.extend(
                        readers
                            .iter()
                            .filter(|reader| self.interests.is_in_step(**reader))
                            .filter(|reader| !self.catching_up.contains_key(&(**reader, seal.slot)))
                            .filter(|reader| !self.asked.contains_key(&(**reader, seal.slot, datum))),
                    );
                    readers = &picked;
                }
                if !readers.is_empty() {
                    let answer = answer(self.faults, slot, datum, seal.previous);
                    count(&mut self.stats, &answer);
                    deliver(Push { readers, slot: seal.slot, datum, answer });
                }
            }
        }
        let faults = self.faults;
        while let Some(((reader, slot_id), since)) = self.catching_up.pop_first() {
            // Whoever reads from a slot that does not answer yet has asked for it.
            let Some(slot) = self.slots.accepting(slot_id) else { continue };
            for datum in changed_since(slot, since, &self.interests, reader) {
                if !self.asked.contains_key(&(reader, slot_id, datum)) {
                    let answer = answer(faults, slot, datum, since);
                    count(&mut self.stats, &answer);
                    deliver(Push { readers: &[reader], slot: slot_id, datum, answer });
                }
            }
        }
        let (slots, stats) = (&self.slots, &mut self.stats);
        let answered = self.asked.extract_if(.., |(reader, slot, _), _| {
            self.interests.is_in_step(*reader) && slots.accepting(*slot).is_some()
        });
        for ((reader, slot_id, datum), since) in answered {
            let Some(slot) = slots.accepting(slot_id) else { continue };
            let answer = answer(faults, slot, datum, since);
            count(stats, &answer);
            deliver(Push { readers: &[reader], slot: slot_id, datum, answer });
        }
    }

    fn admit(
        &mut self,
        session: SessionId,
        refused_names: &mut BTreeSet<DatumKey>,
        slot_id: SlotId,
        entry: Entry<'_>,
    ) -> Result<(), Refusal> {
        let change = entry.change;
        self.seal_if_full(slot_id, self.now);
        self.check_durability(session, &change, slot_id)?;
        let slot = self.slots.led_mut(slot_id).ok_or(Refusal::SlotMoved)?;
        if change.epoch != 0 && change.epoch != slot.revision().epoch() {
            return Err(Refusal::EpochMismatch);
        }
        let was_clean = slot.open_changes() == 0;
        let outcome = match change.kind {
            ChangeKind::Name => {
                let key = DataId::key_of_canonical(entry.name().unwrap_or_default());
                if key != Ok(change.datum) {
                    return Err(Refusal::NameInvalid);
                }
                let outcome = slot.admit_name(entry);
                if outcome.is_err() {
                    refused_names.insert(change.datum);
                } else if !refused_names.is_empty() {
                    refused_names.remove(&change.datum);
                }
                outcome
            }
            _ if refused_names.contains(&change.datum) => Err(Refusal::KeyCollision),
            ChangeKind::Put => {
                let record = entry.record().ok_or(Refusal::RecordInvalid)?;
                let client = if self.config.validate {
                    record.validate().map_err(|_| Refusal::RecordInvalid)?.0
                } else {
                    record.client().ok_or(Refusal::RecordInvalid)?.0
                };
                slot.admit_put(entry, client)
            }
            ChangeKind::Remove => {
                let mut change = change;
                if self.faults.has(Fault::RemovalByOther)
                    && let Some((_, owner)) = slot.get(change.datum, change.register)
                    && let Some((version, _)) = slot.version(change.datum, change.register)
                {
                    (change.owner, change.version) = (owner, version.max(change.version));
                }
                slot.admit_remove(&change, self.mark)
            }
            ChangeKind::Touch | ChangeKind::Forget => Err(Refusal::RecordInvalid),
        };
        if was_clean && slot.open_changes() > 0 {
            self.dirty.push(slot_id);
        }
        outcome
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

    fn session_of(&self, reader: ReaderId) -> Result<SessionId, LinkError> {
        self.links.get(&reader).and_then(|link| link.session).ok_or(LinkError::Unknown)
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

/// What a reader at `since` lacks of a data id.
fn answer(faults: Faults, slot: &Slot, datum: DatumKey, since: Revision) -> Answer<'_> {
    let mut answer = diff::collect(slot, datum, since);
    if faults.has(Fault::SnapshotStampedOld)
        && answer.is_snapshot
        && let Some((last, ..)) = slot.datum_state(datum)
    {
        answer.to = last;
    }
    answer
}

fn count(stats: &mut ShardStats, answer: &Answer<'_>) {
    if answer.is_snapshot {
        stats.snapshots += 1;
    } else {
        stats.diffs += 1;
    }
}

/// The data ids of a slot that changed after `since` and that `reader` wants; all it wants if the log no longer knows.
fn changed_since(
    slot: &Slot,
    since: Revision,
    interests: &Interests,
    reader: ReaderId,
) -> BTreeSet<DatumKey> {
    if since < slot.log().floor() {
        return interests.of_slot(reader, slot.id()).collect();
    }
    slot.log()
        .changes(since)
        .map(|entry| slot.datum_key(entry.datum))
        .filter(|datum| interests.readers(slot.id(), *datum).contains(&reader))
        .collect()
}
