//! Persistent registrations: acknowledged when they are durable, owned by nobody, gone only by request.

use std::collections::BTreeSet;

use slotcast_engine::{
    digest::Digest,
    disk_op::{DiskDone, DiskOp, DiskRequest},
    error::Refusal,
    id::{DataId, Nanos, ReaderId, RegisterId, Revision, SessionId},
    memory_disk::MemoryDisk,
    storage::StorageState,
};

use crate::{
    disk::{Kept, recovered},
    support::{Frame, LEASE, data_id, version},
};

type Outcomes = Vec<Result<Revision, Refusal>>;

fn start(memory: MemoryDisk) -> Kept {
    Kept::start_leased(memory, (64 * 1024, u64::MAX), LEASE)
}

/// Entries of registrations that nobody owns.
fn persistent() -> Frame {
    Frame::of(0)
}

/// Sends a frame and leaves the disk alone.
fn send(kept: &mut Kept, frame: &Frame) -> u64 {
    kept.sequence += 1;
    kept.shard.handle_write(ReaderId(1), kept.sequence, &frame.bytes, kept.now).expect("taken");
    kept.sequence
}

fn acks(kept: &mut Kept) -> Vec<(u64, Outcomes)> {
    std::iter::from_fn(|| kept.shard.poll_ack()).map(|ack| (ack.sequence, ack.outcomes)).collect()
}

/// Sends a frame, lets the disk do what it can at once, and returns the outcomes.
fn write(kept: &mut Kept, frame: &Frame) -> Outcomes {
    let sequence = send(kept, frame);
    kept.disk();
    let mut told = acks(kept);
    assert_eq!((told.len(), told[0].0), (1, sequence));
    told.remove(0).1
}

fn refusals(outcomes: &Outcomes) -> Vec<Option<Refusal>> {
    outcomes.iter().map(|outcome| outcome.err()).collect()
}

fn requests(kept: &mut Kept) -> Vec<DiskRequest> {
    kept.shard.seal(kept.now);
    std::iter::from_fn(|| kept.shard.poll_disk(kept.now)).collect()
}

fn done(kept: &mut Kept, request: DiskRequest) {
    kept.memory.run(&request.op).expect("a disk with room");
    kept.shard.handle_disk(&DiskDone { id: request.id, result: Ok(()) }, kept.now);
}

/// Register ids of a data id with whether they are persistent.
fn held(kept: &Kept, id: &DataId) -> Vec<(u64, bool)> {
    let slot = kept.shard.slots().find(|slot| slot.id() == id.key().slot(8)).expect("a slot held here");
    let mut held: Vec<_> = slot
        .records(id.key())
        .map(|(record, owner)| (record.register().0, owner == SessionId::NOBODY))
        .collect();
    held.sort_unstable();
    held
}

#[test]
fn an_acknowledgement_waits_for_the_disk_and_nothing_else_waits_for_it() {
    let (mut kept, id) = (start(MemoryDisk::default()), data_id("kept"));
    kept.shard.handle_interest(ReaderId(1), &id, Revision::ZERO).expect("a slot held here");
    let lasting = send(&mut kept, &persistent().name(&id).put(&id, 1, version(1, 0), 7, b"lasting"));
    let passing = send(&mut kept, &Frame::of(1).put(&id, 2, version(1, 0), 8, b"passing"));
    let asked = requests(&mut kept);
    assert!(matches!(asked.last().map(|request| &request.op), Some(DiskOp::Sync { .. })), "{asked:?}");
    // The later frame is acknowledged, and both are pushed.
    let told = acks(&mut kept);
    assert_eq!(told.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), [passing]);
    let mut pushed = Vec::new();
    kept.shard.poll_push(|push| pushed.extend(push.answer.puts.iter().map(|(put, _)| put.register().0)));
    pushed.sort_unstable();
    assert_eq!(pushed, [1, 2]);
    for request in asked {
        assert_eq!(acks(&mut kept), [], "before {:?}", request.op);
        assert_eq!(kept.shard.awaiting_disk(), 1);
        done(&mut kept, request);
    }
    let told = acks(&mut kept);
    assert_eq!((told.len(), told[0].0), (1, lasting));
    assert!(told[0].1[0].is_ok());
    assert_eq!(kept.shard.awaiting_disk(), 0);
}

#[test]
fn what_comes_while_the_disk_is_busy_is_written_together_as_soon_as_it_is_free() {
    let (mut kept, id) = (start(MemoryDisk::default()), data_id("kept"));
    send(&mut kept, &persistent().name(&id).put(&id, 1, version(1, 0), 7, b"1"));
    let first = requests(&mut kept);
    for register in 2..10 {
        send(&mut kept, &persistent().put(&id, register, version(1, 0), 7, b"more"));
        assert_eq!(requests(&mut kept), [], "one block at a time");
    }
    first.into_iter().for_each(|request| done(&mut kept, request));
    assert_eq!(acks(&mut kept).len(), 1);
    // No time has passed.
    let second = requests(&mut kept);
    let writes = second.iter().filter(|request| matches!(request.op, DiskOp::Write { .. }));
    assert_eq!(writes.count(), 1);
    second.into_iter().for_each(|request| done(&mut kept, request));
    assert_eq!(acks(&mut kept).len(), 8);
}

