//! A data node, sessions and clients on real sockets: what a user of the registry sees.

use slotcast_engine::id::DataId;
use slotcast_net::client::Update;

use crate::cluster::{Cluster, View, get, until, until_acknowledged, until_list};

fn id(service: &str) -> DataId {
    DataId::new("public", "default", service).unwrap()
}

#[test]
fn publish_wait_subscribe_gives_exactly_one_value() {
    let cluster = Cluster::start(1, 1, &[]);
    let client = cluster.client(0);
    let service = id("first");
    client.publish(&service, "host-1", "zone-1", b"a").unwrap();
    until_acknowledged(&client);
    client.subscribe(&service).unwrap();
    until(&client, |update| match update {
        Update::Snapshot { instances, .. } => {
            assert_eq!(instances.len(), 1);
            assert_eq!((&instances[0].1.zone[..], &instances[0].1.payload[..]), ("zone-1", &b"a"[..]));
            true
        }
        _ => false,
    });
    drop(client);
    cluster.stop();
}

#[test]
fn subscribe_first_publish_later_gives_the_same_as_a_diff() {
    let cluster = Cluster::start(2, 1, &[]);
    let (publisher, subscriber) = (cluster.client(0), cluster.client(0));
    let service = id("later");
    let mut view = View::default();
    subscriber.subscribe(&service).unwrap();
    until_list(&subscriber, &mut view, &service, &[]);
    assert_eq!(view.snapshots, 1, "an id without publishers is answered with an empty list");
    publisher.publish(&service, "host-1", "", b"a").unwrap();
    until_list(&subscriber, &mut view, &service, &[b"a"]);
    assert_eq!((view.snapshots, view.diffs), (1, 1));
    drop((publisher, subscriber));
    cluster.stop();
}

#[test]
fn clients_of_two_sessions_see_each_other_and_both_values() {
    let cluster = Cluster::start(2, 2, &[]);
    let (one, two) = (cluster.client(0), cluster.client(1));
    let service = id("both");
    one.publish(&service, "host-1", "", b"one").unwrap();
    two.publish(&service, "host-2", "", b"two").unwrap();
    for client in [&one, &two] {
        client.subscribe(&service).unwrap();
        until_list(client, &mut View::default(), &service, &[b"one", b"two"]);
    }
    drop((one, two));
    cluster.stop();
}

#[test]
fn republish_before_subscribe_gives_only_the_new_value() {
    let cluster = Cluster::start(1, 1, &[]);
    let client = cluster.client(0);
    let service = id("again");
    let registration = client.publish(&service, "host-1", "", b"old").unwrap();
    until_acknowledged(&client);
    client.republish(registration, &service, "host-1", "", b"new").unwrap();
    until_acknowledged(&client);
    client.subscribe(&service).unwrap();
    until_list(&client, &mut View::default(), &service, &[b"new"]);
    drop(client);
    cluster.stop();
}

#[test]
fn unpublish_removes_and_unsubscribe_ends_the_updates() {
    let cluster = Cluster::start(1, 1, &[]);
    let (publisher, subscriber) = (cluster.client(0), cluster.client(0));
    let (service, other) = (id("gone"), id("other"));
    let registration = publisher.publish(&service, "host-1", "", b"a").unwrap();
    let mut view = View::default();
    subscriber.subscribe(&service).unwrap();
    until_list(&subscriber, &mut view, &service, &[b"a"]);
    publisher.unpublish(registration).unwrap();
    until_list(&subscriber, &mut view, &service, &[]);
    subscriber.unsubscribe(&service).unwrap();
    subscriber.subscribe(&other).unwrap();
    until_list(&subscriber, &mut View::default(), &other, &[]);
    publisher.publish(&service, "host-1", "", b"b").unwrap();
    publisher.publish(&other, "host-1", "", b"c").unwrap();
    until(&subscriber, |update| {
        assert!(!matches!(update, Update::Diff { id, .. } if *id == service), "unsubscribed");
        matches!(update, Update::Diff { id, .. } if *id == other)
    });
    drop((publisher, subscriber));
    cluster.stop();
}

#[test]
fn a_client_that_leaves_takes_its_publishers_along_at_once() {
    let cluster = Cluster::start(1, 1, &["session.client_disconnect_grace=20s"]);
    let (publisher, subscriber) = (cluster.client(0), cluster.client(0));
    let service = id("leaving");
    publisher.publish(&service, "host-1", "", b"a").unwrap();
    let mut view = View::default();
    subscriber.subscribe(&service).unwrap();
    until_list(&subscriber, &mut view, &service, &[b"a"]);
    let before = std::time::Instant::now();
    drop(publisher);
    until_list(&subscriber, &mut view, &service, &[]);
    assert!(before.elapsed().as_secs() < 10, "a goodbye does not wait for the grace");
    drop(subscriber);
    cluster.stop();
}

#[test]
fn a_dropped_connection_resumes_without_a_removal_or_a_snapshot() {
    let cluster = Cluster::start(1, 1, &["session.client_disconnect_grace=10s"]);
    let (publisher, subscriber) = (cluster.client(0), cluster.client(0));
    let service = id("resume");
    publisher.publish(&service, "host-1", "", b"a").unwrap();
    let mut view = View::default();
    subscriber.subscribe(&service).unwrap();
    until_list(&subscriber, &mut view, &service, &[b"a"]);
    for client in [&publisher, &subscriber] {
        client.drop_connection().unwrap();
        until(client, |update| matches!(update, Update::Disconnected(_)));
        until(client, |update| {
            view.take(&service, update);
            matches!(update, Update::Connected(_))
        });
    }
    publisher.publish(&service, "host-2", "", b"b").unwrap();
    until_list(&subscriber, &mut view, &service, &[b"a", b"b"]);
    assert_eq!((view.snapshots, view.removals_seen), (1, 0), "resumed by revision, nobody seen to leave");
    drop((publisher, subscriber));
    cluster.stop();
}

#[test]
fn a_connection_that_is_gone_for_good_loses_its_publishers_after_the_grace() {
    let cluster = Cluster::start(1, 2, &["session.client_disconnect_grace=50ms"]);
    let subscriber = cluster.client(1);
    let service = id("crashed");
    let mut raw = crate::raw::Raw::connect(cluster.addr(0), 77);
    raw.publish(&service, 1, 1, 1, b"a");
    let mut view = View::default();
    subscriber.subscribe(&service).unwrap();
    until_list(&subscriber, &mut view, &service, &[b"a"]);
    drop(raw);
    until_list(&subscriber, &mut view, &service, &[]);
    drop(subscriber);
    cluster.stop();
}

#[test]
fn health_readiness_and_metrics_are_told_over_http() {
    let cluster = Cluster::start(1, 1, &[]);
    let client = cluster.client(0);
    client.publish(&id("metrics"), "host-1", "", b"a").unwrap();
    until_acknowledged(&client);
    client.subscribe(&id("metrics")).unwrap();
    until_list(&client, &mut View::default(), &id("metrics"), &[b"a"]);
    for addr in [cluster.data.admin.addr, cluster.sessions[0].admin.addr] {
        assert_eq!(get(addr, "/healthz").0, 200);
        assert_eq!(get(addr, "/readyz"), (200, "ready\n".into()));
    }
    assert_eq!(cluster.session_metric(0, "session_clients", ""), 1.0);
    assert_eq!(cluster.session_metric(0, "session_snapshots_total", ""), 1.0);
    drop(client);
    cluster.stop();
}
