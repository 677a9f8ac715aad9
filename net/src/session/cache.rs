//! The session's cached data ids: one list each, its last diffs, and who subscribes.
//!
//! Whatever a data node sends is turned into what really changed against the cached list. Only real changes become client
//! frames, each encoded once and shared by all subscribers, and each following the one before it, so that a client at any
//! revision in between can take it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use slotcast_engine::{
    diff::{self, Diff, SNAPSHOT, list_fingerprint},
    id::{DataId, DatumKey, Nanos, RegisterId, Revision, SessionId, SlotId},
    record::Record,
};

use crate::{
    io::ring::SharedFrame,
    session::{push::Frames, trace::Traces},
    wire::message::write_diff,
};

/// A record of the list, with the session that owns it.
struct Held {
    owner: SessionId,
    record: Box<[u8]>,
    standing: Standing,
}

/// What the data node says of a record, by the word that it has given last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It lists it.
    Listed,
    /// Absent at a new run of the data node or a new leader, where its owner has not been heard of yet: retained.
    Absent,
    /// A new leader lists an older content, and the owner of this or of that, which is told here, has not been heard of there yet:
    /// retained. Where they are two, a client has gone from one to the other, and the former owner's word is the older.
    Newer(SessionId),
}

/// Above every revision.
const FOR_EVER: Revision = Revision(u64::MAX);

/// One recent diff.
struct Step {
    from: Revision,
    to: Revision,
    /// Digest of the list before it.
    digest_before: u64,
    frame: SharedFrame,
    registers: Box<[RegisterId]>,
}

struct LastStep {
    from: Revision,
    frame: SharedFrame,
}

/// A subscriber that waits for the first answer, or for a revision that this session has not reached yet.
pub(super) struct Waiting {
    pub(super) client: u32,
    pub(super) since: Revision,
    pub(super) digest: u64,
    /// Which question to the data node was asked for it; none yet while the data id is not known.
    pub(super) asked: Option<u64>,
    /// Answers that did not reach it.
    pub(super) in_vain: u32,
}

/// One cached data id.
pub(super) struct Datum {
    pub(super) id: DataId,
    pub(super) slot: SlotId,
    /// The list is complete up to here.
    pub(super) revision: Revision,
    pub(super) known: bool,
    /// The run of the data node that `revision` is of; its leader epoch where a slot table is followed.
    pub(super) run: u64,
    /// A reader at a revision up to here may take what is absent for removed. Beyond it, what is absent may have an owner
    /// that has not come back to a new run of the data node; once a run has waited for everybody there is no such bound.
    vouched_to: Revision,
    /// Subscribers that may hold more than this list, because it is not vouched for.
    pub(super) provisional: Vec<u32>,
    /// What was removed while the list is not vouched for. It is for a short time only: until a run has waited for everybody.
    withdrawn: BTreeSet<RegisterId>,
    /// What the leader has told of what was removed before: about lists that subscribers brought.
    pub(super) traces: Traces,
    /// The data node has told another list at this revision, or one from before it led: only a whole one is taken until they agree.
    doubted: bool,
    pub(super) subscribers: Vec<u32>,
    pub(super) waiting: Vec<Waiting>,
    pub(super) idle_since: Option<Nanos>,
    records: BTreeMap<RegisterId, Held>,
    retained: usize,
    digest: u64,
    steps: VecDeque<Step>,
    step_bytes: usize,
    snapshot: Option<SharedFrame>,
    merged: Option<(Revision, SharedFrame)>,
}

/// Which revisions of a list what is told now goes on from.
#[derive(Clone, Copy)]
pub(super) enum Lineage {
    /// Those of the same run of the data node.
    Run(u64),
    /// All that the leader of a slot table says: what it sends leads on from the revision that it was asked for.
    Leader,
}

/// What a diff from a data node did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Applied {
    /// The list is the same; the revision may have grown.
    Unchanged,
    /// Subscribers have something to get.
    Changed,
    /// The list has changed without its revision: who holds that revision has something to get, too.
    Amended,
    /// It tells another list than was told of the same revision before, and was not taken; the flag says that this is new.
    Contradiction(bool),
    /// It does not follow what is cached: a fresh answer is needed.
    Gap,
    /// It is older than what is cached, and was not taken.
    Older,
}

