//! Trace files: events of instances coming and going, and edges saying who subscribes to what.
//!
//! Both are CSV, plain or gzipped. A row that cannot be read is an error that names file and line.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use csv::StringRecord;
use serde::{Deserialize, Serialize};
use slotcast_engine::limits::{INSTANCE_NAME_BYTES_MAX, SERVICE_BYTES_MAX, ZONE_BYTES_MAX};

const EVENT_COLUMNS: [&str; 7] = ["t_ms", "event", "service", "instance", "zone", "address", "port"];
const EDGE_COLUMNS: [&str; 3] = ["subscriber", "service", "subscriber_instances"];
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Where a file comes from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Input {
    /// A file.
    Path(PathBuf),
    /// The trace inside the binary.
    Bundled,
}

impl Input {
    /// The name that errors mention.
    pub fn name(&self) -> String {
        match self {
            Input::Path(path) => path.display().to_string(),
            Input::Bundled => "conftool_events.csv.gz (bundled)".into(),
        }
    }

    fn open(&self) -> Result<Box<dyn Read>> {
        let bytes: Box<dyn Read> = match self {
            Input::Path(path) => Box::new(open(path)?),
            Input::Bundled => Box::new(&include_bytes!("../traces/conftool_events.csv.gz")[..]),
        };
        unzipped(bytes).with_context(|| self.name())
    }
}

fn open(path: &Path) -> Result<BufReader<File>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(BufReader::new(file))
}

/// Looks at the first bytes rather than at the name, so that a renamed file still works.
fn unzipped(mut bytes: Box<dyn Read>) -> Result<Box<dyn Read>> {
    let mut head = Vec::new();
    bytes.by_ref().take(2).read_to_end(&mut head)?;
    let zipped = head == GZIP_MAGIC;
    let whole = std::io::Cursor::new(head).chain(bytes);
    Ok(if zipped { Box::new(flate2::read::MultiGzDecoder::new(whole)) } else { Box::new(whole) })
}

/// What happened to an instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Milliseconds since the trace's start.
    pub t_ms: u64,
    /// Whether the instance came or went.
    pub is_register: bool,
    /// The service.
    pub service: String,
    /// The instance, unique within its service.
    pub instance: String,
    /// Its zone.
    pub zone: String,
    /// `address:port`.
    pub endpoint: String,
}

/// A kind of subscriber: how many instances of it subscribe to a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Edge {
    /// Who.
    pub subscriber: String,
    /// To what.
    pub service: String,
    /// How many of them.
    pub instances: u32,
}

/// Reads all events; their times never go back.
pub fn events(input: &Input) -> Result<Vec<Event>> {
    parse_events(input.open()?, &input.name())
}

/// Reads all edges.
pub fn edges(input: &Input) -> Result<Vec<Edge>> {
    parse_edges(input.open()?, &input.name())
}

/// Reads events from text; `name` is the file's.
pub fn parse_events(text: impl Read, name: &str) -> Result<Vec<Event>> {
    let mut latest = 0;
    rows(text, name, &EVENT_COLUMNS, |row| {
        let event = event(row)?;
        ensure!(event.t_ms >= latest, "t_ms {} is before the row above ({latest})", event.t_ms);
        latest = event.t_ms;
        Ok(event)
    })
}

/// Reads edges from text; `name` is the file's.
pub fn parse_edges(text: impl Read, name: &str) -> Result<Vec<Edge>> {
    rows(text, name, &EDGE_COLUMNS, |row| {
        Ok(Edge {
            subscriber: text_of(row, 0, "subscriber", usize::MAX)?,
            service: text_of(row, 1, "service", SERVICE_BYTES_MAX)?,
            instances: if row[2].is_empty() { 1 } else { number(&row[2], "subscriber_instances")? },
        })
    })
}

