//! The control plane: which data node leads and holds which slot.
//!
//! It takes part in no publish and no push. When all of it is gone, nothing stops but reassignment.

pub mod members;

pub mod assign;

pub mod store;

pub mod core;

pub mod etcd;

pub mod metrics;

pub mod keeper;

pub mod node;

pub mod server;
