//! Registrations into one core of a data node, as fast as they are taken; afterwards everything is read back and compared.

pub mod plan;

pub mod core;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use slotcast_net::io::ring::{RingSockets, Sockets};

use crate::{
    board::{Board, Counter, Phase},
    clock::{Clock, Monotonic, SECOND},
    division::Division,
    ingest::{
        core::{Core, Found},
        plan::Plan,
    },
    limit::{self, LimitResult, LimitSpec, SocketOptions},
    links::{RECV_BUFFER_BYTES, RECV_BUFFERS, ring_config},
    process::{self, Process},
    progress::Progress,
    roles::DataNode,
    run::{PerRole, fresh_tag},
};

const WAIT_MAX: Duration = Duration::from_millis(5);
const POLL_EVERY: Duration = Duration::from_millis(5);
const STALLED_AFTER: u64 = 30 * SECOND;
const FINISH_WITHIN: Duration = Duration::from_secs(60);
const SLACK: Duration = Duration::from_secs(300);

/// What to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IngestSpec {
    /// Session links.
    pub sessions: u32,
    /// Registrations at most, over all links.
    pub publishers: u64,
    /// Registrations of each data id.
    pub per_datum: u32,
    /// Bytes of each payload.
    pub payload_bytes: usize,
    /// No more is sent after this long.
    pub duration: Duration,
    /// Settings of the data node, as `section.key=value`.
    pub settings: Vec<String>,
    /// How long the bare measurement takes; none: not measured.
    pub limit: Option<Duration>,
    /// Take one registration for wrong on purpose.
    pub plant: bool,
}

/// What the registering process is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerConfig {
    /// What to do.
    pub spec: IngestSpec,
    /// The data node.
    pub target: SocketAddr,
    /// The board; the process has its only row.
    pub board: PathBuf,
    /// Where to leave what was found.
    pub output: PathBuf,
    /// Tells the sessions of this run from those of others.
    pub tag: u64,
}

/// What a run came to.
pub struct IngestOutcome {
    /// What was asked for.
    pub spec: IngestSpec,
    /// What the registering process found.
    pub found: Found,
    /// Links open when the registering began.
    pub connections: u64,
    /// Connections lost and registrations refused.
    pub lost_refused: (u64, u64),
    /// Processor seconds while registering.
    pub cpu_s: PerRole<f64>,
    /// Resident bytes when all was registered, and the data node's before.
    pub rss_bytes: PerRole<u64>,
    /// See `rss_bytes`.
    pub rss_before: u64,
    /// Bytes of one registration in a write frame, its entry alone.
    pub entry_bytes: usize,
    /// The bare limit with writes of as many bytes.
    pub limit: Vec<LimitResult>,
    /// Phases that did not come to their end.
    pub stalls: Vec<String>,
    /// Seconds from the first connection to the first write.
    pub warmup_s: f64,
    /// Cores of the data node and of the registering process.
    pub cores: (usize, usize),
}

impl IngestOutcome {
    /// Registrations taken per second.
    pub fn per_second(&self) -> f64 {
        self.found.acknowledged as f64 / self.found.register_s.max(1e-9)
    }

    /// Processor nanoseconds of the data node per registration.
    pub fn data_ns(&self) -> f64 {
        self.cpu_s.data.unwrap_or(0.0) * 1e9 / self.found.acknowledged.max(1) as f64
    }

    /// Why the run was not right; empty: all is well.
    pub fn reasons(&self) -> Vec<String> {
        let (found, sessions) = (&self.found, u64::from(self.spec.sessions));
        let mut reasons = self.stalls.clone();
        let mut must = |holds: bool, reason: String| {
            if !holds {
                reasons.push(reason);
            }
        };
        for (name, count) in [("missing", found.missing), ("extra", found.extra), ("stale", found.stale)] {
            must(count == 0, format!("{count} {name}"));
        }
        must(self.connections == sessions, format!("{} links of {sessions}", self.connections));
        must(self.lost_refused.0 == 0, format!("{} connections lost", self.lost_refused.0));
        must(self.lost_refused.1 == 0, format!("{} registrations refused", self.lost_refused.1));
        must(found.acknowledged > 0, "nothing was registered".into());
        let (exact, taken) = (found.exact, found.acknowledged);
        must(exact == taken, format!("{exact} of {taken} registrations were read back as they are"));
        must(found.errors.is_empty(), format!("errors: {}", found.errors.join("; ")));
        reasons
    }
}

/// Runs the registering process to its end.
pub fn work(config: &WorkerConfig) -> Result<()> {
    let (spec, clock) = (&config.spec, Monotonic);
    let board = Board::open(&config.board).context("cannot open the board")?;
    let mut sockets = RingSockets::new(ring_config(spec.sessions))?;
    let plan = Plan::new(spec.per_datum, spec.payload_bytes)?;
    let datums = spec.publishers.div_ceil(u64::from(spec.per_datum));
    let plant = spec.plant.then(|| core::planted(u64::from(spec.per_datum)));
    let bounds = (datums, spec.duration.as_nanos() as u64);
    let mut core = Core::new(&board, plan, config.target, (spec.sessions, config.tag), bounds, plant);
    while board.phase() < Phase::Finish {
        let events = sockets.poll(&mut |event| core.handle(event, &clock))?;
        let next = core.act(&mut sockets, clock.now())?;
        sockets.flush()?;
        let now = clock.now();
        if events == 0 && next > now {
            sockets.wait(Duration::from_nanos(next - now).min(WAIT_MAX))?;
        }
    }
    fs::write(&config.output, serde_json::to_vec(&core.finish())?)?;
    Ok(())
}

