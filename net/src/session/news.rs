//! The clients that something is due to, each at most once, served round after round in the order of their connections.
//!
//! Connections made one after the other lie next to each other in our memory and in the kernel's, and most of what a write
//! costs is waiting for memory. So the order of a round is that of the connections, not that in which news came.
//!
//! Only what a new client is told first goes before the round: behind it a storm of connects would only be as fast as whole
//! rounds are.

use std::collections::VecDeque;

/// See the module. A bit per connection, and a bit per word of those.
#[derive(Default)]
pub(super) struct News {
    words: Vec<u64>,
    summary: Vec<u64>,
    len: usize,
    /// First connection of the round that has not been looked at.
    next: usize,
    /// New clients, in the order in which they came. Each stands here once per hello.
    first: VecDeque<u32>,
}

impl News {
    /// Makes room for connections below `count`.
    pub(super) fn grow(&mut self, count: usize) {
        let words = count.div_ceil(64);
        if words > self.words.len() {
            self.words.resize(words, 0);
            self.summary.resize(words.div_ceil(64), 0);
        }
    }

    /// Something is due to a client. What lies beyond the room is not a client's.
    pub(super) fn mark(&mut self, index: u32) {
        let (word, bit) = (index as usize / 64, 1 << (index % 64));
        if let Some(marks) = self.words.get_mut(word)
            && *marks & bit == 0
        {
            *marks |= bit;
            self.summary[word / 64] |= 1 << (word % 64);
            self.len += 1;
        }
    }

    /// A new client is to be served before the round goes on. It may be marked as well; its later turn finds nothing to do.
    pub(super) fn mark_first(&mut self, index: u32) {
        self.first.push_back(index);
    }

    /// The next client of this round; `None` ends the round, and so does the last client of all.
    pub(super) fn take(&mut self) -> Option<u32> {
        if let Some(index) = self.first.pop_front() {
            return Some(index);
        }
        let Some(index) = self.first_from(self.next) else {
            self.next = 0;
            return None;
        };
        let word = index / 64;
        self.words[word] &= !(1 << (index % 64));
        if self.words[word] == 0 {
            self.summary[word / 64] &= !(1 << (word % 64));
        }
        self.len -= 1;
        self.next = if self.len == 0 { 0 } else { index + 1 };
        Some(index as u32)
    }

    /// Clients marked.
    pub(super) fn len(&self) -> usize {
        self.len + self.first.len()
    }

    /// Whether nothing is due to anyone.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn first_from(&self, index: usize) -> Option<usize> {
        let word = index / 64;
        let rest = self.words.get(word)? & (u64::MAX << (index % 64));
        if rest != 0 {
            return Some(word * 64 + rest.trailing_zeros() as usize);
        }
        let word = first_set(&self.summary, word + 1)?;
        Some(word * 64 + self.words[word].trailing_zeros() as usize)
    }
}

/// The first bit set at or after `bit`.
fn first_set(words: &[u64], bit: usize) -> Option<usize> {
    let word = bit / 64;
    let rest = words.get(word)? & (u64::MAX << (bit % 64));
    if rest != 0 {
        return Some(word * 64 + rest.trailing_zeros() as usize);
    }
    let later = words[word + 1..].iter().position(|word| *word != 0)? + word + 1;
    Some(later * 64 + words[later].trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_round_goes_up_and_what_is_marked_behind_it_waits_for_the_next() {
        let mut news = News::default();
        news.grow(10_000);
        for index in [9_999, 64, 63, 5_000, 64] {
            news.mark(index);
        }
        assert_eq!(news.len(), 4);
        assert_eq!((news.take(), news.take()), (Some(63), Some(64)));
        news.mark(0);
        news.mark(5_001);
        let rest: Vec<_> = std::iter::from_fn(|| news.take()).collect();
        assert_eq!(rest, [5_000, 5_001, 9_999]);
        assert_eq!((news.take(), news.is_empty()), (Some(0), true));
        news.mark(0);
        assert_eq!(news.take(), Some(0));
    }

    #[test]
    fn new_clients_are_served_before_the_round_goes_on() {
        let mut news = News::default();
        news.grow(100);
        [10, 20, 30].iter().for_each(|index| news.mark(*index));
        assert_eq!(news.take(), Some(10));
        news.mark_first(40);
        news.mark_first(5);
        assert_eq!(news.len(), 4);
        let rest: Vec<_> = std::iter::from_fn(|| news.take()).collect();
        assert_eq!((rest, news.is_empty()), (vec![40, 5, 20, 30], true));
    }

    #[test]
    fn a_connection_without_room_is_not_marked() {
        let mut news = News::default();
        news.mark(3);
        assert!(news.is_empty());
        assert_eq!(news.take(), None);
    }

    proptest! {
        #[test]
        fn it_holds_what_a_set_holds(steps in prop::collection::vec((0u32..20_000, 0usize..4), 1..200)) {
            let (mut news, mut set, mut next) = (News::default(), BTreeSet::new(), 0);
            news.grow(20_000);
            for (index, takes) in steps {
                news.mark(index);
                set.insert(index);
                for _ in 0..takes {
                    let expected = set.range(next..).next().copied();
                    prop_assert_eq!(news.take(), expected);
                    expected.map(|index| set.remove(&index));
                    next = expected.filter(|_| !set.is_empty()).map_or(0, |index| index + 1);
                }
                prop_assert_eq!(news.len(), set.len());
            }
        }
    }
}
