//! Batches: what a leader seals, a follower applies. And no damaged byte of one goes unnoticed.

use std::collections::BTreeMap;

use proptest::prelude::*;
use slotcast_engine::{
    batch::{Batch, BatchError, ChangeKind, ENTRY_BYTES, Entry, HEADER_BYTES, entries},
    change_log::ChangeLogLimits,
    id::{DataId, Nanos, RegisterId, Revision, SessionId, SlotId},
    slot::Slot,
};

use crate::{
    model::proptest_config,
    support::{Frame, data_id, list_of, version},
};

const SESSIONS: u64 = 3;

fn slot(seed: u64) -> Slot {
    Slot::open(SlotId(3), 5, 2, seed, ChangeLogLimits { entries_max: 4, age_max: u64::MAX })
}

/// What a session may ask of a leader, and what ends things there.
#[derive(Clone, Debug)]
enum Write {
    Put { datum: usize, register: u64, number: u64, attach: u32, session: u64, payload: Vec<u8> },
    Remove { datum: usize, register: u64, number: u64, session: u64 },
    EndSession { session: u64 },
    Forget,
    Seal,
}

fn write() -> impl Strategy<Value = Write> {
    let (datum, register, session) = (|| 0..3usize, || 0..5u64, || 1..=SESSIONS);
    let payload = prop::collection::vec(0..3u8, 0..3);
    prop_oneof![
        10 => (datum(), register(), 0..6u64, 0..3u32, session(), payload).prop_map(
            |(datum, register, number, attach, session, payload)| Write::Put {
                datum, register, number, attach, session, payload
            }
        ),
        5 => (datum(), register(), 0..6u64, session())
            .prop_map(|(datum, register, number, session)| Write::Remove { datum, register, number, session }),
        1 => session().prop_map(|session| Write::EndSession { session }),
        1 => Just(Write::Forget),
        6 => Just(Write::Seal),
    ]
}

fn admit(leader: &mut Slot, ids: &[DataId], write: &Write, mark: u64) {
    match write {
        Write::Put { datum, register, number, attach, session, payload } => {
            let (id, client) = (&ids[*datum], register + 100);
            let frame =
                Frame::of(*session).name(id).put(id, *register, version(*number, *attach), client, payload);
            let mut told = entries(&frame.bytes).map(|entry| entry.expect("just written"));
            let (name, put) = (told.next().expect("a name"), told.next().expect("a put"));
            leader.admit_name(name).expect("no names collide");
            let _ = leader.admit_put(put, client);
        }
        Write::Remove { datum, register, number, session } => {
            let frame = Frame::of(*session).remove(&ids[*datum], *register, version(*number, 9));
            let _ = leader.admit_remove(&Entry::read(&frame.bytes).expect("just written").change, mark);
        }
        Write::EndSession { session } => _ = leader.remove_session(SessionId(*session), mark, usize::MAX),
        Write::Forget => _ = leader.forget_tombstones(mark, usize::MAX),
        Write::Seal => {}
    }
}

proptest! {
    #![proptest_config(proptest_config())]

    #[test]
    fn a_follower_that_applies_the_sealed_batches_is_the_leaders_equal(
        writes in prop::collection::vec(write(), 1..120),
    ) {
        let ids: Vec<DataId> = (0..3).map(|index| data_id(&format!("service-{index}"))).collect();
        // Another seed: equal contents may not hang on equal indexes.
        let (mut leader, mut follower) = (slot(1), slot(2));
        let mut revision = leader.revision();
        for (at, write) in writes.iter().chain([&Write::Seal]).enumerate() {
            let mark = at as u64;
            admit(&mut leader, &ids, write, mark);
            if !matches!(write, Write::Seal) {
                continue;
            }
            let Some(sealed) = leader.seal(Nanos(mark)) else { continue };
            let batch = Batch::read(&sealed.batch).expect("just sealed");
            prop_assert_eq!((batch.previous(), batch.revision()), (revision, leader.revision()));
            revision = batch.revision();
            let owned = |slot: &Slot, id: &DataId| {
                let owners: BTreeMap<_, _> =
                    slot.records(id.key()).map(|(record, owner)| (record.register(), owner)).collect();
                (list_of(slot, id.key()), owners)
            };
            let before: Vec<_> = ids.iter().map(|id| owned(&follower, id)).collect();
            for entry in batch.entries() {
                follower.apply(entry.expect("just sealed"), mark);
            }
            for (id, before) in ids.iter().zip(before) {
                let now = owned(&follower, id);
                // The leader says which lists or owners a batch changed, no more and no fewer.
                prop_assert_eq!(sealed.changed.contains(&id.key()), now != before);
                prop_assert_eq!(now, owned(&leader, id));
                for register in 0..5 {
                    let place = (id.key(), RegisterId(register));
                    prop_assert_eq!(follower.version(place.0, place.1), leader.version(place.0, place.1));
                    let owners = [&leader, &follower].map(|slot| slot.get(place.0, place.1).map(|(_, owner)| owner));
                    prop_assert_eq!(owners[0], owners[1]);
                }
            }
            prop_assert_eq!(follower.digest(), leader.digest());
            for session in (1..=SESSIONS).map(SessionId) {
                prop_assert_eq!(follower.session_digest(session), leader.session_digest(session));
                prop_assert_eq!(
                    follower.session_datum_digests(session),
                    leader.session_datum_digests(session)
                );
            }
            let (theirs, ours) = (leader.counts(), follower.counts());
            prop_assert_eq!((ours.publishers, ours.tombstones), (theirs.publishers, theirs.tombstones));
        }
    }
}

