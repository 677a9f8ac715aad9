//! Looking at memory before it is needed.
//!
//! A shard that is told of very many registrations goes from slot to slot, and little of what a change needs is in the
//! processor's caches by then. What the changes of a whole write frame need is therefore looked at before the first of them is
//! admitted: a processor waits for many places at once as long as for one.

use std::hint::black_box;

use super::Slot;
use crate::id::{DatumKey, RegisterId, SessionId};

impl Slot {
    /// Looks at what the next change of a data id by `owner` will need whatever it is. Changes nothing.
    pub(crate) fn warm(&self, key: DatumKey, owner: SessionId) {
        black_box((self.revision, self.publishers, self.named, self.open.changes(), self.digest));
        black_box((self.publications_vacant, self.idle.back().copied(), self.touched.len()));
        black_box(self.find_datum(key));
        black_box(self.datums.last().map(Option::is_some));
        black_box(self.publications.last().map(|publication| publication.datum));
        black_box(self.owners.digest(owner));
        black_box(self.arena.last_byte());
        black_box(self.log.ends());
    }

    /// Looks up registrations of a data id that are about to be asked for one by one.
    pub(crate) fn look_up(&self, key: DatumKey, registers: impl Iterator<Item = RegisterId>) {
        if let Some(datum) = self.find_datum(key) {
            black_box(registers.filter(|register| self.find_in(datum, *register).is_some()).count());
        }
    }
}
