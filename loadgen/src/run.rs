//! One run from start to end: cluster, workers, phases, readings, results.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use slotcast_engine::record::Encoder;
use slotcast_net::output::check_sessions;

use crate::{
    board::{Board, Counter, Phase},
    clock::{Clock, MILLISECOND, Monotonic, SECOND},
    disturbance::Disturbance,
    division::Division,
    incident::{IdleMemory, SlowClients, Stalled, StormReport},
    limit::{self, LimitResult, LimitSpec},
    phases::{Driven, FINISH_WITHIN, POLL_EVERY, START_LEAD},
    process::{self, Process},
    progress::Progress,
    roles::{Cluster, ClusterSpec, Metrics},
    samples::Measured,
    source::Source,
    verify::truth::Findings,
    worker::{self, WorkerConfig},
    workload::Workload,
};

/// Receive buffers of each worker's ring.
pub const RECV_BUFFERS: u16 = 256;
/// Bytes of each of them.
pub const RECV_BUFFER_BYTES: u32 = 8192;
/// Bytes of a diff frame before its record.
const DIFF_OVERHEAD_BYTES: usize = 48;
/// What was before a reconnect storm is read this long before it.
const BEFORE_STORM: u64 = 200 * MILLISECOND;
/// A session that does not take a connection within this time is not there.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// Beyond what a run plans, for connecting, snapshots and checks.
const SLACK: Duration = Duration::from_secs(600);

/// What to run.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// The workload.
    pub source: Source,
    /// Sessions to connect to; none: a cluster of our own.
    pub targets: Vec<SocketAddr>,
    /// Settings of that cluster, as `section.key=value`.
    pub settings: Vec<String>,
    /// Cores of its session.
    pub session_cores: Option<usize>,
    /// Worker processes.
    pub workers: Option<usize>,
    /// What is done to the clients besides the planned changes.
    pub disturbance: Disturbance,
    /// How long each bare measurement takes; none: not measured.
    pub limit: Option<Duration>,
    /// Longest wait for what is on its way at the end.
    pub drain: Duration,
}

/// One number per role; what does not run here is unknown.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub struct PerRole<T> {
    /// Data node.
    pub data: Option<T>,
    /// Session.
    pub session: Option<T>,
    /// This program, all processes.
    pub loadgen: T,
}

/// What a run came to.
pub struct Outcome {
    /// Clients planned.
    pub clients: u32,
    /// Connections open at both ends of the window.
    pub connections: u64,
    /// Planned changes, in the window and in all.
    pub changes: (u64, u64),
    /// Planned changes acknowledged, of all.
    pub published: u64,
    /// Planned (change, subscriber) pairs of the window.
    pub deliveries_planned: u64,
    /// Writes and subscriptions refused.
    pub refused: u64,
    /// Connections lost.
    pub lost: u64,
    /// What was measured.
    pub measured: Measured,
    /// What the oracle found.
    pub findings: Findings,
    /// What went wrong, in words.
    pub errors: Vec<String>,
    /// Phases that did not come to their end.
    pub stalls: Vec<String>,
    /// Socket writes of the session inside the window.
    pub socket_writes: Option<u64>,
    /// Processor seconds inside the window.
    pub cpu_s: PerRole<f64>,
    /// Resident bytes at the window's end.
    pub rss_bytes: PerRole<u64>,
    /// The bare limit, one frame per write and merged.
    pub limit: Vec<LimitResult>,
    /// Time stolen by the host during the whole, as a part of all processor time.
    pub stolen: f64,
    /// Seconds from the first connection to the window.
    pub warmup_s: f64,
    /// Length of the window as planned.
    pub window_s: f64,
    /// Bytes of a diff frame with one record.
    pub frame_bytes: usize,
    /// Publishers, services, canaries.
    pub population: (usize, usize, u32),
    /// Pushes per minute of the worst 5 s slice if every push were there at once.
    pub planned_min: f64,
    /// Scaling and the like.
    pub notes: Vec<String>,
    /// Who ran where.
    pub division: Division,
    /// When the window began, for the log of delays.
    pub window_began: SystemTime,
    /// The clients that read nothing meanwhile, if there were any; `measured` is without them.
    pub stalled: Option<Stalled>,
    /// The reconnect storm, if there was one.
    pub storm: Option<StormReport>,
    /// What the session says of slow clients.
    pub slow_clients: Option<SlowClients>,
    /// Connections sent away with a time to come back.
    pub sent_away: u64,
    /// Memory of the session as the clients came.
    pub idle_memory: Option<IdleMemory>,
}

