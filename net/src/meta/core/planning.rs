//! Time passes: leases end, warming ends, and when something has changed the next table is planned and stored.

use std::{collections::BTreeMap, sync::Arc};

use slotcast_engine::id::Nanos;

use crate::{
    follow::FIND_MAX,
    meta::{
        assign::{AssignLimits, Candidate, Presence, assign},
        core::{MetaCore, Output, Phase},
    },
    wire::{
        meta::HeldState,
        slot_table::{NodeEntry, NodeNumber, SlotEntry, SlotTable},
    },
};

/// Time between two tables for each slot of the cluster (nanoseconds), if that is more than the time between any two.
const PAUSE_PER_SLOT: u64 = 5_000;
/// Time between two looks at nodes that have been away for long, while nothing comes of it.
const IDLE: u64 = Nanos::SECOND;

impl MetaCore {
    /// To be called at least every tenth of a second, after everything that has arrived was handled.
    pub fn tick(&mut self, now: Nanos) {
        if self.phase == Phase::Standby {
            return;
        }
        let expiry = self.members.tick(now);
        self.held_back = expiry.held_back;
        // Time in which it stood still is no time in which nodes could find it.
        self.elected_at = self.elected_at.after(expiry.paused);
        for id in expiry.ended {
            self.counters.leases_ended += 1;
            tracing::warn!(node = &*id, "the lease of a node has ended");
            if let Some(number) = self.number(&id) {
                self.away.insert(number, now);
            }
            self.dirty = true;
        }
        let waited = |since: &Nanos| now.since(*since) >= self.config.replace_after;
        // One that is kept in the table for what nobody else has may be away for ever.
        self.dirty |= now >= self.idle_until && self.away.values().any(waited);
        if self.phase == Phase::Warming && self.is_warm(now) {
            self.phase = Phase::Leading;
            self.dirty = true;
        }
        if self.round_due().is_some_and(|due| now >= due) {
            if self.may_begin(now) {
                self.round(now);
            } else {
                self.round_at = self.wake_at(now);
            }
        }
    }

    /// How long nodes are waited for. Until the lease of a node is over it may still lead, and one that lives may take
    /// `FIND_MAX` to come here: to take it for lost before that would take its slots from it.
    fn warm_up(&self) -> u64 {
        match self.table.epoch {
            0 => self.config.warm_up,
            _ => self.config.warm_up.max(self.config.lease).max(FIND_MAX),
        }
    }

    /// Whether all nodes of the table have been heard, or were waited for long enough. Another process with the id of one does not
    /// count for it: the one in the table may be there still, and know of a later table that the store has lost.
    fn is_warm(&self, now: Nanos) -> bool {
        let is_heard = |entry: &Arc<NodeEntry>| {
            let member = self.members.get(&entry.id);
            member.is_some_and(|node| node.report > 0 && node.entry.incarnation == entry.incarnation)
        };
        let is_known = self.table.epoch > 0 && self.told_epoch <= self.table.epoch;
        now >= self.elected_at.after(self.warm_up()) || (is_known && self.table.nodes.values().all(is_heard))
    }

    /// Whether a table may be made: an empty cluster waits for nodes, and nothing is made of the silence of many nodes, also
    /// not when it began before the election.
    fn may_begin(&mut self, now: Nanos) -> bool {
        let silent = self.away.len();
        let is_early = now.since(self.elected_at) < self.warm_up() + self.config.hold;
        if is_early && silent >= 2 && silent * 3 > self.table.nodes.len() {
            self.held_back = silent;
        }
        if self.held_back > 0 {
            return false;
        }
        let is_fresh = self.table.slots.iter().all(|entry| entry.leader_epoch == 0);
        let waited = self.first_node_at.is_some_and(|first| now.since(first) >= self.config.first_wait);
        !self.members.is_empty() && (!is_fresh || self.members.len() >= self.config.nodes_min || waited)
    }

    /// Plans the next table and asks the store to take it, if it is another one.
    fn round(&mut self, now: Nanos) {
        self.dirty = false;
        // Of very many slots a plan takes tens of milliseconds.
        let pause = self.table.slots.len() as u64 * PAUSE_PER_SLOT;
        self.round_at = now.after(pause.max(self.config.round_interval));
        let epoch = self.table.epoch.max(self.told_epoch).max(self.stored) + 1;
        let mut next = SlotTable { epoch, maker: self.config.run, ..(*self.table).clone() };
        let restarted = self.take_in_members(&mut next);
        self.take_in_reports(&mut next.slots);
        let candidates = self.candidates(&next, &restarted, now);
        let moves_max = self.config.moves_max.saturating_sub(self.moves_under_way(now));
        let (replicas, unclean) = (self.config.replicas, self.config.unclean_leaders);
        let limits = AssignLimits { replicas, moves_max, unclean };
        let found = assign(&next.slots, &candidates, &self.seen, &limits);
        self.note_waiting(found.waiting);
        next.slots = found.slots;
        self.drop_unused(&mut next, &candidates);
        let same = next.slots == self.table.slots && next.nodes == self.table.nodes;
        // A store that was set back, or peers that know of a later table, need one above though nothing is new.
        if same && self.stored == self.table.epoch && self.told_epoch <= self.table.epoch {
            self.idle_until = now.after(IDLE);
            return;
        }
        self.counters.leaders_changed += found.leaders_changed as u64;
        self.counters.moves += found.moves as u64;
        self.counters.unclean += found.made_unclean as u64;
        let table = Arc::new(next);
        self.storing = Some(table.clone());
        self.outputs.push_back(Output::Store { expected: self.stored, table });
    }

