//! A shard in a cluster: which slots it leads and which it follows, as the slot table says, and when a slot that it has
//! begun to lead may answer readers.
//!
//! Leader epochs come from the table and are unique over the cluster, so a revision is, too. Each [`Shard::lead`] is a
//! *turn*. A session whose digest agrees in a heartbeat has confirmed all turns up to the latest: everything it holds in the
//! slots led by then is here. A slot answers when every session with a link has confirmed its turn, or `settle` has passed;
//! one that was led from nothing waits for all of `settle`, for nobody knows who is still to come.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Shard, ShardConfig, following::Following, replicas::Replicas};
use crate::{
    faults::Fault,
    id::{Nanos, ReplicaId, Revision, SessionId, SlotId},
    lease::TICK_GAP_MAX,
    recover::Recovered,
    slot::Slot,
    slot_state::SlotState,
    slots::Slots,
    storage::{Storage, StorageConfig},
};

/// What is given back per turn of the memory of slots that are gone: so many data ids, registrations or segments.
const RELEASE_STEP: usize = 4096;

/// Why a shard does not do what the slot table says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterRefusal {
    /// Its slots are configured, not assigned.
    #[error("this shard's slots are configured: it takes part in no cluster")]
    Static,
    /// Another shard of the node holds the slot, or the cluster has no such slot.
    #[error("slot {} belongs to shard {shard} of {shards}: check the shard count in the slot table", slot.0)]
    Elsewhere {
        /// The slot.
        slot: SlotId,
        /// The shard that it belongs to.
        shard: u32,
        /// Shards of the node.
        shards: u32,
    },
    /// The slot has been led in an epoch as large: the table is older than what is known here.
    #[error("slot {} is told in epoch {told}, and epoch {known} is known here: the control plane has to go above it", slot.0)]
    Epoch {
        /// The slot.
        slot: SlotId,
        /// The epoch that was told.
        told: u32,
        /// The largest that is known here.
        known: u32,
    },
}

/// When this shard began to lead a slot.
#[derive(Clone, Copy)]
struct Promotion {
    turn: u64,
    at: Nanos,
    /// There was no copy here.
    from_nothing: bool,
}

/// Counts since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClusterStats {
    /// Slots that this shard began to lead.
    pub promotions: u64,
    /// Slots that it stopped leading.
    pub demotions: u64,
    /// Slots that began to answer because every linked session had confirmed them.
    pub accepted_confirmed: u64,
    /// Slots that began to answer because `settle` had passed.
    pub accepted_late: u64,
    /// Heartbeats of sessions with other routes.
    pub stale_heartbeats: u64,
}

/// What the sessions have confirmed, and what they still have to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Turns {
    /// The last turn that each session has confirmed: what it held in the slots led by then was here.
    pub confirmed: Vec<(SessionId, u64)>,
    /// The slots led for less than a session's lease, or that a session whose lease runs has not confirmed since, each with its turn:
    /// until a session has confirmed that, its absence from a list of the slot says nothing.
    pub unsettled: Vec<(SlotId, u64)>,
}

/// See the module.
pub(super) struct Cluster {
    routes: u64,
    /// Promotions since the start.
    turn: u64,
    led: BTreeMap<SlotId, Promotion>,
    /// The promotions of the last lease, and those that are not confirmed yet, oldest first, with some that are over.
    unsettled: VecDeque<(SlotId, u64)>,
    migrating: BTreeSet<SlotId>,
    /// Something has happened that may end a migration.
    has_news: bool,
    /// The last turn that each session has confirmed.
    confirmed: BTreeMap<SessionId, u64>,
    /// The largest leader epoch known of each slot.
    epochs: Vec<u32>,
    /// What is being freed.
    released: VecDeque<Slot>,
    last_tick: Option<Nanos>,
    pub(super) replicas: Replicas,
    pub(super) following: Following,
    pub(super) in_sync: BTreeMap<SlotId, Vec<ReplicaId>>,
    pub(super) holds_persistent: bool,
    stats: ClusterStats,
}

