//! Tables there and back, deltas over each other, and what is refused.

use proptest::prelude::*;

use super::*;

fn node(id: &str, ports: u16) -> Arc<NodeEntry> {
    Arc::new(NodeEntry {
        id: id.into(),
        incarnation: 7,
        zone: "z".into(),
        ip: [10, 0, 0, 1].into(),
        ports: (0..ports).map(|port| 7000 + port).collect(),
        http: 80,
        draining: false,
    })
}

fn table(nodes: u32, slots: u32) -> SlotTable {
    let mut table = SlotTable::empty("c", slots);
    (table.epoch, table.next_number) = (1, nodes);
    for number in 0..nodes {
        table.nodes.insert(NodeNumber(number), node(&format!("n{number}"), 2));
    }
    for (slot, entry) in table.slots.iter_mut().enumerate() {
        entry.leader_epoch = 1;
        entry.push(Member::new(NodeNumber(slot as u32 % nodes)).with_in_sync(true));
    }
    table
}

fn there_and_back(delta: &TableDelta) -> TableDelta {
    let mut bytes = Vec::new();
    delta.write(&mut bytes);
    for cut in 0..bytes.len() {
        assert!(TableDelta::read(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    bytes.extend_from_slice(&[0; 15]);
    TableDelta::read(&bytes).unwrap()
}

#[test]
fn a_reader_gets_from_any_table_to_the_next() {
    let old = table(3, 16);
    let mut new = old.clone();
    (new.epoch, new.next_number) = (5, 5);
    new.nodes.remove(&NodeNumber(2));
    new.nodes.insert(
        NodeNumber(4),
        Arc::new(NodeEntry { ip: Ipv6Addr::LOCALHOST.into(), ..(*node("x", 256)).clone() }),
    );
    for slot in [2, 5, 8, 11, 14] {
        let entry = &mut new.slots[slot];
        entry.push(Member::new(NodeNumber(4)));
        entry.lead(1);
        entry.remove(1);
        (entry.leader_epoch, entry.is_unclean, entry.has_persistent) = (9, slot > 2, slot < 8);
        entry.push(Member::new(NodeNumber(0)).with_leaving(true));
    }
    let delta = new.delta_since(&old);
    assert_eq!((delta.gone.len(), delta.nodes.len(), delta.slots.len()), (1, 1, 5));
    let mut reader = old.clone();
    reader.apply(&there_and_back(&delta)).unwrap();
    assert_eq!(reader, new);
    assert_eq!(SlotTable::from_whole(&there_and_back(&new.whole())).unwrap(), new);
    let (leader, epoch) = new.leader_of(SlotId(5)).unwrap();
    assert_eq!((&*leader.id, epoch), ("x", 9));
    assert_eq!(leader.shard_addr(SlotId(5)).unwrap().ip(), Ipv6Addr::LOCALHOST);
}

#[test]
fn what_would_take_a_reader_back_or_leave_a_hole_is_refused_and_changes_nothing() {
    let held = SlotTable { epoch: 5, ..table(2, 4) };
    let refused = |change: &dyn Fn(&mut TableDelta)| {
        let mut delta = SlotTable { epoch: 6, ..held.clone() }.delta_since(&held);
        change(&mut delta);
        let mut reader = held.clone();
        let error = reader.apply(&delta).unwrap_err();
        assert_eq!(reader, held);
        error
    };
    assert_eq!(refused(&|delta| delta.to = 5), TableError::Older { told: 5, held: 5 });
    assert_eq!(refused(&|delta| delta.from = 4), TableError::Gap { from: 4, held: 5 });
    assert!(matches!(refused(&|delta| delta.slot_count = 8), TableError::Cluster { .. }));
    assert!(matches!(refused(&|delta| delta.cluster = "d".into()), TableError::Cluster { .. }));
    let slot = |epoch, members: &[u32]| {
        let mut entry = SlotEntry { leader_epoch: epoch, ..SlotEntry::default() };
        members.iter().for_each(|number| assert!(entry.push(Member::new(NodeNumber(*number)))));
        entry
    };
    let with = |at: u16, entry: SlotEntry| refused(&|delta| delta.slots.push((at, entry)));
    assert!(with(1, slot(0, &[])).to_string().contains("go back"));
    assert!(with(1, slot(2, &[0, 9])).to_string().contains("no node of the table"));
    assert!(with(1, slot(2, &[1, 1])).to_string().contains("twice"));
    assert!(with(1, slot(1 << 24, &[1])).to_string().contains("out of range"));
    assert!(with(9, slot(2, &[1])).to_string().contains("no such slot"));
    let named = |number: u32, id: &str, ports: u16| {
        refused(&|delta| delta.nodes.push((NodeNumber(number), node(id, ports))))
    };
    assert!(named(1, "n0", 1).to_string().contains("two nodes have the id n0"));
    assert!(named(2, "x", 1).to_string().contains("number 2"));
    assert!(named(1, "", 1).to_string().contains("empty"));
    assert!(named(1, "x", 0).to_string().contains("0 shards"));
    let whole = SlotTable { epoch: 4, ..held.clone() }.whole();
    assert_eq!(held.clone().apply(&whole), Err(TableError::Older { told: 4, held: 5 }));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn wounded_tables_are_read_or_refused(
        wounds in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let mut bytes = Vec::new();
        table(3, 8).whole().write(&mut bytes);
        for (at, value) in wounds {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(delta) = TableDelta::read(&bytes)
            && let Ok(table) = SlotTable::from_whole(&delta)
        {
            table.check().unwrap();
        }
    }
}
