//! The data nodes whose lease runs.
//!
//! A node is known by its id. Its incarnation tells one start of it from another, and its address is only where it happens
//! to be. A lease counts time in which the control plane ran: after a pause all leases are longer by the pause. When so
//! many leases end together that the fault is more likely here, none ends for a while.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use slotcast_engine::id::Nanos;

use crate::wire::{
    meta::{NodeLoad, SlotReport},
    slot_table::NodeEntry,
};

/// Incarnations of a node remembered that a later one has taken the place of.
const REPLACED_MAX: usize = 8;

/// A connection, by a number that no other connection has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerId(pub u64);

/// A data node whose lease runs.
#[derive(Clone, Debug)]
pub struct Member {
    /// What it said about itself.
    pub entry: Arc<NodeEntry>,
    /// Its connection, while it has one.
    pub peer: Option<PeerId>,
    /// Its process is about to end.
    pub ending: bool,
    /// What it has to do.
    pub load: NodeLoad,
    /// The report it sent last; 0: none.
    pub report: u64,
    /// The table that it had when it made the report.
    pub reported_epoch: u64,
    /// Its slots, as it reported them.
    pub slots: Vec<SlotReport>,
    lease_end: Nanos,
    replaced: Vec<u64>,
}

impl Member {
    /// Time until its lease ends, if it says nothing.
    pub fn lease_left(&self, now: Nanos) -> u64 {
        self.lease_end.since(now)
    }
}

/// Why a node is not taken in.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MemberRefusal {
    /// Another process with this id is connected.
    #[error(
        "another process with the node id {id:?} is alive at {addr}: give this one an id of its own, \
         or stop the other"
    )]
    SameId {
        /// The id.
        id: String,
        /// Where the other one is.
        addr: String,
    },
    /// A later start of this node has taken its place.
    #[error("a later start of node {0:?} has taken its place: this process has to end")]
    Superseded(String),
    /// Another node is connected and says it is at this address.
    #[error("node {other:?} is alive at {addr} already: two nodes cannot share an address")]
    SameAddress {
        /// The other node.
        other: String,
        /// The address.
        addr: String,
    },
}

/// What the hello of a node came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Joined {
    /// An older connection of the same run, which is of no use any more.
    pub replaced: Option<PeerId>,
}

/// What a tick found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Expiry {
    /// Nodes whose lease has ended; they are no members any more.
    pub ended: Vec<Arc<str>>,
    /// Leases that should have ended but were held back, because they are too many at once.
    pub held_back: usize,
    /// How long the control plane stood still before this tick (nanoseconds); nobody could be heard.
    pub paused: u64,
}

/// All members.
#[derive(Debug)]
pub struct Members {
    lease: u64,
    hold: u64,
    members: BTreeMap<Arc<str>, Member>,
    addrs: BTreeMap<(IpAddr, u16), Arc<str>>,
    last_tick: Option<Nanos>,
    holding_since: Option<Nanos>,
}

impl Members {
    /// No members. `lease` is how long a node may be silent; `hold` is how long leases are held back that end together with
    /// those of more than a third of the nodes (nanoseconds).
    pub fn new(lease: u64, hold: u64) -> Self {
        Self {
            lease,
            hold,
            members: BTreeMap::new(),
            addrs: BTreeMap::new(),
            last_tick: None,
            holding_since: None,
        }
    }

    /// Number of members.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// A member by its id.
    pub fn get(&self, id: &str) -> Option<&Member> {
        self.members.get(id)
    }

    /// A member by its id, to be changed.
    pub(super) fn get_mut(&mut self, id: &str) -> Option<&mut Member> {
        self.members.get_mut(id)
    }

