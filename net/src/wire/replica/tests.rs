//! Every message there and back, as the page has it, cut at every byte, and wounded.

use proptest::prelude::*;

use super::*;
use crate::wire::header::{FRAME_BYTES_MAX, HEADER_BYTES};

const ENTRIES: [u8; 48] = [7; 48];

fn hello() -> ReplicaMessage<'static> {
    ReplicaMessage::Hello {
        protocol: 1,
        shard: 2,
        slot_count: 1024,
        node: NodeNumber(5),
        incarnation: 0x1122_3344_5566_7788,
        table_epoch: 9,
        cluster: "prod",
    }
}

fn follow() -> ReplicaMessage<'static> {
    let item = |slot, leader_epoch, since| FollowItem { slot: SlotId(slot), leader_epoch, since };
    ReplicaMessage::Follow(vec![item(3, 7, Revision(Revision::open(6).0 | 12)), item(4, 1, Revision::ZERO)])
}

fn part(lineage: usize) -> ReplicaMessage<'static> {
    ReplicaMessage::Part(ReplicaPart {
        slot: SlotId(3),
        is_first: lineage != 2,
        is_last: lineage > 0,
        revision: Revision::open(7).next(),
        lineage: (0..lineage as u32).map(|fork| Revision(Revision::open(fork + 1).0 | 10)).collect(),
        entries: &ENTRIES[..16],
    })
}

fn ack() -> ReplicaMessage<'static> {
    ReplicaMessage::Ack(vec![ReplicaAckItem {
        slot: SlotId(3),
        applied: Revision(Revision::open(7).0 | 9),
        durable: Revision(Revision::open(7).0 | 8),
    }])
}

fn messages() -> Vec<ReplicaMessage<'static>> {
    let batch = |batch| ReplicaMessage::Batch { slot: SlotId(3), after: Revision::open(7), batch };
    vec![
        hello(),
        ReplicaMessage::Welcome { incarnation: u64::MAX, table_epoch: 10 },
        follow(),
        ReplicaMessage::Follow(Vec::new()),
        ReplicaMessage::Unfollow(vec![SlotId(3), SlotId(1023)]),
        ReplicaMessage::Refused { slot: SlotId(3), code: ReplicaRefusal::OlderEpoch as u16, leader_epoch: 8 },
        batch(&ENTRIES),
        batch(&[]),
        part(0),
        part(1),
        part(2),
        part(LINEAGE_MAX),
        ack(),
        ReplicaMessage::Ack(Vec::new()),
        ReplicaMessage::Error { code: 7, retry_after_ms: 30, text: "of another cluster" },
        ReplicaMessage::Ping(1),
        ReplicaMessage::Pong(2),
    ]
}

fn encode(message: &ReplicaMessage<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.write(&mut bytes);
    bytes
}

fn frame(bytes: &[u8]) -> Frame<'_> {
    Frame::read(bytes, FRAME_BYTES_MAX).unwrap().unwrap()
}

/// The dump of that name on docs/formats.md.
fn dump(name: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/formats.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (_, rest) = page.split_once(&format!("```hex {name}\n")).expect("a dump of that name");
    let rows = rest.split_once("\n```").expect("an end of it").0.lines();
    let rows = rows.map(|row| row.split_once('|').map_or(row, |(bytes, _)| bytes).trim_end());
    rows.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_dumps_on_the_page_are_what_is_written() {
    let mut wrong = String::new();
    for (name, message) in
        [("replica-hello", hello()), ("follow", follow()), ("replica-part", part(1)), ("replica-ack", ack())]
    {
        let row = |(at, row): (usize, &[u8])| {
            let words: Vec<String> =
                row.chunks(4).map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
            format!("{:03x}: {}", at * 16, words.join(" "))
        };
        let written: Vec<String> = encode(&message).chunks(16).enumerate().map(row).collect();
        if dump(name) != written.join("\n") {
            wrong += &format!("the page's dump `{name}` should read\n{}\n", written.join("\n"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_message_is_read_as_it_was_written() {
    for message in messages() {
        let bytes = encode(&message);
        assert_eq!(ReplicaMessage::read(frame(&bytes)).unwrap(), message);
    }
}

#[test]
fn a_cut_message_is_refused_unless_only_padding_is_missing() {
    for message in messages() {
        let bytes = encode(&message);
        let whole = frame(&bytes);
        for cut in HEADER_BYTES..bytes.len() {
            match ReplicaMessage::read(Frame { bytes: &bytes[..cut], ..whole }) {
                Ok(read) => {
                    assert_eq!(read, message);
                    assert!(bytes[cut..].iter().all(|byte| *byte == 0), "cut at {cut}");
                }
                Err(error) => assert!(matches!(error, FrameError::Malformed(..)), "{error}"),
            }
        }
    }
}

#[test]
fn messages_of_other_connections_are_refused_on_both() {
    let mut bytes = Vec::new();
    Message::Goodbye.write(&mut bytes);
    assert!(ReplicaMessage::read(frame(&bytes)).is_err());
    let common = [Kind::Error, Kind::Ping, Kind::Pong];
    for message in messages() {
        let bytes = encode(&message);
        if !common.contains(&frame(&bytes).kind) {
            assert!(Message::read(frame(&bytes)).is_err());
            assert!(crate::wire::meta::MetaMessage::read(frame(&bytes)).is_err());
        }
    }
}

#[test]
fn refusals_are_told_apart_by_number_and_label() {
    for refusal in ReplicaRefusal::ALL {
        assert_eq!(ReplicaRefusal::from_number(refusal as u16), Some(refusal));
        let same = ReplicaRefusal::ALL.into_iter().filter(|other| other.label() == refusal.label());
        assert_eq!(same.count(), 1);
    }
    assert_eq!(ReplicaRefusal::from_number(0), None);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn wounded_messages_are_read_or_refused(
        which in any::<prop::sample::Index>(),
        wounds in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = encode(which.get(&messages()));
        let kind = frame(&bytes).kind;
        for (at, value) in wounds {
            let at = HEADER_BYTES + at.index(bytes.len() - HEADER_BYTES);
            bytes[at] = value;
        }
        // Whatever is read says again what was read.
        if let Ok(read) = ReplicaMessage::read(Frame { kind, flags: 0, slot: SlotId(3), bytes: &bytes }) {
            let again = encode(&read);
            prop_assert_eq!(ReplicaMessage::read(frame(&again)).unwrap(), read);
        }
    }
}
