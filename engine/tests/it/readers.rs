//! Readers: first answers, readers that cannot keep up, and what each of them is spared.

use slotcast_engine::{
    change_log::ChangeLogLimits,
    diff,
    id::{ReaderId, RegisterId, Revision},
    limits::BATCH_CHANGES_MAX,
    shard::ShardConfig,
};

use crate::support::{Frame, Held, LEASE, MILLI, Node, Seen, config, data_id, version};

fn apply_all(held: &mut Option<Held>, pushes: &[Seen]) {
    pushes.iter().for_each(|seen| Held::apply(held, &seen.diff()));
}

#[test]
fn the_first_answer_is_complete_also_when_it_is_empty() {
    let mut node = Node::with_sessions(1..=1);
    let id = data_id("nobody-publishes-this");
    let revision = node.slot_of(&id).revision();
    node.shard.handle_interest(ReaderId(1), &id, Revision::ZERO).unwrap();
    let (_, pushes) = node.turn();
    assert_eq!(pushes.len(), 1);
    let diff = pushes[0].diff();
    assert!(diff.is_snapshot, "nobody differs from don't know yet");
    assert_eq!((diff.to, diff.put_count()), (revision, 0));
    assert!(node.turn().1.is_empty(), "and it comes once");
}

#[test]
fn a_new_reader_gets_its_first_answer_and_no_earlier_diff() {
    let mut node = Node::with_sessions(1..=3);
    let id = data_id("checkout");
    node.write_ok(1, &Frame::of(1).name(&id).put(&id, 1, version(1, 1), 10, b"a"));
    let mut old = Some(node.subscribe(2, &id));
    node.send(ReaderId(1), &Frame::of(1).put(&id, 2, version(1, 1), 20, b"b")).unwrap();
    node.shard.handle_interest(ReaderId(3), &id, Revision::ZERO).unwrap();
    let (_, pushes) = node.turn();
    let of = |reader| pushes.iter().filter(move |seen| seen.readers.contains(&ReaderId(reader)));
    assert_eq!((of(2).count(), of(3).count()), (1, 1));
    of(2).for_each(|seen| Held::apply(&mut old, &seen.diff()));
    let mut new = None;
    of(3).for_each(|seen| Held::apply(&mut new, &seen.diff()));
    assert_eq!(old, new);
    assert_eq!(new.map(|held| held.list), Some(node.list(&id)));
}

#[test]
fn asking_twice_in_one_turn_is_answered_once() {
    let mut node = Node::with_sessions(1..=1);
    let id = data_id("checkout");
    node.shard.handle_interest(ReaderId(1), &id, Revision::ZERO).unwrap();
    node.shard.handle_interest(ReaderId(1), &id, Revision::ZERO).unwrap();
    assert_eq!(node.turn().1.len(), 1);
}

#[test]
fn a_fresh_leader_takes_writes_but_answers_nobody_until_it_has_settled() {
    let mut node = Node::new(ShardConfig { settle: 500 * MILLI, ..config(1) });
    node.open(1);
    let id = data_id("checkout");
    node.shard.handle_interest(ReaderId(1), &id, Revision::ZERO).unwrap();
    assert!(node.write_ok(1, &Frame::of(1).name(&id).put(&id, 1, version(1, 1), 10, b"a")).is_empty());
    assert!(!node.shard.is_serving());
    node.tick_after(500 * MILLI);
    let (_, pushes) = node.turn();
    assert_eq!(pushes.len(), 1, "one answer, and it holds what came while settling");
    assert_eq!(pushes[0].registers(), (vec![1], vec![]));
}

