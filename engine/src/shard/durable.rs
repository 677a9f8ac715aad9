//! The shard's durable side: what it recovered, and what it asks of the disk.

use std::collections::{BTreeSet, VecDeque};

use super::{Acknowledgement, PendingAck, Shard, ShardConfig};
use crate::{
    batch::{Change, ChangeKind},
    disk_op::{DiskDone, DiskRequest},
    error::Refusal,
    id::{Nanos, ReaderId, Revision, SessionId, SlotId},
    journal::Fate,
    recover::Recovered,
    slot::Slot,
    storage::{Storage, StorageConfig},
};

/// Acknowledgements of write frames with changes of persistent registrations: from being taken, over being sealed, to being
/// known to be durable or lost.
#[derive(Default)]
pub(super) struct DurableAcks {
    /// Not sealed yet, with the places of the persistent changes among the outcomes.
    open: Vec<(PendingAck, Vec<usize>)>,
    /// Sealed: wait for the disk.
    waiting: Vec<Waiting>,
    ready: VecDeque<Acknowledgement>,
}

struct Waiting {
    ack: Acknowledgement,
    persistent: Vec<Persistent>,
    /// The frame that makes the changes durable; none will.
    frame: Option<u64>,
}

/// A change that has to be durable.
struct Persistent {
    /// Its place among the outcomes.
    at: usize,
    slot: SlotId,
    /// The revision that has it.
    revision: Revision,
}

impl DurableAcks {
    pub(super) fn open(&mut self, ack: PendingAck, persistent: Vec<usize>) {
        self.open.push((ack, persistent));
    }

    pub(super) fn poll(&mut self) -> Option<Acknowledgement> {
        self.ready.pop_front()
    }

    pub(super) fn close(&mut self, reader: ReaderId) {
        self.open.retain(|(ack, _)| ack.reader != reader);
        self.waiting.retain(|waiting| waiting.ack.reader != reader);
        self.ready.retain(|ack| ack.reader != reader);
    }

    /// The slot is led here no more: what waits for being durable may not be what its next leader has.
    pub(super) fn refuse_moved(&mut self, slot: SlotId) {
        for (ack, persistent) in &mut self.open {
            ack.refuse_moved(slot);
            persistent.retain(|at| ack.outcomes[*at].is_ok());
        }
        for Waiting { ack, persistent, .. } in &mut self.waiting {
            persistent.retain(|change| {
                let stays = change.slot != slot;
                if !stays {
                    ack.outcomes[change.at] = Err(Refusal::SlotMoved);
                }
                stays
            });
        }
    }

    /// The slots of which something is to be durable before it is acknowledged, some more than once.
    fn slots(&self) -> impl Iterator<Item = SlotId> {
        self.waiting.iter().flat_map(|waiting| &waiting.persistent).map(|change| change.slot)
    }

    /// Moves on what the disk, and the replicas that have to have it, have decided on.
    fn decide(&mut self, fate: impl Fn(u64) -> Fate, replicas_have: impl Fn(SlotId, Revision) -> bool) {
        let waits = |waiting: &Waiting| match waiting.frame.map(&fate) {
            _ if waiting.persistent.is_empty() => false,
            Some(Fate::Waiting) => true,
            Some(Fate::Durable) => {
                !waiting.persistent.iter().all(|change| replicas_have(change.slot, change.revision))
            }
            Some(Fate::Lost) | None => false,
        };
        let decided = self.waiting.extract_if(.., |waiting| !waits(waiting));
        for Waiting { mut ack, persistent, frame } in decided {
            if frame.map(&fate) != Some(Fate::Durable) {
                persistent.iter().for_each(|change| ack.outcomes[change.at] = Err(Refusal::StorageFailed));
            }
            self.ready.push_back(ack);
        }
    }
}

impl Shard {
    /// A shard that goes on from what a disk held, in the epoch that it was recovered for, and keeps everything on that disk
    /// from now on. Call [`Shard::poll_disk`] after each [`Shard::seal`]; nothing is told to anybody before the first
    /// journal file is durable.
    pub fn recovered(config: ShardConfig, recovered: Recovered, storage: StorageConfig) -> Self {
        let mut shard = Self::leading(config, true);
        shard.storage = Some(Storage::new(storage, shard.epoch, &recovered));
        for (id, found) in recovered.slots {
            assert!(found.slot.revision().epoch() == shard.epoch, "recovered for this epoch");
            shard.owners.extend(found.slot.owners());
            if let Some(slot) = shard.slots.get_mut(id) {
                *slot = found.slot;
            }
        }
        shard
    }

    /// The durable side, if there is one.
    pub fn storage(&self) -> Option<&Storage> {
        self.storage.as_ref()
    }

    /// Hears what became of an operation.
    pub fn handle_disk(&mut self, done: &DiskDone, now: Nanos) {
        if let Some(storage) = &mut self.storage {
            storage.handle(done, now);
        }
        // After each operation: what was lost in one failure is not told from what is durable after the next.
        self.decide_durable();
    }

