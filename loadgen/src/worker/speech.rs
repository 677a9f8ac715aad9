//! What a client says: hello, writes, subscriptions, as frames of the wire.

use anyhow::{Context, Result};
use slotcast_engine::{
    batch::{Change, ChangeKind, Durability, write_change, write_name, write_put},
    error::Refusal,
    id::{DataId, Revision, SessionId, Version},
    record::{Encoder, Record},
};
use slotcast_net::wire::{
    Message,
    header::PROTOCOL,
    message::{Outcomes, SubscribeItem},
};

use crate::workload::{Kind, Op, Workload};

/// Bytes of change entries that one write frame takes, so that it stays below what a session accepts.
pub const ENTRIES_BYTES_MAX: usize = 64 * 1024;

/// The first frame of a connection.
pub fn hello(workload: &Workload, client: u32) -> Vec<u8> {
    frame(&Message::Hello { protocol: PROTOCOL, client: workload.client_id(client) })
}

/// The outcomes of a write as the numbers that travel: a revision, or the code of a refusal.
pub fn numbers(outcomes: Outcomes<'_>) -> Vec<u64> {
    let number = |outcome: std::result::Result<Revision, Refusal>| match outcome {
        Ok(revision) => revision.0,
        Err(refusal) => refusal.code().into(),
    };
    outcomes.iter().map(number).collect()
}

/// The answer to a ping.
pub fn pong(nonce: u64) -> Vec<u8> {
    frame(&Message::Pong(nonce))
}

/// A sign of life.
pub fn ping(nonce: u64) -> Vec<u8> {
    frame(&Message::Ping(nonce))
}

/// A write of change entries.
pub fn write(sequence: u64, entries: &[u8]) -> Vec<u8> {
    frame(&Message::Write { sequence, entries })
}

/// A subscription to some data ids, each with the revision and digest of the list already held.
pub fn subscribe(items: Vec<(DataId, u64, u64)>) -> Vec<u8> {
    let item = |(id, since, digest)| SubscribeItem { id, since: Revision(since), digest };
    frame(&Message::Subscribe(items.into_iter().map(item).collect()))
}

/// Appends the entry of one operation; `is_named` says whether the data id is named just before.
pub fn entry(
    workload: &Workload,
    encoder: &mut Encoder,
    op: &Op,
    attach: u32,
    is_named: bool,
    out: &mut Vec<u8>,
) -> Result<()> {
    let publisher = &workload.publishers()[op.publisher as usize];
    let id = &workload.services()[publisher.service as usize];
    let removes = op.kind == Kind::Unregister;
    if !is_named {
        write_name(out, id.key(), id.as_bytes());
    }
    let change = Change {
        kind: if removes { ChangeKind::Remove } else { ChangeKind::Put },
        durability: Durability::Ephemeral,
        datum: id.key(),
        register: workload.register(op.publisher),
        version: Version { number: u64::from(op.number), attach },
        epoch: 0,
        owner: SessionId(0),
    };
    if removes {
        write_change(out, &change);
    } else {
        let bytes = workload.encode(encoder, op.publisher, op.number)?;
        write_put(out, &change, Record::read(bytes).context("a record just encoded cannot be read")?);
    }
    Ok(())
}

fn frame(message: &Message<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    message.write(&mut out);
    out
}
