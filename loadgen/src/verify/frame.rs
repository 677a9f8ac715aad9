//! Reading diff frames for the oracle: the byte layout read anew, checksums computed over the bytes as they came.
//!
//! ```text
//! frame   | len u32 | type u8 = 9 | flags u8 | slot u16 | checksum u64 | body |
//! body    | datum u64 | from u64 | to u64 | removes u32 | puts u32 | removed ids, padded to 16 | owners, likewise | records |
//! record  | len u32 | kind u8 = 1 | schema u8 = 1 | pad u8 | flags u8 | datum u64 | register u64 | checksum u64 | archive |
//! ```
//! Owners, 8 bytes per put, are there on links only. Both checksums are the xxh3-64 of what is behind the header, seeded with the xxh3-64 of the header up to the checksum.

use std::fmt;

use slotcast_engine::id::{DatumKey, RegisterId, SessionId};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The type byte of a diff frame.
pub const DIFF: u8 = 9;
/// The flag of a snapshot.
pub const SNAPSHOT: u8 = 1;
/// The flag of told owners.
pub const OWNERS: u8 = 2;
const FRAME_HEADER_BYTES: usize = 16;
const FRAME_CHECKSUM_AT: usize = 8;
const BODY_FIXED_BYTES: usize = 32;
const RECORD_HEADER_BYTES: usize = 32;
const RECORD_BYTES_MAX: usize = 33_232;
const RECORD_CHECKSUM_AT: usize = 24;

/// Why a client would refuse a frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fault {
    /// Lengths and counts do not agree.
    Length,
    /// The frame's checksum does not fit.
    FrameChecksum,
    /// A flag that diffs to such a reader do not have.
    Flags,
    /// On a link: an owner that nobody registered under.
    Owner,
    /// It goes back in itself.
    Backwards,
    /// A record of a kind, schema or padding that no client reads.
    RecordHeader,
    /// A record's checksum does not fit.
    RecordChecksum,
    /// A record of another data id.
    ForeignRecord,
    /// A registration is named twice.
    Repeated,
    /// A data id that nobody here asked for.
    NotSubscribed,
    /// It starts behind what the reader has.
    Gap,
    /// It goes back behind what the reader has.
    Older,
    /// It brings what the reader has already been brought.
    Duplicate,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Length => "lengths and counts disagree",
            Fault::FrameChecksum => "frame checksum mismatch",
            Fault::Flags => "unexpected flags",
            Fault::Owner => "a registration of an unknown owner",
            Fault::Backwards => "goes back in itself",
            Fault::RecordHeader => "a record of an unknown form",
            Fault::RecordChecksum => "record checksum mismatch",
            Fault::ForeignRecord => "record of another data id",
            Fault::Repeated => "a registration is named twice",
            Fault::NotSubscribed => "data id not subscribed to",
            Fault::Gap => "starts ahead of the reader",
            Fault::Older => "goes back behind the reader",
            Fault::Duplicate => "brought before",
        })
    }
}

/// A record as found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Put<'a> {
    /// The registration.
    pub register: RegisterId,
    /// All bytes.
    pub bytes: &'a [u8],
}

impl<'a> Put<'a> {
    /// What the record says of itself: the identity of its content.
    pub fn checksum(&self) -> u64 {
        u64_at(self.bytes, RECORD_CHECKSUM_AT)
    }

    /// The bytes behind the record's header.
    pub fn archive(&self) -> &'a [u8] {
        &self.bytes[RECORD_HEADER_BYTES..]
    }
}

/// A diff as found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiffFrame<'a> {
    /// The data id.
    pub datum: DatumKey,
    /// Lowest revision it is right for.
    pub from: u64,
    /// The revision it leads to.
    pub to: u64,
    /// Whether it is complete in itself.
    pub is_snapshot: bool,
    /// Registrations gone.
    pub removes: Vec<RegisterId>,
    /// Registrations told.
    pub puts: Vec<Put<'a>>,
}

