//! The command line.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Parser, Subcommand, builder::RangedU64ValueParser};
use slotcast_net::data::storage::StorageKind;

use crate::{
    chaos::{ChaosSpec, Scenario, Shape, cluster::Cluster},
    clock::SECOND,
    disturbance::Disturbance,
    ingest::IngestSpec,
    links::{LinksSpec, core::Plant},
    preset::{Preset, Wishes},
    probe::ProbeSpec,
    replay::Replay,
    run::RunSpec,
    schedule::Synthetic,
    source::Source,
    timing::Timing,
    trace::Input,
    workload::PAYLOAD_HEAD_BYTES,
};

/// Clients of a preset's load under faults, and its window.
const PRESET_CLIENTS: u32 = 10_000;
const PRESET_WINDOW: Duration = Duration::from_secs(30);

/// Drives a Slotcast cluster with very many clients, checks every list they get, and measures how long it took.
#[derive(Parser, Debug)]
#[command(name = "loadgen", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Replays a bundled trace of a real registry over 5,000 connections, in about half a minute.
    Demo(DemoArgs),
    /// Runs a made-up workload at a steady rate.
    Run(RunArgs),
    /// Runs the same workload over a grid of settings, and recommends values.
    Sweep(SweepArgs),
    /// Replays a trace file.
    Replay(ReplayArgs),
    /// Measures what the bare sockets of this machine give, with no registry at all.
    Limit(LimitArgs),
    /// Measures a data node by itself: links that want everything, and one that changes it.
    Links(LinksArgs),
    /// Registers publishers into one core of a data node as fast as it takes them, and reads them all back.
    Ingest(IngestArgs),
    /// Kills or stops processes of a cluster of its own under load, and judges every list that reaches a client.
    Chaos(ChaosArgs),
    /// Watches running sessions from outside, for as long as it is wanted, with a little data of its own.
    Probe(ProbeArgs),
    /// A role of the embedded cluster.
    #[command(hide = true)]
    Role {
        /// Which.
        #[command(subcommand)]
        role: RoleCommand,
    },
    /// A worker of a run.
    #[command(hide = true)]
    Worker(ChildArgs),
    /// The receiving process of `links`.
    #[command(hide = true)]
    LinksWorker(ChildArgs),
    /// The registering process of `ingest`.
    #[command(hide = true)]
    IngestWorker(ChildArgs),
    /// The sending end of the bare measurement.
    #[command(hide = true)]
    LimitSender(ChildArgs),
    /// A receiving end of the bare measurement.
    #[command(hide = true)]
    LimitReceiver(ChildArgs),
}

/// A role of the embedded cluster.
#[derive(Subcommand, Debug)]
pub enum RoleCommand {
    /// The data node.
    Data(ChildArgs),
    /// The session.
    Session(ChildArgs),
    /// The control plane.
    Meta(ChildArgs),
}

/// Arguments of a child process.
#[derive(Args, Debug)]
pub struct ChildArgs {
    /// Its configuration file.
    #[arg(long)]
    pub config: PathBuf,
}

/// Where results go.
#[derive(Args, Clone, Default, Debug)]
pub struct Output {
    /// Write all results as JSON.
    #[arg(long, value_name = "PATH")]
    pub json: Option<PathBuf>,
    /// Write an HdrHistogram log of the delays, one histogram per second.
    #[arg(long, value_name = "PATH")]
    pub hdr: Option<PathBuf>,
    /// Write the chart (SVG) here; otherwise it goes beside the JSON, or to a temporary file.
    #[arg(long, value_name = "PATH")]
    pub chart: Option<PathBuf>,
}

