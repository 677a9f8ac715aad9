//! Faults planted on purpose: they show that the verdict of the load generator and that of the simulator notice. Without the
//! feature `planted-faults` every function here is a constant `false`; with it the environment variable `SLOTCAST_FAULT`
//! or the process itself chooses one. Never for production.

use std::{
    sync::OnceLock,
    sync::atomic::{AtomicU64, Ordering},
};

static FAULT: OnceLock<String> = OnceLock::new();

/// Plants a fault in this process, unless one is planted already.
#[cfg(feature = "planted-faults")]
pub fn choose(name: &str) {
    FAULT.get_or_init(|| name.into());
}

fn chosen(name: &str) -> bool {
    cfg!(feature = "planted-faults")
        && FAULT.get_or_init(|| std::env::var("SLOTCAST_FAULT").unwrap_or_default()) == name
}

/// A data node takes a slot table that names an earlier run of it for its own.
pub(crate) fn epoch_reused() -> bool {
    chosen("epoch-reused")
}

/// A session takes what a data node sends of a slot, whether that leads it or not.
pub(crate) fn no_epoch_check() -> bool {
    chosen("no-epoch-check")
}

/// An older slot table is taken.
pub(crate) fn older_table() -> bool {
    chosen("older-table")
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
