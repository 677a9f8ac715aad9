//! The slot table: who leads each slot, who else holds it, in which leader epoch. And what a reader of an older table lacks.
//!
//! The control plane makes it; data nodes and sessions follow it. A table is read and written as a [`TableDelta`]: one
//! from epoch 0 is a whole table. Layout: `docs/formats.md`.
//!
//! Invariants, held by [`SlotTable::check`] and [`SlotTable::apply`]: a member is a node of the table; no node is twice in
//! a slot; a slot with members has a leader epoch; table epoch and leader epochs only rise.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use slotcast_engine::{
    id::{Revision, SlotId, check_name},
    limits::{SLOTS_MAX, ZONE_BYTES_MAX},
};

use crate::wire::message::{BodyError, Reader, put_u16, put_u32, put_u64};

/// Members that one slot may have, those that are leaving included.
pub const MEMBERS_MAX: usize = 8;
/// Bytes of a node's id.
pub const NODE_ID_BYTES_MAX: usize = 64;
/// Bytes of a cluster's name.
pub const CLUSTER_BYTES_MAX: usize = 64;
/// Shards that one node may have.
pub const SHARDS_MAX: usize = 256;
/// Table epochs stay below this: nobody gets there by counting, and whoever tells of one is wrong.
pub const TABLE_EPOCH_LIMIT: u64 = 1 << 62;
/// Bytes of the fixed part of a table's or delta's encoding.
const FIXED_BYTES: usize = 56;
const DRAINING: u8 = 1;
const UNCLEAN: u8 = 1;
const PERSISTENT: u8 = 2;

/// A data node in tables: given by the control plane when it first sees the node's id, and never to another node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct NodeNumber(pub u32);

impl NodeNumber {
    /// Numbers are below this.
    pub const LIMIT: u32 = 1 << 27;
}

/// What a table says about a data node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeEntry {
    /// Its name, the same over restarts and addresses.
    pub id: Arc<str>,
    /// Its run: a number that no other start has.
    pub incarnation: u64,
    /// Where it stands; replicas of a slot are spread over zones. May be empty.
    pub zone: Arc<str>,
    /// Its address.
    pub ip: IpAddr,
    /// The port of each shard; their number is the shard count.
    pub ports: Vec<u16>,
    /// The port of its HTTP side; 0: none.
    pub http: u16,
    /// Somebody asked that it holds nothing.
    pub draining: bool,
}

impl NodeEntry {
    /// Where the shard that holds `slot` listens.
    pub fn shard_addr(&self, slot: SlotId) -> Option<SocketAddr> {
        let shards = u32::try_from(self.ports.len()).ok().filter(|shards| *shards > 0)?;
        Some(SocketAddr::new(self.ip, *self.ports.get(slot.shard(shards) as usize)?))
    }

    /// Finds what cannot be: names too long or with control characters, no shard, too many.
    pub fn check(&self) -> Result<(), TableError> {
        check_name("node id", &self.id, NODE_ID_BYTES_MAX)
            .map_err(|error| TableError::Node(error.to_string()))?;
        if !self.zone.is_empty() {
            check_name("zone", &self.zone, ZONE_BYTES_MAX)
                .map_err(|error| TableError::Node(error.to_string()))?;
        }
        if self.ports.is_empty() || self.ports.len() > SHARDS_MAX {
            let shards = self.ports.len();
            return Err(TableError::Node(format!("{} has {shards} shards, not 1 to {SHARDS_MAX}", self.id)));
        }
        Ok(())
    }
}

/// A node in one slot.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Member(u32);

impl Member {
    const IN_SYNC: u32 = 1 << 27;
    const LEAVING: u32 = 1 << 28;

    /// A member that is not in sync yet.
    pub fn new(node: NodeNumber) -> Self {
        debug_assert!(node.0 < NodeNumber::LIMIT);
        Self(node.0)
    }

    /// The node.
    pub fn node(self) -> NodeNumber {
        NodeNumber(self.0 & (NodeNumber::LIMIT - 1))
    }

    /// Whether it has everything that was acknowledged as persistent, so that it may lead without loss. The leader is.
    pub fn is_in_sync(self) -> bool {
        self.0 & Self::IN_SYNC != 0
    }

    /// Whether it goes as soon as the others are in sync.
    pub fn is_leaving(self) -> bool {
        self.0 & Self::LEAVING != 0
    }

