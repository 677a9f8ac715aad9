//! The 64 bits that name an operation to the kernel: kind, generation and slot of the connection.

use super::ConnId;

pub(super) const SLOT_BITS: u32 = 20;
const GENERATION_BITS: u32 = 40;
pub(super) const GENERATION_MASK: u64 = (1 << GENERATION_BITS) - 1;

const _: () = assert!(4 + GENERATION_BITS + SLOT_BITS == 64);
const _: () = assert!(GENERATION_BITS + ConnId::INDEX_BITS == 64);

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    /// Completions nobody waits for.
    Ignored,
    AcceptMulti,
    AcceptSingle,
    /// A descriptor moves into the file table.
    Install,
    Connect,
    Recv,
    /// A write of this turn; completes visibly only when it fails or falls short.
    Send,
    /// Waiting for room to send a remainder.
    Poll,
    /// The write of a remainder.
    Rest,
    /// The option that turns the close behind it into a reset.
    Linger,
    Close,
}

const KINDS: [Kind; 11] = [
    Kind::Ignored,
    Kind::AcceptMulti,
    Kind::AcceptSingle,
    Kind::Install,
    Kind::Connect,
    Kind::Recv,
    Kind::Send,
    Kind::Poll,
    Kind::Rest,
    Kind::Linger,
    Kind::Close,
];

#[derive(Copy, Clone, Eq, PartialEq, Debug)]
pub(super) struct Token {
    pub kind: Kind,
    pub generation: u64,
    /// Slot of the connection in its ring; number of the listener for accepts.
    pub slot: u32,
}

impl Token {
    pub const fn new(kind: Kind, slot: u32, generation: u64) -> Self {
        Self { kind, generation, slot }
    }

    pub const fn encode(self) -> u64 {
        (self.kind as u64) << (GENERATION_BITS + SLOT_BITS) | self.generation << SLOT_BITS | self.slot as u64
    }

    pub fn decode(bits: u64) -> Self {
        let kind = (bits >> (GENERATION_BITS + SLOT_BITS)) as usize;
        Self {
            kind: KINDS.get(kind).copied().unwrap_or(Kind::Ignored),
            generation: bits >> SLOT_BITS & GENERATION_MASK,
            slot: (bits & ((1 << SLOT_BITS) - 1)) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_trip() {
        for (position, &kind) in KINDS.iter().enumerate() {
            assert_eq!(kind as usize, position);
            for token in [Token::new(kind, 0, 0), Token::new(kind, (1 << SLOT_BITS) - 1, GENERATION_MASK)] {
                assert_eq!(Token::decode(token.encode()), token);
            }
        }
    }
}
