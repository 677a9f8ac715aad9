//! The table of data ids: they come with their names, and go when nothing reminds of them.

use super::{Datum, NIL, Slot};
use crate::{
    batch::write_name,
    id::{DatumKey, Revision, mix64},
};

impl Slot {
    pub(super) fn datum(&self, index: u32) -> &Datum {
        self.datums[index as usize].as_ref().expect("a data id in use is there")
    }

    pub(super) fn datum_mut(&mut self, index: u32) -> &mut Datum {
        self.datums[index as usize].as_mut().expect("a data id in use is there")
    }

    pub(super) fn find_datum(&self, key: DatumKey) -> Option<u32> {
        let hash = mix64(key.0 ^ self.seed);
        self.datum_index.find(hash, |&index| self.datum(index).key == key).copied()
    }

    pub(super) fn insert_datum(&mut self, key: DatumKey, name: &[u8]) -> u32 {
        self.name_bytes += name.len();
        let datum = Datum {
            key,
            name: name.into(),
            head: NIL,
            publishers: 0,
            tombstones: 0,
            bytes: 0,
            last_change: Revision::ZERO,
            latest: None,
            idle_since: self.revision,
            changed_at: 0,
            read_at: 0,
        };
        let index = match self.datums_vacant.pop() {
            Some(index) => {
                self.datums[index as usize] = Some(datum);
                index
            }
            None => {
                if self.datums.len() == self.datums.capacity() {
                    // By a quarter and not to the double: half of what is taken would be empty as often as not.
                    self.datums.reserve_exact(self.datums.len() / 4 + 4);
                }
                self.datums.push(Some(datum));
                (self.datums.len() - 1) as u32
            }
        };
        let (seed, datums) = (self.seed, &self.datums);
        self.datum_index.insert_unique(mix64(key.0 ^ seed), index, |&index| {
            datums[index as usize].as_ref().map_or(0, |datum| mix64(datum.key.0 ^ seed))
        });
        index
    }

    pub(super) fn note_if_idle(&mut self, index: u32) {
        let revision = self.revision;
        let datum = self.datum_mut(index);
        if datum.publishers == 0 && datum.tombstones == 0 {
            datum.idle_since = revision;
            self.idle.push_back(index);
        }
    }

    /// Data ids without publishers and tombstones go once the log no longer names them. One that was named in the batch
    /// just sealed stays: the put that it was named for may be the first change of the next.
    pub(super) fn drop_idle_datums(&mut self, previous: Revision) {
        while let Some(&index) = self.idle.front() {
            if let Some(datum) = &self.datums[index as usize]
                && datum.publishers == 0
                && datum.tombstones == 0
            {
                if datum.last_change > self.log.floor() || datum.idle_since >= previous {
                    break;
                }
                let key = datum.key;
                self.name_bytes -= datum.name.len();
                let hash = mix64(key.0 ^ self.seed);
                if let Ok(entry) = self.datum_index.find_entry(hash, |&at| at == index) {
                    entry.remove();
                }
                self.datums[index as usize] = None;
                self.datums_vacant.push(index);
            }
            self.idle.pop_front();
        }
    }

    /// Puts the name of a data id into the open batch that has neither registration nor tombstone, if others follow it: they
    /// may have let go of it already.
    pub(super) fn name_again(&mut self, index: u32) {
        let Some(Some(datum)) = self.datums.get(index as usize) else { return };
        let idle = datum.publishers == 0 && datum.tombstones == 0;
        if self.tells_names && idle && self.named != index {
            self.open.append(|out| write_name(out, datum.key, &datum.name));
        }
    }

    /// Gives a data id that nothing is registered under the name that its leader gives it.
    pub(super) fn rename(&mut self, index: u32, name: &[u8]) {
        let held = self.datum(index).name.len();
        self.name_bytes = self.name_bytes - held + name.len();
        self.datum_mut(index).name = name.into();
    }
}
