//! A follower of the control plane over a blocking socket of its own.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use slotcast_engine::id::Nanos;
use slotcast_net::{
    follow::{LinkAction, MetaLink, MetaLinkConfig},
    wire::slot_table::SlotTable,
};

/// A link and the socket that it asks for.
pub(crate) struct Dialed {
    pub(crate) link: MetaLink,
    stream: Option<TcpStream>,
    began: Instant,
}

impl Dialed {
    /// One that has no table yet and has not connected.
    pub(crate) fn new(config: MetaLinkConfig) -> Self {
        let table = Arc::new(SlotTable::empty(&config.cluster, config.slot_count));
        Self { link: MetaLink::new(config, table, 0), stream: None, began: Instant::now() }
    }

    pub(crate) fn now(&self) -> Nanos {
        Nanos(self.began.elapsed().as_nanos() as u64 + 1)
    }

    /// Does what is due, and waits a few milliseconds for what may arrive.
    pub(crate) fn step(&mut self) {
        let now = self.now();
        while let Some(action) = self.link.poll(now, now.0) {
            match action {
                LinkAction::Connect(addr) => match TcpStream::connect(addr) {
                    Ok(stream) => {
                        stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
                        self.stream = Some(stream);
                        self.link.handle_connected(now);
                    }
                    Err(_) => self.link.handle_closed(now, now.0),
                },
                LinkAction::Send(bytes) => {
                    let _ = self.stream.as_mut().unwrap().write_all(&bytes);
                }
                LinkAction::Close => self.stream = None,
            }
        }
        let Some(stream) = &mut self.stream else { return };
        let mut bytes = [0; 65536];
        match stream.read(&mut bytes) {
            Ok(0) => {
                self.stream = None;
                self.link.handle_closed(now, now.0);
            }
            Ok(count) => self.link.handle_bytes(&bytes[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => {
                self.stream = None;
                self.link.handle_closed(now, now.0);
            }
        }
    }
}
