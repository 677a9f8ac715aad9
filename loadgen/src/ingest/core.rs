//! The registering process without its sockets: links that register as fast as they are answered, then read it all back.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use slotcast_engine::{
    batch::write_name,
    digest::fingerprint,
    id::{DatumKey, mix64},
    limits::SLOTS_DEFAULT,
};
use slotcast_net::{
    io::ring::{ConnId, Event, Sockets},
    wire::{Frame, Message, header::FRAME_BYTES_MAX},
};

use crate::{
    address,
    board::{Board, Counter, Phase},
    clock::{Clock, MILLISECOND},
    ingest::plan::{Plan, VERSION},
    links::end::End,
    samples::{Delays, delays},
    verify::frame::{DIFF, DiffFrame},
    worker::{speech, stream::Garbled},
};

/// Bytes of entries in one write frame.
const WRITE_BYTES: usize = 56 * 1024;
/// Write frames of one link sent and not yet acknowledged.
const FRAMES_IN_FLIGHT_MAX: usize = 4;
/// Data ids of one subscribe frame, and those of one link asked for and not yet answered.
const ITEMS: usize = 100;
const ASKED_MAX: usize = 400;
const LOOK_EVERY: u64 = 20 * MILLISECOND;
const ERRORS_MAX: usize = 10;

/// What the registering process found.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Found {
    /// Registrations acknowledged.
    pub acknowledged: u64,
    /// Seconds from the first write to the last acknowledgement.
    pub register_s: f64,
    /// Bytes of the write frames.
    pub write_bytes: u64,
    /// Write frames.
    pub write_frames: u64,
    /// Delays from the sending of a write to its acknowledgement, per registration: milliseconds at p50, p90, p99, p999
    /// and at most.
    pub ack_ms: [f64; 5],
    /// Data ids read back.
    pub datums: u64,
    /// Registrations read back that are, byte for byte, what was registered.
    pub exact: u64,
    /// Seconds that reading back took.
    pub read_s: f64,
    /// Registrations that were acknowledged and are not there.
    pub missing: u64,
    /// Registrations that are there and should not be, or are not what was registered.
    pub extra: u64,
    /// Answers that are no snapshot, cannot be read, or are of a revision before an acknowledgement.
    pub stale: u64,
    /// What went wrong, in words.
    pub errors: Vec<String>,
}

/// One link's part: data ids `link`, `link + links`, ... and their registrations.
struct Part {
    end: End,
    /// Its next data id to register, counted among its own.
    next: u64,
    sequence: u64,
    in_flight: VecDeque<(u64, u64, Vec<u64>)>,
    /// Latest revision acknowledged of each data id registered.
    revisions: Vec<u64>,
    /// Its next data id to read, counted among those of its neighbour.
    next_read: usize,
    asked: HashMap<DatumKey, u64>,
}

/// See the module.
pub struct Core<'b> {
    board: &'b Board,
    plan: Plan,
    target: SocketAddr,
    parts: Vec<Part>,
    by_conn: Vec<u32>,
    /// Data ids to register at most.
    datums: u64,
    deadline: u64,
    began: u64,
    read_began: u64,
    greeted: VecDeque<u32>,
    next_connect: usize,
    entries: Vec<u8>,
    scratch: Vec<u8>,
    delays: Delays,
    found: Found,
    /// Corrupts one byte of what is expected of this publisher, to show that the verdict notices.
    plant: Option<u64>,
}

impl<'b> Core<'b> {
    /// `links` links against `target` that register `datums` data ids, or fewer if `duration` nanoseconds are over before.
    pub fn new(
        board: &'b Board,
        plan: Plan,
        target: SocketAddr,
        (links, tag): (u32, u64),
        (datums, duration): (u64, u64),
        plant: Option<u64>,
    ) -> Self {
        let part = |number| Part {
            end: End::new(tag, number),
            next: 0,
            sequence: 0,
            in_flight: VecDeque::new(),
            revisions: Vec::new(),
            next_read: 0,
            asked: HashMap::new(),
        };
        Self {
            board,
            plan,
            target,
            parts: (0..links).map(part).collect(),
            by_conn: Vec::new(),
            datums,
            deadline: duration,
            began: 0,
            read_began: 0,
            greeted: VecDeque::new(),
            next_connect: 0,
            entries: Vec::new(),
            scratch: Vec::new(),
            delays: delays(),
            found: Found::default(),
            plant,
        }
    }

