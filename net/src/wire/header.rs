//! The 16-byte frame header.
//!
//! ```text
//!  0        4      5       6          8              16
//!  | len u32 | type | flags | slot u16 | checksum u64 | body ... zeros to a multiple of 16 |
//! ```
//! `len` counts header and body. `checksum` is the xxh3-64 of the body, seeded with the xxh3-64 (seed 0) of the first 8
//! bytes. `slot` is 65535 where a frame concerns no single slot. Flag 0x80 is reserved for a 16-byte trace id in front of
//! the body; this version refuses it.

use slotcast_engine::id::SlotId;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 16;
/// Largest frame of all: a snapshot of the largest data id fits.
pub const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Largest frame that a client may send to a session.
pub const CLIENT_FRAME_BYTES_MAX: usize = 128 * 1024;
/// The protocol version of hello frames.
pub const PROTOCOL: u16 = 1;
const TRACE_FLAG: u8 = 0x80;

const _: () = {
    assert!(FRAME_BYTES_MAX > slotcast_engine::limits::DATUM_BYTES_MAX + (1 << 20));
    assert!(CLIENT_FRAME_BYTES_MAX > slotcast_engine::limits::RECORD_BYTES_MAX + 4096);
};

/// The type byte of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
#[expect(missing_docs, reason = "each is described at its Message, ReplicaMessage or MetaMessage")]
pub enum Kind {
    Hello = 1,
    Welcome = 2,
    Error = 3,
    Write = 4,
    WriteAck = 5,
    Subscribe = 6,
    SubscribeRefused = 7,
    Unsubscribe = 8,
    Diff = 9,
    Goodbye = 10,
    Ping = 11,
    Pong = 12,
    LinkHello = 20,
    LinkWelcome = 21,
    Heartbeat = 22,
    HeartbeatAck = 23,
    DigestRequest = 24,
    DatumDigests = 25,
    Holds = 26,
    ReplicaHello = 30,
    ReplicaWelcome = 31,
    Follow = 32,
    Unfollow = 33,
    ReplicaRefused = 34,
    ReplicaBatch = 35,
    ReplicaPart = 36,
    ReplicaAck = 37,
    MetaHello = 50,
    NodeHeartbeat = 51,
    NodeHeartbeatAck = 52,
    TableDelta = 53,
    TableWatch = 54,
    TableOffer = 55,
}

impl Kind {
    const ALL: [Kind; 33] = [
        Kind::Hello,
        Kind::Welcome,
        Kind::Error,
        Kind::Write,
        Kind::WriteAck,
        Kind::Subscribe,
        Kind::SubscribeRefused,
        Kind::Unsubscribe,
        Kind::Diff,
        Kind::Goodbye,
        Kind::Ping,
        Kind::Pong,
        Kind::LinkHello,
        Kind::LinkWelcome,
        Kind::Heartbeat,
        Kind::HeartbeatAck,
        Kind::DigestRequest,
        Kind::DatumDigests,
        Kind::Holds,
        Kind::ReplicaHello,
        Kind::ReplicaWelcome,
        Kind::Follow,
        Kind::Unfollow,
        Kind::ReplicaRefused,
        Kind::ReplicaBatch,
        Kind::ReplicaPart,
        Kind::ReplicaAck,
        Kind::MetaHello,
        Kind::NodeHeartbeat,
        Kind::NodeHeartbeatAck,
        Kind::TableDelta,
        Kind::TableWatch,
        Kind::TableOffer,
    ];

    /// Whether it is of replica links alone.
    pub fn is_of_replicas(self) -> bool {
        (Kind::ReplicaHello as u8..=Kind::ReplicaAck as u8).contains(&(self as u8))
    }

    fn from_byte(byte: u8) -> Option<Kind> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// What is wrong with a frame. The connection it came over is closed; nothing else is disturbed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is below a header's, not a multiple of 16, or beyond the limit.
    #[error("frame length {len} is out of range (limit {limit})")]
    Length {
        /// Length told.
        len: usize,
        /// Length allowed.
        limit: usize,
    },
    /// The checksum does not fit the bytes.
    #[error("frame checksum mismatch")]
    Checksum,
    /// A type that this version does not know.
    #[error("unknown frame type {0}")]
    UnknownType(u8),
    /// A flag that this version does not support.
    #[error("unsupported frame flags {0:#x}")]
    Flags(u8),
    /// The body does not fit its type.
    #[error("malformed {0:?} frame: {1}")]
    Malformed(Kind, String),
}

/// A header that has been read but whose checksum has not been compared yet.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Bytes of the frame.
    pub len: usize,
    /// Flags, see [`slotcast_engine::diff`].
    pub flags: u8,
    /// The slot concerned.
    pub slot: SlotId,
    kind: u8,
    checksum: u64,
}

impl Header {
    /// Reads a header; `bytes` are at least [`HEADER_BYTES`]. The length is bounded before it is believed.
    pub fn read(bytes: &[u8], limit: usize) -> Result<Self, FrameError> {
        let len = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        if len < HEADER_BYTES || len > limit || !len.is_multiple_of(16) {
            return Err(FrameError::Length { len, limit });
        }
        let mut checksum = [0; 8];
        checksum.copy_from_slice(&bytes[8..16]);
        Ok(Self {
            len,
            kind: bytes[4],
            flags: bytes[5],
            slot: SlotId(u16::from_le_bytes([bytes[6], bytes[7]])),
            checksum: u64::from_le_bytes(checksum),
        })
    }

    /// Compares the checksum with the whole frame and names its type.
    pub fn check(&self, frame: &[u8]) -> Result<Kind, FrameError> {
        if checksum(frame) != self.checksum {
            return Err(FrameError::Checksum);
        }
        if self.flags & TRACE_FLAG != 0 {
            return Err(FrameError::Flags(self.flags));
        }
        Kind::from_byte(self.kind).ok_or(FrameError::UnknownType(self.kind))
    }
}

/// The checksum over a whole frame.
pub fn checksum(frame: &[u8]) -> u64 {
    xxh3_64_with_seed(&frame[HEADER_BYTES..], xxh3_64(&frame[..8]))
}

/// Appends a frame whose body `write` appends.
pub fn write_frame(out: &mut Vec<u8>, kind: Kind, slot: SlotId, write: impl FnOnce(&mut Vec<u8>) -> u8) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    let flags = write(out);
    let padded = (out.len() - start).next_multiple_of(16);
    out.resize(start + padded, 0);
    debug_assert!(padded <= FRAME_BYTES_MAX);
    let frame = &mut out[start..];
    frame[0..4].copy_from_slice(&(padded as u32).to_le_bytes());
    (frame[4], frame[5]) = (kind as u8, flags);
    frame[6..8].copy_from_slice(&slot.0.to_le_bytes());
    let sum = checksum(frame);
    frame[8..16].copy_from_slice(&sum.to_le_bytes());
}
