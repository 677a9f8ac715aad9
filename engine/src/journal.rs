//! The journal of one shard: sealed batches as they are, in blocks, in files of bounded size.
//!
//! A run of a shard writes one *stream*: segments numbered from 0, blocks numbered through all of them. It never appends to
//! what another run wrote. At most one block is under way, so a crash can damage only the last one. What arrives
//! meanwhile is gathered and becomes the next: group commit. Ephemeral changes alone wait for
//! [`JournalConfig::batch_records`] changes or [`JournalConfig::batch_interval`]; a persistent one waits for nothing but
//! the block before.
//!
//! ```text
//! frame   0      4      5       8           16            24  32
//!         | len  | kind | flags | number    | follows     | 0 | a sealed batch, a truncation, or a snapshot's slot
//! ```
//!
//! States: `Opening → Open ⇄ Failed`, `Opening → Failed`. A failed journal takes nothing; it tries to begin a segment now
//! and then, and is open again when that works.

use std::collections::{BTreeSet, VecDeque};

use crate::{
    batch::Batch,
    block::{self, BlockKind, HEADER_BYTES, u32_at, u64_at},
    disk_op::{DiskDone, DiskError, DiskOp, DiskQueue, OpId, SECTOR_BYTES},
    id::{Nanos, Revision, SlotId},
    limits::{ALIGNMENT, SLOTS_MAX},
};

/// Version of the format that is written. Version 1, without the snapshots that have to be there, is read, too.
pub const VERSION: u32 = 2;
/// Bytes of a frame before its batch.
pub const FRAME_BYTES: usize = 32;
/// Leader epochs that the head of a segment reserves for its run.
pub const EPOCHS_RESERVED: u32 = 16;
const HEAD_BYTES: usize = 48;
const KEPT_BYTES: usize = 32;

/// What a journal is told at its start.
#[derive(Debug, Clone)]
pub struct JournalConfig {
    /// Slots of the whole cluster.
    pub slot_count: u32,
    /// This shard's number.
    pub shard: u32,
    /// Shards of this node.
    pub shards: u32,
    /// Changes that are written without waiting for the interval.
    pub batch_records: usize,
    /// Longest wait of an ephemeral change for its block, in nanoseconds.
    pub batch_interval: u64,
    /// Bytes after which a new file is begun.
    pub segment_bytes: u64,
    /// Bytes waiting for the disk above which ephemeral batches are not journaled.
    pub waiting_bytes_max: usize,
    /// Time between two attempts to go on after a failure, in nanoseconds.
    pub retry_interval: u64,
}

/// A file of a journal: streams are ordered by epoch, their segments by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct SegmentId {
    /// The epoch that the stream's run opened.
    pub epoch: u32,
    /// The shard that wrote it.
    pub shard: u32,
    /// Its number in the stream.
    pub segment: u32,
}

impl SegmentId {
    /// The file's name.
    pub fn file(self) -> String {
        format!("journal-{:08}-{:03}-{:08}.scj", self.epoch, self.shard, self.segment)
    }

    /// Reads a file's name.
    pub fn from_file(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix("journal-")?.strip_suffix(".scj")?.split('-');
        let mut next = || parts.next()?.parse::<u32>().ok();
        let id = Self { epoch: next()?, shard: next()?, segment: next()? };
        (id.file() == name && id.epoch <= Revision::EPOCH_MAX).then_some(id)
    }

    /// What the stream's blocks carry.
    pub fn stream(self) -> u64 {
        u64::from(self.epoch) << 32 | u64::from(self.shard)
    }
}

/// An earlier stream that is still needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Its first segment that is needed.
    pub first: SegmentId,
    /// Blocks that it has: the number after its last.
    pub end: u64,
}

/// The first block of a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentHead {
    /// Slots of the cluster.
    pub slot_count: u32,
    /// Shards of the node.
    pub shards: u32,
    /// Which segment.
    pub id: SegmentId,
    /// Largest leader epoch that the run may open before it begins another segment.
    pub epochs_to: u32,
    /// First segment of this stream that is needed.
    pub first_needed: u32,
    /// The earlier streams that are still needed.
    pub kept: Vec<Kept>,
    /// The slots whose snapshots were in their places.
    pub snapshots: BTreeSet<SlotId>,
}

