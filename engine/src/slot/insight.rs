//! What a slot tells about its data ids one by one, in steps.

use super::{Datum, Place, Slot};
use crate::{
    id::{DataId, DatumKey, Nanos, RegisterId, SessionId},
    record::Record,
};

/// A data id as it is told about.
#[derive(Clone, Copy, Debug)]
pub struct DatumView<'a> {
    /// Its key.
    pub key: DatumKey,
    /// Its canonical name.
    pub name: &'a [u8],
    /// Live registrations.
    pub publishers: u32,
    /// Bytes of their records.
    pub bytes: usize,
    /// Second of the shard's clock at which it changed last; 0: not in this run.
    pub changed_at: u32,
    /// Second at which a reader was last seen to hold an interest in it; 0: not in this run.
    pub read_at: u32,
}

impl DatumView<'_> {
    /// The name as people read it.
    pub fn display(&self) -> String {
        display_name(self.name, self.key)
    }
}

/// A canonical name as people read it, or the key if it is none.
pub fn display_name(name: &[u8], key: DatumKey) -> String {
    DataId::from_canonical(name).map_or_else(|_| format!("{:016x}", key.0), |id| id.to_string())
}

impl Slot {
    /// The data id at a place of the table of data ids, if there is one; `Err` beyond its end.
    pub(crate) fn datum_at(&self, place: usize) -> Result<Option<DatumView<'_>>, ()> {
        self.datums.get(place).map(|datum| datum.as_ref().map(view)).ok_or(())
    }

    /// The live registration at a place of the table of registrations, if there is one; `Err` beyond its end.
    pub(crate) fn publication_at(
        &self,
        place: usize,
    ) -> Result<Option<(DatumView<'_>, RegisterId, SessionId, Record<'_>)>, ()> {
        let publication = self.publications.get(place).ok_or(())?;
        let Place::Live(at) = publication.place() else { return Ok(None) };
        let datum = view(self.datum(publication.datum));
        Ok(Some((datum, publication.register(&self.arena), self.owner_of(publication), self.arena.get(at))))
    }

    /// The data id behind a key.
    pub fn datum_view(&self, key: DatumKey) -> Option<DatumView<'_>> {
        self.find_datum(key).map(|index| view(self.datum(index)))
    }

    /// A reader has an interest in the data id, or had one up to now.
    pub(crate) fn note_read(&mut self, key: DatumKey, now: Nanos) {
        if let Some(index) = self.find_datum(key) {
            self.datum_mut(index).read_at = now.seconds();
        }
    }
}

fn view(datum: &Datum) -> DatumView<'_> {
    DatumView {
        key: datum.key,
        name: &datum.name,
        publishers: datum.publishers,
        bytes: datum.bytes,
        changed_at: datum.changed_at,
        read_at: datum.read_at,
    }
}
