//! The wire: one frame header, one closed set of messages, one incremental codec. No sockets here.
//!
//! Clients and sessions speak it on client connections, sessions and data nodes on links. See `docs/formats.md`.

pub mod header;

pub mod codec;

pub mod message;

pub mod slot_table;

pub mod meta;

pub mod replica;

pub use codec::{Decoder, Frame};
pub use header::{FrameError, Kind};
pub use message::{ErrorCode, Message};
