//! A client with the native client's own logic and an oracle beside it: what goes out and what comes in is read off the
//! socket, before the client's code gets it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
};

use slotcast_engine::{
    batch::{ChangeKind, Durability},
    error::Refusal,
    id::{ClientId, DataId, DatumKey, Nanos, RegisterId},
    record::RecordError,
};
use slotcast_net::{
    client::{ClientConfig, ClientState, Registration},
    io::{
        ring::{CloseReason, Event as SocketEvent},
        role::Role,
    },
    wire::{Decoder, Frame, FrameError, Kind, Message, header::FRAME_BYTES_MAX},
};

use crate::{
    chaos::{
        socket::Socket,
        trajectory::{Event, Trajectory},
        truth::{Seen, Taken, Truth, Violation, Wrong},
    },
    verify::frame::DiffFrame,
};

/// A list as the oracle has put it together.
#[derive(Default)]
struct List {
    /// Tells it from a list that was given up and begun anew.
    number: u64,
    revision: u64,
    content: BTreeMap<RegisterId, u64>,
}

/// An entry of a write: the step that it is, and whose.
type Written = (Taken, (DatumKey, RegisterId), Durability);

/// What all participants tell.
#[derive(Default)]
pub struct Notes {
    /// The truth about registrations.
    pub truth: Truth,
    /// What happened.
    pub story: Trajectory,
    /// What was wrong.
    pub violations: Vec<Violation>,
    /// Frames with lists or changes in them.
    pub diffs: u64,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Of these, the ones of persistent registrations.
    pub durable: u64,
    /// The longest wait for one of these since it was set to 0, in nanoseconds.
    pub longest_write: u64,
    /// Lists begun.
    lists: u64,
}

/// One client.
pub struct Participant {
    number: u32,
    sessions: Vec<SocketAddr>,
    state: ClientState,
    socket: Socket,
    lists: BTreeMap<DatumKey, List>,
    /// Left and asked for again: a change that was under way may still come.
    echoes: BTreeSet<DatumKey>,
    wanted: BTreeMap<DatumKey, DataId>,
    registered: Vec<(Registration, DataId)>,
    heard: Decoder,
    said: Decoder,
    /// Writes under way: sequence, when they were sent, and what each entry does.
    writes: VecDeque<(u64, u64, Vec<Written>)>,
    /// Since when it has no connection, through no doing of its own; 0 if it has one.
    lost_at: u64,
    may_be_gone: bool,
    /// It has given its connection up: what still comes over it is not heard.
    is_dropping: bool,
}

fn state_of(sessions: &[SocketAddr], seed: u64) -> ClientState {
    ClientState::new(&ClientConfig { sessions: sessions.to_vec(), client: ClientId(0) }, seed)
}

impl Participant {
    /// A client that is not connected yet; `seed` makes it another one than all before.
    pub fn new(number: u32, sessions: &[SocketAddr], seed: u64) -> Self {
        Self {
            number,
            sessions: sessions.to_vec(),
            state: state_of(sessions, seed),
            socket: Socket::default(),
            lists: BTreeMap::new(),
            echoes: BTreeSet::new(),
            wanted: BTreeMap::new(),
            registered: Vec::new(),
            heard: Decoder::default(),
            said: Decoder::default(),
            writes: VecDeque::new(),
            lost_at: 0,
            may_be_gone: false,
            is_dropping: false,
        }
    }

    /// The session that it is connected to, or was last.
    pub fn session(&self) -> Option<SocketAddr> {
        self.socket.peer
    }

    /// Registrations held.
    pub fn registered(&self) -> &[(Registration, DataId)] {
        &self.registered
    }

    /// Why it has no connection, as far as it was told.
    pub fn refusal(&self) -> Option<std::io::ErrorKind> {
        self.socket.refusal
    }

    /// Whether a session answers.
    pub fn is_up(&self) -> bool {
        self.state.is_up()
    }

    /// Registers another instance.
    pub fn publish(&mut self, id: &DataId, payload: &[u8]) -> Result<(), RecordError> {
        let registration = self.state.publish(id, "instance", "zone", payload)?;
        self.registered.push((registration, id.clone()));
        Ok(())
    }

