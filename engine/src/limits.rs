//! Every bound of the formats and of the store, in one place, with what makes them agree.

/// Slots of a cluster unless configured otherwise. The count is part of the wire format: all roles must agree on it.
pub const SLOTS_DEFAULT: u32 = 1024;
/// A slot number travels as 16 bits, and `u16::MAX` means "no slot".
pub const SLOTS_MAX: u32 = 1 << 15;

/// Bytes of a namespace, of a group and of a service name (UTF-8, no control characters).
pub const NAMESPACE_BYTES_MAX: usize = 64;
/// See [`NAMESPACE_BYTES_MAX`].
pub const GROUP_BYTES_MAX: usize = 64;
/// See [`NAMESPACE_BYTES_MAX`].
pub const SERVICE_BYTES_MAX: usize = 256;
/// A whole data id in its canonical form: the three names and two separators.
pub const DATA_ID_BYTES_MAX: usize = NAMESPACE_BYTES_MAX + GROUP_BYTES_MAX + SERVICE_BYTES_MAX + 2;

/// Bytes of an instance name and of a zone name.
pub const INSTANCE_NAME_BYTES_MAX: usize = 256;
/// See [`INSTANCE_NAME_BYTES_MAX`].
pub const ZONE_BYTES_MAX: usize = 64;
/// Bytes of the opaque payload of one publisher.
pub const PAYLOAD_BYTES_MAX: usize = 32 * 1024;
/// Frames, records and change entries start at multiples of this many bytes.
pub const ALIGNMENT: usize = 16;
/// Bytes of one record: header, names, payload, and the fixed part of the archive.
pub const RECORD_BYTES_MAX: usize =
    PAYLOAD_BYTES_MAX + INSTANCE_NAME_BYTES_MAX + ZONE_BYTES_MAX + 32 + 96 + ALIGNMENT;

/// Changes of one slot that one batch holds; the next change seals it first.
pub const BATCH_CHANGES_MAX: usize = 4096;
/// Publishers of one data id, so that a whole snapshot stays below the largest frame.
pub const DATUM_PUBLISHERS_MAX: usize = 100_000;
/// Bytes of all records of one data id.
pub const DATUM_BYTES_MAX: usize = 48 * 1024 * 1024;

/// Smallest and largest size of an arena segment in bytes, with what the allocator adds to it; powers of two.
pub const SEGMENT_BYTES_MIN: usize = 4 * 1024;
/// See [`SEGMENT_BYTES_MIN`].
pub const SEGMENT_BYTES_MAX: usize = 1024 * 1024;

/// Ended session incarnations remembered, so that their late writes are refused.
pub const ENDED_SESSIONS_MAX: usize = 1 << 20;

const _: () = {
    assert!(SLOTS_DEFAULT.is_power_of_two() && SLOTS_MAX.is_power_of_two());
    assert!(SLOTS_MAX <= u16::MAX as u32, "a slot number and the no-slot mark fit 16 bits");
    assert!(RECORD_BYTES_MAX * 2 <= SEGMENT_BYTES_MAX, "any record fits one segment");
    assert!(DATA_ID_BYTES_MAX < u16::MAX as usize, "a data id's length travels as 16 bits");
};
