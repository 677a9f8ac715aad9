//! The rounds: load, a fault, load, and then quiet until every list is as it should be.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};
use slotcast_engine::id::{DataId, DatumKey, RegisterId};
use slotcast_net::data::storage::StorageKind;

use crate::{
    chaos::{
        ChaosSpec, Outcome, Round,
        cluster::{Cluster, ClusterPlan, Member, node_id},
        network::Network,
        participant::{Notes, Participant},
        scenario::{Act, Cuts, Fault, Scenario},
        trajectory::Event,
        truth::{Violation, Wrong},
    },
    clock::{Clock, MILLISECOND, Monotonic, SECOND},
    progress::Progress,
    random::Random,
};

/// Clients that register in every data id and are never touched.
const CANARIES: usize = 2;
/// The client behind the canaries, which keeps persistent registrations where there is a disk, and neither drops nor leaves.
const KEEPER: usize = CANARIES;
/// Persistent registrations of each data id.
const KEPT: u64 = 3;
/// So many of a thousand operations are of persistent registrations.
const KEEPS: usize = 150;
/// The lease of a session at the data node.
const LEASE: u64 = 4 * SECOND;
/// A client that has been without a session for this long may have been removed with its session's lease.
const LEASE_LEAST: u64 = LEASE / 2;
/// After a lease from its start a data node has waited for everybody; within this time its sessions hear of it.
const SURE_WITHIN: u64 = 2 * SECOND;
/// What was acknowledged so shortly before a data node and its session died together may be on no disk.
const JOURNAL_LAG: u64 = 2 * SECOND;
/// Everything has to be ready this long after a fault, every slot has to be whole this long after that, and all lists have to be
/// settled this long after the load.
const READY_WITHIN: u64 = 30 * SECOND;
const WHOLE_WITHIN: u64 = 60 * SECOND;
const SETTLED_WITHIN: u64 = 60 * SECOND;
/// A process that is asked to end has this long.
const END_WITHIN: Duration = Duration::from_secs(15);
/// After violations in this many rounds the rest is left out.
const BAD_ROUNDS_MAX: usize = 3;
const REGISTRATIONS_MAX: usize = 5;
/// Of a thousand operations the ones after which every client is still there.
const STEADY: usize = 985;
const STORY_LINES: usize = 60;
const NAP: Duration = Duration::from_millis(1);

/// The cluster, and everybody who uses it.
pub(super) struct World {
    pub(super) cluster: Cluster,
    participants: Vec<Participant>,
    services: Vec<DataId>,
    pub(super) notes: Notes,
    random: Random,
    begun: u64,
    interval: u64,
    next_operation: u64,
    operations: u64,
    payloads: u64,
    seeds: u64,
    subscriptions: usize,
    /// What is measured is how long it takes until all is right without whoever failed.
    is_measured: bool,
    /// Nobody drops and nobody leaves.
    is_steady: bool,
    /// There are persistent registrations.
    is_keeping: bool,
    /// While a process is away, and until its next run has waited for everybody: from and to.
    unsure: Vec<(u64, u64)>,
}

/// Carries out the rounds.
pub(super) fn run(spec: &ChaosSpec, progress: &Progress) -> Result<Outcome> {
    let (shape, storage) = (spec.shape, spec.storage);
    let plan = ClusterPlan { shape, spare: 0, storage, settings: settings(spec), limit: limit(spec) };
    let subscriptions = (spec.services as usize / 2).max(1);
    let mut world = World::new(Cluster::new(&plan)?, spec, subscriptions)?;
    progress.phase("starting", 1);
    world.start_all()?;
    world.settle().context("before the first fault")?;
    let rounds = spec.rounds.unwrap_or(u32::MAX);
    let length = match (spec.rounds, spec.duration) {
        (None, Some(most)) => most.as_secs(),
        _ => u64::from(rounds),
    };
    progress.phase("chaos", length);
    let mut outcome = Outcome::default();
    let mut bad_rounds = 0;
    for number in 0..rounds {
        let elapsed = Duration::from_nanos(world.now());
        if spec.duration.is_some_and(|most| elapsed >= most) || bad_rounds == BAD_ROUNDS_MAX {
            break;
        }
        let leaders = world.cluster.leaders();
        let cuts = match world.cluster.can_cut() {
            true if Network::has_ways() => Cuts::Ways,
            true => Cuts::Whole,
            false => Cuts::None,
        };
        let fault = Fault::draw(spec.scenario, (shape, cuts), leaders, &mut world.random);
        let round = world.round(&fault).with_context(|| format!("round {number}: {fault}"))?;
        let at = if spec.rounds.is_some() { u64::from(number) + 1 } else { world.now() / SECOND };
        progress.at(at, || format!("{fault}, settled in {} ms", round.settled_ms));
        outcome.rounds.push(round);
        if world.collect(&format!("round {number}, {fault}"), &mut outcome, progress) {
            bad_rounds += 1;
        }
    }
    world.close(&mut outcome);
    Ok(outcome)
}

