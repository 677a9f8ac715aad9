//! Accepting: which ring takes new connections, and how many accepts are armed on it.

use std::{
    io,
    net::{Shutdown, TcpListener},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use io_uring::cqueue;
use socket2::SockRef;

use super::{Event, RingSockets, kernel::Completion, slab::File, token::Kind};

/// One-shot accepts a listener keeps armed when a table is too full for multishot. They are armed once per turn, and a turn
/// under load takes 10 ms: with few of them a storm of connects would wait for turns.
const SINGLE_ACCEPTS_MAX: usize = 1024;

/// Accept failures in a row after which a listener waits for a connection to close.
const ACCEPT_ERRORS_MAX: u32 = 16;

/// A listening socket and the accepts armed on it.
pub(super) struct Listener {
    socket: TcpListener,
    /// Ring with a multishot accept.
    multi: Option<usize>,
    multi_cancelled: bool,
    /// One-shot accepts in flight.
    singles: usize,
    /// Accepting fails until something changes.
    blocked: bool,
    errors_in_row: u32,
}

impl Listener {
    pub fn new(socket: TcpListener) -> Self {
        Self { socket, multi: None, multi_cancelled: false, singles: 0, blocked: false, errors_in_row: 0 }
    }

    /// Lets accepting go on after a failure.
    pub fn unblock(&mut self) {
        self.blocked = false;
    }
}

impl Drop for Listener {
    /// An armed accept holds the socket until the kernel has taken the ring down, some time after this. The port is to be
    /// free for the next listener at once.
    fn drop(&mut self) {
        let _ = SockRef::from(&self.socket).shutdown(Shutdown::Both);
    }
}

impl RingSockets {
    /// Brings the armed accepts in line with the free slots. A multishot accept may run through a whole backlog before
    /// we look, and what then finds no slot would be dropped, so near the end of a table accepts are one-shot and counted.
    pub(super) fn arm_accepts(&mut self) -> io::Result<()> {
        self.accepts_due = false;
        let margin = self.common.config.listen_backlog as usize * self.listeners.len();
        for number in 0..self.listeners.len() {
            let (roomiest, room) = self.roomiest();
            let listener = &mut self.listeners[number];
            if listener.blocked {
                continue;
            }
            let fd = listener.socket.as_raw_fd();
            if let Some(ring) = listener.multi {
                let ring = &mut self.rings[ring];
                if ring.room() <= margin && !listener.multi_cancelled {
                    listener.multi_cancelled = true;
                    ring.cancel_accept_multi(number as u32, &mut self.common)?;
                }
                continue;
            }
            let ring = &mut self.rings[roomiest];
            if self.common.features.multishot_accept && room > margin {
                listener.multi = Some(roomiest);
                listener.multi_cancelled = false;
                ring.accept_multi(fd, number as u32, &mut self.common)?;
                continue;
            }
            // Each promises a slot, so most of the room stays for connects.
            let goal = (room + listener.singles).div_ceil(4).min(SINGLE_ACCEPTS_MAX);
            let wanted = goal.saturating_sub(listener.singles).min(room);
            listener.singles += wanted;
            for _ in 0..wanted {
                ring.accept_single(fd, number as u32, &mut self.common)?;
            }
        }
        let full = self.listeners.iter().any(|listener| listener.multi.is_none() && listener.singles == 0);
        if full && !self.full {
            self.common.stats.accept_refused_full += 1;
        }
        self.full = full;
        Ok(())
    }

    /// Handles one completion of an accept.
    pub(super) fn accepted(
        &mut self,
        ring: usize,
        completion: Completion,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> io::Result<()> {
        let number = completion.token.slot as usize;
        let Some(listener) = self.listeners.get_mut(number) else { return Ok(()) };
        let multi = completion.token.kind == Kind::AcceptMulti;
        if !multi {
            listener.singles -= 1;
            self.rings[ring].reserved -= 1;
            self.accepts_due = true;
        } else if !cqueue::more(completion.flags) {
            listener.multi = None;
            self.accepts_due = true;
        }
        if completion.result < 0 {
            self.accept_failed(number, multi, -completion.result);
            return Ok(());
        }
        listener.errors_in_row = 0;
        let file = if self.common.features.direct_descriptors {
            File::Fixed(completion.result as u32)
        } else {
            // SAFETY: the kernel made this descriptor for us with the completion, which is handled once.
            File::Ordinary(unsafe { OwnedFd::from_raw_fd(completion.result) })
        };
        let Some(conn) = self.rings[ring].adopt(file, &mut self.common)? else {
            self.common.stats.accept_dropped += 1;
            return Ok(());
        };
        self.common.stats.accepted += 1;
        if multi {
            let margin = self.common.config.listen_backlog as usize * self.listeners.len();
            self.accepts_due |= self.rings[ring].room() <= margin;
        }
        on_event(Event::Accepted { conn, listener: number });
        Ok(())
    }

    fn accept_failed(&mut self, number: usize, multi: bool, errno: i32) {
        let listener = &mut self.listeners[number];
        match errno {
            libc::ECANCELED | libc::EINTR | libc::EAGAIN => {}
            libc::ENFILE | libc::EMFILE => {
                self.common.stats.accept_dropped += 1;
                listener.blocked = true;
            }
            libc::EINVAL if multi => {
                tracing::warn!("the kernel refuses multishot accepts, using single ones");
                self.common.features.multishot_accept = false;
            }
            _ => {
                self.common.stats.accept_errors += 1;
                listener.errors_in_row += 1;
                if multi && listener.errors_in_row > 1 {
                    self.common.features.multishot_accept = false;
                }
                if listener.errors_in_row >= ACCEPT_ERRORS_MAX {
                    tracing::error!(errno, listener = number, "accepting keeps failing, pausing it");
                    listener.blocked = true;
                }
            }
        }
    }
}
