//! A whole session tier in one file, written from docs/session-protocol.md: one thread decides, two threads per connection
//! read and write, and nothing but the wire codec is shared with the reference tier. It serves a handful of clients.
//!
//! `cargo run -p slotcast-net --example tiny_session -- 127.0.0.1:7700 127.0.0.1:7620`

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::{BuildHasher, RandomState},
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};

use slotcast_engine::{
    batch::{Change, ChangeKind, Durability, Entry, write_change, write_name, write_put},
    diff::{self, Diff, SNAPSHOT, list_fingerprint},
    digest::{Digest, compare, fingerprint},
    error::Refusal,
    id::{ClientId, DataId, DatumKey, RegisterId, Revision, SessionId, SlotId, Version},
    record::Record,
};
use slotcast_net::wire::{
    Decoder, ErrorCode, FrameError, Message,
    header::{CLIENT_FRAME_BYTES_MAX, FRAME_BYTES_MAX, PROTOCOL},
    message::{SubscribeItem, write_ack, write_diff},
};

use connection::frame_of;

#[path = "tiny_session/connection.rs"]
mod connection;

#[path = "tiny_session/list.rs"]
mod list;

#[path = "tiny_session/link.rs"]
mod link;

#[path = "tiny_session/writes.rs"]
mod writes;

#[path = "tiny_session/lists.rs"]
mod lists;

#[path = "tiny_session/clients.rs"]
mod clients;

/// Frames that wait for a connection's writer. A client beyond it is closed, a link beyond it is opened anew.
const QUEUE: usize = 4096;
/// Publishers, and subscriptions, of one client.
const PER_CLIENT_MAX: usize = 1000;
/// Bytes of entries in one write frame.
const WRITE_BYTES: usize = 256 * 1024;
/// Epochs that a client's claim is believed beyond the last welcome's.
const EPOCHS_AHEAD: u32 = 1024;
/// Shortest time between two links that are opened for a client's claim.
const CLAIM_LINKS: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(20);
const HEARTBEAT: Duration = Duration::from_millis(500);
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
const SILENCE: Duration = Duration::from_secs(90);

/// What a session is told.
#[derive(Clone)]
pub struct Options {
    /// The clients' port.
    pub listen: SocketAddr,
    /// Slots of the cluster.
    pub slot_count: u32,
    /// The shards of the one data node that leads all slots.
    pub shards: Vec<SocketAddr>,
    /// The data node's lease.
    pub lease: Duration,
    /// How long the publishers of a client that dropped stay.
    pub grace: Duration,
}

/// A running session.
pub struct TinySession {
    /// The clients' port.
    pub addr: SocketAddr,
    events: SyncSender<Event>,
    core: thread::JoinHandle<()>,
}

