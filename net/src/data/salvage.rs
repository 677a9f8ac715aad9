//! `check-data --salvage`: a new directory with whatever is good in a damaged one.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use slotcast_engine::{
    disk_op::DiskQueue,
    recover::{Salvaged, salvage},
};

use crate::{
    data::storage::check_data,
    io::disk::{DirectoryFiles, DirectoryLock, LOCK_FILE},
};

/// Writes what is good in `folder` into `out`, which must not exist, and says what is not. The original is only read: it is
/// the only evidence of what happened, and another attempt may know better. `out` gets its name when it is whole.
pub fn salvage_data(folder: &Path, slot_count: u32, out: &Path) -> anyhow::Result<String> {
    ensure!(folder.is_dir(), "{} is no directory", folder.display());
    ensure!(!out.exists(), "{} is there already: name a directory that is not", out.display());
    ensure!(DirectoryLock::is_free(folder)?, "a data node uses {}: stop it first", folder.display());
    let found = salvage(&mut DirectoryFiles::new(folder), slot_count, &[LOCK_FILE])?;
    let mut name = out.as_os_str().to_os_string();
    name.push(".unfinished");
    let unfinished = PathBuf::from(name);
    std::fs::create_dir(&unfinished).with_context(|| {
        format!("cannot make {}: remove it if it is left from an attempt before", unfinished.display())
    })?;
    let mut queue = DiskQueue::default();
    found.write(&mut queue);
    DirectoryFiles::new(&unfinished).carry_out(&mut queue)?;
    std::fs::rename(&unfinished, out).with_context(|| format!("cannot make {}", out.display()))?;
    let mut text = describe(&found);
    let good = check_data(out, slot_count).context("what was salvaged cannot be read: this is a fault")?;
    text += &format!("{}: {good}", out.display());
    Ok(text)
}

fn describe(found: &Salvaged) -> String {
    let mut text = String::new();
    if found.faults.is_empty() && found.nameless == 0 && found.slots.values().all(|slot| slot.is_whole) {
        text += "nothing was damaged\n";
    }
    for fault in &found.faults {
        match fault.offset {
            Some(offset) => text += &format!("lost: {} at byte {offset}: {}\n", fault.file, fault.what),
            None => text += &format!("lost: {}: {}\n", fault.file, fault.what),
        }
    }
    if found.nameless > 0 {
        text += &format!("left out: {} puts of data ids whose names are lost\n", found.nameless);
    }
    let uncertain: Vec<String> =
        found.slots.iter().filter(|(_, slot)| !slot.is_whole).map(|(id, _)| id.0.to_string()).collect();
    text += &format!("{} slots are whole for certain\n", found.slots.len() - uncertain.len());
    if !uncertain.is_empty() {
        text += &format!(
            "{} slots may lack changes, or hold what was removed since: {}\n",
            uncertain.len(),
            uncertain.join(" ")
        );
    }
    text
}
