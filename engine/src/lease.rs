//! Leases of session incarnations. They count running time: a node that was stopped does not blame its sessions for it.
//!
//! Three guards stand between a late session and the removal of its publishers: a gap between two ticks extends every
//! lease by the gap; whoever drives the shard drains what has arrived before it ticks; and when more than a third of the
//! sessions (and at least two) would expire together, none does, because then the fault is more likely here. Together means
//! within a sixth of the lease, for heartbeats that stop at one moment do so at different points of their intervals. A
//! session that is heard, and first came after another fell silent, accounts for that one, and through it for one that fell silent
//! before that came: restarted processes are new incarnations, and a process may restart more than once within a lease.
//!
//! Who is held back for good is gone for good, or cut off from here, and only people can tell which: they may have these leases end.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, VecDeque},
};

use crate::{
    error::Refusal,
    id::{Nanos, SessionId},
    limits::ENDED_SESSIONS_MAX,
};

/// A tick later than this after the one before it extends every lease by the gap.
pub const TICK_GAP_MAX: u64 = Nanos::SECOND;

/// When a session was heard, and after how many others where all that has come in a pause is heard at once; 0 otherwise.
type Moment = (Nanos, u64);

/// Of a session that was there before anything is known of it here: it stands for nobody.
const UNKNOWN: Moment = (Nanos(0), 0);

/// When a session first came, and when it was last heard.
#[derive(Clone, Copy)]
struct Heard {
    opened: Moment,
    renewed: Moment,
}

/// One session's lease.
struct Lease {
    heard: Heard,
    expires: Nanos,
    /// Not only granted: the session has been heard here.
    is_heard: bool,
}

/// A session whose overdue lease is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeldBack {
    /// The session.
    pub session: SessionId,
    /// Since when it has not been heard; `None`: it was never heard here, but has published something that was found here.
    pub silent_since: Option<Nanos>,
}

/// The leases of all sessions that hold registrations or links here.
pub struct Leases {
    duration: u64,
    leases: BTreeMap<SessionId, Lease>,
    /// Sessions that were forgotten, the latest last: something of theirs may be led here yet.
    forgotten: VecDeque<(SessionId, Heard)>,
    ended: BTreeSet<SessionId>,
    ended_order: VecDeque<SessionId>,
    last_tick: Option<Nanos>,
    held_back: usize,
    /// Of these somebody knows that they are gone.
    released: BTreeSet<SessionId>,
    /// How often somebody was heard.
    count: u64,
}

impl Leases {
    /// Leases of `duration` nanoseconds.
    pub fn new(duration: u64) -> Self {
        Self {
            duration,
            leases: BTreeMap::new(),
            forgotten: VecDeque::new(),
            ended: BTreeSet::new(),
            ended_order: VecDeque::new(),
            last_tick: None,
            held_back: 0,
            released: BTreeSet::new(),
            count: 0,
        }
    }

    /// Starts or renews a lease. An incarnation whose lease has ended stays refused.
    pub fn renew(&mut self, session: SessionId, now: Nanos) -> Result<(), Refusal> {
        if self.ended.contains(&session) {
            return Err(Refusal::SessionEnded);
        }
        self.count += 1;
        let is_after_gap = self.last_tick.is_some_and(|last| now.since(last) > TICK_GAP_MAX);
        let (moment, expires) = ((now, if is_after_gap { self.count } else { 0 }), now.after(self.duration));
        let lease = self.leases.entry(session).or_insert_with(|| {
            let known = remember(&mut self.forgotten, session);
            let heard = known.unwrap_or(Heard { opened: moment, renewed: moment });
            Lease { heard, expires, is_heard: true }
        });
        (lease.heard.renewed, lease.expires, lease.is_heard) = (moment, expires, true);
        Ok(())
    }