    /// All members by their ids.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Member)> {
        self.members.iter()
    }

    /// A node introduces itself. Refused while another process with its id, or at its address, is connected: the one that
    /// is there is serving, and the newcomer is more likely the mistake. A process that has lost its connection gives way.
    pub fn join(&mut self, peer: PeerId, entry: Arc<NodeEntry>, now: Nanos) -> Result<Joined, MemberRefusal> {
        let addr = addr_of(&entry);
        let at = |entry: &NodeEntry| format!("{}:{}", entry.ip, entry.ports.first().copied().unwrap_or(0));
        if let Some(other) = self.addrs.get(&addr).filter(|other| **other != entry.id)
            && self.members.get(other).is_some_and(|other| other.peer.is_some())
        {
            let (other, addr) = (other.to_string(), at(&entry));
            return Err(MemberRefusal::SameAddress { other, addr });
        }
        let mut joined = Joined { replaced: None };
        let mut replaced = Vec::new();
        if let Some(member) = self.members.get_mut(&entry.id) {
            if member.entry.incarnation == entry.incarnation {
                joined.replaced = member.peer.replace(peer);
                member.lease_end = now.after(self.lease);
                if member.entry != entry {
                    release(&mut self.addrs, &member.entry);
                    self.addrs.insert(addr, entry.id.clone());
                    member.entry = entry;
                }
                member.report = 0;
                return Ok(joined);
            }
            if member.replaced.contains(&entry.incarnation) {
                return Err(MemberRefusal::Superseded(entry.id.to_string()));
            }
            if member.peer.is_some() {
                return Err(MemberRefusal::SameId { id: entry.id.to_string(), addr: at(&member.entry) });
            }
            replaced = std::mem::take(&mut member.replaced);
            replaced.push(member.entry.incarnation);
            replaced.drain(..replaced.len().saturating_sub(REPLACED_MAX));
            release(&mut self.addrs, &member.entry);
        }
        let lease_end = now.after(self.lease);
        self.addrs.insert(addr, entry.id.clone());
        let member = Member {
            entry: entry.clone(),
            peer: Some(peer),
            ending: false,
            load: NodeLoad::default(),
            report: 0,
            reported_epoch: 0,
            slots: Vec::new(),
            lease_end,
            replaced,
        };
        self.members.insert(entry.id.clone(), member);
        Ok(joined)
    }

    /// A node is alive.
    pub(super) fn renew(&mut self, id: &str, now: Nanos) -> Option<&mut Member> {
        let member = self.members.get_mut(id)?;
        member.lease_end = now.after(self.lease);
        Some(member)
    }

    /// A connection is gone. The lease runs on.
    pub(super) fn disconnect(&mut self, id: &str, peer: PeerId) {
        if let Some(member) = self.members.get_mut(id)
            && member.peer == Some(peer)
        {
            member.peer = None;
        }
    }

    /// Forgets everybody: whoever is there introduces himself again.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.lease, self.hold);
    }

    /// Ends leases, once everything that has arrived was handled. To be called at least ten times in a lease; time beyond
    /// half a lease since the last call counts as a pause, in which nobody could be heard.
    pub fn tick(&mut self, now: Nanos) -> Expiry {
        let gap = self.last_tick.map_or(0, |last| now.since(last));
        self.last_tick = Some(now);
        let paused = if gap > (self.lease / 2).min(Nanos::SECOND) { gap } else { 0 };
        if paused > 0 {
            self.members.values_mut().for_each(|member| member.lease_end = member.lease_end.after(gap));
        }
        let due: Vec<Arc<str>> = self
            .members
            .iter()
            .filter(|(_, member)| member.lease_end <= now)
            .map(|(id, _)| id.clone())
            .collect();
        if due.is_empty() {
            self.holding_since = None;
            return Expiry { paused, ..Expiry::default() };
        }
        // With nobody left there is nobody to give anything to.
        let is_storm = due.len() >= 2 && due.len() * 3 > self.members.len();
        let since = *self.holding_since.get_or_insert(now);
        if due.len() == self.members.len() && due.len() >= 2 || (is_storm && now.since(since) < self.hold) {
            return Expiry { ended: Vec::new(), held_back: due.len(), paused };
        }
        self.holding_since = None;
        for member in due.iter().filter_map(|id| self.members.remove(id)) {
            release(&mut self.addrs, &member.entry);
        }
        Expiry { ended: due, held_back: 0, paused }
    }
}

/// Forgets where a node was, unless another is there by now.
fn release(addrs: &mut BTreeMap<(IpAddr, u16), Arc<str>>, entry: &NodeEntry) {
    let addr = addr_of(entry);
    if addrs.get(&addr) == Some(&entry.id) {
        addrs.remove(&addr);
    }
}

