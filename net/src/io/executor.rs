//! Starting a thread with a glommio executor, also for users who may lock little memory.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Instant,
};

use anyhow::anyhow;
use crossbeam::channel::bounded;
use glommio::{ExecutorJoinHandle, GlommioError, LocalExecutorBuilder, Placement};

use crate::io::ring::locked::{LOCKED_PAUSE, LOCKED_WAIT, advice, budget, try_ring};

/// The least that glommio takes for file buffers. It registers them with each of its three rings, where they count as locked.
const FILE_MEMORY_MIN: usize = 64 << 10;

/// Starts the thread `name` and runs there what `make` makes. `file_memory` bytes are kept for file buffers; where the kernel
/// counts locked memory, the least. Where it refuses a ring because too much is locked, it is asked again for some seconds: what
/// closed rings had locked is given back late.
///
/// # Errors
/// The thread or its rings could not be made.
pub fn spawn<T, F>(
    name: &str,
    placement: Placement,
    file_memory: usize,
    make: F,
) -> anyhow::Result<ExecutorJoinHandle<T>>
where
    T: Send + 'static,
    F: AsyncFnOnce() -> T + Send + 'static,
{
    let file_memory = if budget().is_some() { FILE_MEMORY_MIN } else { file_memory.max(FILE_MEMORY_MIN) };
    // glommio panics where there is none.
    try_ring().map_err(|error| anyhow!("starting thread {name}: {error} ({})", advice(&error)))?;
    let make = Arc::new(Mutex::new(Some(make)));
    let end = Instant::now() + LOCKED_WAIT;
    loop {
        let (began, beginning) = bounded(1);
        let make = make.clone();
        let thread = LocalExecutorBuilder::new(placement.clone())
            .io_memory(file_memory)
            .name(name)
            .spawn(move || async move {
                let make = make.lock().unwrap_or_else(PoisonError::into_inner).take();
                let _ = began.send(());
                match make {
                    Some(make) => make().await,
                    None => unreachable!("it is taken once: nobody starts a thread again that began"),
                }
            })
            .map_err(|error| anyhow!("starting thread {name}: {error}"))?;
        if beginning.recv().is_ok() {
            return Ok(thread);
        }
        match thread.join() {
            Err(GlommioError::IoError(error)) => {
                if error.raw_os_error() != Some(libc::ENOMEM) || Instant::now() >= end {
                    return Err(anyhow!("starting thread {name}: {error} ({})", advice(&error)));
                }
                thread::sleep(LOCKED_PAUSE);
            }
            Err(error) => return Err(anyhow!("starting thread {name}: {error}")),
            Ok(_) => return Err(anyhow!("thread {name} ended before it ran")),
        }
    }
}
