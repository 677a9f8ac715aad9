//! A shard as a member of a cluster: it follows the slot table, does with each of its slots what the table says, and reports.
//!
//! Everything runs in the shard's own thread, over the sockets that the role is given: one link to the control plane, one to
//! each shard that leads slots followed here, and any number from shards that follow slots led here. The first shard of a
//! node speaks for all of them; the others watch the table like sessions, and leave what they have to report on a [`Board`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use slotcast_engine::{
    id::{Nanos, ReplicaId, SlotId, mix64},
    shard::{ReplicaLag, Shard, ShardConfig},
    slot_state::SlotState,
};

use crate::{
    data::{
        cluster::{
            board::Note,
            duty::{Duty, Standing, Step, duty, is_missed, standing, step},
            metrics::ClusterMetrics,
            sync::{InSync, Lag},
        },
        replica::{Followers, Followings, Hearing, Identity, LeaderShard, ReplicaFault, Welcoming, fill},
    },
    follow::{LinkAction, LinkFault, MetaLink, MetaLinkConfig},
    io::{
        dial::Dialed,
        ring::{ConnId, Event, Sockets, Waker},
    },
    wire::{
        meta::{HeldState, MetaMessage, MetaPeer, NodeLoad, SlotReport},
        replica::ReplicaMessage,
        slot_table::{NodeEntry, NodeNumber, SlotEntry, SlotTable},
    },
};

pub mod board;

mod duty;

pub mod metrics;

mod sync;

pub use board::Board;

const MS: u64 = Nanos::SECOND / 1000;
/// Time between two looks at who is in sync while somebody is not, and while everybody is.
const LOOK: (u64, u64) = (20 * MS, 200 * MS);
/// Time between two looks at load and metrics.
const OBSERVE: u64 = 500 * MS;

/// What a shard of a clustered data node is told at its start.
#[derive(Clone)]
pub struct ClusterConfig {
    /// Name of the cluster.
    pub cluster: String,
    /// The processes of the control plane.
    pub metas: Vec<SocketAddr>,
    /// The node as it introduces itself.
    pub entry: Arc<NodeEntry>,
    /// What it shares with the other shards of its node.
    pub board: Board,
    /// How long a follower may be behind or away and still count as in sync (nanoseconds). Acknowledgements of persistent
    /// changes wait for it meanwhile.
    pub replica_lag_max: u64,
}

/// A shard's membership.
pub(super) struct Cluster {
    config: ClusterConfig,
    shard: u32,
    meta: MetaLink,
    meta_wire: Dialed,
    fault_told: Option<LinkFault>,
    /// The table that was taken in.
    table: Arc<SlotTable>,
    /// Who this node is in it.
    number: Option<NodeNumber>,
    /// The table as a frame for sessions.
    table_frame: Option<Vec<u8>>,
    followings: Followings,
    followers: Followers,
    /// Epochs that slots could not be led in, because they know as large ones.
    refused: BTreeMap<SlotId, u32>,
    /// Slots that began to be led and do not answer readers yet, and since when.
    promoted: BTreeMap<SlotId, Nanos>,
    /// The process is about to end.
    ending: bool,
    /// Of the slots led here.
    in_sync: BTreeMap<SlotId, InSync>,
    /// What the engine was told to wait for, and in which epoch: each forgets it.
    waited_for: BTreeMap<SlotId, (u32, Vec<ReplicaId>)>,
    holds_persistent: Option<bool>,
    look_at: Nanos,
    observe_at: Nanos,
    load: NodeLoad,
    /// Processor time of the process when that was last looked at, and when.
    used: (Nanos, Nanos),
    jitter: u64,
    metrics: ClusterMetrics,
}

/// What stands for the table where that does not say yet that a slot may have persistent publishers.
const TABLE: NodeNumber = NodeNumber(NodeNumber::LIMIT);

/// What stands for the link of a follower that the table counts as in sync and that is not linked: it never acknowledges.
fn nobody(node: NodeNumber) -> ReplicaId {
    ReplicaId(u32::MAX - node.0)
}

