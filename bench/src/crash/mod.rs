//! Crashes of a data node at every point at which it writes or syncs: what is recovered has to be a state that the node
//! was in, no older than what it had been told is durable, no revision may be used twice, and no change of a persistent
//! registration that was acknowledged may be missing.
//!
//! The shards are the real ones; disk, time and sessions are simulated. A round is a node with a random number of shards on
//! whatever directory the round before left behind. After each operation of its disk the directory is copied as a crash
//! would leave it, and recovered from there with another number of shards.

pub mod chance;

use std::collections::{BTreeMap, VecDeque};

use anyhow::{Context, bail, ensure};
use slotcast_engine::{
    batch::{Change, ChangeKind, Durability, write_change, write_name, write_put},
    change_log::ChangeLogLimits,
    digest::Digest,
    disk_op::{DiskDone, DiskQueue, DiskRequest},
    error::Refusal,
    id::{DataId, DatumKey, Nanos, ReaderId, RegisterId, Revision, SessionId, SlotId, Version},
    journal::{Fate, JournalConfig},
    memory_disk::MemoryDisk,
    record::{Encoder, Instance, Record},
    recover::{Layout, RecoverConfig, Recovered, recover, salvage},
    shard::{Shard, ShardConfig},
    slot::Slot,
    storage::{StorageConfig, StorageState},
};

use chance::Chance;

const SLOTS: u32 = 8;
const SERVICES: u64 = 12;
const MILLI: u64 = Nanos::SECOND / 1000;

/// What a simulation did.
#[derive(Clone, Copy, Debug, Default)]
pub struct CrashReport {
    /// Crashes recovered from and compared.
    pub points: u64,
    /// Nodes started on a directory that an earlier one left.
    pub rounds: u64,
    /// Crashes whose recovery had a torn end to cut off.
    pub torn: u64,
    /// Recoveries with another number of shards than the directory was written with.
    pub resharded: u64,
    /// Times a disk failed and came back.
    pub failures: u64,
    /// Snapshots that took their place.
    pub snapshots: u64,
    /// Changes that were not journaled because the disk was behind or had failed.
    pub not_journaled: u64,
    /// Crashes with something not durable yet.
    pub behind: u64,
    /// Changes of persistent registrations that were acknowledged.
    pub promised: u64,
    /// Those that were refused because the disk had failed or was behind.
    pub refused: u64,
}

impl CrashReport {
    /// Takes another simulation in.
    pub fn add(&mut self, other: &CrashReport) {
        self.points += other.points;
        self.rounds += other.rounds;
        self.torn += other.torn;
        self.resharded += other.resharded;
        self.failures += other.failures;
        self.snapshots += other.snapshots;
        self.not_journaled += other.not_journaled;
        self.behind += other.behind;
        self.promised += other.promised;
        self.refused += other.refused;
    }
}

impl std::fmt::Display for CrashReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} crashes in {} rounds recovered as they should: {} with something not durable, {} with a torn end, {} into \
             another shard count; {} disk failures, {} snapshots, {} changes not journaled; {} changes of persistent \
             registrations acknowledged and none of them missing, {} refused",
            self.points,
            self.rounds,
            self.behind,
            self.torn,
            self.resharded,
            self.failures,
            self.snapshots,
            self.not_journaled,
            self.promised,
            self.refused
        )
    }
}

/// Digests of a slot: over all registrations, and over the persistent ones.
type State = (Digest, Digest);

fn state_of(slot: &Slot) -> State {
    (slot.digest(), slot.session_digest(SessionId::NOBODY))
}

/// A change of a persistent registration.
#[derive(Clone, Copy)]
struct Persistent {
    datum: DatumKey,
    register: RegisterId,
    version: Version,
    is_put: bool,
}

