//! Many seeds, on as many threads as wanted.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use comfy_table::{Cell, CellAlignment, Table, presets};
use slotcast_engine::id::mix64;

use super::{
    judge,
    network::{MS, SECOND},
    oracle::Violation,
    plan::{Plan, Shape},
    reached::{OF_CLUSTER, RARE, Reached},
};

/// Which seeds, and how.
#[derive(Clone, Debug)]
pub struct CampaignSpec {
    /// What there is of everything.
    pub shape: Shape,
    /// The first seed.
    pub first: u64,
    /// Seeds at most.
    pub seeds: u64,
    /// No seed is begun after this, if it is given, unless fewer than `seeds_min` were.
    pub budget: Option<Duration>,
    /// Seeds that are run however long they take.
    pub seeds_min: u64,
    /// Threads.
    pub threads: usize,
    /// Whether to go on after a failure.
    pub keep_going: bool,
    /// A fault that is planted in every seed.
    pub planted: Option<&'static str>,
}

/// What came of it.
#[derive(Default, Debug)]
pub struct Campaign {
    /// Seeds that were run.
    pub seeds: u64,
    /// What they reached together.
    pub reached: Reached,
    /// Seeds that failed, in rising order, and what they violate.
    pub failed: Vec<(u64, Violation)>,
    /// Seeds that fail with the planted fault or without, in rising order.
    pub excused: Vec<u64>,
    /// What happened in each seed, in rising order, as a digest: the same before and after a change that changes no behaviour.
    pub digests: Vec<(u64, u64)>,
    /// Virtual nanoseconds simulated.
    pub simulated: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl Campaign {
    /// Simulated seconds per second.
    pub fn speed(&self) -> f64 {
        self.simulated as f64 / SECOND as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// What is counted and was never reached, rare things left out.
    pub fn missed(&self, shape: Shape) -> Vec<&'static str> {
        let is_due =
            |name: &str| !RARE.contains(&name) && (shape == Shape::Cluster || !OF_CLUSTER.contains(&name));
        let fields = self.reached.fields();
        fields.into_iter().filter(|(name, count)| *count == 0 && is_due(name)).map(|it| it.0).collect()
    }

    /// The failures by their kinds, with the seeds of each.
    pub fn kinds(&self) -> BTreeMap<String, Vec<u64>> {
        let mut kinds: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (seed, violation) in &self.failed {
            kinds.entry(violation.kind()).or_default().push(*seed);
        }
        kinds
    }

    /// One digest of everything that happened in all seeds.
    pub fn digest(&self) -> u64 {
        self.digests.iter().fold(0, |sum: u64, (seed, hash)| mix64(sum.rotate_left(5) ^ mix64(*seed) ^ *hash))
    }

    /// The figures for a program.
    pub fn json(&self, spec: &CampaignSpec) -> serde_json::Value {
        let failed = self.failed.iter().map(|(seed, violation)| {
            serde_json::json!({ "seed": seed, "at_ms": violation.at / MS, "violation": violation.text })
        });
        let reached: serde_json::Map<String, serde_json::Value> =
            self.reached.fields().into_iter().map(|(name, count)| (name.into(), count.into())).collect();
        serde_json::json!({
            "shape": format!("{:?}", spec.shape).to_lowercase(),
            "planted": spec.planted,
            "first_seed": spec.first,
            "seeds": self.seeds,
            "digest": format!("{:016x}", self.digest()),
            "threads": spec.threads,
            "failed": failed.collect::<Vec<_>>(),
            "simulated_s": self.simulated as f64 / SECOND as f64,
            "elapsed_s": self.elapsed.as_secs_f64(),
            "simulated_s_per_s": self.speed(),
            "reached": reached,
            "never_reached": self.missed(spec.shape),
        })
    }

    /// The counters for people.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["reached", "in all", "per seed"]);
        for (name, count) in self.reached.fields() {
            let each = format!("{:.2}", count as f64 / self.seeds.max(1) as f64);
            let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
            table.add_row([Cell::new(name), right(count.to_string()), right(each)]);
        }
        table
    }
}

/// Runs the seeds. `progress` is told how many are done.
pub fn campaign(spec: &CampaignSpec, progress: impl Fn(u64) + Sync) -> Campaign {
    let began = Instant::now();
    let (next, done, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let found = Mutex::new(Campaign::default());
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let is_late = spec.budget.is_some_and(|budget| began.elapsed() >= budget);
            if number >= spec.seeds || stop.load(Ordering::Relaxed) || is_late && number >= spec.seeds_min {
                return;
            }
            let seed = spec.first + number;
            let (outcome, is_excused) = judge(&Plan::of(spec.shape, seed).with_planted(spec.planted));
            let Ok(mut found) = found.lock() else { return };
            found.seeds += 1;
            found.reached.add(&outcome.reached);
            found.simulated += outcome.simulated;
            found.digests.push((seed, outcome.hash));
            if is_excused {
                found.excused.push(seed);
            }
            if let Some((violation, _)) = outcome.failure {
                found.failed.push((seed, violation));
                stop.fetch_or(!spec.keep_going, Ordering::Relaxed);
            }
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..spec.threads.max(1) {
            scope.spawn(work);
        }
    });
    let mut found = found.into_inner().unwrap_or_default();
    found.failed.sort_by_key(|(seed, _)| *seed);
    found.excused.sort_unstable();
    found.digests.sort_unstable();
    found.elapsed = began.elapsed();
    found
}
