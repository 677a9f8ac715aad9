//! A record: one publisher's content, as one rkyv archive behind a fixed 32-byte header.
//!
//! The bytes a client sends are the bytes in the arena, in the journal, at the follower and on the subscriber's socket.
//! A record never changes; what does change about a registration (version, attach count, owning session) travels in the
//! change entry around it (see [`crate::batch`]) and lives in the index.
//!
//! ```text
//!  0        4     5        6    7      8           16            24            32            len-pad   len
//!  | len u32 | kind | schema | pad | flags | datum u64 | register u64 | checksum u64 | archive ... | zeros |
//! ```
//! `checksum` is the xxh3-64 of everything behind the header, seeded with the xxh3-64 (seed 0) of the header up to the
//! checksum. The archive's root sits at the end of the archive, which ends `pad` bytes before the record does.

use rkyv::{
    rancor,
    util::{Align, AlignedVec},
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{
    archive,
    id::{ClientId, DatumKey, NameError, RegisterId, check_name},
    limits::{ALIGNMENT, INSTANCE_NAME_BYTES_MAX, PAYLOAD_BYTES_MAX, RECORD_BYTES_MAX, ZONE_BYTES_MAX},
};

/// Bytes of the header before the archive.
pub const HEADER_BYTES: usize = 32;
/// The kind byte of a publisher record.
pub const KIND_PUBLISHER: u8 = 1;
/// The schema this version writes; each schema id has one Rust type.
pub const SCHEMA: u8 = 1;
const CHECKSUM_AT: usize = 24;

const _: () = {
    assert!(size_of::<ArchivedInstance>() == 32, "the archive's root, as other languages read it");
    assert!(std::mem::offset_of!(ArchivedInstance, client) == 0);
};

/// What a publisher publishes.
#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The publishing client; only it may change or remove the registration.
    pub client: u64,
    /// A name for people, at most [`INSTANCE_NAME_BYTES_MAX`] bytes; may be empty.
    pub name: String,
    /// The zone the instance runs in, at most [`ZONE_BYTES_MAX`] bytes; may be empty.
    pub zone: String,
    /// Opaque to the registry, at most [`PAYLOAD_BYTES_MAX`] bytes.
    pub payload: Vec<u8>,
}

/// What is wrong with the bytes of a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Fewer bytes than the header, or than the header says.
    #[error("record is truncated: {needed} bytes needed, {got} there")]
    Truncated {
        /// Bytes that the record needs.
        needed: usize,
        /// Bytes that are there.
        got: usize,
    },
    /// The length field is out of range or not a multiple of 16.
    #[error("record length {0} is out of range")]
    Length(usize),
    /// A kind or schema that this version does not know.
    #[error("unknown record kind {kind} schema {schema}")]
    Unknown {
        /// The kind byte.
        kind: u8,
        /// The schema byte.
        schema: u8,
    },
    /// The checksum does not fit the bytes.
    #[error("record checksum mismatch")]
    Checksum,
    /// The archive is not a valid archive of the schema.
    #[error("record archive is invalid: {0}")]
    Archive(String),
    /// A name inside is too long or has control characters.
    #[error("record name is invalid: {0}")]
    Name(#[from] NameError),
    /// The payload is larger than allowed.
    #[error("payload is {0} bytes long, the limit is {PAYLOAD_BYTES_MAX}")]
    PayloadTooLarge(usize),
}

/// A record whose header has been checked: length in range, kind and schema known. Checksum and archive are checked
/// apart, because they cost time in proportion to the bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Record<'a>(&'a [u8]);

impl<'a> Record<'a> {
    /// Reads the record at the start of `bytes`.
    pub fn read(bytes: &'a [u8]) -> Result<Self, RecordError> {
        if bytes.len() < HEADER_BYTES {
            return Err(RecordError::Truncated { needed: HEADER_BYTES, got: bytes.len() });
        }
        let len = read_u32(bytes, 0) as usize;
        if !(HEADER_BYTES..=RECORD_BYTES_MAX).contains(&len) || !len.is_multiple_of(ALIGNMENT) {
            return Err(RecordError::Length(len));
        }
        if bytes.len() < len {
            return Err(RecordError::Truncated { needed: len, got: bytes.len() });
        }
        let (kind, schema, pad) = (bytes[4], bytes[5], usize::from(bytes[6]));
        if kind != KIND_PUBLISHER || schema != SCHEMA {
            return Err(RecordError::Unknown { kind, schema });
        }
        if pad >= ALIGNMENT || HEADER_BYTES + pad > len {
            return Err(RecordError::Length(len));
        }
        Ok(Self(&bytes[..len]))
    }

