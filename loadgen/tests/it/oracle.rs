//! Random histories: a right one must pass, every way of spoiling one must be noticed.

use loadgen::{
    board::Board,
    clock::SECOND,
    random::Random,
    samples::{Measured, Samples},
    schedule::Synthetic,
    verify::{
        oracle::{Held, Oracle, Taken},
        truth::Findings,
    },
    workload::{Kind, Workload},
};
use proptest::prelude::*;

use crate::registry::{Content, Registry};

/// How a history is spoilt, once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    DroppedDiff,
    DuplicatedDiff,
    OlderSnapshot,
    LostRemoval,
    Resurrected,
    PartialSnapshot,
    FlippedBit,
    LateResume,
    AheadOfItsRevision,
    RecordFromTheFuture,
}

struct Subscriber {
    client: u32,
    service: u32,
    /// What the registry believes this subscriber to hold.
    known: u64,
    /// A snapshot from earlier on, and the last frame.
    first: Option<Content>,
    last: Option<Content>,
}

struct Simulation<'w> {
    workload: &'w Workload,
    board: &'w Board,
    registry: Registry<'w>,
    oracle: Oracle<'w>,
    samples: Samples<'w>,
    held: Vec<Held>,
    subscribers: Vec<Subscriber>,
    random: Random,
    clock: u64,
    unanswered: Vec<(u32, u64)>,
    fault: Option<Fault>,
    is_spoilt: bool,
    /// Now and then the session goes, and what it has not answered is sent over another.
    moves: bool,
}

struct Seen {
    findings: Findings,
    measured: Measured,
    is_spoilt: bool,
}

fn workload(seed: u64) -> Workload {
    let synthetic = Synthetic {
        clients: 6,
        services: 3,
        subscriptions_per_client: 2,
        publishers: 9,
        changes_per_sec: 100.0,
        payload_bytes: 32,
        warmup_ns: SECOND / 5,
        window_ns: SECOND,
        skew: None,
        seed,
        canaries: 0,
        tag: 0,
        notes: Vec::new(),
    };
    synthetic.build(0..6).unwrap()
}

fn simulate(seed: u64, fault: Option<Fault>, moves: bool) -> (Seen, u64) {
    let workload = workload(seed);
    let folder = tempfile::tempdir().unwrap();
    let board = Board::create(&folder.path().join("board"), 1, workload.ops().len()).unwrap();
    board.set_start(1_000);
    let mut oracle = Oracle::new(&workload, &board);
    let held = workload.subscriptions().all().iter().map(|&service| oracle.subscribe(service)).collect();
    let subscribers = (0..6u32)
        .flat_map(|client| workload.subscriptions().of(client).iter().map(move |&service| (client, service)))
        .map(|(client, service)| Subscriber { client, service, known: 0, first: None, last: None })
        .collect();
    let simulation = Simulation {
        workload: &workload,
        board: &board,
        registry: Registry::new(&workload),
        oracle,
        samples: Samples::new(&workload, &board),
        held,
        subscribers,
        random: Random::new(seed, 99),
        clock: 1_000,
        unanswered: Vec::new(),
        fault,
        is_spoilt: false,
        moves,
    };
    (simulation.run(), workload.deliveries())
}

