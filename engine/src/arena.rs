//! The arena of one slot: records in append-only segments of aligned memory.
//!
//! A segment is allocated once and never grown, so a record never moves while it lives in its segment. Removing a record
//! only counts its bytes as dead; a segment without live records is freed at once, and [`crate::compact`] empties the
//! mostly dead ones. Segments start small, so that thousands of slots with little in them stay cheap, and grow with what
//! the arena holds, so that the one that is being filled is a small part of it.

use rkyv::util::AlignedVec;

use crate::{
    limits::{ALIGNMENT, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN},
    record::Record,
};

/// What a segment is smaller than a power of two, so that it fits one together with what an allocator may add to it.
const SEGMENT_MARGIN: usize = 2 * ALIGNMENT;
/// A new segment has this part of the memory that the arena has, as far as it may...
const SEGMENT_PART: usize = 64;
/// ... but while it is smaller than this, for then its end, where no record fits any more, is worth more, ...
const SEGMENT_BYTES_SMALL: usize = 32 * 1024;
/// ... it has this part.
const SEGMENT_PART_SMALL: usize = 16;
/// Where a record says what kind of record it is, and what it says in an arena once it is dead.
const KIND_AT: usize = 4;
const KIND_DEAD: u8 = 0;

/// Segments of an arena at most.
const SEGMENTS_MAX: usize = u16::MAX as usize;

/// Where a record lies: 4 bytes, for there is one per publisher.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Location {
    segment: u16,
    /// In steps of the alignment of records.
    step: u16,
}

const _: () = assert!(SEGMENT_BYTES_MAX / ALIGNMENT <= 1 << 16, "a location reaches all of a segment");

impl Location {
    /// The first of the numbers that are no location's.
    pub(crate) const NOWHERE: u32 = (SEGMENTS_MAX as u32) << 16;

    /// As a number below [`Location::NOWHERE`].
    pub(crate) fn to_bits(self) -> u32 {
        u32::from(self.segment) << 16 | u32::from(self.step)
    }

    /// The location of this number.
    pub(crate) fn from_bits(bits: u32) -> Self {
        Self { segment: (bits >> 16) as u16, step: bits as u16 }
    }

    fn new(segment: u32, offset: usize) -> Self {
        debug_assert!(offset.is_multiple_of(ALIGNMENT) && offset < SEGMENT_BYTES_MAX);
        Self { segment: segment as u16, step: (offset / ALIGNMENT) as u16 }
    }

    fn segment(self) -> u32 {
        self.segment.into()
    }

    fn offset(self) -> usize {
        usize::from(self.step) * ALIGNMENT
    }
}

struct Segment {
    bytes: AlignedVec,
    /// Tells this segment from others that have had or will have its number.
    born: u64,
    capacity: usize,
    dead: usize,
}

/// Memory of an arena by kind, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ArenaBytes {
    /// Records that are current.
    pub live: usize,
    /// Records that were replaced or removed and still take room.
    pub dead: usize,
    /// Allocated and not yet written.
    pub free: usize,
}

/// Segments and the bytes in them.
#[derive(Default)]
pub struct Arena {
    segments: Vec<Option<Segment>>,
    vacant: Vec<u32>,
    open: Option<u32>,
    opened: u64,
    /// Bytes of all segments that are held: taken for them, written, and no longer current.
    capacity: usize,
    written: usize,
    dead: usize,
    /// Memory taken ahead: of segments to be opened, and how many bytes are to be kept so when segments are freed.
    spare: Vec<AlignedVec>,
    spare_bytes: usize,
    reserve_bytes: usize,
    /// Bytes of records that are about to come: segments are as large as if they were here.
    expected: usize,
}

/// What lies at a place of a segment.
pub(crate) enum Found<'a> {
    /// A record that is current.
    Live(Location, Record<'a>),
    /// One that is not, of so many bytes.
    Dead(usize),
}

/// A segment that takes no more records.
pub(crate) struct Closed {
    pub(crate) segment: u32,
    pub(crate) born: u64,
    pub(crate) live: usize,
    pub(crate) dead: usize,
    pub(crate) capacity: usize,
}

