//! The binary itself, with few clients.

use std::{path::Path, process::Command};

use serde_json::Value;

fn loadgen(folder: &Path, arguments: &str) -> Value {
    let json = folder.join("out.json");
    let few =
        "--clients 120 --publishers 60 --services 20 --subscriptions-per-client 5 --warmup 200ms --no-limit";
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["run", "--json", json.to_str().unwrap()])
        .args(arguments.split(' ').chain(few.split(' ')))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap()
}

#[test]
fn a_storm_is_told_with_the_time_it_took_and_the_memory_with_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let json = loadgen(folder.path(), "--changes-per-sec 100 --duration 4s --reconnect-storm");
    let storm = &json["reconnect_storm"];
    assert_eq!((storm["resets"].as_u64(), storm["removals"].as_u64()), (Some(120), Some(0)));
    assert_eq!(storm["snapshots"].as_u64(), Some(0));
    let (connected, converged) = (storm["connected_s"].as_f64(), storm["converged_s"].as_f64());
    assert!(connected.unwrap() > 0.5 && converged >= connected, "{storm}");
    let memory = &json["idle_memory_bytes"];
    assert!(
        memory["start"].as_u64().unwrap() > 0 && memory["subscribed"].as_u64() >= memory["start"].as_u64()
    );
    assert!(json["idle_bytes_per_client"].is_u64());
}

#[test]
fn stalled_clients_are_told_by_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let json = loadgen(folder.path(), "--changes-per-sec 100 --duration 2s --stalled-clients 7");
    assert_eq!(json["stalled_clients"].as_u64(), Some(7));
    assert!(json["latency_stalled_ms"]["max"].as_f64().unwrap() > 1_000.0);
    assert!(json["latency_ms"]["p99"].as_f64().unwrap() < 1_000.0);
    assert!(json["slow_clients"]["slow"].is_u64() && json["slow_clients"]["merged"].is_u64());
}

#[test]
fn clients_that_do_not_read_cost_the_session_a_bounded_part_of_what_they_lack() {
    let folder = tempfile::tempdir().unwrap();
    let load = "--changes-per-sec 500 --duration 4s --payload-bytes 4096 --stalled-clients 60";
    let narrow = "--set session.client_send_buffer=4096 --set session.push_interval_max=500ms";
    let json = loadgen(folder.path(), &format!("{load} {narrow}"));
    assert_eq!(json["slow_clients"]["slow"].as_u64(), Some(60));
    assert_eq!(json["evicted_stalled"].as_u64(), Some(0));
    // 500 changes/s, each of interest to a quarter of them: 60 clients lack 4 s of 0.5 MB/s.
    let lacking = 60 * 4 * (500 / 4) * 4096;
    let resident = |value: &Value| value.as_u64().unwrap();
    let (before, after) = (&json["idle_memory_bytes"]["subscribed"], &json["rss_bytes"]["session"]);
    let grown = resident(after).saturating_sub(resident(before));
    assert!(grown < lacking / 4, "the session grew by {grown} bytes while {lacking} were not read");
}

#[test]
fn the_highest_good_rate_is_told_with_its_steps() {
    let folder = tempfile::tempdir().unwrap();
    let json = loadgen(folder.path(), "--changes-per-sec 40 --find-max --step-duration 1s --steps-max 2");
    let rates: Vec<f64> = json["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["changes_per_sec"].as_f64().unwrap())
        .collect();
    assert_eq!(rates, [40.0, 50.0]);
    assert_eq!(json["max_good"]["changes_per_sec"].as_f64(), Some(50.0));
    assert!(json["pushes_per_min"].as_f64() == json["max_good"]["pushes_per_min"].as_f64());
    assert!(folder.path().join("out.svg").is_file());
}

#[test]
fn more_stalled_clients_than_can_be_are_refused_with_the_number_that_can() {
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args("run --clients 50 --publishers 45 --services 5 --stalled-clients 6 --no-limit".split(' '))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("here 45 of 50 publish"), "{text}");
}

/// Exit status and standard error of a command that ends before anything is started.
fn refusal(arguments: &str) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen")).args(arguments.split(' ')).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn mistakes_are_told_before_anything_is_started() {
    for (arguments, status, words) in [
        ("run --target 127.0.0.1:1", 1, "nothing listens on 127.0.0.1:1 (connection refused)"),
        (
            "run --json /nosuch/dir/x.json",
            2,
            "cannot write /nosuch/dir/x.json: there is no directory /nosuch/dir",
        ),
        ("run --set session.nope=1", 2, "session.nope"),
        ("run --clients -5", 2, "-5 is not in 1.."),
        ("replay --trace /nosuch.csv", 2, "/nosuch.csv"),
    ] {
        let (code, said) = refusal(arguments);
        assert_eq!(code, Some(status), "{arguments}: {said}");
        assert!(said.contains(words), "{arguments}: {said}");
    }
}

#[test]
fn a_probe_that_was_never_connected_says_why() {
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args("probe --target 127.0.0.1:1 --duration 300ms --patience 100ms".split(' '))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("never connected: connection refused") && !said.contains("0.0 /"), "{said}");
}

#[test]
fn a_leader_that_is_killed_is_succeeded_before_anybody_is_shown_a_wrong_list() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("chaos.json");
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["chaos", "--rounds", "1", "--clients", "12", "--services", "8", "--storage", "none"])
        .args(["--scenario", "kill-leader", "--json", json.to_str().unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let shape = &told["processes"];
    assert_eq!((shape["data"].as_u64(), shape["metas"].as_u64()), (Some(3), Some(1)), "{told}");
    let right = told["rounds"][0]["right_ms"].as_u64();
    // Nobody can be right before the lease of the dead has ended.
    assert!(right > Some(500) && right < Some(30_000), "{told}");
    assert!(said.contains("right again without whoever failed"), "{said}");
}

#[test]
fn several_data_nodes_without_a_control_plane_are_refused_with_what_to_do() {
    for words in [["--scenario", "random"], ["--scenario", "kill-restart"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
            .args(["chaos", "--data", "3", "--meta", "0", "--no-partitions"])
            .args(words)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("--meta"), "{said}");
    }
}

#[test]
fn processes_that_are_killed_and_stopped_cost_no_reader_anything() {
    let folder = tempfile::tempdir().unwrap();
    for (scenario, storage) in [("kill-restart", "disk"), ("kill-restart", "none"), ("pause", "tmpfs")] {
        let json = folder.path().join("chaos.json");
        let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
            .args(["chaos", "--rounds", "2", "--clients", "15", "--services", "8"])
            .args(["--scenario", scenario, "--storage", storage, "--json", json.to_str().unwrap()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{scenario}: {}", String::from_utf8_lossy(&output.stdout));
        let told: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
        assert_eq!((told["verdict"].as_str(), told["partial"].as_u64()), (Some("ok"), Some(0)));
        assert_eq!(told["rounds"].as_array().map(Vec::len), Some(2));
        assert!(told["judged"].as_u64() > Some(100) && told["acknowledged"].as_u64() > Some(100), "{told}");
    }
}
