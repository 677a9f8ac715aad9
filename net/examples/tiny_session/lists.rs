//! Lists: what the shards tell, and who is told (sections 4 and 5).

use super::*;

impl Core {
    pub(super) fn take_diff(&mut self, shard: usize, diff: &Diff<'_>) {
        let key = diff.datum;
        let tell_returned = self.readers(key).any(|subscription| subscription.provisional);
        let (own, link) = (self.id, &mut self.links[shard]);
        link.epoch_seen = link.epoch_seen.max(diff.to.epoch());
        let Some(list) = self.lists.get_mut(&key) else { return };
        if !diff.is_snapshot && (!list.known || list.run != link.run || diff.from > list.revision) {
            link.subscribe(&list.id, Revision::ZERO);
            return;
        }
        if list.known && diff.to < list.revision {
            return;
        }
        let accounted = |owner| link.accounts_for(owner, own);
        let (removes, puts) = list.take_in(diff, accounted, tell_returned);
        let first = !std::mem::replace(&mut list.known, true);
        (list.revision, list.run) = (diff.to, link.run);
        if first {
            list.pushed = list.revision;
        } else if !removes.is_empty() || !puts.is_empty() {
            let frame = list.frame(0, list.pushed, &removes, &puts);
            list.pushed = list.revision;
            for client in self.clients.values_mut() {
                if client.subscriptions.get(&key).is_some_and(|held| held.claim.is_none()) {
                    client.give(frame.clone());
                }
            }
        }
        let waits = |client: &Client| client.subscriptions.get(&key).is_some_and(|held| held.claim.is_some());
        let waiting: Vec<u64> =
            self.clients.iter().filter(|(_, client)| waits(client)).map(|(client, _)| *client).collect();
        waiting.into_iter().for_each(|client| self.answer(client, key));
        self.vouch(shard);
    }

    pub(super) fn readers(&self, key: DatumKey) -> impl Iterator<Item = &Subscription> {
        self.clients.values().filter_map(move |client| client.subscriptions.get(&key))
    }

    /// The owners of some retained records are accounted for by now: a fresh answer decides.
    pub(super) fn ask_retained(&mut self, shard: usize) {
        let (own, link) = (self.id, &mut self.links[shard]);
        for list in self.lists.values().filter(|list| list.shard == shard) {
            if list.records.values().any(|held| held.retained && link.accounts_for(held.owner, own)) {
                link.subscribe(&list.id, Revision::ZERO);
            }
        }
    }

    /// The run has settled: clients that were told to keep what they hold get the list as it is.
    pub(super) fn vouch(&mut self, shard: usize) {
        let link = &self.links[shard];
        for (key, list) in self.lists.iter().filter(|(_, list)| list.shard == shard) {
            if !link.settled || list.run != link.run || list.has_retained() {
                continue;
            }
            for client in self.clients.values_mut() {
                if let Some(held) = client.subscriptions.get_mut(key).filter(|held| held.provisional) {
                    held.provisional = false;
                    client.give(list.snapshot());
                }
            }
        }
    }

    pub(super) fn interest_refused(&mut self, datum: DatumKey, code: u16) {
        self.lists.remove(&datum);
        for client in self.clients.values_mut() {
            if client.subscriptions.remove(&datum).is_some() {
                let frame = frame_of(&Message::SubscribeRefused { datum, code });
                client.give(frame.clone());
            }
        }
    }
}
