//! A session core between a control plane, data nodes and clients that do and say what a test wants, message by message.

mod data_node;
mod fake_client;
mod wire;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use prometheus_client::registry::Registry;
use slotcast_engine::{
    batch::{Change, ChangeKind, Durability, write_change, write_name, write_put},
    diff,
    digest::Digest,
    error::Refusal,
    id::{ClientId, DataId, Nanos, RegisterId, Revision, SessionId, SlotId, Version},
    record::{Encoder, Instance, Record},
};
use slotcast_net::{
    follow::MetaLinkConfig,
    io::{
        ring::{CloseReason, ConnId, Event},
        role::Role,
    },
    session::{Session, SessionConfig, metrics::SessionMetrics},
    wire::{
        Decoder, FrameError, Message,
        header::{FRAME_BYTES_MAX, PROTOCOL},
        message::{SubscribeItem, write_ack, write_diff},
        meta::{MetaMessage, MetaPeer},
        slot_table::{Member, NodeEntry, NodeNumber, SlotEntry, SlotTable},
    },
};

use self::fake_client::FakeClient;
pub use self::{
    data_node::{DataNode, Told, kinds},
    wire::Wire,
};

pub const SLOTS: u32 = 4;
pub const MS: u64 = 1_000_000;
/// The session under test.
pub const OWN: SessionId = SessionId(77);
const META: u16 = 100;

/// What is said in the answer to a heartbeat.
#[derive(Clone, Default)]
pub struct Word {
    pub confirmed: Vec<(SessionId, u64)>,
    pub unsettled: Vec<(SlotId, u64)>,
    pub settled: bool,
    pub stale: bool,
    pub differs: Option<Vec<(SlotId, Digest)>>,
}

pub struct Scene {
    pub session: Session,
    pub metrics: SessionMetrics,
    pub now: Nanos,
    wire: Wire,
    meta: Option<(ConnId, Decoder)>,
    pub table: SlotTable,
    nodes: BTreeMap<SocketAddr, DataNode>,
    pub clients: Vec<FakeClient>,
    /// Data nodes that do not answer a connect.
    pub unreachable: Vec<SocketAddr>,
    pub dropped: Vec<SocketAddr>,
    /// Data nodes that are connected to from now on say nothing to a greeting.
    pub mute: bool,
    /// The write sequence that data nodes name in their welcomes from now on.
    pub last_sequence: u64,
}

/// Where shard 0 of a node listens.
pub fn address(node: u32) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8], 7620))
}

/// The `n`-th data id that lies in a slot.
pub fn data_id(slot: u16, n: usize) -> DataId {
    let ids = (0..).map(|i| DataId::new("public", "default", &format!("service-{i}")).unwrap());
    ids.filter(|id| id.key().slot(SLOTS) == SlotId(slot)).nth(n).unwrap()
}

pub fn at(epoch: u32, counter: u64) -> Revision {
    Revision(Revision::open(epoch).0 + counter)
}

/// A registration of another session, as a data node tells it.
pub fn record(id: &DataId, register: u64, payload: &[u8]) -> Vec<u8> {
    let instance = Instance { client: 1, name: String::new(), zone: String::new(), payload: payload.into() };
    Encoder::default().encode(id.key(), RegisterId(register), &instance).unwrap().to_vec()
}

impl Scene {
    /// Nodes 1.. of which none leads anything, no table told yet.
    pub fn new(nodes: u32) -> Self {
        Self::configured(nodes, |_| {})
    }

    /// The same with other settings of the session.
    pub fn configured(nodes: u32, adjust: impl FnOnce(&mut SessionConfig)) -> Self {
        let metas = vec![SocketAddr::from(([10, 0, 0, 99], META))];
        let meta = MetaLinkConfig::new(metas, "test", SLOTS, MetaPeer::Session);
        let metrics = SessionMetrics::new(&mut Registry::default(), 0);
        let mut config = SessionConfig::following(OWN, meta);
        adjust(&mut config);
        let mut table = SlotTable::empty("test", SLOTS);
        table.maker = 1;
        table.next_number = 100;
        for node in 1..=nodes {
            table.nodes.insert(NodeNumber(node), Arc::new(entry(node, 1)));
        }
        let mut scene = Self {
            session: Session::new(config, metrics.clone()),
            metrics,
            now: Nanos(1_000_000),
            wire: Wire::default(),
            meta: None,
            table,
            nodes: BTreeMap::new(),
            clients: Vec::new(),
            unreachable: Vec::new(),
            dropped: Vec::new(),
            mute: false,
            last_sequence: 0,
        };
        scene.run();
        scene
    }

