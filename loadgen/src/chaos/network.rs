//! A network of its own for every process, so that one can be cut off from all others: a network namespace per process, each with
//! a cable to one bridge, all of it in a namespace that this process has moved to. Nothing of it is seen outside, and nothing outlives
//! the processes in it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Set in a process that runs in a namespace of its own.
const INSIDE: &str = "LOADGEN_NETWORK";
const BRIDGE: &str = "cables";
/// How long a process may take to move to its namespace.
const MOVED_WITHIN: Duration = Duration::from_secs(5);
/// A process waits for its cable before it becomes what it is to be.
const WAIT_FOR_CABLE: &str =
    "until ip -4 addr show dev cable 2>/dev/null | grep -q inet; do sleep 0.01; done; exec \"$@\"";

/// What keeps everything out of a cable: a queue without room.
const NO_ROOM: [&str; 3] = ["bfifo", "limit", "1"];
/// The hardware address of nobody.
const NOBODY: &str = "02:00:00:00:ff:ff";

/// Which way nothing gets through a cable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Neither.
    Both,
    /// The process hears nobody; what it says arrives.
    In,
    /// Nobody hears the process; it hears everybody.
    Out,
}

/// The network; processes are in it by their place.
#[derive(Clone, Copy, Debug)]
pub struct Network;

impl Network {
    /// The network, if this process runs in one.
    pub fn inside() -> Option<Self> {
        std::env::var_os(INSIDE).map(|_| Self)
    }

    /// Whether a cable can be cut on one way only: that takes `tc`.
    pub fn has_ways() -> bool {
        Command::new("tc").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    }

    /// Whether namespaces may be made here, with cables between them.
    pub fn is_permitted() -> bool {
        let made = Command::new("unshare")
            .args(["--net", "--", "ip", "link", "add", "near", "type", "veth", "peer", "name", "far"])
            .stderr(Stdio::null())
            .status();
        made.is_ok_and(|status| status.success())
    }

    /// Runs the same command in a namespace of its own, in place of this process.
    pub fn enter() -> Result<ExitCode> {
        let binary = std::env::current_exe().context("cannot find the own binary")?;
        let error = Command::new("unshare")
            .args(["--net", "--"])
            .arg(binary)
            .args(std::env::args_os().skip(1))
            .env(INSIDE, "1")
            .exec();
        Err(error).context("cannot make a network namespace")
    }

    /// Lays the bridge. This process has the first address.
    pub fn lay(self) -> Result<()> {
        ip(&["link", "set", "lo", "up"])?;
        ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        ip(&["addr", "add", &format!("{}/16", address(0)), "dev", BRIDGE])?;
        ip(&["link", "set", BRIDGE, "up"])
    }

    /// The address of a place.
    pub fn address_of(self, place: usize) -> IpAddr {
        address(place + 1)
    }

    /// The command that starts a program in a namespace of its own; it waits there for its cable.
    pub fn wrap(self, program: &Path, arguments: &[String]) -> (PathBuf, Vec<String>) {
        let inside = ["--net", "--", "sh", "-c", WAIT_FOR_CABLE, "sh"].map(String::from);
        let program = program.display().to_string();
        let own = arguments.iter().cloned();
        ("unshare".into(), inside.into_iter().chain([program]).chain(own).collect())
    }

    /// Lays the cable of a place to a process that waits for it.
    pub fn connect(self, place: usize, process: u32) -> Result<()> {
        until_moved(process)?;
        let (near, pid) = (cable(place), process.to_string());
        // What the process before had went with it, but not always at once.
        let _ = ip(&["link", "del", &near]);
        // The same hardware address every time: the others remember the one of the process before.
        let hardware = format!("02:00:00:00:{:02x}:{:02x}", place / 256, place % 256);
        let far = ["peer", "name", "cable", "address", &hardware, "netns", &pid];
        ip(&[&["link", "add", &near, "type", "veth"], &far[..]].concat())?;
        ip(&["link", "set", &near, "master", BRIDGE, "up"])?;
        let there = |arguments: &[&str]| run(inside(process).arg("ip").args(arguments));
        there(&["link", "set", "lo", "up"])?;
        there(&["link", "set", "cable", "up"])?;
        there(&["addr", "add", &format!("{}/16", self.address_of(place)), "dev", "cable"])
    }

    /// Cuts the cable of a place on some way, or mends it. `pid` is the process there.
    pub fn cut(self, place: usize, pid: u32, way: Way, is_cut: bool) -> Result<()> {
        let near = cable(place);
        let queue = |command: &mut Command, device: &str| {
            let change = if is_cut { "replace" } else { "del" };
            command.args(["tc", "qdisc", change, "dev", device, "root"]);
            run(if is_cut { command.args(NO_ROOM) } else { command })
        };
        match way {
            Way::Both => ip(&["link", "set", &near, if is_cut { "down" } else { "up" }]),
            Way::In => queue(&mut Command::new("env"), &near),
            Way::Out => queue(&mut inside(pid), "cable"),
        }
    }

    /// Keeps what a process sends from arriving at a place, and nothing else, or mends that.
    pub fn part(self, pid: u32, place: usize, is_cut: bool) -> Result<()> {
        let to = self.address_of(place).to_string();
        let mut command = inside(pid);
        command.args(["ip", "neigh"]);
        run(if is_cut {
            command.args(["replace", &to, "lladdr", NOBODY, "dev", "cable", "nud", "permanent"])
        } else {
            command.args(["del", &to, "dev", "cable"])
        })
    }
}

/// Waits until a process is in another namespace than this one.
fn until_moved(pid: u32) -> Result<()> {
    let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/net"));
    let own = namespace("self")?;
    let deadline = Instant::now() + MOVED_WITHIN;
    while namespace(&pid.to_string()).context("the process has ended at once")? == own {
        if Instant::now() > deadline {
            bail!("process {pid} does not get a network namespace");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn address(number: usize) -> IpAddr {
    Ipv4Addr::new(10, 77, (number / 250) as u8, (number % 250 + 1) as u8).into()
}

fn cable(place: usize) -> String {
    format!("cable-{place}")
}

/// A command that is to run in the namespace of a process.
fn inside(pid: u32) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--net", "--target", &pid.to_string(), "--"]);
    command
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(arguments))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} says: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
