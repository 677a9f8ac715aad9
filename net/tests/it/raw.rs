//! A client made of nothing but a blocking socket and the wire codec, for sending what a proper client never would.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use slotcast_engine::{
    batch::{Change, ChangeKind, Durability, ENTRY_BYTES, write_change, write_name},
    error::Refusal,
    id::{ClientId, DataId, DatumKey, RegisterId, Revision, SessionId, Version},
    record::{self, Encoder, Instance},
};
use slotcast_net::wire::{
    Frame, Message,
    header::{FRAME_BYTES_MAX, PROTOCOL, checksum},
    message::SubscribeItem,
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::cluster::PATIENCE;

pub struct Raw {
    pub stream: TcpStream,
    held: Vec<u8>,
    client: u64,
    sequence: u64,
    owner: SessionId,
}

/// A connection of a bare socket with a small receive buffer. With the smallest possible one the kernel would open the
/// window again only from time to time.
pub fn narrow_stream(addr: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(32 * 1024).unwrap();
    socket.connect(&addr.into()).unwrap();
    socket.into()
}

impl Raw {
    pub fn open(addr: SocketAddr) -> Self {
        Self::over(TcpStream::connect(addr).unwrap())
    }

    pub fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, held: Vec::new(), client: 0, sequence: 0, owner: SessionId(0) }
    }

    /// A client that reads little at a time.
    pub fn connect_narrow(addr: SocketAddr, client: u64) -> Self {
        let mut raw = Self::over(narrow_stream(addr));
        raw.greet(client);
        raw
    }

    /// The link of a session incarnation to a shard.
    pub fn link(addr: SocketAddr, session: u64, slot_count: u32) -> Self {
        let mut raw = Self::open(addr);
        (raw.client, raw.owner) = (session, SessionId(session));
        raw.send(&link_hello(session, slot_count));
        raw.expect(|message| matches!(message, Message::LinkWelcome { .. }).then_some(()));
        raw
    }

    pub fn connect(addr: SocketAddr, client: u64) -> Self {
        let mut raw = Self::open(addr);
        raw.greet(client);
        raw
    }

    fn greet(&mut self, client: u64) {
        self.client = client;
        self.send(&Message::Hello { protocol: PROTOCOL, client: ClientId(client) });
        self.expect(|message| matches!(message, Message::Welcome { .. }).then_some(()));
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
        let record = self.record(id, register, payload);
        self.put_record(id, id.as_bytes(), register, (number, attach), &record)
    }

    /// A record of this client.
    pub fn record(&self, id: &DataId, register: u64, payload: &[u8]) -> Vec<u8> {
        let instance = self.instance("", "", payload);
        Encoder::default().encode(id.key(), RegisterId(register), &instance).unwrap().to_vec()
    }

    pub fn instance(&self, name: &str, zone: &str, payload: &[u8]) -> Instance {
        Instance { client: self.client, name: name.into(), zone: zone.into(), payload: payload.into() }
    }

    /// The entries of a put whose name and record may be anything.
    pub fn put_record(
        &self,
        id: &DataId,
        name: &[u8],
        register: u64,
        (number, attach): (u64, u32),
        record: &[u8],
    ) -> Vec<u8> {
        let mut entries = Vec::new();
        write_name(&mut entries, id.key(), name);
        let start = entries.len();
        write_change(&mut entries, &self.change(id, ChangeKind::Put, register, number, attach));
        entries.extend_from_slice(record);
        let len = (ENTRY_BYTES + record.len()) as u32;
        entries[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
        entries
    }

    /// The entries of a put of a persistent registration.
    pub fn persistent_put(&self, id: &DataId, register: u64, number: u64, payload: &[u8]) -> Vec<u8> {
        let mut entries = self.put(id, register, number, 1, payload);
        let at = entries.len() - self.record(id, register, payload).len() - ENTRY_BYTES;
        entries[at + 1] = Durability::Persistent as u8;
        entries[at + 40..at + 48].copy_from_slice(&SessionId::NOBODY.0.to_le_bytes());
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
            owner: self.owner,
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
        let (code, text, _) = self.expect_error_and_hint();
        (code, text)
    }

    /// The same with the milliseconds after which it is worth coming back.
    pub fn expect_error_and_hint(&mut self) -> (u16, String, u32) {
        let error = self.expect(|message| match message {
            Message::Error { code, text, retry_after_ms } => Some((*code, text.to_string(), *retry_after_ms)),
            _ => None,
        });
        let mut rest = Vec::new();
        let _ = self.stream.read_to_end(&mut rest);
        error
    }

    /// Expects the refusal of a subscription.
    pub fn expect_subscription_refused(&mut self) -> (DatumKey, Option<Refusal>) {
        self.expect(|message| match message {
            Message::SubscribeRefused { datum, code } => Some((*datum, Refusal::from_code(*code))),
            _ => None,
        })
    }

    /// Reads until the list of `id` holds exactly `payloads`.
    pub fn expect_list(&mut self, list: &mut RawList, id: &DataId, payloads: &[&[u8]]) {
        let mut wanted = payloads.to_vec();
        wanted.sort_unstable();
        self.expect(|message| {
            list.take(id, message);
            (list.frames > 0 && list.values() == wanted).then_some(())
        });
    }

    /// Takes bytes in that were read from the stream by other means.
    pub fn hold(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// Blocks until the peer has closed or reset the connection, without reading a byte.
    pub fn await_close_unread(&self) {
        use std::os::fd::AsRawFd;
        let mut interest = libc::pollfd { fd: self.stream.as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: one entry, which outlives the call.
        let ready = unsafe { libc::poll(&mut interest, 1, PATIENCE.as_millis() as i32) };
        assert_eq!(ready, 1, "the connection is still open");
    }
}

/// The list of one data id as a bare socket hears of it.
#[derive(Default)]
pub struct RawList {
    pub revision: Revision,
    pub payloads: BTreeMap<RegisterId, Vec<u8>>,
    pub frames: usize,
}

impl RawList {
    /// Takes a message in if it is a diff of `id`. Asserts that it follows.
    pub fn take(&mut self, id: &DataId, message: &Message<'_>) {
        let Message::Diff(diff) = message else { return };
        if diff.datum != id.key() {
            return;
        }
        assert!(diff.is_snapshot || (self.frames > 0 && diff.from <= self.revision), "a gap");
        assert!(diff.to >= self.revision, "an older list");
        if diff.is_snapshot {
            self.payloads.clear();
        }
        diff.removes().for_each(|register| drop(self.payloads.remove(&register)));
        for record in diff.puts() {
            self.payloads.insert(record.register(), record.instance().unwrap().payload);
        }
        self.revision = diff.to;
        self.frames += 1;
    }

    fn values(&self) -> Vec<&[u8]> {
        let mut values: Vec<&[u8]> = self.payloads.values().map(Vec::as_slice).collect();
        values.sort_unstable();
        values
    }
}

pub fn link_hello(session: u64, slot_count: u32) -> Message<'static> {
    Message::LinkHello { protocol: PROTOCOL, slot_count, session: SessionId(session), run: 0, epoch_seen: 0 }
}

/// A record with everything right about it but its content, which a proper encoder would refuse.
pub fn forge_record(datum: DatumKey, register: u64, instance: &Instance) -> Vec<u8> {
    let archive = rkyv::to_bytes::<rkyv::rancor::Error>(instance).unwrap();
    let len = (record::HEADER_BYTES + archive.len()).next_multiple_of(16);
    let pad = len - record::HEADER_BYTES - archive.len();
    let mut bytes = vec![0; record::HEADER_BYTES];
    (bytes[4], bytes[5], bytes[6]) = (record::KIND_PUBLISHER, record::SCHEMA, pad as u8);
    bytes[8..16].copy_from_slice(&datum.0.to_le_bytes());
    bytes[16..24].copy_from_slice(&register.to_le_bytes());
    bytes.extend_from_slice(&archive);
    bytes.resize(len, 0);
    seal_record(&mut bytes);
    bytes
}

/// Makes length and checksum of a changed record right again.
pub fn seal_record(bytes: &mut [u8]) {
    let len = bytes.len() as u32;
    bytes[0..4].copy_from_slice(&len.to_le_bytes());
    let sum = xxh3_64_with_seed(&bytes[record::HEADER_BYTES..], xxh3_64(&bytes[..24]));
    bytes[24..32].copy_from_slice(&sum.to_le_bytes());
}

/// A message as a frame, changed by `change`, with its checksum made right again.
pub fn altered(message: &Message<'_>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = Vec::new();
    message.write(&mut frame);
    change(&mut frame);
    let sum = checksum(&frame);
    frame[8..16].copy_from_slice(&sum.to_le_bytes());
    frame
}
