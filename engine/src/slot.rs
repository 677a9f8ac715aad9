//! One slot: the registrations of a hash range of data ids, and their history.
//!
//! A leader *admits* writes: it decides which write wins, copies the winning entry into the open batch and applies it. A
//! follower or a recovery *applies* the entries of a sealed batch. Both end in the same [`Slot::apply`].
//!
//! Invariant: readers only ever see sealed revisions; between a first admitted write and [`Slot::seal`] nothing is read.

use std::collections::{BTreeMap, VecDeque};

use hashbrown::HashTable;

use crate::{
    arena::{Arena, ArenaBytes},
    batch::OpenBatch,
    change_log::{ChangeLog, ChangeLogLimits, Position},
    digest::Digest,
    id::{DatumKey, Nanos, RegisterId, Revision, SessionId, SlotId, Version},
    record::Record,
};

mod admission;

mod chunks;

mod datums;

mod digests;

mod dismantle;

mod effects;

mod follow;

mod history;

mod insight;

mod lineage;

mod memory;

mod owned;

mod owners;

mod publication;

mod relocate;

mod removed;

mod restore;

mod returning;

mod since_led;

mod warm;

use chunks::Chunks;
pub(crate) use follow::Checks;
pub use follow::FollowError;
pub use insight::{DatumView, display_name};
pub use lineage::FORKS_MAX;
use lineage::Lineage;
use owners::Owners;
use publication::{NIL, Place, Publication};
pub(crate) use relocate::Movable;
pub use restore::ScanCursor;
use since_led::SinceLed;

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
    /// Its place in the table of registrations.
    index: u32,
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
    /// The sealed batch, for journal and followers; empty where there is neither.
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
    owners: Owners,
    tombstones: VecDeque<Tombstone>,
    /// How often what had expired has returned, or was removed after all, in the version that it had: so many of its entries in
    /// `tombstones` are of before.
    returned: BTreeMap<(DatumKey, RegisterId, Version), u32>,
    idle: VecDeque<u32>,
    lineage: Lineage,
    /// What has changed since it was last led anew, while it is led here as the slot table says.
    since_led: Option<SinceLed>,
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
            owners: Owners::default(),
            tombstones: VecDeque::new(),
            returned: BTreeMap::new(),
            idle: VecDeque::new(),
            lineage: Lineage::default(),
            since_led: None,
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

    /// Nobody reads its batches: no journal, no follower. They are counted and change revisions as ever, but not written.
    pub(crate) fn forgo_batches(&mut self) {
        self.open.forgo();
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
        self.owners.digest(session)
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

    /// Seals the open batch, if there is one: its changes become one revision. Changes that cancelled each other out within
    /// the batch do not enter the history.
    pub fn seal(&mut self, now: Nanos) -> Option<Sealed> {
        if self.open.changes() == 0 {
            return None;
        }
        let (previous, revision) = (self.revision, self.revision.next());
        let batch = self.open.seal(self.id, previous, revision, self.shards);
        (self.revision, self.named) = (revision, NIL);
        debug_assert!(batch.is_empty() || crate::batch::Batch::read(&batch).is_ok());
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
        matches!(publication.place(), Place::Live(_))
            .then(|| (self.record(index), self.owner_of(publication)))
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
            Some((self.record(index), self.owner_of(publication)))
        })
    }

    /// Every known data id: canonical name and live publishers.
    pub fn datums(&self) -> impl Iterator<Item = (DatumKey, &[u8], usize)> {
        self.datums.iter().flatten().map(|datum| (datum.key, &*datum.name, datum.publishers as usize))
    }

    fn content_of(&self, index: u32) -> Option<(u64, SessionId)> {
        let publication = self.publication(index);
        match publication.place() {
            Place::Live(at) => Some((self.arena.get(at).checksum(), self.owner_of(publication))),
            Place::Tombstone { .. } | Place::Vacant => None,
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
            Place::Tombstone { .. } | Place::Vacant => unreachable!("only live registrations have records"),
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
}
