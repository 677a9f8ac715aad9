//! One plain connection to a session, driven by hand: what comes in is looked at before the client's own code gets it.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use slotcast_net::io::ring::{ConnId, Event, SendOutcome, SharedFrame, Sockets};

/// Longest wait for a connect; a stopped process still accepts.
const CONNECT_WITHIN: Duration = Duration::from_millis(200);
/// Bytes read from a connection before the others have their turn.
const READ_BYTES: usize = 256 * 1024;

/// The one connection of a client.
#[derive(Default)]
pub struct Socket {
    stream: Option<TcpStream>,
    /// Where it is connected, or was last.
    pub peer: Option<SocketAddr>,
    generation: u64,
    is_new: bool,
    is_over: bool,
    /// Until then nothing is reached, in nanoseconds.
    offline_until: u64,
    now: u64,
    out: Vec<u8>,
    /// Why the last connection could not be made.
    pub refusal: Option<ErrorKind>,
    /// Everything that the client wrote since it was last looked at.
    pub said: Vec<u8>,
}

/// What a look at the connection brought.
#[derive(Default)]
pub struct Heard {
    /// It has just been made.
    pub is_new: bool,
    /// Bytes that came.
    pub bytes: Vec<u8>,
    /// It is gone.
    pub is_over: bool,
}

impl Socket {
    /// The handle of the connection that there is, or was last.
    pub fn conn(&self) -> ConnId {
        ConnId::from_parts(0, self.generation)
    }

    /// Nothing can be reached until then.
    pub fn stay_offline(&mut self, until: u64) {
        self.offline_until = until;
    }

    /// Whether nothing can be reached.
    pub fn is_offline(&self) -> bool {
        self.now < self.offline_until
    }

    /// Writes what waits and reads what is there.
    pub fn look(&mut self, now: u64) -> Heard {
        self.now = now;
        let mut heard = Heard { is_new: std::mem::take(&mut self.is_new), ..Heard::default() };
        let Some(stream) = &mut self.stream else {
            heard.is_over = std::mem::take(&mut self.is_over);
            return heard;
        };
        let mut alive = true;
        while !self.out.is_empty() {
            match stream.write(&self.out) {
                Ok(written) => _ = self.out.drain(..written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    alive = false;
                    break;
                }
            }
        }
        let mut buffer = [0; 16 * 1024];
        while alive && heard.bytes.len() < READ_BYTES {
            match stream.read(&mut buffer) {
                Ok(0) => alive = false,
                Ok(read) => heard.bytes.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => alive = false,
            }
        }
        if !alive {
            self.drop_stream();
            heard.is_over = std::mem::take(&mut self.is_over);
        }
        heard
    }

    fn drop_stream(&mut self) {
        self.is_over |= self.stream.take().is_some();
        self.out.clear();
    }
}

impl Sockets for Socket {
    fn listen(&mut self, _: SocketAddr) -> io::Result<SocketAddr> {
        Err(ErrorKind::Unsupported.into())
    }

    fn connect(&mut self, target: SocketAddr, _: Option<IpAddr>) -> io::Result<ConnId> {
        if self.is_offline() {
            return Err(ErrorKind::NetworkUnreachable.into());
        }
        let stream = TcpStream::connect_timeout(&target, CONNECT_WITHIN)
            .inspect_err(|error| self.refusal = Some(error.kind()))?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        (self.stream, self.peer, self.refusal) = (Some(stream), Some(target), None);
        self.generation += 1;
        (self.is_new, self.is_over) = (true, false);
        self.out.clear();
        Ok(self.conn())
    }

    fn send(&mut self, conn: ConnId, parts: &[&[u8]]) -> SendOutcome {
        if self.stream.is_none() || conn != self.conn() {
            return SendOutcome::Gone;
        }
        for part in parts {
            self.out.extend_from_slice(part);
            self.said.extend_from_slice(part);
        }
        SendOutcome::Queued
    }

    fn send_shared(&mut self, conn: ConnId, frame: &SharedFrame) -> SendOutcome {
        self.send(conn, &[frame])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn close(&mut self, conn: ConnId, reset: bool) {
        if conn == self.conn() {
            if !reset && let Some(stream) = &mut self.stream {
                // A goodbye is small: it fits the socket's buffer, or the peer is not reading anyhow.
                let _ = stream.write(&self.out);
            }
            self.drop_stream();
        }
    }

    fn poll(&mut self, _: &mut dyn FnMut(Event<'_>)) -> io::Result<usize> {
        Ok(0)
    }

    fn wait(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}
