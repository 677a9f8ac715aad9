//! How much memory the rings of a user may lock, and what to do when it is all locked.
//!
//! The kernel counts the queues of rings and what is registered with them against RLIMIT_MEMLOCK, per user and not per process, and
//! gives it back some time after a ring is closed. A process with CAP_IPC_LOCK is not counted.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use io_uring::IoUring;
use rustix::{
    process::{Resource, getrlimit},
    thread::{CapabilitySet, capabilities},
};

use super::{RingConfig, probe::ENTRIES_MIN};

/// Receive buffers that a ring has at least.
pub(super) const BUFFERS_MIN: u16 = 16;
/// Where the kernel counts the memory of rings against what its user may lock, each ring takes at most this part of it: the
/// count is per user, and the rings of all its processes are in it.
const LOCKED_PART: u64 = 64;
/// How long a ring of the smallest size is tried for. The kernel gives back what closed rings had locked some time after
/// they were closed.
pub const LOCKED_WAIT: Duration = Duration::from_secs(5);
/// Time between two tries.
pub const LOCKED_PAUSE: Duration = Duration::from_millis(20);

/// Bytes that the kernel may count as locked for one ring; `None` where it does not count.
pub fn budget() -> Option<u64> {
    let limit = getrlimit(Resource::Memlock).current?;
    let is_capable = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    (!(is_capable && is_global())).then_some(limit / LOCKED_PART)
}

/// Whether this process has its capabilities over the whole machine. In a user namespace of its own, a container's for example,
/// they don't count here.
fn is_global() -> bool {
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]))
}

/// Makes rings smaller than asked for where their user may lock little memory.
pub(super) fn fit_locked(config: &mut RingConfig) {
    if let Some(budget) = budget() {
        fit(config, budget);
    }
}

/// Halves the queues, completions first, and the receive buffers until the ring takes no more than `budget` bytes: 64 for
/// each submission, 16 for each completion, 16 for the place of each receive buffer.
fn fit(config: &mut RingConfig, budget: u64) {
    let bytes = |config: &RingConfig| {
        u64::from(config.sq_entries) * 64
            + u64::from(config.cq_entries) * 16
            + u64::from(config.recv_buffers) * 16
    };
    while bytes(config) > budget {
        if config.cq_entries > config.sq_entries.saturating_mul(4) {
            config.cq_entries /= 2;
        } else if config.sq_entries > ENTRIES_MIN {
            config.sq_entries /= 2;
            config.recv_buffers = (config.recv_buffers / 2).max(BUFFERS_MIN.min(config.recv_buffers));
        } else {
            return;
        }
    }
}

/// Tries `make` again while the kernel says that no memory may be locked any more.
pub(super) fn when_unlocked<T>(mut make: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let end = Instant::now() + LOCKED_WAIT;
    loop {
        match make() {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && Instant::now() < end => {
                thread::sleep(LOCKED_PAUSE);
            }
            made => return made,
        }
    }
}

/// Makes and drops the smallest ring, to learn whether this process may have any. On a thread of its own: the kernel interrupts
/// the thread whose ring ends in whatever it waits for next.
pub fn try_ring() -> io::Result<()> {
    let tried = thread::spawn(|| when_unlocked(|| IoUring::new(2)).map(drop)).join();
    tried.unwrap_or_else(|_| Err(io::Error::other("the thread that tried it panicked")))
}

/// What whoever reads the error can do about it.
pub fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => {
            "the rings of this user's processes have locked all memory that it may lock; raise RLIMIT_MEMLOCK (ulimit -l), or give CAP_IPC_LOCK"
        }
        Some(libc::EPERM | libc::EACCES) => {
            "io_uring is forbidden here: by the sysctl kernel.io_uring_disabled, or by the seccomp profile of a container"
        }
        Some(libc::ENOSYS) => "this kernel has no io_uring; Linux 5.19 or newer is needed",
        _ => "see io_uring_setup(2)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_of_a_user_who_may_lock_eight_mebibytes_are_small_and_of_one_who_may_not_lock_any_the_smallest() {
        let sizes = |budget| {
            let mut config = RingConfig::default();
            fit(&mut config, budget);
            (config.sq_entries, config.cq_entries, config.recv_buffers)
        };
        let asked = RingConfig::default();
        assert_eq!(sizes(u64::MAX), (asked.sq_entries, asked.cq_entries, asked.recv_buffers));
        assert_eq!(sizes((8 << 20) / LOCKED_PART), (512, 4096, 512));
        assert_eq!(sizes(0), (ENTRIES_MIN, 4 * ENTRIES_MIN, 64));
    }

    #[test]
    fn memory_that_is_unlocked_late_is_waited_for_and_other_errors_are_not() {
        let mut tries = 0;
        let made = when_unlocked(|| {
            tries += 1;
            if tries < 3 { Err(io::Error::from_raw_os_error(libc::ENOMEM)) } else { Ok(tries) }
        });
        assert_eq!(made.ok(), Some(3));
        let mut tries = 0;
        let refused = when_unlocked(|| {
            tries += 1;
            Err::<(), _>(io::Error::from_raw_os_error(libc::EPERM))
        });
        assert_eq!((refused.is_err(), tries), (true, 1));
    }
}
