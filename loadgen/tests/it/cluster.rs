//! A worker's clients against a data node and a session of this process, over real sockets.

use std::{net::SocketAddr, time::Duration};

use loadgen::{
    board::{Board, Counter, Phase},
    clock::{Clock, MILLISECOND, Monotonic, SECOND},
    disturbance::Disturbance,
    schedule::Synthetic,
    worker::{
        self,
        core::{Core, Finished},
        plan::Plan,
        sockets::ClientSockets,
    },
};
use slotcast_net::{
    config::Config,
    process::{DataProcess, SessionProcess},
    session::metrics::SessionMetrics,
};

const CLIENTS: u32 = 40;

/// A data node and a session.
struct Cluster {
    _data: DataProcess,
    session: SessionProcess,
}

impl Cluster {
    fn start(adjust: impl FnOnce(&mut Config)) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config::default();
        config.nodes[0].addr = any;
        (config.data.http, config.session.http, config.session.listen) = (any, any, any);
        config.data.settle = Duration::from_millis(1);
        config.session.clients_max = 100;
        adjust(&mut config);
        let data = DataProcess::start(&config).unwrap();
        config.nodes[0].addr = data.server.addrs[0];
        Self { session: SessionProcess::start(&config, None).unwrap(), _data: data }
    }

    fn metrics(&self) -> &SessionMetrics {
        &self.session.server.metrics[0]
    }
}

fn synthetic() -> Synthetic {
    Synthetic {
        clients: CLIENTS,
        services: 8,
        subscriptions_per_client: 3,
        publishers: 30,
        changes_per_sec: 400.0,
        payload_bytes: 64,
        warmup_ns: 50 * MILLISECOND,
        window_ns: 500 * MILLISECOND,
        skew: Some(1.0),
        seed: 5,
        canaries: 10,
        tag: 0,
        notes: Vec::new(),
    }
}

/// What a run leaves behind.
struct Ran {
    finished: Finished,
    deliveries: u64,
    counters: Vec<(Counter, u64)>,
    /// Snapshots before the first change.
    first_snapshots: u64,
    waiting_bytes_max: i64,
}

impl Ran {
    fn counter(&self, counter: Counter) -> u64 {
        self.counters.iter().find(|(known, _)| *known == counter).unwrap().1
    }

    fn assert_right(&self) {
        let Finished { measured, stalled, findings, errors } = &self.finished;
        assert!(findings.is_clean() && errors.is_empty(), "{findings:?} {errors:?}");
        assert_eq!((self.counter(Counter::Lost), self.counter(Counter::Refused)), (0, 0));
        assert_eq!(measured.latency.len() + stalled.latency.len(), self.deliveries);
        assert_eq!(self.counter(Counter::Connections), u64::from(CLIENTS));
        assert!(measured.counts.pushes > 0);
    }
}

/// Takes one worker through a run against the cluster.
fn run(cluster: &Cluster, synthetic: &Synthetic, disturbance: Disturbance) -> Ran {
    let workload = synthetic.build(0..CLIENTS).unwrap();
    disturbance.check(&workload).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let board = Board::create(&folder.path().join("board"), 1, workload.ops().len()).unwrap();
    let mut sockets = ClientSockets::new(CLIENTS, disturbance.stalled_clients, 64).unwrap();
    let plan = Plan::new(&workload, 0..CLIENTS, &disturbance, 5);
    let mut core = Core::new(&workload, &board, 0, vec![cluster.session.server.addr], plan).unwrap();
    let subscriptions = workload.subscriptions().all().len() as u64;
    let planned = workload.planned().len() as u64;
    let deadline = Monotonic.now() + 20 * SECOND;
    let mut waiting_bytes_max = 0;
    let mut turn = |core: &mut Core<'_>, waiting_for: &dyn Fn() -> String| {
        worker::turn(core, &mut sockets, &Monotonic).unwrap();
        waiting_bytes_max = waiting_bytes_max.max(cluster.metrics().slow_client_bytes.get());
        assert!(Monotonic.now() < deadline, "{}", waiting_for());
    };
    let mut first_snapshots = 0;
    let steps = [
        (Phase::Connect, Counter::Connections, u64::from(CLIENTS)),
        (Phase::Publish, Counter::Staged, workload.staged().len() as u64),
        (Phase::Subscribe, Counter::Answered, subscriptions),
        (Phase::Run, Counter::Acknowledged, planned),
    ];
    for (phase, counter, target) in steps {
        if phase == Phase::Run {
            board.set_start(Monotonic.now());
            first_snapshots = board.total(Counter::Snapshots);
        }
        board.set_phase(phase);
        while board.total(counter) < target {
            turn(&mut core, &|| format!("{phase:?}: {} of {target}", board.total(counter)));
        }
    }
    while Monotonic.now() < board.start() + workload.window().end {
        turn(&mut core, &String::new);
    }
    board.set_phase(Phase::Drain);
    let resumed = if disturbance.reconnect_storm { subscriptions } else { 0 };
    while board.total(Counter::Looked) == 0
        || board.total(Counter::Unresolved) > 0
        || board.total(Counter::Connections) < u64::from(CLIENTS)
        || board.total(Counter::Resumed) < resumed
    {
        turn(&mut core, &|| format!("{} pairs unresolved", board.total(Counter::Unresolved)));
    }
    let counters = [
        Counter::Lost,
        Counter::Refused,
        Counter::Connections,
        Counter::Snapshots,
        Counter::Resets,
        Counter::Resumed,
        Counter::ResumeBytes,
        Counter::Evicted,
        Counter::SentAway,
    ];
    let counters = counters.map(|counter| (counter, board.total(counter))).into();
    let deliveries = workload.deliveries();
    Ran { finished: core.finish(), deliveries, counters, first_snapshots, waiting_bytes_max }
}

