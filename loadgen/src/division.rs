//! How cores and connections are divided among the processes of a run. The bare limit is measured with the same division.

use serde::{Deserialize, Serialize};

/// Who receives goes first where cores are shared. Otherwise a session that has fallen behind fills the sockets of clients that
/// get no time to read; what waits in a socket can no longer be merged with what comes after it, and once the kernel runs out
/// of the memory it has for sockets, it drops what was sent.
const SESSION_NICENESS: i32 = 5;

/// Weights of a worker that has its core to itself and the session, and of one that shares it with the data node, which takes about
/// the rest. With equal parts the rounds of the session's core there are longer, and with them the delays of half of the clients.
const WEIGHT: u64 = 25;
/// See [`WEIGHT`].
const WEIGHT_BESIDE_DATA: u64 = 24;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Division {
    /// Cores of the session, or of the sender in its place.
    pub session: Vec<usize>,
    /// Niceness of the session, or of the sender in its place: above 0 where it shares cores with the workers.
    pub session_niceness: i32,
    /// Cores of the data node.
    pub data: Vec<usize>,
    /// One core per worker.
    pub workers: Vec<usize>,
}

impl Division {
    /// Divides `cores`. With four or more the session gets half unless `session_cores` says otherwise, the data node one,
    /// the workers, one on each, the rest. With fewer, or when the session is to have all, nobody has a core alone: the session runs on
    /// each and the workers share them, so that neither end waits while there is time left on the other's core.
    pub fn new(cores: &[usize], clients: u32, session_cores: Option<usize>, workers: Option<usize>) -> Self {
        let share = if cores.len() < 4 { cores.len() } else { cores.len() / 2 };
        let (session, rest) = cores.split_at(session_cores.unwrap_or(share).clamp(1, cores.len()));
        let rest = if rest.is_empty() { session } else { rest };
        let (data, rest) = if rest.len() >= 2 && session.len() < cores.len() && cores.len() >= 4 {
            rest.split_at(1)
        } else {
            (&rest[rest.len() - 1..], rest)
        };
        let count = workers.unwrap_or(rest.len()).clamp(1, clients.max(1) as usize);
        let workers: Vec<usize> = (0..count).map(|worker| rest[worker % rest.len()]).collect();
        let is_shared = session.iter().any(|core| workers.contains(core));
        Self {
            session: session.to_vec(),
            session_niceness: if is_shared { SESSION_NICENESS } else { 0 },
            data: data[..1].to_vec(),
            workers,
        }
    }

    /// Whether each core of the session has one worker on it: what is between those two can stay on that core.
    pub fn is_paired(&self) -> bool {
        let is_alone = |core: &usize| self.workers.iter().filter(|worker| *worker == core).count() == 1;
        self.session.len() == self.workers.len() && self.session.iter().all(is_alone)
    }

    /// First client and number of clients of each worker: all alike, but for who shares a core with the data node.
    pub fn parts(&self, clients: u32) -> Vec<(u32, u32)> {
        let weight = |core: &usize| if self.data.contains(core) { WEIGHT_BESIDE_DATA } else { WEIGHT };
        let all: u64 = self.workers.iter().map(weight).sum();
        let edge = |worker: usize| {
            let before: u64 = self.workers[..worker].iter().map(weight).sum();
            (u64::from(clients) * before / all) as u32
        };
        (0..self.workers.len()).map(|worker| (edge(worker), edge(worker + 1) - edge(worker))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_cores_are_shared_or_one_for_the_session_and_one_for_the_rest() {
        let shared = Division::new(&[0, 1], 100_000, None, None);
        assert_eq!((shared.session_niceness, shared.is_paired()), (SESSION_NICENESS, true));
        assert_eq!(shared.parts(100_000), [(0, 51_020), (51_020, 48_980)]);
        assert_eq!((shared.session, shared.data, shared.workers), (vec![0, 1], vec![1], vec![0, 1]));
        assert!(!Division::new(&[0, 1], 100_000, None, Some(1)).is_paired());
        assert!(!Division::new(&[0, 1], 100_000, None, Some(4)).is_paired());
        let division = Division::new(&[0, 1], 100_000, Some(1), None);
        assert_eq!((division.session.as_slice(), division.data.as_slice()), (&[0][..], &[1][..]));
        assert_eq!((division.workers.as_slice(), division.session_niceness), (&[1][..], 0));
        assert!(!division.is_paired());
        let parts = division.parts(100_000);
        assert_eq!(parts.iter().map(|part| part.1).sum::<u32>(), 100_000);
        assert!(parts.windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0));
    }

    #[test]
    fn any_number_of_cores_gives_everybody_one() {
        for count in 1..20 {
            let cores: Vec<usize> = (0..count).collect();
            let division = Division::new(&cores, 10, None, Some(3));
            assert!(!division.session.is_empty() && division.data.len() == 1 && division.workers.len() == 3);
        }
        let eight = Division::new(&[0, 1, 2, 3, 4, 5, 6, 7], 10, Some(2), Some(2));
        assert_eq!((eight.session, eight.data, eight.workers), (vec![0, 1], vec![2], vec![3, 4]));
    }
}
