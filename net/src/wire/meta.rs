//! What data nodes and sessions say to the control plane, and what it answers.
//!
//! Layouts are given at each variant; all numbers are little-endian, `..` is zero padding to the frame's end.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use slotcast_engine::id::SlotId;

use crate::wire::{
    codec::Frame,
    header::{FrameError, Kind, write_frame},
    message::{BodyError, Message, Reader, put_u16, put_u32, put_u64},
    slot_table::{CLUSTER_BYTES_MAX, NodeEntry, NodeNumber, TableDelta, read_node, write_node},
};

/// Slots that one heartbeat may tell of, and so the bound of what a peer makes the other keep.
pub const REPORTS_MAX: usize = slotcast_engine::limits::SLOTS_MAX as usize;

/// Who speaks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetaPeer {
    /// A data node, which asks for slots.
    Data(Arc<NodeEntry>),
    /// Who only follows the table.
    Session,
    /// A session that clients connect to, and where operators ask it.
    Serving(SocketAddr),
}

/// What a node is doing with a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum HeldState {
    /// It follows the leader.
    Following = 1,
    /// It leads and is still being filled: writes are taken, reads are not.
    Migrating = 2,
    /// It leads.
    Accept = 3,
    /// It led, and refers to the new leader.
    Moved = 4,
}

impl HeldState {
    fn from_number(number: u8) -> Option<Self> {
        [Self::Following, Self::Migrating, Self::Accept, Self::Moved]
            .into_iter()
            .find(|state| *state as u8 == number)
    }
}

/// What a node tells of one slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotReport {
    /// The slot.
    pub slot: SlotId,
    /// What the node does with it.
    pub state: HeldState,
    /// Of a leader: no persistent publisher is missing, whatever happened before.
    pub is_whole: bool,
    /// It has a persistent publisher, or wants to acknowledge one. A leader acknowledges none before a table says that there
    /// may be some.
    pub has_persistent: bool,
    /// The largest leader epoch of the slot that the node knows.
    pub leader_epoch: u32,
    /// Of a leader: the followers that have all that was acknowledged as persistent. It leaves one out before it
    /// acknowledges anything that this one lacks, and goes on only when a table says so.
    pub in_sync: Vec<NodeNumber>,
}

/// How much a node has to do, for people and for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeLoad {
    /// Publishers that it stores.
    pub publishers: u64,
    /// Bytes of memory of its slots.
    pub bytes: u64,
    /// Thousandths of one core that it uses.
    pub cpu_permille: u32,
}

/// A message to or from the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaMessage {
    /// First frame of a peer: `protocol u16, role u8 (1 data, 2 watcher, 3 session), cluster_len u8, slot_count u32, table_epoch
    /// u64`, the cluster's name and, from a data node, its entry (see `slot_table`), from a session the address of its pages: `ip 16
    /// bytes, port u16`.
    Hello {
        /// Protocol version.
        protocol: u16,
        /// Slots of the cluster.
        slot_count: u32,
        /// Table that the peer has; 0: none.
        table_epoch: u64,
        /// Name of the cluster.
        cluster: String,
        /// Who it is.
        peer: MetaPeer,
    },
    /// Data node to control plane: `sequence u64, table_epoch u64, publishers u64, bytes u64, cpu_permille u32, flags u8 (1
    /// ending, 2 with reports), 0 u8, 0 u16, report u64, reported_epoch u64, count u32, 0 u32`, then per report `slot u16,
    /// state u8 (64: persistent publishers, 128: whole), in_sync u8, leader_epoch u32`, a node number of 4 bytes per node in sync.
    Heartbeat {
        /// Counts the heartbeats of a connection.
        sequence: u64,
        /// Table that the node has.
        table_epoch: u64,
        /// What it has to do.
        load: NodeLoad,
        /// Its process is about to end: it leads what nobody else can, and nothing more is put on it.
        ending: bool,
        /// Counts the changes of what it would report.
        report: u64,
        /// Table that the node had when it made the report. What a later table has changed, the report does not know.
        reported_epoch: u64,
        /// All its slots, unless the control plane has acknowledged this report.
        slots: Option<Vec<SlotReport>>,
    },
    /// The answer to a heartbeat or a watch: `sequence u64, table_epoch u64, report u64, lease_ms u32, flags u8 (1 wants the
    /// table) ..`.
    HeartbeatAck {
        /// The heartbeat's.
        sequence: u64,
        /// The newest table.
        table_epoch: u64,
        /// The report that the control plane has; 0: none.
        report: u64,
        /// How long the node counts as alive from when it sent the heartbeat; 0: it is no member yet.
        lease_ms: u32,
        /// The peer has a newer table: it is to offer it.
        wants_table: bool,
    },
    /// Control plane to peer: a delta or a whole table.
    TableDelta(TableDelta),
    /// Session to control plane: `sequence u64, table_epoch u64`.
    Watch {
        /// Counts the watches of a connection.
        sequence: u64,
        /// Table that the session has.
        table_epoch: u64,
    },
    /// Peer to control plane, when asked: its whole table.
    TableOffer(TableDelta),
    /// See [`Message::Error`].
    Error {
        /// What was wrong.
        code: u16,
        /// When it is worth coming back; 0: no hint.
        retry_after_ms: u32,
        /// For people.
        text: String,
    },
}

