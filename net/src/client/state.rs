//! The client as a state machine: what it published and what it holds, and how both survive a lost connection.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
};

use slotcast_engine::{
    batch::{Change, ChangeKind, Durability, write_change, write_name, write_put},
    diff::Diff,
    error::Refusal,
    id::{ClientId, DataId, DatumKey, Nanos, RegisterId, Revision, SessionId, Version, mix64},
    record::{Encoder, Instance, Record, RecordError},
};

use crate::{
    client::{persistent::Persistents, subscription::Subscribed},
    io::{
        ring::{ConnId, Event, SendOutcome, Sockets},
        role::Role,
    },
    wire::{
        Decoder, ErrorCode, FrameError, Message,
        header::{FRAME_BYTES_MAX, PROTOCOL},
        message::{Outcomes, SubscribeItem},
    },
};

/// First and longest pause before the next connect. It grows when all sessions have been tried.
const RETRY: (u64, u64) = (Nanos::SECOND / 20, 5 * Nanos::SECOND);
/// Time between two pings.
const PING_INTERVAL: u64 = 20 * Nanos::SECOND;
/// Pings without an answer for this long end the connection.
const SILENCE_MAX: u64 = 60 * Nanos::SECOND;
/// A session that has not said welcome for this long after the connect began is given up.
const CONNECT_MAX: u64 = 10 * Nanos::SECOND;
/// The same for one that does not even take the connection, where there are others: its machine may be gone.
const DIAL_MAX: u64 = 3 * Nanos::SECOND;
/// Bytes waiting for the socket above which nothing more is written into it for now.
const OUT_BYTES_MAX: usize = 1024 * 1024;
/// Updates that may wait for the application; beyond, a data id gets one snapshot when there is room.
pub(super) const UPDATES_MAX: usize = 1024;

/// What a client is told at its start.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The sessions; one is used at a time, and when it fails the next. Which is tried first depends on the identity, so that
    /// clients with one list spread over it.
    pub sessions: Vec<SocketAddr>,
    /// Who this is; the same number over all connections of one process. 0: chosen at the start.
    pub client: ClientId,
}

impl ClientConfig {
    /// A client of these sessions with an identity of its own.
    pub fn new(sessions: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self { sessions: sessions.into_iter().collect(), client: ClientId(0) }
    }
}

/// A registration of this client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Registration {
    /// The data id.
    pub datum: DatumKey,
    /// Its number within the data id.
    pub register: RegisterId,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// The whole list of a data id, complete at `revision`.
    Snapshot {
        /// The data id.
        id: DataId,
        /// Position in the slot's history.
        revision: Revision,
        /// All instances.
        instances: Vec<(RegisterId, Instance)>,
    },
    /// What changed in the list since the update before.
    Diff {
        /// The data id.
        id: DataId,
        /// Position in the slot's history.
        revision: Revision,
        /// New or changed instances.
        changed: Vec<(RegisterId, Instance)>,
        /// Instances that are gone.
        removed: Vec<RegisterId>,
    },
    /// A publish or a removal is in effect from `revision` on.
    Acknowledged {
        /// Which registration.
        registration: Registration,
        /// The slot's revision that contains it.
        revision: Revision,
    },
    /// A publish or a removal was refused.
    Refused {
        /// Which registration.
        registration: Registration,
        /// Why.
        refusal: Refusal,
    },
    /// A write of a persistent registration cannot be made durable now. Subscribers may see it all the same. The client sends
    /// it again until it is acknowledged or refused; this is told once.
    NotDurable {
        /// Which registration.
        registration: Registration,
        /// Why.
        refusal: Refusal,
    },
    /// A subscription was refused.
    SubscriptionRefused {
        /// The data id.
        id: DataId,
        /// Why.
        refusal: Refusal,
    },
    /// Connected to a session.
    Connected(SessionId),
    /// The connection is gone; the client tries again.
    Disconnected(String),
}

