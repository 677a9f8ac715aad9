//! Which slots a shard leads and follows: as it is told, in epochs that only rise.

use slotcast_engine::{
    error::Refusal,
    id::{Nanos, ReaderId, Revision, SlotId},
    shard::{ClusterRefusal, Shard, ShardConfig},
    slot_state::SlotState,
};

use super::{catch_up, held};
use crate::support::{Frame, MILLI, Node, config, data_id, version};

const SLOT: SlotId = SlotId(0);

fn node() -> Node {
    Node::clustered(config(1))
}

fn refused_epoch(told: u32, known: u32) -> Result<(), ClusterRefusal> {
    Err(ClusterRefusal::Epoch { slot: SLOT, told, known })
}

#[test]
fn a_fresh_shard_holds_nothing_and_says_so() {
    let mut node = node();
    assert_eq!((node.shard.state(SLOT), node.shard.routes()), (SlotState::Absent, 0));
    node.open(1);
    let id = data_id("checkout");
    let (outcomes, _) = node.write(1, &Frame::of(1).name(&id).put(&id, 1, version(1, 1), 1, b"a"));
    assert_eq!(outcomes, [Err(Refusal::SlotMoved)]);
    assert_eq!(
        node.shard.handle_interest(ReaderId(1), &id, Revision::ZERO),
        Err(Refusal::SlotMoved),
        "nobody is answered for what is not led"
    );
    assert_eq!(node.shard.led().count(), 0);
}

#[test]
fn what_is_let_go_of_is_whole_until_its_memory_is_given_back() {
    let (mut node, id) = (node(), data_id("checkout"));
    node.shard.lead(SLOT, 1, node.now).expect("nothing is known of it");
    node.open(1);
    node.write_ok(1, &Frame::of(1).name(&id).put(&id, 1, version(1, 1), 1, b"a"));
    let revision = held(&node.shard, SLOT).revision();
    assert_eq!(node.shard.released().count(), 0);
    node.shard.leave(SLOT, node.now);
    let released: Vec<_> = node.shard.released().collect();
    assert_eq!((released.len(), released[0].revision()), (1, revision));
    assert_eq!(released[0].records(id.key()).count(), 1);
    node.turn();
    assert_eq!(node.shard.released().count(), 0);
}

#[test]
fn a_slot_is_led_in_epochs_that_rise() {
    let mut node = node();
    node.shard.lead(SLOT, 3, node.now).expect("nothing is known of it");
    assert_eq!(node.shard.state(SLOT), SlotState::Migrating);
    assert_eq!(node.shard.led().collect::<Vec<_>>(), [(SLOT, 3)]);
    assert_eq!(node.shard.routes(), slotcast_engine::id::route(SLOT, 3));
    assert_eq!(node.shard.lead(SLOT, 3, node.now), Ok(()), "told twice");
    assert_eq!(node.shard.lead(SLOT, 2, node.now), refused_epoch(2, 3));
    assert_eq!(node.shard.follow(SLOT, 3, node.now), refused_epoch(3, 3), "that is its own");
    node.shard.lead(SLOT, 5, node.now).expect("a larger epoch");
    assert_eq!(held(&node.shard, SLOT).forks(), [Revision::open(3)]);
    node.shard.follow(SLOT, 6, node.now).expect("a larger epoch");
    assert_eq!((node.shard.state(SLOT), node.shard.routes()), (SlotState::Following, 0));
    assert_eq!(node.shard.lead(SLOT, 6, node.now), refused_epoch(6, 6), "another node opens that");
    node.shard.leave(SLOT, node.now);
    assert_eq!(node.shard.state(SLOT), SlotState::Moved);
    node.turn();
    assert_eq!(node.shard.state(SLOT), SlotState::Absent);
    assert_eq!(node.shard.lead(SLOT, 6, node.now), refused_epoch(6, 6), "it remembers without the slot");
    node.shard.follow(SLOT, 6, node.now).expect("the same leader still");
    node.shard.lead(SLOT, 7, node.now).expect("a larger epoch");
    let elsewhere = ClusterRefusal::Elsewhere { slot: SlotId(9), shard: 0, shards: 1 };
    assert_eq!(node.shard.lead(SlotId(9), 8, node.now), Err(elsewhere));
    assert_eq!(Shard::new(config(1)).lead(SLOT, 9, node.now), Err(ClusterRefusal::Static));
}

#[test]
fn a_moved_slot_may_return_before_its_memory_is_given_back() {
    let mut node = node();
    for (epoch, leads) in [(2, true), (3, false), (4, true)] {
        node.shard.lead(SLOT, epoch * 10, node.now).expect("a larger epoch");
        node.shard.leave(SLOT, node.now);
        if leads {
            node.shard.lead(SLOT, epoch * 10 + 1, node.now).expect("a larger epoch");
            assert_eq!(node.shard.state(SLOT), SlotState::Migrating);
        } else {
            node.shard.follow(SLOT, epoch * 10 + 1, node.now).expect("a larger epoch");
            assert_eq!(node.shard.state(SLOT), SlotState::Following);
        }
        node.turn();
        assert_ne!(node.shard.state(SLOT), SlotState::Absent, "it is held");
    }
}

