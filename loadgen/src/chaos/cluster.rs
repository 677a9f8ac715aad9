//! Data nodes, sessions and a control plane as processes that can be killed and started again where they were.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use slotcast_net::{
    config::Config,
    data::storage::StorageKind,
    meta::{core::Phase, node::MetaView},
};
use tempfile::TempDir;

use crate::{
    chaos::network::{Network, Way},
    process::{Process, cores},
    roles::{Metrics, get, get_within, post},
};

/// Shards of the one data node of a cluster without a control plane; one of several has one.
const SHARDS: u32 = 2;
const DATA_PORT: u16 = 7610;
const SESSION_PORT: u16 = 8610;
const META_PORT: u16 = 9610;
const STORE_PORT: u16 = 2379;
/// The store's program, and how long the lead outlives the process that had it.
const STORE: &str = "etcd";
const LEAD_TTL: &str = "2s";
/// From a process's port to that of its pages, and to that of the next process.
const HTTP_OFFSET: u16 = 10;
const NEXT: u16 = 20;
/// A process of the control plane that does not say in time what it sees does not lead, as far as anybody knows.
const STATUS_WITHIN: Duration = Duration::from_millis(500);

/// How many processes of each role there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Shape {
    /// Data nodes.
    pub data: usize,
    /// Sessions.
    pub sessions: usize,
    /// Processes of the control plane, several with an etcd; without one there is one data node with all slots.
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
    /// The etcd of several processes of the control plane.
    Store,
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Member::Meta(number) => write!(f, "control plane {number}"),
            Member::Data(number) => write!(f, "data node {number}"),
            Member::Session(number) => write!(f, "session {number}"),
            Member::Store => f.write_str("etcd"),
        }
    }
}

struct Seat {
    program: PathBuf,
    arguments: Vec<String>,
    /// The page that says whether it is ready.
    readiness: &'static str,
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
        let has_store = shape.metas > 1;
        ensure!(
            !has_store || Self::has_etcd(),
            "{} processes of the control plane keep their table in an etcd, and there is none on this machine (Debian: \
             apt-get install etcd-server): leave --meta at 1",
            shape.metas
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
        // Each process has its place, in the order of the seats: the control plane, data nodes, sessions, its etcd.
        let (data_place, session_place) = (shape.metas, shape.metas + shape.data + spare);
        let store_place = session_place + shape.sessions;
        let at = |place: usize, port| {
            SocketAddr::new(network.map_or(ip, |network| network.address_of(place)), port)
        };
        let mut shared = vec![format!("data.storage={storage:?}").to_lowercase()];
        if has_store {
            shared.push("meta.store=\"etcd\"".into());
            shared.push(format!("meta.etcd=[\"http://{}\"]", at(store_place, STORE_PORT)));
            shared.push(format!("meta.lead_ttl=\"{LEAD_TTL}\""));
        }
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
                let program = std::env::current_exe().context("cannot find the own binary")?;
                let path = path.to_str().context("the temporary folder's name is not UTF-8")?;
                let arguments = ["role", role, "--config", path].map(String::from).to_vec();
                Ok(Seat { program, arguments, readiness: "/readyz", ports, http, process: None })
            };
        let mut seats = Vec::new();
        for number in 0..shape.metas {
            let port = at(number, META_PORT + NEXT * number as u16);
            let own = vec![format!("meta.listen=\"{port}\""), format!("meta.name=\"meta-{}\"", number + 1)];
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
        if has_store {
            let addr = at(store_place, STORE_PORT);
            seats.push((Member::Store, store(addr, &folder.path().join("etcd"))));
        }
        Ok(Self { seats, shape: *shape, limit: *limit, clients, network, _folders: [folder, data] })
    }

