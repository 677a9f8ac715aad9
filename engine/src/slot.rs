//! One slot: the registrations of a hash range of data ids, and their history.
//!
//! A leader *admits* writes: it decides which write wins, copies the winning entry into the open batch and applies it. A
//! follower or a recovery *applies* the entries of a sealed batch. Both end in the same [`Slot::apply`].
//!
//! Invariant: readers only ever see sealed revisions; between a first admitted write and [`Slot::seal`] nothing is read.

use std::collections::VecDeque;

use hashbrown::HashTable;

use crate::{
    arena::{Arena, ArenaBytes},
    batch::{Change, ChangeKind, Durability, Entry, OpenBatch, write_change},
    change_log::{ChangeLog, ChangeLogLimits, Position},
    digest::{Digest, fingerprint},
    error::Refusal,
    id::{ClientId, DatumKey, Nanos, RegisterId, Revision, SessionId, SlotId, Version},
    limits::{DATUM_BYTES_MAX, DATUM_PUBLISHERS_MAX},
    record::Record,
};

mod chunks;

mod datums;

mod digests;

mod dismantle;

mod follow;

mod history;

mod insight;

mod lineage;

mod memory;

mod owned;

mod publication;

mod relocate;

mod restore;

use chunks::Chunks;
pub(crate) use follow::Checks;
pub use follow::FollowError;
pub use insight::{DatumView, display_name};
pub use lineage::FORKS_MAX;
use lineage::Lineage;
use publication::{NIL, Place, Publication};
pub(crate) use relocate::Movable;
pub use restore::ScanCursor;

/// A data id with its publishers.
struct Datum {
    key: DatumKey,
    name: Box<[u8]>,
    head: u32,
    publishers: u32,
    tombstones: u32,
    bytes: usize,
    last_change: Revision,
    latest: Option<Position>,
    /// The slot's revision when it was last named or lost its last tombstone.
    idle_since: Revision,
    /// Seconds at which it last changed, and at which its last reader was seen; 0: not in this run.
    changed_at: u32,
    read_at: u32,
}

struct Touched {
    datum: u32,
    register: RegisterId,
    /// Content and owner before the change, if it was live.
    before: Option<(u64, SessionId)>,
    /// Content and owner after it, likewise.
    after: Option<(u64, SessionId)>,
}

struct Tombstone {
    mark: u64,
    datum: DatumKey,
    register: RegisterId,
    version: Version,
}

/// What sealing a batch made.
pub struct Sealed {
    /// The sealed batch, for journal and followers.
    pub batch: Vec<u8>,
    /// The slot's revision before it.
    pub previous: Revision,
    /// The data ids whose lists it changed.
    pub changed: Vec<DatumKey>,
    /// Whether somebody waits for it to be durable.
    pub persistent: bool,
}

/// Counts and bytes of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotCounts {
    /// Data ids known by name.
    pub datums: usize,
    /// Live registrations.
    pub publishers: usize,
    /// Those of them that are persistent.
    pub persistent: usize,
    /// Removed registrations whose version is still remembered.
    pub tombstones: usize,
    /// Entries of the change log.
    pub log_entries: usize,
    /// Arena memory.
    pub arena: ArenaBytes,
}

/// The registrations of one slot.
pub struct Slot {
    id: SlotId,
    shards: u32,
    seed: u64,
    revision: Revision,
    datums: Vec<Option<Datum>>,
    datums_vacant: Vec<u32>,
    datum_index: HashTable<u32>,
    /// Bytes of the names in `datums`.
    name_bytes: usize,
    publications: Chunks<Publication>,
    publications_vacant: u32,
    publication_index: HashTable<u32>,
    publishers: usize,
    pub(crate) arena: Arena,
    log: ChangeLog,
    log_limits: ChangeLogLimits,
    open: OpenBatch,
    /// The open batch has a change of a persistent registration.
    open_persistent: bool,
    touched: Vec<Touched>,
    digest: Digest,
    /// By session, in rising order.
    session_digests: Vec<(SessionId, Digest)>,
    tombstones: VecDeque<Tombstone>,
    idle: VecDeque<u32>,
    lineage: Lineage,
    /// Others follow its batches, which then name a data id again whenever it gets its first registration.
    tells_names: bool,
    /// The data id named last in the open batch.
    named: u32,
}

