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
pub const ALL: [Planted; 1] = [Planted {
    name: "older-table",
    what: "a follower of the control plane takes an older slot table than it has",
}];

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
        Ok(())
    }
    #[cfg(not(feature = "planted-faults"))]
    anyhow::bail!("faults can only be planted in a build with `--features planted-faults`")
}
