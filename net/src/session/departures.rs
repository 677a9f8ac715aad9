//! Clients that dropped, and when their publishers go.
//!
//! A drop gets a grace; a client that comes back within it was never seen to leave. When more than a tenth of the clients
//! drop within one grace, the fault is more likely in the network than in a thousand clients at once, and the grace
//! becomes the session's lease. While very many come and go, nobody who dropped is taken for gone before the lease either: a
//! client that is on its way back stands in a long line then.
//!
//! Both count running time. Right after a pause, of the process or of a turn with very much in it, what happened meanwhile is
//! not handled yet: the return of those who dropped, or the many drops that make a storm of the first few.

use std::collections::{BTreeSet, VecDeque};

use slotcast_engine::id::{DatumKey, Nanos, RegisterId};

use crate::io::ring::ConnId;

/// What passes between two looks counts up to here: a few times the time between two ticks.
const STEP_MAX: u64 = Nanos::SECOND / 10;
/// Fewer drops than this are never a storm.
const STORM_DROPS_MIN: usize = 8;

/// Connects and drops within two graces up to which it is not a rush, also in a small session.
const RUSH_MIN: usize = 200;
/// The part of the clients that has to come and go within two graces to make it a rush.
const RUSH_PART: usize = 50;

/// A client that dropped.
pub(super) struct Departure {
    /// Its former connection.
    pub(super) conn: ConnId,
    /// What it had published over it.
    pub(super) published: BTreeSet<(DatumKey, RegisterId)>,
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
    rush: Rush,
    /// Running time, and when it was last brought forward.
    running: Nanos,
    seen_at: Option<Nanos>,
}

impl Departures {
    pub(super) fn new(grace: u64, lease: u64) -> Self {
        Self {
            grace,
            lease,
            waiting: VecDeque::new(),
            recent: VecDeque::new(),
            storm_until: None,
            rush: Rush::default(),
            running: Nanos(0),
            seen_at: None,
        }
    }

    /// A client has connected; there are `clients` now.
    pub(super) fn arrived(&mut self, clients: usize, now: Nanos) {
        let now = self.advance(now);
        self.rush.count(now, self.grace, clients);
    }

    fn advance(&mut self, now: Nanos) -> Nanos {
        let passed = self.seen_at.replace(now).map_or(0, |seen| now.since(seen));
        self.running = self.running.after(passed.min(STEP_MAX));
        self.running
    }

    /// A client dropped; `clients` were connected before. Returns whether this drop makes it a storm.
    pub(super) fn add(
        &mut self,
        conn: ConnId,
        published: BTreeSet<(DatumKey, RegisterId)>,
        evicted: bool,
        clients: usize,
        now: Nanos,
    ) -> bool {
        let now = self.advance(now);
        self.rush.count(now, self.grace, clients);
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
        let begins = storm && !self.is_storm();
        if storm {
            self.storm_until = Some(now.after(self.lease));
        }
        begins
    }

    /// Whether the long grace holds.
    pub(super) fn is_storm(&self) -> bool {
        self.storm_until.is_some_and(|until| self.running < until)
    }

