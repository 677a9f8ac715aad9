//! A worker: one process, one thread, some thousands of clients on a bare socket ring.

pub mod stream;

pub mod speech;

pub mod client;

pub mod plan;

pub mod pace;

pub mod returns;

pub mod storm;

pub mod sockets;

pub mod core;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use slotcast_net::io::ring::{RingConfig, Sockets};

use crate::{
    board::{Board, Phase},
    clock::{Clock, Monotonic},
    disturbance::Disturbance,
    samples::Measured,
    source::Source,
    verify::truth::Findings,
    worker::{
        core::{Core, Finished},
        pace::{GATHER_BUSY, Pace},
        plan::Plan,
        sockets::ClientSockets,
    },
};

/// Longest sleep, so that a new phase is noticed.
const WAIT_MAX: Duration = Duration::from_millis(10);

/// What a worker is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerConfig {
    /// Its row on the board.
    pub index: usize,
    /// First of its clients.
    pub first_client: u32,
    /// How many clients.
    pub clients: u32,
    /// What to derive the workload from.
    pub source: Source,
    /// What is done to the clients besides the planned changes.
    pub disturbance: Disturbance,
    /// Sessions to connect to.
    pub targets: Vec<SocketAddr>,
    /// The board.
    pub board: PathBuf,
    /// Where to leave the results.
    pub output: PathBuf,
    /// The same socket settings as for the bare limit.
    pub recv_buffers: u16,
}

/// What a worker leaves behind besides its measurements.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Remarks {
    /// What its oracle found.
    pub findings: Findings,
    /// What went wrong, in words.
    pub errors: Vec<String>,
}

/// The ring settings of everything that receives.
pub fn ring_config(clients: u32, recv_buffers: u16) -> RingConfig {
    let recv_buffer_bytes = crate::run::RECV_BUFFER_BYTES;
    RingConfig {
        sockets_max: clients.max(1) as usize,
        recv_buffers,
        recv_buffer_bytes,
        gather: GATHER_BUSY,
        ..RingConfig::default()
    }
}

/// Runs a worker to its end.
pub fn run(config: &WorkerConfig) -> Result<()> {
    let clients = config.first_client..config.first_client + config.clients;
    let workload = config.source.build(clients.clone())?;
    let board = Board::open(&config.board).context("cannot open the board")?;
    let plan = Plan::new(&workload, clients, &config.disturbance, config.source.seed());
    let stalling = plan.stalled.len() as u32;
    let mut sockets = ClientSockets::new(config.clients, stalling, config.recv_buffers)?;
    let mut core = Core::new(&workload, &board, config.index, config.targets.clone(), plan)?;
    let clock = Monotonic;
    let mut pace = Pace::default();
    while board.phase() < Phase::Finish {
        let events = turn(&mut core, &mut sockets, &clock)?;
        if let Some(gather) = pace.count(events, clock.now()) {
            sockets.set_gather(gather);
        }
    }
    let Finished { measured, stalled, findings, errors } = core.finish();
    measured.save(&config.output)?;
    stalled.save(&stalled_beside(&config.output))?;
    fs::write(remarks_beside(&config.output), serde_json::to_vec(&Remarks { findings, errors })?)?;
    Ok(())
}

/// One turn: take what has arrived, do what is due, send, and sleep if there was nothing to do. Returns how much had arrived.
pub fn turn(core: &mut Core<'_>, sockets: &mut ClientSockets, clock: &impl Clock) -> Result<usize> {
    let events = sockets.poll(&mut |event| core.handle(event, clock))?;
    core.settle(clock.now());
    let next = core.act(sockets, clock.now())?;
    sockets.flush()?;
    let now = clock.now();
    if events == 0 && !core.is_busy() && next > now {
        sockets.wait(Duration::from_nanos(next - now).min(WAIT_MAX))?;
    }
    Ok(events)
}

/// Reads what a worker left behind.
pub fn remarks(output: &Path) -> Result<Remarks> {
    Ok(serde_json::from_slice(&fs::read(remarks_beside(output))?)?)
}

/// Reads what the clients measured that were to stop reading.
pub fn stalled(output: &Path) -> Result<Measured> {
    Measured::load(&stalled_beside(output))
}

fn stalled_beside(output: &Path) -> PathBuf {
    let name = output.file_stem().unwrap_or_default().to_string_lossy();
    output.with_file_name(format!("{name}-stalled.json"))
}

/// Where the remarks to measurements at `output` lie.
pub fn remarks_beside(output: &Path) -> PathBuf {
    output.with_extension("remarks")
}