    /// Takes bytes that were checked when they entered the store.
    pub(crate) fn trusted(bytes: &'a [u8]) -> Self {
        debug_assert!(Self::read(bytes).is_ok_and(|record| record.0.len() == bytes.len()));
        Self(bytes)
    }

    /// The whole record.
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// The data id's key.
    pub fn datum(self) -> DatumKey {
        DatumKey(read_u64(self.0, 8))
    }

    /// The registration.
    pub fn register(self) -> RegisterId {
        RegisterId(read_u64(self.0, 16))
    }

    /// The checksum as stored: also the identity of the content.
    pub fn checksum(self) -> u64 {
        read_u64(self.0, CHECKSUM_AT)
    }

    /// Compares the stored checksum with the bytes.
    pub fn verify_checksum(self) -> Result<(), RecordError> {
        if checksum(self.0) == self.checksum() { Ok(()) } else { Err(RecordError::Checksum) }
    }

    /// The archive between header and padding.
    pub fn archive(self) -> &'a [u8] {
        &self.0[HEADER_BYTES..self.0.len() - usize::from(self.0[6])]
    }

    /// The publishing client, read from its place without validating the archive; `None` if there is no such place.
    pub fn client(self) -> Option<ClientId> {
        let root = self.archive().len().checked_sub(size_of::<ArchivedInstance>())?;
        Some(ClientId(read_u64(self.archive(), root)))
    }

    /// Validates the archive and hands it out without copying. The record has to lie at an address that is a multiple
    /// of 8, as it does in an arena; [`Record::to_aligned`] makes one that does.
    pub fn access(self) -> Result<&'a ArchivedInstance, RecordError> {
        rkyv::access::<ArchivedInstance, rancor::Error>(self.archive())
            .map_err(|error| RecordError::Archive(error.to_string()))
    }

    /// Copies the record into aligned memory.
    pub fn to_aligned(self) -> AlignedVec {
        let mut copy = AlignedVec::with_capacity(self.0.len());
        copy.extend_from_slice(self.0);
        copy
    }

    /// All checks of a trust boundary: checksum, archive, names and payload size. Returns the publishing client. It takes
    /// what [`Record::access`] takes, wherever the bytes lie, in a fraction of the time.
    pub fn validate(self) -> Result<ClientId, RecordError> {
        self.verify_checksum()?;
        let (client, name, zone, payload) =
            archive::read(self.archive()).map_err(|wrong| RecordError::Archive(wrong.to_string()))?;
        check_instance(name, zone, payload.len())?;
        Ok(ClientId(client))
    }

    /// Reads the content out of the record.
    pub fn instance(self) -> Result<Instance, RecordError> {
        let copy = self.to_aligned();
        let archived = Record(&copy).access()?;
        rkyv::deserialize::<Instance, rancor::Error>(archived)
            .map_err(|error| RecordError::Archive(error.to_string()))
    }
}

impl std::fmt::Debug for Record<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Record({:x}/{:x}, {} bytes)", self.datum().0, self.register().0, self.0.len())
    }
}

/// Writes records, reusing its memory.
#[derive(Default)]
pub struct Encoder {
    buffer: AlignedVec,
}

