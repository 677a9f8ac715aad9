//! Blocks: what journal and snapshot files consist of. A block is a multiple of 4,096 bytes, so that it can be written
//! past the page cache, and carries the checksum of the block before it: one good block proves all before it.
//!
//! ```text
//!  0        4       8        12      16           24        32         40           48   64
//!  | magic  | len   | used   | kind  | sequence   | chain   | stream   | checksum   | 0  | content ... | zeros |
//! ```
//! `checksum` is the xxh3-64 of bytes 48 to `used`, seeded with the xxh3-64 (seed 0) of bytes 0 to 39. `chain` is the
//! checksum of the block before, 0 in the first of a stream. `stream` tells the blocks of one stream from all others.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::disk_op::SECTOR_BYTES;

/// Bytes of a block before its content.
pub const HEADER_BYTES: usize = 64;
/// Longest block.
pub const BLOCK_BYTES_MAX: usize = 1 << 30;
const MAGIC: u32 = u32::from_le_bytes(*b"SCK1");
const CHECKSUM_AT: usize = 40;

/// What a block holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum BlockKind {
    /// The first block of a file: what file it is.
    Head = 1,
    /// Frames of a journal.
    Frames = 2,
    /// Change entries of a snapshot.
    Entries = 3,
    /// The last block of a snapshot.
    End = 4,
}

/// What is wrong with a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Fewer bytes than a block's header, or than the header says.
    #[error("the block is cut off: {needed} bytes needed, {got} there")]
    Truncated {
        /// Bytes that the block needs.
        needed: u64,
        /// Bytes that are there.
        got: u64,
    },
    /// Not a block of this version.
    #[error("not a block of a journal or snapshot")]
    Magic,
    /// A length or kind that cannot be.
    #[error("the block's header is damaged")]
    Header,
    /// The checksum does not fit the bytes.
    #[error("the block's checksum does not fit its bytes")]
    Checksum,
}

/// The fixed part of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockHead {
    /// What it holds.
    pub kind: BlockKind,
    /// Bytes with header and padding; a multiple of 4,096.
    pub len: usize,
    /// Bytes with header, without padding.
    pub used: usize,
    /// Its number in the stream.
    pub sequence: u64,
    /// Checksum of the block before.
    pub chain: u64,
    /// Which stream it is of.
    pub stream: u64,
    /// Checksum of this block.
    pub checksum: u64,
}

impl BlockHead {
    /// Reads the header of a block; its checksum is not looked at.
    pub fn read(bytes: &[u8]) -> Result<Self, BlockError> {
        if bytes.len() < HEADER_BYTES {
            return Err(BlockError::Truncated { needed: HEADER_BYTES as u64, got: bytes.len() as u64 });
        }
        if u32_at(bytes, 0) != MAGIC {
            return Err(BlockError::Magic);
        }
        let (len, used) = (u32_at(bytes, 4) as usize, u32_at(bytes, 8) as usize);
        let kind = match u32_at(bytes, 12) {
            1 => BlockKind::Head,
            2 => BlockKind::Frames,
            3 => BlockKind::Entries,
            4 => BlockKind::End,
            _ => return Err(BlockError::Header),
        };
        let fits = len.is_multiple_of(SECTOR_BYTES) && (HEADER_BYTES..=len).contains(&used);
        let sequence = u64_at(bytes, 16);
        if !fits || len > BLOCK_BYTES_MAX || len - used >= SECTOR_BYTES || sequence == u64::MAX {
            return Err(BlockError::Header);
        }
        Ok(Self {
            kind,
            len,
            used,
            sequence,
            chain: u64_at(bytes, 24),
            stream: u64_at(bytes, 32),
            checksum: u64_at(bytes, CHECKSUM_AT),
        })
    }

    /// Compares the checksum with the whole block's bytes.
    pub fn verify(&self, bytes: &[u8]) -> Result<(), BlockError> {
        if bytes.len() < self.len {
            return Err(BlockError::Truncated { needed: self.len as u64, got: bytes.len() as u64 });
        }
        if checksum(bytes, self.used) == self.checksum { Ok(()) } else { Err(BlockError::Checksum) }
    }
}

/// An empty block to append content to.
pub fn begin() -> Vec<u8> {
    vec![0; HEADER_BYTES]
}

/// Completes a block that content was appended to: pads it and writes its header. Returns its checksum.
pub fn seal(bytes: &mut Vec<u8>, kind: BlockKind, stream: u64, sequence: u64, chain: u64) -> u64 {
    let used = bytes.len();
    assert!((HEADER_BYTES..=BLOCK_BYTES_MAX).contains(&used));
    bytes.resize(used.next_multiple_of(SECTOR_BYTES), 0);
    let len = bytes.len() as u32;
    bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[4..8].copy_from_slice(&len.to_le_bytes());
    bytes[8..12].copy_from_slice(&(used as u32).to_le_bytes());
    bytes[12..16].copy_from_slice(&(kind as u32).to_le_bytes());
    bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
    bytes[24..32].copy_from_slice(&chain.to_le_bytes());
    bytes[32..40].copy_from_slice(&stream.to_le_bytes());
    let sum = checksum(bytes, used);
    bytes[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&sum.to_le_bytes());
    sum
}

fn checksum(block: &[u8], used: usize) -> u64 {
    xxh3_64_with_seed(&block[CHECKSUM_AT + 8..used], xxh3_64(&block[..CHECKSUM_AT]))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(content: &[u8]) -> Vec<u8> {
        let mut bytes = begin();
        bytes.extend_from_slice(content);
        seal(&mut bytes, BlockKind::Frames, 7, 3, 9);
        bytes
    }

    #[test]
    fn a_block_reads_back_as_written() {
        for length in [0, 1, 4032, 4033, 10_000] {
            let bytes = block(&vec![5; length]);
            let head = BlockHead::read(&bytes).unwrap();
            assert_eq!((head.used, head.len), (HEADER_BYTES + length, bytes.len()));
            assert_eq!((head.stream, head.sequence, head.chain), (7, 3, 9));
            assert_eq!(head.verify(&bytes), Ok(()));
        }
    }

    #[test]
    fn every_flipped_byte_and_every_missing_sector_is_noticed() {
        let bytes = block(&[5; 5000]);
        for at in (0..48).chain((64..5064).step_by(7)) {
            let mut broken = bytes.clone();
            broken[at] ^= 0x10;
            assert!(BlockHead::read(&broken).and_then(|head| head.verify(&broken)).is_err(), "byte {at}");
        }
        let head = BlockHead::read(&bytes).unwrap();
        assert!(head.verify(&bytes[..SECTOR_BYTES]).is_err());
    }
}
