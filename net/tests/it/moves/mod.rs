//! Slots that move while a session is at work: what it tells new leaders, and what it makes of what it hears from both.

mod claims;

mod contents;

pub mod scene;

use slotcast_engine::{
    batch::{ChangeKind, Durability},
    digest::Digest,
    error::Refusal,
    id::{Nanos, RegisterId, Revision, SessionId, SlotId},
};
use slotcast_net::wire::Message;

use scene::{MS, OWN, Scene, Told, Word, address, at, data_id, kinds, record};

const OTHER: SessionId = SessionId(88);
const NONE: Digest = Digest { sum: 0, count: 0 };

fn route(slot: u16, epoch: u32) -> u64 {
    slotcast_engine::id::route(SlotId(slot), epoch)
}

fn changes(told: &[Told]) -> Vec<(ChangeKind, u64, u64)> {
    let of = |told: &Told| match told {
        Told::Write { changes, .. } => changes.clone(),
        _ => Vec::new(),
    };
    told.iter().flat_map(of).map(|(kind, register, version)| (kind, register.0, version)).collect()
}

fn puts(told: &[Told]) -> Vec<(u64, u64)> {
    let puts = changes(told).into_iter().filter(|(kind, ..)| *kind == ChangeKind::Put);
    puts.map(|(_, register, version)| (register, version)).collect()
}

fn sequence(told: &[Told]) -> u64 {
    let of = |told: &Told| match told {
        Told::Write { sequence, .. } => Some(*sequence),
        _ => None,
    };
    told.iter().find_map(of).expect("a write")
}

fn digest(told: &[Told]) -> Digest {
    let of = |told: &Told| match told {
        Told::Heartbeat { digest, .. } => Some(*digest),
        _ => None,
    };
    told.iter().rev().find_map(of).expect("a heartbeat")
}

/// Node 1 leads all; client 0 subscribes to a data id of slot 0 and sees a list of two registrations of another session.
fn with_a_list(nodes: u32) -> (Scene, slotcast_engine::id::DataId) {
    let mut scene = Scene::settled(nodes);
    let id = data_id(0, 0);
    let client = scene.client(1);
    scene.subscribe(client, &id, Revision::ZERO, 0);
    assert_eq!(kinds(&scene.take(1)), ["subscribe"]);
    let list = [1, 2].map(|register| (record(&id, register, b"a"), OTHER));
    scene.tell_list(1, &id, (Revision::ZERO, at(1, 10)), &[], &list);
    assert_eq!(scene.list(client, &id), [1, 2]);
    (scene, id)
}

#[test]
fn with_the_first_table_all_nodes_are_linked_to_and_leaders_told_which_slots() {
    let mut scene = Scene::new(3);
    let (client, id) = (scene.client(1), data_id(1, 0));
    scene.subscribe(client, &id, Revision::ZERO, 0);
    scene.publish(client, &id, (7, 1), Durability::Ephemeral);
    assert!(!scene.session.is_ready(), "there is no table");
    scene.unreachable.push(address(3));
    scene.move_to(&[(0, 1, 4), (1, 2, 6), (2, 1, 4)]);
    assert!(scene.is_linked(1) && scene.is_linked(2) && !scene.is_linked(3));
    let told = scene.take(2);
    assert_eq!(kinds(&told), ["write", "heartbeat", "subscribe"]);
    assert_eq!(puts(&told), [(7, 1)]);
    assert_eq!(digest(&told).count, 1);
    let Told::Heartbeat { routes, table_epoch, .. } = told[1] else { panic!("{told:?}") };
    assert_eq!((routes, table_epoch), (route(1, 6), 1));
    let Told::Heartbeat { routes, digest, .. } = scene.take(1)[0] else { panic!() };
    assert_eq!((routes, digest), (route(0, 4).wrapping_add(route(2, 4)), NONE));
    assert!(scene.session.is_ready(), "node 3 leads nothing, and nobody leads slot 3");
    assert_eq!(scene.metrics.leaderless_slots.get(), 1);
    scene.move_to(&[(0, 3, 5)]);
    assert!(!scene.session.is_ready(), "a leader is not linked to");
    assert_eq!(scene.metrics.leader_links_down.get(), 1);
}

