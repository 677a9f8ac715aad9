//! What is known to have been removed of a data id, for readers that the change log cannot tell all.

use super::{Place, Slot};
use crate::id::{DatumKey, RegisterId, Revision};

/// Tombstones of a slot, and changes of a data id, newest first, among which removals are looked for. Older ones are not told then,
/// and their absence says so in the end.
const LOOKED_AT_MAX: usize = 16_384;

impl Slot {
    /// The registrations of a data id that are known to have been removed since a revision of this history, in rising order: those of
    /// which a tombstone stands, whoever asks, and those that the change log names, even where it does not reach back to that
    /// revision: tombstones go as soon as every session has confirmed, and who is asked for here is a session that came later. Looks
    /// at a bounded number of the slot's tombstones, and of the data id's changes.
    pub fn removed_of(&self, datum: DatumKey, since: Revision) -> Vec<RegisterId> {
        let Some(index) = self.find_datum(datum) else { return Vec::new() };
        let is_gone = |register: &RegisterId| self.get(datum, *register).is_none();
        let changes = self.log.datum_changes(self.datum(index).latest, since).take(LOOKED_AT_MAX);
        let mut removed: Vec<RegisterId> = changes.map(|entry| entry.register).filter(is_gone).collect();
        if self.datum(index).tombstones > 0 {
            let latest = self.tombstones.iter().rev().take(LOOKED_AT_MAX);
            let of_datum =
                latest.filter(|tombstone| tombstone.datum == datum).map(|tombstone| tombstone.register);
            let stands = |register: &RegisterId| {
                let found = self.find_in(index, *register).map(|index| self.publication(index).place());
                matches!(found, Some(Place::Tombstone { .. }))
            };
            removed.extend(of_datum.filter(stands));
        }
        removed.sort_unstable();
        removed.dedup();
        removed
    }
}
