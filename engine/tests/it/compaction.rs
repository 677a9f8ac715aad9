//! Compaction: after heavy overwriting the memory comes back, and every record is still the right one.

use std::collections::{BTreeMap, BTreeSet};

use slotcast_engine::{
    change_log::ChangeLogLimits,
    compact::CompactionSettings,
    diff,
    id::{DataId, Nanos, ReaderId, RegisterId, SlotId, mix64},
    limits::SEGMENT_BYTES_MAX,
    shard::{CompactionState, ShardConfig},
};

use crate::support::{Frame, Held, MILLI, Node, config, data_id, version};

/// A step with every tick.
const AT_ONCE: CompactionSettings = CompactionSettings {
    interval: 0,
    sleep_interval: 0,
    batch_limit: 1000,
    utilization_min: 0.5,
    history_bytes_max: usize::MAX,
    off_peak_batch_limit: 1000,
    off_peak_utilization_min: 0.5,
};

/// Registrations that are overwritten with payloads of changing size; each payload tells its registration and version.
struct Overwriting {
    node: Node,
    id: DataId,
    versions: BTreeMap<u64, u64>,
    removed: BTreeSet<u64>,
}

impl Overwriting {
    fn new(compaction_budget: usize) -> Self {
        let mut node = Node::new(ShardConfig { compaction_budget, ..config(1) });
        node.shard.set_compaction(AT_ONCE);
        node.open(1);
        Self { node, id: data_id("checkout"), versions: BTreeMap::new(), removed: BTreeSet::new() }
    }

    fn put(&mut self, registers: impl Iterator<Item = u64>, payload_max: usize) {
        let mut frame = Frame::of(1).name(&self.id);
        for register in registers {
            let number = self.versions.entry(register).or_default();
            *number += 1;
            self.removed.remove(&register);
            let bytes = payload(register, *number, payload_max);
            frame = frame.put(&self.id, register, version(*number, 1), register, &bytes);
        }
        self.node.write_ok(1, &frame);
    }

    fn remove(&mut self, register: u64) {
        let number = self.versions.get(&register).copied().unwrap_or_default();
        self.node.write_ok(1, &Frame::of(1).remove(&self.id, register, version(number, 1)));
        self.removed.insert(register);
    }

    fn check(&self, payload_max: usize) {
        let list = self.node.list(&self.id);
        let live = || self.versions.iter().filter(|(register, _)| !self.removed.contains(register));
        assert_eq!(list.len(), live().count());
        for (register, number) in live() {
            let expected = (*register, payload(*register, *number, payload_max));
            assert_eq!(list.get(&RegisterId(*register)), Some(&expected));
        }
    }
}

fn payload(register: u64, number: u64, max: usize) -> Vec<u8> {
    let mut bytes = [register.to_le_bytes(), number.to_le_bytes()].concat();
    bytes.resize(16 + (mix64(register ^ mix64(number)) as usize) % max, number as u8);
    bytes
}

#[test]
fn memory_comes_back_after_heavy_overwriting() {
    let mut store = Overwriting::new(1 << 20);
    store.put(0..4000, 2000);
    for round in 0..4 {
        // All but every tenth, so that the old segments keep a little that lives.
        store.put((0..4000).filter(|register| register % 10 != round), 2000);
    }
    let before = store.node.shard.counts().arena;
    assert!(before.dead * 2 > before.live, "something to do: {before:?}");
    for _ in 0..100 {
        store.node.tick_after(MILLI);
    }
    let after = store.node.shard.counts().arena;
    assert_eq!(after.live, before.live);
    // Every closed segment is at least half alive then; only the open one may be emptier.
    assert!(after.dead + after.free <= after.live + SEGMENT_BYTES_MAX, "{before:?} then {after:?}");
    assert!(after.dead * 2 < before.dead, "{before:?} then {after:?}");
    store.check(2000);
}

