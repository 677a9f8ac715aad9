//! Who reads what: the readers of a shard, the data ids each is interested in, and how far a slow one has got.
//!
//! A reader in step gets every change at once. A reader that cannot take more keeps one revision per slot, not a queue:
//! when it can take more it gets, per data id, one diff from there.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use crate::id::{DatumKey, ReaderId, Revision, SlotId};

/// The state of one reader.
#[derive(Default)]
pub struct Reader {
    interests: BTreeSet<(SlotId, DatumKey)>,
    behind: Option<BTreeMap<SlotId, Revision>>,
}

/// Readers and interests of one shard.
#[derive(Default)]
pub struct Interests {
    readers: BTreeMap<ReaderId, Reader>,
    by_datum: BTreeMap<(SlotId, DatumKey), Vec<ReaderId>>,
    /// Readers that are behind.
    behind: BTreeSet<ReaderId>,
}

impl Interests {
    /// Lets a reader in, without interests.
    pub fn open(&mut self, reader: ReaderId) {
        self.readers.entry(reader).or_default();
    }

    /// Forgets a reader and all it was interested in.
    pub fn close(&mut self, reader: ReaderId) {
        let Some(state) = self.readers.remove(&reader) else { return };
        self.behind.remove(&reader);
        for place in state.interests {
            self.drop_from(place, reader);
        }
    }

    /// Adds an interest. Returns whether it is new.
    pub fn add(&mut self, reader: ReaderId, slot: SlotId, datum: DatumKey) -> bool {
        let Some(state) = self.readers.get_mut(&reader) else { return true };
        let is_new = state.interests.insert((slot, datum));
        if is_new {
            let readers = self.by_datum.entry((slot, datum)).or_default();
            if let Err(place) = readers.binary_search(&reader) {
                readers.insert(place, reader);
            }
        }
        is_new
    }

    /// Removes an interest.
    pub fn remove(&mut self, reader: ReaderId, slot: SlotId, datum: DatumKey) {
        let Some(state) = self.readers.get_mut(&reader) else { return };
        if state.interests.remove(&(slot, datum)) {
            self.drop_from((slot, datum), reader);
        }
    }

    /// Forgets a slot: nobody is interested in anything there, and nobody is behind there.
    pub fn close_slot(&mut self, slot: SlotId) {
        let of_slot: Vec<(SlotId, DatumKey)> = self
            .by_datum
            .range((slot, DatumKey(0))..=(slot, DatumKey(u64::MAX)))
            .map(|(place, _)| *place)
            .collect();
        for place in of_slot {
            for reader in self.by_datum.remove(&place).unwrap_or_default() {
                if let Some(state) = self.readers.get_mut(&reader) {
                    state.interests.remove(&place);
                }
            }
        }
        for reader in &self.behind {
            let state = self.readers.get_mut(reader);
            if let Some(behind) = state.and_then(|state| state.behind.as_mut()) {
                behind.remove(&slot);
            }
        }
    }

    /// Readers interested in a data id, in rising order.
    pub fn readers(&self, slot: SlotId, datum: DatumKey) -> &[ReaderId] {
        self.by_datum.get(&(slot, datum)).map_or(&[], Vec::as_slice)
    }

    /// Whether a reader takes everything at once.
    pub fn is_in_step(&self, reader: ReaderId) -> bool {
        !self.behind.contains(&reader) && self.readers.contains_key(&reader)
    }

    /// The data ids that somebody is interested in, from behind `after` on, each with its number of readers.
    pub fn wanted_after(
        &self,
        after: Option<(SlotId, DatumKey)>,
    ) -> impl Iterator<Item = (SlotId, DatumKey, usize)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let wanted = self.by_datum.range((from, Bound::Unbounded));
        wanted.map(|((slot, datum), readers)| (*slot, *datum, readers.len()))
    }

    /// How many data ids a reader is interested in.
    pub fn count_of(&self, reader: ReaderId) -> usize {
        self.readers.get(&reader).map_or(0, |state| state.interests.len())
    }

    /// What a reader is interested in.
    pub fn of_reader(&self, reader: ReaderId) -> impl Iterator<Item = (SlotId, DatumKey)> {
        self.readers.get(&reader).into_iter().flat_map(|state| state.interests.iter().copied())
    }

    /// Interests held by all readers together.
    pub fn len(&self) -> usize {
        self.readers.values().map(|state| state.interests.len()).sum()
    }

    /// Bytes held for interests, without the room between the nodes of ordered maps. Costs a look at each reader.
    pub fn bytes(&self) -> usize {
        let wanted = self.by_datum.len() * size_of::<((SlotId, DatumKey), Vec<ReaderId>)>();
        wanted + self.len() * (size_of::<(SlotId, DatumKey)>() + size_of::<ReaderId>())
    }

    /// Whether nobody is interested in anything.
    pub fn is_empty(&self) -> bool {
        self.by_datum.is_empty()
    }

    /// Readers that are behind.
    pub fn behind(&self) -> usize {
        self.behind.len()
    }

    /// How far each reader that is behind has got, per slot.
    pub fn marks_behind(&self) -> impl Iterator<Item = (ReaderId, SlotId, Revision)> {
        let readers = self.behind.iter().filter_map(|reader| Some((reader, self.readers.get(reader)?)));
        readers.flat_map(|(reader, state)| {
            state.behind.iter().flatten().map(|(slot, revision)| (*reader, *slot, *revision))
        })
    }

    /// From now on the reader takes nothing; `revision_of` tells how far it has got in each slot.
    pub fn fall_behind(&mut self, reader: ReaderId, revision_of: impl Fn(SlotId) -> Option<Revision>) {
        let Some(state) = self.readers.get_mut(&reader) else { return };
        if state.behind.is_none() {
            let slots: BTreeSet<SlotId> = state.interests.iter().map(|(slot, _)| *slot).collect();
            let marks = slots.into_iter().filter_map(|slot| Some((slot, revision_of(slot)?))).collect();
            state.behind = Some(marks);
            self.behind.insert(reader);
        }
    }

    /// The reader takes changes again: the slots it was reading and how far it had got in each.
    pub fn catch_up(&mut self, reader: ReaderId) -> BTreeMap<SlotId, Revision> {
        self.behind.remove(&reader);
        self.readers.get_mut(&reader).and_then(|state| state.behind.take()).unwrap_or_default()
    }

    /// The data ids of a slot that a reader is interested in.
    pub fn of_slot(&self, reader: ReaderId, slot: SlotId) -> impl Iterator<Item = DatumKey> {
        let range = (slot, DatumKey(0))..=(slot, DatumKey(u64::MAX));
        self.readers
            .get(&reader)
            .into_iter()
            .flat_map(move |state| state.interests.range(range.clone()).map(|(_, datum)| *datum))
    }

    fn drop_from(&mut self, place: (SlotId, DatumKey), reader: ReaderId) {
        if let Some(readers) = self.by_datum.get_mut(&place) {
            if let Ok(at) = readers.binary_search(&reader) {
                readers.remove(at);
            }
            if readers.is_empty() {
                self.by_datum.remove(&place);
            }
        }
    }
}