/// What runs where.
#[derive(Args, Clone, Default, Debug)]
pub struct Setting {
    /// Connect to running sessions instead of an embedded cluster; may be repeated.
    #[arg(long, value_name = "ADDR")]
    pub target: Vec<SocketAddr>,
    /// Worker processes [default: one per core that is not the session's alone].
    #[arg(long, value_parser = count())]
    pub workers: Option<usize>,
    /// Cores of the embedded session [default: half].
    #[arg(long, value_parser = count())]
    pub session_cores: Option<usize>,
    /// Frames that the embedded session concatenates in one write, at most.
    #[arg(long, value_parser = count())]
    pub push_batch_max: Option<usize>,
    /// Shortest time between two rounds of writes of the embedded session.
    #[arg(long, value_name = "DURATION")]
    pub push_interval_min: Option<humantime::Duration>,
    /// Any setting of the embedded cluster, such as `session.client_send_buffer=32768`; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Connections per second that drop, come back at once and resume.
    #[arg(long, default_value_t = 0.0)]
    pub reconnects_per_sec: f64,
    /// Clients that stop reading when the window opens, keep their connections, and read again when it is over.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub stalled_clients: u32,
    /// Reset all clients in the middle of the window, within a second; they come back as fast as they are let in.
    #[arg(long, conflicts_with = "stalled_clients")]
    pub reconnect_storm: bool,
    /// Longest wait for what is on its way at the end.
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    pub drain: humantime::Duration,
    /// Do not measure the bare limit of the machine before the run.
    #[arg(long)]
    pub no_limit: bool,
    /// How long each of the two bare measurements takes.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = above_zero)]
    pub limit_duration: humantime::Duration,
}

/// Arguments of `demo`.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Where results go.
    #[command(flatten)]
    pub output: Output,
    /// What runs where.
    #[command(flatten)]
    pub setting: Setting,
    /// Connections.
    #[arg(long, default_value_t = 5_000)]
    pub clients: u32,
    /// Fixes everything drawn.
    #[arg(long, default_value_t = 1)]
    pub rng_seed: u64,
}

/// Arguments of `run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Where results go.
    #[command(flatten)]
    pub output: Output,
    /// What runs where.
    #[command(flatten)]
    pub setting: Setting,
    /// The workload; the numbers below change it.
    #[arg(long, value_enum, default_value = "headline")]
    pub preset: Preset,
    /// Clients, each one connection.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub clients: Option<u32>,
    /// Services (data ids).
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub services: Option<u32>,
    /// Distinct services that each client subscribes to.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub subscriptions_per_client: Option<u32>,
    /// Publishers over all services.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub publishers: Option<u32>,
    /// Planned changes per second.
    #[arg(long, value_parser = factor)]
    pub changes_per_sec: Option<f64>,
    /// Bytes of each payload.
    #[arg(long, default_value_t = 128, value_parser = payload_bytes)]
    pub payload_bytes: usize,
    /// Length of the measuring window.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = above_zero)]
    pub duration: humantime::Duration,
    /// Changes go on for this long before the window opens.
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    pub warmup: humantime::Duration,
    /// Raise the rate of changes step by step, from the preset's on, until the delays are no longer good (p999 above 1 s),
    /// and tell the highest rate that was.
    #[arg(long, conflicts_with_all = ["reconnect_storm", "stalled_clients", "hdr", "target"])]
    pub find_max: bool,
    /// Length of the window of each step of `--find-max`.
    #[arg(long, value_name = "DURATION", default_value = "15s", requires = "find_max", value_parser = above_zero)]
    pub step_duration: humantime::Duration,
    /// Steps of `--find-max`, at most.
    #[arg(long, value_name = "N", default_value_t = 24, requires = "find_max")]
    pub steps_max: usize,
    /// Draw services with Zipf weights of this exponent instead of visiting them in turn.
    #[arg(long, value_name = "EXPONENT", num_args = 0..=1, default_missing_value = "1.0")]
    pub skew: Option<f64>,
    /// Fixes everything drawn.
    #[arg(long, default_value_t = 1)]
    pub rng_seed: u64,
}

