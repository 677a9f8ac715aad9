//! Files read ahead: a thread fetches what will be asked for next, so that the disk and the processors work at the same time,
//! and past the page cache, for nobody will ask again.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread::JoinHandle,
};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use rkyv::util::AlignedVec;

/// Bytes fetched at once.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces that wait for the reader; with the one that is fetched and those that are read from, the memory that is taken.
const PIECES_MAX: usize = 4;
const DIRECT: i32 = rustix::fs::OFlags::DIRECT.bits() as i32;

/// Memory as `O_DIRECT` wants it.
type Buffer = AlignedVec<4096>;

/// A part of a file.
struct Piece {
    /// The file's place among all that were announced.
    number: u64,
    offset: u64,
    buffer: Buffer,
    /// Bytes of the buffer that are the file's. Fewer than fit: the file ends here, or could not be read on.
    len: usize,
}

/// A thread that reads files in the order in which they are announced.
pub(super) struct Ahead {
    folder: PathBuf,
    orders: Option<Sender<(u64, PathBuf)>>,
    pieces: Option<Receiver<Piece>>,
    used: Sender<Buffer>,
    thread: Option<JoinHandle<()>>,
    /// Files announced: those of which something may still come.
    coming: VecDeque<(u64, String)>,
    announced: u64,
    /// Pieces of the first of them, in their order.
    held: VecDeque<Piece>,
    /// The last of its pieces has come.
    ended: bool,
}

impl Ahead {
    /// Starts the thread. `Err`: the system has none.
    pub(super) fn start(folder: &Path) -> io::Result<Self> {
        let (orders, ordered) = unbounded();
        let (sent, pieces) = bounded(PIECES_MAX);
        let (used, again) = unbounded();
        let thread = std::thread::Builder::new()
            .name("read-ahead".into())
            .spawn(move || fetch(&ordered, &sent, &again))?;
        Ok(Self {
            folder: folder.to_path_buf(),
            orders: Some(orders),
            pieces: Some(pieces),
            used,
            thread: Some(thread),
            coming: VecDeque::new(),
            announced: 0,
            held: VecDeque::new(),
            ended: false,
        })
    }

    /// Announces a file that will be read from its beginning on, behind those announced before.
    pub(super) fn soon(&mut self, file: &str) {
        let Some(orders) = &self.orders else { return };
        if self.coming.iter().all(|(_, coming)| coming != file)
            && orders.send((self.announced, self.folder.join(file))).is_ok()
        {
            self.coming.push_back((self.announced, file.to_string()));
            self.announced += 1;
        }
    }

    /// Fills `bytes` from an offset of a file that was announced and has not been read beyond there. `false`: that is not so,
    /// or it could not be read, or ends before; then it has to be read in another way.
    pub(super) fn read(&mut self, file: &str, offset: u64, bytes: &mut [u8]) -> bool {
        let Some(at) = self.coming.iter().position(|(_, coming)| coming == file) else { return false };
        for _ in 0..at {
            self.coming.pop_front();
            self.held.drain(..).for_each(|piece| _ = self.used.send(piece.buffer));
            self.ended = false;
        }
        while self.held.front().is_some_and(|piece| piece.offset + piece.len as u64 <= offset) {
            let Some(piece) = self.held.pop_front() else { break };
            _ = self.used.send(piece.buffer);
        }
        let (mut filled, mut next) = (0, 0);
        while filled < bytes.len() {
            if next == self.held.len() && !self.receive() {
                return false;
            }
            let piece = &self.held[next];
            next += 1;
            let from = offset + filled as u64;
            if from < piece.offset {
                return false;
            }
            let from = (from - piece.offset) as usize;
            if from < piece.len {
                let taken = (piece.len - from).min(bytes.len() - filled);
                bytes[filled..filled + taken].copy_from_slice(&piece.buffer[from..from + taken]);
                filled += taken;
            }
        }
        true
    }

