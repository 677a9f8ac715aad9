//! Data nodes as members of a cluster: a control plane, two or three data nodes, and links like those of sessions, all over
//! real sockets of the loopback.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use slotcast_engine::{
    batch::{OpenBatch, entries},
    digest::Digest,
    error::Refusal,
    id::{DataId, Revision, SlotId},
};
use slotcast_net::{
    config::Config,
    follow::MetaLinkConfig,
    process::{DataProcess, MetaProcess},
    wire::{
        Decoder, ErrorCode, FrameError, Kind, Message,
        header::{FRAME_BYTES_MAX, PROTOCOL},
        meta::{MetaMessage, MetaPeer},
        replica::{FollowItem, ReplicaAckItem, ReplicaMessage, ReplicaPart, ReplicaRefusal},
        slot_table::{NodeEntry, NodeNumber, SlotTable},
    },
};

use crate::{
    cluster::{PATIENCE, get, metric, until_metric},
    dialed::Dialed,
    raw::{Raw, RawList, link_hello},
};

const SLOTS: u32 = 64;

fn load(settings: &[String]) -> Config {
    let mut all: Vec<String> = [
        "meta.listen=127.0.0.1:0",
        "meta.http=127.0.0.1:0",
        "meta.store=none",
        "meta.warm_up=300ms",
        "meta.node_lease=1s",
        "meta.replace_after=60s",
        "meta.first_wait=20s",
        "meta.peers_max=100",
        "data.http=127.0.0.1:0",
        "data.listen=127.0.0.1:0",
        "data.settle=20ms",
    ]
    .map(String::from)
    .to_vec();
    all.push(format!("slot_count={SLOTS}"));
    all.push("nodes=[{id=\"data-1\",addr=\"127.0.0.1:1\",slots=[0,63]}]".into());
    all.extend(settings.iter().cloned());
    Config::load(None, &all).unwrap()
}

/// A control plane, data nodes by their names, and somebody who watches the table.
struct Members {
    meta: MetaProcess,
    nodes: Vec<(String, DataProcess)>,
    watch: Watch,
    settings: Vec<String>,
}

impl Members {
    fn start(ids: &[&str], settings: &[&str]) -> Self {
        let mut settings: Vec<String> = settings.iter().map(|it| it.to_string()).collect();
        settings.insert(0, format!("meta.nodes_min={}", ids.len()));
        let meta = MetaProcess::start(&load(&settings)).unwrap();
        settings.push(format!("meta.peers=[\"{}\"]", meta.server.addr));
        let watch = Watch::new(meta.server.addr);
        let mut members = Self { meta, nodes: Vec::new(), watch, settings };
        ids.iter().for_each(|id| members.join(id, &[]));
        members
    }

    /// Starts a node.
    fn join(&mut self, id: &str, settings: &[String]) {
        let mut all = self.settings.clone();
        all.push(format!("data.id={id:?}"));
        all.extend(settings.iter().cloned());
        self.nodes.push((id.into(), DataProcess::start(&load(&all)).unwrap()));
    }

    fn node(&self, id: &str) -> &DataProcess {
        &self.nodes.iter().find(|(name, _)| name == id).expect("a node of that name").1
    }

    fn number(&self, id: &str) -> NodeNumber {
        self.watch.table().number_of(id).expect("a node of the table")
    }

    /// Ends a node at once.
    fn lose(&mut self, id: &str) {
        let at = self.nodes.iter().position(|(name, _)| name == id).expect("a node of that name");
        let (_, node) = self.nodes.remove(at);
        node.server.stop().unwrap();
    }

    /// Waits for a table in which every slot has so many members, all in sync.
    fn until_in_sync(&mut self, members: usize) {
        self.watch.until("every follower in sync", |table| {
            table.slots.iter().all(|entry| {
                entry.members().len() == members && entry.members().iter().all(|it| it.is_in_sync())
            })
        });
    }