impl Arena {
    /// Copies a record in.
    pub fn append(&mut self, record: Record<'_>) -> Location {
        let bytes = record.bytes();
        let index = match self.open {
            Some(index) if self.segment(index).room() >= bytes.len() => index,
            _ => self.open_segment(bytes.len()),
        };
        self.written += bytes.len();
        let segment = self.segment_mut(index);
        let offset = segment.bytes.len();
        segment.bytes.extend_from_slice(bytes);
        assert!(segment.bytes.len() <= segment.capacity, "a segment never grows");
        Location::new(index, offset)
    }

    /// Copies a record that is here already once more, for its old place to be released.
    pub(crate) fn append_copy(&mut self, from: Location) -> Location {
        let len = self.get(from).bytes().len();
        let index = match self.open {
            // A segment cannot be read while it is written to.
            Some(index) if self.segment(index).room() >= len && index != from.segment() => index,
            _ => self.open_segment(len),
        };
        self.written += len;
        let Some(mut segment) = self.segments[index as usize].take() else { unreachable!("it was opened") };
        let offset = segment.bytes.len();
        segment.bytes.extend_from_slice(self.get(from).bytes());
        self.segments[index as usize] = Some(segment);
        Location::new(index, offset)
    }

    /// The record at `at`.
    pub fn get(&self, at: Location) -> Record<'_> {
        let bytes = &self.segment(at.segment()).bytes[at.offset()..];
        Record::trusted(&bytes[..length(bytes)])
    }

    /// The byte behind which the next record will most likely lie.
    pub(crate) fn last_byte(&self) -> Option<u8> {
        self.segment(self.open?).bytes.last().copied()
    }

    /// Marks and counts the record at `at` as dead and frees its segment if it was the last live one there.
    pub fn release(&mut self, at: Location) {
        let len = self.get(at).bytes().len();
        self.dead += len;
        let segment = self.segment_mut(at.segment());
        segment.bytes[at.offset() + KIND_AT] = KIND_DEAD;
        segment.dead += len;
        assert!(segment.dead <= segment.bytes.len(), "a record is released once");
        if segment.dead == segment.bytes.len() {
            self.open.take_if(|open| *open == at.segment());
            self.drop_segment(at.segment());
        }
    }

    /// Gives back a segment of an arena that nobody will look at again, or memory that was taken ahead. Returns whether there
    /// was any.
    pub(crate) fn drop_last_segment(&mut self) -> bool {
        if self.spare.pop().is_some() {
            return true;
        }
        let Some(last) = self.segments.pop() else { return false };
        if let Some(segment) = last {
            self.capacity -= segment.capacity;
            self.written -= segment.bytes.len();
            self.dead -= segment.dead;
        }
        true
    }

    /// Takes memory for `bytes` bytes of records ahead, and touches it. So much is kept from then on.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        self.reserve_bytes = bytes;
        while self.spare_bytes + SEGMENT_BYTES_MIN <= bytes {
            let left = bytes - self.spare_bytes;
            let size = (1 << left.ilog2()).min(SEGMENT_BYTES_MAX) - SEGMENT_MARGIN;
            let mut spare = AlignedVec::with_capacity(size);
            spare.resize(size, 1);
            spare.clear();
            self.spare_bytes += spare.capacity();
            self.spare.push(spare);
        }
        // The largest are taken first, from the end.
        self.spare.sort_by_key(AlignedVec::capacity);
    }

    /// Hears that records of so many bytes in all will be held, so that their segments need not begin small. It takes nothing.
    pub(crate) fn expect(&mut self, bytes: usize) {
        self.expected = bytes;
    }

    /// Whether it has as many segments as can be told apart, 64 GiB of them.
    pub fn is_full(&self) -> bool {
        self.vacant.is_empty() && self.segments.len() >= SEGMENTS_MAX
    }

    /// Bytes by kind.
    pub fn bytes(&self) -> ArenaBytes {
        ArenaBytes {
            live: self.written - self.dead,
            dead: self.dead,
            free: self.capacity - self.written + self.spare_bytes,
        }
    }

    /// Every closed segment.
    pub(crate) fn closed_segments(&self) -> impl Iterator<Item = Closed> {
        self.segments.iter().enumerate().filter_map(|(index, segment)| {
            let (index, segment) = (index as u32, segment.as_ref()?);
            (self.open != Some(index)).then(|| Closed {
                segment: index,
                born: segment.born,
                live: segment.bytes.len() - segment.dead,
                dead: segment.dead,
                capacity: segment.capacity,
            })
        })
    }

    /// What starts at `offset` in a segment; `None` at the segment's end or when the segment is gone, also if another one
    /// has its number by now.
    pub(crate) fn found_at(&self, segment: u32, born: u64, offset: u32) -> Option<Found<'_>> {
        let held = self.segments.get(segment as usize)?.as_ref()?;
        if held.born != born || offset as usize >= held.bytes.len() {
            return None;
        }
        let bytes = &held.bytes[offset as usize..];
        if bytes[KIND_AT] == KIND_DEAD {
            return Some(Found::Dead(length(bytes)));
        }
        let at = Location::new(segment, offset as usize);
        Some(Found::Live(at, self.get(at)))
    }

    fn open_segment(&mut self, needed: usize) -> u32 {
        self.opened += 1;
        let bytes = match self.spare.pop_if(|spare| spare.capacity() >= needed) {
            Some(spare) => {
                self.spare_bytes -= spare.capacity();
                spare
            }
            None => {
                let held = self.capacity.max(self.expected);
                let part = (held / SEGMENT_PART).max((held / SEGMENT_PART_SMALL).min(SEGMENT_BYTES_SMALL));
                let part = part.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
                let size = (1usize << part.ilog2()).max((needed + SEGMENT_MARGIN).next_power_of_two());
                let capacity = size - SEGMENT_MARGIN;
                assert!(needed <= capacity && size <= SEGMENT_BYTES_MAX);
                AlignedVec::with_capacity(capacity)
            }
        };
        let capacity = bytes.capacity();
        self.capacity += capacity;
        let segment = Segment { bytes, born: self.opened, capacity, dead: 0 };
        let index = match self.vacant.pop() {
            Some(index) => index,
            None => {
                assert!(!self.is_full(), "a full arena is asked for nothing");
                self.segments.push(None);
                (self.segments.len() - 1) as u32
            }
        };
        self.segments[index as usize] = Some(segment);
        self.open = Some(index);
        index
    }

    fn drop_segment(&mut self, index: u32) {
        if let Some(Segment { mut bytes, capacity, dead, .. }) = self.segments[index as usize].take() {
            self.capacity -= capacity;
            self.written -= bytes.len();
            self.dead -= dead;
            if self.spare_bytes + capacity <= self.reserve_bytes {
                bytes.clear();
                self.spare_bytes += capacity;
                self.spare.push(bytes);
            }
        }
        self.vacant.push(index);
    }

    fn segment(&self, index: u32) -> &Segment {
        self.segments[index as usize].as_ref().expect("a location outlives no segment")
    }

    fn segment_mut(&mut self, index: u32) -> &mut Segment {
        self.segments[index as usize].as_mut().expect("a location outlives no segment")
    }
}

