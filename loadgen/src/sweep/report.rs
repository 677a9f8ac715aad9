//! What a person and what a program reads of a sweep.

use std::path::Path;

use anyhow::{Result, anyhow};
use comfy_table::{CellAlignment, Table, presets};
use plotters::prelude::*;
use serde_json::{Value, json};
use slotcast_net::provenance;

use super::{Swept, choice::Point, grid::Axis};

const SIZE: (u32, u32) = (960, 480);

/// The table: a line per point, the recommended one marked.
pub fn table(axes: &[Axis], swept: &Swept) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    let figures =
        ["runs", "ok", "p50 ms", "p999 ms", "from", "to", "million pushes/min", "cluster CPU s", ""];
    table.set_header(axes.iter().map(|axis| axis.key.clone()).chain(figures.map(String::from)));
    for (number, point) in swept.points.iter().enumerate() {
        let (low, high) = point.range();
        let mark = match &swept.choice {
            Some(choice) if choice.point == number => "recommended",
            Some(choice) if choice.ties.contains(&number) => "as good",
            _ => "",
        };
        let values = axes.iter().zip(&point.at).map(|(axis, at)| {
            let note = if axis.default == Some(*at) { " (default)" } else { "" };
            format!("{}{note}", axis.values[*at])
        });
        let figures = [
            point.runs.len().to_string(),
            point.runs.iter().filter(|run| run.is_ok()).count().to_string(),
            format!("{:.1}", point.median(|run| run.p50_ms)),
            format!("{:.1}", point.median(|run| run.p999_ms)),
            format!("{low:.1}"),
            format!("{high:.1}"),
            format!("{:.2}", point.median(|run| run.pushes_per_min) / 1e6),
            format!("{:.1}", point.median(|run| run.cpu_s)),
            mark.to_string(),
        ];
        table.add_row(values.chain(figures));
    }
    for column in axes.len()..axes.len() + 8 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The recommendation in words.
pub fn recommendation(axes: &[Axis], swept: &Swept) -> String {
    match &swept.choice {
        Some(choice) => {
            let settings = super::grid::settings(axes, &swept.points[choice.point].at).join(", ");
            format!("recommended: {settings}: {}", choice.reason)
        }
        None => "nothing is recommended: no point had good runs only".into(),
    }
}

/// The same for programs.
pub fn json(axes: &[Axis], swept: &Swept) -> Value {
    let point = |point: &Point| {
        let settings: serde_json::Map<String, Value> = axes
            .iter()
            .zip(&point.at)
            .map(|(axis, at)| (axis.key.clone(), json!(axis.values[*at])))
            .collect();
        json!({
            "settings": settings,
            "ok": point.is_ok(),
            "p999_ms_median": point.median(|run| run.p999_ms),
            "runs": point.runs,
        })
    };
    let axis = |axis: &Axis| json!({ "key": axis.key, "values": axis.values, "default": axis.default.map(|at| &axis.values[at]) });
    let choice = swept.choice.as_ref();
    provenance::stamped(json!({
        "verdict": if choice.is_some() { "ok" } else { "failed" },
        "axes": axes.iter().map(axis).collect::<Vec<_>>(),
        "points": swept.points.iter().map(point).collect::<Vec<_>>(),
        "recommended": choice.map(|choice| point(&swept.points[choice.point])["settings"].take()),
        "as_good": choice.map_or(Vec::new(), |choice| choice.ties.clone()),
        "recommendation": recommendation(axes, swept),
        "resumed_runs": swept.resumed,
    }))
}

/// Draws the 99.9th percentile over the first setting's values, a line for each combination of the others, with all runs as
/// dots.
pub fn chart(axes: &[Axis], swept: &Swept, path: &Path) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| anyhow!("the chart cannot be drawn: {error}");
    let Some(first) = axes.first() else { return Ok(()) };
    let most = swept.points.iter().map(|point| point.range().1).fold(1.0, f64::max);
    let end = first.values.len().max(2) as f64 - 1.0;
    let mut others: Vec<&[usize]> = swept.points.iter().map(|point| &point.at[1..]).collect();
    others.sort_unstable();
    others.dedup();
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(|error| failed(&error))?;
        let mut chart = ChartBuilder::on(&root)
            .caption("99.9th percentile of the delay, median of the runs", ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(-0.2..end + 0.2, 0.0..most * 1.1)
            .map_err(|error| failed(&error))?;
        let label = |at: &f64| {
            let whole = (at - at.round()).abs() < 0.01;
            let value = whole.then(|| first.values.get(at.round() as usize)).flatten();
            value.cloned().unwrap_or_default()
        };
        chart
            .configure_mesh()
            .x_labels(2 * first.values.len() + 1)
            .x_label_formatter(&label)
            .y_label_formatter(&|ms| format!("{ms:.1}"))
            .x_desc(&first.key)
            .y_desc("ms")
            .draw()
            .map_err(|error| failed(&error))?;
        for (number, other) in others.iter().enumerate() {
            let colour = Palette99::pick(number).to_rgba();
            let line: Vec<&Point> = swept.points.iter().filter(|point| &&point.at[1..] == other).collect();
            let medians = line.iter().map(|point| (point.at[0] as f64, point.median(|run| run.p999_ms)));
            let settings = axes[1..].iter().zip(*other).map(|(axis, at)| {
                let name = axis.key.rsplit('.').next().unwrap_or(&axis.key);
                format!("{name} {}", axis.values[*at])
            });
            let name = settings.collect::<Vec<_>>().join(", ");
            chart
                .draw_series(LineSeries::new(medians, colour.stroke_width(2)))
                .map_err(|error| failed(&error))?
                .label(if name.is_empty() { "p999".to_string() } else { name })
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
            let dots = line.iter().flat_map(|point| {
                point
                    .runs
                    .iter()
                    .map(|run| Circle::new((point.at[0] as f64, run.p999_ms), 3, colour.filled()))
            });
            chart.draw_series(dots).map_err(|error| failed(&error))?;
        }
        chart
            .configure_series_labels()
            .border_style(BLACK)
            .background_style(WHITE)
            .draw()
            .map_err(|error| failed(&error))?;
        root.present().map_err(|error| failed(&error))?;
    }
    std::fs::write(path, svg)?;
    Ok(())
}
