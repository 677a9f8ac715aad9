//! Peers that say what is not so: on a host of their own, or in the place of a process of the control plane.

use std::{collections::BTreeMap, net::SocketAddr};

use slotcast_engine::{
    digest::Digest,
    id::{Nanos, Revision, SessionId, SlotId},
};
use slotcast_net::{
    follow::{LinkAction, MetaLink, MetaLinkConfig},
    io::{
        dial::Dialed,
        ring::{ConnId, Event, SendOutcome, Sockets},
        role::Role,
    },
    wire::{
        Decoder, Frame, Kind, Message,
        header::{FRAME_BYTES_MAX, PROTOCOL},
        meta::{MetaMessage, MetaPeer},
        replica::{FollowItem, ReplicaAckItem, ReplicaMessage},
        slot_table::{SlotTable, TABLE_EPOCH_LIMIT},
    },
};

use super::{
    control::{CLUSTER, SharedStore},
    hosts::SLOTS,
    network::MS,
    rng::Rng,
};

/// Name of a cluster that is not the simulated one.
pub const ELSEWHERE: &str = "elsewhere";
/// Tables by which a peer is ahead of everybody.
const AHEAD: u64 = 1000;
/// Time between two attempts, and between two claims on one connection.
const PAUSE: u64 = 300 * MS;

/// What is said that is not so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lie {
    /// A session has a slot table from the future.
    FutureTable,
    /// A session is of another cluster, or of one with other slots.
    Foreign,
    /// A follower has what its leader never made.
    Ahead,
    /// A process of the control plane tells an older table than its peers have.
    OlderTable,
}

/// What came of it.
#[derive(Default, Clone, Debug)]
pub struct LiarCounts {
    /// Claims made.
    pub claims: u64,
    /// Peers that said that they do not want this one.
    pub refusals: u64,
}

struct Wire {
    to: SocketAddr,
    is_meta: bool,
    dialed: Dialed,
    decoder: Decoder,
    is_up: bool,
    next_at: Nanos,
}

struct Accepted {
    decoder: Decoder,
    out: Vec<u8>,
}

/// Who lies.
pub struct Liar {
    lie: Lie,
    id: SessionId,
    rng: Rng,
    wires: Vec<Wire>,
    /// The way to the slot table, for who has to know it.
    link: MetaLink,
    link_wire: Dialed,
    store: SharedStore,
    accepted: BTreeMap<ConnId, Accepted>,
    /// What came of it so far.
    pub counts: LiarCounts,
}

impl Liar {
    /// One that knows where everybody is.
    pub fn new(
        lie: Lie,
        (metas, nodes): (Vec<SocketAddr>, Vec<SocketAddr>),
        store: SharedStore,
        identity: u64,
    ) -> Self {
        let wire = |to: SocketAddr, is_meta: bool| Wire {
            to,
            is_meta,
            dialed: Dialed::default(),
            decoder: Decoder::default(),
            is_up: false,
            next_at: Nanos(0),
        };
        let all = metas.iter().map(|to| wire(*to, true)).chain(nodes.iter().map(|to| wire(*to, false)));
        let wires = match lie {
            Lie::FutureTable | Lie::Foreign => all.collect(),
            // Whom it connects to depends on the slot table.
            Lie::Ahead => vec![wire(nodes[0], false)],
            Lie::OlderTable => Vec::new(),
        };
        let table = std::sync::Arc::new(SlotTable::empty(CLUSTER, SLOTS));
        let config = MetaLinkConfig::new(metas, CLUSTER, SLOTS, MetaPeer::Session);
        Self {
            lie,
            id: SessionId(identity),
            rng: Rng::of(&[identity, 6]),
            wires,
            link: MetaLink::new(config, table, 0),
            link_wire: Dialed::default(),
            store,
            accepted: BTreeMap::new(),
            counts: LiarCounts::default(),
        }
    }

    /// What it lies about.
    pub fn lie(&self) -> Lie {
        self.lie
    }

