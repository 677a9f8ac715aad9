//! Clients that come from another session with a list that this one never had, while the slot's leader is young: what was
//! removed in between is gone from it, and what is only late here is not.

use slotcast_engine::id::{Revision, SessionId, SlotId};

use super::{
    OTHER,
    scene::{MS, Scene, Told, Word, at, data_id, kinds, record},
};

/// The digest of a list that this session cannot know.
const FOREIGN: u64 = 12345;

/// What a node says while it leads slot 0 for less than a lease: it has heard of the session that owns what is listed, and of
/// nobody else.
fn young() -> Word {
    Word { settled: true, unsettled: vec![(SlotId(0), 1)], confirmed: vec![(OTHER, 1)], ..Word::default() }
}

/// Node 1 has led all slots for a moment.
fn with_a_young_leader(nodes: u32) -> Scene {
    let mut scene = Scene::new(nodes);
    scene.move_to(&(0..4).map(|slot| (slot, 1, 2)).collect::<Vec<_>>());
    scene.answer_heartbeat(1, young());
    scene.take(1);
    scene
}

fn listed(id: &slotcast_engine::id::DataId, registers: &[u64]) -> Vec<(Vec<u8>, SessionId)> {
    registers.iter().map(|register| (record(id, *register, b"a"), OTHER)).collect()
}

/// A client that holds `registers` at 1.5 where the leader lists 1 and 2 at 2.10; it has been told nothing yet.
fn with_a_claim(scene: &mut Scene, registers: &[u64]) -> usize {
    let (id, client) = (data_id(0, 0), scene.client(1));
    scene.hold(client, &id, at(1, 5), registers);
    scene.subscribe(client, &id, at(1, 5), FOREIGN);
    assert_eq!(kinds(&scene.take(1)), ["subscribe"]);
    scene.tell_list(1, &id, (Revision::ZERO, at(2, 10)), &[], &listed(&id, &[1, 2]));
    let told = scene.take(1);
    assert_eq!(kinds(&told), ["ping", "subscribe"]);
    assert_eq!(
        told[1],
        Told::Subscribe(vec![(id.key(), at(1, 5))]),
        "the leader knows what was removed since"
    );
    assert_eq!(scene.clients[client].pushes, 0);
    client
}

#[test]
fn what_was_removed_between_two_sessions_is_gone_as_soon_as_the_leader_has_said_so() {
    let (mut scene, id) = (with_a_young_leader(1), data_id(0, 0));
    let client = with_a_claim(&mut scene, &[1, 2, 8, 9]);
    scene.tell_list(1, &id, (at(1, 5), at(2, 10)), &[9], &[]);
    assert_eq!(scene.list(client, &id), [1, 2, 8], "8 may only be late here");
    assert_eq!(scene.clients[client].pushes, 1, "with the first frame");
    // Whoever owns 8 has not come back within a lease.
    scene.pass(1000 * MS);
    scene.agree(1);
    assert_eq!(scene.list(client, &id), [1, 2]);
}

#[test]
fn a_leader_whose_history_begins_later_names_what_it_still_knows_to_be_removed() {
    let (mut scene, id) = (with_a_young_leader(1), data_id(0, 0));
    let client = with_a_claim(&mut scene, &[1, 2, 8, 9]);
    scene.tell_list(1, &id, (Revision::ZERO, at(2, 10)), &[7, 9], &listed(&id, &[1, 2]));
    assert_eq!(scene.list(client, &id), [1, 2, 8]);
    scene.tell_list(1, &id, (at(2, 10), at(2, 11)), &[2], &listed(&id, &[3]));
    assert_eq!(scene.list(client, &id), [1, 3, 8], "and goes on");
}

#[test]
fn what_everybody_is_told_between_the_question_and_the_answer_is_no_answer() {
    let (mut scene, id) = (with_a_young_leader(1), data_id(0, 0));
    let client = with_a_claim(&mut scene, &[1, 2, 8, 9]);
    // The leader has read the ping, and not yet what was asked behind it.
    scene.tell_list(1, &id, (at(2, 10), at(2, 11)), &[], &listed(&id, &[3]));
    assert_eq!(scene.clients[client].pushes, 0);
    scene.tell_list(1, &id, (at(1, 4), at(2, 11)), &[9], &listed(&id, &[3]));
    assert_eq!(scene.list(client, &id), [1, 2, 3, 8]);
}

