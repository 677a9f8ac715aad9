//! The planned changes of a synthetic run.
//!
//! Services are visited in rounds of one fixed shuffled permutation (or drawn with Zipf weights), evenly spaced with ±10 %
//! jitter. Each visit does the kind of change that is most behind the mix among those possible there.

use std::ops::Range;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use slotcast_engine::id::DataId;

use crate::{
    clock::SECOND,
    draw::Subscriptions,
    random::Random,
    workload::{Kind, Parts, Workload},
};

/// Share of each kind of change.
const MIX: [(Kind, f64); 3] = [(Kind::Update, 0.4), (Kind::Unregister, 0.3), (Kind::Register, 0.3)];
/// Part of the spacing that a change may lie before or behind its even place.
const JITTER: f64 = 0.1;
const PURPOSE_PLACES: u64 = 2;
const PURPOSE_CHANGES: u64 = 3;

/// Parameters of a synthetic run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Synthetic {
    /// Clients, each one connection.
    pub clients: u32,
    /// Data ids.
    pub services: u32,
    /// Distinct services that each client subscribes to.
    pub subscriptions_per_client: u32,
    /// Registered instances over all services.
    pub publishers: u32,
    /// Planned changes per second.
    pub changes_per_sec: f64,
    /// Bytes of each payload.
    pub payload_bytes: usize,
    /// Changes go on for this long before the window opens.
    pub warmup_ns: u64,
    /// Length of the window.
    pub window_ns: u64,
    /// Zipf exponent of the services' shares of the changes; none: rounds of a permutation.
    pub skew: Option<f64>,
    /// Fixes everything.
    pub seed: u64,
    /// Publishers left alone, at most.
    pub canaries: u32,
    /// Part of the namespace, so that runs against one cluster do not meet; 0 for a cluster of our own.
    pub tag: u64,
    /// What was scaled, for the report.
    pub notes: Vec<String>,
}

impl Synthetic {
    /// Derives the workload, with the subscriptions of the clients in `keep`.
    pub fn build(&self, keep: Range<u32>) -> Result<Workload> {
        ensure!(
            self.clients > 0 && self.services > 0 && self.publishers > 0,
            "nothing to do: no clients, services or publishers"
        );
        ensure!(self.changes_per_sec > 0.0, "changes per second must be above 0");
        let shape = (self.clients, self.services, self.subscriptions_per_client);
        let (subscriptions, subscribers) = Subscriptions::draw(shape, self.seed, keep);
        let publishers = self.place();
        let mut changes = Changes::new(self, &publishers);
        let (ops, staged) = changes.run(self);
        Workload::new(Parts {
            clients: self.clients,
            services: self.data_ids()?,
            publishers,
            ops,
            staged,
            canaries: changes.canaries,
            subscriptions,
            subscribers,
            payload_bytes: self.payload_bytes,
            seed: self.seed,
            tag: self.seed ^ self.tag.rotate_left(32),
            window: self.warmup_ns..self.warmup_ns + self.window_ns,
            notes: self.notes.clone(),
            ..Parts::default()
        })
    }

    fn data_ids(&self) -> Result<Vec<DataId>> {
        let namespace = if self.tag == 0 { "loadgen".into() } else { format!("loadgen-{:x}", self.tag) };
        (0..self.services)
            .map(|service| Ok(DataId::new(&namespace, "run", &format!("service-{service:05}"))?))
            .collect()
    }

    /// Client and service of each publisher: services evenly, clients evenly and at most once each while there are enough.
    fn place(&self) -> Vec<(u32, u32)> {
        let mut random = Random::new(self.seed, PURPOSE_PLACES);
        let clients = random.permutation(self.clients as usize);
        let services = random.permutation(self.services as usize);
        let of = |row: &[u32], index: u32| row[index as usize % row.len()];
        (0..self.publishers).map(|index| (of(&clients, index), of(&services, index))).collect()
    }

