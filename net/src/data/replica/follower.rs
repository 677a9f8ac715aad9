//! The following side: links to the shards that lead what is followed here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use slotcast_engine::{
    id::{Nanos, Revision, SlotId},
    shard::{Part, Shard},
    slot::FollowError,
};

use crate::{
    data::cluster::metrics::ClusterMetrics,
    io::{
        dial::Dialed,
        ring::{ConnId, Sockets},
    },
    wire::{
        Decoder, ErrorCode, FrameError,
        header::{FRAME_BYTES_MAX, PROTOCOL},
        replica::{FollowItem, ReplicaAckItem, ReplicaMessage, ReplicaPart, ReplicaRefusal},
        slot_table::NodeNumber,
    },
};

const MS: u64 = Nanos::SECOND / 1000;
/// Shortest and longest wait after a failure.
const RETRY: (u64, u64) = (20 * MS, Nanos::SECOND);
/// How long a connect or a welcome may take.
const PATIENCE: u64 = Nanos::SECOND;
/// Time between two pings.
const PING: u64 = 500 * MS;
/// Silence after which a leader is taken for gone.
const SILENCE_MAX: u64 = 3 * Nanos::SECOND;
/// What may still be under way from before a question was repeated is waited for so long.
const ASK_AGAIN: u64 = Nanos::SECOND;
/// Slots in one follow message.
const FOLLOW_MAX: usize = 4096;
/// Above this, acknowledgements wait until the socket has taken what was written before.
const ACK_WAITING_MAX: usize = 64 * 1024;

/// Acknowledged before anything is.
const NOTHING: (Revision, Revision) = (Revision::ZERO, Revision::ZERO);

/// Who follows.
#[derive(Clone, Debug)]
pub(in crate::data) struct Identity {
    pub(in crate::data) cluster: String,
    pub(in crate::data) slot_count: u32,
    pub(in crate::data) incarnation: u64,
    pub(in crate::data) shard: u16,
}

/// A shard that leads: its node, that one's run, and where the shard listens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(in crate::data) struct LeaderShard {
    pub(in crate::data) node: NodeNumber,
    pub(in crate::data) incarnation: u64,
    pub(in crate::data) addr: SocketAddr,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Until when nothing is tried.
    Waiting(Nanos),
    /// Until when the connect may take.
    Connecting(Nanos),
    /// Until when the welcome may take.
    Greeting(Nanos),
    Up,
}

/// One slot that is followed.
struct Following {
    /// The epoch that the leader is to lead it in.
    epoch: u32,
    /// When the leader is to be asked; `None`: it was, and tells.
    ask_at: Option<Nanos>,
    /// It was asked: what comes is meant for what is held here.
    listens: bool,
    asked_at: Nanos,
    failures: u32,
    /// What is held here is not to be built on.
    afresh: bool,
    acked: (Revision, Revision),
}

impl Following {
    fn new(epoch: u32, now: Nanos) -> Self {
        Self {
            epoch,
            ask_at: Some(now),
            listens: false,
            asked_at: Nanos(0),
            failures: 0,
            afresh: false,
            acked: NOTHING,
        }
    }

    fn ask(&mut self, at: Nanos, due: &mut Nanos) {
        self.ask_at = Some(at);
        *due = (*due).min(at);
    }
}

struct Upstream {
    to: LeaderShard,
    wire: Dialed,
    decoder: Decoder,
    state: State,
    failures: u32,
    slots: BTreeMap<SlotId, Following>,
    /// No longer followed, and the leader does not know yet.
    left: Vec<SlotId>,
    /// Slots whose revisions may have moved since they were acknowledged.
    moved: BTreeSet<SlotId>,
    /// No slot is to be asked for before.
    ask_due: Nanos,
    heard: Nanos,
    ping_at: Nanos,
    /// It is to be closed, and tried again after so many milliseconds or when it seems worth it.
    fault: Option<(String, u64)>,
}

/// All links to leaders of one shard.
pub(in crate::data) struct Followings {
    own: Identity,
    links: Vec<Upstream>,
    /// The process is about to end: leaders are told that nothing is followed, and links stay until they have heard it.
    ending: bool,
    metrics: ClusterMetrics,
}

/// Why a link to a leader is given up.
#[derive(Debug, thiserror::Error)]
enum LeaderFault {
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("another run of the node answers there: {0:016x}")]
    Incarnation(u64),
    #[error("it refuses ({0}): {1}")]
    Refused(&'static str, String, u32),
    #[error("it sent a message that does not belong here")]
    Unexpected,
    #[error("slot {0}: {1}")]
    Follow(u16, FollowError),
}

