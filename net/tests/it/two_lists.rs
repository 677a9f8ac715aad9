//! A data node that tells two lists of one revision: what of it subscribers are shown, and what is asked for.

use slotcast_engine::id::{DataId, Revision, SessionId, SlotId};

use crate::moves::scene::{Scene, Told, Word, at, data_id, record};

const OTHER: SessionId = SessionId(88);
const NEVER: Revision = Revision::ZERO;

fn puts(id: &DataId, registers: &[u64]) -> Vec<(Vec<u8>, SessionId)> {
    registers.iter().map(|register| (record(id, *register, b"a"), OTHER)).collect()
}

/// Node 1 leads all, and has told client 0 of registrations 1 and 2 at revision 1.10.
fn with_a_list() -> (Scene, DataId) {
    let (mut scene, id) = (Scene::settled(2), data_id(0, 0));
    scene.client(1);
    scene.subscribe(0, &id, NEVER, 0);
    scene.tell_list(1, &id, (NEVER, at(1, 10)), &[], &puts(&id, &[1, 2]));
    assert_eq!((scene.list(0, &id), scene.clients[0].pushes), (vec![1, 2], 1));
    scene.take(1);
    (scene, id)
}

/// Node 2 leads slot 0 in epoch 2 and has not heard of everybody there.
fn with_a_new_leader() -> (Scene, DataId) {
    let (mut scene, id) = with_a_list();
    scene.move_to(&[(0, 2, 2)]);
    let word = Word { settled: true, unsettled: vec![(SlotId(0), 4)], ..Word::default() };
    scene.answer_heartbeat(2, word);
    scene.take(2);
    (scene, id)
}

fn whole(id: &DataId) -> Told {
    Told::Subscribe(vec![(id.key(), NEVER)])
}

#[test]
fn what_contradicts_the_list_at_its_own_revision_is_not_shown_and_the_whole_is_asked_for() {
    let told = [
        (vec![], vec![3], b"a", at(1, 9)),
        (vec![], vec![1], b"b", at(1, 9)),
        (vec![2], vec![], b"a", at(1, 10)),
        (vec![], vec![1], b"a", NEVER),
        (vec![], vec![1, 2, 3], b"a", NEVER),
    ];
    for (removes, registers, payload, from) in told {
        let (mut scene, id) = with_a_list();
        let list: Vec<_> =
            registers.iter().map(|register| (record(&id, *register, payload), OTHER)).collect();
        let before = scene.clients[0].lists.clone();
        scene.tell_list(1, &id, (from, at(1, 10)), &removes, &list);
        assert_eq!(
            (&scene.clients[0].lists, scene.clients[0].pushes),
            (&before, 1),
            "{removes:?} {registers:?}"
        );
        assert_eq!(scene.metrics.diff_contradictions.get(), 1);
        assert_eq!(scene.take(1), [whole(&id)]);
        assert!(scene.is_linked(1), "its other lists are as good as before");
    }
}

#[test]
fn what_repeats_the_list_at_its_own_revision_is_no_news() {
    let (mut scene, id) = with_a_list();
    scene.tell_list(1, &id, (at(1, 9), at(1, 10)), &[7], &puts(&id, &[2]));
    scene.tell_list(1, &id, (NEVER, at(1, 10)), &[], &puts(&id, &[1, 2]));
    assert_eq!((scene.list(0, &id), scene.clients[0].pushes), (vec![1, 2], 1));
    assert_eq!((scene.metrics.diff_contradictions.get(), scene.metrics.lists_amended.get()), (0, 0));
    assert!(scene.take(1).is_empty());
}

#[test]
fn a_list_in_doubt_goes_on_from_a_whole_one_of_a_later_revision() {
    let (mut scene, id) = with_a_list();
    scene.tell_list(1, &id, (at(1, 9), at(1, 10)), &[1], &[]);
    scene.take(1);
    // On which of the two lists it builds is not known.
    scene.tell_list(1, &id, (at(1, 10), at(1, 11)), &[], &puts(&id, &[4]));
    assert_eq!((scene.list(0, &id), scene.clients[0].pushes), (vec![1, 2], 1));
    assert_eq!(scene.take(1), [whole(&id)]);
    scene.tell_list(1, &id, (NEVER, at(1, 11)), &[], &puts(&id, &[2, 4]));
    assert_eq!((scene.list(0, &id), scene.clients[0].pushes), (vec![2, 4], 2));
    scene.tell_list(1, &id, (at(1, 11), at(1, 12)), &[2], &[]);
    assert_eq!(scene.list(0, &id), [4]);
    assert_eq!((scene.metrics.diff_contradictions.get(), scene.metrics.diff_gaps.get()), (1, 1));
}

