//! Names and numbers: data ids, keys, slots, revisions and versions. All of it is wire format.

use std::{cmp::Ordering, fmt};

use xxhash_rust::xxh3::xxh3_64;

use crate::limits::{DATA_ID_BYTES_MAX, GROUP_BYTES_MAX, NAMESPACE_BYTES_MAX, SERVICE_BYTES_MAX, SLOTS_MAX};

/// Separates the three names of a canonical data id (ASCII unit separator; names may not contain it).
const SEPARATOR: char = '\u{1f}';

/// A data id: what publishers publish and subscribers subscribe to. Held in canonical form
/// `namespace 0x1f group 0x1f service`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DataId(Box<str>);

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The named part has no characters.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// The named part is longer than its limit.
    #[error("{part} is {bytes} bytes long, the limit is {limit}")]
    TooLong {
        /// Which name.
        part: &'static str,
        /// Its length in bytes.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Control characters would break logs and the canonical form.
    #[error("{0} contains a control character")]
    Control(&'static str),
    /// Not UTF-8, or not three parts.
    #[error("not a canonical data id: {0}")]
    Malformed(&'static str),
}

/// Checks one name: not empty, at most `limit` bytes, no control characters.
pub fn check_name(part: &'static str, name: &str, limit: usize) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty(part));
    }
    if name.len() > limit {
        return Err(NameError::TooLong { part, bytes: name.len(), limit });
    }
    // The plain bytes that most names consist of are told faster than characters.
    if !name.bytes().all(|byte| (0x20..0x7f).contains(&byte)) && name.chars().any(char::is_control) {
        return Err(NameError::Control(part));
    }
    Ok(())
}

impl DataId {
    /// Builds a data id from its three names.
    pub fn new(namespace: &str, group: &str, service: &str) -> Result<Self, NameError> {
        check_name("namespace", namespace, NAMESPACE_BYTES_MAX)?;
        check_name("group", group, GROUP_BYTES_MAX)?;
        check_name("service", service, SERVICE_BYTES_MAX)?;
        Ok(Self(format!("{namespace}{SEPARATOR}{group}{SEPARATOR}{service}").into()))
    }

    /// Reads the canonical form, as it comes off the wire.
    pub fn from_canonical(bytes: &[u8]) -> Result<Self, NameError> {
        Self::check_canonical(bytes).map(|text| Self(text.into()))
    }

    /// The key of a data id in canonical form, which is checked like [`DataId::from_canonical`] does.
    pub fn key_of_canonical(bytes: &[u8]) -> Result<DatumKey, NameError> {
        Self::check_canonical(bytes).map(|text| DatumKey(xxh3_64(text.as_bytes())))
    }

    fn check_canonical(bytes: &[u8]) -> Result<&str, NameError> {
        if bytes.is_empty() {
            return Err(NameError::Empty("data id"));
        }
        if bytes.len() > DATA_ID_BYTES_MAX {
            return Err(NameError::TooLong { part: "data id", bytes: bytes.len(), limit: DATA_ID_BYTES_MAX });
        }
        let text = std::str::from_utf8(bytes).map_err(|_| NameError::Malformed("it is not UTF-8"))?;
        let mut parts = text.split(SEPARATOR);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(namespace), Some(group), Some(service), None) => {
                check_name("namespace", namespace, NAMESPACE_BYTES_MAX)?;
                check_name("group", group, GROUP_BYTES_MAX)?;
                check_name("service", service, SERVICE_BYTES_MAX)?;
                Ok(text)
            }
            _ => Err(NameError::Malformed("it needs exactly three parts")),
        }
    }

    /// The canonical bytes, as they go over the wire and into the hash.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The 64-bit key that stands for this data id in frames.
    pub fn key(&self) -> DatumKey {
        DatumKey(xxh3_64(self.as_bytes()))
    }

    /// Namespace, group and service.
    pub fn parts(&self) -> (&str, &str, &str) {
        let mut parts = self.0.split(SEPARATOR);
        (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next().unwrap_or(""))
    }
}

impl fmt::Display for DataId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (namespace, group, service) = self.parts();
        write!(f, "{namespace}/{group}/{service}")
    }
}

impl fmt::Debug for DataId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// xxh3-64 (seed 0) of a canonical data id. Two names with one key cannot be served together: the second is refused by
/// name wherever names are known (at 10 million data ids the chance of any such pair is about 3 in a million).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct DatumKey(pub u64);

impl DatumKey {
    /// The slot: the top bits of the key, so a slot is a contiguous hash range. `slot_count` is a power of two.
    pub fn slot(self, slot_count: u32) -> SlotId {
        debug_assert!(slot_count.is_power_of_two() && slot_count <= SLOTS_MAX);
        SlotId(((u128::from(self.0) * u128::from(slot_count)) >> 64) as u16)
    }
}

/// A hash range of data ids: the unit of placement.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SlotId(pub u16);

impl SlotId {
    /// In a frame header: this frame concerns no single slot.
    pub const NONE: SlotId = SlotId(u16::MAX);

    /// The shard of a node with `shards` shards that holds this slot: `mix64(slot) * shards >> 64`.
    pub fn shard(self, shards: u32) -> u32 {
        ((u128::from(mix64(u64::from(self.0))) * u128::from(shards)) >> 64) as u32
    }
}

/// One registration of a client, unique within a data id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct RegisterId(pub u64);

/// One client process, over all its connections.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ClientId(pub u64);

