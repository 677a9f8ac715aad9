//! Makes checksums fit, so that damaged bytes get past them and reach what lies behind. Lengths are believed as far as the
//! bytes go; everything else stays as it is.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const RECORD_HEADER_BYTES: usize = 32;
const ENTRY_BYTES: usize = 48;
const BATCH_HEADER_BYTES: usize = 64;
const BLOCK_HEADER_BYTES: usize = 64;
const WIRE_HEADER_BYTES: usize = 16;
const SECTOR_BYTES: usize = 4096;
const JOURNAL_FRAME_BYTES: usize = 32;

/// A record, and everything behind it if it tells a length that is not there.
pub fn record(bytes: &mut [u8]) {
    let Some(len) = length(bytes, 0, RECORD_HEADER_BYTES) else { return };
    seal(&mut bytes[..len], 24, RECORD_HEADER_BYTES);
}

/// Change entries one behind the other: the records of puts, which also get the entry's key and register id.
pub fn entries(bytes: &mut [u8]) {
    walk(bytes, 4, ENTRY_BYTES, |entry| {
        if entry[0] == 1 && entry.len() >= ENTRY_BYTES + RECORD_HEADER_BYTES {
            let (fixed, record_bytes) = entry.split_at_mut(ENTRY_BYTES);
            record_bytes[8..24].copy_from_slice(&fixed[8..24]);
            record(record_bytes);
        }
    });
}

/// A sealed batch with its entries.
pub fn batch(bytes: &mut [u8]) {
    let Some(len) = length(bytes, 4, BATCH_HEADER_BYTES) else { return };
    entries(&mut bytes[BATCH_HEADER_BYTES..len]);
    seal(&mut bytes[..len], 40, 48);
}

/// The body of a diff with its records.
pub fn diff(flags: u8, body: &mut [u8]) {
    if body.len() < 32 {
        return;
    }
    let column = |at: usize| (u32_at(body, at) as usize).saturating_mul(8).next_multiple_of(16);
    let owners = if flags & 2 == 0 { 0 } else { column(28) };
    let records_at = 32usize.saturating_add(column(24)).saturating_add(owners);
    let datum: [u8; 8] = std::array::from_fn(|at| body[at]);
    if let Some(rest) = body.get_mut(records_at..) {
        walk(rest, 0, RECORD_HEADER_BYTES, |one| {
            one[8..16].copy_from_slice(&datum);
            record(one);
        });
    }
}

/// The content of a block of journal frames.
pub fn frames(bytes: &mut [u8]) {
    walk(bytes, 0, JOURNAL_FRAME_BYTES, |frame| {
        if frame[4] == 1 {
            batch(&mut frame[JOURNAL_FRAME_BYTES..]);
        }
    });
}

/// Blocks one behind the other: what they hold, and the chain from the first on.
pub fn blocks(bytes: &mut [u8]) {
    let mut chain: Option<u64> = None;
    walk(bytes, 4, BLOCK_HEADER_BYTES, |block| {
        let used = u32_at(block, 8) as usize;
        if !(BLOCK_HEADER_BYTES..=block.len()).contains(&used) {
            return;
        }
        match u32_at(block, 12) {
            2 => frames(&mut block[BLOCK_HEADER_BYTES..used]),
            3 => entries(&mut block[BLOCK_HEADER_BYTES..used]),
            _ => {}
        }
        if let Some(chain) = chain {
            block[24..32].copy_from_slice(&chain.to_le_bytes());
        }
        seal(&mut block[..used], 40, 48);
        chain = Some(u64::from(u32_at(block, 40)) | u64::from(u32_at(block, 44)) << 32);
    });
}

/// Frames of the wire one behind the other: what writes, diffs, batches and parts of slots hold.
pub fn wire(bytes: &mut [u8]) {
    walk(bytes, 0, WIRE_HEADER_BYTES, |frame| {
        let (kind, flags) = (frame[4], frame[5]);
        let body = &mut frame[WIRE_HEADER_BYTES..];
        match kind {
            4 if body.len() >= 16 => {
                let end = (16 + u32_at(body, 8) as usize).min(body.len());
                entries(&mut body[16..end]);
            }
            9 => diff(flags, body),
            // A batch for a follower, and a part of a slot.
            35 if body.len() >= 16 => batch(&mut body[16..]),
            36 if body.len() >= 16 => {
                let lineage = usize::from(body[12]) | usize::from(body[13]) << 8;
                let from = (16 + (lineage * 8).next_multiple_of(16)).min(body.len());
                let end = from.saturating_add(u32_at(body, 8) as usize).min(body.len());
                entries(&mut body[from..end]);
            }
            _ => {}
        }
        seal(frame, 8, WIRE_HEADER_BYTES);
    });
}

/// Blocks without their padding, each behind two bytes that say how long it is, brought into the form of a file.
pub fn unpack(mut packed: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    while let Some((len, rest)) = packed.split_at_checked(2) {
        let len = usize::from(u16::from_le_bytes([len[0], len[1]])).min(rest.len());
        file.extend_from_slice(&rest[..len]);
        file.resize(file.len().next_multiple_of(SECTOR_BYTES), 0);
        packed = &rest[len..];
    }
    file
}

/// The reverse of [`unpack`]: `None` for a file with a block that is too long for it.
pub fn pack(mut file: &[u8]) -> Option<Vec<u8>> {
    let mut packed = Vec::new();
    while !file.is_empty() {
        let (len, used) = (length(file, 4, BLOCK_HEADER_BYTES)?, u32_at(file, 8) as usize);
        let used = u16::try_from(used).ok()?;
        packed.extend_from_slice(&used.to_le_bytes());
        packed.extend_from_slice(file.get(..usize::from(used))?);
        file = &file[len..];
    }
    Some(packed)
}

/// Hands out what stands one behind the other, each with a length at `at` of at least `least` bytes.
fn walk(mut bytes: &mut [u8], at: usize, least: usize, mut each: impl FnMut(&mut [u8])) {
    while let Some(len) = length(bytes, at, least) {
        let (one, rest) = bytes.split_at_mut(len);
        each(one);
        bytes = rest;
    }
}

fn length(bytes: &[u8], at: usize, least: usize) -> Option<usize> {
    let len = (bytes.len() >= least).then(|| u32_at(bytes, at) as usize)?;
    (least..=bytes.len()).contains(&len).then_some(len)
}

/// Writes the checksum at `at` over the bytes before it and those from `from` on.
fn seal(bytes: &mut [u8], at: usize, from: usize) {
    let sum = xxh3_64_with_seed(&bytes[from..], xxh3_64(&bytes[..at]));
    bytes[at..at + 8].copy_from_slice(&sum.to_le_bytes());
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
