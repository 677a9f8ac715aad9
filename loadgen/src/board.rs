//! The board: memory that the parent and all workers share, one file mapped by each.
//!
//! The parent writes the phase and the start of the changes; each worker writes its own row of counters and the entries of
//! the operations it drives. Every entry has one writer. An operation's revision is written before the time of its
//! acknowledgement, so whoever sees the time sees the revision.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd,
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

/// What the workers are to do. Each phase includes the work of those before it that still goes on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u64)]
pub enum Phase {
    /// Nothing yet.
    Idle = 0,
    /// Open all connections and say hello.
    Connect = 1,
    /// Publish what is there from the start.
    Publish = 2,
    /// Subscribe and take the first snapshots.
    Subscribe = 3,
    /// Make the planned changes, from the start time on.
    Run = 4,
    /// Wait for what is still on its way.
    Drain = 5,
    /// Check, write results, end.
    Finish = 6,
}

impl Phase {
    const ALL: [Phase; 7] = [
        Phase::Idle,
        Phase::Connect,
        Phase::Publish,
        Phase::Subscribe,
        Phase::Run,
        Phase::Drain,
        Phase::Finish,
    ];
}

/// The counters of a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counter {
    /// Connections that have been welcomed and are open now.
    Connections,
    /// Connections that ended without being asked to.
    Lost,
    /// Staged operations acknowledged.
    Staged,
    /// Subscriptions that have had their first answer.
    Answered,
    /// Planned changes sent.
    Sent,
    /// Planned changes acknowledged.
    Acknowledged,
    /// Writes and subscriptions refused.
    Refused,
    /// Pushes, see the counting rules.
    Pushes,
    /// Snapshots.
    Snapshots,
    /// Planned (change, subscriber) pairs resolved.
    Resolved,
    /// Pairs not resolved at the latest look, told while draining.
    Unresolved,
    /// Set once `Unresolved` has been told.
    Looked,
    /// Bytes received.
    Received,
    /// Frames sent (limit only).
    Frames,
    /// Processor nanoseconds of the working thread (limit only).
    Cpu,
    /// Connections reset by a reconnect storm.
    Resets,
    /// Subscriptions answered since their client was reset by the storm.
    Resumed,
    /// Bytes that those subscriptions and their first answers took.
    ResumeBytes,
    /// Connections of clients that did not read, ended by the other side.
    Evicted,
    /// Connections that a session sent away with a time to come back.
    SentAway,
}

const MAGIC: u64 = u64::from_le_bytes(*b"scboard1");
const HEAD: usize = 8;
const ROW: usize = 32;
const ENTRY: usize = 3;
/// In the word that says when an operation was sent.
const RESENT: u64 = 1 << 63;
const AT_PHASE: usize = 1;
const AT_START: usize = 2;
const AT_WORKERS: usize = 3;
const AT_OPS: usize = 4;

/// See the module.
pub struct Board {
    words: NonNull<AtomicU64>,
    len: usize,
    workers: usize,
    ops: usize,
}

// SAFETY: the mapping lives as long as the board and is only ever accessed through atomics.
unsafe impl Send for Board {}
// SAFETY: as above.
unsafe impl Sync for Board {}

