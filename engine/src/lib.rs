//! The store of a Slotcast data node, and the formats that every role shares.
//!
//! Nothing here opens a socket, reads a clock, spawns a thread, takes a lock, awaits or draws a random number: time and
//! bytes come in as arguments, effects go out as values. So the same code runs under a data node, in a benchmark and
//! in a simulator that replays a whole cluster from a seed.
//!
//! The modules are listed in reading order; each uses only those above it.
#![forbid(unsafe_code)]

pub mod limits;

pub mod id;

pub mod error;

pub mod faults;

pub mod slot_state;

pub mod archive;

pub mod record;

pub mod arena;

pub mod batch;

pub mod ring;

pub mod change_log;

pub mod digest;

pub mod memory;

pub mod sketch;

pub mod top;

pub mod slot;

pub mod lease;

pub mod diff;

pub mod compact;

pub mod interest;

pub mod slots;

pub mod disk_op;

pub mod block;

pub mod journal;

pub mod snapshot;

pub mod recover;

pub mod memory_disk;

pub mod storage;

pub mod shard;
