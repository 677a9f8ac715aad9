//! Where a measurement comes from: machine, commit and command line, as far as results may name them: no host name, no path.

use std::{fs, process::Command};

use serde_json::{Value, json};

/// `results`, an object, with where they come from: the keys `command`, `commit` and `machine`.
pub fn stamped(mut results: Value) -> Value {
    results["command"] = command().into();
    results["commit"] = commit().into();
    results["machine"] = machine();
    results
}

/// Processor, cores that this process may use, memory and kernel.
fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (cpuinfo, meminfo) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let value = |text: &str, key: &str| {
        text.lines().find_map(|line| Some(line.strip_prefix(key)?.split_once(':')?.1.trim().to_owned()))
    };
    let kib = value(&meminfo, "MemTotal");
    let kib = kib.and_then(|kib| kib.split_whitespace().next()?.parse::<u64>().ok());
    json!({
        "cpu": value(&cpuinfo, "model name").unwrap_or_else(|| "unknown".into()),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "memory_bytes": kib.unwrap_or(0) * 1024,
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
    })
}

/// The commit that this was built from, as well as it can be told: from the environment, or from where it runs.
pub fn commit() -> String {
    if let Ok(commit) = std::env::var("SLOTCAST_COMMIT") {
        return commit;
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    match git(&["rev-parse", "HEAD"]) {
        Some(head) => match git(&["status", "--porcelain", "--untracked-files=no"]) {
            Some(changes) if !changes.is_empty() => format!("{head} with changes"),
            _ => head,
        },
        None => "unknown".into(),
    }
}

/// The command line without the folder of the binary.
pub fn command() -> String {
    let mut arguments = std::env::args();
    let binary = arguments.next().unwrap_or_default();
    let name = binary.rsplit('/').next().unwrap_or_default().to_owned();
    let quote = |argument: String| if argument.contains(' ') { format!("'{argument}'") } else { argument };
    std::iter::once(name).chain(arguments.map(quote)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_machine_is_described_without_naming_it() {
        let machine = super::machine();
        assert!(machine["cores"].as_u64() >= Some(1) && machine["memory_bytes"].as_u64() > Some(1 << 20));
        assert!(machine["kernel"].as_str().is_some_and(|kernel| !kernel.is_empty()));
        let stamped = super::stamped(serde_json::json!({ "figure": 1 }));
        assert_eq!((&stamped["figure"], &stamped["machine"]), (&serde_json::json!(1), &machine));
        assert!(stamped["command"].is_string() && stamped["commit"].is_string());
        assert!(!super::command().contains('/') || std::env::args().skip(1).any(|it| it.contains('/')));
    }
}
