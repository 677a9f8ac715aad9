//! Sessions that do not fit the data node, or break the rules of a link.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    time::Instant,
};

use slotcast_engine::{
    error::Refusal,
    id::{Revision, SessionId},
};
use slotcast_net::{
    config::Config,
    process::SessionProcess,
    session::config::Routes,
    wire::{
        ErrorCode, Message,
        header::{FRAME_BYTES_MAX, PROTOCOL},
    },
};

use crate::{
    bad_input::{Scene, id, is_taken},
    cluster::{PATIENCE, get, until_metric},
    raw::{Raw, altered, link_hello, narrow_stream, seal_record},
};

const SLOTS: u32 = 1024;

impl Scene {
    fn shard(&self) -> SocketAddr {
        self.cluster.data.server.addrs[0]
    }

    fn raw_link(&self) -> Raw {
        Raw::link(self.shard(), 9000, SLOTS)
    }

    fn link_errors(&self, code: ErrorCode) -> f64 {
        self.cluster.data_metric("data_link_errors", &format!("\"{}\"", code.label()))
    }

    /// Sends bytes for which the link is closed. It is counted, and neither the true session nor its clients notice.
    fn expect_link_closed(&mut self, mut raw: Raw, bytes: &[u8], code: ErrorCode, words: &str) {
        let before = self.link_errors(code);
        raw.send_bytes(bytes);
        let (told, text) = raw.expect_error();
        assert_eq!(told, code as u16, "{text}");
        assert!(text.contains(words), "{text:?} does not say {words:?}");
        assert_eq!(self.link_errors(code), before + 1.0, "counted once");
        self.bystanders.assert_undisturbed();
        assert_eq!(self.cluster.session_metric(0, "session_link_faults", ""), 0.0);
    }
}

#[test]
fn another_slot_count_or_protocol_is_refused_at_the_hello() {
    let mut scene = Scene::new(&[]);
    let open = |scene: &Scene| Raw::open(scene.shard());
    let bytes = altered(&link_hello(9000, 512), |_| {});
    let words = "the session counts 512 slots, this cluster has 1024";
    scene.expect_link_closed(open(&scene), &bytes, ErrorCode::Configuration, words);
    let bytes = altered(&link_hello(9000, SLOTS), |frame| frame[16] = 9);
    let words = format!("protocol version 9 is not spoken here, {PROTOCOL} is");
    scene.expect_link_closed(open(&scene), &bytes, ErrorCode::ProtocolVersion, &words);
    let bytes = altered(&Message::Ping(1), |_| {});
    scene.expect_link_closed(open(&scene), &bytes, ErrorCode::Unexpected, "has to be a link hello");
    let bytes = altered(&link_hello(9000, SLOTS), |_| {});
    scene.expect_link_closed(scene.raw_link(), &bytes, ErrorCode::Unexpected, "second link hello");
    scene.stop();
}

#[test]
fn a_session_with_another_slot_count_is_not_ready_and_counts_why() {
    let mut scene = Scene::new(&[]);
    let settings = [
        "slot_count=512",
        "nodes=[{id=\"data-1\",addr=\"127.0.0.1:0\",slots=[0,511]}]",
        "session.listen=127.0.0.1:0",
        "session.http=127.0.0.1:0",
        "session.clients_max=10",
    ];
    let config = Config::load(None, &settings.map(String::from)).unwrap();
    let routes = Routes::to_node(512, vec![scene.shard()]);
    let misfit = SessionProcess::start(&config, Some(routes)).unwrap();
    until_metric(misfit.admin.addr, "session_link_faults", "", |faults| faults >= 1.0);
    assert_eq!(get(misfit.admin.addr, "/readyz"), (503, "0 of 1 links are up\n".into()));
    assert!(scene.link_errors(ErrorCode::Configuration) >= 1.0);
    scene.bystanders.assert_undisturbed();
    misfit.server.stop().unwrap();
    scene.stop();
}

