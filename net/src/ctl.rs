//! `slotcast ctl`: asks and tells a running process over its HTTP side, as a table for people or as the JSON that was answered.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand};
use comfy_table::{CellAlignment, Table, presets};
use serde::de::DeserializeOwned;
use slotcast_engine::{memory::Memory, top::LIMIT_MAX};

use crate::{
    admin::control::{COMPACTION, Changes, LEASES, MEMORY, PUSH, Problem, TOP},
    data::status::{CompactionReport, LeaseReport, MemoryReport},
    output::print,
    session::push_stop::PushReport,
    top::{TopReport, What},
};

mod cluster;

/// Longest wait for an answer; a process waits 10 s for each of its threads.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Asks a running process, or tells it something.
#[derive(Debug, Args)]
pub struct Ctl {
    /// HTTP address of the process: `data.http`, `session.http` or `meta.http` of its configuration [default: that of the
    /// role which is asked, on loopback]
    #[arg(long, value_name = "HOST:PORT", global = true)]
    target: Option<String>,
    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compaction of a data node's memory and history
    Compaction {
        #[command(subcommand)]
        command: CompactionCommand,
    },
    /// Memory of a data node by kind
    Memory,
    /// Leases of a data node's sessions, and which of them are held back because too many ended together
    Leases {
        /// Have those that are held back end: their sessions are known to be gone. What they have published is removed
        #[arg(long)]
        end_held_back: bool,
    },
    /// Nodes and slots, as the control plane sees them
    Status,
    /// Empty a data node, so that its process can be ended, or use it again
    Drain(cluster::Drain),
    /// Emergency: sessions keep their clients and take all that comes, but push nothing until they are told to go on
    StopPush(Sessions),
    /// Sessions push again; every client gets the latest state
    ResumePush(Sessions),
    /// Who has or does the most of something
    Top {
        /// Of what
        #[arg(long, value_enum, default_value = "data-ids")]
        what: What,
        /// Rows
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=LIMIT_MAX as u64))]
        limit: u64,
    },
}

#[derive(Debug, Args)]
struct Sessions {
    /// HTTP addresses of session processes [default: that of --target]
    #[arg(value_name = "HOST:PORT")]
    sessions: Vec<String>,
    /// All sessions of the cluster: the control plane, which --target names then, says where they are
    #[arg(long, conflicts_with = "sessions")]
    all: bool,
}

#[derive(Debug, Subcommand)]
enum CompactionCommand {
    /// Where it stands, what waits for it, and what holds that up
    Status,
    /// Hold it after the step under way
    Pause,
    /// Let it go on
    Resume,
    /// One round from now on, also while it is paused
    Run,
    /// Other settings, until the process ends
    Set {
        /// Such as `compaction_batch_limit=5000`; names as in the section `data` of the configuration
        #[arg(required = true, value_name = "KEY=VALUE")]
        settings: Vec<String>,
    },
}

impl Ctl {
    /// Asks, and returns what is to be printed.
    pub fn run(&self) -> anyhow::Result<String> {
        match &self.command {
            Command::Memory => self.tell(&self.ask("GET", MEMORY, None)?, memory),
            Command::Leases { end_held_back: false } => self.tell(&self.ask("GET", LEASES, None)?, leases),
            Command::Leases { end_held_back: true } => {
                self.tell(&self.ask("POST", &format!("{LEASES}/end"), None)?, leases)
            }
            Command::Status => self.tell(&cluster::ask(&self.target())?, cluster::status),
            Command::Drain(drain) => cluster::drain(&self.target(), drain),
            Command::StopPush(sessions) => self.push(sessions, "stop"),
            Command::ResumePush(sessions) => self.push(sessions, "resume"),
            Command::Top { what, limit } => {
                let path = format!("{TOP}?what={}&limit={limit}", what.label());
                self.tell(&self.ask("GET", &path, None)?, top)
            }
            Command::Compaction { command } => {
                let command = match command {
                    CompactionCommand::Status => {
                        return self.tell(&self.ask("GET", COMPACTION, None)?, compaction);
                    }
                    CompactionCommand::Set { settings } => {
                        let body = serde_json::to_string(&read_settings(settings)?)?;
                        let path = format!("{COMPACTION}/set");
                        return self.tell(&self.ask("POST", &path, Some(&body))?, changes);
                    }
                    CompactionCommand::Pause => "pause",
                    CompactionCommand::Resume => "resume",
                    CompactionCommand::Run => "run",
                };
                self.tell(&self.ask("POST", &format!("{COMPACTION}/{command}"), None)?, compaction)
            }
        }
    }

