//! A cluster that is disturbed or watched: chaos and probe.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use clap::Args;
use slotcast_net::data::storage::StorageKind;

use super::above_zero;
use crate::{
    chaos::{ChaosSpec, Scenario, Shape, cluster::Cluster},
    clock::SECOND,
    disturbance::Disturbance,
    preset::{Preset, Wishes},
    probe::ProbeSpec,
    run::RunSpec,
    schedule::Synthetic,
    source::Source,
};

/// Clients of a preset's load under faults, and its window.
const PRESET_CLIENTS: u32 = 10_000;
const PRESET_WINDOW: Duration = Duration::from_secs(30);

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
    /// The load of `run` instead of random operations, with its oracle and its delays; --duration is the window then [default:
    /// headline for grow].
    #[arg(long, value_enum, conflicts_with_all = ["rounds", "operations_per_sec"])]
    pub preset: Option<Preset>,
    /// Data nodes [default: 1 for kill-restart and pause, 2 for grow, else 3].
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
    ///
    /// # Errors
    /// Rounds of a scenario that has none.
    pub fn load(&self) -> Result<Option<RunSpec>> {
        ensure!(
            self.scenario != Scenario::Grow || self.rounds.is_none(),
            "--rounds does not go with grow, which adds one data node and empties one: say --duration, the window of its load"
        );
        let wishes = Wishes {
            clients: Some(self.clients.unwrap_or(PRESET_CLIENTS)),
            services: self.services,
            ..Wishes::default()
        };
        let preset = self.preset.or((self.scenario == Scenario::Grow).then_some(Preset::Headline));
        let Some(preset) = preset else { return Ok(None) };
        let (shape, notes) = preset.scaled(&wishes);
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
        Ok(Some(RunSpec {
            source,
            targets: Vec::new(),
            settings: self.set.clone(),
            session_cores: None,
            workers: None,
            disturbance: Disturbance::default(),
            limit: None,
            drain: Duration::from_secs(15),
        }))
    }

    /// The run with these settings.
    pub fn spec(&self) -> ChaosSpec {
        let moves = self.scenario == Scenario::MoveSlot;
        let is_own = self.preset.is_none() || self.scenario == Scenario::Grow;
        let usual = if is_own { self.scenario.shape() } else { Shape::CLUSTER };
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        chaos: ChaosArgs,
    }

    #[test]
    fn rounds_of_a_scenario_without_any_are_refused() {
        let load = |line: &str| Line::try_parse_from(line.split(' ')).unwrap().chaos.load();
        let refused = load("chaos --scenario grow --rounds 3").unwrap_err().to_string();
        assert!(refused.contains("--rounds") && refused.contains("--duration"), "{refused}");
        assert!(load("chaos --scenario grow --duration 5s").unwrap().is_some());
        assert!(load("chaos --scenario move-slot --rounds 3").unwrap().is_none());
    }
}
