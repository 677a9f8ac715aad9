//! The leader's side of replication: who follows which slots from here, and how far each has got.
//!
//! A follower is a cursor, never a queue. It gets the batches behind its cursor from the slot's ring; one that the ring no
//! longer reaches, or whose revision is of another history, gets the whole slot: a scan in parts, one slot at a time, between
//! which the batches sealed meanwhile are sent, so that the ring has to reach no further back than for anybody else.

use std::collections::{BTreeMap, BTreeSet};

use super::Shard;
use crate::{
    batch,
    error::Refusal,
    id::{Nanos, ReplicaId, Revision, SlotId},
    ring::{RING_BYTES, RING_BYTES_MIN, RINGS_BYTES, Ring},
    slot::{ScanCursor, Slot},
    slots::Slots,
};

/// Bytes of one part of a slot, about.
pub const PART_BYTES: usize = 256 * 1024;

/// A part of a whole slot.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The first: what was told of an earlier attempt is void.
    pub is_first: bool,
    /// The last: with it and the batches that came between, the slot is whole.
    pub is_last: bool,
    /// The slot's revision when the first part was made.
    pub revision: Revision,
    /// With the first part: the last revision of each earlier leader epoch, in rising order. Empty otherwise.
    pub forks: &'a [Revision],
    /// Change entries.
    pub entries: &'a [u8],
}

/// What a follower is to be sent, in this order.
#[derive(Clone, Copy, Debug)]
pub enum ReplicaSend<'a> {
    /// A sealed batch.
    Batch {
        /// Its slot.
        slot: SlotId,
        /// Where the follower has to be.
        after: Revision,
        /// The batch. One without changes only moves the revision.
        bytes: &'a [u8],
    },
    /// A part of a whole slot.
    Part {
        /// The slot.
        slot: SlotId,
        /// The part.
        part: Part<'a>,
    },
}

/// How far one follower of a slot has got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicaLag {
    /// Which one.
    pub replica: ReplicaId,
    /// What it has applied; [`Revision::ZERO`] until it has said so.
    pub applied: Revision,
    /// Up to here it has every persistent change on its disk.
    pub durable: Revision,
    /// Revisions from there to the slot's present; `u64::MAX` if that is in another epoch.
    pub behind: u64,
    /// Nanoseconds since something was sealed that it has not applied; 0: it is in step.
    pub lag: u64,
    /// It is being sent the whole slot, or waits for that.
    pub is_copying: bool,
}

/// Counts of the leader's side since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReplicaStats {
    /// Batches sent.
    pub batches: u64,
    /// Bytes of them.
    pub batch_bytes: u64,
    /// Whole slots sent to their end.
    pub copies: u64,
    /// Bytes of their parts.
    pub part_bytes: u64,
    /// Followers of a slot that fell behind its ring.
    pub lost: u64,
}

/// One follower of one slot.
struct Cursor {
    /// What was sent to it.
    at: Revision,
    applied: Revision,
    durable: Revision,
    /// When it was last known to be in step, or came.
    in_step_at: Nanos,
    /// It needs the whole slot.
    copies: bool,
    /// Once it has applied this revision it has what was removed before this mark.
    told: Option<(u64, Revision)>,
    has_mark: u64,
}

/// A whole slot that is being sent.
struct Copying {
    slot: SlotId,
    cursor: ScanCursor,
    revision: Revision,
    is_first: bool,
}

/// One link of a follower, with all the slots that it follows over it.
#[derive(Default)]
struct Replica {
    cursors: BTreeMap<SlotId, Cursor>,
    /// The slots with batches to send.
    pending: BTreeSet<SlotId>,
    /// The slots that are to be sent as a whole.
    wanted: BTreeSet<SlotId>,
    copying: Option<Copying>,
    /// The slot that has its turn next.
    next: Option<SlotId>,
}

/// See the module.
pub(super) struct Replicas {
    replicas: BTreeMap<ReplicaId, Replica>,
    of_slot: BTreeMap<SlotId, BTreeSet<ReplicaId>>,
    rings: BTreeMap<SlotId, Ring>,
    ring_bytes: usize,
    rings_bytes: usize,
    stats: ReplicaStats,
}

