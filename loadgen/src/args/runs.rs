//! Whole runs: demo, run, sweep and replay.

use std::path::PathBuf;

use clap::Args;

use super::{Output, Setting, above_zero, factor, nanos, payload_bytes};
use crate::{
    clock::SECOND,
    preset::{Preset, Wishes},
    replay::Replay,
    schedule::Synthetic,
    source::Source,
    timing::Timing,
    trace::Input,
};

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