struct Published {
    id: DataId,
    record: Vec<u8>,
    version: Version,
    removing: bool,
    /// This version is in effect by way of the connection that its attach count names.
    acknowledged: bool,
    /// The application knows that this version is in effect.
    told: bool,
    /// The attach count of the connection over which a put was last sent.
    put_over: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Link {
    Down(Nanos),
    Connecting(ConnId),
    Greeting(ConnId),
    Up(ConnId),
}

/// One client.
pub struct ClientState {
    id: ClientId,
    sessions: Vec<SocketAddr>,
    next_session: usize,
    link: Link,
    /// Attempts since a session last said welcome.
    failures: u32,
    /// How long the session asked to wait before the next connect; zero: it did not say.
    asked_pause: u64,
    attach: u32,
    sequence: u64,
    registers: u64,
    /// Version numbers are never used again, also not by a registration that was removed in between.
    versions: u64,
    published: BTreeMap<Registration, Published>,
    persistents: Persistents,
    in_flight: VecDeque<(u64, Vec<(Registration, Version)>)>,
    subscribed: BTreeMap<DatumKey, Subscribed>,
    decoder: Decoder,
    out: Vec<u8>,
    close: Option<String>,
    heard_at: Nanos,
    connecting_since: Nanos,
    next_ping: Nanos,
    updates: VecDeque<Update>,
    encoder: Encoder,
    goodbye: bool,
    finished: bool,
    refused_frames: u64,
}

impl ClientState {
    /// A client that is not connected yet. `seed` makes its registration numbers its own.
    pub fn new(config: &ClientConfig, seed: u64) -> Self {
        let id = if config.client.0 == 0 { ClientId(mix64(seed) | 1) } else { config.client };
        Self {
            id,
            sessions: config.sessions.clone(),
            next_session: (mix64(id.0) % config.sessions.len().max(1) as u64) as usize,
            link: Link::Down(Nanos(0)),
            failures: 0,
            asked_pause: 0,
            attach: 0,
            sequence: 0,
            registers: mix64(id.0 ^ seed),
            versions: 0,
            published: BTreeMap::new(),
            persistents: Persistents::default(),
            in_flight: VecDeque::new(),
            subscribed: BTreeMap::new(),
            decoder: Decoder::default(),
            out: Vec::new(),
            close: None,
            heard_at: Nanos(0),
            connecting_since: Nanos(0),
            next_ping: Nanos(0),
            updates: VecDeque::new(),
            encoder: Encoder::default(),
            goodbye: false,
            finished: false,
            refused_frames: 0,
        }
    }

    /// The identity of this client.
    pub fn id(&self) -> ClientId {
        self.id
    }

    /// Registers an instance of a data id, under a new registration.
    pub fn publish(
        &mut self,
        id: &DataId,
        name: &str,
        zone: &str,
        payload: &[u8],
    ) -> Result<Registration, RecordError> {
        self.registers = self.registers.wrapping_add(1);
        let registration = Registration { datum: id.key(), register: RegisterId(mix64(self.registers)) };
        self.publish_as(registration, id, name, zone, payload)?;
        Ok(registration)
    }

    /// Registers, or changes, an instance under a given registration.
    pub fn publish_as(
        &mut self,
        registration: Registration,
        id: &DataId,
        name: &str,
        zone: &str,
        payload: &[u8],
    ) -> Result<(), RecordError> {
        let instance =
            Instance { client: self.id.0, name: name.into(), zone: zone.into(), payload: payload.into() };
        let record = self.encoder.encode(registration.datum, registration.register, &instance)?.to_vec();
        self.versions += 1;
        let published = Published {
            id: id.clone(),
            record,
            version: Version { number: self.versions, attach: self.attach },
            removing: false,
            acknowledged: false,
            told: false,
            put_over: 0,
        };
        self.published.insert(registration, published);
        self.send_write(registration);
        Ok(())
    }

