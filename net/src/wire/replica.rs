//! What a shard that follows slots says to the shard that leads them, and what that one answers.
//!
//! The follower connects to the leader's port, where sessions connect, too: the first frame tells them apart. One connection
//! serves all slots that the one follows at the other. Layouts are given at each variant; all numbers are little-endian, `..`
//! is zero padding to the frame's end.

use slotcast_engine::id::{Revision, SlotId};

use crate::wire::{
    codec::Frame,
    header::{FrameError, Kind, write_frame},
    message::{BodyError, Message, Reader, put_u16, put_u32, put_u64},
    slot_table::{CLUSTER_BYTES_MAX, NodeNumber},
};

/// Earlier leader epochs that one part may tell of.
pub const LINEAGE_MAX: usize = 1024;
const FIRST: u8 = 1;
const LAST: u8 = 2;

/// One slot in a follow message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FollowItem {
    /// What is to be followed.
    pub slot: SlotId,
    /// The epoch in which the follower believes the other to lead it.
    pub leader_epoch: u32,
    /// The revision that the follower has; zero: nothing that could be built on.
    pub since: Revision,
}

/// One slot in an acknowledgement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicaAckItem {
    /// The slot.
    pub slot: SlotId,
    /// The follower has everything up to here.
    pub applied: Revision,
    /// And up to here on its disk.
    pub durable: Revision,
}

/// Why a slot cannot be followed here, or not now. The number travels.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u16)]
pub enum ReplicaRefusal {
    /// This shard does not lead the slot.
    NotLeader = 1,
    /// It leads it in a larger epoch than the follower's: the follower's table is old.
    OlderEpoch = 2,
    /// It leads it in a smaller epoch than the follower's: the table of this shard is old.
    FutureEpoch = 3,
    /// The follower says that it has what this leader never made.
    Ahead = 4,
    /// The slot table does not name the follower as a member of the slot.
    NotMember = 5,
}

impl ReplicaRefusal {
    /// All of them.
    pub const ALL: [ReplicaRefusal; 5] = [
        ReplicaRefusal::NotLeader,
        ReplicaRefusal::OlderEpoch,
        ReplicaRefusal::FutureEpoch,
        ReplicaRefusal::Ahead,
        ReplicaRefusal::NotMember,
    ];

    /// The refusal behind a number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| *refusal as u16 == number)
    }

    /// A stable label for metrics.
    pub fn label(self) -> &'static str {
        match self {
            ReplicaRefusal::NotLeader => "not_leader",
            ReplicaRefusal::OlderEpoch => "older_epoch",
            ReplicaRefusal::FutureEpoch => "future_epoch",
            ReplicaRefusal::Ahead => "ahead",
            ReplicaRefusal::NotMember => "not_member",
        }
    }
}

/// A piece of a slot's whole state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaPart<'a> {
    /// The slot.
    pub slot: SlotId,
    /// It begins a new state: what came before of an unfinished one is dropped.
    pub is_first: bool,
    /// It ends the state, which takes the place of what the follower has.
    pub is_last: bool,
    /// The leader's revision when the part was made.
    pub revision: Revision,
    /// The last revision of each earlier leader epoch that the leader still knows of, rising.
    pub lineage: Vec<Revision>,
    /// Change entries, see [`slotcast_engine::batch`].
    pub entries: &'a [u8],
}

/// A message of a replica link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReplicaMessage<'a> {
    /// Follower to leader, first frame: `protocol u16, shard u16, slot_count u32, node u32, cluster_len u16, 0 u16, incarnation
    /// u64, table_epoch u64`, the cluster's name.
    Hello {
        /// Protocol version.
        protocol: u16,
        /// Which of its node's shards follows.
        shard: u16,
        /// Slots of the cluster.
        slot_count: u32,
        /// The follower's node.
        node: NodeNumber,
        /// That node's run.
        incarnation: u64,
        /// The slot table that the follower has.
        table_epoch: u64,
        /// Name of the cluster.
        cluster: &'a str,
    },
    /// The answer: `incarnation u64, table_epoch u64`.
    Welcome {
        /// The run of the leader's node.
        incarnation: u64,
        /// The slot table that the leader has.
        table_epoch: u64,
    },
    /// Follower to leader: tell everything after these revisions, and go on. `count u32, 0 u32, 0 u64`, then per slot `slot u16,
    /// 0 u16, leader_epoch u32, since u64`. A slot that is told already is begun anew.
    Follow(Vec<FollowItem>),
    /// Follower to leader: these slots are not followed here any more. `count u32, 0 u32, 0 u64`, then `slot u64` each.
    Unfollow(Vec<SlotId>),
    /// The answer about a slot that cannot be followed: `code u16, 0 u16, leader_epoch u32`. The header names the slot.
    Refused {
        /// The slot.
        slot: SlotId,
        /// Number of a [`ReplicaRefusal`].
        code: u16,
        /// The largest leader epoch of the slot that the refuser knows.
        leader_epoch: u32,
    },
    /// Leader to follower: a sealed batch, for a follower that is at `after`. `after u64, len u32, 0 u32, batch ..`. The header
    /// names the slot.
    Batch {
        /// The slot.
        slot: SlotId,
        /// Where the follower has to be.
        after: Revision,
        /// The batch as it was sealed.
        batch: &'a [u8],
    },
    /// Leader to follower: a piece of the whole state. `revision u64, len u32, lineage u16, flags u8 (1 first, 2 last), 0 u8`, then
    /// `lineage` revisions of 8 bytes each, padded to a multiple of 16, and the entries. The header names the slot.
    Part(ReplicaPart<'a>),
    /// Follower to leader: how far it has come. `count u32, 0 u32, 0 u64`, then per slot `slot u64, applied u64, durable u64`.
    Ack(Vec<ReplicaAckItem>),
    /// See [`Message::Error`].
    Error {
        /// What was wrong.
        code: u16,
        /// When it is worth coming back; 0: no hint.
        retry_after_ms: u32,
        /// For people.
        text: &'a str,
    },
    /// `nonce u64`.
    Ping(u64),
    /// `nonce u64` of the ping.
    Pong(u64),
}

