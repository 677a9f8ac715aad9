//! A whole cluster of processes: a control plane, data nodes that are killed, sessions, and clients that look at every list.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use slotcast_engine::id::{DataId, RegisterId, Revision};
use slotcast_net::{
    client::{Client, ClientConfig, Registration, Update},
    config::Config,
    process::{MetaProcess, SessionProcess},
};

use crate::cluster::{PATIENCE, get, metric, until, until_metric};

const SLOTS: u32 = 16;
const DATA_IDS: usize = 12;
/// Instances of each data id that are there all the time.
const STABLE: usize = 4;
/// How long everything is used after a node was killed.
const LOAD: Duration = Duration::from_millis(1500);

fn data_id(n: usize) -> DataId {
    DataId::new("public", "default", &format!("service-{n}")).unwrap()
}

struct DataChild {
    child: Child,
}

impl DataChild {
    fn start(id: &str, settings: &[String]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_slotcast"));
        command.arg("data").arg("--set").arg(format!("data.id={id}"));
        settings.iter().for_each(|setting| _ = command.arg("--set").arg(setting));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("ready: "), "{line:?}");
        Self { child }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a signal to a child that is not waited for yet.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Asks it to end, and waits until it has.
    fn end(mut self) {
        self.signal(libc::SIGTERM);
        assert!(self.child.wait().unwrap().success());
    }

    /// SIGKILL.
    fn kill(mut self) {
        self.child.kill().unwrap();
    }
}

impl Drop for DataChild {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Cluster {
    meta: MetaProcess,
    nodes: BTreeMap<String, DataChild>,
    sessions: Vec<SessionProcess>,
    settings: Vec<String>,
}

impl Cluster {
    fn start(nodes: usize, sessions: usize, more: &[&str]) -> Self {
        let mut settings: Vec<String> = [
            "meta.listen=127.0.0.1:0",
            "meta.http=127.0.0.1:0",
            "meta.store=none",
            "meta.node_lease=1s",
            "meta.warm_up=300ms",
            "meta.first_wait=20s",
            "meta.replace_after=60s",
            "meta.replicas=2",
            "meta.moves_max=64",
            "data.listen=127.0.0.1:0",
            "data.http=127.0.0.1:0",
            "session.listen=127.0.0.1:0",
            "session.http=127.0.0.1:0",
            "session.clients_max=50",
        ]
        .map(String::from)
        .to_vec();
        settings.extend(more.iter().map(|setting| setting.to_string()));
        settings.push(format!("slot_count={SLOTS}"));
        settings.push(format!("nodes=[{{id=\"none\",addr=\"127.0.0.1:1\",slots=[0,{}]}}]", SLOTS - 1));
        settings.push(format!("meta.nodes_min={nodes}"));
        let meta = MetaProcess::start(&Config::load(None, &settings).unwrap()).unwrap();
        settings.push(format!("meta.peers=[\"{}\"]", meta.server.addr));
        let config = Config::load(None, &settings).unwrap();
        let sessions = (0..sessions).map(|_| SessionProcess::start(&config, None).unwrap()).collect();
        let mut cluster = Self { meta, nodes: BTreeMap::new(), sessions, settings };
        (1..=nodes).for_each(|node| cluster.start_node(&format!("node-{node}")));
        cluster
    }

    fn start_node(&mut self, id: &str) {
        self.nodes.insert(id.into(), DataChild::start(id, &self.settings));
    }

    /// Waits until every slot has a leader and `short` slots lack members in sync.
    fn until_in_sync(&self) {
        let begin = Instant::now();
        loop {
            let status = self.meta.server.desk.status().unwrap().status;
            if status.table_epoch > 0
                && status.slots_without_leader + status.slots_with_absent_leader + status.slots_short == 0
                && status.moves == 0
            {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "not in sync: {status:?}");
            std::thread::yield_now();
        }
    }

    fn until_ready(&self) {
        for session in &self.sessions {
            let cores = session.server.metrics.len() as f64;
            until_metric(session.admin.addr, "session_ready", "", |ready| ready == cores);
            assert_eq!(get(session.admin.addr, "/readyz").0, 200);
        }
    }

    /// The node that leads most, and the epoch of the table.
    fn leader(&self) -> (String, u64) {
        let status = self.meta.server.desk.status().unwrap().status;
        let leader = status.nodes.iter().max_by_key(|node| node.leads).unwrap();
        assert!(leader.leads > 0);
        (leader.id.clone(), status.table_epoch)
    }

