//! Behaviours that users of service registries know, one test each: which write wins, who may remove, what is pushed and
//! what is not, and what the end of a session does.

use std::collections::BTreeSet;

use slotcast_engine::{
    batch::{Batch, Change, ChangeKind, Durability, Entry, write_change, write_name},
    change_log::ChangeLogLimits,
    digest::{Digest, compare, page},
    error::Refusal,
    id::{DatumKey, Nanos, ReaderId, RegisterId, Revision, SessionId, SlotId},
    shard::LinkError,
    slot::Slot,
};

use crate::support::{Frame, Held, LEASE, MILLI, Node, config, data_id, version};

/// A node with sessions 1 to 3, and session 1 has put registration 7 of `checkout` at version 5.1.
fn with_one_publisher() -> (Node, slotcast_engine::id::DataId) {
    let mut node = Node::with_sessions(1..=3);
    let id = data_id("checkout");
    node.write_ok(1, &Frame::of(1).name(&id).put(&id, 7, version(5, 1), 70, b"a"));
    (node, id)
}

#[test]
fn the_same_write_twice_changes_nothing() {
    let (mut node, id) = with_one_publisher();
    let (before, digest) = (node.slot_of(&id).revision(), node.slot_of(&id).digest());
    let pushes = node.write_ok(1, &Frame::of(1).put(&id, 7, version(5, 1), 70, b"a"));
    assert!(pushes.is_empty());
    assert_eq!((node.slot_of(&id).revision(), node.slot_of(&id).digest()), (before, digest));
}

#[test]
fn a_newer_version_with_equal_payload_is_stored_and_pushes_nothing() {
    let (mut node, id) = with_one_publisher();
    node.subscribe(2, &id);
    let pushes = node.write_ok(1, &Frame::of(1).put(&id, 7, version(6, 1), 70, b"a"));
    assert!(pushes.is_empty());
    assert_eq!(node.slot_of(&id).version(id.key(), RegisterId(7)), Some((version(6, 1), true)));
    let pushes = node.write_ok(1, &Frame::of(1).put(&id, 7, version(7, 1), 70, b"b"));
    assert_eq!(pushes[0].registers(), (vec![7], vec![]));
}

#[test]
fn the_larger_version_then_the_larger_attach_count_wins_whenever_it_arrives() {
    let (mut node, id) = with_one_publisher();
    let mut put = |number, attach, payload: &[u8]| {
        let (outcomes, _) = node.write(2, &Frame::of(2).put(&id, 7, version(number, attach), 70, payload));
        (outcomes[0].map(|_| ()), node.list(&id)[&RegisterId(7)].1.clone())
    };
    assert_eq!(
        put(4, 9, b"late"),
        (Err(Refusal::Superseded), b"a".to_vec()),
        "a larger attach count is no excuse"
    );
    assert_eq!(put(5, 0, b"late"), (Err(Refusal::Superseded), b"a".to_vec()));
    assert_eq!(put(5, 2, b"b"), (Ok(()), b"b".to_vec()));
    assert_eq!(put(6, 0, b"c"), (Ok(()), b"c".to_vec()), "the version goes first");
}

#[test]
fn an_older_removal_is_refused_and_an_equal_or_newer_one_removes() {
    for (removal, removes) in
        [(version(4, 9), false), (version(5, 0), false), (version(5, 1), true), (version(6, 0), true)]
    {
        let (mut node, id) = with_one_publisher();
        let (outcomes, _) = node.write(1, &Frame::of(1).remove(&id, 7, removal));
        assert_eq!(outcomes[0].is_ok(), removes, "{removal:?}");
        assert_eq!(node.registers(&id).is_empty(), removes, "{removal:?}");
    }
}

#[test]
fn removing_what_is_not_there_changes_no_list_and_refuses_who_comes_late() {
    let (mut node, id) = with_one_publisher();
    node.subscribe(2, &id);
    let frame = Frame::of(1).remove(&id, 8, version(9, 1)).remove(&data_id("unheard-of"), 7, version(9, 9));
    assert!(node.write_ok(1, &frame).is_empty());
    assert_eq!((node.registers(&id), node.shard.counts().tombstones), (vec![7], 1));
    // A session that the registration was at before, and that this leader hears of only now.
    let (outcomes, pushes) = node.write(3, &Frame::of(3).put(&id, 8, version(8, 1), 80, b"late"));
    assert_eq!((outcomes, pushes.len()), (vec![Err(Refusal::Superseded)], 0));
    node.write_ok(1, &Frame::of(1).remove(&id, 8, version(9, 2)));
    let (outcomes, _) = node.write(3, &Frame::of(3).put(&id, 8, version(9, 2), 80, b"late"));
    assert_eq!(outcomes, [Err(Refusal::Superseded)], "the larger version of two removals counts");
    assert_eq!(node.shard.counts().tombstones, 1);
}