/// Arguments of `sweep`: its own, and those of `run`, which all points share.
#[derive(Args, Debug)]
pub struct SweepArgs {
    /// A setting with its values, such as `data.journal_batch_interval=1ms,10ms,100ms`; the section may be left out where
    /// only one has the setting. May be repeated: all combinations are run.
    #[arg(long, value_name = "KEY=A,B,...", required = true)]
    pub vary: Vec<String>,
    /// Folder for the results of all runs and for what is finished; the same command with the same folder goes on there.
    #[arg(long, value_name = "FOLDER", default_value = "sweep")]
    pub into: PathBuf,
    /// Runs of each point; all points are run in turn, then all again.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    pub repeats: u8,
    /// What each point runs.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Arguments of `replay`.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// Where results go.
    #[command(flatten)]
    pub output: Output,
    /// What runs where.
    #[command(flatten)]
    pub setting: Setting,
    /// Events as CSV, plain or gzipped: `t_ms,event,service,instance,zone,address,port`.
    #[arg(long, value_name = "FILE")]
    pub trace: PathBuf,
    /// Run this many times faster than recorded.
    #[arg(long, value_name = "X", conflicts_with = "cap_gap", value_parser = factor)]
    pub speed: Option<f64>,
    /// Let no gap between events be longer than this.
    #[arg(long, value_name = "DURATION", value_parser = above_zero)]
    pub cap_gap: Option<humantime::Duration>,
    /// Without `--speed` and `--cap-gap`: cap gaps so that the whole lasts about this long.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = above_zero)]
    pub duration: humantime::Duration,
    /// Who subscribes to what, as CSV: `subscriber,service,subscriber_instances`.
    #[arg(long, value_name = "FILE")]
    pub subscriptions: Option<PathBuf>,
    /// Clients [default: as many as the subscriptions have instances, or 1,000].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub clients: Option<u32>,
    /// Distinct services of each client, where subscriptions are drawn.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub subscriptions_per_client: u32,
    /// Bytes of each payload.
    #[arg(long, default_value_t = 128, value_parser = payload_bytes)]
    pub payload_bytes: usize,
    /// Fixes everything drawn.
    #[arg(long, default_value_t = 1)]
    pub rng_seed: u64,
}

/// Arguments of `limit`.
#[derive(Args, Debug)]
pub struct LimitArgs {
    /// Connections.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: u32,
    /// Bytes of one frame.
    #[arg(long, default_value_t = 240)]
    pub frame_bytes: usize,
    /// Frames in one write; may be repeated [default: 1 and 20].
    #[arg(long)]
    pub frames_per_write: Vec<u32>,
    /// How long each measurement takes.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = above_zero)]
    pub duration: humantime::Duration,
    /// Receiving processes [default: one per core].
    #[arg(long, value_parser = count())]
    pub workers: Option<usize>,
    /// Write the results as JSON.
    #[arg(long, value_name = "PATH")]
    pub json: Option<PathBuf>,
}

/// Arguments of `links`.
#[derive(Args, Debug)]
pub struct LinksArgs {
    /// Session links, each of which wants everything.
    #[arg(long, default_value_t = 370, value_parser = clap::value_parser!(u32).range(1..=4_000))]
    pub sessions: u32,
    /// Planned changes per second.
    #[arg(long, default_value_t = 13_500.0, value_parser = factor)]
    pub changes_per_sec: f64,
    /// Services (data ids).
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub services: u32,
    /// Publishers over all services.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub publishers: u32,
    /// Bytes of each payload.
    #[arg(long, default_value_t = 128, value_parser = payload_bytes)]
    pub payload_bytes: usize,
    /// Length of the measuring window.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = above_zero)]
    pub duration: humantime::Duration,
    /// Changes go on for this long before the window opens.
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    pub warmup: humantime::Duration,
    /// Longest wait for what is on its way at the end.
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    pub drain: humantime::Duration,
    /// Any setting of the data node, such as `data.link_buffer_max=1048576`; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Do not measure the bare limit of the machine after the run.
    #[arg(long)]
    pub no_limit: bool,
    /// How long each of the two bare measurements takes.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = above_zero)]
    pub limit_duration: humantime::Duration,
    /// Fixes everything drawn.
    #[arg(long, default_value_t = 1)]
    pub rng_seed: u64,
    /// Write all results as JSON.
    #[arg(long, value_name = "PATH")]
    pub json: Option<PathBuf>,
    /// Makes a fault at one link, to show that the verdict notices.
    #[arg(long, value_enum, hide = true)]
    pub plant: Option<Plant>,
}