impl SegmentHead {
    /// Appends the content of the block.
    pub fn write(&self, out: &mut Vec<u8>) {
        for value in [
            VERSION,
            self.slot_count,
            self.shards,
            self.id.shard,
            self.id.epoch,
            self.id.segment,
            self.epochs_to,
            self.first_needed,
            self.kept.len() as u32,
            self.map_bytes() as u32,
            0,
            0,
        ] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        for kept in &self.kept {
            for value in [kept.first.epoch, kept.first.shard, kept.first.segment, 0] {
                out.extend_from_slice(&value.to_le_bytes());
            }
            out.extend_from_slice(&kept.end.to_le_bytes());
            out.extend_from_slice(&[0; 8]);
        }
        let begin = out.len();
        out.resize(begin + self.map_bytes(), 0);
        for slot in &self.snapshots {
            out[begin + usize::from(slot.0) / 8] |= 1 << (slot.0 % 8);
        }
    }

    /// Bytes of the map of snapshots: one bit per slot up to the last that has one.
    fn map_bytes(&self) -> usize {
        self.snapshots.last().map_or(0, |last| (usize::from(last.0) / 8 + 1).next_multiple_of(ALIGNMENT))
    }

    /// Reads the content of a head block. `Err` says what is wrong.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() < HEAD_BYTES {
            return Err("the head of the segment is too short".into());
        }
        if !(1..=VERSION).contains(&u32_at(bytes, 0)) {
            return Err(format!(
                "written in version {} of the format, this program reads version {VERSION}",
                u32_at(bytes, 0)
            ));
        }
        let (shards, shard, epochs_to) = (u32_at(bytes, 8), u32_at(bytes, 12), u32_at(bytes, 24));
        if shard >= shards || epochs_to > Revision::EPOCH_MAX {
            return Err(format!("shard {shard} of {shards}, epochs to {epochs_to}: that cannot be"));
        }
        let wrong = || "the head of the segment does not fit its counts".to_string();
        let (streams, map) = (u32_at(bytes, 32) as usize, u32_at(bytes, 36) as usize);
        let kept = streams.checked_mul(KEPT_BYTES).ok_or_else(wrong)?;
        let (kept, rest) = bytes[HEAD_BYTES..].split_at_checked(kept).ok_or_else(wrong)?;
        if rest.len() != map || map * 8 > SLOTS_MAX as usize {
            return Err(wrong());
        }
        let bits = (0..map * 8).filter(|bit| rest[bit / 8] & 1 << (bit % 8) != 0);
        let kept = kept.chunks_exact(KEPT_BYTES).map(|entry| Kept {
            first: SegmentId { epoch: u32_at(entry, 0), shard: u32_at(entry, 4), segment: u32_at(entry, 8) },
            end: u64_at(entry, 16),
        });
        Ok(Self {
            slot_count: u32_at(bytes, 4),
            shards: u32_at(bytes, 8),
            id: SegmentId { shard: u32_at(bytes, 12), epoch: u32_at(bytes, 16), segment: u32_at(bytes, 20) },
            epochs_to: u32_at(bytes, 24),
            first_needed: u32_at(bytes, 28),
            kept: kept.collect(),
            snapshots: bits.map(|bit| SlotId(bit as u16)).collect(),
        })
    }
}

/// One frame of a journal block.
#[derive(Clone, Copy)]
pub enum Frame<'a> {
    /// A sealed batch.
    Batch {
        /// The slot's revision that was journaled or snapshotted before this batch.
        follows: Revision,
        /// The slot's snapshot at `follows` was still to be written: without it the batch does not count.
        unanchored: bool,
        /// The batch.
        batch: Batch<'a>,
    },
    /// Segments of a stream below this one are no longer needed.
    Truncated(SegmentId),
    /// The snapshot of this slot is in its place, and always will be.
    Snapshot(SlotId),
    /// What was written of this slot up to this revision counts no more, its snapshot included: the node has let go of it.
    Void(SlotId, Revision),
}

