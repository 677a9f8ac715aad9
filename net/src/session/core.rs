//! The session role: takes events apart and hands them to the parts that decide.

use std::collections::{BTreeMap, VecDeque};

use slotcast_engine::id::{ClientId, DataId, DatumKey, Nanos, Revision, mix64};

use crate::{
    io::{
        ring::{CloseReason, ConnId, Event, SendOutcome, SharedFrame, Sockets},
        role::Role,
    },
    session::{
        admission::Admission,
        cache::Cache,
        client::Client,
        config::SessionConfig,
        departures::Departures,
        following::Following,
        heartbeats::Answer,
        link::{LinkState, SEQUENCE_MAX},
        metrics::{LinkLabel, SessionMetrics},
        moves::Deferred,
        news::News,
        operations::Insight,
        persistent::Persistents,
        push::{Frames, Round},
        push_stop::PushStop,
        registrations::Registrations,
        routes::{Links, SlotRoutes},
    },
    wire::{
        ErrorCode, FrameError, Message,
        header::{CLIENT_FRAME_BYTES_MAX, FRAME_BYTES_MAX, Kind, PROTOCOL},
    },
};

/// Longest time between two looks at the timers.
const TICK: u64 = Nanos::SECOND / 20;
/// Link output above this is handed over instead of copied.
const SHARE_BYTES: usize = 256 * 1024;

/// Who is at the other end of a connection.
pub(super) enum Peer {
    /// Nobody.
    None,
    /// A client.
    Client(Box<Client>),
    /// The shard behind the link with this number.
    Link(usize, ConnId),
    /// The control plane.
    Meta(ConnId),
}

/// One core's share of a session process.
pub struct Session {
    pub(super) config: SessionConfig,
    pub(super) peers: Vec<Peer>,
    pub(super) links: Links,
    pub(super) routes: SlotRoutes,
    /// The slot table that is followed, unless routes are configured.
    pub(super) following: Option<Following>,
    pub(super) deferred: Deferred,
    pub(super) cache: Cache,
    pub(super) registrations: Registrations,
    pub(super) persistents: Persistents,
    pub(super) published_names: BTreeMap<DatumKey, (DataId, u32)>,
    pub(super) departures: Departures,
    admission: Admission,
    pub(super) metrics: SessionMetrics,
    /// Clients that something is due to.
    pub(super) news: News,
    /// Nobody is written to before.
    pub(super) next_write: Nanos,
    pub(super) round: Round,
    pub(super) clients: usize,
    pub(super) slow: Vec<u32>,
    pub(super) idle: VecDeque<(Nanos, u32)>,
    pub(super) frames: Frames,
    pub(super) reached: Vec<(u32, Revision)>,
    /// When the oldest diff came that a round since then has not carried to everybody.
    pub(super) diff_received_at: Option<Nanos>,
    /// The same for diffs from before this round.
    pub(super) round_carries: Option<Nanos>,
    pub(super) insight: Insight,
    pub(super) push_stop: PushStop,
    next_tick: Nanos,
    sweep: usize,
    finished: bool,
}

impl Session {
    /// A session core without clients.
    pub fn new(config: SessionConfig, metrics: SessionMetrics) -> Self {
        let following = config.meta.clone().map(|meta| Following::new(meta, config.id.0));
        let (links, routes) = match &config.meta {
            Some(meta) => (Links::default(), SlotRoutes::unknown(meta.slot_count)),
            None => (Links::fixed(&config.routes.shards), SlotRoutes::fixed(&config.routes)),
        };
        Self {
            cache: Cache::new(config.history_bytes_max),
            departures: Departures::new(config.client_disconnect_grace, config.session_lease),
            admission: Admission::new(config.accept_rate, config.accept_burst),
            peers: Vec::new(),
            links,
            routes,
            following,
            deferred: Deferred::default(),
            registrations: Registrations::default(),
            persistents: Persistents::default(),
            published_names: BTreeMap::new(),
            metrics,
            news: News::default(),
            next_write: Nanos(0),
            round: Round::default(),
            clients: 0,
            slow: Vec::new(),
            idle: VecDeque::new(),
            frames: Frames::default(),
            reached: Vec::new(),
            diff_received_at: None,
            round_carries: None,
            insight: Insight::new(config.id.0),
            push_stop: PushStop::default(),
            next_tick: Nanos(0),
            sweep: 0,
            finished: false,
            config,
        }
    }