impl Cluster {
    /// A member that has not heard of any table.
    pub(super) fn new(config: ClusterConfig, of: &ShardConfig, metrics: ClusterMetrics) -> Self {
        let (slot_count, shard, seed) = (of.slot_count, of.shard, mix64(of.seed));
        let peer = if shard == 0 { MetaPeer::Data(config.entry.clone()) } else { MetaPeer::Session };
        let table = Arc::new(SlotTable::empty(&config.cluster, slot_count));
        let meta = MetaLinkConfig::new(config.metas.clone(), &config.cluster, slot_count, peer);
        let own = Identity {
            cluster: config.cluster.clone(),
            slot_count,
            incarnation: config.entry.incarnation,
            shard: shard as u16,
        };
        Self {
            shard,
            meta: MetaLink::new(meta, table.clone(), seed as usize),
            meta_wire: Dialed::default(),
            fault_told: None,
            table,
            number: None,
            table_frame: None,
            followings: Followings::new(own, metrics.clone()),
            followers: Followers::default(),
            refused: BTreeMap::new(),
            promoted: BTreeMap::new(),
            ending: false,
            in_sync: BTreeMap::new(),
            waited_for: BTreeMap::new(),
            holds_persistent: None,
            look_at: Nanos(0),
            observe_at: Nanos(0),
            load: NodeLoad::default(),
            used: (Nanos(0), Nanos(0)),
            jitter: seed,
            metrics,
            config,
        }
    }

    /// How to wake this shard from another one.
    pub(super) fn started(&self, waker: Waker) {
        self.config.board.set_waker(self.shard, waker);
    }

    /// The epoch of the table that is followed.
    pub(super) fn table_epoch(&self) -> u64 {
        self.table.epoch
    }

    fn jitter(&mut self) -> u64 {
        self.jitter = mix64(self.jitter.wrapping_add(1));
        self.jitter
    }

    /// Whether an event is of a connection that this made.
    pub(super) fn owns(&self, conn: ConnId) -> bool {
        self.meta_wire.owns(conn) || self.followings.owns(conn)
    }

    /// Notes what happened on a connection that this made.
    pub(super) fn handle(&mut self, event: Event<'_>, shard: &mut Shard, now: Nanos) {
        let jitter = self.jitter();
        match event {
            Event::Connected { conn } if self.meta_wire.owns(conn) => self.meta.handle_connected(now),
            Event::Received { conn, bytes } if self.meta_wire.owns(conn) => self.meta.handle_bytes(bytes),
            Event::Closed { conn, .. } if self.meta_wire.owns(conn) => {
                self.meta_wire.closed();
                self.meta.handle_closed(now, jitter);
            }
            Event::Connected { conn } => {
                let number = self.number.unwrap_or_default();
                self.followings.connected(conn, number, self.table.epoch, now);
            }
            Event::Received { conn, bytes } => self.followings.receive(conn, bytes, shard, now),
            Event::Closed { conn, .. } => self.followings.closed(conn, now, jitter),
            Event::Accepted { .. } | Event::Writable { .. } => {}
        }
    }

    /// Hears what the control plane says, and does with the slots what a new table asks for. After the turn's batches are
    /// sealed and acknowledged. Returns whether the slots are other ones than before.
    pub(super) fn follow_table(&mut self, shard: &mut Shard, now: Nanos, sockets: &mut dyn Sockets) -> bool {
        if let Some(table) = self.config.board.exchange_table(self.meta.table()) {
            self.meta.share_table(&table);
        }
        let news = self.meta.take_news();
        let has_news = news.is_some();
        if let Some(table) = news {
            self.take_table(table, shard, now);
        }
        self.end_if_asked(has_news, shard, now);
        self.note_promotions(shard, now);
        let jitter = self.jitter();
        while let Some(action) = self.meta.poll(now, jitter) {
            match action {
                LinkAction::Connect(addr) => {
                    if !self.meta_wire.connect(addr, sockets) {
                        self.meta.handle_closed(now, jitter);
                    }
                }
                LinkAction::Send(bytes) => self.meta_wire.out().extend_from_slice(&bytes),
                LinkAction::Close => self.meta_wire.close(sockets),
            }
        }
        self.meta_wire.flush(sockets);
        if self.shard == 0 {
            self.config.board.set_lease_end(self.meta.lease_end());
        }
        let holds = now >= self.config.board.lease_end();
        if self.holds_persistent != Some(holds) {
            self.holds_persistent = Some(holds);
            shard.hold_persistent(holds);
        }
        has_news
    }

