//! Compaction of a slot's arena: moves live records out of mostly dead segments, so that whole segments become free.
//!
//! What to do ([`choose`]) is decided apart from doing it ([`Compaction::step`]), and every step is bounded by bytes.

use crate::{arena::Arena, slot::Slot};

/// A segment is worth emptying below this share of live bytes.
pub const UTILIZATION_MIN: f64 = 0.5;

/// An emptying of one segment that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compaction {
    segment: u32,
    born: u64,
    offset: u32,
}

/// The closed segment with the smallest share of live bytes, if that share is below `utilization_min`.
pub fn choose(arena: &Arena, utilization_min: f64) -> Option<Compaction> {
    arena
        .closed_segments()
        .map(|closed| (closed.live as f64 / closed.capacity as f64, closed))
        .filter(|(share, _)| *share < utilization_min)
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, closed)| Compaction { segment: closed.segment, born: closed.born, offset: 0 })
}

impl Compaction {
    /// Walks on for about `budget` bytes and moves what is live. Returns whether the segment is done.
    pub fn step(&mut self, slot: &mut Slot, budget: usize) -> bool {
        let mut walked = 0;
        while walked < budget {
            let Some((at, record)) = slot.arena.record_at(self.segment, self.born, self.offset) else {
                return true;
            };
            let (len, datum, register) = (record.bytes().len(), record.datum(), record.register());
            slot.relocate(at, datum, register);
            self.offset += len as u32;
            walked += len;
        }
        slot.arena.record_at(self.segment, self.born, self.offset).is_none()
    }
}