    /// Ends the role after the next turn.
    pub fn stop(&mut self) {
        self.finished = true;
    }

    /// Whether every link to a leader is up: every link where routes are configured, and nothing before there is a slot
    /// table where one is followed.
    pub fn is_ready(&self) -> bool {
        match &self.following {
            None => self.links.iter().all(|link| link.is_up()),
            Some(_) => {
                self.table_epoch() > 0 && self.links.iter().all(|link| link.is_up() || link.slots_led == 0)
            }
        }
    }

    /// What this core has of a data id, to look at: the leader epoch that its slot table names for the slot (0 where routes
    /// are configured), and the revision that its list is complete up to; zero: it has no list yet. `None`: nobody here wants it.
    pub fn held(&self, id: &DataId) -> Option<(u32, Revision)> {
        let datum = self.cache.get(self.cache.find(id.key())?)?;
        Some((self.routes.of(datum.slot).epoch, datum.revision))
    }

    pub(super) fn client(&mut self, index: usize) -> Option<&mut Client> {
        match self.peers.get_mut(index) {
            Some(Peer::Client(client)) => Some(client),
            _ => None,
        }
    }

    /// Something is due to a client.
    pub(super) fn mark_dirty(&mut self, index: u32) {
        self.news.mark(index);
    }

    /// Closes a client for its own fault, after telling it.
    pub(super) fn refuse(&mut self, index: usize, code: ErrorCode, text: &str, retry_after_ms: u32) {
        if let Some(client) = self.client(index) {
            let first = client.closing.is_none();
            client.refuse(code, text, retry_after_ms);
            if first {
                self.metrics.client_errors.get_or_create(&code.into()).inc();
            }
        }
        self.mark_dirty(index as u32);
    }

    pub(super) fn place(&mut self, conn: ConnId, peer: Peer) {
        let index = conn.index();
        if self.peers.len() <= index {
            self.peers.resize_with(index + 1, || Peer::None);
            self.news.grow(index + 1);
        }
        self.peers[index] = peer;
    }

    fn accept(&mut self, conn: ConnId, now: Nanos) {
        let mut client = Client::new(conn, now);
        let refusal = if self.clients >= self.config.clients_max {
            // Spread the next attempts, so that they do not come back together.
            let hint = 1000 + (conn.index() as u32 * 7919) % 4000;
            Some((ErrorCode::TooManyConnections, "as many clients as this session takes", hint))
        } else {
            let pause = self.admission.admit(mix64(conn.index() as u64), now).err();
            let hint = |pause: u64| pause.div_ceil(Nanos::SECOND / 1000) as u32;
            pause.map(|pause| {
                (ErrorCode::AcceptRate, "connections come faster than they are let in", hint(pause))
            })
        };
        match refusal {
            Some((code, text, retry_after_ms)) => {
                client.refuse(code, text, retry_after_ms);
                self.metrics.client_errors.get_or_create(&code.into()).inc();
            }
            None => {
                self.metrics.accepted.inc();
            }
        }
        self.place(conn, Peer::Client(Box::new(client)));
        self.clients += 1;
        self.departures.arrived(self.clients, now);
        self.metrics.clients.set(self.clients as i64);
        if refusal.is_some() {
            self.news.mark_first(conn.index() as u32);
        }
    }

