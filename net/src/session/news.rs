//! The clients that something is due to, each at most once: those whose news is oldest first, in the order of their connections.
//!
//! Whoever waits longest should be next, or delay differs by a whole round for no reason. But connections made one after the other
//! lie next to each other in our memory and in the kernel's, and most of what a write costs is waiting for memory. So clients are
//! marked into generations, the oldest of which is served first, in the order of the connections. A generation is an eighth of the
//! connections: nobody is overtaken by more than that, and every eighth socket or so of those passed is written to.
//!
//! A round serves who is marked when it begins.
//!
//! Only what a new client is told first goes before the round: behind it a storm of connects would only be as fast as whole
//! rounds are.

use std::collections::VecDeque;

/// So many full generations are all connections. Fewer let more be overtaken, more let writes jump through memory: with 16 a
/// write took a tenth more processor time than with 8, with 4 as much as with 8.
const GENERATIONS: usize = 8;
/// With fewer than so many clients a generation would not order anything.
const GENERATION_MIN: usize = 64;

/// Marked connections: a bit each, and a bit per word of those.
#[derive(Default)]
struct Marks {
    words: Vec<u64>,
    summary: Vec<u64>,
    len: usize,
}

impl Marks {
    fn grow(&mut self, words: usize) {
        self.words.resize(words, 0);
        self.summary.resize(words.div_ceil(64), 0);
    }

    /// Marks one that is not marked.
    fn set(&mut self, index: usize) {
        let word = index / 64;
        self.words[word] |= 1 << (index % 64);
        self.summary[word / 64] |= 1 << (word % 64);
        self.len += 1;
    }

    /// Takes back the mark of one that is marked.
    fn clear(&mut self, index: usize) {
        let word = index / 64;
        self.words[word] &= !(1 << (index % 64));
        if self.words[word] == 0 {
            self.summary[word / 64] &= !(1 << (word % 64));
        }
        self.len -= 1;
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

/// See the module.
#[derive(Default)]
pub(super) struct News {
    /// Everybody marked.
    marked: Vec<u64>,
    len: usize,
    /// The marked ones, those whose news is oldest first.
    generations: VecDeque<Marks>,
    /// Whether the youngest generation takes more.
    open: bool,
    /// Generations left of the round; `None` between rounds.
    round: Option<usize>,
    /// First connection of the oldest generation that has not been looked at.
    next: usize,
    /// Generations without anybody, for the next.
    spare: Vec<Marks>,
    /// New clients, in the order in which they came. Each stands here once per hello.
    first: VecDeque<u32>,
}

impl News {
    /// Makes room for connections below `count`.
    pub(super) fn grow(&mut self, count: usize) {
        let words = count.div_ceil(64);
        if words > self.marked.len() {
            self.marked.resize(words, 0);
            self.generations.iter_mut().chain(&mut self.spare).for_each(|marks| marks.grow(words));
        }
    }

    /// Something is due to a client. What lies beyond the room is not a client's.
    pub(super) fn mark(&mut self, index: u32) {
        let index = index as usize;
        let Some(word) = self.marked.get_mut(index / 64) else { return };
        if *word & 1 << (index % 64) != 0 {
            return;
        }
        *word |= 1 << (index % 64);
        self.len += 1;
        let full = (self.marked.len() * 64 / GENERATIONS).max(GENERATION_MIN);
        if !self.open || self.generations.back().is_none_or(|youngest| youngest.len >= full) {
            let mut marks = self.spare.pop().unwrap_or_default();
            marks.grow(self.marked.len());
            self.generations.push_back(marks);
            self.open = true;
        }
        if let Some(youngest) = self.generations.back_mut() {
            youngest.set(index);
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
        if self.round.is_none() {
            // Who is marked from here on waits for the next round.
            self.round = Some(self.generations.len());
            self.open = false;
        }
        if self.round == Some(0) {
            self.round = None;
            return None;
        }
        let oldest = self.generations.front_mut()?;
        let index = oldest.first_from(self.next)?;
        oldest.clear(index);
        self.marked[index / 64] &= !(1 << (index % 64));
        self.len -= 1;
        self.next = index + 1;
        if oldest.len == 0 {
            self.spare.extend(self.generations.pop_front());
            self.next = 0;
            self.round = self.round.map(|left| left - 1);
        }
        if self.len == 0 {
            self.round = None;
        }
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
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_round_goes_up_and_what_is_marked_since_waits_for_the_next() {
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
        assert_eq!(rest, [5_000, 9_999], "the round ends before those that were marked since");
        assert_eq!((news.take(), news.take(), news.is_empty()), (Some(0), Some(5_001), true));
        news.mark(0);
        assert_eq!(news.take(), Some(0));
    }

    #[test]
    fn older_news_goes_before_younger_and_each_generation_goes_up() {
        let mut news = News::default();
        news.grow(8 * 128);
        let (early, late) = (800..928, 0..128);
        early.clone().rev().chain(late.clone()).for_each(|index| news.mark(index));
        let taken: Vec<_> = std::iter::from_fn(|| news.take()).collect();
        assert_eq!(taken, early.chain(late).collect::<Vec<_>>());
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
    fn room_made_in_a_round_is_marked_in_the_next() {
        let mut news = News::default();
        news.grow(64);
        [1, 2].iter().for_each(|index| news.mark(*index));
        assert_eq!(news.take(), Some(1));
        news.mark(1);
        news.grow(100_000);
        news.mark(99_999);
        let rounds = [(); 2].map(|()| std::iter::from_fn(|| news.take()).collect::<Vec<_>>());
        assert_eq!(rounds, [vec![2], vec![1, 99_999]]);
    }

    #[test]
    fn a_connection_without_room_is_not_marked() {
        let mut news = News::default();
        news.mark(3);
        assert!(news.is_empty());
        assert_eq!(news.take(), None);
    }

    proptest! {
        /// Against a list of who is marked, with the number of the mark.
        #[test]
        fn everybody_marked_is_served_once_and_not_overtaken_by_more_than_a_generation(
            steps in prop::collection::vec((0u32..2_048, 0usize..4), 1..4_000),
        ) {
            let full = 2_048 / GENERATIONS;
            let (mut news, mut waiting, mut round) = (News::default(), BTreeMap::new(), None);
            news.grow(2_048);
            for (number, (index, takes)) in steps.into_iter().enumerate() {
                news.mark(index);
                waiting.entry(index).or_insert(number);
                for _ in 0..takes {
                    let began = *round.get_or_insert(number);
                    let Some(taken) = news.take() else {
                        prop_assert!(waiting.values().all(|marked| *marked > began), "a round ends with its last client");
                        round = None;
                        continue;
                    };
                    let oldest = waiting.values().copied().min();
                    let marked = waiting.remove(&taken);
                    prop_assert!(marked.is_some_and(|marked| marked <= began), "{taken} is not of this round");
                    let earlier = waiting.values().filter(|other| Some(**other) < marked).count();
                    prop_assert!(earlier < full, "{taken} overtakes {earlier}, the oldest marked at {oldest:?}");
                    if waiting.is_empty() {
                        round = None;
                    }
                }
                prop_assert_eq!(news.len(), waiting.len());
            }
        }
    }
}
