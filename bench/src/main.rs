//! Measures Slotcast and prints what a person reads; `--json` keeps what a program reads.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use bench::{
    CASES,
    capacity::{self, CapacitySpec},
    crash::CrashReport,
    fixture,
    idle::{self, IdleSpec},
    measure::measure,
    meta::{self, MetaSpec},
    peers::{self, PeersSpec, report, server, slotcast},
    population::Population,
    restart::{self, Place, RestartSpec},
    simulate::{
        campaign::{CampaignSpec, campaign},
        explain,
        plan::{Plan, Shape},
        planted::{self, Hunt},
        shrink::shrink,
        trace,
    },
};
use clap::{Parser, Subcommand};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use slotcast_net::{
    allocator::Allocator,
    config::Config,
    output::{self, print, say},
};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

#[derive(Parser)]
#[command(about = "Measures Slotcast")]
struct Args {
    #[command(subcommand)]
    what: What,
}

/// The publishers that a store is filled with.
#[derive(clap::Args)]
struct Publishers {
    /// Publishers of the whole node
    #[arg(long = "publishers", value_name = "PUBLISHERS", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    count: u64,
    /// Opaque bytes that each publishes
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=32_768))]
    payload_bytes: u32,
    /// Bytes of each instance's name; up to 8 cost no room of their own
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(0..=256))]
    name_bytes: u32,
    /// Publishers of each data id
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    per_data_id: u64,
}

impl Publishers {
    /// With so many sessions that own them.
    fn of(&self, sessions: u32) -> Population {
        Population {
            publishers: self.count,
            per_data_id: self.per_data_id,
            payload_bytes: self.payload_bytes as usize,
            name_bytes: self.name_bytes as usize,
            sessions,
        }
    }
}

