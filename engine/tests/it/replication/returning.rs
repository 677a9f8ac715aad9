//! What expires at a leader that does not hear a session is not lost while the session lives.

use slotcast_engine::{
    error::Refusal,
    id::{DataId, ReplicaId, SessionId, SlotId},
    shard::ShardConfig,
};

use super::{arrive, assert_same, catch_up, held};
use crate::support::{Frame, LEASE, MILLI, Node, config, data_id, version};

const SLOT: SlotId = SlotId(0);
const REPLICA: ReplicaId = ReplicaId(1);

/// A leader whose lease of session 1 has ended, a follower that has its batches and knows that the session lives, and in
/// `id` what is listed: 2 of session 2. Of session 1 there were 1, which has expired, and 3, which was removed before.
fn cut_off() -> (Node, DataId) {
    let id = data_id("checkout");
    let node = || Node::clustered(ShardConfig { settle: 0, ..config(1) });
    let (mut leader, mut follower) = (node(), node());
    leader.shard.lead(SLOT, 1, leader.now).expect("nothing is known of it");
    follower.shard.follow(SLOT, 1, follower.now).expect("nothing is known of it");
    catch_up(&mut leader.shard, &mut follower.shard, (REPLICA, SLOT), leader.now);
    for session in 1..=4 {
        leader.open(session);
        follower.open(session);
    }
    leader.write_ok(1, &Frame::of(1).name(&id).put(&id, 1, version(5, 1), 10, b"a"));
    leader.write_ok(1, &Frame::of(1).put(&id, 3, version(5, 1), 10, b"c"));
    leader.write_ok(1, &Frame::of(1).remove(&id, 3, version(5, 1)));
    leader.write_ok(2, &Frame::of(2).put(&id, 2, version(5, 1), 20, b"b"));
    let end = leader.now.after(LEASE + 1000 * MILLI);
    while leader.now < end {
        (2..=4).for_each(|session| _ = leader.heartbeat(session, 0));
        leader.tick_after(500 * MILLI);
        leader.turn();
        arrive(&mut leader.shard, &mut follower.shard, REPLICA, leader.now);
    }
    assert!(!leader.shard.is_alive(SessionId(1)) && leader.registers(&id) == [2]);
    assert_same(&leader.shard, &follower.shard, SLOT);
    follower.now = leader.now;
    follower.shard.lead(SLOT, 2, follower.now).expect("a larger epoch");
    (follower, id)
}

#[test]
fn what_expired_at_a_former_leader_is_put_again_by_the_session_that_holds_it() {
    let (mut node, id) = cut_off();
    node.write_ok(1, &Frame::of(1).put(&id, 1, version(5, 1), 10, b"a"));
    assert_eq!(node.registers(&id), [1, 2]);
    assert_eq!(held(&node.shard, SLOT).session_digest(SessionId(1)).count, 1);
}

#[test]
fn what_expired_is_put_again_by_nobody_else_in_that_version() {
    let (mut node, id) = cut_off();
    for (session, number) in [(2, 5), (2, 4), (1, 4)] {
        let (outcomes, _) =
            node.write(session, &Frame::of(session).put(&id, 1, version(number, 1), 10, b"a"));
        assert_eq!(outcomes, [Err(Refusal::Superseded)], "session {session}, version {number}");
    }
    node.write_ok(2, &Frame::of(2).put(&id, 1, version(5, 2), 10, b"a"));
    let (outcomes, _) = node.write(1, &Frame::of(1).put(&id, 1, version(5, 1), 10, b"a"));
    assert_eq!(outcomes, [Err(Refusal::Superseded)], "its client has come to another session");
}

#[test]
fn what_was_removed_by_request_stays_removed() {
    let (mut node, id) = cut_off();
    let (outcomes, _) = node.write(1, &Frame::of(1).put(&id, 3, version(5, 1), 10, b"c"));
    assert_eq!(outcomes, [Err(Refusal::Superseded)]);
    // What has expired can be removed by request, too, but by nobody else.
    node.write_ok(2, &Frame::of(2).remove(&id, 1, version(5, 1)));
    node.write_ok(1, &Frame::of(1).put(&id, 1, version(5, 1), 10, b"a"));
    node.write_ok(1, &Frame::of(1).remove(&id, 1, version(5, 1)));
    let (outcomes, _) = node.write(1, &Frame::of(1).put(&id, 1, version(5, 1), 10, b"a"));
    assert_eq!(outcomes, [Err(Refusal::Superseded)]);
    let (mut node, id) = cut_off();
    node.write_ok(1, &Frame::of(1).remove(&id, 1, version(5, 1)));
    let (outcomes, _) = node.write(1, &Frame::of(1).put(&id, 1, version(5, 1), 10, b"a"));
    assert_eq!(outcomes, [Err(Refusal::Superseded)]);
    assert_eq!(node.registers(&id), [2]);
}

#[test]
fn a_removal_of_what_had_expired_is_remembered_as_long_as_any() {
    let (mut node, id) = cut_off();
    let marks: Vec<u64> = (1..=4).map(|session| node.heartbeat(session, 0)).collect();
    let end = node.now.after(LEASE + 1000 * MILLI);
    while node.now < end {
        // Nobody confirms anything: all tombstones stay.
        node.tick_after(500 * MILLI);
        (1..=4).for_each(|session| _ = node.heartbeat(session, 0));
        node.turn();
    }
    assert_eq!(node.shard.counts().tombstones, 2);
    node.write_ok(1, &Frame::of(1).remove(&id, 1, version(5, 1)));
    // Marks from before the removal let only what was removed before go.
    let last = node.heartbeat(1, 0);
    assert!(marks.iter().all(|mark| *mark < last));
    (1..=4).for_each(|session| _ = node.heartbeat(session, last));
    node.tick_after(MILLI);
    node.turn();
    let (outcomes, _) = node.write(1, &Frame::of(1).put(&id, 1, version(5, 1), 10, b"a"));
    assert_eq!((node.shard.counts().tombstones, outcomes), (1, vec![Err(Refusal::Superseded)]));
    let marks: Vec<u64> = (1..=4).map(|session| node.heartbeat(session, 0)).collect();
    (1..=4).for_each(|session| _ = node.heartbeat(session, marks[session as usize - 1]));
    node.tick_after(MILLI);
    node.turn();
    assert_eq!(node.shard.counts().tombstones, 0);
}
