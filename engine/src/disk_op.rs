//! What the store asks of a disk, and what it is told when that is done.
//!
//! The store never touches a file. It hands out [`DiskRequest`]s; whoever drives it carries them out **in their order, one
//! after the other**, and reports each by a [`DiskDone`] in the same order. A write is durable only when a later
//! [`DiskOp::Sync`] of the file has succeeded, a name (created, renamed, deleted) only after a later
//! [`DiskOp::SyncNames`]. After a failure the requests behind the failed one are carried out all the same: the store knows
//! which of them no longer count.

use std::collections::VecDeque;

/// Files are written in multiples of this many bytes, at offsets that are multiples of it.
pub const SECTOR_BYTES: usize = 4096;

/// The number of a request; grows by one with each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct OpId(pub u64);

/// One thing to do. File names have no folder: all files lie in the data directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskOp {
    /// Makes an empty file; one that is there loses its content.
    Create {
        /// Its name.
        file: String,
    },
    /// Writes at an offset of a file that was created before. Offset and length are multiples of [`SECTOR_BYTES`].
    Write {
        /// The file's name.
        file: String,
        /// Where the bytes go.
        offset: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Makes everything written to a file durable.
    Sync {
        /// The file's name.
        file: String,
    },
    /// Gives a file another name; a file that has that name already is replaced.
    Rename {
        /// The name before.
        from: String,
        /// The name afterwards.
        to: String,
    },
    /// Deletes a file; none of that name is no error.
    Delete {
        /// Its name.
        file: String,
    },
    /// Makes all names durable: what was created, renamed and deleted before.
    SyncNames,
}

/// A numbered request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskRequest {
    /// Its number.
    pub id: OpId,
    /// What to do.
    pub op: DiskOp,
}

/// Why a request failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DiskError {
    /// No room is left.
    #[error("no space is left on the disk: free some, the store goes on by itself")]
    NoSpace,
    /// Anything else, as the system says it.
    #[error("{0}")]
    Failed(String),
}

/// The outcome of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskDone {
    /// Which request.
    pub id: OpId,
    /// Whether it worked.
    pub result: Result<(), DiskError>,
}

/// Requests that are ready to be taken, and the count of those that are not reported yet.
#[derive(Default)]
pub struct DiskQueue {
    issued: u64,
    ready: VecDeque<DiskRequest>,
    outstanding: usize,
}

impl DiskQueue {
    /// Adds a request behind all others; returns its number.
    pub fn push(&mut self, op: DiskOp) -> OpId {
        self.issued += 1;
        let id = OpId(self.issued);
        self.ready.push_back(DiskRequest { id, op });
        id
    }

    /// The number of the latest request.
    pub fn last(&self) -> OpId {
        OpId(self.issued)
    }

    /// Takes the next request, unless `limit` are under way already.
    pub fn take(&mut self, limit: usize) -> Option<DiskRequest> {
        if self.outstanding >= limit {
            return None;
        }
        let request = self.ready.pop_front()?;
        self.outstanding += 1;
        Some(request)
    }

    /// A request was reported.
    pub fn done(&mut self) {
        self.outstanding = self.outstanding.saturating_sub(1);
    }

    /// Whether nothing is to be done and nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.ready.is_empty() && self.outstanding == 0
    }
}
