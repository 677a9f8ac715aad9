//! A batch: a sealed group of changes of one slot. The only way data changes.
//!
//! The same bytes are applied, journaled and sent to followers. A session's write frame carries the same change entries,
//! so a leader that admits one copies it into its open batch as it is.
//!
//! ```text
//! batch  0      4         8      10      12        16           24         32       36       40         48      56    64
//!        | magic | len u32 | slot | flags | changes | previous u64 | revision u64 | shards | 0 u32 | checksum | chain | 0 | entries
//!
//! entry  0      1       2      4         8           16             24            32         36       40        48
//!        | kind | class | flags | len u32 | datum u64 | register u64 | version u64 | attach u32 | epoch u32 | owner u64 | record
//! ```

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{
    id::{DatumKey, RegisterId, Revision, SessionId, SlotId, Version},
    limits::{ALIGNMENT, DATA_ID_BYTES_MAX, RECORD_BYTES_MAX},
    record::{Record, RecordError},
};

/// Bytes of a change entry before its record or name.
pub const ENTRY_BYTES: usize = 48;
/// Bytes of a batch before its entries.
pub const HEADER_BYTES: usize = 64;
const MAGIC: u32 = u32::from_le_bytes(*b"SCB1");
const CHECKSUM_AT: usize = 40;

/// What an entry does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ChangeKind {
    /// Stores the record that follows.
    Put = 1,
    /// Renews version, attach count and owner of a registration whose content is the same.
    Touch = 2,
    /// Removes a registration; a tombstone keeps its version.
    Remove = 3,
    /// Names the data id behind a key; comes before the first put of that key. The canonical name follows, its length in
    /// the version field, padded with zeros to a multiple of 16.
    Name = 4,
    /// Drops a tombstone that nobody can miss any more.
    Forget = 5,
    /// Removes a registration because the lease of its owner has ended. A tombstone keeps its version; should the owner turn
    /// out to live, it may put that very version again.
    Expire = 6,
}

/// How long a registration lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Durability {
    /// As long as its client is connected.
    #[default]
    Ephemeral = 0,
    /// Until it is removed by request.
    Persistent = 1,
}

impl Durability {
    /// The class of a registration with this owner.
    pub fn of_owner(owner: SessionId) -> Self {
        if owner == SessionId::NOBODY { Durability::Persistent } else { Durability::Ephemeral }
    }
}

/// The fixed part of a change entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// What it does.
    pub kind: ChangeKind,
    /// How long the registration lives.
    pub durability: Durability,
    /// The data id.
    pub datum: DatumKey,
    /// The registration.
    pub register: RegisterId,
    /// What decides against other writes of the registration.
    pub version: Version,
    /// The leader epoch that the writer believes the slot to be in; 0 if it does not know.
    pub epoch: u32,
    /// The session incarnation that owns the registration; [`SessionId::NOBODY`] owns a persistent one.
    pub owner: SessionId,
}

impl Change {
    /// Whether it is of a persistent registration.
    pub fn is_persistent(&self) -> bool {
        self.durability == Durability::Persistent
    }
}

/// What is wrong with an entry or a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Too few bytes, or a length that cannot be.
    #[error("change entry is truncated or its length {0} is out of range")]
    Length(usize),
    /// A kind or durability class that this version does not know.
    #[error("unknown change kind {kind} or durability {durability}")]
    Unknown {
        /// The kind byte.
        kind: u8,
        /// The durability byte.
        durability: u8,
    },
    /// The record of a put is malformed.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The record belongs to another data id or registration than the entry.
    #[error("the record's key differs from the entry's")]
    KeyMismatch,
    /// Not a batch, or another version of it.
    #[error("not a batch")]
    Magic,
    /// The checksum does not fit the bytes.
    #[error("batch checksum mismatch")]
    Checksum,
}

