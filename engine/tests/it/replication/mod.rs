//! A slot on several nodes: what a leader tells its followers, and what becomes of it when the leader changes.

mod copies;
mod disk;
#[cfg(feature = "planted-faults")]
mod faults;
mod model;
mod returning;
mod states;
mod turns;

use std::collections::{BTreeMap, VecDeque};

use slotcast_engine::{
    batch::ChangeKind,
    id::{Nanos, ReplicaId, Revision, SlotId},
    shard::{Part, ReplicaSend, Shard},
    slot::{FollowError, Slot},
    slot_state::SlotState,
};

/// What a leader sends, as it goes over the wire.
#[derive(Clone, Debug)]
pub(crate) enum Sent {
    Batch {
        slot: SlotId,
        after: Revision,
        bytes: Vec<u8>,
    },
    Part {
        slot: SlotId,
        is_first: bool,
        is_last: bool,
        revision: Revision,
        forks: Vec<Revision>,
        entries: Vec<u8>,
    },
}

impl Sent {
    fn of(send: ReplicaSend<'_>) -> Self {
        match send {
            ReplicaSend::Batch { slot, after, bytes } => Self::Batch { slot, after, bytes: bytes.to_vec() },
            ReplicaSend::Part { slot, part } => Self::Part {
                slot,
                is_first: part.is_first,
                is_last: part.is_last,
                revision: part.revision,
                forks: part.forks.to_vec(),
                entries: part.entries.to_vec(),
            },
        }
    }

    pub(crate) fn slot(&self) -> SlotId {
        match self {
            Self::Batch { slot, .. } | Self::Part { slot, .. } => *slot,
        }
    }

    pub(crate) fn is_part(&self) -> bool {
        matches!(self, Self::Part { .. })
    }

    pub(crate) fn take(&self, follower: &mut Shard, now: Nanos) -> Result<Revision, FollowError> {
        match self {
            Self::Batch { slot, after, bytes } => follower.apply_batch(*slot, *after, bytes, now),
            Self::Part { slot, is_first, is_last, revision, forks, entries } => {
                let part =
                    Part { is_first: *is_first, is_last: *is_last, revision: *revision, forks, entries };
                follower.apply_part(*slot, &part, now)
            }
        }
    }
}

/// What the leader has for a follower, about `budget` bytes of it; the flag says whether there is more.
pub(crate) fn poll(leader: &mut Shard, replica: ReplicaId, budget: usize) -> (VecDeque<Sent>, bool) {
    let mut sent = VecDeque::new();
    let more = leader.poll_replica(replica, budget, &mut |send| sent.push_back(Sent::of(send)));
    (sent, more)
}

/// Opens the slot and lets everything that the leader has arrive, with acknowledgements. Returns what was sent.
pub(crate) fn catch_up(
    leader: &mut Shard,
    follower: &mut Shard,
    (replica, slot): (ReplicaId, SlotId),
    now: Nanos,
) -> Vec<Sent> {
    let epoch = leader.known_epoch(slot);
    leader.replica_open(replica, slot, epoch, follower.followed(slot).0).expect("it leads in that epoch");
    arrive(leader, follower, replica, now)
}

/// Lets everything that the leader has arrive, with acknowledgements. Returns what was sent.
pub(crate) fn arrive(leader: &mut Shard, follower: &mut Shard, replica: ReplicaId, now: Nanos) -> Vec<Sent> {
    let mut all = Vec::new();
    loop {
        let (sent, more) = poll(leader, replica, 1000);
        for sent in sent {
            sent.take(follower, now).expect("it follows what was sent before");
            let (applied, durable) = follower.followed(sent.slot());
            leader.replica_ack(replica, sent.slot(), applied, durable);
            all.push(sent);
        }
        if !more {
            return all;
        }
    }
}

pub(crate) fn held(shard: &Shard, id: SlotId) -> &Slot {
    shard.slots().find(|slot| slot.id() == id).expect("a slot held here")
}

/// A registration or a removed one: data id, register id, version, what it is, owner, and for a live one the checksum.
type Row = (u64, u64, (u64, u32), ChangeKind, u64, Option<u64>);

/// Everything in a slot that a follower has to have, too.
pub(crate) fn content(slot: &Slot) -> Vec<Row> {
    use slotcast_engine::{batch, slot::ScanCursor};
    let (mut bytes, mut cursor) = (Vec::new(), ScanCursor::default());
    assert!(slot.scan(&mut cursor, usize::MAX / 2, &mut bytes).1);
    let mut rows: BTreeMap<(u64, u64), Row> = BTreeMap::new();
    for entry in batch::entries(&bytes) {
        let entry = entry.expect("a scan can be read");
        let change = entry.change;
        if change.kind == ChangeKind::Name {
            continue;
        }
        let checksum = entry.record().map(|record| record.checksum());
        let version = (change.version.number, change.version.attach);
        let key = (change.datum.0, change.register.0);
        assert!(
            rows.insert(key, (key.0, key.1, version, change.kind, change.owner.0, checksum)).is_none(),
            "each registration once"
        );
    }
    rows.into_values().collect()
}

/// Both hold the same at the same revision, with the same history.
#[track_caller]
pub(crate) fn assert_same(leader: &Shard, follower: &Shard, id: SlotId) {
    assert_eq!(follower.state(id), SlotState::Following);
    let (leader, follower) = (held(leader, id), held(follower, id));
    assert_eq!(leader.revision(), follower.revision());
    assert_eq!(leader.digest(), follower.digest());
    assert_eq!(content(leader), content(follower));
    assert_eq!(leader.forks(), follower.forks());
}
