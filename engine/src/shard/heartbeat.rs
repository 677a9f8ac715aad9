//! Heartbeats of sessions: what a session and this shard hold is compared, and so is who they take for the leader of what.

use super::{LinkError, Shard, Turns};
use crate::{
    digest::Digest,
    id::{Nanos, ReaderId, SessionId, SlotId},
    slot::Slot,
};

/// The heartbeat of a session as the shard sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeartbeatAnswer {
    /// What the session should confirm in its next heartbeat.
    pub mark: u64,
    /// Sessions whose registrations here are known to be complete, and for each how often this shard had become a leader of
    /// further slots by then.
    pub confirmed: Vec<(SessionId, u64)>,
    /// Slots that became this shard's less than a session's lease ago, or that a session whose lease runs has not confirmed
    /// since, each with the turn in which it did: of these only sessions that were confirmed in that turn or later are complete.
    pub unsettled: Vec<(SlotId, u64)>,
    /// Every session that has not confirmed by now has lost its lease. Says nothing about the slots in `unsettled`.
    pub settled: bool,
    /// The session does not know the slots that this shard leads, or knows others: nothing was compared.
    pub stale: bool,
    /// Where the session's registrations differ: this shard's digest of them per slot.
    pub differs: Option<Vec<(SlotId, Digest)>>,
}

impl Shard {
    /// A session's heartbeat: it confirms `mark` and tells the digest of everything it holds on this shard. `routes` is the
    /// sum of [`crate::id::route`] over the slots that it takes this shard for the leader of; 0 with a static configuration.
    /// Where that is another one than [`Shard::routes`], nothing is compared: the lease is renewed, and that is all.
    pub fn handle_heartbeat(
        &mut self,
        reader: ReaderId,
        mark: u64,
        digest: Digest,
        routes: u64,
        now: Nanos,
    ) -> Result<HeartbeatAnswer, LinkError> {
        self.now = now;
        let session = self.session_of(reader)?;
        self.leases.renew(session, now)?;
        let stale = routes != self.routes();
        let differs = if stale {
            self.count_stale();
            None
        } else {
            self.compare(session, digest)
        };
        if !stale && differs.is_none() {
            self.confirm(session, mark);
        }
        let Turns { confirmed, unsettled } = self.turns();
        Ok(HeartbeatAnswer { mark: self.mark, confirmed, unsettled, settled: self.settled, stale, differs })
    }

    /// What the sessions have confirmed, and what they still have to.
    pub fn turns(&self) -> Turns {
        match &self.cluster {
            Some(cluster) => cluster.turns(),
            None => {
                let confirmed = self.confirmed_marks.keys().map(|session| (*session, 0)).collect();
                Turns { confirmed, unsettled: Vec::new() }
            }
        }
    }

    /// This shard's digests of what the session owns, by slot, if they are not what the session says.
    fn compare(&self, session: SessionId, digest: Digest) -> Option<Vec<(SlotId, Digest)>> {
        let per_slot: Vec<(SlotId, Digest)> = self
            .slots
            .iter_led()
            .map(|slot| (slot.id(), slot.session_digest(session)))
            .filter(|(_, digest)| !digest.is_empty())
            .collect();
        let mine = per_slot.iter().fold(Digest::default(), |sum, (_, digest)| Digest {
            sum: sum.sum.wrapping_add(digest.sum),
            count: sum.count + digest.count,
        });
        (mine != digest).then_some(per_slot)
    }

    /// Everything that a session holds is here.
    fn confirm(&mut self, session: SessionId, mark: u64) {
        if self.cluster.is_some() {
            self.confirm_turns(session);
        } else if !self.confirmed_marks.contains_key(&session) {
            self.advance_all();
        }
        let confirmed = self.confirmed_marks.entry(session).or_insert(0);
        *confirmed = (*confirmed).max(mark);
    }

    /// A session is complete here now, or is known to be gone: answers from now on carry a larger revision than those that
    /// were given before, so that what they lack can be told as a change.
    pub(super) fn advance_all(&mut self) {
        self.seal_all();
        if self.cluster.is_some() {
            let led: Vec<SlotId> = self.slots.iter_led().map(Slot::id).collect();
            led.into_iter().for_each(|slot| self.advance_slot(slot));
        } else {
            self.slots.iter_mut().for_each(Slot::advance);
        }
    }
}
