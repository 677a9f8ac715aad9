//! Writes of persistent registrations on their way to the data node.
//!
//! The data node is the truth about persistent registrations; a session holds a write only until it is decided: durable, or
//! refused. A link that is lost meanwhile leaves it unknown, so it is sent again over the next. A client that leaves takes its
//! undecided writes along: they were never acknowledged and may have happened or not.
//!
//! Writes of one registration go one at a time, each when the one before is decided. One that is sent again, because its leader
//! had not heard of the slot or of the data id yet, would else come behind those after it: a put behind its removal.

use std::collections::{BTreeMap, BTreeSet};

use slotcast_engine::{
    batch::{Change, ChangeKind, Entry, write_change, write_put},
    error::Refusal,
    id::{DataId, DatumKey, RegisterId, SessionId},
};

use crate::io::ring::ConnId;

/// One write.
pub(super) struct Undecided {
    pub(super) datum: DatumKey,
    pub(super) register: RegisterId,
    /// The name that a put needs, and that a removal has if it is known.
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
    /// The numbers of each registration's: the first is under way, the others wait for it.
    lines: BTreeMap<(DatumKey, RegisterId), BTreeSet<u64>>,
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

    /// Takes a client's write in; returns its number if none before it is to be decided first.
    pub(super) fn add(&mut self, write: Undecided) -> Option<u64> {
        self.count += 1;
        *self.by_client.entry(write.conn).or_insert(0) += 1;
        let line = self.lines.entry((write.datum, write.register)).or_default();
        line.insert(self.count);
        let is_first = line.len() == 1;
        self.undecided.insert(self.count, write);
        is_first.then_some(self.count)
    }

    /// A write that is still undecided.
    pub(super) fn get(&self, number: u64) -> Option<&Undecided> {
        self.undecided.get(&number)
    }

    /// The write is decided. Returns it, and the number of the next of its registration.
    pub(super) fn take(&mut self, number: u64) -> Option<(Undecided, Option<u64>)> {
        let write = self.undecided.remove(&number)?;
        if let Some(count) = self.by_client.get_mut(&write.conn) {
            *count -= 1;
            if *count == 0 {
                self.by_client.remove(&write.conn);
            }
        }
        let next = self.leave_line(number, &write);
        Some((write, next))
    }

    /// Everything that is under way, in its order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Undecided)> {
        let is_first = |number: &u64, write: &Undecided| {
            let line = self.lines.get(&(write.datum, write.register));
            line.and_then(BTreeSet::first) == Some(number)
        };
        let first = self.undecided.iter().filter(move |(number, write)| is_first(number, write));
        first.map(|(number, write)| (*number, write))
    }

    /// A connection is gone, and with it who waited. Returns the numbers of those that have waited for its writes, and are next.
    pub(super) fn drop_client(&mut self, conn: ConnId) -> Vec<u64> {
        if self.by_client.remove(&conn).is_none() {
            return Vec::new();
        }
        let gone: Vec<(u64, Undecided)> =
            self.undecided.extract_if(.., |_, write| write.conn == conn).collect();
        let next: Vec<u64> =
            gone.iter().filter_map(|(number, write)| self.leave_line(*number, write)).collect();
        next.into_iter().filter(|number| self.undecided.contains_key(number)).collect()
    }

    /// Returns the number that is first now, if `number` was.
    fn leave_line(&mut self, number: u64, write: &Undecided) -> Option<u64> {
        let key = (write.datum, write.register);
        let line = self.lines.get_mut(&key)?;
        let was_first = line.first() == Some(&number);
        line.remove(&number);
        let next = line.first().copied().filter(|_| was_first);
        if line.is_empty() {
            self.lines.remove(&key);
        }
        next
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

#[cfg(test)]
mod tests {
    use super::*;

    fn write(persistents: &mut Persistents, register: u64, conn: usize) -> Option<u64> {
        let register = RegisterId(register);
        let (conn, entry) = (ConnId::from_parts(conn, 1), Box::default());
        persistents.add(Undecided {
            datum: DatumKey(1),
            register,
            id: None,
            entry,
            conn,
            sequence: 1,
            index: 0,
        })
    }

    fn under_way(persistents: &Persistents) -> Vec<u64> {
        persistents.iter().map(|(number, _)| number).collect()
    }

    #[test]
    fn the_writes_of_a_registration_go_one_at_a_time() {
        let mut persistents = Persistents::default();
        let first =
            [(7, 1), (7, 2), (8, 1), (7, 1)].map(|(register, conn)| write(&mut persistents, register, conn));
        assert_eq!(first, [Some(1), None, Some(3), None]);
        assert_eq!(under_way(&persistents), [1, 3], "what is sent again over a new link");
        let (taken, next) = persistents.take(1).unwrap();
        assert_eq!((taken.register, next), (RegisterId(7), Some(2)));
        assert_eq!(under_way(&persistents), [2, 3]);
        assert!(persistents.take(3).unwrap().1.is_none() && persistents.take(3).is_none());
        assert_eq!(persistents.drop_client(ConnId::from_parts(2, 1)), [4], "who waited for it is next");
        assert!(persistents.drop_client(ConnId::from_parts(2, 1)).is_empty());
        assert!(persistents.take(4).unwrap().1.is_none() && persistents.lines.is_empty());
    }

    #[test]
    fn who_leaves_with_all_its_writes_lets_those_of_others_go() {
        let mut persistents = Persistents::default();
        for conn in [1, 1, 2, 1] {
            write(&mut persistents, 7, conn);
        }
        assert_eq!(persistents.drop_client(ConnId::from_parts(1, 1)), [3]);
        assert_eq!((under_way(&persistents), persistents.len()), (vec![3], 1));
    }
}
