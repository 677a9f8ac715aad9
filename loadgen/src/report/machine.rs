//! The machine and the commit, as far as results may name them: no host name, no path.

use std::{fs, process::Command};

use serde_json::{Value, json};

/// Processor, cores, memory and kernel.
pub fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim()));
    let meminfo = read("/proc/meminfo");
    let kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    json!({
        "cpu": model.unwrap_or("unknown"),
        "cores": crate::process::cores().len(),
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
        let output =
            Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
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
    let name = binary.rsplit('/').next().unwrap_or("loadgen").to_owned();
    let quote = |argument: String| if argument.contains(' ') { format!("'{argument}'") } else { argument };
    std::iter::once(name).chain(arguments.map(quote)).collect::<Vec<_>>().join(" ")
}