    /// Takes one event of the sockets.
    pub fn handle(&mut self, event: Event<'_>, clock: &impl Clock) {
        match event {
            Event::Accepted { .. } | Event::Writable { .. } => {}
            Event::Connected { conn } => self.greeted.push_back(self.by_conn[conn.index()]),
            Event::Received { conn, bytes } => self.received(conn, bytes, clock),
            Event::Closed { conn, reason } => {
                let link = self.by_conn[conn.index()];
                self.parts[link as usize].end.is_up = false;
                self.parts[link as usize].end.conn = None;
                self.board.add(0, Counter::Lost, 1);
                self.error(format!("link {link}: connection ended, {reason:?}"));
            }
        }
    }

    /// Does what is due. Returns when there is something to do next by itself.
    pub fn act(&mut self, sockets: &mut impl Sockets, now: u64) -> Result<u64> {
        while let Some(link) = self.greeted.pop_front() {
            let end = &mut self.parts[link as usize].end;
            end.push(end.hello(SLOTS_DEFAULT), Vec::new());
        }
        let phase = self.board.phase();
        if phase >= Phase::Connect {
            self.connect(sockets)?;
        }
        if phase == Phase::Publish {
            self.began = if self.began == 0 { now } else { self.began };
            let is_over = now.saturating_sub(self.began) >= self.deadline;
            for link in 0..self.parts.len() {
                // Each link gets as far as its socket takes it, so that none waits for another one's bytes to be made.
                if !is_over {
                    self.register(link, now)?;
                }
                self.parts[link].end.flush(sockets, |_| ());
            }
            let is_quiet = self.parts.iter().all(|part| part.in_flight.is_empty());
            if is_quiet && (is_over || self.parts.iter().all(|part| part.next >= self.datums_of(part))) {
                if self.found.register_s == 0.0 {
                    self.found.register_s = (now - self.began) as f64 / 1e9;
                }
                self.board.set_counter(0, Counter::Staged, 1);
            }
        }
        if phase == Phase::Subscribe {
            self.read_began = if self.read_began == 0 { now } else { self.read_began };
            self.read_back()?;
            let left = |part: &Part, of: &Part| part.next_read < of.revisions.len() || !part.asked.is_empty();
            let links = self.parts.len();
            if !(0..links).any(|link| left(&self.parts[link], &self.parts[(link + 1) % links])) {
                if self.found.read_s == 0.0 {
                    self.found.read_s = (now - self.read_began) as f64 / 1e9;
                }
                self.board.set_counter(0, Counter::Looked, 1);
            }
        }
        for part in &mut self.parts {
            part.end.beat(now);
            part.end.flush(sockets, |_| ());
        }
        Ok(now + LOOK_EVERY)
    }

    /// What was found; what was never answered is missing.
    pub fn finish(mut self) -> Found {
        for part in &self.parts {
            self.found.missing += part.asked.len() as u64 * u64::from(self.plan.per_datum);
        }
        let at = |quantile: f64| self.delays.value_at_quantile(quantile) as f64 / 1e6;
        self.found.ack_ms = [at(0.5), at(0.9), at(0.99), at(0.999), self.delays.max() as f64 / 1e6];
        self.found
    }

    fn error(&mut self, text: String) {
        if self.found.errors.len() < ERRORS_MAX {
            self.found.errors.push(text);
        }
    }

    /// Data ids that a link registers at most, all links alike.
    fn datums_of(&self, _part: &Part) -> u64 {
        self.datums.div_ceil(self.parts.len() as u64)
    }

