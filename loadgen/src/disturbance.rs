//! What a run does to its own clients besides the planned changes.

use std::ops::Range;

use anyhow::{Result, ensure};
use hashbrown::HashSet;
use serde::{Deserialize, Serialize};

use crate::{clock::SECOND, random::Random, workload::Workload};

const PURPOSE_STALLED: u64 = 5;
/// All clients of a reconnect storm are reset within this time.
pub const STORM_SPREAD: u64 = SECOND;

/// See the module.
#[derive(Clone, Copy, Default, PartialEq, Debug, Serialize, Deserialize)]
pub struct Disturbance {
    /// Connections that drop and come back, per second over all clients.
    pub reconnects_per_sec: f64,
    /// Clients that read nothing while the window lasts. They are drawn from those that publish nothing.
    pub stalled_clients: u32,
    /// All clients are reset in the middle of the window and come back.
    pub reconnect_storm: bool,
    /// Sessions may go away: a client whose connection ends goes to the next one with all that it has.
    #[serde(default)]
    pub roams: bool,
}

impl Disturbance {
    /// Whether this workload can be disturbed so.
    pub fn check(&self, workload: &Workload) -> Result<()> {
        let (most, clients) = (silent(workload).len(), workload.clients() as usize);
        let publishing = match clients - most {
            all if all == clients => format!("all {all}"),
            some => format!("{some} of {clients}"),
        };
        ensure!(
            self.stalled_clients as usize <= most,
            "--stalled-clients {}: only clients that publish nothing can be stalled; here {publishing} publish: \
             add clients or --publishers N with fewer",
            self.stalled_clients,
        );
        Ok(())
    }

    /// The clients among `keep` that are to read nothing. Every process draws all of them and keeps its own.
    pub fn stalled(&self, workload: &Workload, keep: &Range<u32>, seed: u64) -> HashSet<u32> {
        if self.stalled_clients == 0 {
            return HashSet::new();
        }
        let silent = silent(workload);
        let order = Random::new(seed, PURPOSE_STALLED).permutation(silent.len());
        let drawn = order.iter().take(self.stalled_clients as usize).map(|&at| silent[at as usize]);
        drawn.filter(|client| keep.contains(client)).collect()
    }

    /// When a client is reset by the storm, nanoseconds after the start of the changes; none without a storm.
    pub fn reset_at(&self, workload: &Workload, client: u32) -> Option<u64> {
        let share = u128::from(STORM_SPREAD) * u128::from(client) / u128::from(workload.clients().max(1));
        self.storm_at(workload).map(|at| at + share as u64)
    }

    /// When the first client is reset.
    pub fn storm_at(&self, workload: &Workload) -> Option<u64> {
        let window = workload.window();
        self.reconnect_storm.then_some(window.start + (window.end - window.start) / 2)
    }
}

/// The clients without publishers.
fn silent(workload: &Workload) -> Vec<u32> {
    let speaking: HashSet<u32> = workload.publishers().iter().map(|publisher| publisher.client).collect();
    (0..workload.clients()).filter(|client| !speaking.contains(client)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::tests::parameters;

    #[test]
    fn stalled_clients_publish_nothing_and_are_divided_among_the_workers() {
        let workload = parameters().build(0..0).unwrap();
        let disturbance = Disturbance { stalled_clients: 60, ..Disturbance::default() };
        disturbance.check(&workload).unwrap();
        let all = disturbance.stalled(&workload, &(0..500), 1);
        assert_eq!(all.len(), 60);
        assert!(workload.publishers().iter().all(|publisher| !all.contains(&publisher.client)));
        let parts = [0..200, 200..500].map(|keep| disturbance.stalled(&workload, &keep, 1).len());
        assert_eq!(parts.iter().sum::<usize>(), 60);
        let more = Disturbance { stalled_clients: 101, ..Disturbance::default() };
        assert!(more.check(&workload).unwrap_err().to_string().contains("here 400 of 500 publish"));
    }

    #[test]
    fn a_storm_resets_everybody_within_a_second_from_the_middle_on() {
        let workload = parameters().build(0..0).unwrap();
        let storm = Disturbance { reconnect_storm: true, ..Disturbance::default() };
        let middle = storm.storm_at(&workload).unwrap();
        assert!(workload.window().contains(&middle));
        assert!((0..500).all(|client| {
            (middle..middle + STORM_SPREAD).contains(&storm.reset_at(&workload, client).unwrap())
        }));
        assert_eq!(Disturbance::default().reset_at(&workload, 0), None);
    }
}
