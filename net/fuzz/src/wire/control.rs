//! The control plane whose peers say anything, and the table that it keeps.

use slotcast_engine::id::{Nanos, SlotId};
use slotcast_net::{
    meta::{
        core::{MetaConfig, MetaCore, Output},
        members::PeerId,
        store::{decode_table, encode_table},
    },
    wire::{
        Decoder, Frame,
        header::{FRAME_BYTES_MAX, PROTOCOL},
        meta::{HeldState, MetaMessage, MetaPeer, NodeLoad, SlotReport},
        slot_table::NodeNumber,
    },
};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    good::SLOTS,
    replica::{CLUSTER, entry, table},
    roles::pieces,
};

const STEP: u64 = Nanos::SECOND / 20;
const TABLE_HEAD_BYTES: usize = 32;

/// What a data node or a session says to the control plane.
fn stream(peer: MetaPeer, offers: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let table_epoch = if offers { 3 } else { 0 };
    let hello = MetaMessage::Hello {
        protocol: PROTOCOL,
        slot_count: SLOTS,
        table_epoch,
        cluster: CLUSTER.into(),
        peer: peer.clone(),
    };
    hello.write(&mut out);
    if offers {
        MetaMessage::TableOffer(table().whole()).write(&mut out);
    }
    let report = |slot| SlotReport {
        slot: SlotId(slot),
        state: if slot % 2 == 0 { HeldState::Accept } else { HeldState::Following },
        is_whole: true,
        has_persistent: slot == 1,
        leader_epoch: 2,
        in_sync: if slot % 2 == 0 { vec![NodeNumber(2)] } else { Vec::new() },
    };
    for sequence in 1..4 {
        let message = match peer {
            MetaPeer::Session | MetaPeer::Serving(_) => MetaMessage::Watch { sequence, table_epoch },
            MetaPeer::Data(_) => MetaMessage::Heartbeat {
                sequence,
                table_epoch,
                load: NodeLoad { publishers: 5, bytes: 7, cpu_permille: 11 },
                ending: sequence == 3,
                report: 1 + sequence / 2,
                reported_epoch: table_epoch,
                slots: (sequence != 2).then(|| (0..SLOTS as u16).map(report).collect()),
            },
        };
        message.write(&mut out);
    }
    out
}

pub(super) fn from_peers() -> Vec<Vec<u8>> {
    vec![
        stream(MetaPeer::Data(entry(1).into()), false),
        stream(MetaPeer::Data(entry(1).into()), true),
        stream(MetaPeer::Session, false),
    ]
}

/// A peer that says anything, beside a session that is still answered.
pub fn the_control_plane_survives_its_peers(bytes: &[u8]) -> bool {
    let config = MetaConfig { first_wait: Nanos::SECOND / 10, warm_up: 0, ..MetaConfig::new(CLUSTER, SLOTS) };
    let (mut core, mut now) = (MetaCore::new(config), Nanos(Nanos::SECOND));
    core.handle_elected(None, now).expect("there was no table");
    let [bad, good] = [1, 2].map(PeerId);
    hear(&mut core, good, &mut Decoder::default(), &stream(MetaPeer::Session, false), now)
        .expect("a good session");
    let mut decoder = Decoder::default();
    let (mut fault, mut answered) = (false, 0);
    for piece in pieces(bytes) {
        if !fault && hear(&mut core, bad, &mut decoder, &piece, now).is_err() {
            fault = true;
            core.handle_closed(bad);
        }
        now = now.after(STEP);
        core.tick(now);
        answered += outputs(&mut core, bad, now);
    }
    let mut ask = Vec::new();
    let table_epoch = core.table().epoch;
    MetaMessage::Watch { sequence: 9, table_epoch }.write(&mut ask);
    outputs(&mut core, good, now);
    hear(&mut core, good, &mut Decoder::default(), &ask, now).expect("the other peer is disturbed");
    assert!(outputs(&mut core, good, now) > 0, "the other peer is not answered");
    core.table().check().expect("a table that can be");
    !fault && answered > 0
}

fn hear(
    core: &mut MetaCore,
    peer: PeerId,
    decoder: &mut Decoder,
    bytes: &[u8],
    now: Nanos,
) -> Result<(), String> {
    let mut messages = Vec::new();
    let fed =
        decoder.feed(bytes, FRAME_BYTES_MAX, |frame| MetaMessage::read(frame).map(|it| messages.push(it)));
    for message in messages {
        core.handle_message(peer, message, now).map_err(|fault| fault.text)?;
    }
    fed.map_err(|error| error.to_string())
}

/// Carries out what is asked for, and counts what `peer` is told.
fn outputs(core: &mut MetaCore, peer: PeerId, now: Nanos) -> usize {
    let mut told = 0;
    while let Some(output) = core.poll_output() {
        match output {
            Output::Send(to, frame) => {
                let read =
                    Frame::read(&frame, FRAME_BYTES_MAX).expect("a good frame").expect("a whole frame");
                MetaMessage::read(read).expect("a good message");
                told += usize::from(to == peer);
            }
            Output::Close(..) => {}
            Output::Store { table, .. } => core.handle_stored(table.epoch, now),
        }
    }
    told
}

pub(super) fn tables() -> Vec<Vec<u8>> {
    let mut emptied = table();
    emptied.epoch += 1;
    emptied.slots.iter_mut().for_each(|slot| *slot = slot.without_members());
    vec![encode_table(&table()), encode_table(&emptied)]
}

/// A table at rest is refused, or the same once it is written again.
pub fn a_table_is_read_or_refused(bytes: &[u8]) -> bool {
    let mut repaired = bytes.to_vec();
    if let Some((head, body)) = repaired.split_at_mut_checked(TABLE_HEAD_BYTES) {
        head[8..16].copy_from_slice(&(body.len() as u64).to_le_bytes());
        head[16..24].copy_from_slice(&xxh3_64(body).to_le_bytes());
    }
    is_table(bytes) | is_table(&repaired)
}

fn is_table(bytes: &[u8]) -> bool {
    let Ok(table) = decode_table(bytes) else { return false };
    table.check().expect("what is read can be");
    assert_eq!(decode_table(&encode_table(&table)), Ok(table));
    true
}
