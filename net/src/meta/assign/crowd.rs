//! The nodes of one round: what each holds and leads so far, and who has the least.

use std::collections::BTreeSet;

use slotcast_engine::id::mix64;

use crate::{
    meta::assign::{Candidate, Presence, SLACK_PERCENT},
    wire::slot_table::{MEMBERS_MAX, NodeNumber, SlotEntry},
};

/// Loads within which nothing is moved for balance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Band {
    pub(super) low: u32,
    /// The mean, rounded up: nobody is given more for the sake of zones.
    pub(super) mean: u32,
    pub(super) high: u32,
}

impl Band {
    /// The mean of `total` over `nodes`, with the slack, rounded outwards.
    pub(super) fn around(total: usize, nodes: usize) -> Self {
        let nodes = nodes.max(1);
        let low = total * (100 - SLACK_PERCENT) / (nodes * 100);
        let high = (total * (100 + SLACK_PERCENT)).div_ceil(nodes * 100);
        Self { low: low as u32, mean: total.div_ceil(nodes) as u32, high: high as u32 }
    }
}

struct Node {
    candidate: Candidate,
    members: u32,
    leaders: u32,
}

/// All candidates, each at its place.
pub(super) struct Crowd {
    nodes: Vec<Node>,
    takers: usize,
    /// Only draining nodes are there: they keep what they have, and take what has nobody.
    ignores_drains: bool,
    /// Takers of each zone by the members they have.
    by_zone: Vec<BTreeSet<(u32, u32)>>,
    /// Zones by the members of their emptiest taker.
    zones: BTreeSet<(u32, u32)>,
    /// Takers by the slots they lead.
    by_leaders: BTreeSet<(u32, u32, u32)>,
    /// Members that a node should have.
    pub(super) members_band: Band,
    /// Slots that a node should lead.
    pub(super) leaders_band: Band,
}

