//! What fails in a round.

use clap::ValueEnum;

use crate::{
    chaos::{
        cluster::{Member, Shape},
        network::Way,
    },
    clock::{MILLISECOND, SECOND},
    random::Random,
};

/// A kind of faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Any of the others, a control plane or its etcd that is away, and all clients that reconnect at once.
    Random,
    /// kill -9 of the data node that leads most, and a start where it was, long after others have taken over.
    KillLeader,
    /// kill -9 of a data node, in some rounds of a session, or of both at once; and a start where it was.
    KillRestart,
    /// A slot with 100,000 publishers moves to an empty data node, while it is written to.
    MoveSlot,
    /// Every data node and every session ends and starts again, one after the other.
    Rolling,
    /// SIGSTOP of a data node, or of a session, for three seconds.
    Pause,
    /// Nothing: a data node is added, and one of the others is emptied and ends, both under the load of a preset.
    Grow,
}

impl Scenario {
    /// The processes that it is for, unless others are asked for.
    pub fn shape(self) -> Shape {
        match self {
            Scenario::KillRestart | Scenario::Pause => Shape::SINGLE,
            Scenario::MoveSlot => Shape { data: 1, sessions: 1, metas: 1 },
            Scenario::Grow => Shape { data: 2, sessions: 2, metas: 1 },
            Scenario::Random | Scenario::KillLeader | Scenario::Rolling => Shape::CLUSTER,
        }
    }

    /// Whether it needs several data nodes and a control plane.
    pub fn needs_cluster(self) -> bool {
        !matches!(self, Scenario::KillRestart | Scenario::Pause)
    }
}

/// What is done to the members of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// They are killed, and started again.
    Kill,
    /// They stand still.
    Stop,
    /// They are cut off from everybody else, clients and control plane included, on this way.
    Cut(Way),
    /// What the first of them says does not reach the second.
    Part,
    /// They are emptied by order, and used again.
    Drain,
    /// They end when asked to and start again, one after the other.
    Restart,
    /// All clients drop their connections at once.
    Reconnect,
}

/// How processes can be cut off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cuts {
    /// Not at all.
    None,
    /// From everybody on both ways, and one from another on one way.
    Whole,
    /// And from everybody on one way.
    Ways,
}

/// What fails in one round. Times are in nanoseconds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Which processes.
    pub members: Vec<Member>,
    /// What is done to them.
    pub act: Act,
    /// For how long they are away at least.
    pub away: u64,
    /// Load before.
    pub before: u64,
    /// Load behind, once they are ready.
    pub behind: u64,
}

impl Fault {
    /// Draws the fault of a round; `leader` is the data node that leads most, `meta` the process that leads the control plane.
    pub fn draw(
        scenario: Scenario,
        (shape, cuts): (Shape, Cuts),
        (leader, meta): (usize, usize),
        random: &mut Random,
    ) -> Self {
        let session = Member::Session(random.below(shape.sessions));
        let data = Member::Data(if shape.data > 1 { random.below(shape.data) } else { 0 });
        let (act, members, away) = match scenario {
            Scenario::KillRestart => {
                let away = random.below(if shape.metas > 0 { 4000 } else { 400 }) as u64 * MILLISECOND;
                (Act::Kill, Self::drawn(data, session, true, random), away)
            }
            Scenario::Pause => (Act::Stop, Self::drawn(data, session, false, random), 3 * SECOND),
            Scenario::KillLeader => (Act::Kill, vec![Member::Data(leader)], 4 * SECOND),
            Scenario::Rolling => {
                let data = (0..shape.data).map(Member::Data);
                (Act::Restart, data.chain((0..shape.sessions).map(Member::Session)).collect(), 0)
            }
            Scenario::MoveSlot | Scenario::Grow => (Act::Drain, vec![Member::Data(leader)], 0),
            Scenario::Random => {
                let leaders = (Member::Data(leader), Member::Meta(meta));
                Self::anything((shape, cuts), leaders, (data, session), random)
            }
        };
        let some = |random: &mut Random| (300 + random.below(900) as u64) * MILLISECOND;
        Self { members, act, away, before: some(random), behind: some(random) }
    }

    fn drawn(data: Member, session: Member, together: bool, random: &mut Random) -> Vec<Member> {
        match random.below(10) {
            0..6 => vec![data],
            6..8 => vec![session],
            _ if together => vec![data, session],
            _ => vec![session],
        }
    }

