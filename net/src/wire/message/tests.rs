//! Every message there and back, cut at every byte, and random bytes in their place.

use proptest::prelude::*;
use slotcast_engine::{
    batch::{Change, ChangeKind, Durability, write_change, write_name, write_put},
    diff,
    id::Version,
    record::{Encoder, Instance, Record},
};

use super::*;
use crate::wire::{
    codec::Decoder,
    header::{FRAME_BYTES_MAX, HEADER_BYTES, checksum},
};

/// Bytes of a frame's type.
const KINDS: [u8; 19] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 20, 21, 22, 23, 24, 25, 26];

fn id(service: &str) -> DataId {
    DataId::new("public", "default", service).unwrap()
}

fn record(datum: DatumKey, register: u64) -> Vec<u8> {
    let instance =
        Instance { client: 7, name: "host".into(), zone: "zone".into(), payload: vec![register as u8; 100] };
    Encoder::default().encode(datum, RegisterId(register), &instance).unwrap().to_vec()
}

fn change(kind: ChangeKind, register: u64) -> Change {
    Change {
        kind,
        durability: Durability::Ephemeral,
        datum: id("a").key(),
        register: RegisterId(register),
        version: Version { number: 3, attach: 2 },
        epoch: 1,
        owner: SessionId(9),
    }
}

fn change_entries() -> Vec<u8> {
    let mut out = Vec::new();
    write_name(&mut out, id("a").key(), id("a").as_bytes());
    let record = record(id("a").key(), 1);
    write_put(&mut out, &change(ChangeKind::Put, 1), Record::read(&record).unwrap());
    write_change(&mut out, &change(ChangeKind::Remove, 2));
    out
}

fn digests() -> [Digest; 2] {
    [Digest { sum: 1 << 63, count: 5 }, Digest { sum: 2, count: u64::MAX }]
}

/// A frame of every kind, some in several shapes.
fn frames() -> Vec<Vec<u8>> {
    let entries = change_entries();
    let items = ["a", "longer-service", "12345678"].map(|service| SubscribeItem {
        id: id(service),
        since: Revision(1 << 40 | 7),
        digest: 99,
    });
    let per_slot = vec![(SlotId(0), digests()[0]), (SlotId(1023), digests()[1])];
    let heartbeat_ack = |differs| Message::HeartbeatAck {
        mark: 5,
        confirmed: vec![(SessionId(1), 0), (SessionId(2), 7), (SessionId(3), 7)],
        unsettled: vec![(SlotId(9), 7)],
        settled: true,
        stale: false,
        table_epoch: 12,
        differs,
    };
    let messages = [
        Message::Hello { protocol: 1, client: ClientId(u64::MAX) },
        Message::Welcome { session: SessionId(3), publishers_max: 10, subscriptions_max: 20 },
        Message::Error { code: 5, retry_after_ms: 1500, text: "as many clients as this session takes" },
        Message::Error { code: 2, retry_after_ms: 0, text: "" },
        Message::Write { sequence: 8, entries: &entries },
        Message::Write { sequence: 9, entries: &[] },
        Message::Subscribe(items.to_vec()),
        Message::Subscribe(Vec::new()),
        Message::SubscribeRefused { datum: id("a").key(), code: Refusal::KeyCollision.code() },
        Message::Unsubscribe(vec![DatumKey(1), DatumKey(2), DatumKey(3)]),
        Message::Goodbye,
        Message::Ping(1),
        Message::Pong(u64::MAX),
        Message::LinkHello { protocol: 1, slot_count: 1024, session: SessionId(1), run: 2, epoch_seen: 3 },
        Message::LinkWelcome { run: 1, last_sequence: 2, epoch: 3, shard: 0, shards: 4, slot_count: 1024 },
        Message::Heartbeat { mark: 4, digest: digests()[0], routes: 6, table_epoch: 11 },
        heartbeat_ack(None),
        heartbeat_ack(Some(Vec::new())),
        heartbeat_ack(Some(per_slot)),
        Message::DigestRequest(SlotId(77)),
        Message::DatumDigests(SlotId(77), vec![(DatumKey(1), digests()[0]), (DatumKey(2), digests()[1])]),
        Message::Holds { datum: DatumKey(6), registers: vec![RegisterId(1), RegisterId(2)] },
    ];
    let mut frames: Vec<Vec<u8>> = messages.iter().map(encode).collect();
    let mut ack = Vec::new();
    write_ack(&mut ack, 4, &[Ok(Revision::open(1)), Err(Refusal::Superseded), Err(Refusal::Overloaded)]);
    frames.push(ack);
    for (is_snapshot, has_owners, puts, removes) in [
        (true, true, 3, 0),
        (true, true, 3, 2), // the reader was in another history, and two of three are unchanged
        (true, false, 0, 0),
        (false, true, 1, 2),
        (false, false, 2, 1),
    ] {
        let datum = id("a").key();
        let records: Vec<Vec<u8>> = (0..puts).map(|register| record(datum, register)).collect();
        let owners: Vec<SessionId> = (0..puts).map(SessionId).collect();
        let removed: Vec<RegisterId> = (10..10 + removes).map(RegisterId).collect();
        let mut frame = Vec::new();
        write_diff(&mut frame, SlotId(3), |body| {
            let records = records.iter().map(|record| Record::read(record).unwrap());
            let owners = has_owners.then_some(&owners[..]);
            diff::write(body, datum, (Revision(4), Revision(9)), &removed, owners, records);
            flags(is_snapshot, has_owners, is_snapshot && removes > 0)
        });
        frames.push(frame);
    }
    frames
}

