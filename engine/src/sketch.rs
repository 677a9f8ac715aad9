//! Which keys come most often, in bounded memory: Space-Saving with a fixed number of counters, and halving by time.
//!
//! With k counters and a total weight N, every key of which the weight is above N/k is among the counters, a count is never
//! below the true weight, and never more than N/k above it. Each counter also knows its own bound, which is mostly smaller.
//! Every half-life all counts, bounds and the total are halved, so the same holds of weights that count half as much for
//! each half-life that has passed since. (Metwally, Agrawal, El Abbadi: Efficient computation of frequent and top-k elements
//! in data streams, 2005.)

use hashbrown::HashTable;

use crate::id::{Nanos, mix64};

/// Counters of a sketch unless told otherwise: the error is at most a thousandth of the total.
pub const COUNTERS_DEFAULT: usize = 1024;

/// One key and its count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counted {
    /// The key.
    pub key: u64,
    /// Its weight, too large by at most `error`.
    pub count: f64,
    /// Bound of what is too much in `count`.
    pub error: f64,
}

/// See the module.
pub struct Sketch {
    capacity: usize,
    half_life: u64,
    halved_at: Option<Nanos>,
    total: f64,
    counters: Vec<Counter>,
    /// Numbers of counters as a heap: the smallest count is first.
    heap: Vec<u32>,
    /// Numbers of counters by key.
    index: HashTable<u32>,
    seed: u64,
}

#[derive(Clone, Copy)]
struct Counter {
    counted: Counted,
    /// Where it stands in the heap.
    place: u32,
}

impl Sketch {
    /// A sketch with `capacity` counters, of which all is halved every `half_life` nanoseconds (0: never). `seed` makes its
    /// index unpredictable from outside.
    pub fn new(capacity: usize, half_life: u64, seed: u64) -> Self {
        assert!(capacity > 0 && capacity < u32::MAX as usize);
        Self {
            capacity,
            half_life,
            halved_at: None,
            total: 0.0,
            counters: Vec::new(),
            heap: Vec::new(),
            index: HashTable::new(),
            seed,
        }
    }

    /// Counts `weight` for a key.
    pub fn add(&mut self, key: u64, weight: f64) {
        self.total += weight;
        if self.counters.capacity() == 0 {
            self.counters.reserve_exact(self.capacity);
            self.heap.reserve_exact(self.capacity);
            // Twice the room: replacing keys then never makes the table grow.
            self.index.reserve(self.capacity * 2, |_| 0);
        }
        let hash = mix64(key ^ self.seed);
        if let Some(&number) = self.index.find(hash, |&number| self.counter(number).counted.key == key) {
            let counter = &mut self.counters[number as usize];
            counter.counted.count += weight;
            let place = counter.place as usize;
            self.sift_down(place);
            return;
        }
        let number = if self.counters.len() < self.capacity {
            let place = self.heap.len() as u32;
            let counted = Counted { key, count: weight, error: 0.0 };
            self.counters.push(Counter { counted, place });
            self.heap.push(place);
            self.sift_up(place as usize);
            place
        } else {
            // The smallest makes room: the newcomer may have been there as often as that.
            let number = self.heap[0];
            let smallest = self.counter(number).counted;
            let old_hash = mix64(smallest.key ^ self.seed);
            if let Ok(entry) = self.index.find_entry(old_hash, |&other| other == number) {
                entry.remove();
            }
            let counted = Counted { key, count: smallest.count + weight, error: smallest.count };
            self.counters[number as usize].counted = counted;
            self.sift_down(0);
            number
        };
        let (counters, seed) = (&self.counters, self.seed);
        self.index.insert_unique(hash, number, |&other| mix64(counters[other as usize].counted.key ^ seed));
    }

    /// Time passes: what was counted before loses half its weight for each half-life. To be called now and then, and before
    /// reading.
    pub fn pass(&mut self, now: Nanos) {
        let since = *self.halved_at.get_or_insert(now);
        if self.half_life == 0 || now.since(since) < self.half_life {
            return;
        }
        let halvings = now.since(since) / self.half_life;
        self.halved_at = Some(since.after(halvings * self.half_life));
        let factor = 0.5f64.powi(halvings.min(2000) as i32);
        self.total *= factor;
        for Counter { counted, .. } in &mut self.counters {
            counted.count *= factor;
            counted.error *= factor;
        }
    }

    /// The `limit` keys with the largest counts, the largest first.
    pub fn top(&self, limit: usize) -> Vec<Counted> {
        let mut all: Vec<Counted> = self.counters.iter().map(|counter| counter.counted).collect();
        all.retain(|counted| counted.count > 0.0);
        all.sort_by(|a, b| b.count.total_cmp(&a.count).then(a.key.cmp(&b.key)));
        all.truncate(limit);
        all
    }

    /// Weight of all keys together.
    pub fn total(&self) -> f64 {
        self.total
    }

    /// What any count is too large by at most: the total by the number of counters.
    pub fn error_max(&self) -> f64 {
        self.total / self.capacity as f64
    }

    /// Nanoseconds in which a weight loses half; 0: it does not.
    pub fn half_life(&self) -> u64 {
        self.half_life
    }

