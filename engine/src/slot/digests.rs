//! The digests of a slot, kept up to date with every registration that comes and goes.

use super::Slot;
use crate::{
    digest::{Digest, fingerprint},
    id::SessionId,
};

impl Slot {
    pub(super) fn fingerprint_of(&self, index: u32) -> u64 {
        let publication = self.publication(index);
        let key = self.datum(publication.datum).key;
        let register = publication.register(&self.arena);
        fingerprint(key, register, publication.version(), self.record(index).checksum())
    }

    pub(super) fn enter_digest(&mut self, index: u32) {
        self.enter(self.publication(index).owner, self.fingerprint_of(index));
    }

    pub(super) fn enter(&mut self, owner: SessionId, print: u64) {
        self.digest.add(print);
        match self.session_digests.binary_search_by_key(&owner, |(session, _)| *session) {
            Ok(at) => self.session_digests[at].1.add(print),
            Err(at) => self.session_digests.insert(at, (owner, Digest { sum: print, count: 1 })),
        }
    }

    pub(super) fn leave_digest(&mut self, index: u32) {
        let (owner, print) = (self.publication(index).owner, self.fingerprint_of(index));
        self.digest.remove(print);
        if let Ok(at) = self.session_digests.binary_search_by_key(&owner, |(session, _)| *session) {
            self.session_digests[at].1.remove(print);
            if self.session_digests[at].1.is_empty() {
                self.session_digests.remove(at);
            }
        }
    }
}