#[test]
fn only_the_owning_session_removes_and_only_the_publishing_client_changes() {
    let (mut node, id) = with_one_publisher();
    let (outcomes, _) = node.write(2, &Frame::of(2).remove(&id, 7, version(9, 9)));
    assert_eq!(outcomes, [Err(Refusal::NotOwner)]);
    let (outcomes, _) = node.write(2, &Frame::of(2).put(&id, 7, version(9, 9), 71, b"x"));
    assert_eq!(outcomes, [Err(Refusal::ForeignRegistration)]);
    let (outcomes, _) = node.write(2, &Frame::of(1).remove(&id, 7, version(9, 9)));
    assert_eq!(outcomes, [Err(Refusal::NotOwner)], "a session speaks for itself only");
    assert_eq!(node.registers(&id), [7]);
}

#[test]
fn the_end_of_a_session_removes_its_registrations_and_no_others() {
    let (mut node, id) = with_one_publisher();
    let other = data_id("billing");
    node.write_ok(2, &Frame::of(2).put(&id, 8, version(1, 1), 80, b"b"));
    node.write_ok(1, &Frame::of(1).name(&other).put(&other, 7, version(1, 1), 70, b"c"));
    // The client behind 9 has moved from session 1 to session 2 with the same payload.
    node.write_ok(1, &Frame::of(1).put(&id, 9, version(1, 1), 90, b"d"));
    node.write_ok(2, &Frame::of(2).put(&id, 9, version(1, 2), 90, b"d"));
    let mut held = Some(node.subscribe(3, &id));
    node.shard.handle_goodbye(ReaderId(1));
    let (_, pushes) = node.turn();
    assert_eq!(node.registers(&id), [8, 9]);
    assert!(node.registers(&other).is_empty());
    assert_eq!(pushes.len(), 1);
    Held::apply(&mut held, &pushes[0].diff());
    assert_eq!(held.map(|held| held.list), Some(node.list(&id)));
}

#[test]
fn the_publisher_count_ignores_what_has_been_removed() {
    let (mut node, id) = with_one_publisher();
    let counts = |node: &Node| (node.shard.counts().publishers, node.shard.counts().tombstones);
    assert_eq!(counts(&node), (1, 0));
    node.write_ok(1, &Frame::of(1).put(&id, 8, version(1, 1), 80, b"b"));
    assert_eq!(counts(&node), (2, 0));
    node.write_ok(1, &Frame::of(1).remove(&id, 7, version(6, 1)));
    assert_eq!(counts(&node), (1, 1));
    node.write_ok(1, &Frame::of(1).put(&id, 7, version(7, 1), 70, b"a"));
    assert_eq!(counts(&node), (2, 0));
    let told: Vec<usize> = node.slot_of(&id).datums().map(|(_, _, publishers)| publishers).collect();
    assert_eq!(told, [2]);
}

#[test]
fn a_lookup_by_owning_session_lists_just_that_sessions() {
    let (mut node, id) = with_one_publisher();
    node.write_ok(2, &Frame::of(2).put(&id, 8, version(3, 1), 80, b"b"));
    let slot = node.slot_of(&id);
    let of = |session| slot.session_registers(SessionId(session), id.key()).collect::<Vec<_>>();
    assert_eq!(of(1), [(RegisterId(7), version(5, 1))]);
    assert_eq!(of(2), [(RegisterId(8), version(3, 1))]);
    assert_eq!(of(3), []);
}