#[test]
fn a_write_in_flight_goes_to_the_new_leader_whose_outcome_alone_counts() {
    let (mut scene, id) = with_a_list(2);
    let (publisher, other) = (scene.client(2), data_id(0, 1));
    let (settled, _) = scene.publish(publisher, &other, (4, 1), Durability::Ephemeral);
    let first = sequence(&scene.take(1));
    scene.acknowledge(1, first, &[Ok(at(1, 11))]);
    assert_eq!(scene.clients[publisher].acks, [(settled, vec![Ok(at(1, 11))])]);
    let (moved, _) = scene.publish(publisher, &id, (5, 1), Durability::Ephemeral);
    let in_flight = sequence(&scene.take(1));
    scene.move_to(&[(0, 2, 2)]);
    let told = scene.take(2);
    assert_eq!(kinds(&told), ["write", "heartbeat", "subscribe"], "in this order");
    assert_eq!(puts(&told), [(5, 1)], "what is acknowledged is not sent again");
    assert_eq!(digest(&told).count, 2, "the digest tells of it all the same");
    let Told::Subscribe(items) = &told[2] else { panic!() };
    assert_eq!(items[..], [(id.key(), at(1, 10))]);
    assert_eq!(scene.take(1), [Told::Unsubscribe(vec![id.key()])]);
    assert_eq!(scene.metrics.moved_writes_resent.get(), 1);
    // The former leader had it, and says so. Whether the new one has is another question.
    scene.acknowledge(1, in_flight, &[Ok(at(1, 12))]);
    assert_eq!(scene.clients[publisher].acks.len(), 1);
    assert_eq!(scene.metrics.outcomes_of_former_leaders.get(), 1);
    scene.acknowledge(2, sequence(&told), &[Ok(at(2, 3))]);
    assert_eq!(scene.clients[publisher].acks[1..], [(moved, vec![Ok(at(2, 3))])]);
    scene.pass(1000 * MS);
    assert_eq!(digest(&scene.take(1)), NONE, "the former leader is told that nothing is held there");
}

#[test]
fn a_slot_that_comes_back_is_told_again_and_what_was_sent_before_does_not_count() {
    let (mut scene, id) = with_a_list(2);
    let publisher = scene.client(2);
    let (write, _) = scene.publish(publisher, &id, (5, 1), Durability::Ephemeral);
    let first = sequence(&scene.take(1));
    scene.move_to(&[(0, 2, 2)]);
    let second = sequence(&scene.take(2));
    scene.move_to(&[(0, 1, 3)]);
    let told = scene.take(1);
    assert_eq!(kinds(&told), ["unsubscribe", "write", "heartbeat", "subscribe"]);
    scene.acknowledge(1, first, &[Ok(at(1, 11))]);
    scene.acknowledge(2, second, &[Err(Refusal::SlotMoved)]);
    assert!(scene.clients[publisher].acks.is_empty());
    scene.acknowledge(1, sequence(&told), &[Ok(at(3, 1))]);
    assert_eq!(scene.clients[publisher].acks, [(write, vec![Ok(at(3, 1))])]);
}

#[test]
fn two_slots_move_at_once_each_with_what_is_its_own() {
    let mut scene = Scene::settled(3);
    let client = scene.client(1);
    let ids = [0, 1, 2].map(|slot| data_id(slot, 0));
    for (register, id) in ids.iter().enumerate() {
        scene.publish(client, id, (register as u64, 1), Durability::Ephemeral);
        scene.subscribe(client, id, Revision::ZERO, 0);
    }
    let sent = scene.take(1);
    assert_eq!(puts(&sent), [(0, 1), (1, 1), (2, 1)]);
    scene.move_to(&[(0, 2, 2), (1, 3, 2)]);
    for (node, register) in [(2, 0), (3, 1)] {
        let told = scene.take(node);
        assert_eq!(kinds(&told), ["write", "heartbeat", "subscribe"]);
        assert_eq!((puts(&told), digest(&told).count), (vec![(register, 1)], 1));
        let Told::Subscribe(items) = &told[2] else { panic!() };
        assert_eq!(items[..], [(ids[register as usize].key(), Revision::ZERO)], "no list was told yet");
    }
    scene.pass(1100 * MS);
    let told = scene.take(1);
    let Some(Told::Heartbeat { routes, .. }) = told.last() else { panic!("{told:?}") };
    assert_eq!(*routes, route(2, 1).wrapping_add(route(3, 1)));
    assert_eq!(digest(&told).count, 1);
    scene.acknowledge(1, 3, &[Ok(at(1, 4))]);
    assert_eq!(scene.clients[client].acks.len(), 1, "what stays is answered as ever");
}

#[test]
fn a_new_leader_that_lacks_registrations_is_told_them_and_asked_at_once() {
    let mut scene = Scene::settled(2);
    let (client, id) = (scene.client(1), data_id(0, 0));
    scene.publish(client, &id, (5, 1), Durability::Ephemeral);
    let first = sequence(&scene.take(1));
    scene.acknowledge(1, first, &[Ok(at(1, 1))]);
    scene.move_to(&[(0, 2, 2)]);
    assert_eq!(kinds(&scene.take(2)), ["heartbeat"]);
    let word =
        Word { unsettled: vec![(SlotId(0), 7)], settled: true, differs: Some(Vec::new()), ..Word::default() };
    scene.answer_heartbeat(2, word.clone());
    assert_eq!(scene.take(2), [Told::DigestRequest(SlotId(0))]);
    scene.say(2, &Message::DatumDigests(SlotId(0), Vec::new()));
    let told = scene.take(2);
    assert_eq!(puts(&told), [(5, 1)]);
    assert_eq!(told[1], Told::Holds(id.key(), vec![RegisterId(5)]));
    scene.pass(6 * MS);
    assert_eq!(kinds(&scene.take(2)), ["heartbeat"], "readers wait for it");
    scene.answer_heartbeat(2, Word { differs: None, confirmed: vec![(OWN, 7)], ..word });
    scene.pass(900 * MS);
    assert!(scene.take(2).is_empty());
    scene.pass(200 * MS);
    assert_eq!(kinds(&scene.take(2)), ["heartbeat"], "each second while the slot is not settled");
}

