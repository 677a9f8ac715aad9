//! What a data directory consists of: the streams of journal segments and the snapshots that they name.

use std::collections::BTreeMap;

use super::{
    Files, RecoverConfig, RecoverError, Recovered, damaged,
    read::{good_block_after, read_head, read_segments, read_snapshot_head},
};
use crate::{
    block::BlockHead,
    disk_op::{DiskOp, DiskQueue, SECTOR_BYTES},
    id::{Revision, SlotId},
    journal::{Frame, SegmentHead, SegmentId},
    slot::Slot,
    snapshot::{self, Scan, SnapshotHead},
};

/// Name of the file that says: journals of this epoch and all before it are of no use.
pub(super) fn marker(epoch: u32) -> String {
    format!("retired-{epoch:08}")
}

pub(super) fn marker_epoch(name: &str) -> Option<u32> {
    let epoch = name.strip_prefix("retired-")?.parse().ok()?;
    (marker(epoch) == name && epoch <= Revision::EPOCH_MAX).then_some(epoch)
}

/// A segment whose head could be read.
pub(super) struct Segment {
    pub(super) id: SegmentId,
    pub(super) bytes: u64,
    pub(super) head: SegmentHead,
    pub(super) block: BlockHead,
}

/// One run of one shard.
pub(super) struct Stream {
    pub(super) shards: u32,
    pub(super) segments: Vec<Segment>,
    /// Blocks that it has to have at least.
    pub(super) end: u64,
}

/// The files of a data directory, sorted out.
pub struct Layout {
    pub(super) streams: BTreeMap<(u32, u32), Stream>,
    pub(super) snapshots: BTreeMap<SlotId, u64>,
    pub(super) epoch: u32,
    pub(super) leftovers: Vec<String>,
    pub(super) markers: Vec<String>,
    /// What was found and is worth a line in the log.
    pub notes: Vec<String>,
}

impl Layout {
    /// Sorts out a directory: reads names and heads of journals. Files named in `ignore` are not looked at.
    pub fn read(files: &mut dyn Files, slot_count: u32, ignore: &[&str]) -> Result<Self, RecoverError> {
        let mut layout = Self {
            streams: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            epoch: 0,
            leftovers: Vec::new(),
            markers: Vec::new(),
            notes: Vec::new(),
        };
        let listed = files.list().map_err(|what| RecoverError::Read { file: String::new(), what })?;
        let mut segments: BTreeMap<SegmentId, u64> = BTreeMap::new();
        for (name, bytes) in listed {
            if ignore.contains(&name.as_str()) {
                continue;
            }
            match (SegmentId::from_file(&name), snapshot::from_file(&name)) {
                (Some(id), _) => _ = segments.insert(id, bytes),
                (_, Some((slot, true))) => _ = layout.snapshots.insert(slot, bytes),
                (_, Some((_, false))) => layout.leftovers.push(name),
                _ => match marker_epoch(&name) {
                    Some(epoch) => {
                        layout.epoch = layout.epoch.max(epoch);
                        layout.markers.push(name);
                    }
                    None => return Err(RecoverError::Foreign(name)),
                },
            }
        }
        if !layout.markers.is_empty() {
            let (obsolete, rest) = segments.into_iter().partition(|(id, _)| id.epoch <= layout.epoch);
            segments = rest;
            let obsolete: BTreeMap<SegmentId, u64> = obsolete;
            layout.leftovers.extend(obsolete.keys().map(|id| id.file()));
        }
        for (slot, bytes) in &layout.snapshots {
            let head = read_snapshot_head(files, *slot, *bytes, slot_count)?;
            layout.epoch = layout.epoch.max(head.epochs_to).max(head.revision.epoch());
        }
        layout.read_heads(files, slot_count, &segments)?;
        if layout.epoch >= Revision::EPOCH_MAX {
            return Err(RecoverError::Exhausted);
        }
        layout.drop_unneeded(files)?;
        for stream in layout.streams.values() {
            for pair in stream.segments.windows(2) {
                if pair[1].id.segment != pair[0].id.segment + 1 {
                    let lost = SegmentId { segment: pair[0].id.segment + 1, ..pair[0].id };
                    let what = format!("{} and {} are there", pair[0].id.file(), pair[1].id.file());
                    return Err(RecoverError::Missing { file: lost.file(), what });
                }
            }
        }
        Ok(layout)
    }

