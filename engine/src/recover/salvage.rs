//! What can still be read of a directory that recovery refuses.
//!
//! Every block proves itself by its checksum, so a good one is used wherever it stands, and what lies between is named by file
//! and offset. A slot is *whole* only if that can be proved: its snapshot is, each of its batches follows the one before, and
//! one of them comes after everything that is lost. Of the other slots there is what was found: it was true once, and what
//! has changed it since may be lost.

use std::collections::{BTreeMap, BTreeSet};

use super::{Files, RecoverError, marker_epoch, read::Blocks};
use crate::{
    batch::{Batch, entries},
    block::{BlockHead, BlockKind},
    change_log::ChangeLogLimits,
    disk_op::{DiskOp, DiskQueue, SECTOR_BYTES},
    id::{Revision, SlotId},
    journal::{EPOCHS_RESERVED, Frame, SegmentHead, SegmentId, frames},
    slot::Slot,
    snapshot::{self, Scan, SnapshotHead},
};

/// Something that is lost, or was left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The file.
    pub file: String,
    /// Where in it, in bytes; `None`: the whole file.
    pub offset: Option<u64>,
    /// What is wrong there.
    pub what: String,
}

/// One slot.
pub struct SalvagedSlot {
    /// What was found of it.
    pub slot: Slot,
    /// The last revision that was found.
    pub revision: Revision,
    /// It is exactly what it was at that revision, and nothing that is lost can be of a later one. The bad end of a shard's last
    /// segment does not count as lost: a crash leaves it behind, of what was never known to be durable.
    pub is_whole: bool,
}

/// What was found.
pub struct Salvaged {
    /// The slots of which something was found.
    pub slots: BTreeMap<SlotId, SalvagedSlot>,
    /// What was not, in the order of reading.
    pub faults: Vec<Fault>,
    /// An epoch that no run which wrote here has opened a larger one than.
    pub epoch: u32,
    /// Puts left out because the name of their data id is lost.
    pub nameless: u64,
    slot_count: u32,
}

impl Salvaged {
    /// Asks for a directory with what was found: a snapshot of each slot.
    pub fn write(&self, disk: &mut DiskQueue) {
        let head = |slot, revision| SnapshotHead {
            slot_count: self.slot_count,
            shards: 1,
            slot,
            revision,
            epochs_to: self.epoch,
        };
        for (id, found) in &self.slots {
            Scan::whole(head(*id, found.revision), &found.slot, disk);
        }
        if self.slots.is_empty() {
            // So that the epochs are remembered.
            Scan::whole(head(SlotId(0), Revision::ZERO), &empty(SlotId(0)), disk);
        }
        disk.push(DiskOp::SyncNames);
    }
}

fn empty(id: SlotId) -> Slot {
    Slot::open(id, 0, 1, 0, ChangeLogLimits::default())
}

struct Found {
    slot: Slot,
    revision: Revision,
    /// A damaged snapshot: its revision, and the entries that were good. Applied behind the batches up to there.
    partial: Option<(Revision, Vec<u8>)>,
    /// Batches that count only if a snapshot that is not there was finished.
    unanchored: Vec<Vec<u8>>,
    has_hole: bool,
    /// How much was lost before its latest batch that follows the one before.
    proved: usize,
}

struct Salvage<'a> {
    files: &'a mut dyn Files,
    slot_count: u32,
    slots: BTreeMap<SlotId, Found>,
    faults: Vec<Fault>,
    epoch: u32,
    nameless: u64,
    /// Times that a part of the journals was lost.
    losses: usize,
    needed: BTreeMap<(u32, u32), SegmentId>,
    /// Slots that have a snapshot, and those that the journals say have one.
    snapshots: BTreeSet<SlotId>,
    named: BTreeSet<SlotId>,
    /// The revisions of the snapshots.
    snapshots_at: BTreeMap<SlotId, Revision>,
}

