//! Directories in memory: what a shard writes, damaged in every way that a disk can damage it, and read again.

use std::{collections::BTreeMap, fs, path::Path};

use slotcast_engine::{
    batch::{self, Change, ChangeKind, Durability, write_change, write_name},
    change_log::ChangeLogLimits,
    digest::Digest,
    disk_op::{DiskDone, DiskQueue, SECTOR_BYTES},
    id::{DataId, DatumKey, Nanos, ReaderId, RegisterId, SessionId},
    journal::JournalConfig,
    memory_disk::MemoryDisk,
    recover::{
        Epochs, Layout, Loaded, RecoverConfig, RecoverError, Recovered, RecoveredSlot, finish, load, recover,
    },
    shard::{Shard, ShardConfig},
    slot::Slot,
    storage::{StorageConfig, StorageState},
};

use crate::support::{Frame, List, MILLI, config, data_id, list_of, version};

const SLOTS: u32 = 8;

/// A directory of this repository.
fn fixture(name: &str) -> MemoryDisk {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let mut disk = MemoryDisk::default();
    for entry in fs::read_dir(folder).expect("the fixture is there") {
        let entry = entry.expect("a readable folder");
        let bytes = fs::read(entry.path()).expect("a readable file");
        disk.put(&entry.file_name().to_string_lossy(), bytes);
    }
    disk
}

fn bytes_of(disk: &MemoryDisk, file: &str) -> usize {
    disk.content(file).expect("it is there").len()
}

/// The same disk with one file changed.
pub(crate) fn edited(disk: &MemoryDisk, file: &str, edit: impl FnOnce(&mut Vec<u8>)) -> MemoryDisk {
    let mut disk = disk.clone();
    let mut bytes = disk.remove(file).expect("it is there");
    edit(&mut bytes);
    disk.put(file, bytes);
    disk
}

/// The lists that a directory holds, by data id, and what was read.
pub(crate) fn recovered(
    memory: &MemoryDisk,
    shards: u32,
) -> Result<(BTreeMap<DatumKey, List>, Vec<Recovered>), RecoverError> {
    let mut memory = memory.clone();
    let layout = Layout::read(&mut memory, SLOTS, &[])?;
    let (mut lists, mut all) = (BTreeMap::new(), Vec::new());
    for shard in 0..shards {
        let config = recover_config(shard, shards, layout.next_epoch());
        let found = recover(&layout, &mut memory, &config, &mut |_| ())?;
        for slot in found.slots.values() {
            let slot = &slot.slot;
            lists.extend(slot.datums().map(|(datum, ..)| (datum, list_of(slot, datum))));
        }
        all.push(found);
    }
    Ok((lists, all))
}

fn recover_config(shard: u32, shards: u32, epoch: u32) -> RecoverConfig {
    RecoverConfig {
        slot_count: SLOTS,
        slots: 0..=(SLOTS - 1) as u16,
        shard,
        shards,
        epoch,
        seed: 1,
        change_log: ChangeLogLimits::default(),
    }
}

/// A node of one shard on a directory.
pub(crate) struct Kept {
    pub(crate) shard: Shard,
    pub(crate) memory: MemoryDisk,
    pub(crate) now: Nanos,
    pub(crate) sequence: u64,
}

impl Kept {
    fn start(memory: MemoryDisk, segment_bytes: u64, journal_bytes_max: u64) -> Self {
        Self::start_leased(memory, (segment_bytes, journal_bytes_max), 1 << 50)
    }

    /// With a lease of sessions.
    pub(crate) fn start_leased(
        mut memory: MemoryDisk,
        (segment_bytes, journal_bytes_max): (u64, u64),
        session_lease: u64,
    ) -> Self {
        let layout = Layout::read(&mut memory, SLOTS, &[]).expect("a directory that can be read");
        let recover_config = recover_config(0, 1, layout.next_epoch());
        let found = recover(&layout, &mut memory, &recover_config, &mut |_| ()).expect("it can be read");
        let storage = StorageConfig {
            journal: JournalConfig {
                slot_count: SLOTS,
                shard: 0,
                shards: 1,
                batch_records: 100,
                batch_interval: 100 * MILLI,
                segment_bytes,
                waiting_bytes_max: 64 * 1024,
                retry_interval: 100 * MILLI,
            },
            snapshot_rate: 1 << 30,
            copied_snapshot_rate: 1 << 30,
            snapshot_step: 4096,
            journal_bytes_max,
        };
        let config = ShardConfig { epoch: layout.next_epoch(), session_lease, ..config(SLOTS) };
        let shard = Shard::recovered(config, found, storage);
        let mut kept = Self { shard, memory, now: Nanos(1), sequence: 0 };
        kept.settle();
        kept.shard.handle_link_open(ReaderId(1), SessionId(1), 0, true, kept.now).expect("a session");
        kept
    }

