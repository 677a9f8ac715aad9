//! Followers and leaders that are not what they say: refused, with a reason, and nobody is disturbed.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
};

use slotcast_engine::{
    batch::{OpenBatch, entries},
    id::{DataId, Revision, SlotId},
};
use slotcast_net::wire::{
    Decoder, ErrorCode, FrameError,
    header::{FRAME_BYTES_MAX, PROTOCOL},
    meta::MetaPeer,
    replica::{FollowItem, ReplicaAckItem, ReplicaMessage, ReplicaPart, ReplicaRefusal},
    slot_table::{NodeEntry, NodeNumber, SlotTable},
};

use super::{Members, SLOTS, Watch, publish_when_led, publishers};
use crate::{
    cluster::{PATIENCE, metric, until_metric},
    raw::Raw,
};

/// One end of a replica link, made of nothing but a blocking socket.
struct RawReplica {
    stream: TcpStream,
    decoder: Decoder,
}

impl RawReplica {
    fn open(addr: SocketAddr) -> Self {
        Self::over(TcpStream::connect(addr).unwrap())
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, decoder: Decoder::default() }
    }

    /// Reads until the other end has closed.
    fn expect_end(mut self) {
        let mut bytes = [0; 65536];
        while self.stream.read(&mut bytes).is_ok_and(|got| got > 0) {}
    }

    fn send(&mut self, message: &ReplicaMessage<'_>) {
        let mut out = Vec::new();
        message.write(&mut out);
        self.stream.write_all(&out).unwrap();
    }

    /// Reads messages until one is what is looked for; what came with it is left out.
    fn expect<T>(&mut self, mut find: impl FnMut(&ReplicaMessage<'_>) -> Option<T>) -> T {
        let mut found = None;
        while found.is_none() {
            let mut bytes = [0; 65536];
            let got = self.stream.read(&mut bytes).unwrap();
            assert!(got > 0, "the stream ended");
            self.decoder
                .feed(&bytes[..got], FRAME_BYTES_MAX, |frame| {
                    let message = ReplicaMessage::read(frame)?;
                    found = found.take().or_else(|| find(&message));
                    Ok::<_, FrameError>(())
                })
                .unwrap();
        }
        found.unwrap()
    }

    fn expect_error(&mut self) -> (u16, String) {
        self.expect(|message| match message {
            ReplicaMessage::Error { code, text, .. } => Some((*code, text.to_string())),
            _ => None,
        })
    }

    fn expect_refused(&mut self) -> (SlotId, Option<ReplicaRefusal>) {
        self.expect(|message| match message {
            ReplicaMessage::Refused { slot, code, .. } => Some((*slot, ReplicaRefusal::from_number(*code))),
            _ => None,
        })
    }
}

/// What a follower says that is all right: the run of `node` in the present table.
fn hello(table: &SlotTable, node: NodeNumber) -> ReplicaMessage<'static> {
    ReplicaMessage::Hello {
        protocol: PROTOCOL,
        shard: 0,
        slot_count: SLOTS,
        node,
        incarnation: table.nodes[&node].incarnation,
        table_epoch: table.epoch,
        cluster: "slotcast",
    }
}