fn event(row: &StringRecord) -> Result<Event> {
    let is_register = match &row[1] {
        "register" => true,
        "deregister" => false,
        other => bail!("event is {other:?}, not register or deregister"),
    };
    let port: u16 = number(&row[6], "port")?;
    ensure!(row[4].len() <= ZONE_BYTES_MAX, "zone is longer than {ZONE_BYTES_MAX} bytes");
    Ok(Event {
        t_ms: number(&row[0], "t_ms")?,
        is_register,
        service: text_of(row, 2, "service", SERVICE_BYTES_MAX)?,
        instance: text_of(row, 3, "instance", INSTANCE_NAME_BYTES_MAX)?,
        zone: row[4].into(),
        endpoint: format!("{}:{port}", &row[5]),
    })
}

fn number<T: std::str::FromStr>(text: &str, column: &str) -> Result<T> {
    text.parse().map_err(|_| anyhow::anyhow!("{column} is {text:?}, not a number in range"))
}

fn text_of(row: &StringRecord, at: usize, column: &str, limit: usize) -> Result<String> {
    let text = &row[at];
    ensure!(!text.is_empty(), "{column} is empty");
    ensure!(text.len() <= limit, "{column} is longer than {limit} bytes");
    ensure!(!text.chars().any(char::is_control), "{column} contains a control character");
    Ok(text.into())
}

fn rows<T>(
    text: impl Read,
    name: &str,
    columns: &[&str],
    mut read: impl FnMut(&StringRecord) -> Result<T>,
) -> Result<Vec<T>> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text);
    let mut row = StringRecord::new();
    let mut out = Vec::new();
    let mut is_first = true;
    loop {
        let more = reader.read_record(&mut row).map_err(|error| {
            let line = error.position().map_or(reader.position().line(), csv::Position::line);
            anyhow::anyhow!("{name}:{line}: {error}")
        })?;
        if !more {
            break;
        }
        let line = row.position().map_or(0, csv::Position::line);
        if is_first {
            is_first = false;
            let header = row.iter().eq(columns.iter().copied());
            ensure!(header, "{name}:{line}: the header must be {}", columns.join(","));
            continue;
        }
        out.push(read(&row).with_context(|| format!("{name}:{line}"))?);
    }
    ensure!(!out.is_empty(), "{name}: no rows");
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "t_ms,event,service,instance,zone,address,port\n";

    fn error_of(rows: &str) -> String {
        let error = parse_events(format!("{HEADER}{rows}").as_bytes(), "some.csv").unwrap_err();
        format!("{error:#}")
    }

    #[test]
    fn a_malformed_row_is_named_by_file_and_line() {
        let good = "1,register,s,i,z,10.0.0.1,80\n";
        for (row, says) in [
            ("x,register,s,i,z,10.0.0.1,80\n", "t_ms is \"x\""),
            ("2,appear,s,i,z,10.0.0.1,80\n", "event is \"appear\""),
            ("2,register,,i,z,10.0.0.1,80\n", "service is empty"),
            ("2,register,s,i,z,10.0.0.1,70000\n", "port is \"70000\""),
            ("0,register,s,i,z,10.0.0.1,80\n", "before the row above"),
            ("2,register,s\n", "found record with 3 fields"),
        ] {
            let error = error_of(&format!("{good}{row}"));
            assert!(error.starts_with("some.csv:3") && error.contains(says), "{error}");
        }
        assert!(error_of("").contains("no rows"));
        let error = parse_events("a,b\n".as_bytes(), "some.csv").unwrap_err();
        assert!(error.to_string().starts_with("some.csv:1: the header"), "{error}");
    }

    #[test]
    fn the_bundled_trace_reads_whole() {
        let events = events(&Input::Bundled).unwrap();
        assert_eq!(events.len(), 12_102);
        assert_eq!(events[0].endpoint, "10.0.0.1:4000");
    }

    #[test]
    fn edges_without_a_count_are_one_instance() {
        let text = "subscriber,service,subscriber_instances\na,b,\na,c,7\n";
        let edges = parse_edges(text.as_bytes(), "edges.csv").unwrap();
        assert_eq!(edges.iter().map(|edge| edge.instances).collect::<Vec<_>>(), [1, 7]);
        let error = parse_edges("subscriber,service,subscriber_instances\na,b,-1\n".as_bytes(), "edges.csv");
        assert!(format!("{:#}", error.unwrap_err()).starts_with("edges.csv:2"));
    }
}
