//! The data node: shards of the engine behind links.

pub mod metrics;

pub mod node;

pub mod server;
