//! What a person and what a program reads of a measurement of capacity.

use std::path::Path;

use anyhow::anyhow;
use comfy_table::{CellAlignment, Table, presets};
use plotters::prelude::*;
use serde_json::{Value, json};
use slotcast_engine::memory::Memory;
use slotcast_net::provenance;

use super::{Capacity, CapacitySpec, Phase, REGISTER, SETTLE};
use crate::memory;

const MIB: f64 = 1048576.0;
const SIZE: (u32, u32) = (960, 480);
const RESIDENT: RGBColor = RGBColor(31, 119, 180);
const ALLOWED: RGBColor = RGBColor(214, 39, 40);
/// Looks that the JSON keeps at most.
const LOOKS_MAX: usize = 400;

/// Bytes that each publisher may take beyond its payload.
pub const OVERHEAD_MAX: f64 = 128.0;
/// Share of current records in the memory taken for records, at least, after everything was replaced and compacted.
pub const UTILIZATION_MIN: f64 = 0.85;
/// Resident memory at the end over that at the start, at most.
pub const GROWTH_MAX: f64 = 1.2;

/// What is held against the bounds: what, found, bound, whether it is kept.
pub fn verdicts(spec: &CapacitySpec, found: &Capacity) -> Vec<(&'static str, f64, f64, bool)> {
    let (overhead, mut verdicts) = (found.overhead(spec), Vec::new());
    verdicts.push((
        "bytes per publisher beyond its payload",
        overhead,
        OVERHEAD_MAX,
        overhead <= OVERHEAD_MAX,
    ));
    if let (Some(start), Some(end)) = (found.phase(REGISTER), found.phase(SETTLE))
        && spec.overwrites > 0
    {
        let (used, grown) = (end.utilization(), end.resident as f64 / start.resident.max(1) as f64);
        verdicts.push((
            "utilization of the arenas at the end",
            used,
            UTILIZATION_MIN,
            used >= UTILIZATION_MIN,
        ));
        verdicts.push(("resident memory at the end over the start", grown, GROWTH_MAX, grown <= GROWTH_MAX));
    }
    verdicts
}

/// The table of phases.
pub fn phases(found: &Capacity) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "phase",
        "operations",
        "s",
        "million/s",
        "longest turn ms",
        "resident MiB",
        "peak MiB",
        "bytes/publisher",
        "arena used",
        "moved MiB",
    ]);
    for phase in &found.phases {
        table.add_row([
            phase.name.clone(),
            phase.operations.to_string(),
            format!("{:.1}", phase.seconds),
            if phase.operations > 0 { format!("{:.2}", phase.rate / 1e6) } else { String::new() },
            format!("{:.1}", phase.turn_max_ms),
            format!("{:.0}", phase.resident as f64 / MIB),
            format!("{:.0}", phase.resident_peak as f64 / MIB),
            format!("{:.1}", phase.resident as f64 / found.publishers.max(1) as f64),
            format!("{:.3}", phase.utilization()),
            format!("{:.0}", phase.compacted_bytes as f64 / MIB),
        ]);
    }
    right(&mut table, 1..10);
    table
}

/// The table of kinds of memory: bytes per publisher once everybody is registered, and at the end.
pub fn kinds(spec: &CapacitySpec, found: &Capacity) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["bytes per publisher", "registered", "at the end"]);
    let both = [found.phase(REGISTER), found.phase(SETTLE)];
    let each = |bytes: f64| format!("{:.1}", bytes / found.publishers.max(1) as f64);
    let row = |of: &dyn Fn(&Phase) -> f64| both.map(|phase| phase.map_or(String::new(), |it| each(of(it))));
    let payload = spec.population.payload_bytes as f64 * found.publishers as f64;
    let mut add = |name: String, cells: [String; 2]| _ = table.add_row([vec![name], cells.to_vec()].concat());
    add("payload".into(), [each(payload), each(payload)]);
    add("records beside the payload".into(), row(&|it| it.memory.payload as f64 - payload));
    for (name, _) in Memory::default().kinds() {
        if name != "payload" {
            add(name.into(), row(&|it| kind(&it.memory, name)));
        }
    }
    add("resident beyond the account".into(), row(&|it| it.resident as f64 - it.memory.total() as f64));
    add("resident".into(), row(&|it| it.resident as f64));
    right(&mut table, 1..3);
    table
}

fn kind(memory: &Memory, name: &str) -> f64 {
    memory.kinds().iter().find(|(kind, _)| *kind == name).map_or(0.0, |(_, bytes)| *bytes as f64)
}

