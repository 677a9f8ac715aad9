//! The session tier: clients on one side, the shards of data nodes on the other.
//!
//! A [`Session`] is one core's share of a session process: its own incarnation, its own clients, its own links. Nothing
//! crosses cores. It decides everything and touches no socket but through [`crate::io::ring::Sockets`], so a simulator can
//! run many of them on one thread.

pub mod metrics;

pub mod config;

mod client;

mod cache;

mod registrations;

mod persistent;

mod departures;

mod admission;

mod link;

mod routes;

mod following;

mod core;

mod subscribe;

mod trace;

mod publish;

mod heartbeats;

mod moves;

mod news;

mod push;

pub mod push_stop;

pub mod operations;

pub mod server;

pub use config::SessionConfig;
pub use core::Session;
