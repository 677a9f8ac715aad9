//! What a run tells in the end: verdict, table, chart, JSON, log of delays.

pub mod verdict;

pub mod json;

pub mod table;

pub mod chart;

pub mod delays;