/// Reads the frames of a block's content. `Err` says what is wrong.
pub fn frames(content: &[u8]) -> impl Iterator<Item = Result<Frame<'_>, String>> {
    let mut rest = content;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let frame = read_frame(rest);
        rest = frame.as_ref().map_or(&[], |(_, len)| &rest[*len..]);
        Some(frame.map(|(frame, _)| frame))
    })
}

fn read_frame(bytes: &[u8]) -> Result<(Frame<'_>, usize), String> {
    let length = bytes.len();
    if length < FRAME_BYTES {
        return Err(format!("{length} bytes are no frame"));
    }
    let len = u32_at(bytes, 0) as usize;
    if !(FRAME_BYTES..=length).contains(&len) {
        return Err(format!("a frame of {len} bytes does not fit its block"));
    }
    let body = &bytes[FRAME_BYTES..len];
    let frame = match bytes[4] {
        1 => {
            let batch = Batch::read(body).map_err(|error| error.to_string())?;
            Frame::Batch { follows: Revision(u64_at(bytes, 16)), unanchored: bytes[5] & 1 != 0, batch }
        }
        2 if body.len() == 16 => Frame::Truncated(SegmentId {
            epoch: u32_at(body, 0),
            shard: u32_at(body, 4),
            segment: u32_at(body, 8),
        }),
        3 if body.len() == 16 => {
            let slot = u16::try_from(u32_at(body, 0)).map_err(|_| "a slot that cannot be".to_string())?;
            Frame::Snapshot(SlotId(slot))
        }
        4 if body.len() == 16 => {
            let slot = u16::try_from(u32_at(body, 0)).map_err(|_| "a slot that cannot be".to_string())?;
            Frame::Void(SlotId(slot), Revision(u64_at(body, 8)))
        }
        kind => return Err(format!("a frame of unknown kind {kind}")),
    };
    Ok((frame, len))
}

/// Whether the journal takes batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JournalState {
    /// Its first segment is not durable yet: no revision of this run may be told.
    Opening,
    /// It takes batches.
    Open,
    /// The disk has failed; tried again from then on.
    Failed(Nanos),
}

/// What became of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It is on the disk.
    Durable,
    /// It waits.
    Waiting,
    /// The disk failed before it was known to be there.
    Lost,
}

struct Flight {
    /// The operations; the last one ends it.
    first: OpId,
    last: OpId,
    frames: u64,
    sequence: u64,
    chain: u64,
    segment: u32,
    offset: u64,
    epochs_to: u32,
}

/// The journal of one shard.
pub struct Journal {
    config: JournalConfig,
    state: JournalState,
    opened: bool,
    epoch: u32,
    epochs_wanted: u32,
    epochs_to: u32,
    /// Where the next block goes; `offset` 0: into a segment that is not begun.
    segment: u32,
    offset: u64,
    sequence: u64,
    chain: u64,
    waiting: Vec<u8>,
    changes: usize,
    waiting_since: Option<Nanos>,
    urgent: bool,
    appended: u64,
    durable: u64,
    lost: (u64, u64),
    flight: Option<Flight>,
    flight_failed: Option<DiskError>,
    first_needed: u32,
    kept: Vec<Kept>,
    snapshots: BTreeSet<SlotId>,
    closed: VecDeque<(u32, u64)>,
    blocks_written: u64,
    bytes_written: u64,
}

impl Journal {
    /// A journal whose run opened `epoch` and found `snapshots`. Its first segment is asked for by the first
    /// [`Journal::flush`].
    pub fn new(config: JournalConfig, epoch: u32, kept: Vec<Kept>, snapshots: BTreeSet<SlotId>) -> Self {
        Self {
            config,
            state: JournalState::Opening,
            opened: false,
            epoch,
            epochs_wanted: epoch,
            epochs_to: epoch.saturating_add(EPOCHS_RESERVED - 1).min(Revision::EPOCH_MAX),
            segment: 0,
            offset: 0,
            sequence: 0,
            chain: 0,
            waiting: block::begin(),
            changes: 0,
            waiting_since: None,
            urgent: false,
            appended: 0,
            durable: 0,
            lost: (0, 0),
            flight: None,
            flight_failed: None,
            first_needed: 0,
            kept,
            snapshots,
            closed: VecDeque::new(),
            blocks_written: 0,
            bytes_written: 0,
        }
    }

