//! What a diff does to a list: the state it leads to and the planned changes that the list includes from then on.

use std::rc::Rc;

use hashbrown::HashSet;
use slotcast_engine::record::Encoder;

use crate::{
    board::Board,
    verify::{
        frame::{DiffFrame, Put},
        states::{Place, States},
    },
    workload::{Kind, Workload},
};

/// A planned change that a list has come to include.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Covered {
    /// The change.
    pub op: u32,
    /// The removal that cancelled it while the list showed nothing of it: the list was right again, untouched, once that
    /// removal was acknowledged.
    pub cancelled_by: Option<u32>,
}

/// See the module. Small, because the same is looked up for every delivery.
#[derive(Clone, Debug)]
pub struct Transition {
    /// The state it starts from.
    pub from: u32,
    /// The state it leads to.
    pub to: u32,
    /// Where deliveries of the new list at its revision are counted; every transition has its own.
    pub observation: u32,
    /// Removed registrations that are shown again with content from before their removal.
    pub resurrected: u32,
    /// Records that no client ever published.
    pub foreign: u32,
    /// Whether a planned change of the measuring window is covered now and was not before.
    pub in_window: bool,
    /// Planned changes covered now and not before.
    pub covered: Coverage,
}

/// Planned changes that a list has come to include.
#[derive(Clone, Debug)]
pub enum Coverage {
    /// None.
    Nothing,
    /// One of the window, never cancelled: its times are known for good.
    One {
        /// When it was meant to happen, on the board's clock.
        intended: u64,
        /// When it was sent.
        sent: u64,
    },
    /// Any.
    Many(Rc<[Covered]>),
}

/// Works out transitions.
pub struct Applier<'w> {
    workload: &'w Workload,
    board: &'w Board,
    encoder: Encoder,
}

#[derive(Default)]
struct Change {
    delta: Vec<(u32, Place)>,
    covered: Vec<Covered>,
    resurrected: u32,
    foreign: u32,
}

impl<'w> Applier<'w> {
    /// For one run.
    pub fn new(workload: &'w Workload, board: &'w Board) -> Self {
        Self { workload, board, encoder: Encoder::default() }
    }

    /// What `diff` does to the list of `state`; the observation is left to the caller.
    pub fn apply(&mut self, states: &mut States, state: u32, diff: &DiffFrame<'_>) -> Transition {
        let service = states.service(state);
        let list = states.list(state);
        let mut change = Change::default();
        let mut told = HashSet::with_capacity(if diff.is_snapshot { diff.puts.len() } else { 0 });
        for put in &diff.puts {
            match self.identify(service, put) {
                Some((publisher, number)) => {
                    let place = self.workload.publishers()[publisher as usize].place;
                    if diff.is_snapshot {
                        told.insert(place);
                    }
                    self.show(&mut change, publisher, list[place as usize], number);
                }
                None => change.foreign += 1,
            }
        }
        for &register in &diff.removes {
            let publisher = self.workload.publisher_of(register);
            if let Some(publisher) =
                publisher.filter(|&p| self.workload.publishers()[p as usize].service == service)
            {
                let place = self.workload.publishers()[publisher as usize].place;
                // A whole list may name what is gone as well; that it lacks it says nothing more then.
                if diff.is_snapshot {
                    told.insert(place);
                }
                self.hide(&mut change, publisher, list[place as usize], diff.to);
            }
        }
        if diff.is_snapshot {
            for (place, &publisher) in self.workload.publishers_of(service).iter().enumerate() {
                if list[place].shown > 0 && !told.contains(&(place as u32)) {
                    self.hide(&mut change, publisher, list[place], diff.to);
                }
            }
        }
        let Change { delta, covered, resurrected, foreign } = change;
        let to = if delta.is_empty() { state } else { states.step(state, delta, covered.len() as u32) };
        let in_window = covered.iter().any(|covered| self.workload.in_window(covered.op));
        let covered = self.coverage(covered);
        Transition { from: state, to, observation: 0, resurrected, foreign, in_window, covered }
    }

    fn coverage(&self, covered: Vec<Covered>) -> Coverage {
        match covered.as_slice() {
            [] => Coverage::Nothing,
            [Covered { op, cancelled_by: None }]
                if self.workload.in_window(*op) && self.board.sent(*op) > 0 =>
            {
                let intended = self.board.start() + self.workload.ops()[*op as usize].at;
                Coverage::One { intended, sent: self.board.sent(*op) }
            }
            _ => Coverage::Many(covered.into()),
        }
    }

    /// Publisher and operation of a record, if it is, byte for byte, what that publisher published.
    fn identify(&mut self, service: u32, put: &Put<'_>) -> Option<(u32, u32)> {
        let (publisher, number) = Workload::identify(put.archive())?;
        let owner = self.workload.publishers().get(publisher as usize)?;
        let index = (number as usize).checked_sub(1)?;
        let op = *self.workload.ops_of(publisher).get(index)?;
        let shows = self.workload.ops()[op as usize].kind != Kind::Unregister;
        let bytes = self.workload.encode(&mut self.encoder, publisher, number).ok()?;
        (owner.service == service && shows && bytes == put.bytes).then_some((publisher, number))
    }

    fn show(&self, change: &mut Change, publisher: u32, was: Place, number: u32) {
        if was.shown == number {
            return;
        }
        let now = Place { shown: number, covered: was.covered.max(number) };
        if was.shown == 0 && number <= was.covered {
            change.resurrected += 1;
        }
        self.cover(change, publisher, was, now.covered);
        change.delta.push((self.workload.publishers()[publisher as usize].place, now));
    }

    /// The registration is not in the list at revision `to`.
    fn hide(&self, change: &mut Change, publisher: u32, was: Place, to: u64) {
        let removals = || {
            let later = self.workload.ops_of(publisher).iter().skip(was.covered as usize);
            later
                .map(|&op| (op, &self.workload.ops()[op as usize]))
                .filter(|(_, op)| op.kind == Kind::Unregister)
        };
        // A list that loses an entry includes one removal at least. It may include later ones that undid registrations it
        // never showed: those are included if they were acknowledged at or before its revision.
        let first = if was.shown > 0 { removals().next().map(|(_, op)| op.number) } else { None };
        let included = removals()
            .filter(|&(op, _)| self.board.acknowledged(op).is_some_and(|(_, revision)| revision <= to))
            .map(|(_, op)| op.number)
            .next_back();
        let covered = first.max(included).unwrap_or(0).max(was.covered);
        let now = Place { shown: 0, covered };
        if now == was {
            return;
        }
        self.cover(change, publisher, was, covered);
        change.delta.push((self.workload.publishers()[publisher as usize].place, now));
    }

    fn cover(&self, change: &mut Change, publisher: u32, was: Place, up_to: u32) {
        let ops = self.workload.ops_of(publisher);
        for number in was.covered + 1..=up_to {
            let op = ops[number as usize - 1];
            if self.workload.is_planned(op) {
                let is_cancelled = was.shown == 0;
                let cancelled_by =
                    is_cancelled.then(|| self.removal_from(publisher, number, up_to)).flatten();
                change.covered.push(Covered { op, cancelled_by });
            }
        }
    }

    /// The first removal among the operations `number..=up_to`.
    fn removal_from(&self, publisher: u32, number: u32, up_to: u32) -> Option<u32> {
        let ops = &self.workload.ops_of(publisher)[number as usize - 1..up_to as usize];
        ops.iter().copied().find(|&op| self.workload.ops()[op as usize].kind == Kind::Unregister)
    }
}
