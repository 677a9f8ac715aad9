//! Write frames: what each entry is decided to be, and the acknowledgement once its batches are sealed.

use std::collections::BTreeSet;

use super::{LinkError, Shard};
use crate::{
    batch::{ChangeKind, Entry, entries},
    error::Refusal,
    faults::Fault,
    id::{DataId, DatumKey, Nanos, ReaderId, Revision, SessionId, SlotId},
    slot::Slot,
};

/// Bytes of a put as they usually are; a frame has about so many outcomes.
const ENTRY_BYTES_USUAL: usize = 192;
/// Entries that are looked at together before the first of them is admitted: what they need fits the nearer caches.
const WARMED: usize = 256;
/// Puts of one data id that are looked up before the first of them is admitted: more misses than a processor has in flight.
const LOOK_AHEAD_MAX: usize = 16;

/// The outcome of one write frame, to be told once its batches are sealed.
pub struct Acknowledgement {
    /// Whose frame it was.
    pub reader: ReaderId,
    /// Its sequence.
    pub sequence: u64,
    /// For each put and removal in it, in order: the slot's revision that contains it, or why it was refused. With changes
    /// of persistent registrations in it, it comes when those are durable; other frames do not wait for it.
    pub outcomes: Vec<Result<Revision, Refusal>>,
}

pub(super) struct PendingAck {
    pub(super) reader: ReaderId,
    pub(super) sequence: u64,
    pub(super) outcomes: Vec<Result<SlotId, Refusal>>,
}

impl PendingAck {
    /// The slot is led here no more, and whether its next leader has what was taken is not known.
    pub(super) fn refuse_moved(&mut self, slot: SlotId) {
        self.outcomes.iter_mut().for_each(|outcome| {
            if *outcome == Ok(slot) {
                *outcome = Err(Refusal::SlotMoved);
            }
        });
    }
}

impl Shard {
    /// A write frame: change entries one behind the other. Each put and removal is decided on its own; the frame is
    /// refused as a whole only if it cannot be read or its sequence is not the next one.
    pub fn handle_write(
        &mut self,
        reader: ReaderId,
        sequence: u64,
        bytes: &[u8],
        now: Nanos,
    ) -> Result<(), LinkError> {
        self.now = now;
        let session = self.session_of(reader)?;
        self.leases.renew(session, now)?;
        let last = self.sequences.entry(session).or_insert(0);
        if sequence != *last + 1 {
            return Err(Refusal::SequenceBroken.into());
        }
        let mut parsed = Vec::with_capacity(bytes.len() / ENTRY_BYTES_USUAL);
        for entry in entries(bytes) {
            parsed.push(entry?);
        }
        *last = sequence;
        let mut outcomes = Vec::with_capacity(bytes.len() / ENTRY_BYTES_USUAL);
        let mut persistent = Vec::new();
        let mut refused_names = std::mem::take(&mut self.links.entry(reader).or_default().refused_names);
        let (mut warmed, mut looked_up) = (0, 0);
        for (at, &entry) in parsed.iter().enumerate() {
            if at >= warmed {
                warmed = (at + WARMED).min(parsed.len());
                self.warm(&parsed[at..warmed]);
            }
            let slot = entry.change.datum.slot(self.config.slot_count);
            if at >= looked_up && entry.change.kind == ChangeKind::Put {
                looked_up = at + self.look_ahead(slot, &parsed[at..]);
            }
            let outcome = self.admit(session, &mut refused_names, slot, entry);
            match outcome {
                Ok(()) => self.stats.admitted += 1,
                Err(_) => self.stats.refused += 1,
            }
            if entry.change.kind != ChangeKind::Name {
                if entry.change.is_persistent() && outcome.is_ok() {
                    persistent.push(outcomes.len());
                }
                outcomes.push(outcome.map(|()| slot));
            }
        }
        self.links.entry(reader).or_default().refused_names = refused_names;
        let ack = PendingAck { reader, sequence, outcomes };
        if persistent.is_empty() {
            self.acks.push_back(ack);
        } else {
            self.durable_acks.open(ack, persistent);
        }
        Ok(())
    }