impl Followings {
    pub(in crate::data) fn new(own: Identity, metrics: ClusterMetrics) -> Self {
        Self { own, links: Vec::new(), ending: false, metrics }
    }

    /// What is to be followed from now on, by leader, with the epochs that they lead in.
    pub(in crate::data) fn set_wanted(
        &mut self,
        mut wanted: BTreeMap<LeaderShard, BTreeMap<SlotId, u32>>,
        now: Nanos,
    ) {
        for link in &mut self.links {
            let wanted = wanted.remove(&link.to).unwrap_or_default();
            let left = link.slots.extract_if(.., |slot, _| !wanted.contains_key(slot));
            link.left.extend(left.map(|(slot, _)| slot));
            for (slot, epoch) in wanted {
                if link.slots.get(&slot).is_none_or(|following| following.epoch != epoch) {
                    link.slots.insert(slot, Following::new(epoch, now));
                    link.ask_due = now;
                }
            }
        }
        for (to, slots) in wanted {
            let slots = slots.into_iter().map(|(slot, epoch)| (slot, Following::new(epoch, now)));
            self.links.push(Upstream {
                to,
                wire: Dialed::default(),
                decoder: Decoder::default(),
                state: State::Waiting(now),
                failures: 0,
                slots: slots.collect(),
                left: Vec::new(),
                moved: BTreeSet::new(),
                ask_due: now,
                heard: now,
                ping_at: now,
                fault: None,
            });
        }
    }

    /// Follows nothing any more, and says so to the leaders.
    pub(in crate::data) fn end(&mut self, now: Nanos) {
        self.ending = true;
        self.set_wanted(BTreeMap::new(), now);
    }

    fn link_of(&mut self, conn: ConnId) -> Option<&mut Upstream> {
        self.links.iter_mut().find(|link| link.wire.owns(conn))
    }

    /// Whether a connection is one of these.
    pub(in crate::data) fn owns(&self, conn: ConnId) -> bool {
        self.links.iter().any(|link| link.wire.owns(conn))
    }

    /// A connection asked for is there.
    pub(in crate::data) fn connected(&mut self, conn: ConnId, own: NodeNumber, table_epoch: u64, now: Nanos) {
        let Identity { cluster, slot_count, incarnation, shard } = self.own.clone();
        let Some(link) = self.link_of(conn) else { return };
        (link.decoder, link.heard) = (Decoder::default(), now);
        link.state = State::Greeting(now.after(PATIENCE));
        let hello = ReplicaMessage::Hello {
            protocol: PROTOCOL,
            shard,
            slot_count,
            node: own,
            incarnation,
            table_epoch,
            cluster: &cluster,
        };
        hello.write(link.wire.out());
    }

    /// A connection is gone, or could not be made.
    pub(in crate::data) fn closed(&mut self, conn: ConnId, now: Nanos, jitter: u64) {
        if let Some(link) = self.link_of(conn) {
            link.wire.closed();
            link.wait(now, 0, jitter);
            self.metrics.link_failures.inc();
        }
    }

    /// Bytes of a leader.
    pub(in crate::data) fn receive(&mut self, conn: ConnId, bytes: &[u8], shard: &mut Shard, now: Nanos) {
        let metrics = self.metrics.clone();
        let Some(link) = self.link_of(conn) else { return };
        if link.fault.is_some() {
            return;
        }
        metrics.received_bytes.inc_by(bytes.len() as u64);
        link.heard = now;
        let mut decoder = std::mem::take(&mut link.decoder);
        let result = decoder.feed(bytes, FRAME_BYTES_MAX, |frame| {
            link.handle(ReplicaMessage::read(frame)?, shard, now, &metrics)
        });
        link.decoder = decoder;
        if let Err(fault) = result {
            let retry = if let LeaderFault::Refused(_, _, after) = &fault { u64::from(*after) } else { 0 };
            link.fault = Some((fault.to_string(), retry));
        }
    }

