//! The set of rings: finds the ring of a connection, joins sends, spreads new connections over the tables.

use std::{
    fs::File as StdFile,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    CloseReason, ConnId, Event, FRAME_BYTES_MAX, Features, RingConfig, SendOutcome, SharedFrame, Sockets,
    Stats,
    accept::Listener,
    kernel::{Common, Ring},
    listener, locked, probe,
    slab::State,
    token::{Kind, SLOT_BITS},
    turn::{Source, Turn},
};

/// Sockets on one or more io_uring rings of this thread. See the module for the order of calls.
pub struct RingSockets {
    pub(super) rings: Vec<Ring>,
    sockets_per_ring: usize,
    pub(super) common: Common,
    /// The latest staged send, not queued yet so that the next of the same connection can join it.
    open_send: Option<ConnId>,
    pub(super) listeners: Vec<Listener>,
    /// A slot was freed or an accept ended since accepts were last armed.
    pub(super) accepts_due: bool,
    pub(super) full: bool,
    first_ring: usize,
    event_fd: Option<Arc<StdFile>>,
    event_fd_enabled: bool,
    /// When the latest wait ended.
    woken: Instant,
    /// An error met where none can be returned; the next flush or poll returns it.
    deferred: Option<io::Error>,
}

impl RingSockets {
    /// Makes the rings. They belong to the calling thread: every other call must come from it.
    pub fn new(mut config: RingConfig) -> io::Result<Self> {
        let limit = if config.direct_descriptors { probe::table_limit() } else { usize::MAX };
        let per_ring = config.sockets_per_ring.unwrap_or(usize::MAX).min(limit).min(1 << SLOT_BITS);
        let sockets_max = config.sockets_max;
        if sockets_max == 0 || per_ring == 0 || sockets_max > 1 << ConnId::INDEX_BITS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("cannot hold {sockets_max} sockets"),
            ));
        }
        if !config.recv_buffers.is_power_of_two() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "recv_buffers must be a power of two"));
        }
        locked::fit_locked(&mut config);
        let count = sockets_max.div_ceil(per_ring);
        let sockets_per_ring = sockets_max.div_ceil(count);
        let features = Features {
            rings: count,
            sockets_per_ring,
            sq_entries: config.sq_entries,
            cq_entries: config.cq_entries,
            ..Features::default()
        };
        let turn = Turn::new(config.staging_bytes)?;
        let mut common = Common { config, features, stats: Stats::default(), turn };
        let mut rings = Vec::with_capacity(count);
        for base in (0..sockets_max).step_by(sockets_per_ring) {
            rings.push(Ring::new(base, sockets_per_ring.min(sockets_max - base), &mut common)?);
        }
        tracing::info!(features = %common.features, "sockets ready");
        Ok(Self {
            rings,
            sockets_per_ring,
            common,
            open_send: None,
            listeners: Vec::new(),
            accepts_due: false,
            full: false,
            first_ring: 0,
            event_fd: None,
            event_fd_enabled: false,
            woken: Instant::now(),
            deferred: None,
        })
    }

    /// What the kernel offers and which fallbacks are in use.
    #[must_use]
    pub fn features(&self) -> &Features {
        &self.common.features
    }

    #[must_use]
    /// Counters since the start.
    pub fn stats(&self) -> Stats {
        self.common.stats
    }

    /// Changes [`RingConfig::gather`] from the next wait on.
    pub fn set_gather(&mut self, gather: Duration) {
        self.common.config.gather = gather;
    }

    /// Adds a listening socket made elsewhere, one of [`super::listen_group`] for example.
    pub fn listen_on(&mut self, socket: TcpListener) -> io::Result<SocketAddr> {
        let bound = socket.local_addr()?;
        self.listeners.push(Listener::new(socket));
        self.arm_accepts()?;
        Ok(bound)
    }

    /// The eventfd that all rings signal, for an outer executor to read 8 bytes from. It signals only after
    /// [`Self::prepare_sleep`] has answered true, and on [`Waker::wake`].
    pub fn event_fd(&mut self) -> io::Result<BorrowedFd<'_>> {
        self.register_event_fd()?;
        match &self.event_fd {
            Some(file) => Ok(file.as_fd()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Ends a sleep from another thread or task.
    pub fn waker(&mut self) -> io::Result<Waker> {
        self.register_event_fd()?;
        match &self.event_fd {
            Some(file) => Ok(Waker { event_fd: file.clone() }),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Turns the signals of the event fd on and says whether it is right to sleep: false when something can be polled
    /// or flushed already. The next poll turns them off again.
    pub fn prepare_sleep(&mut self) -> io::Result<bool> {
        self.register_event_fd()?;
        if self.open_send.is_some() || self.deferred.is_some() {
            return Ok(false);
        }
        for ring in &mut self.rings {
            ring.enable_eventfd();
        }
        self.event_fd_enabled = true;
        Ok(self.rings.iter_mut().all(Ring::is_idle))
    }

    fn register_event_fd(&mut self) -> io::Result<()> {
        if self.event_fd.is_some() {
            return Ok(());
        }
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was made just now and nobody else owns it.
        let file = StdFile::from(unsafe { OwnedFd::from_raw_fd(fd) });
        for ring in &mut self.rings {
            ring.register_eventfd(file.as_raw_fd())?;
        }
        self.event_fd = Some(Arc::new(file));
        Ok(())
    }

    /// Ring and slot of a connection, if it is open to the caller, and its state.
    fn locate(&mut self, conn: ConnId) -> Option<(usize, u32, State)> {
        let (ring, slot) =
            (conn.index() / self.sockets_per_ring, (conn.index() % self.sockets_per_ring) as u32);
        let entry = self.rings.get_mut(ring)?.slab.live(slot, conn.generation())?;
        Some((ring, slot, if entry.broken { State::Closing } else { entry.state }))
    }

    /// Queues the open send.
    fn seal(&mut self) -> io::Result<()> {
        let Some(conn) = self.open_send.take() else { return Ok(()) };
        let Some((ring, slot, State::Open)) = self.locate(conn) else { return Ok(()) };
        self.rings[ring].push_send(slot, &mut self.common)
    }

    fn try_send(&mut self, conn: ConnId, bytes: usize, payload: Payload<'_>) -> io::Result<SendOutcome> {
        assert!(bytes <= FRAME_BYTES_MAX, "frame of {bytes} bytes");
        if let (Some(open), Payload::Parts(parts)) = (self.open_send, &payload)
            && open == conn
            && self.common.turn.has_room(bytes)
            && let Some((ring, slot, State::Open)) = self.locate(conn)
        {
            let entry = self.rings[ring].slab.get(slot);
            if let (Source::Staged { offset, len }, Source::Staged { len: more, .. }) =
                (entry.source, self.common.turn.stage(parts))
            {
                entry.source = Source::Staged { offset, len: len + more };
            }
            self.common.stats.sends_joined += 1;
            self.common.stats.send_bytes += bytes as u64;
            return Ok(SendOutcome::Queued);
        }
        self.seal()?;
        if !self.common.turn.has_room(if matches!(payload, Payload::Parts(_)) { bytes } else { 0 }) {
            self.flush_now()?;
        }
        let Some((ring, slot, _)) = self.locate(conn) else { return Ok(SendOutcome::Gone) };
        let ring = &mut self.rings[ring];
        if ring.slab.get(slot).batch == ring.batch {
            ring.submit(&mut self.common)?;
        }
        let entry = ring.slab.get(slot);
        match entry.state {
            State::Open if !entry.broken => {}
            State::Installing | State::Connecting => return Ok(self.busy()),
            _ => return Ok(SendOutcome::Gone),
        }
        if entry.rest.is_some() {
            return Ok(self.busy());
        }
        if bytes == 0 {
            return Ok(SendOutcome::Queued);
        }
        entry.batch = ring.batch;
        self.common.stats.send_bytes += bytes as u64;
        match payload {
            Payload::Parts(parts) => {
                entry.source = self.common.turn.stage(parts);
                self.open_send = Some(conn);
            }
            Payload::Frame(frame) => {
                entry.source = self.common.turn.keep(frame);
                ring.push_send(slot, &mut self.common)?;
            }
        }
        Ok(SendOutcome::Queued)
    }

    fn busy(&mut self) -> SendOutcome {
        self.common.stats.send_busy += 1;
        SendOutcome::Busy
    }

    fn flush_now(&mut self) -> io::Result<()> {
        self.seal()?;
        for ring in &mut self.rings {
            ring.flush(&mut self.common)?;
        }
        self.common.turn.clear();
        Ok(())
    }

    fn try_close(&mut self, conn: ConnId, reset: bool) -> io::Result<()> {
        self.seal()?;
        let Some((ring, slot, _)) = self.locate(conn) else { return Ok(()) };
        let ring = &mut self.rings[ring];
        if !reset && ring.slab.get(slot).batch == ring.batch {
            ring.submit(&mut self.common)?;
        }
        let entry = ring.slab.get(slot);
        if entry.state == State::Closing || (entry.state == State::Draining && !reset) {
            return Ok(());
        }
        entry.reason.get_or_insert(CloseReason::Local);
        if !reset && entry.rest.is_some() && !entry.broken {
            entry.state = State::Draining;
            return Ok(());
        }
        ring.tear_down(slot, CloseReason::Local, reset, &mut self.common)
    }

    fn defer(&mut self, error: io::Error) {
        tracing::error!(%error, "ring");
        self.deferred.get_or_insert(error);
    }

    fn take_deferred(&mut self) -> io::Result<()> {
        self.deferred.take().map_or(Ok(()), Err)
    }

    pub(super) fn roomiest(&self) -> (usize, usize) {
        let rooms = self.rings.iter().map(Ring::room).enumerate();
        rooms.max_by_key(|&(ring, room)| (room, usize::MAX - ring)).unwrap_or((0, 0))
    }

    fn poll_ring(
        &mut self,
        ring: usize,
        budget: usize,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> io::Result<usize> {
        self.rings[ring].reap(&mut self.common)?;
        let mut handled = 0;
        let closed = self.common.stats.closed;
        while handled < budget {
            let Some(completion) = self.rings[ring].pending.pop_front() else { break };
            handled += 1;
            match completion.token.kind {
                Kind::AcceptMulti | Kind::AcceptSingle => self.accepted(ring, completion, on_event)?,
                _ => self.rings[ring].complete(completion, &mut self.common, on_event)?,
            }
        }
        self.rings[ring].feed_starved(&mut self.common)?;
        if self.common.stats.closed != closed {
            self.accepts_due = true;
            self.listeners.iter_mut().for_each(Listener::unblock);
        }
        Ok(handled)
    }

    fn wait_many(&mut self, timeout: Duration) -> io::Result<()> {
        // As in the wait of a single ring.
        let gather = self.common.config.gather.min(timeout);
        let busy = self.woken.elapsed() < gather;
        if busy {
            std::thread::sleep(gather);
        } else {
            self.sleep(timeout)?;
        }
        if !gather.is_zero() {
            self.woken = Instant::now();
        }
        Ok(())
    }

    fn sleep(&mut self, timeout: Duration) -> io::Result<()> {
        if !self.prepare_sleep()? {
            return Ok(());
        }
        let Some(event_fd) = self.event_fd.clone() else { return Ok(()) };
        let mut interest = libc::pollfd { fd: event_fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout = libc::timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // SAFETY: one entry, which outlives the call, as does the timeout; no signal mask.
        let ready = unsafe { libc::ppoll(&mut interest, 1, &timeout, std::ptr::null()) };
        if ready > 0 {
            (&*event_fd).read_exact(&mut [0; 8])?;
        }
        Ok(())
    }
}

enum Payload<'a> {
    Parts(&'a [&'a [u8]]),
    Frame(&'a SharedFrame),
}

impl Sockets for RingSockets {
    fn listen(&mut self, addr: SocketAddr) -> io::Result<SocketAddr> {
        let socket = listener::listen(addr, &self.common.config)?;
        self.listen_on(socket)
    }

    fn connect(&mut self, target: SocketAddr, source: Option<IpAddr>) -> io::Result<ConnId> {
        let (ring, room) = self.roomiest();
        if room == 0 {
            return Err(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                "every socket slot is taken or promised to a listener",
            ));
        }
        self.accepts_due = true;
        let socket = listener::dial(target, source, &self.common.config)?;
        self.rings[ring].dial(socket.into(), target.into(), &mut self.common)
    }

    fn send(&mut self, conn: ConnId, parts: &[&[u8]]) -> SendOutcome {
        let bytes = parts.iter().map(|part| part.len()).sum();
        let sent = if bytes > self.common.turn.capacity() {
            let frame = SharedFrame::from(parts.concat());
            self.try_send(conn, bytes, Payload::Frame(&frame))
        } else {
            self.try_send(conn, bytes, Payload::Parts(parts))
        };
        sent.unwrap_or_else(|error| {
            self.defer(error);
            SendOutcome::Gone
        })
    }

    fn send_shared(&mut self, conn: ConnId, frame: &SharedFrame) -> SendOutcome {
        self.try_send(conn, frame.len(), Payload::Frame(frame)).unwrap_or_else(|error| {
            self.defer(error);
            SendOutcome::Gone
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.take_deferred()?;
        self.flush_now()
    }

    fn nudge(&mut self) {
        if let Err(error) = self.flush_now() {
            self.defer(error);
        }
    }

    fn close(&mut self, conn: ConnId, reset: bool) {
        if let Err(error) = self.try_close(conn, reset) {
            self.defer(error);
        }
    }

    fn poll(&mut self, on_event: &mut dyn FnMut(Event<'_>)) -> io::Result<usize> {
        self.take_deferred()?;
        if self.event_fd_enabled {
            self.event_fd_enabled = false;
            self.rings.iter_mut().for_each(Ring::silence_eventfd);
        }
        self.seal()?;
        let (count, budget) = (self.rings.len(), self.common.config.completions_per_poll);
        let mut handled = 0;
        for step in 0..count {
            let ring = (self.first_ring + step) % count;
            handled += self.poll_ring(ring, budget - handled, on_event)?;
        }
        self.first_ring = (self.first_ring + 1) % count;
        if self.accepts_due {
            self.arm_accepts()?;
        }
        Ok(handled)
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.flush()?;
        if self.rings.iter().any(Ring::has_work) {
            return Ok(());
        }
        match self.rings.as_mut_slice() {
            [ring] if self.event_fd.is_none() => ring.wait(timeout, &mut self.common),
            _ => self.wait_many(timeout),
        }
    }
}

/// Ends the sleep of the thread that owns a [`RingSockets`], be it in [`Sockets::wait`] or on the event fd.
#[derive(Clone, Debug)]
pub struct Waker {
    event_fd: Arc<StdFile>,
}

impl Waker {
    /// Ends the sleep.
    pub fn wake(&self) -> io::Result<()> {
        (&*self.event_fd).write_all(&1u64.to_ne_bytes())
    }
}
