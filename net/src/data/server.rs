//! Runs a data node: one thread, one port and one shard per core.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use prometheus_client::registry::Registry;
use slotcast_engine::{id::Nanos, recover::Recovered, shard::ShardConfig};

use crate::{
    data::{
        cluster::{Board, ClusterConfig, metrics::ClusterMetrics},
        compaction::CompactionOptions,
        metrics::DataMetrics,
        node::{Node, NodeLimits},
        operations::{Operations, ShardPost},
        status::OperationMetrics,
        storage::{Opened, StorageMetrics, StorageOptions},
    },
    io::{
        clock,
        disk::{DirectoryLock, Disk},
        mailbox::mailbox,
        pump::{self, Pump, PumpConfig},
        ring::RingConfig,
    },
    wire::slot_table::NodeEntry,
};

/// Connections of a shard beside the links of sessions and followers: to leaders and to the control plane.
const OWN_LINKS_MAX: usize = 1024;

/// What a data node is told at its start.
#[derive(Debug, Clone)]
pub struct DataOptions {
    /// Port of the first shard; the others follow. Port 0 lets the system choose each.
    pub listen: SocketAddr,
    /// Settings of a shard; number and count are filled in.
    pub shard: ShardConfig,
    /// Bounds of the links.
    pub limits: NodeLimits,
    /// `SO_SNDBUF` of links, in bytes (the kernel doubles it). Where the kernel allows less (`net.core.wmem_max`), and if absent,
    /// buffers stay as the kernel lets them grow.
    pub link_send_buffer: Option<u32>,
    /// Registrations of all shards together for which memory is taken at the start.
    pub reserve_publishers: usize,
    /// The CPU of the first shard; the others follow.
    pub first_cpu: Option<usize>,
    /// When and how much is compacted.
    pub compaction: CompactionOptions,
    /// Where slots are kept, if anywhere.
    pub storage: Option<StorageOptions>,
    /// The cluster that it is a member of, if any; otherwise it leads the slots that `shard` names.
    pub cluster: Option<ClusterOptions>,
}

/// Who a data node is in a cluster.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Name of the cluster.
    pub cluster: String,
    /// Where the processes of the control plane listen.
    pub peers: Vec<SocketAddr>,
    /// Name of the node, the same over its starts.
    pub id: String,
    /// Where it stands; may be empty.
    pub zone: String,
    /// The address that others reach it at.
    pub ip: IpAddr,
    /// The port of its HTTP side; 0: none that is known beforehand.
    pub http: u16,
    /// How long a follower may be behind or away and still count as in sync (nanoseconds).
    pub replica_lag_max: u64,
    /// How long an end waits for others to lead what is led here.
    pub shutdown_handover: Duration,
}

/// A running data node.
pub struct DataServer {
    /// The port of each shard.
    pub addrs: Vec<SocketAddr>,
    /// Metrics of each shard.
    pub metrics: Vec<DataMetrics>,
    /// Metrics of each shard's durable side; none without storage.
    pub storage: Vec<StorageMetrics>,
    /// Metrics of each shard as a member of a cluster; none without one.
    pub cluster: Vec<ClusterMetrics>,
    /// Where each shard is asked at run time.
    pub operations: Vec<ShardPost>,
    /// Of a member of a cluster: where its shards are told of the end, and how long that is waited for.
    board: Option<(Board, Duration)>,
    pumps: Vec<Pump>,
    _lock: Option<DirectoryLock>,
}

impl DataServer {
    /// Binds the ports and starts the shards.
    pub fn start(options: &DataOptions, registry: &mut Registry) -> anyhow::Result<Self> {
        let (mut lock, mut recovered) = (None, Vec::new());
        let mut options = options.clone();
        if let Some(storage) = &options.storage {
            let opened = match options.cluster {
                Some(_) => storage.open_clustered(&options.shard)?,
                None => storage.open(&options.shard)?,
            };
            let Opened { lock: held, epoch, shards, .. } = opened;
            (lock, recovered, options.shard.epoch) = (Some(held), shards, epoch);
        }
        let options = &options;
        let mut server = Self {
            addrs: Vec::new(),
            metrics: Vec::new(),
            storage: Vec::new(),
            cluster: Vec::new(),
            operations: Vec::new(),
            board: None,
            pumps: Vec::new(),
            _lock: lock,
        };
        // All of them first: what the node says about itself names every port.
        let listeners: Vec<TcpListener> = (0..options.shard.shards)
            .map(|shard| {
                let mut addr = options.listen;
                if addr.port() != 0 {
                    addr.set_port(addr.port() + shard as u16);
                }
                pump::listen(addr, 1, &ring_config(options))?.pop().context("no listener")
            })
            .collect::<anyhow::Result<_>>()?;
        for listener in &listeners {
            server.addrs.push(listener.local_addr()?);
        }
        let cluster = options.cluster.as_ref().map(|cluster| cluster.member(&server.addrs));
        server.board = options
            .cluster
            .as_ref()
            .zip(cluster.as_ref())
            .map(|(options, member)| (member.board.clone(), options.shutdown_handover));
        let mut recovered = recovered.into_iter();
        for (shard, listener) in (0..).zip(listeners) {
            let found = recovered.next();
            if let Err(error) = server.start_shard(options, shard, listener, found, cluster.clone(), registry)
            {
                server.stop()?;
                return Err(error.context(format!("starting shard {shard}")));
            }
        }
        Ok(server)
    }

