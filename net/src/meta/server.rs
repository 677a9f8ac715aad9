//! Runs a process of the control plane: one thread for peers, one for the store, HTTP beside them.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context, ensure};
use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use crossbeam::channel::{self, Receiver, Sender};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};

use crate::{
    io::{
        clock,
        pump::{self, Pump, PumpConfig},
        ring::{RingConfig, Waker},
    },
    meta::{
        core::{MetaConfig, Phase},
        etcd::EtcdStore,
        metrics::MetaMetrics,
        node::{MetaCommand, MetaNode, MetaView},
        store::{FileStore, NoStore, TableStore},
    },
};

/// Where the slot table is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetaStoreKind {
    /// Nowhere: it is learnt from the data nodes after a restart.
    None,
    /// In a file: one process of the control plane.
    File,
    /// In etcd: several processes, of which one leads.
    Etcd,
}

/// What a process of the control plane is told at its start.
#[derive(Debug, Clone)]
pub struct MetaOptions {
    /// The port of data nodes and sessions.
    pub listen: SocketAddr,
    /// The state machine's settings; its run is filled in.
    pub core: MetaConfig,
    /// Peers at once.
    pub peers_max: usize,
    /// Where the table is kept.
    pub store: MetaStoreKind,
    /// The directory of the file.
    pub dir: PathBuf,
    /// The endpoints of etcd, `http://host:port`.
    pub etcd: Vec<String>,
    /// How this process calls itself to the others; where it listens if empty.
    pub name: String,
    /// How long the lead outlives the last word of the process that had it.
    pub lead_ttl: Duration,
    /// The CPU of the peers' thread.
    pub cpu: Option<usize>,
}

/// A running process of the control plane.
pub struct MetaServer {
    /// Where peers connect.
    pub addr: SocketAddr,
    /// The way of the HTTP side to it.
    pub desk: MetaDesk,
    pump: Pump,
}

/// Asks the thread of the control plane, and waits a short while for the answer.
#[derive(Clone)]
pub struct MetaDesk {
    commands: Sender<MetaCommand>,
    waker: Arc<OnceLock<Waker>>,
}

/// Longest wait of the HTTP side.
const ANSWER_MAX: Duration = Duration::from_secs(2);

impl MetaServer {
    /// Opens the store, binds the port and starts the threads.
    pub fn start(options: &MetaOptions, registry: &mut Registry) -> anyhow::Result<Self> {
        let ring = RingConfig {
            sockets_max: options.peers_max + 64,
            recv_buffers: 1024,
            recv_buffer_bytes: 4096,
            staging_bytes: 8 << 20,
            ..RingConfig::default()
        };
        let listener = pump::listen(options.listen, 1, &ring)?.pop().context("no listener")?;
        let addr = listener.local_addr()?;
        let store = open_store(options, addr)?;
        let metrics = MetaMetrics::new(registry);
        let (commands, wanted) = channel::bounded(64);
        let desk = MetaDesk { commands, waker: Arc::default() };
        let waker = desk.waker.clone();
        let core = MetaConfig { run: clock::unique(), ..options.core.clone() };
        let peers_max = options.peers_max;
        let config = PumpConfig { name: "meta".into(), cpu: options.cpu, ring, listener: Some(listener) };
        let pump = Pump::start(config, move || {
            let on_waker = Box::new(move |found| {
                let _ = waker.set(found);
            });
            MetaNode::new(core, peers_max, store, wanted, metrics, on_waker)
        })?;
        Ok(Self { addr, desk, pump })
    }

    /// Whether it has ended by itself.
    pub fn is_finished(&self) -> bool {
        self.pump.is_finished()
    }

    /// Ends it; the lead is given up.
    pub fn stop(self) -> anyhow::Result<()> {
        self.pump.stop();
        self.pump.join()
    }
}

fn open_store(options: &MetaOptions, addr: SocketAddr) -> anyhow::Result<Box<dyn TableStore>> {
    Ok(match options.store {
        MetaStoreKind::None => Box::new(NoStore::default()),
        MetaStoreKind::File => {
            let mut store = FileStore::open(&options.dir)?;
            if let Some(table) = store.load()? {
                let own = &options.core;
                ensure!(
                    *table.cluster == *own.cluster && table.slots.len() == own.slot_count as usize,
                    "{} holds the table of cluster {:?} with {} slots, the configuration says {:?} with {}: correct \
                     cluster, slot_count or meta.dir",
                    options.dir.display(),
                    table.cluster,
                    table.slots.len(),
                    own.cluster,
                    own.slot_count
                );
            }
            Box::new(store)
        }
        MetaStoreKind::Etcd => {
            let name = if options.name.is_empty() { addr.to_string() } else { options.name.clone() };
            Box::new(EtcdStore::new(options.etcd.clone(), &options.core.cluster, &name, options.lead_ttl))
        }
    })
}

impl MetaDesk {
    fn ask(&self, command: MetaCommand) -> Result<(), String> {
        let sent = self.commands.try_send(command);
        sent.map_err(|_| "too many questions are waiting for the control plane".to_owned())?;
        if let Some(waker) = self.waker.get() {
            let _ = waker.wake();
        }
        Ok(())
    }

    fn wait<T>(answer: &Receiver<T>) -> Result<T, String> {
        let answer = answer.recv_timeout(ANSWER_MAX);
        answer.map_err(|_| "the control plane did not answer in time".to_owned())
    }

    /// What there is to see.
    pub fn status(&self) -> Result<MetaView, String> {
        let (tell, answer) = channel::bounded(1);
        self.ask(MetaCommand::Status(tell))?;
        Self::wait(&answer)
    }

    /// Empties a node, or uses it again.
    pub fn drain(&self, node: &str, on: bool) -> Result<(), String> {
        let (tell, answer) = channel::bounded(1);
        self.ask(MetaCommand::Drain { node: node.into(), on, answer: tell })?;
        Self::wait(&answer)?
    }

    /// Whether it leads, or knows who does.
    pub fn ready(&self) -> Result<Option<String>, String> {
        let view = self.status()?;
        match (view.status.phase, view.trouble) {
            (Phase::Leading, trouble) => Ok(trouble.or(view.status.store_error)),
            (Phase::Warming, _) => Err("it leads, and waits to hear from the nodes of the last table".into()),
            (Phase::Standby, Some(trouble)) => Err(trouble),
            (Phase::Standby, None) => match view.leader {
                Some(leader) => Ok(Some(format!("standby, {leader} leads"))),
                None => Err("nobody is known to lead".into()),
            },
        }
    }

    /// `/status` and `/drain`.
    pub fn routes(self) -> Router {
        Router::new().route("/status", get(status)).route("/drain", post(drain)).with_state(self)
    }
}

/// Which node, and whether it is to be emptied.
#[derive(Deserialize)]
struct DrainQuery {
    node: String,
    #[serde(default = "yes")]
    on: bool,
}

fn yes() -> bool {
    true
}

async fn status(State(desk): State<MetaDesk>) -> Response {
    let view = tokio::task::spawn_blocking(move || desk.status()).await;
    match view.unwrap_or_else(|error| Err(error.to_string())) {
        Ok(view) => Json(view).into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n").into_response(),
    }
}

async fn drain(State(desk): State<MetaDesk>, Query(query): Query<DrainQuery>) -> (StatusCode, String) {
    let done = tokio::task::spawn_blocking(move || desk.drain(&query.node, query.on)).await;
    match done.unwrap_or_else(|error| Err(error.to_string())) {
        Ok(()) => (StatusCode::OK, "ok\n".into()),
        Err(reason) => (StatusCode::CONFLICT, reason + "\n"),
    }
}