    /// Gives a session a whole lease although it was not heard: something of it was found here, or is decided on here from now
    /// on. What was known of when it came and fell silent stays; of one that is not known here it is known that somebody who
    /// led heard it within the last lease.
    pub fn grant(&mut self, session: SessionId, now: Nanos) -> Result<(), Refusal> {
        if self.ended.contains(&session) {
            return Err(Refusal::SessionEnded);
        }
        let expires = now.after(self.duration);
        let silent = (Nanos(now.0.saturating_sub(self.duration)), 0);
        let lease = self.leases.entry(session).or_insert_with(|| {
            let known = remember(&mut self.forgotten, session);
            let heard = known.unwrap_or(Heard { opened: UNKNOWN, renewed: silent });
            Lease { heard, expires, is_heard: known.is_some() }
        });
        lease.expires = expires;
        Ok(())
    }

    /// Whether the lease is running.
    pub fn is_alive(&self, session: SessionId) -> bool {
        self.leases.contains_key(&session)
    }

    /// Sessions with a running lease.
    pub fn alive(&self) -> impl Iterator<Item = SessionId> {
        self.leases.keys().copied()
    }

    /// Sessions that are overdue but kept, because too many are overdue together.
    pub fn held_back(&self) -> usize {
        self.held_back
    }

    /// The sessions that were overdue at the last tick, but kept.
    pub fn list_held_back(&self) -> impl Iterator<Item = HeldBack> {
        let last = self.last_tick.filter(|_| self.held_back > 0);
        let overdue = self.leases.iter().filter(move |(_, lease)| last.is_some_and(|at| lease.expires <= at));
        overdue.map(|(session, lease)| HeldBack {
            session: *session,
            silent_since: lease.is_heard.then_some(lease.heard.renewed.0),
        })
    }

    /// The leases that are held back now end with the next tick, except of those who are heard before: somebody knows that these
    /// sessions are gone. Returns how many.
    pub fn release(&mut self) -> usize {
        self.released = self.list_held_back().map(|it| it.session).collect();
        self.released.len()
    }

    /// The time since the last tick counts, however long it is: only for a fault that is planted.
    pub(crate) fn overlook_gap(&mut self, now: Nanos) {
        self.last_tick = Some(now);
    }

    /// Instead of [`Leases::tick`] where nothing is led: no lease ends, for nobody's registrations are decided on here, and a
    /// session that is cut off from this node alone is alive for all others. Those with a link go on with a whole lease; those
    /// without one are forgotten when they are overdue. What is not forgotten may end later, when something is led, so a gap
    /// counts for nobody here, either.
    pub fn rest(&mut self, now: Nanos, is_linked: impl Fn(SessionId) -> bool) {
        self.take_gap(now);
        self.held_back = 0;
        self.released.clear();
        let whole = now.after(self.duration);
        let forgotten = &mut self.forgotten;
        self.leases.retain(|session, lease| {
            let is_linked = is_linked(*session);
            if is_linked {
                lease.expires = whole;
            }
            let stays = is_linked || lease.expires > now;
            if !stays {
                forgotten.push_back((*session, lease.heard));
            }
            stays
        });
        let beyond = self.forgotten.len().saturating_sub(ENDED_SESSIONS_MAX);
        self.forgotten.drain(..beyond);
    }

    /// Ends the leases that have run out and returns their sessions.
    pub fn tick(&mut self, now: Nanos) -> Vec<SessionId> {
        self.take_gap(now);
        let mut overdue: Vec<SessionId> =
            self.leases.iter().filter(|(_, lease)| lease.expires <= now).map(|(id, _)| *id).collect();
        let released = std::mem::take(&mut self.released);
        self.held_back = 0;
        if overdue.is_empty() {
            return overdue;
        }
        let missing = self.missing(now);
        if missing >= 2 && missing * 3 > self.leases.len() {
            let all = overdue.len();
            overdue.retain(|session| released.contains(session));
            self.held_back = all - overdue.len();
        }
        for session in &overdue {
            self.end(*session);
        }
        overdue
    }

    /// Extends every lease by the time since the last tick, if that is a gap.
    fn take_gap(&mut self, now: Nanos) {
        let gap = self.last_tick.replace(now).map_or(0, |last| now.since(last));
        if gap > TICK_GAP_MAX {
            // What was renewed after the gap has not lived through it.
            let whole = now.after(self.duration);
            for lease in self.leases.values_mut() {
                lease.expires = lease.expires.after(gap).min(whole);
            }
        }
    }

