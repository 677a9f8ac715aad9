//! When a new leader answers readers, and whose absence from its lists says something.

use slotcast_engine::{
    change_log::ChangeLogLimits,
    digest::Digest,
    id::{DataId, ReaderId, ReplicaId, Revision, SessionId, SlotId, route},
    shard::{HeartbeatAnswer, ShardConfig},
    slot_state::SlotState,
};

use super::{catch_up, held};
use crate::support::{Frame, Held, LEASE, MILLI, Node, Seen, config, data_id, version};

const SLOT: SlotId = SlotId(0);
const SETTLE: u64 = 500 * MILLI;
const REPLICA: ReplicaId = ReplicaId(1);

fn node() -> Node {
    node_that_logs(ChangeLogLimits::default())
}

fn node_that_logs(change_log: ChangeLogLimits) -> Node {
    Node::clustered(ShardConfig { settle: SETTLE, change_log, ..config(1) })
}

/// A leader that answers, with sessions 1 and 2, and a follower in step that both of them have a link to, too.
fn pair(id: &DataId) -> (Node, Node) {
    pair_of((node(), node()), id)
}

fn pair_of((mut leader, mut follower): (Node, Node), id: &DataId) -> (Node, Node) {
    leader.shard.lead(SLOT, 1, leader.now).expect("nothing is known of it");
    for session in 1..=2 {
        leader.open(session);
        follower.open(session);
        let frame = Frame::of(session).name(id).put(id, session, version(1, 1), session, b"a");
        leader.write_ok(session, &frame);
    }
    leader.tick_after(SETTLE);
    leader.turn();
    assert_eq!(leader.shard.state(SLOT), SlotState::Accept);
    follower.now = leader.now;
    follower.shard.follow(SLOT, 1, follower.now).expect("nothing is known of it");
    catch_up(&mut leader.shard, &mut follower.shard, (REPLICA, SLOT), leader.now);
    (leader, follower)
}

fn beat(node: &mut Node, session: u64, routes: u64) -> HeartbeatAnswer {
    let digest = held(&node.shard, SLOT).session_digest(SessionId(session));
    let reader = ReaderId(session as u32);
    node.shard.handle_heartbeat(reader, 0, digest, routes, node.now).expect("a living session")
}

fn sorted(push: &Seen) -> Vec<u64> {
    let (mut puts, removes) = push.registers();
    assert!(removes.is_empty());
    puts.sort_unstable();
    puts
}

#[test]
fn a_promoted_copy_answers_when_every_linked_session_has_confirmed() {
    let id = data_id("checkout");
    let (_, mut node) = pair(&id);
    let routes = route(SLOT, 2);
    assert!(beat(&mut node, 1, routes).stale, "it leads nothing yet");
    node.shard.lead(SLOT, 2, node.now).expect("a larger epoch");
    node.shard.handle_interest(ReaderId(1), &id, Revision::ZERO).expect("it is led");
    let first = beat(&mut node, 1, routes);
    assert!(!first.stale && first.differs.is_none());
    assert_eq!((first.confirmed, first.unsettled), (vec![(SessionId(1), 1)], vec![(SLOT, 1)]));
    let (_, pushes) = node.turn();
    assert!(pushes.is_empty() && node.shard.state(SLOT) == SlotState::Migrating);
    let late = node.shard.handle_heartbeat(ReaderId(2), 0, Digest::default(), routes, node.now);
    assert!(late.expect("alive").differs.is_some(), "it does not hold what is here: nothing is confirmed");
    node.turn();
    assert_eq!(node.shard.state(SLOT), SlotState::Migrating);
    beat(&mut node, 2, routes);
    let (_, pushes) = node.turn();
    assert_eq!(node.shard.state(SLOT), SlotState::Accept);
    assert_eq!((pushes.len(), sorted(&pushes[0])), (1, vec![1, 2]));
    let stats = node.shard.cluster_stats();
    assert_eq!((stats.accepted_confirmed, stats.accepted_late, stats.stale_heartbeats), (1, 0, 1));
}

#[test]
fn who_does_not_confirm_holds_it_up_no_longer_than_settle() {
    let id = data_id("checkout");
    for leaves in [false, true] {
        let (_, mut node) = pair(&id);
        node.shard.lead(SLOT, 2, node.now).expect("a larger epoch");
        beat(&mut node, 1, route(SLOT, 2));
        if leaves {
            node.shard.handle_link_close(ReaderId(2));
        } else {
            node.tick_after(SETTLE - 10 * MILLI);
            node.turn();
            assert_eq!(node.shard.state(SLOT), SlotState::Migrating);
            node.tick_after(10 * MILLI);
        }
        node.turn();
        assert_eq!(node.shard.state(SLOT), SlotState::Accept);
        assert_eq!(node.shard.cluster_stats().accepted_late, u64::from(!leaves));
    }
}

