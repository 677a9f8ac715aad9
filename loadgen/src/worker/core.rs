//! A worker without its sockets: what it does on each event and when it has time.
//!
//! Events only note what to do; [`Core::act`] does it, so that nothing is sent from inside the sockets' callback.

use std::{cell::Cell, collections::VecDeque, hint::black_box, net::SocketAddr};

use anyhow::Result;
use slotcast_engine::{error::Refusal, record::Encoder};
use slotcast_net::{
    io::ring::{CloseReason, ConnId, Event, SendOutcome, Sockets},
    wire::{ErrorCode, Frame, Message, header::FRAME_BYTES_MAX},
};

use crate::{
    address,
    board::{Board, Counter, Phase},
    clock::{Clock, MILLISECOND, SECOND},
    samples::{Measured, Samples},
    verify::{
        frame::{DIFF, Fault},
        oracle::{Held, Oracle, Taken},
        truth::Findings,
    },
    worker::{
        client::{Client, Link, Outgoing},
        plan::Plan,
        returns::Returns,
        sockets::ClientSockets,
        speech,
        stream::Garbled,
    },
    workload::{Kind, Op, Workload},
};

/// Frames applied between two readings of the clock, at most.
const FRAMES_PER_CLOCK: u32 = 64;
/// Connections asked for and not yet welcomed.
const GREETINGS_MAX: usize = 1024;
/// Staged writes sent and not yet acknowledged.
const STAGED_MAX: u64 = 4096;
/// Bytes of first snapshots asked for and not yet here: what arrives in pieces has to be kept.
const SNAPSHOT_BYTES_MAX: u64 = 256 << 20;
/// Bytes of a frame besides its records.
const FRAME_OVERHEAD_BYTES: u64 = 48;
/// Bytes received at once from which on most of what the client holds will be needed.
const WARM_FROM_BYTES: usize = 1024;
/// What one subscription holds takes 16 bytes, a cache line 64.
const HELD_PER_LINE: usize = 4;
const LOOK_EVERY: u64 = 100 * MILLISECOND;
/// Every client says something within this time, or the session would take it for gone.
const SPEAK_EVERY: u64 = 45 * SECOND;
const ERRORS_MAX: usize = 10;
/// A client whose session has gone waits this long before it tries the next.
const ROAM_PAUSE: u64 = 20 * MILLISECOND;

enum Action {
    Hello(u32),
    Pong(u32, u64),
    Welcomed(u32),
    Flush(u32),
    Drop(u32),
}

/// What a worker leaves behind.
pub struct Finished {
    /// What was measured at the clients that always read.
    pub measured: Measured,
    /// What was measured at those that stopped for a while.
    pub stalled: Measured,
    /// What the oracle found, at all of them.
    pub findings: Findings,
    /// What went wrong, in words.
    pub errors: Vec<String>,
}

/// See the module.
pub struct Core<'w> {
    workload: &'w Workload,
    board: &'w Board,
    worker: usize,
    targets: Vec<SocketAddr>,
    plan: Plan,
    clients: Vec<Client>,
    by_conn: Vec<u32>,
    held: Vec<Held>,
    oracle: Oracle<'w>,
    samples: Samples<'w>,
    /// Of the clients that stop reading.
    stalled_samples: Samples<'w>,
    returns: Returns,
    encoder: Encoder,
    actions: VecDeque<Action>,
    frames_since_clock: u32,
    received_since_clock: u64,
    now: u64,
    next_connect: u32,
    greetings: usize,
    next_publish: u32,
    staged_waiting: u64,
    next_subscribe: u32,
    snapshot_bytes: Vec<u64>,
    snapshot_bytes_waiting: u64,
    next_change: usize,
    next_reconnect: usize,
    next_look: u64,
    /// When the first connection was asked for, and clients that have been made to speak since, round after round.
    began: u64,
    spoken: u64,
    errors: Vec<String>,
}

