//! Write frames of two sessions, as a data node's shard takes them: each behind two bytes that say how long it is.

use std::collections::BTreeMap;

use slotcast_engine::{
    change_log::ChangeLogLimits,
    diff::Diff,
    id::{DataId, Nanos, ReaderId, Revision, SessionId},
    shard::{Shard, ShardConfig},
};

use super::{
    good::{SERVICES, SLOTS, service},
    recovery::note,
    repair,
};

/// What comes of any frames is told to a reader as diffs that can be read, and is whole in the slots.
pub fn writes_are_admitted_or_refused(bytes: &[u8]) -> bool {
    let mut shard = Shard::new(ShardConfig {
        slot_count: SLOTS,
        slots: 0..=(SLOTS - 1) as u16,
        shard: 0,
        shards: 1,
        epoch: 1,
        seed: 1,
        session_lease: Nanos::SECOND,
        settle: 0,
        change_log: ChangeLogLimits::default(),
        validate: true,
        compaction_budget: 4096,
    });
    let mut now = Nanos(1);
    let mut sequences = [0u64; 2];
    let reader = ReaderId(9);
    shard.handle_link_open(reader, SessionId(9), 0, true, now).expect("a session");
    for number in 0..SERVICES {
        let id: DataId = service(number);
        shard.handle_interest(reader, &id, Revision::ZERO).expect("a known slot");
    }
    let (mut rest, mut turn, mut admitted) = (bytes, 0usize, false);
    while let Some((len, frames)) = rest.split_first_chunk() {
        let (frame, behind) = frames.split_at(usize::from(u16::from_le_bytes(*len)).min(frames.len()));
        rest = behind;
        let mut frame = frame.to_vec();
        repair::entries(&mut frame);
        let link = turn % 2;
        let id = 1 + link as u32;
        if !shard.is_alive(SessionId(id.into())) {
            let _ = shard.handle_link_open(ReaderId(id), SessionId(id.into()), 0, true, now);
        }
        if shard.handle_write(ReaderId(id), sequences[link] + 1, &frame, now).is_ok() {
            sequences[link] += 1;
        }
        now = now.after(Nanos::SECOND / 8);
        shard.tick(now);
        shard.seal(now);
        while let Some(ack) = shard.poll_ack() {
            admitted |= ack.outcomes.iter().any(Result::is_ok);
        }
        shard.poll_push(|push| {
            let mut body = Vec::new();
            let flags = push.answer.write(push.datum, &mut body);
            let diff = Diff::read(flags, &body).expect("what is pushed can be read");
            assert!(diff.puts().all(|put| put.validate().is_ok()));
        });
        turn += 1;
    }
    let mut state = BTreeMap::new();
    shard.slots().for_each(|slot| note(slot, &mut state));
    admitted
}
