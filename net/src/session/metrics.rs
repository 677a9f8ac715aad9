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

use crate::metrics::{Reason, registered, registered_as};

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
    pub claims_asked: Counter,
    pub resumes_deferred: Counter,
    pub contents_kept: Counter,
    pub diffs_received: Counter,
    pub diffs_without_change: Counter,
    pub diffs_older: Counter,
    pub diff_gaps: Counter,
    pub diff_contradictions: Counter,
    pub lists_amended: Counter,
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
        Self {
            clients: registered(registry, "session_clients", "Client connections open"),
            subscriptions: registered(
                registry,
                "session_subscriptions",
                "Subscriptions held, summed over clients",
            ),
            publishers: registered(
                registry,
                "session_publishers",
                "Live registrations of this session's clients",
            ),
            persistent_undecided: registered(
                registry,
                "session_persistent_writes_undecided",
                "Writes of persistent registrations that are neither durable nor refused yet",
            ),
            datums: registered(registry, "session_datums", "Data ids cached"),
            departures: registered(
                registry,
                "session_departures",
                "Dropped clients whose publishers are in their grace",
            ),
            storm: registered(
                registry,
                "session_drop_storm",
                "1 while a storm of drops stretches the grace to the session lease",
            ),
            push_stopped: registered(
                registry,
                "session_push_stopped",
                "1 while an operator holds all pushes of this core",
            ),
            ready: registered(
                registry,
                "session_ready",
                "1 when all links to leaders are up and, where a slot table is followed, there is one",
            ),
            links_up: registered(registry, "session_links_up", "Links to data node shards that are up"),
            links: registered(registry, "session_links", "Links to data node shards, by state"),
            leader_links_down: registered(
                registry,
                "session_leader_links_down",
                "Links that are not up although their shards lead slots",
            ),
            leaderless_slots: registered(
                registry,
                "session_leaderless_slots",
                "Slots of which nobody is known to lead them: writes and subscriptions of theirs wait",
            ),
            table_epoch: registered(
                registry,
                "session_table_epoch",
                "Epoch of the slot table that is followed; 0: none yet, or routes are configured",
            ),
            deferred: registered(
                registry,
                "session_deferred",
                "Writes and interests that a data node did not know to lead the slot of, and that wait to be told again",
            ),
            link_writes_in_flight: registered(
                registry,
                "session_link_writes_in_flight",
                "Write frames that a data node has not answered",
            ),
            frames_received: registered(registry, "session_frames_received", "Frames received from clients"),
            writes_received: registered(
                registry,
                "session_writes_received",
                "Puts and removals received from clients",
            ),
            pushes: registered(
                registry,
                "session_pushes",
                "Diffs written to clients, one per client and data id",
            ),
            snapshots: registered(registry, "session_snapshots", "Snapshots written to clients"),
            client_writes: registered(registry, "session_client_writes", "Socket writes to clients"),
            client_bytes: registered(registry, "session_client_sent_bytes", "Bytes written to clients"),
            accepted: registered(
                registry,
                "session_accepted",
                "Connections let in; those sent away are in session_client_errors",
            ),
            merged_diffs: registered(
                registry,
                "session_merged_diffs",
                "Diffs that took a client over several changes of a data id at once",
            ),
            client_drops: registered(
                registry,
                "session_client_drops",
                "Clients that dropped without a goodbye",
            ),
            client_timeouts: registered(
                registry,
                "session_client_timeouts",
                "Clients closed because they were silent for too long",
            ),
            drop_storms: registered(
                registry,
                "session_drop_storms",
                "Times that more than a tenth of the clients dropped within one grace",
            ),
            departed_publishers: registered(
                registry,
                "session_departed_publishers",
                "Registrations removed because their client left",
            ),
            slow_clients: registered(
                registry,
                "session_slow_clients",
                "Times a client took nothing for push_interval_max",
            ),
            slow_client_bytes: registered(
                registry,
                "session_slow_client_waiting_bytes",
                "Bytes that wait for clients whose sockets take nothing",
            ),
            resumed_current: registered(
                registry,
                "session_resumed_current",
                "Resumes answered with nothing new",
            ),
            claims_asked: registered(
                registry,
                "session_claims_asked",
                "Questions to leaders about what was removed since a list that a client brought",
            ),
            resumes_deferred: registered(
                registry,
                "session_resumes_deferred",
                "Resumes from a history that a new leader does not have, put off until it has heard of the owners of its list",
            ),
            contents_kept: registered(
                registry,
                "session_contents_kept",
                "Registrations kept with newer content than a new leader has, until it has heard of their owners",
            ),
            diffs_received: registered(
                registry,
                "session_diffs_received",
                "Diffs and snapshots received from data nodes",
            ),
            diffs_without_change: registered(
                registry,
                "session_diffs_without_change",
                "Of these, the ones that changed nothing",
            ),
            diffs_older: registered(
                registry,
                "session_diffs_older",
                "Of these, the ones that were older than the cache and not taken",
            ),
            diff_gaps: registered(
                registry,
                "session_diff_gaps",
                "Of these, the ones that did not follow the cache, so that a fresh answer was asked for",
            ),
            diff_contradictions: registered(
                registry,
                "session_diff_contradictions",
                "Of these, the ones that told another list than the same data node told of the same revision: not taken",
            ),
            lists_amended: registered(
                registry,
                "session_lists_amended",
                "Of these, the ones that changed a list without its revision, so that subscribers got it once more",
            ),
            digest_mismatches: registered(
                registry,
                "session_digest_mismatches",
                "Heartbeats whose digest differed at the data node",
            ),
            repaired_datums: registered(
                registry,
                "session_repaired_datums",
                "Data ids told again because their digests differed",
            ),
            link_faults: registered(registry, "session_link_faults", "Errors on links to data nodes"),
            tables_from_nodes: registered(
                registry,
                "session_tables_from_nodes",
                "Slot tables that a data node told before the control plane did",
            ),
            route_changes: registered(
                registry,
                "session_route_changes",
                "Slots that got another leader, or the same one in another epoch",
            ),
            moved_writes_resent: registered(
                registry,
                "session_moved_writes_resent",
                "Writes without an answer that were sent again because their slot got another leader",
            ),
            slot_moved_answers: registered(
                registry,
                "session_slot_moved_answers",
                "Writes and interests that a data node did not know to lead the slot of",
            ),
            deferred_retries: registered(
                registry,
                "session_deferred_retries",
                "Times that what waited for a slot was told again",
            ),
            stale_heartbeats: registered(
                registry,
                "session_stale_heartbeats",
                "Heartbeats that found a data node to lead other slots than this session takes it to",
            ),
            outcomes_of_former_leaders: registered(
                registry,
                "session_outcomes_of_former_leaders",
                "Outcomes of writes that did not count, for the slot had got another leader meanwhile",
            ),
            diffs_of_former_leaders: registered(
                registry,
                "session_diffs_of_former_leaders",
                "Diffs and snapshots that did not count, for they did not come from the slot's leader",
            ),
            client_errors: registered(
                registry,
                "session_client_errors",
                "Clients closed for a fault of theirs, by reason",
            ),
            writes_refused: registered(
                registry,
                "session_writes_refused",
                "Puts and removals refused, by reason",
            ),
            subscriptions_refused: registered(
                registry,
                "session_subscriptions_refused",
                "Subscriptions refused, by reason",
            ),
            fanout_delay: registered_as(
                registry,
                "push_delay_fanout_seconds",
                "From the first diff received from a data node to the last client written to",
                Histogram::new(exponential_buckets(50e-6, 2.0, 18)),
            ),
        }
    }
}
