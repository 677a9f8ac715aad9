//! A slot as a copy of another node's: it applies what its leader sealed, as the leader applied it, and may lead one day.

use std::collections::BTreeSet;

use super::{Lineage, Place, SinceLed, Slot};
use crate::{
    batch::{Batch, BatchError, ChangeKind, Entry},
    id::{DataId, DatumKey, Nanos, Revision},
};

/// Why a follower does not take what was sent to it. Nothing of it was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FollowError {
    /// The slot is not followed here: the leader should be told so.
    #[error("the slot is not followed here")]
    NotFollowing,
    /// Something between is missing: ask the leader for what comes after `at`.
    #[error("it follows {after}, and the slot is at {at}: ask for what comes after that")]
    Gap {
        /// Where the slot is.
        at: Revision,
        /// Where it would have to be.
        after: Revision,
    },
    /// It leads nowhere, or is of a leader epoch that the slot table here does not know yet.
    #[error("it leads to {to}, and the slot follows epoch {epoch} from {at}: ask for what comes after that")]
    Revision {
        /// Where the slot is.
        at: Revision,
        /// Where it would lead.
        to: Revision,
        /// The leader epoch that the slot follows.
        epoch: u32,
    },
    /// It cannot be read: close the connection.
    #[error("{0}")]
    Malformed(#[from] BatchError),
    /// It has an entry that no leader sends: close the connection.
    #[error("{0}")]
    Invalid(&'static str),
    /// It changes what is not here: this copy is not what the leader takes it for. Ask for the whole slot.
    #[error("it changes a data id that has not been named: ask for the whole slot")]
    Diverged,
}

impl FollowError {
    /// Where to ask the leader from, of a slot that has got to `applied`; `None`: do not ask again.
    pub fn ask_from(&self, applied: Revision) -> Option<Revision> {
        match self {
            Self::Gap { .. } | Self::Revision { .. } => Some(applied),
            Self::Diverged => Some(Revision::ZERO),
            Self::NotFollowing | Self::Malformed(_) | Self::Invalid(_) => None,
        }
    }
}

/// What is checked about entries that come from another node.
#[derive(Clone, Copy)]
pub(crate) struct Checks {
    /// Slots of the cluster.
    pub(crate) slot_count: u32,
    /// Whether records are validated.
    pub(crate) validate: bool,
}

impl Slot {
    /// Whether a reader that holds the state of `since` holds a state of this slot's own history that the log reaches: then
    /// a diff from there is right.
    pub fn trusts(&self, since: Revision) -> bool {
        self.has_been_at(since) && since >= self.log().floor()
    }

    /// Whether this slot has been at a revision.
    pub fn has_been_at(&self, at: Revision) -> bool {
        self.lineage.has(at, self.revision)
    }

    /// Where a reader at `since` has left this slot's history at the latest, if it has left it in an earlier epoch.
    pub fn left_at(&self, since: Revision) -> Option<Revision> {
        self.lineage.left_at(since, self.revision)
    }

    /// The last revision of each earlier leader epoch in this slot's history, in rising order.
    pub fn forks(&self) -> &[Revision] {
        self.lineage.forks()
    }

    pub(crate) fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    /// From now on its batches tell followers every name that they need.
    pub(crate) fn tell_names(&mut self) {
        self.tells_names = true;
    }

    /// Opens a larger epoch in the same history, and remembers where the one before ended. Tombstones are kept until a mark
    /// after `mark` is confirmed.
    pub(crate) fn lead(&mut self, epoch: u32, mark: u64) {
        let had_begun = self.revision != Revision::ZERO;
        self.lineage.end_epoch(self.revision);
        self.reopen(epoch);
        if !had_begun {
            self.restart_log();
        }
        self.since_led = Some(SinceLed::default());
        self.mark_tombstones(mark);
    }

    /// Finds what must not be applied in a batch. `is_partial`: the rest of this copy is still to come, so something may be
    /// changed that is not here yet.
    pub(crate) fn check_batch(
        &self,
        batch: Batch<'_>,
        checks: Checks,
        is_partial: bool,
    ) -> Result<(), FollowError> {
        let mut named: BTreeSet<DatumKey> = BTreeSet::new();
        let mut count = 0;
        for entry in batch.entries() {
            let entry = entry?;
            self.check_entry(entry, checks)?;
            count += 1;
            let datum = entry.change.datum;
            let known = self.find_datum(datum);
            if let (Some(name), Some(index)) = (entry.name(), known) {
                let held = self.datum(index);
                if &*held.name != name && (held.publishers > 0 || held.tombstones > 0) {
                    return Err(FollowError::Diverged);
                }
            }
            if known.is_none() && !named.contains(&datum) {
                if entry.change.kind == ChangeKind::Name {
                    named.insert(datum);
                } else if !is_partial {
                    return Err(FollowError::Diverged);
                }
            }
        }
        if count != batch.changes() {
            return Err(FollowError::Invalid("the batch has another number of changes than it says"));
        }
        Ok(())
    }

    /// Finds what no leader of this slot sends.
    pub(crate) fn check_entry(&self, entry: Entry<'_>, checks: Checks) -> Result<(), FollowError> {
        if entry.change.datum.slot(checks.slot_count) != self.id {
            return Err(FollowError::Invalid("an entry of another slot"));
        }
        if entry.name().is_some_and(|name| DataId::key_of_canonical(name) != Ok(entry.change.datum)) {
            return Err(FollowError::Invalid("a name that does not belong to its key"));
        }
        match entry.record().filter(|_| checks.validate) {
            Some(record) => Ok(record.validate().map(|_| ()).map_err(BatchError::from)?),
            None => Ok(()),
        }
    }

    /// Applies a batch that was checked: the slot is where the leader was after it, with the same history. `is_partial`: the rest
    /// of this copy is still to come, so a name without registrations is one whose registrations come later.
    pub(crate) fn apply_batch(&mut self, batch: Batch<'_>, is_partial: bool, now: Nanos) {
        assert!(self.open.changes() == 0, "a follower admits nothing");
        let (previous, revision) = (self.revision, batch.revision());
        assert!(previous < revision);
        if previous.epoch() < revision.epoch() {
            self.lineage.end_epoch(previous);
        }
        for entry in batch.entries().map_while(Result::ok) {
            match (entry.name(), self.find_datum(entry.change.datum)) {
                (Some(name), Some(index)) if &*self.datum(index).name != name => self.rename(index, name),
                (None, None) => {}
                _ => self.apply(entry, 0),
            }
        }
        self.revision = revision;
        if batch.changes() > 0 {
            self.log_touched(revision, now);
            self.log.trim(&self.log_limits, now);
            if !is_partial {
                self.drop_idle_datums(previous);
            }
            self.drop_stale_tombstones();
        }
    }

    /// A copy of this slot that is still to be filled, at the revision at which its leader began to tell it.
    pub(crate) fn begin_copy(&self, revision: Revision, forks: &[Revision]) -> Self {
        let mut copy = Self::open(self.id, 0, self.shards, self.seed, self.log_limits);
        copy.revision = revision;
        copy.lineage = Lineage::of(forks);
        copy.tells_names = self.tells_names;
        copy.restart_log();
        copy
    }

    /// All of the copy is here: it is what the leader was at its present revision, without history.
    pub(crate) fn end_copy(&mut self) {
        self.restored(self.revision);
        self.drop_stale_tombstones();
    }

    /// Whether some removed registration is remembered.
    pub(crate) fn has_tombstones(&self) -> bool {
        !self.tombstones.is_empty()
    }

    /// Whether there is nothing in it, not even a tombstone.
    pub(crate) fn is_empty(&self) -> bool {
        self.publication_index.is_empty()
    }

    /// The leader decides which tombstones go, about in the order in which they came; what it has dropped is let go of here.
    fn drop_stale_tombstones(&mut self) {
        while let Some(oldest) = self.tombstones.front() {
            let found = self.find(oldest.datum, oldest.register).map(|index| self.publication(index));
            let stands = found.is_some_and(|found| {
                matches!(found.place(), Place::Tombstone { .. }) && found.version() == oldest.version
            });
            if stands {
                return;
            }
            self.tombstones.pop_front();
        }
    }
}
