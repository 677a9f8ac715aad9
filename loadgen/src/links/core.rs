//! The receiving process without its sockets: the links that want everything, and the one that writes.

use std::{collections::VecDeque, hint::black_box, net::SocketAddr};

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use slotcast_engine::limits::SLOTS_DEFAULT;
use slotcast_net::{
    io::ring::{ConnId, Event, Sockets},
    wire::{Frame, Message, header::FRAME_BYTES_MAX},
};

use crate::{
    address,
    board::{Board, Counter, Phase},
    clock::{Clock, MILLISECOND},
    links::{end::End, reel::Reel, writer::Writer},
    samples::{Measured, Samples},
    verify::{
        frame::{DIFF, Fault},
        oracle::{Held, Oracle, Taken},
        truth::Findings,
    },
    worker::{speech, stream::Garbled},
    workload::Workload,
};

/// Frames applied between two readings of the clock, at most.
const FRAMES_PER_CLOCK: u32 = 64;
/// Connections asked for and not yet welcomed.
const GREETINGS_MAX: usize = 64;
/// Data ids of one subscribe frame.
const ITEMS: usize = 250;
/// Interests declared and not yet answered, over all links.
const ASKED_MAX: u64 = 32_768;
const LOOK_EVERY: u64 = 100 * MILLISECOND;
const ERRORS_MAX: usize = 10;
/// A diff of one registration has at least so many bytes.
const DIFF_BYTES_MIN: usize = 128;
/// Where a diff frame has the key of its data id and its revisions.
const DATUM_AT: usize = 16;
/// See [`DATUM_AT`].
const FROM_AT: usize = 24;

/// A fault that this process makes on purpose, to show that its verdict notices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize, Deserialize)]
pub enum Plant {
    /// One link does not see one diff.
    Drop,
    /// One link sees an old diff again after a newer one.
    Repeat,
    /// One link sees a diff with one byte changed and the checksum mended.
    Forge,
}

/// Diffs of the window after which the fault is planted.
const PLANT_AFTER: u64 = 100;

enum Action {
    Hello(u32),
    Pong(u32, u64),
    Close(u32),
}

/// See the module.
pub struct Core<'w> {
    workload: &'w Workload,
    board: &'w Board,
    target: SocketAddr,
    /// The receiving links, then the one that writes.
    ends: Vec<End>,
    receivers: u32,
    by_conn: Vec<u32>,
    /// What each link holds of each service, a row per link.
    held: Vec<Held>,
    /// The frame that each link is expected to get next, by its number on the reel.
    expected: Vec<u64>,
    reel: Reel,
    /// Frames with deliveries that the oracle has not been told of.
    untold: Vec<u64>,
    /// Frames applied since the clock was last read.
    fresh: Vec<u64>,
    oracle: Oracle<'w>,
    samples: Samples<'w>,
    writer: Writer<'w>,
    actions: VecDeque<Action>,
    frames_since_clock: u32,
    received_since_clock: u64,
    now: u64,
    next_connect: u32,
    greetings: usize,
    next_ask: (u32, usize),
    asked: u64,
    next_look: u64,
    plant: Option<(Plant, u64, Vec<u8>)>,
    errors: Vec<String>,
}

impl<'w> Core<'w> {
    /// All links of a run against `target`. `tag` tells its sessions from those of other runs.
    pub fn new(
        workload: &'w Workload,
        board: &'w Board,
        target: SocketAddr,
        tag: u64,
        plant: Option<Plant>,
    ) -> Self {
        let receivers = workload.clients();
        let ends: Vec<End> = (0..=receivers).map(|number| End::new(tag, number)).collect();
        let owner = ends[receivers as usize].session;
        let mut oracle = Oracle::on_links(workload, board, owner);
        let services = workload.services().len() as u32;
        let held =
            (0..receivers).flat_map(|_| 0..services).map(|service| oracle.subscribe(service)).collect();
        Self {
            workload,
            board,
            target,
            ends,
            receivers,
            by_conn: Vec::new(),
            held,
            expected: vec![0; receivers as usize],
            reel: Reel::new(),
            untold: Vec::new(),
            fresh: Vec::new(),
            oracle,
            samples: Samples::new(workload, board),
            writer: Writer::new(workload),
            actions: VecDeque::new(),
            frames_since_clock: 0,
            received_since_clock: 0,
            now: 0,
            next_connect: 0,
            greetings: 0,
            next_ask: (0, 0),
            asked: 0,
            next_look: 0,
            plant: plant.map(|plant| (plant, 0, Vec::new())),
            errors: Vec::new(),
        }
    }

