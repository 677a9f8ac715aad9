//! The load generator's oracle against a registry simulated in memory, and a worker against a real one.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cluster;
mod command;
mod oracle;
mod registry;
