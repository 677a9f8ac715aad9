//! What every list may hold: the steps that each registration took, as its client's connection said them and as they were
//! acknowledged.
//!
//! A list stamped `R` shows each registration after one of its steps: no earlier than the last that was acknowledged at or
//! before `R`, no later than the last that had been sent when the list arrived. Acknowledgements may come after the list
//! that shows the step, so lists are judged at the end of a round.
//!
//! A data node or session that has lost its memory cannot tell what was removed meanwhile, and absence is not removal: a
//! session keeps such a registration until its owner is confirmed, and so does a client whose session is not yet sure of its
//! list. That is *lingering*, and is counted. A list that has once shown it to be gone must not show it again.

use std::{collections::BTreeMap, fmt};

use slotcast_engine::id::{DatumKey, RegisterId};

use crate::clock::MILLISECOND;

/// A registration after a step: the checksum of its record, or nothing.
pub type Content = Option<u64>;

/// Something that a client did with a registration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Step {
    /// When it was sent, in nanoseconds.
    at: u64,
    content: Content,
    /// The revision that contains it, and when that was told.
    acknowledged: Option<(u64, u64)>,
}

struct History {
    client: u32,
    /// It stays until somebody asks for its removal, and what was acknowledged of it is never lost.
    is_kept: bool,
    steps: Vec<Step>,
}

/// A step of a registration, to be told when it is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    datum: DatumKey,
    register: RegisterId,
    step: usize,
    /// Grows when old steps are dropped.
    era: u64,
}

/// A list as a subscriber held it after a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// When the frame came, in nanoseconds.
    pub at: u64,
    /// At which client.
    pub client: u32,
    /// Which list: one that was given up and begun anew is another one.
    pub number: u64,
    /// Of which data id.
    pub datum: DatumKey,
    /// What the list is stamped with.
    pub revision: u64,
    /// The registrations in it.
    pub list: Vec<(RegisterId, u64)>,
}

/// What is wrong with a list.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Wrong {
    /// A registration is missing that was acknowledged.
    Partial,
    /// A registration is there that was removed, or that nobody made.
    Resurrected,
    /// A registration is there with content that it had before, or never.
    Outdated,
    /// The list goes back behind what the subscriber had.
    Stale,
    /// A diff that does not follow what the subscriber had, or a frame that cannot be read.
    Refused,
    /// A write was refused that should not be.
    WriteRefused,
    /// A list did not become what it should be.
    Unsettled,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Wrong::Partial => "partial",
            Wrong::Resurrected => "resurrected",
            Wrong::Outdated => "outdated",
            Wrong::Stale => "stale",
            Wrong::Refused => "refused",
            Wrong::WriteRefused => "write refused",
            Wrong::Unsettled => "unsettled",
        })
    }
}

/// A fault that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// What kind.
    pub wrong: Wrong,
    /// When, in nanoseconds.
    pub at: u64,
    /// At which client.
    pub client: u32,
    /// In which data id.
    pub datum: DatumKey,
    /// In words.
    pub what: String,
}

/// In which lists a removed registration was seen to be gone: at which revision, and when.
type Gone = BTreeMap<(u64, RegisterId), (u64, u64)>;

/// The steps of all registrations.
#[derive(Default)]
pub struct Truth {
    histories: BTreeMap<(DatumKey, RegisterId), History>,
    era: u64,
    sent: u64,
    seen: Vec<Seen>,
    gone: Gone,
    /// Lists judged so far.
    pub judged: u64,
    /// Lists in which a removed registration lingered.
    pub lingering: u64,
}

impl Truth {
    /// A client has sent a write: `content` is what it puts, nothing if it removes.
    pub fn sent(
        &mut self,
        at: u64,
        client: u32,
        (datum, register): (DatumKey, RegisterId),
        content: Content,
    ) -> Taken {
        self.step((at, content), (datum, register), client, false)
    }

    /// The same for a persistent registration.
    pub fn kept(
        &mut self,
        at: u64,
        client: u32,
        (datum, register): (DatumKey, RegisterId),
        content: Content,
    ) -> Taken {
        self.step((at, content), (datum, register), client, true)
    }

