//! Who owns the registrations of a slot: each session incarnation once, with the digest over what it owns. A registration
//! names it by a number of 4 bytes, for there are many registrations and few sessions.

use crate::{digest::Digest, id::SessionId};

/// A session incarnation by its number in a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OwnerNumber(u32);

impl OwnerNumber {
    /// [`SessionId::NOBODY`] has it in every slot.
    pub(super) const NOBODY: Self = Self(0);
}

struct Owner {
    session: SessionId,
    digest: Digest,
    /// Registrations and tombstones that name it.
    named: u32,
}

/// See the module.
#[derive(Default)]
pub(super) struct Owners {
    /// By number less one: nobody is in no table.
    owners: Vec<Owner>,
    vacant: Vec<u32>,
    /// The sessions in rising order, each with its number: what is searched lies together.
    order: Vec<(SessionId, u32)>,
    nobody: Digest,
}

impl Owners {
    /// The session behind a number.
    pub(super) fn session(&self, number: OwnerNumber) -> SessionId {
        match number {
            OwnerNumber::NOBODY => SessionId::NOBODY,
            OwnerNumber(number) => self.owners[number as usize - 1].session,
        }
    }

    /// The number of a session that something here names.
    pub(super) fn find(&self, session: SessionId) -> Option<OwnerNumber> {
        if session == SessionId::NOBODY {
            return Some(OwnerNumber::NOBODY);
        }
        self.place(session).ok().map(|place| OwnerNumber(self.order[place].1))
    }

    /// The number of a session that one more registration names from now on.
    pub(super) fn name(&mut self, session: SessionId) -> OwnerNumber {
        if session == SessionId::NOBODY {
            return OwnerNumber::NOBODY;
        }
        let number = match self.place(session) {
            Ok(place) => self.order[place].1,
            Err(place) => {
                let owner = Owner { session, digest: Digest::default(), named: 0 };
                let number = match self.vacant.pop() {
                    Some(number) => {
                        self.owners[number as usize - 1] = owner;
                        number
                    }
                    None => {
                        self.owners.push(owner);
                        self.owners.len() as u32
                    }
                };
                self.order.insert(place, (session, number));
                number
            }
        };
        self.owners[number as usize - 1].named += 1;
        OwnerNumber(number)
    }

    /// One registration less names it. A number that nothing names is given away again.
    pub(super) fn unname(&mut self, number: OwnerNumber) {
        let OwnerNumber(number @ 1..) = number else { return };
        let owner = &mut self.owners[number as usize - 1];
        owner.named -= 1;
        if owner.named == 0 {
            debug_assert!(owner.digest.is_empty(), "what it owns names it");
            let session = owner.session;
            if let Ok(place) = self.place(session) {
                self.order.remove(place);
            }
            self.vacant.push(number);
        }
    }

    /// Digest over the live registrations that it owns.
    pub(super) fn digest_mut(&mut self, number: OwnerNumber) -> &mut Digest {
        match number {
            OwnerNumber::NOBODY => &mut self.nobody,
            OwnerNumber(number) => &mut self.owners[number as usize - 1].digest,
        }
    }

    /// Likewise by session.
    pub(super) fn digest(&self, session: SessionId) -> Digest {
        match self.find(session) {
            Some(OwnerNumber::NOBODY) => self.nobody,
            Some(OwnerNumber(number)) => self.owners[number as usize - 1].digest,
            None => Digest::default(),
        }
    }

    /// The sessions that own live registrations, in rising order, and nobody not among them.
    pub(super) fn sessions(&self) -> impl Iterator<Item = SessionId> {
        let owners = self.order.iter().map(|(_, number)| &self.owners[*number as usize - 1]);
        owners.filter(|owner| !owner.digest.is_empty()).map(|owner| owner.session)
    }

    /// Bytes taken.
    pub(super) fn bytes(&self) -> usize {
        self.owners.capacity() * size_of::<Owner>()
            + self.vacant.capacity() * size_of::<u32>()
            + self.order.capacity() * size_of::<(SessionId, u32)>()
    }

    fn place(&self, session: SessionId) -> Result<usize, usize> {
        self.order.binary_search_by_key(&session, |(session, _)| *session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stands_for_its_session_as_long_as_something_names_it() {
        let mut owners = Owners::default();
        let numbers: Vec<OwnerNumber> =
            [30, 10, 20, 10].map(|session| owners.name(SessionId(session))).into();
        assert_eq!(numbers[1], numbers[3]);
        assert_eq!(owners.name(SessionId::NOBODY), OwnerNumber::NOBODY);
        numbers.iter().for_each(|number| owners.digest_mut(*number).add(7));
        owners.digest_mut(OwnerNumber::NOBODY).add(9);
        assert!(owners.sessions().eq([10, 20, 30].map(SessionId)));
        assert_eq!(owners.digest(SessionId(10)).count, 2);
        assert_eq!((owners.digest(SessionId::NOBODY).sum, owners.digest(SessionId(11)).count), (9, 0));
        owners.digest_mut(numbers[0]).remove(7);
        assert!(owners.sessions().eq([10, 20].map(SessionId)), "a tombstone's owner owns nothing");
        assert_eq!(owners.find(SessionId(30)), Some(numbers[0]), "but is still named");
        owners.unname(numbers[0]);
        assert_eq!(owners.find(SessionId(30)), None);
        assert_eq!(owners.name(SessionId(40)), numbers[0], "its number is free");
        let named = [(numbers[0], 40), (numbers[1], 10), (numbers[2], 20)];
        assert!(named.iter().all(|(number, session)| owners.session(*number) == SessionId(*session)));
    }
}