    fn take_table(&mut self, table: Arc<SlotTable>, shard: &mut Shard, now: Nanos) {
        let known = self.number;
        let number = match standing(&table, &self.config.entry) {
            Standing::Named(number) => Some(number),
            Standing::Unknown => None,
        };
        let (shard_number, shards) = shard.placement();
        tracing::debug!(epoch = table.epoch, node = ?number, "a new slot table");
        for (node, entry) in &table.nodes {
            let before = self.table.nodes.get(node);
            if before.is_some_and(|before| before.incarnation != entry.incarnation) {
                self.in_sync.values_mut().for_each(|sync| sync.forget(*node));
            }
        }
        self.table = table;
        self.table_frame = None;
        self.number = number;
        let mut wanted: BTreeMap<LeaderShard, BTreeMap<SlotId, u32>> = BTreeMap::new();
        let slots = (0..self.table.slots.len() as u16).map(SlotId);
        for slot in slots.filter(|slot| slot.shard(shards) == shard_number) {
            let asked = match (number, known) {
                (Some(number), _) => duty(&self.table, number, slot),
                // It named this run and does so no more: somebody took its place, or it was given up.
                (None, Some(_)) => Duty::None,
                // A table from before this start. What the disk had may be wanted by the next one.
                (None, None) => continue,
            };
            self.fulfil(slot, asked, shard, now);
            if let Duty::Lead(_) = asked {
                shard.expect_replicas(slot, self.table.slots[usize::from(slot.0)].members().len() > 1);
            }
            let Duty::Follow(leader, epoch) = asked else { continue };
            if shard.state(slot) != SlotState::Following || self.ending {
                continue;
            }
            let node = &self.table.nodes[&leader];
            let Some(addr) = node.shard_addr(slot) else { continue };
            let to = LeaderShard { node: leader, incarnation: node.incarnation, addr };
            wanted.entry(to).or_default().insert(slot, epoch);
        }
        self.followings.set_wanted(wanted, now);
        self.followers.keep_members(&self.table, shard);
        (self.look_at, self.observe_at) = (now, now);
    }

    /// Once the process is about to end: follows nothing, asks to lead nothing, and says when nobody would miss it.
    fn end_if_asked(&mut self, has_news: bool, shard: &Shard, now: Nanos) {
        if !self.ending {
            if !self.config.board.is_ending() {
                return;
            }
            self.ending = true;
            self.followings.end(now);
            self.meta.set_ending();
        } else if !has_news {
            return;
        }
        let (number, shards) = shard.placement();
        let is_missed = |(slot, entry): (usize, &SlotEntry)| {
            let is_here = SlotId(slot as u16).shard(shards) == number;
            is_here && self.number.is_some_and(|own| is_missed(entry, own))
        };
        let free = !self.table.slots.iter().enumerate().any(is_missed);
        self.config.board.set_free(self.shard, free);
    }

    /// Tells how long slots took from the table to Accept.
    fn note_promotions(&mut self, shard: &Shard, now: Nanos) {
        let time = &self.metrics.promotion_time;
        self.promoted.retain(|slot, since| {
            let state = shard.state(*slot);
            if state == SlotState::Accept {
                time.observe(now.since(*since));
            }
            state == SlotState::Migrating
        });
    }

    /// Does what a table asks for one slot.
    fn fulfil(&mut self, slot: SlotId, asked: Duty, shard: &mut Shard, now: Nanos) {
        let state = shard.state(slot);
        let metrics = &self.metrics;
        self.refused.remove(&slot);
        let result = match step(state, shard.known_epoch(slot), asked) {
            Step::Stay => return,
            Step::Lead(epoch) => shard.lead(slot, epoch, now).inspect(|()| {
                metrics.promotions.inc();
                self.promoted.insert(slot, now);
            }),
            Step::Follow(epoch) => shard.follow(slot, epoch, now).inspect(|()| {
                if state.is_led() {
                    metrics.demotions.inc();
                }
            }),
            Step::Leave => {
                if state != SlotState::Absent {
                    metrics.left.inc();
                }
                shard.leave(slot, now);
                Ok(())
            }
        };
        if let Err(error) = result {
            metrics.epochs_refused.inc();
            if let Duty::Lead(epoch) = asked {
                self.refused.insert(slot, epoch);
            }
            tracing::warn!(slot = slot.0, %error, "the slot table asks for what cannot be: the epoch known here is reported");
        }
    }

    /// The whole table as a frame, for a session whose own is of an older epoch.
    pub(super) fn table_for(&mut self, session_epoch: u64) -> Option<&[u8]> {
        if session_epoch >= self.table.epoch {
            return None;
        }
        self.metrics.tables_sent.inc();
        let table = &self.table;
        Some(self.table_frame.get_or_insert_with(|| {
            let mut frame = Vec::new();
            MetaMessage::TableDelta(table.whole()).write(&mut frame);
            frame
        }))
    }

    /// A follower's first message. Returns the link that this one takes the place of.
    pub(super) fn greet(
        &mut self,
        link: u32,
        message: &ReplicaMessage<'_>,
        out: &mut Vec<u8>,
        now: Nanos,
    ) -> Result<Option<u32>, ReplicaFault> {
        let own = Welcoming { table: &self.table, incarnation: self.config.entry.incarnation };
        let replaced = self.followers.greet(link, message, &own, out, now)?;
        self.look_at = now;
        Ok(replaced)
    }