    fn anything(
        (shape, cuts): (Shape, Cuts),
        (leader, meta): (Member, Member),
        (data, session): (Member, Member),
        random: &mut Random,
    ) -> (Act, Vec<Member>, u64) {
        // Shorter and longer than the lease of a data node.
        let away = random.below(5000) as u64 * MILLISECOND;
        if cuts != Cuts::None && random.below(2) == 0 {
            return Self::cut(cuts, (leader, meta), (data, session), away, random);
        }
        if shape.metas > 1 && random.below(8) == 0 {
            let act = if random.below(2) == 0 { Act::Kill } else { Act::Stop };
            return (act, vec![Member::Store], away);
        }
        match random.below(16) {
            0..4 => (Act::Kill, vec![leader], away),
            4 => (Act::Kill, vec![data], away),
            5 => (Act::Kill, vec![session], away / 4),
            6 => (Act::Kill, vec![data, session], away),
            7..10 => (Act::Stop, vec![leader], away),
            // Not as long as a lease: nobody can tell then what the session's clients think.
            10 => (Act::Stop, vec![session], away / 2),
            11 => (Act::Kill, vec![meta], away),
            12 => (Act::Stop, vec![meta, leader], away),
            13 => (Act::Drain, vec![data], away / 4),
            14 => (Act::Restart, vec![data], 0),
            _ => (Act::Reconnect, Vec::new(), 0),
        }
    }

    fn cut(
        cuts: Cuts,
        (leader, meta): (Member, Member),
        (data, session): (Member, Member),
        away: u64,
        random: &mut Random,
    ) -> (Act, Vec<Member>, u64) {
        let ways = [Way::Both, Way::In, Way::Out];
        let way = if cuts == Cuts::Ways { ways[random.below(ways.len())] } else { Way::Both };
        match random.below(10) {
            0..3 => (Act::Cut(way), vec![leader], away),
            3 => (Act::Cut(way), vec![data, meta], away),
            4 => (Act::Cut(way), vec![meta], away),
            // Not as long as a lease: nobody can tell then what the session's clients think.
            5 => (Act::Cut(way), vec![session], away / 3),
            6 => (Act::Part, vec![leader, meta], away),
            7 => (Act::Part, vec![meta, leader], away),
            8 if data != leader => {
                let pair = if random.below(2) == 0 { vec![leader, data] } else { vec![data, leader] };
                (Act::Part, pair, away)
            }
            _ if random.below(2) == 0 => (Act::Part, vec![session, leader], away / 3),
            _ => (Act::Part, vec![leader, session], away / 3),
        }
    }

    /// Whether a data node is concerned.
    pub fn hits_data(&self) -> bool {
        self.members.iter().any(|member| matches!(member, Member::Data(_)))
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let members: Vec<String> = self.members.iter().map(Member::to_string).collect();
        let members = members.join(" and ");
        match self.act {
            Act::Kill => write!(f, "{members} killed"),
            Act::Stop => write!(f, "{members} stopped"),
            Act::Cut(Way::Both) => write!(f, "{members} cut off"),
            Act::Cut(Way::In) => write!(f, "{members} deaf"),
            Act::Cut(Way::Out) => write!(f, "{members} mute"),
            Act::Part => write!(f, "{} not heard by {}", self.members[0], self.members[1]),
            Act::Drain => write!(f, "{members} drained"),
            Act::Restart if self.members.len() > 2 => {
                f.write_str("all data nodes and sessions restarted in turn")
            }
            Act::Restart => write!(f, "{members} restarted"),
            Act::Reconnect => f.write_str("all clients reconnected"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn drawn(shape: Shape, cuts: Cuts) -> BTreeSet<String> {
        let mut random = Random::new(7, 1);
        let mut draw = || Fault::draw(Scenario::Random, (shape, cuts), (1, 0), &mut random).to_string();
        (0..4000).map(|_| draw()).collect()
    }

    #[test]
    fn random_draws_everything_that_the_machine_permits_and_nothing_else() {
        let several = Shape { metas: 2, ..Shape::CLUSTER };
        let all = drawn(several, Cuts::Ways);
        for fault in [
            "data node 1 cut off",
            "data node 1 deaf",
            "data node 1 mute",
            "control plane 0 deaf",
            "session 0 mute",
            "data node 1 not heard by control plane 0",
            "control plane 0 not heard by data node 1",
            "data node 1 not heard by data node 2",
            "session 1 not heard by data node 1",
            "data node 1 not heard by session 0",
            "control plane 0 killed",
            "etcd killed",
            "etcd stopped",
            "all clients reconnected",
        ] {
            assert!(all.contains(fault), "{fault} is not among {all:?}");
        }
        let is_way = |fault: &String| fault.ends_with("deaf") || fault.ends_with("mute");
        let is_cut = |fault: &String| fault.contains("cut off") || fault.contains("not heard");
        assert!(!drawn(several, Cuts::Whole).iter().any(is_way));
        let least = drawn(Shape::CLUSTER, Cuts::None);
        assert!(
            !least.iter().any(|fault| is_way(fault) || is_cut(fault) || fault.contains("etcd")),
            "{least:?}"
        );
    }

    #[test]
    fn nobody_is_kept_from_a_session_for_as_long_as_its_lease() {
        let mut random = Random::new(8, 1);
        for _ in 0..4000 {
            let fault = Fault::draw(Scenario::Random, (Shape::CLUSTER, Cuts::Ways), (0, 0), &mut random);
            let is_apart = matches!(fault.act, Act::Cut(_) | Act::Part);
            let has_session = fault.members.iter().any(|member| matches!(member, Member::Session(_)));
            assert!(!(is_apart && has_session) || fault.away < 2 * SECOND, "{fault}");
        }
    }
}
