//! New leaders that have older contents than what was told before: nobody is told them, until owners have come or gone.

use super::*;
use slotcast_engine::{diff::list_fingerprint, record::Record};

const THIRD: SessionId = SessionId(99);

/// What a node says that leads slot 0 since its turn 4, and has heard of these.
fn young(confirmed: &[SessionId]) -> Word {
    let confirmed = confirmed.iter().map(|session| (*session, 4)).collect();
    Word { settled: true, unsettled: vec![(SlotId(0), 4)], confirmed, ..Word::default() }
}

/// Node 1 has told a newer content of registration 2, and is lost. Node 2 leads from before that.
fn with_a_lost_change() -> (Scene, slotcast_engine::id::DataId) {
    let (mut scene, id) = with_a_list(2);
    scene.tell_list(1, &id, (at(1, 10), at(1, 11)), &[], &[(record(&id, 2, b"newer"), OTHER)]);
    assert_eq!(scene.held(0, &id, 2), Some(&record(&id, 2, b"newer")[..]));
    scene.move_to(&[(0, 2, 2)]);
    scene.take(2);
    (scene, id)
}

#[test]
fn an_older_content_of_a_new_leader_is_told_to_nobody_before_its_owner_has_come() {
    let (mut scene, id) = with_a_lost_change();
    scene.answer_heartbeat(2, young(&[]));
    let older = [(record(&id, 1, b"a"), OTHER), (record(&id, 2, b"a"), OTHER)];
    let more = (record(&id, 3, b"c"), THIRD);
    let told = [older.to_vec(), vec![more.clone()]].concat();
    scene.tell_forked(2, &id, at(2, 1), &[1, 2], &told);
    assert_eq!(scene.list(0, &id), [1, 2, 3], "what else it tells is not held up");
    assert_eq!(scene.held(0, &id, 2), Some(&record(&id, 2, b"newer")[..]));
    scene.pass(1100 * MS);
    assert_eq!(scene.metrics.contents_kept.get(), 1);
    let late = scene.client(2);
    scene.subscribe(late, &id, Revision::ZERO, 0);
    assert_eq!(scene.held(late, &id, 2), Some(&record(&id, 2, b"newer")[..]));
    // A fresh answer for another reason changes nothing, nor does one to the same question.
    scene.tell_list(2, &id, (Revision::ZERO, at(2, 2)), &[], &told);
    assert_eq!(scene.held(0, &id, 2), Some(&record(&id, 2, b"newer")[..]));
    // The owner has confirmed: now the leader knows best.
    scene.take(2);
    scene.answer_heartbeat(2, young(&[OTHER]));
    let asked = scene.take(2);
    assert_eq!(asked.last(), Some(&Told::Subscribe(vec![(id.key(), Revision::ZERO)])));
    scene.tell_list(2, &id, (Revision::ZERO, at(2, 3)), &[], &told);
    for client in [0, late] {
        assert_eq!(scene.held(client, &id, 2), Some(&record(&id, 2, b"a")[..]));
    }
}

/// The client has gone from THIRD to OTHER, and has been withdrawn there since: OTHER has confirmed without it. What the leader has
/// of THIRD, which is lost, is older than what was told, and goes with its lease.
#[test]
fn an_older_content_of_a_former_owner_is_told_to_nobody_before_that_one_has_come_or_gone() {
    for is_lost in [false, true] {
        let (mut scene, id) = with_a_lost_change();
        scene.answer_heartbeat(2, young(&[]));
        let told = [(record(&id, 1, b"a"), OTHER), (record(&id, 2, b"a"), THIRD)];
        scene.tell_forked(2, &id, at(2, 1), &[1, 2], &told);
        scene.pass(1100 * MS);
        scene.take(2);
        scene.answer_heartbeat(2, young(&[OTHER]));
        assert!(!kinds(&scene.take(2)).contains(&"subscribe"), "the answer would be the same");
        scene.tell_list(2, &id, (Revision::ZERO, at(2, 2)), &[], &told);
        assert_eq!(scene.held(0, &id, 2), Some(&record(&id, 2, b"newer")[..]));
        if is_lost {
            scene.tell_list(2, &id, (at(2, 2), at(2, 3)), &[2], &[]);
            assert_eq!(scene.list(0, &id), [1]);
            continue;
        }
        scene.pass(1100 * MS);
        scene.take(2);
        scene.answer_heartbeat(2, young(&[OTHER, THIRD]));
        assert_eq!(scene.take(2).last(), Some(&Told::Subscribe(vec![(id.key(), Revision::ZERO)])));
        scene.tell_list(2, &id, (Revision::ZERO, at(2, 3)), &[], &told);
        assert_eq!(scene.held(0, &id, 2), Some(&record(&id, 2, b"a")[..]));
    }
}

