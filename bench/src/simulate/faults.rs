//! What goes wrong.

use super::{
    control::StoreTrouble,
    hosts::{Actor, Kind, Layout},
    network::{MS, SECOND, Task},
    plan::{BUSY, HOUR, Shape},
    rng::Rng,
    strangers::Guise,
    world::World,
};

/// One fault. Hosts by their numbers, times in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Both ends of a client's connections see a reset.
    ResetClient(usize),
    /// One end of them does.
    HalfOpenClient(usize),
    /// Both ends of a session's links see a reset.
    ResetLink(usize),
    /// One end of them does.
    HalfOpenLink(usize),
    /// Nothing gets from one host to the other, nor back if `both`; `reset`: what was open between them is reset in the end.
    Partition {
        /// One host.
        one: usize,
        /// The other.
        other: usize,
        /// Neither way, instead of one way that chance chooses.
        both: bool,
        /// How long.
        nanos: u64,
        /// Whether connections break when it ends.
        reset: bool,
    },
    /// A session's process is killed, and comes back as another incarnation.
    CrashSession {
        /// Its host.
        host: usize,
        /// Its peers are not told.
        silent: bool,
        /// How long it is away.
        down: u64,
    },
    /// A data node's process is killed, and comes back.
    CrashNode {
        /// Its host.
        host: usize,
        /// Its peers are not told.
        silent: bool,
        /// How long it is away.
        down: u64,
    },
    /// A process stands still.
    Pause {
        /// Its host.
        host: usize,
        /// How long.
        nanos: u64,
    },
    /// The clock of a host jumps ahead.
    ClockJump {
        /// The host.
        host: usize,
        /// How far.
        nanos: u64,
    },
    /// A process of the control plane is killed, and comes back.
    CrashMeta {
        /// Its host.
        host: usize,
        /// Its peers are not told.
        silent: bool,
        /// How long it is away.
        down: u64,
    },
    /// The store of the slot table is in trouble.
    Store(StoreTrouble),
    /// An operator empties a data node, and uses it again.
    Drain {
        /// Its host.
        node: usize,
        /// After this long.
        nanos: u64,
    },
    /// All clients of a session drop together.
    Storm(usize),
    /// A client says goodbye.
    Leave(usize),
    /// A client's process is killed; another one comes up there.
    CrashClient {
        /// Its host.
        host: usize,
        /// Its session is not told.
        silent: bool,
    },
    /// Nothing gets from a data node to some hosts, nor back if `both`; then its process is killed, if `down` is not 0.
    Isolate {
        /// Its host.
        node: usize,
        /// The others, a bit for each host.
        from: u64,
        /// Neither way, instead of one way that chance chooses for all of them.
        both: bool,
        /// How long.
        nanos: u64,
        /// How long it is away afterwards.
        down: u64,
    },
    /// Somebody is there who should not.
    Stranger {
        /// Who.
        guise: Guise,
        /// How long.
        nanos: u64,
    },
    /// The disk of a data node is full.
    FullDisk {
        /// Its host.
        node: usize,
        /// How long.
        nanos: u64,
    },
    /// All processes of the control plane are killed, and find an old backup in their store when they come back.
    Restore {
        /// How long they are away.
        down: u64,
    },
    /// The clock of a machine is set back by an hour, and it starts again.
    ClockBack {
        /// The host.
        host: usize,
        /// How long it is away.
        down: u64,
    },
    /// A client does not read for a while.
    SlowClient {
        /// Its host.
        host: usize,
        /// How long.
        nanos: u64,
    },
}