#[test]
fn what_another_session_has_not_told_the_new_leader_yet_stays_until_it_has() {
    let (mut scene, id) = with_a_list(2);
    scene.take(1);
    // Node 2 is old, and has settled long ago: that says nothing about a slot that it leads from now on.
    scene.answer_heartbeat(2, Word { settled: true, confirmed: vec![(OTHER, 3)], ..Word::default() });
    scene.move_to(&[(0, 2, 2)]);
    assert_eq!(kinds(&scene.take(2)), ["heartbeat", "subscribe"]);
    let pushes = scene.clients[0].pushes;
    // A replica that lacks the second registration, answered ahead of the heartbeat.
    scene.tell_list(2, &id, (Revision::ZERO, at(2, 1)), &[], &[(record(&id, 1, b"a"), OTHER)]);
    assert_eq!((scene.list(0, &id), scene.clients[0].pushes), (vec![1, 2], pushes));
    let unsettled = Word { settled: true, unsettled: vec![(SlotId(0), 4)], ..Word::default() };
    scene.answer_heartbeat(2, Word { confirmed: vec![(OTHER, 3)], ..unsettled.clone() });
    assert!(scene.take(2).is_empty(), "the other session was confirmed before the slot came");
    scene.pass(1000 * MS);
    scene.answer_heartbeat(2, Word { confirmed: vec![(OTHER, 4)], ..unsettled });
    let told = scene.take(2);
    assert_eq!(told.last(), Some(&Told::Subscribe(vec![(id.key(), Revision::ZERO)])));
    scene.tell_list(2, &id, (Revision::ZERO, at(2, 2)), &[], &[(record(&id, 1, b"a"), OTHER)]);
    assert_eq!(scene.list(0, &id), [1], "now the absence counts");
}

#[test]
fn what_this_session_holds_is_not_taken_for_removed_where_it_is_not_repaired_yet() {
    let (mut scene, id) = with_a_list(2);
    let publisher = scene.client(2);
    let (_, own) = scene.publish(publisher, &id, (5, 1), Durability::Ephemeral);
    let first = sequence(&scene.take(1));
    scene.acknowledge(1, first, &[Ok(at(1, 11))]);
    scene.tell_list(1, &id, (at(1, 10), at(1, 11)), &[], &[(own, OWN)]);
    assert_eq!(scene.list(0, &id), [1, 2, 5]);
    scene.move_to(&[(0, 2, 2)]);
    let others = [1, 2].map(|register| (record(&id, register, b"a"), OTHER));
    scene.tell_list(2, &id, (Revision::ZERO, at(2, 1)), &[], &others);
    assert_eq!(scene.list(0, &id), [1, 2, 5]);
    scene.take(2);
    scene.remove(publisher, &id, 5, 2);
    scene.answer_heartbeat(2, Word { settled: true, confirmed: vec![(OWN, 1)], ..Word::default() });
    scene.tell_list(2, &id, (Revision::ZERO, at(2, 2)), &[], &others);
    assert_eq!(scene.list(0, &id), [1, 2], "what it no longer holds is gone");
}

#[test]
fn a_new_leader_goes_on_from_the_list_held_and_only_changes_are_pushed() {
    let (mut scene, id) = with_a_list(2);
    scene.move_to(&[(0, 2, 2)]);
    let pushes = scene.clients[0].pushes;
    // By its lineage it knows the revision held.
    scene.tell_list(2, &id, (at(1, 10), at(2, 1)), &[], &[]);
    assert_eq!(scene.clients[0].pushes, pushes);
    scene.tell_list(2, &id, (at(2, 1), at(2, 2)), &[1], &[(record(&id, 3, b"a"), OTHER)]);
    assert_eq!((scene.list(0, &id), scene.clients[0].pushes), (vec![2, 3], pushes + 1));
    scene.move_to(&[(0, 1, 3)]);
    scene.agree(1);
    // It does not know the revision held: a snapshot. The same list is no news.
    let same = [2, 3].map(|register| (record(&id, register, b"a"), OTHER));
    scene.tell_list(1, &id, (Revision::ZERO, at(3, 1)), &[], &same);
    assert_eq!(scene.clients[0].pushes, pushes + 1);
    let differs = [(record(&id, 2, b"a"), OTHER), (record(&id, 3, b"b"), OTHER)];
    scene.tell_list(1, &id, (Revision::ZERO, at(3, 2)), &[], &differs);
    assert_eq!((scene.list(0, &id), scene.clients[0].pushes), (vec![2, 3], pushes + 2));
    assert_eq!(scene.metrics.snapshots.get(), 1, "the first answer, and never again");
}

