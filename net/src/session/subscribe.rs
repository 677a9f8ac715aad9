//! Subscriptions: who wants which data id, what the data nodes are asked for, and what comes back.

use std::collections::BTreeSet;

use slotcast_engine::{
    diff::Diff,
    error::Refusal,
    id::{DatumKey, Nanos, Revision, SlotId},
};

use crate::{
    session::{
        cache::{Applied, Datum, Lineage, Resumed, Waiting},
        client::{AWAITING, Client, Subscription, VACANT},
        core::{Peer, Session},
        heartbeats::Word,
        moves::Again,
        routes::{Links, Route, SlotRoutes},
        trace::Trace,
    },
    wire::{
        Message,
        message::{SubscribeItem, write_diff},
    },
};

/// Answers that do not reach what a subscriber claims to hold, after which the claim is of a history that is gone: if the
/// leader has led for a lease by then, and the control plane knows of no other.
const IN_VAIN_MAX: u32 = 16;

impl Session {
    /// A client wants data ids.
    pub(super) fn subscribe(&mut self, index: usize, items: Vec<SubscribeItem>) {
        let most = self.config.subscriptions_max as usize;
        if let Some(client) = self.client(index)
            && client.subscriptions.is_empty()
        {
            // Most clients subscribe once: no room beyond that, which a growing list would have.
            client.subscriptions.reserve_exact(items.len().min(most));
        }
        for item in items {
            let key = item.id.key();
            if let Err(refusal) = self.subscribe_one(index, item) {
                self.metrics.subscriptions_refused.get_or_create(&refusal.into()).inc();
                if let Some(client) = self.client(index) {
                    Message::SubscribeRefused { datum: key, code: refusal.code() }.write(&mut client.out);
                }
                self.mark_dirty(index as u32);
            }
        }
    }

    fn subscribe_one(&mut self, index: usize, item: SubscribeItem) -> Result<(), Refusal> {
        let key = item.id.key();
        let limit = self.config.subscriptions_max as usize;
        if self.published_names.get(&key).is_some_and(|(id, _)| *id != item.id) {
            return Err(Refusal::KeyCollision);
        }
        let known = self.cache.find(key);
        if let Some(datum) = known.and_then(|number| self.cache.get(number))
            && datum.id != item.id
        {
            return Err(Refusal::KeyCollision);
        }
        let Some(client) = self.client(index) else { return Ok(()) };
        let held =
            client.subscriptions.iter().position(|held| held.datum != VACANT && Some(held.datum) == known);
        let active = client.subscriptions.iter().filter(|held| held.datum != VACANT).count();
        if held.is_none() && active >= limit {
            return Err(Refusal::TooManySubscriptions);
        }
        let number = match known {
            Some(number) => number,
            None => {
                let number = self.cache.insert(item.id.clone(), self.routes.slot(key));
                if let Some(link) = self.routes.link_of(key) {
                    let ask = SubscribeItem { id: item.id, since: Revision::ZERO, digest: 0 };
                    self.links[link].subscribe(ask);
                }
                number
            }
        };
        if held.is_none() {
            self.attach(index, number);
        } else if let Some(datum) = self.cache.get_mut(number) {
            datum.waiting.retain(|waiting| waiting.client != index as u32);
        }
        self.settle(index as u32, number, item.since, item.digest);
        Ok(())
    }

    fn attach(&mut self, index: usize, number: u32) {
        let Some(datum) = self.cache.get_mut(number) else { return };
        let position = datum.subscribers.len() as u32;
        datum.subscribers.push(index as u32);
        datum.idle_since = None;
        let subscription = Subscription { datum: number, position, sent: AWAITING };
        self.metrics.subscriptions.inc();
        let Some(client) = self.client(index) else { return };
        match client.subscriptions.iter_mut().find(|held| held.datum == VACANT) {
            Some(vacant) => *vacant = subscription,
            None => client.subscriptions.push(subscription),
        }
    }

