//! What goes from a leader to a follower: batches while the ring reaches, the whole slot otherwise.

use slotcast_engine::{
    batch::Batch,
    compact::CompactionSettings,
    error::Refusal,
    id::{DataId, ReplicaId, Revision, SlotId},
    shard::ReplicaLag,
    slot::FollowError,
    slot_state::SlotState,
};

use super::{Sent, arrive, assert_same, catch_up, held, poll};
use crate::support::{Frame, MILLI, Node, config, data_id, version};

const SLOT: SlotId = SlotId(0);
const REPLICA: ReplicaId = ReplicaId(7);

/// A leader with a session, and a follower that is in step.
fn pair() -> (Node, Node) {
    let (mut leader, mut follower) = (Node::clustered(config(1)), Node::clustered(config(1)));
    leader.shard.lead(SLOT, 1, leader.now).expect("nothing is known of it");
    leader.open(1);
    follower.shard.follow(SLOT, 1, follower.now).expect("nothing is known of it");
    leader.turn();
    catch_up(&mut leader.shard, &mut follower.shard, (REPLICA, SLOT), leader.now);
    (leader, follower)
}

fn put(node: &mut Node, id: &DataId, register: u64, number: u64) {
    let payload = format!("{register} in {number}");
    node.write_ok(
        1,
        &Frame::of(1).name(id).put(id, register, version(number, 1), register, payload.as_bytes()),
    );
}

fn lag(node: &Node) -> ReplicaLag {
    node.shard.replica_lag(SLOT).next().expect("it follows")
}

#[test]
fn a_follower_in_step_gets_the_batches_and_nothing_else() {
    let (mut leader, mut follower) = pair();
    let id = data_id("checkout");
    for number in 1..20 {
        put(&mut leader, &id, number % 4, number);
        let remove = Frame::of(1).remove(&id, (number + 1) % 4, version(number, 9));
        leader.write(1, &remove);
        assert!(lag(&leader).behind > 0 && lag(&leader).lag > 0);
        let sent = arrive(&mut leader.shard, &mut follower.shard, REPLICA, leader.now);
        assert!(!sent.is_empty() && !sent.iter().any(Sent::is_part));
        assert_same(&leader.shard, &follower.shard, SLOT);
        assert_eq!((lag(&leader).behind, lag(&leader).lag), (0, 0));
    }
    assert_eq!(follower.shard.follow_stats().copies, 1, "the empty slot at the beginning");
}

#[test]
fn a_revision_without_a_batch_is_told_too() {
    let (mut leader, mut follower) = pair();
    let id = data_id("checkout");
    put(&mut leader, &id, 1, 1);
    leader.subscribe(1, &id);
    // Asked once more from nothing: the slot moves on without a change.
    leader.subscribe(1, &id);
    arrive(&mut leader.shard, &mut follower.shard, REPLICA, leader.now);
    assert_same(&leader.shard, &follower.shard, SLOT);
    leader.shard.lead(SLOT, 4, leader.now).expect("a larger epoch");
    leader.shard.lead(SLOT, 6, leader.now).expect("a larger epoch");
    put(&mut leader, &id, 2, 1);
    follower.shard.follow(SLOT, 6, follower.now).expect("a larger epoch");
    let sent = catch_up(&mut leader.shard, &mut follower.shard, (REPLICA, SLOT), leader.now);
    assert!(!sent.iter().any(Sent::is_part), "the ring reaches over the epochs");
    assert_same(&leader.shard, &follower.shard, SLOT);
    assert_eq!(held(&follower.shard, SLOT).forks().len(), 2);
}

