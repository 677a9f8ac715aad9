//! Writes: from a client's frame to the shard's decision and back (sections 1 and 3).

use super::*;

impl Core {
    pub(super) fn send_writes(&mut self, shard: usize, keys: &[Key]) {
        if !self.links[shard].is_up {
            return;
        }
        let (mut entries, mut sent) = (Vec::new(), Vec::new());
        for (position, key) in keys.iter().enumerate() {
            let Some(held) = self.registrations.get(key) else { continue };
            let change = Change {
                kind: ChangeKind::Put,
                durability: Durability::Ephemeral,
                datum: key.0,
                register: key.1,
                version: held.version,
                epoch: 0,
                owner: self.id,
            };
            match held.record.as_ref().and_then(|record| Record::read(record).ok()) {
                Some(record) => {
                    write_name(&mut entries, key.0, held.id.as_bytes());
                    write_put(&mut entries, &change, record);
                }
                None => write_change(&mut entries, &Change { kind: ChangeKind::Remove, ..change }),
            }
            sent.push((*key, held.version, held.record.is_some()));
            if entries.len() >= WRITE_BYTES || position + 1 == keys.len() {
                let link = &mut self.links[shard];
                link.sequence += 1;
                link.send(&Message::Write { sequence: link.sequence, entries: &entries });
                link.in_flight.push_back((link.sequence, std::mem::take(&mut sent)));
                entries.clear();
            }
        }
    }

    pub(super) fn decided(
        &mut self,
        shard: usize,
        (key, version, is_put): Sent,
        outcome: Result<Revision, Refusal>,
    ) {
        if outcome == Err(Refusal::NameUnknown) {
            self.send_writes(shard, &[key]);
            return;
        }
        let link = &mut self.links[shard];
        link.epoch_seen = link.epoch_seen.max(outcome.map_or(0, Revision::epoch));
        let Some(held) = self.registrations.get_mut(&key) else { return };
        let is_told = |waiter: &Waiter| {
            waiter.version < version || waiter.version == version && (!is_put || waiter.is_put)
        };
        let (told, waiting) = held.waiters.drain(..).partition(is_told);
        held.waiters = waiting;
        let is_other = held.version != version || held.record.is_some() != is_put;
        let keep = is_other || (is_put && outcome.is_ok());
        if !keep {
            self.registrations.remove(&key);
        }
        for waiter in told {
            self.resolve(waiter.client, waiter.sequence, waiter.index, outcome);
        }
    }

    /// Notes an outcome of a client's write; the last one of a frame sends its acknowledgement.
    pub(super) fn resolve(
        &mut self,
        client: u64,
        sequence: u64,
        index: usize,
        outcome: Result<Revision, Refusal>,
    ) {
        let Some(client) = self.clients.get_mut(&client) else { return };
        let Some(at) = client.pending.iter().position(|(sent, _)| *sent == sequence) else { return };
        client.pending[at].1[index] = Some(outcome);
        if client.pending[at].1.iter().all(Option::is_some) {
            let (sequence, outcomes) = client.pending.remove(at);
            let outcomes: Vec<_> = outcomes.into_iter().flatten().collect();
            let mut frame = Vec::new();
            write_ack(&mut frame, sequence, &outcomes);
            client.give(frame.clone());
        }
    }

