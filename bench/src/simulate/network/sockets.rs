//! The sockets that a role is given.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use slotcast_net::io::ring::{ConnId, Event, SendOutcome, SharedFrame, Sockets};

use super::Network;

/// The sockets of one host.
pub struct HostSockets<'a> {
    /// What they are connected to.
    pub net: &'a mut Network,
    /// Whose they are.
    pub host: usize,
}

impl Sockets for HostSockets<'_> {
    fn listen(&mut self, addr: SocketAddr) -> io::Result<SocketAddr> {
        Ok(addr)
    }

    fn connect(&mut self, target: SocketAddr, _source: Option<IpAddr>) -> io::Result<ConnId> {
        self.net.connect_to(self.host, target)
    }

    fn send(&mut self, conn: ConnId, parts: &[&[u8]]) -> SendOutcome {
        self.net.send_bytes(self.host, conn, parts.concat())
    }

    fn send_shared(&mut self, conn: ConnId, frame: &SharedFrame) -> SendOutcome {
        self.net.send_bytes(self.host, conn, frame.to_vec())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn close(&mut self, conn: ConnId, reset: bool) {
        self.net.close_conn(self.host, conn, reset);
    }

    fn poll(&mut self, _on_event: &mut dyn FnMut(Event<'_>)) -> io::Result<usize> {
        unreachable!("the world hands out events")
    }

    fn wait(&mut self, _timeout: Duration) -> io::Result<()> {
        unreachable!("the world knows the time")
    }
}
