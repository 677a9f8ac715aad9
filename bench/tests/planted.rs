//! Every planted fault is noticed by the simulator's oracle, in a seed that is clean without it:
//! `cargo test --release -p bench --features planted-faults --test planted`.
#![cfg(feature = "planted-faults")]
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bench::simulate::{
    judge,
    plan::{Plan, Shape},
    planted::{self, Hunt},
};

/// Where to begin to look: seeds that were found to notice a fault. Those behind them are run, too, should it move.
const KNOWN: [(&str, u64); 10] = [
    ("epoch-reused", 3),
    ("tombstone-early", 1),
    ("accept-early", 15),
    ("no-epoch-check", 100),
    ("lease-over-pause", 1),
    ("removal-by-other", 1),
    ("diff-across-fork", 1),
    ("snapshot-stamped-old", 1),
    ("ack-before-apply", 1),
    ("older-table", 1),
];

/// Seeds in which each has to be noticed.
const SEEDS: u64 = 2000;

#[test]
fn every_planted_fault_is_noticed() {
    assert!(planted::ALL.iter().map(|it| it.name).eq(KNOWN.iter().map(|(name, _)| *name)));
    for (name, first) in KNOWN {
        let hunt = Hunt { shape: Shape::Cluster, first, seeds: SEEDS, threads: 1, shrink: Duration::ZERO };
        let caught = planted::find(name).unwrap().hunt(&hunt, |_| {});
        let caught = caught.unwrap_or_else(|| panic!("{name} is not noticed in {SEEDS} seeds"));
        println!("{name}: seed {}, after {} seeds: {}", caught.seed, caught.seeds, caught.violation.text);
        let plan = Plan::of(Shape::Cluster, caught.seed);
        assert!(judge(&plan).0.failure.is_none(), "{name}: seed {} fails without it", caught.seed);
    }
}

#[test]
fn a_failing_seed_is_shrunk_to_a_history_that_still_fails() {
    let hunt =
        Hunt { shape: Shape::Cluster, first: 1, seeds: 100, threads: 1, shrink: Duration::from_secs(20) };
    let caught = planted::find("removal-by-other").unwrap().hunt(&hunt, |_| {}).unwrap();
    let (all, left) = caught.lengths;
    assert!(left * 10 < all, "{left} of {all} happenings are left");
    let again = judge(&caught.plan).0.failure.unwrap().0;
    assert_eq!(again.text, caught.violation.text);
}
