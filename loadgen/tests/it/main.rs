//! The load generator's oracle against a registry simulated in memory, a worker against a real one, and the commands that
//! measure a data node by itself.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cluster;
mod command;
mod node;
mod oracle;
mod probe;
mod registry;

mod damaged;

#[allow(dead_code, reason = "some of it is for the disk alone")]
#[path = "../../fuzz/src/lib.rs"]
mod fuzz;