/// Arguments of `ingest`.
#[derive(Args, Debug)]
pub struct IngestArgs {
    /// Session links.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4_000))]
    pub sessions: u32,
    /// Registrations at most, over all links; rounded up to whole data ids.
    #[arg(long, default_value_t = 4_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub publishers: u64,
    /// Registrations of each data id.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub per_datum: u32,
    /// Bytes of each payload.
    #[arg(long, default_value_t = 128, value_parser = payload_bytes)]
    pub payload_bytes: usize,
    /// No more is sent after this long.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = above_zero)]
    pub duration: humantime::Duration,
    /// Any setting of the data node, such as `data.validate_records=false`; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Do not measure the bare limit of the machine after the run.
    #[arg(long)]
    pub no_limit: bool,
    /// How long each of the two bare measurements takes.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = above_zero)]
    pub limit_duration: humantime::Duration,
    /// Write all results as JSON.
    #[arg(long, value_name = "PATH")]
    pub json: Option<PathBuf>,
    /// Let the data node take its memory while it registers, not at its start.
    #[arg(long)]
    pub fresh_memory: bool,
    /// Takes one registration for wrong, to show that the verdict notices.
    #[arg(long, hide = true)]
    pub plant: bool,
}

/// Arguments of `chaos`.
#[derive(Args, Debug)]
pub struct ChaosArgs {
    /// What fails.
    #[arg(long, value_enum, default_value = "kill-restart")]
    pub scenario: Scenario,
    /// Rounds; in each something fails once [default: 10, or as many as --duration has room for].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: Option<u32>,
    /// Begin no round after this long.
    #[arg(long, value_name = "DURATION", value_parser = above_zero)]
    pub duration: Option<humantime::Duration>,
    /// The load of `run` instead of random operations, with its oracle and its delays; --duration is the window then.
    #[arg(long, value_enum, conflicts_with_all = ["rounds", "operations_per_sec"])]
    pub preset: Option<Preset>,
    /// Data nodes [default: 1 for kill-restart and pause, else 3].
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub data: Option<u8>,
    /// Sessions [default: 2].
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub sessions: Option<u8>,
    /// Processes of the control plane; several keep their table in an etcd that is started for them [default: 2 for random where
    /// there is an etcd, else 1 where there are several data nodes].
    #[arg(long, value_parser = clap::value_parser!(u8).range(..=5))]
    pub meta: Option<u8>,
    /// Let `random` cut no process off from the others. It does that where network namespaces are permitted (to root, mostly).
    #[arg(long)]
    pub no_partitions: bool,
    /// Where the data nodes keep their slots.
    #[arg(long, value_parser = storage, default_value = "disk")]
    pub storage: StorageKind,
    /// Clients, each one connection [default: 40; 22 for move-slot; 10,000 with a preset].
    #[arg(long, value_parser = clap::value_parser!(u32).range(3..))]
    pub clients: Option<u32>,
    /// Services (data ids) [default: 24; 100 for move-slot].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub services: Option<u32>,
    /// Operations of all clients per second.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub operations_per_sec: u32,
    /// Any setting of the cluster, such as `data.journal_batch_interval="1s"`; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Fixes faults and operations; how they meet is up to the machine.
    #[arg(long, default_value_t = 1)]
    pub rng_seed: u64,
    /// Write all results as JSON.
    #[arg(long, value_name = "PATH")]
    pub json: Option<PathBuf>,
}

