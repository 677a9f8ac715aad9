//! The table at the end.

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

use crate::{
    find_max::{self, Step},
    ingest::IngestOutcome,
    limit::LimitResult,
    report::verdict::Verdict,
    run::Outcome,
    samples::Delays,
};

/// What the words of a run's table mean.
const LEGEND: &str = "push: one diff of one list to one client; it may cover several deliveries.\n\
    latency counts from the planned time, service from the sending.";

/// Everything worth reading about a run of links against a data node.
pub fn of_links(outcome: &Outcome, verdict: &Verdict) -> String {
    let planned = outcome.deliveries_planned as f64 / outcome.window_s;
    let mut rows = rows(outcome, verdict);
    let of = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.0}"));
    rows.push(("diffs per second, received and checked / planned", {
        format!("{} / {}", count((outcome.pushes_per_min() / 60.0) as u64), count(planned as u64))
    }));
    rows.push(("diffs per write / data CPU ns per diff", {
        format!("{} / {}", of(outcome.pushes_per_write()), of(outcome.data_ns_per_push()))
    }));
    table(rows)
}

/// Everything worth reading about registrations into a data node.
pub fn of_ingest(outcome: &IngestOutcome) -> String {
    let (found, reasons) = (&outcome.found, outcome.reasons());
    let [p50, _, p99, p999, max] = found.ack_ms;
    let resident = outcome.rss_bytes.data.unwrap_or(0);
    let mut rows = vec![
        ("verdict", if reasons.is_empty() { "ok".to_owned() } else { "failed".to_owned() }),
        ("links", format!("{} of {}", outcome.connections, outcome.spec.sessions)),
        ("registrations taken", count(found.acknowledged)),
        ("registrations per second", count(outcome.per_second() as u64)),
        ("registering s / reading back s", format!("{:.2} / {:.2}", found.register_s, found.read_s)),
        ("read back as they are, of so many data ids", {
            format!("{} / {}", count(found.exact), count(found.datums))
        }),
        ("missing / extra / stale", format!("{} / {} / {}", found.missing, found.extra, found.stale)),
        (
            "acknowledged after ms p50 / p99 / p999 / max",
            format!("{p50:.2} / {p99:.2} / {p999:.2} / {max:.2}"),
        ),
        ("bytes written / of one entry", {
            format!("{} / {}", count(found.write_bytes), outcome.entry_bytes)
        }),
        ("CPU s data / loadgen", {
            format!("{:.2} / {:.2}", outcome.cpu_s.data.unwrap_or(0.0), outcome.cpu_s.loadgen)
        }),
        ("data CPU ns per registration", format!("{:.0}", outcome.data_ns())),
        ("data resident bytes per registration", (resident / found.acknowledged.max(1)).to_string()),
        ("data resident MiB before / after", format!("{} / {}", outcome.rss_before >> 20, resident >> 20)),
        ("cores data / loadgen", format!("{} / {}", outcome.cores.0, outcome.cores.1)),
    ];
    for result in &outcome.limit {
        rows.push((
            if result.frames_per_write == 1 { "bare limit, sends/s" } else { "bare limit merged, entries/s" },
            count(if result.frames_per_write == 1 { result.sends_per_s } else { result.pushes_per_s } as u64),
        ));
    }
    rows.extend(outcome.spec.settings.iter().map(|setting| ("data node set to", setting.clone())));
    rows.extend(reasons.into_iter().map(|reason| ("not ok because", reason)));
    table(rows)
}

/// Everything worth reading about a run.
pub fn of_run(outcome: &Outcome, verdict: &Verdict) -> String {
    format!("{}\n{LEGEND}", table(rows(outcome, verdict)))
}

