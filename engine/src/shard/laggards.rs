//! Readers that catch up, and who of them are told together.
//!
//! Readers of a data id whose revisions lie between the same two of its changes lack the same of it, and a diff collected for one
//! of them is right for all: it reaches back to the earlier of the two changes. So each such class is told once. The
//! log of a slot is gone through once, from the reader furthest behind, however many there are. What the same readers are told
//! follows each other, so that it can be written once for all of them.

use std::collections::BTreeMap;

use super::pushes::Since;
use crate::{
    id::{DatumKey, ReaderId, Revision, SlotId},
    interest::Interests,
    slot::Slot,
};

/// Readers in all sets of a round together. A round ends when there are more, and another begins: what a set takes is then bounded
/// whatever the readers want, and what is told apart from then on is at most told separately.
const SET_READERS_MAX: usize = 1 << 20;
/// Classes of a round; it ends when there are more.
const CLASSES_MAX: usize = 1 << 18;

/// What was asked and is answered by itself.
type Asked = BTreeMap<(ReaderId, SlotId, DatumKey), Since>;

/// A reader that catches up in a slot, and the revision that it has got to.
pub(super) type Laggard = (SlotId, ReaderId, Revision);

/// Readers that lack the same of one data id.
struct Class {
    /// The number of its set of readers.
    readers: u32,
    slot: SlotId,
    datum: DatumKey,
    /// A revision from which what is collected is right for each of them: the least of theirs, for a whole list names what was removed
    /// since.
    since: Revision,
}

/// Classes that are told together.
#[derive(Default)]
pub(super) struct Round {
    classes: Vec<Class>,
    /// Every set of readers once, with its number.
    sets: BTreeMap<Vec<ReaderId>, u32>,
    set_readers: usize,
}

impl Round {
    /// Whether it should be told before more is added.
    pub(super) fn is_full(&self) -> bool {
        self.classes.len() > CLASSES_MAX || self.set_readers > SET_READERS_MAX
    }

    /// Adds what the laggards of one slot, in rising order of readers, lack there.
    pub(super) fn add(&mut self, slot: &Slot, laggards: &[Laggard], interests: &Interests, asked: &Asked) {
        let is_due = |reader: ReaderId, datum: DatumKey| {
            asked.is_empty() || !asked.contains_key(&(reader, slot.id(), datum))
        };
        let floor = slot.log().floor();
        let mut oldest = None;
        // For whom the log does not reach back far enough: all they want. Who holds nothing that counts is told no removals.
        let mut whole: Vec<(DatumKey, bool, ReaderId, Revision)> = Vec::new();
        for &(_, reader, since) in laggards {
            if since >= floor {
                oldest = Some(oldest.map_or(since, |oldest: Revision| oldest.min(since)));
                continue;
            }
            let wanted = interests.of_slot(reader, slot.id()).filter(|datum| is_due(reader, *datum));
            whole.extend(wanted.map(|datum| (datum, since == Revision::ZERO, reader, since)));
        }
        whole.sort_unstable();
        for class in whole.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let since = class.iter().map(|(.., since)| *since).min().unwrap_or_default();
            self.push(slot.id(), class[0].0, since, class.iter().map(|(.., reader, _)| *reader).collect());
        }
        let Some(oldest) = oldest else { return };
        let changes = slot.log().changes(oldest);
        let mut changes: Vec<(u32, Revision)> = changes.map(|entry| (entry.datum, entry.revision)).collect();
        changes.sort_unstable();
        changes.dedup();
        let mut lacking: Vec<(usize, ReaderId, Revision)> = Vec::new();
        for changes in changes.chunk_by(|a, b| a.0 == b.0) {
            let datum = slot.datum_key(changes[0].0);
            let mut readers = interests.readers(slot.id(), datum);
            for &(_, reader, since) in laggards {
                // Nearly always the next one: who lags in a slot is there because he reads in it.
                if readers.first() != Some(&reader) {
                    readers = &readers[readers.partition_point(|other| *other < reader)..];
                }
                if readers.first() != Some(&reader) {
                    continue;
                }
                readers = &readers[1..];
                // How many of the changes it has.
                let has = changes.partition_point(|(_, revision)| *revision <= since);
                if since >= floor && has < changes.len() && is_due(reader, datum) {
                    lacking.push((has, reader, since));
                }
            }
            lacking.sort_unstable();
            for class in lacking.chunk_by(|a, b| a.0 == b.0) {
                let since = class.iter().map(|(.., since)| *since).min().unwrap_or_default();
                self.push(slot.id(), datum, since, class.iter().map(|(_, reader, _)| *reader).collect());
            }
            lacking.clear();
        }
    }

    /// Hands every class to `tell`, those of the same readers one after the other.
    pub(super) fn tell(mut self, mut tell: impl FnMut(&[ReaderId], SlotId, DatumKey, Revision)) {
        self.classes.sort_by_key(|class| class.readers);
        let mut sets = vec![[].as_slice(); self.sets.len()];
        for (readers, number) in &self.sets {
            sets[*number as usize] = readers;
        }
        for Class { readers, slot, datum, since } in self.classes {
            tell(sets[readers as usize], slot, datum, since);
        }
    }

    fn push(&mut self, slot: SlotId, datum: DatumKey, since: Revision, readers: Vec<ReaderId>) {
        let (next, size) = (self.sets.len() as u32, readers.len());
        let readers = *self.sets.entry(readers).or_insert(next);
        if readers == next {
            self.set_readers += size;
        }
        self.classes.push(Class { readers, slot, datum, since });
    }
}