    /// Whether there is nothing to recover.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty() && self.snapshots.is_empty()
    }

    /// An epoch larger than any that was opened by a run that wrote here.
    pub fn next_epoch(&self) -> u32 {
        self.epoch + 1
    }

    /// The slots of a shard that have a snapshot. Refused when the node leads one of them no more.
    pub fn snapshots(&self, config: &RecoverConfig) -> Result<Vec<SlotId>, RecoverError> {
        if let Some(slot) = self.snapshots.keys().find(|slot| !config.slots.contains(&slot.0)) {
            let what = format!("slot {} led by this node, which leads it no more", slot.0);
            return Err(RecoverError::Settings { file: snapshot::file(*slot), what });
        }
        let mine = |slot: &SlotId| slot.shard(config.shards) == config.shard;
        Ok(self.snapshots.keys().copied().filter(mine).collect())
    }

    /// Tells `files` that the snapshot of a slot is read next.
    pub fn soon(&self, files: &mut dyn Files, slot: SlotId) {
        files.soon(&snapshot::file(slot));
    }

    /// Bytes that recovery will read, counted once.
    pub fn bytes(&self) -> u64 {
        let journals = self.streams.values().flat_map(|stream| &stream.segments);
        self.snapshots.values().sum::<u64>() + journals.map(|segment| segment.bytes).sum::<u64>()
    }

    /// Whether a journal was written with another shard count: then every shard has to [`Layout::reshard`], and when all have,
    /// the journals are to be retired.
    pub fn is_resharded(&self, shards: u32) -> bool {
        self.streams.values().any(|stream| stream.shards != shards)
    }

    /// Asks for the deletion of what is of no use any more. To be done before the node goes on.
    pub fn clean_up(&self, disk: &mut DiskQueue) {
        self.leftovers.iter().for_each(|file| _ = disk.push(DiskOp::Delete { file: file.clone() }));
        disk.push(DiskOp::SyncNames);
        self.markers.iter().for_each(|file| _ = disk.push(DiskOp::Delete { file: file.clone() }));
    }

    /// Asks for the deletion of all journals: every slot has a snapshot that needs none of them. A marker says so first, for
    /// a part of the journals alone would look like a loss.
    pub fn retire(&self, disk: &mut DiskQueue) {
        let marker = marker(self.epoch);
        disk.push(DiskOp::Create { file: marker.clone() });
        disk.push(DiskOp::SyncNames);
        for segment in self.streams.values().flat_map(|stream| &stream.segments) {
            disk.push(DiskOp::Delete { file: segment.id.file() });
        }
        disk.push(DiskOp::SyncNames);
        disk.push(DiskOp::Delete { file: marker });
        disk.push(DiskOp::SyncNames);
    }

    /// Asks for what has to be done before a node of another shard count goes on, after the slots of one of its shards were
    /// recovered: a snapshot of each. When all shards have done so, the journals are to be [retired](Layout::retire), and
    /// the directory is to be read again.
    pub fn reshard(&self, config: &RecoverConfig, recovered: &Recovered, disk: &mut DiskQueue) {
        let head = |slot, revision| SnapshotHead {
            slot_count: config.slot_count,
            shards: config.shards,
            slot,
            revision,
            epochs_to: self.epoch,
        };
        for (id, found) in &recovered.slots {
            Scan::whole(head(*id, found.revision), &found.slot, disk);
        }
        let first = SlotId(*config.slots.start());
        if first.shard(config.shards) == config.shard && !recovered.slots.contains_key(&first) {
            // So that the epochs are remembered though there is nothing else to remember.
            let slot = Slot::open(first, 0, config.shards, config.seed, config.change_log);
            Scan::whole(head(first, Revision::ZERO), &slot, disk);
        }
        disk.push(DiskOp::SyncNames);
    }

    pub(super) fn read_heads(
        &mut self,
        files: &mut dyn Files,
        slot_count: u32,
        segments: &BTreeMap<SegmentId, u64>,
    ) -> Result<(), RecoverError> {
        for (id, bytes) in segments {
            self.epoch = self.epoch.max(id.epoch);
            let file = id.file();
            let later = segments.keys().any(|other| {
                (other.epoch, other.shard) == (id.epoch, id.shard) && other.segment > id.segment
            });
            let (block, head) = match read_head(files, *id, *bytes) {
                Ok(found) => found,
                Err(RecoverError::Damaged { offset, what, .. }) => {
                    let rest = good_block_after(files, *id, SECTOR_BYTES as u64, *bytes, 0)?;
                    if later || rest.is_some() {
                        return Err(damaged(&file, offset, what));
                    }
                    self.notes.push(format!("{file} was begun and never finished: it is removed"));
                    self.leftovers.push(file);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if head.slot_count != slot_count {
                let what = format!("slot_count = {}, not {slot_count}", head.slot_count);
                return Err(RecoverError::Settings { file, what });
            }
            self.epoch = self.epoch.max(head.epochs_to);
            let stream = self.streams.entry((id.epoch, id.shard)).or_insert(Stream {
                shards: head.shards,
                segments: Vec::new(),
                end: 0,
            });
            if stream.shards != head.shards || head.id != *id {
                return Err(damaged(&file, 0, "the head is of another file"));
            }
            stream.segments.push(Segment { id: *id, bytes: *bytes, head, block });
        }
        Ok(())
    }

    /// Whether a segment is not there though one behind it, or nothing of its stream, is. Segments before it say nothing: their
    /// deletion may have been lost in a crash.
    fn lacks(&self, first: &SegmentId) -> bool {
        let Some(stream) = self.streams.get(&(first.epoch, first.shard)) else { return true };
        let held = stream.segments.iter().map(|it| it.id.segment).find(|segment| *segment >= first.segment);
        held.is_some_and(|held| held > first.segment)
    }

    /// Leaves out what later heads and truncations say is not needed; refuses when what they need is not there.
    pub(super) fn drop_unneeded(&mut self, files: &mut dyn Files) -> Result<(), RecoverError> {
        let Some(last) = self.streams.values().next_back() else { return Ok(()) };
        let shards = last.shards;
        let mut needed: BTreeMap<(u32, u32), SegmentId> = BTreeMap::new();
        let newest: BTreeMap<u32, u32> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.shards == shards)
            .map(|((epoch, shard), _)| (*shard, *epoch))
            .collect();
        let since = self.streams.iter().filter(|(_, stream)| stream.shards == shards).map(|(key, _)| key.0);
        let since = since.min().unwrap_or(0);
        for (shard, epoch) in &newest {
            let Some(stream) = self.streams.get(&(*epoch, *shard)) else { continue };
            let Some(segment) = stream.segments.last() else { continue };
            let head = segment.head.clone();
            let own = SegmentId { segment: head.first_needed, ..head.id };
            needed.insert((*epoch, *shard), own);
            for kept in &head.kept {
                needed.insert((kept.first.epoch, kept.first.shard), kept.first);
                if let Some(stream) = self.streams.get_mut(&(kept.first.epoch, kept.first.shard)) {
                    stream.end = kept.end;
                }
            }
            // A truncation since that head is told by a frame; it is looked for only where a file is missed.
            if needed.values().any(|first| self.lacks(first)) {
                let mut truncations = Vec::new();
                let held = &self.streams[&(*epoch, *shard)].segments;
                // What stands before a hole should be gone.
                let is_hole = |pair: &[Segment]| pair[1].id.segment != pair[0].id.segment + 1;
                let from = held.windows(2).rposition(is_hole).map_or(0, |at| at + 1);
                read_segments(files, &held[from..], &mut |frame, _| {
                    if let Frame::Truncated(to) = frame {
                        truncations.push(to);
                    }
                    Ok(())
                })?;
                for to in truncations {
                    if let Some(first) = needed.get_mut(&(to.epoch, to.shard)) {
                        first.segment = first.segment.max(to.segment);
                    }
                }
            }
        }
        for first in needed.values() {
            if first.segment != u32::MAX && self.lacks(first) {
                let what = "the journal goes on behind it".to_string();
                return Err(RecoverError::Missing { file: first.file(), what });
            }
        }
        let leftovers = &mut self.leftovers;
        self.streams.retain(|key, stream| {
            let first = match needed.get(key) {
                Some(first) => first.segment,
                // Not named by the newest head of its shard, or from before a change of the shard count.
                None if stream.shards == shards || key.0 < since => u32::MAX,
                None => 0,
            };
            stream.segments.retain(|segment| {
                let keep = segment.id.segment >= first;
                if !keep {
                    leftovers.push(segment.id.file());
                }
                keep
            });
            !stream.segments.is_empty()
        });
        Ok(())
    }
}
