//! The loop: what is due next happens, in virtual time.
//!
//! Every host has an inbox that its kernel fills and a role that takes it, like the loop in `io::pump`: events, a turn,
//! and a sleep until `wake_at` or the next event.

use std::collections::{BTreeMap, BTreeSet};

use prometheus_client::registry::Registry;
use slotcast_engine::{
    id::{DataId, Nanos, SessionId, SlotId},
    memory_disk::MemoryDisk,
    slot_state::SlotState,
};
use slotcast_net::{
    data::{cluster::metrics::ClusterMetrics, metrics::DataMetrics},
    io::ring::Event,
    session::metrics::SessionMetrics,
    wire::{Frame, Message, header::FRAME_BYTES_MAX},
};

use super::{
    control::SharedStore,
    faults::Fault,
    hosts::{Actor, CLIENT_TIMEOUT, Kind, LEASE, SLOTS},
    network::{HostSockets, Inbound, MS, Network, SECOND, Task},
    operations::DATUMS,
    oracle::{DETECTION_MAX, Oracle, Seen, Violation},
    plan::{BUSY, HOUR, Plan},
    reached::Reached,
    strangers::Guise,
};

/// Here everything has to be as if nothing had been.
pub const END: u64 = BUSY + CLIENT_TIMEOUT + 3 * LEASE + 6 * SECOND;
/// Turns in a row at the same time after which a role is taken to spin.
const SPINS_MAX: u32 = 100;

/// Writes on one connection in a second: more are a storm.
const SENDS_MAX: u64 = 2000;

/// How a run ended.
pub struct Outcome {
    /// What it reached.
    pub reached: Reached,
    /// Order-dependent digest of everything that happened.
    pub hash: u64,
    /// Virtual nanoseconds that were simulated.
    pub simulated: u64,
    /// The first broken promise, and the trace up to there if one was kept.
    pub failure: Option<(Violation, String)>,
}

/// What a data node has read of a session's greeting.
enum Greeting {
    /// So much, and not all.
    Read(Vec<u8>),
    /// The whole: this session's.
    Of(SessionId),
}

/// A run.
pub struct World {
    pub(super) plan: Plan,
    pub(super) net: Network,
    pub(super) oracle: Oracle,
    pub(super) actors: Vec<Option<Actor>>,
    pub(super) reached: Reached,
    pub(super) session_metrics: Vec<SessionMetrics>,
    pub(super) node_metrics: DataMetrics,
    pub(super) cluster_metrics: ClusterMetrics,
    pub(super) identities: u64,
    spins: Vec<u32>,
    pub(super) last_turn: Vec<u64>,
    /// Hosts of clients that have wanted a data id again on this connection after they had not.
    pub(super) rewanted: BTreeSet<usize>,
    /// Clients that have been told to leave.
    pub(super) leaving: BTreeSet<usize>,
    /// The disk of each host, and whether it is at work.
    pub(super) disks: Vec<MemoryDisk>,
    pub(super) disk_busy: Vec<bool>,
    /// Strangers, by the hosts on which they are.
    pub(super) guises: BTreeMap<usize, Guise>,
    /// What the control plane shares.
    pub(super) store: SharedStore,
    /// What data nodes have read of the greetings of sessions, by connection.
    greeted: BTreeMap<usize, Greeting>,
    /// Sessions that greet a data node in this turn.
    greeting: Vec<SessionId>,
    /// The session whose turn it is has heard a data node or the control plane.
    has_heard_peer: bool,
}

impl World {
    /// Nothing has happened yet. A `traced` world keeps what a person wants to read about a failure.
    pub fn new(plan: Plan, traced: bool) -> Self {
        let datums = (0..DATUMS).map(|n| DataId::new("sim", "default", &format!("service-{n}")));
        let datums = datums.map(|id| id.expect("a valid name")).collect();
        let hosts = plan.layout.len();
        let mut net = Network::new(plan.seed, hosts);
        net.tapped = traced.then(Vec::new);
        let mut oracle = Oracle::new(datums, plan.shape, plan.sizes.settle);
        oracle.trace.is_on = traced;
        let mut world = Self {
            net,
            oracle,
            actors: (0..hosts).map(|_| None).collect(),
            reached: Reached::default(),
            session_metrics: Vec::new(),
            node_metrics: DataMetrics::new(&mut Registry::default(), 0),
            cluster_metrics: ClusterMetrics::new(&mut Registry::default(), 0),
            identities: 0,
            spins: vec![0; hosts],
            last_turn: vec![0; hosts],
            rewanted: BTreeSet::new(),
            leaving: BTreeSet::new(),
            disks: vec![MemoryDisk::default(); hosts],
            disk_busy: vec![false; hosts],
            guises: BTreeMap::new(),
            store: SharedStore::default(),
            greeted: BTreeMap::new(),
            greeting: Vec::new(),
            has_heard_peer: false,
            plan,
        };
        world.prepare();
        world
    }