    fn connect(&mut self, sockets: &mut impl Sockets) -> Result<()> {
        while self.next_connect < self.parts.len() {
            let link = self.next_connect as u32;
            let source = self.target.ip().is_loopback().then(|| address::source(link));
            let conn = sockets.connect(self.target, source)?;
            if self.by_conn.len() <= conn.index() {
                self.by_conn.resize(conn.index() + 1, u32::MAX);
            }
            self.by_conn[conn.index()] = link;
            self.parts[link as usize].end.conn = Some(conn);
            self.next_connect += 1;
        }
        Ok(())
    }

    /// Fills what a link may have in flight.
    fn register(&mut self, link: usize, now: u64) -> Result<()> {
        let links = self.parts.len() as u64;
        let most = self.datums_of(&self.parts[link]);
        let part = &mut self.parts[link];
        while part.end.is_up && part.in_flight.len() < FRAMES_IN_FLIGHT_MAX && part.next < most {
            let mut datums = Vec::new();
            self.entries.clear();
            while part.next < most && self.entries.len() < WRITE_BYTES {
                let datum = part.next * links + link as u64;
                part.next += 1;
                let id = Plan::data_id(datum)?;
                let key = id.key();
                write_name(&mut self.entries, key, id.as_bytes());
                for place in 0..u64::from(self.plan.per_datum) {
                    let publisher = datum * u64::from(self.plan.per_datum) + place;
                    let sum = self.plan.write(publisher, key, part.end.session, &mut self.entries);
                    part.end.digest.add(fingerprint(key, Plan::register(publisher), VERSION, sum));
                }
                datums.push(datum);
                part.revisions.push(0);
            }
            part.sequence += 1;
            let frame = speech::write(part.sequence, &self.entries);
            self.found.write_frames += 1;
            self.found.write_bytes += frame.len() as u64;
            part.end.push(frame, Vec::new());
            part.in_flight.push_back((part.sequence, now, datums));
        }
        Ok(())
    }

    /// Asks for what the next link has registered.
    fn read_back(&mut self) -> Result<()> {
        let links = self.parts.len();
        for link in 0..links {
            let of = (link + 1) % links;
            let most = self.parts[of].revisions.len();
            let part = &mut self.parts[link];
            while part.next_read < most && part.asked.len() + ITEMS <= ASKED_MAX {
                let last = (part.next_read + ITEMS).min(most);
                let mut items = Vec::new();
                for own in part.next_read..last {
                    let datum = (own * links + of) as u64;
                    let id = Plan::data_id(datum)?;
                    part.asked.insert(id.key(), datum);
                    items.push((id, 0, 0));
                }
                part.next_read = last;
                part.end.push(speech::subscribe(items), Vec::new());
            }
        }
        Ok(())
    }

    fn received(&mut self, conn: ConnId, bytes: &[u8], clock: &impl Clock) {
        let link = self.by_conn[conn.index()];
        self.board.add(0, Counter::Received, bytes.len() as u64);
        let mut stream = std::mem::take(&mut self.parts[link as usize].end.stream);
        let fed = stream.feed(bytes, |frame| self.frame(link, frame, clock));
        self.parts[link as usize].end.stream = stream;
        if fed == Err(Garbled) {
            self.found.stale += 1;
            self.error(format!("link {link}: the stream is garbled"));
        }
    }

    fn frame(&mut self, link: u32, bytes: &[u8], clock: &impl Clock) {
        if bytes[4] == DIFF {
            return self.answer(link as usize, bytes);
        }
        match Frame::read(bytes, FRAME_BYTES_MAX).map(|frame| frame.map(Message::read)) {
            Ok(Some(Ok(Message::LinkWelcome { .. }))) => {
                self.parts[link as usize].end.is_up = true;
                self.board.add(0, Counter::Connections, 1);
            }
            Ok(Some(Ok(Message::WriteAck { sequence, outcomes }))) => {
                let outcomes: Vec<u64> =
                    outcomes.iter().map(|outcome| outcome.map_or(0, |revision| revision.0)).collect();
                self.acknowledged(link as usize, sequence, &outcomes, clock.now());
            }
            Ok(Some(Ok(Message::HeartbeatAck { mark, differs, .. }))) => {
                self.parts[link as usize].end.mark = mark;
                if differs.is_some() {
                    self.error(format!("link {link}: the shard does not hold what was registered"));
                }
            }
            Ok(Some(Ok(other))) => self.error(format!("link {link}: unexpected message {other:?}")),
            Ok(None) => self.error(format!("link {link}: half a frame")),
            Ok(Some(Err(error))) | Err(error) => self.error(format!("link {link}: {error}")),
        }
    }

