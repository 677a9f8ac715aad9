//! One data id's list: what a diff of the shard does to it, and the frames that clients get of it.

use super::*;

impl List {
    pub(super) fn digest(&self) -> u64 {
        let print = |held: &Held| Record::read(&held.record).map_or(0, |record| record.checksum());
        let prints = self.records.iter().map(|(register, held)| list_fingerprint(*register, print(held)));
        prints.fold(0, u64::wrapping_add)
    }

    pub(super) fn has_retained(&self) -> bool {
        self.records.values().any(|held| held.retained)
    }

    /// A frame for clients: `puts` of the records, or all of them.
    pub(super) fn frame(
        &self,
        flags: u8,
        from: Revision,
        removes: &[RegisterId],
        puts: &[RegisterId],
    ) -> Vec<u8> {
        let records: Vec<Record<'_>> =
            puts.iter().filter_map(|put| Record::read(&self.records.get(put)?.record).ok()).collect();
        let mut frame = Vec::new();
        write_diff(&mut frame, SlotId::NONE, |body| {
            diff::write(body, self.id.key(), (from, self.revision), removes, None, records.into_iter());
            flags
        });
        frame
    }

    pub(super) fn snapshot(&self) -> Vec<u8> {
        let all: Vec<RegisterId> = self.records.keys().copied().collect();
        self.frame(SNAPSHOT, Revision::ZERO, &[], &all)
    }

    /// All that the shard lists, for a client that keeps what else it holds.
    pub(super) fn merge(&self, since: Revision) -> Vec<u8> {
        let listed = self.records.iter().filter(|(_, held)| !held.retained);
        let listed: Vec<RegisterId> = listed.map(|(register, _)| *register).collect();
        self.frame(0, since, &[], &listed)
    }

    /// Section 5, from rule 4 on. Returns what changed for clients; `tell_returned` counts what was retained as changed.
    pub(super) fn take_in(
        &mut self,
        diff: &Diff<'_>,
        accounted: impl Fn(SessionId) -> bool,
        tell_returned: bool,
    ) -> (Vec<RegisterId>, Vec<RegisterId>) {
        let (mut puts, mut told) = (Vec::new(), BTreeSet::new());
        let mut owners = diff.owners();
        for record in diff.puts() {
            let owner = owners.as_mut().and_then(Iterator::next).unwrap_or(SessionId(0));
            let held = Held { owner, record: record.bytes().to_vec(), retained: false };
            let before = self.records.insert(record.register(), held);
            let same = before.as_ref().is_some_and(|before| before.record == record.bytes());
            if !same || (tell_returned && before.is_some_and(|before| before.retained)) {
                puts.push(record.register());
            }
            told.insert(record.register());
        }
        let mut removes: Vec<RegisterId> = diff.removes().collect();
        if diff.is_snapshot {
            for (register, held) in self.records.iter_mut().filter(|(register, _)| !told.contains(register)) {
                match accounted(held.owner) {
                    true => removes.push(*register),
                    false => held.retained = true,
                }
            }
        }
        removes.retain(|register| self.records.remove(register).is_some());
        (removes, puts)
    }
}