    fn start_shard(
        &mut self,
        options: &DataOptions,
        shard: u32,
        listener: TcpListener,
        recovered: Option<Recovered>,
        cluster: Option<ClusterConfig>,
        registry: &mut Registry,
    ) -> anyhow::Result<()> {
        let metrics = DataMetrics::new(registry, shard);
        self.metrics.push(metrics.clone());
        let config = ShardConfig { shard, seed: clock::unique(), ..options.shard.clone() };
        let (limits, run) = (options.limits, clock::unique());
        let pump = PumpConfig {
            name: format!("data-{shard}"),
            cpu: options.first_cpu.map(|first| first + shard as usize),
            ring: ring_config(options),
            listener: Some(listener),
        };
        let disk = match (&options.storage, recovered) {
            (Some(storage), Some(recovered)) => {
                let disk = Disk::start(&format!("disk-{shard}"), &storage.folder)?;
                let metrics = StorageMetrics::new(registry, shard);
                self.storage.push(metrics.clone());
                Some((recovered, storage.of_shard(&config), (disk, metrics)))
            }
            _ => None,
        };
        let reserve = options.reserve_publishers.div_ceil(options.shard.shards as usize);
        let (post, mailbox) = mailbox();
        let told = OperationMetrics::new(registry, shard);
        let operations = Operations::new(mailbox, options.compaction.clone(), told, clock::utc_minute);
        let cluster = cluster.map(|cluster| (cluster, ClusterMetrics::new(registry, shard)));
        self.cluster.extend(cluster.iter().map(|(_, told)| told.clone()));
        let pump = Pump::start(pump, move || {
            let mut node = match cluster {
                Some(cluster) => Node::clustered(config.clone(), limits, run, metrics, cluster),
                None => Node::new(config.clone(), limits, run, metrics),
            };
            if let Some((recovered, storage, disk)) = disk {
                node = node.on_disk(config, recovered, storage, disk);
            }
            node.reserve(reserve);
            node.with_operations(operations)
        })?;
        self.operations.push(post.waking(pump.waker()));
        self.pumps.push(pump);
        Ok(())
    }

    /// Whether a shard has ended by itself.
    pub fn is_finished(&self) -> bool {
        self.pumps.iter().any(Pump::is_finished)
    }

    /// Has others lead what is led here, as far as they can and for a bounded time, and ends.
    pub fn end(self) -> anyhow::Result<()> {
        if let Some((board, patience)) = self.board.as_ref().filter(|(_, patience)| !patience.is_zero()) {
            let began = clock::now();
            let ms = |began: Nanos| clock::now().since(began) * 1000 / Nanos::SECOND;
            if board.end(*patience) {
                tracing::info!(
                    ms = ms(began),
                    "what was led here is led by others, where a replica is in sync"
                );
            } else {
                tracing::warn!(
                    ms = ms(began),
                    "others do not lead yet what is led here: ending all the same, its slots wait for its lease"
                );
            }
        }
        self.stop()
    }

    /// Ends all shards at once.
    pub fn stop(self) -> anyhow::Result<()> {
        self.pumps.iter().for_each(Pump::stop);
        self.pumps.into_iter().try_for_each(Pump::join)
    }
}

impl ClusterOptions {
    /// What every shard of a node is told whose shards listen at `addrs`.
    fn member(&self, addrs: &[SocketAddr]) -> ClusterConfig {
        let entry = NodeEntry {
            id: self.id.as_str().into(),
            incarnation: clock::unique(),
            zone: self.zone.as_str().into(),
            ip: self.ip,
            ports: addrs.iter().map(SocketAddr::port).collect(),
            http: self.http,
            draining: false,
        };
        ClusterConfig {
            cluster: self.cluster.clone(),
            metas: self.peers.clone(),
            entry: Arc::new(entry),
            board: Board::measuring(addrs.len() as u32, clock::process_cpu),
            replica_lag_max: self.replica_lag_max,
        }
    }
}

fn ring_config(options: &DataOptions) -> RingConfig {
    let own = if options.cluster.is_some() { OWN_LINKS_MAX } else { 0 };
    RingConfig {
        sockets_max: options.limits.links_max + own + 16,
        recv_buffers: 256,
        recv_buffer_bytes: 64 * 1024,
        staging_bytes: 16 << 20,
        send_buffer_bytes: options.link_send_buffer.filter(|bytes| *bytes <= send_buffer_max()),
        ..RingConfig::default()
    }
}

/// The largest `SO_SNDBUF` that the kernel grants. A smaller one than asked for would be kept for good, and a link over a long way
/// would carry less than with the buffers that the kernel lets grow by themselves.
fn send_buffer_max() -> u32 {
    let told = std::fs::read_to_string("/proc/sys/net/core/wmem_max");
    told.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}
