//! Whole-system simulation: the production state machines of every role on one thread, in virtual time, from a seed.
//!
//! One seed is one run: two sessions, a data node and a dozen or more clients for a minute of faults and operations, then
//! quiet. `SLOTCAST_SIM_SEEDS=n` runs that many seeds, `SLOTCAST_SIM_FIRST=n` starts there; `SLOTCAST_SIM_SEED=n` replays
//! one with a trace of the data id concerned.

mod network;
mod oracle;
mod trace;
mod world;

use std::time::{Duration, Instant};

use world::{Outcome, Reached, World};

/// How long the seeds of an ordinary test run may take together.
const BUDGET: Duration = Duration::from_secs(15);
/// Seeds that are run however long they take.
const SEEDS_MIN: u64 = 20;
/// Seeds in which everything that is counted has to be reached, but for what is rare.
const SEEDS_THOROUGH: u64 = 200;
/// Reached in few seeds, or in none while all is well.
const RARE: [&str; 7] = [
    "gaps",
    "older_diffs",
    "repaired_removals",
    "refused_frames",
    "stale_replays",
    "stale_contents",
    "unheard_moves",
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn run(seed: u64) -> Outcome {
    World::new(seed, false).run()
}

/// Runs a seed again with a trace and tells all about its failure.
fn explain(seed: u64) -> String {
    match World::new(seed, true).run().failure {
        Some((violation, trace)) => format!(
            "{trace}\nseed {seed} fails at {}: {}\nreplay: SLOTCAST_SIM_SEED={seed} cargo test -p slotcast-net --test it \
             sim::seeds -- --nocapture",
            trace::ms(violation.at),
            violation.text
        ),
        None => format!("seed {seed} failed once and not again: the simulation is not deterministic"),
    }
}

#[test]
fn seeds() {
    if let Some(seed) = number("SLOTCAST_SIM_SEED") {
        let outcome = run(seed);
        println!("seed {seed}: {:?}", outcome.reached);
        assert!(outcome.failure.is_none(), "{}", explain(seed));
        return;
    }
    let wanted = number("SLOTCAST_SIM_SEEDS");
    let first = number("SLOTCAST_SIM_FIRST").unwrap_or(1);
    let keep_going = number("SLOTCAST_SIM_KEEP_GOING").is_some();
    let began = Instant::now();
    let (mut reached, mut seeds, mut failed) = (Reached::default(), 0, Vec::new());
    for seed in first.. {
        if wanted.map_or(seeds >= SEEDS_MIN && began.elapsed() >= BUDGET, |wanted| seeds >= wanted) {
            break;
        }
        let outcome = run(seed);
        reached.add(&outcome.reached);
        seeds += 1;
        if let Some((violation, _)) = outcome.failure {
            assert!(keep_going, "{}", explain(seed));
            println!("seed {seed} fails at {}: {}", trace::ms(violation.at), violation.text);
            failed.push(seed);
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{seeds} seeds in {seconds:.1} s, {:.1} seeds/s, {} failed",
        seeds as f64 / seconds,
        failed.len()
    );
    let fields = reached.fields();
    fields.iter().for_each(|(name, count)| println!("{name:>24} {count}"));
    assert!(failed.is_empty(), "failed: {failed:?}");
    if seeds >= SEEDS_THOROUGH {
        for (name, count) in fields {
            assert!(count > 0 || RARE.contains(&name), "{name} was never reached");
        }
    }
}

#[test]
fn a_seed_is_one_run() {
    for seed in [1, 77] {
        let (one, other) = (run(seed), run(seed));
        assert_eq!(one.hash, other.hash, "seed {seed}");
        assert_eq!(one.reached.fields(), other.reached.fields(), "seed {seed}");
    }
}
