//! The chart: delays by percentile, pushes per second over time.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::{coord::Shift, prelude::*};

use slotcast_net::provenance;

use crate::{
    find_max::{self, Step},
    report::table::count,
    run::Outcome,
    samples::Delays,
};

const SIZE: (u32, u32) = (960, 880);
/// "Nines" shown at most: 99.9999 %.
const NINES_MAX: f64 = 6.0;
/// Room for the half of the last tick's text that is beyond the axis.
const MARGIN_RIGHT: u32 = 40;
const LATENCY: RGBColor = RGBColor(31, 119, 180);
const SERVICE: RGBColor = RGBColor(255, 127, 14);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Writes the chart of a run as SVG.
pub fn write(path: &Path, outcome: &Outcome) -> Result<()> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let (upper, lower) = root.split_vertically(SIZE.1 / 2);
        let title =
            format!("{}, {} clients", run_name(&provenance::command()), count(outcome.clients.into()));
        percentiles(&upper, &title, &outcome.measured.latency, &outcome.measured.service)?;
        rate(&lower, &title, &outcome.measured.counts.by_second)?;
        root.present().map_err(failed)?;
    }
    std::fs::write(path, svg)?;
    Ok(())
}

/// Writes the chart of a search as SVG: delay over delivered pushes per minute.
pub fn write_steps(path: &Path, steps: &[Step]) -> Result<()> {
    let mut steps: Vec<&Step> = steps.iter().collect();
    steps.sort_by(|one, other| one.planned_per_min.total_cmp(&other.planned_per_min));
    let row = |of: fn(&Step) -> f64| -> Vec<(f64, f64)> {
        steps.iter().map(|step| (step.pushes_per_min / 1e6, of(step).max(1e-3))).collect()
    };
    let (p50, p999) = (row(|step| step.p50_ms), row(|step| step.p999_ms));
    let most = p50.iter().map(|point| point.0).fold(1e-3, f64::max);
    let all = || p50.iter().chain(&p999).map(|point| point.1);
    let (low, high) = (all().fold(1.0, f64::min), all().fold(find_max::P999_MS_MAX, f64::max));
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (SIZE.0, SIZE.1 / 2)).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(format!("{}: delay by rate", run_name(&provenance::command())), ("sans-serif", 20))
            .margin(12)
            .margin_right(MARGIN_RIGHT)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..most * 1.05, (low * 0.8..high * 1.25).log_scale())
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc("pushes delivered, million per minute")
            .y_desc("ms")
            .y_label_formatter(&|ms| milliseconds(*ms))
            .draw()
            .map_err(failed)?;
        for (points, colour, name) in [(p999, LATENCY, "p999"), (p50, SERVICE, "p50")] {
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(4))
                .map_err(failed)?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
        }
        let bound = [(0.0, find_max::P999_MS_MAX), (most * 1.05, find_max::P999_MS_MAX)];
        chart
            .draw_series(LineSeries::new(bound, BLACK.stroke_width(1)))
            .map_err(failed)?
            .label(format!("limit of p999: {} ms", milliseconds(find_max::P999_MS_MAX)))
            .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], BLACK.stroke_width(1)));
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .border_style(BLACK)
            .background_style(WHITE)
            .draw()
            .map_err(failed)?;
        root.present().map_err(failed)?;
    }
    std::fs::write(path, svg)?;
    Ok(())
}

/// Delay over the number of nines: 0 is the 0th percentile, 1 the 90th, 2 the 99th.
fn percentiles(area: &Area<'_>, title: &str, latency: &Delays, service: &Delays) -> Result<()> {
    let (latency, service) = (curve(latency), curve(service));
    let all = || latency.iter().chain(&service).map(|point| point.1);
    let (low, high) = (all().fold(f64::INFINITY, f64::min).min(1.0), all().fold(1.0, f64::max));
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{title}: delay from a change to a subscriber's list"), ("sans-serif", 20))
        .margin(12)
        .margin_right(MARGIN_RIGHT)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..NINES_MAX, (low * 0.8..high * 1.25).log_scale())
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_labels(7)
        .x_label_formatter(&|nines| percent(*nines))
        .y_label_formatter(&|ms| milliseconds(*ms))
        .x_desc("percentile")
        .y_desc("ms")
        .draw()
        .map_err(failed)?;
    // They may be the same: the wide one is seen on both sides of the other.
    for (points, colour, width, name) in [
        (latency, LATENCY, 5, "latency (from the planned time)"),
        (service, SERVICE, 2, "service (from the sending)"),
    ] {
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(width)))
            .map_err(failed)?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(width)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .border_style(BLACK)
        .background_style(WHITE)
        .draw()
        .map_err(failed)
}

