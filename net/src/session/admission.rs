//! How many connections are let in per second: a bucket of tokens, and a queue of appointments for those sent away.
//!
//! A connection that finds the bucket empty is sent away with the time at which its turn would come if all those before it
//! kept their appointments. So a storm comes back as a line at the rate that is let in, not as the next storm.

use slotcast_engine::id::{Nanos, mix64};

/// Shortest and longest pause that is asked for. A line that is longer comes back early and is sent away again.
const PAUSE: (u64, u64) = (Nanos::SECOND / 10, 60 * Nanos::SECOND);
/// A pause is stretched by up to this part of itself, so that appointments do not beat in step.
const JITTER: u64 = 8;

/// See the module.
pub(super) struct Admission {
    /// Time per connection; zero: everybody is let in.
    interval: u64,
    burst: u64,
    /// When the bucket would be full again.
    full_at: Nanos,
    /// The latest appointment.
    booked_to: Nanos,
}

impl Admission {
    /// `rate` connections per second, 0 for no bound, and `burst` of them at once.
    pub(super) fn new(rate: u32, burst: u32) -> Self {
        let interval = if rate == 0 { 0 } else { Nanos::SECOND / u64::from(rate) };
        Self { interval, burst: u64::from(burst.max(1)), full_at: Nanos(0), booked_to: Nanos(0) }
    }

    /// Lets a connection in, or tells after how long it should come back.
    pub(super) fn admit(&mut self, who: u64, now: Nanos) -> Result<(), u64> {
        if self.interval == 0 {
            return Ok(());
        }
        let full_at = Nanos(self.full_at.0.max(now.0) + self.interval);
        if full_at.since(now) <= self.interval * self.burst {
            self.full_at = full_at;
            return Ok(());
        }
        // Beyond the longest pause nobody is told more, so no appointment is booked there either.
        let latest = now.0 + PAUSE.1;
        self.booked_to = Nanos((self.booked_to.0.max(now.0) + self.interval).min(latest));
        let pause = self.booked_to.since(now).max(PAUSE.0);
        Err(pause + mix64(who ^ now.0) % (pause / JITTER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Nanos {
        Nanos(ms * 1_000_000)
    }

    #[test]
    fn without_a_rate_everybody_is_let_in() {
        let mut admission = Admission::new(0, 1);
        assert!((0..100_000).all(|who| admission.admit(who, at(1)).is_ok()));
    }

    #[test]
    fn a_burst_is_let_in_and_then_the_rate() {
        let mut admission = Admission::new(100, 50);
        let mut admitted = |from: u64, to: u64| {
            // A thousand attempts a second.
            (from..to).filter(|&ms| admission.admit(ms, at(ms)).is_ok()).count()
        };
        assert!((54..=56).contains(&admitted(1000, 1060)));
        assert_eq!(admitted(1060, 2060), 100);
        assert!((54..=56).contains(&admitted(9000, 9060)), "a quiet time fills the bucket, no more");
    }

    #[test]
    fn those_sent_away_come_back_in_a_line_at_the_rate() {
        let mut admission = Admission::new(1000, 1);
        assert!(admission.admit(0, at(1)).is_ok());
        let mut pauses: Vec<u64> = (1..=10_000).map(|who| admission.admit(who, at(1)).unwrap_err()).collect();
        assert!(pauses.windows(2).any(|pair| pair[1] < pair[0]), "they are jittered");
        pauses.sort_unstable();
        let second = Nanos::SECOND;
        for from in 1..9 {
            let due = pauses.iter().filter(|&&pause| (from * second..(from + 1) * second).contains(&pause));
            assert!((800..=1100).contains(&due.count()), "in second {from}");
        }
        assert!(*pauses.last().unwrap() <= 10 * second * (JITTER + 1) / JITTER);
    }

    #[test]
    fn no_pause_is_longer_than_the_longest() {
        let mut admission = Admission::new(1, 1);
        let pauses = (0..10_000).filter_map(|who| admission.admit(who, at(1)).err());
        assert!(pauses.max().unwrap() <= PAUSE.1 * (JITTER + 1) / JITTER);
    }
}