impl Cluster {
    fn new(slot_count: u32) -> Self {
        Self {
            routes: 0,
            turn: 0,
            led: BTreeMap::new(),
            unsettled: VecDeque::new(),
            migrating: BTreeSet::new(),
            has_news: false,
            confirmed: BTreeMap::new(),
            epochs: vec![0; slot_count as usize],
            released: VecDeque::new(),
            last_tick: None,
            replicas: Replicas::default(),
            following: Following::default(),
            in_sync: BTreeMap::new(),
            holds_persistent: false,
            stats: ClusterStats::default(),
        }
    }

    /// The largest leader epoch known of a slot.
    pub(super) fn known_epoch(&self, slot: SlotId) -> u32 {
        self.epochs.get(usize::from(slot.0)).copied().unwrap_or(0)
    }

    /// The slot's memory is given back bit by bit.
    pub(super) fn release(&mut self, slot: Option<Slot>) {
        self.released.extend(slot);
    }

    /// A link came or went.
    pub(super) fn links_changed(&mut self) {
        self.has_news = true;
    }

    pub(super) fn is_serving(&self) -> bool {
        self.migrating.is_empty()
    }

    pub(super) fn has_backlog(&self) -> bool {
        !self.released.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        let released: usize = self.released.iter().map(|slot| slot.memory().total()).sum();
        let led = self.led.len() * size_of::<(SlotId, Promotion)>();
        let unsettled = self.unsettled.capacity() * size_of::<(SlotId, u64)>();
        let epochs = self.epochs.capacity() * size_of::<u32>();
        released + led + unsettled + epochs + self.replicas.bytes() + self.following.bytes()
    }

    fn change_route(&mut self, slot: SlotId, before: Option<u32>, after: Option<u32>) {
        let route = |epoch: Option<u32>| epoch.map_or(0, |epoch| crate::id::route(slot, epoch));
        self.routes = self.routes.wrapping_sub(route(before)).wrapping_add(route(after));
    }

    /// See [`Shard::turns`].
    pub(super) fn turns(&self) -> Turns {
        let confirmed = self.confirmed.iter().map(|(session, turn)| (*session, *turn)).collect();
        let unsettled = self.unsettled.iter().copied();
        let mut unsettled: Vec<(SlotId, u64)> =
            unsettled.filter(|(slot, turn)| self.is_unsettled(*slot, *turn)).collect();
        unsettled.sort_unstable();
        Turns { confirmed, unsettled }
    }

    /// Whether the promotion that a slot was led by in `turn` is still the one, and less than a lease ago.
    fn is_unsettled(&self, slot: SlotId, turn: u64) -> bool {
        self.led.get(&slot).is_some_and(|promotion| promotion.turn == turn)
    }
}

impl Shard {
    /// A shard of a cluster: it holds no slot until it is told to [lead](Shard::lead) or to [follow](Shard::follow) one.
    /// [`ShardConfig::slots`] and [`ShardConfig::epoch`] say nothing about its slots.
    pub fn clustered(config: ShardConfig) -> Self {
        let (slots, cluster) = (Slots::new(config.slot_count), Cluster::new(config.slot_count));
        Self::with(config, slots, Some(Box::new(cluster)))
    }

    /// A shard of a cluster that has found slots on its disk. It holds them back, in the state that they were in, until it is
    /// told to lead, to follow or to [leave](Shard::leave) each of them; `config.epoch` only numbers the journal of this run.
    pub fn clustered_on_disk(config: ShardConfig, recovered: Recovered, storage: StorageConfig) -> Self {
        let mut shard = Self::clustered(config);
        shard.storage = Some(Storage::new(storage, shard.epoch, &recovered));
        for (id, found) in recovered.slots {
            let Some(cluster) = &mut shard.cluster else { break };
            cluster.epochs[usize::from(id.0)] = found.slot.revision().epoch();
            let mut slot = found.slot;
            slot.tell_names();
            shard.slots.put(slot);
        }
        shard
    }

