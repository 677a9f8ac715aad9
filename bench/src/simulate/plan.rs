//! What a seed decides before anything runs: sizes, operations and faults, each of which can be left out.

use super::{
    faults::Fault,
    hosts::Layout,
    network::{MS, SECOND},
    oracle::DETECTION_MAX,
    rng::Rng,
};

/// What a clock is set back by.
pub const HOUR: u64 = 3600 * SECOND;

/// Faults and operations end here.
pub const BUSY: u64 = 60 * SECOND;

/// After so long without a fault every slot has all its members, and they are in sync.
const CALM: u64 = 14 * SECOND;

/// Seeds of clusters, of a hundred, in which there are strangers, cut off nodes and clocks set back, too.
const HARD_PERCENT: u64 = 55;
/// Numbers of faults and operations that come with those begin here.
const HARD_NUMBERS: u64 = 1_000_000;

/// What there is of everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Shape {
    /// One data node that leads every slot, two sessions, no control plane.
    Single,
    /// Data nodes under a control plane, with replicas.
    Cluster,
}

/// Sizes that differ between seeds.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Bytes of recent diffs that a session keeps per data id.
    pub history_bytes: usize,
    /// How long a session keeps a data id without subscribers.
    pub linger: u64,
    /// Entries of a slot's change log.
    pub log_entries: usize,
    /// Output of a link above which its reader falls behind.
    pub node_link_buffer: usize,
    /// Shortest time between two writes to a client.
    pub push_interval: u64,
    /// How long a fresh leader waits for sessions.
    pub settle: u64,
    /// Whether connections take few bytes at a time.
    pub is_tight: bool,
    /// Whether data nodes keep their slots on disks.
    pub on_disk: bool,
}

/// An operation of some client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Its number in the whole plan, which decides what it is.
    pub number: u64,
    /// When.
    pub at: u64,
}

/// A fault.
#[derive(Clone, Copy, Debug)]
pub struct PlannedFault {
    /// Its number in the whole plan.
    pub number: u64,
    /// When.
    pub at: u64,
    /// What.
    pub fault: Fault,
}

/// Everything that happens to a run from outside.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What decides the rest.
    pub seed: u64,
    /// What there is.
    pub shape: Shape,
    /// Which hosts there are.
    pub layout: Layout,
    /// Sizes.
    pub sizes: Sizes,
    /// Hosts of clients that start at all.
    pub clients: Vec<usize>,
    /// Operations by time.
    pub operations: Vec<Operation>,
    /// Faults by number.
    pub faults: Vec<PlannedFault>,
    /// What is made wrong in the roles themselves, if anything; see [`super::planted`].
    pub planted: Option<&'static str>,
}

impl Plan {
    /// The whole plan of a seed.
    pub fn of(shape: Shape, seed: u64) -> Self {
        let mut rng = Rng::of(&[seed, 0]);
        let layout = match shape {
            Shape::Single => {
                Layout { nodes: 1, sessions: 2, metas: 0, clients: 12 + rng.below(14), strangers: 0 }
            }
            Shape::Cluster => Layout {
                nodes: 3 + rng.below(2),
                sessions: 2 + rng.below(2),
                metas: 1 + rng.below(2),
                clients: 20 + rng.below(8),
                strangers: 2,
            },
        };
        let sizes = Sizes {
            history_bytes: rng.range(200, 8000) as usize,
            linger: rng.range(0, 4) * SECOND + SECOND / 2,
            log_entries: if rng.chance(50) { 16_384 } else { rng.range(4, 40) as usize },
            node_link_buffer: if rng.chance(50) { 8 << 20 } else { rng.range(100, 3000) as usize },
            push_interval: if rng.chance(70) { 0 } else { rng.range(1, 40) * MS },
            settle: rng.range(1, 6) * 100 * MS,
            is_tight: rng.chance(50),
            on_disk: rng.chance(40),
        };
        let count = match shape {
            Shape::Single => rng.range(200, 500),
            Shape::Cluster => rng.range(500, 700),
        };
        let mut operations: Vec<Operation> =
            (0..count).map(|number| Operation { number, at: rng.range(SECOND / 2, BUSY) }).collect();
        let mut faults = plan_faults(&mut rng, shape, &layout);
        if shape == Shape::Cluster {
            let mut rng = Rng::of(&[seed, 5]);
            if rng.chance(HARD_PERCENT) {
                plan_hardship(&mut rng, (&layout, sizes.on_disk), &mut faults, &mut operations);
            }
        }
        operations.sort_by_key(|operation| operation.at);
        let clients = layout.clients().collect();
        Self { seed, shape, layout, sizes, clients, operations, faults, planted: None }
    }