impl<'w> Core<'w> {
    /// The worker in row `worker` of the board, for the clients of `plan`.
    pub fn new(
        workload: &'w Workload,
        board: &'w Board,
        worker: usize,
        targets: Vec<SocketAddr>,
        plan: Plan,
    ) -> Result<Self> {
        let mut oracle = Oracle::new(workload, board);
        let held = workload.subscriptions().all().iter().map(|&service| oracle.subscribe(service)).collect();
        let mut encoder = Encoder::default();
        let record = if workload.publishers().is_empty() {
            0
        } else {
            workload.encode(&mut encoder, 0, 1)?.len() as u64
        };
        let staged = &workload.ops()[workload.staged()];
        let mut snapshot_bytes = vec![FRAME_OVERHEAD_BYTES; workload.services().len()];
        for op in staged {
            snapshot_bytes[workload.publishers()[op.publisher as usize].service as usize] += record;
        }
        Ok(Self {
            workload,
            board,
            worker,
            targets,
            clients: plan.clients.clone().map(|_| Client::new()).collect(),
            next_connect: plan.clients.start,
            next_publish: plan.clients.start,
            next_subscribe: plan.clients.start,
            plan,
            by_conn: Vec::new(),
            held,
            oracle,
            samples: Samples::new(workload, board),
            stalled_samples: Samples::new(workload, board),
            returns: Returns::default(),
            encoder,
            actions: VecDeque::new(),
            frames_since_clock: 0,
            received_since_clock: 0,
            now: 0,
            greetings: 0,
            staged_waiting: 0,
            snapshot_bytes,
            snapshot_bytes_waiting: 0,
            next_change: 0,
            next_reconnect: 0,
            next_look: 0,
            began: 0,
            spoken: 0,
            errors: Vec::new(),
        })
    }

    /// Takes one event of the sockets.
    pub fn handle(&mut self, event: Event<'_>, clock: &impl Clock) {
        match event {
            Event::Accepted { .. } => {}
            Event::Connected { conn } => self.actions.push_back(Action::Hello(self.client_of(conn))),
            Event::Writable { conn } => self.actions.push_back(Action::Flush(self.client_of(conn))),
            Event::Closed { conn, reason } => self.closed(conn, reason),
            Event::Received { conn, bytes } => self.received(conn, bytes, clock),
        }
    }

    /// The sockets have nothing more for now: what was applied counts as of this moment.
    pub fn settle(&mut self, now: u64) {
        self.now = now;
        self.samples.received(now, std::mem::take(&mut self.received_since_clock));
        self.samples.settle(now);
        self.stalled_samples.settle(now);
        self.frames_since_clock = 0;
        let (reading, stalled) = (&self.samples.counts, &self.stalled_samples.counts);
        let set = |counter, value| self.board.set_counter(self.worker, counter, value);
        set(Counter::Pushes, reading.pushes + stalled.pushes);
        set(Counter::Snapshots, reading.snapshots + stalled.snapshots);
        set(Counter::Resolved, reading.resolved + stalled.resolved);
    }

    /// Does what is due. Returns when there is something to do next by itself.
    pub fn act(&mut self, sockets: &mut ClientSockets, now: u64) -> Result<u64> {
        self.now = now;
        while let Some(action) = self.actions.pop_front() {
            self.perform(sockets, action)?;
        }
        let phase = self.board.phase();
        let asleep = phase == Phase::Run && self.is_in_window();
        sockets.set_asleep(asleep);
        if phase >= Phase::Connect {
            self.connect(sockets)?;
            self.speak(sockets, asleep);
        }
        if phase >= Phase::Publish {
            self.publish(sockets)?;
        }
        if phase >= Phase::Subscribe {
            self.subscribe(sockets);
        }
        let mut next = now + LOOK_EVERY;
        if self.greetings < GREETINGS_MAX {
            next = self.returns.next().min(next);
        }
        if phase >= Phase::Run {
            next = self.change(sockets)?.min(next);
            next = self.reconnect(sockets).min(next);
            next = self.reset(sockets).min(next);
        }
        if phase == Phase::Drain && now >= self.next_look {
            self.look();
        }
        Ok(next)
    }

    /// Whether something is left that did not wait for an event.
    pub fn is_busy(&self) -> bool {
        !self.actions.is_empty()
    }

