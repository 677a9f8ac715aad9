//! A small permanent probe: clients of its own at running sessions that register, change, remove and subscribe, and look at every
//! list that reaches them.
//!
//! It sees only what it has made itself: data ids of a group that no other run has. Each round is one change, and it ends when
//! the lists of all its clients show it. While one does not, no other change is made, so a registry that is down costs the probe
//! nothing but the wait.

mod metrics;

pub mod report;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use axum::Router;
use hdrhistogram::Histogram;
use prometheus_client::registry::Registry;
use slotcast_engine::id::DataId;
use slotcast_net::{admin::Admin, process::wait_for_end};

use crate::{
    chaos::{
        participant::{Notes, Participant},
        truth::Violation,
    },
    clock::{Clock, Monotonic, SECOND},
    probe::metrics::ProbeMetrics,
    progress::Progress,
    random::Random,
};

/// Rounds after which a client says goodbye and comes back as another one.
const ROUNDS_PER_CLIENT: u64 = 30;
/// A client that has been without a session for this long may have been removed with its session's lease.
const LEASE_LEAST: u64 = 15 * SECOND;
/// Delays above this count as this.
const DELAY_MAX: u64 = 600 * SECOND;
/// Sleep while a change is under way, and while none is.
const NAP: Duration = Duration::from_millis(1);
const IDLE_NAP: Duration = Duration::from_millis(10);
/// Violations that are kept word by word.
const TOLD_MAX: usize = 20;
/// Lines of a violation's story.
const STORY_LINES: usize = 40;

/// What is to be probed, and how.
#[derive(Clone, Debug)]
pub struct ProbeSpec {
    /// Sessions; each gets a client of its own.
    pub targets: Vec<SocketAddr>,
    /// Where metrics are shown; none: nowhere.
    pub http: Option<SocketAddr>,
    /// Time from the begin of a round to that of the next.
    pub interval: Duration,
    /// A change that is not everywhere after this long is late.
    pub patience: Duration,
    /// Data ids.
    pub services: u32,
    /// It ends by itself after this long.
    pub duration: Option<Duration>,
}

/// What came of it.
#[derive(Default)]
pub struct Outcome {
    /// Rounds whose change was everywhere in time.
    pub good: u64,
    /// Rounds whose change was late somewhere.
    pub late: u64,
    /// Rounds that found something wrong.
    pub wrong: u64,
    /// What was wrong, the first ones.
    pub violations: Vec<Violation>,
    /// How many there were.
    pub violations_count: u64,
    /// The story of the first.
    pub story: Vec<String>,
    /// Lists judged.
    pub judged: u64,
    /// Nanoseconds from a change to a list that shows it, by session.
    pub latency: Vec<(SocketAddr, Histogram<u64>)>,
    /// Why a session was never reached, as far as it is known, in the order of `latency`; none of one that was.
    pub unreached: Vec<Option<String>>,
    /// Seconds that it ran.
    pub seconds: f64,
}

impl Outcome {
    /// Whether nothing was wrong and something was seen.
    pub fn is_good(&self) -> bool {
        self.violations_count == 0 && self.good > 0 && self.late == 0
    }
}

struct Probe<'p> {
    spec: &'p ProbeSpec,
    services: Vec<DataId>,
    participants: Vec<Participant>,
    notes: Notes,
    random: Random,
    payloads: u64,
    begun: u64,
    ends: Arc<AtomicBool>,
    metrics: ProbeMetrics,
    trouble: Arc<Mutex<Option<String>>>,
    outcome: Outcome,
    judged: u64,
    lingering: u64,
}

/// Probes until it is told to end, or for as long as was asked for. What it has registered is removed.
pub fn run(spec: &ProbeSpec, progress: &Progress) -> Result<Outcome> {
    ensure!(!spec.targets.is_empty(), "no session is named: --target ADDR");
    let ends = Arc::new(AtomicBool::new(false));
    let told = ends.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if let Err(error) = wait_for_end(|| false) {
            eprintln!("error: {error:#}");
        }
        told.store(true, Ordering::Relaxed);
    })?;
    let mut registry = Registry::with_prefix("slotcast_probe");
    let metrics = ProbeMetrics::new(&mut registry);
    let trouble = Arc::new(Mutex::new(Some("no round has ended yet".to_owned())));
    let _admin = match spec.http {
        Some(addr) => {
            let trouble = trouble.clone();
            let ready = Arc::new(move || match trouble.lock() {
                Ok(trouble) => trouble.clone().map_or(Ok(None), Err),
                Err(_) => Err("the probe has failed".into()),
            });
            let admin = Admin::start(addr, registry, ready, Router::new())?;
            progress.say(&format!("metrics: http://{}/metrics", admin.addr));
            Some(admin)
        }
        None => None,
    };
    Probe::new(spec, ends, metrics, trouble)?.through(progress)
}