#[test]
fn what_a_new_leader_was_told_itself_is_newer_and_so_is_a_removal() {
    let (mut scene, id) = with_a_lost_change();
    scene.answer_heartbeat(2, young(&[]));
    // The owner has published again there, before it was confirmed.
    let told = [(record(&id, 1, b"a"), OTHER), (record(&id, 2, b"newest"), OTHER)];
    scene.tell_forked(2, &id, at(2, 1), &[1], &told);
    assert_eq!(scene.held(0, &id, 2), Some(&record(&id, 2, b"newest")[..]));
    let (mut scene, id) = with_a_lost_change();
    scene.answer_heartbeat(2, young(&[]));
    let told = [(record(&id, 1, b"a"), OTHER), (record(&id, 2, b"a"), OTHER)];
    scene.tell_forked(2, &id, at(2, 1), &[1, 2], &told);
    // Its lease has ended.
    scene.tell_list(2, &id, (at(2, 1), at(2, 2)), &[2], &[]);
    assert_eq!(scene.list(0, &id), [1]);
}

#[test]
fn a_subscriber_from_elsewhere_keeps_its_newer_list_until_the_owners_have_come() {
    let (mut scene, id) = with_a_list(2);
    let (list, newer) = ([1, 2].map(|register| (record(&id, register, b"a"), OTHER)), record(&id, 2, b"b"));
    scene.move_to(&[(0, 2, 2)]);
    scene.answer_heartbeat(2, young(&[]));
    scene.tell_list(2, &id, (at(1, 10), at(2, 0)), &[], &[]);
    // Another session has heard of a change that node 1 told before it was lost, this one and node 2 have not.
    let moved = scene.client(2);
    scene.hold(moved, &id, at(1, 11), &[1, 2]);
    let print = |bytes: &[u8]| {
        let record = Record::read(bytes).unwrap();
        list_fingerprint(record.register(), record.checksum())
    };
    let digest = print(&list[0].0).wrapping_add(print(&newer));
    scene.take(2);
    scene.subscribe(moved, &id, at(1, 11), digest);
    assert_eq!(scene.take(2).last(), Some(&Told::Subscribe(vec![(id.key(), at(1, 11))])));
    scene.tell_forked(2, &id, at(2, 0), &[1, 2], &list);
    assert_eq!((scene.clients[moved].pushes, scene.metrics.resumes_deferred.get()), (0, 1));
    scene.answer_heartbeat(2, young(&[THIRD]));
    assert_eq!(scene.clients[moved].pushes, 0, "that one owns nothing of it");
    scene.tell_list(2, &id, (at(2, 0), at(2, 1)), &[], &[(newer.clone(), OTHER)]);
    scene.answer_heartbeat(2, young(&[THIRD, OTHER]));
    let (revision, _) = scene.clients[moved].lists[&id.key()];
    assert_eq!((revision, scene.clients[moved].pushes), (at(2, 1), 1));
    assert_eq!(scene.held(moved, &id, 2), Some(&b""[..]), "it has had it all the time");
}