    /// The next outcome of a write frame.
    pub fn poll_ack(&mut self) -> Option<Acknowledgement> {
        if !self.may_tell() {
            return None;
        }
        if let Some(ack) = self.durable_acks.poll() {
            return Some(ack);
        }
        let pending = self.acks.pop_front()?;
        let outcomes = pending
            .outcomes
            .into_iter()
            .map(|outcome| outcome.map(|slot| self.slots.get(slot).map_or(Revision::ZERO, Slot::revision)))
            .collect();
        Some(Acknowledgement { reader: pending.reader, sequence: pending.sequence, outcomes })
    }

    /// Looks at what each data id of `entries` will need (see [`Slot::warm`]).
    fn warm(&self, entries: &[Entry<'_>]) {
        for of_datum in entries.chunk_by(|a, b| a.change.datum == b.change.datum) {
            // A name has no owner, what follows it has.
            let (datum, owner) = (of_datum[0].change.datum, of_datum[of_datum.len() - 1].change.owner);
            if let Some(slot) = self.slots.led(datum.slot(self.config.slot_count)) {
                slot.warm(datum, owner);
            }
        }
    }

    /// Looks up the registrations of the puts of one data id that `entries` begin with, before the first of them is admitted: the
    /// index is larger than the processor's caches, and looked up together they wait for memory together. Returns how many.
    fn look_ahead(&self, slot: SlotId, entries: &[Entry<'_>]) -> usize {
        let datum = entries.first().map(|entry| entry.change.datum);
        let puts = entries.iter().map(|entry| entry.change).take(LOOK_AHEAD_MAX);
        let puts = puts.take_while(|put| put.kind == ChangeKind::Put && Some(put.datum) == datum);
        let count = puts.clone().count();
        if let (Some(datum), Some(slot)) = (datum, self.slots.led(slot)) {
            slot.look_up(datum, puts.map(|put| put.register));
        }
        count
    }

    fn admit(
        &mut self,
        session: SessionId,
        refused_names: &mut BTreeSet<DatumKey>,
        slot_id: SlotId,
        entry: Entry<'_>,
    ) -> Result<(), Refusal> {
        let change = entry.change;
        self.seal_if_full(slot_id, self.now);
        self.check_durability(session, &change, slot_id)?;
        let slot = self.slots.led_mut(slot_id).ok_or(Refusal::SlotMoved)?;
        if change.epoch != 0 && change.epoch != slot.revision().epoch() {
            return Err(Refusal::EpochMismatch);
        }
        let was_clean = slot.open_changes() == 0;
        let outcome = match change.kind {
            ChangeKind::Name => {
                let key = DataId::key_of_canonical(entry.name().unwrap_or_default());
                if key != Ok(change.datum) {
                    return Err(Refusal::NameInvalid);
                }
                let outcome = slot.admit_name(entry);
                if outcome.is_err() {
                    refused_names.insert(change.datum);
                } else if !refused_names.is_empty() {
                    refused_names.remove(&change.datum);
                }
                outcome
            }
            _ if refused_names.contains(&change.datum) => Err(Refusal::KeyCollision),
            ChangeKind::Put => {
                let record = entry.record().ok_or(Refusal::RecordInvalid)?;
                let client = if self.config.validate {
                    record.validate().map_err(|_| Refusal::RecordInvalid)?.0
                } else {
                    record.client().ok_or(Refusal::RecordInvalid)?.0
                };
                slot.admit_put(entry, client)
            }
            ChangeKind::Remove => {
                let mut change = change;
                if self.faults.has(Fault::RemovalByOther)
                    && let Some((_, owner)) = slot.get(change.datum, change.register)
                    && let Some((version, _)) = slot.version(change.datum, change.register)
                {
                    (change.owner, change.version) = (owner, version.max(change.version));
                }
                slot.admit_remove(&change, self.mark)
            }
            ChangeKind::Touch | ChangeKind::Forget | ChangeKind::Expire => Err(Refusal::RecordInvalid),
        };
        if was_clean && slot.open_changes() > 0 {
            self.dirty.push(slot_id);
        }
        outcome
    }
}
