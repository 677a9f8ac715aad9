//! The slots of a shard by their numbers: found at once, walked in their order.

use crate::{id::SlotId, slot::Slot};

/// Says that a slot is not held.
const ABSENT: u16 = u16::MAX;

/// See the module.
pub(crate) struct Slots {
    /// Place of each slot of the cluster among those held.
    places: Vec<u16>,
    held: Vec<Slot>,
}

impl Slots {
    /// Of a cluster of `slot_count` slots, those of `held`, which come in the order of their numbers.
    pub(crate) fn new(slot_count: u32, held: impl Iterator<Item = Slot>) -> Self {
        let mut slots = Self { places: vec![ABSENT; slot_count as usize], held: Vec::new() };
        for slot in held {
            assert!(slots.held.last().is_none_or(|last| last.id() < slot.id()));
            slots.places[usize::from(slot.id().0)] = slots.held.len() as u16;
            slots.held.push(slot);
        }
        slots
    }

    /// The slot, if it is held.
    pub(crate) fn get(&self, id: SlotId) -> Option<&Slot> {
        self.held.get(usize::from(*self.places.get(usize::from(id.0))?))
    }

    /// See [`Slots::get`].
    pub(crate) fn get_mut(&mut self, id: SlotId) -> Option<&mut Slot> {
        self.held.get_mut(usize::from(*self.places.get(usize::from(id.0))?))
    }

    /// All, in their order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.held.iter()
    }

    /// See [`Slots::iter`].
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.held.iter_mut()
    }

    /// The number of the first at or after `from`.
    pub(crate) fn first_from(&self, from: SlotId) -> Option<SlotId> {
        self.held.get(self.held.partition_point(|slot| slot.id() < from)).map(Slot::id)
    }
}
