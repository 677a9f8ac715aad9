//! Drives one `RingSockets` and records its events, for tests.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use slotcast_net::io::ring::{CloseReason, ConnId, Event, RingConfig, RingSockets, SendOutcome, Sockets};

const DEADLINE: Duration = Duration::from_secs(20);

pub struct Driver {
    pub sockets: RingSockets,
    pub accepted: Vec<ConnId>,
    pub connected: Vec<ConnId>,
    pub writable: Vec<ConnId>,
    pub closed: Vec<(ConnId, CloseReason)>,
    pub received: HashMap<ConnId, Vec<u8>>,
}

pub fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Byte `position` of the stream every test sends.
pub fn pattern(position: usize) -> u8 {
    (position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[5]
}

pub fn pattern_bytes(start: usize, len: usize) -> Vec<u8> {
    (start..start + len).map(pattern).collect()
}

pub fn small(sockets_max: usize) -> RingConfig {
    RingConfig {
        sockets_max,
        sq_entries: 64,
        cq_entries: 1024,
        recv_buffers: 64,
        recv_buffer_bytes: 2048,
        staging_bytes: 64 << 10,
        ..RingConfig::default()
    }
}

impl Driver {
    pub fn new(config: RingConfig) -> Self {
        Self {
            sockets: RingSockets::new(config).unwrap(),
            accepted: Vec::new(),
            connected: Vec::new(),
            writable: Vec::new(),
            closed: Vec::new(),
            received: HashMap::new(),
        }
    }

    /// One turn; blocks a little when nothing was there.
    pub fn step(&mut self) {
        if self.turn().unwrap() == 0 {
            self.sockets.wait(Duration::from_micros(300)).unwrap();
        }
    }

    pub fn turn(&mut self) -> io::Result<usize> {
        let (accepted, connected, writable) = (&mut self.accepted, &mut self.connected, &mut self.writable);
        let (closed, received) = (&mut self.closed, &mut self.received);
        let handled = self.sockets.poll(&mut |event| match event {
            Event::Accepted { conn, .. } => accepted.push(conn),
            Event::Connected { conn } => connected.push(conn),
            Event::Writable { conn } => writable.push(conn),
            Event::Received { conn, bytes } => {
                assert!(closed.iter().rev().take(64).all(|&(gone, _)| gone != conn), "bytes after the end");
                received.entry(conn).or_default().extend_from_slice(bytes);
            }
            Event::Closed { conn, reason } => closed.push((conn, reason)),
        })?;
        self.sockets.flush()?;
        Ok(handled)
    }

    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < DEADLINE, "never: {what}; {:?}", self.sockets.stats());
            self.step();
        }
    }

    pub fn bytes_of(&self, conn: ConnId) -> usize {
        self.received.get(&conn).map_or(0, Vec::len)
    }

    pub fn reason_of(&self, conn: ConnId) -> Option<CloseReason> {
        let mut reasons = self.closed.iter().filter(|(closed, _)| *closed == conn).map(|&(_, reason)| reason);
        let reason = reasons.next();
        assert!(reasons.next().is_none(), "closed twice");
        reason
    }

    /// Connects `count` pairs through `addr` within this object: (clients, servers), unordered.
    pub fn pairs(&mut self, addr: SocketAddr, count: usize) -> (Vec<ConnId>, Vec<ConnId>) {
        let (connected, accepted) = (self.connected.len(), self.accepted.len());
        for _ in 0..count {
            self.sockets.connect(addr, None).unwrap();
        }
        self.until("connections", |d| {
            d.connected.len() == connected + count && d.accepted.len() == accepted + count
        });
        (self.connected[connected..].to_vec(), self.accepted[accepted..].to_vec())
    }

    pub fn must_send(&mut self, conn: ConnId, parts: &[&[u8]]) {
        assert_eq!(self.sockets.send(conn, parts), SendOutcome::Queued);
    }
}