    /// The same with a fault planted in the roles.
    pub fn with_planted(&self, planted: Option<&'static str>) -> Self {
        Self { planted, ..self.clone() }
    }

    /// How many things could be left out.
    pub fn len(&self) -> usize {
        self.faults.len() + self.clients.len() + self.operations.len()
    }

    /// Whether nothing could be left out.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same without the parts in a range of the [`Plan::len`] that could be left out.
    pub fn without(&self, range: std::ops::Range<usize>) -> Self {
        let mut next = 0;
        let mut keeps = || {
            next += 1;
            !range.contains(&(next - 1))
        };
        let mut plan = self.clone();
        plan.faults.retain(|_| keeps());
        plan.clients.retain(|_| keeps());
        plan.operations.retain(|_| keeps());
        plan
    }

    /// The data node that a fault takes away for long enough to be missed, while nothing else is wrong in the cluster and
    /// has not been for a while.
    pub fn lone_loss(&self, number: usize) -> Option<usize> {
        let planned = &self.faults[number];
        let Fault::CrashNode { host, down, .. } = planned.fault else { return None };
        let (from, until) = (planned.at.saturating_sub(CALM), planned.at + DETECTION_MAX);
        let alone = self.faults.iter().enumerate().all(|(other, fault)| {
            other == number
                || !fault.fault.is_of_cluster(&self.layout)
                || fault.at > until
                || fault.at + fault.fault.nanos() < from
        });
        let is_calm = self.shape == Shape::Cluster && from > 0 && alone;
        (is_calm && down > DETECTION_MAX).then_some(host)
    }

    /// The same without what is planned for later than `at`.
    pub fn until(&self, at: u64) -> Self {
        let mut plan = self.clone();
        plan.faults.retain(|fault| fault.at <= at);
        plan.operations.retain(|operation| operation.at <= at);
        plan
    }
}

fn plan_faults(rng: &mut Rng, shape: Shape, layout: &Layout) -> Vec<PlannedFault> {
    let count = rng.range(4, 16);
    let mut last = 0;
    let faults = (0..count).map(|number| {
        // Faults that come together find what one alone does not.
        let near = last > 0 && rng.chance(60);
        let at = if near { last + rng.range(0, 2500) * MS } else { rng.range(3 * SECOND, BUSY - 3 * SECOND) };
        last = at.min(BUSY - SECOND);
        PlannedFault { number, at: last, fault: Fault::choose(rng, shape, layout) }
    });
    faults.collect()
}

/// Faults that take several hosts or somebody who does not belong here, each with a burst of operations around it.
fn plan_hardship(
    rng: &mut Rng,
    (layout, on_disk): (&Layout, bool),
    faults: &mut Vec<PlannedFault>,
    operations: &mut Vec<Operation>,
) {
    let (mut last, mut next) = (0, HARD_NUMBERS);
    for number in 0..rng.range(1, 5) {
        let near = last > 0 && rng.chance(50);
        let at =
            if near { last + rng.range(0, 4000) * MS } else { rng.range(4 * SECOND, BUSY - 12 * SECOND) };
        last = at.min(BUSY - 2 * SECOND);
        let fault = Fault::choose_hard(rng, layout, on_disk);
        faults.push(PlannedFault { number: HARD_NUMBERS + number, at: last, fault });
        let until = (last + fault.nanos() + 2 * SECOND).min(BUSY);
        for _ in 0..rng.range(0, 60) {
            operations.push(Operation { number: next, at: rng.range(last, until) });
            next += 1;
        }
    }
}
