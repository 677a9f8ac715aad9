//! What a session core is told at its start.

use std::net::SocketAddr;

use slotcast_engine::id::{Nanos, SessionId};

use crate::follow::MetaLinkConfig;

/// Where the shards of the data nodes are, and which leads which slot.
#[derive(Debug, Clone)]
pub struct Routes {
    /// Slots of the cluster, a power of two.
    pub slot_count: u32,
    /// The port of every shard.
    pub shards: Vec<SocketAddr>,
    /// For each slot the position of its leader in `shards`.
    pub leaders: Vec<u16>,
}

impl Routes {
    /// No data nodes: those of the slot table are linked to.
    pub fn none(slot_count: u32) -> Self {
        Self { slot_count, shards: Vec::new(), leaders: Vec::new() }
    }
}

/// Knobs and bounds of a session core. Times are in nanoseconds.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// This incarnation: a number that no earlier one has used.
    pub id: SessionId,
    /// The data nodes, unless the slot table is followed.
    pub routes: Routes,
    /// Where the slot table is told, by which `routes` are then replaced; `None`: they stay.
    pub meta: Option<MetaLinkConfig>,
    /// Clients at once.
    pub clients_max: usize,
    /// Connections let in per second; 0: all of them.
    pub accept_rate: u32,
    /// Connections let in at once after a quiet time, where there is a rate.
    pub accept_burst: u32,
    /// Publishers of one client.
    pub publishers_max: u32,
    /// Subscriptions of one client.
    pub subscriptions_max: u32,
    /// Frames concatenated in one write to one client.
    pub push_batch_max: usize,
    /// A round of writes takes at least this long, spread evenly over those with news when it begins; so a client is written to at
    /// most about this often. Zero: as soon as may be.
    pub push_interval_min: u64,
    /// A client that takes nothing for this long counts as slow.
    pub push_interval_max: u64,
    /// A client that takes nothing for this long is closed.
    pub slow_client_eviction: u64,
    /// A client that sends nothing for this long is closed.
    pub client_timeout: u64,
    /// How long the publishers of a client that dropped stay.
    pub client_disconnect_grace: u64,
    /// The lease of a session at the data nodes; also the grace in a storm of drops.
    pub session_lease: u64,
    /// Bytes of recent diffs kept per data id.
    pub history_bytes_max: usize,
    /// How long a data id without subscribers stays cached.
    pub datum_linger: u64,
    /// Time between heartbeats on a link.
    pub heartbeat_interval: u64,
    /// The same for a link on which nothing changes and nobody is waited for, where the slot table is followed.
    pub heartbeat_idle_interval: u64,
    /// Bytes waiting for a link above which publishes are refused.
    pub link_buffer_max: usize,
    /// Clients written to in one turn before events are looked at again.
    pub clients_per_turn: usize,
}

impl SessionConfig {
    /// The documented defaults.
    pub fn new(id: SessionId, routes: Routes) -> Self {
        Self {
            id,
            routes,
            meta: None,
            clients_max: 100_000,
            accept_rate: 0,
            accept_burst: 5_000,
            publishers_max: 10_000,
            subscriptions_max: 10_000,
            push_batch_max: 64,
            push_interval_min: 0,
            push_interval_max: 5 * Nanos::SECOND,
            slow_client_eviction: 30 * Nanos::SECOND,
            client_timeout: 90 * Nanos::SECOND,
            client_disconnect_grace: Nanos::SECOND,
            session_lease: 30 * Nanos::SECOND,
            history_bytes_max: 64 * 1024,
            datum_linger: 60 * Nanos::SECOND,
            heartbeat_interval: Nanos::SECOND,
            heartbeat_idle_interval: 5 * Nanos::SECOND,
            link_buffer_max: 64 * 1024 * 1024,
            clients_per_turn: 1024,
        }
    }

    /// The documented defaults for a core that follows the slot table.
    pub fn following(id: SessionId, meta: MetaLinkConfig) -> Self {
        Self { meta: Some(meta.clone()), ..Self::new(id, Routes::none(meta.slot_count)) }
    }
}