#[test]
fn a_slot_led_from_nothing_waits_for_all_of_settle_from_the_first_link_on() {
    let settle = 100 * MILLI;
    let mut node = Node::clustered(ShardConfig { settle, ..config(1) });
    node.shard.lead(SLOT, 1, node.now).expect("nothing is known of it");
    node.tick_after(10 * settle);
    node.turn();
    assert_eq!(node.shard.state(SLOT), SlotState::Migrating, "nobody has come yet");
    node.open(1);
    let id = data_id("checkout");
    node.write_ok(1, &Frame::of(1).name(&id).put(&id, 1, version(1, 1), 1, b"a"));
    node.shard.handle_interest(ReaderId(1), &id, Revision::ZERO).expect("it is led");
    let (_, pushes) = node.turn();
    assert!(pushes.is_empty() && !node.shard.is_serving());
    node.tick_after(settle);
    let (_, pushes) = node.turn();
    assert_eq!(node.shard.state(SLOT), SlotState::Accept);
    assert_eq!(pushes.len(), 1, "what was asked for is answered once");
    assert_eq!(pushes[0].registers(), (vec![1], vec![]));
}

#[test]
fn a_demoted_leader_refuses_what_it_has_not_sealed_and_forgets_its_readers() {
    let mut node = node();
    node.shard.lead(SLOT, 1, node.now).expect("nothing is known of it");
    node.open(1);
    let id = data_id("checkout");
    node.write_ok(1, &Frame::of(1).name(&id).put(&id, 1, version(1, 1), 1, b"a"));
    node.subscribe(1, &id);
    let sent = node.send(ReaderId(1), &Frame::of(1).put(&id, 2, version(1, 1), 1, b"b")).expect("taken");
    node.shard.follow(SLOT, 2, node.now).expect("a larger epoch");
    let (acks, pushes) = node.turn();
    assert_eq!(acks, [(ReaderId(1), sent, vec![Err(Refusal::SlotMoved)])]);
    assert!(pushes.is_empty() && node.shard.interests_of(ReaderId(1)) == 0);
    let (outcomes, _) = node.write(1, &Frame::of(1).put(&id, 3, version(1, 1), 1, b"c"));
    assert_eq!(outcomes, [Err(Refusal::SlotMoved)]);
}

#[test]
fn a_larger_epoch_leads_on_with_readers_in_step() {
    let mut node = node();
    node.shard.lead(SLOT, 1, node.now).expect("nothing is known of it");
    node.open(1);
    let id = data_id("checkout");
    node.write_ok(1, &Frame::of(1).name(&id).put(&id, 1, version(1, 1), 1, b"a"));
    let mut reader = Some(node.subscribe(1, &id));
    node.shard.lead(SLOT, 4, node.now).expect("a larger epoch");
    assert_eq!(node.shard.state(SLOT), SlotState::Accept, "it goes on answering");
    let pushes = node.write_ok(1, &Frame::of(1).put(&id, 2, version(1, 1), 1, b"b"));
    assert_eq!(pushes.len(), 1);
    crate::support::Held::apply(&mut reader, &pushes[0].diff());
    let reader = reader.expect("it holds a list");
    assert_eq!((reader.revision.epoch(), reader.list), (4, node.list(&id)));
}

#[test]
fn owners_of_what_a_follower_held_have_a_lease_to_come() {
    let (mut leader, mut follower) = (node(), node());
    leader.shard.lead(SLOT, 1, leader.now).expect("nothing is known of it");
    follower.shard.follow(SLOT, 1, follower.now).expect("nothing is known of it");
    let id = data_id("checkout");
    for session in 1..=3 {
        leader.open(session);
        let frame = Frame::of(session).name(&id).put(&id, session, version(1, 1), session, b"a");
        leader.write_ok(session, &frame);
    }
    // The third has said goodbye to the follower before it came to lead.
    follower.open(3);
    follower.shard.handle_goodbye(ReaderId(3));
    let replica = slotcast_engine::id::ReplicaId(1);
    catch_up(&mut leader.shard, &mut follower.shard, (replica, SLOT), leader.now);
    follower.turn();
    assert_eq!(follower.registers(&id), [1, 2, 3], "a follower removes nothing by itself");
    follower.shard.lead(SLOT, 2, follower.now).expect("a larger epoch");
    follower.turn();
    assert_eq!(follower.registers(&id), [1, 2], "who has ended here has nothing here");
    let end = follower.now.after(crate::support::LEASE + Nanos::SECOND);
    follower.open(2);
    while follower.now < end {
        follower.tick_after(500 * MILLI);
        follower.send(ReaderId(2), &Frame::of(2)).expect("it lives");
        follower.turn();
    }
    assert_eq!(follower.registers(&id), [2], "who has not come in a lease is gone");
}
