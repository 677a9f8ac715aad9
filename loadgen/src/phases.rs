//! The phases that a run goes through, whoever it drives: waiting for what the board counts, and for the clock.

use std::time::Duration;

use anyhow::Result;

use crate::{
    board::{Board, Counter, Phase},
    clock::{Clock, MILLISECOND, Monotonic, SECOND},
    progress::Progress,
};

/// The parent looks at everything this often.
pub const POLL_EVERY: Duration = Duration::from_millis(20);
/// The changes start this long after they are announced.
pub const START_LEAD: u64 = 100 * MILLISECOND;
/// Children have this long to check and write down what they found.
pub const FINISH_WITHIN: Duration = Duration::from_secs(120);
/// A phase in which nothing moves for this long is given up.
const STALLED_AFTER: u64 = 30 * SECOND;

/// A run, as its phases see it.
pub trait Driven {
    /// What its children count on.
    fn board(&self) -> &Board;

    /// Where it tells how far it is.
    fn progress(&self) -> &Progress;

    /// Waits for [`POLL_EVERY`] and looks after the children. An error if one of them has ended.
    fn breathe(&mut self) -> Result<()>;

    /// Whether everybody is back whom the run itself disturbed.
    fn is_whole(&self) -> bool {
        true
    }

    /// Starts a phase and waits until the board counts `target`. Returns what to say when nothing moves any more.
    fn reach(&mut self, phase: Phase, name: &str, counter: Counter, target: u64) -> Result<Option<String>> {
        self.progress().phase(name, target);
        self.board().set_phase(phase);
        let (mut moved, mut at) = (Monotonic.now(), 0);
        while self.board().total(counter) < target {
            self.breathe()?;
            let now = self.board().total(counter);
            self.progress().at(now, || format!("{now} of {target}"));
            if now != at {
                (moved, at) = (Monotonic.now(), now);
            } else if Monotonic.now() - moved > STALLED_AFTER {
                return Ok(Some(format!("{name} stopped at {now} of {target}")));
            }
        }
        Ok(None)
    }

    /// Waits for a moment of the clock.
    fn until(&mut self, name: &str, from: u64, to: u64) -> Result<()> {
        self.progress().phase(name, (to - from) / MILLISECOND);
        loop {
            let now = Monotonic.now();
            if now >= to {
                return Ok(());
            }
            let (sent, pushes) = (self.board().total(Counter::Sent), self.board().total(Counter::Pushes));
            self.progress()
                .at(now.saturating_sub(from) / MILLISECOND, || format!("{sent} changes, {pushes} pushes"));
            self.breathe()?;
        }
    }

    /// Waits until `planned` changes are acknowledged and every pair is resolved, or until patience ends.
    fn drain(&mut self, planned: u64, patience: Duration) -> Result<()> {
        self.board().set_phase(Phase::Drain);
        let deadline = Monotonic.now() + patience.as_nanos() as u64;
        self.progress().phase("draining", patience.as_millis() as u64);
        loop {
            let looked = self.board().total(Counter::Looked) == self.board().workers() as u64;
            let open = self.board().total(Counter::Unresolved);
            let unacknowledged = planned.saturating_sub(self.board().total(Counter::Acknowledged));
            let now = Monotonic.now();
            if (looked && open == 0 && unacknowledged == 0 && self.is_whole()) || now >= deadline {
                return Ok(());
            }
            let gone = patience.as_millis() as u64 - (deadline - now) / MILLISECOND;
            self.progress().at(gone, || format!("{open} pairs, {unacknowledged} changes open"));
            self.breathe()?;
        }
    }
}
