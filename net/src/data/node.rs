//! One shard of a data node as a role: frames of session links in, diffs and acknowledgements out.
//!
//! A link has one output buffer. While it is short, every diff is appended to it; when it passes `link_buffer_max` the
//! reader falls behind and keeps only a revision per slot, and when the buffer has drained it gets one diff per data id
//! from there. Nothing queues without bound.

use std::{collections::BTreeSet, time::Duration};

use slotcast_engine::{
    error::Refusal,
    id::{DatumKey, Nanos, ReaderId, RegisterId, SessionId, SlotId},
    recover::Recovered,
    shard::{LinkError, Shard, ShardConfig},
    storage::{Storage, StorageConfig, StorageState},
    top::{Largest, Row},
};

use crate::{
    data::{
        cluster::Cluster,
        metrics::DataMetrics,
        operations::Operations,
        outbox::{Outbox, Run},
        replica::ReplicaFault,
        storage::StorageMetrics,
    },
    io::{
        clock,
        disk::Disk,
        ring::{ConnId, Event, SendOutcome, Sockets, Waker},
        role::Role,
    },
    top::{Requests, TopAsk, TopReport, What},
    wire::{
        Decoder, ErrorCode, FrameError, Message,
        header::{FRAME_BYTES_MAX, PROTOCOL},
        message::{SubscribeItem, write_ack, write_diff},
    },
};

mod member;

/// Longest time between two ticks of the shard.
const TICK: u64 = Nanos::SECOND / 10;
/// Longest wait for the disk at the end.
const DISK_END_MAX: Duration = Duration::from_secs(10);

/// Bounds of one shard's links.
#[derive(Debug, Clone, Copy)]
pub struct NodeLimits {
    /// Bytes of output of one link above which its reader falls behind.
    pub link_buffer_max: usize,
    /// Links at once.
    pub links_max: usize,
    /// How long a link may take to introduce itself, and a refused one to read why it is (nanoseconds).
    pub link_timeout: u64,
}

impl Default for NodeLimits {
    fn default() -> Self {
        Self { link_buffer_max: 8 * 1024 * 1024, links_max: 4096, link_timeout: 10 * Nanos::SECOND }
    }
}

struct Link {
    conn: ConnId,
    decoder: Decoder,
    out: Outbox,
    session: Option<SessionId>,
    /// It is of a shard that follows slots here, and of no session.
    is_follower: bool,
    /// Epoch of the slot table that the session was sent.
    table_told: u64,
    blocked: bool,
    closing: Option<ErrorCode>,
    /// Until when the hello has to come or, once the link is refused, the error has to be read.
    deadline: Nanos,
    is_dirty: bool,
    /// Messages received.
    requests: u64,
}

/// One shard and its links.
pub struct Node {
    shard: Shard,
    slot_count: u32,
    run: u64,
    limits: NodeLimits,
    links: Vec<Option<Link>>,
    link_count: usize,
    dirty: Vec<u32>,
    run_of_diffs: Run,
    wrote_at: Option<Nanos>,
    next_tick: Nanos,
    metrics: DataMetrics,
    draining: bool,
    disk: Option<(Disk, StorageMetrics)>,
    requests: Requests,
    operations: Option<Box<Operations>>,
    cluster: Option<Box<Cluster>>,
    /// Links of followers whose buffers had no room in this turn.
    starved: Vec<u32>,
}

impl Node {
    /// A shard that has not been linked to yet. `run` is a number that no earlier run has used.
    pub fn new(config: ShardConfig, limits: NodeLimits, run: u64, metrics: DataMetrics) -> Self {
        Self::around(config.slot_count, Shard::new(config), limits, run, metrics)
    }

    fn around(slot_count: u32, shard: Shard, limits: NodeLimits, run: u64, metrics: DataMetrics) -> Self {
        Self {
            slot_count,
            shard,
            run,
            limits,
            links: Vec::new(),
            link_count: 0,
            dirty: Vec::new(),
            run_of_diffs: Run::default(),
            wrote_at: None,
            next_tick: Nanos(0),
            metrics,
            draining: false,
            disk: None,
            requests: Requests::default(),
            operations: None,
            cluster: None,
            starved: Vec::new(),
        }
    }

    /// Takes memory for `publishers` registrations ahead.
    pub fn reserve(&mut self, publishers: usize) {
        if publishers > 0 {
            self.shard.reserve(publishers);
        }
    }