impl Slot {
    /// An empty slot whose leader opens `epoch`. `shards` is the node's shard count, told in every batch; `seed` makes the
    /// index unpredictable to whoever chooses register ids.
    pub fn open(id: SlotId, epoch: u32, shards: u32, seed: u64, log_limits: ChangeLogLimits) -> Self {
        let revision = Revision::open(epoch);
        Self {
            id,
            shards,
            seed,
            revision,
            datums: Vec::new(),
            datums_vacant: Vec::new(),
            datum_index: HashTable::new(),
            name_bytes: 0,
            publications: Chunks::default(),
            publications_vacant: NIL,
            publication_index: HashTable::new(),
            publishers: 0,
            arena: Arena::default(),
            log: ChangeLog::starting_at(revision),
            log_limits,
            open: OpenBatch::default(),
            open_persistent: false,
            touched: Vec::new(),
            digest: Digest::default(),
            session_digests: Vec::new(),
            tombstones: VecDeque::new(),
            idle: VecDeque::new(),
            lineage: Lineage::default(),
            tells_names: false,
            named: NIL,
        }
    }

    /// Takes memory for `publishers` registrations ahead, with records of `record_bytes` bytes each on the average, and
    /// touches it, so that nobody waits for the system to find pages while registrations come in. It is no bound.
    pub fn reserve(&mut self, publishers: usize, record_bytes: usize) {
        self.arena.reserve(publishers * record_bytes);
        self.log.reserve(publishers.min(self.log_limits.entries_max));
        self.publications.reserve(publishers, Publication::fresh(RegisterId(0), NIL));
        let (seed, publications, arena) = (self.seed, &self.publications, &self.arena);
        self.publication_index.reserve(publishers, |&index| publications[index as usize].hash(arena, seed));
    }

    /// The slot's number.
    pub fn id(&self) -> SlotId {
        self.id
    }

    /// The node's shard count.
    pub(crate) fn shards(&self) -> u32 {
        self.shards
    }

    /// The latest sealed revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The change log.
    pub fn log(&self) -> &ChangeLog {
        &self.log
    }

    /// Digest over all live registrations.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Digest over the live registrations that `session` owns; those that [`SessionId::NOBODY`] owns are persistent.
    pub fn session_digest(&self, session: SessionId) -> Digest {
        let found = self.session_digests.binary_search_by_key(&session, |(session, _)| *session);
        found.map_or_else(|_| Digest::default(), |at| self.session_digests[at].1)
    }

    /// Changes waiting to be sealed.
    pub fn open_changes(&self) -> usize {
        self.open.changes()
    }

    /// Live registrations.
    pub fn publishers(&self) -> usize {
        self.publishers
    }

    /// Counts and bytes.
    pub fn counts(&self) -> SlotCounts {
        SlotCounts {
            datums: self.datum_index.len(),
            publishers: self.publishers,
            persistent: self.session_digest(SessionId::NOBODY).count as usize,
            tombstones: self.publication_index.len() - self.publishers,
            log_entries: self.log.len(),
            arena: self.arena.bytes(),
        }
    }

    /// Names the data id behind a key. Refused when another data id holds the key.
    pub fn admit_name(&mut self, entry: Entry<'_>) -> Result<(), Refusal> {
        let name = entry.name().ok_or(Refusal::RecordInvalid)?;
        match self.find_datum(entry.change.datum) {
            Some(index) if &*self.datum(index).name == name => {
                self.datum_mut(index).idle_since = self.revision;
                Ok(())
            }
            Some(_) => Err(Refusal::KeyCollision),
            None => {
                self.open.push(entry);
                self.apply(entry, 0);
                self.named = self.find_datum(entry.change.datum).unwrap_or(NIL);
                Ok(())
            }
        }
    }

