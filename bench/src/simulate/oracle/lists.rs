//! What leaders list, term by term.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use slotcast_engine::{
    id::{RegisterId, Revision, SessionId, SlotId},
    shard::Shard,
    slot::Slot,
    slot_state::SlotState,
};
use slotcast_net::data::node::Node;

use super::{
    Oracle, SECOND, SLACK,
    connections::{LeaseEnd, Process},
    names, nothing, short,
};
use crate::simulate::{
    hosts::{LEASE, SLOTS},
    plan::Shape,
    trace::{label, ms},
};

/// From when a leader has heard of a session until everybody who listens to it knows, at the most: a heartbeat, a question and a slow
/// client.
pub(super) const WORD_MAX: u64 = 12 * SECOND;

/// A registration in a list of a leader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Held {
    pub(super) content: usize,
    pub(super) owner: SessionId,
    pub(super) attach: u32,
    /// Since when this session owns it here.
    pub(super) since: u64,
}

/// What is listed at some revision.
pub(super) type List = Rc<BTreeMap<RegisterId, Held>>;

/// The time in which one process leads a slot without a break.
pub(super) struct Term {
    pub(super) process: usize,
    pub(super) started: u64,
    /// In running time of the process: leases of owners that were there before count from then.
    leases_from: u64,
    pub(super) ended: Option<u64>,
    /// Since when it answers readers.
    accepted_at: Option<u64>,
    /// Sessions that have confirmed that what they hold is here, and since when.
    pub(super) confirmed: BTreeMap<SessionId, u64>,
    /// The epoch it is in now.
    pub(super) epoch: u32,
    /// The last revision of each earlier epoch that it goes on from.
    pub(super) forks: Vec<Revision>,
    pub(super) revision: Revision,
    /// How far back its change log reaches.
    pub(super) floor: Revision,
    lists: BTreeMap<usize, List>,
    first_listed: BTreeMap<RegisterId, Revision>,
}

impl Term {
    /// The list of a data id as it was last.
    pub(super) fn list(&self, datum: usize) -> List {
        self.lists.get(&datum).cloned().unwrap_or_else(nothing)
    }

    /// Whether it cannot tell what has changed since a reader at this revision left its history: of that epoch it knows nothing, or
    /// the reader left before the epoch that it went on from, and its log does not reach back to there.
    pub(super) fn is_lost_on(&self, at: Revision) -> bool {
        let Some(fork) = self.forks.iter().rev().find(|last| last.epoch() <= at.epoch()) else { return true };
        let knows_epoch = at.epoch() == self.epoch || fork.epoch() == at.epoch();
        let is_latest = self.forks.last() == Some(fork);
        !knows_epoch || !self.has_been_at(at) && !is_latest && *fork < self.floor
    }

    /// Whether a revision is of its own history.
    pub(super) fn has_been_at(&self, at: Revision) -> bool {
        let last = self.forks.iter().find(|last| last.epoch() == at.epoch());
        at <= if at.epoch() == self.epoch { self.revision } else { last.copied().unwrap_or_default() }
    }
}

impl Oracle {
    /// A data node has finished a turn.
    pub fn node_turn(&mut self, process: usize, node: &Node) {
        self.processes[process].turned_at = self.now;
        self.node_table(process, node);
        let shard = node.shard();
        let Process { alive, seats, .. } = &self.processes[process];
        let leads = seats.values().any(|(state, _)| state.is_led()) && shard.led().next().is_some();
        let (mut begun, mut lost) = (Vec::new(), Vec::new());
        for session in self.sessions.keys() {
            match (alive.contains(session), shard.is_alive(*session)) {
                (false, true) => begun.push(*session),
                (true, false) => lost.push(*session),
                _ => {}
            }
        }
        for session in begun {
            self.lease_begins(process, session);
        }
        for session in lost {
            self.processes[process].alive.remove(&session);
            self.lease_ended(process, session, leads);
        }
        let mut held: [Option<&Slot>; SLOTS as usize] = [None; SLOTS as usize];
        for slot in shard.slots() {
            // A node that is configured for more slots than there are leads none of them.
            if let Some(place) = held.get_mut(usize::from(slot.id().0)) {
                *place = Some(slot);
            }
        }
        for id in (0..SLOTS as u16).map(SlotId) {
            let (state, slot) = (shard.state(id), held[usize::from(id.0)]);
            let revision = slot.map_or(Revision::ZERO, Slot::revision);
            let seat = (state, revision);
            let before = self.processes[process].seats.insert(id, seat).unwrap_or_default();
            match slot {
                Some(slot) if state.is_led() => self.leads(process, slot, shard),
                _ => {
                    // What it told in the turn in which it let go of the slot stands in what is being freed.
                    let released = shard.released().filter(|slot| slot.id() == id).last();
                    self.leads_no_more(process, id, released.or(slot));
                    if let Some(slot) = slot.filter(|_| state == SlotState::Following && before != seat) {
                        self.check_copy(process, slot);
                    }
                }
            }
            if before.0 != state {
                self.note_state(process, id, before.0, state);
            }
        }
    }