    fn step(
        &mut self,
        (at, content): (u64, Content),
        (datum, register): (DatumKey, RegisterId),
        client: u32,
        is_kept: bool,
    ) -> Taken {
        let history = self.histories.entry((datum, register)).or_insert_with(|| History {
            client,
            is_kept,
            // Before the first step there is nothing, and that counts as told.
            steps: vec![Step { at: 0, content: None, acknowledged: Some((0, 0)) }],
        });
        history.steps.push(Step { at, content, acknowledged: None });
        self.sent += 1;
        Taken { datum, register, step: history.steps.len() - 1, era: self.era }
    }

    /// Grows with every step that anybody takes.
    pub fn sent_count(&self) -> u64 {
        self.sent
    }

    /// A step is in effect from `revision` on.
    pub fn acknowledged(&mut self, at: u64, taken: Taken, revision: u64) {
        if taken.era != self.era {
            return;
        }
        let Some(history) = self.histories.get_mut(&(taken.datum, taken.register)) else { return };
        if let Some(step) = history.steps.get_mut(taken.step) {
            step.acknowledged.get_or_insert((revision, at));
        }
    }

    /// A client is gone, or taken for gone: all that it has registered may go.
    pub fn may_go(&mut self, at: u64, client: u32) {
        let held = self.histories.values_mut().filter(|history| history.client == client && !history.is_kept);
        for history in held.filter(|history| history.last().is_some()) {
            self.sent += 1;
            history.steps.push(Step { at, content: None, acknowledged: None });
        }
    }

    /// What was acknowledged to these clients since `from` may be lost after all: data node and session died together. What is
    /// persistent may not.
    pub fn may_be_lost(&mut self, from: u64, is_concerned: impl Fn(u32) -> bool) {
        let is_concerned = |history: &&mut History| !history.is_kept && is_concerned(history.client);
        for history in self.histories.values_mut().filter(is_concerned) {
            for step in history.steps.iter_mut().skip(1) {
                step.acknowledged = step.acknowledged.filter(|(_, at)| *at < from);
            }
        }
    }

    /// A subscriber holds another list.
    pub fn saw(&mut self, seen: Seen) {
        self.seen.push(seen);
    }

    /// Judges every list since the last time. Everything that is under way has been acknowledged by now, or never will be.
    /// `may_linger` says in which lists what was removed may still be.
    pub fn judge(&mut self, may_linger: impl Fn(&Seen) -> bool) -> Vec<Violation> {
        let seen = std::mem::take(&mut self.seen);
        self.judged += seen.len() as u64;
        let mut violations = Vec::new();
        for seen in &seen {
            let may_linger = may_linger(seen);
            let (violation, lingered) = judge(&self.histories, seen, &mut self.gone, may_linger);
            violations.extend(violation);
            self.lingering += u64::from(lingered);
        }
        violations
    }

    /// What a data id has to hold in the end.
    pub fn settled(&self, datum: DatumKey) -> Vec<(RegisterId, u64)> {
        let held = self.histories.range((datum, RegisterId(0))..=(datum, RegisterId(u64::MAX)));
        held.filter_map(|((_, register), history)| Some((*register, history.last()?))).collect()
    }

    /// Forgets the steps before the last ones: every list shows those now.
    pub fn compact(&mut self) {
        self.era += 1;
        self.gone.clear();
        self.histories.retain(|_, history| {
            let last = history.steps.len() - 1;
            history.steps.drain(..last);
            // It is in every list, so it is in effect whether or not that was told.
            history.steps[0].acknowledged.get_or_insert((0, 0));
            history.last().is_some()
        });
    }
}

