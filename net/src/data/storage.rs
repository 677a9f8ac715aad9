//! Where a data node keeps its slots: opening the directory, recovering every shard, and what is told about it.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use anyhow::{Context, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use serde::{Deserialize, Serialize};
use slotcast_engine::{
    disk_op::DiskQueue,
    id::SlotId,
    journal::JournalConfig,
    recover::{Epochs, Layout, Loaded, RecoverConfig, RecoverError, Recovered, finish, load, recover},
    shard::ShardConfig,
    storage::{Storage, StorageConfig, StorageState},
};

use crate::io::disk::{DirectoryFiles, DirectoryLock, LOCK_FILE, WorkTimes};

/// Threads that read snapshots at a start, at most, unless there are more shards.
const READERS_MAX: usize = 16;

/// Where a data node keeps its slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageKind {
    /// Nowhere: sessions and replicas are what it is rebuilt from.
    None,
    /// On a disk.
    Disk,
    /// In a file system in memory: survives the process, not the machine.
    Tmpfs,
}

/// What the durable side of a node is told.
#[derive(Debug, Clone)]
pub struct StorageOptions {
    /// The directory.
    pub folder: PathBuf,
    /// Journal and snapshots of a shard; number and counts are filled in.
    pub storage: StorageConfig,
}

/// A directory that was recovered from.
pub struct Opened {
    /// Keeps others away; to be held while the node runs.
    pub lock: DirectoryLock,
    /// The epoch that the shards open.
    pub epoch: u32,
    /// What each shard found.
    pub shards: Vec<Recovered>,
    /// How long each thread that read it took for what.
    pub times: Vec<WorkTimes>,
}

impl StorageOptions {
    /// The options of a shard.
    pub fn of_shard(&self, config: &ShardConfig) -> StorageConfig {
        let journal = JournalConfig {
            slot_count: config.slot_count,
            shard: config.shard,
            shards: config.shards,
            ..self.storage.journal.clone()
        };
        StorageConfig { journal, ..self.storage.clone() }
    }

    /// Locks the directory and reads every shard of `config` from it.
    pub fn open(&self, config: &ShardConfig) -> anyhow::Result<Opened> {
        self.open_by(config, Epochs::OfTheRun)
    }

    /// The same for a member of a cluster: slots stay in the epochs that they were in, and the epoch opened only numbers the
    /// journals of this run.
    pub fn open_clustered(&self, config: &ShardConfig) -> anyhow::Result<Opened> {
        self.open_by(config, Epochs::OfTheTable)
    }

    fn open_by(&self, config: &ShardConfig, epochs: Epochs) -> anyhow::Result<Opened> {
        let lock = DirectoryLock::take(&self.folder)?;
        let (epoch, shards, times) = read_all(&self.folder, config, epochs)
            .with_context(|| format!("the data directory {} cannot be used", self.folder.display()))?;
        Ok(Opened { lock, epoch, shards, times })
    }
}

fn read_all(
    folder: &Path,
    config: &ShardConfig,
    epochs: Epochs,
) -> anyhow::Result<(u32, Vec<Recovered>, Vec<WorkTimes>)> {
    let mut files = DirectoryFiles::new(folder);
    let mut layout = Layout::read(&mut files, config.slot_count, &[LOCK_FILE])?;
    layout.notes.iter().for_each(|note| tracing::warn!("{note}"));
    let epoch = layout.next_epoch().max(config.epoch);
    let mut queue = DiskQueue::default();
    layout.clean_up(&mut queue);
    files.carry_out(&mut queue)?;
    let (mut shards, mut times) = read_shards(folder, &layout, config, (epoch, epochs))?;
    if layout.is_resharded(config.shards) {
        tracing::info!(shards = config.shards, "the shard count has changed: every slot gets a new snapshot");
        for (shard, recovered) in shards.iter().enumerate() {
            layout.reshard(&recover_config(config, shard as u32, epoch), recovered, &mut queue);
            files.carry_out(&mut queue)?;
        }
        layout.retire(&mut queue);
        files.carry_out(&mut queue)?;
        drop(shards);
        layout = Layout::read(&mut files, config.slot_count, &[LOCK_FILE])?;
        (shards, times) = read_shards(folder, &layout, config, (epoch, epochs))?;
    }
    for recovered in &shards {
        let report = &recovered.report;
        for (file, offset, bytes) in &report.torn {
            tracing::warn!(file, offset, bytes, "a crash tore the end of a journal: it is cut off");
        }
        tracing::info!(
            slots = recovered.slots.len(),
            snapshots = report.snapshots,
            entries = report.entries,
            batches = report.batches,
            bytes = report.bytes,
            epoch,
            "recovered a shard"
        );
    }
    for times in &times {
        tracing::info!(
            read_ms = times.read / 1_000_000,
            checksum_ms = times.checksum / 1_000_000,
            validate_ms = times.validate / 1_000_000,
            apply_ms = times.apply / 1_000_000,
            tail_ms = times.tail / 1_000_000,
            "what a thread of the recovery did"
        );
    }
    Ok((epoch, shards, times))
}