#[test]
fn what_a_former_leader_still_tells_is_not_listened_to() {
    let (mut scene, id) = with_a_list(2);
    scene.move_to(&[(0, 2, 2)]);
    let pushes = scene.clients[0].pushes;
    scene.tell_list(1, &id, (at(1, 10), at(1, 11)), &[2], &[]);
    assert_eq!((scene.list(0, &id), scene.clients[0].pushes), (vec![1, 2], pushes));
    scene.tell_list(2, &id, (at(1, 10), at(2, 1)), &[], &[(record(&id, 3, b"a"), OTHER)]);
    scene.tell_list(1, &id, (at(1, 11), at(1, 12)), &[1], &[]);
    assert_eq!(scene.list(0, &id), [1, 2, 3]);
    assert_eq!(scene.metrics.diffs_of_former_leaders.get(), 2);
}

#[test]
fn what_a_leader_said_when_it_led_before_is_not_listened_to() {
    let (mut scene, id) = with_a_list(2);
    // Node 2 has led meanwhile, and this session hears of that only when it is over.
    let before = scene.table.clone();
    scene.plan(&[(0, 2, 2)]);
    scene.plan(&[(0, 1, 3)]);
    scene.tell_since(&before);
    // Under way since before: a change that is on no way to what is led now.
    scene.tell_list(1, &id, (at(1, 10), at(1, 11)), &[1], &[(record(&id, 9, b"a"), OTHER)]);
    assert_eq!(scene.list(0, &id), [1, 2]);
    scene.tell_list(1, &id, (at(1, 10), at(3, 1)), &[], &[(record(&id, 3, b"a"), OTHER)]);
    assert_eq!(scene.list(0, &id), [1, 2, 3]);
}

#[test]
fn only_slots_that_a_heartbeat_spoke_of_are_repaired_by_its_answer() {
    let mut scene = Scene::settled(2);
    let (client, id) = (scene.client(1), data_id(0, 0));
    scene.publish(client, &id, (5, 1), Durability::Ephemeral);
    let first = sequence(&scene.take(1));
    scene.acknowledge(1, first, &[Ok(at(1, 1))]);
    scene.move_to(&[(1, 2, 2)]);
    assert_eq!(kinds(&scene.take(2)), ["heartbeat"]);
    scene.move_to(&[(0, 2, 2)]);
    assert_eq!(kinds(&scene.take(2)), ["heartbeat"]);
    let differs = Word { settled: true, differs: Some(Vec::new()), ..Word::default() };
    scene.answer_heartbeat(2, differs.clone());
    assert!(scene.take(2).is_empty(), "the first heartbeat did not speak of slot 0");
    scene.answer_heartbeat(2, differs);
    assert_eq!(scene.take(2), [Told::DigestRequest(SlotId(0))]);
}

#[test]
fn a_removal_in_flight_at_the_move_is_told_first_and_nothing_comes_back() {
    let (mut scene, id) = with_a_list(2);
    let publisher = scene.client(2);
    let (_, own) = scene.publish(publisher, &id, (5, 1), Durability::Ephemeral);
    let first = sequence(&scene.take(1));
    scene.acknowledge(1, first, &[Ok(at(1, 11))]);
    scene.tell_list(1, &id, (at(1, 10), at(1, 11)), &[], &[(own, OWN)]);
    let removal = scene.remove(publisher, &id, 5, 2);
    let lost = sequence(&scene.take(1));
    scene.tell_list(1, &id, (at(1, 11), at(1, 12)), &[5], &[]);
    scene.move_to(&[(0, 2, 2)]);
    let told = scene.take(2);
    assert_eq!(kinds(&told), ["write", "heartbeat", "subscribe"]);
    assert_eq!(changes(&told), [(ChangeKind::Put, 5, 1), (ChangeKind::Remove, 5, 2)]);
    assert_eq!(digest(&told), NONE);
    // The former leader's word would end the matter, and the new one would keep the registration.
    scene.acknowledge(1, lost, &[Ok(at(1, 12))]);
    scene.move_to(&[(0, 1, 3)]);
    let told = scene.take(1);
    assert!(matches!(told[1], Told::Write { .. }), "it is told until a leader confirms it: {told:?}");
    scene.acknowledge(1, sequence(&told), &[Ok(at(3, 1)); 2]);
    assert_eq!(scene.clients[publisher].acks.last(), Some(&(removal, vec![Ok(at(3, 1))])));
    scene.move_to(&[(0, 2, 4)]);
    assert_eq!(kinds(&scene.take(2)), ["unsubscribe", "heartbeat", "subscribe"], "it is over");
}

