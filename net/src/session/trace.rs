//! What has been removed since the revision that a client claims to hold.
//!
//! A client comes from another session with a list that this one has never had. What is absent here from that list may have
//! been removed in between, or may have an owner that has not come back to the leader yet: absence does not tell. The leader
//! does. Asked for what lies after the claim, it names what it has removed since, if the claim is of its own history; and until
//! that answer is here the client is told nothing.
//!
//! What it tells everybody may come between the echo of the question and the answer, for the two may be read in different turns. It
//! is told apart by where it begins: behind the claim, which says nothing of what was removed from the claim up to there.

use slotcast_engine::{
    diff::Diff,
    id::{RegisterId, Revision},
};

/// Claims about one data id that are remembered. Clients in step have the same claim; of what lies beyond, absence tells in the
/// end.
const CLAIMS_MAX: usize = 64;

/// A question to the leader of a slot.
#[derive(Clone, Copy)]
struct Asked {
    claim: Revision,
    link: usize,
    epoch: u32,
    number: u64,
}

/// The claims about one data id.
#[derive(Default)]
pub(super) struct Traces {
    told: Vec<(Revision, Box<[RegisterId]>)>,
    asked: Option<Asked>,
}

/// What is to be done about a claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trace {
    /// All that is to be known of it is known.
    Known,
    /// The leader is to be asked.
    Ask,
    /// The leader has been asked, about this claim or another.
    Wait,
}

impl Traces {
    /// What is to be done about a claim, where `link` leads in `epoch`.
    pub(super) fn of(&self, claim: Revision, (link, epoch): (usize, u32)) -> Trace {
        if self.told.len() >= CLAIMS_MAX || self.told.iter().any(|(told, _)| *told == claim) {
            return Trace::Known;
        }
        match self.asked {
            Some(asked) if (asked.link, asked.epoch) == (link, epoch) => Trace::Wait,
            _ => Trace::Ask,
        }
    }

    /// The leader has been asked with question `number`.
    pub(super) fn ask(&mut self, claim: Revision, (link, epoch): (usize, u32), number: u64) {
        self.asked = Some(Asked { claim, link, epoch, number });
    }

    /// A diff or snapshot has come from the leader, who has read the questions up to `answered`. Returns whether it answers
    /// one about a claim.
    pub(super) fn hear(&mut self, (link, epoch): (usize, u32), answered: u64, diff: &Diff<'_>) -> bool {
        let is_answer = |asked: &mut Asked| {
            (asked.link, asked.epoch) == (link, epoch) && asked.number <= answered && diff.from <= asked.claim
        };
        let Some(asked) = self.asked.take_if(is_answer) else { return false };
        self.told.push((asked.claim, diff.removes().collect()));
        true
    }

    /// What was asked may never be answered, or the leader is asked something else about the data id, which may take the place of
    /// it: it has to be asked again.
    pub(super) fn forget_question(&mut self) {
        self.asked = None;
    }

    /// The registrations that are known to have been removed since a claim.
    pub(super) fn removed_since(&self, claim: Revision) -> &[RegisterId] {
        let told = self.told.iter().find(|(told, _)| *told == claim);
        told.map_or(&[], |(_, removed)| removed)
    }
}

#[cfg(test)]
mod tests {
    use slotcast_engine::{
        diff::{SNAPSHOT, write},
        id::DatumKey,
    };

    use super::*;

    const LEADER: (usize, u32) = (2, 7);

    fn at(counter: u64) -> Revision {
        Revision(Revision::open(3).0 + counter)
    }

    /// What the leader tells of the time since a revision: that 4 has gone.
    fn told(flags: u8, from: Revision) -> (u8, Vec<u8>) {
        let mut body = Vec::new();
        write(&mut body, DatumKey(9), (from, at(2000)), &[RegisterId(4)], None, std::iter::empty());
        (flags, body)
    }

    fn hear(traces: &mut Traces, leader: (usize, u32), answered: u64, (flags, body): &(u8, Vec<u8>)) -> bool {
        traces.hear(leader, answered, &Diff::read(*flags, body).unwrap())
    }

    #[test]
    fn one_claim_is_asked_about_at_a_time_and_only_an_answer_of_its_leader_counts() {
        let mut traces = Traces::default();
        assert_eq!(traces.of(at(1), LEADER), Trace::Ask);
        traces.ask(at(1), LEADER, 5);
        assert_eq!([1, 2].map(|counter| traces.of(at(counter), LEADER)), [Trace::Wait; 2]);
        let answer = told(0, at(1));
        assert!(!hear(&mut traces, LEADER, 4, &answer), "told before the question");
        assert!(!hear(&mut traces, (2, 8), 5, &answer), "told in another epoch");
        assert!(hear(&mut traces, LEADER, 5, &answer));
        assert!(!hear(&mut traces, LEADER, 5, &answer), "answered");
        assert_eq!((traces.of(at(1), LEADER), traces.of(at(2), LEADER)), (Trace::Known, Trace::Ask));
        assert_eq!(traces.removed_since(at(1)), [RegisterId(4)]);
        assert!(traces.removed_since(at(2)).is_empty());
    }

    #[test]
    fn what_begins_behind_the_claim_is_no_answer() {
        for flags in [0, SNAPSHOT] {
            let mut traces = Traces::default();
            traces.ask(at(3), LEADER, 5);
            assert!(!hear(&mut traces, LEADER, 5, &told(flags, at(4))), "told to everybody");
            assert_eq!(traces.of(at(3), LEADER), Trace::Wait);
            assert!(
                hear(&mut traces, LEADER, 5, &told(flags, at(2))),
                "from the last change before the claim"
            );
        }
        let mut traces = Traces::default();
        traces.ask(at(3), LEADER, 5);
        assert!(hear(&mut traces, LEADER, 5, &told(SNAPSHOT, Revision::ZERO)), "of another history");
    }

    #[test]
    fn the_next_leader_is_asked_what_the_former_one_has_not_answered() {
        let mut traces = Traces::default();
        traces.ask(at(1), LEADER, 5);
        assert_eq!(traces.of(at(1), (3, 8)), Trace::Ask);
    }

    #[test]
    fn no_more_claims_are_asked_about_than_are_remembered() {
        let mut traces = Traces::default();
        for claim in 0..CLAIMS_MAX as u64 {
            assert_eq!(traces.of(at(claim), LEADER), Trace::Ask);
            traces.ask(at(claim), LEADER, claim);
            assert!(hear(&mut traces, LEADER, claim, &told(SNAPSHOT, Revision::ZERO)));
        }
        assert_eq!(traces.of(at(1000), LEADER), Trace::Known);
    }
}
