//! Each fault that may be planted does what it says, so that a simulation which looks for it has something to find.

use slotcast_engine::{
    faults::Fault,
    id::{DataId, ReaderId, ReplicaId, Revision, SlotId},
};

use super::{arrive, catch_up, held};
use crate::support::{Frame, MILLI, Node, config, data_id, version};

const SLOT: SlotId = SlotId(0);
const REPLICA: ReplicaId = ReplicaId(1);

fn pair(leader_has: Option<Fault>, follower_has: Option<Fault>) -> (Node, Node, DataId) {
    let (mut leader, mut follower) = (Node::clustered(config(1)), Node::clustered(config(1)));
    leader.shard.lead(SLOT, 1, leader.now).expect("nothing is known of it");
    follower.shard.follow(SLOT, 1, follower.now).expect("nothing is known of it");
    leader.open(1);
    follower.open(1);
    let id = data_id("checkout");
    leader.write_ok(1, &Frame::of(1).name(&id).put(&id, 1, version(1, 1), 1, b"a"));
    catch_up(&mut leader.shard, &mut follower.shard, (REPLICA, SLOT), leader.now);
    leader.shard.plant(leader_has);
    follower.shard.plant(follower_has);
    (leader, follower, id)
}

#[test]
fn a_follower_says_that_it_has_what_it_has_not() {
    for fault in [None, Some(Fault::AckBeforeApply)] {
        let (mut leader, mut follower, id) = pair(None, fault);
        leader.write_ok(1, &Frame::of(1).put(&id, 2, version(1, 1), 1, b"b"));
        arrive(&mut leader.shard, &mut follower.shard, REPLICA, leader.now);
        assert_eq!(leader.shard.replica_lag(SLOT).map(|lag| lag.behind).collect::<Vec<_>>(), [0]);
        follower.shard.lead(SLOT, 2, follower.now).expect("a larger epoch");
        assert_eq!(follower.registers(&id).len(), if fault.is_none() { 2 } else { 1 });
    }
}

#[test]
fn a_tombstone_goes_that_nobody_has_confirmed() {
    for fault in [None, Some(Fault::TombstoneEarly)] {
        let (mut leader, _, id) = pair(fault, None);
        leader.write_ok(1, &Frame::of(1).remove(&id, 1, version(1, 1)));
        leader.tick_after(MILLI);
        leader.turn();
        assert_eq!(leader.shard.stats().tombstones_dropped, u64::from(fault.is_some()));
    }
}

#[test]
fn a_reader_is_told_a_difference_to_what_was_lost() {
    for fault in [None, Some(Fault::DiffAcrossFork)] {
        let (mut leader, mut follower, id) = pair(None, fault);
        leader.write_ok(1, &Frame::of(1).put(&id, 2, version(1, 1), 1, b"lost"));
        let since = held(&leader.shard, SLOT).revision();
        follower.shard.lead(SLOT, 2, follower.now).expect("a larger epoch");
        follower.turn();
        follower.shard.handle_interest(ReaderId(1), &id, since).expect("it is led");
        let (_, pushes) = follower.turn();
        assert_eq!(pushes[0].diff().is_snapshot, fault.is_none());
    }
}

#[test]
fn a_snapshot_says_an_older_revision() {
    for fault in [None, Some(Fault::SnapshotStampedOld)] {
        let (mut leader, _, id) = pair(fault, None);
        let other = data_id("other");
        leader.write_ok(1, &Frame::of(1).name(&other).put(&other, 1, version(1, 1), 1, b"later"));
        leader.shard.handle_interest(ReaderId(1), &id, Revision::ZERO).expect("it is led");
        let (_, pushes) = leader.turn();
        assert_eq!(pushes[0].diff().to == held(&leader.shard, SLOT).revision(), fault.is_none());
    }
}
