//! Reading one file, or one stream of files, block by block.

use rkyv::util::AlignedVec;

use super::{Files, Loading, RecoverConfig, RecoverError, Report, Segment, Stream, Work, damaged, validate};
use crate::{
    batch::{Entry, entries},
    block::{BlockError, BlockHead, BlockKind, HEADER_BYTES},
    disk_op::SECTOR_BYTES,
    id::{Revision, SlotId},
    journal::{Frame, SegmentHead, SegmentId, frames},
    snapshot::{self, SnapshotHead},
};

/// Part of the expected registrations that may turn out not to come, as a divisor. Memory taken for too many stays; for too few
/// it grows as ever.
const EXPECTED_MARGIN: usize = 64;

/// A file read block after block, with memory that is used again. Blocks of a file are mostly alike, so as much is read at
/// once as the block before had.
pub(super) struct Blocks<'a> {
    files: &'a mut dyn Files,
    file: String,
    bytes: u64,
    pub(super) offset: u64,
    block: AlignedVec,
    /// Bytes at the start of `block` that are the file's at `offset`.
    filled: usize,
    /// Length of the block before.
    usual: usize,
}

impl<'a> Blocks<'a> {
    pub(super) fn open(files: &'a mut dyn Files, file: String, bytes: u64) -> Self {
        Self { files, file, bytes, offset: 0, block: AlignedVec::new(), filled: 0, usual: SECTOR_BYTES }
    }

    /// Reads the block at the offset and checks its checksum, without going on. The outer error is the system's.
    pub(super) fn peek(&mut self) -> Result<Result<BlockHead, BlockError>, RecoverError> {
        let left = self.bytes.saturating_sub(self.offset);
        if left < HEADER_BYTES as u64 {
            return Ok(Err(BlockError::Truncated { needed: HEADER_BYTES as u64, got: left }));
        }
        self.filled = 0;
        self.fill(self.usual.min(left as usize))?;
        let head = match BlockHead::read(&self.block) {
            Ok(head) if head.len as u64 <= left => head,
            Ok(head) => return Ok(Err(BlockError::Truncated { needed: head.len as u64, got: left })),
            Err(error) => return Ok(Err(error)),
        };
        self.usual = head.len;
        self.fill(head.len)?;
        self.files.turn_to(Work::Checksum);
        Ok(head.verify(&self.block[..head.len]).map(|()| head))
    }

    /// Reads on until `len` bytes from the offset are there.
    fn fill(&mut self, len: usize) -> Result<(), RecoverError> {
        if self.block.len() < len {
            self.block.resize(len, 0);
        }
        if self.filled < len {
            self.files.turn_to(Work::Read);
            self.files
                .read(&self.file, self.offset + self.filled as u64, &mut self.block[self.filled..len])
                .map_err(|what| RecoverError::Read { file: self.file.clone(), what })?;
            self.filled = len;
        }
        Ok(())
    }

    pub(super) fn content(&self, head: &BlockHead) -> &[u8] {
        &self.block[HEADER_BYTES..head.used]
    }

    fn damaged(&self, what: impl ToString) -> RecoverError {
        damaged(&self.file, self.offset, what)
    }
}

/// Reads the head of a journal file.
pub(super) fn read_head(
    files: &mut dyn Files,
    id: SegmentId,
    bytes: u64,
) -> Result<(BlockHead, SegmentHead), RecoverError> {
    let mut blocks = Blocks::open(files, id.file(), bytes);
    let block = blocks.peek()?.map_err(|error| blocks.damaged(error))?;
    if block.kind != BlockKind::Head || block.stream != id.stream() {
        return Err(blocks.damaged("the first block is not the head of this file"));
    }
    let head = SegmentHead::read(blocks.content(&block)).map_err(|what| blocks.damaged(what))?;
    Ok((block, head))
}

/// The offset of a good block of the stream numbered above `sequence`, at or behind `from`.
pub(super) fn good_block_after(
    files: &mut dyn Files,
    id: SegmentId,
    from: u64,
    bytes: u64,
    sequence: u64,
) -> Result<Option<u64>, RecoverError> {
    let mut blocks = Blocks::open(files, id.file(), bytes);
    blocks.offset = from;
    while blocks.offset < bytes {
        if let Ok(head) = blocks.peek()?
            && head.stream == id.stream()
            && head.sequence > sequence
        {
            return Ok(Some(blocks.offset));
        }
        blocks.offset += SECTOR_BYTES as u64;
    }
    Ok(None)
}

