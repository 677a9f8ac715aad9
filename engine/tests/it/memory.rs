//! Memory by kind: every kind grows for its own reason, and is given back.

use slotcast_engine::memory::Memory;

use crate::support::{Frame, Node, data_id, version};

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
    assert!(first.payload > 100_000 && first.index > 1000 * 38 && first.history >= 1000 * 32, "{first:?}");
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