impl Encoder {
    /// Encodes one record. The returned bytes are valid until the next call.
    pub fn encode(
        &mut self,
        datum: DatumKey,
        register: RegisterId,
        instance: &Instance,
    ) -> Result<&[u8], RecordError> {
        check_instance(&instance.name, &instance.zone, instance.payload.len())?;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.extend_from_slice(&Align([0u8; HEADER_BYTES]).0);
        buffer = rkyv::api::high::to_bytes_in::<_, rancor::Error>(instance, buffer)
            .map_err(|error| RecordError::Archive(error.to_string()))?;
        let pad = buffer.len().next_multiple_of(ALIGNMENT) - buffer.len();
        buffer.extend_from_slice(&[0; ALIGNMENT][..pad]);
        let len = buffer.len();
        buffer[0..4].copy_from_slice(&(len as u32).to_le_bytes());
        (buffer[4], buffer[5], buffer[6], buffer[7]) = (KIND_PUBLISHER, SCHEMA, pad as u8, 0);
        buffer[8..16].copy_from_slice(&datum.0.to_le_bytes());
        buffer[16..24].copy_from_slice(&register.0.to_le_bytes());
        let sum = checksum(&buffer);
        buffer[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&sum.to_le_bytes());
        self.buffer = buffer;
        Ok(&self.buffer)
    }
}

/// The records that stand one behind the other in `bytes`.
pub fn iter(bytes: &[u8]) -> impl Iterator<Item = Result<Record<'_>, RecordError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let record = Record::read(rest);
        rest = record.as_ref().map_or(&[], |record| &rest[record.0.len()..]);
        Some(record)
    })
}

fn check_instance(name: &str, zone: &str, payload_bytes: usize) -> Result<(), RecordError> {
    if !name.is_empty() {
        check_name("instance name", name, INSTANCE_NAME_BYTES_MAX)?;
    }
    if !zone.is_empty() {
        check_name("zone", zone, ZONE_BYTES_MAX)?;
    }
    if payload_bytes > PAYLOAD_BYTES_MAX {
        return Err(RecordError::PayloadTooLarge(payload_bytes));
    }
    Ok(())
}

