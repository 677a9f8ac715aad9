//! The data node: shards of the engine behind links.

pub mod metrics;

mod outbox;

pub mod compaction;

pub mod status;

pub mod operations;

pub mod storage;

pub mod salvage;

mod replica;

pub mod cluster;

pub mod node;

pub mod server;
