//! Two data nodes of a cluster: one leads the even slots, the other the odd ones, and each follows the other's. What either says is
//! replaced by anything.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use prometheus_client::registry::Registry;
use slotcast_engine::{
    id::{Nanos, SessionId, SlotId},
    shard::ShardConfig,
};
use slotcast_net::{
    data::{
        cluster::{Board, ClusterConfig, metrics::ClusterMetrics},
        metrics::DataMetrics,
        node::{Node, NodeLimits},
    },
    wire::{
        meta::MetaMessage,
        slot_table::{Member, NodeEntry, NodeNumber, SlotTable},
    },
};

use super::{
    good::{BYSTANDER, SLOTS, goods, writes_to},
    roles::{FIRST, OTHER, Stage, pieces, shard},
};

pub(super) const CLUSTER: &str = "slotcast";
/// Turns of a conversation that is recorded.
const TURNS: usize = 12;
/// The connection of a follower, and that of a session.
const FOLLOWER: usize = 1;
const SESSION: usize = 2;

/// The data node of this number.
pub(super) fn entry(number: u32) -> NodeEntry {
    NodeEntry {
        id: format!("data-{number}").into(),
        incarnation: 10 + u64::from(number),
        zone: "a".into(),
        ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        ports: vec![1 + number as u16],
        http: 0,
        draining: false,
    }
}

/// The table of both nodes.
pub(super) fn table() -> SlotTable {
    let mut table = SlotTable::empty(CLUSTER, SLOTS);
    (table.epoch, table.maker, table.next_number) = (3, 9, 3);
    table.nodes = [1, 2].map(|number| (NodeNumber(number), Arc::new(entry(number)))).into();
    for (slot, held) in (0..).zip(&mut table.slots) {
        let [leader, follower] = if slot % 2 == 0 { [1, 2] } else { [2, 1] };
        held.leader_epoch = 2;
        for number in [leader, follower] {
            held.push(Member::new(NodeNumber(number)).with_in_sync(true));
        }
    }
    table
}

/// What the control plane says once, and what it says every turn.
fn told(with_table: bool) -> Vec<u8> {
    let mut out = Vec::new();
    MetaMessage::HeartbeatAck {
        sequence: u64::MAX,
        table_epoch: 3,
        report: 0,
        lease_ms: 60_000,
        wants_table: false,
    }
    .write(&mut out);
    if with_table {
        MetaMessage::TableDelta(table().whole()).write(&mut out);
    }
    out
}

/// A data node that has the table. The second leads what a session writes to.
fn member(number: u32) -> Stage<Node> {
    let config = ClusterConfig {
        cluster: CLUSTER.into(),
        metas: vec![SocketAddr::from(([127, 0, 0, 1], 1))],
        entry: Arc::new(entry(number)),
        board: Board::new(1),
        replica_lag_max: Nanos::SECOND,
    };
    let registry = &mut Registry::default();
    let metrics = DataMetrics::new(registry, 0);
    let told_here = ClusterMetrics::new(registry, 0);
    let shard = ShardConfig { seed: number.into(), ..shard() };
    let run = 0x7e57 + u64::from(number);
    let mut node =
        Stage::new(Node::clustered(shard, NodeLimits::default(), run, metrics, (config, told_here)));
    node.turn();
    assert!(node.connected_to(FIRST), "it looks for the control plane");
    node.turn();
    node.hear(FIRST, &told(true));
    node.turn();
    node.accept(FOLLOWER);
    node.accept(SESSION);
    node.hear(SESSION, &goods().link_hello_of(SessionId(BYSTANDER)));
    if number == 2 {
        node.hear(SESSION, &writes_to(|slot: SlotId| slot.0 % 2 == 1));
    }
    node.turn();
    node
}

/// One turn of a node whose control plane is there.
fn step(node: &mut Stage<Node>) -> [Vec<u8>; 4] {
    node.connected_to(FIRST);
    node.hear(FIRST, &told(false));
    node.turn()
}

/// What the first says as a follower, and what the second answers as a leader.
fn conversation() -> (Vec<u8>, Vec<u8>) {
    let [mut follower, mut leader] = [1, 2].map(member);
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        follower.connected_to(OTHER);
        let said = step(&mut follower)[OTHER].clone();
        leader.hear(FOLLOWER, &said);
        asked.extend(said);
        let said = step(&mut leader)[FOLLOWER].clone();
        follower.hear(OTHER, &said);
        answered.extend(said);
    }
    (asked, answered)
}

pub(super) fn from_follower() -> Vec<Vec<u8>> {
    vec![conversation().0]
}

pub(super) fn from_leader() -> Vec<Vec<u8>> {
    vec![conversation().1]
}

fn is_undisturbed(node: &mut Stage<Node>) -> bool {
    node.hear(SESSION, &goods().ping);
    let sent = step(node);
    !node.wires.closed[SESSION] && !sent[SESSION].is_empty()
}

/// A follower that says anything to a shard that leads, beside a session's link that is still answered.
pub fn a_leader_survives_its_followers(bytes: &[u8]) -> bool {
    let mut leader = member(2);
    let mut answered = 0;
    for piece in pieces(bytes) {
        leader.hear(FOLLOWER, &piece);
        answered += step(&mut leader)[FOLLOWER].len();
    }
    let good = !leader.wires.closed[FOLLOWER] && answered > 0;
    assert!(is_undisturbed(&mut leader), "the session's link is disturbed");
    good
}

/// A leader that says anything to a shard that follows, beside a session's link that is still answered.
pub fn a_follower_survives_its_leader(bytes: &[u8]) -> bool {
    let mut follower = member(1);
    follower.connected_to(OTHER);
    let mut said = step(&mut follower)[OTHER].len();
    for piece in pieces(bytes) {
        follower.hear(OTHER, &piece);
        said += step(&mut follower)[OTHER].len();
        follower.connected_to(OTHER);
    }
    let good = !follower.wires.closed[OTHER] && said > 0;
    assert!(is_undisturbed(&mut follower), "the session's link is disturbed");
    good
}
