//! The control plane with followers and a store, in virtual time on one thread.

use std::collections::BTreeMap;

use super::*;
use crate::{
    follow::{LinkAction, MetaLink, MetaLinkConfig},
    meta::store::{Lead, StoreError, TableStore, check_swap},
    wire::{
        codec::Decoder,
        header::FRAME_BYTES_MAX,
        slot_table::{NodeEntry, SlotEntry},
    },
};

const MS: u64 = Nanos::SECOND / 1000;

/// A store whose failures are planned.
#[derive(Default)]
struct FakeStore {
    table: Option<SlotTable>,
    is_gone: bool,
}

impl TableStore for FakeStore {
    fn campaign(&mut self) -> Result<Lead, StoreError> {
        Ok(Lead::Others(None))
    }

    fn load(&mut self) -> Result<Option<SlotTable>, StoreError> {
        Ok(self.table.clone())
    }

    fn swap(&mut self, expected: u64, table: &SlotTable) -> Result<(), StoreError> {
        if self.is_gone {
            return Err(StoreError::Unavailable("it is gone".into()));
        }
        check_swap(self.table.as_ref().map_or(0, |table| table.epoch), expected, table)?;
        self.table = Some(table.clone());
        Ok(())
    }
}

/// A follower that does at once what the table says: followers are in sync, leaders say so.
struct Follower {
    link: MetaLink,
    peer: Option<PeerId>,
    decoder: Decoder,
    is_mute: bool,
    is_node: bool,
    epochs: Vec<u64>,
}

struct World {
    core: MetaCore,
    store: FakeStore,
    followers: BTreeMap<String, Follower>,
    now: Nanos,
    next_peer: u64,
    closed: Vec<(ErrorCode, String)>,
    meta_is_gone: bool,
    /// Leaders have persistent publishers, and tell of nobody in sync.
    are_alone: bool,
}

fn config() -> MetaConfig {
    MetaConfig { nodes_min: 3, moves_max: 100, ..MetaConfig::new("c", 64) }
}

