//! One session's end of a link: what goes out in its order, what came in cut into frames, a heartbeat now and then.

use std::collections::VecDeque;

use slotcast_engine::{
    digest::Digest,
    id::{SessionId, mix64},
};
use slotcast_net::{
    io::ring::{ConnId, SendOutcome, Sockets},
    wire::{Message, header::PROTOCOL},
};

use crate::{
    clock::SECOND,
    worker::{client::Outgoing, stream::Stream},
};

/// Time between two heartbeats, a sixth of the lease that a session has unless configured otherwise.
const HEARTBEAT_EVERY: u64 = 5 * SECOND;

/// See the module.
pub struct End {
    /// Who speaks.
    pub session: SessionId,
    /// The connection, once it is asked for.
    pub conn: Option<ConnId>,
    /// Whether the shard has welcomed it.
    pub is_up: bool,
    /// What came in and is no whole frame yet.
    pub stream: Stream,
    /// Everything that this session owns at the shard once what was sent has arrived there.
    pub digest: Digest,
    /// The mark to tell in the next heartbeat.
    pub mark: u64,
    outbox: VecDeque<Outgoing>,
    next_heartbeat: u64,
}

impl End {
    /// The end number `number` of a run that is told from others by `tag`; not connected.
    pub fn new(tag: u64, number: u32) -> Self {
        Self {
            session: SessionId(mix64(tag ^ mix64(u64::from(number))).max(1)),
            conn: None,
            is_up: false,
            stream: Stream::default(),
            digest: Digest::default(),
            mark: 0,
            outbox: VecDeque::new(),
            next_heartbeat: 0,
        }
    }

    /// The first frame.
    pub fn hello(&self, slot_count: u32) -> Vec<u8> {
        frame(&Message::LinkHello {
            protocol: PROTOCOL,
            slot_count,
            session: self.session,
            run: 0,
            epoch_seen: 0,
        })
    }

    /// Queues a frame behind those that wait.
    pub fn push(&mut self, bytes: Vec<u8>, ops: Vec<u32>) {
        self.outbox.push_back(Outgoing { bytes, ops });
    }

    /// Queues a heartbeat if it is time for one.
    pub fn beat(&mut self, now: u64) {
        if self.is_up && now >= self.next_heartbeat {
            self.next_heartbeat = now + HEARTBEAT_EVERY;
            let (mark, digest) = (self.mark, self.digest);
            self.push(frame(&Message::Heartbeat { mark, digest, routes: 0, table_epoch: 0 }), Vec::new());
        }
    }

    /// Sends what waits, as far as the socket takes it; `on_sent` is told the operations that went out.
    pub fn flush(&mut self, sockets: &mut impl Sockets, mut on_sent: impl FnMut(u32)) {
        let Some(conn) = self.conn else { return };
        while let Some(first) = self.outbox.front() {
            if sockets.send(conn, &[&first.bytes]) != SendOutcome::Queued {
                return;
            }
            first.ops.iter().for_each(|&op| on_sent(op));
            self.outbox.pop_front();
        }
    }

    /// Frames that wait for the socket.
    pub fn waiting(&self) -> usize {
        self.outbox.len()
    }
}

/// A message as a frame.
pub fn frame(message: &Message<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    message.write(&mut out);
    out
}
