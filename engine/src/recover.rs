//! What a disk holds, read back: the newest snapshot of each slot and the batches behind it.
//!
//! Reading is done before a shard serves, so it pulls from [`Files`] instead of asking by operations. The last block of a
//! stream may be torn by a crash and is then cut off and reported; damage anywhere else, a file that is missing, and a file
//! that does not belong here are refused by name, for a registry that silently forgot a part would be worse than one that
//! does not start.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use crate::{
    batch::{Batch, Entry},
    block::BlockHead,
    change_log::ChangeLogLimits,
    disk_op::{DiskOp, DiskQueue, SECTOR_BYTES},
    id::{DataId, Revision, SlotId},
    journal::{Frame, Kept, SegmentHead, SegmentId},
    slot::Slot,
    snapshot::{self, Scan, SnapshotHead},
};

mod read;
mod salvage;

use read::{good_block_after, read_head, read_snapshot, read_snapshot_head, read_stream};
pub use salvage::{Fault, Salvaged, SalvagedSlot, salvage};

/// A data directory to read from.
pub trait Files {
    /// Every file with its length in bytes. `Err` says what went wrong.
    fn list(&mut self) -> Result<Vec<(String, u64)>, String>;
    /// Fills `bytes` from an offset of a file. `Err` says what went wrong.
    fn read(&mut self, file: &str, offset: u64, bytes: &mut [u8]) -> Result<(), String>;
    /// Hears that a file will be read soon, from its beginning to its end.
    fn soon(&mut self, _file: &str) {}
    /// Hears what recovery does from here on, for whoever wants to tell how long each part takes.
    fn turn_to(&mut self, _work: Work) {}
}

/// What recovery spends its time on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Bytes are fetched.
    Read,
    /// A block is compared with its checksum.
    Checksum,
    /// The records of a block of a snapshot are checked as at every trust boundary.
    Validate,
    /// The entries of a block of a snapshot are stored.
    Apply,
    /// The batches of a block of a journal are checked and stored.
    Tail,
    /// Everything else.
    Rest,
}

/// Why a data directory cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// A file that no data node writes.
    #[error(
        "{0} does not belong into a data directory: move it away, or give the node a directory of its own"
    )]
    Foreign(String),
    /// The system refused to read.
    #[error("cannot read {file}: {what}")]
    Read {
        /// Which file; empty for the directory.
        file: String,
        /// What the system says.
        what: String,
    },
    /// Bytes that are not what was written.
    #[error(
        "{file} is damaged at byte {offset}: {what}; put back a copy of the file, or take what is good by \
         `slotcast check-data DIR --salvage OUT`"
    )]
    Damaged {
        /// Which file.
        file: String,
        /// Where, in bytes.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// A file that has to be there is not.
    #[error(
        "{file} is missing: {what}; put the file back, or take what is good by `slotcast check-data DIR --salvage OUT`"
    )]
    Missing {
        /// Which file.
        file: String,
        /// How that is known.
        what: String,
    },
    /// The files are of another cluster or node.
    #[error("{file} was written with {what}; put the setting back, or move the directory away")]
    Settings {
        /// Which file.
        file: String,
        /// What differs.
        what: String,
    },
    /// No leader epoch is left for another run.
    #[error(
        "all leader epochs are used up: move the directory away, and the sessions will bring what they hold"
    )]
    Exhausted,
}

fn damaged(file: &str, offset: u64, what: impl ToString) -> RecoverError {
    RecoverError::Damaged { file: file.into(), offset, what: what.to_string() }
}

/// Name of the file that says: journals of this epoch and all before it are of no use.
fn marker(epoch: u32) -> String {
    format!("retired-{epoch:08}")
}

fn marker_epoch(name: &str) -> Option<u32> {
    let epoch = name.strip_prefix("retired-")?.parse().ok()?;
    (marker(epoch) == name && epoch <= Revision::EPOCH_MAX).then_some(epoch)
}

/// A segment whose head could be read.
struct Segment {
    id: SegmentId,
    bytes: u64,
    head: SegmentHead,
    block: BlockHead,
}

/// One run of one shard.
struct Stream {
    shards: u32,
    segments: Vec<Segment>,
    /// Blocks that it has to have at least.
    end: u64,
}

/// The files of a data directory, sorted out.
pub struct Layout {
    streams: BTreeMap<(u32, u32), Stream>,
    snapshots: BTreeMap<SlotId, u64>,
    epoch: u32,
    leftovers: Vec<String>,
    markers: Vec<String>,
    /// What was found and is worth a line in the log.
    pub notes: Vec<String>,
}

