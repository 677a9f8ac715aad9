//! Publishing: from a client's write frame to the data node's decision and back, and the repair of what got lost between.

use std::collections::BTreeMap;

use slotcast_engine::{
    batch::{ChangeKind, Entry},
    digest::{self, Digest},
    error::Refusal,
    id::{ClientId, DataId, DatumKey, Nanos, RegisterId, SessionId, SlotId},
    record::RecordError,
};

use crate::{
    io::ring::ConnId,
    session::{
        core::{ClientFault, Session},
        link::Writes,
        persistent::{Undecided, unowned},
    },
    wire::{
        Message,
        message::{Outcomes, SubscribeItem},
    },
};

/// Write frames of one client that may wait for their outcomes.
const PENDING_WRITES_MAX: usize = 4096;

impl Session {
    /// A client's write frame. A malformed entry is a fault of the client; a refused one is told in the acknowledgement.
    pub(super) fn publish(
        &mut self,
        index: usize,
        client: ClientId,
        sequence: u64,
        bytes: &[u8],
        now: Nanos,
    ) -> Result<(), ClientFault> {
        let mut count = 0;
        for entry in Message::entries(bytes) {
            count += usize::from(entry?.change.kind != ChangeKind::Name);
        }
        let Some(state) = self.client(index) else { return Ok(()) };
        let (conn, overloaded) = (state.conn, state.pending_writes() >= PENDING_WRITES_MAX);
        state.expect_outcomes(sequence, count);
        self.metrics.writes_received.inc_by(count as u64);
        let _ = now;
        let mut name: Option<Result<DataId, Refusal>> = None;
        let mut position = 0;
        for entry in Message::entries(bytes) {
            let entry = entry?;
            if entry.change.kind == ChangeKind::Name {
                name = Some(self.check_name(entry));
                continue;
            }
            let waiter = (conn, sequence, position);
            position += 1;
            let outcome = if overloaded {
                Err(Refusal::Overloaded)
            } else {
                self.publish_one(index, client, entry, name.as_ref(), waiter)
            };
            if let Err(refusal) = outcome {
                self.metrics.writes_refused.get_or_create(&refusal.into()).inc();
                if let Some(state) = self.client(index) {
                    state.resolve(sequence, waiter.2, Err(refusal));
                }
            }
        }
        self.mark_dirty(index as u32);
        Ok(())
    }

    fn check_name(&self, entry: Entry<'_>) -> Result<DataId, Refusal> {
        let id =
            DataId::from_canonical(entry.name().unwrap_or_default()).map_err(|_| Refusal::NameInvalid)?;
        if id.key() != entry.change.datum {
            return Err(Refusal::NameInvalid);
        }
        let published = self.published_names.get(&id.key()).is_some_and(|(held, _)| *held != id);
        let wanted = self.cache.find(id.key()).and_then(|number| self.cache.get(number));
        if published || wanted.is_some_and(|datum| datum.id != id) {
            return Err(Refusal::KeyCollision);
        }
        Ok(id)
    }

    fn publish_one(
        &mut self,
        index: usize,
        client: ClientId,
        entry: Entry<'_>,
        name: Option<&Result<DataId, Refusal>>,
        waiter: (ConnId, u64, usize),
    ) -> Result<(), Refusal> {
        let change = entry.change;
        let key = (change.datum, change.register);
        let shard = self.config.routes.shard_of(change.datum);
        if self.links[shard].out.len() > self.config.link_buffer_max {
            return Err(Refusal::Overloaded);
        }
        if change.is_persistent() {
            return self.publish_persistent(client, entry, name, waiter);
        }
        let accepted = match change.kind {
            ChangeKind::Put => {
                let id = self.check_put(client, entry, name)?;
                self.check_publishers(index, key)?;
                let known = self.registrations.entry(key).is_some();
                let accepted = self.registrations.put(self.config.id, entry, client, waiter)?;
                if !known {
                    self.published_names.entry(key.0).or_insert_with(|| (id, 0)).1 += 1;
                }
                if let Some(client) = self.client(index)
                    && !client.published.contains(&key)
                {
                    client.published.push(key);
                }
                accepted
            }
            ChangeKind::Remove => {
                let accepted = self.registrations.remove(self.config.id, &change, client, waiter)?;
                if let Some(client) = self.client(index) {
                    client.published.retain(|held| *held != key);
                }
                accepted
            }
            ChangeKind::Name | ChangeKind::Touch | ChangeKind::Forget => return Err(Refusal::RecordInvalid),
        };
        accepted.update(&mut self.links[shard].digest);
        self.forward(shard, key);
        Ok(())
    }

    /// What holds for every put: its data id has been named, and its record is whole and the client's own.
    fn check_put(
        &self,
        client: ClientId,
        entry: Entry<'_>,
        name: Option<&Result<DataId, Refusal>>,
    ) -> Result<DataId, Refusal> {
        let datum = entry.change.datum;
        let id = match name {
            Some(Ok(id)) if id.key() == datum => id.clone(),
            Some(Err(refusal)) => return Err(*refusal),
            _ => match self.published_names.get(&datum) {
                Some((id, _)) => id.clone(),
                None => return Err(Refusal::NameUnknown),
            },
        };
        if validate(entry)? != client {
            return Err(Refusal::ForeignRegistration);
        }
        Ok(id)
    }