    /// Decides how a subscriber that claims to hold `since` is served.
    pub(super) fn settle(&mut self, index: u32, number: u32, since: Revision, digest: u64) {
        let Some(datum) = self.cache.get(number) else { return };
        let (known, slot, revision) = (datum.known, datum.slot, datum.revision);
        if let Some(link) = self.routes.of(slot).link {
            self.links[link].hear_epoch(since.epoch());
        }
        let resumed = if known { self.cache.resume(number, since, digest) } else { Resumed::Ahead };
        let sent = match resumed {
            Resumed::Snapshot => Revision::ZERO,
            Resumed::At(at) => at,
            Resumed::Current => {
                let (sent, key) = (revision, self.cache.get(number).map(|datum| datum.id.key()));
                if let (Some(client), Some(key)) = (self.client(index as usize), key) {
                    write_diff(&mut client.out, slotcast_engine::id::SlotId::NONE, |body| {
                        slotcast_engine::diff::write(body, key, (since, sent), &[], None, std::iter::empty());
                        0
                    });
                }
                self.metrics.resumed_current.inc();
                sent
            }
            Resumed::Merge if self.asks_what_was_removed(number, since) => {
                let waiting = Waiting { client: index, since, digest, asked: None, in_vain: 0 };
                self.await_answer(number, waiting);
                AWAITING
            }
            Resumed::Merge if !self.may_merge(number) => {
                // What it holds may be newer than what the leader has of an owner that has not come to it yet.
                let waiting = Waiting { client: index, since, digest, asked: None, in_vain: 0 };
                self.await_answer(number, waiting);
                self.cache.await_owners(number);
                self.metrics.resumes_deferred.inc();
                AWAITING
            }
            Resumed::Merge => {
                if let Some(datum) = self.cache.get_mut(number) {
                    let frame = datum.merge_frame(since);
                    if !datum.provisional.contains(&index) {
                        datum.provisional.push(index);
                    }
                    if let Some(client) = self.client(index as usize) {
                        client.out.extend_from_slice(&frame);
                    }
                }
                revision
            }
            Resumed::Ahead => {
                self.wait(index, number, since, digest);
                AWAITING
            }
        };
        if let Some(client) = self.client(index as usize)
            && let Some(held) = client.subscriptions.iter_mut().find(|held| held.datum == number)
        {
            held.sent = sent;
        }
        if sent != AWAITING {
            self.mark_dirty(index);
        }
    }

    /// Whether the leader has yet to tell what it has removed since a client's claim, as it can where a slot table is followed:
    /// revisions are of one history there. Asks it, unless another claim about the data id has to be answered first.
    fn asks_what_was_removed(&mut self, number: u32, claim: Revision) -> bool {
        let Some(datum) = self.cache.get_mut(number).filter(|_| self.following.is_some()) else {
            return false;
        };
        let Route { link: Some(link), epoch, .. } = self.routes.of(datum.slot) else { return false };
        let leader = (link, epoch);
        let link = &mut self.links[link];
        match datum.traces.of(claim, leader) {
            Trace::Known => return false,
            // Who has no leader to ask does not wait for one.
            _ if !link.is_up() => return false,
            Trace::Wait => {}
            Trace::Ask => {
                let question = link.ask(SubscribeItem { id: datum.id.clone(), since: claim, digest: 0 });
                datum.traces.ask(claim, leader, question);
                self.metrics.claims_asked.inc();
            }
        }
        true
    }

    fn await_answer(&mut self, number: u32, waiting: Waiting) {
        if let Some(datum) = self.cache.get_mut(number) {
            debug_assert!(datum.waiting.last().is_none_or(|last| last.client != waiting.client));
            datum.waiting.push(waiting);
        }
    }

    fn wait(&mut self, index: u32, number: u32, since: Revision, digest: u64) {
        let follows = self.following.is_some();
        let Some(datum) = self.cache.get_mut(number) else { return };
        let link = self.routes.of(datum.slot).link.filter(|_| datum.known);
        let asked = link.map(|link| {
            let link = &mut self.links[link];
            datum.traces.forget_question();
            let since = datum.since((!follows).then_some(link.run));
            link.ask(SubscribeItem { id: datum.id.clone(), since, digest: 0 })
        });
        self.await_answer(number, Waiting { client: index, since, digest, asked, in_vain: 0 });
    }

    /// Whether somebody from elsewhere may be told all that is listed. It may be older than what was told elsewhere, also at a revision
    /// of this leader, until the owners of it have been heard of there, or their leases have ended. Who has no leader to ask does
    /// not wait for one.
    fn may_merge(&self, number: u32) -> bool {
        let Some(datum) = self.cache.get(number).filter(|_| self.following.is_some()) else { return true };
        let Some(link) = self.routes.of(datum.slot).link else { return true };
        !self.links[link].is_up() || is_vouched_by_owners(datum, &self.links, &self.routes)
    }