    /// The same, in sync or not.
    #[must_use]
    pub fn with_in_sync(self, in_sync: bool) -> Self {
        Self(if in_sync { self.0 | Self::IN_SYNC } else { self.0 & !Self::IN_SYNC })
    }

    /// The same, leaving or not.
    #[must_use]
    pub fn with_leaving(self, leaving: bool) -> Self {
        Self(if leaving { self.0 | Self::LEAVING } else { self.0 & !Self::LEAVING })
    }

    /// The same member by another number.
    #[must_use]
    pub fn with_node(self, node: NodeNumber) -> Self {
        debug_assert!(node.0 < NodeNumber::LIMIT);
        Self(self.0 & !(NodeNumber::LIMIT - 1) | node.0)
    }
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sync = if self.is_in_sync() { "=" } else { "<" };
        let leaving = if self.is_leaving() { "-" } else { "" };
        write!(f, "{}{sync}{leaving}", self.node().0)
    }
}

/// One slot: its members, the leader first.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct SlotEntry {
    /// Rises with every change of the leader and every restart of it; 0: the slot never had one.
    pub leader_epoch: u32,
    /// The leader was not in sync when it was made leader, though there were persistent publishers: some may be missing.
    pub is_unclean: bool,
    /// There may be persistent publishers, from the first on and for ever: only a member in sync leads it, unless an operator
    /// allows another.
    pub has_persistent: bool,
    count: u8,
    members: [Member; MEMBERS_MAX],
}

impl SlotEntry {
    /// The members, the leader first.
    pub fn members(&self) -> &[Member] {
        &self.members[..usize::from(self.count)]
    }

    /// The same slot without any member.
    #[must_use]
    pub fn without_members(&self) -> Self {
        Self { count: 0, members: [Member::default(); MEMBERS_MAX], ..*self }
    }

    /// The members, to be changed in place.
    pub fn members_mut(&mut self) -> &mut [Member] {
        &mut self.members[..usize::from(self.count)]
    }

    /// The leader.
    pub fn leader(&self) -> Option<NodeNumber> {
        self.members().first().map(|member| member.node())
    }

    /// Where `node` is among the members.
    pub fn position(&self, node: NodeNumber) -> Option<usize> {
        self.members().iter().position(|member| member.node() == node)
    }

    /// Adds a member at the end. False, and nothing done, when the slot has as many as it may.
    pub fn push(&mut self, member: Member) -> bool {
        let room = usize::from(self.count) < MEMBERS_MAX;
        if room {
            self.members[usize::from(self.count)] = member;
            self.count += 1;
        }
        room
    }

    /// Takes a member out; the others keep their order.
    pub fn remove(&mut self, position: usize) {
        let count = usize::from(self.count);
        assert!(position < count, "position {position} of {count} members");
        self.members.copy_within(position + 1..count, position);
        self.count -= 1;
        self.members[count - 1] = Member::default();
    }

    /// Puts a member first: it leads.
    pub fn lead(&mut self, position: usize) {
        self.members[..=position].rotate_right(1);
    }
}

impl std::fmt::Debug for SlotEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unclean = if self.is_unclean { " unclean" } else { "" };
        let persistent = if self.has_persistent { " persistent" } else { "" };
        write!(f, "{:?} in epoch {}{unclean}{persistent}", self.members(), self.leader_epoch)
    }
}

/// A whole table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotTable {
    /// The cluster that it is of.
    pub cluster: Arc<str>,
    /// Rises with every table of the cluster; 0: no table was made yet.
    pub epoch: u64,
    /// Who made it: a number that no other run of a control plane has. Two tables of one epoch, which a store that was set
    /// back may lead to, differ in it, so that no delta goes over the wrong one.
    pub maker: u64,
    /// The number that the next new node gets.
    pub next_number: u32,
    /// The nodes.
    pub nodes: BTreeMap<NodeNumber, Arc<NodeEntry>>,
    /// The slots, by number.
    pub slots: Vec<SlotEntry>,
}