/// A leader from before the put lists what an earlier session of the client has told. It takes no removal of that but by its owner,
/// who would then be known to hold nothing, and readers go back to the older content.
#[test]
fn a_removal_goes_to_a_leader_that_may_lack_the_put_together_with_that() {
    let (mut scene, id) = with_a_list(2);
    let publisher = scene.client(2);
    scene.publish(publisher, &id, (5, 1), Durability::Ephemeral);
    scene.publish(publisher, &id, (6, 1), Durability::Ephemeral);
    let first = sequence(&scene.take(1));
    scene.acknowledge(1, first, &[Ok(at(1, 11))]);
    scene.acknowledge(1, first + 1, &[Ok(at(1, 12))]);
    scene.move_to(&[(0, 0, 2)]);
    let removal = scene.remove(publisher, &id, 5, 2);
    assert!(changes(&scene.take(1)).is_empty(), "nobody leads");
    scene.move_to(&[(0, 2, 3)]);
    let told = scene.take(2);
    assert_eq!(kinds(&told), ["write", "heartbeat", "subscribe"], "in one frame");
    assert_eq!(changes(&told), [(ChangeKind::Put, 5, 1), (ChangeKind::Remove, 5, 2)]);
    scene.acknowledge(2, sequence(&told), &[Ok(at(3, 1)); 2]);
    assert_eq!(scene.clients[publisher].acks.last(), Some(&(removal, vec![Ok(at(3, 1))])));
    // The leader has been told of this one by nobody but the former, if at all.
    scene.remove(publisher, &id, 6, 2);
    let told = scene.take(2);
    assert_eq!(kinds(&told), ["write"]);
    assert_eq!(changes(&told), [(ChangeKind::Put, 6, 1), (ChangeKind::Remove, 6, 2)]);
    scene.acknowledge(2, sequence(&told), &[Err(Refusal::Superseded), Err(Refusal::NotOwner)]);
    // What it has acknowledged itself is not told twice.
    scene.publish(publisher, &id, (7, 1), Durability::Ephemeral);
    let put = sequence(&scene.take(2));
    scene.acknowledge(2, put, &[Ok(at(3, 2))]);
    scene.remove(publisher, &id, 7, 2);
    assert_eq!(changes(&scene.take(2)), [(ChangeKind::Remove, 7, 2)]);
}

#[test]
fn a_leader_that_does_not_know_yet_is_asked_again_and_the_client_told_nothing() {
    let (mut scene, id) = with_a_list(2);
    scene.move_to(&[(0, 2, 2)]);
    scene.agree(2);
    let (publisher, fresh) = (scene.client(2), data_id(0, 1));
    scene.take(2);
    scene.subscribe(publisher, &fresh, Revision::ZERO, 0);
    scene.say(2, &Message::SubscribeRefused { datum: fresh.key(), code: Refusal::SlotMoved.code() });
    assert_eq!(kinds(&scene.take(2)), ["subscribe", "heartbeat"], "a heartbeat asks who is behind");
    let (write, _) = scene.publish(publisher, &id, (5, 1), Durability::Ephemeral);
    let (persistent, _) = scene.publish(publisher, &id, (6, 1), Durability::Persistent);
    let told = scene.take(2);
    assert_eq!(kinds(&told), ["write", "write"]);
    let mut next = sequence(&told);
    let (mut pauses, mut since) = (Vec::new(), scene.now);
    for round in 0..7 {
        scene.acknowledge(2, next, &[Err(Refusal::SlotMoved)]);
        scene.acknowledge(2, next + 1, &[Err(Refusal::SlotMoved)]);
        scene.say(2, &Message::SubscribeRefused { datum: fresh.key(), code: Refusal::SlotMoved.code() });
        while !kinds(&scene.take(2)).contains(&"subscribe") {
            scene.pass(MS);
        }
        pauses.push(scene.now.since(since) / MS);
        (next, since) = (next + 2, scene.now);
        assert!(round > 5 || scene.clients[publisher].acks.is_empty());
    }
    for (pause, wanted) in pauses.iter().zip([20, 40, 80, 160, 320, 640, 1000]) {
        assert!((wanted..=wanted + 1).contains(pause), "{pauses:?}");
    }
    scene.acknowledge(2, next, &[Ok(at(2, 1))]);
    scene.acknowledge(2, next + 1, &[Ok(at(2, 2))]);
    let acks = &scene.clients[publisher].acks;
    assert_eq!(acks[..], [(write, vec![Ok(at(2, 1))]), (persistent, vec![Ok(at(2, 2))])]);
    assert!(scene.clients[publisher].refused.is_empty());
}