#[test]
fn a_leader_that_is_asked_something_else_meanwhile_is_asked_about_the_claim_again() {
    let (mut scene, id) = (with_a_young_leader(1), data_id(0, 0));
    let client = with_a_claim(&mut scene, &[1, 2, 8, 9]);
    scene.tell_list(1, &id, (at(2, 12), at(2, 13)), &[], &[]);
    let told = scene.take(1);
    let Some(Told::Subscribe(asked)) = told.last() else { panic!("{told:?}") };
    assert_eq!(
        asked.len(),
        2,
        "something was lost, and the question about that takes the place of the other"
    );
    assert_eq!(asked[1], (id.key(), at(1, 5)));
    scene.tell_list(1, &id, (at(1, 5), at(2, 14)), &[9], &listed(&id, &[3]));
    assert_eq!(scene.list(client, &id), [1, 2, 3, 8]);
}

#[test]
fn what_was_removed_in_a_gap_is_asked_for_and_not_only_absent() {
    let (mut scene, id) = (with_a_young_leader(1), data_id(0, 0));
    let reader = scene.client(7);
    scene.subscribe(reader, &id, Revision::ZERO, 0);
    scene.take(1);
    scene.tell_list(1, &id, (Revision::ZERO, at(2, 10)), &[], &listed(&id, &[1, 2]));
    // Its owner has not been heard of here.
    let late = vec![(record(&id, 9, b"a"), SessionId(OTHER.0 + 1))];
    scene.tell_list(1, &id, (at(2, 10), at(2, 11)), &[], &late);
    assert_eq!(scene.list(reader, &id), [1, 2, 9]);
    scene.tell_list(1, &id, (at(2, 12), at(2, 13)), &[9], &[]);
    assert_eq!(scene.take(1), [Told::Subscribe(vec![(id.key(), at(2, 11))])]);
    scene.tell_list(1, &id, (at(2, 11), at(2, 13)), &[9], &listed(&id, &[3]));
    assert_eq!(scene.list(reader, &id), [1, 2, 3]);
}

#[test]
fn what_a_leader_tells_from_a_list_on_that_was_not_taken_is_not_taken_either() {
    let (mut scene, id) = (with_a_young_leader(1), data_id(0, 0));
    let reader = scene.client(7);
    scene.subscribe(reader, &id, Revision::ZERO, 0);
    scene.take(1);
    scene.tell_list(1, &id, (Revision::ZERO, at(2, 10)), &[], &listed(&id, &[1, 2]));
    assert_eq!(scene.list(reader, &id), [1, 2]);
    // It answers from before it led, with one more, and goes on from that.
    scene.tell_list(1, &id, (Revision::ZERO, at(1, 22)), &[], &listed(&id, &[1, 2, 5]));
    scene.tell_list(1, &id, (at(1, 22), at(2, 11)), &[1], &[]);
    assert_eq!(scene.list(reader, &id), [1, 2], "without the fifth it would be a list of nobody");
    assert_eq!(scene.take(1), [Told::Subscribe(vec![(id.key(), Revision::ZERO)])]);
    scene.tell_list(1, &id, (Revision::ZERO, at(2, 11)), &[], &listed(&id, &[2, 5]));
    assert!(scene.list(reader, &id).ends_with(&[2, 5]));
    scene.tell_list(1, &id, (at(2, 11), at(2, 12)), &[], &listed(&id, &[6]));
    assert!(scene.list(reader, &id).ends_with(&[2, 5, 6]), "it is in step again");
}

