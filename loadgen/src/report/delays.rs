//! The log of delays: one histogram per second, in the text format that HdrHistogram tools read.

use std::{fs::File, io::BufWriter, path::Path, time::Duration};

use anyhow::{Context, Result, anyhow};
use hdrhistogram::serialization::{V2DeflateSerializer, interval_log::IntervalLogWriterBuilder};

use crate::run::Outcome;

/// Writes the delays from the intended times, second by second. Values are nanoseconds; the column of maxima is in
/// milliseconds.
pub fn write(path: &Path, outcome: &Outcome) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut out = BufWriter::new(file);
    let mut serializer = V2DeflateSerializer::new();
    let mut builder = IntervalLogWriterBuilder::new();
    builder
        .add_comment("delay from the intended time of a change to a subscriber's list, nanoseconds")
        .with_base_time(outcome.window_began)
        .with_start_time(outcome.window_began)
        .with_max_value_divisor(1e6);
    let mut log = builder.begin_log_with(&mut out, &mut serializer)?;
    for (second, delays) in &outcome.measured.intervals {
        log.write_histogram(delays, Duration::from_secs(*second), Duration::from_secs(1), None)
            .map_err(|error| anyhow!("the log of delays cannot be written: {error:?}"))?;
    }
    Ok(())
}