    /// The process that is asked.
    fn target(&self) -> Target {
        let port = match &self.command {
            Command::Compaction { .. } | Command::Memory | Command::Leases { .. } | Command::Top { .. } => {
                7629
            }
            Command::StopPush(sessions) | Command::ResumePush(sessions) if !sessions.all => 7609,
            Command::StopPush(_) | Command::ResumePush(_) => 7619,
            Command::Status | Command::Drain(_) => 7619,
        };
        Target(self.target.clone().unwrap_or_else(|| format!("127.0.0.1:{port}")))
    }

    fn ask(&self, method: &str, path: &str, body: Option<&str>) -> anyhow::Result<String> {
        self.target().ask(method, path, body)
    }

    /// Tells sessions to push or not. All are told, also when one does not answer.
    fn push(&self, Sessions { sessions, all }: &Sessions, command: &str) -> anyhow::Result<String> {
        let (mut told, mut failed) = (Vec::new(), Vec::new());
        let targets: Vec<Target> = match sessions.as_slice() {
            _ if *all => {
                let (found, unknown) = cluster::sessions(&self.target())?;
                failed.extend(unknown);
                found
            }
            [] => vec![self.target()],
            sessions => sessions.iter().cloned().map(Target).collect(),
        };
        for target in targets {
            let answer = target.ask("POST", &format!("{PUSH}/{command}"), None);
            let read = |text: String| -> anyhow::Result<Vec<PushReport>> {
                serde_json::from_str(&text).context("the answer is of another version")
            };
            match answer.and_then(read) {
                Ok(reports) => told.push((target.0, reports)),
                Err(error) => failed.push(format!("{error:#}")),
            }
        }
        let text = if self.json {
            let by_session: BTreeMap<_, _> = told.iter().map(|(target, reports)| (target, reports)).collect();
            serde_json::to_string_pretty(&by_session)? + "\n"
        } else {
            pushes(&told)
        };
        if failed.is_empty() {
            return Ok(text);
        }
        print(text)?;
        bail!("{}", failed.join("\n"))
    }

    fn tell<T: DeserializeOwned>(&self, text: &str, table: impl Fn(&T) -> String) -> anyhow::Result<String> {
        let answer: serde_json::Value = serde_json::from_str(text).context("the answer is no JSON")?;
        if self.json {
            return Ok(serde_json::to_string_pretty(&answer)? + "\n");
        }
        let answer = serde_json::from_value(answer).context("the answer is of another version")?;
        Ok(table(&answer))
    }
}

/// The HTTP address of a running process.
struct Target(String);

impl Target {
    fn ask(&self, method: &str, path: &str, body: Option<&str>) -> anyhow::Result<String> {
        self.ask_within(TIMEOUT, method, path, body)
    }

    fn ask_within(
        &self,
        timeout: Duration,
        method: &str,
        path: &str,
        body: Option<&str>,
    ) -> anyhow::Result<String> {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .proxy(None)
            .build();
        let agent = ureq::Agent::from(config);
        let url = format!("http://{}{path}", self.0);
        let answer = match (method, body) {
            ("GET", _) => agent.get(&url).call(),
            (_, Some(body)) => agent.post(&url).content_type("application/json").send(body),
            (_, None) => agent.post(&url).send_empty(),
        };
        let mut answer = answer.map_err(|error| anyhow!("{}", self.silence(&error, path)))?;
        let text = answer.body_mut().read_to_string().context("the answer cannot be read")?;
        if answer.status().is_success() {
            return Ok(text);
        }
        match serde_json::from_str::<Problem>(&text) {
            Ok(problem) => bail!("{}: {}", self.0, problem.error),
            // The control plane answers in plain words.
            Err(_) if answer.status().as_u16() != 404 && !text.trim().is_empty() => {
                bail!("{}: {}", self.0, text.trim())
            }
            Err(_) => bail!(
                "{} answers {} to {path}: is it a slotcast process of this version, and of the role that knows?",
                self.0,
                answer.status()
            ),
        }
    }
}

