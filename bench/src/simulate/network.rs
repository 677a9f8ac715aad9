//! A network of byte streams in virtual time, one [`slotcast_net::io::ring::Sockets`] per host.
//!
//! A connection is a pair of ends with a pipe in each direction. Inside a live connection bytes arrive in order and
//! complete, like TCP; they are cut anywhere, arrive late, and a sender may have only `window` bytes that the receiver has
//! not taken yet: what exceeds them waits as the end's remainder, and meanwhile further sends answer `Busy`, as the trait
//! says. A reset may overtake bytes in flight. An end whose peer is gone learns of it when it sends, not before.

mod sockets;
mod streams;

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use slotcast_engine::id::mix64;
use slotcast_net::io::ring::{CloseReason, ConnId};

use super::rng::Rng;
pub use sockets::HostSockets;

/// Nanoseconds in a millisecond.
pub const MS: u64 = 1_000_000;
/// Nanoseconds in a second.
pub const SECOND: u64 = 1000 * MS;
/// Port that servers listen on.
const PORT: u16 = 7600;

/// What is due at some time. Variants without explanation belong to the world.
#[derive(Clone, Debug)]
pub enum Task {
    /// The front of the pipe from this end arrives.
    Arrive(usize, usize),
    /// The end sees a reset.
    Break(usize, usize),
    /// The end's remainder may go on.
    Flush(usize, usize),
    /// The path from one host to another works again; `true`: the connections over it are reset.
    Heal(usize, usize, bool),
    /// The host's next turn.
    Run(usize),
    /// The host's process starts.
    Boot(usize),
    /// The operation with this number.
    Operation(usize),
    /// The fault with this number.
    Fault(usize),
    /// The store of the control plane process on this host is looked after.
    Store(usize),
    /// The disk of this host carries out its next request.
    Disk(usize),
    /// What the data node on this host led is to be led by others by now.
    Detect(usize),
    /// What follows when the time of the fault with this number is over.
    After(usize),
    /// The data node on this host is not to be emptied any more.
    Use(usize),
    /// All faults end.
    Quiet,
    /// An operator looks whether leases are held back.
    Leases,
}

/// Something that is due; the greatest is due next. What it is does not count.
struct Due {
    at: u64,
    /// In which order it was planned.
    sequence: u64,
    task: Task,
}

impl Due {
    #[inline]
    fn rank(&self) -> u128 {
        !(u128::from(self.at) << 64 | u128::from(self.sequence))
    }
}

impl Ord for Due {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for Due {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}

impl Eq for Due {}

enum Item {
    Syn,
    SynAck,
    Refused,
    Data(Vec<u8>),
    Fin,
    Rst,
}

/// Where an end of a connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// The connect has not arrived.
    Unborn,
    /// The answer to the connect has not arrived.
    Connecting,
    /// Bytes flow.
    Open,
    /// Closed by its role, with a remainder still to go out.
    Draining,
    /// Gone.
    Closed,
}

/// One end of a connection.
pub struct End {
    /// Where it is.
    pub host: usize,
    /// Its name there.
    pub conn: ConnId,
    /// Where it stands.
    pub state: State,
    rest: VecDeque<u8>,
    in_flight: usize,
    window: usize,
    /// The second of the last send, and sends in it.
    sends: (u64, u64),
    /// Bytes from the peer that its role has not been credited for, because the way back is blocked.
    credit_due: usize,
    /// Its role has closed it, and sees nothing more of it but `Closed`.
    let_go: bool,
}

#[derive(Default)]
struct Pipe {
    items: VecDeque<(u64, Item)>,
    last_at: u64,
    scheduled: bool,
    stalled: bool,
}

/// A connection.
pub struct Pair {
    /// Who connected, and who was connected to.
    pub ends: [End; 2],
    pipes: [Pipe; 2],
    delay: (u64, u64),
    rng: Rng,
}

/// What a host's kernel holds for its role.
pub enum Inbound {
    /// Somebody has connected.
    Accepted,
    /// The connect has been answered.
    Connected,
    /// Bytes.
    Received(Vec<u8>),
    /// There is room to send again.
    Writable,
    /// The connection is gone.
    Closed(CloseReason),
}

/// A machine with one process.
pub struct Host {
    /// Whether the process runs.
    pub up: bool,
    /// What has happened to its sockets and was not handed out yet.
    pub inbox: VecDeque<(usize, usize, Inbound)>,
    /// Its processes stand still until then.
    pub paused_until: u64,
    /// How far its clock is ahead of the virtual time.
    pub clock_ahead: u64,
    /// When it runs next; 0: not planned.
    pub run_at: u64,
    free: BTreeSet<usize>,
    /// Connections by their places: pair and end.
    conns: Vec<Option<(ConnId, usize, usize)>>,
    indexes: usize,
    generation: u64,
    window: (u64, u64),
    /// What is left to chance here.
    pub rng: Rng,
}