    /// What it says on a connection that stands.
    fn claim(&mut self, number: usize, is_first: bool) {
        let (lie, id) = (self.lie, self.id);
        let future = if self.rng.chance(10) {
            TABLE_EPOCH_LIMIT
        } else {
            let store = self.store.lock();
            store.map_or(0, |store| store.latest_epoch()) + AHEAD
        };
        let is_odd = self.rng.chance(50);
        let lies = if lie == Lie::Ahead { self.about_revisions() } else { Vec::new() };
        let wire = &mut self.wires[number];
        let is_meta = wire.is_meta;
        let out = wire.dialed.out();
        self.counts.claims += 1;
        match lie {
            Lie::FutureTable if is_meta => {
                if is_first {
                    MetaMessage::Hello {
                        protocol: PROTOCOL,
                        slot_count: SLOTS,
                        table_epoch: future,
                        cluster: CLUSTER.into(),
                        peer: MetaPeer::Session,
                    }
                    .write(out);
                }
                MetaMessage::Watch { sequence: 1, table_epoch: future }.write(out);
            }
            Lie::FutureTable => {
                if is_first {
                    link_hello(id, SLOTS).write(out);
                }
                let digest = Digest::default();
                Message::Heartbeat { mark: 0, digest, routes: 1, table_epoch: future }.write(out);
            }
            Lie::Foreign if is_meta => {
                let (slot_count, cluster) = if is_odd { (SLOTS * 2, CLUSTER) } else { (SLOTS, ELSEWHERE) };
                let (cluster, peer) = (cluster.into(), MetaPeer::Session);
                MetaMessage::Hello { protocol: PROTOCOL, slot_count, table_epoch: 0, cluster, peer }
                    .write(out);
            }
            Lie::Foreign if is_odd => link_hello(id, SLOTS * 2).write(out),
            Lie::Foreign => {
                let (slot_count, cluster, node) = (SLOTS, ELSEWHERE, Default::default());
                ReplicaMessage::Hello {
                    protocol: PROTOCOL,
                    shard: 0,
                    slot_count,
                    node,
                    incarnation: id.0,
                    table_epoch: 1,
                    cluster,
                }
                .write(out);
            }
            Lie::Ahead => out.extend(lies),
            Lie::OlderTable => {}
        }
    }

    /// What a follower of the slot that `wires[0]` was connected for would never say.
    fn about_revisions(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        let (table, to) = (self.link.table().clone(), self.wires[0].to);
        let led = table.slots.iter().enumerate().filter(|(_, entry)| entry.members().len() > 1);
        for (slot, entry) in led {
            let slot = SlotId(slot as u16);
            let [leader, follower] = [0, 1].map(|at| entry.members()[at].node());
            let (Some(leads), Some(follows)) = (table.nodes.get(&leader), table.nodes.get(&follower)) else {
                continue;
            };
            if leads.shard_addr(slot) != Some(to) {
                continue;
            }
            ReplicaMessage::Hello {
                protocol: PROTOCOL,
                shard: 0,
                slot_count: SLOTS,
                node: follower,
                incarnation: follows.incarnation,
                table_epoch: table.epoch,
                cluster: CLUSTER,
            }
            .write(&mut out);
            let leader_epoch = entry.leader_epoch;
            let beyond = Revision(Revision::open(leader_epoch).0 + (1 << 30));
            let follow = |since| ReplicaMessage::Follow(vec![FollowItem { slot, leader_epoch, since }]);
            follow(beyond).write(&mut out);
            follow(Revision::ZERO).write(&mut out);
            let durable = if self.rng.chance(50) { beyond } else { Revision::ZERO };
            ReplicaMessage::Ack(vec![ReplicaAckItem { slot, applied: beyond, durable }]).write(&mut out);
            return out;
        }
        out
    }

    /// Where the leader of some slot with a follower is.
    fn a_leader(&mut self) -> Option<SocketAddr> {
        let table = self.link.table().clone();
        let led = table.slots.iter().enumerate().filter(|(_, entry)| entry.members().len() > 1);
        let at: Vec<SocketAddr> = led
            .filter_map(|(slot, entry)| table.nodes.get(&entry.leader()?)?.shard_addr(SlotId(slot as u16)))
            .collect();
        (!at.is_empty()).then(|| at[self.rng.below(at.len())])
    }

    fn received(&mut self, number: usize, bytes: &[u8]) {
        let wire = &mut self.wires[number];
        let mut refusals = 0;
        let read = wire.decoder.feed(bytes, FRAME_BYTES_MAX, |frame| {
            refusals += u64::from(frame.kind == Kind::Error || frame.kind == Kind::ReplicaRefused);
            Ok::<_, slotcast_net::wire::FrameError>(())
        });
        self.counts.refusals += refusals + u64::from(read.is_err());
    }

