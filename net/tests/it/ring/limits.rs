//! Ports are held alone, tables fill up and free again, several rings act as one.

use crate::ring::driver::{Driver, any_port, small};
use slotcast_net::io::ring::{RingConfig, RingSockets, Sockets, accept_from_cpu, listen_group};
use socket2::SockRef;
use std::{
    collections::HashSet,
    io::{ErrorKind, Read},
    net::TcpStream,
    time::Duration,
};

#[test]
fn a_second_listener_on_the_port_fails() {
    let mut first = RingSockets::new(small(8)).unwrap();
    let mut second = RingSockets::new(small(8)).unwrap();
    let addr = first.listen(any_port()).unwrap();
    assert_eq!(second.listen(addr).unwrap_err().kind(), ErrorKind::AddrInUse);
    assert_eq!(first.listen(addr).unwrap_err().kind(), ErrorKind::AddrInUse);
    assert_eq!(listen_group(addr, 2, &small(8)).unwrap_err().kind(), ErrorKind::AddrInUse);
}

#[test]
fn a_group_shares_its_port_and_keeps_others_out() {
    let group = listen_group(any_port(), 2, &small(8)).unwrap();
    let addr = group[0].local_addr().unwrap();
    let mut drivers = [Driver::new(small(64)), Driver::new(small(64))];
    for (driver, socket) in drivers.iter_mut().zip(group) {
        assert_eq!(driver.sockets.listen_on(socket).unwrap(), addr);
        driver.sockets.flush().unwrap();
    }
    assert_eq!(listen_group(addr, 2, &small(8)).unwrap_err().kind(), ErrorKind::AddrInUse);
    let mut other = RingSockets::new(small(8)).unwrap();
    assert_eq!(other.listen(addr).unwrap_err().kind(), ErrorKind::AddrInUse);
    let _streams: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(addr).unwrap()).collect();
    let [first, second] = &mut drivers;
    first.until("all accepted", |first| {
        second.turn().unwrap();
        first.accepted.len() + second.accepted.len() == 40
    });
    assert!(!first.accepted.is_empty() && !second.accepted.is_empty());
}

#[test]
fn a_listener_of_a_group_takes_the_connections_of_its_cpu() {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let allowed = sched_getaffinity(None).unwrap();
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).take(2).collect();
    let group = listen_group(any_port(), cpus.len(), &small(8)).unwrap();
    let addr = group[0].local_addr().unwrap();
    for (listener, cpu) in group.iter().zip(&cpus) {
        accept_from_cpu(listener, *cpu).unwrap();
        SockRef::from(listener).set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    }
    for (listener, cpu) in group.iter().zip(&cpus) {
        let mut own = CpuSet::new();
        own.set(*cpu);
        // Of this thread alone: on loopback it is the one that connects whose CPU handles the packets.
        sched_setaffinity(None, &own).unwrap();
        let _streams: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(addr).unwrap()).collect();
        (0..20).for_each(|_| _ = listener.accept().expect("the listener of the CPU has them all"));
    }
}

/// Tables of 8: all 30 slots of the four rings are used, the next connection waits until one is free.
fn fill_and_free(config: RingConfig) {
    let mut driver = Driver::new(config);
    assert_eq!(driver.sockets.features().rings, 4);
    let addr = driver.sockets.listen(any_port()).unwrap();
    let mut streams: Vec<TcpStream> = (0..31).map(|_| TcpStream::connect(addr).unwrap()).collect();
    driver.until("full", |d| d.accepted.len() == 30);
    for _ in 0..10 {
        driver.step();
    }
    assert_eq!(driver.accepted.len(), 30);
    assert_eq!(driver.sockets.stats().accept_refused_full, 1);
    assert_eq!(driver.sockets.stats().accept_dropped, 0);
    let indices: HashSet<usize> = driver.accepted.iter().map(|conn| conn.index()).collect();
    assert!(indices.len() == 30 && indices.iter().all(|&index| index < 30));
    assert_eq!(driver.sockets.connect(addr, None).unwrap_err().kind(), ErrorKind::QuotaExceeded);
    for conn in driver.accepted.clone() {
        driver.must_send(conn, &[&conn.index().to_le_bytes()]);
    }
    driver.sockets.flush().unwrap();
    let mut names = HashSet::new();
    for stream in &mut streams[..30] {
        let mut name = [0; 8];
        stream.read_exact(&mut name).unwrap();
        names.insert(usize::from_le_bytes(name));
    }
    assert_eq!(names, indices);
    driver.sockets.close(driver.accepted[17], false);
    driver.until("the waiting one", |d| d.accepted.len() == 31);
    assert_eq!(driver.accepted[30].index(), driver.accepted[17].index());
    assert_ne!(driver.accepted[30], driver.accepted[17]);
}

#[test]
fn several_rings_act_as_one() {
    fill_and_free(RingConfig { sockets_per_ring: Some(8), ..small(30) });
}

#[test]
fn several_rings_with_ordinary_descriptors() {
    fill_and_free(RingConfig { sockets_per_ring: Some(8), direct_descriptors: false, ..small(30) });
}

/// Multishot accepts move on before a table is full, so that no connection is dropped.
#[test]
fn multishot_accept_hands_over_between_rings() {
    let config = RingConfig { sockets_per_ring: Some(100), listen_backlog: 40, ..small(300) };
    let mut driver = Driver::new(config);
    let addr = driver.sockets.listen(any_port()).unwrap();
    let mut streams = Vec::new();
    while streams.len() < 300 {
        for _ in 0..20 {
            streams.push(TcpStream::connect(addr).unwrap());
        }
        let count = streams.len();
        driver.until("accepted", |d| d.accepted.len() == count);
    }
    assert_eq!(driver.sockets.stats().accept_dropped, 0);
    drop(streams);
    driver.until("all closed", |d| d.closed.len() == 300);
}

#[test]
fn pairs_across_rings() {
    let mut driver = Driver::new(RingConfig { sockets_per_ring: Some(16), ..small(128) });
    let addr = driver.sockets.listen(any_port()).unwrap();
    let (clients, servers) = driver.pairs(addr, 64);
    for &client in &clients {
        driver.must_send(client, &[b"over all rings"]);
    }
    driver.until("all", |d| servers.iter().all(|&server| d.bytes_of(server) == 14));
}

#[test]
fn a_waker_ends_the_wait() {
    for rings in [1, 2] {
        let mut driver = Driver::new(RingConfig { sockets_per_ring: Some(8), ..small(8 * rings) });
        let waker = driver.sockets.waker().unwrap();
        let start = std::time::Instant::now();
        let thread = std::thread::spawn(move || waker.wake().unwrap());
        driver.sockets.wait(Duration::from_secs(20)).unwrap();
        assert!(start.elapsed() < Duration::from_secs(10));
        thread.join().unwrap();
    }
}

#[test]
fn nonsense_sizes_are_refused() {
    for config in [RingConfig { sockets_max: 0, ..small(8) }, RingConfig { recv_buffers: 3, ..small(8) }] {
        assert_eq!(RingSockets::new(config).err().unwrap().kind(), ErrorKind::InvalidInput);
    }
}