fn right(table: &mut Table, columns: std::ops::Range<usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// The same for programs.
pub fn json(spec: &CapacitySpec, found: &Capacity) -> Value {
    let kinds = |memory: &Memory| -> Value {
        memory.kinds().iter().map(|(kind, bytes)| (kind.to_string(), json!(bytes))).collect()
    };
    let phase = |it: &Phase| {
        json!({
            "phase": it.name,
            "operations": it.operations,
            "duration_s": it.seconds,
            "per_s": it.rate,
            "turn_max_ms": it.turn_max_ms,
            "rss_bytes": it.resident,
            "rss_peak_bytes": it.resident_peak,
            "huge_pages_bytes": it.huge,
            "memory": kinds(&it.memory),
            "arena_utilization": it.utilization(),
            "live_share": it.live_share(),
            "compacted_bytes": it.compacted_bytes,
        })
    };
    let keep = found.looks.len().div_ceil(LOOKS_MAX).max(1);
    let verdicts = verdicts(spec, found);
    provenance::stamped(json!({
        "verdict": if verdicts.iter().all(|(.., kept)| *kept) { "ok" } else { "over" },
        "bounds": verdicts.iter().map(|(what, found, bound, kept)| json!({
            "what": what, "found": found, "bound": bound, "kept": kept,
        })).collect::<Vec<_>>(),
        "publishers": found.publishers,
        "data_ids": found.data_ids,
        "publishers_per_data_id": spec.population.per_data_id,
        "payload_bytes": spec.population.payload_bytes,
        "name_bytes": spec.population.name_bytes,
        "sessions": spec.population.sessions,
        "shards": spec.shards,
        "slot_count": spec.shard.slot_count,
        "change_log_entries": spec.shard.change_log.entries_max,
        "huge_pages": memory::huge_pages(),
        "allocator_settings": memory::allocator_settings(),
        "rss_bytes": { "baseline": found.baseline.bytes },
        "bytes_per_publisher_beyond_payload": found.overhead(spec),
        "compared": found.compared,
        "phases": found.phases.iter().map(phase).collect::<Vec<_>>(),
        "rss_over_time": found.looks.iter().step_by(keep).map(|look| json!([look.seconds, look.resident]))
            .collect::<Vec<_>>(),
    }))
}

/// Draws resident memory over time, and what is allowed for, as SVG.
pub fn chart(spec: &CapacitySpec, found: &Capacity, path: &Path) -> anyhow::Result<()> {
    let failed = |error: &dyn std::fmt::Display| anyhow!("the chart cannot be drawn: {error}");
    let points: Vec<(f64, f64)> =
        found.looks.iter().map(|look| (look.seconds, look.resident as f64 / MIB)).collect();
    let allowed = (spec.population.payload_bytes as f64 + OVERHEAD_MAX) * found.publishers as f64 / MIB;
    let end = points.last().map_or(1.0, |point| point.0).max(0.1);
    let top = points.iter().map(|point| point.1).fold(allowed, f64::max) * 1.1;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(|error| failed(&error))?;
        let caption = format!(
            "resident memory, {} publishers, {} B of payload",
            found.publishers, spec.population.payload_bytes
        );
        let mut chart = ChartBuilder::on(&root)
            .caption(caption, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..end, 0.0..top)
            .map_err(|error| failed(&error))?;
        chart
            .configure_mesh()
            .x_desc("seconds")
            .y_desc("MiB")
            .y_label_formatter(&|mib| format!("{mib:.0}"))
            .draw()
            .map_err(|error| failed(&error))?;
        let bound = vec![(0.0, allowed), (end, allowed)];
        for (points, colour, name) in
            [(points, RESIDENT, "resident"), (bound, ALLOWED, "payload + 128 bytes each")]
        {
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))
                .map_err(|error| failed(&error))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
        }
        let mut at = 0.0;
        for phase in &found.phases {
            chart
                .draw_series([
                    PathElement::new([(at, 0.0), (at, top)], BLACK.mix(0.2).stroke_width(1)).into_dyn(),
                    Text::new(phase.name.clone(), (at, top * 0.97), ("sans-serif", 11)).into_dyn(),
                ])
                .map_err(|error| failed(&error))?;
            at += phase.seconds;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .border_style(BLACK)
            .background_style(WHITE)
            .draw()
            .map_err(|error| failed(&error))?;
        root.present().map_err(|error| failed(&error))?;
    }
    std::fs::write(path, svg)?;
    Ok(())
}
