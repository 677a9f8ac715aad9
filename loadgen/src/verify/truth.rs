//! What the registry held at each revision, from the acknowledgements, and how the lists compare with it.
//!
//! An operation that was acknowledged at revision `r` is in every list stamped `r` or later and in none before. One that was
//! not acknowledged may be in or not, and one that had to be sent twice may be in earlier, too. All of it follows from the board
//! alone, so each worker checks what its subscribers saw.

use hashbrown::{HashMap, HashSet};
use serde::{Deserialize, Serialize};

use crate::{
    board::Board,
    verify::{
        frame::Fault,
        oracle::{Held, Oracle},
        states::{Place, content},
        transition::Covered,
    },
    workload::{Kind, Workload},
};

const EXAMPLES_MAX: usize = 10;

/// What was found wrong, counted per subscriber.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Findings {
    /// Registrations absent, or of older content, in a list at the end.
    pub missing: u64,
    /// Registrations in a list that must not be there, at the end or on the way.
    pub extra: u64,
    /// Frames that a client would have to refuse.
    pub stale: u64,
    /// Removed registrations that came back by themselves.
    pub resurrected: u64,
    /// Lists delivered that were short of what their revision promises.
    pub partial: u64,
    /// Records delivered that no client published; part of `extra`.
    pub foreign: u64,
    /// Planned (change, subscriber) pairs that were never resolved.
    pub unresolved: u64,
    /// A few of them in words.
    pub examples: Vec<String>,
}

impl Findings {
    /// Counts frames that a client would refuse.
    pub fn refuse(&mut self, fault: Fault, count: u64) {
        self.stale += count;
        self.example(|| format!("stale: a frame refused, {fault}"));
    }

    /// Adds those of another worker.
    pub fn add(&mut self, other: Findings) {
        self.missing += other.missing;
        self.extra += other.extra;
        self.stale += other.stale;
        self.resurrected += other.resurrected;
        self.partial += other.partial;
        self.foreign += other.foreign;
        self.unresolved += other.unresolved;
        self.examples.extend(other.examples);
        self.examples.truncate(EXAMPLES_MAX);
    }

    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        [self.missing, self.extra, self.stale, self.resurrected, self.partial, self.unresolved] == [0; 6]
    }

    fn example(&mut self, text: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(text());
        }
    }
}

/// How a list compares with the truth.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Difference {
    /// Entries absent or older than they must be.
    short: u32,
    /// Entries that must not be there.
    beyond: u32,
    /// A place that differs.
    place: u32,
}

