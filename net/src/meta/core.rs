//! The control plane as a state machine: what peers say, what the store did and the time in; frames, closes and what is to be
//! stored out.
//!
//! ```text
//!              elected, table loaded            everybody is heard, or waited for long enough
//!   Standby ───────────────────────▶ Warming ─────────────────────────────────────────▶ Leading
//!      ▲                                │                                                 │
//!      └──────────── deposed ───────────┴──────────────────── deposed ─────────────────────┘
//! ```
//!
//! - A table is told to nobody before the store has it. While the store does not answer, the last table stands.
//! - No table is made in `Warming`: the largest table and leader epochs that nodes know of are learnt first. A node that has
//!   not found this process yet is not taken for lost before it had the time to.
//! - A node that knows a newer table than this one is asked for it. So a store that was set back, or lost, is healed.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};

use slotcast_engine::id::{Nanos, Revision};

use crate::{
    follow::FIND_MAX,
    meta::{
        assign::EpochSeen,
        members::{Members, PeerId},
    },
    wire::{
        ErrorCode, FrameError,
        header::PROTOCOL,
        meta::{HeldState, MetaMessage, MetaPeer, REPORTS_MAX, SlotReport},
        slot_table::{NodeNumber, SlotTable, TABLE_EPOCH_LIMIT},
    },
};

mod history;
mod planning;
mod status;
#[cfg(test)]
mod tests;

pub use history::History;
pub use status::{MetaStatus, NodeStatus, Phase};

/// What the control plane is told.
#[derive(Clone, Debug)]
pub struct MetaConfig {
    /// Name of the cluster; peers of another one are refused.
    pub cluster: String,
    /// Slots of the cluster; peers with another count are refused.
    pub slot_count: u32,
    /// A number that no other run of a control plane has.
    pub run: u64,
    /// Members that each slot is to have.
    pub replicas: usize,
    /// Moves of slots under way at once.
    pub moves_max: usize,
    /// How long a node may be silent (nanoseconds).
    pub lease: u64,
    /// How long a node that was lost is waited for before its slots get other members.
    pub replace_after: u64,
    /// How long leases are held back that end together with those of more than a third of the nodes.
    pub hold: u64,
    /// Nodes that an empty cluster waits for before its first table.
    pub nodes_min: usize,
    /// Longest wait for them from the first node on.
    pub first_wait: u64,
    /// Longest wait, after an election, for nodes. For those of a table it is never less than the lease and
    /// [`FIND_MAX`]: one that lives and looks for this process keeps what it has.
    pub warm_up: u64,
    /// How long a new member may take to get in sync before others are moved in spite of it.
    pub sync_timeout: u64,
    /// Shortest time between two tables.
    pub round_interval: u64,
    /// Whether a slot with persistent publishers may be led by a member that is not in sync, where none that is in sync is
    /// there. What was acknowledged may be missing or older then.
    pub unclean_leaders: bool,
    /// Bytes of recent deltas kept for peers that are behind.
    pub history_bytes_max: usize,
}

impl MetaConfig {
    /// The defaults for a cluster.
    pub fn new(cluster: &str, slot_count: u32) -> Self {
        let ms = Nanos::SECOND / 1000;
        Self {
            cluster: cluster.into(),
            slot_count,
            run: 1,
            replicas: 2,
            moves_max: 64,
            lease: 2000 * ms,
            replace_after: 10_000 * ms,
            hold: 10_000 * ms,
            nodes_min: 1,
            first_wait: 5000 * ms,
            warm_up: FIND_MAX,
            sync_timeout: 60_000 * ms,
            round_interval: 50 * ms,
            unclean_leaders: false,
            history_bytes_max: 8 << 20,
        }
    }
}

/// What is to be done for the state machine.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send a frame.
    Send(PeerId, Rc<[u8]>),
    /// Tell a peer why, and close.
    Close(PeerId, ErrorCode, String),
    /// Replace what the store has, if that is still the table of epoch `expected`.
    Store {
        /// Table epoch that the store should have; 0: none.
        expected: u64,
        /// The new table.
        table: Arc<SlotTable>,
    },
}

/// Counters since the start.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is described where it is registered as a metric")]
pub struct MetaCounters {
    pub heartbeats: u64,
    pub reports: u64,
    pub leases_ended: u64,
    pub tables: u64,
    pub leaders_changed: u64,
    pub moves: u64,
    pub unclean: u64,
    pub deltas_sent: u64,
    pub delta_bytes: u64,
    pub wholes_sent: u64,
    pub refused_peers: u64,
    pub tables_adopted: u64,
    pub store_failures: u64,
}

