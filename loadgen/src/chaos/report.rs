//! What is told of it: table and JSON.

use std::{collections::BTreeMap, fmt};

use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Value, json};
use slotcast_net::provenance;

use crate::{
    chaos::{ChaosSpec, Outcome, truth::Violation},
    clock::MILLISECOND,
};

/// Characters of a line of the table.
const TABLE_WIDTH: u16 = 140;
/// Violations told word by word.
const TOLD_MAX: usize = 50;

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at / MILLISECOND;
        write!(
            f,
            "{} at {at} ms, client {}, data id {:x}: {}",
            self.wrong, self.client, self.datum.0, self.what
        )
    }
}

fn told([p50, p90, max]: [u64; 3]) -> String {
    format!("{p50} / {p90} / {max}")
}

fn right_ms(round: &super::Round) -> u64 {
    round.right_ms.unwrap_or(0)
}

impl Outcome {
    /// Whether nothing was wrong and something was done.
    pub fn is_good(&self) -> bool {
        self.violations.is_empty() && !self.rounds.is_empty() && self.judged > 0
    }

    fn spread(&self, of: impl Fn(&super::Round) -> u64) -> [u64; 3] {
        let mut all: Vec<u64> = self.rounds.iter().map(of).collect();
        all.sort_unstable();
        let at = |part: usize| all.get(all.len().saturating_sub(1) * part / 100).copied().unwrap_or(0);
        [at(50), at(90), at(100)]
    }

    fn by_fault(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        self.rounds.iter().for_each(|round| *counts.entry(round.fault.as_str()).or_default() += 1);
        counts
    }

    fn by_kind(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        self.violations.iter().for_each(|it| *counts.entry(it.wrong.to_string()).or_default() += 1);
        counts
    }

    /// The table at the end, and the story of the first violation.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        // The faults of a long run are many.
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(TABLE_WIDTH);
        let [ready, settled] =
            [self.spread(|round| round.ready_ms), self.spread(|round| round.settled_ms)].map(told);
        let listed = |counts: Vec<String>| counts.join(", ");
        let mut rows = vec![
            ("verdict", if self.is_good() { "ok".to_owned() } else { "failed".to_owned() }),
            (
                "rounds",
                listed(self.by_fault().iter().map(|(fault, count)| format!("{count} {fault}")).collect()),
            ),
            ("operations / acknowledged writes", format!("{} / {}", self.operations, self.acknowledged)),
            ("of these, of persistent registrations", self.durable.to_string()),
            ("diffs received / lists judged / with something lingering", {
                format!("{} / {} / {}", self.diffs, self.judged, self.lingering)
            }),
            ("ready and whole again after ms p50 / p90 / max", ready),
            ("settled after ms p50 / p90 / max", settled),
            ("seconds", format!("{:.0}", self.seconds)),
        ];
        for moved in &self.moves {
            rows.push((
                "publishers moved / whole ms / longest write ms / all right ms",
                format!(
                    "{} / {} / {} / {}",
                    moved.publishers, moved.moved_ms, moved.longest_write_ms, moved.right_ms
                ),
            ));
        }
        if self.rounds.iter().any(|round| round.right_ms.is_some()) {
            rows.push((
                "right again without whoever failed, after ms p50 / p90 / max",
                told(self.spread(right_ms)),
            ));
        }
        if !self.violations.is_empty() {
            let counts = self.by_kind().iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            rows.push(("violations", listed(counts)));
        }
        for (name, value) in rows {
            table.add_row([name, &value]);
        }
        let story: String = self.story.iter().map(|line| format!("\n{line}")).collect();
        format!("{table}{story}")
    }

    /// Everything, for machines.
    pub fn json(&self, spec: &ChaosSpec) -> Value {
        let [ready, settled] = [self.spread(|round| round.ready_ms), self.spread(|round| round.settled_ms)]
            .map(|[p50, p90, max]| json!({ "p50": p50, "p90": p90, "max": max }));
        let kinds = self.by_kind();
        let count = |kind: &str| kinds.get(kind).copied().unwrap_or(0);
        provenance::stamped(json!({
            "verdict": if self.is_good() { "ok" } else { "failed" },
            "scenario": format!("{:?}", spec.scenario),
            "processes": spec.shape,
            "partitions": super::network::Network::inside().is_some(),
            "storage": spec.storage,
            "clients": spec.clients,
            "services": spec.services,
            "rounds": self.rounds,
            "faults": self.by_fault(),
            "operations": self.operations,
            "acknowledged": self.acknowledged,
            "durable": self.durable,
            "diffs": self.diffs,
            "judged": self.judged,
            "lingering": self.lingering,
            "partial": count("partial"),
            "resurrected": count("resurrected"),
            "stale": count("stale") + count("outdated"),
            "violations": kinds,
            "first_violations": self.violations.iter().take(TOLD_MAX).map(Violation::to_string).collect::<Vec<_>>(),
            "story": self.story,
            "ready_ms": ready,
            "settled_ms": settled,
            "right_ms": self.rounds.iter().any(|round| round.right_ms.is_some()).then(|| {
                let [p50, p90, max] = self.spread(right_ms);
                json!({ "p50": p50, "p90": p90, "max": max })
            }),
            "duration_s": self.seconds,
            "moves": self.moves,
            "seed": spec.seed,
        }))
    }
}
