//! A link to one shard of a data node: writes and interests go out in one order, diffs and outcomes come back.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use slotcast_engine::{
    batch::write_name,
    digest::Digest,
    id::{DataId, DatumKey, Nanos, RegisterId, SessionId, Version},
};

use crate::{
    io::ring::ConnId,
    wire::{Decoder, Message, header::PROTOCOL, message::SubscribeItem},
};

/// Bytes of entries in one write frame; more go into the next.
const WRITE_BYTES: usize = 256 * 1024;
/// Data ids in one subscribe frame.
const SUBSCRIBE_ITEMS: usize = 256;
/// Leader epochs that a client may be ahead of what the shard itself has told.
const CLIENT_EPOCHS_AHEAD: u32 = 1024;
/// Shortest time between two greetings that clients' claims are the reason of.
const GREETING_INTERVAL: u64 = 10 * Nanos::SECOND;
/// First and longest pause before a link is tried again.
const RETRY: (u64, u64) = (Nanos::SECOND / 50, Nanos::SECOND);

/// Where a link stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LinkState {
    /// To be tried from then on.
    Down(Nanos),
    /// The connect is under way.
    Connecting,
    /// The hello is out.
    Greeting,
    /// Writes and interests flow.
    Up,
}

/// A write whose outcome is not known yet.
pub(super) type Sent = ((DatumKey, RegisterId), Version);

/// The writes of one frame, all of one durability class: frames of persistent ones are answered later, out of their order.
pub(super) enum Writes {
    /// Of registrations that the session holds.
    Ephemeral(Vec<Sent>),
    /// By their numbers among the undecided ones.
    Persistent(Vec<u64>),
}

impl Writes {
    fn is_empty(&self) -> bool {
        match self {
            Writes::Ephemeral(sent) => sent.is_empty(),
            Writes::Persistent(sent) => sent.is_empty(),
        }
    }
}

/// One link.
pub(super) struct Link {
    pub(super) addr: SocketAddr,
    pub(super) conn: Option<ConnId>,
    pub(super) state: LinkState,
    pub(super) decoder: Decoder,
    pub(super) out: Vec<u8>,
    /// The shard's run that this session was last linked to.
    pub(super) run: u64,
    /// Largest leader epoch seen of this shard, by this session or by a client of it.
    pub(super) epoch_seen: u32,
    /// The leader epoch that the shard told.
    pub(super) epoch: u32,
    /// Digest over everything sent that the shard should hold.
    pub(super) digest: Digest,
    pub(super) mark: u64,
    pub(super) confirmed: BTreeSet<SessionId>,
    pub(super) settled: bool,
    pub(super) next_heartbeat: Nanos,
    /// Latest question whose answers are all still to come, or have come since.
    pub(super) answered: u64,
    /// Latest question asked, and whether more may be asked with it in this turn.
    question: u64,
    question_open: bool,
    /// A client's list is of a later leader than the shard is: the shard has to be told in a greeting.
    wants_greeting: bool,
    /// Since when something is sent that the shard has not answered with anything.
    pub(super) unanswered_since: Option<Nanos>,
    greeted_for_client: Option<Nanos>,
    retry: u64,
    sequence: u64,
    entries: Vec<u8>,
    open: Writes,
    in_flight: BTreeMap<u64, Writes>,
    named: BTreeSet<DatumKey>,
    items: Vec<SubscribeItem>,
}

