//! Metrics of one shard as a member of a cluster.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use slotcast_engine::{
    shard::{ClusterStats, FollowStats, ReplicaStats},
    slot_state::SlotState,
};

use crate::wire::replica::ReplicaRefusal;

/// All metrics of one shard of a clustered data node. Without a cluster they are there and stay zero.
#[derive(Clone, Default)]
#[expect(missing_docs, reason = "each is described where it is registered")]
pub struct ClusterMetrics {
    slots: Family<State, Gauge>,
    pub table_epoch: Gauge,
    pub tables_refused: Gauge,
    pub control_plane: Gauge,
    pub lease: Gauge,
    pub promotions: Counter,
    pub promotion_time: PromotionTime,
    pub demotions: Counter,
    pub left: Counter,
    pub epochs_refused: Counter,
    pub tables_sent: Counter,
    pub followers: Gauge,
    pub full_links: Gauge,
    pub waiting_bytes: Gauge,
    pub leaders: Gauge,
    pub lag_revisions: Gauge,
    pub lag_ms: Gauge,
    pub out_of_sync: Gauge,
    accepted: Family<How, Gauge>,
    stale_heartbeats: Gauge,
    sent_batches: Gauge,
    sent_copies: Gauge,
    fell_behind: Gauge,
    taken_copies: Gauge,
    pub sent_bytes: Counter,
    pub received_bytes: Counter,
    pub sent_parts: Counter,
    pub gaps: Counter,
    pub link_failures: Counter,
    refused: Family<Refused, Counter>,
}

/// How long slots took from the table to Accept.
#[derive(Clone)]
pub struct PromotionTime(Histogram);

impl Default for PromotionTime {
    fn default() -> Self {
        // A follower in sync is to take 50 ms at most.
        let seconds = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];
        Self(Histogram::new(seconds))
    }
}

