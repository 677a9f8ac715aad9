//! Clocks and numbers from the operating system, for everybody who must not ask for them himself.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    sync::OnceLock,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use slotcast_engine::id::Nanos;

/// Monotonic time since the process first asked.
pub fn now() -> Nanos {
    static START: OnceLock<Instant> = OnceLock::new();
    // Never zero, so that zero can mean "not yet".
    Nanos(START.get_or_init(Instant::now).elapsed().as_nanos() as u64 + 1)
}

/// Processor time that this process has used, user and system, to a hundredth of a second. Zero where the system does not tell.
pub fn process_cpu() -> Nanos {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may hold anything, so fields are counted behind the last one.
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    let used = ticks() + ticks();
    Nanos(used * (Nanos::SECOND / rustix::param::clock_ticks_per_second().max(1)))
}

/// The minute of the day in UTC, 0 to 1439.
pub fn utc_minute() -> u32 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    (seconds / 60 % 1440) as u32
}

/// An unpredictable number that no other process and no other call has.
pub fn unique() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.write_u128(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos()));
    hasher.finish() | 1
}
