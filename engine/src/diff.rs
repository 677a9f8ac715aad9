//! A diff: what a reader of one data id lacks between two revisions. The only way changes are read.
//!
//! A diff names the final state of every registration that changed in `(from, to]`: its record, or its absence. So it is
//! right for a reader at *any* revision in `[from, to]`, and applying it twice changes nothing. A reader below `from` has a
//! gap and must not apply it. A snapshot names every registration and is right for everybody.
//!
//! ```text
//!  0           8          16        24            28         32
//!  | datum u64 | from u64 | to u64  | removes u32 | puts u32 | removed register ids | owners | records ...
//! ```
//! Removed ids are 8 bytes each, padded to a multiple of 16. `owners` are there on links between data nodes and sessions
//! only ([`OWNERS`]): the owning session incarnation of each put, 8 bytes each, padded likewise. Records follow each
//! other as in [`crate::record`]. A snapshot for a reader whose history has left this one ([`FORKED`]) has, in the place of removed
//! ids, those of its puts that have not changed here since.

use std::collections::BTreeSet;

use crate::{
    change_log::LogEntry,
    id::{DatumKey, RegisterId, Revision, SessionId, mix64},
    limits::ALIGNMENT,
    record::{self, Record, RecordError},
    slot::Slot,
};

/// Flag: the body is a snapshot, complete at `to`.
pub const SNAPSHOT: u8 = 1;
/// Flag: the owners of the puts are told.
pub const OWNERS: u8 = 2;
/// Flag, of snapshots only: the reader has gone on in a history that left this one, and the first column names the puts that have
/// not changed here since. What such a reader holds of these instead is newer, unless its owner says otherwise.
pub const FORKED: u8 = 4;
/// Bytes of the fixed part.
pub const FIXED_BYTES: usize = 32;

/// What is wrong with the body of a diff.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiffError {
    /// Fewer or more bytes than its counts say.
    #[error("diff body of {0} bytes does not fit its counts")]
    Length(usize),
    /// `from` is behind `to`.
    #[error("diff goes back from {0} to {1}")]
    Backwards(Revision, Revision),
    /// A record inside is malformed or of another data id.
    #[error("record in diff: {0}")]
    Record(#[from] RecordError),
    /// A record of another data id.
    #[error("diff holds a record of another data id")]
    ForeignRecord,
    /// Only a snapshot is for a reader of another history.
    #[error("a diff that is no snapshot says that the reader's history has left this one")]
    Forked,
}

/// A diff whose lengths and record headers have been checked.
#[derive(Clone, Copy, Debug)]
pub struct Diff<'a> {
    /// The data id.
    pub datum: DatumKey,
    /// Lowest revision of a reader that this is right for; of a snapshot, which is right for all, the revision since which it names
    /// what is known to have been removed, and zero if it names nothing.
    pub from: Revision,
    /// The reader's revision afterwards.
    pub to: Revision,
    /// Whether this is a snapshot.
    pub is_snapshot: bool,
    removes: &'a [u8],
    unchanged: &'a [u8],
    owners: Option<&'a [u8]>,
    puts: u32,
    records: &'a [u8],
}

impl<'a> Diff<'a> {
    /// Reads a diff body; `flags` come from the frame around it.
    pub fn read(flags: u8, body: &'a [u8]) -> Result<Self, DiffError> {
        let wrong = DiffError::Length(body.len());
        let Some((fixed, rest)) = body.split_at_checked(FIXED_BYTES) else { return Err(wrong) };
        let (from, to) = (Revision(u64_at(fixed, 8)), Revision(u64_at(fixed, 16)));
        if from > to {
            return Err(DiffError::Backwards(from, to));
        }
        let (remove_count, puts) = (u32_at(fixed, 24) as usize, u32_at(fixed, 28));
        let Some((first, rest)) = split_column(rest, remove_count) else { return Err(wrong) };
        let (removes, unchanged): (&[u8], &[u8]) = match flags & (SNAPSHOT | FORKED) {
            FORKED => return Err(DiffError::Forked),
            flags if flags & FORKED != 0 => (&[], first),
            _ => (first, &[]),
        };
        let (owners, records) = if flags & OWNERS == 0 {
            (None, rest)
        } else {
            let Some((owners, rest)) = split_column(rest, puts as usize) else { return Err(wrong) };
            (Some(owners), rest)
        };
        let datum = DatumKey(u64_at(fixed, 0));
        let mut found = 0;
        for record in record::iter(records) {
            if record?.datum() != datum {
                return Err(DiffError::ForeignRecord);
            }
            found += 1;
        }
        if found != puts {
            return Err(wrong);
        }
        let is_snapshot = flags & SNAPSHOT != 0;
        Ok(Self { datum, from, to, is_snapshot, removes, unchanged, owners, puts, records })
    }