fn flags(is_snapshot: bool, has_owners: bool, is_forked: bool) -> u8 {
    let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
    flag(is_snapshot, diff::SNAPSHOT) | flag(has_owners, diff::OWNERS) | flag(is_forked, diff::FORKED)
}

fn encode(message: &Message<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    message.write(&mut out);
    out
}

/// Writes what was read; a diff as its parts say.
fn encode_again(frame: Frame<'_>, message: &Message<'_>) -> Vec<u8> {
    let Message::Diff(diff) = message else { return encode(message) };
    let first: Vec<RegisterId> = diff.removes().chain(diff.unchanged()).collect();
    let is_forked = diff.unchanged().next().is_some();
    let owners: Option<Vec<SessionId>> = diff.owners().map(Iterator::collect);
    let puts: Vec<Record<'_>> = diff.puts().collect();
    assert_eq!(puts.len(), diff.put_count());
    let mut out = Vec::new();
    write_diff(&mut out, frame.slot, |body| {
        diff::write(body, diff.datum, (diff.from, diff.to), &first, owners.as_deref(), puts.into_iter());
        flags(diff.is_snapshot, owners.is_some(), is_forked)
    });
    out
}

/// Reads everything that a receiver would.
fn read_through(frame: Frame<'_>) -> Result<usize, FrameError> {
    let message = Message::read(frame)?;
    let counted = match &message {
        Message::Write { entries, .. } => Message::entries(entries)
            .filter_map(Result::ok)
            .map(|entry| {
                let valid = entry
                    .record()
                    .is_some_and(|record| record.instance().is_ok() | record.validate().is_ok());
                entry.name().map_or(0, <[u8]>::len) + usize::from(valid)
            })
            .sum(),
        Message::WriteAck { outcomes, .. } => outcomes.iter().filter(Result::is_ok).count(),
        _ => 0,
    };
    let _ = encode_again(frame, &message);
    Ok(counted)
}

fn seal(frame: &mut Vec<u8>) {
    frame.resize(frame.len().next_multiple_of(16), 0);
    let len = frame.len() as u32;
    frame[0..4].copy_from_slice(&len.to_le_bytes());
    let sum = checksum(frame);
    frame[8..16].copy_from_slice(&sum.to_le_bytes());
}

fn read_stream(bytes: &[u8], steps: &[usize]) -> Result<usize, FrameError> {
    let (mut decoder, mut rest, mut frames) = (Decoder::default(), bytes, 0);
    for step in steps.iter().cycle() {
        let (now, later) = rest.split_at((*step).clamp(1, rest.len().max(1)).min(rest.len()));
        decoder.feed(now, FRAME_BYTES_MAX, |frame| {
            frames += 1;
            read_through(frame).map(|_| ())
        })?;
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    assert!(decoder.held() <= bytes.len());
    Ok(frames)
}

#[test]
fn every_message_reads_back_as_written() {
    let mut kinds = Vec::new();
    for bytes in frames() {
        let frame = Frame::read(&bytes, FRAME_BYTES_MAX).unwrap().unwrap();
        let message = Message::read(frame).unwrap();
        assert_eq!((message.kind(), frame.bytes.len()), (frame.kind, bytes.len()));
        assert_eq!(encode_again(frame, &message), bytes, "{message:?}");
        kinds.push(frame.kind as u8);
    }
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, KINDS, "every kind is there");
}