impl Fault {
    /// One of those that a shape can have.
    pub fn choose(rng: &mut Rng, shape: Shape, layout: &Layout) -> Self {
        let client = layout.clients().start + rng.below(layout.clients);
        let session = layout.sessions().start + rng.below(layout.sessions);
        let node = rng.below(layout.nodes);
        if shape == Shape::Cluster && rng.chance(60) {
            return Self::choose_of_cluster(rng, layout, node, session);
        }
        match rng.below(100) {
            0..8 => Fault::ResetClient(client),
            8..15 => Fault::HalfOpenClient(client),
            15..24 => Fault::ResetLink(session),
            24..30 => Fault::HalfOpenLink(session),
            30..44 => {
                let one = if rng.chance(60) { node } else { client };
                let nanos = if rng.chance(15) { rng.range(6, 14) * SECOND } else { rng.range(50, 5000) * MS };
                Fault::Partition { one, other: session, both: rng.chance(60), nanos, reset: rng.chance(40) }
            }
            44..55 => {
                let down = if rng.chance(60) { rng.range(20, 1500) } else { rng.range(20, 9000) };
                Fault::CrashSession { host: session, silent: rng.chance(25), down: down * MS }
            }
            55..69 => Fault::CrashNode { host: node, silent: rng.chance(20), down: rng.range(20, 2500) * MS },
            69..77 => {
                let host = [node, session, session, client][rng.below(4)];
                Fault::Pause { host, nanos: rng.range(100, 5000) * MS }
            }
            77..79 => Fault::ClockJump { host: node, nanos: rng.range(2, 3600) * SECOND },
            79..85 => Fault::Storm(session),
            85..90 => Fault::Leave(client),
            90..95 => Fault::CrashClient { host: client, silent: rng.chance(30) },
            _ => Fault::SlowClient { host: client, nanos: rng.range(1000, 12_000) * MS },
        }
    }

    /// One of those that need a control plane or several data nodes.
    fn choose_of_cluster(rng: &mut Rng, layout: &Layout, node: usize, session: usize) -> Self {
        let meta = layout.metas().start + rng.below(layout.metas);
        let other = (node + 1 + rng.below(layout.nodes - 1)) % layout.nodes;
        match rng.below(100) {
            // Long enough for another to lead.
            0..30 => {
                Fault::CrashNode { host: node, silent: rng.chance(40), down: rng.range(50, 12_000) * MS }
            }
            30..60 => {
                let (one, other) =
                    [(node, other), (node, meta), (node, meta), (session, meta), (node, session)]
                        [rng.below(5)];
                let nanos = rng.range(200, 9000) * MS;
                Fault::Partition { one, other, both: rng.chance(60), nanos, reset: rng.chance(40) }
            }
            60..70 => {
                let host = if rng.chance(70) { node } else { meta };
                Fault::Pause { host, nanos: rng.range(500, 7000) * MS }
            }
            70..74 => Fault::ClockJump { host: meta, nanos: rng.range(2, 3600) * SECOND },
            74..82 => Fault::CrashMeta { host: meta, silent: rng.chance(30), down: rng.range(50, 9000) * MS },
            82..88 => Fault::Store(match rng.below(3) {
                0 => StoreTrouble::Down(rng.range(500, 9000) * MS),
                1 => StoreTrouble::Slow(rng.range(500, 9000) * MS),
                _ => StoreTrouble::SetBack,
            }),
            _ => Fault::Drain { node, nanos: rng.range(1000, 9000) * MS },
        }
    }
}

impl Fault {
    /// One of those that cut a data node off from several others, bring strangers, or set a clock back.
    pub fn choose_hard(rng: &mut Rng, layout: &Layout, on_disk: bool) -> Self {
        let node = rng.below(layout.nodes);
        match rng.below(100) {
            0..50 => {
                let mask = |hosts: std::ops::Range<usize>| hosts.fold(0, |mask, host| mask | 1u64 << host);
                let others = mask(layout.nodes()) & !(1 << node);
                let session = 1 << (layout.sessions().start + rng.below(layout.sessions));
                let from = match rng.below(6) {
                    0 => others,
                    1 => others | mask(layout.metas()),
                    2 | 3 => others | session,
                    4 => others | session | mask(layout.metas()),
                    _ => session | mask(layout.metas()),
                };
                let longest = if rng.chance(50) { 2500 } else { 9500 };
                let nanos = rng.range(200, longest) * MS;
                let down = if rng.chance(60) { rng.range(3000, 9000) * MS } else { 0 };
                Fault::Isolate { node, from, both: rng.chance(70), nanos, down }
            }
            50..57 if on_disk => Fault::FullDisk { node, nanos: rng.range(500, 8000) * MS },
            50..60 => Fault::Restore { down: rng.range(50, 3000) * MS },
            60..92 => {
                let guise = Guise::choose(rng, layout);
                Fault::Stranger { guise, nanos: rng.range(1000, 8000) * MS }
            }
            _ => {
                let hosts = layout.metas().end;
                Fault::ClockBack { host: rng.below(hosts), down: rng.range(50, 3000) * MS }
            }
        }
    }