#[test]
fn a_differing_digest_narrows_to_the_data_ids_that_differ() {
    let mut node = Node::with_sessions(1..=2);
    let ids: Vec<_> = ["same", "updated", "added"].into_iter().map(data_id).collect();
    for id in &ids[..2] {
        node.write_ok(1, &Frame::of(1).name(id).put(id, 1, version(1, 1), 10, b"a"));
    }
    node.write_ok(2, &Frame::of(2).name(&ids[2]).put(&ids[2], 1, version(1, 1), 20, b"a"));
    let slot = node.slot_of(&ids[0]).id();
    let shard_side = node.shard.handle_digest_request(ReaderId(1), slot).expect("an open link");
    assert!(compare(&shard_side, &shard_side).is_empty());

    // The session has meanwhile learnt of an update, of a new data id, and has lost nothing else.
    let mut session_side = shard_side.clone();
    let changed = session_side.get_mut(&ids[1].key()).expect("session 1 publishes there");
    changed.sum = changed.sum.wrapping_add(1);
    session_side.insert(ids[2].key(), Digest { sum: 1, count: 1 });
    let found = compare(&shard_side, &session_side);
    assert_eq!((found.added, found.updated), (vec![ids[2].key()], vec![ids[1].key()]));
    let found = compare(&session_side, &shard_side);
    assert_eq!((found.removed, found.updated), (vec![ids[2].key()], vec![ids[1].key()]));

    let answer = node.shard.handle_heartbeat(ReaderId(1), 0, Digest::default(), 0, node.now).expect("alive");
    assert_eq!(answer.differs.map(|slots| slots[0].0), Some(slot));
    assert!(!answer.confirmed.contains(&(SessionId(1), 0)), "a differing session has confirmed nothing");
}

#[test]
fn a_registration_that_a_session_does_not_hold_goes_when_it_says_so() {
    let (mut node, id) = with_one_publisher();
    node.write_ok(1, &Frame::of(1).put(&id, 8, version(1, 1), 80, b"b"));
    node.write_ok(2, &Frame::of(2).put(&id, 9, version(1, 1), 90, b"c"));
    let told = node.shard.handle_holds(ReaderId(1), id.key(), &BTreeSet::from([RegisterId(8)]));
    assert_eq!(told, Ok(1));
    node.turn();
    assert_eq!(node.registers(&id), [8, 9], "another session's stay");
}

#[test]
fn paging_takes_at_least_one_and_says_until_the_end_that_more_remain() {
    let mut node = Node::with_sessions(1..=1);
    for service in 0..7 {
        let id = data_id(&format!("service-{service}"));
        node.write_ok(1, &Frame::of(1).name(&id).put(&id, 1, version(1, 1), 10, &[0; 100]));
    }
    let slot = node.shard.slots().next().expect("one slot");
    let keys: Vec<DatumKey> = slot.datums().map(|(key, ..)| key).collect();
    let cost = |key| slot.records(key).map(|(record, _)| record.bytes().len()).sum();
    for (budget, pages_expected) in [(1, 7), (2 * cost(keys[0]), 4), (usize::MAX, 1)] {
        let (mut rest, mut seen, mut pages) = (&keys[..], Vec::new(), 0);
        loop {
            let (taken, more) = page(rest, cost, budget);
            seen.extend_from_slice(taken);
            rest = &rest[taken.len()..];
            pages += 1;
            assert_eq!(more, !rest.is_empty());
            if !more {
                break;
            }
        }
        assert_eq!((seen, pages), (keys.clone(), pages_expected));
    }
}

#[test]
fn two_changes_before_one_seal_give_one_diff_with_the_newest_content() {
    let (mut node, id) = with_one_publisher();
    let mut held = Some(node.subscribe(2, &id));
    node.send(ReaderId(1), &Frame::of(1).put(&id, 7, version(6, 1), 70, b"b")).expect("sent");
    node.send(ReaderId(1), &Frame::of(1).put(&id, 7, version(7, 1), 70, b"c")).expect("sent");
    let (acks, pushes) = node.turn();
    assert_eq!((acks.len(), pushes.len()), (2, 1));
    assert_eq!(pushes[0].registers(), (vec![7], vec![]));
    Held::apply(&mut held, &pushes[0].diff());
    assert_eq!(held.map(|held| held.list[&RegisterId(7)].1.clone()), Some(b"c".to_vec()));
}

#[test]
fn registering_and_leaving_within_one_turn_is_not_pushed() {
    let (mut node, id) = with_one_publisher();
    node.subscribe(2, &id);
    let frame = Frame::of(1).put(&id, 8, version(1, 1), 80, b"b").remove(&id, 8, version(1, 1));
    assert!(node.write_ok(1, &frame).is_empty());
    assert_eq!(node.registers(&id), [7]);
}

