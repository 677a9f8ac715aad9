//! Frames lately checked, in the order in which they were first seen.
//!
//! Links that want the same get the same bytes in the same order. A frame that reaches a link is compared, byte for byte,
//! with the one that followed the link's last one at whoever got it first. If they are equal and the link's list is in the
//! same state, checksums, parsing and the step to the next state need not be worked out once more.

use std::ops::Range;

use hashbrown::HashMap;

use crate::verify::transition::Transition;

/// Frames kept.
const FRAMES: usize = 1 << 15;
/// Bytes kept.
const BYTES: usize = 32 << 20;

/// A frame that the oracle has taken, and what it did to the list it met first.
pub struct Known {
    /// The service it is about.
    pub service: u32,
    /// Lowest revision of a reader that it is right for.
    pub from: u64,
    /// The reader's revision afterwards.
    pub to: u64,
    /// What it does.
    pub transition: Transition,
    /// Deliveries that the oracle has not been told of.
    pub untold: u32,
    /// Where its bytes begin, counted over all bytes ever kept.
    at: u64,
    len: usize,
    /// The checksum that the frame carries.
    checksum: u64,
}

impl Known {
    /// Bytes of the frame.
    pub fn bytes(&self) -> usize {
        self.len
    }
}

/// See the module.
pub struct Reel {
    frames: Vec<Known>,
    next: u64,
    bytes: Vec<u8>,
    written: u64,
    by_checksum: HashMap<u64, u64>,
}

impl Reel {
    /// No frames yet.
    pub fn new() -> Self {
        Self {
            frames: Vec::with_capacity(FRAMES),
            next: 0,
            bytes: vec![0; BYTES],
            written: 0,
            by_checksum: HashMap::new(),
        }
    }

    /// The frame numbered `number`, if it is still here and is, byte for byte, `frame`.
    pub fn same(&mut self, number: u64, frame: &[u8]) -> Option<&mut Known> {
        if number >= self.next || number + FRAMES as u64 <= self.next {
            return None;
        }
        let known = &mut self.frames[number as usize % FRAMES];
        if known.len != frame.len() || known.at + (BYTES as u64) < self.written {
            return None;
        }
        let at = (known.at % BYTES as u64) as usize;
        (self.bytes[at..at + known.len] == *frame).then_some(known)
    }

    /// The services of the frames from `number` on, as far as they are here.
    pub fn services_from(&self, number: u64) -> impl Iterator<Item = u32> {
        let kept = self.next.saturating_sub(FRAMES as u64);
        (number.max(kept)..self.next).map(|number| self.frames[number as usize % FRAMES].service)
    }

    /// The frame numbered `number`, which was returned by [`Reel::same`] or [`Reel::add`] not long ago.
    pub fn get(&mut self, number: u64) -> &mut Known {
        &mut self.frames[number as usize % FRAMES]
    }

    /// The number of a frame that the oracle has just taken; it is kept if it is new. Nothing may be untold.
    pub fn add(&mut self, frame: &[u8], service: u32, revisions: Range<u64>, transition: Transition) -> u64 {
        let checksum = frame[8..16].iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
        if let Some(&number) = self.by_checksum.get(&checksum)
            && self.same(number, frame).is_some()
        {
            return number;
        }
        if frame.len() > BYTES {
            return self.next;
        }
        let room = BYTES as u64 - self.written % BYTES as u64;
        if room < frame.len() as u64 {
            self.written += room;
        }
        let at = self.written;
        self.written += frame.len() as u64;
        let start = (at % BYTES as u64) as usize;
        self.bytes[start..start + frame.len()].copy_from_slice(frame);
        let (from, to) = (revisions.start, revisions.end);
        let known = Known { service, from, to, transition, untold: 0, at, len: frame.len(), checksum };
        let number = self.next;
        self.next += 1;
        if self.frames.len() < FRAMES {
            self.frames.push(known);
        } else {
            let old = std::mem::replace(&mut self.frames[number as usize % FRAMES], known);
            debug_assert_eq!(old.untold, 0);
            if self.by_checksum.get(&old.checksum) == Some(&(number - FRAMES as u64)) {
                self.by_checksum.remove(&old.checksum);
            }
        }
        self.by_checksum.insert(checksum, number);
        number
    }
}

impl Default for Reel {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::transition::Coverage;

    fn transition() -> Transition {
        Transition {
            from: 0,
            to: 1,
            observation: 0,
            covered: Coverage::Nothing,
            in_window: true,
            resurrected: 0,
            foreign: 0,
        }
    }

    fn frame(number: u64, len: usize) -> Vec<u8> {
        let mut frame = vec![number as u8; len];
        frame[8..16].copy_from_slice(&number.to_le_bytes());
        frame
    }

    #[test]
    fn a_frame_is_known_by_all_its_bytes_while_it_is_kept() {
        let mut reel = Reel::new();
        for number in 0..FRAMES as u64 + 10 {
            assert_eq!(reel.add(&frame(number, 48), 0, 1..2, transition()), number);
        }
        let mut last = frame(20, 48);
        assert_eq!(reel.add(&last, 0, 1..2, transition()), 20, "kept once");
        assert!(reel.same(20, &last).is_some() && reel.same(21, &last).is_none());
        last[47] ^= 1;
        assert!(reel.same(20, &last).is_none());
        assert!(reel.same(3, &frame(3, 48)).is_none(), "too old");
        assert!(reel.same(FRAMES as u64 + 10, &frame(0, 48)).is_none(), "not yet there");
    }

    #[test]
    fn bytes_that_were_written_over_are_not_compared() {
        let mut reel = Reel::new();
        for number in 0..20 {
            reel.add(&frame(number, 4 << 20), 0, 1..2, transition());
        }
        assert!(reel.same(0, &frame(0, 4 << 20)).is_none());
        assert!(reel.same(19, &frame(19, 4 << 20)).is_some());
    }
}
