//! `slotcast local`: a cluster on this machine for people who try things out. Every process is a child of this one, so that they
//! can be killed one by one; none outlives it.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use comfy_table::{Table, presets};
use rustix::process::{Pid, Signal, kill_process};
use slotcast_engine::limits::SLOTS_DEFAULT;
use tempfile::TempDir;

use crate::{config::Config, process::wait_for_end};

/// Longest wait until everything is ready, and for a process to end when it is asked to.
const READY_WITHIN: Duration = Duration::from_secs(30);
const END_WITHIN: Duration = Duration::from_secs(12);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const HTTP_TIMEOUT: Duration = Duration::from_secs(5);
/// Processes of one role.
const PROCESSES_MAX: i64 = 64;

/// A cluster on this machine, to try things out. Every process is a child of this one and ends with it.
#[derive(Debug, Args)]
pub struct Local {
    /// Data nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=PROCESSES_MAX))]
    data: u32,
    /// Sessions
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=PROCESSES_MAX))]
    sessions: u32,
    /// Processes of the control plane; more than one need etcd; 0: none, slots are spread once and for ever
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=PROCESSES_MAX))]
    meta: u32,
    /// Where data nodes keep their slots: none, disk or tmpfs
    #[arg(long, default_value = "none")]
    storage: String,
    /// Directory for configurations, logs and data; it stays. Without one a temporary one is used and removed at the end
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Start a process that has ended again after this long; otherwise it stays away
    #[arg(long, value_name = "DURATION")]
    restart_after: Option<humantime::Duration>,
    /// Any setting of all processes, such as `meta.replicas=3`; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

/// A process of the cluster.
struct Seat {
    role: &'static str,
    name: String,
    /// Where it is reached by data nodes, sessions or clients, and by operators.
    listen: SocketAddr,
    http: SocketAddr,
    config: PathBuf,
    log: PathBuf,
    process: Option<Child>,
    ended: Option<Instant>,
}

/// The folder of a cluster, which may be gone with it.
enum Folder {
    Given(PathBuf),
    Temporary(TempDir),
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Folder::Given(path) => path,
            Folder::Temporary(folder) => folder.path(),
        }
    }
}

/// A running cluster. Its processes end when this is dropped.
struct Cluster {
    seats: Vec<Seat>,
    folder: Folder,
    restart_after: Option<Duration>,
}

impl Local {
    /// Starts the cluster, says where everybody is, and ends it when this process is asked to end.
    pub fn run(&self) -> anyhow::Result<()> {
        let mut cluster = Cluster::plan(self)?;
        let order: Vec<usize> = (0..cluster.seats.len()).collect();
        order.iter().try_for_each(|seat| cluster.start(*seat))?;
        cluster.wait_ready()?;
        print!("{}", cluster.describe());
        wait_for_end(|| cluster.watch())?;
        cluster.end()
    }
}