/// What is wrong with a table or a delta.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// It does not start where the reader is.
    #[error("the delta starts at table epoch {from}, the table is at {held} or another one of that epoch")]
    Gap {
        /// Where the delta starts.
        from: u64,
        /// What the reader has.
        held: u64,
    },
    /// It would take the reader back.
    #[error("table epoch {told} is not above {held}: an older control plane, or a store from a backup?")]
    Older {
        /// The epoch told.
        told: u64,
        /// What the reader has.
        held: u64,
    },
    /// It is of another cluster.
    #[error("the table is of cluster {told:?} with {told_slots} slots, not of {own:?} with {own_slots}")]
    Cluster {
        /// The cluster told.
        told: String,
        /// Its slots.
        told_slots: usize,
        /// The reader's.
        own: String,
        /// Its slots.
        own_slots: usize,
    },
    /// A node that cannot be.
    #[error("{0}")]
    Node(String),
    /// A slot that cannot be.
    #[error("slot {0}: {1}")]
    Slot(u16, &'static str),
    /// The bytes do not fit the layout.
    #[error("malformed: {0}")]
    Body(String),
}

impl From<BodyError> for TableError {
    fn from(error: BodyError) -> Self {
        TableError::Body(error.to_string())
    }
}

impl SlotTable {
    /// The table before the first: no nodes, no leader anywhere.
    pub fn empty(cluster: &str, slot_count: u32) -> Self {
        assert!(slot_count.is_power_of_two() && slot_count <= SLOTS_MAX);
        Self {
            cluster: cluster.into(),
            epoch: 0,
            maker: 0,
            next_number: 0,
            nodes: BTreeMap::new(),
            slots: vec![SlotEntry::default(); slot_count as usize],
        }
    }

    /// Where the leader of `slot` listens, and in which epoch it leads.
    pub fn leader_of(&self, slot: SlotId) -> Option<(&NodeEntry, u32)> {
        let entry = self.slots.get(usize::from(slot.0))?;
        Some((self.nodes.get(&entry.leader()?)?, entry.leader_epoch))
    }

    /// The number of a node by its id.
    pub fn number_of(&self, id: &str) -> Option<NodeNumber> {
        self.nodes.iter().find(|(_, node)| &*node.id == id).map(|(number, _)| *number)
    }

