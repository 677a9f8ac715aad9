//! A registry in memory: what it holds, what changed when, and the frames it would push. Right by being simple.

use std::collections::BTreeMap;

use loadgen::workload::{Kind, Workload};
use slotcast_engine::{
    diff::{self, SNAPSHOT},
    id::{RegisterId, Revision, SlotId},
    record::{Encoder, Record},
};
use slotcast_net::wire::message::write_diff;

/// One service of the registry.
#[derive(Clone)]
pub struct List {
    pub revision: u64,
    /// Number shown of each publisher.
    pub shown: BTreeMap<u32, u32>,
    /// What changed at which revision.
    pub log: Vec<(u64, u32)>,
    /// Whether somebody has been told the latest revision, so that nothing may join it any more.
    pub is_told: bool,
}

pub struct Registry<'w> {
    pub workload: &'w Workload,
    pub lists: Vec<List>,
}

/// What a frame says; tests spoil it before it is written.
#[derive(Clone, Debug)]
pub struct Content {
    pub service: u32,
    pub from: u64,
    pub to: u64,
    pub is_snapshot: bool,
    pub removes: Vec<u32>,
    pub puts: Vec<(u32, u32)>,
}

impl<'w> Registry<'w> {
    pub fn new(workload: &'w Workload) -> Self {
        let list = List { revision: (1 << 40) + 1, shown: BTreeMap::new(), log: Vec::new(), is_told: true };
        Self { workload, lists: vec![list; workload.services().len()] }
    }

    pub fn service_of(&self, op: u32) -> u32 {
        self.workload.publishers()[self.workload.ops()[op as usize].publisher as usize].service
    }

    /// Applies an operation, in a batch of its own or, while nobody knows that one, in the one before; returns the
    /// revision.
    pub fn apply(&mut self, op: u32, is_new_batch: bool) -> u64 {
        let service = self.service_of(op);
        let op = self.workload.ops()[op as usize];
        let list = &mut self.lists[service as usize];
        list.revision += u64::from(is_new_batch || list.is_told);
        list.is_told = false;
        list.log.push((list.revision, op.publisher));
        if op.kind == Kind::Unregister {
            list.shown.remove(&op.publisher);
        } else {
            list.shown.insert(op.publisher, op.number);
        }
        list.revision
    }

    pub fn snapshot(&self, service: u32) -> Content {
        let list = &self.lists[service as usize];
        let puts = list.shown.iter().map(|(&publisher, &number)| (publisher, number)).collect();
        Content { service, from: 0, to: list.revision, is_snapshot: true, removes: Vec::new(), puts }
    }

    pub fn diff(&self, service: u32, since: u64) -> Content {
        let list = &self.lists[service as usize];
        let mut changed: Vec<u32> =
            list.log.iter().filter(|(at, _)| *at > since).map(|&(_, publisher)| publisher).collect();
        changed.sort_unstable();
        changed.dedup();
        let (there, gone): (Vec<u32>, Vec<u32>) =
            changed.into_iter().partition(|publisher| list.shown.contains_key(publisher));
        let puts = there.into_iter().map(|publisher| (publisher, list.shown[&publisher])).collect();
        Content { service, from: since, to: list.revision, is_snapshot: false, removes: gone, puts }
    }
}

impl Content {
    pub fn write(&self, workload: &Workload) -> Vec<u8> {
        let mut encoder = Encoder::default();
        let records: Vec<Vec<u8>> = self
            .puts
            .iter()
            .map(|&(publisher, number)| workload.encode(&mut encoder, publisher, number).unwrap().to_vec())
            .collect();
        let removes: Vec<RegisterId> =
            self.removes.iter().map(|&publisher| workload.register(publisher)).collect();
        let datum = workload.services()[self.service as usize].key();
        let mut out = Vec::new();
        write_diff(&mut out, SlotId(0), |body| {
            let puts: Vec<Record<'_>> = records.iter().map(|bytes| Record::read(bytes).unwrap()).collect();
            let span = (Revision(self.from), Revision(self.to));
            diff::write(body, datum, span, &removes, None, puts.into_iter());
            if self.is_snapshot { SNAPSHOT } else { 0 }
        });
        out
    }
}