fn entry(id: &str, incarnation: u64) -> Arc<NodeEntry> {
    let port = 1000 + id.bytes().map(u16::from).sum::<u16>();
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

impl World {
    fn new(config: MetaConfig) -> Self {
        let core = MetaCore::new(config);
        Self {
            core,
            store: FakeStore::default(),
            followers: BTreeMap::new(),
            now: Nanos(1),
            next_peer: 0,
            closed: Vec::new(),
            meta_is_gone: false,
            are_alone: false,
        }
    }

    fn with_nodes(count: usize) -> Self {
        let mut world = Self::new(config());
        world.elect();
        (0..count).for_each(|number| world.add(&format!("n{number}"), 1));
        world.run(5000);
        assert_eq!(world.core.phase(), Phase::Leading);
        world.assert_settled();
        world
    }

    fn elect(&mut self) {
        let loaded = self.store.load().unwrap();
        self.core.handle_elected(loaded, self.now).unwrap();
    }

    /// The process ends and another one takes over; the store stays.
    fn replace_meta(&mut self, run: u64) {
        self.core = MetaCore::new(MetaConfig { run, ..config() });
        for follower in self.followers.values_mut() {
            if follower.peer.take().is_some() {
                follower.link.handle_closed(self.now, 7);
            }
        }
        self.elect();
    }

    fn add_peer(&mut self, name: &str, peer: MetaPeer, table: SlotTable) {
        let is_node = matches!(peer, MetaPeer::Data(_));
        let config = MetaLinkConfig::new(vec!["127.0.0.1:1".parse().unwrap()], "c", 64, peer);
        let link = MetaLink::new(config, Arc::new(table), 0);
        let follower = Follower {
            link,
            peer: None,
            decoder: Decoder::default(),
            is_mute: false,
            is_node,
            epochs: vec![],
        };
        self.followers.insert(name.into(), follower);
    }

    fn add(&mut self, id: &str, incarnation: u64) {
        self.add_peer(id, MetaPeer::Data(entry(id, incarnation)), SlotTable::empty("c", 64));
    }

    /// The process of a node ends; its connection with it.
    fn kill(&mut self, id: &str) -> MetaLink {
        let follower = self.followers.remove(id).unwrap();
        if let Some(peer) = follower.peer {
            self.core.handle_closed(peer);
        }
        follower.link
    }

    fn run(&mut self, ms: u64) {
        let end = self.now.after(ms * MS);
        while self.now < end {
            self.now = self.now.after(10 * MS);
            self.step();
        }
    }

    fn step(&mut self) {
        let now = self.now;
        for (name, follower) in &mut self.followers {
            if follower.is_mute {
                continue;
            }
            while let Some(action) = follower.link.poll(now, now.0 ^ 0x5555) {
                match action {
                    LinkAction::Connect(_) if self.meta_is_gone => follower.link.handle_closed(now, 3),
                    LinkAction::Connect(_) => {
                        self.next_peer += 1;
                        follower.peer = Some(PeerId(self.next_peer));
                        follower.decoder = Decoder::default();
                        follower.link.handle_connected(now);
                    }
                    LinkAction::Send(bytes) => {
                        let Some(peer) = follower.peer else { continue };
                        let core = &mut self.core;
                        let result = follower.decoder.feed(&bytes, FRAME_BYTES_MAX, |frame| {
                            let message = MetaMessage::read(frame)?;
                            core.handle_message(peer, message, now)
                        });
                        if let Err(PeerFault { code, text }) = result {
                            core.handle_closed(peer);
                            follower.peer = None;
                            let mut bytes = Vec::new();
                            MetaMessage::Error { code: code as u16, retry_after_ms: 0, text: text.clone() }
                                .write(&mut bytes);
                            follower.link.handle_bytes(&bytes);
                            self.closed.push((code, format!("{name}: {text}")));
                        }
                    }
                    LinkAction::Close => {
                        if let Some(peer) = follower.peer.take() {
                            self.core.handle_closed(peer);
                        }
                    }
                }
            }
        }
        self.core.tick(now);
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Send(peer, frame) => {
                    if let Some(follower) = self.followers.values_mut().find(|it| it.peer == Some(peer)) {
                        follower.link.handle_bytes(&frame);
                    }
                }
                Output::Close(peer, code, text) => {
                    if let Some(follower) = self.followers.values_mut().find(|it| it.peer == Some(peer)) {
                        follower.peer = None;
                        follower.link.handle_closed(now, 5);
                    }
                    self.closed.push((code, text));
                }
                Output::Store { expected, table } => match self.store.swap(expected, &table) {
                    Ok(()) => self.core.handle_stored(table.epoch, now),
                    Err(StoreError::Conflict { found, .. } | StoreError::Older { held: found, .. }) => {
                        self.core.handle_store_failed(table.epoch, Some(found), "conflict", now);
                    }
                    Err(error) => self.core.handle_store_failed(table.epoch, None, &error.to_string(), now),
                },
            }
        }
        for (id, follower) in &mut self.followers {
            if let Some(table) = follower.link.take_news() {
                assert!(follower.epochs.last().is_none_or(|last| table.epoch > *last), "{id} went back");
                follower.epochs.push(table.epoch);
                if follower.is_node {
                    follower.link.set_slots(table.epoch, reports(&table, id, self.are_alone));
                }
            }
        }
    }

    fn assert_settled(&self) {
        let status = self.core.status(self.now);
        let bad = (status.slots_without_leader, status.slots_with_absent_leader, status.slots_short);
        assert_eq!(bad, (0, 0, 0), "{status:?}");
        for (id, follower) in &self.followers {
            assert_eq!(follower.link.table().epoch, status.table_epoch, "{id}");
            assert_eq!(follower.link.table(), self.core.table(), "{id}");
        }
        assert_eq!(self.store.table.as_ref(), Some(&**self.core.table()));
    }
}