/// Arguments of `probe`.
#[derive(Args, Debug)]
pub struct ProbeArgs {
    /// A session to watch; may be repeated, and each sees what is changed over the others.
    #[arg(long, value_name = "ADDR", required = true)]
    pub target: Vec<SocketAddr>,
    /// Show Prometheus metrics at `/metrics` here, and at `/readyz` whether the last round was good.
    #[arg(long, value_name = "ADDR")]
    pub http: Option<SocketAddr>,
    /// Time from one change to the next.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = above_zero)]
    pub interval: humantime::Duration,
    /// A change that is not in every list after this long is late.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = above_zero)]
    pub patience: humantime::Duration,
    /// Data ids of its own.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub services: u32,
    /// End by itself after this long [default: when it is told to].
    #[arg(long, value_name = "DURATION", value_parser = above_zero)]
    pub duration: Option<humantime::Duration>,
    /// Write all results as JSON at the end.
    #[arg(long, value_name = "PATH")]
    pub json: Option<PathBuf>,
}

impl Command {
    /// The files that results go to, as far as they are named.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        fn of(output: &Output) -> [Option<&Path>; 3] {
            [output.json.as_deref(), output.hdr.as_deref(), output.chart.as_deref()]
        }
        let files = match self {
            Command::Demo(args) => of(&args.output),
            Command::Run(args) => of(&args.output),
            Command::Sweep(args) => of(&args.run.output),
            Command::Replay(args) => of(&args.output),
            Command::Limit(args) => [args.json.as_deref(), None, None],
            Command::Links(args) => [args.json.as_deref(), None, None],
            Command::Ingest(args) => [args.json.as_deref(), None, None],
            Command::Chaos(args) => [args.json.as_deref(), None, None],
            Command::Probe(args) => [args.json.as_deref(), None, None],
            _ => [None; 3],
        };
        files.into_iter().flatten()
    }
}

impl ProbeArgs {
    /// The probe with these settings.
    pub fn spec(&self) -> ProbeSpec {
        ProbeSpec {
            targets: self.target.clone(),
            http: self.http,
            interval: self.interval.into(),
            patience: self.patience.into(),
            services: self.services,
            duration: self.duration.map(Into::into),
        }
    }
}

impl ChaosArgs {
    /// The load, where it is that of a preset.
    pub fn load(&self) -> Option<RunSpec> {
        let wishes = Wishes {
            clients: Some(self.clients.unwrap_or(PRESET_CLIENTS)),
            services: self.services,
            ..Wishes::default()
        };
        let (shape, notes) = self.preset?.scaled(&wishes);
        let window = self.duration.map_or(PRESET_WINDOW, Into::into);
        let source = Source::Synthetic(Synthetic {
            clients: shape.clients,
            services: shape.services,
            subscriptions_per_client: shape.subscriptions_per_client,
            publishers: shape.publishers,
            changes_per_sec: shape.changes_per_sec,
            payload_bytes: 128,
            warmup_ns: 2 * SECOND,
            window_ns: window.as_nanos() as u64,
            skew: None,
            seed: self.rng_seed,
            canaries: 1_000,
            tag: 0,
            notes,
        });
        Some(RunSpec {
            source,
            targets: Vec::new(),
            settings: self.set.clone(),
            session_cores: None,
            workers: None,
            disturbance: Disturbance::default(),
            limit: None,
            drain: Duration::from_secs(15),
        })
    }

    /// The run with these settings.
    pub fn spec(&self) -> ChaosSpec {
        let moves = self.scenario == Scenario::MoveSlot;
        let usual = if self.preset.is_some() { Shape::CLUSTER } else { self.scenario.shape() };
        let data = self.data.map_or(usual.data, usize::from);
        let several = self.scenario == Scenario::Random && Cluster::has_etcd();
        let usually = if several { 2 } else { usual.metas.max(usize::from(data > 1)) };
        let metas = self.meta.map_or(usually, usize::from);
        let sessions = self.sessions.map_or(usual.sessions, usize::from);
        let usually = if moves { 3 } else { 10 };
        let rounds = if self.duration.is_some() { self.rounds } else { self.rounds.or(Some(usually)) };
        ChaosSpec {
            scenario: self.scenario,
            shape: Shape { data, sessions, metas },
            rounds,
            duration: self.duration.map(Into::into),
            storage: self.storage,
            clients: self.clients.unwrap_or(if moves { 22 } else { 40 }),
            services: self.services.unwrap_or(if moves { 100 } else { 24 }),
            operations_per_s: self.operations_per_sec,
            settings: self.set.clone(),
            seed: self.rng_seed,
        }
    }
}

