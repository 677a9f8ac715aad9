//! Who leads and who holds each slot, from who is there and who did before. Pure: the same arguments give the same answer.
//!
//! One round does, in this order:
//!
//! 1. *Leaders.* A slot whose leader is gone, absent or restarted goes to a member that is in sync; where none is there, to
//!    one that was in sync when it went down; where none of these is there either, to any member, else to any node. But not if
//!    it may have persistent publishers: then it stays as it is, with its absent leader, and *waits* for a member in sync,
//!    unless the limits allow another, and it is marked unclean. A slot whose leader is about to
//!    end goes to a member in sync, if there is one, and the former leader is in sync no more. Not bounded: a slot without a
//!    leader serves nobody.
//! 2. *Redundancy.* Slots with too few members get new ones. A new member is not in sync until its leader says so.
//! 3. *Drains.* Members on a draining node are leaving, and get a replacement.
//! 4. *Trim.* A leaving member goes when all others are in sync; a leaving leader hands over first.
//! 5. *Balance.* While a node has too many or too few, leaders are handed to members in sync, also through others, and
//!    members are replaced by members elsewhere; then members that share a zone are spread, as far as the balance allows.
//!
//! Steps 2 to 5 do at most `moves_max` moves together: members added, leaders handed over. A slot that never had a leader
//! holds nothing, and filling it is no move. At most one member of a slot is replaced at a time.

mod balance;
mod crowd;
#[cfg(test)]
mod tests;

use slotcast_engine::id::Revision;

use crate::{
    meta::assign::crowd::Crowd,
    wire::slot_table::{MEMBERS_MAX, Member, NodeNumber, SlotEntry},
};

/// Members that a slot may be configured to have; the others are room for those that leave.
pub const REPLICAS_MAX: usize = MEMBERS_MAX / 2;
/// Percent by which a node may be off the mean before anything is moved for balance.
pub const SLACK_PERCENT: usize = 10;

/// Where a node stands, as far as placing slots is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// Its lease runs, and it is the same run as in the table.
    Alive,
    /// Its lease runs, and its process is about to end: it keeps what it holds, leads what nobody else can, and is given
    /// nothing.
    Ending,
    /// Its lease runs, but it was started again since the table was made: it leads nothing and is in sync nowhere.
    Restarted,
    /// Its lease has ended a short while ago: it leads nothing and is in sync nowhere, but is not replaced yet.
    Absent,
}

impl Presence {
    /// Whether it is the run that the table names, and its lease runs.
    fn is_same_run(self) -> bool {
        matches!(self, Presence::Alive | Presence::Ending)
    }

    /// Whether it may be given something.
    fn is_free(self) -> bool {
        matches!(self, Presence::Alive | Presence::Restarted)
    }
}

/// A node that slots may be on. Nodes that are not listed are gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Its number.
    pub number: NodeNumber,
    /// Its zone, as a small number.
    pub zone: u32,
    /// Where it stands.
    pub presence: Presence,
    /// It is to hold nothing.
    pub draining: bool,
}

/// What bounds a round.
#[derive(Clone, Copy, Debug)]
pub struct AssignLimits {
    /// Members that a slot is to have, its leader included.
    pub replicas: usize,
    /// Moves of this round.
    pub moves_max: usize,
    /// Whether slots with persistent publishers may go to a node that is not in sync.
    pub unclean: bool,
}

/// Leader epochs of one slot that nodes have told of.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct EpochSeen {
    /// The largest of all.
    pub by_any: u32,
    /// The largest that the slot's present leader has told of itself.
    pub by_leader: u32,
}

/// What a round came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assignment {
    /// All slots.
    pub slots: Vec<SlotEntry>,
    /// Slots whose leader is another node than before.
    pub leaders_changed: usize,
    /// Slots with persistent publishers that went to a node that was not in sync.
    pub made_unclean: usize,
    /// Slots with persistent publishers that wait for a member in sync.
    pub waiting: usize,
    /// Moves: members added, leaders handed over; slots that never had a leader not counted.
    pub moves: usize,
}