    /// Removes a registration. Unknown ones are ignored.
    pub fn unpublish(&mut self, registration: Registration) {
        if let Some(held) = self.published.get_mut(&registration) {
            self.versions += 1;
            held.version.number = self.versions;
            (held.removing, held.acknowledged, held.told) = (true, false, false);
            self.send_write(registration);
        }
    }

    /// Registers, or changes, an instance that stays until it is removed by request (see [`Client::publish_persistent`]).
    ///
    /// [`Client::publish_persistent`]: crate::client::Client::publish_persistent
    pub fn publish_persistent(
        &mut self,
        id: &DataId,
        (register, version): (RegisterId, u64),
        name: &str,
        zone: &str,
        payload: &[u8],
    ) -> Result<Registration, RecordError> {
        let registration = Registration { datum: id.key(), register };
        let instance =
            Instance { client: self.id.0, name: name.into(), zone: zone.into(), payload: payload.into() };
        let record = self.encoder.encode(registration.datum, register, &instance)?;
        self.persistents.want(registration, id, version, Some(Record::read(record)?));
        Ok(registration)
    }

    /// Removes an instance that was registered to stay, by whomever.
    pub fn remove_persistent(&mut self, id: &DataId, register: RegisterId, version: u64) -> Registration {
        let registration = Registration { datum: id.key(), register };
        self.persistents.want(registration, id, version, None);
        registration
    }

    /// Subscribes to a data id; the first update is a snapshot.
    pub fn subscribe(&mut self, id: &DataId) {
        let fresh = Subscribed {
            id: id.clone(),
            revision: Revision::ZERO,
            digest: 0,
            records: BTreeMap::new(),
            told: false,
        };
        self.subscribed.entry(id.key()).or_insert(fresh);
        self.send_subscribe([id.key()]);
    }

    /// No longer wants a data id.
    pub fn unsubscribe(&mut self, id: &DataId) {
        if self.subscribed.remove(&id.key()).is_some() && self.is_up() {
            Message::Unsubscribe(vec![id.key()]).write(&mut self.out);
        }
    }

    /// Leaves: the registrations go at once and the role ends when that is said.
    pub fn leave(&mut self) {
        self.goodbye = true;
    }

    /// The next update for the application.
    pub fn poll_update(&mut self) -> Option<Update> {
        let update = self.updates.pop_front();
        if self.updates.len() < UPDATES_MAX / 2 {
            self.tell_missed();
        }
        update
    }

    /// The list of a data id as this client holds it, with its revision.
    pub fn list(&self, datum: DatumKey) -> Option<(Revision, impl Iterator<Item = Record<'_>>)> {
        let held = self.subscribed.get(&datum).filter(|held| held.revision > Revision::ZERO)?;
        Some((held.revision, held.records.values().filter_map(|bytes| Record::read(bytes).ok())))
    }

    /// Whether everything that was published or removed is acknowledged.
    pub fn is_settled(&self) -> bool {
        self.published.values().all(|held| held.acknowledged) && self.persistents.is_settled()
    }

    /// Whether a session answers.
    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    /// Frames that did not follow what this client held. Each costs a fresh subscription.
    pub fn refused_frames(&self) -> u64 {
        self.refused_frames
    }

    /// Drops the connection as if the network had; for tests of the reconnect.
    pub fn drop_connection(&mut self) {
        self.close = Some("dropped by the application".into());
    }

    fn conn(&self) -> Option<ConnId> {
        match self.link {
            Link::Down(_) => None,
            Link::Connecting(conn) | Link::Greeting(conn) | Link::Up(conn) => Some(conn),
        }
    }

    fn tell(&mut self, update: Update) {
        self.updates.push_back(update);
    }

