//! How connections end, and that a slot's next connection never meets the former one.

use crate::ring::driver::{Driver, any_port, pattern_bytes, small};
use slotcast_net::io::ring::{CloseReason, ConnId, RingConfig, SendOutcome, Sockets};
use socket2::SockRef;
use std::{
    collections::HashSet,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    time::Duration,
};

fn modes() -> [RingConfig; 3] {
    [
        small(16),
        RingConfig { direct_descriptors: false, ..small(16) },
        RingConfig { multishot_recv: false, ..small(16) },
    ]
}

fn accepted(driver: &mut Driver) -> (TcpStream, ConnId) {
    let addr = driver.sockets.listen(any_port()).unwrap();
    let stream = TcpStream::connect(addr).unwrap();
    driver.until("accepted", |d| !d.accepted.is_empty());
    (stream, driver.accepted[0])
}

#[test]
fn peer_ends() {
    for config in modes() {
        let mut driver = Driver::new(config);
        let (mut stream, conn) = accepted(&mut driver);
        stream.write_all(b"bye").unwrap();
        drop(stream);
        driver.until("closed", |d| d.reason_of(conn).is_some());
        assert_eq!(driver.reason_of(conn), Some(CloseReason::Eof));
        assert_eq!(driver.received[&conn], b"bye");
        assert_eq!(driver.sockets.send(conn, &[b"x"]), SendOutcome::Gone);
    }
}

#[test]
fn peer_resets() {
    for config in modes() {
        let mut driver = Driver::new(config);
        let (stream, conn) = accepted(&mut driver);
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(stream);
        driver.until("closed", |d| d.reason_of(conn).is_some());
        assert_eq!(driver.reason_of(conn), Some(CloseReason::Reset));
    }
}

/// Writes go on after the reset: the first failing one must not bring a second end.
#[test]
fn writing_to_a_peer_that_reset_closes_once() {
    for config in modes() {
        let mut driver = Driver::new(config);
        let (stream, conn) = accepted(&mut driver);
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(stream);
        for _ in 0..5 {
            let _ = driver.sockets.send(conn, &[b"into the void"]);
            driver.sockets.flush().unwrap();
        }
        driver.until("closed", |d| d.reason_of(conn).is_some());
        for _ in 0..5 {
            assert_eq!(driver.sockets.send(conn, &[b"x"]), SendOutcome::Gone);
            driver.turn().unwrap();
        }
        assert_eq!(driver.reason_of(conn), Some(CloseReason::Reset));
    }
}

#[test]
fn we_end_after_what_was_queued() {
    for config in modes() {
        let mut driver = Driver::new(config);
        let (mut stream, conn) = accepted(&mut driver);
        driver.must_send(conn, &[b"last ", b"words"]);
        driver.sockets.close(conn, false);
        driver.sockets.close(conn, false);
        driver.until("closed", |d| d.reason_of(conn).is_some());
        assert_eq!(driver.reason_of(conn), Some(CloseReason::Local));
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "last words");
    }
}

#[test]
fn we_reset() {
    for config in modes() {
        let mut driver = Driver::new(config);
        let (mut stream, conn) = accepted(&mut driver);
        driver.sockets.close(conn, true);
        driver.until("closed", |d| d.reason_of(conn).is_some());
        assert_eq!(driver.reason_of(conn), Some(CloseReason::Local));
        assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(driver.sockets.stats().reset_fallbacks, 0);
    }
}

#[test]
fn refused_and_abandoned_connects() {
    for config in modes() {
        let mut driver = Driver::new(config);
        let addr = TcpListener::bind(any_port()).unwrap().local_addr().unwrap();
        let refused = driver.sockets.connect(addr, None).unwrap();
        assert_eq!(driver.sockets.send(refused, &[b"early"]), SendOutcome::Busy);
        let abandoned = driver.sockets.connect(addr, None).unwrap();
        driver.sockets.close(abandoned, true);
        driver.until("closed", |d| d.closed.len() == 2);
        assert_eq!(driver.reason_of(refused), Some(CloseReason::Error(libc::ECONNREFUSED)));
        assert_eq!(driver.reason_of(abandoned), Some(CloseReason::Local));
        assert!(driver.connected.is_empty());
    }
}

/// A few slots, many generations. Each connection closes with writes queued, remainders unsent or bytes unread, and each
/// new one must see its own stream only.
#[test]
fn slots_are_reused_cleanly() {
    for config in modes() {
        let config = RingConfig { sockets_max: 4, send_buffer_bytes: Some(4096), ..config };
        let mut driver = Driver::new(config);
        let addr = driver.sockets.listen(any_port()).unwrap();
        let mut seen = HashSet::new();
        let big = pattern_bytes(0, 200_000);
        for round in 0..200usize {
            let mut stream = TcpStream::connect(addr).unwrap();
            driver.until("accepted", |d| d.accepted.len() == round + 1);
            let conn = driver.accepted[round];
            assert!(conn.index() < 4 && seen.insert(conn), "a handle came back");
            let name = round.to_le_bytes();
            stream.write_all(&name).unwrap();
            driver.until("hello", |d| d.bytes_of(conn) == name.len());
            assert_eq!(driver.received[&conn], name);
            driver.must_send(conn, &[&name]);
            let mut reply = [0; 8];
            driver.sockets.flush().unwrap();
            stream.read_exact(&mut reply).unwrap();
            assert_eq!(reply, name);
            if round >= 1 {
                let before = driver.accepted[round - 1];
                assert_eq!(driver.sockets.send(before, &[b"stale"]), SendOutcome::Gone);
                driver.sockets.close(before, true);
            }
            match round % 4 {
                0 => driver.sockets.close(conn, round % 8 == 0),
                1 => {
                    driver.must_send(conn, &[&big]);
                    driver.sockets.flush().unwrap();
                    driver.sockets.close(conn, true);
                }
                2 => {
                    driver.must_send(conn, &[&big]);
                    drop(stream);
                }
                _ => {
                    stream.write_all(&big[..5000]).unwrap();
                    driver.must_send(conn, &[b"unread"]);
                    driver.sockets.close(conn, false);
                }
            }
            driver.until("closed", |d| d.reason_of(conn).is_some());
        }
        assert_eq!(driver.closed.len(), 200);
    }
}