/// Runs `spec`.
pub fn run(spec: &IngestSpec, progress: &Progress) -> Result<IngestOutcome> {
    let folder = tempfile::Builder::new().prefix("loadgen-").tempdir()?;
    let cores = process::cores();
    let (core, other) = (cores[0], cores[cores.len() - 1]);
    let planned = spec.duration + SLACK;
    let data = DataNode::start(&spec.settings, core, folder.path(), planned)?;
    let (board_path, output) = (folder.path().join("board"), folder.path().join("found.json"));
    let board = Board::create(&board_path, 1, 0)?;
    let config = WorkerConfig {
        spec: spec.clone(),
        target: data.links,
        board: board_path,
        output: output.clone(),
        tag: fresh_tag(),
    };
    let path = folder.path().join("ingest.config");
    fs::write(&path, serde_json::to_vec(&config)?)?;
    let path = path.to_str().context("the temporary folder's name is not UTF-8")?;
    let worker = Process::start(
        "the registering process",
        &["ingest-worker", "--config", path],
        &[other],
        0,
        planned,
    )?;
    let began = Monotonic.now();
    let mut run = Run { board, data, worker, progress, stalls: Vec::new() };
    let links = u64::from(spec.sessions);
    run.until(Phase::Connect, "linking", (Counter::Connections, links), (Counter::Connections, links))?;
    let connections = run.board.total(Counter::Connections);
    let warmup_s = (Monotonic.now() - began) as f64 / SECOND as f64;
    let (before, rss_before) = (run.cpu_seconds(), run.data.process.rss_bytes());
    let registering = (Counter::Acknowledged, spec.publishers);
    run.until(Phase::Publish, "registering", registering, (Counter::Staged, 1))?;
    let (after, rss_bytes) = (run.cpu_seconds(), run.rss_bytes());
    let datums = run.board.total(Counter::Acknowledged) / u64::from(spec.per_datum);
    run.until(Phase::Subscribe, "reading back", (Counter::Answered, datums), (Counter::Looked, 1))?;
    run.board.set_phase(Phase::Finish);
    let Run { board, data, worker, stalls, .. } = run;
    worker.finish(FINISH_WITHIN)?;
    drop(data);
    let found: Found = serde_json::from_slice(&fs::read(&output)?)?;
    let limit = measure_limit(spec, &found, (core, other), folder.path(), progress)?;
    Ok(IngestOutcome {
        spec: spec.clone(),
        connections,
        lost_refused: (board.total(Counter::Lost), board.total(Counter::Refused)),
        cpu_s: PerRole { data: Some(after.0 - before.0), session: None, loadgen: after.1 - before.1 },
        rss_bytes,
        rss_before,
        entry_bytes: Plan::new(spec.per_datum, spec.payload_bytes)?.entry_bytes(),
        limit,
        stalls,
        warmup_s,
        cores: (core, other),
        found,
    })
}

struct Run<'r> {
    board: Board,
    data: DataNode,
    worker: Process,
    progress: &'r Progress,
    stalls: Vec<String>,
}

impl Run<'_> {
    /// Starts a phase and waits until `done` is reached, or until nothing has moved for too long.
    fn until(
        &mut self,
        phase: Phase,
        name: &str,
        (moves, length): (Counter, u64),
        (done, enough): (Counter, u64),
    ) -> Result<()> {
        if !self.stalls.is_empty() {
            return Ok(());
        }
        self.progress.phase(name, length);
        self.board.set_phase(phase);
        let (mut moved, mut at) = (Monotonic.now(), 0);
        while self.board.total(done) < enough {
            std::thread::sleep(POLL_EVERY);
            self.worker.check()?;
            self.data.process.check()?;
            let now = self.board.total(moves);
            self.progress.at(now, || now.to_string());
            if now != at {
                (moved, at) = (Monotonic.now(), now);
            } else if Monotonic.now() - moved > STALLED_AFTER {
                self.stalls.push(format!("{name} stopped at {now}"));
                return Ok(());
            }
        }
        Ok(())
    }

    /// Of the data node, and of this program.
    fn cpu_seconds(&self) -> (f64, f64) {
        let own = process::cpu_seconds(std::process::id());
        (self.data.process.cpu_seconds(), self.worker.cpu_seconds() + own)
    }

    fn rss_bytes(&self) -> PerRole<u64> {
        PerRole {
            data: Some(self.data.process.rss_bytes()),
            session: None,
            loadgen: process::rss_bytes(std::process::id()) + self.worker.rss_bytes(),
        }
    }
}

/// The bare limit with the same links and writes, from the core of the registering process to the data node's.
fn measure_limit(
    spec: &IngestSpec,
    found: &Found,
    (core, other): (usize, usize),
    folder: &Path,
    progress: &Progress,
) -> Result<Vec<LimitResult>> {
    let Some(duration) = spec.limit else { return Ok(Vec::new()) };
    let division =
        Division { session: vec![other], session_niceness: 0, data: vec![core], workers: vec![core] };
    let per_frame = (found.acknowledged / found.write_frames.max(1)).max(2);
    [1, per_frame as u32]
        .into_iter()
        .map(|frames_per_write| {
            let limit = LimitSpec {
                connections: spec.sessions,
                frame_bytes: (found.write_bytes / found.acknowledged.max(1)).max(1) as usize,
                frames_per_write,
                duration,
                recv_buffers: RECV_BUFFERS,
                recv_buffer_bytes: RECV_BUFFER_BYTES,
                sockets: SocketOptions::default(),
            };
            limit::measure(&limit, &division, folder, progress)
        })
        .collect()
}