    fn change_count(&self) -> usize {
        let seconds = (self.warmup_ns + self.window_ns) as f64 / SECOND as f64;
        (seconds * self.changes_per_sec).round() as usize
    }
}

/// The publishers of one service that changes may touch.
#[derive(Default)]
struct Touchable {
    live: Vec<u32>,
    absent: Vec<u32>,
}

struct Changes {
    canaries: u32,
    services: Vec<Touchable>,
    /// Services with anything to touch, in visiting order.
    order: Vec<u32>,
    weights: Option<Vec<f64>>,
    done: [u64; MIX.len()],
    random: Random,
    /// Publishers that are there from the start.
    present: Vec<u32>,
}

impl Changes {
    fn new(run: &Synthetic, publishers: &[(u32, u32)]) -> Self {
        let mut random = Random::new(run.seed, PURPOSE_CHANGES);
        let canaries = run.canaries.min(run.publishers / 10);
        let touchable = run.publishers - canaries;
        // Some instances are away at first, or the first round could not register anything. Few, or lists would be short.
        let away = (touchable / 4).min((run.change_count() as f64 * MIX[2].1).ceil() as u32);
        let mut services: Vec<Touchable> = (0..run.services).map(|_| Touchable::default()).collect();
        let mut present = Vec::new();
        for (rank, publisher) in random.permutation(publishers.len()).into_iter().enumerate() {
            let service = &mut services[publishers[publisher as usize].1 as usize];
            if rank < canaries as usize {
                present.push(publisher);
            } else if rank < (canaries + away) as usize {
                service.absent.push(publisher);
            } else {
                service.live.push(publisher);
                present.push(publisher);
            }
        }
        present.sort_unstable();
        let mut order = random.permutation(run.services as usize);
        order.retain(|&service| {
            let service = &services[service as usize];
            !service.live.is_empty() || !service.absent.is_empty()
        });
        let weights = run.skew.map(|exponent| zipf(order.len(), exponent));
        Self { canaries, services, order, weights, done: [0; MIX.len()], random, present }
    }

    fn run(&mut self, run: &Synthetic) -> (Vec<(u64, u32, Kind)>, usize) {
        let mut ops: Vec<(u64, u32, Kind)> =
            self.present.iter().map(|&publisher| (0, publisher, Kind::Register)).collect();
        let staged = ops.len();
        let gap = SECOND as f64 / run.changes_per_sec;
        for visit in 0..if self.order.is_empty() { 0 } else { run.change_count() } {
            let jitter = (self.random.unit() * 2.0 - 1.0) * JITTER;
            let at = ((visit as f64 + 0.5 + jitter) * gap) as u64;
            let (publisher, kind) = self.visit(visit);
            ops.push((at, publisher, kind));
        }
        (ops, staged)
    }

    fn visit(&mut self, visit: usize) -> (u32, Kind) {
        let index = match &self.weights {
            None => visit % self.order.len(),
            Some(cumulative) => {
                let drawn = self.random.unit();
                cumulative.partition_point(|&weight| weight <= drawn).min(self.order.len() - 1)
            }
        };
        let service = &mut self.services[self.order[index] as usize];
        let visits = self.done.iter().sum::<u64>() as f64 + 1.0;
        let mut chosen = (f64::NEG_INFINITY, 0);
        for (index, &(kind, share)) in MIX.iter().enumerate() {
            let possible =
                if kind == Kind::Register { !service.absent.is_empty() } else { !service.live.is_empty() };
            let behind = share * visits - self.done[index] as f64;
            if possible && behind > chosen.0 {
                chosen = (behind, index);
            }
        }
        let kind = MIX[chosen.1].0;
        self.done[chosen.1] += 1;
        let random = &mut self.random;
        let publisher = match kind {
            Kind::Update => service.live[random.below(service.live.len())],
            Kind::Unregister => {
                let publisher = service.live.swap_remove(random.below(service.live.len()));
                service.absent.push(publisher);
                publisher
            }
            Kind::Register => {
                let publisher = service.absent.swap_remove(random.below(service.absent.len()));
                service.live.push(publisher);
                publisher
            }
        };
        (publisher, kind)
    }
}

