//! A connection that a role has made itself: bytes wait here until the socket takes them.

use std::net::SocketAddr;

use crate::io::ring::{ConnId, SendOutcome, Sockets};

/// At most one connection, and what is still to be sent over it.
#[derive(Default)]
pub struct Dialed {
    conn: Option<ConnId>,
    out: Vec<u8>,
}

impl Dialed {
    /// Connects there; a connection that there was is closed. False: it could not even be tried.
    pub fn connect(&mut self, addr: SocketAddr, sockets: &mut dyn Sockets) -> bool {
        self.close(sockets);
        match sockets.connect(addr, None) {
            Ok(conn) => self.conn = Some(conn),
            Err(error) => tracing::warn!(%addr, %error, "cannot connect"),
        }
        self.conn.is_some()
    }

    /// Whether an event of `conn` is of this connection.
    pub fn owns(&self, conn: ConnId) -> bool {
        self.conn == Some(conn)
    }

    /// Whether there is a connection, be it only on its way.
    pub fn is_open(&self) -> bool {
        self.conn.is_some()
    }

    /// The connection is gone by itself.
    pub fn closed(&mut self) {
        *self = Self::default();
    }

    /// Ends the connection; what waited is dropped, and its last event is of nobody.
    pub fn close(&mut self, sockets: &mut dyn Sockets) {
        if let Some(conn) = self.conn.take() {
            sockets.close(conn, true);
        }
        self.out = Vec::new();
    }

    /// Where bytes to send are appended.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.out.len()
    }

    /// Sends what waits, as far as the socket takes it now. Returns the bytes taken.
    pub fn flush(&mut self, sockets: &mut dyn Sockets) -> usize {
        let Some(conn) = self.conn.filter(|_| !self.out.is_empty()) else { return 0 };
        match sockets.send(conn, &[&self.out]) {
            SendOutcome::Busy => 0,
            SendOutcome::Queued | SendOutcome::Gone => {
                let taken = self.out.len();
                self.out.clear();
                self.out.shrink_to(64 * 1024);
                taken
            }
        }
    }
}
