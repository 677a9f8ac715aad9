//! When a shard compacts: rounds over all slots, in bounded steps with pauses between, which may be held and asked for.
//!
//! In a round that nobody asked for, pauses are left out while more than a tenth of the arenas' memory is dead: writes come faster than rounds at leisure get
//! it back, and memory has to stay bounded. Then every turn has a step.
//!
//! Nothing that reads stands in the way. A reader that is behind is answered from the index when the history no longer
//! reaches it; bytes that are being sent are copies; a snapshot scans the index, not the arena.

use super::Shard;
use crate::{
    change_log::ChangeLogLimits,
    compact::{self, Compaction, CompactionSettings, CompactionStats},
    id::{Nanos, ReaderId, Revision, SessionId, SlotId},
};

/// See the module.
#[derive(Default)]
pub(super) struct Compactor {
    settings: CompactionSettings,
    stats: CompactionStats,
    round: Option<Round>,
    paused: bool,
    off_peak: bool,
    /// More of the arenas is dead than should be.
    crowded: bool,
    /// Dead bytes that the last round left.
    dead_left: usize,
    /// A round was asked for that has not begun.
    asked: bool,
    due: Nanos,
    last_round: Option<u64>,
}

/// Share of dead bytes in the arenas, as a divisor, above which there are no pauses.
const CROWDED_PART: usize = 10;
/// Steps after which that share is looked at again.
const CROWDED_STEPS: u64 = 16;

/// A round that is under way.
#[derive(Clone, Copy, Debug)]
struct Round {
    began: Nanos,
    /// Segments that had been emptied before it.
    emptied: u64,
    /// Was asked for, so it goes on although compaction is paused.
    asked: bool,
    /// The slot that is being worked on; all before it are done.
    slot: SlotId,
    /// Segments of that slot that may still be emptied in this round, once its history is done.
    segments: Option<usize>,
    segment: Option<Compaction>,
}

/// Whether compaction works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompactionState {
    /// Held by an operator.
    Paused,
    /// Between two rounds.
    Waiting,
    /// A round is under way.
    Running,
}

impl CompactionState {
    /// All states.
    pub const ALL: [CompactionState; 3] = [Self::Paused, Self::Waiting, Self::Running];

    /// A short stable label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::Waiting => "waiting",
            Self::Running => "running",
        }
    }
}

/// The reader that is furthest behind. It holds nothing up: when the history no longer reaches it, it gets snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldestReader {
    /// Which one.
    pub reader: ReaderId,
    /// Its session, if its link is still the session's.
    pub session: Option<SessionId>,
    /// A slot that it reads and where it has got to there: of all slots the one with the most revisions to go.
    pub slot: SlotId,
    /// See `slot`.
    pub at: Revision,
    /// Revisions from there to the slot's present.
    pub behind: u64,
    /// Whether the slot's history no longer reaches it.
    pub gets_snapshot: bool,
}

/// Where compaction stands, and what dead bytes and old history wait for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CompactionStatus {
    /// Whether it works.
    pub state: CompactionState,
    /// Whether the eager settings count now.
    pub off_peak: bool,
    /// When the next step is due; `None` while it is held.
    pub due: Option<Nanos>,
    /// Slots done and slots in all, of the round under way.
    pub progress: Option<(usize, usize)>,
    /// How long the last finished round took, in nanoseconds, its pauses included.
    pub last_round: Option<u64>,
    /// Counts since the start.
    pub stats: CompactionStats,
    /// Dead bytes in closed segments that are empty enough: the next round gets them.
    pub dead_due: usize,
    /// Dead bytes in closed segments that are too full to be worth emptying.
    pub dead_in_full_segments: usize,
    /// Dead bytes in segments that still take records, one per slot. They are left until they are full.
    pub dead_in_open_segments: usize,
    /// History entries held.
    pub history_entries: usize,
    /// Bytes of these entries.
    pub history_bytes: usize,
    /// Age of the oldest entry, in nanoseconds.
    pub history_age: Option<u64>,
    /// Readers that are behind.
    pub readers_behind: usize,
    /// Of these, the one furthest behind.
    pub oldest_reader: Option<OldestReader>,
    /// The slot of which a snapshot is being written. It holds nothing up.
    pub snapshot_scan: Option<SlotId>,
}

impl Shard {
    /// What compaction is told.
    pub fn compaction_settings(&self) -> CompactionSettings {
        self.compactor.settings
    }

    /// Tells compaction something else; a round under way goes on by it.
    pub fn set_compaction(&mut self, settings: CompactionSettings) {
        self.compactor.settings = settings;
        self.compactor.due = Nanos(0);
    }

    /// Bounds of each slot's history.
    pub fn history_limits(&self) -> ChangeLogLimits {
        self.config.change_log
    }

    /// Sets the bounds of each slot's history. Entries beyond smaller bounds go with the next seal of their slot or the next
    /// round, whichever comes first.
    pub fn set_history_limits(&mut self, limits: ChangeLogLimits) {
        self.config.change_log = limits;
        self.slots.iter_mut().for_each(|slot| slot.set_log_limits(limits));
    }

