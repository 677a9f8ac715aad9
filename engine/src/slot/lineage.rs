//! Which revisions are of a slot's own history: of each earlier leader epoch only those up to where the next one began.
//!
//! A leader that is lost may have made revisions that nobody else has. Its successor goes on from an earlier one, and what
//! a reader holds from beyond that *fork* is of another history.

use crate::id::Revision;

/// Earlier epochs that are remembered; a reader of one before them gets snapshots.
pub const FORKS_MAX: usize = 32;

/// The last revision of each earlier epoch, in rising order.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Lineage(Vec<Revision>);

impl Lineage {
    /// The epoch of `last` ends there; a larger one follows.
    pub(crate) fn end_epoch(&mut self, last: Revision) {
        if last == Revision::ZERO {
            return;
        }
        debug_assert!(self.0.last().is_none_or(|before| before.epoch() < last.epoch()));
        if self.0.len() == FORKS_MAX {
            self.0.remove(0);
        }
        self.0.push(last);
    }

    /// Takes over what a leader tells. Nothing is kept of what cannot be: epochs that do not rise, or too many.
    pub(crate) fn of(forks: &[Revision]) -> Self {
        let mut lineage = Self::default();
        for fork in &forks[forks.len().saturating_sub(FORKS_MAX)..] {
            if lineage.0.last().is_none_or(|before| before.epoch() < fork.epoch()) {
                lineage.end_epoch(*fork);
            }
        }
        lineage
    }

    /// Whether a slot at `now` with this lineage has been at `at`.
    pub(crate) fn has(&self, at: Revision, now: Revision) -> bool {
        if at == Revision::ZERO {
            return false;
        }
        if at.epoch() == now.epoch() {
            return at <= now;
        }
        self.end_of(at.epoch()).is_some_and(|last| at <= last)
    }

    /// The last revision of an earlier epoch.
    pub(crate) fn end_of(&self, epoch: u32) -> Option<Revision> {
        let at = self.0.binary_search_by_key(&epoch, |last| last.epoch()).ok()?;
        Some(self.0[at])
    }

    /// Where a reader at `at`, who is in another history than a slot at `now`, left this one at the latest. None if it has not
    /// left it, or comes from an epoch that is still to come.
    pub(crate) fn left_at(&self, at: Revision, now: Revision) -> Option<Revision> {
        if at == Revision::ZERO || at.epoch() >= now.epoch() || self.has(at, now) {
            return None;
        }
        let before = self.0.partition_point(|last| last.epoch() <= at.epoch());
        before.checked_sub(1).map(|index| self.0[index])
    }

    /// The epoch that followed an earlier one; `now` is the present.
    pub(crate) fn epoch_after(&self, epoch: u32, now: Revision) -> u32 {
        let at = self.0.partition_point(|last| last.epoch() <= epoch);
        self.0.get(at).map_or(now.epoch(), |last| last.epoch())
    }

    /// The last revision of each earlier epoch.
    pub(crate) fn forks(&self) -> &[Revision] {
        &self.0
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<Revision>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: u32, counter: u64) -> Revision {
        Revision(Revision::open(epoch).0 + counter)
    }

    #[test]
    fn a_revision_beyond_a_fork_is_of_another_history() {
        let mut lineage = Lineage::default();
        lineage.end_epoch(Revision::ZERO);
        lineage.end_epoch(at(3, 7));
        lineage.end_epoch(at(5, 0));
        let now = at(9, 2);
        for (of, expected) in [
            (at(3, 0), true),
            (at(3, 7), true),
            (at(3, 8), false),
            (at(4, 0), false),
            (at(5, 0), true),
            (at(5, 1), false),
            (at(9, 2), true),
            (at(9, 3), false),
            (at(10, 0), false),
            (Revision::ZERO, false),
        ] {
            assert_eq!(lineage.has(of, now), expected, "{of}");
        }
        for (of, left_at) in [
            (at(3, 7), None),
            (at(3, 8), Some(at(3, 7))),
            (at(4, 2), Some(at(3, 7))),
            (at(8, 1), Some(at(5, 0))),
            (at(2, 4), None),
            (at(9, 3), None),
            (at(10, 0), None),
            (Revision::ZERO, None),
        ] {
            assert_eq!(lineage.left_at(of, now), left_at, "{of}");
        }
        assert_eq!([2, 3, 5, 9].map(|epoch| lineage.epoch_after(epoch, now)), [3, 5, 9, 9]);
    }

    #[test]
    fn what_a_leader_tells_is_bounded_and_rises() {
        let told: Vec<Revision> = (1..100).map(|epoch| at(epoch, 1)).chain([at(50, 1)]).collect();
        let lineage = Lineage::of(&told);
        assert!(lineage.forks().len() < FORKS_MAX && lineage.forks().is_sorted());
        assert_eq!(lineage.forks().last(), Some(&at(99, 1)));
    }
}
