//! A client's end of its connection.

use std::collections::BTreeMap;

use slotcast_engine::{
    error::Refusal,
    id::{ClientId, DatumKey, RegisterId, Revision},
    record::Encoder,
};
use slotcast_net::{
    io::ring::ConnId,
    wire::{Decoder, FrameError, Message, header::FRAME_BYTES_MAX},
};

/// A client's end, and what it holds by what it was told.
pub struct FakeClient {
    pub(super) conn: ConnId,
    pub(super) id: ClientId,
    pub(super) decoder: Decoder,
    pub(super) sequence: u64,
    pub acks: Vec<(u64, Vec<Result<Revision, Refusal>>)>,
    pub lists: BTreeMap<DatumKey, (Revision, BTreeMap<RegisterId, Vec<u8>>)>,
    /// Frames with lists or changes of them.
    pub pushes: usize,
    pub refused: Vec<(DatumKey, u16)>,
    pub(super) encoder: Encoder,
}

impl FakeClient {
    pub(super) fn hear(&mut self, bytes: &[u8]) {
        let mut decoder = std::mem::take(&mut self.decoder);
        let heard = decoder.feed(bytes, FRAME_BYTES_MAX, |frame| {
            match Message::read(frame)? {
                Message::WriteAck { sequence, outcomes } => {
                    assert!(self.acks.iter().all(|(of, _)| *of != sequence), "acknowledged twice");
                    self.acks.push((sequence, outcomes.iter().collect()));
                }
                Message::SubscribeRefused { datum, code } => self.refused.push((datum, code)),
                Message::Diff(diff) => {
                    let (revision, records) = self.lists.entry(diff.datum).or_default();
                    assert!(diff.to >= *revision, "an older list");
                    assert!(diff.is_snapshot || diff.from <= *revision, "a gap");
                    if diff.is_snapshot {
                        records.clear();
                    }
                    diff.removes().for_each(|register| drop(records.remove(&register)));
                    for record in diff.puts() {
                        records.insert(record.register(), record.bytes().to_vec());
                    }
                    *revision = diff.to;
                    self.pushes += 1;
                }
                _ => {}
            }
            Ok::<_, FrameError>(())
        });
        heard.unwrap();
        self.decoder = decoder;
    }
}
