//! Files of one shard, on a glommio executor of their own, past the page cache.
//!
//! The pump's loop never awaits (see `pump.rs`), so files have a thread beside it. Requests come through a bounded channel
//! and are carried out one after the other; each outcome goes back through another, and the pump is woken. Between two
//! requests the thread blocks in the channel, which the feeding side ends with every request. Within one it awaits the
//! kernel, and there the executor may park with its task runnable, as it may in the pump; a timer of the same executor,
//! [`GUARD_INTERVAL`], bounds that sleep.
//!
//! Where a file system refuses `O_DIRECT`, files are written through the page cache; that is logged once.

mod ahead;
mod files;

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use crossbeam::channel::{Receiver, Sender, bounded};
use glommio::{
    ExecutorJoinHandle, GlommioError, Placement,
    io::{BufferedFile, Directory, DmaFile, OpenOptions},
    timer::TimerActionRepeat,
};
use slotcast_engine::{
    disk_op::{DiskDone, DiskError, DiskOp, DiskRequest},
    storage::OPERATIONS_MAX,
};

pub use files::{DirectoryFiles, DirectoryLock, LOCK_FILE, WorkTimes};

use crate::io::{executor, ring::Waker};

/// Longest sleep of the executor with something to do.
pub const GUARD_INTERVAL: Duration = Duration::from_millis(10);
/// Memory that glommio registers for file buffers; larger ones are allocated by themselves.
const IO_MEMORY_BYTES: usize = 512 << 10;
/// Files kept open.
const OPEN_MAX: usize = 4;

/// The other side of a [`Disk`] that no thread serves: what is asked for comes out here, and outcomes go in.
pub struct DiskSide {
    /// What is asked for, in order.
    pub requests: Receiver<DiskRequest>,
    /// What became of it.
    pub done: Sender<DiskDone>,
}

/// The files of one shard.
pub struct Disk {
    requests: Option<Sender<DiskRequest>>,
    done: Receiver<DiskDone>,
    waker: Arc<OnceLock<Waker>>,
    thread: Option<ExecutorJoinHandle<()>>,
}

impl Disk {
    /// Starts the thread. All files lie in `folder`.
    pub fn start(name: &str, folder: &Path) -> anyhow::Result<Self> {
        // No more are under way than the store has out, so neither channel is ever full.
        let (requests, taken) = bounded(OPERATIONS_MAX);
        let (reported, done) = bounded(OPERATIONS_MAX);
        let waker = Arc::new(OnceLock::new());
        let (woken, folder) = (waker.clone(), folder.to_path_buf());
        let thread = executor::spawn(name, Placement::Unbound, IO_MEMORY_BYTES, async move || {
            serve(folder, &taken, &reported, &woken).await;
        })?;
        Ok(Self { requests: Some(requests), done, waker, thread: Some(thread) })
    }

    /// The same without a thread: the caller carries requests out, in virtual time, for example.
    pub fn by_hand() -> (Self, DiskSide) {
        let (requests, taken) = bounded(OPERATIONS_MAX);
        let (reported, done) = bounded(OPERATIONS_MAX);
        let disk = Self { requests: Some(requests), done, waker: Arc::new(OnceLock::new()), thread: None };
        (disk, DiskSide { requests: taken, done: reported })
    }

    /// Who is to be woken when something is done.
    pub fn wake(&self, waker: Waker) {
        let _ = self.waker.set(waker);
    }

    /// Hands a request over.
    pub fn submit(&self, request: DiskRequest) {
        if let Some(requests) = &self.requests
            && requests.send(request).is_err()
        {
            tracing::error!("the thread of the files has ended");
        }
    }

    /// The next outcome, if there is one.
    pub fn poll(&self) -> Option<DiskDone> {
        self.done.try_recv().ok()
    }