#[test]
fn compaction_in_small_steps_between_writes_moves_only_what_is_current() {
    // The budget ends a step in the middle of a segment, and the writes in between free segments and use them again.
    for budget in [300, 1500, 5000] {
        let mut store = Overwriting::new(budget);
        store.put(0..60, 1500);
        let mut state = budget as u64;
        for round in 0..3000u64 {
            state = mix64(state);
            let register = state % 60;
            if state >> 32 & 7 == 0 {
                store.remove(register);
            } else {
                store.put([register].into_iter(), 1500);
            }
            store.node.tick_after(MILLI);
            if round % 100 == 0 {
                store.check(1500);
            }
        }
        store.check(1500);
        assert!(store.node.shard.compaction_stats().bytes_walked > 0);
    }
}

#[test]
fn a_segment_that_is_freed_and_used_again_between_two_steps_is_left_alone() {
    let mut store = Overwriting::new(5000);
    for _ in 0..30 {
        // Twenty records that stay, in a segment that otherwise dies: a step begins to empty it.
        store.put(100..120, 1500);
        (0..30).for_each(|_| store.put(0..60, 1500));
        store.node.tick_after(MILLI);
        // Before the next step the twenty die, so the segment is freed; what follows takes its number.
        store.put(100..120, 1500);
        (0..30).for_each(|_| store.put(0..60, 1500));
        store.node.tick_after(MILLI);
        store.check(1500);
    }
    assert!(store.node.shard.compaction_stats().bytes_walked > 0);
}

#[test]
fn without_a_budget_nothing_moves() {
    let mut store = Overwriting::new(0);
    (0..20).for_each(|_| store.put(0..40, 1500));
    let before = store.node.shard.counts().arena;
    store.node.tick_after(MILLI);
    assert_eq!(store.node.shard.counts().arena, before);
    assert_eq!(store.node.shard.compaction_stats().bytes_walked, 0);
}

/// Four thousand registrations of which most were replaced, so that there is something to do.
fn mostly_dead(settings: CompactionSettings) -> Overwriting {
    let mut store = Overwriting::new(1 << 20);
    store.node.shard.set_compaction(CompactionSettings { interval: u64::MAX, ..settings });
    store.node.shard.pause_compaction(true);
    store.put(0..4000, 1000);
    store.put((0..4000).filter(|register| register % 10 != 0), 1000);
    store
}

fn state(store: &Overwriting) -> CompactionState {
    store.node.shard.compaction_status(store.node.now).state
}

#[test]
fn writes_that_come_faster_than_rounds_at_leisure_are_kept_up_with() {
    let mut store = Overwriting::new(1 << 20);
    let leisure = CompactionSettings {
        interval: Nanos::SECOND,
        sleep_interval: Nanos::SECOND,
        utilization_min: 0.85,
        ..AT_ONCE
    };
    store.node.shard.set_compaction(leisure);
    store.put(0..4000, 300);
    let mut worst: f64 = 0.0;
    for round in 0..40u64 {
        store.put((0..4000).filter(|register| mix64(register ^ round << 32).is_multiple_of(10)), 300);
        (0..5).for_each(|_| store.node.tick_after(MILLI));
        let arena = store.node.shard.counts().arena;
        worst = worst.max(arena.dead as f64 / (arena.live + arena.dead + arena.free) as f64);
    }
    assert!(worst > 0.02 && worst < 0.2, "{worst}");
    store.check(300);
    // Some 16,000 were replaced. Emptying segments as soon as they are less than 85 % alive would have moved 90,000.
    let moved = store.node.shard.compaction_stats().records_moved;
    assert!((4_000..60_000).contains(&moved), "{moved} moved");
    // When nothing comes any more, rounds at leisure get what was not worth it in a hurry.
    (0..200).for_each(|_| store.node.tick_after(Nanos::SECOND));
    let (status, arena) =
        (store.node.shard.compaction_status(store.node.now), store.node.shard.counts().arena);
    assert_eq!(status.dead_due, 0, "{status:?}");
    assert!(arena.dead * 8 < arena.live, "{arena:?}");
    store.check(300);
}

