//! The embedded cluster: a data node and a session as child processes, so that processor time and memory are told per role.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use slotcast_net::{
    config::Config,
    process::{DataProcess, MetaProcess, SessionProcess, wait_for_end},
};

use crate::{division::Division, limit::SocketOptions, process::Process};

const READY_WITHIN: Duration = Duration::from_secs(20);
const HTTP_TIMEOUT: Duration = Duration::from_secs(5);

/// The data node's counter of socket writes to sessions.
const LINK_WRITES_METRIC: &str = "slotcast_data_socket_writes_total";

/// What the embedded cluster is told.
#[derive(Clone, Debug, Default)]
pub struct ClusterSpec {
    /// Clients it has to hold.
    pub clients: u32,
    /// Settings over the defaults, as `section.key=value`.
    pub settings: Vec<String>,
}

/// A running cluster of our own.
pub struct Cluster {
    /// The data node.
    pub data: Process,
    /// The session.
    pub session: Process,
    /// Where clients connect.
    pub clients: SocketAddr,
    session_http: SocketAddr,
}

impl Cluster {
    /// Starts data node and session and waits until both are ready. Configuration files go to `folder`.
    pub fn start(spec: &ClusterSpec, division: &Division, folder: &Path, limit: Duration) -> Result<Self> {
        let mut config = Config::load(None, &settings(division, &spec.settings))?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        config.nodes[0].addr = any;
        (config.data.http, config.session.http, config.session.listen) = (any, any, any);
        config.data.cpu = division.data.first().copied();
        config.session.cpu = division.session.first().copied();
        config.session.cores = division.session.len();
        config.session.clients_max = spec.clients as usize + 1_000;
        let (mut data, line) = start("data", &config, (&division.data, 0), folder, limit)?;
        let shards = between(&line, "shards [", "]").context("no shards told")?;
        config.nodes[0].addr = shards.split(',').next().unwrap_or_default().trim().parse()?;
        let data_http = address(&line, "http ")?;
        let (mut session, line) =
            start("session", &config, (&division.session, division.session_niceness), folder, limit)?;
        let (clients, session_http) = (address(&line, "clients ")?, address(&line, "http ")?);
        wait_ready(&mut data, data_http)?;
        wait_ready(&mut session, session_http)?;
        Ok(Self { data, session, clients, session_http })
    }

    /// The session's metrics now, if it tells.
    pub fn session_metrics(&self) -> Option<Metrics> {
        Metrics::read(self.session_http)
    }
}

/// What a process tells on `/metrics`.
#[derive(Clone, Default, Debug)]
pub struct Metrics {
    text: String,
}

impl Metrics {
    /// A metric of the session summed over its cores and labels; none if it is not there.
    pub fn session(&self, name: &str) -> Option<f64> {
        self.sum(&format!("slotcast_session_{name}"), "")
    }

    /// Clients closed for a fault of theirs, or sent away, with this reason.
    pub fn client_errors(&self, reason: &str) -> f64 {
        self.sum("slotcast_session_client_errors_total", &format!("reason=\"{reason}\"")).unwrap_or(0.0)
    }

    /// What a process tells now, if it does.
    pub fn read(http: SocketAddr) -> Option<Self> {
        get(http, "/metrics").ok().map(|(_, text)| Self { text })
    }

    /// A metric by its whole name, summed over what it is told for where a label is as wanted.
    pub fn sum(&self, name: &str, label: &str) -> Option<f64> {
        let lines = self.text.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
        });
        let values: Vec<f64> = lines.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }
}

/// A data node of our own without any session.
pub struct DataNode {
    /// The process.
    pub process: Process,
    /// Where links connect.
    pub links: SocketAddr,
    http: SocketAddr,
}

impl DataNode {
    /// Starts a data node of one shard on `core` and waits until it takes links. Its configuration file goes to `folder`.
    pub fn start(settings: &[String], core: usize, folder: &Path, limit: Duration) -> Result<Self> {
        let mut config = Config::load(None, settings)?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        (config.nodes[0].addr, config.data.http, config.data.cpu) = (any, any, Some(core));
        let (process, line) = start("data", &config, (&[core], 0), folder, limit)?;
        let links = between(&line, "shards [", "]").context("no shards told")?.parse()?;
        Ok(Self { process, links, http: address(&line, "http ")? })
    }

    /// Socket writes to links so far, if the data node tells.
    pub fn socket_writes(&self) -> Option<u64> {
        let metrics = Metrics { text: get(self.http, "/metrics").ok()?.1 };
        metrics.sum(LINK_WRITES_METRIC, "").map(|writes| writes as u64)
    }
}

/// What a division of the cores decides, then what the user did.
fn settings(division: &Division, wished: &[String]) -> Vec<String> {
    let mut settings: Vec<String> =
        division.session.first().map(|cpu| format!("session.cpu={cpu}")).into_iter().collect();
    settings.push(format!("session.accept_from_own_cpu={}", division.is_paired()));
    settings.extend_from_slice(wished);
    settings
}