    /// Changes a registration.
    pub fn update(&mut self, which: usize, payload: &[u8]) -> Result<(), RecordError> {
        let (registration, id) = self.registered[which].clone();
        self.state.publish_as(registration, &id, "instance", "zone", payload)
    }

    /// Removes a registration.
    pub fn remove(&mut self, which: usize) {
        let (registration, _) = self.registered.swap_remove(which);
        self.state.unpublish(registration);
    }

    /// Stores a persistent registration, or changes it.
    pub fn keep(
        &mut self,
        id: &DataId,
        (register, version): (RegisterId, u64),
        payload: &[u8],
    ) -> Result<(), RecordError> {
        self.state.publish_persistent(id, (register, version), "kept", "zone", payload).map(|_| ())
    }

    /// Removes a persistent registration, if it is there.
    pub fn remove_kept(&mut self, id: &DataId, (register, version): (RegisterId, u64)) {
        self.state.remove_persistent(id, register, version);
    }

    /// Subscribes, or leaves if it has.
    pub fn toggle(&mut self, id: &DataId) {
        if self.wanted.remove(&id.key()).is_some() {
            self.state.unsubscribe(id);
            self.lists.remove(&id.key());
            self.echoes.insert(id.key());
        } else {
            self.wanted.insert(id.key(), id.clone());
            self.state.subscribe(id);
        }
    }

    /// Drops the connection and finds no session until `offline_until`.
    pub fn drop_connection(&mut self, now: u64, offline_until: u64, notes: &mut Notes) {
        notes.story.note(now, Some(self.number), Event::Connection("drops its connection"));
        notes.truth.may_go(now, self.number);
        self.may_be_gone = true;
        self.is_dropping = self.state.is_up();
        self.state.drop_connection();
        self.socket.stay_offline(offline_until);
    }

    /// Says goodbye, and comes back as another client that wants the same and has registered nothing.
    pub fn leave(&mut self, now: u64, seed: u64, notes: &mut Notes) {
        notes.story.note(
            now,
            Some(self.number),
            Event::Connection("says goodbye and is another one from now on"),
        );
        self.state.leave();
        self.state.turn(Nanos(now), &mut self.socket);
        self.read_said(now, notes);
        notes.truth.may_go(now, self.number);
        let wanted = std::mem::take(&mut self.wanted);
        *self = Self::new(self.number, &self.sessions, seed);
        wanted.values().for_each(|id| self.toggle(id));
    }

    /// Does everything that is due. When a session has not been reached for `lease`, what it held is taken to be gone.
    pub fn step(&mut self, now: u64, lease: u64, notes: &mut Notes) {
        let heard = self.socket.look(now);
        let conn = self.socket.conn();
        if heard.is_new {
            let port = self.socket.peer.map_or(0, |peer| peer.port());
            notes.story.note(now, Some(self.number), Event::Connected(port));
            self.state.handle(SocketEvent::Connected { conn }, Nanos(now));
        }
        if !heard.bytes.is_empty() && !self.is_dropping {
            self.read_heard(&heard.bytes, now, notes);
            self.state.handle(SocketEvent::Received { conn, bytes: &heard.bytes }, Nanos(now));
        }
        if heard.is_over {
            notes.story.note(now, Some(self.number), Event::Connection("has lost its connection"));
            (self.heard, self.said) = (Decoder::default(), Decoder::default());
            self.writes.clear();
            self.echoes.clear();
            self.is_dropping = false;
            self.state.handle(SocketEvent::Closed { conn, reason: CloseReason::Eof }, Nanos(now));
        }
        let was_up = self.state.is_up();
        self.state.turn(Nanos(now), &mut self.socket);
        self.read_said(now, notes);
        while self.state.poll_update().is_some() {}
        if was_up {
            (self.lost_at, self.may_be_gone) = (0, false);
        } else if self.lost_at == 0 {
            self.lost_at = now;
        } else if !self.may_be_gone && now - self.lost_at > lease {
            notes.truth.may_go(now, self.number);
            self.may_be_gone = true;
        }
    }

