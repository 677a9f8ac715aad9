//! A slot with very many publishers moves to an empty data node and back, while clients go on with what they do.

use anyhow::{Context, Result, bail};

use crate::{
    chaos::{
        ChaosSpec, Moved, Outcome, Round,
        cluster::{Cluster, ClusterPlan, Member, node_id},
        world::{self, World},
    },
    clock::{MILLISECOND, SECOND},
    progress::Progress,
};

/// Instances in the slot at the begin; clients remove some of them before the last move.
const PUBLISHERS: usize = 102_000;
/// Data ids that each client reads.
const SUBSCRIPTIONS: usize = 2;
/// Longest time for anything.
const WITHIN: u64 = 60 * SECOND;
const ROUNDS_DEFAULT: u32 = 3;

/// One data node has the one slot, another has nothing; each round makes them change places.
pub(super) fn run(spec: &ChaosSpec, progress: &Progress) -> Result<Outcome> {
    let mut settings = vec!["slot_count=1".into(), "meta.replicas=1".into()];
    settings.extend(world::settings(spec));
    let plan = ClusterPlan {
        shape: spec.shape,
        spare: 1,
        storage: spec.storage,
        settings,
        limit: world::limit(spec),
    };
    let mut world = World::new(Cluster::new(&plan)?, spec, SUBSCRIPTIONS)?;
    progress.phase("starting", 1);
    world.start_all()?;
    progress.phase("registering", 1);
    world.populate(PUBLISHERS)?;
    world.settle().context("before the first move")?;
    let mut outcome = Outcome::default();
    let spare = Member::Data(spec.shape.data);
    world.start(spare)?;
    let deadline = world.now() + WITHIN;
    while !knows(&world.cluster, spec.shape.data) {
        if world.now() > deadline {
            bail!("the control plane has not heard of the {spare}");
        }
        world.steps(true)?;
    }
    let rounds = spec.rounds.unwrap_or(ROUNDS_DEFAULT);
    progress.phase("moving", u64::from(rounds));
    for number in 0..rounds {
        if spec.duration.is_some_and(|most| u128::from(world.now()) >= most.as_nanos()) {
            break;
        }
        let from = world.cluster.busiest().unwrap_or(0);
        let to = if from == 0 { spec.shape.data } else { 0 };
        world.load_for(SECOND)?;
        let moved = one(&mut world, from, to).with_context(|| format!("move {number}"))?;
        progress.at(u64::from(number) + 1, || format!("{} ms", moved.moved_ms));
        let fault = format!("{} publishers moved", moved.publishers);
        let settled_at = world.now();
        world.settle()?;
        outcome.rounds.push(Round {
            fault,
            ready_ms: moved.moved_ms,
            right_ms: Some(moved.right_ms),
            settled_ms: (world.now() - settled_at) / MILLISECOND,
        });
        outcome.moves.push(moved);
        world.collect(&format!("move {number}"), &mut outcome, progress);
        world.cluster.drain(from, false)?;
    }
    world.close(&mut outcome);
    Ok(outcome)
}

/// Whether the control plane counts a data node as alive.
fn knows(cluster: &Cluster, number: usize) -> bool {
    let id = node_id(number);
    let view = cluster.view();
    view.is_some_and(|view| view.status.nodes.iter().any(|node| node.id == id && node.lease_ms.is_some()))
}

/// The order, the wait until the other node leads alone, and the wait until everybody has everything.
fn one(world: &mut World, from: usize, to: usize) -> Result<Moved> {
    let acknowledged = world.notes.acknowledged;
    world.notes.longest_write = 0;
    world.say(format!("{} is to be emptied", node_id(from)));
    let begun = world.now();
    world.cluster.drain(from, true)?;
    let deadline = begun + WITHIN;
    while !has_moved(&world.cluster, from, to) {
        if world.now() > deadline {
            bail!("the slot has not moved: {:?}", world.cluster.view());
        }
        world.loaded_step()?;
    }
    let moved_ms = (world.now() - begun) / MILLISECOND;
    world.say(format!("{} has moved", node_id(from)));
    // Some more is written to the new leader, and then everybody has to have everything.
    world.load_for(100 * MILLISECOND)?;
    while let Some((_, (_, what))) = world.open() {
        if world.now() > deadline {
            world.say(format!("not right after the move: {what}"));
            break;
        }
        world.quiet_step()?;
    }
    let right_ms = (world.now() - begun) / MILLISECOND;
    let metrics = world.cluster.metrics(Member::Data(to)).context("the new leader does not answer")?;
    Ok(Moved {
        publishers: metrics.sum("slotcast_data_publishers", "").unwrap_or(0.0) as u64,
        moved_ms,
        right_ms,
        longest_write_ms: world.notes.longest_write / MILLISECOND,
        acknowledged: world.notes.acknowledged - acknowledged,
    })
}

fn has_moved(cluster: &Cluster, from: usize, to: usize) -> bool {
    let Some(view) = cluster.view() else { return false };
    let is = |number: usize, leads: usize| {
        let id = node_id(number);
        view.status.nodes.iter().any(|node| node.id == id && node.leads == leads && node.holds == leads)
    };
    is(from, 0) && is(to, 1)
}
