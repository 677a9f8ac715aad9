//! A data directory before a node serves: locked, read by recovery, cleaned up. Plain blocking calls.

use std::{
    fs::{File, TryLockError},
    io::{self, Write},
    ops::AddAssign,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use slotcast_engine::{
    disk_op::{DiskOp, DiskQueue},
    id::Nanos,
    recover::{Files, Work},
};

use super::ahead::Ahead;
use crate::io::clock;

/// What a file system in memory calls itself.
const TMPFS: u64 = 0x0102_1994;

/// The file that a running node holds a lock on.
pub const LOCK_FILE: &str = "lock";

/// A data directory that no other process uses.
pub struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Makes the directory if it is not there, and locks it.
    pub fn take(folder: &Path) -> anyhow::Result<Self> {
        ensure!(
            folder.is_dir() || !folder.exists(),
            "the data directory {} is a file, not a directory: set data.data_dir",
            folder.display()
        );
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the data directory {}", folder.display()))?;
        let path = folder.join(LOCK_FILE);
        let mut file =
            File::options().create(true).truncate(false).write(true).open(&path).with_context(|| {
                let uid = rustix::process::geteuid().as_raw();
                format!("cannot open {}: the data directory must be writable by uid {uid}", path.display())
            })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "another data node uses the data directory {}: stop it, or set data.data_dir",
                folder.display()
            ),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self { _file: file })
    }

    /// Whether no process uses the directory now. Changes nothing in it.
    pub fn is_free(folder: &Path) -> anyhow::Result<bool> {
        let path = folder.join(LOCK_FILE);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }
}

/// How long each part of a recovery took, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkTimes {
    /// Fetching bytes, waiting for the disk included.
    pub read: u64,
    /// Comparing blocks with their checksums.
    pub checksum: u64,
    /// Checking the records of snapshots.
    pub validate: u64,
    /// Storing what snapshots hold.
    pub apply: u64,
    /// Checking and storing what journals hold.
    pub tail: u64,
    /// All else.
    pub rest: u64,
}

/// The files of a directory, read and changed by blocking calls.
pub struct DirectoryFiles {
    folder: PathBuf,
    open: Option<(String, File)>,
    /// Fetches files before they are read; made with the first that is announced, where that is worth it.
    ahead: Option<Ahead>,
    is_memory: bool,
    work: (Work, Nanos),
    times: WorkTimes,
}

impl AddAssign for WorkTimes {
    fn add_assign(&mut self, other: Self) {
        self.read += other.read;
        self.checksum += other.checksum;
        self.validate += other.validate;
        self.apply += other.apply;
        self.tail += other.tail;
        self.rest += other.rest;
    }
}

impl DirectoryFiles {
    /// The files in `folder`.
    pub fn new(folder: &Path) -> Self {
        let work = (Work::Rest, clock::now());
        // Out of memory, nothing would be fetched while somebody else works: it would be copied once more, that is all.
        let is_memory =
            rustix::fs::statfs(folder).is_ok_and(|system| u64::try_from(system.f_type) == Ok(TMPFS));
        let (folder, times) = (folder.to_path_buf(), WorkTimes::default());
        Self { folder, open: None, ahead: None, is_memory, work, times }
    }

    /// How long each part of what was recovered through it has taken.
    pub fn times(&self) -> WorkTimes {
        self.times
    }

    /// Carries out everything that is queued; stops at the first error.
    pub fn carry_out(&mut self, queue: &mut DiskQueue) -> anyhow::Result<()> {
        while let Some(request) = queue.take(usize::MAX) {
            let file = match &request.op {
                DiskOp::Create { file }
                | DiskOp::Write { file, .. }
                | DiskOp::Sync { file }
                | DiskOp::Delete { file }
                | DiskOp::Rename { to: file, .. } => file.clone(),
                DiskOp::SyncNames => String::new(),
            };
            self.run(request.op)
                .with_context(|| format!("cannot write {}", self.folder.join(file).display()))?;
        }
        Ok(())
    }

    fn run(&mut self, op: DiskOp) -> io::Result<()> {
        match op {
            DiskOp::Create { file } => {
                let options = File::options().read(true).write(true).create(true).truncate(true).clone();
                self.open = Some((file.clone(), options.open(self.folder.join(file))?));
            }
            DiskOp::Write { file, offset, bytes } => self.file(&file)?.write_all_at(&bytes, offset)?,
            DiskOp::Sync { file } => self.file(&file)?.sync_data()?,
            DiskOp::Rename { from, to } => {
                self.open = None;
                std::fs::rename(self.folder.join(from), self.folder.join(to))?;
            }
            DiskOp::Delete { file } => match std::fs::remove_file(self.folder.join(file)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            },
            DiskOp::SyncNames => File::open(&self.folder)?.sync_all()?,
        }
        Ok(())
    }

    fn file(&mut self, name: &str) -> io::Result<&File> {
        if self.open.as_ref().is_none_or(|(open, _)| open != name) {
            let options = File::options().read(true).clone();
            self.open = Some((name.to_string(), options.open(self.folder.join(name))?));
        }
        self.open.as_ref().map(|(_, file)| file).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Files for DirectoryFiles {
    fn list(&mut self) -> Result<Vec<(String, u64)>, String> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(|error| error.to_string())? {
            let entry = entry.map_err(|error| error.to_string())?;
            let bytes = entry.metadata().map_err(|error| error.to_string())?.len();
            files.push((entry.file_name().to_string_lossy().into_owned(), bytes));
        }
        files.sort();
        Ok(files)
    }

    fn read(&mut self, file: &str, offset: u64, bytes: &mut [u8]) -> Result<(), String> {
        if self.ahead.as_mut().is_some_and(|ahead| ahead.read(file, offset, bytes)) {
            return Ok(());
        }
        let file = self.file(file).map_err(|error| error.to_string())?;
        file.read_exact_at(bytes, offset).map_err(|error| error.to_string())
    }

    fn soon(&mut self, file: &str) {
        if self.is_memory {
            return;
        }
        if self.ahead.is_none() {
            // Without the thread reading takes longer, that is all.
            self.ahead = Ahead::start(&self.folder).ok();
        }
        if let Some(ahead) = &mut self.ahead {
            ahead.soon(file);
        }
    }

    fn turn_to(&mut self, work: Work) {
        let now = clock::now();
        let (before, since) = std::mem::replace(&mut self.work, (work, now));
        let spent = match before {
            Work::Read => &mut self.times.read,
            Work::Checksum => &mut self.times.checksum,
            Work::Validate => &mut self.times.validate,
            Work::Apply => &mut self.times.apply,
            Work::Tail => &mut self.times.tail,
            Work::Rest => &mut self.times.rest,
        };
        *spent += now.since(since);
    }
}
