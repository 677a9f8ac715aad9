//! What waits for one link: bytes of its own, and diffs that it shares with other links.
//!
//! Links that want the same data ids get the same bytes at the same time. Those bytes are made once, kept once however many
//! links still wait for them, and handed to each socket from there.

use std::collections::VecDeque;

use slotcast_engine::id::ReaderId;

use crate::io::ring::{ConnId, SendOutcome, SharedFrame, Sockets};

/// Own bytes are handed over instead of copied above this.
const HAND_OVER_BYTES: usize = 256 * 1024;
/// Bytes that are copied together for one write.
const GATHER_BYTES: usize = 512 * 1024;
/// Fewer shared bytes than this are copied to each link: a piece of its own would cost more.
const SHARE_BYTES: usize = 2048;
/// A run of diffs is closed when it has so many bytes.
const RUN_BYTES: usize = 512 * 1024;

/// The output of one link, in its order: shared pieces, then what was written last.
#[derive(Default)]
pub(super) struct Outbox {
    pieces: VecDeque<SharedFrame>,
    piece_bytes: usize,
    own: Vec<u8>,
}

impl Outbox {
    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.piece_bytes + self.own.len()
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where bytes of this link alone are appended.
    pub(super) fn own(&mut self) -> &mut Vec<u8> {
        &mut self.own
    }

    /// Appends bytes that other links get, too.
    pub(super) fn push(&mut self, bytes: &Bytes<'_>) {
        let Some(piece) = bytes.shared else { return self.own.extend_from_slice(bytes.frames) };
        if !self.own.is_empty() {
            self.piece_bytes += self.own.len();
            self.pieces.push_back(self.own.as_slice().into());
            self.own.clear();
        }
        self.piece_bytes += piece.len();
        self.pieces.push_back(piece.clone());
    }

    /// Drops everything: the link is gone.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Gives one write to the socket, of everything if that is not very much. Tells what became of it and how many bytes
    /// it had.
    pub(super) fn send(&mut self, conn: ConnId, sockets: &mut dyn Sockets) -> (SendOutcome, usize) {
        if self.pieces.is_empty() {
            let outcome = if self.own.len() >= HAND_OVER_BYTES {
                sockets.send_shared(conn, &self.own.as_slice().into())
            } else {
                sockets.send(conn, &[&self.own])
            };
            return (outcome, self.sent(outcome, 0, true));
        }
        let lengths = self.pieces.iter().map(|piece| piece.len()).chain([self.own.len()]);
        let sums = lengths.scan(0, |sum, len| {
            *sum += len;
            Some(*sum)
        });
        let fitting = sums.take_while(|sum| *sum <= GATHER_BYTES).count();
        let with_own = fitting > self.pieces.len();
        let count = fitting.clamp(1, self.pieces.len());
        if count == 1 && (!with_own || self.own.is_empty()) {
            let outcome = sockets.send_shared(conn, &self.pieces[0]);
            return (outcome, self.sent(outcome, 1, with_own));
        }
        let mut parts: Vec<&[u8]> = self.pieces.iter().take(count).map(|piece| &**piece).collect();
        if with_own {
            parts.push(&self.own);
        }
        let outcome = sockets.send(conn, &parts);
        (outcome, self.sent(outcome, count, with_own))
    }

    /// Forgets what a send took; returns its bytes.
    fn sent(&mut self, outcome: SendOutcome, pieces: usize, with_own: bool) -> usize {
        match outcome {
            SendOutcome::Busy => return 0,
            SendOutcome::Gone => {
                self.clear();
                return 0;
            }
            SendOutcome::Queued => {}
        }
        let mut bytes: usize = self.pieces.drain(..pieces).map(|piece| piece.len()).sum();
        self.piece_bytes -= bytes;
        if with_own {
            bytes += self.own.len();
            self.own.clear();
            self.own.shrink_to(HAND_OVER_BYTES);
        }
        bytes
    }
}

/// What a run of diffs hands to each of its readers.
pub(super) struct Bytes<'a> {
    /// Diffs in it.
    pub(super) diffs: u64,
    frames: &'a [u8],
    shared: Option<&'a SharedFrame>,
}

/// Diffs one behind the other that go to the same readers.
#[derive(Default)]
pub(super) struct Run {
    readers: Vec<ReaderId>,
    frames: Vec<u8>,
    diffs: u64,
}

impl Run {
    /// Whether a diff for `readers` can join.
    pub(super) fn takes(&self, readers: &[ReaderId]) -> bool {
        self.readers == readers && self.frames.len() < RUN_BYTES
    }

    /// Starts a run for other readers; the one before has been delivered.
    pub(super) fn start(&mut self, readers: &[ReaderId]) {
        debug_assert!(self.diffs == 0);
        self.readers.clear();
        self.readers.extend_from_slice(readers);
    }

    /// Where the next diff is appended.
    pub(super) fn next(&mut self) -> &mut Vec<u8> {
        self.diffs += 1;
        &mut self.frames
    }

    /// Hands the run to every reader: `give` finds its outbox and appends the bytes there.
    pub(super) fn deliver(&mut self, mut give: impl FnMut(ReaderId, Bytes<'_>)) {
        let is_shared = self.readers.len() > 1 && self.frames.len() >= SHARE_BYTES;
        let shared = is_shared.then(|| SharedFrame::from(self.frames.as_slice()));
        if self.diffs > 0 {
            for reader in &self.readers {
                give(*reader, Bytes { frames: &self.frames, shared: shared.as_ref(), diffs: self.diffs });
            }
        }
        self.frames.clear();
        self.frames.shrink_to(2 * RUN_BYTES);
        self.diffs = 0;
    }
}
