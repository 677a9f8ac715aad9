//! Data nodes that keep their slots on a disk, as real processes: killed, restarted, and started where they must not.

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

use slotcast_engine::{
    error::Refusal,
    id::{DataId, RegisterId},
};
use slotcast_net::{
    client::{Client, ClientConfig, Update},
    config::Config,
    process::SessionProcess,
    session::config::Routes,
};

use crate::cluster::{PATIENCE, View, get, metric, until, until_list, until_metric};

fn id(service: &str) -> DataId {
    DataId::new("public", "default", service).unwrap()
}

/// A data node as a process of its own.
struct DataChild {
    child: Child,
    shards: Vec<SocketAddr>,
    http: SocketAddr,
}

impl DataChild {
    fn command(folder: &Path, addr: &str, shards: u32, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_slotcast"));
        command
            .arg("data")
            .arg("--set")
            .arg(format!("nodes=[{{id=\"data-1\",addr=\"{addr}\",shards={shards},slots=[0,1023]}}]"));
        command.arg("--set").arg(format!("data.data_dir=\"{}\"", folder.display()));
        let settings = ["data.storage=disk", "data.http=127.0.0.1:0", "data.settle=20ms"];
        settings.iter().chain(more).for_each(|setting| _ = command.arg("--set").arg(setting));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn start(folder: &Path, addr: &str, shards: u32, more: &[&str]) -> Self {
        let mut child = Self::command(folder, addr, shards, more).stderr(Stdio::inherit()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (shards, http) = line.trim().split_once("], http ").expect("the line of a ready node");
        let shards = shards.trim_start_matches("ready: shards [").split(", ");
        Self {
            child,
            shards: shards.map(|addr| addr.parse().unwrap()).collect(),
            http: http.parse().unwrap(),
        }
    }

    /// SIGKILL, as dropping does.
    fn kill(self) {
        drop(self);
    }

    fn session(&self) -> SessionProcess {
        let settings = ["session.http=127.0.0.1:0", "session.listen=127.0.0.1:0", "session.clients_max=50"];
        let config = Config::load(None, &settings.map(String::from)).unwrap();
        let routes = Routes::to_node(config.slot_count, self.shards.clone());
        SessionProcess::start(&config, Some(routes)).unwrap()
    }

    /// Waits until this many publishers are there and everything is on the disk.
    fn until_durable(&self, publishers: usize) {
        until_metric(self.http, "data_publishers", "", |count| count as usize == publishers);
        until_metric(self.http, "data_journal_batches_waiting", "", |count| count == 0.0);
    }
}

impl Drop for DataChild {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn client(session: &SessionProcess) -> Client {
    connect(session.server.addr)
}

fn connect(session: SocketAddr) -> Client {
    Client::connect(ClientConfig::new([session])).unwrap()
}

/// A session as a process of its own, linked to `shards` shards at consecutive ports from `addr` on.
struct SessionChild {
    child: Child,
    addr: SocketAddr,
}

impl SessionChild {
    fn start(addr: &str, shards: u32, more: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_slotcast"));
        let nodes = format!("nodes=[{{id=\"data-1\",addr=\"{addr}\",shards={shards},slots=[0,1023]}}]");
        command.arg("session").arg("--set").arg(nodes);
        let settings = ["session.http=127.0.0.1:0", "session.listen=127.0.0.1:0", "session.clients_max=50"];
        settings.iter().chain(more).for_each(|setting| _ = command.arg("--set").arg(setting));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let addr = line.strip_prefix("ready: clients ").and_then(|rest| rest.split(',').next());
        let addr = addr.expect("the line of a ready session").parse().unwrap();
        Self { child, addr }
    }
}

impl Drop for SessionChild {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads updates until this many writes are acknowledged. None may be refused.
fn until_acknowledgements(client: &Client, mut count: usize) {
    until(client, |update| {
        assert!(!matches!(update, Update::Refused { .. }), "{update:?}");
        count -= usize::from(matches!(update, Update::Acknowledged { .. }));
        count == 0
    });
}

fn until_free(addr: &str) {
    let begin = std::time::Instant::now();
    while let Err(error) = std::net::TcpListener::bind(addr) {
        assert!(begin.elapsed() < PATIENCE, "{addr}: {error}");
        std::thread::yield_now();
    }
}

/// What a process says that has to end by itself.
fn said(command: &mut Command) -> String {
    let mut child = command.spawn().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(matches!(child.wait().unwrap().code(), Some(1 | 2)), "{said}");
    said
}

#[test]
fn what_is_durable_is_there_after_kill_9_though_nobody_tells_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut expected = 0;
    let mut epochs = Vec::new();
    for (round, shards) in [(0, 1), (1, 2), (2, 3), (3, 1)] {
        let node = DataChild::start(folder.path(), "127.0.0.1:0", shards, &[]);
        // Nobody has linked yet: all of this is from the disk.
        until_metric(node.http, "data_publishers", "", |count| count as usize == expected);
        let session = node.session();
        let publisher = client(&session);
        for service in 0..50 {
            publisher.publish(&id(&format!("{round}-{service}")), "host", "zone", b"payload").unwrap();
        }
        expected += 50;
        node.until_durable(expected);
        // The session and its client are still there when the node goes, and never come back.
        node.kill();
        let output = Command::new(env!("CARGO_BIN_EXE_slotcast"))
            .arg("check-data")
            .arg(folder.path())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with(&format!("good: {expected} publishers")), "{text}");
        let epoch: u32 = text.lines().next().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
        epochs.push(epoch);
        drop(publisher);
        session.server.stop().unwrap();
    }
    assert!(epochs.is_sorted_by(|a, b| a < b), "{epochs:?}");
}

#[test]
fn kill_9_under_load_takes_nothing_from_a_reader() {
    let folder = tempfile::tempdir().unwrap();
    // An address that nobody else uses, so that its ports are free again.
    let (addr, second) = ("127.9.7.6:7620", "127.9.7.6:7621");
    let mut node = DataChild::start(folder.path(), addr, 2, &[]);
    let session = node.session();
    let (publisher, reader) = (client(&session), client(&session));
    let services: Vec<DataId> = (0..20).map(|service| id(&format!("loaded-{service}"))).collect();
    let registrations: Vec<_> =
        services.iter().map(|id| publisher.publish(id, "host", "", b"0").unwrap()).collect();
    let mut views: Vec<View> = services.iter().map(|_| View::default()).collect();
    for (id, view) in services.iter().zip(&mut views) {
        reader.subscribe(id).unwrap();
        until_list(&reader, view, id, &[b"0"]);
    }
    for round in 1..=3u8 {
        // Changes are on their way when the node is killed, and more come while it is away.
        for step in 0..50u8 {
            for (id, registration) in services.iter().zip(&registrations) {
                publisher.republish(*registration, id, "host", "", &[round, step]).unwrap();
            }
            if step == 25 {
                node.kill();
                // The kernel takes the killed process's rings down in its own time.
                [addr, second].into_iter().for_each(until_free);
                node = DataChild::start(folder.path(), addr, 2, &[]);
            }
        }
        let last: &[u8] = &[round, 49];
        until(&reader, |update| {
            for (id, view) in services.iter().zip(&mut views) {
                view.take(id, update);
                assert!(!view.payloads.is_empty(), "{id} became empty");
            }
            views.iter().all(|view| view.values() == [last])
        });
        assert!(views.iter().all(|view| view.removals_seen == 0), "a reader was told of a removal");
    }
    node.until_durable(20);
    drop((publisher, reader));
    session.server.stop().unwrap();
    node.kill();
}

#[test]
fn a_directory_may_be_named_from_where_the_process_runs() {
    let here = std::env::current_dir().unwrap();
    let folder = tempfile::tempdir_in(&here).unwrap();
    let node = DataChild::start(folder.path().strip_prefix(&here).unwrap(), "127.0.0.1:0", 1, &[]);
    let session = node.session();
    let publisher = client(&session);
    publisher.publish(&id("relative"), "host", "zone", b"payload").unwrap();
    node.until_durable(1);
    drop(publisher);
    session.server.stop().unwrap();
    node.kill();
    let checked = Command::new(env!("CARGO_BIN_EXE_slotcast")).arg("check-data").arg(folder.path()).output();
    let text = String::from_utf8(checked.unwrap().stdout).unwrap();
    assert!(text.starts_with("good: 1 publishers"), "{text}");
}

#[test]
fn a_directory_that_cannot_be_used_is_refused_with_a_word_on_why() {
    let folder = tempfile::tempdir().unwrap();
    let node = DataChild::start(folder.path(), "127.0.0.1:0", 1, &[]);
    let second = said(&mut DataChild::command(folder.path(), "127.0.0.1:0", 1, &[]));
    assert!(second.contains("another data node uses the data directory"), "{second}");
    assert_eq!(get(node.http, "/readyz").0 / 100, 5, "not before a session has linked");
    node.kill();
    std::fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    let foreign = said(&mut DataChild::command(folder.path(), "127.0.0.1:0", 1, &[]));
    assert!(foreign.contains("notes.txt does not belong into a data directory"), "{foreign}");
    let checked = Command::new(env!("CARGO_BIN_EXE_slotcast")).arg("check-data").arg(folder.path()).output();
    assert!(String::from_utf8(checked.unwrap().stderr).unwrap().contains("notes.txt"));
    std::fs::remove_file(folder.path().join("notes.txt")).unwrap();
    let other = said(&mut DataChild::command(folder.path(), "127.0.0.1:0", 1, &["slot_count=2048"]));
    assert!(other.contains("slot 1024 is given to no node"), "{other}");
}

/// A small file system in memory, if this process may mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(folder.path())
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_stops_nothing_and_what_is_there_is_kept_once_there_is_space() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: this process may not mount a file system");
        return;
    };
    let ballast = disk.0.path().join("ballast");
    let folder = disk.0.path().join("data");
    let node = DataChild::start(&folder, "127.0.0.1:0", 1, &["data.disk_retry_interval=50ms"]);
    let session = node.session();
    let publisher = client(&session);
    publisher.publish(&id("before"), "host", "", b"1").unwrap();
    node.until_durable(1);
    // Filled to the last byte.
    let filled = std::fs::write(&ballast, vec![0; 8 << 20]);
    assert!(filled.is_err(), "the disk is full");
    publisher.publish(&id("during"), "host", "", &[7; 20_000]).unwrap();
    until_metric(node.http, "data_storage_state", "kind=\"failed\"", |failed| failed == 1.0);
    until_metric(node.http, "data_publishers", "", |count| count == 2.0);
    let (status, note) = get(node.http, "/readyz");
    assert_eq!(status, 200, "ephemeral service goes on");
    assert!(note.contains("the disk has failed: persistent publishers are refused"), "{note}");
    let lasting = publisher.publish_persistent(&id("lasting"), (RegisterId(1), 1), "host", "", b"1").unwrap();
    until(&publisher, |update| {
        let told = Update::NotDurable { registration: lasting, refusal: Refusal::StorageFailed };
        assert!(!matches!(update, Update::Acknowledged { registration, .. } if *registration == lasting));
        *update == told
    });
    assert!(metric(node.http, "data_writes_refused", "storage_failed") >= 1.0);
    std::fs::remove_file(&ballast).unwrap();
    // The client goes on asking, and nothing is restarted.
    until(
        &publisher,
        |update| matches!(update, Update::Acknowledged { registration, .. } if *registration == lasting),
    );
    until_metric(node.http, "data_storage_state", "kind=\"whole\"", |whole| whole == 1.0);
    assert!(metric(node.http, "data_storage_failures", "") >= 1.0);
    node.until_durable(3);
    node.kill();
    let node = DataChild::start(&folder, "127.0.0.1:0", 1, &[]);
    until_metric(node.http, "data_publishers", "", |count| count == 3.0);
    until_metric(node.http, "data_persistent_publishers", "", |count| count == 1.0);
    drop(publisher);
    session.server.stop().unwrap();
    node.kill();
}