impl Default for Replicas {
    fn default() -> Self {
        Self {
            replicas: BTreeMap::new(),
            of_slot: BTreeMap::new(),
            rings: BTreeMap::new(),
            ring_bytes: RING_BYTES,
            rings_bytes: RINGS_BYTES,
            stats: ReplicaStats::default(),
        }
    }
}

/// What comes next for a follower that is at some revision.
enum Step<'a> {
    Nothing,
    Batch(Revision, &'a [u8]),
    /// No batch lies between, only a revision reached without one.
    Move(Revision),
    /// It has to get the whole slot.
    Lost,
}

fn step<'a>(slot: &Slot, ring: &'a Ring, at: Revision) -> Step<'a> {
    let now = slot.revision();
    if at == now {
        return Step::Nothing;
    }
    if at < ring.from() || !slot.has_been_at(at) {
        return Step::Lost;
    }
    match ring.after(at) {
        Some((revision, bytes)) if revision.epoch() == at.epoch() => Step::Batch(revision, bytes),
        _ if at.epoch() == now.epoch() => Step::Move(now),
        // One epoch after the other and each to its end, so that the follower learns where they ended.
        _ => match slot.lineage().end_of(at.epoch()) {
            Some(end) if at < end => Step::Move(end),
            _ => Step::Move(Revision::open(slot.lineage().epoch_after(at.epoch(), now))),
        },
    }
}

