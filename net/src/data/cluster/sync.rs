//! Which followers of a slot count as in sync: what is reported, and whom acknowledgements of persistent changes wait for.
//!
//! ```text
//!           close behind         has what was acknowledged by then        the table says so
//!   (out) ──────────────▶ Joining ──────────────────────────────▶ Told ────────────────────▶ Counted
//!     ▲                      │ behind                                                        │  ▲ close again
//!     ├──────────────────────┘                                                behind too long ▼  │
//!     └──────────────────────────────── the table says so no more ────────────────────── Withdrawn
//! ```
//!
//! From `Joining` on acknowledgements wait for the follower, and they do until the table has left it out: so whoever the table
//! says is in sync misses nothing that was acknowledged, at any time. A follower that was told of is not taken back before
//! the table has shown it: otherwise a table that is just being made could still bring it in.

use std::collections::BTreeMap;

use slotcast_engine::id::{Nanos, Revision};

use crate::wire::slot_table::{Member, NodeNumber};

/// How far a follower is, where there is a link to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::data) struct Lag {
    /// It has everything that it is to have up to here: applied, or durable where that is asked for.
    pub(in crate::data) held: Revision,
    /// For how long it has not been in step (nanoseconds).
    pub(in crate::data) nanos: u64,
}

impl Lag {
    /// It follows no more, because it is about to end: it goes out of sync without being waited for.
    pub(in crate::data) const LEFT: Self = Self { held: Revision::ZERO, nanos: u64::MAX };
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Has to have this to count.
    Joining(Revision),
    /// Was told of; no table shows it yet.
    Told,
    /// The table shows it; since when there is no link to it.
    Counted(Option<Nanos>),
    /// Is not told of any more; the table still shows it.
    Withdrawn,
}

/// The followers of one slot.
#[derive(Default)]
pub(in crate::data) struct InSync {
    states: BTreeMap<NodeNumber, State>,
}

impl InSync {
    /// Looks at all followers anew. `revision` is the slot's; `lag` tells how far a node is, `lag_max` (nanoseconds) how long
    /// it may be behind or away.
    pub(in crate::data) fn look(
        &mut self,
        followers: &[Member],
        revision: Revision,
        now: Nanos,
        lag_max: u64,
        lag: impl Fn(NodeNumber) -> Option<Lag>,
    ) {
        self.states.retain(|node, _| followers.iter().any(|member| member.node() == *node));
        for member in followers {
            let (node, shown, lag) = (member.node(), member.is_in_sync(), lag(member.node()));
            let close = lag.filter(|lag| lag.nanos < lag_max);
            let next = match (self.states.get(&node).copied(), shown) {
                // Whoever the table shows has everything, until something is acknowledged without it.
                (None | Some(State::Joining(_) | State::Told), true) => {
                    Some(State::Counted(lag.is_none().then_some(now)))
                }
                (None, false) => close.map(|_| State::Joining(revision)),
                (Some(State::Joining(target)), false) => {
                    close.map(|lag| if lag.held >= target { State::Told } else { State::Joining(target) })
                }
                (Some(State::Told), false) => Some(State::Told),
                (Some(State::Counted(since)), true) => Some(match lag {
                    Some(lag) if lag.nanos < lag_max => State::Counted(None),
                    Some(_) => State::Withdrawn,
                    None => {
                        let since = since.unwrap_or(now);
                        if now.since(since) < lag_max {
                            State::Counted(Some(since))
                        } else {
                            State::Withdrawn
                        }
                    }
                }),
                (Some(State::Withdrawn), true) => {
                    Some(close.map_or(State::Withdrawn, |_| State::Counted(None)))
                }
                (Some(State::Counted(_) | State::Withdrawn), false) => None,
            };
            match next {
                Some(state) => drop(self.states.insert(node, state)),
                None => drop(self.states.remove(&node)),
            }
        }
    }

    /// A node is in another run: what was known of the one before says nothing.
    pub(in crate::data) fn forget(&mut self, node: NodeNumber) {
        self.states.remove(&node);
    }

    /// The followers to report as in sync.
    pub(in crate::data) fn told(&self) -> impl Iterator<Item = NodeNumber> {
        let is_told = |state: &State| matches!(state, State::Told | State::Counted(_));
        self.states.iter().filter(move |(_, state)| is_told(state)).map(|(node, _)| *node)
    }

