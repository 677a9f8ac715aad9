//! Replica links: how the shards of different nodes keep the same slots.
//!
//! A shard that follows slots connects to each shard that leads some of them, at the port where sessions connect, too. It
//! asks for each slot from where it is; batches follow, or the whole slot in parts. A follower that reads slowly is a cursor
//! in the leader's engine, and a bounded buffer.

mod follower;
mod leader;

pub(super) use follower::{Followings, Identity, LeaderShard};
pub(super) use leader::{Followers, Hearing, ReplicaFault, Welcoming, fill};
