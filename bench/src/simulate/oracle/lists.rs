//! What leaders list, term by term.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use slotcast_engine::id::{RegisterId, Revision, SessionId, SlotId};
use slotcast_net::data::node::Node;

use super::{Oracle, SECOND, SLACK, nothing, short};
use crate::simulate::{
    hosts::{LEASE, SLOTS},
    plan::Shape,
    trace::{label, ms},
};

/// Renewals of a lease come with heartbeats; other bytes may come later than the last of these.
const HEARTBEAT_SLACK: u64 = SECOND;

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
    /// The epoch it is in now.
    epoch: u32,
    revision: Revision,
    lists: BTreeMap<usize, List>,
    first_listed: BTreeMap<RegisterId, Revision>,
}

impl Term {
    /// The list of a data id as it was last.
    fn list(&self, datum: usize) -> List {
        self.lists.get(&datum).cloned().unwrap_or_else(nothing)
    }
}

impl Oracle {
    /// A data node has finished a turn.
    pub fn node_turn(&mut self, process: usize, node: &Node) {
        self.processes[process].turned_at = self.now;
        for slot in node.shard().slots() {
            let revision = slot.revision();
            let term = self.term(slot.id(), process, revision.epoch());
            if std::mem::replace(&mut self.terms[term].revision, revision) == revision {
                continue;
            }
            for datum in 0..self.datums.len() {
                let key = self.datums[datum].key();
                if key.slot(SLOTS) != slot.id() {
                    continue;
                }
                let mut list = BTreeMap::new();
                for (record, owner) in slot.records(key) {
                    let register = record.register();
                    let attach = slot.version(key, register).map_or(0, |(version, _)| version.attach);
                    let payload = record.instance().map(|instance| instance.payload).unwrap_or_default();
                    let Some(content) = self.content(register, &payload) else {
                        self.fail(Some(datum), format!("a data node lists {} ...", label(&payload)));
                        continue;
                    };
                    let since = match self.last_held(slot.id(), datum, register) {
                        Some(held) if held.owner == owner => held.since,
                        _ => self.now,
                    };
                    list.insert(register, Held { content, owner, attach, since });
                }
                self.leader_lists(term, datum, revision, list);
            }
        }
    }

    /// The term of a process that leads a slot in an epoch now.
    fn term(&mut self, slot: SlotId, process: usize, epoch: u32) -> usize {
        let runs = |term: &usize| self.terms[*term].process == process && self.terms[*term].ended.is_none();
        let running = self.terms_of.get(&slot).and_then(|terms| terms.iter().copied().find(runs));
        let term = running.unwrap_or(self.terms.len());
        if running.is_none() {
            let (started, leases_from) = match self.shape {
                Shape::Single => (self.processes[process].started, 0),
                Shape::Cluster => (self.now, self.running_time(process)),
            };
            self.terms.push(Term {
                process,
                started,
                leases_from,
                ended: None,
                epoch,
                revision: Revision::ZERO,
                lists: BTreeMap::new(),
                first_listed: BTreeMap::new(),
            });
            self.terms_of.entry(slot).or_default().push(term);
        } else if self.terms[term].epoch == epoch {
            return term;
        }
        self.terms[term].epoch = epoch;
        if self.shape == Shape::Cluster {
            let terms = self.terms_of.entry(slot).or_default();
            terms.sort_by_key(|term| self.terms[*term].epoch);
            let at = terms.iter().position(|other| *other == term).unwrap_or(0);
            if at > 0 && self.terms[terms[at - 1]].epoch == epoch {
                let other = self.processes[self.terms[terms[at - 1]].process].host;
                let host = self.processes[process].host;
                self.fail(
                    None,
                    format!("epoch {epoch} of slot {} is opened by host {host} and by host {other}", slot.0),
                );
            }
        }
        term
    }

    /// Terms of a slot before `term`, the latest first.
    fn before(&self, datum: usize, term: usize) -> impl Iterator<Item = usize> {
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

    /// What the latest leader of a data id lists.
    pub(super) fn latest_list(&self, datum: usize) -> List {
        let slot = self.datums[datum].key().slot(SLOTS);
        let latest = self.terms_of.get(&slot).and_then(|terms| terms.last());
        latest.map_or_else(nothing, |term| self.terms[*term].list(datum))
    }

    fn leader_lists(
        &mut self,
        term: usize,
        datum: usize,
        revision: Revision,
        list: BTreeMap<RegisterId, Held>,
    ) {
        let before = self.terms[term].list(datum);
        let list = if *before == list { before.clone() } else { Rc::new(list) };
        for (register, held) in before.iter().filter(|(register, _)| !list.contains_key(register)) {
            self.check_unlisted(term, datum, *register, held);
        }
        for (register, held) in list.iter() {
            let was = before.get(register);
            if was == Some(held) {
                continue;
            }
            self.terms[term].first_listed.entry(*register).or_insert(revision);
            if was.is_none() {
                self.check_listed(term, datum, *register);
            } else if was.is_some_and(|was| was.owner != held.owner) {
                self.seen.moved += 1;
            }
        }
        self.check_one_history(term, datum, revision, &list);
        self.history.entry((datum, revision)).or_default().push((term, list.clone()));
        self.terms[term].lists.insert(datum, list);
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
        } else {
            let Term { process, leases_from, .. } = self.terms[term];
            let silent = self.silence(process, held.owner, leases_from);
            if silent + HEARTBEAT_SLACK < LEASE {
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

    pub(super) fn is_withdrawn(&self, register: RegisterId, held: &Held) -> bool {
        self.regs.get(&register).is_some_and(|reg| reg.withdrawn >= Some(held.content))
    }

    /// Promise 6, at a leader.
    fn check_listed(&mut self, term: usize, datum: usize, register: RegisterId) {
        let Some(reg) = self.regs.get(&register) else { return };
        let (client, removal) = (reg.client, reg.removal);
        let host = self.processes[self.terms[term].process].host;
        self.say(Some(datum), || format!("host {host} lists {} of client {client}", short(register)));
        let Some((revision, removed_in)) = removal else { return };
        let is_later = removed_in.is_none_or(|removed_in| removed_in != term);
        if is_later && self.has_stale_holder(client) {
            self.seen.stale_replays += 1;
            return;
        }
        let text = format!(
            "the leader lists {} again, whose removal was acknowledged at {revision}",
            short(register)
        );
        self.fail(Some(datum), text);
    }
}
