//! A data node and a session process on loopback ports of the system's choice, and helpers to wait for events.

use std::{net::SocketAddr, time::Duration};

use slotcast_engine::id::{DataId, RegisterId, Revision};
use slotcast_net::{
    client::{Client, ClientConfig, Update},
    config::Config,
    process::{DataProcess, SessionProcess},
    session::config::Routes,
};

/// Longest wait for anything that is meant to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Cluster {
    pub data: DataProcess,
    pub sessions: Vec<SessionProcess>,
}

impl Cluster {
    /// One data node of `shards` shards and `sessions` sessions, with settings laid over the defaults.
    pub fn start(shards: u32, sessions: usize, settings: &[&str]) -> Self {
        let mut all: Vec<String> = [
            "data.http=127.0.0.1:0",
            "session.http=127.0.0.1:0",
            "session.listen=127.0.0.1:0",
            "data.settle=20ms",
            "session.clients_max=200",
        ]
        .map(String::from)
        .to_vec();
        all.push(format!("nodes=[{{id=\"data-1\",addr=\"127.0.0.1:0\",shards={shards},slots=[0,1023]}}]"));
        all.extend(settings.iter().map(|setting| setting.to_string()));
        let config = Config::load(None, &all).unwrap();
        let data = DataProcess::start(&config).unwrap();
        let routes = Routes::to_node(config.slot_count, data.server.addrs.clone());
        let sessions =
            (0..sessions).map(|_| SessionProcess::start(&config, Some(routes.clone())).unwrap()).collect();
        Self { data, sessions }
    }

    pub fn addr(&self, session: usize) -> SocketAddr {
        self.sessions[session].server.addr
    }

    pub fn client(&self, session: usize) -> Client {
        Client::connect(ClientConfig::new([self.addr(session)])).unwrap()
    }

    pub fn stop(self) {
        for session in self.sessions {
            session.server.stop().unwrap();
        }
        self.data.server.stop().unwrap();
    }

    /// Value of a metric of the data node, summed likewise.
    pub fn data_metric(&self, name: &str, label: &str) -> f64 {
        metric(self.data.admin.addr, name, label)
    }

    /// Value of a metric of a session, summed over cores and labels that contain `label`.
    pub fn session_metric(&self, session: usize, name: &str, label: &str) -> f64 {
        metric(self.sessions[session].admin.addr, name, label)
    }
}

pub fn metric(addr: SocketAddr, name: &str, label: &str) -> f64 {
    let text = get(addr, "/metrics").1;
    text.lines()
        .filter(|line| line.starts_with(&format!("slotcast_{name}")) && line.contains(label))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// Asks for a metric until it is as wanted; each question waits for its answer.
pub fn until_metric(addr: SocketAddr, name: &str, label: &str, mut wanted: impl FnMut(f64) -> bool) {
    let begin = std::time::Instant::now();
    while !wanted(metric(addr, name, label)) {
        assert!(begin.elapsed() < PATIENCE, "{name} {label} is {}", metric(addr, name, label));
        std::thread::yield_now();
    }
}

pub fn get(addr: SocketAddr, path: &str) -> (u16, String) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.into()).unwrap_or_default())
}

/// The list of one data id as told by updates: payloads by registration.
#[derive(Default, Debug)]
pub struct View {
    pub revision: Revision,
    pub payloads: std::collections::BTreeMap<RegisterId, Vec<u8>>,
    pub snapshots: usize,
    pub diffs: usize,
    pub removals_seen: usize,
}

impl View {
    /// Takes an update in if it is of `id`. Asserts that revisions never go back.
    pub fn take(&mut self, id: &DataId, update: &Update) {
        match update {
            Update::Snapshot { id: of, revision, instances } if of == id => {
                assert!(*revision >= self.revision, "older list");
                self.revision = *revision;
                let before = std::mem::take(&mut self.payloads);
                self.payloads =
                    instances.iter().map(|(register, it)| (*register, it.payload.clone())).collect();
                self.removals_seen +=
                    before.keys().filter(|register| !self.payloads.contains_key(register)).count();
                self.snapshots += 1;
            }
            Update::Diff { id: of, revision, changed, removed } if of == id => {
                assert!(*revision > self.revision, "older list");
                self.revision = *revision;
                removed.iter().for_each(|register| {
                    self.payloads.remove(register);
                });
                self.removals_seen += removed.len();
                for (register, instance) in changed {
                    self.payloads.insert(*register, instance.payload.clone());
                }
                self.diffs += 1;
            }
            _ => {}
        }
    }

    pub fn values(&self) -> Vec<&[u8]> {
        let mut values: Vec<&[u8]> = self.payloads.values().map(Vec::as_slice).collect();
        values.sort_unstable();
        values
    }
}

/// Reads updates until `done` says so. Panics with what was seen when it takes too long.
pub fn until(client: &Client, mut done: impl FnMut(&Update) -> bool) {
    let mut seen = Vec::new();
    loop {
        match client.next_update(PATIENCE) {
            Some(update) if done(&update) => return,
            Some(update) => seen.push(update),
            None => panic!("waited too long after {seen:?}"),
        }
    }
}

/// Reads updates until the list of `id` holds exactly `payloads`.
pub fn until_list(client: &Client, view: &mut View, id: &DataId, payloads: &[&[u8]]) {
    let mut wanted = payloads.to_vec();
    wanted.sort_unstable();
    until(client, |update| {
        view.take(id, update);
        view.revision > Revision::ZERO && view.values() == wanted
    });
}

pub fn until_acknowledged(client: &Client) -> Revision {
    let mut found = Revision::ZERO;
    until(client, |update| match update {
        Update::Acknowledged { revision, .. } => {
            found = *revision;
            true
        }
        Update::Refused { refusal, .. } => panic!("refused: {refusal}"),
        _ => false,
    });
    found
}
