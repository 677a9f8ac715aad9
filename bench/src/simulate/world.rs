//! One data node, two sessions and many clients in virtual time: the production roles, driven by a seed.
//!
//! Every host has an inbox that its kernel fills and a role that takes it, like the loop in `io::pump`: events, a turn,
//! and a sleep until `wake_at` or the next event. Faults and operations come from the seed.

use std::collections::{BTreeMap, BTreeSet};

use prometheus_client::registry::Registry;
use slotcast_engine::{
    change_log::ChangeLogLimits,
    id::{ClientId, DataId, RegisterId, SessionId, mix64},
    shard::ShardConfig,
};
use slotcast_net::{
    client::{ClientConfig, ClientState, Registration},
    data::{
        metrics::DataMetrics,
        node::{Node, NodeLimits},
    },
    io::{ring::Event, role::Role},
    session::{Session, SessionConfig, config::Routes, metrics::SessionMetrics},
};

use super::{
    network::{HostSockets, Inbound, MS, Network, Rng, SECOND, Task, address},
    oracle::{Oracle, Seen, Violation},
    trace::nanos,
};

/// Slots of the cluster: fewer than data ids, so that some share one.
pub const SLOTS: u32 = 4;
/// Lease of a session, short against the run.
pub const LEASE: u64 = 6 * SECOND;
/// Grace of a client that dropped.
pub const GRACE: u64 = SECOND;
/// A client that sends nothing for this long is closed; it pings every 20 s.
pub const CLIENT_TIMEOUT: u64 = 24 * SECOND;
const DATUMS: usize = 6;
const NODE: usize = 0;
const SESSIONS: [usize; 2] = [1, 2];
const FIRST_CLIENT: usize = 3;
/// Faults and operations end here.
const BUSY: u64 = 60 * SECOND;
/// And here everything has to be as if nothing had been.
const END: u64 = BUSY + CLIENT_TIMEOUT + 3 * LEASE + 6 * SECOND;
/// Turns in a row at the same time after which a role is taken to spin.
const SPINS_MAX: u32 = 100;

enum Actor {
    Node(Box<Node>),
    Session(SessionId, Box<Session>),
    Client(usize, Box<ClientState>),
}