    /// The same node, going on from what was recovered and keeping everything on `disk`.
    pub fn on_disk(
        mut self,
        config: ShardConfig,
        recovered: Recovered,
        storage: StorageConfig,
        disk: (Disk, StorageMetrics),
    ) -> Self {
        self.shard = match self.cluster {
            Some(_) => Shard::clustered_on_disk(config, recovered, storage),
            None => Shard::recovered(config, recovered, storage),
        };
        self.disk = Some(disk);
        self
    }

    /// The same node, answering operators and compacting as they say.
    #[must_use]
    pub fn with_operations(mut self, operations: Operations) -> Self {
        operations.begin(&mut self.shard);
        self.operations = Some(Box::new(operations));
        self
    }

    /// The shard, to look at.
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// Has the leases that are held back end, as an operator may ask for (see [`crate::data::operations::Ask::EndLeases`]).
    pub fn release_leases(&mut self) -> usize {
        self.shard.release_leases()
    }

    /// Plants a fault in the shard.
    #[cfg(feature = "planted-faults")]
    pub fn plant(&mut self, fault: Option<slotcast_engine::faults::Fault>) {
        self.shard.plant(fault);
    }

    /// Stops taking links and ends the role after the next turn.
    pub fn stop(&mut self) {
        self.draining = true;
    }

    fn accept(&mut self, conn: ConnId, now: Nanos) {
        let index = conn.index();
        if self.links.len() <= index {
            self.links.resize_with(index + 1, || None);
        }
        let mut link = Link {
            conn,
            decoder: Decoder::default(),
            out: Outbox::default(),
            session: None,
            is_follower: false,
            table_told: 0,
            blocked: false,
            closing: None,
            deadline: now.after(self.limits.link_timeout),
            is_dirty: false,
            requests: 0,
        };
        self.link_count += 1;
        self.metrics.links.set(self.link_count as i64);
        if self.link_count > self.limits.links_max {
            refuse(&mut link, ErrorCode::TooManyConnections, "as many links as this shard takes", 1000);
            self.metrics.link_errors.get_or_create(&ErrorCode::TooManyConnections.into()).inc();
        }
        self.links[index] = Some(link);
        self.mark_dirty(index as u32);
    }

    /// Tells a link why it is closed, as the last thing that it hears.
    fn refuse(&mut self, index: usize, fault: &LinkFault, now: Nanos) {
        let Some(Some(link)) = self.links.get_mut(index) else { return };
        let (code, text) = (fault.code(), fault.to_string());
        tracing::warn!(session = ?link.session, error = %text, "closing a link");
        refuse(link, code, &text, fault.retry_after_ms());
        link.deadline = now.after(self.limits.link_timeout);
        self.metrics.link_errors.get_or_create(&code.into()).inc();
        // Nothing follows the error.
        self.shard.handle_link_close(ReaderId(index as u32));
        self.close_follower(index);
        self.mark_dirty(index as u32);
    }

    /// Looks at every link: who has not introduced himself in time, whose lease has ended, who does not read why he is
    /// refused. None of them would go by himself, and each takes the place of another.
    fn sweep_links(&mut self, now: Nanos, sockets: &mut dyn Sockets) {
        for index in 0..self.links.len() {
            let is_silent = self.is_silent_follower(index, now);
            let Some(link) = self.links[index].as_mut() else { continue };
            if link.closing.is_some() {
                if now >= link.deadline {
                    link.deadline = Nanos(u64::MAX);
                    self.metrics.refused_links_cut.inc();
                    sockets.close(link.conn, true);
                }
                continue;
            }
            match link.session {
                _ if is_silent => self.refuse(index, &LinkFault::FollowerSilent, now),
                None if !link.is_follower && now >= link.deadline => {
                    self.refuse(index, &LinkFault::Silent, now)
                }
                Some(session) if !self.shard.is_alive(session) => {
                    self.refuse(index, &Refusal::SessionEnded.into(), now);
                }
                _ => {}
            }
        }
    }

    fn close(&mut self, conn: ConnId) {
        let index = conn.index();
        if let Some(slot) = self.links.get_mut(index)
            && slot.as_ref().is_some_and(|link| link.conn == conn)
        {
            *slot = None;
            self.link_count -= 1;
            self.metrics.links.set(self.link_count as i64);
            self.shard.handle_link_close(ReaderId(index as u32));
            self.close_follower(index);
        }
    }