    /// Write frames that wait for the disk before they are acknowledged.
    pub fn awaiting_disk(&self) -> usize {
        self.durable_acks.waiting.len()
    }

    /// The slots held here that have a persistent registration, or of which a change of one waits to be acknowledged.
    pub fn persistent_slots(&self) -> BTreeSet<SlotId> {
        let held = self.slots.iter().filter(|slot| !slot.session_digest(SessionId::NOBODY).is_empty());
        held.map(Slot::id).chain(self.durable_acks.slots()).collect()
    }

    /// Whether a change may have its durability class: an ephemeral one is of the session that sends it, a persistent one of
    /// nobody, and can be made durable.
    pub(super) fn check_durability(
        &self,
        session: SessionId,
        change: &Change,
        slot: SlotId,
    ) -> Result<(), Refusal> {
        let owner = if change.is_persistent() { SessionId::NOBODY } else { session };
        if change.kind == ChangeKind::Name {
            return Ok(());
        }
        if change.owner != owner {
            return Err(Refusal::NotOwner);
        }
        if !change.is_persistent() {
            return Ok(());
        }
        if self.cluster.as_ref().is_some_and(|cluster| cluster.holds_persistent) {
            return Err(Refusal::PersistentUnavailable);
        }
        let storage = self.storage.as_ref().ok_or(Refusal::PersistentUnavailable)?;
        if storage.takes_persistent(slot) { Ok(()) } else { Err(Refusal::StorageFailed) }
    }

    /// The turn's batches are sealed: what of its write frames has to be durable waits for the disk.
    pub(super) fn await_durable(&mut self) {
        if self.durable_acks.open.is_empty() {
            return;
        }
        for (ack, persistent) in std::mem::take(&mut self.durable_acks.open) {
            let slots = persistent.iter().filter_map(|at| ack.outcomes[*at].ok());
            let frames = slots.map(|slot| self.storage.as_ref()?.persistent_frame_of(slot));
            let frame = frames.reduce(|one, other| Some(one?.max(other?))).flatten();
            let revision = |slot| self.slots.get(slot).map_or(Revision::ZERO, Slot::revision);
            let changes = persistent.into_iter().filter_map(|at| Some((at, ack.outcomes[at].ok()?)));
            let changes = changes.map(|(at, slot)| Persistent { at, slot, revision: revision(slot) });
            let persistent = changes.collect();
            let outcomes = ack.outcomes.into_iter().map(|outcome| outcome.map(revision)).collect();
            let ack = Acknowledgement { reader: ack.reader, sequence: ack.sequence, outcomes };
            self.durable_acks.waiting.push(Waiting { ack, persistent, frame });
        }
        self.decide_durable();
    }

    pub(super) fn decide_durable(&mut self) {
        let Some(storage) = &self.storage else { return };
        let cluster = self.cluster.as_ref();
        let replicas_have = |slot: SlotId, revision: Revision| {
            let Some(cluster) = cluster else { return true };
            let has = |replica| cluster.replicas.durable_at(replica, slot).is_some_and(|at| at >= revision);
            cluster.in_sync.get(&slot).into_iter().flatten().all(|replica| has(*replica))
        };
        self.durable_acks.decide(|frame| storage.fate(frame), replicas_have);
    }

    /// The next operation that the disk is to carry out. Call after [`Shard::seal`] until there is none.
    pub fn poll_disk(&mut self, now: Nanos) -> Option<DiskRequest> {
        let storage = self.storage.as_mut()?;
        storage.turn(now, &self.slots);
        storage.poll()
    }

    /// Like [`Shard::poll_disk`], for a shard that ends: what waits is written whatever the interval says.
    pub fn poll_disk_at_end(&mut self, now: Nanos) -> Option<DiskRequest> {
        let storage = self.storage.as_mut()?;
        storage.flush(now);
        storage.poll()
    }

    /// When [`Shard::poll_disk`] has something to do although nothing happens.
    pub fn disk_due(&self) -> Option<Nanos> {
        self.storage.as_ref().and_then(Storage::wake_at)
    }

    /// Whether nothing waits for the disk.
    pub fn is_disk_idle(&self) -> bool {
        self.storage.as_ref().is_none_or(Storage::is_idle)
    }

    /// Whether revisions may be told: their epoch is reserved on the disk.
    pub(super) fn may_tell(&self) -> bool {
        self.storage.as_ref().is_none_or(Storage::is_open)
    }

    /// Who owns something that was recovered has as long to come back as any session that fell silent now.
    pub(super) fn lease_owners(&mut self, now: Nanos) {
        for session in std::mem::take(&mut self.owners) {
            if !self.leases.is_alive(session) {
                // It cannot have ended in this run, which has only begun.
                let _ = self.leases.renew(session, now);
            }
        }
    }
}
