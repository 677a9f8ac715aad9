//! As many seeds of the simulator as fit, and that a seed is one run.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bench::simulate::{
    campaign::{CampaignSpec, campaign},
    explain,
    plan::{Plan, Shape},
    run,
    shrink::shrink,
    trace,
};

/// Seeds in which everything that is counted has to be reached, but for what is rare.
const SEEDS_THOROUGH: u64 = 200;

/// Runs seeds of a shape, and explains the first that fails.
fn seeds(shape: Shape, budget: Duration) {
    let spec = CampaignSpec {
        shape,
        first: 1,
        seeds: u64::MAX,
        budget: Some(budget),
        seeds_min: 20,
        threads: 1,
        keep_going: false,
    };
    let found = campaign(&spec, |_| {});
    println!("{} seeds, {:.0} simulated seconds per second\n{}", found.seeds, found.speed(), found.table());
    if let Some((seed, violation)) = found.failed.first() {
        let plan = Plan::of(shape, *seed);
        let shrunk = shrink(&plan, Duration::from_secs(20), |_| {}).map_or(plan, |shrunk| shrunk.plan);
        panic!("{}\nseed {seed} fails at {}: {}", explain(&shrunk), trace::ms(violation.at), violation.text);
    }
    assert!(
        found.seeds < SEEDS_THOROUGH || found.missed(spec.shape).is_empty(),
        "never reached: {:?}",
        found.missed(spec.shape)
    );
}

#[test]
fn one_data_node_and_two_sessions_keep_every_promise() {
    seeds(Shape::Single, Duration::from_secs(15));
}

#[test]
fn a_seed_is_one_run() {
    for seed in [1, 77] {
        let (one, other) = (run(Shape::Single, seed), run(Shape::Single, seed));
        assert_eq!(one.hash, other.hash, "seed {seed}");
        assert_eq!(one.reached, other.reached, "seed {seed}");
    }
}
