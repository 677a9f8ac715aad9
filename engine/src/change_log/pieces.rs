//! A queue in pieces of one size: what leaves at the old end is used again at the new one, so a queue whose length stays about
//! the same asks for no memory, and one that grows leaves no holes of odd sizes behind.

use std::collections::VecDeque;

/// Elements of a piece.
const PIECE: usize = 64;

/// See the module.
pub(super) struct Pieces<T> {
    pieces: VecDeque<Vec<T>>,
    /// Elements of the first piece that have left.
    gone: usize,
    len: usize,
    spare: Vec<Vec<T>>,
    /// Spare pieces that are kept.
    spare_min: usize,
}

impl<T> Default for Pieces<T> {
    fn default() -> Self {
        Self { pieces: VecDeque::new(), gone: 0, len: 0, spare: Vec::new(), spare_min: 0 }
    }
}

impl<T: Copy> Pieces<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes taken.
    pub(super) fn bytes(&self) -> usize {
        (self.pieces.len() + self.spare.len()) * PIECE * size_of::<T>()
            + self.pieces.capacity() * size_of::<Vec<T>>()
    }

    pub(super) fn push_back(&mut self, element: T) {
        if self.pieces.back().is_none_or(|last| last.len() == PIECE) {
            self.pieces.push_back(self.spare.pop().unwrap_or_else(|| Vec::with_capacity(PIECE)));
        }
        if let Some(last) = self.pieces.back_mut() {
            last.push(element);
            self.len += 1;
        }
    }

    pub(super) fn pop_front(&mut self) {
        if self.len == 0 {
            return;
        }
        (self.gone, self.len) = (self.gone + 1, self.len - 1);
        if (self.gone == PIECE || self.len == 0)
            && let Some(mut piece) = self.pieces.pop_front()
        {
            self.gone = 0;
            piece.clear();
            if self.spare.is_empty() || self.spare.len() < self.spare_min {
                self.spare.push(piece);
            }
        }
    }

    pub(super) fn get(&self, index: usize) -> Option<&T> {
        let at = index.checked_add(self.gone)?;
        self.pieces.get(at / PIECE)?.get(at % PIECE)
    }

    /// Takes memory for `elements`, touches it by filling it with `blank`, and keeps so much from then on.
    pub(super) fn reserve(&mut self, elements: usize, blank: T) {
        self.spare_min = elements.div_ceil(PIECE);
        while self.pieces.len() + self.spare.len() < self.spare_min {
            let mut piece = vec![blank; PIECE];
            piece.clear();
            self.spare.push(piece);
        }
    }

    /// Gives back what is neither used nor to be kept.
    pub(super) fn give_back(&mut self) {
        self.spare.truncate(self.spare_min);
        self.spare.shrink_to_fit();
        self.pieces.shrink_to(self.pieces.len() * 2);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn it_is_a_queue_whatever_comes_and_goes() {
        let (mut pieces, mut model) = (Pieces::default(), VecDeque::new());
        for step in 0..2_000u64 {
            let noise = crate::id::mix64(step);
            let (grow, count) = (noise % 3 > step / 1_000, noise >> 8 & 127);
            for _ in 0..count {
                if grow {
                    pieces.push_back(noise);
                    model.push_back(noise);
                } else {
                    pieces.pop_front();
                    model.pop_front();
                }
            }
            let ends = |len: usize| [0, len.saturating_sub(1)];
            assert_eq!(pieces.len(), model.len());
            assert!(ends(model.len()).into_iter().all(|at| pieces.get(at) == model.get(at)));
            assert!(step % 64 != 0 || (0..model.len()).all(|at| pieces.get(at) == model.get(at)));
            assert!(pieces.get(model.len()).is_none());
        }
        assert!(pieces.bytes() < 8 * (model.len() + 4 * PIECE) + 24 * pieces.pieces.capacity());
    }

    #[test]
    fn what_is_reserved_is_kept_and_the_rest_given_back() {
        let mut pieces = Pieces::default();
        pieces.reserve(10 * PIECE, 0u64);
        let reserved = pieces.bytes();
        (0..20 * PIECE as u64).for_each(|element| pieces.push_back(element));
        (0..20 * PIECE).for_each(|_| pieces.pop_front());
        pieces.give_back();
        assert!(pieces.len() == 0 && pieces.bytes() >= reserved && pieces.bytes() < 2 * reserved);
    }
}
