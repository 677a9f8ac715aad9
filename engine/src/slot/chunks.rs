//! A vector that grows by pieces: nothing is ever copied to a larger place, and at most one piece is not full.

use std::ops::{Index, IndexMut};

/// Bytes of a piece, about: as many elements as fit, so that an allocator with pieces of such sizes wastes little.
const CHUNK_BYTES: usize = 8192;

/// Elements that the first piece begins with.
const FIRST: usize = 4;

/// See the module.
pub(super) struct Chunks<T> {
    /// All before the last that has elements are full.
    chunks: Vec<Vec<T>>,
    len: usize,
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }
}

impl<T> Chunks<T> {
    /// Elements of a piece.
    const CHUNK: usize = CHUNK_BYTES / size_of::<T>();
}

impl<T: Copy> Chunks<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Elements for which there is memory.
    pub(super) fn capacity(&self) -> usize {
        self.chunks.iter().map(Vec::capacity).sum()
    }

    pub(super) fn push(&mut self, element: T) {
        let at = self.len / Self::CHUNK;
        if at == self.chunks.len() {
            // The first grows as a vector does: most slots of a small registry never need a second.
            let first = if at == 0 { 0 } else { Self::CHUNK };
            self.chunks.push(Vec::with_capacity(first));
        }
        let chunk = &mut self.chunks[at];
        if chunk.len() == chunk.capacity() {
            chunk.reserve_exact(chunk.len().max(FIRST).min(Self::CHUNK - chunk.len()));
        }
        chunk.push(element);
        self.len += 1;
    }

    /// Takes memory for `elements` in all, and touches it by filling it with `blank`.
    pub(super) fn reserve(&mut self, elements: usize, blank: T) {
        let chunks = elements.div_ceil(Self::CHUNK);
        self.chunks.resize_with(self.chunks.len().max(chunks), Vec::new);
        for chunk in &mut self.chunks {
            let held = chunk.len();
            chunk.reserve_exact(Self::CHUNK - held);
            chunk.resize(Self::CHUNK, blank);
            chunk.truncate(held);
        }
    }

    /// Gives back the last piece with all that is in it. Returns whether there was one.
    pub(super) fn drop_piece(&mut self) -> bool {
        let Some(piece) = self.chunks.pop() else { return false };
        self.len -= piece.len();
        true
    }

    pub(super) fn get(&self, index: usize) -> Option<&T> {
        self.chunks.get(index / Self::CHUNK)?.get(index % Self::CHUNK)
    }

    pub(super) fn last(&self) -> Option<&T> {
        self.get(self.len.checked_sub(1)?)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten()
    }
}

impl<T> Index<usize> for Chunks<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.chunks[index / Self::CHUNK][index % Self::CHUNK]
    }
}

impl<T> IndexMut<usize> for Chunks<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.chunks[index / Self::CHUNK][index % Self::CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: usize = Chunks::<usize>::CHUNK;

    #[test]
    fn elements_stay_where_they_are_also_beyond_what_was_reserved() {
        for reserved in [0, 10, 3 * CHUNK] {
            let mut chunks = Chunks::default();
            chunks.reserve(reserved, 0);
            assert!(chunks.len() == 0 && chunks.capacity() >= reserved);
            (0..4 * CHUNK + 1).for_each(|element| chunks.push(element));
            chunks[CHUNK] = 7;
            let expected = (0..4 * CHUNK + 1).map(|at| if at == CHUNK { 7 } else { at });
            assert!(chunks.iter().copied().eq(expected));
            assert!(chunks.len() == 4 * CHUNK + 1 && chunks.capacity() < 6 * CHUNK);
            chunks.reserve(5 * CHUNK, 0);
            assert!(chunks.len() == 4 * CHUNK + 1 && chunks[4 * CHUNK] == 4 * CHUNK);
        }
    }
}