/// What one shard is to recover.
#[derive(Clone, Debug)]
pub struct RecoverConfig {
    /// Slots of the whole cluster.
    pub slot_count: u32,
    /// The slots that this node leads.
    pub slots: RangeInclusive<u16>,
    /// This shard's number.
    pub shard: u32,
    /// Shards of this node.
    pub shards: u32,
    /// The epoch that the shard opens: [`Layout::next_epoch`] or larger.
    pub epoch: u32,
    /// Makes indexes unpredictable from outside.
    pub seed: u64,
    /// Bounds of the change logs.
    pub change_log: ChangeLogLimits,
}

/// One slot as it was recovered.
pub struct RecoveredSlot {
    /// The slot, in its new epoch.
    pub slot: Slot,
    /// The revision up to which the disk had it.
    pub revision: Revision,
    /// The first journal file that is needed beside its snapshot.
    pub needs: Option<SegmentId>,
    /// Whether it has a snapshot.
    pub has_snapshot: bool,
}

/// What one shard recovered.
pub struct Recovered {
    /// Every slot that the disk knows of.
    pub slots: BTreeMap<SlotId, RecoveredSlot>,
    /// The streams that are still needed.
    pub kept: Vec<Kept>,
    /// The journal files of those streams, with their bytes.
    pub segments: BTreeMap<SegmentId, u64>,
    /// Slots of which nothing counts any more but a snapshot is still there, to be deleted.
    pub stale: BTreeSet<SlotId>,
    /// Counts.
    pub report: Report,
}

