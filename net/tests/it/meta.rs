//! Processes of the control plane on loopback ports, with followers over real sockets, a file, and a real etcd.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use slotcast_engine::id::SlotId;
use slotcast_net::{
    config::Config,
    follow::MetaLinkConfig,
    meta::{
        etcd::EtcdStore,
        store::{Lead, StoreError, TableStore},
    },
    process::MetaProcess,
    wire::{
        Decoder, ErrorCode,
        header::FRAME_BYTES_MAX,
        meta::{HeldState, MetaMessage, MetaPeer, SlotReport},
        slot_table::{NodeEntry, SlotTable},
    },
};

use crate::{
    cluster::{PATIENCE, get, until_metric},
    dialed::Dialed,
};

const SLOTS: u32 = 64;

fn load(settings: &[String]) -> anyhow::Result<Config> {
    let mut all: Vec<String> = [
        "meta.listen=127.0.0.1:0",
        "meta.http=127.0.0.1:0",
        "meta.nodes_min=2",
        "meta.warm_up=300ms",
        "meta.node_lease=1s",
        "meta.replace_after=500ms",
        "meta.peers_max=100",
        "nodes=[{id=\"data-1\",addr=\"127.0.0.1:1\",slots=[0,63]}]",
    ]
    .map(String::from)
    .to_vec();
    all.push(format!("slot_count={SLOTS}"));
    all.extend(settings.iter().cloned());
    Config::load(None, &all)
}

fn start(settings: &[String]) -> anyhow::Result<MetaProcess> {
    MetaProcess::start(&load(settings)?)
}

fn in_folder(folder: &tempfile::TempDir) -> Vec<String> {
    vec![format!("meta.dir={:?}", folder.path().to_str().unwrap())]
}

/// A follower on a socket of its own that reports what the table says it should do.
struct Follower {
    id: String,
    dialed: Dialed,
}

impl Follower {
    fn node(id: &str, metas: Vec<SocketAddr>) -> Self {
        let entry = NodeEntry {
            id: id.into(),
            incarnation: 1,
            zone: "".into(),
            ip: [127, 0, 0, 1].into(),
            ports: vec![id.bytes().map(u16::from).sum()],
            http: 0,
            draining: false,
        };
        let config = MetaLinkConfig::new(metas, "slotcast", SLOTS, MetaPeer::Data(Arc::new(entry)));
        Self { id: id.into(), dialed: Dialed::new(config) }
    }

    /// Does what is due, and reports what a table asks for.
    fn step(&mut self) {
        self.dialed.step();
        if let Some(table) = self.dialed.link.take_news() {
            let number = table.number_of(&self.id);
            let held = table.slots.iter().enumerate().filter_map(|(slot, entry)| {
                let at = entry.position(number?)?;
                let others = entry.members()[1..].iter().map(|member| member.node());
                Some(SlotReport {
                    slot: SlotId(slot as u16),
                    state: if at == 0 { HeldState::Accept } else { HeldState::Following },
                    is_whole: false,
                    has_persistent: false,
                    leader_epoch: entry.leader_epoch,
                    in_sync: if at == 0 { others.collect() } else { Vec::new() },
                })
            });
            self.dialed.link.set_slots(table.epoch, held.collect());
        }
    }
}

/// Lets followers go on until something is so.
fn until(followers: &mut [Follower], what: &str, done: impl Fn(&[Follower]) -> bool) {
    let begin = Instant::now();
    while !done(followers) {
        let last: Vec<_> =
            followers.iter().map(|it| (it.dialed.link.table().epoch, &it.dialed.link.last_fault)).collect();
        assert!(begin.elapsed() < PATIENCE, "{what} did not come: {last:?}");
        followers.iter_mut().for_each(Follower::step);
    }
}

/// Everybody has one table, in which every slot has `members` members that are all in sync.
fn settled(members: usize) -> impl Fn(&[Follower]) -> bool {
    move |followers| {
        let table = followers[0].dialed.link.table();
        let whole = table.slots.iter().all(|entry| {
            entry.members().len() == members && entry.members().iter().all(|member| member.is_in_sync())
        });
        whole
            && followers
                .iter()
                .all(|follower| follower.dialed.link.table() == table && follower.dialed.link.is_connected())
    }
}

fn post(addr: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(addr).unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.into()).unwrap_or_default())
}

fn leads(meta: &MetaProcess) -> bool {
    status(meta)["phase"] == "leading"
}

fn status(meta: &MetaProcess) -> serde_json::Value {
    serde_json::from_str(&get(meta.admin.addr, "/status").1).unwrap()
}

