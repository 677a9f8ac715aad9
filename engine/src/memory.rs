//! Memory by kind: what a shard has asked of the allocator, and what for.
//!
//! Counted are capacities, not what is in use: room that a growing table took ahead is memory all the same. What the
//! allocator itself adds to each piece (about 16 bytes) and the room between nodes of ordered maps are not counted, so the
//! resident size of a process is a little larger.

use std::ops::{Add, AddAssign};

/// Bytes by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Memory {
    /// Records that are current: header, names, payload.
    pub payload: usize,
    /// Records that were replaced or removed and still take room in a segment; compaction gets them back.
    pub dead: usize,
    /// Taken for records and not yet written.
    pub free: usize,
    /// Registrations, data ids with their names, and the tables that find them.
    pub index: usize,
    /// The change log: what resuming readers are answered from.
    pub history: usize,
    /// Queues of tombstones and of data ids without publishers.
    pub tombstones: usize,
    /// Who is interested in what.
    pub readers: usize,
    /// Batches that are open or being written.
    pub batches: usize,
    /// Sketches of what passes.
    pub insight: usize,
    /// In a cluster: recent batches kept for followers, copies of slots that are not whole yet, and what is about to be freed.
    pub replication: usize,
}

impl Memory {
    /// Names of the kinds, as they are told in metrics and over HTTP, each with its bytes.
    pub fn kinds(&self) -> [(&'static str, usize); 10] {
        [
            ("payload", self.payload),
            ("dead", self.dead),
            ("free", self.free),
            ("index", self.index),
            ("history", self.history),
            ("tombstones", self.tombstones),
            ("readers", self.readers),
            ("batches", self.batches),
            ("insight", self.insight),
            ("replication", self.replication),
        ]
    }

    /// All kinds together.
    pub fn total(&self) -> usize {
        self.kinds().iter().map(|(_, bytes)| bytes).sum()
    }
}

impl Add for Memory {
    type Output = Memory;

    fn add(self, other: Memory) -> Memory {
        Memory {
            payload: self.payload + other.payload,
            dead: self.dead + other.dead,
            free: self.free + other.free,
            index: self.index + other.index,
            history: self.history + other.history,
            tombstones: self.tombstones + other.tombstones,
            readers: self.readers + other.readers,
            batches: self.batches + other.batches,
            insight: self.insight + other.insight,
            replication: self.replication + other.replication,
        }
    }
}

impl AddAssign for Memory {
    fn add_assign(&mut self, other: Memory) {
        *self = *self + other;
    }
}
