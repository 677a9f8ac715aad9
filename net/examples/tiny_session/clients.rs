//! Clients: what a session owes them (section 9).

use super::*;

impl Client {
    /// Sends a frame. A client that has no room for it does not read, and is closed by the session.
    pub(super) fn give(&mut self, frame: Vec<u8>) {
        self.out.take_if(|out| !out.send(frame));
    }
}

impl Core {
    pub(super) fn client_says(&mut self, number: u64, message: Message<'_>) {
        let Some(client) = self.clients.get_mut(&number).filter(|client| client.out.is_some()) else {
            return;
        };
        let id = match (message, client.id) {
            (Message::Hello { protocol, .. }, _) if protocol != PROTOCOL => {
                return self.refuse(number, ErrorCode::ProtocolVersion, "version 1 is spoken here");
            }
            (Message::Hello { client: id, .. }, None) if id != ClientId(0) => {
                client.id = Some(id);
                let max = PER_CLIENT_MAX as u32;
                return self.tell(
                    number,
                    &Message::Welcome { session: self.id, publishers_max: max, subscriptions_max: max },
                );
            }
            (message, Some(id)) => (message, id),
            (_, None) => return self.refuse(number, ErrorCode::Unexpected, "a hello with an id comes first"),
        };
        match id {
            (Message::Write { sequence, entries }, id) => self.publish(number, id, sequence, entries),
            (Message::Subscribe(items), _) => {
                items.into_iter().for_each(|item| self.subscribe(number, item));
            }
            (Message::Unsubscribe(keys), _) => keys.iter().for_each(|key| self.unsubscribe(number, *key)),
            (Message::Ping(nonce), _) => self.tell(number, &Message::Pong(nonce)),
            (Message::Pong(_), _) => {}
            (Message::Goodbye, _) => (client.said_goodbye, client.out) = (true, None),
            _ => self.refuse(number, ErrorCode::Unexpected, "no client sends that"),
        }
    }

    pub(super) fn tell(&mut self, client: u64, message: &Message<'_>) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.give(frame_of(message));
        }
    }

    pub(super) fn refuse(&mut self, client: u64, code: ErrorCode, text: &str) {
        self.tell(client, &Message::Error { code: code as u16, retry_after_ms: 0, text });
        if let Some(client) = self.clients.get_mut(&client) {
            client.out = None;
        }
    }

    pub(super) fn subscribe(&mut self, number: u64, item: SubscribeItem) {
        let key = item.id.key();
        let Some(client) = self.clients.get_mut(&number) else { return };
        let collides = self.lists.get(&key).is_some_and(|list| list.id != item.id);
        let full = client.subscriptions.len() >= PER_CLIENT_MAX && !client.subscriptions.contains_key(&key);
        if collides || full {
            let refusal = if full { Refusal::TooManySubscriptions } else { Refusal::KeyCollision };
            return self.tell(number, &Message::SubscribeRefused { datum: key, code: refusal.code() });
        }
        let claim = Claim { since: item.since, digest: item.digest, asked: None };
        client.subscriptions.insert(key, Subscription { claim: Some(claim), provisional: false });
        if !self.lists.contains_key(&key) {
            let shard = self.shard_of(key);
            self.links[shard].subscribe(&item.id, Revision::ZERO);
            let list = List {
                id: item.id,
                shard,
                records: BTreeMap::new(),
                known: false,
                revision: Revision::ZERO,
                run: 0,
                pushed: Revision::ZERO,
            };
            self.lists.insert(key, list);
        }
        self.answer(number, key);
    }

    /// Answers a claim if that is possible by now: the table of section 9.
    pub(super) fn answer(&mut self, number: u64, key: DatumKey) {
        let (Some(list), Some(client)) = (self.lists.get(&key), self.clients.get_mut(&number)) else {
            return;
        };
        let Some(subscription) = client.subscriptions.get_mut(&key) else { return };
        let (Some(claim), true) = (&mut subscription.claim, list.known) else { return };
        let link = &mut self.links[list.shard];
        let since = claim.since;
        let believed = since.epoch() <= link.epoch.saturating_add(EPOCHS_AHEAD);
        if since > list.revision && believed {
            let fresh = claim.asked.is_some_and(|question| question <= link.answered);
            let due = link.opened_for_claim.is_none_or(|at| at.elapsed() >= CLAIM_LINKS);
            if fresh && due && link.is_up {
                link.epoch_seen = link.epoch_seen.max(since.epoch() + 1);
                link.opened_for_claim = Some(Instant::now());
                link.lose();
            } else if claim.asked.is_none() || fresh {
                let held = if list.run == link.run { list.revision } else { Revision::ZERO };
                claim.asked = Some(link.ask(&list.id, held)).filter(|_| link.is_up);
            }
            return;
        }
        let frame = if since == Revision::ZERO || since > list.revision {
            list.snapshot()
        } else if claim.digest == list.digest() {
            list.frame(0, since, &[], &[])
        } else if link.settled && list.run == link.run && !list.has_retained() {
            list.snapshot()
        } else {
            subscription.provisional = true;
            list.merge(since)
        };
        subscription.claim = None;
        client.give(frame.clone());
    }

    pub(super) fn unsubscribe(&mut self, client: u64, key: DatumKey) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.subscriptions.remove(&key);
        }
        if self.readers(key).next().is_none()
            && let Some(list) = self.lists.remove(&key)
        {
            self.links[list.shard].send(&Message::Unsubscribe(vec![key]));
        }
    }

    pub(super) fn client_gone(&mut self, number: u64) {
        let Some(client) = self.clients.remove(&number) else { return };
        client.subscriptions.keys().for_each(|key| self.unsubscribe(number, *key));
        if client.said_goodbye {
            return self.remove_published(number);
        }
        let (now, by_us) = (Instant::now(), client.out.is_none());
        self.departures.push((number, now, by_us));
        if !by_us {
            self.drops.retain(|at| now - *at <= self.options.grace);
            self.drops.push_back(now);
            if self.drops.len() >= 8 && self.drops.len() * 10 > self.clients.len() + self.drops.len() {
                self.storm_until = Some(now + self.options.lease);
            }
        }
    }
}