    /// Admits a put of a session: the larger (publisher version, attach count) wins, and equal content changes nothing
    /// but the version. `client` is the publishing client that the record names. An ephemeral registration is changed by
    /// its client alone, a persistent one by whoever names it with a larger version.
    pub fn admit_put(&mut self, entry: Entry<'_>, client: u64) -> Result<(), Refusal> {
        let (change, record) = (entry.change, entry.record().ok_or(Refusal::RecordInvalid)?);
        let datum = self.find_datum(change.datum).ok_or(Refusal::NameUnknown)?;
        let mut replaced_bytes = 0;
        let found = self.find_in(datum, change.register);
        if let Some(index) = found {
            let known = self.publication(index).version();
            if matches!(self.publication(index).place(), Place::Live(_)) {
                let stored = self.record(index);
                if self.publication(index).is_persistent() != change.is_persistent() {
                    return Err(Refusal::DurabilityMismatch);
                }
                if !change.is_persistent() && stored.client() != Some(ClientId(client)) {
                    return Err(Refusal::ForeignRegistration);
                }
                let same = stored.checksum() == record.checksum();
                // Two writers of a persistent registration may have chosen one version.
                if change.version < known || change.version == known && change.is_persistent() && !same {
                    return Err(Refusal::Superseded);
                }
                if change.version == known {
                    return Ok(());
                }
                if same {
                    let touch = Change { kind: ChangeKind::Touch, ..change };
                    self.open_persistent |= change.is_persistent();
                    self.write(|out| write_change(out, &touch));
                    self.apply_change(&touch, None, 0);
                    return Ok(());
                }
                replaced_bytes = stored.bytes().len();
            } else if change.version <= known {
                return Err(Refusal::Superseded);
            }
        }
        let held = self.datum(datum);
        let full = replaced_bytes == 0 && held.publishers as usize >= DATUM_PUBLISHERS_MAX;
        let full = full || self.arena.is_full();
        if full || held.bytes - replaced_bytes + record.bytes().len() > DATUM_BYTES_MAX {
            return Err(Refusal::DatumFull);
        }
        self.open_persistent |= change.is_persistent();
        self.name_again(datum);
        self.open.push(entry);
        self.put_at(datum, found, &change, record);
        Ok(())
    }

    /// Admits a removal. Only the owning session incarnation removes an ephemeral registration, and whoever names it with
    /// a version that is not smaller a persistent one; an unknown registration is no error. `mark` says when the tombstone
    /// may go (see [`Slot::forget_tombstones`]).
    pub fn admit_remove(&mut self, change: &Change, mark: u64) -> Result<(), Refusal> {
        let Some(datum) = self.find_datum(change.datum) else { return Ok(()) };
        // What is not known leaves a tombstone all the same: a session that has not been heard yet may still hold it.
        if let Some(index) = self.find_in(datum, change.register) {
            let publication = self.publication(index);
            if matches!(publication.place(), Place::Live(_)) {
                if publication.is_persistent() != change.is_persistent() {
                    return Err(Refusal::DurabilityMismatch);
                }
                if { publication.owner } != change.owner {
                    return Err(Refusal::NotOwner);
                }
                if change.version < publication.version() {
                    return Err(Refusal::Superseded);
                }
            } else if change.version <= publication.version() {
                return Ok(());
            }
        }
        let remove = Change { kind: ChangeKind::Remove, ..*change };
        self.open_persistent |= change.is_persistent();
        self.name_again(datum);
        self.write(|out| write_change(out, &remove));
        self.apply_change(&remove, None, mark);
        Ok(())
    }

    /// Removes at most `limit` of the ephemeral registrations that `session` owns: its lease has ended. Returns how many.
    pub fn remove_session(&mut self, session: SessionId, mark: u64, limit: usize) -> usize {
        if self.session_digest(session).is_empty() {
            return 0;
        }
        let owned: Vec<Change> = self
            .live()
            .filter(|(_, publication)| { publication.owner } == session)
            .map(|(_, publication)| self.removal_of(publication))
            .take(limit)
            .collect();
        for change in &owned {
            self.write(|out| write_change(out, change));
            self.apply_change(change, None, mark);
        }
        owned.len()
    }

    /// Drops at most `limit` tombstones marked below `mark`: every live session has confirmed a write sequence that it sent
    /// after it could learn of them. Returns how many went.
    pub fn forget_tombstones(&mut self, mark: u64, limit: usize) -> usize {
        let mut forgotten = 0;
        while forgotten < limit && self.tombstones.front().is_some_and(|tombstone| tombstone.mark < mark) {
            let Some(tombstone) = self.tombstones.pop_front() else { break };
            let Some(index) = self.find(tombstone.datum, tombstone.register) else { continue };
            let publication = self.publication(index);
            let same = publication.version() == tombstone.version;
            if same && matches!(publication.place(), Place::Tombstone) {
                let forget = Change {
                    kind: ChangeKind::Forget,
                    durability: Durability::Ephemeral,
                    datum: tombstone.datum,
                    register: tombstone.register,
                    version: tombstone.version,
                    epoch: 0,
                    owner: publication.owner,
                };
                self.write(|out| write_change(out, &forget));
                self.apply_change(&forget, None, 0);
                forgotten += 1;
            }
        }
        forgotten
    }

