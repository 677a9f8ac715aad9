//! Where everything that is left to chance comes from.
//!
//! Hosts, connections and operations each have a sequence of their own, so that leaving one operation out of a run disturbs the
//! rest of it as little as can be: a failure can be found again in a shorter history.

use slotcast_engine::id::mix64;

/// Numbers from a seed.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(mix64(seed))
    }

    /// A sequence that depends on everything in `parts` and on their order.
    pub fn of(parts: &[u64]) -> Self {
        Self::new(parts.iter().fold(0, |sum: u64, part| mix64(sum.rotate_left(7) ^ mix64(*part))))
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix64(self.0)
    }

    /// A number from `low` to `high`, both included.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.number() % (high - low + 1)
    }

    /// A number below `count`.
    pub fn below(&mut self, count: usize) -> usize {
        (self.number() % count as u64) as usize
    }

    /// True `percent` times of a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.number() % 100 < percent
    }
}