    /// The next outcome, waiting for it at most `timeout`.
    pub fn wait(&self, timeout: Duration) -> Option<DiskDone> {
        self.done.recv_timeout(timeout).ok()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    folder: PathBuf,
    taken: &Receiver<DiskRequest>,
    reported: &Sender<DiskDone>,
    waker: &OnceLock<Waker>,
) {
    let guard = TimerActionRepeat::repeat(|| async { Some(GUARD_INTERVAL) });
    let mut files = OpenFiles { folder, open: VecDeque::new(), direct: true };
    while let Ok(request) = taken.recv() {
        let result = files.carry_out(request.op).await;
        if reported.send(DiskDone { id: request.id, result: result.map_err(explain) }).is_err() {
            break;
        }
        if let Some(waker) = waker.get() {
            let _ = waker.wake();
        }
    }
    guard.destroy();
}

fn explain(error: io::Error) -> DiskError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::NoSpace,
        _ => DiskError::Failed(error.to_string()),
    }
}

enum OpenFile {
    Direct(DmaFile),
    Buffered(BufferedFile),
}

struct OpenFiles {
    folder: PathBuf,
    /// The latest used last.
    open: VecDeque<(String, OpenFile)>,
    direct: bool,
}

impl OpenFiles {
    async fn carry_out(&mut self, op: DiskOp) -> io::Result<()> {
        match op {
            DiskOp::Create { file } => {
                self.close(&file).await;
                self.open(&file, true).await.map(|_| ())
            }
            DiskOp::Write { file, offset, bytes } => match self.open(&file, false).await? {
                OpenFile::Direct(to) => {
                    let mut buffer = to.alloc_dma_buffer(bytes.len());
                    buffer.as_bytes_mut().copy_from_slice(&bytes);
                    whole(to.write_at(buffer, offset).await, bytes.len())
                }
                OpenFile::Buffered(to) => {
                    let length = bytes.len();
                    whole(to.write_at(bytes, offset).await, length)
                }
            },
            DiskOp::Sync { file } => match self.open(&file, false).await? {
                OpenFile::Direct(file) => Ok(file.fdatasync().await?),
                OpenFile::Buffered(file) => Ok(file.fdatasync().await?),
            },
            DiskOp::Rename { from, to } => {
                self.close(&from).await;
                self.close(&to).await;
                Ok(glommio::io::rename(self.folder.join(from), self.folder.join(to)).await?)
            }
            DiskOp::Delete { file } => {
                self.close(&file).await;
                match glommio::io::remove(self.folder.join(file)).await.map_err(io::Error::from) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                }
            }
            DiskOp::SyncNames => {
                let folder = Directory::open(&self.folder).await?;
                folder.sync().await?;
                Ok(folder.close().await?)
            }
        }
    }

    async fn open(&mut self, file: &str, create: bool) -> io::Result<&OpenFile> {
        if let Some(at) = self.open.iter().position(|(name, _)| name == file)
            && let Some(found) = self.open.remove(at)
        {
            self.open.push_back(found);
        } else {
            while self.open.len() >= OPEN_MAX
                && let Some((_, oldest)) = self.open.pop_front()
            {
                close(oldest).await;
            }
            let opened = self.open_anew(file, create).await?;
            self.open.push_back((file.to_string(), opened));
        }
        self.open.back().map(|(_, file)| file).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    async fn open_anew(&mut self, file: &str, create: bool) -> io::Result<OpenFile> {
        let path = self.folder.join(file);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).truncate(create);
        if self.direct {
            match options.dma_open(&path).await.map_err(io::Error::from) {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    tracing::warn!(
                        folder = %self.folder.display(),
                        "the file system refuses direct writes: files go through the page cache"
                    );
                    self.direct = false;
                }
                opened => return opened.map(OpenFile::Direct),
            }
        }
        Ok(OpenFile::Buffered(options.buffered_open(&path).await?))
    }

    async fn close(&mut self, file: &str) {
        if let Some(at) = self.open.iter().position(|(name, _)| name == file)
            && let Some((_, opened)) = self.open.remove(at)
        {
            close(opened).await;
        }
    }
}

async fn close(file: OpenFile) {
    let closed = match file {
        OpenFile::Direct(file) => file.close().await,
        OpenFile::Buffered(file) => file.close().await,
    };
    if let Err(error) = closed {
        tracing::warn!(%error, "closing a file");
    }
}

fn whole(written: Result<usize, GlommioError<()>>, length: usize) -> io::Result<()> {
    let written = written?;
    if written == length {
        return Ok(());
    }
    // A disk that is nearly full takes a part.
    Err(io::Error::new(io::ErrorKind::StorageFull, format!("{written} of {length} bytes were written")))
}