    /// Waits for the next piece of the file that is being read.
    fn receive(&mut self) -> bool {
        let (Some(pieces), Some((number, _))) = (&self.pieces, self.coming.front()) else { return false };
        while !self.ended {
            let Ok(piece) = pieces.recv() else { return false };
            if piece.number != *number {
                _ = self.used.send(piece.buffer);
                continue;
            }
            self.ended = piece.len < PIECE_BYTES;
            self.held.push_back(piece);
            return true;
        }
        false
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        (self.orders, self.pieces) = (None, None);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn fetch(ordered: &Receiver<(u64, PathBuf)>, sent: &Sender<Piece>, again: &Receiver<Buffer>) {
    while let Ok((number, path)) = ordered.recv() {
        let file = open(&path);
        let mut offset = 0;
        loop {
            let mut buffer = again.try_recv().unwrap_or_default();
            buffer.resize(PIECE_BYTES, 0);
            // Whoever reads hears of an error when it reads the same bytes by itself.
            let len = file.as_ref().map_or(0, |file| file.read_at(&mut buffer, offset).unwrap_or(0));
            if sent.send(Piece { number, offset, buffer, len }).is_err() {
                return;
            }
            if len < PIECE_BYTES {
                break;
            }
            offset += len as u64;
        }
    }
}

/// Past the page cache where the file system can.
fn open(path: &Path) -> Option<File> {
    let direct = File::options().read(true).custom_flags(DIRECT).open(path);
    direct.or_else(|_| File::open(path)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(file: usize, len: usize) -> Vec<u8> {
        (0..len).map(|at| (at / 7 + at * file) as u8).collect()
    }

    #[test]
    fn what_comes_ahead_is_what_the_files_hold() {
        let folder = tempfile::tempdir().unwrap();
        let sizes = [10, 3 * PIECE_BYTES + 5, 2 * PIECE_BYTES, 0, 7 * PIECE_BYTES];
        for (file, len) in sizes.iter().enumerate() {
            std::fs::write(folder.path().join(file.to_string()), content(file, *len)).unwrap();
        }
        let mut ahead = Ahead::start(folder.path()).unwrap();
        (0..5).for_each(|file| ahead.soon(&file.to_string()));
        for (file, len) in sizes.iter().enumerate() {
            let (expected, mut offset) = (content(file, *len), 0);
            while offset < *len {
                // Over the edges of pieces, and the last bytes twice, as whoever looks at a header first does.
                let step = (PIECE_BYTES / 3 * 4).min(len - offset);
                let mut bytes = vec![0; step];
                for part in [16.min(step), step] {
                    assert!(ahead.read(&file.to_string(), offset as u64, &mut bytes[..part]));
                }
                assert!(bytes == expected[offset..offset + step], "file {file} at {offset}");
                offset += step;
            }
            assert!(!ahead.read(&file.to_string(), *len as u64, &mut [0]), "nothing is behind its end");
        }
        assert!(!ahead.read("4", 0, &mut [0]), "what was left behind is not kept");
    }

    #[test]
    fn files_may_be_left_out_missing_or_left_in_the_middle() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["a", "b", "c"] {
            std::fs::write(folder.path().join(file), content(file.len(), 9 * PIECE_BYTES)).unwrap();
        }
        let mut ahead = Ahead::start(folder.path()).unwrap();
        ["a", "missing", "b", "c"].into_iter().for_each(|file| ahead.soon(file));
        let mut byte = [0];
        assert!(ahead.read("a", 100, &mut byte));
        assert!(!ahead.read("missing", 0, &mut byte) && !ahead.read("never announced", 0, &mut byte));
        assert!(ahead.read("c", 5 * PIECE_BYTES as u64, &mut byte));
        assert_eq!(byte[0], content(1, 6 * PIECE_BYTES)[5 * PIECE_BYTES]);
        assert!(!ahead.read("a", 100, &mut byte), "it was left");
    }
}
