//! The closed set of messages. Each is read from a checked frame and written into a buffer of frames.
//!
//! All numbers are little-endian. Layouts are given at each variant; `..` is zero padding to the frame's end.

use slotcast_engine::{
    batch::{BatchError, Entry, entries},
    diff::{Diff, DiffError},
    digest::Digest,
    error::Refusal,
    id::{ClientId, DataId, DatumKey, NameError, RegisterId, Revision, SessionId, SlotId},
};

use crate::wire::{
    codec::Frame,
    header::{FrameError, Kind, write_frame},
};

/// Why a peer is told to go away. The number travels.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u16)]
pub enum ErrorCode {
    /// The hello names a protocol version that is not spoken here.
    ProtocolVersion = 1,
    /// A frame could not be read: length, checksum, type or body.
    Frame = 2,
    /// A message that does not belong here, or not yet.
    Unexpected = 3,
    /// The peer has not read for too long.
    SlowReader = 4,
    /// As many connections as there may be; come back after the hint.
    TooManyConnections = 5,
    /// This process is going down; connect elsewhere.
    Draining = 6,
    /// Another slot count or cluster.
    Configuration = 7,
    /// The session incarnation, or its write sequence, is refused.
    SessionRefused = 8,
    /// The same client id, or session incarnation, came over a newer connection.
    Replaced = 9,
    /// The lease of the session incarnation has ended: it is refused for ever, and its process has to come back as another.
    SessionEnded = 10,
    /// The peer connected and did not introduce itself in time.
    HelloTimeout = 11,
    /// Connections come faster than they are let in; come back after the hint.
    AcceptRate = 12,
    /// This process of the control plane is not the one that leads; ask another.
    NotLeading = 20,
    /// Another process with this node id, or with this address, is alive.
    DuplicateNode = 21,
    /// A follower is refused: it says what cannot be, or comes before the table that names it.
    ReplicaRefused = 22,
}

impl ErrorCode {
    /// All codes.
    pub const ALL: [ErrorCode; 15] = [
        ErrorCode::ProtocolVersion,
        ErrorCode::Frame,
        ErrorCode::Unexpected,
        ErrorCode::SlowReader,
        ErrorCode::TooManyConnections,
        ErrorCode::Draining,
        ErrorCode::Configuration,
        ErrorCode::SessionRefused,
        ErrorCode::Replaced,
        ErrorCode::SessionEnded,
        ErrorCode::HelloTimeout,
        ErrorCode::AcceptRate,
        ErrorCode::NotLeading,
        ErrorCode::DuplicateNode,
        ErrorCode::ReplicaRefused,
    ];

    /// The code behind a number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u16 == number)
    }

    /// A stable label for metrics.
    pub fn label(self) -> &'static str {
        match self {
            ErrorCode::ProtocolVersion => "protocol_version",
            ErrorCode::Frame => "frame",
            ErrorCode::Unexpected => "unexpected",
            ErrorCode::SlowReader => "slow_reader",
            ErrorCode::TooManyConnections => "too_many_connections",
            ErrorCode::Draining => "draining",
            ErrorCode::Configuration => "configuration",
            ErrorCode::SessionRefused => "session_refused",
            ErrorCode::Replaced => "replaced",
            ErrorCode::SessionEnded => "session_ended",
            ErrorCode::HelloTimeout => "hello_timeout",
            ErrorCode::AcceptRate => "accept_rate",
            ErrorCode::NotLeading => "not_leading",
            ErrorCode::DuplicateNode => "duplicate_node",
            ErrorCode::ReplicaRefused => "replica_refused",
        }
    }
}

/// One data id in a subscribe message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubscribeItem {
    /// What is wanted.
    pub id: DataId,
    /// The revision of the list that the reader holds, zero for none.
    pub since: Revision,
    /// Sum of [`slotcast_engine::diff::list_fingerprint`] over that list; a session compares it before it trusts `since`.
    pub digest: u64,
}