    /// Carries out what is asked for, without letting time pass.
    pub(crate) fn disk(&mut self) {
        self.shard.seal(self.now);
        while let Some(request) = self.shard.poll_disk(self.now) {
            let result = self.memory.run(&request.op);
            self.shard.handle_disk(&DiskDone { id: request.id, result }, self.now);
        }
    }

    /// Lets time pass until everything is on the disk.
    pub(crate) fn settle(&mut self) {
        for _ in 0..50 {
            self.now = self.now.after(20 * MILLI);
            self.disk();
        }
        assert!(self.memory.is_full || self.shard.is_disk_idle());
    }

    pub(crate) fn write(&mut self, frame: &Frame) {
        self.sequence += 1;
        self.shard.handle_write(ReaderId(1), self.sequence, &frame.bytes, self.now).expect("taken");
        self.disk();
    }

    /// Puts `count` registrations of some data ids, under numbers from `from` on.
    pub(crate) fn fill(&mut self, from: u64, count: u64) {
        for number in from..from + count {
            let id = service(number % 5);
            let payload = format!("payload of {number}");
            let frame = Frame::of(1).name(&id).put(&id, number, version(number, 1), 7, payload.as_bytes());
            self.write(&frame);
            if number % 3 == 2 {
                let id = service((number - 1) % 5);
                self.write(&Frame::of(1).remove(&id, number - 1, version(number, 1)));
            }
        }
        self.settle();
    }

    fn lists(&self) -> BTreeMap<DatumKey, List> {
        let mut lists = BTreeMap::new();
        for slot in self.shard.slots() {
            lists.extend(slot.datums().map(|(datum, ..)| (datum, list_of(slot, datum))));
        }
        lists
    }

    pub(crate) fn state(&self) -> StorageState {
        self.shard.storage().expect("a shard with storage").state()
    }
}

fn service(number: u64) -> DataId {
    data_id(&format!("kept-{number}"))
}

/// A directory with several segments and no snapshots.
fn journal_only() -> (MemoryDisk, BTreeMap<DatumKey, List>) {
    let mut kept = Kept::start(MemoryDisk::default(), 16 * 1024, u64::MAX);
    for round in 0..8 {
        kept.fill(round * 100, 10);
    }
    assert!(kept.memory.names(".scj").len() >= 3 && kept.memory.names(".scs").is_empty());
    (kept.memory.clone(), kept.lists())
}

#[test]
fn what_was_written_is_read_back_by_any_number_of_shards() {
    let (memory, lists) = journal_only();
    assert!(lists.values().map(List::len).sum::<usize>() > 40);
    for shards in [1, 2, 3, 7] {
        let (found, _) = recovered(&memory, shards).expect("a good directory");
        assert_eq!(found, lists, "{shards} shards");
    }
}

#[test]
fn journal_files_go_behind_snapshots_and_a_restart_needs_neither_more_nor_less() {
    let mut kept = Kept::start(MemoryDisk::default(), 16 * 1024, 32 * 1024);
    for round in 0..40 {
        kept.fill(round * 100, 10);
    }
    assert!(!kept.memory.names(".scs").is_empty() && kept.memory.names(".tmp").is_empty());
    assert!(kept.memory.names(".scj").len() <= 6, "{:?}", kept.memory.names(".scj"));
    let (found, _) = recovered(&kept.memory, 1).expect("a good directory");
    assert_eq!(found, kept.lists());
    // The next run lets go of the earlier one's journal, though nobody writes.
    let mut next = Kept::start(kept.memory.clone(), 16 * 1024, 32 * 1024);
    next.settle();
    assert_eq!((next.lists(), next.memory.names(".scj").len()), (kept.lists(), 1));
    assert!(next.shard.epoch() > kept.shard.epoch());
    assert_eq!(recovered(&next.memory, 1).expect("a good directory").0, kept.lists());
}