    /// Whether the eager settings count from now on.
    pub fn set_off_peak(&mut self, off_peak: bool) {
        self.compactor.off_peak = off_peak;
    }

    /// Holds compaction where it is, or lets it go on. Held or not, no slot keeps more history than its bounds say once it
    /// is written to.
    pub fn pause_compaction(&mut self, paused: bool) {
        self.compactor.paused = paused;
    }

    /// Asks for a round from now on, also while compaction is held. If one is under way another follows.
    pub fn run_compaction(&mut self) {
        self.compactor.asked = true;
        self.compactor.due = Nanos(0);
    }

    /// What compaction did since the start.
    pub fn compaction_stats(&self) -> CompactionStats {
        self.compactor.stats
    }

    /// When [`Shard::compact`] has something to do; `None` while compaction is held.
    pub fn compaction_due(&self) -> Option<Nanos> {
        let Compactor { paused, asked, round, due, .. } = &self.compactor;
        let may = !paused || *asked || round.is_some_and(|round| round.asked);
        may.then_some(*due)
    }

    /// Takes a step, if one is due. Returns whether it did.
    pub fn compact(&mut self, now: Nanos) -> bool {
        if self.compaction_due().is_none_or(|due| now < due) {
            return false;
        }
        if self.compactor.round.is_none() || self.compactor.stats.steps.is_multiple_of(CROWDED_STEPS) {
            self.compactor.crowded = self.crowd().1;
        }
        let compactor = &mut self.compactor;
        let mut round = match compactor.round.take() {
            Some(round) => round,
            None => {
                let asked = std::mem::take(&mut compactor.asked);
                let emptied = compactor.stats.segments_emptied;
                Round { began: now, emptied, asked, slot: SlotId(0), segments: None, segment: None }
            }
        };
        compactor.stats.steps += 1;
        if self.step(&mut round, now) {
            self.compactor.dead_left = self.crowd().0;
            let Compactor { settings, stats, asked, due, last_round, crowded, .. } = &mut self.compactor;
            let again = *asked || *crowded && stats.segments_emptied > round.emptied;
            stats.rounds += 1;
            *last_round = Some(now.since(round.began));
            *due = if again { now } else { now.after(settings.interval) };
        } else {
            let hurries = self.compactor.crowded && !round.asked;
            self.compactor.round = Some(round);
            let pause = if hurries { 0 } else { self.compactor.settings.sleep_interval };
            self.compactor.due = now.after(pause);
        }
        true
    }

    /// What a slot number stands for is another slot from now on, or none: what was under way in the one before is given up.
    pub(super) fn forget_compaction(&mut self, slot: SlotId) {
        if let Some(round) = self.compactor.round.as_mut().filter(|round| round.slot == slot) {
            (round.segments, round.segment) = (None, None);
        }
    }

    /// Where compaction stands. Costs a look at each segment of each slot and at each reader that is behind.
    pub fn compaction_status(&self, now: Nanos) -> CompactionStatus {
        let Compactor { round, paused, off_peak, last_round, stats, .. } = &self.compactor;
        let due = self.compaction_due();
        let state = match (round, due) {
            (_, None) => CompactionState::Paused,
            (Some(_), _) => CompactionState::Running,
            (None, _) if *paused => CompactionState::Paused,
            (None, _) => CompactionState::Waiting,
        };
        let progress = round.as_ref().map(|round| {
            let done = self.slots.iter().filter(|slot| slot.id() < round.slot).count();
            (done, self.slots.iter().count())
        });
        let mut status = CompactionStatus {
            state,
            off_peak: *off_peak,
            due,
            progress,
            last_round: *last_round,
            stats: *stats,
            dead_due: 0,
            dead_in_full_segments: 0,
            dead_in_open_segments: 0,
            history_entries: 0,
            history_bytes: 0,
            history_age: None,
            readers_behind: self.interests.behind(),
            oldest_reader: self.oldest_reader(),
            snapshot_scan: self.storage.as_ref().and_then(|storage| storage.scanning()),
        };
        let utilization_min = self.compactor.utilization_min();
        for slot in self.slots.iter() {
            let mut closed_dead = 0;
            for closed in slot.arena.closed_segments() {
                closed_dead += closed.dead;
                if (closed.live as f64) < utilization_min * closed.capacity as f64 {
                    status.dead_due += closed.dead;
                } else {
                    status.dead_in_full_segments += closed.dead;
                }
            }
            status.dead_in_open_segments += slot.arena.bytes().dead - closed_dead;
            status.history_entries += slot.log().len();
            status.history_bytes += slot.log().entry_bytes();
            let age = slot.log().oldest().map(|sealed_at| now.since(sealed_at));
            status.history_age = status.history_age.max(age);
        }
        status
    }