impl PromotionTime {
    /// A slot took so many nanoseconds.
    pub fn observe(&self, nanos: u64) {
        self.0.observe(nanos as f64 / 1e9);
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct How {
    how: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Refused {
    /// By this shard as the leader, or by the leader that it wants to follow.
    by: &'static str,
    reason: &'static str,
}

impl ClusterMetrics {
    /// Registers the metrics of one shard.
    pub fn new(registry: &mut Registry, shard: u32) -> Self {
        let registry = registry.sub_registry_with_label(("shard".into(), shard.to_string().into()));
        let it = Self::default();
        registry.register(
            "data_slots",
            "Slots by state: absent, following, migrating, accept, moved",
            it.slots.clone(),
        );
        for (name, help, gauge) in [
            ("data_table_epoch", "Epoch of the slot table that is followed; 0: none", &it.table_epoch),
            (
                "data_tables_refused",
                "Slot tables refused because they were older than the one that is followed",
                &it.tables_refused,
            ),
            (
                "data_control_plane_connected",
                "1 while a process of the control plane answers",
                &it.control_plane,
            ),
            (
                "data_node_lease",
                "1 while the control plane is known to count the node as alive; persistent publishers are refused otherwise",
                &it.lease,
            ),
            ("data_replica_followers", "Links of shards that follow slots here", &it.followers),
            (
                "data_replica_links_full",
                "Links of followers that take nothing: nothing is queued for them, each has a cursor per slot",
                &it.full_links,
            ),
            (
                "data_replica_waiting_bytes",
                "Bytes that wait in the buffers of followers' links, at most data.link_buffer_max and a megabyte for each",
                &it.waiting_bytes,
            ),
            ("data_replica_leaders", "Links to shards that lead slots followed here", &it.leaders),
            (
                "data_replica_lag_revisions",
                "Batches that the follower furthest behind lacks of one slot led here",
                &it.lag_revisions,
            ),
            (
                "data_replica_lag_milliseconds",
                "Age of the oldest batch that any follower lacks of a slot led here",
                &it.lag_ms,
            ),
            (
                "data_replicas_out_of_sync",
                "Followers, summed over the slots led here, that do not count as in sync",
                &it.out_of_sync,
            ),
            (
                "data_stale_heartbeats",
                "Heartbeats of sessions that route to other leaders than this shard knows of",
                &it.stale_heartbeats,
            ),
            ("data_replica_sent_batches", "Batches sent to followers", &it.sent_batches),
            ("data_replica_sent_copies", "Whole slots sent to followers to their end", &it.sent_copies),
            (
                "data_replica_fell_behind",
                "Times a follower of a slot was further behind than recent batches are kept",
                &it.fell_behind,
            ),
            ("data_replica_taken_copies", "Whole slots taken from leaders", &it.taken_copies),
        ] {
            registry.register(name, help, gauge.clone());
        }
        for (name, help, counter) in [
            ("data_slot_promotions", "Times this shard began to lead a slot or led it anew", &it.promotions),
            ("data_slot_demotions", "Times this shard became a follower of a slot it led", &it.demotions),
            ("data_slots_left", "Times this shard gave a slot up", &it.left),
            (
                "data_leader_epochs_refused",
                "Times a table named a leader epoch that the slot knows already or that is older",
                &it.epochs_refused,
            ),
            ("data_tables_sent", "Slot tables sent to sessions that had an older one", &it.tables_sent),
            ("data_replica_sent_bytes", "Bytes sent to followers", &it.sent_bytes),
            ("data_replica_received_bytes", "Bytes received from leaders", &it.received_bytes),
            (
                "data_replica_sent_parts",
                "Parts of whole slots sent to followers that were too far behind for batches",
                &it.sent_parts,
            ),
            (
                "data_replica_gaps",
                "Batches from a leader that did not fit what the follower has, so that it asked again",
                &it.gaps,
            ),
            (
                "data_replica_link_failures",
                "Links to leaders that could not be made, or were lost or given up",
                &it.link_failures,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        registry.register(
            "data_slots_accepted",
            "Slots that began to answer readers: because every linked session had confirmed them, or late because data.settle had passed",
            it.accepted.clone(),
        );
        registry.register(
            "data_promotion_seconds",
            "From a slot table that names this shard as the leader of a slot to when it answers readers",
            it.promotion_time.0.clone(),
        );
        registry.register(
            "data_replica_refused",
            "Slots that could not be followed, by who refused (this shard as leader, or the leader it asked) and reason",
            it.refused.clone(),
        );
        it
    }

    /// Slots by state.
    pub fn set_slots(&self, counts: impl Iterator<Item = (SlotState, usize)>) {
        for (state, count) in counts {
            self.slots.get_or_create(&State { state: state.label() }).set(count as i64);
        }
    }

    /// Takes over what the shard counts itself.
    pub fn observe(&self, cluster: &ClusterStats, sent: &ReplicaStats, taken: &FollowStats) {
        for (how, count) in [("confirmed", cluster.accepted_confirmed), ("late", cluster.accepted_late)] {
            self.accepted.get_or_create(&How { how }).set(count as i64);
        }
        self.stale_heartbeats.set(cluster.stale_heartbeats as i64);
        self.sent_batches.set(sent.batches as i64);
        self.sent_copies.set(sent.copies as i64);
        self.fell_behind.set(sent.lost as i64);
        self.taken_copies.set(taken.copies as i64);
    }

    /// Slots in a state, as it was last observed.
    pub fn slots_in(&self, state: SlotState) -> i64 {
        self.slots.get_or_create(&State { state: state.label() }).get()
    }

    /// A slot could not be followed: `here` tells whether this shard refused it as the leader.
    pub fn count_refused(&self, here: bool, reason: Option<ReplicaRefusal>) {
        let by = if here { "this" } else { "leader" };
        let reason = reason.map_or("unknown", ReplicaRefusal::label);
        self.refused.get_or_create(&Refused { by, reason }).inc();
    }
}
