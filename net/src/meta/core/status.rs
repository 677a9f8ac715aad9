//! What people may look at.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use slotcast_engine::id::Nanos;

use crate::{
    meta::core::MetaCore,
    wire::{meta::NodeLoad, slot_table::NodeNumber},
};

/// Where the control plane is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Another process leads, or none does yet.
    Standby,
    /// It leads and listens, before it makes a table.
    Warming,
    /// It leads.
    Leading,
}

/// One data node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its id.
    pub id: String,
    /// Its number in the table; none before it is in one.
    pub number: Option<u32>,
    /// Where its first shard listens.
    pub addr: String,
    /// Its HTTP port; 0: none.
    pub http: u16,
    /// Its zone.
    pub zone: String,
    /// Its run, in hexadecimal digits.
    pub incarnation: String,
    /// Its shards.
    pub shards: usize,
    /// Milliseconds that its lease still runs; none: it has ended.
    pub lease_ms: Option<u64>,
    /// It is to be emptied.
    pub draining: bool,
    /// Its process is about to end.
    #[serde(default)]
    pub ending: bool,
    /// Slots that it leads.
    pub leads: usize,
    /// Slots that it is a member of, those that it leads included.
    pub holds: usize,
    /// Of these, the ones that it leads or follows in sync.
    pub in_sync: usize,
    /// Publishers that it stores.
    pub publishers: u64,
    /// Bytes of memory of its slots.
    pub bytes: u64,
    /// Thousandths of one core that it uses.
    pub cpu_permille: u32,
}

/// The whole.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MetaStatus {
    /// The cluster.
    pub cluster: String,
    /// Where this process is.
    pub phase: Phase,
    /// Epoch of the table.
    pub table_epoch: u64,
    /// Largest leader epoch of any slot.
    pub leader_epoch_max: u32,
    /// Epoch that the store has.
    pub stored_epoch: u64,
    /// What the store said last, if it does not work.
    pub store_error: Option<String>,
    /// Slots of the cluster.
    pub slots: usize,
    /// Slots without a leader.
    pub slots_without_leader: usize,
    /// Slots whose leader's lease does not run.
    pub slots_with_absent_leader: usize,
    /// Slots with fewer members in sync than they are to have.
    pub slots_short: usize,
    /// Slots with persistent publishers of which no member in sync is there: nobody leads them until one comes back, unless
    /// [`MetaConfig::unclean_leaders`](crate::meta::core::MetaConfig::unclean_leaders) says otherwise.
    pub slots_waiting: usize,
    /// Slots with persistent publishers that went to a node that was not in sync.
    pub slots_unclean: usize,
    /// Moves under way.
    pub moves: usize,
    /// Leases that should have ended and are held back, because they are too many at once.
    pub leases_held_back: usize,
    /// Sessions that follow the table.
    pub sessions: usize,
    /// Where operators ask the session processes among them, those left out that have not told.
    #[serde(default)]
    pub session_pages: BTreeSet<String>,
    /// Who follows the table and has no pages: shards of data nodes beside the first, and sessions that have not told.
    #[serde(default)]
    pub without_pages: usize,
    /// The data nodes.
    pub nodes: Vec<NodeStatus>,
}

impl MetaCore {
    /// What there is to see now.
    pub fn status(&self, now: Nanos) -> MetaStatus {
        let mut held: std::collections::BTreeMap<NodeNumber, (usize, usize, usize)> = Default::default();
        for entry in &self.table.slots {
            for (at, member) in entry.members().iter().enumerate() {
                let counts = held.entry(member.node()).or_default();
                counts.0 += usize::from(at == 0);
                counts.1 += 1;
                counts.2 += usize::from(member.is_in_sync());
            }
        }
        let in_table = self.table.nodes.iter().map(|(number, entry)| (Some(*number), entry));
        let new = self.members.iter().filter(|(id, _)| self.number(id).is_none());
        let all = in_table.chain(new.map(|(_, member)| (None, &member.entry)));
        let nodes = all.map(|(number, entry)| {
            let member = self.members.get(&entry.id);
            let load = member.map_or(NodeLoad::default(), |member| member.load);
            let (leads, holds, in_sync) =
                number.and_then(|number| held.get(&number)).copied().unwrap_or_default();
            NodeStatus {
                id: entry.id.to_string(),
                number: number.map(|number| number.0),
                addr: std::net::SocketAddr::new(entry.ip, entry.ports.first().copied().unwrap_or(0))
                    .to_string(),
                http: entry.http,
                zone: entry.zone.to_string(),
                incarnation: format!("{:016x}", entry.incarnation),
                shards: entry.ports.len(),
                lease_ms: member.map(|member| member.lease_left(now) / 1_000_000),
                draining: entry.draining,
                ending: member.is_some_and(|member| member.ending),
                leads,
                holds,
                in_sync,
                publishers: load.publishers,
                bytes: load.bytes,
                cpu_permille: load.cpu_permille,
            }
        });
        let slots = &self.table.slots;
        let is_absent = |number: NodeNumber| {
            self.table.nodes.get(&number).is_none_or(|node| self.members.get(&node.id).is_none())
        };
        let in_sync = |members: &[crate::wire::slot_table::Member]| {
            members.iter().filter(|member| member.is_in_sync()).count()
        };
        let has_heir = |members: &[crate::wire::slot_table::Member]| {
            members.iter().any(|member| member.is_in_sync() && !is_absent(member.node()))
        };
        MetaStatus {
            cluster: self.config.cluster.clone(),
            phase: self.phase,
            table_epoch: self.table.epoch,
            leader_epoch_max: slots.iter().map(|entry| entry.leader_epoch).max().unwrap_or(0),
            stored_epoch: self.stored,
            store_error: self.store_error.clone(),
            slots: slots.len(),
            slots_without_leader: slots.iter().filter(|entry| entry.leader().is_none()).count(),
            slots_with_absent_leader: slots
                .iter()
                .filter(|entry| entry.leader().is_some_and(is_absent))
                .count(),
            slots_short: slots.iter().filter(|entry| in_sync(entry.members()) < self.config.replicas).count(),
            slots_waiting: slots
                .iter()
                .filter(|entry| entry.has_persistent && !has_heir(entry.members()))
                .count(),
            slots_unclean: slots.iter().filter(|entry| entry.is_unclean).count(),
            moves: self.joining.len(),
            leases_held_back: self.held_back,
            sessions: self.peers.values().filter(|peer| peer.node.is_none()).count(),
            session_pages: self
                .peers
                .values()
                .filter_map(|peer| peer.pages)
                .map(|it| it.to_string())
                .collect(),
            without_pages: self.peers.values().filter(|it| it.node.is_none() && it.pages.is_none()).count(),
            nodes: nodes.collect(),
        }
    }
}
