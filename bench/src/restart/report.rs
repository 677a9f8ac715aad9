//! What a person and what a program reads of a measured start.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};
use slotcast_net::provenance;

use super::{Restart, RestartSpec};
use crate::memory;

/// Whether the start took no longer than it may; bounds are for ten million publishers and grow with them.
pub fn is_kept(spec: &RestartSpec, found: &Restart) -> bool {
    found.started.total <= bound_s(spec)
}

/// Seconds that it may take.
pub fn bound_s(spec: &RestartSpec) -> f64 {
    spec.place.bound_s() * (spec.population.publishers as f64 / 1e7).max(1.0)
}

/// The table.
pub fn table(found: &Restart) -> Table {
    let started = &found.started;
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["phase", "s, slowest thread", "share"]);
    let mut row = |name: &str, seconds: f64| {
        table.add_row([
            name.to_string(),
            format!("{seconds:.2}"),
            format!("{:.0} %", 100.0 * seconds / started.total.max(1e-9)),
        ]);
    };
    row("open: lock, list, heads", started.open);
    row("read", started.read);
    row("checksum", started.checksum);
    row("validate", started.validate);
    row("apply and index", started.apply);
    row("journal tail", started.tail);
    row("rest of recovery", started.rest);
    row("ready: journal, first answers", started.ready);
    row("total", started.total);
    for column in 1..3 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The same for programs.
pub fn json(spec: &RestartSpec, found: &Restart) -> Value {
    let started = &found.started;
    provenance::stamped(json!({
        "verdict": if is_kept(spec, found) { "ok" } else { "over" },
        "storage": spec.place.label(),
        "publishers": started.publishers,
        "payload_bytes": spec.population.payload_bytes,
        "publishers_per_data_id": spec.population.per_data_id,
        "name_bytes": spec.population.name_bytes,
        "shards": spec.shards,
        "slots": started.slots,
        "fill_s": found.fill_s,
        "directory_bytes": found.bytes,
        "plain_read_bytes_per_s": found.read_limit,
        "plain_read": found.read_how,
        "plain_read_s": found.bytes as f64 / found.read_limit,
        "page_cache_dropped": found.dropped,
        "bound_s": bound_s(spec),
        "start": started,
        "rss_bytes": { "data": started.rss },
        "huge_pages": memory::huge_pages(),
        "huge_pages_bytes": started.huge,
        "allocator_settings": memory::allocator_settings(),
    }))
}