    /// Ends the run: the last checks.
    pub fn finish(mut self) -> Finished {
        // Told with those that read, whoever's they are: their delay ends with their cancellation.
        for (covered, pairs) in self.oracle.leftovers().0 {
            self.samples.resolve(covered, self.now, pairs);
        }
        self.tell_unanswered();
        let findings = self.oracle.finish(&self.held);
        Finished {
            measured: self.samples.finish(),
            stalled: self.stalled_samples.finish(),
            findings,
            errors: self.errors,
        }
    }

    /// Says which writes never got an answer, or never left.
    fn tell_unanswered(&mut self) {
        let first = self.plan.clients.start;
        let mut told = Vec::new();
        for (client, entry) in (first..).zip(&self.clients) {
            let ops = entry.in_flight.iter().flat_map(|(_, ops)| ops).chain(&entry.waiting);
            for op in ops.take(ERRORS_MAX).map(|&op| &self.workload.ops()[op as usize]) {
                let Op { publisher, number, kind, .. } = op;
                let (writes, unsent) = (entry.in_flight.len(), entry.outbox.len());
                told.push(format!(
                    "client {client}: no answer to {kind:?} number {number} of publisher {publisher}; {writes} writes open, \
                     {unsent} of them unsent"
                ));
            }
        }
        told.into_iter().take(ERRORS_MAX).for_each(|text| self.error(text));
    }

    fn client_of(&self, conn: ConnId) -> u32 {
        self.by_conn[conn.index()]
    }

    fn client(&mut self, client: u32) -> &mut Client {
        &mut self.clients[(client - self.plan.clients.start) as usize]
    }

    fn count(&self, counter: Counter, value: u64) {
        self.board.add(self.worker, counter, value);
    }

