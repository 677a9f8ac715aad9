//! Directories in memory, damaged, and what is salvaged of them: nothing that was not there, and what can be proved exactly.

use std::collections::{BTreeMap, BTreeSet};

use slotcast_engine::{
    disk_op::{DiskQueue, SECTOR_BYTES},
    id::{DatumKey, RegisterId},
    memory_disk::MemoryDisk,
    recover::{Layout, Salvaged, salvage},
};

use crate::{
    disk::{Kept, edited, recovered},
    support::{Frame, List, data_id, list_of, version},
};

const SLOTS: u32 = 8;
type Lists = BTreeMap<DatumKey, List>;
/// Every content that a registration has ever had.
type Ever = BTreeSet<(DatumKey, RegisterId, Vec<u8>)>;

/// A directory with segments and, below `journal_bytes_max`, with snapshots; its lists; and all that it ever held.
fn directory(journal_bytes_max: u64) -> (MemoryDisk, Lists, Ever) {
    let mut kept = Kept::start_leased(MemoryDisk::default(), (16 * 1024, journal_bytes_max), 1 << 50);
    let mut ever = Ever::new();
    for round in 0..12u64 {
        for number in 0..8 {
            let (id, register) = (data_id(&format!("salvaged-{}", number % 6)), number + round % 3);
            let payload = format!("{round}-{number}").into_bytes();
            let number = version(1 + round, 1);
            let frame = Frame::of(number.number % 2).name(&id);
            let frame = frame.put(&id, register + number.number % 2 * 100, number, 7, &payload);
            ever.insert((id.key(), RegisterId(register + number.number % 2 * 100), payload));
            kept.write(&frame);
        }
        kept.settle();
    }
    let lists = lists_of(kept.shard.slots());
    (kept.memory, lists, ever)
}

fn lists_of<'a>(slots: impl Iterator<Item = &'a slotcast_engine::slot::Slot>) -> Lists {
    let mut lists = Lists::new();
    for slot in slots {
        lists.extend(slot.datums().map(|(datum, ..)| (datum, list_of(slot, datum))));
    }
    lists
}

/// Salvages, writes, and reads the result as a node would.
fn salvaged(memory: &MemoryDisk) -> (Salvaged, Lists) {
    let found = salvage(&mut memory.clone(), SLOTS, &[]).expect("a directory of this cluster");
    let (mut out, mut queue) = (MemoryDisk::default(), DiskQueue::default());
    found.write(&mut queue);
    out.run_all(&mut queue).expect("a disk with room");
    let (lists, _) = recovered(&out, 1).expect("the result opens like any other");
    let layout = Layout::read(&mut out, SLOTS, &[]).expect("and again");
    assert!(layout.next_epoch() > found.epoch);
    assert_eq!(lists, lists_of(found.slots.values().map(|slot| &slot.slot)));
    (found, lists)
}

/// Nothing is made up, and slots that are said to be whole are.
fn check(found: &Salvaged, lists: &Lists, truth: &Lists, ever: &Ever) {
    for (datum, list) in lists {
        for (register, (_, payload)) in list {
            assert!(ever.contains(&(*datum, *register, payload.clone())), "{register:?} never held this");
        }
    }
    for (id, _) in found.slots.iter().filter(|(_, slot)| slot.is_whole) {
        let of_slot = |lists: &Lists| -> Lists {
            let held = lists.iter().filter(|(datum, list)| datum.slot(SLOTS) == *id && !list.is_empty());
            held.map(|(datum, list)| (*datum, list.clone())).collect()
        };
        assert_eq!(of_slot(lists), of_slot(truth), "slot {} is said to be whole", id.0);
    }
}

/// Every file with what it holds.
fn contents(memory: &MemoryDisk) -> Vec<(String, Vec<u8>)> {
    let names = memory.names("");
    names.into_iter().map(|name| (name.clone(), memory.content(&name).expect("it is there"))).collect()
}

fn count(lists: &Lists) -> usize {
    lists.values().map(List::len).sum()
}

#[test]
fn a_good_directory_is_salvaged_whole() {
    for journal_bytes_max in [u64::MAX, 16 * 1024] {
        let (memory, lists, _) = directory(journal_bytes_max);
        assert_eq!(memory.names(".scs").is_empty(), journal_bytes_max == u64::MAX);
        let (found, salvaged) = salvaged(&memory);
        assert_eq!((found.faults, salvaged, found.nameless), (Vec::new(), lists, 0));
        assert!(found.slots.values().all(|slot| slot.is_whole));
    }
}

