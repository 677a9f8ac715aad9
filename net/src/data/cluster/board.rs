//! What the shards of one node leave for each other: reports and load for the first, which alone speaks for the node, the
//! lease and the newest table from it. A lock that is held for the copy of a few lists, a few times per second.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use slotcast_engine::id::Nanos;

use crate::{
    io::ring::Waker,
    wire::{
        meta::{NodeLoad, SlotReport},
        slot_table::SlotTable,
    },
};

/// The board of one node.
#[derive(Clone)]
pub struct Board(Arc<Shared>);

struct Shared {
    posted: Mutex<Posted>,
    /// A shard has said whether it is missed.
    freed: Condvar,
    /// Processor time that the process has used.
    cpu_time: fn() -> Nanos,
}

struct Posted {
    /// What each shard but the first has left.
    shards: Vec<Note>,
    lease_end: Nanos,
    table: Option<Arc<SlotTable>>,
    wakers: Vec<Option<Waker>>,
    ending: bool,
    /// Nobody would miss the shard.
    free: Vec<bool>,
}

/// What one shard tells of itself.
#[derive(Clone, Default)]
pub(in crate::data) struct Note {
    /// The table that the reports were made with.
    pub(in crate::data) table_epoch: u64,
    pub(in crate::data) slots: Vec<SlotReport>,
    pub(in crate::data) load: NodeLoad,
}

impl Board {
    /// An empty board of a node with so many shards.
    pub fn new(shards: u32) -> Self {
        Self::measuring(shards, || Nanos(0))
    }

    /// The same, with what tells the processor time that the process has used.
    pub fn measuring(shards: u32, cpu_time: fn() -> Nanos) -> Self {
        let shards = shards as usize;
        let posted = Posted {
            shards: vec![Note::default(); shards],
            lease_end: Nanos(0),
            table: None,
            wakers: vec![None; shards],
            ending: false,
            free: vec![false; shards],
        };
        Self(Arc::new(Shared { posted: Mutex::new(posted), freed: Condvar::new(), cpu_time }))
    }

    fn posted(&self) -> MutexGuard<'_, Posted> {
        self.0.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::data) fn cpu_time(&self) -> Nanos {
        (self.0.cpu_time)()
    }

    /// How to wake a shard when there is something for it.
    pub(in crate::data) fn set_waker(&self, shard: u32, waker: Waker) {
        if let Some(place) = self.posted().wakers.get_mut(shard as usize) {
            *place = Some(waker);
        }
    }

    /// Has all shards hand over what they lead and leave what they follow, and waits until nobody would miss them, at most for
    /// `patience`. Returns whether it came to that.
    pub fn end(&self, patience: Duration) -> bool {
        let mut posted = self.posted();
        posted.ending = true;
        (0..posted.wakers.len()).for_each(|shard| wake(&posted.wakers, shard));
        let is_missed = |posted: &mut Posted| posted.free.iter().any(|free| !free);
        let waited = self.0.freed.wait_timeout_while(posted, patience, is_missed);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Whether the process is about to end.
    pub(in crate::data) fn is_ending(&self) -> bool {
        self.posted().ending
    }

    /// Whether nobody would miss a shard.
    pub(in crate::data) fn set_free(&self, shard: u32, is_free: bool) {
        if let Some(free) = self.posted().free.get_mut(shard as usize) {
            *free = is_free;
        }
        self.0.freed.notify_all();
    }

    /// A shard's reports and load; the first shard is woken for news.
    pub(in crate::data) fn post(&self, shard: u32, note: Note) {
        let mut posted = self.posted();
        let Some(place) = posted.shards.get_mut(shard as usize) else { return };
        let is_news = place.slots != note.slots || place.table_epoch != note.table_epoch;
        *place = note;
        if is_news && shard > 0 {
            wake(&posted.wakers, 0);
        }
    }

    /// What all shards have left: with the oldest of their tables, all their slots, their loads together.
    pub(in crate::data) fn gathered(&self) -> Note {
        let posted = self.posted();
        let mut all = Note { table_epoch: u64::MAX, ..Note::default() };
        for note in &posted.shards {
            all.table_epoch = all.table_epoch.min(note.table_epoch);
            all.slots.extend_from_slice(&note.slots);
            all.load.publishers += note.load.publishers;
            all.load.bytes += note.load.bytes;
            all.load.cpu_permille += note.load.cpu_permille;
        }
        all.slots.sort_unstable_by_key(|report| report.slot);
        all
    }

    /// Until when the node counts as alive.
    pub(in crate::data) fn set_lease_end(&self, end: Nanos) {
        self.posted().lease_end = end;
    }

    /// Until when the node counts as alive; zero: nobody has said so yet.
    pub(in crate::data) fn lease_end(&self) -> Nanos {
        self.posted().lease_end
    }

    /// The newest table that any shard has read, if `held` is older; `held`, if that is newer, is kept for the others.
    pub(in crate::data) fn exchange_table(&self, held: &Arc<SlotTable>) -> Option<Arc<SlotTable>> {
        let mut posted = self.posted();
        let kept = posted.table.as_ref().map_or(0, |table| table.epoch);
        if kept > held.epoch {
            return posted.table.clone();
        }
        if held.epoch > kept {
            posted.table = Some(held.clone());
            (0..posted.wakers.len()).for_each(|shard| wake(&posted.wakers, shard));
        }
        None
    }
}