#[test]
fn a_pause_soon_after_the_start_does_not_make_a_leader_settled() {
    let mut node = Node::with_sessions(1..=1);
    node.tick_after(100 * MILLI);
    let settled = |node: &mut Node| {
        let digest = Default::default();
        node.shard.handle_heartbeat(ReaderId(1), 0, digest, 0, node.now).unwrap().settled
    };
    // What it hears first after the pause comes before the tick.
    node.now = node.now.after(2 * LEASE);
    assert!(!settled(&mut node), "no session could come meanwhile");
    node.tick_after(100 * MILLI);
    assert!(!settled(&mut node));
    node.outlive_a_lease(1..=1);
    assert!(settled(&mut node));
}

#[test]
fn whoever_lost_interest_gets_nothing_more() {
    let mut node = Node::with_sessions(1..=2);
    let id = data_id("checkout");
    node.subscribe(2, &id);
    node.send(ReaderId(1), &Frame::of(1).name(&id).put(&id, 1, version(1, 1), 10, b"a")).unwrap();
    node.shard.handle_uninterest(ReaderId(2), id.key());
    assert!(node.turn().1.is_empty());
    assert_eq!(node.shard.reader_counts().0, 0);
}

#[test]
fn a_slow_reader_gets_one_diff_per_data_id_from_where_it_was() {
    let mut node = Node::with_sessions(1..=2);
    let (id, quiet) = (data_id("checkout"), data_id("quiet"));
    node.write_ok(1, &Frame::of(1).name(&id).put(&id, 1, version(1, 1), 10, b"a"));
    let mut held = Some(node.subscribe(2, &id));
    node.subscribe(2, &quiet);
    node.shard.handle_reader_blocked(ReaderId(2));
    for number in 2..6 {
        let frame = Frame::of(1).put(&id, 1, version(number, 1), 10, &[number as u8]);
        assert!(node.write_ok(1, &frame).is_empty());
    }
    assert_eq!(node.shard.reader_counts().1, 1);
    node.shard.handle_reader_writable(ReaderId(2));
    let (_, pushes) = node.turn();
    assert_eq!(pushes.len(), 1, "four changes, one diff; nothing of what did not change");
    assert!(!pushes[0].diff().is_snapshot);
    apply_all(&mut held, &pushes);
    assert_eq!(held.map(|held| held.list), Some(node.list(&id)));
}

#[test]
fn a_reader_slower_than_the_log_gets_snapshots_of_what_it_wants() {
    let log = ChangeLogLimits { entries_max: 3, age_max: u64::MAX };
    let mut node = Node::new(ShardConfig { change_log: log, ..config(1) });
    (1..=2).for_each(|session| node.open(session));
    let (id, quiet) = (data_id("checkout"), data_id("quiet"));
    let mut held = Some(node.subscribe(2, &id));
    node.subscribe(2, &quiet);
    node.shard.handle_reader_blocked(ReaderId(2));
    for number in 1..6 {
        node.write_ok(1, &Frame::of(1).name(&id).put(&id, number, version(1, 1), number, b"a"));
    }
    node.shard.handle_reader_writable(ReaderId(2));
    let (_, pushes) = node.turn();
    assert_eq!(pushes.len(), 2, "the log cannot tell what did not change");
    assert!(pushes.iter().all(|seen| seen.diff().is_snapshot));
    pushes.iter().filter(|seen| seen.datum == id.key()).for_each(|seen| Held::apply(&mut held, &seen.diff()));
    assert_eq!(held.map(|held| held.list), Some(node.list(&id)));
}

#[test]
fn news_in_the_turn_in_which_a_reader_catches_up_leaves_no_gap() {
    let mut node = Node::with_sessions(1..=2);
    let id = data_id("checkout");
    node.write_ok(1, &Frame::of(1).name(&id).put(&id, 1, version(1, 1), 10, b"a"));
    let mut held = Some(node.subscribe(2, &id));
    node.shard.handle_reader_blocked(ReaderId(2));
    node.write_ok(1, &Frame::of(1).put(&id, 2, version(1, 1), 20, b"b"));
    node.shard.handle_reader_writable(ReaderId(2));
    let pushes = node.write_ok(1, &Frame::of(1).put(&id, 3, version(1, 1), 30, b"c"));
    assert_eq!(pushes.len(), 1, "the catching up covers the news");
    apply_all(&mut held, &pushes);
    assert_eq!(held.map(|held| held.list), Some(node.list(&id)));
}