    /// A data id whose slot `id` leads, its slot, and where that one is served.
    fn datum_led_by(&self, id: &str) -> (DataId, SlotId, SocketAddr) {
        let (table, number) = (self.watch.table(), self.number(id));
        let mut datums = (0..).map(|n| DataId::new("public", "default", &format!("service-{n}")).unwrap());
        let datum = datums
            .find(|datum| table.slots[usize::from(datum.key().slot(SLOTS).0)].leader() == Some(number))
            .unwrap();
        let slot = datum.key().slot(SLOTS);
        let (node, _) = table.leader_of(slot).unwrap();
        (datum, slot, node.shard_addr(slot).unwrap())
    }

    /// Who leads the slot of a data id.
    fn leader(&self, datum: &DataId) -> String {
        let table = self.watch.table();
        table.leader_of(datum.key().slot(SLOTS)).expect("a leader").0.id.to_string()
    }

    /// Publishes over a link to whoever leads, though that may change.
    fn publish_anywhere(&mut self, datum: &DataId, session: u64, register: u64, payload: &[u8]) {
        let (slot, begin) = (datum.key().slot(SLOTS), Instant::now());
        for session in session.. {
            let table = self.watch.table();
            let addr = table.leader_of(slot).unwrap().0.shard_addr(slot).unwrap();
            let mut link = Raw::link(addr, session, SLOTS);
            let entries = link.put(datum, register, 1, 1, payload);
            match link.write(&entries)[0] {
                Err(Refusal::SlotMoved) => assert!(begin.elapsed() < PATIENCE, "nobody leads the slot"),
                outcome => return assert!(outcome.is_ok(), "{outcome:?}"),
            }
            self.watch.step();
        }
    }

    fn stop(self) {
        for (_, node) in self.nodes {
            node.server.stop().unwrap();
        }
        self.meta.server.stop().unwrap();
    }
}

/// Follows the slot table like a session, over a blocking socket.
struct Watch {
    dialed: Dialed,
}

impl Watch {
    fn new(meta: SocketAddr) -> Self {
        Self::of(meta, MetaPeer::Session)
    }

    fn of(meta: SocketAddr, peer: MetaPeer) -> Self {
        Self { dialed: Dialed::new(MetaLinkConfig::new(vec![meta], "slotcast", SLOTS, peer)) }
    }

    fn table(&self) -> Arc<SlotTable> {
        self.dialed.link.table().clone()
    }

    fn until(&mut self, what: &str, done: impl Fn(&SlotTable) -> bool) -> Arc<SlotTable> {
        let begin = Instant::now();
        while !done(self.dialed.link.table()) {
            assert!(begin.elapsed() < PATIENCE, "{what} did not come: {:?}", self.dialed.link.table());
            self.step();
        }
        self.table()
    }

    fn step(&mut self) {
        self.dialed.step();
    }
}

/// Publishes under a name that a node leads, over a link of its own, and waits until `copies` have it.
fn publish(members: &Members, leader: &str, session: u64, payload: &[u8]) -> (Raw, DataId) {
    let (datum, _, addr) = members.datum_led_by(leader);
    let mut link = Raw::link(addr, session, SLOTS);
    publish_when_led(&mut link, &datum, 1, payload);
    (link, datum)
}

/// Publishes over a link whose node may not have the table yet that makes it the leader.
fn publish_when_led(link: &mut Raw, datum: &DataId, register: u64, payload: &[u8]) {
    let begin = Instant::now();
    loop {
        let entries = link.put(datum, register, 1, 1, payload);
        match link.write(&entries)[0] {
            Err(Refusal::SlotMoved) => assert!(begin.elapsed() < PATIENCE, "nobody leads the slot"),
            outcome => return assert!(outcome.is_ok(), "{outcome:?}"),
        }
    }
}

fn publishers(node: &DataProcess, wanted: usize) {
    until_metric(node.admin.addr, "data_publishers", "", |count| count == wanted as f64);
}