    /// Connects, asks, acknowledges, gives up: what is due.
    pub(in crate::data) fn turn(
        &mut self,
        now: Nanos,
        jitter: u64,
        shard: &mut Shard,
        sockets: &mut dyn Sockets,
    ) {
        for link in &mut self.links {
            link.turn(now, jitter, self.ending, shard, sockets, &self.metrics);
        }
        self.links.retain(|link| !link.slots.is_empty() || link.wire.is_open());
        let up = self.links.iter().filter(|link| link.state == State::Up).count();
        self.metrics.leaders.set(up as i64);
    }

    /// When it wants a turn although nothing happens.
    pub(in crate::data) fn wake_at(&self) -> Option<Nanos> {
        self.links.iter().map(Upstream::wake_at).min()
    }
}

impl Upstream {
    /// Waits before the next attempt, longer after each failure.
    fn wait(&mut self, now: Nanos, at_least: u64, jitter: u64) {
        let wait = backoff(self.failures).max(at_least);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Waiting(now.after(wait / 2 + jitter % (wait / 2 + 1)));
        (self.fault, self.ask_due) = (None, now);
        self.left.clear();
        self.moved.clear();
        for following in self.slots.values_mut() {
            *following = Following { afresh: following.afresh, ..Following::new(following.epoch, now) };
        }
    }

    fn handle(
        &mut self,
        message: ReplicaMessage<'_>,
        shard: &mut Shard,
        now: Nanos,
        metrics: &ClusterMetrics,
    ) -> Result<(), LeaderFault> {
        match message {
            ReplicaMessage::Welcome { incarnation, .. } if matches!(self.state, State::Greeting(_)) => {
                if incarnation != self.to.incarnation {
                    return Err(LeaderFault::Incarnation(incarnation));
                }
                (self.state, self.failures, self.ping_at) = (State::Up, 0, now.after(PING));
                Ok(())
            }
            ReplicaMessage::Error { code, text, retry_after_ms } => {
                let label = ErrorCode::from_number(code).map_or("unknown", ErrorCode::label);
                Err(LeaderFault::Refused(label, text.into(), retry_after_ms))
            }
            _ if self.state != State::Up => Err(LeaderFault::Unexpected),
            ReplicaMessage::Batch { slot, after, batch } => {
                // What is no longer followed, or is to be asked for anew, may still be under way.
                if !self.slots.get(&slot).is_some_and(|it| it.listens) {
                    return Ok(());
                }
                let result = shard.apply_batch(slot, after, batch, now);
                self.applied(slot, result, now, metrics)
            }
            ReplicaMessage::Part(part) => {
                let Some(following) = self.slots.get_mut(&part.slot).filter(|it| it.listens) else {
                    return Ok(());
                };
                // The leader begins anew to count what it has been told.
                following.acked = NOTHING;
                let ReplicaPart { slot, is_first, is_last, revision, lineage, entries } = part;
                let part = Part { is_first, is_last, revision, forks: &lineage, entries };
                let result = shard.apply_part(slot, &part, now);
                self.applied(slot, result, now, metrics)
            }
            ReplicaMessage::Refused { slot, code, leader_epoch } => {
                let reason = ReplicaRefusal::from_number(code);
                metrics.count_refused(false, reason);
                if let Some(following) = self.slots.get_mut(&slot) {
                    let label = reason.map_or("unknown", ReplicaRefusal::label);
                    tracing::debug!(slot = slot.0, label, leader_epoch, "a slot cannot be followed there");
                    following.afresh |= reason == Some(ReplicaRefusal::Ahead);
                    following.listens = false;
                    following.ask(now.after(backoff(following.failures)), &mut self.ask_due);
                    following.failures = following.failures.saturating_add(1);
                }
                Ok(())
            }
            ReplicaMessage::Ping(nonce) => {
                ReplicaMessage::Pong(nonce).write(self.wire.out());
                Ok(())
            }
            ReplicaMessage::Pong(_) => Ok(()),
            _ => Err(LeaderFault::Unexpected),
        }
    }

    /// Goes on after something was applied, or could not be.
    fn applied(
        &mut self,
        slot: SlotId,
        result: Result<Revision, FollowError>,
        now: Nanos,
        metrics: &ClusterMetrics,
    ) -> Result<(), LeaderFault> {
        let Some(following) = self.slots.get_mut(&slot) else { return Ok(()) };
        match result {
            Ok(_) => {
                (following.failures, following.afresh, following.ask_at) = (0, false, None);
                self.moved.insert(slot);
                Ok(())
            }
            Err(FollowError::NotFollowing) => Ok(()),
            Err(error) => {
                let at = following.asked_at.after(ASK_AGAIN).max(now);
                following.afresh |= error.ask_from(Revision(1)) != Some(Revision(1));
                if error.ask_from(Revision::ZERO).is_none() {
                    return Err(LeaderFault::Follow(slot.0, error));
                }
                // It may stem from before the last question; if nothing that fits comes, asking again is all that helps.
                if following.ask_at.is_none() {
                    metrics.gaps.inc();
                    tracing::debug!(slot = slot.0, %error, "asking a leader again");
                    following.ask(at, &mut self.ask_due);
                }
                Ok(())
            }
        }
    }

