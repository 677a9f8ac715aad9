//! A node that starts on a directory, as far as it is measured.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use slotcast_engine::{
    diff,
    id::{ReaderId, Revision, SessionId},
    recover::Recovered,
    shard::{Shard, ShardConfig},
};
use slotcast_net::{
    data::storage::StorageOptions,
    io::{
        clock,
        disk::{Disk, WorkTimes},
    },
};

use super::{RestartSpec, Started};
use crate::{
    memory::resident,
    population::{Population, Writer},
};

/// Longest wait for one operation of the disk.
const DISK_MAX: Duration = Duration::from_secs(30);

/// Starts, measures, and compares afterwards what every publisher published.
pub fn run(spec: &RestartSpec, folder: &Path) -> anyhow::Result<Started> {
    let options = spec.config(folder)?.data_options()?;
    let storage = options.storage.context("a node that keeps its slots")?;
    let began = Instant::now();
    let opened = storage.open(&options.shard)?;
    let read = began.elapsed().as_secs_f64();
    let reports: Vec<_> = opened.shards.iter().map(|shard| shard.report.clone()).collect();
    let shards: anyhow::Result<Vec<Serving>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(opened.shards)
            .map(|(number, recovered)| {
                let config = ShardConfig { shard: number, epoch: opened.epoch, ..options.shard.clone() };
                let storage = &storage;
                scope.spawn(move || Serving::start(config, recovered, storage))
            })
            .collect();
        let shards = threads.into_iter();
        shards.map(|it| it.join().map_err(|_| anyhow!("a shard's thread has panicked"))?).collect()
    });
    let shards = shards?;
    let total = began.elapsed().as_secs_f64();
    let slower = |of: fn(&WorkTimes) -> u64| opened.times.iter().map(of).max().unwrap_or(0) as f64 / 1e9;
    let whole = |times: &WorkTimes| {
        times.read + times.checksum + times.validate + times.apply + times.tail + times.rest
    };
    let sum = |of: &dyn Fn(&slotcast_engine::recover::Report) -> u64| reports.iter().map(of).sum();
    let held = resident();
    let mut started = Started {
        open: (read - opened.times.iter().map(whole).max().unwrap_or(0) as f64 / 1e9).max(0.0),
        read: slower(|it| it.read),
        checksum: slower(|it| it.checksum),
        validate: slower(|it| it.validate),
        apply: slower(|it| it.apply),
        tail: slower(|it| it.tail),
        rest: slower(|it| it.rest),
        ready: total - read,
        total,
        publishers: shards.iter().map(|it| it.shard.counts().publishers as u64).sum(),
        slots: shards.iter().map(|it| it.slots).sum(),
        bytes: sum(&|it| it.bytes),
        entries: sum(&|it| it.entries),
        batches: sum(&|it| it.batches),
        rss: held.bytes,
        huge: held.huge,
        compared: 0,
    };
    for (number, serving) in (0..).zip(&shards) {
        started.compared +=
            compare(&serving.shard, spec.population, number, spec.shards, options.shard.slot_count)?;
    }
    Ok(started)
}

struct Serving {
    shard: Shard,
    slots: u64,
    _disk: Disk,
}

impl Serving {
    /// What a node does between having recovered and serving.
    fn start(config: ShardConfig, recovered: Recovered, options: &StorageOptions) -> anyhow::Result<Self> {
        let disk = Disk::start(&format!("disk-{}", config.shard), &options.folder)?;
        let storage = options.of_shard(&config);
        let mut shard = Shard::recovered(config, recovered, storage);
        let (reader, session) = (ReaderId(0), SessionId(u64::MAX));
        shard.handle_link_open(reader, session, 0, true, clock::now()).map_err(|error| anyhow!("{error}"))?;
        shard.tick(clock::now());
        loop {
            shard.seal(clock::now());
            if shard.is_serving() {
                break;
            }
            while let Some(request) = shard.poll_disk(clock::now()) {
                disk.submit(request);
            }
            let done = disk.wait(DISK_MAX).context("the disk does not answer")?;
            shard.handle_disk(&done, clock::now());
        }
        let (mut slots, mut body) = (0, Vec::new());
        for slot in shard.slots() {
            body.clear();
            if let Some((key, _, publishers)) = slot.datums().next() {
                let answer = diff::collect(slot, key, Revision::ZERO);
                ensure!(answer.puts.len() == publishers, "slot {} answers in part", slot.id().0);
                answer.write(key, &mut body);
            }
            slots += 1;
        }
        Ok(Self { shard, slots, _disk: disk })
    }
}

fn compare(
    shard: &Shard,
    population: Population,
    number: u32,
    shards: u32,
    slot_count: u32,
) -> anyhow::Result<u64> {
    let (share, mut writer) = (population.share(slot_count, number, shards), Writer::new(population));
    for at in 0..share.len() {
        let publisher = share.publisher(at);
        let (record, _) = shard.record(publisher.datum, publisher.register).context("a publisher is lost")?;
        ensure!(record.bytes() == writer.record(&publisher, 0), "{publisher:?} has other bytes than before");
    }
    Ok(share.len())
}