/// The list of a data id as the node that leads it tells a session.
fn list(members: &Members, datum: &DataId, session: u64, payloads: &[&[u8]]) -> RawList {
    let slot = datum.key().slot(SLOTS);
    let table = members.watch.table();
    let (node, _) = table.leader_of(slot).unwrap();
    let mut link = Raw::link(node.shard_addr(slot).unwrap(), session, SLOTS);
    link.subscribe(datum);
    let mut list = RawList::default();
    link.expect_list(&mut list, datum, payloads);
    list
}

#[test]
fn the_follower_of_a_lost_leader_serves_what_the_leader_had() {
    let mut members = Members::start(&["a", "b"], &[]);
    members.until_in_sync(2);
    let (_link, datum) = publish(&members, "a", 77, b"one");
    let before = list(&members, &datum, 78, &[b"one"]).revision;
    publishers(members.node("b"), 1);
    let slot = datum.key().slot(SLOTS);
    let epoch = members.watch.table().slots[usize::from(slot.0)].leader_epoch;

    let (b, lost) = (members.number("b"), Instant::now());
    members.lose("a");
    members.watch.until("a new leader", |table| table.slots[usize::from(slot.0)].leader() == Some(b));
    let after = list(&members, &datum, 79, &[b"one"]).revision;
    assert!(after.epoch() > epoch && after > before, "{after} after {before}");
    assert!(lost.elapsed() < Duration::from_secs(10));
    let node = members.node("b");
    until_metric(node.admin.addr, "data_slots", "state=\"accept\"", |count| count == f64::from(SLOTS));
    let (code, said) = get(node.admin.addr, "/readyz");
    assert_eq!((code, said.contains("leads 64 slots")), (200, true), "{said}");
    members.stop();
}

#[test]
fn a_node_that_comes_back_with_nothing_gets_everything_and_is_in_sync_again() {
    let mut members = Members::start(&["a", "b"], &[]);
    members.until_in_sync(2);
    let (mut link, datum) = publish(&members, "a", 77, b"one");
    publishers(members.node("b"), 1);
    let b = members.number("b");
    members.lose("b");
    let slot = usize::from(datum.key().slot(SLOTS).0);
    members
        .watch
        .until("b is known to be away", |table| table.slots.iter().all(|entry| entry.leader() != Some(b)));
    publish_when_led(&mut link, &datum, 2, b"two");
    members.join("b", &[]);
    members.watch.until("b in sync again", |table| {
        table.slots.iter().all(|it| it.members().len() == 2 && it.members().iter().all(|it| it.is_in_sync()))
    });
    publishers(members.node("b"), 2);
    assert!(metric(members.node("a").admin.addr, "data_replica_sent_parts", "") > 0.0);

    // What is published now comes as batches, whoever leads by now; and the copy is as good as the original.
    members.publish_anywhere(&datum, 78, 3, b"three");
    let leads = members.leader(&datum);
    let follows = if leads == "a" { "b" } else { "a" };
    publishers(members.node(follows), 3);
    members.lose(&leads);
    let number = members.number(follows);
    members.watch.until("the other one leads", |table| table.slots[slot].leader() == Some(number));
    list(&members, &datum, 79, &[b"one", b"two", b"three"]);
    members.stop();
}

/// One end of a replica link, made of nothing but a blocking socket.
struct RawReplica {
    stream: TcpStream,
    decoder: Decoder,
}

