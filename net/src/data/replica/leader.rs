//! The leading side: the shards that follow slots here, told apart from sessions by their first frame.

use std::collections::{BTreeMap, BTreeSet};

use slotcast_engine::{
    id::{Nanos, ReplicaId, Revision, SlotId},
    shard::{Part, ReplicaSend, Shard},
};

use crate::{
    data::cluster::metrics::ClusterMetrics,
    wire::{
        ErrorCode, FrameError,
        header::PROTOCOL,
        replica::{FollowItem, ReplicaAckItem, ReplicaMessage, ReplicaPart, ReplicaRefusal},
        slot_table::{NodeNumber, SlotTable},
    },
};

/// Silence after which a follower is taken for gone: it pings far more often.
const SILENCE_MAX: u64 = 5 * Nanos::SECOND;
/// When a follower that this table does not know yet should come back (milliseconds).
const TABLE_WAIT_MS: u32 = 20;

/// One link of a shard that follows.
struct Follower {
    node: NodeNumber,
    shard: u16,
    slots: BTreeSet<SlotId>,
    /// Slots that it said it does not follow any more.
    left: BTreeSet<SlotId>,
    heard: Nanos,
}

/// The shards that follow slots here, by the number of their link.
#[derive(Default)]
pub(in crate::data) struct Followers {
    links: BTreeMap<u32, Follower>,
}

/// Why a link of a follower is closed.
#[derive(Debug, thiserror::Error)]
pub(in crate::data) enum ReplicaFault {
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("this data node is no member of a cluster: its slot table is static")]
    NotClustered,
    #[error("protocol version {0} is not spoken here, {PROTOCOL} is")]
    Protocol(u16),
    #[error(
        "this is a shard of cluster {own:?} with {own_slots} slots, not of {told:?} with {told_slots}: correct cluster or \
         slot_count in the configuration of one of the two"
    )]
    Cluster { own: String, own_slots: usize, told: String, told_slots: u32 },
    #[error("slot table {held} here does not name node {node} in this run yet: come back when it does")]
    NotYet { held: u64, node: u32 },
    #[error(
        "slot table {held} names node {node} in another run: two processes with one data.id, or one that was replaced"
    )]
    OtherRun { held: u64, node: u32 },
    #[error("the first message of a link between data nodes has to be a replica hello")]
    BeforeHello,
    #[error("a second hello on one connection")]
    SecondHello,
    #[error("a message that no follower sends")]
    Unexpected,
    #[error(
        "slot {slot} is said to be held up to {told}, it was never beyond {own}: a follower that is not what it seems"
    )]
    Lies { slot: u16, told: Revision, own: Revision },
    #[error("slot {0} is told to be durable beyond what is applied")]
    DurableBeyond(u16),
}

impl ReplicaFault {
    /// The code that the follower is told.
    pub(in crate::data) fn code(&self) -> ErrorCode {
        match self {
            ReplicaFault::Frame(_) => ErrorCode::Frame,
            ReplicaFault::NotClustered | ReplicaFault::Cluster { .. } => ErrorCode::Configuration,
            ReplicaFault::Protocol(_) => ErrorCode::ProtocolVersion,
            ReplicaFault::NotYet { .. } => ErrorCode::ReplicaRefused,
            ReplicaFault::OtherRun { .. } => ErrorCode::DuplicateNode,
            ReplicaFault::BeforeHello | ReplicaFault::SecondHello | ReplicaFault::Unexpected => {
                ErrorCode::Unexpected
            }
            ReplicaFault::Lies { .. } | ReplicaFault::DurableBeyond(_) => ErrorCode::ReplicaRefused,
        }
    }

    /// When it is worth coming back (milliseconds); 0: no hint.
    pub(in crate::data) fn retry_after_ms(&self) -> u32 {
        match self {
            ReplicaFault::NotYet { .. } => TABLE_WAIT_MS,
            ReplicaFault::OtherRun { .. } | ReplicaFault::Lies { .. } => 1000,
            _ => 0,
        }
    }
}

/// What a follower's message is handled with.
pub(in crate::data) struct Hearing<'a> {
    pub(in crate::data) table: &'a SlotTable,
    pub(in crate::data) shard: &'a mut Shard,
    pub(in crate::data) out: &'a mut Vec<u8>,
    pub(in crate::data) metrics: &'a ClusterMetrics,
    pub(in crate::data) now: Nanos,
}

