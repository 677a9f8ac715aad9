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
    change_log::ChangeLogLimits,
    id::{DataId, Revision, SlotId},
    journal::{Frame, Kept, SegmentId},
    slot::Slot,
    snapshot,
};

mod layout;
mod read;
mod refusal;
mod salvage;

pub use layout::Layout;
use layout::{Segment, Stream, marker_epoch};
use read::{read_head, read_snapshot, read_stream};
pub use refusal::RecoverError;
use refusal::damaged;
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
                if batch.slot().shard(stream.shards) != key.1 {
                    let what = format!("a batch of slot {}, which another shard holds", batch.slot().0);
                    return Err(damaged(&at.0.file(), at.1, what));
                }
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