impl Oracle<'_> {
    /// Compares everything that was seen with everything that was acknowledged. `held` are all subscriptions at the end.
    pub fn finish(&mut self, held: &[Held]) -> Findings {
        let truth = Truth::new(self.workload, self.board);
        self.check_observations(&truth);
        self.check_ends(&truth, held);
        self.findings.extra += self.findings.foreign;
        self.findings.clone()
    }

    /// Pairs that only their cancellation resolves, for subscribers whose list never showed them, with how many
    /// subscribers that is; and how many pairs are left over.
    pub fn leftovers(&mut self) -> (Vec<(Covered, u64)>, u64) {
        let behind: Vec<(u32, u32)> = self
            .states
            .held()
            .filter(|&(state, _)| {
                self.states.planned(state) < self.workload.planned_of(self.states.service(state))
            })
            .collect();
        let (mut cancelled, mut unresolved) = (Vec::new(), 0);
        for (state, holders) in behind {
            let list = self.states.list(state);
            let publishers = self.workload.publishers_of(self.states.service(state));
            for (&publisher, place) in publishers.iter().zip(list.iter()) {
                let rest = leftovers_of(self.workload, self.board, publisher, *place);
                unresolved += rest.1 * u64::from(holders);
                cancelled.extend(rest.0.into_iter().map(|covered| (covered, u64::from(holders))));
            }
        }
        (cancelled, unresolved)
    }

    /// Every distinct list at every revision it was stamped with. Lists are compared by the sum over their content where
    /// everything of the service is acknowledged, and place by place where that differs.
    fn check_observations(&mut self, truth: &Truth<'_>) {
        let mut order: Vec<u32> = (0..self.observations.len() as u32).collect();
        let key = |index: &u32| {
            let seen = &self.observations[*index as usize];
            (self.states.service(seen.state), seen.revision)
        };
        order.sort_unstable_by_key(key);
        let mut sweep: Option<Sweep> = None;
        for index in order {
            let seen = self.observations[index as usize];
            let service = self.states.service(seen.state);
            if sweep.as_ref().is_none_or(|sweep| sweep.service != service) {
                sweep = Some(truth.sweep(service));
            }
            let Some(sweep) = &mut sweep else { continue };
            if sweep.advance(truth, seen.revision) == Some(self.states.content(seen.state)) {
                continue;
            }
            let list = self.states.list(seen.state);
            let difference = truth.compare(service, &list, seen.revision);
            let count = u64::from(seen.count);
            if difference.short > 0 {
                self.findings.partial += count;
            }
            if difference.beyond > 0 {
                self.findings.extra += count;
            }
            if difference != Difference::default() {
                self.tell("list", service, &list, &difference, seen.revision);
            }
        }
    }

    /// The lists at the end, when everything acknowledged has had time to arrive.
    fn check_ends(&mut self, truth: &Truth<'_>, held: &[Held]) {
        let held_states: Vec<(u32, u32)> = self.states.held().collect();
        for (state, holders) in held_states {
            let service = self.states.service(state);
            let list = self.states.list(state);
            let difference = truth.compare(service, &list, u64::MAX);
            self.findings.missing += u64::from(difference.short) * u64::from(holders);
            self.findings.extra += u64::from(difference.beyond) * u64::from(holders);
            if difference != Difference::default() {
                self.tell("end", service, &list, &difference, u64::MAX);
            }
        }
        let unanswered = held.iter().filter(|held| held.revision == 0).count() as u64;
        if unanswered > 0 {
            // An empty list would still be an answer; none at all is worse than any that is missing an entry.
            self.findings.missing += unanswered;
            self.findings.example(|| format!("missing: {unanswered} subscriptions were never answered"));
        }
        self.findings.unresolved = self.leftovers().1;
    }

    fn tell(&mut self, what: &str, service: u32, list: &[Place], difference: &Difference, revision: u64) {
        let id = &self.workload.services()[service as usize];
        let publisher = self.workload.publishers_of(service)[difference.place as usize];
        let place = list[difference.place as usize];
        let Difference { short, beyond, .. } = difference;
        let at = if revision == u64::MAX { String::new() } else { format!(" at revision {revision:#x}") };
        self.findings.example(|| {
            format!(
                "{what} of {id}{at}: {short} short, {beyond} beyond; publisher {publisher} is shown with operation {}",
                place.shown
            )
        });
    }
}

/// What is left of one publisher's planned operations for a list that shows `place`.
fn leftovers_of(workload: &Workload, board: &Board, publisher: u32, place: Place) -> (Vec<Covered>, u64) {
    let ops = workload.ops_of(publisher);
    let mut cancelled = Vec::new();
    let mut waiting: Vec<u32> = Vec::new();
    for &op in &ops[place.covered as usize..] {
        if workload.is_planned(op) {
            waiting.push(op);
        }
        let undoes = place.shown == 0 && workload.ops()[op as usize].kind == Kind::Unregister;
        if undoes && board.acknowledged(op).is_some() {
            cancelled
                .extend(waiting.drain(..).map(|covered| Covered { op: covered, cancelled_by: Some(op) }));
        }
    }
    (cancelled, waiting.len() as u64)
}

/// What the acknowledgements say.
struct Truth<'w> {
    workload: &'w Workload,
    board: &'w Board,
    /// Per service, acknowledged operations by revision.
    acknowledged: HashMap<u32, Vec<(u64, u32)>>,
    /// Services with operations that were sent and not acknowledged, or sent more than once.
    uncertain: HashSet<u32>,
}

