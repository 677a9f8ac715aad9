//! The rounds: load, a fault, load, and then quiet until every list is as it should be.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};
use slotcast_engine::id::{DataId, DatumKey};

use crate::{
    chaos::{
        ChaosSpec, Outcome, Round,
        cluster::{Cluster, Member},
        participant::{Notes, Participant},
        scenario::Fault,
        trajectory::Event,
        truth::{Violation, Wrong},
    },
    clock::{Clock, MILLISECOND, Monotonic, SECOND},
    progress::Progress,
    random::Random,
};

/// Clients that register in every data id and are never touched.
const CANARIES: usize = 2;
/// The lease of a session at the data node.
const LEASE: u64 = 4 * SECOND;
/// A client that has been without a session for this long may have been removed with its session's lease.
const LEASE_LEAST: u64 = LEASE / 2;
/// After a lease from its start a data node has waited for everybody; within this time its sessions hear of it.
const SURE_WITHIN: u64 = 2 * SECOND;
/// What was acknowledged so shortly before a data node and its session died together may be on no disk.
const JOURNAL_LAG: u64 = 2 * SECOND;
/// Everything has to be ready this long after a fault, and settled this long after the load.
const READY_WITHIN: u64 = 30 * SECOND;
const SETTLED_WITHIN: u64 = 60 * SECOND;
/// After violations in this many rounds the rest is left out.
const BAD_ROUNDS_MAX: usize = 3;
const REGISTRATIONS_MAX: usize = 5;
const STORY_LINES: usize = 60;
const NAP: Duration = Duration::from_millis(1);

struct World {
    cluster: Cluster,
    participants: Vec<Participant>,
    services: Vec<DataId>,
    notes: Notes,
    random: Random,
    begun: u64,
    interval: u64,
    next_operation: u64,
    operations: u64,
    payloads: u64,
    seeds: u64,
    subscriptions: usize,
    /// While a process is away, and until its next run has waited for everybody: from and to.
    unsure: Vec<(u64, u64)>,
}

/// Carries out the rounds. A violation is no error: the outcome tells it.
pub fn run(spec: &ChaosSpec, progress: &Progress) -> Result<Outcome> {
    let longest = spec.duration.unwrap_or(Duration::from_secs(3600)) + Duration::from_secs(300);
    let mut settings = vec![format!("data.session_lease=\"{}s\"", LEASE / SECOND)];
    settings.extend(spec.settings.iter().cloned());
    let mut world = World::new(Cluster::new(spec.storage, &settings, longest)?, spec)?;
    progress.phase("starting", 1);
    world.start_all()?;
    world.settle().context("before the first fault")?;
    progress.phase("chaos", u64::from(spec.rounds));
    let mut outcome = Outcome::default();
    let mut bad_rounds = 0;
    for number in 0..spec.rounds {
        let elapsed = Duration::from_nanos(world.now());
        if spec.duration.is_some_and(|most| elapsed >= most) || bad_rounds == BAD_ROUNDS_MAX {
            break;
        }
        let fault = Fault::draw(spec.scenario, &mut world.random);
        let round = world.round(&fault).with_context(|| format!("round {number}: {fault}"))?;
        progress.at(u64::from(number) + 1, || format!("{fault}, settled in {} ms", round.settled_ms));
        outcome.rounds.push(round);
        let found = std::mem::take(&mut world.notes.violations);
        if let Some(first) = found.iter().min_by_key(|violation| violation.at) {
            bad_rounds += 1;
            progress.say(&format!("round {number}, {fault}: {} violations, first {first}", found.len()));
            outcome.story.push(format!("round {number}, {fault}: {first}"));
            outcome.story.extend(world.notes.story.of(first.datum, first.client, first.at, STORY_LINES));
        }
        outcome.violations.extend(found);
        world.notes.story.clear();
    }
    outcome.operations = world.operations;
    (outcome.acknowledged, outcome.diffs) = (world.notes.acknowledged, world.notes.diffs);
    (outcome.judged, outcome.lingering) = (world.notes.truth.judged, world.notes.truth.lingering);
    outcome.seconds = world.now() as f64 / SECOND as f64;
    Ok(outcome)
}

