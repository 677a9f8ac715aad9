//! The follower's side of replication: what a leader sends is checked, applied and journaled as the leader did it.

use std::collections::{BTreeMap, VecDeque};

use super::{Part, Shard};
use crate::{
    batch::{Batch, ChangeKind, entries},
    faults::Fault,
    id::{Nanos, Revision, SlotId},
    journal::Fate,
    slot::{Checks, FollowError, Slot},
    slot_state::SlotState,
    storage::Storage,
};

/// Up to where a followed slot is on the disk.
#[derive(Default)]
struct OnDisk {
    durable: Revision,
    /// Revisions with persistent changes, each with the frame that makes it durable.
    waiting: VecDeque<(Revision, u64)>,
}

/// Counts of the follower's side since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FollowStats {
    /// Batches applied.
    pub batches: u64,
    /// Whole slots taken over.
    pub copies: u64,
    /// Batches and parts that were not taken because something between is missing.
    pub gaps: u64,
    /// Batches and parts that were not taken for another reason.
    pub refused: u64,
}

/// See the module.
#[derive(Default)]
pub(super) struct Following {
    /// Slots that are being told as a whole; they take the place of what is here when nothing of them is missing.
    copies: BTreeMap<SlotId, Slot>,
    on_disk: BTreeMap<SlotId, OnDisk>,
    stats: FollowStats,
    /// Batches acknowledged before they are applied, by a planted fault.
    #[cfg(feature = "planted-faults")]
    kept_back: BTreeMap<SlotId, Vec<u8>>,
}

impl Following {
    /// The slot is no longer followed, or another leader is: what that one began to tell is void.
    pub(super) fn restart(&mut self, slot: SlotId) -> Option<Slot> {
        #[cfg(feature = "planted-faults")]
        self.kept_back.remove(&slot);
        self.copies.remove(&slot)
    }

    /// The slot is not followed any more.
    pub(super) fn forget(&mut self, slot: SlotId) -> Option<Slot> {
        self.on_disk.remove(&slot);
        self.restart(slot)
    }

    /// Bytes of copies that are not whole.
    pub(super) fn bytes(&self) -> usize {
        self.copies.values().map(|copy| copy.memory().total() + size_of::<Slot>()).sum()
    }
}

impl Shard {
    /// Applies a batch that the leader of a followed slot sent; `after` is where the slot has to be. Checked as a whole before
    /// anything of it is applied. Returns the revision that the slot has got to, which stands still while a whole slot is
    /// being told.
    pub fn apply_batch(
        &mut self,
        slot: SlotId,
        after: Revision,
        bytes: &[u8],
        now: Nanos,
    ) -> Result<Revision, FollowError> {
        self.now = now;
        let result = self.take_batch(slot, after, bytes);
        self.count_refusal(slot, result)
    }

    /// Takes a part of a whole slot from its leader. With the last one the slot takes the place of what was here. Returns the
    /// revision that the slot has got to.
    pub fn apply_part(&mut self, slot: SlotId, part: &Part<'_>, now: Nanos) -> Result<Revision, FollowError> {
        self.now = now;
        let result = self.take_part(slot, part);
        self.count_refusal(slot, result)
    }

    /// How far a followed slot has got: what it has applied, and up to where every persistent change of it is on the disk,
    /// which is nowhere for a shard without storage. A slot that is not followed: nowhere.
    pub fn followed(&mut self, slot: SlotId) -> (Revision, Revision) {
        let (SlotState::Following, Some(held)) = (self.slots.state(slot), self.slots.get(slot)) else {
            return (Revision::ZERO, Revision::ZERO);
        };
        let applied = held.revision();
        #[cfg(feature = "planted-faults")]
        if let Some(claimed) = self.claimed(slot) {
            return (claimed, claimed);
        }
        let (Some(storage), Some(cluster)) = (&self.storage, &mut self.cluster) else {
            return (applied, Revision::ZERO);
        };
        let on_disk = cluster.following.on_disk.entry(slot).or_default();
        on_disk.learn(storage, slot, applied);
        (applied, on_disk.durable)
    }