#[test]
fn persistent_publishers_stay_when_everything_that_knew_them_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (addr, second) = ("127.9.7.6:7630", "127.9.7.6:7631");
    let leases = ["data.session_lease=1s", "session.heartbeat_interval=200ms"];
    let leases = [leases[0], leases[1], "session.client_disconnect_grace=100ms"];
    let mut node = DataChild::start(folder.path(), addr, 2, &leases);
    let session = SessionChild::start(addr, 2, &leases);
    let publisher = connect(session.addr);
    let service = |number: u64| id(&format!("lasting-{number}"));
    for number in 0..39 {
        let name = (RegisterId(number), 1);
        publisher.publish_persistent(&service(number), name, "host", "zone", b"here").unwrap();
    }
    until_acknowledgements(&publisher, 39);
    // A goodbye takes along what is the client's, and leaves what is nobody's.
    let leaver = connect(session.addr);
    leaver.publish_persistent(&service(39), (RegisterId(39), 1), "host", "zone", b"here").unwrap();
    leaver.publish(&id("leaving"), "host", "", b"x").unwrap();
    until_acknowledgements(&leaver, 2);
    until_metric(node.http, "data_publishers", "", |count| count == 41.0);
    drop(leaver);
    until_metric(node.http, "data_publishers", "", |count| count == 40.0);
    until_metric(node.http, "data_persistent_publishers", "", |count| count == 40.0);
    publisher.publish(&id("passing"), "host", "", b"x").unwrap();
    node.until_durable(41);
    // All at once, with the client.
    drop(session);
    node.kill();
    drop(publisher);
    [addr, second].into_iter().for_each(until_free);
    node = DataChild::start(folder.path(), addr, 2, &leases);
    // The lease of the session that was is over: what it owned is gone.
    until_metric(node.http, "data_session_leases_ended", "", |ended| ended >= 1.0);
    until_metric(node.http, "data_publishers", "", |count| count == 40.0);
    until_metric(node.http, "data_persistent_publishers", "", |count| count == 40.0);
    let session = SessionChild::start(addr, 2, &leases);
    let other = connect(session.addr);
    for number in 0..40 {
        other.subscribe(&service(number)).unwrap();
        until_list(&other, &mut View::default(), &service(number), &[b"here"]);
    }
    // Another client removes one, by its number and version. A smaller version does not.
    other.remove_persistent(&service(7), RegisterId(7), 0).unwrap();
    until(&other, |update| matches!(update, Update::Refused { refusal: Refusal::Superseded, .. }));
    other.remove_persistent(&service(7), RegisterId(7), 1).unwrap();
    let (mut acknowledged, mut gone) = (false, false);
    until(&other, |update| {
        acknowledged |= matches!(update, Update::Acknowledged { .. });
        gone |= matches!(update, Update::Diff { removed, .. } if removed == &[RegisterId(7)]);
        acknowledged && gone
    });
    drop(session);
    node.kill();
    drop(other);
    [addr, second].into_iter().for_each(until_free);
    let node = DataChild::start(folder.path(), addr, 2, &leases);
    until_metric(node.http, "data_persistent_publishers", "", |count| count == 39.0);
    node.kill();
}

