//! Memory by kind: every kind grows for its own reason, and is given back.

use slotcast_engine::{
    id::{ReplicaId, Revision, SlotId},
    memory::Memory,
    slot::Slot,
};

use crate::support::{Frame, Node, config, data_id, version};

fn put(node: &mut Node, registers: impl Iterator<Item = u64>, number: u64, payload: usize) {
    let id = data_id("checkout");
    let mut frame = Frame::of(1).name(&id);
    for register in registers {
        frame = frame.put(&id, register, version(number, 1), register, &vec![number as u8; payload]);
    }
    node.write_ok(1, &frame);
}

#[test]
fn each_kind_grows_for_its_own_reason() {
    let mut node = Node::with_sessions(1..=1);
    assert_eq!(node.shard.memory(), Memory::default(), "an empty shard holds nothing");
    put(&mut node, 0..1000, 1, 100);
    let first = node.shard.memory();
    let arena = node.shard.counts().arena;
    assert_eq!((first.payload, first.dead, first.free), (arena.live, arena.dead, arena.free));
    assert!(first.payload > 100_000 && first.index > 1000 * 34 && first.history >= 1000 * 24, "{first:?}");
    assert!(first.tombstones < 100 && first.readers == 0, "{first:?}");
    let sum: usize = first.kinds().iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(sum, first.total());

    put(&mut node, (0..1000).step_by(2), 2, 100);
    let second = node.shard.memory();
    assert_eq!(second.payload, first.payload, "as many records, as large");
    assert_eq!(second.dead, first.payload / 2, "half of them were replaced");
    assert_eq!(second.index, first.index, "no registration is new");

    node.subscribe(1, &data_id("checkout"));
    let third = node.shard.memory();
    assert!(third.readers > 0);
    assert_eq!(Memory { readers: 0, ..third }, second);

    let id = data_id("checkout");
    let frame = (0..1000).fold(Frame::of(1), |frame, register| frame.remove(&id, register, version(9, 1)));
    node.write_ok(1, &frame);
    let last = node.shard.memory();
    assert_eq!((last.payload, last.dead), (0, 0), "segments without a live record are freed");
    assert!(last.tombstones >= 1000 * 24, "{last:?}");
}

#[test]
fn names_are_counted_while_they_are_held() {
    let mut node = Node::with_sessions(1..=1);
    let before = node.shard.memory().index;
    let long = data_id(&"x".repeat(200));
    node.write_ok(1, &Frame::of(1).name(&long));
    assert!(node.shard.memory().index >= before + 200);
}

#[test]
fn empty_slots_of_a_cluster_are_cheap_led_or_followed() {
    const SLOTS: u32 = 16_384;
    let mut node = Node::clustered(config(SLOTS));
    let slots = || (0..SLOTS as u16).map(SlotId);
    let mut largest = 0;
    // Led with a follower, led again in a larger epoch, followed, and led once more.
    for epoch in 1..=4 {
        for slot in slots() {
            if epoch == 3 {
                node.shard.follow(slot, epoch, node.now).expect("a larger epoch");
            } else {
                node.shard.lead(slot, epoch, node.now).expect("a larger epoch");
                node.shard.replica_open(ReplicaId(1), slot, epoch, Revision::ZERO).expect("it is led");
            }
        }
        node.turn();
        let memory = node.shard.memory();
        assert!(memory.index >= SLOTS as usize * size_of::<Slot>(), "the slots themselves are counted");
        largest = largest.max(memory.total());
    }
    assert!(largest <= 64 << 20, "{} bytes each", largest / SLOTS as usize);
    slots().for_each(|slot| node.shard.leave(slot, node.now));
    while node.shard.has_backlog() {
        node.turn();
    }
    assert!(node.shard.memory().total() < 4 << 20, "{:?}", node.shard.memory());
}