#[test]
fn a_flipped_bit_costs_its_block_and_is_named() {
    for journal_bytes_max in [u64::MAX, 16 * 1024] {
        let (memory, truth, ever) = directory(journal_bytes_max);
        let last = memory.names(".scj").pop().expect("a journal");
        let (mut whole, mut uncertain, mut damaged, mut kept) = (0, 0, 0, 0);
        for (file, bytes) in &contents(&memory) {
            for block in (0..bytes.len()).step_by(SECTOR_BYTES) {
                let broken = edited(&memory, file, |content| content[block + 70] ^= 4);
                let (found, lists) = salvaged(&broken);
                let named = found.faults.iter().any(|it| it.file == *file && it.offset == Some(block as u64));
                assert!(named, "{file} at {block}: {:?}", found.faults);
                // The last block of all is taken for one that a crash tore.
                let is_end = *file == last && block + SECTOR_BYTES == bytes.len();
                if !is_end {
                    check(&found, &lists, &truth, &ever);
                }
                // The journal tells a name once: the block that has it takes all puts of the data id along.
                let most = count(&lists) * 2 > count(&truth);
                assert!(most || found.nameless > 0, "{file} at {block}: {lists:?}");
                damaged += 1;
                kept += usize::from(most);
                whole += found.slots.values().filter(|slot| slot.is_whole).count();
                uncertain += found.slots.values().filter(|slot| !slot.is_whole).count();
            }
        }
        assert!(whole > 0 && uncertain > 0, "{whole} {uncertain}");
        assert!(kept * 10 >= damaged * 8, "most was kept {kept} times of {damaged}");
    }
}

#[test]
fn a_file_that_is_cut_off_keeps_what_is_before_and_what_is_in_others() {
    for journal_bytes_max in [u64::MAX, 16 * 1024] {
        let (memory, truth, ever) = directory(journal_bytes_max);
        let last = memory.names(".scj").pop().expect("a journal");
        for (file, bytes) in &contents(&memory) {
            for cut in [bytes.len() / 2 + 100, bytes.len() / 2 / SECTOR_BYTES * SECTOR_BYTES, 10, 0] {
                let broken = edited(&memory, file, |content| content.truncate(cut));
                let (found, lists) = salvaged(&broken);
                // Where the last segment ends between two blocks is where it ended.
                let is_end = *file == last && cut.is_multiple_of(SECTOR_BYTES);
                let named = found.faults.iter().any(|fault| fault.file == *file);
                assert!(named || is_end, "{file} cut at {cut}: {:?}", found.faults);
                if *file != last {
                    check(&found, &lists, &truth, &ever);
                }
            }
        }
    }
}

#[test]
fn missing_and_foreign_files_are_named() {
    for journal_bytes_max in [u64::MAX, 16 * 1024] {
        let (memory, truth, ever) = directory(journal_bytes_max);
        let last = memory.names(".scj").pop().expect("a journal");
        for file in memory.names(".scj").iter().filter(|file| **file != last) {
            let mut broken = memory.clone();
            broken.remove(file);
            let (found, lists) = salvaged(&broken);
            assert!(found.faults.iter().any(|fault| fault.file == *file), "{file}: {:?}", found.faults);
            check(&found, &lists, &truth, &ever);
        }
        let mut more = memory.clone();
        more.put("notes.txt", b"mine".to_vec());
        more.put("slot-00003.tmp", b"begun".to_vec());
        let (found, lists) = salvaged(&more);
        assert_eq!(lists, truth);
        let files: Vec<_> = found.faults.iter().map(|fault| fault.file.as_str()).collect();
        assert_eq!(files, ["notes.txt"]);
        assert!(salvage(&mut memory.clone(), 16, &[]).is_err(), "another slot count is told, not salvaged");
    }
}

#[test]
fn of_a_directory_of_which_nothing_is_good_the_epochs_are_kept() {
    let (memory, ..) = directory(u64::MAX);
    let broken = memory.names("").iter().fold(memory.clone(), |broken, file| {
        edited(&broken, file, |content| content.iter_mut().for_each(|byte| *byte ^= 0x55))
    });
    let next = Layout::read(&mut memory.clone(), SLOTS, &[]).expect("good").next_epoch();
    let (found, lists) = salvaged(&broken);
    assert!(lists.is_empty() && found.slots.is_empty());
    assert_eq!(found.faults.len(), memory.names("").len());
    assert!(found.epoch + 1 >= next);
}
