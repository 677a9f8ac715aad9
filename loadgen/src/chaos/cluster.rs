//! A data node and sessions as processes that can be killed and started again where they were.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result};
use slotcast_net::{config::Config, data::storage::StorageKind};
use tempfile::TempDir;

use crate::{
    process::{Process, cores},
    roles::get,
};

/// Sessions beside the one data node.
pub const SESSIONS: usize = 2;
const SHARDS: u16 = 2;
const DATA_PORT: u16 = 7610;
const SESSION_PORT: u16 = 7630;
/// From a process's port to that of its pages.
const HTTP_OFFSET: u16 = 10;

/// A process of the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Member {
    /// The data node.
    Data,
    /// A session.
    Session(usize),
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Member::Data => f.write_str("data node"),
            Member::Session(number) => write!(f, "session {number}"),
        }
    }
}

struct Seat {
    role: &'static str,
    config: PathBuf,
    /// Ports that have to be free before it starts.
    ports: Vec<SocketAddr>,
    http: SocketAddr,
    process: Option<Process>,
}

/// The cluster.
pub struct Cluster {
    seats: Vec<(Member, Seat)>,
    limit: Duration,
    /// Where clients connect.
    pub clients: Vec<SocketAddr>,
    _folders: [TempDir; 2],
}

impl Cluster {
    /// Writes the configurations; nothing runs yet. No process outlives `limit`.
    pub fn new(storage: StorageKind, settings: &[String], limit: Duration) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("loadgen-").tempdir()?;
        let data = match storage {
            StorageKind::Tmpfs => tempfile::Builder::new().prefix("loadgen-").tempdir_in("/dev/shm"),
            StorageKind::None | StorageKind::Disk => tempfile::Builder::new().prefix("loadgen-").tempdir(),
        }
        .context("no place for the data directory")?;
        // Addresses of this process's own, so that no port is taken by anybody else meanwhile.
        let process = std::process::id();
        let part = |number: u32| (1 + number % 250) as u8;
        let ip = IpAddr::V4(Ipv4Addr::new(
            127,
            100 + (process / 62_500 % 100) as u8,
            part(process / 250),
            part(process),
        ));
        let at = |port| SocketAddr::new(ip, port);
        let mut config = Config::load(None, settings)?;
        config.nodes[0].addr = at(DATA_PORT);
        config.nodes[0].shards = u32::from(SHARDS);
        config.data.storage = storage;
        config.data.data_dir = data.path().join("data");
        config.data.http = at(DATA_PORT + HTTP_OFFSET);
        let seat = |role: &'static str, name: &str, config: &Config, ports, http| -> Result<Seat> {
            let path = folder.path().join(format!("{name}.toml"));
            fs::write(&path, toml::to_string(config)?)?;
            Ok(Seat { role, config: path, ports, http, process: None })
        };
        let shards = (0..SHARDS).map(|shard| at(DATA_PORT + shard)).collect();
        let mut seats = vec![(Member::Data, seat("data", "data", &config, shards, config.data.http)?)];
        let mut clients = Vec::new();
        for number in 0..SESSIONS {
            let port = SESSION_PORT + 2 * HTTP_OFFSET * number as u16;
            (config.session.listen, config.session.http) = (at(port), at(port + HTTP_OFFSET));
            let name = format!("session-{number}");
            let seat = seat("session", &name, &config, vec![at(port)], config.session.http)?;
            seats.push((Member::Session(number), seat));
            clients.push(at(port));
        }
        Ok(Self { seats, limit, clients, _folders: [folder, data] })
    }

    /// Every process.
    pub fn members(&self) -> Vec<Member> {
        self.seats.iter().map(|(member, _)| *member).collect()
    }

    /// Kills a process as SIGKILL does.
    pub fn kill(&mut self, member: Member) {
        self.seat_mut(member).process = None;
    }

    /// Stops a process as SIGSTOP does, or lets it go on.
    pub fn pause(&self, member: Member, stop: bool) -> Result<()> {
        self.seat(member).process.as_ref().map_or(Ok(()), |process| process.pause(stop))
    }

    /// Starts a process where it was. `false`: the ports of the one before are not free yet.
    pub fn start(&mut self, member: Member) -> Result<bool> {
        let limit = self.limit;
        let seat = self.seat_mut(member);
        if seat.ports.iter().chain([&seat.http]).any(|addr| TcpListener::bind(addr).is_err()) {
            return Ok(false);
        }
        let config = seat.config.to_str().context("the temporary folder's name is not UTF-8")?;
        let arguments = ["role", seat.role, "--config", config];
        seat.process = Some(Process::start(&member.to_string(), &arguments, &cores(), 0, limit)?);
        Ok(true)
    }

    /// Whether a process says that it is ready. An error if it has ended.
    pub fn is_ready(&mut self, member: Member) -> Result<bool> {
        let seat = self.seat_mut(member);
        if let Some(process) = &mut seat.process {
            process.check()?;
        }
        Ok(get(seat.http, "/readyz").is_ok_and(|(status, _)| status == 200))
    }

    /// What a process says why it is not ready.
    pub fn readiness(&self, member: Member) -> String {
        match get(self.seat(member).http, "/readyz") {
            Ok((status, text)) => format!("{status} {}", text.trim()),
            Err(error) => error.to_string(),
        }
    }

    fn seat(&self, member: Member) -> &Seat {
        &self.seats[Self::index(member)].1
    }

    fn seat_mut(&mut self, member: Member) -> &mut Seat {
        &mut self.seats[Self::index(member)].1
    }

    fn index(member: Member) -> usize {
        match member {
            Member::Data => 0,
            Member::Session(number) => 1 + number,
        }
    }
}
