//! Who is there: which host runs what, and how each role is started.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use slotcast_engine::{
    change_log::ChangeLogLimits,
    id::{ClientId, SessionId, mix64},
    shard::ShardConfig,
};
use slotcast_net::{
    client::{ClientConfig, ClientState},
    data::{
        cluster::{Board, ClusterConfig},
        node::{Node, NodeLimits},
        storage::StorageMetrics,
    },
    follow::MetaLinkConfig,
    io::{
        disk::{Disk, DiskSide},
        role::Role,
    },
    session::{Session, SessionConfig, config::Routes, metrics::SessionMetrics},
    wire::{meta::MetaPeer, slot_table::NodeEntry},
};

use super::{
    control::{CLUSTER, Meta},
    liars::{ELSEWHERE, Liar},
    network::{SECOND, address},
    plan::Shape,
    strangers::Guise,
    world::World,
};

/// Slots of the cluster: fewer than data ids, so that some share one.
pub const SLOTS: u32 = 4;
/// Lease of a session, short against the run.
pub const LEASE: u64 = 6 * SECOND;
/// Grace of a client that dropped.
pub const GRACE: u64 = SECOND;
/// A client that sends nothing for this long is closed; it pings every 20 s.
pub const CLIENT_TIMEOUT: u64 = 24 * SECOND;

/// How many hosts of each kind there are. They are numbered in this order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Data nodes.
    pub nodes: usize,
    /// Sessions.
    pub sessions: usize,
    /// Processes of the control plane.
    pub metas: usize,
    /// Clients.
    pub clients: usize,
    /// Hosts of strangers: none, or one for a data node that does not belong here and one for a liar.
    pub strangers: usize,
}

/// What a host runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A data node.
    Node,
    /// A session.
    Session,
    /// A process of the control plane.
    Meta,
    /// A client.
    Client,
    /// Somebody who says what is not so.
    Liar,
}

impl Layout {
    /// All hosts.
    pub fn len(&self) -> usize {
        self.clients().end + self.strangers
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The hosts of data nodes.
    pub fn nodes(&self) -> std::ops::Range<usize> {
        0..self.nodes
    }

    /// The hosts of sessions.
    pub fn sessions(&self) -> std::ops::Range<usize> {
        self.nodes..self.nodes + self.sessions
    }

    /// The hosts of the control plane.
    pub fn metas(&self) -> std::ops::Range<usize> {
        let first = self.nodes + self.sessions;
        first..first + self.metas
    }

    /// The hosts of clients.
    pub fn clients(&self) -> std::ops::Range<usize> {
        let first = self.nodes + self.sessions + self.metas;
        first..first + self.clients
    }

    /// The host of a data node that does not belong here.
    pub fn spare(&self) -> usize {
        self.clients().end
    }

    /// The host of a liar.
    pub fn liar(&self) -> usize {
        self.clients().end + 1
    }

    /// What a host runs.
    pub fn kind(&self, host: usize) -> Kind {
        if self.nodes().contains(&host) || host == self.spare() {
            Kind::Node
        } else if self.sessions().contains(&host) {
            Kind::Session
        } else if self.metas().contains(&host) {
            Kind::Meta
        } else if self.clients().contains(&host) {
            Kind::Client
        } else {
            Kind::Liar
        }
    }

    /// What a host is called in a trace.
    pub fn name(&self, host: usize) -> String {
        match self.kind(host) {
            Kind::Node => format!("node-{host}"),
            Kind::Session => format!("session-{host}"),
            Kind::Meta => format!("meta-{host}"),
            Kind::Client => format!("client@{host}"),
            Kind::Liar => format!("liar-{host}"),
        }
    }
}

/// A data node's process.
pub struct NodeProcess {
    /// Its number.
    pub process: usize,
    /// The role.
    pub role: Node,
    /// What its disk is asked.
    pub disk: Option<DiskSide>,
}

/// A running process.
pub enum Actor {
    /// A data node.
    Node(Box<NodeProcess>),
    /// A session.
    Session(SessionId, Box<Session>),
    /// A process of the control plane.
    Meta(Box<Meta>),
    /// A client, by its number.
    Client(usize, Box<ClientState>),
    /// Somebody who says what is not so.
    Liar(Box<Liar>),
}

impl Actor {
    pub(super) fn role(&mut self) -> &mut dyn Role {
        match self {
            Actor::Node(node) => &mut node.role,
            Actor::Session(_, session) => session.as_mut(),
            Actor::Meta(meta) => &mut meta.node,
            Actor::Client(_, client) => client.as_mut(),
            Actor::Liar(liar) => liar.as_mut(),
        }
    }

    /// Frames that a client has refused; others refuse none.
    pub(super) fn refused_frames(&self) -> u64 {
        match self {
            Actor::Client(_, client) => client.refused_frames(),
            _ => 0,
        }
    }
}

impl World {
    /// Starts the process of a host, unless it runs.
    pub(super) fn boot(&mut self, host: usize) {
        let (kind, guise) = (self.plan.layout.kind(host), self.guises.get(&host).copied());
        let is_left_out = match kind {
            Kind::Client => !self.plan.clients.contains(&host),
            _ => host >= self.plan.layout.clients().end && guise.is_none(),
        };
        if self.actors[host].is_some() || is_left_out {
            return;
        }
        let actor = match (kind, guise) {
            (_, Some(Guise::Liar(lie, _))) => self.new_liar(host, lie),
            (Kind::Liar, _) => return,
            (Kind::Node, _) => self.new_node(host),
            (Kind::Session, _) => self.new_session(host),
            (Kind::Meta, _) => self.new_meta(host),
            (Kind::Client, _) => self.new_client(host),
        };
        self.actors[host] = Some(actor);
        self.net.boot(host);
        let name = self.plan.layout.name(host);
        self.oracle.say(None, || format!("{name} starts"));
        self.net.wake(host, self.net.now);
        self.last_turn[host] = self.net.now;
        if self.plan.layout.kind(host) == Kind::Client {
            let mut rng = self.net.hosts[host].rng.clone();
            for _ in 0..rng.range(1, 6) {
                self.operate_on(host, &mut rng);
            }
            self.net.hosts[host].rng = rng;
        }
    }