/// What a hello is compared with.
pub(in crate::data) struct Welcoming<'a> {
    pub(in crate::data) table: &'a SlotTable,
    pub(in crate::data) incarnation: u64,
}

impl Followers {
    /// How many there are.
    pub(in crate::data) fn len(&self) -> usize {
        self.links.len()
    }

    /// The numbers of all links.
    pub(in crate::data) fn links(&self) -> impl Iterator<Item = u32> {
        self.links.keys().copied()
    }

    /// The link that a node follows a slot over: that of its shard which holds the slot.
    pub(in crate::data) fn link_to(&self, node: NodeNumber, slot: SlotId, table: &SlotTable) -> Option<u32> {
        let shards = table.nodes.get(&node)?.ports.len() as u32;
        let shard = slot.shard(shards.max(1)) as u16;
        let mut links = self.links.iter();
        links.find(|(_, it)| it.node == node && it.shard == shard).map(|(link, _)| *link)
    }

    /// Whether whoever is behind a link has said that it does not follow a slot any more.
    pub(in crate::data) fn has_left(&self, link: u32, slot: SlotId) -> bool {
        self.links.get(&link).is_some_and(|it| it.left.contains(&slot))
    }

    /// Stops telling slots to nodes that `table` does not name as their members.
    pub(in crate::data) fn keep_members(&mut self, table: &SlotTable, shard: &mut Shard) {
        for (link, follower) in &mut self.links {
            let node = follower.node;
            let is_member = |slot: &SlotId| table.slots[usize::from(slot.0)].position(node).is_some();
            follower.left.retain(is_member);
            for slot in follower.slots.extract_if(.., |slot| !is_member(slot)) {
                shard.replica_leave(ReplicaId(*link), slot);
            }
        }
    }

    /// Whether nothing was heard of a link for too long.
    pub(in crate::data) fn is_silent(&self, link: u32, now: Nanos) -> bool {
        self.links.get(&link).is_some_and(|it| now.since(it.heard) >= SILENCE_MAX)
    }

    /// A link is gone.
    pub(in crate::data) fn close(&mut self, link: u32, shard: &mut Shard) {
        if self.links.remove(&link).is_some() {
            shard.replica_close(ReplicaId(link));
        }
    }

    /// The first message of a link. Returns the link that this one takes the place of.
    pub(in crate::data) fn greet(
        &mut self,
        link: u32,
        message: &ReplicaMessage<'_>,
        own: &Welcoming<'_>,
        out: &mut Vec<u8>,
        now: Nanos,
    ) -> Result<Option<u32>, ReplicaFault> {
        let &ReplicaMessage::Hello { protocol, shard, slot_count, node, incarnation, table_epoch, cluster } =
            message
        else {
            return Err(ReplicaFault::BeforeHello);
        };
        let table = own.table;
        if protocol != PROTOCOL {
            return Err(ReplicaFault::Protocol(protocol));
        }
        if cluster != &*table.cluster || slot_count as usize != table.slots.len() {
            return Err(ReplicaFault::Cluster {
                own: table.cluster.to_string(),
                own_slots: table.slots.len(),
                told: cluster.into(),
                told_slots: slot_count,
            });
        }
        match table.nodes.get(&node) {
            Some(entry) if entry.incarnation == incarnation => {}
            Some(_) if table_epoch <= table.epoch => {
                return Err(ReplicaFault::OtherRun { held: table.epoch, node: node.0 });
            }
            _ => return Err(ReplicaFault::NotYet { held: table.epoch, node: node.0 }),
        }
        let same = |it: &Follower| it.node == node && it.shard == shard;
        let replaced = self.links.iter().find(|(_, it)| same(it)).map(|(link, _)| *link);
        self.links.insert(
            link,
            Follower { node, shard, slots: BTreeSet::new(), left: BTreeSet::new(), heard: now },
        );
        ReplicaMessage::Welcome { incarnation: own.incarnation, table_epoch: table.epoch }.write(out);
        Ok(replaced)
    }

