//! A disk in memory that knows what is durable: what was written and not synced may be lost at a crash, sector by sector.

use std::collections::BTreeMap;

use slotcast_engine::{
    disk_op::{DiskError, DiskOp},
    id::mix64,
    recover::Files,
};

/// What a disk keeps or loses as a whole.
const TEAR_BYTES: usize = 512;

/// Numbers from a seed.
pub struct Chance(u64);

impl Chance {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(mix64(seed))
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.0)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end.max(1)
    }
}

#[derive(Clone, Default)]
struct Inode {
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone)]
enum NameChange {
    Is(String, u64),
    Gone(String),
    Moved(String, String),
}

/// The files of one directory.
#[derive(Clone, Default)]
pub struct CrashDisk {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    name_changes: Vec<NameChange>,
    made: u64,
    /// Writes and creations fail for want of space.
    pub is_full: bool,
}

impl CrashDisk {
    /// Carries out one operation.
    pub fn run(&mut self, op: &DiskOp) -> Result<(), DiskError> {
        let missing = |file: &str| DiskError::Failed(format!("{file} is not there"));
        match op {
            DiskOp::Create { file } => {
                if self.is_full {
                    return Err(DiskError::NoSpace);
                }
                self.made += 1;
                self.inodes.insert(self.made, Inode::default());
                self.change(NameChange::Is(file.clone(), self.made));
            }
            DiskOp::Write { file, offset, bytes } => {
                if self.is_full {
                    return Err(DiskError::NoSpace);
                }
                let inode = self.names.get(file).copied().ok_or_else(|| missing(file))?;
                let inode = self.inodes.entry(inode).or_default();
                inode.unsynced.push((*offset as usize, bytes.clone()));
            }
            DiskOp::Sync { file } => {
                let inode = self.names.get(file).copied().ok_or_else(|| missing(file))?;
                self.inodes.entry(inode).or_default().settle(|_| true);
            }
            DiskOp::Rename { from, to } => {
                if !self.names.contains_key(from) {
                    return Err(missing(from));
                }
                self.change(NameChange::Moved(from.clone(), to.clone()));
            }
            DiskOp::Delete { file } => self.change(NameChange::Gone(file.clone())),
            DiskOp::SyncNames => {
                let changes = std::mem::take(&mut self.name_changes);
                changes.into_iter().for_each(|change| apply(&mut self.durable_names, change));
            }
        }
        Ok(())
    }

    /// The disk as the next start finds it: of what was not synced, names survive up to some point in their order, and
    /// sectors survive or not, each by itself, all, or none.
    pub fn crashed(&self, chance: &mut Chance) -> Self {
        let mut disk = self.clone();
        disk.is_full = false;
        let kept = chance.below(self.name_changes.len() as u64 + 1) as usize;
        let changes = std::mem::take(&mut disk.name_changes);
        changes.into_iter().take(kept).for_each(|change| apply(&mut disk.durable_names, change));
        disk.names = disk.durable_names.clone();
        let manner = chance.below(4);
        for inode in disk.inodes.values_mut() {
            inode.settle(|_| match manner {
                0 => false,
                1 => true,
                _ => chance.below(2) == 0,
            });
        }
        let named: Vec<u64> = disk.names.values().copied().collect();
        disk.inodes.retain(|number, _| named.contains(number));
        disk
    }

    fn change(&mut self, change: NameChange) {
        self.name_changes.push(change.clone());
        apply(&mut self.names, change);
    }

    fn content(&self, file: &str) -> Result<Vec<u8>, String> {
        let inode = self.names.get(file).and_then(|inode| self.inodes.get(inode));
        let mut inode = inode.cloned().ok_or_else(|| format!("{file} is not there"))?;
        inode.settle(|_| true);
        Ok(inode.durable)
    }
}

impl Inode {
    /// Makes the unsynced sectors durable that `keep` says.
    fn settle(&mut self, mut keep: impl FnMut(usize) -> bool) {
        for (offset, bytes) in std::mem::take(&mut self.unsynced) {
            for (index, sector) in bytes.chunks(TEAR_BYTES).enumerate() {
                let from = offset + index * TEAR_BYTES;
                if keep(from) {
                    let end = from + sector.len();
                    if self.durable.len() < end {
                        self.durable.resize(end, 0);
                    }
                    self.durable[from..end].copy_from_slice(sector);
                }
            }
        }
    }
}

fn apply(names: &mut BTreeMap<String, u64>, change: NameChange) {
    match change {
        NameChange::Is(name, inode) => _ = names.insert(name, inode),
        NameChange::Gone(name) => _ = names.remove(&name),
        NameChange::Moved(from, to) => {
            if let Some(inode) = names.remove(&from) {
                names.insert(to, inode);
            }
        }
    }
}

impl Files for CrashDisk {
    fn list(&mut self) -> Result<Vec<(String, u64)>, String> {
        let names: Vec<String> = self.names.keys().cloned().collect();
        names.into_iter().map(|name| Ok((name.clone(), self.content(&name)?.len() as u64))).collect()
    }

    fn read(&mut self, file: &str, offset: u64, bytes: &mut [u8]) -> Result<(), String> {
        let content = self.content(file)?;
        let from = offset as usize;
        let part = content.get(from..from + bytes.len()).ok_or("read behind the end")?;
        bytes.copy_from_slice(part);
        Ok(())
    }
}
