//! Good inputs to begin from: what the roles themselves say.

use slotcast_engine::{
    batch::{Change, ChangeKind, Durability, write_change, write_name, write_put},
    diff,
    digest::Digest,
    error::Refusal,
    id::{ClientId, DataId, RegisterId, Revision, SessionId, SlotId, Version},
    record::{Encoder, Instance, Record},
};
use slotcast_net::wire::{
    ErrorCode, Message,
    header::PROTOCOL,
    message::{SubscribeItem, write_ack, write_diff},
};

/// Slots of the clusters here.
pub(super) const SLOTS: u32 = 8;

/// Who says nothing wrong beside the peer that says anything: nobody else gets at this number by chance, or would take its place
/// by right.
pub(super) const BYSTANDER: u64 = 0x6d5a_0b1f_93c4_e287;

/// A data id of this number.
pub(super) fn service(number: u64) -> DataId {
    DataId::new("public", "default", &format!("service-{number}")).expect("a valid name")
}

/// Streams that stand for a peer that does nothing wrong.
pub(super) struct Goods {
    pub(super) ping: Vec<u8>,
    /// A client that publishes and subscribes.
    pub(super) client_stream: Vec<u8>,
}

impl Goods {
    pub(super) fn hello_of(&self, client: ClientId) -> Vec<u8> {
        written(&[Message::Hello { protocol: PROTOCOL, client }])
    }

    pub(super) fn link_hello_of(&self, session: SessionId) -> Vec<u8> {
        written(&[Message::LinkHello {
            protocol: PROTOCOL,
            slot_count: SLOTS,
            session,
            run: 0,
            epoch_seen: 0,
        }])
    }
}

pub(super) fn goods() -> Goods {
    Goods { ping: written(&[Message::Ping(7)]), client_stream: client_stream(7) }
}

fn written(messages: &[Message<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    messages.iter().for_each(|message| message.write(&mut out));
    out
}

fn record_of(id: &DataId, register: u64, client: u64) -> Vec<u8> {
    let name = if register.is_multiple_of(2) { "short" } else { "mw2051.codfw.example" };
    let instance = Instance { client, name: name.into(), zone: "codfw".into(), payload: vec![7; 20] };
    Encoder::default().encode(id.key(), RegisterId(register), &instance).expect("a valid instance").to_vec()
}

/// A name, two puts, and a removal if `removes`.
fn entries(id: &DataId, client: u64, owner: u64, number: u64, removes: bool) -> Vec<u8> {
    let mut out = Vec::new();
    write_name(&mut out, id.key(), id.as_bytes());
    let mut change = Change {
        kind: ChangeKind::Put,
        durability: Durability::Ephemeral,
        datum: id.key(),
        register: RegisterId(1),
        version: Version { number, attach: 1 },
        epoch: 0,
        owner: SessionId(owner),
    };
    for register in [1, 2] {
        change.register = RegisterId(register);
        let record = record_of(id, register, client);
        write_put(&mut out, &change, Record::read(&record).expect("just written"));
    }
    if removes {
        let version = Version { number: number + 1, attach: 1 };
        write_change(&mut out, &Change { kind: ChangeKind::Remove, version, ..change });
    }
    out
}

fn subscriptions() -> Message<'static> {
    let item = |number| SubscribeItem { id: service(number), since: Revision::ZERO, digest: 0 };
    Message::Subscribe((0..3).map(item).collect())
}

fn client_stream(client: u64) -> Vec<u8> {
    let [first, second] = [1, 3].map(|number| entries(&service(number % 3), client, 0, number, number == 3));
    written(&[
        Message::Hello { protocol: PROTOCOL, client: ClientId(client) },
        subscriptions(),
        Message::Write { sequence: 1, entries: &first },
        Message::Write { sequence: 2, entries: &second },
        Message::Unsubscribe(vec![service(2).key()]),
        Message::Ping(3),
    ])
}

pub(super) fn from_client() -> Vec<Vec<u8>> {
    let mut leaves = client_stream(8);
    Message::Subscribe(vec![SubscribeItem { id: service(1), since: Revision::open(1), digest: 9 }])
        .write(&mut leaves);
    vec![client_stream(7), leaves]
}

pub(super) fn from_session() -> Vec<Vec<u8>> {
    let [first, second] = [1, 3].map(|number| entries(&service(number % 3), 7, 0x51, number, number == 3));
    let hello = |run, epoch_seen| Message::LinkHello {
        protocol: PROTOCOL,
        slot_count: SLOTS,
        session: SessionId(0x51),
        run,
        epoch_seen,
    };
    let slot = service(1).key().slot(SLOTS);
    let link = |run, epoch_seen| {
        written(&[
            hello(run, epoch_seen),
            subscriptions(),
            Message::Write { sequence: 1, entries: &first },
            Message::Heartbeat { mark: 0, digest: Digest::default(), routes: 0, table_epoch: 0 },
            Message::Write { sequence: 2, entries: &second },
            Message::DigestRequest(slot),
            Message::Holds { datum: service(1).key(), registers: vec![RegisterId(1)] },
            Message::Unsubscribe(vec![service(2).key()]),
            Message::Heartbeat { mark: 2, digest: Digest { sum: 5, count: 1 }, routes: 0, table_epoch: 0 },
            Message::Ping(3),
        ])
    };
    vec![link(0, 0), link(3, 5)]
}

