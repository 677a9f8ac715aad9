//! Faults planted on purpose, for simulations that have to find them. Without the feature `planted-faults` there is nothing
//! to choose and every question is a constant `false`. Never for production.

/// What may be made wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A follower says that it has applied and kept a batch which it has not applied yet.
    AckBeforeApply,
    /// Tombstones go before the sessions have confirmed them.
    TombstoneEarly,
    /// A reader is trusted whatever became of the epoch that it read in.
    DiffAcrossFork,
    /// A snapshot says the revision of the data id's last change, not the slot's.
    SnapshotStampedOld,
    /// A restarted leader goes on in the epoch that it was in.
    EpochReused,
    /// A new leader answers readers before its sessions have confirmed.
    AcceptEarly,
    /// A pause of the node counts against the leases of its sessions.
    LeaseOverPause,
    /// A removal counts whoever sends it.
    RemovalByOther,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 8] = [
        Self::AckBeforeApply,
        Self::TombstoneEarly,
        Self::DiffAcrossFork,
        Self::SnapshotStampedOld,
        Self::EpochReused,
        Self::AcceptEarly,
        Self::LeaseOverPause,
        Self::RemovalByOther,
    ];

    /// A short stable label.
    pub fn label(self) -> &'static str {
        match self {
            Self::AckBeforeApply => "ack-before-apply",
            Self::TombstoneEarly => "tombstone-early",
            Self::DiffAcrossFork => "diff-across-fork",
            Self::SnapshotStampedOld => "snapshot-stamped-old",
            Self::EpochReused => "epoch-reused",
            Self::AcceptEarly => "accept-early",
            Self::LeaseOverPause => "lease-over-pause",
            Self::RemovalByOther => "removal-by-other",
        }
    }
}

/// The fault that a shard has, if any.
#[derive(Clone, Copy, Default)]
pub(crate) struct Faults {
    #[cfg(feature = "planted-faults")]
    pub(crate) planted: Option<Fault>,
}

impl Faults {
    /// Whether the shard has this one.
    #[cfg(feature = "planted-faults")]
    pub(crate) fn has(self, fault: Fault) -> bool {
        self.planted == Some(fault)
    }

    /// Whether the shard has this one: none has.
    #[cfg(not(feature = "planted-faults"))]
    pub(crate) fn has(self, _: Fault) -> bool {
        false
    }
}