/// What a diff did to the records of a list.
struct TakenIn {
    /// Registrations that are gone.
    removes: Vec<RegisterId>,
    /// Registrations that are new or different.
    puts: Vec<RegisterId>,
    /// Registrations that are kept from now on with newer content than the leader has.
    kept: u64,
}

/// How a subscriber's claim to hold the list at a revision was settled.
pub(super) enum Resumed {
    /// It holds exactly the current list.
    Current,
    /// It holds a list that the recent diffs lead on from.
    At(Revision),
    /// It needs a snapshot.
    Snapshot,
    /// It needs all of this list, but what it holds beyond that may only be late here.
    Merge,
    /// It is ahead of this session: the data node has to be asked.
    Ahead,
}

/// All cached data ids.
pub(super) struct Cache {
    datums: Vec<Option<Datum>>,
    vacant: Vec<u32>,
    index: HashMap<DatumKey, u32>,
    /// Those with retained records.
    retaining: BTreeSet<u32>,
    /// Those with subscribers that wait for owners.
    awaiting_owners: BTreeSet<u32>,
    /// Revision of the latest change per data id: what a subscription is compared with, densely.
    latest: Vec<Revision>,
    /// The latest step per data id, which is all that most subscribers lack.
    last_step: Vec<Option<LastStep>>,
    history_bytes_max: usize,
    /// Merged diffs handed out since this was last taken.
    pub(super) merges: u64,
    /// Contents kept that a new leader has older ones of, since this was last taken.
    pub(super) kept: u64,
}

impl Cache {
    pub(super) fn new(history_bytes_max: usize) -> Self {
        Self {
            datums: Vec::new(),
            vacant: Vec::new(),
            index: HashMap::new(),
            retaining: BTreeSet::new(),
            awaiting_owners: BTreeSet::new(),
            latest: Vec::new(),
            last_step: Vec::new(),
            history_bytes_max,
            merges: 0,
            kept: 0,
        }
    }

    pub(super) fn find(&self, key: DatumKey) -> Option<u32> {
        self.index.get(&key).copied()
    }

