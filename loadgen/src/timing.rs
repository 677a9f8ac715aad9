//! How decades of a trace fit into a run: times scaled, or gaps capped.

use serde::{Deserialize, Serialize};

use crate::clock::MILLISECOND;

/// What is done to the times of a trace.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub enum Timing {
    /// Runs this many times faster than life.
    Speed(f64),
    /// No gap is longer than this many nanoseconds.
    CapGap(u64),
    /// The gap cap with which the whole lasts about this many nanoseconds.
    Fit(u64),
}

/// Intended times in nanoseconds from the first event on, and what was done, in words. `times` are milliseconds and never
/// go back.
pub fn intended(timing: Timing, times: &[u64]) -> (Vec<u64>, String) {
    let first = times.first().copied().unwrap_or(0);
    match timing {
        Timing::Speed(factor) => {
            let scaled = |&time: &u64| ((time - first) as f64 * MILLISECOND as f64 / factor) as u64;
            (times.iter().map(scaled).collect(), format!("times scaled: {factor} times faster than recorded"))
        }
        Timing::CapGap(cap) => capped(times, cap),
        Timing::Fit(length) => capped(times, fitting_cap(times, length)),
    }
}

fn capped(times: &[u64], cap: u64) -> (Vec<u64>, String) {
    let mut now = 0;
    let mut previous = times.first().copied().unwrap_or(0);
    let out = times
        .iter()
        .map(|&time| {
            now += gap(previous, time).min(cap);
            previous = time;
            now
        })
        .collect();
    (out, format!("gaps capped at {} ms", cap as f64 / MILLISECOND as f64))
}

/// The largest cap with which the whole is not longer than `length`, found by bisection: the length grows with the cap.
fn fitting_cap(times: &[u64], length: u64) -> u64 {
    let whole = |cap: u64| times.windows(2).map(|pair| gap(pair[0], pair[1]).min(cap)).sum::<u64>();
    let (mut fits, mut exceeds) = (0, length.saturating_add(1));
    while exceeds - fits > 1 {
        let middle = fits + (exceeds - fits) / 2;
        if whole(middle) <= length {
            fits = middle;
        } else {
            exceeds = middle;
        }
    }
    fits
}

fn gap(earlier: u64, later: u64) -> u64 {
    (later - earlier).saturating_mul(MILLISECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SECOND;

    #[test]
    fn speed_divides_times() {
        let (times, note) = intended(Timing::Speed(100.0), &[1000, 1500, 11_000]);
        assert_eq!(times, [0, 5 * MILLISECOND, 100 * MILLISECOND]);
        assert!(note.contains("100"));
    }

    #[test]
    fn gaps_are_capped_and_short_ones_stay() {
        let (times, _) = intended(Timing::CapGap(SECOND), &[0, 0, 10, 5_000, 5_001, 9_999_999]);
        let expected = [0, 0, 10, 1_010, 1_011, 2_011].map(|ms| ms * MILLISECOND);
        assert_eq!(times, expected);
    }

    #[test]
    fn the_fitting_cap_fills_the_length() {
        let trace: Vec<u64> = (0..1000).map(|i| i * i * 7).collect();
        let (times, _) = intended(Timing::Fit(30 * SECOND), &trace);
        let length = *times.last().unwrap();
        assert!((29 * SECOND..=30 * SECOND).contains(&length), "{length}");
        let (short, _) = intended(Timing::Fit(30 * SECOND), &[0, 1000]);
        assert_eq!(short, [0, SECOND], "a trace that is short already stays as it is");
    }
}