    /// Counts of the follower's side since the start.
    pub fn follow_stats(&self) -> FollowStats {
        self.cluster.as_ref().map_or_else(FollowStats::default, |cluster| cluster.following.stats)
    }

    fn count_refusal(
        &mut self,
        slot: SlotId,
        result: Result<Revision, FollowError>,
    ) -> Result<Revision, FollowError> {
        if let (Err(error), Some(cluster)) = (&result, &mut self.cluster) {
            let stats = &mut cluster.following.stats;
            match error {
                FollowError::Gap { .. } => stats.gaps += 1,
                _ => stats.refused += 1,
            }
            // What was begun cannot be ended.
            let begun = cluster.following.restart(slot);
            cluster.release(begun);
        }
        result
    }

    fn take_batch(&mut self, slot: SlotId, after: Revision, bytes: &[u8]) -> Result<Revision, FollowError> {
        let batch = Batch::read(bytes)?;
        if batch.bytes().len() != bytes.len() || batch.slot() != slot {
            return Err(FollowError::Invalid("not a batch of this slot alone"));
        }
        self.check_following(slot)?;
        if self.faults.has(Fault::AckBeforeApply)
            && let Some(claimed) = self.keep_back(slot, after, batch)?
        {
            return Ok(claimed);
        }
        self.take_read_batch(slot, after, batch)
    }

    fn take_read_batch(
        &mut self,
        slot: SlotId,
        after: Revision,
        batch: Batch<'_>,
    ) -> Result<Revision, FollowError> {
        let (now, checks) = (self.now, self.checks());
        let (Some(cluster), Some(held)) = (&mut self.cluster, self.slots.get_mut(slot)) else {
            return Err(FollowError::NotFollowing);
        };
        let at = held.revision();
        let epoch = cluster.known_epoch(slot);
        let to = batch.revision();
        let copy = cluster.following.copies.get_mut(&slot);
        let is_copying = copy.is_some();
        let target = copy.unwrap_or(held);
        if after != target.revision() {
            return Err(FollowError::Gap { at, after });
        }
        if to <= after || to.epoch() > epoch {
            return Err(FollowError::Revision { at, to, epoch });
        }
        target.check_batch(batch, checks, is_copying)?;
        target.apply_batch(batch, is_copying, now);
        if is_copying {
            return Ok(at);
        }
        cluster.following.stats.batches += 1;
        let has_changes = batch.changes() > 0;
        cluster.replicas.moved(slot, to, has_changes.then_some(batch.bytes()), now);
        if let Some(storage) = self.storage.as_mut().filter(|_| has_changes) {
            let persistent = (batch.entries().map_while(Result::ok))
                .any(|entry| entry.change.is_persistent() && entry.change.kind != ChangeKind::Name);
            storage.append(slot, to, batch.bytes(), batch.changes() as usize, persistent, now);
            let on_disk = cluster.following.on_disk.entry(slot).or_default();
            if persistent && let Some(frame) = storage.persistent_frame_of(slot) {
                on_disk.waiting.push_back((to, frame));
            }
        }
        Ok(to)
    }