#[test]
fn a_segment_of_which_little_is_dead_is_left_alone_in_a_hurry_and_emptied_at_leisure() {
    let mut store = Overwriting::new(1 << 20);
    let leisure = CompactionSettings {
        sleep_interval: Nanos::SECOND,
        utilization_min: 0.85,
        batch_limit: 10,
        ..AT_ONCE
    };
    store.node.shard.set_compaction(leisure);
    store.put(0..4000, 300);
    // A fifth dies, evenly: more than should be dead, but no segment gives much back for what would have to be moved.
    store.put((0..4000).filter(|register| register % 5 == 0), 300);
    let dead = store.node.shard.compaction_status(store.node.now).dead_due;
    assert!(dead > 0);
    (0..20).for_each(|_| store.node.tick_after(MILLI));
    let stats = store.node.shard.compaction_stats();
    assert!(stats.records_moved < 400, "{stats:?}");
    (0..400).for_each(|_| store.node.tick_after(Nanos::SECOND));
    assert_eq!(store.node.shard.compaction_status(store.node.now).dead_due, 0);
    store.check(300);
}

#[test]
fn steps_are_bounded_by_records_and_spaced_by_the_sleep() {
    let mut store =
        mostly_dead(CompactionSettings { batch_limit: 100, sleep_interval: 10 * MILLI, ..AT_ONCE });
    store.node.shard.run_compaction();
    let (begin, mut last) = (store.node.now, store.node.shard.compaction_stats());
    while store.node.shard.compaction_stats().rounds == 0 {
        store.node.tick_after(MILLI);
        let stats = store.node.shard.compaction_stats();
        assert!(stats.records_walked - last.records_walked <= 100);
        last = stats;
    }
    assert!(last.steps > 5 && last.segments_emptied > 1 && last.records_moved > 0, "{last:?}");
    assert_eq!(store.node.now.since(begin), MILLI + (last.steps - 1) * 10 * MILLI);
    let status = store.node.shard.compaction_status(store.node.now);
    assert_eq!((status.dead_due, status.last_round), (0, Some((last.steps - 1) * 10 * MILLI)));
    store.check(1000);
}

#[test]
fn while_it_is_held_nothing_moves_but_one_round_that_is_asked_for() {
    let mut store = mostly_dead(CompactionSettings { batch_limit: 100, ..AT_ONCE });
    store.node.shard.set_compaction(CompactionSettings { batch_limit: 100, ..AT_ONCE });
    (0..10).for_each(|_| store.node.tick_after(MILLI));
    assert_eq!((state(&store), store.node.shard.compaction_stats().steps), (CompactionState::Paused, 0));
    store.node.shard.run_compaction();
    store.node.tick_after(MILLI);
    assert_eq!(state(&store), CompactionState::Running);
    for _ in 0..1000 {
        store.node.tick_after(MILLI);
    }
    assert_eq!((state(&store), store.node.shard.compaction_stats().rounds), (CompactionState::Paused, 1));
    store.node.shard.pause_compaction(false);
    for _ in 0..10 {
        store.node.tick_after(MILLI);
    }
    assert!(store.node.shard.compaction_stats().rounds > 1, "it goes on when it is let");
    store.check(1000);
}

#[test]
fn a_pause_in_the_middle_of_a_round_is_ended_where_it_was() {
    let mut store = mostly_dead(CompactionSettings { batch_limit: 100, ..AT_ONCE });
    store.node.shard.pause_compaction(false);
    (0..3).for_each(|_| store.node.tick_after(MILLI));
    store.node.shard.pause_compaction(true);
    let held = store.node.shard.compaction_stats();
    store.put((0..4000).filter(|register| register % 7 == 0), 1000);
    (0..10).for_each(|_| store.node.tick_after(MILLI));
    assert_eq!((store.node.shard.compaction_stats(), held.rounds), (held, 0));
    store.node.shard.pause_compaction(false);
    while store.node.shard.compaction_stats().rounds == 0 {
        store.node.tick_after(MILLI);
    }
    store.check(1000);
}

