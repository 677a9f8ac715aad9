//! TCP sockets driven by io_uring, made for one thread that pushes small frames to very many connections.
//!
//! [`RingSockets`] owns one or more kernel rings. It never blocks except in [`Sockets::wait`], owns every buffer the
//! kernel may touch, and reports what happened through [`Event`]s handed to a callback. The order of calls is:
//!
//! 1. [`Sockets::poll`] reaps completions and hands out events; the callback only notes what to do,
//! 2. the caller acts: [`Sockets::send`], [`Sockets::send_shared`], [`Sockets::close`], [`Sockets::connect`],
//! 3. [`Sockets::flush`] gives everything queued to the kernel in as few calls as possible,
//! 4. [`Sockets::wait`], or an outer executor sleeping on [`RingSockets::event_fd`], until there is more.
//!
//! Invariants:
//! - At most one write of a connection is in the kernel or unsent. A send that falls short leaves a remainder, and until
//!   that is out (`Event::Writable`) every further send of the connection answers [`SendOutcome::Busy`].
//! - When `flush` returns, every send it submitted has been executed and every failed one has been noticed, so the bytes
//!   of the next send can never overtake a remainder.
//! - A slot is given to another connection only after all operations of the former one have completed, and handles carry
//!   a generation, so a late completion or a kept handle never reaches the wrong connection.
//! - Each connection gets exactly one `Event::Closed`, and no event after it.

mod accept;
mod buffers;
mod kernel;
mod listener;
pub(crate) mod locked;
mod memory;
mod operations;
mod probe;
mod slab;
mod sockets;
mod token;
mod turn;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

pub use listener::{accept_from_cpu, listen_group};
pub use probe::Features;
pub use sockets::{RingSockets, Waker};

/// Longest frame one send may carry.
pub const FRAME_BYTES_MAX: usize = 1 << 30;

/// Bytes shared by many connections and sent without a copy.
pub type SharedFrame = Rc<[u8]>;

/// Handle of one connection: a dense index and a generation. It is never reused for another connection.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct ConnId(u64);

impl ConnId {
    const INDEX_BITS: u32 = 24;

    /// Makes a handle, as whoever implements [`Sockets`] does: `generation` tells users of one index apart.
    #[must_use]
    pub const fn from_parts(index: usize, generation: u64) -> Self {
        Self::new(index, generation)
    }

    const fn new(index: usize, generation: u64) -> Self {
        Self(generation << Self::INDEX_BITS | index as u64)
    }

    /// Position below `sockets_max`, unique among the connections not yet reported closed.
    #[must_use]
    pub const fn index(self) -> usize {
        (self.0 & ((1 << Self::INDEX_BITS) - 1)) as usize
    }

    const fn generation(self) -> u64 {
        self.0 >> Self::INDEX_BITS
    }
}

/// Sizes and choices of a [`RingSockets`].
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// Submission entries per kernel ring, a power of two.
    pub sq_entries: u32,
    /// Completion entries per kernel ring, a power of two. More completions than this are kept by the kernel, slowly.
    pub cq_entries: u32,
    /// Connections in all. Several kernel rings are made when it is beyond what one file table may hold.
    pub sockets_max: usize,
    /// Upper bound of connections per kernel ring; `None` takes the file limit of the process.
    pub sockets_per_ring: Option<usize>,
    /// Receive buffers per kernel ring, a power of two up to 32768.
    pub recv_buffers: u16,
    /// Size of one receive buffer, and so the most bytes of one [`Event::Received`].
    pub recv_buffer_bytes: u32,
    /// Bytes that sends may copy between two flushes; when it is full a send flushes by itself.
    pub staging_bytes: usize,
    /// `SO_SNDBUF` of listeners and connecting sockets (the kernel doubles it).
    pub send_buffer_bytes: Option<u32>,
    /// `SO_RCVBUF` of listeners and connecting sockets (the kernel doubles it).
    pub recv_socket_buffer_bytes: Option<u32>,
    /// TCP congestion control of listeners and connecting sockets, by the kernel's name for it; `None` leaves the system's.
    pub congestion_control: Option<String>,
    /// Length of the accept queue asked of the kernel.
    pub listen_backlog: u32,
    /// Completions handled by one [`Sockets::poll`].
    pub completions_per_poll: usize,
    /// How long a wait that closely follows another gathers completions before it returns. Zero: every completion ends it.
    pub gather: Duration,
    /// Sockets live in the rings' file tables and use no descriptor of the process.
    pub direct_descriptors: bool,
    /// Use multishot accept where it cannot overrun the table. Off: one-shot accepts only.
    pub multishot_accept: bool,
    /// Use multishot receive. Off: one receive at a time.
    pub multishot_recv: bool,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self {
            sq_entries: 1024,
            cq_entries: 16384,
            sockets_max: 16384,
            sockets_per_ring: None,
            recv_buffers: 1024,
            recv_buffer_bytes: 4096,
            staging_bytes: 4 << 20,
            send_buffer_bytes: None,
            recv_socket_buffer_bytes: None,
            congestion_control: None,
            listen_backlog: 4096,
            completions_per_poll: 1024,
            gather: Duration::ZERO,
            direct_descriptors: true,
            multishot_accept: true,
            multishot_recv: true,
        }
    }
}