/// What is wrong with a list, and whether something lingers in it; `gone` remembers what has been seen to be gone.
fn judge(
    histories: &BTreeMap<(DatumKey, RegisterId), History>,
    seen: &Seen,
    gone: &mut Gone,
    may_linger: bool,
) -> (Option<Violation>, bool) {
    let shown: BTreeMap<RegisterId, u64> = seen.list.iter().copied().collect();
    let violation = |wrong, register: RegisterId, what: String| Violation {
        wrong,
        at: seen.at,
        client: seen.client,
        datum: seen.datum,
        what: format!("registration {:x} in the list at {}: {what}", register.0, revision(seen.revision)),
    };
    let mut lingers = false;
    for ((_, register), history) in
        histories.range((seen.datum, RegisterId(0))..=(seen.datum, RegisterId(u64::MAX)))
    {
        let content = shown.get(register).copied();
        let last = history.steps.iter().rposition(|step| step.at <= seen.at);
        let Some(last) = last else { continue };
        let since = |step: &Step| step.acknowledged.is_some_and(|(at, _)| at <= seen.revision);
        let first = history.steps[..=last].iter().rposition(since).unwrap_or(0);
        let acknowledged = &history.steps[first];
        let place = (seen.number, *register);
        if history.steps[first..=last].iter().any(|step| step.content == content) {
            if content.is_some() {
                gone.remove(&place);
            } else if acknowledged.content.is_none() && first > 0 {
                gone.entry(place).or_insert((seen.revision, seen.at));
            }
            continue;
        }
        let least = acknowledged.acknowledged.map_or(0, |(at, _)| at);
        let since = format!("of client {}, acknowledged at {}", history.client, revision(least));
        let found = match (content, acknowledged.content) {
            (None, _) => violation(Wrong::Partial, *register, format!("missing; put {since}")),
            (Some(_), None) if may_linger && !gone.contains_key(&place) => {
                lingers = true;
                continue;
            }
            (Some(_), None) => {
                let seen_gone = gone.get(&place).map_or(String::new(), |(at, when)| {
                    format!("; it was gone in the list at {}, {} ms", revision(*at), when / MILLISECOND)
                });
                violation(Wrong::Resurrected, *register, format!("there; removed {since}{seen_gone}"))
            }
            // It was changed and then removed, and neither has been heard of here.
            (Some(_), Some(_))
                if may_linger
                    && !gone.contains_key(&place)
                    && history.steps[first..=last].iter().any(|step| step.content.is_none())
                    && history.steps[..first].iter().any(|step| step.content == content) =>
            {
                lingers = true;
                continue;
            }
            (Some(it), Some(_)) => {
                violation(Wrong::Outdated, *register, format!("{it:x} is not what was put {since}"))
            }
        };
        return (Some(found), lingers);
    }
    let unknown = shown.keys().find(|register| !histories.contains_key(&(seen.datum, **register)));
    let unknown = unknown.map(|it| violation(Wrong::Resurrected, *it, "nobody has registered it".into()));
    (unknown, lingers)
}

impl History {
    fn last(&self) -> Content {
        self.steps.last().and_then(|step| step.content)
    }
}