/// A put that its leader asks for once more would come behind the removal that followed it, and stay.
#[test]
fn the_writes_of_a_persistent_registration_never_overtake_each_other() {
    let (mut scene, id) = with_a_list(2);
    let (publisher, other) = (scene.client(2), scene.client(3));
    let (put, _) = scene.publish(publisher, &id, (6, 1), Durability::Persistent);
    let removal = scene.remove_persistent(publisher, &id, 6, 2);
    let (again, _) = scene.publish(other, &id, (6, 3), Durability::Persistent);
    let (beside, _) = scene.publish(other, &id, (7, 1), Durability::Persistent);
    let told = scene.take(1);
    assert_eq!((kinds(&told), puts(&told)), (vec!["write", "write"], vec![(6, 1), (7, 1)]));
    scene.acknowledge(1, sequence(&told) + 1, &[Ok(at(1, 11))]);
    scene.acknowledge(1, sequence(&told), &[Err(Refusal::NameUnknown)]);
    let told = scene.take(1);
    assert_eq!(puts(&told), [(6, 1)], "the name is told once more, and what waits goes on waiting");
    scene.move_to(&[(0, 2, 2)]);
    let told = scene.take(2);
    assert_eq!(puts(&told), [(6, 1)], "at the next leader, too");
    scene.acknowledge(2, sequence(&told), &[Err(Refusal::SlotMoved)]);
    scene.pass(20 * MS);
    let told = scene.take(2);
    assert_eq!(puts(&told), [(6, 1)]);
    scene.acknowledge(2, sequence(&told), &[Ok(at(2, 1))]);
    let told = scene.take(2);
    let Told::Write { sequence: next, changes, .. } = &told[0] else { panic!("{told:?}") };
    assert_eq!(changes[..], [(ChangeKind::Remove, RegisterId(6), 2)]);
    scene.acknowledge(2, *next, &[Ok(at(2, 2))]);
    let told = scene.take(2);
    assert_eq!(puts(&told), [(6, 3)]);
    scene.acknowledge(2, sequence(&told), &[Ok(at(2, 3))]);
    assert_eq!(scene.clients[publisher].acks, [(put, vec![Ok(at(2, 1))]), (removal, vec![Ok(at(2, 2))])]);
    assert_eq!(scene.clients[other].acks, [(beside, vec![Ok(at(1, 11))]), (again, vec![Ok(at(2, 3))])]);
}

/// A leader that has not heard of a data id, or has forgotten it, can remember only with its name that something was removed from
/// it. Else a put that another session still has under way would undo the removal for ever.
#[test]
fn a_persistent_removal_always_comes_with_its_name() {
    let (mut scene, id) = (Scene::settled(2), data_id(0, 0));
    let publisher = scene.client(2);
    for version in 1..3 {
        scene.remove_persistent(publisher, &id, 6, version);
        let told = scene.take(1);
        assert!(matches!(told[..], [Told::Write { names: 1, .. }]), "{told:?}");
        scene.acknowledge(1, sequence(&told), &[Ok(at(1, version))]);
    }
    // And so to the next leader.
    scene.remove_persistent(publisher, &id, 6, 3);
    scene.take(1);
    scene.move_to(&[(0, 2, 2)]);
    let told = scene.take(2);
    assert!(told.iter().any(|told| matches!(told, Told::Write { names: 1, .. })), "{told:?}");
}

/// A client that comes to another session takes its registration over there, to have it removed, in one version. When a former
/// owner's removal has come first, the put is too late, and the removal right all the same.
#[test]
fn the_outcome_of_a_put_is_not_that_of_the_removal_behind_it() {
    let (mut scene, id) = with_a_list(2);
    let publisher = scene.client(2);
    for (version, outcome) in [(3, Err(Refusal::Superseded)), (4, Ok(at(1, 13)))] {
        let (put, _) = scene.publish(publisher, &id, (5, version), Durability::Ephemeral);
        let removal = scene.remove(publisher, &id, 5, version);
        let told = scene.take(1);
        assert_eq!(kinds(&told), ["write", "write"]);
        scene.acknowledge(1, sequence(&told), &[outcome]);
        assert_eq!(scene.clients[publisher].acks.split_off(0), [(put, vec![outcome])]);
        scene.acknowledge(1, sequence(&told) + 1, &[outcome, Ok(at(1, 14))]);
        assert_eq!(scene.clients[publisher].acks.split_off(0), [(removal, vec![Ok(at(1, 14))])]);
    }
    scene.publish(publisher, &id, (5, 6), Durability::Ephemeral);
    scene.remove(publisher, &id, 5, 6);
    let told = scene.take(1);
    scene.acknowledge(1, sequence(&told), &[Ok(at(1, 15))]);
    scene.move_to(&[(0, 2, 2)]);
    let told = changes(&scene.take(2));
    assert_eq!(
        told,
        [(ChangeKind::Put, 5, 6), (ChangeKind::Remove, 5, 6)],
        "the removal is still to be told"
    );
}

