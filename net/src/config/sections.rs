//! The sections of the configuration, each key with its meaning and its default.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use slotcast_engine::{
    change_log::ChangeLogLimits, compact::CompactionSettings, id::SessionId, limits::SLOTS_DEFAULT,
};

use crate::{
    data::{compaction::Window, node::NodeLimits, storage::StorageKind},
    meta::{core::MetaConfig, server::MetaStoreKind},
    session::{SessionConfig, config::Routes},
};

/// A data node in the slot table.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct NodeEntry {
    /// Name of the node.
    pub id: String,
    /// Port of its first shard; the others follow.
    pub addr: SocketAddr,
    /// Its shards.
    #[serde(default = "one")]
    pub shards: u32,
    /// First and last slot that it leads.
    pub slots: [u16; 2],
}

/// Settings of a data node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSection {
    /// Name of the node, the same over its starts: which of `nodes` this process is or, in a cluster, who it is among all.
    pub id: String,
    /// In a cluster: where it stands. Replicas of a slot are spread over zones. May be empty.
    pub zone: String,
    /// In a cluster: port of its first shard; the others follow.
    pub listen: SocketAddr,
    /// In a cluster: its shards, each on a core of its own.
    pub shards: u32,
    /// In a cluster: the address that others reach it at; that of `listen` if absent.
    pub advertise: Option<IpAddr>,
    /// In a cluster: how long a follower of a slot may be behind or away and still count as in sync. Acknowledgements of
    /// persistent changes wait for it meanwhile.
    #[serde(with = "humantime_serde")]
    pub replica_lag_max: Duration,
    /// In a cluster: how long a node that is asked to end waits for others to lead what it leads, before it ends all the same;
    /// zero: not at all.
    #[serde(with = "humantime_serde")]
    pub shutdown_handover: Duration,
    /// Address of `/metrics`, `/healthz`, `/readyz`.
    pub http: SocketAddr,
    /// How long a session may be silent before its publishers go.
    #[serde(with = "humantime_serde")]
    pub session_lease: Duration,
    /// How long a fresh node takes writes before it answers readers.
    #[serde(with = "humantime_serde")]
    pub settle: Duration,
    /// Entries that each slot's change log keeps.
    pub change_log_entries: usize,
    /// How long each slot's change log keeps an entry.
    #[serde(with = "humantime_serde")]
    pub change_log_age: Duration,
    /// Bytes of change log entries that all slots of a shard keep together; beyond it the longest log loses its oldest.
    pub change_log_bytes: usize,
    /// Whether records are validated here too; sessions validate them in any case.
    pub validate_records: bool,
    /// Bytes of output of one link above which its reader keeps a revision only.
    pub link_buffer_max: usize,
    /// `SO_SNDBUF` of links in bytes (the kernel doubles it). 0, or more than the kernel's `net.core.wmem_max`: buffers stay as the
    /// kernel lets them grow.
    pub link_send_buffer: u32,
    /// Publishers for which memory is taken and touched at the start, about 400 bytes each, so that registrations never
    /// wait for pages; more publishers are taken all the same.
    pub reserve_publishers: usize,
    /// How long a link may take to introduce itself, and a refused one to read why it is.
    #[serde(with = "humantime_serde")]
    pub link_timeout: Duration,
    /// Arena bytes that a step of compaction walks at most.
    pub compaction_budget: usize,
    /// Time from the end of one round of compaction over all slots to the begin of the next.
    #[serde(with = "humantime_serde")]
    pub compaction_interval: Duration,
    /// Records walked, change log entries dropped and slots looked at in one step.
    pub compaction_batch_limit: usize,
    /// Time between two steps of a round.
    #[serde(with = "humantime_serde")]
    pub compaction_sleep_interval: Duration,
    /// A segment of records is emptied when the share of live bytes in it is below this; 0: none is.
    pub arena_utilization_min: f64,
    /// Times of the day in UTC at which compaction is eager, such as `["01:00-05:00"]`.
    pub compaction_off_peak: Vec<Window>,
    /// Takes the place of `compaction_batch_limit` at those times.
    pub compaction_off_peak_batch_limit: usize,
    /// Takes the place of `arena_utilization_min` at those times, where it is larger.
    pub arena_off_peak_utilization_min: f64,
    /// Where slots are kept: `none`, `disk`, or `tmpfs` (a file system in memory: survives the process only).
    pub storage: StorageKind,
    /// The directory of journal and snapshots; one node, one directory.
    pub data_dir: PathBuf,
    /// Changes that the journal writes without waiting for the interval.
    pub journal_batch_records: usize,
    /// Longest wait of an ephemeral change for the journal's next block.
    #[serde(with = "humantime_serde")]
    pub journal_batch_interval: Duration,
    /// Bytes after which a shard begins a new journal file.
    pub journal_segment_bytes: u64,
    /// Bytes waiting for a shard's disk above which ephemeral changes are left out of the journal until a snapshot.
    pub journal_waiting_max: usize,
    /// Bytes of a shard's journal files above which slots are snapshotted, the oldest first, so that files can go.
    pub journal_bytes_max: u64,
    /// Bytes per second that a shard writes snapshots with.
    pub snapshot_rate: u64,
    /// The same, if larger, for slots that the node has just got as a whole from their leaders: they do not count as in sync
    /// before their snapshots are written, and what moves slots waits for that.
    pub copied_snapshot_rate: u64,
    /// Time between two attempts to go on after the disk failed.
    #[serde(with = "humantime_serde")]
    pub disk_retry_interval: Duration,
    /// The CPU of the first shard; not pinned if absent.
    pub cpu: Option<usize>,
}