impl<'a> DiffFrame<'a> {
    /// Takes a whole frame of type [`DIFF`] apart and checks everything that it says about itself.
    pub fn read(frame: &'a [u8]) -> Result<Self, Fault> {
        Self::read_as(frame, None)
    }

    /// The same for a frame of a link, where every put has to be owned by `owner`.
    pub fn read_on_link(frame: &'a [u8], owner: SessionId) -> Result<Self, Fault> {
        Self::read_as(frame, Some(owner))
    }

    fn read_as(frame: &'a [u8], owner: Option<SessionId>) -> Result<Self, Fault> {
        let (header, body) = frame.split_at_checked(FRAME_HEADER_BYTES).ok_or(Fault::Length)?;
        if u32_at(header, 0) as usize != frame.len() {
            return Err(Fault::Length);
        }
        if checksum(frame, FRAME_CHECKSUM_AT, FRAME_HEADER_BYTES) != u64_at(header, FRAME_CHECKSUM_AT) {
            return Err(Fault::FrameChecksum);
        }
        if header[5] & !SNAPSHOT != if owner.is_some() { OWNERS } else { 0 } {
            return Err(Fault::Flags);
        }
        let (fixed, rest) = body.split_at_checked(BODY_FIXED_BYTES).ok_or(Fault::Length)?;
        let (from, to) = (u64_at(fixed, 8), u64_at(fixed, 16));
        if from > to {
            return Err(Fault::Backwards);
        }
        let datum = DatumKey(u64_at(fixed, 0));
        let removes = u32_at(fixed, 24) as usize;
        let (column, mut records) =
            rest.split_at_checked((removes * 8).next_multiple_of(16)).ok_or(Fault::Length)?;
        let removes = (0..removes).map(|index| RegisterId(u64_at(column, index * 8))).collect();
        let count = u32_at(fixed, 28) as usize;
        if let Some(owner) = owner {
            let (owners, rest) =
                records.split_at_checked((count * 8).next_multiple_of(16)).ok_or(Fault::Length)?;
            if (0..count).any(|index| u64_at(owners, index * 8) != owner.0) {
                return Err(Fault::Owner);
            }
            records = rest;
        }
        let puts = read_puts(records, datum)?;
        if puts.len() != count {
            return Err(Fault::Length);
        }
        let diff = Self { datum, from, to, is_snapshot: header[5] & SNAPSHOT != 0, removes, puts };
        if diff.names_twice() { Err(Fault::Repeated) } else { Ok(diff) }
    }

    /// Whether it says nothing but how far it is complete.
    pub fn is_empty(&self) -> bool {
        !self.is_snapshot && self.removes.is_empty() && self.puts.is_empty()
    }

    fn names_twice(&self) -> bool {
        let puts = self.puts.iter().map(|put| put.register);
        let mut all: Vec<RegisterId> = self.removes.iter().copied().chain(puts).collect();
        all.sort_unstable();
        all.windows(2).any(|pair| pair[0] == pair[1])
    }
}

fn read_puts(mut records: &[u8], datum: DatumKey) -> Result<Vec<Put<'_>>, Fault> {
    let mut puts = Vec::new();
    while !records.is_empty() {
        if records.len() < RECORD_HEADER_BYTES {
            return Err(Fault::Length);
        }
        let len = u32_at(records, 0) as usize;
        if !(RECORD_HEADER_BYTES..=RECORD_BYTES_MAX).contains(&len)
            || !len.is_multiple_of(16)
            || len > records.len()
        {
            return Err(Fault::Length);
        }
        let (bytes, rest) = records.split_at(len);
        let padding = usize::from(bytes[6]);
        if (bytes[4], bytes[5]) != (1, 1) || padding >= 16 || RECORD_HEADER_BYTES + padding > len {
            return Err(Fault::RecordHeader);
        }
        if checksum(bytes, RECORD_CHECKSUM_AT, RECORD_HEADER_BYTES) != u64_at(bytes, RECORD_CHECKSUM_AT) {
            return Err(Fault::RecordChecksum);
        }
        if u64_at(bytes, 8) != datum.0 {
            return Err(Fault::ForeignRecord);
        }
        puts.push(Put { register: RegisterId(u64_at(bytes, 16)), bytes });
        records = rest;
    }
    Ok(puts)
}

