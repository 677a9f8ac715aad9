//! What clients are told.

use std::collections::{BTreeMap, BTreeSet};

use slotcast_engine::{
    error::Refusal,
    id::{DataId, RegisterId, Revision},
};
use slotcast_net::client::Update;

use super::{
    LEASE, List, Oracle, SECOND, SLACK, UNSETTLED_MAX, names, short,
    wants::{Acknowledged, Removal},
};
use crate::simulate::{
    hosts::SLOTS,
    plan::Shape,
    trace::{label, ms},
};

/// A data id as one subscriber sees it.
#[derive(Default)]
pub(super) struct View {
    pub(super) revision: Revision,
    pub(super) list: BTreeMap<RegisterId, usize>,
    /// The place of the term that it is of.
    place: usize,
    resuming: bool,
    /// What it held when its client last connected: what it may have been told to keep.
    brought: BTreeSet<RegisterId>,
}

impl View {
    /// Its client has a new connection.
    pub(super) fn connected(&mut self) {
        self.resuming = self.revision > Revision::ZERO;
        self.brought = self.list.keys().copied().collect();
    }
}

/// One list that a subscriber was told.
struct Told<'a> {
    client: usize,
    datum: usize,
    revision: Revision,
    /// The term of that revision.
    term: usize,
    list: &'a BTreeMap<RegisterId, usize>,
}

impl Oracle {
    /// A client is told something.
    pub fn update(&mut self, client: usize, update: &Update) {
        self.seen.updates += 1;
        match update {
            Update::Snapshot { id, revision, instances } => {
                let list = instances.iter().map(|(register, it)| (*register, Some(&it.payload[..])));
                self.view(client, id, *revision, true, list.collect());
            }
            Update::Diff { id, revision, changed, removed } => {
                let changes = changed.iter().map(|(register, it)| (*register, Some(&it.payload[..])));
                let removes = removed.iter().map(|register| (*register, None));
                self.view(client, id, *revision, false, removes.chain(changes).collect());
            }
            Update::Acknowledged { registration, revision } => {
                self.acknowledged(client, registration.register, *revision);
            }
            Update::Refused { registration, refusal } => {
                let datum = self.regs.get(&registration.register).map(|reg| reg.datum);
                let what = short(registration.register);
                self.fail(datum, format!("client {client}: {what} is refused: {refusal}"));
            }
            Update::NotDurable { registration, refusal } => {
                if !self.regs.get(&registration.register).is_some_and(super::Reg::is_persistent) {
                    let text = format!("client {client}: what is not persistent hears {refusal}");
                    self.fail(None, text);
                }
                let by_disk = *refusal == Refusal::StorageFailed;
                self.seen.persistent_refused += u64::from(by_disk);
                self.seen.not_durable_yet += u64::from(!by_disk);
            }
            Update::SubscriptionRefused { id, refusal } => {
                let datum = self.datum_of(id);
                self.fail(Some(datum), format!("client {client}: subscription refused: {refusal}"));
            }
            Update::Connected(session) => {
                self.say(None, || format!("client {client} is welcome at session {}", session.0));
            }
            Update::Disconnected(reason) => {
                self.say(None, || format!("client {client} is disconnected: {reason}"));
            }
        }
    }