    fn receive(&mut self, conn: ConnId, bytes: &[u8], now: Nanos) {
        let index = conn.index();
        let Some(link) = self.link_mut(index, conn) else { return };
        if link.closing.is_some() {
            return;
        }
        let mut decoder = std::mem::take(&mut link.decoder);
        self.shard.handle_bytes(ReaderId(index as u32), now);
        let result = decoder.feed(bytes, FRAME_BYTES_MAX, |frame| {
            self.metrics.frames_received.inc();
            if self.is_of_follower(index, &frame) {
                return self.hear_follower(index, frame, now);
            }
            let message = Message::read(frame)?;
            self.handle_message(index, message, now)
        });
        let Some(link) = self.link_mut(index, conn) else { return };
        link.decoder = decoder;
        if let Err(fault) = result {
            self.refuse(index, &fault, now);
        }
        self.mark_dirty(index as u32);
    }

    fn handle_message(&mut self, index: usize, message: Message<'_>, now: Nanos) -> Result<(), LinkFault> {
        let reader = ReaderId(index as u32);
        self.requests.count(&message);
        if let Some(link) = self.links[index].as_mut() {
            link.requests += 1;
        }
        let known = self.links[index].as_ref().is_some_and(|link| link.session.is_some());
        if let Message::LinkHello { protocol, slot_count, session, run, epoch_seen } = message {
            if known {
                return Err(LinkFault::SecondHello);
            }
            if protocol != PROTOCOL {
                return Err(LinkFault::Protocol(protocol));
            }
            if slot_count != self.slot_count {
                return Err(LinkFault::SlotCount(slot_count, self.slot_count));
            }
            return self.welcome(index, session, run, epoch_seen, now);
        }
        if !known {
            return Err(LinkFault::BeforeHello);
        }
        match message {
            Message::Write { sequence, entries } => {
                self.wrote_at.get_or_insert(now);
                self.metrics.write_frames.inc();
                self.shard.handle_write(reader, sequence, entries, now)?;
            }
            Message::Subscribe(items) => {
                for item in items {
                    self.subscribe(index, &item);
                }
            }
            Message::Unsubscribe(datums) => {
                datums.into_iter().for_each(|datum| self.shard.handle_uninterest(reader, datum));
            }
            Message::Heartbeat { mark, digest, routes, table_epoch } => {
                let answer = self.shard.handle_heartbeat(reader, mark, digest, routes, now)?;
                if answer.differs.is_some() {
                    self.metrics.digest_mismatches.inc();
                }
                let answer = Message::HeartbeatAck {
                    mark: answer.mark,
                    confirmed: answer.confirmed,
                    unsettled: answer.unsettled,
                    settled: answer.settled,
                    stale: answer.stale,
                    table_epoch: self.table_epoch(),
                    differs: answer.differs,
                };
                self.answer(index, &answer);
                self.tell_table(index, table_epoch);
            }
            Message::DigestRequest(slot) => self.tell_digests(index, slot)?,
            Message::Holds { datum, registers } => self.holds(reader, datum, registers)?,
            Message::Goodbye => self.shard.handle_goodbye(reader),
            Message::Ping(nonce) => self.answer(index, &Message::Pong(nonce)),
            _ => return Err(LinkFault::Unexpected),
        }
        Ok(())
    }

    fn welcome(
        &mut self,
        index: usize,
        session: SessionId,
        run: u64,
        epoch_seen: u32,
        now: Nanos,
    ) -> Result<(), LinkFault> {
        let reader = ReaderId(index as u32);
        let same_run = run == self.run;
        if run != 0 && !same_run && !self.shard.expects(session, now) {
            return Err(Refusal::SessionEnded.into());
        }
        let last_sequence = self.shard.handle_link_open(reader, session, epoch_seen, same_run, now)?;
        let slot = self.shard.slots().next().map(|slot| slot.revision().epoch());
        let (run, slot_count) = (self.run, self.slot_count);
        let (shard, shards) = self.shard.placement();
        let epoch = slot.unwrap_or(self.shard.epoch());
        for other in 0..self.links.len() {
            let same = |link: &Link| link.session == Some(session) && link.closing.is_none();
            if self.links[other].as_ref().is_some_and(same) {
                self.refuse(other, &LinkFault::Replaced, now);
            }
        }
        if let Some(link) = self.links[index].as_mut() {
            link.session = Some(session);
        }
        self.answer(index, &Message::LinkWelcome { run, last_sequence, epoch, shard, shards, slot_count });
        Ok(())
    }

