//! The configuration file: TOML, every key with a documented default, unknown keys refused, single values settable from
//! the command line.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, anyhow, bail, ensure};
use humantime::format_duration;
use serde::{Deserialize, Serialize};
use slotcast_engine::{
    change_log::ChangeLogLimits,
    compact::CompactionSettings,
    id::{SessionId, SlotId, check_name},
    journal::JournalConfig,
    limits::{SLOTS_DEFAULT, SLOTS_MAX, ZONE_BYTES_MAX},
    shard::ShardConfig,
    snapshot::STEP_BYTES,
    storage::StorageConfig,
};

use crate::{
    data::{
        compaction::CompactionOptions,
        node::NodeLimits,
        server::{ClusterOptions, DataOptions},
        storage::{StorageKind, StorageOptions},
    },
    follow::MetaLinkConfig,
    meta::{
        core::MetaConfig,
        server::{MetaOptions, MetaStoreKind},
    },
    output::usage,
    session::{SessionConfig, config::Routes, server::SessionOptions},
    wire::{
        meta::MetaPeer,
        slot_table::{CLUSTER_BYTES_MAX, NODE_ID_BYTES_MAX},
    },
};

mod mistakes;
mod sections;

use sections::loopback;
pub use sections::{DataSection, MetaSection, NodeEntry, SessionSection};

/// Everything a process of any role may be told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Slots of the cluster, a power of two. Every process of a cluster has to be told the same.
    pub slot_count: u32,
    /// Name of the cluster. Every process of a cluster has to be told the same.
    pub cluster: String,
    /// The static slot table: the data nodes and the slots that each leads.
    pub nodes: Vec<NodeEntry>,
    /// The data role.
    pub data: DataSection,
    /// The session role.
    pub session: SessionSection,
    /// The control plane.
    pub meta: MetaSection,
}

impl Default for Config {
    fn default() -> Self {
        let node = NodeEntry {
            id: "data-1".into(),
            addr: loopback(7620),
            shards: 1,
            slots: [0, (SLOTS_DEFAULT - 1) as u16],
        };
        Self {
            slot_count: SLOTS_DEFAULT,
            cluster: "slotcast".into(),
            nodes: vec![node],
            data: DataSection::default(),
            session: SessionSection::default(),
            meta: MetaSection::default(),
        }
    }
}

impl Config {
    /// Whether data nodes and sessions follow the slot table of a control plane.
    pub fn is_clustered(&self) -> bool {
        !self.meta.peers.is_empty()
    }

    /// Reads a file, if one is given, lays `settings` (`section.key=value`) over it, and checks the whole.
    /// Errors are [`UsageError`](crate::output::UsageError)s.
    pub fn load(path: Option<&Path>, settings: &[String]) -> anyhow::Result<Self> {
        usage(Self::read(path, settings))
    }