    /// Waits until sessions follow a newer table, and are linked to its leaders.
    fn until_newer_table(&self, epoch: u64) {
        for session in &self.sessions {
            let cores = session.server.metrics.iter();
            let begin = Instant::now();
            while cores.clone().any(|core| core.table_epoch.get() as u64 <= epoch) {
                assert!(begin.elapsed() < PATIENCE, "no table after {epoch}");
                std::thread::yield_now();
            }
        }
        self.until_ready();
    }

    /// Kills the node that leads most, and waits until others lead its slots.
    fn kill_a_leader(&mut self) -> String {
        let (leader, epoch) = self.leader();
        self.nodes.remove(&leader).unwrap().kill();
        self.until_newer_table(epoch);
        leader
    }

    /// Where a node answers HTTP.
    fn pages(&self, id: &str) -> SocketAddr {
        let status = self.meta.server.desk.status().unwrap().status;
        let node = status.nodes.iter().find(|node| node.id == id).unwrap();
        SocketAddr::from(([127, 0, 0, 1], node.http))
    }

    fn session_addrs(&self) -> Vec<SocketAddr> {
        self.sessions.iter().map(|session| session.server.addr).collect()
    }

    fn stop(self) {
        for session in self.sessions {
            session.server.stop().unwrap();
        }
        drop(self.nodes);
        self.meta.server.stop().unwrap();
    }
}

/// What a subscriber has seen of one data id.
#[derive(Default)]
struct Seen {
    revision: Revision,
    payloads: BTreeMap<RegisterId, Vec<u8>>,
    /// All stable ones have been listed together.
    complete: bool,
    snapshots: usize,
}

/// What a subscriber of everything has seen, and what was wrong with it: no stable instance is ever missing once all have
/// been there, revisions do not go back, and a counter does not either.
struct Sight {
    seen: BTreeMap<DataId, Seen>,
    stable: BTreeMap<DataId, BTreeSet<RegisterId>>,
    wrong: Option<String>,
}

impl Sight {
    fn take(&mut self, update: Update) {
        let (id, revision, changed, removed, is_snapshot) = match update {
            Update::Snapshot { id, revision, instances } => (id, revision, instances, Vec::new(), true),
            Update::Diff { id, revision, changed, removed } => (id, revision, changed, removed, false),
            Update::Disconnected(reason) => return self.note(format!("a session failed: {reason}")),
            _ => return,
        };
        let mut seen = self.seen.remove(&id).unwrap_or_default();
        if revision < seen.revision {
            self.note(format!("{id}: an older list, {revision:?} after {:?}", seen.revision));
        }
        seen.revision = revision;
        let before = seen.payloads.clone();
        if is_snapshot {
            seen.payloads.clear();
            seen.snapshots += 1;
        }
        removed.iter().for_each(|register| drop(seen.payloads.remove(register)));
        for (register, instance) in changed {
            if before.get(&register).is_some_and(|held| number(&instance.payload) < number(held)) {
                self.note(format!("{id}: an older instance came back at {revision:?}"));
            }
            seen.payloads.insert(register, instance.payload);
        }
        let missing: Vec<_> =
            self.stable[&id].iter().filter(|register| !seen.payloads.contains_key(register)).collect();
        let (is_complete, missing) =
            (missing.is_empty(), format!("{id}: {missing:?} missing at {revision:?}"));
        if seen.complete && !is_complete {
            self.note(missing);
        }
        seen.complete = is_complete;
        self.seen.insert(id, seen);
    }

    fn note(&mut self, wrong: String) {
        self.wrong.get_or_insert(wrong);
    }
}

/// A subscriber that reads as fast as it is told.
struct Watcher {
    sight: Arc<(Mutex<Sight>, Condvar)>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    fn new(addr: SocketAddr, stable: &BTreeMap<DataId, BTreeSet<RegisterId>>) -> Self {
        let client = Client::connect(ClientConfig::new([addr])).unwrap();
        for n in 0..DATA_IDS {
            client.subscribe(&data_id(n)).unwrap();
        }
        let sight = Sight { seen: BTreeMap::new(), stable: stable.clone(), wrong: None };
        let sight = Arc::new((Mutex::new(sight), Condvar::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (told, stopped) = (sight.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Some(update) = client.next_update(Duration::from_millis(100)) {
                    told.0.lock().unwrap().take(update);
                    told.1.notify_all();
                }
            }
        });
        Self { sight, stop, thread: Some(thread) }
    }