#[test]
fn other_routes_renew_the_lease_and_say_nothing() {
    let id = data_id("checkout");
    let (_, mut node) = pair(&id);
    node.shard.lead(SLOT, 2, node.now).expect("a larger epoch");
    for routes in [0, route(SLOT, 1), route(SLOT, 3)] {
        let answer = beat(&mut node, 1, routes);
        assert!(answer.stale && answer.differs.is_none() && answer.confirmed.is_empty());
        let wrong = node.shard.handle_heartbeat(ReaderId(1), 0, Digest::default(), routes, node.now);
        assert_eq!(wrong.expect("alive").differs, None, "nothing is compared");
    }
    let end = node.now.after(2 * LEASE);
    while node.now < end {
        node.tick_after(500 * MILLI);
        [1, 2].into_iter().for_each(|session| _ = beat(&mut node, session, 0));
        node.turn();
    }
    assert!(node.shard.is_alive(SessionId(1)) && node.registers(&id) == [1, 2]);
}

#[test]
fn a_confirmation_after_the_first_answer_is_told_apart_from_it() {
    let id = data_id("checkout");
    let (_, mut node) = pair(&id);
    node.shard.lead(SLOT, 2, node.now).expect("a larger epoch");
    let routes = route(SLOT, 2);
    beat(&mut node, 1, routes);
    node.tick_after(SETTLE);
    node.turn();
    let before = node.subscribe(1, &id);
    let answer = beat(&mut node, 2, routes);
    assert_eq!(answer.confirmed, [(SessionId(1), 1), (SessionId(2), 1)]);
    let revision = held(&node.shard, SLOT).revision();
    assert!(revision > before.revision);
    beat(&mut node, 2, routes);
    assert_eq!(held(&node.shard, SLOT).revision(), revision, "once is enough");
}

#[test]
fn a_slot_is_settled_a_lease_after_it_was_led_and_a_pause_does_not_count() {
    let id = data_id("checkout");
    let (_, mut node) = pair(&id);
    node.shard.lead(SLOT, 2, node.now).expect("a larger epoch");
    node.tick_after(MILLI);
    // The process stands still for longer than a lease.
    node.tick_after(10 * LEASE);
    let routes = route(SLOT, 2);
    assert_eq!(beat(&mut node, 1, routes).unsettled, [(SLOT, 1)]);
    beat(&mut node, 2, routes);
    let mut waited = 0;
    while !beat(&mut node, 1, routes).unsettled.is_empty() {
        node.tick_after(500 * MILLI);
        waited += 500 * MILLI;
        [1, 2].into_iter().for_each(|session| _ = beat(&mut node, session, routes));
        node.turn();
    }
    assert!((LEASE..LEASE + 1000 * MILLI).contains(&waited), "{waited}");
    node.shard.lead(SLOT, 7, node.now).expect("a larger epoch");
    let answer = beat(&mut node, 1, route(SLOT, 7));
    assert_eq!(answer.unsettled, [(SLOT, 2)]);
    assert_eq!(answer.confirmed, [(SessionId(1), 2), (SessionId(2), 1)], "each turn is confirmed anew");
}

#[test]
fn a_slot_is_not_settled_while_a_lease_runs_of_who_has_not_confirmed_it() {
    let id = data_id("checkout");
    let (_, mut node) = pair(&id);
    node.open(3);
    node.tick_after(MILLI);
    [1, 2].into_iter().for_each(|session| node.shard.handle_bytes(ReaderId(session), node.now));
    let routes = route(SLOT, 2);
    node.shard.lead(SLOT, 2, node.now).expect("a larger epoch");
    let beats = |node: &mut Node, sessions: &[u64]| {
        node.tick_after(500 * MILLI);
        sessions.iter().for_each(|session| _ = beat(node, *session, routes));
        node.turn();
        beat(node, 3, routes).unsettled
    };
    // Two of three are not heard: their leases are held back, and what they own is not decided.
    for _ in 0..(4 * LEASE).div_ceil(500 * MILLI) {
        assert_eq!(beats(&mut node, &[3]), [(SLOT, 1)]);
    }
    assert!([1, 2].iter().all(|session| node.shard.is_alive(SessionId(*session))));
    assert_eq!(beats(&mut node, &[1, 3]), [(SLOT, 1)], "the other may hold what is not here");
    while node.shard.is_alive(SessionId(2)) {
        let unsettled = beats(&mut node, &[1, 3]);
        assert_eq!(unsettled.is_empty(), !node.shard.is_alive(SessionId(2)));
    }
}

