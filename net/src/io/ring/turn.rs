//! What the sends of one turn point at: a staging area for copied bytes and the shared frames in use.
//!
//! A turn lasts from one flush to the next. The kernel reads this memory only while a send is submitted, so both parts are
//! free again once nothing is queued. What a short send left over is moved out before that, as a [`Rest`].

use super::{SharedFrame, memory::Pages};
use std::io;

/// Shared frames a turn may pin; beyond it the turn is flushed.
const FRAMES_MAX: usize = 4096;

/// Where the bytes of a queued send lie.
#[derive(Copy, Clone, Debug)]
pub(super) enum Source {
    Staged { offset: u32, len: u32 },
    Frame { index: u32 },
}

pub(super) struct Turn {
    staging: Pages,
    used: usize,
    frames: Vec<SharedFrame>,
}

impl Turn {
    pub fn new(staging_bytes: usize) -> io::Result<Self> {
        Ok(Self { staging: Pages::zeroed(staging_bytes)?, used: 0, frames: Vec::new() })
    }

    pub fn capacity(&self) -> usize {
        self.staging.len()
    }

    pub fn has_room(&self, bytes: usize) -> bool {
        bytes <= self.staging.len() - self.used && self.frames.len() < FRAMES_MAX
    }

    /// Copies `parts` together. There must be room.
    pub fn stage(&mut self, parts: &[&[u8]]) -> Source {
        let offset = self.used;
        for part in parts {
            assert!(part.len() <= self.staging.len() - self.used, "staging has no room");
            // SAFETY: in bounds by the assertion; the kernel only reads staged bytes, and those beyond `used` are in no
            // queued send.
            unsafe {
                let end = self.staging.as_ptr().add(self.used);
                std::ptr::copy_nonoverlapping(part.as_ptr(), end, part.len());
            }
            self.used += part.len();
        }
        Source::Staged { offset: offset as u32, len: (self.used - offset) as u32 }
    }

    /// Keeps a frame alive for this turn; the same frame for many connections in a row is kept once.
    pub fn keep(&mut self, frame: &SharedFrame) -> Source {
        if !self.frames.last().is_some_and(|last| SharedFrame::ptr_eq(last, frame)) {
            self.frames.push(frame.clone());
        }
        Source::Frame { index: (self.frames.len() - 1) as u32 }
    }

    pub fn bytes(&self, source: Source) -> &[u8] {
        match source {
            Source::Staged { offset, len } => {
                let (offset, len) = (offset as usize, len as usize);
                assert!(offset + len <= self.used, "source is of another turn");
                // SAFETY: in bounds by the assertion, initialised since allocation, written only through `&mut self`.
                unsafe { std::slice::from_raw_parts(self.staging.as_ptr().add(offset), len) }
            }
            Source::Frame { index } => &self.frames[index as usize],
        }
    }

    /// What is left of a send after its first `sent` bytes.
    pub fn rest(&self, source: Source, sent: usize) -> Rest {
        match source {
            Source::Staged { .. } => {
                Rest { bytes: RestBytes::Copied(self.bytes(source)[sent..].into()), sent: 0 }
            }
            Source::Frame { index } => {
                Rest { bytes: RestBytes::Shared(self.frames[index as usize].clone()), sent }
            }
        }
    }

    /// Starts a new turn; nothing may be queued.
    pub fn clear(&mut self) {
        self.used = 0;
        self.frames.clear();
    }
}

/// The unsent remainder of one write.
pub(super) struct Rest {
    bytes: RestBytes,
    sent: usize,
}

enum RestBytes {
    Copied(Box<[u8]>),
    Shared(SharedFrame),
}

impl Rest {
    pub fn remaining(&self) -> &[u8] {
        match &self.bytes {
            RestBytes::Copied(bytes) => &bytes[self.sent..],
            RestBytes::Shared(frame) => &frame[self.sent..],
        }
    }

    pub fn advance(&mut self, bytes: usize) {
        self.sent += bytes;
    }
}