impl RawReplica {
    fn open(addr: SocketAddr) -> Self {
        Self::over(TcpStream::connect(addr).unwrap())
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, decoder: Decoder::default() }
    }

    /// Reads until the other end has closed.
    fn expect_end(mut self) {
        let mut bytes = [0; 65536];
        while self.stream.read(&mut bytes).is_ok_and(|got| got > 0) {}
    }

    fn send(&mut self, message: &ReplicaMessage<'_>) {
        let mut out = Vec::new();
        message.write(&mut out);
        self.stream.write_all(&out).unwrap();
    }

    /// Reads messages until one is what is looked for; what came with it is left out.
    fn expect<T>(&mut self, mut find: impl FnMut(&ReplicaMessage<'_>) -> Option<T>) -> T {
        let mut found = None;
        while found.is_none() {
            let mut bytes = [0; 65536];
            let got = self.stream.read(&mut bytes).unwrap();
            assert!(got > 0, "the stream ended");
            self.decoder
                .feed(&bytes[..got], FRAME_BYTES_MAX, |frame| {
                    let message = ReplicaMessage::read(frame)?;
                    found = found.take().or_else(|| find(&message));
                    Ok::<_, FrameError>(())
                })
                .unwrap();
        }
        found.unwrap()
    }

    fn expect_error(&mut self) -> (u16, String) {
        self.expect(|message| match message {
            ReplicaMessage::Error { code, text, .. } => Some((*code, text.to_string())),
            _ => None,
        })
    }

    fn expect_refused(&mut self) -> (SlotId, Option<ReplicaRefusal>) {
        self.expect(|message| match message {
            ReplicaMessage::Refused { slot, code, .. } => Some((*slot, ReplicaRefusal::from_number(*code))),
            _ => None,
        })
    }
}

/// What a follower says that is all right: the run of `node` in the present table.
fn hello(table: &SlotTable, node: NodeNumber) -> ReplicaMessage<'static> {
    ReplicaMessage::Hello {
        protocol: PROTOCOL,
        shard: 0,
        slot_count: SLOTS,
        node,
        incarnation: table.nodes[&node].incarnation,
        table_epoch: table.epoch,
        cluster: "slotcast",
    }
}