#[test]
fn tombstones_of_a_copy_wait_until_all_sessions_have_confirmed_anew() {
    let id = data_id("checkout");
    let (mut leader, mut node) = pair(&id);
    leader.write_ok(1, &Frame::of(1).remove(&id, 1, version(1, 1)));
    super::arrive(&mut leader.shard, &mut node.shard, REPLICA, leader.now);
    node.shard.lead(SLOT, 2, node.now).expect("a larger epoch");
    let mut marks = [0, 0];
    let mut ticks = 0;
    while node.shard.stats().tombstones_dropped == 0 {
        node.tick_after(500 * MILLI);
        for session in [1, 2] {
            // The second only confirms what it learnt first.
            let mark = if session == 1 || ticks > 20 { marks[session - 1] } else { 0 };
            marks[session - 1] = node.heartbeat(session as u64, mark);
        }
        node.turn();
        ticks += 1;
        assert!(ticks < 100, "it never goes");
    }
    assert!(ticks > 20, "{ticks}");
}

#[test]
fn a_reader_goes_on_from_another_node_with_what_it_lacks() {
    let id = data_id("checkout");
    let (mut leader, mut node) = pair(&id);
    let mut reader = Some(leader.subscribe(1, &id));
    leader.write_ok(2, &Frame::of(2).put(&id, 5, version(1, 1), 2, b"late"));
    super::arrive(&mut leader.shard, &mut node.shard, REPLICA, leader.now);
    node.shard.lead(SLOT, 2, node.now).expect("a larger epoch");
    let since = reader.as_ref().map_or(Revision::ZERO, |held| held.revision);
    node.shard.handle_interest(ReaderId(1), &id, since).expect("it is led");
    [1, 2].into_iter().for_each(|session| _ = beat(&mut node, session, route(SLOT, 2)));
    let (_, pushes) = node.turn();
    assert_eq!(pushes.len(), 1);
    assert!(!pushes[0].diff().is_snapshot, "it was on the way to here");
    assert_eq!(pushes[0].registers(), (vec![5], vec![]));
    Held::apply(&mut reader, &pushes[0].diff());
    assert_eq!(reader.map(|held| held.list), Some(node.list(&id)));
}

#[test]
fn a_reader_from_beyond_the_fork_gets_the_whole_list() {
    let id = data_id("checkout");
    let (mut leader, mut node) = pair(&id);
    leader.write_ok(2, &Frame::of(2).put(&id, 5, version(1, 1), 2, b"lost"));
    let since = leader.subscribe(1, &id).revision;
    node.shard.lead(SLOT, 2, node.now).expect("a larger epoch");
    assert!(since < held(&node.shard, SLOT).revision(), "order alone tells nothing");
    node.shard.handle_interest(ReaderId(1), &id, since).expect("it is led");
    [1, 2].into_iter().for_each(|session| _ = beat(&mut node, session, route(SLOT, 2)));
    let (_, pushes) = node.turn();
    assert!(pushes.len() == 1 && pushes[0].diff().is_snapshot);
    assert_eq!(sorted(&pushes[0]), [1, 2]);
}

#[test]
fn a_reader_from_before_the_copy_is_told_what_was_removed_since() {
    let id = data_id("checkout");
    let (mut leader, _) = pair(&id);
    let since = leader.subscribe(2, &id).revision;
    leader.write_ok(1, &Frame::of(1).remove(&id, 1, version(1, 1)));
    let mut node = node();
    [1, 2].into_iter().for_each(|session| node.open(session));
    node.shard.follow(SLOT, 1, node.now).expect("nothing is known of it");
    catch_up(&mut leader.shard, &mut node.shard, (ReplicaId(2), SLOT), leader.now);
    node.shard.lead(SLOT, 2, node.now).expect("a larger epoch");
    assert!(since < held(&node.shard, SLOT).log().floor(), "its history begins behind that");
    let beyond = Revision(Revision::open(1).0 + 1000);
    for (reader, since) in [(1, beyond), (2, since)] {
        node.shard.handle_interest(ReaderId(reader), &id, since).expect("it is led");
    }
    [1, 2].into_iter().for_each(|session| _ = beat(&mut node, session, route(SLOT, 2)));
    let (_, pushes) = node.turn();
    let told: Vec<_> = pushes.iter().map(|push| (push.diff().is_snapshot, push.registers())).collect();
    assert_eq!(
        told,
        [(true, (vec![2], vec![])), (true, (vec![2], vec![1]))],
        "to whom it was of this history"
    );
}