/// Reads whatever is good in a directory. Files named in `ignore` are not looked at. An error only if the directory cannot be
/// listed or is of another cluster.
pub fn salvage(files: &mut dyn Files, slot_count: u32, ignore: &[&str]) -> Result<Salvaged, RecoverError> {
    let listed = files.list().map_err(|what| RecoverError::Read { file: String::new(), what })?;
    let mut salvage = Salvage {
        files,
        slot_count,
        slots: BTreeMap::new(),
        faults: Vec::new(),
        epoch: 0,
        nameless: 0,
        losses: 0,
        needed: BTreeMap::new(),
        snapshots: BTreeSet::new(),
        named: BTreeSet::new(),
        snapshots_at: BTreeMap::new(),
    };
    let (mut segments, mut retired) = (BTreeMap::new(), None);
    for (file, bytes) in listed {
        match (SegmentId::from_file(&file), snapshot::from_file(&file), marker_epoch(&file)) {
            (Some(id), ..) => _ = segments.insert(id, bytes),
            (_, Some((slot, true)), _) => salvage.snapshot(slot, bytes)?,
            (_, Some((_, false)), _) => {}
            (.., Some(epoch)) => retired = retired.max(Some(epoch)),
            _ if ignore.contains(&file.as_str()) => {}
            _ => salvage.fault(&file, None, "it does not belong into a data directory: left out"),
        }
    }
    salvage.epoch = salvage.epoch.max(retired.unwrap_or(0));
    segments.retain(|id, _| retired.is_none_or(|retired| id.epoch > retired));
    salvage.journals(&segments)?;
    Ok(salvage.finish())
}

