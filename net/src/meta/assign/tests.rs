//! Rounds held against what every round must do, in random clusters and through random events.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{crowd::Band, *};

/// A cluster whose followers get in sync when the test says so.
#[derive(Clone)]
struct Cluster {
    slots: Vec<SlotEntry>,
    nodes: BTreeMap<NodeNumber, Candidate>,
    limits: AssignLimits,
}

impl Cluster {
    fn new(slots: usize, nodes: u32, zones: u32, limits: AssignLimits) -> Self {
        let mut cluster = Self { slots: vec![SlotEntry::default(); slots], nodes: BTreeMap::new(), limits };
        (0..nodes).for_each(|number| cluster.add(number, number % zones));
        cluster
    }

    fn add(&mut self, number: u32, zone: u32) {
        let number = NodeNumber(number);
        let candidate = Candidate { number, zone, presence: Presence::Alive, draining: false };
        self.nodes.insert(number, candidate);
    }

    fn candidates(&self) -> Vec<Candidate> {
        self.nodes.values().copied().collect()
    }

    fn presence(&self, number: NodeNumber) -> Option<Presence> {
        self.nodes.get(&number).map(|node| node.presence)
    }

    /// A round that is held against the rules; restarted nodes then count as the run that they are.
    fn round(&mut self) -> Assignment {
        let candidates = self.candidates();
        let found = assign(&self.slots, &candidates, &[], &self.limits);
        assert_eq!(found, assign(&self.slots, &candidates, &[], &self.limits), "the same twice");
        self.hold_to_the_rules(&found);
        self.slots.clone_from(&found.slots);
        for node in self.nodes.values_mut().filter(|node| node.presence == Presence::Restarted) {
            node.presence = Presence::Alive;
        }
        found
    }

    fn hold_to_the_rules(&self, found: &Assignment) {
        let (mut moved, mut unclean, mut changed, mut waiting) = (0, 0, 0, 0);
        let is_there = |number| self.presence(number).is_some_and(|presence| presence != Presence::Absent);
        let anybody = self.nodes.keys().any(|number| is_there(*number));
        for (slot, (old, new)) in self.slots.iter().zip(&found.slots).enumerate() {
            let told = format!("slot {slot}: {old:?} became {new:?}");
            assert!(new.leader_epoch >= old.leader_epoch, "{told}");
            let numbers: Vec<_> = new.members().iter().map(|member| member.node()).collect();
            assert!(numbers.iter().enumerate().all(|(at, number)| !numbers[..at].contains(number)), "{told}");
            if !anybody {
                assert_eq!(old, new);
                continue;
            }
            let led = old.leader().is_some_and(|leader| self.presence(leader) == Some(Presence::Alive));
            let heir = |member: &Member| member.is_in_sync() && is_there(member.node());
            let waits = old.has_persistent && old.leader_epoch > 0 && !led && !old.members().iter().any(heir);
            if waits && !self.limits.unclean {
                assert_eq!(old, new, "what only a member in sync may lead stays as it is");
                waiting += 1;
                continue;
            }
            assert!(numbers.iter().all(|number| self.nodes.contains_key(number)), "{told}");
            let Some(leader) = new.leader() else { panic!("{told}") };
            assert!(is_there(leader) && new.members()[0].is_in_sync(), "{told}");
            let restarted = self.presence(leader) == Some(Presence::Restarted);
            let changes = old.leader() != Some(leader);
            assert_eq!(new.leader_epoch > old.leader_epoch, changes || restarted, "{told}");
            changed += usize::from(changes);

            let was = |member: &Member| old.position(member.node()).map(|at| old.members()[at]);
            let in_sync = |member: &Member| was(member).is_some_and(|member| member.is_in_sync());
            let alive = |member: &Member| self.presence(member.node()).is_some_and(Presence::is_same_run);
            // One that is about to end is relieved, which is no move.
            let stays = |member: &Member| self.presence(member.node()) == Some(Presence::Alive);
            let good = |member: &&Member| member.is_in_sync() && stays(member);
            let old_leader_is_good = old.members().iter().take(1).any(|leader| good(&leader));
            if changes && old.members().iter().any(|member| good(&member)) {
                assert!(in_sync(&new.members()[0]), "not in sync, though there is one: {told}");
                moved += usize::from(old_leader_is_good);
            }
            let blind = old.leader_epoch > 0 && changes && !in_sync(&new.members()[0]);
            unclean += usize::from(blind && old.has_persistent);
            assert_eq!(new.is_unclean, old.is_unclean || blind && old.has_persistent, "{told}");
            assert_eq!(new.has_persistent, old.has_persistent);
            for member in &new.members()[1..] {
                assert!(!member.is_in_sync() || (in_sync(member) && alive(member)), "{told}");
                moved += usize::from(was(member).is_none() && old.leader_epoch > 0);
            }
            for gone in old.members().iter().filter(|member| !numbers.contains(&member.node())) {
                let may_go = match self.presence(gone.node()) {
                    None => true,
                    Some(Presence::Absent) => gone.is_leaving() || self.nodes[&gone.node()].draining || blind,
                    Some(_) => {
                        blind || new.members().iter().filter(|member| was(member).is_some()).all(in_sync)
                    }
                };
                assert!(may_go, "{} went: {told}", gone.node().0);
            }
        }
        assert!(moved <= self.limits.moves_max, "{moved} moves");
        assert!(
            found.moves <= self.limits.moves_max && moved <= found.moves,
            "{moved}, told {}",
            found.moves
        );
        assert_eq!((found.leaders_changed, found.made_unclean, found.waiting), (changed, unclean, waiting));
    }