    fn send_write(&mut self, registration: Registration) {
        if !self.is_up() || self.out.len() > OUT_BYTES_MAX {
            return;
        }
        let Some(held) = self.published.get_mut(&registration) else { return };
        let Ok(record) = Record::read(&held.record) else { return };
        let put = Change {
            kind: ChangeKind::Put,
            durability: Durability::Ephemeral,
            datum: registration.datum,
            register: registration.register,
            version: held.version,
            epoch: 0,
            owner: SessionId(0),
        };
        let mut entries = Vec::new();
        write_name(&mut entries, registration.datum, held.id.as_bytes());
        let mut sent = Vec::new();
        if !held.removing || held.put_over != self.attach {
            // A session removes only what it owns. One that was not told of the registration over this connection takes
            // it over first, in the same frame, so that nobody sees it come back.
            write_put(&mut entries, &put, record);
            sent.push((registration, if held.removing { Version::default() } else { held.version }));
            held.put_over = self.attach;
        }
        if held.removing {
            write_change(&mut entries, &Change { kind: ChangeKind::Remove, ..put });
            sent.push((registration, held.version));
        }
        self.sequence += 1;
        Message::Write { sequence: self.sequence, entries: &entries }.write(&mut self.out);
        self.in_flight.push_back((self.sequence, sent));
    }

    fn send_subscribe(&mut self, keys: impl IntoIterator<Item = DatumKey>) {
        if !self.is_up() {
            return;
        }
        let items: Vec<SubscribeItem> = keys
            .into_iter()
            .filter_map(|key| self.subscribed.get(&key))
            .map(|held| SubscribeItem { id: held.id.clone(), since: held.revision, digest: held.digest })
            .collect();
        for items in items.chunks(128) {
            Message::Subscribe(items.to_vec()).write(&mut self.out);
        }
    }

    fn receive(&mut self, bytes: &[u8], now: Nanos) {
        self.heard_at = now;
        let mut decoder = std::mem::take(&mut self.decoder);
        let result = decoder.feed(bytes, FRAME_BYTES_MAX, |frame| {
            let message = Message::read(frame)?;
            self.handle_message(message, now);
            Ok::<_, FrameError>(())
        });
        self.decoder = decoder;
        if let Err(error) = result {
            self.close = Some(format!("the session sent what cannot be read: {error}"));
        }
    }

    fn handle_message(&mut self, message: Message<'_>, now: Nanos) {
        match message {
            Message::Welcome { session, .. } => self.welcomed(session, now),
            Message::WriteAck { sequence, outcomes } if self.persistents.knows(sequence) => {
                let outcome = outcomes.iter().next().unwrap_or(Err(Refusal::RecordInvalid));
                if let Some(update) = self.persistents.decide(sequence, outcome, now) {
                    self.tell(update);
                }
            }
            Message::WriteAck { sequence, outcomes } => self.acknowledged(sequence, outcomes),
            Message::Diff(diff) => self.take_diff(&diff),
            Message::SubscribeRefused { datum, code } => {
                if let Some(held) = self.subscribed.remove(&datum) {
                    let refusal = Refusal::from_code(code).unwrap_or(Refusal::RecordInvalid);
                    self.tell(Update::SubscriptionRefused { id: held.id, refusal });
                }
            }
            Message::Error { code, retry_after_ms, text } => {
                let label = ErrorCode::from_number(code).map_or("unknown", ErrorCode::label);
                // One that is full or goes down says nothing about the others, until they have been tried.
                let elsewhere = [ErrorCode::TooManyConnections, ErrorCode::Draining].map(|code| code as u16);
                let all_tried = self.failures as usize + 1 >= self.sessions.len();
                if all_tried || !elsewhere.contains(&code) {
                    self.asked_pause = u64::from(retry_after_ms) * (Nanos::SECOND / 1000);
                }
                self.close = Some(format!("{label}: {text}"));
            }
            Message::Ping(nonce) => Message::Pong(nonce).write(&mut self.out),
            _ => {}
        }
    }

    fn welcomed(&mut self, session: SessionId, now: Nanos) {
        let Link::Greeting(conn) = self.link else { return };
        self.link = Link::Up(conn);
        self.failures = 0;
        self.next_ping = now.after(PING_INTERVAL);
        self.tell(Update::Connected(session));
        self.resend();
        self.send_subscribe(self.subscribed.keys().copied().collect::<Vec<_>>());
    }

