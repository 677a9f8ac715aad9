//! Writes of persistent registrations that are not acknowledged yet. Once they are, the registry is the truth about them,
//! not this client: nothing of them is kept here, and leaving removes nothing.

use std::collections::BTreeMap;

use slotcast_engine::{
    batch::{Change, ChangeKind, Durability, write_change, write_name, write_put},
    error::Refusal,
    id::{DataId, Nanos, Revision, SessionId, Version},
    record::Record,
};

use crate::client::state::{Registration, Update};

/// A write that the application waits for.
struct Pending {
    entries: Vec<u8>,
    version: u64,
    /// Sent over this connection, and not answered.
    is_sent: bool,
    /// Not to be sent before.
    after: Nanos,
    /// The application knows that it takes longer.
    told: bool,
}

/// All of a client's.
#[derive(Default)]
pub(super) struct Persistents {
    pending: BTreeMap<Registration, Pending>,
    in_flight: BTreeMap<u64, (Registration, u64)>,
}

impl Persistents {
    /// Takes a put of `record`, or a removal. It replaces one of the same registration that is not acknowledged yet.
    pub(super) fn want(
        &mut self,
        registration: Registration,
        id: &DataId,
        version: u64,
        record: Option<Record<'_>>,
    ) {
        let change = Change {
            kind: if record.is_some() { ChangeKind::Put } else { ChangeKind::Remove },
            durability: Durability::Persistent,
            datum: registration.datum,
            register: registration.register,
            version: Version { number: version, attach: 0 },
            epoch: 0,
            owner: SessionId::NOBODY,
        };
        let mut entries = Vec::new();
        // A removal, too: who has not heard of the data id can remember only of one that has a name that something was removed.
        write_name(&mut entries, registration.datum, id.as_bytes());
        match record {
            Some(record) => write_put(&mut entries, &change, record),
            None => write_change(&mut entries, &change),
        }
        let pending = Pending { entries, version, is_sent: false, after: Nanos(0), told: false };
        self.pending.insert(registration, pending);
    }

    /// Whether nothing waits to be acknowledged.
    pub(super) fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    /// A write that is to be sent now, under this sequence.
    pub(super) fn send(&mut self, now: Nanos, sequence: u64) -> Option<&[u8]> {
        let due = |pending: &Pending| !pending.is_sent && pending.after <= now;
        let (registration, pending) = self.pending.iter_mut().find(|(_, pending)| due(pending))?;
        pending.is_sent = true;
        self.in_flight.insert(sequence, (*registration, pending.version));
        Some(&pending.entries)
    }

    /// When something is to be sent although nothing happens.
    pub(super) fn wake_at(&self) -> Option<Nanos> {
        self.pending.values().filter(|pending| !pending.is_sent).map(|pending| pending.after).min()
    }

    /// The connection is gone: what was sent over it is unknown.
    pub(super) fn lose(&mut self) {
        self.in_flight.clear();
        for pending in self.pending.values_mut() {
            (pending.is_sent, pending.after) = (false, Nanos(0));
        }
    }

    /// Whether this client sent a write of a persistent registration under a sequence.
    pub(super) fn knows(&self, sequence: u64) -> bool {
        self.in_flight.contains_key(&sequence)
    }

    /// A write is decided. Returns what the application is told.
    pub(super) fn decide(
        &mut self,
        sequence: u64,
        outcome: Result<Revision, Refusal>,
        now: Nanos,
    ) -> Option<Update> {
        let (registration, version) = self.in_flight.remove(&sequence)?;
        // Otherwise the application wants something else of it by now.
        let pending = self.pending.get_mut(&registration).filter(|pending| pending.version == version)?;
        match outcome {
            Ok(revision) => {
                self.pending.remove(&registration);
                Some(Update::Acknowledged { registration, revision })
            }
            Err(refusal) => match refusal.retry_after_ms() {
                Some(pause) => {
                    pending.is_sent = false;
                    pending.after = now.after(pause * (Nanos::SECOND / 1000));
                    let first = !std::mem::replace(&mut pending.told, true);
                    first.then_some(Update::NotDurable { registration, refusal })
                }
                None => {
                    self.pending.remove(&registration);
                    Some(Update::Refused { registration, refusal })
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use slotcast_engine::id::RegisterId;

    use super::*;

    fn wanted() -> (Persistents, Registration) {
        let id = DataId::new("n", "g", "s").unwrap();
        let registration = Registration { datum: id.key(), register: RegisterId(7) };
        let mut persistents = Persistents::default();
        persistents.want(registration, &id, 5, None);
        (persistents, registration)
    }

    #[test]
    fn what_is_not_acknowledged_is_sent_again_after_the_hint_and_over_the_next_connection() {
        let (mut persistents, registration) = wanted();
        assert!(persistents.send(Nanos(1), 1).is_some() && persistents.send(Nanos(1), 2).is_none());
        let failed = Err(Refusal::StorageFailed);
        let told = persistents.decide(1, failed, Nanos(1));
        assert_eq!(told, Some(Update::NotDurable { registration, refusal: Refusal::StorageFailed }));
        let again = persistents.wake_at().unwrap();
        assert!(again > Nanos(1) && persistents.send(Nanos(2), 2).is_none());
        assert!(persistents.send(again, 2).is_some());
        assert_eq!(persistents.decide(2, failed, again), None, "told once");
        persistents.lose();
        assert!(persistents.send(again, 3).is_some());
        let told = persistents.decide(3, Ok(Revision(9)), again);
        assert_eq!(told, Some(Update::Acknowledged { registration, revision: Revision(9) }));
        assert!(persistents.is_settled() && persistents.wake_at().is_none());
    }

    #[test]
    fn a_registry_that_cannot_keep_it_now_is_asked_again() {
        let (mut persistents, registration) = wanted();
        persistents.send(Nanos(1), 1);
        let refusal = Refusal::PersistentUnavailable;
        let told = persistents.decide(1, Err(refusal), Nanos(1));
        assert_eq!(told, Some(Update::NotDurable { registration, refusal }));
        let again = persistents.wake_at().unwrap();
        assert!(again > Nanos(1) && persistents.send(again, 2).is_some() && !persistents.is_settled());
    }

    #[test]
    fn the_outcome_of_an_earlier_version_says_nothing_of_the_one_wanted_now() {
        let (mut persistents, registration) = wanted();
        assert!(persistents.send(Nanos(1), 1).is_some());
        persistents.want(registration, &DataId::new("n", "g", "s").unwrap(), 6, None);
        assert_eq!(persistents.decide(1, Ok(Revision(9)), Nanos(1)), None);
        assert!(!persistents.is_settled());
        assert!(persistents.send(Nanos(1), 2).is_some());
        let refused = persistents.decide(2, Err(Refusal::Superseded), Nanos(1));
        assert_eq!(refused, Some(Update::Refused { registration, refusal: Refusal::Superseded }));
        assert!(persistents.is_settled());
    }
}
