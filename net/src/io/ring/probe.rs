//! Making a kernel ring: tries the best setup first and steps down as the kernel refuses.

use std::{fmt, io};

use io_uring::{IoUring, Probe, opcode};
use rustix::process::{Resource, getrlimit};

use super::{
    RingConfig,
    locked::{advice, when_unlocked},
};

pub(super) const ENTRIES_MIN: u32 = 64;

/// What the kernel offered and what is used instead of the rest.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Features {
    /// Kernel rings in use.
    pub rings: usize,
    /// Connections that one kernel ring holds.
    pub sockets_per_ring: usize,
    /// Entries after possible halving.
    pub sq_entries: u32,
    /// Completion entries, likewise.
    pub cq_entries: u32,
    /// Receive buffers per kernel ring, likewise.
    pub recv_buffers: u16,
    /// The setup that the kernel took.
    pub setup: Setup,
    /// Successful sends post no completion. Without it every send does.
    pub skip_success: bool,
    /// A wait can gather completions for a moment.
    pub gathering: bool,
    /// Sockets use no descriptor of the process.
    pub direct_descriptors: bool,
    /// Cleared at run time when the kernel refuses the operation.
    pub multishot_accept: bool,
    /// Likewise.
    pub multishot_recv: bool,
    /// A direct descriptor can be told to close with a reset.
    pub reset_direct: bool,
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or = |have: bool, yes: &'static str, no: &'static str| if have { yes } else { no };
        write!(
            f,
            "rings={} sockets_per_ring={} sq={} cq={} recv_buffers={} setup={:?} sends={} files={} accept={} recv={} reset={} waits={}",
            self.rings,
            self.sockets_per_ring,
            self.sq_entries,
            self.cq_entries,
            self.recv_buffers,
            self.setup,
            or(self.skip_success, "quiet", "completing"),
            or(self.direct_descriptors, "direct", "ordinary"),
            or(self.multishot_accept, "multishot", "single"),
            or(self.multishot_recv, "multishot", "single"),
            or(self.reset_direct || !self.direct_descriptors, "linger", "plain-close"),
            or(self.gathering, "gathering", "single"),
        )
    }
}

/// Setup flags of the rings, best first.
#[derive(Copy, Clone, Default, Eq, PartialEq, Ord, PartialOrd, Debug)]
pub enum Setup {
    /// Completions are worked off only when the owner asks, and the submission queue has no index array.
    #[default]
    DeferNoArray,
    /// Completions are worked off only when the owner asks.
    Defer,
    /// Completions are worked off when the owner enters the kernel anyway.
    Cooperative,
    Plain,
}

impl Setup {
    fn next(self) -> Option<Self> {
        match self {
            Self::DeferNoArray => Some(Self::Defer),
            Self::Defer => Some(Self::Cooperative),
            Self::Cooperative => Some(Self::Plain),
            Self::Plain => None,
        }
    }

    fn build(self, sq_entries: u32, cq_entries: u32) -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        builder.dontfork().setup_cqsize(cq_entries);
        if self <= Self::Cooperative {
            builder.setup_submit_all().setup_taskrun_flag();
        }
        if self <= Self::Defer {
            builder.setup_single_issuer().setup_defer_taskrun();
        }
        match self {
            Self::DeferNoArray => builder.setup_no_sqarray().build(sq_entries),
            Self::Cooperative => builder.setup_coop_taskrun().build(sq_entries),
            Self::Defer | Self::Plain => builder.build(sq_entries),
        }
    }
}

/// Makes a ring no better than `features` says so far, and lowers `features` to what came out.
pub(super) fn make_ring(features: &mut Features) -> io::Result<IoUring> {
    loop {
        let (sq, cq) = (features.sq_entries, features.cq_entries);
        let is_smallest = sq <= ENTRIES_MIN;
        let build = || features.setup.build(sq, cq);
        match if is_smallest { when_unlocked(build) } else { build() } {
            Ok(ring) => return Ok(ring),
            Err(error) => match (error.raw_os_error(), features.setup.next()) {
                (Some(libc::EINVAL), Some(next)) => features.setup = next,
                (Some(libc::ENOMEM), _) if sq > ENTRIES_MIN => {
                    features.sq_entries = sq / 2;
                    features.cq_entries = (cq / 2).max(sq / 2);
                }
                _ => {
                    let advice = advice(&error);
                    return Err(io::Error::new(
                        error.kind(),
                        format!("making a ring of {sq}/{cq} entries: {error} ({advice})"),
                    ));
                }
            },
        }
    }
}

/// Fills in what one ring can tell about the kernel's operations.
pub(super) fn probe_operations(
    ring: &IoUring,
    config: &RingConfig,
    features: &mut Features,
) -> io::Result<()> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        ("accept", opcode::Accept::CODE),
        ("connect", opcode::Connect::CODE),
        ("recv", opcode::Recv::CODE),
        ("send", opcode::Send::CODE),
        ("poll", opcode::PollAdd::CODE),
        ("cancel", opcode::AsyncCancel::CODE),
        ("close", opcode::Close::CODE),
    ];
    for (name, code) in needed {
        if !probe.is_supported(code) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("the kernel's io_uring lacks {name}"),
            ));
        }
    }
    features.skip_success = ring.params().is_feature_skip_cqe_on_success();
    features.gathering = ring.params().is_feature_min_timeout();
    features.direct_descriptors = config.direct_descriptors;
    features.multishot_accept = config.multishot_accept;
    features.multishot_recv = config.multishot_recv;
    features.reset_direct = probe.is_supported(opcode::SetSockOpt::CODE);
    Ok(())
}

/// Most sockets one ring's file table may hold: the kernel bounds each table by the process's file limit.
pub(super) fn table_limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}
