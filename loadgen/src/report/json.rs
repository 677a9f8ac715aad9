//! The JSON of a run. Keys may be added, never changed.

use serde_json::{Value, json};
use slotcast_net::provenance;

use crate::{
    find_max::{self, Step},
    ingest::IngestOutcome,
    limit::LimitResult,
    report::verdict::Verdict,
    run::{Outcome, PerRole},
    samples::Delays,
};

/// Everything about a run.
pub fn of_run(outcome: &Outcome, verdict: &Verdict) -> Value {
    let mut all = agreed(outcome, verdict);
    if let (Value::Object(all), Value::Object(more)) = (&mut all, added(outcome, verdict)) {
        all.extend(more);
    }
    all
}

/// Everything about a run of links against a data node.
pub fn of_links(outcome: &Outcome, verdict: &Verdict) -> Value {
    let mut all = of_run(outcome, verdict);
    if let Value::Object(all) = &mut all {
        all.insert("diffs_per_s".into(), json!(outcome.pushes_per_min() / 60.0));
        all.insert("data_cpu_ns_per_diff".into(), json!(outcome.data_ns_per_push()));
        all.insert("diffs_per_write".into(), json!(outcome.pushes_per_write()));
    }
    all
}

/// Everything about registrations into a data node. There are no changes and no pushes; delays are those of the
/// acknowledgements.
pub fn of_ingest(outcome: &IngestOutcome) -> Value {
    let (found, reasons) = (&outcome.found, outcome.reasons());
    let [p50, p90, p99, p999, max] = found.ack_ms;
    let delays = json!({ "p50": p50, "p90": p90, "p99": p99, "p999": p999, "max": max });
    let single = outcome.limit.iter().find(|result| result.frames_per_write == 1);
    let merged = outcome.limit.iter().find(|result| result.frames_per_write > 1);
    let mut all = provenance::stamped(json!({
        "verdict": if reasons.is_empty() { "ok" } else { "failed" },
        "clients": outcome.spec.sessions,
        "connections": outcome.connections,
        "changes": 0,
        "change_deliveries": 0,
        "pushes": 0,
        "pushes_per_min": 0.0,
        "sustained_min": 0.0,
        "snapshots": found.datums,
        "socket_writes": Value::Null,
        "wire_bytes": found.write_bytes,
        "missing": found.missing,
        "extra": found.extra,
        "stale": found.stale,
        "resurrected": 0,
        "partial": 0,
        "latency_ms": delays,
        "service_ms": delays,
        "cpu_s": per_role(&outcome.cpu_s),
        "rss_bytes": per_role(&outcome.rss_bytes),
        "limit_sends_per_s": single.map(|result| result.sends_per_s),
        "limit_merged_pushes_per_s": merged.map(|result| result.pushes_per_s),
        "warmup_s": outcome.warmup_s,
        "duration_s": found.register_s,
    }));
    let more = json!({
        "verdict_reasons": reasons,
        "registrations": found.acknowledged,
        "registrations_per_s": outcome.per_second(),
        "registrations_exact": found.exact,
        "data_cpu_ns_per_registration": outcome.data_ns(),
        "entry_bytes": outcome.entry_bytes,
        "write_frames": found.write_frames,
        "read_back_s": found.read_s,
        "refused": outcome.lost_refused.1,
        "lost_connections": outcome.lost_refused.0,
        "rss_bytes_before": outcome.rss_before,
        "errors": found.errors,
        "settings": outcome.spec.settings,
        "limit": outcome.limit,
    });
    if let (Value::Object(all), Value::Object(more)) = (&mut all, more) {
        all.extend(more);
    }
    all
}

/// The keys that readers rely on.
fn agreed(outcome: &Outcome, verdict: &Verdict) -> Value {
    let (findings, counts) = (&outcome.findings, &outcome.measured.counts);
    let single = outcome.limit.iter().find(|result| result.frames_per_write == 1);
    let merged = outcome.limit.iter().find(|result| result.frames_per_write > 1);
    provenance::stamped(json!({
        "verdict": verdict.word(),
        "clients": outcome.clients,
        "connections": outcome.connections,
        "changes": outcome.changes.0,
        "change_deliveries": outcome.change_deliveries(),
        "pushes": counts.pushes,
        "pushes_per_min": outcome.pushes_per_min(),
        "sustained_min": outcome.sustained_min(),
        "snapshots": counts.snapshots,
        "socket_writes": outcome.socket_writes,
        "wire_bytes": counts.wire_bytes,
        "missing": findings.missing,
        "extra": findings.extra,
        "stale": findings.stale,
        "resurrected": findings.resurrected,
        "partial": findings.partial,
        "latency_ms": delays(&outcome.measured.latency),
        "service_ms": delays(&outcome.measured.service),
        "cpu_s": per_role(&outcome.cpu_s),
        "rss_bytes": per_role(&outcome.rss_bytes),
        "limit_sends_per_s": single.map(|result| result.sends_per_s),
        "limit_merged_pushes_per_s": merged.map(|result| result.pushes_per_s),
        "warmup_s": outcome.warmup_s,
        "duration_s": outcome.duration_s(),
    }))
}

