//! A slot's state to disk and back: a scan in steps, and applying what was read.

use super::{Place, Slot};
use crate::{
    batch::{Change, ChangeKind, Durability, Entry, write_change, write_name, write_put},
    change_log::ChangeLog,
    id::{DatumKey, Revision, SessionId},
};

/// How far a scan of a slot has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScanCursor {
    datum: usize,
    publication: usize,
}

impl Slot {
    /// Appends change entries that make up this slot's state to `out` until about `budget` bytes are written: names, then
    /// live registrations as puts and tombstones as removals or expiries. Returns how many, and whether the scan is complete.
    ///
    /// The slot may change between two steps. What changed after the scan began may be in the scan or not; applying all
    /// batches since the beginning over it gives the exact state.
    pub fn scan(&self, cursor: &mut ScanCursor, budget: usize, out: &mut Vec<u8>) -> (u64, bool) {
        let end = out.len() + budget;
        let mut entries = 0;
        while cursor.datum < self.datums.len() {
            if out.len() >= end {
                return (entries, false);
            }
            if let Some(datum) = &self.datums[cursor.datum] {
                write_name(out, datum.key, &datum.name);
                entries += 1;
            }
            cursor.datum += 1;
        }
        while cursor.publication < self.publications.len() {
            if out.len() >= end {
                return (entries, false);
            }
            let index = cursor.publication as u32;
            let publication = self.publication(index);
            if !matches!(publication.place(), Place::Vacant) {
                let owner = self.owner_of(publication);
                let change = Change {
                    kind: ChangeKind::Put,
                    durability: Durability::of_owner(owner),
                    datum: self.datum(publication.datum).key,
                    register: publication.register(&self.arena),
                    version: publication.version(),
                    epoch: 0,
                    owner,
                };
                match publication.place() {
                    Place::Live(_) => write_put(out, &change, self.record(index)),
                    Place::Tombstone { is_final: false } => {
                        write_change(out, &Change { kind: ChangeKind::Expire, ..change });
                    }
                    _ => write_change(out, &Change { kind: ChangeKind::Remove, ..change }),
                }
                entries += 1;
            }
            cursor.publication += 1;
        }
        (entries, true)
    }

    /// Applies an entry that was read from a disk. Returns whether its data id is known; a put of one that is not is left
    /// out, as it must be when a later batch removes the data id again.
    pub fn restore(&mut self, entry: Entry<'_>) -> bool {
        let change = entry.change;
        let known = match entry.record() {
            Some(record) => match self.find_datum(change.datum) {
                Some(datum) => {
                    let found = self.find_in(datum, change.register);
                    self.put_at(datum, found, &change, record);
                    true
                }
                None => false,
            },
            None => {
                let known = change.kind == ChangeKind::Name || self.knows(change.datum);
                if known {
                    self.apply(entry, 1);
                }
                known
            }
        };
        self.touched.clear();
        known
    }

    /// Hears that about so many registrations are about to be restored, with records of so many bytes in all, so that the index
    /// need not grow step by step: each step looks every registration up in its record.
    pub(crate) fn expect(&mut self, publishers: usize, record_bytes: usize) {
        self.arena.expect(record_bytes);
        let (seed, publications, arena) = (self.seed, &self.publications, &self.arena);
        self.publication_index.reserve(publishers, |&index| publications[index as usize].hash(arena, seed));
    }

    /// Ends restoring: the slot goes on at `revision`, which no run has used, without history.
    pub fn restored(&mut self, revision: Revision) {
        debug_assert!(self.open.changes() == 0);
        self.revision = revision;
        self.restart_log();
        self.arena.expect(0);
        for datum in self.datums.iter_mut().flatten() {
            (datum.last_change, datum.idle_since, datum.latest) = (revision, revision, None);
        }
    }

    /// The log begins at the present revision.
    pub(super) fn restart_log(&mut self) {
        self.log = ChangeLog::starting_at(self.revision);
    }

    /// The session incarnations that own registrations here.
    pub fn owners(&self) -> impl Iterator<Item = SessionId> {
        self.owners.sessions()
    }

    fn knows(&self, datum: DatumKey) -> bool {
        self.find_datum(datum).is_some()
    }
}