/// The options of client sockets under these settings, so that the bare limit is measured with the same.
pub fn client_sockets(division: &Division, wished: &[String]) -> Result<SocketOptions> {
    let session = Config::load(None, &settings(division, wished))?.session;
    Ok(SocketOptions {
        send_buffer: Some(session.client_send_buffer),
        congestion_control: session.congestion_control(),
        on_own_core: session.accept_from_own_cpu,
    })
}

/// Runs the data role of a configuration file until the process is asked to end.
pub fn data(config: &Path) -> Result<()> {
    let data = DataProcess::start(&Config::load(Some(config), &[])?)?;
    println!("ready: shards {:?}, http {}", data.server.addrs, data.admin.addr);
    wait_for_end(|| data.server.is_finished())?;
    data.server.end()
}

/// Runs the session role of a configuration file until the process is asked to end.
pub fn session(config: &Path) -> Result<()> {
    let session = SessionProcess::start(&Config::load(Some(config), &[])?, None)?;
    println!("ready: clients {}, http {}", session.server.addr, session.admin.addr);
    wait_for_end(|| session.server.is_finished())?;
    session.server.stop()
}

/// Runs the control plane of a configuration file until the process is asked to end.
pub fn meta(config: &Path) -> Result<()> {
    let meta = MetaProcess::start(&Config::load(Some(config), &[])?)?;
    println!("ready: peers {}, http {}", meta.server.addr, meta.admin.addr);
    wait_for_end(|| meta.server.is_finished())?;
    meta.server.stop()
}

fn start(
    role: &str,
    config: &Config,
    (cores, niceness): (&[usize], i32),
    folder: &Path,
    limit: Duration,
) -> Result<(Process, String)> {
    let path = folder.join(format!("{role}.toml"));
    fs::write(&path, toml::to_string(config)?)?;
    let path = path.to_str().context("the temporary folder's name is not UTF-8")?;
    let mut process = Process::start(role, &["role", role, "--config", path], cores, niceness, limit)?;
    let line = process.first_line()?;
    Ok((process, line))
}

fn wait_ready(process: &mut Process, http: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        process.check()?;
        let reason = match get(http, "/readyz") {
            Ok((200, _)) => return Ok(()),
            Ok((_, reason)) => reason.trim().to_owned(),
            Err(error) => error.to_string(),
        };
        if Instant::now() >= deadline {
            bail!("{} is not ready after {READY_WITHIN:?}: {reason}", process.name);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A plain GET: status and body.
pub(crate) fn get(addr: SocketAddr, path: &str) -> Result<(u16, String)> {
    ask(addr, "GET", path, HTTP_TIMEOUT)
}

/// The same for whoever does not wait long.
pub(crate) fn get_within(addr: SocketAddr, path: &str, patience: Duration) -> Result<(u16, String)> {
    ask(addr, "GET", path, patience)
}

/// A plain POST without a body: status and body.
pub(crate) fn post(addr: SocketAddr, path: &str) -> Result<(u16, String)> {
    ask(addr, "POST", path, HTTP_TIMEOUT)
}

fn ask(addr: SocketAddr, method: &str, path: &str, patience: Duration) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&addr, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let length = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {addr}\r\n{length}Connection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let status =
        text.split_whitespace().nth(1).and_then(|status| status.parse().ok()).context("no status line")?;
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.into()))
}

fn address(line: &str, label: &str) -> Result<SocketAddr> {
    let text = line.split_once(label).map(|(_, rest)| rest.split([',', ' ']).next().unwrap_or(rest));
    text.and_then(|text| text.parse().ok())
        .with_context(|| format!("no address behind {label:?} in {line:?}"))
}

fn between<'t>(text: &'t str, start: &str, end: &str) -> Option<&'t str> {
    text.split_once(start)?.1.split_once(end).map(|(inside, _)| inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_cores_and_told_apart_by_reason() {
        let text = "# TYPE x counter\n\
            slotcast_session_pushes_total{core=\"0\"} 3\n\
            slotcast_session_pushes_total{core=\"1\"} 4\n\
            slotcast_session_pushes_total_more 9\n\
            slotcast_session_client_errors_total{core=\"0\",reason=\"frame\"} 1\n\
            slotcast_session_client_errors_total{core=\"0\",reason=\"slow_reader\"} 2\n";
        let metrics = Metrics { text: text.into() };
        assert_eq!((metrics.session("pushes_total"), metrics.session("absent")), (Some(7.0), None));
        assert_eq!((metrics.client_errors("slow_reader"), metrics.client_errors("draining")), (2.0, 0.0));
    }

    #[test]
    fn ready_lines_are_understood() {
        let line = "ready: shards [127.0.0.1:4001], http 127.0.0.1:4002";
        assert_eq!(between(line, "shards [", "]"), Some("127.0.0.1:4001"));
        assert_eq!(address(line, "http ").unwrap().port(), 4002);
        assert_eq!(address("ready: clients 127.0.0.1:1, http 127.0.0.1:2", "clients ").unwrap().port(), 1);
        assert!(address(line, "clients ").is_err());
    }
}
