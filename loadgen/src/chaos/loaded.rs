//! Faults under the load of `run`: thousands of clients, planned changes, delays of every (change, subscriber) pair, and that
//! command's own oracle.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{
    chaos::{
        ChaosSpec, Scenario,
        cluster::{Cluster, ClusterPlan, Member, Shape},
        world,
    },
    clock::{Clock, MILLISECOND, Monotonic, SECOND},
    disturbance::Disturbance,
    progress::Progress,
    report::{json as report_json, table as report_table, verdict::Verdict},
    run::{self, RunSpec},
    workload::Workload,
};

/// Longest wait for processes and slots before and after the faults.
const READY_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The first fault comes this long after the window opens.
const FIRST_AT: u64 = 3 * SECOND;
/// For how long whoever fails is away.
const AWAY: u64 = 4 * SECOND;
const STOPPED: u64 = 3 * SECOND;
/// From when one process is back until the next ends: leaders have gone back to it by then, or clients have come.
const REST: u64 = 2 * SECOND;

/// Something to be done, one after the other.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Nothing, until this long after the window opened.
    Until(u64),
    Kill(Member),
    Stop(Member),
    Continue(Member),
    /// Ask it to end.
    End(Member),
    /// Wait until it has.
    Ended(Member),
    Start(Member),
    Ready(Member),
    /// Wait until every slot has its leader and replicas.
    Whole,
    /// Wait until a data node leads half of an even share of the slots or more.
    Carries(usize),
    /// Have a data node emptied.
    Drain(usize),
    /// Wait until it holds nothing.
    Empty(usize),
    /// Wait until what that leads to has come to rest.
    Rest,
}

/// What came of it.
pub struct Outcome {
    /// What `run` says.
    pub run: run::Outcome,
    /// Whether that is right.
    pub verdict: Verdict,
    /// What was done: milliseconds after the window opened, and what.
    pub done: Vec<(u64, String)>,
    /// The longest delay of all pairs: from a change to the last subscriber that has it, whatever failed meanwhile, in
    /// milliseconds.
    pub right_ms: f64,
    /// Promotions of followers that the data nodes count, and their mean and longest-bucket time from the table to Accept, where
    /// they tell it.
    pub promotions: Option<Promotions>,
}

/// How long followers took to lead.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Promotions {
    /// Slots promoted while the load ran.
    pub count: u64,
    /// Mean milliseconds from the decision to Accept.
    pub mean_ms: f64,
    /// The part of them, in percent, that took at most 50 ms.
    pub within_50_ms_percent: f64,
}

/// Starts a cluster, runs the load, and makes the scenario's faults in it.
pub fn run(spec: &ChaosSpec, load: &RunSpec, workload: &Workload, progress: &Progress) -> Result<Outcome> {
    let plan = ClusterPlan {
        shape: spec.shape,
        spare: usize::from(spec.scenario == Scenario::Grow),
        storage: spec.storage,
        settings: settings(spec, workload),
        limit: world::limit(spec),
    };
    let mut cluster = Cluster::new(&plan)?;
    progress.phase("starting", 1);
    for member in cluster.members() {
        if !cluster.start(member)? {
            bail!("a port of the {member} is taken");
        }
    }
    until(&mut cluster, "ready", |cluster| {
        cluster.members().into_iter().try_fold(true, |all, member| Ok(all && cluster.is_ready(member)?))
    })?;
    until(&mut cluster, "whole", |cluster| Ok(cluster.is_whole()))?;
    let leader = cluster.busiest().unwrap_or(0);
    let mut steps = plan_steps(spec.scenario, spec.shape, leader)?;
    let mut before = Promotions::read(&cluster);
    let (mut done, mut noted) = (Vec::new(), None);
    let disturbance = Disturbance { roams: spec.scenario == Scenario::Rolling, ..load.disturbance };
    let load = RunSpec { targets: cluster.clients.clone(), disturbance, ..load.clone() };
    let outcome = run::run_beside(&load, workload, progress, &mut |since| {
        while let Some(step) = steps.front().copied() {
            if !take(step, since, &mut cluster)? {
                break;
            }
            steps.pop_front();
            if let Step::Kill(member) | Step::End(member) = step {
                // Its next run counts from 0.
                before.remove(&member.to_string());
            }
            if matches!(step, Step::Rest) {
                steps.push_front(Step::Until(since + REST));
                continue;
            }
            let said = format!("{step:?}");
            if !matches!(step, Step::Until(_)) && noted.as_ref() != Some(&said) {
                progress.say(&format!("{:>6} ms  {said}", since / MILLISECOND));
                done.push((since / MILLISECOND, said.clone()));
                noted = Some(said);
            }
        }
        Ok(())
    })?;
    if let Some(step) = steps.front() {
        bail!("the run ended before everything was done: {step:?} was due; take a longer --duration");
    }
    let promotions = Promotions::between(before, Promotions::read(&cluster));
    let right_ms = outcome.measured.latency.max() as f64 / MILLISECOND as f64;
    let verdict = Verdict::of(&outcome);
    Ok(Outcome { run: outcome, verdict, done, right_ms, promotions })
}

