//! A reader that stops and resumes sees the exact stream, across short sends and refused ones.

use crate::ring::driver::{Driver, any_port, pattern, pattern_bytes, small};
use slotcast_net::io::ring::{CloseReason, ConnId, RingConfig, SendOutcome, SharedFrame, Sockets};
use std::{
    io::{ErrorKind, Read},
    net::TcpStream,
};

struct Reader {
    stream: TcpStream,
    position: usize,
    ended: bool,
}

impl Reader {
    /// Reads what is there, up to `limit`, checking each byte against its position.
    fn read(&mut self, limit: usize) {
        let mut buffer = vec![0; limit];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.ended = true,
            Ok(len) => {
                for &byte in &buffer[..len] {
                    assert_eq!(byte, pattern(self.position), "at {}", self.position);
                    self.position += 1;
                }
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
}

fn stalled_pair(config: RingConfig) -> (Driver, ConnId, Reader) {
    let config = RingConfig { send_buffer_bytes: Some(4096), recv_socket_buffer_bytes: Some(4096), ..config };
    let mut driver = Driver::new(config);
    let addr = driver.sockets.listen(any_port()).unwrap();
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_nonblocking(true).unwrap();
    driver.until("accepted", |d| d.accepted.len() == 1);
    let conn = driver.accepted[0];
    (driver, conn, Reader { stream, position: 0, ended: false })
}

fn send(driver: &mut Driver, conn: ConnId, start: usize, len: usize, shared: bool) -> SendOutcome {
    let bytes = pattern_bytes(start, len);
    if shared {
        driver.sockets.send_shared(conn, &SharedFrame::from(bytes))
    } else {
        driver.sockets.send(conn, &[&bytes])
    }
}

/// One send per flush until refused, then the reader catches up; several times over.
fn stop_and_resume(config: RingConfig, frame: usize, shared: bool) {
    let (mut driver, conn, mut reader) = stalled_pair(config);
    let mut taken = 0;
    for _ in 0..5 {
        loop {
            match send(&mut driver, conn, taken, frame, shared) {
                SendOutcome::Queued => taken += frame,
                SendOutcome::Busy => break,
                SendOutcome::Gone => panic!("connection gone"),
            }
            driver.sockets.flush().unwrap();
        }
        driver.writable.clear();
        driver.until("writable", |d| {
            reader.read(1000);
            !d.writable.is_empty()
        });
        assert_eq!(driver.writable, [conn]);
    }
    driver.until("caught up", |_| {
        reader.read(100_000);
        reader.position == taken
    });
    let stats = driver.sockets.stats();
    assert_eq!(stats.send_bytes, taken as u64);
    assert!(stats.short_sends + stats.send_eagain >= 5, "{stats:?}");
    assert!(driver.closed.is_empty());
}

#[test]
fn copied_frames() {
    for frame in [240, 1500, 9000] {
        stop_and_resume(small(8), frame, false);
    }
}

#[test]
fn shared_frames() {
    for frame in [240, 1500, 9000, 500_000] {
        stop_and_resume(small(8), frame, true);
    }
}

#[test]
fn frames_beyond_the_staging_area() {
    stop_and_resume(small(8), 200_000, false);
}

#[test]
fn ordinary_descriptors() {
    for shared in [false, true] {
        stop_and_resume(RingConfig { direct_descriptors: false, ..small(8) }, 1500, shared);
    }
}

/// The kernel takes only part of one large write. What it left is noticed, although a send that goes out whole posts no
/// completion, and follows when the reader makes room.
#[test]
fn short_send_without_completion_on_success_is_never_lost() {
    for shared in [false, true] {
        let (mut driver, conn, mut reader) = stalled_pair(RingConfig { staging_bytes: 1 << 20, ..small(8) });
        assert!(driver.sockets.features().skip_success);
        let len = 700_000;
        assert_eq!(send(&mut driver, conn, 0, len, shared), SendOutcome::Queued);
        driver.sockets.flush().unwrap();
        assert_eq!(driver.sockets.stats().short_sends, 1);
        assert_eq!(send(&mut driver, conn, len, 1, shared), SendOutcome::Busy);
        driver.until("all bytes", |_| {
            reader.read(100_000);
            reader.position == len
        });
    }
}

/// Several sends of one connection in one turn, the first of which already does not fit.
#[test]
fn order_holds_when_the_first_of_a_turn_falls_short() {
    let (mut driver, conn, mut reader) = stalled_pair(small(8));
    let (mut taken, mut refused) = (0, 0);
    while taken < 600_000 {
        for shared in [false, true, true, false, false] {
            match send(&mut driver, conn, taken, 1777, shared) {
                SendOutcome::Queued => taken += 1777,
                SendOutcome::Busy => refused += 1,
                SendOutcome::Gone => panic!("connection gone"),
            }
        }
        reader.read(5000);
        driver.turn().unwrap();
    }
    assert!(refused > 0);
    driver.until("all bytes", |_| {
        reader.read(100_000);
        reader.position == taken
    });
}

#[test]
fn close_waits_for_the_remainder() {
    let (mut driver, conn, mut reader) = stalled_pair(small(8));
    assert_eq!(send(&mut driver, conn, 0, 300_000, true), SendOutcome::Queued);
    driver.sockets.close(conn, false);
    assert_eq!(send(&mut driver, conn, 0, 1, true), SendOutcome::Gone);
    driver.until("the end", |d| {
        reader.read(20_000);
        reader.ended && d.reason_of(conn).is_some()
    });
    assert_eq!(reader.position, 300_000);
    assert_eq!(driver.reason_of(conn), Some(CloseReason::Local));
}

#[test]
fn reset_cuts_a_waiting_close_short() {
    let (mut driver, conn, mut reader) = stalled_pair(small(8));
    assert_eq!(send(&mut driver, conn, 0, 3_000_000, false), SendOutcome::Queued);
    driver.sockets.close(conn, false);
    for _ in 0..5 {
        driver.turn().unwrap();
    }
    assert_eq!(driver.reason_of(conn), None);
    driver.sockets.close(conn, true);
    driver.until("closed", |d| d.reason_of(conn).is_some());
    assert_eq!(driver.reason_of(conn), Some(CloseReason::Local));
    let mut buffer = vec![0; 1 << 20];
    let error = loop {
        match reader.stream.read(&mut buffer) {
            Ok(0) => panic!("an orderly end"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// More writes in a turn than the submission queue holds, all of them falling short: the queue is submitted in the middle,
/// and what is left over of each write still belongs to the round that took it.
#[test]
fn a_turn_longer_than_the_queue_keeps_every_remainder() {
    const READERS: usize = 150;
    const FRAME: usize = 3000;
    let config = RingConfig {
        send_buffer_bytes: Some(4096),
        recv_socket_buffer_bytes: Some(4096), // Room for the whole turn: it is the queue that fills first.
        staging_bytes: 4 << 20,
        ..small(READERS)
    };
    let mut driver = Driver::new(config);
    let addr = driver.sockets.listen(any_port()).unwrap();
    let mut streams = Vec::new();
    for count in 1..=READERS {
        streams.push(TcpStream::connect(addr).unwrap());
        driver.until("accepted", |d| d.accepted.len() == count);
    }
    let conns = driver.accepted.clone();
    let mut taken = vec![0; READERS];
    let mut busy = 0;
    while busy < READERS {
        busy = 0;
        for (conn, taken) in conns.iter().zip(&mut taken) {
            match send(&mut driver, *conn, *taken, FRAME, false) {
                SendOutcome::Queued => *taken += FRAME,
                SendOutcome::Busy => busy += 1,
                SendOutcome::Gone => panic!("connection gone"),
            }
        }
        driver.sockets.flush().unwrap();
    }
    let mut readers: Vec<Reader> = streams
        .into_iter()
        .map(|stream| {
            stream.set_nonblocking(true).unwrap();
            Reader { stream, position: 0, ended: false }
        })
        .collect();
    driver.until("everything read", |_| {
        readers.iter_mut().for_each(|reader| reader.read(10_000));
        readers.iter().zip(&taken).all(|(reader, taken)| reader.position == *taken)
    });
}