    /// Finds what no table may have.
    pub fn check(&self) -> Result<(), TableError> {
        let mut ids: Vec<&str> = Vec::with_capacity(self.nodes.len());
        for (number, node) in &self.nodes {
            node.check()?;
            if number.0 >= self.next_number || number.0 >= NodeNumber::LIMIT {
                return Err(TableError::Node(format!("{} has the number {}", node.id, number.0)));
            }
            ids.push(&node.id);
        }
        ids.sort_unstable();
        if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(TableError::Node(format!("two nodes have the id {}", pair[0])));
        }
        for (slot, entry) in self.slots.iter().enumerate() {
            self.check_slot(slot as u16, entry)?;
        }
        Ok(())
    }

    fn check_slot(&self, slot: u16, entry: &SlotEntry) -> Result<(), TableError> {
        let members = entry.members();
        for (at, member) in members.iter().enumerate() {
            if !self.nodes.contains_key(&member.node()) {
                return Err(TableError::Slot(slot, "a member is no node of the table"));
            }
            if members[..at].iter().any(|other| other.node() == member.node()) {
                return Err(TableError::Slot(slot, "a node is a member twice"));
            }
        }
        if entry.leader_epoch > Revision::EPOCH_MAX || (entry.leader_epoch == 0 && !members.is_empty()) {
            return Err(TableError::Slot(slot, "its leader epoch is out of range"));
        }
        Ok(())
    }

    /// What a reader of `older` lacks. Nodes that are the same object in both are not compared.
    pub fn delta_since(&self, older: &SlotTable) -> TableDelta {
        debug_assert_eq!(self.slots.len(), older.slots.len());
        let same = |number: &NodeNumber, node: &Arc<NodeEntry>| {
            older.nodes.get(number).is_some_and(|old| Arc::ptr_eq(old, node) || old == node)
        };
        let nodes = self.nodes.iter().filter(|(number, node)| !same(number, node));
        let slots = self.slots.iter().zip(&older.slots).enumerate().filter(|(_, (new, old))| new != old);
        TableDelta {
            cluster: self.cluster.clone(),
            slot_count: self.slots.len() as u32,
            from: older.epoch,
            to: self.epoch,
            from_maker: older.maker,
            maker: self.maker,
            next_number: self.next_number,
            gone: older.nodes.keys().filter(|number| !self.nodes.contains_key(number)).copied().collect(),
            nodes: nodes.map(|(number, node)| (*number, node.clone())).collect(),
            slots: slots.map(|(slot, (new, _))| (slot as u16, *new)).collect(),
        }
    }

    /// The whole table, for a reader that has none or one too old.
    pub fn whole(&self) -> TableDelta {
        self.delta_since(&Self::empty(&self.cluster, self.slots.len() as u32))
    }

    /// Makes a table of a whole one as it was told.
    pub fn from_whole(delta: &TableDelta) -> Result<Self, TableError> {
        if delta.from != 0 {
            return Err(TableError::Gap { from: delta.from, held: 0 });
        }
        if !delta.slot_count.is_power_of_two() || delta.slot_count > SLOTS_MAX {
            return Err(TableError::Body(format!("{} slots", delta.slot_count)));
        }
        let mut table = Self::empty(&delta.cluster, delta.slot_count);
        table.apply(delta)?;
        Ok(table)
    }

    /// Takes a delta in, or a whole table in place of this one. After an error nothing has changed.
    pub fn apply(&mut self, delta: &TableDelta) -> Result<(), TableError> {
        if delta.cluster != self.cluster || delta.slot_count as usize != self.slots.len() {
            return Err(TableError::Cluster {
                told: delta.cluster.to_string(),
                told_slots: delta.slot_count as usize,
                own: self.cluster.to_string(),
                own_slots: self.slots.len(),
            });
        }
        if delta.to >= TABLE_EPOCH_LIMIT {
            return Err(TableError::Body(format!("table epoch {} is out of range", delta.to)));
        }
        if delta.to <= self.epoch && !crate::faults::older_table() {
            return Err(TableError::Older { told: delta.to, held: self.epoch });
        }
        if delta.from != 0 && (delta.from, delta.from_maker) != (self.epoch, self.maker) {
            return Err(TableError::Gap { from: delta.from, held: self.epoch });
        }
        let mut next = match delta.from {
            0 => Self::empty(&self.cluster, delta.slot_count),
            _ => self.clone(),
        };
        (next.epoch, next.maker, next.next_number) = (delta.to, delta.maker, delta.next_number);
        for number in &delta.gone {
            next.nodes.remove(number);
        }
        next.nodes.extend(delta.nodes.iter().cloned());
        for (slot, entry) in &delta.slots {
            let place = next
                .slots
                .get_mut(usize::from(*slot))
                .ok_or(TableError::Slot(*slot, "there is no such slot"))?;
            *place = *entry;
        }
        for (slot, (new, old)) in next.slots.iter().zip(&self.slots).enumerate() {
            if new.leader_epoch < old.leader_epoch {
                return Err(TableError::Slot(slot as u16, "its leader epoch would go back"));
            }
        }
        next.check()?;
        *self = next;
        Ok(())
    }
}

/// What a reader lacks between two tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableDelta {
    /// The cluster.
    pub cluster: Arc<str>,
    /// Its slots.
    pub slot_count: u32,
    /// Table epoch of the reader; 0: it replaces whatever the reader has.
    pub from: u64,
    /// Table epoch afterwards.
    pub to: u64,
    /// Who made the reader's table.
    pub from_maker: u64,
    /// Who made the table afterwards.
    pub maker: u64,
    /// The number that the next new node gets.
    pub next_number: u32,
    /// Nodes that are no longer in the table.
    pub gone: Vec<NodeNumber>,
    /// Nodes that are new or have changed.
    pub nodes: Vec<(NodeNumber, Arc<NodeEntry>)>,
    /// Slots that have changed.
    pub slots: Vec<(u16, SlotEntry)>,
}

