//! What a slot table asks of a node: pure, so that it can be looked at from all sides.

use slotcast_engine::{id::SlotId, slot_state::SlotState};

use crate::wire::slot_table::{NodeEntry, NodeNumber, SlotEntry, SlotTable};

/// What a table says about a node as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::data) enum Standing {
    /// It does not know this run of the node: a table from before its start or, once another table has named it, from after
    /// its end.
    Unknown,
    /// It names this run.
    Named(NodeNumber),
}

/// What a table asks of a node for one slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::data) enum Duty {
    /// Hold nothing of it.
    None,
    /// Lead it in this epoch.
    Lead(u32),
    /// Follow this node, which leads it in this epoch.
    Follow(NodeNumber, u32),
}

/// What is to be done about a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::data) enum Step {
    /// Nothing: it is as it should be.
    Stay,
    /// Lead it in this epoch.
    Lead(u32),
    /// Follow it in this epoch.
    Follow(u32),
    /// Give it up.
    Leave,
}

/// Finds this run of a node in a table.
pub(in crate::data) fn standing(table: &SlotTable, entry: &NodeEntry) -> Standing {
    let found = table.number_of(&entry.id);
    let same = |number: &NodeNumber| {
        table.nodes[number].incarnation == entry.incarnation || crate::faults::epoch_reused()
    };
    found.filter(same).map_or(Standing::Unknown, Standing::Named)
}

/// What `table` asks of the node `own` for `slot`.
pub(in crate::data) fn duty(table: &SlotTable, own: NodeNumber, slot: SlotId) -> Duty {
    let Some(entry) = table.slots.get(usize::from(slot.0)) else { return Duty::None };
    match (entry.position(own), entry.leader()) {
        (Some(0), _) => Duty::Lead(entry.leader_epoch),
        (Some(_), Some(leader)) => Duty::Follow(leader, entry.leader_epoch),
        _ => Duty::None,
    }
}

/// Whether a node should not end yet: somebody in sync could lead the slot in its place, or acknowledgements of persistent
/// changes wait for it.
pub(in crate::data) fn is_missed(entry: &SlotEntry, own: NodeNumber) -> bool {
    match entry.position(own) {
        Some(0) => entry.members()[1..].iter().any(|member| member.is_in_sync()),
        Some(at) => entry.members()[at].is_in_sync(),
        None => false,
    }
}

/// What leads from what a node does with a slot, in the leader epoch that it knows last, to its duty.
pub(in crate::data) fn step(state: SlotState, epoch: u32, duty: Duty) -> Step {
    match (state, duty) {
        (SlotState::Migrating | SlotState::Accept, Duty::Lead(to)) if to == epoch => Step::Stay,
        (_, Duty::Lead(to)) => Step::Lead(to),
        (SlotState::Following, Duty::Follow(_, to)) if to == epoch => Step::Stay,
        (_, Duty::Follow(_, to)) => Step::Follow(to),
        (SlotState::Moved, Duty::None) => Step::Stay,
        // In Absent, too: the disk may have had it.
        (_, Duty::None) => Step::Leave,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::wire::slot_table::Member;

    const OWN: NodeNumber = NodeNumber(1);

    fn node(id: &str, incarnation: u64) -> Arc<NodeEntry> {
        Arc::new(NodeEntry {
            id: id.into(),
            incarnation,
            zone: "".into(),
            ip: [127, 0, 0, 1].into(),
            ports: vec![1],
            http: 0,
            draining: false,
        })
    }

    /// Slot 0 is led by the node, slot 1 followed, slot 2 is of others, slot 3 of nobody.
    fn table() -> SlotTable {
        let mut table = SlotTable { epoch: 4, next_number: 3, ..SlotTable::empty("c", 4) };
        for (number, id) in [(0, "a"), (1, "b"), (2, "c")] {
            table.nodes.insert(NodeNumber(number), node(id, 7));
        }
        for (slot, members) in [(0, vec![1, 0]), (1, vec![2, 1]), (2, vec![2, 0])] {
            table.slots[slot].leader_epoch = slot as u32 + 5;
            members.into_iter().for_each(|number| {
                assert!(table.slots[slot].push(Member::new(NodeNumber(number))));
            });
        }
        table.check().unwrap();
        table
    }

    #[test]
    fn only_the_run_that_is_named_has_duties() {
        let table = table();
        assert_eq!(standing(&table, &node("b", 7)), Standing::Named(OWN));
        assert_eq!(standing(&table, &node("b", 8)), Standing::Unknown);
        assert_eq!(standing(&table, &node("d", 7)), Standing::Unknown);
        assert_eq!(standing(&SlotTable::empty("c", 4), &node("b", 7)), Standing::Unknown);
    }

    #[test]
    fn a_table_says_who_leads_and_who_follows() {
        let table = table();
        let duties: Vec<Duty> = (0..5).map(|slot| duty(&table, OWN, SlotId(slot))).collect();
        let none = Duty::None;
        assert_eq!(duties, [Duty::Lead(5), Duty::Follow(NodeNumber(2), 6), none, none, none]);
    }

    #[test]
    fn a_node_is_missed_where_it_could_be_relieved_or_is_waited_for() {
        let mut table = table();
        let missed = |table: &SlotTable| -> Vec<bool> {
            table.slots.iter().map(|entry| is_missed(entry, OWN)).collect()
        };
        assert_eq!(missed(&table), [false; 4], "nobody else is in sync");
        for entry in &mut table.slots {
            entry.members_mut().iter_mut().for_each(|member| *member = member.with_in_sync(true));
        }
        assert_eq!(missed(&table), [true, true, false, false]);
    }

    #[test]
    fn every_state_has_one_way_to_every_duty() {
        use SlotState::{Absent, Accept, Following, Migrating, Moved};
        let follow = |epoch| Duty::Follow(NodeNumber(2), epoch);
        for (state, epoch, duty, wanted) in [
            (Absent, 0, Duty::None, Step::Leave),
            (Absent, 0, Duty::Lead(3), Step::Lead(3)),
            (Absent, 0, follow(3), Step::Follow(3)),
            (Following, 3, Duty::None, Step::Leave),
            (Following, 3, Duty::Lead(4), Step::Lead(4)),
            // From its disk it may know the very epoch: it is for the slot to say no.
            (Following, 3, Duty::Lead(3), Step::Lead(3)),
            (Following, 3, follow(3), Step::Stay),
            (Following, 3, follow(4), Step::Follow(4)),
            (Migrating, 3, Duty::None, Step::Leave),
            (Migrating, 3, Duty::Lead(3), Step::Stay),
            (Migrating, 3, Duty::Lead(4), Step::Lead(4)),
            (Migrating, 3, follow(4), Step::Follow(4)),
            (Accept, 3, Duty::None, Step::Leave),
            (Accept, 3, Duty::Lead(3), Step::Stay),
            (Accept, 3, Duty::Lead(4), Step::Lead(4)),
            (Accept, 3, follow(4), Step::Follow(4)),
            (Moved, 3, Duty::None, Step::Stay),
            (Moved, 3, Duty::Lead(5), Step::Lead(5)),
            (Moved, 3, follow(5), Step::Follow(5)),
        ] {
            assert_eq!(step(state, epoch, duty), wanted, "{state:?} in {epoch}, {duty:?}");
        }
    }
}
