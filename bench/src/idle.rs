//! What a cluster says to itself when nothing happens: real roles over real sockets of this process, with something registered,
//! and nobody who changes it.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use slotcast_engine::id::DataId;
use slotcast_net::{
    client::{Client, ClientConfig, Update},
    config::Config,
    process::{DataProcess, MetaProcess, SessionProcess},
    provenance,
};

/// Requests per second of all sessions together that digests may cost.
const TARGET: f64 = 100.0;
/// What a session sends a data node to compare digests, by the names that `top --what requests` has for it.
const DIGESTS: [&str; 3] = ["heartbeat", "digest-request", "holds"];
/// Longest wait for anything at the start.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is measured.
#[derive(Clone, Debug)]
pub struct IdleSpec {
    /// Session cores; each is a session to the data nodes.
    pub sessions: usize,
    /// Slots of the cluster.
    pub slots: u32,
    /// Data nodes.
    pub data: usize,
    /// Registrations, spread over all slots.
    pub publishers: usize,
    /// How long is looked at.
    pub window: Duration,
    /// Settings over the defaults, as `section.key=value`.
    pub settings: Vec<String>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct IdleFound {
    /// Requests of sessions per second by kind, at all data nodes together.
    pub by_kind: BTreeMap<String, f64>,
    /// Heartbeats of data nodes to the control plane per second.
    pub node_heartbeats: f64,
    /// Seconds that were looked at.
    pub seconds: f64,
    /// Seconds from the last registration until everything counted as settled.
    pub settled_s: f64,
}

impl IdleFound {
    /// Requests per second for digests.
    pub fn digests(&self) -> f64 {
        DIGESTS.iter().filter_map(|kind| self.by_kind.get(*kind)).sum()
    }
}

struct Cluster {
    meta: MetaProcess,
    data: Vec<DataProcess>,
    session: SessionProcess,
}

impl Cluster {
    fn start(spec: &IdleSpec) -> anyhow::Result<Self> {
        let any = ["meta.listen", "meta.http", "data.listen", "data.http", "session.listen", "session.http"];
        let mut settings: Vec<String> = any.map(|key| format!("{key}=\"127.0.0.1:0\"")).to_vec();
        settings.push("meta.store=none".into());
        settings.push("session.clients_max=64".into());
        settings.push(format!("session.cores={}", spec.sessions));
        settings.push(format!("slot_count={}", spec.slots));
        settings.push(format!("nodes=[{{id=\"none\",addr=\"127.0.0.1:1\",slots=[0,{}]}}]", spec.slots - 1));
        settings.push(format!("meta.nodes_min={}", spec.data));
        settings.extend(spec.settings.iter().cloned());
        let meta = MetaProcess::start(&Config::load(None, &settings)?)?;
        settings.push(format!("meta.peers=[\"{}\"]", meta.server.addr));
        let data = (1..=spec.data).map(|number| {
            let mut own = settings.clone();
            own.push(format!("data.id=\"data-{number}\""));
            DataProcess::start(&Config::load(None, &own)?)
        });
        let data = data.collect::<anyhow::Result<Vec<_>>>()?;
        let session = SessionProcess::start(&Config::load(None, &settings)?, None)?;
        let cluster = Self { meta, data, session };
        cluster.until("every slot whole and every session linked", || {
            let status = cluster.meta.server.desk.status().map_err(anyhow::Error::msg)?.status;
            let open = status.slots_without_leader + status.slots_short + status.moves;
            Ok(status.table_epoch > 0 && open == 0 && cluster.session.server.is_ready())
        })?;
        Ok(cluster)
    }

