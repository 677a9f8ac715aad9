//! Giving back the memory of a slot that is gone, a little at a time.

use super::Slot;

/// What a segment of the arena costs to give back, beside a data id.
const SEGMENT_COST: usize = 512;
/// What a piece of the table of registrations costs likewise.
const PIECE_COST: usize = 16;

impl Slot {
    /// Gives back some memory of a slot that nobody will look at again, as much as `budget` says, about one data id for each
    /// unit, and takes what it used from the budget. Returns whether nothing that is worth a step is left.
    pub(crate) fn dismantle(&mut self, budget: &mut usize) -> bool {
        while *budget > 0 && self.datums.pop().is_some() {
            *budget -= 1;
        }
        while *budget > 0 && self.publications.drop_piece() {
            *budget = budget.saturating_sub(PIECE_COST);
        }
        while *budget > 0 && self.arena.drop_last_segment() {
            *budget = budget.saturating_sub(SEGMENT_COST);
        }
        let done = *budget > 0;
        *budget = budget.saturating_sub(1);
        done
    }
}
