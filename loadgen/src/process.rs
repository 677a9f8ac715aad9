//! Children of the load generator: started from its own binary, pinned, bound to their parent's life and to a time.

use std::{
    fs,
    io::{self, BufRead, BufReader},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A child process; it ends with this value.
pub struct Process {
    /// What it is, for messages.
    pub name: String,
    /// The cores it may run on.
    pub cores: Vec<usize>,
    child: Child,
}

impl Process {
    /// Starts our own binary with `arguments` on `cores`. With a `niceness` above 0 it stands back behind others there. The kernel
    /// ends the child when the calling thread ends, or after `limit`.
    pub fn start(
        name: &str,
        arguments: &[&str],
        cores: &[usize],
        niceness: i32,
        limit: Duration,
    ) -> Result<Self> {
        let binary = std::env::current_exe().context("cannot find the own binary")?;
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Self::launch(name, (&binary, &arguments), cores, niceness, limit)
    }

    /// The same with any program, which becomes the child in the end.
    pub fn launch(
        name: &str,
        (program, arguments): (&Path, &[String]),
        cores: &[usize],
        niceness: i32,
        limit: Duration,
    ) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let set = cpu_set(cores);
        let seconds = limit.as_secs().clamp(1, u64::from(u32::MAX)) as u32;
        let parent = std::process::id();
        // SAFETY: between fork and exec only calls that are safe there: no allocation, no lock.
        unsafe { command.pre_exec(move || prepare(parent, &set, seconds, niceness)) };
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.into(), cores: cores.to_vec(), child })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the first line of the child's output.
    pub fn first_line(&mut self) -> Result<String> {
        let output = self.child.stdout.take().context("the child's output has been taken already")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        if line.is_empty() {
            let status = self.child.wait()?;
            bail!("{} ended before it was ready: {status}", self.name);
        }
        Ok(line.trim_end().into())
    }

    /// An error if the child has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} ended early: {status}", self.name),
            None => Ok(()),
        }
    }

    /// Whether the child has ended. An error if it has not ended well.
    pub fn has_ended(&mut self) -> Result<bool> {
        match self.child.try_wait()? {
            Some(status) if status.success() => Ok(true),
            Some(status) => bail!("{} failed: {status}", self.name),
            None => Ok(false),
        }
    }

    /// Waits for the child to end well.
    pub fn finish(mut self, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("{} failed: {status}", self.name),
                None if Instant::now() >= deadline => bail!("{} did not end within {within:?}", self.name),
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Stops the child as SIGSTOP does, or lets it go on.
    pub fn pause(&self, stop: bool) -> Result<()> {
        let signal = if stop { Signal::STOP } else { Signal::CONT };
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("cannot send a signal to {}", self.name))
    }

    /// Asks the child to end, as SIGTERM does.
    pub fn terminate(&self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)
            .with_context(|| format!("cannot send a signal to {}", self.name))
    }

    /// Processor seconds used so far.
    pub fn cpu_seconds(&self) -> f64 {
        cpu_seconds(self.child.id())
    }

    /// Resident bytes now.
    pub fn rss_bytes(&self) -> u64 {
        rss_bytes(self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processor seconds of a process, user and system.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything, so fields are counted behind the last one.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    // SAFETY: the call takes a number and returns one.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1);
    (ticks(11) + ticks(12)) as f64 / per_second as f64
}

/// Resident bytes of a process.
pub fn rss_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Processor time of the host so far: all of it, and what the host of a virtual machine took.
pub fn stolen() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<u64> = fields.filter_map(|field| field.parse().ok()).take(8).collect();
    (ticks.iter().sum(), ticks.get(7).copied().unwrap_or(0))
}

/// The part of all processor time since `earlier` that was stolen.
pub fn stolen_since(earlier: (u64, u64)) -> f64 {
    let (all, taken) = stolen();
    taken.saturating_sub(earlier.1) as f64 / all.saturating_sub(earlier.0).max(1) as f64
}

/// The cores that this process may use.
pub fn cores() -> Vec<usize> {
    // SAFETY: zeroes are an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes at most the size of the set it is given.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } != 0 {
        return vec![0];
    }
    // SAFETY: the index is below the size of a set.
    (0..libc::CPU_SETSIZE as usize).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect()
}

fn cpu_set(cores: &[usize]) -> libc::cpu_set_t {
    // SAFETY: zeroes are an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &core in cores.iter().filter(|&&core| core < libc::CPU_SETSIZE as usize) {
        // SAFETY: the index is below the size of a set.
        unsafe { libc::CPU_SET(core, &mut set) };
    }
    set
}

fn prepare(parent: u32, set: &libc::cpu_set_t, seconds: u32, niceness: i32) -> io::Result<()> {
    // SAFETY: plain system calls on values of our own.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() as u32 != parent {
            return Err(io::ErrorKind::NotFound.into());
        }
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set);
        libc::alarm(seconds);
        // Lower priority is everybody's to take, so this cannot fail for lack of a right.
        libc::setpriority(libc::PRIO_PROCESS, 0, niceness);
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_process_uses_time_and_memory() {
        assert!(rss_bytes(std::process::id()) > 100_000);
        assert!(cpu_seconds(std::process::id()) >= 0.0 && cpu_seconds(0) == 0.0);
        assert!(!cores().is_empty());
    }
}