#[test]
fn off_peak_emptier_segments_count_and_steps_are_larger() {
    let mut store = Overwriting::new(1 << 20);
    store.node.shard.set_compaction(CompactionSettings {
        batch_limit: 10,
        off_peak_batch_limit: 2000,
        off_peak_utilization_min: 0.9,
        ..AT_ONCE
    });
    store.put(0..2000, 1000);
    store.put((0..2000).filter(|register| register % 4 == 0), 1000);
    (0..50).for_each(|_| store.node.tick_after(MILLI));
    let peak = store.node.shard.compaction_status(store.node.now);
    let by_day = peak.stats.records_walked;
    assert!(by_day < 100 && peak.dead_due == 0, "a quarter is dead: not worth it by day: {peak:?}");
    assert!(peak.dead_in_full_segments > 100_000);
    store.node.shard.set_off_peak(true);
    store.node.tick_after(MILLI);
    assert!(store.node.shard.compaction_stats().records_walked > by_day + 10);
    (0..50).for_each(|_| store.node.tick_after(MILLI));
    let night = store.node.shard.compaction_status(store.node.now);
    assert_eq!((night.dead_due, night.off_peak), (0, true));
    assert!(night.dead_in_full_segments * 5 < peak.dead_in_full_segments, "{night:?}");
    store.check(1000);
}

#[test]
fn a_segment_that_is_only_badly_filled_is_not_moved_for_ever() {
    let mut store = Overwriting::new(1 << 20);
    store.node.shard.set_compaction(CompactionSettings { utilization_min: 0.95, ..AT_ONCE });
    // Each takes a segment of which it fills little more than half.
    for register in 0..30 {
        store.node.write_ok(
            1,
            &Frame::of(1).name(&store.id).put(&store.id, register, version(1, 1), register, &[7; 20_000]),
        );
    }
    (0..50).for_each(|_| store.node.tick_after(MILLI));
    assert_eq!(store.node.shard.compaction_stats().records_moved, 0, "nothing is dead");
}

#[test]
fn what_is_dead_is_told_by_what_it_waits_for() {
    let mut store = mostly_dead(AT_ONCE);
    let status = store.node.shard.compaction_status(store.node.now);
    let dead = store.node.shard.counts().arena.dead;
    assert_eq!(status.dead_due + status.dead_in_full_segments + status.dead_in_open_segments, dead);
    assert!(status.dead_due > dead / 2);
    store.node.shard.run_compaction();
    store.node.tick_after(MILLI);
    let progress = store.node.shard.compaction_status(store.node.now).progress;
    assert_eq!(progress, Some((0, 1)));
}

/// One slot with ten changes of one data id, one per turn and one millisecond, and a reader that stopped after each.
fn ten_changes() -> (Node, DataId, Vec<Held>) {
    let log = ChangeLogLimits { entries_max: 1000, age_max: 50 * MILLI };
    let mut node = Node::new(ShardConfig { change_log: log, ..config(1) });
    node.shard.set_compaction(AT_ONCE);
    (1..=2).for_each(|session| node.open(session));
    let id = data_id("checkout");
    let mut readers = vec![node.subscribe(2, &id)];
    for number in 1..=10 {
        let frame = Frame::of(1).name(&id).put(&id, number, version(1, 1), number, b"a");
        let mut held = readers.last().cloned();
        node.write_ok(1, &frame).iter().for_each(|seen| Held::apply(&mut held, &seen.diff()));
        readers.extend(held);
    }
    (node, id, readers)
}

/// Every reader gets the present list from where it stopped: by a diff if the history reaches it, else by a snapshot.
fn assert_nobody_has_a_gap(node: &Node, id: &DataId, readers: &[Held]) -> usize {
    let slot = node.slot_of(id);
    let mut snapshots = 0;
    for held in readers {
        let answer = diff::collect(slot, id.key(), held.revision);
        assert!(answer.is_snapshot || slot.log().floor() <= held.revision, "a diff over what was dropped");
        snapshots += usize::from(answer.is_snapshot);
        let mut body = Vec::new();
        let flags = answer.write(id.key(), &mut body);
        let mut reader = Some(held.clone());
        Held::apply(&mut reader, &diff::Diff::read(flags, &body).expect("what was written reads back"));
        assert_eq!(reader.map(|reader| reader.list), Some(node.list(id)));
    }
    snapshots
}

