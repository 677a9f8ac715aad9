//! Whole-system simulation: the production state machines of every role on one thread, in virtual time, from a seed.
//!
//! One seed is one run: data nodes, sessions, clients and, in a cluster, the control plane, for a minute of faults and
//! operations, then quiet. The [`oracle`] says what is promised and checks it throughout. A failing seed is run again with ever
//! less in it, until nothing can be left out.

pub mod rng;

pub mod network;

pub mod trace;

pub mod control;

pub mod disks;

pub mod hosts;

pub mod plan;

pub mod faults;

pub mod liars;

pub mod strangers;

pub mod operations;

pub mod oracle;

pub mod reached;

pub mod world;

pub mod shrink;

pub mod campaign;

pub mod planted;

use oracle::Violation;
use plan::{Plan, Shape};
use world::{Outcome, World};

/// Runs a plan, if a fault is planted in it. A failure that is there without that fault shows nothing about it: then there is
/// none here, and the flag says so.
pub fn judge(plan: &Plan) -> (Outcome, bool) {
    let mut outcome = execute(plan, false);
    let is_excused = plan.planted.is_some()
        && outcome.failure.is_some()
        && execute(&plan.with_planted(None), false).failure.is_some();
    if is_excused {
        outcome.failure = None;
    }
    (outcome, is_excused)
}

/// Runs a seed.
pub fn run(shape: Shape, seed: u64) -> Outcome {
    execute(&Plan::of(shape, seed), false)
}

/// Runs a plan, and keeps what a person wants to read of it if it is `traced`. A role that panics breaks a promise, too.
pub fn execute(plan: &Plan, traced: bool) -> Outcome {
    let run = || World::new(plan.clone(), traced).run();
    planted::plant_here(plan.planted);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    planted::plant_here(None);
    outcome.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        let text = format!("a role panics: {}", said.unwrap_or_default());
        let violation = Violation { at: world::END, datum: None, text };
        Outcome {
            reached: Default::default(),
            hash: 0,
            simulated: 0,
            failure: Some((violation, String::new())),
        }
    })
}

/// Tells all about the failure of a plan: every fault that is left in it, the trace of the data id concerned, the violation.
pub fn explain(plan: &Plan) -> String {
    let outcome = execute(plan, true);
    let Some((violation, trace)) = outcome.failure else {
        return format!("seed {} failed once and not again: the simulation is not deterministic", plan.seed);
    };
    let counts = format!(
        "{} faults, {} clients, {} operations",
        plan.faults.len(),
        plan.clients.len(),
        plan.operations.len()
    );
    let text = &violation.text;
    format!("{trace}\nseed {} with {counts} fails at {}: {text}", plan.seed, trace::ms(violation.at))
}
