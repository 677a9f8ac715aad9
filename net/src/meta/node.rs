//! One process of the control plane as a role: frames of data nodes and sessions in, tables out.

use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use crossbeam::channel::{Receiver, Sender};
use slotcast_engine::id::Nanos;

use crate::{
    io::{
        ring::{ConnId, Event, SendOutcome, Sockets, Waker},
        role::Role,
    },
    meta::{
        core::{MetaConfig, MetaCore, MetaCounters, MetaStatus, Output, PeerFault, Phase},
        keeper::{Keeper, KeeperNews, StoreSide, Swap},
        members::PeerId,
        metrics::MetaMetrics,
        store::TableStore,
    },
    wire::{Decoder, ErrorCode, meta::MetaMessage},
};

/// Largest frame that a peer may send: a whole table of the largest cluster.
const PEER_FRAME_BYTES_MAX: usize = 16 << 20;
/// Bytes that may wait for one peer; one that is further behind is closed and gets the whole table when it comes back.
const PEER_OUTPUT_MAX: usize = 32 << 20;
/// Silence after which a peer is closed. Data nodes lose their lease long before.
const PEER_SILENCE_MAX: u64 = 30 * Nanos::SECOND;
/// Time between two looks at what the metrics show.
const SHOW: u64 = Nanos::SECOND;
/// Frames smaller than this are copied together into one write.
const SHARE_BYTES: usize = 2048;
/// Events after which more may be waiting, so that no lease ends before they were looked at.
const EVENTS_MANY: usize = 1024;

/// What the HTTP side asks.
pub enum MetaCommand {
    /// What there is to see.
    Status(Sender<MetaView>),
    /// Empty a node, or use it again.
    Drain {
        /// The node's id.
        node: String,
        /// Whether it is to be emptied.
        on: bool,
        /// Where the answer goes: what is wrong, if anything.
        answer: Sender<Result<(), String>>,
    },
}

/// What a process of the control plane shows.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct MetaView {
    /// The process that leads, if this one knows it and does not lead itself.
    pub leader: Option<String>,
    /// What keeps this process from leading, or from storing.
    pub trouble: Option<String>,
    /// The rest.
    #[serde(flatten)]
    pub status: MetaStatus,
}

struct Conn {
    conn: ConnId,
    peer: PeerId,
    decoder: Decoder,
    out: VecDeque<Rc<[u8]>>,
    out_bytes: usize,
    blocked: bool,
    closing: bool,
    heard: Nanos,
    is_dirty: bool,
}

/// The role.
pub struct MetaNode {
    core: MetaCore,
    store: Option<Box<dyn TableStore>>,
    keeper: Option<Keeper>,
    lead_until: Nanos,
    leader: Option<String>,
    trouble: Option<String>,
    commands: Receiver<MetaCommand>,
    conns: Vec<Option<Conn>>,
    peers: BTreeMap<PeerId, usize>,
    next_peer: u64,
    dirty: Vec<usize>,
    events: usize,
    tick_at: Nanos,
    show_at: Nanos,
    metrics: MetaMetrics,
    counted: MetaCounters,
    on_waker: Box<dyn FnOnce(Waker) + Send>,
    conns_max: usize,
}

impl MetaNode {
    /// A process that asks `store` to lead once it runs. `on_waker` is told how to wake it for a command.
    pub fn new(
        config: MetaConfig,
        conns_max: usize,
        store: Box<dyn TableStore>,
        commands: Receiver<MetaCommand>,
        metrics: MetaMetrics,
        on_waker: Box<dyn FnOnce(Waker) + Send>,
    ) -> Self {
        Self {
            core: MetaCore::new(config),
            store: Some(store),
            keeper: None,
            lead_until: Nanos(0),
            leader: None,
            trouble: None,
            commands,
            conns: Vec::new(),
            peers: BTreeMap::new(),
            next_peer: 0,
            dirty: Vec::new(),
            events: 0,
            tick_at: Nanos(0),
            show_at: Nanos(0),
            metrics,
            counted: MetaCounters::default(),
            on_waker,
            conns_max,
        }
    }

    /// The same with a store that the caller drives, instead of a thread: in virtual time, for example.
    pub fn by_hand(
        config: MetaConfig,
        store: Box<dyn TableStore>,
        metrics: MetaMetrics,
    ) -> (Self, StoreSide, Sender<MetaCommand>) {
        let (ask, commands) = crossbeam::channel::bounded(64);
        let (keeper, side) = Keeper::by_hand(store);
        let nowhere = Box::new(crate::meta::store::NoStore::default());
        let mut node = Self::new(config, usize::MAX, nowhere, commands, metrics, Box::new(|_| {}));
        (node.store, node.keeper) = (None, Some(keeper));
        (node, side, ask)
    }

    /// The state machine, to look at.
    pub fn core(&self) -> &MetaCore {
        &self.core
    }