    /// Applies an entry that a leader admitted. `mark` is kept with a tombstone.
    pub fn apply(&mut self, entry: Entry<'_>, mark: u64) {
        if let Some(name) = entry.name() {
            if self.find_datum(entry.change.datum).is_none() {
                let index = self.insert_datum(entry.change.datum, name);
                self.idle.push_back(index);
            }
            return;
        }
        self.apply_change(&entry.change, entry.record(), mark);
    }

    /// Seals the open batch, if there is one: its changes become one revision. Changes that cancelled each other out within
    /// the batch do not enter the history.
    pub fn seal(&mut self, now: Nanos) -> Option<Sealed> {
        if self.open.changes() == 0 {
            return None;
        }
        let (previous, revision) = (self.revision, self.revision.next());
        let batch = self.open.seal(self.id, previous, revision, self.shards);
        (self.revision, self.named) = (revision, NIL);
        debug_assert!(crate::batch::Batch::read(&batch).is_ok());
        let changed = self.log_touched(revision, now);
        self.log.trim(&self.log_limits, now);
        self.drop_idle_datums(previous);
        let persistent = std::mem::take(&mut self.open_persistent);
        Some(Sealed { batch, previous, changed, persistent })
    }

    /// Opens a larger epoch in the same history: readers of this run stay in step, and no revision of another run can be
    /// mistaken for one of this.
    pub fn reopen(&mut self, epoch: u32) {
        assert!(epoch > self.revision.epoch() && self.open.changes() == 0);
        self.revision = Revision::open(epoch);
    }

    /// Moves to the next revision without a change, so that an answer given from now on is told apart from one before.
    pub fn advance(&mut self) {
        assert!(self.open.changes() == 0, "seal first");
        self.revision = self.revision.next();
    }

    /// Gives the memory of a batch back that nobody needs any more.
    pub fn recycle(&mut self, batch: Vec<u8>) {
        self.open.recycle(batch);
    }

    /// Whether `key` is known here under another name than `name`.
    pub fn collides(&self, key: DatumKey, name: &[u8]) -> bool {
        self.find_datum(key).is_some_and(|index| &*self.datum(index).name != name)
    }

    /// Revision of the last change, latest log position and live publishers of a data id.
    pub(crate) fn datum_state(&self, key: DatumKey) -> Option<(Revision, Option<Position>, usize)> {
        self.find_datum(key).map(|index| {
            let datum = self.datum(index);
            (datum.last_change, datum.latest, datum.publishers as usize)
        })
    }

    /// The key of a data id that a log entry names by number.
    pub(crate) fn datum_key(&self, datum: u32) -> DatumKey {
        self.datum(datum).key
    }

    /// The live record and owner of a registration.
    pub fn get(&self, datum: DatumKey, register: RegisterId) -> Option<(Record<'_>, SessionId)> {
        let index = self.find(datum, register)?;
        let publication = self.publication(index);
        matches!(publication.place(), Place::Live(_)).then(|| (self.record(index), publication.owner))
    }

    /// Version of a registration, and whether it is live rather than a tombstone.
    pub fn version(&self, datum: DatumKey, register: RegisterId) -> Option<(Version, bool)> {
        let publication = self.publication(self.find(datum, register)?);
        Some((publication.version(), matches!(publication.place(), Place::Live(_))))
    }

    /// All live records of a data id with their owners, in no order.
    pub fn records(&self, datum: DatumKey) -> impl Iterator<Item = (Record<'_>, SessionId)> {
        let mut next = self.find_datum(datum).map_or(NIL, |index| self.datum(index).head);
        std::iter::from_fn(move || {
            if next == NIL {
                return None;
            }
            let index = next;
            let publication = self.publication(index);
            next = publication.after;
            Some((self.record(index), publication.owner))
        })
    }

    /// Every known data id: canonical name and live publishers.
    pub fn datums(&self) -> impl Iterator<Item = (DatumKey, &[u8], usize)> {
        self.datums.iter().flatten().map(|datum| (datum.key, &*datum.name, datum.publishers as usize))
    }

    fn write(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.open.append(write);
    }

    fn removal_of(&self, publication: &Publication) -> Change {
        Change {
            kind: ChangeKind::Remove,
            durability: Durability::Ephemeral,
            datum: self.datum(publication.datum).key,
            register: publication.register(&self.arena),
            version: publication.version(),
            epoch: 0,
            owner: publication.owner,
        }
    }