    fn receive(&mut self, conn: ConnId, bytes: &[u8], now: Nanos) {
        let index = conn.index();
        match self.peers.get_mut(index) {
            Some(Peer::Client(client)) if client.conn == conn => {
                if client.closing.is_some() {
                    return;
                }
                client.heard_at = now;
                let mut decoder = std::mem::take(&mut client.decoder);
                let result = decoder.feed(bytes, CLIENT_FRAME_BYTES_MAX, |frame| {
                    let message = Message::read(frame)?;
                    self.handle_client(index, message, now)
                });
                if let Some(client) = self.client(index) {
                    client.decoder = decoder;
                }
                if let Err(fault) = result {
                    let text = fault.to_string();
                    tracing::info!(error = %text, "closing a client");
                    self.refuse(index, fault.code(), &text, 0);
                }
                self.bound_answers(index);
            }
            Some(Peer::Link(shard, link_conn)) if *link_conn == conn => {
                let shard = *shard;
                self.links[shard].unanswered_since = None;
                let mut decoder = std::mem::take(&mut self.links[shard].decoder);
                let result = decoder.feed(bytes, FRAME_BYTES_MAX, |frame| {
                    if frame.kind == Kind::TableDelta && self.following.is_some() {
                        return Ok(self.hear_table(shard, frame)?);
                    }
                    let message = Message::read(frame)?;
                    self.handle_link(shard, message, now)
                });
                self.links[shard].decoder = decoder;
                if let Err(error) = result {
                    let node = self.links[shard].addr;
                    tracing::error!(shard, %node, %error, "closing a link for a fault of the data node");
                    self.metrics.link_faults.inc();
                    self.links[shard].state = LinkState::Down(now);
                }
            }
            Some(Peer::Meta(meta_conn)) if *meta_conn == conn => self.meta_received(bytes),
            _ => {}
        }
    }

    fn handle_client(&mut self, index: usize, message: Message<'_>, now: Nanos) -> Result<(), ClientFault> {
        self.metrics.frames_received.inc();
        let id = self.client(index).and_then(|client| client.id);
        self.insight.requested(id, &message);
        let Some(client) = self.client(index) else { return Ok(()) };
        if let Message::Hello { protocol, client: id } = message {
            if protocol != PROTOCOL {
                return Err(ClientFault::Protocol(protocol));
            }
            if client.id.is_some() {
                return Err(ClientFault::SecondHello);
            }
            if id == ClientId(0) {
                return Err(ClientFault::NoClientId);
            }
            client.id = Some(id);
            let welcome = Message::Welcome {
                session: self.config.id,
                publishers_max: self.config.publishers_max,
                subscriptions_max: self.config.subscriptions_max,
            };
            if let Some(client) = self.client(index) {
                welcome.write(&mut client.out);
            }
            self.news.mark_first(index as u32);
            return Ok(());
        }
        let id = client.id.ok_or(ClientFault::BeforeHello)?;
        match message {
            Message::Write { sequence, entries } => self.publish(index, id, sequence, entries, now)?,
            Message::Subscribe(items) => self.subscribe(index, items),
            Message::Unsubscribe(datums) => self.unsubscribe(index, &datums, now),
            Message::Goodbye => {
                client.said_goodbye = true;
                client.closing = Some(ErrorCode::Draining);
                self.mark_dirty(index as u32);
            }
            Message::Ping(nonce) => {
                Message::Pong(nonce).write(&mut client.out);
                self.mark_dirty(index as u32);
            }
            Message::Pong(_) => {}
            _ => return Err(ClientFault::Unexpected),
        }
        Ok(())
    }

