//! How long a data node takes to serve again from what it kept: fill a directory as a node does, end, start again.
//!
//! The directory is filled by the real shards with their real storage: write frames, journal, snapshots, each shard with
//! its files' thread. The start is a process of its own: it opens the directory as a node does, all shards at once, makes the
//! shards of it, waits until each has its first journal file and so may tell revisions, links a session, and asks every slot
//! for a data id. Left out are the sockets, and the time that a node gives sessions to come back (`data.settle`), which is
//! waiting and no work.

mod fill;

pub mod report;

mod start;

use std::{
    fs::File,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, bail, ensure};
use rkyv::util::AlignedVec;
use serde::{Deserialize, Serialize};
use slotcast_net::config::Config;

use crate::population::Population;

pub use start::run as start;

/// Where the directory lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Place {
    /// On a disk, read with nothing of it in memory.
    Disk,
    /// In memory.
    Tmpfs,
}

impl Place {
    /// Seconds that a start with ten million publishers may take.
    pub fn bound_s(self) -> f64 {
        match self {
            Place::Disk => 8.0,
            Place::Tmpfs => 5.0,
        }
    }

    /// How the configuration names it.
    pub fn label(self) -> &'static str {
        match self {
            Place::Disk => "disk",
            Place::Tmpfs => "tmpfs",
        }
    }
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct RestartSpec {
    /// Who publishes.
    pub population: Population,
    /// Where to.
    pub place: Place,
    /// Shards of the node.
    pub shards: u32,
    /// Settings of the node besides.
    pub settings: Vec<String>,
    /// Where the directory is made; a default of the place if absent.
    pub folder: Option<PathBuf>,
}

impl RestartSpec {
    /// The configuration of the node, with its directory in `folder`.
    fn config(&self, folder: &Path) -> anyhow::Result<Config> {
        let mut settings = vec![
            format!("data.storage={}", self.place.label()),
            format!("data.data_dir={}", folder.display()),
            "data.settle=0s".into(),
        ];
        settings.extend(self.settings.iter().cloned());
        let mut config = Config::load(None, &settings)?;
        config.nodes[0].shards = self.shards;
        config.check()?;
        Ok(config)
    }
}

/// How the start went. Times in seconds since the process began, or of the slowest thread where a part is named.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Started {
    /// Listing the directory, locking it, reading the heads of its files.
    pub open: f64,
    /// Fetching bytes.
    pub read: f64,
    /// Comparing blocks with their checksums.
    pub checksum: f64,
    /// Checking the records of snapshots.
    pub validate: f64,
    /// Storing what snapshots hold: arena and index.
    pub apply: f64,
    /// Checking and storing what journals hold.
    pub tail: f64,
    /// What is none of these while the shards recover.
    pub rest: f64,
    /// From what was recovered to the first journal file of the new run being durable, and every slot having answered.
    pub ready: f64,
    /// All of it.
    pub total: f64,
    /// Publishers found.
    pub publishers: u64,
    /// Slots that answered.
    pub slots: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Entries of snapshots.
    pub entries: u64,
    /// Batches of journals.
    pub batches: u64,
    /// Resident memory when it served.
    pub rss: u64,
    /// The part in huge pages.
    pub huge: u64,
    /// Publishers whose bytes were compared with what was published, after the clock had stopped.
    pub compared: u64,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Restart {
    /// Seconds that filling took.
    pub fill_s: f64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Bytes per second of plainly reading them, one after the other: what no start can beat.
    pub read_limit: f64,
    /// How they were read for that.
    pub read_how: &'static str,
    /// How the files were put out of memory before the start.
    pub dropped: &'static str,
    /// The start.
    pub started: Started,
}

