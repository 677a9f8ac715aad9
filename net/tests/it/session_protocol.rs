//! docs/session-protocol.md against the code: its exchange is what a data node really says, byte by byte, and formats.md
//! lists every error that is told.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use prometheus_client::registry::Registry;
use slotcast_engine::{
    batch::{Change, ChangeKind, Durability, write_change, write_name, write_put},
    change_log::ChangeLogLimits,
    digest::{Digest, fingerprint},
    id::{DataId, Nanos, RegisterId, Revision, SessionId, Version},
    record::{Encoder, Instance, Record},
    shard::ShardConfig,
};
use slotcast_net::{
    config::Config,
    data::{
        metrics::DataMetrics,
        node::{Node, NodeLimits},
    },
    io::{
        ring::{CloseReason, ConnId, Event, SendOutcome, SharedFrame, Sockets},
        role::Role,
    },
    process::SessionProcess,
    session::config::Routes,
    wire::{ErrorCode, Frame, Message, header::FRAME_BYTES_MAX, header::PROTOCOL, message::SubscribeItem},
};

use crate::{cluster::PATIENCE, raw::Raw};

const SESSION: SessionId = SessionId(0x51);
const REGISTER: RegisterId = RegisterId(0x1122_3344_5566_7788);
const VERSION: Version = Version { number: 5, attach: 2 };
const CONN: ConnId = ConnId::from_parts(0, 1);
const NOW: Nanos = Nanos(Nanos::SECOND);

fn page(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)).unwrap()
}

