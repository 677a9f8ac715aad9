//! What a leader decides: which writes win, and what they add to the open batch.

use super::{
    Slot,
    publication::{NIL, Place, Publication},
};
use crate::{
    batch::{Change, ChangeKind, Durability, Entry, write_change},
    error::Refusal,
    id::{ClientId, SessionId},
    limits::{DATUM_BYTES_MAX, DATUM_PUBLISHERS_MAX},
};

impl Slot {
    /// Names the data id behind a key. Refused when another data id holds the key.
    pub fn admit_name(&mut self, entry: Entry<'_>) -> Result<(), Refusal> {
        let name = entry.name().ok_or(Refusal::RecordInvalid)?;
        match self.find_datum(entry.change.datum) {
            Some(index) if &*self.datum(index).name == name => {
                self.datum_mut(index).idle_since = self.revision;
                Ok(())
            }
            Some(_) => Err(Refusal::KeyCollision),
            None => {
                self.open.push(entry);
                self.apply(entry, 0);
                self.named = self.find_datum(entry.change.datum).unwrap_or(NIL);
                Ok(())
            }
        }
    }

    /// Admits a put of a session: the larger (publisher version, attach count) wins, and equal content changes nothing
    /// but the version. `client` is the publishing client that the record names. An ephemeral registration is changed by
    /// its client alone, a persistent one by whoever names it with a larger version.
    pub fn admit_put(&mut self, entry: Entry<'_>, client: u64) -> Result<(), Refusal> {
        let (change, record) = (entry.change, entry.record().ok_or(Refusal::RecordInvalid)?);
        let datum = self.find_datum(change.datum).ok_or(Refusal::NameUnknown)?;
        let mut replaced_bytes = 0;
        let found = self.find_in(datum, change.register);
        if let Some(index) = found {
            let known = self.publication(index).version();
            if matches!(self.publication(index).place(), Place::Live(_)) {
                let stored = self.record(index);
                if self.publication(index).is_persistent() != change.is_persistent() {
                    return Err(Refusal::DurabilityMismatch);
                }
                if !change.is_persistent() && stored.client() != Some(ClientId(client)) {
                    return Err(Refusal::ForeignRegistration);
                }
                let same = stored.checksum() == record.checksum();
                // Two writers of a persistent registration may have chosen one version.
                if change.version < known || change.version == known && change.is_persistent() && !same {
                    return Err(Refusal::Superseded);
                }
                if change.version == known {
                    return Ok(());
                }
                if same {
                    let touch = Change { kind: ChangeKind::Touch, ..change };
                    self.open_persistent |= change.is_persistent();
                    self.write(|out| write_change(out, &touch));
                    self.apply_change(&touch, None, 0);
                    return Ok(());
                }
                replaced_bytes = stored.bytes().len();
            } else if change.version < known || change.version == known && !self.may_return(index, &change) {
                return Err(Refusal::Superseded);
            }
        }
        let held = self.datum(datum);
        let full = replaced_bytes == 0 && held.publishers as usize >= DATUM_PUBLISHERS_MAX;
        let full = full || self.arena.is_full();
        if full || held.bytes - replaced_bytes + record.bytes().len() > DATUM_BYTES_MAX {
            return Err(Refusal::DatumFull);
        }
        if let Some(index) = found {
            self.note_returned(index, change.version);
        }
        self.open_persistent |= change.is_persistent();
        self.name_again(datum);
        self.open.push(entry);
        self.put_at(datum, found, &change, record);
        Ok(())
    }

    /// Admits a removal. Only the owning session incarnation removes an ephemeral registration, and whoever names it with
    /// a version that is not smaller a persistent one; an unknown registration is no error. `mark` says when the tombstone
    /// may go (see [`Slot::forget_tombstones`]).
    pub fn admit_remove(&mut self, change: &Change, mark: u64) -> Result<(), Refusal> {
        let Some(datum) = self.find_datum(change.datum) else { return Ok(()) };
        // What is not known leaves a tombstone all the same: a session that has not been heard yet may still hold it.
        if let Some(index) = self.find_in(datum, change.register) {
            let publication = self.publication(index);
            if matches!(publication.place(), Place::Live(_)) {
                if publication.is_persistent() != change.is_persistent() {
                    return Err(Refusal::DurabilityMismatch);
                }
                if self.owner_of(publication) != change.owner {
                    return Err(Refusal::NotOwner);
                }
                if change.version < publication.version() {
                    return Err(Refusal::Superseded);
                }
            } else if change.version < publication.version()
                || change.version == publication.version() && !self.may_return(index, change)
            {
                return Ok(());
            } else {
                self.note_returned(index, change.version);
            }
        }
        let remove = Change { kind: ChangeKind::Remove, ..*change };
        self.open_persistent |= change.is_persistent();
        self.name_again(datum);
        self.write(|out| write_change(out, &remove));
        self.apply_change(&remove, None, mark);
        Ok(())
    }

    /// Removes at most `limit` of the ephemeral registrations that `session` owns: its lease has ended. Returns how many. Should
    /// it turn out to live, it may put them again (see [`ChangeKind::Expire`]).
    pub fn remove_session(&mut self, session: SessionId, mark: u64, limit: usize) -> usize {
        let Some(owner) = self.owners.find(session) else { return 0 };
        if self.session_digest(session).is_empty() {
            return 0;
        }
        let owned: Vec<Change> = self
            .live()
            .filter(|(_, publication)| { publication.owner } == owner)
            .map(|(_, publication)| self.expiry_of(publication))
            .take(limit)
            .collect();
        for change in &owned {
            self.write(|out| write_change(out, change));
            self.apply_change(change, None, mark);
        }
        owned.len()
    }

    /// Drops at most `limit` tombstones marked below `mark`: every live session has confirmed a write sequence that it sent
    /// after it could learn of them. Returns how many went.
    pub fn forget_tombstones(&mut self, mark: u64, limit: usize) -> usize {
        let mut forgotten = 0;
        while forgotten < limit && self.tombstones.front().is_some_and(|tombstone| tombstone.mark < mark) {
            let Some(tombstone) = self.tombstones.pop_front() else { break };
            if self.is_of_returned(&tombstone) {
                continue;
            }
            let Some(index) = self.find(tombstone.datum, tombstone.register) else { continue };
            let publication = self.publication(index);
            let same = publication.version() == tombstone.version;
            if same && matches!(publication.place(), Place::Tombstone { .. }) {
                let forget = Change {
                    kind: ChangeKind::Forget,
                    durability: Durability::Ephemeral,
                    datum: tombstone.datum,
                    register: tombstone.register,
                    version: tombstone.version,
                    epoch: 0,
                    owner: self.owner_of(publication),
                };
                self.write(|out| write_change(out, &forget));
                self.apply_change(&forget, None, 0);
                forgotten += 1;
            }
        }
        forgotten
    }

    pub(super) fn write(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.open.append(write);
    }

    pub(super) fn expiry_of(&self, publication: &Publication) -> Change {
        Change {
            kind: ChangeKind::Expire,
            durability: Durability::Ephemeral,
            datum: self.datum(publication.datum).key,
            register: publication.register(&self.arena),
            version: publication.version(),
            epoch: 0,
            owner: self.owner_of(publication),
        }
    }
}