    /// The departures whose grace is over.
    pub(super) fn take_due(&mut self, now: Nanos) -> Vec<Departure> {
        let now = self.advance(now);
        let long = self.is_storm() || self.rush.is_on(now, self.grace);
        let mut due = Vec::new();
        let mut kept = VecDeque::new();
        for departure in self.waiting.drain(..) {
            let grace = if long || departure.evicted { self.lease } else { self.grace };
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

/// How many clients have come and gone lately, by halves of two graces.
#[derive(Default)]
struct Rush {
    /// Number of the grace that is counted now.
    period: u64,
    now: usize,
    before: usize,
    clients: usize,
}

impl Rush {
    fn roll(&mut self, now: Nanos, grace: u64) {
        let period = now.0 / grace.max(1);
        if period != self.period {
            self.before = if period == self.period + 1 { self.now } else { 0 };
            (self.period, self.now) = (period, 0);
        }
    }

    fn count(&mut self, now: Nanos, grace: u64, clients: usize) {
        self.roll(now, grace);
        self.now += 1;
        self.clients = clients;
    }

    fn is_on(&mut self, now: Nanos, grace: u64) -> bool {
        self.roll(now, grace);
        self.now + self.before > RUSH_MIN.max(self.clients / RUSH_PART)
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

    /// Looks every 50 ms from `from` to `to`, both in milliseconds, and returns how many were due.
    fn look(departures: &mut Departures, from: u64, to: u64) -> usize {
        (from..=to).step_by(50).map(|ms| departures.take_due(at(ms)).len()).sum()
    }

    fn published() -> BTreeSet<(DatumKey, RegisterId)> {
        BTreeSet::from([(DatumKey(1), RegisterId(1))])
    }

    #[test]
    fn a_single_drop_is_due_after_the_grace() {
        let mut departures = departures();
        assert!(!departures.add(ConnId::from_parts(1, 1), published(), false, 99, at(0)));
        assert_eq!(look(&mut departures, 0, 950), 0);
        assert_eq!(departures.take_due(at(1000)).len(), 1);
        assert_eq!(look(&mut departures, 1050, 2000), 0);
    }

    #[test]
    fn a_pause_takes_nobody_for_gone() {
        let mut departures = departures();
        departures.add(ConnId::from_parts(1, 1), published(), false, 99, at(0));
        assert_eq!(look(&mut departures, 0, 500), 0);
        assert_eq!(
            look(&mut departures, 20_500, 20_850),
            0,
            "20 s passed, the process ran for less than one"
        );
        assert_eq!(look(&mut departures, 20_900, 21_000), 1);
    }

    #[test]
    fn the_first_drops_of_a_storm_are_not_judged_before_the_others_have_been_seen() {
        let mut departures = departures();
        (0..10).for_each(|i| {
            departures.add(ConnId::from_parts(i, 1), published(), false, 990, at(0));
        });
        assert!(!departures.is_storm());
        assert!(departures.take_due(at(3_000)).is_empty(), "the turn took 3 s");
        (10..300).for_each(|i| {
            departures.add(ConnId::from_parts(i, 1), published(), false, 1_000 - i, at(3_000));
        });
        assert!(departures.is_storm());
        assert_eq!(look(&mut departures, 3_050, 20_000), 0);
    }

    #[test]
    fn a_storm_of_drops_stretches_the_grace_to_the_lease() {
        let mut departures = departures();
        let begins: Vec<bool> = (0..20)
            .map(|i| departures.add(ConnId::from_parts(i, 1), published(), false, 99 - i, at(i as u64)))
            .collect();
        assert_eq!(begins.iter().filter(|begins| **begins).count(), 1, "said once");
        assert_eq!(look(&mut departures, 50, 29_000), 0);
        assert_eq!(look(&mut departures, 29_050, 31_000), 20);
    }

    #[test]
    fn while_very_many_come_and_go_nobody_is_gone_before_the_lease() {
        let mut departures = departures();
        departures.add(ConnId::from_parts(1, 1), published(), false, 10_000, at(0));
        for ms in (0..20_000).step_by(50) {
            (0..11).for_each(|_| departures.arrived(10_000, at(ms)));
            assert!(departures.take_due(at(ms)).is_empty(), "220 connects a second, after {ms} ms");
        }
        assert_eq!(look(&mut departures, 20_000, 20_950), 0);
        assert_eq!(look(&mut departures, 21_000, 22_050), 1, "the rush is over");
        departures.add(ConnId::from_parts(1, 1), published(), false, 10_000, at(22_100));
        for ms in (22_100..52_000).step_by(50) {
            (0..20).for_each(|_| departures.arrived(10_000, at(ms)));
            assert!(departures.take_due(at(ms)).is_empty());
        }
        assert_eq!(look(&mut departures, 52_000, 52_100), 1, "the lease holds in a rush without an end too");
    }

    #[test]
    fn clients_that_the_session_closes_are_no_storm() {
        let mut departures = departures();
        let closed = |departures: &mut Departures, i| {
            departures.add(ConnId::from_parts(i, 1), std::collections::BTreeSet::new(), true, 0, at(0))
        };
        assert!(!(0..50).any(|i| closed(&mut departures, i)));
        assert!(!departures.is_storm());
    }

    #[test]
    fn an_evicted_client_has_the_lease_to_come_back() {
        let mut departures = departures();
        departures.add(ConnId::from_parts(1, 1), published(), true, 99, at(0));
        assert_eq!(look(&mut departures, 0, 29_950), 0);
        assert_eq!(departures.take_due(at(30_000)).len(), 1);
    }
}