#[test]
fn a_whole_list_that_agrees_ends_the_doubt_and_one_that_does_not_is_asked_for_once() {
    let (mut scene, id) = with_a_list();
    for _ in 0..3 {
        scene.tell_list(1, &id, (NEVER, at(1, 10)), &[], &puts(&id, &[9]));
    }
    assert_eq!(scene.metrics.diff_contradictions.get(), 3);
    assert_eq!(scene.take(1), [whole(&id)], "who insists is not asked again and again");
    scene.tell_list(1, &id, (NEVER, at(1, 10)), &[], &puts(&id, &[1, 2]));
    scene.tell_list(1, &id, (at(1, 10), at(1, 11)), &[1], &[]);
    assert_eq!((scene.list(0, &id), scene.clients[0].pushes), (vec![2], 2));
    assert!(scene.take(1).is_empty());
}

#[test]
fn another_leader_is_asked_for_the_whole_of_a_list_in_doubt() {
    let (mut scene, id) = with_a_list();
    scene.tell_list(1, &id, (at(1, 9), at(1, 10)), &[1], &[]);
    scene.move_to(&[(0, 2, 2)]);
    assert_eq!(scene.take(2).last(), Some(&whole(&id)));
}

#[test]
fn who_has_the_revision_already_hears_of_what_is_let_go_of_without_another() {
    let (mut scene, id) = with_a_new_leader();
    scene.tell_list(2, &id, (NEVER, at(2, 1)), &[], &puts(&id, &[1]));
    assert_eq!(scene.list(0, &id), [1, 2], "who owns 2 has not been heard of");
    let late = scene.client(2);
    scene.subscribe(late, &id, NEVER, 0);
    assert_eq!(scene.list(late, &id), [1, 2]);
    // Asked about what a client claims, the leader knows of a removal.
    scene.tell_list(2, &id, (at(1, 5), at(2, 1)), &[2], &[]);
    assert_eq!((scene.list(0, &id), scene.list(late, &id)), (vec![1], vec![1]));
    assert_eq!(scene.metrics.lists_amended.get(), 1);
    scene.tell_list(2, &id, (at(2, 1), at(2, 2)), &[], &puts(&id, &[3]));
    assert_eq!((scene.list(0, &id), scene.list(late, &id)), (vec![1, 3], vec![1, 3]));
}

#[test]
fn what_is_let_go_of_at_the_revision_of_the_last_change_is_told_to_everybody() {
    let (mut scene, id) = with_a_new_leader();
    scene.tell_list(2, &id, (NEVER, at(2, 1)), &[], &puts(&id, &[1, 3]));
    assert_eq!(scene.list(0, &id), [1, 2, 3]);
    scene.tell_list(2, &id, (at(1, 5), at(2, 1)), &[2], &puts(&id, &[3]));
    assert_eq!(scene.list(0, &id), [1, 3]);
    scene.tell_list(2, &id, (at(2, 1), at(2, 2)), &[1], &[]);
    assert_eq!(scene.list(0, &id), [3]);
    assert_eq!(scene.metrics.diff_contradictions.get(), 0);
}

#[test]
fn who_may_know_better_is_told_once_the_leader_vouches_for_its_list() {
    let (mut scene, id) = with_a_new_leader();
    scene.tell_list(2, &id, (NEVER, at(2, 1)), &[], &puts(&id, &[1]));
    // It comes from another session, with a registration that the new leader has not been told of yet.
    let ahead = scene.client(2);
    scene.hold(ahead, &id, at(1, 11), &[1, 2, 5]);
    scene.subscribe(ahead, &id, at(1, 11), 12345);
    scene.tell_list(2, &id, (at(1, 11), at(2, 1)), &[], &[]);
    assert_eq!(scene.list(ahead, &id), [1, 2, 5]);
    scene.tell_list(2, &id, (at(1, 5), at(2, 1)), &[2], &[]);
    assert_eq!((scene.list(0, &id), scene.list(ahead, &id)), (vec![1], vec![1, 2, 5]));
    scene.pass(1_000_000_000);
    scene.agree(2);
    scene.tell_list(2, &id, (at(2, 1), at(2, 2)), &[], &puts(&id, &[3]));
    assert_eq!((scene.list(0, &id), scene.list(ahead, &id)), (vec![1, 3], vec![1, 3]));
}