#[test]
fn followers_that_do_not_belong_here_are_refused_with_a_reason_and_nobody_is_disturbed() {
    let mut members = Members::start(&["a", "b", "c"], &["meta.replicas=2"]);
    members.until_in_sync(2);
    let (datum, slot, addr) = members.datum_led_by("a");
    let table = members.watch.table();
    let entry = &table.slots[usize::from(slot.0)];
    let epoch = entry.leader_epoch;
    let outsider = *table.nodes.keys().find(|number| entry.position(**number).is_none()).unwrap();
    let follower = entry.members()[1].node();
    let good = hello(&table, follower);
    let ReplicaMessage::Hello { protocol, shard, slot_count, node, incarnation, table_epoch, cluster } = good
    else {
        unreachable!()
    };
    let with = |protocol, slot_count, node, incarnation, table_epoch, cluster| ReplicaMessage::Hello {
        protocol,
        shard,
        slot_count,
        node,
        incarnation,
        table_epoch,
        cluster,
    };
    for (first, code, words) in [
        (
            with(9, slot_count, node, incarnation, table_epoch, cluster),
            ErrorCode::ProtocolVersion,
            "version 9",
        ),
        (with(protocol, 128, node, incarnation, table_epoch, cluster), ErrorCode::Configuration, "128"),
        (
            with(protocol, slot_count, node, incarnation, table_epoch, "other"),
            ErrorCode::Configuration,
            "cluster \"slotcast\"",
        ),
        (
            with(protocol, slot_count, node, incarnation + 1, table_epoch, cluster),
            ErrorCode::DuplicateNode,
            "two processes with one data.id",
        ),
        (
            with(protocol, slot_count, node, incarnation + 1, table_epoch + 9, cluster),
            ErrorCode::ReplicaRefused,
            "come back",
        ),
        (
            with(protocol, slot_count, NodeNumber(99), incarnation, table_epoch, cluster),
            ErrorCode::ReplicaRefused,
            "node 99",
        ),
        (ReplicaMessage::Follow(Vec::new()), ErrorCode::Unexpected, "replica hello"),
    ] {
        let mut raw = RawReplica::open(addr);
        raw.send(&first);
        let (told, text) = raw.expect_error();
        assert_eq!(told, code as u16, "{text}");
        assert!(text.contains(words), "{text}");
    }

    // Slot by slot: the connection goes on.
    let mut raw = RawReplica::open(addr);
    raw.send(&hello(&table, outsider));
    raw.expect(|message| matches!(message, ReplicaMessage::Welcome { .. }).then_some(()));
    let foreign = (0..SLOTS as u16)
        .map(SlotId)
        .find(|slot| table.slots[usize::from(slot.0)].leader() != Some(members.number("a")))
        .unwrap();
    let not_led = FollowItem {
        slot: foreign,
        leader_epoch: table.slots[usize::from(foreign.0)].leader_epoch,
        since: Revision::ZERO,
    };
    let item = FollowItem { slot, leader_epoch: epoch, since: Revision::ZERO };
    for (item, reason) in [
        (not_led, ReplicaRefusal::NotLeader),
        (FollowItem { leader_epoch: epoch + 1, ..item }, ReplicaRefusal::FutureEpoch),
        (FollowItem { leader_epoch: epoch - 1, ..item }, ReplicaRefusal::OlderEpoch),
        (item, ReplicaRefusal::NotMember),
    ] {
        raw.send(&ReplicaMessage::Follow(vec![item]));
        assert_eq!(raw.expect_refused(), (item.slot, Some(reason)));
    }
    let a = members.node("a").admin.addr;
    until_metric(a, "data_replica_refused", "reason=\"not_member\"", |count| count == 1.0);
    until_metric(a, "data_link_errors", "reason=\"configuration\"", |count| count == 2.0);

    // Who says that it is beyond its leader is not believed, neither at first nor later. It takes the place of the real one,
    // which comes back.
    let mut raw = RawReplica::open(addr);
    raw.send(&good);
    raw.expect(|message| matches!(message, ReplicaMessage::Welcome { .. }).then_some(()));
    let beyond = Revision(Revision::open(epoch).0 | 1 << 30);
    raw.send(&ReplicaMessage::Follow(vec![FollowItem { since: beyond, ..item }]));
    assert_eq!(raw.expect_refused(), (slot, Some(ReplicaRefusal::Ahead)));
    let lie = ReplicaAckItem { slot, applied: beyond, durable: Revision::ZERO };
    raw.send(&ReplicaMessage::Ack(vec![lie]));
    let (code, text) = raw.expect_error();
    assert_eq!(code, ErrorCode::ReplicaRefused as u16);
    assert!(text.contains("never beyond"), "{text}");
    until_metric(a, "data_replica_refused", "by=\"this\",reason=\"ahead\"", |count| count == 2.0);

    let mut link = Raw::link(addr, 5, SLOTS);
    publish_when_led(&mut link, &datum, 1, b"one");
    let name = &table.nodes[&follower].id;
    publishers(members.node(name), 1);
    members.stop();
}

#[test]
fn two_shards_of_a_node_follow_and_lead_as_one_member() {
    let mut members = Members::start(&["a", "b"], &["data.shards=2"]);
    members.until_in_sync(2);
    let b = members.number("b");
    let (_link, datum) = publish(&members, "a", 77, b"one");
    publishers(members.node("b"), 1);
    members.lose("a");
    members
        .watch
        .until("b leads everything", |table| table.slots.iter().all(|entry| entry.leader() == Some(b)));
    list(&members, &datum, 79, &[b"one"]);
    // What nobody had before it waits for sessions, and each shard has its own.
    let _links: Vec<Raw> =
        members.node("b").server.addrs.iter().map(|addr| Raw::link(*addr, 80, SLOTS)).collect();
    until_metric(members.node("b").admin.addr, "data_slots", "state=\"accept\"", |count| {
        count == f64::from(SLOTS)
    });
    members.stop();
}