#[derive(Subcommand)]
enum What {
    /// Single operations of formats and store, a quarter of a second each
    Micro {
        /// Only cases whose name contains this
        #[arg(long)]
        only: Option<String>,
        /// Also write the figures here
        #[arg(long, value_name = "PATH")]
        json: Option<PathBuf>,
    },
    /// Publish/subscribe of Redis and NATS beside ours, on the same two cores
    Peers {
        /// Subscribers, all in one process
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        subscribers: u32,
        /// Topics that they are divided over, beside one topic for all
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=150))]
        topics: u32,
        /// Bytes of a message without what each protocol adds
        #[arg(long, default_value_t = 240, value_parser = clap::value_parser!(u32).range(16..=16_384))]
        message_bytes: u32,
        /// Time of each of the four measurements of a system
        #[arg(long, default_value = "10s")]
        duration: humantime::Duration,
        /// Core of the servers
        #[arg(long, default_value_t = 0)]
        server_core: usize,
        /// Core of the subscribers and the publisher
        #[arg(long, default_value_t = 1)]
        load_core: usize,
        /// Also write the figures here
        #[arg(long, value_name = "PATH")]
        json: Option<PathBuf>,
    },
    /// What sessions and data nodes say to each other when nothing happens, for about a minute
    Idle {
        /// Session cores, each a session to the data nodes
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=500))]
        sessions: u32,
        /// Slots of the cluster, a power of two
        #[arg(long, default_value_t = 1024)]
        slots: u32,
        /// Data nodes
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=16))]
        data: u32,
        /// Registrations
        #[arg(long, default_value_t = 2000)]
        publishers: usize,
        /// How long is looked at, once everything has settled
        #[arg(long, value_name = "DURATION", default_value = "20s")]
        duration: humantime::Duration,
        /// A setting of the cluster, such as `data.session_lease=10s`; may be repeated
        #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
        set: Vec<String>,
        /// Also write the figures here
        #[arg(long, value_name = "PATH")]
        json: Option<PathBuf>,
    },
    /// The control plane: heartbeats of very many nodes, and planning when some are lost
    Meta {
        /// Data nodes
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(10..=100_000))]
        nodes: u32,
        /// Slots of the cluster, a power of two
        #[arg(long, default_value_t = 16_384)]
        slots: u32,
        /// Members per slot
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=4))]
        replicas: u32,
        /// Zones that the nodes are spread over
        #[arg(long, default_value_t = 3)]
        zones: u32,
        /// Seconds of heartbeats, one per node and second
        #[arg(long, default_value_t = 10)]
        seconds: u32,
        /// Also write the figures here
        #[arg(long, value_name = "PATH")]
        json: Option<PathBuf>,
    },
    /// Becomes a server to be measured
    #[command(hide = true)]
    Hold {
        #[arg(long)]
        core: usize,
        #[arg(long)]
        seconds: u64,
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Our own data node and session, to be measured
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        port: u16,
        #[arg(long)]
        clients: u32,
    },
    /// Memory that publishers take in a data node's store, and the rates of registering, finding and replacing them
    Capacity {
        #[command(flatten)]
        publishers: Publishers,
        /// Sessions that own them
        #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4_096))]
        sessions: u32,
        /// Shards, each on a thread of its own
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
        shards: u32,
        /// How often every record is replaced
        #[arg(long, default_value_t = 3)]
        overwrites: u64,
        /// Settings of a data node, as in its configuration (`data.change_log_entries=4096`)
        #[arg(long = "set", value_name = "SETTING")]
        settings: Vec<String>,
        /// Longest time given to compaction at the end
        #[arg(long, default_value = "60s")]
        settle: humantime::Duration,
        /// Also write the figures here
        #[arg(long, value_name = "PATH")]
        json: Option<PathBuf>,
        /// Also draw the memory over time here, as SVG
        #[arg(long, value_name = "PATH")]
        chart: Option<PathBuf>,
    },
    /// How long a data node takes to serve again from its directory
    Restart {
        #[command(flatten)]
        publishers: Publishers,
        /// Shards, each on a thread of its own
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
        shards: u32,
        /// Where the directory lies
        #[arg(long, value_enum, default_value_t = Place::Tmpfs)]
        storage: Place,
        /// Where it is made: the working directory for a disk, /dev/shm for tmpfs, unless said
        #[arg(long)]
        dir: Option<PathBuf>,
        /// Settings of the data node, as in its configuration (`data.journal_bytes_max=67108864`)
        #[arg(long = "set", value_name = "SETTING")]
        settings: Vec<String>,
        /// Also write the figures here
        #[arg(long, value_name = "PATH")]
        json: Option<PathBuf>,
    },
    /// A data node that starts again, to be measured
    #[command(hide = true)]
    Start {
        #[arg(long)]
        folder: PathBuf,
        #[arg(long)]
        population: String,
        #[arg(long, value_enum)]
        place: Place,
        #[arg(long)]
        shards: u32,
        #[arg(long = "set")]
        settings: Vec<String>,
    },
    /// Crashes a data node on a simulated disk at every operation, and compares what is recovered
    Crash {
        /// Crashes to recover from
        #[arg(long, default_value_t = 10_000)]
        points: u64,
        /// What decides everything; a failure names it
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// The whole system in virtual time, with faults: every promise is checked at every push
    Simulate {
        /// Seeds to run, each a minute of faults and operations
        #[arg(long, default_value_t = 100)]
        seeds: u64,
        /// The first of them
        #[arg(long, default_value_t = 1)]
        first: u64,
        /// What there is of everything
        #[arg(long, value_enum, default_value_t = Shape::Cluster)]
        shape: Shape,
        /// Threads; as many as there are cores if not said
        #[arg(long)]
        threads: Option<usize>,
        /// Go on after a seed that fails
        #[arg(long)]
        keep_going: bool,
        /// Time for finding a shorter history of the first seed that fails
        #[arg(long, default_value = "60s")]
        shrink: humantime::Duration,
        /// A fault that is planted and has to be found (with the feature planted-faults); `list` names them, `all` takes one
        /// after the other
        #[arg(long, value_name = "NAME")]
        planted: Option<String>,
        /// Also write one line per seed here: its number and a digest of everything that happened in it
        #[arg(long, value_name = "PATH")]
        digests: Option<PathBuf>,
        /// With `--planted all`: also write a table here, as Markdown
        #[arg(long, value_name = "PATH")]
        table: Option<PathBuf>,
        /// Also write the figures here
        #[arg(long, value_name = "PATH")]
        json: Option<PathBuf>,
    },
    /// Writes the directory that this version of the format writes, and beside it what is in it, for later versions to read
    Fixture {
        /// Such as engine/tests/fixtures/version-2; must not be there
        folder: PathBuf,
        /// Write nothing; print what is in the folder
        #[arg(long)]
        list: bool,
    },
}