/// The bytes of a dump on the page.
fn dump(page: &str, name: &str) -> Vec<u8> {
    let (_, rest) = page.split_once(&format!("```hex {name}\n")).unwrap_or(("", "\n```"));
    let (block, _) = rest.split_once("\n```").unwrap();
    let digits: String = block
        .lines()
        .map(|line| line.split_once(": ").map_or(line, |(_, bytes)| bytes))
        .flat_map(|line| line.chars().filter(char::is_ascii_hexdigit))
        .collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn lines(bytes: &[u8]) -> String {
    let word = |word: &[u8]| word.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let line = |(at, row): (usize, &[u8])| {
        format!("{:03x}: {}", at * 16, row.chunks(4).map(word).collect::<Vec<_>>().join(" "))
    };
    bytes.chunks(16).enumerate().map(line).collect::<Vec<_>>().join("\n")
}

/// What a node sends goes here.
#[derive(Default)]
struct Sent(Vec<u8>);

impl Sockets for Sent {
    fn listen(&mut self, addr: SocketAddr) -> io::Result<SocketAddr> {
        Ok(addr)
    }

    fn connect(&mut self, _: SocketAddr, _: Option<IpAddr>) -> io::Result<ConnId> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn send(&mut self, _: ConnId, parts: &[&[u8]]) -> SendOutcome {
        self.0.extend(parts.concat());
        SendOutcome::Queued
    }

    fn send_shared(&mut self, conn: ConnId, frame: &SharedFrame) -> SendOutcome {
        self.send(conn, &[frame])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn close(&mut self, _: ConnId, _: bool) {}

    fn poll(&mut self, _: &mut dyn FnMut(Event<'_>)) -> io::Result<usize> {
        Ok(0)
    }

    fn wait(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

fn node() -> Node {
    let shard = ShardConfig {
        slot_count: 1024,
        slots: 0..=1023,
        shard: 0,
        shards: 1,
        epoch: 1,
        seed: 0,
        session_lease: 30 * Nanos::SECOND,
        settle: 0,
        change_log: ChangeLogLimits::default(),
        validate: true,
        compaction_budget: 1 << 20,
    };
    let metrics = DataMetrics::new(&mut Registry::default(), 0);
    Node::new(shard, NodeLimits::default(), 0x7e57, metrics)
}

/// Frames of the exchange: the dump's name, who sends it, the frame.
struct Exchange {
    node: Node,
    frames: Vec<(String, Vec<u8>)>,
}

impl Exchange {
    /// The session sends messages in one piece; the answers of that turn are called `answers`, in their order.
    fn turn(&mut self, says: &[(&str, Message<'_>)], answers: &[&str]) {
        for (name, message) in says {
            let mut frame = Vec::new();
            message.write(&mut frame);
            self.node.handle(Event::Received { conn: CONN, bytes: &frame }, NOW);
            self.frames.push((name.to_string(), frame));
        }
        let mut sent = Sent::default();
        self.node.turn(NOW, &mut sent);
        let mut rest = &sent.0[..];
        for name in answers {
            let frame = Frame::read(rest, FRAME_BYTES_MAX).unwrap().unwrap();
            rest = &rest[frame.bytes.len()..];
            self.frames.push((name.to_string(), frame.bytes.to_vec()));
        }
        assert!(rest.is_empty(), "the node says more than the page");
    }
}

fn change(kind: ChangeKind, id: &DataId, number: u64) -> Change {
    Change {
        kind,
        durability: Durability::Ephemeral,
        datum: id.key(),
        register: REGISTER,
        version: Version { number, ..VERSION },
        epoch: 0,
        owner: SESSION,
    }
}

fn exchange() -> Vec<(String, Vec<u8>)> {
    let id = DataId::new("public", "default", "checkout").unwrap();
    let instance = Instance {
        client: 0xc1,
        name: "mw2051.codfw.example".into(),
        zone: "codfw".into(),
        payload: b"10.0.0.7:8080".to_vec(),
    };
    let record = Encoder::default().encode(id.key(), REGISTER, &instance).unwrap().to_vec();
    let record = Record::read(&record).unwrap();
    let (mut put, mut removal) = (Vec::new(), Vec::new());
    write_name(&mut put, id.key(), id.as_bytes());
    write_put(&mut put, &change(ChangeKind::Put, &id, 5), record);
    write_change(&mut removal, &change(ChangeKind::Remove, &id, 6));
    let mut digest = Digest::default();
    digest.add(fingerprint(id.key(), REGISTER, VERSION, record.checksum()));

    let mut exchange = Exchange { node: node(), frames: Vec::new() };
    exchange.node.handle(Event::Accepted { conn: CONN, listener: 0 }, NOW);
    let hello =
        Message::LinkHello { protocol: PROTOCOL, slot_count: 1024, session: SESSION, run: 0, epoch_seen: 0 };
    exchange.turn(&[("link-hello", hello)], &["link-welcome"]);
    let item = SubscribeItem { id, since: Revision::ZERO, digest: 0 };
    exchange.turn(
        &[
            ("write", Message::Write { sequence: 1, entries: &put }),
            ("heartbeat", Message::Heartbeat { mark: 0, digest, routes: 0, table_epoch: 0 }),
            ("subscribe", Message::Subscribe(vec![item])),
        ],
        &["heartbeat-ack", "write-ack", "snapshot"],
    );
    exchange.turn(
        &[("removal", Message::Write { sequence: 2, entries: &removal })],
        &["removal-ack", "removal-diff"],
    );
    exchange.frames
}

#[test]
fn the_exchange_on_the_page_is_what_is_said() {
    let (page, exchange) = (page("session-protocol.md"), exchange());
    let wrong: Vec<String> = exchange
        .iter()
        .filter(|(name, bytes)| dump(&page, name) != *bytes)
        .map(|(name, bytes)| format!("```hex {name}\n{}\n```", lines(bytes)))
        .collect();
    assert!(wrong.is_empty(), "the page should have\n{}", wrong.join("\n\n"));
    let dumps = page.matches("```hex ").count();
    assert_eq!(dumps, exchange.len(), "every dump on the page is of the exchange");
}

#[test]
fn the_exchange_on_the_page_reads_as_it_says() {
    let page = page("session-protocol.md");
    let read = |name: &str, look: &mut dyn FnMut(Message<'_>)| {
        let bytes = dump(&page, name);
        look(Message::read(Frame::read(&bytes, FRAME_BYTES_MAX).unwrap().unwrap()).unwrap());
    };
    let mut revisions = Vec::new();
    for name in ["snapshot", "removal-diff"] {
        read(name, &mut |message| match message {
            Message::Diff(diff) => revisions.push((diff.is_snapshot, diff.from, diff.to)),
            other => panic!("{other:?}"),
        });
    }
    let (snapshot, diff) = (revisions[0], revisions[1]);
    assert!(snapshot.0 && !diff.0 && diff.1 <= snapshot.2 && diff.2 > snapshot.2, "{revisions:?}");
    read("heartbeat-ack", &mut |message| match message {
        Message::HeartbeatAck { confirmed, settled, differs, .. } => {
            assert_eq!((confirmed, settled, differs), (vec![(SESSION, 0)], false, None));
        }
        other => panic!("{other:?}"),
    });
}

#[test]
fn every_error_code_is_on_the_pages() {
    let (formats, protocol) = (page("formats.md"), page("session-protocol.md"));
    for code in ErrorCode::ALL {
        assert_eq!(ErrorCode::from_number(code as u16), Some(code));
        assert!(formats.contains(&format!("| {} | `{}` |", code as u16, code.label())), "{code:?}");
        assert!(protocol.contains(&format!("`{}`", code.label())), "{code:?}");
    }
}

/// A client claims a list of a history that is gone, and the data node reads every frame in a turn of its own: the session
/// still takes the answer for one, and asks for a larger epoch.
#[test]
fn a_claim_beyond_the_history_is_settled_however_the_node_reads() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = ["session.listen=127.0.0.1:0", "session.http=127.0.0.1:0", "session.clients_max=10"];
    let config = Config::load(None, &settings.map(String::from)).unwrap();
    let routes = Routes::to_node(1024, vec![listener.local_addr().unwrap()]);
    let session = SessionProcess::start(&config, Some(routes)).unwrap();
    let mut client = Raw::connect(session.server.addr, 7);
    let claimed = Revision::open(9).next();
    let id = DataId::new("public", "default", "checkout").unwrap();
    client.send(&Message::Subscribe(vec![SubscribeItem { id, since: claimed, digest: 1 }]));
    let (mut node, begin) = (node(), Instant::now());
    for link in 0..2u64 {
        let conn = ConnId::from_parts(0, link + 1);
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        node.handle(Event::Accepted { conn, listener: 0 }, NOW);
        let mut first = true;
        while let Some(frame) = read_frame(&mut stream) {
            let message = Message::read(Frame::read(&frame, FRAME_BYTES_MAX).unwrap().unwrap()).unwrap();
            if let (true, Message::LinkHello { epoch_seen, .. }) = (first, &message) {
                assert_eq!(*epoch_seen, if link == 0 { 0 } else { 10 }, "one above the claim");
            }
            first = false;
            // Heartbeats go on whatever else is not asked.
            assert!(begin.elapsed() < PATIENCE, "the claim is waited for without end");
            if link == 1 {
                session.server.stop().unwrap();
                return;
            }
            node.handle(Event::Received { conn, bytes: &frame }, NOW);
            let mut sent = Sent::default();
            node.turn(NOW, &mut sent);
            stream.write_all(&sent.0).unwrap();
        }
        node.handle(Event::Closed { conn, reason: CloseReason::Eof }, NOW);
    }
}

/// The next frame; `None` at the end of the stream.
fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut frame = vec![0; 16];
    match stream.read_exact(&mut frame) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("nothing is asked any more"),
        Err(_) => return None,
        Ok(()) => {}
    }
    let len = u32::from_le_bytes(frame[..4].try_into().unwrap()) as usize;
    frame.resize(len, 0);
    stream.read_exact(&mut frame[16..]).unwrap();
    Some(frame)
}
