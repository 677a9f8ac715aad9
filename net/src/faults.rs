//! Faults planted on purpose: they show that the load generator's verdict notices. Without the feature `planted-faults`
//! every function here is a constant `false`; with it the environment variable `SLOTCAST_FAULT` chooses one. Never for
//! production.

use std::{
    sync::OnceLock,
    sync::atomic::{AtomicU64, Ordering},
};

fn chosen(name: &str) -> bool {
    static FAULT: OnceLock<String> = OnceLock::new();
    cfg!(feature = "planted-faults")
        && FAULT.get_or_init(|| std::env::var("SLOTCAST_FAULT").unwrap_or_default()) == name
}

/// Every 10,000th diff of a client is not sent, though it counts as sent.
pub(crate) fn drop_diff() -> bool {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    chosen("drop-diff") && COUNT.fetch_add(1, Ordering::Relaxed) % 10_000 == 9_999
}

/// A resume is answered from one change later than the client holds.
pub(crate) fn late_resume() -> bool {
    chosen("late-resume")
}

/// One removal, the hundredth, is left out of the frame that tells it.
pub(crate) fn skip_removal() -> bool {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    chosen("skip-removal") && COUNT.fetch_add(1, Ordering::Relaxed) == 99
}