    /// A message of a follower that was welcomed.
    pub(super) fn hear_follower(
        &mut self,
        link: u32,
        message: ReplicaMessage<'_>,
        shard: &mut Shard,
        out: &mut Vec<u8>,
        now: Nanos,
    ) -> Result<(), ReplicaFault> {
        if matches!(message, ReplicaMessage::Unfollow(_)) {
            self.look_at = now;
        }
        let with = Hearing { table: &self.table, shard, out, metrics: &self.metrics, now };
        self.followers.handle(link, message, with)
    }

    /// Whether nothing was heard of a follower for too long.
    pub(super) fn is_silent(&self, link: u32, now: Nanos) -> bool {
        self.followers.is_silent(link, now)
    }

    /// A link of a follower is gone.
    pub(super) fn close_follower(&mut self, link: u32, shard: &mut Shard) {
        self.followers.close(link, shard);
    }

    /// The links of followers, into whose buffers what they lack is to be put.
    pub(super) fn followers(&self) -> Vec<u32> {
        self.followers.links().collect()
    }

    /// Appends what a follower lacks, about `budget` bytes of it. Returns whether there is more.
    pub(super) fn fill(&self, link: u32, shard: &mut Shard, budget: usize, out: &mut Vec<u8>) -> bool {
        fill(link, shard, budget, out, &self.metrics)
    }

    /// How many followers take nothing, and how many bytes wait for all of them.
    pub(super) fn observe_links(&self, full: usize, waiting: usize) {
        self.metrics.full_links.set(full as i64);
        self.metrics.waiting_bytes.set(waiting as i64);
    }

    /// Acknowledges to leaders, looks at who is in sync, and reports. After the turn's batches are sealed.
    pub(super) fn report(&mut self, shard: &mut Shard, now: Nanos, sockets: &mut dyn Sockets) {
        let jitter = self.jitter();
        self.followings.turn(now, jitter, shard, sockets);
        if now >= self.observe_at {
            self.observe_at = now.after(OBSERVE);
            self.observe(shard, now);
        }
        if now >= self.look_at {
            let all = self.look(shard, now);
            // Some microseconds for each slot: very many are looked at less often.
            let often = LOOK.0 * (1 + self.in_sync.len() as u64 / 1024);
            self.look_at = now.after(if all { LOOK.1 } else { often.min(LOOK.1) });
            self.tell(shard);
        }
    }

    /// Looks at who is in sync. Returns whether everybody is.
    fn look(&mut self, shard: &mut Shard, now: Nanos) -> bool {
        let led: Vec<(SlotId, u32)> = shard.led().collect();
        self.in_sync.retain(|slot, _| led.binary_search_by_key(slot, |(slot, _)| *slot).is_ok());
        self.waited_for.retain(|slot, _| led.binary_search_by_key(slot, |(slot, _)| *slot).is_ok());
        let by_durable = shard.storage().is_some();
        let (mut behind, mut out_of_sync, mut oldest) = (0, 0, 0);
        for (slot, epoch) in led {
            let followers = &self.table.slots[usize::from(slot.0)].members()[1..];
            let lags: BTreeMap<ReplicaId, ReplicaLag> =
                shard.replica_lag(slot).map(|lag| (lag.replica, lag)).collect();
            // Of another epoch: nothing that could be counted.
            let counted = lags.values().map(|lag| lag.behind).filter(|behind| *behind != u64::MAX);
            behind = counted.fold(behind, u64::max);
            oldest = lags.values().map(|lag| lag.lag).fold(oldest, u64::max);
            let link_of = |node| self.followers.link_to(node, slot, &self.table).map(ReplicaId);
            let lag_of = |node: NodeNumber| {
                if link_of(node).is_some_and(|link| self.followers.has_left(link.0, slot)) {
                    return Some(Lag::LEFT);
                }
                let lag = lags.get(&link_of(node)?)?;
                let held = if by_durable { lag.durable } else { lag.applied };
                (!lag.is_copying).then_some(Lag { held, nanos: lag.lag })
            };
            let revision = shard.led_at(slot).unwrap_or_default();
            let sync = self.in_sync.entry(slot).or_default();
            sync.look(followers, revision, now, self.config.replica_lag_max, lag_of);
            out_of_sync += followers.len() - sync.told().count();
            let waited = sync.waited_for().map(|node| link_of(node).unwrap_or(nobody(node)));
            let is_known = self.table.slots[usize::from(slot.0)].has_persistent;
            let waited = waited.chain((!is_known).then_some(nobody(TABLE)));
            let waited = (epoch, waited.collect::<Vec<_>>());
            if self.waited_for.get(&slot) != Some(&waited) {
                shard.set_in_sync(slot, &waited.1);
                self.waited_for.insert(slot, waited);
            }
        }
        self.metrics.lag_revisions.set(behind as i64);
        self.metrics.lag_ms.set((oldest / MS) as i64);
        self.metrics.out_of_sync.set(out_of_sync as i64);
        out_of_sync == 0
    }

