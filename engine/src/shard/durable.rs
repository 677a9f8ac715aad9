//! The shard's durable side: what it recovered, and what it asks of the disk.

use super::{Shard, ShardConfig};
use crate::{
    disk_op::{DiskDone, DiskRequest},
    id::Nanos,
    recover::Recovered,
    storage::{Storage, StorageConfig},
};

impl Shard {
    /// A shard that goes on from what a disk held, in the epoch that it was recovered for, and keeps everything on that disk
    /// from now on. Call [`Shard::poll_disk`] after each [`Shard::seal`]; nothing is told to anybody before the first
    /// journal file is durable.
    pub fn recovered(config: ShardConfig, recovered: Recovered, storage: StorageConfig) -> Self {
        let mut shard = Self::new(config);
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
