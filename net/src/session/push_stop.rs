//! Pushes held by an operator, in an emergency: the core goes on taking writes and diffs, and tells its clients nothing.
//!
//! Connections stay, and what is a client's own goes out as ever: welcomes, acknowledgements, refusals, pongs. Subscriptions made
//! meanwhile get their first list afterwards. Nothing is queued for anybody: when pushes go on, every client gets what it lacks
//! then, as one that was slow does.

use serde::{Deserialize, Serialize};
use slotcast_engine::id::Nanos;

use crate::session::core::{Peer, Session};

/// What an operator asks of the pushes of a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushAsk {
    /// Whether they go out.
    Status,
    /// Hold them from now on.
    Stop,
    /// Let them go on.
    Resume,
}

/// Whether a core pushes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushReport {
    /// The core.
    pub core: usize,
    /// Pushes are held.
    pub stopped: bool,
    /// Milliseconds since when; none while they go out.
    pub stopped_ms: Option<u64>,
    /// Client connections open.
    pub clients: usize,
}

/// Since when pushes are held.
#[derive(Default)]
pub(super) struct PushStop {
    since: Option<Nanos>,
}

impl PushStop {
    /// Whether nothing may be pushed.
    pub(super) fn is_on(&self) -> bool {
        self.since.is_some()
    }
}

impl Session {
    /// Does what is asked; everything that is written to a client after the answer keeps to it.
    pub(super) fn answer_push(&mut self, ask: PushAsk, now: Nanos) -> PushReport {
        match ask {
            PushAsk::Status => {}
            PushAsk::Stop => {
                if !self.push_stop.is_on() {
                    tracing::warn!("an operator has stopped all pushes of this core");
                    self.push_stop.since = Some(now);
                }
            }
            PushAsk::Resume => {
                if self.push_stop.since.take().is_some() {
                    tracing::warn!("an operator lets pushes go on");
                    for index in 0..self.peers.len() {
                        if let Peer::Client(_) = self.peers[index] {
                            self.mark_dirty(index as u32);
                        }
                    }
                }
            }
        }
        self.metrics.push_stopped.set(i64::from(self.push_stop.is_on()));
        let stopped_ms = self.push_stop.since.map(|since| now.since(since) / (Nanos::SECOND / 1000));
        PushReport { core: 0, stopped: stopped_ms.is_some(), stopped_ms, clients: self.clients }
    }
}