/// Every state that each slot was in, by revision; the latest that is known to be durable; and what was acknowledged of
/// persistent registrations.
#[derive(Clone, Default)]
struct Model {
    states: BTreeMap<SlotId, BTreeMap<Revision, State>>,
    promised: BTreeMap<(DatumKey, RegisterId), (Version, bool)>,
    floor: BTreeMap<SlotId, Revision>,
    waiting: Vec<(usize, u64, SlotId, Revision)>,
    told: u32,
}

/// Simulates until `points` crashes have been compared. An error names the seed and the point.
pub fn run(seed: u64, points: u64) -> anyhow::Result<CrashReport> {
    let mut chance = Chance::new(seed);
    let mut report = CrashReport::default();
    let (mut disk, mut model) = (MemoryDisk::default(), Model::default());
    while report.points < points {
        let round = report.rounds;
        if round.is_multiple_of(6) {
            (disk, model) = (MemoryDisk::default(), Model::default());
        }
        (disk, model) = play(disk, model, points, &mut chance, &mut report)
            .with_context(|| format!("seed {seed}, round {round}, after {} points", report.points))?;
        report.rounds += 1;
    }
    Ok(report)
}

struct World {
    disk: MemoryDisk,
    model: Model,
    shards: Vec<Shard>,
    queues: Vec<VecDeque<DiskRequest>>,
    sequences: Vec<BTreeMap<u64, u64>>,
    frames: BTreeMap<SlotId, u64>,
    /// By shard, session and sequence: the places of persistent changes among the outcomes.
    asked: BTreeMap<(usize, u32, u64), Vec<(usize, Persistent)>>,
    /// Recent puts of persistent registrations, to be sent again.
    recent: VecDeque<(Persistent, Vec<u8>)>,
    versions: u64,
    now: Nanos,
    encoder: Encoder,
}

/// One node from its start to its crash; returns what the crash leaves, and what is true then.
fn play(
    mut disk: MemoryDisk,
    model: Model,
    points: u64,
    chance: &mut Chance,
    report: &mut CrashReport,
) -> anyhow::Result<(MemoryDisk, Model)> {
    let shards = 1 + chance.below(3) as u32;
    let (recovered, epoch) = start(&mut disk, &model, shards, chance, report)?;
    let mut world = World::new(disk, model, recovered, epoch, shards, chance);
    let turns = 10 + chance.below(60);
    let mut full_until = 0;
    for turn in 0..turns {
        if report.points >= points {
            break;
        }
        if chance.below(40) == 0 {
            world.disk.is_full = true;
            full_until = turn + 3 + chance.below(6);
            report.failures += 1;
        }
        world.disk.is_full &= turn < full_until;
        world.turn(chance, report)?;
        for _ in 0..chance.below(10) {
            let shard = chance.below(u64::from(shards)) as usize;
            if world.operate(shard) {
                world.take_acks(shard, report);
                let mut check = Chance::new(chance.number());
                world.crash(&mut check, report).map(|_| ())?;
            }
        }
    }
    if chance.below(3) == 0 {
        world.settle()?;
    }
    for stats in world.shards.iter().filter_map(|shard| Some(shard.storage()?.stats())) {
        report.snapshots += stats.snapshots;
        report.not_journaled += stats.not_journaled;
    }
    world.crash(chance, report)
}

