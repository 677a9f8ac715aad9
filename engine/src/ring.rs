//! The recent sealed batches of one slot, for followers: bounded by bytes, the oldest go first.
//!
//! It knows from where on it has every batch. A follower that is further behind gets the whole slot.

use std::collections::VecDeque;

use crate::id::{Nanos, Revision};

/// Bytes of batches that the ring of one slot keeps, unless told otherwise.
pub const RING_BYTES: usize = 1024 * 1024;
/// Bytes of batches that all rings of a shard keep together, unless told otherwise.
pub const RINGS_BYTES: usize = 64 * 1024 * 1024;
/// However many slots share the bytes of a shard, one may keep so many.
pub const RING_BYTES_MIN: usize = 16 * 1024;

struct Kept {
    revision: Revision,
    sealed_at: Nanos,
    bytes: Box<[u8]>,
}

/// See the module.
pub(crate) struct Ring {
    /// Every batch behind this revision is here.
    from: Revision,
    batches: VecDeque<Kept>,
    bytes: usize,
}

impl Ring {
    /// A ring without batches, of a slot at `from`.
    pub(crate) fn starting_at(from: Revision) -> Self {
        Self { from, batches: VecDeque::new(), bytes: 0 }
    }

    /// From where on every batch is here.
    pub(crate) fn from(&self) -> Revision {
        self.from
    }

    /// Keeps a copy of the batch that led to `revision`, and of those before it as many as fit `bytes_max`. The newest stays
    /// whatever its size: followers in step are about to get it.
    pub(crate) fn push(&mut self, revision: Revision, batch: &[u8], now: Nanos, bytes_max: usize) {
        debug_assert!(
            revision > self.from && self.batches.back().is_none_or(|last| last.revision < revision)
        );
        self.bytes += batch.len();
        self.batches.push_back(Kept { revision, sealed_at: now, bytes: batch.into() });
        while self.bytes > bytes_max && self.batches.len() > 1 {
            let Some(oldest) = self.batches.pop_front() else { break };
            self.bytes -= oldest.bytes.len();
            self.from = oldest.revision;
        }
    }

    /// The first batch behind `at`: the revision that it leads to, and its bytes. `at` is not before [`Ring::from`].
    pub(crate) fn after(&self, at: Revision) -> Option<(Revision, &[u8])> {
        self.kept_after(at).map(|kept| (kept.revision, &*kept.bytes))
    }

    /// When the first batch behind `at` was sealed, as far as it is here.
    pub(crate) fn sealed_after(&self, at: Revision) -> Option<Nanos> {
        self.kept_after(at).map(|kept| kept.sealed_at)
    }

    fn kept_after(&self, at: Revision) -> Option<&Kept> {
        self.batches.get(self.batches.partition_point(|kept| kept.revision <= at))
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.batches.capacity() * size_of::<Kept>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(counter: u64) -> Revision {
        Revision(Revision::open(1).0 + counter)
    }

    #[test]
    fn the_oldest_go_and_the_ring_says_how_far_it_reaches() {
        let mut ring = Ring::starting_at(at(0));
        for counter in 1..=10 {
            ring.push(at(counter * 2), &[counter as u8; 100], Nanos(counter), 350);
        }
        assert_eq!((ring.from(), ring.batches.len()), (at(14), 3));
        assert_eq!(ring.after(at(14)), Some((at(16), &[8u8; 100][..])));
        assert_eq!(ring.after(at(15)).map(|(revision, _)| revision), Some(at(16)), "between two batches");
        assert_eq!((ring.after(at(20)), ring.sealed_after(at(18))), (None, Some(Nanos(10))));
        ring.push(at(21), &[0; 1000], Nanos(11), 350);
        assert_eq!((ring.from(), ring.after(at(20)).map(|(revision, _)| revision)), (at(20), Some(at(21))));
    }
}