/// A message.
#[derive(Clone, Debug)]
pub enum Message<'a> {
    /// Client to session, first frame: `protocol u16, 0 u16, 0 u32, client u64`.
    Hello {
        /// Protocol version.
        protocol: u16,
        /// Who connects.
        client: ClientId,
    },
    /// Session to client: `session u64, publishers_max u32, subscriptions_max u32`.
    Welcome {
        /// The session incarnation.
        session: SessionId,
        /// Publishers that one client may have.
        publishers_max: u32,
        /// Subscriptions that one client may have.
        subscriptions_max: u32,
    },
    /// To whoever is at fault, before its connection is closed: `code u16, text_len u16, retry_after_ms u32, text ..`.
    Error {
        /// What was wrong.
        code: u16,
        /// When it is worth coming back; 0: no hint.
        retry_after_ms: u32,
        /// For people.
        text: &'a str,
    },
    /// Client to session and session to data node: `sequence u64, entries_len u32, 0 u32, change entries ..`.
    Write {
        /// Position in this link's writes.
        sequence: u64,
        /// Change entries, see [`slotcast_engine::batch`].
        entries: &'a [u8],
    },
    /// The answer: `sequence u64, count u32, 0 u32, outcome u64 ...`. An outcome is the slot's revision that contains the
    /// write or, below 2^40, the number of a [`Refusal`]. Name entries have none.
    WriteAck {
        /// The write's sequence.
        sequence: u64,
        /// Outcomes, 8 bytes each.
        outcomes: Outcomes<'a>,
    },
    /// Client to session and session to data node: `count u32, 0 u32, 0 u64`, then per item `since u64, digest u64,
    /// name_len u32, 0 u32, name` padded to a multiple of 8.
    Subscribe(Vec<SubscribeItem>),
    /// A subscription that was not taken: `datum u64, code u16 ..`.
    SubscribeRefused {
        /// Which.
        datum: DatumKey,
        /// Why: the number of a [`Refusal`].
        code: u16,
    },
    /// `count u32, 0 u32, datum u64 ...`.
    Unsubscribe(Vec<DatumKey>),
    /// A diff or snapshot, see [`slotcast_engine::diff`].
    Diff(Diff<'a>),
    /// The sender leaves for good: no body.
    Goodbye,
    /// `nonce u64`.
    Ping(u64),
    /// `nonce u64` of the ping.
    Pong(u64),
    /// Session to data node, first frame: `protocol u16, 0 u16, slot_count u32, session u64, run u64, epoch_seen u32`.
    LinkHello {
        /// Protocol version.
        protocol: u16,
        /// Slots of the cluster.
        slot_count: u32,
        /// The session incarnation.
        session: SessionId,
        /// The run of this shard that the session was linked to before; 0 if none.
        run: u64,
        /// Largest leader epoch that the session has seen of this shard.
        epoch_seen: u32,
    },
    /// Data node to session: `run u64, last_sequence u64, epoch u32, shard u32, shards u32, slot_count u32`.
    LinkWelcome {
        /// This run of the shard.
        run: u64,
        /// Last write sequence taken from this incarnation.
        last_sequence: u64,
        /// Leader epoch of the shard's slots.
        epoch: u32,
        /// The shard's number.
        shard: u32,
        /// Shards of the node.
        shards: u32,
        /// Slots of the cluster.
        slot_count: u32,
    },
    /// Session to data node, regularly: `mark u64, sum u64, count u64, routes u64, table_epoch u64`, the digest over all that
    /// it holds on the shard.
    Heartbeat {
        /// Latest mark received.
        mark: u64,
        /// Digest of everything the session holds on this shard.
        digest: Digest,
        /// Sum of [`slotcast_engine::id::route`] over the slots that the shard leads by the session's slot table; 0 without
        /// one.
        routes: u64,
        /// The session's slot table; 0: none.
        table_epoch: u64,
    },
    /// The answer: `mark u64, confirmed u32, slots u32, settled u8, differs u8, stale u8, 0 u8, unsettled u32, table_epoch
    /// u64`, then `confirmed` times `session u64, turn u64`, `unsettled` times `slot u64, turn u64` and `slots` times `slot
    /// u64, sum u64, count u64`.
    HeartbeatAck {
        /// Mark to confirm next.
        mark: u64,
        /// Sessions whose registrations are complete on this shard, and for each how often the shard had become a leader of
        /// further slots by then.
        confirmed: Vec<(SessionId, u64)>,
        /// Slots that became this shard's less than a session's lease ago, each with the turn in which it did. Of these only
        /// sessions that were confirmed in that turn or later are complete.
        unsettled: Vec<(SlotId, u64)>,
        /// Sessions that are not confirmed have lost their lease.
        settled: bool,
        /// The session and the shard do not agree about the slots that it leads, so nothing was compared.
        stale: bool,
        /// The shard's slot table; 0: none.
        table_epoch: u64,
        /// The shard's digests of the session's registrations per slot, where they differ from the session's.
        differs: Option<Vec<(SlotId, Digest)>>,
    },
    /// Session to data node: tell the digests per data id of the header's slot. No body.
    DigestRequest(SlotId),
    /// The answer: `count u32, 0 u32, 0 u64`, then `datum u64, sum u64, count u64` each.
    DatumDigests(SlotId, Vec<(DatumKey, Digest)>),
    /// Session to data node: every registration that it holds of a data id: `datum u64, count u32, 0 u32, register u64 ...`.
    Holds {
        /// The data id.
        datum: DatumKey,
        /// All registrations held.
        registers: Vec<RegisterId>,
    },
}