/// What recovery did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Snapshots read.
    pub snapshots: u64,
    /// Entries of snapshots applied.
    pub entries: u64,
    /// Batches applied.
    pub batches: u64,
    /// Batches left out because the snapshot that they follow was never finished.
    pub unanchored: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Ends of journals that a crash tore: file, offset, bytes cut off.
    pub torn: Vec<(String, u64, u64)>,
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

    fn read_heads(
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

    /// Leaves out what later heads and truncations say is not needed; refuses when what they need is not there.
    fn drop_unneeded(&mut self, files: &mut dyn Files) -> Result<(), RecoverError> {
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
            let missed = |first: &SegmentId| {
                let stream = self.streams.get(&(first.epoch, first.shard));
                stream.and_then(|it| it.segments.first()).is_none_or(|it| it.id.segment > first.segment)
            };
            if needed.values().any(missed) {
                let mut truncations = Vec::new();
                let stream = &self.streams[&(*epoch, *shard)];
                read_stream(files, stream, &mut |frame, _| {
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
        for ((epoch, shard), first) in &needed {
            let held = self.streams.get(&(*epoch, *shard)).and_then(|it| it.segments.first());
            if first.segment != u32::MAX && held.is_none_or(|held| held.id.segment > first.segment) {
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

/// Slots of which something is not there, in the order in which that was noticed.
#[derive(Default)]
struct Broken {
    slots: BTreeMap<SlotId, (usize, RecoverError)>,
    noticed: usize,
}

impl Broken {
    fn note(&mut self, slot: SlotId, error: RecoverError) {
        self.noticed += 1;
        self.slots.entry(slot).or_insert((self.noticed, error));
    }

    fn has(&self, slot: SlotId) -> bool {
        self.slots.contains_key(&slot)
    }

    /// What was noticed first is the error.
    fn first(&self) -> Result<(), RecoverError> {
        let first = self.slots.values().min_by_key(|(noticed, _)| *noticed);
        first.map_or(Ok(()), |(_, error)| Err(error.clone()))
    }
}

struct Loading {
    slot: Slot,
    revision: Revision,
    needs: Option<SegmentId>,
}

/// Slots as their snapshots have them, before the journals are read.
#[derive(Default)]
pub struct Loaded {
    slots: BTreeMap<SlotId, Loading>,
    report: Report,
}

impl Loaded {
    /// Takes over what somebody else has loaded.
    pub fn join(&mut self, other: Loaded) {
        self.slots.extend(other.slots);
        self.report.snapshots += other.report.snapshots;
        self.report.entries += other.report.entries;
        self.report.bytes += other.report.bytes;
    }
}

/// Reads everything of one shard's slots. `progress` hears of bytes as they are read.
pub fn recover(
    layout: &Layout,
    files: &mut dyn Files,
    config: &RecoverConfig,
    progress: &mut dyn FnMut(u64),
) -> Result<Recovered, RecoverError> {
    recover_slots(layout, files, config, Epochs::OfTheRun, progress)
}

/// Like [`recover`], for a node whose leader epochs come from a slot table: each slot stays at the revision up to which the
/// disk has it. `config.epoch` numbers the journal of this run and says nothing about slots.
pub fn recover_clustered(
    layout: &Layout,
    files: &mut dyn Files,
    config: &RecoverConfig,
    progress: &mut dyn FnMut(u64),
) -> Result<Recovered, RecoverError> {
    recover_slots(layout, files, config, Epochs::OfTheTable, progress)
}

/// Where leader epochs come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Epochs {
    /// Each run opens its own, which its journal reserves.
    OfTheRun,
    /// A slot table.
    OfTheTable,
}

fn recover_slots(
    layout: &Layout,
    files: &mut dyn Files,
    config: &RecoverConfig,
    epochs: Epochs,
    progress: &mut dyn FnMut(u64),
) -> Result<Recovered, RecoverError> {
    let mut loaded = Loaded::default();
    let snapshots = layout.snapshots(config)?;
    for (at, slot) in snapshots.iter().enumerate() {
        if let Some(next) = snapshots.get(at + 1) {
            layout.soon(files, *next);
        }
        load(layout, files, config, *slot, &mut loaded, progress)?;
    }
    finish(layout, files, (config, epochs), loaded, progress)
}

/// The first half of a recovery for one of [`Layout::snapshots`]: reads it into `loaded`. Each may be read by somebody else.
pub fn load(
    layout: &Layout,
    files: &mut dyn Files,
    config: &RecoverConfig,
    slot: SlotId,
    loaded: &mut Loaded,
    progress: &mut dyn FnMut(u64),
) -> Result<(), RecoverError> {
    let bytes = layout.snapshots.get(&slot).copied().unwrap_or(0);
    let loading = read_snapshot(files, config, slot, bytes, &mut loaded.report)?;
    files.turn_to(Work::Rest);
    loaded.slots.insert(slot, loading);
    progress(bytes);
    Ok(())
}

/// The second half: reads the journals, once all snapshots of the shard are loaded.
pub fn finish(
    layout: &Layout,
    files: &mut dyn Files,
    (config, epochs): (&RecoverConfig, Epochs),
    loaded: Loaded,
    progress: &mut dyn FnMut(u64),
) -> Result<Recovered, RecoverError> {
    assert!(config.epoch > layout.epoch, "an epoch that no run here has opened");
    let Loaded { mut slots, mut report } = loaded;
    let snapshots_at: BTreeMap<SlotId, Revision> =
        slots.iter().map(|(slot, loading)| (*slot, loading.revision)).collect();
    // What cannot be read whole. Where a slot was let go of behind that, nothing of it is needed.
    let mut broken = Broken::default();
    let mine = |slot: &SlotId| slot.shard(config.shards) == config.shard;
    let is_missed = |slot: &SlotId| mine(slot) && !layout.snapshots.contains_key(slot);
    let missed = |slot: SlotId, what| RecoverError::Missing { file: snapshot::file(slot), what };
    let mut stale = BTreeSet::new();
    let (mut kept, mut segments) = (Vec::new(), BTreeMap::new());
    for (key, stream) in &layout.streams {
        let same = stream.shards == config.shards;
        if same && key.1 != config.shard {
            continue;
        }
        if let Some(segment) = stream.segments.last() {
            let what = format!("{} names it", segment.id.file());
            let named = segment.head.snapshots.iter().filter(|slot| is_missed(slot));
            named.for_each(|slot| broken.note(*slot, missed(*slot, what.clone())));
        }
        let end = read_stream(files, stream, &mut |frame, at| match frame {
            Frame::Batch { follows, unanchored, batch } => {
                if broken.has(batch.slot()) {
                    return Ok(());
                }
                let applied = apply((config, epochs), &mut slots, follows, batch, at)?;
                if !applied && !unanchored {
                    broken.note(batch.slot(), gap(&slots, batch.slot(), follows, at));
                    return Ok(());
                }
                report.batches += u64::from(applied);
                report.unanchored += u64::from(!applied);
                Ok(())
            }
            Frame::Truncated(_) => Ok(()),
            Frame::Snapshot(slot) => {
                if is_missed(&slot) {
                    let what = format!("{} names it (byte {})", at.0.file(), at.1);
                    broken.note(slot, missed(slot, what));
                }
                Ok(())
            }
            Frame::Void(slot, up_to) => {
                broken.slots.remove(&slot);
                // A slot that came back unchanged has a snapshot of the very revision that it was let go of at. It is no leftover;
                // and one that is holds the same.
                if snapshots_at.get(&slot) == Some(&up_to) {
                    return Ok(());
                }
                if slots.get(&slot).is_some_and(|loading| loading.revision <= up_to) {
                    slots.remove(&slot);
                    stale.extend(layout.snapshots.contains_key(&slot).then_some(slot));
                }
                Ok(())
            }
        });
        // What was noticed first is told.
        let end = end.or_else(|error| broken.first().and(Err(error)))?;
        report.torn.extend(end.torn);
        report.bytes += end.bytes;
        let end = end.blocks;
        let bytes: u64 = stream.segments.iter().map(|segment| segment.bytes).sum();
        progress(bytes);
        if same && let Some(first) = stream.segments.first() {
            kept.push(Kept { first: first.id, end });
            segments.extend(stream.segments.iter().map(|segment| (segment.id, segment.bytes)));
        }
    }
    broken.first()?;
    files.turn_to(Work::Rest);
    let revision = Revision::open(config.epoch);
    // Of some, there are but batches whose snapshot was never finished.
    let slots = slots
        .into_iter()
        .filter(|(_, loading)| epochs == Epochs::OfTheRun || loading.revision > Revision::ZERO)
        .map(|(id, mut loading)| {
            loading.slot.restored(if epochs == Epochs::OfTheRun { revision } else { loading.revision });
            let found = RecoveredSlot {
                slot: loading.slot,
                revision: loading.revision,
                needs: loading.needs,
                has_snapshot: layout.snapshots.contains_key(&id) && !stale.contains(&id),
            };
            (id, found)
        })
        .collect();
    Ok(Recovered { slots, kept, segments, stale, report })
}

/// Applies a batch to its slot. `false`: it follows a revision that is not there.
fn apply(
    (config, epochs): (&RecoverConfig, Epochs),
    slots: &mut BTreeMap<SlotId, Loading>,
    follows: Revision,
    batch: Batch<'_>,
    (segment, offset): (SegmentId, u64),
) -> Result<bool, RecoverError> {
    let id = batch.slot();
    if !config.slots.contains(&id.0) {
        let what = format!("slot {} led by this node, which leads it no more", id.0);
        return Err(RecoverError::Settings { file: segment.file(), what });
    }
    if id.shard(config.shards) != config.shard {
        return Ok(true);
    }
    let loading = slots.entry(id).or_insert_with(|| Loading::empty(config, id));
    if batch.revision() <= loading.revision {
        return Ok(true);
    }
    if follows > loading.revision {
        return Ok(false);
    }
    if epochs == Epochs::OfTheRun && batch.revision().epoch() >= config.epoch {
        let what = format!("revision {} is of an epoch that no file reserves", batch.revision());
        return Err(damaged(&segment.file(), offset, what));
    }
    for entry in batch.entries() {
        let entry = entry.map_err(|error| damaged(&segment.file(), offset, error))?;
        loading.restore(config, entry).map_err(|what| damaged(&segment.file(), offset, what))?;
    }
    loading.revision = batch.revision();
    loading.needs.get_or_insert(segment);
    Ok(true)
}

fn gap(
    slots: &BTreeMap<SlotId, Loading>,
    slot: SlotId,
    follows: Revision,
    (segment, offset): (SegmentId, u64),
) -> RecoverError {
    let held = slots.get(&slot).map_or(Revision::ZERO, |loading| loading.revision);
    let what = format!(
        "{} goes on with slot {} at revision {follows} (byte {offset}), and what there is of it ends at {held}",
        segment.file(),
        slot.0
    );
    RecoverError::Missing { file: format!("a journal file before it, or {}", snapshot::file(slot)), what }
}

impl Loading {
    fn empty(config: &RecoverConfig, id: SlotId) -> Self {
        let slot = Slot::open(id, 0, config.shards, config.seed, config.change_log);
        Self { slot, revision: Revision::ZERO, needs: None }
    }

    /// Applies an entry after all checks of a trust boundary.
    fn restore(&mut self, config: &RecoverConfig, entry: Entry<'_>) -> Result<(), String> {
        validate(config, self.slot.id(), entry)?;
        self.slot.restore(entry);
        Ok(())
    }
}

/// All checks of a trust boundary.
fn validate(config: &RecoverConfig, slot: SlotId, entry: Entry<'_>) -> Result<(), String> {
    if entry.change.datum.slot(config.slot_count) != slot {
        return Err("an entry of another slot".into());
    }
    if entry.name().is_some_and(|name| DataId::key_of_canonical(name) != Ok(entry.change.datum)) {
        return Err("a name that does not belong to its key".into());
    }
    match entry.record() {
        Some(record) => record.validate().map(|_| ()).map_err(|error| error.to_string()),
        None => Ok(()),
    }
}
