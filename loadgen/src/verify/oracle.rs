//! One worker's side of the oracle: every frame of every subscriber goes through [`Oracle::take`].
//!
//! A subscriber holds the number of its state and a revision. What a frame does to a state is remembered by the frame's
//! bytes, so most frames cost one hash over them and one look-up.

use std::rc::Rc;

use hashbrown::HashMap;
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

/// Frames remembered in each of two generations.
const FRAMES_PER_GENERATION: usize = 100_000;

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
        transition: Rc<Transition>,
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
    transitions: Vec<Rc<Transition>>,
}

#[derive(Clone, Copy)]
struct Outline {
    service: u32,
    from: u64,
    to: u64,
    is_snapshot: bool,
    is_empty: bool,
}

/// See the module.
pub struct Oracle<'w> {
    pub(crate) workload: &'w Workload,
    pub(crate) board: &'w Board,
    pub(crate) states: States,
    pub(crate) observations: Vec<Observation>,
    pub(crate) findings: Findings,
    applier: Applier<'w>,
    young: HashMap<(u64, usize), Known>,
    old: HashMap<(u64, usize), Known>,
    digests: HashMap<u32, u64>,
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
        let key = (xxh3_64(frame), frame.len());
        self.learn(key, frame);
        let Some(known) = self.young.get_mut(&key) else { return Taken::Refused(Fault::Length) };
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
        let found = known.transitions.iter().find(|transition| transition.from == held.state);
        let transition = match found {
            Some(transition) => transition.clone(),
            None => {
                let Ok(diff) = read(frame, self.owner) else { return Taken::Refused(Fault::FrameChecksum) };
                let mut transition = self.applier.apply(&mut self.states, held.state, &diff);
                transition.observation = self.observations.len() as u32;
                self.observations.push(Observation { state: transition.to, count: 0, revision: outline.to });
                let transition = Rc::new(transition);
                known.transitions.push(transition.clone());
                transition
            }
        };
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

    /// Makes sure that the frame is among the young ones.
    fn learn(&mut self, key: (u64, usize), frame: &[u8]) {
        if self.young.contains_key(&key) {
            return;
        }
        if self.young.len() >= FRAMES_PER_GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        let known = self.old.remove(&key).unwrap_or_else(|| {
            let diff = read(frame, self.owner).and_then(|diff| {
                let service = self.workload.service_of_key(diff.datum).ok_or(Fault::NotSubscribed)?;
                let DiffFrame { from, to, is_snapshot, .. } = diff;
                Ok(Outline { service, from, to, is_snapshot, is_empty: diff.is_empty() })
            });
            Known { diff, transitions: Vec::new() }
        });
        self.young.insert(key, known);
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