/// Settings of a session process.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionSection {
    /// The clients' port.
    pub listen: SocketAddr,
    /// Address of `/metrics`, `/healthz`, `/readyz`.
    pub http: SocketAddr,
    /// In a cluster: the address that operators reach its pages at; that of `http` if absent. `slotcast ctl stop-push --all` finds it
    /// there.
    pub advertise: Option<IpAddr>,
    /// Threads; each takes its share of the clients.
    pub cores: usize,
    /// Clients of one core.
    pub clients_max: usize,
    /// Connections per second that each core lets in; the others are told when to come back. 0: all are let in.
    pub accept_rate: u32,
    /// Connections that each core lets in at once after a quiet time, where there is a rate.
    pub accept_burst: u32,
    /// Each core takes the connections whose packets are handled on its own CPU, so that nothing of a connection crosses CPUs: where
    /// the network card spreads connections over the CPUs of the cores, or clients on the same machine do. Otherwise the kernel
    /// spreads connections evenly. Needs `cpu` and Linux 6.2.
    pub accept_from_own_cpu: bool,
    /// Publishers of one client.
    pub publishers_max: u32,
    /// Subscriptions of one client.
    pub subscriptions_max: u32,
    /// Frames concatenated in one write to one client, 1 to 128.
    pub push_batch_max: usize,
    /// A round of writes takes at least this long, spread evenly over those with news when it begins; so a client is written to at
    /// most about this often. Zero: as soon as may be.
    #[serde(with = "humantime_serde")]
    pub push_interval_min: Duration,
    /// A client that takes nothing for this long counts as slow.
    #[serde(with = "humantime_serde")]
    pub push_interval_max: Duration,
    /// A client that takes nothing for this long is closed.
    #[serde(with = "humantime_serde")]
    pub slow_client_eviction: Duration,
    /// A client that sends nothing for this long is closed.
    #[serde(with = "humantime_serde")]
    pub client_timeout: Duration,
    /// How long the publishers of a client that dropped stay.
    #[serde(with = "humantime_serde")]
    pub client_disconnect_grace: Duration,
    /// Bytes of recent diffs kept per data id, for clients that lag or resume.
    pub history_bytes_max: usize,
    /// How long a data id without subscribers stays cached.
    #[serde(with = "humantime_serde")]
    pub datum_linger: Duration,
    /// Time between heartbeats to a data node.
    #[serde(with = "humantime_serde")]
    pub heartbeat_interval: Duration,
    /// The same in a cluster, for a data node with which nothing changes and nobody is waited for; at least
    /// `heartbeat_interval` and at most a sixth of `data.session_lease`.
    #[serde(with = "humantime_serde")]
    pub heartbeat_idle_interval: Duration,
    /// `SO_SNDBUF` of client sockets in bytes (the kernel doubles it).
    pub client_send_buffer: u32,
    /// TCP congestion control of client sockets, by the kernel's name for it; `system` leaves the system's. A push is a short
    /// write to a connection that is mostly silent: what a pacing algorithm such as BBR does for each costs more than it gains.
    pub client_congestion_control: String,
    /// The CPU of the first core; not pinned if absent.
    pub cpu: Option<usize>,
}