impl Target {
    /// What is said when no answer came.
    fn silence(&self, error: &ureq::Error, path: &str) -> String {
        let is_absent = |error: &io::Error| {
            matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted)
        };
        match error {
            ureq::Error::ConnectionFailed => self.absence(path),
            ureq::Error::Io(io) if is_absent(io) => self.absence(path),
            ureq::Error::HostNotFound | ureq::Error::BadUri(_) => {
                format!("{}: {error}; --target is HOST:PORT, such as 127.0.0.1:7629", self.0)
            }
            ureq::Error::Timeout(_) => format!("{} does not answer: {error}", self.0),
            _ => format!(
                "{} does not speak HTTP ({error}): is that a client port? Ask the HTTP port (session 7609, data 7629, meta 7619)",
                self.0
            ),
        }
    }

    fn absence(&self, path: &str) -> String {
        let control = ["/status", "/drain"].iter().any(|page| path.starts_with(page));
        let none = if control { "; standalone and local --meta 0 have no control plane" } else { "" };
        format!("nothing listens on {}: is it the HTTP address of a running process?{none}", self.0)
    }
}

fn read_settings(settings: &[String]) -> anyhow::Result<BTreeMap<&str, &str>> {
    let mut all = BTreeMap::new();
    for setting in settings {
        let (key, value) =
            setting.split_once('=').with_context(|| format!("{setting:?} is not of the form key=value"))?;
        if all.insert(key, value).is_some() {
            bail!("{key} is set twice");
        }
    }
    Ok(all)
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(header);
    table
}