#[test]
fn followers_that_do_not_belong_here_are_refused_with_a_reason_and_nobody_is_disturbed() {
    let mut members = Members::start(&["a", "b", "c"], &["meta.replicas=2"]);
    members.until_in_sync(2);
    let (datum, slot, addr) = members.datum_led_by("a");
    let table = members.watch.table();
    let entry = &table.slots[usize::from(slot.0)];
    let epoch = entry.leader_epoch;
    let outsider = *table.nodes.keys().find(|number| entry.position(**number).is_none()).unwrap();
    let follower = entry.members()[1].node();
    let good = hello(&table, follower);
    let ReplicaMessage::Hello { protocol, shard, slot_count, node, incarnation, table_epoch, cluster } = good
    else {
        unreachable!()
    };
    let with = |protocol, slot_count, node, incarnation, table_epoch, cluster| ReplicaMessage::Hello {
        protocol,
        shard,
        slot_count,
        node,
        incarnation,
        table_epoch,
        cluster,
    };
    for (first, code, words) in [
        (
            with(9, slot_count, node, incarnation, table_epoch, cluster),
            ErrorCode::ProtocolVersion,
            "version 9",
        ),
        (with(protocol, 128, node, incarnation, table_epoch, cluster), ErrorCode::Configuration, "128"),
        (
            with(protocol, slot_count, node, incarnation, table_epoch, "other"),
            ErrorCode::Configuration,
            "cluster \"slotcast\"",
        ),
        (
            with(protocol, slot_count, node, incarnation + 1, table_epoch, cluster),
            ErrorCode::DuplicateNode,
            "two processes with one data.id",
        ),
        (
            with(protocol, slot_count, node, incarnation + 1, table_epoch + 9, cluster),
            ErrorCode::ReplicaRefused,
            "come back",
        ),
        (
            with(protocol, slot_count, NodeNumber(99), incarnation, table_epoch, cluster),
            ErrorCode::ReplicaRefused,
            "node 99",
        ),
        (ReplicaMessage::Follow(Vec::new()), ErrorCode::Unexpected, "replica hello"),
    ] {
        let mut raw = RawReplica::open(addr);
        raw.send(&first);
        let (told, text) = raw.expect_error();
        assert_eq!(told, code as u16, "{text}");
        assert!(text.contains(words), "{text}");
    }

    // Slot by slot: the connection goes on.
    let mut raw = RawReplica::open(addr);
    raw.send(&hello(&table, outsider));
    raw.expect(|message| matches!(message, ReplicaMessage::Welcome { .. }).then_some(()));
    let foreign = (0..SLOTS as u16)
        .map(SlotId)
        .find(|slot| table.slots[usize::from(slot.0)].leader() != Some(members.number("a")))
        .unwrap();
    let not_led = FollowItem {
        slot: foreign,
        leader_epoch: table.slots[usize::from(foreign.0)].leader_epoch,
        since: Revision::ZERO,
    };
    let item = FollowItem { slot, leader_epoch: epoch, since: Revision::ZERO };
    for (item, reason) in [
        (not_led, ReplicaRefusal::NotLeader),
        (FollowItem { leader_epoch: epoch + 1, ..item }, ReplicaRefusal::FutureEpoch),
        (FollowItem { leader_epoch: epoch - 1, ..item }, ReplicaRefusal::OlderEpoch),
        (item, ReplicaRefusal::NotMember),
    ] {
        raw.send(&ReplicaMessage::Follow(vec![item]));
        assert_eq!(raw.expect_refused(), (item.slot, Some(reason)));
    }
    let a = members.node("a").admin.addr;
    until_metric(a, "data_replica_refused", "reason=\"not_member\"", |count| count == 1.0);
    until_metric(a, "data_link_errors", "reason=\"configuration\"", |count| count == 2.0);

    // Who says that it is beyond its leader is not believed, neither at first nor later. It takes the place of the real one,
    // which comes back.
    let mut raw = RawReplica::open(addr);
    raw.send(&good);
    raw.expect(|message| matches!(message, ReplicaMessage::Welcome { .. }).then_some(()));
    let beyond = Revision(Revision::open(epoch).0 | 1 << 30);
    raw.send(&ReplicaMessage::Follow(vec![FollowItem { since: beyond, ..item }]));
    assert_eq!(raw.expect_refused(), (slot, Some(ReplicaRefusal::Ahead)));
    let lie = ReplicaAckItem { slot, applied: beyond, durable: Revision::ZERO };
    raw.send(&ReplicaMessage::Ack(vec![lie]));
    let (code, text) = raw.expect_error();
    assert_eq!(code, ErrorCode::ReplicaRefused as u16);
    assert!(text.contains("never beyond"), "{text}");
    until_metric(a, "data_replica_refused", "by=\"this\",reason=\"ahead\"", |count| count == 2.0);

    let mut link = Raw::link(addr, 5, SLOTS);
    publish_when_led(&mut link, &datum, 1, b"one");
    let name = &table.nodes[&follower].id;
    publishers(members.node(name), 1);
    members.stop();
}

/// A node that leads slots and says to its followers what a test wants.
struct FalseLeader {
    listener: TcpListener,
    watch: Watch,
    number: NodeNumber,
    incarnation: u64,
}

impl FalseLeader {
    /// Joins as `id`, and waits until it leads slots that others follow.
    fn join(members: &mut Members, id: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let incarnation = 4711;
        let entry = NodeEntry {
            id: id.into(),
            incarnation,
            zone: "".into(),
            ip: [127, 0, 0, 1].into(),
            ports: vec![listener.local_addr().unwrap().port()],
            http: 0,
            draining: false,
        };
        let mut watch = Watch::of(members.meta.server.addr, MetaPeer::Data(Arc::new(entry)));
        let table = watch.until("slots for the false leader", |table| {
            let number = table.number_of(id);
            number.is_some() && table.slots.iter().any(|it| it.leader() == number && it.members().len() > 1)
        });
        Self { listener, watch, number: table.number_of(id).unwrap(), incarnation }
    }

    /// The next connection of a follower, which introduces itself properly.
    fn accept(&mut self, follower: NodeNumber) -> RawReplica {
        self.watch.step();
        let mut raw = RawReplica::over(self.listener.accept().unwrap().0);
        let node = raw.expect(|message| match message {
            ReplicaMessage::Hello { node, cluster, .. } => Some((*node, cluster.to_string())),
            _ => None,
        });
        assert_eq!(node, (follower, "slotcast".into()));
        raw
    }

