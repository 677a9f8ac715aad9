//! Slots that move: what a session tells the new leader, and what it does while nobody leads or leaders disagree.
//!
//! A new leader is told, in this order: the writes of which no answer is known, a heartbeat, and the interests. What the
//! former leader had acknowledged is not sent again. The heartbeat's digest tells whether the new one has it; what it
//! lacks is repaired like any other difference.
//!
//! Outcomes, diffs and refusals of a slot count only from the link that leads it, in the epoch in which they were asked for.
//! Everything that was asked for is asked again of the next leader, so nothing is lost by that; and since a write is held
//! until its outcome counts, none is acknowledged twice.

use std::collections::{BTreeMap, BTreeSet};

use slotcast_engine::id::{DatumKey, Nanos, RegisterId, SlotId};

use crate::{
    io::ring::Sockets,
    session::{
        core::{Peer, Session},
        link::Link,
        registrations::Acknowledged,
        routes::{Change, LinkKey, Route},
    },
    wire::{Message, message::SubscribeItem, slot_table::SlotTable},
};

/// First and longest pause before a data node that does not know yet that it leads a slot is asked again.
const RETRY: (u64, u64) = (Nanos::SECOND / 50, Nanos::SECOND);
/// Data ids in one unsubscribe frame.
const UNSUBSCRIBE_KEYS: usize = 4096;

/// What a slot's leader has refused because it does not know that it leads.
#[derive(Default)]
struct Refused {
    at: Nanos,
    pause: u64,
    writes: BTreeSet<(DatumKey, RegisterId)>,
    persistents: BTreeSet<u64>,
    datums: BTreeSet<DatumKey>,
}

impl Refused {
    fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.persistents.is_empty() && self.datums.is_empty()
    }
}

/// Something to be asked of a slot's leader again.
pub(super) enum Again {
    Write(DatumKey, RegisterId),
    Persistent(u64),
    Interest(DatumKey),
}

/// What waits to be asked again, by slot.
#[derive(Default)]
pub(super) struct Deferred {
    slots: BTreeMap<SlotId, Refused>,
}

impl Deferred {
    /// Asks again after a pause that grows until something of the slot is taken.
    pub(super) fn add(&mut self, slot: SlotId, again: Again, now: Nanos) {
        let refused = self.slots.entry(slot).or_default();
        if refused.is_empty() {
            refused.pause = (refused.pause * 2).clamp(RETRY.0, RETRY.1);
            refused.at = now.after(refused.pause);
        }
        match again {
            Again::Write(datum, register) => refused.writes.insert((datum, register)),
            Again::Persistent(number) => refused.persistents.insert(number),
            Again::Interest(datum) => refused.datums.insert(datum),
        };
    }

    /// The slot has another leader, and that is told everything.
    fn forget(&mut self, slot: SlotId) {
        self.slots.remove(&slot);
    }

    /// The leader knows that it leads: nothing waits any longer.
    pub(super) fn release(&mut self, is_led: impl Fn(SlotId) -> bool) {
        for (_, refused) in self.slots.iter_mut().filter(|(slot, _)| is_led(**slot)) {
            (refused.at, refused.pause) = (Nanos(0), 0);
        }
    }

    /// Slots of which something is due.
    fn due(&mut self, now: Nanos) -> Vec<(SlotId, Refused)> {
        // A slot that was released and has nothing to ask is done with.
        self.slots.retain(|_, refused| !refused.is_empty() || refused.pause > 0);
        let due = self.slots.iter_mut().filter(|(_, refused)| !refused.is_empty() && refused.at <= now);
        // The pause stays for the next refusal.
        due.map(|(slot, refused)| {
            let kept = Refused { pause: refused.pause, ..Refused::default() };
            (*slot, std::mem::replace(refused, kept))
        })
        .collect()
    }

    /// When something is due next.
    pub(super) fn wake_at(&self) -> Nanos {
        let waiting = self.slots.values().filter(|refused| !refused.is_empty());
        waiting.map(|refused| refused.at).min().unwrap_or(Nanos(u64::MAX))
    }