#[test]
fn kill_9_amid_persistent_writes_loses_none_that_was_acknowledged_and_the_rest_is_said_again() {
    let folder = tempfile::tempdir().unwrap();
    let addr = "127.9.7.6:7640";
    let mut node = DataChild::start(folder.path(), addr, 1, &[]);
    let session = node.session();
    let publisher = client(&session);
    let mut acknowledged = 0;
    for round in 1..=4u64 {
        for number in 0..300 {
            let service = id(&format!("amid-{}", number % 20));
            let name = (RegisterId(number + round * 1000), 1);
            publisher.publish_persistent(&service, name, "host", "", b"here").unwrap();
        }
        until_acknowledgements(&publisher, 20 * round as usize);
        acknowledged += 20 * round as usize;
        node.kill();
        // Acknowledgements that came before the end.
        let mut late = 0;
        while let Some(update) = publisher.next_update(std::time::Duration::ZERO) {
            late += usize::from(matches!(update, Update::Acknowledged { .. }));
        }
        acknowledged += late;
        let checked =
            Command::new(env!("CARGO_BIN_EXE_slotcast")).arg("check-data").arg(folder.path()).output();
        let text = String::from_utf8(checked.unwrap().stdout).unwrap();
        let found: usize = text.split(' ').nth(1).and_then(|count| count.parse().ok()).expect(&text);
        assert!(found >= acknowledged, "{acknowledged} were acknowledged: {text}");
        until_free(addr);
        node = DataChild::start(folder.path(), addr, 1, &[]);
        let rest = 300 * round as usize - acknowledged;
        if rest > 0 {
            until_acknowledgements(&publisher, rest);
            acknowledged += rest;
        }
        until_metric(node.http, "data_persistent_publishers", "", |count| count as usize == acknowledged);
    }
    drop(publisher);
    session.server.stop().unwrap();
    node.kill();
}

