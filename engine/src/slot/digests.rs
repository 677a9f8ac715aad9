//! The digests of a slot, kept up to date with every registration that comes and goes.

use super::{Slot, owners::OwnerNumber};
use crate::digest::fingerprint;

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

    pub(super) fn enter(&mut self, owner: OwnerNumber, print: u64) {
        self.digest.add(print);
        self.owners.digest_mut(owner).add(print);
    }

    pub(super) fn leave_digest(&mut self, index: u32) {
        let (owner, print) = (self.publication(index).owner, self.fingerprint_of(index));
        self.digest.remove(print);
        self.owners.digest_mut(owner).remove(print);
    }
}