fn rate(area: &Area<'_>, title: &str, by_second: &[u64]) -> Result<()> {
    let most = by_second.iter().copied().max().unwrap_or(0).max(1) as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{title}: pushes per second"), ("sans-serif", 20))
        .margin(12)
        .margin_right(MARGIN_RIGHT)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..by_second.len().max(1) as f64, 0.0..most * 1.1)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("seconds since the window's start")
        .y_label_formatter(&|rate| count(rate.round() as u64))
        .draw()
        .map_err(failed)?;
    // Steps, because each number stands for a whole second.
    let steps = by_second
        .iter()
        .enumerate()
        .flat_map(|(second, &pushes)| [(second as f64, pushes as f64), (second as f64 + 1.0, pushes as f64)]);
    chart.draw_series(LineSeries::new(steps, LATENCY.stroke_width(2))).map_err(failed)?;
    Ok(())
}

/// Points of (nines, milliseconds), as far as there are samples.
fn curve(delays: &Delays) -> Vec<(f64, f64)> {
    const STEPS: u32 = 240;
    let reached = (delays.len().max(1) as f64).log10().min(NINES_MAX);
    (0..=STEPS)
        .map(|step| NINES_MAX * f64::from(step) / f64::from(STEPS))
        .take_while(|&nines| nines <= reached && !delays.is_empty())
        .map(|nines| (nines, delays.value_at_quantile(1.0 - 10f64.powf(-nines)) as f64 / 1e6))
        .collect()
}

/// The run of a command line: its preset, or what it is.
fn run_name(command: &str) -> String {
    let mut words = command.split(' ').skip(1);
    let what = words.next().unwrap_or("run").to_owned();
    let mut rest = words.skip_while(|word| !word.starts_with("--preset"));
    let preset = rest.next().and_then(|word| match word.split_once('=') {
        Some((_, preset)) => Some(preset),
        None => rest.next(),
    });
    preset.map_or(what, str::to_owned)
}

fn milliseconds(ms: f64) -> String {
    if ms >= 1_000.0 {
        return count(ms.round() as u64);
    }
    format!("{ms:.3}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn percent(nines: f64) -> String {
    let decimals = (nines - 2.0).max(0.0).ceil() as usize;
    format!("{:.decimals$} %", 100.0 - 100.0 * 10f64.powf(-nines))
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("the chart cannot be drawn: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::delays;

    #[test]
    fn percentiles_are_named_by_their_nines() {
        assert_eq!([0.0, 1.0, 2.0, 3.0, 5.0].map(percent), ["0 %", "90 %", "99 %", "99.9 %", "99.999 %"]);
    }

    #[test]
    fn titles_name_the_run() {
        let names = [
            "loadgen demo",
            "loadgen run --clients 7 --preset surge --no-limit",
            "loadgen run --preset=idle",
        ];
        assert_eq!(names.map(run_name), ["demo", "surge", "idle"]);
    }

    #[test]
    fn milliseconds_are_short_and_thousands_set_apart() {
        assert_eq!([0.25, 3.0, 100.0, 12_345.6].map(milliseconds), ["0.25", "3", "100", "12,346"]);
    }

    #[test]
    fn a_curve_ends_where_its_samples_end() {
        let mut some = delays();
        (1..=1000).for_each(|ms| some.record(ms * 1_000_000).unwrap());
        let curve = curve(&some);
        let last = curve.last().unwrap();
        assert!((last.0 - 3.0).abs() < 0.1 && last.1 > 990.0, "{last:?}");
        assert!(super::curve(&delays()).is_empty());
    }
}
