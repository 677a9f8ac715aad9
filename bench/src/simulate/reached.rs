//! What runs have reached: a seed that reaches nothing shows nothing.

use slotcast_engine::shard::ShardStats;
use slotcast_net::meta::core::MetaCounters;

/// Reached in few seeds, or in none while all is well.
pub const RARE: [&str; 12] = [
    "gaps",
    "older_diffs",
    "lists_amended",
    "repaired_removals",
    "refused_frames",
    "stale_replays",
    "stale_contents",
    "kept_contents",
    "resumes_deferred",
    "unheard_moves",
    "unclean_slots",
    "leases_released",
];

/// Only there with a control plane.
pub const OF_CLUSTER: [&str; 34] = [
    "full_disks",
    "store_away",
    "store_slow",
    "store_set_back",
    "clocks_set_back",
    "isolations",
    "strangers",
    "twins_taken_in",
    "peers_refused",
    "foreign_refused",
    "future_tables",
    "lies_refused",
    "older_tables",
    "tables",
    "tables_adopted",
    "later_tables",
    "forks",
    "migrations",
    "persistent_refused",
    "not_durable_yet",
    "unclean_slots",
    "losses_detected",
    "meta_restarts",
    "store_troubles",
    "drains",
    "promotions",
    "demotions",
    "led_from_nothing",
    "slots_left",
    "accepts_confirmed",
    "accepts_late",
    "copies_compared",
    "kept_contents",
    "resumes_deferred",
];

impl Reached {
    /// Takes in what a shard did in its life.
    pub fn count_shard(&mut self, stats: &ShardStats) {
        self.tombstones_dropped += stats.tombstones_dropped;
        self.leases_ended += stats.leases_ended;
        self.snapshots += stats.snapshots;
        self.diffs += stats.diffs;
    }

    /// Takes in what a process of the control plane did in its life.
    pub fn count_meta(&mut self, counters: &MetaCounters) {
        self.tables += counters.tables;
        self.tables_adopted += counters.tables_adopted;
        self.peers_refused += counters.refused_peers;
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $field:ident)*) => {
        /// Everything that was reached, summed over seeds.
        #[derive(Default, Clone, Debug, PartialEq, Eq)]
        pub struct Reached {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl Reached {
            /// The numbers by name.
            pub fn fields(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field)),*]
            }

            /// Takes another run in.
            pub fn add(&mut self, other: &Reached) {
                $(self.$field += other.$field;)*
            }
        }
    };
}

counters! {
    /// What clients were asked to do.
    operations
    /// Faults inflicted.
    faults
    /// Turns of roles.
    turns
    /// Bytes that went over the network.
    bytes
    /// Links of sessions that were lost.
    link_losses
    /// Connections of clients that were lost.
    client_losses
    /// Data nodes that crashed.
    node_restarts
    /// Sessions that crashed.
    session_restarts
    /// Session incarnations that ended because they were refused.
    incarnations_refused
    /// Connections that one end learnt the end of before the other.
    half_open
    /// Pieces that stood still before a partition.
    stalls
    /// Connects to hosts that were down.
    connects_refused
    /// Hosts that stood still for a while.
    pauses
    /// Clocks that jumped.
    clock_jumps
    /// Processes of the control plane that crashed.
    meta_restarts
    /// Times the store of the slot table did not answer, was slow or was set back.
    store_troubles
    /// Times it did not answer.
    store_away
    /// Times it was slow.
    store_slow
    /// Times it was restored from an old backup.
    store_set_back
    /// Clocks that were set back by an hour.
    clocks_set_back
    /// Disks that were full for a while.
    full_disks
    /// Data nodes that were cut off from several hosts at once.
    isolations
    /// Processes that should not be there.
    strangers
    /// Data nodes with the id of another one that were taken for it, while that one was away.
    twins_taken_in
    /// Data nodes and sessions that the control plane refused: a second one of an id, of another cluster, with other slots.
    peers_refused
    /// Refusals of somebody from another cluster, or with other slots, by data nodes and the control plane.
    foreign_refused
    /// Claims of sessions to have a slot table from the future.
    future_tables
    /// Refusals of followers that said they had what their leader never made.
    lies_refused
    /// Older slot tables told to somebody who had a newer one.
    older_tables
    /// Slot tables that the control plane made.
    tables
    /// Slot tables that it took over from nodes, because its store had lost them.
    tables_adopted
    /// Slot tables that data nodes and sessions went over to.
    later_tables
    /// Data nodes that an operator emptied.
    drains
    /// Slots led by a node that followed them.
    promotions
    /// Slots that a node stopped leading.
    demotions
    /// Promotions to a history that lacks some of what the leader before had told.
    forks
    /// Slots that went from a living leader to another.
    migrations
    /// Slots led by a node that had nothing of them.
    led_from_nothing
    /// Slots that a node let go of.
    slots_left
    /// Slots answered from because every linked session had confirmed them.
    accepts_confirmed
    /// Slots answered from because they had waited for long enough.
    accepts_late
    /// Lists of followers compared with the leader's at the same revision.
    copies_compared
    /// Lone losses of data nodes after which others answered in time.
    losses_detected
    /// Changes of persistent registrations that were acknowledged.
    persistent_acknowledged
    /// Those that were refused at first because the disk was full or behind.
    persistent_refused
    /// Those that were refused at first because no control plane vouched for the leader.
    not_durable_yet
    /// Slots of which persistent registrations may be lost with a disk, as their node's place was taken.
    unclean_slots
    /// Operations that disks carried out.
    disk_operations
    /// Slots that data nodes found on their disks.
    recovered_slots
    /// Connections that clients gave up.
    client_drops
    /// Storms of drops that sessions saw.
    storms
    /// Clients that sessions closed because they were silent.
    clients_timed_out
    /// Clients that sessions found slow.
    slow_clients
    /// Resumes of clients that lacked nothing.
    resumes_current
    /// Resumes by a diff.
    resumes_diff
    /// Resumes by a snapshot.
    resumes_snapshot
    /// Diffs that did not follow what a session had.
    gaps
    /// Diffs that were older than what a session had.
    older_diffs
    /// Lists that changed in a session without another revision.
    lists_amended
    /// Snapshots that data nodes handed out.
    snapshots
    /// Diffs that they handed out.
    diffs
    /// Readers that fell behind.
    readers_behind
    /// Sends that the socket took a part of.
    short_sends
    /// Sends that it took nothing of.
    busy_sends
    /// Leases of sessions that ended.
    leases_ended
    /// Leases that were held back until an operator said that the sessions were gone.
    leases_released
    /// Registrations that went because their clients had left.
    departures
    /// Registrations that another session took over.
    moves
    /// Data ids repaired after digests differed.
    repairs
    /// Registrations removed because their session does not hold them.
    repaired_removals
    /// Registrations kept by subscribers because absence is not removal.
    retained
    /// Tombstones dropped.
    tombstones_dropped
    /// Removals that clients got acknowledged.
    removals_acknowledged
    /// Frames that clients refused.
    refused_frames
    /// Updates that clients got.
    updates
    /// Removed registrations that came back for a while with a session that had not heard of the removal.
    stale_replays
    /// Older contents that came back for a while in the same way.
    stale_contents
    /// Lists that kept a newer content than a new leader had.
    kept_contents
    /// Resumes that a session put off until the owners of its list were known.
    resumes_deferred
    /// Registrations that went with a session that was not their owner any more, as who asked had not heard.
    unheard_moves
}