impl Segment {
    fn room(&self) -> usize {
        self.capacity - self.bytes.len()
    }
}

/// The length that a record begins with.
fn length(record: &[u8]) -> usize {
    u32::from_le_bytes([record[0], record[1], record[2], record[3]]) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::{DatumKey, RegisterId},
        record::{Encoder, Instance},
    };

    fn record(register: u64, payload: usize) -> Vec<u8> {
        let instance =
            Instance { client: 1, name: String::new(), zone: String::new(), payload: vec![9; payload] };
        Encoder::default().encode(DatumKey(1), RegisterId(register), &instance).unwrap().to_vec()
    }

    #[test]
    fn records_read_back_aligned_across_segments() {
        let mut arena = Arena::default();
        let count = if cfg!(miri) { 20 } else { 200 };
        let records: Vec<Vec<u8>> = (0..count).map(|i| record(i, (i as usize * 37) % 3000)).collect();
        let places: Vec<Location> =
            records.iter().map(|bytes| arena.append(Record::read(bytes).unwrap())).collect();
        for (bytes, place) in records.iter().zip(&places) {
            assert_eq!(arena.get(*place).bytes(), &bytes[..]);
            assert!(arena.get(*place).access().is_ok(), "aligned");
        }
        let live: usize = records.iter().map(Vec::len).sum();
        assert_eq!(arena.bytes().live, live);
    }

    #[test]
    fn a_dead_segment_is_freed_and_its_number_used_again() {
        let mut arena = Arena::default();
        let bytes = record(1, 1000);
        let places: Vec<Location> = (0..100).map(|_| arena.append(Record::read(&bytes).unwrap())).collect();
        for place in places {
            arena.release(place);
        }
        assert_eq!(arena.bytes(), ArenaBytes::default(), "nothing stays");
        for _ in 0..100 {
            arena.append(Record::read(&bytes).unwrap());
        }
        assert!(arena.segments.len() < 40);
    }

    #[test]
    fn what_is_not_written_yet_is_a_small_part_of_a_large_arena() {
        let mut arena = Arena::default();
        let bytes = record(1, 300);
        for count in 1..if cfg!(miri) { 200 } else { 10_000 } {
            arena.append(Record::read(&bytes).unwrap());
            let ArenaBytes { live, dead, free } = arena.bytes();
            assert_eq!((live, dead), (count * bytes.len(), 0));
            assert!(free <= SEGMENT_BYTES_MIN + live / 8, "{free} free, {live} live");
        }
    }

    #[test]
    fn what_is_reserved_is_used_and_kept() {
        let mut arena = Arena::default();
        arena.reserve(100_000);
        let reserved = arena.bytes();
        assert!((90_000..=100_000).contains(&reserved.free), "{reserved:?}");
        let bytes = record(1, 1000);
        for _ in 0..2 {
            let places: Vec<Location> =
                (0..80).map(|_| arena.append(Record::read(&bytes).unwrap())).collect();
            let ArenaBytes { live, dead, free } = arena.bytes();
            assert_eq!((live + free, dead), (reserved.free, 0), "nothing was taken besides");
            places.into_iter().for_each(|place| arena.release(place));
            assert_eq!(arena.bytes(), reserved);
        }
        for _ in 0..100 {
            arena.append(Record::read(&bytes).unwrap());
        }
        assert!(arena.bytes().live > reserved.free, "it is no bound");
    }

    #[test]
    fn a_walk_over_a_segment_tells_the_living_from_the_dead() {
        let mut arena = Arena::default();
        let records: Vec<Vec<u8>> = (0..9).map(|i| record(i, i as usize * 40)).collect();
        let places: Vec<Location> =
            records.iter().map(|bytes| arena.append(Record::read(bytes).unwrap())).collect();
        places.iter().skip(1).step_by(2).for_each(|place| arena.release(*place));
        let (mut offset, born) = (0, arena.opened);
        for (number, (bytes, place)) in records.iter().zip(&places).enumerate() {
            match arena.found_at(0, born, offset) {
                Some(Found::Live(at, record)) => {
                    assert!(number % 2 == 0 && at == *place && record.bytes() == &bytes[..]);
                }
                Some(Found::Dead(len)) => assert!(number % 2 == 1 && len == bytes.len()),
                None => panic!("record {number} is missing"),
            }
            offset += bytes.len() as u32;
        }
        assert!(arena.found_at(0, born, offset).is_none() && arena.found_at(0, born + 1, 0).is_none());
    }

    #[test]
    fn what_is_expected_is_not_taken_before_it_comes() {
        let (mut small, mut large) = (Arena::default(), Arena::default());
        large.expect(SEGMENT_BYTES_MAX);
        let bytes = record(1, 300);
        for _ in 0..50 {
            assert_eq!(large.bytes().live, small.bytes().live);
            assert!(large.bytes().free <= SEGMENT_BYTES_SMALL);
            small.append(Record::read(&bytes).unwrap());
            large.append(Record::read(&bytes).unwrap());
        }
        assert!(large.segments.len() < small.segments.len(), "fewer and larger segments");
    }

    #[test]
    fn an_empty_arena_holds_nothing() {
        assert_eq!(Arena::default().bytes(), ArenaBytes::default());
    }
}
