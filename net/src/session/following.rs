//! How a session core follows the slot table: a connection to the control plane of its own, and tables that data nodes tell.

use std::sync::Arc;

use slotcast_engine::id::{Nanos, mix64};

use crate::{
    follow::{LinkAction, MetaLink, MetaLinkConfig},
    io::ring::{ConnId, SendOutcome, Sockets},
    session::core::{Peer, Session},
    wire::{
        FrameError,
        codec::Frame,
        meta::MetaMessage,
        slot_table::{SlotTable, TableError},
    },
};

/// The way to the control plane.
pub(super) struct Following {
    pub(super) link: MetaLink,
    conn: Option<ConnId>,
    /// What the socket has not taken yet.
    out: Vec<u8>,
    seed: u64,
}

impl Following {
    /// Follows from the empty table on. `seed` spreads which process is asked first, and when it is asked again.
    pub(super) fn new(config: MetaLinkConfig, seed: u64) -> Self {
        let table = Arc::new(SlotTable::empty(&config.cluster, config.slot_count));
        let start = (mix64(seed) % config.metas.len().max(1) as u64) as usize;
        Self { link: MetaLink::new(config, table, start), conn: None, out: Vec::new(), seed }
    }

    /// A number that differs between sessions and from time to time.
    fn jitter(&self, now: Nanos) -> u64 {
        mix64(self.seed ^ now.0)
    }

    /// Takes a table that a data node has told, if it is newer and goes on from the one here.
    fn hear(&mut self, message: MetaMessage) -> Result<bool, TableError> {
        let MetaMessage::TableDelta(delta) = message else { return Ok(false) };
        if delta.to <= self.link.table().epoch && !crate::faults::older_table() {
            return Ok(false);
        }
        let mut table = SlotTable::clone(self.link.table());
        table.apply(&delta)?;
        self.link.share_table(&Arc::new(table));
        Ok(true)
    }
}

impl Session {
    /// Speaks with the control plane, and goes by the newest table.
    pub(super) fn follow(&mut self, now: Nanos, sockets: &mut dyn Sockets) {
        let Some(mut following) = self.following.take() else { return };
        while let Some(action) = following.link.poll(now, following.jitter(now)) {
            match action {
                LinkAction::Connect(addr) => {
                    self.hang_up(&mut following, sockets);
                    match sockets.connect(addr, None) {
                        Ok(conn) => {
                            following.conn = Some(conn);
                            self.place(conn, Peer::Meta(conn));
                        }
                        Err(error) => {
                            tracing::warn!(%addr, %error, "cannot connect to the control plane");
                            let jitter = following.jitter(now);
                            following.link.handle_closed(now, jitter);
                        }
                    }
                }
                LinkAction::Send(bytes) => following.out.extend_from_slice(&bytes),
                LinkAction::Close => {
                    if let Some(fault) = &following.link.last_fault {
                        tracing::warn!(%fault, "giving up a connection to the control plane");
                    }
                    self.hang_up(&mut following, sockets);
                }
            }
        }
        if let Some(conn) = following.conn
            && !following.out.is_empty()
            && sockets.send(conn, &[&following.out]) != SendOutcome::Busy
        {
            following.out.clear();
        }
        let news = following.link.take_news();
        self.following = Some(following);
        if let Some(table) = news {
            self.take_table(&table, now, sockets);
        }
    }

    fn hang_up(&mut self, following: &mut Following, sockets: &mut dyn Sockets) {
        following.out.clear();
        if let Some(conn) = following.conn.take() {
            self.peers[conn.index()] = Peer::None;
            sockets.close(conn, true);
        }
    }

    /// The connection to the control plane stands.
    pub(super) fn meta_connected(&mut self, now: Nanos) {
        if let Some(following) = &mut self.following {
            following.link.handle_connected(now);
        }
    }

    /// The control plane has said something.
    pub(super) fn meta_received(&mut self, bytes: &[u8]) {
        if let Some(following) = &mut self.following {
            following.link.handle_bytes(bytes);
        }
    }

    /// The connection to the control plane is gone; its place is free.
    pub(super) fn meta_closed(&mut self, now: Nanos) {
        if let Some(following) = &mut self.following {
            following.conn = None;
            following.out.clear();
            let jitter = following.jitter(now);
            following.link.handle_closed(now, jitter);
        }
    }

    /// A data node tells its table, because it is newer than the one that this session goes by.
    pub(super) fn hear_table(&mut self, link: usize, frame: Frame<'_>) -> Result<(), FrameError> {
        let message = MetaMessage::read(frame)?;
        let Some(following) = &mut self.following else { return Ok(()) };
        match following.hear(message) {
            Ok(true) => {
                self.metrics.tables_from_nodes.inc();
            }
            Ok(false) => {}
            Err(error) => {
                tracing::error!(link, %error, "a data node told a slot table that cannot follow the one here");
                self.metrics.link_faults.inc();
            }
        }
        Ok(())
    }

    /// Epoch of the slot table that this session goes by; 0: none, or routes are configured.
    pub fn table_epoch(&self) -> u64 {
        self.following.as_ref().map_or(0, |following| following.link.table().epoch)
    }

    /// Whether the control plane has just said that the table here is the newest.
    pub(super) fn is_in_touch(&self) -> bool {
        self.following.as_ref().is_some_and(|following| following.link.is_connected())
    }
}