/// One round. `candidates` are in the order of their numbers; `seen` has an entry per slot, or is empty.
pub fn assign(
    old: &[SlotEntry],
    candidates: &[Candidate],
    seen: &[EpochSeen],
    limits: &AssignLimits,
) -> Assignment {
    debug_assert!(candidates.is_sorted_by(|a, b| a.number < b.number));
    let mut round = Round::new(old, candidates, limits);
    if !round.crowd.anybody() {
        let slots = old.to_vec();
        return Assignment { slots, leaders_changed: 0, made_unclean: 0, waiting: 0, moves: 0 };
    }
    round.choose_leaders();
    round.restore_redundancy();
    round.trim();
    round.balance_leaders();
    round.balance_members();
    round.spread_zones();
    round.finish(old, seen)
}

/// A round under way. Members are told by their place in the crowd instead of their node's number.
struct Round {
    slots: Vec<SlotEntry>,
    /// Slots whose first member leads. The others lost their leader, or never had one.
    led: Vec<bool>,
    /// Slots that wait for a member in sync to come back: they stay as they are.
    waits: Vec<bool>,
    crowd: Crowd,
    /// Members that each slot is to have, as far as there are nodes.
    wanted: usize,
    budget: usize,
    unclean: bool,
    moves: usize,
    made_unclean: usize,
}

impl Round {
    fn new(old: &[SlotEntry], candidates: &[Candidate], limits: &AssignLimits) -> Self {
        let mut crowd = Crowd::new(candidates);
        let wanted = limits.replicas.clamp(1, REPLICAS_MAX).min(crowd.holders()).max(1);
        let (mut slots, mut led) = (Vec::with_capacity(old.len()), Vec::with_capacity(old.len()));
        for entry in old {
            let mut here = entry.without_members();
            for member in entry.members() {
                let Some(place) = crowd.place_of(member.node()) else { continue };
                let leaving = member.is_leaving() || crowd.is_draining(place);
                here.push(member.with_node(place).with_leaving(leaving));
            }
            let leader = entry.leader().and_then(|leader| crowd.place_of(leader));
            led.push(leader.is_some_and(|leader| crowd.presence(leader).is_same_run()));
            call_back(&mut here, wanted, &crowd);
            staying(&here).for_each(|member| crowd.count_member(member.node()));
            if let (Some(true), Some(leader)) = (led.last(), leader) {
                crowd.count_leader(leader);
            }
            slots.push(here);
        }
        crowd.index(slots.len() * wanted, slots.len());
        let budget = limits.moves_max;
        let (waits, unclean) = (vec![false; slots.len()], limits.unclean);
        Self { slots, led, waits, crowd, wanted, budget, unclean, moves: 0, made_unclean: 0 }
    }

    fn is_fresh(&self, slot: usize) -> bool {
        self.slots[slot].leader_epoch == 0
    }

    /// Takes a move from the budget.
    fn pay(&mut self) -> bool {
        let payable = self.budget > 0;
        if payable {
            self.budget -= 1;
            self.moves += 1;
        }
        payable
    }

    /// Gives every slot without a leader to the best that is there; then whoever is not alive is in sync nowhere.
    fn choose_leaders(&mut self) {
        for slot in 0..self.slots.len() {
            if !self.led[slot] {
                self.choose_leader(slot);
            } else {
                self.relieve(slot);
            }
            if self.waits[slot] {
                continue;
            }
            let leader = self.slots[slot].leader();
            for member in self.slots[slot].members_mut() {
                let place = member.node();
                let is_alive = self.crowd.presence(place).is_same_run();
                let in_sync = Some(place) == leader || (member.is_in_sync() && is_alive);
                *member = member.with_in_sync(in_sync);
            }
        }
    }