#[test]
fn a_reader_from_beyond_the_fork_hears_what_has_not_changed_since() {
    let id = data_id("checkout");
    let (mut leader, mut node) = pair(&id);
    leader.write_ok(2, &Frame::of(2).put(&id, 2, version(2, 1), 2, b"newer"));
    leader.write_ok(1, &Frame::of(1).put(&id, 1, version(2, 1), 1, b"newer"));
    let since = leader.subscribe(1, &id).revision;
    node.shard.lead(SLOT, 2, node.now).expect("a larger epoch");
    // Session 1 tells its change again before the reader is answered, session 2 does not.
    node.write_ok(1, &Frame::of(1).in_epoch(2).put(&id, 1, version(2, 1), 1, b"newer"));
    node.shard.handle_interest(ReaderId(1), &id, since).expect("it is led");
    // A second question does not make the reader's history this one.
    node.shard.handle_interest(ReaderId(1), &id, Revision::ZERO).expect("it is led");
    [1, 2].into_iter().for_each(|session| _ = beat(&mut node, session, route(SLOT, 2)));
    let (_, pushes) = node.turn();
    let diff = pushes[0].diff();
    assert!(pushes.len() == 1 && diff.is_snapshot);
    assert_eq!(sorted(&pushes[0]), [1, 2]);
    assert_eq!(diff.unchanged().map(|register| register.0).collect::<Vec<_>>(), [2]);
    let held = node.subscribe(2, &id);
    node.shard.handle_interest(ReaderId(2), &id, held.revision).expect("it is led");
    let (_, pushes) = node.turn();
    assert_eq!(pushes[0].diff().unchanged().count(), 0, "it is in this history");
}

/// What its log does not reach any more, for so much was told to it meanwhile.
#[test]
fn a_reader_from_beyond_the_fork_hears_what_has_not_changed_however_much_has_been_told_since() {
    let id = data_id("checkout");
    let short = || node_that_logs(ChangeLogLimits { entries_max: 2, ..ChangeLogLimits::default() });
    let (mut leader, mut node) = pair_of((short(), short()), &id);
    leader.write_ok(2, &Frame::of(2).put(&id, 2, version(2, 1), 2, b"newer"));
    leader.write_ok(1, &Frame::of(1).put(&id, 1, version(2, 1), 1, b"newer"));
    let since = leader.subscribe(1, &id).revision;
    let fork = held(&node.shard, SLOT).revision();
    let unchanged = |node: &mut Node, epoch| -> Vec<u64> {
        node.shard.handle_interest(ReaderId(2), &id, since).expect("it is led");
        [1, 2].into_iter().for_each(|session| _ = beat(node, session, route(SLOT, epoch)));
        let (_, pushes) = node.turn();
        let pushes: Vec<_> = pushes.iter().filter(|push| push.readers.contains(&ReaderId(2))).collect();
        assert!(pushes.len() == 1 && pushes[0].diff().is_snapshot);
        assert!(held(&node.shard, SLOT).log().floor() > fork, "it has forgotten what came first");
        let mut unchanged: Vec<u64> = pushes[0].diff().unchanged().map(|register| register.0).collect();
        unchanged.sort_unstable();
        unchanged
    };
    node.shard.lead(SLOT, 2, node.now).expect("a larger epoch");
    node.write_ok(1, &Frame::of(1).in_epoch(2).put(&id, 1, version(2, 1), 1, b"newer"));
    for register in 3..8 {
        node.write_ok(1, &Frame::of(1).in_epoch(2).put(&id, register, version(1, 1), 1, b"more"));
    }
    // One that returns as it was has changed nothing, and one that takes the place of another has.
    let frame = Frame::of(2).in_epoch(2).remove(&id, 2, version(2, 1)).put(&id, 2, version(3, 1), 2, b"a");
    node.write_ok(2, &frame);
    assert_eq!(unchanged(&mut node, 2), [2]);
    // What has changed between an earlier fork and the latest is not known any more: all that has not changed since may be older.
    node.shard.lead(SLOT, 3, node.now).expect("a larger epoch");
    node.shard.handle_uninterest(ReaderId(2), id.key());
    node.write_ok(1, &Frame::of(1).in_epoch(3).put(&id, 7, version(2, 1), 1, b"again"));
    assert_eq!(unchanged(&mut node, 3), [1, 2, 3, 4, 5, 6]);
}
