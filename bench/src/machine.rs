//! The machine, the commit and the command, as far as results may name them: no host name, no path.

use std::{fs, process::Command};

use serde_json::{Value, json};

/// Processor, cores, memory and kernel.
pub fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (cpuinfo, meminfo) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let value = |text: &str, key: &str| {
        text.lines().find_map(|line| Some(line.strip_prefix(key)?.split_once(':')?.1.trim().to_owned()))
    };
    let kib = value(&meminfo, "MemTotal");
    let kib = kib.and_then(|kib| kib.split_whitespace().next()?.parse::<u64>().ok());
    json!({
        "cpu": value(&cpuinfo, "model name").unwrap_or_else(|| "unknown".into()),
        "cores": cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
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
    let name = binary.rsplit('/').next().unwrap_or("bench").to_owned();
    std::iter::once(name).chain(arguments).collect::<Vec<_>>().join(" ")
}