    fn resend(&mut self) {
        let attach = self.attach;
        for held in self.published.values_mut() {
            held.version.attach = attach;
            held.acknowledged = false;
        }
        for registration in self.published.keys().copied().collect::<Vec<_>>() {
            self.send_write(registration);
        }
    }

    fn acknowledged(&mut self, sequence: u64, outcomes: Outcomes<'_>) {
        let Some(position) = self.in_flight.iter().position(|(sent, _)| *sent == sequence) else { return };
        let Some((_, sent)) = self.in_flight.remove(position) else { return };
        for ((registration, version), outcome) in sent.into_iter().zip(outcomes.iter()) {
            let Some(held) = self.published.get_mut(&registration) else { continue };
            if held.version != version {
                continue;
            }
            match outcome {
                Err(Refusal::Overloaded) => continue,
                // The session lost its link between taking the registration over and removing it.
                Err(Refusal::NotOwner) if held.removing => {
                    held.put_over = 0;
                    continue;
                }
                // What a removal was to remove is gone already.
                Err(Refusal::UnknownRegistration) if held.removing => {}
                Err(refusal) => {
                    self.published.remove(&registration);
                    self.tell(Update::Refused { registration, refusal });
                    continue;
                }
                Ok(_) => {}
            }
            held.acknowledged = true;
            let first = !std::mem::replace(&mut held.told, true);
            if held.removing {
                self.published.remove(&registration);
            }
            if first {
                let revision = outcome.unwrap_or(Revision::ZERO);
                self.tell(Update::Acknowledged { registration, revision });
            }
        }
    }

    fn take_diff(&mut self, diff: &Diff<'_>) {
        let Some(held) = self.subscribed.get_mut(&diff.datum) else { return };
        let fits = diff.is_snapshot || (diff.from <= held.revision && held.revision > Revision::ZERO);
        if !fits || diff.to < held.revision {
            // Not what follows: ask for the whole list rather than hold a wrong one.
            self.refused_frames += 1;
            (held.revision, held.digest) = (Revision::ZERO, 0);
            self.send_subscribe([diff.datum]);
            return;
        }
        let changed = held.apply(diff);
        if changed.is_none() && held.told {
            return;
        }
        if self.updates.len() >= UPDATES_MAX {
            held.told = false;
            return;
        }
        let update = held.update(diff, changed);
        held.told = true;
        self.tell(update);
    }

    /// The data ids whose updates found no room get one snapshot each.
    fn tell_missed(&mut self) {
        let missed: Vec<DatumKey> = self
            .subscribed
            .iter()
            .filter(|(_, held)| !held.told && held.revision > Revision::ZERO)
            .map(|(key, _)| *key)
            .take(UPDATES_MAX / 2)
            .collect();
        for key in missed {
            if let Some(held) = self.subscribed.get_mut(&key) {
                held.told = true;
                let update = held.snapshot();
                self.tell(update);
            }
        }
    }

    fn lose(&mut self, reason: String, now: Nanos) {
        let sessions = self.sessions.len().max(1);
        let rounds = self.failures / sessions as u32;
        let retry = RETRY.0.saturating_mul(1 << rounds.min(20)).min(RETRY.1);
        let pause = retry / 2 + mix64(self.id.0 ^ now.0) % retry;
        self.link = Link::Down(now.after(pause + std::mem::take(&mut self.asked_pause)));
        self.failures = self.failures.saturating_add(1);
        self.next_session = (self.next_session + 1) % sessions;
        self.decoder = Decoder::default();
        self.out.clear();
        self.in_flight.clear();
        self.persistents.lose();
        self.tell(Update::Disconnected(reason));
    }

    /// How long the session may take from the connect on, as far as it has come.
    fn patience(&self) -> u64 {
        let dials = matches!(self.link, Link::Connecting(_)) && self.sessions.len() > 1;
        if dials { DIAL_MAX } else { CONNECT_MAX }
    }

