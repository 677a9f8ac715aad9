//! A network of byte streams in virtual time, one [`Sockets`] per host.
//!
//! A connection is a pair of ends with a pipe in each direction. Inside a live connection bytes arrive in order and
//! complete, like TCP; they are cut anywhere, arrive late, and a sender may have only `window` bytes that the receiver has
//! not taken yet: what exceeds them waits as the end's remainder, and meanwhile further sends answer `Busy`, as the trait
//! says. A reset may overtake bytes in flight. An end whose peer is gone learns of it when it sends, not before.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use slotcast_engine::id::mix64;
use slotcast_net::io::ring::{CloseReason, ConnId, Event, SendOutcome, SharedFrame, Sockets};

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1000 * MS;
/// Port that servers listen on.
const PORT: u16 = 7600;
const ECONNREFUSED: i32 = 111;

/// The only source of randomness of a run.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(mix64(seed))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix64(self.0)
    }

    /// A number from `low` to `high`, both included.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    pub fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    /// True `percent` times of a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

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
    Run(usize),
    Boot(usize),
    Operation,
    Fault(usize),
    Quiet,
}

enum Item {
    Syn,
    SynAck,
    Refused,
    Data(Vec<u8>),
    Fin,
    Rst,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Unborn,
    Connecting,
    Open,
    /// Closed by its role, with a remainder still to go out.
    Draining,
    Closed,
}

pub struct End {
    pub host: usize,
    pub conn: ConnId,
    pub state: State,
    rest: VecDeque<u8>,
    in_flight: usize,
    window: usize,
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

pub struct Pair {
    pub ends: [End; 2],
    pipes: [Pipe; 2],
    delay: (u64, u64),
}

/// What a host's kernel holds for its role.
pub enum Inbound {
    Accepted,
    Connected,
    Received(Vec<u8>),
    Writable,
    Closed(CloseReason),
}

pub struct Host {
    pub up: bool,
    pub inbox: VecDeque<(usize, usize, Inbound)>,
    pub paused_until: u64,
    /// When it runs next; 0: not planned.
    pub run_at: u64,
    free: BTreeSet<usize>,
    conns: BTreeMap<ConnId, (usize, usize)>,
    indexes: usize,
    generation: u64,
    window: (u64, u64),
}

#[derive(Default, Clone, Debug)]
pub struct NetStats {
    pub short_sends: u64,
    pub busy: u64,
    pub resets: u64,
    pub half_open: u64,
    pub stalls: u64,
    pub refused: u64,
    pub bytes: u64,
}

pub struct Network {
    pub now: u64,
    pub rng: Rng,
    pub queue: BTreeMap<(u64, u64), Task>,
    sequence: u64,
    pub hosts: Vec<Host>,
    pub pairs: Vec<Pair>,
    /// Pairs with an end that is not closed.
    pub live: BTreeSet<usize>,
    /// From, to: blocked until then.
    blocked: BTreeMap<(usize, usize), u64>,
    pub stats: NetStats,
    /// Order-dependent digest of everything that happened.
    pub hash: u64,
    /// Writes as they are made, for the trace.
    pub tapped: Option<Vec<(usize, usize, Vec<u8>)>>,
}

pub fn address(host: usize) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, host as u8)), PORT)
}

