//! One worker's side of the oracle: every frame of every subscriber goes through [`Oracle::take`].
//!
//! A subscriber holds the number of its state and a revision. What a frame does to a state is remembered by the frame's
//! bytes, so most frames cost one hash over them and one look-up.

use std::collections::VecDeque;

use hashbrown::{HashMap, hash_map::Entry};
use slotcast_engine::{
    diff::list_fingerprint,
    id::SessionId,
    record::{Encoder, Record},
};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    board::Board,
    verify::{
        frame::{DiffFrame, Fault},
        states::States,
        transition::{Applier, Transition},
        truth::Findings,
    },
    workload::Workload,
};

/// Frames remembered in each of two generations: more than are under way at once, also after a stall of some seconds. A frame
/// that has been forgotten costs many times as much, so that a worker that is late would get later still.
const FRAMES_PER_GENERATION: usize = 32_768;

/// What one subscription holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Revision of the list; 0: no answer yet.
    pub revision: u64,
    /// The list.
    pub state: u32,
}

/// A list as it was stamped, and how often it was delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Observation {
    /// The list.
    pub state: u32,
    /// Deliveries.
    pub count: u32,
    /// The revision it claims to be complete at.
    pub revision: u64,
}

/// What a frame did.
#[derive(Clone, Debug)]
pub enum Taken {
    /// It was applied.
    Applied {
        /// What it did.
        transition: Transition,
        /// Whether it was a snapshot.
        is_snapshot: bool,
        /// Whether it was the first answer to this subscription.
        is_first: bool,
    },
    /// An empty confirmation of what the subscriber has.
    Confirmed,
    /// A client would refuse it.
    Refused(Fault),
}

/// A frame worked out once.
struct Known {
    diff: Result<Outline, Fault>,
    /// The transition last asked for. Subscribers in step come one after the other.
    latest: Option<Transition>,
    others: Vec<Transition>,
}

impl Known {
    fn read(frame: &[u8], owner: Option<SessionId>, workload: &Workload) -> Self {
        let diff = read(frame, owner).and_then(|diff| {
            let service = workload.service_of_key(diff.datum).ok_or(Fault::NotSubscribed)?;
            let DiffFrame { from, to, is_snapshot, .. } = diff;
            Ok(Outline { service, from, to, is_snapshot, is_empty: diff.is_empty() })
        });
        Self { diff, latest: None, others: Vec::new() }
    }

    /// Makes the transition from `state` the latest one; whether there is one.
    fn recall(&mut self, state: u32) -> bool {
        if self.latest.as_ref().is_some_and(|latest| latest.from == state) {
            return true;
        }
        let Some(found) = self.others.iter_mut().find(|other| other.from == state) else { return false };
        if let Some(latest) = self.latest.as_mut() {
            std::mem::swap(latest, found);
        }
        true
    }

    fn remember(&mut self, transition: Transition) {
        self.others.extend(self.latest.replace(transition));
    }
}

#[derive(Clone, Copy)]
struct Outline {
    service: u32,
    from: u64,
    to: u64,
    is_snapshot: bool,
    is_empty: bool,
}

/// What a frame is known by: the hash of its bytes, and their number.
type Key = (u64, usize);

fn key(frame: &[u8]) -> Key {
    (xxh3_64(frame), frame.len())
}

/// See the module.
pub struct Oracle<'w> {
    pub(crate) workload: &'w Workload,
    pub(crate) board: &'w Board,
    pub(crate) states: States,
    pub(crate) observations: Vec<Observation>,
    pub(crate) findings: Findings,
    applier: Applier<'w>,
    young: HashMap<Key, Known>,
    old: HashMap<Key, Known>,
    digests: HashMap<u32, u64>,
    /// Address and key of frames about to be taken.
    expected: VecDeque<(usize, Key)>,
    /// On links: who owns every registration.
    owner: Option<SessionId>,
}

impl<'w> Oracle<'w> {
    /// An oracle for one run.
    pub fn new(workload: &'w Workload, board: &'w Board) -> Self {
        let services = 0..workload.services().len() as u32;
        Self {
            workload,
            board,
            states: States::new(services.map(|service| workload.publishers_of(service).len())),
            observations: Vec::new(),
            findings: Findings::default(),
            applier: Applier::new(workload, board),
            young: HashMap::new(),
            old: HashMap::new(),
            digests: HashMap::new(),
            expected: VecDeque::new(),
            owner: None,
        }
    }

    /// An oracle for the readers of links between data nodes and sessions, where `owner` owns every registration. They
    /// get what a diff brings a second time where that is told once more, and it changes nothing.
    pub fn on_links(workload: &'w Workload, board: &'w Board, owner: SessionId) -> Self {
        Self { owner: Some(owner), ..Self::new(workload, board) }
    }

    /// `times` more readers have gone the way of `transition` with the same frame.
    pub fn repeat(&mut self, transition: &Transition, times: u32) {
        self.observations[transition.observation as usize].count += times;
        self.findings.resurrected += u64::from(transition.resurrected) * u64::from(times);
        self.findings.foreign += u64::from(transition.foreign) * u64::from(times);
        self.states.pass(transition.from, transition.to, times);
    }

