//! A revision that stays the same over many entries: kept once, with the position from which it holds.

use std::collections::VecDeque;

use crate::id::Revision;

/// See the module. Positions rise.
#[derive(Default)]
pub(super) struct Steps {
    steps: VecDeque<(u64, Revision)>,
}

impl Steps {
    /// From `position` on it is `revision`.
    pub(super) fn set(&mut self, position: u64, revision: Revision) {
        if self.steps.back().is_none_or(|(_, last)| *last != revision) {
            self.steps.push_back((position, revision));
        }
    }

    /// What was set last.
    pub(super) fn last(&self) -> Option<Revision> {
        self.steps.back().map(|(_, revision)| *revision)
    }

    /// What holds at a position; zero before the first.
    pub(super) fn at(&self, position: u64) -> Revision {
        let step = match self.steps.front() {
            // Nearly always there is one.
            Some((from, revision)) if self.steps.len() == 1 && *from <= position => return *revision,
            _ => self.steps.partition_point(|(from, _)| *from <= position),
        };
        step.checked_sub(1).map_or(Revision::ZERO, |step| self.steps[step].1)
    }

    /// Nobody asks for what is before `position` any more.
    pub(super) fn forget_before(&mut self, position: u64) {
        while self.steps.get(1).is_some_and(|(from, _)| *from <= position) {
            self.steps.pop_front();
        }
    }

    /// Gives back what a longer history had taken.
    pub(super) fn give_back(&mut self) {
        self.steps.shrink_to(self.steps.len() * 2);
    }

    /// Bytes taken.
    pub(super) fn bytes(&self) -> usize {
        self.steps.capacity() * size_of::<(u64, Revision)>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_holds_from_its_position_to_the_next() {
        let mut steps = Steps::default();
        assert_eq!(steps.at(9), Revision::ZERO);
        for (position, revision) in [(5, 1), (7, 1), (8, 2), (20, 1), (21, 3)] {
            steps.set(position, Revision(revision));
        }
        let seen = |steps: &Steps| [4, 5, 7, 8, 19, 20, 21, 99].map(|position| steps.at(position).0);
        assert_eq!(seen(&steps), [0, 1, 1, 2, 2, 1, 3, 3]);
        steps.forget_before(19);
        assert_eq!(seen(&steps)[3..], [2, 2, 1, 3, 3], "what holds at 19 stays");
        steps.forget_before(90);
        assert_eq!((steps.steps.len(), steps.at(90), steps.last()), (1, Revision(3), Some(Revision(3))));
    }
}