#[test]
fn a_cluster_is_made_drained_and_found_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let meta = start(&in_folder(&folder)).unwrap();
    assert_eq!(get(meta.admin.addr, "/healthz").0, 200);
    let mut nodes: Vec<_> =
        ["a", "b", "c"].map(|id| Follower::node(id, vec![meta.server.addr])).into_iter().collect();
    until(&mut nodes, "a table", settled(2));
    let told = status(&meta);
    assert_eq!((told["phase"].as_str(), told["slots_short"].as_u64()), (Some("leading"), Some(0)), "{told}");
    assert_eq!(told["nodes"].as_array().unwrap().len(), 3);
    assert_eq!(get(meta.admin.addr, "/readyz").0, 200);
    until_metric(meta.admin.addr, "meta_nodes_alive", "", |alive| alive == 3.0);

    let (code, said) = post(meta.admin.addr, "/drain?node=nobody");
    assert_eq!(code, 409);
    assert!(said.contains("no node \"nobody\""), "{said}");
    assert_eq!(post(meta.admin.addr, "/drain?node=b").0, 200);
    until(&mut nodes, "the drain", |nodes| {
        let table = nodes[0].dialed.link.table();
        let number = table.number_of("b").unwrap();
        settled(2)(nodes) && table.slots.iter().all(|entry| entry.position(number).is_none())
    });

    let (epoch, slots) = (nodes[0].dialed.link.table().epoch, nodes[0].dialed.link.table().slots.clone());
    let second = start(&in_folder(&folder)).map(|_| ()).unwrap_err();
    assert!(format!("{second:#}").contains("in use by another process"), "{second:#}");
    meta.server.stop().unwrap();
    drop(meta.admin);
    let mut other = in_folder(&folder);
    other.extend([
        "slot_count=128".into(),
        "nodes=[{id=\"data-1\",addr=\"127.0.0.1:1\",slots=[0,127]}]".into(),
    ]);
    let said = format!("{:#}", start(&other).map(|_| ()).unwrap_err());
    assert!(said.contains("64 slots") && said.contains("with 128") && said.contains("meta.dir"), "{said}");

    let meta = start(&in_folder(&folder)).unwrap();
    let mut fresh: Vec<_> =
        ["a", "b", "c"].map(|id| Follower::node(id, vec![meta.server.addr])).into_iter().collect();
    until(&mut fresh, "the table of before", |nodes| {
        settled(2)(nodes) && nodes[0].dialed.link.table().epoch >= epoch
    });
    assert_eq!(fresh[0].dialed.link.table().slots, slots);
    meta.server.stop().unwrap();
}

#[test]
fn bytes_that_are_no_frames_end_their_connection_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let meta = start(&in_folder(&folder)).unwrap();
    let mut nodes =
        vec![Follower::node("a", vec![meta.server.addr]), Follower::node("b", vec![meta.server.addr])];
    until(&mut nodes, "a table", settled(2));
    let mut early = Vec::new();
    MetaMessage::Watch { sequence: 1, table_epoch: 0 }.write(&mut early);
    let mut oversize = vec![0; 16];
    oversize[..4].copy_from_slice(&(17u32 << 20).to_le_bytes());
    for (bytes, code) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), ErrorCode::Frame),
        (oversize, ErrorCode::Frame),
        (early, ErrorCode::Unexpected),
    ] {
        let mut stream = TcpStream::connect(meta.server.addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let mut told = None;
        Decoder::default()
            .feed(&answer, FRAME_BYTES_MAX, |frame| {
                told = Some(MetaMessage::read(frame)?);
                Ok::<_, slotcast_net::wire::FrameError>(())
            })
            .unwrap();
        assert!(
            matches!(&told, Some(MetaMessage::Error { code: got, .. }) if *got == code as u16),
            "{told:?}"
        );
    }
    let epoch = nodes[0].dialed.link.table().epoch;
    let beats = nodes[0].dialed.now();
    until(&mut nodes, "another heartbeat", |nodes| {
        nodes[0].dialed.link.holds_lease(beats.after(1_200_000_000))
    });
    assert_eq!(nodes[0].dialed.link.table().epoch, epoch);
    until_metric(meta.admin.addr, "meta_peer_errors", "frame", |count| count == 2.0);
    meta.server.stop().unwrap();
}

/// An etcd of its own; it ends with this.
struct Etcd {
    child: Child,
    ports: (u16, u16),
    endpoint: String,
    folder: tempfile::TempDir,
}