impl Cluster {
    /// Chooses ports and writes configurations; nothing runs yet.
    fn plan(local: &Local) -> anyhow::Result<Self> {
        let folder = match &local.dir {
            Some(dir) => {
                fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
                Folder::Given(std::path::absolute(dir)?)
            }
            None => Folder::Temporary(tempfile::Builder::new().prefix("slotcast-").tempdir()?),
        };
        let counts = [("meta", local.meta), ("data", local.data), ("session", local.sessions)];
        let processes: Vec<(&'static str, String)> = counts
            .into_iter()
            .flat_map(|(role, count)| (1..=count).map(move |number| (role, format!("{role}-{number}"))))
            .collect();
        let mut ports = Ports::default();
        let mut seats = Vec::new();
        for (role, name) in processes {
            let at = |kind: &str| folder.path().join(format!("{name}.{kind}"));
            let (config, log) = (at("toml"), at("log"));
            let (listen, http) = (ports.take()?, ports.take()?);
            seats.push(Seat { role, name, listen, http, config, log, process: None, ended: None });
        }
        let shared = shared_settings(local, &seats)?;
        for seat in &seats {
            let mut settings = shared.clone();
            settings.extend(own_settings(seat, folder.path(), local.meta > 0));
            // What the user says holds against everything but the addresses.
            settings.extend(local.set.iter().cloned());
            let config = Config::load(None, &settings)?;
            fs::write(&seat.config, toml::to_string(&config)?)
                .with_context(|| format!("cannot write {}", seat.config.display()))?;
        }
        let restart_after = local.restart_after.map(Into::into);
        Ok(Self { seats, folder, restart_after })
    }

    fn start(&mut self, seat: usize) -> anyhow::Result<()> {
        let seat = &mut self.seats[seat];
        let log = File::options().create(true).append(true).open(&seat.log)?;
        let binary = std::env::current_exe().context("cannot find the own binary")?;
        let mut child = Command::new(binary)
            .arg(seat.role)
            .arg("--config")
            .arg(&seat.config)
            .args(["--end-with", &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", seat.name))?;
        let output = child.stdout.take();
        (seat.process, seat.ended) = (Some(child), None);
        let mut line = String::new();
        if let Some(output) = output {
            BufReader::new(output).read_line(&mut line)?;
        }
        if !line.starts_with("ready") {
            bail!("{} does not start: {}", seat.name, last_words(&seat.log));
        }
        Ok(())
    }

    fn wait_ready(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        for seat in &self.seats {
            while let Err(reason) = readiness(seat.http) {
                if Instant::now() > deadline {
                    bail!("{} is not ready after {READY_WITHIN:?}: {reason}", seat.name);
                }
                std::thread::sleep(LOOK_EVERY);
            }
        }
        Ok(())
    }

    /// Notices who has ended. True when nobody is left and nobody comes back.
    fn watch(&mut self) -> bool {
        for index in 0..self.seats.len() {
            let seat = &mut self.seats[index];
            if let Some(process) = &mut seat.process
                && let Ok(Some(status)) = process.try_wait()
            {
                eprintln!("{} has ended: {status}", seat.name);
                (seat.process, seat.ended) = (None, Some(Instant::now()));
                if self.restart_after.is_none() {
                    let (role, config) = (seat.role, seat.config.display());
                    eprintln!("it comes back with: slotcast {role} --config {config}");
                }
            }
            let seat = &self.seats[index];
            if let (Some(after), Some(ended)) = (self.restart_after, seat.ended)
                && ended.elapsed() >= after
            {
                match self.start(index) {
                    Ok(()) => eprintln!("{} is back", self.seats[index].name),
                    Err(error) => eprintln!("{error:#}"),
                }
            }
        }
        self.restart_after.is_none() && self.seats.iter().all(|seat| seat.process.is_none())
    }

    /// Who is where, and what may be tried.
    fn describe(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["process", "pid", "address", "http"]);
        for seat in &self.seats {
            let pid = seat.process.as_ref().map_or(0, Child::id);
            table.add_row([
                seat.name.clone(),
                pid.to_string(),
                seat.listen.to_string(),
                seat.http.to_string(),
            ]);
        }
        let clients = self.seats.iter().filter(|seat| seat.role == "session");
        let clients: Vec<String> = clients.map(|seat| seat.listen.to_string()).collect();
        let mut text = format!("{table}\nclients connect to {}\n", clients.join(" or "));
        if let Some(meta) = self.seats.iter().find(|seat| seat.role == "meta") {
            text += &format!("look at it:    slotcast ctl --target {} status\n", meta.http);
            text += &format!("empty a node:  slotcast ctl --target {} drain data-1\n", meta.http);
        }
        let probed: Vec<String> = clients.iter().map(|addr| format!("--target {addr}")).collect();
        text += &format!("probe it:      loadgen probe {}\n", probed.join(" "));
        text += &format!("configurations and logs: {}\n", self.folder.path().display());
        text + "interrupt this process to end it\n"
    }

    /// Asks everybody to end, sessions first, and makes sure that they have.
    fn end(&mut self) -> anyhow::Result<()> {
        let mut forced = Vec::new();
        for seat in self.seats.iter_mut().rev() {
            let Some(mut process) = seat.process.take() else { continue };
            let _ = kill_process(Pid::from_child(&process), Signal::TERM);
            let deadline = Instant::now() + END_WITHIN;
            while process.try_wait()?.is_none() {
                if Instant::now() > deadline {
                    process.kill()?;
                    process.wait()?;
                    forced.push(seat.name.clone());
                    break;
                }
                std::thread::sleep(LOOK_EVERY / 5);
            }
        }
        ensure!(forced.is_empty(), "killed, because they did not end when asked to: {}", forced.join(", "));
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.seats.iter_mut().filter_map(|seat| seat.process.as_mut()) {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Ports that the system has chosen. All are held until the last is taken, so that none is told twice.
#[derive(Default)]
struct Ports(Vec<TcpListener>);

impl Ports {
    fn take(&mut self) -> anyhow::Result<SocketAddr> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("the system has no port left")?;
        let addr = listener.local_addr()?;
        self.0.push(listener);
        Ok(addr)
    }
}

/// What all processes are told.
fn shared_settings(local: &Local, seats: &[Seat]) -> anyhow::Result<Vec<String>> {
    let mut settings = vec![
        format!("data.storage=\"{}\"", local.storage),
        "cluster=\"local\"".into(),
        format!("meta.nodes_min={}", local.data),
    ];
    let listening = |role: &str| -> Vec<String> {
        seats.iter().filter(|seat| seat.role == role).map(|seat| format!("\"{}\"", seat.listen)).collect()
    };
    if local.meta > 0 {
        settings.push(format!("meta.peers=[{}]", listening("meta").join(",")));
        let is_etcd = |text: &String| text.replace([' ', '"', '\''], "") == "meta.store=etcd";
        ensure!(
            local.meta == 1 || local.set.iter().any(is_etcd),
            "{} processes of the control plane keep their table in etcd: add --set meta.store=etcd and \
             --set 'meta.etcd=[\"http://127.0.0.1:2379\"]', or leave it at --meta 1",
            local.meta
        );
    } else {
        let wanted = Config::load(None, &only_slot_count(&local.set))?.slot_count;
        let count = local.data;
        ensure!(wanted >= count, "slot_count = {wanted} is less than a slot for each of {count} data nodes");
        let nodes = listening("data").into_iter().zip(0..).map(|(addr, number): (String, u32)| {
            let bound = |number: u32| u64::from(wanted) * u64::from(number) / u64::from(count);
            let (first, last) = (bound(number), bound(number + 1) - 1);
            format!("{{id=\"data-{}\",addr={addr},slots=[{first},{last}]}}", number + 1)
        });
        settings.push(format!("slot_count={wanted}"));
        settings.push(format!("nodes=[{}]", nodes.collect::<Vec<_>>().join(",")));
    }
    Ok(settings)
}

/// The number of slots that the user asks for, with a table of nodes that it does not contradict.
fn only_slot_count(set: &[String]) -> Vec<String> {
    let asked = set.iter().rev().find_map(|text| text.strip_prefix("slot_count="));
    let count = asked.and_then(|text| text.trim().parse().ok()).unwrap_or(SLOTS_DEFAULT);
    let last = count.saturating_sub(1);
    vec![
        format!("slot_count={count}"),
        format!("nodes=[{{id=\"data-1\",addr=\"127.0.0.1:1\",slots=[0,{last}]}}]"),
    ]
}

/// What one process is told beside that.
fn own_settings(seat: &Seat, folder: &Path, is_clustered: bool) -> Vec<String> {
    let Seat { role, name, listen, http, .. } = seat;
    let mut settings = vec![format!("{role}.http=\"{http}\"")];
    // A name as TOML writes it.
    let dir = |of: &str| format!("{:?}", folder.join(of).display().to_string());
    match *role {
        "data" => {
            settings.push(format!("data.id=\"{name}\""));
            settings.push(format!("data.data_dir={}", dir(&format!("{name}-slots"))));
        }
        "meta" => {
            settings.push(format!("meta.name=\"{name}\""));
            settings.push(format!("meta.dir={}", dir(name)));
        }
        _ => {}
    }
    if *role != "data" || is_clustered {
        settings.push(format!("{role}.listen=\"{listen}\""));
    }
    settings
}

fn readiness(http: SocketAddr) -> Result<(), String> {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(HTTP_TIMEOUT))
        .http_status_as_error(false)
        .proxy(None)
        .build();
    let answer = ureq::Agent::from(config).get(format!("http://{http}/readyz")).call();
    let mut answer = answer.map_err(|error| error.to_string())?;
    if answer.status().is_success() {
        return Ok(());
    }
    Err(answer.body_mut().read_to_string().unwrap_or_default().trim().to_owned())
}

/// The last line that a process has logged.
fn last_words(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it has said nothing").to_owned()
}