    /// Why it does not hold yet what it should; `settled` tells what a data id has to hold.
    pub fn unsettled(
        &self,
        settled: &BTreeMap<DatumKey, Vec<(RegisterId, u64)>>,
    ) -> Option<(DatumKey, String)> {
        if !self.state.is_up() || !self.state.is_settled() {
            let datum = self.wanted.keys().next().copied().unwrap_or(DatumKey(0));
            let what = if self.state.is_up() { "waits for acknowledgements" } else { "is not connected" };
            return Some((datum, what.into()));
        }
        self.wanted.keys().find_map(|datum| {
            let held = self.lists.get(datum).map(|list| &list.content);
            let expected = settled.get(datum).map_or(&[][..], Vec::as_slice);
            let same =
                held.is_some_and(|held| held.iter().map(|(a, b)| (*a, *b)).eq(expected.iter().copied()));
            (!same).then(|| {
                let held: Option<Vec<_>> = held.map(|held| held.iter().collect());
                (*datum, format!("holds {held:x?}, and should hold {expected:x?}"))
            })
        })
    }

    fn violation(&self, wrong: Wrong, now: u64, datum: DatumKey, what: String, notes: &mut Notes) {
        notes.violations.push(Violation { wrong, at: now, client: self.number, datum, what });
    }

    fn read_said(&mut self, now: u64, notes: &mut Notes) {
        let bytes = std::mem::take(&mut self.socket.said);
        let mut decoder = std::mem::take(&mut self.said);
        let read = decoder.feed(&bytes, FRAME_BYTES_MAX, |frame| {
            match Message::read(frame)? {
                Message::Write { sequence, entries } => self.note_write(now, sequence, entries, notes),
                Message::Subscribe(items) => {
                    for item in items {
                        let (datum, since) = (item.id.key(), item.since.0);
                        if since == 0 {
                            self.lists.remove(&datum);
                        }
                        notes.story.note(now, Some(self.number), Event::Asked(datum, since));
                    }
                }
                _ => {}
            }
            Ok::<_, FrameError>(())
        });
        self.said = decoder;
        if let Err(error) = read {
            self.violation(Wrong::Refused, now, DatumKey(0), format!("the client says {error}"), notes);
        }
    }

    fn note_write(&mut self, now: u64, sequence: u64, bytes: &[u8], notes: &mut Notes) {
        let mut written = Vec::new();
        for entry in Message::entries(bytes).flatten() {
            let content = match entry.change.kind {
                ChangeKind::Put => entry.record().map(|record| record.checksum()),
                ChangeKind::Remove => None,
                _ => continue,
            };
            let key = (entry.change.datum, entry.change.register);
            let taken = match entry.change.durability {
                Durability::Ephemeral => notes.truth.sent(now, self.number, key, content),
                Durability::Persistent => notes.truth.kept(now, self.number, key, content),
            };
            written.push((taken, key, entry.change.durability));
            notes.story.note(now, Some(self.number), Event::Sent(key.0, key.1, content));
        }
        self.writes.push_back((sequence, now, written));
    }

    fn read_heard(&mut self, bytes: &[u8], now: u64, notes: &mut Notes) {
        let mut decoder = std::mem::take(&mut self.heard);
        let read = decoder.feed(bytes, FRAME_BYTES_MAX, |frame| {
            self.read_frame(frame, now, notes);
            Ok::<_, FrameError>(())
        });
        self.heard = decoder;
        if let Err(error) = read {
            self.violation(Wrong::Refused, now, DatumKey(0), format!("the session says {error}"), notes);
        }
    }

