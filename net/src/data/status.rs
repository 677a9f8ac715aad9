//! What a shard tells an operator about its memory and its compaction, in words and as metrics.

use std::collections::BTreeMap;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use serde::{Deserialize, Serialize};
use slotcast_engine::{
    id::Nanos,
    memory::Memory,
    shard::{CompactionState, CompactionStatus, Shard},
};

use crate::data::compaction::CompactionOptions;

/// Memory of a shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// Which shard.
    pub shard: u32,
    /// Live registrations.
    pub publishers: usize,
    /// Data ids known.
    pub data_ids: usize,
    /// Bytes by kind.
    pub bytes: BTreeMap<String, usize>,
    /// All kinds together.
    pub total_bytes: usize,
    /// All kinds by live registrations; 0 without any.
    pub bytes_per_publisher: f64,
}

/// Leases of a shard's sessions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeaseReport {
    /// Which shard.
    pub shard: u32,
    /// Session incarnations whose leases run, with those that are held back.
    pub sessions: usize,
    /// Leases that should have ended but are kept, because too many ended together.
    pub held_back: usize,
    /// Of those the first [`LEASES_TOLD_MAX`].
    pub silent: Vec<SilentSession>,
    /// Of those that end now because an operator has said that the sessions are gone.
    pub released: usize,
}

/// A session that is not heard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SilentSession {
    /// The session incarnation.
    pub session: String,
    /// For how long it has not been heard; absent: never since this process leads what the session has published.
    pub silent_s: Option<f64>,
}

/// Sessions listed in a [`LeaseReport`].
pub const LEASES_TOLD_MAX: usize = 1000;

impl LeaseReport {
    /// What a shard tells now.
    pub fn of(shard: &Shard, released: usize, now: Nanos) -> Self {
        let silent = shard.leases_held_back().take(LEASES_TOLD_MAX).map(|it| SilentSession {
            session: format!("{:016x}", it.session.0),
            silent_s: it.silent_since.map(|since| now.since(since) as f64 / 1e9),
        });
        Self {
            shard: shard.placement().0,
            sessions: shard.sessions(),
            held_back: shard.leases_held_back().count(),
            silent: silent.collect(),
            released,
        }
    }
}

/// Compaction of a shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names of CompactionStatus, which describes them")]
pub struct CompactionReport {
    pub shard: u32,
    /// `paused`, `waiting` or `running`.
    pub state: String,
    pub off_peak: bool,
    pub due_in_ms: Option<u64>,
    pub slots_done: Option<usize>,
    pub slots: Option<usize>,
    pub last_round_ms: Option<u64>,
    pub rounds: u64,
    pub steps: u64,
    pub records_walked: u64,
    pub records_moved: u64,
    pub bytes_walked: u64,
    pub segments_emptied: u64,
    pub history_dropped: u64,
    pub dead_due_bytes: usize,
    pub dead_in_full_segments_bytes: usize,
    pub dead_in_open_segments_bytes: usize,
    pub history_entries: usize,
    pub history_bytes: usize,
    pub history_age_s: Option<f64>,
    pub readers_behind: usize,
    pub oldest_reader: Option<OldestReaderReport>,
    pub snapshot_scan_slot: Option<u16>,
    /// What keeps dead bytes and old history from going now, in words; empty: nothing does.
    pub held_up_by: Vec<String>,
    /// What compaction is told, by the names of the configuration.
    pub settings: BTreeMap<String, String>,
}

/// The reader that is furthest behind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names of OldestReader, which describes them")]
pub struct OldestReaderReport {
    pub session: Option<String>,
    pub slot: u16,
    pub at: String,
    /// Absent when it is of an earlier leader epoch.
    pub behind_revisions: Option<u64>,
    pub gets_snapshot: bool,
}

impl MemoryReport {
    /// What a shard tells now.
    pub fn of(shard: &Shard) -> Self {
        let (memory, counts) = (shard.memory(), shard.counts());
        Self::new(shard.placement().0, memory, counts.publishers, counts.datums)
    }

