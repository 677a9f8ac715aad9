//! Why the store refuses something. The numbers travel in acknowledgements, so they are wire format.

/// A refusal of one write. Refusing one write never disturbs another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u16)]
pub enum Refusal {
    /// A write with a larger (version, attach count) has already been applied.
    #[error("a newer version of this registration is already stored")]
    Superseded = 1,
    /// The register id belongs to another client.
    #[error("this registration belongs to another client")]
    ForeignRegistration = 2,
    /// A removal came from a session that no longer owns the registration.
    #[error("the registration is owned by another session")]
    NotOwner = 3,
    /// The session incarnation's lease has ended; it has to come back as a new incarnation.
    #[error("the lease of this session incarnation has ended")]
    SessionEnded = 4,
    /// The write sequence of a link went back or jumped.
    #[error("the write sequence of this link is not contiguous")]
    SequenceBroken = 5,
    /// The slot is not led by this node.
    #[error("this node does not lead the slot")]
    SlotMoved = 6,
    /// The writer's leader epoch differs from the slot's.
    #[error("the slot's leader epoch is another one")]
    EpochMismatch = 7,
    /// Another data id with the same 64-bit key is in use.
    #[error("another data id in use has the same 64-bit key")]
    KeyCollision = 8,
    /// The data id has as many publishers, or bytes of records, as it may.
    #[error("the data id holds as many publishers or bytes as it may")]
    DatumFull = 9,
    /// The entry or its record is malformed.
    #[error("the record is malformed")]
    RecordInvalid = 10,
    /// A name is empty, too long or has control characters.
    #[error("a name is empty, too long or has control characters")]
    NameInvalid = 11,
    /// The data node keeps nothing on disk, so it cannot take persistent publishers.
    #[error("persistent publishers need storage, and this node has none")]
    PersistentUnavailable = 12,
    /// The payload is larger than allowed.
    #[error("the payload is larger than allowed")]
    PayloadTooLarge = 13,
    /// The client has as many publishers as it may.
    #[error("the client has as many publishers as it may")]
    TooManyPublishers = 14,
    /// The client has as many subscriptions as it may.
    #[error("the client has as many subscriptions as it may")]
    TooManySubscriptions = 15,
    /// No such registration at this connection.
    #[error("no such registration on this connection")]
    UnknownRegistration = 16,
    /// A put of a data id whose name the slot has not been told.
    #[error("the slot has not been told the name of this data id")]
    NameUnknown = 17,
    /// Too much is waiting for the data node; try again later.
    #[error("too much is waiting for the data node, try again later")]
    Overloaded = 18,
    /// The registration is stored, or is being written, with the other durability class.
    #[error("the registration has the other durability class: remove it first")]
    DurabilityMismatch = 19,
    /// The disk has failed or is behind, so nothing can be made durable now. Whether the change is in effect is not said;
    /// it is not durable. Send it again.
    #[error("the disk has failed or is behind: it is not durable, send it again")]
    StorageFailed = 20,
}

impl Refusal {
    /// All refusals, in the order of their numbers.
    pub const ALL: [Refusal; 20] = [
        Refusal::Superseded,
        Refusal::ForeignRegistration,
        Refusal::NotOwner,
        Refusal::SessionEnded,
        Refusal::SequenceBroken,
        Refusal::SlotMoved,
        Refusal::EpochMismatch,
        Refusal::KeyCollision,
        Refusal::DatumFull,
        Refusal::RecordInvalid,
        Refusal::NameInvalid,
        Refusal::PersistentUnavailable,
        Refusal::PayloadTooLarge,
        Refusal::TooManyPublishers,
        Refusal::TooManySubscriptions,
        Refusal::UnknownRegistration,
        Refusal::NameUnknown,
        Refusal::Overloaded,
        Refusal::DurabilityMismatch,
        Refusal::StorageFailed,
    ];

    /// The number that travels.
    pub fn code(self) -> u16 {
        self as u16
    }

    /// The refusal behind a number.
    pub fn from_code(code: u16) -> Option<Refusal> {
        Self::ALL.into_iter().find(|refusal| refusal.code() == code)
    }

    /// A short stable label for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Refusal::Superseded => "superseded",
            Refusal::ForeignRegistration => "foreign_registration",
            Refusal::NotOwner => "not_owner",
            Refusal::SessionEnded => "session_ended",
            Refusal::SequenceBroken => "sequence_broken",
            Refusal::SlotMoved => "slot_moved",
            Refusal::EpochMismatch => "epoch_mismatch",
            Refusal::KeyCollision => "key_collision",
            Refusal::DatumFull => "datum_full",
            Refusal::RecordInvalid => "record_invalid",
            Refusal::NameInvalid => "name_invalid",
            Refusal::PersistentUnavailable => "persistent_unavailable",
            Refusal::PayloadTooLarge => "payload_too_large",
            Refusal::TooManyPublishers => "too_many_publishers",
            Refusal::TooManySubscriptions => "too_many_subscriptions",
            Refusal::UnknownRegistration => "unknown_registration",
            Refusal::NameUnknown => "name_unknown",
            Refusal::Overloaded => "overloaded",
            Refusal::DurabilityMismatch => "durability_mismatch",
            Refusal::StorageFailed => "storage_failed",
        }
    }

    /// Milliseconds after which the same write is worth sending again; `None`: it will be refused again.
    pub fn retry_after_ms(self) -> Option<u64> {
        match self {
            Refusal::Overloaded => Some(100),
            Refusal::StorageFailed => Some(500),
            // Where there is no storage, until somebody gives the node one; where its lease has ended, until it has one again.
            Refusal::PersistentUnavailable => Some(1000),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_dense_and_read_back() {
        for (index, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(refusal.code()), index + 1);
            assert_eq!(Refusal::from_code(refusal.code()), Some(refusal));
        }
        assert_eq!(Refusal::from_code(0), None);
    }
}