impl Simulation<'_> {
    fn run(mut self) -> Seen {
        for op in self.workload.staged() {
            self.send(op as u32);
        }
        self.answer(true);
        for index in 0..self.subscribers.len() {
            self.deliver(index);
        }
        for op in self.workload.planned() {
            self.clock = self.clock.max(self.board.start() + self.workload.ops()[op].at);
            self.send(op as u32);
            if self.random.below(3) == 0 {
                self.answer(false);
            }
            if self.moves && self.random.below(8) == 0 {
                self.resend();
            }
            for _ in 0..self.random.below(6) {
                let index = self.random.below(self.subscribers.len());
                self.deliver(index);
            }
        }
        self.answer(true);
        for index in 0..self.subscribers.len() {
            self.deliver(index);
        }
        for (covered, pairs) in self.oracle.leftovers().0 {
            self.samples.resolve(covered, self.clock, pairs);
        }
        let findings = self.oracle.finish(&self.held);
        Seen { findings, measured: self.samples.finish(), is_spoilt: self.is_spoilt }
    }

    fn send(&mut self, op: u32) {
        self.clock += 10;
        self.board.set_sent(op, self.clock);
        let is_new_batch = self.random.below(4) > 0;
        let revision = self.registry.apply(op, is_new_batch);
        self.unanswered.push((op, revision));
    }

    fn answer(&mut self, all: bool) {
        let count = if all { self.unanswered.len() } else { self.random.below(self.unanswered.len() + 1) };
        for (op, revision) in self.unanswered.drain(..count) {
            self.clock += 10;
            self.board.set_answer(op, self.clock, revision);
        }
    }

    /// What was not answered had its effect, which nobody told; now it is acknowledged, at whatever revision things are by then.
    fn resend(&mut self) {
        for (op, _) in std::mem::take(&mut self.unanswered) {
            self.clock += 10;
            let publisher = self.workload.ops()[op as usize].publisher;
            let service = self.workload.publishers()[publisher as usize].service;
            self.board.set_resent(op);
            self.board.set_answer(op, self.clock, self.registry.lists[service as usize].revision);
        }
    }

    fn deliver(&mut self, index: usize) {
        let Subscriber { service, known, .. } = self.subscribers[index];
        let revision = self.registry.lists[service as usize].revision;
        if known == revision {
            return;
        }
        self.registry.lists[service as usize].is_told = true;
        // A snapshot would mend what a dropped diff broke before any list is wrong.
        let mends = self.fault == Some(Fault::DroppedDiff);
        let is_snapshot = known == 0 || (!mends && self.random.below(8) == 0);
        let mut content = self.registry.diff(service, known);
        if is_snapshot {
            // Whoever held something before may be told what is gone beside what is there.
            let removes = if known > 0 && known % 2 == 0 { content.removes } else { Vec::new() };
            content = Content { removes, ..self.registry.snapshot(service) };
        }
        self.subscribers[index].known = revision;
        let was_spoilt = self.is_spoilt;
        if !was_spoilt && known > 0 && self.spoil(index, &content) {
            return;
        }
        if is_snapshot {
            self.subscribers[index].first.get_or_insert_with(|| content.clone());
        }
        self.subscribers[index].last = Some(content.clone());
        self.take(index, content.write(self.workload));
    }

    /// Delivers something else than `content`, if the fault fits the moment.
    fn spoil(&mut self, index: usize, content: &Content) -> bool {
        let subscriber = &self.subscribers[index];
        let (first, last) = (subscriber.first.clone(), subscriber.last.clone());
        let known = last.as_ref().map_or(0, |last| last.to);
        let mut spoilt = content.clone();
        let is_diff = !content.is_snapshot;
        let changes = content.puts.len() + content.removes.len();
        let frames = match self.fault {
            Some(Fault::DroppedDiff) if is_diff && !content.puts.is_empty() => vec![],
            Some(Fault::DuplicatedDiff) if is_diff && changes > 0 => vec![content.clone(), content.clone()],
            Some(Fault::OlderSnapshot) if first.as_ref().is_some_and(|first| first.to < known) => {
                vec![content.clone(), first.unwrap()]
            }
            Some(Fault::LostRemoval) if is_diff && self.shows_any(index, &content.removes) => {
                spoilt.removes.clear();
                vec![spoilt]
            }
            Some(Fault::Resurrected) if is_diff && self.shows_any(index, &content.removes) => {
                let publisher = content.removes[0];
                let number = self.last_shown(publisher);
                let back = Content {
                    from: content.to,
                    to: content.to + 1,
                    removes: Vec::new(),
                    puts: vec![(publisher, number)],
                    ..content.clone()
                };
                vec![content.clone(), back]
            }
            Some(Fault::PartialSnapshot) if content.is_snapshot && !content.puts.is_empty() => {
                spoilt.puts.pop();
                vec![spoilt]
            }
            Some(Fault::LateResume) if is_diff && changes > 0 => {
                let late = self.registry.diff(content.service, known + 1);
                if late.puts == content.puts && late.removes == content.removes {
                    return false;
                }
                vec![Content { from: known, ..late }]
            }
            Some(Fault::AheadOfItsRevision)
                if is_diff && !content.puts.is_empty() && known + 1 < content.to =>
            {
                spoilt.to = known + 1;
                let next = self.registry.diff(content.service, known + 1);
                if next.puts.is_empty() {
                    return false;
                }
                vec![spoilt, next]
            }
            Some(Fault::RecordFromTheFuture) if is_diff && !content.puts.is_empty() => {
                return self.spoil_record(index, content);
            }
            Some(Fault::FlippedBit) if changes > 0 => {
                self.is_spoilt = true;
                let mut bytes = content.write(self.workload);
                let at = 5 + self.random.below(bytes.len() - 5);
                bytes[at] ^= 1 << self.random.below(8);
                self.take(index, bytes);
                return true;
            }
            _ => return false,
        };
        self.is_spoilt = true;
        for content in frames {
            self.take(index, content.write(self.workload));
        }
        true
    }

    /// A record that its publisher is only going to publish.
    fn spoil_record(&mut self, index: usize, content: &Content) -> bool {
        let (publisher, number) = content.puts[0];
        let future = self.workload.ops_of(publisher).len() as u32;
        let kind = self.workload.ops()[self.workload.ops_of(publisher)[future as usize - 1] as usize].kind;
        if future <= number || kind == Kind::Unregister {
            return false;
        }
        self.is_spoilt = true;
        let mut spoilt = content.clone();
        spoilt.puts[0] = (publisher, future);
        self.take(index, spoilt.write(self.workload));
        true
    }

    fn shows_any(&self, index: usize, publishers: &[u32]) -> bool {
        let last = self.subscribers[index].last.as_ref();
        let shown =
            |publisher: &u32| last.is_some_and(|last| last.puts.iter().any(|(put, _)| put == publisher));
        publishers.first().is_some_and(shown)
    }

    fn last_shown(&self, publisher: u32) -> u32 {
        let ops = self.workload.ops_of(publisher).iter().map(|&op| self.workload.ops()[op as usize]);
        let sent =
            ops.filter(|op| self.board.sent(self.workload.ops_of(publisher)[op.number as usize - 1]) > 0);
        sent.filter(|op| op.kind != Kind::Unregister).map(|op| op.number).next_back().unwrap()
    }

    fn take(&mut self, index: usize, bytes: Vec<u8>) {
        self.clock += 10;
        let client = self.subscribers[index].client;
        let span = self.workload.subscriptions().span(client);
        let services = self.workload.subscriptions().of(client);
        let held = &mut self.held[span];
        let find = |service: u32| services.binary_search(&service).ok().map(move |at| &mut held[at]);
        if let Taken::Applied { transition, is_snapshot, .. } = self.oracle.take(&bytes, find) {
            self.samples.applied(transition, is_snapshot, bytes.len());
        }
        self.samples.settle(self.clock);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_right_history_is_clean_and_every_pair_has_one_sample(seed: u64, moves: bool) {
        let (seen, planned) = simulate(seed, None, moves);
        prop_assert!(seen.findings.is_clean(), "{:?}", seen.findings);
        prop_assert_eq!(seen.measured.latency.len(), planned);
        prop_assert_eq!(seen.measured.service.len(), planned);
        prop_assert_eq!(seen.measured.counts.change_deliveries, planned);
        prop_assert!(seen.measured.counts.pushes > 0 && seen.measured.counts.pushes <= planned);
    }
}