    fn choose_leader(&mut self, slot: usize) {
        let (entry, crowd) = (&self.slots[slot], &self.crowd);
        let rank = |member: &Member| match (crowd.presence(member.node()), member.is_in_sync()) {
            (Presence::Absent, _) => None,
            (Presence::Alive, true) => Some(0),
            (Presence::Ending, true) => Some(1),
            (Presence::Restarted, true) => Some(2),
            (Presence::Alive, false) => Some(3),
            (Presence::Restarted, false) => Some(4),
            (Presence::Ending, false) => Some(5),
        };
        let of = |(at, member): (usize, &Member)| {
            let rank = rank(member)?;
            Some((rank, member.is_leaving(), crowd.leaders(member.node()), at))
        };
        let best = entry.members().iter().enumerate().filter_map(of).min();
        let has_all = best.is_some_and(|(rank, ..)| rank < 3) || self.is_fresh(slot);
        let is_clean = has_all || !entry.has_persistent;
        if !is_clean && !self.unclean {
            self.waits[slot] = true;
            return;
        }
        let at = match best {
            Some((_, _, _, at)) => at,
            None => {
                // With only draining nodes there, one of them has to do.
                let Some(place) = self.crowd.new_leader(&self.slots[slot]) else { return };
                if !self.slots[slot].push(Member::new(place)) {
                    // All of the members are absent: the last has to go for the new one.
                    let last = MEMBERS_MAX - 1;
                    self.drop_member(slot, last);
                    self.slots[slot].push(Member::new(place));
                }
                self.crowd.change_members(place, true);
                self.slots[slot].members().len() - 1
            }
        };
        self.lead(slot, at);
        if !is_clean {
            self.made_unclean += 1;
            self.slots[slot].is_unclean = true;
        }
    }

    /// Takes a slot from a leader that is about to end, if a member in sync can have it.
    fn relieve(&mut self, slot: usize) {
        let Some(leader) = self.slots[slot].leader() else { return };
        if self.crowd.presence(leader) != Presence::Ending {
            return;
        }
        let Some(at) = self.heir(slot) else { return };
        self.lead(slot, at);
        // It follows nobody any more: nothing is to wait for it.
        let members = self.slots[slot].members_mut().iter_mut();
        members.filter(|member| member.node() == leader).for_each(|it| *it = it.with_in_sync(false));
    }

    /// Makes a member the leader, in a new epoch.
    fn lead(&mut self, slot: usize, at: usize) {
        if self.led[slot]
            && let Some(before) = self.slots[slot].leader()
        {
            self.crowd.change_leaders(before, false);
        }
        let entry = &mut self.slots[slot];
        entry.lead(at);
        let first = &mut entry.members_mut()[0];
        *first = first.with_in_sync(true);
        let place = first.node();
        self.crowd.change_leaders(place, true);
        self.led[slot] = true;
    }

    fn drop_member(&mut self, slot: usize, at: usize) {
        let member = self.slots[slot].members()[at];
        if !member.is_leaving() {
            self.crowd.change_members(member.node(), false);
        }
        self.slots[slot].remove(at);
    }

    fn mark_leaving(&mut self, slot: usize, at: usize) {
        let member = &mut self.slots[slot].members_mut()[at];
        if !member.is_leaving() {
            *member = member.with_leaving(true);
            let place = member.node();
            self.crowd.change_members(place, false);
        }
    }

    /// Adds a member that still has to get in sync. False, and nothing done, without room, budget or a node.
    fn add_member(&mut self, slot: usize, place: Option<NodeNumber>) -> bool {
        let Some(place) = place else { return false };
        let room = self.slots[slot].members().len() < MEMBERS_MAX;
        if !room || !(self.is_fresh(slot) || self.pay()) {
            return false;
        }
        self.slots[slot].push(Member::new(place));
        self.crowd.change_members(place, true);
        true
    }

    /// Adds members where there are too few, the slots with the fewest in sync first, and lets those beyond the wanted
    /// number leave.
    fn restore_redundancy(&mut self) {
        let mut short: Vec<(usize, usize)> = Vec::new();
        for slot in 0..self.slots.len() {
            if self.waits[slot] {
                continue;
            }
            let count = staying(&self.slots[slot]).count();
            for _ in self.wanted..count {
                self.release_one(slot);
            }
            if count < self.wanted && self.led[slot] {
                let in_sync = self.slots[slot].members().iter().filter(|member| member.is_in_sync());
                short.push((in_sync.count(), slot));
            }
        }
        short.sort_unstable();
        for (_, slot) in short {
            while staying(&self.slots[slot]).count() < self.wanted {
                let place = self.crowd.new_member(slot, &self.slots[slot], None);
                if !self.add_member(slot, place) {
                    break;
                }
            }
        }
    }

