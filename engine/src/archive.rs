//! The archive of a record's schema 1, read by its documented layout: every distance and length is checked, nothing is
//! copied, and no byte of the payload is looked at.
//!
//! ```text
//! root, the last 32 bytes  | client u64 | name 8 | zone 8 | payload distance i32 | payload length u32 |
//! ```
//! It accepts exactly what rkyv's own validation accepts: what lies outside the root lies before it, in the order name,
//! zone, payload, without overlaps.

/// Bytes of the root.
const ROOT_BYTES: usize = 32;
const NAME_AT: usize = 8;
const ZONE_AT: usize = 16;
const PAYLOAD_AT: usize = 24;
/// Bytes of a string's field; a text of so many bytes or fewer is in the field itself.
const FIELD_BYTES: usize = 8;

/// Client, name, zone and payload of an archive, or what is wrong with it.
pub(crate) fn read(archive: &[u8]) -> Result<(u64, &str, &str, &[u8]), &'static str> {
    let root = archive.len().checked_sub(ROOT_BYTES).ok_or("it has no room for its root")?;
    if !root.is_multiple_of(8) {
        return Err("its root is not aligned");
    }
    let mut free = 0;
    let name = text(archive, root + NAME_AT, root, &mut free)?;
    let zone = text(archive, root + ZONE_AT, root, &mut free)?;
    let at = root + PAYLOAD_AT;
    let payload = span(archive, at, i32_at(archive, at), u32_at(archive, at + 4) as usize, root, &mut free)?;
    let client = u64::from(u32_at(archive, root)) | u64::from(u32_at(archive, root + 4)) << 32;
    Ok((client, name, zone, payload))
}

fn text<'a>(archive: &'a [u8], at: usize, root: usize, free: &mut usize) -> Result<&'a str, &'static str> {
    let field = &archive[at..at + FIELD_BYTES];
    let bytes = if field[0] & 0xc0 == 0x80 {
        let word = u32_at(archive, at);
        let len = (word & 0x3f | (word & 0xffff_ff00) >> 2) as usize;
        if len <= FIELD_BYTES {
            return Err("a short text is not in its field");
        }
        span(archive, at, i32_at(archive, at + 4), len, root, free)?
    } else {
        let len = field.iter().position(|byte| *byte == 0xff).unwrap_or(FIELD_BYTES);
        &field[..len]
    };
    std::str::from_utf8(bytes).map_err(|_| "a text is not UTF-8")
}

/// `len` bytes at `distance` from `at`, before the root and behind what is taken already.
fn span<'a>(
    archive: &'a [u8],
    at: usize,
    distance: i32,
    len: usize,
    root: usize,
    free: &mut usize,
) -> Result<&'a [u8], &'static str> {
    let outside = "a distance or length leads outside, or into something else";
    let start = at.checked_add_signed(distance as isize).filter(|start| start >= free).ok_or(outside)?;
    let end = start.checked_add(len).filter(|end| *end <= root).ok_or(outside)?;
    *free = end;
    Ok(&archive[start..end])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    u32_at(bytes, at) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_bytes_are_refused() {
        assert!(read(&[]).is_err() && read(&[0; 31]).is_err() && read(&[0; 36]).is_err());
    }
}
