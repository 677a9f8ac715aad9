//! What fails in a round.

use clap::ValueEnum;

use crate::{
    chaos::cluster::{Member, SESSIONS},
    clock::{MILLISECOND, SECOND},
    random::Random,
};

/// A kind of faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Scenario {
    /// kill -9 of the data node, in some rounds of a session, or of both at once; and a start where it was.
    KillRestart,
    /// SIGSTOP of the data node, or of a session, for three seconds.
    Pause,
}

/// What fails in one round. Times are in nanoseconds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Which processes.
    pub members: Vec<Member>,
    /// Whether they are killed; otherwise they stand still.
    pub is_killed: bool,
    /// For how long they are away at least.
    pub away: u64,
    /// Load before.
    pub before: u64,
    /// Load behind, once they are ready.
    pub behind: u64,
}

impl Fault {
    /// Draws the fault of a round.
    pub fn draw(scenario: Scenario, random: &mut Random) -> Self {
        let session = Member::Session(random.below(SESSIONS));
        let members = match random.below(10) {
            0..6 => vec![Member::Data],
            6..8 => vec![session],
            _ if scenario == Scenario::Pause => vec![session],
            _ => vec![Member::Data, session],
        };
        let is_killed = scenario == Scenario::KillRestart;
        let away = if is_killed { random.below(400) as u64 * MILLISECOND } else { 3 * SECOND };
        let some = |random: &mut Random| (300 + random.below(900) as u64) * MILLISECOND;
        Self { members, is_killed, away, before: some(random), behind: some(random) }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let members: Vec<String> = self.members.iter().map(Member::to_string).collect();
        let what = if self.is_killed { "killed" } else { "stopped" };
        write!(f, "{} {what}", members.join(" and "))
    }
}