    fn take_part(&mut self, slot: SlotId, part: &Part<'_>) -> Result<Revision, FollowError> {
        self.check_following(slot)?;
        let checks = self.checks();
        let (Some(cluster), Some(held)) = (&mut self.cluster, self.slots.get_mut(slot)) else {
            return Err(FollowError::NotFollowing);
        };
        let at = held.revision();
        let epoch = cluster.known_epoch(slot);
        if part.is_first {
            // A leader is never behind its followers, whatever they followed before.
            if part.revision < at || part.revision == Revision::ZERO || part.revision.epoch() > epoch {
                return Err(FollowError::Revision { at, to: part.revision, epoch });
            }
            let begun = cluster.following.restart(slot);
            cluster.release(begun);
            cluster.following.copies.insert(slot, held.begin_copy(part.revision, part.forks));
        }
        let Some(copy) = cluster.following.copies.get_mut(&slot) else {
            return Err(FollowError::Gap { at, after: part.revision });
        };
        for entry in entries(part.entries) {
            copy.check_entry(entry?, checks)?;
        }
        for entry in entries(part.entries).map_while(Result::ok) {
            copy.restore(entry);
        }
        if !part.is_last {
            return Ok(at);
        }
        let Some(mut whole) = cluster.following.copies.remove(&slot) else { return Ok(at) };
        whole.end_copy();
        whole.set_log_limits(self.config.change_log);
        let (to, is_empty) = (whole.revision(), whole.is_empty());
        let before = std::mem::replace(held, whole);
        cluster.release(Some(before));
        cluster.following.stats.copies += 1;
        cluster.replicas.restart_ring(slot, to);
        if let Some(storage) = &mut self.storage {
            storage.replace(slot, to, is_empty, self.now);
            cluster.following.on_disk.entry(slot).or_default().waiting.clear();
        }
        self.forget_compaction(slot);
        Ok(to)
    }

    fn check_following(&self, slot: SlotId) -> Result<(), FollowError> {
        let is_followed = self.slots.state(slot) == SlotState::Following;
        if is_followed { Ok(()) } else { Err(FollowError::NotFollowing) }
    }

    fn checks(&self) -> Checks {
        Checks { slot_count: self.config.slot_count, validate: self.config.validate }
    }

    /// The planted fault: what was acknowledged without being applied.
    #[cfg(feature = "planted-faults")]
    fn claimed(&self, slot: SlotId) -> Option<Revision> {
        let batch = self.cluster.as_ref()?.following.kept_back.get(&slot)?;
        Some(Batch::read(batch).ok()?.revision())
    }

    /// The planted fault: a batch waits until the next one, and is acknowledged meanwhile.
    #[cfg(feature = "planted-faults")]
    fn keep_back(
        &mut self,
        slot: SlotId,
        after: Revision,
        batch: Batch<'_>,
    ) -> Result<Option<Revision>, FollowError> {
        let kept = self.cluster.as_mut().and_then(|cluster| cluster.following.kept_back.remove(&slot));
        if let Some(kept) = kept {
            let kept = Batch::read(&kept)?;
            let at = self.slots.get(slot).map_or(Revision::ZERO, Slot::revision);
            self.take_read_batch(slot, at, kept)?;
        }
        let Some(cluster) = &mut self.cluster else { return Ok(None) };
        let at = self.slots.get(slot).map_or(Revision::ZERO, Slot::revision);
        if cluster.following.copies.contains_key(&slot) || after != at || batch.changes() == 0 {
            return Ok(None);
        }
        cluster.following.kept_back.insert(slot, batch.bytes().to_vec());
        Ok(Some(batch.revision()))
    }

    #[cfg(not(feature = "planted-faults"))]
    fn keep_back(&self, _: SlotId, _: Revision, _: Batch<'_>) -> Result<Option<Revision>, FollowError> {
        Ok(None)
    }
}

impl OnDisk {
    /// Looks at what has become of what was waited for.
    fn learn(&mut self, storage: &Storage, slot: SlotId, applied: Revision) {
        let Some(frame) = storage.persistent_frame_of(slot) else {
            // Batches are missing in the journal: nothing more is durable before a snapshot stands for them.
            self.waiting.clear();
            return;
        };
        while let Some((to, frame)) = self.waiting.front() {
            match storage.fate(*frame) {
                Fate::Waiting => break,
                Fate::Durable => self.durable = *to,
                // What was lost is in the snapshot that has closed the gap since.
                Fate::Lost => {}
            }
            self.waiting.pop_front();
        }
        if !self.waiting.is_empty() {
            return;
        }
        if storage.fate(frame) == Fate::Durable {
            self.durable = applied;
        } else {
            self.waiting.push_back((applied, frame));
        }
    }
}
