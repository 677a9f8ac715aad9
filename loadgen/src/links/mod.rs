//! The data node by itself: one shard on one core, as many links as asked for that want everything, one link that writes.
//!
//! The receiving process takes the sessions' place. It checks every diff on every link like a run checks every list at
//! every client, with the same oracle.

pub mod end;

pub mod reel;

pub mod writer;

pub mod core;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use slotcast_engine::record::Encoder;
use slotcast_net::io::ring::{RingConfig, RingSockets, Sockets};

use crate::{
    board::{Board, Counter, Phase},
    clock::{Clock, Monotonic, SECOND},
    division::Division,
    limit::{self, LimitResult, LimitSpec, SocketOptions},
    links::core::{Core, Plant},
    phases::{Driven, FINISH_WITHIN, POLL_EVERY, START_LEAD},
    process::{self, Process},
    progress::Progress,
    roles::DataNode,
    run::{Outcome, PerRole, fresh_tag},
    samples::Measured,
    schedule::Synthetic,
    worker::{self, Remarks},
    workload::Workload,
};

/// Receive buffers of the receiving process, and bytes of each. Links carry more than clients' connections.
pub const RECV_BUFFERS: u16 = 256;
/// See [`RECV_BUFFERS`].
pub const RECV_BUFFER_BYTES: u32 = 64 * 1024;
/// Completions handled in a row: more, and the link that writes would wait too long for its turn.
const COMPLETIONS: usize = 32;
/// Bytes of a diff frame on a link before its record.
const DIFF_OVERHEAD_BYTES: usize = 64;
const WAIT_MAX: Duration = Duration::from_millis(10);
/// Beyond what a run plans, for snapshots and checks.
const SLACK: Duration = Duration::from_secs(300);

/// What to run.
#[derive(Clone, Debug)]
pub struct LinksSpec {
    /// Links, services, publishers and changes; every link wants every service.
    pub synthetic: Synthetic,
    /// Settings of the data node, as `section.key=value`.
    pub settings: Vec<String>,
    /// How long each bare measurement takes; none: not measured.
    pub limit: Option<Duration>,
    /// Longest wait for what is on its way at the end.
    pub drain: Duration,
    /// A fault to make on purpose.
    pub plant: Option<Plant>,
}

/// What the receiving process is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerConfig {
    /// What to derive the workload from.
    pub synthetic: Synthetic,
    /// The data node.
    pub target: SocketAddr,
    /// The board; the process has its only row.
    pub board: PathBuf,
    /// Where to leave the results.
    pub output: PathBuf,
    /// Tells the sessions of this run from those of others.
    pub tag: u64,
    /// A fault to make on purpose.
    pub plant: Option<Plant>,
}

/// The ring settings of the receiving process.
pub fn ring_config(links: u32) -> RingConfig {
    RingConfig {
        sockets_max: links as usize + 16,
        recv_buffers: RECV_BUFFERS,
        recv_buffer_bytes: RECV_BUFFER_BYTES,
        completions_per_poll: COMPLETIONS,
        ..RingConfig::default()
    }
}

/// Runs the receiving process to its end.
pub fn work(config: &WorkerConfig) -> Result<()> {
    let workload = config.synthetic.build(0..0)?;
    let board = Board::open(&config.board).context("cannot open the board")?;
    let mut sockets = RingSockets::new(ring_config(workload.clients()))?;
    let mut core = Core::new(&workload, &board, config.target, config.tag, config.plant);
    let clock = Monotonic;
    while board.phase() < Phase::Finish {
        let events = sockets.poll(&mut |event| core.handle(event, &clock))?;
        core.settle(clock.now());
        let next = core.act(&mut sockets, clock.now())?;
        sockets.flush()?;
        let now = clock.now();
        if events == 0 && !core.is_busy() && next > now {
            sockets.wait(Duration::from_nanos(next - now).min(WAIT_MAX))?;
        }
    }
    let (measured, findings, errors) = core.finish();
    measured.save(&config.output)?;
    let remarks = serde_json::to_vec(&Remarks { findings, errors })?;
    fs::write(worker::remarks_beside(&config.output), remarks)?;
    Ok(())
}

/// Processor time, memory and connections at one moment.
#[derive(Clone, Copy, Default)]
struct Reading {
    data: f64,
    loadgen: f64,
    rss: (u64, u64),
    connections: u64,
    socket_writes: Option<u64>,
}

struct Run<'r> {
    workload: &'r Workload,
    board: Board,
    data: DataNode,
    worker: Process,
    progress: &'r Progress,
    stalls: Vec<String>,
}

/// Runs `spec`.
pub fn run(spec: &LinksSpec, progress: &Progress) -> Result<Outcome> {
    let folder = tempfile::Builder::new().prefix("loadgen-").tempdir()?;
    let workload = spec.synthetic.build(0..0)?;
    let cores = process::cores();
    let (core, other) = (cores[0], cores[cores.len() - 1]);
    let division =
        Division { session: vec![core], session_niceness: 0, data: vec![core], workers: vec![other] };
    let stolen = process::stolen();
    let planned = Duration::from_nanos(workload.window().end) + spec.drain + SLACK;
    let data = DataNode::start(&spec.settings, core, folder.path(), planned)?;
    let board_path = folder.path().join("board");
    let board = Board::create(&board_path, 1, workload.ops().len())?;
    let output = folder.path().join("links.json");
    let config = WorkerConfig {
        synthetic: spec.synthetic.clone(),
        target: data.links,
        board: board_path,
        output: output.clone(),
        tag: fresh_tag(),
        plant: spec.plant,
    };
    let path = folder.path().join("links.config");
    fs::write(&path, serde_json::to_vec(&config)?)?;
    let path = path.to_str().context("the temporary folder's name is not UTF-8")?;
    let worker = Process::start("the links", &["links-worker", "--config", path], &[other], 0, planned)?;
    let run = Run { workload: &workload, board, data, worker, progress, stalls: Vec::new() };
    let mut outcome = run.through(&output, division, spec.drain)?;
    outcome.frame_bytes = DIFF_OVERHEAD_BYTES + workload.encode(&mut Encoder::default(), 0, 1)?.len();
    if let Some(duration) = spec.limit {
        outcome.limit = measure_limit(&outcome, duration, folder.path(), progress)?;
    }
    outcome.stolen = process::stolen_since(stolen);
    Ok(outcome)
}