    /// Leads a slot in `epoch`, which is larger than every one known of it: it takes writes from now on, and answers readers
    /// when it is in [`SlotState::Accept`]. A slot that it leads already goes on in the larger epoch; the same epoch again
    /// changes nothing. Call it between turns, after [`Shard::seal`].
    pub fn lead(&mut self, slot: SlotId, epoch: u32, now: Nanos) -> Result<(), ClusterRefusal> {
        self.now = now;
        let known = self.check_assignment(slot)?;
        let is_led = self.slots.state(slot).is_led();
        if is_led && epoch == known {
            return Ok(());
        }
        if epoch <= known || epoch > Revision::EPOCH_MAX {
            return Err(ClusterRefusal::Epoch { slot, told: epoch, known });
        }
        // What was taken in the epoch before belongs to that.
        self.seal_slot(slot, now);
        self.hold(slot);
        let mark = self.mark;
        let (Some(cluster), Some(held)) = (&mut self.cluster, self.slots.get_mut(slot)) else {
            return Ok(());
        };
        let begun = cluster.following.forget(slot);
        cluster.release(begun);
        cluster.replicas.close_slot(slot);
        cluster.in_sync.remove(&slot);
        let from_nothing = held.revision() == Revision::ZERO;
        let before = is_led.then(|| held.revision().epoch());
        held.lead(epoch, mark);
        let owners: Vec<SessionId> = held.owners().collect();
        cluster.epochs[usize::from(slot.0)] = epoch;
        cluster.change_route(slot, before, Some(epoch));
        cluster.turn += 1;
        cluster.led.insert(slot, Promotion { turn: cluster.turn, at: now, from_nothing });
        cluster.unsettled.push_back((slot, cluster.turn));
        cluster.has_news = true;
        cluster.stats.promotions += 1;
        if !is_led {
            cluster.migrating.insert(slot);
            self.slots.set_state(slot, SlotState::Migrating);
        }
        for session in owners {
            // Nobody may have had a reason to be heard here so far: the lease of every owner begins anew. Whoever has ended here
            // meanwhile has no say any more, and what it owned goes.
            if self.leases.grant(session, now).is_err() {
                self.ending.push_back((session, slot));
            }
        }
        Ok(())
    }

    /// Follows a slot that another node leads in `epoch`. What is held of it stays until the leader replaces it. One that was
    /// led here is demoted: what its sessions have not been acknowledged is refused with
    /// [`crate::error::Refusal::SlotMoved`], and its readers are forgotten. Call it between turns, after [`Shard::seal`].
    pub fn follow(&mut self, slot: SlotId, epoch: u32, now: Nanos) -> Result<(), ClusterRefusal> {
        self.now = now;
        let known = self.check_assignment(slot)?;
        let state = self.slots.state(slot);
        if epoch < known || state.is_led() && epoch == known || epoch > Revision::EPOCH_MAX {
            return Err(ClusterRefusal::Epoch { slot, told: epoch, known });
        }
        if state.is_led() {
            self.step_down(slot);
        }
        self.hold(slot);
        let (Some(cluster), Some(held)) = (&mut self.cluster, self.slots.get(slot)) else { return Ok(()) };
        if epoch > known || state != SlotState::Following {
            let begun = cluster.following.restart(slot);
            cluster.release(begun);
        }
        cluster.epochs[usize::from(slot.0)] = epoch;
        cluster.replicas.keep_batches(slot, held.revision());
        if state != SlotState::Following {
            self.slots.set_state(slot, SlotState::Following);
        }
        Ok(())
    }

    /// Lets go of a slot: it is [`SlotState::Moved`] until its memory is given back, then [`SlotState::Absent`]. What the disk
    /// holds of it counts no more. Call it between turns, after [`Shard::seal`].
    pub fn leave(&mut self, slot: SlotId, now: Nanos) {
        self.now = now;
        if self.check_assignment(slot).is_err() {
            return;
        }
        let state = self.slots.state(slot);
        if state.is_led() {
            self.step_down(slot);
        }
        let Some(held) = self.slots.take(slot) else { return };
        self.forget_compaction(slot);
        let Some(cluster) = &mut self.cluster else { return };
        let revision = held.revision();
        let begun = cluster.following.forget(slot);
        cluster.release(begun);
        cluster.release(Some(held));
        cluster.replicas.drop_ring(slot);
        if let Some(storage) = &mut self.storage {
            storage.forget(slot, revision, now);
        }
        if state != SlotState::Absent {
            self.slots.set_state(slot, SlotState::Moved);
        }
    }

