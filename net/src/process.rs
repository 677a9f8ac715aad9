//! A process of one role or of all: servers, HTTP, and the wait for a signal.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use prometheus_client::registry::Registry;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use slotcast_engine::slot_state::SlotState;

use crate::{
    admin::{Admin, control},
    config::Config,
    data::{cluster::metrics::ClusterMetrics, server::DataServer, storage::StorageMetrics},
    meta::server::MetaServer,
    output::usage,
    session::{
        config::Routes,
        server::{SessionServer, readiness},
    },
    wire::meta::MetaPeer,
};

/// Prefix of every metric's name.
const METRICS_PREFIX: &str = "slotcast";

/// A running data node with its HTTP side.
pub struct DataProcess {
    /// The shards.
    pub server: DataServer,
    /// The HTTP side.
    pub admin: Admin,
}

/// A running session process with its HTTP side.
pub struct SessionProcess {
    /// The cores.
    pub server: SessionServer,
    /// The HTTP side.
    pub admin: Admin,
}

impl DataProcess {
    /// Starts a data node.
    pub fn start(config: &Config) -> anyhow::Result<Self> {
        let mut registry = Registry::with_prefix(METRICS_PREFIX);
        let mut options = usage(config.data_options())?;
        let listener = Admin::bind(config.data.http)?;
        if let Some(cluster) = &mut options.cluster {
            cluster.http = listener.local_addr()?.port();
        }
        let server = DataServer::start(&options, &mut registry)?;
        let (metrics, storage) = (server.metrics.clone(), server.storage.clone());
        let cluster = server.cluster.clone();
        let ready = Arc::new(move || {
            let failed = storage.iter().any(StorageMetrics::has_failed);
            let note =
                failed.then(|| "the disk has failed: persistent publishers are refused and nothing is kept until it works again".to_string());
            if !cluster.is_empty() {
                return member_ready(&cluster, note);
            }
            let waiting = metrics.iter().filter(|shard| shard.serving.get() == 0).count();
            if waiting == 0 {
                Ok(note)
            } else {
                Err(format!("{waiting} of {} shards do not answer readers yet", metrics.len()))
            }
        });
        let operations = control::data_routes(server.operations.clone());
        match Admin::serve(listener, registry, ready, operations) {
            Ok(admin) => Ok(Self { server, admin }),
            Err(error) => {
                server.stop()?;
                Err(error)
            }
        }
    }
}

/// Whether a member of a cluster serves what the slot table gives it.
fn member_ready(shards: &[ClusterMetrics], note: Option<String>) -> Result<Option<String>, String> {
    let epochs = shards.iter().map(|shard| shard.table_epoch.get());
    let Some(epoch) = epochs.min().filter(|epoch| *epoch > 0) else {
        return Err("no slot table yet: is the control plane of meta.peers running?".into());
    };
    let count = |state| -> i64 { shards.iter().map(|shard| shard.slots_in(state)).sum() };
    let [following, migrating, accept] =
        [SlotState::Following, SlotState::Migrating, SlotState::Accept].map(count);
    if migrating > 0 {
        let led = migrating + accept;
        return Err(format!(
            "{migrating} of {led} slots led here are migrating: they take writes, readers wait"
        ));
    }
    let held = format!("leads {accept} slots and follows {following} by table {epoch}");
    let lease = shards.iter().any(|shard| shard.lease.get() == 0);
    let alone = lease.then(|| {
        "the control plane is not known to count it as alive: persistent publishers are refused".to_string()
    });
    Ok(Some([Some(held), alone, note].into_iter().flatten().collect::<Vec<_>>().join("; ")))
}

impl SessionProcess {
    /// Starts a session process. `routes` replaces those of the configuration, where ports were chosen by the system.
    pub fn start(config: &Config, routes: Option<Routes>) -> anyhow::Result<Self> {
        let mut registry = Registry::with_prefix(METRICS_PREFIX);
        let mut options = usage(config.session_options())?;
        if let Some(routes) = routes {
            options.session.routes = routes;
        }
        let listener = Admin::bind(config.session.http)?;
        let own = listener.local_addr()?;
        let pages = SocketAddr::new(config.session.advertise.unwrap_or(own.ip()), own.port());
        if let Some(meta) = options.session.meta.as_mut().filter(|_| !pages.ip().is_unspecified()) {
            meta.peer = MetaPeer::Serving(pages);
        }
        let server = SessionServer::start(&options, &mut registry)?;
        let (metrics, links) = (server.metrics.clone(), server.links);
        let ready = Arc::new(move || readiness(links, &metrics));
        let operations = control::session_routes(server.operations.clone());
        match Admin::serve(listener, registry, ready, operations) {
            Ok(admin) => Ok(Self { server, admin }),
            Err(error) => {
                server.stop()?;
                Err(error)
            }
        }
    }
}

/// A running process of the control plane with its HTTP side.
pub struct MetaProcess {
    /// The control plane.
    pub server: MetaServer,
    /// The HTTP side.
    pub admin: Admin,
}

impl MetaProcess {
    /// Starts a process of the control plane.
    pub fn start(config: &Config) -> anyhow::Result<Self> {
        let mut registry = Registry::with_prefix(METRICS_PREFIX);
        let server = MetaServer::start(&usage(config.meta_options())?, &mut registry)?;
        let desk = server.desk.clone();
        let ready = Arc::new(move || desk.ready());
        let routes = server.desk.clone().routes();
        match Admin::start(config.meta.http, registry, ready, routes) {
            Ok(admin) => Ok(Self { server, admin }),
            Err(error) => {
                server.stop()?;
                Err(error)
            }
        }
    }
}

/// Has the kernel kill this process when the one that started it ends, however that ends. An error if it is not `parent`, or not
/// any more.
pub fn end_with(parent: u32) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot be bound to the parent's life")?;
    // It may have ended before that.
    let now = Pid::as_raw(getppid()) as u32;
    ensure!(now == parent, "process {parent} is not the parent of this process: has it ended?");
    Ok(())
}

/// Blocks until the process is asked to end (SIGINT, SIGTERM) or `ended` says so.
pub fn wait_for_end(mut ended: impl FnMut() -> bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut interrupt = signal(SignalKind::interrupt()).context("installing a signal handler")?;
        let mut terminate = signal(SignalKind::terminate()).context("installing a signal handler")?;
        let mut look = tokio::time::interval(Duration::from_millis(200));
        loop {
            tokio::select! {
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                _ = look.tick() => if ended() { return Ok(()) },
            }
        }
    })
}
