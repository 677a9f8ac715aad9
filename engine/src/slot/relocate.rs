//! Records move within a slot's arena, so that segments that are mostly dead become free.

use super::{Place, Slot};
use crate::{
    arena::Location,
    id::{DatumKey, RegisterId},
};

/// A record and what finds its registration.
#[derive(Clone, Copy)]
pub(crate) struct Movable {
    /// Where it lies.
    pub(crate) from: Location,
    /// Its data id.
    pub(crate) datum: DatumKey,
    /// Its registration.
    pub(crate) register: RegisterId,
}

impl Slot {
    /// Copies those of the records that the index still holds where they lie to the end of the arena, and releases their old
    /// places. Returns how many.
    ///
    /// Each look-up waits for memory several times. They are taken kind by kind, for then the processor waits for those of all
    /// records at once.
    pub(crate) fn relocate(&mut self, movable: &[Movable]) -> usize {
        let datums: Vec<_> = movable.iter().map(|record| self.find_datum(record.datum)).collect();
        let found = movable.iter().zip(datums).map(|(record, datum)| self.find_in(datum?, record.register));
        let found: Vec<_> = found.collect();
        let mut moved = 0;
        for (record, index) in movable.iter().zip(found) {
            let Some(index) = index else { continue };
            if !matches!(self.publication(index).place(), Place::Live(at) if at == record.from) {
                continue;
            }
            let to = self.arena.append_copy(record.from);
            self.publications[index as usize].set_place(Place::Live(to));
            self.arena.release(record.from);
            moved += 1;
        }
        moved
    }
}