    /// Serves those who waited for owners that are known by now.
    pub(super) fn serve_awaiting(&mut self, now: Nanos) {
        let (links, routes) = (&self.links, &self.routes);
        let due = self.cache.owners_known(|datum| is_vouched_by_owners(datum, links, routes));
        due.into_iter().for_each(|number| self.settle_waiting(number, now));
    }

    /// A client no longer wants data ids.
    pub(super) fn unsubscribe(&mut self, index: usize, keys: &[DatumKey], now: Nanos) {
        for key in keys {
            let Some(number) = self.cache.find(*key) else { continue };
            let Some(client) = self.client(index) else { return };
            let Some(held) = client.subscriptions.iter_mut().find(|held| held.datum == number) else {
                continue;
            };
            let subscription =
                std::mem::replace(held, Subscription { datum: VACANT, position: 0, sent: Revision::ZERO });
            self.detach(index as u32, subscription, now);
        }
    }

    /// A client is gone: so are its subscriptions.
    pub(super) fn drop_subscriptions(&mut self, index: u32, client: &Client, now: Nanos) {
        for subscription in client.subscriptions.iter().filter(|held| held.datum != VACANT) {
            self.detach(index, *subscription, now);
        }
    }

    fn detach(&mut self, index: u32, subscription: Subscription, now: Nanos) {
        let number = subscription.datum;
        let Some(datum) = self.cache.get_mut(number) else { return };
        self.metrics.subscriptions.dec();
        datum.waiting.retain(|waiting| waiting.client != index);
        datum.provisional.retain(|client| *client != index);
        let position = subscription.position as usize;
        debug_assert_eq!(datum.subscribers.get(position), Some(&index));
        datum.subscribers.swap_remove(position);
        let moved = datum.subscribers.get(position).copied();
        if datum.subscribers.is_empty() {
            datum.idle_since = Some(now);
            self.idle.push_back((now, number));
        }
        if let Some(moved) = moved
            && let Some(client) = self.client(moved as usize)
            && let Some(held) = client.subscriptions.iter_mut().find(|held| held.datum == number)
        {
            held.position = position as u32;
        }
    }

    /// Data ids that nobody has wanted for a while are no longer asked for.
    pub(super) fn drop_idle_datums(&mut self, now: Nanos) {
        while let Some((since, number)) = self.idle.front().copied() {
            if now.since(since) < self.config.datum_linger {
                break;
            }
            self.idle.pop_front();
            if self.cache.get(number).is_some_and(|datum| datum.idle_since == Some(since))
                && let Some(datum) = self.cache.remove(number)
                && let Some(link) = self.routes.of(datum.slot).link
            {
                self.links[link].send(&Message::Unsubscribe(vec![datum.id.key()]));
            }
        }
    }

    /// A link is up: ask for every data id of that shard, from where the cache stands if the shard can go on from there.
    pub(super) fn ask_all(&mut self, number: usize) {
        let follows = self.following.is_some();
        let (cache, routes, link) = (&mut self.cache, &self.routes, &mut self.links[number]);
        for (_, datum) in cache.iter_mut().filter(|(_, datum)| routes.of(datum.slot).link == Some(number)) {
            datum.traces.forget_question();
            let since = datum.since((!follows).then_some(link.run));
            link.subscribe(SubscribeItem { id: datum.id.clone(), since, digest: 0 });
        }
    }

    /// A data node will not serve a data id under this name, or does not know that it is to.
    pub(super) fn interest_refused(&mut self, link: usize, key: DatumKey, code: u16, now: Nanos) {
        let Some(number) = self.cache.find(key) else { return };
        let Some(datum) = self.cache.get(number) else { return };
        let refusal = Refusal::from_code(code).unwrap_or(Refusal::RecordInvalid);
        if self.routes.of(datum.slot).link != Some(link) {
            // The slot has another leader, who has been asked.
            return;
        }
        if refusal == Refusal::SlotMoved && self.following.is_some() {
            if let Some(datum) = self.cache.get_mut(number) {
                datum.traces.forget_question();
            }
            return self.defer(link, key, Again::Interest(key), now);
        }
        for index in datum.subscribers.clone() {
            self.metrics.subscriptions_refused.get_or_create(&refusal.into()).inc();
            if let Some(client) = self.client(index as usize) {
                Message::SubscribeRefused { datum: key, code }.write(&mut client.out);
                for held in client.subscriptions.iter_mut().filter(|held| held.datum == number) {
                    *held = Subscription { datum: VACANT, position: 0, sent: Revision::ZERO };
                }
                self.metrics.subscriptions.dec();
            }
            self.mark_dirty(index);
        }
        self.cache.remove(number);
    }

