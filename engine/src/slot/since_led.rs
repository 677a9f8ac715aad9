//! Which registrations have changed since the slot was last led anew here.
//!
//! A reader whose history has left this one may know better of what has not changed since (see [`crate::diff::forked`]). The change
//! log tells that as far as it reaches, and a new leader is told so much at once that it soon does not reach back to where the reader
//! left: a bit for each registration does.

use super::{Slot, publication::NIL};
use crate::id::{DatumKey, RegisterId};

/// A bit for each place in the table of registrations; places beyond the last word have not changed.
#[derive(Default)]
pub(super) struct SinceLed(Vec<u64>);

impl SinceLed {
    /// The registration at a place has changed.
    pub(super) fn note(&mut self, index: u32) {
        let (word, bit) = place(index);
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= bit;
    }

    /// The place is taken by a registration that was not there.
    pub(super) fn forget(&mut self, index: u32) {
        let (word, bit) = place(index);
        if let Some(held) = self.0.get_mut(word) {
            *held &= !bit;
        }
    }

    fn has(&self, index: u32) -> bool {
        let (word, bit) = place(index);
        self.0.get(word).is_some_and(|held| held & bit != 0)
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<u64>()
    }
}

fn place(index: u32) -> (usize, u64) {
    debug_assert!(index != NIL);
    (index as usize / 64, 1 << (index % 64))
}

impl Slot {
    /// Whether a registration has changed since the slot was last led anew here. What is not led has changed as a whole.
    pub(crate) fn has_changed_since_led(&self, datum: DatumKey, register: RegisterId) -> bool {
        let Some(since) = &self.since_led else { return true };
        self.find(datum, register).is_none_or(|index| since.has(index))
    }

    /// Nobody reads from it here any more.
    pub(crate) fn step_down(&mut self) {
        self.since_led = None;
    }
}
