//! Data directories: read, or refused by a file's name. What was read is written again in another form and read once more.

use std::collections::BTreeMap;

use slotcast_engine::{
    change_log::ChangeLogLimits,
    disk_op::DiskQueue,
    id::{DatumKey, RegisterId, SlotId},
    journal::SegmentId,
    memory_disk::MemoryDisk,
    recover::{Layout, RecoverConfig, RecoverError, recover},
    slot::Slot,
    snapshot,
};

use super::{directory, good::SLOTS, key_of};

/// A directory of any files.
pub fn directory_is_read_or_refused(bytes: &[u8]) -> bool {
    [false, true].into_iter().fold(false, |taken, repaired| taken | is_read(directory::read(bytes, repaired)))
}

/// A directory of one journal file, the first of a stream.
pub fn journal_is_read_or_refused(packed: &[u8]) -> bool {
    let file = SegmentId { epoch: 1, shard: 0, segment: 0 }.file();
    one_file_is_read(&file, packed)
}

/// A directory of one snapshot: the slot is the one that its head names.
pub fn snapshot_is_read_or_refused(packed: &[u8]) -> bool {
    let slot = packed.get(2 + 64 + 12).map_or(0, |slot| u16::from(*slot) % SLOTS as u16);
    one_file_is_read(&snapshot::file(SlotId(slot)), packed)
}

fn one_file_is_read(name: &str, packed: &[u8]) -> bool {
    [false, true].into_iter().fold(false, |taken, repaired| {
        let mut disk = MemoryDisk::default();
        disk.put(name, directory::file(packed, repaired));
        taken | is_read(disk)
    })
}

/// A registration: version, and the record with its owner unless it is a tombstone.
type Registration = (u64, u32, Option<(Vec<u8>, u64)>);
type State = BTreeMap<(SlotId, DatumKey, RegisterId), Registration>;

fn is_read(mut disk: MemoryDisk) -> bool {
    let (layout, state, _) = match read(&mut disk, 1) {
        Ok(found) => found,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    // The same with other shards, and once more from what those have written.
    for shards in [3, 2] {
        let (_, resharded, queue) = read(&mut disk, shards).expect("what one shard can read, three can");
        assert_eq!(resharded, state, "{shards} shards read something else");
        let mut next = disk.clone();
        let (mut before, mut queue) = (DiskQueue::default(), queue);
        layout.clean_up(&mut before);
        next.run_all(&mut before).expect("a good disk");
        layout.retire(&mut queue);
        next.run_all(&mut queue).expect("a good disk");
        let (later, again, _) = read(&mut next, shards).expect("what was just written can be read");
        assert_eq!(again, state, "{shards} shards have written something else");
        assert!(later.is_empty() || later.next_epoch() >= layout.next_epoch());
    }
    true
}

fn read(disk: &mut MemoryDisk, shards: u32) -> Result<(Layout, State, DiskQueue), RecoverError> {
    let layout = Layout::read(disk, SLOTS, &["lock"])?;
    let (mut state, mut queue) = (State::new(), DiskQueue::default());
    for shard in 0..shards {
        let config = RecoverConfig {
            slot_count: SLOTS,
            slots: 0..=(SLOTS - 1) as u16,
            shard,
            shards,
            epoch: layout.next_epoch(),
            seed: 1,
            change_log: ChangeLogLimits::default(),
        };
        let found = recover(&layout, disk, &config, &mut |_| ())?;
        layout.reshard(&config, &found, &mut queue);
        for slot in found.slots.values() {
            assert!(slot.slot.revision() > slot.revision, "a revision could be used again");
            note(&slot.slot, &mut state);
        }
    }
    Ok((layout, state, queue))
}

/// Everything in a slot, each thing where it belongs.
pub(super) fn note(slot: &Slot, state: &mut State) {
    let mut publishers = 0;
    for (key, name, count) in slot.datums() {
        assert_eq!(key_of(name), Some(key), "a name that belongs to another key");
        assert_eq!(key.slot(SLOTS), slot.id(), "a data id of another slot");
        let mut found = 0;
        for (record, owner) in slot.records(key) {
            assert!(record.validate().is_ok() && record.datum() == key);
            let (version, live) = slot.version(key, record.register()).expect("it is listed");
            assert!(live);
            let content = Some((record.bytes().to_vec(), owner.0));
            let before =
                state.insert((slot.id(), key, record.register()), (version.number, version.attach, content));
            assert_eq!(before, None, "a registration is listed twice");
            found += 1;
        }
        assert_eq!(found, count);
        publishers += count;
    }
    assert_eq!((slot.publishers(), slot.digest().count), (publishers, publishers as u64));
}