impl<'a> ReplicaMessage<'a> {
    /// Reads the message in a frame.
    pub fn read(frame: Frame<'a>) -> Result<Self, FrameError> {
        match frame.kind {
            Kind::Error | Kind::Ping | Kind::Pong => Ok(match Message::read(frame)? {
                Message::Error { code, retry_after_ms, text } => {
                    ReplicaMessage::Error { code, retry_after_ms, text }
                }
                Message::Ping(nonce) => ReplicaMessage::Ping(nonce),
                Message::Pong(nonce) => ReplicaMessage::Pong(nonce),
                _ => return Err(FrameError::Malformed(frame.kind, BodyError::OfReplica.to_string())),
            }),
            _ => read_body(frame).map_err(|error| FrameError::Malformed(frame.kind, error.to_string())),
        }
    }

    /// Appends the message as a frame.
    pub fn write(&self, out: &mut Vec<u8>) {
        let (kind, slot) = match self {
            ReplicaMessage::Hello { .. } => (Kind::ReplicaHello, SlotId::NONE),
            ReplicaMessage::Welcome { .. } => (Kind::ReplicaWelcome, SlotId::NONE),
            ReplicaMessage::Follow(_) => (Kind::Follow, SlotId::NONE),
            ReplicaMessage::Unfollow(_) => (Kind::Unfollow, SlotId::NONE),
            ReplicaMessage::Refused { slot, .. } => (Kind::ReplicaRefused, *slot),
            ReplicaMessage::Batch { slot, .. } => (Kind::ReplicaBatch, *slot),
            ReplicaMessage::Part(part) => (Kind::ReplicaPart, part.slot),
            ReplicaMessage::Ack(_) => (Kind::ReplicaAck, SlotId::NONE),
            ReplicaMessage::Error { code, retry_after_ms, text } => {
                return Message::Error { code: *code, retry_after_ms: *retry_after_ms, text }.write(out);
            }
            ReplicaMessage::Ping(nonce) => return Message::Ping(*nonce).write(out),
            ReplicaMessage::Pong(nonce) => return Message::Pong(*nonce).write(out),
        };
        write_frame(out, kind, slot, |body| {
            self.write_body(body);
            0
        });
    }

    fn write_body(&self, out: &mut Vec<u8>) {
        match self {
            ReplicaMessage::Hello {
                protocol,
                shard,
                slot_count,
                node,
                incarnation,
                table_epoch,
                cluster,
            } => {
                let name = &cluster.as_bytes()[..cluster.len().min(CLUSTER_BYTES_MAX)];
                put_u16(out, *protocol);
                put_u16(out, *shard);
                put_u32(out, *slot_count);
                put_u32(out, node.0);
                put_u16(out, name.len() as u16);
                put_u16(out, 0);
                put_u64(out, *incarnation);
                put_u64(out, *table_epoch);
                out.extend_from_slice(name);
            }
            ReplicaMessage::Welcome { incarnation, table_epoch } => {
                put_u64(out, *incarnation);
                put_u64(out, *table_epoch);
            }
            ReplicaMessage::Follow(items) => {
                put_count(out, items.len());
                for item in items {
                    put_u16(out, item.slot.0);
                    put_u16(out, 0);
                    put_u32(out, item.leader_epoch);
                    put_u64(out, item.since.0);
                }
            }
            ReplicaMessage::Unfollow(slots) => {
                put_count(out, slots.len());
                slots.iter().for_each(|slot| put_u64(out, slot.0.into()));
            }
            ReplicaMessage::Refused { code, leader_epoch, .. } => {
                put_u16(out, *code);
                put_u16(out, 0);
                put_u32(out, *leader_epoch);
            }
            ReplicaMessage::Batch { after, batch, .. } => {
                put_u64(out, after.0);
                put_u64(out, batch.len() as u64);
                out.extend_from_slice(batch);
            }
            ReplicaMessage::Part(part) => {
                debug_assert!(part.lineage.len() <= LINEAGE_MAX);
                put_u64(out, part.revision.0);
                put_u32(out, part.entries.len() as u32);
                put_u16(out, part.lineage.len() as u16);
                let flags = (u8::from(part.is_first) * FIRST) | (u8::from(part.is_last) * LAST);
                out.extend_from_slice(&[flags, 0]);
                part.lineage.iter().for_each(|fork| put_u64(out, fork.0));
                if part.lineage.len() % 2 == 1 {
                    put_u64(out, 0);
                }
                out.extend_from_slice(part.entries);
            }
            ReplicaMessage::Ack(items) => {
                put_count(out, items.len());
                for item in items {
                    put_u64(out, item.slot.0.into());
                    put_u64(out, item.applied.0);
                    put_u64(out, item.durable.0);
                }
            }
            ReplicaMessage::Error { .. } | ReplicaMessage::Ping(_) | ReplicaMessage::Pong(_) => {
                unreachable!("written as messages of all connections")
            }
        }
    }
}