    /// All followers on nodes that are there get in sync, where somebody leads.
    fn sync(&mut self) {
        let nodes = &self.nodes;
        let is_led = |entry: &&mut SlotEntry| {
            let leader = entry.leader().and_then(|leader| nodes.get(&leader));
            leader.is_some_and(|node| node.presence == Presence::Alive)
        };
        for member in self.slots.iter_mut().filter(is_led).flat_map(|entry| entry.members_mut()) {
            let there = nodes.get(&member.node()).is_some_and(|node| node.presence == Presence::Alive);
            *member = member.with_in_sync(member.is_in_sync() || there);
        }
    }

    /// Rounds until nothing moves any more; members that were added.
    fn converge(&mut self) -> usize {
        let mut added = 0;
        for _ in 0..4000 {
            self.sync();
            let before = self.slots.clone();
            self.round();
            added += new_members(&before, &self.slots).count();
            if self.slots == before {
                return added;
            }
        }
        panic!("it never comes to rest");
    }

    fn load(&self, number: NodeNumber) -> (usize, usize) {
        let members = self.slots.iter().filter(|entry| entry.position(number).is_some()).count();
        (members, self.slots.iter().filter(|entry| entry.leader() == Some(number)).count())
    }

    fn takers(&self) -> Vec<NodeNumber> {
        let takers = self.nodes.values().filter(|node| !node.draining && node.presence.is_free());
        takers.map(|node| node.number).collect()
    }

    /// Whoever is away comes back, somebody is there, an operator gives up what went with those that are gone, and rounds follow
    /// until nothing moves.
    fn end_well(&mut self) {
        self.limits.unclean = true;
        self.nodes.values_mut().filter(|node| !node.presence.is_free()).for_each(|node| {
            node.presence = Presence::Alive;
        });
        if self.takers().is_empty() {
            self.add(1_000_000, 0);
        }
        self.round();
        self.converge();
    }

    /// Everything is as it should be when nothing moves any more.
    fn assert_settled(&self) {
        let takers = self.takers();
        let wanted = self.limits.replicas.min(takers.len());
        for (slot, entry) in self.slots.iter().enumerate() {
            assert_eq!(entry.members().len(), wanted, "slot {slot}: {entry:?}");
            assert!(entry.members().iter().all(|member| member.is_in_sync() && !member.is_leaving()));
            assert!(entry.members().iter().all(|member| takers.contains(&member.node())), "{entry:?}");
        }
    }

    fn assert_balanced(&self) {
        let takers = self.takers();
        let wanted = self.limits.replicas.min(takers.len());
        let members = Band::around(self.slots.len() * wanted, takers.len());
        let leaders = Band::around(self.slots.len(), takers.len());
        for number in takers {
            let (held, led) = self.load(number);
            let told = format!("{} holds {held} of {members:?}, leads {led} of {leaders:?}", number.0);
            assert!((members.low as usize..=members.high as usize).contains(&held), "{told}");
            assert!((leaders.low as usize..=leaders.high as usize).contains(&led), "{told}");
        }
    }
}

