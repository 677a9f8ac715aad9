//! Breaking the cluster on purpose: every planted fault has to make the verdict fail, and the same run without a fault has
//! to be clean. `cargo test --release -p loadgen --features planted-faults --test planted`
#![cfg(feature = "planted-faults")]

use std::process::Command;

/// Runs a small load with a fault planted in the session; returns whether the verdict was ok, and the output.
fn verdict(fault: &str) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args([
            "run",
            "--preset",
            "headline",
            "--clients",
            "2000",
            "--duration",
            "6s",
            "--no-limit",
            "--drain",
            "3s",
        ])
        .args(["--reconnects-per-sec", "200"])
        .env("SLOTCAST_FAULT", fault)
        .output()
        .expect("the load generator runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code() == Some(0), text)
}

#[test]
fn every_planted_fault_is_noticed_and_nothing_else() {
    for round in 0..2 {
        let (ok, text) = verdict("none");
        assert!(ok, "round {round}, no fault: {text}");
        for fault in ["drop-diff", "late-resume", "skip-removal"] {
            let (ok, text) = verdict(fault);
            assert!(!ok, "round {round}, {fault} went unnoticed: {text}");
        }
    }
}

#[test]
fn what_is_planted_is_noticed_while_processes_are_killed_too() {
    let verdict = |fault: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
            .args(["chaos", "--rounds", "4"])
            .env("SLOTCAST_FAULT", fault)
            .output()
            .expect("the load generator runs");
        (output.status.code() == Some(0), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (ok, text) = verdict("none");
    assert!(ok, "no fault: {text}");
    for fault in ["late-resume", "skip-removal"] {
        let (ok, text) = verdict(fault);
        assert!(!ok && text.contains("told"), "{fault} went unnoticed, or its story is not told: {text}");
    }
}
