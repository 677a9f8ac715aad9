//! Balance: leaders are handed over, members replaced, so that each node has about as much as the others.

use std::collections::{BTreeSet, VecDeque};

use crate::{
    meta::assign::Round,
    wire::slot_table::{Member, NodeNumber},
};

/// Nodes that a leader is handed through at most, so that one with too many gets rid of one.
const CHAIN_MAX: usize = 8;

/// Which way a chain of handovers is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Chain {
    /// From a node that leads too many.
    Away,
    /// To a node that leads too few.
    Towards,
}

impl Round {
    /// Hands leaders over to members in sync, from nodes that lead too many and to nodes that lead too few.
    pub(super) fn balance_leaders(&mut self) {
        let band = self.crowd.leaders_band;
        let places = || (0..self.crowd.len() as u32).map(NodeNumber);
        let high: Vec<_> = places().filter(|place| self.crowd.leaders(*place) > band.high).collect();
        let takers = places().filter(|place| self.crowd.is_taker(*place));
        let low: Vec<_> = takers.filter(|place| self.crowd.leaders(*place) < band.low).collect();
        if (high.is_empty() && low.is_empty()) || self.budget == 0 {
            return;
        }
        let mut slots = SlotsOf::new(self);
        for place in high {
            while self.crowd.leaders(place) > band.high && self.hand_on(place, Chain::Away, &mut slots) {}
        }
        for place in low {
            while self.crowd.leaders(place) < band.low && self.hand_on(place, Chain::Towards, &mut slots) {}
        }
    }

    /// Looks for the shortest chain of handovers after which `start` leads one less or one more, and no other node is worse
    /// off than it may be. False, and nothing done, if there is none within the budget.
    fn hand_on(&mut self, start: NodeNumber, chain: Chain, slots: &mut SlotsOf) -> bool {
        let band = self.crowd.leaders_band;
        let ends = |round: &Self, place: NodeNumber| match chain {
            Chain::Away => round.crowd.leaders(place) < band.high,
            Chain::Towards => round.crowd.leaders(place) > band.low,
        };
        slots.begin(start);
        let mut queue = VecDeque::from([(start, 0)]);
        while let Some((place, depth)) = queue.pop_front() {
            if depth == CHAIN_MAX.min(self.budget) {
                break;
            }
            for slot in slots.of(place) {
                let entry = &self.slots[slot];
                let Some(leader) = entry.leader().filter(|_| self.led[slot]) else { continue };
                match chain {
                    Chain::Away if leader == place => {
                        let heirs = entry.members()[1..].iter().filter(|member| self.may_lead(member));
                        heirs.for_each(|heir| slots.reach(heir.node(), place, slot, &mut queue, depth));
                    }
                    Chain::Towards if leader != place => {
                        let at = entry.position(place);
                        if at.is_some_and(|at| self.may_lead(&entry.members()[at])) {
                            slots.reach(leader, place, slot, &mut queue, depth);
                        }
                    }
                    _ => {}
                }
            }
            let reached = std::mem::take(&mut slots.newly_reached);
            if let Some(end) = reached.into_iter().find(|end| ends(self, *end)) {
                return self.hand_along(start, end, chain, slots);
            }
        }
        false
    }

    /// Does the handovers from `start` to `end` that the search has found.
    fn hand_along(&mut self, start: NodeNumber, end: NodeNumber, chain: Chain, slots: &SlotsOf) -> bool {
        let mut place = end;
        while place != start {
            let (before, slot) = slots.reached_from(place);
            let heir = if chain == Chain::Away { place } else { before };
            if let Some(at) = self.slots[slot].position(heir)
                && self.pay()
            {
                self.lead(slot, at);
            }
            place = before;
        }
        true
    }

    /// Replaces members on the fullest nodes by members on the emptiest, while one of them is outside the band.
    pub(super) fn balance_members(&mut self) {
        let band = self.crowd.members_band;
        let places = || (0..self.crowd.len() as u32).map(NodeNumber);
        let donors = places()
            .filter(|place| self.crowd.presence(*place).is_free() && self.crowd.members(*place) > band.low);
        let mut donors: BTreeSet<(u32, NodeNumber)> =
            donors.map(|place| (self.crowd.members(place), place)).collect();
        let takers: Vec<_> = places().filter(|place| self.crowd.is_taker(*place)).collect();
        let is_outside = |count: u32| count > band.high || count < band.low;
        if self.budget == 0 || !takers.iter().any(|place| is_outside(self.crowd.members(*place))) {
            return;
        }
        let mut low = takers.iter().filter(|place| self.crowd.members(**place) < band.low).count();
        let slots = SlotsOf::new(self);
        while let Some((count, donor)) = donors.pop_last() {
            if self.budget == 0 || (count <= band.high && low == 0) {
                break;
            }
            let Some((slot, taker)) = self.replaceable(donor, &slots) else { continue };
            if self.crowd.members(taker) + 1 == band.low {
                low -= 1;
            }
            let at = self.slots[slot].position(donor).filter(|_| self.add_member(slot, Some(taker)));
            if let Some(at) = at {
                self.mark_leaving(slot, at);
                donors.insert((count - 1, donor));
            }
        }
    }