    /// Registrations that are gone at `to`.
    pub fn removes(&self) -> impl Iterator<Item = RegisterId> + 'a {
        ids(self.removes)
    }

    /// Registrations whose record is told and has not changed since the reader's history left this one. Of which others that
    /// goes is not known.
    pub fn unchanged(&self) -> impl Iterator<Item = RegisterId> + 'a {
        ids(self.unchanged)
    }

    /// Registrations whose record at `to` is told.
    pub fn puts(&self) -> impl Iterator<Item = Record<'a>> + 'a {
        record::iter(self.records).filter_map(Result::ok)
    }

    /// Owners of the puts, in their order, if they are told.
    pub fn owners(&self) -> Option<impl Iterator<Item = SessionId> + 'a> {
        self.owners.map(|owners| owners.chunks_exact(8).map(|bytes| SessionId(u64_at(bytes, 0))))
    }

    /// Puts in it.
    pub fn put_count(&self) -> usize {
        self.puts as usize
    }

    /// Whether it changes nothing (and is no snapshot).
    pub fn is_empty(&self) -> bool {
        !self.is_snapshot && self.puts == 0 && self.removes.is_empty()
    }
}

/// What one registration adds to the digest of a list: sums over a list are compared at resume, so that a revision alone
/// is never trusted across restarts.
pub fn list_fingerprint(register: RegisterId, checksum: u64) -> u64 {
    mix64(mix64(register.0) ^ checksum)
}

/// Appends the body of a diff. `puts` are records of `datum`; owners are written if `owners` is given.
pub fn write<'a>(
    out: &mut Vec<u8>,
    datum: DatumKey,
    (from, to): (Revision, Revision),
    removes: &[RegisterId],
    owners: Option<&[SessionId]>,
    puts: impl ExactSizeIterator<Item = Record<'a>>,
) {
    debug_assert!(owners.is_none_or(|owners| owners.len() == puts.len()));
    let owners = owners.map(|owners| owners.iter().copied());
    write_columns(out, datum, (from, to), removes, owners, puts);
}

fn write_columns<'a>(
    out: &mut Vec<u8>,
    datum: DatumKey,
    (from, to): (Revision, Revision),
    removes: &[RegisterId],
    owners: Option<impl ExactSizeIterator<Item = SessionId>>,
    puts: impl ExactSizeIterator<Item = Record<'a>>,
) {
    let mut fixed = [0u8; FIXED_BYTES];
    fixed[0..8].copy_from_slice(&datum.0.to_le_bytes());
    fixed[8..16].copy_from_slice(&from.0.to_le_bytes());
    fixed[16..24].copy_from_slice(&to.0.to_le_bytes());
    fixed[24..28].copy_from_slice(&(removes.len() as u32).to_le_bytes());
    fixed[28..32].copy_from_slice(&(puts.len() as u32).to_le_bytes());
    out.extend_from_slice(&fixed);
    write_column(out, removes.iter().map(|register| register.0));
    if let Some(owners) = owners {
        write_column(out, owners.map(|owner| owner.0));
    }
    for record in puts {
        out.extend_from_slice(record.bytes());
    }
}

/// What a reader of a data id gets that holds the state of revision `since`.
pub struct Answer<'a> {
    /// See [`Diff::from`].
    pub from: Revision,
    /// The slot's revision: the answer is complete up to here.
    pub to: Revision,
    /// Whether it is a snapshot.
    pub is_snapshot: bool,
    /// Registrations that are gone.
    pub removes: Vec<RegisterId>,
    /// Of a snapshot for a reader whose history has left this one: the puts that have not changed since.
    pub unchanged: Vec<RegisterId>,
    /// Records and their owners.
    pub puts: Vec<(Record<'a>, SessionId)>,
}