/// What every cluster here is told, and its user on top of that.
pub(super) fn settings(spec: &ChaosSpec) -> Vec<String> {
    let mut settings = vec![format!("data.session_lease=\"{}s\"", LEASE / SECOND)];
    settings.extend(spec.settings.iter().cloned());
    settings
}

/// No process outlives this.
pub(super) fn limit(spec: &ChaosSpec) -> Duration {
    spec.duration.unwrap_or(Duration::from_secs(3600)) + Duration::from_secs(300)
}

impl World {
    /// Clients that subscribe to `subscriptions` data ids each; the canaries to all.
    pub(super) fn new(cluster: Cluster, spec: &ChaosSpec, subscriptions: usize) -> Result<Self> {
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
            subscriptions,
            is_measured: spec.scenario == Scenario::KillLeader,
            is_steady: spec.scenario == Scenario::MoveSlot,
            is_keeping: spec.storage != StorageKind::None && spec.shape.metas == 0,
            unsure: vec![(0, u64::MAX)],
            services,
        };
        for number in 0..(spec.clients as usize).max(CANARIES + 2) {
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

    /// Takes what was found wrong into the outcome, with the story of the first. Returns whether anything was.
    pub(super) fn collect(&mut self, what: &str, outcome: &mut Outcome, progress: &Progress) -> bool {
        let found = std::mem::take(&mut self.notes.violations);
        if let Some(first) = found.iter().min_by_key(|violation| violation.at) {
            progress.say(&format!("{what}: {} violations, first {first}", found.len()));
            outcome.story.push(format!("{what}: {first}"));
            outcome.story.extend(self.notes.story.of(first.datum, first.client, first.at, STORY_LINES));
        }
        let is_bad = !found.is_empty();
        outcome.violations.extend(found);
        self.notes.story.clear();
        is_bad
    }

    /// What was done in all.
    pub(super) fn close(&self, outcome: &mut Outcome) {
        outcome.operations = self.operations;
        outcome.durable = self.notes.durable;
        (outcome.acknowledged, outcome.diffs) = (self.notes.acknowledged, self.notes.diffs);
        (outcome.judged, outcome.lingering) = (self.notes.truth.judged, self.notes.truth.lingering);
        outcome.seconds = self.now() as f64 / SECOND as f64;
    }

    /// Every client but the canaries registers its share of `count` more instances, spread over the data ids.
    pub(super) fn populate(&mut self, count: usize) -> Result<()> {
        let publishing = self.participants.len() - CANARIES;
        for number in 0..count {
            let service = self.services[number % self.services.len()].clone();
            self.payloads += 1;
            let payload = format!("payload {:<100}", self.payloads);
            self.participants[CANARIES + number % publishing].publish(&service, payload.as_bytes())?;
        }
        Ok(())
    }

    /// Nanoseconds since the begin; never 0.
    pub(super) fn now(&self) -> u64 {
        Monotonic.now() - self.begun + 1
    }

    fn seed(&mut self) -> u64 {
        self.seeds += 1;
        // Other numbers than those of an earlier run: a client id must not come back with versions that begin anew.
        self.seeds ^ self.begun.rotate_left(20)
    }

    pub(super) fn say(&mut self, what: String) {
        let now = self.now();
        self.notes.story.note(now, None, Event::Process(what));
    }

    pub(super) fn start_all(&mut self) -> Result<()> {
        for member in self.cluster.members() {
            if !self.cluster.start(member)? {
                bail!("a port of the {member} is taken");
            }
        }
        self.until_ready(&self.cluster.members(), false)?;
        self.until_whole(false)?;
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

    pub(super) fn load_for(&mut self, nanos: u64) -> Result<()> {
        let end = self.now() + nanos;
        while self.now() < end {
            self.step(true)?;
        }
        Ok(())
    }

    /// A random operation of a random client.
    fn operate(&mut self, now: u64) -> Result<()> {
        if self.is_keeping && self.random.below(1000) < KEEPS {
            return self.keep();
        }
        let steady = CANARIES + usize::from(self.is_keeping);
        let which = steady + self.random.below(self.participants.len() - steady);
        let service = self.services[self.random.below(self.services.len())].clone();
        self.payloads += 1;
        let payload = format!("payload {}", self.payloads);
        let seed = self.seed();
        let participant = &mut self.participants[which];
        let held = participant.registered().len();
        let registration = self.random.below(held.max(1));
        match self.random.below(if self.is_steady { STEADY } else { 1000 }) {
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

    /// A random operation on a persistent registration.
    fn keep(&mut self) -> Result<()> {
        let service = &self.services[self.random.below(self.services.len())];
        let register = RegisterId(u64::MAX - self.random.below(KEPT as usize) as u64);
        // Larger than those of an earlier run, whose registrations may still be there.
        self.payloads += 1;
        let version = (register, self.begun + self.payloads);
        let keeper = &mut self.participants[KEEPER];
        if self.random.below(4) == 0 {
            keeper.remove_kept(service, version);
        } else {
            keeper.keep(service, version, format!("payload {}", self.payloads).as_bytes())?;
        }
        self.operations += 1;
        Ok(())
    }

    fn round(&mut self, fault: &Fault) -> Result<Round> {
        self.load_for(fault.before)?;
        let failed_at = self.now();
        let right_ms = match fault.act {
            Act::Kill | Act::Stop | Act::Cut(_) | Act::Part => self.outage(fault, failed_at)?,
            Act::Drain | Act::Restart => {
                self.forgive(fault, failed_at);
                for member in &fault.members {
                    if fault.act == Act::Drain { self.drain(*member, fault)? } else { self.restart(*member)? }
                }
                None
            }
            Act::Reconnect => {
                self.say(fault.to_string());
                let now = self.now();
                for participant in self.participants.iter_mut().skip(CANARIES).filter(|it| it.is_up()) {
                    participant.drop_connection(now, now, &mut self.notes);
                }
                None
            }
        };
        self.until_ready(&fault.members, true)?;
        self.until_whole(true)?;
        self.note_sure();
        let ready_ms = (self.now() - failed_at) / MILLISECOND;
        self.say("all are ready".into());
        self.load_for(fault.behind)?;
        let quiet_at = self.now();
        self.settle()?;
        let settled_ms = (self.now() - quiet_at) / MILLISECOND;
        Ok(Round { fault: fault.to_string(), ready_ms, right_ms, settled_ms })
    }

    /// Processes are away, and come back. Returns how long it took until all was right without them, where that is measured.
    fn outage(&mut self, fault: &Fault, failed_at: u64) -> Result<Option<u64>> {
        let is_killed = fault.act == Act::Kill;
        if fault.act == Act::Part {
            self.cluster.part(fault.members[0], fault.members[1], true)?;
        }
        for member in &fault.members {
            match fault.act {
                Act::Kill => self.cluster.kill(*member),
                Act::Cut(way) => self.cluster.cut(*member, way, true)?,
                Act::Part => {}
                _ => self.cluster.pause(*member, true)?,
            }
        }
        self.say(fault.to_string());
        // What the dead have still said is heard first.
        self.step(false)?;
        self.step(false)?;
        self.forgive(fault, failed_at);
        let right_ms = if self.is_measured { Some(self.until_right(failed_at)?) } else { None };
        let elapsed = self.now() - failed_at;
        self.load_for(fault.away.saturating_sub(elapsed))?;
        if fault.act == Act::Part {
            self.cluster.part(fault.members[0], fault.members[1], false)?;
            self.say(format!("{} is heard by {} again", fault.members[0], fault.members[1]));
            return Ok(right_ms);
        }
        for member in &fault.members {
            if is_killed {
                self.start(*member)?;
            } else if let Act::Cut(way) = fault.act {
                self.cluster.cut(*member, way, false)?;
                self.say(format!("{member} is reached again"));
            } else {
                self.cluster.pause(*member, false)?;
                self.say(format!("{member} goes on"));
            }
        }
        Ok(right_ms)
    }

    /// Changes every data id, and waits until every list shows that. Returns the milliseconds since the fault.
    fn until_right(&mut self, failed_at: u64) -> Result<u64> {
        for _ in 0..2 * self.services.len() {
            let now = self.now();
            self.operate(now)?;
        }
        let deadline = failed_at + READY_WITHIN;
        self.step(false)?;
        while let Some((number, (datum, what))) = self.open() {
            if self.now() > deadline {
                let what = format!("not right again without whoever failed: {what}");
                let at = self.now();
                let violation = Violation { wrong: Wrong::Unsettled, at, client: number as u32, datum, what };
                self.notes.violations.push(violation);
                break;
            }
            self.step(false)?;
        }
        Ok((self.now() - failed_at) / MILLISECOND)
    }

    pub(super) fn start(&mut self, member: Member) -> Result<()> {
        while !self.cluster.start(member)? {
            self.step(true)?;
        }
        self.say(format!("{member} starts"));
        Ok(())
    }

    /// A process ends when it is asked to, and starts again; then every slot is whole before anything else is done.
    fn restart(&mut self, member: Member) -> Result<()> {
        self.say(format!("{member} is asked to end"));
        self.cluster.terminate(member)?;
        let deadline = self.now() + END_WITHIN.as_nanos() as u64;
        while !self.cluster.has_ended(member)? {
            if self.now() > deadline {
                bail!("the {member} does not end when it is asked to");
            }
            self.step(true)?;
        }
        self.start(member)?;
        self.until_ready(&[member], true)?;
        self.until_whole(true)
    }

    /// A data node is emptied by order, and used again.
    fn drain(&mut self, member: Member, fault: &Fault) -> Result<()> {
        let Member::Data(number) = member else { return Ok(()) };
        self.say(format!("{member} is to be emptied"));
        self.cluster.drain(number, true)?;
        let deadline = self.now() + WHOLE_WITHIN;
        let id = node_id(number);
        let is_empty = |cluster: &Cluster| {
            let view = cluster.view();
            view.is_some_and(|view| view.status.nodes.iter().any(|node| node.id == id && node.holds == 0))
        };
        while !is_empty(&self.cluster) {
            if self.now() > deadline {
                bail!("the {member} is not empty {} s after the order", WHOLE_WITHIN / SECOND);
            }
            self.steps(true)?;
        }
        self.say(format!("{member} is empty"));
        self.load_for(fault.away)?;
        self.cluster.drain(number, false)
    }

    /// What a fault excuses. Whoever is killed cannot tell any more what was removed, and a replica may not have heard of it; and a
    /// data node and a session that die together take along what neither a disk nor a client has.
    fn forgive(&mut self, fault: &Fault, failed_at: u64) {
        if fault.act != Act::Kill && self.cluster.shape().metas == 0 {
            return;
        }
        self.unsure.push((failed_at, u64::MAX));
        if fault.act != Act::Kill || !fault.hits_data() {
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
    pub(super) fn note_sure(&mut self) {
        let to = self.now() + LEASE + SURE_WITHIN;
        self.unsure.iter_mut().for_each(|(_, end)| *end = to.min(*end));
    }

    pub(super) fn until_ready(&mut self, members: &[Member], is_loaded: bool) -> Result<()> {
        let deadline = self.now() + READY_WITHIN;
        // A data node is ready only when a session has linked to it.
        for member in members.iter().rev() {
            while !self.cluster.is_ready(*member)? {
                if self.now() > deadline {
                    bail!("the {member} is not ready: {}", self.cluster.readiness(*member));
                }
                self.steps(is_loaded)?;
            }
        }
        Ok(())
    }

    /// One step of everybody, with operations.
    pub(super) fn loaded_step(&mut self) -> Result<()> {
        self.step(true)
    }

    /// One step of everybody, without any.
    pub(super) fn quiet_step(&mut self) -> Result<()> {
        self.step(false)
    }

    /// A few steps of everybody, between two looks at something that costs more.
    pub(super) fn steps(&mut self, is_loaded: bool) -> Result<()> {
        (0..10).try_for_each(|_| self.step(is_loaded))
    }

    /// Waits until every slot has its leader and its replicas.
    pub(super) fn until_whole(&mut self, is_loaded: bool) -> Result<()> {
        let deadline = self.now() + WHOLE_WITHIN;
        while !self.cluster.is_whole() {
            if self.now() > deadline {
                bail!(
                    "not every slot is whole {} s after the fault: {:?}",
                    WHOLE_WITHIN / SECOND,
                    self.cluster.view()
                );
            }
            self.steps(is_loaded)?;
        }
        Ok(())
    }

    /// The first client that does not hold what it should.
    pub(super) fn open(&self) -> Option<(usize, (DatumKey, String))> {
        let truth = &self.notes.truth;
        let settled: BTreeMap<DatumKey, _> =
            self.services.iter().map(|id| (id.key(), truth.settled(id.key()))).collect();
        let participants = self.participants.iter().enumerate();
        participants.filter_map(|(number, it)| Some((number, it.unsettled(&settled)?))).next()
    }

    /// Waits until every list is as it should be, and judges all that there were meanwhile.
    pub(super) fn settle(&mut self) -> Result<()> {
        let deadline = self.now() + SETTLED_WITHIN;
        let late = loop {
            for _ in 0..20 {
                self.step(false)?;
            }
            let Some((number, (datum, what))) = self.open() else { break None };
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
