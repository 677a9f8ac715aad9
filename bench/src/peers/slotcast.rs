//! Ours: a real data node and a real session in one process, and the wire of clients.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use slotcast_engine::{
    batch::{Change, ChangeKind, Durability, write_name, write_put},
    id::{ClientId, DataId, RegisterId, Revision, SessionId, Version},
    record::{Encoder, Instance, Record},
};
use slotcast_net::{
    config::Config,
    process::{DataProcess, SessionProcess, wait_for_end},
    session::config::Routes,
    wire::{
        Frame, Message,
        header::{FRAME_BYTES_MAX, PROTOCOL},
        message::SubscribeItem,
    },
};

use super::{
    WINDOW,
    speech::{Said, Speech, message},
};

/// Bytes of entries in one write frame, below what a session takes.
const ENTRIES_BYTES_MAX: usize = 64 * 1024;
/// The publisher's client id; subscribers come after it.
const PUBLISHER: u64 = 1;
/// What is registered before the first round: no round has this number, or its content would be no change.
const NO_ROUND: u64 = 9_999_999_999_999_999;
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Speaks our wire. Every message of the last [`WINDOW`] is another registration.
pub struct Slotcast {
    ids: Vec<DataId>,
    message_bytes: usize,
    sequence: u64,
    encoder: Encoder,
}

impl Slotcast {
    /// Write frames that put one registration of every topic, the `number`th change of all; returns how many frames.
    fn write(&mut self, out: &mut Vec<u8>, number: u64, round: u64) -> Result<usize> {
        let (mut entries, mut frames) = (Vec::new(), 0);
        let instance = Instance {
            client: PUBLISHER,
            name: String::new(),
            zone: String::new(),
            payload: message(round, self.message_bytes),
        };
        let register = RegisterId(1 + number % WINDOW as u64);
        for (position, id) in self.ids.iter().enumerate() {
            let record = self.encoder.encode(id.key(), register, &instance)?;
            let change = Change {
                kind: ChangeKind::Put,
                durability: Durability::Ephemeral,
                datum: id.key(),
                register,
                version: Version { number: number + 1, attach: 1 },
                epoch: 0,
                owner: SessionId(0),
            };
            write_name(&mut entries, id.key(), id.as_bytes());
            write_put(&mut entries, &change, Record::read(record)?);
            if entries.len() >= ENTRIES_BYTES_MAX || position + 1 == self.ids.len() {
                self.sequence += 1;
                Message::Write { sequence: self.sequence, entries: &entries }.write(out);
                entries.clear();
                frames += 1;
            }
        }
        Ok(frames)
    }
}

impl Speech for Slotcast {
    const NAME: &'static str = "Slotcast";
    const BINARY: Option<(&'static str, &'static str)> = None;

    fn arguments(port: u16, subscribers: u32, _: &str) -> Vec<String> {
        vec!["serve".into(), "--port".into(), port.to_string(), "--clients".into(), subscribers.to_string()]
    }

    fn new(topics: u32, message_bytes: usize) -> Result<Self> {
        let ids = (0..topics).map(|topic| DataId::new("public", "default", &format!("topic-{topic}")));
        let ids = ids.collect::<Result<_, _>>()?;
        Ok(Self { ids, message_bytes, sequence: 0, encoder: Encoder::default() })
    }

    /// Registers everything, so that later rounds only change what is there.
    fn begin(&mut self) -> Result<(Vec<u8>, usize)> {
        let mut out = Vec::new();
        Message::Hello { protocol: PROTOCOL, client: ClientId(PUBLISHER) }.write(&mut out);
        let mut frames = 0;
        for number in 0..WINDOW as u64 {
            frames += self.write(&mut out, number, NO_ROUND)?;
        }
        Ok((out, frames))
    }

    fn subscribe(&self, subscriber: u32, topic: u32) -> Result<Vec<u8>> {
        let (mut out, client) = (Vec::new(), ClientId(PUBLISHER + 1 + u64::from(subscriber)));
        Message::Hello { protocol: PROTOCOL, client }.write(&mut out);
        let id = self.ids.get(topic as usize).context("no such topic")?.clone();
        Message::Subscribe(vec![SubscribeItem { id, since: Revision::ZERO, digest: 0 }]).write(&mut out);
        Ok(out)
    }

