//! How much memory publishers take in a data node's store, and how fast they come, are found and are replaced.
//!
//! The shards are the real ones, each on a thread of its own as in a node, and everything passes their front door: write
//! frames are validated, admitted, sealed at the end of each turn, and ticks come every tenth of a second, with what
//! compaction does in them. Only journal, links and readers are left out. First everybody registers, in an order without any
//! pattern; then everybody is looked up, and compared byte by byte; then every record is replaced, several times over, each
//! time in another order; then the shards idle until compaction has nothing left to do.

pub mod report;

mod worker;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use slotcast_engine::{memory::Memory, shard::ShardConfig};

use crate::{
    memory::{Resident, resident, resident_now},
    population::Population,
};

/// How often resident memory is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// What is measured.
#[derive(Clone, Debug)]
pub struct CapacitySpec {
    /// Who publishes.
    pub population: Population,
    /// Shards of the node, each on a thread.
    pub shards: u32,
    /// What each is told; number, seed and lease are filled in.
    pub shard: ShardConfig,
    /// How often every record is replaced.
    pub overwrites: u64,
    /// Longest time given to compaction at the end.
    pub settle: Duration,
}

/// What one phase did, over all shards.
#[derive(Clone, Debug, Default)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// Publishers that were written or looked up.
    pub operations: u64,
    /// From its beginning to its end, the making of frames included.
    pub seconds: f64,
    /// Operations per second of time spent in the store, all shards together.
    pub rate: f64,
    /// Longest turn of a shard in milliseconds: a frame with seal and acknowledgements, or a tick.
    pub turn_max_ms: f64,
    /// Resident memory at its end, without what was there before the store.
    pub resident: u64,
    /// The part in huge pages.
    pub huge: u64,
    /// The largest that was seen during it.
    pub resident_peak: u64,
    /// The store's own account at its end.
    pub memory: Memory,
    /// Arena bytes that compaction walked during it.
    pub compacted_bytes: u64,
}

impl Phase {
    /// Share of current records in all memory taken for records.
    pub fn utilization(&self) -> f64 {
        let Memory { payload, dead, free, .. } = self.memory;
        payload as f64 / (payload + dead + free).max(1) as f64
    }

    /// Share of current records in what has been written.
    pub fn live_share(&self) -> f64 {
        self.memory.payload as f64 / (self.memory.payload + self.memory.dead).max(1) as f64
    }
}

/// A look at resident memory while something went on.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Seconds since the first phase began.
    pub seconds: f64,
    /// Resident bytes without those from before the store.
    pub resident: u64,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Capacity {
    /// Publishers held at the end of each phase.
    pub publishers: u64,
    /// Data ids.
    pub data_ids: u64,
    /// Resident memory before the store was opened.
    pub baseline: Resident,
    /// In order.
    pub phases: Vec<Phase>,
    /// Resident memory over time.
    pub looks: Vec<Look>,
    /// Records whose bytes were compared with what was published, over all comparisons.
    pub compared: u64,
}

impl Capacity {
    /// The phase of this name.
    pub fn phase(&self, name: &str) -> Option<&Phase> {
        self.phases.iter().find(|phase| phase.name == name)
    }

    /// Resident bytes per publisher beyond its payload, once everybody is registered.
    pub fn overhead(&self, spec: &CapacitySpec) -> f64 {
        let registered = self.phase(REGISTER).map_or(0, |phase| phase.resident);
        registered as f64 / self.publishers.max(1) as f64 - spec.population.payload_bytes as f64
    }
}

/// Name of the first phase.
pub const REGISTER: &str = "register";
/// Name of the last phase but one.
pub const SETTLE: &str = "idle until compacted";

/// What the shards are told to do.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Register or replace everybody, in this round.
    Write { round: u64 },
    /// Look everybody up.
    Find,
    /// Compare everybody's bytes with what was published in this round.
    Compare { round: u64 },
    /// Tick until compaction has nothing to do, or for so long.
    Settle { at_most: Duration },
}

/// What a shard answers.
#[derive(Clone, Copy, Debug, Default)]
struct Answer {
    operations: u64,
    busy: Duration,
    turn_max: Duration,
    memory: Memory,
    publishers: u64,
    compacted_bytes: u64,
}

struct Crew {
    orders: Vec<Sender<Step>>,
    answers: Receiver<anyhow::Result<Answer>>,
    done: Arc<AtomicU64>,
}