    fn error(&mut self, text: String) {
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(text);
        }
    }

    // What comes in.

    fn received(&mut self, conn: ConnId, bytes: &[u8], clock: &impl Clock) {
        let client = self.client_of(conn);
        self.received_since_clock += bytes.len() as u64;
        self.count(Counter::Received, bytes.len() as u64);
        let mut stream = std::mem::take(&mut self.client(client).stream);
        self.oracle.expect(stream.whole(bytes));
        if bytes.len() >= WARM_FROM_BYTES {
            self.warm(client);
        }
        let fed = stream.feed(bytes, |frame| self.frame(client, frame, clock));
        self.client(client).stream = stream;
        if fed == Err(Garbled) {
            self.oracle.findings.refuse(Fault::Length, 1);
            self.error(format!("client {client}: the stream is garbled"));
            self.actions.push_back(Action::Drop(client));
        }
    }

    /// Looks at all that a client holds, one cache line after the other, so that the processor waits for many at once
    /// instead of for one per frame.
    fn warm(&self, client: u32) {
        let held = self.held[self.workload.subscriptions().span(client)].iter();
        black_box(held.step_by(HELD_PER_LINE).fold(0, |all, held| all ^ held.revision));
    }

    fn frame(&mut self, client: u32, frame: &[u8], clock: &impl Clock) {
        if frame[4] != DIFF {
            return self.message(client, frame, clock);
        }
        let span = self.workload.subscriptions().span(client);
        let services = self.workload.subscriptions().of(client);
        let (first, held) = (span.start, &mut self.held[span]);
        let found = Cell::new(None);
        let place = &found;
        let taken = self.oracle.take(frame, move |service| {
            let at = services.binary_search(&service).ok()?;
            place.set(Some(first + at));
            Some(&mut held[at])
        });
        if found.get().is_some_and(|place| self.plan.storm.answered(place)) {
            self.count(Counter::Resumed, 1);
            self.count(Counter::ResumeBytes, frame.len() as u64);
        }
        if let Taken::Applied { transition, is_snapshot, is_first } = taken {
            if is_first {
                let service = self.oracle.states.service(transition.to) as usize;
                let expected = self.snapshot_bytes[service];
                self.snapshot_bytes_waiting = self.snapshot_bytes_waiting.saturating_sub(expected);
                self.count(Counter::Answered, 1);
            }
            let is_stalled = self.plan.stalled.contains(&client);
            let samples = if is_stalled { &mut self.stalled_samples } else { &mut self.samples };
            samples.applied(transition, is_snapshot, frame.len());
            self.frames_since_clock += 1;
            if self.frames_since_clock >= FRAMES_PER_CLOCK {
                self.settle(clock.now());
            }
        }
    }

    fn message(&mut self, client: u32, bytes: &[u8], clock: &impl Clock) {
        let read = Frame::read(bytes, FRAME_BYTES_MAX).map(|frame| frame.map(Message::read));
        match read {
            Ok(Some(Ok(Message::Welcome { .. }))) => self.actions.push_back(Action::Welcomed(client)),
            Ok(Some(Ok(Message::WriteAck { sequence, outcomes }))) => {
                self.acknowledged(client, sequence, &speech::numbers(outcomes), clock.now());
            }
            Ok(Some(Ok(Message::Ping(nonce)))) => self.actions.push_back(Action::Pong(client, nonce)),
            Ok(Some(Ok(Message::Pong(_)))) => {}
            Ok(Some(Ok(Message::SubscribeRefused { code, .. }))) => {
                self.count(Counter::Refused, 1);
                self.error(format!("client {client}: subscription refused with code {code}"));
            }
            Ok(Some(Ok(Message::Error { code, retry_after_ms, .. }))) if is_sent_away(code) => {
                let entry = self.client(client);
                (entry.returns, entry.pause) = (true, u64::from(retry_after_ms) * MILLISECOND);
                self.count(Counter::SentAway, 1);
            }
            Ok(Some(Ok(Message::Error { code, .. })))
                if code == ErrorCode::SlowReader as u16 && self.plan.stalled.contains(&client) => {}
            Ok(Some(Ok(Message::Error { code, text, .. }))) => {
                self.error(format!("client {client}: told to go away with code {code}: {text}"));
            }
            Ok(Some(Ok(other))) => self.error(format!("client {client}: unexpected message {other:?}")),
            Ok(None) => self.error(format!("client {client}: half a frame")),
            Ok(Some(Err(error))) | Err(error) => {
                self.oracle.findings.refuse(Fault::FrameChecksum, 1);
                self.error(format!("client {client}: {error}"));
            }
        }
    }

    fn acknowledged(&mut self, client: u32, sequence: u64, outcomes: &[u64], now: u64) {
        let Some((expected, ops)) = self.client(client).in_flight.pop_front() else {
            return self.error(format!("client {client}: acknowledgement {sequence} of nothing"));
        };
        if expected != sequence || (!ops.is_empty() && ops.len() != outcomes.len()) {
            return self
                .error(format!("client {client}: acknowledgement {sequence} does not fit write {expected}"));
        }
        // Of what was sent again, a later version may have arrived before the connection ended.
        let is_late = |outcome: u64| {
            self.plan.roams && ops.is_empty() && outcome == u64::from(Refusal::Superseded.code())
        };
        let refused = outcomes.iter().copied().filter(|&outcome| outcome < 1 << 40 && !is_late(outcome));
        for outcome in refused.collect::<Vec<_>>() {
            self.count(Counter::Refused, 1);
            self.error(format!("client {client}: a write was refused with code {outcome}"));
        }
        for (op, &outcome) in ops.into_iter().zip(outcomes) {
            self.board.set_answer(op, now, outcome);
            if self.workload.is_planned(op) {
                self.count(Counter::Acknowledged, u64::from(outcome >= 1 << 40));
            } else {
                self.staged_waiting = self.staged_waiting.saturating_sub(1);
                self.count(Counter::Staged, 1);
            }
        }
    }

    fn closed(&mut self, conn: ConnId, reason: CloseReason) {
        let client = self.client_of(conn);
        let (is_stalled, now) = (self.plan.stalled.contains(&client), self.now);
        let entry = self.client(client);
        let (was, returns) = (std::mem::replace(&mut entry.link, Link::Down), entry.returns);
        let back_at = now + std::mem::take(&mut entry.pause);
        match was {
            Link::Open | Link::Leaving => {
                let open = self.board.counter(self.worker, Counter::Connections).saturating_sub(1);
                self.board.set_counter(self.worker, Counter::Connections, open);
            }
            Link::Connecting | Link::Greeting => self.greetings = self.greetings.saturating_sub(1),
            Link::Down => {}
        }
        if self.plan.roams && !returns {
            let entry = self.client(client);
            entry.moves += 1;
            let open = std::mem::take(&mut entry.in_flight).into_iter();
            entry.unanswered.extend(open.flat_map(|(_, ops)| ops));
            self.returns.add(back_at.max(now + ROAM_PAUSE), client);
            return;
        }
        if returns || is_stalled {
            self.count(Counter::Evicted, u64::from(!returns));
            self.returns.add(back_at, client);
        } else {
            self.count(Counter::Lost, 1);
            self.error(format!("client {client}: connection ended, {reason:?}"));
        }
    }

    // What goes out.

    fn perform(&mut self, sockets: &mut ClientSockets, action: Action) -> Result<()> {
        match action {
            Action::Hello(client) => {
                self.client(client).link = Link::Greeting;
                let bytes = speech::hello(self.workload, client);
                self.send(sockets, client, Outgoing { bytes, ops: Vec::new() });
            }
            Action::Pong(client, nonce) => {
                self.send(sockets, client, Outgoing { bytes: speech::pong(nonce), ops: Vec::new() });
            }
            Action::Welcomed(client) => self.welcomed(sockets, client)?,
            Action::Flush(client) => self.flush(sockets, client),
            Action::Drop(client) => {
                if let Some(conn) = self.client(client).conn {
                    sockets.close(conn, true);
                }
            }
        }
        Ok(())
    }

    fn open(&mut self, sockets: &mut ClientSockets, client: u32) -> Result<()> {
        let place = client as usize + self.client(client).moves;
        let target = self.targets[place % self.targets.len()];
        let source = target.ip().is_loopback().then(|| address::source(client));
        let conn = if self.plan.stalled.contains(&client) {
            sockets.connect_stalling(target, source)?
        } else {
            sockets.connect(target, source)?
        };
        if self.by_conn.len() <= conn.index() {
            self.by_conn.resize(conn.index() + 1, u32::MAX);
        }
        self.by_conn[conn.index()] = client;
        self.client(client).connecting(conn);
        self.greetings += 1;
        Ok(())
    }

    /// Opens connections, as many at a time as the other end can greet: first those that come back.
    fn connect(&mut self, sockets: &mut ClientSockets) -> Result<()> {
        while self.greetings < GREETINGS_MAX
            && let Some(client) = self.returns.take(self.now)
        {
            self.open(sockets, client)?;
        }
        while self.next_connect < self.plan.clients.end && self.greetings < GREETINGS_MAX {
            self.open(sockets, self.next_connect)?;
            self.next_connect += 1;
        }
        Ok(())
    }

    /// Sends pings, spread evenly over all clients.
    fn speak(&mut self, sockets: &mut ClientSockets, asleep: bool) {
        if self.began == 0 {
            self.began = self.now;
        }
        let clients = self.clients.len() as u64;
        let due = (u128::from(clients) * u128::from(self.now - self.began) / u128::from(SPEAK_EVERY)) as u64;
        while self.spoken < due {
            let client = self.plan.clients.start + (self.spoken % clients) as u32;
            // Everybody has just said hello in the first round.
            let is_first_round = self.spoken < clients;
            self.spoken += 1;
            let is_silent = asleep && self.plan.stalled.contains(&client);
            if !is_first_round && !is_silent && self.client(client).link == Link::Open {
                self.send(sockets, client, Outgoing { bytes: speech::ping(self.spoken), ops: Vec::new() });
            }
        }
    }

    fn welcomed(&mut self, sockets: &mut ClientSockets, client: u32) -> Result<()> {
        self.greetings = self.greetings.saturating_sub(1);
        self.count(Counter::Connections, 1);
        let entry = self.client(client);
        entry.link = Link::Open;
        if !entry.is_subscribed {
            return Ok(());
        }
        entry.attach += 1;
        let unanswered = std::mem::take(&mut entry.unanswered);
        self.publish_again(sockets, client, &unanswered)?;
        self.ask(sockets, client);
        for op in unanswered {
            if self.board.sent(op) > 0 {
                self.board.set_resent(op);
            }
            self.write(sockets, client, &[op], true)?;
        }
        while let Some(op) = self.client(client).waiting.pop_front() {
            self.send_op(sockets, client, op)?;
        }
        Ok(())
    }

    /// Publishes what is there from the start.
    fn publish(&mut self, sockets: &mut ClientSockets) -> Result<()> {
        while self.next_publish < self.plan.clients.end && self.staged_waiting < STAGED_MAX {
            let client = self.next_publish;
            self.next_publish += 1;
            let publishers = &self.plan.publishers[(client - self.plan.clients.start) as usize];
            let firsts = publishers.iter().filter_map(|&publisher| self.workload.ops_of(publisher).first());
            let staged: Vec<u32> = firsts.copied().filter(|&op| !self.workload.is_planned(op)).collect();
            self.staged_waiting += staged.len() as u64;
            self.write(sockets, client, &staged, true)?;
        }
        Ok(())
    }

    /// After a reconnect: the registrations as they stand, under the next attach count. What is not known to stand is sent again
    /// behind that.
    fn publish_again(&mut self, sockets: &mut ClientSockets, client: u32, unanswered: &[u32]) -> Result<()> {
        let publishers = &self.plan.publishers[(client - self.plan.clients.start) as usize];
        let latest = publishers.iter().filter_map(|&publisher| {
            let stands = |op: &&u32| self.board.sent(**op) > 0 && !unanswered.contains(op);
            let sent = self.workload.ops_of(publisher).iter().rev().find(stands);
            sent.copied().filter(|&op| self.workload.ops()[op as usize].kind != Kind::Unregister)
        });
        let latest: Vec<u32> = latest.collect();
        self.write(sockets, client, &latest, false)
    }

    /// Subscribes clients, as many as there is room for their snapshots.
    fn subscribe(&mut self, sockets: &mut ClientSockets) {
        while self.next_subscribe < self.plan.clients.end && self.snapshot_bytes_waiting < SNAPSHOT_BYTES_MAX
        {
            let client = self.next_subscribe;
            self.next_subscribe += 1;
            let services = self.workload.subscriptions().of(client);
            self.snapshot_bytes_waiting +=
                services.iter().map(|&service| self.snapshot_bytes[service as usize]).sum::<u64>();
            self.client(client).is_subscribed = true;
            self.ask(sockets, client);
        }
    }

    /// Asks for all subscriptions, from where each list stands.
    fn ask(&mut self, sockets: &mut ClientSockets, client: u32) {
        let span = self.workload.subscriptions().span(client);
        let services = self.workload.subscriptions().of(client);
        if services.is_empty() {
            return;
        }
        let mut items = Vec::with_capacity(services.len());
        for (&service, at) in services.iter().zip(span) {
            let Held { revision, state } = self.held[at];
            let digest = if revision == 0 { 0 } else { self.oracle.digest(state) };
            items.push((self.workload.services()[service as usize].clone(), revision, digest));
        }
        let bytes = speech::subscribe(items);
        if self.plan.storm.is_open(self.workload.subscriptions().span(client)) {
            self.count(Counter::ResumeBytes, bytes.len() as u64);
        }
        self.send(sockets, client, Outgoing { bytes, ops: Vec::new() });
    }

    /// Makes the changes that are due; returns when the next one is.
    fn change(&mut self, sockets: &mut ClientSockets) -> Result<u64> {
        let start = self.board.start();
        while let Some(&op) = self.plan.changes.get(self.next_change) {
            let Op { at, publisher, .. } = self.workload.ops()[op as usize];
            if start + at > self.now {
                return Ok(start + at);
            }
            self.next_change += 1;
            let client = self.workload.publishers()[publisher as usize].client;
            if self.client(client).link == Link::Open {
                self.send_op(sockets, client, op)?;
            } else {
                self.client(client).waiting.push_back(op);
            }
        }
        Ok(u64::MAX)
    }

    /// Drops the connections that are due; returns when the next one is. Only clients with nothing on its way are
    /// dropped, so that every write has exactly one answer.
    fn reconnect(&mut self, sockets: &mut ClientSockets) -> u64 {
        let start = self.board.start();
        while let Some(&(at, client)) = self.plan.reconnects.get(self.next_reconnect) {
            if start + at > self.now {
                return start + at;
            }
            self.next_reconnect += 1;
            let entry = self.client(client);
            if let (true, Some(conn)) = (entry.is_quiet(), entry.conn) {
                (entry.returns, entry.link) = (true, Link::Leaving);
                sockets.close(conn, true);
            }
        }
        u64::MAX
    }

    fn is_in_window(&self) -> bool {
        let (start, window) = (self.board.start(), self.workload.window());
        (start + window.start..start + window.end).contains(&self.now)
    }

    /// Resets the connections that the reconnect storm is due to; returns when the next one is. A client with a write on
    /// its way is reset as soon as that is answered, so that every write has exactly one answer.
    fn reset(&mut self, sockets: &mut ClientSockets) -> u64 {
        let start = self.board.start();
        for client in self.plan.storm.due(self.now.saturating_sub(start)) {
            let entry = self.client(client);
            let (true, Some(conn)) = (entry.is_quiet(), entry.conn) else {
                self.plan.storm.put_off(client);
                continue;
            };
            (entry.returns, entry.link) = (true, Link::Leaving);
            sockets.close(conn, true);
            self.plan.storm.reset(self.workload.subscriptions().span(client));
            self.count(Counter::Resets, 1);
        }
        start.saturating_add(self.plan.storm.next())
    }

    fn send_op(&mut self, sockets: &mut ClientSockets, client: u32, op: u32) -> Result<()> {
        self.count(Counter::Sent, 1);
        self.write(sockets, client, &[op], true)
    }

    /// Sends operations in as few frames as they fit. `is_first` says whether they are sent for the first time and count.
    fn write(&mut self, sockets: &mut ClientSockets, client: u32, ops: &[u32], is_first: bool) -> Result<()> {
        let mut entries = Vec::new();
        let mut inside = Vec::new();
        let mut named = None;
        for (index, &op) in ops.iter().enumerate() {
            let entry = &self.workload.ops()[op as usize];
            let service = self.workload.publishers()[entry.publisher as usize].service;
            // Every frame says the name before a put: a slot may have forgotten it since the frame before.
            let is_named = entry.kind == Kind::Unregister || named.replace(service) == Some(service);
            let attach = self.client(client).attach;
            speech::entry(self.workload, &mut self.encoder, entry, attach, is_named, &mut entries)?;
            inside.push(op);
            if entries.len() >= speech::ENTRIES_BYTES_MAX || index + 1 == ops.len() {
                let ops = if is_first { std::mem::take(&mut inside) } else { Vec::new() };
                let entry = self.client(client);
                let sequence = entry.sequence;
                entry.sequence += 1;
                entry.in_flight.push_back((sequence, ops.clone()));
                self.send(sockets, client, Outgoing { bytes: speech::write(sequence, &entries), ops });
                entries.clear();
                inside.clear();
                named = None;
            }
        }
        Ok(())
    }

    fn send(&mut self, sockets: &mut ClientSockets, client: u32, outgoing: Outgoing) {
        self.client(client).outbox.push_back(outgoing);
        self.flush(sockets, client);
    }

    fn flush(&mut self, sockets: &mut ClientSockets, client: u32) {
        let (board, now) = (self.board, self.now);
        let entry = self.client(client);
        let Some(conn) = entry.conn else { return };
        while let Some(first) = entry.outbox.front() {
            if sockets.send(conn, &[&first.bytes]) != SendOutcome::Queued {
                return;
            }
            first.ops.iter().filter(|&&op| !board.is_resent(op)).for_each(|&op| board.set_sent(op, now));
            entry.outbox.pop_front();
        }
    }

    /// Tells the parent how many pairs are still open.
    fn look(&mut self) {
        self.next_look = self.now + LOOK_EVERY;
        let unresolved = self.oracle.leftovers().1;
        self.board.set_counter(self.worker, Counter::Unresolved, unresolved);
        self.board.set_counter(self.worker, Counter::Looked, 1);
    }
}

/// Whether an error means: not now, come back later.
fn is_sent_away(code: u16) -> bool {
    matches!(ErrorCode::from_number(code), Some(ErrorCode::AcceptRate | ErrorCode::TooManyConnections))
}
