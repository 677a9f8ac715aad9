//! Subscribers and publisher of one system: one thread, one ring.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use slotcast_net::io::ring::{ConnId, Event, RingConfig, RingSockets, SendOutcome, Sockets};

use super::{
    server::{Server, raise_file_limit},
    speech::{Said, Speech, round_of},
};

/// Connections asked for and not yet ready.
const CONNECTING_MAX: usize = 256;
/// Rounds before the first that counts.
const WARM_UP: u64 = 5;
/// Longest time without any event while something is to come.
const SILENCE_MAX: Duration = Duration::from_secs(20);
const WAIT: Duration = Duration::from_millis(10);
/// Connections from one address, so that a free port is found at once.
const PER_ADDRESS: u32 = 4_000;

/// Who subscribes to what.
#[derive(Clone, Copy, Debug)]
pub struct LoadSpec {
    /// Subscribers.
    pub subscribers: u32,
    /// Topics that they are divided over.
    pub topics: u32,
    /// Bytes of a message.
    pub message_bytes: usize,
}

/// What one measurement found.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Messages received whole.
    pub deliveries: u64,
    /// Rounds received by everybody.
    pub rounds: u64,
    /// Time from the first publish to the last delivery.
    pub seconds: f64,
    /// Times from the publish of a round to its last delivery, ascending (nanoseconds).
    pub round_ns: Vec<u64>,
    /// Processor seconds of the server.
    pub cpu_s: f64,
    /// Resident bytes of the server at the end.
    pub rss_bytes: u64,
    /// Bytes that the subscribers received.
    pub wire_bytes: u64,
}

impl Figures {
    /// Deliveries per second.
    pub fn per_second(&self) -> f64 {
        self.deliveries as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Milliseconds within which this part of the rounds was received.
    pub fn round_ms(&self, part: f64) -> f64 {
        let last = self.round_ns.len().saturating_sub(1);
        let at = (part * self.round_ns.len() as f64) as usize;
        self.round_ns.get(at.min(last)).map_or(0.0, |ns| *ns as f64 / 1e6)
    }

    /// Microseconds of the server's processor time per delivery.
    pub fn cpu_us(&self) -> f64 {
        self.cpu_s * 1e6 / self.deliveries.max(1) as f64
    }

    /// Bytes received per delivery.
    pub fn wire_bytes_each(&self) -> f64 {
        self.wire_bytes as f64 / self.deliveries.max(1) as f64
    }
}

/// A round under way.
struct Round {
    published: Instant,
    missing: u32,
}

/// A connection: what it says first, and what of the other side's words is not whole yet.
#[derive(Default)]
struct Peer {
    first: Vec<u8>,
    held: Vec<u8>,
    is_subscriber: bool,
}

/// The connections to one server.
pub struct Load<S> {
    spec: LoadSpec,
    speech: S,
    server: Server,
    sockets: RingSockets,
    /// By the connection's index.
    peers: Vec<Option<Peer>>,
    publisher: ConnId,
    unsent: Vec<u8>,
    seen: Seen,
    next_round: u64,
}

/// What has been said so far.
#[derive(Default)]
struct Seen {
    ready: usize,
    rounds: VecDeque<Round>,
    first_round: u64,
    round_ns: Vec<u64>,
    deliveries: u64,
    wire_bytes: u64,
    answers: Vec<(ConnId, &'static [u8])>,
    greet: Vec<ConnId>,
    is_writable: bool,
    fault: Option<anyhow::Error>,
}

impl<S: Speech> Load<S> {
    /// Connects a publisher and then the subscribers, and waits until every subscription is in effect.
    pub fn connect(spec: LoadSpec, server: Server) -> Result<Self> {
        raise_file_limit()?;
        let ring = RingConfig {
            sockets_max: spec.subscribers as usize + 16,
            recv_buffers: 4096,
            ..RingConfig::default()
        };
        let mut speech = S::new(spec.topics, spec.message_bytes)?;
        let mut sockets = RingSockets::new(ring).context("creating the ring of the subscribers")?;
        let (begin, ready) = speech.begin()?;
        let publisher = sockets.connect(server.addr, None)?;
        let mut load = Self {
            spec,
            speech,
            server,
            sockets,
            peers: Vec::new(),
            publisher,
            unsent: begin,
            seen: Seen::default(),
            next_round: 0,
        };
        load.place(publisher, Peer::default());
        load.until(|load| load.seen.ready >= ready)?;
        load.seen.ready = 0;
        let mut asked = 0;
        while load.seen.ready < spec.subscribers as usize {
            while asked < spec.subscribers && asked as usize - load.seen.ready < CONNECTING_MAX {
                let first = load.speech.subscribe(asked, asked % spec.topics)?;
                let conn = load.sockets.connect(load.server.addr, Some(source(asked)))?;
                load.place(conn, Peer { first, is_subscriber: true, ..Peer::default() });
                asked += 1;
            }
            let before = load.seen.ready;
            load.until(|load| load.seen.ready > before)?;
        }
        Ok(load)
    }

