//! Recent deltas as frames, made once for all peers, within a bound. Whoever is further behind gets the whole table.

use std::{collections::VecDeque, rc::Rc};

use crate::wire::{
    meta::MetaMessage,
    slot_table::{SlotTable, TableDelta},
};

/// Deltas between the latest tables.
pub struct History {
    bytes_max: usize,
    bytes: usize,
    deltas: VecDeque<(u64, u64, Rc<[u8]>)>,
    whole: Option<(u64, Rc<[u8]>)>,
}

impl History {
    /// An empty history that keeps at most `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, deltas: VecDeque::new(), whole: None }
    }

    /// Forgets everything: the next table does not follow the last one.
    pub fn clear(&mut self) {
        *self = Self::new(self.bytes_max);
    }

    /// Keeps what leads from one table to the next. From an empty table nothing is kept: that is the whole one.
    pub fn note(&mut self, old: &SlotTable, new: &SlotTable) {
        if old.epoch == 0 {
            return;
        }
        let frame = frame(new.delta_since(old));
        self.bytes += frame.len();
        self.deltas.push_back((old.epoch, new.epoch, frame));
        while self.bytes > self.bytes_max
            && let Some((_, _, gone)) = self.deltas.pop_front()
        {
            self.bytes -= gone.len();
        }
    }

    /// The frames that lead from `epoch` to `table`; none if the history does not reach back, or if they are more bytes
    /// than the whole table.
    pub fn since(&mut self, epoch: u64, table: &SlotTable) -> Option<Vec<Rc<[u8]>>> {
        let first = self.deltas.iter().position(|(from, ..)| *from == epoch)?;
        let frames: Vec<_> = self.deltas.range(first..).map(|(_, _, frame)| frame.clone()).collect();
        let reaches = self.deltas.back().is_some_and(|(_, to, _)| *to == table.epoch);
        // One delta is never worth making a whole table for.
        let bytes: usize = frames.iter().map(|frame| frame.len()).sum();
        (reaches && (frames.len() == 1 || bytes < self.whole(table).len())).then_some(frames)
    }

    /// The whole table as a frame.
    pub fn whole(&mut self, table: &SlotTable) -> Rc<[u8]> {
        match &self.whole {
            Some((epoch, frame)) if *epoch == table.epoch => frame.clone(),
            _ => {
                let frame = frame(table.whole());
                self.whole = Some((table.epoch, frame.clone()));
                frame
            }
        }
    }
}

fn frame(delta: TableDelta) -> Rc<[u8]> {
    let mut out = Vec::new();
    MetaMessage::TableDelta(delta).write(&mut out);
    out.into()
}