/// One entry in the bytes of a batch or of a write frame: lengths and keys checked, record header checked.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The fixed part.
    pub change: Change,
    bytes: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Reads the entry at the start of `bytes`.
    pub fn read(bytes: &'a [u8]) -> Result<Self, BatchError> {
        if bytes.len() < ENTRY_BYTES {
            return Err(BatchError::Length(bytes.len()));
        }
        let len = u32::from_le_bytes(array(bytes, 4)) as usize;
        if !len.is_multiple_of(ALIGNMENT) || len < ENTRY_BYTES || len > bytes.len() {
            return Err(BatchError::Length(len));
        }
        let unknown = BatchError::Unknown { kind: bytes[0], durability: bytes[1] };
        let kind = match bytes[0] {
            1 => ChangeKind::Put,
            2 => ChangeKind::Touch,
            3 => ChangeKind::Remove,
            4 => ChangeKind::Name,
            5 => ChangeKind::Forget,
            6 => ChangeKind::Expire,
            _ => return Err(unknown),
        };
        let durability = match bytes[1] {
            0 => Durability::Ephemeral,
            1 => Durability::Persistent,
            _ => return Err(unknown),
        };
        let change = Change {
            kind,
            durability,
            datum: DatumKey(u64::from_le_bytes(array(bytes, 8))),
            register: RegisterId(u64::from_le_bytes(array(bytes, 16))),
            version: Version {
                number: u64::from_le_bytes(array(bytes, 24)),
                attach: u32::from_le_bytes(array(bytes, 32)),
            },
            epoch: u32::from_le_bytes(array(bytes, 36)),
            owner: SessionId(u64::from_le_bytes(array(bytes, 40))),
        };
        let entry = Self { change, bytes: &bytes[..len] };
        let body = len - ENTRY_BYTES;
        match kind {
            ChangeKind::Put => {
                if body > RECORD_BYTES_MAX {
                    return Err(BatchError::Length(len));
                }
                let record = Record::read(&bytes[ENTRY_BYTES..len])?;
                if record.bytes().len() != body {
                    return Err(BatchError::Length(len));
                }
                if (record.datum(), record.register()) != (change.datum, change.register) {
                    return Err(BatchError::KeyMismatch);
                }
            }
            ChangeKind::Name => {
                let name = change.version.number as usize;
                if name > DATA_ID_BYTES_MAX || name.next_multiple_of(ALIGNMENT) != body {
                    return Err(BatchError::Length(len));
                }
            }
            ChangeKind::Touch | ChangeKind::Remove | ChangeKind::Forget | ChangeKind::Expire if body != 0 => {
                return Err(BatchError::Length(len));
            }
            ChangeKind::Touch | ChangeKind::Remove | ChangeKind::Forget | ChangeKind::Expire => {}
        }
        Ok(entry)
    }

    /// The whole entry.
    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// The record of a put.
    pub fn record(self) -> Option<Record<'a>> {
        (self.change.kind == ChangeKind::Put).then(|| Record::trusted(&self.bytes[ENTRY_BYTES..]))
    }

    /// The canonical data id of a name entry.
    pub fn name(self) -> Option<&'a [u8]> {
        let name = self.change.version.number as usize;
        (self.change.kind == ChangeKind::Name).then(|| &self.bytes[ENTRY_BYTES..ENTRY_BYTES + name])
    }
}

/// Appends an entry without its record: what a touch, a removal, an expiry or a forget consists of.
pub fn write_change(out: &mut Vec<u8>, change: &Change) {
    write_fixed(out, change, ENTRY_BYTES);
}

/// Appends a put.
pub fn write_put(out: &mut Vec<u8>, change: &Change, record: Record<'_>) {
    debug_assert_eq!(change.kind, ChangeKind::Put);
    write_fixed(out, change, ENTRY_BYTES + record.bytes().len());
    out.extend_from_slice(record.bytes());
}

