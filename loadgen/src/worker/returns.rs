//! Clients that come back, each not before its time.

use std::{cmp::Reverse, collections::BinaryHeap};

/// See the module.
#[derive(Default)]
pub struct Returns {
    due: BinaryHeap<Reverse<(u64, u32)>>,
}

impl Returns {
    /// A client comes back at `at`.
    pub fn add(&mut self, at: u64, client: u32) {
        self.due.push(Reverse((at, client)));
    }

    /// The next client whose time has come.
    pub fn take(&mut self, now: u64) -> Option<u32> {
        let Reverse((at, client)) = *self.due.peek()?;
        (at <= now).then(|| {
            self.due.pop();
            client
        })
    }

    /// When the next one is due.
    pub fn next(&self) -> u64 {
        self.due.peek().map_or(u64::MAX, |Reverse((at, _))| *at)
    }

    /// Whether some are due by `now`.
    pub fn is_due(&self, now: u64) -> bool {
        self.next() <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_comes_back_before_its_time() {
        let mut returns = Returns::default();
        assert_eq!(returns.next(), u64::MAX);
        [(30, 1), (10, 2), (20, 3)].iter().for_each(|&(at, client)| returns.add(at, client));
        assert_eq!((returns.take(9), returns.next()), (None, 10));
        assert_eq!((returns.take(20), returns.take(20), returns.take(20)), (Some(2), Some(3), None));
        assert!(returns.is_due(30) && !returns.is_due(29));
    }
}