    /// A slot of `donor` that somebody with at least two members less can take, one that it does not lead if there is
    /// one, and who. It has to help: `donor` has too many, or the taker too few. Slots keep their spread over zones unless
    /// nothing else helps.
    fn replaceable(&self, donor: NodeNumber, slots: &SlotsOf) -> Option<(usize, NodeNumber)> {
        let (count, band) = (self.crowd.members(donor), self.crowd.members_band);
        let is_low = |taker: NodeNumber| self.crowd.members(taker) < band.low;
        let helps = |taker: &NodeNumber| {
            let had = self.crowd.members(*taker);
            had + 2 <= count && (had < band.low || (had < band.high && count > band.high))
        };
        let taker_of = |slot: usize| {
            let entry = &self.slots[slot];
            let leads = entry.leader() == Some(donor);
            if let Some(taker) = self.crowd.new_member_elsewhere(slot, entry, Some(donor)).filter(helps) {
                return Some(((false, !is_low(taker), leads), slot, taker));
            }
            let taker = self.crowd.emptiest(slot, entry).filter(helps)?;
            Some(((!self.crowd.shares_zone(entry, donor), !is_low(taker), leads), slot, taker))
        };
        let mut best: Option<((bool, bool, bool), usize, NodeNumber)> = None;
        for found in slots.of(donor).into_iter().filter(|slot| self.is_calm(*slot)).filter_map(taker_of) {
            if best.is_none_or(|best| found.0 < best.0) {
                best = Some(found);
            }
            if found.0 == (false, false, false) {
                break;
            }
        }
        best.map(|(_, slot, taker)| (slot, taker))
    }

    /// Replaces members beside another in their zone by members in a zone that has none, where the balance allows it.
    pub(super) fn spread_zones(&mut self) {
        if self.crowd.zones() < 2 {
            return;
        }
        for slot in 0..self.slots.len() {
            if self.budget == 0 {
                return;
            }
            let entry = &self.slots[slot];
            let mut crowded = entry.members().iter().enumerate().skip(1);
            let Some((at, member)) = crowded.find(|(_, member)| self.crowd.shares_zone(entry, member.node()))
            else {
                continue;
            };
            let donor = member.node();
            let Some(taker) = self.crowd.new_member_elsewhere(slot, entry, Some(donor)) else { continue };
            let (from, to) = (self.crowd.members(donor), self.crowd.members(taker));
            let band = self.crowd.members_band;
            let fits = (to < band.mean && from > band.low) || to < from;
            if fits && self.is_calm(slot) && self.add_member(slot, Some(taker)) {
                self.mark_leaving(slot, at);
            }
        }
    }

    /// Whether nothing of the slot is under way.
    fn is_calm(&self, slot: usize) -> bool {
        let entry = &self.slots[slot];
        let settled = |member: &Member| member.is_in_sync() && !member.is_leaving();
        self.led[slot] && !entry.members().is_empty() && entry.members().iter().all(settled)
    }
}

/// The slots of each node, and the notes of a search through them.
struct SlotsOf {
    first: Vec<u32>,
    slots: Vec<u16>,
    /// From which node a search has reached each, over which slot, and in which search.
    reached: Vec<(u32, NodeNumber, usize)>,
    search: u32,
    newly_reached: Vec<NodeNumber>,
}

impl SlotsOf {
    fn new(round: &Round) -> Self {
        let nodes = round.crowd.len();
        let mut first = vec![0u32; nodes + 1];
        let all = || {
            round.slots.iter().enumerate().flat_map(|(slot, entry)| {
                entry.members().iter().map(move |member| (slot as u16, member.node().0 as usize))
            })
        };
        all().for_each(|(_, place)| first[place + 1] += 1);
        for place in 0..nodes {
            first[place + 1] += first[place];
        }
        let (mut next, mut slots) = (first.clone(), vec![0; first[nodes] as usize]);
        for (slot, place) in all() {
            slots[next[place] as usize] = slot;
            next[place] += 1;
        }
        let reached = vec![(0, NodeNumber(0), 0); nodes];
        Self { first, slots, reached, search: 0, newly_reached: Vec::new() }
    }

    /// Slots that `place` was a member of when this was made.
    fn of(&self, place: NodeNumber) -> Vec<usize> {
        let place = place.0 as usize;
        let range = self.first[place] as usize..self.first[place + 1] as usize;
        self.slots[range].iter().map(|slot| usize::from(*slot)).collect()
    }

    fn begin(&mut self, start: NodeNumber) {
        self.search += 1;
        self.newly_reached.clear();
        self.reached[start.0 as usize].0 = self.search;
    }

    fn reach(
        &mut self,
        place: NodeNumber,
        from: NodeNumber,
        slot: usize,
        queue: &mut VecDeque<(NodeNumber, usize)>,
        depth: usize,
    ) {
        let note = &mut self.reached[place.0 as usize];
        if note.0 != self.search {
            *note = (self.search, from, slot);
            self.newly_reached.push(place);
            queue.push_back((place, depth + 1));
        }
    }

    fn reached_from(&self, place: NodeNumber) -> (NodeNumber, usize) {
        let (_, from, slot) = self.reached[place.0 as usize];
        (from, slot)
    }
}