    fn new(shard: u32, memory: Memory, publishers: usize, data_ids: usize) -> Self {
        let total_bytes = memory.total();
        let bytes = memory.kinds().into_iter().map(|(kind, bytes)| (kind.into(), bytes)).collect();
        let bytes_per_publisher = if publishers > 0 { total_bytes as f64 / publishers as f64 } else { 0.0 };
        Self { shard, publishers, data_ids, bytes, total_bytes, bytes_per_publisher }
    }
}

impl CompactionReport {
    /// What a shard tells now.
    pub fn of(shard: &Shard, options: &CompactionOptions, now: Nanos) -> Self {
        let status = shard.compaction_status(now);
        let oldest_reader = status.oldest_reader.map(|oldest| OldestReaderReport {
            session: oldest.session.map(|session| format!("{:016x}", session.0)),
            slot: oldest.slot.0,
            at: oldest.at.to_string(),
            behind_revisions: (oldest.behind != u64::MAX).then_some(oldest.behind),
            gets_snapshot: oldest.gets_snapshot,
        });
        Self {
            shard: shard.placement().0,
            state: status.state.label().into(),
            off_peak: status.off_peak,
            due_in_ms: status.due.map(|due| due.since(now) / 1_000_000),
            slots_done: status.progress.map(|(done, _)| done),
            slots: status.progress.map(|(_, slots)| slots),
            last_round_ms: status.last_round.map(|nanos| nanos / 1_000_000),
            rounds: status.stats.rounds,
            steps: status.stats.steps,
            records_walked: status.stats.records_walked,
            records_moved: status.stats.records_moved,
            bytes_walked: status.stats.bytes_walked,
            segments_emptied: status.stats.segments_emptied,
            history_dropped: status.stats.history_dropped,
            dead_due_bytes: status.dead_due,
            dead_in_full_segments_bytes: status.dead_in_full_segments,
            dead_in_open_segments_bytes: status.dead_in_open_segments,
            history_entries: status.history_entries,
            history_bytes: status.history_bytes,
            history_age_s: status.history_age.map(|nanos| nanos as f64 / 1e9),
            readers_behind: status.readers_behind,
            oldest_reader,
            snapshot_scan_slot: status.snapshot_scan.map(|slot| slot.0),
            held_up_by: held_up_by(&status),
            settings: options.all().map(|(key, value)| (key.into(), value)).collect(),
        }
    }
}

