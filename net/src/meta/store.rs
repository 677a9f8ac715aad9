//! Where the slot table outlives the control plane: loaded after an election, replaced by compare and swap.
//!
//! A store blocks; it runs on a thread of its own. What it refuses, and what it cannot tell, changes nothing: the table
//! that was stored last stands.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use xxhash_rust::xxh3::xxh3_64;

use crate::wire::slot_table::{SlotTable, TableDelta};

/// Name of the table's file in its directory.
pub const TABLE_FILE: &str = "slot-table.sct";
const MAGIC: &[u8; 4] = b"SCT1";
const HEAD_BYTES: usize = 32;

/// Whether this process leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Lead {
    /// It does for this long from when the store was asked, unless it asks again.
    Ours(Duration),
    /// Another does, or the store is not sure yet; who, if that is known.
    Others(Option<String>),
}

/// What a store could not do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It has another table than the one to be replaced.
    #[error(
        "the store holds table epoch {found}, not {expected}: somebody else has written it or set it back"
    )]
    Conflict {
        /// The table it should have.
        expected: u64,
        /// The table it has.
        found: u64,
    },
    /// The new table is not newer than the one it has.
    #[error("table epoch {told} is not above {held}, which the store has: refused")]
    Older {
        /// The epoch of the new table.
        told: u64,
        /// What the store has.
        held: u64,
    },
    /// It has forgotten what it had: it was restored from a backup.
    #[error(
        "the store has gone back from revision {seen} to {found}: was it restored from a backup? What is known here and at the \
         nodes is newer and goes over it"
    )]
    SetBack {
        /// The revision that it was seen at.
        seen: i64,
        /// The one that it is at now.
        found: i64,
    },
    /// This process does not lead, as far as the store knows.
    #[error("this process does not lead any more")]
    NotLeading,
    /// What is stored cannot be read.
    #[error(
        "{place}: {reason}; restore it from a backup, or remove it so that the table is learnt from the nodes"
    )]
    Damaged {
        /// Where.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// The store does not answer, or says no.
    #[error("{0}")]
    Unavailable(String),
}

/// Keeps the table, and says who may change it.
pub trait TableStore: Send {
    /// Asks to lead, or to lead on. Called a few times in the time that [`Lead::Ours`] names.
    fn campaign(&mut self) -> Result<Lead, StoreError>;

    /// The table, if there is one.
    fn load(&mut self) -> Result<Option<SlotTable>, StoreError>;

    /// Replaces the table of epoch `expected` (0: none) by a newer one, for good when this returns.
    fn swap(&mut self, expected: u64, table: &SlotTable) -> Result<(), StoreError>;

    /// Gives the lead up, so that another can have it at once.
    fn resign(&mut self) {}
}

/// The encoding of a table at rest: `SCT1, version u32 (1), length u64, checksum u64, 0 u64`, then the whole table. The
/// checksum is the xxh3-64 of the table's bytes.
pub fn encode_table(table: &SlotTable) -> Vec<u8> {
    let mut out = vec![0; HEAD_BYTES];
    table.whole().write(&mut out);
    let (length, sum) = ((out.len() - HEAD_BYTES) as u64, xxh3_64(&out[HEAD_BYTES..]));
    out[0..4].copy_from_slice(MAGIC);
    out[4..8].copy_from_slice(&1u32.to_le_bytes());
    out[8..16].copy_from_slice(&length.to_le_bytes());
    out[16..24].copy_from_slice(&sum.to_le_bytes());
    out
}

/// Reads what [`encode_table`] has written; says what is wrong with anything else.
pub fn decode_table(bytes: &[u8]) -> Result<SlotTable, String> {
    let (head, body) = bytes.split_at_checked(HEAD_BYTES).ok_or("it is too short for a slot table")?;
    let number = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&head[at..at + 8]);
        u64::from_le_bytes(word)
    };
    if &head[..4] != MAGIC {
        return Err("it is no slot table".into());
    }
    if head[4..8] != 1u32.to_le_bytes() {
        return Err("its version is not 1".into());
    }
    if number(8) != body.len() as u64 || number(16) != xxh3_64(body) {
        return Err("its checksum is wrong".into());
    }
    let whole = TableDelta::read(body).map_err(|error| error.to_string())?;
    SlotTable::from_whole(&whole).map_err(|error| error.to_string())
}

/// A file in a directory that one process has locked: for a control plane of one process.
pub struct FileStore {
    folder: PathBuf,
    _lock: File,
}

