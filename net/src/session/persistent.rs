//! Writes of persistent registrations on their way to the data node.
//!
//! The data node is the truth about persistent registrations; a session holds a write only until it is decided: durable, or
//! refused. A link that is lost meanwhile leaves it unknown, so it is sent again over the next. A client that leaves takes its
//! undecided writes along: they were never acknowledged and may have happened or not.

use std::collections::BTreeMap;

use slotcast_engine::{
    batch::{Change, ChangeKind, Entry, write_change, write_put},
    error::Refusal,
    id::{DataId, DatumKey, SessionId},
};

use crate::io::ring::ConnId;

/// One write.
pub(super) struct Undecided {
    pub(super) datum: DatumKey,
    /// The name that a put needs.
    pub(super) id: Option<DataId>,
    pub(super) entry: Box<[u8]>,
    pub(super) conn: ConnId,
    /// The client's write frame, and the place in its acknowledgement.
    pub(super) sequence: u64,
    pub(super) index: usize,
}

/// All undecided writes of a session core, in the order in which they came.
#[derive(Default)]
pub(super) struct Persistents {
    undecided: BTreeMap<u64, Undecided>,
    by_client: BTreeMap<ConnId, usize>,
    count: u64,
}

impl Persistents {
    /// Undecided writes.
    pub(super) fn len(&self) -> usize {
        self.undecided.len()
    }

    /// Undecided writes of a client.
    pub(super) fn of_client(&self, conn: ConnId) -> usize {
        self.by_client.get(&conn).copied().unwrap_or(0)
    }

    /// Takes a client's write in; returns its number.
    pub(super) fn add(&mut self, write: Undecided) -> u64 {
        self.count += 1;
        *self.by_client.entry(write.conn).or_insert(0) += 1;
        self.undecided.insert(self.count, write);
        self.count
    }

    /// A write that is still undecided.
    pub(super) fn get(&self, number: u64) -> Option<&Undecided> {
        self.undecided.get(&number)
    }

    /// The write is decided.
    pub(super) fn take(&mut self, number: u64) -> Option<Undecided> {
        let write = self.undecided.remove(&number)?;
        if let Some(count) = self.by_client.get_mut(&write.conn) {
            *count -= 1;
            if *count == 0 {
                self.by_client.remove(&write.conn);
            }
        }
        Some(write)
    }

    /// Everything, in its order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Undecided)> {
        self.undecided.iter().map(|(number, write)| (*number, write))
    }

    /// A connection is gone, and with it who waited.
    pub(super) fn drop_client(&mut self, conn: ConnId) {
        if self.by_client.remove(&conn).is_some() {
            self.undecided.retain(|_, write| write.conn != conn);
        }
    }
}

/// A client's entry as it goes to the data node: nobody owns a persistent registration.
pub(super) fn unowned(entry: Entry<'_>) -> Result<Box<[u8]>, Refusal> {
    let change = Change { owner: SessionId::NOBODY, epoch: 0, ..entry.change };
    let mut bytes = Vec::with_capacity(entry.bytes().len());
    match change.kind {
        ChangeKind::Put => write_put(&mut bytes, &change, entry.record().ok_or(Refusal::RecordInvalid)?),
        ChangeKind::Remove => write_change(&mut bytes, &change),
        ChangeKind::Name | ChangeKind::Touch | ChangeKind::Forget | ChangeKind::Expire => {
            return Err(Refusal::RecordInvalid);
        }
    }
    Ok(bytes.into())
}