    /// As a process of the control plane: an older table, and answers that promise nothing.
    fn answer(&mut self, conn: ConnId, bytes: &[u8]) {
        let Some(mut peer) = self.accepted.remove(&conn) else { return };
        let (store, counts) = (&self.store, &mut self.counts);
        let (out, mut decoder) = (&mut peer.out, std::mem::take(&mut peer.decoder));
        let _ = decoder.feed(bytes, FRAME_BYTES_MAX, |frame: Frame<'_>| {
            let older = |than: u64| store.lock().ok().and_then(|store| store.older_than(than).cloned());
            match MetaMessage::read(frame)? {
                MetaMessage::Hello { table_epoch, .. } => {
                    if let Some(table) = older(table_epoch) {
                        counts.claims += 1;
                        MetaMessage::TableDelta(table.whole()).write(out);
                    }
                }
                MetaMessage::Heartbeat { sequence, table_epoch, .. }
                | MetaMessage::Watch { sequence, table_epoch } => {
                    let table_epoch = older(table_epoch).map_or(0, |table| table.epoch);
                    let (report, lease_ms, wants_table) = (0, 0, false);
                    MetaMessage::HeartbeatAck { sequence, table_epoch, report, lease_ms, wants_table }
                        .write(out);
                }
                _ => {}
            }
            Ok::<_, slotcast_net::wire::FrameError>(())
        });
        peer.decoder = decoder;
        self.accepted.insert(conn, peer);
    }

    /// Follows the slot table like a session.
    fn follow(&mut self, now: Nanos, sockets: &mut dyn Sockets) {
        let jitter = self.rng.number();
        while let Some(action) = self.link.poll(now, jitter) {
            match action {
                LinkAction::Connect(addr) => {
                    if !self.link_wire.connect(addr, sockets) {
                        self.link.handle_closed(now, jitter);
                    }
                }
                LinkAction::Send(bytes) => self.link_wire.out().extend_from_slice(&bytes),
                LinkAction::Close => self.link_wire.close(sockets),
            }
        }
        self.link_wire.flush(sockets);
    }
}

fn link_hello(session: SessionId, slot_count: u32) -> Message<'static> {
    Message::LinkHello { protocol: PROTOCOL, slot_count, session, run: 0, epoch_seen: 0 }
}

impl Role for Liar {
    fn handle(&mut self, event: Event<'_>, now: Nanos) {
        let (Event::Accepted { conn, .. }
        | Event::Connected { conn }
        | Event::Received { conn, .. }
        | Event::Writable { conn }
        | Event::Closed { conn, .. }) = event;
        if self.link_wire.owns(conn) {
            match event {
                Event::Connected { .. } => self.link.handle_connected(now),
                Event::Received { bytes, .. } => self.link.handle_bytes(bytes),
                Event::Closed { .. } => {
                    self.link_wire.closed();
                    let jitter = self.rng.number();
                    self.link.handle_closed(now, jitter);
                }
                _ => {}
            }
            return;
        }
        let number = self.wires.iter().position(|wire| wire.dialed.owns(conn));
        match (event, number) {
            (Event::Connected { .. }, Some(number)) => {
                (self.wires[number].is_up, self.wires[number].next_at) = (true, now.after(PAUSE));
                self.wires[number].decoder = Decoder::default();
                self.claim(number, true);
            }
            (Event::Received { bytes, .. }, Some(number)) => self.received(number, bytes),
            (Event::Closed { .. }, Some(number)) => {
                let wire = &mut self.wires[number];
                wire.dialed.closed();
                (wire.is_up, wire.next_at) = (false, now.after(PAUSE));
            }
            (Event::Accepted { .. }, _) if self.lie == Lie::OlderTable => {
                let fresh = Accepted { decoder: Decoder::default(), out: Vec::new() };
                self.accepted.insert(conn, fresh);
            }
            (Event::Received { bytes, .. }, None) => self.answer(conn, bytes),
            (Event::Closed { .. }, None) => drop(self.accepted.remove(&conn)),
            _ => {}
        }
    }

    fn turn(&mut self, now: Nanos, sockets: &mut dyn Sockets) -> bool {
        if self.lie == Lie::Ahead {
            self.follow(now, sockets);
        }
        for number in 0..self.wires.len() {
            if now >= self.wires[number].next_at {
                let (is_up, is_open) = (self.wires[number].is_up, self.wires[number].dialed.is_open());
                self.wires[number].next_at = now.after(PAUSE);
                match self.lie {
                    Lie::FutureTable if is_up => self.claim(number, false),
                    _ if is_open => {
                        // Nobody answers any more: once again from the beginning.
                        self.wires[number].dialed.close(sockets);
                        self.wires[number].is_up = false;
                    }
                    Lie::Ahead => {
                        if let Some(to) = self.a_leader() {
                            self.wires[number].to = to;
                            self.wires[number].dialed.connect(to, sockets);
                        }
                    }
                    _ => {
                        let to = self.wires[number].to;
                        self.wires[number].dialed.connect(to, sockets);
                    }
                }
            }
            if self.wires[number].is_up {
                self.wires[number].dialed.flush(sockets);
            }
        }
        for (conn, peer) in self.accepted.iter_mut().filter(|(_, peer)| !peer.out.is_empty()) {
            if sockets.send(*conn, &[&peer.out]) != SendOutcome::Busy {
                peer.out.clear();
            }
        }
        false
    }

    fn wake_at(&self) -> Nanos {
        let wires = self.wires.iter().map(|wire| wire.next_at).min();
        let own = wires.unwrap_or(Nanos(u64::MAX));
        if self.lie == Lie::Ahead { own.min(self.link.wake_at()) } else { own }
    }
}
