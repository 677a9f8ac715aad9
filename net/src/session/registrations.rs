//! What a session's clients have published: the truth that data nodes are rebuilt from.
//!
//! A registration keeps its change entry ready to be sent again. A removal stays until the data node has confirmed it, and with it
//! the put that it ends: a leader that has never had that may list the registration as an earlier session told it, and takes no
//! removal of it from this one, which is its owner only by the put.

use std::collections::BTreeMap;

use slotcast_engine::{
    batch::{Change, ChangeKind, Durability, Entry, entries, write_change, write_put},
    digest::{Digest, fingerprint},
    error::Refusal,
    id::{ClientId, DatumKey, RegisterId, Revision, SessionId, Version},
    record::Record,
};

use crate::{io::ring::ConnId, session::link::Sent};

/// Who waits for the outcome of a write.
#[derive(Clone, Copy)]
pub(super) struct Waiter {
    pub(super) conn: ConnId,
    pub(super) sequence: u64,
    pub(super) index: usize,
    version: Version,
    kind: ChangeKind,
}

/// One registration.
pub(super) struct Registration {
    /// The connection that it belongs to now; its departure removes it.
    pub(super) conn: ConnId,
    client: ClientId,
    version: Version,
    /// The put; of a removal, the put that it ends with the removal behind it.
    entry: Box<[u8]>,
    is_live: bool,
    /// The leader epoch in which the put was last acknowledged.
    acknowledged_in: Option<u32>,
    waiters: Vec<Waiter>,
}

/// What was acknowledged before by whoever is sent something now.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Acknowledged {
    /// It counts.
    Counts,
    /// It may be another leader, or have forgotten.
    IsVoid,
}

/// All registrations of a session core, in the order of slots.
#[derive(Default)]
pub(super) struct Registrations {
    by_key: BTreeMap<(DatumKey, RegisterId), Registration>,
    live: usize,
}

/// A write that is to be sent to the data node.
pub(super) struct Accepted {
    /// What the digest over the shard loses.
    pub(super) lost: Option<u64>,
    /// What it gains.
    pub(super) gained: Option<u64>,
}

impl Accepted {
    /// Brings a digest up to date.
    pub(super) fn update(&self, digest: &mut Digest) {
        if let Some(lost) = self.lost {
            digest.remove(lost);
        }
        if let Some(gained) = self.gained {
            digest.add(gained);
        }
    }
}

impl Registrations {
    /// Live registrations.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// Takes a client's put in. The record has been validated and names `client`.
    pub(super) fn put(
        &mut self,
        session: SessionId,
        entry: Entry<'_>,
        client: ClientId,
        waiter: (ConnId, u64, usize),
    ) -> Result<Accepted, Refusal> {
        let (change, record) = (entry.change, entry.record().ok_or(Refusal::RecordInvalid)?);
        let key = (change.datum, change.register);
        let (mut waiters, mut lost) = (Vec::new(), None);
        if let Some(held) = self.by_key.get_mut(&key) {
            if held.client != client {
                return Err(Refusal::ForeignRegistration);
            }
            if change.version < held.version || (!held.is_live && change.version == held.version) {
                return Err(Refusal::Superseded);
            }
            waiters = std::mem::take(&mut held.waiters);
            lost = held.fingerprint();
        }
        waiters.push(Waiter::new(waiter, change.version, ChangeKind::Put));
        let owned = Change { owner: session, epoch: 0, durability: Durability::Ephemeral, ..change };
        let mut bytes = Vec::with_capacity(entry.bytes().len());
        write_put(&mut bytes, &owned, record);
        let registration = Registration {
            conn: waiter.0,
            client,
            version: change.version,
            entry: bytes.into(),
            is_live: true,
            acknowledged_in: None,
            waiters,
        };
        let gained = registration.fingerprint();
        self.live += usize::from(lost.is_none());
        self.by_key.insert(key, registration);
        Ok(Accepted { lost, gained })
    }

    /// Takes a client's removal in.
    pub(super) fn remove(
        &mut self,
        session: SessionId,
        change: &Change,
        client: ClientId,
        waiter: (ConnId, u64, usize),
    ) -> Result<Accepted, Refusal> {
        let key = (change.datum, change.register);
        let held = self.by_key.get_mut(&key).ok_or(Refusal::UnknownRegistration)?;
        if held.client != client {
            return Err(Refusal::ForeignRegistration);
        }
        if change.version < held.version {
            return Err(Refusal::Superseded);
        }
        held.waiters.push(Waiter::new(waiter, change.version, ChangeKind::Remove));
        let lost = held.become_removal(session, key, change.version);
        self.live -= usize::from(lost.is_some());
        Ok(Accepted { lost, gained: None })
    }

    /// Removes what a departed connection still holds of a registration. `None` if it belongs to another connection by now.
    pub(super) fn depart(
        &mut self,
        session: SessionId,
        key: (DatumKey, RegisterId),
        conn: ConnId,
    ) -> Option<Accepted> {
        let held = self.by_key.get_mut(&key)?;
        if held.conn != conn || !held.is_live {
            return None;
        }
        let version = held.version;
        let lost = held.become_removal(session, key, version);
        self.live -= usize::from(lost.is_some());
        Some(Accepted { lost, gained: None })
    }