    fn connect(&mut self, now: Nanos, sockets: &mut dyn Sockets) {
        let Some(target) = self.sessions.get(self.next_session).copied() else { return };
        match sockets.connect(target, None) {
            Ok(conn) => (self.link, self.connecting_since) = (Link::Connecting(conn), now),
            Err(error) => self.lose(format!("connecting to {target}: {error}"), now),
        }
    }

    fn send_persistents(&mut self, now: Nanos) {
        while self.is_up()
            && self.out.len() <= OUT_BYTES_MAX
            && let Some(entries) = self.persistents.send(now, self.sequence + 1)
        {
            self.sequence += 1;
            Message::Write { sequence: self.sequence, entries }.write(&mut self.out);
        }
    }

    fn flush_out(&mut self, sockets: &mut dyn Sockets) {
        let Some(conn) = self.conn() else { return };
        if !self.out.is_empty() && sockets.send(conn, &[&self.out]) != SendOutcome::Busy {
            self.out.clear();
        }
        if self.out.is_empty() && self.is_up() && self.in_flight.is_empty() && !self.is_settled() {
            // What found no room, or was refused for overload, is sent again.
            let open = self.published.iter().filter(|(_, held)| !held.acknowledged);
            for registration in open.map(|(registration, _)| *registration).collect::<Vec<_>>() {
                self.send_write(registration);
            }
        }
    }
}

impl Role for ClientState {
    fn handle(&mut self, event: Event<'_>, now: Nanos) {
        match event {
            Event::Connected { conn } if self.link == Link::Connecting(conn) => {
                self.link = Link::Greeting(conn);
                self.heard_at = now;
                self.attach += 1;
                Message::Hello { protocol: PROTOCOL, client: self.id }.write(&mut self.out);
            }
            Event::Received { conn, bytes } if self.conn() == Some(conn) && self.close.is_none() => {
                self.receive(bytes, now);
            }
            Event::Closed { conn, reason } if self.conn() == Some(conn) => {
                let reason = self.close.take().unwrap_or_else(|| format!("{reason:?}"));
                self.lose(reason, now);
            }
            _ => {}
        }
    }

    fn turn(&mut self, now: Nanos, sockets: &mut dyn Sockets) -> bool {
        if self.goodbye {
            if let Some(conn) = self.conn() {
                if self.is_up() {
                    Message::Goodbye.write(&mut self.out);
                    sockets.send(conn, &[&self.out]);
                }
                sockets.close(conn, false);
            }
            self.finished = true;
            return false;
        }
        if matches!(self.link, Link::Down(at) if at <= now) {
            self.connect(now, sockets);
        }
        if self.is_up() && now >= self.next_ping {
            self.next_ping = now.after(PING_INTERVAL);
            Message::Ping(now.0).write(&mut self.out);
        }
        if let Some(conn) = self.conn() {
            let silent = self.heard_at > Nanos(0) && now.since(self.heard_at) > SILENCE_MAX;
            if silent && self.close.is_none() && self.is_up() {
                self.close = Some("the session has been silent for too long".into());
            }
            if !self.is_up() && self.close.is_none() && now >= self.connecting_since.after(self.patience()) {
                self.close = Some("the session did not say welcome".into());
            }
            if self.close.is_some() {
                sockets.close(conn, true);
            }
        }
        self.send_persistents(now);
        self.flush_out(sockets);
        false
    }

    fn wake_at(&self) -> Nanos {
        match self.link {
            Link::Down(at) => at,
            // The end of the connection is on its way.
            _ if self.close.is_some() => Nanos(u64::MAX),
            Link::Connecting(_) | Link::Greeting(_) => self.connecting_since.after(self.patience()),
            Link::Up(_) => {
                let idle = self.next_ping.min(self.heard_at.after(SILENCE_MAX + 1));
                self.persistents
                    .wake_at()
                    .filter(|_| self.out.len() <= OUT_BYTES_MAX)
                    .map_or(idle, |at| at.min(idle))
            }
        }
    }

    fn is_finished(&self) -> bool {
        self.finished
    }
}