fn reports(table: &SlotTable, id: &str, is_alone: bool) -> Vec<SlotReport> {
    let number = table.number_of(id);
    let of = |(slot, entry): (usize, &SlotEntry)| {
        let at = entry.position(number?)?;
        let others = entry.members()[1..].iter().map(|member| member.node());
        Some(SlotReport {
            slot: slotcast_engine::id::SlotId(slot as u16),
            state: if at == 0 { HeldState::Accept } else { HeldState::Following },
            is_whole: false,
            has_persistent: is_alone && at == 0,
            leader_epoch: entry.leader_epoch,
            in_sync: if at == 0 && !is_alone { others.collect() } else { Vec::new() },
        })
    };
    table.slots.iter().enumerate().filter_map(of).collect()
}

#[test]
fn an_empty_cluster_waits_for_enough_nodes_or_long_enough() {
    let mut world = World::new(config());
    world.elect();
    world.add("n0", 1);
    world.add("n1", 1);
    world.run(4500);
    assert_eq!((world.core.phase(), world.core.table().epoch), (Phase::Leading, 0));
    world.add("n2", 1);
    world.run(500);
    world.assert_settled();
    let mut lonely = World::new(config());
    lonely.elect();
    lonely.add("n0", 1);
    lonely.run(4900);
    assert_eq!(lonely.core.table().epoch, 0);
    lonely.run(1000);
    assert_eq!(lonely.core.status(lonely.now).slots_without_leader, 0);
}

#[test]
fn a_killed_node_is_succeeded_after_its_lease_and_replaced_later() {
    let mut world = World::with_nodes(4);
    world.add_peer("watcher", MetaPeer::Session, SlotTable::empty("c", 64));
    world.run(500);
    world.kill("n1");
    world.run(2300);
    let status = world.core.status(world.now);
    assert_eq!((status.slots_with_absent_leader, status.slots_unclean, status.nodes.len()), (0, 0, 4));
    assert!(status.slots_short > 0, "it is still waited for");
    world.run(10_500);
    world.assert_settled();
    assert_eq!(world.core.status(world.now).nodes.len(), 3);
    assert!(world.core.counters().wholes_sent <= 5 && world.core.counters().deltas_sent > 5);
}

#[test]
fn what_is_persistent_waits_for_a_node_that_has_it_all_however_long_it_is_away() {
    let mut world = World::with_nodes(3);
    world.are_alone = true;
    let table = world.core.table().clone();
    for (id, follower) in &mut world.followers {
        follower.link.set_slots(table.epoch, reports(&table, id, true));
    }
    world.run(1000);
    let table = world.core.table().clone();
    assert!(
        table.slots.iter().all(|entry| entry.has_persistent),
        "the table says so before anything is acknowledged"
    );
    assert!(table.slots.iter().all(|entry| entry.members().iter().filter(|it| it.is_in_sync()).count() == 1));
    let number = table.number_of("n1").unwrap();
    let led: Vec<usize> = (0..64).filter(|slot| table.slots[*slot].leader() == Some(number)).collect();
    world.kill("n1");
    // For much longer than a lost node's copies are waited for.
    world.run(60_000);
    let status = world.core.status(world.now);
    assert_eq!((status.slots_waiting, status.slots_with_absent_leader), (led.len(), led.len()));
    assert_eq!((status.slots_unclean, status.slots_without_leader), (0, 0));
    for slot in &led {
        assert_eq!(world.core.table().slots[*slot], table.slots[*slot]);
    }
    // The control plane is replaced meanwhile; it is in the table.
    world.replace_meta(2);
    world.run(20_000);
    assert_eq!(world.core.status(world.now).slots_waiting, led.len());
    world.add("n1", 2);
    world.run(1000);
    let status = world.core.status(world.now);
    assert_eq!((status.slots_waiting, status.slots_unclean, status.slots_with_absent_leader), (0, 0, 0));
    for slot in led {
        let (before, now) = (&table.slots[slot], &world.core.table().slots[slot]);
        assert_eq!(now.leader(), Some(number));
        assert!(now.leader_epoch > before.leader_epoch, "it leads on, in another epoch");
    }
}

