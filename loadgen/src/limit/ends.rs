//! The two ends of the bare measurement.

use std::{io::Write, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use slotcast_net::io::ring::{ConnId, Event, RingConfig, RingSockets, SendOutcome, SharedFrame, Sockets};

use crate::{
    address,
    board::{Board, Counter, Phase},
    limit::SocketOptions,
    worker::ring_config,
};

/// Connections that may fail and be made anew: under a storm of connects one in many thousands does.
const LOST_MAX: u32 = 100;
/// Writes between two looks at the completions, as many as a session does in a turn.
const WRITES_PER_TURN: usize = 1024;
const WAIT: Duration = Duration::from_millis(10);
/// Connections asked for and not yet there.
const CONNECTING_MAX: u32 = 512;

/// What the sender is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SenderConfig {
    /// Its row on the board.
    pub row: usize,
    /// Connections at most.
    pub connections: u32,
    /// Bytes of one write.
    pub write_bytes: usize,
    /// What is set on its sockets.
    pub sockets: SocketOptions,
    /// The board.
    pub board: PathBuf,
}

/// What a receiver is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReceiverConfig {
    /// Its row on the board.
    pub row: usize,
    /// Number of its first connection among all.
    pub first: u32,
    /// Its connections.
    pub connections: u32,
    /// Connections of all receivers.
    pub total: u32,
    /// The senders that it reads from, taken in turn.
    pub targets: Vec<SocketAddr>,
    /// All senders. The first rows of the board are theirs.
    pub senders: usize,
    /// As a worker's.
    pub recv_buffers: u16,
    /// As a worker's.
    pub recv_buffer_bytes: u32,
    /// The board.
    pub board: PathBuf,
}

/// Accepts connections, then writes to each in turn until told to end.
pub fn send(config: &SenderConfig) -> Result<()> {
    let board = Board::open(&config.board).context("cannot open the board")?;
    let ring = RingConfig {
        sockets_max: config.connections as usize + 16,
        send_buffer_bytes: config.sockets.send_buffer,
        congestion_control: config.sockets.congestion_control.clone(),
        ..RingConfig::default()
    };
    let mut sockets = RingSockets::new(ring)?;
    let addr = sockets.listen(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    println!("ready {addr}");
    std::io::stdout().flush()?;
    let frame: SharedFrame = vec![0x5a; config.write_bytes].into();
    let mut connections: Vec<ConnId> = Vec::new();
    let (mut next, mut sends) = (0, 0u64);
    while board.phase() < Phase::Finish {
        let events = sockets.poll(&mut |event| {
            if let Event::Accepted { conn, .. } = event {
                connections.push(conn);
            }
        })?;
        board.set_counter(config.row, Counter::Connections, connections.len() as u64);
        let mut sent = 0;
        if board.phase() >= Phase::Run {
            for _ in 0..WRITES_PER_TURN.min(connections.len()) {
                sent += u64::from(sockets.send_shared(connections[next], &frame) == SendOutcome::Queued);
                next = (next + 1) % connections.len();
            }
            sockets.flush()?;
        }
        sends += sent;
        board.set_counter(config.row, Counter::Frames, sends);
        board.set_counter(config.row, Counter::Cpu, thread_cpu());
        if sent == 0 && events == 0 {
            sockets.wait(WAIT)?;
        }
    }
    Ok(())
}

/// Connects and reads until told to end.
pub fn receive(config: &ReceiverConfig) -> Result<()> {
    let board = Board::open(&config.board).context("cannot open the board")?;
    let mut sockets = RingSockets::new(RingConfig {
        recv_buffer_bytes: config.recv_buffer_bytes,
        ..ring_config(config.connections, config.recv_buffers)
    })?;
    let (mut asked, mut open, mut bytes) = (0u32, 0u32, 0u64);
    let (mut lost, mut why) = (0u32, None);
    while board.phase() < Phase::Finish {
        let events = sockets.poll(&mut |event| match event {
            Event::Received { bytes: received, .. } => bytes += received.len() as u64,
            Event::Connected { .. } => open += 1,
            Event::Closed { reason, .. } => (lost, why) = (lost + 1, Some(reason)),
            Event::Accepted { .. } | Event::Writable { .. } => {}
        })?;
        if let Some(why) = why
            && lost > LOST_MAX
            && board.phase() < Phase::Run
        {
            bail!("{lost} connections failed, the last with {why:?}");
        }
        // A connection is open here before it is accepted there: whoever asks faster than is accepted fills the backlog, and
        // what the kernel then drops comes back late or never.
        let accepted = (0..config.senders).map(|row| board.counter(row, Counter::Connections)).sum::<u64>();
        let accepted_here =
            (accepted * u64::from(config.connections) / u64::from(config.total.max(1))) as u32;
        let live = |asked: u32| asked - lost;
        while (Phase::Connect..Phase::Run).contains(&board.phase())
            && live(asked) < config.connections
            && live(asked).saturating_sub(open.min(accepted_here)) < CONNECTING_MAX
        {
            let client = config.first + asked;
            let target = config.targets[client as usize % config.targets.len()];
            sockets.connect(target, Some(address::source(client)))?;
            asked += 1;
        }
        board.set_counter(config.row, Counter::Received, bytes);
        board.set_counter(config.row, Counter::Cpu, thread_cpu());
        if events == 0 {
            sockets.wait(WAIT)?;
        } else {
            sockets.flush()?;
        }
    }
    Ok(())
}

/// Processor nanoseconds of this thread.
fn thread_cpu() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec through a pointer to one.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