    fn read(path: Option<&Path>, settings: &[String]) -> anyhow::Result<Self> {
        let mut table = match path {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
                toml::from_str::<toml::Table>(&text)
                    .with_context(|| format!("{} is not valid TOML", path.display()))?
            }
            None => toml::Table::new(),
        };
        for setting in settings {
            set(&mut table, setting)?;
        }
        let source = match path {
            Some(path) => format!("{} with what is set over it: ", path.display()),
            None => String::new(),
        };
        let config: Config = match table.clone().try_into() {
            Ok(config) => config,
            Err(error) => bail!("{source}{}", mistakes::explain(&table, &error)),
        };
        config.check_values().map_err(|error| anyhow!("{source}{error:#}"))?;
        let together = config.check_together();
        together.map_err(|error| anyhow!("{source}the configuration contradicts itself: {error:#}"))?;
        Ok(config)
    }

    /// Finds contradictions and values that cannot work.
    pub fn check(&self) -> anyhow::Result<()> {
        self.check_values()?;
        self.check_together()
    }

    /// Finds values that cannot work whatever the others are.
    fn check_values(&self) -> anyhow::Result<()> {
        let slots = self.slot_count;
        ensure!(
            slots.is_power_of_two() && slots <= SLOTS_MAX,
            "slot_count = {slots} has to be a power of two up to {SLOTS_MAX}"
        );
        let (session, data, meta) = (&self.session, &self.data, &self.meta);
        for (key, value) in [
            ("session.clients_max", session.clients_max as u64),
            ("session.accept_burst", session.accept_burst.into()),
            ("session.push_batch_max", session.push_batch_max as u64),
            ("session.cores", session.cores as u64),
            ("data.journal_waiting_max", data.journal_waiting_max as u64),
            ("data.journal_segment_bytes", data.journal_segment_bytes),
            ("data.snapshot_rate", data.snapshot_rate),
            ("meta.replicas", meta.replicas as u64),
            ("meta.moves_max", meta.moves_max as u64),
        ] {
            mistakes::check_range(key, value)?;
        }
        for (key, least, value) in [
            ("session.heartbeat_interval", 1, session.heartbeat_interval),
            ("data.link_timeout", 1, data.link_timeout),
            ("data.disk_retry_interval", 1, data.disk_retry_interval),
            ("data.journal_batch_interval", 1, data.journal_batch_interval),
            // Nodes are heard every 300 ms.
            ("meta.node_lease", 500_000_000, meta.node_lease),
            ("meta.lead_ttl", 2_000_000_000, meta.lead_ttl),
        ] {
            let least = Duration::from_nanos(least);
            let words = if least.subsec_nanos() == 1 {
                "above 0".to_owned()
            } else {
                format!("at least {}", format_duration(least))
            };
            ensure!(value >= least, "{key} = {} has to be {words}", format_duration(value));
        }
        self.compaction_options().check().map_err(|error| anyhow!("data.{error}"))?;
        check_name("cluster", &self.cluster, CLUSTER_BYTES_MAX)?;
        let unusable = meta.etcd.iter().find(|endpoint| !endpoint.starts_with("http://"));
        if let (MetaStoreKind::Etcd, Some(endpoint)) = (meta.store, unusable) {
            bail!("meta.etcd: {endpoint:?} has to begin with http:// (TLS is not spoken)");
        }
        Ok(())
    }

    /// Finds contradictions.
    fn check_together(&self) -> anyhow::Result<()> {
        let (session, meta) = (&self.session, &self.meta);
        ensure!(
            session.cpu.is_some() || !session.accept_from_own_cpu,
            "session.accept_from_own_cpu needs session.cpu: give the CPU of the first core"
        );
        ensure!(
            session.push_interval_min < session.push_interval_max,
            "session.push_interval_min has to be below session.push_interval_max"
        );
        ensure!(
            session.push_interval_max <= session.slow_client_eviction,
            "session.push_interval_max has to be at most session.slow_client_eviction"
        );
        ensure!(
            session.client_disconnect_grace <= self.data.session_lease,
            "session.client_disconnect_grace has to be at most data.session_lease"
        );
        ensure!(
            session.heartbeat_interval * 3 <= self.data.session_lease,
            "session.heartbeat_interval has to be at most a third of data.session_lease"
        );
        ensure!(
            session.listen != session.http || session.listen.port() == 0,
            "session.listen and session.http are the same"
        );
        ensure!(
            meta.store != MetaStoreKind::Etcd || !meta.etcd.is_empty(),
            "meta.store is \"etcd\", but meta.etcd names no endpoint"
        );
        ensure!(
            meta.listen != meta.http || meta.listen.port() == 0,
            "meta.listen and meta.http are the same"
        );
        if self.is_clustered() { self.cluster_options().map(|_| ()) } else { self.routes().map(|_| ()) }
    }

    /// Who this process is among the data nodes of a cluster.
    fn cluster_options(&self) -> anyhow::Result<ClusterOptions> {
        let data = &self.data;
        check_name("data.id", &data.id, NODE_ID_BYTES_MAX)?;
        if !data.zone.is_empty() {
            check_name("data.zone", &data.zone, ZONE_BYTES_MAX)?;
        }
        mistakes::check_range("data.shards", data.shards.into())?;
        let last = u32::from(data.listen.port()) + data.shards - 1;
        ensure!(
            data.listen.port() == 0 || last <= u32::from(u16::MAX),
            "data.listen = {}: shard {} has no port",
            data.listen,
            data.shards - 1
        );
        ensure!(!data.replica_lag_max.is_zero(), "data.replica_lag_max has to be above 0");
        let ip = data.advertise.unwrap_or(data.listen.ip());
        ensure!(
            !ip.is_unspecified(),
            "data.advertise is needed: others cannot reach the node at {ip}, where data.listen says that it listens"
        );
        Ok(ClusterOptions {
            cluster: self.cluster.clone(),
            peers: self.meta.peers.clone(),
            id: data.id.clone(),
            zone: data.zone.clone(),
            ip,
            http: data.http.port(),
            replica_lag_max: data.replica_lag_max.as_nanos() as u64,
            shutdown_handover: data.shutdown_handover,
        })
    }

    /// The options of this process as one of the control plane.
    pub fn meta_options(&self) -> anyhow::Result<MetaOptions> {
        let meta = &self.meta;
        let nanos = |duration: Duration| duration.as_nanos() as u64;
        let core = MetaConfig {
            replicas: meta.replicas,
            moves_max: meta.moves_max,
            lease: nanos(meta.node_lease),
            replace_after: nanos(meta.replace_after),
            hold: nanos(meta.mass_expiry_hold),
            nodes_min: meta.nodes_min,
            first_wait: nanos(meta.first_wait),
            warm_up: nanos(meta.warm_up),
            sync_timeout: nanos(meta.sync_timeout),
            unclean_leaders: meta.unclean_leaders,
            ..MetaConfig::new(&self.cluster, self.slot_count)
        };
        Ok(MetaOptions {
            listen: meta.listen,
            core,
            peers_max: meta.peers_max,
            store: meta.store,
            dir: meta.dir.clone(),
            etcd: meta.etcd.clone(),
            name: meta.name.clone(),
            lead_ttl: meta.lead_ttl,
            cpu: meta.cpu,
        })
    }

    /// The slot table with every shard's port.
    pub fn routes(&self) -> anyhow::Result<Routes> {
        ensure!(!self.nodes.is_empty(), "nodes is empty: at least one data node is needed");
        let mut shards: Vec<SocketAddr> = Vec::new();
        let mut leaders: Vec<Option<u16>> = vec![None; self.slot_count as usize];
        for (position, node) in self.nodes.iter().enumerate() {
            ensure!(
                self.nodes[..position].iter().all(|other| other.id != node.id),
                "two nodes have the id {:?}",
                node.id
            );
            let [first, last] = node.slots;
            ensure!(
                first <= last && u32::from(last) < self.slot_count,
                "node {}: slots [{first}, {last}] do not lie in 0..{}",
                node.id,
                self.slot_count
            );
            ensure!(
                (1..=256).contains(&node.shards),
                "node {}: shards = {} has to be from 1 to 256",
                node.id,
                node.shards
            );
            for slot in first..=last {
                if leaders[usize::from(slot)].is_some() {
                    bail!("slot {slot} is given to node {} and to another node", node.id);
                }
                let shard = SlotId(slot).shard(node.shards);
                leaders[usize::from(slot)] = Some((shards.len() as u32 + shard) as u16);
            }
            ensure!(
                shards.len() + node.shards as usize <= usize::from(u16::MAX),
                "node {}: the nodes have more shards than can be told apart",
                node.id
            );
            for shard in 0..node.shards {
                let mut addr = node.addr;
                let port = addr.port().checked_add(shard as u16);
                addr.set_port(port.with_context(|| format!("node {}: shard {shard} has no port", node.id))?);
                ensure!(
                    node.addr.port() == 0 || !shards.contains(&addr),
                    "node {}: the address {addr} of shard {shard} is another shard's, too",
                    node.id
                );
                shards.push(addr);
            }
        }
        let leaders = leaders
            .into_iter()
            .enumerate()
            .map(|(slot, leader)| leader.with_context(|| format!("slot {slot} is given to no node")))
            .collect::<anyhow::Result<_>>()?;
        Ok(Routes { slot_count: self.slot_count, shards, leaders })
    }

    /// The options of this process as a data node.
    pub fn data_options(&self) -> anyhow::Result<DataOptions> {
        let data = &self.data;
        let cluster = if self.is_clustered() { Some(self.cluster_options()?) } else { None };
        let (listen, shards, slots) = match &cluster {
            Some(_) => (data.listen, data.shards, 0..=(self.slot_count - 1) as u16),
            None => {
                let node = self.nodes.iter().find(|node| node.id == data.id);
                let node = node.with_context(|| format!("data.id = {:?} is not among the nodes", data.id))?;
                (node.addr, node.shards, node.slots[0]..=node.slots[1])
            }
        };
        let shard = ShardConfig {
            slot_count: self.slot_count,
            slots,
            shard: 0,
            shards,
            epoch: 1,
            seed: 0,
            session_lease: data.session_lease.as_nanos() as u64,
            settle: data.settle.as_nanos() as u64,
            change_log: self.compaction_options().history,
            validate: data.validate_records,
            compaction_budget: data.compaction_budget,
        };
        let limits = NodeLimits {
            link_buffer_max: data.link_buffer_max,
            link_timeout: data.link_timeout.as_nanos() as u64,
            ..NodeLimits::default()
        };
        let reserve_publishers = data.reserve_publishers;
        let first_cpu = data.cpu;
        let storage = (data.storage != StorageKind::None).then(|| self.storage_options());
        let compaction = self.compaction_options();
        Ok(DataOptions {
            listen,
            shard,
            limits,
            link_send_buffer: Some(data.link_send_buffer).filter(|bytes| *bytes > 0),
            reserve_publishers,
            first_cpu,
            compaction,
            storage,
            cluster,
        })
    }

    fn compaction_options(&self) -> CompactionOptions {
        let data = &self.data;
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        CompactionOptions {
            settings: CompactionSettings {
                interval: nanos(data.compaction_interval),
                sleep_interval: nanos(data.compaction_sleep_interval),
                batch_limit: data.compaction_batch_limit,
                utilization_min: data.arena_utilization_min,
                history_bytes_max: data.change_log_bytes,
                off_peak_batch_limit: data.compaction_off_peak_batch_limit,
                off_peak_utilization_min: data.arena_off_peak_utilization_min,
            },
            history: ChangeLogLimits {
                entries_max: data.change_log_entries,
                age_max: nanos(data.change_log_age),
            },
            off_peak: data.compaction_off_peak.clone(),
        }
    }

    fn storage_options(&self) -> StorageOptions {
        let data = &self.data;
        let journal = JournalConfig {
            slot_count: self.slot_count,
            shard: 0,
            shards: 1,
            batch_records: data.journal_batch_records,
            batch_interval: data.journal_batch_interval.as_nanos() as u64,
            segment_bytes: data.journal_segment_bytes,
            waiting_bytes_max: data.journal_waiting_max,
            retry_interval: data.disk_retry_interval.as_nanos() as u64,
        };
        let storage = StorageConfig {
            journal,
            snapshot_rate: data.snapshot_rate,
            copied_snapshot_rate: data.copied_snapshot_rate,
            snapshot_step: STEP_BYTES,
            journal_bytes_max: data.journal_bytes_max,
        };
        // glommio cannot open a directory by a relative name.
        let folder = std::path::absolute(&data.data_dir).unwrap_or_else(|_| data.data_dir.clone());
        StorageOptions { folder, storage }
    }

    /// The options of this process as a session.
    pub fn session_options(&self) -> anyhow::Result<SessionOptions> {
        let section = &self.session;
        let nanos = |duration: Duration| duration.as_nanos() as u64;
        let idle = section.heartbeat_idle_interval.min(self.data.session_lease / 6);
        let base = if self.is_clustered() {
            let peers = self.meta.peers.clone();
            let meta = MetaLinkConfig::new(peers, &self.cluster, self.slot_count, MetaPeer::Session);
            SessionConfig::following(SessionId(0), meta)
        } else {
            SessionConfig::new(SessionId(0), self.routes()?)
        };
        let session = SessionConfig {
            clients_max: section.clients_max,
            accept_rate: section.accept_rate,
            accept_burst: section.accept_burst,
            publishers_max: section.publishers_max,
            subscriptions_max: section.subscriptions_max,
            push_batch_max: section.push_batch_max,
            push_interval_min: nanos(section.push_interval_min),
            push_interval_max: nanos(section.push_interval_max),
            slow_client_eviction: nanos(section.slow_client_eviction),
            client_timeout: nanos(section.client_timeout),
            client_disconnect_grace: nanos(section.client_disconnect_grace),
            session_lease: nanos(self.data.session_lease),
            history_bytes_max: section.history_bytes_max,
            datum_linger: nanos(section.datum_linger),
            heartbeat_interval: nanos(section.heartbeat_interval),
            heartbeat_idle_interval: nanos(idle.max(section.heartbeat_interval)),
            ..base
        };
        Ok(SessionOptions {
            listen: section.listen,
            cores: section.cores,
            session,
            first_cpu: section.cpu,
            client_send_buffer: section.client_send_buffer,
            client_congestion_control: section.congestion_control(),
            accept_from_own_cpu: section.accept_from_own_cpu,
        })
    }
}

/// Lays one `section.key=value` over a table. The value is TOML; what is not is taken as text.
fn set(table: &mut toml::Table, setting: &str) -> anyhow::Result<()> {
    let (path, value) = setting
        .split_once('=')
        .with_context(|| format!("{setting:?} is not of the form section.key=value"))?;
    let value = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut parsed| parsed.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.into()));
    let mut keys: Vec<&str> = path.split('.').collect();
    let last = keys.pop().context("a key is needed")?;
    let mut place = table;
    for key in keys {
        let inner = place.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        place = inner.as_table_mut().with_context(|| format!("{key} in {path} is no section"))?;
    }
    place.insert(last.into(), value);
    Ok(())
}
