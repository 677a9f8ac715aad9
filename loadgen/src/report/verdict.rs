//! Whether a run was right: nothing wrong found, everything planned done, every pair resolved.

use crate::{limit, run::Outcome};

/// See the module.
#[derive(Clone, PartialEq, Debug)]
pub struct Verdict {
    /// Why not; empty: all is well.
    pub reasons: Vec<String>,
    /// What does not make the run wrong and should be known when its numbers are read.
    pub warnings: Vec<String>,
}

impl Verdict {
    /// Judges a run.
    pub fn of(outcome: &Outcome) -> Self {
        Self { reasons: reasons(outcome), warnings: warnings(outcome) }
    }

    /// Whether all is well.
    pub fn is_ok(&self) -> bool {
        self.reasons.is_empty()
    }

    /// In one word.
    pub fn word(&self) -> &'static str {
        if self.is_ok() { "ok" } else { "failed" }
    }
}

fn reasons(outcome: &Outcome) -> Vec<String> {
    let findings = &outcome.findings;
    let mut reasons = outcome.stalls.clone();
    let mut must = |holds: bool, reason: String| {
        if !holds {
            reasons.push(reason);
        }
    };
    let clean = [
        ("missing", findings.missing),
        ("extra", findings.extra),
        ("stale", findings.stale),
        ("resurrected", findings.resurrected),
        ("partial", findings.partial),
    ];
    for (name, count) in clean {
        must(count == 0, format!("{count} {name}"));
    }
    let clients = u64::from(outcome.clients);
    must(
        outcome.connections == clients,
        format!("{} connections for {clients} clients", outcome.connections),
    );
    let (_, changes) = outcome.changes;
    must(
        outcome.published == changes,
        format!("{} of {changes} planned changes published", outcome.published),
    );
    must(outcome.refused == 0, format!("{} writes or subscriptions refused", outcome.refused));
    must(outcome.measured.counts.pushes > 0, "no pushes".into());
    must(findings.unresolved == 0, format!("{} pairs unresolved", findings.unresolved));
    let stalled = outcome.stalled.as_ref().map_or(0, |stalled| stalled.measured.latency.len());
    let (samples, planned) = (outcome.measured.latency.len() + stalled, outcome.deliveries_planned);
    must(
        samples == planned || findings.unresolved > 0,
        format!("{samples} delay samples for {planned} planned pairs"),
    );
    if let Some(storm) = &outcome.storm {
        must(
            storm.resets == clients,
            format!("{} of {clients} connections reset by the storm", storm.resets),
        );
        must(
            storm.converged_s.is_some(),
            "after the storm some lists were never answered on a new connection".into(),
        );
        let removals = storm.removals.unwrap_or(0);
        must(removals == 0, format!("{removals} registrations removed by the storm"));
    }
    reasons
}

fn warnings(outcome: &Outcome) -> Vec<String> {
    let mut warnings = Vec::new();
    let (mean, worst) = (outcome.pushes_per_min(), outcome.sustained_min());
    // Few changes make uneven slices by themselves; that is the plan's doing.
    let planned_mean = outcome.deliveries_planned as f64 * 60.0 / outcome.window_s;
    if worst < mean * 0.95 && outcome.planned_min >= planned_mean * 0.95 {
        warnings.push(format!(
            "the worst 5 s slice is {:.1} % of the mean, below 95 %",
            worst / mean.max(1.0) * 100.0
        ));
    }
    let bare = outcome.limit.iter().find(|result| result.frames_per_write == 1);
    if let Some(bare) = bare.filter(|bare| bare.sends_per_s < limit::SENDS_SEEN * limit::SENDS_LEAST) {
        let part = bare.sends_per_s / limit::SENDS_SEEN * 100.0;
        let why = if outcome.stolen > 0.02 {
            format!("{:.1} % of the processor time was stolen by the host", outcome.stolen * 100.0)
        } else {
            "the machine is slower, or shared with other work".into()
        };
        warnings.push(format!("this machine gives {part:.0} % of the bare sends seen before: {why}"));
    }
    warnings
}

impl Outcome {
    /// Length of the window in seconds: as planned, or until the last push where that came later.
    pub fn duration_s(&self) -> f64 {
        self.window_s.max(self.measured.counts.last_push as f64 / 1e9)
    }

    /// Planned pairs of the window covered, at all clients.
    pub fn change_deliveries(&self) -> u64 {
        let stalled = self.stalled.as_ref().map_or(0, |stalled| stalled.measured.counts.change_deliveries);
        self.measured.counts.change_deliveries + stalled
    }

    /// Pushes per minute over the window.
    pub fn pushes_per_min(&self) -> f64 {
        self.measured.counts.pushes as f64 * 60.0 / self.duration_s().max(1e-9)
    }

    /// Processor time of the data node per push inside the window.
    pub fn data_ns_per_push(&self) -> Option<f64> {
        let pushes = self.measured.counts.pushes.max(1) as f64;
        self.cpu_s.data.map(|seconds| seconds * 1e9 / pushes)
    }

    /// Pushes in one socket write, on the average.
    pub fn pushes_per_write(&self) -> Option<f64> {
        self.socket_writes.map(|writes| self.measured.counts.pushes as f64 / writes.max(1) as f64)
    }

    /// Pushes per minute in the worst 5 s.
    pub fn sustained_min(&self) -> f64 {
        self.measured.counts.sustained_min(self.window_s as usize)
    }
}
