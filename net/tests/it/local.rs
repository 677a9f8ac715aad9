//! `slotcast local`: everybody is reachable, what is killed is told, and nobody outlives the command.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, ChildStdout, Command, Stdio},
    time::Instant,
};

use slotcast_engine::id::DataId;
use slotcast_net::client::{Client, ClientConfig};

use crate::cluster::{PATIENCE, View, get, until_list};

/// A process of the cluster as the table tells of it.
struct Row {
    name: String,
    pid: u32,
    addr: SocketAddr,
    http: SocketAddr,
}

struct Local {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    rows: Vec<Row>,
}

impl Local {
    fn start(words: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_slotcast"))
            .arg("local")
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut rows = Vec::new();
        for line in lines.by_ref().map(Result::unwrap) {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            if let ["", name, pid, addr, http, ""] = cells[..]
                && let (Ok(pid), Ok(addr), Ok(http)) = (pid.parse(), addr.parse(), http.parse())
            {
                rows.push(Row { name: name.into(), pid, addr, http });
            }
            if line.starts_with("interrupt this process") {
                break;
            }
        }
        Self { child, lines, rows }
    }

    fn of<'r>(&'r self, role: &'r str) -> impl Iterator<Item = &'r Row> {
        self.rows.iter().filter(move |row| row.name.starts_with(role))
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_alive(pid: u32) -> bool {
    // A child that nobody has waited for is still listed, as a zombie.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

fn until(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "{what} did not come");
        std::thread::yield_now();
    }
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

#[test]
fn a_local_cluster_serves_and_ends_whole_however_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cluster");
    let words = ["--data", "2", "--sessions", "2", "--meta", "0", "--dir", dir.to_str().unwrap()];
    let mut local = Local::start(&words);
    assert_eq!((local.rows.len(), local.of("data").count(), local.of("session").count()), (4, 2, 2));
    let sessions: Vec<SocketAddr> = local.of("session").map(|row| row.addr).collect();
    let [one, two] = [0, 1].map(|at| Client::connect(ClientConfig::new([sessions[at]])).unwrap());
    // Enough data ids that both data nodes have some.
    let ids: Vec<DataId> =
        (0..8).map(|number| DataId::new("public", "default", &format!("local-{number}")).unwrap()).collect();
    for id in &ids {
        one.publish(id, "host", "", b"a").unwrap();
        two.subscribe(id).unwrap();
        until_list(&two, &mut View::default(), id, &[b"a"]);
    }
    drop((one, two));

    // One killed: the others stay, and so does the command.
    let killed = local.of("session").next().unwrap().pid;
    signal(killed, "-KILL");
    until("the end of a session", || !is_alive(killed));
    assert!(local.rows.iter().all(|row| row.pid == killed || is_alive(row.pid)));
    signal(local.child.id(), "-TERM");
    assert!(local.child.wait().unwrap().success());
    assert!(local.rows.iter().all(|row| !is_alive(row.pid)), "a process outlived the command");
    assert!(local.lines.next().is_none());
    assert!(dir.join("data-1.toml").is_file() && dir.join("session-2.log").is_file(), "a given folder stays");

    // The command itself killed: nobody is left.
    let mut local = Local::start(&words);
    assert_eq!(get(local.of("data").next().unwrap().http, "/healthz").0, 200);
    local.child.kill().unwrap();
    local.child.wait().unwrap();
    until("the end of all", || local.rows.iter().all(|row| !is_alive(row.pid)));
}

#[test]
fn a_local_cluster_with_a_control_plane_empties_a_node_under_its_clients() {
    let local = Local::start(&["--data", "3", "--sessions", "1", "--set", "slot_count=64"]);
    let session = local.of("session").next().unwrap().addr;
    let [writer, reader] = [(); 2].map(|()| Client::connect(ClientConfig::new([session])).unwrap());
    let ids: Vec<DataId> =
        (0..24).map(|number| DataId::new("public", "default", &format!("moves-{number}")).unwrap()).collect();
    for id in &ids {
        writer.publish(id, "host", "", b"a").unwrap();
        reader.subscribe(id).unwrap();
    }
    let mut views: Vec<View> = ids.iter().map(|_| View::default()).collect();
    let mut until_all = |payloads: &[&[u8]]| {
        crate::cluster::until(&reader, |update| {
            ids.iter().zip(&mut views).for_each(|(id, view)| view.take(id, update));
            views.iter().all(|view| view.values() == payloads)
        });
    };
    until_all(&[b"a"]);
    let meta = local.of("meta").next().unwrap().http.to_string();
    let ctl = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_slotcast"));
        let output = command.args(["ctl", "--target", &meta]).args(words).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
        text
    };
    assert!(ctl(&["status"]).contains("sessions that follow the table             | 1"));
    assert!(ctl(&["drain", "data-2"]).contains("data-2 is empty"));
    for id in &ids {
        writer.publish(id, "host", "", b"b").unwrap();
    }
    until_all(&[b"a", b"b"]);
    let asked = || -> serde_json::Value { serde_json::from_str(&ctl(&["--json", "status"])).unwrap() };
    until("a heartbeat that tells of all publishers", || {
        let told = asked();
        let nodes = told["nodes"].as_array().unwrap().iter();
        nodes.filter_map(|node| node["publishers"].as_u64()).sum::<u64>() >= 48
    });
    let told = asked();
    let nodes = told["nodes"].as_array().unwrap();
    assert!(
        nodes.iter().any(|node| node["id"] == "data-2" && node["holds"] == 0 && node["draining"] == true)
    );
    assert!(told["replication"]["data-1"]["lag_revisions"].is_u64(), "{told:#}");

    // In an emergency nobody has to look for the sessions.
    let session = local.of("session").next().unwrap().http;
    assert_eq!(told["session_pages"][0], session.to_string());
    let stopped = || get(session, "/metrics").1.contains("slotcast_session_push_stopped{core=\"0\"} 1");
    assert!(ctl(&["stop-push", "--all"]).contains(&session.to_string()) && stopped());
    assert!(ctl(&["resume-push", "--all"]).contains(&session.to_string()) && !stopped());
}

#[test]
fn a_killed_process_comes_back_when_that_was_asked_for() {
    let local = Local::start(&["--data", "1", "--sessions", "1", "--meta", "0", "--restart-after", "100ms"]);
    let data = local.of("data").next().unwrap();
    signal(data.pid, "-KILL");
    until("the end of the data node", || !is_alive(data.pid));
    // Only the next one can take this.
    let session = Client::connect(ClientConfig::new([local.of("session").next().unwrap().addr])).unwrap();
    let id = DataId::new("public", "default", "back").unwrap();
    session.publish(&id, "host", "", b"a").unwrap();
    session.subscribe(&id).unwrap();
    until_list(&session, &mut View::default(), &id, &[b"a"]);
}

#[test]
fn what_cannot_be_is_said_before_anything_runs() {
    let refused = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_slotcast")).arg("local").args(words).output().unwrap();
        assert!(!output.status.success() && output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    };
    let said = refused(&["--meta", "2"]);
    assert!(said.contains("etcd") && said.contains("--meta 1"), "{said}");
    let said = refused(&["--meta", "0", "--data", "3", "--set", "slot_count=2"]);
    assert!(said.contains("less than a slot"), "{said}");
    let said = refused(&["--meta", "0", "--storage", "paper"]);
    assert!(said.contains("paper"), "{said}");
}