    fn leads(&mut self, process: usize, slot: &Slot, shard: &Shard) {
        let (id, revision) = (slot.id(), slot.revision());
        let is_new = self.running_term(id, process).is_none();
        let term = self.term(id, process, revision.epoch());
        if self.terms[term].forks != slot.forks() {
            self.terms[term].forks = slot.forks().to_vec();
        }
        if is_new {
            self.note_fork(term, slot);
        }
        // Without a control plane the state says nothing; then everything is held to be told.
        let answers = self.shape == Shape::Single || shard.state(id) == SlotState::Accept;
        self.terms[term].floor = slot.log().floor();
        let confirmed = &mut self.terms[term].confirmed;
        confirmed.retain(|session, _| self.living.contains(session) && shard.has_confirmed(id, *session));
        for session in self.living.iter().filter(|session| shard.has_confirmed(id, **session)) {
            confirmed.entry(*session).or_insert(self.now);
        }
        let begins = answers && self.terms[term].accepted_at.is_none();
        if begins {
            self.terms[term].accepted_at = Some(self.now);
        }
        if std::mem::replace(&mut self.terms[term].revision, revision) != revision || begins {
            for (datum, list) in self.read(slot) {
                self.leader_lists(term, datum, revision, list, (answers, begins));
            }
        }
        if begins {
            self.check_durable(term, id);
        }
        if begins && self.shape == Shape::Cluster {
            self.check_accept(term, id);
        }
    }

    /// The process does not lead the slot, or not any more. What it told until then is known as far as it was seen.
    fn leads_no_more(&mut self, process: usize, id: SlotId, slot: Option<&Slot>) {
        let Some(term) = self.running_term(id, process) else { return };
        let (epoch, seen) = (self.terms[term].epoch, self.terms[term].revision);
        match slot.map(Slot::revision) {
            Some(revision) if revision.epoch() == epoch && revision > seen => {
                self.terms[term].revision = revision;
                let answers = self.terms[term].accepted_at.is_some();
                for (datum, list) in slot.map(|slot| self.read(slot)).unwrap_or_default() {
                    self.leader_lists(term, datum, revision, list, (answers, false));
                }
            }
            Some(_) => {}
            None => {
                self.unseen.insert((id, epoch), seen);
            }
        }
        self.terms[term].ended = Some(self.now);
        self.seen.demotions += 1;
        let latest = self.terms_of.get(&id).and_then(|terms| terms.last());
        self.seen.migrations += u64::from(latest != Some(&term));
    }

    /// What a slot lists of each of its data ids.
    fn read(&mut self, slot: &Slot) -> Vec<(usize, BTreeMap<RegisterId, Held>)> {
        let mut lists = Vec::new();
        for datum in 0..self.datums.len() {
            let key = self.datums[datum].key();
            if key.slot(SLOTS) != slot.id() {
                continue;
            }
            let mut list = BTreeMap::new();
            for (record, owner) in slot.records(key) {
                let register = record.register();
                let attach = slot.version(key, register).map_or(0, |(version, _)| version.attach);
                let Some(content) = self.content_of(&record) else {
                    let payload = record.instance().map(|instance| instance.payload).unwrap_or_default();
                    self.fail(Some(datum), format!("a data node lists {} ...", label(&payload)));
                    continue;
                };
                let since = match self.last_held(slot.id(), datum, register) {
                    Some(held) if held.owner == owner => held.since,
                    _ => self.now,
                };
                list.insert(register, Held { content, owner, attach, since });
            }
            lists.push((datum, list));
        }
        lists
    }

