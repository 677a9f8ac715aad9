//! Following the slot table: what a data node or a session has in it to speak with the control plane. No sockets, no clock.
//!
//! One [`MetaLink`] talks to one process of the control plane at a time and tries the others in turn. It keeps the newest
//! table it was ever told and refuses an older one. Without any control plane it goes on with what it has; only the lease of
//! a data node ends, which its owner may want to know ([`MetaLink::holds_lease`]).
//!
//! The owner connects, sends and closes as [`MetaLink::poll`] says, and tells it what became of that.

use std::{net::SocketAddr, sync::Arc};

use slotcast_engine::id::Nanos;

use crate::wire::{
    Decoder, ErrorCode, FrameError,
    header::{FRAME_BYTES_MAX, PROTOCOL},
    meta::{MetaMessage, MetaPeer, NodeLoad, SlotReport},
    slot_table::{NodeNumber, SlotTable, TableError},
};

/// Longest wait between two attempts at the same process, all processes tried in between.
const RETRY_MAX: u64 = 2 * Nanos::SECOND;
/// How long a connect or an answer may take.
const PATIENCE: u64 = Nanos::SECOND;
/// Longest time (nanoseconds) that a live follower takes to find the process that leads, with two others that do not answer:
/// what a new leader has to wait before it takes a follower that it has not heard for lost.
pub const FIND_MAX: u64 = RETRY_MAX + 2 * PATIENCE;

/// What a link is told at its start.
#[derive(Clone, Debug)]
pub struct MetaLinkConfig {
    /// The processes of the control plane.
    pub metas: Vec<SocketAddr>,
    /// Name of the cluster.
    pub cluster: String,
    /// Slots of the cluster.
    pub slot_count: u32,
    /// Who follows.
    pub peer: MetaPeer,
    /// Time between heartbeats (nanoseconds).
    pub heartbeat: u64,
    /// Shortest wait after a failure before the next process is tried, and longest sum of the waits in which all processes
    /// are tried once, but for many processes no less than the shortest for each.
    pub retry: (u64, u64),
    /// How long a connect or an answer may take before the next process is tried.
    pub patience: u64,
}

impl MetaLinkConfig {
    /// The defaults: a heartbeat every 300 ms, retries after 50 ms and all processes within 2 s, a second of patience.
    pub fn new(metas: Vec<SocketAddr>, cluster: &str, slot_count: u32, peer: MetaPeer) -> Self {
        let ms = Nanos::SECOND / 1000;
        Self {
            metas,
            cluster: cluster.into(),
            slot_count,
            peer,
            heartbeat: 300 * ms,
            retry: (50 * ms, RETRY_MAX),
            patience: PATIENCE,
        }
    }
}

/// What the owner is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkAction {
    /// Connect there; a connection that there was is closed.
    Connect(SocketAddr),
    /// Send these bytes.
    Send(Vec<u8>),
    /// Close the connection.
    Close,
}