    fn view(
        &mut self,
        client: usize,
        id: &DataId,
        revision: Revision,
        is_snapshot: bool,
        changes: Vec<(RegisterId, Option<&[u8]>)>,
    ) {
        let datum = self.datum_of(id);
        let Some(view) = self.views.get_mut(&(client, datum)) else { return };
        let (revision_before, place_before, resuming) = (view.revision, view.place, view.resuming);
        let before = std::mem::take(&mut view.list);
        let mut list = if is_snapshot { BTreeMap::new() } else { before.clone() };
        let mut unknown = None;
        let mut echoed = None;
        for (register, payload) in changes {
            match payload {
                None => {
                    list.remove(&register);
                }
                Some(payload) => match self.content(register, payload) {
                    Some(content) => {
                        let was = list.insert(register, content);
                        echoed =
                            echoed.or(was.filter(|was| !is_snapshot && *was == content).map(|_| register));
                    }
                    None => unknown = Some(label(payload)),
                },
            }
        }
        let kind = if is_snapshot { "snapshot" } else { "diff" };
        self.say(Some(datum), || format!("client {client}: {kind} at {revision}: {}", names(list.keys())));
        if let Some(echoed) = echoed {
            let text = format!("client {client} is told {} again, which has not changed", short(echoed));
            self.fail(Some(datum), text);
        }
        if let Some(unknown) = unknown {
            self.fail(Some(datum), format!("client {client} is told {unknown}, which nobody published"));
        }
        if resuming && is_snapshot {
            self.seen.resumed_by_snapshot += 1;
        } else if resuming {
            self.seen.resumed_by_diff += 1;
        }
        if revision < revision_before || (revision == revision_before && !is_snapshot && !resuming) {
            let text = format!("client {client} goes from {revision_before} back to {revision}");
            self.fail(Some(datum), text);
        }
        let Some((term, truth)) = self.truth_for(datum, revision, &list) else {
            if self.may_be_unseen(datum, revision) {
                if let Some(view) = self.views.get_mut(&(client, datum)) {
                    (view.revision, view.list, view.resuming) = (revision, list, false);
                }
                return;
            }
            self.fail(Some(datum), format!("client {client} is at {revision}, which never was"));
            return;
        };
        let told = Told { client, datum, revision, term, list: &list };
        self.check_complete(&told, &truth);
        self.check_extra(&told, &truth);
        for register in before.keys().filter(|register| !list.contains_key(register)) {
            self.check_absent(&told, *register);
        }
        let place = self.place(datum, term);
        for (register, content) in &list {
            let earlier = before.get(register);
            if earlier.is_some_and(|earlier| content < earlier) {
                let reg = &self.regs[register];
                // Whoever told the newer content, and has confirmed here since, has told it again; of what is persistent no
                // session gives an account.
                let acknowledged = reg.acknowledged.filter(|it| it.content > *content);
                let knows = self.shape == Shape::Cluster
                    && !reg.is_persistent()
                    && acknowledged.is_some_and(|it| self.terms[term].confirmed.contains_key(&it.session));
                let may_know = reg.is_persistent()
                    && acknowledged.is_some_and(|it| !self.may_be_lost(term, datum, it.revision));
                // No session tells again what is persistent: when this leader has waited for everybody, its content counts.
                // What is persistent is pushed before it is durable. Lost with the leader that told it, and not acknowledged, it was
                // never in effect; no session accounts for it, and who comes to another is told what every leader has to have.
                let is_lost = reg.is_persistent()
                    && earlier.is_some_and(|earlier| {
                        let is_told = reg.confirmed >= Some(*earlier);
                        (self.is_unclean(datum) || !is_told)
                            && !self.has_known(datum, term, *register, *earlier)
                    });
                let may_return = is_lost || place > place_before && self.has_stale_holder(reg.client);
                if !knows && !may_know && may_return {
                    self.seen.stale_contents += 1;
                    continue;
                }
                let text = format!("client {client} sees {} with older content", short(*register));
                self.fail(Some(datum), text);
            }
        }
        if let Some(view) = self.views.get_mut(&(client, datum)) {
            (view.revision, view.list, view.place, view.resuming) = (revision, list, place, false);
        }
    }

    /// The list of this revision; where a run of a data node has reused it, the one that fits.
    fn truth_for(
        &self,
        datum: usize,
        revision: Revision,
        list: &BTreeMap<RegisterId, usize>,
    ) -> Option<(usize, List)> {
        let known = self.history.get(&(datum, revision))?;
        let fits = |(_, truth): &&(usize, List)| {
            truth.iter().all(|(register, held)| list.get(register) == Some(&held.content))
        };
        known.iter().rev().find(fits).or(known.last()).cloned()
    }

    /// Whether a revision may have been told in a turn that ended its epoch, so that nobody could look.
    fn may_be_unseen(&self, datum: usize, revision: Revision) -> bool {
        let slot = self.datums[datum].key().slot(SLOTS);
        self.unseen.get(&(slot, revision.epoch())).is_some_and(|seen| revision > *seen)
    }

    /// Promise 2.
    fn check_complete(&mut self, told: &Told<'_>, truth: &List) {
        let Told { client, datum, revision, term, list } = *told;
        for (register, held) in truth.iter() {
            let text = match list.get(register) {
                None => "lacks",
                Some(content) if self.may_be_kept((client, datum), term, (*register, *content), held) => {
                    self.seen.kept_contents += 1;
                    continue;
                }
                Some(content) if *content != held.content => "has other content of",
                Some(_) => continue,
            };
            self.fail(Some(datum), format!("client {client} at {revision} {text} {}", short(*register)));
        }
    }

