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

use crate::metrics::Reason;

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
        let metrics = Self {
            links: Gauge::default(),
            links_behind: Counter::default(),
            link_errors: Family::default(),
            refused_links_cut: Counter::default(),
            frames_received: Counter::default(),
            write_frames: Counter::default(),
            writes: Counter::default(),
            refused: Family::default(),
            diffs_sent: Counter::default(),
            bytes_sent: Counter::default(),
            socket_writes: Counter::default(),
            digest_mismatches: Counter::default(),
            repaired: Counter::default(),
            apply_delay: Histogram::new(exponential_buckets(50e-6, 2.0, 18)),
            publishers: Gauge::default(),
            persistent: Gauge::default(),
            persistent_waiting: Gauge::default(),
            datums: Gauge::default(),
            tombstones: Gauge::default(),
            interests: Gauge::default(),
            readers_behind: Gauge::default(),
            leases_held_back: Gauge::default(),
            leases_ended: Gauge::default(),
            log_entries: Gauge::default(),
            arena: Family::default(),
            batches: Gauge::default(),
            serving: Gauge::default(),
        };
        registry.register("data_links", "Session links open", metrics.links.clone());
        registry.register(
            "data_links_fell_behind",
            "Times a link's buffer was full and it kept a revision only",
            metrics.links_behind.clone(),
        );
        registry.register(
            "data_link_errors",
            "Links closed for a fault of the peer, by reason",
            metrics.link_errors.clone(),
        );
        registry.register(
            "data_refused_links_cut",
            "Links reset because they did not read in time why they were refused",
            metrics.refused_links_cut.clone(),
        );
        registry.register(
            "data_frames_received",
            "Frames received from sessions",
            metrics.frames_received.clone(),
        );
        registry.register("data_write_frames", "Write frames taken", metrics.write_frames.clone());
        registry.register("data_writes", "Puts and removals decided", metrics.writes.clone());
        registry.register(
            "data_writes_refused",
            "Puts and removals refused, by reason",
            metrics.refused.clone(),
        );
        registry.register(
            "data_diffs_sent",
            "Diffs and snapshots sent, one per link and data id",
            metrics.diffs_sent.clone(),
        );
        registry.register(
            "data_socket_writes",
            "Writes to the sockets of sessions",
            metrics.socket_writes.clone(),
        );
        registry.register("data_sent_bytes", "Bytes sent to sessions", metrics.bytes_sent.clone());
        registry.register(
            "data_digest_mismatches",
            "Heartbeats whose digest differed from the shard's",
            metrics.digest_mismatches.clone(),
        );
        registry.register(
            "data_repaired_publishers",
            "Registrations removed because their session did not hold them",
            metrics.repaired.clone(),
        );
        registry.register(
            "push_delay_apply_seconds",
            "From the first write of a turn received to its diffs handed to the links",
            metrics.apply_delay.clone(),
        );
        registry.register("data_publishers", "Live registrations", metrics.publishers.clone());
        registry.register(
            "data_persistent_publishers",
            "Live registrations that stay until they are removed by request",
            metrics.persistent.clone(),
        );
        registry.register(
            "data_persistent_writes_waiting",
            "Write frames that wait for the disk before they are acknowledged",
            metrics.persistent_waiting.clone(),
        );
        registry.register("data_datums", "Data ids known", metrics.datums.clone());
        registry.register(
            "data_tombstones",
            "Removed registrations whose version is remembered",
            metrics.tombstones.clone(),
        );
        registry.register(
            "data_interests",
            "Data ids that links are interested in, summed over links",
            metrics.interests.clone(),
        );
        registry.register(
            "data_readers_behind",
            "Links that keep a revision only at the moment",
            metrics.readers_behind.clone(),
        );
        registry.register(
            "data_session_leases_held_back",
            "Overdue session leases kept because too many are overdue together",
            metrics.leases_held_back.clone(),
        );
        registry.register("data_session_leases_ended", "Session leases ended", metrics.leases_ended.clone());
        registry.register("data_change_log_entries", "Change log entries held", metrics.log_entries.clone());
        registry.register(
            "data_arena_bytes",
            "Arena memory by kind: live, dead, free",
            metrics.arena.clone(),
        );
        registry.register("data_batches_sealed", "Batches sealed", metrics.batches.clone());
        registry.register("data_serving", "1 once the shard answers readers", metrics.serving.clone());
        metrics
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