impl What {
    /// The files that figures go to.
    fn files(&self) -> impl Iterator<Item = &Path> {
        let (json, chart) = match self {
            What::Capacity { json, chart, .. } => (json.as_deref(), chart.as_deref()),
            What::Micro { json, .. }
            | What::Peers { json, .. }
            | What::Idle { json, .. }
            | What::Meta { json, .. }
            | What::Restart { json, .. }
            | What::Simulate { json, .. } => (json.as_deref(), None),
            _ => (None, None),
        };
        json.into_iter().chain(chart)
    }
}

fn main() -> ExitCode {
    output::end(run().map(|()| ExitCode::SUCCESS))
}

fn run() -> anyhow::Result<()> {
    let what = output::arguments::<Args>().what;
    output::check_files(what.files())?;
    match what {
        What::Micro { only, json } => micro(only.as_deref().unwrap_or_default(), json),
        What::Peers { subscribers, topics, message_bytes, duration, server_core, load_core, json } => {
            let (message_bytes, duration) = (message_bytes as usize, duration.into());
            compare(&PeersSpec { subscribers, topics, message_bytes, duration, server_core, load_core }, json)
        }
        What::Hold { core, seconds, command } => server::hold(core, seconds, &command),
        What::Serve { port, clients } => slotcast::serve(port, clients),
        What::Idle { sessions, slots, data, publishers, duration, set, json } => {
            let (sessions, data) = (sessions as usize, data as usize);
            let window = duration.into();
            rest(&IdleSpec { sessions, slots, data, publishers, window, settings: set }, json)
        }
        What::Meta { nodes, slots, replicas, zones, seconds, json } => {
            plan(&MetaSpec { nodes, slots, replicas: replicas as usize, zones, seconds }, json)
        }
        What::Capacity { publishers, sessions, shards, overwrites, settings, settle, json, chart } => {
            let config = Config::load(None, &settings)?;
            let population = publishers.of(sessions);
            let shard = config.data_options()?.shard;
            measure_capacity(
                &CapacitySpec { population, shards, shard, overwrites, settle: settle.into() },
                json,
                chart,
            )
        }
        What::Restart { publishers, shards, storage, dir, settings, json } => {
            let population = publishers.of(1);
            measure_restart(&RestartSpec { population, place: storage, shards, settings, folder: dir }, json)
        }
        What::Start { folder, population, place, shards, settings } => {
            let population = serde_json::from_str(&population)?;
            let spec = RestartSpec { population, place, shards, settings, folder: None };
            say(serde_json::to_string(&restart::start(&spec, &folder)?)?)?;
            Ok(())
        }
        What::Crash { points, seed } => crash(points, seed),
        What::Simulate {
            seeds,
            first,
            shape,
            threads,
            keep_going,
            shrink,
            planted,
            digests,
            table,
            json,
        } => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let threads = threads.unwrap_or(cores);
            let shrink = shrink.into();
            let planted = match planted.as_deref() {
                Some("list") => {
                    planted::ALL.iter().for_each(|planted| println!("{:24} {}", planted.name, planted.what));
                    return Ok(());
                }
                Some("all") => {
                    return hunt(&Hunt { shape, first, seeds, threads, shrink }, json, table);
                }
                Some(name) => Some(planted::find(name)?.name),
                None => None,
            };
            let spec = CampaignSpec {
                shape,
                first,
                seeds,
                budget: None,
                seeds_min: seeds,
                threads,
                keep_going,
                planted,
            };
            simulate(&spec, shrink, (json, digests))
        }
        What::Fixture { folder, list: true } => Ok(print(fixture::list_of(&folder)?)?),
        What::Fixture { folder, list: false } => fixture::write(&folder),
    }
}