impl Crowd {
    pub(super) fn new(candidates: &[Candidate]) -> Self {
        let zones = candidates.iter().map(|candidate| candidate.zone + 1).max().unwrap_or(0);
        let mut nodes: Vec<Node> = candidates
            .iter()
            .map(|candidate| Node { candidate: *candidate, members: 0, leaders: 0 })
            .collect();
        if !nodes.iter().any(|node| node.candidate.presence.is_free()) {
            // All that are there are about to end: they go on until they do.
            for node in nodes.iter_mut().filter(|node| node.candidate.presence == Presence::Ending) {
                node.candidate.presence = Presence::Alive;
            }
        }
        let mut crowd = Self {
            nodes,
            takers: 0,
            ignores_drains: false,
            by_zone: vec![BTreeSet::new(); zones as usize],
            zones: BTreeSet::new(),
            by_leaders: BTreeSet::new(),
            members_band: Band::default(),
            leaders_band: Band::default(),
        };
        crowd.ignores_drains = !crowd.nodes.iter().any(|node| {
            let candidate = &node.candidate;
            candidate.presence.is_free() && !candidate.draining
        });
        crowd.takers = (0..crowd.nodes.len()).filter(|place| crowd.is_taker(at(*place))).count();
        crowd
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Nodes that are to hold slots, those that are absent for a while included.
    pub(super) fn holders(&self) -> usize {
        (0..self.nodes.len()).filter(|place| !self.is_draining(at(*place))).count()
    }

    /// Whether anybody is there at all.
    pub(super) fn anybody(&self) -> bool {
        self.nodes.iter().any(|node| node.candidate.presence != Presence::Absent)
    }

    /// The place of a node; `None` if it is gone.
    pub(super) fn place_of(&self, number: NodeNumber) -> Option<NodeNumber> {
        self.nodes.binary_search_by_key(&number, |node| node.candidate.number).ok().map(at)
    }

    pub(super) fn number_at(&self, place: NodeNumber) -> NodeNumber {
        self.node(place).candidate.number
    }

    fn node(&self, place: NodeNumber) -> &Node {
        &self.nodes[place.0 as usize]
    }

    pub(super) fn presence(&self, place: NodeNumber) -> Presence {
        self.node(place).candidate.presence
    }

    /// Whether it is to be emptied. With nobody to take its slots it keeps them.
    pub(super) fn is_draining(&self, place: NodeNumber) -> bool {
        self.node(place).candidate.draining && !self.ignores_drains
    }

    pub(super) fn is_taker(&self, place: NodeNumber) -> bool {
        self.presence(place).is_free() && !self.is_draining(place)
    }

    pub(super) fn zone(&self, place: NodeNumber) -> u32 {
        self.node(place).candidate.zone
    }

    pub(super) fn zones(&self) -> usize {
        self.zones.len()
    }

    pub(super) fn members(&self, place: NodeNumber) -> u32 {
        self.node(place).members
    }

    pub(super) fn leaders(&self, place: NodeNumber) -> u32 {
        self.node(place).leaders
    }

    /// Counts before [`Self::index`].
    pub(super) fn count_member(&mut self, place: NodeNumber) {
        self.nodes[place.0 as usize].members += 1;
    }

    /// Counts before [`Self::index`].
    pub(super) fn count_leader(&mut self, place: NodeNumber) {
        self.nodes[place.0 as usize].leaders += 1;
    }

    /// Orders the takers once everything is counted; `members` and `leaders` are what there will be in all.
    pub(super) fn index(&mut self, members: usize, leaders: usize) {
        self.members_band = Band::around(members, self.holders());
        self.leaders_band = Band::around(leaders, self.takers);
        for place in (0..self.nodes.len()).map(at).filter(|place| self.is_taker(*place)).collect::<Vec<_>>() {
            let node = self.node(place);
            let (members, leaders, zone) = (node.members, node.leaders, node.candidate.zone);
            self.by_zone[zone as usize].insert((members, place.0));
            self.by_leaders.insert((leaders, members, place.0));
        }
        let firsts = self.by_zone.iter().enumerate();
        self.zones = firsts.filter_map(|(zone, set)| Some((set.first()?.0, zone as u32))).collect();
    }

    /// One member more or less.
    pub(super) fn change_members(&mut self, place: NodeNumber, more: bool) {
        let taker = self.is_taker(place);
        let node = &mut self.nodes[place.0 as usize];
        let before = node.members;
        node.members = if more { before + 1 } else { before - 1 };
        let (members, leaders, zone) = (node.members, node.leaders, node.candidate.zone);
        if !taker {
            return;
        }
        self.by_leaders.remove(&(leaders, before, place.0));
        self.by_leaders.insert((leaders, members, place.0));
        let set = &mut self.by_zone[zone as usize];
        let first_before = set.first().map(|first| first.0);
        set.remove(&(before, place.0));
        set.insert((members, place.0));
        let first = set.first().map(|first| first.0);
        if first != first_before {
            first_before.map(|least| self.zones.remove(&(least, zone)));
            first.map(|least| self.zones.insert((least, zone)));
        }
    }

    /// One slot led more or less.
    pub(super) fn change_leaders(&mut self, place: NodeNumber, more: bool) {
        let taker = self.is_taker(place);
        let node = &mut self.nodes[place.0 as usize];
        let before = node.leaders;
        node.leaders = if more { before + 1 } else { before - 1 };
        let (members, leaders) = (node.members, node.leaders);
        if taker {
            self.by_leaders.remove(&(before, members, place.0));
            self.by_leaders.insert((leaders, members, place.0));
        }
    }

    /// Who takes a slot that nobody can lead: the taker that leads least. Takers that are members are passed over.
    pub(super) fn new_leader(&self, entry: &SlotEntry) -> Option<NodeNumber> {
        let mut places = self.by_leaders.iter().map(|(_, _, place)| NodeNumber(*place));
        places.find(|place| entry.position(*place).is_none())
    }

    /// Who becomes a member: the taker with the least of a zone that has none of `entry`'s members, `without` not counted,
    /// as long as the balance allows it; otherwise the taker with the least.
    pub(super) fn new_member(
        &self,
        slot: usize,
        entry: &SlotEntry,
        without: Option<NodeNumber>,
    ) -> Option<NodeNumber> {
        let spread = self.new_member_elsewhere(slot, entry, without);
        spread
            .filter(|place| self.members(*place) < self.members_band.mean)
            .or_else(|| self.emptiest(slot, entry))
    }

    /// The taker with the least that is no member.
    pub(super) fn emptiest(&self, slot: usize, entry: &SlotEntry) -> Option<NodeNumber> {
        // Among so many zones there is one whose emptiest node is no member, and later zones have none emptier.
        let least = |(_, zone): &(u32, u32)| self.emptiest_of(*zone, slot, entry);
        let zones = self.zones.iter().take(MEMBERS_MAX + 1);
        zones.filter_map(least).min().map(|(_, place)| NodeNumber(place))
    }

    /// The taker with the least of a zone that has none of the members that stay.
    pub(super) fn new_member_elsewhere(
        &self,
        slot: usize,
        entry: &SlotEntry,
        without: Option<NodeNumber>,
    ) -> Option<NodeNumber> {
        let mut zones = self.zones.iter().map(|(_, zone)| *zone);
        let free = zones.find(|zone| {
            let mut staying = entry.members().iter().filter(|member| {
                let place = member.node();
                !member.is_leaving() && Some(place) != without
            });
            !staying.any(|member| self.zone(member.node()) == *zone)
        })?;
        self.emptiest_of(free, slot, entry).map(|(_, place)| NodeNumber(place))
    }

    /// The taker of a zone with the least that is no member. Which of several depends on the slot, so that the slots of one
    /// node have their other members all over, and its load goes to many when it is lost.
    fn emptiest_of(&self, zone: u32, slot: usize, entry: &SlotEntry) -> Option<(u32, u32)> {
        let set = &self.by_zone[zone as usize];
        let least = set.first()?.0;
        let start = (mix64(slot as u64) % self.nodes.len() as u64) as u32;
        let (upper, lower) = (set.range((least, start)..(least + 1, 0)), set.range(..(least, start)));
        let others = set.range((least + 1, 0)..);
        let mut places = upper.chain(lower).chain(others);
        places.find(|(_, place)| entry.position(NodeNumber(*place)).is_none()).copied()
    }

    /// Whether two of the members that stay are in one zone.
    pub(super) fn shares_zone(&self, entry: &SlotEntry, place: NodeNumber) -> bool {
        let others = entry.members().iter().filter(|other| !other.is_leaving() && other.node() != place);
        others.map(|other| self.zone(other.node())).any(|zone| zone == self.zone(place))
    }
}

fn at(place: usize) -> NodeNumber {
    NodeNumber(place as u32)
}
