//! What a person and what a program reads of a comparison.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::{Comparison, PeersSpec, Row};
use slotcast_net::provenance;

fn shape(row: &Row) -> String {
    if row.topics == 1 { "fan-out".into() } else { format!("{} topics", row.topics) }
}

fn writes(row: &Row) -> &'static str {
    if row.window == 1 { "one per write" } else { "merged" }
}

/// The table.
pub fn table(found: &Comparison) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "system",
        "shape",
        "messages",
        "deliveries/s",
        "round p50 ms",
        "round p99 ms",
        "server CPU us/delivery",
        "server RSS MiB",
        "bytes/delivery",
    ]);
    for row in &found.rows {
        let figures = &row.figures;
        table.add_row([
            row.system.to_string(),
            shape(row),
            writes(row).to_string(),
            format!("{:.0}", figures.per_second()),
            format!("{:.2}", figures.round_ms(0.5)),
            format!("{:.2}", figures.round_ms(0.99)),
            format!("{:.3}", figures.cpu_us()),
            format!("{:.1}", figures.rss_bytes as f64 / f64::from(1 << 20)),
            format!("{:.0}", figures.wire_bytes_each()),
        ]);
    }
    for column in 3..9 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The same for programs.
pub fn json(spec: &PeersSpec, found: &Comparison) -> Value {
    let row = |row: &Row| {
        let figures = &row.figures;
        json!({
            "system": row.system,
            "topics": row.topics,
            "rounds_under_way": row.window,
            "deliveries": figures.deliveries,
            "rounds": figures.rounds,
            "duration_s": figures.seconds,
            "deliveries_per_s": figures.per_second(),
            "round_ms": {
                "p50": figures.round_ms(0.5),
                "p99": figures.round_ms(0.99),
                "max": figures.round_ms(1.0),
            },
            "cpu_s": { "server": figures.cpu_s },
            "server_cpu_us_per_delivery": figures.cpu_us(),
            "rss_bytes": { "server": figures.rss_bytes },
            "wire_bytes": figures.wire_bytes,
        })
    };
    provenance::stamped(json!({
        "subscribers": spec.subscribers,
        "topics": spec.topics,
        "message_bytes": spec.message_bytes,
        "server_core": spec.server_core,
        "load_core": spec.load_core,
        "rows": found.rows.iter().map(row).collect::<Vec<_>>(),
        "absent": found.absent,
    }))
}
