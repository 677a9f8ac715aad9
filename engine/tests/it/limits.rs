//! The store at its limits: full batches, full data ids, mass departures and claims that cannot be.

use slotcast_engine::{
    batch::{Batch, Entry},
    change_log::ChangeLogLimits,
    error::Refusal,
    id::{Nanos, ReaderId, RegisterId, Revision, SessionId, SlotId},
    limits::{BATCH_CHANGES_MAX, DATUM_BYTES_MAX, PAYLOAD_BYTES_MAX},
    slot::Slot,
};

use crate::support::{Frame, Held, MILLI, Node, data_id, version};

/// Registers `count` publishers of session 1 from register id 0 on.
fn registered(node: &mut Node, service: &str, count: u64) {
    let id = data_id(service);
    let mut frame = Frame::of(1).name(&id);
    for register in 0..count {
        frame = frame.put(&id, register, version(1, 1), 10, b"");
    }
    node.write_ok(1, &frame);
}

#[test]
fn a_full_batch_is_sealed_in_the_middle_of_a_frame_and_nothing_is_lost() {
    let mut node = Node::with_sessions(1..=2);
    let id = data_id("checkout");
    let mut held = Some(node.subscribe(2, &id));
    let before = node.slot_of(&id).revision();
    let mut frame = Frame::of(1).name(&id);
    for register in 0..BATCH_CHANGES_MAX as u64 {
        frame = frame.put(&id, register, version(1, 1), 10, b"");
    }
    let (outcomes, pushes) = node.write(1, &frame);
    assert_eq!(node.slot_of(&id).revision(), before.next().next());
    assert!(outcomes.iter().all(|outcome| *outcome == Ok(before.next().next())));
    pushes.iter().for_each(|seen| Held::apply(&mut held, &seen.diff()));
    assert_eq!(held.map(|held| held.list.len()), Some(BATCH_CHANGES_MAX));
}

#[test]
fn a_name_that_fills_a_batch_still_names_the_put_behind_it() {
    let mut node = Node::with_sessions(1..=1);
    let (first, second) = (data_id("first"), data_id("second"));
    let mut frame = Frame::of(1).name(&first);
    for register in 0..BATCH_CHANGES_MAX as u64 - 2 {
        frame = frame.put(&first, register, version(1, 1), 10, b"");
    }
    let frame = frame.name(&second).put(&second, 1, version(1, 1), 10, b"a");
    node.write_ok(1, &frame);
    assert_eq!(node.registers(&second), [1]);
}

#[test]
fn a_name_without_publishers_is_not_kept() {
    let mut node = Node::with_sessions(1..=1);
    let busy = data_id("busy");
    for number in 0..20 {
        let unused = data_id(&format!("unused-{number}"));
        let frame = Frame::of(1).name(&unused).name(&busy);
        node.write_ok(1, &frame.put(&busy, 1, version(number + 1, 1), 10, &[number as u8]));
    }
    assert!(node.shard.counts().datums <= 3, "{:?}", node.shard.counts());
}

#[test]
fn the_end_of_a_large_session_is_spread_over_batches_of_the_usual_size() {
    let mut node = Node::with_sessions(1..=2);
    let count = 2 * BATCH_CHANGES_MAX as u64 + 100;
    registered(&mut node, "large", count);
    let mut held = Some(node.subscribe(2, &data_id("large")));
    node.shard.handle_goodbye(ReaderId(1));
    let mut turns = 0;
    let mut left = count as usize;
    loop {
        let (_, pushes) = node.turn();
        turns += 1;
        pushes.iter().for_each(|seen| Held::apply(&mut held, &seen.diff()));
        let now = node.shard.counts().publishers;
        assert!(left - now <= BATCH_CHANGES_MAX, "{} removals in one turn", left - now);
        left = now;
        if !node.shard.has_backlog() {
            break;
        }
    }
    assert_eq!((left, turns), (0, 3));
    assert_eq!(held.map(|held| held.list.len()), Some(0));
}

