//! Receive buffers of one ring, lent to the kernel through a shared ring of free buffers.
//!
//! The kernel takes a buffer when bytes arrive and names it in the completion; it is ours until [`RecvBuffers::give_back`].

use std::{
    io,
    sync::atomic::{AtomicU16, Ordering},
};

use io_uring::{IoUring, types::BufRingEntry};

use super::{
    locked::{BUFFERS_MIN, advice, when_unlocked},
    memory::Pages,
};

/// The one buffer group of each ring.
pub(super) const GROUP: u16 = 0;

pub(super) struct RecvBuffers {
    entries: Pages,
    bytes: Pages,
    count: u16,
    buffer_bytes: u32,
    tail: u16,
}

impl RecvBuffers {
    /// Registers `count` buffers, or fewer when the kernel refuses for want of memory.
    pub fn register(ring: &IoUring, count: u16, buffer_bytes: u32) -> io::Result<Self> {
        let mut count = count;
        loop {
            let mut buffers = Self {
                entries: Pages::zeroed(usize::from(count) * size_of::<BufRingEntry>())?,
                bytes: Pages::zeroed(usize::from(count) * buffer_bytes as usize)?,
                count,
                buffer_bytes,
                tail: 0,
            };
            let entries = buffers.entries.as_ptr() as u64;
            let register = || {
                // SAFETY: the entries are page-aligned, hold `count` items, and outlive the registration, which the owning
                // ring ends before it drops them.
                unsafe { ring.submitter().register_buf_ring_with_flags(entries, count, GROUP, 0) }
            };
            match if count > BUFFERS_MIN { register() } else { when_unlocked(register) } {
                Ok(()) => {
                    for id in 0..count {
                        buffers.give_back(id);
                    }
                    return Ok(buffers);
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && count > BUFFERS_MIN => count /= 2,
                Err(error) => {
                    return Err(io::Error::new(
                        error.kind(),
                        format!("registering {count} receive buffers: {error} ({})", advice(&error)),
                    ));
                }
            }
        }
    }

    /// Never frees the memory, for when the kernel may still know it.
    pub fn leak(&mut self) {
        self.entries.leak();
        self.bytes.leak();
    }

    pub fn count(&self) -> u16 {
        self.count
    }

    /// The first `len` bytes of a buffer the kernel has filled.
    pub fn filled(&self, id: u16, len: usize) -> &[u8] {
        assert!(
            id < self.count && len <= self.buffer_bytes as usize,
            "completion names a buffer we never lent"
        );
        // SAFETY: in bounds by the assertion; the kernel writes to a buffer only between `give_back` and the completion
        // that names it, and `give_back` needs `&mut self`, which ends this borrow.
        unsafe {
            let start = self.bytes.as_ptr().add(usize::from(id) * self.buffer_bytes as usize);
            std::slice::from_raw_parts(start, len)
        }
    }

    /// Lends a buffer to the kernel again.
    pub fn give_back(&mut self, id: u16) {
        assert!(id < self.count, "completion names a buffer we never lent");
        let position = usize::from(self.tail & (self.count - 1));
        let entries = self.entries.as_ptr().cast::<BufRingEntry>();
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `position` is below `count`; the entry at the tail is ours until the tail moves past it. The tail lies
        // in the first entry at an aligned address, and the kernel only reads it.
        unsafe {
            let entry = &mut *entries.add(position);
            entry.set_addr(self.bytes.as_ptr().add(usize::from(id) * self.buffer_bytes as usize) as u64);
            entry.set_len(self.buffer_bytes);
            entry.set_bid(id);
            let tail = BufRingEntry::tail(entries).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}
