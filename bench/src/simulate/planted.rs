//! Faults that are planted on purpose, one at a time: the oracle has to notice each. They are only there in builds with the
//! feature `planted-faults`.

/// A fault that can be planted.
pub struct Planted {
    /// What it is called.
    pub name: &'static str,
    /// What goes wrong.
    pub what: &'static str,
}

/// All of them.
pub const ALL: [Planted; 10] = [
    Planted { name: "epoch-reused", what: "a leader that starts again goes on in the epoch that it was in" },
    Planted { name: "tombstone-early", what: "tombstones go before the sessions have confirmed them" },
    Planted { name: "accept-early", what: "a new leader answers readers before its sessions have confirmed" },
    Planted {
        name: "no-epoch-check",
        what: "a session takes what a data node sends of a slot that it does not lead",
    },
    Planted {
        name: "lease-over-pause",
        what: "a pause of a data node counts against the leases of its sessions",
    },
    Planted { name: "removal-by-other", what: "a removal counts whoever sends it" },
    Planted {
        name: "diff-across-fork",
        what: "a reader gets a diff from a revision that the leader never had",
    },
    Planted { name: "snapshot-stamped-old", what: "a snapshot says the revision of the last change" },
    Planted {
        name: "ack-before-apply",
        what: "a follower says that it has a batch before it has applied it",
    },
    Planted { name: "older-table", what: "a follower of the control plane takes an older slot table" },
];

/// Plants a fault in this process, for good.
pub fn plant(name: Option<&str>) -> anyhow::Result<()> {
    let Some(name) = name else { return Ok(()) };
    anyhow::ensure!(
        ALL.iter().any(|planted| planted.name == name),
        "there is no planted fault {name:?}; `--planted list` names them"
    );
    #[cfg(feature = "planted-faults")]
    {
        slotcast_net::faults::choose(name);
        let fault = slotcast_engine::faults::Fault::ALL.into_iter().find(|fault| fault.label() == name);
        OF_ENGINE.get_or_init(|| fault);
        Ok(())
    }
    #[cfg(not(feature = "planted-faults"))]
    anyhow::bail!("faults can only be planted in a build with `--features planted-faults`")
}

#[cfg(feature = "planted-faults")]
static OF_ENGINE: std::sync::OnceLock<Option<slotcast_engine::faults::Fault>> = std::sync::OnceLock::new();

/// The fault that every shard is to have.
#[cfg(feature = "planted-faults")]
pub(super) fn of_engine() -> Option<slotcast_engine::faults::Fault> {
    OF_ENGINE.get().copied().flatten()
}