/// Appends a name entry.
pub fn write_name(out: &mut Vec<u8>, datum: DatumKey, name: &[u8]) {
    let padded = name.len().next_multiple_of(ALIGNMENT);
    let change = Change {
        kind: ChangeKind::Name,
        durability: Durability::Ephemeral,
        datum,
        register: RegisterId(0),
        version: Version { number: name.len() as u64, attach: 0 },
        epoch: 0,
        owner: SessionId(0),
    };
    write_fixed(out, &change, ENTRY_BYTES + padded);
    out.extend_from_slice(name);
    out.extend_from_slice(&[0; ALIGNMENT][..padded - name.len()]);
}

fn write_fixed(out: &mut Vec<u8>, change: &Change, len: usize) {
    let mut fixed = [0u8; ENTRY_BYTES];
    (fixed[0], fixed[1]) = (change.kind as u8, change.durability as u8);
    fixed[4..8].copy_from_slice(&(len as u32).to_le_bytes());
    fixed[8..16].copy_from_slice(&change.datum.0.to_le_bytes());
    fixed[16..24].copy_from_slice(&change.register.0.to_le_bytes());
    fixed[24..32].copy_from_slice(&change.version.number.to_le_bytes());
    fixed[32..36].copy_from_slice(&change.version.attach.to_le_bytes());
    fixed[36..40].copy_from_slice(&change.epoch.to_le_bytes());
    fixed[40..48].copy_from_slice(&change.owner.0.to_le_bytes());
    out.extend_from_slice(&fixed);
}

/// The entries that stand one behind the other in `bytes`; ends after the first malformed one.
pub fn entries(bytes: &[u8]) -> impl Iterator<Item = Result<Entry<'_>, BatchError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let entry = Entry::read(rest);
        rest = entry.as_ref().map_or(&[], |entry| &rest[entry.bytes.len()..]);
        Some(entry)
    })
}

/// The batch of one slot that is being filled.
#[derive(Default)]
pub struct OpenBatch {
    bytes: Vec<u8>,
    changes: u32,
    /// Changes are counted and not written.
    is_forgone: bool,
}

impl OpenBatch {
    /// From now on counts changes without writing them: nobody reads what is sealed.
    pub(crate) fn forgo(&mut self) {
        assert!(self.changes == 0, "seal first");
        *self = Self { is_forgone: true, ..Self::default() };
    }

    /// Appends an entry as it came.
    pub fn push(&mut self, entry: Entry<'_>) {
        self.append(|out| out.extend_from_slice(entry.bytes()));
    }

    /// Appends an entry that `write` writes.
    pub fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.changes += 1;
        if self.is_forgone {
            return;
        }
        if self.bytes.is_empty() {
            self.bytes.resize(HEADER_BYTES, 0);
        }
        write(&mut self.bytes);
    }

    /// Bytes taken for it.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Changes so far.
    pub fn changes(&self) -> usize {
        self.changes as usize
    }

    /// Closes the batch: `previous` is the slot's revision before it, `revision` the one it makes. Empty where batches are not
    /// written.
    pub fn seal(&mut self, slot: SlotId, previous: Revision, revision: Revision, shards: u32) -> Vec<u8> {
        assert!(self.changes > 0 && previous < revision);
        let (mut bytes, changes) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.changes));
        if !self.is_forgone {
            write_header(&mut bytes, slot, changes, (previous, revision), shards);
        }
        bytes
    }

    /// Gives memory of a batch that is no longer needed back for the next one.
    pub fn recycle(&mut self, mut bytes: Vec<u8>) {
        if !self.is_forgone && self.bytes.capacity() == 0 && bytes.capacity() <= 64 * 1024 {
            bytes.clear();
            self.bytes = bytes;
        }
    }
}

/// A batch without changes: it brings a follower to a revision that its leader reached without one.
pub fn empty(slot: SlotId, previous: Revision, revision: Revision, shards: u32) -> [u8; HEADER_BYTES] {
    assert!(previous < revision);
    let mut bytes = [0; HEADER_BYTES];
    write_header(&mut bytes, slot, 0, (previous, revision), shards);
    bytes
}