#[test]
fn what_waits_is_told_at_once_when_the_leader_agrees_and_when_there_is_another() {
    let (mut scene, id) = with_a_list(2);
    let publisher = scene.client(2);
    let (write, _) = scene.publish(publisher, &id, (5, 1), Durability::Ephemeral);
    let first = sequence(&scene.take(1));
    scene.acknowledge(1, first, &[Err(Refusal::SlotMoved)]);
    assert_eq!(kinds(&scene.take(1)), ["heartbeat"]);
    scene.agree(1);
    let told = scene.take(1);
    assert_eq!(puts(&told), [(5, 1)]);
    scene.acknowledge(1, sequence(&told), &[Err(Refusal::SlotMoved)]);
    scene.move_to(&[(0, 2, 2)]);
    let told = scene.take(2);
    assert_eq!(puts(&told), [(5, 1)]);
    scene.acknowledge(2, sequence(&told), &[Ok(at(2, 1))]);
    assert_eq!(scene.clients[publisher].acks, [(write, vec![Ok(at(2, 1))])]);
    scene.take(1);
    scene.pass(500 * MS);
    assert!(puts(&scene.take(1)).is_empty() && puts(&scene.take(2)).is_empty());
}

#[test]
fn while_a_shard_means_other_leaders_heartbeats_hurry_and_say_nothing_about_absence() {
    let (mut scene, id) = with_a_list(2);
    scene.move_to(&[(0, 2, 2)]);
    scene.take(2);
    let stale = Word { stale: true, settled: true, confirmed: vec![(OTHER, 9)], ..Word::default() };
    let mut pauses = Vec::new();
    for _ in 0..9 {
        scene.answer_heartbeat(2, stale.clone());
        let since = scene.now;
        while scene.take(2).is_empty() {
            scene.pass(MS);
        }
        pauses.push(scene.now.since(since) / MS);
    }
    for (pause, wanted) in pauses.iter().zip([5, 10, 20, 40, 80, 160, 320, 500, 500]) {
        assert!((wanted..=wanted + 1).contains(pause), "{pauses:?}");
    }
    assert_eq!(scene.metrics.stale_heartbeats.get(), 9);
    scene.tell_list(2, &id, (Revision::ZERO, at(2, 1)), &[], &[(record(&id, 1, b"a"), OTHER)]);
    assert_eq!(scene.list(0, &id), [1, 2], "what it said was about other slots");
}

#[test]
fn a_table_that_a_data_node_tells_is_followed_if_it_is_newer() {
    let (mut scene, id) = with_a_list(3);
    scene.plan(&[(0, 2, 2)]);
    scene.take(2);
    scene.tell_table_by(1);
    assert_eq!(kinds(&scene.take(2)), ["heartbeat", "subscribe"]);
    assert_eq!((scene.metrics.tables_from_nodes.get(), scene.metrics.table_epoch.get()), (1, 2));
    scene.tell_table_by(3);
    assert_eq!(scene.metrics.tables_from_nodes.get(), 1, "that one is known");
    assert!(scene.take(2).is_empty());
    let before = scene.table.clone();
    scene.move_to(&[(0, 3, 3)]);
    scene.table = before;
    scene.take(2);
    scene.tell_table_by(2);
    assert_eq!(scene.metrics.table_epoch.get(), 3, "nobody goes back");
    assert!(scene.take(2).is_empty());
    let told = scene.take(3);
    assert_eq!(told.last(), Some(&Told::Subscribe(vec![(id.key(), at(1, 10))])));
}

#[test]
fn while_nobody_leads_a_slot_its_writes_wait_and_its_lists_stay() {
    let (mut scene, id) = with_a_list(2);
    let publisher = scene.client(2);
    let (first, _) = scene.publish(publisher, &id, (5, 1), Durability::Ephemeral);
    scene.take(1);
    scene.move_to(&[(0, 0, 1)]);
    let (second, _) = scene.publish(publisher, &id, (6, 1), Durability::Ephemeral);
    let (third, _) = scene.publish(publisher, &id, (7, 1), Durability::Persistent);
    let late = scene.client(3);
    scene.subscribe(late, &id, Revision::ZERO, 0);
    assert_eq!(scene.list(late, &id), [1, 2], "what is known is told");
    let unknown = data_id(0, 1);
    scene.subscribe(late, &unknown, Revision::ZERO, 0);
    scene.pass(3000 * MS);
    assert!(scene.clients[publisher].acks.is_empty() && puts(&scene.take(1)).is_empty());
    scene.move_to(&[(0, 2, 2)]);
    let told = scene.take(2);
    assert_eq!(puts(&told), [(5, 1), (6, 1), (7, 1)]);
    let Some(Told::Subscribe(items)) = told.last() else { panic!("{told:?}") };
    assert_eq!(items[..], [(id.key(), at(1, 10)), (unknown.key(), Revision::ZERO)]);
    scene.acknowledge(2, sequence(&told), &[Ok(at(2, 1)), Ok(at(2, 1))]);
    scene.acknowledge(2, sequence(&told) + 1, &[Ok(at(2, 2))]);
    let sequences: Vec<u64> = scene.clients[publisher].acks.iter().map(|(sequence, _)| *sequence).collect();
    assert_eq!(sequences, [first, second, third]);
}