    /// Begins the next round, or goes on with the one under way, without a pause where the arenas are crowded with bytes that
    /// have died since the last one.
    pub(super) fn hurry(&mut self, now: Nanos) {
        let (dead, crowded) = self.crowd();
        let compactor = &mut self.compactor;
        compactor.crowded = crowded;
        let asked = compactor.round.is_some_and(|round| round.asked);
        if crowded && !asked && dead > compactor.dead_left + compactor.dead_left / 4 {
            compactor.due = compactor.due.min(now);
        }
    }

    /// Dead bytes in the arenas, and whether they are more than should be.
    fn crowd(&self) -> (usize, bool) {
        let arenas = self.slots.iter().map(|slot| slot.arena.bytes());
        let (dead, all) = arenas.fold((0, 0), |(dead, all), arena| {
            (dead + arena.dead, all + arena.live + arena.dead + arena.free)
        });
        (dead, dead > all / CROWDED_PART)
    }

    fn oldest_reader(&self) -> Option<OldestReader> {
        let marks = self.interests.marks_behind().filter_map(|(reader, slot, at)| {
            let held = self.slots.get(slot)?;
            let revision = held.revision();
            // Across epochs there is no telling how many revisions lie between; one of an earlier epoch is older.
            let behind =
                if at.epoch() == revision.epoch() { revision.0.saturating_sub(at.0) } else { u64::MAX };
            let session = self.links.get(&reader).and_then(|link| link.session);
            let gets_snapshot = at < held.log().floor();
            Some(OldestReader { reader, session, slot, at, behind, gets_snapshot })
        });
        marks.max_by_key(|oldest| oldest.behind)
    }

    /// Goes on with a round for as long as a step may be. Returns whether the round is done.
    fn step(&mut self, round: &mut Round, now: Nanos) -> bool {
        let mut records = self.compactor.batch_limit();
        let mut bytes = self.config.compaction_budget;
        let mut next = self.slots.first_from(round.slot);
        while let Some(id) = next {
            if records == 0 {
                round.slot = id;
                return false;
            }
            if round.slot != id {
                (round.slot, round.segments, round.segment) = (id, None, None);
            }
            if !self.step_slot(round, now, &mut records, &mut bytes) {
                return false;
            }
            records = records.saturating_sub(1);
            next = self.slots.first_from(SlotId(id.0 + 1));
        }
        round.slot = SlotId::NONE;
        self.bound_history(&mut records)
    }

    /// Goes on with one slot: history first, then segments. Returns whether the slot is done.
    fn step_slot(&mut self, round: &mut Round, now: Nanos, records: &mut usize, bytes: &mut usize) -> bool {
        let utilization_min = self.compactor.utilization_min();
        let stats = &mut self.compactor.stats;
        let Some(slot) = self.slots.get_mut(round.slot) else { return true };
        let segments = match &mut round.segments {
            Some(segments) => segments,
            none => {
                let (dropped, done) = slot.trim_history(now, *records);
                stats.history_dropped += dropped as u64;
                *records = records.saturating_sub(dropped);
                if !done {
                    return false;
                }
                none.insert(slot.arena.closed_segments().count())
            }
        };
        loop {
            let chosen = match round.segment.take() {
                Some(under_way) => Some(under_way),
                None if *segments == 0 => None,
                None => compact::choose(&slot.arena, utilization_min),
            };
            let Some(mut chosen) = chosen else { return true };
            if *records == 0 || *bytes == 0 {
                round.segment = Some(chosen);
                // Without a budget of bytes nothing may ever be moved: then the round goes on.
                return self.config.compaction_budget == 0;
            }
            let walked = chosen.step(slot, *records, *bytes);
            *records -= walked.records;
            *bytes = bytes.saturating_sub(walked.bytes);
            stats.records_walked += walked.records as u64;
            stats.records_moved += walked.moved as u64;
            stats.bytes_walked += walked.bytes as u64;
            if walked.done {
                stats.segments_emptied += 1;
                *segments = segments.saturating_sub(1);
            } else {
                round.segment = Some(chosen);
            }
        }
    }

    /// Drops the oldest history of the slots that have the most until the shard has no more than it may. Returns whether it is
    /// so.
    fn bound_history(&mut self, records: &mut usize) -> bool {
        let bytes_max = self.compactor.settings.history_bytes_max;
        loop {
            let bytes: usize = self.slots.iter().map(|slot| slot.log().entry_bytes()).sum();
            if bytes <= bytes_max {
                return true;
            }
            if *records == 0 {
                return false;
            }
            let longest = self.slots.iter_mut().max_by_key(|slot| slot.log().len());
            let Some(longest) = longest.filter(|slot| !slot.log().is_empty()) else { return true };
            let dropped = longest.drop_history(*records);
            *records = records.saturating_sub(dropped);
            self.compactor.stats.history_dropped += dropped as u64;
        }
    }
}

impl Compactor {
    fn batch_limit(&self) -> usize {
        let settings = &self.settings;
        if self.off_peak { settings.off_peak_batch_limit } else { settings.batch_limit }.max(1)
    }

    fn utilization_min(&self) -> f64 {
        let settings = &self.settings;
        if self.off_peak {
            settings.utilization_min.max(settings.off_peak_utilization_min)
        } else {
            settings.utilization_min
        }
    }
}