    /// Tells the control plane what this shard does, if it is the first of its node, or leaves it for that one.
    fn tell(&mut self, shard: &Shard) {
        let (number, shards) = shard.placement();
        let slots = (0..self.table.slots.len() as u16).map(SlotId);
        let (held_back, persistent): (BTreeSet<SlotId>, _) =
            (shard.held_back().collect(), shard.persistent_slots());
        let slots = slots.filter(|slot| slot.shard(shards) == number).filter_map(|slot| {
            let refused = self.refused.get(&slot).copied();
            let state = match shard.state(slot) {
                // What its disk has, it could follow; and the control plane has to know the epochs.
                SlotState::Absent if refused.is_none() && !held_back.contains(&slot) => return None,
                SlotState::Absent | SlotState::Following => HeldState::Following,
                SlotState::Migrating => HeldState::Migrating,
                SlotState::Accept => HeldState::Accept,
                SlotState::Moved => HeldState::Moved,
            };
            let entry = &self.table.slots[usize::from(slot.0)];
            let in_sync = self.in_sync.get(&slot).map_or_else(Vec::new, |sync| sync.told().collect());
            Some(SlotReport {
                slot,
                state,
                is_whole: !entry.is_unclean,
                has_persistent: entry.has_persistent || persistent.contains(&slot),
                // Above what was asked for in vain, so that it is not asked for again.
                leader_epoch: shard.known_epoch(slot).max(refused.map_or(0, |epoch| epoch + 1)),
                in_sync,
            })
        });
        let note = Note { table_epoch: self.table.epoch, slots: slots.collect(), load: self.load };
        if shards == 1 {
            self.meta.set_load(note.load);
            self.meta.set_slots(note.table_epoch, note.slots);
            return;
        }
        self.config.board.post(self.shard, note);
        if self.shard == 0 {
            let all = self.config.board.gathered();
            self.meta.set_load(all.load);
            self.meta.set_slots(all.table_epoch, all.slots);
        }
    }

    fn observe(&mut self, shard: &Shard, now: Nanos) {
        let counts = shard.counts();
        // The first shard tells it for the whole process.
        let used = if self.shard == 0 { self.config.board.cpu_time() } else { Nanos(0) };
        let (before, since) = std::mem::replace(&mut self.used, (used, now));
        let permille = used.since(before) * 1000 / now.since(since).max(1);
        self.load = NodeLoad {
            publishers: counts.publishers as u64,
            bytes: shard.memory().total() as u64,
            cpu_permille: u32::try_from(permille).unwrap_or(u32::MAX),
        };
        let (number, shards) = shard.placement();
        let own = (0..self.table.slots.len() as u16).map(SlotId);
        let mut states = SlotState::ALL.map(|state| (state, 0));
        for slot in own.filter(|slot| slot.shard(shards) == number) {
            let state = shard.state(slot);
            states.iter_mut().filter(|(of, _)| *of == state).for_each(|(_, count)| *count += 1);
        }
        let metrics = &self.metrics;
        metrics.set_slots(states.into_iter());
        metrics.observe(&shard.cluster_stats(), &shard.replica_stats(), &shard.follow_stats());
        metrics.table_epoch.set(self.table.epoch as i64);
        metrics.tables_refused.set(self.meta.older_refused as i64);
        metrics.control_plane.set(i64::from(self.meta.is_connected()));
        metrics.lease.set(i64::from(now < self.config.board.lease_end()));
        metrics.followers.set(self.followers.len() as i64);
        if self.meta.last_fault != self.fault_told {
            self.fault_told.clone_from(&self.meta.last_fault);
            if let Some(fault) = &self.fault_told {
                tracing::warn!(%fault, "a connection to the control plane was given up");
            }
        }
    }

    /// When it wants a turn although nothing happens.
    pub(super) fn wake_at(&self) -> Nanos {
        let own = self.look_at.min(self.observe_at).min(self.meta.wake_at());
        self.followings.wake_at().map_or(own, |at| at.min(own))
    }
}
