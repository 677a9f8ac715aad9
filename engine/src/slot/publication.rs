//! One registration in a slot's index, as dense as it can be: a node that holds ten million pays for every byte ten million
//! times.

use super::owners::OwnerNumber;
use crate::{
    arena::{Arena, Location},
    id::{RegisterId, Version, mix64},
};

/// No publication.
pub(super) const NIL: u32 = u32::MAX;

/// What may change about a registration, and where its record lies. What the record says is not said again: its register id
/// is read from there, and only where there is no record, in its place (see [`Publication::register`]).
#[derive(Clone, Copy)]
#[repr(Rust, packed(4))]
pub(crate) struct Publication {
    pub(super) number: u64,
    /// See [`Publication::place`].
    at: u32,
    pub(super) attach: u32,
    pub(super) datum: u32,
    pub(super) owner: OwnerNumber,
    /// Neighbours in the list of the data id's live registrations. Without a record they hold the halves of the register
    /// id, and `after` of a vacant place is the next one.
    pub(super) before: u32,
    /// See `before`.
    pub(super) after: u32,
}

const _: () = assert!(size_of::<Publication>() == 32);

/// What stands where the location of a record would: no record lies in the segment that these would be in.
const VACANT: u32 = Location::NOWHERE;
/// See [`VACANT`].
const TOMBSTONE: u32 = Location::NOWHERE + 1;
/// See [`VACANT`].
const EXPIRED: u32 = Location::NOWHERE + 2;

/// Where a registration's record is.
#[derive(Clone, Copy)]
pub(super) enum Place {
    Vacant,
    Live(Location),
    /// `is_final`: it was removed by request. Otherwise its owner's lease ended, and the owner may put the same version again.
    Tombstone {
        is_final: bool,
    },
}

impl Publication {
    /// A registration that has neither record nor tombstone yet.
    pub(super) fn fresh(register: RegisterId, datum: u32) -> Self {
        let mut fresh = Self {
            number: 0,
            at: VACANT,
            attach: 0,
            datum,
            owner: OwnerNumber::NOBODY,
            before: NIL,
            after: NIL,
        };
        fresh.keep(register);
        fresh
    }

    /// Where its record is.
    pub(super) fn place(&self) -> Place {
        match self.at {
            VACANT => Place::Vacant,
            TOMBSTONE => Place::Tombstone { is_final: true },
            EXPIRED => Place::Tombstone { is_final: false },
            at => Place::Live(Location::from_bits(at)),
        }
    }

    /// See [`Publication::place`].
    pub(super) fn set_place(&mut self, place: Place) {
        self.at = match place {
            Place::Vacant => VACANT,
            Place::Tombstone { is_final: true } => TOMBSTONE,
            Place::Tombstone { is_final: false } => EXPIRED,
            Place::Live(at) => at.to_bits(),
        };
    }

    pub(super) fn is_persistent(&self) -> bool {
        self.owner == OwnerNumber::NOBODY
    }

    pub(super) fn version(&self) -> Version {
        Version { number: self.number, attach: self.attach }
    }

    /// The registration: as the record says, or as it was [kept](Publication::keep) where there is none.
    pub(super) fn register(&self, arena: &Arena) -> RegisterId {
        match self.place() {
            Place::Live(at) => arena.get(at).register(),
            Place::Tombstone { .. } | Place::Vacant => {
                RegisterId(u64::from(self.before) << 32 | u64::from(self.after))
            }
        }
    }

    /// Keeps the register id of a registration that is in no list and has no record.
    pub(super) fn keep(&mut self, register: RegisterId) {
        (self.before, self.after) = ((register.0 >> 32) as u32, register.0 as u32);
    }

    /// Its place in the index. `seed` makes it unpredictable from outside.
    pub(super) fn hash(&self, arena: &Arena, seed: u64) -> u64 {
        hash(seed, self.datum, self.register(arena))
    }
}

/// The place in the index of a registration of a data id, which goes by its number.
pub(super) fn hash(seed: u64, datum: u32, register: RegisterId) -> u64 {
    mix64(register.0 ^ mix64(u64::from(datum) ^ seed))
}