/// Why a connection to the control plane was given up.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LinkFault {
    /// What arrived cannot be read.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// The table does not fit what is here.
    #[error("{0}")]
    Table(#[from] TableError),
    /// It said why it does not want this peer.
    #[error("refused ({label}): {text}")]
    Refused {
        /// The code's label.
        label: &'static str,
        /// For people.
        text: String,
    },
    /// It said something that it should not.
    #[error("it sent a message that does not belong here")]
    Unexpected,
    /// It did not answer in time.
    #[error("it did not answer in time")]
    Silent,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LinkState {
    /// Until when nothing is tried.
    Waiting(Nanos),
    /// Until when the connect may take.
    Connecting(Nanos),
    Connected,
}

/// One follower's way to the control plane.
pub struct MetaLink {
    config: MetaLinkConfig,
    table: Arc<SlotTable>,
    has_news: bool,
    state: LinkState,
    decoder: Decoder,
    /// Which of `metas` is next.
    next: usize,
    failures: u32,
    sequence: u64,
    /// When the heartbeats that are not answered yet were sent, the oldest first.
    unanswered: std::collections::VecDeque<(u64, Nanos)>,
    heartbeat_at: Nanos,
    lease_end: Nanos,
    load: NodeLoad,
    ending: bool,
    slots: Vec<SlotReport>,
    report: u64,
    report_held: u64,
    /// The table that the owner had when it made the report.
    reported_epoch: u64,
    /// The deltas do not fit the table here: a whole one is asked for.
    forgets_epoch: bool,
    out: Vec<u8>,
    closing: bool,
    /// Tables that were refused because they are older.
    pub older_refused: u64,
    /// Why the last connection was given up.
    pub last_fault: Option<LinkFault>,
}

impl MetaLink {
    /// A link that has `table`, which may be empty, and tries the process at `start % metas` first.
    pub fn new(config: MetaLinkConfig, table: Arc<SlotTable>, start: usize) -> Self {
        assert!(!config.metas.is_empty(), "no control plane is named");
        Self {
            next: start % config.metas.len(),
            config,
            table,
            has_news: false,
            state: LinkState::Waiting(Nanos(0)),
            decoder: Decoder::default(),
            failures: 0,
            sequence: 0,
            unanswered: Default::default(),
            heartbeat_at: Nanos(0),
            lease_end: Nanos(0),
            load: NodeLoad::default(),
            ending: false,
            slots: Vec::new(),
            report: 1,
            report_held: 0,
            reported_epoch: 0,
            forgets_epoch: false,
            out: Vec::new(),
            closing: false,
            older_refused: 0,
            last_fault: None,
        }
    }

    /// The newest table.
    pub fn table(&self) -> &Arc<SlotTable> {
        &self.table
    }

    /// The table, once after each change of it.
    pub fn take_news(&mut self) -> Option<Arc<SlotTable>> {
        std::mem::take(&mut self.has_news).then(|| self.table.clone())
    }

    /// Takes a newer table that another link of this process has read, so that it is read once.
    pub fn share_table(&mut self, table: &Arc<SlotTable>) {
        if table.epoch > self.table.epoch || crate::faults::older_table() && table.epoch != self.table.epoch {
            self.table = table.clone();
            self.has_news = true;
        }
    }

    /// Whether the control plane counts this node as alive for certain. A leader that is not certain may have a successor.
    pub fn holds_lease(&self, now: Nanos) -> bool {
        now < self.lease_end
    }

    /// Until when the control plane counts this node as alive for certain; zero: it has not said so yet.
    pub fn lease_end(&self) -> Nanos {
        self.lease_end
    }

    /// Whether the last heartbeat was answered.
    pub fn is_connected(&self) -> bool {
        self.state == LinkState::Connected && self.failures == 0
    }

    /// What the node has to do, for the next heartbeat.
    pub fn set_load(&mut self, load: NodeLoad) {
        self.load = load;
    }

    /// Says, at once, that the process is about to end: what this node leads goes to followers in sync, as far as there are any.
    pub fn set_ending(&mut self) {
        if !std::mem::replace(&mut self.ending, true) {
            self.heartbeat_at = Nanos(0);
        }
    }

    /// What the node does with its slots: all of them, as it is after the table of `table_epoch` was taken in. To be called
    /// after each table that changes one of them, and whenever a follower gets in sync or falls behind. News is told at once,
    /// and so is again what the table does not show yet.
    pub fn set_slots(&mut self, table_epoch: u64, slots: Vec<SlotReport>) {
        let is_shown = |report: &SlotReport| {
            let entry = self.table.slots.get(usize::from(report.slot.0));
            let members = entry.map_or(&[][..], |entry| entry.members());
            let shows =
                |number: &NodeNumber| members.iter().any(|it| it.node() == *number && it.is_in_sync());
            report.in_sync.iter().all(shows)
        };
        if slots != self.slots || (table_epoch > self.reported_epoch && !slots.iter().all(is_shown)) {
            (self.slots, self.reported_epoch) = (slots, table_epoch);
            self.report += 1;
            self.heartbeat_at = Nanos(0);
        }
    }

    /// What is to be done now, until there is nothing. `jitter` is any number; it spreads retries.
    pub fn poll(&mut self, now: Nanos, jitter: u64) -> Option<LinkAction> {
        if self.closing {
            self.closing = false;
            self.fail(now, jitter);
            return Some(LinkAction::Close);
        }
        match self.state {
            LinkState::Waiting(until) if now >= until => {
                let addr = self.config.metas[self.next];
                self.next = (self.next + 1) % self.config.metas.len();
                self.state = LinkState::Connecting(now.after(self.config.patience));
                return Some(LinkAction::Connect(addr));
            }
            LinkState::Connecting(until) if now >= until => {
                self.last_fault = Some(LinkFault::Silent);
                self.fail(now, jitter);
                return Some(LinkAction::Close);
            }
            LinkState::Connected => {
                let oldest = self.unanswered.front().map_or(now, |(_, sent)| *sent);
                if now.since(oldest) >= self.config.patience {
                    self.last_fault = Some(LinkFault::Silent);
                    self.fail(now, jitter);
                    return Some(LinkAction::Close);
                }
                if now >= self.heartbeat_at {
                    self.beat(now);
                }
            }
            _ => {}
        }
        (self.state == LinkState::Connected && !self.out.is_empty())
            .then(|| LinkAction::Send(std::mem::take(&mut self.out)))
    }

    /// When it wants to be polled although nothing happens.
    pub fn wake_at(&self) -> Nanos {
        match self.state {
            LinkState::Waiting(until) | LinkState::Connecting(until) => until,
            LinkState::Connected => {
                let patience = self.unanswered.front().map(|(_, sent)| sent.after(self.config.patience));
                patience.map_or(self.heartbeat_at, |until| until.min(self.heartbeat_at))
            }
        }
    }

    /// The connection asked for is there.
    pub fn handle_connected(&mut self, now: Nanos) {
        self.state = LinkState::Connected;
        self.decoder = Decoder::default();
        (self.sequence, self.report_held) = (0, 0);
        self.unanswered.clear();
        self.out.clear();
        let epoch = if std::mem::take(&mut self.forgets_epoch) { 0 } else { self.table.epoch };
        MetaMessage::Hello {
            protocol: PROTOCOL,
            slot_count: self.config.slot_count,
            table_epoch: epoch,
            cluster: self.config.cluster.clone(),
            peer: self.config.peer.clone(),
        }
        .write(&mut self.out);
        self.beat(now);
    }

    /// The connection is gone, or could not be made.
    pub fn handle_closed(&mut self, now: Nanos, jitter: u64) {
        self.closing = false;
        if !matches!(self.state, LinkState::Waiting(_)) {
            self.fail(now, jitter);
        }
    }

    /// Bytes have arrived. A fault ends the connection; the table stands.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        if self.closing || self.state != LinkState::Connected {
            return;
        }
        let mut decoder = std::mem::take(&mut self.decoder);
        let result = decoder.feed(bytes, FRAME_BYTES_MAX, |frame| {
            let message = MetaMessage::read(frame)?;
            self.handle_message(message)
        });
        self.decoder = decoder;
        if let Err(fault) = result {
            self.last_fault = Some(fault);
            self.closing = true;
        }
    }

    fn handle_message(&mut self, message: MetaMessage) -> Result<(), LinkFault> {
        match message {
            MetaMessage::HeartbeatAck { sequence, report, lease_ms, wants_table, .. } => {
                self.failures = 0;
                while let Some((number, sent)) =
                    self.unanswered.front().copied().filter(|(n, _)| *n <= sequence)
                {
                    self.unanswered.pop_front();
                    if number == sequence && lease_ms > 0 {
                        // From when it was sent: the control plane counts from when it was received, which is later.
                        self.lease_end = sent.after(u64::from(lease_ms) * 1_000_000);
                    }
                }
                self.report_held = report;
                if wants_table {
                    MetaMessage::TableOffer(self.table.whole()).write(&mut self.out);
                }
                Ok(())
            }
            MetaMessage::TableDelta(delta) => {
                let mut table = self.table.clone();
                match Arc::make_mut(&mut table).apply(&delta) {
                    Ok(()) => {
                        self.table = table;
                        self.has_news = true;
                        Ok(())
                    }
                    Err(error) => {
                        self.older_refused += u64::from(matches!(error, TableError::Older { .. }));
                        self.forgets_epoch = matches!(error, TableError::Gap { .. });
                        Err(error.into())
                    }
                }
            }
            MetaMessage::Error { code, text, .. } => {
                let label = ErrorCode::from_number(code).map_or("unknown", ErrorCode::label);
                Err(LinkFault::Refused { label, text })
            }
            _ => Err(LinkFault::Unexpected),
        }
    }

    fn beat(&mut self, now: Nanos) {
        self.sequence += 1;
        let (sequence, table_epoch) = (self.sequence, self.table.epoch);
        let message = match self.config.peer {
            MetaPeer::Data(_) => MetaMessage::Heartbeat {
                sequence,
                table_epoch,
                load: self.load,
                ending: self.ending,
                report: self.report,
                reported_epoch: self.reported_epoch,
                slots: (self.report_held != self.report).then(|| self.slots.clone()),
            },
            MetaPeer::Session | MetaPeer::Serving(_) => MetaMessage::Watch { sequence, table_epoch },
        };
        message.write(&mut self.out);
        self.unanswered.push_back((sequence, now));
        self.heartbeat_at = now.after(self.config.heartbeat);
    }

    /// Waits, longer after each failure and never as long as others, before the next process is tried.
    fn fail(&mut self, now: Nanos, jitter: u64) {
        let (shortest, longest) = self.config.retry;
        // All processes are tried once before the waits grow: one of them may well be there.
        let count = self.config.metas.len() as u32;
        let rounds = self.failures / count;
        // The one that leads next may be the last of them: however many there are, it is tried in time.
        let longest = (longest / u64::from(count)).max(shortest);
        let wait = shortest.saturating_mul(1 << rounds.min(20)).min(longest).max(1);
        self.failures = self.failures.saturating_add(1);
        self.state = LinkState::Waiting(now.after(wait / 2 + jitter % (wait / 2 + 1)));
        self.out.clear();
        self.unanswered.clear();
        self.decoder = Decoder::default();
    }
}

#[cfg(test)]
mod tests;