    /// Promise 3.
    fn check_extra(&mut self, told: &Told<'_>, truth: &List) {
        let Told { client, datum, revision, term, list } = *told;
        for register in list.keys().filter(|register| !truth.contains_key(register)) {
            let is_young = self.terms[term].started + UNSETTLED_MAX > self.now;
            let brought =
                self.views.get(&(client, datum)).is_some_and(|view| view.brought.contains(register));
            // Of what has gone in this very term its leader tells whoever brings it along, as long as it remembers. Where there is
            // no control plane it is not asked: nobody knows whether a claim is of the history of its run.
            let may_ask = self.shape == Shape::Cluster;
            let is_untold = || brought && (!may_ask || self.has_forgotten(datum, term, *register));
            let may_keep = is_young && (self.was_listed(datum, term, *register) || is_untold());
            if !may_keep && self.carried(datum, term, *register).is_none() {
                let text =
                    format!("client {client} at {revision} still has {}, unlisted before", short(*register));
                self.fail(Some(datum), text);
            }
            self.seen.retained += 1;
        }
    }

    /// Promise 5.
    fn check_absent(&mut self, told: &Told<'_>, register: RegisterId) {
        let Told { client, datum, revision, term, .. } = *told;
        if self.first_listed(term, register).is_some_and(|first| first <= revision) {
            return;
        }
        let Some(held) = self.carried(datum, term, register) else { return };
        let started = self.terms[term].started;
        let reg = &self.regs[&register];
        if reg.is_persistent() && !self.is_withdrawn(register, &held) {
            let told = reg.acknowledged.filter(|it| reg.wanted && it.content >= held.content);
            if told.is_some_and(|it| !self.may_be_lost(term, datum, it.revision)) {
                let text = format!(
                    "client {client} at {revision} no longer has {}, which is persistent and was acknowledged",
                    short(register)
                );
                self.fail(Some(datum), text);
            }
            return;
        }
        if self.is_withdrawn(register, &held)
            || self.has_departed(register, &held)
            || self.now + SLACK >= started + LEASE
        {
            return;
        }
        // The owner's name travels like any change: who has not heard of a move goes by the former owner.
        let moved_in = self.term_at(datum, held.since).map(|term| &self.terms[term]);
        let linked = self.session_of(client).map(|(_, session)| session);
        let knows = |process: usize| linked.is_some_and(|session| session.known_by.contains(&process));
        let cut_off = linked.is_some() && moved_in.is_some_and(|moved| !knows(moved.process));
        let last_word = moved_in.and_then(|moved| moved.ended).is_some_and(|at| held.since + SECOND > at);
        let disturbed = self.disturbed.values().any(|at| *at + 10 * SECOND > held.since);
        if cut_off || last_word || disturbed && held.since + 10 * SECOND > started {
            self.seen.unheard_moves += 1;
            return;
        }
        let text = format!(
            "client {client} at {revision} no longer has {}, which session {} holds (since {}) and the new leader \
             has never listed: {}",
            short(register),
            held.owner.0,
            ms(held.since),
            self.connection_story(register, &held)
        );
        self.fail(Some(datum), text);
    }