impl TableDelta {
    /// Appends the encoding.
    pub fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        put_u64(out, self.from);
        put_u64(out, self.to);
        put_u64(out, self.from_maker);
        put_u64(out, self.maker);
        put_u32(out, self.slot_count);
        put_u32(out, self.next_number);
        put_u32(out, self.gone.len() as u32);
        put_u32(out, self.nodes.len() as u32);
        put_u32(out, self.slots.len() as u32);
        put_u16(out, self.cluster.len() as u16);
        put_u16(out, 0);
        debug_assert_eq!(out.len() - start, FIXED_BYTES);
        out.extend_from_slice(self.cluster.as_bytes());
        self.gone.iter().for_each(|number| put_u32(out, number.0));
        for (number, node) in &self.nodes {
            put_u32(out, number.0);
            write_node(out, node);
        }
        for (slot, entry) in &self.slots {
            put_u16(out, *slot);
            let unclean = if entry.is_unclean { UNCLEAN } else { 0 };
            let persistent = if entry.has_persistent { PERSISTENT } else { 0 };
            out.extend_from_slice(&[entry.count, unclean | persistent]);
            put_u32(out, entry.leader_epoch);
            entry.members().iter().for_each(|member| put_u32(out, member.0));
        }
    }

    /// Reads an encoding at the start of `bytes`; what follows it is not looked at. Counts are believed only as far as
    /// there are bytes.
    pub fn read(bytes: &[u8]) -> Result<Self, TableError> {
        let mut body = Reader(bytes);
        let (from, to) = (body.u64()?, body.u64()?);
        let (from_maker, maker) = (body.u64()?, body.u64()?);
        let (slot_count, next_number) = (body.u32()?, body.u32()?);
        let (gone, nodes, slots) = (body.u32()?, body.u32()?, body.u32()?);
        let cluster_len = body.u16()?;
        body.skip(2)?;
        let cluster = body.text(cluster_len.into())?;
        check_name("cluster", cluster, CLUSTER_BYTES_MAX)
            .map_err(|error| TableError::Body(error.to_string()))?;
        let gone = numbers(body.column(gone, 4)?);
        let nodes = (0..nodes)
            .map(|_| Ok((NodeNumber(body.u32()?), Arc::new(read_node(&mut body)?))))
            .collect::<Result<_, BodyError>>()?;
        let slots = (0..slots).map(|_| read_slot(&mut body)).collect::<Result<_, TableError>>()?;
        let cluster = cluster.into();
        Ok(Self { cluster, slot_count, from, to, from_maker, maker, next_number, gone, nodes, slots })
    }
}

/// Appends a node: `incarnation u64, ip 16 bytes, http u16, flags u8, id_len u8, zone_len u8, 0 u8, shards u16`, id, zone,
/// a port of 2 bytes per shard.
pub(super) fn write_node(out: &mut Vec<u8>, node: &NodeEntry) {
    put_u64(out, node.incarnation);
    let ip = match node.ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    out.extend_from_slice(&ip.octets());
    put_u16(out, node.http);
    let flags = if node.draining { DRAINING } else { 0 };
    out.extend_from_slice(&[flags, node.id.len() as u8, node.zone.len() as u8, 0]);
    put_u16(out, node.ports.len() as u16);
    out.extend_from_slice(node.id.as_bytes());
    out.extend_from_slice(node.zone.as_bytes());
    node.ports.iter().for_each(|port| put_u16(out, *port));
}

/// Reads what [`write_node`] has written.
pub(super) fn read_node(body: &mut Reader<'_>) -> Result<NodeEntry, BodyError> {
    let incarnation = body.u64()?;
    let ip = Ipv6Addr::from(body.array::<16>()?).to_canonical();
    let (http, flags) = (body.u16()?, body.u8()?);
    let (id_len, zone_len) = (body.u8()?, body.u8()?);
    body.skip(1)?;
    let shards = body.u16()?;
    let (id, zone) = (body.text(id_len.into())?, body.text(zone_len.into())?);
    let ports = body.column(shards.into(), 2)?;
    let ports = ports.chunks_exact(2).map(|port| u16::from_le_bytes([port[0], port[1]])).collect();
    let draining = flags & DRAINING != 0;
    Ok(NodeEntry { id: id.into(), incarnation, zone: zone.into(), ip, ports, http, draining })
}

fn numbers(column: &[u8]) -> Vec<NodeNumber> {
    let read = |bytes: &[u8]| NodeNumber(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    column.chunks_exact(4).map(read).collect()
}

fn read_slot(body: &mut Reader<'_>) -> Result<(u16, SlotEntry), TableError> {
    let (slot, count, flags) = (body.u16()?, body.u8()?, body.u8()?);
    if usize::from(count) > MEMBERS_MAX {
        return Err(TableError::Slot(slot, "it has too many members"));
    }
    let mut entry = SlotEntry {
        leader_epoch: body.u32()?,
        is_unclean: flags & UNCLEAN != 0,
        has_persistent: flags & PERSISTENT != 0,
        ..SlotEntry::default()
    };
    for _ in 0..count {
        let member = Member(body.u32()? & (Member::IN_SYNC | Member::LEAVING | (NodeNumber::LIMIT - 1)));
        entry.push(member);
    }
    Ok((slot, entry))
}

#[cfg(test)]
mod tests;