    /// How long it lasts.
    pub fn nanos(&self) -> u64 {
        match *self {
            Fault::Partition { nanos, .. }
            | Fault::Stranger { nanos, .. }
            | Fault::FullDisk { nanos, .. }
            | Fault::Pause { nanos, .. }
            | Fault::Drain { nanos, .. }
            | Fault::SlowClient { nanos, .. }
            | Fault::Store(StoreTrouble::Down(nanos) | StoreTrouble::Slow(nanos)) => nanos,
            Fault::CrashSession { down, .. }
            | Fault::CrashNode { down, .. }
            | Fault::ClockBack { down, .. }
            | Fault::Restore { down }
            | Fault::CrashMeta { down, .. } => down,
            Fault::Isolate { nanos, down, .. } => nanos + down,
            _ => 0,
        }
    }

    /// Whether it stands between data nodes, the control plane and sessions.
    pub fn is_of_cluster(&self, layout: &Layout) -> bool {
        let is_client = |host: usize| layout.kind(host) == Kind::Client;
        match *self {
            Fault::Partition { one, other, .. } => !is_client(one) && !is_client(other),
            Fault::Pause { host, .. } | Fault::ClockJump { host, .. } => !is_client(host),
            Fault::ResetLink(_) | Fault::HalfOpenLink(_) | Fault::CrashSession { .. } => true,
            Fault::CrashNode { .. } | Fault::CrashMeta { .. } | Fault::Store(_) | Fault::Drain { .. } => true,
            Fault::Isolate { .. } | Fault::Stranger { .. } | Fault::ClockBack { .. } => true,
            Fault::FullDisk { .. } | Fault::Restore { .. } => true,
            _ => false,
        }
    }
}

