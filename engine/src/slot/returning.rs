//! Registrations that return: their owner's lease ended here or at a former leader, and yet the owner lives.
//!
//! A session that one leader did not hear for a lease may be well: cut off from that leader alone. It still holds what its
//! clients have published, in the versions that have expired, and no other session can hold those: a client that came to
//! another has a larger attach count there. So the owner, and nobody else, may put an expired version again. What was removed
//! by request stays removed, and the owner may make that of what has expired.

use std::collections::BTreeSet;

use super::{Place, Slot, Tombstone};
use crate::{batch::Change, id::Version};

impl Slot {
    /// Whether a tombstone is of an expiry, and `change` is by the owner that it took the registration from.
    pub(super) fn may_return(&self, index: u32, change: &Change) -> bool {
        let publication = self.publication(index);
        let has_expired = matches!(publication.place(), Place::Tombstone { is_final: false });
        has_expired && self.owner_of(publication) == change.owner && !change.is_persistent()
    }

    /// A registration is about to be put or removed in `version`. If it is a tombstone of that version, what is queued to be
    /// forgotten is not the tombstone that it may have next.
    pub(super) fn note_returned(&mut self, index: u32, version: Version) {
        let publication = self.publication(index);
        if publication.version() == version && matches!(publication.place(), Place::Tombstone { .. }) {
            let (datum, register) = (publication.datum, publication.register(&self.arena));
            *self.returned.entry((self.datum(datum).key, register, version)).or_insert(0) += 1;
        }
    }

    /// Whether a tombstone is that of an expiry after which the registration has returned.
    pub(super) fn is_of_returned(&mut self, tombstone: &Tombstone) -> bool {
        if self.returned.is_empty() {
            return false;
        }
        let key = (tombstone.datum, tombstone.register, tombstone.version);
        let Some(times) = self.returned.get_mut(&key) else { return false };
        *times -= 1;
        if *times == 0 {
            self.returned.remove(&key);
        }
        true
    }

    /// All tombstones are to go with the same mark, each once.
    pub(super) fn mark_tombstones(&mut self, mark: u64) {
        self.returned.clear();
        let mut known = BTreeSet::new();
        self.tombstones
            .retain(|tombstone| known.insert((tombstone.datum, tombstone.register, tombstone.version)));
        self.tombstones.iter_mut().for_each(|tombstone| tombstone.mark = mark);
    }
}