#[test]
fn a_quick_reconnect_with_equal_payload_changes_no_list() {
    let (mut node, id) = with_one_publisher();
    let held = node.subscribe(2, &id);
    // The same session: nothing at all is told.
    assert!(node.write_ok(1, &Frame::of(1).put(&id, 7, version(5, 2), 70, b"a")).is_empty());
    // Removed by the old session, registered again over another one, in the same turn: other sessions learn the new owner,
    // and the content that their clients would see is the same.
    node.send(ReaderId(1), &Frame::of(1).remove(&id, 7, version(5, 2))).expect("sent");
    node.send(ReaderId(3), &Frame::of(3).put(&id, 7, version(5, 3), 70, b"a")).expect("sent");
    let (_, pushes) = node.turn();
    assert_eq!(pushes.len(), 1);
    assert_eq!(pushes[0].registers(), (vec![7], vec![]));
    assert_eq!(pushes[0].diff().owners().map(Iterator::collect), Some(vec![SessionId(3)]));
    assert_eq!(node.list(&id), held.list);
    assert_eq!(node.slot_of(&id).session_digest(SessionId(1)), Digest::default(), "it has moved");
    // With another payload it is.
    node.send(ReaderId(3), &Frame::of(3).remove(&id, 7, version(5, 3))).expect("sent");
    node.send(ReaderId(1), &Frame::of(1).put(&id, 7, version(5, 4), 70, b"z")).expect("sent");
    assert_eq!(node.turn().1.len(), 1);
}

#[test]
fn a_tombstone_stays_until_every_living_session_has_confirmed_a_later_mark() {
    let (mut node, id) = with_one_publisher();
    node.outlive_a_lease(1..=3);
    let marks: Vec<u64> = (1..=3).map(|session| node.heartbeat(session, 0)).collect();
    node.write_ok(1, &Frame::of(1).remove(&id, 7, version(6, 1)));
    let late = |node: &mut Node| {
        let (outcomes, _) = node.write(3, &Frame::of(3).put(&id, 7, version(5, 1), 70, b"a"));
        assert_eq!(outcomes, [Err(Refusal::Superseded)]);
        assert!(node.registers(&id).is_empty());
    };
    // Marks that were given before the removal are worth nothing, however often they are confirmed.
    (1..=3).for_each(|session| _ = node.heartbeat(session, marks[session as usize - 1]));
    node.tick_after(MILLI);
    late(&mut node);
    // Now marks given after it: two sessions confirm, the third still has a write under way.
    let marks: Vec<u64> = (1..=3).map(|session| node.heartbeat(session, 0)).collect();
    (1..=2).for_each(|session| _ = node.heartbeat(session, marks[session as usize - 1]));
    node.tick_after(MILLI);
    assert_eq!(node.shard.counts().tombstones, 1);
    late(&mut node);
    node.heartbeat(3, marks[2]);
    node.tick_after(MILLI);
    node.turn();
    assert_eq!(node.shard.counts().tombstones, 0);
}

#[test]
fn a_fresh_leader_keeps_tombstones_until_every_session_had_the_time_to_come() {
    let (mut node, id) = with_one_publisher();
    node.write_ok(1, &Frame::of(1).remove(&id, 7, version(6, 1)));
    for _ in 0..4 {
        let marks: Vec<u64> = (1..=3).map(|session| node.heartbeat(session, 0)).collect();
        (1..=3).for_each(|session| _ = node.heartbeat(session, marks[session as usize - 1]));
        node.tick_after(MILLI);
    }
    assert_eq!(node.shard.counts().tombstones, 1, "confirmed by all it knows, but it does not know all");
    node.open(4);
    let (outcomes, _) = node.write(4, &Frame::of(4).put(&id, 7, version(5, 1), 70, b"a"));
    assert_eq!(outcomes, [Err(Refusal::Superseded)]);
    node.outlive_a_lease(1..=4);
    assert!(!node.shard.expects(SessionId(5), node.now) && node.shard.expects(SessionId(4), node.now));
}

