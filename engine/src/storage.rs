//! The durable side of one shard: its journal, its slots' snapshots, and what of both is still needed.
//!
//! Journaling never delays a push: batches are appended as they are sealed, and what waits is bounded. When the bound is
//! passed, or the disk has failed, ephemeral batches are not journaled, and their slots have a *gap*: nothing more of
//! them is journaled until a snapshot of the slot is begun. What a recovery finds of such a slot is an older, whole state.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    disk_op::{DiskDone, DiskError, DiskOp, DiskQueue, DiskRequest},
    id::{Nanos, Revision, SlotId},
    journal::{Fate, Journal, JournalConfig, JournalState, SegmentId},
    recover::Recovered,
    slots::Slots,
    snapshot::{Phase, Scan, SnapshotHead, temporary},
};

mod void;

use void::Void;

/// Operations under way at once: more are kept back.
pub const OPERATIONS_MAX: usize = 64;

/// What the durable side is told at its start.
#[derive(Debug, Clone)]
pub struct StorageConfig {
    /// The journal.
    pub journal: JournalConfig,
    /// Bytes per second that snapshots are written with.
    pub snapshot_rate: u64,
    /// The same for slots that were taken over as a whole from their leader, if larger: until a snapshot stands for such a slot
    /// nothing of it is durable here, and it does not count as in sync.
    pub copied_snapshot_rate: u64,
    /// Bytes that a snapshot's scan reads at once, about.
    pub snapshot_step: usize,
    /// Bytes of journal files above which the oldest slots are snapshotted, so that files can go.
    pub journal_bytes_max: u64,
}

/// Where the durable side stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StorageState {
    /// The run's first journal file is not durable yet; nothing is told to anybody.
    Opening,
    /// Everything is kept.
    Whole,
    /// The disk works, and some slots wait for a snapshot that closes their gap.
    Catching,
    /// The disk has failed: persistent publishers are refused, everything else goes on.
    Failed,
}

impl StorageState {
    /// A short stable label.
    pub fn label(self) -> &'static str {
        match self {
            StorageState::Opening => "opening",
            StorageState::Whole => "whole",
            StorageState::Catching => "catching_up",
            StorageState::Failed => "failed",
        }
    }
}

/// Counts since the start, and levels.
#[derive(Clone, Copy, Debug, Default)]
pub struct StorageStats {
    /// Changes journaled.
    pub journaled: u64,
    /// Changes that were not journaled because the disk was behind or had failed.
    pub not_journaled: u64,
    /// Blocks written.
    pub blocks: u64,
    /// Bytes of the journal written.
    pub journal_bytes: u64,
    /// Bytes waiting for the disk.
    pub waiting_bytes: usize,
    /// Batches that are not durable yet.
    pub waiting_batches: u64,
    /// Bytes of journal files that are kept.
    pub kept_bytes: u64,
    /// Snapshots finished.
    pub snapshots: u64,
    /// Bytes of snapshots written.
    pub snapshot_bytes: u64,
    /// Slots that wait for a snapshot that closes their gap.
    pub gaps: usize,
    /// Times the disk failed.
    pub failures: u64,
}

#[derive(Default)]
struct SlotDisk {
    /// The revision that the next frame follows.
    last: Revision,
    /// The first journal file that is needed.
    needs: Option<SegmentId>,
    /// The first journal file with a batch since the scan under way began.
    since_scan: Option<SegmentId>,
    /// Batches are missing in the journal.
    gap: bool,
    /// The last frame.
    frame: u64,
    /// The last frame with a change of a persistent registration.
    persistent: u64,
}

/// Journal and snapshots of one shard.
pub struct Storage {
    config: StorageConfig,
    journal: Journal,
    disk: DiskQueue,
    slots: BTreeMap<SlotId, SlotDisk>,
    needs: BTreeSet<(SegmentId, SlotId)>,
    gaps: BTreeSet<SlotId>,
    /// Of these, the ones that were taken over as a whole.
    copied: BTreeSet<SlotId>,
    scan: Option<Scan>,
    writes_under_way: BTreeSet<u64>,
    allowance: u64,
    allowed_at: Option<Nanos>,
    truncation: Option<(SegmentId, u64)>,
    /// Slots that were let go of, until the disk says so.
    void: BTreeMap<SlotId, Void>,
    old_files: BTreeMap<SegmentId, u64>,
    last_error: Option<DiskError>,
    stats: StorageStats,
}

