//! One worker's part of a reconnect storm: whose connection is reset when, and which lists have had an answer since.

use std::{collections::VecDeque, ops::Range};

use crate::{disturbance::Disturbance, workload::Workload};

/// See the module.
#[derive(Default)]
pub struct Storm {
    /// Clients to reset, by time after the start of the changes.
    resets: VecDeque<(u64, u32)>,
    /// Clients whose time has come while something of theirs was on its way.
    late: VecDeque<u32>,
    /// By subscription: reset, and not answered since.
    open: Vec<bool>,
    left: usize,
}

impl Storm {
    /// The storm that `disturbance` wants over these clients; without one nothing is ever due.
    pub fn new(workload: &Workload, clients: Range<u32>, disturbance: &Disturbance) -> Self {
        let at = |client| disturbance.reset_at(workload, client).map(|at| (at, client));
        let resets: VecDeque<_> = clients.filter_map(at).collect();
        let open = if resets.is_empty() { 0 } else { workload.subscriptions().all().len() };
        Self { resets, late: VecDeque::new(), open: vec![false; open], left: 0 }
    }

    /// The clients to try at `since` after the start of the changes: those due and those put off.
    pub fn due(&mut self, since: u64) -> Vec<u32> {
        let mut due: Vec<u32> = std::mem::take(&mut self.late).into();
        while let Some(&(_, client)) = self.resets.front().filter(|(at, _)| *at <= since) {
            self.resets.pop_front();
            due.push(client);
        }
        due
    }

    /// A client could not be reset now.
    pub fn put_off(&mut self, client: u32) {
        self.late.push_back(client);
    }

    /// When the next one is due, after the start of the changes.
    pub fn next(&self) -> u64 {
        self.resets.front().map_or(u64::MAX, |(at, _)| *at)
    }

    /// A client was reset: its subscriptions lack an answer.
    pub fn reset(&mut self, subscriptions: Range<usize>) {
        for at in subscriptions {
            self.left += usize::from(!std::mem::replace(&mut self.open[at], true));
        }
    }

    /// Whether some of these subscriptions lack an answer.
    pub fn is_open(&self, mut subscriptions: Range<usize>) -> bool {
        self.left > 0 && subscriptions.any(|at| self.open[at])
    }

    /// A subscription has had an answer. Returns whether it was the first since its reset.
    pub fn answered(&mut self, subscription: usize) -> bool {
        if self.left == 0 || !std::mem::replace(&mut self.open[subscription], false) {
            return false;
        }
        self.left -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::tests::parameters;

    #[test]
    fn every_client_is_due_once_and_every_list_is_answered_once() {
        let workload = parameters().build(0..10).unwrap();
        let disturbance = Disturbance { reconnect_storm: true, ..Disturbance::default() };
        let mut storm = Storm::new(&workload, 0..10, &disturbance);
        assert!(storm.due(storm.next() - 1).is_empty());
        assert_eq!(storm.due(u64::MAX), (0..10).collect::<Vec<_>>());
        storm.put_off(3);
        assert_eq!((storm.due(0), storm.next()), (vec![3], u64::MAX));
        assert!(!storm.answered(5), "nothing was reset");
        storm.reset(4..8);
        assert!(storm.is_open(7..9) && !storm.is_open(8..9));
        assert_eq!([4, 4, 5, 8].map(|at| storm.answered(at)), [true, false, true, false]);
        storm.reset(4..8);
        assert_eq!((4..8).filter(|&at| storm.answered(at)).count(), 4);
        assert!(!storm.is_open(0..10));
    }

    #[test]
    fn without_a_storm_nothing_is_due() {
        let workload = parameters().build(0..10).unwrap();
        let mut storm = Storm::new(&workload, 0..10, &Disturbance::default());
        assert!(storm.due(u64::MAX).is_empty() && storm.next() == u64::MAX && !storm.answered(0));
    }
}
