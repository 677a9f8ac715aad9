//! What a probe shows to Prometheus. Label sets are closed: sessions as they were named, kinds of results.

use std::{
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::chaos::truth::Wrong;

/// Whose client saw it.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Session {
    session: String,
}

/// What became of a round.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Round {
    result: &'static str,
}

/// What was wrong.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(super) struct Kind {
    kind: String,
}

type Delays = Family<Session, Histogram, fn() -> Histogram>;

/// All metrics of a probe.
pub(super) struct ProbeMetrics {
    up: Family<Session, Gauge>,
    latency: Delays,
    rounds: Family<Round, Counter>,
    last_good: Gauge,
    violations: Family<Kind, Counter>,
    pub(super) judged: Counter,
    pub(super) lingering: Counter,
}

impl ProbeMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let delays: fn() -> Histogram = || Histogram::new(exponential_buckets(0.5e-3, 2.0, 16));
        let metrics = Self {
            up: Family::default(),
            latency: Delays::new_with_constructor(delays),
            rounds: Family::default(),
            last_good: Gauge::default(),
            violations: Family::default(),
            judged: Counter::default(),
            lingering: Counter::default(),
        };
        registry.register("up", "1 while the probe's client has a session here", metrics.up.clone());
        registry.register_with_unit(
            "push_latency",
            "From a change to a list that shows it",
            Unit::Seconds,
            metrics.latency.clone(),
        );
        registry.register("rounds", "Changes by what became of them", metrics.rounds.clone());
        registry.register_with_unit(
            "last_good_timestamp",
            "When a change was last everywhere in time, since 1970",
            Unit::Seconds,
            metrics.last_good.clone(),
        );
        registry.register("violations", "Wrong lists, by what was wrong", metrics.violations.clone());
        registry.register("lists_judged", "Lists looked at", metrics.judged.clone());
        registry.register(
            "lists_lingering",
            "Of these, the ones that still had what was removed, as a registry that has lost its memory may show it",
            metrics.lingering.clone(),
        );
        for result in ["good", "late", "wrong"] {
            let _ = metrics.rounds.get_or_create(&Round { result });
        }
        metrics
    }

    pub(super) fn is_up(&self, target: SocketAddr, is_up: bool) {
        self.up.get_or_create(&session(target)).set(i64::from(is_up));
    }

    pub(super) fn pushed(&self, target: SocketAddr, nanos: u64) {
        self.latency.get_or_create(&session(target)).observe(nanos as f64 / 1e9);
    }

    pub(super) fn violated(&self, wrong: Wrong) {
        self.violations.get_or_create(&Kind { kind: wrong.to_string() }).inc();
    }

    pub(super) fn round(&self, is_wrong: bool, is_settled: bool) {
        let result = match (is_wrong, is_settled) {
            (true, _) => "wrong",
            (false, true) => "good",
            (false, false) => "late",
        };
        self.rounds.get_or_create(&Round { result }).inc();
        if result == "good"
            && let Ok(since) = SystemTime::now().duration_since(UNIX_EPOCH)
        {
            self.last_good.set(since.as_secs() as i64);
        }
    }
}

fn session(target: SocketAddr) -> Session {
    Session { session: target.to_string() }
}
