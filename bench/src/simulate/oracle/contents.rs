//! Which other content than its leader's a subscriber may be told.

use std::collections::BTreeSet;

use slotcast_engine::id::{RegisterId, Revision, SessionId};

use super::{
    Oracle, UNSETTLED_MAX,
    lists::{Held, List},
};

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
        let is_older = content < held.content;
        if content == held.content
            || !is_young
            || is_older && !self.may_be_older((client, datum), term, (register, content), held)
        {
            return false;
        }
        let owners = self.owners_before(datum, term, (register, content));
        let is_awaited = |owner: &SessionId| !self.is_heard_of(term, *owner);
        !owners.is_empty() && (is_awaited(&held.owner) || owners.iter().any(is_awaited))
    }

    /// Whether the subscriber's session may hold an older content than the leader has: it stood where that was listed when it went on
    /// to this leader, who cannot tell what has changed since a reader from there left its history, and had the other content
    /// before it led; or the session went on to another leader from there, who could not tell, or had an older one still, and
    /// from that to this one before it heard of the owners there.
    fn may_be_older(
        &self,
        (client, datum): (usize, usize),
        term: usize,
        (register, content): (RegisterId, usize),
        held: &Held,
    ) -> bool {
        let told = self.session_of(client).and_then(|(session, _)| self.told.get(&session));
        let left = told.map_or(&[][..], |told| told.left(datum));
        let mut is_kept = false;
        for (index, (_, at)) in left.iter().enumerate() {
            let had = is_kept || self.listed_at(datum, *at, register).any(|held| held.content == content);
            let Some((until, next)) = left.get(index + 1) else {
                let is_lost = self.terms[term].is_lost_on(*at);
                let was_known = || !self.owners_before(datum, term, (register, held.content)).is_empty();
                return is_kept || had && is_lost && was_known();
            };
            let Some(between) = self.term_of(datum, *next) else { continue };
            let of_it = self.listings(datum, register).filter(|(_, of, _)| *of == between);
            let is_apart = || {
                let it = &self.terms[between];
                it.is_lost_on(*at)
                    || !it.has_been_at(*at) && of_it.clone().any(|(.., held)| held.content < content)
            };
            let mut owners = self.owners_before(datum, between, (register, content));
            owners.extend(of_it.clone().map(|(.., held)| held.owner));
            let is_awaited = |owner: &SessionId| !self.was_heard_of(between, *owner, *until);
            is_kept = (is_kept || had && is_apart()) && owners.iter().any(is_awaited);
        }
        false
    }

    /// What was listed of a registration at a revision.
    fn listed_at(&self, datum: usize, at: Revision, register: RegisterId) -> impl Iterator<Item = &Held> {
        self.lists_at(datum, at).iter().filter_map(move |(_, list)| list.get(&register))
    }

    /// The term that a revision is of.
    fn term_of(&self, datum: usize, at: Revision) -> Option<usize> {
        self.lists_at(datum, at).last().map(|(term, _)| *term)
    }

    fn lists_at(&self, datum: usize, at: Revision) -> &[(usize, List)] {
        let of_epoch = (datum, Revision::open(at.epoch()))..=(datum, at);
        self.history.range(of_epoch).next_back().map_or(&[], |(_, lists)| lists)
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
        let now = oracle.now;
        oracle.told.entry(READERS).or_default().goes_on(DATUM, now, from);
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

    /// A fourth leader begins with nothing, and hears of content 2.
    fn lost_again(oracle: &mut Oracle) -> usize {
        let slot = oracle.datums[DATUM].key().slot(SLOTS);
        let process = oracle.node_started(4);
        let term = oracle.term(slot, process, 4);
        let list = Rc::new(BTreeMap::from([(REGISTER, held(2))]));
        oracle.history.insert((DATUM, at(4, 1)), vec![(term, list)]);
        oracle.terms[term].revision = at(4, 1);
        term
    }

    #[test]
    fn what_is_kept_when_the_leader_is_lost_is_kept_for_the_next() {
        let (mut oracle, _) = copy_of_a_successor();
        let term = lost_again(&mut oracle);
        let keeps = |oracle: &Oracle| oracle.may_be_kept((CLIENT, DATUM), term, (REGISTER, 0), &held(2));
        left(&mut oracle, at(1, 5));
        assert!(!keeps(&oracle), "from there it went on to the fourth, who had nothing to compare it with");
        left(&mut oracle, at(3, 0));
        assert!(keeps(&oracle));
        oracle.terms[term].confirmed.insert(OWNERS, 0);
        oracle.now = WORD_MAX;
        assert!(!keeps(&oracle), "by now it has heard of the owner");
    }

    #[test]
    fn what_was_decided_with_the_leader_before_is_not_kept() {
        let (mut oracle, third) = copy_of_a_successor();
        let term = lost_again(&mut oracle);
        oracle.terms[third].confirmed.insert(OWNERS, 0);
        left(&mut oracle, at(1, 5));
        oracle.now = WORD_MAX;
        left(&mut oracle, at(3, 0));
        assert!(!oracle.may_be_kept((CLIENT, DATUM), term, (REGISTER, 0), &held(2)));
    }
}