#[test]
fn a_reader_that_blocks_again_before_it_caught_up_still_gets_everything() {
    let mut node = Node::with_sessions(1..=2);
    let id = data_id("checkout");
    node.write_ok(1, &Frame::of(1).name(&id).put(&id, 1, version(1, 1), 10, b"a"));
    let mut held = Some(node.subscribe(2, &id));
    node.shard.handle_reader_blocked(ReaderId(2));
    node.write_ok(1, &Frame::of(1).put(&id, 2, version(1, 1), 20, b"b"));
    node.shard.handle_reader_writable(ReaderId(2));
    node.shard.handle_reader_blocked(ReaderId(2));
    assert!(node.write_ok(1, &Frame::of(1).put(&id, 3, version(1, 1), 30, b"c")).is_empty());
    node.shard.handle_reader_writable(ReaderId(2));
    apply_all(&mut held, &node.turn().1);
    assert_eq!(held.map(|held| held.list), Some(node.list(&id)));
}

#[test]
fn a_reader_that_blocks_after_a_batch_was_sealed_in_the_middle_of_a_turn_misses_nothing() {
    let mut node = Node::with_sessions(1..=2);
    let id = data_id("checkout");
    node.write_ok(1, &Frame::of(1).name(&id).put(&id, 0, version(1, 1), 10, b"a"));
    let mut held = Some(node.subscribe(2, &id));
    let before = node.shard.stats().batches;
    let mut frame = Frame::of(1);
    for register in 1..=BATCH_CHANGES_MAX as u64 + 1 {
        frame = frame.put(&id, register, version(1, 1), 10, b"");
    }
    node.send(ReaderId(1), &frame).unwrap();
    assert_eq!(node.shard.stats().batches, before + 1, "the first batch is full and sealed");
    node.shard.handle_reader_blocked(ReaderId(2));
    assert!(node.turn().1.is_empty());
    node.shard.handle_reader_writable(ReaderId(2));
    apply_all(&mut held, &node.turn().1);
    assert_eq!(held.map(|held| held.list), Some(node.list(&id)));
}

#[test]
fn a_data_id_that_was_forgotten_and_comes_back_is_told_whole() {
    let log = ChangeLogLimits { entries_max: 2, age_max: u64::MAX };
    let mut node = Node::new(ShardConfig { change_log: log, ..config(1) });
    (1..=2).for_each(|session| node.open(session));
    node.outlive_a_lease(1..=2);
    let (id, busy) = (data_id("comes-and-goes"), data_id("busy"));
    node.write_ok(1, &Frame::of(1).name(&id).put(&id, 1, version(1, 1), 10, b"a"));
    // A client that is slow from here on, behind a session in step.
    let slow = node.subscribe(2, &id);
    node.write_ok(1, &Frame::of(1).remove(&id, 1, version(2, 1)));
    for number in 1..5 {
        node.write_ok(1, &Frame::of(1).name(&busy).put(&busy, 1, version(number, 1), 10, &[number as u8]));
        for _ in 0..2 {
            let marks: Vec<u64> = (1..=2).map(|session| node.heartbeat(session, 0)).collect();
            (1..=2).for_each(|session| _ = node.heartbeat(session, marks[session as usize - 1]));
            node.tick_after(MILLI);
        }
    }
    let known = node.slot_of(&id).datums().any(|(key, ..)| key == id.key());
    assert!(!known, "without publishers, tombstones and changes in the log it is forgotten");
    let pushes = node.write_ok(1, &Frame::of(1).name(&id).put(&id, 2, version(1, 1), 20, b"b"));
    let diff = pushes[0].diff();
    assert!(diff.is_snapshot || slow.revision < diff.from, "no range over what is not known any more");
    let mut held = Some(slow);
    Held::apply(&mut held, &diff);
    assert_eq!(held.map(|held| held.list), Some(node.list(&id)));
}

