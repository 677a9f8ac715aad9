//! One client of a worker: its connection and what it is waiting for.

use std::collections::VecDeque;

use slotcast_net::io::ring::ConnId;

use crate::worker::stream::Stream;

/// How far a client's connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// None.
    Down,
    /// Asked for.
    Connecting,
    /// Hello is on its way.
    Greeting,
    /// Welcomed.
    Open,
    /// Given up by us, and its end not yet reported.
    Leaving,
}

/// Bytes to send and the operations in them.
pub struct Outgoing {
    /// Whole frames.
    pub bytes: Vec<u8>,
    /// Operations whose sending time this is.
    pub ops: Vec<u32>,
}

/// See the module.
pub struct Client {
    /// The latest connection.
    pub conn: Option<ConnId>,
    /// Its state.
    pub link: Link,
    /// Its unfinished frame.
    pub stream: Stream,
    /// What did not fit into the socket.
    pub outbox: VecDeque<Outgoing>,
    /// Operations that are due and wait for the connection.
    pub waiting: VecDeque<u32>,
    /// Sequence of the next write of this connection.
    pub sequence: u64,
    /// Writes not yet acknowledged: sequence and operations.
    pub in_flight: VecDeque<(u64, Vec<u32>)>,
    /// Connections so far that registered.
    pub attach: u32,
    /// Whether it has asked for its subscriptions.
    pub is_subscribed: bool,
    /// Whether the end of the connection is our own doing and it comes back.
    pub returns: bool,
    /// How long it waits with that, in nanoseconds: it was told to.
    pub pause: u64,
    /// Sessions that it has left because they had gone.
    pub moves: usize,
    /// Operations of which nobody told what has become of them before the connection ended.
    pub unanswered: Vec<u32>,
}

impl Client {
    /// Not connected.
    pub fn new() -> Self {
        Self {
            conn: None,
            link: Link::Down,
            stream: Stream::default(),
            outbox: VecDeque::new(),
            waiting: VecDeque::new(),
            sequence: 1,
            in_flight: VecDeque::new(),
            attach: 1,
            is_subscribed: false,
            returns: false,
            pause: 0,
            moves: 0,
            unanswered: Vec::new(),
        }
    }

    /// Starts anew over another connection.
    pub fn connecting(&mut self, conn: ConnId) {
        self.conn = Some(conn);
        self.link = Link::Connecting;
        self.stream = Stream::default();
        self.outbox.clear();
        self.in_flight.clear();
        self.sequence = 1;
        self.returns = false;
    }

    /// Whether everything it ever sent is answered.
    pub fn is_quiet(&self) -> bool {
        self.link == Link::Open
            && self.outbox.is_empty()
            && self.in_flight.is_empty()
            && self.waiting.is_empty()
    }
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}