    pub(super) fn publish(&mut self, client: u64, named: ClientId, sequence: u64, bytes: &[u8]) {
        let entries: Result<Vec<Entry<'_>>, _> = Message::entries(bytes).collect();
        let entries = match entries {
            Ok(entries) => entries,
            Err(fault) => return self.refuse(client, ErrorCode::Frame, &fault.to_string()),
        };
        let writes = entries.iter().filter(|entry| entry.change.kind != ChangeKind::Name).count();
        if let Some(client) = self.clients.get_mut(&client) {
            client.pending.push((sequence, vec![None; writes]));
        }
        let (mut name, mut index) = (None, 0);
        let mut accepted: BTreeMap<usize, Vec<Key>> = BTreeMap::new();
        for entry in entries {
            let change = entry.change;
            let key = (change.datum, change.register);
            if change.kind == ChangeKind::Name {
                name = entry.name().and_then(|name| DataId::from_canonical(name).ok());
                continue;
            }
            let is_put = change.kind == ChangeKind::Put;
            let waiter = Waiter { client, sequence, index, version: change.version, is_put };
            index += 1;
            // A put and a removal of one registration in one frame go out one after the other.
            let shard = self.shard_of(key.0);
            let before = accepted.entry(shard).or_default();
            if before.contains(&key) {
                let before = std::mem::take(before);
                self.send_writes(shard, &before);
            }
            let outcome = match change.kind {
                ChangeKind::Put => self.put(named, entry, name.as_ref(), waiter),
                ChangeKind::Remove => self.remove(named, change, waiter),
                _ => Err(Refusal::RecordInvalid),
            };
            match outcome {
                Ok(()) => accepted.entry(shard).or_default().push(key),
                Err(refusal) => self.resolve(client, sequence, index - 1, Err(refusal)),
            }
        }
        for (shard, keys) in accepted {
            self.send_writes(shard, &keys);
        }
        if writes == 0
            && let Some(client) = self.clients.get_mut(&client)
        {
            client.pending.retain(|(sent, _)| *sent != sequence);
            let mut frame = Vec::new();
            write_ack(&mut frame, sequence, &[]);
            client.give(frame.clone());
        }
    }

    pub(super) fn put(
        &mut self,
        client: ClientId,
        entry: Entry<'_>,
        name: Option<&DataId>,
        waiter: Waiter,
    ) -> Result<(), Refusal> {
        let change = entry.change;
        let (key, record) = ((change.datum, change.register), entry.record().ok_or(Refusal::RecordInvalid)?);
        if change.durability == Durability::Persistent {
            return Err(Refusal::PersistentUnavailable);
        }
        let named = record.validate().map_err(|_| Refusal::RecordInvalid)?;
        if named != client {
            return Err(Refusal::ForeignRegistration);
        }
        let known = self.registrations.get(&key);
        let id = match name.filter(|id| id.key() == change.datum).or(known.map(|held| &held.id)) {
            Some(id) => id.clone(),
            None => return Err(Refusal::NameUnknown),
        };
        let mut waiters = vec![waiter];
        if let Some(held) = known {
            let version = change.version;
            if held.client != client {
                return Err(Refusal::ForeignRegistration);
            }
            if version < held.version || (held.record.is_none() && version == held.version) {
                return Err(Refusal::Superseded);
            }
        } else if self.published(waiters[0].client).count() >= PER_CLIENT_MAX {
            return Err(Refusal::TooManyPublishers);
        }
        let owner = waiters[0].client;
        if let Some(mut held) = self.registrations.remove(&key) {
            waiters.append(&mut held.waiters);
        }
        let record = Some(record.bytes().to_vec());
        let held = Registration { owner, client, id, version: change.version, record, waiters };
        self.registrations.insert(key, held);
        Ok(())
    }

    pub(super) fn remove(&mut self, client: ClientId, change: Change, waiter: Waiter) -> Result<(), Refusal> {
        let key = (change.datum, change.register);
        let held = self.registrations.get_mut(&key).ok_or(Refusal::UnknownRegistration)?;
        if held.client != client {
            return Err(Refusal::ForeignRegistration);
        }
        if change.version < held.version {
            return Err(Refusal::Superseded);
        }
        held.waiters.push(waiter);
        (held.version, held.record) = (change.version, None);
        Ok(())
    }

    pub(super) fn published(&self, client: u64) -> impl Iterator<Item = Key> + '_ {
        let mine = self.registrations.iter();
        mine.filter(move |(_, held)| held.owner == client && held.record.is_some()).map(|(key, _)| *key)
    }

    pub(super) fn remove_published(&mut self, client: u64) {
        for key in self.published(client).collect::<Vec<_>>() {
            if let Some(held) = self.registrations.get_mut(&key) {
                held.record = None;
            }
            self.send_writes(self.shard_of(key.0), &[key]);
        }
    }
}