fn checksum(record: &[u8]) -> u64 {
    xxh3_64_with_seed(&record[HEADER_BYTES..], xxh3_64(&record[..CHECKSUM_AT]))
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from(read_u32(bytes, at)) | u64::from(read_u32(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(payload: usize) -> Instance {
        Instance {
            client: 7,
            name: "mw2051.codfw.example".into(),
            zone: "codfw".into(),
            payload: (0..payload).map(|i| i as u8).collect(),
        }
    }

    fn encode(payload: usize) -> Vec<u8> {
        Encoder::default().encode(DatumKey(1), RegisterId(2), &instance(payload)).unwrap().to_vec()
    }

    #[test]
    fn a_record_reads_back_as_written() {
        let largest = if cfg!(miri) { 1000 } else { PAYLOAD_BYTES_MAX };
        for payload in [0, 1, 7, 128, largest] {
            let bytes = encode(payload);
            let record = Record::read(&bytes).unwrap();
            assert_eq!(record.bytes().len() % ALIGNMENT, 0);
            assert_eq!((record.datum(), record.register()), (DatumKey(1), RegisterId(2)));
            assert_eq!(record.validate().unwrap(), ClientId(7));
            assert_eq!(record.client(), Some(ClientId(7)));
            assert_eq!(record.instance().unwrap(), instance(payload));
        }
    }

    #[test]
    fn unaligned_bytes_validate_where_they_lie() {
        let mut shifted = AlignedVec::<16>::new();
        shifted.push(0);
        shifted.extend_from_slice(&encode(100));
        let record = Record::read(&shifted[1..]).unwrap();
        assert!(record.validate().is_ok());
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_noticed() {
        let bytes = encode(24);
        for cut in 0..bytes.len() {
            assert!(Record::read(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..bytes.len() {
            let mut broken = bytes.clone();
            broken[at] ^= 0x10;
            let noticed = Record::read(&broken).and_then(|record| record.validate()).is_err();
            assert!(noticed, "byte {at}");
        }
    }

    #[test]
    fn an_archive_that_points_outside_is_refused_though_its_checksum_fits() {
        let mut bytes = encode(64);
        let root = bytes.len() - usize::from(bytes[6]) - size_of::<ArchivedInstance>();
        bytes[root + 24..root + 28].copy_from_slice(&i32::MAX.to_le_bytes());
        let sum = checksum(&bytes);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&sum.to_le_bytes());
        let error = Record::read(&bytes).unwrap().validate().unwrap_err();
        assert!(matches!(error, RecordError::Archive(_)), "{error}");
    }

    /// Whether both readers agree about these bytes, which may be anything behind a record header, and accept them.
    fn agree(record: &[u8]) -> bool {
        let mut aligned = AlignedVec::<16>::with_capacity(record.len());
        aligned.extend_from_slice(record);
        let Ok(record) = Record::read(&aligned) else { return false };
        match (archive::read(record.archive()), record.access()) {
            (Ok((client, name, zone, payload)), Ok(archived)) => {
                assert_eq!((client, name), (archived.client.to_native(), archived.name.as_str()));
                assert_eq!((zone, payload), (archived.zone.as_str(), archived.payload.as_slice()));
                true
            }
            (Err(_), Err(_)) => false,
            (mine, theirs) => panic!("{mine:?}, rkyv: {:?} for {record:?}", theirs.is_ok()),
        }
    }

    fn records() -> Vec<Vec<u8>> {
        let texts = ["", "a", "seven77", "eight888", "nine99999", "名前空間です", "€", &"x".repeat(256)];
        let mut encoder = Encoder::default();
        let mut records = Vec::new();
        for (index, name) in texts.iter().enumerate() {
            let zone = texts[(index * 3 + 1) % (texts.len() - 1)];
            for payload in [0, 1, 8, 13, 128] {
                let instance = Instance {
                    client: crate::id::mix64(payload as u64),
                    name: (*name).into(),
                    zone: zone.chars().take(20).collect(),
                    payload: vec![payload as u8; payload],
                };
                records.push(encoder.encode(DatumKey(1), RegisterId(2), &instance).unwrap().to_vec());
            }
        }
        records
    }

    #[test]
    fn both_readers_agree_about_whatever_bytes_there_are() {
        let (mut accepted, mut refused) = (0, 0);
        for (salt, record) in records().into_iter().enumerate() {
            assert!(agree(&record));
            let from = record.len().saturating_sub(64).max(HEADER_BYTES);
            for at in (from..record.len()).chain([6]) {
                for draw in 0..if cfg!(miri) { 1 } else { 40u64 } {
                    let mut broken = record.clone();
                    let noise = crate::id::mix64(draw << 32 | (at as u64) << 8 | salt as u64);
                    broken[at] = match draw % 3 {
                        0 => noise as u8,
                        1 => broken[at].wrapping_add((noise % 33) as u8).wrapping_sub(16),
                        _ => broken[at] ^ (1 << (noise % 8)),
                    };
                    if agree(&broken) { accepted += 1 } else { refused += 1 }
                }
            }
        }
        assert!(cfg!(miri) || accepted > 1000 && refused > 1000, "{accepted} accepted, {refused} refused");
    }

    #[test]
    fn overlaps_and_disorder_are_refused() {
        let mut record = records().pop().unwrap();
        let payload = record.len() - usize::from(record[6]) - 8;
        // The payload, moved onto the name.
        let onto = (HEADER_BYTES as i32 - payload as i32).to_le_bytes();
        record[payload..payload + 4].copy_from_slice(&onto);
        assert!(!agree(&record));
    }

    #[test]
    fn too_much_is_refused_before_it_is_written() {
        let mut encoder = Encoder::default();
        let mut big = instance(PAYLOAD_BYTES_MAX + 1);
        assert!(matches!(
            encoder.encode(DatumKey(1), RegisterId(1), &big),
            Err(RecordError::PayloadTooLarge(_))
        ));
        big.payload.clear();
        big.zone = "z".repeat(ZONE_BYTES_MAX + 1);
        assert!(matches!(encoder.encode(DatumKey(1), RegisterId(1), &big), Err(RecordError::Name(_))));
    }

    #[test]
    fn records_in_a_row_are_walked_and_a_cut_one_ends_the_walk() {
        let mut row = encode(10);
        row.extend(encode(20));
        assert_eq!(iter(&row).filter(|record| record.is_ok()).count(), 2);
        row.truncate(row.len() - 1);
        let seen: Vec<bool> = iter(&row).map(|record| record.is_ok()).collect();
        assert_eq!(seen, [true, false]);
    }
}
