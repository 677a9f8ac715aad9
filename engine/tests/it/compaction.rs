//! Compaction: after heavy overwriting the memory comes back, and every record is still the right one.

use std::collections::{BTreeMap, BTreeSet};

use slotcast_engine::{
    id::{DataId, RegisterId, mix64},
    limits::SEGMENT_BYTES_MAX,
    shard::ShardConfig,
};

use crate::support::{Frame, MILLI, Node, config, data_id, version};

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
    assert!(before.dead > before.live, "something to do: {before:?}");
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
        assert!(store.node.shard.stats().compacted_bytes > 0);
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
    assert!(store.node.shard.stats().compacted_bytes > 0);
}

#[test]
fn without_a_budget_nothing_moves() {
    let mut store = Overwriting::new(0);
    (0..20).for_each(|_| store.put(0..40, 1500));
    let before = store.node.shard.counts().arena;
    store.node.tick_after(MILLI);
    assert_eq!(store.node.shard.counts().arena, before);
    assert_eq!(store.node.shard.stats().compacted_bytes, 0);
}
