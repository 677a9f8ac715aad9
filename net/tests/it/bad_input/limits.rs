//! Clients that want more than they may have.

use slotcast_engine::error::Refusal;
use slotcast_net::{
    client::Update,
    wire::{ErrorCode, Message},
};

use crate::{
    bad_input::{Scene, id, is_taken},
    cluster::{until, until_metric},
    raw::{Raw, RawList},
};

#[test]
fn a_subscription_over_the_limit_is_refused_and_the_others_stay() {
    let mut scene = Scene::new(&["session.subscriptions_max=2"]);
    let mut raw = scene.raw();
    let services = ["one", "two", "three"].map(id);
    for service in &services[..2] {
        raw.subscribe(service);
        raw.expect_list(&mut RawList::default(), service, &[]);
    }
    raw.subscribe(&services[2]);
    let refused = raw.expect_subscription_refused();
    assert_eq!(refused, (services[2].key(), Some(Refusal::TooManySubscriptions)));
    let label = "\"too_many_subscriptions\"";
    assert_eq!(scene.cluster.session_metric(0, "session_subscriptions_refused", label), 1.0);
    // One that is held already is asked for again, one that is given back makes room.
    raw.subscribe(&services[0]);
    raw.expect_list(&mut RawList::default(), &services[0], &[]);
    raw.send(&Message::Unsubscribe(vec![services[0].key()]));
    raw.subscribe(&services[2]);
    raw.expect_list(&mut RawList::default(), &services[2], &[]);
    scene.bystanders.assert_undisturbed();
    scene.stop();
}

#[test]
fn a_publisher_over_the_limit_is_refused_and_a_removal_makes_room() {
    let mut scene = Scene::new(&["session.publishers_max=2"]);
    let (mut raw, service) = (scene.raw(), id("many"));
    raw.publish(&service, 1, 1, 1, b"a");
    raw.publish(&service, 2, 1, 1, b"b");
    let third = raw.put(&service, 3, 1, 1, b"c");
    scene.expect_refused(&mut raw, &third, Refusal::TooManyPublishers);
    raw.publish(&service, 2, 2, 1, b"bb");
    let removal = raw.removal(&service, 1, 2, 1);
    assert!(is_taken(&raw.write(&removal)));
    assert!(is_taken(&raw.write(&third)));
    scene.stop();
}

#[test]
fn refused_publishers_do_not_count_against_the_limit() {
    let mut scene = Scene::new(&["session.publishers_max=1"]);
    let service = id("counted");
    let (mut owner, mut raw) = (Raw::connect(scene.cluster.addr(0), 901), scene.raw());
    owner.publish(&service, 1, 1, 1, b"mine");
    let entries = raw.put(&service, 1, 2, 1, b"stolen");
    scene.expect_refused(&mut raw, &entries, Refusal::ForeignRegistration);
    raw.publish(&service, 2, 1, 1, b"own");
    scene.stop();
}

#[test]
fn a_client_too_many_is_told_when_to_come_back() {
    let mut scene = Scene::new(&["session.clients_max=3"]);
    let addr = scene.cluster.sessions[0].admin.addr;
    let mut last = scene.raw();
    let mut refused = Vec::new();
    for counted in 1..=20 {
        let (code, text, retry_after_ms) = scene.open().expect_error_and_hint();
        assert_eq!(code, ErrorCode::TooManyConnections as u16);
        assert!(text.contains("as many clients as this session takes"), "{text}");
        assert!((1000..=5000).contains(&retry_after_ms), "{retry_after_ms}");
        refused.push(retry_after_ms);
        assert_eq!(scene.errors(ErrorCode::TooManyConnections), f64::from(counted));
    }
    assert_eq!(scene.cluster.session_metric(0, "session_drop_storms", ""), 0.0);
    last.send(&Message::Goodbye);
    until_metric(addr, "session_clients", "", |clients| clients == 2.0);
    scene.raw().publish(&id("room"), 1, 1, 1, b"a");
    scene.bystanders.assert_undisturbed();
    scene.stop();
}

#[test]
fn clients_that_come_too_fast_are_sent_away_and_come_back_when_they_were_told() {
    let mut scene = Scene::new(&["session.accept_rate=4", "session.accept_burst=2"]);
    let begin = std::time::Instant::now();
    let clients: Vec<_> = (0..10).map(|_| scene.cluster.client(0)).collect();
    let mut told = 0;
    for client in &clients {
        until(client, |update| match update {
            Update::Disconnected(reason) => {
                assert!(
                    reason.contains("accept_rate: connections come faster than they are let in"),
                    "{reason}"
                );
                told += 1;
                false
            }
            Update::Connected(_) => true,
            other => panic!("{other:?}"),
        });
    }
    // Two at once, perhaps, and the others at four a second.
    assert!(begin.elapsed() > std::time::Duration::from_millis(1_900), "{:?}", begin.elapsed());
    assert!((8..20).contains(&told), "{told}: each waited as told and few met others at the door again");
    assert_eq!(scene.errors(ErrorCode::AcceptRate), f64::from(told));
    assert_eq!(scene.cluster.session_metric(0, "session_accepted", ""), 12.0);
    assert_eq!(scene.cluster.session_metric(0, "session_drop_storms", ""), 0.0);
    scene.bystanders.assert_undisturbed();
    drop(clients);
    scene.stop();
}