impl World {
    fn new(cluster: Cluster, spec: &ChaosSpec) -> Result<Self> {
        let services: Vec<DataId> = (0..spec.services)
            .map(|number| DataId::new("chaos", "default", &format!("service-{number}")))
            .collect::<Result<_, _>>()?;
        let mut world = Self {
            random: Random::new(spec.seed, 0xc4a0),
            cluster,
            participants: Vec::new(),
            notes: Notes::default(),
            begun: Monotonic.now(),
            interval: SECOND / u64::from(spec.operations_per_s.max(1)),
            next_operation: 0,
            operations: 0,
            payloads: 0,
            seeds: spec.seed << 32,
            subscriptions: (services.len() / 2).max(1),
            unsure: vec![(0, u64::MAX)],
            services,
        };
        for number in 0..(spec.clients as usize).max(CANARIES + 1) {
            let seed = world.seed();
            let mut participant = Participant::new(number as u32, &world.cluster.clients, seed);
            let order = world.random.permutation(world.services.len());
            let wanted = if number < CANARIES { order.len() } else { world.subscriptions };
            for service in order.iter().take(wanted) {
                participant.toggle(&world.services[*service as usize]);
            }
            if number < CANARIES {
                for id in &world.services {
                    participant.publish(id, format!("canary {number}").as_bytes())?;
                }
            }
            world.participants.push(participant);
        }
        Ok(world)
    }

    /// Nanoseconds since the begin; never 0.
    fn now(&self) -> u64 {
        Monotonic.now() - self.begun + 1
    }

    fn seed(&mut self) -> u64 {
        self.seeds += 1;
        // Other numbers than those of an earlier run: a client id must not come back with versions that begin anew.
        self.seeds ^ self.begun.rotate_left(20)
    }

    fn say(&mut self, what: String) {
        let now = self.now();
        self.notes.story.note(now, None, Event::Process(what));
    }

    fn start_all(&mut self) -> Result<()> {
        for member in self.cluster.members() {
            if !self.cluster.start(member)? {
                bail!("a port of the {member} is taken");
            }
        }
        self.until_ready(&self.cluster.members(), false)?;
        self.note_sure();
        Ok(())
    }

    /// One step of everybody.
    fn step(&mut self, is_loaded: bool) -> Result<()> {
        let now = self.now();
        for participant in &mut self.participants {
            participant.step(now, LEASE_LEAST, &mut self.notes);
        }
        if is_loaded {
            // After a pause of this process it does not catch up.
            self.next_operation = self.next_operation.max(now.saturating_sub(100 * MILLISECOND));
            while self.next_operation <= now {
                self.next_operation += self.interval;
                self.operate(now)?;
            }
        }
        std::thread::sleep(NAP);
        Ok(())
    }

    fn load_for(&mut self, nanos: u64) -> Result<()> {
        let end = self.now() + nanos;
        while self.now() < end {
            self.step(true)?;
        }
        Ok(())
    }

    /// A random operation of a random client.
    fn operate(&mut self, now: u64) -> Result<()> {
        let which = CANARIES + self.random.below(self.participants.len() - CANARIES);
        let service = self.services[self.random.below(self.services.len())].clone();
        self.payloads += 1;
        let payload = format!("payload {}", self.payloads);
        let seed = self.seed();
        let participant = &mut self.participants[which];
        let held = participant.registered().len();
        let registration = self.random.below(held.max(1));
        match self.random.below(1000) {
            0..250 if held < REGISTRATIONS_MAX => participant.publish(&service, payload.as_bytes())?,
            250..700 if held > 0 => participant.update(registration, payload.as_bytes())?,
            700..850 if held > 0 => participant.remove(registration),
            850..985 => participant.toggle(&service),
            985..990 if participant.is_up() => {
                let offline = self.random.below(1500) as u64 * MILLISECOND;
                participant.drop_connection(now, now + offline, &mut self.notes);
            }
            990..995 => participant.leave(now, seed, &mut self.notes),
            _ => return Ok(()),
        }
        self.operations += 1;
        Ok(())
    }