/// Reads every shard: first the snapshots, each by whatever thread is free, for the slots have nothing to do with each other;
/// then the journals, each shard by a thread.
fn read_shards(
    folder: &Path,
    layout: &Layout,
    config: &ShardConfig,
    (epoch, epochs): (u32, Epochs),
) -> anyhow::Result<(Vec<Recovered>, Vec<WorkTimes>)> {
    let bar = if std::io::stderr().is_terminal() && !layout.is_empty() {
        let style = ProgressStyle::with_template("recovering {bar:40} {bytes} of {total_bytes}, {eta} left")?;
        ProgressBar::new(layout.bytes()).with_style(style)
    } else {
        ProgressBar::hidden()
    };
    let shards: Vec<RecoverConfig> =
        (0..config.shards).map(|shard| recover_config(config, shard, epoch)).collect();
    let (loaded, mut times) = load_all(folder, layout, &shards, &bar)?;
    let read = |config: &RecoverConfig, loaded| {
        let mut files = DirectoryFiles::new(folder);
        let recovered = finish(layout, &mut files, (config, epochs), loaded, &mut |bytes| bar.inc(bytes))?;
        Ok((recovered, files.times()))
    };
    let read = &read;
    let found: anyhow::Result<Vec<_>> = std::thread::scope(|scope| {
        let parts = shards.iter().zip(loaded);
        let threads: Vec<_> =
            parts.map(|(config, loaded)| scope.spawn(move || read(config, loaded))).collect();
        let found = threads.into_iter().map(|thread| {
            thread.join().map_err(|_| anyhow!("a thread that recovers a shard has panicked"))?
        });
        found.collect()
    });
    bar.finish_and_clear();
    let (recovered, finished): (Vec<_>, Vec<_>) = found?.into_iter().unzip();
    times.resize(times.len().max(finished.len()), WorkTimes::default());
    times.iter_mut().zip(finished).for_each(|(times, finished)| *times += finished);
    Ok((recovered, times))
}

/// Loads all snapshots of all shards, and tells how long each thread took for what.
fn load_all(
    folder: &Path,
    layout: &Layout,
    shards: &[RecoverConfig],
    bar: &ProgressBar,
) -> anyhow::Result<(Vec<Loaded>, Vec<WorkTimes>)> {
    let mut work = Vec::new();
    for (shard, config) in shards.iter().enumerate() {
        work.extend(layout.snapshots(config)?.into_iter().map(|slot| (slot, shard)));
    }
    work.sort_unstable();
    let (taken, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let read = || {
        let mut files = DirectoryFiles::new(folder);
        let mut loaded: Vec<Loaded> = shards.iter().map(|_| Loaded::default()).collect();
        let take = |files: &mut DirectoryFiles| {
            let next = work.get(taken.fetch_add(1, Ordering::Relaxed)).copied();
            next.into_iter().for_each(|(slot, _)| layout.soon(files, slot));
            next
        };
        let mut coming = take(&mut files);
        while let Some((slot, shard)) = coming {
            coming = if failed.load(Ordering::Relaxed) { None } else { take(&mut files) };
            let (config, into) = (&shards[shard], &mut loaded[shard]);
            load(layout, &mut files, config, slot, into, &mut |bytes| bar.inc(bytes)).map_err(|error| {
                failed.store(true, Ordering::Relaxed);
                (slot, error)
            })?;
        }
        Ok((loaded, files.times()))
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(READERS_MAX);
    let threads = cores.max(shards.len()).min(work.len().max(1));
    let read = &read;
    let found: anyhow::Result<Vec<Result<_, (SlotId, RecoverError)>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(read)).collect();
        let found = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread that recovers slots has panicked")));
        found.collect()
    });
    let mut all: Vec<Loaded> = shards.iter().map(|_| Loaded::default()).collect();
    let (mut times, mut first) = (Vec::new(), None);
    for found in found? {
        match found {
            Ok((loaded, spent)) => {
                all.iter_mut().zip(loaded).for_each(|(all, loaded)| all.join(loaded));
                times.push(spent);
            }
            // All slots before it were taken by somebody, so it does not depend on chance which error is told.
            Err((slot, error)) if first.as_ref().is_none_or(|(first, _)| slot < *first) => {
                first = Some((slot, error));
            }
            Err(_) => {}
        }
    }
    match first {
        Some((_, error)) => Err(error.into()),
        None => Ok((all, times)),
    }
}

fn recover_config(config: &ShardConfig, shard: u32, epoch: u32) -> RecoverConfig {
    RecoverConfig {
        slot_count: config.slot_count,
        slots: config.slots.clone(),
        shard,
        shards: config.shards,
        epoch,
        seed: crate::io::clock::unique(),
        change_log: config.change_log,
    }
}