fn checksum(bytes: &[u8], at: usize, header: usize) -> u64 {
    xxh3_64_with_seed(&bytes[header..], xxh3_64(&bytes[..at]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use slotcast_engine::{
        diff,
        id::{Revision, SlotId},
        record::{Encoder, Instance, Record},
    };
    use slotcast_net::wire::message::write_diff;

    fn frame(registers: &[u64], removes: &[RegisterId]) -> Vec<u8> {
        let mut encoder = Encoder::default();
        let records: Vec<Vec<u8>> = registers
            .iter()
            .map(|&register| {
                let instance =
                    Instance { client: 1, name: "n".into(), zone: "z".into(), payload: vec![7; 50] };
                encoder.encode(DatumKey(5), RegisterId(register), &instance).unwrap().to_vec()
            })
            .collect();
        let mut out = Vec::new();
        write_diff(&mut out, SlotId(3), |body| {
            let puts: Vec<Record<'_>> = records.iter().map(|bytes| Record::read(bytes).unwrap()).collect();
            diff::write(body, DatumKey(5), (Revision(4), Revision(9)), removes, None, puts.into_iter());
            0
        });
        out
    }

    #[test]
    fn a_frame_of_the_wire_reads_as_it_was_written() {
        let bytes = frame(&[1, 2], &[RegisterId(3)]);
        let diff = DiffFrame::read(&bytes).unwrap();
        assert_eq!((diff.datum, diff.from, diff.to, diff.is_snapshot), (DatumKey(5), 4, 9, false));
        assert_eq!(diff.removes, [RegisterId(3)]);
        assert_eq!(diff.puts.iter().map(|put| put.register.0).collect::<Vec<_>>(), [1, 2]);
        assert!(!diff.is_empty() && DiffFrame::read(&frame(&[], &[])).unwrap().is_empty());
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_noticed() {
        let bytes = frame(&[1], &[RegisterId(3)]);
        for at in 0..bytes.len() {
            let mut broken = bytes.clone();
            broken[at] ^= 4;
            // The type byte decides whether this parser is asked at all.
            assert!(at == 4 || DiffFrame::read(&broken).is_err(), "byte {at}");
            assert!(DiffFrame::read(&bytes[..at]).is_err());
        }
    }

    #[test]
    fn a_record_that_no_client_reads_is_refused_though_its_checksum_fits() {
        let good = frame(&[1], &[]);
        let at = FRAME_HEADER_BYTES + BODY_FIXED_BYTES;
        for (byte, value) in [(4, 2), (5, 2), (6, 16), (6, 255)] {
            let mut broken = good.clone();
            broken[at + byte] = value;
            let sum = checksum(&broken[at..], RECORD_CHECKSUM_AT, RECORD_HEADER_BYTES);
            broken[at + 24..at + 32].copy_from_slice(&sum.to_le_bytes());
            let sum = checksum(&broken, FRAME_CHECKSUM_AT, FRAME_HEADER_BYTES);
            broken[8..16].copy_from_slice(&sum.to_le_bytes());
            assert_eq!(DiffFrame::read(&broken), Err(Fault::RecordHeader), "byte {byte}");
        }
    }

    #[test]
    fn a_registration_named_twice_is_refused() {
        assert_eq!(DiffFrame::read(&frame(&[1, 1], &[])), Err(Fault::Repeated));
        assert_eq!(DiffFrame::read(&frame(&[1], &[RegisterId(1)])), Err(Fault::Repeated));
    }
}
