//! Publishing: from a client's write frame to the data node's decision and back, and the repair of what got lost between.

use std::collections::BTreeSet;

use slotcast_engine::{
    batch::{ChangeKind, Entry},
    error::Refusal,
    id::{ClientId, DataId, DatumKey, Nanos, RegisterId},
    record::RecordError,
};

use crate::{
    io::ring::ConnId,
    session::{
        core::{ClientFault, Session},
        link::{Sent, Writes},
        moves::Again,
        persistent::{Undecided, unowned},
        registrations::{Accepted, Acknowledged},
        routes::Route,
    },
    wire::{Message, message::Outcomes},
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
        if let Some(link) = self.routes.link_of(change.datum)
            && self.links[link].out.len() > self.config.link_buffer_max
        {
            return Err(Refusal::Overloaded);
        }
        if change.is_persistent() {
            return self.publish_persistent(client, entry, name, waiter);
        }
        let accepted = match change.kind {
            ChangeKind::Put => {
                let id = self.check_put(client, entry, name)?;
                self.check_publishers(index, key)?;
                let known = self.registrations.get(key).is_some();
                let accepted = self.registrations.put(self.config.id, entry, client, waiter)?;
                if !known {
                    self.published_names.entry(key.0).or_insert_with(|| (id, 0)).1 += 1;
                }
                if let Some(client) = self.client(index) {
                    client.published.insert(key);
                }
                accepted
            }
            ChangeKind::Remove => {
                let accepted = self.registrations.remove(self.config.id, &change, client, waiter)?;
                if let Some(client) = self.client(index) {
                    client.published.remove(&key);
                }
                accepted
            }
            ChangeKind::Name | ChangeKind::Touch | ChangeKind::Forget | ChangeKind::Expire => {
                return Err(Refusal::RecordInvalid);
            }
        };
        self.account(change.datum, &accepted);
        self.forward(key);
        Ok(())
    }

    /// Brings the digests of a data id's slot and of its leader's link up to date.
    fn account(&mut self, datum: DatumKey, accepted: &Accepted) {
        let slot = self.routes.slot(datum);
        accepted.update(self.routes.digest_mut(slot));
        if let Some(link) = self.routes.of(slot).link {
            accepted.update(&mut self.links[link].digest);
        }
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
        let id = if is_put {
            Some(self.check_put(client, entry, name)?)
        } else {
            self.name_for_removal(change.datum, name)?
        };
        if self.registrations.holds((change.datum, change.register)) {
            return Err(Refusal::DurabilityMismatch);
        }
        if self.persistents.of_client(conn) >= self.config.publishers_max as usize {
            return Err(Refusal::Overloaded);
        }
        let entry = unowned(entry)?;
        let write =
            Undecided { datum: change.datum, register: change.register, id, entry, conn, sequence, index };
        if let Some(number) = self.persistents.add(write) {
            self.forward_persistent(number);
        }
        Ok(())
    }

    /// The name of a data id of which something persistent is removed: as the client says, or as it is known here. Without one
    /// the leader takes the removal all the same, and remembers it only if it knows the data id.
    fn name_for_removal(
        &self,
        datum: DatumKey,
        name: Option<&Result<DataId, Refusal>>,
    ) -> Result<Option<DataId>, Refusal> {
        match name {
            Some(Ok(id)) if id.key() == datum => return Ok(Some(id.clone())),
            Some(Err(refusal)) => return Err(*refusal),
            _ => {}
        }
        let published = self.published_names.get(&datum).map(|(id, _)| id);
        let cached = || self.cache.get(self.cache.find(datum)?).map(|datum| &datum.id);
        Ok(published.or_else(cached).cloned())
    }

    /// Sends an undecided write to its slot's leader, if there is one.
    pub(super) fn forward_persistent(&mut self, number: u64) {
        if let Some(write) = self.persistents.get(number)
            && let Route { link: Some(link), epoch, .. } = self.routes.of_datum(write.datum)
        {
            self.links[link].write_persistent((number, epoch), write.datum, write.id.as_ref(), &write.entry);
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

    /// Sends the entry of a registration as it stands to its slot's leader. Where there is none, the next one is told.
    pub(super) fn forward(&mut self, key: (DatumKey, RegisterId)) {
        let Route { link: Some(link), epoch, .. } = self.routes.of_datum(key.0) else { return };
        let Some(held) = self.registrations.get(key) else { return };
        let id = self.published_names.get(&key.0).map(|(id, _)| id);
        self.links[link].write(id, held.writes(key, epoch, Acknowledged::Counts));
    }

    /// The registrations of a client that left, unless they belong to another connection by now.
    pub(super) fn remove_published(&mut self, conn: ConnId, published: &BTreeSet<(DatumKey, RegisterId)>) {
        for key in published {
            if let Some(accepted) = self.registrations.depart(self.config.id, *key, conn) {
                self.account(key.0, &accepted);
                self.metrics.departed_publishers.inc();
                self.forward(*key);
            }
        }
    }

    /// A data node has decided on a write frame.
    pub(super) fn decided(&mut self, number: usize, sequence: u64, outcomes: Outcomes<'_>, now: Nanos) {
        let Some(sent) = self.links[number].decided(sequence) else { return };
        if let Some(epoch) = outcomes.iter().flatten().map(|revision| revision.epoch()).max() {
            let link = &mut self.links[number];
            link.epoch_seen = link.epoch_seen.max(epoch);
        }
        let sent = match sent {
            Writes::Ephemeral(sent) => sent,
            Writes::Persistent(sent) => return self.decided_persistent(number, &sent, outcomes, now),
        };
        let follows = self.following.is_some();
        for (Sent { key, version, kind, epoch }, outcome) in sent.into_iter().zip(outcomes.iter()) {
            let slot = self.routes.slot(key.0);
            if !self.routes.of(slot).is(number, epoch) {
                // The slot has another leader, who has been told of the write and decides.
                self.metrics.outcomes_of_former_leaders.inc();
                continue;
            }
            match outcome {
                Err(Refusal::NameUnknown) => {
                    self.links[number].forget_name(key.0);
                    self.forward(key);
                    continue;
                }
                Err(Refusal::SlotMoved) if follows => {
                    self.defer(number, key.0, Again::Write(key.0, key.1), now);
                    continue;
                }
                Ok(_) if !self.deferred.is_empty() => self.deferred.release(|other| other == slot),
                _ => {}
            }
            let held = self.registrations.get(key).is_some();
            let (waiters, lost) = self.registrations.decide(key, (version, kind, epoch), outcome);
            if lost.is_some() {
                self.account(key.0, &Accepted { lost, gained: None });
            }
            let given_up = held && self.registrations.get(key).is_none();
            if given_up {
                self.release_name(key.0);
            }
            for waiter in waiters {
                let index = waiter.conn.index();
                let Some(client) = self.client(index).filter(|client| client.conn == waiter.conn) else {
                    continue;
                };
                if given_up {
                    client.published.remove(&key);
                }
                if client.resolve(waiter.sequence, waiter.index, outcome) {
                    self.mark_dirty(index as u32);
                }
            }
        }
    }

    fn decided_persistent(&mut self, number: usize, sent: &[(u64, u32)], outcomes: Outcomes<'_>, now: Nanos) {
        let follows = self.following.is_some();
        for ((write_number, epoch), outcome) in sent.iter().zip(outcomes.iter()) {
            let Some(write) = self.persistents.get(*write_number) else { continue };
            let datum = write.datum;
            if !self.routes.of_datum(datum).is(number, *epoch) {
                self.metrics.outcomes_of_former_leaders.inc();
                continue;
            }
            match outcome {
                Err(Refusal::NameUnknown) => {
                    self.links[number].forget_name(datum);
                    self.forward_persistent(*write_number);
                    continue;
                }
                Err(Refusal::SlotMoved) if follows => {
                    self.defer(number, datum, Again::Persistent(*write_number), now);
                    continue;
                }
                _ => {}
            }
            let Some((write, next)) = self.persistents.take(*write_number) else { continue };
            if let Some(next) = next {
                self.forward_persistent(next);
            }
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
    pub(super) fn replay(&mut self, number: usize) {
        let routes = &self.routes;
        let link = &mut self.links[number];
        for (key, held) in self.registrations.iter() {
            let route = routes.of_datum(key.0);
            if route.link == Some(number) {
                let id = self.published_names.get(&key.0).map(|(id, _)| id);
                link.write(id, held.writes(key, route.epoch, Acknowledged::IsVoid));
            }
        }
        for (write_number, write) in self.persistents.iter() {
            let route = routes.of_datum(write.datum);
            if route.link == Some(number) {
                link.write_persistent(
                    (write_number, route.epoch),
                    write.datum,
                    write.id.as_ref(),
                    &write.entry,
                );
            }
        }
    }

    /// Tells a data id's leader every registration that is held of it, and that these are all.
    pub(super) fn tell_all_of(&mut self, datum: DatumKey) {
        let Route { link: Some(number), epoch, .. } = self.routes.of_datum(datum) else { return };
        let link = &mut self.links[number];
        let mut registers = Vec::new();
        for (register, held) in self.registrations.of_datum(datum) {
            let id = self.published_names.get(&datum).map(|(id, _)| id);
            link.write(id, held.writes((datum, register), epoch, Acknowledged::Counts));
            if held.is_live() {
                registers.push(register);
            }
        }
        link.send(&Message::Holds { datum, registers });
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