impl Link {
    pub(super) fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            conn: None,
            state: LinkState::Down(Nanos(0)),
            decoder: Decoder::default(),
            out: Vec::new(),
            run: 0,
            epoch_seen: 0,
            epoch: 0,
            digest: Digest::default(),
            mark: 0,
            confirmed: BTreeSet::new(),
            settled: false,
            next_heartbeat: Nanos(0),
            answered: 0,
            question: 0,
            question_open: false,
            wants_greeting: false,
            unanswered_since: None,
            greeted_for_client: None,
            retry: RETRY.0,
            sequence: 0,
            entries: Vec::new(),
            open: Writes::Ephemeral(Vec::new()),
            in_flight: BTreeMap::new(),
            named: BTreeSet::new(),
            items: Vec::new(),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.state == LinkState::Up
    }

    /// The connection stands: say who we are.
    pub(super) fn greet(&mut self, session: SessionId, slot_count: u32) {
        self.state = LinkState::Greeting;
        let hello = Message::LinkHello {
            protocol: PROTOCOL,
            slot_count,
            session,
            run: self.run,
            epoch_seen: self.epoch_seen,
        };
        hello.write(&mut self.out);
    }

    /// A client holds a list of a later leader than this link knows of. Its word counts in the next greeting, so that a
    /// fresh leader opens a larger epoch; it is not believed beyond a bound, or one client could use the epochs up.
    pub(super) fn hear_epoch(&mut self, epoch: u32) {
        if epoch <= self.epoch.saturating_add(CLIENT_EPOCHS_AHEAD) {
            self.epoch_seen = self.epoch_seen.max(epoch);
        }
    }

    /// A fresh answer is behind a list that a client holds: the shard has to open a larger epoch. Returns whether it will
    /// be asked to.
    pub(super) fn demand_epoch(&mut self, above: u32) -> bool {
        if above > self.epoch.saturating_add(CLIENT_EPOCHS_AHEAD) {
            return false;
        }
        self.epoch_seen = self.epoch_seen.max(above + 1);
        self.wants_greeting = true;
        true
    }

    /// Gives the connection up when nothing has come back for `silence_max`: the shard's machine may be gone without a word,
    /// and a link that only waits would not find out.
    pub(super) fn give_up_silent(&mut self, silence_max: u64, now: Nanos) {
        if self.conn.is_some() && self.unanswered_since.is_some_and(|at| now.since(at) > silence_max) {
            self.unanswered_since = None;
            self.state = LinkState::Down(now);
        }
    }

    /// Gives the connection up for a new greeting, if one is wanted and the last was long enough ago.
    pub(super) fn greet_again(&mut self, now: Nanos) {
        let due = self.greeted_for_client.is_none_or(|at| now.since(at) >= GREETING_INTERVAL);
        if self.wants_greeting && due && self.is_up() {
            (self.wants_greeting, self.greeted_for_client) = (false, Some(now));
            self.state = LinkState::Down(now);
        }
    }

    /// The shard has answered. What was in flight is unknown; everything is told again after this. Returns whether the
    /// shard's run is the one that this session knew.
    pub(super) fn welcome(&mut self, run: u64, last_sequence: u64, epoch: u32) -> bool {
        let same_run = self.run == run;
        self.state = LinkState::Up;
        (self.run, self.epoch) = (run, epoch);
        self.epoch_seen = self.epoch_seen.max(epoch);
        self.sequence = last_sequence;
        self.retry = RETRY.0;
        self.next_heartbeat = Nanos(0);
        // Everything is asked anew over this connection, so every answer over it is newer than what was asked before.
        (self.answered, self.question_open) = (self.question, false);
        self.wants_greeting = false;
        if !same_run {
            (self.mark, self.settled) = (0, false);
            self.confirmed.clear();
        }
        same_run
    }

    /// The connection is gone, or never came up.
    pub(super) fn lose(&mut self, now: Nanos) {
        self.conn = None;
        self.unanswered_since = None;
        self.state = LinkState::Down(now.after(self.retry));
        self.retry = (self.retry * 2).min(RETRY.1);
        self.decoder = Decoder::default();
        self.out = Vec::new();
        self.entries.clear();
        self.open = Writes::Ephemeral(Vec::new());
        self.in_flight.clear();
        self.named.clear();
        self.items.clear();
    }

    /// Queues a change entry. The first of a data id on this connection is preceded by its name.
    pub(super) fn write(&mut self, sent: Sent, id: Option<&DataId>, entry: &[u8]) {
        if !self.is_up() {
            return;
        }
        if matches!(self.open, Writes::Persistent(_)) {
            self.close_write();
            self.open = Writes::Ephemeral(Vec::new());
        }
        self.append(sent.0.0, id, entry);
        if let Writes::Ephemeral(open) = &mut self.open {
            open.push(sent);
        }
        if self.entries.len() >= WRITE_BYTES {
            self.close_write();
        }
    }

    /// Queues a change of a persistent registration.
    pub(super) fn write_persistent(
        &mut self,
        number: u64,
        datum: DatumKey,
        id: Option<&DataId>,
        entry: &[u8],
    ) {
        if !self.is_up() {
            return;
        }
        if matches!(self.open, Writes::Ephemeral(_)) {
            self.close_write();
            self.open = Writes::Persistent(Vec::new());
        }
        self.append(datum, id, entry);
        if let Writes::Persistent(open) = &mut self.open {
            open.push(number);
        }
        if self.entries.len() >= WRITE_BYTES {
            self.close_write();
        }
    }

    fn append(&mut self, datum: DatumKey, id: Option<&DataId>, entry: &[u8]) {
        if let Some(id) = id
            && self.named.insert(datum)
        {
            write_name(&mut self.entries, datum, id.as_bytes());
        }
        self.entries.extend_from_slice(entry);
    }

    /// The shard has forgotten the name of a data id: tell it again before the next put.
    pub(super) fn forget_name(&mut self, datum: DatumKey) {
        self.named.remove(&datum);
    }

    /// Queues an interest.
    pub(super) fn subscribe(&mut self, item: SubscribeItem) {
        if self.is_up() {
            self.items.push(item);
            if self.items.len() >= SUBSCRIBE_ITEMS {
                self.close_subscribe();
            }
        }
    }

    /// Queues an interest and returns the number of the question. Once `answered` has reached it, the next diff of the data
    /// id is the answer or newer: what the shard sent before it got the question has come before.
    pub(super) fn ask(&mut self, item: SubscribeItem) -> u64 {
        if !self.is_up() {
            // Everything is asked when the link comes up.
            return self.question;
        }
        if !std::mem::replace(&mut self.question_open, true) {
            self.question += 1;
            // Ahead of the interest: were it behind, the shard could answer that in an earlier turn, ahead of the pong.
            Message::Ping(self.question).write(&mut self.out);
        }
        self.subscribe(item);
        self.question
    }

    /// Queues any other message, behind what was queued before.
    pub(super) fn send(&mut self, message: &Message<'_>) {
        if self.is_up() {
            self.close_frames();
            message.write(&mut self.out);
        }
    }

    /// Turns what was queued into frames.
    pub(super) fn close_frames(&mut self) {
        self.close_write();
        self.close_subscribe();
        self.question_open = false;
    }

    /// The writes that a shard's answer decides, in their order.
    pub(super) fn decided(&mut self, sequence: u64) -> Option<Writes> {
        self.in_flight.remove(&sequence)
    }

    /// Write frames without an answer.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn close_write(&mut self) {
        if self.open.is_empty() {
            return;
        }
        self.sequence += 1;
        Message::Write { sequence: self.sequence, entries: &self.entries }.write(&mut self.out);
        self.entries.clear();
        let next = match self.open {
            Writes::Ephemeral(_) => Writes::Ephemeral(Vec::new()),
            Writes::Persistent(_) => Writes::Persistent(Vec::new()),
        };
        self.in_flight.insert(self.sequence, std::mem::replace(&mut self.open, next));
    }

    fn close_subscribe(&mut self) {
        if !self.items.is_empty() {
            Message::Subscribe(std::mem::take(&mut self.items)).write(&mut self.out);
        }
    }
}
