//! Bytes arrive, in order, whatever the sizes, modes and number of connections.

use crate::ring::driver::{Driver, any_port, pattern_bytes, small};
use slotcast_net::io::ring::{ConnId, RingConfig, SendOutcome, SharedFrame, Sockets};
use std::{
    collections::{HashMap, HashSet},
    io::Read,
    net::TcpStream,
};

/// Sends `total` patterned bytes from `client` in pieces and has the server side echo them.
fn echo(driver: &mut Driver, client: ConnId, server: ConnId, total: usize, piece: usize) {
    let (mut sent, mut echoed) = (0, 0);
    driver.received.clear();
    driver.until("echo", |d| {
        while sent < total {
            let bytes = pattern_bytes(sent, piece.min(total - sent));
            let (head, tail) = bytes.split_at(bytes.len() / 3);
            if d.sockets.send(client, &[head, tail]) != SendOutcome::Queued {
                break;
            }
            sent += bytes.len();
        }
        let there = d.bytes_of(server);
        if echoed < there {
            let bytes = SharedFrame::from(&d.received[&server][echoed..there]);
            if d.sockets.send_shared(server, &bytes) == SendOutcome::Queued {
                echoed = there;
            }
        }
        d.bytes_of(client) == total
    });
    assert!(driver.received[&client] == pattern_bytes(0, total));
}

fn echo_sizes(config: RingConfig) -> Driver {
    let mut driver = Driver::new(config);
    let addr = driver.sockets.listen(any_port()).unwrap();
    let (clients, servers) = driver.pairs(addr, 1);
    let (total_pieces, sizes) = (40, [1, 2, 3, 240, 1447, 1448, 4096, 5000, 70_000]);
    for size in sizes {
        echo(&mut driver, clients[0], servers[0], size * total_pieces, size);
    }
    driver
}

#[test]
fn what_is_queued_goes_out_in_the_middle_of_a_turn() {
    let mut driver = Driver::new(small(8));
    let addr = driver.sockets.listen(any_port()).unwrap();
    let mut stream = TcpStream::connect(addr).unwrap();
    driver.until("accepted", |d| d.accepted.len() == 1);
    driver.must_send(driver.accepted[0], &[b"now"]);
    driver.sockets.nudge();
    let mut got = [0; 3];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"now");
    driver.must_send(driver.accepted[0], &[b"later"]);
    driver.sockets.flush().unwrap();
    let mut got = [0; 5];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"later");
}

#[test]
fn many_sizes_direct() {
    let driver = echo_sizes(small(64));
    let features = driver.sockets.features();
    println!("{features}");
    assert!(features.direct_descriptors && features.skip_success);
}

#[test]
fn many_sizes_multishot_accept() {
    echo_sizes(RingConfig { listen_backlog: 16, ..small(64) });
}

#[test]
fn many_sizes_ordinary_descriptors() {
    echo_sizes(RingConfig { direct_descriptors: false, ..small(64) });
}

#[test]
fn many_sizes_without_multishot() {
    let driver = echo_sizes(RingConfig { multishot_recv: false, multishot_accept: false, ..small(64) });
    assert!(!driver.sockets.features().multishot_recv);
}

#[test]
fn many_sizes_tiny_queues() {
    echo_sizes(RingConfig { sq_entries: 2, cq_entries: 4, staging_bytes: 4096, ..small(64) });
}

#[test]
fn source_address_is_used() {
    let mut driver = Driver::new(small(16));
    let listener = std::net::TcpListener::bind(any_port()).unwrap();
    let source = std::net::Ipv4Addr::new(127, 0, 0, 9).into();
    driver.sockets.connect(listener.local_addr().unwrap(), Some(source)).unwrap();
    driver.until("connected", |d| d.connected.len() == 1);
    assert_eq!(listener.accept().unwrap().1.ip(), source);
}

/// Every connection sends its own index and gets its own bytes, over several turns.
fn many_connections(config: RingConfig, count: usize) {
    let mut driver = Driver::new(config);
    let addr = driver.sockets.listen(any_port()).unwrap();
    let (clients, servers) = driver.pairs(addr, count);
    let indices: HashSet<usize> = clients.iter().chain(&servers).map(|conn| conn.index()).collect();
    assert_eq!(indices.len(), 2 * count);
    for round in 0..3u32 {
        driver.received.clear();
        for &client in &clients {
            let name = (client.index() as u32).to_le_bytes();
            driver.must_send(client, &[&name]);
            driver.must_send(client, &[&round.to_le_bytes()]);
        }
        // The second halves go in another order, so these sends cannot be joined.
        for &client in clients.iter().rev() {
            driver.must_send(client, &[b"tail"]);
        }
        driver.until("requests", |d| servers.iter().all(|&server| d.bytes_of(server) == 12));
        for &server in &servers {
            let request = driver.received[&server].clone();
            driver.must_send(server, &[&request]);
        }
        driver.until("replies", |d| clients.iter().all(|&client| d.bytes_of(client) == 12));
        let expected: HashMap<ConnId, Vec<u8>> = clients
            .iter()
            .map(|&client| {
                let name = (client.index() as u32).to_le_bytes();
                (client, [&name[..], &round.to_le_bytes(), b"tail"].concat())
            })
            .collect();
        assert!(expected.iter().all(|(client, bytes)| driver.received[client] == *bytes));
    }
    assert_eq!(driver.sockets.stats().stale_completions, 0);
    assert!(driver.closed.is_empty());
}

#[test]
fn two_thousand_connections() {
    many_connections(RingConfig { sockets_max: 10_000, ..RingConfig::default() }, 2000);
}

#[test]
fn two_thousand_connections_ordinary() {
    many_connections(
        RingConfig { sockets_max: 4000, direct_descriptors: false, ..RingConfig::default() },
        2000,
    );
}

#[test]
fn completion_queue_overflow_loses_nothing() {
    many_connections(RingConfig { sq_entries: 8, cq_entries: 16, ..small(600) }, 300);
}

#[test]
fn starved_receive_buffers_lose_nothing() {
    for multishot_recv in [true, false] {
        let config = RingConfig { recv_buffers: 2, recv_buffer_bytes: 64, multishot_recv, ..small(64) };
        let mut driver = Driver::new(config);
        let addr = driver.sockets.listen(any_port()).unwrap();
        let (clients, servers) = driver.pairs(addr, 20);
        let bytes = pattern_bytes(0, 3000);
        for &client in &clients {
            driver.must_send(client, &[&bytes]);
        }
        driver.until("all bytes", |d| servers.iter().all(|&server| d.bytes_of(server) == bytes.len()));
        assert!(servers.iter().all(|server| driver.received[server] == bytes));
        assert!(driver.sockets.stats().buffer_starved > 0);
        // Everyone is armed again, those who had nothing to receive as well.
        for &client in &clients {
            let before: usize = servers.iter().map(|&server| driver.bytes_of(server)).sum();
            driver.must_send(client, &[b"alone"]);
            driver.until("it", |d| {
                servers.iter().map(|&server| d.bytes_of(server)).sum::<usize>() == before + 5
            });
        }
    }
}