    /// The same with a first table: node 1 leads all slots in epoch 1, has waited for everybody, and all are linked to.
    pub fn settled(nodes: u32) -> Self {
        let mut scene = Self::new(nodes);
        scene.settle();
        scene
    }

    /// See [`Self::settled`].
    pub fn settle(&mut self) {
        self.move_to(&(0..SLOTS as u16).map(|slot| (slot, 1, 1)).collect::<Vec<_>>());
        let nodes: Vec<u32> = self.table.nodes.keys().map(|node| node.0).collect();
        for node in nodes {
            self.agree(node);
            self.take(node);
        }
    }

    /// A node agrees, has waited for everybody, and promoted nothing lately.
    pub fn agree(&mut self, node: u32) {
        self.answer_heartbeat(node, Word { settled: true, ..Word::default() });
    }

    /// The control plane tells a table in which these slots have these leaders, in these epochs.
    pub fn move_to(&mut self, leaders: &[(u16, u32, u32)]) {
        let before = self.table.clone();
        self.plan(leaders);
        self.tell_since(&before);
    }

    /// The control plane tells the planned table to who has an older one.
    pub fn tell_since(&mut self, before: &SlotTable) {
        let delta = if before.epoch == 0 { self.table.whole() } else { self.table.delta_since(before) };
        self.tell_table(MetaMessage::TableDelta(delta));
    }

    /// The next table, without telling it.
    pub fn plan(&mut self, leaders: &[(u16, u32, u32)]) {
        self.table.epoch += 1;
        for (slot, node, epoch) in leaders {
            let mut entry = SlotEntry::default();
            entry.leader_epoch = *epoch;
            if *node > 0 {
                entry.push(Member::new(NodeNumber(*node)).with_in_sync(true));
            }
            self.table.slots[usize::from(*slot)] = entry;
        }
    }

    /// A node starts again: another incarnation, that leads nothing yet.
    pub fn restart(&mut self, node: u32, incarnation: u64) {
        let before = self.table.clone();
        self.table.epoch += 1;
        self.table.nodes.insert(NodeNumber(node), Arc::new(entry(node, incarnation)));
        self.tell_since(&before);
    }

    fn tell_table(&mut self, message: MetaMessage) {
        let conn = self.meta.as_ref().expect("the control plane is asked").0;
        let mut bytes = Vec::new();
        message.write(&mut bytes);
        self.session.handle(Event::Received { conn, bytes: &bytes }, self.now);
        self.run();
    }

    /// A node tells the whole planned table over its link.
    pub fn tell_table_by(&mut self, node: u32) {
        let mut bytes = Vec::new();
        MetaMessage::TableDelta(self.table.whole()).write(&mut bytes);
        self.say_bytes(node, &bytes);
    }

    /// Time passes in which the session may have a turn whenever it wants one.
    pub fn pass(&mut self, nanos: u64) {
        let end = self.now.after(nanos);
        while self.session.wake_at() < end {
            self.now = self.now.max(self.session.wake_at());
            self.run();
        }
        self.now = end;
        self.run();
    }

    /// Turns until nothing happens any more at this moment.
    pub fn run(&mut self) {
        for _ in 0..100 {
            let more = self.session.turn(self.now, &mut self.wire);
            let moved = self.connects() | self.deliver();
            if !more && !moved {
                return;
            }
        }
        panic!("the session does not come to rest");
    }

    fn connects(&mut self) -> bool {
        let mut moved = false;
        for conn in std::mem::take(&mut self.wire.closed) {
            moved = true;
            let gone: Vec<_> =
                self.nodes.iter().filter(|(_, node)| node.conn == conn).map(|(addr, _)| *addr).collect();
            gone.iter().for_each(|addr| drop(self.nodes.remove(addr)));
            self.dropped.extend(gone);
            self.session.handle(Event::Closed { conn, reason: CloseReason::Local }, self.now);
        }
        while let Some((conn, addr)) = self.wire.connects.pop_front() {
            moved = true;
            if addr.port() == META {
                self.meta = Some((conn, Decoder::default()));
            } else if self.unreachable.contains(&addr) {
                continue;
            } else {
                let node = DataNode {
                    conn,
                    decoder: Decoder::default(),
                    greeted: false,
                    told: Vec::new(),
                    mark: 0,
                    mute: self.mute,
                    last_sequence: self.last_sequence,
                };
                self.nodes.insert(addr, node);
            }
            self.session.handle(Event::Connected { conn }, self.now);
        }
        moved
    }

