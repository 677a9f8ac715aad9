//! Faults on purpose: real processes are killed, stopped and started again under load, and every list that reaches a client
//! meanwhile is judged.

pub mod truth;

pub mod trajectory;

pub mod socket;

pub mod participant;

pub mod network;

pub mod cluster;

pub mod report;

mod scenario;

mod move_slot;

pub mod loaded;

mod world;

pub use cluster::Shape;
pub use scenario::Scenario;

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use slotcast_net::data::storage::StorageKind;

use crate::progress::Progress;

/// Clients that one thread steps through every millisecond.
const CLIENTS_MAX: u32 = 1_000;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct ChaosSpec {
    /// What kind of faults.
    pub scenario: Scenario,
    /// The processes.
    pub shape: Shape,
    /// Rounds: in each something fails once. None: as many as `duration` has room for.
    pub rounds: Option<u32>,
    /// No round begins after this long.
    pub duration: Option<Duration>,
    /// Where the data node keeps its slots.
    pub storage: StorageKind,
    /// Clients.
    pub clients: u32,
    /// Data ids.
    pub services: u32,
    /// Operations of all clients per second.
    pub operations_per_s: u32,
    /// Settings over the defaults, as `section.key=value`.
    pub settings: Vec<String>,
    /// Fixes faults and operations; how they meet is up to the machine.
    pub seed: u64,
}

/// Carries it out. A violation is no error: the outcome tells it.
pub fn run(spec: &ChaosSpec, progress: &Progress) -> Result<Outcome> {
    ensure!(
        spec.shape.metas > 0 || !spec.scenario.needs_cluster(),
        "this scenario needs a control plane: leave --meta at 1"
    );
    ensure!(
        spec.clients <= CLIENTS_MAX,
        "{} clients at most, unless a --preset says what they do",
        CLIENTS_MAX
    );
    if let Some(network) = network::Network::inside() {
        network.lay()?;
    }
    match spec.scenario {
        Scenario::MoveSlot => move_slot::run(spec, progress),
        Scenario::Grow => bail!("grow goes with the load of a preset"),
        _ => world::run(spec, progress),
    }
}

/// A slot that moved from one data node to another.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Moved {
    /// Publishers in it, as the node counts them that has it now.
    pub publishers: u64,
    /// Milliseconds from the order until the other node led it and the one before held nothing.
    pub moved_ms: u64,
    /// Milliseconds from the order until every list showed all that was written meanwhile.
    pub right_ms: u64,
    /// The longest that a write meanwhile waited for its acknowledgement, in milliseconds.
    pub longest_write_ms: u64,
    /// Writes acknowledged meanwhile.
    pub acknowledged: u64,
}

/// One round.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Round {
    /// What failed.
    pub fault: String,
    /// Milliseconds from the fault until all processes were ready again.
    pub ready_ms: u64,
    /// Milliseconds from the fault until every list showed all that was written then and right after it, while whoever failed was
    /// still away. Only where that is measured.
    pub right_ms: Option<u64>,
    /// Milliseconds from the last operation until every list was as it should be.
    pub settled_ms: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The rounds.
    pub rounds: Vec<Round>,
    /// Operations of clients.
    pub operations: u64,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Of these, the ones of persistent registrations, which are durable.
    pub durable: u64,
    /// Diffs and snapshots received.
    pub diffs: u64,
    /// Lists judged.
    pub judged: u64,
    /// Of these, the ones in which something removed lingered, because a new run of the data node could not tell of it.
    pub lingering: u64,
    /// Slots moved, where that is what was asked for.
    pub moves: Vec<Moved>,
    /// What was wrong.
    pub violations: Vec<truth::Violation>,
    /// For each bad round the story of the first data id that something was wrong with.
    pub story: Vec<String>,
    /// Seconds that it took.
    pub seconds: f64,
}