    /// What this shard does with a slot. A shard whose slots are configured leads them all.
    pub fn state(&self, slot: SlotId) -> SlotState {
        self.slots.state(slot)
    }

    /// The slots that it leads, each with its leader epoch, in the order of their numbers.
    pub fn led(&self) -> impl Iterator<Item = (SlotId, u32)> {
        self.slots.iter_led().map(|slot| (slot.id(), slot.revision().epoch()))
    }

    /// The slots that were found on the disk and that it has not been told what to do with.
    pub fn held_back(&self) -> impl Iterator<Item = SlotId> {
        self.slots.iter().map(Slot::id).filter(|slot| self.slots.state(*slot) == SlotState::Absent)
    }

    /// The slots that it has let go of and whose memory is not all given back yet. Right after [`Shard::leave`] they are whole.
    pub fn released(&self) -> impl Iterator<Item = &Slot> {
        self.cluster.iter().flat_map(|cluster| &cluster.released)
    }

    /// The largest leader epoch that is known of a slot; 0: none.
    pub fn known_epoch(&self, slot: SlotId) -> u32 {
        self.cluster.as_ref().map_or(self.epoch, |cluster| cluster.known_epoch(slot))
    }

    /// The sum of [`crate::id::route`] over the slots that it leads: a session that routes to them in these epochs has the same.
    /// 0 where slots are configured.
    pub fn routes(&self) -> u64 {
        self.cluster.as_ref().map_or(0, |cluster| cluster.routes)
    }

    /// Whether a session has confirmed, since the slot was led here, that everything it holds in it is here.
    pub fn has_confirmed(&self, slot: SlotId, session: SessionId) -> bool {
        let Some(cluster) = &self.cluster else { return self.confirmed_marks.contains_key(&session) };
        let turn = cluster.led.get(&slot).map(|promotion| promotion.turn);
        turn.is_some_and(|turn| cluster.confirmed.get(&session).is_some_and(|confirmed| *confirmed >= turn))
    }

    /// Counts since the start.
    pub fn cluster_stats(&self) -> ClusterStats {
        self.cluster.as_ref().map_or_else(ClusterStats::default, |cluster| cluster.stats)
    }

    /// Whether the slot belongs to this shard; returns the largest epoch known of it.
    fn check_assignment(&self, slot: SlotId) -> Result<u32, ClusterRefusal> {
        let cluster = self.cluster.as_ref().ok_or(ClusterRefusal::Static)?;
        let (shard, shards) = (slot.shard(self.config.shards), self.config.shards);
        if u32::from(slot.0) >= self.config.slot_count || shard != self.config.shard {
            return Err(ClusterRefusal::Elsewhere { slot, shard, shards });
        }
        Ok(cluster.known_epoch(slot))
    }

    /// Makes the slot, if it is not held.
    fn hold(&mut self, slot: SlotId) {
        if self.slots.get(slot).is_none() {
            let config = &self.config;
            let mut held = Slot::open(slot, 0, config.shards, config.seed, config.change_log);
            held.tell_names();
            self.slots.put(held);
        }
    }

    /// Stops leading a slot: nobody reads from it or writes to it any more.
    fn step_down(&mut self, slot: SlotId) {
        // What was taken and not sealed is part of this state all the same; it is beyond where the next leader began.
        self.seal_slot(slot, self.now);
        for ack in &mut self.acks {
            ack.refuse_moved(slot);
        }
        self.durable_acks.refuse_moved(slot);
        self.sealed.retain(|seal| seal.slot != slot);
        self.asked.retain(|(_, other, _), _| *other != slot);
        self.catching_up.retain(|(_, other), _| *other != slot);
        self.ending.retain(|(_, other)| *other != slot);
        self.interests.close_slot(slot);
        let held = self.slots.get_mut(slot);
        let epoch = held.map(|held| {
            held.step_down();
            held.revision().epoch()
        });
        let Some(cluster) = &mut self.cluster else { return };
        cluster.change_route(slot, epoch, None);
        cluster.led.remove(&slot);
        cluster.migrating.remove(&slot);
        cluster.replicas.close_slot(slot);
        cluster.in_sync.remove(&slot);
        cluster.stats.demotions += 1;
        self.decide_durable();
    }