    /// A change of a persistent registration: held until the data node has decided, and by nobody afterwards.
    fn publish_persistent(
        &mut self,
        client: ClientId,
        entry: Entry<'_>,
        name: Option<&Result<DataId, Refusal>>,
        (conn, sequence, index): (ConnId, u64, usize),
    ) -> Result<(), Refusal> {
        let change = entry.change;
        let is_put = change.kind == ChangeKind::Put;
        let id = if is_put { Some(self.check_put(client, entry, name)?) } else { None };
        if self.registrations.holds((change.datum, change.register)) {
            return Err(Refusal::DurabilityMismatch);
        }
        if self.persistents.of_client(conn) >= self.config.publishers_max as usize {
            return Err(Refusal::Overloaded);
        }
        let (shard, entry) = (self.config.routes.shard_of(change.datum), unowned(entry)?);
        let write = Undecided { shard, datum: change.datum, id, entry, conn, sequence, index };
        let number = self.persistents.add(write);
        self.forward_persistent(number);
        Ok(())
    }

    fn forward_persistent(&mut self, number: u64) {
        if let Some(write) = self.persistents.get(number) {
            let link = &mut self.links[write.shard];
            link.write_persistent(number, write.datum, write.id.as_ref(), &write.entry);
        }
    }

    /// Whether the client may have this publisher, be it a new one.
    fn check_publishers(&mut self, index: usize, key: (DatumKey, RegisterId)) -> Result<(), Refusal> {
        let limit = self.config.publishers_max as usize;
        let Some(client) = self.client(index) else { return Ok(()) };
        if client.published.len() >= limit && !client.published.contains(&key) {
            return Err(Refusal::TooManyPublishers);
        }
        Ok(())
    }

    /// Sends the entry of a registration as it stands.
    fn forward(&mut self, shard: usize, key: (DatumKey, RegisterId)) {
        let Some(bytes) = self.registrations.entry(key) else { return };
        let Ok(entry) = Entry::read(bytes) else { return };
        let id = self.published_names.get(&key.0).map(|(id, _)| id);
        self.links[shard].write((key, entry.change.version), id, bytes);
    }

    /// The registrations of a client that left, unless they belong to another connection by now.
    pub(super) fn remove_published(&mut self, conn: ConnId, published: &[(DatumKey, RegisterId)]) {
        for key in published {
            let shard = self.config.routes.shard_of(key.0);
            if let Some(accepted) = self.registrations.depart(self.config.id, *key, conn) {
                accepted.update(&mut self.links[shard].digest);
                self.metrics.departed_publishers.inc();
                self.forward(shard, *key);
            }
        }
    }

    /// A data node has decided on a write frame.
    pub(super) fn decided(&mut self, shard: usize, sequence: u64, outcomes: Outcomes<'_>) {
        let Some(sent) = self.links[shard].decided(sequence) else { return };
        if let Some(epoch) = outcomes.iter().flatten().map(|revision| revision.epoch()).max() {
            let link = &mut self.links[shard];
            link.epoch_seen = link.epoch_seen.max(epoch);
        }
        let sent = match sent {
            Writes::Ephemeral(sent) => sent,
            Writes::Persistent(numbers) => return self.decided_persistent(&numbers, outcomes),
        };
        for ((key, version), outcome) in sent.into_iter().zip(outcomes.iter()) {
            if outcome == Err(Refusal::NameUnknown) {
                self.links[shard].forget_name(key.0);
                self.forward(shard, key);
                continue;
            }
            let held = self.registrations.entry(key).is_some();
            let (waiters, lost) = self.registrations.decide(key, version, outcome);
            if let Some(lost) = lost {
                self.links[shard].digest.remove(lost);
            }
            let given_up = held && self.registrations.entry(key).is_none();
            if given_up {
                self.release_name(key.0);
            }
            for waiter in waiters {
                let index = waiter.conn.index();
                let Some(client) = self.client(index).filter(|client| client.conn == waiter.conn) else {
                    continue;
                };
                if given_up {
                    client.published.retain(|held| *held != key);
                }
                if client.resolve(waiter.sequence, waiter.index, outcome) {
                    self.mark_dirty(index as u32);
                }
            }
        }
    }

    fn decided_persistent(&mut self, numbers: &[u64], outcomes: Outcomes<'_>) {
        for (number, outcome) in numbers.iter().zip(outcomes.iter()) {
            if outcome == Err(Refusal::NameUnknown)
                && let Some(write) = self.persistents.get(*number)
            {
                self.links[write.shard].forget_name(write.datum);
                self.forward_persistent(*number);
                continue;
            }
            let Some(write) = self.persistents.take(*number) else { continue };
            let index = write.conn.index();
            if let Some(client) = self.client(index).filter(|client| client.conn == write.conn)
                && client.resolve(write.sequence, write.index, outcome)
            {
                self.mark_dirty(index as u32);
            }
        }
    }