    /// A diff or snapshot from a data node.
    pub(super) fn take_diff(&mut self, number: usize, diff: &Diff<'_>, now: Nanos) {
        self.metrics.diffs_received.inc();
        let Some(cached) = self.cache.find(diff.datum) else { return };
        let slot = self.routes.slot(diff.datum);
        let (route, epoch) = (self.routes.of(slot), diff.to.epoch());
        let is_leader = route.link == Some(number) && epoch >= route.epoch;
        if !is_leader && !crate::faults::no_epoch_check() {
            // Also the leader may have said it when it led before: what another has led to since is not in it.
            self.metrics.diffs_of_former_leaders.inc();
            if route.link == Some(number) && diff.is_snapshot {
                // It will lead, or lead again, and go on from what it has answered here.
                self.cache.doubt(cached);
            }
            return;
        }
        let applied = if self.following.is_some() {
            // Who leads in an epoch that the table here does not know has not been heard on whose absence counts.
            let word = Word::of(&self.links, slot, &route).map(|word| word.about(epoch, &route));
            let registrations = &self.registrations;
            let accounts_for = |owner| word.as_ref().is_some_and(|word| word.accounts_for(owner));
            let may_remove = |owner, register| {
                if owner == self.config.id {
                    // What was acknowledged is not sent again to a new leader, which may still lack it.
                    return !registrations.holds((diff.datum, register));
                }
                accounts_for(owner)
            };
            self.cache.apply(cached, diff, Lineage::Leader, may_remove, accounts_for)
        } else {
            let link = &self.links[number];
            let accounts_for =
                |owner| link.settled || link.confirmed.contains_key(&owner) || owner == self.config.id;
            self.cache.apply(
                cached,
                diff,
                Lineage::Run(link.run),
                |owner, _| accounts_for(owner),
                accounts_for,
            )
        };
        self.links[number].epoch_seen = self.links[number].epoch_seen.max(epoch);
        match applied {
            Applied::Changed => {
                self.insight.changed(diff.datum);
                self.diff_received_at.get_or_insert(now);
                self.notify(cached);
            }
            Applied::Amended => {
                self.metrics.lists_amended.inc();
                self.insight.changed(diff.datum);
                self.diff_received_at.get_or_insert(now);
                self.notify(cached);
                self.amend(cached);
            }
            Applied::Contradiction(is_new) => {
                self.metrics.diff_contradictions.inc();
                if is_new {
                    self.ask_whole(number, cached);
                    let id = self.cache.get(cached).map(|datum| datum.id.to_string());
                    let (node, revision) = (self.links[number].addr, diff.to);
                    tracing::warn!(
                        shard = number, %node, slot = slot.0, %revision, data_id = id,
                        "a data node tells two lists of one revision: the second is not shown, the whole is asked for"
                    );
                }
            }
            Applied::Unchanged => {
                self.metrics.diffs_without_change.inc();
            }
            Applied::Older => {
                self.metrics.diffs_older.inc();
            }
            Applied::Gap => {
                self.metrics.diff_gaps.inc();
                self.ask_on(number, cached);
            }
        }
        let is_taken = !matches!(applied, Applied::Gap | Applied::Contradiction(_));
        let answered = self.links[number].answered;
        if is_taken && let Some(datum) = self.cache.get_mut(cached) {
            datum.traces.hear((number, route.epoch), answered, diff);
        }
        let is_vouched = route.is_vouched && (self.following.is_none() || epoch == route.epoch);
        if is_vouched && is_taken {
            let provisional = self.cache.get_mut(cached).map(Datum::vouch).unwrap_or_default();
            provisional.into_iter().for_each(|index| self.send_whole(index, cached));
        }
        self.settle_waiting(cached, now);
    }

    /// Asks a data node for what lies between the list of a data id and what it has told: what was removed there, absence would not say.
    fn ask_on(&mut self, link: usize, number: u32) {
        let follows = self.following.is_some();
        if let Some(datum) = self.cache.get_mut(number) {
            datum.traces.forget_question();
            let link = &mut self.links[link];
            let since = datum.since((!follows).then_some(link.run));
            link.subscribe(SubscribeItem { id: datum.id.clone(), since, digest: 0 });
        }
    }

    /// Asks a data node for the whole list of a data id.
    pub(super) fn ask_whole(&mut self, link: usize, number: u32) {
        if let Some(datum) = self.cache.get_mut(number) {
            datum.traces.forget_question();
            let ask = SubscribeItem { id: datum.id.clone(), since: Revision::ZERO, digest: 0 };
            self.links[link].subscribe(ask);
        }
    }

