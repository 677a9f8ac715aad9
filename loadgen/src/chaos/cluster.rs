//! Data nodes, sessions and a control plane as processes that can be killed and started again where they were.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use slotcast_net::{config::Config, data::storage::StorageKind, meta::node::MetaView};
use tempfile::TempDir;

use crate::{
    chaos::network::Network,
    process::{Process, cores},
    roles::{Metrics, get, post},
};

/// Shards of the one data node of a cluster without a control plane; one of several has one.
const SHARDS: u32 = 2;
const DATA_PORT: u16 = 7610;
const SESSION_PORT: u16 = 8610;
const META_PORT: u16 = 9610;
/// From a process's port to that of its pages, and to that of the next process.
const HTTP_OFFSET: u16 = 10;
const NEXT: u16 = 20;

/// How many processes of each role there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Shape {
    /// Data nodes.
    pub data: usize,
    /// Sessions.
    pub sessions: usize,
    /// Processes of the control plane; without one there is one data node with all slots.
    pub metas: usize,
}

impl Shape {
    /// A data node and two sessions, without a control plane.
    pub const SINGLE: Self = Self { data: 1, sessions: 2, metas: 0 };
    /// What a cluster is tried with.
    pub const CLUSTER: Self = Self { data: 3, sessions: 2, metas: 1 };
}

/// A process of the cluster, by its place among those of its role.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Member {
    /// A process of the control plane.
    Meta(usize),
    /// A data node.
    Data(usize),
    /// A session.
    Session(usize),
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Member::Meta(number) => write!(f, "control plane {number}"),
            Member::Data(number) => write!(f, "data node {number}"),
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

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterPlan {
    /// Its processes.
    pub shape: Shape,
    /// Data nodes beyond these that are planned and not started with the others.
    pub spare: usize,
    /// Where data nodes keep their slots.
    pub storage: StorageKind,
    /// Settings over the defaults, as `section.key=value`.
    pub settings: Vec<String>,
    /// No process outlives this.
    pub limit: Duration,
}

/// The cluster.
pub struct Cluster {
    seats: Vec<(Member, Seat)>,
    shape: Shape,
    limit: Duration,
    /// Where clients connect.
    pub clients: Vec<SocketAddr>,
    network: Option<Network>,
    _folders: [TempDir; 2],
}

/// The name of a data node in the slot table.
pub fn node_id(number: usize) -> String {
    format!("data-{}", number + 1)
}