fn write_header(
    bytes: &mut [u8],
    slot: SlotId,
    changes: u32,
    (previous, revision): (Revision, Revision),
    shards: u32,
) {
    let len = bytes.len() as u32;
    bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[4..8].copy_from_slice(&len.to_le_bytes());
    bytes[8..10].copy_from_slice(&slot.0.to_le_bytes());
    bytes[12..16].copy_from_slice(&changes.to_le_bytes());
    bytes[16..24].copy_from_slice(&previous.0.to_le_bytes());
    bytes[24..32].copy_from_slice(&revision.0.to_le_bytes());
    bytes[32..36].copy_from_slice(&shards.to_le_bytes());
    let sum = checksum(bytes);
    bytes[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&sum.to_le_bytes());
}

/// A sealed batch whose header, length and checksum have been checked.
#[derive(Clone, Copy)]
pub struct Batch<'a>(&'a [u8]);

impl<'a> Batch<'a> {
    /// Reads the batch at the start of `bytes`.
    pub fn read(bytes: &'a [u8]) -> Result<Self, BatchError> {
        if bytes.len() < HEADER_BYTES {
            return Err(BatchError::Length(bytes.len()));
        }
        if u32::from_le_bytes(array(bytes, 0)) != MAGIC {
            return Err(BatchError::Magic);
        }
        let len = u32::from_le_bytes(array(bytes, 4)) as usize;
        if len < HEADER_BYTES || len > bytes.len() || !len.is_multiple_of(ALIGNMENT) {
            return Err(BatchError::Length(len));
        }
        let batch = Self(&bytes[..len]);
        if checksum(batch.0) == u64::from_le_bytes(array(bytes, CHECKSUM_AT)) {
            Ok(batch)
        } else {
            Err(BatchError::Checksum)
        }
    }

    /// The slot that it changes.
    pub fn slot(self) -> SlotId {
        SlotId(u16::from_le_bytes(array(self.0, 8)))
    }

    /// Changes in it.
    pub fn changes(self) -> u32 {
        u32::from_le_bytes(array(self.0, 12))
    }

    /// The slot's revision before it.
    pub fn previous(self) -> Revision {
        Revision(u64::from_le_bytes(array(self.0, 16)))
    }

    /// The revision that it makes.
    pub fn revision(self) -> Revision {
        Revision(u64::from_le_bytes(array(self.0, 24)))
    }

    /// The whole batch.
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// The bytes of its entries.
    pub fn entry_bytes(self) -> &'a [u8] {
        &self.0[HEADER_BYTES..]
    }

    /// Its entries, in the order of admission.
    pub fn entries(self) -> impl Iterator<Item = Result<Entry<'a>, BatchError>> {
        entries(&self.0[HEADER_BYTES..])
    }
}

fn checksum(batch: &[u8]) -> u64 {
    xxh3_64_with_seed(&batch[CHECKSUM_AT + 8..], xxh3_64(&batch[..CHECKSUM_AT]))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_nobody_reads_is_counted_and_not_written() {
        let change = Change {
            kind: ChangeKind::Remove,
            durability: Durability::Ephemeral,
            datum: DatumKey(1),
            register: RegisterId(2),
            version: Version::default(),
            epoch: 0,
            owner: SessionId(3),
        };
        let (mut written, mut forgone) = (OpenBatch::default(), OpenBatch::default());
        forgone.forgo();
        let before = Revision::open(1);
        for _ in 0..2 {
            for open in [&mut written, &mut forgone] {
                open.append(|out| write_change(out, &change));
                open.append(|out| write_change(out, &change));
                assert_eq!(open.changes(), 2);
            }
            let batch = written.seal(SlotId(4), before, before.next(), 1);
            assert_eq!(Batch::read(&batch).map(|batch| batch.changes()), Ok(2));
            let nothing = forgone.seal(SlotId(4), before, before.next(), 1);
            assert!(nothing.is_empty() && forgone.changes() == 0 && forgone.capacity() == 0);
            forgone.recycle(batch);
            assert_eq!(forgone.capacity(), 0, "it takes no memory");
        }
    }
}