#[test]
fn no_session_takes_a_persistent_registration_along_however_it_ends() {
    let (mut kept, id) = (start(MemoryDisk::default()), data_id("kept"));
    let mut frame = persistent().name(&id).put(&id, 1, version(1, 0), 7, b"lasting");
    frame.bytes.extend_from_slice(&Frame::of(1).put(&id, 2, version(1, 1), 7, b"passing").bytes);
    assert!(write(&mut kept, &frame).iter().all(Result::is_ok));
    assert_eq!(held(&kept, &id), [(1, true), (2, false)]);
    // The session's account of itself does not name it.
    let removed = kept.shard.handle_holds(ReaderId(1), id.key(), &BTreeSet::from([RegisterId(2)]));
    assert_eq!(removed, Ok(0));
    assert_eq!(kept.shard.handle_holds(ReaderId(1), id.key(), &BTreeSet::new()), Ok(1));
    kept.disk();
    let answer = kept.shard.handle_heartbeat(ReaderId(1), 0, Digest::default(), 0, kept.now).expect("alive");
    assert_eq!(answer.differs, None, "an empty account agrees");
    kept.shard.handle_goodbye(ReaderId(1));
    kept.settle();
    assert_eq!(held(&kept, &id), [(1, true)]);
    // Neither does a lease begin or end with a restart.
    for _ in 0..2 {
        kept = start(kept.memory);
        assert_eq!(held(&kept, &id), [(1, true)]);
        let end = kept.now.after(3 * LEASE);
        while kept.now < end {
            kept.now = kept.now.after(Nanos::SECOND / 2);
            kept.shard.tick(kept.now);
            kept.disk();
        }
        assert_eq!(kept.shard.stats().leases_ended, 1, "the session of this test");
        assert_eq!(held(&kept, &id), [(1, true)]);
    }
    assert!(kept.shard.handle_link_open(ReaderId(9), SessionId::NOBODY, 0, true, kept.now).is_err());
}

#[test]
fn snapshots_keep_the_class() {
    let mut kept = Kept::start_leased(MemoryDisk::default(), (16 * 1024, 16 * 1024), LEASE);
    let id = data_id("kept");
    write(&mut kept, &persistent().name(&id).put(&id, 1, version(1, 0), 7, b"lasting"));
    write(&mut kept, &persistent().put(&id, 2, version(1, 0), 7, b"removed").remove(&id, 2, version(2, 0)));
    for round in 0..40 {
        kept.fill(round * 100, 10);
    }
    assert!(!kept.memory.names(".scs").is_empty());
    let kept = start(kept.memory);
    assert_eq!(held(&kept, &id), [(1, true)]);
}

#[test]
fn whoever_names_it_with_a_version_that_is_not_smaller_removes_it() {
    let (mut kept, id) = (start(MemoryDisk::default()), data_id("kept"));
    kept.shard.handle_link_open(ReaderId(2), SessionId(2), 0, true, kept.now).expect("a session");
    write(&mut kept, &persistent().name(&id).put(&id, 1, version(5, 0), 7, b"a"));
    let smaller = write(&mut kept, &persistent().remove(&id, 1, version(4, 9)));
    assert_eq!(refusals(&smaller), [Some(Refusal::Superseded)]);
    // Over another session than it came.
    let removal = persistent().remove(&id, 1, version(5, 0));
    kept.shard.handle_write(ReaderId(2), 1, &removal.bytes, kept.now).expect("taken");
    let asked = requests(&mut kept);
    assert_eq!(acks(&mut kept), [], "a removal waits for the disk, too");
    asked.into_iter().for_each(|request| done(&mut kept, request));
    assert!(acks(&mut kept)[0].1[0].is_ok());
    assert_eq!(held(&kept, &id), []);
    let late = write(&mut kept, &persistent().put(&id, 1, version(5, 0), 7, b"a"));
    assert_eq!(refusals(&late), [Some(Refusal::Superseded)]);
    let (lists, _) = recovered(&kept.memory, 1).expect("a good directory");
    assert!(lists.values().all(|list| list.is_empty()));
    // Another client stores it again, and a third changes it.
    assert!(write(&mut kept, &persistent().put(&id, 1, version(6, 0), 8, b"b"))[0].is_ok());
    assert!(write(&mut kept, &persistent().put(&id, 1, version(7, 0), 9, b"c"))[0].is_ok());
    let same = write(&mut kept, &persistent().put(&id, 1, version(7, 0), 10, b"d"));
    assert_eq!(refusals(&same), [Some(Refusal::Superseded)], "one version has one content");
}