fn wake(wakers: &[Option<Waker>], shard: usize) {
    if let Some(Some(waker)) = wakers.get(shard) {
        // A shard that cannot be woken looks by itself at its next tick.
        let _ = waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use slotcast_engine::id::SlotId;

    use super::*;
    use crate::wire::meta::HeldState;

    fn note(table_epoch: u64, slots: &[u16]) -> Note {
        let report = |slot: &u16| SlotReport {
            slot: SlotId(*slot),
            state: HeldState::Accept,
            is_whole: true,
            has_persistent: false,
            leader_epoch: 1,
            in_sync: Vec::new(),
        };
        let load = NodeLoad { publishers: 2, bytes: 3, cpu_permille: 4 };
        Note { table_epoch, slots: slots.iter().map(report).collect(), load }
    }

    #[test]
    fn what_the_shards_leave_is_one_report_as_old_as_the_oldest() {
        let board = Board::new(3);
        board.post(0, note(8, &[1, 5]));
        board.post(2, note(9, &[0, 2]));
        assert_eq!(board.gathered().table_epoch, 0, "the second has not said anything yet");
        board.post(1, note(7, &[3]));
        let all = board.gathered();
        assert_eq!(all.slots.iter().map(|report| report.slot.0).collect::<Vec<_>>(), [0, 1, 2, 3, 5]);
        assert_eq!((all.table_epoch, all.load.publishers, all.load.bytes), (7, 6, 9));
    }

    #[test]
    fn an_end_waits_for_every_shard_and_not_for_ever() {
        let board = Board::new(2);
        let other = board.clone();
        board.set_free(0, true);
        assert!(!board.end(Duration::from_millis(1)) && board.is_ending());
        let thread = std::thread::spawn(move || other.end(Duration::from_secs(20)));
        board.set_free(1, true);
        assert!(thread.join().expect("no panic"));
    }

    #[test]
    fn a_table_that_one_has_read_is_everybodys() {
        let board = Board::new(2);
        let table = |epoch| Arc::new(SlotTable { epoch, ..SlotTable::empty("c", 4) });
        assert!(board.exchange_table(&table(0)).is_none());
        assert!(board.exchange_table(&table(3)).is_none());
        assert_eq!(board.exchange_table(&table(2)).unwrap().epoch, 3);
        assert!(board.exchange_table(&table(3)).is_none());
    }
}
