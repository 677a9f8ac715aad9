//! Faults that are planted on purpose, one at a time: the oracle has to notice each. They are only there in builds with the
//! feature `planted-faults`.
//!
//! A seed shows something about a fault only if it is clean without it.

use std::time::Duration;

use anyhow::Context;
use comfy_table::{Table, presets};
use slotcast_net::provenance;

use super::{
    campaign::{CampaignSpec, campaign},
    network::MS,
    oracle::Violation,
    plan::{Plan, Shape},
    shrink::shrink,
};

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

/// The fault of a name.
pub fn find(name: &str) -> anyhow::Result<&'static Planted> {
    let found = ALL.iter().find(|planted| planted.name == name);
    let found =
        found.with_context(|| format!("there is no planted fault {name:?}; `--planted list` names them"))?;
    anyhow::ensure!(
        cfg!(feature = "planted-faults"),
        "faults can only be planted in a build with `--features planted-faults`"
    );
    Ok(found)
}

/// Plants a fault in the roles that this thread drives from now on, as far as their shards are not told by [`of_engine`].
#[cfg(feature = "planted-faults")]
pub(super) fn plant_here(name: Option<&'static str>) {
    slotcast_net::faults::plant_here(name);
}

/// Plants nothing: that takes another build.
#[cfg(not(feature = "planted-faults"))]
pub(super) fn plant_here(_: Option<&'static str>) {}

/// The fault that every shard is to have.
#[cfg(feature = "planted-faults")]
pub(super) fn of_engine(name: &str) -> Option<slotcast_engine::faults::Fault> {
    slotcast_engine::faults::Fault::ALL.into_iter().find(|fault| fault.label() == name)
}

/// What is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Hunt {
    /// What there is of everything.
    pub shape: Shape,
    /// The first seed.
    pub first: u64,
    /// Seeds at most.
    pub seeds: u64,
    /// Threads.
    pub threads: usize,
    /// Time for finding a shorter history; zero: the first one will do.
    pub shrink: Duration,
}

/// A planted fault that the oracle has noticed.
pub struct Caught {
    /// The first seed in which it does, though the seed is clean without the fault.
    pub seed: u64,
    /// Seeds that were run with it.
    pub seeds: u64,
    /// Seeds that fail, with the fault or without.
    pub excused: Vec<u64>,
    /// What was said.
    pub violation: Violation,
    /// Things that happen to that seed from outside, and what is left of them in the shortest history found.
    pub lengths: (usize, usize),
    /// Runs that finding it took.
    pub runs: u64,
    /// The shortest history.
    pub plan: Plan,
}

impl Planted {
    /// Runs seeds with this fault until one fails that is clean without it.
    pub fn hunt(&'static self, hunt: &Hunt, progress: impl Fn(u64) + Sync) -> Option<Caught> {
        let spec = CampaignSpec {
            shape: hunt.shape,
            first: hunt.first,
            seeds: hunt.seeds,
            budget: None,
            seeds_min: hunt.seeds,
            threads: hunt.threads,
            keep_going: false,
            planted: Some(self.name),
        };
        let found = campaign(&spec, progress);
        let (seed, violation) = found.failed.first()?.clone();
        let plan = Plan::of(hunt.shape, seed).with_planted(Some(self.name));
        let all = plan.len();
        let mut caught = Caught {
            seed,
            seeds: found.seeds,
            excused: found.excused,
            violation,
            lengths: (all, all),
            runs: 1,
            plan,
        };
        if !hunt.shrink.is_zero()
            && let Some(shrunk) = shrink(&caught.plan, hunt.shrink, |_| {})
        {
            caught.lengths.1 = shrunk.plan.len();
            (caught.plan, caught.violation, caught.runs) = (shrunk.plan, shrunk.violation, shrunk.runs);
        }
        Some(caught)
    }
}

/// The figures of faults that were hunted, for a program.
pub fn json(hunt: &Hunt, found: &[(&Planted, Option<Caught>)]) -> serde_json::Value {
    let faults = found.iter().map(|(planted, caught)| {
        let caught = caught.as_ref().map(|caught| {
            serde_json::json!({
                "seed": caught.seed,
                "seeds_run": caught.seeds,
                "seeds_that_fail_without_it": caught.excused,
                "at_ms": caught.violation.at / MS,
                "violation": caught.violation.text,
                "happenings": caught.lengths.0,
                "shortest_history": {
                    "faults": caught.plan.faults.len(),
                    "clients": caught.plan.clients.len(),
                    "operations": caught.plan.operations.len(),
                    "runs": caught.runs,
                },
            })
        });
        serde_json::json!({ "name": planted.name, "what": planted.what, "caught": caught })
    });
    provenance::stamped(serde_json::json!({
        "shape": format!("{:?}", hunt.shape).to_lowercase(),
        "first_seed": hunt.first,
        "seeds_at_most": hunt.seeds,
        "faults": faults.collect::<Vec<_>>(),
    }))
}

/// The same for people, as Markdown.
pub fn table(found: &[(&Planted, Option<Caught>)]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "planted fault",
        "what goes wrong",
        "seed",
        "what the oracle says",
        "shortest history",
    ]);
    for (planted, caught) in found {
        let (seed, says, left) =
            caught.as_ref().map_or(("-".into(), "nothing".into(), "-".into()), |caught| {
                let (plan, all) = (&caught.plan, caught.lengths.0);
                let left = format!(
                    "{} faults, {} clients, {} operations of {all} in all",
                    plan.faults.len(),
                    plan.clients.len(),
                    plan.operations.len()
                );
                (caught.seed.to_string(), caught.violation.text.clone(), left)
            });
        table.add_row([planted.name.into(), planted.what.into(), seed, says, left]);
    }
    table
}

/// The page that goes beside the figures.
pub fn page(hunt: &Hunt, found: &[(&Planted, Option<Caught>)]) -> String {
    let shape = match hunt.shape {
        Shape::Cluster => "",
        Shape::Single => " --shape single",
    };
    format!(
        "# Does the simulator notice what is wrong?\n\n\
        Commit {}, `{}`.\n\n\
        Each of {} faults is planted in the roles themselves, in every run of every process. The seed is the first, from {} on, \
        in which the oracle says that a promise is broken, and which is clean without the fault. Then faults, \
        clients and operations are left out as long as the rest says the same (and is clean without the fault).\n\n{}\n\n\
        ```sh\ncargo run --release -p bench --features planted-faults -- simulate{shape} --planted all --first {} --seeds {} \
        --json planted.json --table README.md\n\
        # one of them, with its history:\n\
        cargo run --release -p bench --features planted-faults -- simulate{shape} --planted NAME --first SEED --seeds 1\n```\n",
        provenance::commit(),
        provenance::command(),
        found.len(),
        hunt.first,
        table(found),
        hunt.first,
        hunt.seeds,
    )
}