    /// A list has changed without its revision: subscribers that were told of that revision get the list once more. Who came with a
    /// list from elsewhere, and may hold more than this one, gets it whole when the leader vouches for it.
    fn amend(&mut self, number: u32) {
        let Some(datum) = self.cache.get(number) else { return };
        let revision = datum.revision;
        let whole = datum.subscribers.iter().filter(|index| !datum.provisional.contains(index));
        for index in whole {
            let Some(Peer::Client(client)) = self.peers.get_mut(*index as usize) else { continue };
            let mut held = client.subscriptions.iter_mut().filter(|held| held.datum == number);
            if let Some(held) = held.find(|held| held.sent == revision) {
                held.sent = Revision::ZERO;
            }
        }
    }

    /// The leaders of slots have waited for everybody.
    pub(super) fn vouch(&mut self, slots: &BTreeSet<SlotId>) {
        for (index, number) in self.cache.vouch(slots) {
            self.send_whole(index, number);
        }
    }

    /// A subscriber that was told to keep what it holds gets the list as it is.
    fn send_whole(&mut self, index: u32, number: u32) {
        if let Some(client) = self.client(index as usize)
            && let Some(held) = client.subscriptions.iter_mut().find(|held| held.datum == number)
            && held.sent != AWAITING
        {
            held.sent = Revision::ZERO;
            self.mark_dirty(index);
        }
    }

    /// Every subscriber of a data id has something to get.
    fn notify(&mut self, number: u32) {
        let Some(datum) = self.cache.get(number) else { return };
        for index in &datum.subscribers {
            self.news.mark(*index);
        }
    }

    /// Answers those who waited for the data id to be known, or to reach their revision.
    fn settle_waiting(&mut self, number: u32, now: Nanos) {
        let follows = self.following.is_some();
        let Some(datum) = self.cache.get_mut(number) else { return };
        if !datum.known || datum.waiting.is_empty() {
            return;
        }
        let (revision, route) = (datum.revision, self.routes.of(datum.slot));
        let Some(link_number) = route.link else { return };
        for mut waiting in std::mem::take(&mut datum.waiting) {
            if !matches!(self.peers.get(waiting.client as usize), Some(Peer::Client(_))) {
                continue;
            }
            let mut since = waiting.since;
            if since > revision {
                let answered = self.links[link_number].answered;
                let fresh = waiting.asked.is_some_and(|question| question <= answered);
                waiting.in_vain += u32::from(fresh);
                let waits = if follows {
                    !(waiting.in_vain >= IN_VAIN_MAX && route.is_vouched && self.is_in_touch())
                } else {
                    !fresh || self.links[link_number].demand_epoch(since.epoch())
                };
                if waits {
                    // What came is older than the question. Or it is an answer, and the claim is of a history that no
                    // longer exists: then a larger epoch has to be opened first, or the client would be led back. Who
                    // follows a table may also have heard of the next leader later than the client has.
                    if waiting.asked.is_none() || fresh {
                        waiting.asked = self.ask_again(number, link_number, now);
                    }
                    if let Some(datum) = self.cache.get_mut(number) {
                        datum.waiting.push(waiting);
                    }
                    continue;
                }
                since = Revision::ZERO;
            }
            self.settle(waiting.client, number, since, waiting.digest);
        }
    }

    /// Asks a data id's leader whether it has got further; returns the number of the question. Where a table is followed it is
    /// asked after a pause, for it is the table that has to change.
    fn ask_again(&mut self, number: u32, link: usize, now: Nanos) -> Option<u64> {
        let datum = self.cache.get(number)?;
        if self.following.is_some() {
            self.deferred.add(datum.slot, Again::Interest(datum.id.key()), now);
            return None;
        }
        let link = &mut self.links[link];
        let since = datum.since(Some(link.run));
        Some(link.ask(SubscribeItem { id: datum.id.clone(), since, digest: 0 }))
    }
}

/// Whether the leader of a cached list has said of the owners of all that it lists that they are accounted for.
fn is_vouched_by_owners(datum: &Datum, links: &Links, routes: &SlotRoutes) -> bool {
    let route = routes.of(datum.slot);
    let word = Word::of(links, datum.slot, &route).map(|word| word.about(datum.run as u32, &route));
    word.is_some_and(|word| datum.is_vouched_by(|owner| word.accounts_for(owner)))
}
