//! A link by itself: whom it tries and when, what it takes and what it refuses.

use super::*;
use crate::wire::{Message, codec::Frame, slot_table::NodeEntry};

const MS: u64 = Nanos::SECOND / 1000;

fn metas(count: u16) -> Vec<SocketAddr> {
    (1..=count).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect()
}

fn node() -> MetaPeer {
    MetaPeer::Data(Arc::new(NodeEntry {
        id: "a".into(),
        incarnation: 1,
        zone: "".into(),
        ip: [127, 0, 0, 1].into(),
        ports: vec![1],
        http: 0,
        draining: false,
    }))
}

fn table(epoch: u64, maker: u64) -> SlotTable {
    SlotTable { epoch, maker, ..SlotTable::empty("c", 4) }
}

fn link(metas_count: u16, held: u64) -> MetaLink {
    MetaLink::new(MetaLinkConfig::new(metas(metas_count), "c", 4, node()), Arc::new(table(held, 1)), 0)
}

fn tell(link: &mut MetaLink, message: &MetaMessage) {
    let mut bytes = Vec::new();
    message.write(&mut bytes);
    link.handle_bytes(&bytes);
}

fn ack(sequence: u64, report: u64, wants_table: bool) -> MetaMessage {
    MetaMessage::HeartbeatAck { sequence, table_epoch: 0, report, lease_ms: 2000, wants_table }
}

/// The messages that are sent now.
fn sent(link: &mut MetaLink, now: Nanos) -> Vec<MetaMessage> {
    let mut messages = Vec::new();
    while let Some(action) = link.poll(now, 0) {
        let LinkAction::Send(mut bytes) = action else { panic!("{action:?}") };
        while let Some(frame) = Frame::read(&bytes, FRAME_BYTES_MAX).unwrap() {
            messages.push(MetaMessage::read(frame).unwrap());
            let length = frame.bytes.len();
            bytes.drain(..length);
        }
    }
    messages
}

fn connected(held: u64) -> MetaLink {
    let mut link = link(1, held);
    assert_eq!(link.poll(Nanos(1), 0), Some(LinkAction::Connect(metas(1)[0])));
    link.handle_connected(Nanos(1));
    link
}

#[test]
fn all_processes_are_tried_in_turn_with_growing_waits_that_jitter_spreads() {
    let mut link = link(3, 0);
    let (mut now, mut tried, mut waits) = (Nanos(1), Vec::new(), Vec::new());
    while tried.len() < 30 {
        match link.poll(now, u64::MAX) {
            Some(LinkAction::Connect(addr)) => {
                tried.push(addr.port());
                link.handle_closed(now, tried.len() as u64 * 7_919_317);
                waits.push(link.wake_at().since(now));
            }
            Some(action) => panic!("{action:?}"),
            None => now = link.wake_at(),
        }
    }
    assert_eq!(tried[..6], [1, 2, 3, 1, 2, 3]);
    assert!(waits[..3].iter().all(|wait| (25 * MS..=50 * MS).contains(wait)), "{waits:?}");
    assert!(waits[24..].iter().all(|wait| (333 * MS..=667 * MS).contains(wait)), "{waits:?}");
    assert!(waits[24..].windows(2).any(|pair| pair[0] != pair[1]), "jitter");
}

#[test]
fn each_process_is_tried_in_time_also_after_a_long_search_while_two_do_not_answer() {
    let mut link = link(3, 0);
    // The longest waits that there can be.
    let (mut now, mut last, jitter) = (Nanos(1), Nanos(0), RETRY_MAX / 6);
    while now < Nanos(120 * Nanos::SECOND) {
        match link.poll(now, jitter) {
            Some(LinkAction::Connect(addr)) if addr == metas(3)[2] => {
                assert!(now.since(last) <= FIND_MAX, "{} ms", now.since(last) / MS);
                last = now;
                link.handle_closed(now, jitter);
            }
            Some(LinkAction::Connect(_) | LinkAction::Close) => {}
            Some(action) => panic!("{action:?}"),
            None => now = link.wake_at(),
        }
    }
    assert!(now.since(last) <= FIND_MAX);
}

#[test]
fn a_process_that_does_not_answer_is_left() {
    let mut link = link(2, 0);
    assert_eq!(link.poll(Nanos(1), 0), Some(LinkAction::Connect(metas(2)[0])));
    assert_eq!(link.poll(Nanos(999 * MS), 0), None);
    assert_eq!(link.poll(Nanos(1001 * MS), 0), Some(LinkAction::Close), "the connect");
    let now = link.wake_at();
    assert_eq!(link.poll(now, 0), Some(LinkAction::Connect(metas(2)[1])));
    link.handle_connected(now);
    assert_eq!(sent(&mut link, now).len(), 2);
    sent(&mut link, now.after(900 * MS));
    assert_eq!(link.poll(now.after(1000 * MS), 0), Some(LinkAction::Close), "the heartbeat");
    assert_eq!(link.last_fault, Some(LinkFault::Silent));
}