    fn handle_link(&mut self, shard: usize, message: Message<'_>, now: Nanos) -> Result<(), LinkFault> {
        let greets = self.links[shard].state == LinkState::Greeting;
        match message {
            Message::LinkWelcome { .. } if self.links[shard].is_up() => return Err(LinkFault::SecondWelcome),
            // The connection is given up already.
            Message::LinkWelcome { .. } if !greets => {}
            Message::LinkWelcome { last_sequence, .. } if last_sequence > SEQUENCE_MAX => {
                return Err(LinkFault::Sequence(last_sequence));
            }
            Message::LinkWelcome { run, last_sequence, epoch, .. } => {
                let same_run = self.links[shard].welcome(run, last_sequence, epoch);
                if !same_run {
                    self.routes.unvouch(shard);
                }
                tracing::info!(shard, epoch, same_run, "linked to a data node");
                self.replay(shard);
                // Its answer says who is accounted for, and comes before the first list.
                self.heartbeat(shard, now);
                self.ask_all(shard);
                self.observe_links();
            }
            Message::Error { code, text, .. } => {
                let code_label = ErrorCode::from_number(code).map_or("unknown", ErrorCode::label);
                tracing::error!(shard, code = code_label, text, "the data node refused this session");
                self.metrics.link_faults.inc();
                if code == ErrorCode::SessionEnded as u16 {
                    // Refused for ever under this incarnation: the process has to come back as another one.
                    self.finished = true;
                }
            }
            _ if greets => return Err(LinkFault::BeforeWelcome),
            Message::WriteAck { sequence, outcomes } => self.decided(shard, sequence, outcomes, now),
            Message::Diff(diff) => self.take_diff(shard, &diff, now),
            Message::HeartbeatAck { mark, confirmed, unsettled, settled, stale, differs, .. } => {
                let answer = Answer { mark, confirmed, unsettled, settled, stale, differs };
                self.heartbeat_answered(shard, answer, now);
            }
            Message::DatumDigests(slot, digests) => self.repair(shard, slot, digests, now),
            Message::SubscribeRefused { datum, code } => self.interest_refused(shard, datum, code, now),
            Message::Pong(question) => self.links[shard].answered = question,
            _ => tracing::warn!(shard, "a data node sent a message that does not belong here"),
        }
        Ok(())
    }

    fn close(&mut self, conn: ConnId, reason: CloseReason, now: Nanos) {
        let index = conn.index();
        match self.peers.get(index) {
            Some(Peer::Client(client)) if client.conn == conn => self.client_gone(index, reason, now),
            Some(Peer::Link(shard, link_conn)) if *link_conn == conn => {
                let shard = *shard;
                self.peers[index] = Peer::None;
                if self.following.is_some() && self.links[shard].slots_led == 0 {
                    // A node that is lost stays in the table for a while.
                    tracing::debug!(shard, ?reason, "a link to a data node that leads nothing is down");
                } else {
                    tracing::warn!(shard, ?reason, "a link to a data node is down");
                }
                self.links[shard].lose(now);
                self.observe_links();
            }
            Some(Peer::Meta(meta_conn)) if *meta_conn == conn => {
                self.peers[index] = Peer::None;
                self.meta_closed(now);
            }
            _ => {}
        }
    }

    fn client_gone(&mut self, index: usize, reason: CloseReason, now: Nanos) {
        let Peer::Client(client) = std::mem::replace(&mut self.peers[index], Peer::None) else { return };
        self.drop_subscriptions(index as u32, &client, now);
        for next in self.persistents.drop_client(client.conn) {
            self.forward_persistent(next);
        }
        self.clients -= 1;
        self.metrics.clients.set(self.clients as i64);
        if client.said_goodbye {
            self.remove_published(client.conn, &client.published);
            return;
        }
        let evicted = reason == CloseReason::Local;
        if !evicted {
            self.metrics.client_drops.inc();
        }
        if client.id.is_none() {
            // It never introduced itself, so nobody has left.
            return;
        }
        let storm = self.departures.add(client.conn, client.published, evicted, self.clients, now);
        if storm {
            self.metrics.drop_storms.inc();
            tracing::warn!(
                clients = self.clients,
                "more than a tenth of the clients dropped within one grace: their publishers stay for the session lease"
            );
        }
        self.metrics.departures.set(self.departures.len() as i64);
    }