fn added(outcome: &Outcome, verdict: &Verdict) -> Value {
    let (findings, counts) = (&outcome.findings, &outcome.measured.counts);
    let (publishers, services, canaries) = outcome.population;
    json!({
        "verdict_reasons": verdict.reasons,
        "warnings": verdict.warnings,
        "changes_published": outcome.published,
        "change_deliveries_planned": outcome.deliveries_planned,
        "wire_bytes_warmup": counts.wire_bytes_before,
        "push_bytes": counts.push_bytes,
        "unresolved": findings.unresolved,
        "refused": outcome.refused,
        "lost_connections": outcome.lost,
        "findings": findings.examples,
        "errors": outcome.errors,
        "limit": outcome.limit,
        "frame_bytes": outcome.frame_bytes,
        "publishers": publishers,
        "services": services,
        "canaries": canaries,
        "scaling": outcome.notes,
        "cores": outcome.division,
        "stolen": outcome.stolen,
        "stalled_clients": outcome.stalled.as_ref().map_or(0, |stalled| stalled.clients),
        "latency_stalled_ms": outcome.stalled.as_ref().map(|stalled| delays(&stalled.measured.latency)),
        "pushes_stalled": outcome.stalled.as_ref().map(|stalled| stalled.measured.counts.pushes),
        "snapshots_stalled": outcome.stalled.as_ref().map(|stalled| stalled.measured.counts.snapshots),
        "evicted_stalled": outcome.stalled.as_ref().map(|stalled| stalled.evicted),
        "slow_clients": outcome.slow_clients,
        "reconnect_storm": outcome.storm,
        "sent_away": outcome.sent_away,
        "idle_memory_bytes": outcome.idle_memory,
        "idle_bytes_per_client": outcome.idle_memory.map(|memory| memory.per_client()),
    })
}

/// The search for the highest good rate: the keys of the best good step (of the first one, if none was good), all steps, and
/// `max_good`.
pub fn of_find_max(steps: &[Step], outcome: &Outcome, verdict: &Verdict) -> Value {
    let mut all = of_run(outcome, verdict);
    if let Value::Object(all) = &mut all {
        all.insert("steps".into(), json!(steps));
        all.insert("max_good".into(), json!(find_max::best(steps)));
    }
    all
}

/// The bare limit alone.
pub fn of_limit(results: &[LimitResult], connections: u32) -> Value {
    let find = |frames: u32| results.iter().find(|result| result.frames_per_write == frames);
    provenance::stamped(json!({
        "connections": connections,
        "limit_sends_per_s": find(1).map(|result| result.sends_per_s),
        "limit_merged_pushes_per_s": results.iter().filter(|result| result.frames_per_write > 1).map(|result| result.pushes_per_s).next_back(),
        "limit": results,
    }))
}

