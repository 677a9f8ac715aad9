//! Directories that every later version has to read: written once per version of the format, with a list of what is in them.

use std::{fmt::Write, fs, path::Path};

use anyhow::{Context, bail, ensure};
use slotcast_engine::{
    batch::{Change, ChangeKind, Durability, write_change, write_name, write_put},
    change_log::ChangeLogLimits,
    disk_op::DiskDone,
    id::{DataId, Nanos, ReaderId, RegisterId, SessionId, Version},
    journal::JournalConfig,
    memory_disk::MemoryDisk,
    record::{Encoder, Instance, Record},
    recover::{Layout, RecoverConfig, Recovered, recover},
    shard::{Shard, ShardConfig},
    storage::StorageConfig,
};

/// Slots of the clusters that fixtures are of.
pub const SLOTS: u32 = 8;
const SERVICES: u64 = 5;
const REGISTRATIONS: u64 = 160;
const MILLI: u64 = Nanos::SECOND / 1000;

/// Writes the directory that this version writes to `folder`, which must not be there, and beside it, with the ending `txt`,
/// what is in it: several journal files and snapshots, live registrations, changed ones and removed ones.
pub fn write(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        bail!("{} is there already: a fixture is never written anew", folder.display());
    }
    let mut disk = MemoryDisk::default();
    run(&mut disk)?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for name in disk.names("") {
        fs::write(folder.join(&name), disk.content(&name).context("a file of its own list")?)?;
    }
    let text = list(disk)?;
    fs::write(folder.with_extension("txt"), text)?;
    Ok(())
}

/// What is in a directory: a line per live registration with key, register id, version, client and payload.
pub fn list_of(folder: &Path) -> anyhow::Result<String> {
    let mut disk = MemoryDisk::default();
    let listed = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in listed {
        let entry = entry?;
        disk.put(&entry.file_name().to_string_lossy(), fs::read(entry.path())?);
    }
    list(disk)
}

fn list(mut disk: MemoryDisk) -> anyhow::Result<String> {
    let (found, _) = recovered(&mut disk)?;
    let mut lines = Vec::new();
    for slot in found.slots.values().map(|found| &found.slot) {
        for (key, ..) in slot.datums() {
            for (record, _) in slot.records(key) {
                let instance = record.instance()?;
                let (version, _) = slot.version(key, record.register()).context("a listed registration")?;
                let mut line = format!(
                    "{:016x} {} {}.{} {} ",
                    key.0,
                    record.register().0,
                    version.number,
                    version.attach,
                    instance.client
                );
                instance.payload.iter().try_for_each(|byte| write!(line, "{byte:02x}"))?;
                lines.push(line);
            }
        }
    }
    lines.sort_unstable();
    Ok(lines.join("\n") + "\n")
}

fn recovered(disk: &mut MemoryDisk) -> anyhow::Result<(Recovered, u32)> {
    let layout = Layout::read(disk, SLOTS, &[])?;
    let config = RecoverConfig {
        slot_count: SLOTS,
        slots: 0..=(SLOTS - 1) as u16,
        shard: 0,
        shards: 1,
        epoch: layout.next_epoch(),
        seed: 1,
        change_log: ChangeLogLimits::default(),
    };
    Ok((recover(&layout, disk, &config, &mut |_| ())?, layout.next_epoch()))
}