    fn turn(
        &mut self,
        now: Nanos,
        jitter: u64,
        is_ending: bool,
        shard: &mut Shard,
        sockets: &mut dyn Sockets,
        metrics: &ClusterMetrics,
    ) {
        if self.fault.is_none() {
            self.fault = match self.state {
                State::Connecting(until) | State::Greeting(until) if now >= until => {
                    Some(("it did not answer in time".into(), 0))
                }
                State::Up if now.since(self.heard) >= SILENCE_MAX => Some(("it fell silent".into(), 0)),
                _ => None,
            };
        }
        if let Some((reason, after_ms)) = self.fault.take() {
            tracing::warn!(leader = %self.to.addr, node = self.to.node.0, reason, "giving up a link to a leader");
            metrics.link_failures.inc();
            self.wire.close(sockets);
            self.wait(now, after_ms * MS, jitter);
        }
        if self.slots.is_empty() && !(is_ending && self.state == State::Up) {
            // Whoever follows nothing there any more needs no link.
            self.wire.close(sockets);
            return;
        }
        match self.state {
            State::Waiting(until) if now >= until => {
                if self.wire.connect(self.to.addr, sockets) {
                    self.state = State::Connecting(now.after(PATIENCE));
                } else {
                    self.wait(now, 0, jitter);
                }
            }
            State::Up => {
                self.ask(now, shard);
                self.acknowledge(shard);
                if now >= self.ping_at {
                    self.ping_at = now.after(PING);
                    ReplicaMessage::Ping(now.0).write(self.wire.out());
                }
            }
            _ => {}
        }
        self.wire.flush(sockets);
    }

    fn ask(&mut self, now: Nanos, shard: &mut Shard) {
        if !self.left.is_empty() {
            let left = std::mem::take(&mut self.left);
            ReplicaMessage::Unfollow(left).write(self.wire.out());
        }
        if now < self.ask_due {
            return;
        }
        self.ask_due = Nanos(u64::MAX);
        let mut items = Vec::new();
        for (slot, following) in &mut self.slots {
            if let Some(at) = following.ask_at.filter(|at| *at > now) {
                self.ask_due = self.ask_due.min(at);
            }
            if following.ask_at.is_none_or(|at| at > now) {
                continue;
            }
            let since = if following.afresh { Revision::ZERO } else { shard.followed(*slot).0 };
            items.push(FollowItem { slot: *slot, leader_epoch: following.epoch, since });
            (following.ask_at, following.listens, following.asked_at) = (None, true, now);
            following.acked = NOTHING;
            self.moved.insert(*slot);
        }
        for items in items.chunks(FOLLOW_MAX) {
            ReplicaMessage::Follow(items.to_vec()).write(self.wire.out());
        }
    }

    fn acknowledge(&mut self, shard: &mut Shard) {
        if self.moved.is_empty() || self.wire.waiting() > ACK_WAITING_MAX {
            return;
        }
        let mut items = Vec::new();
        let (slots, has_disk) = (&mut self.slots, shard.storage().is_some());
        self.moved.retain(|slot| {
            let Some(following) = slots.get_mut(slot) else { return false };
            let (applied, durable) = shard.followed(*slot);
            if following.acked != (applied, durable) {
                following.acked = (applied, durable);
                items.push(ReplicaAckItem { slot: *slot, applied, durable });
            }
            has_disk && durable < applied
        });
        if !items.is_empty() {
            ReplicaMessage::Ack(items).write(self.wire.out());
        }
    }

    fn wake_at(&self) -> Nanos {
        match self.state {
            State::Waiting(until) | State::Connecting(until) | State::Greeting(until) => until,
            State::Up => self.ask_due.min(self.ping_at),
        }
    }
}

fn backoff(failures: u32) -> u64 {
    RETRY.0.saturating_mul(1 << failures.min(20)).min(RETRY.1)
}