fn held_up_by(status: &CompactionStatus) -> Vec<String> {
    let mut all = Vec::new();
    if status.state == CompactionState::Paused {
        all.push("it is paused by an operator: resume it, or run one round".into());
    }
    if status.dead_in_full_segments > 0 {
        let bytes = status.dead_in_full_segments;
        all.push(format!("{bytes} dead bytes lie in segments fuller than arena_utilization_min"));
    }
    if status.dead_in_open_segments > 0 {
        let bytes = status.dead_in_open_segments;
        all.push(format!("{bytes} dead bytes lie in segments that still take records, one per slot"));
    }
    all
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Waits {
    waits_for: &'static str,
}

/// Metrics of one shard's memory and compaction.
#[derive(Clone)]
pub struct OperationMetrics {
    memory: Family<Kind, Gauge>,
    state: Family<State, Gauge>,
    off_peak: Gauge,
    rounds: Gauge,
    steps: Gauge,
    records: Family<Kind, Gauge>,
    walked_bytes: Gauge,
    segments_emptied: Gauge,
    history_dropped: Gauge,
    dead: Family<Waits, Gauge>,
    history_bytes: Gauge,
    history_age: Gauge,
    oldest_reader: Gauge,
    reader_beyond_history: Gauge,
    snapshot_scan: Gauge,
    pub(super) step_time: Histogram,
}

impl OperationMetrics {
    /// Registers the metrics of one shard.
    pub fn new(registry: &mut Registry, shard: u32) -> Self {
        let registry = registry.sub_registry_with_label(("shard".into(), shard.to_string().into()));
        let it = Self {
            memory: Family::default(),
            state: Family::default(),
            off_peak: Gauge::default(),
            rounds: Gauge::default(),
            steps: Gauge::default(),
            records: Family::default(),
            walked_bytes: Gauge::default(),
            segments_emptied: Gauge::default(),
            history_dropped: Gauge::default(),
            dead: Family::default(),
            history_bytes: Gauge::default(),
            history_age: Gauge::default(),
            oldest_reader: Gauge::default(),
            reader_beyond_history: Gauge::default(),
            snapshot_scan: Gauge::default(),
            step_time: Histogram::new(exponential_buckets(1e-6, 2.0, 18)),
        };
        registry.register(
            "data_memory_bytes",
            "Memory by kind: payload, dead, free, index, history, tombstones, readers, batches, insight",
            it.memory.clone(),
        );
        registry.register(
            "data_compaction_state",
            "1 for the state that compaction is in: paused, waiting, running",
            it.state.clone(),
        );
        registry.register(
            "data_compaction_off_peak",
            "1 while the off-peak settings count",
            it.off_peak.clone(),
        );
        registry.register("data_compaction_rounds", "Rounds over all slots finished", it.rounds.clone());
        registry.register("data_compaction_steps", "Steps taken", it.steps.clone());
        registry.register(
            "data_compaction_records",
            "Records by what compaction did to them: walked over, or moved",
            it.records.clone(),
        );
        registry.register("data_compaction_walked_bytes", "Arena bytes walked over", it.walked_bytes.clone());
        registry.register("data_segments_emptied", "Segments emptied", it.segments_emptied.clone());
        registry.register(
            "data_history_dropped_entries",
            "Change log entries dropped by compaction because they were too old or too many",
            it.history_dropped.clone(),
        );
        registry.register(
            "data_dead_bytes",
            "Dead bytes by what they wait for: the next round, a segment too full to be emptied, one still open",
            it.dead.clone(),
        );
        registry.register(
            "data_history_entry_bytes",
            "Bytes of change log entries held",
            it.history_bytes.clone(),
        );
        registry.register(
            "data_history_age_seconds",
            "Age of the oldest change log entry",
            it.history_age.clone(),
        );
        registry.register(
            "data_oldest_reader_behind_revisions",
            "Revisions that the link furthest behind lacks of one slot; -1 if it is of an earlier leader epoch",
            it.oldest_reader.clone(),
        );
        registry.register(
            "data_oldest_reader_beyond_history",
            "1 while the link furthest behind will get snapshots because the change log does not reach it",
            it.reader_beyond_history.clone(),
        );
        registry.register(
            "data_snapshot_scan",
            "1 while a snapshot of a slot is being written",
            it.snapshot_scan.clone(),
        );
        registry.register(
            "data_compaction_step_seconds",
            "Time that a step of compaction took from the shard",
            it.step_time.clone(),
        );
        it
    }

    /// Takes over what the shard counts itself.
    pub fn observe(&self, memory: &Memory, status: &CompactionStatus) {
        for (kind, bytes) in memory.kinds() {
            self.memory.get_or_create(&Kind { kind }).set(bytes as i64);
        }
        for state in CompactionState::ALL {
            let is = i64::from(state == status.state);
            self.state.get_or_create(&State { state: state.label() }).set(is);
        }
        let stats = &status.stats;
        self.off_peak.set(i64::from(status.off_peak));
        self.rounds.set(stats.rounds as i64);
        self.steps.set(stats.steps as i64);
        for (kind, records) in [("walked", stats.records_walked), ("moved", stats.records_moved)] {
            self.records.get_or_create(&Kind { kind }).set(records as i64);
        }
        self.walked_bytes.set(stats.bytes_walked as i64);
        self.segments_emptied.set(stats.segments_emptied as i64);
        self.history_dropped.set(stats.history_dropped as i64);
        for (waits_for, bytes) in [
            ("round", status.dead_due),
            ("full_segment", status.dead_in_full_segments),
            ("open_segment", status.dead_in_open_segments),
        ] {
            self.dead.get_or_create(&Waits { waits_for }).set(bytes as i64);
        }
        self.history_bytes.set(status.history_bytes as i64);
        self.history_age.set(status.history_age.map_or(0, |nanos| nanos / Nanos::SECOND) as i64);
        let behind = status.oldest_reader.map_or(0, |oldest| i64::try_from(oldest.behind).unwrap_or(-1));
        self.oldest_reader.set(behind);
        let beyond = status.oldest_reader.is_some_and(|oldest| oldest.gets_snapshot);
        self.reader_beyond_history.set(i64::from(beyond));
        self.snapshot_scan.set(i64::from(status.snapshot_scan.is_some()));
    }
}
