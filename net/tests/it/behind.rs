//! Clients that lack more than one write may carry: nothing they subscribe to waits for ever behind the rest.

use slotcast_engine::id::{DataId, Revision, SessionId};

use crate::moves::scene::{Scene, at, data_id, record};

const OTHER: SessionId = SessionId(88);
const ROUND: u64 = 10_000_000;

/// Three data ids that client 0 has the lists of, each with registration 1; it is written to once per [`ROUND`].
fn scene(push_batch_max: usize) -> (Scene, [DataId; 3]) {
    let mut scene = Scene::configured(1, |config| {
        config.push_batch_max = push_batch_max;
        config.push_interval_min = ROUND;
    });
    scene.settle();
    let ids = [0, 1, 2].map(|n| data_id(0, n));
    scene.client(1);
    for id in &ids {
        scene.subscribe(0, id, Revision::ZERO, 0);
        scene.tell_list(1, id, (Revision::ZERO, at(1, 1)), &[], &[(record(id, 1, b"a"), OTHER)]);
        scene.pass(4 * ROUND);
    }
    assert_eq!(held(&scene, &ids), [1; 3]);
    scene.clients[0].pushes = 0;
    (scene, ids)
}

/// The list of `id` goes from revision `from` to the next: one more registration of that number.
fn change(scene: &mut Scene, id: &DataId, from: u64, payload: &[u8]) {
    scene.tell_list(1, id, (at(1, from), at(1, from + 1)), &[], &[(record(id, from + 1, payload), OTHER)]);
}

/// The revisions that client 0 has.
fn held(scene: &Scene, ids: &[DataId]) -> Vec<u64> {
    let counter = |id: &DataId| scene.clients[0].lists[&id.key()].0.0 - Revision::open(1).0;
    ids.iter().map(counter).collect()
}

#[test]
fn a_list_does_not_wait_for_ever_behind_others_that_always_have_news() {
    let (mut scene, ids) = scene(2);
    for revision in 1..60 {
        ids.iter().for_each(|id| change(&mut scene, id, revision, b"a"));
        scene.pass(ROUND);
        // Two frames a round for three changes: it falls behind until it is told several changes in one diff.
        let held = held(&scene, &ids);
        assert!(held.iter().all(|reached| reached + 8 > revision), "{held:?} of {}", revision + 1);
    }
    scene.pass(10 * ROUND);
    assert_eq!(held(&scene, &ids), [60; 3]);
}

#[test]
fn a_large_frame_does_not_wait_for_ever_behind_small_ones_nor_they_behind_it() {
    let (mut scene, ids) = scene(8);
    for revision in 1..20 {
        change(&mut scene, &ids[0], revision, b"a");
        change(&mut scene, &ids[1], revision, &[7; 20_000]);
        change(&mut scene, &ids[2], revision, b"a");
        scene.pass(ROUND);
        let held = held(&scene, &ids);
        assert!(held.iter().all(|reached| reached + 3 > revision), "{held:?} of {}", revision + 1);
    }
}
