//! What is known to have been removed of a data id, besides what the change log tells.

use super::{Place, Slot};
use crate::id::{DatumKey, RegisterId};

/// Tombstones of a slot, newest first, among which those of a data id are looked for. Older ones are not told then, and their
/// absence says so in the end.
const LOOKED_AT_MAX: usize = 16_384;

impl Slot {
    /// The registrations of a data id of which a tombstone stands, in rising order: they have been removed, whoever asks. Looks
    /// at a bounded number of the slot's tombstones.
    pub fn removed_of(&self, datum: DatumKey) -> Vec<RegisterId> {
        let Some(index) = self.find_datum(datum) else { return Vec::new() };
        if self.datum(index).tombstones == 0 {
            return Vec::new();
        }
        let latest = self.tombstones.iter().rev().take(LOOKED_AT_MAX);
        let of_datum =
            latest.filter(|tombstone| tombstone.datum == datum).map(|tombstone| tombstone.register);
        let stands = |register: &RegisterId| {
            let found = self.find_in(index, *register).map(|index| self.publication(index).place());
            matches!(found, Some(Place::Tombstone { .. }))
        };
        let mut removed: Vec<RegisterId> = of_datum.filter(stands).collect();
        removed.sort_unstable();
        removed.dedup();
        removed
    }
}