impl Replica {
    /// Sends a slot's batches until it is in step (`Some(true)`), the budget is used up (`Some(false)`), or the ring does not
    /// reach (`None`).
    fn send_batches(
        &mut self,
        slot: &Slot,
        ring: &Ring,
        left: &mut usize,
        send: &mut impl FnMut(ReplicaSend<'_>),
        stats: &mut ReplicaStats,
    ) -> Option<bool> {
        let id = slot.id();
        let Some(cursor) = self.cursors.get_mut(&id) else { return Some(true) };
        while *left > 0 {
            let after = cursor.at;
            let empty;
            let (revision, bytes) = match step(slot, ring, after) {
                Step::Nothing => return Some(true),
                Step::Lost => return None,
                Step::Batch(revision, bytes) => (revision, bytes),
                Step::Move(to) => {
                    empty = batch::empty(id, after, to, slot.shards());
                    (to, &empty[..])
                }
            };
            send(ReplicaSend::Batch { slot: id, after, bytes });
            cursor.at = revision;
            *left = left.saturating_sub(bytes.len());
            (stats.batches, stats.batch_bytes) = (stats.batches + 1, stats.batch_bytes + bytes.len() as u64);
        }
        Some(cursor.at == slot.revision())
    }

    /// Sends what there is, batches first, about as many bytes as `left` says. Returns whether there is more.
    fn poll(
        &mut self,
        slots: &Slots,
        rings: &BTreeMap<SlotId, Ring>,
        mut left: usize,
        send: &mut impl FnMut(ReplicaSend<'_>),
        stats: &mut ReplicaStats,
    ) -> bool {
        let from = self.next.take().unwrap_or(SlotId(0));
        let turn: Vec<SlotId> =
            self.pending.range(from..).chain(self.pending.range(..from)).copied().collect();
        for id in turn {
            if left == 0 {
                self.next = Some(id);
                break;
            }
            self.catch_up(id, slots, rings, &mut left, send, stats);
        }
        let mut entries = Vec::new();
        while left > 0 {
            let Some(mut copying) = self.copying.take().or_else(|| self.begin_copy(slots)) else { break };
            let id = copying.slot;
            self.pending.insert(id);
            self.catch_up(id, slots, rings, &mut left, send, stats);
            let Some(slot) = slots.led(id) else { continue };
            if self.wanted.contains(&id) {
                // It fell behind in the middle: from the beginning again.
                continue;
            }
            if left == 0 {
                self.copying = Some(copying);
                break;
            }
            entries.clear();
            let (_, is_last) = slot.scan(&mut copying.cursor, left.min(PART_BYTES), &mut entries);
            let forks = if copying.is_first { slot.forks() } else { &[] };
            let Copying { is_first, revision, .. } = copying;
            let part = Part { is_first, is_last, revision, forks, entries: &entries };
            send(ReplicaSend::Part { slot: id, part });
            stats.part_bytes += entries.len() as u64;
            left = left.saturating_sub(entries.len() + batch::HEADER_BYTES);
            if is_last {
                stats.copies += 1;
                if let Some(cursor) = self.cursors.get_mut(&id) {
                    cursor.copies = false;
                }
            } else {
                self.copying = Some(Copying { is_first: false, ..copying });
            }
        }
        !self.pending.is_empty() || self.copying.is_some() || !self.wanted.is_empty()
    }

    fn catch_up(
        &mut self,
        id: SlotId,
        slots: &Slots,
        rings: &BTreeMap<SlotId, Ring>,
        left: &mut usize,
        send: &mut impl FnMut(ReplicaSend<'_>),
        stats: &mut ReplicaStats,
    ) {
        let (Some(slot), Some(ring)) = (slots.led(id), rings.get(&id)) else {
            self.pending.remove(&id);
            return;
        };
        match self.send_batches(slot, ring, left, send, stats) {
            Some(true) => _ = self.pending.remove(&id),
            Some(false) => {}
            None => {
                stats.lost += 1;
                self.want_copy(id);
            }
        }
    }

    fn want_copy(&mut self, id: SlotId) {
        self.pending.remove(&id);
        self.copying.take_if(|copying| copying.slot == id);
        if let Some(cursor) = self.cursors.get_mut(&id) {
            cursor.copies = true;
            self.wanted.insert(id);
        }
    }

    fn begin_copy(&mut self, slots: &Slots) -> Option<Copying> {
        while let Some(id) = self.wanted.pop_first() {
            let (Some(slot), Some(cursor)) = (slots.led(id), self.cursors.get_mut(&id)) else { continue };
            cursor.at = slot.revision();
            let revision = slot.revision();
            return Some(Copying { slot: id, cursor: ScanCursor::default(), revision, is_first: true });
        }
        None
    }

    fn close(&mut self, id: SlotId) {
        self.cursors.remove(&id);
        self.pending.remove(&id);
        self.wanted.remove(&id);
        self.copying.take_if(|copying| copying.slot == id);
    }
}

impl Replicas {
    /// The slot has got to another revision; `batch` led there, if there was one.
    pub(super) fn moved(&mut self, slot: SlotId, to: Revision, batch: Option<&[u8]>, now: Nanos) {
        let bytes_max = self.ring_bytes_max();
        if let Some(batch) = batch
            && let Some(ring) = self.rings.get_mut(&slot)
        {
            ring.push(to, batch, now, bytes_max);
        }
        for replica in self.of_slot.get(&slot).into_iter().flatten() {
            let Some(replica) = self.replicas.get_mut(replica) else { continue };
            if !replica.wanted.contains(&slot) {
                replica.pending.insert(slot);
            }
        }
    }

    /// From now on the slot's batches are kept; those from before `at` are not.
    pub(super) fn keep_batches(&mut self, slot: SlotId, at: Revision) {
        self.rings.entry(slot).or_insert_with(|| Ring::starting_at(at));
    }

    /// The slot has become another one.
    pub(super) fn restart_ring(&mut self, slot: SlotId, at: Revision) {
        self.rings.insert(slot, Ring::starting_at(at));
    }

    /// Nobody will follow the slot from here.
    pub(super) fn drop_ring(&mut self, slot: SlotId) {
        self.rings.remove(&slot);
    }

    /// The slot is led in another epoch, or no more: whoever followed it has to ask anew.
    pub(super) fn close_slot(&mut self, slot: SlotId) {
        for replica in self.of_slot.remove(&slot).into_iter().flatten() {
            if let Some(replica) = self.replicas.get_mut(&replica) {
                replica.close(slot);
            }
        }
    }

    /// The mark before which every follower of the slot has all removals.
    pub(super) fn mark_of(&mut self, slot: SlotId, mark: u64, revision: Revision) -> u64 {
        let mut lowest = u64::MAX;
        for replica in self.of_slot.get(&slot).into_iter().flatten() {
            let replica = self.replicas.get_mut(replica);
            let Some(cursor) = replica.and_then(|replica| replica.cursors.get_mut(&slot)) else { continue };
            let (told, at) = *cursor.told.get_or_insert((mark, revision));
            if cursor.applied >= at {
                (cursor.has_mark, cursor.told) = (told, None);
            }
            lowest = lowest.min(cursor.has_mark);
        }
        lowest
    }

    /// Up to where a follower has every persistent change of a slot on its disk.
    pub(super) fn durable_at(&self, replica: ReplicaId, slot: SlotId) -> Option<Revision> {
        Some(self.replicas.get(&replica)?.cursors.get(&slot)?.durable)
    }

    /// Bytes of batches kept and of cursors.
    pub(super) fn bytes(&self) -> usize {
        let rings: usize = self.rings.values().map(|ring| ring.bytes() + size_of::<(SlotId, Ring)>()).sum();
        let cursors: usize = self.replicas.values().map(|replica| replica.cursors.len()).sum();
        rings + cursors * size_of::<(SlotId, Cursor)>()
    }

    fn ring_bytes_max(&self) -> usize {
        (self.rings_bytes / self.rings.len().max(1))
            .clamp(RING_BYTES_MIN.min(self.ring_bytes), self.ring_bytes)
    }
}

impl Shard {
    /// A follower asks for a slot, in the leader epoch that it knows, from `since` on. It gets batches if this slot has been at
    /// `since` and its ring reaches there, else the whole slot. A cursor that the link had there is given up.
    pub fn replica_open(
        &mut self,
        replica: ReplicaId,
        slot: SlotId,
        leader_epoch: u32,
        since: Revision,
    ) -> Result<(), Refusal> {
        let now = self.now;
        let Some(cluster) = &mut self.cluster else { return Err(Refusal::SlotMoved) };
        let held = self.slots.led(slot).ok_or(Refusal::SlotMoved)?;
        if held.revision().epoch() != leader_epoch {
            return Err(Refusal::EpochMismatch);
        }
        let replicas = &mut cluster.replicas;
        replicas.keep_batches(slot, held.revision());
        let reaches = replicas.rings.get(&slot).is_some_and(|ring| since >= ring.from());
        let copies = !(reaches && held.has_been_at(since));
        replicas.of_slot.entry(slot).or_default().insert(replica);
        let state = replicas.replicas.entry(replica).or_default();
        state.close(slot);
        let known = if copies { Revision::ZERO } else { since };
        let cursor = Cursor {
            at: since,
            applied: known,
            durable: Revision::ZERO,
            in_step_at: now,
            copies,
            told: None,
            has_mark: 0,
        };
        state.cursors.insert(slot, cursor);
        if copies {
            state.wanted.insert(slot);
        } else {
            state.pending.insert(slot);
        }
        Ok(())
    }

    /// A follower says how far it has got: what it has applied, and up to where it has every persistent change on its disk.
    /// What was not sent to it cannot have been applied, and says nothing.
    pub fn replica_ack(&mut self, replica: ReplicaId, slot: SlotId, applied: Revision, durable: Revision) {
        let now = self.now;
        let Some(cluster) = &mut self.cluster else { return };
        let state = cluster.replicas.replicas.get_mut(&replica);
        let Some(cursor) = state.and_then(|state| state.cursors.get_mut(&slot)) else { return };
        let Some(held) = self.slots.led(slot) else { return };
        if cursor.copies || applied > cursor.at || !held.has_been_at(applied) {
            return;
        }
        cursor.applied = cursor.applied.max(applied);
        cursor.durable = cursor.durable.max(durable.min(applied));
        if applied == held.revision() {
            cursor.in_step_at = now;
        }
        self.decide_durable();
    }

    /// A follower no longer follows one slot: it is not sent anything of it, and nothing waits for it.
    pub fn replica_leave(&mut self, replica: ReplicaId, slot: SlotId) {
        let Some(cluster) = &mut self.cluster else { return };
        if let Some(state) = cluster.replicas.replicas.get_mut(&replica) {
            state.close(slot);
        }
        if let Some(others) = cluster.replicas.of_slot.get_mut(&slot) {
            others.remove(&replica);
            if others.is_empty() {
                cluster.replicas.of_slot.remove(&slot);
            }
        }
    }

    /// A follower's link is gone, with all that it followed.
    pub fn replica_close(&mut self, replica: ReplicaId) {
        let Some(cluster) = &mut self.cluster else { return };
        let Some(state) = cluster.replicas.replicas.remove(&replica) else { return };
        for slot in state.cursors.into_keys() {
            if let Some(others) = cluster.replicas.of_slot.get_mut(&slot) {
                others.remove(&replica);
                if others.is_empty() {
                    cluster.replicas.of_slot.remove(&slot);
                }
            }
        }
    }

    /// The revision of a slot that is led here.
    pub fn led_at(&self, slot: SlotId) -> Option<Revision> {
        self.slots.led(slot).map(Slot::revision)
    }

    /// Hands over what a follower is to be sent, about `budget_bytes` of it. Call after [`Shard::seal`]. Returns whether there is
    /// more.
    pub fn poll_replica(
        &mut self,
        replica: ReplicaId,
        budget_bytes: usize,
        send: &mut impl FnMut(ReplicaSend<'_>),
    ) -> bool {
        debug_assert!(self.dirty.is_empty(), "seal before reading");
        if !self.may_tell() {
            return false;
        }
        let Some(cluster) = &mut self.cluster else { return false };
        let Replicas { replicas, rings, stats, .. } = &mut cluster.replicas;
        let Some(state) = replicas.get_mut(&replica) else { return false };
        state.poll(&self.slots, rings, budget_bytes, send, stats)
    }

    /// Whether [`Shard::poll_replica`] has something for a follower.
    pub fn has_replica_news(&self, replica: ReplicaId) -> bool {
        let state = self.cluster.as_ref().and_then(|cluster| cluster.replicas.replicas.get(&replica));
        state.is_some_and(|state| {
            !state.pending.is_empty() || !state.wanted.is_empty() || state.copying.is_some()
        })
    }

    /// How far each follower of a slot has got.
    pub fn replica_lag(&self, slot: SlotId) -> impl Iterator<Item = ReplicaLag> {
        let replicas = self.cluster.as_ref().map(|cluster| &cluster.replicas);
        let held = self.slots.led(slot);
        let of_slot = replicas.and_then(|replicas| replicas.of_slot.get(&slot));
        of_slot.into_iter().flatten().filter_map(move |replica| {
            let (replicas, held) = (replicas?, held?);
            let cursor = replicas.replicas.get(replica)?.cursors.get(&slot)?;
            let (present, applied) = (held.revision(), cursor.applied);
            let sealed = replicas
                .rings
                .get(&slot)
                .and_then(|ring| ring.sealed_after(applied).filter(|_| applied >= ring.from()));
            let same = applied.epoch() == present.epoch();
            Some(ReplicaLag {
                replica: *replica,
                applied,
                durable: cursor.durable,
                behind: if same { present.0.saturating_sub(applied.0) } else { u64::MAX },
                lag: if applied == present {
                    0
                } else {
                    self.now.since(sealed.unwrap_or(cursor.in_step_at)).max(1)
                },
                is_copying: cursor.copies,
            })
        })
    }

    /// Whether followers of a led slot are to be expected: then its recent batches are kept for them from now on.
    pub fn expect_replicas(&mut self, slot: SlotId, expected: bool) {
        let (Some(cluster), Some(held)) = (&mut self.cluster, self.slots.led(slot)) else { return };
        if expected {
            cluster.replicas.keep_batches(slot, held.revision());
        } else if !cluster.replicas.of_slot.contains_key(&slot) {
            cluster.replicas.drop_ring(slot);
        }
    }

    /// Bytes of recent batches that are kept for followers: of one slot, and of all together, which is shared evenly.
    pub fn set_ring_bytes(&mut self, slot_max: usize, shard_max: usize) {
        if let Some(cluster) = &mut self.cluster {
            (cluster.replicas.ring_bytes, cluster.replicas.rings_bytes) = (slot_max, shard_max);
        }
    }

    /// Counts of the leader's side since the start.
    pub fn replica_stats(&self) -> ReplicaStats {
        self.cluster.as_ref().map_or_else(ReplicaStats::default, |cluster| cluster.replicas.stats)
    }
}