impl Etcd {
    /// `None`, and a line about it, where there is no etcd.
    fn start() -> Option<Self> {
        if Command::new("etcd").arg("--version").output().is_err() {
            eprintln!("skipped: there is no etcd on this machine (Debian: apt-get install etcd-server)");
            return None;
        }
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let ports = (free(), free());
        let folder = tempfile::tempdir().unwrap();
        let child = Self::spawn(&folder, ports);
        let mut etcd = Self { child, ports, endpoint: format!("http://127.0.0.1:{}", ports.0), folder };
        etcd.until_it_answers();
        Some(etcd)
    }

    fn until_it_answers(&mut self) {
        let begin = Instant::now();
        let mut probe = self.store("probe", "probe");
        while probe.load().is_err() {
            assert!(begin.elapsed() < PATIENCE, "etcd does not answer");
            assert!(self.child.try_wait().unwrap().is_none(), "etcd has ended");
            std::thread::yield_now();
        }
    }

    fn spawn(folder: &tempfile::TempDir, (client, peer): (u16, u16)) -> Child {
        let client = format!("http://127.0.0.1:{client}");
        let peer = format!("http://127.0.0.1:{peer}");
        Command::new("etcd")
            .arg("--data-dir")
            .arg(folder.path())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--log-level", "error"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// It ends, and its directory is copied.
    fn backup(&mut self) -> tempfile::TempDir {
        self.end();
        let copy = tempfile::tempdir().unwrap();
        let (from, to) = (self.folder.path().join("member"), copy.path());
        assert!(Command::new("cp").arg("-r").args([&from, to]).status().unwrap().success());
        self.child = Self::spawn(&self.folder, self.ports);
        self.until_it_answers();
        copy
    }

    /// It ends, and goes on with the copy of a directory.
    fn restore(&mut self, copy: tempfile::TempDir) {
        self.end();
        self.folder = copy;
        self.child = Self::spawn(&self.folder, self.ports);
        self.until_it_answers();
    }

    fn end(&mut self) {
        self.signal("-TERM");
        self.child.wait().unwrap();
    }

    fn store(&self, cluster: &str, name: &str) -> EtcdStore {
        EtcdStore::new(vec![self.endpoint.clone()], cluster, name, Duration::from_secs(2))
    }

    /// The settings of a process of the control plane that keeps its table here.
    fn settings(&self, name: &str) -> Vec<String> {
        vec![
            "meta.store=etcd".to_string(),
            format!("meta.etcd=[{:?}]", self.endpoint),
            format!("meta.name={name}"),
            "meta.lead_ttl=2s".into(),
        ]
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn table(epoch: u64) -> SlotTable {
    SlotTable { epoch, ..SlotTable::empty("c", 16) }
}

#[test]
fn etcd_lets_one_process_lead_and_nobody_else_store() {
    let Some(etcd) = Etcd::start() else { return };
    let (mut a, mut b) = (etcd.store("c", "a"), etcd.store("c", "b"));
    assert!(matches!(a.campaign().unwrap(), Lead::Ours(_)));
    assert_eq!(b.campaign().unwrap(), Lead::Others(Some("a".into())));
    assert_eq!(a.load().unwrap(), None);
    a.swap(0, &table(3)).unwrap();
    assert_eq!(b.load().unwrap(), Some(table(3)));
    assert!(matches!(b.swap(3, &table(4)), Err(StoreError::NotLeading)));
    assert!(matches!(a.campaign().unwrap(), Lead::Ours(_)), "renewed");
    assert!(matches!(a.swap(3, &table(3)), Err(StoreError::Older { told: 3, held: 3 })));

    // Another cluster has keys of its own.
    assert!(matches!(etcd.store("d", "z").campaign().unwrap(), Lead::Ours(_)));

    // The first process says nothing for so long that its lease ends, and does not know it.
    let begin = Instant::now();
    while !matches!(b.campaign().unwrap(), Lead::Ours(_)) {
        assert!(begin.elapsed() < PATIENCE, "the lease never ends");
    }
    assert!(matches!(a.swap(3, &table(9)), Err(StoreError::NotLeading)));
    assert_eq!(a.campaign().unwrap(), Lead::Others(Some("b".into())));
    assert_eq!(b.load().unwrap(), Some(table(3)));
    b.swap(3, &table(5)).unwrap();

    // The table is another one than this process knows: it hears which, and goes over it only with a newer one.
    b.swap(5, &table(6)).unwrap();
    let mut c = etcd.store("c", "c");
    b.resign();
    assert!(matches!(c.campaign().unwrap(), Lead::Ours(_)));
    c.load().unwrap();
    c.swap(6, &table(7)).unwrap();
    c.resign();
    assert!(matches!(b.campaign().unwrap(), Lead::Ours(_)));
    assert!(matches!(b.swap(6, &table(8)), Err(StoreError::Conflict { expected: 6, found: 7 })));
    b.swap(7, &table(8)).unwrap();
}

#[test]
fn the_next_process_takes_over_when_the_first_ends_and_etcd_gone_stops_only_changes() {
    let Some(etcd) = Etcd::start() else { return };
    let first = start(&etcd.settings("first")).unwrap();
    let begin = Instant::now();
    while !leads(&first) {
        assert!(begin.elapsed() < PATIENCE, "{}", status(&first));
    }
    let second = start(&etcd.settings("second")).unwrap();
    let metas = vec![second.server.addr, first.server.addr];
    let mut nodes: Vec<_> = ["a", "b"].map(|id| Follower::node(id, metas.clone())).into_iter().collect();
    until(&mut nodes, "a table", settled(2));
    let told = status(&second);
    assert_eq!((told["phase"].as_str(), told["leader"].as_str()), (Some("standby"), Some("first")), "{told}");
    assert_eq!(get(second.admin.addr, "/readyz").0, 200);
    let table = nodes[0].dialed.link.table().clone();

    first.server.stop().unwrap();
    drop(first.admin);
    until(&mut nodes, "the second", |nodes| {
        nodes.iter().all(|node| node.dialed.link.is_connected()) && leads(&second)
    });
    assert_eq!(nodes[0].dialed.link.table().slots, table.slots, "nothing moves");

    drop(etcd);
    until(&mut nodes, "the end of the lead", |_| status(&second)["phase"] == "standby");
    let told = status(&second);
    assert!(told["trouble"].as_str().is_some_and(|trouble| trouble.contains("etcd at http://")), "{told}");
    assert_eq!(get(second.admin.addr, "/readyz").0, 503);
    assert_eq!(nodes[0].dialed.link.table().slots, table.slots);
    second.server.stop().unwrap();
}

#[test]
fn an_etcd_restored_from_an_old_backup_takes_nobody_back() {
    let Some(mut etcd) = Etcd::start() else { return };
    let meta = start(&etcd.settings("first")).unwrap();
    let mut nodes: Vec<_> =
        ["a", "b", "c"].map(|id| Follower::node(id, vec![meta.server.addr])).into_iter().collect();
    until(&mut nodes, "a table", settled(2));
    let epoch = |nodes: &[Follower]| nodes.iter().map(|node| node.dialed.link.table().epoch).min().unwrap();
    let old = epoch(&nodes);
    let backup = etcd.backup();
    let again = etcd.backup();

    // A newer table, and then an etcd that has never heard of it.
    until(&mut nodes, "the lead after the backup", |_| leads(&meta));
    assert_eq!(post(meta.admin.addr, "/drain?node=b").0, 200);
    let is_empty = |nodes: &[Follower]| {
        let table = nodes[0].dialed.link.table();
        let number = table.number_of("b").unwrap();
        settled(2)(nodes) && table.slots.iter().all(|entry| entry.position(number).is_none())
    };
    until(&mut nodes, "the drain", is_empty);
    let (newest, slots) = (epoch(&nodes), nodes[0].dialed.link.table().slots.clone());
    assert!(newest > old);
    etcd.restore(backup);
    let told = std::cell::Cell::new(false);
    until(&mut nodes, "the newer table over the restored one", |nodes| {
        assert!(epoch(nodes) >= newest, "a node was taken back");
        let now = status(&meta);
        told.set(told.get() || now["trouble"].as_str().is_some_and(|text| text.contains("gone back")));
        now["stored_epoch"].as_u64().is_some_and(|stored| stored > newest) && leads(&meta)
    });
    assert!(told.get(), "what has happened is said");
    assert_eq!(nodes[0].dialed.link.table().slots, slots, "nothing moves");
    until(&mut nodes, "everybody again", settled(2));
    let newest = epoch(&nodes);

    // The same while no process of the control plane runs: the nodes know better.
    meta.server.stop().unwrap();
    drop(meta.admin);
    etcd.restore(again);
    let meta = start(&etcd.settings("second")).unwrap();
    let config = |id: &str| Follower::node(id, vec![meta.server.addr]).dialed.link;
    for node in &mut nodes {
        // The same run, with the table that it has; only the address of the control plane is another one.
        let mut link = config(&node.id);
        link.share_table(node.dialed.link.table());
        node.dialed.link = link;
    }
    until(&mut nodes, "the table of the nodes", |nodes| {
        assert!(epoch(nodes) >= newest, "a node was taken back");
        settled(2)(nodes) && status(&meta)["stored_epoch"].as_u64().is_some_and(|stored| stored > newest)
    });
    until_metric(meta.admin.addr, "meta_tables_adopted", "", |count| count >= 1.0);
    assert_eq!(nodes[0].dialed.link.table().slots, slots);
    meta.server.stop().unwrap();
}

#[test]
fn an_etcd_that_stands_still_stops_changes_and_nothing_else() {
    let Some(etcd) = Etcd::start() else { return };
    let metas = ["first", "second"].map(|name| start(&etcd.settings(name)).unwrap());
    let addrs: Vec<SocketAddr> = metas.iter().map(|meta| meta.server.addr).collect();
    let mut nodes: Vec<_> = ["a", "b"].map(|id| Follower::node(id, addrs.clone())).into_iter().collect();
    until(&mut nodes, "a table", settled(2));
    let table = nodes[0].dialed.link.table().clone();
    etcd.signal("-STOP");
    until(&mut nodes, "the end of the lead", |_| !metas.iter().any(leads));
    let trouble = |meta: &MetaProcess| status(meta)["trouble"].as_str().unwrap_or_default().to_owned();
    until(&mut nodes, "why nobody leads", |_| {
        metas.iter().all(|meta| trouble(meta).contains("etcd at http://"))
    });
    assert!(nodes.iter().all(|node| *node.dialed.link.table() == table), "everybody keeps what there is");
    etcd.signal("-CONT");
    until(&mut nodes, "a leader", |nodes| metas.iter().any(leads) && settled(2)(nodes));
    assert_eq!(nodes[0].dialed.link.table().slots, table.slots, "nobody was taken for lost");
    for meta in metas {
        meta.server.stop().unwrap();
    }
}

/// `slotcast ctl` with the followers going on meanwhile: whether it succeeded, what it printed, what it complained about.
fn ctl(meta: &MetaProcess, followers: &mut [Follower], words: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotcast"));
    command.args(["ctl", "--target", &meta.admin.addr.to_string()]).args(words);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let child = std::cell::RefCell::new(child);
    until(followers, "the end of ctl", |_| child.borrow_mut().try_wait().unwrap().is_some());
    let output = child.into_inner().wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn operators_see_the_cluster_and_empty_a_node() {
    let meta = start(&["meta.store=none".to_string()]).unwrap();
    let mut nodes: Vec<_> =
        ["a", "b", "c"].map(|id| Follower::node(id, vec![meta.server.addr])).into_iter().collect();
    until(&mut nodes, "a table", settled(2));
    let (good, table, _) = ctl(&meta, &mut nodes, &["status"]);
    assert!(good && table.contains("this process of the control plane leads"), "{table}");
    for words in ["| b ", "0000000000000001", "alive", "largest leader epoch", "not told"] {
        assert!(table.contains(words), "{words} is not in {table}");
    }
    let (_, text, _) = ctl(&meta, &mut nodes, &["--json", "status"]);
    let told: serde_json::Value = serde_json::from_str(&text).unwrap();
    let sum = |key: &str| -> u64 {
        told["nodes"].as_array().unwrap().iter().filter_map(|node| node[key].as_u64()).sum()
    };
    assert_eq!((sum("leads"), sum("holds"), sum("in_sync")), (64, 128, 128), "{told}");

    let (good, _, error) = ctl(&meta, &mut nodes, &["drain", "nobody"]);
    assert!(!good && error.contains("no node \"nobody\""), "{error}");
    let (good, said, progress) = ctl(&meta, &mut nodes, &["drain", "b"]);
    assert!(good && said.starts_with("b is empty after"), "{said} {progress}");
    assert!(progress.contains("b leads "), "{progress}");
    let (_, table, _) = ctl(&meta, &mut nodes, &["status"]);
    assert!(table.contains("drained"), "{table}");
    // There is nowhere to go for what the last two hold.
    assert!(ctl(&meta, &mut nodes, &["drain", "a", "--no-wait"]).0);
    let (good, _, error) = ctl(&meta, &mut nodes, &["drain", "c", "--timeout", "1ms"]);
    assert!(!good && error.contains("the order stands") && error.contains("--undo"), "{error}");
    for node in ["a", "b", "c"] {
        let (good, said, _) = ctl(&meta, &mut nodes, &["drain", node, "--undo"]);
        assert!(good && said.contains("is used again"), "{said}");
    }
    until(&mut nodes, "a table with all", |nodes| {
        let table = nodes[0].dialed.link.table();
        settled(2)(nodes) && table.nodes.values().all(|node| !node.draining)
    });
    meta.server.stop().unwrap();
}
