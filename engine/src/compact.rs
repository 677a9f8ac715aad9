//! Compaction: live records are moved out of mostly dead segments, so that whole segments become free, and history that no
//! reader may ask for any more is dropped.
//!
//! What to do ([`choose`]) is decided apart from doing it ([`Compaction::step`]), and every step is bounded by records and
//! by bytes. When steps are taken is decided by the shard, from [`CompactionSettings`].

use crate::{
    arena::{Arena, Found},
    id::Nanos,
    slot::{Movable, Slot},
};

/// When compaction works, and how much at once. All of it may be changed while it runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CompactionSettings {
    /// Time from the end of one round over all slots to the begin of the next, in nanoseconds.
    pub interval: u64,
    /// Time between two steps of a round, in nanoseconds.
    pub sleep_interval: u64,
    /// Records walked, history entries dropped and slots looked at in one step, all together.
    pub batch_limit: usize,
    /// A segment is emptied when the share of live bytes in it is below this; 0: none is.
    pub utilization_min: f64,
    /// Bytes of history entries of all slots together; beyond it the slot with the longest history loses its oldest.
    pub history_bytes_max: usize,
    /// Takes the place of `batch_limit` at times that whoever drives the shard calls off-peak.
    pub off_peak_batch_limit: usize,
    /// Takes the place of `utilization_min` likewise, where it is larger.
    pub off_peak_utilization_min: f64,
}

impl Default for CompactionSettings {
    fn default() -> Self {
        Self {
            interval: Nanos::SECOND,
            sleep_interval: Nanos::SECOND / 100,
            batch_limit: 1000,
            utilization_min: 0.85,
            history_bytes_max: 256 << 20,
            off_peak_batch_limit: 10_000,
            off_peak_utilization_min: 0.9,
        }
    }
}

/// What compaction did since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactionStats {
    /// Rounds over all slots that were finished.
    pub rounds: u64,
    /// Steps taken.
    pub steps: u64,
    /// Records walked, live or dead.
    pub records_walked: u64,
    /// Of these, the live ones, which were moved.
    pub records_moved: u64,
    /// Arena bytes walked.
    pub bytes_walked: u64,
    /// Segments emptied.
    pub segments_emptied: u64,
    /// Entries dropped from histories because they were too old or the shard had too many.
    pub history_dropped: u64,
}

/// Records that are looked up together: what one look-up waits for in memory, the others wait for at the same time.
const TOGETHER: usize = 32;

/// An emptying of one segment that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compaction {
    segment: u32,
    born: u64,
    offset: u32,
}

/// How far a step came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Walked {
    /// Records looked at.
    pub records: usize,
    /// Of these, the live ones, which were moved.
    pub moved: usize,
    /// Bytes looked at.
    pub bytes: usize,
    /// Whether the segment is done.
    pub done: bool,
}

/// The closed segment with the smallest share of live bytes, if that share is below `utilization_min`. One without dead
/// bytes is left alone: moving its records would give nothing back.
pub fn choose(arena: &Arena, utilization_min: f64) -> Option<Compaction> {
    arena
        .closed_segments()
        .filter(|closed| closed.dead > 0)
        .map(|closed| (closed.live as f64 / closed.capacity as f64, closed))
        .filter(|(share, _)| *share < utilization_min)
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, closed)| Compaction { segment: closed.segment, born: closed.born, offset: 0 })
}

impl Compaction {
    /// Walks on for at most `records` records and about `bytes` bytes, and moves what is live.
    pub fn step(&mut self, slot: &mut Slot, records: usize, bytes: usize) -> Walked {
        let (mut walked, mut movable) = (Walked::default(), Vec::with_capacity(TOGETHER));
        loop {
            movable.clear();
            while movable.len() < TOGETHER && walked.bytes < bytes && walked.records < records {
                let len = match slot.arena.found_at(self.segment, self.born, self.offset) {
                    Some(Found::Live(from, record)) => {
                        movable.push(Movable { from, datum: record.datum(), register: record.register() });
                        record.bytes().len()
                    }
                    Some(Found::Dead(len)) => len,
                    None => break,
                };
                self.offset += len as u32;
                walked.bytes += len;
                walked.records += 1;
            }
            if movable.is_empty() {
                break;
            }
            walked.moved += slot.relocate(&movable);
        }
        walked.done = slot.arena.found_at(self.segment, self.born, self.offset).is_none();
        walked
    }
}