/// Each session has to have room for everybody, as one may be the only one.
fn settings(spec: &ChaosSpec, workload: &Workload) -> Vec<String> {
    let room = workload.clients() + workload.clients() / 10 + 1000;
    let mut settings = vec![format!("session.clients_max={room}")];
    settings.extend(spec.settings.iter().cloned());
    settings
}

fn plan_steps(scenario: Scenario, shape: Shape, leader: usize) -> Result<VecDeque<Step>> {
    let leader = Member::Data(leader);
    let first = Step::Until(FIRST_AT);
    Ok(match scenario {
        Scenario::KillLeader | Scenario::KillRestart => {
            let back = Step::Until(FIRST_AT + AWAY);
            [first, Step::Kill(leader), back, Step::Start(leader), Step::Ready(leader), Step::Whole].into()
        }
        Scenario::Pause => {
            let back = Step::Until(FIRST_AT + STOPPED);
            [first, Step::Stop(leader), back, Step::Continue(leader), Step::Ready(leader), Step::Whole].into()
        }
        Scenario::Rolling => {
            let data = (0..shape.data).map(Member::Data);
            let all = data.chain((0..shape.sessions).map(Member::Session));
            let turn = |it| {
                [Step::End(it), Step::Ended(it), Step::Start(it), Step::Ready(it), Step::Whole, Step::Rest]
            };
            std::iter::once(first).chain(all.flat_map(turn)).collect()
        }
        Scenario::Grow => {
            // The first of the old ones goes, so the new one has to stand in for it.
            let (added, emptied) = (shape.data, 0);
            let (new, old) = (Member::Data(added), Member::Data(emptied));
            let grows =
                [first, Step::Start(new), Step::Ready(new), Step::Carries(added), Step::Whole, Step::Rest];
            let shrinks = [Step::Drain(emptied), Step::Empty(emptied), Step::End(old), Step::Ended(old)];
            grows.into_iter().chain(shrinks).chain([Step::Whole, Step::Rest]).collect()
        }
        Scenario::Random | Scenario::MoveSlot => {
            bail!("a preset's load goes with kill-leader, kill-restart, pause, rolling and grow")
        }
    })
}

/// Does a step, or looks whether what it waits for is so. Returns whether the next is due.
fn take(step: Step, since: u64, cluster: &mut Cluster) -> Result<bool> {
    Ok(match step {
        Step::Until(at) => since >= at,
        Step::Rest => true,
        Step::Kill(member) => {
            cluster.kill(member);
            true
        }
        Step::Stop(member) => cluster.pause(member, true).map(|()| true)?,
        Step::Continue(member) => cluster.pause(member, false).map(|()| true)?,
        Step::End(member) => cluster.terminate(member).map(|()| true)?,
        Step::Ended(member) => cluster.has_ended(member)?,
        Step::Start(member) => cluster.start(member)?,
        Step::Ready(member) => cluster.is_ready(member)?,
        Step::Whole => cluster.is_whole(),
        Step::Carries(number) => cluster.carries(number),
        Step::Drain(number) => cluster.drain(number, true).map(|()| true)?,
        Step::Empty(number) => cluster.is_empty(number),
    })
}

