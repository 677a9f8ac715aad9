//! Everything of Slotcast that speaks: the wire format, the roles, and the loop that drives them.
//!
//! A role (data node, session, client) is a plain state machine; `io` drives it. Roles share `wire` and never import each
//! other. The modules are listed in reading order.

pub mod wire;

pub mod io;

mod metrics;

#[cfg(feature = "planted-faults")]
pub mod faults;
#[cfg(not(feature = "planted-faults"))]
mod faults;

pub mod follow;
pub mod top;

pub mod meta;

pub mod data;

pub mod session;

pub mod client;

pub mod admin;

pub mod config;

pub mod process;

pub mod local;

pub mod allocator;
pub mod ctl;
pub mod output;
pub mod provenance;
