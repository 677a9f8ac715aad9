//! Sockets without a network.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use slotcast_net::io::ring::{ConnId, Event, SendOutcome, SharedFrame, Sockets};

/// Sockets on which nothing is lost and nothing is late.
#[derive(Default)]
pub struct Wire {
    next: usize,
    pub connects: VecDeque<(ConnId, SocketAddr)>,
    pub sent: BTreeMap<ConnId, Vec<u8>>,
    pub closed: Vec<ConnId>,
}

impl Wire {
    pub(super) fn conn(&mut self) -> ConnId {
        self.next += 1;
        ConnId::from_parts(self.next, 1)
    }
}

impl Sockets for Wire {
    fn listen(&mut self, addr: SocketAddr) -> io::Result<SocketAddr> {
        Ok(addr)
    }

    fn connect(&mut self, target: SocketAddr, _source: Option<IpAddr>) -> io::Result<ConnId> {
        let conn = self.conn();
        self.connects.push_back((conn, target));
        Ok(conn)
    }

    fn send(&mut self, conn: ConnId, parts: &[&[u8]]) -> SendOutcome {
        parts.iter().for_each(|part| self.sent.entry(conn).or_default().extend_from_slice(part));
        SendOutcome::Queued
    }

    fn send_shared(&mut self, conn: ConnId, frame: &SharedFrame) -> SendOutcome {
        self.send(conn, &[frame])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn close(&mut self, conn: ConnId, _reset: bool) {
        self.closed.push(conn);
    }

    fn poll(&mut self, _on_event: &mut dyn FnMut(Event<'_>)) -> io::Result<usize> {
        Ok(0)
    }

    fn wait(&mut self, _timeout: Duration) -> io::Result<()> {
        Ok(())
    }
}