/// Slots that got a member, with the member.
fn new_members<'a>(
    old: &'a [SlotEntry],
    new: &'a [SlotEntry],
) -> impl Iterator<Item = (usize, NodeNumber)> + 'a {
    old.iter().zip(new).enumerate().flat_map(|(slot, (old, new))| {
        let members = new.members().iter().map(|member| member.node());
        members.filter(|number| old.position(*number).is_none()).map(move |number| (slot, number))
    })
}

fn limits(replicas: usize, moves_max: usize) -> AssignLimits {
    AssignLimits { replicas, moves_max, unclean: false }
}

#[test]
fn an_empty_cluster_is_filled_in_one_round_whatever_the_bound() {
    for (slots, nodes, zones, replicas) in [(1024, 3, 1, 2), (1024, 7, 3, 3), (16, 50, 5, 2), (256, 1, 1, 2)]
    {
        let mut cluster = Cluster::new(slots, nodes, zones, limits(replicas, 0));
        let found = cluster.round();
        assert_eq!((found.moves, found.made_unclean), (0, 0));
        cluster.sync();
        cluster.assert_settled();
        cluster.assert_balanced();
    }
}

#[test]
fn replicas_are_in_different_zones() {
    let mut cluster = Cluster::new(1024, 12, 3, limits(3, 20));
    let spread = |cluster: &Cluster| {
        let zone = |member: &Member| cluster.nodes[&member.node()].zone;
        let zones =
            |entry: &SlotEntry| entry.members().iter().map(zone).collect::<std::collections::BTreeSet<_>>();
        cluster.slots.iter().filter(|entry| zones(entry).len() == 3).count()
    };
    cluster.converge();
    assert_eq!(spread(&cluster), 1024);
    // One zone loses three of its four nodes: the fourth does not take all they had.
    for gone in [0, 3, 6] {
        cluster.nodes.remove(&NodeNumber(gone));
    }
    cluster.converge();
    cluster.assert_settled();
    cluster.assert_balanced();
    assert!(spread(&cluster) < 1024);
    for back in [0, 3, 6] {
        cluster.add(back, 0);
    }
    cluster.converge();
    cluster.assert_balanced();
    assert_eq!(spread(&cluster), 1024, "the spread comes back with the nodes");
}

#[test]
fn only_what_a_dead_node_had_moves() {
    for (nodes, replicas) in [(4, 2), (10, 3), (10, 2), (30, 2)] {
        let mut cluster = Cluster::new(1024, nodes, 1, limits(replicas, 16));
        cluster.converge();
        let dead = NodeNumber(nodes / 2);
        let before = cluster.slots.clone();
        let (held, led) = cluster.load(dead);
        cluster.nodes.remove(&dead);
        let first = cluster.round();
        assert_eq!(
            first.leaders_changed - first.moves.min(first.leaders_changed),
            led - first.moves.min(led)
        );
        assert_eq!(first.made_unclean, 0);
        let added = new_members(&before, &cluster.slots).count() + cluster.converge();
        assert_eq!(added, held, "{nodes} nodes, {replicas} replicas: a member for each that was lost");
        for (old, new) in before.iter().zip(&cluster.slots).filter(|(old, _)| old.position(dead).is_none()) {
            let mut sets =
                [old, new].map(|entry| entry.members().iter().map(|m| m.node()).collect::<Vec<_>>());
            sets.iter_mut().for_each(|set| set.sort());
            assert_eq!(sets[0], sets[1], "{old:?} had nothing to do with it");
        }
        cluster.assert_settled();
        cluster.assert_balanced();
    }
}

#[test]
fn a_new_node_gets_its_share_and_nobody_else_gets_anything() {
    for replicas in [1, 2, 3] {
        let mut cluster = Cluster::new(1024, 9, 1, limits(replicas, 10));
        cluster.converge();
        let mut before = cluster.slots.clone();
        cluster.add(100, 0);
        let mut added = 0;
        loop {
            cluster.sync();
            cluster.round();
            for (_, number) in new_members(&before, &cluster.slots) {
                assert_eq!(number, NodeNumber(100));
                added += 1;
            }
            if cluster.slots == before {
                break;
            }
            before.clone_from(&cluster.slots);
        }
        assert!(added <= 1024 * replicas / 10 + 1, "{added} moved for {replicas} replicas");
        cluster.assert_settled();
        cluster.assert_balanced();
    }
}