#[test]
fn a_second_process_with_the_id_of_a_live_node_holds_nothing() {
    let mut members = Members::start(&["a", "b"], &[]);
    members.until_in_sync(2);
    let (_link, datum) = publish(&members, "a", 77, b"one");
    let all = [members.settings.clone(), vec!["data.id=\"a\"".into()]].concat();
    let twin = DataProcess::start(&load(&all)).unwrap();
    until_metric(members.meta.admin.addr, "meta_peer_errors", "duplicate_node", |count| count >= 1.0);
    let (code, said) = get(twin.admin.addr, "/readyz");
    assert_eq!(code, 503, "{said}");
    assert_eq!(metric(twin.admin.addr, "data_slots", "state=\"accept\""), 0.0);
    list(&members, &datum, 79, &[b"one"]);
    twin.server.stop().unwrap();
    members.stop();
}

#[test]
fn a_session_with_an_older_table_is_sent_the_newest_once() {
    let mut members = Members::start(&["a", "b"], &[]);
    members.until_in_sync(2);
    let (_, _, addr) = members.datum_led_by("a");
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut out = Vec::new();
    link_hello(77, SLOTS).write(&mut out);
    let beat =
        |table_epoch| Message::Heartbeat { mark: 0, digest: Digest::default(), routes: 0, table_epoch };
    beat(u64::MAX).write(&mut out);
    beat(0).write(&mut out);
    beat(0).write(&mut out);
    Message::Ping(1).write(&mut out);
    stream.write_all(&out).unwrap();
    let (mut tables, mut told, mut is_over, mut decoder) =
        (Vec::new(), Vec::new(), false, Decoder::default());
    while !is_over {
        let mut bytes = [0; 65536];
        let got = stream.read(&mut bytes).unwrap();
        assert!(got > 0, "the stream ended");
        decoder
            .feed(&bytes[..got], FRAME_BYTES_MAX, |frame| {
                if frame.kind == Kind::TableDelta {
                    tables.push(MetaMessage::read(frame)?);
                    return Ok::<_, FrameError>(());
                }
                match Message::read(frame)? {
                    Message::HeartbeatAck { table_epoch, .. } => told.push(table_epoch),
                    Message::Pong(1) => is_over = true,
                    _ => {}
                }
                Ok(())
            })
            .unwrap();
    }
    assert_eq!(tables.len(), 1, "{tables:?}");
    let MetaMessage::TableDelta(delta) = &tables[0] else { panic!("{tables:?}") };
    let table = SlotTable::from_whole(delta).unwrap();
    assert_eq!(table.slots.len(), SLOTS as usize);
    assert!(told.iter().all(|epoch| *epoch >= table.epoch), "{told:?}");
    members.stop();
}

#[test]
fn nodes_with_disks_go_on_from_what_they_have() {
    let folder = tempfile::tempdir().unwrap();
    let on_disk = |id: &str| {
        vec![
            "data.storage=disk".to_string(),
            format!("data.data_dir={:?}", folder.path().join(id).to_str().unwrap()),
            "data.journal_batch_interval=1ms".into(),
        ]
    };
    let mut members = Members::start(&[], &["meta.nodes_min=2"]);
    members.join("a", &on_disk("a"));
    members.join("b", &on_disk("b"));
    members.until_in_sync(2);
    let (mut link, datum) = publish(&members, "a", 77, b"one");
    // Acknowledged when both have it on their disks.
    let entries = link.persistent_put(&datum, 2, 1, b"two");
    assert!(link.write(&entries).iter().all(Result::is_ok));
    publishers(members.node("b"), 2);

    // The follower comes back with what it had, and needs no more than what came since.
    let b = members.number("b");
    let run = members.watch.table().nodes[&b].incarnation;
    members.lose("b");
    members.join("b", &on_disk("b"));
    members.watch.until("b in sync again", |table| {
        table.nodes[&b].incarnation != run
            && table.slots.iter().all(|it| it.members().iter().all(|it| it.is_in_sync()))
    });
    publishers(members.node("b"), 2);

    // It has the persistent one, whoever is lost.
    let slot = usize::from(datum.key().slot(SLOTS).0);
    members.lose("a");
    let table = members.watch.until("b leads", |table| table.slots[slot].leader() == Some(b));
    assert!(!table.slots[slot].is_unclean, "it was in sync");
    list(&members, &datum, 79, &[b"one", b"two"]);
    members.stop();
}