fn rows(outcome: &Outcome, verdict: &Verdict) -> Vec<(&'static str, String)> {
    let (findings, counts) = (&outcome.findings, &outcome.measured.counts);
    let mut rows: Vec<(&'static str, String)> = vec![
        ("verdict", verdict.word().into()),
        (
            "clients / connections",
            format!("{} / {}", count(outcome.clients.into()), count(outcome.connections)),
        ),
        ("services / publishers / canaries", {
            let (publishers, services, canaries) = outcome.population;
            format!("{} / {} / {}", count(services as u64), count(publishers as u64), count(canaries.into()))
        }),
        ("changes in the window", count(outcome.changes.0)),
        (
            "deliveries covered / planned",
            format!("{} / {}", count(outcome.change_deliveries()), count(outcome.deliveries_planned)),
        ),
        ("pushes", count(counts.pushes)),
        ("pushes per minute / worst 5 s", {
            format!("{} / {}", count(outcome.pushes_per_min() as u64), count(outcome.sustained_min() as u64))
        }),
        ("snapshots", count(counts.snapshots)),
        (
            "missing / extra / stale",
            format!("{} / {} / {}", findings.missing, findings.extra, findings.stale),
        ),
        ("resurrected / partial / unresolved", {
            format!("{} / {} / {}", findings.resurrected, findings.partial, findings.unresolved)
        }),
        ("latency ms p50 / p99 / p999 / max", delays(&outcome.measured.latency)),
        ("service ms p50 / p99 / p999 / max", delays(&outcome.measured.service)),
        ("bytes received / per push", {
            format!("{} / {}", count(counts.wire_bytes), counts.push_bytes / counts.pushes.max(1))
        }),
        ("socket writes", outcome.socket_writes.map_or("not told".into(), count)),
        ("CPU s data / session / loadgen", {
            let told = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2}"));
            let cpu = &outcome.cpu_s;
            format!("{} / {} / {:.2}", told(cpu.data), told(cpu.session), cpu.loadgen)
        }),
        ("resident MiB data / session / loadgen", {
            let mib = |value: u64| (value >> 20).to_string();
            let told = |value: Option<u64>| value.map_or("-".into(), mib);
            let rss = &outcome.rss_bytes;
            format!("{} / {} / {}", told(rss.data), told(rss.session), mib(rss.loadgen))
        }),
        ("cores session / data / workers", {
            let division = &outcome.division;
            let stands_back = match division.session_niceness {
                0 => String::new(),
                niceness => format!(" (nice {niceness})"),
            };
            format!("{:?}{stands_back} / {:?} / {:?}", division.session, division.data, division.workers)
        }),
        ("warm-up s / window s", format!("{:.1} / {:.1}", outcome.warmup_s, outcome.duration_s())),
    ];
    rows.extend(incidents(outcome));
    for result in &outcome.limit {
        let name =
            if result.frames_per_write == 1 { "bare limit, sends/s" } else { "bare limit merged, pushes/s" };
        let value = if result.frames_per_write == 1 { result.sends_per_s } else { result.pushes_per_s };
        rows.push((name, count(value as u64)));
    }
    let told = |label: &'static str, texts: &[String]| {
        texts.iter().map(move |text| (label, text.clone())).collect::<Vec<_>>()
    };
    rows.extend(told("scaling", &outcome.notes));
    rows.extend(told("warning", &verdict.warnings));
    rows.extend(told("finding", &findings.examples));
    rows.extend(told("error", &outcome.errors));
    rows.extend(told("not ok because", &verdict.reasons));
    rows
}

