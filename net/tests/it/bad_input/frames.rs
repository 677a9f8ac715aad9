//! Clients whose frames cannot be read or do not belong where they come.

use slotcast_engine::id::{ClientId, Revision, SlotId};
use slotcast_net::wire::{
    ErrorCode, Message,
    header::{CLIENT_FRAME_BYTES_MAX, Kind, PROTOCOL, write_frame},
    message::SubscribeItem,
};

use crate::{
    bad_input::{Scene, id},
    cluster::until_metric,
    raw::{Raw, RawList, altered, link_hello},
};

fn hello(protocol: u16, client: u64) -> Message<'static> {
    Message::Hello { protocol, client: ClientId(client) }
}

/// A subscription to a data id of any name.
fn subscription(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write_frame(&mut out, Kind::Subscribe, SlotId::NONE, |body| {
        body.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        body.extend_from_slice(&[0; 16]);
        body.extend_from_slice(&(name.len() as u64).to_le_bytes());
        body.extend_from_slice(name);
        0
    });
    out
}

#[test]
fn a_frame_that_is_too_long_is_refused_by_its_header() {
    let mut scene = Scene::new(&[]);
    for len in [CLIENT_FRAME_BYTES_MAX + 16, 1 << 30, 0xffff_fff0, 0, 8, 24] {
        let bytes = altered(&Message::Ping(1), |frame| {
            frame[0..4].copy_from_slice(&(len as u32).to_le_bytes());
        });
        let words = format!("frame length {len} is out of range (limit {CLIENT_FRAME_BYTES_MAX})");
        scene.expect_closed(scene.raw(), &bytes[..16], ErrorCode::Frame, &words);
    }
    scene.stop();
}

#[test]
fn a_wrong_checksum_closes_only_its_own_connection() {
    let mut scene = Scene::new(&[]);
    for at in [8, 17] {
        let mut bytes = altered(&Message::Ping(1), |_| {});
        bytes[at] ^= 1;
        scene.expect_closed(scene.raw(), &bytes, ErrorCode::Frame, "checksum mismatch");
    }
    scene.stop();
}

#[test]
fn unknown_types_and_flags_are_named() {
    let mut scene = Scene::new(&[]);
    let unknown = altered(&Message::Ping(1), |frame| frame[4] = 99);
    scene.expect_closed(scene.raw(), &unknown, ErrorCode::Frame, "unknown frame type 99");
    let traced = altered(&Message::Ping(1), |frame| frame[5] = 0x80);
    scene.expect_closed(scene.raw(), &traced, ErrorCode::Frame, "unsupported frame flags 0x80");
    let foreign = altered(&link_hello(7, 1024), |_| {});
    scene.expect_closed(scene.raw(), &foreign, ErrorCode::Unexpected, "no client sends");
    scene.stop();
}

#[test]
fn a_body_that_is_too_short_is_named() {
    let mut scene = Scene::new(&[]);
    let short = altered(&Message::Unsubscribe(Vec::new()), |frame| frame[16] = 200);
    scene.expect_closed(
        scene.raw(),
        &short,
        ErrorCode::Frame,
        "malformed Unsubscribe frame: it is too short",
    );
    scene.stop();
}

#[test]
fn an_unknown_protocol_version_is_told_which_one_is_spoken() {
    let mut scene = Scene::new(&[]);
    for protocol in [0, PROTOCOL + 1, u16::MAX] {
        let words = format!("protocol version {protocol} is not spoken here, {PROTOCOL} is");
        let bytes = altered(&hello(protocol, 901), |_| {});
        scene.expect_closed(scene.open(), &bytes, ErrorCode::ProtocolVersion, &words);
    }
    scene.stop();
}

#[test]
fn the_hello_comes_first_and_once_and_names_the_client() {
    let mut scene = Scene::new(&[]);
    let early = altered(&Message::Ping(1), |_| {});
    scene.expect_closed(scene.open(), &early, ErrorCode::Unexpected, "first message has to be a hello");
    let second = altered(&hello(PROTOCOL, 900), |_| {});
    scene.expect_closed(scene.raw(), &second, ErrorCode::Unexpected, "second hello");
    let nobody = altered(&hello(PROTOCOL, 0), |_| {});
    scene.expect_closed(scene.open(), &nobody, ErrorCode::Unexpected, "client id 0");
    scene.stop();
}