fn storage(text: &str) -> Result<StorageKind, String> {
    match text {
        "none" => Ok(StorageKind::None),
        "disk" => Ok(StorageKind::Disk),
        "tmpfs" => Ok(StorageKind::Tmpfs),
        _ => Err("none, disk or tmpfs".into()),
    }
}

impl IngestArgs {
    /// The run with these settings.
    pub fn spec(&self) -> IngestSpec {
        let reserve = (!self.fresh_memory).then(|| format!("data.reserve_publishers={}", self.publishers));
        IngestSpec {
            sessions: self.sessions,
            publishers: self.publishers,
            per_datum: self.per_datum,
            payload_bytes: self.payload_bytes,
            duration: self.duration.into(),
            settings: reserve.into_iter().chain(self.set.iter().cloned()).collect(),
            limit: (!self.no_limit).then(|| self.limit_duration.into()),
            plant: self.plant,
        }
    }
}

impl LinksArgs {
    /// The run with these settings.
    pub fn spec(&self) -> LinksSpec {
        let synthetic = Synthetic {
            clients: self.sessions,
            services: self.services,
            subscriptions_per_client: self.services,
            publishers: self.publishers,
            changes_per_sec: self.changes_per_sec,
            payload_bytes: self.payload_bytes,
            warmup_ns: nanos(self.warmup),
            window_ns: nanos(self.duration),
            skew: None,
            seed: self.rng_seed,
            canaries: 1_000,
            tag: 0,
            notes: Vec::new(),
        };
        LinksSpec {
            synthetic,
            settings: self.set.clone(),
            limit: (!self.no_limit).then(|| self.limit_duration.into()),
            drain: self.drain.into(),
            plant: self.plant,
        }
    }
}

fn payload_bytes(text: &str) -> Result<usize, String> {
    let bytes: usize = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    let most = slotcast_engine::limits::PAYLOAD_BYTES_MAX;
    let fits = (PAYLOAD_HEAD_BYTES..=most).contains(&bytes);
    if fits { Ok(bytes) } else { Err(format!("from {PAYLOAD_HEAD_BYTES} to {most}")) }
}

fn factor(text: &str) -> Result<f64, String> {
    let factor: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if factor.is_finite() && factor > 0.0 { Ok(factor) } else { Err("must be above 0".into()) }
}

impl Setting {
    /// The run of `source` with these settings.
    pub fn spec(&self, source: Source) -> RunSpec {
        let mut settings = self.set.clone();
        settings.extend(self.push_batch_max.map(|frames| format!("session.push_batch_max={frames}")));
        settings.extend(self.push_interval_min.map(|least| format!("session.push_interval_min=\"{least}\"")));
        RunSpec {
            source,
            targets: self.target.clone(),
            settings,
            session_cores: self.session_cores,
            workers: self.workers,
            disturbance: Disturbance {
                roams: false,
                reconnects_per_sec: self.reconnects_per_sec,
                stalled_clients: self.stalled_clients,
                reconnect_storm: self.reconnect_storm,
            },
            limit: (!self.no_limit).then(|| self.limit_duration.into()),
            drain: self.drain.into(),
        }
    }
}

impl DemoArgs {
    /// The bundled trace, in about half a minute, with few enough subscriptions that any machine follows.
    pub fn source(&self) -> Source {
        Source::Replay(Replay {
            trace: Input::Bundled,
            timing: Timing::Fit(30 * SECOND),
            edges: None,
            clients: Some(self.clients),
            subscriptions_per_client: 4,
            payload_bytes: 128,
            seed: self.rng_seed,
            tag: 0,
        })
    }
}

