//! Roles whose peer says anything: they go on, and whatever they say themselves can be read.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use prometheus_client::registry::Registry;
use slotcast_engine::{
    change_log::ChangeLogLimits,
    id::{ClientId, Nanos, SessionId},
    shard::ShardConfig,
};
use slotcast_net::{
    client::{ClientConfig, ClientState},
    data::{
        metrics::DataMetrics,
        node::{Node, NodeLimits},
    },
    io::{
        ring::{CloseReason, ConnId, Event, SendOutcome, SharedFrame, Sockets},
        role::Role,
    },
    session::{Session, SessionConfig, config::Routes, metrics::SessionMetrics},
    wire::{Frame, Kind, Message, header::FRAME_BYTES_MAX, meta::MetaMessage, replica::ReplicaMessage},
};

use super::{
    good::{BYSTANDER, SLOTS, goods, service},
    repair,
};

/// Who a role is connected to here, by the index of the connection.
const PEERS: usize = 4;
/// Whom a role dials: at this port, and at any other.
const FIRST_PORT: u16 = 1;
pub(super) const FIRST: usize = 0;
pub(super) const OTHER: usize = 3;
const STEP: u64 = Nanos::SECOND / 20;

/// What a role has sent to each peer, and whom it has closed.
#[derive(Default)]
pub(super) struct Wires {
    sent: [Vec<u8>; PEERS],
    pub(super) closed: [bool; PEERS],
    /// Connections made to each so far.
    generation: [u64; PEERS],
    /// The role has asked for a connection.
    dialed: [bool; PEERS],
}

impl Wires {
    fn conn(&self, peer: usize) -> ConnId {
        ConnId::from_parts(peer, self.generation[peer])
    }
}

impl Sockets for Wires {
    fn listen(&mut self, addr: SocketAddr) -> io::Result<SocketAddr> {
        Ok(addr)
    }

    fn connect(&mut self, addr: SocketAddr, _: Option<IpAddr>) -> io::Result<ConnId> {
        let peer = if addr.port() == FIRST_PORT { FIRST } else { OTHER };
        self.generation[peer] += 1;
        (self.closed[peer], self.dialed[peer]) = (false, true);
        Ok(self.conn(peer))
    }

    fn send(&mut self, conn: ConnId, parts: &[&[u8]]) -> SendOutcome {
        if self.closed[conn.index()] {
            return SendOutcome::Gone;
        }
        self.sent[conn.index()].extend(parts.concat());
        SendOutcome::Queued
    }

