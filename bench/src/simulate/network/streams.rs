//! What happens on connections: connects, pieces on their way, ends that close.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, SocketAddr},
};

use slotcast_engine::id::mix64;
use slotcast_net::io::ring::{CloseReason, ConnId, SendOutcome};

use super::{End, Inbound, Item, MS, Network, Pair, SECOND, State, Task};
use crate::simulate::rng::Rng;

const ECONNREFUSED: i32 = 111;

impl Network {
    /// Hands out the next thing that happened to a host's sockets, if the role may still see it.
    pub fn take_inbound(&mut self, host: usize) -> Option<(usize, ConnId, Inbound)> {
        while let Some((pair, end, inbound)) = self.hosts[host].inbox.pop_front() {
            let conn = self.pairs[pair].ends[end].conn;
            match &inbound {
                Inbound::Closed(_) => {
                    let state = &mut self.hosts[host];
                    if let Some(place) = state.conns.get_mut(conn.index()) {
                        place.take_if(|(held, ..)| *held == conn);
                    }
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
            return Some((pair, conn, inbound));
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

    pub(super) fn credit(&mut self, pair: usize, end: usize, len: usize) {
        let sender = &mut self.pairs[pair].ends[end];
        sender.in_flight -= len.min(sender.in_flight);
        if len > 0 && !sender.rest.is_empty() {
            let at = self.now + self.pairs[pair].rng.range(20_000, 400_000);
            self.schedule(at, Task::Flush(pair, end));
        }
    }

    fn tell(&mut self, pair: usize, end: usize, inbound: Inbound) {
        let host = self.pairs[pair].ends[end].host;
        if !self.hosts[host].up {
            return;
        }
        self.hosts[host].inbox.push_back((pair, end, inbound));
        let at = self.now + self.hosts[host].rng.range(1_000, 200_000);
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
        if state.conns.len() <= index {
            state.conns.resize(index + 1, None);
        }
        state.conns[index] = Some((conn, pair, end));
        conn
    }

    pub(super) fn push(&mut self, pair: usize, end: usize, item: Item) {
        let Pair { delay: (low, high), rng, .. } = &mut self.pairs[pair];
        let mut delay = rng.range(*low, *high);
        if rng.chance(2) {
            delay *= rng.range(2, 60);
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
        let rng = &mut self.pairs[pair].rng;
        let cuts = if rng.chance(60) { 0 } else { rng.below(4) };
        for _ in 0..cuts {
            if bytes.len() > 1 {
                let at = 1 + self.pairs[pair].rng.below(bytes.len() - 1);
                let rest = bytes.split_off(at);
                self.push(pair, end, Item::Data(std::mem::replace(&mut bytes, rest)));
            }
        }
        self.push(pair, end, Item::Data(bytes));
    }

    pub(super) fn arrive(&mut self, pair: usize, from: usize) {
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

    pub(super) fn close_end(&mut self, pair: usize, end: usize, reason: CloseReason) {
        let reason = match self.pairs[pair].ends[end].state {
            State::Closed | State::Unborn => return,
            State::Draining => CloseReason::Local,
            _ => reason,
        };
        self.forget(pair, end);
        self.tell(pair, end, Inbound::Closed(reason));
    }

    pub(super) fn flush_end(&mut self, pair: usize, end: usize) {
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

    pub(super) fn send_bytes(&mut self, host: usize, conn: ConnId, bytes: Vec<u8>) -> SendOutcome {
        let Some((pair, end)) = self.hosts[host].find(conn) else { return SendOutcome::Gone };
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
        let second = self.now / SECOND;
        sender.sends = if sender.sends.0 == second { (second, sender.sends.1 + 1) } else { (second, 1) };
        self.stats.sends_per_second = self.stats.sends_per_second.max(sender.sends.1);
        if bytes.is_empty() {
            return SendOutcome::Queued;
        }
        let mut taken = sender.window.saturating_sub(sender.in_flight).min(bytes.len());
        let cut = self.pairs[pair].rng.chance(1);
        if cut {
            taken = taken.min(self.pairs[pair].rng.below(bytes.len()));
        }
        let sender = &mut self.pairs[pair].ends[end];
        sender.rest.extend(&bytes[taken..]);
        if taken < bytes.len() {
            self.stats.short_sends += 1;
            if cut {
                let at = self.now + self.pairs[pair].rng.range(MS / 10, 20 * MS);
                self.schedule(at, Task::Flush(pair, end));
            }
        }
        if let Some(tapped) = &mut self.tapped {
            tapped.push((pair, end, bytes.clone()));
        }
        if taken > 0 {
            let mut bytes = bytes;
            bytes.truncate(taken);
            self.push_data(pair, end, bytes);
        }
        SendOutcome::Queued
    }

    pub(super) fn close_conn(&mut self, host: usize, conn: ConnId, reset: bool) {
        let Some((pair, end)) = self.hosts[host].find(conn) else { return };
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
        if reset && self.pairs[pair].rng.chance(50) {
            self.pairs[pair].pipes[end].items.retain(|(_, item)| !matches!(item, Item::Data(_)));
        }
        self.push(pair, end, if reset { Item::Rst } else { Item::Fin });
        self.close_end(pair, end, CloseReason::Local);
    }

    pub(super) fn connect_to(&mut self, host: usize, target: SocketAddr) -> io::Result<ConnId> {
        let IpAddr::V4(ip) = target.ip() else { return Err(io::ErrorKind::AddrNotAvailable.into()) };
        let peer = usize::from(ip.octets()[3]);
        let (pair, unborn) = (self.pairs.len(), ConnId::from_parts(0, 0));
        let conn = self.new_conn(host, pair, 0);
        let connects = self.connects.entry((host, peer)).or_insert(0);
        *connects += 1;
        let mut rng = Rng::of(&[self.seed, 2, host as u64, peer as u64, *connects]);
        let base = rng.range(30_000, 400_000);
        let mut end = |host: usize, conn, state, window: (u64, u64)| End {
            host,
            conn,
            state,
            rest: VecDeque::new(),
            in_flight: 0,
            window: rng.range(window.0, window.1) as usize,
            sends: (0, 0),
            credit_due: 0,
            let_go: false,
        };
        let (near, far) = (self.hosts[host].window, self.hosts[peer].window);
        let ends = [end(host, conn, State::Connecting, far), end(peer, unborn, State::Unborn, near)];
        let spread = rng.range(base, base * 8);
        self.pairs.push(Pair { ends, pipes: Default::default(), delay: (base, spread), rng });
        self.live.insert(pair);
        self.push(pair, 0, Item::Syn);
        Ok(conn)
    }
}