impl Cluster {
    /// Writes the configurations; nothing runs yet.
    pub fn new(plan: &ClusterPlan) -> Result<Self> {
        let ClusterPlan { shape, spare, storage, settings, limit } = plan;
        ensure!(
            shape.metas > 0 || (shape.data == 1 && *spare == 0),
            "several data nodes need a control plane: give --meta 1"
        );
        ensure!(
            shape.metas <= 1,
            "several processes of the control plane need an etcd, which is not started here"
        );
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
        let network = Network::inside();
        // Each process has its place: the control plane, data nodes, sessions.
        let (data_place, session_place) = (shape.metas, shape.metas + shape.data + spare);
        let at = |place: usize, port| {
            SocketAddr::new(network.map_or(ip, |network| network.address_of(place)), port)
        };
        let mut shared = vec![format!("data.storage={storage:?}").to_lowercase()];
        if shape.metas > 0 {
            let peers = (0..shape.metas)
                .map(|number| format!("\"{}\"", at(number, META_PORT + NEXT * number as u16)));
            shared.push(format!("meta.peers=[{}]", peers.collect::<Vec<_>>().join(",")));
            shared.push(format!("meta.nodes_min={}", shape.data));
            shared.push(format!("meta.dir={:?}", folder.path().join("meta").display().to_string()));
        }
        let seat =
            |role: &'static str, number: usize, ports: Vec<SocketAddr>, own: Vec<String>| -> Result<Seat> {
                let path = folder.path().join(format!("{role}-{number}.toml"));
                let http = SocketAddr::new(ports[0].ip(), ports[0].port() + HTTP_OFFSET);
                let mut all = shared.clone();
                all.extend(own);
                all.push(format!("{role}.http=\"{http}\""));
                all.extend(settings.iter().cloned());
                fs::write(&path, toml::to_string(&Config::load(None, &all)?)?)?;
                Ok(Seat { role, config: path, ports, http, process: None })
            };
        let mut seats = Vec::new();
        for number in 0..shape.metas {
            let port = at(number, META_PORT + NEXT * number as u16);
            let own = vec![format!("meta.listen=\"{port}\"")];
            seats.push((Member::Meta(number), seat("meta", number, vec![port], own)?));
        }
        for number in 0..shape.data + spare {
            let port = DATA_PORT + NEXT * number as u16;
            let shards = if shape.metas == 0 { SHARDS } else { 1 };
            let dir = data.path().join(node_id(number)).display().to_string();
            let mut own = vec![format!("data.data_dir={dir:?}"), format!("data.id={:?}", node_id(number))];
            if shape.metas > 0 {
                own.push(format!("data.listen=\"{}\"", at(data_place + number, port)));
            } else {
                own.push(static_table(at(data_place, port), settings)?);
            }
            let ports = (0..shards).map(|shard| at(data_place + number, port + shard as u16)).collect();
            seats.push((Member::Data(number), seat("data", number, ports, own)?));
        }
        let mut clients = Vec::new();
        for number in 0..shape.sessions {
            let port = at(session_place + number, SESSION_PORT + NEXT * number as u16);
            let mut own = vec![format!("session.listen=\"{port}\"")];
            if shape.metas == 0 {
                own.push(static_table(at(data_place, DATA_PORT), settings)?);
            }
            seats.push((Member::Session(number), seat("session", number, vec![port], own)?));
            clients.push(port);
        }
        Ok(Self { seats, shape: *shape, limit: *limit, clients, network, _folders: [folder, data] })
    }

    /// How many processes of each role there are.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Every process that is started with the cluster.
    pub fn members(&self) -> Vec<Member> {
        let is_spare = |member: &Member| matches!(member, Member::Data(number) if *number >= self.shape.data);
        self.seats.iter().map(|(member, _)| *member).filter(|member| !is_spare(member)).collect()
    }

    /// Kills a process as SIGKILL does.
    pub fn kill(&mut self, member: Member) {
        self.seat_mut(member).process = None;
    }

    /// Stops a process as SIGSTOP does, or lets it go on.
    pub fn pause(&self, member: Member, stop: bool) -> Result<()> {
        self.seat(member).process.as_ref().map_or(Ok(()), |process| process.pause(stop))
    }

    /// Asks a process to end.
    pub fn terminate(&self, member: Member) -> Result<()> {
        self.seat(member).process.as_ref().map_or(Ok(()), Process::terminate)
    }

    /// Whether a process that was asked to end has. An error if it did not end well.
    pub fn has_ended(&mut self, member: Member) -> Result<bool> {
        let seat = self.seat_mut(member);
        let ended = seat.process.as_mut().map_or(Ok(true), Process::has_ended)?;
        if ended {
            seat.process = None;
        }
        Ok(ended)
    }

    /// Starts a process where it was. `false`: the ports of the one before are not free yet.
    pub fn start(&mut self, member: Member) -> Result<bool> {
        let (limit, network, place) = (self.limit, self.network, self.index(member));
        let seat = self.seat_mut(member);
        let is_taken = |addr: &SocketAddr| TcpListener::bind(addr).is_err();
        if network.is_none() && seat.ports.iter().chain([&seat.http]).any(is_taken) {
            return Ok(false);
        }
        let config = seat.config.to_str().context("the temporary folder's name is not UTF-8")?;
        let arguments = ["role", seat.role, "--config", config];
        let name = member.to_string();
        seat.process = Some(match network {
            None => Process::start(&name, &arguments, &cores(), 0, limit)?,
            Some(network) => {
                let binary = std::env::current_exe().context("cannot find the own binary")?;
                let (program, arguments) = network.wrap(&binary, &arguments);
                let process = Process::launch(&name, (&program, &arguments), &cores(), 0, limit)?;
                network.connect(place, process.id())?;
                process
            }
        });
        Ok(true)
    }

    /// Whether processes can be cut off from each other.
    pub fn can_cut(&self) -> bool {
        self.network.is_some()
    }

    /// Cuts a process off from all others, or mends that.
    pub fn cut(&self, member: Member, is_cut: bool) -> Result<()> {
        let network = self.network.context("there is no network that could be cut")?;
        network.cut(self.index(member), is_cut)
    }

    /// An error if a process has ended that should run.
    pub fn check(&mut self) -> Result<()> {
        self.seats.iter_mut().filter_map(|(_, seat)| seat.process.as_mut()).try_for_each(Process::check)
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

    /// What a process counts.
    pub fn metrics(&self, member: Member) -> Option<Metrics> {
        Metrics::read(self.seat(member).http)
    }

    /// How the control plane sees the cluster; none without one, or while it does not answer.
    pub fn view(&self) -> Option<MetaView> {
        let (_, seat) = self.seats.iter().find(|(member, _)| matches!(member, Member::Meta(_)))?;
        serde_json::from_str(&get(seat.http, "/status").ok()?.1).ok()
    }

    /// Whether every slot has a leader and as many members in sync as it is to have, and nothing moves. Without a control plane
    /// there is nothing to wait for.
    pub fn is_whole(&self) -> bool {
        self.shape.metas == 0
            || self.view().is_some_and(|view| {
                let it = view.status;
                it.table_epoch > 0
                    && it.slots_without_leader + it.slots_with_absent_leader + it.slots_short + it.moves == 0
            })
    }

    /// The data node that leads most slots, by its place.
    pub fn busiest(&self) -> Option<usize> {
        let view = self.view()?;
        let leads = |number: &usize| {
            let id = node_id(*number);
            view.status.nodes.iter().find(|node| node.id == id).map_or(0, |node| node.leads)
        };
        let all = self.seats.iter().filter(|(member, _)| matches!(member, Member::Data(_))).count();
        (0..all).max_by_key(leads)
    }

    /// Has the control plane empty a data node, or use it again.
    pub fn drain(&self, number: usize, on: bool) -> Result<()> {
        let (_, seat) = self
            .seats
            .iter()
            .find(|(member, _)| matches!(member, Member::Meta(_)))
            .context("there is no control plane")?;
        let (status, said) = post(seat.http, &format!("/drain?node={}&on={on}", node_id(number)))?;
        match status {
            200 => Ok(()),
            _ => bail!("the control plane refuses to drain {}: {}", node_id(number), said.trim()),
        }
    }

    fn seat(&self, member: Member) -> &Seat {
        &self.seats[self.index(member)].1
    }

    fn seat_mut(&mut self, member: Member) -> &mut Seat {
        let index = self.index(member);
        &mut self.seats[index].1
    }

    fn index(&self, member: Member) -> usize {
        let found = self.seats.iter().position(|(it, _)| *it == member);
        found.unwrap_or_else(|| panic!("there is no {member}"))
    }
}

/// One data node that leads every slot.
fn static_table(addr: SocketAddr, settings: &[String]) -> Result<String> {
    let asked = settings.iter().rev().find_map(|text| text.strip_prefix("slot_count="));
    let count = match asked {
        Some(text) => text.trim().parse::<u32>().context("slot_count is no number")?,
        None => slotcast_engine::limits::SLOTS_DEFAULT,
    };
    let last = count.saturating_sub(1);
    Ok(format!("nodes=[{{id=\"data-1\",addr=\"{addr}\",shards={SHARDS},slots=[0,{last}]}}]"))
}