    /// What a new subscription to `service` holds.
    pub fn subscribe(&mut self, service: u32) -> Held {
        let state = self.states.empty(service);
        self.states.hold(state);
        Held { revision: 0, state }
    }

    /// Tells the whole frames that will be taken next, all from one buffer. Looking each up waits for memory; looked up one
    /// behind the other, with nothing between, they wait together.
    pub fn expect<'f>(&mut self, frames: impl Iterator<Item = &'f [u8]>) {
        self.expected.clear();
        self.expected.extend(frames.map(|frame| (frame.as_ptr().addr(), key(frame))));
        let known = self.expected.iter().filter_map(|(_, key)| self.young.get(key));
        std::hint::black_box(known.filter(|known| known.diff.is_ok()).count());
    }

    /// Takes one diff frame that reached a subscriber. `find` gives what that subscriber holds of a service.
    pub fn take<'h>(&mut self, frame: &[u8], find: impl FnOnce(u32) -> Option<&'h mut Held>) -> Taken {
        let taken = self.judge(frame, find);
        if let Taken::Refused(fault) = taken {
            self.findings.refuse(fault, 1);
        }
        taken
    }

    /// The sum of fingerprints over a list, told when a subscription is resumed.
    pub fn digest(&mut self, state: u32) -> u64 {
        if let Some(&digest) = self.digests.get(&state) {
            return digest;
        }
        let list = self.states.list(state);
        let publishers = self.workload.publishers_of(self.states.service(state));
        let mut encoder = Encoder::default();
        let mut digest = 0u64;
        for (&publisher, place) in publishers.iter().zip(list.iter()).filter(|(_, place)| place.shown > 0) {
            let bytes = self.workload.encode(&mut encoder, publisher, place.shown);
            let checksum = bytes.ok().and_then(|bytes| Record::read(bytes).ok()).map_or(0, Record::checksum);
            digest = digest.wrapping_add(list_fingerprint(self.workload.register(publisher), checksum));
        }
        self.digests.insert(state, digest);
        digest
    }

    fn judge<'h>(&mut self, frame: &[u8], find: impl FnOnce(u32) -> Option<&'h mut Held>) -> Taken {
        let address = frame.as_ptr().addr();
        while self.expected.front().is_some_and(|&(expected, _)| expected < address) {
            self.expected.pop_front();
        }
        let key = match self.expected.front() {
            Some(&(expected, key)) if expected == address && key.1 == frame.len() => key,
            _ => key(frame),
        };
        if self.young.len() >= FRAMES_PER_GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        let known = match self.young.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(
                self.old.remove(&key).unwrap_or_else(|| Known::read(frame, self.owner, self.workload)),
            ),
        };
        let outline = match &known.diff {
            Ok(outline) => *outline,
            Err(fault) => return Taken::Refused(*fault),
        };
        let Some(held) = find(outline.service) else { return Taken::Refused(Fault::NotSubscribed) };
        if let Some(refusal) = refusal(&outline, held).filter(|&fault| {
            // On links it is legal, and what it does to the list is compared as ever.
            self.owner.is_none() || fault != Fault::Duplicate
        }) {
            return Taken::Refused(refusal);
        }
        if outline.is_empty && held.revision == outline.to {
            return Taken::Confirmed;
        }
        if !known.recall(held.state) {
            let Ok(diff) = read(frame, self.owner) else { return Taken::Refused(Fault::FrameChecksum) };
            let mut transition = self.applier.apply(&mut self.states, held.state, &diff);
            transition.observation = self.observations.len() as u32;
            self.observations.push(Observation { state: transition.to, count: 0, revision: outline.to });
            known.remember(transition);
        }
        let Some(transition) = known.latest.clone() else { return Taken::Refused(Fault::FrameChecksum) };
        self.observations[transition.observation as usize].count += 1;
        self.findings.resurrected += u64::from(transition.resurrected);
        self.findings.foreign += u64::from(transition.foreign);
        if transition.to != held.state {
            self.states.hold(transition.to);
            self.states.release(held.state);
            held.state = transition.to;
        }
        let is_first = held.revision == 0;
        held.revision = outline.to;
        Taken::Applied { transition, is_snapshot: outline.is_snapshot, is_first }
    }
}

fn read(frame: &[u8], owner: Option<SessionId>) -> Result<DiffFrame<'_>, Fault> {
    owner.map_or_else(|| DiffFrame::read(frame), |owner| DiffFrame::read_on_link(frame, owner))
}

/// Why a client in this state would refuse the frame.
fn refusal(outline: &Outline, held: &Held) -> Option<Fault> {
    if outline.to < held.revision {
        return Some(Fault::Older);
    }
    if outline.is_snapshot {
        return None;
    }
    if outline.from > held.revision {
        return Some(Fault::Gap);
    }
    let brings_nothing = outline.to == held.revision && outline.from < outline.to && !outline.is_empty;
    brings_nothing.then_some(Fault::Duplicate)
}