    /// Sessions that would expire about now and that no newer one stands for. Who is heard stands for one that fell silent before it
    /// came, that one for another that fell silent before, and so on; the latest are looked at first, so that as many as can be are
    /// accounted for.
    fn missing(&self, now: Nanos) -> usize {
        let soon = now.after(self.duration / 6);
        let (late, heard): (Vec<&Lease>, Vec<&Lease>) =
            self.leases.values().partition(|lease| lease.expires <= soon);
        // When each process that is heard has begun, as far back as its incarnations are known.
        let mut begun: BTreeMap<Moment, usize> = BTreeMap::new();
        heard.iter().for_each(|lease| *begun.entry(lease.heard.opened).or_insert(0) += 1);
        let mut late: Vec<Heard> = late.iter().map(|lease| lease.heard).collect();
        late.sort_unstable_by_key(|heard| Reverse((heard.opened, heard.renewed)));
        let mut missing = 0;
        for silent in late {
            let next =
                begun.range(silent.renewed..).map(|(next, _)| *next).find(|next| *next > silent.opened);
            let Some(next) = next else {
                missing += 1;
                continue;
            };
            if let Some(count) = begun.get_mut(&next) {
                *count -= 1;
                if *count == 0 {
                    begun.remove(&next);
                }
            }
            *begun.entry(silent.opened).or_insert(0) += 1;
        }
        missing
    }

    /// Ends a lease at once: the session said goodbye.
    pub fn end(&mut self, session: SessionId) {
        self.leases.remove(&session);
        if self.ended.insert(session) {
            self.ended_order.push_back(session);
        }
        if self.ended_order.len() > ENDED_SESSIONS_MAX
            && let Some(oldest) = self.ended_order.pop_front()
        {
            self.ended.remove(&oldest);
        }
    }
}

