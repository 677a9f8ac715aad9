//! Whole data directories as inputs: files one behind the other, each as its name with a length of one byte, then its packed
//! blocks with a length of four.

use slotcast_engine::memory_disk::MemoryDisk;

use super::repair;

/// Reads a directory out of any bytes; with `repaired` the checksums of its blocks are made to fit.
pub fn read(mut bytes: &[u8], repaired: bool) -> MemoryDisk {
    let mut disk = MemoryDisk::default();
    while let Some((&len, rest)) = bytes.split_first() {
        let (name, rest) = rest.split_at(usize::from(len).min(rest.len()));
        let Some((len, rest)) = rest.split_first_chunk() else { break };
        let (packed, rest) = rest.split_at((u32::from_le_bytes(*len) as usize).min(rest.len()));
        disk.put(&String::from_utf8_lossy(name), file(packed, repaired));
        bytes = rest;
    }
    disk
}

/// A file of packed blocks.
pub fn file(packed: &[u8], repaired: bool) -> Vec<u8> {
    let mut bytes = repair::unpack(packed);
    if repaired {
        repair::blocks(&mut bytes);
    }
    bytes
}

/// Writes a directory; `None` if a file has no such form.
pub fn write(disk: &MemoryDisk) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for name in disk.names("") {
        let packed = repair::pack(&disk.content(&name)?)?;
        out.push(u8::try_from(name.len()).ok()?);
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&u32::try_from(packed.len()).ok()?.to_le_bytes());
        out.extend_from_slice(&packed);
    }
    Some(out)
}
