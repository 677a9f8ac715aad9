//! What this process has of the machine's memory, as the kernel counts it.

use std::fs;

/// Resident memory of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// All of it, in bytes.
    pub bytes: u64,
    /// The part in huge pages, in bytes.
    pub huge: u64,
}

/// Counted page by page: exact, and takes milliseconds.
pub fn resident() -> Resident {
    let text = fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    match field(&text, "Rss:") {
        Some(bytes) => Resident { bytes, huge: field(&text, "AnonHugePages:").unwrap_or(0) },
        None => Resident { bytes: resident_now(), huge: 0 },
    }
}

/// As the kernel has it at hand: off by some pages, for a look many times per second.
pub fn resident_now() -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    field(&text, "VmRSS:").unwrap_or(0)
}

/// Whether the kernel backs memory with huge pages: `always`, `madvise` or `never`.
pub fn huge_pages() -> String {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    chosen.map_or_else(|| "unknown".into(), |(chosen, _)| chosen.into())
}

/// What the environment tells the allocator, such as `thp:always`; empty if nothing.
pub fn allocator_settings() -> String {
    std::env::var("_RJEM_MALLOC_CONF").unwrap_or_default()
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_touched_is_resident() {
        // Whatever else this process frees meanwhile counts against it, so there are some tries.
        let grows = || {
            let before = resident().bytes;
            let held = vec![1u8; 32 << 20];
            let grown = resident().bytes.saturating_sub(before);
            grown >= 31 << 20 && held.len() == 32 << 20 && resident_now() >= 32 << 20
        };
        assert!((0..100).any(|_| grows()));
    }
}