    /// Takes one event of the sockets.
    pub fn handle(&mut self, event: Event<'_>, clock: &impl Clock) {
        match event {
            Event::Accepted { .. } | Event::Writable { .. } => {}
            Event::Connected { conn } => self.actions.push_back(Action::Hello(self.link_of(conn))),
            Event::Received { conn, bytes } => self.received(conn, bytes, clock),
            Event::Closed { conn, reason } => {
                let link = self.link_of(conn);
                self.ends[link as usize].is_up = false;
                self.ends[link as usize].conn = None;
                self.count(Counter::Lost, 1);
                if link < self.receivers {
                    let open = self.board.counter(0, Counter::Connections).saturating_sub(1);
                    self.board.set_counter(0, Counter::Connections, open);
                }
                self.error(format!("link {link}: connection ended, {reason:?}"));
            }
        }
    }

    /// The sockets have nothing more for now: what was applied counts as of this moment.
    pub fn settle(&mut self, now: u64) {
        self.now = now;
        self.samples.received(now, std::mem::take(&mut self.received_since_clock));
        self.samples.settle(now);
        for number in self.fresh.drain(..) {
            let known = self.reel.get(number);
            self.samples.arrived(&known.transition, known.bytes(), now);
        }
        self.frames_since_clock = 0;
    }

    /// Does what is due. Returns when there is something to do next by itself.
    pub fn act(&mut self, sockets: &mut impl Sockets, now: u64) -> Result<u64> {
        self.now = now;
        let set = |counter, value| self.board.set_counter(0, counter, value);
        set(Counter::Pushes, self.samples.counts.pushes);
        set(Counter::Snapshots, self.samples.counts.snapshots);
        set(Counter::Resolved, self.samples.counts.resolved);
        while let Some(action) = self.actions.pop_front() {
            self.perform(sockets, action);
        }
        let phase = self.board.phase();
        if phase >= Phase::Connect {
            self.connect(sockets)?;
        }
        let writer = self.receivers as usize;
        if phase >= Phase::Publish {
            self.writer.stage(&mut self.ends[writer])?;
        }
        if phase >= Phase::Subscribe {
            self.ask();
        }
        let mut next = now + LOOK_EVERY;
        if phase >= Phase::Run {
            let start = self.board.start();
            let (sent, at) = self.writer.change(now.saturating_sub(start), &mut self.ends[writer])?;
            self.count(Counter::Sent, sent);
            next = start.saturating_add(at).min(next);
        }
        let board = self.board;
        for end in &mut self.ends {
            end.beat(now);
            if end.waiting() > 0 {
                end.flush(sockets, |op| board.set_sent(op, now));
            }
        }
        if phase == Phase::Drain && now >= self.next_look {
            self.next_look = now + LOOK_EVERY;
            self.tell();
            let unresolved = self.oracle.leftovers().1;
            self.board.set_counter(0, Counter::Unresolved, unresolved);
            self.board.set_counter(0, Counter::Looked, 1);
        }
        Ok(next)
    }

    /// Whether something is left that did not wait for an event.
    pub fn is_busy(&self) -> bool {
        !self.actions.is_empty()
    }

    /// Ends the run: the last checks.
    pub fn finish(mut self) -> (Measured, Findings, Vec<String>) {
        self.tell();
        for (covered, pairs) in self.oracle.leftovers().0 {
            self.samples.resolve(covered, self.now, pairs);
        }
        let findings = self.oracle.finish(&self.held);
        (self.samples.finish(), findings, self.errors)
    }

    fn link_of(&self, conn: ConnId) -> u32 {
        self.by_conn[conn.index()]
    }

    fn count(&self, counter: Counter, value: u64) {
        self.board.add(0, counter, value);
    }

    fn error(&mut self, text: String) {
        if self.errors.len() < ERRORS_MAX {
            self.errors.push(text);
        }
    }

    // What comes in.

    fn received(&mut self, conn: ConnId, bytes: &[u8], clock: &impl Clock) {
        let link = self.link_of(conn);
        self.received_since_clock += bytes.len() as u64;
        self.count(Counter::Received, bytes.len() as u64);
        self.warm(link, bytes.len() / DIFF_BYTES_MIN);
        let mut stream = std::mem::take(&mut self.ends[link as usize].stream);
        let fed = stream.feed(bytes, |frame| self.frame(link, frame, clock));
        self.ends[link as usize].stream = stream;
        if fed == Err(Garbled) {
            self.oracle.findings.refuse(Fault::Length, 1);
            self.error(format!("link {link}: the stream is garbled"));
            self.actions.push_back(Action::Close(link));
        }
    }