impl Actor {
    fn role(&mut self) -> &mut dyn Role {
        match self {
            Actor::Node(node) => node.as_mut(),
            Actor::Session(_, session) => session.as_mut(),
            Actor::Client(_, client) => client.as_mut(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    ResetClient(usize),
    HalfOpenClient(usize),
    ResetLink(usize),
    HalfOpenLink(usize),
    Partition { one: usize, other: usize, both: bool, nanos: u64, reset: bool },
    CrashSession { host: usize, silent: bool, down: u64 },
    CrashNode { silent: bool, down: u64 },
    Pause { host: usize, nanos: u64 },
    Storm(usize),
    Leave(usize),
    CrashClient { host: usize, silent: bool },
    SlowClient { host: usize, nanos: u64 },
}

/// Everything that was reached, summed over seeds.
#[derive(Default, Clone, Debug)]
pub struct Reached {
    pub operations: u64,
    pub faults: u64,
    pub turns: u64,
    pub bytes: u64,
    pub link_losses: u64,
    pub client_losses: u64,
    pub node_restarts: u64,
    pub session_restarts: u64,
    pub incarnations_refused: u64,
    pub half_open: u64,
    pub stalls: u64,
    pub connects_refused: u64,
    pub pauses: u64,
    pub client_drops: u64,
    pub storms: u64,
    pub clients_timed_out: u64,
    pub slow_clients: u64,
    pub resumes_current: u64,
    pub resumes_diff: u64,
    pub resumes_snapshot: u64,
    pub gaps: u64,
    pub older_diffs: u64,
    pub readers_behind: u64,
    pub short_sends: u64,
    pub busy_sends: u64,
    pub leases_ended: u64,
    pub departures: u64,
    pub moves: u64,
    pub repairs: u64,
    pub repaired_removals: u64,
    pub retained: u64,
    pub tombstones_dropped: u64,
    pub removals_acknowledged: u64,
    pub refused_frames: u64,
    pub updates: u64,
    pub stale_replays: u64,
    pub stale_contents: u64,
    pub unheard_moves: u64,
}

impl Reached {
    /// The numbers by name.
    pub fn fields(&self) -> Vec<(&'static str, u64)> {
        macro_rules! fields { ($($field:ident)*) => { vec![$((stringify!($field), self.$field)),*] } }
        fields!(operations faults turns bytes link_losses client_losses node_restarts session_restarts
            incarnations_refused half_open stalls connects_refused pauses client_drops storms clients_timed_out
            slow_clients resumes_current resumes_diff resumes_snapshot gaps older_diffs readers_behind
            short_sends busy_sends leases_ended departures moves repairs repaired_removals retained
            tombstones_dropped removals_acknowledged refused_frames updates stale_replays stale_contents
            unheard_moves)
    }

    pub fn add(&mut self, other: &Reached) {
        macro_rules! sum { ($($field:ident)*) => { $(self.$field += other.$field;)* } }
        sum!(operations faults turns bytes link_losses client_losses node_restarts session_restarts
            incarnations_refused half_open stalls connects_refused pauses client_drops storms clients_timed_out
            slow_clients resumes_current resumes_diff resumes_snapshot gaps older_diffs readers_behind
            short_sends busy_sends leases_ended departures moves repairs repaired_removals retained
            tombstones_dropped removals_acknowledged refused_frames updates stale_replays stale_contents
            unheard_moves);
    }
}

/// How a run ended.
pub struct Outcome {
    pub reached: Reached,
    pub hash: u64,
    pub failure: Option<(Violation, String)>,
}

pub struct World {
    net: Network,
    oracle: Oracle,
    actors: Vec<Option<Actor>>,
    faults: Vec<Fault>,
    reached: Reached,
    session_metrics: Vec<SessionMetrics>,
    node_metrics: DataMetrics,
    limits: Limits,
    epochs: u64,
    identities: u64,
    spins: Vec<u32>,
    last_turn: Vec<u64>,
    /// Data ids that a client has wanted again on this connection after it had not.
    rewanted: BTreeSet<usize>,
    /// Clients that have been told to leave.
    leaving: BTreeSet<usize>,
    /// Links over which a session has said something, and sessions that greet the data node in this turn.
    greeted: BTreeSet<usize>,
    greeting: Vec<SessionId>,
}

/// Sizes that differ between seeds.
struct Limits {
    clients: usize,
    operations: u64,
    history_bytes: usize,
    linger: u64,
    log_entries: usize,
    node_link_buffer: usize,
    push_interval: u64,
    settle: u64,
}

impl World {
    pub fn new(seed: u64, traced: bool) -> Self {
        let mut rng = Rng::new(seed);
        let limits = Limits {
            clients: 12 + rng.below(14),
            operations: rng.range(200, 500),
            history_bytes: rng.range(200, 8000) as usize,
            linger: rng.range(0, 4) * SECOND + SECOND / 2,
            log_entries: if rng.chance(50) { 16_384 } else { rng.range(4, 40) as usize },
            node_link_buffer: if rng.chance(50) { 8 << 20 } else { rng.range(100, 3000) as usize },
            push_interval: if rng.chance(70) { 0 } else { rng.range(1, 40) * MS },
            settle: rng.range(1, 6) * 100 * MS,
        };
        let datums = (0..DATUMS).map(|n| DataId::new("sim", "default", &format!("service-{n}")));
        let mut oracle = Oracle::new(datums.map(|id| id.expect("a valid name")).collect());
        oracle.trace.is_on = traced;
        let hosts = FIRST_CLIENT + limits.clients;
        let mut net = Network::new(rng, hosts);
        net.tapped = traced.then(Vec::new);
        let node_metrics = DataMetrics::new(&mut Registry::default(), 0);
        let mut world = Self {
            net,
            oracle,
            actors: (0..hosts).map(|_| None).collect(),
            faults: Vec::new(),
            reached: Reached::default(),
            session_metrics: Vec::new(),
            node_metrics,
            limits,
            epochs: 0,
            identities: seed << 20,
            spins: vec![0; hosts],
            last_turn: vec![0; hosts],
            rewanted: BTreeSet::new(),
            leaving: BTreeSet::new(),
            greeted: BTreeSet::new(),
            greeting: Vec::new(),
        };
        world.prepare();
        world
    }

    fn prepare(&mut self) {
        let tight = self.net.rng.chance(50);
        for host in 0..self.actors.len() {
            let window = match (tight, host < FIRST_CLIENT) {
                (false, _) => (64 * 1024, 64 * 1024),
                (true, true) => (500, 12_000),
                (true, false) => (400, 4_000),
            };
            self.net.set_window(host, window);
            let at = self.net.rng.range(1, 400) * MS;
            self.net.schedule(at, Task::Boot(host));
        }
        for _ in 0..self.limits.operations {
            let at = self.net.rng.range(SECOND / 2, BUSY);
            self.net.schedule(at, Task::Operation);
        }
        let count = self.net.rng.range(4, 16);
        let mut last = 0;
        for number in 0..count {
            let near = last > 0 && self.net.rng.chance(60);
            let at = if near {
                last + self.net.rng.range(0, 2500) * MS
            } else {
                self.net.rng.range(3 * SECOND, BUSY - 3 * SECOND)
            };
            last = at.min(BUSY - SECOND);
            let fault = self.choose_fault();
            self.faults.push(fault);
            self.net.schedule(last, Task::Fault(number as usize));
        }
        self.net.schedule(BUSY, Task::Quiet);
    }

    fn choose_fault(&mut self) -> Fault {
        let clients = self.limits.clients;
        let rng = &mut self.net.rng;
        let client = FIRST_CLIENT + rng.below(clients);
        let session = SESSIONS[rng.below(2)];
        match rng.below(100) {
            0..8 => Fault::ResetClient(client),
            8..15 => Fault::HalfOpenClient(client),
            15..24 => Fault::ResetLink(session),
            24..30 => Fault::HalfOpenLink(session),
            30..44 => {
                let one = if rng.chance(60) { NODE } else { client };
                let nanos = if rng.chance(15) { rng.range(6, 14) * SECOND } else { rng.range(50, 5000) * MS };
                Fault::Partition { one, other: session, both: rng.chance(60), nanos, reset: rng.chance(40) }
            }
            44..55 => {
                let down = if rng.chance(60) { rng.range(20, 1500) } else { rng.range(20, 9000) };
                Fault::CrashSession { host: session, silent: rng.chance(25), down: down * MS }
            }
            55..69 => Fault::CrashNode { silent: rng.chance(20), down: rng.range(20, 2500) * MS },
            69..79 => {
                let host = [NODE, session, session, client][rng.below(4)];
                Fault::Pause { host, nanos: rng.range(100, 5000) * MS }
            }
            79..85 => Fault::Storm(session),
            85..90 => Fault::Leave(client),
            90..95 => Fault::CrashClient { host: client, silent: rng.chance(30) },
            _ => Fault::SlowClient { host: client, nanos: rng.range(1000, 12_000) * MS },
        }
    }

    /// Runs to the end, or to the first violation.
    pub fn run(mut self) -> Outcome {
        while let Some(((at, _), task)) = self.net.queue.pop_first() {
            if at > END || self.oracle.failure.is_some() {
                break;
            }
            (self.net.now, self.oracle.now) = (at, at);
            match task {
                Task::Run(host) => self.run_host(host),
                Task::Boot(host) => self.boot(host),
                Task::Operation => self.operate(),
                Task::Fault(number) => self.inflict(self.faults[number]),
                Task::Quiet => self.quiet(),
                other => self.net.perform(other),
            }
        }
        if self.oracle.failure.is_none() {
            self.check_end();
        }
        self.sum_up();
        let failure = self.oracle.failure.take().map(|violation| {
            let trace = self.oracle.trace.print(violation.datum);
            (violation, trace)
        });
        Outcome { reached: self.reached, hash: self.net.hash, failure }
    }

    fn boot(&mut self, host: usize) {
        if self.actors[host].is_some() {
            return;
        }
        let actor = if host == NODE {
            self.new_node()
        } else if SESSIONS.contains(&host) {
            self.new_session()
        } else {
            self.new_client()
        };
        self.actors[host] = Some(actor);
        self.net.boot(host);
        self.oracle.say(None, || format!("host {} starts", name(host)));
        self.net.wake(host, self.net.now);
        self.last_turn[host] = self.net.now;
        if host >= FIRST_CLIENT {
            for _ in 0..self.net.rng.range(1, 6) {
                self.operate_on(host);
            }
        }
    }

    fn new_node(&mut self) -> Actor {
        self.epochs += 1;
        self.identities += 1;
        self.oracle.node_started();
        let config = ShardConfig {
            slot_count: SLOTS,
            slots: 0..=(SLOTS - 1) as u16,
            shard: 0,
            shards: 1,
            epoch: 1,
            seed: self.identities,
            session_lease: LEASE,
            settle: self.limits.settle,
            change_log: ChangeLogLimits { entries_max: self.limits.log_entries, age_max: 20 * SECOND },
            validate: true,
            compaction_budget: 64 * 1024,
        };
        let limits = NodeLimits {
            link_buffer_max: self.limits.node_link_buffer,
            links_max: 64,
            ..NodeLimits::default()
        };
        Actor::Node(Box::new(Node::new(config, limits, self.epochs, self.node_metrics.clone())))
    }

    fn new_session(&mut self) -> Actor {
        self.identities += 1;
        let id = SessionId(self.identities & 0xf_ffff);
        let metrics = SessionMetrics::new(&mut Registry::default(), 0);
        self.session_metrics.push(metrics.clone());
        let config = SessionConfig {
            clients_max: 100,
            push_interval_min: self.limits.push_interval,
            push_interval_max: SECOND,
            slow_client_eviction: 4 * SECOND,
            client_timeout: CLIENT_TIMEOUT,
            client_disconnect_grace: GRACE,
            session_lease: LEASE,
            history_bytes_max: self.limits.history_bytes,
            datum_linger: self.limits.linger,
            heartbeat_interval: SECOND / 2,
            push_batch_max: self.net.rng.range(1, 16) as usize,
            clients_per_turn: self.net.rng.range(2, 64) as usize,
            ..SessionConfig::new(id, Routes::to_node(SLOTS, vec![address(NODE)]))
        };
        self.oracle.session_started(id);
        Actor::Session(id, Box::new(Session::new(config, metrics)))
    }

    fn new_client(&mut self) -> Actor {
        self.identities += 1;
        let serial = (self.identities & 0xf_ffff) as usize;
        let mut sessions: Vec<_> = SESSIONS.iter().map(|host| address(*host)).collect();
        if self.net.rng.chance(25) {
            sessions.remove(self.net.rng.below(2));
        }
        let config = ClientConfig { client: ClientId(serial as u64), ..ClientConfig::new(sessions) };
        Actor::Client(serial, Box::new(ClientState::new(&config, mix64(self.identities))))
    }

    fn run_host(&mut self, host: usize) {
        if self.net.hosts[host].run_at != self.net.now {
            return;
        }
        self.net.hosts[host].run_at = 0;
        let now = self.net.now;
        if self.net.hosts[host].paused_until > now {
            let until = self.net.hosts[host].paused_until;
            self.net.wake(host, until);
            return;
        }
        let Some(mut actor) = self.actors[host].take() else { return };
        let gap = now - self.last_turn[host];
        if host == NODE && gap > SECOND {
            self.oracle.node_was_paused(gap);
        }
        self.last_turn[host] = now;
        self.reached.turns += 1;
        let budget = if self.net.rng.chance(10) { 1 + self.net.rng.below(3) } else { usize::MAX };
        let mut handled = 0;
        while handled < budget
            && let Some((pair, end, conn, inbound)) = self.net.take_inbound(host)
        {
            handled += 1;
            self.observe(host, &actor, pair, &inbound);
            let refused = refused_frames(&actor);
            let event = match &inbound {
                Inbound::Accepted => Event::Accepted { conn, listener: 0 },
                Inbound::Connected => Event::Connected { conn },
                Inbound::Received(bytes) => Event::Received { conn, bytes },
                Inbound::Writable => Event::Writable { conn },
                Inbound::Closed(reason) => Event::Closed { conn, reason: *reason },
            };
            let _ = end;
            actor.role().handle(event, nanos(now));
            if refused_frames(&actor) > refused {
                self.reached.refused_frames += 1;
                if !self.rewanted.contains(&host) {
                    let text = format!("{} was sent a frame that does not follow", name(host));
                    self.oracle.fail(None, text);
                }
            }
        }
        let more = actor.role().turn(nanos(now), &mut HostSockets { net: &mut self.net, host });
        self.tap();
        self.after_turn(host, &mut actor);
        let left = !self.net.hosts[host].inbox.is_empty();
        if actor.role().is_finished() {
            self.ended(host, actor);
            return;
        }
        let wake = actor.role().wake_at().0;
        if more || left {
            self.net.wake(host, now + 20_000);
        } else {
            self.watch_spin(host, wake);
            self.net.wake(host, wake.max(now + MS));
        }
        self.actors[host] = Some(actor);
    }

    /// A role that wants its next turn in the past keeps its core busy for nothing.
    fn watch_spin(&mut self, host: usize, wake: u64) {
        if wake > self.net.now {
            self.spins[host] = 0;
            return;
        }
        self.spins[host] += 1;
        if self.spins[host] > SPINS_MAX {
            let text = format!("{} spins: it wants to wake at {wake} ns all the time", name(host));
            self.oracle.fail(None, text);
        }
    }

    fn observe(&mut self, host: usize, actor: &Actor, pair: usize, inbound: &Inbound) {
        match (actor, inbound) {
            (Actor::Client(serial, _), Inbound::Connected) => {
                self.rewanted.remove(&host);
                self.oracle.client_attached(*serial, pair);
            }
            (Actor::Client(..), Inbound::Closed(_)) => self.reached.client_losses += 1,
            (Actor::Session(id, _), Inbound::Accepted) => self.oracle.session_accepted(pair, *id),
            (Actor::Session(id, _), Inbound::Received(_)) => {
                if self.net.pairs[pair].ends[1].host == NODE {
                    self.oracle.session_heard_node(*id);
                } else {
                    self.oracle.session_heard(pair);
                }
            }
            (Actor::Session(..), Inbound::Closed(reason)) => {
                if self.net.pairs[pair].ends[1].host == NODE {
                    self.reached.link_losses += 1;
                } else {
                    self.oracle.session_saw_end(pair, *reason);
                }
            }
            (Actor::Node(_), Inbound::Received(_)) => {
                let peer = self.net.pairs[pair].ends[0].host;
                if let Some(Actor::Session(id, _)) = &self.actors[peer] {
                    self.oracle.node_heard(*id);
                    if self.greeted.insert(pair) {
                        self.greeting.push(*id);
                    }
                }
            }
            _ => {}
        }
    }

    fn after_turn(&mut self, host: usize, actor: &mut Actor) {
        match actor {
            Actor::Node(node) => {
                for session in std::mem::take(&mut self.greeting) {
                    self.oracle.node_greeted(session, node.shard().epoch());
                }
                self.oracle.node_turn(node);
            }
            Actor::Client(serial, client) => {
                while let Some(update) = client.poll_update().filter(|_| !self.leaving.contains(serial)) {
                    self.oracle.update(*serial, &update);
                }
            }
            Actor::Session(..) => {}
        }
        let _ = host;
    }

    fn tap(&mut self) {
        let Some(tapped) = self.net.tapped.as_mut() else { return };
        for (pair, end, bytes) in std::mem::take(tapped) {
            let ends = &self.net.pairs[pair].ends;
            let (from, to) = (name(ends[end].host), name(ends[1 - end].host));
            self.oracle.trace.frames(self.net.now, &format!("[{pair}] {from}"), &to, &bytes);
        }
    }

    /// A role has ended by itself.
    fn ended(&mut self, host: usize, actor: Actor) {
        self.oracle.say(None, || format!("{} has ended by itself", name(host)));
        self.net.end_process(host);
        let down = self.net.rng.range(20, 3000) * MS;
        match actor {
            Actor::Session(id, _) => {
                self.reached.incarnations_refused += 1;
                self.oracle.session_ended(id);
            }
            Actor::Client(..) => {}
            Actor::Node(_) => self.oracle.fail(None, "the data node has ended by itself".into()),
        }
        self.net.schedule(self.net.now + down, Task::Boot(host));
    }

    fn crash(&mut self, host: usize, silent: bool) -> bool {
        let Some(actor) = self.actors[host].take() else { return false };
        self.oracle.say(None, || format!("{} crashes{}", name(host), if silent { ", silently" } else { "" }));
        match actor {
            Actor::Session(id, _) => self.oracle.session_ended(id),
            Actor::Client(serial, _) => self.client_is_gone(serial),
            Actor::Node(node) => {
                self.reached.tombstones_dropped += node.shard().stats().tombstones_dropped;
                self.reached.leases_ended += node.shard().stats().leases_ended;
            }
        }
        self.net.crash(host, silent);
        true
    }

    /// A client that will not come back under this identity.
    fn client_is_gone(&mut self, serial: usize) {
        for reg in self.oracle.regs.values_mut().filter(|reg| reg.client == serial) {
            reg.wanted = false;
        }
    }

    fn disturb(&mut self, host: usize, until: u64) {
        let entry = self.oracle.disturbed.entry(host).or_insert(0);
        *entry = (*entry).max(until);
    }

    fn inflict(&mut self, fault: Fault) {
        self.reached.faults += 1;
        self.oracle.say(None, || format!("fault: {fault:?}"));
        let now = self.net.now;
        match fault {
            Fault::ResetClient(host) => self.break_one(host, |_| 3),
            Fault::HalfOpenClient(host) => self.break_one(host, |rng| 1 + rng.below(2)),
            Fault::ResetLink(host) => {
                self.disturb(host, now);
                self.break_link(host, |_| 3);
            }
            Fault::HalfOpenLink(host) => {
                self.disturb(host, now);
                self.break_link(host, |rng| 1 + rng.below(2));
            }
            Fault::Partition { one, other, both, nanos, reset } => {
                self.disturb(other, now + nanos);
                let paths = [(one, other), (other, one)];
                let first = self.net.rng.below(2);
                for (from, to) in if both { &paths[..] } else { &paths[first..=first] } {
                    self.net.block(*from, *to, now + nanos);
                    self.net.schedule(now + nanos, Task::Heal(*from, *to, reset));
                }
            }
            Fault::CrashSession { host, silent, down } => {
                self.disturb(host, now);
                if self.crash(host, silent) {
                    self.reached.session_restarts += 1;
                    self.net.schedule(now + down, Task::Boot(host));
                }
            }
            Fault::CrashNode { silent, down } => {
                if self.crash(NODE, silent) {
                    self.reached.node_restarts += 1;
                    self.net.schedule(now + down, Task::Boot(NODE));
                }
            }
            Fault::Pause { host, nanos } => {
                self.disturb(host, now + nanos);
                self.reached.pauses += 1;
                self.net.hosts[host].paused_until = now + nanos;
            }
            Fault::Storm(session) => {
                for host in FIRST_CLIENT..self.actors.len() {
                    for pair in self.net.between(host, session) {
                        self.net.break_pair(pair, 3);
                    }
                }
            }
            Fault::Leave(host) => {
                if let Some(Actor::Client(serial, client)) = &mut self.actors[host] {
                    client.leave();
                    self.oracle.left(*serial);
                    self.leaving.insert(*serial);
                    self.net.wake(host, now);
                }
            }
            Fault::CrashClient { host, silent } => {
                if self.crash(host, silent) {
                    let at = now + self.net.rng.range(50, 5000) * MS;
                    self.net.schedule(at, Task::Boot(host));
                }
            }
            Fault::SlowClient { host, nanos } => {
                self.net.hosts[host].paused_until = now + nanos;
            }
        }
    }

    fn break_one(&mut self, host: usize, sides: impl Fn(&mut Rng) -> usize) {
        for session in SESSIONS {
            for pair in self.net.between(host, session) {
                let sides = sides(&mut self.net.rng);
                self.net.break_pair(pair, sides);
            }
        }
    }

    fn break_link(&mut self, session: usize, sides: impl Fn(&mut Rng) -> usize) {
        for pair in self.net.between(session, NODE) {
            let sides = sides(&mut self.net.rng);
            self.net.break_pair(pair, sides);
        }
    }

    fn drop_client(&mut self, host: usize) {
        if let Some(Actor::Client(serial, client)) = &mut self.actors[host] {
            self.reached.client_drops += 1;
            client.drop_connection();
            self.oracle.say(None, || format!("client {serial} drops its connection"));
            self.net.wake(host, self.net.now);
        }
    }

    fn operate(&mut self) {
        let host = FIRST_CLIENT + self.net.rng.below(self.limits.clients);
        if self.net.rng.chance(4) {
            self.drop_client(host);
        } else {
            self.operate_on(host);
        }
    }

    fn operate_on(&mut self, host: usize) {
        let Some(Actor::Client(serial, client)) = &mut self.actors[host] else { return };
        if self.leaving.contains(serial) {
            return;
        }
        self.reached.operations += 1;
        let (rng, oracle, serial) = (&mut self.net.rng, &mut self.oracle, *serial);
        let datum = rng.below(DATUMS);
        let id = oracle.datums[datum].clone();
        let live: Vec<RegisterId> = of(oracle, serial, true);
        let gone: Vec<RegisterId> = of(oracle, serial, false);
        match rng.below(100) {
            0..22 if live.len() < 4 => {
                let payload = payload(rng, serial);
                let registration =
                    client.publish(&id, &format!("host-{serial}"), "z", &payload).expect("small enough");
                oracle.published(serial, registration, datum, payload);
            }
            22..42 if !live.is_empty() => {
                let register = live[rng.below(live.len())];
                let payload = payload(rng, serial);
                publish_again(client, oracle, serial, register, payload);
            }
            42..50 if !live.is_empty() => {
                let register = live[rng.below(live.len())];
                let payload = oracle.regs[&register].contents.last().cloned().unwrap_or_default();
                publish_again(client, oracle, serial, register, payload);
            }
            50..66 if !live.is_empty() => {
                let register = live[rng.below(live.len())];
                client.unpublish(oracle.regs[&register].registration);
                oracle.withdrew(register);
            }
            66..72 if !gone.is_empty() => {
                let register = gone[rng.below(gone.len())];
                let payload = payload(rng, serial);
                publish_again(client, oracle, serial, register, payload);
            }
            72..92 if !oracle.is_subscribed(serial, datum) => {
                if client.is_up() {
                    self.rewanted.insert(host);
                }
                client.subscribe(&id);
                oracle.subscribed(serial, datum);
            }
            92..100 if oracle.is_subscribed(serial, datum) => {
                client.unsubscribe(&id);
                oracle.unsubscribed(serial, datum);
            }
            _ => {}
        }
        self.net.wake(host, self.net.now);
    }

    /// All faults end, and everybody is there again.
    fn quiet(&mut self) {
        self.oracle.say(None, || "quiet: all is healed".into());
        self.net.heal_all();
        for host in 0..self.actors.len() {
            self.net.hosts[host].paused_until = 0;
            if self.actors[host].is_none() {
                self.boot(host);
            }
            self.net.wake(host, self.net.now);
        }
    }

    fn check_end(&mut self) {
        let mut present = BTreeSet::new();
        let mut lists = BTreeMap::new();
        for host in FIRST_CLIENT..self.actors.len() {
            let Some(Actor::Client(serial, client)) = &self.actors[host] else { continue };
            present.insert(*serial);
            if !client.is_up() || !client.is_settled() {
                let text = format!(
                    "in the end client {serial} is {}connected and {}settled",
                    if client.is_up() { "" } else { "not " },
                    if client.is_settled() { "" } else { "not " }
                );
                self.oracle.fail(None, text);
            }
            for datum in 0..DATUMS {
                if self.oracle.is_subscribed(*serial, datum) {
                    let list = client.list(self.oracle.datums[datum].key()).map(|(_, records)| {
                        let content = records.map(|record| {
                            let payload = record.instance().map(|it| it.payload).unwrap_or_default();
                            (record.register(), payload)
                        });
                        content.collect()
                    });
                    lists.insert((*serial, datum), list);
                }
            }
        }
        if let Some(Actor::Node(node)) = &self.actors[NODE] {
            let (_, _, held_back) = node.shard().reader_counts();
            if held_back > 0 {
                self.oracle.fail(None, format!("in the end {held_back} leases are held back"));
            }
        }
        self.oracle.check_end(&present, &lists);
    }

    fn sum_up(&mut self) {
        let (reached, net, seen) = (&mut self.reached, &self.net.stats, &self.oracle.seen);
        let Seen { resumed_by_diff, resumed_by_snapshot, .. } = *seen;
        (reached.resumes_diff, reached.resumes_snapshot) = (resumed_by_diff, resumed_by_snapshot);
        (reached.retained, reached.departures, reached.moves) = (seen.retained, seen.departed, seen.moved);
        (reached.removals_acknowledged, reached.updates) = (seen.removals_acknowledged, seen.updates);
        (reached.stale_replays, reached.stale_contents) = (seen.stale_replays, seen.stale_contents);
        reached.unheard_moves = seen.unheard_moves;
        (reached.half_open, reached.stalls, reached.bytes) = (net.half_open, net.stalls, net.bytes);
        (reached.connects_refused, reached.short_sends) = (net.refused, net.short_sends);
        reached.busy_sends = net.busy;
        for metrics in &self.session_metrics {
            reached.storms += metrics.drop_storms.get();
            reached.clients_timed_out += metrics.client_timeouts.get();
            reached.slow_clients += metrics.slow_clients.get();
            reached.resumes_current += metrics.resumed_current.get();
            reached.gaps += metrics.diff_gaps.get();
            reached.older_diffs += metrics.diffs_older.get();
            reached.repairs += metrics.repaired_datums.get();
        }
        reached.readers_behind += self.node_metrics.links_behind.get();
        reached.repaired_removals += self.node_metrics.repaired.get();
        if let Some(Actor::Node(node)) = &self.actors[NODE] {
            reached.tombstones_dropped += node.shard().stats().tombstones_dropped;
            reached.leases_ended += node.shard().stats().leases_ended;
        }
    }
}

fn refused_frames(actor: &Actor) -> u64 {
    match actor {
        Actor::Client(_, client) => client.refused_frames(),
        _ => 0,
    }
}

/// A client's registrations, those it wants or those it has withdrawn.
fn of(oracle: &Oracle, client: usize, wanted: bool) -> Vec<RegisterId> {
    let regs = oracle.regs.values().filter(|reg| reg.client == client && reg.wanted == wanted);
    regs.map(|reg| reg.registration.register).collect()
}

fn publish_again(
    client: &mut ClientState,
    oracle: &mut Oracle,
    serial: usize,
    register: RegisterId,
    payload: Vec<u8>,
) {
    let reg = &oracle.regs[&register];
    let (registration, datum): (Registration, usize) = (reg.registration, reg.datum);
    let id = oracle.datums[datum].clone();
    client.publish_as(registration, &id, &format!("host-{serial}"), "z", &payload).expect("small enough");
    oracle.published(serial, registration, datum, payload);
}

/// Unique, and of a size that sometimes fills a window.
fn payload(rng: &mut Rng, serial: usize) -> Vec<u8> {
    let mut payload = format!("{serial}#{:x}", rng.next() >> 40).into_bytes();
    let size = if rng.chance(15) { rng.range(100, 1500) as usize } else { 24 };
    payload.resize(size.max(payload.len()), b'.');
    payload
}

fn name(host: usize) -> String {
    match host {
        NODE => "node".into(),
        host if host < FIRST_CLIENT => format!("session-{host}"),
        host => format!("client@{host}"),
    }
}