    /// Hands what the session has sent to those that it was sent to.
    fn deliver(&mut self) -> bool {
        let sent = std::mem::take(&mut self.wire.sent);
        let moved = !sent.is_empty();
        for (conn, bytes) in sent {
            if self.meta.as_ref().is_some_and(|meta| meta.0 == conn) {
                self.hear_meta(&bytes);
            } else if let Some(client) = self.clients.iter_mut().find(|client| client.conn == conn) {
                client.hear(&bytes);
            } else if let Some(node) = self.nodes.values_mut().find(|node| node.conn == conn) {
                let answer = node.hear(&bytes);
                self.session.handle(Event::Received { conn, bytes: &answer }, self.now);
            }
        }
        moved
    }

    fn hear_meta(&mut self, bytes: &[u8]) {
        let Some((conn, mut decoder)) = self.meta.take() else { return };
        let (mut answer, epoch) = (Vec::new(), self.table.epoch);
        let heard = decoder.feed(bytes, FRAME_BYTES_MAX, |frame| {
            if let MetaMessage::Watch { sequence, .. } = MetaMessage::read(frame)? {
                let ack = MetaMessage::HeartbeatAck {
                    sequence,
                    table_epoch: epoch,
                    report: 0,
                    lease_ms: 0,
                    wants_table: false,
                };
                ack.write(&mut answer);
            }
            Ok::<_, FrameError>(())
        });
        heard.unwrap();
        self.meta = Some((conn, decoder));
        self.session.handle(Event::Received { conn, bytes: &answer }, self.now);
    }

    pub fn is_linked(&self, node: u32) -> bool {
        self.nodes.get(&address(node)).is_some_and(|node| node.greeted)
    }

    /// What a node has been told since it was last asked.
    pub fn take(&mut self, node: u32) -> Vec<Told> {
        self.nodes.get_mut(&address(node)).map(|node| std::mem::take(&mut node.told)).unwrap_or_default()
    }

    fn say_bytes(&mut self, node: u32, bytes: &[u8]) {
        let conn = self.nodes[&address(node)].conn;
        self.session.handle(Event::Received { conn, bytes }, self.now);
        self.run();
    }

    /// A node says something.
    pub fn say(&mut self, node: u32, message: &Message<'_>) {
        let mut bytes = Vec::new();
        message.write(&mut bytes);
        self.say_bytes(node, &bytes);
    }

    pub fn answer_heartbeat(&mut self, node: u32, word: Word) {
        let state = self.nodes.get_mut(&address(node)).unwrap();
        state.mark += 1;
        let message = Message::HeartbeatAck {
            mark: state.mark,
            confirmed: word.confirmed,
            settled: word.settled,
            stale: word.stale,
            unsettled: word.unsettled,
            table_epoch: 0,
            differs: word.differs,
        };
        self.say(node, &message);
    }

    pub fn acknowledge(&mut self, node: u32, sequence: u64, outcomes: &[Result<Revision, Refusal>]) {
        let mut bytes = Vec::new();
        write_ack(&mut bytes, sequence, outcomes);
        self.say_bytes(node, &bytes);
    }

    /// A node tells a list, or a change of it: registers that are gone, and records with their owners.
    pub fn tell_list(
        &mut self,
        node: u32,
        id: &DataId,
        (from, to): (Revision, Revision),
        removes: &[u64],
        puts: &[(Vec<u8>, SessionId)],
    ) {
        let is_snapshot = from == Revision::ZERO;
        self.tell_diff(node, id, (from, to), if is_snapshot { diff::SNAPSHOT } else { 0 }, removes, puts);
    }

    /// A node tells a whole list to a session that was in another history, and which registrations have not changed since.
    pub fn tell_forked(
        &mut self,
        node: u32,
        id: &DataId,
        to: Revision,
        unchanged: &[u64],
        puts: &[(Vec<u8>, SessionId)],
    ) {
        let flags = diff::SNAPSHOT | if unchanged.is_empty() { 0 } else { diff::FORKED };
        self.tell_diff(node, id, (Revision::ZERO, to), flags, unchanged, puts);
    }

    fn tell_diff(
        &mut self,
        node: u32,
        id: &DataId,
        (from, to): (Revision, Revision),
        flags: u8,
        removes: &[u64],
        puts: &[(Vec<u8>, SessionId)],
    ) {
        let removes: Vec<RegisterId> = removes.iter().copied().map(RegisterId).collect();
        let owners: Vec<SessionId> = puts.iter().map(|(_, owner)| *owner).collect();
        let records: Vec<Record<'_>> = puts.iter().map(|(bytes, _)| Record::read(bytes).unwrap()).collect();
        let mut bytes = Vec::new();
        write_diff(&mut bytes, id.key().slot(SLOTS), |body| {
            let owners = Some(owners.as_slice());
            diff::write(body, id.key(), (from, to), &removes, owners, records.iter().copied());
            diff::OWNERS | flags
        });
        self.say_bytes(node, &bytes);
    }