    /// Publishes rounds for `duration`, `window` of them under way at once, and waits until all have been received.
    pub fn run(&mut self, window: usize, duration: Duration) -> Result<Figures> {
        let warm = self.next_round + WARM_UP;
        while self.next_round < warm {
            self.publish()?;
            self.until(|load| load.seen.rounds.is_empty())?;
        }
        self.seen.round_ns.clear();
        (self.seen.deliveries, self.seen.wire_bytes) = (0, 0);
        let (cpu, first, begin) = (self.server.cpu_seconds(), self.next_round, Instant::now());
        while begin.elapsed() < duration {
            while self.seen.rounds.len() < window && self.unsent.is_empty() {
                self.publish()?;
            }
            self.turn()?;
        }
        self.until(|load| load.seen.rounds.is_empty())?;
        let seconds = begin.elapsed().as_secs_f64();
        let mut round_ns = std::mem::take(&mut self.seen.round_ns);
        round_ns.sort_unstable();
        let rounds = self.next_round - first;
        if self.seen.deliveries != rounds * u64::from(self.spec.subscribers) {
            bail!("{} deliveries of {rounds} rounds: some came twice", self.seen.deliveries);
        }
        Ok(Figures {
            deliveries: self.seen.deliveries,
            rounds,
            seconds,
            round_ns,
            cpu_s: self.server.cpu_seconds() - cpu,
            rss_bytes: self.server.rss_bytes(),
            wire_bytes: self.seen.wire_bytes,
        })
    }

    fn publish(&mut self) -> Result<()> {
        let bytes = self.speech.publish(self.next_round)?;
        self.unsent.extend_from_slice(&bytes);
        self.next_round += 1;
        self.seen.rounds.push_back(Round { published: Instant::now(), missing: self.spec.subscribers });
        self.send_unsent();
        Ok(())
    }

    fn send_unsent(&mut self) {
        if !self.unsent.is_empty()
            && self.sockets.send(self.publisher, &[&self.unsent]) == SendOutcome::Queued
        {
            self.unsent.clear();
        }
    }

    fn until(&mut self, mut done: impl FnMut(&Self) -> bool) -> Result<()> {
        let mut heard = Instant::now();
        while !done(self) {
            if self.turn()? > 0 {
                heard = Instant::now();
            } else if heard.elapsed() > SILENCE_MAX {
                let missing: u64 = self.seen.rounds.iter().map(|round| u64::from(round.missing)).sum();
                bail!("{} is silent while {missing} deliveries are missing", S::NAME);
            }
        }
        Ok(())
    }

