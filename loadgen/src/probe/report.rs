//! What a probe says when it ends: table and JSON.

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use slotcast_net::provenance;

use crate::probe::Outcome;

const MILLISECOND: f64 = 1e6;

fn spread(histogram: &Histogram<u64>) -> [f64; 4] {
    [0.5, 0.9, 0.99, 1.0].map(|part| histogram.value_at_quantile(part) as f64 / MILLISECOND)
}

impl Outcome {
    /// The table, and the story of the first violation.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        let verdict = if self.is_good() { "ok" } else { "failed" };
        table.add_row(["verdict".to_owned(), verdict.into()]);
        table.add_row([
            "rounds good / late / wrong".to_owned(),
            format!("{} / {} / {}", self.good, self.late, self.wrong),
        ]);
        table.add_row(["lists judged".to_owned(), self.judged.to_string()]);
        for ((target, histogram), unreached) in self.latency.iter().zip(&self.unreached) {
            if let Some(why) = unreached {
                table.add_row([target.to_string(), format!("never connected: {why}")]);
            }
            if histogram.is_empty() {
                table.add_row([format!("{target}: change to list ms"), "-".into()]);
                continue;
            }
            let [p50, p90, p99, max] = spread(histogram);
            table.add_row([
                format!("{target}: change to list ms p50 / p90 / p99 / max"),
                format!("{p50:.1} / {p90:.1} / {p99:.1} / {max:.1}"),
            ]);
        }
        table.add_row(["seconds".to_owned(), format!("{:.0}", self.seconds)]);
        let wrong: String = self.violations.iter().map(|it| format!("\n{it}")).collect();
        let story: String = self.story.iter().map(|line| format!("\n{line}")).collect();
        format!("{table}{wrong}{story}")
    }

    /// Everything, for machines.
    pub fn json(&self) -> Value {
        let seen = self.latency.iter().filter(|(_, histogram)| !histogram.is_empty());
        let latency = seen.map(|(target, histogram)| {
            let [p50, p90, p99, max] = spread(histogram);
            let told = json!({ "p50": p50, "p90": p90, "p99": p99, "max": max, "count": histogram.len() });
            (target.to_string(), told)
        });
        let never = self.latency.iter().zip(&self.unreached).filter_map(|((target, _), unreached)| {
            unreached.as_ref().map(|why| (target.to_string(), Value::from(why.as_str())))
        });
        provenance::stamped(json!({
            "verdict": if self.is_good() { "ok" } else { "failed" },
            "rounds": { "good": self.good, "late": self.late, "wrong": self.wrong },
            "judged": self.judged,
            "violations": self.violations_count,
            "first_violations": self.violations.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "story": self.story,
            "never_connected": never.collect::<serde_json::Map<_, _>>(),
            "latency_ms": latency.collect::<serde_json::Map<_, _>>(),
            "duration_s": self.seconds,
        }))
    }
}
