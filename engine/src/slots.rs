//! The slots of a shard by their numbers: found at once, walked in their order, each with its state.

use crate::{id::SlotId, slot::Slot, slot_state::SlotState};

/// Says that a slot is not held.
const ABSENT: u16 = u16::MAX;

/// See the module.
pub(crate) struct Slots {
    /// Place of each slot of the cluster among those held.
    places: Vec<u16>,
    /// In the order of their numbers; boxed, so that one is put between others at the cost of a few words.
    #[expect(
        clippy::vec_box,
        reason = "a slot is large, and the ones behind it move when one comes or goes"
    )]
    held: Vec<Box<Slot>>,
    /// State of each slot of the cluster.
    states: Vec<SlotState>,
}

impl Slots {
    /// None yet, of a cluster of `slot_count` slots.
    pub(crate) fn new(slot_count: u32) -> Self {
        let count = slot_count as usize;
        Self { places: vec![ABSENT; count], held: Vec::new(), states: vec![SlotState::Absent; count] }
    }

    /// Of a cluster of `slot_count` slots, those of `held`, which come in the order of their numbers. All are led.
    pub(crate) fn leading(slot_count: u32, held: impl Iterator<Item = Slot>) -> Self {
        let mut slots = Self::new(slot_count);
        for slot in held {
            let id = slot.id();
            slots.put(slot);
            slots.set_state(id, SlotState::Migrating);
            slots.set_state(id, SlotState::Accept);
        }
        slots
    }

    /// The slot, if it is held.
    pub(crate) fn get(&self, id: SlotId) -> Option<&Slot> {
        self.held.get(usize::from(*self.places.get(usize::from(id.0))?)).map(Box::as_ref)
    }

    /// See [`Slots::get`].
    pub(crate) fn get_mut(&mut self, id: SlotId) -> Option<&mut Slot> {
        self.held.get_mut(usize::from(*self.places.get(usize::from(id.0))?)).map(Box::as_mut)
    }

    /// The slot, if this node leads it.
    pub(crate) fn led(&self, id: SlotId) -> Option<&Slot> {
        self.get(id).filter(|_| self.state(id).is_led())
    }

    /// See [`Slots::led`].
    pub(crate) fn led_mut(&mut self, id: SlotId) -> Option<&mut Slot> {
        if self.state(id).is_led() { self.get_mut(id) } else { None }
    }

    /// The slot, if this node leads it and answers readers.
    pub(crate) fn accepting(&self, id: SlotId) -> Option<&Slot> {
        self.get(id).filter(|_| self.state(id) == SlotState::Accept)
    }

    /// What the node does with a slot.
    pub(crate) fn state(&self, id: SlotId) -> SlotState {
        self.states.get(usize::from(id.0)).copied().unwrap_or_default()
    }

    /// Changes what the node does with a slot, along the drawing in [`crate::slot_state`].
    pub(crate) fn set_state(&mut self, id: SlotId, to: SlotState) {
        self.states[usize::from(id.0)].set(id, to);
    }

    /// Takes a slot in; returns the one that stood in its place.
    pub(crate) fn put(&mut self, slot: Slot) -> Option<Slot> {
        let id = slot.id();
        if let Some(held) = self.get_mut(id) {
            return Some(std::mem::replace(held, slot));
        }
        let at = self.held.partition_point(|held| held.id() < id);
        self.held.insert(at, Box::new(slot));
        self.places[usize::from(id.0)] = at as u16;
        self.shift_behind(id, 1);
        None
    }

    /// Lets go of a slot.
    pub(crate) fn take(&mut self, id: SlotId) -> Option<Slot> {
        let at = *self.places.get(usize::from(id.0))?;
        if at == ABSENT {
            return None;
        }
        self.places[usize::from(id.0)] = ABSENT;
        self.shift_behind(id, u16::MAX);
        Some(*self.held.remove(usize::from(at)))
    }

    fn shift_behind(&mut self, id: SlotId, by: u16) {
        for place in &mut self.places[usize::from(id.0) + 1..] {
            if *place != ABSENT {
                *place = place.wrapping_add(by);
            }
        }
    }

    /// All that are held, in their order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.held.iter().map(Box::as_ref)
    }

    /// See [`Slots::iter`].
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.held.iter_mut().map(Box::as_mut)
    }

    /// All that this node leads, in their order.
    pub(crate) fn iter_led(&self) -> impl Iterator<Item = &Slot> {
        self.iter().filter(|slot| self.state(slot.id()).is_led())
    }

    /// See [`Slots::iter_led`].
    pub(crate) fn iter_led_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        let states = &self.states;
        self.held.iter_mut().map(Box::as_mut).filter(|slot| states[usize::from(slot.id().0)].is_led())
    }

    /// The number of the first at or after `from`.
    pub(crate) fn first_from(&self, from: SlotId) -> Option<SlotId> {
        self.held.get(self.held.partition_point(|slot| slot.id() < from)).map(|slot| slot.id())
    }

    /// Bytes held for finding slots and for the slots themselves, without what they hold.
    pub(crate) fn bytes(&self) -> usize {
        self.places.capacity() * size_of::<u16>()
            + self.states.capacity() * size_of::<SlotState>()
            + self.held.capacity() * size_of::<Box<Slot>>()
            + self.held.len() * size_of::<Slot>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change_log::ChangeLogLimits;

    fn slot(id: u16) -> Slot {
        Slot::open(SlotId(id), 0, 1, 0, ChangeLogLimits::default())
    }

    #[test]
    fn slots_that_come_and_go_in_any_order_are_found_and_walked_in_theirs() {
        let mut slots = Slots::new(64);
        let order: Vec<u16> = (0..64).map(|at| at * 29 % 64).collect();
        for id in &order {
            assert!(slots.put(slot(*id)).is_none());
        }
        assert!(slots.iter().map(|slot| slot.id().0).eq(0..64));
        for id in order.iter().filter(|id| **id % 3 != 0) {
            assert_eq!(slots.take(SlotId(*id)).map(|slot| slot.id()), Some(SlotId(*id)));
            assert!(slots.take(SlotId(*id)).is_none());
        }
        assert!(slots.iter().map(|slot| slot.id().0).eq((0..64).filter(|id| id % 3 == 0)));
        for id in 0..64 {
            assert_eq!(slots.get(SlotId(id)).map(|slot| slot.id().0), (id % 3 == 0).then_some(id));
        }
        assert_eq!(slots.first_from(SlotId(61)), Some(SlotId(63)));
        assert_eq!((slots.first_from(SlotId(64)), slots.state(SlotId(99))), (None, SlotState::Absent));
    }
}