impl<'p> Probe<'p> {
    fn new(
        spec: &'p ProbeSpec,
        ends: Arc<AtomicBool>,
        metrics: ProbeMetrics,
        trouble: Arc<Mutex<Option<String>>>,
    ) -> Result<Self> {
        let moment = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
        let seed = moment.as_nanos() as u64 ^ u64::from(std::process::id()).rotate_left(48);
        let mut random = Random::new(seed, 0x9806e);
        let group = format!("{:016x}", random.bits());
        let services: Vec<DataId> = (0..spec.services)
            .map(|number| DataId::new("slotcast-probe", &group, &format!("service-{number}")))
            .collect::<Result<_, _>>()?;
        let participants = (0..).zip(&spec.targets).map(|(number, target)| {
            let mut participant = Participant::new(number, &[*target], random.bits());
            services.iter().for_each(|id| participant.toggle(id));
            participant
        });
        let participants = participants.collect();
        let latency = spec.targets.iter().map(|target| Ok((*target, Histogram::new_with_max(DELAY_MAX, 3)?)));
        let unreached = vec![Some("the session does not answer".to_owned()); spec.targets.len()];
        let outcome = Outcome { latency: latency.collect::<Result<_>>()?, unreached, ..Outcome::default() };
        let notes = Notes::default();
        Ok(Self {
            spec,
            services,
            participants,
            notes,
            random,
            payloads: 0,
            begun: Monotonic.now(),
            ends,
            metrics,
            trouble,
            outcome,
            judged: 0,
            lingering: 0,
        })
    }

    /// Nanoseconds since the begin; never 0.
    fn now(&self) -> u64 {
        Monotonic.now() - self.begun + 1
    }

    fn is_over(&self) -> bool {
        let longest = self.spec.duration.map_or(u64::MAX, |most| most.as_nanos() as u64);
        self.now() >= longest || self.ends.load(Ordering::Relaxed)
    }

    fn step(&mut self) {
        let now = self.now();
        for (participant, unreached) in self.participants.iter_mut().zip(&mut self.outcome.unreached) {
            participant.step(now, LEASE_LEAST, &mut self.notes);
            if participant.is_up() {
                *unreached = None;
            } else if let (Some(why), Some(refusal)) = (unreached, participant.refusal()) {
                *why = refusal.to_string();
            }
        }
    }

    fn through(mut self, progress: &Progress) -> Result<Outcome> {
        let length = self.spec.duration.map_or(1, |most| most.as_secs());
        progress.phase("probing", length);
        let mut number = 0;
        let mut is_settled = false;
        while !self.is_over() {
            let begin = self.now();
            let mut is_measured = false;
            if is_settled {
                is_measured = self.change(number)?;
                number += 1;
            }
            let before = self.outcome.violations_count;
            is_settled = self.watch(begin, is_measured);
            self.judge(is_settled);
            self.close_round(is_settled, self.outcome.violations_count > before, progress);
            let until = begin + self.spec.interval.as_nanos() as u64;
            while self.now() < until && !self.is_over() {
                self.step();
                std::thread::sleep(IDLE_NAP);
            }
            progress.at(self.now() / SECOND, || {
                format!(
                    "{} good, {} late, {} wrong",
                    self.outcome.good, self.outcome.late, self.outcome.wrong
                )
            });
        }
        self.leave();
        self.outcome.judged = self.notes.truth.judged;
        self.outcome.seconds = self.now() as f64 / SECOND as f64;
        Ok(self.outcome)
    }

    /// One change: a new registration, other content, a removal, or a client that goes and another that comes. True if it is only a
    /// change, whose way to everybody may be measured.
    fn change(&mut self, number: u64) -> Result<bool> {
        let which = (number % self.participants.len() as u64) as usize;
        let service = self.services[self.random.below(self.services.len())].clone();
        self.payloads += 1;
        let payload = format!("probe {} {:016x}", self.payloads, self.random.bits());
        let (now, seed) = (self.now(), self.random.bits());
        let choice = self.random.below(3);
        let participant = &mut self.participants[which];
        let held = participant.registered().len();
        if number % ROUNDS_PER_CLIENT == ROUNDS_PER_CLIENT - 1 {
            participant.leave(now, seed, &mut self.notes);
            return Ok(false);
        } else if held == 0 || (choice == 0 && held < self.services.len()) {
            participant.publish(&service, payload.as_bytes())?;
        } else if choice == 1 || held == self.services.len() {
            participant.remove(held - 1);
        } else {
            participant.update(0, payload.as_bytes())?;
        }
        Ok(true)
    }