    fn apply_change(&mut self, change: &Change, record: Option<Record<'_>>, mark: u64) {
        match (change.kind, record) {
            (ChangeKind::Put, Some(record)) => self.apply_put(change, record),
            (ChangeKind::Touch, _) => {
                let Some(index) = self.find(change.datum, change.register) else { return };
                self.leave_digest(index);
                let before = self.content_of(index);
                let publication = &mut self.publications[index as usize];
                (publication.number, publication.attach) = (change.version.number, change.version.attach);
                publication.owner = change.owner;
                let datum = publication.datum;
                self.enter_digest(index);
                let after = self.content_of(index);
                self.touched.push(Touched { datum, register: change.register, before, after });
            }
            (ChangeKind::Remove, _) => self.apply_remove(change, mark),
            (ChangeKind::Forget, _) => {
                let Some(index) = self.find(change.datum, change.register) else { return };
                let publication = *self.publication(index);
                if matches!(publication.place(), Place::Tombstone) {
                    self.vacate(index);
                    let datum = self.datum_mut(publication.datum);
                    datum.tombstones -= 1;
                    self.note_if_idle(publication.datum);
                }
            }
            (ChangeKind::Put, None) | (ChangeKind::Name, _) => {
                debug_assert!(false, "a put has a record, a name is applied by its entry");
            }
        }
    }

    fn apply_put(&mut self, change: &Change, record: Record<'_>) {
        let Some(datum) = self.find_datum(change.datum) else {
            debug_assert!(false, "a name precedes the first put");
            return;
        };
        let found = self.find_in(datum, change.register);
        self.put_at(datum, found, change, record);
    }

    /// Stores a record of `datum`, whose registration was `found` there or is new.
    fn put_at(&mut self, datum: u32, found: Option<u32>, change: &Change, record: Record<'_>) {
        let to = self.arena.append(record);
        let (index, before) = match found {
            Some(index) => {
                let before = self.content_of(index);
                match self.publication(index).place() {
                    Place::Live(from) => {
                        self.leave_digest(index);
                        self.datum_mut(datum).bytes -= self.arena.get(from).bytes().len();
                        self.arena.release(from);
                    }
                    Place::Tombstone | Place::Vacant => {
                        self.datum_mut(datum).tombstones -= 1;
                        self.link(index, datum);
                    }
                }
                (index, before)
            }
            None => {
                let index = self.occupy(change.register, datum);
                self.link(index, datum);
                (index, None)
            }
        };
        let publication = &mut self.publications[index as usize];
        publication.number = change.version.number;
        publication.attach = change.version.attach;
        publication.owner = change.owner;
        publication.datum = datum;
        publication.set_place(Place::Live(to));
        let checksum = record.checksum();
        self.enter(change.owner, fingerprint(change.datum, change.register, change.version, checksum));
        self.datum_mut(datum).bytes += record.bytes().len();
        let after = Some((checksum, change.owner));
        self.touched.push(Touched { datum, register: change.register, before, after });
    }

    fn apply_remove(&mut self, change: &Change, mark: u64) {
        let Some(datum) = self.find_datum(change.datum) else { return };
        let found = self.find_in(datum, change.register);
        let index = found.unwrap_or_else(|| self.occupy(change.register, datum));
        let before = self.content_of(index);
        match self.publication(index).place() {
            Place::Live(at) => {
                self.leave_digest(index);
                self.unlink(index);
                let len = self.arena.get(at).bytes().len();
                self.arena.release(at);
                self.datum_mut(datum).bytes -= len;
                self.datum_mut(datum).tombstones += 1;
            }
            Place::Vacant => self.datum_mut(datum).tombstones += 1,
            Place::Tombstone => {}
        }
        let entry = &mut self.publications[index as usize];
        entry.set_place(Place::Tombstone);
        entry.owner = change.owner;
        entry.keep(change.register);
        (entry.number, entry.attach) = (change.version.number, change.version.attach);
        self.tombstones.push_back(Tombstone {
            mark,
            datum: change.datum,
            register: change.register,
            version: change.version,
        });
        self.touched.push(Touched { datum, register: change.register, before, after: None });
    }