    /// A client connects and introduces itself.
    pub fn client(&mut self, id: u64) -> usize {
        let conn = self.wire.conn();
        self.session.handle(Event::Accepted { conn, listener: 0 }, self.now);
        self.clients.push(FakeClient {
            conn,
            id: ClientId(id),
            decoder: Decoder::default(),
            sequence: 0,
            acks: Vec::new(),
            lists: BTreeMap::new(),
            pushes: 0,
            refused: Vec::new(),
            encoder: Encoder::default(),
        });
        let client = self.clients.len() - 1;
        self.client_says(client, &Message::Hello { protocol: PROTOCOL, client: ClientId(id) });
        client
    }

    fn client_says(&mut self, client: usize, message: &Message<'_>) {
        let mut bytes = Vec::new();
        message.write(&mut bytes);
        let conn = self.clients[client].conn;
        self.session.handle(Event::Received { conn, bytes: &bytes }, self.now);
        self.run();
    }

    pub fn subscribe(&mut self, client: usize, id: &DataId, since: Revision, digest: u64) {
        self.client_says(client, &Message::Subscribe(vec![SubscribeItem { id: id.clone(), since, digest }]));
    }

    /// A client registers an instance; returns its write's sequence and the record.
    pub fn publish(
        &mut self,
        client: usize,
        id: &DataId,
        (register, version): (u64, u64),
        durability: Durability,
    ) -> (u64, Vec<u8>) {
        let state = &mut self.clients[client];
        let payload = format!("{version}").into_bytes();
        let instance = Instance { client: state.id.0, name: String::new(), zone: String::new(), payload };
        let record = state.encoder.encode(id.key(), RegisterId(register), &instance).unwrap().to_vec();
        let mut entries = Vec::new();
        write_name(&mut entries, id.key(), id.as_bytes());
        let change = Change { durability, ..change(ChangeKind::Put, id, register, version) };
        write_put(&mut entries, &change, Record::read(&record).unwrap());
        (self.write(client, &entries), record)
    }

    pub fn remove(&mut self, client: usize, id: &DataId, register: u64, version: u64) -> u64 {
        let mut entries = Vec::new();
        write_change(&mut entries, &change(ChangeKind::Remove, id, register, version));
        self.write(client, &entries)
    }

    pub fn remove_persistent(&mut self, client: usize, id: &DataId, register: u64, version: u64) -> u64 {
        let mut entries = Vec::new();
        write_name(&mut entries, id.key(), id.as_bytes());
        let remove = change(ChangeKind::Remove, id, register, version);
        write_change(&mut entries, &Change { durability: Durability::Persistent, ..remove });
        self.write(client, &entries)
    }

    fn write(&mut self, client: usize, entries: &[u8]) -> u64 {
        self.clients[client].sequence += 1;
        let sequence = self.clients[client].sequence;
        self.client_says(client, &Message::Write { sequence, entries });
        sequence
    }

    /// A client has a list from another session.
    pub fn hold(&mut self, client: usize, id: &DataId, revision: Revision, registers: &[u64]) {
        let records = registers.iter().map(|register| (RegisterId(*register), Vec::new())).collect();
        self.clients[client].lists.insert(id.key(), (revision, records));
    }

    /// The record that a client holds of a registration.
    pub fn held(&self, client: usize, id: &DataId, register: u64) -> Option<&[u8]> {
        let (_, records) = self.clients[client].lists.get(&id.key())?;
        records.get(&RegisterId(register)).map(Vec::as_slice)
    }

    /// Registers that a client holds of a data id.
    pub fn list(&self, client: usize, id: &DataId) -> Vec<u64> {
        let list = self.clients[client].lists.get(&id.key());
        list.map(|(_, records)| records.keys().map(|register| register.0).collect()).unwrap_or_default()
    }
}

fn entry(node: u32, incarnation: u64) -> NodeEntry {
    let addr = address(node);
    NodeEntry {
        id: format!("node-{node}").into(),
        incarnation,
        zone: "".into(),
        ip: addr.ip(),
        ports: vec![addr.port()],
        http: 0,
        draining: false,
    }
}

fn change(kind: ChangeKind, id: &DataId, register: u64, version: u64) -> Change {
    Change {
        kind,
        durability: Durability::Ephemeral,
        datum: id.key(),
        register: RegisterId(register),
        version: Version { number: version, attach: 1 },
        epoch: 0,
        owner: SessionId(0),
    }
}