/// Outcomes of a write frame.
#[derive(Clone, Copy, Debug)]
pub struct Outcomes<'a>(&'a [u8]);

impl<'a> Outcomes<'a> {
    /// One per put or removal, in the order of the write frame.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Result<Revision, Refusal>> + 'a {
        self.0.chunks_exact(8).map(|bytes| {
            let value = Reader(bytes).u64().unwrap_or(0);
            if Revision(value).epoch() > 0 {
                Ok(Revision(value))
            } else {
                Err(Refusal::from_code(value as u16).unwrap_or(Refusal::RecordInvalid))
            }
        })
    }
}

/// What is wrong with a body.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("it is too short")]
    Short,
    #[error("{0}")]
    Name(#[from] NameError),
    #[error("{0}")]
    Diff(#[from] DiffError),
    #[error("{0}")]
    Batch(#[from] BatchError),
    #[error("text is not UTF-8")]
    Text,
    #[error("it belongs on connections of the control plane, or names what is not known there")]
    OfMeta,
    #[error("it belongs on links between data nodes, or names what is not known there")]
    OfReplica,
}

impl<'a> Message<'a> {
    /// Reads the message in a frame.
    pub fn read(frame: Frame<'a>) -> Result<Self, FrameError> {
        Self::read_body(frame).map_err(|error| FrameError::Malformed(frame.kind, error.to_string()))
    }

    fn read_body(frame: Frame<'a>) -> Result<Self, BodyError> {
        let mut body = Reader(frame.body());
        Ok(match frame.kind {
            Kind::Hello => {
                let protocol = body.u16()?;
                body.skip(6)?;
                Message::Hello { protocol, client: ClientId(body.u64()?) }
            }
            Kind::Welcome => Message::Welcome {
                session: SessionId(body.u64()?),
                publishers_max: body.u32()?,
                subscriptions_max: body.u32()?,
            },
            Kind::Error => {
                let (code, len, retry_after_ms) = (body.u16()?, body.u16()?, body.u32()?);
                let text = std::str::from_utf8(body.take(len.into())?).map_err(|_| BodyError::Text)?;
                Message::Error { code, retry_after_ms, text }
            }
            Kind::Write => {
                let (sequence, len) = (body.u64()?, body.u32()?);
                body.skip(4)?;
                Message::Write { sequence, entries: body.take(len as usize)? }
            }
            Kind::WriteAck => {
                let (sequence, count) = (body.u64()?, body.u32()?);
                body.skip(4)?;
                Message::WriteAck { sequence, outcomes: Outcomes(body.column(count, 8)?) }
            }
            Kind::Subscribe => Message::Subscribe(read_subscribe(body)?),
            Kind::SubscribeRefused => {
                Message::SubscribeRefused { datum: DatumKey(body.u64()?), code: body.u16()? }
            }
            Kind::Unsubscribe => {
                let count = body.u32()?;
                body.skip(4)?;
                Message::Unsubscribe(body.u64s(count)?.map(DatumKey).collect())
            }
            Kind::Diff => Message::Diff(read_diff(frame)?),
            Kind::Goodbye => Message::Goodbye,
            Kind::Ping => Message::Ping(body.u64()?),
            Kind::Pong => Message::Pong(body.u64()?),
            Kind::LinkHello => {
                let protocol = body.u16()?;
                body.skip(2)?;
                Message::LinkHello {
                    protocol,
                    slot_count: body.u32()?,
                    session: SessionId(body.u64()?),
                    run: body.u64()?,
                    epoch_seen: body.u32()?,
                }
            }
            Kind::LinkWelcome => Message::LinkWelcome {
                run: body.u64()?,
                last_sequence: body.u64()?,
                epoch: body.u32()?,
                shard: body.u32()?,
                shards: body.u32()?,
                slot_count: body.u32()?,
            },
            Kind::Heartbeat => Message::Heartbeat {
                mark: body.u64()?,
                digest: body.digest()?,
                routes: body.u64()?,
                table_epoch: body.u64()?,
            },
            Kind::HeartbeatAck => read_heartbeat_ack(body)?,
            Kind::DigestRequest => Message::DigestRequest(frame.slot),
            Kind::DatumDigests => {
                let count = body.u32()?;
                body.skip(12)?;
                let mut column = Reader(body.column(count, 24)?);
                let digests = (0..count)
                    .map(|_| Ok((DatumKey(column.u64()?), column.digest()?)))
                    .collect::<Result<_, BodyError>>()?;
                Message::DatumDigests(frame.slot, digests)
            }
            Kind::Holds => {
                let (datum, count) = (DatumKey(body.u64()?), body.u32()?);
                body.skip(4)?;
                Message::Holds { datum, registers: body.u64s(count)?.map(RegisterId).collect() }
            }
            Kind::ReplicaHello
            | Kind::ReplicaWelcome
            | Kind::Follow
            | Kind::Unfollow
            | Kind::ReplicaRefused
            | Kind::ReplicaBatch
            | Kind::ReplicaPart
            | Kind::ReplicaAck => return Err(BodyError::OfReplica),
            Kind::MetaHello
            | Kind::NodeHeartbeat
            | Kind::NodeHeartbeatAck
            | Kind::TableDelta
            | Kind::TableWatch
            | Kind::TableOffer => return Err(BodyError::OfMeta),
        })
    }

    /// The change entries of a write, each checked; the first malformed one ends the walk with an error.
    pub fn entries(bytes: &'a [u8]) -> impl Iterator<Item = Result<Entry<'a>, BatchError>> {
        entries(bytes)
    }

    /// Appends the message as a frame. Diffs are written by [`write_diff`].
    pub fn write(&self, out: &mut Vec<u8>) {
        let (kind, slot) = (self.kind(), self.slot());
        write_frame(out, kind, slot, |body| {
            self.write_body(body);
            0
        });
    }

    fn kind(&self) -> Kind {
        match self {
            Message::Hello { .. } => Kind::Hello,
            Message::Welcome { .. } => Kind::Welcome,
            Message::Error { .. } => Kind::Error,
            Message::Write { .. } => Kind::Write,
            Message::WriteAck { .. } => Kind::WriteAck,
            Message::Subscribe(_) => Kind::Subscribe,
            Message::SubscribeRefused { .. } => Kind::SubscribeRefused,
            Message::Unsubscribe(_) => Kind::Unsubscribe,
            Message::Diff(_) => Kind::Diff,
            Message::Goodbye => Kind::Goodbye,
            Message::Ping(_) => Kind::Ping,
            Message::Pong(_) => Kind::Pong,
            Message::LinkHello { .. } => Kind::LinkHello,
            Message::LinkWelcome { .. } => Kind::LinkWelcome,
            Message::Heartbeat { .. } => Kind::Heartbeat,
            Message::HeartbeatAck { .. } => Kind::HeartbeatAck,
            Message::DigestRequest(_) => Kind::DigestRequest,
            Message::DatumDigests(..) => Kind::DatumDigests,
            Message::Holds { .. } => Kind::Holds,
        }
    }

    fn slot(&self) -> SlotId {
        match self {
            Message::DigestRequest(slot) | Message::DatumDigests(slot, _) => *slot,
            _ => SlotId::NONE,
        }
    }

    fn write_body(&self, out: &mut Vec<u8>) {
        match self {
            Message::Hello { protocol, client } => {
                put_u16(out, *protocol);
                out.extend_from_slice(&[0; 6]);
                put_u64(out, client.0);
            }
            Message::Welcome { session, publishers_max, subscriptions_max } => {
                put_u64(out, session.0);
                put_u32(out, *publishers_max);
                put_u32(out, *subscriptions_max);
            }
            Message::Error { code, retry_after_ms, text } => {
                let text = &text.as_bytes()[..text.floor_char_boundary(text.len().min(1024))];
                put_u16(out, *code);
                put_u16(out, text.len() as u16);
                put_u32(out, *retry_after_ms);
                out.extend_from_slice(text);
            }
            Message::Write { sequence, entries } => {
                put_u64(out, *sequence);
                put_u64(out, entries.len() as u64);
                out.extend_from_slice(entries);
            }
            Message::WriteAck { sequence, outcomes } => {
                put_u64(out, *sequence);
                put_u64(out, (outcomes.0.len() / 8) as u64);
                out.extend_from_slice(outcomes.0);
            }
            Message::Subscribe(items) => write_subscribe(out, items),
            Message::SubscribeRefused { datum, code } => {
                put_u64(out, datum.0);
                put_u16(out, *code);
            }
            Message::Unsubscribe(datums) => {
                put_u64(out, datums.len() as u64);
                datums.iter().for_each(|datum| put_u64(out, datum.0));
            }
            Message::Diff(_) => unreachable!("a diff is written by write_diff"),
            Message::Goodbye | Message::DigestRequest(_) => {}
            Message::Ping(nonce) | Message::Pong(nonce) => put_u64(out, *nonce),
            Message::LinkHello { protocol, slot_count, session, run, epoch_seen } => {
                put_u16(out, *protocol);
                put_u16(out, 0);
                put_u32(out, *slot_count);
                put_u64(out, session.0);
                put_u64(out, *run);
                put_u32(out, *epoch_seen);
            }
            Message::LinkWelcome { run, last_sequence, epoch, shard, shards, slot_count } => {
                put_u64(out, *run);
                put_u64(out, *last_sequence);
                [epoch, shard, shards, slot_count].into_iter().for_each(|value| put_u32(out, *value));
            }
            Message::Heartbeat { mark, digest, routes, table_epoch } => {
                put_u64(out, *mark);
                put_digest(out, digest);
                put_u64(out, *routes);
                put_u64(out, *table_epoch);
            }
            Message::HeartbeatAck { mark, confirmed, unsettled, settled, stale, table_epoch, differs } => {
                put_u64(out, *mark);
                put_u32(out, confirmed.len() as u32);
                put_u32(out, differs.as_ref().map_or(0, Vec::len) as u32);
                out.extend_from_slice(&[*settled, differs.is_some(), *stale, false].map(u8::from));
                put_u32(out, unsettled.len() as u32);
                put_u64(out, *table_epoch);
                let sessions = confirmed.iter().map(|(session, turn)| (session.0, *turn));
                let slots = unsettled.iter().map(|(slot, turn)| (u64::from(slot.0), *turn));
                for (number, turn) in sessions.chain(slots) {
                    put_u64(out, number);
                    put_u64(out, turn);
                }
                for (slot, digest) in differs.iter().flatten() {
                    put_u64(out, slot.0.into());
                    put_digest(out, digest);
                }
            }
            Message::DatumDigests(_, digests) => {
                put_u64(out, digests.len() as u64);
                put_u64(out, 0);
                for (datum, digest) in digests {
                    put_u64(out, datum.0);
                    put_digest(out, digest);
                }
            }
            Message::Holds { datum, registers } => {
                put_u64(out, datum.0);
                put_u64(out, registers.len() as u64);
                registers.iter().for_each(|register| put_u64(out, register.0));
            }
        }
    }
}

/// Appends a diff frame whose body `write` appends; `write` returns the flags.
pub fn write_diff(out: &mut Vec<u8>, slot: SlotId, write: impl FnOnce(&mut Vec<u8>) -> u8) {
    write_frame(out, Kind::Diff, slot, write);
}

/// Reads a diff frame.
fn read_diff(frame: Frame<'_>) -> Result<Diff<'_>, DiffError> {
    Diff::read(frame.flags, frame.body())
}

/// Appends the acknowledgement of a write.
pub fn write_ack(out: &mut Vec<u8>, sequence: u64, outcomes: &[Result<Revision, Refusal>]) {
    write_frame(out, Kind::WriteAck, SlotId::NONE, |body| {
        put_u64(body, sequence);
        put_u64(body, outcomes.len() as u64);
        for outcome in outcomes {
            put_u64(body, outcome.map_or_else(|refusal| refusal.code().into(), |revision| revision.0));
        }
        0
    });
}

fn read_subscribe(mut body: Reader<'_>) -> Result<Vec<SubscribeItem>, BodyError> {
    let count = body.u32()?;
    body.skip(12)?;
    let mut items = Vec::new();
    for _ in 0..count {
        let (since, digest, len) = (Revision(body.u64()?), body.u64()?, body.u32()? as usize);
        body.skip(4)?;
        let id = DataId::from_canonical(body.take(len)?)?;
        body.skip(len.next_multiple_of(8) - len)?;
        items.push(SubscribeItem { id, since, digest });
    }
    Ok(items)
}

fn write_subscribe(out: &mut Vec<u8>, items: &[SubscribeItem]) {
    put_u64(out, items.len() as u64);
    put_u64(out, 0);
    for item in items {
        let name = item.id.as_bytes();
        put_u64(out, item.since.0);
        put_u64(out, item.digest);
        put_u64(out, name.len() as u64);
        out.extend_from_slice(name);
        out.extend_from_slice(&[0; 8][..name.len().next_multiple_of(8) - name.len()]);
    }
}

fn read_heartbeat_ack(mut body: Reader<'_>) -> Result<Message<'_>, BodyError> {
    let (mark, confirmed, slots) = (body.u64()?, body.u32()?, body.u32()?);
    let (settled, differs, stale) = (body.u8()? != 0, body.u8()? != 0, body.u8()? != 0);
    body.skip(1)?;
    let (unsettled, table_epoch) = (body.u32()?, body.u64()?);
    let turns = |column: &[u8]| -> Vec<(u64, u64)> {
        let number = |bytes: &[u8]| Reader(bytes).u64().unwrap_or(0);
        column.chunks_exact(16).map(|pair| (number(&pair[..8]), number(&pair[8..]))).collect()
    };
    let confirmed = turns(body.column(confirmed, 16)?);
    let confirmed = confirmed.into_iter().map(|(session, turn)| (SessionId(session), turn)).collect();
    let unsettled = turns(body.column(unsettled, 16)?);
    let unsettled = unsettled.into_iter().map(|(slot, turn)| (SlotId(slot as u16), turn)).collect();
    let mut column = Reader(body.column(slots, 24)?);
    let per_slot = (0..slots)
        .map(|_| Ok((SlotId(column.u64()? as u16), column.digest()?)))
        .collect::<Result<Vec<_>, BodyError>>()?;
    let differs = differs.then_some(per_slot);
    Ok(Message::HeartbeatAck { mark, confirmed, unsettled, settled, stale, table_epoch, differs })
}

pub(super) fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_digest(out: &mut Vec<u8>, digest: &Digest) {
    put_u64(out, digest.sum);
    put_u64(out, digest.count);
}

/// Takes a body apart without ever reading past its end.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], BodyError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(BodyError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], BodyError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(super) fn skip(&mut self, len: usize) -> Result<(), BodyError> {
        self.take(len).map(|_| ())
    }

    pub(super) fn u8(&mut self) -> Result<u8, BodyError> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, BodyError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, BodyError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, BodyError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn digest(&mut self) -> Result<Digest, BodyError> {
        Ok(Digest { sum: self.u64()?, count: self.u64()? })
    }

    pub(super) fn column(&mut self, count: u32, width: usize) -> Result<&'a [u8], BodyError> {
        self.take((count as usize).checked_mul(width).ok_or(BodyError::Short)?)
    }

    pub(super) fn text(&mut self, len: usize) -> Result<&'a str, BodyError> {
        std::str::from_utf8(self.take(len)?).map_err(|_| BodyError::Text)
    }

    pub(super) fn u64s(&mut self, count: u32) -> Result<impl Iterator<Item = u64> + use<'a>, BodyError> {
        let column = self.column(count, 8)?;
        Ok(column.chunks_exact(8).map(|bytes| Reader(bytes).u64().unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests;
