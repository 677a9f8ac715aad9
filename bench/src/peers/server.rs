//! A server as a child process: pinned, bound to its parent's life, its time and memory told by the kernel.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit},
    thread::{CpuSet, sched_setaffinity},
};
use tempfile::TempDir;

use super::speech::Speech;

/// Where Debian puts servers, whatever the search path is.
const FOLDERS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];
const READY_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A server that is not installed.
#[derive(Debug, thiserror::Error)]
#[error("{binary} not found: install the Debian package {package}")]
pub struct Absent {
    binary: &'static str,
    package: &'static str,
}

/// A running server; it ends with this value.
pub struct Server {
    /// Where it listens.
    pub addr: SocketAddr,
    /// When the measurements have to be over.
    pub deadline: Instant,
    child: Child,
    output: PathBuf,
    _folder: TempDir,
}

impl Server {
    /// Starts a server on a free port and waits until it accepts. The kernel ends it when the calling thread ends, and
    /// when it has used more processor time than `bound`.
    pub fn start<S: Speech>(subscribers: u32, core: usize, bound: Duration) -> Result<Self> {
        let own = std::env::current_exe().context("cannot find the own binary")?;
        let binary = match S::BINARY {
            Some((binary, package)) => find(binary).ok_or(Absent { binary, package })?,
            None => own.clone(),
        };
        let folder = tempfile::Builder::new().prefix("bench-peers-").tempdir()?;
        let output = folder.path().join("output");
        let path = folder.path().to_str().context("the temporary folder's name is not UTF-8")?;
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = File::create(&output)?;
        // Our own binary takes the place of the server after it has bound itself.
        let child = Command::new(own)
            .args(["hold", "--core", &core.to_string(), "--seconds", &bound.as_secs().to_string(), "--"])
            .arg(binary)
            .args(S::arguments(addr.port(), subscribers, path))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut server = Self { addr, deadline: Instant::now() + bound, child, output, _folder: folder };
        let begin = Instant::now();
        while TcpStream::connect(addr).is_err() {
            server.check()?;
            if begin.elapsed() > READY_WITHIN {
                bail!("nothing accepts on {addr} after {READY_WITHIN:?}: {}", server.said());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(server)
    }

    /// An error if the server has ended, or has taken longer than it may.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the server ended early: {status}: {}", self.said());
        }
        if Instant::now() > self.deadline {
            bail!("the measurements of this server take too long: {}", self.said());
        }
        Ok(())
    }

    /// Processor seconds used so far.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // The name in parentheses may hold anything, so fields are counted behind the last one.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        (ticks(11) + ticks(12)) as f64 / rustix::param::clock_ticks_per_second() as f64
    }

    /// Resident bytes now.
    pub fn rss_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
    }

    /// The end of what it wrote.
    fn said(&self) -> String {
        let text = fs::read_to_string(&self.output).unwrap_or_default();
        let lines: Vec<&str> = text.trim_end().lines().collect();
        lines[lines.len().saturating_sub(3)..].join(" | ")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn find(binary: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FOLDERS.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(binary)).find(|file| file.is_file())
}

/// Keeps the calling thread, and what it starts, on one core.
pub fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("cannot stay on core {core}"))
}

/// Raises the number of files that may be open as far as it goes.
pub fn raise_file_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?)
}

/// Becomes another program: on one core, with all the files it may have, ended with the process that started this one and
/// after `seconds` of processor time.
pub fn hold(core: usize, seconds: u64, command: &[String]) -> Result<()> {
    let parent = rustix::process::getppid();
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() != parent {
        bail!("the process that started this one has ended");
    }
    pin(core)?;
    raise_file_limit()?;
    setrlimit(Resource::Cpu, Rlimit { current: Some(seconds), maximum: Some(seconds) })?;
    let (program, arguments) = command.split_first().context("no program to run")?;
    let error = Command::new(Path::new(program)).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {program}"))
}