    fn release_name(&mut self, datum: DatumKey) {
        if let Some((_, count)) = self.published_names.get_mut(&datum) {
            *count -= 1;
            if *count == 0 {
                self.published_names.remove(&datum);
            }
        }
    }

    /// A link is up: tell the shard everything that it should hold.
    pub(super) fn replay(&mut self, shard: usize) {
        let routes = &self.config.routes;
        let link = &mut self.links[shard];
        for (key, version, entry) in self.registrations.entries() {
            if routes.shard_of(key.0) == shard {
                link.write((key, version), self.published_names.get(&key.0).map(|(id, _)| id), entry);
            }
        }
        for (number, write) in self.persistents.of_shard(shard) {
            link.write_persistent(number, write.datum, write.id.as_ref(), &write.entry);
        }
    }

    /// Tells the shard at intervals that this session lives, and the digest of what it should hold.
    pub(super) fn heartbeat(&mut self, shard: usize, now: Nanos) {
        let link = &mut self.links[shard];
        if link.is_up() && now >= link.next_heartbeat {
            link.next_heartbeat = now.after(self.config.heartbeat_interval);
            link.unanswered_since.get_or_insert(now);
            let message =
                Message::Heartbeat { mark: link.mark, digest: link.digest, routes: 0, table_epoch: 0 };
            link.send(&message);
            self.metrics.link_writes_in_flight.set(link.in_flight() as i64);
        }
    }

    /// The answer to a heartbeat. Where the digests differ, the slots that do are looked at closer.
    pub(super) fn heartbeat_answered(
        &mut self,
        shard: usize,
        mark: u64,
        confirmed: Vec<SessionId>,
        settled: bool,
        differs: Option<Vec<(SlotId, Digest)>>,
    ) {
        let link = &mut self.links[shard];
        link.mark = mark;
        link.confirmed = confirmed.into_iter().collect();
        if settled && !std::mem::replace(&mut link.settled, settled) {
            self.vouch(shard);
        }
        let link = &self.links[shard];
        let due = self.cache.retained_due(shard, |owner| settled || link.confirmed.contains(&owner));
        for number in due {
            if let Some(datum) = self.cache.get(number) {
                let ask = SubscribeItem {
                    id: datum.id.clone(),
                    since: slotcast_engine::id::Revision::ZERO,
                    digest: 0,
                };
                self.links[shard].subscribe(ask);
            }
        }
        let Some(theirs) = differs else { return };
        self.metrics.digest_mismatches.inc();
        let theirs: BTreeMap<SlotId, Digest> = theirs.into_iter().collect();
        let differences = digest::compare(&self.slot_digests(shard), &theirs);
        for slot in differences.added.into_iter().chain(differences.updated).chain(differences.removed) {
            self.links[shard].send(&Message::DigestRequest(slot));
        }
    }

    fn slot_digests(&self, shard: usize) -> BTreeMap<SlotId, Digest> {
        let routes = &self.config.routes;
        let mut slots: BTreeMap<SlotId, Digest> = BTreeMap::new();
        for (datum, digest) in self.registrations.datum_digests(DatumKey(0), DatumKey(u64::MAX)) {
            if routes.shard_of(datum) == shard {
                let sum = slots.entry(datum.slot(routes.slot_count)).or_default();
                sum.sum = sum.sum.wrapping_add(digest.sum);
                sum.count += digest.count;
            }
        }
        slots
    }

    /// The shard's digests per data id of one slot: whatever differs is told again, completely.
    pub(super) fn repair(&mut self, shard: usize, slot: SlotId, digests: Vec<(DatumKey, Digest)>) {
        let width = u64::MAX / u64::from(self.config.routes.slot_count);
        let first = DatumKey(u64::from(slot.0) * (width + 1));
        let last = DatumKey(first.0 + width);
        let mine = self.registrations.datum_digests(first, last);
        let differences = digest::compare(&mine, &digests.into_iter().collect());
        let (names, registrations) = (&self.published_names, &self.registrations);
        let link = &mut self.links[shard];
        for datum in differences.added.into_iter().chain(differences.updated).chain(differences.removed) {
            self.metrics.repaired_datums.inc();
            let mut registers = Vec::new();
            for (register, version, entry, is_live) in registrations.of_datum(datum) {
                link.write(((datum, register), version), names.get(&datum).map(|(id, _)| id), entry);
                if is_live {
                    registers.push(register);
                }
            }
            link.send(&Message::Holds { datum, registers });
        }
    }
}

/// The session's front door: checksum, archive and names of a record. Returns the client that it names.
fn validate(entry: Entry<'_>) -> Result<ClientId, Refusal> {
    let record = entry.record().ok_or(Refusal::RecordInvalid)?;
    record.validate().map_err(|error| match error {
        RecordError::PayloadTooLarge(_) => Refusal::PayloadTooLarge,
        RecordError::Name(_) => Refusal::NameInvalid,
        _ => Refusal::RecordInvalid,
    })
}
