//! What counting the most frequent of something costs per thing counted.

use slotcast_engine::{
    id::mix64,
    sketch::{COUNTERS_DEFAULT, Sketch},
};

use crate::Prepared;

/// Counts `size` things in a fresh sketch, of about `keys` kinds, a few of which come much more often than the others.
fn count(size: usize, keys: u64) -> Prepared {
    Prepared::new(size, move || {
        let mut sketch = Sketch::new(COUNTERS_DEFAULT, 0, 0x5eed);
        for at in 0..size as u64 {
            let draw = mix64(at) % keys;
            sketch.add(mix64(draw * draw / keys), 1.0);
        }
        let top = sketch.top(16);
        top.iter().fold(sketch.total().to_bits(), |check, counted| {
            mix64(check ^ mix64(counted.key) ^ counted.count.to_bits())
        })
    })
}

/// Every kind has a counter of its own.
pub fn count_known(size: usize) -> Prepared {
    count(size, 1000)
}

/// There are so many kinds that most of what comes takes the counter of another.
pub fn count_unknown(size: usize) -> Prepared {
    count(size, 1_000_000)
}