#[test]
fn a_node_that_starts_again_gets_another_link() {
    let mut scene = Scene::settled(2);
    let (client, id) = (scene.client(1), data_id(0, 0));
    scene.publish(client, &id, (5, 1), Durability::Ephemeral);
    scene.take(1);
    scene.restart(1, 2);
    assert_eq!(scene.dropped, [address(1)]);
    assert!(scene.is_linked(1), "anew");
    assert_eq!(puts(&scene.take(1)), [(5, 1)], "it is the leader by this table, under its new incarnation");
    assert!(scene.session.is_ready());
    scene.move_to(&[(0, 2, 2), (1, 2, 2), (2, 2, 2), (3, 2, 2)]);
    assert_eq!(puts(&scene.take(2)), [(5, 1)]);
}

#[test]
fn heartbeats_are_seldom_while_nothing_happens_and_frequent_while_something_does() {
    let mut scene = Scene::settled(1);
    let (client, id) = (scene.client(1), data_id(0, 0));
    let beats = |scene: &mut Scene, seconds: u64| {
        let mut count = 0;
        for _ in 0..seconds * 10 {
            scene.pass(100 * MS);
            for _ in kinds(&scene.take(1)).iter().filter(|kind| **kind == "heartbeat") {
                count += 1;
                scene.agree(1);
            }
        }
        count
    };
    assert!((5..=7).contains(&beats(&mut scene, 30)));
    scene.publish(client, &id, (5, 1), Durability::Ephemeral);
    assert!((9..=11).contains(&beats(&mut scene, 10)), "a write is not answered");
    scene.acknowledge(1, 1, &[Ok(at(1, 1))]);
    assert!((5..=8).contains(&beats(&mut scene, 30)));
}

#[test]
fn a_subscriber_that_is_ahead_waits_for_the_table_that_it_has_seen() {
    let (mut scene, id) = with_a_list(2);
    let ahead = scene.client(2);
    scene.take(1);
    scene.hold(ahead, &id, at(2, 5), &[2, 9]);
    scene.subscribe(ahead, &id, at(2, 5), 12345);
    let mut questions = 0;
    for _ in 0..30 {
        scene.pass(100 * MS);
        for told in scene.take(1) {
            match told {
                Told::Subscribe(_) => {
                    questions += 1;
                    scene.tell_list(1, &id, (at(1, 10), at(1, 10)), &[], &[]);
                }
                Told::Heartbeat { .. } => scene.agree(1),
                _ => {}
            }
        }
    }
    assert!((5..=12).contains(&questions), "asked {questions} times: again and again, but not all the time");
    assert_eq!(scene.list(ahead, &id), [2, 9], "an older list is not told");
    scene.move_to(&[(0, 2, 2)]);
    let all = [1, 2, 9].map(|register| (record(&id, register, b"a"), OTHER));
    scene.take(2);
    scene.tell_list(2, &id, (Revision::ZERO, at(2, 7)), &[], &all);
    assert_eq!(scene.take(2).last(), Some(&Told::Subscribe(vec![(id.key(), at(2, 5))])));
    scene.tell_list(2, &id, (at(2, 5), at(2, 7)), &[], &all[..1]);
    assert_eq!(scene.list(ahead, &id), [2, 9], "it may hold a newer content than is listed");
    let unsettled = Word { settled: true, unsettled: vec![(SlotId(0), 4)], ..Word::default() };
    scene.answer_heartbeat(2, Word { confirmed: vec![(OTHER, 4)], ..unsettled });
    assert_eq!(scene.list(ahead, &id), [1, 2, 9]);
}

#[test]
fn a_claim_of_a_history_that_is_gone_is_answered_in_the_end() {
    let (mut scene, id) = with_a_list(1);
    let ahead = scene.client(2);
    scene.take(1);
    scene.subscribe(ahead, &id, at(200, 5), 12345);
    let begin = scene.now;
    let waiting = |scene: &Scene| scene.metrics.snapshots.get() == 1;
    while waiting(&scene) {
        assert!(scene.now.since(begin) < 30 * Nanos::SECOND, "it waits for ever");
        scene.pass(50 * MS);
        for told in scene.take(1) {
            match told {
                Told::Subscribe(_) => scene.tell_list(1, &id, (at(1, 10), at(1, 10)), &[], &[]),
                Told::Heartbeat { .. } => scene.agree(1),
                _ => {}
            }
        }
    }
    assert!(scene.now.since(begin) > 5 * Nanos::SECOND, "not before every table had the time to come");
    assert_eq!(scene.list(ahead, &id), [1, 2]);
}