/// What was counted.
#[derive(Default, Clone, Debug)]
pub struct NetStats {
    /// Sends that the socket took a part of.
    pub short_sends: u64,
    /// Sends that it took nothing of.
    pub busy: u64,
    /// Connections that were reset at both ends.
    pub resets: u64,
    /// Connections that one end learnt the end of before the other.
    pub half_open: u64,
    /// Pieces that stood still before a partition.
    pub stalls: u64,
    /// Connects to hosts that were down.
    pub refused: u64,
    /// Bytes that went out.
    pub bytes: u64,
    /// Sends that were made on one connection within one second, at most.
    pub sends_per_second: u64,
}

/// All hosts and what is between them.
pub struct Network {
    /// The virtual time.
    pub now: u64,
    seed: u64,
    /// What is due: by time, then in the order in which it was planned.
    queue: BinaryHeap<Due>,
    sequence: u64,
    /// All machines.
    pub hosts: Vec<Host>,
    /// All connections that there ever were.
    pub pairs: Vec<Pair>,
    /// Pairs with an end that is not closed.
    pub live: BTreeSet<usize>,
    /// Connects so far, by who and to whom.
    connects: BTreeMap<(usize, usize), u64>,
    /// From, to: blocked until then.
    blocked: BTreeMap<(usize, usize), u64>,
    /// What was counted.
    pub stats: NetStats,
    /// Order-dependent digest of everything that happened.
    pub hash: u64,
    /// Writes as they are made, for the trace.
    pub tapped: Option<Vec<(usize, usize, Vec<u8>)>>,
}

/// Where a host's process listens.
pub fn address(host: usize) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, host as u8)), PORT)
}

impl Host {
    /// The pair and the end of a connection that its role still sees.
    fn find(&self, conn: ConnId) -> Option<(usize, usize)> {
        let (held, pair, end) = (*self.conns.get(conn.index())?)?;
        (held == conn).then_some((pair, end))
    }
}

impl Network {
    /// Hosts that are all down.
    pub fn new(seed: u64, hosts: usize) -> Self {
        let host = |host| Host {
            up: false,
            inbox: VecDeque::new(),
            paused_until: 0,
            run_at: 0,
            free: BTreeSet::new(),
            conns: Vec::new(),
            indexes: 0,
            generation: 0,
            window: (64 * 1024, 64 * 1024),
            clock_ahead: 0,
            rng: Rng::of(&[seed, 1, host as u64]),
        };
        Self {
            now: 1,
            seed,
            queue: BinaryHeap::new(),
            sequence: 0,
            hosts: (0..hosts).map(host).collect(),
            pairs: Vec::new(),
            live: BTreeSet::new(),
            connects: BTreeMap::new(),
            blocked: BTreeMap::new(),
            stats: NetStats::default(),
            hash: 0,
            tapped: None,
        }
    }

    /// Bytes that may be under way to this host on one connection.
    pub fn set_window(&mut self, host: usize, window: (u64, u64)) {
        self.hosts[host].window = window;
    }

    /// Plans something.
    pub fn schedule(&mut self, at: u64, task: Task) {
        self.sequence += 1;
        self.queue.push(Due { at: at.max(self.now), sequence: self.sequence, task });
    }

    /// Takes what is due next, and when it is.
    pub fn next_due(&mut self) -> Option<(u64, Task)> {
        self.queue.pop().map(|Due { at, task, .. }| (at, task))
    }

    /// Takes something that happened into the digest.
    pub fn note(&mut self, value: u64) {
        self.hash = mix64(self.hash ^ mix64(value) ^ self.now.rotate_left(32));
    }

    /// Plans a turn of a host, not later than `at`.
    pub fn wake(&mut self, host: usize, at: u64) {
        let at = at.max(self.now);
        let state = &mut self.hosts[host];
        if state.up && (state.run_at == 0 || at < state.run_at) {
            state.run_at = at;
            self.schedule(at, Task::Run(host));
        }
    }

    /// The host's process runs from now on.
    pub fn boot(&mut self, host: usize) {
        self.hosts[host].up = true;
        self.hosts[host].paused_until = 0;
        self.hosts[host].run_at = 0;
    }

    /// The process is gone. Its peers get resets, unless it is `silent`: then they find out when they send.
    pub fn crash(&mut self, host: usize, silent: bool) {
        for pair in self.live.iter().copied().collect::<Vec<_>>() {
            for end in 0..2 {
                if self.pairs[pair].ends[end].host != host
                    || matches!(self.pairs[pair].ends[end].state, State::Unborn | State::Closed)
                {
                    continue;
                }
                self.forget(pair, end);
                if silent {
                    continue;
                }
                if self.pairs[pair].rng.chance(50) {
                    self.pairs[pair].pipes[end].items.clear();
                }
                self.push(pair, end, Item::Rst);
            }
        }
        let state = &mut self.hosts[host];
        state.up = false;
        state.run_at = 0;
        state.inbox.clear();
        state.conns.clear();
        state.free.clear();
        state.indexes = 0;
    }