    pub(super) fn insert(&mut self, id: DataId, slot: SlotId) -> u32 {
        let key = id.key();
        let datum = Datum {
            id,
            slot,
            revision: Revision::ZERO,
            known: false,
            run: 0,
            vouched_to: Revision::ZERO,
            provisional: Vec::new(),
            withdrawn: BTreeSet::new(),
            traces: Traces::default(),
            doubted: false,
            subscribers: Vec::new(),
            waiting: Vec::new(),
            idle_since: None,
            records: BTreeMap::new(),
            retained: 0,
            digest: 0,
            steps: VecDeque::new(),
            step_bytes: 0,
            snapshot: None,
            merged: None,
        };
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.datums.push(None);
            self.latest.push(Revision::ZERO);
            self.last_step.push(None);
            (self.datums.len() - 1) as u32
        });
        self.datums[index as usize] = Some(datum);
        self.latest[index as usize] = Revision::ZERO;
        self.last_step[index as usize] = None;
        self.index.insert(key, index);
        index
    }

    pub(super) fn remove(&mut self, index: u32) -> Option<Datum> {
        let datum = self.datums.get_mut(index as usize)?.take()?;
        self.last_step[index as usize] = None;
        self.retaining.remove(&index);
        self.awaiting_owners.remove(&index);
        self.index.remove(&datum.id.key());
        self.vacant.push(index);
        Some(datum)
    }

    pub(super) fn get(&self, index: u32) -> Option<&Datum> {
        self.datums.get(index as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Datum> {
        self.datums.get_mut(index as usize)?.as_mut()
    }

    /// Revision of a data id's latest change.
    pub(super) fn latest(&self, index: u32) -> Revision {
        self.latest[index as usize]
    }

    /// Numbers that data ids have or had; all are below this.
    pub(super) fn places(&self) -> usize {
        self.datums.len()
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Datum)> {
        self.datums.iter().enumerate().filter_map(|(index, datum)| Some((index as u32, datum.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Datum)> {
        self.datums.iter_mut().enumerate().filter_map(|(index, datum)| Some((index as u32, datum.as_mut()?)))
    }

    /// The data node has answered with a list that was not taken: only a whole one is taken from now on.
    pub(super) fn doubt(&mut self, index: u32) {
        if let Some(datum) = self.get_mut(index) {
            datum.doubted = true;
        }
    }

    /// Takes a diff or snapshot of a run of a data node in. `may_remove` says of an owner's registration whether the data node
    /// would know of it by now: absence from a snapshot removes only those. `may_replace` says of an owner whether the data node
    /// knows all that it holds: an older content in a snapshot replaces only what is of those, and only if it is itself.
    pub(super) fn apply(
        &mut self,
        index: u32,
        diff: &Diff<'_>,
        of: Lineage,
        may_remove: impl Fn(SessionId, RegisterId) -> bool,
        may_replace: impl Fn(SessionId) -> bool,
    ) -> Applied {
        let Some(datum) = self.get_mut(index) else { return Applied::Unchanged };
        let (run, follows) = match of {
            Lineage::Run(run) => (run, datum.run == run),
            // A leader knows which revisions of earlier leaders it goes on from, and sends diffs from those only.
            Lineage::Leader => (u64::from(diff.to.epoch()), true),
        };
        if !diff.is_snapshot && (!datum.known || !follows || diff.from > datum.revision) {
            return Applied::Gap;
        }
        if diff.to < datum.revision && datum.known {
            return Applied::Older;
        }
        let first = !datum.known;
        // Of a persistent registration no session gives an account. What a list of this run had, this run has removed.
        let same_run = datum.known && datum.run == run;
        let again = datum.known && datum.revision == diff.to;
        if same_run && again && datum.is_contradicted_by(diff) {
            // One of the two is wrong, and nothing here says which: what subscribers were shown stays.
            return Applied::Contradiction(!std::mem::replace(&mut datum.doubted, true));
        }
        if datum.doubted && !diff.is_snapshot {
            return Applied::Gap;
        }
        datum.doubted = false;
        if datum.known && datum.run != run {
            datum.vouched_to = datum.vouched_to.min(datum.revision);
        }
        let before = datum.digest;
        let may_remove = |register: RegisterId, held: &Held| {
            may_remove(held.owner, register)
                || held.owner == SessionId::NOBODY && same_run && held.is_listed()
        };
        let TakenIn { removes, puts, kept } = datum.take_in(diff, may_remove, may_replace);
        self.kept += kept;
        let from = if first { Revision::ZERO } else { self.latest[index as usize] };
        let Some(datum) = self.datums[index as usize].as_mut() else { return Applied::Unchanged };
        if datum.retained > 0 {
            self.retaining.insert(index);
        } else {
            self.retaining.remove(&index);
        }
        datum.revision = diff.to;
        (datum.known, datum.run) = (true, run);
        if datum.vouched_to != FOR_EVER {
            datum.withdrawn.extend(&removes);
        }
        if first {
            self.latest[index as usize] = diff.to;
            return Applied::Changed;
        }
        datum.snapshot = None;
        if removes.is_empty() && puts.is_empty() {
            return Applied::Unchanged;
        }
        if from < diff.to {
            datum.step(from, before, &removes, &puts, self.history_bytes_max);
        } else {
            // No diff leads from a revision to itself.
            datum.forget_steps();
        }
        self.latest[index as usize] = diff.to;
        self.last_step[index as usize] =
            datum.steps.back().map(|step| LastStep { from: step.from, frame: step.frame.clone() });
        if again { Applied::Amended } else { Applied::Changed }
    }

    /// The data ids with retained records whose owner is accounted for in their slot by now: a fresh answer decides.
    pub(super) fn retained_due(&self, is_known: impl Fn(SlotId, SessionId) -> bool) -> Vec<u32> {
        let is_due = |index: &u32| {
            let Some(datum) = self.get(*index) else { return false };
            let mut records = datum.records.values();
            let is_known = |owner| is_known(datum.slot, owner);
            records.any(|held| match held.standing {
                Standing::Listed => false,
                Standing::Absent => is_known(held.owner),
                Standing::Newer(listed) => is_known(held.owner) && is_known(listed),
            })
        };
        self.retaining.iter().copied().filter(is_due).collect()
    }

    /// A subscriber of a data id waits for the owners of what is listed.
    pub(super) fn await_owners(&mut self, index: u32) {
        self.awaiting_owners.insert(index);
    }

    /// The data ids whose subscribers wait for owners, which wait no longer.
    pub(super) fn owners_known(&mut self, is_known: impl Fn(&Datum) -> bool) -> Vec<u32> {
        let datums = &self.datums;
        let datum = |index: u32| datums.get(index as usize).and_then(Option::as_ref);
        self.awaiting_owners.extract_if(.., |index| datum(*index).is_none_or(&is_known)).collect()
    }

    /// Settles a claim to hold the list at `since` with `digest`.
    pub(super) fn resume(&self, index: u32, since: Revision, digest: u64) -> Resumed {
        let Some(datum) = self.get(index) else { return Resumed::Snapshot };
        if since == Revision::ZERO {
            return Resumed::Snapshot;
        }
        // An equal list proves nothing about what follows a revision that this session has not reached.
        if since > datum.revision {
            return Resumed::Ahead;
        }
        if digest == datum.digest {
            return Resumed::Current;
        }
        let held = |step: &&Step| step.from <= since && since < step.to && step.digest_before == digest;
        match datum.steps.iter().find(held) {
            Some(step) if crate::faults::late_resume() => Resumed::At(step.to),
            Some(_) => Resumed::At(since),
            None if since > datum.vouched_to => Resumed::Merge,
            None => Resumed::Snapshot,
        }
    }

    /// The leaders of slots have waited for everybody: their lists are vouched for. Returns the subscribers that need a
    /// snapshot now.
    pub(super) fn vouch(&mut self, slots: &BTreeSet<SlotId>) -> Vec<(u32, u32)> {
        let mut due = Vec::new();
        for (number, datum) in self.iter_mut().filter(|(_, datum)| slots.contains(&datum.slot)) {
            due.extend(datum.vouch().into_iter().map(|client| (client, number)));
        }
        due
    }

    /// Appends the frames that lead a client from `sent` to the present, at most `room`; returns the client's revision
    /// after them. More than `merge_above` steps are merged into one diff; what the history does not reach is answered
    /// by a snapshot (the flag says so).
    pub(super) fn frames_since(
        &mut self,
        index: u32,
        (client, sent): (u32, Revision),
        room: usize,
        merge_above: usize,
        frames: &mut Frames,
    ) -> (Revision, bool) {
        if let Some(step) = &self.last_step[index as usize]
            && step.from <= sent
            && sent > Revision::ZERO
            && room > 0
        {
            frames.push(&step.frame);
            return (self.latest[index as usize], false);
        }
        let Some(datum) = self.datums[index as usize].as_mut() else { return (sent, false) };
        let first = datum.steps.partition_point(|step| step.to <= sent);
        let reached = datum.steps.get(first).is_some_and(|step| step.from <= sent);
        if sent > Revision::ZERO && !reached && datum.provisional.contains(&client) {
            frames.push(&datum.merge_frame(sent));
            return (datum.revision, false);
        }
        if sent == Revision::ZERO || !reached {
            frames.push(&datum.snapshot_frame());
            return (datum.revision, true);
        }
        let steps = datum.steps.len() - first;
        if steps > merge_above {
            self.merges += 1;
            frames.push(&datum.merged_frame(first));
            return (datum.steps.back().map_or(sent, |step| step.to), false);
        }
        let mut reached = sent;
        for step in datum.steps.iter().skip(first).take(room) {
            frames.push(&step.frame);
            reached = step.to;
        }
        (reached, false)
    }
}

impl Datum {
    /// Registrations in the list.
    pub(super) fn publishers(&self) -> usize {
        self.records.len() - self.retained
    }

    /// The revision from which the data node is asked to go on; zero if it cannot.
    pub(super) fn since(&self, run: Option<u64>) -> Revision {
        // A leader of a slot table knows itself which revisions it can go on from.
        let goes_on = self.known && !self.doubted && run.is_none_or(|run| self.run == run);
        if goes_on { self.revision } else { Revision::ZERO }
    }

    /// Whether what is told of the revision that the list has is another list. What is retained here may be absent there.
    fn is_contradicted_by(&self, diff: &Diff<'_>) -> bool {
        let listed = |register: &RegisterId| self.records.get(register).is_some_and(Held::is_listed);
        let fits = |held: &Held, record: &Record<'_>| held.is_newer() || held.checksum() == record.checksum();
        diff.puts()
            .any(|record| !self.records.get(&record.register()).is_some_and(|held| fits(held, &record)))
            || if diff.is_snapshot {
                // What it names as removed is about a client's claim.
                let told: HashSet<RegisterId> = diff.puts().map(|record| record.register()).collect();
                self.records.keys().any(|register| listed(register) && !told.contains(register))
            } else {
                diff.removes().any(|register| listed(&register))
            }
    }

    /// Whether the owners of all that is listed have been heard of, and nothing is known better here than by the leader. What
    /// is persistent counts as heard of: only who has all of it leads.
    pub(super) fn is_vouched_by(&self, accounts_for: impl Fn(SessionId) -> bool) -> bool {
        self.records.values().all(|held| match held.standing {
            Standing::Listed => held.owner == SessionId::NOBODY || accounts_for(held.owner),
            Standing::Absent => true,
            Standing::Newer(_) => false,
        })
    }

    /// Applies a diff to the records.
    fn take_in(
        &mut self,
        diff: &Diff<'_>,
        may_remove: impl Fn(RegisterId, &Held) -> bool,
        may_replace: impl Fn(SessionId) -> bool,
    ) -> TakenIn {
        let (mut puts, mut kept) = (Vec::new(), 0);
        let mut owners = diff.owners();
        let unchanged: BTreeSet<RegisterId> = diff.unchanged().collect();
        for record in diff.puts() {
            let owner = owners.as_mut().and_then(Iterator::next).unwrap_or(SessionId(0));
            let register = record.register();
            match self.records.get_mut(&register) {
                Some(held) if held.checksum() == record.checksum() => {
                    if held.standing == Standing::Absent && !self.provisional.is_empty() {
                        // Those were not told of it.
                        puts.push(register);
                    }
                    self.retained -= usize::from(!held.is_listed());
                    (held.owner, held.standing) = (owner, Standing::Listed);
                    continue;
                }
                // The leader has what was there before this came, of an earlier leader that is lost or has not said it on.
                Some(held)
                    if diff.is_snapshot
                        && (held.is_newer() || unchanged.contains(&register))
                        && !(may_replace(held.owner) && may_replace(owner)) =>
                {
                    if held.standing == Standing::Absent && !self.provisional.is_empty() {
                        puts.push(register);
                    }
                    self.retained += usize::from(held.is_listed());
                    kept += u64::from(!held.is_newer());
                    held.standing = Standing::Newer(owner);
                    continue;
                }
                _ => self.forget(register),
            }
            self.digest = self.digest.wrapping_add(list_fingerprint(register, record.checksum()));
            let held = Held { owner, record: record.bytes().into(), standing: Standing::Listed };
            self.records.insert(register, held);
            puts.push(register);
        }
        // What a snapshot names is of the history of whom it answers: perhaps not of this list's (see `trace`).
        let mut removes: Vec<RegisterId> = diff.removes().filter(|_| !diff.is_snapshot).collect();
        if diff.is_snapshot {
            let told: HashSet<RegisterId> = diff.puts().map(|record| record.register()).collect();
            for (register, held) in &mut self.records {
                if told.contains(register) {
                    continue;
                }
                if may_remove(*register, held) {
                    removes.push(*register);
                } else {
                    self.retained += usize::from(held.is_listed());
                    held.standing = Standing::Absent;
                }
            }
        }
        removes.retain(|register| self.records.contains_key(register));
        removes.iter().for_each(|register| self.forget(*register));
        TakenIn { removes, puts, kept }
    }

    fn forget(&mut self, register: RegisterId) {
        if let Some(held) = self.records.remove(&register) {
            self.digest = self.digest.wrapping_sub(list_fingerprint(register, held.checksum()));
            self.retained -= usize::from(!held.is_listed());
        }
    }

    /// Adds a step from `from` to the current revision.
    fn step(
        &mut self,
        from: Revision,
        digest_before: u64,
        removes: &[RegisterId],
        puts: &[RegisterId],
        bytes_max: usize,
    ) {
        self.merged = None;
        let frame = self.diff_frame(from, removes, puts);
        self.step_bytes += frame.len();
        let registers = removes.iter().chain(puts).copied().collect();
        self.steps.push_back(Step { from, to: self.revision, digest_before, frame, registers });
        while self.step_bytes > bytes_max && self.steps.len() > 1 {
            if let Some(oldest) = self.steps.pop_front() {
                self.step_bytes -= oldest.frame.len();
            }
        }
    }

    fn forget_steps(&mut self) {
        self.merged = None;
        self.steps.clear();
        self.step_bytes = 0;
    }

    fn snapshot_frame(&mut self) -> SharedFrame {
        if let Some(frame) = &self.snapshot {
            return frame.clone();
        }
        let registers: Vec<RegisterId> = self.records.keys().copied().collect();
        let frame = self.frame(SNAPSHOT, Revision::ZERO, &[], &registers);
        self.snapshot = Some(frame.clone());
        frame
    }

    /// The run has waited for everybody: what is not retained is the list. Returns the subscribers that were provisional.
    pub(super) fn vouch(&mut self) -> Vec<u32> {
        if !self.known || self.retained > 0 {
            return Vec::new();
        }
        self.vouched_to = FOR_EVER;
        (self.withdrawn, self.traces) = (BTreeSet::new(), Traces::default());
        std::mem::take(&mut self.provisional)
    }

    /// All that the data node's run lists, for a reader at `since` that keeps what else it holds: of what is retained here it
    /// may know better. What is known to be removed it must not keep.
    pub(super) fn merge_frame(&self, since: Revision) -> SharedFrame {
        let listed = self.records.iter().filter(|(_, held)| held.standing != Standing::Absent);
        let registers: Vec<RegisterId> = listed.map(|(register, _)| *register).collect();
        let gone = self.withdrawn.iter().chain(self.traces.removed_since(since));
        let gone: BTreeSet<RegisterId> =
            gone.filter(|register| !self.records.contains_key(register)).copied().collect();
        let gone: Vec<RegisterId> = gone.into_iter().collect();
        self.frame(0, since, &gone, &registers)
    }

    fn merged_frame(&mut self, first: usize) -> SharedFrame {
        let from = self.steps[first].from;
        if let Some((_, frame)) = self.merged.as_ref().filter(|(start, _)| *start == from) {
            return frame.clone();
        }
        let mut registers: Vec<RegisterId> =
            self.steps.iter().skip(first).flat_map(|step| step.registers.iter().copied()).collect();
        registers.sort_unstable();
        registers.dedup();
        let (puts, removes): (Vec<_>, Vec<_>) =
            registers.into_iter().partition(|register| self.records.contains_key(register));
        let frame = self.diff_frame(from, &removes, &puts);
        self.merged = Some((from, frame.clone()));
        frame
    }

    fn diff_frame(&self, from: Revision, removes: &[RegisterId], puts: &[RegisterId]) -> SharedFrame {
        if !removes.is_empty() && crate::faults::skip_removal() {
            return self.frame(0, from, &removes[1..], puts);
        }
        self.frame(0, from, removes, puts)
    }

    fn frame(&self, flags: u8, from: Revision, removes: &[RegisterId], puts: &[RegisterId]) -> SharedFrame {
        let records: Vec<Record<'_>> = puts
            .iter()
            .filter_map(|register| Record::read(&self.records.get(register)?.record).ok())
            .collect();
        let key = self.id.key();
        let mut out = Vec::new();
        write_diff(&mut out, slotcast_engine::id::SlotId::NONE, |body| {
            diff::write(body, key, (from, self.revision), removes, None, records.into_iter());
            flags
        });
        SharedFrame::from(out)
    }
}

impl Held {
    /// Whether the data node lists it, as it is.
    fn is_listed(&self) -> bool {
        self.standing == Standing::Listed
    }

    /// Whether the data node lists an older content.
    fn is_newer(&self) -> bool {
        matches!(self.standing, Standing::Newer(_))
    }

    fn checksum(&self) -> u64 {
        Record::read(&self.record).map_or(0, |record| record.checksum())
    }
}