    /// Promise 7.
    fn acknowledged(&mut self, client: usize, register: RegisterId, revision: Revision) {
        let session = self.session_of(client).map(|(id, _)| id);
        let attach = self.attach_counts.get(&client).copied().unwrap_or(0);
        let Some(reg) = self.regs.get_mut(&register) else { return };
        let (datum, wanted, latest) = (reg.datum, reg.wanted, reg.contents.len() - 1);
        reg.is_doubtful = false;
        self.seen.persistent_acknowledged += u64::from(reg.is_persistent());
        let known = self.history.get(&(datum, revision)).and_then(|known| known.last());
        if wanted {
            let told = |session| Acknowledged { content: latest, session, attach, revision };
            reg.acknowledged = session.map(told);
            reg.confirmed = Some(latest);
        } else {
            reg.removal = Some(Removal { revision, term: known.map(|(term, _)| *term), session });
            self.seen.removals_acknowledged += 1;
        }
        let what = short(register);
        self.say(Some(datum), || format!("client {client}: {what} acknowledged at {revision}"));
        let lists: Vec<List> = match self.history.get(&(datum, revision)) {
            Some(known) => known.iter().map(|(_, list)| list.clone()).collect(),
            None if revision == Revision::ZERO => vec![self.latest_list(datum)],
            None if self.may_be_unseen(datum, revision) => return,
            None => {
                self.fail(Some(datum), format!("{what} is acknowledged at {revision}, which never was"));
                return;
            }
        };
        let expected = wanted.then_some(latest);
        let fits = |list: &List| list.get(&register).map(|held| held.content) == expected;
        if !lists.iter().any(fits) {
            let what = if wanted { what } else { format!("the removal of {what}") };
            self.fail(Some(datum), format!("{what} is acknowledged at {revision} and not in effect there"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use slotcast_engine::{id::SessionId, record::Instance};
    use slotcast_net::client::Registration;

    use super::*;
    use crate::simulate::oracle::lists::Held;

    const REGISTER: RegisterId = RegisterId(1);

    fn at(epoch: u32, counter: u64) -> Revision {
        Revision(Revision::open(epoch).0 + counter)
    }

    /// Something persistent, of which the first content was acknowledged at 1.1 and the second told at 1.2; the leader of epoch 2 goes on
    /// from `fork`. A subscriber has the second, at 2.0: its session kept it.
    fn two_contents(fork: Revision) -> Oracle {
        let id = DataId::new("sim", "default", "service").expect("a valid name");
        let (datum, slot) = (id.key(), id.key().slot(SLOTS));
        let mut oracle = Oracle::new(vec![id], Shape::Cluster, SECOND);
        oracle.session_started(SessionId(9));
        oracle.session_accepted(7, SessionId(9));
        oracle.client_attached(0, 7);
        oracle.subscribed(0, 0);
        for (epoch, forks) in [(1, vec![]), (2, vec![fork])] {
            let process = oracle.node_started(epoch as usize);
            let term = oracle.term(slot, process, epoch);
            oracle.terms[term].forks = forks;
        }
        let registration = Registration { datum, register: REGISTER };
        for (payload, version) in [("one", 1), ("two", 2)] {
            oracle.published_for_good(0, registration, 0, (payload.into(), version));
            if version == 1 {
                list(&mut oracle, at(1, 1), 0);
                oracle.acknowledged(0, REGISTER, at(1, 1));
            }
        }
        list(&mut oracle, at(1, 2), 1);
        list(&mut oracle, at(2, 0), 0);
        list(&mut oracle, at(2, 1), 0);
        tell(&mut oracle, at(1, 2), "two");
        tell(&mut oracle, at(2, 0), "two");
        assert!(oracle.failure.is_none(), "{:?}", oracle.failure);
        oracle
    }

    fn list(oracle: &mut Oracle, revision: Revision, content: usize) {
        let term = revision.epoch() as usize - 1;
        let held = Held { content, owner: SessionId::NOBODY, attach: 1, since: 0 };
        oracle.history.insert((0, revision), vec![(term, Rc::new(BTreeMap::from([(REGISTER, held)])))]);
        oracle.terms[term].revision = revision;
    }

    fn tell(oracle: &mut Oracle, revision: Revision, payload: &str) {
        let instance =
            Instance { client: 1, name: String::new(), zone: String::new(), payload: payload.into() };
        let id = oracle.datums[0].clone();
        oracle.update(0, &Update::Snapshot { id, revision, instances: vec![(REGISTER, instance)] });
    }

    fn goes_back(mut oracle: Oracle) -> Option<String> {
        tell(&mut oracle, at(2, 1), "one");
        oracle.failure.map(|violation| violation.text)
    }

    #[test]
    fn what_was_never_acknowledged_may_be_lost_with_the_leader_that_told_it() {
        assert_eq!(goes_back(two_contents(at(1, 1))), None);
    }

    #[test]
    fn what_the_leader_goes_on_from_is_not_lost() {
        let text = goes_back(two_contents(at(1, 2))).expect("a broken promise");
        assert!(text.contains("sees 0000 with older content"), "{text}");
    }

    #[test]
    fn what_was_acknowledged_is_not_lost() {
        let mut oracle = two_contents(at(1, 1));
        oracle.acknowledged(0, REGISTER, at(1, 2));
        let text = goes_back(oracle).expect("a broken promise");
        assert!(text.contains("sees 0000 with older content"), "{text}");
    }

    #[test]
    fn what_is_not_persistent_is_told_again_by_its_session() {
        let mut oracle = two_contents(at(1, 1));
        oracle.regs.get_mut(&REGISTER).expect("it is published").version = 0;
        assert!(goes_back(oracle).is_some());
    }
}