impl<'a> Answer<'a> {
    fn of(
        (from, to): (Revision, Revision),
        removes: Vec<RegisterId>,
        puts: Vec<(Record<'a>, SessionId)>,
    ) -> Self {
        Self { from, to, is_snapshot: false, removes, unchanged: Vec::new(), puts }
    }

    /// Appends the body of this answer with owners and returns the frame flags that go with it.
    pub fn write(&self, datum: DatumKey, out: &mut Vec<u8>) -> u8 {
        let owners = self.puts.iter().map(|(_, owner)| *owner);
        let records = self.puts.iter().map(|(record, _)| *record);
        let (first, flag) = match self.unchanged.is_empty() {
            true => (&self.removes, 0),
            false => (&self.unchanged, FORKED),
        };
        write_columns(out, datum, (self.from, self.to), first, Some(owners), records);
        OWNERS | flag | if self.is_snapshot { SNAPSHOT } else { 0 }
    }
}

/// Collects what a reader at `since` lacks of one data id. `since` must stem from this leader's own history; a reader from
/// elsewhere passes [`Revision::ZERO`] and gets a snapshot. One below the log's floor gets a snapshot that names what is still
/// remembered as removed.
pub fn collect(slot: &Slot, datum: DatumKey, since: Revision) -> Answer<'_> {
    let to = slot.revision();
    let known = slot.log().floor() <= since && since <= to;
    let state = slot.datum_state(datum);
    if !known {
        return whole(slot, datum, since);
    }
    let Some((_, latest, publishers)) = state else {
        return Answer::of((since, to), Vec::new(), Vec::new());
    };
    let mut changed: Vec<RegisterId> = Vec::new();
    let mut from = since;
    for LogEntry { register, datum_before, .. } in slot.log().datum_changes(latest, since) {
        changed.push(register);
        from = datum_before.min(since);
    }
    if from == Revision::ZERO {
        // The data id's whole history here lies above `since`. What it held before it was last forgotten is not known
        // any more, so no range could be promised; and a snapshot tells no more records than the diff would.
        return whole(slot, datum, since);
    }
    changed.sort_unstable();
    changed.dedup();
    if changed.len() > publishers.max(1) * 2 {
        return whole(slot, datum, since);
    }
    let mut removes = Vec::new();
    let mut puts = Vec::new();
    for register in changed {
        match slot.get(datum, register) {
            Some(put) => puts.push(put),
            None => removes.push(register),
        }
    }
    Answer::of((from, to), removes, puts)
}

/// The whole list of one data id, stamped with the slot's revision.
pub fn snapshot(slot: &Slot, datum: DatumKey) -> Answer<'_> {
    let puts = slot.records(datum).collect();
    Answer { is_snapshot: true, ..Answer::of((Revision::ZERO, slot.revision()), Vec::new(), puts) }
}

/// The whole list of one data id for a reader that left this slot's history no earlier than at `fork`. It says which
/// registrations have not changed since: such a reader knows of them what is told here or something newer. Where the log does not
/// reach back to there, it says which have not changed since the slot was last led anew. That is the same for a reader that left
/// it there; for one that left it before, it may be too many, and then the reader keeps what it has until owners have come: late is
/// better than wrong.
pub fn forked(slot: &Slot, datum: DatumKey, fork: Revision) -> Answer<'_> {
    let mut answer = snapshot(slot, datum);
    let Some((_, latest, _)) = slot.datum_state(datum) else { return answer };
    let told = answer.puts.iter().map(|(record, _)| record.register());
    answer.unchanged = if slot.log().floor() <= fork {
        let changed: BTreeSet<RegisterId> =
            slot.log().datum_changes(latest, fork).map(|entry| entry.register).collect();
        told.filter(|register| !changed.contains(register)).collect()
    } else {
        told.filter(|register| !slot.has_changed_since_led(datum, *register)).collect()
    };
    answer
}

fn ids<'a>(column: &'a [u8]) -> impl Iterator<Item = RegisterId> + 'a {
    column.chunks_exact(8).map(|bytes| RegisterId(u64_at(bytes, 0)))
}

/// The same for a reader that held the state of `since` in this slot's own history: it also names what is known to have been
/// removed, so that absence need not tell.
fn whole(slot: &Slot, datum: DatumKey, since: Revision) -> Answer<'_> {
    let answer = snapshot(slot, datum);
    if since == Revision::ZERO || since > answer.to {
        return answer;
    }
    Answer { from: since, removes: slot.removed_of(datum, since), ..answer }
}

fn split_column(bytes: &[u8], count: usize) -> Option<(&[u8], &[u8])> {
    let exact = count.checked_mul(8)?;
    let (column, rest) = bytes.split_at_checked(exact.next_multiple_of(ALIGNMENT))?;
    Some((&column[..exact], rest))
}

fn write_column(out: &mut Vec<u8>, values: impl ExactSizeIterator<Item = u64>) {
    let odd = values.len() % 2 == 1;
    for value in values {
        out.extend_from_slice(&value.to_le_bytes());
    }
    if odd {
        out.extend_from_slice(&[0; 8]);
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