    fn publish(&mut self, round: u64) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.write(&mut out, round + WINDOW as u64, round)?;
        Ok(out)
    }

    fn take(bytes: &[u8], on_said: &mut dyn FnMut(Said<'_>)) -> Result<usize> {
        let Some(frame) = Frame::read(bytes, FRAME_BYTES_MAX)? else { return Ok(0) };
        match Message::read(frame)? {
            Message::Diff(diff) if diff.is_snapshot => on_said(Said::Ready),
            // Names are empty, so the archive begins with the payload.
            Message::Diff(diff) => diff.puts().for_each(|record| on_said(Said::Message(record.archive()))),
            Message::WriteAck { outcomes, .. } => {
                if let Some(refusal) = outcomes.iter().find_map(Result::err) {
                    bail!("a write is refused: {refusal}");
                }
                on_said(Said::Ready);
            }
            Message::Error { code, text, .. } => bail!("the session closes: {text} ({code})"),
            Message::SubscribeRefused { code, .. } => bail!("a subscription is refused: {code}"),
            _ => {}
        }
        Ok(frame.bytes.len())
    }
}

/// Runs data node and session until the process is asked to end. Tells on standard output when both are ready.
pub fn serve(port: u16, clients: u32) -> Result<()> {
    let settings = [
        "nodes=[{id=\"data-1\",addr=\"127.0.0.1:0\",slots=[0,1023]}]".to_string(),
        "data.http=127.0.0.1:0".into(),
        "session.http=127.0.0.1:0".into(),
        format!("session.listen=127.0.0.1:{port}"),
        format!("session.clients_max={}", clients + 64),
    ];
    let config = Config::load(None, &settings)?;
    let data = DataProcess::start(&config)?;
    let routes = Routes::to_node(config.slot_count, data.server.addrs.clone());
    let session = SessionProcess::start(&config, Some(routes))?;
    let begin = Instant::now();
    while !session.server.is_ready() {
        if begin.elapsed() > READY_WITHIN {
            bail!("the session has no link to the data node after {READY_WITHIN:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("ready");
    std::io::stdout().flush()?;
    wait_for_end(|| data.server.is_finished() || session.server.is_finished())?;
    session.server.stop()?;
    data.server.stop()
}

#[cfg(test)]
mod tests {
    use slotcast_engine::{diff, id::SlotId};
    use slotcast_net::wire::message::{write_ack, write_diff};

    use super::*;
    use crate::peers::speech::{round_of, tests::said};

    #[test]
    fn what_a_session_says_is_understood_however_it_is_cut() {
        let mut ours = Slotcast::new(1, 40).unwrap();
        let key = ours.ids[0].key();
        let mut stream = Vec::new();
        Message::Welcome { session: SessionId(1), publishers_max: 1, subscriptions_max: 1 }
            .write(&mut stream);
        write_ack(&mut stream, 1, &[Ok(Revision::open(1))]);
        let record = |ours: &mut Slotcast, round: u64| {
            let payload = message(round, 40);
            let instance = Instance { client: 1, name: String::new(), zone: String::new(), payload };
            ours.encoder.encode(key, RegisterId(round), &instance).unwrap().to_vec()
        };
        let records = [record(&mut ours, 7), record(&mut ours, 8)];
        for flags in [diff::SNAPSHOT, 0] {
            write_diff(&mut stream, SlotId::NONE, |body| {
                let records: Vec<Record<'_>> = records.iter().map(|it| Record::read(it).unwrap()).collect();
                let (from, to) = (Revision::ZERO, Revision::open(1));
                diff::write(body, key, (from, to), &[], None, records.into_iter());
                flags
            });
        }
        let heard = said::<Slotcast>(&stream);
        assert_eq!(heard.len(), 4);
        assert_eq!(heard[..2], ["ready", "ready"]);
        let rounds: Vec<_> = heard[2..].iter().map(|text| round_of(text.as_bytes())).collect();
        assert_eq!(rounds, [Some(7), Some(8)]);
    }

    #[test]
    fn rounds_under_way_change_different_registrations() {
        let mut ours = Slotcast::new(1, 40).unwrap();
        let mut registers = std::collections::BTreeSet::new();
        for round in 0..WINDOW as u64 {
            let bytes = ours.publish(round).unwrap();
            let frame = Frame::read(&bytes, FRAME_BYTES_MAX).unwrap().unwrap();
            let Message::Write { entries, .. } = Message::read(frame).unwrap() else { panic!("a write") };
            let put = Message::entries(entries).last().unwrap().unwrap();
            registers.insert(put.change.register);
        }
        assert_eq!(registers.len(), WINDOW);
    }
}