#[test]
fn a_follower_that_the_ring_does_not_reach_gets_the_whole_slot_while_it_changes() {
    let (mut leader, mut follower) = pair();
    leader.shard.set_ring_bytes(2000, 2000);
    let ids: Vec<DataId> = (0..7).map(|at| data_id(&format!("service-{at}"))).collect();
    for number in 0..300 {
        put(&mut leader, &ids[number % 7], number as u64, 1);
    }
    let mut number = 1;
    let mut parts = 0;
    loop {
        let (sent, more) = poll(&mut leader.shard, REPLICA, 3000);
        for sent in &sent {
            sent.take(&mut follower.shard, leader.now).expect("it follows what was sent before");
            parts += usize::from(sent.is_part());
        }
        let (applied, durable) = follower.shard.followed(SLOT);
        leader.shard.replica_ack(REPLICA, SLOT, applied, durable);
        if !more {
            break;
        }
        if number < 60 {
            number += 1;
            let id = &ids[number as usize % 7];
            put(&mut leader, id, number * 5 % 310, number);
            leader.write(1, &Frame::of(1).remove(id, number * 3 % 310, version(number, 9)));
        }
    }
    assert!(parts > 5, "{parts}");
    assert_same(&leader.shard, &follower.shard, SLOT);
    assert_eq!(leader.shard.replica_stats().lost, 1);
    assert!(!lag(&leader).is_copying && lag(&leader).behind == 0);
}

