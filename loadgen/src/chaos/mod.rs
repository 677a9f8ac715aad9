//! Faults on purpose: real processes are killed, stopped and started again under load, and every list that reaches a client
//! meanwhile is judged.

pub mod truth;

pub mod trajectory;

pub mod socket;

pub mod participant;

pub mod cluster;

pub mod report;

mod scenario;

mod world;

pub use scenario::Scenario;
pub use world::run;

use std::time::Duration;

use slotcast_net::data::storage::StorageKind;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct ChaosSpec {
    /// What kind of faults.
    pub scenario: Scenario,
    /// Rounds: in each something fails once.
    pub rounds: u32,
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

/// One round.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Round {
    /// What failed.
    pub fault: String,
    /// Milliseconds from the fault until all processes were ready again.
    pub ready_ms: u64,
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
    /// Diffs and snapshots received.
    pub diffs: u64,
    /// Lists judged.
    pub judged: u64,
    /// Of these, the ones in which something removed lingered, because a new run of the data node could not tell of it.
    pub lingering: u64,
    /// What was wrong.
    pub violations: Vec<truth::Violation>,
    /// For each bad round the story of the first data id that something was wrong with.
    pub story: Vec<String>,
    /// Seconds that it took.
    pub seconds: f64,
}