/// Recovers a directory for a node of `shards` shards, and holds what is found against the model.
fn start(
    disk: &mut MemoryDisk,
    model: &Model,
    shards: u32,
    chance: &mut Chance,
    report: &mut CrashReport,
) -> anyhow::Result<(Vec<Recovered>, u32)> {
    let layout = Layout::read(disk, SLOTS, &[])?;
    let epoch = layout.next_epoch();
    ensure!(epoch > model.told, "epoch {epoch} is opened, and {} was told", model.told);
    let mut found = read(disk, &layout, shards, epoch)?;
    check(model, &found)?;
    report.torn += u64::from(found.iter().any(|shard| !shard.report.torn.is_empty()));
    let mut queue = DiskQueue::default();
    layout.clean_up(&mut queue);
    while let Some(request) = queue.take(usize::MAX) {
        disk.run(&request.op)?;
    }
    if layout.is_resharded(shards) {
        report.resharded += 1;
        for (shard, recovered) in found.iter().enumerate() {
            layout.reshard(&config(shard as u32, shards, epoch), recovered, &mut queue);
        }
        layout.retire(&mut queue);
        while let Some(request) = queue.take(usize::MAX) {
            disk.run(&request.op)?;
            if chance.below(40) == 0 {
                // A crash in the middle of it: the next start finds the same.
                let mut crashed = disk.crashed(&mut |end| chance.below(end));
                let layout = Layout::read(&mut crashed, SLOTS, &[])?;
                ensure!(layout.next_epoch() > model.told, "an epoch is used twice");
                check(model, &read(&mut crashed, &layout, shards, layout.next_epoch())?)?;
                report.points += 1;
            }
        }
        let layout = Layout::read(disk, SLOTS, &[])?;
        ensure!(layout.next_epoch() >= epoch, "a change of the shard count forgot the epochs");
        found = read(disk, &layout, shards, epoch)?;
        check(model, &found)?;
    }
    Ok((found, epoch))
}

fn read(disk: &mut MemoryDisk, layout: &Layout, shards: u32, epoch: u32) -> anyhow::Result<Vec<Recovered>> {
    (0..shards).map(|shard| Ok(recover(layout, disk, &config(shard, shards, epoch), &mut |_| ())?)).collect()
}

fn config(shard: u32, shards: u32, epoch: u32) -> RecoverConfig {
    RecoverConfig {
        slot_count: SLOTS,
        slots: 0..=(SLOTS - 1) as u16,
        shard,
        shards,
        epoch,
        seed: 7,
        change_log: ChangeLogLimits::default(),
    }
}

/// What was recovered is a state that was there, and no older than what was durable.
fn check(model: &Model, found: &[Recovered]) -> anyhow::Result<()> {
    for id in (0..SLOTS).map(|slot| SlotId(slot as u16)) {
        let slot = found.iter().find_map(|shard| shard.slots.get(&id));
        let (revision, digest) =
            slot.map_or((Revision::ZERO, State::default()), |slot| (slot.revision, state_of(&slot.slot)));
        let floor = model.floor.get(&id).copied().unwrap_or_default();
        ensure!(revision >= floor, "slot {}: {revision} is recovered, {floor} was durable", id.0);
        let known = model.states.get(&id).and_then(|states| states.get(&revision)).copied();
        let known = if revision == Revision::ZERO { Some(State::default()) } else { known };
        match known {
            None => bail!("slot {}: recovered at {revision}, which it never was at", id.0),
            Some(known) if known != digest => {
                bail!("slot {}: at {revision} it was {known:?}, and {digest:?} is recovered", id.0)
            }
            Some(_) => {}
        }
    }
    for ((datum, register), (version, is_live)) in &model.promised {
        let id = datum.slot(SLOTS);
        let slot = found.iter().find_map(|shard| shard.slots.get(&id));
        let held = slot.and_then(|slot| slot.slot.version(*datum, *register));
        let kept = match held {
            // A removal that everybody knows of is forgotten.
            None => !is_live,
            Some((held, live)) => held > *version || held == *version && live == *is_live,
        };
        ensure!(kept, "{register:?} of slot {}: {held:?} is recovered, {version:?} was acknowledged", id.0);
    }
    Ok(())
}