/// Why a peer is told to go away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct PeerFault {
    /// For the peer's code.
    pub code: ErrorCode,
    /// For people.
    pub text: String,
}

impl PeerFault {
    fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

impl From<FrameError> for PeerFault {
    fn from(error: FrameError) -> Self {
        Self::new(ErrorCode::Frame, error.to_string())
    }
}

#[derive(Debug)]
struct Peer {
    node: Option<Arc<str>>,
    /// Of a session: where operators ask it.
    pages: Option<SocketAddr>,
    /// The table that it has, or will have when it has read what was sent.
    epoch: u64,
}

/// The control plane.
pub struct MetaCore {
    config: MetaConfig,
    phase: Phase,
    elected_at: Nanos,
    peers: BTreeMap<PeerId, Peer>,
    members: Members,
    /// Nodes of the table that are no members, and since when.
    away: BTreeMap<NodeNumber, Nanos>,
    table: Arc<SlotTable>,
    /// The nodes of the table by their ids.
    numbers: BTreeMap<Arc<str>, NodeNumber>,
    /// The table epoch that the store has.
    stored: u64,
    storing: Option<Arc<SlotTable>>,
    retry_at: Nanos,
    store_error: Option<String>,
    /// The largest table epoch that anybody told of.
    told_epoch: u64,
    seen: Vec<EpochSeen>,
    /// The table that last changed each slot, as far as that is known here; otherwise the first one that was seen here.
    changed: Vec<u64>,
    history: History,
    /// Members that were added and are not in sync yet, and since when.
    joining: BTreeMap<(u16, NodeNumber), Nanos>,
    drains: BTreeMap<Arc<str>, bool>,
    first_node_at: Option<Nanos>,
    held_back: usize,
    /// Slots that wait for a member in sync.
    waiting: usize,
    /// Until when nothing comes of looking at nodes that are away.
    idle_until: Nanos,
    dirty: bool,
    round_at: Nanos,
    outputs: VecDeque<Output>,
    counters: MetaCounters,
}

impl MetaCore {
    /// A control plane that waits to be elected.
    pub fn new(config: MetaConfig) -> Self {
        let table = Arc::new(SlotTable::empty(&config.cluster, config.slot_count));
        Self {
            phase: Phase::Standby,
            elected_at: Nanos(0),
            peers: BTreeMap::new(),
            members: Members::new(config.lease, config.hold),
            away: BTreeMap::new(),
            numbers: BTreeMap::new(),
            stored: 0,
            storing: None,
            retry_at: Nanos(0),
            store_error: None,
            told_epoch: 0,
            seen: vec![EpochSeen::default(); table.slots.len()],
            changed: vec![0; table.slots.len()],
            history: History::new(config.history_bytes_max),
            joining: BTreeMap::new(),
            drains: BTreeMap::new(),
            first_node_at: None,
            held_back: 0,
            waiting: 0,
            idle_until: Nanos(0),
            dirty: false,
            round_at: Nanos(0),
            outputs: VecDeque::new(),
            counters: MetaCounters::default(),
            table,
            config,
        }
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The last table that the store has, or that was adopted.
    pub fn table(&self) -> &Arc<SlotTable> {
        &self.table
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What was counted.
    pub fn counters(&self) -> MetaCounters {
        self.counters
    }

    /// This process leads from now on; `loaded` is what the store has. A larger table in memory is kept.
    pub fn handle_elected(&mut self, loaded: Option<SlotTable>, now: Nanos) -> Result<(), String> {
        let (cluster, slots) = (&self.config.cluster, self.config.slot_count as usize);
        if let Some(table) = &loaded
            && (*table.cluster != **cluster || table.slots.len() != slots)
        {
            return Err(format!(
                "the store holds the table of cluster {:?} with {} slots, this process is configured for \
                 {cluster:?} with {slots}: correct the configuration or use another store",
                table.cluster,
                table.slots.len()
            ));
        }
        self.stored = loaded.as_ref().map_or(0, |table| table.epoch);
        self.storing = None;
        match loaded {
            Some(table) if table.epoch > self.table.epoch => {
                self.history.clear();
                self.replace_table(Arc::new(table), now);
                self.changed.fill(self.table.epoch);
            }
            _ if self.stored < self.table.epoch => {
                tracing::warn!(stored = self.stored, held = self.table.epoch, "the store has an older table");
                self.dirty = true;
            }
            _ => {}
        }
        self.phase = Phase::Warming;
        self.elected_at = now;
        // Nobody could be heard before.
        self.away.values_mut().for_each(|since| *since = now);
        Ok(())
    }

    /// Another process leads, or nobody knows: peers are sent away.
    pub fn handle_deposed(&mut self, now: Nanos) {
        if self.phase == Phase::Standby {
            return;
        }
        (self.phase, self.storing) = (Phase::Standby, None);
        self.members.clear();
        self.away = self.table.nodes.keys().map(|number| (*number, now)).collect();
        for peer in std::mem::take(&mut self.peers).into_keys() {
            let text = "this process of the control plane does not lead any more: ask another".into();
            self.outputs.push_back(Output::Close(peer, ErrorCode::NotLeading, text));
        }
    }

    /// The store has taken the table of `epoch`.
    pub fn handle_stored(&mut self, epoch: u64, now: Nanos) {
        let Some(table) = self.storing.take_if(|table| table.epoch == epoch) else { return };
        (self.stored, self.store_error) = (epoch, None);
        if table.epoch <= self.table.epoch {
            // A newer one was adopted meanwhile: it has to be stored, too.
            self.dirty = true;
            return;
        }
        self.counters.tables += 1;
        self.replace_table(table, now);
        self.push_table();
    }

    /// The store did not take the table of `epoch`. `holds` is what it has instead, if that is known.
    pub fn handle_store_failed(&mut self, epoch: u64, holds: Option<u64>, reason: &str, now: Nanos) {
        if self.storing.take_if(|table| table.epoch == epoch).is_none() {
            return;
        }
        self.counters.store_failures += 1;
        self.store_error = Some(reason.to_owned());
        if let Some(holds) = holds {
            // Set back from outside: what is known here is newer and goes over it. Anything newer comes from another
            // leader, who will have deposed this one.
            self.stored = holds;
            self.told_epoch = self.told_epoch.max(holds);
        }
        self.dirty = true;
        self.retry_at = now.after(Nanos::SECOND);
    }

    /// A peer's message. An error is for the peer, whose connection ends.
    pub fn handle_message(
        &mut self,
        peer: PeerId,
        message: MetaMessage,
        now: Nanos,
    ) -> Result<(), PeerFault> {
        if self.phase == Phase::Standby {
            let text = "this process of the control plane does not lead: ask another";
            return Err(PeerFault::new(ErrorCode::NotLeading, text));
        }
        let told = match &message {
            MetaMessage::Hello { table_epoch, .. }
            | MetaMessage::Heartbeat { table_epoch, .. }
            | MetaMessage::Watch { table_epoch, .. } => *table_epoch,
            _ => 0,
        };
        if told >= TABLE_EPOCH_LIMIT {
            return Err(PeerFault::new(ErrorCode::Frame, format!("table epoch {told} is out of range")));
        }
        let known = self.peers.contains_key(&peer);
        match message {
            MetaMessage::Hello { protocol, slot_count, table_epoch, cluster, peer: who } if !known => {
                self.hello(peer, protocol, slot_count, table_epoch, &cluster, who, now)
            }
            MetaMessage::Heartbeat { sequence, table_epoch, load, ending, report, reported_epoch, slots }
                if known =>
            {
                self.counters.heartbeats += 1;
                let id = self.peers[&peer].node.clone();
                let unexpected =
                    || PeerFault::new(ErrorCode::Unexpected, "a session sends no heartbeat, but a watch");
                let id = id.ok_or_else(unexpected)?;
                let Some(member) = self.members.renew(&id, now) else {
                    // Its lease has ended on this connection: it has to introduce itself again.
                    return Err(PeerFault::new(
                        ErrorCode::SessionRefused,
                        "the lease of this node has ended",
                    ));
                };
                member.load = load;
                self.dirty |= std::mem::replace(&mut member.ending, ending) != ending;
                if let Some(slots) = slots.filter(|_| member.report != report) {
                    (member.report, member.reported_epoch) = (report, reported_epoch);
                    self.report(&id, slots)?;
                }
                let report = self.members.get(&id).map_or(0, |member| member.report);
                self.acknowledge(peer, sequence, table_epoch, report);
                Ok(())
            }
            MetaMessage::Watch { sequence, table_epoch } if known => {
                self.acknowledge(peer, sequence, table_epoch, 0);
                Ok(())
            }
            MetaMessage::TableOffer(delta) if known => {
                let offered = SlotTable::from_whole(&delta);
                let offered = offered.map_err(|error| PeerFault::new(ErrorCode::Frame, error.to_string()))?;
                self.adopt(offered, now)
            }
            _ => Err(PeerFault::new(ErrorCode::Unexpected, "this message does not belong here")),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    fn hello(
        &mut self,
        peer: PeerId,
        protocol: u16,
        slot_count: u32,
        table_epoch: u64,
        cluster: &str,
        who: MetaPeer,
        now: Nanos,
    ) -> Result<(), PeerFault> {
        let result = self.check_hello(protocol, slot_count, cluster, &who).and_then(|()| {
            // Also the second process of an id: it may be the one that has led by a table which the store has lost.
            self.told_epoch = self.told_epoch.max(table_epoch);
            let MetaPeer::Data(entry) = &who else { return Ok(None) };
            let joined = self.members.join(peer, entry.clone(), now);
            joined.map_err(|error| PeerFault::new(ErrorCode::DuplicateNode, error.to_string())).map(Some)
        });
        let joined = result.inspect_err(|_| self.counters.refused_peers += 1)?;
        if let Some(replaced) = joined.and_then(|joined| joined.replaced) {
            self.peers.remove(&replaced);
            let text = "the node has a newer connection".into();
            self.outputs.push_back(Output::Close(replaced, ErrorCode::Replaced, text));
        }
        let pages = if let MetaPeer::Serving(pages) = &who { Some(*pages) } else { None };
        let node = match who {
            MetaPeer::Data(entry) => {
                self.first_node_at.get_or_insert(now);
                if let Some(number) = self.number(&entry.id) {
                    self.away.remove(&number);
                }
                self.dirty = true;
                Some(entry.id.clone())
            }
            MetaPeer::Session | MetaPeer::Serving(_) => None,
        };
        // A table that is not one of ours is replaced as a whole: the deltas kept here do not go over it.
        self.peers.insert(peer, Peer { node, pages, epoch: table_epoch });
        self.tell_table(peer);
        Ok(())
    }

    fn check_hello(
        &self,
        protocol: u16,
        slot_count: u32,
        cluster: &str,
        who: &MetaPeer,
    ) -> Result<(), PeerFault> {
        if protocol != PROTOCOL {
            let text = format!("protocol version {protocol} is not spoken here, but {PROTOCOL}");
            return Err(PeerFault::new(ErrorCode::ProtocolVersion, text));
        }
        let own = &self.config;
        if cluster != own.cluster || slot_count != own.slot_count {
            let text = format!(
                "this is the control plane of cluster {:?} with {} slots, not of {cluster:?} with \
                 {slot_count}: correct cluster or slot_count in the configuration of one of the two",
                own.cluster, own.slot_count
            );
            return Err(PeerFault::new(ErrorCode::Configuration, text));
        }
        match who {
            MetaPeer::Data(entry) => {
                entry.check().map_err(|error| PeerFault::new(ErrorCode::Configuration, error.to_string()))
            }
            MetaPeer::Session | MetaPeer::Serving(_) => Ok(()),
        }
    }

    /// Keeps what a node reports, and the leader epochs that it knows.
    fn report(&mut self, id: &str, slots: Vec<SlotReport>) -> Result<(), PeerFault> {
        self.counters.reports += 1;
        let count = self.table.slots.len();
        if slots.len() > REPORTS_MAX || slots.iter().any(|report| usize::from(report.slot.0) >= count) {
            return Err(PeerFault::new(
                ErrorCode::Frame,
                format!("a report of slots beyond the {count} there are"),
            ));
        }
        if let Some(report) = slots.iter().find(|report| report.leader_epoch > Revision::EPOCH_MAX) {
            let text =
                format!("leader epoch {} of slot {} is out of range", report.leader_epoch, report.slot.0);
            return Err(PeerFault::new(ErrorCode::Frame, text));
        }
        let number = self.number(id);
        for report in &slots {
            let slot = usize::from(report.slot.0);
            let seen = &mut self.seen[slot];
            seen.by_any = seen.by_any.max(report.leader_epoch);
            let leads = number.is_some() && self.table.slots[slot].leader() == number;
            if leads && matches!(report.state, HeldState::Accept | HeldState::Migrating) {
                seen.by_leader = seen.by_leader.max(report.leader_epoch);
            }
        }
        if let Some(member) = self.members.get_mut(id) {
            member.slots = slots;
        }
        self.dirty = true;
        Ok(())
    }

    fn acknowledge(&mut self, peer: PeerId, sequence: u64, table_epoch: u64, report: u64) {
        self.told_epoch = self.told_epoch.max(table_epoch);
        let is_member = self.peers.get(&peer).is_some_and(|peer| peer.node.is_some());
        let answer = MetaMessage::HeartbeatAck {
            sequence,
            table_epoch: self.table.epoch,
            report,
            lease_ms: if is_member { (self.config.lease / 1_000_000) as u32 } else { 0 },
            wants_table: table_epoch > self.table.epoch,
        };
        let mut frame = Vec::with_capacity(64);
        answer.write(&mut frame);
        self.outputs.push_back(Output::Send(peer, frame.into()));
    }

    /// Takes a table that a peer has and that is newer: an earlier leader has made it, and its store has lost it.
    fn adopt(&mut self, table: SlotTable, now: Nanos) -> Result<(), PeerFault> {
        if table.cluster != self.table.cluster || table.slots.len() != self.table.slots.len() {
            return Err(PeerFault::new(ErrorCode::Configuration, "the table offered is of another cluster"));
        }
        if table.epoch > self.table.epoch {
            tracing::warn!(
                offered = table.epoch,
                held = self.table.epoch,
                "a node has a newer table: adopting it"
            );
            self.counters.tables_adopted += 1;
            self.history.clear();
            self.replace_table(Arc::new(table), now);
            self.changed.fill(self.table.epoch);
            self.dirty = true;
        }
        Ok(())
    }

    /// A connection is gone.
    pub fn handle_closed(&mut self, peer: PeerId) {
        if let Some(Peer { node: Some(id), .. }) = self.peers.remove(&peer) {
            self.members.disconnect(&id, peer);
        }
    }

    /// Somebody asks that a node is emptied, or that it is used again.
    pub fn handle_drain(&mut self, id: &str, on: bool) -> Result<(), String> {
        if self.phase == Phase::Standby {
            return Err("this process of the control plane does not lead: ask the one that does".into());
        }
        if self.number(id).is_none() && self.members.get(id).is_none() {
            return Err(format!("there is no node {id:?}; /status lists them"));
        }
        self.drains.insert(id.into(), on);
        self.dirty = true;
        Ok(())
    }

    /// Sends every peer what it lacks.
    fn push_table(&mut self) {
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.tell_table(peer);
        }
    }

    fn tell_table(&mut self, peer: PeerId) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        if known.epoch >= self.table.epoch {
            return;
        }
        match self.history.since(known.epoch, &self.table) {
            Some(deltas) => {
                for frame in deltas {
                    self.counters.deltas_sent += 1;
                    self.counters.delta_bytes += frame.len() as u64;
                    self.outputs.push_back(Output::Send(peer, frame));
                }
            }
            None => {
                let frame = self.history.whole(&self.table);
                self.counters.wholes_sent += 1;
                self.counters.delta_bytes += frame.len() as u64;
                self.outputs.push_back(Output::Send(peer, frame));
            }
        }
        known.epoch = self.table.epoch;
    }

    fn number(&self, id: &str) -> Option<NodeNumber> {
        self.numbers.get(id).copied()
    }

    fn replace_table(&mut self, table: Arc<SlotTable>, now: Nanos) {
        self.note_joining(&table, now);
        // A node in another run has lost what it had: no report from before says anything about it.
        let runs = |number: &NodeNumber| table.nodes.get(number).map(|node| node.incarnation);
        let before = self.table.nodes.iter();
        let others = before.filter(|(number, node)| runs(number) != Some(node.incarnation));
        let others: BTreeSet<NodeNumber> = others.map(|(number, _)| *number).collect();
        let slots = self.table.slots.iter().zip(&table.slots).enumerate();
        for (slot, (old, new)) in slots {
            let has_other = || new.members().iter().any(|member| others.contains(&member.node()));
            if old != new || !others.is_empty() && has_other() {
                self.changed[slot] = table.epoch;
            }
        }
        self.history.note(&self.table, &table);
        self.told_epoch = self.told_epoch.max(table.epoch);
        self.table = table;
        let ids = self.table.nodes.iter().map(|(number, node)| (node.id.clone(), *number));
        self.numbers = ids.collect();
        let (nodes, numbers) = (&self.table.nodes, &self.numbers);
        self.drains.retain(|id, on| numbers.get(id).is_none_or(|number| nodes[number].draining != *on));
        self.away.retain(|number, _| self.table.nodes.contains_key(number));
        for (number, entry) in &self.table.nodes {
            if self.members.get(&entry.id).is_none() {
                self.away.entry(*number).or_insert(now);
            }
        }
        // What nodes reported before may fit now.
        self.dirty = true;
    }

    /// When the next table is to be planned, if anything has changed: [`Self::tick`] does it.
    pub fn round_due(&self) -> Option<Nanos> {
        let wanted = self.dirty && self.phase == Phase::Leading && self.storing.is_none();
        wanted.then(|| self.round_at.max(self.retry_at))
    }

    /// When it wants to be called although nothing happens.
    pub fn wake_at(&self, now: Nanos) -> Nanos {
        now.after((self.config.lease / 20).min(Nanos::SECOND / 10))
    }
}
