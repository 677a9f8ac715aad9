//! One client as the session sees it.

use std::collections::{BTreeSet, VecDeque};

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
    /// The subscription that the last write had no room for; zero if it had for all.
    pub(super) goes_on_at: u32,
    /// Its registrations; whoever publishes for many has thousands.
    pub(super) published: BTreeSet<(DatumKey, RegisterId)>,
    /// Oldest first, which is mostly the order in which they are decided.
    pending: VecDeque<PendingWrite>,
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
            goes_on_at: 0,
            published: BTreeSet::new(),
            pending: VecDeque::new(),
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
        if count == 0 {
            return write_ack(&mut self.out, sequence, &[]);
        }
        self.pending.push_back(PendingWrite { sequence, missing: count, outcomes: vec![None; count] });
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
        let Some(at) = self.pending.iter().position(|write| write.sequence == sequence) else { return false };
        let write = &mut self.pending[at];
        if let Some(place @ None) = write.outcomes.get_mut(index) {
            *place = Some(outcome);
            write.missing -= 1;
        }
        if write.missing > 0 {
            return false;
        }
        let outcomes: Vec<_> = write.outcomes.iter().copied().flatten().collect();
        write_ack(&mut self.out, sequence, &outcomes);
        self.pending.remove(at);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_acknowledged_once_all_of_it_is_decided_whatever_came_before() {
        let mut client = Client::new(ConnId::from_parts(1, 1), Nanos(1));
        for sequence in 1..=3 {
            client.expect_outcomes(sequence, 2);
        }
        assert_eq!((client.pending_writes(), client.out.len()), (3, 0));
        assert!(!client.resolve(3, 1, Ok(Revision(9))) && !client.resolve(1, 0, Ok(Revision(9))));
        assert!(!client.resolve(3, 1, Ok(Revision(10))), "each outcome counts once");
        assert!(client.resolve(3, 0, Err(Refusal::Superseded)));
        assert_eq!(client.pending_writes(), 2);
        let first = client.out.len();
        assert!(first > 0 && !client.resolve(3, 0, Ok(Revision(9))), "it is gone");
        assert!(client.resolve(1, 1, Ok(Revision(9))));
        client.expect_outcomes(4, 0);
        assert!(client.out.len() > 2 * first, "nothing to decide is decided");
        assert_eq!(client.pending_writes(), 1);
    }

    #[test]
    fn an_idle_client_is_small() {
        assert!(size_of::<Client>() <= 184, "{} bytes", size_of::<Client>());
        assert_eq!(size_of::<Subscription>(), 16);
    }
}