#[test]
fn tombstones_go_in_batches_of_the_usual_size() {
    let mut node = Node::with_sessions(1..=1);
    let count = 2 * BATCH_CHANGES_MAX;
    registered(&mut node, "large", count as u64);
    node.outlive_a_lease(1..=1);
    let before = node.shard.stats().batches;
    let told = node.shard.handle_holds(ReaderId(1), data_id("large").key(), &Default::default());
    assert_eq!(told, Ok(count));
    node.turn();
    assert_eq!(node.shard.stats().batches, before + 2);
    assert_eq!(node.shard.counts().tombstones, count);
    node.tick_after(MILLI);
    let mark = node.heartbeat(1, 0);
    node.heartbeat(1, mark);
    let mut left = count;
    while left > 0 {
        node.tick_after(MILLI);
        node.turn();
        let now = node.shard.counts().tombstones;
        assert!(now < left && left - now <= BATCH_CHANGES_MAX, "{left} then {now}");
        left = now;
    }
}

#[test]
fn a_data_id_takes_no_more_bytes_than_it_may_but_still_replaces_and_removes() {
    let mut slot = Slot::open(SlotId(0), 1, 1, 9, ChangeLogLimits::default());
    let id = data_id("huge");
    let mut payload = vec![1; PAYLOAD_BYTES_MAX];
    let mut admit = |slot: &mut Slot, register: u64, number: u64, fill: u8| {
        payload.fill(fill);
        let frame = Frame::of(1).put(&id, register, version(number, 1), 10, &payload);
        let outcome = slot.admit_put(Entry::read(&frame.bytes).unwrap(), 10);
        if slot.open_changes() >= 64 {
            let sealed = slot.seal(Nanos(number)).unwrap();
            slot.recycle(sealed.batch);
        }
        outcome
    };
    let name = Frame::of(1).name(&id);
    slot.admit_name(Entry::read(&name.bytes).unwrap()).unwrap();
    let mut held = 0;
    while admit(&mut slot, held, 1, 1).is_ok() {
        held += 1;
    }
    assert_eq!(admit(&mut slot, held, 1, 1), Err(Refusal::DatumFull));
    let bytes = slot.counts().arena.live;
    assert!(bytes <= DATUM_BYTES_MAX && bytes + PAYLOAD_BYTES_MAX + 1024 > DATUM_BYTES_MAX, "{bytes}");
    assert_eq!(admit(&mut slot, 3, 2, 2), Ok(()), "the same room is taken again");
    let remove = Frame::of(1).remove(&id, 4, version(2, 1));
    slot.admit_remove(&Entry::read(&remove.bytes).unwrap().change, 1).unwrap();
    assert_eq!(admit(&mut slot, held, 1, 1), Ok(()), "there is room again");
    assert_eq!(slot.publishers() as u64, held);
    assert!(slot.get(id.key(), RegisterId(4)).is_none());
}

#[test]
fn an_epoch_that_leaves_no_larger_one_is_refused_and_disturbs_nothing() {
    let mut node = Node::with_sessions(1..=1);
    for epoch_seen in [Revision::EPOCH_MAX, u32::MAX] {
        let told = node.shard.handle_link_open(ReaderId(9), SessionId(9), epoch_seen, false, node.now);
        assert_eq!(told, Err(Refusal::EpochMismatch));
    }
    assert_eq!(node.shard.epoch(), 1);
    registered(&mut node, "checkout", 1);
}

#[test]
fn no_batch_of_a_slot_holds_more_changes_than_it_may() {
    let mut slot = Slot::open(SlotId(0), 1, 1, 9, ChangeLogLimits::default());
    let id = data_id("large");
    let name = Frame::of(1).name(&id);
    slot.admit_name(Entry::read(&name.bytes).unwrap()).unwrap();
    for register in 0..BATCH_CHANGES_MAX as u64 + 10 {
        let frame = Frame::of(1).put(&id, register, version(1, 1), 10, b"");
        slot.admit_put(Entry::read(&frame.bytes).unwrap(), 10).unwrap();
    }
    slot.seal(Nanos(1)).unwrap();
    let removed = slot.remove_session(SessionId(1), 1, BATCH_CHANGES_MAX);
    assert_eq!(removed, BATCH_CHANGES_MAX);
    let batch = slot.seal(Nanos(2)).unwrap().batch;
    assert_eq!(Batch::read(&batch).unwrap().changes() as usize, BATCH_CHANGES_MAX);
    assert_eq!(slot.forget_tombstones(2, 5), 5);
    assert_eq!(slot.remove_session(SessionId(1), 1, BATCH_CHANGES_MAX), 10);
}