    fn welcome(&mut self, raw: &mut RawReplica) {
        let (incarnation, table_epoch) = (self.incarnation, self.watch.table().epoch);
        raw.send(&ReplicaMessage::Welcome { incarnation, table_epoch });
    }
}

impl RawReplica {
    fn expect_follow(&mut self, slot: SlotId) -> FollowItem {
        self.expect(|message| match message {
            ReplicaMessage::Follow(items) => items.iter().find(|item| item.slot == slot).copied(),
            _ => None,
        })
    }

    fn expect_applied(&mut self, slot: SlotId, revision: Revision) {
        self.expect(|message| match message {
            ReplicaMessage::Ack(items) => {
                items.iter().any(|item| item.slot == slot && item.applied == revision).then_some(())
            }
            _ => None,
        });
    }
}

#[test]
fn a_follower_takes_only_what_fits_from_whom_it_has_to_be() {
    let mut members = Members::start(&["a"], &["meta.nodes_min=2", "meta.node_lease=30s"]);
    let mut leader = FalseLeader::join(&mut members, "x");
    let (table, x) = (leader.watch.table(), leader.number);
    let a = table.number_of("a").unwrap();
    let mut datums = (0..).map(|n| DataId::new("public", "default", &format!("service-{n}")).unwrap());
    let datum = datums
        .find(|datum| {
            let entry = &table.slots[usize::from(datum.key().slot(SLOTS).0)];
            entry.leader() == Some(x) && entry.position(a).is_some()
        })
        .unwrap();
    let slot = datum.key().slot(SLOTS);
    let epoch = table.slots[usize::from(slot.0)].leader_epoch;
    let at = |counter| Revision(Revision::open(epoch).0 + counter);
    let writer = Raw::link(members.node("a").server.addrs[0], 9, SLOTS);
    let batch = |from: u64, to: u64, register: u64| {
        let mut open = OpenBatch::default();
        for entry in entries(&writer.put(&datum, register, 1, 1, b"one")) {
            open.push(entry.unwrap());
        }
        open.seal(slot, at(from), at(to), 1)
    };
    let whole = |revision| {
        ReplicaMessage::Part(ReplicaPart {
            slot,
            is_first: true,
            is_last: true,
            revision,
            lineage: Vec::new(),
            entries: &[],
        })
    };

    // Somebody else answers at the leader's address.
    let mut raw = leader.accept(a);
    let incarnation = leader.incarnation + 1;
    raw.send(&ReplicaMessage::Welcome { incarnation, table_epoch: table.epoch });
    raw.expect_end();

    let mut raw = leader.accept(a);
    leader.welcome(&mut raw);
    let item = raw.expect_follow(slot);
    assert_eq!((item.leader_epoch, item.since), (epoch, Revision::ZERO));
    raw.send(&whole(at(0)));
    raw.expect_applied(slot, at(0));
    raw.send(&ReplicaMessage::Batch { slot, after: at(0), batch: &batch(0, 1, 1) });
    raw.expect_applied(slot, at(1));
    // One is missing: it asks from where it is, and takes what fits.
    raw.send(&ReplicaMessage::Batch { slot, after: at(2), batch: &batch(2, 3, 3) });
    assert_eq!(raw.expect_follow(slot).since, at(1));
    raw.send(&ReplicaMessage::Batch { slot, after: at(1), batch: &batch(1, 2, 2) });
    raw.expect_applied(slot, at(2));
    publishers(members.node("a"), 2);

    // What is damaged ends the link. What was there stays until the whole slot has come.
    let mut damaged = batch(2, 3, 3);
    *damaged.last_mut().unwrap() ^= 1;
    raw.send(&ReplicaMessage::Batch { slot, after: at(2), batch: &damaged });
    raw.expect_end();
    let mut raw = leader.accept(a);
    leader.welcome(&mut raw);
    assert_eq!(raw.expect_follow(slot).since, Revision::ZERO);
    publishers(members.node("a"), 2);
    raw.send(&whole(at(5)));
    raw.expect_applied(slot, at(5));
    publishers(members.node("a"), 0);
    assert_eq!(metric(members.node("a").admin.addr, "data_replica_gaps", ""), 1.0);

    // It says that it has nothing that this one has: asked for from nothing again.
    let refused = ReplicaMessage::Refused { slot, code: ReplicaRefusal::Ahead as u16, leader_epoch: epoch };
    raw.send(&refused);
    assert_eq!(raw.expect_follow(slot).since, Revision::ZERO);
    drop(leader);
    members.stop();
}