impl RunArgs {
    /// The preset with the user's numbers.
    pub fn source(&self) -> Source {
        let wishes = Wishes {
            clients: self.clients,
            services: self.services,
            subscriptions_per_client: self.subscriptions_per_client,
            publishers: self.publishers,
            changes_per_sec: self.changes_per_sec,
        };
        let (shape, notes) = self.preset.scaled(&wishes);
        Source::Synthetic(Synthetic {
            clients: shape.clients,
            services: shape.services,
            subscriptions_per_client: shape.subscriptions_per_client,
            publishers: shape.publishers,
            changes_per_sec: shape.changes_per_sec,
            payload_bytes: self.payload_bytes,
            warmup_ns: nanos(self.warmup),
            window_ns: nanos(self.duration),
            skew: self.skew,
            seed: self.rng_seed,
            canaries: 1_000,
            tag: 0,
            notes,
        })
    }
}

impl ReplayArgs {
    /// The trace with the user's scaling.
    pub fn source(&self) -> Source {
        let timing = match (self.speed, self.cap_gap) {
            (Some(factor), _) => Timing::Speed(factor),
            (None, Some(cap)) => Timing::CapGap(nanos(cap)),
            (None, None) => Timing::Fit(nanos(self.duration)),
        };
        Source::Replay(Replay {
            trace: Input::Path(self.trace.clone()),
            timing,
            edges: self.subscriptions.clone().map(Input::Path),
            clients: self.clients,
            subscriptions_per_client: self.subscriptions_per_client,
            payload_bytes: self.payload_bytes,
            seed: self.rng_seed,
            tag: 0,
        })
    }
}

fn count() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

fn above_zero(text: &str) -> Result<humantime::Duration, String> {
    let duration: humantime::Duration = text.parse().map_err(|_| "a duration such as 500ms or 60s")?;
    if duration.is_zero() { Err("must be above 0".into()) } else { Ok(duration) }
}

fn nanos(duration: humantime::Duration) -> u64 {
    let duration: Duration = duration.into();
    duration.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use slotcast_net::output::with_negative_numbers;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("loadgen demo").is_ok());
        assert!(
            parse("loadgen run --preset idle --clients 1000 --duration 5s --skew --json out.json").is_ok()
        );
        assert!(parse("loadgen replay --trace x.csv --speed 2 --cap-gap 1s").is_err());
        assert!(parse("loadgen run --find-max --step-duration 5s").is_ok());
        assert!(parse("loadgen chaos --scenario kill-restart --rounds 3 --storage tmpfs").is_ok());
        assert!(parse("loadgen chaos --storage paper").is_err());
        assert!(
            parse("loadgen chaos --scenario random --duration 5m --data 5 --sessions 3 --meta 1").is_ok()
        );
        assert!(parse("loadgen probe --target 127.0.0.1:1 --target [::1]:2 --duration 1h").is_ok());
        assert!(parse("loadgen probe").is_err());
        assert!(parse("loadgen run --find-max --reconnect-storm").is_err());
        assert!(parse("loadgen run --reconnect-storm --stalled-clients 5").is_err());
        assert!(parse("loadgen run --payload-bytes 8").is_err());
        for none in ["--workers 0", "--session-cores 0", "--changes-per-sec 0", "--clients 0"] {
            assert!(parse(&format!("loadgen run {none}")).is_err(), "{none}");
        }
        let said = parse("loadgen run --duration 0s").unwrap_err().to_string();
        assert!(said.contains("--duration") && said.contains("must be above 0"), "{said}");
        let command = with_negative_numbers(Cli::command());
        let refused = command.try_get_matches_from("loadgen run --clients -5".split(' '));
        assert!(refused.unwrap_err().to_string().contains("-5 is not in 1.."));
        assert!(parse("loadgen replay --trace x.csv --speed 0").is_err());
        assert!(parse("loadgen limit --connections 10 --frames-per-write 1 --frames-per-write 5").is_ok());
    }
}