#[test]
fn without_the_control_plane_a_leader_takes_what_needs_no_successor_to_know() {
    let folder = tempfile::tempdir().unwrap();
    let dir = format!("data.data_dir={:?}", folder.path().join("a").to_str().unwrap());
    let mut members = Members::start(&[], &["meta.replicas=1"]);
    members.join("a", &["data.storage=disk".into(), dir]);
    members.watch.until("a leads everything", |table| {
        table.number_of("a").is_some_and(|a| table.slots.iter().all(|it| it.leader() == Some(a)))
    });
    let (mut link, datum) = publish(&members, "a", 77, b"one");
    let entries = link.persistent_put(&datum, 2, 1, b"two");
    assert!(link.write(&entries)[0].is_ok());

    let Members { meta, nodes, .. } = members;
    let http = nodes[0].1.admin.addr;
    until_metric(http, "data_node_lease", "", |lease| lease == 1.0);
    assert!(!get(http, "/readyz").1.contains("persistent publishers are refused"));
    meta.server.stop().unwrap();
    until_metric(http, "data_node_lease", "", |lease| lease == 0.0);
    let entries = link.persistent_put(&datum, 3, 1, b"three");
    assert_eq!(link.write(&entries)[0], Err(Refusal::PersistentUnavailable));
    link.publish(&datum, 4, 1, 1, b"four");
    let (code, said) = get(http, "/readyz");
    assert_eq!((code, said.contains("persistent publishers are refused")), (200, true), "{said}");
    for (_, node) in nodes {
        node.server.stop().unwrap();
    }
}

/// A node that leads slots and says to its followers what a test wants.
struct FalseLeader {
    listener: TcpListener,
    watch: Watch,
    number: NodeNumber,
    incarnation: u64,
}

impl FalseLeader {
    /// Joins as `id`, and waits until it leads slots that others follow.
    fn join(members: &mut Members, id: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let incarnation = 4711;
        let entry = NodeEntry {
            id: id.into(),
            incarnation,
            zone: "".into(),
            ip: [127, 0, 0, 1].into(),
            ports: vec![listener.local_addr().unwrap().port()],
            http: 0,
            draining: false,
        };
        let mut watch = Watch::of(members.meta.server.addr, MetaPeer::Data(Arc::new(entry)));
        let table = watch.until("slots for the false leader", |table| {
            let number = table.number_of(id);
            number.is_some() && table.slots.iter().any(|it| it.leader() == number && it.members().len() > 1)
        });
        Self { listener, watch, number: table.number_of(id).unwrap(), incarnation }
    }

    /// The next connection of a follower, which introduces itself properly.
    fn accept(&mut self, follower: NodeNumber) -> RawReplica {
        self.watch.step();
        let mut raw = RawReplica::over(self.listener.accept().unwrap().0);
        let node = raw.expect(|message| match message {
            ReplicaMessage::Hello { node, cluster, .. } => Some((*node, cluster.to_string())),
            _ => None,
        });
        assert_eq!(node, (follower, "slotcast".into()));
        raw
    }

    fn welcome(&mut self, raw: &mut RawReplica) {
        let (incarnation, table_epoch) = (self.incarnation, self.watch.table().epoch);
        raw.send(&ReplicaMessage::Welcome { incarnation, table_epoch });
    }
}

impl RawReplica {
    fn expect_follow(&mut self, slot: SlotId) -> FollowItem {
        self.expect(|message| match message {
            ReplicaMessage::Follow(items) => items.iter().find(|item| item.slot == slot).copied(),
            _ => None,
        })
    }