impl TinySession {
    /// Binds the port and starts.
    pub fn start(options: &Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.listen)?;
        let addr = listener.local_addr()?;
        let (events, taken) = sync_channel(1024);
        let mut core = Core::new(options.clone(), events.clone());
        let core = thread::spawn(move || core.run(&taken));
        let accepted = events.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if accepted.send(Event::Accepted(stream)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { addr, events, core })
    }

    /// Ends it without a goodbye: its clients have the lease to come back elsewhere.
    pub fn stop(self) {
        let _ = self.events.send(Event::Stop);
        let _ = self.core.join();
        // The accepting thread finds nobody to tell.
        let _ = TcpStream::connect(self.addr);
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Peer {
    Client(u64),
    /// Shard, and the how manieth link to it.
    Link(usize, u64),
}

enum Event {
    Accepted(TcpStream),
    Linked(usize, u64, io::Result<TcpStream>),
    Frame(Peer, Vec<u8>),
    Gone(Peer, Option<FrameError>),
    Stop,
}

/// The writing half of a connection. When it is dropped, what is queued still goes out.
struct Out {
    queue: SyncSender<Vec<u8>>,
    stream: TcpStream,
}

type Key = (DatumKey, RegisterId);

type Outcome = Result<Revision, Refusal>;

/// What was sent: which registration, in which version, and whether it was a put.
type Sent = (Key, Version, bool);

/// A write of a client, of which an outcome is still to come.
struct Waiter {
    client: u64,
    sequence: u64,
    index: usize,
    version: Version,
    is_put: bool,
}

/// The truth about one registration: its record, or that it is to be removed.
struct Registration {
    owner: u64,
    client: ClientId,
    id: DataId,
    version: Version,
    record: Option<Vec<u8>>,
    waiters: Vec<Waiter>,
}

impl Registration {
    fn fingerprint(&self, key: Key) -> Option<u64> {
        let record = Record::read(self.record.as_ref()?).ok()?;
        Some(fingerprint(key.0, key.1, self.version, record.checksum()))
    }
}

/// A client's claim to hold a list, and which question to the shard was asked for it.
struct Claim {
    since: Revision,
    digest: u64,
    asked: Option<u64>,
}

#[derive(Default)]
struct Subscription {
    claim: Option<Claim>,
    /// It was told to keep what it holds beyond the list.
    provisional: bool,
}

struct Client {
    /// None once the session has decided to close.
    out: Option<Out>,
    id: Option<ClientId>,
    subscriptions: BTreeMap<DatumKey, Subscription>,
    /// Write frames by sequence, with the outcomes that are known.
    pending: Vec<(u64, Vec<Option<Outcome>>)>,
    said_goodbye: bool,
}

struct Held {
    owner: SessionId,
    record: Vec<u8>,
    retained: bool,
}

/// One data id that somebody wants.
struct List {
    id: DataId,
    shard: usize,
    records: BTreeMap<RegisterId, Held>,
    known: bool,
    /// Complete up to here, in this run.
    revision: Revision,
    run: u64,
    /// Revision of the last change that was pushed.
    pushed: Revision,
}

/// The link to one shard.
struct Link {
    addr: SocketAddr,
    number: u64,
    out: Option<Out>,
    is_up: bool,
    retry_at: Option<Instant>,
    pause: Duration,
    run: u64,
    epoch: u32,
    epoch_seen: u32,
    sequence: u64,
    in_flight: VecDeque<(u64, Vec<Sent>)>,
    mark: u64,
    confirmed: BTreeSet<SessionId>,
    settled: bool,
    next_heartbeat: Instant,
    unanswered_since: Option<Instant>,
    question: u64,
    answered: u64,
    opened_for_claim: Option<Instant>,
}

/// A client that dropped, when that was, and whether the session closed it itself.
type Departure = (u64, Instant, bool);

struct Core {
    options: Options,
    id: SessionId,
    events: SyncSender<Event>,
    links: Vec<Link>,
    clients: BTreeMap<u64, Client>,
    connections: u64,
    registrations: BTreeMap<Key, Registration>,
    lists: BTreeMap<DatumKey, List>,
    departures: Vec<Departure>,
    drops: VecDeque<Instant>,
    storm_until: Option<Instant>,
    finished: bool,
}

impl Core {
    fn new(options: Options, events: SyncSender<Event>) -> Self {
        let id = SessionId(RandomState::new().hash_one(std::process::id()) | 1);
        let links = options.shards.iter().map(|addr| Link::new(*addr)).collect();
        Self {
            options,
            id,
            events,
            links,
            clients: BTreeMap::new(),
            connections: 0,
            registrations: BTreeMap::new(),
            lists: BTreeMap::new(),
            departures: Vec::new(),
            drops: VecDeque::new(),
            storm_until: None,
            finished: false,
        }
    }

    fn run(&mut self, events: &Receiver<Event>) {
        let mut next_tick = Instant::now();
        while !self.finished {
            match events.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(event) => self.handle(event),
                Err(RecvTimeoutError::Timeout) => {
                    self.tick(Instant::now());
                    next_tick = Instant::now() + TICK;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        let links = self.links.iter().filter_map(|link| link.out.as_ref());
        for out in links.chain(self.clients.values().filter_map(|client| client.out.as_ref())) {
            let _ = out.stream.shutdown(Shutdown::Both);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Accepted(stream) => {
                self.connections += 1;
                let peer = Peer::Client(self.connections);
                if let Ok(out) = Out::start(stream, peer, self.events.clone()) {
                    let client = Client {
                        out: Some(out),
                        id: None,
                        subscriptions: BTreeMap::new(),
                        pending: Vec::new(),
                        said_goodbye: false,
                    };
                    self.clients.insert(self.connections, client);
                }
            }
            Event::Linked(shard, number, stream) => self.linked(shard, number, stream),
            Event::Frame(peer, bytes) => {
                let frame = slotcast_net::wire::Frame::read(&bytes, FRAME_BYTES_MAX);
                let Ok(Some(frame)) = frame else { return };
                match (peer, Message::read(frame)) {
                    (Peer::Client(client), Ok(message)) => self.client_says(client, message),
                    (Peer::Client(client), Err(fault)) => {
                        self.refuse(client, ErrorCode::Frame, &fault.to_string());
                    }
                    (Peer::Link(shard, number), message) if self.links[shard].number == number => {
                        self.links[shard].unanswered_since = None;
                        match message {
                            Ok(message) => self.shard_says(shard, message),
                            Err(_) => self.links[shard].lose(),
                        }
                    }
                    (Peer::Link(..), _) => {}
                }
            }
            Event::Gone(Peer::Client(client), fault) => {
                if let Some(fault) = fault {
                    self.refuse(client, ErrorCode::Frame, &fault.to_string());
                }
                self.client_gone(client);
            }
            Event::Gone(Peer::Link(shard, number), _) => {
                if self.links[shard].number == number && self.links[shard].out.is_some() {
                    self.links[shard].lose();
                }
            }
            Event::Stop => self.finished = true,
        }
    }

    fn tick(&mut self, now: Instant) {
        for shard in 0..self.links.len() {
            let link = &mut self.links[shard];
            if link.unanswered_since.is_some_and(|since| now - since > self.options.lease / 2) {
                link.lose();
            }
            if link.retry_at.is_some_and(|at| at <= now) {
                link.retry_at = None;
                link.number += 1;
                let (addr, number, events) = (link.addr, link.number, self.events.clone());
                thread::spawn(move || {
                    let stream = TcpStream::connect_timeout(&addr, PAUSE.1);
                    let _ = events.send(Event::Linked(shard, number, stream));
                });
            }
            if self.links[shard].is_up && self.links[shard].next_heartbeat <= now {
                self.heartbeat(shard);
            }
        }
        let storm = self.storm_until.is_some_and(|until| now < until);
        let (grace, lease) = (self.options.grace, self.options.lease);
        let is_due =
            |(_, dropped, by_us): &Departure| now - *dropped >= if storm || *by_us { lease } else { grace };
        let (due, waiting) = std::mem::take(&mut self.departures).into_iter().partition(is_due);
        self.departures = waiting;
        due.into_iter().for_each(|(client, ..): Departure| self.remove_published(client));
    }

    fn shard_of(&self, datum: DatumKey) -> usize {
        datum.slot(self.options.slot_count).shard(self.links.len() as u32) as usize
    }

    // Sections 2, 6 and 7: links.

    fn linked(&mut self, shard: usize, number: u64, stream: io::Result<TcpStream>) {
        let out = stream
            .and_then(|stream| Out::start(stream, Peer::Link(shard, number), self.events.clone()))
            .map_err(|_| self.links[shard].lose());
        let Ok(out) = out else { return };
        let link = &mut self.links[shard];
        link.out = Some(out);
        link.send_now(&Message::LinkHello {
            protocol: PROTOCOL,
            slot_count: self.options.slot_count,
            session: self.id,
            run: link.run,
            epoch_seen: link.epoch_seen,
        });
    }

    fn welcomed(&mut self, shard: usize, run: u64, last_sequence: u64, epoch: u32) {
        let link = &mut self.links[shard];
        if link.run != run {
            (link.run, link.mark, link.settled) = (run, 0, false);
            link.confirmed.clear();
        }
        (link.is_up, link.sequence, link.epoch, link.pause) = (true, last_sequence, epoch, PAUSE.0);
        link.epoch_seen = link.epoch_seen.max(epoch);
        let all: Vec<Key> =
            self.registrations.keys().copied().filter(|key| self.shard_of(key.0) == shard).collect();
        self.send_writes(shard, &all);
        self.heartbeat(shard);
        for list in self.lists.values().filter(|list| list.shard == shard) {
            let since = if list.run == run { list.revision } else { Revision::ZERO };
            self.links[shard].subscribe(&list.id, since);
        }
        // What was asked over the link before is asked anew.
        for subscription in self.clients.values_mut().flat_map(|client| client.subscriptions.values_mut()) {
            subscription.claim.iter_mut().for_each(|claim| claim.asked = None);
        }
    }

    fn slot_digests(&self, shard: usize) -> BTreeMap<SlotId, Digest> {
        let mut digests: BTreeMap<SlotId, Digest> = BTreeMap::new();
        for (key, held) in self.registrations.iter().filter(|(key, _)| self.shard_of(key.0) == shard) {
            if let Some(print) = held.fingerprint(*key) {
                digests.entry(key.0.slot(self.options.slot_count)).or_default().add(print);
            }
        }
        digests
    }

    fn heartbeat(&mut self, shard: usize) {
        let digest = self.slot_digests(shard).values().fold(Digest::default(), |sum, slot| Digest {
            sum: sum.sum.wrapping_add(slot.sum),
            count: sum.count + slot.count,
        });
        let link = &mut self.links[shard];
        link.next_heartbeat = Instant::now() + HEARTBEAT;
        link.send(&Message::Heartbeat { mark: link.mark, digest, routes: 0, table_epoch: 0 });
    }

    fn shard_says(&mut self, shard: usize, message: Message<'_>) {
        match message {
            Message::LinkWelcome { run, last_sequence, epoch, .. } => {
                self.welcomed(shard, run, last_sequence, epoch);
            }
            Message::WriteAck { sequence, outcomes } => {
                let Some((sent, keys)) = self.links[shard].in_flight.pop_front() else { return };
                debug_assert_eq!(sent, sequence, "acknowledgements come in the order of the writes");
                keys.into_iter().zip(outcomes.iter()).for_each(|(write, outcome)| {
                    self.decided(shard, write, outcome);
                });
            }
            Message::Diff(diff) => self.take_diff(shard, &diff),
            Message::SubscribeRefused { datum, code } => self.interest_refused(datum, code),
            Message::HeartbeatAck { mark, confirmed, settled, differs, .. } => {
                let link = &mut self.links[shard];
                (link.mark, link.settled) = (mark, settled);
                link.confirmed = confirmed.into_iter().map(|(session, _)| session).collect();
                self.ask_retained(shard);
                self.vouch(shard);
                let Some(theirs) = differs else { return };
                let slots = compare(&self.slot_digests(shard), &theirs.into_iter().collect());
                for slot in slots.added.into_iter().chain(slots.updated).chain(slots.removed) {
                    self.links[shard].send(&Message::DigestRequest(slot));
                }
            }
            Message::DatumDigests(slot, theirs) => self.repair(shard, slot, theirs),
            Message::Pong(question) => self.links[shard].answered = question,
            Message::Ping(nonce) => self.links[shard].send(&Message::Pong(nonce)),
            Message::Error { code, text, .. } => {
                eprintln!("shard {shard} closes the link: {text} ({code})");
                self.links[shard].lose();
                // This incarnation is over; whoever runs it starts another.
                self.finished |= code == ErrorCode::SessionEnded as u16;
            }
            _ => self.links[shard].lose(),
        }
    }

    fn repair(&mut self, shard: usize, slot: SlotId, theirs: Vec<(DatumKey, Digest)>) {
        let of_slot = |key: &Key| key.0.slot(self.options.slot_count) == slot;
        let mut mine: BTreeMap<DatumKey, Digest> = BTreeMap::new();
        for (key, held) in self.registrations.iter().filter(|(key, _)| of_slot(key)) {
            if let Some(print) = held.fingerprint(*key) {
                mine.entry(key.0).or_default().add(print);
            }
        }
        let datums = compare(&mine, &theirs.into_iter().collect());
        for datum in datums.added.into_iter().chain(datums.updated).chain(datums.removed) {
            let range = (datum, RegisterId(0))..=(datum, RegisterId(u64::MAX));
            let held: Vec<Key> = self.registrations.range(range.clone()).map(|(key, _)| *key).collect();
            self.send_writes(shard, &held);
            let live = self.registrations.range(range).filter(|(_, held)| held.record.is_some());
            let registers = live.map(|(key, _)| key.1).collect();
            self.links[shard].send(&Message::Holds { datum, registers });
        }
    }
}

fn main() {
    let addrs: Vec<SocketAddr> = std::env::args().skip(1).filter_map(|addr| addr.parse().ok()).collect();
    let [listen, shards @ ..] = &addrs[..] else { return eprintln!("usage: tiny_session LISTEN SHARD...") };
    let (lease, grace) = (Duration::from_secs(30), Duration::from_secs(1));
    let options = Options { listen: *listen, slot_count: 1024, shards: shards.to_vec(), lease, grace };
    match TinySession::start(&options) {
        Ok(session) => {
            println!("ready: clients {}", session.addr);
            let _ = session.core.join();
        }
        Err(error) => eprintln!("cannot listen on {listen}: {error}"),
    }
}
