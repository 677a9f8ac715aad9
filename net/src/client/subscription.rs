//! One subscription of a client: the list that it holds, and how diffs change it.

use std::collections::BTreeMap;

use slotcast_engine::{
    diff::{Diff, list_fingerprint},
    id::{DataId, RegisterId, Revision},
    record::{Instance, Record},
};

use super::state::Update;

pub(super) struct Subscribed {
    pub(super) id: DataId,
    pub(super) revision: Revision,
    pub(super) digest: u64,
    pub(super) records: BTreeMap<RegisterId, Vec<u8>>,
    pub(super) told: bool,
}

impl Subscribed {
    /// Applies a diff or snapshot; `None` if the list stays the same.
    pub(super) fn apply(&mut self, diff: &Diff<'_>) -> Option<(Vec<RegisterId>, Vec<RegisterId>)> {
        let first = self.revision == Revision::ZERO;
        let mut removed: Vec<RegisterId> = diff.removes().collect();
        if diff.is_snapshot {
            let told: std::collections::BTreeSet<RegisterId> =
                diff.puts().map(|record| record.register()).collect();
            removed.extend(self.records.keys().filter(|register| !told.contains(register)));
        }
        removed.retain(|register| self.take(*register).is_some());
        let mut changed = Vec::new();
        for record in diff.puts() {
            let register = record.register();
            let before = self.take(register);
            if before != Some(record.checksum()) {
                changed.push(register);
            }
            self.digest = self.digest.wrapping_add(list_fingerprint(register, record.checksum()));
            self.records.insert(register, record.bytes().to_vec());
        }
        self.revision = diff.to;
        (first || !changed.is_empty() || !removed.is_empty()).then_some((changed, removed))
    }

    pub(super) fn take(&mut self, register: RegisterId) -> Option<u64> {
        let bytes = self.records.remove(&register)?;
        let checksum = Record::read(&bytes).map(|record| record.checksum()).ok()?;
        self.digest = self.digest.wrapping_sub(list_fingerprint(register, checksum));
        Some(checksum)
    }

    pub(super) fn update(
        &self,
        diff: &Diff<'_>,
        changed: Option<(Vec<RegisterId>, Vec<RegisterId>)>,
    ) -> Update {
        match changed {
            Some((changed, removed)) if self.told && !diff.is_snapshot => Update::Diff {
                id: self.id.clone(),
                revision: self.revision,
                changed: changed.into_iter().filter_map(|register| self.instance(register)).collect(),
                removed,
            },
            _ => self.snapshot(),
        }
    }

    pub(super) fn snapshot(&self) -> Update {
        Update::Snapshot {
            id: self.id.clone(),
            revision: self.revision,
            instances: self.records.keys().filter_map(|register| self.instance(*register)).collect(),
        }
    }

    pub(super) fn instance(&self, register: RegisterId) -> Option<(RegisterId, Instance)> {
        let record = Record::read(self.records.get(&register)?).ok()?;
        Some((register, record.instance().ok()?))
    }
}
