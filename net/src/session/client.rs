//! One client as the session sees it.

use slotcast_engine::{
    error::Refusal,
    id::{ClientId, DatumKey, Nanos, RegisterId, Revision},
};

use crate::{
    io::ring::ConnId,
    wire::{Decoder, ErrorCode, Message, message::write_ack},
};

/// A subscription: 16 bytes per (client, data id).
#[derive(Clone, Copy)]
pub(super) struct Subscription {
    /// The data id's number in the cache, or [`VACANT`].
    pub(super) datum: u32,
    /// Where the client stands in the data id's list of subscribers.
    pub(super) position: u32,
    /// Everything up to here has been written to the client; zero: nothing yet; [`AWAITING`]: no first answer yet.
    pub(super) sent: Revision,
}

/// Marks a subscription's place as free.
pub(super) const VACANT: u32 = u32::MAX;
/// Marks a subscription whose data id is not known yet.
pub(super) const AWAITING: Revision = Revision(u64::MAX);

/// A write frame of the client whose outcomes are not all known.
struct PendingWrite {
    sequence: u64,
    missing: usize,
    outcomes: Vec<Option<Result<Revision, Refusal>>>,
}

/// State of one connection.
pub(super) struct Client {
    pub(super) conn: ConnId,
    pub(super) id: Option<ClientId>,
    pub(super) decoder: Decoder,
    /// Frames for this client alone: welcome, acknowledgements, refusals, errors.
    pub(super) out: Vec<u8>,
    pub(super) subscriptions: Vec<Subscription>,
    pub(super) published: Vec<(DatumKey, RegisterId)>,
    pending: Vec<PendingWrite>,
    pub(super) heard_at: Nanos,
    /// Since when the socket takes nothing.
    pub(super) busy_since: Option<Nanos>,
    pub(super) counted_slow: bool,
    pub(super) closing: Option<ErrorCode>,
    pub(super) said_goodbye: bool,
}

impl Client {
    pub(super) fn new(conn: ConnId, now: Nanos) -> Self {
        Self {
            conn,
            id: None,
            decoder: Decoder::default(),
            out: Vec::new(),
            subscriptions: Vec::new(),
            published: Vec::new(),
            pending: Vec::new(),
            heard_at: now,
            busy_since: None,
            counted_slow: false,
            closing: None,
            said_goodbye: false,
        }
    }

    /// Tells the client why it is closed. Only the first reason counts.
    pub(super) fn refuse(&mut self, code: ErrorCode, text: &str, retry_after_ms: u32) {
        if self.closing.is_none() {
            Message::Error { code: code as u16, retry_after_ms, text }.write(&mut self.out);
            self.closing = Some(code);
        }
    }

    /// Opens a write frame with `count` outcomes to come.
    pub(super) fn expect_outcomes(&mut self, sequence: u64, count: usize) {
        self.pending.push(PendingWrite { sequence, missing: count, outcomes: vec![None; count] });
        if count == 0 {
            self.finish_writes();
        }
    }

    /// Write frames without all their outcomes.
    pub(super) fn pending_writes(&self) -> usize {
        self.pending.len()
    }

    /// Notes one outcome; when it was the frame's last, the acknowledgement is written. Returns whether it was.
    pub(super) fn resolve(
        &mut self,
        sequence: u64,
        index: usize,
        outcome: Result<Revision, Refusal>,
    ) -> bool {
        let Some(write) = self.pending.iter_mut().find(|write| write.sequence == sequence) else {
            return false;
        };
        if let Some(place @ None) = write.outcomes.get_mut(index) {
            *place = Some(outcome);
            write.missing -= 1;
        }
        write.missing == 0 && self.finish_writes()
    }

    fn finish_writes(&mut self) -> bool {
        let before = self.out.len();
        let out = &mut self.out;
        self.pending.retain(|write| {
            if write.missing > 0 {
                return true;
            }
            let outcomes: Vec<_> = write.outcomes.iter().copied().flatten().collect();
            write_ack(out, write.sequence, &outcomes);
            false
        });
        self.out.len() > before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_client_is_small() {
        assert!(size_of::<Client>() <= 176, "{} bytes", size_of::<Client>());
        assert_eq!(size_of::<Subscription>(), 16);
    }
}
