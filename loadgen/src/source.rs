//! What a workload is derived from: parameters small enough to hand to every worker.

use std::ops::Range;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{replay::Replay, schedule::Synthetic, workload::Workload};

/// See the module.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Source {
    /// A made-up run.
    Synthetic(Synthetic),
    /// A trace.
    Replay(Replay),
}

impl Source {
    /// Derives the workload with the subscriptions of the clients in `keep`.
    pub fn build(&self, keep: Range<u32>) -> Result<Workload> {
        match self {
            Source::Synthetic(synthetic) => synthetic.build(keep),
            Source::Replay(replay) => replay.build(keep),
        }
    }

    /// The seed of everything drawn.
    pub fn seed(&self) -> u64 {
        match self {
            Source::Synthetic(synthetic) => synthetic.seed,
            Source::Replay(replay) => replay.seed,
        }
    }

    /// Keeps the names of this run apart from those of other runs against the same cluster.
    pub fn set_tag(&mut self, value: u64) {
        match self {
            Source::Synthetic(synthetic) => synthetic.tag = value,
            Source::Replay(replay) => replay.tag = value,
        }
    }

    /// The planned changes per second of a made-up run; none for a trace.
    pub fn changes_per_sec(&self) -> Option<f64> {
        match self {
            Source::Synthetic(synthetic) => Some(synthetic.changes_per_sec),
            Source::Replay(_) => None,
        }
    }

    /// The same made-up run at another rate and with another window; a trace stays as it is.
    pub fn at_rate(&self, changes_per_sec: f64, window_ns: u64) -> Source {
        match self {
            Source::Synthetic(synthetic) => {
                Source::Synthetic(Synthetic { changes_per_sec, window_ns, ..synthetic.clone() })
            }
            Source::Replay(replay) => Source::Replay(replay.clone()),
        }
    }
}