    /// The followers that acknowledgements of persistent changes wait for.
    pub(in crate::data) fn waited_for(&self) -> impl Iterator<Item = NodeNumber> {
        self.states.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeNumber = NodeNumber(4);
    const LAG_MAX: u64 = 1000;

    struct Bench {
        sync: InSync,
        now: u64,
        shown: bool,
    }

    impl Bench {
        fn new() -> Self {
            Self { sync: InSync::default(), now: 1, shown: false }
        }

        /// Looks at the slot at counter `at`; the follower has `held` and is behind for `nanos`. What is told, and waited for.
        fn look(&mut self, at: u64, lag: Option<(u64, u64)>) -> (bool, bool) {
            let revision = |counter| Revision(Revision::open(3).0 | counter);
            let lag = lag.map(|(held, nanos)| Lag { held: revision(held), nanos });
            let follower = Member::new(A).with_in_sync(self.shown);
            self.sync.look(&[follower], revision(at), Nanos(self.now), LAG_MAX, |_| lag);
            (self.sync.told().count() == 1, self.sync.waited_for().count() == 1)
        }
    }

    #[test]
    fn a_follower_counts_once_it_has_what_was_there_when_it_came_close() {
        let mut bench = Bench::new();
        assert_eq!(bench.look(100, None), (false, false));
        assert_eq!(bench.look(100, Some((10, LAG_MAX))), (false, false), "far behind");
        assert_eq!(bench.look(110, Some((105, 5))), (false, true));
        assert_eq!(bench.look(120, Some((109, 5))), (false, true));
        assert_eq!(bench.look(130, Some((110, 5))), (true, true), "what it had to have, whatever came since");
        bench.shown = true;
        assert_eq!(bench.look(130, Some((130, 0))), (true, true));
    }

    #[test]
    fn one_that_falls_behind_is_waited_for_until_the_table_leaves_it_out() {
        let mut bench = Bench { shown: true, ..Bench::new() };
        assert_eq!(bench.look(5, Some((5, 0))), (true, true));
        assert_eq!(bench.look(9, Some((5, LAG_MAX))), (false, true));
        assert_eq!(bench.look(9, None), (false, true));
        bench.shown = false;
        assert_eq!(bench.look(9, None), (false, false));
        assert_eq!(bench.look(9, None), (false, false));
    }

    #[test]
    fn one_that_recovers_before_the_table_has_left_it_out_stays() {
        let mut bench = Bench { shown: true, ..Bench::new() };
        bench.look(5, Some((5, 0)));
        assert_eq!(bench.look(9, Some((5, LAG_MAX))), (false, true));
        assert_eq!(bench.look(9, Some((9, 0))), (true, true));
    }

    #[test]
    fn one_that_has_left_goes_at_once_and_one_in_another_run_begins_anew() {
        let left = |bench: &mut Bench| {
            let follower = Member::new(A).with_in_sync(bench.shown);
            let at = Revision(Revision::open(3).0 | 5);
            bench.sync.look(&[follower], at, Nanos(bench.now), LAG_MAX, |_| Some(Lag::LEFT));
            (bench.sync.told().count() == 1, bench.sync.waited_for().count() == 1)
        };
        let mut bench = Bench { shown: true, ..Bench::new() };
        assert_eq!(bench.look(5, Some((5, 0))), (true, true));
        assert_eq!(left(&mut bench), (false, true), "until the table leaves it out");
        bench.shown = false;
        assert_eq!(left(&mut bench), (false, false));

        let mut bench = Bench::new();
        bench.look(5, Some((5, 0)));
        assert_eq!(bench.look(5, Some((5, 0))), (true, true));
        bench.sync.forget(A);
        assert_eq!(bench.look(5, None), (false, false), "told of, but that was another run");
    }

    #[test]
    fn a_lost_link_has_a_while_to_come_back() {
        let mut bench = Bench { shown: true, ..Bench::new() };
        assert_eq!(bench.look(5, None), (true, true));
        bench.now += LAG_MAX - 1;
        assert_eq!(bench.look(6, None), (true, true));
        assert_eq!(bench.look(6, Some((6, 0))), (true, true));
        bench.now += 1;
        assert_eq!(bench.look(7, None), (true, true), "a new loss has a while of its own");
        bench.now += LAG_MAX;
        assert_eq!(bench.look(7, None), (false, true));
    }

    #[test]
    fn one_that_was_told_of_is_not_taken_back_before_the_table_has_shown_it() {
        let mut bench = Bench::new();
        bench.look(5, Some((5, 0)));
        assert_eq!(bench.look(5, Some((5, 0))), (true, true));
        bench.now += 100 * LAG_MAX;
        assert_eq!(bench.look(9, None), (true, true), "a table with it may be on its way");
        bench.shown = true;
        assert_eq!(bench.look(9, None), (true, true));
        bench.now += LAG_MAX;
        assert_eq!(bench.look(9, None), (false, true));
        bench.shown = false;
        assert_eq!(bench.look(9, None), (false, false));
    }

    #[test]
    fn one_that_falls_behind_while_it_joins_starts_again_and_others_are_forgotten() {
        let mut bench = Bench::new();
        assert_eq!(bench.look(5, Some((3, 10))), (false, true));
        assert_eq!(bench.look(9, Some((3, LAG_MAX))), (false, false));
        assert_eq!(bench.look(9, Some((8, 10))), (false, true));
        bench.sync.look(&[], Revision::open(3), Nanos(9), LAG_MAX, |_| None);
        assert_eq!(bench.sync.waited_for().count(), 0);
    }
}