impl<'w> Truth<'w> {
    fn new(workload: &'w Workload, board: &'w Board) -> Self {
        let mut acknowledged: HashMap<u32, Vec<(u64, u32)>> = HashMap::new();
        let mut uncertain = HashSet::new();
        for (op, entry) in (0u32..).zip(workload.ops()) {
            let service = workload.publishers()[entry.publisher as usize].service;
            if board.is_resent(op) {
                uncertain.insert(service);
            }
            match board.acknowledged(op) {
                Some((_, revision)) => acknowledged.entry(service).or_default().push((revision, op)),
                None if board.sent(op) > 0 => drop(uncertain.insert(service)),
                None => {}
            }
        }
        acknowledged.values_mut().for_each(|row| row.sort_unstable());
        Self { workload, board, acknowledged, uncertain }
    }

    fn sweep(&self, service: u32) -> Sweep {
        let places = self.workload.publishers_of(service).len();
        Sweep { service, next: 0, shown: vec![0; places], content: 0 }
    }

    /// Compares a list with what it must be at `revision`.
    fn compare(&self, service: u32, list: &[Place], revision: u64) -> Difference {
        let mut difference = Difference::default();
        for (place, (&publisher, seen)) in self.workload.publishers_of(service).iter().zip(list).enumerate() {
            let must = self.shown_at(publisher, revision);
            if seen.shown == must || self.may_show(publisher, revision, seen.shown) {
                continue;
            }
            difference.place = place as u32;
            if must > 0 && seen.shown < must {
                difference.short += 1;
            } else {
                difference.beyond += 1;
            }
        }
        difference
    }

    /// The operation that a list at `revision` shows of a publisher, acknowledgements alone considered.
    fn shown_at(&self, publisher: u32, revision: u64) -> u32 {
        self.latest(publisher, revision).map_or(0, |op| self.effect(op))
    }

    fn latest(&self, publisher: u32, revision: u64) -> Option<u32> {
        let ops = self.workload.ops_of(publisher).iter().rev().copied();
        ops.into_iter().find(|&op| self.board.acknowledged(op).is_some_and(|(_, at)| at <= revision))
    }

    /// Whether operations that nobody acknowledged may have led to `shown`.
    fn may_show(&self, publisher: u32, revision: u64, shown: u32) -> bool {
        let latest = self.latest(publisher, revision).map_or(0, |op| self.workload.ops()[op as usize].number);
        let later = &self.workload.ops_of(publisher)[latest as usize..];
        later
            .iter()
            // Refused ones did nothing; an acknowledged one lies behind `revision`, and so does all that follows it.
            .filter(|&&op| self.board.answer(op).is_none_or(|(_, outcome)| outcome >= 1 << 40))
            .take_while(|&&op| {
                let may_be = self.board.answer(op).is_none() || self.board.is_resent(op);
                may_be && self.board.sent(op) > 0
            })
            .any(|&op| self.effect(op) == shown)
    }

    fn effect(&self, op: u32) -> u32 {
        let op = &self.workload.ops()[op as usize];
        if op.kind == Kind::Unregister { 0 } else { op.number }
    }
}

/// The list of one service as revisions go by.
struct Sweep {
    service: u32,
    next: usize,
    shown: Vec<u32>,
    content: u64,
}

impl Sweep {
    /// The sum over the list's content at `revision`, which never goes back; `None` where it is not certain.
    fn advance(&mut self, truth: &Truth<'_>, revision: u64) -> Option<u64> {
        let row = truth.acknowledged.get(&self.service).map(Vec::as_slice).unwrap_or_default();
        while let Some(&(_, op)) = row.get(self.next).filter(|(at, _)| *at <= revision) {
            let place =
                truth.workload.publishers()[truth.workload.ops()[op as usize].publisher as usize].place;
            let was = std::mem::replace(&mut self.shown[place as usize], truth.effect(op));
            self.content = self
                .content
                .wrapping_sub(content(place, was))
                .wrapping_add(content(place, self.shown[place as usize]));
            self.next += 1;
        }
        (!truth.uncertain.contains(&self.service)).then_some(self.content)
    }
}