/// Cumulative shares of `count` ranks under a Zipf law.
fn zipf(count: usize, exponent: f64) -> Vec<f64> {
    let weights: Vec<f64> = (1..=count).map(|rank| (rank as f64).powf(-exponent)).collect();
    let sum: f64 = weights.iter().sum();
    let mut total = 0.0;
    weights
        .into_iter()
        .map(|weight| {
            total += weight / sum;
            total
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use hashbrown::HashMap;

    pub(crate) fn parameters() -> Synthetic {
        Synthetic {
            clients: 500,
            services: 50,
            subscriptions_per_client: 4,
            publishers: 400,
            changes_per_sec: 100.0,
            payload_bytes: 128,
            warmup_ns: 2 * SECOND,
            window_ns: 10 * SECOND,
            skew: None,
            seed: 1,
            canaries: 1000,
            tag: 0,
            notes: Vec::new(),
        }
    }

    #[test]
    fn one_seed_plans_one_run() {
        let run = parameters();
        let (one, two) = (run.build(0..0).unwrap(), run.build(10..20).unwrap());
        assert_eq!(one.ops(), two.ops());
        let other = Synthetic { seed: 2, ..run }.build(0..0).unwrap();
        assert_ne!(one.ops(), other.ops());
    }

    #[test]
    fn counts_are_as_planned() {
        let workload = parameters().build(0..0).unwrap();
        assert_eq!(workload.planned().len(), 1200);
        let inside = workload.planned().filter(|&op| workload.in_window(op as u32)).count();
        assert_eq!(inside, 1000);
        assert_eq!(
            workload.deliveries(),
            1000 * 40,
            "500 clients with 4 of 50 services: 40 subscribers each"
        );
        let share = |kind| {
            let ops = &workload.ops()[workload.planned()];
            ops.iter().filter(|op| op.kind == kind).count() as f64 / ops.len() as f64
        };
        assert!((share(Kind::Update) - 0.4).abs() < 0.01 && (share(Kind::Register) - 0.3).abs() < 0.01);
    }

    #[test]
    fn changes_are_evenly_spaced_and_services_take_turns() {
        let workload = parameters().build(0..0).unwrap();
        let ops = &workload.ops()[workload.planned()];
        assert!(ops.windows(2).all(|pair| (7_900_000..12_100_000).contains(&(pair[1].at - pair[0].at))));
        let service = |op: &crate::workload::Op| workload.publishers()[op.publisher as usize].service;
        for round in ops.chunks(50) {
            let mut seen: Vec<u32> = round.iter().map(service).collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), round.len());
        }
    }

    #[test]
    fn every_publisher_alternates_and_canaries_are_never_touched() {
        let workload = parameters().build(0..0).unwrap();
        assert_eq!(workload.canaries(), 40);
        let mut live: HashMap<u32, bool> = HashMap::new();
        for op in workload.ops() {
            let is = live.entry(op.publisher).or_default();
            assert_eq!(*is, op.kind != Kind::Register, "{op:?}");
            *is = op.kind != Kind::Unregister;
        }
        let untouched = (0..400).filter(|&publisher| workload.ops_of(publisher).len() == 1).count();
        assert!(untouched >= 40);
        let clients: hashbrown::HashSet<u32> = workload.publishers().iter().map(|p| p.client).collect();
        assert_eq!(clients.len(), 400, "one publisher per client");
    }

    #[test]
    fn skew_prefers_some_services() {
        let workload = Synthetic { skew: Some(1.0), ..parameters() }.build(0..0).unwrap();
        let most = (0..50).map(|service| workload.planned_of(service)).max().unwrap();
        assert!(most > 200, "{most}");
    }
}