#[test]
fn a_node_that_restarts_is_followed_by_a_new_leader_at_once() {
    let mut world = World::with_nodes(3);
    let before = world.core.table().clone();
    world.kill("n1");
    world.add("n1", 2);
    world.run(300);
    let number = before.number_of("n1").unwrap();
    for (old, new) in before.slots.iter().zip(&world.core.table().slots) {
        assert!(old.leader() != Some(number) || new.leader_epoch > old.leader_epoch);
    }
    world.run(1000);
    world.assert_settled();
    assert_eq!(world.core.counters().leases_ended, 0);
}

#[test]
fn losing_the_control_plane_stops_reassignment_and_nothing_else() {
    let mut world = World::with_nodes(3);
    let table = world.core.table().clone();
    world.meta_is_gone = true;
    for follower in world.followers.values_mut() {
        assert!(follower.link.holds_lease(world.now));
        follower.peer = None;
        follower.link.handle_closed(world.now, 1);
    }
    world.run(60_000);
    for follower in world.followers.values() {
        assert_eq!(follower.link.table(), &table);
        assert!(!follower.link.holds_lease(world.now));
    }
    world.meta_is_gone = false;
    world.replace_meta(2);
    world.run(4000);
    assert_eq!(world.core.table().slots, table.slots, "the next one changes nothing that works");
    assert!(world.followers.values().all(|follower| follower.link.holds_lease(world.now)));
}

#[test]
fn a_store_that_was_lost_or_set_back_is_healed_by_the_nodes() {
    for lost in [true, false] {
        let mut world = World::with_nodes(3);
        let backup = (!lost).then(|| world.store.table.clone().unwrap());
        world.add("n3", 1);
        world.run(3000);
        world.assert_settled();
        let before = world.core.table().clone();
        world.store.table = backup;
        world.replace_meta(2);
        world.run(6000);
        assert_eq!(world.core.counters().tables_adopted, 1);
        assert!(world.core.table().epoch > before.epoch);
        assert_eq!(world.core.table().slots, before.slots, "nothing moves");
        world.assert_settled();
    }
}

#[test]
fn a_node_that_is_refused_for_its_twin_still_tells_of_a_table_that_the_store_has_lost() {
    let mut world = World::with_nodes(3);
    let backup = world.store.table.clone();
    world.add_peer("session", MetaPeer::Session, SlotTable::empty("c", 64));
    // n0 leads on alone, by a table that only it and a session have.
    world.kill("n1");
    world.kill("n2");
    world.run(40_000);
    let before = world.core.table().clone();
    let alone = before.number_of("n0");
    assert!(before.slots.iter().all(|slot| slot.leader() == alone));
    world.store.table = backup;
    for id in ["n1", "n2"] {
        world.add(id, 2);
    }
    // The twin comes first, and the session late.
    world.add_peer("a twin of n0", MetaPeer::Data(entry("n0", 2)), SlotTable::empty("c", 64));
    world.followers.get_mut("session").unwrap().is_mute = true;
    world.replace_meta(2);
    world.run(300);
    assert!(world.closed.iter().any(|(code, _)| *code == ErrorCode::DuplicateNode), "{:?}", world.closed);
    world.followers.get_mut("session").unwrap().is_mute = false;
    world.run(5000);
    assert_eq!(world.core.counters().tables_adopted, 1);
    for (old, new) in before.slots.iter().zip(&world.core.table().slots) {
        assert!(new.leader_epoch > old.leader_epoch, "another process leads in epoch {}", new.leader_epoch);
    }
}