    /// Waits until every list is as wanted. Nothing may have been wrong before.
    fn until(&self, what: &str, wanted: impl Fn(&DataId, &BTreeMap<RegisterId, Vec<u8>>) -> bool) {
        let is_open = |sight: &mut Sight| {
            let right = sight.seen.iter().filter(|(id, seen)| wanted(id, &seen.payloads)).count();
            right < DATA_IDS && sight.wrong.is_none()
        };
        let sight = self.sight.0.lock().unwrap();
        let (sight, waited) = self.sight.1.wait_timeout_while(sight, PATIENCE, is_open).unwrap();
        assert_eq!(sight.wrong, None, "{what}");
        if waited.timed_out() {
            let wrong = sight.seen.iter().filter(|(id, seen)| !wanted(id, &seen.payloads));
            let wrong: Vec<_> =
                wrong.map(|(id, seen)| (id.to_string(), seen.revision, &seen.payloads)).collect();
            panic!("{what}: {} lists of {DATA_IDS}, not as they should be: {wrong:?}", sight.seen.len());
        }
    }

    /// How often lists were told as a whole.
    fn stop(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        let sight = self.sight.0.lock().unwrap();
        assert_eq!(sight.wrong, None);
        sight.seen.values().map(|seen| seen.snapshots).sum()
    }
}

fn number(payload: &[u8]) -> u64 {
    std::str::from_utf8(payload).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Changes one instance of every data id all the time, and adds and removes another, until it is told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<(Client, Vec<Registration>, u64)>,
}

impl Load {
    fn start(addrs: &[SocketAddr], from: u64) -> Self {
        let client = Client::connect(ClientConfig::new(addrs.iter().copied())).unwrap();
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), rounds.clone());
        let thread = std::thread::spawn(move || {
            let mut round = from;
            let first = round.to_string();
            let held: Vec<Registration> = (0..DATA_IDS)
                .map(|n| client.publish(&data_id(n), "counter", "", first.as_bytes()).unwrap())
                .collect();
            while !stopped.load(Ordering::Relaxed) {
                round += 1;
                let mut brief = Vec::new();
                for (n, registration) in held.iter().enumerate() {
                    let payload = round.to_string();
                    client.republish(*registration, &data_id(n), "counter", "", payload.as_bytes()).unwrap();
                    brief.push(client.publish(&data_id(n), "brief", "", b"1").unwrap());
                }
                // As fast as it is acknowledged, and no faster.
                let mut open = brief.len();
                let begin = Instant::now();
                while open > 0 {
                    match client.next_update(PATIENCE) {
                        Some(Update::Acknowledged { registration, .. }) => {
                            open -= usize::from(brief.contains(&registration));
                        }
                        Some(Update::Refused { refusal, .. }) => panic!("refused: {refusal}"),
                        Some(_) => {}
                        None => panic!("no acknowledgement for {:?}", begin.elapsed()),
                    }
                }
                brief.into_iter().for_each(|registration| client.unpublish(registration).unwrap());
                counted.fetch_add(1, Ordering::Relaxed);
            }
            (client, held, round)
        });
        Self { stop, rounds, thread }
    }

    /// Lets it go on for so many rounds.
    fn pass(&self, rounds: u64) {
        let (begin, wanted) = (Instant::now(), self.rounds.load(Ordering::Relaxed) + rounds);
        while self.rounds.load(Ordering::Relaxed) < wanted && !self.thread.is_finished() {
            assert!(begin.elapsed() < PATIENCE, "the load does not go on");
            std::thread::yield_now();
        }
    }

    fn stop(self) -> (Client, Vec<Registration>, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Everybody publishes and watches while `disturb` does something to the cluster, `times` times; all lists are right
/// whenever they are looked at and complete in the end. `mend` makes the cluster whole again.
fn under_load(
    times: usize,
    settings: &[&str],
    disturb: impl Fn(&mut Cluster) -> String,
    mend: impl Fn(&mut Cluster, &str),
) -> Cluster {
    let mut cluster = Cluster::start(3, 2, settings);
    cluster.until_in_sync();
    cluster.until_ready();
    let addrs = cluster.session_addrs();
    let publishers: Vec<Client> =
        addrs.iter().map(|addr| Client::connect(ClientConfig::new([*addr])).unwrap()).collect();
    let mut stable: BTreeMap<DataId, BTreeSet<RegisterId>> = BTreeMap::new();
    for n in 0..DATA_IDS {
        for i in 0..STABLE {
            let registration = publishers[i % 2].publish(&data_id(n), "stable", "", b"0").unwrap();
            stable.entry(data_id(n)).or_default().insert(registration.register);
        }
    }
    let watchers: Vec<Watcher> = addrs.iter().map(|addr| Watcher::new(*addr, &stable)).collect();
    let all = |wanted: &DataId, payloads: &BTreeMap<RegisterId, Vec<u8>>| {
        stable[wanted].iter().all(|register| payloads.contains_key(register))
    };
    watchers.iter().for_each(|watcher| watcher.until("the first lists", all));
    let mut round = 0;
    for time in 0..times {
        let load = Load::start(&addrs, round);
        load.pass(20);
        let disturbed = disturb(&mut cluster);
        let begin = Instant::now();
        while begin.elapsed() < LOAD {
            load.pass(1);
        }
        let (client, held, last) = load.stop();
        round = last;
        let counters: BTreeMap<DataId, RegisterId> =
            held.iter().enumerate().map(|(n, held)| (data_id(n), held.register)).collect();
        let last = last.to_string();
        // The counters at their last value, the brief ones gone, everything else there.
        let right = |id: &DataId, payloads: &BTreeMap<RegisterId, Vec<u8>>| {
            all(id, payloads)
                && payloads.len() == STABLE + 1
                && payloads.get(&counters[id]).is_some_and(|payload| *payload == last.as_bytes())
        };
        let what = format!("after {disturbed} was disturbed, time {time}");
        watchers.iter().for_each(|watcher| watcher.until(&what, right));
        drop(client);
        let quiet = |id: &DataId, payloads: &BTreeMap<RegisterId, Vec<u8>>| {
            all(id, payloads) && payloads.len() == STABLE
        };
        watchers.iter().for_each(|watcher| watcher.until(&what, quiet));
        mend(&mut cluster, &disturbed);
        cluster.until_in_sync();
    }
    for watcher in watchers {
        assert_eq!(watcher.stop(), DATA_IDS, "only the first time lists are told as a whole");
    }
    cluster
}

#[test]
fn killing_leaders_under_load_shows_nobody_a_wrong_list() {
    let cluster = under_load(3, &[], Cluster::kill_a_leader, |cluster, killed| cluster.start_node(killed));
    for session in &cluster.sessions {
        assert!(metric(session.admin.addr, "session_route_changes", "") > f64::from(SLOTS));
    }
    cluster.stop();
}

#[test]
fn a_leader_that_stands_still_and_comes_back_is_not_listened_to() {
    let stop = |cluster: &mut Cluster| {
        let (leader, epoch) = cluster.leader();
        cluster.nodes[&leader].signal(libc::SIGSTOP);
        cluster.until_newer_table(epoch);
        cluster.nodes[&leader].signal(libc::SIGCONT);
        leader
    };
    under_load(2, &[], stop, |_, _| {}).stop();
}

#[test]
fn draining_nodes_under_load_shows_nobody_a_wrong_list() {
    let drain = |cluster: &mut Cluster| {
        let (leader, epoch) = cluster.leader();
        cluster.meta.server.desk.drain(&leader, true).unwrap();
        cluster.until_newer_table(epoch);
        cluster.until_in_sync();
        assert_ne!(cluster.leader().0, leader);
        leader
    };
    let fill = |cluster: &mut Cluster, drained: &str| {
        let (_, epoch) = cluster.leader();
        cluster.meta.server.desk.drain(drained, false).unwrap();
        cluster.until_newer_table(epoch);
    };
    under_load(2, &["data.shards=2", "session.cores=2"], drain, fill).stop();
}

#[test]
fn a_leader_that_is_asked_to_end_hands_over_first_and_nobody_waits_for_its_lease() {
    // No write and no list could wait for that: nobody has so much patience.
    let settings = ["meta.node_lease=60s"];
    let restart = |cluster: &mut Cluster| {
        let (leader, epoch) = cluster.leader();
        let begin = Instant::now();
        cluster.nodes.remove(&leader).unwrap().end();
        let status = cluster.meta.server.desk.status().unwrap().status;
        let node = status.nodes.iter().find(|node| node.id == leader).unwrap();
        assert_eq!((node.leads, node.ending), (0, true), "after {:?}", begin.elapsed());
        assert!(node.lease_ms.is_some(), "its lease still runs");
        cluster.until_newer_table(epoch);
        leader
    };
    under_load(2, &settings, restart, |cluster, ended| cluster.start_node(ended)).stop();
}

/// The payloads of one instance of each data id, as a reader was told them last.
#[derive(Default)]
struct Payloads(BTreeMap<DataId, Vec<u8>>);

impl Payloads {
    /// Waits until all of `ids` have `payload`.
    fn until<'i>(&mut self, reader: &Client, ids: impl Iterator<Item = &'i DataId> + Clone, payload: &[u8]) {
        let are_told = |told: &Self| ids.clone().all(|id| told.0.get(id).is_some_and(|it| it == payload));
        if !are_told(self) {
            until(reader, |update| {
                self.take(update);
                are_told(self)
            });
        }
    }

    /// Returns the data id that was told.
    fn take(&mut self, update: &Update) -> Option<DataId> {
        let (Update::Snapshot { id, instances: told, .. } | Update::Diff { id, changed: told, .. }) = update
        else {
            return None;
        };
        let (_, instance) = told.last()?;
        self.0.insert(id.clone(), instance.payload.clone());
        Some(id.clone())
    }
}

