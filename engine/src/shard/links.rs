//! Links of sessions: who is there, what it wants to read, and whether it can take more.

use std::collections::{BTreeMap, BTreeSet};

use super::{Shard, insight::note_reads, pushes::Since};
use crate::{
    error::Refusal,
    faults::Fault,
    id::{DataId, DatumKey, Nanos, ReaderId, Revision, SessionId, SlotId},
    slot::Slot,
};

/// Why a link has to be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The session or the sequence is refused.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The reader was never opened.
    #[error("write on a link that has not introduced itself")]
    Unknown,
    /// A write frame that cannot be read.
    #[error("write frame: {0}")]
    Malformed(#[from] crate::batch::BatchError),
}

#[derive(Default)]
pub(super) struct Link {
    pub(super) session: Option<SessionId>,
    pub(super) refused_names: BTreeSet<DatumKey>,
}

impl Shard {
    /// A session's link comes up. `epoch_seen` is the largest leader epoch the session has seen of this shard's slots:
    /// this shard then moves to a larger one unless it was told in this run (`same_run`). Returns the last write sequence
    /// taken from this incarnation.
    pub fn handle_link_open(
        &mut self,
        reader: ReaderId,
        session: SessionId,
        epoch_seen: u32,
        same_run: bool,
        now: Nanos,
    ) -> Result<u64, Refusal> {
        self.now = now;
        if session == SessionId::NOBODY {
            return Err(Refusal::SessionEnded);
        }
        // A larger epoch than this shard's is of another run, whatever the session was linked to before. In a cluster epochs
        // come from the slot table.
        let foreign = epoch_seen > self.epoch || !same_run && epoch_seen == self.epoch;
        let foreign = foreign && self.cluster.is_none();
        let foreign = foreign && !self.faults.has(Fault::EpochReused);
        if foreign && epoch_seen >= Revision::EPOCH_MAX {
            return Err(Refusal::EpochMismatch);
        }
        self.leases.renew(session, now)?;
        if foreign {
            self.raise_epoch(epoch_seen + 1);
        }
        self.opened_at.get_or_insert(now);
        // Whatever still arrives over an earlier link of this incarnation was sent before what comes over this one.
        for (other, link) in
            self.links.iter_mut().filter(|(other, link)| **other != reader && link.session == Some(session))
        {
            link.session = None;
            note_reads(&mut self.slots, &self.interests, *other, now);
            self.interests.close(*other);
        }
        self.links.insert(reader, Link { session: Some(session), refused_names: BTreeSet::new() });
        self.interests.open(reader);
        self.links_changed();
        Ok(*self.sequences.entry(session).or_insert(0))
    }

    /// Bytes have come over a session's link, whatever they say: it lives, and its lease begins anew.
    pub fn handle_bytes(&mut self, reader: ReaderId, now: Nanos) {
        self.now = now;
        if let Some(session) = self.links.get(&reader).and_then(|link| link.session) {
            // One whose lease has ended stays refused, and hears so when it asks for something.
            let _ = self.leases.renew(session, now);
        }
    }

    /// Whether a session that was linked to another run may still come: if this run has not heard of it for a lease, its
    /// lease has ended, and what it holds may have been removed since without a trace.
    pub fn expects(&self, session: SessionId, now: Nanos) -> bool {
        self.leases.is_alive(session) || !self.waited(now) || self.leads_nothing()
    }

    /// Whether the lease of a session incarnation is running.
    pub fn is_alive(&self, session: SessionId) -> bool {
        self.leases.is_alive(session)
    }

    /// A link is gone. The session's lease runs on.
    pub fn handle_link_close(&mut self, reader: ReaderId) {
        self.links.remove(&reader);
        note_reads(&mut self.slots, &self.interests, reader, self.now);
        self.interests.close(reader);
        self.asked.retain(|(other, ..), _| *other != reader);
        self.catching_up.retain(|(other, _), _| *other != reader);
        self.acks.retain(|ack| ack.reader != reader);
        self.durable_acks.close(reader);
        self.links_changed();
    }

    pub(super) fn links_changed(&mut self) {
        if let Some(cluster) = &mut self.cluster {
            cluster.links_changed();
        }
    }

    /// The session behind a link leaves for good; its registrations go at once.
    pub fn handle_goodbye(&mut self, reader: ReaderId) {
        if let Some(session) = self.links.get(&reader).and_then(|link| link.session) {
            self.leases.end(session);
            self.end_session(session);
        }
    }

    /// A reader wants a data id, of which it holds the state at `since` (zero: nothing, or not from this run). The first
    /// answer comes with the next pushes and is complete.
    pub fn handle_interest(&mut self, reader: ReaderId, id: &DataId, since: Revision) -> Result<(), Refusal> {
        let datum = id.key();
        let slot = datum.slot(self.config.slot_count);
        let held = self.slots.led(slot).ok_or(Refusal::SlotMoved)?;
        if held.collides(datum, id.as_bytes()) {
            return Err(Refusal::KeyCollision);
        }
        // In a cluster a revision may be of an epoch that ended before it.
        let is_trusted =
            self.cluster.is_none() || held.has_been_at(since) || self.faults.has(Fault::DiffAcrossFork);
        if !self.interests.add(reader, slot, datum) && since == Revision::ZERO {
            // The reader holds a list and asks for it once more, because it would read an absence differently by now. Its
            // answer has to be told apart from what it was told before.
            self.seal_slot(slot, self.now);
            if self.cluster.is_some() {
                self.advance_slot(slot);
            } else if let Some(slot) = self.slots.get_mut(slot) {
                slot.advance();
            }
        }
        self.note_read(slot, datum);
        let from = match self.slots.led(slot).and_then(|slot| slot.left_at(since)) {
            _ if is_trusted => Since::Here(since),
            Some(left_at) => Since::Elsewhere(left_at),
            None => Since::Here(Revision::ZERO),
        };
        let asked = self.asked.entry((reader, slot, datum)).or_insert(from);
        // Who asks once more for all of it still holds what it held.
        if since != Revision::ZERO || !matches!(asked, Since::Elsewhere(_)) {
            *asked = from;
        }
        Ok(())
    }

    /// A reader no longer wants a data id.
    pub fn handle_uninterest(&mut self, reader: ReaderId, datum: DatumKey) {
        let slot = datum.slot(self.config.slot_count);
        self.note_read(slot, datum);
        self.interests.remove(reader, slot, datum);
        self.asked.remove(&(reader, slot, datum));
    }

    /// The reader's link cannot take more for now.
    pub fn handle_reader_blocked(&mut self, reader: ReaderId) {
        // What has been sealed and not handed out yet is still to come for this reader.
        let sealed = self.sealed.iter().rev().map(|seal| (seal.slot, seal.previous));
        let mut marks: BTreeMap<SlotId, Revision> = sealed.collect();
        marks.extend(
            self.catching_up
                .extract_if((reader, SlotId(0))..=(reader, SlotId::NONE), |_, _| true)
                .map(|((_, slot), since)| (slot, since)),
        );
        let slots = &self.slots;
        self.interests.fall_behind(reader, |slot| {
            marks.get(&slot).copied().or_else(|| slots.get(slot).map(Slot::revision))
        });
    }

    /// The reader's link can take more again.
    pub fn handle_reader_writable(&mut self, reader: ReaderId) {
        for (slot, revision) in self.interests.catch_up(reader) {
            self.catching_up.insert((reader, slot), revision);
        }
    }

    pub(super) fn session_of(&self, reader: ReaderId) -> Result<SessionId, LinkError> {
        self.links.get(&reader).and_then(|link| link.session).ok_or(LinkError::Unknown)
    }
}