/// A node of one shard with small files, written to until it has let go of some of them.
fn run(disk: &mut MemoryDisk) -> anyhow::Result<()> {
    let (found, epoch) = recovered(disk)?;
    let journal = JournalConfig {
        slot_count: SLOTS,
        shard: 0,
        shards: 1,
        batch_records: 100,
        batch_interval: 100 * MILLI,
        segment_bytes: 16 * 1024,
        waiting_bytes_max: 64 * 1024,
        retry_interval: 100 * MILLI,
    };
    let storage = StorageConfig {
        journal,
        snapshot_rate: 1 << 30,
        copied_snapshot_rate: 1 << 30,
        snapshot_step: 4096,
        journal_bytes_max: 32 * 1024,
    };
    let config = ShardConfig {
        slot_count: SLOTS,
        slots: 0..=(SLOTS - 1) as u16,
        shard: 0,
        shards: 1,
        epoch,
        seed: 1,
        session_lease: 1 << 50,
        settle: 0,
        change_log: ChangeLogLimits::default(),
        validate: true,
        compaction_budget: 1 << 20,
    };
    let mut shard = Shard::recovered(config, found, storage);
    let (mut now, mut encoder) = (Nanos(1), Encoder::default());
    shard.handle_link_open(ReaderId(1), SessionId(1), 0, true, now)?;
    for number in 0..REGISTRATIONS {
        let entries = changes(number, &mut encoder)?;
        shard.handle_write(ReaderId(1), number + 1, &entries, now)?;
        // After every eighth everything comes to rest, so that there are blocks of one batch and of several.
        for _ in 0..if number % 8 == 7 { 40 } else { 1 } {
            now = now.after(20 * MILLI);
            shard.tick(now);
            shard.seal(now);
            while let Some(request) = shard.poll_disk(now) {
                let result = disk.run(&request.op);
                shard.handle_disk(&DiskDone { id: request.id, result }, now);
            }
        }
    }
    ensure!(shard.is_disk_idle(), "something still waits for the disk");
    let [journals, snapshots, unfinished] = [".scj", ".scs", ".tmp"].map(|ending| disk.names(ending).len());
    ensure!(
        journals > 1 && snapshots > 1 && unfinished == 0,
        "{journals} journal files, {snapshots} snapshots"
    );
    Ok(())
}

/// A registration; of every third one before it the removal, of every fifth a change.
fn changes(number: u64, encoder: &mut Encoder) -> anyhow::Result<Vec<u8>> {
    let id = |number: u64| DataId::new("public", "default", &format!("kept-{}", number % SERVICES));
    let mut out = Vec::new();
    let change = |kind, id: &DataId, register, version| Change {
        kind,
        durability: Durability::Ephemeral,
        datum: id.key(),
        register: RegisterId(register),
        version: Version { number: version, attach: 1 },
        epoch: 0,
        owner: SessionId(1),
    };
    let mut put = |register: u64, version: u64, out: &mut Vec<u8>| -> anyhow::Result<()> {
        let id = id(register)?;
        let name = format!("host-{register}.example");
        let payload = format!("payload {version} of {register}").into_bytes();
        let instance = Instance { client: 7, name, zone: "z1".into(), payload };
        let record = encoder.encode(id.key(), RegisterId(register), &instance)?;
        write_name(out, id.key(), id.as_bytes());
        write_put(out, &change(ChangeKind::Put, &id, register, version), Record::read(record)?);
        Ok(())
    };
    put(number, 1, &mut out)?;
    if number % 5 == 4 {
        put(number - 2, 2, &mut out)?;
    }
    if number % 3 == 2 {
        let id = id(number - 1)?;
        write_change(&mut out, &change(ChangeKind::Remove, &id, number - 1, 3));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixture_is_written_once_and_lists_what_it_holds() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("version");
        write(&target).expect("a fixture");
        let listed = fs::read_to_string(target.with_extension("txt")).expect("a list");
        assert_eq!(list_of(&target).expect("it can be read"), listed);
        let removed = (0..REGISTRATIONS).filter(|number| number % 3 == 2).count();
        assert_eq!(listed.lines().count(), REGISTRATIONS as usize - removed);
        assert!(listed.lines().any(|line| line.contains(" 2.1 ")), "some were changed");
        assert!(write(&target).is_err());
    }

    #[test]
    fn every_version_kept_here_holds_what_is_listed() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/fixtures");
        let folders = fs::read_dir(fixtures).expect("a folder").map(|entry| entry.expect("an entry").path());
        let mut found = 0;
        for folder in folders.filter(|path| path.is_dir()) {
            let listed = fs::read_to_string(folder.with_extension("txt")).expect("a list");
            assert_eq!(list_of(&folder).expect("it can be read"), listed, "{}", folder.display());
            found += 1;
        }
        assert!(found > 0);
    }
}
