//! Every message there and back, cut at every byte, and wounded.

use proptest::prelude::*;

use super::*;
use crate::wire::{
    header::{FRAME_BYTES_MAX, HEADER_BYTES},
    slot_table::{Member, SlotTable},
};

fn node() -> Arc<NodeEntry> {
    Arc::new(NodeEntry {
        id: "data-1".into(),
        incarnation: u64::MAX,
        zone: "z".into(),
        ip: [10, 0, 0, 1].into(),
        ports: vec![1, 65535],
        http: 9,
        draining: true,
    })
}

fn messages() -> Vec<MetaMessage> {
    let mut table = SlotTable { epoch: 1 << 61, maker: 5, next_number: 1, ..SlotTable::empty("c", 4) };
    table.nodes.insert(NodeNumber(0), node());
    table.slots[3].leader_epoch = 7;
    table.slots[3].push(Member::new(NodeNumber(0)).with_in_sync(true));
    let report = |slot, state, in_sync: &[u32]| SlotReport {
        slot: SlotId(slot),
        state,
        is_whole: slot == 1,
        has_persistent: slot == 3,
        leader_epoch: 9,
        in_sync: in_sync.iter().copied().map(NodeNumber).collect(),
    };
    let slots = vec![
        report(1, HeldState::Accept, &[1, 2]),
        report(2, HeldState::Following, &[]),
        report(3, HeldState::Migrating, &[7]),
        report(4, HeldState::Moved, &[]),
    ];
    let hello = |peer| MetaMessage::Hello {
        protocol: 1,
        slot_count: 1024,
        table_epoch: 8,
        cluster: "prod".into(),
        peer,
    };
    let heartbeat = |ending, slots| MetaMessage::Heartbeat {
        sequence: 3,
        table_epoch: 4,
        load: NodeLoad { publishers: 5, bytes: 6, cpu_permille: 7 },
        ending,
        report: 8,
        reported_epoch: 4,
        slots,
    };
    let ack = |wants_table| MetaMessage::HeartbeatAck {
        sequence: 1,
        table_epoch: 2,
        report: 3,
        lease_ms: 4,
        wants_table,
    };
    vec![
        hello(MetaPeer::Session),
        hello(MetaPeer::Serving(([10, 0, 0, 5], 7609).into())),
        hello(MetaPeer::Data(node())),
        heartbeat(true, None),
        heartbeat(false, Some(Vec::new())),
        heartbeat(false, Some(slots)),
        ack(true),
        ack(false),
        MetaMessage::TableDelta(table.whole()),
        MetaMessage::TableOffer(table.whole()),
        MetaMessage::Watch { sequence: 1, table_epoch: 2 },
        MetaMessage::Error { code: 20, retry_after_ms: 30, text: "ask another".into() },
    ]
}

#[test]
fn every_message_is_read_as_it_was_written() {
    for message in messages() {
        let mut bytes = Vec::new();
        message.write(&mut bytes);
        let frame = Frame::read(&bytes, FRAME_BYTES_MAX).unwrap().unwrap();
        assert_eq!(MetaMessage::read(frame).unwrap(), message);
    }
}

#[test]
fn a_cut_message_is_refused_unless_only_padding_is_missing() {
    for message in messages() {
        let mut bytes = Vec::new();
        message.write(&mut bytes);
        let whole = Frame::read(&bytes, FRAME_BYTES_MAX).unwrap().unwrap();
        for cut in HEADER_BYTES..bytes.len() {
            match MetaMessage::read(Frame { bytes: &bytes[..cut], ..whole }) {
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
    Message::Ping(1).write(&mut bytes);
    assert!(MetaMessage::read(Frame::read(&bytes, FRAME_BYTES_MAX).unwrap().unwrap()).is_err());
    for message in messages().iter().filter(|message| !matches!(message, MetaMessage::Error { .. })) {
        bytes.clear();
        message.write(&mut bytes);
        assert!(Message::read(Frame::read(&bytes, FRAME_BYTES_MAX).unwrap().unwrap()).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn wounded_messages_are_read_or_refused(
        which in any::<prop::sample::Index>(),
        wounds in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = Vec::new();
        which.get(&messages()).write(&mut bytes);
        let kind = Frame::read(&bytes, FRAME_BYTES_MAX).unwrap().unwrap().kind;
        for (at, value) in wounds {
            let at = HEADER_BYTES + at.index(bytes.len() - HEADER_BYTES);
            bytes[at] = value;
        }
        let _ = MetaMessage::read(Frame { kind, flags: 0, slot: SlotId::NONE, bytes: &bytes });
    }
}