    fn connect_links(&mut self, now: Nanos, sockets: &mut dyn Sockets) {
        for shard in 0..self.links.places() {
            let Some(link) = self.links.get_mut(shard) else { continue };
            link.greet_again(now);
            link.give_up_silent(self.config.session_lease / 2, now);
            if let (LinkState::Down(at), Some(conn)) = (link.state, link.conn) {
                // Its stream is lost, the socket not yet: Closed follows and sets the time of the next try.
                if at <= now {
                    sockets.close(conn, true);
                    link.state = LinkState::Connecting;
                }
                continue;
            }
            if !matches!(link.state, LinkState::Down(at) if at <= now) {
                continue;
            }
            match sockets.connect(link.addr, None) {
                Ok(conn) => {
                    link.conn = Some(conn);
                    link.state = LinkState::Connecting;
                    link.unanswered_since = Some(now);
                    self.place(conn, Peer::Link(shard, conn));
                }
                Err(error) => {
                    tracing::warn!(shard, %error, "cannot connect to a data node");
                    link.lose(now);
                }
            }
        }
    }

    fn connected(&mut self, conn: ConnId, now: Nanos) {
        match self.peers.get(conn.index()) {
            Some(Peer::Link(shard, link_conn)) if *link_conn == conn => {
                let (id, slot_count) = (self.config.id, self.routes.slot_count());
                self.links[*shard].greet(id, slot_count);
            }
            Some(Peer::Meta(meta_conn)) if *meta_conn == conn => self.meta_connected(now),
            _ => {}
        }
    }

    /// Links and routes have changed.
    pub(super) fn observe_links(&self) {
        let mut by_state = [0; LinkState::LABELS.len()];
        self.links.iter().for_each(|link| by_state[link.state.index()] += 1);
        for (label, count) in LinkState::LABELS.into_iter().zip(by_state) {
            self.metrics.links.get_or_create(&LinkLabel { state: label }).set(count);
        }
        self.metrics.links_up.set(by_state[LinkState::Up.index()]);
        let down = self.links.iter().filter(|link| !link.is_up() && link.slots_led > 0).count();
        self.metrics.leader_links_down.set(down as i64);
        self.metrics.leaderless_slots.set(self.routes.leaderless() as i64);
        self.metrics.ready.set(i64::from(self.is_ready()));
    }

    fn send_links(&mut self, now: Nanos, sockets: &mut dyn Sockets) {
        for shard in 0..self.links.places() {
            self.heartbeat(shard, now);
            let Some(link) = self.links.get_mut(shard) else { continue };
            link.close_frames();
            let Some(conn) = link.conn else { continue };
            if link.out.is_empty() {
                continue;
            }
            let outcome = if link.out.len() >= SHARE_BYTES {
                sockets.send_shared(conn, &SharedFrame::from(link.out.as_slice()))
            } else {
                sockets.send(conn, &[&link.out])
            };
            if outcome != SendOutcome::Busy {
                link.out.clear();
                link.out.shrink_to(SHARE_BYTES);
            }
        }
    }

    /// Looks at some clients per tick: who has been silent or has taken nothing for too long.
    fn sweep_clients(&mut self, now: Nanos, sockets: &mut dyn Sockets) {
        let share = (self.peers.len() / 20).max(64);
        for _ in 0..share.min(self.peers.len()) {
            self.sweep = (self.sweep + 1) % self.peers.len();
            let index = self.sweep;
            let timeout = self.config.client_timeout;
            let Some(client) = self.client(index) else { continue };
            if now.since(client.heard_at) > timeout {
                // A time-out is a drop like any other: its publishers get the grace.
                let conn = client.conn;
                self.metrics.client_timeouts.inc();
                sockets.close(conn, true);
                self.client_gone(index, CloseReason::Error(110), now);
            }
        }
        self.sweep_slow(now, sockets);
    }