impl MetaMessage {
    /// Reads the message in a frame.
    pub fn read(frame: Frame<'_>) -> Result<Self, FrameError> {
        let malformed = |text: String| FrameError::Malformed(frame.kind, text);
        match frame.kind {
            Kind::TableDelta | Kind::TableOffer => {
                let delta = TableDelta::read(frame.body()).map_err(|error| malformed(error.to_string()))?;
                Ok(match frame.kind {
                    Kind::TableDelta => MetaMessage::TableDelta(delta),
                    _ => MetaMessage::TableOffer(delta),
                })
            }
            Kind::Error => match Message::read(frame)? {
                Message::Error { code, retry_after_ms, text } => {
                    Ok(MetaMessage::Error { code, retry_after_ms, text: text.into() })
                }
                _ => Err(malformed("no error".into())),
            },
            _ => read_body(frame).map_err(|error| malformed(error.to_string())),
        }
    }

    /// Appends the message as a frame.
    pub fn write(&self, out: &mut Vec<u8>) {
        let kind = match self {
            MetaMessage::Hello { .. } => Kind::MetaHello,
            MetaMessage::Heartbeat { .. } => Kind::NodeHeartbeat,
            MetaMessage::HeartbeatAck { .. } => Kind::NodeHeartbeatAck,
            MetaMessage::TableDelta(_) => Kind::TableDelta,
            MetaMessage::Watch { .. } => Kind::TableWatch,
            MetaMessage::TableOffer(_) => Kind::TableOffer,
            MetaMessage::Error { code, retry_after_ms, text } => {
                return Message::Error { code: *code, retry_after_ms: *retry_after_ms, text }.write(out);
            }
        };
        write_frame(out, kind, SlotId::NONE, |body| {
            self.write_body(body);
            0
        });
    }

    fn write_body(&self, out: &mut Vec<u8>) {
        match self {
            MetaMessage::Hello { protocol, slot_count, table_epoch, cluster, peer } => {
                put_u16(out, *protocol);
                let role = match peer {
                    MetaPeer::Data(_) => 1,
                    MetaPeer::Session => 2,
                    MetaPeer::Serving(_) => 3,
                };
                out.extend_from_slice(&[role, cluster.len().min(CLUSTER_BYTES_MAX) as u8]);
                put_u32(out, *slot_count);
                put_u64(out, *table_epoch);
                out.extend_from_slice(&cluster.as_bytes()[..cluster.len().min(CLUSTER_BYTES_MAX)]);
                match peer {
                    MetaPeer::Data(node) => write_node(out, node),
                    MetaPeer::Session => {}
                    MetaPeer::Serving(pages) => {
                        let ip = match pages.ip() {
                            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                            IpAddr::V6(ip) => ip,
                        };
                        out.extend_from_slice(&ip.octets());
                        put_u16(out, pages.port());
                    }
                }
            }
            MetaMessage::Heartbeat { sequence, table_epoch, load, ending, report, reported_epoch, slots } => {
                [sequence, table_epoch, &load.publishers, &load.bytes]
                    .into_iter()
                    .for_each(|value| put_u64(out, *value));
                put_u32(out, load.cpu_permille);
                let flags = u8::from(*ending) | u8::from(slots.is_some()) << 1;
                out.extend_from_slice(&[flags, 0, 0, 0]);
                put_u64(out, *report);
                put_u64(out, *reported_epoch);
                put_u64(out, slots.as_ref().map_or(0, |slots| slots.len() as u64));
                slots.iter().flatten().for_each(|slot| write_report(out, slot));
            }
            MetaMessage::HeartbeatAck { sequence, table_epoch, report, lease_ms, wants_table } => {
                [sequence, table_epoch, report].into_iter().for_each(|value| put_u64(out, *value));
                put_u32(out, *lease_ms);
                out.push(u8::from(*wants_table));
            }
            MetaMessage::Watch { sequence, table_epoch } => {
                put_u64(out, *sequence);
                put_u64(out, *table_epoch);
            }
            MetaMessage::TableDelta(delta) | MetaMessage::TableOffer(delta) => delta.write(out),
            MetaMessage::Error { .. } => unreachable!("an error is written as a message of its own"),
        }
    }
}