#[test]
fn a_session_that_is_gone_holds_no_tombstone() {
    let (mut node, id) = with_one_publisher();
    node.outlive_a_lease(1..=3);
    node.write_ok(1, &Frame::of(1).remove(&id, 7, version(6, 1)));
    node.tick_after(MILLI);
    let marks: Vec<u64> = (1..=2).map(|session| node.heartbeat(session, 0)).collect();
    (1..=2).for_each(|session| _ = node.heartbeat(session, marks[session as usize - 1]));
    node.tick_after(MILLI);
    assert_eq!(node.shard.counts().tombstones, 1, "session 3 has not confirmed");
    node.shard.handle_goodbye(ReaderId(3));
    node.tick_after(MILLI);
    assert_eq!(node.shard.counts().tombstones, 0);
    let late = node.send(ReaderId(3), &Frame::of(3).put(&id, 7, version(5, 1), 70, b"a"));
    assert_eq!(late, Err(LinkError::Refused(Refusal::SessionEnded)), "and resurrects nothing");
}

#[test]
fn a_silent_session_loses_its_registrations_after_its_lease_and_is_refused_for_ever() {
    let (mut node, id) = with_one_publisher();
    while node.now < Nanos(Nanos::SECOND).after(LEASE) {
        (2..=3).for_each(|session| _ = node.heartbeat(session, 0));
        assert_eq!(node.registers(&id), [7]);
        node.tick_after(500 * MILLI);
        node.turn();
    }
    assert!(node.registers(&id).is_empty());
    assert_eq!(node.shard.stats().leases_ended, 1);
    let reopened = node.shard.handle_link_open(ReaderId(9), SessionId(1), 0, true, node.now);
    assert_eq!(reopened, Err(Refusal::SessionEnded));
}

#[test]
fn whatever_comes_over_a_link_renews_the_lease() {
    let (mut node, id) = with_one_publisher();
    for _ in 0..4 {
        (2..=3).for_each(|session| _ = node.heartbeat(session, 0));
        node.shard.handle_bytes(ReaderId(1), node.now);
        node.tick_after(900 * MILLI);
        node.turn();
    }
    assert_eq!(node.registers(&id), [7]);
    while node.shard.is_alive(SessionId(1)) {
        (2..=3).for_each(|session| _ = node.heartbeat(session, 0));
        node.shard.handle_bytes(ReaderId(8), node.now);
        node.tick_after(900 * MILLI);
    }
    node.shard.handle_bytes(ReaderId(1), node.now);
    assert!(!node.shard.is_alive(SessionId(1)), "a lease that has ended does not begin anew");
}

#[test]
fn when_more_than_a_third_of_the_sessions_are_late_together_nothing_is_removed() {
    let mut node = Node::with_sessions(1..=5);
    let id = data_id("checkout");
    for session in 1..=5 {
        node.write_ok(session, &Frame::of(session).name(&id).put(&id, session, version(1, 1), session, b"a"));
    }
    for _ in 0..8 {
        (3..=5).for_each(|session| _ = node.heartbeat(session, 0));
        node.tick_after(500 * MILLI);
        node.turn();
    }
    assert_eq!(node.registers(&id), [1, 2, 3, 4, 5], "two of five are late");
    assert_eq!(node.shard.reader_counts().2, 2);
    (2..=5).for_each(|session| _ = node.heartbeat(session, 0));
    node.tick_after(500 * MILLI);
    node.turn();
    assert_eq!(node.registers(&id), [2, 3, 4, 5], "one of five is late");
    assert_eq!(node.shard.reader_counts().2, 0);
}

#[test]
fn a_session_that_has_seen_a_larger_epoch_makes_the_shard_open_one_above() {
    let (mut node, id) = with_one_publisher();
    let mut held = Some(node.subscribe(2, &id));
    node.send(ReaderId(1), &Frame::of(1).put(&id, 8, version(1, 1), 80, b"b")).expect("sent");
    node.open_link(ReaderId(4), SessionId(4), 6, false).expect("a fresh session");
    assert_eq!((node.shard.epoch(), node.slot_of(&id).revision()), (7, Revision::open(7)));
    let (acks, pushes) = node.turn();
    assert_eq!(acks[0].2, [Ok(Revision::open(7))]);
    Held::apply(&mut held, &pushes[0].diff());
    assert!(!pushes[0].diff().is_snapshot, "readers of this run stay in step");
    assert_eq!(held.map(|held| held.list), Some(node.list(&id)));
    let (outcomes, _) = node.write(1, &Frame::of(1).in_epoch(1).put(&id, 9, version(1, 1), 90, b"c"));
    assert_eq!(outcomes, [Err(Refusal::EpochMismatch)]);
    node.write_ok(1, &Frame::of(1).in_epoch(7).put(&id, 9, version(1, 1), 90, b"c"));
    node.open_link(ReaderId(5), SessionId(5), 7, true).expect("a fresh session");
    assert_eq!(node.shard.epoch(), 7, "what was told in this run raises nothing");
}