    /// Bytes taken.
    pub fn bytes(&self) -> usize {
        self.counters.capacity() * size_of::<Counter>()
            + self.heap.capacity() * size_of::<u32>()
            + self.index.allocation_size()
    }

    fn counter(&self, number: u32) -> &Counter {
        &self.counters[number as usize]
    }

    fn count_at(&self, place: usize) -> f64 {
        self.counter(self.heap[place]).counted.count
    }

    fn sift_up(&mut self, mut place: usize) {
        while place > 0 && self.count_at(place) < self.count_at((place - 1) / 2) {
            self.swap(place, (place - 1) / 2);
            place = (place - 1) / 2;
        }
    }

    fn sift_down(&mut self, mut place: usize) {
        loop {
            let (left, right) = (place * 2 + 1, place * 2 + 2);
            if left >= self.heap.len() {
                return;
            }
            let right_less = right < self.heap.len() && self.count_at(right) < self.count_at(left);
            let child = if right_less { right } else { left };
            if self.count_at(place) <= self.count_at(child) {
                return;
            }
            self.swap(place, child);
            place = child;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        for place in [a, b] {
            self.counters[self.heap[place] as usize].place = place as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Exact counts with the same halving.
    #[derive(Default)]
    struct Exact(BTreeMap<u64, f64>);

    impl Exact {
        fn total(&self) -> f64 {
            self.0.values().sum()
        }
    }

    fn check(sketch: &Sketch, exact: &Exact) {
        let (bound, slack) = (exact.total() / sketch.capacity as f64, exact.total() * 1e-9);
        assert!((sketch.total() - exact.total()).abs() <= slack);
        assert!((sketch.error_max() - bound).abs() <= slack);
        let told: BTreeMap<u64, Counted> =
            sketch.top(usize::MAX).into_iter().map(|counted| (counted.key, counted)).collect();
        for (key, counted) in &told {
            let truth = exact.0.get(key).copied().unwrap_or(0.0);
            assert!(counted.count >= truth - slack, "{key} is counted too low");
            assert!(counted.count - counted.error <= truth + slack, "{key} is beyond its own bound");
            assert!(counted.error <= bound + slack, "{key} is beyond N/k");
        }
        for (key, truth) in &exact.0 {
            assert!(*truth <= bound + slack || told.contains_key(key), "{key} has {truth} and is not told");
        }
    }

    proptest! {
        #[test]
        fn counts_are_within_a_kth_of_the_total_of_the_exact_ones(
            capacity in 1usize..20,
            steps in prop::collection::vec((0u64..60, 1u32..50, 0u64..4), 1..400),
        ) {
            let (mut sketch, mut exact) = (Sketch::new(capacity, 10, 7), Exact::default());
            let (mut now, mut halved) = (Nanos(1), 0);
            sketch.pass(now);
            for (at, (key, weight, passes)) in steps.into_iter().enumerate() {
                // A few keys come much more often than the others.
                let key = key * key / 60;
                now = now.after(passes);
                sketch.pass(now);
                while (now.0 - 1) / 10 > halved {
                    exact.0.values_mut().for_each(|count| *count /= 2.0);
                    halved += 1;
                }
                sketch.add(key, f64::from(weight));
                *exact.0.entry(key).or_default() += f64::from(weight);
                if at % 16 == 0 {
                    check(&sketch, &exact);
                }
            }
            check(&sketch, &exact);
        }
    }

    #[test]
    fn with_no_more_keys_than_counters_it_is_exact() {
        let mut sketch = Sketch::new(100, 0, 1);
        for key in 0..100u64 {
            (0..=key).for_each(|_| sketch.add(key, 1.0));
        }
        let top = sketch.top(3);
        assert_eq!(
            top.iter().map(|it| (it.key, it.count, it.error)).collect::<Vec<_>>(),
            [(99, 100.0, 0.0), (98, 99.0, 0.0), (97, 98.0, 0.0)]
        );
    }

    #[test]
    fn a_key_that_was_often_there_long_ago_gives_way_to_one_that_is_now() {
        let mut sketch = Sketch::new(10, Nanos::SECOND, 1);
        sketch.pass(Nanos(0));
        (0..1000).for_each(|_| sketch.add(1, 1.0));
        sketch.pass(Nanos(8 * Nanos::SECOND));
        (0..10).for_each(|_| sketch.add(2, 1.0));
        let keys: Vec<u64> = sketch.top(2).iter().map(|counted| counted.key).collect();
        assert_eq!(keys, [2, 1]);
        sketch.pass(Nanos(u64::MAX));
        assert!(sketch.top(2).is_empty() && sketch.total() == 0.0, "after an age nothing is left");
    }

    #[test]
    fn its_memory_is_bounded_by_its_counters() {
        let mut sketch = Sketch::new(64, 0, 1);
        (0..64).for_each(|key| sketch.add(key, 1.0));
        let bytes = sketch.bytes();
        (64..100_000).for_each(|key| sketch.add(key, 1.0));
        assert_eq!(sketch.bytes(), bytes);
    }
}
