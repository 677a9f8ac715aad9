//! The link that writes: registers what is there from the start, then makes the planned changes at their times.

use std::collections::VecDeque;

use anyhow::Result;
use slotcast_engine::{batch::ENTRY_BYTES, digest::fingerprint, id::Version, record::Encoder};

use crate::{
    links::end::End,
    worker::speech,
    workload::{Kind, Workload},
};

/// Write frames of the stage sent and not yet acknowledged.
const FRAMES_IN_FLIGHT_MAX: usize = 16;
/// Where an entry names its owner.
const OWNER_AT: usize = 40;
/// Where a record keeps its checksum.
const CHECKSUM_AT: usize = 24;
/// The attach count of everything: there is one connection.
const ATTACH: u32 = 1;

/// See the module.
pub struct Writer<'w> {
    workload: &'w Workload,
    encoder: Encoder,
    entries: Vec<u8>,
    ops: Vec<u32>,
    sequence: u64,
    in_flight: VecDeque<(u64, Vec<u32>)>,
    next_staged: usize,
    next_change: usize,
    /// What each publisher adds to the digest, if it is there.
    prints: Vec<Option<u64>>,
}

impl<'w> Writer<'w> {
    /// A writer that has said nothing yet.
    pub fn new(workload: &'w Workload) -> Self {
        Self {
            workload,
            encoder: Encoder::default(),
            entries: Vec::new(),
            ops: Vec::new(),
            sequence: 0,
            in_flight: VecDeque::new(),
            next_staged: workload.staged().start,
            next_change: workload.planned().start,
            prints: vec![None; workload.publishers().len()],
        }
    }

    /// Registers what is there from the start, some frames at a time.
    pub fn stage(&mut self, end: &mut End) -> Result<()> {
        while self.next_staged < self.workload.staged().end && self.in_flight.len() < FRAMES_IN_FLIGHT_MAX {
            while self.next_staged < self.workload.staged().end
                && self.entries.len() < speech::ENTRIES_BYTES_MAX
            {
                self.put(self.next_staged as u32, end)?;
                self.next_staged += 1;
            }
            self.close(end);
        }
        Ok(())
    }

    /// Makes the changes that are due `since` nanoseconds after the start, and says how many those are. Returns also when
    /// the next one is due.
    pub fn change(&mut self, since: u64, end: &mut End) -> Result<(u64, u64)> {
        let first = self.next_change;
        let mut next = u64::MAX;
        while self.next_change < self.workload.planned().end {
            let at = self.workload.ops()[self.next_change].at;
            if at > since {
                next = at;
                break;
            }
            self.put(self.next_change as u32, end)?;
            self.next_change += 1;
            if self.entries.len() >= speech::ENTRIES_BYTES_MAX {
                self.close(end);
            }
        }
        self.close(end);
        Ok(((self.next_change - first) as u64, next))
    }

    /// The operations that an acknowledgement decides.
    pub fn acknowledged(&mut self, sequence: u64, outcomes: usize) -> Option<Vec<u32>> {
        let (expected, ops) = self.in_flight.pop_front()?;
        (expected == sequence && ops.len() == outcomes).then_some(ops)
    }

    fn put(&mut self, op: u32, end: &mut End) -> Result<()> {
        let change = &self.workload.ops()[op as usize];
        let start = self.entries.len();
        // A slot may have forgotten the name of a data id by the time that it gets another publisher.
        let is_named = change.kind != Kind::Register;
        speech::entry(self.workload, &mut self.encoder, change, ATTACH, is_named, &mut self.entries)?;
        let name = if is_named { 0 } else { length(&self.entries[start..]) };
        let entry = &mut self.entries[start + name..];
        entry[OWNER_AT..OWNER_AT + 8].copy_from_slice(&end.session.0.to_le_bytes());
        self.ops.push(op);
        let print = (change.kind != Kind::Unregister).then(|| {
            let publisher = &self.workload.publishers()[change.publisher as usize];
            let datum = self.workload.services()[publisher.service as usize].key();
            let version = Version { number: u64::from(change.number), attach: ATTACH };
            let at = ENTRY_BYTES + CHECKSUM_AT;
            let checksum = entry[at..at + 8].iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
            fingerprint(datum, self.workload.register(change.publisher), version, checksum)
        });
        let was = std::mem::replace(&mut self.prints[change.publisher as usize], print);
        was.into_iter().for_each(|print| end.digest.remove(print));
        print.into_iter().for_each(|print| end.digest.add(print));
        Ok(())
    }

    fn close(&mut self, end: &mut End) {
        if self.ops.is_empty() {
            return;
        }
        self.sequence += 1;
        let ops = std::mem::take(&mut self.ops);
        end.push(speech::write(self.sequence, &self.entries), ops.clone());
        self.entries.clear();
        self.in_flight.push_back((self.sequence, ops));
    }
}

fn length(entry: &[u8]) -> usize {
    u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]) as usize
}
