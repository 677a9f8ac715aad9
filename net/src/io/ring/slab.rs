//! The connections of one ring: slots with a generation each.

use std::{
    ops::{BitOr, BitOrAssign, Not},
    os::fd::{AsRawFd, OwnedFd},
};

use socket2::SockAddr;

use super::{
    CloseReason,
    token::GENERATION_MASK,
    turn::{Rest, Source},
};

/// ```text
/// Free -> Installing -> Connecting -> Open -> Draining -> Closing -> Free
///   \____________(accepted)__________/   \_______________/
/// ```
/// `Installing` and `Connecting` may go to `Closing` as well.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) enum State {
    Free,
    /// The descriptor is on its way into the file table.
    Installing,
    Connecting,
    Open,
    /// Closed by us, but a remainder must go out first.
    Draining,
    /// Waits for its last operations.
    Closing,
}

/// The operations of a connection the kernel has not completed yet; at most one of each.
#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) struct Ops(u8);

impl Ops {
    pub const NONE: Self = Self(0);
    pub const INSTALL: Self = Self(1);
    pub const CONNECT: Self = Self(2);
    pub const RECV: Self = Self(4);
    pub const POLL: Self = Self(8);
    pub const REST: Self = Self(16);
    pub const CLOSE: Self = Self(32);

    pub fn has(self, op: Self) -> bool {
        self.0 & op.0 != 0
    }

    pub fn remove(&mut self, op: Self) {
        self.0 &= (!op).0;
    }
}

impl BitOr for Ops {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Ops {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl Not for Ops {
    type Output = Self;
    fn not(self) -> Self {
        Self(!self.0)
    }
}

/// The socket of a connection.
pub(super) enum File {
    None,
    /// Slot of the ring's file table.
    Fixed(u32),
    Ordinary(OwnedFd),
}

/// A copyable name of a [`File`] for building submissions.
#[derive(Copy, Clone, Debug)]
pub(super) enum Target {
    Fixed(u32),
    Ordinary(i32),
}

impl File {
    pub fn target(&self) -> Target {
        match self {
            Self::None => Target::Ordinary(-1),
            Self::Fixed(slot) => Target::Fixed(*slot),
            Self::Ordinary(fd) => Target::Ordinary(fd.as_raw_fd()),
        }
    }
}

/// What the kernel reads and writes while a connection is being made.
pub(super) struct Dialing {
    pub address: SockAddr,
    /// In: the descriptor to install. Out: its slot in the file table.
    pub fd: i32,
}

pub(super) struct Conn {
    pub generation: u64,
    pub state: State,
    pub ops: Ops,
    /// A send failed; the completion that closes the connection is already in line.
    pub broken: bool,
    pub file: File,
    /// Submission batch of the latest send, and where its bytes lie.
    pub batch: u64,
    pub source: Source,
    pub rest: Option<Rest>,
    pub reason: Option<CloseReason>,
    pub dialing: Option<Box<Dialing>>,
}

impl Conn {
    fn vacant() -> Self {
        Self {
            generation: 1,
            state: State::Free,
            ops: Ops::NONE,
            broken: false,
            file: File::None,
            batch: 0,
            source: Source::Staged { offset: 0, len: 0 },
            rest: None,
            reason: None,
            dialing: None,
        }
    }
}

pub(super) struct Slab {
    conns: Vec<Conn>,
    free: Vec<u32>,
    capacity: usize,
}

impl Slab {
    pub fn new(capacity: usize) -> Self {
        Self { conns: Vec::new(), free: Vec::new(), capacity }
    }

    pub fn free_count(&self) -> usize {
        self.capacity - self.conns.len() + self.free.len()
    }

    /// Takes a slot; the caller sets the state.
    pub fn insert(&mut self) -> Option<(u32, &mut Conn)> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.conns.len() < self.capacity => {
                self.conns.push(Conn::vacant());
                (self.conns.len() - 1) as u32
            }
            None => return None,
        };
        Some((slot, &mut self.conns[slot as usize]))
    }

    /// The connection in `slot`, if it is still the one of that generation.
    pub fn live(&mut self, slot: u32, generation: u64) -> Option<&mut Conn> {
        let conn = self.conns.get_mut(slot as usize)?;
        (conn.generation == generation && conn.state != State::Free).then_some(conn)
    }

    /// The connection in a slot known to be taken.
    pub fn get(&mut self, slot: u32) -> &mut Conn {
        &mut self.conns[slot as usize]
    }

    /// Frees a slot whose operations have all completed.
    pub fn release(&mut self, slot: u32) {
        let conn = &mut self.conns[slot as usize];
        assert!(conn.ops == Ops::NONE && conn.state == State::Closing, "slot released while in use");
        let generation = (conn.generation + 1) & GENERATION_MASK;
        *conn = Conn { generation, ..Conn::vacant() };
        self.free.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_small() {
        assert!(size_of::<Conn>() <= 88, "{} bytes", size_of::<Conn>());
    }
}