fn right(table: &mut Table, columns: std::ops::Range<usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

fn compaction(reports: &Vec<CompactionReport>) -> String {
    let mut rows = table(&[]);
    let names: Vec<String> = reports.iter().map(|report| format!("shard {}", report.shard)).collect();
    rows.set_header(std::iter::once("").chain(names.iter().map(String::as_str)));
    let mut row = |name: &str, cell: &dyn Fn(&CompactionReport) -> String| {
        rows.add_row(std::iter::once(name.to_string()).chain(reports.iter().map(cell)));
    };
    row("state", &|it| it.state.clone());
    row("off-peak", &|it| yes(it.off_peak));
    row("round under way", &|it| match (it.slots_done, it.slots) {
        (Some(done), Some(slots)) => format!("{done} of {slots} slots"),
        _ => "no".into(),
    });
    row("next step", &|it| it.due_in_ms.map_or_else(|| "never".into(), |ms| format!("in {ms} ms")));
    row("last round", &|it| it.last_round_ms.map_or_else(|| "none yet".into(), |ms| format!("{ms} ms")));
    row("rounds, steps", &|it| format!("{}, {}", it.rounds, it.steps));
    row("records walked, moved", &|it| format!("{}, {}", it.records_walked, it.records_moved));
    row("segments emptied", &|it| it.segments_emptied.to_string());
    row("dead: due", &|it| bytes(it.dead_due_bytes));
    row("dead: in full segments", &|it| bytes(it.dead_in_full_segments_bytes));
    row("dead: in open segments", &|it| bytes(it.dead_in_open_segments_bytes));
    row("history", &|it| format!("{} entries, {}", it.history_entries, bytes(it.history_bytes)));
    row("oldest history", &|it| it.history_age_s.map_or_else(|| "none".into(), |s| format!("{s:.1} s")));
    row("history dropped", &|it| format!("{} entries", it.history_dropped));
    row("readers behind", &|it| it.readers_behind.to_string());
    row("oldest reader", &|it| match &it.oldest_reader {
        None => "none".into(),
        Some(oldest) => {
            let session = oldest.session.as_deref().unwrap_or("unknown");
            let gets = if oldest.gets_snapshot { "a snapshot" } else { "a diff" };
            format!("session {session} at {} of slot {}, gets {gets}", oldest.at, oldest.slot)
        }
    });
    row("snapshot being written", &|it| match it.snapshot_scan_slot {
        Some(slot) => format!("slot {slot} (holds nothing up)"),
        None => "none".into(),
    });
    let mut text = format!("{rows}\n");
    for report in reports {
        for reason in &report.held_up_by {
            text += &format!("shard {}: {reason}\n", report.shard);
        }
    }
    if let Some(report) = reports.first() {
        let mut settings = table(&["setting", "value"]);
        report.settings.iter().for_each(|(key, value)| _ = settings.add_row([key, value]));
        text += &format!("\n{settings}\n");
    }
    text
}

fn changes(answer: &Changes) -> String {
    let mut rows = table(&["setting", "before", "now"]);
    for change in &answer.changes {
        rows.add_row([&change.key, &change.old, &change.new]);
    }
    format!("{rows}\n{}\n", answer.note)
}

fn pushes(told: &[(String, Vec<PushReport>)]) -> String {
    let mut rows = table(&["session", "core", "pushes", "clients"]);
    for (target, reports) in told {
        for report in reports {
            let pushes = match report.stopped_ms {
                Some(ms) => format!("stopped for {:.1} s", ms as f64 / 1000.0),
                None => "go out".into(),
            };
            rows.add_row([target.clone(), report.core.to_string(), pushes, report.clients.to_string()]);
        }
    }
    right(&mut rows, 3..4);
    format!("{rows}\n")
}

fn memory(reports: &Vec<MemoryReport>) -> String {
    let kinds = Memory::default().kinds().map(|(kind, _)| kind);
    let mut rows = table(&[]);
    let header = ["shard", "publishers", "data ids"].into_iter().chain(kinds.iter().copied());
    rows.set_header(header.chain(["total", "per publisher"]));
    let mut row =
        |name: String, publishers: usize, data_ids: usize, of: &dyn Fn(&str) -> usize, total: usize| {
            let each = if publishers > 0 { total as f64 / publishers as f64 } else { 0.0 };
            let cells = [name, publishers.to_string(), data_ids.to_string()].into_iter();
            let cells = cells.chain(kinds.iter().map(|kind| bytes(of(kind))));
            rows.add_row(cells.chain([bytes(total), format!("{each:.0} B")]));
        };
    for it in reports {
        let of = |kind: &str| it.bytes.get(kind).copied().unwrap_or(0);
        row(it.shard.to_string(), it.publishers, it.data_ids, &of, it.total_bytes);
    }
    if reports.len() > 1 {
        let sum = |of: &dyn Fn(&MemoryReport) -> usize| reports.iter().map(of).sum::<usize>();
        let of = |kind: &str| sum(&|it| it.bytes.get(kind).copied().unwrap_or(0));
        let (publishers, data_ids) = (sum(&|it| it.publishers), sum(&|it| it.data_ids));
        row("all".into(), publishers, data_ids, &of, sum(&|it| it.total_bytes));
    }
    right(&mut rows, 0..kinds.len() + 5);
    format!("{rows}\n")
}

fn leases(reports: &Vec<LeaseReport>) -> String {
    let mut rows = table(&["shard", "sessions", "held back", "end now"]);
    let mut silent = table(&["shard", "session held back", "not heard for"]);
    for it in reports {
        rows.add_row([it.shard as usize, it.sessions, it.held_back, it.released].map(|n| n.to_string()));
        for session in &it.silent {
            let time = session.silent_s.map_or_else(
                || "never, since this process leads what it has published".into(),
                |seconds| format!("{seconds:.1} s"),
            );
            silent.add_row([it.shard.to_string(), session.session.clone(), time]);
        }
    }
    right(&mut rows, 0..4);
    let mut text = format!("{rows}\n");
    if reports.iter().any(|it| it.held_back > 0) {
        text += &format!("\n{silent}\n");
    }
    if reports.iter().any(|it| it.held_back > it.released) {
        text += "Too many ended together, so this node may be the one that is cut off. Are the sessions known to be gone?\n\
                 slotcast ctl leases --end-held-back removes what they have published.\n";
    }
    text
}

fn top(report: &TopReport) -> String {
    let estimated = report.error_max > 0.0 || report.half_life_s > 0.0;
    let more: std::collections::BTreeSet<&str> =
        report.rows.iter().flat_map(|row| row.more.keys().map(String::as_str)).collect();
    let mut rows = table(&[]);
    let own =
        if estimated { vec!["", report.unit.as_str(), "error at most"] } else { vec!["", &*report.unit] };
    let columns = own.len();
    rows.set_header(own.into_iter().chain(more.iter().copied()));
    for row in &report.rows {
        let mut cells = vec![row.key.clone(), number(row.value)];
        if estimated {
            cells.push(number(row.error));
        }
        cells.extend(more.iter().map(|name| row.more.get(*name).cloned().unwrap_or_default()));
        rows.add_row(cells);
    }
    right(&mut rows, 1..columns + more.len());
    let how = if estimated {
        format!(
            "estimated by Space-Saving of {} in all, halved every {} s; no value is too low, none is too high by more than {}",
            number(report.of),
            report.half_life_s,
            number(report.error_max)
        )
    } else {
        format!("exact, the largest {} of {}", report.rows.len(), number(report.of))
    };
    let is_number = |word: &str| word.len() == 16 && word.bytes().all(|digit| digit.is_ascii_hexdigit());
    let footer = if report.rows.iter().any(|row| row.key.split(' ').any(is_number)) {
        "16 hexadecimal digits: a client, a session, a registration, or a data id whose name is not known any more\n"
    } else {
        ""
    };
    format!("{rows}\n{how}\n{footer}")
}

fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.into()
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

fn bytes(bytes: usize) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}