impl Storage {
    /// Goes on from what was recovered, in the stream of a run that opened `epoch`.
    pub fn new(config: StorageConfig, epoch: u32, recovered: &Recovered) -> Self {
        let snapshots = recovered.slots.iter().filter(|(_, found)| found.has_snapshot).map(|(id, _)| *id);
        let journal =
            Journal::new(config.journal.clone(), epoch, recovered.kept.clone(), snapshots.collect());
        let mut storage = Self {
            config,
            journal,
            disk: DiskQueue::default(),
            slots: BTreeMap::new(),
            needs: BTreeSet::new(),
            gaps: BTreeSet::new(),
            copied: BTreeSet::new(),
            scan: None,
            writes_under_way: BTreeSet::new(),
            allowance: 0,
            allowed_at: None,
            truncation: None,
            void: BTreeMap::new(),
            old_files: recovered.segments.clone(),
            last_error: None,
            stats: StorageStats::default(),
        };
        for (id, found) in &recovered.slots {
            let slot = SlotDisk { last: found.revision, needs: found.needs, ..SlotDisk::default() };
            storage.needs.extend(slot.needs.map(|segment| (segment, *id)));
            storage.slots.insert(*id, slot);
        }
        storage.delete_snapshots(recovered.stale.iter().copied());
        storage
    }

    /// Where it stands.
    pub fn state(&self) -> StorageState {
        match self.journal.state() {
            JournalState::Opening => StorageState::Opening,
            JournalState::Failed(_) => StorageState::Failed,
            JournalState::Open if self.gaps.is_empty() => StorageState::Whole,
            JournalState::Open => StorageState::Catching,
        }
    }

    /// Whether revisions may be told: the epochs that they are of are reserved on the disk, or the disk has failed since.
    pub fn is_open(&self) -> bool {
        match self.journal.state() {
            JournalState::Opening => false,
            JournalState::Open => !self.journal.lacks_epoch(),
            JournalState::Failed(_) => self.journal.has_opened(),
        }
    }

    /// Why the disk failed last.
    pub fn last_error(&self) -> Option<&DiskError> {
        self.last_error.as_ref()
    }

    /// Counts.
    pub fn stats(&self) -> StorageStats {
        let (blocks, journal_bytes) = self.journal.written();
        StorageStats {
            blocks,
            journal_bytes,
            waiting_bytes: self.journal.waiting_bytes(),
            waiting_batches: self.journal.waiting_frames(),
            kept_bytes: self.kept_bytes(),
            gaps: self.gaps.len(),
            ..self.stats
        }
    }

    /// Whether a persistent change of the slot can be made durable now.
    pub fn takes_persistent(&self, slot: SlotId) -> bool {
        !self.is_failed() && !self.gaps.contains(&slot) && self.journal.has_room()
    }

    /// The frame that makes every change of the slot's persistent registrations durable up to now. `None`: the slot has a
    /// gap, so no frame does.
    pub fn persistent_frame_of(&self, slot: SlotId) -> Option<u64> {
        let frame = self.slots.get(&slot).map_or(0, |slot| slot.persistent);
        (!self.gaps.contains(&slot)).then_some(frame)
    }

    /// The leader's epoch has grown.
    pub fn raise_epoch(&mut self, epoch: u32) {
        self.journal.raise_epoch(epoch);
    }

    /// Takes the batch that brought the slot to `revision`.
    pub fn append(
        &mut self,
        id: SlotId,
        revision: Revision,
        batch: &[u8],
        changes: usize,
        persistent: bool,
        now: Nanos,
    ) {
        self.write_void_of(id, now);
        let scanned = self.scan.as_ref().is_some_and(|scan| scan.slot == id);
        let failed = matches!(self.journal.state(), JournalState::Failed(_));
        let slot = self.slots.entry(id).or_default();
        let full = !persistent && !self.journal.has_room();
        if failed || full || slot.gap && !scanned {
            slot.gap = true;
            self.gaps.insert(id);
            self.stats.not_journaled += changes as u64;
            if scanned {
                self.abandon_scan();
            }
            return;
        }
        let position = self.journal.position();
        slot.frame = self.journal.append(batch, changes, (slot.last, slot.gap), persistent, now);
        slot.last = revision;
        if persistent {
            slot.persistent = slot.frame;
        }
        self.stats.journaled += changes as u64;
        if slot.needs.is_none() {
            slot.needs = Some(position);
            self.needs.insert((position, id));
        }
        if scanned {
            slot.since_scan.get_or_insert(position);
        }
    }

    /// The frame that makes everything of a slot durable up to now.
    pub fn frame_of(&self, slot: SlotId) -> u64 {
        self.slots.get(&slot).map_or(0, |slot| slot.frame)
    }

    /// Whether batches of the slot are missing in the journal, and no snapshot stands for them yet.
    pub fn has_gap(&self, slot: SlotId) -> bool {
        self.gaps.contains(&slot)
    }

