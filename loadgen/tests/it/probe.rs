//! The permanent probe against a data node and sessions of this process.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use slotcast_engine::id::DataId;
use slotcast_net::{
    client::{Client, ClientConfig},
    config::Config,
    process::{DataProcess, SessionProcess},
    session::config::Routes,
};

const PATIENCE: Duration = Duration::from_secs(20);

struct Registry {
    _data: DataProcess,
    sessions: Vec<SessionProcess>,
}

impl Registry {
    fn start() -> Self {
        let settings = ["data", "session"].map(|role| format!("{role}.http=127.0.0.1:0"));
        let mut all = settings.to_vec();
        all.extend(["session.listen=127.0.0.1:0".into(), "session.clients_max=50".into()]);
        all.push("data.settle=1ms".into());
        all.push("nodes=[{id=\"data-1\",addr=\"127.0.0.1:0\",slots=[0,1023]}]".into());
        let config = Config::load(None, &all).unwrap();
        let data = DataProcess::start(&config).unwrap();
        let routes = Routes::to_node(config.slot_count, data.server.addrs.clone());
        let sessions =
            (0..2).map(|_| SessionProcess::start(&config, Some(routes.clone())).unwrap()).collect();
        Self { _data: data, sessions }
    }

    fn publishers(&self) -> f64 {
        metric(self._data.admin.addr, "slotcast_data_publishers")
    }
}

/// A running probe, and where it shows its metrics.
struct Probe {
    child: Child,
    http: SocketAddr,
    folder: tempfile::TempDir,
}

impl Probe {
    fn start(registry: &Registry, words: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
        command.args(["probe", "--http", "127.0.0.1:0", "--interval", "20ms"]).args(words);
        for session in &registry.sessions {
            command.args(["--target", &session.server.addr.to_string()]);
        }
        command.arg("--json").arg(folder.path().join("probe.json"));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = said.find(|line| line.as_ref().unwrap().starts_with("metrics: http://")).unwrap().unwrap();
        let http = line.trim_start_matches("metrics: http://").trim_end_matches("/metrics").parse().unwrap();
        std::thread::spawn(move || said.for_each(drop));
        Self { child, http, folder }
    }

    fn until(&self, name: &str, wanted: impl Fn(f64) -> bool) {
        let begin = Instant::now();
        while !wanted(metric(self.http, name)) {
            assert!(begin.elapsed() < PATIENCE, "{name} is {}", metric(self.http, name));
            std::thread::yield_now();
        }
    }

    /// Waits for its end. Whether it says that all was well, and its JSON.
    fn finish(mut self) -> (bool, Value) {
        let status = self.child.wait().unwrap();
        let json = std::fs::read(self.folder.path().join("probe.json")).unwrap();
        (status.success(), serde_json::from_slice(&json).unwrap())
    }

    fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn get(addr: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(addr).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.into()).unwrap_or_default())
}

fn metric(addr: SocketAddr, name: &str) -> f64 {
    let text = get(addr, "/metrics").1;
    let lines =
        text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[test]
fn a_probe_sees_its_changes_everywhere_and_leaves_nothing_behind() {
    let registry = Registry::start();
    let probe = Probe::start(&registry, &[]);
    // Long enough that each kind of change, and clients that go and come, are among them.
    probe.until("slotcast_probe_rounds_total", |rounds| rounds >= 70.0);
    assert_eq!(metric(probe.http, "slotcast_probe_up"), 2.0);
    assert!(metric(probe.http, "slotcast_probe_push_latency_seconds_count") > 100.0);
    assert_eq!(get(probe.http, "/readyz").0, 200);
    probe.terminate();
    let (good, told) = probe.finish();
    assert!(good && told["verdict"] == "ok", "{told:#}");
    assert_eq!((&told["violations"], &told["rounds"]["late"]), (&Value::from(0), &Value::from(0)));
    for session in &registry.sessions {
        let delays = &told["latency_ms"][session.server.addr.to_string()];
        assert!(delays["max"].as_f64() < Some(5_000.0), "{told:#}");
        assert!(delays["count"].as_u64() > Some(50) && delays["p50"].as_f64() > Some(0.0), "{told:#}");
    }
    let begin = Instant::now();
    while registry.publishers() > 0.0 {
        assert!(begin.elapsed() < PATIENCE, "{} publishers stayed", registry.publishers());
        std::thread::yield_now();
    }
}

#[test]
fn a_registration_that_the_probe_has_not_made_is_told() {
    let registry = Registry::start();
    let probe = Probe::start(&registry, &[]);
    probe.until("slotcast_probe_rounds_total", |rounds| rounds >= 5.0);
    let top = get(registry.sessions[0].admin.addr, "/admin/top?what=data-ids&limit=1").1;
    let top: Value = serde_json::from_str(&top).unwrap();
    let parts: Vec<&str> = top["rows"][0]["key"].as_str().unwrap().split('/').collect();
    let client = Client::connect(ClientConfig::new([registry.sessions[1].server.addr])).unwrap();
    client.publish(&DataId::new(parts[0], parts[1], parts[2]).unwrap(), "host", "", b"foreign").unwrap();
    probe.until("slotcast_probe_violations_total", |violations| violations >= 1.0);
    probe.terminate();
    let (good, told) = probe.finish();
    assert!(!good && told["verdict"] == "failed", "{told:#}");
    let first = told["first_violations"][0].as_str().unwrap();
    assert!(first.contains("nobody has registered it"), "{first}");
    assert!(told["story"].as_array().unwrap().iter().any(|line| line.as_str().unwrap().contains("told")));
}

#[test]
fn a_session_that_is_gone_makes_rounds_late_and_the_probe_not_ready() {
    let mut registry = Registry::start();
    let probe = Probe::start(&registry, &["--patience", "200ms"]);
    probe.until("slotcast_probe_rounds_total", |rounds| rounds >= 5.0);
    let gone = registry.sessions.pop().unwrap();
    let addr = gone.server.addr;
    gone.server.stop().unwrap();
    probe.until("slotcast_probe_up", |up| up == 1.0);
    let begin = Instant::now();
    loop {
        let (code, said) = get(probe.http, "/readyz");
        if code == 503 && said.contains(&addr.to_string()) {
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "{code} {said}");
    }
    probe.terminate();
    let (good, told) = probe.finish();
    assert!(!good && told["rounds"]["late"].as_u64() > Some(0), "{told:#}");
    assert_eq!(told["violations"], 0, "{told:#}");
}