    fn read_frame(&mut self, frame: Frame<'_>, now: u64, notes: &mut Notes) {
        if frame.kind == Kind::Diff {
            match DiffFrame::read(frame.bytes) {
                Ok(diff) => self.apply(&diff, now, notes),
                Err(fault) => {
                    self.violation(Wrong::Refused, now, DatumKey(0), format!("a diff: {fault}"), notes)
                }
            }
            return;
        }
        match Message::read(frame) {
            Ok(Message::WriteAck { sequence, outcomes }) => {
                let Some(at) = self.writes.iter().position(|(sent, ..)| *sent == sequence) else { return };
                let Some((_, sent_at, written)) = self.writes.remove(at) else { return };
                notes.longest_write = notes.longest_write.max(now - sent_at);
                for ((taken, key, durability), outcome) in written.into_iter().zip(outcomes.iter()) {
                    let told = outcome.map(|revision| revision.0);
                    if let Ok(revision) = told {
                        notes.truth.acknowledged(now, taken, revision);
                        notes.acknowledged += 1;
                        notes.durable += u64::from(durability == Durability::Persistent);
                    }
                    let told = told.map_err(|refusal| refusal.to_string());
                    notes.story.note(now, Some(self.number), Event::Acknowledged(key.0, key.1, told));
                    if let Err(refusal) = outcome
                        && !is_to_be_expected(refusal)
                    {
                        self.violation(Wrong::WriteRefused, now, key.0, refusal.to_string(), notes);
                    }
                }
            }
            Ok(Message::SubscribeRefused { datum, code }) => {
                self.violation(Wrong::Refused, now, datum, format!("subscription refused: {code}"), notes);
            }
            Ok(Message::Error { code, text, .. }) => {
                let what = format!("client {} is told error {code}: {text}", self.number);
                notes.story.note(now, None, Event::Process(what));
            }
            Ok(_) => {}
            Err(error) => self.violation(Wrong::Refused, now, DatumKey(0), error.to_string(), notes),
        }
    }

    fn apply(&mut self, diff: &DiffFrame<'_>, now: u64, notes: &mut Notes) {
        notes.diffs += 1;
        let puts: Vec<(RegisterId, u64)> =
            diff.puts.iter().map(|put| (put.register, put.checksum())).collect();
        let told = Event::Told {
            datum: diff.datum,
            is_snapshot: diff.is_snapshot,
            span: (diff.from, diff.to),
            removes: diff.removes.clone(),
            puts: puts.clone(),
        };
        notes.story.note(now, Some(self.number), told);
        if !self.wanted.contains_key(&diff.datum) {
            return;
        }
        if diff.is_snapshot {
            self.echoes.remove(&diff.datum);
        } else if self.echoes.contains(&diff.datum) {
            return;
        }
        let held = self.lists.get(&diff.datum).map(|list| list.revision);
        let fault = match held {
            Some(revision) if diff.to < revision => Some((Wrong::Stale, revision)),
            Some(revision) if !diff.is_snapshot && diff.from > revision => Some((Wrong::Refused, revision)),
            None if !diff.is_snapshot => Some((Wrong::Refused, 0)),
            _ => None,
        };
        if let Some((wrong, held)) = fault {
            let [held, from, to] = [held, diff.from, diff.to].map(crate::chaos::truth::revision);
            let kind = if diff.is_snapshot { "snapshot" } else { "diff" };
            let what = format!("a {kind} from {from} to {to} for a list at {held}");
            self.violation(wrong, now, diff.datum, what, notes);
            return;
        }
        let list = self.lists.entry(diff.datum).or_insert_with(|| {
            notes.lists += 1;
            List { number: notes.lists, ..List::default() }
        });
        if diff.is_snapshot {
            list.content.clear();
        }
        diff.removes.iter().for_each(|register| _ = list.content.remove(register));
        list.content.extend(puts);
        list.revision = diff.to;
        notes.truth.saw(Seen {
            at: now,
            client: self.number,
            number: list.number,
            datum: diff.datum,
            revision: diff.to,
            list: list.content.iter().map(|(register, content)| (*register, *content)).collect(),
        });
    }
}

/// Refusals after which a client tries once more, or has nothing more to do.
fn is_to_be_expected(refusal: Refusal) -> bool {
    matches!(
        refusal,
        Refusal::Overloaded
            | Refusal::NotOwner
            | Refusal::UnknownRegistration
            | Refusal::Superseded
            // Where a slot has a gap until its snapshot is there.
            | Refusal::StorageFailed
    )
}
