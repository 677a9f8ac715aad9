//! One kernel ring: submission, reaping, and the memory that belongs to it.
//!
//! Submitting drains the completion queue into `pending` and notices failed sends on the way, because what they left over
//! must leave the turn's memory before that is used again. Nothing is submitted while draining, so there is no recursion;
//! connections that now wait for room are kept in `unarmed` until the next flush arms their polls.

use std::{
    collections::VecDeque,
    io,
    os::fd::RawFd,
    sync::atomic::{Ordering, fence},
    time::{Duration, Instant},
};

use io_uring::{
    IoUring, opcode,
    squeue::{Entry, Flags},
    types::{SubmitArgs, Timespec},
};

use super::{
    ConnId, Features, RingConfig, Stats,
    buffers::{GROUP, RecvBuffers},
    probe,
    slab::{Ops, Slab, State, Target},
    token::{Kind, Token},
    turn::Turn,
};

/// All three matter: without `MSG_WAITALL` a short send with a skipped completion would be lost without a trace, and
/// without `MSG_DONTWAIT` the send would wait in the kernel and keep reading memory of a later turn.
pub(super) const SEND_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;

/// Completions that end gathering early.
const GATHERED_MAX: usize = 256;

/// Submissions without progress before giving up.
const STUCK_MAX: u32 = 1000;

/// What all rings of a set share.
pub(super) struct Common {
    pub config: RingConfig,
    pub features: Features,
    pub stats: Stats,
    pub turn: Turn,
}

#[derive(Copy, Clone, Debug)]
pub(super) struct Completion {
    pub token: Token,
    pub result: i32,
    pub flags: u32,
}

pub(super) struct Ring {
    uring: IoUring,
    pub buffers: RecvBuffers,
    pub slab: Slab,
    /// Index of the ring's first slot among all rings.
    pub base: usize,
    /// Slots promised to one-shot accepts.
    pub reserved: usize,
    /// Counts rounds of submission, so a connection knows whether its latest send is still queued.
    pub batch: u64,
    pub pending: VecDeque<Completion>,
    pub starved: VecDeque<(u32, u64)>,
    unarmed: Vec<u32>,
    /// When the latest wait ended.
    woken: Instant,
}

/// Builds an operation on either kind of descriptor.
macro_rules! on_file {
    ($target:expr, $file:ident => $build:expr) => {
        match $target {
            $crate::io::ring::slab::Target::Fixed(slot) => {
                let $file = io_uring::types::Fixed(slot);
                $build
            }
            $crate::io::ring::slab::Target::Ordinary(fd) => {
                let $file = io_uring::types::Fd(fd);
                $build
            }
        }
    };
}
pub(super) use on_file;

impl Ring {
    pub fn new(base: usize, sockets: usize, common: &mut Common) -> io::Result<Self> {
        let uring = probe::make_ring(&mut common.features)?;
        if base == 0 {
            probe::probe_operations(&uring, &common.config, &mut common.features)?;
        }
        if common.features.direct_descriptors {
            uring.submitter().register_files_sparse(sockets as u32).map_err(|error| {
                io::Error::new(error.kind(), format!("registering a file table of {sockets}: {error}"))
            })?;
        }
        let buffers =
            RecvBuffers::register(&uring, common.config.recv_buffers, common.config.recv_buffer_bytes)?;
        common.features.recv_buffers = buffers.count();
        Ok(Self {
            uring,
            buffers,
            slab: Slab::new(sockets),
            base,
            reserved: 0,
            batch: 1,
            pending: VecDeque::new(),
            starved: VecDeque::new(),
            unarmed: Vec::new(),
            woken: Instant::now(),
        })
    }

    /// Slots not taken and not promised.
    pub fn room(&self) -> usize {
        self.slab.free_count().saturating_sub(self.reserved)
    }

    pub fn conn_id(&self, slot: u32, generation: u64) -> ConnId {
        ConnId::new(self.base + slot as usize, generation)
    }