#[test]
fn snapshots_may_be_loaded_by_several_and_in_any_order() {
    let mut kept = Kept::start(MemoryDisk::default(), 16 * 1024, 32 * 1024);
    for round in 0..40 {
        kept.fill(round * 100, 10);
    }
    let mut memory = kept.memory.clone();
    let layout = Layout::read(&mut memory, SLOTS, &[]).expect("a good directory");
    let config = recover_config(0, 1, layout.next_epoch());
    let snapshots = layout.snapshots(&config).expect("slots that the node leads");
    assert_eq!(snapshots.len(), memory.names(".scs").len());
    assert!(snapshots.len() > 2);
    let mut parts = [Loaded::default(), Loaded::default()];
    for (at, slot) in snapshots.iter().rev().enumerate() {
        load(&layout, &mut memory, &config, *slot, &mut parts[at % 2], &mut |_| ()).expect("a good snapshot");
    }
    let [mut one, other] = parts;
    one.join(other);
    let apart =
        finish(&layout, &mut memory, (&config, Epochs::OfTheRun), one, &mut |_| ()).expect("a good journal");
    let (lists, at_once) = recovered(&kept.memory, 1).expect("a good directory");
    assert_eq!((&apart.report, apart.kept.len()), (&at_once[0].report, at_once[0].kept.len()));
    let found = apart.slots.values().flat_map(|slot| {
        let slot = &slot.slot;
        slot.datums().map(|(datum, ..)| (datum, list_of(slot, datum))).collect::<Vec<_>>()
    });
    assert_eq!(found.collect::<BTreeMap<_, _>>(), lists);
    assert_eq!(lists, kept.lists());
}

#[test]
fn a_slot_that_lies_idle_does_not_keep_journal_files() {
    let mut kept = Kept::start(MemoryDisk::default(), 16 * 1024, 32 * 1024);
    kept.fill(0, 1);
    for number in 1..2000u64 {
        let id = service(1);
        kept.write(&Frame::of(1).name(&id).put(&id, 1, version(number, 1), 7, &[number as u8; 100]));
        kept.now = kept.now.after(60 * MILLI);
    }
    kept.settle();
    assert!(kept.memory.names(".scj").len() <= 6, "{:?}", kept.memory.names(".scj"));
    assert_eq!(recovered(&kept.memory, 1).expect("a good directory").0, kept.lists());
}

#[test]
fn a_torn_end_is_cut_off_and_reported() {
    let (memory, lists) = journal_only();
    let last = memory.names(".scj").pop().expect("a journal");
    let bytes = bytes_of(&memory, &last);
    for cut in [1, 100, SECTOR_BYTES - 1, SECTOR_BYTES] {
        let torn = edited(&memory, &last, |content| content.truncate(bytes - cut));
        let (found, all) = recovered(&torn, 1).expect("only the end is torn");
        let reported = all[0].report.torn.first().map(|(file, ..)| file.clone());
        let whole_block = cut == SECTOR_BYTES;
        assert_eq!(reported, (!whole_block).then(|| last.clone()), "cut by {cut}");
        assert_ne!(found, lists, "the last block is gone");
    }
}

