//! What a leader has when it begins to answer readers.

use std::collections::BTreeSet;

use slotcast_engine::id::{SessionId, SlotId};

use super::{Oracle, lists::Term, short};
use crate::simulate::{hosts::SLOTS, trace::ms};

impl Oracle {
    /// Promise 7, for what is persistent: a leader that answers readers has everything that was acknowledged.
    pub(super) fn check_durable(&mut self, term: usize, slot: SlotId) {
        let lost = self.regs.iter().find(|(register, reg)| {
            let Some(told) = reg.acknowledged.filter(|_| reg.is_persistent() && reg.wanted) else {
                return false;
            };
            let is_here = self.datums[reg.datum].key().slot(SLOTS) == slot;
            let is_due = is_here && !self.may_be_lost(term, reg.datum, told.revision);
            let listed = self.terms[term].list(reg.datum).get(register).map(|held| held.content);
            is_due && listed.is_none_or(|content| content < told.content)
        });
        if let Some((register, reg)) = lost {
            let (datum, host) = (reg.datum, self.processes[self.terms[term].process].host);
            let text = format!(
                "host {host} begins to answer and lacks {}, which is persistent and was acknowledged",
                short(*register)
            );
            self.fail(Some(datum), text);
        }
    }

    /// Promise 8: a leader that begins to answer before `settle` has passed has heard of every session that is linked to it. Whoever it
    /// refuses for ever is not, though the refusal may be under way on an open connection for as long as the node waits for it to be
    /// read: what such a session holds is not awaited anywhere, it goes when the lease ends, and the session with it when it hears so.
    /// That the lease was over is looked at when it ends. What a later leader has acknowledged says nothing about a former one that
    /// does not know it yet: what it was told, it was told before, and who listens to it is behind as a whole.
    pub(super) fn check_accept(&mut self, term: usize, slot: SlotId) {
        let Term { process, started, epoch, .. } = self.terms[term];
        let early = self.now < started + self.settle;
        self.seen.accepts_confirmed += u64::from(early);
        self.seen.accepts_late += u64::from(!early);
        if !early {
            return;
        }
        let links = self.processes[process].links.values().copied();
        let linked: BTreeSet<SessionId> = links.filter(|session| !self.refuses(process, *session)).collect();
        let mut missing = None;
        for (register, reg) in &self.regs {
            let Some(acknowledged) = &reg.acknowledged else { continue };
            // No session holds what is persistent.
            let is_held = reg.wanted && !reg.is_persistent();
            let is_here = self.datums[reg.datum].key().slot(SLOTS) == slot && is_held;
            let latest = self.attach_counts.get(&reg.client).copied().unwrap_or(0);
            // What went over an earlier connection is the session's no longer, or not again yet.
            let attachment = self.attachment(reg.client, latest).filter(|_| acknowledged.attach == latest);
            let holds = attachment.is_some_and(|it| it.ended.is_none());
            let is_former = acknowledged.revision.epoch() > epoch;
            if !is_here || !holds || is_former || !linked.contains(&acknowledged.session) {
                continue;
            }
            let listed = self.terms[term].list(reg.datum).get(register).map(|held| held.content);
            if listed.is_none_or(|content| content < acknowledged.content) {
                missing = Some((reg.datum, *register, acknowledged.session));
            }
        }
        if let Some((datum, register, session)) = missing {
            let host = self.processes[process].host;
            let text = format!(
                "host {host} begins to answer {} after it led, and lacks {} of session {}, which is linked to it",
                ms(self.now - started),
                short(register),
                session.0
            );
            self.fail(Some(datum), text);
        }
    }
}

#[cfg(test)]
mod tests {
    use slotcast_engine::id::{DataId, RegisterId, Revision};
    use slotcast_net::client::Registration;

    use super::*;
    use crate::simulate::{
        hosts::LEASE,
        network::{MS, SECOND},
        oracle::wants::Acknowledged,
        plan::Shape,
    };