    /// The data node has decided, in a leader epoch, on a write of `version`, a put or a removal. Returns who waited for it, and
    /// what the digest loses when the registration is given up because it was refused. A put says nothing of the removal of the
    /// same version that came behind it; a removal decides on what came before.
    pub(super) fn decide(
        &mut self,
        key: (DatumKey, RegisterId),
        (version, kind, epoch): (Version, ChangeKind, u32),
        outcome: Result<Revision, Refusal>,
    ) -> (Vec<Waiter>, Option<u64>) {
        let Some(held) = self.by_key.get_mut(&key) else { return (Vec::new(), None) };
        let is_told = |waiter: &Waiter| {
            waiter.version < version
                || waiter.version == version && (kind == ChangeKind::Remove || waiter.kind == kind)
        };
        let (told, waiting) = held.waiters.drain(..).partition(is_told);
        held.waiters = waiting;
        if held.is_live && held.version == version && kind == ChangeKind::Put && outcome.is_ok() {
            held.acknowledged_in = Some(epoch);
        }
        if held.version != version || held.kind() != kind || (held.is_live && outcome.is_ok()) {
            return (told, None);
        }
        // A confirmed or pointless removal, or a put that lost against a newer registration elsewhere.
        let lost = held.fingerprint();
        self.live -= usize::from(lost.is_some());
        self.by_key.remove(&key);
        (told, lost)
    }

    /// Whether a live ephemeral registration is held.
    pub(super) fn holds(&self, key: (DatumKey, RegisterId)) -> bool {
        self.by_key.get(&key).is_some_and(|held| held.is_live)
    }

    /// What is held of a registration.
    pub(super) fn get(&self, key: (DatumKey, RegisterId)) -> Option<&Registration> {
        self.by_key.get(&key)
    }

    /// Everything in key order, removals too: what a data node that was away has to be told.
    pub(super) fn iter(&self) -> impl Iterator<Item = ((DatumKey, RegisterId), &Registration)> {
        self.by_key.iter().map(|(key, held)| (*key, held))
    }

    /// What is held of a range of keys and has no outcome yet: puts that somebody waits for, and removals.
    pub(super) fn unanswered(
        &self,
        first: DatumKey,
        last: DatumKey,
    ) -> impl Iterator<Item = ((DatumKey, RegisterId), &Registration)> {
        let range = (first, RegisterId(0))..=(last, RegisterId(u64::MAX));
        let open = self.by_key.range(range).filter(|(_, held)| !held.is_live || !held.waiters.is_empty());
        open.map(|(key, held)| (*key, held))
    }

    /// Everything held of one data id.
    pub(super) fn of_datum(&self, datum: DatumKey) -> impl Iterator<Item = (RegisterId, &Registration)> {
        let range = (datum, RegisterId(0))..=(datum, RegisterId(u64::MAX));
        self.by_key.range(range).map(|(key, held)| (key.1, held))
    }

    /// Digests of the live registrations by data id, over a range of keys.
    pub(super) fn datum_digests(&self, first: DatumKey, last: DatumKey) -> BTreeMap<DatumKey, Digest> {
        let range = (first, RegisterId(0))..=(last, RegisterId(u64::MAX));
        let mut digests: BTreeMap<DatumKey, Digest> = BTreeMap::new();
        for (key, held) in self.by_key.range(range) {
            if let Some(print) = held.fingerprint() {
                digests.entry(key.0).or_default().add(print);
            }
        }
        digests
    }
}

impl Waiter {
    fn new((conn, sequence, index): (ConnId, u64, usize), version: Version, kind: ChangeKind) -> Self {
        Self { conn, sequence, index, version, kind }
    }
}

impl Registration {
    /// Whether it is a put, not a removal.
    pub(super) fn is_live(&self) -> bool {
        self.is_live
    }

    /// The entries that a leader of `epoch` is to be sent, each with what is noted of it: the put, or the removal. Before a removal
    /// goes the put that it ends, unless it was `acknowledged` by that leader over the link as it stands.
    pub(super) fn writes(
        &self,
        key: (DatumKey, RegisterId),
        epoch: u32,
        acknowledged: Acknowledged,
    ) -> impl Iterator<Item = (Sent, &[u8])> {
        let counts = acknowledged == Acknowledged::Counts && self.acknowledged_in == Some(epoch);
        let is_told = self.is_live || !counts;
        let all = entries(&self.entry).filter_map(Result::ok);
        all.filter(move |entry| is_told || entry.change.kind == ChangeKind::Remove).map(move |entry| {
            let Change { version, kind, .. } = entry.change;
            (Sent { key, version, kind, epoch }, entry.bytes())
        })
    }

    fn kind(&self) -> ChangeKind {
        if self.is_live { ChangeKind::Put } else { ChangeKind::Remove }
    }

    fn fingerprint(&self) -> Option<u64> {
        let entry = Entry::read(&self.entry).ok().filter(|_| self.is_live)?;
        let checksum = entry.record().map(Record::checksum)?;
        Some(fingerprint(entry.change.datum, entry.change.register, self.version, checksum))
    }

    /// Turns into the removal of `version`; returns what the digest loses.
    fn become_removal(
        &mut self,
        session: SessionId,
        (datum, register): (DatumKey, RegisterId),
        version: Version,
    ) -> Option<u64> {
        let lost = self.fingerprint();
        let change = Change {
            kind: ChangeKind::Remove,
            durability: Durability::Ephemeral,
            datum,
            register,
            version,
            epoch: 0,
            owner: session,
        };
        let put = Entry::read(&self.entry).map(|put| put.bytes().to_vec());
        let mut bytes = put.unwrap_or_default();
        write_change(&mut bytes, &change);
        (self.entry, self.version, self.is_live) = (bytes.into(), version, false);
        lost
    }
}