#[test]
fn the_lease_counts_from_when_the_heartbeat_was_sent() {
    let mut link = connected(0);
    sent(&mut link, Nanos(1));
    assert!(!link.holds_lease(Nanos(1)));
    sent(&mut link, Nanos(400 * MS));
    tell(&mut link, &ack(1, 0, false));
    assert!(link.holds_lease(Nanos(1999 * MS)) && !link.holds_lease(Nanos(2001 * MS)));
    tell(&mut link, &ack(2, 0, false));
    assert!(link.holds_lease(Nanos(2399 * MS)) && !link.holds_lease(Nanos(2401 * MS)));
    link.handle_closed(Nanos(500 * MS), 0);
    assert!(link.holds_lease(Nanos(2399 * MS)), "it outlives the connection");
}

#[test]
fn reports_are_told_until_they_are_acknowledged() {
    let mut link = connected(0);
    let reports = |messages: Vec<MetaMessage>| {
        messages.iter().any(|it| matches!(it, MetaMessage::Heartbeat { slots: Some(_), .. }))
    };
    assert!(reports(sent(&mut link, Nanos(1))));
    assert!(reports(sent(&mut link, Nanos(300 * MS + 1))));
    tell(&mut link, &ack(2, 1, false));
    assert!(!reports(sent(&mut link, Nanos(700 * MS))));
    link.set_slots(1, vec![]);
    assert!(sent(&mut link, Nanos(701 * MS)).is_empty(), "nothing is new");
    let state = crate::wire::meta::HeldState::Accept;
    let slot = slotcast_engine::id::SlotId(1);
    link.set_slots(
        1,
        vec![SlotReport {
            slot,
            state,
            is_whole: false,
            has_persistent: false,
            leader_epoch: 1,
            in_sync: vec![],
        }],
    );
    assert!(reports(sent(&mut link, Nanos(702 * MS))), "news goes at once");
}

#[test]
fn the_newest_table_is_kept_and_an_older_one_refused() {
    let mut link = connected(5);
    tell(&mut link, &MetaMessage::TableDelta(table(7, 1).delta_since(&table(5, 1))));
    assert_eq!(link.take_news().unwrap().epoch, 7);
    assert!(link.take_news().is_none());
    tell(&mut link, &MetaMessage::TableDelta(table(6, 1).whole()));
    assert_eq!((link.table().epoch, link.older_refused), (7, 1));
    assert!(matches!(link.last_fault, Some(LinkFault::Table(TableError::Older { told: 6, held: 7 }))));
    assert_eq!(link.poll(Nanos(2), 0), Some(LinkAction::Close));
}

#[test]
fn a_delta_over_another_table_is_not_applied_and_the_whole_asked_for() {
    // The same epoch, but made by another run of the control plane.
    let mut link = connected(5);
    tell(&mut link, &MetaMessage::TableDelta(table(7, 2).delta_since(&table(5, 2))));
    assert_eq!(link.table().epoch, 5);
    assert_eq!(link.poll(Nanos(2), 0), Some(LinkAction::Close));
    let now = link.wake_at();
    link.poll(now, 0);
    link.handle_connected(now);
    let hello = sent(&mut link, now);
    assert!(matches!(hello[0], MetaMessage::Hello { table_epoch: 0, .. }), "{hello:?}");
    tell(&mut link, &MetaMessage::TableDelta(table(7, 2).whole()));
    assert_eq!((link.table().epoch, link.table().maker), (7, 2));
}

#[test]
fn the_table_is_offered_to_whoever_asks_for_it() {
    let mut link = connected(5);
    sent(&mut link, Nanos(1));
    tell(&mut link, &ack(1, 1, true));
    let offered = sent(&mut link, Nanos(2));
    assert_eq!(offered, [MetaMessage::TableOffer(table(5, 1).whole())]);
}

#[test]
fn refusals_and_nonsense_end_the_connection_and_change_nothing() {
    let mut link = connected(5);
    tell(&mut link, &MetaMessage::Error { code: 21, retry_after_ms: 0, text: "twin".into() });
    let fault = link.last_fault.clone().unwrap().to_string();
    assert!(fault.contains("duplicate_node") && fault.contains("twin"), "{fault}");
    assert_eq!(link.poll(Nanos(2), 0), Some(LinkAction::Close));
    let mut link = connected(5);
    tell(&mut link, &MetaMessage::Watch { sequence: 1, table_epoch: 1 });
    assert_eq!(link.last_fault, Some(LinkFault::Unexpected));
    let mut link = connected(5);
    let mut bytes = Vec::new();
    Message::Ping(3).write(&mut bytes);
    link.handle_bytes(&bytes);
    assert!(matches!(link.last_fault, Some(LinkFault::Frame(_))));
    assert_eq!(link.table().epoch, 5);
}