/// A revision as people read it: epoch and counter.
pub fn revision(number: u64) -> String {
    slotcast_engine::id::Revision(number).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATUM: DatumKey = DatumKey(5);

    fn seen(at: u64, revision: u64, list: &[(u64, u64)]) -> Seen {
        let list = list.iter().map(|(register, content)| (RegisterId(*register), *content)).collect();
        Seen { at, client: 9, number: 1, datum: DATUM, revision, list }
    }

    fn faults(truth: &mut Truth, lists: &[Seen]) -> Vec<Option<Wrong>> {
        let mut faults = Vec::new();
        for list in lists {
            truth.saw(list.clone());
            faults.push(truth.judge(|_| false).first().map(|violation| violation.wrong));
        }
        faults
    }

    #[test]
    fn lists_have_to_show_what_was_acknowledged_and_may_show_what_was_sent() {
        let mut truth = Truth::default();
        let put = truth.sent(10, 1, (DATUM, RegisterId(1)), Some(0xa));
        let again = truth.sent(20, 1, (DATUM, RegisterId(1)), Some(0xb));
        truth.acknowledged(15, put, 100);
        truth.acknowledged(40, again, 110);
        let found = faults(
            &mut truth,
            &[
                seen(12, 99, &[]),
                seen(12, 99, &[(1, 0xa)]),
                seen(12, 100, &[]),
                seen(12, 100, &[(1, 0xb)]),
                seen(30, 105, &[(1, 0xb)]),
                seen(30, 110, &[(1, 0xa)]),
                seen(30, 110, &[(1, 0xb), (2, 0xc)]),
            ],
        );
        use Wrong::*;
        let expected = [None, None, Some(Partial), Some(Outdated), None, Some(Outdated), Some(Resurrected)];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_was_removed_stays_away_until_it_is_put_again() {
        let mut truth = Truth::default();
        let key = (DATUM, RegisterId(1));
        let put = truth.sent(10, 1, key, Some(0xa));
        let removed = truth.sent(20, 1, key, None);
        truth.acknowledged(25, put, 100);
        truth.acknowledged(25, removed, 101);
        assert_eq!(faults(&mut truth, &[seen(30, 101, &[(1, 0xa)])]), [Some(Wrong::Resurrected)]);
        truth.sent(40, 1, key, Some(0xa));
        assert_eq!(faults(&mut truth, &[seen(50, 101, &[(1, 0xa)])]), [None]);
        truth.compact();
        assert_eq!(truth.settled(DATUM), [(RegisterId(1), 0xa)]);
        assert_eq!(faults(&mut truth, &[seen(60, 102, &[])]), [Some(Wrong::Partial)]);
    }

    #[test]
    fn what_was_removed_may_linger_where_that_is_allowed_but_not_come_back() {
        let mut truth = Truth::default();
        let key = (DATUM, RegisterId(1));
        let put = truth.sent(10, 1, key, Some(0xa));
        let removed = truth.sent(20, 1, key, None);
        truth.acknowledged(25, put, 100);
        truth.acknowledged(25, removed, 101);
        let with = |at| seen(at, 101, &[(1, 0xa)]);
        let lists = [with(30), with(31), seen(32, 102, &[]), seen(33, 103, &[(1, 0xa)])];
        lists.into_iter().for_each(|seen| truth.saw(seen));
        let found = truth.judge(|_| true);
        assert_eq!(found.iter().map(|it| (it.at, it.wrong)).collect::<Vec<_>>(), [(33, Wrong::Resurrected)]);
        assert_eq!(truth.lingering, 2);
    }

    #[test]
    fn what_is_persistent_stays_whoever_goes_and_whatever_crashes() {
        let mut truth = Truth::default();
        let put = truth.kept(10, 1, (DATUM, RegisterId(1)), Some(0xa));
        truth.acknowledged(21, put, 100);
        truth.may_be_lost(15, |_| true);
        truth.may_go(30, 1);
        assert_eq!(
            faults(&mut truth, &[seen(40, 200, &[(1, 0xa)]), seen(40, 200, &[])]),
            [None, Some(Wrong::Partial)]
        );
        assert_eq!(truth.settled(DATUM), [(RegisterId(1), 0xa)]);
        truth.kept(50, 1, (DATUM, RegisterId(1)), None);
        assert_eq!(faults(&mut truth, &[seen(60, 201, &[(1, 0xa)]), seen(60, 201, &[])]), [None, None]);
    }

    #[test]
    fn a_client_that_went_may_be_listed_or_not_and_a_double_crash_may_lose_the_latest() {
        let mut truth = Truth::default();
        let put = truth.sent(10, 1, (DATUM, RegisterId(1)), Some(0xa));
        truth.acknowledged(11, put, 100);
        let late = truth.sent(20, 1, (DATUM, RegisterId(2)), Some(0xb));
        truth.acknowledged(21, late, 101);
        truth.may_be_lost(15, |client| client == 1);
        let lists = [seen(30, 200, &[(1, 0xa)]), seen(30, 200, &[(2, 0xb)])];
        assert_eq!(faults(&mut truth, &lists), [None, Some(Wrong::Partial)]);
        truth.may_go(40, 1);
        assert_eq!(faults(&mut truth, &[seen(50, 201, &[(2, 0xb)]), seen(50, 201, &[])]), [None, None]);
        assert!(truth.settled(DATUM).is_empty());
    }
}
