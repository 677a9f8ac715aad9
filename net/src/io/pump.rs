//! The loop that drives a role on a glommio executor: events, a turn, a flush, and sleep when there is nothing to do.
//!
//! The loop sleeps in the ring itself and never awaits. glommio 0.9.0 can park although a task is runnable: when its
//! preemption timer fires after it polled its rings and before it looks at its queues (the thread lost its CPU just then),
//! it takes "nothing was run" for "nothing to run", and if no other event comes that sleep has no end. A task that waits
//! for the ring's event descriptor, or only yields, was seen to hang that way as soon as the cores were shared with other
//! work. So the executor gives the thread, its placement and its memory, and while a role runs it runs nothing else.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, anyhow};
use crossbeam::channel;
use glommio::{ExecutorJoinHandle, Placement};

use crate::{
    io::{
        clock, executor,
        ring::{RingConfig, RingSockets, Sockets, Waker},
        role::Role,
    },
    output::why_not_listening,
};

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
        // No files are read or written on it.
        let thread =
            executor::spawn(&name, placement, 0, async move || run(config, make, &started, &stopped))?;
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

    /// What ends the loop's sleep.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
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
        .map_err(|error| anyhow!("{} ({error})", why_not_listening(addr, error.kind())))
}

fn run<R: Role + 'static>(
    config: PumpConfig,
    make: impl FnOnce() -> R,
    started: &channel::Sender<Waker>,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let mut sockets = RingSockets::new(config.ring).context("creating the io_uring of the sockets")?;
    if let Some(listener) = config.listener {
        sockets.listen_on(listener)?;
    }
    let waker = sockets.waker()?;
    started.send(waker.clone()).map_err(|_| anyhow!("nobody waits for this thread"))?;
    let _ended = Ended(stop);
    let mut role = make();
    role.started(waker);
    let result = pump(&mut sockets, &mut role, stop).context("driving the sockets");
    role.finish();
    result
}

/// Tells that the loop has ended, also when it ended in a panic.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn pump(sockets: &mut RingSockets, role: &mut impl Role, stop: &AtomicBool) -> io::Result<()> {
    loop {
        let now = clock::now();
        let handled = sockets.poll(&mut |event| role.handle(event, now))?;
        let more = role.turn(clock::now(), sockets);
        sockets.flush()?;
        if role.is_finished() || stop.load(Ordering::Acquire) {
            return Ok(());
        }
        let idle = Duration::from_nanos(role.wake_at().since(clock::now()));
        if !more && handled == 0 && !idle.is_zero() {
            sockets.wait(idle)?;
        }
    }
}
