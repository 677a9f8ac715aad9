//! What the engine promises, tested from outside: through the same calls that a data node makes.

mod batches;
mod behaviours;
mod compaction;
mod disk;
mod formats;
mod insight;
mod laggards;
mod limits;
mod memory;
mod model;
mod persistent;
mod readers;
mod replication;
mod salvage;
mod support;
mod tidy;

mod damaged;

#[allow(dead_code, reason = "some of it is for the wire alone")]
#[path = "../../fuzz/src/lib.rs"]
mod fuzz;
