//! The ring on real loopback sockets.

mod closing;
mod driver;
mod echo;
mod limits;
mod slow_reader;