    fn accept(&mut self, conn: ConnId, now: Nanos) {
        let index = conn.index();
        if self.conns.len() <= index {
            self.conns.resize_with(index + 1, || None);
        }
        self.next_peer += 1;
        let peer = PeerId(self.next_peer);
        self.conns[index] = Some(Conn {
            conn,
            peer,
            decoder: Decoder::default(),
            out: VecDeque::new(),
            out_bytes: 0,
            blocked: false,
            closing: false,
            heard: now,
            is_dirty: false,
        });
        self.peers.insert(peer, index);
        self.metrics.connections.set(self.peers.len() as i64);
        if self.peers.len() > self.conns_max {
            self.refuse(index, ErrorCode::TooManyConnections, "as many peers as this process takes");
        }
    }

    fn receive(&mut self, conn: ConnId, bytes: &[u8], now: Nanos) {
        let index = conn.index();
        let Some(Some(known)) = self.conns.get_mut(index) else { return };
        if known.conn != conn || known.closing {
            return;
        }
        known.heard = now;
        let peer = known.peer;
        let mut decoder = std::mem::take(&mut known.decoder);
        let result = decoder.feed(bytes, PEER_FRAME_BYTES_MAX, |frame| -> Result<(), PeerFault> {
            let message = MetaMessage::read(frame)?;
            self.core.handle_message(peer, message, now)
        });
        match result {
            Ok(()) => {
                if let Some(Some(known)) = self.conns.get_mut(index) {
                    known.decoder = decoder;
                }
            }
            Err(fault) => self.refuse(index, fault.code, &fault.text),
        }
    }

    /// Tells a peer why, as the last thing it hears.
    fn refuse(&mut self, index: usize, code: ErrorCode, text: &str) {
        let Some(Some(known)) = self.conns.get_mut(index) else { return };
        tracing::warn!(peer = known.peer.0, error = text, "closing a peer of the control plane");
        let mut frame = Vec::new();
        let text = text.to_owned();
        MetaMessage::Error { code: code as u16, retry_after_ms: 0, text }.write(&mut frame);
        known.out_bytes += frame.len();
        known.out.push_back(frame.into());
        known.closing = true;
        self.metrics.peer_errors.get_or_create(&code.into()).inc();
        self.core.handle_closed(known.peer);
        self.mark_dirty(index);
    }

    fn close(&mut self, conn: ConnId) {
        let index = conn.index();
        if let Some(slot) = self.conns.get_mut(index)
            && let Some(known) = slot.take_if(|known| known.conn == conn)
        {
            self.peers.remove(&known.peer);
            self.core.handle_closed(known.peer);
            self.metrics.connections.set(self.peers.len() as i64);
        }
    }

    fn mark_dirty(&mut self, index: usize) {
        if let Some(Some(conn)) = self.conns.get_mut(index)
            && !conn.is_dirty
        {
            conn.is_dirty = true;
            self.dirty.push(index);
        }
    }

    fn take_news(&mut self, now: Nanos) {
        while let Some(news) = self.keeper.as_ref().and_then(Keeper::poll) {
            match news {
                KeeperNews::Elected(table, until) => {
                    (self.leader, self.trouble) = (None, None);
                    match self.core.handle_elected(table, now) {
                        Ok(()) => {
                            tracing::info!(
                                epoch = self.core.table().epoch,
                                "this process leads the control plane"
                            );
                            self.lead_until = until;
                        }
                        Err(error) => {
                            tracing::error!(%error, "cannot lead");
                            self.trouble = Some(error);
                            if let Some(keeper) = self.keeper.as_mut() {
                                keeper.retire();
                            }
                        }
                    }
                }
                KeeperNews::Renewed(until) => {
                    self.lead_until = until;
                    self.trouble = self.trouble.take_if(|_| self.core.phase() == Phase::Standby);
                }
                KeeperNews::Deposed(leader) => {
                    if leader.is_some() {
                        self.trouble = None;
                    }
                    self.leader = leader;
                    self.core.handle_deposed(now);
                }
                KeeperNews::Stored(epoch) => self.core.handle_stored(epoch, now),
                KeeperNews::Failed { epoch, holds, reason } => {
                    tracing::warn!(epoch, reason, "the store did not take the table");
                    self.core.handle_store_failed(epoch, holds, &reason, now);
                }
                KeeperNews::Trouble(reason) => {
                    if self.trouble.as_ref() != Some(&reason) {
                        tracing::warn!(reason, "the store of the slot table does not work");
                    }
                    self.trouble = Some(reason);
                }
            }
        }
        if self.core.phase() != Phase::Standby && now >= self.lead_until {
            tracing::warn!("the lead has run out: the store has not renewed it in time");
            if let Some(keeper) = &self.keeper {
                keeper.give_up();
            }
            self.core.handle_deposed(now);
        }
    }

