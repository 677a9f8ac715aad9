//! A data node's end of a link.

use slotcast_engine::{
    batch::ChangeKind,
    digest::Digest,
    id::{DatumKey, RegisterId, Revision, SlotId},
};
use slotcast_net::{
    io::ring::ConnId,
    wire::{Decoder, FrameError, Message, header::FRAME_BYTES_MAX},
};

use super::{OWN, SLOTS};

/// What a data node was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    Write { sequence: u64, changes: Vec<(ChangeKind, RegisterId, u64)>, names: usize },
    Heartbeat { digest: Digest, routes: u64, table_epoch: u64 },
    Subscribe(Vec<(DatumKey, Revision)>),
    Unsubscribe(Vec<DatumKey>),
    DigestRequest(SlotId),
    Holds(DatumKey, Vec<RegisterId>),
    Ping(u64),
}

/// The kinds of what was told, for tests of the order.
pub fn kinds(told: &[Told]) -> Vec<&'static str> {
    let kind = |told: &Told| match told {
        Told::Write { .. } => "write",
        Told::Heartbeat { .. } => "heartbeat",
        Told::Subscribe(_) => "subscribe",
        Told::Unsubscribe(_) => "unsubscribe",
        Told::DigestRequest(_) => "digests",
        Told::Holds(..) => "holds",
        Told::Ping(_) => "ping",
    };
    told.iter().map(kind).collect()
}

/// One shard's end of its link.
pub struct DataNode {
    pub conn: ConnId,
    pub(super) decoder: Decoder,
    pub(super) greeted: bool,
    pub told: Vec<Told>,
    pub(super) mark: u64,
    pub(super) mute: bool,
    pub(super) last_sequence: u64,
}

impl DataNode {
    /// Notes what is said; answers what has only one answer.
    pub(super) fn hear(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut answer = Vec::new();
        let mut decoder = std::mem::take(&mut self.decoder);
        let heard = decoder.feed(bytes, FRAME_BYTES_MAX, |frame| {
            let message = Message::read(frame)?;
            if let Some(told) = self.note(&message, &mut answer) {
                self.told.push(told);
            }
            Ok::<_, FrameError>(())
        });
        heard.unwrap();
        self.decoder = decoder;
        answer
    }

    fn note(&mut self, message: &Message<'_>, answer: &mut Vec<u8>) -> Option<Told> {
        Some(match message {
            Message::LinkHello { session, epoch_seen, .. } => {
                assert_eq!((*session, *epoch_seen), (OWN, 0), "the table alone opens epochs");
                self.greeted = true;
                if self.mute {
                    return None;
                }
                let welcome = Message::LinkWelcome {
                    run: 5,
                    last_sequence: self.last_sequence,
                    epoch: 1,
                    shard: 0,
                    shards: 1,
                    slot_count: SLOTS,
                };
                welcome.write(answer);
                return None;
            }
            Message::Write { sequence, entries } => {
                let entries = Message::entries(entries).map(|entry| entry.unwrap().change);
                let (names, changes): (Vec<_>, Vec<_>) =
                    entries.partition(|change| change.kind == ChangeKind::Name);
                let changes = changes.iter().map(|it| (it.kind, it.register, it.version.number));
                Told::Write { sequence: *sequence, changes: changes.collect(), names: names.len() }
            }
            Message::Heartbeat { digest, routes, table_epoch, .. } => {
                Told::Heartbeat { digest: *digest, routes: *routes, table_epoch: *table_epoch }
            }
            Message::Subscribe(items) => {
                Told::Subscribe(items.iter().map(|item| (item.id.key(), item.since)).collect())
            }
            Message::Unsubscribe(keys) => Told::Unsubscribe(keys.clone()),
            Message::DigestRequest(slot) => Told::DigestRequest(*slot),
            Message::Holds { datum, registers } => Told::Holds(*datum, registers.clone()),
            Message::Ping(question) => {
                Message::Pong(*question).write(answer);
                Told::Ping(*question)
            }
            other => panic!("a data node was told {other:?}"),
        })
    }
}
