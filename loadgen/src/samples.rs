//! What a worker measures: delays, pushes per second, bytes.
//!
//! Every planned (change, subscriber) pair of the window ends in exactly one sample of each delay.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use hdrhistogram::{
    Histogram,
    serialization::{Deserializer, Serializer, V2Serializer},
};
use serde::{Deserialize, Serialize};

use crate::{
    board::Board,
    clock::SECOND,
    verify::transition::{Coverage, Covered, Transition},
    workload::Workload,
};

/// Longest delay told apart, in nanoseconds.
const DELAY_MAX: u64 = 120 * SECOND;
const DIGITS: u8 = 3;

/// Delays in nanoseconds.
pub type Delays = Histogram<u64>;

/// An empty histogram of delays.
pub fn delays() -> Delays {
    // The arguments are constants that the library accepts.
    Histogram::new_with_bounds(1, DELAY_MAX, DIGITS).unwrap_or_else(|_| unreachable!("bounds are valid"))
}

/// Counters of one worker, or summed over all.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Counts {
    /// Frames that brought planned changes of the window.
    pub pushes: u64,
    /// Bytes of those frames.
    pub push_bytes: u64,
    /// Snapshots, initial ones included.
    pub snapshots: u64,
    /// Planned pairs of the window covered.
    pub change_deliveries: u64,
    /// Planned pairs covered, those before the window included.
    pub resolved: u64,
    /// Bytes received from the start of the window on.
    pub wire_bytes: u64,
    /// Bytes received before.
    pub wire_bytes_before: u64,
    /// The arrival of the last push, nanoseconds after the window's start.
    pub last_push: u64,
    /// Pushes by second of arrival since the window's start.
    pub by_second: Vec<u64>,
}

impl Counts {
    /// Adds those of another worker.
    pub fn add(&mut self, other: &Counts) {
        self.pushes += other.pushes;
        self.push_bytes += other.push_bytes;
        self.snapshots += other.snapshots;
        self.change_deliveries += other.change_deliveries;
        self.resolved += other.resolved;
        self.wire_bytes += other.wire_bytes;
        self.wire_bytes_before += other.wire_bytes_before;
        self.last_push = self.last_push.max(other.last_push);
        self.by_second.resize(self.by_second.len().max(other.by_second.len()), 0);
        self.by_second.iter_mut().zip(&other.by_second).for_each(|(sum, &more)| *sum += more);
    }

    /// Pushes per minute in the worst 5 seconds of the first `seconds`; over all of them when they are fewer.
    pub fn sustained_min(&self, seconds: usize) -> f64 {
        const SLICE: usize = 5;
        let mut row = self.by_second.clone();
        row.resize(seconds.max(1), 0);
        let slice = SLICE.min(row.len());
        let worst = row.windows(slice).map(|part| part.iter().sum::<u64>()).min().unwrap_or(0);
        worst as f64 * 60.0 / slice as f64
    }
}

/// Frames applied since the clock was last read.
struct Applied {
    transition: Transition,
    is_snapshot: bool,
    frames: u64,
    bytes: u64,
}

/// See the module.
pub struct Samples<'w> {
    workload: &'w Workload,
    board: &'w Board,
    /// Counters so far.
    pub counts: Counts,
    waiting: Vec<Applied>,
    latency: Delays,
    service: Delays,
    interval: Delays,
    interval_second: u64,
    intervals: Vec<(u64, Delays)>,
}

impl<'w> Samples<'w> {
    /// Nothing measured yet.
    pub fn new(workload: &'w Workload, board: &'w Board) -> Self {
        Self {
            workload,
            board,
            counts: Counts::default(),
            waiting: Vec::new(),
            latency: delays(),
            service: delays(),
            interval: delays(),
            interval_second: 0,
            intervals: Vec::new(),
        }
    }

    /// A frame was applied; its time is the next [`Samples::settle`].
    pub fn applied(&mut self, transition: Transition, is_snapshot: bool, bytes: usize) {
        if let Some(last) = self.waiting.last_mut()
            && last.transition.observation == transition.observation
            && last.is_snapshot == is_snapshot
        {
            last.frames += 1;
            last.bytes += bytes as u64;
            return;
        }
        self.waiting.push(Applied { transition, is_snapshot, frames: 1, bytes: bytes as u64 });
    }