fn compare(spec: &PeersSpec, json: Option<PathBuf>) -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        eprintln!("built with debug assertions: the figures are not worth keeping");
    }
    let found = peers::compare(spec, |line| eprintln!("{line}"))?;
    say(report::table(&found))?;
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&report::json(spec, &found))? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn measure_capacity(
    spec: &CapacitySpec,
    json: Option<PathBuf>,
    chart: Option<PathBuf>,
) -> anyhow::Result<()> {
    warn_of_debug();
    let bar = progress_bar()?;
    let mut phase = String::new();
    let found = capacity::run(spec, |name, all, done| {
        if phase != name {
            phase = name.into();
            bar.reset();
            bar.set_length(all);
            bar.set_message(phase.clone());
            if bar.is_hidden() {
                eprintln!("{phase}");
            }
        }
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let found = found?;
    say(format_args!("{}\n\n{}\n", capacity::report::phases(&found), capacity::report::kinds(spec, &found)))?;
    for (what, found, bound, kept) in capacity::report::verdicts(spec, &found) {
        say(format_args!("{what}: {found:.3}, bound {bound}: {}", if kept { "kept" } else { "NOT KEPT" }))?;
    }
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&capacity::report::json(spec, &found))? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = chart {
        capacity::report::chart(spec, &found, &path)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn measure_restart(spec: &RestartSpec, json: Option<PathBuf>) -> anyhow::Result<()> {
    warn_of_debug();
    let bar = progress_bar()?;
    bar.set_length(spec.population.publishers);
    let found = restart::run(spec, &mut |what, done| {
        bar.set_message(what.to_string());
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let found = found?;
    let (bytes, started) = (found.bytes as f64, &found.started);
    say(format_args!("{}\n", restart::report::table(&found)))?;
    say(format_args!(
        "{} publishers, every one compared, served again in {:.2} s; bound {:.1} s: {}",
        started.publishers,
        started.total,
        restart::report::bound_s(spec),
        if restart::report::is_kept(spec, &found) { "kept" } else { "NOT KEPT" }
    ))?;
    say(format_args!(
        "plainly reading the {:.0} MB takes {:.2} s at {:.0} MB/s ({}); page cache dropped: {}; filled in {:.1} s",
        bytes / 1e6,
        bytes / found.read_limit,
        found.read_limit / 1e6,
        found.read_how,
        found.dropped,
        found.fill_s,
    ))?;
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&restart::report::json(spec, &found))? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn warn_of_debug() {
    if cfg!(debug_assertions) {
        eprintln!("built with debug assertions: the figures are not worth keeping");
    }
}

fn progress_bar() -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template("{msg:22} {bar:40} {human_pos} of {human_len}, {elapsed}")?;
    Ok(ProgressBar::new(0).with_style(style))
}

fn micro(only: &str, json: Option<PathBuf>) -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        eprintln!("built with debug assertions: the figures are not worth keeping");
    }
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["operation", "size", "ns, median", "ns, fastest", "million/s", "check"]);
    let mut figures = Vec::new();
    for case in CASES.iter().filter(|case| case.name.contains(only)) {
        let found = measure(&mut (case.prepare)(case.large));
        table.add_row([
            case.name.to_string(),
            case.large.to_string(),
            format!("{:.1}", found.median),
            format!("{:.1}", found.fastest),
            format!("{:.2}", 1000.0 / found.median),
            format!("{:016x}", found.check),
        ]);
        figures.push(serde_json::json!({
            "operation": case.name,
            "size": case.large,
            "ns_median": found.median,
            "ns_fastest": found.fastest,
            "check": format!("{:016x}", found.check),
        }));
    }
    for column in 1..5 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    say(table)?;
    if let Some(path) = json {
        fs::write(path, serde_json::to_string_pretty(&figures)? + "\n")?;
    }
    Ok(())
}

fn rest(spec: &IdleSpec, json: Option<PathBuf>) -> anyhow::Result<()> {
    let bar = indicatif::ProgressBar::new(0);
    bar.set_style(indicatif::ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}")?);
    let found = idle::run(spec, &bar)?;
    say(idle::table(spec, &found))?;
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&idle::json(spec, &found))? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn plan(spec: &MetaSpec, json: Option<PathBuf>) -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        eprintln!("built with debug assertions: the figures are not worth keeping");
    }
    let bar = indicatif::ProgressBar::new(0);
    bar.set_style(indicatif::ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}")?);
    let found = meta::run(spec, &bar)?;
    say(meta::table(spec, &found))?;
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&meta::json(spec, &found))? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn crash(points: u64, seed: u64) -> anyhow::Result<()> {
    let bar = indicatif::ProgressBar::new(points);
    let (mut sum, mut seed) = (CrashReport::default(), seed);
    while sum.points < points {
        sum.add(&bench::crash::run(seed, (points - sum.points).min(500))?);
        seed += 1;
        bar.set_position(sum.points);
    }
    bar.finish_and_clear();
    say(sum)?;
    Ok(())
}