    /// Writes and interests that wait.
    pub(super) fn len(&self) -> usize {
        let count =
            |refused: &Refused| refused.writes.len() + refused.persistents.len() + refused.datums.len();
        self.slots.values().map(count).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

impl Session {
    /// Goes by a newer slot table.
    pub(super) fn take_table(&mut self, table: &SlotTable, now: Nanos, sockets: &mut dyn Sockets) {
        let wanted = LinkKey::all(table);
        wanted.iter().for_each(|key| self.links.add(*key));
        let changes = self.routes.follow(table, &mut self.links);
        let dropped = self.links.retain(&wanted);
        tracing::info!(
            epoch = table.epoch,
            nodes = table.nodes.len(),
            slots_moved = changes.len(),
            links_dropped = dropped.len(),
            "following a newer slot table"
        );
        dropped.into_iter().for_each(|link| self.drop_link(link, sockets));
        self.metrics.table_epoch.set(i64::try_from(table.epoch).unwrap_or(i64::MAX));
        self.metrics.route_changes.inc_by(changes.len() as u64);
        changes.iter().for_each(|change| self.deferred.forget(change.slot));
        self.withdraw_interests(&changes);
        self.tell_leaders(&changes, now);
        self.observe_links();
    }

    fn drop_link(&mut self, link: Link, sockets: &mut dyn Sockets) {
        debug_assert_eq!(link.slots_led, 0, "its node is no longer in the table");
        if let Some(conn) = link.conn {
            self.peers[conn.index()] = Peer::None;
            sockets.close(conn, true);
        }
    }

    /// A former leader that still lives need not go on telling what will not be listened to.
    fn withdraw_interests(&mut self, changes: &[Change]) {
        let mut former: BTreeMap<SlotId, usize> = BTreeMap::new();
        for Change { slot, from, to } in changes {
            if let Some(link) = from.link.filter(|link| to.link != Some(*link))
                && self.links.get_mut(link).is_some_and(|link| link.is_up())
            {
                former.insert(*slot, link);
            }
        }
        if former.is_empty() {
            return;
        }
        let mut keys: BTreeMap<usize, Vec<DatumKey>> = BTreeMap::new();
        for (_, datum) in self.cache.iter() {
            if let Some(link) = former.get(&datum.slot) {
                keys.entry(*link).or_default().push(datum.id.key());
            }
        }
        for (link, keys) in keys {
            for keys in keys.chunks(UNSUBSCRIBE_KEYS) {
                self.links[link].send(&Message::Unsubscribe(keys.to_vec()));
            }
        }
    }

    /// Tells new leaders what they have to know. One whose link is not up is told when it is.
    fn tell_leaders(&mut self, changes: &[Change], now: Nanos) {
        let slots: BTreeSet<SlotId> =
            changes.iter().filter(|change| change.to.link.is_some()).map(|change| change.slot).collect();
        if slots.is_empty() {
            return;
        }
        let resent: usize = slots.iter().map(|slot| self.resend(*slot)).sum();
        let resent = resent + self.resend_persistents(&slots);
        self.metrics.moved_writes_resent.inc_by(resent as u64);
        let leaders: BTreeSet<usize> = changes.iter().filter_map(|change| change.to.link).collect();
        for link in leaders {
            self.links[link].next_heartbeat = Nanos(0);
            self.heartbeat(link, now);
        }
        let numbers: Vec<u32> = self
            .cache
            .iter()
            .filter(|(_, datum)| slots.contains(&datum.slot))
            .map(|(number, _)| number)
            .collect();
        numbers.into_iter().for_each(|number| self.ask_leader(number));
    }

    /// Sends a slot's ephemeral writes without an answer to its leader; returns how many went out.
    fn resend(&mut self, slot: SlotId) -> usize {
        let Route { link: Some(link), epoch, .. } = self.routes.of(slot) else { return 0 };
        let link = &mut self.links[link];
        if !link.is_up() {
            return 0;
        }
        let (first, last) = self.routes.keys(slot);
        let mut count = 0;
        for (key, held) in self.registrations.unanswered(first, last) {
            let id = self.published_names.get(&key.0).map(|(id, _)| id);
            count += link.write(id, held.writes(key, epoch, Acknowledged::IsVoid));
        }
        count
    }

    fn resend_persistents(&mut self, slots: &BTreeSet<SlotId>) -> usize {
        let mut count = 0;
        for (number, write) in self.persistents.iter() {
            let slot = self.routes.slot(write.datum);
            if let Route { link: Some(link), epoch, .. } = self.routes.of(slot)
                && slots.contains(&slot)
                && self.links[link].is_up()
            {
                let id = write.id.as_ref();
                self.links[link].write_persistent((number, epoch), write.datum, id, &write.entry);
                count += 1;
            }
        }
        count
    }

    /// Asks a data id's leader for what the cache lacks. Whoever waits for more than that waits for this answer.
    pub(super) fn ask_leader(&mut self, number: u32) {
        let Some(datum) = self.cache.get_mut(number) else { return };
        let Some(link) = self.routes.of(datum.slot).link else { return };
        datum.traces.forget_question();
        let (known, since) = (datum.known, datum.since(None));
        let item = SubscribeItem { id: datum.id.clone(), since, digest: 0 };
        let link = &mut self.links[link];
        if datum.waiting.is_empty() || !known {
            link.subscribe(item);
            return;
        }
        let question = link.ask(item);
        datum.waiting.iter_mut().for_each(|waiting| waiting.asked = Some(question));
    }

    /// Asks the leaders again that did not know of it, or could not answer, when they were asked.
    pub(super) fn retry_deferred(&mut self, now: Nanos) {
        if self.deferred.is_empty() {
            return;
        }
        for (slot, refused) in self.deferred.due(now) {
            if !self.routes.of(slot).link.is_some_and(|link| self.links[link].is_up()) {
                // Everything is told when it comes up.
                continue;
            }
            self.metrics.deferred_retries.inc();
            refused.writes.into_iter().for_each(|key| self.forward(key));
            refused.persistents.into_iter().for_each(|number| self.forward_persistent(number));
            for datum in refused.datums {
                if let Some(number) = self.cache.find(datum) {
                    self.ask_leader(number);
                }
            }
        }
    }

    /// A link's shard does not lead a slot that this session takes it to lead: one of the two has an old table. It is asked
    /// again after a pause, and a heartbeat tells who is behind.
    pub(super) fn defer(&mut self, link: usize, datum: DatumKey, again: Again, now: Nanos) {
        self.metrics.slot_moved_answers.inc();
        self.deferred.add(self.routes.slot(datum), again, now);
        self.links[link].doubt();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Nanos {
        Nanos(ms * 1_000_000)
    }

    #[test]
    fn what_is_refused_again_waits_longer_and_what_is_released_not_at_all() {
        let (mut deferred, slot) = (Deferred::default(), SlotId(3));
        let (mut now, mut pauses) = (at(0), Vec::new());
        for _ in 0..9 {
            deferred.add(slot, Again::Interest(DatumKey(1)), now);
            deferred.add(slot, Again::Write(DatumKey(1), RegisterId(2)), now);
            let due = deferred.wake_at();
            assert!(deferred.due(Nanos(due.0 - 1)).is_empty());
            let told = deferred.due(due);
            assert_eq!((told.len(), told[0].1.datums.len(), told[0].1.writes.len()), (1, 1, 1));
            pauses.push(due.since(now) / 1_000_000);
            now = due;
        }
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1000, 1000, 1000]);
        assert_eq!(deferred.wake_at(), Nanos(u64::MAX), "nothing waits");
        deferred.add(slot, Again::Persistent(1), now);
        deferred.release(|other| other == slot);
        assert_eq!(deferred.due(now).len(), 1);
        deferred.release(|other| other == slot);
        assert!(deferred.due(now).is_empty() && deferred.is_empty());
        deferred.add(slot, Again::Persistent(1), now);
        assert_eq!(deferred.wake_at(), now.after(RETRY.0), "the pause begins anew");
    }
}