#[test]
fn a_claim_is_asked_about_once_and_each_other_one_for_itself() {
    let (mut scene, id) = (with_a_young_leader(1), data_id(0, 0));
    let first = with_a_claim(&mut scene, &[1, 9]);
    let claims = [at(1, 5), at(1, 6)].map(|claim| {
        let client = scene.client(2 + claim.0);
        scene.hold(client, &id, claim, &[1, 9]);
        scene.subscribe(client, &id, claim, FOREIGN);
        client
    });
    assert!(scene.take(1).is_empty(), "one question at a time");
    scene.tell_list(1, &id, (at(1, 5), at(2, 10)), &[9], &[]);
    let told = scene.take(1);
    assert_eq!(told.last(), Some(&Told::Subscribe(vec![(id.key(), at(1, 6))])));
    assert_eq!([first, claims[0], claims[1]].map(|client| scene.clients[client].pushes), [1, 1, 0]);
    // It is not of the leader's history: that says nothing about what the client holds beyond its list.
    scene.tell_list(1, &id, (Revision::ZERO, at(2, 10)), &[], &listed(&id, &[1, 2]));
    assert_eq!(scene.list(claims[0], &id), [1, 2]);
    assert_eq!(scene.list(claims[1], &id), [1, 2, 9]);
    assert_eq!(scene.metrics.claims_asked.get(), 2);
}

#[test]
fn what_a_snapshot_names_for_a_claim_does_not_concern_the_lists_of_others() {
    let (mut scene, id) = (with_a_young_leader(2), data_id(0, 0));
    let reader = scene.client(7);
    scene.subscribe(reader, &id, Revision::ZERO, 0);
    scene.take(1);
    scene.tell_list(1, &id, (Revision::ZERO, at(2, 10)), &[], &listed(&id, &[1, 2, 9]));
    scene.move_to(&[(0, 2, 3)]);
    scene.answer_heartbeat(2, Word { confirmed: Vec::new(), ..young() });
    // The next leader began before 9 came back.
    scene.tell_list(2, &id, (Revision::ZERO, at(3, 1)), &[], &listed(&id, &[1, 2]));
    assert_eq!(scene.list(reader, &id), [1, 2, 9]);
    scene.take(2);
    let client = scene.client(1);
    scene.hold(client, &id, at(1, 5), &[1, 2, 9]);
    scene.subscribe(client, &id, at(1, 5), FOREIGN);
    assert_eq!(kinds(&scene.take(2)), ["ping", "subscribe"]);
    scene.tell_list(2, &id, (Revision::ZERO, at(3, 2)), &[9], &listed(&id, &[1, 2]));
    assert_eq!(scene.list(reader, &id), [1, 2, 9], "of what it held, nothing was removed there");
}

#[test]
fn the_next_leader_is_asked_what_the_former_one_did_not_answer() {
    let (mut scene, id) = (with_a_young_leader(2), data_id(0, 0));
    let client = with_a_claim(&mut scene, &[1, 2, 9]);
    scene.move_to(&[(0, 2, 3)]);
    scene.answer_heartbeat(2, young());
    assert_eq!(
        scene.take(2).last(),
        Some(&Told::Subscribe(vec![(id.key(), at(2, 10))])),
        "first its own list"
    );
    scene.tell_list(2, &id, (at(2, 10), at(3, 1)), &[], &[]);
    let told = scene.take(2);
    assert_eq!(told.last(), Some(&Told::Subscribe(vec![(id.key(), at(1, 5))])));
    scene.tell_list(2, &id, (at(1, 5), at(3, 1)), &[9], &[]);
    // The first answer was to a heartbeat from before the move.
    scene.pass(1000 * MS);
    scene.answer_heartbeat(2, young());
    assert_eq!(scene.list(client, &id), [1, 2]);
}

#[test]
fn where_nobody_can_be_asked_a_client_does_not_wait() {
    let (mut scene, id) = (with_a_young_leader(1), data_id(0, 0));
    let reader = scene.client(7);
    scene.subscribe(reader, &id, Revision::ZERO, 0);
    scene.tell_list(1, &id, (Revision::ZERO, at(2, 10)), &[], &listed(&id, &[1, 2]));
    scene.move_to(&[(0, 0, 3)]);
    let client = scene.client(1);
    scene.hold(client, &id, at(1, 5), &[1, 9]);
    scene.subscribe(client, &id, at(1, 5), FOREIGN);
    assert_eq!(scene.list(client, &id), [1, 2, 9]);
}