#[test]
fn write_sequences_go_up_by_one_and_a_broken_one_changes_nothing() {
    let (mut node, id) = with_one_publisher();
    let frame = Frame::of(1).put(&id, 8, version(1, 1), 80, b"b");
    for sequence in [0, 1, 3, u64::MAX] {
        let told = node.shard.handle_write(ReaderId(1), sequence, &frame.bytes, node.now);
        assert_eq!(told, Err(LinkError::Refused(Refusal::SequenceBroken)), "{sequence}");
    }
    node.turn();
    assert_eq!(node.registers(&id), [7]);
    // The sequence belongs to the incarnation, not to the link.
    let last = node.shard.handle_link_open(ReaderId(9), SessionId(1), 0, true, node.now);
    assert_eq!(last, Ok(1));
    // And what still comes over the link before is older than what comes over this one.
    let late = node.shard.handle_write(ReaderId(1), 2, &frame.bytes, node.now);
    assert_eq!(late, Err(LinkError::Unknown));
    node.shard.handle_write(ReaderId(9), 2, &frame.bytes, node.now).expect("the next sequence");
    node.turn();
    assert_eq!(node.registers(&id), [7, 8]);
}

#[test]
fn an_epoch_beyond_the_shards_own_is_of_another_run_whatever_the_session_was_linked_to() {
    let (mut node, _) = with_one_publisher();
    node.open_link(ReaderId(8), SessionId(2), 1, true).expect("a living session");
    assert_eq!(node.shard.epoch(), 1, "its own epoch is no news");
    node.open_link(ReaderId(9), SessionId(2), 4, true).expect("a living session");
    assert_eq!(node.shard.epoch(), 5);
}

#[test]
fn a_list_that_is_asked_for_once_more_is_told_apart_from_the_one_before() {
    let (mut node, id) = with_one_publisher();
    let held = node.subscribe(2, &id);
    let again = node.subscribe(2, &id);
    assert_eq!(again.list, held.list);
    assert!(again.revision > held.revision);
}

#[test]
fn a_frame_that_cannot_be_read_changes_nothing() {
    let (mut node, id) = with_one_publisher();
    let mut frame = Frame::of(1).put(&id, 8, version(1, 1), 80, b"b").put(&id, 9, version(1, 1), 90, b"c");
    frame.bytes.truncate(frame.bytes.len() - 16);
    let told = node.send(ReaderId(1), &frame);
    assert!(matches!(told, Err(LinkError::Malformed(_))), "{told:?}");
    node.turn();
    assert_eq!(node.registers(&id), [7], "not even its readable part");
    assert_eq!(node.send(ReaderId(9), &Frame::of(9)), Err(LinkError::Unknown));
}

#[test]
fn each_write_of_a_frame_is_decided_on_its_own() {
    let mut node = Node::new(slotcast_engine::shard::ShardConfig { slots: 0..=1, ..config(4) });
    node.open(1);
    let names: Vec<_> = (0..64).map(|index| data_id(&format!("service-{index}"))).collect();
    let here = names.iter().find(|id| id.key().slot(4) == SlotId(0)).expect("some name in slot 0");
    let elsewhere = names.iter().find(|id| id.key().slot(4) == SlotId(3)).expect("some name in slot 3");
    let mut frame = Frame::of(1)
        .put(here, 1, version(1, 1), 10, b"unnamed")
        .name(here)
        .put(here, 2, version(1, 1), 20, b"a")
        .name(elsewhere)
        .put(elsewhere, 1, version(1, 1), 10, b"a");
    let persistent = Change {
        kind: ChangeKind::Remove,
        durability: Durability::Persistent,
        datum: here.key(),
        register: RegisterId(2),
        version: version(9, 9),
        epoch: 0,
        owner: SessionId::NOBODY,
    };
    write_change(&mut frame.bytes, &persistent);
    let owned = Change { owner: SessionId(1), ..persistent };
    write_change(&mut frame.bytes, &owned);
    let forget = Change { kind: ChangeKind::Forget, durability: Durability::Ephemeral, ..owned };
    write_change(&mut frame.bytes, &forget);
    let (outcomes, _) = node.write(1, &frame);
    let codes: Vec<_> = outcomes.iter().map(|outcome| outcome.err()).collect();
    assert_eq!(
        codes,
        [
            Some(Refusal::NameUnknown),
            None,
            Some(Refusal::SlotMoved),
            Some(Refusal::PersistentUnavailable),
            Some(Refusal::NotOwner),
            Some(Refusal::RecordInvalid),
        ]
    );
    assert_eq!(node.registers(here), [2]);
}