    /// Looks at what a link holds of the services that its next frames are expected to be about, so that the processor waits
    /// for the memory of all of them at once and not of one after the other.
    fn warm(&self, link: u32, frames_max: usize) {
        let row = link as usize * self.workload.services().len();
        let Some(&expected) = self.expected.get(link as usize) else { return };
        let services = self.reel.services_from(expected).take(frames_max);
        black_box(services.fold(0, |all, service| all ^ self.held[row + service as usize].state));
    }

    fn frame(&mut self, link: u32, frame: &[u8], clock: &impl Clock) {
        if frame[4] != DIFF || link == self.receivers {
            return self.message(link, frame, clock);
        }
        if self.plant.is_some() && link == 0 && self.planted(frame) {
            return;
        }
        self.diff(link, frame);
        self.frames_since_clock += 1;
        if self.frames_since_clock >= FRAMES_PER_CLOCK {
            self.settle(clock.now());
        }
    }

    /// A diff for a link. The same diff in the same state as at another link before is not worked out again.
    fn diff(&mut self, link: u32, frame: &[u8]) {
        let row = link as usize * self.workload.services().len();
        let number = self.expected[link as usize];
        if let Some(known) = self.reel.same(number, frame) {
            let held = &mut self.held[row + known.service as usize];
            let is_next = known.from <= held.revision && held.revision < known.to;
            if is_next && held.state == known.transition.from {
                (held.state, held.revision) = (known.transition.to, known.to);
                if known.untold == 0 {
                    self.untold.push(number);
                }
                known.untold += 1;
                self.fresh.push(number);
                self.expected[link as usize] = number + 1;
                return;
            }
        }
        self.tell();
        let held = &mut self.held[row..];
        let mut of = None;
        let taken = self.oracle.take(frame, |service| {
            of = Some(service);
            Some(&mut held[service as usize])
        });
        if let (Taken::Applied { transition, is_snapshot, is_first }, Some(service)) = (taken, of) {
            if is_first {
                self.count(Counter::Answered, 1);
            }
            if !is_snapshot {
                let revision =
                    |at: usize| frame[at..at + 8].iter().rev().fold(0, |sum, &b| sum << 8 | u64::from(b));
                let revisions = revision(FROM_AT)..revision(FROM_AT + 8);
                self.expected[link as usize] =
                    self.reel.add(frame, service, revisions, transition.clone()) + 1;
            }
            self.samples.applied(transition, is_snapshot, frame.len());
        }
    }

    /// Tells the oracle what it has not been asked about.
    fn tell(&mut self) {
        for number in self.untold.drain(..) {
            let known = self.reel.get(number);
            self.oracle.repeat(&known.transition, std::mem::take(&mut known.untold));
        }
    }

    /// Puts the fault on its way; returns whether the frame is not to be seen.
    fn planted(&mut self, frame: &[u8]) -> bool {
        let Some((plant, seen, first)) = &mut self.plant else { return false };
        *seen += u64::from(self.samples.counts.pushes > 0);
        if *seen == 1 {
            *first = frame.to_vec();
        }
        let of_same = || frame[DATUM_AT..FROM_AT] == first[DATUM_AT..FROM_AT];
        if *seen < PLANT_AFTER || (*plant == Plant::Repeat && !of_same()) {
            return false;
        }
        let (plant, first) = (*plant, std::mem::take(first));
        self.plant = None;
        match plant {
            Plant::Drop => true,
            Plant::Repeat => {
                self.diff(0, frame);
                self.diff(0, &first);
                true
            }
            Plant::Forge => {
                let mut forged = frame.to_vec();
                let last = forged.len() - 20;
                forged[last] ^= 1;
                let sum = slotcast_net::wire::header::checksum(&forged);
                forged[8..16].copy_from_slice(&sum.to_le_bytes());
                self.diff(0, &forged);
                true
            }
        }
    }