/// Fills, ends, starts, and takes the directory away. `progress` hears of publishers written.
pub fn run(spec: &RestartSpec, progress: &mut dyn FnMut(&str, u64)) -> anyhow::Result<Restart> {
    let parent = match (&spec.folder, spec.place) {
        (Some(folder), _) => folder.clone(),
        (None, Place::Disk) => std::env::current_dir()?,
        (None, Place::Tmpfs) => PathBuf::from("/dev/shm"),
    };
    let held = tempfile::Builder::new()
        .prefix("slotcast-restart-")
        .tempdir_in(&parent)
        .with_context(|| format!("cannot make a directory in {}", parent.display()))?;
    let config = spec.config(held.path())?;
    let began = Instant::now();
    fill::run(spec, &config, progress)?;
    let fill_s = began.elapsed().as_secs_f64();
    progress("reading plainly", 0);
    let dropped =
        if spec.place == Place::Disk { drop_pages(held.path())? } else { "not: memory is where they are" };
    let (bytes, read_limit, read_how) = read_plainly(held.path(), spec.place)?;
    let dropped = if spec.place == Place::Disk { drop_pages(held.path())? } else { dropped };
    progress("starting again", 0);
    let started = start_in_child(spec, held.path())?;
    ensure!(
        started.publishers == spec.population.publishers,
        "{} of {} publishers were recovered",
        started.publishers,
        spec.population.publishers
    );
    Ok(Restart { fill_s, bytes, read_limit, read_how, dropped, started })
}

fn start_in_child(spec: &RestartSpec, folder: &Path) -> anyhow::Result<Started> {
    let population = serde_json::to_string(&spec.population)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("start").arg("--folder").arg(folder).args(["--population", &population]);
    command.args(["--place", spec.place.label(), "--shards", &spec.shards.to_string()]);
    for setting in &spec.settings {
        command.args(["--set", setting]);
    }
    let output = command.stderr(std::process::Stdio::inherit()).output().context("starting the node")?;
    if !output.status.success() {
        bail!("the node ended with {}", output.status);
    }
    serde_json::from_slice(&output.stdout).context("what the node told")
}

fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.metadata()?.len() > 0 {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Puts all files out of the page cache; says how.
fn drop_pages(folder: &Path) -> anyhow::Result<&'static str> {
    for path in files(folder)? {
        let file = File::open(&path)?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(match std::fs::write("/proc/sys/vm/drop_caches", "1\n") {
        Ok(()) => "posix_fadvise(DONTNEED) on every file, then /proc/sys/vm/drop_caches",
        Err(_) => "posix_fadvise(DONTNEED) on every file",
    })
}

/// Reads every file from its beginning to its end, and does nothing else: bytes, and bytes per second.
fn read_plainly(folder: &Path, place: Place) -> anyhow::Result<(u64, f64, &'static str)> {
    const DIRECT: i32 = rustix::fs::OFlags::DIRECT.bits() as i32;
    const PIECE: usize = 1 << 20;
    let mut buffer = AlignedVec::<4096>::with_capacity(PIECE);
    buffer.resize(PIECE, 0);
    let (began, mut bytes) = (Instant::now(), 0);
    let direct = place == Place::Disk;
    for path in files(folder)? {
        let mut options = File::options();
        options.read(true);
        if direct {
            options.custom_flags(DIRECT);
        }
        let file = options.open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut offset = 0;
        loop {
            let read = file.read_at(&mut buffer, offset)?;
            offset += read as u64;
            if read < PIECE {
                break;
            }
        }
        bytes += offset;
    }
    let how = if direct { "O_DIRECT, 1 MiB at a time, one thread" } else { "1 MiB at a time, one thread" };
    Ok((bytes, bytes as f64 / began.elapsed().as_secs_f64().max(1e-9), how))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_directory_is_filled_and_served_again_in_every_slot() {
        let folder = tempfile::tempdir().unwrap();
        let population =
            Population { publishers: 40_000, per_data_id: 7, payload_bytes: 100, name_bytes: 8, sessions: 3 };
        let spec = RestartSpec {
            population,
            place: Place::Tmpfs,
            shards: 2,
            settings: vec!["data.journal_segment_bytes=65536".into(), "data.journal_bytes_max=131072".into()],
            folder: None,
        };
        fill::run(&spec, &spec.config(folder.path()).unwrap(), &mut |_, _| ()).unwrap();
        let started = start(&spec, folder.path()).unwrap();
        assert_eq!((started.publishers, started.compared, started.slots), (40_000, 40_000, 1024));
        assert!(started.entries > 0, "a part came from snapshots");
        let sum = started.open + started.read + started.apply + started.ready;
        assert!(sum > 0.0 && started.total >= started.ready);
        assert!(read_plainly(folder.path(), Place::Tmpfs).unwrap().0 >= started.bytes);
    }
}
