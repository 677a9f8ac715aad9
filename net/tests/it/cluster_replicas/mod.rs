//! Data nodes as members of a cluster: a control plane, two or three data nodes, and links like those of sessions, all over
//! real sockets of the loopback.

mod strangers;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use slotcast_engine::{
    digest::Digest,
    error::Refusal,
    id::{DataId, SlotId},
};
use slotcast_net::{
    config::Config,
    follow::MetaLinkConfig,
    process::{DataProcess, MetaProcess},
    wire::{
        Decoder, FrameError, Kind, Message,
        header::FRAME_BYTES_MAX,
        meta::{MetaMessage, MetaPeer},
        slot_table::{NodeNumber, SlotTable},
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