    /// Promise 1, at a follower: at one revision it holds what the leader held.
    fn check_copy(&mut self, process: usize, slot: &Slot) {
        let revision = slot.revision();
        for (datum, list) in self.read(slot) {
            let Some(known) = self.history.get(&(datum, revision)) else { continue };
            let content = |list: &BTreeMap<RegisterId, Held>| -> Vec<(RegisterId, usize, SessionId)> {
                list.iter().map(|(register, held)| (*register, held.content, held.owner)).collect()
            };
            let copy = content(&list);
            self.seen.copies_compared += 1;
            if known.iter().any(|(_, truth)| content(truth) != copy) {
                let host = self.processes[process].host;
                let text = format!(
                    "host {host} follows at {revision} and holds {}, where the leader held {}",
                    names(list.keys()),
                    known.first().map(|(_, truth)| names(truth.keys())).unwrap_or_default()
                );
                self.fail(Some(datum), text);
            }
        }
    }

    /// Looks at what a leader that begins has of what the one before had told, and whether that one lives.
    fn note_fork(&mut self, term: usize, slot: &Slot) {
        let terms = self.terms_of.get(&slot.id()).map(Vec::as_slice).unwrap_or_default();
        let at = terms.iter().position(|other| *other == term).unwrap_or(0);
        let Some(before) = at.checked_sub(1).map(|at| &self.terms[terms[at]]) else { return };
        let is_fork = before.revision > Revision::ZERO && !slot.has_been_at(before.revision);
        let has_moved = before.ended.is_some() && !self.processes[before.process].has_ended;
        let is_other = before.process != self.terms[term].process;
        self.seen.forks += u64::from(self.shape == Shape::Cluster && is_fork);
        self.seen.migrations += u64::from(has_moved && is_other);
    }

    fn note_state(&mut self, process: usize, slot: SlotId, from: SlotState, to: SlotState) {
        let seen = &mut self.seen;
        match (from, to) {
            (SlotState::Following, SlotState::Migrating) => seen.promotions += 1,
            (SlotState::Absent, SlotState::Migrating) => seen.led_from_nothing += 1,
            (_, SlotState::Moved) => seen.slots_left += 1,
            _ => {}
        }
        let host = self.processes[process].host;
        self.say(None, || format!("host {host}: slot {} is {} (was {})", slot.0, to.label(), from.label()));
    }

    fn running_term(&self, slot: SlotId, process: usize) -> Option<usize> {
        let runs = |term: &usize| self.terms[*term].process == process && self.terms[*term].ended.is_none();
        self.terms_of.get(&slot)?.iter().copied().find(runs)
    }

    /// The term of a process that leads a slot in an epoch now.
    pub(super) fn term(&mut self, slot: SlotId, process: usize, epoch: u32) -> usize {
        let running = self.running_term(slot, process);
        let term = running.unwrap_or(self.terms.len());
        if running.is_none() {
            let (started, leases_from) = match self.shape {
                Shape::Single => (self.processes[process].started, self.processes[process].started),
                Shape::Cluster => (self.now, self.running_time(process)),
            };
            self.terms.push(Term {
                process,
                started,
                leases_from,
                ended: None,
                accepted_at: None,
                confirmed: BTreeMap::new(),
                floor: Revision::ZERO,
                epoch,
                forks: Vec::new(),
                revision: Revision::ZERO,
                lists: BTreeMap::new(),
                first_listed: BTreeMap::new(),
            });
            self.terms_of.entry(slot).or_default().push(term);
        } else if self.terms[term].epoch == epoch {
            return term;
        } else {
            // It went on in a larger epoch; what it told in this turn before that was not seen.
            self.unseen.insert((slot, self.terms[term].epoch), self.terms[term].revision);
        }
        self.terms[term].epoch = epoch;
        if self.shape == Shape::Cluster {
            if let Some(other) = self.opened.insert((slot, epoch), process).filter(|other| *other != process)
            {
                let [other, host] = [other, process].map(|process| self.processes[process].host);
                let text =
                    format!("epoch {epoch} of slot {} is opened by host {other} and by host {host}", slot.0);
                self.fail(None, text);
            }
            if let Some(terms) = self.terms_of.get_mut(&slot) {
                terms.sort_by_key(|term| self.terms[*term].epoch);
            }
        }
        term
    }

