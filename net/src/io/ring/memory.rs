//! Page-aligned zeroed memory the kernel may write to.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    io,
    ptr::NonNull,
};

const PAGE_BYTES: usize = 4096;

pub(super) struct Pages {
    start: NonNull<u8>,
    layout: Layout,
}

impl Pages {
    pub fn zeroed(bytes: usize) -> io::Result<Self> {
        let layout = Layout::from_size_align(bytes.max(PAGE_BYTES), PAGE_BYTES).map_err(io::Error::other)?;
        // SAFETY: the layout has a size above zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, layout })
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// Gives the memory up without freeing it.
    pub fn leak(&mut self) {
        self.layout = Layout::new::<()>();
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.layout.size() > 0 {
            // SAFETY: `start` came from `alloc_zeroed` with this layout and is freed only here.
            unsafe { dealloc(self.start.as_ptr(), self.layout) }
        }
    }
}
