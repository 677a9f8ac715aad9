//! A worker's sockets: one ring for the clients that always read, and a second one for those that stop for a while.
//!
//! A client stops reading when nobody looks at its ring any more: the ring's few receive buffers are not given back, so the
//! kernel receives nothing for it, its small socket buffer fills, and the other end finds that the socket takes nothing.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use slotcast_net::io::ring::{ConnId, Event, RingConfig, RingSockets, SendOutcome, SharedFrame, Sockets};

/// `SO_RCVBUF` of clients that are to stop reading (the kernel doubles it). With much less the kernel would open the window
/// again only from time to time once they read.
const STALLING_RECEIVE_BYTES: u32 = 16 * 1024;
/// Receive buffers of all of them together.
const STALLING_RECV_BUFFERS: u16 = 16;

/// See the module.
pub struct ClientSockets {
    reading: RingSockets,
    stalling: Option<Stalling>,
}

struct Stalling {
    sockets: RingSockets,
    /// Handles of this ring begin at this index for the outside.
    first: usize,
    /// By index in the ring: its handle, and the one for the outside.
    conns: Vec<(ConnId, ConnId)>,
    generation: u64,
    asleep: bool,
}

impl ClientSockets {
    /// Sockets for `clients`, of which `stalling` are to stop reading at times.
    pub fn new(clients: u32, stalling: u32, recv_buffers: u16) -> io::Result<Self> {
        let config = super::ring_config(clients, recv_buffers);
        let first = config.sockets_max;
        let narrow = RingConfig {
            sockets_max: stalling as usize,
            recv_buffers: STALLING_RECV_BUFFERS,
            recv_socket_buffer_bytes: Some(STALLING_RECEIVE_BYTES),
            ..config.clone()
        };
        let stalling = (stalling > 0)
            .then(|| RingSockets::new(narrow))
            .transpose()?
            .map(|sockets| Stalling { sockets, first, conns: Vec::new(), generation: 0, asleep: false });
        Ok(Self { reading: RingSockets::new(config)?, stalling })
    }

    /// Like [`Sockets::connect`], for a client that stops reading at times.
    pub fn connect_stalling(&mut self, target: SocketAddr, source: Option<IpAddr>) -> io::Result<ConnId> {
        let Some(stalling) = &mut self.stalling else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no client was to stop reading"));
        };
        let theirs = stalling.sockets.connect(target, source)?;
        stalling.generation += 1;
        let ours = ConnId::from_parts(stalling.first + theirs.index(), stalling.generation);
        if stalling.conns.len() <= theirs.index() {
            stalling.conns.resize(theirs.index() + 1, (theirs, ours));
        }
        stalling.conns[theirs.index()] = (theirs, ours);
        Ok(ours)
    }

    /// Whether the clients of [`Self::connect_stalling`] are left alone now: nothing is received, nothing is sent.
    pub fn set_asleep(&mut self, asleep: bool) {
        if let Some(stalling) = &mut self.stalling {
            stalling.asleep = asleep;
        }
    }

    /// Changes how long a wait gathers what comes (see [`RingConfig::gather`]).
    pub fn set_gather(&mut self, gather: Duration) {
        self.reading.set_gather(gather);
    }

    /// The ring that owns a handle, and its own handle of it; none if the connection is another one by now.
    fn of(&mut self, conn: ConnId) -> Option<(&mut RingSockets, ConnId)> {
        match &mut self.stalling {
            Some(stalling) if conn.index() >= stalling.first => {
                let (theirs, ours) = *stalling.conns.get(conn.index() - stalling.first)?;
                (ours == conn).then_some((&mut stalling.sockets, theirs))
            }
            _ => Some((&mut self.reading, conn)),
        }
    }
}

impl Stalling {
    fn outside(conns: &[(ConnId, ConnId)], event: Event<'_>, on_event: &mut dyn FnMut(Event<'_>)) {
        let ours = |conn: ConnId| conns[conn.index()].1;
        on_event(match event {
            Event::Accepted { conn, listener } => Event::Accepted { conn: ours(conn), listener },
            Event::Connected { conn } => Event::Connected { conn: ours(conn) },
            Event::Received { conn, bytes } => Event::Received { conn: ours(conn), bytes },
            Event::Writable { conn } => Event::Writable { conn: ours(conn) },
            Event::Closed { conn, reason } => Event::Closed { conn: ours(conn), reason },
        });
    }
}

impl Sockets for ClientSockets {
    fn listen(&mut self, addr: SocketAddr) -> io::Result<SocketAddr> {
        self.reading.listen(addr)
    }

    fn connect(&mut self, target: SocketAddr, source: Option<IpAddr>) -> io::Result<ConnId> {
        self.reading.connect(target, source)
    }

    fn send(&mut self, conn: ConnId, parts: &[&[u8]]) -> SendOutcome {
        self.of(conn).map_or(SendOutcome::Gone, |(sockets, conn)| sockets.send(conn, parts))
    }

    fn send_shared(&mut self, conn: ConnId, frame: &SharedFrame) -> SendOutcome {
        self.of(conn).map_or(SendOutcome::Gone, |(sockets, conn)| sockets.send_shared(conn, frame))
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Some(stalling) = self.stalling.as_mut().filter(|stalling| !stalling.asleep) {
            stalling.sockets.flush()?;
        }
        self.reading.flush()
    }

    fn close(&mut self, conn: ConnId, reset: bool) {
        if let Some((sockets, conn)) = self.of(conn) {
            sockets.close(conn, reset);
        }
    }

    fn poll(&mut self, on_event: &mut dyn FnMut(Event<'_>)) -> io::Result<usize> {
        let mut handled = self.reading.poll(on_event)?;
        if let Some(stalling) = self.stalling.as_mut().filter(|stalling| !stalling.asleep) {
            let Stalling { sockets, conns, .. } = stalling;
            handled += sockets.poll(&mut |event| Stalling::outside(conns, event, on_event))?;
        }
        Ok(handled)
    }

    /// Sleeps on the ring of those that always read; the others are looked at when that ends.
    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.reading.wait(timeout)
    }
}