    /// Waits until every client's lists are as they should be, at most as long as it may take. `is_measured`: the wait is for a
    /// change made at `begin`.
    fn watch(&mut self, begin: u64, is_measured: bool) -> bool {
        let deadline = begin + self.spec.patience.as_nanos() as u64;
        let count = self.participants.len();
        let (mut right_at, mut sent) = (vec![None; count], None);
        let mut settled = Default::default();
        let is_right = loop {
            self.step();
            let truth = &self.notes.truth;
            if sent != Some(truth.sent_count()) {
                // What is written only now, after a reconnect, makes wrong what had been right.
                sent = Some(truth.sent_count());
                right_at = vec![None; count];
                settled = self.services.iter().map(|id| (id.key(), truth.settled(id.key()))).collect();
            }
            let now = self.now();
            for (right_at, participant) in right_at.iter_mut().zip(&self.participants) {
                if right_at.is_none() && participant.unsettled(&settled).is_none() {
                    *right_at = Some(now);
                }
            }
            if right_at.iter().all(Option::is_some) {
                break true;
            }
            if now >= deadline || self.is_over() {
                break false;
            }
            std::thread::sleep(NAP);
        };
        if is_measured {
            for (right_at, (target, histogram)) in right_at.iter().zip(&mut self.outcome.latency) {
                let Some(right_at) = right_at else { continue };
                histogram.saturating_record(right_at - begin);
                self.metrics.pushed(*target, right_at - begin);
            }
        }
        is_right
    }

    /// Looks at all lists since the last time.
    fn judge(&mut self, is_settled: bool) {
        // What was removed may stay where a registry has lost its memory, but not come back.
        let mut found = self.notes.truth.judge(|_| true);
        found.append(&mut self.notes.violations);
        found.sort_by_key(|violation| violation.at);
        for violation in found {
            self.metrics.violated(violation.wrong);
            self.outcome.violations_count += 1;
            if self.outcome.story.is_empty() {
                let (datum, client, at) = (violation.datum, violation.client, violation.at);
                self.outcome.story = self.notes.story.of(datum, client, at, STORY_LINES);
            }
            if self.outcome.violations.len() < TOLD_MAX {
                self.outcome.violations.push(violation);
            }
        }
        let truth = &mut self.notes.truth;
        self.metrics.judged.inc_by(truth.judged - self.judged);
        self.metrics.lingering.inc_by(truth.lingering - self.lingering);
        (self.judged, self.lingering) = (truth.judged, truth.lingering);
        if is_settled {
            truth.compact();
            self.notes.story.clear();
        }
    }

    fn close_round(&mut self, is_settled: bool, is_wrong: bool, progress: &Progress) {
        for (participant, target) in self.participants.iter().zip(&self.spec.targets) {
            self.metrics.is_up(*target, participant.is_up());
        }
        if self.is_over() && !is_settled {
            // It was told to end in the middle of a round.
            return;
        }
        let down = self.participants.iter().zip(&self.spec.targets).find(|(it, _)| !it.is_up());
        let trouble = match (is_wrong, is_settled, down) {
            (true, ..) => Some("the last round found a wrong list".to_owned()),
            (false, false, Some((_, target))) => Some(format!("the session at {target} does not answer")),
            (false, false, None) => {
                Some(format!("a change is not everywhere after {} ms", self.spec.patience.as_millis()))
            }
            (false, true, _) => None,
        };
        let count = match (is_wrong, is_settled) {
            (true, _) => &mut self.outcome.wrong,
            (false, false) => &mut self.outcome.late,
            (false, true) => &mut self.outcome.good,
        };
        *count += 1;
        self.metrics.round(is_wrong, is_settled);
        if let Ok(mut told) = self.trouble.lock() {
            if let Some(trouble) = &trouble
                && told.as_ref() != Some(trouble)
            {
                progress.say(trouble);
            }
            *told = trouble;
        }
    }

    /// Everybody says goodbye, so that nothing stays.
    fn leave(&mut self) {
        let now = self.now();
        for participant in &mut self.participants {
            let seed = self.random.bits();
            participant.leave(now, seed, &mut self.notes);
        }
    }
}