#[test]
fn nothing_of_a_stream_counts_behind_a_fault() {
    let mut scene = Scene::new(&[]);
    let raw = scene.raw();
    let mut bytes = altered(&Message::Ping(1), |frame| frame[4] = 99);
    let item = SubscribeItem { id: id("late"), since: Revision::ZERO, digest: 0 };
    Message::Subscribe(vec![item]).write(&mut bytes);
    scene.expect_closed(raw, &bytes, ErrorCode::Frame, "unknown frame type 99");
    until_metric(scene.cluster.sessions[0].admin.addr, "session_subscriptions", "", |held| held == 1.0);
    scene.stop();
}

#[test]
fn subscriptions_to_impossible_names_say_what_is_wrong_with_the_name() {
    let mut scene = Scene::new(&[]);
    let long = format!("public\u{1f}default\u{1f}{}", "x".repeat(257));
    for (name, words) in [
        ("", "data id is empty"),
        ("public\u{1f}default\u{1f}", "service is empty"),
        ("public\u{1f}def\nault\u{1f}a", "group contains a control character"),
        ("checkout", "exactly three parts"),
        (&long, "service is 257 bytes long, the limit is 256"),
        (&"y".repeat(500), "data id is 500 bytes long"),
    ] {
        scene.expect_closed(scene.raw(), &subscription(name.as_bytes()), ErrorCode::Frame, words);
    }
    scene.expect_closed(scene.raw(), &subscription(b"\xff\xfe"), ErrorCode::Frame, "not UTF-8");
    scene.stop();
}

#[test]
fn a_connection_that_ends_in_the_middle_of_a_frame_or_before_the_hello_is_only_counted() {
    let mut scene = Scene::new(&[]);
    let addr = scene.cluster.sessions[0].admin.addr;
    let mut drops = 0.0;
    let mut bytes = altered(&Message::Subscribe(Vec::new()), |frame| frame.resize(4096, 0));
    bytes[0..4].copy_from_slice(&4096u32.to_le_bytes());
    let cuts = [1, 15, 16, 17, 4095];
    for cut in cuts {
        let mut raw = scene.raw();
        raw.send_bytes(&bytes[..cut]);
        drop(raw);
        drops += 1.0;
        until_metric(addr, "session_client_drops", "", |counted| counted == drops);
    }
    for greeting in [&b""[..], &bytes[..7]] {
        let mut raw = scene.open();
        raw.send_bytes(greeting);
        drop(raw);
        drops += 1.0;
        until_metric(addr, "session_client_drops", "", |counted| counted == drops);
    }
    until_metric(addr, "session_clients", "", |clients| clients == 2.0);
    scene.bystanders.assert_undisturbed();
    scene.stop();
}

#[test]
fn connections_that_never_say_hello_are_no_storm_of_departures() {
    let mut scene = Scene::new(&[]);
    let addr = scene.cluster.sessions[0].admin.addr;
    (0..30).for_each(|_| drop(scene.open()));
    until_metric(addr, "session_client_drops", "", |counted| counted == 30.0);
    for _ in 0..30 {
        let mut raw = scene.raw();
        raw.send_bytes(&[0; 16]);
        raw.expect_error();
    }
    assert_eq!(scene.cluster.session_metric(0, "session_drop_storms", ""), 0.0);
    scene.bystanders.assert_undisturbed();
    scene.stop();
}

#[test]
fn a_claim_to_hold_an_impossible_revision_leaves_the_link_alone() {
    let mut scene = Scene::new(&[]);
    let service = id("claimed");
    let mut owner = Raw::connect(scene.cluster.addr(0), 901);
    owner.publish(&service, 1, 1, 1, b"a");
    let mut raw = scene.raw();
    for epoch in [100_000, 1 << 20, (1 << 24) - 1] {
        let since = Revision((epoch << 40) + 5);
        raw.send(&Message::Unsubscribe(vec![service.key()]));
        raw.send(&Message::Subscribe(vec![SubscribeItem { id: service.clone(), since, digest: 77 }]));
        raw.expect_list(&mut RawList::default(), &service, &[b"a"]);
    }
    assert_eq!(scene.cluster.session_metric(0, "session_links_up", ""), 1.0);
    assert_eq!(scene.cluster.session_metric(0, "session_link_faults", ""), 0.0);
    scene.bystanders.assert_undisturbed();
    scene.stop();
}
