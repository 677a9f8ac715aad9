//! Clients that dropped, and when their publishers go.
//!
//! A drop gets a grace; a client that comes back within it was never seen to leave. When more than a tenth of the clients
//! drop within one grace, the fault is more likely in the network than in a thousand clients at once, and the grace
//! becomes the session's lease.

use std::collections::VecDeque;

use slotcast_engine::id::{DatumKey, Nanos, RegisterId};

use crate::io::ring::ConnId;

/// Fewer drops than this are never a storm.
const STORM_DROPS_MIN: usize = 8;

/// A client that dropped.
pub(super) struct Departure {
    /// Its former connection.
    pub(super) conn: ConnId,
    /// What it had published over it.
    pub(super) published: Vec<(DatumKey, RegisterId)>,
    dropped_at: Nanos,
    /// The session itself closed the connection: that never counts as leaving by itself.
    evicted: bool,
}

/// Departures under way.
pub(super) struct Departures {
    grace: u64,
    lease: u64,
    waiting: VecDeque<Departure>,
    recent: VecDeque<Nanos>,
    storm_until: Option<Nanos>,
}

impl Departures {
    pub(super) fn new(grace: u64, lease: u64) -> Self {
        Self { grace, lease, waiting: VecDeque::new(), recent: VecDeque::new(), storm_until: None }
    }

    /// A client dropped; `clients` were connected before. Returns whether this drop makes it a storm.
    pub(super) fn add(
        &mut self,
        conn: ConnId,
        published: Vec<(DatumKey, RegisterId)>,
        evicted: bool,
        clients: usize,
        now: Nanos,
    ) -> bool {
        if !published.is_empty() {
            self.waiting.push_back(Departure { conn, published, dropped_at: now, evicted });
        }
        if evicted {
            return false;
        }
        while self.recent.front().is_some_and(|at| now.since(*at) > self.grace) {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        let before = clients + self.recent.len() - 1;
        let storm = self.recent.len() >= STORM_DROPS_MIN && self.recent.len() * 10 > before;
        let begins = storm && !self.is_storm(now);
        if storm {
            self.storm_until = Some(now.after(self.lease));
        }
        begins
    }

    /// Whether the long grace holds.
    pub(super) fn is_storm(&self, now: Nanos) -> bool {
        self.storm_until.is_some_and(|until| now < until)
    }

    /// The departures whose grace is over.
    pub(super) fn take_due(&mut self, now: Nanos) -> Vec<Departure> {
        let storm = self.is_storm(now);
        let mut due = Vec::new();
        let mut kept = VecDeque::new();
        for departure in self.waiting.drain(..) {
            let grace = if storm || departure.evicted { self.lease } else { self.grace };
            if now.since(departure.dropped_at) >= grace {
                due.push(departure);
            } else {
                kept.push_back(departure);
            }
        }
        self.waiting = kept;
        due
    }

    /// Departures in their grace.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Nanos {
        Nanos(ms * 1_000_000)
    }

    fn departures() -> Departures {
        Departures::new(Nanos::SECOND, 30 * Nanos::SECOND)
    }

    fn published() -> Vec<(DatumKey, RegisterId)> {
        vec![(DatumKey(1), RegisterId(1))]
    }

    #[test]
    fn a_single_drop_is_due_after_the_grace() {
        let mut departures = departures();
        assert!(!departures.add(ConnId::from_parts(1, 1), published(), false, 99, at(0)));
        assert!(departures.take_due(at(999)).is_empty());
        assert_eq!(departures.take_due(at(1000)).len(), 1);
        assert!(departures.take_due(at(2000)).is_empty());
    }

    #[test]
    fn a_storm_of_drops_stretches_the_grace_to_the_lease() {
        let mut departures = departures();
        let begins: Vec<bool> = (0..20)
            .map(|i| departures.add(ConnId::from_parts(i, 1), published(), false, 99 - i, at(i as u64)))
            .collect();
        assert_eq!(begins.iter().filter(|begins| **begins).count(), 1, "said once");
        assert!(departures.take_due(at(1500)).is_empty());
        assert!(departures.take_due(at(29_000)).is_empty());
        assert_eq!(departures.take_due(at(31_000)).len(), 20);
    }

    #[test]
    fn clients_that_the_session_closes_are_no_storm() {
        let mut departures = departures();
        let closed = |departures: &mut Departures, i| {
            departures.add(ConnId::from_parts(i, 1), Vec::new(), true, 0, at(0))
        };
        assert!(!(0..50).any(|i| closed(&mut departures, i)));
        assert!(!departures.is_storm(at(1)));
    }

    #[test]
    fn an_evicted_client_has_the_lease_to_come_back() {
        let mut departures = departures();
        departures.add(ConnId::from_parts(1, 1), published(), true, 99, at(0));
        assert!(departures.take_due(at(29_999)).is_empty());
        assert_eq!(departures.take_due(at(30_000)).len(), 1);
    }
}