#[test]
fn every_flipped_bit_before_the_last_block_is_refused_by_file_and_offset() {
    let (memory, _) = journal_only();
    let mut files = memory.names(".scj");
    let last = files.pop().expect("a journal");
    let end = bytes_of(&memory, &last) - SECTOR_BYTES;
    for (file, bytes) in files.iter().map(|file| (file, bytes_of(&memory, file))).chain([(&last, end)]) {
        for block in (0..bytes).step_by(SECTOR_BYTES) {
            // One in the header, one in the content of each block.
            for at in [block + 20, block + 70] {
                let broken = edited(&memory, file, |content| content[at] ^= 4);
                match recovered(&broken, 1).map(|(lists, _)| lists) {
                    Err(RecoverError::Damaged { file: named, offset, .. }) => {
                        assert_eq!((&named, offset), (file, block as u64), "byte {at}");
                    }
                    other => panic!("{file}, byte {at}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn a_missing_journal_file_is_refused_by_name() {
    let (memory, _) = journal_only();
    let files = memory.names(".scj");
    for lost in &files[..files.len() - 1] {
        let mut broken = memory.clone();
        broken.remove(lost);
        let error = recovered(&broken, 1).map(|(lists, _)| lists).expect_err("a file is missing");
        assert!(matches!(&error, RecoverError::Missing { file, .. } if file == lost), "{error}");
    }
}

#[test]
fn a_missing_journal_file_is_noticed_behind_one_that_should_be_gone() {
    let mut kept = Kept::start(MemoryDisk::default(), 16 * 1024, 96 * 1024);
    kept.fill(0, 10);
    let first = kept.memory.names(".scj").remove(0);
    let before = kept.memory.clone();
    for round in 1..40 {
        kept.fill(round * 100, 10);
    }
    let left = kept.memory.names(".scj");
    assert!(left.len() >= 2 && !left.contains(&first), "{left:?}");
    // Its deletion was lost in a crash.
    kept.memory.put(&first, before.content(&first).expect("it was there"));
    assert_eq!(recovered(&kept.memory, 1).expect("a good directory").0, kept.lists());
    kept.memory.remove(&left[0]);
    let error = recovered(&kept.memory, 1).map(|(lists, _)| lists).expect_err("a file is missing");
    assert!(matches!(&error, RecoverError::Missing { file, .. } if *file == left[0]), "{error}");
}

#[test]
fn a_batch_of_another_shard_is_refused_however_many_read_it() {
    let (mut memory, _) = journal_only();
    for file in memory.names(".scj") {
        memory = edited(&memory, &file, |bytes| {
            // The shard count in the head.
            bytes[64 + 8] = 3;
            crate::fuzz::repair::blocks(bytes);
        });
    }
    for shards in [1, 2, 3] {
        let error = recovered(&memory, shards).map(|(lists, _)| lists).expect_err("not what it says it is");
        assert!(matches!(&error, RecoverError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("another shard"), "{error}");
    }
}

#[test]
fn damaged_and_missing_snapshots_are_refused_by_name() {
    let mut kept = Kept::start(MemoryDisk::default(), 16 * 1024, 32 * 1024);
    for round in 0..40 {
        kept.fill(round * 100, 10);
    }
    for file in kept.memory.names(".scs") {
        for at in (0..bytes_of(&kept.memory, &file)).step_by(SECTOR_BYTES).map(|block| block + 66) {
            let broken = edited(&kept.memory, &file, |content| content[at] ^= 1);
            let error = recovered(&broken, 1).map(|(lists, _)| lists).expect_err("damage");
            assert!(matches!(&error, RecoverError::Damaged { file: named, .. } if *named == file), "{error}");
        }
        let cut = edited(&kept.memory, &file, |content| content.truncate(2 * SECTOR_BYTES));
        assert!(matches!(recovered(&cut, 1), Err(RecoverError::Damaged { .. })), "{file} without its end");
        let mut lost = kept.memory.clone();
        lost.remove(&file);
        if let Ok((found, _)) = recovered(&lost, 1) {
            panic!("{file} is lost, and {} data ids are taken for all", found.len());
        }
    }
}

#[test]
fn a_deleted_snapshot_is_missed_though_no_journal_goes_on_from_it() {
    let mut kept = Kept::start(MemoryDisk::default(), 16 * 1024, 32 * 1024);
    for round in 0..40 {
        kept.fill(round * 100, 10);
    }
    for start in 0..3 {
        // Another run begins: every slot gets a snapshot, and nothing follows it.
        kept = Kept::start(kept.memory, 16 * 1024, 32 * 1024);
        let snapshots = kept.memory.names(".scs");
        assert!(!snapshots.is_empty());
        for file in snapshots {
            let mut lost = kept.memory.clone();
            lost.remove(&file);
            let error = recovered(&lost, 1).map(|(lists, _)| lists).expect_err("a snapshot is missing");
            let named = matches!(&error, RecoverError::Missing { file: named, .. } if *named == file);
            assert!(named, "start {start}: {error}");
        }
    }
}

#[test]
fn foreign_files_and_another_slot_count_are_refused() {
    let (memory, _) = journal_only();
    for name in ["notes.txt", "slot-1.scs", "slot-00001.scs.old", "journal-1-0-0.scj", "lock2"] {
        let mut more = memory.clone();
        more.put(name, vec![1]);
        let error = recovered(&more, 1).map(|(lists, _)| lists).expect_err("a foreign file");
        assert_eq!(error, RecoverError::Foreign(name.into()));
    }
    let error = Layout::read(&mut memory.clone(), 16, &[]).err().expect("another slot count");
    assert!(matches!(error, RecoverError::Settings { .. }), "{error}");
}

#[test]
fn a_full_disk_is_survived_and_everything_is_whole_afterwards() {
    let mut kept = Kept::start(MemoryDisk::default(), 16 * 1024, u64::MAX);
    kept.fill(0, 10);
    let before = kept.lists();
    kept.memory.is_full = true;
    kept.fill(100, 10);
    assert_eq!(kept.state(), StorageState::Failed);
    assert_ne!(kept.lists(), before, "ephemeral service goes on");
    assert_eq!(recovered(&kept.memory, 1).expect("what was there").0, before);
    kept.memory.is_full = false;
    kept.settle();
    assert_eq!(kept.state(), StorageState::Whole);
    assert_eq!(recovered(&kept.memory, 1).expect("whole again").0, kept.lists());
    kept.fill(200, 10);
    assert_eq!(recovered(&kept.memory, 1).expect("and going on").0, kept.lists());
}

#[test]
fn another_shard_count_takes_everything_along() {
    let (mut memory, lists) = journal_only();
    let mut epochs = Vec::new();
    for shards in [2, 3, 1] {
        let layout = Layout::read(&mut memory, SLOTS, &[]).expect("a good directory");
        epochs.push(layout.next_epoch());
        let mut queue = DiskQueue::default();
        for shard in 0..shards {
            let config = recover_config(shard, shards, layout.next_epoch());
            let found = recover(&layout, &mut memory, &config, &mut |_| ()).expect("a good directory");
            layout.reshard(&config, &found, &mut queue);
        }
        layout.retire(&mut queue);
        memory.run_all(&mut queue).expect("a good disk");
        assert!(memory.names(".scj").is_empty());
        assert_eq!(recovered(&memory, shards).expect("a good directory").0, lists, "{shards} shards");
        assert_eq!(Layout::read(&mut memory, SLOTS, &[]).expect("good").next_epoch(), epochs[0]);
    }
}

#[test]
fn the_fixture_of_version_2_is_still_read() {
    let memory = fixture("version-2");
    assert!(!memory.names(".scj").is_empty() && !memory.names(".scs").is_empty());
    let (_, all) = recovered(&memory, 1).expect("a good directory");
    let nobody = |slot: &RecoveredSlot| slot.slot.session_digest(SessionId::NOBODY).count;
    assert_eq!(all[0].slots.values().map(nobody).sum::<u64>(), 2, "persistent registrations");
    assert!(all[0].report.snapshots > 0 && all[0].report.batches > 0 && all[0].report.torn.is_empty());
}

#[test]
fn the_fixture_of_version_1_is_still_read() {
    let memory = fixture("version-1");
    assert!(!memory.names(".scj").is_empty() && !memory.names(".scs").is_empty());
    // What wrote it wrote the same into memory.
    let mut kept = Kept::start(MemoryDisk::default(), 16 * 1024, 32 * 1024);
    for round in 0..16 {
        kept.fill(round * 100, 10);
    }
    let (found, all) = recovered(&memory, 1).expect("a good directory");
    assert_eq!(found, kept.lists());
    assert!(all[0].report.snapshots > 0 && all[0].report.batches > 0 && all[0].report.torn.is_empty());
}

#[test]
fn a_touch_behind_a_scan_that_has_its_removal_does_nothing() {
    let id = data_id("checkout");
    let change = |kind, number| Change {
        kind,
        durability: Durability::Ephemeral,
        datum: id.key(),
        register: RegisterId(1),
        version: version(number, 1),
        epoch: 1,
        owner: SessionId(1),
    };
    let mut entries = Vec::new();
    write_name(&mut entries, id.key(), id.as_bytes());
    // The scan came to it after it was removed; the batches from before are applied over that.
    for (kind, number) in [(ChangeKind::Remove, 3), (ChangeKind::Touch, 2), (ChangeKind::Remove, 3)] {
        write_change(&mut entries, &change(kind, number));
    }
    let mut slot = Slot::open(id.key().slot(SLOTS), 1, 1, 0, ChangeLogLimits::default());
    batch::entries(&entries).for_each(|entry| assert!(slot.restore(entry.expect("it was written here"))));
    assert_eq!(slot.digest(), Digest::default());
    assert_eq!(slot.version(id.key(), RegisterId(1)), Some((version(3, 1), false)));
}
