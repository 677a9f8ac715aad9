//! The load generator's oracle against a registry simulated in memory, a worker against a real one, and the commands that
//! measure a data node by itself.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cluster;
mod command;
mod node;
mod oracle;
mod registry;
