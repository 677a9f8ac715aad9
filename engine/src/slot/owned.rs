//! What one session owns in a slot.

use std::collections::BTreeMap;

use super::{NIL, Slot};
use crate::{
    digest::Digest,
    id::{DatumKey, RegisterId, SessionId, Version},
};

impl Slot {
    /// The data ids in which `session` owns registrations, each with the digest over those.
    pub fn session_datum_digests(&self, session: SessionId) -> BTreeMap<DatumKey, Digest> {
        let mut digests: BTreeMap<DatumKey, Digest> = BTreeMap::new();
        for (index, publication) in self.live().filter(|(_, publication)| { publication.owner } == session) {
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
        let mut next = self.find_datum(datum).map_or(NIL, |index| self.datum(index).head);
        std::iter::from_fn(move || {
            while next != NIL {
                let publication = self.publication(next);
                next = publication.after;
                if { publication.owner } == session {
                    return Some((publication.register(&self.arena), publication.version()));
                }
            }
            None
        })
    }
}