    /// Moves what the sealed batch really changed into the log; returns the changed data ids. A new owner counts: sessions
    /// have to know whose word decides on a registration after a loss, though their clients see no change.
    fn log_touched(&mut self, revision: Revision, now: Nanos) -> Vec<DatumKey> {
        let mut touched = std::mem::take(&mut self.touched);
        // Stable: the first of a registration's touches knows what was there before the batch, the last what is there now.
        touched.sort_by_key(|touch| (touch.datum, touch.register));
        let mut changed = Vec::new();
        let mut datum_before = (NIL, Revision::ZERO);
        let same = |a: &Touched, b: &Touched| (a.datum, a.register) == (b.datum, b.register);
        for touches in touched.chunk_by(same) {
            let (first, last) = (&touches[0], &touches[touches.len() - 1]);
            if first.before == last.after {
                continue;
            }
            if datum_before.0 != first.datum {
                datum_before = (first.datum, self.datum(first.datum).last_change);
                changed.push(self.datum(first.datum).key);
            }
            let before = self.datum(first.datum).latest;
            let position = self.log.push(revision, now, first.datum, first.register, before, datum_before.1);
            let datum = self.datum_mut(first.datum);
            (datum.latest, datum.last_change) = (Some(position), revision);
            datum.changed_at = now.seconds();
        }
        touched.clear();
        self.touched = touched;
        changed
    }

    fn content_of(&self, index: u32) -> Option<(u64, SessionId)> {
        let publication = self.publication(index);
        match publication.place() {
            Place::Live(at) => Some((self.arena.get(at).checksum(), publication.owner)),
            Place::Tombstone | Place::Vacant => None,
        }
    }

    fn live(&self) -> impl Iterator<Item = (u32, &Publication)> {
        self.publications.iter().enumerate().filter_map(|(index, publication)| {
            matches!(publication.place(), Place::Live(_)).then_some((index as u32, publication))
        })
    }

    fn record(&self, index: u32) -> Record<'_> {
        match self.publication(index).place() {
            Place::Live(at) => self.arena.get(at),
            Place::Tombstone | Place::Vacant => unreachable!("only live registrations have records"),
        }
    }

    fn publication(&self, index: u32) -> &Publication {
        &self.publications[index as usize]
    }

    fn find(&self, key: DatumKey, register: RegisterId) -> Option<u32> {
        self.find_in(self.find_datum(key)?, register)
    }

    fn find_in(&self, datum: u32, register: RegisterId) -> Option<u32> {
        let hash = self.publication_hash(datum, register);
        self.publication_index
            .find(hash, |&index| {
                let publication = self.publication(index);
                publication.datum == datum && publication.register(&self.arena) == register
            })
            .copied()
    }

    fn publication_hash(&self, datum: u32, register: RegisterId) -> u64 {
        publication::hash(self.seed, datum, register)
    }

    fn occupy(&mut self, register: RegisterId, datum: u32) -> u32 {
        let fresh = Publication::fresh(register, datum);
        let index = if self.publications_vacant == NIL {
            self.publications.push(fresh);
            (self.publications.len() - 1) as u32
        } else {
            let index = self.publications_vacant;
            self.publications_vacant = self.publication(index).after;
            self.publications[index as usize] = fresh;
            index
        };
        let hash = self.publication_hash(datum, register);
        let (seed, publications, arena) = (self.seed, &self.publications, &self.arena);
        self.publication_index
            .insert_unique(hash, index, |&index| publications[index as usize].hash(arena, seed));
        index
    }

    fn vacate(&mut self, index: u32) {
        let publication = *self.publication(index);
        let hash = publication.hash(&self.arena, self.seed);
        if let Ok(entry) = self.publication_index.find_entry(hash, |&at| at == index) {
            entry.remove();
        }
        let vacant = self.publications_vacant;
        let entry = &mut self.publications[index as usize];
        entry.set_place(Place::Vacant);
        entry.after = vacant;
        self.publications_vacant = index;
    }

    fn link(&mut self, index: u32, datum: u32) {
        let head = self.datum(datum).head;
        (self.publications[index as usize].before, self.publications[index as usize].after) = (NIL, head);
        if head != NIL {
            self.publications[head as usize].before = index;
        }
        let datum = self.datum_mut(datum);
        datum.head = index;
        datum.publishers += 1;
        self.publishers += 1;
    }

    fn unlink(&mut self, index: u32) {
        let Publication { before, after, datum, .. } = *self.publication(index);
        if after != NIL {
            self.publications[after as usize].before = before;
        }
        if before != NIL {
            self.publications[before as usize].after = after;
        } else {
            self.datum_mut(datum).head = after;
        }
        self.datum_mut(datum).publishers -= 1;
        self.publishers -= 1;
    }
}
