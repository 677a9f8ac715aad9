//! The data node by itself, and the machine's limit: links, ingest and limit.

use std::path::PathBuf;

use clap::Args;

use super::{above_zero, count, factor, nanos, payload_bytes};
use crate::{
    ingest::IngestSpec,
    links::{LinksSpec, core::Plant},
    schedule::Synthetic,
};

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
