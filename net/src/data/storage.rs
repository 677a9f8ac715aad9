//! Where a data node keeps its slots: opening the directory, recovering every shard, and what is told about it.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    sync::Arc,
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
    journal::JournalConfig,
    recover::{Files, Layout, RecoverConfig, RecoverError, Recovered, recover, recover_clustered},
    shard::ShardConfig,
    storage::{Storage, StorageConfig, StorageState},
};

use crate::io::disk::{DirectoryFiles, DirectoryLock, LOCK_FILE, WorkTimes};

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
    /// How long each shard took for what.
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
        self.open_by(config, recover)
    }

    /// The same for a member of a cluster: slots stay in the epochs that they were in, and the epoch opened only numbers the
    /// journals of this run.
    pub fn open_clustered(&self, config: &ShardConfig) -> anyhow::Result<Opened> {
        self.open_by(config, recover_clustered)
    }

    fn open_by(&self, config: &ShardConfig, recover: Recover) -> anyhow::Result<Opened> {
        let lock = DirectoryLock::take(&self.folder)?;
        let (epoch, shards, times) = read_all(&self.folder, config, recover)
            .with_context(|| format!("the data directory {} cannot be used", self.folder.display()))?;
        Ok(Opened { lock, epoch, shards, times })
    }
}

/// How one shard is read.
type Recover =
    fn(&Layout, &mut dyn Files, &RecoverConfig, &mut dyn FnMut(u64)) -> Result<Recovered, RecoverError>;

fn read_all(
    folder: &Path,
    config: &ShardConfig,
    recover: Recover,
) -> anyhow::Result<(u32, Vec<Recovered>, Vec<WorkTimes>)> {
    let mut files = DirectoryFiles::new(folder);
    let mut layout = Layout::read(&mut files, config.slot_count, &[LOCK_FILE])?;
    layout.notes.iter().for_each(|note| tracing::warn!("{note}"));
    let epoch = layout.next_epoch().max(config.epoch);
    let mut queue = DiskQueue::default();
    layout.clean_up(&mut queue);
    files.carry_out(&mut queue)?;
    let (mut shards, mut times) = read_shards(folder, &layout, config, epoch, recover)?;
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
        (shards, times) = read_shards(folder, &layout, config, epoch, recover)?;
    }
    for (recovered, times) in shards.iter().zip(&times) {
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
            read_ms = times.read / 1_000_000,
            checksum_ms = times.checksum / 1_000_000,
            validate_ms = times.validate / 1_000_000,
            apply_ms = times.apply / 1_000_000,
            tail_ms = times.tail / 1_000_000,
            "recovered a shard"
        );
    }
    Ok((epoch, shards, times))
}

fn read_shards(
    folder: &Path,
    layout: &Layout,
    config: &ShardConfig,
    epoch: u32,
    recover: Recover,
) -> anyhow::Result<(Vec<Recovered>, Vec<WorkTimes>)> {
    let bar = if std::io::stderr().is_terminal() && !layout.is_empty() {
        let style = ProgressStyle::with_template("recovering {bar:40} {bytes} of {total_bytes}, {eta} left")?;
        ProgressBar::new(layout.bytes()).with_style(style)
    } else {
        ProgressBar::hidden()
    };
    let bar = Arc::new(bar);
    let read = |shard: u32| {
        let config = recover_config(config, shard, epoch);
        let mut files = DirectoryFiles::new(folder);
        let recovered = recover(layout, &mut files, &config, &mut |bytes| bar.inc(bytes))?;
        Ok((recovered, files.times()))
    };
    let shards: anyhow::Result<Vec<_>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..config.shards).map(|shard| scope.spawn(move || read(shard))).collect();
        let shards = threads.into_iter().map(|thread| {
            thread.join().map_err(|_| anyhow!("a thread that recovers a shard has panicked"))?
        });
        shards.collect()
    });
    bar.finish_and_clear();
    Ok(shards?.into_iter().unzip())
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
