//! The search for the highest rate of changes that is still delivered well.
//!
//! The rate grows by a quarter per step until a step is not good, then the gap between the last good and the first bad rate
//! is halved until it is small. Each step is a run of its own with a cluster of its own: what a step that overran left
//! behind, in queues, logs and tombstones, would otherwise be held against the next one.

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::{report::verdict::Verdict, run::Outcome};

/// A step is good while the 99.9th percentile of the delay is at most this.
pub const P999_MS_MAX: f64 = 1_000.0;
/// Factor from one rate to the next while all are good.
const GROWTH: f64 = 1.25;
/// The search ends when the first bad rate is above the last good one by no more than this part.
const GAP: f64 = 0.05;

/// What one step came to.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Step {
    /// Planned changes per second.
    pub changes_per_sec: f64,
    /// Planned deliveries per minute.
    pub planned_per_min: f64,
    /// Pushes per minute seen.
    pub pushes_per_min: f64,
    /// Median delay.
    pub p50_ms: f64,
    /// 99.9th percentile of the delay.
    pub p999_ms: f64,
    /// Processor seconds of the session per second of the window, if it is ours.
    pub session_cores: Option<f64>,
    /// Why it is not good; empty: it is.
    pub reasons: Vec<String>,
}

impl Step {
    /// Judges a run at a rate.
    pub fn of(changes_per_sec: f64, outcome: &Outcome, verdict: &Verdict) -> Self {
        let latency = &outcome.measured.latency;
        let at = |quantile: f64| latency.value_at_quantile(quantile) as f64 / 1e6;
        let mut reasons = verdict.reasons.clone();
        if at(0.999) > P999_MS_MAX {
            reasons.push(format!("p999 {:.0} ms is above {P999_MS_MAX:.0} ms", at(0.999)));
        }
        Self {
            changes_per_sec,
            planned_per_min: outcome.deliveries_planned as f64 * 60.0 / outcome.window_s.max(1e-9),
            pushes_per_min: outcome.pushes_per_min(),
            p50_ms: at(0.5),
            p999_ms: at(0.999),
            session_cores: outcome.cpu_s.session.map(|cpu| cpu / outcome.window_s.max(1e-9)),
            reasons,
        }
    }

    /// Whether it is good.
    pub fn is_good(&self) -> bool {
        self.reasons.is_empty()
    }
}

/// Searches from `first` changes per second on, in `steps_max` steps at most; `run` makes a step. Returns all steps in their
/// order; no rate is asked for twice.
pub fn search(
    first: f64,
    steps_max: usize,
    mut run: impl FnMut(usize, f64) -> Result<Step>,
) -> Result<Vec<Step>> {
    ensure!(first > 0.0, "the rate to start from has to be above 0");
    let (mut good, mut bad) = (None::<f64>, None::<f64>);
    let mut steps = Vec::new();
    let mut rate = first;
    while steps.len() < steps_max {
        let step = run(steps.len(), rate)?;
        let place = if step.is_good() { &mut good } else { &mut bad };
        *place = Some(rate);
        steps.push(step);
        rate = match (good, bad) {
            (Some(good), Some(bad)) if bad <= good * (1.0 + GAP) => break,
            (Some(good), Some(bad)) => f64::midpoint(good, bad),
            (Some(good), None) => good * GROWTH,
            // The rate to start from was too high already.
            (None, Some(bad)) => bad / 2.0,
            (None, None) => break,
        };
    }
    Ok(steps)
}

/// The best of the good steps.
pub fn best(steps: &[Step]) -> Option<&Step> {
    let good = steps.iter().filter(|step| step.is_good());
    good.max_by(|one, other| one.changes_per_sec.total_cmp(&other.changes_per_sec))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(rate: f64, most: f64) -> Step {
        Step {
            changes_per_sec: rate,
            planned_per_min: rate * 60.0,
            pushes_per_min: rate * 60.0,
            p50_ms: 1.0,
            p999_ms: if rate <= most { 10.0 } else { 5_000.0 },
            session_cores: None,
            reasons: if rate <= most { Vec::new() } else { vec!["late".into()] },
        }
    }

    #[test]
    fn the_limit_is_found_within_a_twentieth_from_below_and_from_above() {
        for (first, most) in [(220.0, 1_000.0), (220.0, 221.0), (50.0, 731.0), (5_000.0, 900.0)] {
            let steps = search(first, 24, |_, rate| Ok(step(rate, most))).unwrap();
            let best = best(&steps).unwrap().changes_per_sec;
            assert!(best <= most && best >= most * 0.95, "{best} for {most} from {first}");
            assert!(steps.len() < 24);
        }
    }

    #[test]
    fn a_cluster_that_is_never_good_or_never_bad_ends_the_search() {
        let never = search(100.0, 24, |_, rate| Ok(step(rate, 0.0))).unwrap();
        assert!(never.len() == 24 && best(&never).is_none());
        let always = search(100.0, 24, |_, rate| Ok(step(rate, f64::MAX))).unwrap();
        assert_eq!(best(&always), always.last());
        assert!(search(0.0, 24, |_, rate| Ok(step(rate, 1.0))).is_err());
    }

    #[test]
    fn a_failed_step_ends_the_search_with_its_error() {
        let result = search(100.0, 24, |index, rate| {
            anyhow::ensure!(index < 2, "no cluster");
            Ok(step(rate, 1e9))
        });
        assert_eq!(result.unwrap_err().to_string(), "no cluster");
    }
}