/// Settings of a process of the control plane.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetaSection {
    /// The control plane as data nodes and sessions find it: where each of its processes listens. They follow its slot table
    /// then, and `nodes` means nothing. Empty: there is none, and `nodes` is the table.
    pub peers: Vec<SocketAddr>,
    /// The port of data nodes and sessions.
    pub listen: SocketAddr,
    /// Address of `/metrics`, `/healthz`, `/readyz`, `/status` and `/drain`.
    pub http: SocketAddr,
    /// How this process calls itself to the others; where it listens if empty.
    pub name: String,
    /// Where the slot table is kept: `none`, `file` (one process), or `etcd` (several, of which one leads).
    pub store: MetaStoreKind,
    /// The directory of the file.
    pub dir: PathBuf,
    /// The endpoints of etcd, `http://host:port`.
    pub etcd: Vec<String>,
    /// With etcd: how long the lead outlives the last word of the process that had it; whole seconds.
    #[serde(with = "humantime_serde")]
    pub lead_ttl: Duration,
    /// Peers at once.
    pub peers_max: usize,
    /// Members that each slot is to have, its leader included, 1 to 4.
    pub replicas: usize,
    /// Moves of slots under way at once.
    pub moves_max: usize,
    /// How long a data node may be silent.
    #[serde(with = "humantime_serde")]
    pub node_lease: Duration,
    /// How long a lost node is waited for before its slots get other members. Its leaders are succeeded at once.
    #[serde(with = "humantime_serde")]
    pub replace_after: Duration,
    /// How long leases are held back that end together with those of more than a third of the nodes.
    #[serde(with = "humantime_serde")]
    pub mass_expiry_hold: Duration,
    /// Nodes that an empty cluster waits for before its first table.
    pub nodes_min: usize,
    /// Longest wait for them from the first node on.
    #[serde(with = "humantime_serde")]
    pub first_wait: Duration,
    /// Longest wait, after an election, for nodes. Those of the last table are waited for at least as long as a live one may
    /// take to find the new leader: 4 s, and `node_lease`.
    #[serde(with = "humantime_serde")]
    pub warm_up: Duration,
    /// How long a new member may take to get in sync before others are moved in spite of it.
    #[serde(with = "humantime_serde")]
    pub sync_timeout: Duration,
    /// Whether a slot with persistent publishers may be led by a member that is not in sync, where none that is in sync is
    /// there: what was acknowledged may be missing or older then. For an emergency.
    pub unclean_leaders: bool,
    /// The CPU of the peers' thread; not pinned if absent.
    pub cpu: Option<usize>,
}

pub(super) fn one() -> u32 {
    1
}

pub(super) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