/// A batch with one entry of each kind.
fn sealed() -> Vec<u8> {
    let (mut leader, id) = (slot(1), data_id("checkout"));
    let frame = Frame::of(1)
        .name(&id)
        .put(&id, 1, version(1, 1), 10, b"one")
        .put(&id, 2, version(1, 1), 20, b"two")
        .put(&id, 1, version(2, 1), 10, b"one");
    for entry in entries(&frame.bytes).map(|entry| entry.expect("just written")) {
        match entry.record() {
            None => leader.admit_name(entry).expect("the first name"),
            Some(_) => {
                let client = entry.change.register.0 * 10;
                leader.admit_put(entry, client).expect("newer and newer");
            }
        }
    }
    leader.remove_session(SessionId(1), 4, 1);
    leader.forget_tombstones(5, 1);
    leader.seal(Nanos(7)).expect("something to seal").batch
}

#[test]
fn a_batch_reads_back_as_it_was_sealed() {
    let bytes = sealed();
    let batch = Batch::read(&bytes).unwrap();
    let opened = Revision::open(5);
    assert_eq!((batch.slot(), batch.changes()), (SlotId(3), 6));
    assert_eq!((batch.previous(), batch.revision()), (opened, opened.next()));
    let kinds: Vec<ChangeKind> = batch.entries().map(|entry| entry.unwrap().change.kind).collect();
    use ChangeKind::{Expire, Forget, Name, Put, Touch};
    assert_eq!(kinds, [Name, Put, Put, Touch, Expire, Forget]);
    let lengths: usize = batch.entries().map(|entry| entry.unwrap().bytes().len()).sum();
    assert_eq!(bytes.len(), HEADER_BYTES + lengths);
    let put = batch.entries().nth(1).unwrap().unwrap();
    assert_eq!(put.record().unwrap().instance().unwrap().payload, b"one");
    assert_eq!((put.change.owner, put.change.version), (SessionId(1), version(1, 1)));
}

#[test]
fn every_cut_and_every_flipped_byte_of_a_batch_is_noticed() {
    let bytes = sealed();
    for cut in 0..bytes.len() {
        assert!(Batch::read(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut broken = bytes.clone();
            broken[at] ^= flip;
            assert!(Batch::read(&broken).is_err(), "byte {at} by {flip:#x}");
        }
    }
}

#[test]
fn what_follows_a_batch_is_not_part_of_it() {
    let mut bytes = sealed();
    let len = bytes.len();
    bytes.extend_from_slice(&[0xee; 100]);
    let batch = Batch::read(&bytes).unwrap();
    assert_eq!(batch.entries().filter(|entry| entry.is_ok()).count(), 6);
    assert_eq!(batch.entries().filter(|entry| entry.is_err()).count(), 0);
    assert_eq!(Batch::read(&bytes[len..]).err(), Some(BatchError::Magic));
}

#[test]
fn an_entry_that_lies_about_itself_is_refused() {
    let id = data_id("checkout");
    let put = Frame::of(1).put(&id, 1, version(1, 1), 10, b"payload").bytes;
    let name = Frame::of(1).name(&id).bytes;
    let remove = Frame::of(1).remove(&id, 1, version(1, 1)).bytes;
    let with = |bytes: &[u8], at: usize, value: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = value;
        Entry::read(&bytes).err()
    };
    assert_eq!(with(&put, 0, 9), Some(BatchError::Unknown { kind: 9, durability: 0 }));
    assert_eq!(with(&put, 1, 7), Some(BatchError::Unknown { kind: 1, durability: 7 }));
    assert_eq!(with(&put, 8, put[8] ^ 1), Some(BatchError::KeyMismatch), "another data id");
    assert_eq!(with(&put, 16, put[16] ^ 1), Some(BatchError::KeyMismatch), "another registration");
    assert!(matches!(with(&put, ENTRY_BYTES, 1), Some(BatchError::Record(_))), "a record of odd length");
    assert!(matches!(with(&put, 4, put[4] - 16), Some(BatchError::Record(_))), "shorter than its record");
    assert!(matches!(with(&put, 7, 0x7f), Some(BatchError::Length(_))), "longer than the frame");
    assert!(matches!(with(&name, 24, name[24] + 16), Some(BatchError::Length(_))), "a longer name");
    assert!(matches!(with(&name, 31, 0xff), Some(BatchError::Length(_))), "an endless name");
    assert!(matches!(with(&remove, 0, ChangeKind::Put as u8), Some(BatchError::Record(_))), "no record");
    assert!(matches!(with(&put, 0, ChangeKind::Remove as u8), Some(BatchError::Length(_))), "too much");
    assert!(matches!(with(&put, 0, ChangeKind::Expire as u8), Some(BatchError::Length(_))), "too much");
    for bytes in [&put, &name, &remove] {
        assert!(Entry::read(bytes).is_ok());
        for cut in 0..bytes.len() {
            assert!(Entry::read(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
