//! Which link leads each slot, and in which leader epoch: as configured, or as the slot table says.
//!
//! A session that follows a table has a link to every shard of every data node of it, also to those that lead nothing, so
//! that a new leader knows who lives. A link is of one start of a node: when that comes back, or elsewhere, it is another.
//!
//! The digest of what the session holds is kept by slot, so that it moves with the slot from one link to another.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    ops::{Index, IndexMut},
};

use slotcast_engine::{
    digest::Digest,
    id::{DatumKey, SlotId},
};

use crate::{
    session::{config::Routes, link::Link},
    wire::slot_table::{NodeNumber, SlotTable},
};

/// Who leads a slot, as far as this session knows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Route {
    /// The link to the leader; `None`: there is no leader.
    pub(super) link: Option<usize>,
    /// The leader epoch; 0 where routes are configured.
    pub(super) epoch: u32,
    /// Which change of the routes made it so.
    pub(super) since: u64,
    /// The leader has waited for everybody since it leads: what it does not list is not there.
    pub(super) is_vouched: bool,
}

impl Route {
    /// Whether something sent to `link` in `epoch` was sent to this leader.
    pub(super) fn is(&self, link: usize, epoch: u32) -> bool {
        self.link == Some(link) && self.epoch == epoch
    }
}

/// A slot that has another leader, or the same one in another epoch.
pub(super) struct Change {
    pub(super) slot: SlotId,
    pub(super) from: Route,
    pub(super) to: Route,
}

/// The routes of all slots, and what this session holds of each.
pub(super) struct SlotRoutes {
    slot_count: u32,
    slots: Vec<Route>,
    digests: Vec<Digest>,
    /// Counts the changes.
    generation: u64,
}

impl SlotRoutes {
    /// Routes as they are configured: the numbers of links are the positions of the shards.
    pub(super) fn fixed(routes: &Routes) -> Self {
        let route = |link: &u16| Route { link: Some(usize::from(*link)), ..Route::default() };
        Self { slots: routes.leaders.iter().map(route).collect(), ..Self::unknown(routes.slot_count) }
    }

    /// Routes before the first table.
    pub(super) fn unknown(slot_count: u32) -> Self {
        let count = slot_count as usize;
        let (slots, digests) = (vec![Route::default(); count], vec![Digest::default(); count]);
        Self { slot_count, slots, digests, generation: 0 }
    }

    /// Slots of the cluster.
    pub(super) fn slot_count(&self) -> u32 {
        self.slot_count
    }

    /// The latest change.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// The slot of a data id.
    pub(super) fn slot(&self, datum: DatumKey) -> SlotId {
        datum.slot(self.slot_count)
    }

    /// Who leads a slot.
    pub(super) fn of(&self, slot: SlotId) -> Route {
        self.slots[usize::from(slot.0)]
    }

    /// Who leads the slot of a data id.
    pub(super) fn of_datum(&self, datum: DatumKey) -> Route {
        self.of(self.slot(datum))
    }

    /// The link to the leader of a data id's slot.
    pub(super) fn link_of(&self, datum: DatumKey) -> Option<usize> {
        self.of_datum(datum).link
    }

    /// The keys of a slot's data ids: first and last.
    pub(super) fn keys(&self, slot: SlotId) -> (DatumKey, DatumKey) {
        let last_offset = u64::MAX / u64::from(self.slot_count);
        let first = u64::from(slot.0).wrapping_mul(last_offset.wrapping_add(1));
        (DatumKey(first), DatumKey(first + last_offset))
    }

    /// Whether a slot, of whatever number, is led by a link since a change of the routes up to `generation`.
    pub(super) fn is_covered(&self, slot: SlotId, link: usize, generation: u64) -> bool {
        let route = self.slots.get(usize::from(slot.0));
        route.is_some_and(|route| route.link == Some(link) && route.since <= generation)
    }

    /// Slots without a leader.
    pub(super) fn leaderless(&self) -> usize {
        self.slots.iter().filter(|route| route.link.is_none()).count()
    }

    /// What is held of a slot, to be brought up to date.
    pub(super) fn digest_mut(&mut self, slot: SlotId) -> &mut Digest {
        &mut self.digests[usize::from(slot.0)]
    }

    /// The digests of what is held of the slots that a link leads; slots of which nothing is held are left out.
    pub(super) fn digests_of(&self, link: usize) -> BTreeMap<SlotId, Digest> {
        let led = self.slots.iter().zip(&self.digests).enumerate();
        led.filter(|(_, (route, digest))| route.link == Some(link) && !digest.is_empty())
            .map(|(slot, (_, digest))| (SlotId(slot as u16), *digest))
            .collect()
    }

    /// Slots of a link that are vouched for now and were not before.
    pub(super) fn vouch(
        &mut self,
        link: usize,
        is_vouched: impl Fn(SlotId, &Route) -> bool,
    ) -> BTreeSet<SlotId> {
        let mut slots = BTreeSet::new();
        for (slot, route) in self.slots.iter_mut().enumerate().filter(|(_, route)| route.link == Some(link)) {
            let slot = SlotId(slot as u16);
            if !route.is_vouched && is_vouched(slot, route) {
                route.is_vouched = true;
                slots.insert(slot);
            }
        }
        slots
    }

