//! The change log: which registrations of a slot changed lately, oldest first.
//!
//! It holds no content: a diff reads the current state of what changed. Entries of one data id are chained backwards, so
//! a diff of one data id costs its own changes, not the slot's. A reader at or above the floor gets a diff; one below it
//! gets a snapshot of the data id.
//!
//! Invariant: revisions never decrease from the front to the back, and all entries are above the floor.

use std::collections::VecDeque;

use pieces::Pieces;
use steps::Steps;

use crate::id::{Nanos, RegisterId, Revision};

mod pieces;

mod steps;

/// Bounds of one slot's log; what passes any of them is dropped from the old end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeLogLimits {
    /// Entries kept.
    pub entries_max: usize,
    /// Nanoseconds that an entry is kept.
    pub age_max: u64,
}

impl Default for ChangeLogLimits {
    fn default() -> Self {
        Self { entries_max: 2_048, age_max: 300 * Nanos::SECOND }
    }
}

/// One registration that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// The batch that changed it.
    pub revision: Revision,
    /// Its data id, as a number within the slot.
    pub datum: u32,
    /// The registration.
    pub register: RegisterId,
    /// Revision of the data id's last change before this entry's batch.
    pub datum_before: Revision,
}

/// An entry as it is kept. A log that holds thousands of them in each of thousands of slots pays for every byte, and revisions
/// are near each other: they are kept as distances.
#[derive(Clone, Copy)]
#[repr(Rust, packed(4))]
struct Kept {
    register: RegisterId,
    datum: u32,
    /// How far back the data id's entry before this one lies; 0: there is none within reach.
    before: u32,
    /// How far the revision is above that of [`ChangeLog::bases`] at the entry's place.
    above: u32,
    /// How far the data id's last change before the batch is below the revision; or [`NEVER`], or [`FAR`].
    since: u32,
}

const _: () = assert!(size_of::<Kept>() == 24);

/// There was no change before.
const NEVER: u32 = 0;
/// It is further away than can be told, in an earlier leader epoch: [`ChangeLog::far`] has it.
const FAR: u32 = u32::MAX;

/// A position that stays valid while the entry is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(u64);

/// Batches that were sealed within this part of the largest age, and within [`AGE_GRAIN_MAX`], are as old as the youngest of
/// them.
const AGE_GRAIN_PART: u64 = 256;
const AGE_GRAIN_MAX: u64 = Nanos::SECOND;

/// When some batches were sealed.
#[derive(Clone, Copy)]
struct Age {
    /// The last of them.
    to: Revision,
    oldest: Nanos,
    youngest: Nanos,
}

/// The log of one slot.
#[derive(Default)]
pub struct ChangeLog {
    entries: Pieces<Kept>,
    /// What revisions count from, by position.
    bases: Steps,
    /// The revisions that are [`FAR`], by position.
    far: Steps,
    /// When the entries' batches were sealed, oldest first; neighbours share one.
    ages: VecDeque<Age>,
    /// See [`AGE_GRAIN_PART`]; none before the first trim.
    grain: u64,
    first: u64,
    floor: Revision,
}

impl ChangeLog {
    /// A log without history: readers below `floor` need snapshots.
    pub fn starting_at(floor: Revision) -> Self {
        Self { floor, ..Self::default() }
    }

    /// Takes memory for `entries` changes ahead, and touches it.
    pub(crate) fn reserve(&mut self, entries: usize) {
        let blank = Kept { register: RegisterId(0), datum: 0, before: 0, above: 0, since: NEVER };
        self.entries.reserve(entries, blank);
    }

    /// Oldest revision from which this log can tell every later change.
    pub fn floor(&self) -> Revision {
        self.floor
    }