fn spoilt(fault: Fault) -> Vec<Findings> {
    let seen: Vec<Seen> =
        (0..24).map(|seed| simulate(seed, Some(fault), false).0).filter(|seen| seen.is_spoilt).collect();
    assert!(seen.len() > 3, "{fault:?} hardly ever fits");
    for seen in &seen {
        assert!(!seen.findings.is_clean(), "{fault:?} went unnoticed");
    }
    seen.into_iter().map(|seen| seen.findings).collect()
}

#[test]
fn a_dropped_diff_is_noticed() {
    let ends_wrong = |findings: &Findings| findings.missing + findings.unresolved > 0;
    assert!(spoilt(Fault::DroppedDiff).iter().all(|findings| findings.stale > 0 || ends_wrong(findings)));
}

#[test]
fn a_duplicated_diff_is_stale() {
    assert!(
        spoilt(Fault::DuplicatedDiff).iter().all(|findings| findings.stale == 1 && findings.partial == 0)
    );
}

#[test]
fn an_older_list_is_stale() {
    assert!(spoilt(Fault::OlderSnapshot).iter().all(|findings| findings.stale == 1));
}

#[test]
fn a_lost_removal_is_extra() {
    assert!(spoilt(Fault::LostRemoval).iter().all(|findings| findings.extra > 0));
}

#[test]
fn a_removed_registration_that_comes_back_is_resurrected() {
    assert!(spoilt(Fault::Resurrected).iter().all(|findings| findings.resurrected > 0));
}

#[test]
fn a_snapshot_that_lacks_one_is_partial() {
    assert!(spoilt(Fault::PartialSnapshot).iter().all(|findings| findings.partial > 0));
}

#[test]
fn wrong_bytes_are_noticed() {
    assert!(spoilt(Fault::FlippedBit).iter().all(|findings| findings.stale > 0));
}

#[test]
fn a_resume_answered_one_revision_late_is_noticed() {
    spoilt(Fault::LateResume);
}

#[test]
fn content_from_after_its_revision_is_extra() {
    assert!(spoilt(Fault::AheadOfItsRevision).iter().any(|findings| findings.extra > 0));
}

#[test]
fn content_that_was_not_published_yet_is_extra() {
    assert!(spoilt(Fault::RecordFromTheFuture).iter().all(|findings| findings.extra > 0));
}