#[test]
fn a_drained_node_ends_with_nothing_and_never_leaves_a_slot_short() {
    for replicas in [1, 2, 3] {
        let mut cluster = Cluster::new(512, 5, 1, limits(replicas, 8));
        cluster.converge();
        let drained = NodeNumber(2);
        cluster.nodes.get_mut(&drained).unwrap().draining = true;
        while cluster.load(drained).0 > 0 {
            let before = cluster.load(drained).0;
            cluster.sync();
            cluster.round();
            for entry in &cluster.slots {
                let in_sync = entry.members().iter().filter(|member| member.is_in_sync()).count();
                assert!(in_sync >= replicas, "{entry:?}");
            }
            assert!(cluster.load(drained).0 <= before);
        }
        cluster.converge();
        cluster.assert_settled();
        cluster.assert_balanced();
        cluster.nodes.get_mut(&drained).unwrap().draining = false;
        cluster.converge();
        cluster.assert_balanced();
    }
}

#[test]
fn an_absent_node_leads_nothing_but_is_replaced_only_when_it_is_gone() {
    let mut cluster = Cluster::new(256, 4, 1, limits(2, 1000));
    cluster.converge();
    let away = NodeNumber(1);
    let held = cluster.load(away).0;
    cluster.nodes.get_mut(&away).unwrap().presence = Presence::Absent;
    let before = cluster.slots.clone();
    cluster.round();
    assert_eq!(cluster.load(away), (held, 0));
    assert_eq!(new_members(&before, &cluster.slots).count(), 0);
    for entry in cluster.slots.iter().filter(|entry| entry.position(away).is_some()) {
        assert!(!entry.members()[entry.position(away).unwrap()].is_in_sync());
    }
    cluster.nodes.get_mut(&away).unwrap().presence = Presence::Alive;
    assert_eq!(cluster.converge(), 0, "it came back to what it had");
    cluster.assert_balanced();
}

#[test]
fn a_node_that_is_about_to_end_leads_nothing_and_keeps_the_rest() {
    let mut cluster = Cluster::new(256, 3, 1, limits(2, 0));
    cluster.round();
    cluster.sync();
    let ending = NodeNumber(1);
    let (held, led) = cluster.load(ending);
    cluster.nodes.get_mut(&ending).unwrap().presence = Presence::Ending;
    let before = cluster.slots.clone();
    assert_eq!(cluster.round().moves, 0, "without a move from the budget");
    assert_eq!(cluster.load(ending), (held, 0));
    let members = |slots: &[SlotEntry]| slots.iter().flat_map(|entry| entry.members().to_vec()).count();
    assert_eq!(
        (new_members(&before, &cluster.slots).count(), members(&before)),
        (0, members(&cluster.slots))
    );
    let of = cluster.slots.iter().filter_map(|entry| Some(entry.members()[entry.position(ending)?]));
    assert_eq!(of.filter(|member| !member.is_in_sync()).count(), led, "those that it led follow nobody");
    // Nobody else has these: it goes on with them.
    let mut alone = Cluster::new(16, 2, 1, limits(1, 0));
    alone.round();
    alone.nodes.get_mut(&ending).unwrap().presence = Presence::Ending;
    let before = alone.slots.clone();
    alone.round();
    assert_eq!(alone.slots, before);
    alone.nodes.values_mut().for_each(|node| node.presence = Presence::Ending);
    alone.round();
    assert_eq!(alone.slots, before, "all of them end");
}

#[test]
fn a_leader_that_restarts_alone_leads_on_in_a_new_epoch() {
    let mut cluster = Cluster::new(16, 1, 1, limits(2, 10));
    cluster.round();
    cluster.nodes.get_mut(&NodeNumber(0)).unwrap().presence = Presence::Restarted;
    let found = cluster.round();
    assert_eq!((found.leaders_changed, found.made_unclean), (0, 0));
    assert!(cluster.slots.iter().all(|entry| entry.leader_epoch == 2 && !entry.is_unclean));
}

#[test]
fn whoever_was_in_sync_when_all_went_down_leads_again() {
    let mut cluster = Cluster::new(64, 3, 1, limits(3, 0));
    cluster.round();
    cluster.sync();
    // Node 2 falls behind; then all of them restart at once.
    for entry in &mut cluster.slots {
        let at = entry.position(NodeNumber(2)).unwrap();
        if at > 0 {
            let member = &mut entry.members_mut()[at];
            *member = member.with_in_sync(false);
        }
    }
    let was_leader: Vec<_> =
        cluster.slots.iter().map(|entry| entry.leader() == Some(NodeNumber(2))).collect();
    cluster.nodes.values_mut().for_each(|node| node.presence = Presence::Restarted);
    assert_eq!(cluster.round().made_unclean, 0);
    for (entry, was) in cluster.slots.iter().zip(was_leader) {
        assert!(was || entry.leader() != Some(NodeNumber(2)), "{entry:?}");
    }
}