    /// Takes what has arrived and answers; sleeps when there is nothing. Returns the events.
    fn turn(&mut self) -> Result<usize> {
        let (peers, seen, publisher) = (&mut self.peers, &mut self.seen, self.publisher);
        let events = self.sockets.poll(&mut |event| match event {
            Event::Connected { conn } => seen.greet.push(conn),
            Event::Received { conn, bytes } => {
                if let Some(Some(peer)) = peers.get_mut(conn.index()) {
                    seen.wire_bytes += if peer.is_subscriber { bytes.len() as u64 } else { 0 };
                    if let Err(error) = hear::<S>(peer, conn, bytes, seen) {
                        seen.fault.get_or_insert(error);
                    }
                }
            }
            Event::Writable { conn } => seen.is_writable |= conn == publisher,
            Event::Closed { reason, .. } => {
                seen.fault.get_or_insert_with(|| anyhow::anyhow!("a connection ended: {reason:?}"));
            }
            Event::Accepted { .. } => {}
        })?;
        if let Some(fault) = self.seen.fault.take() {
            self.server.check()?;
            return Err(fault.context(S::NAME));
        }
        for conn in std::mem::take(&mut self.seen.greet) {
            if conn == self.publisher {
                self.seen.is_writable = true;
            } else if let Some(Some(peer)) = self.peers.get_mut(conn.index()) {
                self.sockets.send(conn, &[&std::mem::take(&mut peer.first)]);
            }
        }
        for (conn, answer) in std::mem::take(&mut self.seen.answers) {
            if conn == self.publisher && !self.unsent.is_empty() {
                self.unsent.extend_from_slice(answer);
            } else {
                self.sockets.send(conn, &[answer]);
            }
        }
        if std::mem::take(&mut self.seen.is_writable) {
            self.send_unsent();
        }
        if events == 0 {
            self.server.check()?;
            self.sockets.wait(WAIT)?;
        } else {
            self.sockets.flush()?;
        }
        Ok(events)
    }

    fn place(&mut self, conn: ConnId, peer: Peer) {
        if self.peers.len() <= conn.index() {
            self.peers.resize_with(conn.index() + 1, || None);
        }
        self.peers[conn.index()] = Some(peer);
    }
}

/// Takes bytes of a connection apart; only what is not whole is kept.
fn hear<S: Speech>(peer: &mut Peer, conn: ConnId, bytes: &[u8], seen: &mut Seen) -> Result<()> {
    let mut held = std::mem::take(&mut peer.held);
    let whole = if held.is_empty() {
        bytes
    } else {
        held.extend_from_slice(bytes);
        &held
    };
    let mut at = 0;
    loop {
        let took = S::take(&whole[at..], &mut |said| seen.note(said, conn))?;
        if took == 0 {
            break;
        }
        at += took;
    }
    peer.held = whole[at..].to_vec();
    Ok(())
}

impl Seen {
    fn note(&mut self, said: Said<'_>, conn: ConnId) {
        match said {
            Said::Ready => self.ready += 1,
            Said::Ask(answer) => self.answers.push((conn, answer)),
            Said::Message(message) => {
                self.deliveries += 1;
                let index = round_of(message).and_then(|round| round.checked_sub(self.first_round));
                let Some(round) = index.and_then(|index| self.rounds.get_mut(index as usize)) else {
                    self.fault.get_or_insert_with(|| anyhow::anyhow!("a message of no round under way"));
                    return;
                };
                round.missing = round.missing.saturating_sub(1);
                while self.rounds.front().is_some_and(|round| round.missing == 0) {
                    let Some(round) = self.rounds.pop_front() else { break };
                    self.first_round += 1;
                    self.round_ns.push(round.published.elapsed().as_nanos() as u64);
                }
            }
        }
    }
}

/// The address that a subscriber connects from.
fn source(subscriber: u32) -> IpAddr {
    let process = std::process::id();
    let part = |number: u32, least: u8| least + (number % 250) as u8;
    Ipv4Addr::new(127, part(process / 250, 1), part(process, 1), part(subscriber / PER_ADDRESS, 2)).into()
}