/// Of a directory that a crash left, salvage finds what recovery does, all of it for certain.
fn check_salvage(disk: &mut MemoryDisk) -> anyhow::Result<()> {
    let layout = Layout::read(disk, SLOTS, &[])?;
    let found = recover(&layout, disk, &config(0, 1, layout.next_epoch()), &mut |_| ())?;
    let salvaged = salvage(disk, SLOTS, &[])?;
    ensure!(salvaged.epoch + 1 >= layout.next_epoch(), "salvage forgets epochs");
    for id in (0..SLOTS).map(|slot| SlotId(slot as u16)) {
        let recovered = found.slots.get(&id).map(|slot| (slot.revision, state_of(&slot.slot)));
        let slot = salvaged.slots.get(&id);
        let kept = slot.map(|slot| (slot.revision, state_of(&slot.slot)));
        let none = (Revision::ZERO, State::default());
        let same = recovered.unwrap_or(none) == kept.unwrap_or(none);
        ensure!(same, "slot {}: {recovered:?} is recovered, {kept:?} is salvaged", id.0);
        let whole = slot.is_none_or(|slot| slot.is_whole);
        ensure!(whole, "slot {} is not certain to be whole: {:?}", id.0, salvaged.faults);
    }
    Ok(())
}

impl World {
    fn new(
        disk: MemoryDisk,
        mut model: Model,
        recovered: Vec<Recovered>,
        epoch: u32,
        shards: u32,
        chance: &mut Chance,
    ) -> Self {
        // What was recovered is the truth from now on, whatever was there before.
        model.waiting.clear();
        for (id, slot) in recovered.iter().flat_map(|shard| &shard.slots) {
            let state = BTreeMap::from([(slot.revision, state_of(&slot.slot))]);
            model.states.insert(*id, state);
            model.floor.insert(*id, slot.revision);
        }
        let storage = StorageConfig {
            journal: JournalConfig {
                slot_count: SLOTS,
                shard: 0,
                shards,
                batch_records: 20,
                batch_interval: 50 * MILLI,
                segment_bytes: 8 * 1024 + chance.below(32 * 1024),
                waiting_bytes_max: 4 * 1024 + chance.below(16 * 1024) as usize,
                retry_interval: 20 * MILLI,
            },
            snapshot_rate: 1 << 30,
            copied_snapshot_rate: 1 << 30,
            snapshot_step: 200 + chance.below(4000) as usize,
            journal_bytes_max: chance.below(64 * 1024),
        };
        let shards: Vec<Shard> = recovered
            .into_iter()
            .enumerate()
            .map(|(shard, recovered)| {
                let shard = shard as u32;
                let mut storage = storage.clone();
                storage.journal.shard = shard;
                let config = ShardConfig {
                    slot_count: SLOTS,
                    slots: 0..=(SLOTS - 1) as u16,
                    shard,
                    shards,
                    epoch,
                    seed: 7,
                    session_lease: 1000 * Nanos::SECOND,
                    settle: 0,
                    change_log: ChangeLogLimits::default(),
                    validate: true,
                    compaction_budget: 4096,
                };
                Shard::recovered(config, recovered, storage)
            })
            .collect();
        Self {
            disk,
            model,
            queues: shards.iter().map(|_| VecDeque::new()).collect(),
            sequences: shards.iter().map(|_| BTreeMap::new()).collect(),
            shards,
            frames: BTreeMap::new(),
            asked: BTreeMap::new(),
            recent: VecDeque::new(),
            versions: u64::from(epoch) << 32,
            now: Nanos(1),
            encoder: Encoder::default(),
        }
    }

    /// Every shard takes some writes and ends a turn.
    fn turn(&mut self, chance: &mut Chance, report: &mut CrashReport) -> anyhow::Result<()> {
        self.now = self.now.after(chance.below(40) * MILLI);
        for shard in 0..self.shards.len() {
            let session = 1 + chance.below(3);
            self.link(shard, session, chance)?;
            if chance.below(4) > 0 {
                self.write(shard, session, chance)?;
            }
            let held = &mut self.shards[shard];
            held.tick(self.now);
            held.seal(self.now);
            self.take_acks(shard, report);
            let held = &mut self.shards[shard];
            let storage = held.storage().context("a shard with storage")?;
            for slot in held.slots() {
                let states = self.model.states.entry(slot.id()).or_default();
                states.insert(slot.revision(), state_of(slot));
                let frame = storage.frame_of(slot.id());
                if self.frames.insert(slot.id(), frame).unwrap_or(0) < frame {
                    self.model.waiting.push((shard, frame, slot.id(), slot.revision()));
                }
            }
            while let Some(request) = held.poll_disk(self.now) {
                self.queues[shard].push_back(request);
            }
        }
        Ok(())
    }