/// One run of one session core: never used again after a restart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SessionId(pub u64);

impl SessionId {
    /// Owns persistent registrations: no session does. So no lease, no digest of a session and no disconnect reaches them.
    pub const NOBODY: SessionId = SessionId(0);
}

/// A position in one slot's history: leader epoch (24 bits) over a counter of sealed batches (40 bits). Ordered within a
/// slot; revisions of different slots have nothing to say to each other.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Revision(pub u64);

impl Revision {
    /// Before any history: what a reader holds that has nothing.
    pub const ZERO: Revision = Revision(0);
    /// Largest leader epoch.
    pub const EPOCH_MAX: u32 = (1 << 24) - 1;
    const COUNTER_BITS: u32 = 40;

    /// The revision at which a leader opens an epoch.
    pub fn open(epoch: u32) -> Self {
        assert!(epoch <= Self::EPOCH_MAX, "leader epochs are exhausted");
        Self(u64::from(epoch) << Self::COUNTER_BITS)
    }

    /// The leader epoch.
    pub fn epoch(self) -> u32 {
        (self.0 >> Self::COUNTER_BITS) as u32
    }

    /// Sealed batches since the epoch was opened.
    pub fn counter(self) -> u64 {
        self.0 & ((1 << Self::COUNTER_BITS) - 1)
    }

    /// The revision of the next batch of the same epoch.
    #[must_use]
    pub fn next(self) -> Self {
        let next = Self(self.0 + 1);
        assert!(next.epoch() == self.epoch(), "a slot's batch counter is exhausted");
        next
    }
}

impl fmt::Debug for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch(), self.counter())
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What decides between two writes of one registration. Both numbers come from the client; no server clock takes part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Version {
    /// Grows with every change of content and with every removal.
    pub number: u64,
    /// Grows with every (re)registration over a new connection.
    pub attach: u32,
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.number, self.attach).cmp(&(other.number, other.attach))
    }
}

/// A reader of a shard: one session link, numbered by whoever holds the shard.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ReaderId(pub u32);

/// A follower's link to a shard, numbered by whoever holds the shard that leads.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ReplicaId(pub u32);

/// A point of monotonic time in nanoseconds. The engine never reads a clock; whoever drives it passes this in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Nanos(pub u64);

impl Nanos {
    /// One second.
    pub const SECOND: u64 = 1_000_000_000;

    /// This point plus `nanos`.
    #[must_use]
    pub fn after(self, nanos: u64) -> Self {
        Nanos(self.0.saturating_add(nanos))
    }

    /// Whole seconds, never 0, which means that a time is not known; 136 years fit.
    pub fn seconds(self) -> u32 {
        u32::try_from(self.0 / Self::SECOND).unwrap_or(u32::MAX).max(1)
    }

    /// Nanoseconds from `earlier` to this point, 0 if it lies ahead.
    pub fn since(self, earlier: Nanos) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A bijective scrambling of 64 bits (the finalizer of SplitMix64, Steele et al., 2014).
pub const fn mix64(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What a led slot adds to the sum by which a session and a shard find out whether they agree about who leads what.
pub const fn route(slot: SlotId, leader_epoch: u32) -> u64 {
    mix64((slot.0 as u64) << 32 | leader_epoch as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_function_keeps_its_golden_values() {
        // Wire and disk format: a change here strands every stored slot.
        let golden = [
            ("public", "default", "checkout", 0xf4af_f501_1e6d_8ee2, 978, 31319),
            ("public", "default", "api_appserver/apache2", 0x547e_a954_071a_b6f8, 337, 10815),
            ("名前空間", "グループ", "サービス", 0x2856_4303_dd23_f269, 161, 5163),
        ];
        for (namespace, group, service, key, slot_1024, slot_32768) in golden {
            let id = DataId::new(namespace, group, service).unwrap();
            assert_eq!(id.key(), DatumKey(key), "{id}");
            assert_eq!((id.key().slot(1024), id.key().slot(32768)), (SlotId(slot_1024), SlotId(slot_32768)));
        }
    }

    #[test]
    fn names_are_checked_by_part() {
        assert_eq!(DataId::new("", "g", "s"), Err(NameError::Empty("namespace")));
        assert_eq!(
            DataId::new("n", "g", &"x".repeat(257)),
            Err(NameError::TooLong { part: "service", bytes: 257, limit: 256 })
        );
        assert_eq!(DataId::new("n", "g\n", "s"), Err(NameError::Control("group")));
        assert!(DataId::from_canonical(b"only-one-part").is_err());
        let id = DataId::new("n", "g", "s/with/slashes").unwrap();
        assert_eq!(DataId::from_canonical(id.as_bytes()), Ok(id));
    }

    #[test]
    fn revisions_order_by_epoch_then_counter() {
        let late_in_one = Revision::open(1).next().next();
        assert!(Revision::ZERO < Revision::open(1) && late_in_one < Revision::open(2));
        assert_eq!((late_in_one.epoch(), late_in_one.counter()), (1, 2));
    }

    #[test]
    fn slots_spread_evenly_over_shards() {
        for shards in [1u32, 2, 3, 7, 64] {
            let mut held = vec![0u32; shards as usize];
            (0..1024).for_each(|slot| held[SlotId(slot).shard(shards) as usize] += 1);
            let mean = 1024 / shards;
            assert!(held.iter().all(|&n| n >= mean / 2 && n <= mean * 2 + 1), "{shards}: {held:?}");
        }
    }
}