    /// The slot of which a snapshot is being written.
    pub fn scanning(&self) -> Option<SlotId> {
        self.scan.as_ref().map(|scan| scan.slot)
    }

    /// What became of a frame.
    pub fn fate(&self, frame: u64) -> Fate {
        self.journal.fate(frame)
    }

    /// Does what is due at the end of a turn, when every slot is sealed: a block, a step of a snapshot, a truncation.
    pub(crate) fn turn(&mut self, now: Nanos, slots: &Slots) {
        self.earn(now);
        if self.journal.state() == JournalState::Open {
            self.void_turn(now);
            self.snapshot(slots);
            self.truncate(now);
        }
        // Somebody waits for the snapshot of a copied slot, and that for what was journaled meanwhile.
        let waits = |scan: &Scan| matches!(scan.phase, Phase::Journal(_)) && self.copied.contains(&scan.slot);
        let at_once = self.scan.as_ref().is_some_and(waits);
        self.journal.flush(now, at_once, &mut self.disk);
    }

    /// Writes everything that waits, whatever the interval says. Snapshots are left as they are.
    pub fn flush(&mut self, now: Nanos) {
        if !self.is_failed() {
            self.journal.flush(now, true, &mut self.disk);
        }
    }

    /// Whether everything that was taken is durable or lost, and no operation is under way.
    pub fn is_idle(&self) -> bool {
        let failed = matches!(self.journal.state(), JournalState::Failed(_));
        self.disk.is_idle() && (failed || self.journal.is_idle())
    }

    /// The next operation to carry out.
    pub fn poll(&mut self) -> Option<DiskRequest> {
        self.disk.take(OPERATIONS_MAX)
    }

    /// When the end of a turn has something to do although nothing happens.
    pub fn wake_at(&self) -> Option<Nanos> {
        let block = self.journal.due_at();
        let scanning = self.scan.as_ref().is_some_and(|scan| scan.phase == Phase::Scanning);
        let step = (scanning && self.writes_under_way.len() < 2).then(|| {
            let lacking = (self.config.snapshot_step as u64).saturating_sub(self.allowance);
            let nanos = u128::from(lacking) * u128::from(Nanos::SECOND) / u128::from(self.rate());
            self.allowed_at.unwrap_or_default().after(nanos as u64 + 1)
        });
        block.into_iter().chain(step).min()
    }

    /// Hears what became of an operation.
    pub fn handle(&mut self, done: &DiskDone, now: Nanos) {
        self.disk.done();
        self.writes_under_way.remove(&done.id.0);
        let failed = self.journal.handle(done, now);
        let of_scan = self.scan.as_ref().is_some_and(|scan| done.id >= scan.first);
        let error = match (failed, &done.result) {
            (Some(error), _) => Some(error),
            // An operation of the scan, or of nobody any more: only the former counts.
            (None, Err(error)) if of_scan && !self.is_failed() => Some(error.clone()),
            _ => None,
        };
        if let Some(error) = error {
            self.fail(error, now);
            return;
        }
        let Some(scan) = self.scan.as_mut() else { return };
        match scan.phase {
            Phase::Syncing(id) if id == done.id => scan.phase = Phase::Journal(self.journal.appended()),
            Phase::Renaming(id) if id == done.id => self.finish_scan(now),
            _ => {}
        }
    }

    fn is_failed(&self) -> bool {
        matches!(self.journal.state(), JournalState::Failed(_))
    }

    fn fail(&mut self, error: DiskError, now: Nanos) {
        self.stats.failures += 1;
        self.last_error = Some(error);
        if !self.is_failed() {
            self.journal.fail(now);
        }
        self.abandon_scan();
        self.truncation = None;
        self.void_failed();
        for (id, slot) in &mut self.slots {
            // What was lost is in the snapshot that closes the gap.
            (slot.gap, slot.frame, slot.persistent) = (true, 0, 0);
            self.gaps.insert(*id);
        }
    }

    /// Bytes per second for the snapshot under way.
    fn rate(&self) -> u64 {
        let is_copied = self.scan.as_ref().is_some_and(|scan| self.copied.contains(&scan.slot));
        let least = if is_copied { self.config.copied_snapshot_rate } else { 0 };
        self.config.snapshot_rate.max(least)
    }

    fn earn(&mut self, now: Nanos) {
        let since = self.allowed_at.replace(now).map_or(0, |at| now.since(at));
        let earned = u128::from(self.rate()) * u128::from(since) / u128::from(Nanos::SECOND);
        self.allowance = (self.allowance + earned as u64).min(4 * self.config.snapshot_step as u64);
    }