/// Processor time, memory and connections at one moment.
#[derive(Clone, Default)]
struct Reading {
    cpu_s: PerRole<f64>,
    rss: PerRole<u64>,
    connections: u64,
    metrics: Option<Metrics>,
}

/// What is seen of a reconnect storm while it goes on.
struct StormWatch {
    /// When the first client is reset.
    at: u64,
    /// What had been told before.
    before: Option<(u64, Option<f64>)>,
    connected: Option<u64>,
    converged: Option<u64>,
}

/// What somebody else does while the changes go on: called every 20 ms with the nanoseconds since the window opened.
pub type Beside<'b> = dyn FnMut(u64) -> Result<()> + 'b;

struct Run<'r> {
    spec: &'r RunSpec,
    workload: &'r Workload,
    board: Board,
    cluster: Option<Cluster>,
    workers: Vec<Process>,
    progress: &'r Progress,
    stalls: Vec<String>,
    idle_memory: IdleMemory,
    storm: Option<StormWatch>,
    beside: &'r mut Beside<'r>,
}

/// Runs `spec`; `workload` is what its source derives, without subscriptions.
pub fn run(spec: &RunSpec, workload: &Workload, progress: &Progress) -> Result<Outcome> {
    run_beside(spec, workload, progress, &mut |_| Ok(()))
}

/// The same, with somebody who does something else to the sessions and data nodes meanwhile.
pub fn run_beside<'r>(
    spec: &'r RunSpec,
    workload: &'r Workload,
    progress: &'r Progress,
    beside: &'r mut Beside<'r>,
) -> Result<Outcome> {
    let folder = tempfile::Builder::new().prefix("loadgen-").tempdir()?;
    spec.disturbance.check(workload)?;
    check_sessions(&spec.targets, CONNECT_WITHIN)?;
    let clients = workload.clients();
    let division = Division::new(&process::cores(), clients, spec.session_cores, spec.workers);
    let frame_bytes = frame_bytes(workload)?;
    let stolen = process::stolen();
    let limit = measure_limit(spec, workload, &division, frame_bytes, folder.path(), progress)?;
    let planned = Duration::from_nanos(workload.window().end) + spec.drain + SLACK;
    let cluster = if spec.targets.is_empty() {
        let cluster = ClusterSpec { clients, settings: spec.settings.clone() };
        Some(Cluster::start(&cluster, &division, folder.path(), planned)?)
    } else {
        None
    };
    let targets = cluster.as_ref().map_or_else(|| spec.targets.clone(), |cluster| vec![cluster.clients]);
    let path = folder.path().join("board");
    let board = Board::create(&path, division.workers.len(), workload.ops().len())?;
    let mut outputs = Vec::new();
    let mut workers = Vec::new();
    for (index, (first_client, count)) in division.parts(clients).into_iter().enumerate() {
        let output = folder.path().join(format!("worker-{index}.json"));
        let config = WorkerConfig {
            index,
            first_client,
            clients: count,
            source: spec.source.clone(),
            disturbance: spec.disturbance,
            targets: targets.clone(),
            board: path.clone(),
            output: output.clone(),
            recv_buffers: RECV_BUFFERS,
        };
        workers.push(start_worker(&config, &division.workers[index..=index], folder.path(), planned)?);
        outputs.push(output);
    }
    let idle_memory = IdleMemory { clients, ..IdleMemory::default() };
    let run = Run {
        spec,
        workload,
        board,
        cluster,
        workers,
        progress,
        stalls: Vec::new(),
        idle_memory,
        storm: None,
        beside,
    };
    let mut outcome = run.through(&outputs, division)?;
    outcome.limit = limit;
    outcome.frame_bytes = frame_bytes;
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
        self.workers.iter_mut().try_for_each(Process::check)?;
        if let Some(cluster) = &mut self.cluster {
            cluster.data.check()?;
            cluster.session.check()?;
        }
        self.watch_storm();
        let start = self.board.start();
        let since = Monotonic.now().checked_sub(start + self.workload.window().start);
        match since.filter(|_| start > 0) {
            Some(since) => (self.beside)(since),
            None => Ok(()),
        }
    }

    fn is_whole(&self) -> bool {
        let disturbance = &self.spec.disturbance;
        let clients = u64::from(self.workload.clients());
        let is_back = disturbance.stalled_clients == 0 || self.board.total(Counter::Connections) == clients;
        is_back && self.storm.as_ref().is_none_or(|storm| storm.converged.is_some())
    }
}