fn read_body(frame: Frame<'_>) -> Result<MetaMessage, BodyError> {
    let mut body = Reader(frame.body());
    Ok(match frame.kind {
        Kind::MetaHello => {
            let (protocol, role, len) = (body.u16()?, body.u8()?, body.u8()?);
            let (slot_count, table_epoch) = (body.u32()?, body.u64()?);
            let cluster = body.text(len.into())?.to_owned();
            let peer = match role {
                1 => MetaPeer::Data(Arc::new(read_node(&mut body)?)),
                2 => MetaPeer::Session,
                3 => {
                    let ip = Ipv6Addr::from(body.array::<16>()?).to_canonical();
                    MetaPeer::Serving(SocketAddr::new(ip, body.u16()?))
                }
                _ => return Err(BodyError::OfMeta),
            };
            MetaMessage::Hello { protocol, slot_count, table_epoch, cluster, peer }
        }
        Kind::NodeHeartbeat => {
            let (sequence, table_epoch) = (body.u64()?, body.u64()?);
            let load = NodeLoad { publishers: body.u64()?, bytes: body.u64()?, cpu_permille: body.u32()? };
            let flags = body.u8()?;
            body.skip(3)?;
            let (report, reported_epoch, count) = (body.u64()?, body.u64()?, body.u32()?);
            body.skip(4)?;
            let reports = (0..count).map(|_| read_report(&mut body)).collect::<Result<Vec<_>, _>>()?;
            let slots = (flags & 2 != 0).then_some(reports);
            let ending = flags & 1 != 0;
            MetaMessage::Heartbeat { sequence, table_epoch, load, ending, report, reported_epoch, slots }
        }
        Kind::NodeHeartbeatAck => MetaMessage::HeartbeatAck {
            sequence: body.u64()?,
            table_epoch: body.u64()?,
            report: body.u64()?,
            lease_ms: body.u32()?,
            wants_table: body.u8()? & 1 != 0,
        },
        Kind::TableWatch => MetaMessage::Watch { sequence: body.u64()?, table_epoch: body.u64()? },
        _ => return Err(BodyError::OfMeta),
    })
}

fn write_report(out: &mut Vec<u8>, report: &SlotReport) {
    put_u16(out, report.slot.0);
    let count = report.in_sync.len().min(u8::MAX.into());
    let flags = u8::from(report.has_persistent) << 6 | u8::from(report.is_whole) << 7;
    out.extend_from_slice(&[report.state as u8 | flags, count as u8]);
    put_u32(out, report.leader_epoch);
    report.in_sync[..count].iter().for_each(|node| put_u32(out, node.0));
}

fn read_report(body: &mut Reader<'_>) -> Result<SlotReport, BodyError> {
    let (slot, state, count) = (SlotId(body.u16()?), body.u8()?, body.u8()?);
    let leader_epoch = body.u32()?;
    let in_sync = (0..count).map(|_| Ok(NodeNumber(body.u32()?))).collect::<Result<_, BodyError>>()?;
    let (has_persistent, is_whole) = (state & 64 != 0, state & 128 != 0);
    let state = HeldState::from_number(state & 63).ok_or(BodyError::OfMeta)?;
    Ok(SlotReport { slot, state, is_whole, has_persistent, leader_epoch, in_sync })
}

#[cfg(test)]
mod tests;