/// Where a stream ends.
pub(super) struct StreamEnd {
    /// Blocks: the number after the last.
    pub(super) blocks: u64,
    /// Bytes read.
    pub(super) bytes: u64,
    /// File, offset and bytes of a torn end.
    pub(super) torn: Option<(String, u64, u64)>,
}

/// Takes a frame with the place of its block.
pub(super) type Take<'a> = dyn FnMut(Frame<'_>, (SegmentId, u64)) -> Result<(), RecoverError> + 'a;

/// Reads all frames of a stream in order.
pub(super) fn read_stream(
    files: &mut dyn Files,
    stream: &Stream,
    take: &mut Take<'_>,
) -> Result<StreamEnd, RecoverError> {
    let end = read_segments(files, &stream.segments, take)?;
    if end.blocks < stream.end
        && let Some(last) = stream.segments.last()
    {
        let at = end.torn.as_ref().map_or(last.bytes, |torn| torn.1);
        let what = format!("it ends after block {}, and had {} before", end.blocks, stream.end);
        return Err(damaged(&last.id.file(), at, what));
    }
    Ok(end)
}

/// Hands out the frames of segments that follow each other.
pub(super) fn read_segments(
    files: &mut dyn Files,
    segments: &[Segment],
    take: &mut Take<'_>,
) -> Result<StreamEnd, RecoverError> {
    let mut end = StreamEnd { blocks: 0, bytes: 0, torn: None };
    for (at, segment) in segments.iter().enumerate() {
        read_segment(files, segment, segments.get(at + 1), &mut end, take)?;
    }
    Ok(end)
}

fn read_segment(
    files: &mut dyn Files,
    segment: &Segment,
    next: Option<&Segment>,
    end: &mut StreamEnd,
    take: &mut Take<'_>,
) -> Result<(), RecoverError> {
    files.soon(&segment.id.file());
    let mut blocks = Blocks::open(files, segment.id.file(), segment.bytes);
    blocks.offset = segment.block.len as u64;
    let (mut sequence, mut chain) = (segment.block.sequence + 1, segment.block.checksum);
    loop {
        // What a later segment does not build on was given up when the disk failed.
        if let Some(next) = next.filter(|next| next.block.sequence == sequence) {
            if next.block.chain != chain {
                return Err(damaged(&next.id.file(), 0, "it does not follow the segment before it"));
            }
            break;
        }
        if blocks.offset == blocks.bytes && next.is_none() {
            break;
        }
        let fault = match blocks.peek()? {
            Ok(head) if head.stream != segment.id.stream() => "a block of another stream".to_string(),
            Ok(head) if (head.sequence, head.chain) != (sequence, chain) => {
                format!("block {} where block {sequence} should be", head.sequence)
            }
            Ok(head) if head.kind != BlockKind::Frames => "a block of another kind".to_string(),
            Ok(head) => {
                let at = (segment.id, blocks.offset);
                blocks.files.turn_to(Work::Tail);
                for frame in frames(blocks.content(&head)) {
                    take(frame.map_err(|what| blocks.damaged(what))?, at)?;
                }
                blocks.offset += head.len as u64;
                (sequence, chain) = (sequence + 1, head.checksum);
                continue;
            }
            Err(error) => error.to_string(),
        };
        let offset = blocks.offset;
        let from = offset + SECTOR_BYTES as u64;
        if next.is_some() || good_block_after(files, segment.id, from, segment.bytes, sequence)?.is_some() {
            return Err(damaged(&segment.id.file(), offset, fault));
        }
        end.torn = Some((segment.id.file(), offset, segment.bytes - offset));
        end.bytes += offset;
        end.blocks = sequence;
        return Ok(());
    }
    end.bytes += blocks.offset;
    end.blocks = sequence;
    Ok(())
}

