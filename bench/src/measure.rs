//! How long a prepared case takes per operation.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use crate::Prepared;

/// Samples of one case; each spans enough runs to be longer than the clock's grain.
const SAMPLES: usize = 11;
const SAMPLE: Duration = Duration::from_millis(20);
const CHUNK: Duration = Duration::from_micros(100);

/// Nanoseconds per operation.
#[derive(Clone, Copy, Debug)]
pub struct Measurement {
    /// Of the fastest sample.
    pub fastest: f64,
    /// Of the sample in the middle.
    pub median: f64,
    /// The check value of every run.
    pub check: u64,
}

/// Runs a case for about a quarter of a second.
pub fn measure(prepared: &mut Prepared) -> Measurement {
    let check = prepared.run();
    let start = Instant::now();
    prepared.run();
    // The clock is read once per chunk, so that its own cost does not count.
    let chunk = (CHUNK.as_nanos() / start.elapsed().as_nanos().max(1)).max(1) as u64;
    let mut samples = [0.0; SAMPLES];
    for sample in &mut samples {
        let (start, mut runs) = (Instant::now(), 0u64);
        while start.elapsed() < SAMPLE || runs == 0 {
            for _ in 0..chunk {
                let got = black_box(prepared.run());
                assert!(got == check, "a case that computes something else each time measures nothing");
            }
            runs += chunk;
        }
        *sample = start.elapsed().as_nanos() as f64 / (runs * prepared.operations) as f64;
    }
    samples.sort_by(f64::total_cmp);
    Measurement { fastest: samples[0], median: samples[SAMPLES / 2], check }
}
