//! Integration tests of the net crate, one binary.
#![allow(clippy::unwrap_used, unreachable_pub, missing_docs)]

mod ring;

mod cluster;

mod cluster_replicas;

mod dialed;

mod raw;

mod loopback;

mod bad_input;

mod configuration;

mod session_protocol;

mod tiny_session;

mod durable;

mod meta;

mod moves;

mod two_lists;

mod behind;

mod welcomes;

mod failover;

mod failing_nodes;

mod operations;

mod local;

mod damaged;

#[allow(dead_code, reason = "some of it is for the disk alone")]
#[path = "../../fuzz/src/wire/mod.rs"]
mod fuzz;
