//! Runs a session process: one thread per core, all on one port, each a session incarnation of its own.

use std::net::SocketAddr;

use anyhow::Context;
use prometheus_client::registry::Registry;
use slotcast_engine::id::SessionId;

use crate::{
    io::{
        clock,
        mailbox::mailbox,
        pump::{self, Pump, PumpConfig},
        ring::{RingConfig, accept_from_cpu},
    },
    session::{Session, SessionConfig, config::Routes, metrics::SessionMetrics, operations::SessionPost},
};

/// Links for which a core has sockets where the data nodes are those of a slot table. A link beyond them cannot connect, which
/// is logged and leaves the session not ready.
const TABLE_LINKS_MAX: usize = 4096;

/// What a session process is told at its start.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// The port of all cores.
    pub listen: SocketAddr,
    /// Threads.
    pub cores: usize,
    /// Settings of a core; the incarnation is filled in.
    pub session: SessionConfig,
    /// The CPU of the first core; the others follow.
    pub first_cpu: Option<usize>,
    /// `SO_SNDBUF` of client sockets: what the kernel holds for a client that does not read.
    pub client_send_buffer: u32,
    /// TCP congestion control of client sockets; `None` leaves the system's.
    pub client_congestion_control: Option<String>,
    /// Each core takes the connections whose packets are handled on its CPU, if it has one.
    pub accept_from_own_cpu: bool,
}

/// A running session process.
pub struct SessionServer {
    /// The clients' port.
    pub addr: SocketAddr,
    /// Metrics of each core.
    pub metrics: Vec<SessionMetrics>,
    /// Shards that each core links to; `None`: those of the slot table.
    pub links: Option<usize>,
    /// Where each core is asked at run time.
    pub operations: Vec<SessionPost>,
    pumps: Vec<Pump>,
}

impl SessionServer {
    /// Binds the port and starts the cores.
    pub fn start(options: &SessionOptions, registry: &mut Registry) -> anyhow::Result<Self> {
        let links = options.session.meta.is_none().then_some(options.session.routes.shards.len());
        let ring = RingConfig {
            sockets_max: options.session.clients_max + links.unwrap_or(TABLE_LINKS_MAX) + 64,
            send_buffer_bytes: Some(options.client_send_buffer),
            congestion_control: options.client_congestion_control.clone(),
            recv_buffers: 1024,
            recv_buffer_bytes: 4096,
            // Little enough to stay in a core's cache between our copy and the kernel's.
            staging_bytes: 256 << 10,
            // More than the clients written to in a turn: connections that come go before pushes, which then grow.
            completions_per_poll: 4096,
            ..RingConfig::default()
        };
        let listeners = pump::listen(options.listen, options.cores, &ring)?;
        let addr = listeners.first().context("no listener")?.local_addr()?;
        let mut server = Self { addr, metrics: Vec::new(), links, operations: Vec::new(), pumps: Vec::new() };
        for (core, listener) in listeners.into_iter().enumerate() {
            let metrics = SessionMetrics::new(registry, core as u32);
            server.metrics.push(metrics.clone());
            let config = SessionConfig { id: SessionId(clock::unique()), ..options.session.clone() };
            let cpu = options.first_cpu.map(|first| first + core);
            if let Some(cpu) = cpu.filter(|_| options.accept_from_own_cpu) {
                accept_from_cpu(&listener, cpu)
                    .with_context(|| format!("taking connections from CPU {cpu} alone"))?;
            }
            let pump = PumpConfig {
                name: format!("session-{core}"),
                cpu,
                ring: ring.clone(),
                listener: Some(listener),
            };
            let (post, mailbox) = mailbox();
            match Pump::start(pump, move || Session::new(config, metrics).with_operations(mailbox)) {
                Ok(pump) => {
                    server.operations.push(post.waking(pump.waker()));
                    server.pumps.push(pump);
                }
                Err(error) => {
                    server.stop()?;
                    return Err(error.context(format!("starting session core {core}")));
                }
            }
        }
        Ok(server)
    }

    /// Whether every core has all its links: those to leaders, where a slot table is followed.
    pub fn is_ready(&self) -> bool {
        readiness(self.links, &self.metrics).is_ok()
    }

    /// Whether a core has ended by itself.
    pub fn is_finished(&self) -> bool {
        self.pumps.iter().any(Pump::is_finished)
    }

    /// Ends all cores.
    pub fn stop(self) -> anyhow::Result<()> {
        self.pumps.iter().for_each(Pump::stop);
        self.pumps.into_iter().try_for_each(Pump::join)
    }
}

/// Whether cores with these metrics can serve: what is wrong, or what there is to be said all the same.
pub(crate) fn readiness(links: Option<usize>, cores: &[SessionMetrics]) -> Result<Option<String>, String> {
    if let Some(links) = links {
        let up: i64 = cores.iter().map(|core| core.links_up.get()).sum();
        let wanted = links * cores.len();
        let note = stopped(cores);
        return if up as usize == wanted { Ok(note) } else { Err(format!("{up} of {wanted} links are up")) };
    }
    let without = cores.iter().filter(|core| core.table_epoch.get() == 0).count();
    if without > 0 {
        return Err(format!("{without} of {} cores have no slot table yet", cores.len()));
    }
    let down: i64 = cores.iter().map(|core| core.leader_links_down.get()).sum();
    if cores.iter().any(|core| core.ready.get() == 0) {
        return Err(format!("{down} links to data nodes that lead slots are not up"));
    }
    let leaderless = cores.iter().map(|core| core.leaderless_slots.get()).max().unwrap_or(0);
    let leaderless = (leaderless > 0)
        .then(|| format!("{leaderless} slots have no leader: their writes and subscriptions wait"));
    Ok(stopped(cores).or(leaderless))
}

fn stopped(cores: &[SessionMetrics]) -> Option<String> {
    let is_stopped = cores.iter().any(|core| core.push_stopped.get() != 0);
    is_stopped.then(|| "an operator has stopped pushes: slotcast ctl resume-push lets them go on".to_string())
}

impl Routes {
    /// Routes to one data node that leads every slot.
    pub fn to_node(slot_count: u32, shards: Vec<SocketAddr>) -> Self {
        let count = shards.len() as u32;
        let leaders = (0..slot_count as u16)
            .map(|slot| slotcast_engine::id::SlotId(slot).shard(count) as u16)
            .collect();
        Self { slot_count, shards, leaders }
    }
}
