//! The loop that drives a role on a glommio executor: events, a turn, a flush, and sleep when there is nothing to do.
//!
//! The pump runs in a latency queue: in the default queue it would starve timers and files of the same core. When a turn
//! found nothing it sleeps on the ring's event descriptor, read through a glommio file; a timer or another thread ends the
//! sleep through the ring's waker. The read is never dropped half-way.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, FromRawFd, IntoRawFd},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, anyhow};
use crossbeam::channel;
use glommio::{
    ExecutorJoinHandle, Latency, LocalExecutorBuilder, Placement, Shares, io::BufferedFile,
    timer::TimerActionOnce,
};

use crate::io::{
    clock,
    ring::{RingConfig, RingSockets, Sockets, Waker},
    role::Role,
};

/// Memory that glommio registers for file buffers, per ring of its own. Its default would not fit the 8 MiB of locked
/// memory that an ordinary user has.
const IO_MEMORY_BYTES: usize = 512 << 10;

/// What a thread that pumps a role needs to know.
pub struct PumpConfig {
    /// Name of the thread, for people.
    pub name: String,
    /// The CPU to stay on, if any.
    pub cpu: Option<usize>,
    /// Sizes of the ring.
    pub ring: RingConfig,
    /// The listener to accept from, if any.
    pub listener: Option<TcpListener>,
}

/// A running pump.
pub struct Pump {
    thread: ExecutorJoinHandle<anyhow::Result<()>>,
    stop: Arc<AtomicBool>,
    waker: Waker,
}

impl Pump {
    /// Starts a thread that drives the role which `make` makes there.
    pub fn start<R: Role + 'static>(
        config: PumpConfig,
        make: impl FnOnce() -> R + Send + 'static,
    ) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (started, starting) = channel::bounded(1);
        let placement = config.cpu.map_or(Placement::Unbound, Placement::Fixed);
        let (name, stopped) = (config.name.clone(), stop.clone());
        let thread = LocalExecutorBuilder::new(placement)
            .io_memory(IO_MEMORY_BYTES)
            .name(&config.name)
            .spawn(move || async move { run(config, make, started, stopped).await })
            .map_err(|error| anyhow!("starting thread {name}: {error}"))?;
        match starting.recv() {
            Ok(waker) => Ok(Self { thread, stop, waker }),
            Err(_) => match thread.join() {
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) | Err(_) => Err(anyhow!("thread {name} ended before it ran")),
            },
        }
    }

    /// Whether the role has ended by itself.
    pub fn is_finished(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Ends the loop after its turn.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        let _ = self.waker.wake();
    }

    /// Waits for the thread.
    pub fn join(self) -> anyhow::Result<()> {
        self.thread.join().map_err(|error| anyhow!("a pump thread failed: {error}"))?
    }
}

/// Binds the one port that the listeners of several cores share. A second process on it fails.
pub fn listen(addr: SocketAddr, count: usize, ring: &RingConfig) -> anyhow::Result<Vec<TcpListener>> {
    crate::io::ring::listen_group(addr, count, ring)
        .with_context(|| format!("cannot listen on {addr}: is another process running there?"))
}

async fn run<R: Role + 'static>(
    config: PumpConfig,
    make: impl FnOnce() -> R,
    started: channel::Sender<Waker>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let latency = Latency::Matters(Duration::from_millis(1));
    let queue = glommio::executor().create_task_queue(Shares::Static(1000), latency, "pump");
    let mut role = make();
    let task = glommio::spawn_local_into(
        async move {
            let mut sockets =
                RingSockets::new(config.ring).context("creating the io_uring of the sockets")?;
            if let Some(listener) = config.listener {
                sockets.listen_on(listener)?;
            }
            let waker = sockets.waker()?;
            started.send(waker.clone()).map_err(|_| anyhow!("nobody waits for this thread"))?;
            let result = pump(&mut sockets, &mut role, &waker, &stop).await;
            stop.store(true, Ordering::Release);
            result.context("driving the sockets")
        },
        queue,
    );
    task.map_err(|error| anyhow!("task queue: {error}"))?.await
}

async fn pump(
    sockets: &mut RingSockets,
    role: &mut impl Role,
    waker: &Waker,
    stop: &AtomicBool,
) -> io::Result<()> {
    let signal = sockets.event_fd()?.as_fd().try_clone_to_owned()?;
    // SAFETY: the duplicate is owned by nobody else from here on.
    let signal = Rc::new(unsafe { BufferedFile::from_raw_fd(signal.into_raw_fd()) });
    loop {
        let now = clock::now();
        let handled = sockets.poll(&mut |event| role.handle(event, now))?;
        let more = role.turn(clock::now(), sockets);
        sockets.flush()?;
        if role.is_finished() || stop.load(Ordering::Acquire) {
            return Ok(());
        }
        let idle_until = role.wake_at();
        let idle = Duration::from_nanos(idle_until.since(clock::now()));
        if more || handled > 0 || idle.is_zero() || !sockets.prepare_sleep()? {
            glommio::yield_if_needed().await;
            continue;
        }
        let alarm = waker.clone();
        let timer = TimerActionOnce::do_in(idle, async move {
            let _ = alarm.wake();
        });
        let woken = signal.read_at(0, 8).await;
        timer.destroy();
        woken.map_err(|error| io::Error::other(error.to_string()))?;
    }
}