#[test]
fn a_change_of_one_in_a_long_list_is_told_as_one() {
    let mut node = Node::with_sessions(1..=2);
    let id = data_id("large");
    let mut frame = Frame::of(1).name(&id);
    for register in 0..2000 {
        frame = frame.put(&id, register, version(1, 1), 10, &[0; 64]);
    }
    node.write_ok(1, &frame);
    let held = node.subscribe(2, &id);
    let pushes = node.write_ok(1, &Frame::of(1).put(&id, 77, version(2, 1), 10, &[1; 64]));
    assert_eq!(pushes[0].registers(), (vec![77], vec![]));
    let all = diff::snapshot(node.slot_of(&id), id.key());
    assert_eq!((all.puts.len(), all.to), (2000, node.slot_of(&id).revision()));
    // When nearly everything changed since, the whole list is the shorter answer.
    let mut leave = Frame::of(1);
    for register in 10..2000 {
        leave = leave.remove(&id, register, version(3, 1));
    }
    node.write_ok(1, &leave);
    let answer = diff::collect(node.slot_of(&id), id.key(), held.revision);
    assert!(answer.is_snapshot);
    assert_eq!(answer.puts.len(), 10);
}

#[test]
fn a_removal_in_the_log_is_named_though_its_tombstone_is_gone_and_the_log_begins_after_the_reader() {
    let log = ChangeLogLimits { entries_max: 4, age_max: u64::MAX };
    let mut node = Node::new(ShardConfig { change_log: log, ..config(1) });
    (1..=2).for_each(|session| node.open(session));
    node.outlive_a_lease(1..=2);
    let id = data_id("checkout");
    let put = |register: u64| Frame::of(1).name(&id).put(&id, register, version(1, 1), 10, b"a");
    (1..4).for_each(|register| _ = node.write_ok(1, &put(register)));
    let held = node.subscribe(2, &id);
    (4..8).for_each(|register| _ = node.write_ok(1, &put(register)));
    node.write_ok(1, &Frame::of(1).remove(&id, 2, version(2, 1)));
    for _ in 0..2 {
        let marks: Vec<u64> = (1..=2).map(|session| node.heartbeat(session, 0)).collect();
        (1..=2).for_each(|session| _ = node.heartbeat(session, marks[session as usize - 1]));
        node.tick_after(MILLI);
    }
    let slot = node.slot_of(&id);
    assert_eq!(slot.counts().tombstones, 0, "everybody has confirmed the removal");
    assert!(held.revision < slot.log().floor());
    let answer = diff::collect(slot, id.key(), held.revision);
    assert!(answer.is_snapshot);
    assert_eq!(answer.removes, [RegisterId(2)]);
    assert!(
        diff::collect(slot, id.key(), Revision::ZERO).removes.is_empty(),
        "nothing is known of that reader"
    );
}

#[test]
fn time_alone_moves_the_floor_of_the_log_and_readers_notice_nothing() {
    let log = ChangeLogLimits { entries_max: 1000, age_max: 10 * MILLI };
    let mut node = Node::new(ShardConfig { change_log: log, ..config(1) });
    (1..=2).for_each(|session| node.open(session));
    let id = data_id("checkout");
    let mut held = Some(node.subscribe(2, &id));
    for number in 1..6u64 {
        let pushes = node.write_ok(1, &Frame::of(1).name(&id).put(&id, number, version(1, 1), 10, b"a"));
        apply_all(&mut held, &pushes);
        node.tick_after(20 * MILLI);
    }
    assert_eq!(node.slot_of(&id).log().len(), 1);
    assert_eq!(held.map(|held| held.list), Some(node.list(&id)));
}
