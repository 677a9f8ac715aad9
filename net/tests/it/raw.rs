//! A client made of nothing but a blocking socket and the wire codec, for sending what a proper client never would.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use slotcast_engine::{
    batch::{Change, ChangeKind, Durability, write_change, write_name, write_put},
    error::Refusal,
    id::{ClientId, DataId, RegisterId, Revision, SessionId, Version},
    record::{Encoder, Instance, Record},
};
use slotcast_net::wire::{
    Frame, Message,
    header::{FRAME_BYTES_MAX, PROTOCOL},
    message::SubscribeItem,
};

pub struct Raw {
    pub stream: TcpStream,
    held: Vec<u8>,
    client: u64,
    sequence: u64,
}

impl Raw {
    pub fn open(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream, held: Vec::new(), client: 0, sequence: 0 }
    }

    pub fn connect(addr: SocketAddr, client: u64) -> Self {
        let mut raw = Self::open(addr);
        raw.client = client;
        raw.send(&Message::Hello { protocol: PROTOCOL, client: ClientId(client) });
        raw.expect(|message| matches!(message, Message::Welcome { .. }).then_some(()));
        raw
    }

    pub fn send(&mut self, message: &Message<'_>) {
        let mut out = Vec::new();
        message.write(&mut out);
        self.send_bytes(&out);
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn subscribe(&mut self, id: &DataId) {
        let item = SubscribeItem { id: id.clone(), since: Revision::ZERO, digest: 0 };
        self.send(&Message::Subscribe(vec![item]));
    }

    /// The entries of a put of this client.
    pub fn put(&self, id: &DataId, register: u64, number: u64, attach: u32, payload: &[u8]) -> Vec<u8> {
        let instance = Instance {
            client: self.client,
            name: String::new(),
            zone: String::new(),
            payload: payload.into(),
        };
        let mut encoder = Encoder::default();
        let record = encoder.encode(id.key(), RegisterId(register), &instance).unwrap();
        let mut entries = Vec::new();
        write_name(&mut entries, id.key(), id.as_bytes());
        let change = self.change(id, ChangeKind::Put, register, number, attach);
        write_put(&mut entries, &change, Record::read(record).unwrap());
        entries
    }

    pub fn removal(&self, id: &DataId, register: u64, number: u64, attach: u32) -> Vec<u8> {
        let mut entries = Vec::new();
        write_change(&mut entries, &self.change(id, ChangeKind::Remove, register, number, attach));
        entries
    }

    fn change(&self, id: &DataId, kind: ChangeKind, register: u64, number: u64, attach: u32) -> Change {
        Change {
            kind,
            durability: Durability::Ephemeral,
            datum: id.key(),
            register: RegisterId(register),
            version: Version { number, attach },
            epoch: 0,
            owner: SessionId(0),
        }
    }

    /// Sends entries and returns the outcomes.
    pub fn write(&mut self, entries: &[u8]) -> Vec<Result<Revision, Refusal>> {
        self.sequence += 1;
        let sequence = self.sequence;
        self.send(&Message::Write { sequence, entries });
        self.expect(|message| match message {
            Message::WriteAck { sequence: of, outcomes } if *of == sequence => {
                Some(outcomes.iter().collect())
            }
            _ => None,
        })
    }

    pub fn publish(&mut self, id: &DataId, register: u64, number: u64, attach: u32, payload: &[u8]) {
        let entries = self.put(id, register, number, attach, payload);
        let outcomes = self.write(&entries);
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    }

    /// Reads messages until one is what is looked for. Panics at the end of the stream.
    pub fn expect<T>(&mut self, mut find: impl FnMut(&Message<'_>) -> Option<T>) -> T {
        loop {
            while let Some(frame) = Frame::read(&self.held, FRAME_BYTES_MAX).unwrap() {
                let found = find(&Message::read(frame).unwrap());
                let len = frame.bytes.len();
                self.held.drain(..len);
                if let Some(found) = found {
                    return found;
                }
            }
            let mut bytes = [0; 65536];
            let got = self.stream.read(&mut bytes).unwrap();
            assert!(got > 0, "the stream ended");
            self.held.extend_from_slice(&bytes[..got]);
        }
    }

    /// Expects an error message and then the end of the stream; returns code and text.
    pub fn expect_error(&mut self) -> (u16, String) {
        let error = self.expect(|message| match message {
            Message::Error { code, text, .. } => Some((*code, text.to_string())),
            _ => None,
        });
        let mut rest = Vec::new();
        let _ = self.stream.read_to_end(&mut rest);
        error
    }
}