impl World {
    /// Makes a fault happen.
    pub(super) fn inflict(&mut self, number: usize) {
        let planned = self.plan.faults[number];
        let mut rng = Rng::of(&[self.plan.seed, 4, planned.number]);
        self.reached.faults += 1;
        self.oracle.say(None, || format!("fault {}: {:?}", planned.number, planned.fault));
        let now = self.net.now;
        match planned.fault {
            Fault::ResetClient(host) => self.break_client(host, || 3),
            Fault::HalfOpenClient(host) => self.break_client(host, || 1 + rng.below(2)),
            Fault::ResetLink(host) => {
                self.disturb(host, now);
                self.break_links(host, || 3);
            }
            Fault::HalfOpenLink(host) => {
                self.disturb(host, now);
                self.break_links(host, || 1 + rng.below(2));
            }
            Fault::Partition { one, other, both, nanos, reset } => {
                self.disturb(one, now + nanos);
                self.disturb(other, now + nanos);
                let paths = [(one, other), (other, one)];
                let first = rng.below(2);
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
            Fault::CrashNode { host, silent, down } => {
                if self.crash(host, silent) {
                    self.crash_disk(host);
                    self.reached.node_restarts += 1;
                    self.net.schedule(now + down, Task::Boot(host));
                }
            }
            Fault::Pause { host, nanos } => {
                self.disturb(host, now + nanos);
                self.reached.pauses += 1;
                self.net.hosts[host].paused_until = now + nanos;
            }
            Fault::ClockJump { host, nanos } => {
                self.reached.clock_jumps += 1;
                self.net.hosts[host].clock_ahead += nanos;
                self.net.wake(host, now);
            }
            Fault::CrashMeta { host, silent, down } => {
                if self.crash(host, silent) {
                    self.reached.meta_restarts += 1;
                    self.net.schedule(now + down, Task::Boot(host));
                }
            }
            Fault::Store(trouble) => {
                self.reached.store_troubles += 1;
                self.trouble_store(trouble, rng.below(1000));
            }
            Fault::Drain { node, nanos } => {
                self.reached.drains += 1;
                self.drain(node, true);
                self.net.schedule(now + nanos, Task::Use(node));
            }
            Fault::Isolate { node, from, both, nanos, down } => {
                self.reached.isolations += 1;
                let there = rng.below(2) == 0;
                for other in (0..self.plan.layout.len()).filter(|host| from & (1 << host) != 0) {
                    self.disturb(other, now + nanos);
                    for (near, far) in [(node, other), (other, node)] {
                        if both || there == (near == node) {
                            self.net.block(near, far, now + nanos);
                            self.net.schedule(now + nanos, Task::Heal(near, far, false));
                        }
                    }
                }
                if down > 0 {
                    self.net.schedule(now + nanos, Task::After(number));
                }
            }
            Fault::Stranger { guise, nanos } => {
                self.begin_guise(guise);
                self.net.schedule(now + nanos, Task::After(number));
            }
            Fault::FullDisk { node, nanos } => {
                self.reached.full_disks += 1;
                self.disks[node].is_full = true;
                self.net.schedule(now + nanos, Task::After(number));
            }
            Fault::Restore { down } => {
                self.trouble_store(StoreTrouble::SetBack, rng.below(1000));
                for host in self.plan.layout.metas() {
                    if self.crash(host, false) {
                        self.reached.meta_restarts += 1;
                        self.net.schedule(now + down, Task::Boot(host));
                    }
                }
            }
            Fault::ClockBack { host, down } => {
                self.disturb(host, now + down);
                self.reached.clocks_set_back += 1;
                let state = &mut self.net.hosts[host];
                state.clock_ahead = state.clock_ahead.saturating_sub(HOUR);
                self.crash(host, false);
                self.crash_disk(host);
                self.net.schedule(now + down, Task::Boot(host));
            }
            Fault::Storm(session) => {
                for host in self.plan.layout.clients() {
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
                    let at = now + rng.range(50, 5000) * MS;
                    self.net.schedule(at, Task::Boot(host));
                }
            }
            Fault::SlowClient { host, nanos } => {
                self.net.hosts[host].paused_until = now + nanos;
            }
        }
    }

    /// What follows when the time of a fault is over.
    pub(super) fn inflict_after(&mut self, number: usize) {
        let fault = self.plan.faults[number].fault;
        match fault {
            // All is quiet by then if it came late.
            Fault::Isolate { node, down, .. } if self.net.now < BUSY && self.crash(node, false) => {
                self.crash_disk(node);
                self.reached.node_restarts += 1;
                self.net.schedule(self.net.now + down, Task::Boot(node));
            }
            Fault::FullDisk { node, .. } => self.disks[node].is_full = false,
            Fault::Stranger { guise, .. } => self.end_guise(guise.host(&self.plan.layout)),
            _ => {}
        }
    }

    fn break_client(&mut self, host: usize, mut sides: impl FnMut() -> usize) {
        for session in self.plan.layout.sessions() {
            for pair in self.net.between(host, session) {
                self.net.break_pair(pair, sides());
            }
        }
    }

    fn break_links(&mut self, session: usize, mut sides: impl FnMut() -> usize) {
        for node in self.plan.layout.nodes() {
            for pair in self.net.between(session, node) {
                self.net.break_pair(pair, sides());
            }
        }
    }

    fn disturb(&mut self, host: usize, until: u64) {
        if self.plan.layout.kind(host) == Kind::Session {
            let entry = self.oracle.disturbed.entry(host).or_insert(0);
            *entry = (*entry).max(until);
        }
    }

    pub(super) fn crash(&mut self, host: usize, silent: bool) -> bool {
        let Some(actor) = self.actors[host].take() else { return false };
        let name = self.plan.layout.name(host);
        self.oracle.say(None, || format!("{name} crashes{}", if silent { ", silently" } else { "" }));
        self.lose_process(&actor);
        if let Actor::Client(serial, _) = actor {
            self.oracle.client_crashed(serial);
        }
        self.net.crash(host, silent);
        true
    }

    /// Counts what a process did before it is gone.
    pub(super) fn lose_process(&mut self, actor: &Actor) {
        match actor {
            Actor::Session(id, _) => self.oracle.session_ended(*id),
            Actor::Node(node) => {
                self.oracle.node_ended(node.process);
                self.reached.count_shard(&node.role.shard().stats());
            }
            Actor::Meta(meta) => self.reached.count_meta(&meta.node.core().counters()),
            Actor::Liar(liar) => self.count_liar(liar),
            Actor::Client(..) => {}
        }
    }

    /// All faults end, and everybody is there again.
    pub(super) fn quiet(&mut self) {
        self.oracle.say(None, || "quiet: all is healed".into());
        self.net.heal_all();
        self.end_guises();
        self.disks.iter_mut().for_each(|disk| disk.is_full = false);
        for host in 0..self.actors.len() {
            self.net.hosts[host].paused_until = 0;
            if self.actors[host].is_none() {
                self.boot(host);
            }
            self.net.wake(host, self.net.now);
        }
        if let Ok(mut store) = self.store.lock() {
            (store.down_until, store.slow_until) = (0, 0);
        }
        for node in self.plan.layout.nodes() {
            self.drain(node, false);
        }
    }
}
