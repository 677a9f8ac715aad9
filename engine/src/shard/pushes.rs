//! What is handed to readers at the end of a turn: every diff that is due, once for all who lack the same.

use std::collections::BTreeSet;

use super::{
    Shard, ShardStats,
    laggards::{Laggard, Round},
};
use crate::{
    diff::{self, Answer},
    faults::{Fault, Faults},
    id::{DatumKey, ReaderId, Revision, SlotId},
    slot::Slot,
};

/// From where a reader asks for a data id.
#[derive(Clone, Copy)]
pub(super) enum Since {
    /// A revision of the slot's own history; zero: nothing that counts.
    Here(Revision),
    /// It is in another history, which left the slot's own at this revision.
    Elsewhere(Revision),
}

/// One diff for some readers. Written once, whoever gets it.
pub struct Push<'a> {
    /// Who gets it, in rising order. Data ids that the same readers want have equal slices here.
    pub readers: &'a [ReaderId],
    /// The data id's slot.
    pub slot: SlotId,
    /// The data id.
    pub datum: DatumKey,
    /// What they lack.
    pub answer: Answer<'a>,
}

impl Shard {
    /// Hands every diff that is due to `deliver`. Call after [`Shard::seal`].
    pub fn poll_push(&mut self, mut deliver: impl FnMut(Push<'_>)) {
        debug_assert!(self.dirty.is_empty(), "seal before reading");
        // In a cluster each slot is asked for itself.
        if !self.may_tell() || self.cluster.is_none() && !self.is_serving() {
            return;
        }
        // Almost always every reader is in step, and there is nothing to pick.
        let all_in_step =
            self.catching_up.is_empty() && self.asked.is_empty() && self.interests.behind() == 0;
        let mut picked = Vec::new();
        // What was sealed more than once in this turn is told once, from before the first time: every answer leads to the
        // present, and no two may lead there by different ways.
        let mut sealed: Vec<SlotId> = self.sealed.iter().map(|seal| seal.slot).collect();
        sealed.sort_unstable();
        let again: BTreeSet<SlotId> =
            sealed.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
        let mut told = BTreeSet::new();
        while let Some(seal) = self.sealed.pop_front() {
            let Some(slot) = self.slots.get(seal.slot) else { continue };
            let is_again = again.contains(&seal.slot);
            for datum in seal.changed {
                if is_again && !told.insert(datum) {
                    continue;
                }
                let mut readers = self.interests.readers(seal.slot, datum);
                if !all_in_step {
                    picked.clear();
                    picked.extend(
                        readers
                            .iter()
                            .filter(|reader| self.interests.is_in_step(**reader))
                            .filter(|reader| !self.catching_up.contains_key(&(**reader, seal.slot)))
                            .filter(|reader| !self.asked.contains_key(&(**reader, seal.slot, datum))),
                    );
                    readers = &picked;
                }
                if !readers.is_empty() {
                    let answer = answer(self.faults, slot, datum, seal.previous);
                    count(&mut self.stats, &answer);
                    deliver(Push { readers, slot: seal.slot, datum, answer });
                }
            }
        }
        let faults = self.faults;
        let (slots, stats) = (&self.slots, &mut self.stats);
        let mut laggards: Vec<Laggard> = std::mem::take(&mut self.catching_up)
            .into_iter()
            .map(|((reader, slot), since)| (slot, reader, since))
            .collect();
        laggards.sort_by_key(|(slot, ..)| *slot);
        let mut round = Round::default();
        let mut tell = |round: Round| {
            round.tell(|readers, slot_id, datum, since| {
                let Some(slot) = slots.accepting(slot_id) else { return };
                let answer = answer(faults, slot, datum, since);
                count(stats, &answer);
                deliver(Push { readers, slot: slot_id, datum, answer });
            });
        };
        for laggards in laggards.chunk_by(|a, b| a.0 == b.0) {
            // Whoever reads from a slot that does not answer yet has asked for it.
            let Some(slot) = slots.accepting(laggards[0].0) else { continue };
            round.add(slot, laggards, &self.interests, &self.asked);
            if round.is_full() {
                tell(std::mem::take(&mut round));
            }
        }
        tell(round);
        let answered = self.asked.extract_if(.., |(reader, slot, _), _| {
            self.interests.is_in_step(*reader) && slots.accepting(*slot).is_some()
        });
        for ((reader, slot_id, datum), since) in answered {
            let Some(slot) = slots.accepting(slot_id) else { continue };
            let answer = match since {
                Since::Here(since) => answer(faults, slot, datum, since),
                Since::Elsewhere(left_at) => diff::forked(slot, datum, left_at),
            };
            count(stats, &answer);
            deliver(Push { readers: &[reader], slot: slot_id, datum, answer });
        }
    }
}

/// What a reader at `since` lacks of a data id.
fn answer(faults: Faults, slot: &Slot, datum: DatumKey, since: Revision) -> Answer<'_> {
    let mut answer = diff::collect(slot, datum, since);
    if faults.has(Fault::SnapshotStampedOld)
        && answer.is_snapshot
        && let Some((last, ..)) = slot.datum_state(datum)
    {
        answer.to = last;
    }
    answer
}

fn count(stats: &mut ShardStats, answer: &Answer<'_>) {
    if answer.is_snapshot {
        stats.snapshots += 1;
    } else {
        stats.diffs += 1;
    }
}
