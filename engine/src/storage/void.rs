//! Slots that this node has let go of: the journal says so, then their snapshots are deleted. So a slot that returns does
//! not begin with what was left of it here, and a start does not load what nobody wants.

use super::Storage;
use crate::{
    disk_op::DiskOp,
    id::{Nanos, Revision, SlotId},
    journal::Fate,
    snapshot::{self, Phase},
};

/// A slot whose content on the disk counts no more, until the disk says so for good.
pub(super) struct Void {
    up_to: Revision,
    /// The frame that says so; none while the disk does not take any.
    frame: Option<u64>,
    /// There is a snapshot to be deleted.
    pub(super) has_snapshot: bool,
}

impl Storage {
    /// What the disk has of a slot up to a revision counts no more.
    pub fn forget(&mut self, id: SlotId, up_to: Revision, now: Nanos) {
        let scan = self.scan.as_ref().filter(|scan| scan.slot == id);
        // It takes its place whatever becomes of the scan.
        let is_named = scan.is_some_and(|scan| matches!(scan.phase, Phase::Renaming(_)));
        if scan.is_some() {
            self.abandon_scan();
        }
        self.gaps.remove(&id);
        self.copied.remove(&id);
        let had = self.slots.remove(&id);
        if let Some(segment) = had.as_ref().and_then(|slot| slot.needs) {
            self.needs.remove(&(segment, id));
        }
        let written = had.is_some_and(|slot| slot.last > Revision::ZERO || slot.gap || slot.needs.is_some());
        let before = self.void.remove(&id);
        // What was to be said before and is not for certain on the disk is said once more.
        let unsaid = before.is_some();
        let had_snapshot = before.is_some_and(|void| void.has_snapshot) || self.journal.has_snapshot(id);
        let has_snapshot = had_snapshot || is_named;
        if written || unsaid || has_snapshot {
            self.void.insert(id, Void { up_to, frame: None, has_snapshot });
            self.write_void_of(id, now);
        }
    }

    /// A slot's content was replaced as a whole by that of revision `to`: the next snapshot of it stands for that. Nothing of
    /// it is journaled before; an empty one needs none.
    pub fn replace(&mut self, id: SlotId, to: Revision, is_empty: bool, now: Nanos) {
        if is_empty {
            self.forget(id, to, now);
            return;
        }
        if self.scan.as_ref().is_some_and(|scan| scan.slot == id) {
            self.abandon_scan();
        }
        let slot = self.slots.entry(id).or_default();
        slot.gap = true;
        self.gaps.insert(id);
        self.copied.insert(id);
    }

    /// Journals that a slot was let go of, if that is still to be done and the disk takes it.
    pub(super) fn write_void_of(&mut self, id: SlotId, now: Nanos) {
        if !self.is_failed()
            && let Some(void) = self.void.get_mut(&id).filter(|void| void.frame.is_none())
        {
            let (frame, has_snapshot) = self.journal.void(id, void.up_to, now);
            void.frame = Some(frame);
            void.has_snapshot |= has_snapshot;
        }
    }

    /// Journals what could not be before, and deletes snapshots of slots of which the journal says for good that they are gone.
    pub(super) fn void_turn(&mut self, now: Nanos) {
        if self.void.is_empty() {
            return;
        }
        let unsaid = self.void.iter().filter(|(_, void)| void.frame.is_none()).map(|(id, _)| *id);
        unsaid.collect::<Vec<_>>().into_iter().for_each(|id| self.write_void_of(id, now));
        let journal = &self.journal;
        let said = |void: &Void| void.frame.is_some_and(|frame| journal.fate(frame) == Fate::Durable);
        let done: Vec<(SlotId, Void)> = self.void.extract_if(.., |_, void| said(void)).collect();
        let deletable = done.iter().filter(|(_, void)| void.has_snapshot).map(|(id, _)| *id);
        self.delete_snapshots(deletable);
    }

    /// The disk has failed: what it has not said for good has to be said again.
    pub(super) fn void_failed(&mut self) {
        let journal = &self.journal;
        for void in self.void.values_mut() {
            void.frame = void.frame.filter(|frame| journal.fate(*frame) == Fate::Durable);
        }
    }

    pub(super) fn delete_snapshots(&mut self, slots: impl Iterator<Item = SlotId>) {
        let mut any = false;
        for slot in slots {
            self.disk.push(DiskOp::Delete { file: snapshot::file(slot) });
            any = true;
        }
        if any {
            // Before a journal file that says so goes.
            self.disk.push(DiskOp::SyncNames);
        }
    }
}