/// What was done to the clients, and what the session says of it.
fn incidents(outcome: &Outcome) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some(memory) = &outcome.idle_memory {
        rows.push(("session's bytes per idle client, no kernel memory", count(memory.per_client())));
    }
    if let Some(stalled) = &outcome.stalled {
        let (clients, evicted) = (count(stalled.clients.into()), count(stalled.evicted));
        rows.push(("clients that read nothing / evicted", format!("{clients} / {evicted}")));
        rows.push(("their latency ms p50 / p99 / p999 / max", delays(&stalled.measured.latency)));
    }
    let slow = outcome.slow_clients.filter(|slow| slow.slow > 0 || outcome.stalled.is_some());
    if let Some(slow) = slow {
        rows.push((
            "slow / evicted / merged diffs / bytes waiting",
            [slow.slow, slow.evicted, slow.merged, slow.waiting_bytes].map(count).join(" / "),
        ));
    }
    if let Some(storm) = &outcome.storm {
        let told = |value: Option<f64>| value.map_or("never".into(), |value| format!("{value:.2}"));
        rows.push(("storm: connected / right again after s", {
            format!("{} / {}", told(storm.connected_s), told(storm.converged_s))
        }));
        rows.push(("storm: connections/s / bytes per list", {
            let rate = storm.connections_per_s.map_or("-".into(), |rate| count(rate as u64));
            format!("{rate} / {:.0}", storm.resume_bytes)
        }));
        rows.push(("storm: snapshots / removals", {
            let removals = storm.removals.map_or("not told".into(), count);
            format!("{} / {removals}", count(storm.snapshots))
        }));
    }
    if outcome.sent_away > 0 {
        rows.push(("sent away, to come back later", count(outcome.sent_away)));
    }
    rows
}

/// The bare limit.
pub fn of_limit(results: &[LimitResult]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "frames per write",
        "frame bytes",
        "sends/s",
        "pushes/s",
        "ns per send",
        "ns per receive",
    ]);
    for result in results {
        table.add_row([
            result.frames_per_write.to_string(),
            result.frame_bytes.to_string(),
            count(result.sends_per_s as u64),
            count(result.pushes_per_s as u64),
            format!("{:.0}", result.send_ns),
            format!("{:.0}", result.receive_ns),
        ]);
    }
    table.to_string()
}

/// The steps of a search for the highest good rate.
pub fn of_steps(steps: &[Step]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["changes/s", "planned/min", "pushes/min", "p50 ms", "p999 ms", "session cores", ""]);
    let best = find_max::best(steps);
    for step in steps {
        let remark = if best == Some(step) { "max good".into() } else { step.reasons.join("; ") };
        table.add_row([
            format!("{:.0}", step.changes_per_sec),
            count(step.planned_per_min as u64),
            count(step.pushes_per_min as u64),
            format!("{:.1}", step.p50_ms),
            format!("{:.1}", step.p999_ms),
            step.session_cores.map_or("-".into(), |cores| format!("{cores:.2}")),
            remark,
        ]);
    }
    table.to_string()
}

fn table(rows: Vec<(&str, String)>) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    for (name, value) in rows {
        table.add_row([name.to_owned(), value]);
    }
    if let Some(column) = table.column_mut(0) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

fn delays(delays: &Delays) -> String {
    let at = |quantile: f64| format!("{:.2}", delays.value_at_quantile(quantile) as f64 / 1e6);
    format!("{} / {} / {} / {:.2}", at(0.5), at(0.99), at(0.999), delays.max() as f64 / 1e6)
}

/// A number with its thousands set apart.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_best_step_is_marked() {
        let step = |rate: f64, reasons: Vec<String>| super::Step {
            changes_per_sec: rate,
            planned_per_min: rate * 60.0,
            pushes_per_min: rate * 60.0,
            p50_ms: 1.0,
            p999_ms: 2.0,
            session_cores: Some(0.5),
            reasons,
        };
        let steps = [step(100.0, vec![]), step(150.0, vec!["p999 is late".into()]), step(125.0, vec![])];
        let text = super::of_steps(&steps);
        let line = |words: &str| text.lines().find(|line| line.contains(words)).unwrap().to_owned();
        assert!(line("max good").contains("125") && line("p999 is late").contains("150"));
        assert_eq!(text.matches("max good").count(), 1);
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(super::count), ["0", "999", "1,000", "1,234,567"]);
    }
}
