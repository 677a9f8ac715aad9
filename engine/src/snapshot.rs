//! A slot's snapshot: one file, written in steps while the slot goes on, renamed into its place when it is whole.
//!
//! The file says at which revision the scan began. What changed during the scan may be in it or not, so it is worth
//! something only together with the batches since then; it takes its place only once those are durable.

use crate::{
    block::{self, BlockKind, u32_at, u64_at},
    disk_op::{DiskOp, DiskQueue, OpId},
    id::{Revision, SlotId},
    slot::{ScanCursor, Slot},
};

/// Version of the format that is written.
pub const VERSION: u32 = 1;
/// Bytes of one block of entries, about, unless told otherwise.
pub const STEP_BYTES: usize = 256 * 1024;
const HEAD_BYTES: usize = 32;
const END_BYTES: usize = 16;

/// Name of a slot's snapshot.
pub fn file(slot: SlotId) -> String {
    format!("slot-{:05}.scs", slot.0)
}

/// Name of a snapshot that is not whole yet.
pub fn temporary(slot: SlotId) -> String {
    format!("slot-{:05}.tmp", slot.0)
}

/// Reads a file's name: the slot, and whether it is in its place.
pub fn from_file(name: &str) -> Option<(SlotId, bool)> {
    let (number, ending) = name.strip_prefix("slot-")?.split_once('.')?;
    let slot = SlotId(number.parse().ok()?);
    [(file(slot), true), (temporary(slot), false)]
        .into_iter()
        .find_map(|(known, whole)| (known == name && ending.len() == 3).then_some((slot, whole)))
}

/// The first block of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotHead {
    /// Slots of the whole cluster.
    pub slot_count: u32,
    /// Shards of the node that wrote it.
    pub shards: u32,
    /// The slot.
    pub slot: SlotId,
    /// The slot's revision when the scan began.
    pub revision: Revision,
    /// Largest leader epoch that the run which wrote it may have opened.
    pub epochs_to: u32,
}

impl SnapshotHead {
    /// Appends the content of the block.
    pub fn write(&self, out: &mut Vec<u8>) {
        for value in [VERSION, self.slot_count, self.shards, u32::from(self.slot.0)] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend_from_slice(&self.revision.0.to_le_bytes());
        out.extend_from_slice(&self.epochs_to.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
    }

    /// Reads the content of a head block. `Err` says what is wrong.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() != HEAD_BYTES {
            return Err("the head of the snapshot has a wrong length".into());
        }
        if u32_at(bytes, 0) != VERSION {
            return Err(format!(
                "written in version {} of the format, this program reads version {VERSION}",
                u32_at(bytes, 0)
            ));
        }
        if u32_at(bytes, 24) > Revision::EPOCH_MAX {
            return Err(format!("an epoch that cannot be: {}", u32_at(bytes, 24)));
        }
        let slot = u16::try_from(u32_at(bytes, 12)).map_err(|_| "a slot that cannot be".to_string())?;
        Ok(Self {
            slot_count: u32_at(bytes, 4),
            shards: u32_at(bytes, 8),
            slot: SlotId(slot),
            revision: Revision(u64_at(bytes, 16)),
            epochs_to: u32_at(bytes, 24),
        })
    }
}

/// Reads the content of the last block: how many entries the file has.
pub fn read_end(bytes: &[u8]) -> Result<u64, String> {
    if bytes.len() == END_BYTES { Ok(u64_at(bytes, 0)) } else { Err("the end has a wrong length".into()) }
}

/// What a scan waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Steps are taken.
    Scanning,
    /// The file is written and has to become durable, by this operation.
    Syncing(OpId),
    /// The journal has to reach this frame.
    Journal(u64),
    /// The file takes its place; done with this operation.
    Renaming(OpId),
}

/// A snapshot that is being written.
pub struct Scan {
    /// The slot.
    pub slot: SlotId,
    /// Its revision when the scan began.
    pub revision: Revision,
    /// What it waits for.
    pub phase: Phase,
    /// The first operation of this scan.
    pub first: OpId,
    /// Bytes written.
    pub bytes: u64,
    step: usize,
    cursor: ScanCursor,
    sequence: u64,
    chain: u64,
    entries: u64,
}

impl Scan {
    /// Begins a snapshot of `slot` as it is now. Of the head, slot and revision say what the scan is; `step` is
    /// the size of its blocks, about.
    pub fn begin(head: SnapshotHead, step: usize, disk: &mut DiskQueue) -> Self {
        let mut scan = Self {
            slot: head.slot,
            revision: head.revision,
            phase: Phase::Scanning,
            first: disk.push(DiskOp::Create { file: temporary(head.slot) }),
            bytes: 0,
            step,
            cursor: ScanCursor::default(),
            sequence: 0,
            chain: 0,
            entries: 0,
        };
        let mut bytes = block::begin();
        head.write(&mut bytes);
        let bytes = scan.seal(bytes, BlockKind::Head);
        scan.write(bytes, disk);
        scan
    }

    /// Scans on for about one block. Returns the bytes that it made.
    pub fn step(&mut self, slot: &Slot, disk: &mut DiskQueue) -> usize {
        debug_assert_eq!((slot.id(), self.phase), (self.slot, Phase::Scanning));
        let (blocks, complete) = self.blocks(slot);
        let before = self.bytes;
        blocks.into_iter().for_each(|bytes| self.write(bytes, disk));
        if complete {
            self.phase = Phase::Syncing(disk.push(DiskOp::Sync { file: temporary(self.slot) }));
        }
        (self.bytes - before) as usize
    }

    /// Gives the file its place. Everything in it and in the journal has to be durable.
    pub fn rename(&mut self, disk: &mut DiskQueue) {
        disk.push(DiskOp::Rename { from: temporary(self.slot), to: file(self.slot) });
        self.phase = Phase::Renaming(disk.push(DiskOp::SyncNames));
    }

    /// Writes a whole snapshot at once and gives it its place, for a slot that nobody changes meanwhile. The names have to be
    /// made durable afterwards.
    pub fn whole(head: SnapshotHead, slot: &Slot, disk: &mut DiskQueue) {
        let mut scan = Self::begin(head, STEP_BYTES, disk);
        while scan.phase == Phase::Scanning {
            scan.step(slot, disk);
        }
        disk.push(DiskOp::Rename { from: temporary(head.slot), to: file(head.slot) });
    }

    fn blocks(&mut self, slot: &Slot) -> (Vec<Vec<u8>>, bool) {
        let mut bytes = block::begin();
        let (entries, complete) = slot.scan(&mut self.cursor, self.step, &mut bytes);
        self.entries += entries;
        let mut blocks = vec![self.seal(bytes, BlockKind::Entries)];
        if complete {
            let mut end = block::begin();
            end.extend_from_slice(&self.entries.to_le_bytes());
            end.extend_from_slice(&[0; 8]);
            blocks.push(self.seal(end, BlockKind::End));
        }
        (blocks, complete)
    }

    fn seal(&mut self, mut bytes: Vec<u8>, kind: BlockKind) -> Vec<u8> {
        self.chain = block::seal(&mut bytes, kind, self.revision.0, self.sequence, self.chain);
        self.sequence += 1;
        bytes
    }

    fn write(&mut self, bytes: Vec<u8>, disk: &mut DiskQueue) {
        let offset = self.bytes;
        self.bytes += bytes.len() as u64;
        disk.push(DiskOp::Write { file: temporary(self.slot), offset, bytes });
    }
}
