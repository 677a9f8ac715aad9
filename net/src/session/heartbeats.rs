//! Heartbeats: the session's lease, whether a shard holds what the session does, and whose absence counts there.

use std::collections::BTreeMap;

use slotcast_engine::{
    digest::{self, Digest},
    id::{DatumKey, Nanos, SessionId, SlotId},
};

use crate::{
    session::{
        core::Session,
        link::Link,
        routes::{Links, Route},
    },
    wire::Message,
};

/// What the leader of a slot has said about owners: whether it would list their registrations by now.
pub(super) struct Word<'a> {
    link: &'a Link,
    /// The promotion since when the slot is led here, if that is less than a lease ago.
    turn: Option<u64>,
    /// What was said was said of this slot, and by the leader that it has now.
    counts: bool,
}

impl<'a> Word<'a> {
    /// The word of a slot's leader, if it has one.
    pub(super) fn of(links: &'a Links, slot: SlotId, route: &Route) -> Option<Self> {
        let link = &links[route.link?];
        Some(Self {
            link,
            turn: link.unsettled.get(&slot).copied(),
            // Where routes are configured nothing moves, and both are 0.
            counts: route.since <= link.covered,
        })
    }

    /// The same word about what is of a leader epoch: nothing if that is another one than was spoken of.
    pub(super) fn about(self, epoch: u32, route: &Route) -> Self {
        Self { counts: self.counts && epoch == route.epoch, ..self }
    }

    /// Whether everybody has had the time to come.
    pub(super) fn is_final(&self) -> bool {
        self.counts && self.link.settled && self.turn.is_none()
    }

    /// Whether the registrations of `owner` are complete there, or its lease has ended.
    pub(super) fn accounts_for(&self, owner: SessionId) -> bool {
        let confirmed = self.link.confirmed.get(&owner);
        self.counts
            && match self.turn {
                Some(turn) => confirmed.is_some_and(|confirmed| *confirmed >= turn),
                None => self.link.settled || confirmed.is_some(),
            }
    }
}

/// A shard's answer to a heartbeat.
pub(super) struct Answer {
    pub(super) mark: u64,
    pub(super) confirmed: Vec<(SessionId, u64)>,
    pub(super) unsettled: Vec<(SlotId, u64)>,
    pub(super) settled: bool,
    pub(super) stale: bool,
    pub(super) differs: Option<Vec<(SlotId, Digest)>>,
}

impl Session {
    /// Tells the shard at intervals that this session lives, and the digest of what it should hold.
    pub(super) fn heartbeat(&mut self, number: usize, now: Nanos) {
        let follows = self.following.is_some();
        let (generation, table_epoch) = (self.routes.generation(), self.table_epoch());
        let Some(link) = self.links.get_mut(number) else { return };
        if link.is_up() && now >= link.heartbeat_due(self.config.heartbeat_interval) {
            let interval =
                if follows { self.config.heartbeat_idle_interval } else { self.config.heartbeat_interval };
            link.beat(generation, table_epoch, interval, now);
            self.metrics.link_writes_in_flight.set(link.in_flight() as i64);
        }
    }

    /// The answer to a heartbeat. Where the digests differ, the slots that do are looked at closer.
    pub(super) fn heartbeat_answered(&mut self, number: usize, answer: Answer, now: Nanos) {
        let link = &mut self.links[number];
        link.mark = answer.mark;
        let covered = link.beat_answered(!answer.stale && answer.differs.is_none());
        if answer.stale {
            // It speaks of other slots than this session does, or of other leaders of them.
            self.metrics.stale_heartbeats.inc();
            link.beat_soon(now);
            return;
        }
        link.covered = covered;
        link.confirmed = answer.confirmed.into_iter().collect();
        link.unsettled = answer.unsettled.into_iter().collect();
        link.settled = answer.settled || link.settled && self.following.is_none();
        self.hear_word(number);
        self.serve_awaiting(now);
        let routes = &self.routes;
        self.deferred.release(|slot| routes.is_covered(slot, number, covered));
        let Some(theirs) = answer.differs else { return };
        self.metrics.digest_mismatches.inc();
        let theirs: BTreeMap<SlotId, Digest> = theirs.into_iter().collect();
        let differences = digest::compare(&self.routes.digests_of(number), &theirs);
        let slots = differences.added.into_iter().chain(differences.updated).chain(differences.removed);
        let mut count = 0;
        for slot in slots {
            // A slot that came or went since the heartbeat is a matter of the next.
            if self.routes.is_covered(slot, number, covered) {
                self.links[number].send(&Message::DigestRequest(slot));
                count += 1;
            }
        }
        if count == 0 {
            self.links[number].beat_soon(now);
        } else {
            self.links[number].await_repair(count);
        }
    }

    /// A shard has told whose registrations it has: lists that it vouches for now are, and what was kept although it is absent
    /// there is asked for once more where its owner is accounted for.
    fn hear_word(&mut self, number: usize) {
        let links = &self.links;
        let is_final = |slot, route: &Route| Word::of(links, slot, route).is_some_and(|word| word.is_final());
        let vouched = self.routes.vouch(number, is_final);
        if !vouched.is_empty() {
            self.vouch(&vouched);
        }
        let (links, routes) = (&self.links, &self.routes);
        let due = self.cache.retained_due(|slot, owner| {
            let route = routes.of(slot);
            let word = Word::of(links, slot, &route).filter(|_| route.link == Some(number));
            word.is_some_and(|word| word.accounts_for(owner))
        });
        due.into_iter().for_each(|datum| self.ask_whole(number, datum));
    }

    /// The shard's digests per data id of one slot: whatever differs is told again, completely.
    pub(super) fn repair(
        &mut self,
        number: usize,
        slot: SlotId,
        digests: Vec<(DatumKey, Digest)>,
        now: Nanos,
    ) {
        if self.routes.is_covered(slot, number, u64::MAX) {
            self.tell_differing(slot, digests);
        }
        self.links[number].repaired(now);
    }

    fn tell_differing(&mut self, slot: SlotId, digests: Vec<(DatumKey, Digest)>) {
        let (first, last) = self.routes.keys(slot);
        let mine = self.registrations.datum_digests(first, last);
        let differences = digest::compare(&mine, &digests.into_iter().collect());
        for datum in differences.added.into_iter().chain(differences.updated).chain(differences.removed) {
            self.metrics.repaired_datums.inc();
            self.tell_all_of(datum);
        }
    }
}
