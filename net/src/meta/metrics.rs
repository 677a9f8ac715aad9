//! Metrics of the control plane.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    meta::core::{MetaCounters, MetaStatus, Phase},
    metrics::Reason,
};

/// All metrics of a process of the control plane.
#[derive(Clone)]
#[expect(missing_docs, reason = "each is described where it is registered")]
pub struct MetaMetrics {
    pub connections: Gauge,
    pub leading: Gauge,
    pub table_epoch: Gauge,
    pub nodes: Gauge,
    pub nodes_alive: Gauge,
    pub slots_without_leader: Gauge,
    pub slots_short: Gauge,
    pub slots_waiting: Gauge,
    pub slots_unclean: Gauge,
    pub moves_under_way: Gauge,
    pub leases_held_back: Gauge,
    pub peer_errors: Family<Reason, Counter>,
    counters: Vec<Counter>,
}

/// How a counter is read.
type Value = fn(&MetaCounters) -> u64;

/// Name, description and value of every counter.
const COUNTERS: [(&str, &str, Value); 13] = [
    ("meta_heartbeats", "Heartbeats of data nodes", |it| it.heartbeats),
    ("meta_reports", "Reports of slots that were new", |it| it.reports),
    ("meta_leases_ended", "Leases of data nodes that ended", |it| it.leases_ended),
    ("meta_tables", "Slot tables made", |it| it.tables),
    ("meta_leaders_changed", "Slots given to another leader", |it| it.leaders_changed),
    ("meta_moves", "Members added and leaders handed over", |it| it.moves),
    ("meta_unclean", "Slots with persistent publishers given to a node that was not in sync", |it| {
        it.unclean
    }),
    ("meta_deltas_sent", "Deltas of the table sent", |it| it.deltas_sent),
    ("meta_table_bytes", "Bytes of tables and deltas sent", |it| it.delta_bytes),
    ("meta_wholes_sent", "Whole tables sent", |it| it.wholes_sent),
    ("meta_refused_peers", "Peers whose hello was refused", |it| it.refused_peers),
    ("meta_tables_adopted", "Tables taken from a node because the store had an older one", |it| {
        it.tables_adopted
    }),
    ("meta_store_failures", "Tables that the store did not take", |it| it.store_failures),
];

impl MetaMetrics {
    /// Registers the metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let mut counters = Vec::new();
        for (name, help, _) in COUNTERS {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counters.push(counter);
        }
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let metrics = Self {
            connections: gauge("meta_connections", "Connections of data nodes and sessions"),
            leading: gauge("meta_leading", "1 if this process leads and has warmed up"),
            table_epoch: gauge("meta_table_epoch", "Epoch of the slot table"),
            nodes: gauge("meta_nodes", "Data nodes of the table"),
            nodes_alive: gauge("meta_nodes_alive", "Data nodes whose lease runs"),
            slots_without_leader: gauge(
                "meta_slots_without_leader",
                "Slots that nobody leads, or an absent node",
            ),
            slots_short: gauge("meta_slots_short", "Slots with fewer members in sync than wanted"),
            slots_waiting: gauge(
                "meta_slots_waiting",
                "Slots with persistent publishers of which no member in sync is there",
            ),
            slots_unclean: gauge(
                "meta_slots_unclean",
                "Slots with persistent publishers that went to a node that was not in sync",
            ),
            moves_under_way: gauge("meta_moves_under_way", "New members that are not in sync yet"),
            leases_held_back: gauge(
                "meta_leases_held_back",
                "Leases that do not end because too many would at once",
            ),
            peer_errors: Family::default(),
            counters,
        };
        registry.register("meta_peer_errors", "Peers told to go away", metrics.peer_errors.clone());
        metrics
    }

    /// Brings the counters up to date.
    pub(super) fn count(&self, before: &MetaCounters, now: &MetaCounters) {
        for (counter, (_, _, value)) in self.counters.iter().zip(COUNTERS) {
            counter.inc_by(value(now) - value(before));
        }
    }

    /// Brings the gauges up to date.
    pub(super) fn show(&self, status: &MetaStatus) {
        self.leading.set(i64::from(status.phase == Phase::Leading));
        self.table_epoch.set(status.table_epoch as i64);
        self.nodes.set(status.nodes.len() as i64);
        self.nodes_alive.set(status.nodes.iter().filter(|node| node.lease_ms.is_some()).count() as i64);
        let without = status.slots_without_leader + status.slots_with_absent_leader;
        self.slots_without_leader.set(without as i64);
        self.slots_short.set(status.slots_short as i64);
        self.slots_waiting.set(status.slots_waiting as i64);
        self.slots_unclean.set(status.slots_unclean as i64);
        self.moves_under_way.set(status.moves as i64);
        self.leases_held_back.set(status.leases_held_back as i64);
    }
}
