//! A worker's clients against a data node and a session of this process, over real sockets.

use std::{net::SocketAddr, time::Duration};

use loadgen::{
    board::{Board, Counter, Phase},
    clock::{Clock, MILLISECOND, Monotonic, SECOND},
    schedule::Synthetic,
    worker::{self, core::Core, plan::Plan},
};
use slotcast_net::{
    config::Config,
    io::ring::RingSockets,
    process::{DataProcess, SessionProcess},
};

fn start() -> (DataProcess, SessionProcess) {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = Config::default();
    config.nodes[0].addr = any;
    (config.data.http, config.session.http, config.session.listen) = (any, any, any);
    config.data.settle = Duration::from_millis(1);
    config.session.clients_max = 100;
    let data = DataProcess::start(&config).unwrap();
    config.nodes[0].addr = data.server.addrs[0];
    let session = SessionProcess::start(&config, None).unwrap();
    (data, session)
}

#[test]
fn clients_of_a_worker_get_right_lists_from_a_real_cluster_also_across_reconnects() {
    let (data, session) = start();
    let synthetic = Synthetic {
        clients: 40,
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
    };
    let workload = synthetic.build(0..40).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let board = Board::create(&folder.path().join("board"), 1, workload.ops().len()).unwrap();
    let mut sockets = RingSockets::new(worker::ring_config(40, 64)).unwrap();
    let plan = Plan::new(&workload, 0..40, 40.0, 5);
    let mut core = Core::new(&workload, &board, 0, vec![session.server.addr], plan).unwrap();
    let subscriptions = workload.subscriptions().all().len() as u64;
    let planned = workload.planned().len() as u64;
    let deadline = Monotonic.now() + 20 * SECOND;
    let steps = [
        (Phase::Connect, Counter::Connections, 40),
        (Phase::Publish, Counter::Staged, workload.staged().len() as u64),
        (Phase::Subscribe, Counter::Answered, subscriptions),
        (Phase::Run, Counter::Acknowledged, planned),
    ];
    for (phase, counter, target) in steps {
        if phase == Phase::Run {
            board.set_start(Monotonic.now());
        }
        board.set_phase(phase);
        while board.total(counter) < target {
            worker::turn(&mut core, &mut sockets, &Monotonic).unwrap();
            assert!(Monotonic.now() < deadline, "{phase:?}: {} of {target}", board.total(counter));
        }
    }
    board.set_phase(Phase::Drain);
    while board.total(Counter::Looked) == 0 || board.total(Counter::Unresolved) > 0 {
        worker::turn(&mut core, &mut sockets, &Monotonic).unwrap();
        assert!(Monotonic.now() < deadline, "{} pairs unresolved", board.total(Counter::Unresolved));
    }
    let (measured, findings, errors) = core.finish();
    assert!(findings.is_clean() && errors.is_empty(), "{findings:?} {errors:?}");
    assert_eq!((board.total(Counter::Lost), board.total(Counter::Refused)), (0, 0));
    assert_eq!(measured.latency.len(), workload.deliveries());
    assert!(measured.counts.pushes > 0);
    drop((data, session));
}