#[test]
fn a_running_leader_whose_store_is_set_back_writes_over_it() {
    let mut world = World::with_nodes(3);
    let backup = world.store.table.clone();
    world.add("n3", 1);
    world.run(3000);
    world.store.table = backup;
    world.kill("n3");
    world.run(20_000);
    world.assert_settled();
    assert!(world.core.counters().store_failures > 0);
}

#[test]
fn without_its_store_the_control_plane_tells_nobody_anything_new() {
    let mut world = World::with_nodes(3);
    let table = world.core.table().clone();
    world.store.is_gone = true;
    world.kill("n0");
    world.run(8000);
    assert_eq!(world.core.table(), &table);
    let status = world.core.status(world.now);
    assert_eq!(status.store_error.as_deref(), Some("it is gone"));
    for follower in world.followers.values() {
        assert_eq!(follower.link.table(), &table);
        assert!(follower.link.holds_lease(world.now), "heartbeats are answered");
    }
    world.store.is_gone = false;
    world.run(20_000);
    world.assert_settled();
    assert_eq!(world.core.status(world.now).store_error, None);
}

#[test]
fn peers_that_do_not_belong_here_are_told_why() {
    let mut world = World::with_nodes(3);
    let mut refused = |name: &str, cluster: &str, slots: u32, who: MetaPeer| {
        let config = MetaLinkConfig::new(vec!["127.0.0.1:1".parse().unwrap()], cluster, slots, who);
        let link = MetaLink::new(config, Arc::new(SlotTable::empty(cluster, slots)), 0);
        let follower = Follower {
            link,
            peer: None,
            decoder: Decoder::default(),
            is_mute: false,
            is_node: false,
            epochs: vec![],
        };
        world.followers.insert(name.into(), follower);
        world.closed.clear();
        world.run(20);
        world.followers.remove(name);
        world.closed.first().cloned().unwrap_or_else(|| panic!("{name} was taken"))
    };
    let (code, text) = refused("a", "d", 64, MetaPeer::Data(entry("a", 1)));
    assert!(
        code == ErrorCode::Configuration && text.contains("cluster \"c\"") && text.contains("\"d\""),
        "{text}"
    );
    let (code, text) = refused("b", "c", 128, MetaPeer::Session);
    assert!(code == ErrorCode::Configuration && text.contains("64 slots") && text.contains("128"), "{text}");
    let (code, text) = refused("twin", "c", 64, MetaPeer::Data(entry("n0", 2)));
    assert!(code == ErrorCode::DuplicateNode && text.contains("give this one an id of its own"), "{text}");
    let mut copy = (*entry("n0", 3)).clone();
    copy.id = "copy".into();
    let (code, text) = refused("copy", "c", 64, MetaPeer::Data(Arc::new(copy)));
    assert!(code == ErrorCode::DuplicateNode && text.contains("\"n0\" is alive"), "{text}");
    let mut bare = (*entry("bare", 3)).clone();
    bare.ports.clear();
    let (code, text) = refused("bare", "c", 64, MetaPeer::Data(Arc::new(bare)));
    assert!(code == ErrorCode::Configuration && text.contains("0 shards"), "{text}");
    assert_eq!(world.core.counters().refused_peers, 5);
    world.run(1000);
    world.assert_settled();
}

#[test]
fn a_store_of_another_cluster_is_refused() {
    let mut core = MetaCore::new(config());
    for table in [SlotTable::empty("d", 64), SlotTable::empty("c", 128)] {
        let said = core.handle_elected(Some(SlotTable { epoch: 4, ..table }), Nanos(1)).unwrap_err();
        assert!(said.contains("correct the configuration"), "{said}");
        assert_eq!(core.phase(), Phase::Standby);
    }
}