    /// Terms of a slot before `term`, the latest first.
    pub(super) fn before(&self, datum: usize, term: usize) -> impl Iterator<Item = usize> {
        let slot = self.datums[datum].key().slot(SLOTS);
        let terms = self.terms_of.get(&slot).map(Vec::as_slice).unwrap_or_default();
        let at = terms.iter().position(|other| *other == term).unwrap_or(terms.len());
        terms[..at].iter().rev().copied()
    }

    /// The place of a term among those of its slot.
    pub(super) fn place(&self, datum: usize, term: usize) -> usize {
        self.before(datum, term).count()
    }

    /// The term of a data id's slot that had started last at a time.
    pub(super) fn term_at(&self, datum: usize, at: u64) -> Option<usize> {
        let terms = self.terms_of.get(&self.datums[datum].key().slot(SLOTS))?;
        terms.iter().rev().copied().find(|term| self.terms[*term].started <= at)
    }

    /// What the terms before `term` held of a registration when the last that knew of it ended. A term that outlived every
    /// lease has waited for the owners of what it never listed.
    pub(super) fn carried(&self, datum: usize, term: usize, register: RegisterId) -> Option<Held> {
        for earlier in self.before(datum, term) {
            let earlier = &self.terms[earlier];
            if earlier.first_listed.contains_key(&register) {
                return earlier.list(datum).get(&register).copied();
            }
            let turned_at = earlier.ended.unwrap_or(self.processes[earlier.process].turned_at);
            if turned_at + SLACK >= earlier.started + LEASE {
                return None;
            }
        }
        None
    }

    /// Whether a term before `term` ever listed a registration.
    pub(super) fn was_listed(&self, datum: usize, term: usize, register: RegisterId) -> bool {
        self.before(datum, term).any(|earlier| self.terms[earlier].first_listed.contains_key(&register))
    }

    /// Whether a term has listed a registration, and its log reaches back no more to where that went.
    pub(super) fn has_forgotten(&self, datum: usize, term: usize, register: RegisterId) -> bool {
        let here = self.listings(datum, register).filter(|(_, of, _)| *of == term);
        here.map(|(at, ..)| at).max().is_some_and(|last| last < self.terms[term].floor)
    }

    /// Every list of any term that had a registration: at which revision, of which term, and as what.
    pub(super) fn listings(
        &self,
        datum: usize,
        register: RegisterId,
    ) -> impl Iterator<Item = (Revision, usize, &Held)> + Clone {
        let all = self.history.range((datum, Revision::ZERO)..=(datum, Revision(u64::MAX)));
        let all = all.flat_map(|((_, revision), lists)| lists.iter().map(move |list| (*revision, list)));
        all.filter_map(move |(revision, (term, list))| Some((revision, *term, list.get(&register)?)))
    }

    /// Whether a term listed a registration with this content, or goes on from where another one did.
    pub(super) fn has_known(&self, datum: usize, term: usize, register: RegisterId, content: usize) -> bool {
        let known = |(at, of, _): &(Revision, usize, &Held)| *of == term || self.terms[term].has_been_at(*at);
        self.listings(datum, register).filter(known).any(|(_, _, held)| held.content == content)
    }

    /// Whether everybody who listens to a leader has heard by now that it has all that a session holds. What is persistent no session
    /// gives an account of.
    pub(super) fn is_heard_of(&self, term: usize, owner: SessionId) -> bool {
        self.was_heard_of(term, owner, self.now)
    }

    /// The same at some time.
    pub(super) fn was_heard_of(&self, term: usize, owner: SessionId, at: u64) -> bool {
        self.terms[term].confirmed.get(&owner).is_some_and(|since| since + WORD_MAX <= at)
    }

    /// The revision at which a term first listed a registration.
    pub(super) fn first_listed(&self, term: usize, register: RegisterId) -> Option<Revision> {
        self.terms[term].first_listed.get(&register).copied()
    }

    /// What the slot's latest term that knows of a registration holds of it.
    fn last_held(&self, slot: SlotId, datum: usize, register: RegisterId) -> Option<Held> {
        let terms = self.terms_of.get(&slot)?;
        let known =
            terms.iter().rev().find(|term| self.terms[**term].first_listed.contains_key(&register))?;
        self.terms[*known].list(datum).get(&register).copied()
    }

