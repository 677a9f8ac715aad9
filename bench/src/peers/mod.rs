//! Redis and NATS publish/subscribe beside ours: the same subscribers in the same process, the same message size, the same
//! two cores, one after the other in one invocation.
//!
//! A *round* is one message to every subscriber. `fan-out`: one topic that all subscribe to. `many topics`: the subscribers
//! are divided over them, and a round is one message in each. `one per write`: a round is published when the one before has
//! been received, so that nothing can be merged. `merged`: [`WINDOW`] rounds are under way, and a server may put several
//! messages in one write. Only whole messages at the receiver count.
//!
//! Ours is a registry, which may leave out a state that was replaced before it was told. So each message under way changes
//! another registration of the data id, and none is left out.

pub mod speech;

pub mod redis;

pub mod nats;

pub mod slotcast;

pub mod server;

pub mod load;

pub mod report;

use std::time::Duration;

use anyhow::Result;

use crate::peers::{
    load::{Figures, Load, LoadSpec},
    nats::Nats,
    redis::Redis,
    server::{Absent, Server},
    slotcast::Slotcast,
    speech::Speech,
};

/// Rounds under way where writes may be merged.
pub const WINDOW: usize = 64;

/// What to compare.
#[derive(Clone, Debug)]
pub struct PeersSpec {
    /// Subscribers, all in one process.
    pub subscribers: u32,
    /// Topics of the many.
    pub topics: u32,
    /// Bytes of a message without what each protocol adds.
    pub message_bytes: usize,
    /// Time of each of the four measurements of a system.
    pub duration: Duration,
    /// Core of the servers.
    pub server_core: usize,
    /// Core of the subscribers and the publisher.
    pub load_core: usize,
}

/// One measurement of one system.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which system.
    pub system: &'static str,
    /// Topics that the subscribers are divided over.
    pub topics: u32,
    /// Rounds under way.
    pub window: usize,
    /// What was measured.
    pub figures: Figures,
}

/// What a comparison found.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// In the order in which they were measured.
    pub rows: Vec<Row>,
    /// Systems that could not be measured, and why.
    pub absent: Vec<String>,
}

/// Measures every system that is there.
pub fn compare(spec: &PeersSpec, mut tell: impl FnMut(&str)) -> Result<Comparison> {
    server::pin(spec.load_core)?;
    let mut found = Comparison::default();
    for topics in [1, spec.topics] {
        measure::<Slotcast>(spec, topics, &mut found, &mut tell)?;
        measure::<Redis>(spec, topics, &mut found, &mut tell)?;
        measure::<Nats>(spec, topics, &mut found, &mut tell)?;
    }
    Ok(found)
}

fn measure<S: Speech>(
    spec: &PeersSpec,
    topics: u32,
    found: &mut Comparison,
    tell: &mut impl FnMut(&str),
) -> Result<()> {
    // Four measurements, the connects, and as much again for a machine that is busy.
    let bound = spec.duration * 4 + Duration::from_secs(240);
    let server = match Server::start::<S>(spec.subscribers, spec.server_core, bound) {
        Ok(server) => server,
        Err(error) => match error.downcast_ref::<Absent>() {
            Some(absent) => {
                let absent = absent.to_string();
                if !found.absent.contains(&absent) {
                    tell(&absent);
                    found.absent.push(absent);
                }
                return Ok(());
            }
            None => return Err(error.context(format!("starting {}", S::NAME))),
        },
    };
    tell(&format!("{}: {} subscribers on {topics} topics", S::NAME, spec.subscribers));
    let load = LoadSpec { subscribers: spec.subscribers, topics, message_bytes: spec.message_bytes };
    let mut load = Load::<S>::connect(load, server)?;
    for window in [1, WINDOW] {
        let figures = load.run(window, spec.duration)?;
        found.rows.push(Row { system: S::NAME, topics, window, figures });
    }
    Ok(())
}