    fn round(&mut self, fault: &Fault) -> Result<Round> {
        self.load_for(fault.before)?;
        let failed_at = self.now();
        for member in &fault.members {
            if fault.is_killed { self.cluster.kill(*member) } else { self.cluster.pause(*member, true)? }
        }
        self.say(fault.to_string());
        // What the dead have still said is heard first.
        self.step(false)?;
        self.step(false)?;
        self.forgive(fault, failed_at);
        self.load_for(fault.away)?;
        for member in &fault.members {
            if fault.is_killed {
                while !self.cluster.start(*member)? {
                    self.step(true)?;
                }
                self.say(format!("{member} starts"));
            } else {
                self.cluster.pause(*member, false)?;
                self.say(format!("{member} goes on"));
            }
        }
        self.until_ready(&fault.members, true)?;
        self.note_sure();
        let ready_ms = (self.now() - failed_at) / MILLISECOND;
        self.say("all are ready".into());
        self.load_for(fault.behind)?;
        let quiet_at = self.now();
        self.settle()?;
        let settled_ms = (self.now() - quiet_at) / MILLISECOND;
        Ok(Round { fault: fault.to_string(), ready_ms, settled_ms })
    }

    /// What a fault excuses. Whoever is killed cannot tell any more what was removed; and a data node and a session that die
    /// together take along what neither a disk nor a client has.
    fn forgive(&mut self, fault: &Fault, failed_at: u64) {
        if !fault.is_killed {
            return;
        }
        self.unsure.push((failed_at, u64::MAX));
        if !fault.members.contains(&Member::Data) {
            return;
        }
        for member in &fault.members {
            let Member::Session(number) = member else { continue };
            let addr = self.cluster.clients[*number];
            let participants = &self.participants;
            let is_concerned = |client: u32| participants[client as usize].session() == Some(addr);
            self.notes.truth.may_be_lost(failed_at.saturating_sub(JOURNAL_LAG), is_concerned);
        }
    }

    /// Everything runs again: a lease from now on everybody has been waited for, and shortly after everybody knows.
    fn note_sure(&mut self) {
        let to = self.now() + LEASE + SURE_WITHIN;
        self.unsure.iter_mut().for_each(|(_, end)| *end = to.min(*end));
    }

    fn until_ready(&mut self, members: &[Member], is_loaded: bool) -> Result<()> {
        let deadline = self.now() + READY_WITHIN;
        // A data node is ready only when a session has linked to it.
        for member in members.iter().rev() {
            while !self.cluster.is_ready(*member)? {
                if self.now() > deadline {
                    bail!("the {member} is not ready: {}", self.cluster.readiness(*member));
                }
                for _ in 0..10 {
                    self.step(is_loaded)?;
                }
            }
        }
        Ok(())
    }

    /// Waits until every list is as it should be, and judges all that there were meanwhile.
    fn settle(&mut self) -> Result<()> {
        let deadline = self.now() + SETTLED_WITHIN;
        let late = loop {
            for _ in 0..20 {
                self.step(false)?;
            }
            let truth = &self.notes.truth;
            let settled: BTreeMap<DatumKey, _> =
                self.services.iter().map(|id| (id.key(), truth.settled(id.key()))).collect();
            let participants = self.participants.iter().enumerate();
            let open = participants.filter_map(|(number, it)| Some((number, it.unsettled(&settled)?)));
            let Some((number, (datum, what))) = open.into_iter().next() else { break None };
            if self.now() > deadline {
                break Some(Violation {
                    wrong: Wrong::Unsettled,
                    at: self.now(),
                    client: number as u32,
                    datum,
                    what,
                });
            }
        };
        let is_late = late.is_some();
        self.notes.violations.extend(late);
        let unsure = &self.unsure;
        let may_linger = |at: u64| unsure.iter().any(|(from, to)| (*from..*to).contains(&at));
        let wrong = self.notes.truth.judge(|seen| may_linger(seen.at));
        self.notes.violations.extend(wrong);
        let now = self.now();
        self.unsure.retain(|(_, to)| *to > now);
        if !is_late {
            self.notes.truth.compact();
        }
        Ok(())
    }
}