    const SESSION: SessionId = SessionId(15);
    const LINK: usize = 7;

    /// A data node that has heard of a session, and leads a slot after a lease in which it has heard no more of it: but for what
    /// that session's client has had acknowledged by another leader.
    fn silent_session() -> (Oracle, SlotId) {
        let id = DataId::new("sim", "default", "service").expect("a valid name");
        let registration = Registration { datum: id.key(), register: RegisterId(1) };
        let slot = id.key().slot(SLOTS);
        let mut oracle = Oracle::new(vec![id], Shape::Cluster, SECOND);
        oracle.session_started(SESSION);
        oracle.session_accepted(1, SESSION);
        oracle.client_attached(0, 1);
        oracle.published(0, registration, 0, b"one".to_vec());
        let told = Acknowledged { content: 0, session: SESSION, attach: 1, revision: Revision::open(1) };
        oracle.regs.get_mut(&registration.register).expect("it is published").acknowledged = Some(told);
        oracle.node_started(0);
        oracle.node_linked(0, SESSION, LINK);
        oracle.processes[0].alive.insert(SESSION);
        oracle.now = LEASE;
        (oracle, slot)
    }

    /// Its lease ends there.
    fn end_lease(oracle: &mut Oracle) {
        oracle.processes[0].alive.remove(&SESSION);
        oracle.lease_ended(0, SESSION, true);
    }

    fn begins_to_answer(mut oracle: Oracle, slot: SlotId) -> Option<String> {
        let term = oracle.term(slot, 0, 4);
        oracle.now += 20 * MS;
        oracle.check_accept(term, slot);
        oracle.failure.map(|violation| violation.text)
    }

    #[test]
    fn what_a_linked_session_holds_has_to_be_there() {
        let (oracle, slot) = silent_session();
        let text = begins_to_answer(oracle, slot).expect("a broken promise");
        assert!(text.contains("lacks 0000 of session 15, which is linked to it"), "{text}");
    }

    #[test]
    fn a_former_leader_need_not_have_what_a_later_one_has_acknowledged() {
        for (epoch, is_due) in [(4, true), (5, false)] {
            let (mut oracle, slot) = silent_session();
            let reg = oracle.regs.values_mut().next().expect("it is published");
            reg.acknowledged.as_mut().expect("it is acknowledged").revision = Revision::open(epoch);
            assert_eq!(begins_to_answer(oracle, slot).is_some(), is_due, "acknowledged in epoch {epoch}");
        }
    }

    #[test]
    fn a_session_that_is_refused_is_not_linked_though_it_has_not_heard_that_yet() {
        let (mut oracle, slot) = silent_session();
        end_lease(&mut oracle);
        assert_eq!(begins_to_answer(oracle, slot), None);
    }

    #[test]
    fn a_session_that_was_only_forgotten_is_linked_when_it_comes_again() {
        let (mut oracle, slot) = silent_session();
        end_lease(&mut oracle);
        oracle.lease_begins(0, SESSION);
        assert!(begins_to_answer(oracle, slot).is_some());
    }

    #[test]
    fn what_comes_over_a_link_that_another_has_taken_the_place_of_is_not_heard() {
        let (mut oracle, _) = silent_session();
        oracle.node_linked(0, SESSION, LINK + 1);
        oracle.now += LEASE;
        oracle.node_heard(0, SESSION, LINK);
        end_lease(&mut oracle);
        assert!(oracle.failure.is_none());
    }

    #[test]
    fn no_lease_ends_before_its_time() {
        let (mut oracle, _) = silent_session();
        oracle.node_heard(0, SESSION, LINK);
        oracle.now += LEASE / 2;
        end_lease(&mut oracle);
        let text = oracle.failure.expect("a broken promise").text;
        assert!(text.contains("ends the lease of session 15, heard of 3000.000 ms ago"), "{text}");
    }
}