impl Default for DataSection {
    fn default() -> Self {
        let limits = NodeLimits::default();
        let log = ChangeLogLimits::default();
        let compaction = CompactionSettings::default();
        Self {
            id: "data-1".into(),
            zone: String::new(),
            listen: loopback(7620),
            shards: 1,
            advertise: None,
            replica_lag_max: Duration::from_secs(2),
            shutdown_handover: Duration::from_secs(3),
            http: loopback(7629),
            session_lease: Duration::from_secs(30),
            settle: Duration::from_millis(500),
            change_log_entries: log.entries_max,
            change_log_age: Duration::from_nanos(log.age_max),
            change_log_bytes: compaction.history_bytes_max,
            validate_records: true,
            link_buffer_max: limits.link_buffer_max,
            link_send_buffer: 1024 * 1024,
            reserve_publishers: 0,
            link_timeout: Duration::from_nanos(limits.link_timeout),
            compaction_budget: 4 * 1024 * 1024,
            compaction_interval: Duration::from_nanos(compaction.interval),
            compaction_batch_limit: compaction.batch_limit,
            compaction_sleep_interval: Duration::from_nanos(compaction.sleep_interval),
            arena_utilization_min: compaction.utilization_min,
            compaction_off_peak: Vec::new(),
            compaction_off_peak_batch_limit: compaction.off_peak_batch_limit,
            arena_off_peak_utilization_min: compaction.off_peak_utilization_min,
            storage: StorageKind::None,
            data_dir: "slotcast-data".into(),
            journal_batch_records: 10_000,
            journal_batch_interval: Duration::from_millis(100),
            journal_segment_bytes: 64 << 20,
            journal_waiting_max: 64 << 20,
            journal_bytes_max: 256 << 20,
            snapshot_rate: 32 << 20,
            copied_snapshot_rate: 256 << 20,
            disk_retry_interval: Duration::from_secs(1),
            cpu: None,
        }
    }
}

impl Default for MetaSection {
    fn default() -> Self {
        let core = MetaConfig::new("slotcast", SLOTS_DEFAULT);
        let nanos = Duration::from_nanos;
        Self {
            peers: Vec::new(),
            listen: loopback(7610),
            http: loopback(7619),
            name: String::new(),
            store: MetaStoreKind::File,
            dir: "slotcast-meta".into(),
            etcd: vec!["http://127.0.0.1:2379".into()],
            lead_ttl: Duration::from_secs(3),
            peers_max: 12_000,
            replicas: core.replicas,
            moves_max: core.moves_max,
            node_lease: nanos(core.lease),
            replace_after: nanos(core.replace_after),
            mass_expiry_hold: nanos(core.hold),
            nodes_min: core.nodes_min,
            first_wait: nanos(core.first_wait),
            warm_up: nanos(core.warm_up),
            sync_timeout: nanos(core.sync_timeout),
            unclean_leaders: core.unclean_leaders,
            cpu: None,
        }
    }
}

impl Default for SessionSection {
    fn default() -> Self {
        let routes = Routes { slot_count: 1, shards: Vec::new(), leaders: vec![0] };
        let defaults = SessionConfig::new(SessionId(0), routes);
        let nanos = Duration::from_nanos;
        Self {
            listen: loopback(7600),
            http: loopback(7609),
            advertise: None,
            cores: 1,
            clients_max: defaults.clients_max,
            accept_rate: defaults.accept_rate,
            accept_burst: defaults.accept_burst,
            accept_from_own_cpu: false,
            publishers_max: defaults.publishers_max,
            subscriptions_max: defaults.subscriptions_max,
            push_batch_max: defaults.push_batch_max,
            push_interval_min: nanos(defaults.push_interval_min),
            push_interval_max: nanos(defaults.push_interval_max),
            slow_client_eviction: nanos(defaults.slow_client_eviction),
            client_timeout: nanos(defaults.client_timeout),
            client_disconnect_grace: nanos(defaults.client_disconnect_grace),
            history_bytes_max: defaults.history_bytes_max,
            datum_linger: nanos(defaults.datum_linger),
            heartbeat_interval: nanos(defaults.heartbeat_interval),
            heartbeat_idle_interval: nanos(defaults.heartbeat_idle_interval),
            client_send_buffer: 64 * 1024,
            client_congestion_control: "reno".into(),
            cpu: None,
        }
    }
}

impl SessionSection {
    /// The congestion control to ask the kernel for, if any.
    pub fn congestion_control(&self) -> Option<String> {
        Some(self.client_congestion_control.clone()).filter(|name| name != "system")
    }
}
