//! What one session owns in a slot.

use std::collections::BTreeMap;

use super::{NIL, Publication, Slot, owners::OwnerNumber};
use crate::{
    digest::Digest,
    id::{DatumKey, RegisterId, SessionId, Version},
};

impl Slot {
    /// Who owns a registration.
    pub(super) fn owner_of(&self, publication: &Publication) -> SessionId {
        self.owners.session(publication.owner)
    }

    /// Gives a registration another owner, or the same. It is in no digest meanwhile.
    pub(super) fn set_owner(&mut self, index: u32, session: SessionId) -> OwnerNumber {
        let owner = self.owners.name(session);
        let publication = &mut self.publications[index as usize];
        let before = std::mem::replace(&mut publication.owner, owner);
        self.owners.unname(before);
        owner
    }

    /// The data ids in which `session` owns registrations, each with the digest over those.
    pub fn session_datum_digests(&self, session: SessionId) -> BTreeMap<DatumKey, Digest> {
        let mut digests: BTreeMap<DatumKey, Digest> = BTreeMap::new();
        let Some(owner) = self.owners.find(session) else { return digests };
        for (index, publication) in self.live().filter(|(_, publication)| { publication.owner } == owner) {
            let key = self.datum(publication.datum).key;
            digests.entry(key).or_default().add(self.fingerprint_of(index));
        }
        digests
    }

    /// The registrations of a data id that `session` owns, with their versions.
    pub fn session_registers(
        &self,
        session: SessionId,
        datum: DatumKey,
    ) -> impl Iterator<Item = (RegisterId, Version)> {
        let owner = self.owners.find(session);
        let mut next = self.find_datum(datum).map_or(NIL, |index| self.datum(index).head);
        std::iter::from_fn(move || {
            while next != NIL {
                let publication = self.publication(next);
                next = publication.after;
                if Some(publication.owner) == owner {
                    return Some((publication.register(&self.arena), publication.version()));
                }
            }
            None
        })
    }
}