/// Plants each fault in turn, and looks for the first seed that notices it.
fn hunt(hunt: &Hunt, json: Option<PathBuf>, table: Option<PathBuf>) -> anyhow::Result<()> {
    let bar = progress_bar()?;
    let mut found = Vec::new();
    for planted in &planted::ALL {
        let planted = planted::find(planted.name)?;
        bar.reset();
        bar.set_message(planted.name);
        bar.set_length(hunt.seeds);
        let caught = planted.hunt(hunt, |done| bar.set_position(done));
        bar.suspend(|| match &caught {
            Some(caught) => {
                println!("{} is noticed in seed {}: {}", planted.name, caught.seed, caught.violation.text)
            }
            None => println!("{} is not noticed in {} seeds", planted.name, hunt.seeds),
        });
        found.push((planted, caught));
    }
    bar.finish_and_clear();
    println!("{}", planted::table(&found));
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&planted::json(hunt, &found))? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = table {
        fs::write(&path, planted::page(hunt, &found))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let missed: Vec<&str> =
        found.iter().filter(|(_, caught)| caught.is_none()).map(|(planted, _)| planted.name).collect();
    anyhow::ensure!(missed.is_empty(), "not noticed in {} seeds: {}", hunt.seeds, missed.join(", "));
    Ok(())
}

fn simulate(
    spec: &CampaignSpec,
    shrinking: Duration,
    (json, digests): (Option<PathBuf>, Option<PathBuf>),
) -> anyhow::Result<()> {
    let fault = spec.planted;
    let bar = progress_bar()?;
    bar.set_message("seeds");
    bar.set_length(spec.seeds);
    let found = campaign(spec, |done| bar.set_position(done));
    bar.finish_and_clear();
    say(format_args!("{}\n", found.table()))?;
    for (seed, violation) in &found.failed {
        say(format_args!("seed {seed} fails at {}: {}", trace::ms(violation.at), violation.text))?;
    }
    for (kind, seeds) in found.kinds() {
        say(format_args!("{} times, first at seed {}: {kind}", seeds.len(), seeds[0]))?;
    }
    say(format_args!(
        "{} seeds, {} failed, {:.0} simulated seconds in {:.1} s on {} threads: {:.0} simulated seconds per second",
        found.seeds,
        found.failed.len(),
        found.simulated as f64 / 1e9,
        found.elapsed.as_secs_f64(),
        spec.threads,
        found.speed(),
    ))?;
    if !found.missed(spec.shape).is_empty() {
        say(format_args!("never reached: {}", found.missed(spec.shape).join(", ")))?;
    }
    println!("digest of all that happened: {:016x}", found.digest());
    if !found.excused.is_empty() {
        println!("seeds that fail without the planted fault, too: {:?}", found.excused);
    }
    if let Some(path) = digests {
        let lines = found.digests.iter().map(|(seed, hash)| format!("{seed} {hash:016x}\n"));
        fs::write(&path, lines.collect::<String>())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&found.json(spec))? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let Some((seed, violation)) = found.failed.first() else {
        if let Some(fault) = fault {
            anyhow::bail!("the planted fault {fault} was not noticed in {} seeds", found.seeds);
        }
        return Ok(());
    };
    let plan = Plan::of(spec.shape, *seed).with_planted(fault);
    let all = plan.len() as u64;
    bar.reset();
    bar.set_message("shrinking");
    bar.set_length(all);
    let shrunk = shrink(&plan, shrinking, |left| bar.set_position(all - left as u64));
    bar.finish_and_clear();
    let plan = shrunk.map_or(plan, |shrunk| shrunk.plan);
    say(explain(&plan))?;
    if let Some(fault) = fault {
        say(format_args!(
            "the planted fault {fault} was noticed at seed {seed}, after {} seeds",
            found.seeds
        ))?;
        return Ok(());
    }
    let shape = if spec.shape == Shape::Single { " --shape single" } else { "" };
    anyhow::bail!(
        "seed {seed}: {}; again: cargo run --release -p bench -- simulate{shape} --first {seed} --seeds 1",
        violation.text
    );
}
