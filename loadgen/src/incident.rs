//! What became of the clients that a run disturbed, and what the session's memory is made of: told beside the rest.

use serde::Serialize;

use crate::{roles::Metrics, samples::Measured};

/// Clients that read nothing while the window lasted.
pub struct Stalled {
    /// How many.
    pub clients: u32,
    /// What was measured at them.
    pub measured: Measured,
    /// Their connections that the session ended meanwhile.
    pub evicted: u64,
}

/// How a reconnect storm went.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct StormReport {
    /// Connections reset.
    pub resets: u64,
    /// Seconds from the first reset until every client was connected again; none: never.
    pub connected_s: Option<f64>,
    /// Seconds from the first reset until every subscription of every client had been answered on its new connection.
    pub converged_s: Option<f64>,
    /// Connections per second until all were there.
    pub connections_per_s: Option<f64>,
    /// Snapshots received from the first reset to the end.
    pub snapshots: u64,
    /// Bytes per (client, data id) to ask and to be answered for the first time.
    pub resume_bytes: f64,
    /// Registrations that the session removed from the first reset on because it took their client for gone; unknown
    /// where the session is not ours.
    pub removals: Option<u64>,
}

/// What the session says of clients that did not keep up, from the start of the window to the end of the run.
#[derive(Clone, Copy, Default, PartialEq, Debug, Serialize)]
pub struct SlowClients {
    /// Times that a client counted as slow.
    pub slow: u64,
    /// Clients closed for it.
    pub evicted: u64,
    /// Diffs that took a client over several changes at once.
    pub merged: u64,
    /// Bytes that waited for clients whose sockets took nothing, at the end of the window.
    pub waiting_bytes: u64,
}

impl SlowClients {
    /// What happened between two readings; `window_end` is the one at the end of the window.
    pub fn between(first: &Metrics, window_end: &Metrics, last: &Metrics) -> Self {
        let value = |metrics: &Metrics, name: &str| metrics.session(name).unwrap_or(0.0) as u64;
        let since = |name: &str| value(last, name).saturating_sub(value(first, name));
        Self {
            slow: since("slow_clients_total"),
            evicted: (last.client_errors("slow_reader") - first.client_errors("slow_reader")).max(0.0) as u64,
            merged: since("merged_diffs_total"),
            waiting_bytes: value(window_end, "slow_client_waiting_bytes"),
        }
    }
}

/// Resident bytes of the session as the clients came, kernel memory not included.
#[derive(Clone, Copy, Default, PartialEq, Debug, Serialize)]
pub struct IdleMemory {
    /// Before the first connection.
    pub start: u64,
    /// With all connections open.
    pub connected: u64,
    /// With everything published.
    pub published: u64,
    /// With all subscriptions answered, before the first change.
    pub subscribed: u64,
    /// Connections.
    pub clients: u32,
}

impl IdleMemory {
    /// Bytes per connection with its subscriptions; the cached lists and the truth about publishers are in it.
    pub fn per_client(&self) -> u64 {
        self.subscribed.saturating_sub(self.start) / u64::from(self.clients.max(1))
    }
}