    /// Queues an operation, submitting first when the queue is full.
    pub fn push(&mut self, entry: Entry, common: &mut Common) -> io::Result<()> {
        for _ in 0..2 {
            // SAFETY: entries point at the turn's memory, at a connection's remainder or dialing state, or at statics.
            // The first is cleared only when nothing is queued; the others are freed only with the connection's slot,
            // after the operation has completed.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            self.submit(common)?;
        }
        Err(io::Error::other("submission queue stays full"))
    }

    /// Queues the write of a turn.
    pub fn push_send(&mut self, slot: u32, common: &mut Common) -> io::Result<()> {
        let conn = self.slab.get(slot);
        let bytes = common.turn.bytes(conn.source);
        let flags = if common.features.skip_success { Flags::SKIP_SUCCESS } else { Flags::empty() };
        let token = Token::new(Kind::Send, slot, conn.generation);
        let entry = send_entry(conn.file.target(), bytes).flags(flags).user_data(token.encode());
        common.stats.sends += 1;
        self.push(entry, common)?;
        // A full queue was submitted on the way: only now is it known which round takes this send.
        self.slab.get(slot).batch = self.batch;
        Ok(())
    }

    /// Submits everything queued, and arms what short sends made necessary.
    pub fn flush(&mut self, common: &mut Common) -> io::Result<()> {
        loop {
            if !self.uring.submission().is_empty() {
                self.submit(common)?;
            }
            let Some(slot) = self.unarmed.pop() else { return Ok(()) };
            self.arm_writable(slot, common)?;
            while let Some(slot) = self.unarmed.pop() {
                self.arm_writable(slot, common)?;
            }
        }
    }