    /// The latest term of a data id's slot.
    pub(super) fn latest_term(&self, datum: usize) -> Option<usize> {
        self.terms_of.get(&self.datums[datum].key().slot(SLOTS))?.last().copied()
    }

    /// What the latest leader of a data id lists.
    pub(super) fn latest_list(&self, datum: usize) -> List {
        self.latest_term(datum).map_or_else(nothing, |term| self.terms[term].list(datum))
    }

    fn leader_lists(
        &mut self,
        term: usize,
        datum: usize,
        revision: Revision,
        list: BTreeMap<RegisterId, Held>,
        (answers, begins): (bool, bool),
    ) {
        let before = self.terms[term].list(datum);
        let list = if *before == list { before.clone() } else { Rc::new(list) };
        for (register, held) in before.iter().filter(|(register, _)| !list.contains_key(register)) {
            self.check_unlisted(term, datum, *register, held);
        }
        for (register, held) in list.iter() {
            let was = before.get(register);
            if answers && (begins || was.is_none()) {
                self.check_listed(term, datum, (*register, held), begins);
            }
            if was == Some(held) {
                continue;
            }
            self.terms[term].first_listed.entry(*register).or_insert(revision);
            if was.is_none() {
                let host = self.processes[self.terms[term].process].host;
                self.say(Some(datum), || format!("host {host} lists {}", short(*register)));
            } else if was.is_some_and(|was| was.owner != held.owner) {
                self.seen.moved += 1;
            }
        }
        self.check_one_history(term, datum, revision, &list);
        self.history.entry((datum, revision)).or_default().push((term, list.clone()));
        self.terms[term].lists.insert(datum, list);
    }

    /// The lease of a session runs at a data node. If it ran there before, it had only been forgotten.
    pub(super) fn lease_begins(&mut self, process: usize, session: SessionId) {
        self.processes[process].alive.insert(session);
        self.processes[process].refused.remove(&session);
    }

    /// A data node has ended the lease of a session. What that says to it from then on does not count: it is refused. Of one that it
    /// has never heard of, it may only after it has led slots for as long. Whoever led nothing has forgotten it, which it may at
    /// any time.
    pub(super) fn lease_ended(&mut self, process: usize, session: SessionId, leads: bool) {
        let terms = self.terms.iter().filter(|term| term.process == process);
        let first_led = terms.map(|term| term.leases_from).min();
        let heard = self.processes[process].heard.get(&session).copied();
        let Some(from) = heard.or(first_led) else { return };
        let silent = self.running_time(process).saturating_sub(from);
        let is_over = silent + SLACK >= LEASE;
        if heard.is_some() || is_over {
            let end = LeaseEnd { at: self.now, heard: heard.unwrap_or(0) };
            self.processes[process].refused.entry(session).or_insert(end);
        }
        if leads && heard.is_some() && !is_over {
            let (host, silent) = (self.processes[process].host, ms(silent));
            let text = format!("host {host} ends the lease of session {}, heard of {silent} ago", session.0);
            self.fail(None, text);
        }
    }

    /// Promise 1.
    fn check_one_history(&mut self, term: usize, datum: usize, revision: Revision, list: &List) {
        let Some(known) = self.history.get(&(datum, revision)) else { return };
        let others: BTreeSet<usize> =
            known.iter().filter(|(_, held)| !held.keys().eq(list.keys())).map(|(term, _)| *term).collect();
        for other in others {
            self.seen.revisions_reused += 1;
            let [process, other_process] = [term, other].map(|term| self.terms[term].process);
            let told = self.sessions.values().any(|session| {
                let knew = session.epochs.get(&other_process).is_some_and(|epoch| *epoch >= revision.epoch());
                knew && session.known_by.contains(&process)
            });
            if told || process == other_process || self.shape == Shape::Cluster {
                self.fail(
                    Some(datum),
                    format!(
                        "revision {revision} names two lists, of processes {other_process} and {process}"
                    ),
                );
            }
        }
    }