    /// Tells people of slots that nobody leads because nobody who is there has all that was acknowledged.
    fn note_waiting(&mut self, slots: usize) {
        let before = std::mem::replace(&mut self.waiting, slots);
        if slots > before {
            tracing::warn!(
                slots,
                "slots with persistent publishers have no member in sync that is there: they wait for one to come back, or \
                 for meta.unclean_leaders"
            );
        } else if slots == 0 && before > 0 {
            tracing::info!("all slots with persistent publishers are led again");
        }
    }

    /// Puts what members say about themselves into the table; the nodes that are in another run than before, in
    /// the order of their numbers.
    fn take_in_members(&self, next: &mut SlotTable) -> Vec<NodeNumber> {
        let mut restarted = Vec::new();
        for (id, member) in self.members.iter() {
            let number = match self.number(id) {
                Some(number) => number,
                None if next.next_number < NodeNumber::LIMIT => {
                    next.next_number += 1;
                    NodeNumber(next.next_number - 1)
                }
                None => {
                    tracing::error!(node = &**id, "every node number has been given: the node stays out");
                    continue;
                }
            };
            let before = next.nodes.get(&number);
            if before.is_some_and(|before| before.incarnation != member.entry.incarnation) {
                restarted.push(number);
            }
            let asked = self.drains.get(id).copied();
            let draining = asked.unwrap_or(before.is_some_and(|before| before.draining));
            if before
                .is_none_or(|before| before.draining != draining || !same_but_draining(before, &member.entry))
            {
                let entry = NodeEntry { draining, ..(*member.entry).clone() };
                next.nodes.insert(number, Arc::new(entry));
            }
        }
        restarted.sort_unstable();
        restarted
    }

    /// Takes over from leaders which of their followers are in sync.
    fn take_in_reports(&self, slots: &mut [SlotEntry]) {
        for (id, member) in self.members.iter() {
            let Some(number) = self.number(id) else { continue };
            let entry = &self.table.nodes[&number];
            if entry.incarnation != member.entry.incarnation {
                continue;
            }
            for report in &member.slots {
                let slot = &mut slots[usize::from(report.slot.0)];
                slot.has_persistent |= report.has_persistent;
                let leads = slot.leader() == Some(number) && report.leader_epoch >= slot.leader_epoch;
                if !leads || !matches!(report.state, HeldState::Accept | HeldState::Migrating) {
                    continue;
                }
                // A follower may have lost everything since an older report was made.
                let knows = member.reported_epoch >= self.changed[usize::from(report.slot.0)];
                for follower in slot.members_mut().iter_mut().skip(1) {
                    let told = report.in_sync.contains(&follower.node());
                    *follower = follower.with_in_sync(told && (knows || follower.is_in_sync()));
                }
                slot.is_unclean &= !report.is_whole;
            }
        }
    }

    fn candidates(&self, next: &SlotTable, restarted: &[NodeNumber], now: Nanos) -> Vec<Candidate> {
        let mut zones: BTreeMap<&str, u32> = BTreeMap::new();
        let mut candidates = Vec::with_capacity(next.nodes.len());
        for (number, node) in &next.nodes {
            let count = zones.len() as u32;
            let zone = *zones.entry(&node.zone).or_insert(count);
            let member = self.members.get(&node.id);
            let waits =
                self.away.get(number).is_none_or(|since| now.since(*since) < self.config.replace_after);
            let presence = match member.is_some() {
                true if restarted.binary_search(number).is_ok() => Presence::Restarted,
                true if member.is_some_and(|member| member.ending) => Presence::Ending,
                true => Presence::Alive,
                false if waits => Presence::Absent,
                false => continue,
            };
            candidates.push(Candidate { number: *number, zone, presence, draining: node.draining });
        }
        candidates
    }

    /// Members that are still to get in sync and have not taken too long yet.
    fn moves_under_way(&mut self, now: Nanos) -> usize {
        let slots = &self.table.slots;
        self.joining.retain(|(slot, number), _| {
            let entry = &slots[usize::from(*slot)];
            entry.position(*number).is_some_and(|at| !entry.members()[at].is_in_sync())
        });
        self.joining.values().filter(|since| now.since(**since) < self.config.sync_timeout).count()
    }

    /// Takes nodes out that are gone and hold nothing.
    fn drop_unused(&self, next: &mut SlotTable, candidates: &[Candidate]) {
        let is_here = |number: &NodeNumber| {
            candidates.binary_search_by_key(number, |candidate| candidate.number).is_ok()
        };
        let members = next.slots.iter().flat_map(|entry| entry.members()).map(|member| member.node());
        let mut held: Vec<NodeNumber> = members.filter(|number| !is_here(number)).collect();
        held.sort_unstable();
        next.nodes.retain(|number, _| is_here(number) || held.binary_search(number).is_ok());
    }

    /// Notes the members that `table` adds to slots that have data to copy.
    pub(super) fn note_joining(&mut self, table: &SlotTable, now: Nanos) {
        for (slot, (old, new)) in self.table.slots.iter().zip(&table.slots).enumerate() {
            if old == new || old.leader_epoch == 0 {
                continue;
            }
            for member in new.members() {
                if !member.is_in_sync() && old.position(member.node()).is_none() {
                    self.joining.insert((slot as u16, member.node()), now);
                }
            }
        }
    }
}

fn same_but_draining(a: &NodeEntry, b: &NodeEntry) -> bool {
    let place = |node: &NodeEntry| (node.incarnation, node.ip, node.http);
    place(a) == place(b) && a.zone == b.zone && a.ports == b.ports
}