    fn expect_applied(&mut self, slot: SlotId, revision: Revision) {
        self.expect(|message| match message {
            ReplicaMessage::Ack(items) => {
                items.iter().any(|item| item.slot == slot && item.applied == revision).then_some(())
            }
            _ => None,
        });
    }
}

#[test]
fn a_follower_takes_only_what_fits_from_whom_it_has_to_be() {
    let mut members = Members::start(&["a"], &["meta.nodes_min=2", "meta.node_lease=30s"]);
    let mut leader = FalseLeader::join(&mut members, "x");
    let (table, x) = (leader.watch.table(), leader.number);
    let a = table.number_of("a").unwrap();
    let mut datums = (0..).map(|n| DataId::new("public", "default", &format!("service-{n}")).unwrap());
    let datum = datums
        .find(|datum| {
            let entry = &table.slots[usize::from(datum.key().slot(SLOTS).0)];
            entry.leader() == Some(x) && entry.position(a).is_some()
        })
        .unwrap();
    let slot = datum.key().slot(SLOTS);
    let epoch = table.slots[usize::from(slot.0)].leader_epoch;
    let at = |counter| Revision(Revision::open(epoch).0 + counter);
    let writer = Raw::link(members.node("a").server.addrs[0], 9, SLOTS);
    let batch = |from: u64, to: u64, register: u64| {
        let mut open = OpenBatch::default();
        for entry in entries(&writer.put(&datum, register, 1, 1, b"one")) {
            open.push(entry.unwrap());
        }
        open.seal(slot, at(from), at(to), 1)
    };
    let whole = |revision| {
        ReplicaMessage::Part(ReplicaPart {
            slot,
            is_first: true,
            is_last: true,
            revision,
            lineage: Vec::new(),
            entries: &[],
        })
    };

    // Somebody else answers at the leader's address.
    let mut raw = leader.accept(a);
    let incarnation = leader.incarnation + 1;
    raw.send(&ReplicaMessage::Welcome { incarnation, table_epoch: table.epoch });
    raw.expect_end();

    let mut raw = leader.accept(a);
    leader.welcome(&mut raw);
    let item = raw.expect_follow(slot);
    assert_eq!((item.leader_epoch, item.since), (epoch, Revision::ZERO));
    raw.send(&whole(at(0)));
    raw.expect_applied(slot, at(0));
    raw.send(&ReplicaMessage::Batch { slot, after: at(0), batch: &batch(0, 1, 1) });
    raw.expect_applied(slot, at(1));
    // One is missing: it asks from where it is, and takes what fits.
    raw.send(&ReplicaMessage::Batch { slot, after: at(2), batch: &batch(2, 3, 3) });
    assert_eq!(raw.expect_follow(slot).since, at(1));
    raw.send(&ReplicaMessage::Batch { slot, after: at(1), batch: &batch(1, 2, 2) });
    raw.expect_applied(slot, at(2));
    publishers(members.node("a"), 2);

    // What is damaged ends the link. What was there stays until the whole slot has come.
    let mut damaged = batch(2, 3, 3);
    *damaged.last_mut().unwrap() ^= 1;
    raw.send(&ReplicaMessage::Batch { slot, after: at(2), batch: &damaged });
    raw.expect_end();
    let mut raw = leader.accept(a);
    leader.welcome(&mut raw);
    assert_eq!(raw.expect_follow(slot).since, Revision::ZERO);
    publishers(members.node("a"), 2);
    raw.send(&whole(at(5)));
    raw.expect_applied(slot, at(5));
    publishers(members.node("a"), 0);
    assert_eq!(metric(members.node("a").admin.addr, "data_replica_gaps", ""), 1.0);

    // It says that it has nothing that this one has: asked for from nothing again.
    let refused = ReplicaMessage::Refused { slot, code: ReplicaRefusal::Ahead as u16, leader_epoch: epoch };
    raw.send(&refused);
    assert_eq!(raw.expect_follow(slot).since, Revision::ZERO);
    drop(leader);
    members.stop();
}
