//! Good inputs to begin from: what the engine itself writes.

use slotcast_engine::{
    batch::{
        Change, ChangeKind, Durability, OpenBatch, entries as read_entries, write_change, write_name,
        write_put,
    },
    change_log::ChangeLogLimits,
    diff,
    disk_op::DiskDone,
    id::{DataId, Nanos, ReaderId, RegisterId, Revision, SessionId, SlotId, Version},
    journal::JournalConfig,
    memory_disk::MemoryDisk,
    record::{Encoder, Instance, Record},
    recover::{Layout, RecoverConfig, recover},
    shard::{Shard, ShardConfig},
    storage::StorageConfig,
};

use super::{directory, repair};

/// Slots of the clusters here.
pub(super) const SLOTS: u32 = 8;
/// Data ids written to.
pub(super) const SERVICES: u64 = 5;

/// A data id of this number.
pub(super) fn service(number: u64) -> DataId {
    DataId::new("public", "default", &format!("service-{number}")).expect("a valid name")
}

fn record_of(id: &DataId, register: u64, client: u64, payload: usize) -> Vec<u8> {
    let name = if register.is_multiple_of(2) { "short" } else { "mw2051.codfw.example" };
    let instance =
        Instance { client, name: name.into(), zone: "codfw".into(), payload: vec![register as u8; payload] };
    Encoder::default().encode(id.key(), RegisterId(register), &instance).expect("a valid instance").to_vec()
}

fn change(kind: ChangeKind, id: &DataId, register: u64, number: u64, owner: u64) -> Change {
    Change {
        kind,
        durability: Durability::Ephemeral,
        datum: id.key(),
        register: RegisterId(register),
        version: Version { number, attach: 1 },
        epoch: 0,
        owner: SessionId(owner),
    }
}

/// A name, two puts and a removal.
fn frame(number: u64, owner: u64) -> Vec<u8> {
    let (id, mut out) = (service(number % SERVICES), Vec::new());
    write_name(&mut out, id.key(), id.as_bytes());
    for register in [2 * owner, 2 * owner + 1] {
        let record = record_of(&id, register, owner, (number * 7 % 40) as usize);
        let record = Record::read(&record).expect("just written");
        write_put(&mut out, &change(ChangeKind::Put, &id, register, number + 1, owner), record);
    }
    if number % 3 == 2 {
        write_change(&mut out, &change(ChangeKind::Remove, &id, 2 * owner, number + 2, owner));
    }
    out
}

pub(super) fn records() -> Vec<Vec<u8>> {
    [(1, 0), (2, 13), (3, 128)]
        .map(|(register, payload)| record_of(&service(register), register, 7, payload))
        .into()
}

pub(super) fn entries() -> Vec<Vec<u8>> {
    let mut all = frame(2, 1);
    let touch = change(ChangeKind::Touch, &service(2), 3, 9, 1);
    write_change(&mut all, &touch);
    write_change(&mut all, &Change { kind: ChangeKind::Forget, ..touch });
    write_change(&mut all, &Change { kind: ChangeKind::Expire, ..touch });
    vec![frame(0, 1), all]
}

pub(super) fn batches() -> Vec<Vec<u8>> {
    entries()
        .iter()
        .map(|bytes| {
            let mut batch = OpenBatch::default();
            read_entries(bytes).flatten().for_each(|entry| batch.push(entry));
            batch.seal(SlotId(3), Revision::open(1), Revision::open(1).next(), 2)
        })
        .collect()
}

pub(super) fn diffs() -> Vec<Vec<u8>> {
    let id = service(1);
    let records: Vec<Vec<u8>> = [1, 2, 3].map(|register| record_of(&id, register, 7, 20)).into();
    let puts = || records.iter().map(|bytes| Record::read(bytes).expect("just written")).collect::<Vec<_>>();
    let body = |flags: u8, from, removes: &[RegisterId], owners: Option<&[SessionId]>| {
        let mut out = vec![flags];
        diff::write(&mut out, id.key(), (from, Revision::open(2)), removes, owners, puts().into_iter());
        out
    };
    let owners = [SessionId(4), SessionId(5), SessionId(6)];
    vec![
        body(diff::SNAPSHOT, Revision::ZERO, &[], None),
        body(0, Revision::open(1), &[RegisterId(8), RegisterId(9)], None),
        body(diff::OWNERS, Revision::open(1), &[RegisterId(8)], Some(&owners)),
        body(
            diff::SNAPSHOT | diff::OWNERS | diff::FORKED,
            Revision::ZERO,
            &[RegisterId(1), RegisterId(3)],
            Some(&owners),
        ),
    ]
}

