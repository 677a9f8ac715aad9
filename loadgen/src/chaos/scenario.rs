//! What fails in a round.

use clap::ValueEnum;

use crate::{
    chaos::cluster::{Member, Shape},
    clock::{MILLISECOND, SECOND},
    random::Random,
};

/// A kind of faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Any of the others, a control plane that is away, and all clients that reconnect at once.
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
}

impl Scenario {
    /// The processes that it is for, unless others are asked for.
    pub fn shape(self) -> Shape {
        match self {
            Scenario::KillRestart | Scenario::Pause => Shape::SINGLE,
            Scenario::MoveSlot => Shape { data: 1, sessions: 1, metas: 1 },
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
    /// They are cut off from everybody else, clients and control plane included.
    Cut,
    /// They are emptied by order, and used again.
    Drain,
    /// They end when asked to and start again, one after the other.
    Restart,
    /// All clients drop their connections at once.
    Reconnect,
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
    /// Draws the fault of a round; `leader` is the data node that leads most.
    pub fn draw(
        scenario: Scenario,
        (shape, can_cut): (Shape, bool),
        leader: usize,
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
            Scenario::MoveSlot => (Act::Drain, vec![Member::Data(leader)], 0),
            Scenario::Random => Self::anything((shape, can_cut), leader, (data, session), random),
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
        (shape, can_cut): (Shape, bool),
        leader: usize,
        (data, session): (Member, Member),
        random: &mut Random,
    ) -> (Act, Vec<Member>, u64) {
        let meta = Member::Meta(random.below(shape.metas.max(1)));
        let leader = Member::Data(leader);
        // Shorter and longer than the lease of a data node.
        let away = random.below(5000) as u64 * MILLISECOND;
        if can_cut && random.below(4) == 0 {
            return match random.below(6) {
                0..3 => (Act::Cut, vec![leader], away),
                3 => (Act::Cut, vec![data, meta], away),
                4 => (Act::Cut, vec![meta], away),
                _ => (Act::Cut, vec![session], away / 3),
            };
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
            Act::Cut => write!(f, "{members} cut off"),
            Act::Drain => write!(f, "{members} drained"),
            Act::Restart if self.members.len() > 2 => {
                f.write_str("all data nodes and sessions restarted in turn")
            }
            Act::Restart => write!(f, "{members} restarted"),
            Act::Reconnect => f.write_str("all clients reconnected"),
        }
    }
}
