//! The allocator of our programs.
//!
//! A store whose records are replaced all the time frees segments between others that stay. The system's allocator gives memory
//! back only from the end of its heap, so a process keeps the most that it ever had. jemalloc gives back every page that
//! nothing lies on: some seconds after it was freed, by a thread of its own, so that what is freed and used again soon costs no
//! page fault. A program takes it by naming it its `#[global_allocator]`. How it is built is in `.cargo/config.toml`; the environment
//! variable `_RJEM_MALLOC_CONF` sets its options for one run, such as `thp:always` for huge pages.

pub use tikv_jemallocator::Jemalloc as Allocator;