#[test]
fn a_slot_with_persistent_publishers_waits_for_a_member_in_sync() {
    let [first, second] = [NodeNumber(0), NodeNumber(1)];
    let mut cluster = Cluster::new(1, 2, 1, limits(2, 10));
    cluster.converge();
    cluster.slots[0].has_persistent = true;
    let leader = cluster.slots[0].leader().unwrap();
    let other = if leader == first { second } else { first };
    // The other is away while the leader goes on without it; then the leader is lost, and the other comes back.
    cluster.nodes.get_mut(&other).unwrap().presence = Presence::Absent;
    cluster.round();
    cluster.nodes.get_mut(&other).unwrap().presence = Presence::Restarted;
    let lost = cluster.nodes.remove(&leader).unwrap();
    for _ in 0..3 {
        let found = cluster.round();
        assert_eq!((found.waiting, found.leaders_changed, found.made_unclean), (1, 0, 0));
        assert_eq!(found.slots[0].leader(), Some(leader), "it is not forgotten that it has all");
    }
    let mut allowed = cluster.clone();
    allowed.limits.unclean = true;
    let found = allowed.round();
    assert_eq!((found.waiting, found.made_unclean, found.slots[0].leader()), (0, 1, Some(other)));
    assert!(found.slots[0].is_unclean);
    // Where nothing is persistent, whoever is there leads.
    let mut ephemeral = cluster.clone();
    ephemeral.slots[0].has_persistent = false;
    let found = ephemeral.round();
    assert_eq!((found.waiting, found.made_unclean, found.slots[0].leader()), (0, 0, Some(other)));
    cluster.nodes.insert(leader, Candidate { presence: Presence::Restarted, ..lost });
    let found = cluster.round();
    assert_eq!((found.waiting, found.slots[0].leader(), found.slots[0].is_unclean), (0, Some(leader), false));
    cluster.converge();
    cluster.assert_settled();
}

#[test]
fn epochs_that_nodes_tell_of_are_never_given_again() {
    let mut cluster = Cluster::new(16, 2, 1, limits(1, 100));
    cluster.round();
    let candidates = cluster.candidates();
    let mut seen = vec![EpochSeen::default(); 16];
    seen[3] = EpochSeen { by_any: 9, by_leader: 9 };
    seen[4] = EpochSeen { by_any: 9, by_leader: 2 };
    let found = assign(&cluster.slots, &candidates, &seen, &cluster.limits);
    assert_eq!(found.slots[3].leader_epoch, 9, "the leader has opened it itself");
    assert_eq!(found.slots[4].leader_epoch, 10, "another has: this leader needs one above");
    assert_eq!(found.slots[5].leader_epoch, 1);
    assert_eq!(found.leaders_changed, 0);
    let seen = vec![EpochSeen { by_any: 7, by_leader: 7 }; 16];
    let found = assign(&found.slots, &candidates[..1], &seen, &cluster.limits);
    for (slot, entry) in found.slots.iter().enumerate() {
        let had = cluster.slots[slot].leader() == Some(NodeNumber(0));
        assert_eq!(
            entry.leader_epoch,
            match slot {
                3 => 9,
                4 => 10,
                _ => 7,
            } + u32::from(!had),
            "slot {slot}"
        );
    }
}

#[test]
fn the_last_epoch_changes_nothing_any_more() {
    let mut cluster = Cluster::new(1, 2, 1, limits(1, 100));
    cluster.round();
    cluster.slots[0].leader_epoch = Revision::EPOCH_MAX;
    let leader = cluster.slots[0].leader().unwrap();
    let others: Vec<_> = cluster.candidates().into_iter().filter(|node| node.number != leader).collect();
    assert_eq!(assign(&cluster.slots, &others, &[], &cluster.limits).slots, cluster.slots);
}

/// What happens to a cluster between two rounds.
#[derive(Clone, Debug)]
enum Incident {
    Add(u32),
    Gone(prop::sample::Index),
    Away(prop::sample::Index),
    Back(prop::sample::Index),
    Restart(prop::sample::Index),
    Ending(prop::sample::Index),
    Drain(prop::sample::Index, bool),
    SyncSome(u64),
    Lag(u64),
    Persist(u64),
}