#[test]
fn a_deposed_leader_sends_everybody_away() {
    let mut world = World::with_nodes(3);
    world.core.handle_deposed(world.now);
    world.step();
    assert_eq!(world.closed.iter().filter(|(code, _)| *code == ErrorCode::NotLeading).count(), 3);
    world.run(3000);
    assert!(world.closed.len() > 6, "they come back and are sent on: {:?}", world.closed.len());
    assert!(world.closed.iter().all(|(code, _)| *code == ErrorCode::NotLeading));
    world.elect();
    world.run(8000);
    world.assert_settled();
}

#[test]
fn a_pause_of_the_control_plane_moves_nothing() {
    let mut world = World::with_nodes(3);
    let table = world.core.table().clone();
    for _ in 0..5 {
        world.now = world.now.after(30 * Nanos::SECOND);
        world.run(1000);
    }
    assert_eq!(world.core.table(), &table);
    assert_eq!(world.core.counters().leases_ended, 0);
}

#[test]
fn a_drained_node_is_empty_in_the_end_also_over_a_change_of_leader() {
    let mut world = World::with_nodes(4);
    assert!(world.core.handle_drain("nobody", true).unwrap_err().contains("no node \"nobody\""));
    world.core.handle_drain("n2", true).unwrap();
    world.run(1000);
    world.replace_meta(2);
    world.run(10_000);
    let holds = |world: &World| {
        let status = world.core.status(world.now);
        status.nodes.iter().find(|node| node.id == "n2").map(|node| (node.draining, node.holds))
    };
    assert_eq!(holds(&world), Some((true, 0)));
    world.core.handle_drain("n2", false).unwrap();
    world.run(5000);
    assert!(holds(&world).is_some_and(|(draining, held)| !draining && held > 0));
}

#[test]
fn a_node_that_is_about_to_end_leads_nothing_soon_and_nothing_is_copied_for_that() {
    let mut world = World::with_nodes(3);
    let of = |world: &World| {
        let status = world.core.status(world.now);
        let node = status.nodes.iter().find(|node| node.id == "n1").unwrap();
        (node.leads, node.holds, node.ending)
    };
    let (leads, holds, _) = of(&world);
    assert!(leads > 0 && holds > leads);
    let before = world.core.counters();
    world.followers.get_mut("n1").unwrap().link.set_ending();
    world.run(200);
    assert_eq!(of(&world), (0, holds, true), "at once, not when its lease ends");
    let counters = world.core.counters();
    assert_eq!(counters.moves, before.moves, "its replicas stay where they are");
    assert_eq!((counters.leaders_changed - before.leaders_changed, counters.unclean), (leads as u64, 0));
    // It comes back as another run.
    world.kill("n1");
    world.run(500);
    assert_eq!(of(&world).0, 0);
}

#[test]
fn a_leader_epoch_that_a_node_opened_itself_is_taken_over() {
    let mut world = World::with_nodes(3);
    let table = world.core.table().clone();
    let slot = table.slots.iter().position(|entry| entry.leader() == table.number_of("n0")).unwrap();
    let mut told = reports(&table, "n0", false);
    for report in &mut told {
        if usize::from(report.slot.0) == slot {
            report.leader_epoch = 77;
        }
    }
    world.followers.get_mut("n0").unwrap().link.set_slots(table.epoch, told);
    world.run(100);
    assert_eq!(world.core.table().slots[slot].leader_epoch, 77);
    world.kill("n0");
    world.run(3000);
    assert_eq!(world.core.table().slots[slot].leader_epoch, 78);
}