/// A put that another session still has under way comes after its removal, at a leader that never had it.
#[test]
fn a_removal_with_its_name_is_remembered_where_the_data_id_was_not_known() {
    let (mut kept, id) = (start(MemoryDisk::default()), data_id("kept"));
    assert!(write(&mut kept, &persistent().name(&id).remove(&id, 1, version(5, 0)))[0].is_ok());
    let late = write(&mut kept, &persistent().name(&id).put(&id, 1, version(5, 0), 7, b"a"));
    assert_eq!(refusals(&late), [Some(Refusal::Superseded)]);
    let (lists, _) = recovered(&kept.memory, 1).expect("a good directory");
    assert!(lists.values().all(|list| list.is_empty()));
}

#[test]
fn the_class_of_a_registration_does_not_change() {
    let (mut kept, id) = (start(MemoryDisk::default()), data_id("kept"));
    write(&mut kept, &persistent().name(&id).put(&id, 1, version(1, 0), 7, b"lasting"));
    write(&mut kept, &Frame::of(1).put(&id, 2, version(1, 1), 7, b"passing"));
    let mismatch = [Some(Refusal::DurabilityMismatch); 2];
    let ephemeral = Frame::of(1).put(&id, 1, version(2, 0), 7, b"x").remove(&id, 1, version(2, 0));
    assert_eq!(refusals(&write(&mut kept, &ephemeral)), mismatch);
    let lasting = persistent().put(&id, 2, version(2, 0), 7, b"x").remove(&id, 2, version(2, 0));
    assert_eq!(refusals(&write(&mut kept, &lasting)), mismatch);
    assert_eq!(held(&kept, &id), [(1, true), (2, false)]);
    let over = persistent().remove(&id, 1, version(2, 0));
    assert!(write(&mut kept, &over)[0].is_ok());
    assert!(write(&mut kept, &Frame::of(1).put(&id, 1, version(3, 0), 7, b"x"))[0].is_ok());
    assert_eq!(held(&kept, &id), [(1, false), (2, false)]);
}

#[test]
fn a_repeated_write_is_acknowledged_when_the_first_is_durable() {
    let (mut kept, id) = (start(MemoryDisk::default()), data_id("kept"));
    let put = || persistent().put(&id, 1, version(1, 0), 7, b"1");
    send(&mut kept, &persistent().name(&id));
    send(&mut kept, &put());
    let asked = requests(&mut kept);
    assert_eq!(acks(&mut kept).len(), 1, "a name is not waited for");
    send(&mut kept, &put());
    assert_eq!(requests(&mut kept), [], "it changes nothing");
    assert_eq!(acks(&mut kept), []);
    asked.into_iter().for_each(|request| done(&mut kept, request));
    assert_eq!(acks(&mut kept).len(), 2);
    // And at once afterwards, though something ephemeral waits for its block.
    send(&mut kept, &Frame::of(1).put(&id, 2, version(1, 1), 7, b"passing"));
    send(&mut kept, &put());
    assert_eq!(requests(&mut kept), []);
    assert_eq!(acks(&mut kept).len(), 2);
}

#[test]
fn a_failed_disk_refuses_until_it_is_whole_and_what_was_tried_is_durable_then() {
    let (mut kept, id) = (start(MemoryDisk::default()), data_id("kept"));
    kept.memory.is_full = true;
    let mut frame = persistent().name(&id).put(&id, 1, version(1, 0), 7, b"lasting");
    frame.bytes.extend_from_slice(&Frame::of(1).put(&id, 2, version(1, 1), 7, b"passing").bytes);
    // Taken, and lost on its way to the disk: it is in effect, and not acknowledged.
    assert_eq!(refusals(&write(&mut kept, &frame)), [Some(Refusal::StorageFailed), None]);
    assert_eq!(kept.state(), StorageState::Failed);
    assert_eq!(held(&kept, &id), [(1, true), (2, false)]);
    let again = || persistent().put(&id, 1, version(1, 0), 7, b"lasting");
    let (other, removal) =
        (persistent().put(&id, 3, version(1, 0), 7, b"x"), persistent().remove(&id, 1, version(2, 0)));
    for frame in [&again(), &other, &removal] {
        assert_eq!(refusals(&write(&mut kept, frame)), [Some(Refusal::StorageFailed)]);
    }
    assert_eq!(held(&kept, &id), [(1, true), (2, false)], "what cannot become durable is not begun");
    kept.memory.is_full = false;
    kept.settle();
    assert_eq!(kept.state(), StorageState::Whole);
    assert!(write(&mut kept, &again())[0].is_ok());
    let kept = start(kept.memory);
    assert_eq!(held(&kept, &id), [(1, true), (2, false)]);
}
