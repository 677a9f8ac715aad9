//! A link to one shard of a data node: writes and interests go out in one order, diffs and outcomes come back.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
};

use slotcast_engine::{
    batch::{ChangeKind, Entry, write_name},
    digest::Digest,
    id::{DataId, DatumKey, Nanos, RegisterId, SessionId, SlotId, Version, route},
};

use crate::{
    io::ring::ConnId,
    wire::{Decoder, Message, header::PROTOCOL, message::SubscribeItem},
};

/// Bytes of entries in one write frame; more go into the next.
const WRITE_BYTES: usize = 256 * 1024;
/// Data ids in one subscribe frame.
const SUBSCRIBE_ITEMS: usize = 256;
/// Write frames that no session has ever sent over its links to one shard: beyond it the count in a welcome is none.
pub(super) const SEQUENCE_MAX: u64 = 1 << 62;
/// Leader epochs that a client may be ahead of what the shard itself has told.
const CLIENT_EPOCHS_AHEAD: u32 = 1024;
/// Shortest time between two greetings that clients' claims are the reason of.
const GREETING_INTERVAL: u64 = 10 * Nanos::SECOND;
/// First and longest pause before a link is tried again.
const RETRY: (u64, u64) = (Nanos::SECOND / 50, Nanos::SECOND);
/// First and longest pause before a heartbeat that finds the shard at another table, or different, is followed by the next.
const HURRY: (u64, u64) = (Nanos::SECOND / 200, Nanos::SECOND / 2);

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

impl LinkState {
    /// The states' names, in the order of [`LinkState::index`].
    pub(super) const LABELS: [&'static str; 4] = ["down", "connecting", "greeting", "up"];

    pub(super) fn index(self) -> usize {
        match self {
            LinkState::Down(_) => 0,
            LinkState::Connecting => 1,
            LinkState::Greeting => 2,
            LinkState::Up => 3,
        }
    }
}

/// A write whose outcome is not known yet.
#[derive(Clone, Copy)]
pub(super) struct Sent {
    pub(super) key: (DatumKey, RegisterId),
    pub(super) version: Version,
    pub(super) kind: ChangeKind,
    /// The leader epoch of the slot when it was sent.
    pub(super) epoch: u32,
}

/// The writes of one frame, all of one durability class: frames of persistent ones are answered later, out of their order.
pub(super) enum Writes {
    /// Of registrations that the session holds.
    Ephemeral(Vec<Sent>),
    /// By their numbers among the undecided ones, each with the leader epoch of the slot when it was sent.
    Persistent(Vec<(u64, u32)>),
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
    /// Slots that the shard leads, by this session's table.
    pub(super) slots_led: usize,
    /// Sum over those slots and their leader epochs: whether the shard means the same. 0 where routes are configured.
    pub(super) routes: u64,
    pub(super) mark: u64,
    /// Whose registrations the shard has, each with the turn of promotions of which that is known.
    pub(super) confirmed: BTreeMap<SessionId, u64>,
    /// Slots that the shard leads for less than a lease, each with the turn of its promotion.
    pub(super) unsettled: BTreeMap<SlotId, u64>,
    pub(super) settled: bool,
    /// The change of routes up to which `confirmed`, `unsettled` and `settled` speak of the slots that are led here.
    pub(super) covered: u64,
    pub(super) next_heartbeat: Nanos,
    last_heartbeat: Nanos,
    /// The change of routes at each heartbeat that is not answered yet.
    heartbeats: VecDeque<u64>,
    /// The slot table is followed; otherwise routes are configured.
    follows: bool,
    /// What the last heartbeat told was found right.
    agrees: bool,
    /// Digest and routes of the last heartbeat.
    told: (Digest, u64),
    /// Slots whose digests are asked for.
    repairs: usize,
    hurry: u64,
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
            slots_led: 0,
            routes: 0,
            mark: 0,
            confirmed: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            settled: false,
            covered: 0,
            next_heartbeat: Nanos(0),
            last_heartbeat: Nanos(0),
            heartbeats: VecDeque::new(),
            follows: false,
            agrees: false,
            told: (Digest::default(), 0),
            repairs: 0,
            hurry: HURRY.0,
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

    /// A link to a shard of a slot table.
    pub(super) fn following(addr: SocketAddr) -> Self {
        Self { follows: true, ..Self::new(addr) }
    }

    pub(super) fn is_up(&self) -> bool {
        self.state == LinkState::Up
    }

    /// The shard leads a slot by now.
    pub(super) fn take_on(&mut self, slot: SlotId, epoch: u32, held: Digest) {
        self.slots_led += 1;
        self.routes = self.routes.wrapping_add(route(slot, epoch));
        self.digest.sum = self.digest.sum.wrapping_add(held.sum);
        self.digest.count += held.count;
    }

    /// The shard does not lead a slot any more, or not in that epoch.
    pub(super) fn give_up(&mut self, slot: SlotId, epoch: u32, held: Digest) {
        self.slots_led -= 1;
        self.routes = self.routes.wrapping_sub(route(slot, epoch));
        self.digest.sum = self.digest.sum.wrapping_sub(held.sum);
        self.digest.count -= held.count;
    }

