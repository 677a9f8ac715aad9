//! What a change does to the registrations of a slot, whoever decided it.

use super::{
    Slot, Tombstone, Touched,
    owners::OwnerNumber,
    publication::{NIL, Place, Publication},
};
use crate::{
    batch::{Change, ChangeKind, Entry},
    digest::fingerprint,
    id::{DatumKey, Nanos, RegisterId, Revision},
    record::Record,
};

impl Slot {
    /// Applies an entry that a leader admitted. `mark` is kept with a tombstone.
    pub fn apply(&mut self, entry: Entry<'_>, mark: u64) {
        if let Some(name) = entry.name() {
            if self.find_datum(entry.change.datum).is_none() {
                let index = self.insert_datum(entry.change.datum, name);
                self.idle.push_back(index);
            }
            return;
        }
        self.apply_change(&entry.change, entry.record(), mark);
    }

    pub(super) fn apply_change(&mut self, change: &Change, record: Option<Record<'_>>, mark: u64) {
        match (change.kind, record) {
            (ChangeKind::Put, Some(record)) => self.apply_put(change, record),
            (ChangeKind::Touch, _) => {
                let Some(index) = self.find(change.datum, change.register) else { return };
                // A scan that is applied first may have the removal that comes behind this.
                if !matches!(self.publication(index).place(), Place::Live(_)) {
                    return;
                }
                self.leave_digest(index);
                let before = self.content_of(index);
                let publication = &mut self.publications[index as usize];
                (publication.number, publication.attach) = (change.version.number, change.version.attach);
                let datum = publication.datum;
                self.set_owner(index, change.owner);
                self.enter_digest(index);
                let after = self.content_of(index);
                self.touched.push(Touched { datum, index, register: change.register, before, after });
            }
            (ChangeKind::Remove | ChangeKind::Expire, _) => self.apply_remove(change, mark),
            (ChangeKind::Forget, _) => {
                let Some(index) = self.find(change.datum, change.register) else { return };
                let publication = *self.publication(index);
                if matches!(publication.place(), Place::Tombstone { .. }) {
                    self.vacate(index);
                    let datum = self.datum_mut(publication.datum);
                    datum.tombstones -= 1;
                    self.note_if_idle(publication.datum);
                }
            }
            (ChangeKind::Put, None) | (ChangeKind::Name, _) => {
                debug_assert!(false, "a put has a record, a name is applied by its entry");
            }
        }
    }

    pub(super) fn apply_put(&mut self, change: &Change, record: Record<'_>) {
        let Some(datum) = self.find_datum(change.datum) else {
            debug_assert!(false, "a name precedes the first put");
            return;
        };
        let found = self.find_in(datum, change.register);
        self.put_at(datum, found, change, record);
    }

    /// Stores a record of `datum`, whose registration was `found` there or is new.
    pub(super) fn put_at(&mut self, datum: u32, found: Option<u32>, change: &Change, record: Record<'_>) {
        let to = self.arena.append(record);
        let (index, before) = match found {
            Some(index) => {
                let before = self.content_of(index);
                match self.publication(index).place() {
                    Place::Live(from) => {
                        self.leave_digest(index);
                        self.datum_mut(datum).bytes -= self.arena.get(from).bytes().len();
                        self.arena.release(from);
                    }
                    Place::Tombstone { .. } | Place::Vacant => {
                        self.datum_mut(datum).tombstones -= 1;
                        self.link(index, datum);
                    }
                }
                (index, before)
            }
            None => {
                let index = self.occupy(change.register, datum);
                self.link(index, datum);
                (index, None)
            }
        };
        let publication = &mut self.publications[index as usize];
        publication.number = change.version.number;
        publication.attach = change.version.attach;
        publication.datum = datum;
        publication.set_place(Place::Live(to));
        let owner = self.set_owner(index, change.owner);
        let checksum = record.checksum();
        self.enter(owner, fingerprint(change.datum, change.register, change.version, checksum));
        self.datum_mut(datum).bytes += record.bytes().len();
        let after = Some((checksum, change.owner));
        self.touched.push(Touched { datum, index, register: change.register, before, after });
    }

