//! Sockets, clocks and the loop that drives a role: the only place of this crate that touches the operating system.

pub mod clock;

pub mod ring;

pub mod disk;

pub mod role;

pub mod dial;

pub mod mailbox;

mod executor;

pub mod pump;
