//! How often a worker looks at its sockets.
//!
//! Under load each look is worth a gathering: in the kernel a wake-up happens on the core of the session, which has the more to
//! do. Of little there is nothing to be saved, and all of the wait would be in the delays that are measured.

use std::time::Duration;

use crate::clock::MILLISECOND;

/// A busy worker looks this often at most. It adds that much to some latencies, and saves the session, on whose core the
/// kernel does it, one wake-up per write.
pub const GATHER_BUSY: Duration = Duration::from_millis(1);
/// One that has little to do.
const GATHER_QUIET: Duration = Duration::from_micros(200);
/// Events are counted over so long, several changes of a quiet workload.
const WINDOW: u64 = 200 * MILLISECOND;
/// Events in a window from which on a worker is busy: 20,000 in a second.
const BUSY_FROM: u64 = 4_000;

/// See the module.
#[derive(Default)]
pub struct Pace {
    began: u64,
    events: u64,
}

impl Pace {
    /// Counts events that came until `now`. Returns how long to gather from now on, once per window.
    pub fn count(&mut self, events: usize, now: u64) -> Option<Duration> {
        self.events += events as u64;
        if now.saturating_sub(self.began) < WINDOW {
            return None;
        }
        let is_busy = std::mem::take(&mut self.events) >= BUSY_FROM;
        self.began = now;
        Some(if is_busy { GATHER_BUSY } else { GATHER_QUIET })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gets_much_gathers_longer_until_it_is_over() {
        let mut pace = Pace::default();
        assert_eq!(pace.count(10, WINDOW), Some(GATHER_QUIET));
        assert_eq!(pace.count(3_000, WINDOW + 1), None);
        assert_eq!(pace.count(999, 2 * WINDOW), Some(GATHER_QUIET));
        assert_eq!(pace.count(BUSY_FROM as usize, 3 * WINDOW), Some(GATHER_BUSY));
        assert_eq!(pace.count(0, 4 * WINDOW), Some(GATHER_QUIET));
    }
}