    /// Whether it takes batches.
    pub fn state(&self) -> JournalState {
        self.state
    }

    /// Whether the first segment of this run has ever been durable.
    pub fn has_opened(&self) -> bool {
        self.opened
    }

    /// Bytes that wait for the disk.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting.len() - HEADER_BYTES
    }

    /// Whether everything taken is on the disk or lost.
    pub fn is_idle(&self) -> bool {
        self.flight.is_none() && self.waiting_bytes() == 0
    }

    /// Frames taken.
    pub fn appended(&self) -> u64 {
        self.appended
    }

    /// Frames that are neither durable nor lost.
    pub fn waiting_frames(&self) -> u64 {
        self.appended - self.durable.max(self.lost.1)
    }

    /// Whether ephemeral batches find room.
    pub fn has_room(&self) -> bool {
        self.waiting_bytes() <= self.config.waiting_bytes_max
    }

    /// The segment that the next block goes to, or an earlier one.
    pub fn position(&self) -> SegmentId {
        SegmentId { epoch: self.epoch, shard: self.config.shard, segment: self.segment }
    }

    /// Blocks and bytes written since the start.
    pub fn written(&self) -> (u64, u64) {
        (self.blocks_written, self.bytes_written)
    }

    /// Files that are not needed for writing any more: earlier streams, and closed segments with their bytes.
    pub fn closed(&self) -> (&[Kept], u64) {
        (&self.kept, self.closed.iter().map(|(_, bytes)| bytes).sum())
    }

    /// The oldest closed segment of this run.
    pub fn closed_from(&self) -> Option<u32> {
        self.closed.front().map(|(segment, _)| *segment)
    }

    /// What became of a frame.
    pub fn fate(&self, frame: u64) -> Fate {
        if self.lost.0 < frame && frame <= self.lost.1 {
            Fate::Lost
        } else if frame <= self.durable {
            Fate::Durable
        } else {
            Fate::Waiting
        }
    }

    /// Takes a sealed batch; returns the number of its frame. Not while the journal has failed.
    pub fn append(
        &mut self,
        batch: &[u8],
        changes: usize,
        (follows, unanchored): (Revision, bool),
        urgent: bool,
        now: Nanos,
    ) -> u64 {
        self.write_frame(1, u8::from(unanchored), follows.0, batch);
        self.changes += changes;
        self.urgent |= urgent;
        self.waiting_since.get_or_insert(now);
        self.appended
    }

    /// Notes that segments of a stream below `to` are no longer needed; returns the frame's number.
    pub fn truncate(&mut self, to: SegmentId, now: Nanos) -> u64 {
        let mut body = Vec::with_capacity(16);
        for value in [to.epoch, to.shard, to.segment, 0] {
            body.extend_from_slice(&value.to_le_bytes());
        }
        self.write_frame(2, 0, 0, &body);
        self.waiting_since.get_or_insert(now);
        self.appended
    }

    /// Notes that the snapshot of a slot is in its place for good: from now on it is missed if it is not there.
    pub fn note_snapshot(&mut self, slot: SlotId, now: Nanos) {
        if self.snapshots.insert(slot) {
            let mut body = [0; 16];
            body[..4].copy_from_slice(&u32::from(slot.0).to_le_bytes());
            self.write_frame(3, 0, 0, &body);
            self.waiting_since.get_or_insert(now);
        }
    }

    /// Notes that what was written of a slot up to a revision counts no more; returns the frame's number, and whether the slot
    /// has a snapshot, which may go once the frame is durable.
    pub fn void(&mut self, slot: SlotId, up_to: Revision, now: Nanos) -> (u64, bool) {
        let mut body = [0; 16];
        body[..4].copy_from_slice(&u32::from(slot.0).to_le_bytes());
        body[8..].copy_from_slice(&up_to.0.to_le_bytes());
        self.write_frame(4, 0, 0, &body);
        self.waiting_since.get_or_insert(now);
        (self.appended, self.snapshots.remove(&slot))
    }

    /// Whether a slot's snapshot is in its place.
    pub fn has_snapshot(&self, slot: SlotId) -> bool {
        self.snapshots.contains(&slot)
    }

    /// The truncation is durable: forgets the segments; returns the files to delete.
    pub fn truncated(&mut self, to: SegmentId) -> Vec<String> {
        let mut files = Vec::new();
        if to.epoch == self.epoch {
            self.first_needed = self.first_needed.max(to.segment);
            while self.closed.front().is_some_and(|(segment, _)| *segment < to.segment) {
                let Some((segment, _)) = self.closed.pop_front() else { break };
                files.push(SegmentId { segment, ..to }.file());
            }
        } else {
            self.kept.retain_mut(|kept| {
                if (kept.first.epoch, kept.first.shard) != (to.epoch, to.shard) {
                    return true;
                }
                kept.first.segment = kept.first.segment.max(to.segment);
                to.segment != u32::MAX
            });
        }
        files
    }

    /// The leader's epoch has grown.
    pub fn raise_epoch(&mut self, epoch: u32) {
        self.epochs_wanted = self.epochs_wanted.max(epoch);
    }

    /// The largest epoch that is reserved.
    pub fn epochs_to(&self) -> u32 {
        self.epochs_to
    }

    /// Whether an epoch is wanted that is not reserved yet.
    pub fn lacks_epoch(&self) -> bool {
        self.epochs_wanted > self.epochs_to
    }

    /// When [`Journal::flush`] has something to do although nothing happens.
    pub fn due_at(&self) -> Option<Nanos> {
        match self.state {
            _ if self.flight.is_some() => None,
            JournalState::Failed(at) => Some(at),
            JournalState::Opening => Some(Nanos(0)),
            JournalState::Open => self.waiting_since.map(|since| since.after(self.config.batch_interval)),
        }
    }

    /// Asks for the next block, if one is due and none is under way. `at_once` does not wait for the interval.
    pub fn flush(&mut self, now: Nanos, at_once: bool, disk: &mut DiskQueue) {
        if self.flight.is_some() {
            return;
        }
        let due = match self.state {
            JournalState::Opening => true,
            JournalState::Failed(at) => now >= at,
            JournalState::Open => {
                let waited = self.waiting_since.is_some_and(|at| now.since(at) >= self.config.batch_interval);
                let full = self.changes >= self.config.batch_records || !self.has_room();
                let any = self.waiting_bytes() > 0;
                any && (waited || full || self.urgent || at_once) || self.lacks_epoch()
            }
        };
        if due {
            self.take_off(disk);
        }
    }

    /// Hears what became of an operation. Returns whether the journal has just failed.
    pub fn handle(&mut self, done: &DiskDone, now: Nanos) -> Option<DiskError> {
        let flight = self.flight.as_ref()?;
        if done.id < flight.first || done.id > flight.last {
            return None;
        }
        if let Err(error) = &done.result {
            self.flight_failed.get_or_insert(error.clone());
        }
        if done.id == flight.last {
            if let Some(error) = self.flight_failed.take() {
                self.fail(now);
                return Some(error);
            }
            self.landed();
        }
        None
    }

    /// Gives up everything that is not durable and takes nothing until a segment could be begun again.
    pub fn fail(&mut self, now: Nanos) {
        if self.appended > self.durable {
            self.lost = (self.durable, self.appended);
        }
        self.state = JournalState::Failed(now.after(self.config.retry_interval));
        self.waiting = block::begin();
        (self.changes, self.waiting_since, self.urgent) = (0, None, false);
        self.flight = None;
        self.flight_failed = None;
        // What the last block left behind the last good one is not known: go on in another file.
        self.close_segment();
    }

    fn close_segment(&mut self) {
        if self.offset > 0 {
            self.closed.push_back((self.segment, self.offset));
            self.segment += 1;
            self.offset = 0;
        }
    }

    fn landed(&mut self) {
        let Some(flight) = self.flight.take() else { return };
        if flight.segment != self.segment {
            self.close_segment();
        }
        (self.segment, self.offset) = (flight.segment, flight.offset);
        (self.sequence, self.chain) = (flight.sequence, flight.chain);
        self.epochs_to = flight.epochs_to;
        self.durable = flight.frames;
        (self.state, self.opened) = (JournalState::Open, true);
    }

    /// Puts one block under way: the head of a segment where one is begun, or what waits.
    fn take_off(&mut self, disk: &mut DiskQueue) {
        let (mut sequence, mut chain) = (self.sequence, self.chain);
        let (mut segment, mut offset, mut epochs_to) = (self.segment, self.offset, self.epochs_to);
        let mut first = None;
        if offset == 0 || offset >= self.config.segment_bytes || self.lacks_epoch() {
            if offset > 0 {
                segment += 1;
            }
            if self.lacks_epoch() {
                epochs_to = self.epochs_wanted.saturating_add(EPOCHS_RESERVED - 1).min(Revision::EPOCH_MAX);
            }
            let id = SegmentId { segment, ..self.position() };
            let head = SegmentHead {
                slot_count: self.config.slot_count,
                shards: self.config.shards,
                id,
                epochs_to,
                first_needed: self.first_needed,
                kept: self.kept.clone(),
                snapshots: self.snapshots.clone(),
            };
            let mut bytes = block::begin();
            head.write(&mut bytes);
            chain = block::seal(&mut bytes, BlockKind::Head, id.stream(), sequence, chain);
            sequence += 1;
            offset = bytes.len() as u64;
            self.bytes_written += offset;
            let file = id.file();
            first = Some(disk.push(DiskOp::Create { file: file.clone() }));
            disk.push(DiskOp::Write { file: file.clone(), offset: 0, bytes });
            disk.push(DiskOp::Sync { file });
        }
        let file = SegmentId { segment, ..self.position() }.file();
        let mut last = first.map(|_| disk.push(DiskOp::SyncNames));
        // No block before the head is known to be there: one behind a damaged head would be taken for damage.
        if first.is_none() && self.waiting_bytes() > 0 && self.state == JournalState::Open {
            let mut bytes = std::mem::replace(&mut self.waiting, block::begin());
            let stream = self.position().stream();
            chain = block::seal(&mut bytes, BlockKind::Frames, stream, sequence, chain);
            sequence += 1;
            let end = offset + bytes.len() as u64;
            debug_assert!(end.is_multiple_of(SECTOR_BYTES as u64));
            self.blocks_written += 1;
            self.bytes_written += bytes.len() as u64;
            let write = disk.push(DiskOp::Write { file: file.clone(), offset, bytes });
            first.get_or_insert(write);
            last = Some(disk.push(DiskOp::Sync { file }));
            offset = end;
            (self.changes, self.waiting_since, self.urgent) = (0, None, false);
        }
        let (Some(first), Some(last)) = (first, last) else { return };
        let frames = if self.waiting_bytes() > 0 { self.durable } else { self.appended };
        self.flight = Some(Flight { first, last, frames, sequence, chain, segment, offset, epochs_to });
    }

    fn write_frame(&mut self, kind: u8, flags: u8, follows: u64, body: &[u8]) {
        self.appended += 1;
        let len = (FRAME_BYTES + body.len()) as u32;
        self.waiting.extend_from_slice(&len.to_le_bytes());
        self.waiting.extend_from_slice(&[kind, flags, 0, 0]);
        self.waiting.extend_from_slice(&self.appended.to_le_bytes());
        self.waiting.extend_from_slice(&follows.to_le_bytes());
        self.waiting.extend_from_slice(&[0; 8]);
        self.waiting.extend_from_slice(body);
    }
}