/// A session's writes to slots, behind its hello.
pub(super) fn writes_to(is_meant: impl Fn(SlotId) -> bool) -> Vec<u8> {
    let ids: Vec<DataId> = (0..8).map(service).filter(|id| is_meant(id.key().slot(SLOTS))).collect();
    let mut entry_bytes = Vec::new();
    for (number, id) in (1..).zip(&ids) {
        entry_bytes.extend(entries(id, 7, BYSTANDER, number, number % 2 == 0));
    }
    assert!(!ids.is_empty());
    written(&[Message::Write { sequence: 1, entries: &entry_bytes }])
}

/// A diff frame of a data id with these registrations.
fn diff_frame(out: &mut Vec<u8>, number: u64, span: (u64, u64), removes: &[RegisterId], owned: bool) {
    let id = service(number);
    let records: Vec<Vec<u8>> = [1, 2, 3].map(|register| record_of(&id, register, 7)).into();
    let puts: Vec<Record<'_>> =
        records.iter().map(|bytes| Record::read(bytes).expect("just written")).collect();
    let owners = [SessionId(0x51), SessionId(4), SessionId(5)];
    let at = |counter| if counter == 0 { Revision::ZERO } else { Revision(Revision::open(1).0 + counter) };
    let slot = if owned { id.key().slot(SLOTS) } else { SlotId::NONE };
    write_diff(out, slot, |body| {
        let owners = owned.then_some(&owners[..]);
        diff::write(body, id.key(), (at(span.0), at(span.1)), removes, owners, puts.into_iter());
        let is_snapshot = if span.0 == 0 { diff::SNAPSHOT } else { 0 };
        is_snapshot | if owned { diff::OWNERS } else { 0 }
    });
}

pub(super) fn from_node() -> Vec<Vec<u8>> {
    let welcome =
        Message::LinkWelcome { run: 3, last_sequence: 0, epoch: 1, shard: 0, shards: 1, slot_count: SLOTS };
    let mut out = written(&[welcome]);
    (0..3).for_each(|number| diff_frame(&mut out, number, (0, 4), &[], true));
    write_ack(&mut out, 1, &[Ok(Revision::open(1).next()), Err(Refusal::Superseded)]);
    diff_frame(&mut out, 1, (4, 6), &[RegisterId(8)], true);
    let differs = Some(vec![(service(1).key().slot(SLOTS), Digest { sum: 4, count: 2 })]);
    let answer = |differs| Message::HeartbeatAck {
        mark: 2,
        confirmed: vec![(SessionId(4), 0)],
        unsettled: vec![(service(4).key().slot(SLOTS), 1)],
        settled: true,
        stale: false,
        table_epoch: 0,
        differs,
    };
    let digests =
        vec![(service(1).key(), Digest { sum: 4, count: 2 }), (service(4).key(), Digest::default())];
    out.extend(written(&[
        answer(differs),
        Message::DatumDigests(service(1).key().slot(SLOTS), digests),
        Message::SubscribeRefused { datum: service(2).key(), code: Refusal::KeyCollision.code() },
        answer(None),
        Message::Pong(4),
    ]));
    vec![out]
}

pub(super) fn from_session_to_client() -> Vec<Vec<u8>> {
    let mut out =
        written(&[Message::Welcome { session: SessionId(5), publishers_max: 10, subscriptions_max: 10 }]);
    (0..3).for_each(|number| diff_frame(&mut out, number, (0, 4), &[], false));
    write_ack(&mut out, 1, &[Ok(Revision::open(1).next()), Err(Refusal::Superseded)]);
    diff_frame(&mut out, 1, (4, 6), &[RegisterId(8)], false);
    diff_frame(&mut out, 1, (5, 7), &[RegisterId(9)], false);
    out.extend(written(&[
        Message::SubscribeRefused { datum: service(2).key(), code: Refusal::TooManySubscriptions.code() },
        Message::Pong(4),
    ]));
    vec![out]
}

pub(super) fn streams() -> Vec<Vec<u8>> {
    let text = "a word on why";
    let error = Message::Error { code: ErrorCode::Draining as u16, retry_after_ms: 40, text };
    let mut all = from_session();
    all.extend([from_client(), from_node(), from_session_to_client()].concat());
    all.extend([super::replica::from_follower(), super::replica::from_leader()].concat());
    all.extend(super::control::from_peers());
    all.push(written(&[error, Message::Goodbye]));
    all
}

pub(super) fn settings() -> Vec<Vec<u8>> {
    [
        "session.push_batch_max=16\nsession.clients_max=100\ndata.settle=20ms\nslot_count=1024\n",
        "nodes=[{id=\"a\",addr=\"127.0.0.1:7000\",shards=2,slots=[0,511]},{id=\"b\",addr=\"[::1]:7000\",slots=[512,1023]}]",
        "data.storage=disk\ndata.data_dir=\"somewhere\"\ndata.http=127.0.0.1:0\nsession.accept_rate=500\n",
        "data.session_lease=\"30s\"\nsession.client_disconnect_grace=1s\nsession.cores=2\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}