#[test]
fn a_record_that_is_damaged_inside_is_refused_at_the_data_node_too() {
    let (mut node, id) = with_one_publisher();
    let mut frame = Frame::of(1).put(&id, 8, version(1, 1), 80, &[7; 64]);
    let middle = frame.bytes.len() / 2;
    frame.bytes[middle] ^= 1;
    let (outcomes, _) = node.write(1, &frame);
    assert_eq!(outcomes, [Err(Refusal::RecordInvalid)]);
    assert_eq!(node.registers(&id), [7]);
}

#[test]
fn a_node_that_trusts_its_sessions_still_knows_whose_registration_it_is() {
    let mut node = Node::new(slotcast_engine::shard::ShardConfig { validate: false, ..config(1) });
    node.open(1);
    let id = data_id("checkout");
    node.write_ok(1, &Frame::of(1).name(&id).put(&id, 7, version(1, 1), 70, b"a"));
    let (outcomes, _) = node.write(1, &Frame::of(1).put(&id, 7, version(2, 1), 71, b"b"));
    assert_eq!(outcomes, [Err(Refusal::ForeignRegistration)]);
    node.write_ok(1, &Frame::of(1).put(&id, 7, version(2, 1), 70, b"b"));
    assert_eq!(node.list(&id)[&RegisterId(7)].1, b"b");
}

#[test]
fn a_second_name_with_the_same_key_is_refused() {
    let mut slot = Slot::open(SlotId(0), 1, 1, 0, ChangeLogLimits::default());
    let (first, second) = (data_id("first"), data_id("second"));
    let mut bytes = Vec::new();
    write_name(&mut bytes, first.key(), first.as_bytes());
    slot.admit_name(Entry::read(&bytes).unwrap()).unwrap();
    // Two names with one xxh3 cannot be had by search, so the second comes under a forged key.
    let mut forged = Vec::new();
    write_name(&mut forged, first.key(), second.as_bytes());
    assert_eq!(slot.admit_name(Entry::read(&forged).unwrap()), Err(Refusal::KeyCollision));
    assert_eq!(slot.admit_name(Entry::read(&bytes).unwrap()), Ok(()), "the first may say its name again");
    assert!(slot.collides(first.key(), second.as_bytes()) && !slot.collides(first.key(), first.as_bytes()));
    let sealed = slot.seal(Nanos(1)).unwrap();
    assert_eq!(Batch::read(&sealed.batch).unwrap().changes(), 1);
    // A shard does not take a name whose key is not its hash.
    let mut node = Node::with_sessions(1..=1);
    let mut frame = Frame::of(1);
    frame.bytes = forged;
    let frame = frame.put(&first, 1, version(1, 1), 10, b"a");
    assert_eq!(node.write(1, &frame).0, [Err(Refusal::NameUnknown)]);
}

#[test]
fn acknowledgements_come_in_the_order_of_the_frames_and_carry_the_revision_of_the_write() {
    let (mut node, id) = with_one_publisher();
    let before = node.slot_of(&id).revision();
    node.send(ReaderId(2), &Frame::of(2).put(&id, 8, version(1, 1), 80, b"b")).expect("sent");
    node.send(ReaderId(1), &Frame::of(1).put(&id, 9, version(1, 1), 90, b"c")).expect("sent");
    node.send(ReaderId(2), &Frame::of(2)).expect("sent");
    let (acks, _) = node.turn();
    let order: Vec<(u32, u64, usize)> =
        acks.iter().map(|(reader, sequence, outcomes)| (reader.0, *sequence, outcomes.len())).collect();
    assert_eq!(order, [(2, 1, 1), (1, 2, 1), (2, 2, 0)]);
    assert_eq!(acks[0].2, [Ok(before.next())]);
    assert_eq!(acks[1].2, [Ok(node.slot_of(&id).revision())]);
}
