//! Faults planted on purpose: they show that the verdict of the load generator and that of the simulator notice. Without the
//! feature `planted-faults` every function here is a constant `false`; with it the environment variable `SLOTCAST_FAULT`
//! chooses one for the process, or a thread one for what it drives. Never for production.

use std::sync::atomic::{AtomicU64, Ordering};
#[cfg(feature = "planted-faults")]
use std::{cell::Cell, sync::OnceLock};

#[cfg(feature = "planted-faults")]
thread_local! {
    static HERE: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Plants a fault in the roles that this thread drives, in place of the one before; `None`: they are sound again.
#[cfg(feature = "planted-faults")]
pub fn plant_here(name: Option<&'static str>) {
    HERE.set(name);
}

#[cfg(feature = "planted-faults")]
fn chosen(name: &str) -> bool {
    static OF_PROCESS: OnceLock<String> = OnceLock::new();
    HERE.get() == Some(name)
        || OF_PROCESS.get_or_init(|| std::env::var("SLOTCAST_FAULT").unwrap_or_default()) == name
}

#[cfg(not(feature = "planted-faults"))]
fn chosen(_: &str) -> bool {
    false
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