    /// Enters the kernel until it has taken every queued entry and holds no completion back.
    pub fn submit(&mut self, common: &mut Common) -> io::Result<()> {
        let mut stuck = 0;
        loop {
            common.stats.enters += 1;
            let result = self.uring.submit();
            let queued = self.drain(common);
            match result {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                    _ => {
                        return Err(io::Error::new(error.kind(), format!("submitting to the ring: {error}")));
                    }
                },
            }
            if queued == 0 {
                break;
            }
            stuck += 1;
            if stuck > STUCK_MAX {
                return Err(io::Error::other(format!("the kernel leaves {queued} submissions in the queue")));
            }
            if stuck > 1 {
                std::thread::yield_now();
            }
        }
        self.batch += 1;
        Ok(())
    }

    /// Runs completion work that waits for us, if there is any.
    pub fn reap(&mut self, common: &mut Common) -> io::Result<()> {
        let submission = self.uring.submission();
        let work = submission.taskrun() || submission.cq_overflow();
        drop(submission);
        if work {
            self.submit(common)
        } else {
            self.drain(common);
            Ok(())
        }
    }

    /// Moves completions to `pending`, noting failed sends at once. Returns how many submissions the kernel left.
    fn drain(&mut self, common: &mut Common) -> usize {
        loop {
            self.drain_queue(common);
            let submission = self.uring.submission();
            let (queued, overflow) = (submission.len(), submission.cq_overflow());
            drop(submission);
            if !overflow {
                return queued;
            }
            common.stats.cq_overflows += 1;
            common.stats.enters += 1;
            if self.uring.submit().is_err() {
                return queued.max(1);
            }
        }
    }

    fn drain_queue(&mut self, common: &mut Common) {
        let (slab, unarmed, pending) = (&mut self.slab, &mut self.unarmed, &mut self.pending);
        for entry in self.uring.completion() {
            let completion = Completion {
                token: Token::decode(entry.user_data()),
                result: entry.result(),
                flags: entry.flags(),
            };
            let token = completion.token;
            if token.kind != Kind::Send {
                pending.push_back(completion);
                continue;
            }
            let Some(conn) = slab.live(token.slot, token.generation) else {
                common.stats.stale_completions += 1;
                continue;
            };
            if conn.state != State::Open || conn.broken {
                continue;
            }
            assert_eq!(conn.batch, self.batch, "a send outlived its submission");
            let bytes = common.turn.bytes(conn.source).len();
            let sent = match completion.result {
                sent if sent >= 0 => sent as usize,
                errno if errno == -libc::EAGAIN || errno == -libc::ENOBUFS || errno == -libc::ENOMEM => 0,
                _ => {
                    conn.broken = true;
                    pending.push_back(completion);
                    continue;
                }
            };
            if sent == bytes {
                continue;
            }
            if sent == 0 {
                common.stats.send_eagain += 1;
            } else {
                common.stats.short_sends += 1;
            }
            conn.rest = Some(common.turn.rest(conn.source, sent));
            unarmed.push(token.slot);
        }
    }

    /// Waits for room to send the remainder of a connection.
    pub fn arm_writable(&mut self, slot: u32, common: &mut Common) -> io::Result<()> {
        let conn = self.slab.get(slot);
        if conn.rest.is_none()
            || conn.ops.has(Ops::POLL)
            || !matches!(conn.state, State::Open | State::Draining)
        {
            return Ok(());
        }
        conn.ops |= Ops::POLL;
        let token = Token::new(Kind::Poll, slot, conn.generation);
        let entry =
            on_file!(conn.file.target(), file => opcode::PollAdd::new(file, libc::POLLOUT as u32).build());
        self.push(entry.user_data(token.encode()), common)
    }

    /// Submits and blocks until a completion is there or the timeout is over. While completions keep coming they are
    /// gathered for a moment: each wake-up interrupts whoever sends them, and that costs more than a whole receive.
    pub fn wait(&mut self, timeout: Duration, common: &mut Common) -> io::Result<()> {
        let timespec = Timespec::from(timeout);
        let gather = common.config.gather.min(timeout);
        let busy = common.features.gathering && self.woken.elapsed() < gather;
        let arguments = SubmitArgs::new().timespec(&timespec);
        common.stats.enters += 1;
        let result = if busy {
            let arguments = arguments.min_wait_usec(gather.as_micros() as u32);
            self.uring.submitter().submit_with_args(GATHERED_MAX, &arguments)
        } else {
            self.uring.submitter().submit_with_args(1, &arguments)
        };
        if !gather.is_zero() {
            self.woken = Instant::now();
        }
        self.drain(common);
        match result {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY)) => {
                Err(io::Error::new(error.kind(), format!("waiting on the ring: {error}")))
            }
            _ => Ok(()),
        }
    }

    pub fn register_eventfd(&mut self, fd: RawFd) -> io::Result<()> {
        self.uring.submitter().register_eventfd(fd)?;
        self.uring.completion().disable_eventfd();
        Ok(())
    }

    pub fn silence_eventfd(&mut self) {
        self.uring.completion().disable_eventfd();
    }

    pub fn enable_eventfd(&mut self) {
        self.uring.completion().enable_eventfd();
        // The kernel sets its work flag, then looks whether signals are wanted; we go the other way round.
        fence(Ordering::SeqCst);
    }

    /// Something reaped or postponed is still to be handled.
    pub fn has_work(&self) -> bool {
        !(self.pending.is_empty() && self.starved.is_empty() && self.unarmed.is_empty())
    }

    /// Nothing to submit, to reap or to handle.
    pub fn is_idle(&mut self) -> bool {
        let submission = self.uring.submission();
        let quiet = submission.is_empty() && !submission.taskrun() && !submission.cq_overflow();
        drop(submission);
        quiet && !self.has_work() && self.uring.completion().is_empty()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel ends a dropped ring in the background; it must not find our buffers any more by then.
        if let Err(error) = self.uring.submitter().unregister_buf_ring(GROUP) {
            tracing::warn!(%error, "receive buffers stay registered, leaking them");
            self.buffers.leak();
        }
    }
}

/// A send that takes what fits now and never waits.
pub(super) fn send_entry(target: Target, bytes: &[u8]) -> Entry {
    on_file!(target, file => opcode::Send::new(file, bytes.as_ptr(), bytes.len() as u32).flags(SEND_FLAGS).build())
}
