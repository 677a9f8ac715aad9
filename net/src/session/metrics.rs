//! Metrics of a session core. Names carry their units; label sets are closed.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::metrics::Reason;

/// Where a link stands.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct LinkLabel {
    pub(super) state: &'static str,
}

/// All metrics of one session core.
#[derive(Clone)]
#[expect(missing_docs, reason = "each is described where it is registered")]
pub struct SessionMetrics {
    pub clients: Gauge,
    pub subscriptions: Gauge,
    pub publishers: Gauge,
    pub persistent_undecided: Gauge,
    pub datums: Gauge,
    pub departures: Gauge,
    pub storm: Gauge,
    pub push_stopped: Gauge,
    pub ready: Gauge,
    pub links_up: Gauge,
    pub links: Family<LinkLabel, Gauge>,
    pub leader_links_down: Gauge,
    pub leaderless_slots: Gauge,
    pub table_epoch: Gauge,
    pub deferred: Gauge,
    pub link_writes_in_flight: Gauge,
    pub frames_received: Counter,
    pub writes_received: Counter,
    pub pushes: Counter,
    pub snapshots: Counter,
    pub client_writes: Counter,
    pub client_bytes: Counter,
    pub accepted: Counter,
    pub merged_diffs: Counter,
    pub client_drops: Counter,
    pub client_timeouts: Counter,
    pub drop_storms: Counter,
    pub departed_publishers: Counter,
    pub slow_clients: Counter,
    pub slow_client_bytes: Gauge,
    pub resumed_current: Counter,
    pub diffs_received: Counter,
    pub diffs_without_change: Counter,
    pub diffs_older: Counter,
    pub diff_gaps: Counter,
    pub digest_mismatches: Counter,
    pub repaired_datums: Counter,
    pub link_faults: Counter,
    pub tables_from_nodes: Counter,
    pub route_changes: Counter,
    pub moved_writes_resent: Counter,
    pub slot_moved_answers: Counter,
    pub deferred_retries: Counter,
    pub stale_heartbeats: Counter,
    pub outcomes_of_former_leaders: Counter,
    pub diffs_of_former_leaders: Counter,
    pub client_errors: Family<Reason, Counter>,
    pub writes_refused: Family<Reason, Counter>,
    pub subscriptions_refused: Family<Reason, Counter>,
    pub fanout_delay: Histogram,
}