#[test]
fn garbage_on_a_link_closes_only_that_link() {
    let mut scene = Scene::new(&[]);
    let open = |scene: &Scene| Raw::open(scene.shard());
    let limit = format!("limit {FRAME_BYTES_MAX}");
    scene.expect_link_closed(open(&scene), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", ErrorCode::Frame, &limit);
    scene.expect_link_closed(scene.raw_link(), &[0xff; 64], ErrorCode::Frame, &limit);
    let unknown = altered(&Message::Ping(1), |frame| frame[4] = 77);
    scene.expect_link_closed(scene.raw_link(), &unknown, ErrorCode::Frame, "unknown frame type 77");
    let mut broken = altered(&Message::Ping(1), |_| {});
    broken[20] ^= 1;
    scene.expect_link_closed(scene.raw_link(), &broken, ErrorCode::Frame, "checksum mismatch");
    let welcome =
        altered(&Message::Welcome { session: SessionId(1), publishers_max: 1, subscriptions_max: 1 }, |_| {});
    scene.expect_link_closed(scene.raw_link(), &welcome, ErrorCode::Unexpected, "no session sends");
    let entries = altered(&Message::Write { sequence: 1, entries: &[0xee; 48] }, |_| {});
    scene.expect_link_closed(scene.raw_link(), &entries, ErrorCode::Frame, "write frame");
    scene.stop();
}

#[test]
fn a_write_sequence_that_jumps_or_repeats_ends_the_link() {
    let mut scene = Scene::new(&[]);
    let service = id("sequence");
    for (session, sequence) in [(9001, 3), (9002, 1), (9003, 0), (9004, u64::MAX)] {
        let mut link = Raw::link(scene.shard(), session, SLOTS);
        link.publish(&service, session, 1, 1, b"a");
        let entries = link.put(&service, session, 2, 1, b"b");
        let bytes = altered(&Message::Write { sequence, entries: &entries }, |_| {});
        let words = "write sequence of this link is not contiguous";
        scene.expect_link_closed(link, &bytes, ErrorCode::SessionRefused, words);
    }
    scene.stop();
}

#[test]
fn records_of_a_session_are_validated_at_the_data_node_too() {
    let mut scene = Scene::new(&["data.validate_records=true"]);
    let (mut link, service) = (scene.raw_link(), id("validated"));
    let mut record = link.record(&service, 1, &[7; 200]);
    let root = record.len() - usize::from(record[6]) - 32;
    record[root + 24..root + 28].copy_from_slice(&i32::MAX.to_le_bytes());
    seal_record(&mut record);
    let entries = link.put_record(&service, service.as_bytes(), 1, (1, 1), &record);
    scene.expect_refused(&mut link, &entries, Refusal::RecordInvalid);
    link.publish(&service, 1, 1, 1, b"a");
    scene.stop();
}

#[test]
fn a_session_writes_in_its_own_name_only() {
    let mut scene = Scene::new(&[]);
    let (mut link, service) = (scene.raw_link(), id("owned"));
    let mut entries = link.put(&service, 1, 1, 1, b"a");
    let put = entries.len() - 48 - link.record(&service, 1, b"a").len();
    entries[put + 40] ^= 1;
    scene.expect_refused(&mut link, &entries, Refusal::NotOwner);
    let entries = link.put(&service, 1, 1, 1, b"a");
    assert!(is_taken(&link.write(&entries)));
    // Another incarnation does not remove it.
    let mut other = Raw::link(scene.shard(), 9001, SLOTS);
    let entries = other.removal(&service, 1, 2, 1);
    scene.expect_refused(&mut other, &entries, Refusal::NotOwner);
    // A put of an epoch that is not the leader's.
    let mut entries = link.put(&service, 1, 2, 1, b"b");
    entries[put + 36] = 200;
    scene.expect_refused(&mut link, &entries, Refusal::EpochMismatch);
    scene.stop();
}

#[test]
fn a_link_that_ends_in_the_middle_of_a_frame_is_taken_off() {
    let mut scene = Scene::new(&[]);
    let addr = scene.cluster.data.admin.addr;
    let mut link = scene.raw_link();
    until_metric(addr, "data_links", "", |links| links >= 2.0);
    link.subscribe(&id("half"));
    let bytes = altered(&Message::Ping(1), |_| {});
    link.send_bytes(&bytes[..20]);
    drop(link);
    until_metric(addr, "data_links{", "", |links| links == 1.0);
    scene.bystanders.assert_undisturbed();
    scene.stop();
}

#[test]
fn an_epoch_that_nothing_can_follow_is_refused() {
    let mut scene = Scene::new(&[]);
    let hello = Message::LinkHello {
        protocol: PROTOCOL,
        slot_count: SLOTS,
        session: SessionId(9000),
        run: 0,
        epoch_seen: Revision::EPOCH_MAX,
    };
    let bytes = altered(&hello, |_| {});
    scene.expect_link_closed(
        Raw::open(scene.shard()),
        &bytes,
        ErrorCode::SessionRefused,
        "leader epoch is another one",
    );
    scene.stop();
}

#[test]
fn a_link_that_never_introduces_itself_is_told_so_and_closed() {
    let mut scene = Scene::new(&["data.link_timeout=100ms"]);
    let mut introduced = scene.raw_link();
    let (code, text) = Raw::open(scene.shard()).expect_error();
    assert_eq!(code, ErrorCode::HelloTimeout as u16, "{text}");
    assert!(text.contains("send a link hello right after the connect"), "{text}");
    assert_eq!(scene.link_errors(ErrorCode::HelloTimeout), 1.0);
    until_metric(scene.cluster.data.admin.addr, "data_links{", "", |links| links == 2.0);
    // Who has introduced himself may be silent for as long as his lease runs.
    introduced.publish(&id("later"), 1, 1, 1, b"a");
    scene.bystanders.assert_undisturbed();
    scene.stop();
}

#[test]
fn a_refused_link_that_does_not_read_why_is_reset() {
    let mut scene = Scene::new(&["data.link_timeout=100ms"]);
    let (addr, service) = (scene.cluster.data.admin.addr, id("large"));
    let mut writer = scene.raw_link();
    for register in 0..200 {
        writer.publish(&service, register, 1, 1, &[7; 30_000]);
    }
    let mut stalled = Raw::over(narrow_stream(scene.shard()));
    stalled.send(&link_hello(9001, SLOTS));
    stalled.expect(|message| matches!(message, Message::LinkWelcome { .. }).then_some(()));
    // More than the kernel holds for the two ends, and then something to be refused for.
    stalled.subscribe(&service);
    stalled.send(&Message::Pong(1));
    stalled.await_close_unread();
    assert_eq!(scene.link_errors(ErrorCode::Unexpected), 1.0);
    until_metric(addr, "data_refused_links_cut", "", |cut| cut == 1.0);
    until_metric(addr, "data_links{", "", |links| links == 2.0);
    scene.bystanders.assert_undisturbed();
    scene.stop();
}

#[test]
fn an_ended_lease_has_a_code_of_its_own() {
    let mut scene = Scene::new(&[]);
    let mut leaving = scene.raw_link();
    leaving.publish(&id("left"), 1, 1, 1, b"a");
    leaving.send(&Message::Goodbye);
    assert_eq!(
        leaving.expect_error().0,
        ErrorCode::SessionEnded as u16,
        "it is told, though it asks nothing"
    );
    let hello = altered(&link_hello(9000, SLOTS), |_| {});
    let words = "the lease of this session incarnation has ended";
    scene.expect_link_closed(Raw::open(scene.shard()), &hello, ErrorCode::SessionEnded, words);
    scene.stop();
}

#[test]
fn a_second_link_of_an_incarnation_replaces_the_first() {
    let mut scene = Scene::new(&[]);
    let mut first = scene.raw_link();
    first.publish(&id("moved"), 1, 1, 1, b"a");
    let mut second = Raw::open(scene.shard());
    second.send(&link_hello(9000, SLOTS));
    let last = second.expect(|message| match message {
        Message::LinkWelcome { last_sequence, .. } => Some(*last_sequence),
        _ => None,
    });
    assert_eq!(last, 1, "the sequence goes on over the new link");
    assert_eq!(first.expect_error().0, ErrorCode::Replaced as u16);
    assert_eq!(scene.link_errors(ErrorCode::Replaced), 1.0);
    scene.bystanders.assert_undisturbed();
    scene.stop();
}

#[test]
fn a_session_ends_when_its_lease_has_and_for_no_other_refusal() {
    let node = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = ["session.listen=127.0.0.1:0", "session.http=127.0.0.1:0", "session.clients_max=10"];
    let config = Config::load(None, &settings.map(String::from)).unwrap();
    let routes = Routes::to_node(SLOTS, vec![node.local_addr().unwrap()]);
    let session = SessionProcess::start(&config, Some(routes)).unwrap();
    for (code, faults) in [(ErrorCode::SessionRefused, 1.0), (ErrorCode::SessionEnded, 2.0)] {
        assert!(!session.server.is_finished());
        let (mut link, _) = node.accept().unwrap();
        // What is not read would reset the connection and take the error with it.
        link.read_exact(&mut altered(&link_hello(1, SLOTS), |_| {})).unwrap();
        let refused =
            Message::Error { code: code as u16, retry_after_ms: 0, text: "something about a lease" };
        link.write_all(&altered(&refused, |_| {})).unwrap();
        if code != ErrorCode::SessionEnded {
            until_metric(session.admin.addr, "session_link_faults", "", |counted| counted == faults);
        }
    }
    let begin = Instant::now();
    while !session.server.is_finished() {
        assert!(begin.elapsed() < PATIENCE, "the session goes on under a dead incarnation");
        std::thread::yield_now();
    }
    session.server.stop().unwrap();
}
