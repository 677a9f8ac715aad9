//! Which point of a sweep is recommended, and why.

use serde::{Deserialize, Serialize};

use super::grid::Axis;

/// Points whose medians differ by no more than this part are as good as each other, however close together their runs are.
const NOISE_PART: f64 = 0.05;

/// What one run came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Its verdict.
    pub verdict: String,
    /// Delay in milliseconds: median.
    pub p50_ms: f64,
    /// 99.9th percentile.
    pub p999_ms: f64,
    /// Pushes per minute.
    pub pushes_per_min: f64,
    /// Processor seconds of all roles of the cluster, without the load generator.
    pub cpu_s: f64,
}

impl Finding {
    /// Whether the run counts.
    pub fn is_ok(&self) -> bool {
        self.verdict == "ok"
    }
}

/// A point with all its runs.
#[derive(Clone, Debug)]
pub struct Point {
    /// For each axis the number of its value.
    pub at: Vec<usize>,
    /// In the order in which they were made.
    pub runs: Vec<Finding>,
}

impl Point {
    /// Whether every run of it was good.
    pub fn is_ok(&self) -> bool {
        !self.runs.is_empty() && self.runs.iter().all(Finding::is_ok)
    }

    /// The middle of a figure over the runs.
    pub fn median(&self, of: impl Fn(&Finding) -> f64) -> f64 {
        let mut values: Vec<f64> = self.runs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() {
            0 => f64::NAN,
            even if even.is_multiple_of(2) => f64::midpoint(values[middle - 1], values[middle]),
            _ => values[middle],
        }
    }

    /// Smallest and largest 99.9th percentile of its runs.
    pub fn range(&self) -> (f64, f64) {
        let values = || self.runs.iter().map(|run| run.p999_ms);
        (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max))
    }

    fn p999(&self) -> f64 {
        self.median(|run| run.p999_ms)
    }
}

/// A recommendation.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Which point.
    pub point: usize,
    /// The points that are as good, itself among them.
    pub ties: Vec<usize>,
    /// In a sentence.
    pub reason: String,
}

/// Chooses among the points whose runs were all good: the smallest median of the 99.9th percentile. Points whose runs overlap
/// with its runs, or whose medians differ by a twentieth at most, are ties; among ties the one with the most defaults wins.
pub fn choose(axes: &[Axis], points: &[Point]) -> Option<Choice> {
    let good = || points.iter().enumerate().filter(|(_, point)| point.is_ok());
    let (best, found) = good().min_by(|(_, a), (_, b)| a.p999().total_cmp(&b.p999()))?;
    let most = found.range().1;
    let ties: Vec<usize> = good()
        .filter(|(_, point)| point.range().0 <= most || point.p999() <= found.p999() * (1.0 + NOISE_PART))
        .map(|(at, _)| at)
        .collect();
    let defaults = |at: usize| {
        let pairs = axes.iter().zip(&points[at].at);
        pairs.filter(|(axis, value)| axis.default == Some(**value)).count()
    };
    let familiar = ties.iter().map(|at| defaults(*at)).max().unwrap_or(0);
    let tied = ties.iter().copied().filter(|at| defaults(*at) == familiar);
    let point = tied.min_by(|a, b| points[*a].p999().total_cmp(&points[*b].p999())).unwrap_or(best);
    let middle = points[point].p999();
    let reason = if ties.len() == 1 {
        format!("its median p999 of {middle:.1} ms is below that of every other point by more than the noise")
    } else if familiar == axes.len() {
        format!(
            "{} points are as good within the noise, and it is the default; median p999 {middle:.1} ms",
            ties.len()
        )
    } else {
        format!(
            "{} points are as good within the noise; of those it has the most defaults and then the smallest median \
             p999, {middle:.1} ms",
            ties.len()
        )
    };
    Some(Choice { point, ties, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(default: Option<usize>) -> Axis {
        Axis { key: "data.some".into(), values: ["a", "b", "c"].map(String::from).to_vec(), default }
    }

    fn point(at: usize, p999: &[f64]) -> Point {
        let run = |p999_ms: &f64| Finding {
            verdict: "ok".into(),
            p50_ms: 1.0,
            p999_ms: *p999_ms,
            pushes_per_min: 1.0,
            cpu_s: 1.0,
        };
        Point { at: vec![at], runs: p999.iter().map(run).collect() }
    }

    #[test]
    fn the_clearly_best_is_chosen_and_within_noise_the_default() {
        let clear = [point(0, &[30.0, 31.0, 29.0]), point(1, &[20.0, 21.0, 19.0]), point(2, &[40.0, 39.0])];
        let choice = choose(&[axis(Some(0))], &clear).unwrap();
        assert_eq!((choice.point, choice.ties), (1, vec![1]));
        let noisy = [point(0, &[22.0, 30.0, 20.5]), point(1, &[20.0, 21.0, 19.0]), point(2, &[40.0, 39.0])];
        let choice = choose(&[axis(Some(0))], &noisy).unwrap();
        assert_eq!((choice.point, choice.ties), (0, vec![0, 1]));
        let choice = choose(&[axis(None)], &noisy).unwrap();
        assert_eq!(choice.point, 1, "no default is among the values");
    }

    #[test]
    fn one_bad_run_rules_a_point_out() {
        let mut points = [point(0, &[30.0]), point(1, &[20.0, 20.0])];
        points[1].runs[1].verdict = "failed".into();
        assert_eq!(choose(&[axis(None)], &points).unwrap().point, 0);
        points[0].runs.clear();
        assert_eq!(choose(&[axis(None)], &points), None);
    }
}