    fn snapshot(&mut self, slots: &Slots) {
        if self.scan.is_none()
            && let Some(slot) = self.next_scan().and_then(|id| slots.get(id))
        {
            let journal = &self.config.journal;
            let head = SnapshotHead {
                slot_count: journal.slot_count,
                shards: journal.shards,
                slot: slot.id(),
                revision: slot.revision(),
                epochs_to: self.journal.epochs_to(),
            };
            let scan = Scan::begin(head, self.config.snapshot_step, &mut self.disk);
            let disk = self.slots.entry(slot.id()).or_default();
            disk.since_scan = None;
            if disk.gap {
                disk.last = scan.revision;
            }
            self.scan = Some(scan);
        }
        let Some(scan) = self.scan.as_mut() else { return };
        let Some(slot) = slots.get(scan.slot) else { return self.abandon_scan() };
        while scan.phase == Phase::Scanning
            && self.allowance >= self.config.snapshot_step as u64
            && self.writes_under_way.len() < 2
        {
            let bytes = scan.step(slot, &mut self.disk) as u64;
            self.allowance = self.allowance.saturating_sub(bytes);
            self.stats.snapshot_bytes += bytes;
            self.writes_under_way.insert(self.disk.last().0);
        }
        // A failure ends the scan under way, so a lost frame is from before it.
        if let Phase::Journal(frame) = scan.phase
            && self.journal.fate(frame) != Fate::Waiting
        {
            scan.rename(&mut self.disk);
            // It takes the place of one that was to be deleted.
            if let Some(void) = self.void.get_mut(&scan.slot) {
                void.has_snapshot = false;
            }
        }
    }

    /// Slots with a gap first, those taken over as a whole before the others; then, when the journal is long or of an earlier run, the one that needs the oldest file.
    fn next_scan(&self) -> Option<SlotId> {
        if let Some(slot) = self.copied.first().or(self.gaps.first()) {
            return Some(*slot);
        }
        let (oldest, slot) = self.needs.first()?;
        let long = self.kept_bytes() > self.config.journal_bytes_max;
        let foreign = oldest.epoch != self.journal.position().epoch;
        (foreign || long && *oldest < self.journal.position()).then_some(*slot)
    }

    fn kept_bytes(&self) -> u64 {
        self.journal.closed().1 + self.old_files.values().sum::<u64>()
    }

    fn finish_scan(&mut self, now: Nanos) {
        let Some(scan) = self.scan.take() else { return };
        self.stats.snapshots += 1;
        self.journal.note_snapshot(scan.slot, now);
        let Some(slot) = self.slots.get_mut(&scan.slot) else { return };
        if let Some(segment) = slot.needs.take() {
            self.needs.remove(&(segment, scan.slot));
        }
        slot.gap = false;
        self.gaps.remove(&scan.slot);
        self.copied.remove(&scan.slot);
        slot.last = slot.last.max(scan.revision);
        slot.needs = slot.since_scan.take();
        self.needs.extend(slot.needs.map(|segment| (segment, scan.slot)));
    }

    fn abandon_scan(&mut self) {
        if let Some(scan) = self.scan.take() {
            self.disk.push(DiskOp::Delete { file: temporary(scan.slot) });
            self.writes_under_way.clear();
        }
    }

    /// Lets go of journal files that no slot needs: first the journal says so, then they are deleted.
    fn truncate(&mut self, now: Nanos) {
        if let Some((to, frame)) = self.truncation {
            if self.journal.fate(frame) == Fate::Durable {
                self.truncation = None;
                let old: Vec<SegmentId> = self
                    .old_files
                    .keys()
                    .filter(|file| (file.epoch, file.shard) == (to.epoch, to.shard))
                    .filter(|file| file.segment < to.segment)
                    .copied()
                    .collect();
                let mut files = self.journal.truncated(to);
                for file in old {
                    self.old_files.remove(&file);
                    files.push(file.file());
                }
                files.into_iter().for_each(|file| _ = self.disk.push(DiskOp::Delete { file }));
            }
            return;
        }
        let position = self.journal.position();
        let oldest = self.needs.first().map_or(position, |(segment, _)| *segment);
        let to = match self.old_files.keys().next() {
            Some(file) if file.epoch < oldest.epoch => Some(SegmentId { segment: u32::MAX, ..*file }),
            Some(file) if *file < oldest => Some(oldest),
            Some(_) => None,
            None => (self.journal.closed_from().is_some_and(|first| first < oldest.segment)
                && oldest.epoch == position.epoch)
                .then_some(oldest),
        };
        if let Some(to) = to {
            self.truncation = Some((to, self.journal.truncate(to, now)));
        }
    }
}