impl Driven for Run<'_> {
    fn board(&self) -> &Board {
        &self.board
    }

    fn progress(&self) -> &Progress {
        self.progress
    }

    fn breathe(&mut self) -> Result<()> {
        std::thread::sleep(POLL_EVERY);
        self.worker.check()?;
        self.data.process.check()
    }
}

impl Run<'_> {
    fn through(mut self, output: &Path, division: Division, drain: Duration) -> Result<Outcome> {
        let began = Monotonic.now();
        self.set_up()?;
        let (mut first, mut last) = (Reading::default(), Reading::default());
        let (mut warmup_s, mut window_began) = (0.0, SystemTime::now());
        if self.stalls.is_empty() {
            self.board.set_start(Monotonic.now() + START_LEAD);
            self.board.set_phase(Phase::Run);
            let (window, start) = (self.workload.window(), self.board.start());
            self.until("warming up", start, start + window.start)?;
            first = self.reading();
            warmup_s = (start + window.start).saturating_sub(began) as f64 / SECOND as f64;
            window_began = SystemTime::now();
            self.until("running", start + window.start, start + window.end)?;
            last = self.reading();
            self.drain(self.workload.planned().len() as u64, drain)?;
        }
        self.progress.phase("checking", 1);
        self.board.set_phase(Phase::Finish);
        self.worker.finish(FINISH_WITHIN)?;
        let (measured, remarks) = (Measured::load(output)?, worker::remarks(output)?);
        let (workload, board) = (self.workload, &self.board);
        let in_window = workload.planned().filter(|&op| workload.in_window(op as u32)).count() as u64;
        let window = workload.window();
        Ok(Outcome {
            clients: workload.clients(),
            connections: first.connections.min(last.connections),
            changes: (in_window, workload.planned().len() as u64),
            published: board.total(Counter::Acknowledged),
            deliveries_planned: workload.deliveries(),
            refused: board.total(Counter::Refused),
            lost: board.total(Counter::Lost),
            measured,
            findings: remarks.findings,
            errors: remarks.errors,
            stalls: self.stalls,
            socket_writes: last
                .socket_writes
                .zip(first.socket_writes)
                .map(|(last, first)| last.saturating_sub(first)),
            cpu_s: PerRole {
                data: Some(last.data - first.data),
                session: None,
                loadgen: last.loadgen - first.loadgen,
            },
            rss_bytes: PerRole { data: Some(last.rss.0), session: None, loadgen: last.rss.1 },
            limit: Vec::new(),
            stolen: 0.0,
            warmup_s,
            window_s: (window.end - window.start) as f64 / SECOND as f64,
            frame_bytes: 0,
            population: (workload.publishers().len(), workload.services().len(), workload.canaries()),
            planned_min: crate::run::planned_min(workload),
            notes: workload.notes().to_vec(),
            division,
            window_began,
            stalled: None,
            storm: None,
            slow_clients: None,
            sent_away: 0,
            idle_memory: None,
        })
    }

    /// Links, registrations that are there from the start, first snapshots.
    fn set_up(&mut self) -> Result<()> {
        let links = u64::from(self.workload.clients());
        let parts = [
            (Phase::Connect, "linking", Counter::Connections, links),
            (Phase::Publish, "registering", Counter::Staged, self.workload.staged().len() as u64),
            (Phase::Subscribe, "snapshots", Counter::Answered, links * self.workload.services().len() as u64),
        ];
        for (phase, name, counter, target) in parts {
            if let Some(stall) = self.reach(phase, name, counter, target)? {
                self.stalls.push(stall);
                return Ok(());
            }
        }
        Ok(())
    }

    fn reading(&self) -> Reading {
        let own = std::process::id();
        Reading {
            data: self.data.process.cpu_seconds(),
            loadgen: process::cpu_seconds(own) + self.worker.cpu_seconds(),
            rss: (self.data.process.rss_bytes(), process::rss_bytes(own) + self.worker.rss_bytes()),
            connections: self.board.total(Counter::Connections),
            socket_writes: self.data.socket_writes(),
        }
    }
}

/// The bare limit: single diffs, then as many bytes in each write as the run had.
fn measure_limit(
    outcome: &Outcome,
    duration: Duration,
    folder: &Path,
    progress: &Progress,
) -> Result<Vec<LimitResult>> {
    let (counts, writes) = (&outcome.measured.counts, outcome.socket_writes.unwrap_or(0).max(1));
    // Removals are shorter than what the run calls a frame.
    let frame_bytes = (counts.push_bytes / counts.pushes.max(1)).max(1) as usize;
    let merged = (counts.pushes / writes).max(2) as u32;
    [1, merged]
        .into_iter()
        .map(|frames_per_write| {
            let spec = LimitSpec {
                connections: outcome.clients,
                frame_bytes,
                frames_per_write,
                duration,
                recv_buffers: RECV_BUFFERS,
                recv_buffer_bytes: RECV_BUFFER_BYTES,
                sockets: SocketOptions::default(),
            };
            limit::measure(&spec, &outcome.division, folder, progress)
        })
        .collect()
}
