//! What a shard tells about its data, against what was put in.

use slotcast_engine::{
    id::{DataId, Nanos, ReaderId},
    shard::{TopAnswer, TopKind, TopScan},
    top::Row,
};

use crate::support::{Frame, MILLI, Node, config, data_id, version};

/// Asks in steps of `budget` places.
fn ask(node: &Node, kind: TopKind, limit: usize, budget: usize) -> TopAnswer {
    if kind == TopKind::Changed {
        return node.shard.most_changed(limit);
    }
    let mut scan = TopScan::new(kind, limit);
    let mut steps = 0;
    while !node.shard.top_step(&mut scan, budget, node.now) {
        steps += 1;
        assert!(steps < 10_000, "it comes to an end");
    }
    scan.answer()
}

fn keys(answer: &TopAnswer) -> Vec<(&str, f64)> {
    answer.rows.iter().map(|row| (&*row.key, row.value)).collect()
}

fn more<'a>(row: &'a Row, name: &str) -> &'a str {
    let found = row.more.iter().find(|(known, _)| *known == name);
    found.map_or("", |(_, value)| value)
}

/// `publishers` registrations of a data id with records of about `payload` bytes.
fn publish(node: &mut Node, id: &DataId, publishers: u64, payload: usize) {
    let first = Frame::of(1).name(id);
    let frame = (0..publishers).fold(first, |frame, register| {
        frame.put(id, register, version(1, 1), 70 + register, &vec![1; payload])
    });
    node.write_ok(1, &frame);
}

/// Sixteen slots; `service-n` has n publishers, `billing/x` two large ones.
fn filled() -> Node {
    let mut node = Node::new(config(16));
    (1..=3).for_each(|session| node.open(session));
    for number in 1..=20 {
        publish(&mut node, &data_id(&format!("service-{number}")), number, 50);
    }
    publish(&mut node, &DataId::new("billing", "default", "x").expect("it is there"), 2, 5000);
    node
}

#[test]
fn the_largest_data_ids_publishers_and_namespaces_are_told_exactly_in_steps_of_any_size() {
    let node = filled();
    for budget in [1, 7, 1_000_000] {
        let ids = ask(&node, TopKind::DataIds, 2, budget);
        assert_eq!(keys(&ids), [("public/default/service-20", 20.0), ("public/default/service-19", 19.0)]);
        assert_eq!((ids.of, ids.error_max), (21.0, 0.0));
        let publishers = ask(&node, TopKind::Publishers, 3, budget);
        assert_eq!(publishers.of, 212.0);
        assert!(publishers.rows[..2].iter().all(|row| row.key.starts_with("billing/default/x ")));
        assert!(publishers.rows[1].value > 5000.0 && publishers.rows[2].value < 500.0);
        assert_eq!(more(&publishers.rows[0], "session"), format!("{:016x}", 1));
        let namespaces = ask(&node, TopKind::Namespaces, 10, budget);
        assert_eq!(keys(&namespaces), [("public", 210.0), ("billing", 2.0)]);
        assert_eq!(more(&namespaces.rows[0], "data_ids"), "20");
    }
}

#[test]
fn the_most_wanted_data_ids_are_told_also_when_nobody_publishes_them() {
    let mut node = filled();
    let nobody = data_id("nobody-publishes-this");
    (1..=3).for_each(|session| _ = node.subscribe(session, &nobody));
    (1..=2).for_each(|session| _ = node.subscribe(session, &data_id("service-4")));
    for budget in [1, 100] {
        let wanted = ask(&node, TopKind::Subscribed, 10, budget);
        let unnamed = format!("{:016x}", nobody.key().0);
        assert_eq!(keys(&wanted), [(&*unnamed, 3.0), ("public/default/service-4", 2.0)]);
        assert_eq!(more(&wanted.rows[1], "publishers"), "4");
    }
}

#[test]
fn the_most_changed_data_ids_are_counted_once_per_batch_and_forgotten_with_time() {
    let mut node = filled();
    let busy = data_id("service-3");
    for number in 2..12u64 {
        let frame = (0..3).fold(Frame::of(1), |frame, register| {
            frame.put(&busy, register, version(number, 1), 70 + register, &number.to_le_bytes())
        });
        node.write_ok(1, &frame);
    }
    let changed = node.shard.most_changed(1);
    assert_eq!(keys(&changed), [("public/default/service-3", 11.0)]);
    assert_eq!(changed.of, 31.0, "21 first changes and ten");
    assert_eq!((changed.rows[0].error, changed.error_max), (0.0, 31.0 / 1024.0));
    node.tick_after(MILLI);
    node.tick_after(changed.half_life);
    assert_eq!(node.shard.most_changed(1).rows[0].value, 5.5);
}

#[test]
fn cold_is_what_nobody_reads_or_changes_and_the_longest_comes_first() {
    let mut node = Node::new(config(4));
    (1..=2).for_each(|session| node.open(session));
    let [old, read, changed, held] = ["old", "read", "changed", "held"].map(data_id);
    for id in [&old, &read, &changed, &held] {
        publish(&mut node, id, 1, 10);
    }
    node.subscribe(1, &held);
    node.now = node.now.after(20 * Nanos::SECOND);
    node.subscribe(2, &read);
    node.now = node.now.after(10 * Nanos::SECOND);
    node.turn();
    node.shard.handle_interest(ReaderId(2), &old, Default::default()).expect("it is there");
    node.turn();
    node.shard.handle_uninterest(ReaderId(2), old.key());
    let frame = Frame::of(1).put(&changed, 0, version(2, 1), 70, b"other");
    node.now = node.now.after(10 * Nanos::SECOND);
    node.write_ok(1, &frame);
    node.now = node.now.after(5 * Nanos::SECOND);
    node.turn();
    node.shard.handle_link_close(ReaderId(2));
    node.now = node.now.after(30 * Nanos::SECOND);
    let cold = ask(&node, TopKind::Cold, 10, 3);
    let names: Vec<&str> =
        cold.rows.iter().map(|row| row.key.rsplit('/').next().expect("it is there")).collect();
    assert_eq!(names, ["old", "changed", "read"], "{cold:?}: one is held by a reader");
    assert_eq!(cold.rows[0].value, 45.0);
    assert_eq!(
        (more(&cold.rows[0], "changed_s_ago"), more(&cold.rows[0], "read_s_ago")),
        ("75", "45"),
        "{cold:?}"
    );
    assert_eq!((more(&cold.rows[1], "read_s_ago"), cold.rows[2].value), ("never", 30.0));
}