#[test]
fn the_history_of_a_slot_that_nobody_writes_to_grows_old_and_no_reader_has_a_gap() {
    let (mut node, id, readers) = ten_changes();
    assert!(assert_nobody_has_a_gap(&node, &id, &readers) <= 1, "all but who held nothing get diffs");
    let mut lengths = Vec::new();
    for _ in 0..70 {
        node.tick_after(MILLI);
        lengths.push(node.slot_of(&id).log().len());
        assert_nobody_has_a_gap(&node, &id, &readers);
    }
    assert!(lengths.contains(&5), "one after the other: {lengths:?}");
    assert_eq!(node.slot_of(&id).log().len(), 0);
    assert_eq!(assert_nobody_has_a_gap(&node, &id, &readers), 10, "only the reader in step needs nothing");
    assert_eq!(node.shard.compaction_stats().history_dropped, 10);
}

#[test]
fn a_shard_with_too_much_history_drops_the_oldest_of_the_longest() {
    let mut node = Node::new(config(2));
    node.open(1);
    let ids: Vec<DataId> = (0..100).map(|number| data_id(&format!("service-{number}"))).collect();
    let of_slot = |slot| ids.iter().find(move |id| id.key().slot(2) == SlotId(slot)).expect("one of them");
    for (id, changes) in [(of_slot(0), 300), (of_slot(1), 100)] {
        for number in 1..=changes {
            node.write_ok(1, &Frame::of(1).name(id).put(id, 1, version(number, 1), 1, &number.to_le_bytes()));
        }
    }
    let status = node.shard.compaction_status(node.now);
    let entry = status.history_bytes / status.history_entries;
    let settings = CompactionSettings { history_bytes_max: 150 * entry, batch_limit: 20, ..AT_ONCE };
    node.shard.set_compaction(settings);
    for _ in 0..40 {
        let before = node.shard.compaction_status(node.now).history_entries;
        node.tick_after(MILLI);
        let after = node.shard.compaction_status(node.now).history_entries;
        assert!(before - after <= 20, "a step is bounded");
    }
    let lengths: Vec<usize> = node.shard.slots().map(|slot| slot.log().len()).collect();
    assert!(lengths.iter().sum::<usize>() <= 150 && lengths[0].abs_diff(lengths[1]) <= 20, "{lengths:?}");
    assert!(node.shard.memory().history <= 4 * 150 * entry + 4096, "the memory is given back");
}

#[test]
fn the_oldest_reader_is_named_and_holds_nothing_up() {
    let (mut node, id, readers) = ten_changes();
    assert_eq!(node.shard.compaction_status(node.now).oldest_reader, None);
    node.shard.handle_reader_blocked(ReaderId(2));
    for number in 2..5 {
        node.write_ok(1, &Frame::of(1).put(&id, 1, version(number, 1), 1, &[number as u8]));
    }
    let status = node.shard.compaction_status(node.now);
    let oldest = status.oldest_reader.expect("it is blocked");
    assert_eq!((oldest.reader, oldest.behind, oldest.gets_snapshot), (ReaderId(2), 3, false));
    assert!(status.history_age.is_some_and(|age| age > MILLI && age < Nanos::SECOND));
    (0..70).for_each(|_| node.tick_after(MILLI));
    let status = node.shard.compaction_status(node.now);
    assert!(status.oldest_reader.is_some_and(|oldest| oldest.gets_snapshot));
    assert_eq!((status.history_entries, status.readers_behind), (0, 1));
    node.shard.handle_reader_writable(ReaderId(2));
    let mut held = readers.last().cloned();
    let (_, pushes) = node.turn();
    pushes.iter().for_each(|seen| Held::apply(&mut held, &seen.diff()));
    assert_eq!(held.map(|held| held.list), Some(node.list(&id)));
}