impl SessionMetrics {
    /// Registers the metrics of one session core.
    pub fn new(registry: &mut Registry, core: u32) -> Self {
        let registry = registry.sub_registry_with_label(("core".into(), core.to_string().into()));
        let metrics = Self {
            clients: Gauge::default(),
            subscriptions: Gauge::default(),
            publishers: Gauge::default(),
            persistent_undecided: Gauge::default(),
            datums: Gauge::default(),
            departures: Gauge::default(),
            storm: Gauge::default(),
            push_stopped: Gauge::default(),
            ready: Gauge::default(),
            links_up: Gauge::default(),
            links: Family::default(),
            leader_links_down: Gauge::default(),
            leaderless_slots: Gauge::default(),
            table_epoch: Gauge::default(),
            deferred: Gauge::default(),
            link_writes_in_flight: Gauge::default(),
            frames_received: Counter::default(),
            writes_received: Counter::default(),
            pushes: Counter::default(),
            snapshots: Counter::default(),
            client_writes: Counter::default(),
            client_bytes: Counter::default(),
            accepted: Counter::default(),
            merged_diffs: Counter::default(),
            client_drops: Counter::default(),
            client_timeouts: Counter::default(),
            drop_storms: Counter::default(),
            departed_publishers: Counter::default(),
            slow_clients: Counter::default(),
            slow_client_bytes: Gauge::default(),
            resumed_current: Counter::default(),
            diffs_received: Counter::default(),
            diffs_without_change: Counter::default(),
            diffs_older: Counter::default(),
            diff_gaps: Counter::default(),
            digest_mismatches: Counter::default(),
            repaired_datums: Counter::default(),
            link_faults: Counter::default(),
            tables_from_nodes: Counter::default(),
            route_changes: Counter::default(),
            moved_writes_resent: Counter::default(),
            slot_moved_answers: Counter::default(),
            deferred_retries: Counter::default(),
            stale_heartbeats: Counter::default(),
            outcomes_of_former_leaders: Counter::default(),
            diffs_of_former_leaders: Counter::default(),
            client_errors: Family::default(),
            writes_refused: Family::default(),
            subscriptions_refused: Family::default(),
            fanout_delay: Histogram::new(exponential_buckets(50e-6, 2.0, 18)),
        };
        registry.register("session_clients", "Client connections open", metrics.clients.clone());
        registry.register(
            "session_subscriptions",
            "Subscriptions held, summed over clients",
            metrics.subscriptions.clone(),
        );
        registry.register(
            "session_publishers",
            "Live registrations of this session's clients",
            metrics.publishers.clone(),
        );
        registry.register(
            "session_persistent_writes_undecided",
            "Writes of persistent registrations that are neither durable nor refused yet",
            metrics.persistent_undecided.clone(),
        );
        registry.register("session_datums", "Data ids cached", metrics.datums.clone());
        registry.register(
            "session_departures",
            "Dropped clients whose publishers are in their grace",
            metrics.departures.clone(),
        );
        registry.register(
            "session_drop_storm",
            "1 while a storm of drops stretches the grace to the session lease",
            metrics.storm.clone(),
        );
        registry.register(
            "session_push_stopped",
            "1 while an operator holds all pushes of this core",
            metrics.push_stopped.clone(),
        );
        registry.register(
            "session_links_up",
            "Links to data node shards that are up",
            metrics.links_up.clone(),
        );
        registry.register(
            "session_link_writes_in_flight",
            "Write frames that a data node has not answered",
            metrics.link_writes_in_flight.clone(),
        );
        registry.register(
            "session_frames_received",
            "Frames received from clients",
            metrics.frames_received.clone(),
        );
        registry.register(
            "session_writes_received",
            "Puts and removals received from clients",
            metrics.writes_received.clone(),
        );
        registry.register(
            "session_pushes",
            "Diffs written to clients, one per client and data id",
            metrics.pushes.clone(),
        );
        registry.register("session_snapshots", "Snapshots written to clients", metrics.snapshots.clone());
        registry.register("session_client_writes", "Socket writes to clients", metrics.client_writes.clone());
        registry.register(
            "session_client_sent_bytes",
            "Bytes written to clients",
            metrics.client_bytes.clone(),
        );
        registry.register(
            "session_accepted",
            "Connections let in; those sent away are in session_client_errors",
            metrics.accepted.clone(),
        );
        registry.register(
            "session_merged_diffs",
            "Diffs that took a client over several changes of a data id at once",
            metrics.merged_diffs.clone(),
        );
        registry.register(
            "session_client_drops",
            "Clients that dropped without a goodbye",
            metrics.client_drops.clone(),
        );
        registry.register(
            "session_client_timeouts",
            "Clients closed because they were silent for too long",
            metrics.client_timeouts.clone(),
        );
        registry.register(
            "session_drop_storms",
            "Times that more than a tenth of the clients dropped within one grace",
            metrics.drop_storms.clone(),
        );
        registry.register(
            "session_departed_publishers",
            "Registrations removed because their client left",
            metrics.departed_publishers.clone(),
        );
        registry.register(
            "session_slow_clients",
            "Times a client took nothing for push_interval_max",
            metrics.slow_clients.clone(),
        );
        registry.register(
            "session_slow_client_waiting_bytes",
            "Bytes that wait for clients whose sockets take nothing",
            metrics.slow_client_bytes.clone(),
        );
        registry.register(
            "session_resumed_current",
            "Resumes answered with nothing new",
            metrics.resumed_current.clone(),
        );
        registry.register(
            "session_diffs_received",
            "Diffs and snapshots received from data nodes",
            metrics.diffs_received.clone(),
        );
        registry.register(
            "session_diffs_without_change",
            "Of these, the ones that changed nothing",
            metrics.diffs_without_change.clone(),
        );
        registry.register(
            "session_diffs_older",
            "Of these, the ones that were older than the cache and not taken",
            metrics.diffs_older.clone(),
        );
        registry.register(
            "session_diff_gaps",
            "Of these, the ones that did not follow the cache, so that a fresh answer was asked for",
            metrics.diff_gaps.clone(),
        );
        registry.register(
            "session_digest_mismatches",
            "Heartbeats whose digest differed at the data node",
            metrics.digest_mismatches.clone(),
        );
        registry.register(
            "session_repaired_datums",
            "Data ids told again because their digests differed",
            metrics.repaired_datums.clone(),
        );
        registry.register(
            "session_link_faults",
            "Errors on links to data nodes",
            metrics.link_faults.clone(),
        );
        metrics.register_routes(registry);
        registry.register(
            "session_client_errors",
            "Clients closed for a fault of theirs, by reason",
            metrics.client_errors.clone(),
        );
        registry.register(
            "session_writes_refused",
            "Puts and removals refused, by reason",
            metrics.writes_refused.clone(),
        );
        registry.register(
            "session_subscriptions_refused",
            "Subscriptions refused, by reason",
            metrics.subscriptions_refused.clone(),
        );
        registry.register(
            "push_delay_fanout_seconds",
            "From the first diff received from a data node to the last client written to",
            metrics.fanout_delay.clone(),
        );
        metrics
    }

