//! Which other content than its leader's a subscriber may be told.

use std::collections::BTreeSet;

use slotcast_engine::id::{RegisterId, Revision, SessionId};

use super::{Oracle, UNSETTLED_MAX, lists::Held};

impl Oracle {
    /// Whether a subscriber may be told another content than the leader has: a term before listed it, and this one has begun without
    /// it and is young. As absence is no removal (rule 6 of the invariants), an old content is no change: what a reader holds of
    /// an owner that has not confirmed stays until it confirms or its lease ends, and no push is older than the one before. Which of
    /// two contents is newer the leader cannot tell where another has led an epoch of which it knows nothing, while it went on itself,
    /// nor to a reader from before the epoch that it went on from, once its log does not reach back to there, as that of a copy does
    /// not: such a reader keeps what it has, be it older, for late is better than wrong. When the leader has heard of the owner
    /// of both contents, its own counts.
    pub(super) fn may_be_kept(
        &self,
        (client, datum): (usize, usize),
        term: usize,
        (register, content): (RegisterId, usize),
        held: &Held,
    ) -> bool {
        let is_young = self.terms[term].started + UNSETTLED_MAX > self.now;
        let is_undecided = || {
            self.is_undecided((client, datum), term, (register, content))
                && !self.owners_before(datum, term, (register, held.content)).is_empty()
        };
        if content == held.content || !is_young || content < held.content && !is_undecided() {
            return false;
        }
        let owners = self.owners_before(datum, term, (register, content));
        let is_awaited = |owner: &SessionId| !self.is_heard_of(term, *owner);
        !owners.is_empty() && (is_awaited(&held.owner) || owners.iter().any(is_awaited))
    }

    /// Whether the subscriber's session stood where this content was listed when it went on to a later leader, and `term` cannot tell
    /// what has changed since a reader from there left its history.
    fn is_undecided(
        &self,
        (client, datum): (usize, usize),
        term: usize,
        (register, content): (RegisterId, usize),
    ) -> bool {
        let told = self.session_of(client).and_then(|(session, _)| self.told.get(&session));
        let left = told.map_or(&[][..], |told| told.left(datum));
        let is_lost = |at: &&Revision| self.terms[term].is_lost_on(**at);
        left.iter().filter(is_lost).any(|at| self.was_listed_at(datum, *at, (register, content)))
    }

    /// Whether the list of a revision had a registration with this content.
    fn was_listed_at(&self, datum: usize, at: Revision, (register, content): (RegisterId, usize)) -> bool {
        let epoch = (datum, Revision::open(at.epoch()))..=(datum, at);
        let lists = self.history.range(epoch).next_back().map(|(_, lists)| lists);
        let has = |held: Option<&Held>| held.is_some_and(|held| held.content == content);
        lists.is_some_and(|lists| lists.iter().any(|(_, list)| has(list.get(&register))))
    }

    /// Those that owned a registration with this content in terms before `term`.
    fn owners_before(
        &self,
        datum: usize,
        term: usize,
        (register, content): (RegisterId, usize),
    ) -> BTreeSet<SessionId> {
        let terms: BTreeSet<usize> = self.before(datum, term).collect();
        let listed = self.listings(datum, register).filter(|(_, of, _)| terms.contains(of));
        listed.filter(|(_, _, held)| held.content == content).map(|(_, _, held)| held.owner).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, rc::Rc};

    use slotcast_engine::id::DataId;

    use super::*;
    use crate::simulate::{hosts::SLOTS, network::SECOND, oracle::lists::WORD_MAX, plan::Shape};

    const READERS: SessionId = SessionId(15);
    const OWNERS: SessionId = SessionId(7);
    const REGISTER: RegisterId = RegisterId(1);
    const CLIENT: usize = 0;
    const DATUM: usize = 0;

    fn at(epoch: u32, counter: u64) -> Revision {
        Revision(Revision::open(epoch).0 + counter)
    }

    fn held(content: usize) -> Held {
        Held { content, owner: OWNERS, attach: 1, since: 0 }
    }

    /// Leaders of epochs 1, 2 and 3. The first listed content 0 to the end, at 1.5; the second went on from 1.3, and heard of content 1;
    /// the third has its copy, with a log from 2.2 on. The reader's session left the first at its end.
    fn copy_of_a_successor() -> (Oracle, usize) {
        let id = DataId::new("sim", "default", "service").expect("a valid name");
        let slot = id.key().slot(SLOTS);
        let mut oracle = Oracle::new(vec![id], Shape::Cluster, SECOND);
        oracle.session_started(READERS);
        oracle.session_accepted(1, READERS);
        oracle.client_attached(CLIENT, 1);
        let forks = [vec![], vec![at(1, 3)], vec![at(1, 3), at(2, 2)]];
        for (epoch, forks) in (1..).zip(forks) {
            let process = oracle.node_started(epoch as usize);
            let term = oracle.term(slot, process, epoch);
            oracle.terms[term].forks = forks;
        }
        for (revision, term, content) in
            [(at(1, 3), 0, 0), (at(1, 5), 0, 0), (at(2, 0), 1, 0), (at(2, 2), 1, 1), (at(3, 0), 2, 1)]
        {
            let list = Rc::new(BTreeMap::from([(REGISTER, held(content))]));
            oracle.history.insert((DATUM, revision), vec![(term, list)]);
            oracle.terms[term].revision = revision;
        }
        oracle.terms[2].floor = at(2, 2);
        (oracle, 2)
    }

    fn left(oracle: &mut Oracle, from: Revision) {
        oracle.told.entry(READERS).or_default().goes_on(DATUM, from);
    }

    fn keeps(oracle: &Oracle, term: usize, content: usize) -> bool {
        oracle.may_be_kept((CLIENT, DATUM), term, (REGISTER, content), &held(1))
    }

    #[test]
    fn what_a_session_held_beyond_a_fork_may_be_kept_where_the_leader_cannot_tell() {
        let (mut oracle, term) = copy_of_a_successor();
        assert!(!keeps(&oracle, term, 0), "its session was not there");
        left(&mut oracle, at(1, 5));
        assert!(keeps(&oracle, term, 0));
        assert!(!keeps(&oracle, term, 2), "nobody listed it");
    }

    #[test]
    fn a_leader_whose_log_reaches_back_can_tell() {
        let (mut oracle, term) = copy_of_a_successor();
        left(&mut oracle, at(1, 5));
        oracle.terms[term].floor = at(1, 3);
        assert!(!keeps(&oracle, term, 0));
    }

    #[test]
    fn who_goes_straight_on_from_a_fork_knows_what_it_has_heard_of_since() {
        let (mut oracle, _) = copy_of_a_successor();
        left(&mut oracle, at(1, 5));
        oracle.terms[1].floor = at(2, 1);
        assert!(!keeps(&oracle, 1, 0));
    }

    #[test]
    fn who_was_only_where_the_leader_was_too_keeps_nothing() {
        for from in [at(1, 3), at(2, 0), at(2, 2)] {
            let (mut oracle, term) = copy_of_a_successor();
            left(&mut oracle, from);
            assert!(!keeps(&oracle, term, 0), "{from}");
        }
    }

    #[test]
    fn it_is_kept_no_longer_than_word_of_the_owner_takes() {
        let (mut oracle, term) = copy_of_a_successor();
        left(&mut oracle, at(1, 5));
        oracle.terms[term].confirmed.insert(OWNERS, 0);
        oracle.now = WORD_MAX - 1;
        assert!(keeps(&oracle, term, 0));
        oracle.now = WORD_MAX;
        assert!(!keeps(&oracle, term, 0));
    }
}
