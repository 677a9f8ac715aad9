//! The command line.

mod cluster;
mod data_node;
mod runs;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Parser, Subcommand, builder::RangedU64ValueParser};

use crate::{disturbance::Disturbance, run::RunSpec, source::Source, workload::PAYLOAD_HEAD_BYTES};

pub use self::{
    cluster::{ChaosArgs, ProbeArgs},
    data_node::{IngestArgs, LimitArgs, LinksArgs},
    runs::{DemoArgs, ReplayArgs, RunArgs, SweepArgs},
};

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

fn payload_bytes(text: &str) -> Result<usize, String> {
    let bytes: usize = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    let most = slotcast_engine::limits::PAYLOAD_BYTES_MAX;
    let fits = (PAYLOAD_HEAD_BYTES..=most).contains(&bytes);
    if fits { Ok(bytes) } else { Err(format!("from {PAYLOAD_HEAD_BYTES} to {most}")) }
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

fn factor(text: &str) -> Result<f64, String> {
    let factor: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if factor.is_finite() && factor > 0.0 { Ok(factor) } else { Err("must be above 0".into()) }
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
