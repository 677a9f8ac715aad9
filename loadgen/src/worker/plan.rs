//! What one worker has to do: its part of the clients, of the staged operations, of the changes and of the reconnects.

use std::ops::Range;

use hashbrown::HashSet;

use crate::{
    clock::SECOND, disturbance::Disturbance, random::Random, worker::storm::Storm, workload::Workload,
};

const PURPOSE_RECONNECTS: u64 = 4;

/// See the module.
pub struct Plan {
    /// Clients of this worker.
    pub clients: Range<u32>,
    /// Publishers of each of them.
    pub publishers: Vec<Vec<u32>>,
    /// Planned changes of their publishers, by time.
    pub changes: Vec<u32>,
    /// Connections to drop: when, after the start, and whose.
    pub reconnects: Vec<(u64, u32)>,
    /// Clients that read nothing while the window lasts.
    pub stalled: HashSet<u32>,
    /// The reconnect storm.
    pub storm: Storm,
    /// A client whose connection ends goes to the next session.
    pub roams: bool,
}

impl Plan {
    /// The part of `clients`.
    pub fn new(workload: &Workload, clients: Range<u32>, disturbance: &Disturbance, seed: u64) -> Self {
        let mut publishers = vec![Vec::new(); clients.len()];
        for (index, publisher) in (0u32..).zip(workload.publishers()) {
            if clients.contains(&publisher.client) {
                publishers[(publisher.client - clients.start) as usize].push(index);
            }
        }
        let is_mine = |op: &u32| {
            let publisher = workload.ops()[*op as usize].publisher;
            clients.contains(&workload.publishers()[publisher as usize].client)
        };
        let changes = workload.planned().map(|op| op as u32).filter(is_mine).collect();
        let reconnects = reconnects(workload, &clients, disturbance.reconnects_per_sec, seed);
        let stalled = disturbance.stalled(workload, &clients, seed);
        let storm = Storm::new(workload, clients.clone(), disturbance);
        Self { clients, publishers, changes, reconnects, stalled, storm, roams: disturbance.roams }
    }
}

/// Every worker draws all of them and keeps its own.
fn reconnects(workload: &Workload, clients: &Range<u32>, per_sec: f64, seed: u64) -> Vec<(u64, u32)> {
    if per_sec <= 0.0 {
        return Vec::new();
    }
    let mut random = Random::new(seed, PURPOSE_RECONNECTS);
    let gap = SECOND as f64 / per_sec;
    let count = (workload.window().end as f64 / gap) as u64;
    let all = (0..count)
        .map(|index| (((index as f64 + 0.5) * gap) as u64, random.below(workload.clients() as usize) as u32));
    all.filter(|(_, client)| clients.contains(client)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::tests::parameters;

    #[test]
    fn parts_of_all_workers_make_up_the_whole() {
        let workload = parameters().build(0..0).unwrap();
        let disturbance = Disturbance { reconnects_per_sec: 7.0, ..Disturbance::default() };
        let parts =
            [0..170, 170..340, 340..500].map(|clients| Plan::new(&workload, clients, &disturbance, 1));
        let sum = |of: fn(&Plan) -> usize| parts.iter().map(of).sum::<usize>();
        assert_eq!(sum(|part| part.changes.len()), workload.planned().len());
        assert_eq!(sum(|part| part.publishers.iter().flatten().count()), 400);
        assert_eq!(sum(|part| part.reconnects.len()), 7 * 12);
        assert!(Plan::new(&workload, 0..10, &Disturbance::default(), 1).reconnects.is_empty());
    }
}