    fn subscribe(&mut self, index: usize, item: &SubscribeItem) {
        if let Err(refusal) = self.shard.handle_interest(ReaderId(index as u32), &item.id, item.since) {
            let refused = Message::SubscribeRefused { datum: item.id.key(), code: refusal.code() };
            self.answer(index, &refused);
        }
    }

    fn tell_digests(&mut self, index: usize, slot: SlotId) -> Result<(), LinkFault> {
        let digests = self.shard.handle_digest_request(ReaderId(index as u32), slot)?;
        self.answer(index, &Message::DatumDigests(slot, digests.into_iter().collect()));
        Ok(())
    }

    fn holds(
        &mut self,
        reader: ReaderId,
        datum: DatumKey,
        registers: Vec<RegisterId>,
    ) -> Result<(), LinkFault> {
        let registers: BTreeSet<RegisterId> = registers.into_iter().collect();
        let removed = self.shard.handle_holds(reader, datum, &registers)?;
        self.metrics.repaired.inc_by(removed as u64);
        Ok(())
    }

    fn answer(&mut self, index: usize, message: &Message<'_>) {
        if let Some(link) = self.links[index].as_mut() {
            message.write(link.out.own());
        }
        self.mark_dirty(index as u32);
    }

    fn mark_dirty(&mut self, index: u32) {
        if let Some(Some(link)) = self.links.get_mut(index as usize)
            && !link.is_dirty
        {
            link.is_dirty = true;
            self.dirty.push(index);
        }
    }

    fn link_mut(&mut self, index: usize, conn: ConnId) -> Option<&mut Link> {
        self.links.get_mut(index)?.as_mut().filter(|link| link.conn == conn)
    }

    /// Puts acknowledgements and diffs of the turn into the links' buffers.
    fn fill_buffers(&mut self, now: Nanos) {
        while let Some(ack) = self.shard.poll_ack() {
            for refusal in ack.outcomes.iter().filter_map(|outcome| outcome.err()) {
                self.metrics.refused.get_or_create(&refusal.into()).inc();
            }
            self.metrics.writes.inc_by(ack.outcomes.len() as u64);
            if let Some(Some(link)) = self.links.get_mut(ack.reader.0 as usize) {
                write_ack(link.out.own(), ack.sequence, &ack.outcomes);
            }
            self.mark_dirty(ack.reader.0);
        }
        let Self { links, dirty, run_of_diffs: run, .. } = self;
        let (mut diffs, mut sent) = (0u64, 0);
        let mut deliver = |run: &mut Run| {
            run.deliver(|reader, bytes| {
                let Some(Some(link)) = links.get_mut(reader.0 as usize) else { return };
                link.out.push(&bytes);
                sent += bytes.diffs;
                if !link.is_dirty {
                    link.is_dirty = true;
                    dirty.push(reader.0);
                }
            });
        };
        self.shard.poll_push(|push| {
            if !run.takes(push.readers) {
                deliver(run);
                run.start(push.readers);
            }
            write_diff(run.next(), push.slot, |body| push.answer.write(push.datum, body));
            diffs += 1;
        });
        deliver(run);
        self.metrics.diffs_sent.inc_by(sent);
        if let Some(wrote_at) = self.wrote_at.take()
            && diffs > 0
        {
            self.metrics.apply_delay.observe(now.since(wrote_at) as f64 / 1e9);
        }
    }

    fn send_buffers(&mut self, now: Nanos, sockets: &mut dyn Sockets) {
        for index in std::mem::take(&mut self.dirty) {
            let Some(Some(link)) = self.links.get_mut(index as usize) else { continue };
            link.is_dirty = false;
            if !link.out.is_empty() {
                let (outcome, bytes) = link.out.send(link.conn, sockets);
                if outcome == SendOutcome::Queued {
                    self.metrics.socket_writes.inc();
                    self.metrics.bytes_sent.inc_by(bytes as u64);
                    if !link.out.is_empty() {
                        link.is_dirty = true;
                        self.dirty.push(index);
                    }
                }
            }
            let reader = ReaderId(index);
            // A follower has a cursor, and gets no more than there is room for.
            let full = !link.is_follower && link.out.len() > self.limits.link_buffer_max;
            if full && !link.blocked {
                link.blocked = true;
                self.metrics.links_behind.inc();
                self.shard.handle_reader_blocked(reader);
            } else if link.blocked && link.out.is_empty() {
                link.blocked = false;
                self.shard.handle_reader_writable(reader);
            }
            if link.out.len() > self.limits.link_buffer_max * 4 && link.closing.is_none() {
                refuse(link, ErrorCode::SlowReader, "the link does not read its acknowledgements", 1000);
                link.deadline = now.after(self.limits.link_timeout);
                self.metrics.link_errors.get_or_create(&ErrorCode::SlowReader.into()).inc();
                sockets.close(link.conn, true);
            } else if link.closing.is_some() && link.out.is_empty() {
                sockets.close(link.conn, false);
            }
        }
    }