    /// What is about leaders and where they are.
    fn register_routes(&self, registry: &mut Registry) {
        registry.register(
            "session_ready",
            "1 when all links to leaders are up and, where a slot table is followed, there is one",
            self.ready.clone(),
        );
        registry.register("session_links", "Links to data node shards, by state", self.links.clone());
        registry.register(
            "session_leader_links_down",
            "Links that are not up although their shards lead slots",
            self.leader_links_down.clone(),
        );
        registry.register(
            "session_leaderless_slots",
            "Slots of which nobody is known to lead them: writes and subscriptions of theirs wait",
            self.leaderless_slots.clone(),
        );
        registry.register(
            "session_table_epoch",
            "Epoch of the slot table that is followed; 0: none yet, or routes are configured",
            self.table_epoch.clone(),
        );
        registry.register(
            "session_deferred",
            "Writes and interests that a data node did not know to lead the slot of, and that wait to be told again",
            self.deferred.clone(),
        );
        registry.register(
            "session_tables_from_nodes",
            "Slot tables that a data node told before the control plane did",
            self.tables_from_nodes.clone(),
        );
        registry.register(
            "session_route_changes",
            "Slots that got another leader, or the same one in another epoch",
            self.route_changes.clone(),
        );
        registry.register(
            "session_moved_writes_resent",
            "Writes without an answer that were sent again because their slot got another leader",
            self.moved_writes_resent.clone(),
        );
        registry.register(
            "session_slot_moved_answers",
            "Writes and interests that a data node did not know to lead the slot of",
            self.slot_moved_answers.clone(),
        );
        registry.register(
            "session_deferred_retries",
            "Times that what waited for a slot was told again",
            self.deferred_retries.clone(),
        );
        registry.register(
            "session_stale_heartbeats",
            "Heartbeats that found a data node to lead other slots than this session takes it to",
            self.stale_heartbeats.clone(),
        );
        registry.register(
            "session_outcomes_of_former_leaders",
            "Outcomes of writes that did not count, for the slot had got another leader meanwhile",
            self.outcomes_of_former_leaders.clone(),
        );
        registry.register(
            "session_diffs_of_former_leaders",
            "Diffs and snapshots that did not count, for they did not come from the slot's leader",
            self.diffs_of_former_leaders.clone(),
        );
    }
}