    /// Lets the least useful member leave: one that is absent, not in sync, beside another in its zone, or on a full node.
    fn release_one(&mut self, slot: usize) {
        let (entry, crowd) = (&self.slots[slot], &self.crowd);
        let worth = |(at, member): (usize, &Member)| {
            let place = member.node();
            let is_absent = crowd.presence(place) == Presence::Absent;
            let uses = (!is_absent, member.is_in_sync(), !crowd.shares_zone(entry, place));
            (uses, std::cmp::Reverse(crowd.members(place)), at)
        };
        let followers = entry.members().iter().enumerate().skip(1).filter(|(_, member)| !member.is_leaving());
        if let Some((_, _, at)) = followers.map(worth).min() {
            self.mark_leaving(slot, at);
        }
    }

    /// Takes out the members that are leaving, where the others can do without them.
    fn trim(&mut self) {
        for slot in 0..self.slots.len() {
            let entry = &self.slots[slot];
            if !self.led[slot] || !entry.members().iter().any(|member| member.is_leaving()) {
                continue;
            }
            let ready =
                staying(entry).all(|member| member.is_in_sync()) && staying(entry).count() >= self.wanted;
            if entry.members()[0].is_leaving() {
                if let Some(at) = ready.then(|| self.heir(slot)).flatten()
                    && self.pay()
                {
                    self.lead(slot, at);
                }
                continue;
            }
            for at in (1..self.slots[slot].members().len()).rev() {
                let member = self.slots[slot].members()[at];
                let is_absent = self.crowd.presence(member.node()) == Presence::Absent;
                if member.is_leaving() && (ready || is_absent) {
                    self.drop_member(slot, at);
                }
            }
        }
    }

    /// The member that may lead a slot next, the one that leads least.
    fn heir(&self, slot: usize) -> Option<usize> {
        let members = self.slots[slot].members().iter().enumerate().skip(1);
        let heirs = members.filter(|(_, member)| self.may_lead(member));
        heirs.min_by_key(|(at, member)| (self.crowd.leaders(member.node()), *at)).map(|(at, _)| at)
    }

    fn may_lead(&self, member: &Member) -> bool {
        let place = member.node();
        let is_there = self.crowd.presence(place) == Presence::Alive && self.crowd.is_taker(place);
        is_there && member.is_in_sync() && !member.is_leaving()
    }

    fn finish(mut self, old: &[SlotEntry], seen: &[EpochSeen]) -> Assignment {
        let mut leaders_changed = 0;
        for (slot, entry) in self.slots.iter_mut().enumerate() {
            let restarted =
                entry.leader().is_some_and(|place| self.crowd.presence(place) == Presence::Restarted);
            for member in entry.members_mut() {
                *member = member.with_node(self.crowd.number_at(member.node()));
            }
            let seen = seen.get(slot).copied().unwrap_or_default();
            let before = &old[slot];
            if self.waits[slot] {
                *entry = *before;
                continue;
            }
            let floor = before.leader_epoch.max(seen.by_any);
            let told_by_another = seen.by_any > before.leader_epoch && seen.by_leader < seen.by_any;
            let rises = entry.leader() != before.leader() || restarted || told_by_another;
            entry.leader_epoch = match rises && self.led[slot] {
                true if floor < Revision::EPOCH_MAX => floor + 1,
                true => {
                    // No epoch is left to change anything in. 16 million changes of one slot come first.
                    *entry = *before;
                    continue;
                }
                false if self.led[slot] => floor,
                false => before.leader_epoch,
            };
            leaders_changed += usize::from(entry.leader() != before.leader());
        }
        let (moves, made_unclean) = (self.moves, self.made_unclean);
        let waiting = self.waits.iter().filter(|waits| **waits).count();
        Assignment { slots: self.slots, leaders_changed, made_unclean, waiting, moves }
    }
}

/// The members that are not leaving.
fn staying(entry: &SlotEntry) -> impl Iterator<Item = &Member> {
    entry.members().iter().filter(|member| !member.is_leaving())
}

/// Lets members that were leaving stay, where too few would be left and their nodes may have them.
fn call_back(entry: &mut SlotEntry, wanted: usize, crowd: &Crowd) {
    let mut missing = wanted.saturating_sub(staying(entry).count());
    for member in entry.members_mut() {
        if missing > 0 && member.is_leaving() && crowd.is_taker(member.node()) {
            *member = member.with_leaving(false);
            missing -= 1;
        }
    }
}
