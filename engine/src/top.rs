//! The largest of something: rows with a value, of which only so many are kept.

use std::collections::BTreeMap;

/// Rows that one question may ask for.
pub const LIMIT_MAX: usize = 1000;

/// One row of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What it is about: a name, or a number in hexadecimal where no name is known.
    pub key: String,
    /// What the rows are ordered by.
    pub value: f64,
    /// What `value` is too large by at most.
    pub error: f64,
    /// What else is worth knowing, by name.
    pub more: Vec<(&'static str, String)>,
}

impl Row {
    /// A row of which the value is exact.
    pub fn exact(key: impl Into<String>, value: u64) -> Self {
        Self { key: key.into(), value: value as f64, error: 0.0, more: Vec::new() }
    }

    /// The same row with one more thing worth knowing.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.more.push((name, value.to_string()));
        self
    }
}

/// The rows with the largest values among all that were offered. The earlier of two with one value is kept.
#[derive(Debug)]
pub struct Largest {
    limit: usize,
    offered: u64,
    /// By value and, downwards, by the order in which they came.
    rows: BTreeMap<(u64, u64), Row>,
}

impl Largest {
    /// Keeps at most `limit` rows, and never more than [`LIMIT_MAX`].
    pub fn new(limit: usize) -> Self {
        Self { limit: limit.clamp(1, LIMIT_MAX), offered: 0, rows: BTreeMap::new() }
    }

    /// Offers a row of this value, which is only made if it is kept.
    pub fn offer(&mut self, value: u64, row: impl FnOnce() -> Row) {
        self.offered += 1;
        let place = (value, u64::MAX - self.offered);
        if self.rows.len() == self.limit {
            if self.rows.first_key_value().is_some_and(|(smallest, _)| place < *smallest) {
                return;
            }
            self.rows.pop_first();
        }
        self.rows.insert(place, row());
    }

    /// Rows offered.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// The rows kept, the largest first.
    pub fn into_rows(self) -> Vec<Row> {
        self.rows.into_values().rev().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_kept_in_order_and_the_earlier_of_equals() {
        let mut largest = Largest::new(3);
        for (key, value) in [("a", 5), ("b", 1), ("c", 5), ("d", 9), ("e", 5), ("f", 0)] {
            largest.offer(value, || Row::exact(key, value));
        }
        assert_eq!(largest.offered(), 6);
        let keys: Vec<String> = largest.into_rows().into_iter().map(|row| row.key).collect();
        assert_eq!(keys, ["d", "a", "c"]);
    }

    #[test]
    fn no_question_asks_for_more_than_the_limit() {
        let mut largest = Largest::new(usize::MAX);
        (0..2 * LIMIT_MAX as u64).for_each(|value| largest.offer(value, || Row::exact("", value)));
        assert_eq!(largest.into_rows().len(), LIMIT_MAX);
    }
}