#[test]
fn a_follower_that_reads_nothing_delays_nobody_costs_a_bounded_buffer_and_catches_up() {
    const IDS: usize = 60;
    const LARGE: usize = 16;
    const BUFFER: usize = 1 << 20;
    // More than the batches that a leader keeps of each slot.
    const ROUNDS_BEHIND: usize = 24;
    let buffer = format!("data.link_buffer_max={BUFFER}");
    let mut cluster = Cluster::start(2, 1, &["meta.node_lease=60s", "data.replica_lag_max=60s", &buffer]);
    cluster.until_in_sync();
    cluster.until_ready();
    let (leader, slow) = (cluster.pages("node-1"), cluster.pages("node-2"));
    let [writer, reader] =
        [0, 1].map(|_| Client::connect(ClientConfig::new(cluster.session_addrs())).unwrap());
    let ids: Vec<DataId> = (0..IDS).map(data_id).collect();
    let held: BTreeMap<DataId, Registration> =
        ids.iter().map(|id| (id.clone(), writer.publish(id, "large", "", b"first").unwrap())).collect();
    let change = |id: &DataId, payload: &[u8]| {
        writer.republish(held[id], id, "large", "", payload).unwrap();
    };
    ids.iter().for_each(|id| reader.subscribe(id).unwrap());
    let mut told = Payloads::default();
    told.until(&reader, ids.iter(), b"first");
    let copies = metric(slow, "data_replica_taken_copies", "");
    cluster.nodes["node-2"].signal(libc::SIGSTOP);
    // What the other node leads is pushed; the rest waits for its leader.
    ids.iter().for_each(|id| change(id, b"second"));
    let mut led = BTreeSet::new();
    until(&reader, |update| {
        led.extend(told.take(update));
        led.len() >= LARGE
    });
    let mut payload = vec![b'x'; 31 * 1024];
    let mut most = 0.0;
    let mut round = |told: &mut Payloads| {
        payload[0] = payload[0].wrapping_add(1);
        led.iter().for_each(|id| change(id, &payload));
        told.until(&reader, led.iter(), &payload);
        most = f64::max(most, metric(leader, "data_replica_waiting_bytes", ""));
        metric(leader, "data_replica_links_full", "") == 1.0
    };
    let begin = Instant::now();
    while !round(&mut told) {
        assert!(begin.elapsed() < PATIENCE, "the link still takes more");
    }
    for _ in 0..ROUNDS_BEHIND {
        round(&mut told);
    }
    let bound = (2 * BUFFER + (1 << 20)) as f64;
    assert!((BUFFER as f64..bound).contains(&most), "{most} bytes waited");
    cluster.nodes["node-2"].signal(libc::SIGCONT);
    until_metric(slow, "data_replica_taken_copies", "", |now| now > copies);
    cluster.until_in_sync();
    until_metric(leader, "data_replica_lag_revisions", "", |lag| lag == 0.0);
    told.until(&reader, ids.iter().filter(|id| !led.contains(*id)), b"second");
    // What it has it can lead with.
    let (_, epoch) = cluster.leader();
    cluster.nodes.remove("node-1").unwrap().end();
    cluster.until_newer_table(epoch);
    let before = told.0.clone();
    let (first, rest) = ids.split_at(1);
    change(&first[0], b"third");
    told.until(&reader, first.iter(), b"third");
    assert!(rest.iter().all(|id| told.0[id] == before[id]), "nothing else is new");
    cluster.stop();
}

#[test]
fn a_session_without_a_control_plane_says_that_it_has_no_table() {
    let settings = [
        "meta.peers=[\"127.0.0.1:1\"]",
        "session.listen=127.0.0.1:0",
        "session.http=127.0.0.1:0",
        "session.clients_max=10",
    ];
    let config = Config::load(None, &settings.map(String::from)).unwrap();
    let session = SessionProcess::start(&config, None).unwrap();
    let (status, said) = get(session.admin.addr, "/readyz");
    assert_eq!((status, said.contains("1 of 1 cores have no slot table yet")), (503, true), "{said}");
    assert!(!session.server.is_ready());
    session.server.stop().unwrap();
}