impl Run<'_> {
    fn through(mut self, outputs: &[std::path::PathBuf], division: Division) -> Result<Outcome> {
        let began = Monotonic.now();
        self.set_up()?;
        let (mut first, mut last) = (Reading::default(), Reading::default());
        let mut in_the_end = None;
        let (mut warmup_s, mut window_began) = (0.0, SystemTime::now());
        if self.stalls.is_empty() {
            self.board.set_start(Monotonic.now() + START_LEAD);
            self.board.set_phase(Phase::Run);
            let window = self.workload.window();
            let start = self.board.start();
            self.until("warming up", start, start + window.start)?;
            first = self.reading();
            warmup_s = (start + window.start).saturating_sub(began) as f64 / SECOND as f64;
            window_began = SystemTime::now();
            self.storm = self.spec.disturbance.storm_at(self.workload).map(|at| StormWatch {
                at: start + at,
                before: None,
                connected: None,
                converged: None,
            });
            self.until("running", start + window.start, start + window.end)?;
            last = self.reading();
            self.drain(self.workload.planned().len() as u64, self.spec.drain)?;
            if self.spec.disturbance.stalled_clients > 0 {
                // Those that were evicted meanwhile find out when they read again.
                last.connections = self.board.total(Counter::Connections);
            }
            in_the_end = self.session_metrics();
        }
        let storm = self.storm_report(in_the_end.as_ref());
        self.progress.phase("checking", 1);
        self.board.set_phase(Phase::Finish);
        let board = &self.board;
        for worker in std::mem::take(&mut self.workers) {
            worker.finish(FINISH_WITHIN)?;
        }
        let (mut measured, mut findings, mut errors) = (Measured::default(), Findings::default(), Vec::new());
        let mut stalled = Measured::default();
        for output in outputs {
            measured.add(Measured::load(output)?)?;
            stalled.add(worker::stalled(output)?)?;
            let remarks = worker::remarks(output)?;
            findings.add(remarks.findings);
            errors.extend(remarks.errors);
        }
        let workload = self.workload;
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
            findings,
            errors,
            stalls: self.stalls,
            socket_writes: writes(&last).zip(writes(&first)).map(|(last, first)| last.saturating_sub(first)),
            cpu_s: last.cpu_s.since(&first.cpu_s),
            rss_bytes: last.rss,
            limit: Vec::new(),
            stolen: 0.0,
            warmup_s,
            window_s: (window.end - window.start) as f64 / SECOND as f64,
            frame_bytes: 0,
            population: (workload.publishers().len(), workload.services().len(), workload.canaries()),
            planned_min: planned_min(workload),
            notes: workload.notes().to_vec(),
            division,
            window_began,
            stalled: (self.spec.disturbance.stalled_clients > 0).then(|| Stalled {
                clients: self.spec.disturbance.stalled_clients,
                measured: stalled,
                evicted: board.total(Counter::Evicted),
            }),
            storm,
            slow_clients: first
                .metrics
                .as_ref()
                .zip(last.metrics.as_ref())
                .map(|(first, last)| SlowClients::between(first, last, in_the_end.as_ref().unwrap_or(last))),
            sent_away: board.total(Counter::SentAway),
            idle_memory: self.cluster.is_some().then_some(self.idle_memory),
        })
    }

    /// Connections, what is there from the start, first snapshots.
    fn set_up(&mut self) -> Result<()> {
        let clients = u64::from(self.workload.clients());
        let subscriptions: u64 = self.workload.subscribers().iter().map(|&count| u64::from(count)).sum();
        let parts = [
            (Phase::Connect, "connecting", Counter::Connections, clients),
            (Phase::Publish, "publishing", Counter::Staged, self.workload.staged().len() as u64),
            (Phase::Subscribe, "subscribing", Counter::Answered, subscriptions),
        ];
        self.idle_memory.start = self.session_rss();
        for (phase, name, counter, target) in parts {
            if let Some(stall) = self.reach(phase, name, counter, target)? {
                self.stalls.push(stall);
                return Ok(());
            }
            let (now, memory) = (self.session_rss(), &mut self.idle_memory);
            let place = match phase {
                Phase::Connect => &mut memory.connected,
                Phase::Publish => &mut memory.published,
                _ => &mut memory.subscribed,
            };
            *place = now;
        }
        Ok(())
    }

    fn session_rss(&self) -> u64 {
        self.cluster.as_ref().map_or(0, |cluster| cluster.session.rss_bytes())
    }

    fn session_metrics(&self) -> Option<Metrics> {
        self.cluster.as_ref().and_then(Cluster::session_metrics)
    }

    /// Notes what a reconnect storm has come to.
    fn watch_storm(&mut self) {
        let Some(storm) = &self.storm else { return };
        let now = Monotonic.now();
        let before = (storm.before.is_none() && now + BEFORE_STORM >= storm.at)
            .then(|| (self.board.total(Counter::Snapshots), departed(self.session_metrics().as_ref())));
        let clients = u64::from(self.workload.clients());
        let subscriptions: u64 = self.workload.subscribers().iter().map(|&count| u64::from(count)).sum();
        let all_reset = self.board.total(Counter::Resets) == clients;
        let connected = all_reset && self.board.total(Counter::Connections) == clients;
        let converged = connected && self.board.total(Counter::Resumed) == subscriptions;
        let Some(storm) = &mut self.storm else { return };
        storm.before = storm.before.or(before);
        storm.connected = storm.connected.or(connected.then_some(now));
        storm.converged = storm.converged.or(converged.then_some(now));
    }

    fn storm_report(&mut self, metrics: Option<&Metrics>) -> Option<StormReport> {
        self.watch_storm();
        let storm = self.storm.as_ref()?;
        let since = |at: u64| at.saturating_sub(storm.at) as f64 / SECOND as f64;
        let (resets, resumed) = (self.board.total(Counter::Resets), self.board.total(Counter::Resumed));
        let (snapshots, departures) = storm.before.unwrap_or_default();
        let connected_s = storm.connected.map(since);
        Some(StormReport {
            resets,
            connected_s,
            converged_s: storm.converged.map(since),
            connections_per_s: connected_s.map(|seconds| resets as f64 / seconds.max(1e-9)),
            snapshots: self.board.total(Counter::Snapshots).saturating_sub(snapshots),
            resume_bytes: self.board.total(Counter::ResumeBytes) as f64 / resumed.max(1) as f64,
            removals: departed(metrics).zip(departures).map(|(last, first)| (last - first) as u64),
        })
    }

    fn reading(&self) -> Reading {
        let own = std::process::id();
        let (data, session) = self.cluster.as_ref().map(|cluster| (&cluster.data, &cluster.session)).unzip();
        Reading {
            cpu_s: PerRole {
                data: data.map(Process::cpu_seconds),
                session: session.map(Process::cpu_seconds),
                loadgen: process::cpu_seconds(own)
                    + self.workers.iter().map(Process::cpu_seconds).sum::<f64>(),
            },
            rss: PerRole {
                data: data.map(Process::rss_bytes),
                session: session.map(Process::rss_bytes),
                loadgen: process::rss_bytes(own) + self.workers.iter().map(Process::rss_bytes).sum::<u64>(),
            },
            connections: self.board.total(Counter::Connections),
            metrics: self.session_metrics(),
        }
    }
}