    fn send_shared(&mut self, conn: ConnId, frame: &SharedFrame) -> SendOutcome {
        self.send(conn, &[frame])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn close(&mut self, conn: ConnId, _: bool) {
        self.closed[conn.index()] = true;
    }

    fn poll(&mut self, _: &mut dyn FnMut(Event<'_>)) -> io::Result<usize> {
        Ok(0)
    }

    fn wait(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

/// A role and its wires.
pub(super) struct Stage<R> {
    role: R,
    pub(super) wires: Wires,
    now: Nanos,
    /// The last error that it told anybody.
    error: String,
}

impl<R: Role> Stage<R> {
    pub(super) fn new(role: R) -> Self {
        Self { role, wires: Wires::default(), now: Nanos(Nanos::SECOND), error: String::new() }
    }

    pub(super) fn accept(&mut self, peer: usize) {
        self.wires.generation[peer] += 1;
        self.wires.closed[peer] = false;
        self.role.handle(Event::Accepted { conn: self.wires.conn(peer), listener: 0 }, self.now);
    }

    /// The peer has gone, if it was there.
    fn lose(&mut self, peer: usize) {
        if self.wires.generation[peer] > 0 {
            self.role
                .handle(Event::Closed { conn: self.wires.conn(peer), reason: CloseReason::Eof }, self.now);
        }
    }

    /// The first connection that the role has asked for stands. Returns whether it had asked.
    fn connected(&mut self) -> bool {
        self.connected_to(FIRST)
    }

    /// Likewise of any.
    pub(super) fn connected_to(&mut self, peer: usize) -> bool {
        let dialed = std::mem::take(&mut self.wires.dialed[peer]);
        if dialed {
            self.role.handle(Event::Connected { conn: self.wires.conn(peer) }, self.now);
        }
        dialed
    }

    pub(super) fn hear(&mut self, peer: usize, bytes: &[u8]) {
        if !self.wires.closed[peer] && !bytes.is_empty() {
            self.role.handle(Event::Received { conn: self.wires.conn(peer), bytes }, self.now);
        }
    }

    /// A turn, and time goes on. Returns what was said to each peer; every frame of it can be read.
    pub(super) fn turn(&mut self) -> [Vec<u8>; PEERS] {
        for _ in 0..16 {
            if !self.role.turn(self.now, &mut self.wires) {
                break;
            }
        }
        self.now = self.now.after(STEP);
        for peer in 0..PEERS {
            if self.wires.closed[peer] {
                // It stays closed; the role hears of it once.
                let gone = Event::Closed { conn: self.wires.conn(peer), reason: CloseReason::Local };
                self.role.handle(gone, self.now);
            }
        }
        let sent = std::mem::take(&mut self.wires.sent);
        for said in &sent {
            let mut rest = &said[..];
            while !rest.is_empty() {
                let frame = Frame::read(rest, FRAME_BYTES_MAX).expect("a good frame").expect("a whole frame");
                if frame.kind.is_of_replicas() {
                    ReplicaMessage::read(frame).expect("a good message");
                } else if frame.kind as u8 >= Kind::MetaHello as u8 {
                    MetaMessage::read(frame).expect("a good message");
                } else if let Message::Error { text, .. } = Message::read(frame).expect("a good message") {
                    self.error = text.into();
                }
                rest = &rest[frame.bytes.len()..];
            }
        }
        sent
    }
}

/// Pieces of a stream: a turn of the role comes behind each.
pub(super) fn pieces(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut repaired = bytes.to_vec();
    repair::wire(&mut repaired);
    repaired.chunks(1000).map(<[u8]>::to_vec).collect()
}

pub(super) fn shard() -> ShardConfig {
    ShardConfig {
        slot_count: SLOTS,
        slots: 0..=(SLOTS - 1) as u16,
        shard: 0,
        shards: 1,
        epoch: 1,
        seed: 1,
        session_lease: 2 * Nanos::SECOND,
        settle: 0,
        change_log: ChangeLogLimits::default(),
        validate: true,
        compaction_budget: 4096,
    }
}

fn node() -> Stage<Node> {
    let metrics = DataMetrics::new(&mut Registry::default(), 0);
    Stage::new(Node::new(shard(), NodeLimits::default(), 0x7e57, metrics))
}

fn session() -> Stage<Session> {
    let routes = Routes {
        slot_count: SLOTS,
        shards: vec![SocketAddr::from(([127, 0, 0, 1], 1))],
        leaders: vec![0; SLOTS as usize],
    };
    let config = SessionConfig {
        clients_max: 3,
        client_timeout: 5 * Nanos::SECOND,
        datum_linger: Nanos::SECOND,
        heartbeat_interval: Nanos::SECOND / 5,
        history_bytes_max: 4096,
        ..SessionConfig::new(SessionId(0x51), routes)
    };
    Stage::new(Session::new(config, SessionMetrics::new(&mut Registry::default(), 0)))
}

/// A link that says anything, beside one that says nothing wrong and is still answered.
pub fn a_node_survives_its_links(bytes: &[u8]) -> bool {
    let mut node = node();
    [1, 2].into_iter().for_each(|peer| node.accept(peer));
    node.hear(2, &goods().link_hello_of(SessionId(BYSTANDER)));
    let mut answered = 0;
    for piece in pieces(bytes) {
        node.hear(1, &piece);
        let sent = node.turn();
        answered += sent[1].len();
    }
    let good = !node.wires.closed[1] && answered > 0;
    node.hear(2, &goods().ping);
    let sent = node.turn();
    assert!(!node.wires.closed[2] && !sent[2].is_empty(), "the other link is disturbed");
    good
}

/// A client that says anything, beside one that says nothing wrong and is still answered. Their session's data node is a
/// real one.
pub fn a_session_survives_its_clients(bytes: &[u8]) -> bool {
    let (mut session, mut node) = (session(), node());
    [1, 2].into_iter().for_each(|peer| session.accept(peer));
    session.hear(2, &goods().hello_of(ClientId(BYSTANDER)));
    let mut answered = 0;
    let mut pieces = pieces(bytes);
    pieces.insert(0, Vec::new());
    pieces.resize(pieces.len() + 4, Vec::new());
    for piece in pieces {
        session.hear(1, &piece);
        let sent = session.turn();
        answered += sent[1].len();
        // A client that holds a list of a later leader makes the session introduce itself once more.
        if session.connected() {
            node.lose(1);
            node.accept(1);
        }
        node.hear(1, &sent[0]);
        let sent = node.turn();
        assert!(!node.wires.closed[1], "a client has broken the link: {}", node.error);
        session.hear(0, &sent[1]);
    }
    session.hear(2, &goods().ping);
    let sent = session.turn();
    assert!(!session.wires.closed[2] && !sent[2].is_empty(), "the other client is disturbed");
    !session.wires.closed[1] && answered > 0
}

/// A data node that says anything to a session with clients.
pub fn a_session_survives_its_node(bytes: &[u8]) -> bool {
    let mut session = session();
    session.accept(1);
    session.turn();
    session.connected();
    session.hear(1, &goods().client_stream);
    session.turn();
    let (mut told, mut good) = (0, true);
    for piece in pieces(bytes) {
        session.hear(0, &piece);
        told += session.turn()[1].len();
        good &= !session.wires.closed[0];
        session.connected();
    }
    session.hear(1, &goods().ping);
    let sent = session.turn();
    assert!(!session.wires.closed[1] && !sent[1].is_empty(), "a client pays for the node's fault");
    good && told > 0
}

/// A session that says anything to a client.
pub fn a_client_survives_its_session(bytes: &[u8]) -> bool {
    let config =
        ClientConfig { client: ClientId(7), ..ClientConfig::new([SocketAddr::from(([127, 0, 0, 1], 1))]) };
    let mut client = Stage::new(ClientState::new(&config, 1));
    for number in 0..3 {
        client.role.subscribe(&service(number));
        client.role.publish(&service(number), "host", "zone", b"payload").expect("a good registration");
    }
    client.turn();
    client.connected();
    client.turn();
    for piece in pieces(bytes) {
        client.hear(0, &piece);
        client.turn();
        client.connected();
        while client.role.poll_update().is_some() {}
    }
    client.role.is_up() && !client.wires.closed[0] && client.role.list(service(0).key()).is_some()
}