fn incident() -> impl Strategy<Value = Incident> {
    prop_oneof![
        2 => (0u32..4).prop_map(Incident::Add),
        1 => any::<prop::sample::Index>().prop_map(Incident::Gone),
        2 => any::<prop::sample::Index>().prop_map(Incident::Away),
        2 => any::<prop::sample::Index>().prop_map(Incident::Back),
        2 => any::<prop::sample::Index>().prop_map(Incident::Restart),
        2 => any::<prop::sample::Index>().prop_map(Incident::Ending),
        2 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(node, on)| Incident::Drain(node, on)),
        4 => any::<u64>().prop_map(Incident::SyncSome),
        1 => any::<u64>().prop_map(Incident::Lag),
        2 => any::<u64>().prop_map(Incident::Persist),
    ]
}

impl Cluster {
    fn suffer(&mut self, incident: &Incident) {
        let nodes: Vec<NodeNumber> = self.nodes.keys().copied().collect();
        let mut set = |node: &prop::sample::Index, change: &dyn Fn(&mut Candidate)| {
            if !nodes.is_empty()
                && let Some(node) = self.nodes.get_mut(node.get(&nodes))
            {
                change(node);
            }
        };
        match incident {
            Incident::Add(zone) => {
                let number = nodes.last().map_or(0, |last| last.0 + 1);
                self.add(number, *zone);
            }
            Incident::Gone(node) => {
                if !nodes.is_empty() {
                    self.nodes.remove(node.get(&nodes));
                }
            }
            Incident::Away(node) => set(node, &|node| node.presence = Presence::Absent),
            Incident::Back(node) => set(node, &|node| {
                if !node.presence.is_free() {
                    node.presence = Presence::Alive;
                }
            }),
            Incident::Ending(node) => set(node, &|node| {
                if node.presence == Presence::Alive {
                    node.presence = Presence::Ending;
                }
            }),
            Incident::Restart(node) => set(node, &|node| node.presence = Presence::Restarted),
            Incident::Persist(bits) => {
                for (slot, entry) in self.slots.iter_mut().enumerate() {
                    entry.has_persistent |= entry.leader_epoch > 0 && bits >> (slot % 64) & 1 == 1;
                }
            }
            Incident::Drain(node, on) => set(node, &|node| node.draining = *on),
            Incident::SyncSome(bits) | Incident::Lag(bits) => {
                let in_sync = matches!(incident, Incident::SyncSome(_));
                let nodes = &self.nodes;
                for (slot, entry) in self.slots.iter_mut().enumerate() {
                    if bits >> (slot % 64) & 1 == 1 {
                        for member in entry.members_mut().iter_mut().skip(1) {
                            let node = nodes.get(&member.node());
                            let alive = node.is_some_and(|node| node.presence == Presence::Alive);
                            *member = member.with_in_sync(in_sync && (alive || member.is_in_sync()));
                        }
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn every_round_keeps_the_rules_and_the_cluster_comes_to_rest(
        slots in prop::sample::select(vec![1usize, 2, 16, 64, 256]),
        nodes in 1u32..12,
        zones in 1u32..4,
        replicas in 1usize..=4,
        moves_max in 1usize..40,
        incidents in prop::collection::vec(incident(), 0..30),
    ) {
        let mut cluster = Cluster::new(slots, nodes, zones, limits(replicas, moves_max));
        cluster.round();
        for incident in &incidents {
            cluster.suffer(incident);
            cluster.round();
        }
        // Also while slots wait for who is away, or will never come back.
        cluster.converge();
        cluster.end_well();
        cluster.assert_settled();
    }

    #[test]
    fn clusters_of_one_zone_end_balanced(
        slots in prop::sample::select(vec![16usize, 64, 256, 1024]),
        nodes in 2u32..12,
        replicas in 1usize..=3,
        incidents in prop::collection::vec(incident(), 0..12),
    ) {
        let mut cluster = Cluster::new(slots, nodes, 1, limits(replicas, 30));
        cluster.round();
        for incident in &incidents {
            cluster.suffer(&match incident {
                Incident::Add(_) => Incident::Add(0),
                other => other.clone(),
            });
            cluster.round();
        }
        cluster.end_well();
        cluster.assert_settled();
        cluster.assert_balanced();
    }
}