    fn observe(&self) {
        let (counts, stats) = (self.shard.counts(), self.shard.stats());
        let (interests, behind, held_back) = self.shard.reader_counts();
        // Whoever has read that something is held reads next whether it is durable.
        if let Some((_, metrics)) = &self.disk {
            metrics.observe(self.shard.storage());
        }
        self.metrics.observe(&counts, &stats, (interests, behind, held_back), self.shard.is_serving());
        self.metrics.persistent_waiting.set(self.shard.awaiting_disk() as i64);
    }

    /// Does what operators ask. Returns whether more is waiting.
    fn operate(&mut self, now: Nanos) -> bool {
        let Some(mut operations) = self.operations.take() else { return false };
        let links = (&self.requests, self.links.as_slice());
        let more = operations.turn(&mut self.shard, now, |ask, shard| tell_links(ask, links, shard));
        self.operations = Some(operations);
        more
    }

    /// Hears what the disk has done since the last turn.
    fn hear_disk(&mut self, now: Nanos) {
        let Some((disk, metrics)) = &self.disk else { return };
        while let Some(done) = disk.poll() {
            let before = self.shard.storage().map(Storage::state);
            self.shard.handle_disk(&done, now);
            let after = self.shard.storage().map(Storage::state);
            if before == after {
                continue;
            }
            metrics.observe(self.shard.storage());
            let error = self.shard.storage().and_then(Storage::last_error);
            match (after, error) {
                (Some(StorageState::Failed), Some(error)) => {
                    tracing::error!(%error, "the disk has failed: persistent publishers are refused, everything else goes on");
                }
                (Some(state), _) => tracing::info!(state = state.label(), "storage"),
                (None, _) => {}
            }
        }
    }
}

impl Role for Node {
    fn started(&mut self, waker: Waker) {
        if let Some(cluster) = &self.cluster {
            cluster.started(waker.clone());
        }
        if let Some((disk, _)) = &self.disk {
            disk.wake(waker);
        }
    }

    fn handle(&mut self, event: Event<'_>, now: Nanos) {
        if let Some(cluster) = &mut self.cluster
            && cluster.owns(event.conn())
        {
            return cluster.handle(event, &mut self.shard, now);
        }
        match event {
            Event::Accepted { conn, .. } => self.accept(conn, now),
            Event::Received { conn, bytes } => self.receive(conn, bytes, now),
            Event::Writable { conn } => self.mark_dirty(conn.index() as u32),
            Event::Closed { conn, .. } => self.close(conn),
            Event::Connected { .. } => {}
        }
    }

    fn turn(&mut self, now: Nanos, sockets: &mut dyn Sockets) -> bool {
        self.hear_disk(now);
        let asked = self.operate(now);
        let is_tick = now >= self.next_tick;
        if is_tick {
            self.shard.tick(now);
            self.next_tick = now.after(TICK);
            self.sweep_links(now, sockets);
        }
        self.shard.seal(now);
        if is_tick {
            // Not before: what is not sealed would be counted, and what of it is not durable would not.
            self.observe();
        }
        self.metrics.serving.set(i64::from(self.shard.is_serving()));
        self.fill_buffers(now);
        let more = self.follow_table(now, sockets) | self.replicate(now, sockets);
        self.send_buffers(now, sockets);
        if let Some((disk, _)) = &self.disk {
            while let Some(request) = self.shard.poll_disk(now) {
                disk.submit(request);
            }
        }
        asked || more || self.has_room_again() || self.shard.has_backlog() || !self.dirty.is_empty()
    }