    /// Clients hear what became of their writes.
    fn take_acks(&mut self, shard: usize, report: &mut CrashReport) {
        let held = &mut self.shards[shard];
        // Epochs that a session makes the shard open while the disk is away are told by sessions once more.
        let failed = held.storage().is_some_and(|storage| storage.state() == StorageState::Failed);
        while let Some(ack) = held.poll_ack() {
            for (at, asked) in self.asked.remove(&(shard, ack.reader.0, ack.sequence)).unwrap_or_default() {
                if ack.outcomes[at].is_ok() {
                    report.promised += 1;
                    let promise = (asked.version, asked.is_put);
                    let kept = self.model.promised.entry((asked.datum, asked.register)).or_insert(promise);
                    if kept.0 < asked.version {
                        *kept = promise;
                    }
                } else if ack.outcomes[at] == Err(Refusal::StorageFailed) {
                    report.refused += 1;
                }
            }
            if !failed {
                for revision in ack.outcomes.iter().flatten() {
                    self.model.told = self.model.told.max(revision.epoch());
                }
            }
        }
    }

    fn link(&mut self, shard: usize, session: u64, chance: &mut Chance) -> anyhow::Result<()> {
        let held = &mut self.shards[shard];
        let failed = held.storage().is_some_and(|storage| storage.state() == StorageState::Failed);
        if self.sequences[shard].contains_key(&session) && (failed || chance.below(30) > 0) {
            return Ok(());
        }
        // Now and then a session has seen a later leader.
        let ahead = if failed { 0 } else { chance.below(24) as u32 };
        let seen = if chance.below(3) == 0 { held.epoch() + ahead } else { 0 };
        let last = held.handle_link_open(
            ReaderId(session as u32),
            SessionId(session),
            seen,
            seen <= held.epoch(),
            self.now,
        )?;
        self.sequences[shard].insert(session, last);
        Ok(())
    }

    fn write(&mut self, shard: usize, session: u64, chance: &mut Chance) -> anyhow::Result<()> {
        let (mut entries, mut outcomes, mut asked) = (Vec::new(), 0, Vec::new());
        let changes = if chance.below(10) == 0 { 40 } else { 1 + chance.below(5) };
        for _ in 0..changes {
            let id = DataId::new("n", "g", &format!("service-{}", chance.below(SERVICES)))?;
            if id.key().slot(SLOTS).shard(self.shards.len() as u32) != shard as u32 {
                continue;
            }
            self.versions += 1;
            let is_persistent = chance.below(3) == 0;
            let (register, owner) = if is_persistent {
                (RegisterId(1000 + chance.below(30)), SessionId::NOBODY)
            } else {
                (RegisterId(1 + chance.below(20) * 3 + session), SessionId(session))
            };
            let change = Change {
                kind: ChangeKind::Put,
                durability: Durability::of_owner(owner),
                datum: id.key(),
                register,
                version: Version { number: self.versions, attach: 1 },
                epoch: 0,
                owner,
            };
            let removes = chance.below(3) == 0;
            if is_persistent {
                let version = change.version;
                asked.push((outcomes, Persistent { datum: id.key(), register, version, is_put: !removes }));
            }
            outcomes += 1;
            if removes {
                write_change(&mut entries, &Change { kind: ChangeKind::Remove, ..change });
                continue;
            }
            let payload = vec![chance.below(256) as u8; chance.below(200) as usize];
            let instance = Instance { client: session, name: String::new(), zone: String::new(), payload };
            let record = self.encoder.encode(id.key(), register, &instance)?;
            write_name(&mut entries, id.key(), id.as_bytes());
            let begin = entries.len();
            write_put(&mut entries, &change, Record::read(record)?);
            if let Some((_, persistent)) = asked.last().filter(|_| is_persistent) {
                self.recent.push_back((*persistent, entries[begin..].to_vec()));
                self.recent.truncate(20);
            }
        }
        // Whoever has not been acknowledged says it again.
        for (persistent, entry) in &self.recent {
            let is_here = persistent.datum.slot(SLOTS).shard(self.shards.len() as u32) == shard as u32;
            if is_here && chance.below(8) == 0 {
                asked.push((outcomes, *persistent));
                outcomes += 1;
                entries.extend_from_slice(entry);
            }
        }
        if chance.below(8) == 0 {
            self.recent.pop_front();
        }
        let sequence = self.sequences[shard].entry(session).or_insert(0);
        *sequence += 1;
        self.asked.insert((shard, session as u32, *sequence), asked);
        self.shards[shard].handle_write(ReaderId(session as u32), *sequence, &entries, self.now)?;
        Ok(())
    }