impl FileStore {
    /// Opens a directory, which is made if it is not there.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let failed = |what: &str, error: &io::Error| {
            StoreError::Unavailable(format!("cannot {what} {}: {error}", folder.display()))
        };
        fs::create_dir_all(folder).map_err(|error| failed("make the directory", &error))?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(folder.join("lock"));
        let lock = lock.map_err(|error| failed("open the lock in", &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(StoreError::Unavailable(format!(
                    "{} is in use by another process: is another control plane running there?",
                    folder.display()
                )));
            }
            Err(fs::TryLockError::Error(error)) => return Err(failed("lock", &error)),
        }
        Ok(Self { folder: folder.into(), _lock: lock })
    }

    fn path(&self) -> PathBuf {
        self.folder.join(TABLE_FILE)
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        let fresh = self.folder.join("slot-table.tmp");
        let mut file = File::create(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, self.path())?;
        // The rename is there after a crash only when the directory is.
        File::open(&self.folder)?.sync_all()
    }
}

impl TableStore for FileStore {
    fn campaign(&mut self) -> Result<Lead, StoreError> {
        Ok(Lead::Ours(Duration::MAX))
    }

    fn load(&mut self) -> Result<Option<SlotTable>, StoreError> {
        let place = self.path().display().to_string();
        match fs::read(self.path()) {
            Ok(bytes) => {
                decode_table(&bytes).map(Some).map_err(|reason| StoreError::Damaged { place, reason })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::Unavailable(format!("cannot read {place}: {error}"))),
        }
    }

    fn swap(&mut self, expected: u64, table: &SlotTable) -> Result<(), StoreError> {
        let held = self.load()?.map_or(0, |table| table.epoch);
        check_swap(held, expected, table)?;
        let place = self.path();
        self.replace(&encode_table(table))
            .map_err(|error| StoreError::Unavailable(format!("cannot replace {}: {error}", place.display())))
    }
}

/// What every store refuses.
pub(super) fn check_swap(held: u64, expected: u64, table: &SlotTable) -> Result<(), StoreError> {
    if table.epoch <= held {
        return Err(StoreError::Older { told: table.epoch, held });
    }
    if held != expected {
        return Err(StoreError::Conflict { expected, found: held });
    }
    Ok(())
}

/// Nowhere: the table lives as long as the process, and is learnt from the nodes after a restart.
#[derive(Default)]
pub struct NoStore(u64);

impl TableStore for NoStore {
    fn campaign(&mut self) -> Result<Lead, StoreError> {
        Ok(Lead::Ours(Duration::MAX))
    }

    fn load(&mut self) -> Result<Option<SlotTable>, StoreError> {
        Ok(None)
    }

    fn swap(&mut self, expected: u64, table: &SlotTable) -> Result<(), StoreError> {
        check_swap(self.0, expected, table)?;
        self.0 = table.epoch;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(epoch: u64) -> SlotTable {
        SlotTable { epoch, ..SlotTable::empty("c", 16) }
    }

    #[test]
    fn a_table_outlives_the_process_and_is_only_replaced_by_a_newer_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = FileStore::open(folder.path()).unwrap();
        assert!(store.load().unwrap().is_none());
        store.swap(0, &table(3)).unwrap();
        assert!(matches!(store.swap(3, &table(3)), Err(StoreError::Older { told: 3, held: 3 })));
        assert!(matches!(store.swap(2, &table(4)), Err(StoreError::Conflict { expected: 2, found: 3 })));
        let refused = FileStore::open(folder.path()).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains("in use by another process"), "{refused}");
        drop(store);
        let mut store = FileStore::open(folder.path()).unwrap();
        assert_eq!(store.load().unwrap(), Some(table(3)));
        store.swap(3, &table(9)).unwrap();
        assert_eq!(store.load().unwrap(), Some(table(9)));
    }

    #[test]
    fn any_damage_is_named_and_nothing_is_written_over_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = FileStore::open(folder.path()).unwrap();
        let whole = encode_table(&table(3));
        for bit in 0..whole.len() * 8 {
            // The last eight bytes of the head are not looked at.
            if (24 * 8..HEAD_BYTES * 8).contains(&bit) {
                continue;
            }
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_table(&bytes).is_err(), "bit {bit}");
        }
        for cut in 0..whole.len() {
            assert!(decode_table(&whole[..cut]).is_err());
        }
        fs::write(folder.path().join(TABLE_FILE), &whole[..whole.len() - 1]).unwrap();
        let said = store.swap(3, &table(4)).unwrap_err().to_string();
        assert!(said.contains(TABLE_FILE) && said.contains("checksum") && said.contains("backup"), "{said}");
        assert_eq!(fs::read(folder.path().join(TABLE_FILE)).unwrap().len(), whole.len() - 1);
    }

    #[test]
    fn a_write_that_was_cut_short_leaves_the_table_before() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = FileStore::open(folder.path()).unwrap();
        store.swap(0, &table(3)).unwrap();
        fs::write(folder.path().join("slot-table.tmp"), b"half").unwrap();
        assert_eq!(store.load().unwrap(), Some(table(3)));
        store.swap(3, &table(4)).unwrap();
        assert_eq!(store.load().unwrap(), Some(table(4)));
    }
}