/// What is known of a session that was forgotten.
fn remember(forgotten: &mut VecDeque<(SessionId, Heard)>, session: SessionId) -> Option<Heard> {
    let place = forgotten.iter().rposition(|(other, _)| *other == session)?;
    forgotten.remove(place).map(|(_, heard)| heard)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: u64 = 30 * Nanos::SECOND;

    fn at(seconds: u64) -> Nanos {
        Nanos(seconds * Nanos::SECOND)
    }

    fn leases(sessions: u64) -> Leases {
        let mut leases = Leases::new(LEASE);
        (0..sessions).for_each(|session| leases.renew(SessionId(session), at(0)).unwrap());
        leases
    }

    #[test]
    fn where_nothing_is_led_nobody_ends() {
        let mut leases = leases(2);
        (1..=90).for_each(|second| leases.rest(at(second), |session| session == SessionId(0)));
        assert!(leases.is_alive(SessionId(0)) && !leases.is_alive(SessionId(1)));
        assert_eq!(leases.renew(SessionId(1), at(90)), Ok(()), "forgotten, not ended");
        assert_eq!(leases.tick(at(91)), []);
    }

    #[test]
    fn a_lease_that_was_granted_is_of_a_session_that_fell_silent_before() {
        // Two sessions fall silent at 10 s, where nothing is led; two others come instead. Then something of the former is led.
        let mut leases = leases(2);
        for second in 1..=40 {
            if second <= 10 {
                (0..2).for_each(|session| leases.renew(SessionId(session), at(second)).unwrap());
            } else {
                (2..4).for_each(|session| leases.renew(SessionId(session), at(second)).unwrap());
            }
            leases.rest(at(second), |session| session == SessionId(1) || second > 10 && session.0 > 1);
        }
        assert!(!leases.is_alive(SessionId(0)), "forgotten, and the other has a link");
        (0..2).for_each(|session| leases.grant(SessionId(session), at(40)).unwrap());
        for second in 41..=70 {
            (2..4).for_each(|session| leases.renew(SessionId(session), at(second)).unwrap());
            let ended = leases.tick(at(second));
            assert_eq!(ended.len(), if second == 70 { 2 } else { 0 }, "after {second} s");
        }
        assert_eq!(leases.grant(SessionId(0), at(70)), Err(Refusal::SessionEnded));
    }

    #[test]
    fn sessions_that_were_there_before_stand_for_nobody() {
        let mut leases = leases(2);
        (1..=100).for_each(|second| {
            (0..2).for_each(|session| leases.renew(SessionId(session), at(second)).unwrap());
            assert!(leases.tick(at(second)).is_empty());
        });
        (2..4).for_each(|session| leases.grant(SessionId(session), at(100)).unwrap());
        for second in 101..=200 {
            (0..2).for_each(|session| leases.renew(SessionId(session), at(second)).unwrap());
            assert!(leases.tick(at(second)).is_empty(), "half of the sessions are not heard");
        }
        assert_eq!(leases.held_back(), 2);
    }

    #[test]
    fn a_silent_session_expires_once_and_is_refused_for_ever() {
        let mut leases = leases(4);
        for second in 1..=31 {
            (1..4).for_each(|session| leases.renew(SessionId(session), at(second)).unwrap());
            let ended = leases.tick(at(second));
            assert_eq!(ended, if second == 30 { vec![SessionId(0)] } else { vec![] });
        }
        assert_eq!(leases.renew(SessionId(0), at(32)), Err(Refusal::SessionEnded));
    }

    #[test]
    fn a_pause_of_the_node_extends_every_lease() {
        let mut leases = leases(1);
        leases.tick(at(1));
        assert!(leases.tick(at(100)).is_empty(), "the 99 s were ours");
        for second in 101..129 {
            assert!(leases.tick(at(second)).is_empty());
        }
        assert_eq!(leases.tick(at(129)), [SessionId(0)]);
    }

    #[test]
    fn a_pause_where_nothing_was_led_extends_what_ends_when_something_is() {
        let mut leases = leases(1);
        leases.rest(at(5), |_| true);
        leases.rest(at(6), |_| false);
        leases.rest(at(26), |_| false);
        assert!(leases.tick(at(27)).is_empty());
        for second in 28..55 {
            assert!(leases.tick(at(second)).is_empty(), "at {second} s it has run {} s", second - 25);
        }
        assert_eq!(leases.tick(at(55)), [SessionId(0)]);
    }

    #[test]
    fn more_than_a_third_together_stops_removals() {
        let mut leases = leases(5);
        (1..=29).for_each(|second| assert!(leases.tick(at(second)).is_empty()));
        (2..5).for_each(|session| leases.renew(SessionId(session), at(29)).unwrap());
        assert!(leases.tick(at(30)).is_empty(), "two of five are held back");
        assert_eq!(leases.held_back(), 2);
        leases.renew(SessionId(1), at(30)).unwrap();
        assert_eq!(leases.tick(at(31)), [SessionId(0)]);
        assert_eq!(leases.held_back(), 0);
    }

    #[test]
    fn heartbeats_that_stop_together_expire_together_whatever_their_phase() {
        let mut leases = leases(20);
        let tenth = Nanos::SECOND / 10;
        (0..10).for_each(|session| leases.renew(SessionId(session), Nanos((session + 1) * tenth)).unwrap());
        (10..20).for_each(|session| leases.renew(SessionId(session), at(29)).unwrap());
        for step in 1..=350 {
            assert!(leases.tick(Nanos(step * tenth)).is_empty(), "half of the sessions are silent");
        }
        assert_eq!(leases.held_back(), 10);
    }

    #[test]
    fn who_is_held_back_ends_when_somebody_knows_that_they_are_gone() {
        let mut leases = leases(6);
        assert_eq!(leases.release(), 0, "nobody is held back");
        (1..=20).for_each(|second| assert!(leases.tick(at(second)).is_empty()));
        leases.grant(SessionId(6), at(20)).unwrap();
        (3..6).for_each(|session| leases.renew(SessionId(session), at(20)).unwrap());
        (21..=30).for_each(|second| assert!(leases.tick(at(second)).is_empty()));
        let held_back = |session, silent_since| HeldBack { session: SessionId(session), silent_since };
        let expected = [0, 1, 2].map(|session| held_back(session, Some(at(0))));
        assert_eq!(leases.list_held_back().collect::<Vec<_>>(), expected);
        assert_eq!(leases.release(), 3);
        leases.renew(SessionId(2), at(31)).unwrap();
        assert_eq!(leases.tick(at(31)), [SessionId(0), SessionId(1)], "one was heard before");
        assert_eq!(leases.renew(SessionId(0), at(31)), Err(Refusal::SessionEnded));
        // Later ones are for somebody to decide anew.
        (32..=50).for_each(|second| assert!(leases.tick(at(second)).is_empty()));
        assert_eq!(leases.held_back(), 4);
        assert_eq!(leases.list_held_back().last(), Some(held_back(6, None)));
    }

    #[test]
    fn restarted_processes_account_for_the_incarnations_before() {
        let mut leases = leases(2);
        (1..=20).for_each(|second| assert!(leases.tick(at(second)).is_empty()));
        for second in 21..=30 {
            [2, 3].into_iter().for_each(|session| leases.renew(SessionId(session), at(second)).unwrap());
            let ended = leases.tick(at(second));
            assert_eq!(ended.len(), if second == 30 { 2 } else { 0 });
        }
    }

    #[test]
    fn a_process_that_restarts_twice_accounts_for_both_incarnations_before() {
        // 0, 1 and 2 are one process after the other, and so are 3 and 4.
        let mut leases = Leases::new(LEASE);
        for second in 0..=50 {
            let alive = match second {
                0..=18 => [0, 3],
                19..=20 => [1, 3],
                21..=22 => [2, 3],
                _ => [2, 4],
            };
            alive.into_iter().for_each(|session| leases.renew(SessionId(session), at(second)).unwrap());
            let ended = leases.tick(at(second));
            assert_eq!(ended.len(), usize::from([48, 50].contains(&second)), "after {second} s: {ended:?}");
        }
    }

    #[test]
    fn what_came_in_a_pause_is_told_apart_by_its_order() {
        let mut leases = leases(2);
        leases.tick(at(1));
        (0..2).for_each(|session| leases.renew(SessionId(session), at(100)).unwrap());
        // Meanwhile the process of the second has been restarted three times.
        (2..5).for_each(|session| leases.renew(SessionId(session), at(100)).unwrap());
        for second in 100..130 {
            [0, 4].into_iter().for_each(|session| leases.renew(SessionId(session), at(second)).unwrap());
            assert!(leases.tick(at(second)).is_empty());
        }
        assert_eq!(leases.tick(at(130)), [1, 2, 3].map(SessionId));
    }

    #[test]
    fn who_is_silent_stands_for_nobody_alone() {
        // The second and third came after the one before had last been heard, and none of them is heard any more.
        let mut leases = Leases::new(LEASE);
        [0, 3, 4].into_iter().for_each(|session| leases.renew(SessionId(session), at(0)).unwrap());
        for second in 1..=100 {
            let newcomer = Some(second).filter(|second| *second < 3);
            newcomer
                .into_iter()
                .chain([3, 4])
                .for_each(|session| leases.renew(SessionId(session), at(second)).unwrap());
            assert!(leases.tick(at(second)).is_empty(), "three of five are not heard");
        }
        assert_eq!(leases.held_back(), 3);
    }

    #[test]
    fn what_is_known_of_who_was_forgotten_counts_when_something_of_it_is_led() {
        // 0 and 1 are succeeded by 2 and 3, and forgotten where nothing is led; long after that something of theirs is.
        let mut leases = leases(2);
        for second in 1..=100 {
            (2..4).for_each(|session| leases.renew(SessionId(session), at(second)).unwrap());
            leases.rest(at(second), |session| session.0 >= 2);
        }
        (0..2).for_each(|session| leases.grant(SessionId(session), at(100)).unwrap());
        for second in 101..=130 {
            (2..4).for_each(|session| leases.renew(SessionId(session), at(second)).unwrap());
            assert_eq!(leases.tick(at(second)).len(), if second == 130 { 2 } else { 0 });
        }
    }
}