    /// Entries held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.len() == 0
    }

    /// Bytes of the entries held, without room taken ahead.
    pub fn entry_bytes(&self) -> usize {
        self.entries.len() * size_of::<Kept>()
    }

    /// Data ids of the oldest and the newest entry, by their numbers within the slot.
    pub(crate) fn ends(&self) -> Option<(u32, u32)> {
        Some((self.entries.get(0)?.datum, self.entries.get(self.len() - 1)?.datum))
    }

    /// When the oldest batch was sealed of which an entry is held.
    pub fn oldest(&self) -> Option<Nanos> {
        self.ages.front().map(|age| age.oldest)
    }

    /// Bytes held for entries and batches.
    pub fn bytes(&self) -> usize {
        let ages = self.ages.capacity() * size_of::<Age>();
        self.entries.bytes() + self.bases.bytes() + self.far.bytes() + ages
    }

    /// Appends a change. `before` is the data id's latest position, `datum_before` the revision of its last change in an
    /// earlier batch.
    pub fn push(
        &mut self,
        revision: Revision,
        sealed_at: Nanos,
        datum: u32,
        register: RegisterId,
        before: Option<Position>,
        datum_before: Revision,
    ) -> Position {
        assert!(self.newest().is_none_or(|newest| newest <= revision));
        assert!(revision > self.floor && datum_before < revision);
        match self.ages.back_mut() {
            Some(age) if age.to == revision => {}
            Some(age) if sealed_at.since(age.oldest) < self.grain => {
                (age.to, age.youngest) = (revision, sealed_at);
            }
            _ => self.ages.push_back(Age { to: revision, oldest: sealed_at, youngest: sealed_at }),
        }
        let position = self.first + self.entries.len() as u64;
        // What is further back than can be told is dropped long before.
        let before = before.and_then(|before| u32::try_from(position - before.0).ok()).unwrap_or(0);
        let distance = |from: Revision| u32::try_from(revision.0 - from.0).ok().filter(|near| *near < FAR);
        let above = self.bases.last().and_then(distance).unwrap_or_else(|| {
            self.bases.set(position, revision);
            0
        });
        let since = match distance(datum_before) {
            _ if datum_before == Revision::ZERO => NEVER,
            Some(near) => near,
            None => {
                self.far.set(position, datum_before);
                FAR
            }
        };
        self.entries.push_back(Kept { register, datum, before, above, since });
        Position(position)
    }

    /// The revision of the newest entry.
    fn newest(&self) -> Option<Revision> {
        self.entries.len().checked_sub(1).and_then(|last| self.revision_at(last))
    }

    /// The revision of the entry at a place, the oldest being at 0.
    fn revision_at(&self, place: usize) -> Option<Revision> {
        let kept = self.entries.get(place)?;
        Some(Revision(self.bases.at(self.first + place as u64).0 + u64::from(kept.above)))
    }

    /// The entry at a place, and how far back that of its data id before it lies.
    fn entry_at(&self, place: usize) -> Option<(LogEntry, u32)> {
        let Kept { register, datum, before, since, .. } = *self.entries.get(place)?;
        let revision = self.revision_at(place)?;
        let datum_before = match since {
            NEVER => Revision::ZERO,
            FAR => self.far.at(self.first + place as u64),
            near => Revision(revision.0 - u64::from(near)),
        };
        Some((LogEntry { revision, datum, register, datum_before }, before))
    }

    /// Drops the oldest entries beyond the limits. Whole batches go, so the floor is always a batch's revision. The newest
    /// batch does not go for being too large: readers in step are about to be told of it.
    pub fn trim(&mut self, limits: &ChangeLogLimits, now: Nanos) {
        self.grain = (limits.age_max / AGE_GRAIN_PART).min(AGE_GRAIN_MAX);
        self.drop_oldest(limits, now, usize::MAX, self.newest());
    }

    /// Drops the oldest entries beyond the limits, the newest batch like the others, until `budget` entries are gone; it may
    /// be one batch more. Returns how many went, and whether none is left beyond the limits.
    pub fn trim_some(&mut self, limits: &ChangeLogLimits, now: Nanos, budget: usize) -> (usize, bool) {
        self.drop_oldest(limits, now, budget, None)
    }

    fn drop_oldest(
        &mut self,
        limits: &ChangeLogLimits,
        now: Nanos,
        budget: usize,
        keep: Option<Revision>,
    ) -> (usize, bool) {
        let entries_max = limits.entries_max.min(u32::MAX as usize);
        let held = self.entries.len();
        while let (Some(oldest), Some(age)) = (self.revision_at(0), self.ages.front()) {
            let too_many = self.entries.len() > entries_max && keep != Some(oldest);
            let too_old = now.since(age.youngest) > limits.age_max;
            if !too_many && !too_old {
                break;
            }
            let dropped = held - self.entries.len();
            if dropped >= budget {
                return (dropped, false);
            }
            self.floor = oldest;
            while self.revision_at(0) == Some(oldest) {
                self.entries.pop_front();
                self.first += 1;
            }
            if age.to <= oldest {
                self.ages.pop_front();
            }
        }
        self.bases.forget_before(self.first);
        self.far.forget_before(self.first);
        (held - self.entries.len(), true)
    }

    /// Gives memory back that a longer history had taken and this one does not need; what was taken ahead stays.
    pub(crate) fn give_back(&mut self) {
        self.entries.give_back();
        self.bases.give_back();
        self.far.give_back();
        self.ages.shrink_to(self.ages.len() * 2);
    }

    /// The changes of one data id above `since`, newest first, starting at its latest position.
    pub fn datum_changes(&self, latest: Option<Position>, since: Revision) -> impl Iterator<Item = LogEntry> {
        let mut next = latest;
        std::iter::from_fn(move || {
            let at = next?;
            let (entry, before) = self.entry_at(at.0.checked_sub(self.first)? as usize)?;
            next = if before > 0 { at.0.checked_sub(before.into()).map(Position) } else { None };
            (entry.revision > since).then_some(entry)
        })
    }

    /// All changes above `since`, newest first.
    pub fn changes(&self, since: Revision) -> impl Iterator<Item = LogEntry> {
        let entries = (0..self.entries.len()).rev().filter_map(|place| self.entry_at(place));
        entries.map(|(entry, _)| entry).take_while(move |entry| entry.revision > since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(batches: u64, per_batch: u64) -> (ChangeLog, Option<Position>) {
        let mut log = ChangeLog::starting_at(Revision::open(1));
        let (mut revision, mut latest, mut before) = (Revision::open(1), None, Revision::ZERO);
        for batch in 0..batches {
            revision = revision.next();
            for register in 0..per_batch {
                latest = Some(log.push(revision, Nanos(batch), 0, RegisterId(register), latest, before));
            }
            before = revision;
        }
        (log, latest)
    }

    #[test]
    fn the_chain_ends_at_the_reader_and_at_the_floor() {
        let (mut log, latest) = filled(10, 3);
        let since = Revision(Revision::open(1).0 + 8);
        assert_eq!(log.datum_changes(latest, since).count(), 6);
        log.trim(&ChangeLogLimits { entries_max: 4, age_max: u64::MAX }, Nanos(10));
        assert_eq!(log.len(), 3, "whole batches go");
        assert_eq!(log.floor(), Revision(Revision::open(1).0 + 9));
        assert_eq!(log.datum_changes(latest, log.floor()).count(), 3);
    }

    #[test]
    fn revisions_are_told_exactly_whatever_lies_between_them() {
        let mut log = ChangeLog::starting_at(Revision::open(1));
        let (mut told, mut latest) = (Vec::new(), [None; 3]);
        let mut last = [Revision::ZERO; 3];
        for batch in 0..300u64 {
            // A new leader epoch every hundred batches; after every tenth a jump beyond what a distance can tell.
            let counter = batch % 100 * 2 + batch % 100 / 10 * (1 << 33);
            let revision = Revision(Revision::open(1 + batch as u32 / 100).0 + 1 + counter);
            let datum = (batch % 3) as usize;
            for register in 0..=batch % 2 {
                let register = RegisterId(batch * 2 + register);
                let before = last[datum];
                let position =
                    log.push(revision, Nanos(batch), datum as u32, register, latest[datum], before);
                latest[datum] = Some(position);
                told.push(LogEntry { revision, datum: datum as u32, register, datum_before: before });
            }
            last[datum] = revision;
            if batch % 7 == 0 {
                log.trim(&ChangeLogLimits { entries_max: 190, age_max: u64::MAX }, Nanos(batch));
            }
            let held = &told[told.len() - log.len()..];
            assert!(log.changes(Revision::ZERO).eq(held.iter().rev().copied()));
            for (datum, latest) in (0..).zip(latest) {
                let own = held.iter().rev().filter(|entry| entry.datum == datum).copied();
                assert!(log.datum_changes(latest, Revision::ZERO).eq(own));
            }
        }
        assert!(log.len() < told.len() && !log.is_empty());
        assert!(log.far.bytes() + log.bases.bytes() < 4096, "{} and {}", log.far.bytes(), log.bases.bytes());
    }

    #[test]
    fn age_alone_empties_the_log() {
        let (mut log, latest) = filled(5, 1);
        log.trim(&ChangeLogLimits { entries_max: 100, age_max: 10 }, Nanos(1000));
        assert!(log.is_empty());
        assert_eq!(log.floor(), Revision(Revision::open(1).0 + 5));
        assert_eq!(log.datum_changes(latest, log.floor()).count(), 0);
    }
}