impl Salvage<'_> {
    fn fault(&mut self, file: &str, offset: Option<u64>, what: impl ToString) {
        self.faults.push(Fault { file: file.into(), offset, what: what.to_string() });
    }

    fn found(&mut self, id: SlotId) -> &mut Found {
        self.slots.entry(id).or_insert_with(|| Found {
            slot: empty(id),
            revision: Revision::ZERO,
            partial: None,
            unanchored: Vec::new(),
            has_hole: false,
            proved: 0,
        })
    }

    /// Hands every good block of a file to `take`, and names what lies between. Returns whether all of it was good, and
    /// where the last good block ends.
    fn blocks(
        &mut self,
        file: &str,
        bytes: u64,
        is_own: impl Fn(&BlockHead) -> bool,
        mut take: impl FnMut(&mut Self, u64, &BlockHead, &[u8]) -> Result<(), RecoverError>,
    ) -> Result<(bool, u64), RecoverError> {
        let (mut offset, mut end, mut all_good) = (0, 0, true);
        let mut bad: Option<(u64, String)> = None;
        while offset < bytes {
            let (block, content) = {
                let mut blocks = Blocks::open(self.files, file.into(), bytes);
                blocks.offset = offset;
                let block = match blocks.peek() {
                    Ok(Ok(head)) if is_own(&head) => Ok(head),
                    Ok(Ok(_)) => Err("a block that does not belong here".to_string()),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                let content = block.as_ref().map(|head| blocks.content(head).to_vec()).unwrap_or_default();
                (block, content)
            };
            match block {
                Ok(head) => {
                    if let Some((from, what)) = bad.take() {
                        all_good = false;
                        self.fault(file, Some(from), format!("{what}; {} bytes are lost", offset - from));
                        self.losses += 1;
                    }
                    take(self, offset, &head, &content)?;
                    offset += head.len as u64;
                    end = offset;
                }
                Err(what) => {
                    bad.get_or_insert((offset, what));
                    offset += SECTOR_BYTES as u64;
                }
            }
        }
        if let Some((from, what)) = bad {
            all_good = false;
            let lost = bytes - from;
            self.fault(file, Some(from), format!("{what}; {lost} bytes to the end of the file are lost"));
        }
        Ok((all_good, end))
    }

    fn other_cluster(&self, file: &str, slot_count: u32) -> Result<(), RecoverError> {
        if slot_count == self.slot_count {
            return Ok(());
        }
        let what = format!("slot_count = {slot_count}, not {}", self.slot_count);
        Err(RecoverError::Settings { file: file.into(), what })
    }

    fn snapshot(&mut self, id: SlotId, bytes: u64) -> Result<(), RecoverError> {
        let file = snapshot::file(id);
        if u32::from(id.0) >= self.slot_count {
            self.fault(&file, None, "a slot that this cluster does not have: left out");
            return Ok(());
        }
        self.snapshots.insert(id);
        let (mut revision, mut head_slot) = (None, None);
        let (mut kept, mut count, mut said) = (Vec::new(), 0, None);
        let losses = self.losses;
        let (all_good, _) = self.blocks(
            &file,
            bytes,
            |_| true,
            |it, offset, block, content| {
                if *revision.get_or_insert(block.stream) != block.stream {
                    it.fault(&file, Some(offset), "a block of another snapshot: left out");
                    return Ok(());
                }
                match block.kind {
                    BlockKind::Head => match SnapshotHead::read(content) {
                        Ok(head) => {
                            it.other_cluster(&file, head.slot_count)?;
                            it.epoch = it.epoch.max(head.epochs_to);
                            head_slot = Some(head.slot);
                        }
                        Err(what) => it.fault(&file, Some(offset), what),
                    },
                    BlockKind::Entries => {
                        count += entries(content).count() as u64;
                        kept.extend_from_slice(content);
                    }
                    BlockKind::End => said = snapshot::read_end(content).ok(),
                    BlockKind::Frames => it.fault(&file, Some(offset), "a block of another kind: left out"),
                }
                Ok(())
            },
        )?;
        // The journals lose nothing by it.
        self.losses = losses;
        let revision = Revision(revision.unwrap_or(0));
        self.epoch = self.epoch.max(revision.epoch());
        if head_slot.is_some_and(|slot| slot != id) {
            self.fault(&file, None, "it is the snapshot of another slot: left out");
            return Ok(());
        }
        self.snapshots_at.insert(id, revision);
        let whole = all_good && head_slot.is_some() && said == Some(count);
        if all_good && !whole {
            self.fault(&file, None, format!("it has no end or lacks entries: {count} are kept"));
        }
        let found = self.found(id);
        found.has_hole = !whole;
        if whole {
            found.revision = revision;
            self.restore(id, &kept, &file, 0);
        } else {
            found.partial = Some((revision, kept));
        }
        Ok(())
    }

    /// Applies entries after all checks of a trust boundary.
    fn restore(&mut self, id: SlotId, bytes: &[u8], file: &str, offset: u64) {
        for entry in entries(bytes) {
            let checked = entry.map_err(|error| error.to_string()).and_then(|entry| {
                let record = entry.record().map(|record| record.validate());
                record.transpose().map_err(|error| error.to_string()).map(|_| entry)
            });
            match checked {
                Ok(entry) if entry.change.datum.slot(self.slot_count) == id => {
                    let known = self.found(id).slot.restore(entry);
                    self.nameless += u64::from(!known && entry.record().is_some());
                }
                Ok(_) => self.fault(file, Some(offset), "an entry of another slot: left out"),
                Err(what) => self.fault(file, Some(offset), format!("{what}: left out")),
            }
        }
    }

    fn journals(&mut self, segments: &BTreeMap<SegmentId, u64>) -> Result<(), RecoverError> {
        let heads: BTreeMap<SegmentId, BlockHead> = segments
            .iter()
            .filter_map(|(id, bytes)| Some((*id, super::read_head(self.files, *id, *bytes).ok()?.0)))
            .collect();
        let mut before: Option<SegmentId> = None;
        for (id, bytes) in segments {
            self.epoch = self.epoch.max(id.epoch);
            let same = |other: &SegmentId| (other.epoch, other.shard) == (id.epoch, id.shard);
            if let Some(last) = before.filter(same)
                && last.segment + 1 < id.segment
            {
                let lost = SegmentId { segment: last.segment + 1, ..*id };
                self.losses += 1;
                self.fault(&lost.file(), None, format!("it is missing, and {} is there", id.file()));
            }
            before = Some(*id);
            // What the next segment does not build on was given up when the disk failed.
            let next = SegmentId { segment: id.segment + 1, ..*id };
            let end = heads.get(&next).map(|head| head.sequence);
            let is_last = !segments.keys().any(|other| same(other) && other.segment > id.segment);
            self.segment(*id, *bytes, end, is_last)?;
        }
        let missing: Vec<SegmentId> = self
            .needed
            .iter()
            .filter(|(key, first)| {
                let held = segments.keys().find(|id| (id.epoch, id.shard) == **key);
                first.segment != u32::MAX && held.is_none_or(|held| held.segment > first.segment)
            })
            .map(|(_, first)| *first)
            .collect();
        for first in missing {
            self.losses += 1;
            // Where it would have been is before what was read: nothing read proves anything about it.
            self.slots.values_mut().for_each(|found| found.proved = 0);
            self.fault(&first.file(), None, "it is missing, and the journal goes on behind it");
        }
        let lost: Vec<SlotId> = self.named.difference(&self.snapshots).copied().collect();
        for slot in lost {
            self.fault(&snapshot::file(slot), None, "it is missing, and a journal names it");
            self.found(slot).has_hole = true;
        }
        Ok(())
    }

    fn segment(
        &mut self,
        id: SegmentId,
        bytes: u64,
        end: Option<u64>,
        is_last: bool,
    ) -> Result<(), RecoverError> {
        let file = id.file();
        let (mut expected, mut has_head, losses) = (None, false, self.losses);
        let is_own = |block: &BlockHead| block.stream == id.stream();
        let (_, good_end) = self.blocks(&file, bytes, is_own, |it, offset, block, content| {
            if end.is_some_and(|end| block.sequence >= end) {
                return Ok(());
            }
            if expected.is_some_and(|expected| expected != block.sequence) && it.losses == losses {
                it.losses += 1;
                it.fault(&file, Some(offset), format!("blocks before block {} are lost", block.sequence));
            }
            expected = Some(block.sequence + 1);
            match block.kind {
                BlockKind::Head => match SegmentHead::read(content) {
                    Ok(head) => {
                        has_head = true;
                        it.other_cluster(&file, head.slot_count)?;
                        it.head(&head);
                    }
                    Err(what) => it.fault(&file, Some(offset), what),
                },
                BlockKind::Frames => it.frames(content, &file, offset),
                _ => it.fault(&file, Some(offset), "a block of another kind: left out"),
            }
            Ok(())
        })?;
        // The end of the last segment is what a crash tears. Elsewhere it was there, unless it was given up.
        let complete = expected.is_some() && expected == end;
        if complete && good_end < bytes {
            self.faults.pop();
        } else if !is_last && (good_end < bytes || end.is_some() && !complete) {
            self.losses += 1;
            if good_end == bytes {
                self.fault(&file, Some(bytes), "its end is missing");
            }
        }
        if !has_head {
            self.epoch = self.epoch.max(id.epoch + EPOCHS_RESERVED);
        }
        Ok(())
    }

    fn head(&mut self, head: &SegmentHead) {
        self.epoch = self.epoch.max(head.epochs_to);
        // Heads of a shard come in their order, and the latest says what is needed.
        self.needed.retain(|(epoch, shard), _| *shard != head.id.shard || *epoch > head.id.epoch);
        let own = SegmentId { segment: head.first_needed, ..head.id };
        for first in std::iter::once(own).chain(head.kept.iter().map(|kept| kept.first)) {
            self.needed.insert((first.epoch, first.shard), first);
        }
        self.named.extend(&head.snapshots);
    }

    fn frames(&mut self, content: &[u8], file: &str, offset: u64) {
        for frame in frames(content) {
            match frame {
                Ok(Frame::Truncated(to)) => {
                    if let Some(first) = self.needed.get_mut(&(to.epoch, to.shard)) {
                        first.segment = first.segment.max(to.segment);
                    }
                }
                Ok(Frame::Snapshot(slot)) => _ = self.named.insert(slot),
                Ok(Frame::Void(slot, up_to)) => self.void(slot, up_to),
                Ok(Frame::Batch { batch, .. }) if u32::from(batch.slot().0) >= self.slot_count => {
                    self.fault(file, Some(offset), "a batch of a slot that this cluster does not have");
                }
                Ok(Frame::Batch { follows, unanchored, batch }) => {
                    self.batch((follows, unanchored), batch, file, offset);
                }
                Err(what) => self.fault(file, Some(offset), what),
            }
        }
    }

    /// What was read of a slot up to a revision counts no more.
    fn void(&mut self, slot: SlotId, up_to: Revision) {
        self.named.remove(&slot);
        // As in a recovery: a snapshot of this very revision is that of a slot that came back unchanged, or holds the same.
        if self.snapshots_at.get(&slot) == Some(&up_to) {
            return;
        }
        let newer = |found: &Found| {
            found.revision > up_to || found.partial.as_ref().is_some_and(|(revision, _)| *revision > up_to)
        };
        if self.slots.get(&slot).is_some_and(|found| !newer(found)) {
            self.slots.remove(&slot);
        }
    }

    fn batch(&mut self, (follows, unanchored): (Revision, bool), batch: Batch<'_>, file: &str, offset: u64) {
        let (id, losses) = (batch.slot(), self.losses);
        self.epoch = self.epoch.max(batch.revision().epoch());
        let found = self.found(id);
        if let Some((revision, kept)) = found.partial.take_if(|(revision, _)| *revision < batch.revision()) {
            found.revision = found.revision.max(revision);
            self.restore(id, &kept, &snapshot::file(id), 0);
        }
        let found = self.found(id);
        if batch.revision() <= found.revision {
            found.proved = losses;
            return;
        }
        if follows > found.revision {
            if unanchored && !found.has_hole {
                found.unanchored.push(batch.bytes().to_vec());
                return;
            }
            // Something between is lost. What was left out for want of its snapshot is better than nothing.
            let held = found.revision;
            found.has_hole = true;
            let left_out = std::mem::take(&mut found.unanchored);
            let what =
                format!("slot {} goes on at revision {follows}, and what there is ends at {held}", id.0);
            self.fault(file, Some(offset), what);
            for bytes in left_out {
                if let Ok(batch) = Batch::read(&bytes)
                    && batch.revision() > self.found(id).revision
                {
                    self.apply(id, batch, file, offset);
                }
            }
        }
        self.found(id).proved = losses;
        if batch.revision() > self.found(id).revision {
            self.apply(id, batch, file, offset);
        }
    }

    fn apply(&mut self, id: SlotId, batch: Batch<'_>, file: &str, offset: u64) {
        self.found(id).revision = batch.revision();
        self.restore(id, batch.entry_bytes(), file, offset);
    }

    fn finish(mut self) -> Salvaged {
        let partial: Vec<_> =
            self.slots.iter_mut().filter_map(|(id, found)| Some((*id, found.partial.take()?))).collect();
        for (id, (revision, kept)) in partial {
            let found = self.found(id);
            found.revision = found.revision.max(revision);
            self.restore(id, &kept, &snapshot::file(id), 0);
        }
        let losses = self.losses;
        let slots = self.slots.into_iter().map(|(id, found)| {
            let is_whole = !found.has_hole && found.proved == losses;
            (id, SalvagedSlot { slot: found.slot, revision: found.revision, is_whole })
        });
        Salvaged {
            slots: slots.collect(),
            faults: self.faults,
            epoch: self.epoch,
            nameless: self.nameless,
            slot_count: self.slot_count,
        }
    }
}
