//! A data directory in memory that knows what is durable: what was written and not synced may be lost at a crash, sector by
//! sector. Tests, fuzzing and the crash simulation keep their files here.

use std::collections::BTreeMap;

use crate::{
    disk_op::{DiskError, DiskOp, DiskQueue, SECTOR_BYTES},
    recover::Files,
};

/// What a disk keeps or loses as a whole.
const TEAR_BYTES: usize = 512;

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
pub struct MemoryDisk {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    name_changes: Vec<NameChange>,
    made: u64,
    /// Writes and creations fail for want of space.
    pub is_full: bool,
}

impl MemoryDisk {
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
                let whole = |bytes: usize| bytes.is_multiple_of(SECTOR_BYTES);
                assert!(whole(*offset as usize) && whole(bytes.len()), "only whole sectors can be written");
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

    /// Carries out everything that is asked for; the first failure ends it.
    pub fn run_all(&mut self, queue: &mut DiskQueue) -> Result<(), DiskError> {
        while let Some(request) = queue.take(usize::MAX) {
            self.run(&request.op)?;
        }
        Ok(())
    }

    /// The disk as the next start finds it: of what was not synced, names survive up to some point in their order, and
    /// sectors survive or not, each by itself, all, or none. `below` decides: it returns a number below what it is given.
    pub fn crashed(&self, below: &mut dyn FnMut(u64) -> u64) -> Self {
        let mut disk = self.clone();
        disk.is_full = false;
        let kept = below(self.name_changes.len() as u64 + 1) as usize;
        let changes = std::mem::take(&mut disk.name_changes);
        changes.into_iter().take(kept).for_each(|change| apply(&mut disk.durable_names, change));
        disk.names = disk.durable_names.clone();
        let manner = below(4);
        for inode in disk.inodes.values_mut() {
            inode.settle(|_| match manner {
                0 => false,
                1 => true,
                _ => below(2) == 0,
            });
        }
        let named: Vec<u64> = disk.names.values().copied().collect();
        disk.inodes.retain(|number, _| named.contains(number));
        disk
    }

    /// The names of all files whose name ends in `ending`, in order.
    pub fn names(&self, ending: &str) -> Vec<String> {
        self.names.keys().filter(|name| name.ends_with(ending)).cloned().collect()
    }

    /// What a file holds; `None` if it is not there.
    pub fn content(&self, file: &str) -> Option<Vec<u8>> {
        let inode = self.names.get(file).and_then(|inode| self.inodes.get(inode))?;
        Some(inode.content())
    }

    /// Puts a file there, durable at once, in place of one of that name.
    pub fn put(&mut self, file: &str, bytes: Vec<u8>) {
        self.made += 1;
        self.inodes.insert(self.made, Inode { durable: bytes, unsynced: Vec::new() });
        self.names.insert(file.into(), self.made);
        self.durable_names.insert(file.into(), self.made);
    }

    /// Takes a file away, durably at once. Returns what it held.
    pub fn remove(&mut self, file: &str) -> Option<Vec<u8>> {
        let content = self.content(file);
        self.names.remove(file);
        self.durable_names.remove(file);
        content
    }

    fn change(&mut self, change: NameChange) {
        self.name_changes.push(change.clone());
        apply(&mut self.names, change);
    }

    fn inode(&self, file: &str) -> Result<&Inode, String> {
        let inode = self.names.get(file).and_then(|inode| self.inodes.get(inode));
        inode.ok_or_else(|| format!("{file} is not there"))
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

    fn content(&self) -> Vec<u8> {
        let mut copy = self.clone();
        copy.settle(|_| true);
        copy.durable
    }

    fn len(&self) -> usize {
        let ends = self.unsynced.iter().map(|(offset, bytes)| offset + bytes.len());
        ends.fold(self.durable.len(), usize::max)
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

impl Files for MemoryDisk {
    fn list(&mut self) -> Result<Vec<(String, u64)>, String> {
        self.names.keys().map(|name| Ok((name.clone(), self.inode(name)?.len() as u64))).collect()
    }

    fn read(&mut self, file: &str, offset: u64, bytes: &mut [u8]) -> Result<(), String> {
        let inode = self.inode(file)?;
        let settled;
        let content = if inode.unsynced.is_empty() {
            &inode.durable
        } else {
            settled = inode.content();
            &settled
        };
        let from = offset as usize;
        let part = content.get(from..from + bytes.len()).ok_or("read behind the end")?;
        bytes.copy_from_slice(part);
        Ok(())
    }
}
