//! What the machine gives at most: the same sockets, processes and cores as a run, the same bytes, and no registry at all.
//!
//! A sender takes the session's place and writes to every connection in turn; receivers take the workers' place and only
//! read.

pub mod ends;

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    board::{Board, Counter, Phase},
    clock::{Clock, Monotonic, SECOND},
    division::Division,
    limit::ends::{ReceiverConfig, SenderConfig},
    process::Process,
    progress::Progress,
};

/// Bare sends per second of one core, as first seen with 100,000 connections; what is far below is told.
pub const SENDS_SEEN: f64 = 222_000.0;
/// Part of [`SENDS_SEEN`] below which a run says so.
pub const SENDS_LEAST: f64 = 0.7;
/// Frames per write of the merged measurement.
pub const MERGED: u32 = 20;

const CONNECT_WITHIN: Duration = Duration::from_secs(120);
const POLL_EVERY: Duration = Duration::from_millis(50);
/// Sending goes on this long before the measurement begins.
const LEAD: Duration = Duration::from_millis(500);

/// What to measure.
#[derive(Clone, Debug)]
pub struct LimitSpec {
    /// Connections.
    pub connections: u32,
    /// Bytes of one frame.
    pub frame_bytes: usize,
    /// Frames in one write.
    pub frames_per_write: u32,
    /// How long.
    pub duration: Duration,
    /// Socket settings of the receivers, as in a run.
    pub recv_buffers: u16,
    /// Bytes of each.
    pub recv_buffer_bytes: u32,
    /// The sender's sockets, as the session's; the kernel's choice on links.
    pub sockets: SocketOptions,
}

/// What is set on the sockets of a sender; what is absent the kernel chooses.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct SocketOptions {
    /// `SO_SNDBUF` in bytes.
    pub send_buffer: Option<u32>,
    /// TCP congestion control, by the kernel's name for it.
    pub congestion_control: Option<String>,
    /// Each receiver reads from the sender on its core alone.
    pub on_own_core: bool,
}

/// What was measured. With several senders each serves its share of the connections.
#[derive(Clone, Copy, Default, PartialEq, Debug, Serialize, Deserialize)]
pub struct LimitResult {
    /// Frames in one write.
    pub frames_per_write: u32,
    /// Bytes of one frame.
    pub frame_bytes: usize,
    /// Writes per second.
    pub sends_per_s: f64,
    /// Frames per second at the receivers.
    pub pushes_per_s: f64,
    /// Processor time of the sender per write.
    pub send_ns: f64,
    /// Processor time of the receivers per write received.
    pub receive_ns: f64,
}

/// Counters of both ends at one moment.
#[derive(Clone, Copy)]
struct Reading {
    clock: u64,
    sends: u64,
    bytes: u64,
    sender_cpu: u64,
    receiver_cpu: u64,
}

impl Reading {
    fn take(board: &Board, senders: usize) -> Self {
        let sender_cpu = (0..senders).map(|row| board.counter(row, Counter::Cpu)).sum();
        Self {
            clock: Monotonic.now(),
            sends: board.total(Counter::Frames),
            bytes: board.total(Counter::Received),
            sender_cpu,
            receiver_cpu: board.total(Counter::Cpu) - sender_cpu,
        }
    }
}