    /// The clock has been read: everything applied before counts as of now.
    pub fn settle(&mut self, now: u64) {
        let mut waiting = std::mem::take(&mut self.waiting);
        for Applied { transition, is_snapshot, frames, bytes } in waiting.drain(..) {
            self.cover(&transition.covered, now, frames);
            if is_snapshot {
                self.counts.snapshots += frames;
            } else if transition.in_window {
                self.count_pushes(now, frames, bytes);
            }
        }
        self.waiting = waiting;
    }

    /// A frame of `bytes` bytes that is no snapshot was applied, as of now.
    pub fn arrived(&mut self, transition: &Transition, bytes: usize, now: u64) {
        self.cover(&transition.covered, now, 1);
        if transition.in_window {
            self.count_pushes(now, 1, bytes as u64);
        }
    }

    fn cover(&mut self, covered: &Coverage, now: u64, pairs: u64) {
        match covered {
            Coverage::Nothing => {}
            &Coverage::One { intended, sent } => self.sample(intended, sent, now, pairs),
            Coverage::Many(covered) => {
                covered.iter().for_each(|&covered| self.resolve(covered, now, pairs));
            }
        }
    }

    /// Resolves `pairs` pairs of one change at `now`, or when its cancellation was acknowledged if that was before.
    pub fn resolve(&mut self, covered: Covered, now: u64, pairs: u64) {
        if !self.workload.in_window(covered.op) {
            self.counts.resolved += pairs;
            return;
        }
        let cancelled = covered.cancelled_by.and_then(|op| self.board.acknowledged(op));
        let now = cancelled.map_or(now, |(clock, _)| clock.min(now));
        let intended = self.board.start() + self.workload.ops()[covered.op as usize].at;
        self.sample(intended, self.board.sent(covered.op), now, pairs);
    }

    /// A change of the window that was meant for `intended` and sent at `sent` is in `pairs` lists more.
    fn sample(&mut self, intended: u64, sent: u64, now: u64, pairs: u64) {
        self.rotate(now);
        let delay = |since: u64| now.saturating_sub(since).clamp(1, DELAY_MAX);
        self.interval.saturating_record_n(delay(intended), pairs);
        self.service.saturating_record_n(delay(sent.max(intended.min(now))), pairs);
        self.counts.resolved += pairs;
        self.counts.change_deliveries += pairs;
    }

    /// Bytes came off a socket at about `now`.
    pub fn received(&mut self, now: u64, bytes: u64) {
        let is_inside = self.board.start() > 0 && now >= self.window_start();
        let counter =
            if is_inside { &mut self.counts.wire_bytes } else { &mut self.counts.wire_bytes_before };
        *counter += bytes;
    }

    fn window_start(&self) -> u64 {
        self.board.start() + self.workload.window().start
    }

    fn count_pushes(&mut self, now: u64, frames: u64, bytes: u64) {
        let since = now.saturating_sub(self.window_start());
        let second = (since / SECOND) as usize;
        let counts = &mut self.counts;
        counts.pushes += frames;
        counts.push_bytes += bytes;
        counts.last_push = counts.last_push.max(since);
        counts.by_second.resize(counts.by_second.len().max(second + 1), 0);
        counts.by_second[second] += frames;
    }

    /// Closes the interval when a second has gone by.
    fn rotate(&mut self, now: u64) {
        let second = now.saturating_sub(self.window_start()) / SECOND;
        if second > self.interval_second {
            self.close_interval();
            self.interval_second = second;
        }
    }

    fn close_interval(&mut self) {
        if self.interval.is_empty() {
            return;
        }
        // The bounds of all histograms here are the same, so adding cannot fail.
        let _ = self.latency.add(&self.interval);
        self.intervals.push((self.interval_second, std::mem::replace(&mut self.interval, delays())));
    }

    /// Ends the measuring.
    pub fn finish(mut self) -> Measured {
        self.close_interval();
        let Self { counts, latency, service, intervals, .. } = self;
        Measured { counts, latency, service, intervals }
    }
}

