//! The commands that measure a data node by itself: right runs are ok, and a planted mismatch makes the verdict fail.

use std::process::Command;

use serde_json::Value;

/// Runs the load generator; returns whether it said that all is well, and its JSON.
fn run(arguments: &[&str]) -> (bool, Value) {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("out.json");
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(arguments)
        .args(["--no-limit", "--json", json.to_str().unwrap()])
        .output()
        .unwrap();
    let text = std::fs::read_to_string(&json)
        .unwrap_or_else(|_| panic!("no results: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.success(), serde_json::from_str(&text).unwrap())
}

fn links(more: &[&str]) -> (bool, Value) {
    let small = ["links", "--sessions", "6", "--services", "50", "--publishers", "300"];
    let short = ["--changes-per-sec", "1000", "--duration", "1s", "--warmup", "200ms", "--drain", "2s"];
    run(&[&small[..], &short[..], more].concat())
}

fn number(json: &Value, key: &str) -> u64 {
    json[key].as_u64().unwrap_or_else(|| panic!("{key} in {json:#}"))
}

#[test]
fn every_diff_on_every_link_is_checked() {
    let (ok, json) = links(&[]);
    assert!(ok && json["verdict"] == "ok", "{json:#}");
    assert_eq!(number(&json, "connections"), 6);
    assert_eq!(number(&json, "changes"), 1000);
    assert_eq!(number(&json, "change_deliveries"), 6000);
    assert_eq!(number(&json, "snapshots"), 6 * 50);
    assert!(json["diffs_per_s"].as_f64().unwrap() > 0.0 && json["cpu_s"]["data"].is_number());
}

#[test]
fn a_diff_lost_repeated_or_forged_on_one_link_makes_the_verdict_fail() {
    for plant in ["drop", "repeat", "forge"] {
        let (ok, json) = links(&["--plant", plant]);
        assert!(!ok && json["verdict"] == "failed", "{plant} went unnoticed: {json:#}");
        let wrong = ["missing", "extra", "stale", "partial"].map(|key| number(&json, key));
        assert!(wrong.iter().sum::<u64>() > 0, "{plant}: {json:#}");
    }
}

#[test]
fn links_that_fall_behind_end_with_the_same_lists() {
    // A buffer of nothing: whoever cannot take a turn's diffs at once keeps a revision and catches up.
    let (ok, json) = links(&["--set", "data.link_buffer_max=1"]);
    assert!(ok, "{json:#}");
    assert_eq!(number(&json, "change_deliveries"), 6000);
}

#[test]
fn everything_registered_is_read_back() {
    let small = ["ingest", "--sessions", "3", "--publishers", "20010", "--per-datum", "10"];
    let (ok, json) = run(&[&small[..], &["--set", "data.settle=\"1ms\""]].concat());
    assert!(ok && json["verdict"] == "ok", "{json:#}");
    assert_eq!((number(&json, "registrations"), number(&json, "registrations_exact")), (20_010, 20_010));
    assert_eq!(number(&json, "snapshots"), 2001);
    let (ok, json) = run(&[&small[..], &["--plant"]].concat());
    assert!(!ok && json["verdict"] == "failed", "{json:#}");
    assert_eq!((number(&json, "missing"), number(&json, "extra")), (1, 1));
}