    /// When the next heartbeat is due: after `busy` nanoseconds while something is going on here, as told otherwise.
    pub(super) fn heartbeat_due(&self, busy: u64) -> Nanos {
        if self.follows && !self.is_quiet() {
            self.next_heartbeat.min(self.last_heartbeat.after(busy))
        } else {
            self.next_heartbeat
        }
    }

    /// Whether nothing has changed since the shard last agreed, and nobody is waited for.
    fn is_quiet(&self) -> bool {
        let awaited = !self.settled || !self.unsettled.is_empty();
        self.agrees && self.told == (self.digest, self.routes) && self.in_flight.is_empty() && !awaited
    }

    /// A heartbeat goes out; the next is due after `idle` nanoseconds. Everything sent before is in its digest.
    pub(super) fn beat(&mut self, generation: u64, table_epoch: u64, idle: u64, now: Nanos) {
        (self.last_heartbeat, self.next_heartbeat) = (now, now.after(idle));
        self.unanswered_since.get_or_insert(now);
        self.told = (self.digest, self.routes);
        self.heartbeats.push_back(generation);
        let (mark, digest, routes) = (self.mark, self.digest, self.routes);
        self.send(&Message::Heartbeat { mark, digest, routes, table_epoch });
    }

    /// A heartbeat is answered. Returns the change of routes that it was sent after.
    pub(super) fn beat_answered(&mut self, agrees: bool) -> u64 {
        self.agrees = agrees;
        if agrees {
            self.hurry = HURRY.0;
        }
        self.heartbeats.pop_front().unwrap_or(0)
    }

    /// The next heartbeat is to follow soon, but later each time until the shard agrees.
    pub(super) fn beat_soon(&mut self, now: Nanos) {
        if self.follows {
            self.next_heartbeat = self.next_heartbeat.min(now.after(self.hurry));
            self.hurry = (self.hurry * 2).min(HURRY.1);
        }
    }

    /// The shard does not lead what it was told to by this session's table: a heartbeat finds out who is behind.
    pub(super) fn doubt(&mut self) {
        if self.follows && self.heartbeats.is_empty() && self.agrees {
            (self.agrees, self.next_heartbeat) = (false, Nanos(0));
        }
    }

    /// The digests of a slot's data ids are asked for.
    pub(super) fn await_repair(&mut self, slots: usize) {
        self.repairs += slots;
    }

    /// What differed in a slot has been told again. A heartbeat follows the last one, for readers wait for it.
    pub(super) fn repaired(&mut self, now: Nanos) {
        self.repairs = self.repairs.saturating_sub(1);
        if self.repairs == 0 {
            self.beat_soon(now);
        }
    }

    /// The connection stands: say who we are.
    pub(super) fn greet(&mut self, session: SessionId, slot_count: u32) {
        self.state = LinkState::Greeting;
        let hello = Message::LinkHello {
            protocol: PROTOCOL,
            slot_count,
            session,
            run: self.run,
            // Where a table is followed, it alone opens epochs.
            epoch_seen: if self.follows { 0 } else { self.epoch_seen },
        };
        hello.write(&mut self.out);
    }

    /// A client holds a list of a later leader than this link knows of. Its word counts in the next greeting, so that a
    /// fresh leader opens a larger epoch; it is not believed beyond a bound, or one client could use the epochs up.
    pub(super) fn hear_epoch(&mut self, epoch: u32) {
        if !self.follows && epoch <= self.epoch.saturating_add(CLIENT_EPOCHS_AHEAD) {
            self.epoch_seen = self.epoch_seen.max(epoch);
        }
    }

    /// A fresh answer is behind a list that a client holds: the shard has to open a larger epoch. Returns whether it will
    /// be asked to.
    pub(super) fn demand_epoch(&mut self, above: u32) -> bool {
        debug_assert!(!self.follows, "where a table is followed, it alone opens epochs");
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
            (self.mark, self.settled, self.covered) = (0, false, 0);
            self.confirmed.clear();
            self.unsettled.clear();
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
        self.heartbeats.clear();
        (self.agrees, self.repairs, self.hurry) = (false, 0, HURRY.0);
    }

    /// Queues change entries of one registration, which travel in one frame; returns how many. The first of a data id on this
    /// connection is preceded by its name.
    pub(super) fn write<'a>(
        &mut self,
        id: Option<&DataId>,
        writes: impl Iterator<Item = (Sent, &'a [u8])>,
    ) -> usize {
        if !self.is_up() {
            return 0;
        }
        if matches!(self.open, Writes::Persistent(_)) {
            self.close_write();
            self.open = Writes::Ephemeral(Vec::new());
        }
        let mut count = 0;
        for (sent, entry) in writes {
            count += 1;
            self.append(sent.key.0, id, entry);
            if let Writes::Ephemeral(open) = &mut self.open {
                open.push(sent);
            }
        }
        if self.entries.len() >= WRITE_BYTES {
            self.close_write();
        }
        count
    }

    /// Queues a change of a persistent registration. A removal always has its name before it, if that is known: a shard that has
    /// forgotten it would not refuse the removal, but not remember it either, and a put that is late would undo it.
    pub(super) fn write_persistent(
        &mut self,
        (number, epoch): (u64, u32),
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
        if Entry::read(entry).is_ok_and(|entry| entry.change.kind == ChangeKind::Remove) {
            self.forget_name(datum);
        }
        self.append(datum, id, entry);
        if let Writes::Persistent(open) = &mut self.open {
            open.push((number, epoch));
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