/// Every file with its bytes.
fn content(folder: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
    });
    files.collect()
}

#[test]
fn a_damaged_directory_is_salvaged_into_another_that_a_node_starts_from() {
    let parent = tempfile::tempdir().unwrap();
    let (folder, out) = (parent.path().join("data"), parent.path().join("salvaged"));
    let node = DataChild::start(&folder, "127.0.0.1:0", 1, &[]);
    let session = node.session();
    let publisher = client(&session);
    // One block each.
    for number in 0..20 {
        publisher.publish_persistent(&id("damaged"), (RegisterId(number), 1), "host", "", b"x").unwrap();
        until_acknowledgements(&publisher, 1);
    }
    let salvage = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_slotcast"));
        command.arg("check-data").arg(&folder).arg("--salvage").arg(&out).stderr(Stdio::piped());
        command
    };
    let in_use = said(&mut salvage());
    assert!(in_use.contains("a data node uses") && in_use.contains("stop it first"), "{in_use}");
    node.kill();
    drop(publisher);
    session.server.stop().unwrap();
    let name = content(&folder).into_keys().find(|name| name.ends_with(".scj")).unwrap();
    let mut bytes = std::fs::read(folder.join(&name)).unwrap();
    bytes[10 * 4096 + 100] ^= 1;
    std::fs::write(folder.join(&name), bytes).unwrap();
    let refused = said(&mut DataChild::command(&folder, "127.0.0.1:0", 1, &[]));
    assert!(refused.contains(&format!("{name} is damaged at byte 40960")), "{refused}");
    assert!(refused.contains("--salvage"), "{refused}");
    let before = content(&folder);
    let done = salvage().output().unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(text.contains(&format!("lost: {name} at byte 40960: ")), "{text}");
    assert!(text.contains("1 slots may lack changes"), "{text}");
    assert!(text.contains("good: 19 publishers"), "{text}");
    assert_eq!(content(&folder), before, "the original is as it was");
    let again = said(&mut salvage());
    assert!(again.contains("is there already"), "{again}");
    let node = DataChild::start(&out, "127.0.0.1:0", 1, &[]);
    until_metric(node.http, "data_persistent_publishers", "", |count| count == 19.0);
    node.kill();
}
