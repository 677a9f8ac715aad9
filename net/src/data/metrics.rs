//! Metrics of a data node. Names carry their units; label sets are closed.

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
use slotcast_engine::{shard::ShardStats, slot::SlotCounts};

use crate::metrics::{Reason, registered, registered_as};

/// All metrics of one shard.
#[derive(Clone)]
#[expect(missing_docs, reason = "each is described where it is registered")]
pub struct DataMetrics {
    pub links: Gauge,
    pub links_behind: Counter,
    pub link_errors: Family<Reason, Counter>,
    pub refused_links_cut: Counter,
    pub frames_received: Counter,
    pub write_frames: Counter,
    pub writes: Counter,
    pub refused: Family<Reason, Counter>,
    pub diffs_sent: Counter,
    pub bytes_sent: Counter,
    pub socket_writes: Counter,
    pub digest_mismatches: Counter,
    pub repaired: Counter,
    pub apply_delay: Histogram,
    publishers: Gauge,
    persistent: Gauge,
    pub persistent_waiting: Gauge,
    datums: Gauge,
    tombstones: Gauge,
    interests: Gauge,
    readers_behind: Gauge,
    leases_held_back: Gauge,
    leases_ended: Gauge,
    log_entries: Gauge,
    arena: Family<Kind, Gauge>,
    batches: Gauge,
    /// 1 once readers are answered.
    pub serving: Gauge,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

impl DataMetrics {
    /// Registers the metrics of one shard.
    pub fn new(registry: &mut Registry, shard: u32) -> Self {
        let registry = registry.sub_registry_with_label(("shard".into(), shard.to_string().into()));
        Self {
            links: registered(registry, "data_links", "Session links open"),
            links_behind: registered(
                registry,
                "data_links_fell_behind",
                "Times a link's buffer was full and it kept a revision only",
            ),
            link_errors: registered(
                registry,
                "data_link_errors",
                "Links closed for a fault of the peer, by reason",
            ),
            refused_links_cut: registered(
                registry,
                "data_refused_links_cut",
                "Links reset because they did not read in time why they were refused",
            ),
            frames_received: registered(registry, "data_frames_received", "Frames received from sessions"),
            write_frames: registered(registry, "data_write_frames", "Write frames taken"),
            writes: registered(registry, "data_writes", "Puts and removals decided"),
            refused: registered(registry, "data_writes_refused", "Puts and removals refused, by reason"),
            diffs_sent: registered(
                registry,
                "data_diffs_sent",
                "Diffs and snapshots sent, one per link and data id",
            ),
            bytes_sent: registered(registry, "data_sent_bytes", "Bytes sent to sessions"),
            socket_writes: registered(registry, "data_socket_writes", "Writes to the sockets of sessions"),
            digest_mismatches: registered(
                registry,
                "data_digest_mismatches",
                "Heartbeats whose digest differed from the shard's",
            ),
            repaired: registered(
                registry,
                "data_repaired_publishers",
                "Registrations removed because their session did not hold them",
            ),
            apply_delay: registered_as(
                registry,
                "push_delay_apply_seconds",
                "From the first write of a turn received to its diffs handed to the links",
                Histogram::new(exponential_buckets(50e-6, 2.0, 18)),
            ),
            publishers: registered(registry, "data_publishers", "Live registrations"),
            persistent: registered(
                registry,
                "data_persistent_publishers",
                "Live registrations that stay until they are removed by request",
            ),
            persistent_waiting: registered(
                registry,
                "data_persistent_writes_waiting",
                "Write frames that wait for the disk before they are acknowledged",
            ),
            datums: registered(registry, "data_datums", "Data ids known"),
            tombstones: registered(
                registry,
                "data_tombstones",
                "Removed registrations whose version is remembered",
            ),
            interests: registered(
                registry,
                "data_interests",
                "Data ids that links are interested in, summed over links",
            ),
            readers_behind: registered(
                registry,
                "data_readers_behind",
                "Links that keep a revision only at the moment",
            ),
            leases_held_back: registered(
                registry,
                "data_session_leases_held_back",
                "Overdue session leases kept because too many are overdue together",
            ),
            leases_ended: registered(registry, "data_session_leases_ended", "Session leases ended"),
            log_entries: registered(registry, "data_change_log_entries", "Change log entries held"),
            arena: registered(registry, "data_arena_bytes", "Arena memory by kind: live, dead, free"),
            batches: registered(registry, "data_batches_sealed", "Batches sealed"),
            serving: registered(registry, "data_serving", "1 once the shard answers readers"),
        }
    }

    /// Takes over what the shard counts itself.
    pub fn observe(
        &self,
        counts: &SlotCounts,
        stats: &ShardStats,
        (interests, behind, held_back): (usize, usize, usize),
        serving: bool,
    ) {
        self.publishers.set(counts.publishers as i64);
        self.persistent.set(counts.persistent as i64);
        self.datums.set(counts.datums as i64);
        self.tombstones.set(counts.tombstones as i64);
        self.log_entries.set(counts.log_entries as i64);
        self.interests.set(interests as i64);
        self.readers_behind.set(behind as i64);
        self.leases_held_back.set(held_back as i64);
        self.leases_ended.set(stats.leases_ended as i64);
        self.batches.set(stats.batches as i64);
        self.serving.set(i64::from(serving));
        for (kind, bytes) in
            [("live", counts.arena.live), ("dead", counts.arena.dead), ("free", counts.arena.free)]
        {
            self.arena.get_or_create(&Kind { kind }).set(bytes as i64);
        }
    }
}