/// Registrations that the session removed because their client left.
fn departed(metrics: Option<&Metrics>) -> Option<f64> {
    metrics.and_then(|metrics| metrics.session("departed_publishers_total"))
}

fn writes(reading: &Reading) -> Option<u64> {
    reading.metrics.as_ref()?.session("client_writes_total").map(|writes| writes as u64)
}

impl PerRole<f64> {
    fn since(&self, earlier: &Self) -> Self {
        let less = |now: Option<f64>, then: Option<f64>| now.zip(then).map(|(now, then)| now - then);
        Self {
            data: less(self.data, earlier.data),
            session: less(self.session, earlier.session),
            loadgen: self.loadgen - earlier.loadgen,
        }
    }
}

/// A number for the names of this run, so that it does not meet what an earlier one left in the same cluster.
pub fn fresh_tag() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_millis() as u64)
}

fn start_worker(config: &WorkerConfig, cores: &[usize], folder: &Path, limit: Duration) -> Result<Process> {
    let path = folder.join(format!("worker-{}.config", config.index));
    std::fs::write(&path, serde_json::to_vec(config)?)?;
    let path = path.to_str().context("the temporary folder's name is not UTF-8")?;
    Process::start(&format!("worker {}", config.index), &["worker", "--config", path], cores, 0, limit)
}

