//! Clients that do not read, or read slowly: they cost a bounded amount of memory and nobody else any time.

use std::io::{Read, Write};

use slotcast_net::wire::{ErrorCode, Message};

use crate::{
    bad_input::{Bystanders, Scene, id},
    cluster::{Cluster, until_metric},
    raw::{Raw, RawList},
};

const WAITING: &str = "session_slow_client_waiting_bytes";

/// A payload that says its number. Few of them fill what the kernel holds for the two ends of a narrow connection.
fn payload(number: usize) -> Vec<u8> {
    format!("{number:030000}").into_bytes()
}

#[test]
fn a_client_that_never_reads_costs_nobody_anything_and_is_closed() {
    let mut scene = Scene::new(&["session.push_interval_max=20ms", "session.slow_client_eviction=1500ms"]);
    let addr = scene.cluster.sessions[0].admin.addr;
    let mut stalled = Raw::connect_narrow(scene.cluster.addr(0), 902);
    stalled.subscribe(&scene.bystanders.service.clone());
    until_metric(addr, "session_subscriptions", "", |held| held == 2.0);
    for number in 0..50 {
        scene.bystanders.change(&payload(number));
    }
    until_metric(addr, "session_slow_clients", "", |counted| counted >= 1.0);
    let mut pings = 0;
    until_metric(addr, WAITING, "", |bytes| {
        stalled.send(&Message::Ping(pings));
        pings += 1;
        bytes > 0.0
    });
    for number in 50..200 {
        scene.bystanders.change(&payload(number));
    }
    // Its answers wait; of the 6 MB that the others got nothing does.
    let waiting = scene.cluster.session_metric(0, WAITING, "");
    assert!(waiting <= pings as f64 * 32.0, "{waiting} bytes");
    stalled.await_close_unread();
    assert_eq!(scene.errors(ErrorCode::SlowReader), 1.0);
    until_metric(addr, WAITING, "", |bytes| bytes == 0.0);
    until_metric(addr, "session_clients", "", |clients| clients == 2.0);
    scene.bystanders.assert_undisturbed();
    scene.stop();
}

#[test]
fn a_client_that_asks_and_asks_without_reading_the_answers_is_closed_at_once() {
    let mut scene = Scene::new(&[
        "session.client_send_buffer=4096",
        "session.subscriptions_max=10",
        "session.publishers_max=10",
    ]);
    let mut greedy = Raw::connect_narrow(scene.cluster.addr(0), 902);
    let mut pings = Vec::new();
    (0..1000).for_each(|nonce| Message::Ping(nonce).write(&mut pings));
    let mut sent = 0;
    while greedy.stream.write_all(&pings).is_ok() {
        sent += pings.len();
        assert!(sent < 64 << 20, "it is answered without end");
    }
    assert_eq!(scene.errors(ErrorCode::SlowReader), 1.0);
    scene.bystanders.assert_undisturbed();
    scene.stop();
}

#[test]
fn a_client_that_reads_slowly_gets_the_latest_state_in_the_end() {
    let cluster = Cluster::start(1, 1, &["session.history_bytes_max=67108864"]);
    let service = id("slow");
    let mut scene = Scene { bystanders: Bystanders::of(&cluster, 0, service.clone()), cluster };
    let mut publisher = Raw::connect(scene.cluster.addr(0), 901);
    let mut slow = Raw::connect_narrow(scene.cluster.addr(0), 902);
    slow.subscribe(&service);
    let mut list = RawList::default();
    slow.expect_list(&mut list, &service, &[b"0"]);
    let mut taken = Vec::new();
    let mut change = |number: usize| {
        // Ten registrations change in turn; every third change is a removal.
        let (register, version) = (number as u64 % 10, number as u64 + 1);
        if number % 3 == 2 {
            let removal = publisher.removal(&service, register, version, 1);
            let _ = publisher.write(&removal);
        } else {
            publisher.publish(&service, register, version, 1, &payload(number));
        }
    };
    for number in 0..300 {
        change(number);
        if number >= 100 {
            let mut bytes = [0; 1000];
            let got = slow.stream.read(&mut bytes).unwrap();
            taken.extend_from_slice(&bytes[..got]);
        }
    }
    slow.hold(&taken);
    scene.bystanders.change(b"the last");
    let wanted = scene.bystanders.view.values().into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>();
    slow.expect_list(&mut list, &service, &wanted.iter().map(Vec::as_slice).collect::<Vec<_>>());
    assert_eq!(list.revision, scene.bystanders.view.revision);
    assert!(list.frames < 200, "{} frames for 301 changes", list.frames);
    assert_eq!(scene.errors(ErrorCode::SlowReader), 0.0);
    scene.bystanders.assert_undisturbed();
    scene.stop();
}
