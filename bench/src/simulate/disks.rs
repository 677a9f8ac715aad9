//! The disks of data nodes: in memory, with a crash that loses what was not synced.

use slotcast_engine::{
    change_log::ChangeLogLimits,
    disk_op::{DiskDone, DiskQueue},
    journal::JournalConfig,
    memory_disk::MemoryDisk,
    recover::{Layout, RecoverConfig, Recovered, recover, recover_clustered},
    shard::ShardConfig,
    storage::StorageConfig,
};

use super::{
    hosts::{Actor, SLOTS},
    network::{MS, Task},
    plan::Shape,
    world::World,
};

impl World {
    /// What a data node finds when it starts, and what it is told about its storage. The epoch of `config` is raised above
    /// everything that the disk has seen.
    pub(super) fn recover(&mut self, host: usize, config: &mut ShardConfig) -> (Recovered, StorageConfig) {
        let disk = &mut self.disks[host];
        // Nobody starts a node before there is room.
        disk.is_full = false;
        let layout = Layout::read(disk, SLOTS, &[]).expect("a directory that this version has written");
        config.epoch = layout.next_epoch().max(config.epoch);
        let mut queue = DiskQueue::default();
        layout.clean_up(&mut queue);
        disk.run_all(&mut queue).expect("a disk that works");
        let recovering = RecoverConfig {
            slot_count: SLOTS,
            slots: config.slots.clone(),
            shard: 0,
            shards: 1,
            epoch: config.epoch,
            seed: config.seed,
            change_log: ChangeLogLimits { ..config.change_log },
        };
        let found = match self.plan.shape {
            Shape::Single => recover(&layout, disk, &recovering, &mut |_| ()),
            Shape::Cluster => recover_clustered(&layout, disk, &recovering, &mut |_| ()),
        };
        let recovered = found.unwrap_or_else(|error| {
            self.oracle.fail(None, format!("a data node does not start again: {error}"));
            Recovered {
                slots: Default::default(),
                kept: Vec::new(),
                segments: Default::default(),
                stale: Default::default(),
                report: Default::default(),
            }
        });
        self.reached.recovered_slots += recovered.slots.len() as u64;
        let rng = &mut self.net.hosts[host].rng;
        let storage = StorageConfig {
            journal: JournalConfig {
                slot_count: SLOTS,
                shard: 0,
                shards: 1,
                batch_records: 20,
                batch_interval: 20 * MS,
                segment_bytes: 8 * 1024 + rng.range(0, 64 * 1024),
                waiting_bytes_max: 1 << 20,
                retry_interval: 20 * MS,
            },
            snapshot_rate: 1 << 30,
            copied_snapshot_rate: 1 << 30,
            snapshot_step: 200 + rng.below(4000),
            journal_bytes_max: rng.range(16 * 1024, 128 * 1024),
        };
        (recovered, storage)
    }

    /// What a data node has asked of its disk is done after a while.
    pub(super) fn after_disk_turn(&mut self, host: usize, waits: bool) {
        if !waits || self.disk_busy[host] {
            return;
        }
        self.disk_busy[host] = true;
        let rng = &mut self.net.hosts[host].rng;
        let delay = if rng.chance(2) { rng.range(20 * MS, 400 * MS) } else { rng.range(MS / 20, 3 * MS) };
        self.net.schedule(self.net.now + delay, Task::Disk(host));
    }

    /// A disk carries out what it was asked first.
    pub(super) fn drive_disk(&mut self, host: usize) {
        self.disk_busy[host] = false;
        let Some(Actor::Node(node)) = &self.actors[host] else { return };
        let Some(side) = &node.disk else { return };
        if let Ok(request) = side.requests.try_recv() {
            let result = self.disks[host].run(&request.op);
            self.reached.disk_operations += 1;
            let _ = side.done.send(DiskDone { id: request.id, result });
        }
        let waits = !side.requests.is_empty();
        self.net.wake(host, self.net.now);
        self.after_disk_turn(host, waits);
    }

    /// The machine of a data node has lost its power.
    pub(super) fn crash_disk(&mut self, host: usize) {
        self.disk_busy[host] = false;
        let rng = &mut self.net.hosts[host].rng;
        if self.plan.sizes.on_disk {
            self.disks[host] = self.disks[host].crashed(&mut |end| rng.number() % end.max(1));
        } else {
            self.disks[host] = MemoryDisk::default();
        }
    }
}