fn measure_limit(
    spec: &RunSpec,
    workload: &Workload,
    division: &Division,
    frame_bytes: usize,
    folder: &Path,
    progress: &Progress,
) -> Result<Vec<LimitResult>> {
    let Some(duration) = spec.limit else { return Ok(Vec::new()) };
    [1, limit::MERGED]
        .into_iter()
        .map(|frames_per_write| {
            let spec = LimitSpec {
                connections: workload.clients(),
                frame_bytes,
                frames_per_write,
                duration,
                recv_buffers: RECV_BUFFERS,
                recv_buffer_bytes: RECV_BUFFER_BYTES,
                sockets: crate::roles::client_sockets(division, &spec.settings)?,
            };
            limit::measure(&spec, division, folder, progress)
        })
        .collect()
}

/// Bytes of a diff frame that carries one record of this workload.
fn frame_bytes(workload: &Workload) -> Result<usize> {
    let mut encoder = Encoder::default();
    Ok(DIFF_OVERHEAD_BYTES + workload.encode(&mut encoder, 0, 1)?.len())
}

/// What [`crate::samples::Counts::sustained_min`] would be if every push arrived the moment its change is intended.
pub fn planned_min(workload: &Workload) -> f64 {
    let window = workload.window();
    let mut counts = crate::samples::Counts::default();
    let seconds = ((window.end - window.start) / SECOND) as usize;
    counts.by_second = vec![0; seconds + 1];
    for op in workload.planned().filter(|&op| workload.in_window(op as u32)) {
        let second = (workload.ops()[op].at - window.start) / SECOND;
        counts.by_second[second as usize] += u64::from(workload.subscribers_of_op(op));
    }
    counts.sustained_min(seconds)
}