#[test]
fn a_follower_that_restarted_is_not_in_sync_by_what_was_said_before() {
    let mut world = World::with_nodes(3);
    // The leaders' word stays as it was: they have not noticed.
    let number = world.core.table().number_of("n1").unwrap();
    world.kill("n1");
    for id in ["n0", "n2"] {
        world.followers.get_mut(id).unwrap().is_node = false;
    }
    world.add("n1", 2);
    world.run(3000);
    let table = world.core.table().clone();
    let places = table.slots.iter().filter_map(|entry| Some(entry.members()[entry.position(number)?]));
    assert!(places.clone().count() > 30 && !places.clone().any(|member| member.is_in_sync()));
    // They look again, and it has caught up.
    for id in ["n0", "n2"] {
        let told = reports(&table, id, false);
        world.followers.get_mut(id).unwrap().link.set_slots(table.epoch, told);
    }
    world.run(500);
    assert_eq!(world.core.status(world.now).slots_short, 0);
}

#[test]
fn a_new_leader_takes_nothing_from_a_node_that_is_late_to_find_it() {
    // What is configured does not shorten the time that a live node needs.
    for (warm_up, pause) in [(300 * MS, 0), (3000 * MS, 0), (300 * MS, 30 * Nanos::SECOND)] {
        let mut world = World::with_nodes(3);
        let before = world.core.table().clone();
        world.followers.get_mut("n1").unwrap().is_mute = true;
        world.replace_meta(2);
        world.core.config.warm_up = warm_up;
        world.run(100);
        world.now = world.now.after(pause);
        world.run(FIND_MAX / MS - 200);
        assert_eq!(world.core.table().slots, before.slots, "it may still come");
        assert_eq!(world.core.phase(), Phase::Warming);
        world.followers.get_mut("n1").unwrap().is_mute = false;
        world.run(5000);
        assert_eq!(world.core.phase(), Phase::Leading);
        assert_eq!(world.core.table().slots, before.slots, "nothing moves");
        world.assert_settled();
    }
}

#[test]
fn a_node_that_ends_together_with_the_leader_is_succeeded_once_it_could_have_come() {
    let mut world = World::with_nodes(3);
    let number = world.core.table().number_of("n1").unwrap();
    world.kill("n1");
    world.replace_meta(2);
    world.run(FIND_MAX / MS - 100);
    assert!(world.core.status(world.now).slots_with_absent_leader > 0);
    world.run(200);
    let status = world.core.status(world.now);
    assert_eq!((status.slots_with_absent_leader, status.slots_unclean), (0, 0));
    assert!(world.core.table().slots.iter().all(|entry| entry.leader() != Some(number)));
}

#[test]
fn a_new_leader_that_hears_few_nodes_waits_before_it_believes_that() {
    let mut world = World::with_nodes(6);
    let before = world.core.table().clone();
    for id in ["n0", "n1", "n2"] {
        world.followers.get_mut(id).unwrap().is_mute = true;
    }
    world.replace_meta(2);
    world.run(12_000);
    assert_eq!(world.core.table(), &before);
    assert_eq!(world.core.status(world.now).leases_held_back, 3);
    world.run(3000);
    assert_eq!(world.core.status(world.now).slots_with_absent_leader, 0);
}

#[test]
fn epochs_that_cannot_be_are_refused() {
    let mut world = World::with_nodes(3);
    let now = world.now;
    let peer = world.followers["n0"].peer.unwrap();
    let beat = |table_epoch, leader_epoch| MetaMessage::Heartbeat {
        sequence: 9,
        table_epoch,
        load: Default::default(),
        ending: false,
        report: 1 << 40,
        reported_epoch: 0,
        slots: Some(vec![SlotReport {
            slot: slotcast_engine::id::SlotId(0),
            state: HeldState::Following,
            is_whole: false,
            has_persistent: false,
            leader_epoch,
            in_sync: vec![],
        }]),
    };
    for (message, word) in [(beat(u64::MAX, 1), "table epoch"), (beat(1, u32::MAX), "leader epoch")] {
        let fault = world.core.handle_message(peer, message, now).unwrap_err();
        assert!(fault.code == ErrorCode::Frame && fault.text.contains(word), "{fault}");
    }
    world.run(300);
    assert!(world.core.table().epoch < 100);
}