#[test]
fn fields_keep_their_values() {
    let bytes = frames();
    let read = |bytes| Message::read(Frame::read(bytes, FRAME_BYTES_MAX).unwrap().unwrap()).unwrap();
    let find =
        |kind: Kind| bytes.iter().find(|frame| frame[4] == kind as u8).map(|frame| read(frame)).unwrap();
    let Message::Subscribe(items) = find(Kind::Subscribe) else { panic!() };
    assert_eq!((items.len(), &items[1].id, items[1].digest), (3, &id("longer-service"), 99));
    let Message::WriteAck { sequence: 4, outcomes } = find(Kind::WriteAck) else { panic!() };
    let told: Vec<_> = outcomes.iter().collect();
    assert_eq!(told, [Ok(Revision::open(1)), Err(Refusal::Superseded), Err(Refusal::Overloaded)]);
    let Message::Error { code: 5, retry_after_ms: 1500, text } = find(Kind::Error) else { panic!() };
    assert_eq!(text, "as many clients as this session takes");
    let Message::DatumDigests(SlotId(77), told) = find(Kind::DatumDigests) else { panic!() };
    assert_eq!(told, [(DatumKey(1), digests()[0]), (DatumKey(2), digests()[1])]);
}

#[test]
fn a_text_that_is_too_long_is_cut_between_characters() {
    let text = "ü".repeat(2000);
    let bytes = encode(&Message::Error { code: 1, retry_after_ms: 0, text: &text });
    let frame = Frame::read(&bytes, FRAME_BYTES_MAX).unwrap().unwrap();
    let Message::Error { text: told, .. } = Message::read(frame).unwrap() else { panic!() };
    assert_eq!(told, "ü".repeat(512));
}

#[test]
fn a_body_cut_anywhere_is_refused_or_lacks_padding_only() {
    for bytes in frames() {
        let whole = Frame::read(&bytes, FRAME_BYTES_MAX).unwrap().unwrap();
        let mut refused = 0;
        for cut in HEADER_BYTES..bytes.len() {
            let frame = Frame { bytes: &bytes[..cut], ..whole };
            match Message::read(frame) {
                Err(FrameError::Malformed(kind, _)) => {
                    refused += 1;
                    assert_eq!(kind, whole.kind);
                }
                Err(error) => panic!("{:?} cut at {cut}: {error}", whole.kind),
                Ok(message) => {
                    assert!(bytes[cut..].iter().all(|byte| *byte == 0), "{:?} cut at {cut}", whole.kind);
                    assert_eq!(encode_again(frame, &message), bytes, "{:?} cut at {cut}", whole.kind);
                }
            }
        }
        assert!(refused > 0 || bytes.len() == HEADER_BYTES, "{:?}", whole.kind);
    }
}

#[test]
fn counts_beyond_the_body_are_refused_before_memory_is_taken() {
    for bytes in frames() {
        let whole = Frame::read(&bytes, FRAME_BYTES_MAX).unwrap().unwrap();
        for at in (HEADER_BYTES..bytes.len()).step_by(4) {
            let mut broken = bytes.clone();
            broken[at..at + 4].copy_from_slice(&[0xff; 4]);
            let _ = read_through(Frame { bytes: &broken, ..whole });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 512 }))]

    #[test]
    fn random_bytes_are_read_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        steps in prop::collection::vec(1usize..300, 1..8),
    ) {
        let _ = read_stream(&bytes, &steps);
    }

    #[test]
    fn random_bodies_under_a_right_checksum_are_read_or_refused(
        kind in prop::sample::select(KINDS.to_vec()),
        flags in 0u8..128,
        slot in any::<u16>(),
        small in prop::collection::vec(prop_oneof![3 => Just(0u8), 2 => 0u8..4, 1 => any::<u8>()], 0..400),
        steps in prop::collection::vec(1usize..300, 1..8),
    ) {
        let mut frame = vec![0, 0, 0, 0, kind, flags];
        frame.extend_from_slice(&slot.to_le_bytes());
        frame.extend_from_slice(&[0; 8]);
        frame.extend_from_slice(&small);
        seal(&mut frame);
        let _ = read_stream(&frame, &steps);
    }

    #[test]
    fn mutated_messages_are_read_or_refused(
        which in any::<prop::sample::Index>(),
        wounds in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
        is_sealed in prop::bool::weighted(0.9),
        steps in prop::collection::vec(1usize..300, 1..8),
    ) {
        let mut frame = which.get(&frames()).clone();
        for (at, value) in wounds {
            let at = 4 + at.index(frame.len() - 4);
            frame[at] = value;
        }
        if is_cut {
            frame.truncate(HEADER_BYTES + cut.index(frame.len() - HEADER_BYTES + 1));
        }
        if is_sealed {
            seal(&mut frame);
        }
        let _ = read_stream(&frame, &steps);
    }

    #[test]
    fn a_stream_of_messages_is_read_whole_however_it_is_cut(
        order in prop::collection::vec(any::<prop::sample::Index>(), 1..12),
        steps in prop::collection::vec(1usize..300, 1..8),
    ) {
        let frames = frames();
        let stream: Vec<u8> = order.iter().flat_map(|which| which.get(&frames).clone()).collect();
        prop_assert_eq!(read_stream(&stream, &steps).unwrap(), order.len());
    }
}