    /// A link's shard is in another run: nothing that was vouched for by the one before is.
    pub(super) fn unvouch(&mut self, link: usize) {
        for route in self.slots.iter_mut().filter(|route| route.link == Some(link)) {
            route.is_vouched = false;
        }
    }

    /// Takes the leaders of a table over, whose links are there. Moves what is held of each slot that changes from the
    /// digest of one link to that of the other.
    pub(super) fn follow(&mut self, table: &SlotTable, links: &mut Links) -> Vec<Change> {
        let mut changes = Vec::new();
        let next = self.generation + 1;
        for (slot, entry) in table.slots.iter().enumerate() {
            let (slot, from) = (SlotId(slot as u16), self.slots[slot]);
            let link =
                entry.leader().and_then(|leader| links.find(&LinkKey::of_leader(table, leader, slot)?));
            if from.link == link && (from.epoch == entry.leader_epoch || link.is_none()) {
                continue;
            }
            let to = Route { link, epoch: entry.leader_epoch, since: next, is_vouched: false };
            let digest = self.digests[usize::from(slot.0)];
            if let Some(link) = from.link {
                links[link].give_up(slot, from.epoch, digest);
            }
            if let Some(link) = to.link {
                links[link].take_on(slot, to.epoch, digest);
            }
            self.slots[usize::from(slot.0)] = to;
            changes.push(Change { slot, from, to });
        }
        if !changes.is_empty() {
            self.generation = next;
        }
        changes
    }
}

/// Which shard of which start of a node, and where it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct LinkKey {
    pub(super) node: NodeNumber,
    pub(super) incarnation: u64,
    pub(super) shard: u16,
    pub(super) addr: SocketAddr,
}

impl LinkKey {
    /// The shards of all nodes of a table.
    pub(super) fn all(table: &SlotTable) -> BTreeSet<LinkKey> {
        let shards = table.nodes.iter().flat_map(|(number, node)| {
            node.ports.iter().enumerate().map(|(shard, port)| LinkKey {
                node: *number,
                incarnation: node.incarnation,
                shard: shard as u16,
                addr: SocketAddr::new(node.ip, *port),
            })
        });
        shards.collect()
    }

    fn of_leader(table: &SlotTable, leader: NodeNumber, slot: SlotId) -> Option<LinkKey> {
        let node = table.nodes.get(&leader)?;
        let shard = slot.shard(u32::try_from(node.ports.len()).ok().filter(|shards| *shards > 0)?) as u16;
        let addr = node.shard_addr(slot)?;
        Some(LinkKey { node: leader, incarnation: node.incarnation, shard, addr })
    }
}

/// The links by number. A number is used again once its link has been dropped.
#[derive(Default)]
pub(super) struct Links {
    places: Vec<Option<Link>>,
    numbers: BTreeMap<LinkKey, usize>,
}

impl Links {
    /// Links as configured, for good.
    pub(super) fn fixed(shards: &[SocketAddr]) -> Self {
        Self { places: shards.iter().map(|addr| Some(Link::new(*addr))).collect(), ..Self::default() }
    }

    /// The number of a shard's link.
    pub(super) fn find(&self, key: &LinkKey) -> Option<usize> {
        self.numbers.get(key).copied()
    }

    /// Makes a link, unless it is there.
    pub(super) fn add(&mut self, key: LinkKey) {
        if self.numbers.contains_key(&key) {
            return;
        }
        let number = self.places.iter().position(Option::is_none).unwrap_or(self.places.len());
        if number == self.places.len() {
            self.places.push(None);
        }
        self.places[number] = Some(Link::following(key.addr));
        self.numbers.insert(key, number);
    }

    /// Takes out the links that are not wanted any more. They must lead nothing.
    pub(super) fn retain(&mut self, wanted: &BTreeSet<LinkKey>) -> Vec<Link> {
        let gone: Vec<usize> =
            self.numbers.extract_if(.., |key, _| !wanted.contains(key)).map(|(_, number)| number).collect();
        gone.into_iter().filter_map(|number| self.places[number].take()).collect()
    }

    /// Numbers that links have or had; all are below this.
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    /// A link, if there is one of that number.
    pub(super) fn get_mut(&mut self, number: usize) -> Option<&mut Link> {
        self.places.get_mut(number)?.as_mut()
    }

    /// All links.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.places.iter().flatten()
    }
}

impl Index<usize> for Links {
    type Output = Link;

    fn index(&self, number: usize) -> &Link {
        self.places[number].as_ref().expect("a number in use is of a link that is there")
    }
}

impl IndexMut<usize> for Links {
    fn index_mut(&mut self, number: usize) -> &mut Link {
        self.places[number].as_mut().expect("a number in use is of a link that is there")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_a_slot_are_those_that_lie_in_it() {
        for slot_count in [1, 2, 1024, 16384] {
            let routes = SlotRoutes::unknown(slot_count);
            for slot in [0, slot_count / 2, slot_count - 1].map(|slot| SlotId(slot as u16)) {
                let (first, last) = routes.keys(slot);
                assert_eq!((routes.slot(first), routes.slot(last)), (slot, slot));
                assert!(first.0 == 0 || routes.slot(DatumKey(first.0 - 1)).0 == slot.0 - 1);
                assert!(last.0 == u64::MAX || routes.slot(DatumKey(last.0 + 1)).0 == slot.0 + 1);
            }
        }
    }
}