    /// A message of a follower that was welcomed.
    pub(in crate::data) fn handle(
        &mut self,
        link: u32,
        message: ReplicaMessage<'_>,
        with: Hearing<'_>,
    ) -> Result<(), ReplicaFault> {
        let Hearing { table, shard, out, metrics, now } = with;
        let Some(follower) = self.links.get_mut(&link) else { return Err(ReplicaFault::BeforeHello) };
        follower.heard = now;
        let node = follower.node;
        match message {
            ReplicaMessage::Follow(items) => {
                for item in items {
                    match begin(link, node, &item, table, shard) {
                        Ok(()) => {
                            follower.slots.insert(item.slot);
                            follower.left.remove(&item.slot);
                        }
                        Err((reason, known)) => {
                            metrics.count_refused(true, Some(reason));
                            let (slot, code) = (item.slot, reason as u16);
                            ReplicaMessage::Refused { slot, code, leader_epoch: known }.write(out);
                        }
                    }
                }
                Ok(())
            }
            ReplicaMessage::Unfollow(slots) => {
                for slot in slots {
                    follower.slots.remove(&slot);
                    // Bounded by the members of the table; of other slots it has nothing to leave.
                    if table
                        .slots
                        .get(usize::from(slot.0))
                        .is_some_and(|entry| entry.position(node).is_some())
                    {
                        follower.left.insert(slot);
                    }
                    shard.replica_leave(ReplicaId(link), slot);
                }
                Ok(())
            }
            ReplicaMessage::Ack(items) => items.iter().try_for_each(|item| {
                acknowledge(link, item, shard)
                    .inspect_err(|_| metrics.count_refused(true, Some(ReplicaRefusal::Ahead)))
            }),
            ReplicaMessage::Ping(nonce) => {
                ReplicaMessage::Pong(nonce).write(out);
                Ok(())
            }
            ReplicaMessage::Pong(_) => Ok(()),
            ReplicaMessage::Hello { .. } => Err(ReplicaFault::SecondHello),
            _ => Err(ReplicaFault::Unexpected),
        }
    }
}

/// Begins to tell a slot to a follower, or says why not, with the leader epoch known here.
fn begin(
    link: u32,
    node: NodeNumber,
    item: &FollowItem,
    table: &SlotTable,
    shard: &mut Shard,
) -> Result<(), (ReplicaRefusal, u32)> {
    let Some(entry) = table.slots.get(usize::from(item.slot.0)) else {
        return Err((ReplicaRefusal::NotLeader, 0));
    };
    let known = entry.leader_epoch;
    let own = shard.led_at(item.slot);
    let reason = match own.map(Revision::epoch) {
        _ if item.leader_epoch > known => Some(ReplicaRefusal::FutureEpoch),
        None => Some(ReplicaRefusal::NotLeader),
        Some(epoch) if item.leader_epoch > epoch => Some(ReplicaRefusal::FutureEpoch),
        Some(epoch) if item.leader_epoch < epoch => Some(ReplicaRefusal::OlderEpoch),
        Some(_) if entry.position(node).is_none() => Some(ReplicaRefusal::NotMember),
        Some(_) if own.is_some_and(|own| item.since > own) => Some(ReplicaRefusal::Ahead),
        Some(_) => None,
    };
    if let Some(reason) = reason {
        return Err((reason, known));
    }
    let opened = shard.replica_open(ReplicaId(link), item.slot, item.leader_epoch, item.since);
    opened.map_err(|_| (ReplicaRefusal::NotLeader, known))
}

fn acknowledge(link: u32, item: &ReplicaAckItem, shard: &mut Shard) -> Result<(), ReplicaFault> {
    // What was led when it was sent may have been given up since.
    let Some(own) = shard.led_at(item.slot) else { return Ok(()) };
    let slot = item.slot.0;
    if item.applied > own {
        return Err(ReplicaFault::Lies { slot, told: item.applied, own });
    }
    if item.durable > item.applied {
        return Err(ReplicaFault::DurableBeyond(slot));
    }
    shard.replica_ack(ReplicaId(link), item.slot, item.applied, item.durable);
    Ok(())
}

/// Appends what a follower lacks, about `budget` bytes of it. Returns whether there is more.
pub(in crate::data) fn fill(
    link: u32,
    shard: &mut Shard,
    budget: usize,
    out: &mut Vec<u8>,
    metrics: &ClusterMetrics,
) -> bool {
    let before = out.len();
    let more = shard.poll_replica(ReplicaId(link), budget, &mut |send| match send {
        ReplicaSend::Batch { slot, after, bytes } => {
            ReplicaMessage::Batch { slot, after, batch: bytes }.write(out);
        }
        ReplicaSend::Part { slot, part: Part { is_first, is_last, revision, forks, entries } } => {
            metrics.sent_parts.inc();
            let lineage = forks.to_vec();
            let part = ReplicaPart { slot, is_first, is_last, revision, lineage, entries };
            ReplicaMessage::Part(part).write(out);
        }
    });
    metrics.sent_bytes.inc_by((out.len() - before) as u64);
    more
}
