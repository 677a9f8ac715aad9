//! The state of a slot at one node. Every change of it goes through one place, `SlotState::set`.
//!
//! ```text
//!            ┌──────────────────── lead: nobody else has a copy ───────────────────┐
//!            │                                                                     ▼
//!   Absent ──┴── follow ──▶ Following ──────────── lead ──────────────────────▶ Migrating
//!     ▲                      │  ▲  ▲                                             │  │  │
//!     │                      │  │  └───────────── follow: demoted ───────────────┘  │  │ confirmed,
//!     │                      │  │                                                   │  │ or `settle`
//!     │                      │  └── follow: demoted ──────── Accept ◀───────────────┼──┘
//!     │ memory is free       │                                │                     │
//!     └───────── Moved ◀─────┴──────────── leave ─────────────┴─────────────────────┘
//!                  │
//!                  └── it returns: lead ──▶ Migrating, follow ──▶ Following
//! ```
//!
//! A leader takes writes in Migrating and in Accept, and answers readers in Accept only. A follower takes nothing but what
//! its leader sends. In Moved the memory of what was here is given back, some of it each turn.

use crate::id::SlotId;

/// What a node does with a slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub enum SlotState {
    /// Nothing.
    #[default]
    Absent,
    /// It holds a copy, which another node leads.
    Following,
    /// It leads: it takes writes, and readers wait.
    Migrating,
    /// It leads: it takes writes and answers readers.
    Accept,
    /// Another node has it; the memory of what was here is given back.
    Moved,
}

impl SlotState {
    /// All states.
    pub const ALL: [SlotState; 5] =
        [Self::Absent, Self::Following, Self::Migrating, Self::Accept, Self::Moved];

    /// Whether the node leads the slot.
    pub fn is_led(self) -> bool {
        matches!(self, Self::Migrating | Self::Accept)
    }

    /// A short stable label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Following => "following",
            Self::Migrating => "migrating",
            Self::Accept => "accept",
            Self::Moved => "moved",
        }
    }

    /// Whether the drawing has an arrow from here to `to`.
    pub fn may_become(self, to: SlotState) -> bool {
        match self {
            Self::Absent => matches!(to, Self::Following | Self::Migrating),
            Self::Following => matches!(to, Self::Migrating | Self::Moved),
            Self::Migrating => matches!(to, Self::Accept | Self::Following | Self::Moved),
            Self::Accept => matches!(to, Self::Following | Self::Moved),
            Self::Moved => matches!(to, Self::Absent | Self::Following | Self::Migrating),
        }
    }

    /// The only way to change a state.
    pub(crate) fn set(&mut self, slot: SlotId, to: SlotState) {
        assert!(self.may_become(to), "slot {}: {} never becomes {}", slot.0, self.label(), to.label());
        *self = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_reached_and_none_becomes_itself() {
        let mut reached = vec![SlotState::Absent];
        while let Some(to) = SlotState::ALL
            .into_iter()
            .find(|to| !reached.contains(to) && reached.iter().any(|from| from.may_become(*to)))
        {
            reached.push(to);
        }
        assert_eq!(reached.len(), SlotState::ALL.len());
        assert!(SlotState::ALL.into_iter().all(|state| !state.may_become(state)));
    }

    #[test]
    #[should_panic(expected = "slot 7: absent never becomes accept")]
    fn what_is_not_drawn_is_refused() {
        SlotState::Absent.set(SlotId(7), SlotState::Accept);
    }
}