/// Measures once. The first rows of the board are the senders', one per core of a session; the others are the receivers'.
pub fn measure(
    spec: &LimitSpec,
    division: &Division,
    folder: &Path,
    progress: &Progress,
) -> Result<LimitResult> {
    let folder = folder.join(format!("limit-{}", spec.frames_per_write));
    std::fs::create_dir(&folder)?;
    let path = folder.join("board");
    let senders_count = division.session.len();
    let board = Board::create(&path, senders_count + division.workers.len(), 0)?;
    let bound = CONNECT_WITHIN + spec.duration + Duration::from_secs(30);
    let mut senders = Vec::new();
    let mut targets = Vec::new();
    for row in 0..senders_count {
        let config = SenderConfig {
            row,
            connections: spec.connections,
            write_bytes: spec.frame_bytes * spec.frames_per_write as usize,
            sockets: spec.sockets.clone(),
            board: path.clone(),
        };
        let mut sender = start(
            "limit-sender",
            &config,
            &division.session[row..=row],
            division.session_niceness,
            &folder,
            bound,
        )?;
        let line = sender.first_line()?;
        targets.push(line.strip_prefix("ready ").context("the sender told no address")?.parse()?);
        senders.push(sender);
    }
    let mut receivers = Vec::new();
    for (index, (first, count)) in division.parts(spec.connections).into_iter().enumerate() {
        let config = ReceiverConfig {
            row: senders_count + index,
            first,
            total: spec.connections,
            connections: count,
            senders: senders_count,
            targets: targets_of(division, index, &targets, spec.sockets.on_own_core),
            recv_buffers: spec.recv_buffers,
            recv_buffer_bytes: spec.recv_buffer_bytes,
            board: path.clone(),
        };
        receivers.push(start(
            "limit-receiver",
            &config,
            &division.workers[index..=index],
            0,
            &folder,
            bound,
        )?);
    }
    progress.phase("limit", spec.duration.as_millis() as u64);
    connect(spec, &board, &mut senders, &mut receivers)?;
    board.set_phase(Phase::Run);
    std::thread::sleep(LEAD);
    let first = Reading::take(&board, senders_count);
    let mut last = first;
    while last.clock - first.clock < spec.duration.as_nanos() as u64 {
        std::thread::sleep(POLL_EVERY);
        senders.iter_mut().try_for_each(Process::check)?;
        last = Reading::take(&board, senders_count);
        progress.at((last.clock - first.clock) / 1_000_000, || {
            format!("{} frames per write", spec.frames_per_write)
        });
    }
    board.set_phase(Phase::Finish);
    for process in receivers.into_iter().chain(senders) {
        process.finish(Duration::from_secs(10))?;
    }
    Ok(result(spec, &first, &last))
}

/// The senders of receiver `index`: the one on its core, or all.
fn targets_of(division: &Division, index: usize, all: &[SocketAddr], on_own_core: bool) -> Vec<SocketAddr> {
    let own = division.session.iter().position(|core| *core == division.workers[index]);
    own.filter(|_| on_own_core).map_or_else(|| all.to_vec(), |row| vec![all[row]])
}

fn connect(
    spec: &LimitSpec,
    board: &Board,
    senders: &mut [Process],
    receivers: &mut [Process],
) -> Result<()> {
    let rows = senders.len();
    let open = || (0..rows).map(|row| board.counter(row, Counter::Connections)).sum::<u64>();
    board.set_phase(Phase::Connect);
    let deadline = Monotonic.now() + CONNECT_WITHIN.as_nanos() as u64;
    while open() < u64::from(spec.connections) {
        std::thread::sleep(POLL_EVERY);
        senders.iter_mut().try_for_each(Process::check)?;
        receivers.iter_mut().try_for_each(Process::check)?;
        if Monotonic.now() > deadline {
            bail!("only {} of {} connections after {CONNECT_WITHIN:?}", open(), spec.connections);
        }
    }
    Ok(())
}

fn result(spec: &LimitSpec, first: &Reading, last: &Reading) -> LimitResult {
    let seconds = (last.clock - first.clock) as f64 / SECOND as f64;
    let sends = (last.sends - first.sends) as f64;
    let frames = (last.bytes - first.bytes) as f64 / spec.frame_bytes as f64;
    let received = (frames / f64::from(spec.frames_per_write)).max(1.0);
    LimitResult {
        frames_per_write: spec.frames_per_write,
        frame_bytes: spec.frame_bytes,
        // What was sent and not received sits in a buffer; only the lesser of the two can go on for ever.
        sends_per_s: sends.min(received) / seconds,
        pushes_per_s: frames / seconds,
        send_ns: (last.sender_cpu - first.sender_cpu) as f64 / sends.max(1.0),
        receive_ns: (last.receiver_cpu - first.receiver_cpu) as f64 / received,
    }
}

fn start(
    role: &str,
    config: &impl Serialize,
    cores: &[usize],
    niceness: i32,
    folder: &Path,
    bound: Duration,
) -> Result<Process> {
    let path = tempfile::Builder::new().prefix(role).tempfile_in(folder)?.into_temp_path().keep()?;
    std::fs::write(&path, serde_json::to_vec(config)?)?;
    let path = path.to_str().context("the temporary folder's name is not UTF-8")?;
    Process::start(role, &[role, "--config", path], cores, niceness, bound)
}