fn until(
    cluster: &mut Cluster,
    what: &str,
    mut done: impl FnMut(&mut Cluster) -> Result<bool>,
) -> Result<()> {
    let deadline = Monotonic.now() + READY_WITHIN.as_nanos() as u64;
    while !done(cluster)? {
        if Monotonic.now() > deadline {
            let said: Vec<String> = cluster
                .members()
                .into_iter()
                .map(|member| format!("{member}: {}", cluster.readiness(member)))
                .collect();
            bail!("not {what} after {READY_WITHIN:?}: {}", said.join("; "));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Sum and counts of a histogram.
#[derive(Clone, Copy, Default)]
struct Counted {
    count: f64,
    sum: f64,
    within: f64,
}

impl Promotions {
    /// The name of the data nodes' histogram of promotions.
    const METRIC: &str = "slotcast_data_promotion_seconds";

    /// The histogram of each data node that answers, by name.
    fn read(cluster: &Cluster) -> BTreeMap<String, Counted> {
        let data = cluster.members().into_iter().filter(|member| matches!(member, Member::Data(_)));
        let counted = data.filter_map(|member| {
            let metrics = cluster.metrics(member)?;
            let sum = |suffix: &str, label: &str| {
                metrics.sum(&format!("{}{suffix}", Self::METRIC), label).unwrap_or(0.0)
            };
            let within = sum("_bucket", "le=\"0.05\"");
            Some((member.to_string(), Counted { count: sum("_count", ""), sum: sum("_sum", ""), within }))
        });
        counted.collect()
    }

    fn between(before: BTreeMap<String, Counted>, after: BTreeMap<String, Counted>) -> Option<Self> {
        let mut all = Counted::default();
        for (node, after) in after {
            let before = before.get(&node).copied().unwrap_or_default();
            all.count += after.count - before.count;
            all.sum += after.sum - before.sum;
            all.within += after.within - before.within;
        }
        (all.count > 0.0).then(|| Self {
            count: all.count as u64,
            mean_ms: all.sum * 1e3 / all.count,
            within_50_ms_percent: all.within * 100.0 / all.count,
        })
    }
}

impl Outcome {
    /// Whether nothing was wrong.
    pub fn is_good(&self) -> bool {
        self.verdict.is_ok()
    }

    /// The table of the run, and what was done to it.
    pub fn table(&self) -> String {
        let done: Vec<String> = self.done.iter().map(|(at, what)| format!("{at:>6} ms  {what}")).collect();
        let promotions = self.promotions.map_or_else(String::new, |it| {
            format!(
                "\npromotions: {}, mean {:.1} ms from the decision to Accept, {:.0} % within 50 ms",
                it.count, it.mean_ms, it.within_50_ms_percent
            )
        });
        format!(
            "{}\n{}\nevery subscriber was right at most {:.0} ms after each change{promotions}",
            report_table::of_run(&self.run, &self.verdict),
            done.join("\n"),
            self.right_ms
        )
    }

    /// Everything, for machines.
    pub fn json(&self, spec: &ChaosSpec) -> Result<Value> {
        let mut all = report_json::of_run(&self.run, &self.verdict);
        let more = all.as_object_mut().context("the report is no object")?;
        more.insert("scenario".into(), json!(format!("{:?}", spec.scenario)));
        more.insert("processes".into(), json!(spec.shape));
        more.insert("storage".into(), json!(spec.storage));
        more.insert("faults_ms".into(), json!(self.done));
        more.insert("right_ms".into(), json!(self.right_ms));
        more.insert("promotions".into(), json!(self.promotions));
        Ok(all)
    }
}