    fn message(&mut self, link: u32, bytes: &[u8], clock: &impl Clock) {
        match Frame::read(bytes, FRAME_BYTES_MAX).map(|frame| frame.map(Message::read)) {
            Ok(Some(Ok(Message::LinkWelcome { slot_count, .. }))) => {
                self.greetings = self.greetings.saturating_sub(1);
                self.ends[link as usize].is_up = true;
                self.count(Counter::Connections, u64::from(link < self.receivers));
                if slot_count != SLOTS_DEFAULT {
                    self.error(format!("link {link}: the cluster has {slot_count} slots"));
                }
            }
            Ok(Some(Ok(Message::WriteAck { sequence, outcomes }))) => {
                self.acknowledged(link, sequence, &speech::numbers(outcomes), clock.now());
            }
            Ok(Some(Ok(Message::HeartbeatAck { mark, differs, .. }))) => {
                self.ends[link as usize].mark = mark;
                if differs.is_some() {
                    self.error(format!("link {link}: the shard does not hold what was registered"));
                }
            }
            Ok(Some(Ok(Message::Ping(nonce)))) => self.actions.push_back(Action::Pong(link, nonce)),
            Ok(Some(Ok(Message::SubscribeRefused { code, .. }))) => {
                self.count(Counter::Refused, 1);
                self.error(format!("link {link}: an interest was refused with code {code}"));
            }
            Ok(Some(Ok(Message::Error { code, text, .. }))) => {
                self.error(format!("link {link}: told to go away with code {code}: {text}"));
            }
            Ok(Some(Ok(other))) => self.error(format!("link {link}: unexpected message {other:?}")),
            Ok(None) => self.error(format!("link {link}: half a frame")),
            Ok(Some(Err(error))) | Err(error) => {
                self.oracle.findings.refuse(Fault::FrameChecksum, 1);
                self.error(format!("link {link}: {error}"));
            }
        }
    }

    fn acknowledged(&mut self, link: u32, sequence: u64, outcomes: &[u64], now: u64) {
        let ops =
            if link == self.receivers { self.writer.acknowledged(sequence, outcomes.len()) } else { None };
        let Some(ops) = ops else {
            return self.error(format!("link {link}: acknowledgement {sequence} does not fit any write"));
        };
        for (op, &outcome) in ops.into_iter().zip(outcomes) {
            self.board.set_answer(op, now, outcome);
            let is_taken = outcome >= 1 << 40;
            if !is_taken {
                self.count(Counter::Refused, 1);
                self.error(format!("a write was refused with code {outcome}"));
            }
            if self.workload.is_planned(op) {
                self.count(Counter::Acknowledged, u64::from(is_taken));
            } else {
                self.count(Counter::Staged, 1);
            }
        }
    }

    // What goes out.

    fn perform(&mut self, sockets: &mut impl Sockets, action: Action) {
        match action {
            Action::Hello(link) => {
                let end = &mut self.ends[link as usize];
                end.push(end.hello(SLOTS_DEFAULT), Vec::new());
            }
            Action::Pong(link, nonce) => self.ends[link as usize].push(speech::pong(nonce), Vec::new()),
            Action::Close(link) => {
                if let Some(conn) = self.ends[link as usize].conn {
                    sockets.close(conn, true);
                }
            }
        }
    }

    fn connect(&mut self, sockets: &mut impl Sockets) -> Result<()> {
        while self.next_connect <= self.receivers && self.greetings < GREETINGS_MAX {
            let link = self.next_connect;
            let source = self.target.ip().is_loopback().then(|| address::source(link));
            let conn = sockets.connect(self.target, source)?;
            if self.by_conn.len() <= conn.index() {
                self.by_conn.resize(conn.index() + 1, u32::MAX);
            }
            self.by_conn[conn.index()] = link;
            self.ends[link as usize].conn = Some(conn);
            self.greetings += 1;
            self.next_connect += 1;
        }
        Ok(())
    }

    /// Declares interests, link by link, as many as there is room for their snapshots.
    fn ask(&mut self) {
        let services = self.workload.services();
        while self.next_ask.0 < self.receivers {
            let (link, first) = self.next_ask;
            if self.asked.saturating_sub(self.board.counter(0, Counter::Answered)) >= ASKED_MAX {
                return;
            }
            let last = (first + ITEMS).min(services.len());
            let items = services[first..last].iter().map(|id| (id.clone(), 0, 0)).collect();
            self.ends[link as usize].push(speech::subscribe(items), Vec::new());
            self.asked += (last - first) as u64;
            self.next_ask = if last == services.len() { (link + 1, 0) } else { (link, last) };
        }
    }
}