/// What was measured.
pub struct Measured {
    /// Counters.
    pub counts: Counts,
    /// From the intended time of a change.
    pub latency: Delays,
    /// From its sending.
    pub service: Delays,
    /// `latency` by second since the window's start.
    pub intervals: Vec<(u64, Delays)>,
}

impl Default for Measured {
    fn default() -> Self {
        Self { counts: Counts::default(), latency: delays(), service: delays(), intervals: Vec::new() }
    }
}

impl Measured {
    /// Adds what another worker measured.
    pub fn add(&mut self, other: Measured) -> Result<()> {
        self.counts.add(&other.counts);
        self.latency.add(&other.latency)?;
        self.service.add(&other.service)?;
        for (second, delays) in other.intervals {
            match self.intervals.iter_mut().find(|(known, _)| *known == second) {
                Some((_, sum)) => sum.add(&delays)?,
                None => self.intervals.push((second, delays)),
            }
        }
        self.intervals.sort_by_key(|(second, _)| *second);
        Ok(())
    }

    /// Writes the measurements beside `path`.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut bytes = Vec::new();
        let mut serializer = V2Serializer::new();
        let rows = self.intervals.iter().map(|(second, delays)| (*second, delays));
        for (second, delays) in rows.chain([(u64::MAX, &self.service)]) {
            let start = bytes.len();
            bytes.extend_from_slice(&[0; 16]);
            let len = serializer.serialize(delays, &mut bytes).context("a histogram cannot be written")?;
            bytes[start..start + 8].copy_from_slice(&second.to_le_bytes());
            bytes[start + 8..start + 16].copy_from_slice(&(len as u64).to_le_bytes());
        }
        fs::write(histograms_beside(path), bytes)?;
        fs::write(path, serde_json::to_vec(&self.counts)?)?;
        Ok(())
    }

    /// Reads what [`Measured::save`] wrote.
    pub fn load(path: &Path) -> Result<Self> {
        let mut measured =
            Measured { counts: serde_json::from_slice(&fs::read(path)?)?, ..Measured::default() };
        let bytes = fs::read(histograms_beside(path))?;
        let mut rest = &bytes[..];
        let mut reader = Deserializer::new();
        while let Some((head, tail)) = rest.split_at_checked(16) {
            let word =
                |at: usize| head[at..at + 8].iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
            let (second, len) = (word(0), word(8) as usize);
            let (mut body, tail) = tail.split_at_checked(len).context("a worker's histograms are cut off")?;
            let read: Delays =
                reader.deserialize(&mut body).context("a worker's histogram cannot be read")?;
            if second == u64::MAX {
                measured.service.add(&read)?;
            } else {
                measured.latency.add(&read)?;
                measured.intervals.push((second, read));
            }
            rest = tail;
        }
        Ok(measured)
    }
}

fn histograms_beside(path: &Path) -> PathBuf {
    path.with_extension("histograms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_survive_the_way_to_the_parent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker");
        let mut measured = Measured::default();
        measured.counts.pushes = 7;
        measured.service.record(500).unwrap();
        for second in [0, 3] {
            let mut interval = delays();
            interval.record_n(1_000_000 * (second + 1), 10).unwrap();
            measured.latency.add(&interval).unwrap();
            measured.intervals.push((second, interval));
        }
        measured.save(&path).unwrap();
        let mut twice = Measured::load(&path).unwrap();
        assert_eq!(twice.latency, measured.latency);
        twice.add(Measured::load(&path).unwrap()).unwrap();
        assert_eq!((twice.latency.len(), twice.service.len(), twice.counts.pushes), (40, 2, 14));
        assert_eq!(
            twice.intervals.iter().map(|(second, d)| (*second, d.len())).collect::<Vec<_>>(),
            [(0, 20), (3, 20)]
        );
    }

    #[test]
    fn the_worst_slice_is_a_rate_per_minute() {
        let counts = Counts { by_second: vec![10, 10, 10, 10, 10, 0, 10, 99], ..Counts::default() };
        assert_eq!(counts.sustained_min(7), 40.0 * 12.0);
        assert_eq!(counts.sustained_min(3), 30.0 * 20.0);
        assert_eq!(counts.sustained_min(20), 0.0);
    }
}
