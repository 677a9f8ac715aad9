//! A client with several sessions: which it goes to when one fails, when, and what it says there.

use std::net::SocketAddr;

use slotcast_engine::{
    diff,
    id::{ClientId, DataId, Nanos, Revision, SessionId},
    record::Record,
};
use slotcast_net::{
    client::{ClientConfig, ClientState},
    io::{
        ring::{CloseReason, ConnId, Event},
        role::Role,
    },
    wire::{
        Decoder, ErrorCode, FrameError, Message,
        header::FRAME_BYTES_MAX,
        message::{SubscribeItem, write_diff},
    },
};

use crate::moves::scene::{MS, Wire, at, record};

struct Scene {
    client: ClientState,
    wire: Wire,
    now: Nanos,
    conn: Option<ConnId>,
}

impl Scene {
    fn new(sessions: usize) -> Self {
        let config = ClientConfig { client: ClientId(7), ..ClientConfig::new((0..sessions).map(address)) };
        Self { client: ClientState::new(&config, 1), wire: Wire::default(), now: Nanos(1), conn: None }
    }

    /// Lets time pass until the client connects to somewhere; returns where and how long it took.
    fn next_connect(&mut self) -> (SocketAddr, u64) {
        let begin = self.now;
        loop {
            self.client.turn(self.now, &mut self.wire);
            for conn in std::mem::take(&mut self.wire.closed) {
                self.client.handle(Event::Closed { conn, reason: CloseReason::Local }, self.now);
            }
            if let Some((conn, addr)) = self.wire.connects.pop_front() {
                self.conn = Some(conn);
                return (addr, self.now.since(begin) / MS);
            }
            let wake = self.client.wake_at();
            assert!(wake.since(begin) < 60 * Nanos::SECOND, "it does not connect any more");
            self.now = self.now.max(wake);
        }
    }

    fn say(&mut self, message: &Message<'_>) {
        let mut bytes = Vec::new();
        message.write(&mut bytes);
        let conn = self.conn.unwrap();
        self.client.handle(Event::Received { conn, bytes: &bytes }, self.now);
        self.client.turn(self.now, &mut self.wire);
    }

    fn welcome(&mut self) {
        self.client.handle(Event::Connected { conn: self.conn.unwrap() }, self.now);
        self.say(&Message::Welcome { session: SessionId(3), publishers_max: 10, subscriptions_max: 10 });
    }

    fn fail(&mut self) {
        let conn = self.conn.take().unwrap();
        self.client.handle(Event::Closed { conn, reason: CloseReason::Reset }, self.now);
    }

    /// What the client subscribes to over this connection, and the attach counts of what it publishes.
    fn said(&mut self) -> (Vec<SubscribeItem>, Vec<u32>) {
        let (mut items, mut attached) = (Vec::new(), Vec::new());
        let bytes = self.wire.sent.remove(&self.conn.unwrap()).unwrap_or_default();
        let heard = Decoder::default().feed(&bytes, FRAME_BYTES_MAX, |frame| {
            match Message::read(frame)? {
                Message::Subscribe(more) => items.extend(more),
                Message::Write { entries, .. } => {
                    let changes = Message::entries(entries).map(|entry| entry.unwrap().change);
                    attached.extend(changes.map(|change| change.version.attach).filter(|attach| *attach > 0));
                }
                _ => {}
            }
            Ok::<_, FrameError>(())
        });
        heard.unwrap();
        (items, attached)
    }
}

fn address(session: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 1, session as u8], 7600))
}

#[test]
fn after_a_failure_it_resumes_elsewhere_by_revision() {
    let mut scene = Scene::new(3);
    let id = DataId::new("public", "default", "checkout").unwrap();
    scene.client.subscribe(&id);
    scene.client.publish(&id, "", "", b"a").unwrap();
    let (first, _) = scene.next_connect();
    scene.welcome();
    let (items, attached) = scene.said();
    assert_eq!((items[0].since, attached), (Revision::ZERO, vec![1]));
    let listed = record(&id, 5, b"b");
    let mut bytes = Vec::new();
    write_diff(&mut bytes, id.key().slot(4), |body| {
        let records = [Record::read(&listed).unwrap()];
        diff::write(body, id.key(), (Revision::ZERO, at(4, 9)), &[], None, records.into_iter());
        diff::SNAPSHOT
    });
    let conn = scene.conn.unwrap();
    scene.client.handle(Event::Received { conn, bytes: &bytes }, scene.now);
    scene.fail();
    let (second, pause) = scene.next_connect();
    assert!(second != first && (25..=75).contains(&pause), "{second} after {pause} ms");
    scene.welcome();
    let (items, attached) = scene.said();
    assert_eq!((items[0].since, attached), (at(4, 9), vec![2]), "it goes on from there, newly attached");
    assert_ne!(items[0].digest, 0);
    scene.fail();
    let (third, _) = scene.next_connect();
    assert!(third != first && third != second);
}

#[test]
fn all_sessions_are_tried_before_it_waits_longer() {
    let mut scene = Scene::new(3);
    let mut pauses = Vec::new();
    let mut seen = Vec::new();
    for _ in 0..9 {
        let (addr, pause) = scene.next_connect();
        pauses.push(pause);
        seen.push(addr);
        scene.fail();
    }
    assert_eq!(seen[..3], seen[3..6]);
    seen[..3].sort_unstable();
    assert_eq!(seen[..3], [0, 1, 2].map(address));
    let bounds =
        [(0, 0), (25, 75), (25, 75), (25, 75), (50, 150), (50, 150), (50, 150), (100, 300), (100, 300)];
    for (pause, (least, most)) in pauses.iter().zip(bounds) {
        assert!((least..=most).contains(pause), "{pauses:?}");
    }
}

#[test]
fn a_session_that_does_not_answer_costs_seconds_where_there_are_others() {
    for (sessions, most) in [(2, 3_100), (1, 10_100)] {
        let mut scene = Scene::new(sessions);
        scene.next_connect();
        let (_, pause) = scene.next_connect();
        assert!((most - 100..=most).contains(&pause), "{pause} ms with {sessions}");
    }
}

#[test]
fn a_session_that_is_full_does_not_keep_it_from_another() {
    let full = |retry_after_ms| Message::Error {
        code: ErrorCode::TooManyConnections as u16,
        retry_after_ms,
        text: "full",
    };
    let mut scene = Scene::new(2);
    for (attempt, bounds) in [(0, 25..=75), (1, 7025..=7075), (2, 7050..=7150)] {
        scene.next_connect();
        scene.client.handle(Event::Connected { conn: scene.conn.unwrap() }, scene.now);
        scene.say(&full(7000));
        let begin = scene.now;
        scene.fail();
        let (_, _) = scene.next_connect();
        let pause = scene.now.since(begin) / MS;
        assert!(bounds.contains(&pause), "attempt {attempt}: {pause} ms");
        // Hands the connection back to the next round of this loop.
        let conn = scene.conn.unwrap();
        scene.wire.connects.push_front((conn, address(0)));
    }
}