#[test]
fn clients_of_a_worker_get_right_lists_from_a_real_cluster_also_across_reconnects() {
    let cluster = Cluster::start(|_| ());
    let disturbance = Disturbance { reconnects_per_sec: 40.0, ..Disturbance::default() };
    let ran = run(&cluster, &synthetic(), disturbance);
    ran.assert_right();
    assert!(cluster.metrics().client_drops.get() > 0);
}

/// A run in which a client that reads nothing soon has more to get than the kernel holds for it.
fn heavy() -> Synthetic {
    Synthetic { payload_bytes: 1024, window_ns: SECOND, publishers: 28, ..synthetic() }
}

fn narrow(config: &mut Config, eviction: Duration) {
    config.session.client_send_buffer = 4096;
    config.session.push_interval_max = Duration::from_millis(100);
    config.session.slow_client_eviction = eviction;
    // Who resumes from further back than the history reaches keeps, in the first lease of a data node's run, what is gone.
    config.session.history_bytes_max = 1 << 20;
}

#[test]
fn clients_that_read_nothing_for_a_while_are_right_afterwards_and_disturb_nobody() {
    let cluster = Cluster::start(|config| narrow(config, Duration::from_secs(30)));
    let disturbance = Disturbance { stalled_clients: 10, ..Disturbance::default() };
    let ran = run(&cluster, &heavy(), disturbance);
    ran.assert_right();
    let Finished { measured, stalled, .. } = &ran.finished;
    let half = 500 * MILLISECOND;
    assert!(stalled.latency.max() > half, "they waited: {} ns at most", stalled.latency.max());
    assert!(measured.latency.value_at_quantile(0.99) < half, "the others did not");
    let metrics = cluster.metrics();
    assert_eq!((metrics.slow_clients.get(), ran.counter(Counter::Evicted)), (10, 0));
    assert_eq!(metrics.clients.get(), i64::from(CLIENTS), "nobody was closed");
    // They lack a thousand times what waits for them: revisions wait, not frames.
    assert!(ran.waiting_bytes_max < 10 * 1024, "{} bytes waited", ran.waiting_bytes_max);
}

#[test]
fn clients_evicted_because_they_read_nothing_come_back_and_are_right() {
    let cluster = Cluster::start(|config| narrow(config, Duration::from_millis(300)));
    let disturbance = Disturbance { stalled_clients: 10, ..Disturbance::default() };
    let ran = run(&cluster, &heavy(), disturbance);
    ran.assert_right();
    assert_eq!(ran.counter(Counter::Evicted), 10);
    assert_eq!(cluster.metrics().departed_publishers.get(), 0);
}

#[test]
fn after_a_reconnect_storm_everybody_resumes_and_nobody_was_seen_to_leave() {
    let cluster = Cluster::start(|_| ());
    let disturbance = Disturbance { reconnect_storm: true, ..Disturbance::default() };
    let ran = run(&cluster, &Synthetic { window_ns: 3 * SECOND, ..synthetic() }, disturbance);
    ran.assert_right();
    let lists = u64::from(CLIENTS) * 3;
    assert_eq!((ran.counter(Counter::Resets), ran.counter(Counter::Resumed)), (u64::from(CLIENTS), lists));
    assert_eq!(ran.counter(Counter::Snapshots), ran.first_snapshots, "every list was resumed");
    assert!((48..2000).contains(&(ran.counter(Counter::ResumeBytes) / lists)));
    let metrics = cluster.metrics();
    assert_eq!((metrics.departed_publishers.get(), metrics.client_drops.get()), (0, u64::from(CLIENTS)));
}

#[test]
fn clients_that_are_sent_away_come_back_when_they_were_told() {
    let cluster =
        Cluster::start(|config| (config.session.accept_rate, config.session.accept_burst) = (40, 4));
    let began = Monotonic.now();
    let ran = run(&cluster, &synthetic(), Disturbance::default());
    ran.assert_right();
    let sent_away = ran.counter(Counter::SentAway);
    let metrics = cluster.metrics();
    assert_eq!(metrics.accepted.get(), u64::from(CLIENTS), "each was let in once");
    assert!((36..200).contains(&sent_away), "{sent_away}: all but the burst, and few of them twice");
    assert!(Monotonic.now() - began > 36 * SECOND / 40, "36 connections at 40 a second");
}