    /// Whether there is an etcd on this machine.
    pub fn has_etcd() -> bool {
        let asked = Command::new(STORE).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        asked.is_ok_and(|status| status.success())
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
        let name = member.to_string();
        seat.process = Some(match network {
            None => Process::launch(&name, (&seat.program, &seat.arguments), &cores(), 0, limit)?,
            Some(network) => {
                let (program, arguments) = network.wrap(&seat.program, &seat.arguments);
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

    /// Cuts a process off from all others, on one way or on both, or mends that.
    pub fn cut(&self, member: Member, way: Way, is_cut: bool) -> Result<()> {
        let network = self.network.context("there is no network that could be cut")?;
        network.cut(self.index(member), self.pid(member)?, way, is_cut)
    }

    /// Keeps what one process sends to another from arriving, or mends that.
    pub fn part(&self, from: Member, to: Member, is_cut: bool) -> Result<()> {
        let network = self.network.context("there is no network that could be cut")?;
        network.part(self.pid(from)?, self.index(to), is_cut)
    }

    fn pid(&self, member: Member) -> Result<u32> {
        let process = self.seat(member).process.as_ref();
        process.map(Process::id).with_context(|| format!("the {member} does not run"))
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
        Ok(get(seat.http, seat.readiness).is_ok_and(|(status, _)| status == 200))
    }

    /// What a process says why it is not ready.
    pub fn readiness(&self, member: Member) -> String {
        let seat = self.seat(member);
        match get(seat.http, seat.readiness) {
            Ok((status, text)) => format!("{status} {}", text.trim()),
            Err(error) => error.to_string(),
        }
    }

    /// What a process counts.
    pub fn metrics(&self, member: Member) -> Option<Metrics> {
        Metrics::read(self.seat(member).http)
    }

    /// How the control plane sees the cluster; none without one, or while nobody leads it.
    pub fn view(&self) -> Option<MetaView> {
        self.leading().map(|(_, view)| view)
    }

    /// The process that leads the control plane, by its place, and what it sees.
    pub fn leading(&self) -> Option<(usize, MetaView)> {
        let running = self.seats.iter().filter(|(_, seat)| seat.process.is_some());
        let metas = running.filter_map(|(member, seat)| match member {
            Member::Meta(number) => Some((*number, seat.http)),
            _ => None,
        });
        let ask = |(number, http)| -> Option<(usize, MetaView)> {
            Some((number, serde_json::from_str(&get_within(http, "/status", STATUS_WITHIN).ok()?.1).ok()?))
        };
        metas.filter_map(ask).find(|(_, view)| view.status.phase != Phase::Standby)
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

    /// Whether a data node leads half of an even share of the slots or more, as the control plane sees it.
    pub fn carries(&self, number: usize) -> bool {
        let (id, Some(view)) = (node_id(number), self.view()) else { return false };
        let nodes = &view.status.nodes;
        let all: usize = nodes.iter().map(|node| node.leads).sum();
        nodes.iter().any(|node| node.id == id && node.leads > 0 && node.leads * nodes.len() * 2 >= all)
    }

    /// Whether a data node holds no slot, as the control plane sees it.
    pub fn is_empty(&self, number: usize) -> bool {
        let (id, view) = (node_id(number), self.view());
        view.is_some_and(|view| view.status.nodes.iter().any(|node| node.id == id && node.holds == 0))
    }

    /// The data node that leads most and the process that leads the control plane, by their places.
    pub fn leaders(&self) -> (usize, usize) {
        let meta = self.leading().map_or(0, |(number, _)| number);
        (self.busiest().unwrap_or(0), meta)
    }

    /// Has the control plane empty a data node, or use it again.
    pub fn drain(&self, number: usize, on: bool) -> Result<()> {
        let (leader, _) = self.leading().context("nobody leads the control plane")?;
        let seat = self.seat(Member::Meta(leader));
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

/// An etcd of one process.
fn store(addr: SocketAddr, folder: &Path) -> Seat {
    let peers = SocketAddr::new(addr.ip(), addr.port() + 1);
    let (clients, own) = (format!("http://{addr}"), format!("http://{peers}"));
    let arguments = [
        "--data-dir",
        &folder.display().to_string(),
        "--listen-client-urls",
        &clients,
        "--advertise-client-urls",
        &clients,
        "--listen-peer-urls",
        &own,
        "--initial-advertise-peer-urls",
        &own,
        "--initial-cluster",
        &format!("default={own}"),
        "--logger",
        "zap",
        "--log-level",
        "fatal",
    ];
    let arguments = arguments.map(String::from).to_vec();
    let ports = vec![addr, peers];
    Seat { program: STORE.into(), arguments, readiness: "/health", ports, http: addr, process: None }
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