#[test]
fn until_a_whole_slot_is_there_what_was_there_stays() {
    let (mut leader, mut follower) = pair();
    let id = data_id("checkout");
    (0..50).for_each(|register| put(&mut leader, &id, register, 1));
    arrive(&mut leader.shard, &mut follower.shard, REPLICA, leader.now);
    let before = follower.shard.followed(SLOT);
    (0..50).for_each(|register| put(&mut leader, &id, register, 2));
    leader.shard.replica_open(REPLICA, SLOT, 1, Revision::ZERO).expect("it leads");
    let (sent, more) = poll(&mut leader.shard, REPLICA, 2000);
    assert!(more && sent.iter().all(Sent::is_part));
    sent.iter().for_each(|sent| {
        assert_eq!(sent.take(&mut follower.shard, leader.now), Ok(before.0));
    });
    assert_eq!(follower.list(&id)[&slotcast_engine::id::RegisterId(3)].1, b"3 in 1");
    follower.shard.lead(SLOT, 2, follower.now).expect("a larger epoch");
    assert_eq!(follower.list(&id).len(), 50, "it leads with what was whole");
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_of_it_is_applied() {
    let (mut leader, mut follower) = pair();
    let id = data_id("checkout");
    put(&mut leader, &id, 1, 1);
    put(&mut leader, &id, 2, 1);
    let (sent, _) = poll(&mut leader.shard, REPLICA, 1 << 20);
    let [first, second] = [sent[0].clone(), sent[1].clone()];
    let Sent::Batch { bytes, .. } = &first else { panic!("a batch") };
    let (at, now) = (follower.shard.followed(SLOT).0, leader.now);
    let after = Batch::read(bytes).expect("a batch").revision();
    assert_eq!(second.take(&mut follower.shard, now), Err(FollowError::Gap { at, after }));
    assert_eq!(FollowError::Gap { at, after }.ask_from(at), Some(at));
    for cut in [0, 10, bytes.len() - 16] {
        let result = follower.shard.apply_batch(SLOT, at, &bytes[..cut], now);
        assert!(matches!(result, Err(FollowError::Malformed(_))), "{cut}: {result:?}");
    }
    let result = follower.shard.apply_batch(SlotId(1), at, bytes, now);
    assert!(matches!(result, Err(FollowError::Invalid(_))), "{result:?}");
    assert_eq!(follower.shard.followed(SLOT).0, at);
    first.take(&mut follower.shard, now).expect("it follows");
    assert!(matches!(first.take(&mut follower.shard, now), Err(FollowError::Gap { .. })), "twice");
    second.take(&mut follower.shard, now).expect("it follows");
    assert_same(&leader.shard, &follower.shard, SLOT);
    assert_eq!(leader.shard.apply_batch(SLOT, at, bytes, now), Err(FollowError::NotFollowing));
    let stats = follower.shard.follow_stats();
    assert_eq!((stats.gaps, stats.refused), (2, 4));
}

#[test]
fn a_batch_of_an_epoch_that_is_not_known_yet_is_not_taken() {
    let (mut leader, mut follower) = pair();
    leader.shard.lead(SLOT, 9, leader.now).expect("a larger epoch");
    let at = follower.shard.followed(SLOT).0;
    leader.shard.replica_open(REPLICA, SLOT, 9, at).expect("it leads");
    put(&mut leader, &data_id("checkout"), 1, 1);
    let (sent, _) = poll(&mut leader.shard, REPLICA, 1 << 20);
    let result = sent[0].take(&mut follower.shard, leader.now);
    assert!(matches!(result, Err(FollowError::Revision { epoch: 1, .. })), "{result:?}");
    follower.shard.follow(SLOT, 9, follower.now).expect("a larger epoch");
    catch_up(&mut leader.shard, &mut follower.shard, (REPLICA, SLOT), leader.now);
    assert_same(&leader.shard, &follower.shard, SLOT);
}

#[test]
fn who_does_not_lead_is_not_followed() {
    let (mut leader, mut follower) = pair();
    let shard = &mut follower.shard;
    assert_eq!(shard.replica_open(REPLICA, SLOT, 1, Revision::ZERO), Err(Refusal::SlotMoved));
    let shard = &mut leader.shard;
    assert_eq!(shard.replica_open(REPLICA, SLOT, 2, Revision::ZERO), Err(Refusal::EpochMismatch));
    shard.follow(SLOT, 2, leader.now).expect("a larger epoch");
    assert!(poll(shard, REPLICA, 1000).0.is_empty() && shard.replica_lag(SLOT).next().is_none());
}

#[test]
fn a_leader_that_was_lost_comes_back_and_takes_the_place_of_what_nobody_else_had() {
    let (mut first, mut second) = pair();
    let id = data_id("checkout");
    put(&mut first, &id, 1, 1);
    arrive(&mut first.shard, &mut second.shard, REPLICA, first.now);
    put(&mut first, &id, 2, 1);
    second.shard.lead(SLOT, 2, second.now).expect("a larger epoch");
    assert_eq!(second.registers(&id), [1], "the last was lost");
    second.open(1);
    second.turn();
    put(&mut second, &id, 3, 1);
    first.shard.follow(SLOT, 2, first.now).expect("a larger epoch");
    let sent = catch_up(&mut second.shard, &mut first.shard, (REPLICA, SLOT), second.now);
    assert!(sent.iter().any(Sent::is_part), "beyond the fork there is no way on");
    assert_same(&second.shard, &first.shard, SLOT);
    assert_eq!(first.registers(&id), [1, 3]);
    assert_eq!(first.shard.state(SLOT), SlotState::Following);
}

#[test]
fn a_third_node_goes_on_with_the_new_leader_by_batches() {
    let (mut first, mut second) = pair();
    let mut third = Node::clustered(config(1));
    third.shard.follow(SLOT, 1, third.now).expect("nothing is known of it");
    let id = data_id("checkout");
    put(&mut first, &id, 1, 1);
    catch_up(&mut first.shard, &mut third.shard, (ReplicaId(8), SLOT), first.now);
    // The second is ahead of the third by some batches when the first is lost.
    (2..6).for_each(|register| put(&mut first, &id, register, 1));
    arrive(&mut first.shard, &mut second.shard, REPLICA, first.now);
    second.shard.lead(SLOT, 2, second.now).expect("a larger epoch");
    third.shard.follow(SLOT, 2, third.now).expect("a larger epoch");
    let sent = catch_up(&mut second.shard, &mut third.shard, (ReplicaId(8), SLOT), second.now);
    assert!(sent.len() >= 4 && !sent.iter().any(Sent::is_part), "it kept what it applied: {sent:?}");
    assert_same(&second.shard, &third.shard, SLOT);
}

#[test]
fn a_follower_that_let_go_of_an_idle_name_is_told_it_again() {
    let (mut leader, mut follower) = pair();
    let id = data_id("checkout");
    put(&mut leader, &id, 1, 1);
    leader.write_ok(1, &Frame::of(1).remove(&id, 1, version(2, 1)));
    arrive(&mut leader.shard, &mut follower.shard, REPLICA, leader.now);
    // The tombstone goes, and the follower drops its history sooner than the leader.
    let mark = leader.heartbeat(1, 0);
    leader.outlive_a_lease(1..=1);
    leader.heartbeat(1, mark + 100);
    leader.tick_after(MILLI);
    leader.turn();
    assert_eq!(leader.shard.stats().tombstones_dropped, 0, "the follower may not have the removal");
    arrive(&mut leader.shard, &mut follower.shard, REPLICA, leader.now);
    leader.tick_after(MILLI);
    leader.turn();
    assert_eq!(leader.shard.stats().tombstones_dropped, 1);
    follower
        .shard
        .set_history_limits(slotcast_engine::change_log::ChangeLogLimits { entries_max: 0, age_max: 0 });
    arrive(&mut leader.shard, &mut follower.shard, REPLICA, leader.now);
    let other = data_id("other");
    (1..4).for_each(|number| put(&mut leader, &other, 5, number));
    arrive(&mut leader.shard, &mut follower.shard, REPLICA, leader.now.after(MILLI));
    assert!(held(&follower.shard, SLOT).datum_view(id.key()).is_none(), "it has let go of the name");
    assert!(held(&leader.shard, SLOT).datum_view(id.key()).is_some());
    let unnamed = Frame::of(1).put(&id, 1, version(3, 1), 1, b"again");
    leader.write_ok(1, &unnamed);
    arrive(&mut leader.shard, &mut follower.shard, REPLICA, leader.now);
    assert_same(&leader.shard, &follower.shard, SLOT);
    assert_eq!(follower.registers(&id), [1]);
}

#[test]
fn compaction_forgets_what_it_was_doing_in_a_slot_that_was_replaced() {
    let settings = CompactionSettings {
        interval: 0,
        sleep_interval: 0,
        batch_limit: 2,
        utilization_min: 1.0,
        ..CompactionSettings::default()
    };
    for leaves in [false, true] {
        let (mut leader, mut follower) = pair();
        follower.shard.set_compaction(settings);
        let id = data_id("checkout");
        let sized = |register: u64, number: u64, size: usize| {
            Frame::of(1).name(&id).put(&id, register, version(number, 1), register, &vec![number as u8; size])
        };
        (0..60).for_each(|register| _ = leader.write_ok(1, &sized(register, 1, 150)));
        (0..60).step_by(2).for_each(|register| _ = leader.write_ok(1, &sized(register, 2, 150)));
        arrive(&mut leader.shard, &mut follower.shard, REPLICA, leader.now);
        // A segment is under way, at some offset in it.
        for _ in 0..100 {
            if follower.shard.compaction_stats().records_walked < 3 {
                follower.tick_after(MILLI);
            }
        }
        assert!(follower.shard.compaction_status(follower.now).progress.is_some());
        (0..60).for_each(|register| _ = leader.write_ok(1, &sized(register, 3, 40)));
        (0..60).step_by(2).for_each(|register| _ = leader.write_ok(1, &sized(register, 4, 90)));
        if leaves {
            follower.shard.leave(SLOT, follower.now);
            follower.shard.follow(SLOT, 1, follower.now).expect("the same leader");
        }
        leader.shard.replica_open(REPLICA, SLOT, 1, Revision::ZERO).expect("it leads");
        arrive(&mut leader.shard, &mut follower.shard, REPLICA, leader.now);
        for _ in 0..200 {
            follower.tick_after(MILLI);
        }
        assert_same(&leader.shard, &follower.shard, SLOT);
        assert_eq!(leader.list(&id), follower.list(&id));
    }
}
