//! A session tier that was written from docs/session-protocol.md alone, beside one of ours at the same data node: what
//! clients see must not depend on which of the two they are connected to.

use std::time::Duration;

use slotcast_engine::id::{ClientId, DataId};
use slotcast_net::{
    client::{Client, ClientConfig, Update},
    config::Config,
    process::DataProcess,
};

use crate::{
    cluster::{Cluster, View, until, until_acknowledged, until_list, until_metric},
    raw::Raw,
};

#[path = "../../examples/tiny_session.rs"]
#[allow(dead_code)]
mod example;

use example::{Options, TinySession};

fn id(service: &str) -> DataId {
    DataId::new("public", "default", service).unwrap()
}

/// A session of ours and the other one.
struct Pair {
    cluster: Cluster,
    tiny: TinySession,
}

impl Pair {
    fn start(shards: u32) -> Self {
        let cluster = Cluster::start(shards, 1, &["session.client_disconnect_grace=50ms"]);
        let options = Options {
            listen: "127.0.0.1:0".parse().unwrap(),
            slot_count: 1024,
            shards: cluster.data.server.addrs.clone(),
            lease: Duration::from_secs(30),
            grace: Duration::from_millis(50),
        };
        Self { tiny: TinySession::start(&options).unwrap(), cluster }
    }

    /// A client of ours, and one of the other.
    fn clients(&self) -> [Client; 2] {
        [self.cluster.addr(0), self.tiny.addr].map(|addr| Client::connect(ClientConfig::new([addr])).unwrap())
    }

    fn stop(self) {
        self.tiny.stop();
        self.cluster.stop();
    }
}

fn both_until(clients: [&Client; 2], views: &mut [View; 2], id: &DataId, payloads: &[&[u8]]) {
    for (client, view) in clients.into_iter().zip(views) {
        until_list(client, view, id, payloads);
    }
}

#[test]
fn clients_of_both_sessions_see_each_other_and_who_leaves() {
    let pair = Pair::start(2);
    let [ours, theirs] = pair.clients();
    let services: Vec<DataId> = (0..8).map(|number| id(&format!("both-{number}"))).collect();
    let mut views: Vec<[View; 2]> = Vec::new();
    for service in &services {
        let mut of_service = [View::default(), View::default()];
        [&ours, &theirs].into_iter().for_each(|client| client.subscribe(service).unwrap());
        both_until([&ours, &theirs], &mut of_service, service, &[]);
        views.push(of_service);
    }
    for (service, views) in services.iter().zip(&mut views) {
        ours.publish(service, "host-1", "a", b"ours").unwrap();
        let registration = theirs.publish(service, "host-2", "b", b"theirs").unwrap();
        both_until([&ours, &theirs], views, service, &[b"ours", b"theirs"]);
        theirs.republish(registration, service, "host-2", "b", b"changed").unwrap();
        both_until([&ours, &theirs], views, service, &[b"changed", b"ours"]);
        let further = theirs.publish(service, "host-3", "b", b"further").unwrap();
        both_until([&ours, &theirs], views, service, &[b"changed", b"further", b"ours"]);
        theirs.unpublish(further).unwrap();
        both_until([&ours, &theirs], views, service, &[b"changed", b"ours"]);
        assert!(views.iter().all(|view| view.snapshots == 1), "the first answer, and then diffs");
    }
    // A goodbye removes at once, a drop after the grace.
    drop(theirs);
    until(&ours, |update| {
        services.iter().zip(&mut views).for_each(|(service, views)| views[0].take(service, update));
        views.iter().all(|views| views[0].values() == [b"ours"])
    });
    let (service, view) = (&services[0], &mut views[0][0]);
    let mut dropping = Raw::connect(pair.tiny.addr, 700);
    dropping.publish(service, 1, 1, 1, b"dropping");
    until_list(&ours, view, service, &[b"dropping", b"ours"]);
    drop(dropping);
    until_list(&ours, view, service, &[b"ours"]);
    drop(ours);
    pair.stop();
}