    /// The disk of a shard carries out its next operation and reports it.
    fn operate(&mut self, shard: usize) -> bool {
        let Some(request) = self.queues[shard].pop_front() else { return false };
        let result = self.disk.run(&request.op);
        self.shards[shard].handle_disk(&DiskDone { id: request.id, result }, self.now);
        let Some(storage) = self.shards[shard].storage() else { return false };
        let floor = &mut self.model.floor;
        self.model.waiting.retain(|(of, frame, slot, revision)| {
            if *of != shard || storage.fate(*frame) == Fate::Waiting {
                return true;
            }
            // While a slot has a gap, its frames wait for a snapshot.
            if storage.fate(*frame) == Fate::Durable && !storage.has_gap(*slot) {
                let floor = floor.entry(*slot).or_default();
                *floor = (*floor).max(*revision);
            }
            false
        });
        true
    }

    /// The disk works and nothing is written any more: everything becomes durable, and every gap closes.
    fn settle(&mut self) -> anyhow::Result<()> {
        self.disk.is_full = false;
        for shard in 0..self.shards.len() {
            for _ in 0..10_000 {
                self.now = self.now.after(MILLI);
                self.shards[shard].seal(self.now);
                while let Some(request) = self.shards[shard].poll_disk(self.now) {
                    self.queues[shard].push_back(request);
                }
                if !self.operate(shard) && self.shards[shard].is_disk_idle() {
                    let storage = self.shards[shard].storage().context("a shard with storage")?;
                    if storage.state() == StorageState::Whole {
                        break;
                    }
                }
            }
            let state = self.shards[shard].storage().map(|storage| storage.state());
            ensure!(state == Some(StorageState::Whole), "shard {shard} stays {state:?}");
            let durable = self.model.waiting.iter().all(|(of, ..)| *of != shard);
            ensure!(durable, "shard {shard} has something that never became durable");
        }
        Ok(())
    }

    /// What a crash now leaves behind, recovered and compared.
    fn crash(&self, chance: &mut Chance, report: &mut CrashReport) -> anyhow::Result<(MemoryDisk, Model)> {
        let disk = self.disk.crashed(&mut |end| chance.below(end));
        let shards = 1 + chance.below(3) as u32;
        report.points += 1;
        report.behind += u64::from(!self.model.waiting.is_empty());
        if report.points.is_multiple_of(4) {
            check_salvage(&mut disk.clone())?;
        }
        start(&mut disk.clone(), &self.model, shards, chance, report)?;
        Ok((disk, self.model.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_hundred_crashes_are_recovered_from() {
        let report = run(1, 300).unwrap_or_else(|error| panic!("{error:#}"));
        println!("{report}");
        assert!(report.points >= 300);
        assert!(report.torn > 0 && report.resharded > 0 && report.failures > 0, "{report}");
        assert!(report.promised > 0 && report.refused > 0, "{report}");
        assert!(report.snapshots > 0 && report.not_journaled > 0 && report.behind > 0, "{report}");
    }
}
