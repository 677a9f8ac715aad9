//! Why a data directory is refused.

/// Why a data directory cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// A file that no data node writes.
    #[error(
        "{0} does not belong into a data directory: move it away, or give the node a directory of its own"
    )]
    Foreign(String),
    /// The system refused to read.
    #[error("cannot read {file}: {what}")]
    Read {
        /// Which file; empty for the directory.
        file: String,
        /// What the system says.
        what: String,
    },
    /// Bytes that are not what was written.
    #[error(
        "{file} is damaged at byte {offset}: {what}; put back a copy of the file, or take what is good by \
         `slotcast check-data DIR --salvage OUT`"
    )]
    Damaged {
        /// Which file.
        file: String,
        /// Where, in bytes.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// A file that has to be there is not.
    #[error(
        "{file} is missing: {what}; put the file back, or take what is good by `slotcast check-data DIR --salvage OUT`"
    )]
    Missing {
        /// Which file.
        file: String,
        /// How that is known.
        what: String,
    },
    /// The files are of another cluster or node.
    #[error("{file} was written with {what}; put the setting back, or move the directory away")]
    Settings {
        /// Which file.
        file: String,
        /// What differs.
        what: String,
    },
    /// No leader epoch is left for another run.
    #[error(
        "all leader epochs are used up: move the directory away, and the sessions will bring what they hold"
    )]
    Exhausted,
}

pub(super) fn damaged(file: &str, offset: u64, what: impl ToString) -> RecoverError {
    RecoverError::Damaged { file: file.into(), offset, what: what.to_string() }
}