    /// Promise 4.
    fn check_unlisted(&mut self, term: usize, datum: usize, register: RegisterId, held: &Held) {
        let what = short(register);
        if self.is_withdrawn(register, held) {
            self.seen.withdrawn += 1;
        } else if self.has_departed(register, held) {
            self.seen.departed += 1;
        } else if self.regs.get(&register).is_some_and(super::Reg::is_persistent) {
            self.fail(Some(datum), format!("the leader unlists {what}, which is persistent"));
        } else if self.has_moved_on(term, datum, register, held) {
            self.seen.unheard_moves += 1;
        } else {
            let Term { process, started, leases_from, .. } = self.terms[term];
            // Whose lease it ended while it led other slots has none that could begin anew.
            let ended = self.processes[process].refused.get(&held.owner).is_some_and(|end| end.at < started);
            let silent = self.silence(process, held.owner, if ended { 0 } else { leases_from });
            if silent + SLACK < LEASE {
                let text = format!(
                    "the leader unlists {what} of session {} (attach count {}), which it heard of {} ago: {}",
                    held.owner.0,
                    held.attach,
                    ms(silent),
                    self.connection_story(register, held)
                );
                self.fail(Some(datum), text);
            }
            self.seen.leases_ended += 1;
        }
        self.say(Some(datum), || format!("the leader unlists {what}"));
    }

    /// Whether another leader lists a registration as of a later connection of its client: then the session that owns it by this
    /// leader may know that, and hold it no more.
    fn has_moved_on(&self, term: usize, datum: usize, register: RegisterId, held: &Held) -> bool {
        let slot = self.datums[datum].key().slot(SLOTS);
        let terms = self.terms_of.get(&slot).map(Vec::as_slice).unwrap_or_default();
        terms.iter().filter(|other| **other != term).any(|other| {
            let lists = &self.terms[*other].lists;
            let there = lists.get(&datum).and_then(|list| list.get(&register));
            there.is_some_and(|there| there.attach > held.attach && there.owner != held.owner)
        })
    }

    pub(super) fn is_withdrawn(&self, register: RegisterId, held: &Held) -> bool {
        self.regs.get(&register).is_some_and(|reg| reg.withdrawn >= Some(held.content))
    }

    /// Promise 6, at a leader that answers readers.
    fn check_listed(
        &mut self,
        term: usize,
        datum: usize,
        (register, held): (RegisterId, &Held),
        begins: bool,
    ) {
        let Some(reg) = self.regs.get(&register) else { return };
        let Some(removal) = reg.removal else { return };
        let slot = self.datums[datum].key().slot(SLOTS);
        if self.terms_of.get(&slot).and_then(|terms| terms.last()) != Some(&term) {
            // A former leader that does not know it yet; who listens to it is behind as a whole.
            return;
        }
        let is_later = removal.term.is_none_or(|removed_in| removed_in != term);
        // Whoever had it removed, and has confirmed here since, does not hold it.
        let knows = self.shape == Shape::Cluster
            && removal.session == Some(held.owner)
            && self.terms[term].confirmed.contains_key(&held.owner);
        let may_know = reg.is_persistent() && !self.may_be_lost(term, datum, removal.revision);
        // The leader that took it is lost with what nobody else had of it, and so is the session that it went through. Only a
        // removal record, that session's word or the end of its lease removes. Nobody is left to tell it to this leader: it has
        // begun with it, as a session owned it that it has not heard of.
        let is_forgotten = begins
            && !reg.is_persistent()
            && !self.terms[term].confirmed.contains_key(&held.owner)
            && !self.terms[term].has_been_at(removal.revision)
            && removal.session.is_some_and(|session| self.sessions[&session].died.is_some());
        if is_later && (is_forgotten || !knows && !may_know && self.has_stale_holder(reg.client)) {
            self.seen.stale_replays += 1;
            return;
        }
        let text = format!(
            "the leader lists {} again, whose removal was acknowledged at {}",
            short(register),
            removal.revision
        );
        self.fail(Some(datum), text);
    }

    /// Whether what was acknowledged as persistent at a revision may be lost with a disk at a leader: it may if a node has held the
    /// slot that it must not have, and the leader does not go on from there.
    pub(super) fn may_be_lost(&self, term: usize, datum: usize, told: Revision) -> bool {
        self.is_unclean(datum) && !self.terms[term].has_been_at(told)
    }

    pub(super) fn is_unclean(&self, datum: usize) -> bool {
        self.unclean.contains(&self.datums[datum].key().slot(SLOTS))
    }
}