impl Network {
    pub fn new(rng: Rng, hosts: usize) -> Self {
        let host = |_| Host {
            up: false,
            inbox: VecDeque::new(),
            paused_until: 0,
            run_at: 0,
            free: BTreeSet::new(),
            conns: BTreeMap::new(),
            indexes: 0,
            generation: 0,
            window: (64 * 1024, 64 * 1024),
        };
        Self {
            now: 1,
            rng,
            queue: BTreeMap::new(),
            sequence: 0,
            hosts: (0..hosts).map(host).collect(),
            pairs: Vec::new(),
            live: BTreeSet::new(),
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

    pub fn schedule(&mut self, at: u64, task: Task) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), task);
    }

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
                if self.rng.chance(50) {
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

    pub fn block(&mut self, from: usize, to: usize, until: u64) {
        let entry = self.blocked.entry((from, to)).or_insert(0);
        *entry = (*entry).max(until);
    }

    pub fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.blocked.get(&(from, to)).is_some_and(|until| self.now < *until)
    }

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
                    let at = self.now + self.rng.range(MS, 300 * MS);
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
            let at = self.now + self.rng.range(0, 300) * MS / if self.rng.chance(50) { 100 } else { 1 };
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

    /// Hands out the next thing that happened to a host's sockets, if the role may still see it.
    pub fn take_inbound(&mut self, host: usize) -> Option<(usize, usize, ConnId, Inbound)> {
        while let Some((pair, end, inbound)) = self.hosts[host].inbox.pop_front() {
            let conn = self.pairs[pair].ends[end].conn;
            match &inbound {
                Inbound::Closed(_) => {
                    let state = &mut self.hosts[host];
                    state.conns.remove(&conn);
                    state.free.insert(conn.index());
                }
                Inbound::Received(bytes) => {
                    let len = bytes.len();
                    self.consumed(pair, end, len);
                    if self.pairs[pair].ends[end].let_go {
                        continue;
                    }
                }
                _ if self.pairs[pair].ends[end].let_go => continue,
                _ => {}
            }
            let kind = match &inbound {
                Inbound::Accepted => 1,
                Inbound::Connected => 2,
                Inbound::Received(bytes) => 1000 + bytes.len() as u64,
                Inbound::Writable => 4,
                Inbound::Closed(_) => 5,
            };
            self.note(mix64(kind) ^ (pair as u64) << 8 ^ (host as u64) << 1 ^ end as u64);
            return Some((pair, end, conn, inbound));
        }
        None
    }

    fn consumed(&mut self, pair: usize, end: usize, len: usize) {
        let (host, peer) = (self.pairs[pair].ends[end].host, self.pairs[pair].ends[1 - end].host);
        if self.is_blocked(host, peer) {
            self.pairs[pair].ends[end].credit_due += len;
        } else {
            self.credit(pair, 1 - end, len);
        }
    }

    fn credit(&mut self, pair: usize, end: usize, len: usize) {
        let sender = &mut self.pairs[pair].ends[end];
        sender.in_flight -= len.min(sender.in_flight);
        if len > 0 && !sender.rest.is_empty() {
            let at = self.now + self.rng.range(20_000, 400_000);
            self.schedule(at, Task::Flush(pair, end));
        }
    }

    fn tell(&mut self, pair: usize, end: usize, inbound: Inbound) {
        let host = self.pairs[pair].ends[end].host;
        if !self.hosts[host].up {
            return;
        }
        self.hosts[host].inbox.push_back((pair, end, inbound));
        let at = self.now + self.rng.range(1_000, 200_000);
        self.wake(host, at);
    }

    fn new_conn(&mut self, host: usize, pair: usize, end: usize) -> ConnId {
        let state = &mut self.hosts[host];
        let index = state.free.pop_first().unwrap_or_else(|| {
            state.indexes += 1;
            state.indexes - 1
        });
        state.generation += 1;
        let conn = ConnId::from_parts(index, state.generation);
        state.conns.insert(conn, (pair, end));
        conn
    }

    fn push(&mut self, pair: usize, end: usize, item: Item) {
        let (low, high) = self.pairs[pair].delay;
        let mut delay = self.rng.range(low, high);
        if self.rng.chance(2) {
            delay *= self.rng.range(2, 60);
        }
        let pipe = &mut self.pairs[pair].pipes[end];
        let at = (self.now + delay).max(pipe.last_at);
        pipe.last_at = at;
        pipe.items.push_back((at, item));
        if !pipe.scheduled && !pipe.stalled {
            pipe.scheduled = true;
            self.schedule(at, Task::Arrive(pair, end));
        }
    }

    fn push_data(&mut self, pair: usize, end: usize, mut bytes: Vec<u8>) {
        self.pairs[pair].ends[end].in_flight += bytes.len();
        self.stats.bytes += bytes.len() as u64;
        let cuts = if self.rng.chance(60) { 0 } else { self.rng.below(4) };
        for _ in 0..cuts {
            if bytes.len() > 1 {
                let at = 1 + self.rng.below(bytes.len() - 1);
                let rest = bytes.split_off(at);
                self.push(pair, end, Item::Data(std::mem::replace(&mut bytes, rest)));
            }
        }
        self.push(pair, end, Item::Data(bytes));
    }

    fn arrive(&mut self, pair: usize, from: usize) {
        let to = 1 - from;
        let (near, far) = (self.pairs[pair].ends[from].host, self.pairs[pair].ends[to].host);
        let blocked = self.is_blocked(near, far);
        let pipe = &mut self.pairs[pair].pipes[from];
        pipe.scheduled = false;
        if pipe.stalled || pipe.items.is_empty() {
            return;
        }
        if blocked {
            pipe.stalled = true;
            self.stats.stalls += 1;
            return;
        }
        let item = pipe.items.pop_front().map(|(_, item)| item);
        if let Some((at, _)) = pipe.items.front() {
            let at = *at;
            pipe.scheduled = true;
            self.schedule(at, Task::Arrive(pair, from));
        }
        match item {
            Some(Item::Syn) => self.syn(pair),
            Some(Item::SynAck) => match self.pairs[pair].ends[0].state {
                State::Connecting => {
                    self.pairs[pair].ends[0].state = State::Open;
                    self.tell(pair, 0, Inbound::Connected);
                }
                _ => self.push(pair, 0, Item::Rst),
            },
            Some(Item::Refused) => self.close_end(pair, 0, CloseReason::Error(ECONNREFUSED)),
            Some(Item::Data(bytes)) => match self.pairs[pair].ends[to].state {
                State::Open => self.tell(pair, to, Inbound::Received(bytes)),
                State::Draining => self.consumed(pair, to, bytes.len()),
                _ if self.pairs[pair].ends[from].state != State::Closed => self.push(pair, to, Item::Rst),
                _ => {}
            },
            Some(Item::Fin) => self.close_end(pair, to, CloseReason::Eof),
            Some(Item::Rst) => self.close_end(pair, to, CloseReason::Reset),
            None => {}
        }
    }

    fn syn(&mut self, pair: usize) {
        let host = self.pairs[pair].ends[1].host;
        if self.pairs[pair].ends[0].state == State::Closed {
            self.live.remove(&pair);
            return;
        }
        if !self.hosts[host].up {
            self.stats.refused += 1;
            self.push(pair, 1, Item::Refused);
            return;
        }
        let conn = self.new_conn(host, pair, 1);
        (self.pairs[pair].ends[1].conn, self.pairs[pair].ends[1].state) = (conn, State::Open);
        self.tell(pair, 1, Inbound::Accepted);
        self.push(pair, 1, Item::SynAck);
    }

    fn close_end(&mut self, pair: usize, end: usize, reason: CloseReason) {
        let reason = match self.pairs[pair].ends[end].state {
            State::Closed | State::Unborn => return,
            State::Draining => CloseReason::Local,
            _ => reason,
        };
        self.forget(pair, end);
        self.tell(pair, end, Inbound::Closed(reason));
    }

    fn flush_end(&mut self, pair: usize, end: usize) {
        let sender = &mut self.pairs[pair].ends[end];
        if !matches!(sender.state, State::Open | State::Draining) || sender.rest.is_empty() {
            return;
        }
        let room = sender.window.saturating_sub(sender.in_flight).min(sender.rest.len());
        if room == 0 {
            return;
        }
        let bytes = sender.rest.drain(..room).collect();
        let (done, state) = (sender.rest.is_empty(), sender.state);
        self.push_data(pair, end, bytes);
        if done && state == State::Draining {
            self.push(pair, end, Item::Fin);
            self.close_end(pair, end, CloseReason::Local);
        } else if done {
            self.tell(pair, end, Inbound::Writable);
        }
    }

    fn send_bytes(&mut self, host: usize, conn: ConnId, bytes: &[u8]) -> SendOutcome {
        let Some(&(pair, end)) = self.hosts[host].conns.get(&conn) else { return SendOutcome::Gone };
        self.note(bytes.len() as u64 ^ (pair as u64) << 20 ^ (host as u64) << 50);
        let sender = &mut self.pairs[pair].ends[end];
        match sender.state {
            State::Open => {}
            State::Connecting => return SendOutcome::Busy,
            State::Unborn | State::Draining | State::Closed => return SendOutcome::Gone,
        }
        if !sender.rest.is_empty() {
            self.stats.busy += 1;
            return SendOutcome::Busy;
        }
        if bytes.is_empty() {
            return SendOutcome::Queued;
        }
        let mut taken = sender.window.saturating_sub(sender.in_flight).min(bytes.len());
        let cut = self.rng.chance(1);
        if cut {
            taken = taken.min(self.rng.below(bytes.len()));
        }
        let sender = &mut self.pairs[pair].ends[end];
        sender.rest.extend(&bytes[taken..]);
        if taken < bytes.len() {
            self.stats.short_sends += 1;
            if cut {
                let at = self.now + self.rng.range(MS / 10, 20 * MS);
                self.schedule(at, Task::Flush(pair, end));
            }
        }
        if taken > 0 {
            self.push_data(pair, end, bytes[..taken].to_vec());
        }
        if let Some(tapped) = &mut self.tapped {
            tapped.push((pair, end, bytes.to_vec()));
        }
        SendOutcome::Queued
    }

    fn close_conn(&mut self, host: usize, conn: ConnId, reset: bool) {
        let Some(&(pair, end)) = self.hosts[host].conns.get(&conn) else { return };
        let closing = &mut self.pairs[pair].ends[end];
        closing.let_go = true;
        match closing.state {
            State::Closed | State::Unborn => return,
            State::Draining if !reset => return,
            State::Open if !reset && !closing.rest.is_empty() => {
                closing.state = State::Draining;
                return;
            }
            _ => {}
        }
        if reset && self.rng.chance(50) {
            self.pairs[pair].pipes[end].items.retain(|(_, item)| !matches!(item, Item::Data(_)));
        }
        self.push(pair, end, if reset { Item::Rst } else { Item::Fin });
        self.close_end(pair, end, CloseReason::Local);
    }

    fn connect_to(&mut self, host: usize, target: SocketAddr) -> io::Result<ConnId> {
        let IpAddr::V4(ip) = target.ip() else { return Err(io::ErrorKind::AddrNotAvailable.into()) };
        let peer = usize::from(ip.octets()[3]);
        let (pair, unborn) = (self.pairs.len(), ConnId::from_parts(0, 0));
        let conn = self.new_conn(host, pair, 0);
        let base = self.rng.range(30_000, 400_000);
        let mut end = |host: usize, conn, state, window: (u64, u64)| End {
            host,
            conn,
            state,
            rest: VecDeque::new(),
            in_flight: 0,
            window: self.rng.range(window.0, window.1) as usize,
            credit_due: 0,
            let_go: false,
        };
        let (near, far) = (self.hosts[host].window, self.hosts[peer].window);
        let ends = [end(host, conn, State::Connecting, far), end(peer, unborn, State::Unborn, near)];
        let spread = self.rng.range(base, base * 8);
        self.pairs.push(Pair { ends, pipes: Default::default(), delay: (base, spread) });
        self.live.insert(pair);
        self.push(pair, 0, Item::Syn);
        Ok(conn)
    }
}

/// The sockets of one host.
pub struct HostSockets<'a> {
    pub net: &'a mut Network,
    pub host: usize,
}

impl Sockets for HostSockets<'_> {
    fn listen(&mut self, addr: SocketAddr) -> io::Result<SocketAddr> {
        Ok(addr)
    }

    fn connect(&mut self, target: SocketAddr, _source: Option<IpAddr>) -> io::Result<ConnId> {
        self.net.connect_to(self.host, target)
    }

    fn send(&mut self, conn: ConnId, parts: &[&[u8]]) -> SendOutcome {
        self.net.send_bytes(self.host, conn, &parts.concat())
    }

    fn send_shared(&mut self, conn: ConnId, frame: &SharedFrame) -> SendOutcome {
        self.net.send_bytes(self.host, conn, frame)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn close(&mut self, conn: ConnId, reset: bool) {
        self.net.close_conn(self.host, conn, reset);
    }

    fn poll(&mut self, _on_event: &mut dyn FnMut(Event<'_>)) -> io::Result<usize> {
        unreachable!("the world hands out events")
    }

    fn wait(&mut self, _timeout: Duration) -> io::Result<()> {
        unreachable!("the world knows the time")
    }
}