    /// A role that has ended by itself: what it has written still goes out.
    pub fn end_process(&mut self, host: usize) {
        for pair in self.live.iter().copied().collect::<Vec<_>>() {
            for end in 0..2 {
                let state = self.pairs[pair].ends[end].state;
                if self.pairs[pair].ends[end].host == host && state != State::Closed && state != State::Unborn
                {
                    let whole = self.pairs[pair].ends[end].rest.is_empty();
                    self.forget(pair, end);
                    self.push(pair, end, if whole { Item::Fin } else { Item::Rst });
                }
            }
        }
        self.crash(host, true);
    }

    fn forget(&mut self, pair: usize, end: usize) {
        let (near, far) = (self.pairs[pair].ends[end].host, self.pairs[pair].ends[1 - end].host);
        if self.is_blocked(near, far) {
            // What was lost on the way is not sent again.
            self.pairs[pair].pipes[end].items.retain(|(_, item)| !matches!(item, Item::Data(_)));
        }
        let ended = &mut self.pairs[pair].ends[end];
        ended.state = State::Closed;
        ended.rest.clear();
        if matches!(self.pairs[pair].ends[1 - end].state, State::Closed | State::Unborn) {
            self.live.remove(&pair);
        }
    }

    /// Nothing gets from one host to another until then.
    pub fn block(&mut self, from: usize, to: usize, until: u64) {
        let entry = self.blocked.entry((from, to)).or_insert(0);
        *entry = (*entry).max(until);
    }

    /// Whether nothing gets from one host to another.
    pub fn is_blocked(&self, from: usize, to: usize) -> bool {
        !self.blocked.is_empty() && self.blocked.get(&(from, to)).is_some_and(|until| self.now < *until)
    }

    /// Ends every partition.
    pub fn heal_all(&mut self) {
        for (from, to) in self.blocked.keys().copied().collect::<Vec<_>>() {
            self.heal(from, to, false);
        }
    }

    fn heal(&mut self, from: usize, to: usize, reset: bool) {
        self.blocked.remove(&(from, to));
        for pair in self.live.iter().copied().collect::<Vec<_>>() {
            for end in 0..2 {
                let (near, far) = (self.pairs[pair].ends[end].host, self.pairs[pair].ends[1 - end].host);
                if (near, far) != (from, to) {
                    continue;
                }
                if reset && end == 0 {
                    self.break_pair(pair, 3);
                }
                let credit = std::mem::take(&mut self.pairs[pair].ends[end].credit_due);
                self.credit(pair, 1 - end, credit);
                if std::mem::take(&mut self.pairs[pair].pipes[end].stalled) {
                    let at = self.now + self.pairs[pair].rng.range(MS, 300 * MS);
                    self.pairs[pair].pipes[end].scheduled = true;
                    self.schedule(at, Task::Arrive(pair, end));
                }
            }
        }
    }

    /// Resets the ends in the mask `sides`, each at a time of its own.
    pub fn break_pair(&mut self, pair: usize, sides: usize) {
        if sides == 3 {
            self.stats.resets += 1;
        } else {
            self.stats.half_open += 1;
        }
        for end in (0..2).filter(|end| sides & (1 << end) != 0) {
            let rng = &mut self.pairs[pair].rng;
            let at = self.now + rng.range(0, 300) * MS / if rng.chance(50) { 100 } else { 1 };
            self.schedule(at, Task::Break(pair, end));
        }
    }

    /// Open connections between two hosts.
    pub fn between(&self, one: usize, other: usize) -> Vec<usize> {
        let joins = |pair: &&usize| {
            let hosts = [self.pairs[**pair].ends[0].host, self.pairs[**pair].ends[1].host];
            (hosts == [one, other] || hosts == [other, one])
                && self.pairs[**pair].ends.iter().any(|end| end.state == State::Open)
        };
        self.live.iter().filter(joins).copied().collect()
    }

    /// Does what the network itself has planned.
    pub fn perform(&mut self, task: Task) {
        match task {
            Task::Arrive(pair, end) => self.arrive(pair, end),
            Task::Break(pair, end) => self.close_end(pair, end, CloseReason::Reset),
            Task::Flush(pair, end) => self.flush_end(pair, end),
            Task::Heal(from, to, reset) => {
                // A later partition of the same path goes on.
                if !self.is_blocked(from, to) {
                    self.heal(from, to, reset);
                }
            }
            _ => unreachable!("the world does this"),
        }
    }
}
