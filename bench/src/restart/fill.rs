//! Fills a data directory as a node does.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, anyhow, ensure};
use slotcast_engine::{
    id::{Nanos, ReaderId, SessionId},
    recover::Recovered,
    shard::{Shard, ShardConfig},
};
use slotcast_net::{
    config::Config,
    data::storage::StorageOptions,
    io::{clock, disk::Disk},
};

use super::RestartSpec;
use crate::population::{Population, Share, Writer};

/// Entries of a write frame.
const FRAME: u64 = 500;
/// Bytes waiting for the disk above which writing waits: nothing is to be left out of the journal.
const WAITING_MAX: usize = 16 << 20;
/// Bytes per second that snapshots are written with: as fast as it goes.
const SNAPSHOT_RATE: u64 = 4 << 30;
/// Longest wait for one operation of the disk.
const DISK_MAX: Duration = Duration::from_secs(30);

/// Registers everybody, and writes all that has to be kept.
pub(super) fn run(
    spec: &RestartSpec,
    config: &Config,
    progress: &mut dyn FnMut(&str, u64),
) -> anyhow::Result<()> {
    let options = config.data_options()?;
    let mut storage = options.storage.context("a node that keeps its slots")?;
    storage.storage.snapshot_rate = SNAPSHOT_RATE;
    let opened = storage.open(&options.shard)?;
    let done = AtomicU64::new(0);
    let filled: anyhow::Result<()> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(opened.shards)
            .map(|(number, recovered)| {
                let (storage, done) = (&storage, &done);
                let shard = ShardConfig {
                    shard: number,
                    epoch: opened.epoch,
                    session_lease: 3_600 * Nanos::SECOND,
                    ..options.shard.clone()
                };
                scope.spawn(move || fill_shard(spec.population, shard, recovered, storage, done))
            })
            .collect();
        while !threads.iter().all(|thread| thread.is_finished()) {
            progress("filling", done.load(Ordering::Relaxed));
            std::thread::sleep(Duration::from_millis(100));
        }
        threads.into_iter().try_for_each(|thread| {
            thread.join().map_err(|_| anyhow!("a thread that fills a shard has panicked"))?
        })
    });
    filled
}

struct Filling {
    shard: Shard,
    disk: Disk,
    journal_bytes_max: u64,
}

fn fill_shard(
    population: Population,
    config: ShardConfig,
    recovered: Recovered,
    options: &StorageOptions,
    done: &AtomicU64,
) -> anyhow::Result<()> {
    let share: Share = population.share(config.slot_count, config.shard, config.shards);
    let disk = Disk::start(&format!("disk-{}", config.shard), &options.folder)?;
    let storage = options.of_shard(&config);
    let journal_bytes_max = storage.journal_bytes_max;
    let mut filling =
        Filling { shard: Shard::recovered(config, recovered, storage), disk, journal_bytes_max };
    let (reader, session) = (ReaderId(0), SessionId(1));
    filling
        .shard
        .handle_link_open(reader, session, 0, true, clock::now())
        .map_err(|error| anyhow!("{error}"))?;
    let (mut writer, mut frame, mut sequence) = (Writer::new(population), Vec::new(), 0);
    let mut at = 0;
    // In the order of the slots, so that each is snapshotted once and not with every round of the journal.
    while at < share.len() {
        frame.clear();
        writer.next_frame();
        let end = (at + FRAME).min(share.len());
        for publisher in at..end {
            writer.put(&share.publisher(publisher), 0, session, &mut frame);
        }
        sequence += 1;
        filling.shard.handle_write(reader, sequence, &frame, clock::now())?;
        filling.turn()?;
        while filling.waiting_bytes() > WAITING_MAX {
            filling.wait()?;
        }
        done.fetch_add(end - at, Ordering::Relaxed);
        at = end;
    }
    filling.finish()
}

impl Filling {
    fn turn(&mut self) -> anyhow::Result<()> {
        let now = clock::now();
        self.shard.seal(now);
        while let Some(ack) = self.shard.poll_ack() {
            let refused = ack.outcomes.iter().find_map(|outcome| outcome.as_ref().err());
            ensure!(refused.is_none(), "a put was refused: {refused:?}");
        }
        self.shard.poll_push(|_| ());
        while let Some(request) = self.shard.poll_disk(now) {
            self.disk.submit(request);
        }
        while let Some(done) = self.disk.poll() {
            self.shard.handle_disk(&done, now);
        }
        let failed = self.shard.storage().and_then(|storage| storage.last_error());
        ensure!(failed.is_none(), "the disk failed: {failed:?}");
        Ok(())
    }

    /// Waits for the disk, or for the time to write the next block.
    fn wait(&mut self) -> anyhow::Result<()> {
        let under_way = !self.shard.is_disk_idle();
        let due = self.shard.disk_due().map_or(u64::MAX, |due| due.since(clock::now()));
        let patience = Duration::from_nanos(due.max(1_000_000)).min(DISK_MAX);
        if under_way && let Some(done) = self.disk.wait(patience) {
            self.shard.handle_disk(&done, clock::now());
        }
        self.turn()
    }

    fn waiting_bytes(&self) -> usize {
        self.shard.storage().map_or(0, |storage| storage.stats().waiting_bytes)
    }

    /// Goes on until the journal is as short as it is to be, then ends as a node does.
    fn finish(&mut self) -> anyhow::Result<()> {
        let long = |shard: &Shard, most: u64| {
            shard.storage().is_some_and(|storage| {
                let stats = storage.stats();
                stats.kept_bytes > most || storage.scanning().is_some() || stats.waiting_bytes > 0
            })
        };
        while long(&self.shard, self.journal_bytes_max) {
            self.wait()?;
        }
        while !self.shard.is_disk_idle() {
            while let Some(request) = self.shard.poll_disk_at_end(clock::now()) {
                self.disk.submit(request);
            }
            let done = self.disk.wait(DISK_MAX).context("the disk does not answer")?;
            self.shard.handle_disk(&done, clock::now());
        }
        let left_out = self.shard.storage().map_or(0, |storage| storage.stats().not_journaled);
        ensure!(left_out == 0, "{left_out} changes were not journaled");
        Ok(())
    }
}