    fn prepare(&mut self) {
        let (layout, is_tight) = (self.plan.layout, self.plan.sizes.is_tight);
        for host in 0..layout.len() {
            let window = match (is_tight, layout.kind(host)) {
                (false, _) | (true, Kind::Meta) => (64 * 1024, 64 * 1024),
                (true, Kind::Client) => (400, 4_000),
                (true, _) => (500, 12_000),
            };
            self.net.set_window(host, window);
            let at = self.net.hosts[host].rng.range(1, 400) * MS;
            self.net.schedule(at, Task::Boot(host));
        }
        for (number, operation) in self.plan.operations.iter().enumerate() {
            self.net.schedule(operation.at, Task::Operation(number));
        }
        for (number, fault) in self.plan.faults.iter().enumerate() {
            if let Fault::ClockBack { host, .. } = fault.fault {
                self.net.hosts[host].clock_ahead += HOUR;
            }
            self.net.schedule(fault.at, Task::Fault(number));
            if let Some(lost) = self.plan.lone_loss(number) {
                self.net.schedule(fault.at + DETECTION_MAX, Task::Detect(lost));
            }
        }
        self.net.schedule(BUSY, Task::Quiet);
        self.net.schedule(END - 2 * LEASE, Task::Leases);
    }

    /// Runs to the end, or to the first violation.
    pub fn run(mut self) -> Outcome {
        while let Some((at, task)) = self.net.next_due() {
            if at > END || self.oracle.failure.is_some() {
                break;
            }
            (self.net.now, self.oracle.now) = (at, at);
            match task {
                Task::Run(host) => self.run_host(host),
                Task::Boot(host) => self.boot(host),
                Task::Operation(number) => self.operate(number),
                Task::Fault(number) => self.inflict(number),
                Task::Disk(host) => self.drive_disk(host),
                Task::Store(host) => self.drive_store(host),
                Task::After(number) => self.inflict_after(number),
                Task::Detect(node) => self.check_detected(node),
                Task::Use(node) => self.drain(node, false),
                Task::Quiet => self.quiet(),
                Task::Leases => self.release_leases(),
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
        let (simulated, hash) = (self.net.now, self.net.hash);
        Outcome { reached: self.reached, hash, simulated, failure }
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
        let clock = Nanos(now + self.net.hosts[host].clock_ahead);
        let gap = now - self.last_turn[host];
        if let Actor::Node(node) = &actor
            && gap > SECOND
        {
            self.oracle.node_was_paused(node.process, gap);
        }
        self.last_turn[host] = now;
        self.reached.turns += 1;
        let rng = &mut self.net.hosts[host].rng;
        let budget = if rng.chance(10) { 1 + rng.below(3) } else { usize::MAX };
        let mut handled = 0;
        while handled < budget
            && let Some((pair, conn, inbound)) = self.net.take_inbound(host)
        {
            handled += 1;
            self.observe(host, &actor, pair, &inbound);
            let refused = actor.refused_frames();
            let event = match &inbound {
                Inbound::Accepted => Event::Accepted { conn, listener: 0 },
                Inbound::Connected => Event::Connected { conn },
                Inbound::Received(bytes) => Event::Received { conn, bytes },
                Inbound::Writable => Event::Writable { conn },
                Inbound::Closed(reason) => Event::Closed { conn, reason: *reason },
            };
            actor.role().handle(event, clock);
            if actor.refused_frames() > refused {
                self.reached.refused_frames += 1;
                if !self.rewanted.contains(&host) {
                    let text =
                        format!("{} was sent a frame that does not follow", self.plan.layout.name(host));
                    self.oracle.fail(None, text);
                }
            }
        }
        let more = actor.role().turn(clock, &mut HostSockets { net: &mut self.net, host });
        self.tap();
        self.after_turn(host, &mut actor);
        let left = !self.net.hosts[host].inbox.is_empty();
        if actor.role().is_finished() {
            self.ended(host, actor);
            return;
        }
        let wake = actor.role().wake_at().0.saturating_sub(self.net.hosts[host].clock_ahead);
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
            let name = self.plan.layout.name(host);
            self.oracle.fail(None, format!("{name} spins: it wants to wake at {wake} ns all the time"));
        }
    }

    fn observe(&mut self, host: usize, actor: &Actor, pair: usize, inbound: &Inbound) {
        let [near, far] = [0, 1].map(|end| self.net.pairs[pair].ends[end].host);
        let peer = if near == host { far } else { near };
        let peer_kind = self.plan.layout.kind(peer);
        match (actor, inbound) {
            (Actor::Client(serial, _), Inbound::Connected) => {
                self.rewanted.remove(&host);
                self.oracle.client_attached(*serial, pair);
            }
            (Actor::Client(..), Inbound::Closed(_)) => self.reached.client_losses += 1,
            (Actor::Session(id, _), Inbound::Accepted) => self.oracle.session_accepted(pair, *id),
            (Actor::Session(id, _), Inbound::Received(_)) => match peer_kind {
                Kind::Node => {
                    self.has_heard_peer = true;
                    self.oracle.session_heard_node(*id, peer);
                }
                Kind::Meta => self.has_heard_peer = true,
                Kind::Client => self.oracle.session_heard(pair),
                _ => {}
            },
            (Actor::Session(..), Inbound::Closed(reason)) => match peer_kind {
                Kind::Node => self.reached.link_losses += 1,
                Kind::Client => self.oracle.session_saw_end(pair, *reason),
                _ => {}
            },
            (Actor::Node(node), Inbound::Closed(_)) => self.oracle.node_saw_end(node.process, pair),
            (Actor::Node(node), Inbound::Received(bytes)) => {
                if peer_kind == Kind::Session
                    && let Some((id, is_greeting)) = self.greeted(pair, bytes)
                {
                    if is_greeting {
                        self.oracle.node_linked(node.process, id, pair);
                    } else {
                        self.oracle.node_heard(node.process, id, pair);
                    }
                }
            }
            _ => {}
        }
    }

    /// Which session a data node hears over a connection, and whether with these bytes for the first time. That stands in its
    /// greeting, and until the whole of that is read, with these bytes or before, it is linked to nobody.
    fn greeted(&mut self, pair: usize, bytes: &[u8]) -> Option<(SessionId, bool)> {
        let greeting = self.greeted.entry(pair).or_insert_with(|| Greeting::Read(Vec::new()));
        let read = match greeting {
            Greeting::Of(id) => return Some((*id, false)),
            Greeting::Read(read) => read,
        };
        read.extend_from_slice(bytes);
        let frame = Frame::read(read, FRAME_BYTES_MAX).ok()??;
        let Ok(Message::LinkHello { session, .. }) = Message::read(frame) else { return None };
        *greeting = Greeting::Of(session);
        self.greeting.push(session);
        Some((session, true))
    }

    fn after_turn(&mut self, host: usize, actor: &mut Actor) {
        match actor {
            Actor::Node(node) => {
                for session in std::mem::take(&mut self.greeting) {
                    self.oracle.node_greeted(node.process, session, node.role.shard().epoch());
                }
                if host == self.plan.layout.spare() {
                    // It was taken for another. What it leads may lack what the disk of that one has, and that one may lack what
                    // was acknowledged because this disk had it. Slots that it never held are nobody's excuse.
                    let slots = (0..SLOTS as u16).map(SlotId);
                    let shard = node.role.shard();
                    self.oracle.unclean.extend(slots.filter(|slot| shard.state(*slot) != SlotState::Absent));
                }
                self.oracle.node_turn(node.process, &node.role);
                let waits = node.disk.as_ref().is_some_and(|side| !side.requests.is_empty());
                self.after_disk_turn(host, waits);
            }
            Actor::Client(serial, client) => {
                while let Some(update) = client.poll_update().filter(|_| !self.leaving.contains(serial)) {
                    self.oracle.update(*serial, &update);
                }
            }
            Actor::Meta(meta) => self.after_meta_turn(host, meta),
            Actor::Session(id, session) => {
                if std::mem::take(&mut self.has_heard_peer) {
                    self.oracle.session_turn(*id, session);
                }
            }
            Actor::Liar(_) => {}
        }
    }

    fn tap(&mut self) {
        let Some(tapped) = self.net.tapped.as_mut() else { return };
        for (pair, end, bytes) in std::mem::take(tapped) {
            let ends = &self.net.pairs[pair].ends;
            let name = |end: usize| self.plan.layout.name(ends[end].host);
            let (from, to) = (format!("[{pair}] {}", name(end)), name(1 - end));
            self.oracle.trace.frames(self.net.now, &from, &to, &bytes);
        }
    }

    /// A role has ended by itself.
    fn ended(&mut self, host: usize, actor: Actor) {
        let name = self.plan.layout.name(host);
        self.oracle.say(None, || format!("{name} has ended by itself"));
        self.net.end_process(host);
        let down = self.net.hosts[host].rng.range(20, 3000) * MS;
        self.lose_process(&actor);
        match actor {
            Actor::Session(..) => self.reached.incarnations_refused += 1,
            Actor::Client(..) => {}
            Actor::Meta(_) | Actor::Node(..) | Actor::Liar(_) => {
                self.oracle.fail(None, format!("{name} has ended by itself"))
            }
        }
        self.net.schedule(self.net.now + down, Task::Boot(host));
    }

    /// Every slot is answered for by a node other than the one that was lost.
    fn check_detected(&mut self, lost: usize) {
        let accepting = |slot: SlotId| {
            let mut nodes = self.actors.iter().flatten().filter_map(|actor| match actor {
                Actor::Node(node) => Some(&node.role),
                _ => None,
            });
            nodes.any(|node| node.shard().state(slot) == SlotState::Accept)
        };
        let missing: Vec<u16> = (0..SLOTS as u16).filter(|slot| !accepting(SlotId(*slot))).collect();
        self.reached.losses_detected += 1;
        if self.actors[lost].is_none() && !missing.is_empty() {
            let name = self.plan.layout.name(lost);
            let text = format!(
                "{} after the loss of {name} nobody answers for slots {missing:?}",
                super::trace::ms(DETECTION_MAX)
            );
            self.oracle.fail(None, text);
        }
    }

    fn check_end(&mut self) {
        if self.net.stats.sends_per_second > SENDS_MAX {
            let text = format!("{} writes on one connection in a second", self.net.stats.sends_per_second);
            self.oracle.fail(None, text);
        }
        let mut present = BTreeSet::new();
        let mut lists = BTreeMap::new();
        for actor in self.actors.iter().flatten() {
            match actor {
                Actor::Client(serial, client) => {
                    present.insert(*serial);
                    if !client.is_up() || !client.is_settled() {
                        let text = format!(
                            "in the end client {serial} is {}connected and {}settled",
                            if client.is_up() { "" } else { "not " },
                            if client.is_settled() { "" } else { "not " }
                        );
                        self.oracle.fail(None, text);
                    }
                    for datum in (0..DATUMS).filter(|datum| self.oracle.is_subscribed(*serial, *datum)) {
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
                Actor::Node(node) => {
                    let (_, _, held_back) = node.role.shard().reader_counts();
                    if held_back > 0 {
                        self.oracle.fail(None, format!("in the end {held_back} leases are held back"));
                    }
                }
                Actor::Session(..) | Actor::Meta(_) | Actor::Liar(_) => {}
            }
        }
        let contradictions: u64 =
            self.session_metrics.iter().map(|metrics| metrics.diff_contradictions.get()).sum();
        if contradictions > 0 {
            let text = format!("data nodes have told {contradictions} times two lists of one revision");
            self.oracle.fail(None, text);
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
        (reached.kept_contents, reached.unheard_moves) = (seen.kept_contents, seen.unheard_moves);
        (reached.promotions, reached.demotions) = (seen.promotions, seen.demotions);
        (reached.led_from_nothing, reached.slots_left) = (seen.led_from_nothing, seen.slots_left);
        (reached.accepts_confirmed, reached.accepts_late) = (seen.accepts_confirmed, seen.accepts_late);
        reached.copies_compared = seen.copies_compared;
        (reached.forks, reached.migrations) = (seen.forks, seen.migrations);
        reached.later_tables = seen.later_tables;
        reached.persistent_acknowledged = seen.persistent_acknowledged;
        (reached.persistent_refused, reached.not_durable_yet) =
            (seen.persistent_refused, seen.not_durable_yet);
        reached.unclean_slots = self.oracle.unclean.len() as u64;
        (reached.half_open, reached.stalls, reached.bytes) = (net.half_open, net.stalls, net.bytes);
        (reached.connects_refused, reached.short_sends) = (net.refused, net.short_sends);
        reached.busy_sends = net.busy;
        for metrics in &self.session_metrics {
            reached.storms += metrics.drop_storms.get();
            reached.clients_timed_out += metrics.client_timeouts.get();
            reached.slow_clients += metrics.slow_clients.get();
            reached.resumes_current += metrics.resumed_current.get();
            reached.resumes_deferred += metrics.resumes_deferred.get();
            reached.gaps += metrics.diff_gaps.get();
            reached.older_diffs += metrics.diffs_older.get();
            reached.lists_amended += metrics.lists_amended.get();
            reached.repairs += metrics.repaired_datums.get();
        }
        reached.readers_behind += self.node_metrics.links_behind.get();
        reached.repaired_removals += self.node_metrics.repaired.get();
        for actor in self.actors.iter().flatten() {
            match actor {
                Actor::Node(node) => reached.count_shard(&node.role.shard().stats()),
                Actor::Meta(meta) => reached.count_meta(&meta.node.core().counters()),
                _ => {}
            }
        }
    }
}