    fn until(&self, what: &str, done: impl Fn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let begin = Instant::now();
        while !done()? {
            ensure!(begin.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Messages that sessions have sent so far, by kind, and heartbeats of data nodes.
    fn counted(&self) -> anyhow::Result<(BTreeMap<String, f64>, f64)> {
        let mut all = BTreeMap::new();
        for node in &self.data {
            let told: Value =
                serde_json::from_str(&get(node.admin.addr, "/admin/top?what=requests&limit=100")?)?;
            for row in told["rows"].as_array().into_iter().flatten() {
                let kind = row["key"].as_str().unwrap_or_default().to_owned();
                *all.entry(kind).or_insert(0.0) += row["value"].as_f64().unwrap_or(0.0);
            }
        }
        let metrics = get(self.meta.admin.addr, "/metrics")?;
        let line = metrics.lines().find_map(|line| line.strip_prefix("slotcast_meta_heartbeats_total "));
        Ok((all, line.and_then(|value| value.parse().ok()).unwrap_or(0.0)))
    }

    /// Whether nobody is waited for any more: no promotion is younger than a lease.
    fn is_settled(&self) -> bool {
        // The sessions' cadence says it: whoever waits for somebody speaks each second.
        self.data.iter().all(|node| node.server.metrics.iter().all(|shard| shard.serving.get() == 1))
    }

    fn stop(self) -> anyhow::Result<()> {
        self.session.server.stop()?;
        for node in self.data {
            node.server.stop()?;
        }
        self.meta.server.stop()
    }
}

/// Starts everything, registers, waits until nothing is new any more, and counts.
pub fn run(spec: &IdleSpec, bar: &ProgressBar) -> anyhow::Result<IdleFound> {
    ensure!(spec.sessions > 0 && spec.data > 0 && spec.slots > 0, "there has to be one of each at least");
    let lease = Config::load(None, &spec.settings_alone())?.data.session_lease;
    bar.set_message("starting");
    let cluster = Cluster::start(spec)?;
    let client = Client::connect(ClientConfig::new([cluster.session.server.addr]))
        .map_err(|error| anyhow::anyhow!("the session takes no client: {error}"))?;
    bar.set_message("registering");
    for number in 0..spec.publishers {
        let id = DataId::new("idle", "default", &format!("service-{number}"))?;
        client.publish(&id, "host", "", b"idle")?;
    }
    let mut open = spec.publishers;
    while open > 0 {
        match client.next_update(PATIENCE) {
            Some(Update::Acknowledged { .. }) => open -= 1,
            Some(Update::Refused { refusal, .. }) => bail!("a registration was refused: {refusal}"),
            Some(_) => {}
            None => bail!("{open} registrations are not acknowledged"),
        }
    }
    // Who leads for less than a lease is asked each second; then once more for everybody to have noticed.
    let settles = lease + lease / 6 + Duration::from_secs(2);
    let (begun, step) = (Instant::now(), Duration::from_millis(200));
    bar.set_message("settling");
    bar.set_length((settles + spec.window).as_millis() as u64);
    while begun.elapsed() < settles || !cluster.is_settled() {
        bar.set_position(begun.elapsed().as_millis() as u64);
        std::thread::sleep(step);
    }
    let settled_s = begun.elapsed().as_secs_f64();
    bar.set_message("counting");
    let (first, beats) = cluster.counted()?;
    let window = Instant::now();
    while window.elapsed() < spec.window {
        bar.set_position(begun.elapsed().as_millis() as u64);
        std::thread::sleep(step.min(spec.window));
    }
    let (last, beats_then) = cluster.counted()?;
    let seconds = window.elapsed().as_secs_f64();
    bar.finish_and_clear();
    drop(client);
    cluster.stop()?;
    let by_kind = last.into_iter().map(|(kind, count)| {
        let before = first.get(&kind).copied().unwrap_or(0.0);
        (kind, (count - before) / seconds)
    });
    let by_kind = by_kind.collect();
    Ok(IdleFound { by_kind, node_heartbeats: (beats_then - beats) / seconds, seconds, settled_s })
}

impl IdleSpec {
    /// The settings that are asked for, in a configuration that does not contradict them.
    fn settings_alone(&self) -> Vec<String> {
        let last = self.slots - 1;
        let mut all = vec![
            format!("slot_count={}", self.slots),
            format!("nodes=[{{id=\"data-1\",addr=\"127.0.0.1:1\",slots=[0,{last}]}}]"),
        ];
        all.extend(self.settings.iter().cloned());
        all
    }
}

fn get(addr: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {}", head.lines().next().unwrap_or_default());
    Ok(body.into())
}

/// What a person reads.
pub fn table(spec: &IdleSpec, found: &IdleFound) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["what", "per second"]);
    let mut rows = vec![
        (format!("digests of {} sessions, {} slots", spec.sessions, spec.slots), found.digests()),
        ("heartbeats of data nodes to the control plane".into(), found.node_heartbeats),
    ];
    rows.extend(
        found.by_kind.iter().filter(|it| *it.1 > 0.0).map(|it| (format!("requests: {}", it.0), *it.1)),
    );
    for (what, figure) in rows {
        table.add_row([what, format!("{figure:.1}")]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// What a program reads.
pub fn json(spec: &IdleSpec, found: &IdleFound) -> Value {
    provenance::stamped(json!({
        "verdict": if found.digests() < TARGET { "ok" } else { "short of the target" },
        "sessions": spec.sessions,
        "slots": spec.slots,
        "data": spec.data,
        "publishers": spec.publishers,
        "duration_s": found.seconds,
        "settled_s": found.settled_s,
        "digest_requests_per_s": found.digests(),
        "requests_per_s": found.by_kind,
        "node_heartbeats_per_s": found.node_heartbeats,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_cluster_says_no_more_than_a_heartbeat_per_link_and_interval() {
        let settings =
            ["data.session_lease=3s", "session.heartbeat_interval=100ms"].map(String::from).to_vec();
        let window = Duration::from_secs(2);
        let spec = IdleSpec { sessions: 2, slots: 64, data: 2, publishers: 20, window, settings };
        let found = run(&spec, &ProgressBar::hidden()).unwrap();
        // Every half second, a sixth of the lease, over each of four links.
        assert!((4.0..=10.0).contains(&found.digests()), "{found:?}");
        assert!(found.node_heartbeats > 1.0, "{found:?}");
        assert_eq!(json(&spec, &found)["verdict"], "ok");
    }
}