    fn acknowledged(&mut self, link: usize, sequence: u64, outcomes: &[u64], now: u64) {
        let per_datum = self.plan.per_datum as usize;
        let part = &mut self.parts[link];
        let known = part.in_flight.pop_front().filter(|(expected, _, datums)| {
            (*expected, datums.len() * per_datum) == (sequence, outcomes.len())
        });
        let Some((_, sent, datums)) = known else {
            return self.error(format!("link {link}: acknowledgement {sequence} does not fit any write"));
        };
        let links = self.parts.len() as u64;
        let mut refused = 0;
        for (datum, outcomes) in datums.iter().zip(outcomes.chunks(per_datum)) {
            refused += outcomes.iter().filter(|&&revision| revision == 0).count();
            let latest = outcomes.iter().copied().max().unwrap_or(0);
            self.parts[link].revisions[(datum / links) as usize] = latest;
        }
        let taken = (outcomes.len() - refused) as u64;
        self.found.acknowledged += taken;
        self.delays.saturating_record_n(now.saturating_sub(sent).max(1), taken);
        self.board.add(0, Counter::Acknowledged, taken);
        if refused > 0 {
            self.board.add(0, Counter::Refused, refused as u64);
            self.error(format!("link {link}: {refused} registrations of write {sequence} refused"));
        }
    }

    /// A data id read back: all that was registered, byte for byte, and nothing else.
    fn answer(&mut self, link: usize, bytes: &[u8]) {
        let links = self.parts.len();
        let of = (link + 1) % links;
        let diff = match DiffFrame::read_on_link(bytes, self.parts[of].end.session) {
            Ok(diff) => diff,
            Err(fault) => {
                self.found.stale += 1;
                return self.error(format!("link {link}: an answer cannot be taken: {fault}"));
            }
        };
        let Some(datum) = self.parts[link].asked.remove(&diff.datum) else {
            self.found.extra += 1;
            return self.error(format!("link {link}: a diff that was not asked for"));
        };
        self.board.add(0, Counter::Answered, 1);
        if !diff.is_snapshot || diff.to < self.parts[of].revisions[datum as usize / links] {
            self.found.stale += 1;
            self.error(format!("data id {datum}: no snapshot, or one from before an acknowledgement"));
        }
        let per_datum = u64::from(self.plan.per_datum);
        let mut exact = 0;
        for put in &diff.puts {
            let publisher = Plan::publisher(put.register);
            let is_planted = self.plant == Some(publisher);
            let is_exact = publisher / per_datum == datum
                && !is_planted
                && self.plan.is_exactly(publisher, diff.datum, put.bytes, &mut self.scratch);
            exact += u64::from(is_exact);
            if !is_exact {
                self.found.extra += 1;
                self.error(format!("data id {datum}: a registration is not what was registered"));
            }
        }
        // No registration is named twice in a diff that can be read, so exact ones are different ones.
        self.found.missing += per_datum - exact;
        self.found.exact += exact;
        self.found.datums += 1;
        self.check_slot(bytes, diff.datum);
    }

    fn check_slot(&mut self, bytes: &[u8], datum: DatumKey) {
        if u16::from_le_bytes([bytes[6], bytes[7]]) != datum.slot(SLOTS_DEFAULT).0 {
            self.found.stale += 1;
            self.error("a diff names another slot than its data id's".into());
        }
    }
}

/// Publisher whose expected bytes are taken for wrong when a mismatch is asked for, among `publishers`.
pub fn planted(publishers: u64) -> u64 {
    mix64(publishers) % publishers.max(1)
}