impl Board {
    /// Makes the file and maps it.
    pub fn create(path: &Path, workers: usize, ops: usize) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        file.set_len((words_for(workers, ops) * 8) as u64)?;
        let board = Self::map(&file, workers, ops)?;
        board.set(AT_WORKERS, workers as u64);
        board.set(AT_OPS, ops as u64);
        board.set(0, MAGIC);
        Ok(board)
    }

    /// Maps a board that another process made.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let head = Self::map(&file, 0, 0)?;
        let (workers, ops) = (head.get(AT_WORKERS) as usize, head.get(AT_OPS) as usize);
        if head.get(0) != MAGIC || file.metadata()?.len() != (words_for(workers, ops) * 8) as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a board"));
        }
        Self::map(&file, workers, ops)
    }

    fn map(file: &File, workers: usize, ops: usize) -> io::Result<Self> {
        let len = words_for(workers, ops);
        if file.metadata()?.len() < (len * 8) as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "board file is too short"));
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice, of a file that is long enough.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), len * 8, access, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { words, len, workers, ops })
    }

    /// What to do now.
    pub fn phase(&self) -> Phase {
        Phase::ALL.get(self.get(AT_PHASE) as usize).copied().unwrap_or(Phase::Finish)
    }

    /// Tells the workers what to do.
    pub fn set_phase(&self, phase: Phase) {
        self.set(AT_PHASE, phase as u64);
    }

    /// The clock at the start of the changes.
    pub fn start(&self) -> u64 {
        self.get(AT_START)
    }

    /// Sets the start of the changes; before the phase that needs it.
    pub fn set_start(&self, clock: u64) {
        self.set(AT_START, clock);
    }

    /// Workers that have a row.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// A counter of one worker.
    pub fn counter(&self, worker: usize, counter: Counter) -> u64 {
        self.get(self.row(worker, counter))
    }

    /// A counter summed over all workers.
    pub fn total(&self, counter: Counter) -> u64 {
        (0..self.workers).map(|worker| self.counter(worker, counter)).sum()
    }

    /// Sets a counter of the calling worker.
    pub fn set_counter(&self, worker: usize, counter: Counter, value: u64) {
        self.word(self.row(worker, counter)).store(value, Ordering::Relaxed);
    }

    /// Adds to a counter of the calling worker.
    pub fn add(&self, worker: usize, counter: Counter, value: u64) {
        let word = self.word(self.row(worker, counter));
        word.store(word.load(Ordering::Relaxed) + value, Ordering::Relaxed);
    }

    /// When an operation was sent; 0: not yet.
    pub fn sent(&self, op: u32) -> u64 {
        self.get(self.entry(op)) & !RESENT
    }

    /// Whether an operation was sent once more over another connection, because nobody knew what had become of it: it may have
    /// had its effect before the revision that it was acknowledged with in the end.
    pub fn is_resent(&self, op: u32) -> bool {
        self.get(self.entry(op)) & RESENT != 0
    }

    /// Notes that it was.
    pub fn set_resent(&self, op: u32) {
        self.set(self.entry(op), self.get(self.entry(op)) | RESENT);
    }

    /// Notes when an operation was sent.
    pub fn set_sent(&self, op: u32, clock: u64) {
        self.set(self.entry(op), clock);
    }

    /// When an operation was answered, and its outcome: a revision or, below 2^40, the number of a refusal.
    pub fn answer(&self, op: u32) -> Option<(u64, u64)> {
        let clock = self.get(self.entry(op) + 1);
        (clock > 0).then(|| (clock, self.get(self.entry(op) + 2)))
    }

    /// The revision of an acknowledged operation that was not refused, and when it was acknowledged.
    pub fn acknowledged(&self, op: u32) -> Option<(u64, u64)> {
        self.answer(op).filter(|&(_, outcome)| outcome >= 1 << 40)
    }

    /// Notes the answer to an operation.
    pub fn set_answer(&self, op: u32, clock: u64, outcome: u64) {
        self.set(self.entry(op) + 2, outcome);
        self.set(self.entry(op) + 1, clock);
    }

    fn row(&self, worker: usize, counter: Counter) -> usize {
        assert!(worker < self.workers);
        HEAD + worker * ROW + counter as usize
    }

    fn entry(&self, op: u32) -> usize {
        assert!((op as usize) < self.ops);
        HEAD + self.workers * ROW + op as usize * ENTRY
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.len);
        // SAFETY: in bounds of the mapping, which lives as long as `self`; all access is atomic.
        unsafe { self.words.add(index).as_ref() }
    }

    fn get(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }

    fn set(&self, index: usize, value: u64) {
        self.word(index).store(value, Ordering::Release);
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped, and nobody holds a reference into it any more.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.len * 8) };
    }
}

fn words_for(workers: usize, ops: usize) -> usize {
    HEAD + workers * ROW + ops * ENTRY
}

const _: () = assert!((Counter::SentAway as usize) < ROW, "a row has a word for every counter");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_process_writes_another_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("board");
        let mine = Board::create(&path, 3, 10).unwrap();
        let theirs = Board::open(&path).unwrap();
        assert_eq!(theirs.phase(), Phase::Idle);
        mine.set_start(77);
        mine.set_phase(Phase::Run);
        theirs.add(2, Counter::Cpu, 5);
        theirs.add(1, Counter::Cpu, 6);
        theirs.set_sent(9, 1);
        theirs.set_answer(9, 2, 1 << 40);
        theirs.set_answer(8, 2, 4);
        assert_eq!((theirs.phase(), theirs.start()), (Phase::Run, 77));
        assert_eq!((mine.total(Counter::Cpu), mine.counter(0, Counter::Cpu)), (11, 0));
        assert_eq!((mine.sent(9), mine.acknowledged(9)), (1, Some((2, 1 << 40))));
        assert_eq!((mine.acknowledged(8), mine.answer(8), mine.answer(7)), (None, Some((2, 4)), None));
        assert!(Board::create(&path, 1, 1).is_err());
    }
}
