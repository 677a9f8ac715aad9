//! Drives a Slotcast cluster with very many clients on real connections, checks every list that reaches one of them, and
//! measures how long changes took to get there.
//!
//! The modules are listed in reading order.

pub mod clock;

pub mod address;

pub mod random;

pub mod workload;

pub mod draw;

pub mod schedule;

pub mod preset;

pub mod trace;

pub mod timing;

pub mod replay;

pub mod source;

pub mod disturbance;

pub mod board;

pub mod verify;

pub mod samples;

pub mod worker;

pub mod process;

pub mod division;

pub mod progress;

pub mod phases;

pub mod roles;

pub mod limit;

pub mod incident;

pub mod run;

pub mod links;

pub mod ingest;

pub mod chaos;

pub mod probe;

pub mod report;

pub mod find_max;

pub mod sweep;

pub mod args;