    fn take_commands(&mut self, now: Nanos) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                MetaCommand::Status(answer) => {
                    let (leader, trouble) = (self.leader.clone(), self.trouble.clone());
                    let _ = answer.try_send(MetaView { leader, trouble, status: self.core.status(now) });
                }
                MetaCommand::Drain { node, on, answer } => {
                    let _ = answer.try_send(self.core.handle_drain(&node, on));
                }
            }
        }
    }

    fn take_outputs(&mut self, now: Nanos) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Send(peer, frame) => {
                    let Some(index) = self.peers.get(&peer).copied() else { continue };
                    let Some(Some(conn)) = self.conns.get_mut(index) else { continue };
                    conn.out_bytes += frame.len();
                    conn.out.push_back(frame);
                    if conn.out_bytes > PEER_OUTPUT_MAX {
                        conn.out.clear();
                        conn.out_bytes = 0;
                        self.refuse(index, ErrorCode::SlowReader, "too much waits for this peer to read");
                    }
                    self.mark_dirty(index);
                }
                Output::Close(peer, code, text) => {
                    if let Some(index) = self.peers.get(&peer).copied() {
                        self.refuse(index, code, &text);
                    }
                }
                Output::Store { expected, table } => {
                    let epoch = table.epoch;
                    let keeper = self.keeper.as_ref();
                    if !keeper.is_some_and(|keeper| keeper.swap(Swap { expected, table })) {
                        let reason = "the store is still busy with the table before";
                        self.core.handle_store_failed(epoch, None, reason, now);
                    }
                }
            }
        }
    }

    fn write(&mut self, sockets: &mut dyn Sockets) {
        for index in std::mem::take(&mut self.dirty) {
            let Some(Some(conn)) = self.conns.get_mut(index) else { continue };
            conn.is_dirty = false;
            while !conn.blocked
                && let Some(frame) = conn.out.front()
            {
                let outcome = if frame.len() < SHARE_BYTES {
                    sockets.send(conn.conn, &[frame])
                } else {
                    sockets.send_shared(conn.conn, frame)
                };
                match outcome {
                    SendOutcome::Queued => {
                        conn.out_bytes -= frame.len();
                        conn.out.pop_front();
                    }
                    SendOutcome::Busy => conn.blocked = true,
                    SendOutcome::Gone => break,
                }
            }
            if conn.closing && conn.out.is_empty() {
                sockets.close(conn.conn, false);
            }
        }
    }

    fn sweep(&mut self, now: Nanos, sockets: &mut dyn Sockets) {
        for conn in self.conns.iter().flatten() {
            if now.since(conn.heard) >= PEER_SILENCE_MAX {
                sockets.close(conn.conn, true);
            }
        }
    }
}

impl Role for MetaNode {
    fn started(&mut self, waker: Waker) {
        let on_waker = std::mem::replace(&mut self.on_waker, Box::new(|_| {}));
        on_waker(waker.clone());
        if let Some(store) = self.store.take() {
            match Keeper::start(store, waker) {
                Ok(keeper) => self.keeper = Some(keeper),
                Err(error) => self.trouble = Some(format!("cannot start the thread of the store: {error}")),
            }
        }
    }

    fn finish(&mut self) {
        self.keeper = None;
    }

    fn handle(&mut self, event: Event<'_>, now: Nanos) {
        self.events += 1;
        match event {
            Event::Accepted { conn, .. } => self.accept(conn, now),
            Event::Received { conn, bytes } => self.receive(conn, bytes, now),
            Event::Writable { conn } => {
                let index = conn.index();
                if let Some(Some(known)) = self.conns.get_mut(index)
                    && known.conn == conn
                {
                    known.blocked = false;
                    self.mark_dirty(index);
                }
            }
            Event::Closed { conn, .. } => self.close(conn),
            Event::Connected { .. } => {}
        }
    }

    fn turn(&mut self, now: Nanos, sockets: &mut dyn Sockets) -> bool {
        self.take_news(now);
        self.take_commands(now);
        // What has arrived is handled before a lease can end.
        let more = std::mem::take(&mut self.events) >= EVENTS_MANY;
        let is_due = self.core.round_due().is_some_and(|due| now >= due);
        if (now >= self.tick_at || is_due) && !more {
            self.core.tick(now);
            self.tick_at = self.core.wake_at(now);
        }
        self.take_outputs(now);
        self.write(sockets);
        if now >= self.show_at {
            self.metrics.show(&self.core.status(now));
            self.show_at = now.after(SHOW);
            self.sweep(now, sockets);
        }
        let counted = self.core.counters();
        self.metrics.count(&self.counted, &counted);
        self.counted = counted;
        more
    }

    fn wake_at(&self) -> Nanos {
        self.core.round_due().map_or(self.tick_at, |due| due.min(self.tick_at))
    }
}