/// Measures. `progress` hears of what is going on: its name, how much there is to do, how much is done.
pub fn run(spec: &CapacitySpec, mut progress: impl FnMut(&str, u64, u64)) -> anyhow::Result<Capacity> {
    let crew = Crew::start(spec)?;
    let all = spec.population.publishers;
    let baseline = resident();
    let mut found = Capacity {
        publishers: 0,
        data_ids: spec.population.data_ids(),
        baseline,
        phases: Vec::new(),
        looks: Vec::new(),
        compared: 0,
    };
    let began = Instant::now();
    let mut steps = vec![
        (REGISTER.to_string(), Step::Write { round: 0 }),
        ("look up".into(), Step::Find),
        ("compare".into(), Step::Compare { round: 0 }),
    ];
    steps.extend((1..=spec.overwrites).map(|round| (format!("replace {round}"), Step::Write { round })));
    steps.push((SETTLE.into(), Step::Settle { at_most: spec.settle }));
    steps.push(("look up again".into(), Step::Find));
    steps.push(("compare again".into(), Step::Compare { round: spec.overwrites }));
    for (name, step) in steps {
        let mut peak = 0;
        let (start, looks) = (began.elapsed(), &mut found.looks);
        let answers = crew.carry_out(step, &mut |done| {
            let resident = resident_now().saturating_sub(baseline.bytes);
            peak = peak.max(resident);
            looks.push(Look { seconds: began.elapsed().as_secs_f64(), resident });
            progress(&name, all, done);
        })?;
        let held = resident();
        let sum = |of: fn(&Answer) -> u64| answers.iter().map(of).sum::<u64>();
        let rate = |it: &Answer| it.operations as f64 / it.busy.as_secs_f64().max(1e-9);
        let resident = held.bytes.saturating_sub(baseline.bytes);
        found.publishers = sum(|it| it.publishers);
        anyhow::ensure!(found.publishers == all, "{} of {all} publishers are there", found.publishers);
        if let Step::Compare { .. } = step {
            found.compared += sum(|it| it.operations);
        }
        found.phases.push(Phase {
            name,
            operations: sum(|it| it.operations),
            seconds: (began.elapsed() - start).as_secs_f64(),
            rate: answers.iter().map(rate).sum(),
            turn_max_ms: answers.iter().map(|it| it.turn_max.as_secs_f64() * 1e3).fold(0.0, f64::max),
            resident,
            huge: held.huge,
            resident_peak: peak.max(resident),
            memory: answers.iter().fold(Memory::default(), |sum, it| sum + it.memory),
            compacted_bytes: sum(|it| it.compacted_bytes),
        });
    }
    Ok(found)
}

impl Crew {
    fn start(spec: &CapacitySpec) -> anyhow::Result<Self> {
        let (answer, answers) = channel();
        let done = Arc::new(AtomicU64::new(0));
        let mut orders = Vec::new();
        for shard in 0..spec.shards {
            let (order, ordered) = channel();
            let (spec, answer, done) = (spec.clone(), answer.clone(), done.clone());
            std::thread::Builder::new()
                .name(format!("shard-{shard}"))
                .spawn(move || worker::serve(&spec, shard, &ordered, &answer, &done))
                .with_context(|| format!("starting the thread of shard {shard}"))?;
            orders.push(order);
        }
        let crew = Self { orders, answers, done };
        // Each says once that it knows its publishers and has yet to open its shard.
        for _ in 0..spec.shards {
            crew.answers.recv().map_err(|_| anyhow!("a shard's thread has ended"))??;
        }
        Ok(crew)
    }

    fn carry_out(&self, step: Step, look: &mut dyn FnMut(u64)) -> anyhow::Result<Vec<Answer>> {
        self.done.store(0, Ordering::Relaxed);
        for order in &self.orders {
            order.send(step).map_err(|_| anyhow!("a shard's thread has ended"))?;
        }
        let mut answers = Vec::new();
        while answers.len() < self.orders.len() {
            match self.answers.recv_timeout(LOOK) {
                Ok(answer) => answers.push(answer?),
                Err(RecvTimeoutError::Timeout) => look(self.done.load(Ordering::Relaxed)),
                Err(RecvTimeoutError::Disconnected) => return Err(anyhow!("the shards' threads have ended")),
            }
        }
        Ok(answers)
    }
}

#[cfg(test)]
mod tests {
    use slotcast_net::config::Config;

    use super::*;

    #[test]
    fn a_small_node_holds_everybody_and_replaces_them() {
        let spec = CapacitySpec {
            population: Population {
                publishers: 5_003,
                per_data_id: 20,
                payload_bytes: 100,
                name_bytes: 8,
                sessions: 3,
            },
            shards: 2,
            shard: Config::default().data_options().unwrap().shard,
            overwrites: 2,
            settle: Duration::from_secs(20),
        };
        let found = run(&spec, |_, _, _| ()).unwrap();
        assert_eq!((found.publishers, found.data_ids, found.compared), (5_003, 251, 2 * 5_003));
        let [registered, settled] = [REGISTER, SETTLE].map(|name| found.phase(name).unwrap());
        assert_eq!(
            registered.memory.payload, settled.memory.payload,
            "as many and as long records as before"
        );
        assert!(registered.memory.dead == 0 && registered.memory.index > 0);
        assert!(found.phase("replace 2").unwrap().operations == 5_003);
    }
}