/// What happened on the sockets.
#[derive(Debug)]
#[expect(missing_docs, reason = "the variants say what the fields are")]
pub enum Event<'a> {
    /// A listener got a connection; `listener` counts the listeners in the order they were added.
    Accepted { conn: ConnId, listener: usize },
    /// A connection asked for by [`Sockets::connect`] is established.
    Connected { conn: ConnId },
    /// Bytes arrived; they are valid during the callback only.
    Received { conn: ConnId, bytes: &'a [u8] },
    /// The unsent remainder of an earlier write is out: sends are taken again.
    Writable { conn: ConnId },
    /// The connection is gone and its handle is dead. The last event of a connection.
    Closed { conn: ConnId, reason: CloseReason },
}

impl Event<'_> {
    /// The connection that it is about.
    #[must_use]
    pub fn conn(&self) -> ConnId {
        match self {
            Event::Accepted { conn, .. }
            | Event::Connected { conn }
            | Event::Received { conn, .. }
            | Event::Writable { conn }
            | Event::Closed { conn, .. } => *conn,
        }
    }
}

/// Why a connection ended; the first cause wins.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum CloseReason {
    /// The peer ended its stream. What was still unsent is dropped.
    Eof,
    /// The peer reset the connection.
    Reset,
    /// [`Sockets::close`] was called.
    Local,
    /// Another system error, by number; for a connect that failed its cause.
    Error(i32),
}

impl CloseReason {
    fn from_errno(errno: i32) -> Self {
        match errno {
            libc::ECONNRESET | libc::EPIPE => Self::Reset,
            other => Self::Error(other),
        }
    }
}

/// What became of a send.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub enum SendOutcome {
    /// All bytes were taken.
    Queued,
    /// Nothing was taken: an earlier write has an unsent remainder (wait for [`Event::Writable`]), or the connection is
    /// not established yet (wait for [`Event::Connected`]).
    Busy,
    /// Nothing was taken: the connection is closed or closing.
    Gone,
}

/// Counters since the start.
#[derive(Copy, Clone, Default, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// Writes given to the kernel, remainders included.
    pub sends: u64,
    /// Bytes taken by sends.
    pub send_bytes: u64,
    /// Calls of `send` that were joined to the write before them.
    pub sends_joined: u64,
    /// Writes the kernel took only in part.
    pub short_sends: u64,
    /// Writes the kernel took nothing of.
    pub send_eagain: u64,
    /// Sends refused with [`SendOutcome::Busy`].
    pub send_busy: u64,
    /// Receives that brought bytes.
    pub recvs: u64,
    /// Bytes received.
    pub recv_bytes: u64,
    /// Receives that stopped because no receive buffer was left.
    pub buffer_starved: u64,
    /// System calls that entered a ring.
    pub enters: u64,
    /// Times the kernel had to keep completions back because the queue was full.
    pub cq_overflows: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections established by `connect`.
    pub connected: u64,
    /// Connections reported closed.
    pub closed: u64,
    /// Times accepting stopped because every slot was taken.
    pub accept_refused_full: u64,
    /// Connections dropped by a full table after the kernel had accepted them.
    pub accept_dropped: u64,
    /// Other failures of accept.
    pub accept_errors: u64,
    /// Completions of a connection that was gone already.
    pub stale_completions: u64,
    /// Resets that had to be ordinary closes because the kernel lacks the option on direct descriptors.
    pub reset_fallbacks: u64,
}

/// Sockets as the layers above see them.
pub trait Sockets {
    /// Listens on `addr` alone (a second listener there fails with `AddrInUse`) and returns the bound address.
    fn listen(&mut self, addr: SocketAddr) -> io::Result<SocketAddr>;

    /// Starts connecting. [`Event::Connected`] or [`Event::Closed`] follows. Each connect holds a descriptor of the
    /// process until a flush and a poll have moved it into the file table, so long bursts need those in between.
    fn connect(&mut self, target: SocketAddr, source: Option<IpAddr>) -> io::Result<ConnId>;

    /// Queues one write of all `parts`, copied together. Several sends of one connection in a turn keep their order:
    /// neighbours are joined to one write; otherwise the earlier one is submitted first and the later one taken only
    /// if that went out whole.
    fn send(&mut self, conn: ConnId, parts: &[&[u8]]) -> SendOutcome;

    /// Queues one write of `frame` without copying it.
    fn send_shared(&mut self, conn: ConnId, frame: &SharedFrame) -> SendOutcome;

    /// Submits everything queued.
    fn flush(&mut self) -> io::Result<()>;

    /// The same in the middle of a turn, so that what was queued first need not wait for the rest. An error is returned by the next
    /// flush. Sockets that submit at once have nothing to do.
    fn nudge(&mut self) {}

    /// Ends the connection after what was queued for it; `Event::Closed` with [`CloseReason::Local`] follows. With
    /// `reset` the peer gets a reset, and an unsent remainder is dropped. A close without `reset` waits for a remainder
    /// to go out; calling again with `reset` cuts that short.
    fn close(&mut self, conn: ConnId, reset: bool);

    /// Handles what has completed, at most `completions_per_poll`, without blocking. Returns how many completions were
    /// handled; zero means nothing is there now. May queue work, which goes out with the next flush.
    fn poll(&mut self, on_event: &mut dyn FnMut(Event<'_>)) -> io::Result<usize>;

    /// Flushes, then blocks until a completion is there or the timeout is over.
    fn wait(&mut self, timeout: Duration) -> io::Result<()>;
}