    pub(super) fn identity(&mut self) -> u64 {
        self.identities += 1;
        (self.plan.seed << 20) + self.identities
    }

    fn new_node(&mut self, host: usize) -> Actor {
        let (identity, sizes) = (self.identity(), self.plan.sizes.clone());
        let process = self.oracle.node_started(host);
        let slot_count = match self.guises.get(&host) {
            Some(Guise::OtherSlots) => SLOTS * 2,
            _ => SLOTS,
        };
        let mut config = ShardConfig {
            slot_count,
            slots: 0..=(slot_count - 1) as u16,
            shard: 0,
            shards: 1,
            epoch: 1,
            seed: identity,
            session_lease: LEASE,
            settle: sizes.settle,
            change_log: ChangeLogLimits { entries_max: sizes.log_entries, age_max: 20 * SECOND },
            validate: true,
            compaction_budget: 64 * 1024,
        };
        let limits =
            NodeLimits { link_buffer_max: sizes.node_link_buffer, links_max: 64, ..NodeLimits::default() };
        let has_disk = sizes.on_disk && slot_count == SLOTS;
        let found = has_disk.then(|| self.recover(host, &mut config));
        let metrics = self.node_metrics.clone();
        let mut role = match self.plan.shape {
            Shape::Single => Node::new(config.clone(), limits, identity, metrics),
            Shape::Cluster => {
                let member = (self.membership(host, identity), self.cluster_metrics.clone());
                Node::clustered(config.clone(), limits, identity, metrics, member)
            }
        };
        let mut disk = None;
        if let Some((recovered, storage)) = found {
            let (near, side) = Disk::by_hand();
            role = role.on_disk(config, recovered, storage, (near, StorageMetrics::default()));
            disk = Some(side);
        }
        #[cfg(feature = "planted-faults")]
        role.plant(self.plan.planted.and_then(super::planted::of_engine));
        Actor::Node(Box::new(NodeProcess { process, role, disk }))
    }

    fn membership(&self, host: usize, incarnation: u64) -> ClusterConfig {
        let (layout, addr) = (&self.plan.layout, address(host));
        let (id, cluster) = match self.guises.get(&host) {
            Some(Guise::Twin(other)) => (*other, CLUSTER),
            Some(Guise::OtherCluster) => (host, ELSEWHERE),
            _ => (host, CLUSTER),
        };
        let entry = NodeEntry {
            id: layout.name(id).as_str().into(),
            incarnation,
            zone: if host.is_multiple_of(2) { "east".into() } else { "west".into() },
            ip: addr.ip(),
            ports: vec![addr.port()],
            http: 0,
            draining: false,
        };
        ClusterConfig {
            cluster: cluster.into(),
            metas: layout.metas().map(address).collect(),
            entry: Arc::new(entry),
            board: Board::new(1),
            replica_lag_max: SECOND,
        }
    }

    fn new_session(&mut self, host: usize) -> Actor {
        let id = SessionId(self.identity() & 0xf_ffff);
        let metrics = SessionMetrics::new(&mut Registry::default(), 0);
        self.session_metrics.push(metrics.clone());
        let layout = &self.plan.layout;
        let base = match self.plan.shape {
            Shape::Single => {
                SessionConfig::new(id, Routes::to_node(SLOTS, layout.nodes().map(address).collect()))
            }
            Shape::Cluster => {
                let metas = layout.metas().map(address).collect();
                SessionConfig::following(id, MetaLinkConfig::new(metas, CLUSTER, SLOTS, MetaPeer::Session))
            }
        };
        let (sizes, rng) = (&self.plan.sizes, &mut self.net.hosts[host].rng);
        let config = SessionConfig {
            clients_max: 100,
            push_interval_min: sizes.push_interval,
            push_interval_max: SECOND,
            slow_client_eviction: 4 * SECOND,
            client_timeout: CLIENT_TIMEOUT,
            client_disconnect_grace: GRACE,
            session_lease: LEASE,
            history_bytes_max: sizes.history_bytes,
            datum_linger: sizes.linger,
            heartbeat_interval: SECOND / 2,
            push_batch_max: rng.range(1, 16) as usize,
            clients_per_turn: rng.range(2, 64) as usize,
            ..base
        };
        self.oracle.session_started(id);
        Actor::Session(id, Box::new(Session::new(config, metrics)))
    }

    fn new_client(&mut self, host: usize) -> Actor {
        let identity = self.identity();
        let serial = (identity & 0xf_ffff) as usize;
        let mut sessions: Vec<_> = self.plan.layout.sessions().map(address).collect();
        let rng = &mut self.net.hosts[host].rng;
        if rng.chance(25) {
            sessions.remove(rng.below(sessions.len()));
        }
        let config = ClientConfig { client: ClientId(serial as u64), ..ClientConfig::new(sessions) };
        Actor::Client(serial, Box::new(ClientState::new(&config, mix64(identity))))
    }
}