/// Reads the head of a snapshot.
pub(super) fn read_snapshot_head(
    files: &mut dyn Files,
    slot: SlotId,
    bytes: u64,
    slot_count: u32,
) -> Result<SnapshotHead, RecoverError> {
    let mut blocks = Blocks::open(files, snapshot::file(slot), bytes);
    let first = blocks.peek()?.map_err(|error| blocks.damaged(error))?;
    if first.kind != BlockKind::Head {
        return Err(blocks.damaged("the first block is not the head of a snapshot"));
    }
    let head = SnapshotHead::read(blocks.content(&first)).map_err(|what| blocks.damaged(what))?;
    if head.slot_count != slot_count {
        let what = format!("slot_count = {}, not {slot_count}", head.slot_count);
        return Err(RecoverError::Settings { file: blocks.file, what });
    }
    if head.slot != slot || Revision(first.stream) != head.revision {
        return Err(blocks.damaged(format!("it is the snapshot of slot {}", head.slot.0)));
    }
    Ok(head)
}

/// What the puts of a block take, from which follows about how many there will be.
#[derive(Default)]
struct Puts {
    count: usize,
    bytes: usize,
    record_bytes: usize,
}

impl Puts {
    fn count(&mut self, entry: Entry<'_>) {
        if let Some(record) = entry.record() {
            self.count += 1;
            self.bytes += entry.bytes().len();
            self.record_bytes += record.bytes().len();
        }
    }

    /// How many are left in a file of which `left` bytes are, and bytes of their records, if this is the first block with any:
    /// rather too few than too many.
    fn expected(&self, left: u64, block: &BlockHead) -> Option<(usize, usize)> {
        let others = block.len - self.bytes.min(block.len);
        let bytes = (left as usize).saturating_sub(others);
        let count = bytes.checked_div(self.bytes.checked_div(self.count)?)?;
        let count = count - count / EXPECTED_MARGIN;
        Some((count, count * (self.record_bytes / self.count)))
    }
}

/// Reads a slot's snapshot.
pub(super) fn read_snapshot(
    files: &mut dyn Files,
    config: &RecoverConfig,
    slot: SlotId,
    bytes: u64,
    report: &mut Report,
) -> Result<Loading, RecoverError> {
    let head = read_snapshot_head(files, slot, bytes, config.slot_count)?;
    let mut blocks = Blocks::open(files, snapshot::file(slot), bytes);
    let first = blocks.peek()?.map_err(|error| blocks.damaged(error))?;
    let mut loading = Loading::empty(config, slot);
    loading.revision = head.revision;
    let (mut sequence, mut chain, mut count) = (1, first.checksum, 0);
    blocks.offset += first.len as u64;
    loop {
        let block = blocks.peek()?.map_err(|error| blocks.damaged(error))?;
        if (block.stream, block.sequence, block.chain) != (first.stream, sequence, chain) {
            return Err(blocks.damaged("a block that does not follow the one before"));
        }
        match block.kind {
            BlockKind::Entries => {
                blocks.files.turn_to(Work::Validate);
                let mut puts = Puts::default();
                for entry in entries(blocks.content(&block)) {
                    let entry = entry.map_err(|error| blocks.damaged(error))?;
                    validate(config, loading.slot.id(), entry).map_err(|what| blocks.damaged(what))?;
                    puts.count(entry);
                }
                blocks.files.turn_to(Work::Apply);
                if loading.slot.publishers() == 0
                    && let Some((publishers, record_bytes)) = puts.expected(bytes - blocks.offset, &block)
                {
                    loading.slot.expect(publishers, record_bytes);
                }
                for entry in entries(blocks.content(&block)) {
                    let entry = entry.map_err(|error| blocks.damaged(error))?;
                    loading.slot.restore(entry);
                    count += 1;
                }
            }
            BlockKind::End => {
                let said = snapshot::read_end(blocks.content(&block)).map_err(|what| blocks.damaged(what))?;
                if said != count {
                    return Err(blocks.damaged(format!("{said} entries are announced, {count} are there")));
                }
                break;
            }
            _ => return Err(blocks.damaged("a block of another kind")),
        }
        (sequence, chain) = (sequence + 1, block.checksum);
        blocks.offset += block.len as u64;
    }
    report.snapshots += 1;
    report.entries += count;
    report.bytes += bytes;
    Ok(loading)
}
