//! What a slot's memory is for.

use super::{Datum, Publication, SinceLed, Slot, Tombstone, Touched};
use crate::{
    id::{DatumKey, RegisterId, Version},
    memory::Memory,
};

impl Slot {
    /// Bytes by kind; readers belong to the shard. Costs a look at each segment, not at each registration.
    pub fn memory(&self) -> Memory {
        let arena = self.arena.bytes();
        let index = self.publications.capacity() * size_of::<Publication>()
            + self.publication_index.allocation_size()
            + self.datums.capacity() * size_of::<Option<Datum>>()
            + self.datums_vacant.capacity() * size_of::<u32>()
            + self.datum_index.allocation_size()
            + self.name_bytes
            + self.owners.bytes();
        Memory {
            payload: arena.live,
            dead: arena.dead,
            free: arena.free,
            index,
            history: self.log.bytes(),
            tombstones: self.tombstones.capacity() * size_of::<Tombstone>()
                + self.returned.len() * size_of::<((DatumKey, RegisterId, Version), u32)>()
                + self.idle.capacity() * size_of::<u32>(),
            readers: 0,
            batches: self.open.capacity() + self.touched.capacity() * size_of::<Touched>(),
            insight: 0,
            replication: self.lineage.bytes() + self.since_led.as_ref().map_or(0, SinceLed::bytes),
        }
    }
}