fn read_body(frame: Frame<'_>) -> Result<ReplicaMessage<'_>, BodyError> {
    let (slot, mut body) = (frame.slot, Reader(frame.body()));
    Ok(match frame.kind {
        Kind::ReplicaHello => {
            let (protocol, shard, slot_count) = (body.u16()?, body.u16()?, body.u32()?);
            let (node, cluster_len) = (NodeNumber(body.u32()?), body.u16()?);
            body.skip(2)?;
            let (incarnation, table_epoch) = (body.u64()?, body.u64()?);
            let cluster = body.text(cluster_len.into())?;
            ReplicaMessage::Hello { protocol, shard, slot_count, node, incarnation, table_epoch, cluster }
        }
        Kind::ReplicaWelcome => {
            ReplicaMessage::Welcome { incarnation: body.u64()?, table_epoch: body.u64()? }
        }
        Kind::Follow => {
            let mut column = counted(&mut body, 16)?;
            let mut items = Vec::with_capacity(column.0.len() / 16);
            while !column.0.is_empty() {
                let slot = SlotId(column.u16()?);
                column.skip(2)?;
                let (leader_epoch, since) = (column.u32()?, Revision(column.u64()?));
                items.push(FollowItem { slot, leader_epoch, since });
            }
            ReplicaMessage::Follow(items)
        }
        Kind::Unfollow => {
            let mut column = counted(&mut body, 8)?;
            let mut slots = Vec::with_capacity(column.0.len() / 8);
            while !column.0.is_empty() {
                slots.push(read_slot(&mut column)?);
            }
            ReplicaMessage::Unfollow(slots)
        }
        Kind::ReplicaRefused => {
            let code = body.u16()?;
            body.skip(2)?;
            ReplicaMessage::Refused { slot, code, leader_epoch: body.u32()? }
        }
        Kind::ReplicaBatch => {
            let (after, len) = (Revision(body.u64()?), body.u32()?);
            body.skip(4)?;
            ReplicaMessage::Batch { slot, after, batch: body.take(len as usize)? }
        }
        Kind::ReplicaPart => {
            let (revision, len) = (Revision(body.u64()?), body.u32()?);
            let (count, flags) = (body.u16()?, body.u8()?);
            body.skip(1)?;
            if usize::from(count) > LINEAGE_MAX {
                return Err(BodyError::OfReplica);
            }
            let lineage = body.u64s(count.into())?.map(Revision).collect();
            body.skip(usize::from(count % 2) * 8)?;
            ReplicaMessage::Part(ReplicaPart {
                slot,
                is_first: flags & FIRST != 0,
                is_last: flags & LAST != 0,
                revision,
                lineage,
                entries: body.take(len as usize)?,
            })
        }
        Kind::ReplicaAck => {
            let mut column = counted(&mut body, 24)?;
            let mut items = Vec::with_capacity(column.0.len() / 24);
            while !column.0.is_empty() {
                let slot = read_slot(&mut column)?;
                let (applied, durable) = (Revision(column.u64()?), Revision(column.u64()?));
                items.push(ReplicaAckItem { slot, applied, durable });
            }
            ReplicaMessage::Ack(items)
        }
        _ => return Err(BodyError::OfReplica),
    })
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    put_u64(out, count as u64);
    put_u64(out, 0);
}

/// The items behind a count, as far as there are bytes.
fn counted<'a>(body: &mut Reader<'a>, width: usize) -> Result<Reader<'a>, BodyError> {
    let count = body.u32()?;
    body.skip(12)?;
    Ok(Reader(body.column(count, width)?))
}

fn read_slot(column: &mut Reader<'_>) -> Result<SlotId, BodyError> {
    u16::try_from(column.u64()?).map(SlotId).map_err(|_| BodyError::OfReplica)
}

#[cfg(test)]
mod tests;