/// Where its first shard listens.
fn addr_of(entry: &NodeEntry) -> (IpAddr, u16) {
    (entry.ip, entry.ports.first().copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: u64 = 2 * Nanos::SECOND;
    const HOLD: u64 = 10 * Nanos::SECOND;
    const MS: u64 = Nanos::SECOND / 1000;

    fn entry(id: &str, incarnation: u64, port: u16) -> Arc<NodeEntry> {
        Arc::new(NodeEntry {
            id: id.into(),
            incarnation,
            zone: "".into(),
            ip: [127, 0, 0, 1].into(),
            ports: vec![port],
            http: 0,
            draining: false,
        })
    }

    fn members(count: u16) -> Members {
        let mut members = Members::new(LEASE, HOLD);
        for number in 0..count {
            let entry = entry(&format!("n{number}"), 1, number + 1);
            members.join(PeerId(number.into()), entry, Nanos(1)).unwrap();
        }
        members
    }

    /// Ticks every 100 ms up to `end`, all but `silent` heard each time; what ended, and when.
    fn run(members: &mut Members, from: u64, end: u64, silent: &[&str]) -> Vec<(u64, String)> {
        let mut ended = Vec::new();
        for now in (from..=end).step_by(100).map(|ms| Nanos(ms * MS)) {
            for id in members.members.keys().cloned().collect::<Vec<_>>() {
                if !silent.contains(&&*id) {
                    members.renew(&id, now);
                }
            }
            ended.extend(members.tick(now).ended.into_iter().map(|id| (now.0 / MS, id.to_string())));
        }
        ended
    }

    #[test]
    fn a_silent_node_is_out_after_its_lease_and_comes_back_by_a_hello() {
        let mut members = members(4);
        assert_eq!(run(&mut members, 0, 5000, &["n2"]), [(2100, "n2".to_string())]);
        assert!(members.renew("n2", Nanos(5000 * MS)).is_none(), "a heartbeat alone is not enough");
        members.join(PeerId(9), entry("n2", 1, 3), Nanos(5000 * MS)).unwrap();
        assert_eq!(run(&mut members, 5100, 9000, &[]), []);
    }

    #[test]
    fn a_pause_of_the_control_plane_ends_no_lease() {
        let mut members = members(1);
        assert_eq!(run(&mut members, 0, 1000, &[]), []);
        // It stands still for a minute, and the node is heard 300 ms later.
        assert_eq!(members.tick(Nanos(61_000 * MS)), Expiry { paused: 60_000 * MS, ..Expiry::default() });
        assert_eq!(run(&mut members, 61_100, 61_300, &["n0"]), []);
        assert_eq!(run(&mut members, 61_400, 62_000, &[]), []);
        // Only time in which it ran counts: 2 s of silence after that are an end.
        let ended = run(&mut members, 62_100, 70_000, &["n0"]);
        assert_eq!(ended, [(64_000, "n0".to_string())]);
    }

    #[test]
    fn many_leases_that_end_together_are_held_back_for_a_while() {
        let mut six = members(6);
        let ended = run(&mut six, 0, 20_000, &["n0", "n1", "n2"]);
        assert_eq!(ended.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [12_100; 3]);
        let mut two = members(2);
        assert_eq!(run(&mut two, 0, 60_000, &["n0", "n1"]), [], "nobody else is left");
        assert_eq!(two.tick(Nanos(60_100 * MS)).held_back, 2);
        let mut three = members(7);
        assert_eq!(run(&mut three, 0, 20_000, &["n0", "n1"]).len(), 2, "two of seven may well have failed");
    }

    #[test]
    fn two_processes_with_one_id_are_told_apart() {
        let mut members = members(1);
        let refused = members.join(PeerId(7), entry("n0", 2, 9), Nanos(5)).unwrap_err();
        assert_eq!(refused, MemberRefusal::SameId { id: "n0".into(), addr: "127.0.0.1:1".into() });
        assert!(refused.to_string().contains("give this one an id of its own"));
        // The first one is gone: the second is its restart.
        members.disconnect("n0", PeerId(0));
        members.join(PeerId(7), entry("n0", 2, 1), Nanos(6)).unwrap();
        assert_eq!(members.get("n0").unwrap().entry.incarnation, 2);
        // The first one was only cut off, and comes back.
        members.disconnect("n0", PeerId(7));
        let refused = members.join(PeerId(8), entry("n0", 1, 1), Nanos(7)).unwrap_err();
        assert_eq!(refused, MemberRefusal::Superseded("n0".into()));
        // A second connection of the same run takes the place of the first.
        members.join(PeerId(9), entry("n0", 2, 1), Nanos(8)).unwrap();
        let joined = members.join(PeerId(10), entry("n0", 2, 1), Nanos(8)).unwrap();
        assert_eq!(joined.replaced, Some(PeerId(9)));
        members.disconnect("n0", PeerId(9));
        assert!(members.get("n0").unwrap().peer.is_some(), "the old connection's end means nothing");
    }

    #[test]
    fn two_nodes_at_one_address_are_told_apart() {
        let mut members = members(1);
        let refused = members.join(PeerId(7), entry("copy", 2, 1), Nanos(5)).unwrap_err();
        assert_eq!(refused, MemberRefusal::SameAddress { other: "n0".into(), addr: "127.0.0.1:1".into() });
        members.disconnect("n0", PeerId(0));
        members.join(PeerId(7), entry("renamed", 2, 1), Nanos(5)).unwrap();
    }
}