    /// Whether it is in a cluster and leads no slot: it has no say about anybody then.
    pub(super) fn leads_nothing(&self) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| cluster.led.is_empty())
    }

    /// The sessions whose leases end now.
    pub(super) fn end_leases(&mut self, now: Nanos) -> Vec<SessionId> {
        if !self.leads_nothing() {
            return self.leases.tick(now);
        }
        let linked: BTreeSet<SessionId> = self.links.values().filter_map(|link| link.session).collect();
        self.leases.rest(now, |session| linked.contains(&session));
        Vec::new()
    }

    /// What a turn of a shard in a cluster has beside that of another: slots begin to answer, memory is given back.
    pub(super) fn cluster_turn(&mut self) {
        self.accept_migrated();
        let Some(cluster) = &mut self.cluster else { return };
        let mut budget = RELEASE_STEP;
        while budget > 0
            && let Some(slot) = cluster.released.front_mut()
        {
            if slot.dismantle(&mut budget) {
                let Some(slot) = cluster.released.pop_front() else { break };
                let gone = !cluster.released.iter().any(|other| other.id() == slot.id());
                if gone && self.slots.state(slot.id()) == SlotState::Moved {
                    self.slots.set_state(slot.id(), SlotState::Absent);
                }
            }
        }
    }

    /// Slots that everybody with a link has confirmed, or that have waited long enough, answer readers from now on.
    fn accept_migrated(&mut self) {
        let Some(cluster) = &mut self.cluster else { return };
        if !std::mem::take(&mut cluster.has_news) || cluster.migrating.is_empty() {
            return;
        }
        let linked = self.links.values().filter_map(|link| link.session);
        let linked = linked.filter(|session| self.leases.is_alive(*session));
        let lowest = linked.map(|session| cluster.confirmed.get(&session).copied().unwrap_or(0)).min();
        let (now, settle, opened_at) = (self.now, self.config.settle, self.opened_at);
        let is_early = self.faults.has(Fault::AcceptEarly);
        let Cluster { migrating, led, stats, .. } = &mut **cluster;
        let slots = &mut self.slots;
        migrating.retain(|slot| {
            let Some(promotion) = led.get(slot) else { return false };
            let is_confirmed = is_early || lowest.is_none_or(|lowest| lowest >= promotion.turn);
            let waits_from = if promotion.from_nothing {
                opened_at.map(|opened| opened.max(promotion.at))
            } else {
                Some(promotion.at)
            };
            if !promotion.from_nothing && is_confirmed {
                stats.accepted_confirmed += 1;
            } else if waits_from.is_some_and(|from| now.since(from) >= settle) {
                stats.accepted_late += 1;
            } else {
                return true;
            }
            slots.set_state(*slot, SlotState::Accept);
            false
        });
    }

    /// Time passes: what was led for a lease is settled, but for sessions that have not confirmed it and whose lease still runs, because
    /// it began anew with another slot or is held back. A pause of this process does not count.
    pub(super) fn cluster_tick(&mut self, now: Nanos) {
        let lease = self.config.session_lease;
        let Some(cluster) = &mut self.cluster else { return };
        let gap = cluster.last_tick.replace(now).map_or(0, |last| now.since(last));
        if gap > TICK_GAP_MAX {
            let later = |at: Nanos| at.after(gap).min(now);
            cluster.led.values_mut().for_each(|promotion| promotion.at = later(promotion.at));
        }
        cluster.has_news = true;
        let confirmed = |session| cluster.confirmed.get(&session).copied().unwrap_or(0);
        let lowest = self.leases.alive().map(confirmed).min();
        let mut settled = Vec::new();
        while let Some((slot, turn)) = cluster.unsettled.front().copied() {
            let promotion = cluster.led.get(&slot).filter(|promotion| promotion.turn == turn);
            let is_open = |promotion: &Promotion| {
                now.since(promotion.at) <= lease || lowest.is_some_and(|lowest| lowest < promotion.turn)
            };
            if promotion.is_some_and(is_open) {
                break;
            }
            settled.extend(promotion.map(|_| slot));
            cluster.unsettled.pop_front();
        }
        settled.into_iter().for_each(|slot| self.advance_slot(slot));
    }

    /// The mark before which a led slot's tombstones may go; `confirmed` is the one that every session has confirmed.
    pub(super) fn tombstone_marks(&mut self, confirmed: u64) -> BTreeMap<SlotId, u64> {
        let Some(cluster) = &mut self.cluster else { return BTreeMap::new() };
        let unsettled: BTreeSet<SlotId> = cluster
            .unsettled
            .iter()
            .filter(|(slot, turn)| cluster.is_unsettled(*slot, *turn))
            .map(|(slot, _)| *slot)
            .collect();
        let (mark, slots) = (self.mark, &self.slots);
        let settled = cluster.led.keys().filter(|slot| !unsettled.contains(slot));
        let replicas = &mut cluster.replicas;
        settled
            .filter_map(|slot| {
                let held = slots.get(*slot).filter(|held| held.has_tombstones())?;
                Some((*slot, confirmed.min(replicas.mark_of(*slot, mark, held.revision()))))
            })
            .collect()
    }

    /// A session's registrations in every slot led here are here. What its absence from the slots' lists means has changed for
    /// those that are not settled: answers from now on are told apart from those before.
    pub(super) fn confirm_turns(&mut self, session: SessionId) {
        let settled = self.settled;
        let Some(cluster) = &mut self.cluster else { return };
        let before = cluster.confirmed.insert(session, cluster.turn).unwrap_or(0);
        if before == cluster.turn {
            return;
        }
        cluster.has_news = true;
        let concerned: Vec<SlotId> = if settled {
            let late = cluster.unsettled.iter().filter(|(_, turn)| *turn > before);
            late.filter(|(slot, turn)| cluster.is_unsettled(*slot, *turn)).map(|(slot, _)| *slot).collect()
        } else {
            let late = cluster.led.iter().filter(|(_, promotion)| promotion.turn > before);
            late.map(|(slot, _)| *slot).collect()
        };
        concerned.into_iter().for_each(|slot| self.advance_slot(slot));
    }

    /// A session has ended.
    pub(super) fn forget_turns(&mut self, session: SessionId) {
        if let Some(cluster) = &mut self.cluster {
            cluster.confirmed.remove(&session);
            cluster.has_news = true;
        }
    }

    /// A heartbeat came with other routes.
    pub(super) fn count_stale(&mut self) {
        if let Some(cluster) = &mut self.cluster {
            cluster.stats.stale_heartbeats += 1;
        }
    }

    /// Moves a slot that answers readers to a larger revision, without a change.
    pub(super) fn advance_slot(&mut self, slot: SlotId) {
        if self.slots.state(slot) != SlotState::Accept {
            return;
        }
        self.seal_slot(slot, self.now);
        let Some(held) = self.slots.get_mut(slot) else { return };
        held.advance();
        if let Some(cluster) = &mut self.cluster {
            cluster.replicas.moved(slot, held.revision(), None, self.now);
        }
    }

    /// The replicas that must have a persistent change of a slot on their disks before it is acknowledged. One that is not open
    /// has nothing: the acknowledgement waits until this is told anew.
    pub fn set_in_sync(&mut self, slot: SlotId, replicas: &[ReplicaId]) {
        let Some(cluster) = &mut self.cluster else { return };
        if replicas.is_empty() {
            cluster.in_sync.remove(&slot);
        } else {
            cluster.in_sync.insert(slot, replicas.to_vec());
        }
        self.decide_durable();
    }

    /// Whether changes of persistent registrations are refused, because somebody else may have been told to lead.
    pub fn hold_persistent(&mut self, hold: bool) {
        if let Some(cluster) = &mut self.cluster {
            cluster.holds_persistent = hold;
        }
    }
}