    fn tick(&mut self, now: Nanos, sockets: &mut dyn Sockets) {
        self.next_tick = now.after(TICK);
        self.insight.pass(now);
        if !self.peers.is_empty() {
            self.sweep_clients(now, sockets);
        }
        for departure in self.departures.take_due(now) {
            self.remove_published(departure.conn, &departure.published);
        }
        self.metrics.departures.set(self.departures.len() as i64);
        self.metrics.storm.set(i64::from(self.departures.is_storm()));
        self.drop_idle_datums(now);
        self.metrics.publishers.set(self.registrations.live() as i64);
        self.metrics.persistent_undecided.set(self.persistents.len() as i64);
        self.metrics.datums.set(self.cache.len() as i64);
        self.metrics.merged_diffs.inc_by(std::mem::take(&mut self.cache.merges));
        self.metrics.contents_kept.inc_by(std::mem::take(&mut self.cache.kept));
        self.metrics.deferred.set(self.deferred.len() as i64);
        self.observe_links();
    }

    /// When a link, the control plane or something deferred wants a turn.
    fn following_wakes_at(&self) -> Nanos {
        let Some(following) = &self.following else { return Nanos(u64::MAX) };
        let beats = self.links.iter().filter(|link| link.is_up()).map(|link| link.next_heartbeat);
        beats.fold(following.link.wake_at().min(self.deferred.wake_at()), Nanos::min)
    }
}

impl Role for Session {
    fn handle(&mut self, event: Event<'_>, now: Nanos) {
        match event {
            Event::Accepted { conn, .. } => self.accept(conn, now),
            Event::Connected { conn } => self.connected(conn, now),
            Event::Received { conn, bytes } => self.receive(conn, bytes, now),
            Event::Writable { conn } => self.writable(conn),
            Event::Closed { conn, reason } => self.close(conn, reason, now),
        }
    }

    fn turn(&mut self, now: Nanos, sockets: &mut dyn Sockets) -> bool {
        self.follow(now, sockets);
        self.connect_links(now, sockets);
        if now >= self.next_tick {
            self.tick(now, sockets);
        }
        self.retry_deferred(now);
        self.send_links(now, sockets);
        let asked = self.operate(now);
        self.write_clients(now, sockets) || asked
    }

    fn wake_at(&self) -> Nanos {
        let due = self.next_tick.min(self.following_wakes_at());
        if self.news.is_empty() { due } else { due.min(self.next_write) }
    }

    fn is_finished(&self) -> bool {
        self.finished
    }
}

/// Why a link is closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkFault {
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("a second welcome on one link")]
    SecondWelcome,
    #[error("the first message has to be a welcome or an error")]
    BeforeWelcome,
    #[error("the welcome names write sequence {0}, which no session has reached")]
    Sequence(u64),
}

/// Why a client is closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientFault {
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("write frame: {0}")]
    Entry(#[from] slotcast_engine::batch::BatchError),
    #[error("protocol version {0} is not spoken here, {PROTOCOL} is")]
    Protocol(u16),
    #[error("the first message has to be a hello")]
    BeforeHello,
    #[error("a second hello on one connection")]
    SecondHello,
    #[error("client id 0 is nobody's: choose another one")]
    NoClientId,
    #[error("a message that no client sends")]
    Unexpected,
}

impl ClientFault {
    fn code(&self) -> ErrorCode {
        match self {
            ClientFault::Frame(_) | ClientFault::Entry(_) => ErrorCode::Frame,
            ClientFault::Protocol(_) => ErrorCode::ProtocolVersion,
            ClientFault::BeforeHello
            | ClientFault::SecondHello
            | ClientFault::NoClientId
            | ClientFault::Unexpected => ErrorCode::Unexpected,
        }
    }
}