    pub(super) fn apply_remove(&mut self, change: &Change, mark: u64) {
        let Some(datum) = self.find_datum(change.datum) else { return };
        let found = self.find_in(datum, change.register);
        let index = found.unwrap_or_else(|| self.occupy(change.register, datum));
        let before = self.content_of(index);
        match self.publication(index).place() {
            Place::Live(at) => {
                self.leave_digest(index);
                self.unlink(index);
                let len = self.arena.get(at).bytes().len();
                self.arena.release(at);
                self.datum_mut(datum).bytes -= len;
                self.datum_mut(datum).tombstones += 1;
            }
            Place::Vacant => self.datum_mut(datum).tombstones += 1,
            Place::Tombstone { .. } => {}
        }
        let entry = &mut self.publications[index as usize];
        entry.set_place(Place::Tombstone { is_final: change.kind == ChangeKind::Remove });
        entry.keep(change.register);
        (entry.number, entry.attach) = (change.version.number, change.version.attach);
        self.set_owner(index, change.owner);
        self.tombstones.push_back(Tombstone {
            mark,
            datum: change.datum,
            register: change.register,
            version: change.version,
        });
        self.touched.push(Touched { datum, index, register: change.register, before, after: None });
    }

    /// Moves what the sealed batch really changed into the log; returns the changed data ids. A new owner counts: sessions
    /// have to know whose word decides on a registration after a loss, though their clients see no change.
    pub(super) fn log_touched(&mut self, revision: Revision, now: Nanos) -> Vec<DatumKey> {
        let mut touched = std::mem::take(&mut self.touched);
        // Stable: the first of a registration's touches knows what was there before the batch, the last what is there now.
        touched.sort_by_key(|touch| (touch.datum, touch.register));
        let mut changed = Vec::new();
        let mut datum_before = (NIL, Revision::ZERO);
        let same = |a: &Touched, b: &Touched| (a.datum, a.register) == (b.datum, b.register);
        for touches in touched.chunk_by(same) {
            let (first, last) = (&touches[0], &touches[touches.len() - 1]);
            if first.before == last.after {
                continue;
            }
            if let Some(since) = &mut self.since_led {
                since.note(last.index);
            }
            if datum_before.0 != first.datum {
                datum_before = (first.datum, self.datum(first.datum).last_change);
                changed.push(self.datum(first.datum).key);
            }
            let before = self.datum(first.datum).latest;
            let position = self.log.push(revision, now, first.datum, first.register, before, datum_before.1);
            let datum = self.datum_mut(first.datum);
            (datum.latest, datum.last_change) = (Some(position), revision);
            datum.changed_at = now.seconds();
        }
        touched.clear();
        self.touched = touched;
        changed
    }

    pub(super) fn occupy(&mut self, register: RegisterId, datum: u32) -> u32 {
        let fresh = Publication::fresh(register, datum);
        let index = if self.publications_vacant == NIL {
            self.publications.push(fresh);
            (self.publications.len() - 1) as u32
        } else {
            let index = self.publications_vacant;
            self.publications_vacant = self.publication(index).after;
            self.publications[index as usize] = fresh;
            index
        };
        if let Some(since) = &mut self.since_led {
            since.forget(index);
        }
        let hash = self.publication_hash(datum, register);
        let (seed, publications, arena) = (self.seed, &self.publications, &self.arena);
        self.publication_index
            .insert_unique(hash, index, |&index| publications[index as usize].hash(arena, seed));
        index
    }

    pub(super) fn vacate(&mut self, index: u32) {
        let publication = *self.publication(index);
        let hash = publication.hash(&self.arena, self.seed);
        if let Ok(entry) = self.publication_index.find_entry(hash, |&at| at == index) {
            entry.remove();
        }
        self.owners.unname(publication.owner);
        let vacant = self.publications_vacant;
        let entry = &mut self.publications[index as usize];
        entry.set_place(Place::Vacant);
        entry.owner = OwnerNumber::NOBODY;
        entry.after = vacant;
        self.publications_vacant = index;
    }

    pub(super) fn link(&mut self, index: u32, datum: u32) {
        let head = self.datum(datum).head;
        (self.publications[index as usize].before, self.publications[index as usize].after) = (NIL, head);
        if head != NIL {
            self.publications[head as usize].before = index;
        }
        let datum = self.datum_mut(datum);
        datum.head = index;
        datum.publishers += 1;
        self.publishers += 1;
    }

    pub(super) fn unlink(&mut self, index: u32) {
        let Publication { before, after, datum, .. } = *self.publication(index);
        if after != NIL {
            self.publications[after as usize].before = before;
        }
        if before != NIL {
            self.publications[before as usize].after = after;
        } else {
            self.datum_mut(datum).head = after;
        }
        self.datum_mut(datum).publishers -= 1;
        self.publishers -= 1;
    }
}
