//! A small comparison from end to end, with whatever peers are installed.
#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn a_tiny_comparison_measures_what_is_there_and_names_what_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peers.json");
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["peers", "--subscribers", "100", "--topics", "10", "--duration", "1s", "--json"])
        .arg(&path)
        .output()
        .unwrap();
    let (told, said) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{said}");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let rows = json["rows"].as_array().unwrap();
    for (system, binary) in [("Slotcast", ""), ("Redis", "redis-server"), ("NATS", "nats-server")] {
        let of_system: Vec<_> = rows.iter().filter(|row| row["system"] == system).collect();
        if of_system.is_empty() {
            let words = format!("{binary} not found: install the Debian package {binary}");
            assert!(!binary.is_empty() && said.contains(&words), "{said}");
            continue;
        }
        assert_eq!(of_system.len(), 4, "two shapes, each with and without merging");
        for row in of_system {
            let number = |key: &str| row[key].as_f64().unwrap();
            assert_eq!(number("deliveries"), number("rounds") * 100.0, "everybody got every message once");
            assert!(number("rounds") > 0.0 && number("duration_s") >= 1.0);
            assert!(number("wire_bytes") / number("deliveries") >= 240.0);
            assert!(row["round_ms"]["p50"].as_f64().unwrap() > 0.0);
            assert!(row["rss_bytes"]["server"].as_u64().unwrap() > 0);
        }
        assert!(told.contains(system), "{told}");
    }
}

#[test]
fn what_cannot_work_is_refused_with_a_word_on_what() {
    for (arguments, word) in [
        (["--subscribers", "0"], "subscribers"),
        (["--message-bytes", "8"], "message-bytes"),
        (["--topics", "0"], "topics"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_bench")).arg("peers").args(arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(word), "{said}");
    }
}