/// Reads a data directory as a node would and says what is in it; changes nothing.
pub fn check_data(folder: &Path, slot_count: u32) -> anyhow::Result<String> {
    anyhow::ensure!(folder.is_dir(), "{} is no directory", folder.display());
    let mut files = DirectoryFiles::new(folder);
    let layout = Layout::read(&mut files, slot_count, &[LOCK_FILE])?;
    let config = RecoverConfig {
        slot_count,
        slots: 0..=(slot_count - 1) as u16,
        shard: 0,
        shards: 1,
        epoch: layout.next_epoch(),
        seed: 0,
        change_log: Default::default(),
    };
    let found = recover(&layout, &mut files, &config, &mut |_| ())?;
    let publishers: usize = found.slots.values().map(|slot| slot.slot.publishers()).sum();
    let report = &found.report;
    let mut text = format!(
        "good: {publishers} publishers in {} slots, from {} snapshots ({} entries) and {} batches, {} bytes; next epoch {}\n",
        found.slots.len(),
        report.snapshots,
        report.entries,
        report.batches,
        report.bytes,
        layout.next_epoch()
    );
    for note in &layout.notes {
        text += &format!("note: {note}\n");
    }
    for (file, offset, bytes) in &report.torn {
        text +=
            &format!("note: a crash tore the end of {file} at byte {offset}: {bytes} bytes are cut off\n");
    }
    Ok(text)
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    kind: &'static str,
}

/// Metrics of one shard's durable side.
#[derive(Clone, Default)]
pub struct StorageMetrics {
    state: Family<Labels, Gauge>,
    changes: Family<Labels, Gauge>,
    journal_bytes: Family<Labels, Gauge>,
    waiting: Gauge,
    blocks: Gauge,
    snapshots: Gauge,
    snapshot_bytes: Gauge,
    gaps: Gauge,
    failures: Gauge,
}

impl StorageMetrics {
    /// Registers the metrics of one shard.
    pub fn new(registry: &mut Registry, shard: u32) -> Self {
        let registry = registry.sub_registry_with_label(("shard".into(), shard.to_string().into()));
        let it = Self::default();
        registry.register(
            "data_storage_state",
            "1 for the state that storage is in: none, opening, whole, catching_up, failed",
            it.state.clone(),
        );
        registry.register(
            "data_journal_changes",
            "Changes by what became of them: journaled, or left out because the disk was behind or had failed",
            it.changes.clone(),
        );
        registry.register(
            "data_journal_bytes",
            "Bytes of the journal by kind: written, waiting for the disk, kept in files",
            it.journal_bytes.clone(),
        );
        registry.register(
            "data_journal_batches_waiting",
            "Batches taken that are not durable yet",
            it.waiting.clone(),
        );
        registry.register("data_journal_blocks", "Journal blocks written", it.blocks.clone());
        registry.register("data_snapshots_written", "Snapshots of slots finished", it.snapshots.clone());
        registry.register(
            "data_snapshots_written_bytes",
            "Bytes of snapshots written",
            it.snapshot_bytes.clone(),
        );
        registry.register(
            "data_slots_with_gap",
            "Slots with changes that are not journaled, waiting for a snapshot",
            it.gaps.clone(),
        );
        registry.register("data_storage_failures", "Times the disk failed", it.failures.clone());
        it
    }

    /// Takes over what the shard counts itself.
    pub fn observe(&self, storage: Option<&Storage>) {
        let state = storage.map_or("none", |storage| storage.state().label());
        let states =
            [StorageState::Opening, StorageState::Whole, StorageState::Catching, StorageState::Failed];
        for kind in states.map(StorageState::label).into_iter().chain(["none"]) {
            self.state.get_or_create(&Labels { kind }).set(i64::from(kind == state));
        }
        let Some(stats) = storage.map(Storage::stats) else { return };
        for (kind, changes) in [("journaled", stats.journaled), ("left_out", stats.not_journaled)] {
            self.changes.get_or_create(&Labels { kind }).set(changes as i64);
        }
        for (kind, bytes) in [
            ("written", stats.journal_bytes),
            ("waiting", stats.waiting_bytes as u64),
            ("kept", stats.kept_bytes),
        ] {
            self.journal_bytes.get_or_create(&Labels { kind }).set(bytes as i64);
        }
        self.waiting.set(stats.waiting_batches as i64);
        self.blocks.set(stats.blocks as i64);
        self.snapshots.set(stats.snapshots as i64);
        self.snapshot_bytes.set(stats.snapshot_bytes as i64);
        self.gaps.set(stats.gaps as i64);
        self.failures.set(stats.failures as i64);
    }

    /// Whether the disk works, as last observed.
    pub fn has_failed(&self) -> bool {
        self.state.get_or_create(&Labels { kind: StorageState::Failed.label() }).get() == 1
    }
}