pub(super) fn writes() -> Vec<Vec<u8>> {
    [(1, 3), (2, 8)]
        .map(|(from, count)| {
            let mut out = Vec::new();
            for number in from..from + count {
                // Frames of two sessions in turn, as the target hands them out.
                let frame = frame(number, 1 + (number - from) % 2);
                out.extend_from_slice(&(frame.len() as u16).to_le_bytes());
                out.extend_from_slice(&frame);
            }
            out
        })
        .into()
}

/// A node of one shard that is written to; `runs` of it one after the other.
fn node(runs: u64, frames: u64, journal_bytes_max: u64) -> MemoryDisk {
    let mut disk = MemoryDisk::default();
    for run in 0..runs {
        let layout = Layout::read(&mut disk, SLOTS, &[]).expect("a good directory");
        let epoch = layout.next_epoch();
        let slots = 0..=(SLOTS - 1) as u16;
        let change_log = ChangeLogLimits::default();
        let from = RecoverConfig {
            slot_count: SLOTS,
            slots: slots.clone(),
            shard: 0,
            shards: 1,
            epoch,
            seed: 1,
            change_log,
        };
        let found = recover(&layout, &mut disk, &from, &mut |_| ()).expect("a good directory");
        let config = ShardConfig {
            slot_count: SLOTS,
            slots,
            shard: 0,
            shards: 1,
            epoch,
            seed: 1,
            session_lease: 1 << 50,
            settle: 0,
            change_log,
            validate: true,
            compaction_budget: 4096,
        };
        let journal = JournalConfig {
            slot_count: SLOTS,
            shard: 0,
            shards: 1,
            batch_records: 8,
            batch_interval: Nanos::SECOND / 20,
            segment_bytes: 12 * 1024,
            waiting_bytes_max: 64 * 1024,
            retry_interval: Nanos::SECOND,
        };
        let storage = StorageConfig {
            journal,
            snapshot_rate: 1 << 30,
            copied_snapshot_rate: 1 << 30,
            snapshot_step: 4096,
            journal_bytes_max,
        };
        let mut shard = Shard::recovered(config, found, storage);
        let mut now = Nanos(1);
        shard.handle_link_open(ReaderId(1), SessionId(1 + run), 0, true, now).expect("a session");
        for number in 0..frames {
            let frame = frame(run * frames + number, 1 + run);
            shard.handle_write(ReaderId(1), number + 1, &frame, now).expect("a good frame");
            for _ in 0..4 {
                now = now.after(Nanos::SECOND / 20);
                shard.tick(now);
                shard.seal(now);
                while let Some(request) = shard.poll_disk(now) {
                    let result = disk.run(&request.op);
                    shard.handle_disk(&DiskDone { id: request.id, result }, now);
                }
            }
        }
    }
    disk
}

fn files(disk: &MemoryDisk, ending: &str) -> Vec<Vec<u8>> {
    let contents = disk.names(ending).into_iter().filter_map(|name| disk.content(&name));
    contents.filter_map(|bytes| repair::pack(&bytes)).collect()
}

pub(super) fn journals() -> Vec<Vec<u8>> {
    // The first segment is whole in itself.
    let mut files = files(&node(1, 2, u64::MAX), ".scj");
    files.truncate(1);
    files
}

pub(super) fn snapshots() -> Vec<Vec<u8>> {
    files(&node(1, 20, 4096), ".scs")
}

pub(super) fn directories() -> Vec<Vec<u8>> {
    let disks = [node(1, 3, u64::MAX), node(2, 6, u64::MAX), node(2, 20, 4096)];
    disks.iter().filter_map(directory::write).collect()
}