    fn wake_at(&self) -> Nanos {
        let compaction = self.operations.as_ref().and_then(|_| self.shard.compaction_due());
        let member = self.cluster.as_ref().map(|cluster| cluster.wake_at());
        let others = self.shard.disk_due().into_iter().chain(compaction).chain(member);
        others.fold(self.next_tick, Nanos::min)
    }

    fn finish(&mut self) {
        let Some((disk, _)) = &self.disk else { return };
        let now = clock::now();
        self.shard.seal(now);
        loop {
            while let Some(request) = self.shard.poll_disk_at_end(now) {
                disk.submit(request);
            }
            if self.shard.is_disk_idle() {
                return;
            }
            match disk.wait(DISK_END_MAX) {
                Some(done) => self.shard.handle_disk(&done, now),
                None => {
                    tracing::error!("the disk does not answer: what was not written is left");
                    return;
                }
            }
        }
    }

    fn is_finished(&self) -> bool {
        self.draining
    }
}

/// What is asked about links: each is one session's.
fn tell_links(ask: TopAsk, (requests, links): (&Requests, &[Option<Link>]), shard: &Shard) -> TopReport {
    if ask.what == What::Requests {
        return requests.report();
    }
    let mut largest = Largest::new(ask.limit);
    for (index, link) in links.iter().enumerate() {
        let Some(link) = link else { continue };
        let reader = ReaderId(index as u32);
        let interests = shard.interests_of(reader) as u64;
        let value = if ask.what == What::Clients { link.requests } else { interests };
        largest.offer(value, || {
            let session = link.session.map_or_else(|| "(no hello yet)".into(), |id| format!("{:016x}", id.0));
            Row::exact(session, value)
                .with("interests", interests)
                .with("requests", link.requests)
                .with("waiting_bytes", link.out.len())
                .with("behind", link.blocked)
        });
    }
    let of = largest.offered();
    TopReport::exact(ask.what, largest.into_rows(), of)
}

/// Why a link is closed.
#[derive(Debug, thiserror::Error)]
enum LinkFault {
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error("{0}")]
    Link(#[from] LinkError),
    #[error("protocol version {0} is not spoken here, {PROTOCOL} is")]
    Protocol(u16),
    #[error("the session counts {0} slots, this cluster has {1}")]
    SlotCount(u32, u32),
    #[error("the first message has to be a link hello")]
    BeforeHello,
    #[error("a second link hello on one connection")]
    SecondHello,
    #[error("a message that no session sends")]
    Unexpected,
    #[error("the link has not introduced itself in time: send a link hello right after the connect")]
    Silent,
    #[error("the session incarnation has opened another link to this shard")]
    Replaced,
    #[error("{0}")]
    Replica(#[from] ReplicaFault),
    #[error("the shard that follows has opened another link to this one")]
    FollowerReplaced,
    #[error("the shard that follows has said nothing for too long")]
    FollowerSilent,
}

impl LinkFault {
    fn code(&self) -> ErrorCode {
        match self {
            LinkFault::Frame(_) | LinkFault::Link(LinkError::Malformed(_)) => ErrorCode::Frame,
            LinkFault::Refused(Refusal::SessionEnded)
            | LinkFault::Link(LinkError::Refused(Refusal::SessionEnded)) => ErrorCode::SessionEnded,
            LinkFault::Refused(_) | LinkFault::Link(_) => ErrorCode::SessionRefused,
            LinkFault::Protocol(_) => ErrorCode::ProtocolVersion,
            LinkFault::SlotCount(..) => ErrorCode::Configuration,
            LinkFault::BeforeHello | LinkFault::SecondHello | LinkFault::Unexpected => ErrorCode::Unexpected,
            LinkFault::Silent => ErrorCode::HelloTimeout,
            LinkFault::Replaced | LinkFault::FollowerReplaced => ErrorCode::Replaced,
            LinkFault::FollowerSilent => ErrorCode::SlowReader,
            LinkFault::Replica(fault) => fault.code(),
        }
    }

    /// When it is worth coming back; 0: no hint.
    fn retry_after_ms(&self) -> u32 {
        if let LinkFault::Replica(fault) = self { fault.retry_after_ms() } else { 0 }
    }
}

fn refuse(link: &mut Link, code: ErrorCode, text: &str, retry_after_ms: u32) {
    Message::Error { code: code as u16, retry_after_ms, text }.write(link.out.own());
    link.closing = Some(code);
}
