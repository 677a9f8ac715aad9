//! What a data node says first on a link, and what of it a session does not take.

use slotcast_engine::{batch::Durability, id::Revision};
use slotcast_net::wire::Message;

use crate::moves::scene::{MS, SLOTS, Scene, Told, Word, address, at, data_id, record};

fn welcome(last_sequence: u64) -> Message<'static> {
    Message::LinkWelcome { run: 5, last_sequence, epoch: 1, shard: 0, shards: 1, slot_count: SLOTS }
}

fn sequences(told: &[Told]) -> Vec<u64> {
    let of = |told: &Told| match told {
        Told::Write { sequence, .. } => Some(*sequence),
        _ => None,
    };
    told.iter().filter_map(of).collect()
}

#[test]
fn a_second_welcome_ends_the_link_and_the_next_link_is_told_everything() {
    let (mut scene, id) = (Scene::settled(1), data_id(0, 0));
    let client = scene.client(1);
    scene.publish(client, &id, (7, 1), Durability::Ephemeral);
    assert_eq!(sequences(&scene.take(1)), [1]);
    scene.say(1, &welcome(0));
    assert_eq!(scene.dropped, [address(1)]);
    assert_eq!(scene.metrics.link_faults.get(), 1);
    scene.pass(100 * MS);
    assert!(scene.is_linked(1));
    assert_eq!(sequences(&scene.take(1)), [1], "the same write over the next link");
}

#[test]
fn a_welcome_that_leaves_no_sequence_to_count_on_from_is_refused() {
    for (last_sequence, is_taken) in [(0, true), (1 << 40, true), (u64::MAX - 1, false), (u64::MAX, false)] {
        let mut scene = Scene::new(1);
        scene.last_sequence = last_sequence;
        let (client, id) = (scene.client(1), data_id(0, 0));
        scene.publish(client, &id, (7, 1), Durability::Ephemeral);
        scene.move_to(&[(0, 1, 1)]);
        assert_eq!(scene.session.is_ready(), is_taken, "{last_sequence}");
        let expected = if is_taken { vec![last_sequence + 1] } else { Vec::new() };
        assert_eq!(sequences(&scene.take(1)), expected);
        assert_eq!(scene.metrics.link_faults.get(), u64::from(!is_taken));
        // A node that has come to its senses is taken at the next try.
        scene.last_sequence = 0;
        scene.pass(100 * MS);
        assert!(scene.session.is_ready());
    }
}

#[test]
fn what_is_said_ahead_of_the_welcome_is_not_taken() {
    let (mut scene, id) = (Scene::new(1), data_id(0, 0));
    let client = scene.client(1);
    scene.subscribe(client, &id, Revision::ZERO, 0);
    scene.mute = true;
    scene.move_to(&[(0, 1, 1)]);
    assert!(!scene.session.is_ready(), "it is not welcome yet");
    let list = [(record(&id, 1, b"a"), slotcast_engine::id::SessionId(88))];
    scene.mute = false;
    scene.tell_list(1, &id, (Revision::ZERO, at(1, 10)), &[], &list);
    assert_eq!((scene.list(client, &id), &scene.dropped[..]), (vec![], &[address(1)][..]));
    scene.pass(100 * MS);
    scene.answer_heartbeat(1, Word { settled: true, ..Word::default() });
    scene.tell_list(1, &id, (Revision::ZERO, at(1, 10)), &[], &list);
    assert_eq!(scene.list(client, &id), [1]);
}