fn delays(delays: &Delays) -> Value {
    let at = |quantile: f64| delays.value_at_quantile(quantile) as f64 / 1e6;
    json!({ "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999), "max": delays.max() as f64 / 1e6 })
}

fn per_role<T: Copy + serde::Serialize + Default>(values: &PerRole<T>) -> Value {
    json!({ "data": values.data, "session": values.session, "meta": Value::Null, "loadgen": values.loadgen })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        division::Division,
        incident::{Stalled, StormReport},
        samples::Measured,
        verify::truth::Findings,
    };

    const KEYS: &str = "verdict, clients, connections, changes, change_deliveries, pushes, pushes_per_min, sustained_min, \
        snapshots, socket_writes, wire_bytes, missing, extra, stale, resurrected, partial, latency_ms, service_ms, cpu_s, \
        rss_bytes, limit_sends_per_s, limit_merged_pushes_per_s, warmup_s, duration_s, command, commit, machine";

    fn outcome() -> Outcome {
        let mut measured = Measured::default();
        measured.counts.pushes = 600;
        measured.latency.record_n(2_000_000, 600).unwrap();
        Outcome {
            clients: 10,
            connections: 10,
            changes: (6, 8),
            published: 8,
            deliveries_planned: 600,
            refused: 0,
            lost: 0,
            measured,
            findings: Findings::default(),
            errors: Vec::new(),
            stalls: Vec::new(),
            socket_writes: None,
            cpu_s: PerRole::default(),
            rss_bytes: PerRole::default(),
            limit: Vec::new(),
            stolen: 0.0,
            warmup_s: 1.0,
            window_s: 10.0,
            frame_bytes: 240,
            population: (1, 1, 0),
            planned_min: 0.0,
            notes: Vec::new(),
            division: Division::new(&[0, 1], 10, None, None),
            window_began: std::time::SystemTime::now(),
            stalled: None,
            storm: None,
            slow_clients: None,
            sent_away: 0,
            idle_memory: None,
        }
    }

    fn storm() -> StormReport {
        StormReport {
            resets: 10,
            connected_s: Some(1.0),
            converged_s: Some(2.0),
            connections_per_s: Some(10.0),
            snapshots: 0,
            resume_bytes: 100.0,
            removals: Some(0),
        }
    }

    #[test]
    fn pairs_of_clients_that_stalled_count_as_resolved_and_are_told_by_themselves() {
        let mut outcome = outcome();
        outcome.deliveries_planned = 650;
        let mut stalled = Measured::default();
        stalled.latency.record_n(9_000_000_000, 50).unwrap();
        outcome.stalled = Some(Stalled { clients: 3, measured: stalled, evicted: 2 });
        let verdict = Verdict::of(&outcome);
        assert!(verdict.is_ok(), "{:?}", verdict.reasons);
        let json = of_run(&outcome, &verdict);
        assert!(json["latency_ms"]["max"].as_f64().unwrap() < 10.0);
        assert!(json["latency_stalled_ms"]["p50"].as_f64().unwrap() > 8_000.0);
        assert_eq!((json["stalled_clients"].as_u64(), json["evicted_stalled"].as_u64()), (Some(3), Some(2)));
    }

    #[test]
    fn every_agreed_key_is_there() {
        let outcome = outcome();
        let json = of_run(&outcome, &Verdict::of(&outcome));
        for key in KEYS.split(", ").map(str::trim) {
            assert!(json.get(key).is_some(), "{key}");
        }
        for key in ["p50", "p90", "p99", "p999", "max"] {
            assert!(json["latency_ms"][key].is_number() && json["service_ms"].get(key).is_some());
        }
        for key in ["data", "session", "meta", "loadgen"] {
            assert!(json["cpu_s"].get(key).is_some() && json["rss_bytes"].get(key).is_some());
        }
        assert_eq!((json["verdict"].as_str(), json["pushes_per_min"].as_f64()), (Some("ok"), Some(3600.0)));
        let text = json.to_string();
        assert!(!text.contains("/home/") && !text.contains("/tmp/"));
    }

    #[test]
    fn anything_wrong_makes_the_verdict_fail() {
        let spoil: [fn(&mut Outcome); 13] = [
            |outcome| outcome.findings.missing = 1,
            |outcome| outcome.findings.extra = 1,
            |outcome| outcome.findings.stale = 1,
            |outcome| outcome.findings.resurrected = 1,
            |outcome| outcome.findings.partial = 1,
            |outcome| outcome.findings.unresolved = 1,
            |outcome| outcome.connections = 9,
            |outcome| outcome.published = 7,
            |outcome| outcome.measured.counts.pushes = 0,
            |outcome| outcome.deliveries_planned = 601,
            |outcome| outcome.storm = Some(StormReport { removals: Some(1), ..storm() }),
            |outcome| outcome.storm = Some(StormReport { converged_s: None, ..storm() }),
            |outcome| outcome.storm = Some(StormReport { resets: 9, ..storm() }),
        ];
        assert!(Verdict::of(&outcome()).is_ok());
        assert!(Verdict::of(&Outcome { storm: Some(storm()), ..outcome() }).is_ok());
        for (index, spoil) in spoil.iter().enumerate() {
            let mut outcome = outcome();
            spoil(&mut outcome);
            assert!(!Verdict::of(&outcome).is_ok(), "spoilt {index}");
        }
    }
}