#[test]
fn a_restart_of_the_data_node_loses_nothing_and_empties_no_list() {
    let Pair { cluster, tiny } = Pair::start(1);
    let clients =
        [cluster.addr(0), tiny.addr].map(|addr| Client::connect(ClientConfig::new([addr])).unwrap());
    let [ours, theirs] = &clients;
    let Cluster { mut data, sessions } = cluster;
    let service = id("restart");
    let mut views = [View::default(), View::default()];
    [ours, theirs].into_iter().for_each(|client| client.subscribe(&service).unwrap());
    let (addr, mut payloads) = (data.server.addrs[0], Vec::new());
    for round in 0..4 {
        if round > 0 {
            data.server.stop().unwrap();
            let settings = [
                format!("nodes=[{{id=\"data-1\",addr=\"{addr}\",slots=[0,1023]}}]"),
                "data.http=127.0.0.1:0".into(),
                // Whoever comes back late is absent from the first lists.
                "data.settle=1ms".into(),
            ];
            data = DataProcess::start(&Config::load(None, &settings).unwrap()).unwrap();
        }
        for (client, of) in [(ours, "ours"), (theirs, "theirs")] {
            let payload = format!("{of}-{round}").into_bytes();
            client.publish(&service, of, "", &payload).unwrap();
            payloads.push(payload);
        }
        let wanted: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
        both_until([ours, theirs], &mut views, &service, &wanted);
        for view in &views {
            assert_eq!((view.removals_seen, view.snapshots), (0, 1), "round {round}");
        }
    }
    drop(clients);
    tiny.stop();
    sessions.into_iter().for_each(|session| session.server.stop().unwrap());
    data.server.stop().unwrap();
}

#[test]
fn a_client_moves_between_the_sessions_without_being_missed() {
    let pair = Pair::start(1);
    let [ours, theirs] = pair.clients();
    let service = id("moving");
    let mut views = [View::default(), View::default()];
    [&ours, &theirs].into_iter().for_each(|client| client.subscribe(&service).unwrap());
    let targets = [pair.tiny.addr, pair.cluster.addr(0)];
    let mut held = Raw::connect(targets[0], 700);
    held.publish(&service, 1, 1, 1, b"moving");
    both_until([&ours, &theirs], &mut views, &service, &[b"moving"]);
    for attach in 2..=5u32 {
        let mut next = Raw::connect(targets[(attach as usize + 1) % 2], 700);
        next.publish(&service, 1, 1, attach, b"moving");
        // The session that it leaves finds out, when the grace is over, that it is no longer the owner.
        held = next;
        let refused = |count: f64| count >= f64::from(attach - 1);
        until_metric(pair.cluster.data.admin.addr, "data_writes_refused", "\"not_owner\"", refused);
    }
    held.publish(&service, 1, 2, 5, b"moved");
    both_until([&ours, &theirs], &mut views, &service, &[b"moved"]);
    assert!(views.iter().all(|view| view.removals_seen == 0));
    drop(held);
    drop((ours, theirs));
    pair.stop();
}

#[test]
fn a_subscriber_resumes_at_the_other_session_where_it_was() {
    let pair = Pair::start(1);
    let publisher = pair.cluster.client(0);
    let addrs = [pair.cluster.addr(0), pair.tiny.addr];
    let config = ClientConfig { client: ClientId(2), ..ClientConfig::new(addrs) };
    let (subscriber, service, mut view) = (Client::connect(config).unwrap(), id("resuming"), View::default());
    subscriber.subscribe(&service).unwrap();
    let mut payloads: Vec<Vec<u8>> = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..6u8 {
        payloads.push(vec![round]);
        publisher.publish(&service, "host", "", &[round]).unwrap();
        until_acknowledged(&publisher);
        let wanted: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
        until_list(&subscriber, &mut view, &service, &wanted);
        assert_eq!(view.removals_seen, 0, "round {round}");
        subscriber.drop_connection().unwrap();
        until(&subscriber, |update| {
            view.take(&service, update);
            match update {
                Update::Connected(session) => seen.insert(session.0) || seen.len() == 2,
                _ => false,
            }
        });
    }
    assert_eq!(seen.len(), 2, "it was at both");
    drop((publisher, subscriber));
    pair.stop();
}
