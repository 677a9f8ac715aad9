//! A slot's history beyond what sealing trims: for slots that nobody writes to, and for a shard that has too much of it.

use super::Slot;
use crate::{
    change_log::ChangeLogLimits,
    id::{Nanos, Revision},
};

impl Slot {
    /// Sets the bounds of the history; what is beyond them goes with the next seal or the next [`Slot::trim_history`].
    pub fn set_log_limits(&mut self, limits: ChangeLogLimits) {
        self.log_limits = limits;
    }

    /// Drops entries that are beyond the bounds, the oldest first, until `budget` of them are gone; whole batches go, so it may
    /// be one batch more. Returns how many went, and whether none is left that should.
    pub fn trim_history(&mut self, now: Nanos, budget: usize) -> (usize, bool) {
        let limits = self.log_limits;
        let (dropped, done) = self.log.trim_some(&limits, now, budget);
        self.history_dropped(dropped);
        (dropped, done)
    }

    /// Drops the oldest `budget` entries although they are within the bounds, likewise. Returns how many went.
    pub fn drop_history(&mut self, budget: usize) -> usize {
        let keep = ChangeLogLimits { entries_max: self.log.len().saturating_sub(budget), age_max: u64::MAX };
        let (dropped, _) = self.log.trim_some(&keep, Nanos(0), budget);
        self.history_dropped(dropped);
        dropped
    }

    fn history_dropped(&mut self, dropped: usize) {
        if dropped > 0 {
            self.log.give_back();
            // As if the last seal were the latest: a data id that was named in it may be about to get its first change.
            self.drop_idle_datums(Revision(self.revision.0 - 1));
        }
    }
}
