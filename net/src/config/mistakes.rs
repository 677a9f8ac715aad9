//! Says which key or value of a configuration is wrong, and what it has to be.

use std::net::SocketAddr;

use anyhow::ensure;
use toml::{Table, Value};

use super::Config;
use crate::{meta::assign::REPLICAS_MAX, wire::slot_table::SHARDS_MAX};

/// Whole numbers with bounds of their own: key, least, most.
const RANGES: [(&str, u64, u64); 10] = [
    ("session.clients_max", 1, u64::MAX),
    ("session.accept_burst", 1, u64::MAX),
    ("session.push_batch_max", 1, 128),
    ("session.cores", 1, 256),
    ("data.shards", 1, SHARDS_MAX as u64),
    ("data.journal_waiting_max", 64 << 10, 512 << 20),
    ("data.journal_segment_bytes", 64 << 10, u64::MAX),
    ("data.snapshot_rate", 64 << 10, u64::MAX),
    ("meta.replicas", 1, REPLICAS_MAX as u64),
    ("meta.moves_max", 1, u64::MAX),
];
/// Sizes whose names do not say so.
const SIZES: [&str; 7] = [
    "compaction_budget",
    "link_buffer_max",
    "link_send_buffer",
    "journal_waiting_max",
    "snapshot_rate",
    "copied_snapshot_rate",
    "client_send_buffer",
];
/// A key that is further off than this is not what was meant.
const EDITS_MAX: usize = 3;
/// Of a short key fewer: one for so many of its characters.
const CHARACTERS_PER_EDIT: usize = 3;

/// Refuses a number outside its range.
pub(super) fn check_range(key: &str, value: u64) -> anyhow::Result<()> {
    let (least, most) = range(key).unwrap_or((0, u64::MAX));
    ensure!((least..=most).contains(&value), "{key} = {value} has to be {}", whole_number(key));
    Ok(())
}

/// What is wrong with a table that is no configuration; `error` if no single key is.
pub(super) fn explain(table: &Table, error: &toml::de::Error) -> String {
    let known = Table::try_from(Config::default()).unwrap_or_default();
    for (name, value) in table {
        let wrong = match (known.get(name), value) {
            (Some(Value::Table(known)), Value::Table(section)) => section.iter().find_map(|(key, value)| {
                let alone = Table::from_iter([(key.clone(), value.clone())]);
                let error = refusal(Table::from_iter([(name.clone(), Value::Table(alone))]))?;
                Some(wrong(&format!("{name}.{key}"), value, known.get(key), &error))
            }),
            (Some(Value::Table(_)), value) => Some(format!("{name} = {value} has to be a section")),
            (None, Value::Table(section)) => {
                Some(unknown(&section.keys().next().map_or(name.clone(), |key| format!("{name}.{key}"))))
            }
            (known, value) => refusal(Table::from_iter([(name.clone(), value.clone())]))
                .map(|error| wrong(name, value, known, &error)),
        };
        if let Some(wrong) = wrong {
            return wrong;
        }
    }
    whole(error)
}

/// The error with where it is, in one line.
fn whole(error: &toml::de::Error) -> String {
    error.to_string().trim_end().replace('\n', ", ")
}

fn refusal(table: Table) -> Option<toml::de::Error> {
    table.try_into::<Config>().err()
}

/// `default` is of the type that is wanted.
fn wrong(path: &str, value: &Value, default: Option<&Value>, refused: &toml::de::Error) -> String {
    let error = refused.message();
    let key = path.rsplit('.').next().unwrap_or(path);
    if error.starts_with(&format!("unknown field `{key}`")) {
        return unknown(path);
    }
    let wanted = match default {
        Some(Value::Integer(_)) => whole_number(path),
        Some(Value::Float(_)) => "a number".into(),
        Some(Value::Boolean(_)) => "true or false".into(),
        Some(Value::String(_)) if error.starts_with("unknown variant") => {
            names(error).skip(1).collect::<Vec<_>>().join(", ")
        }
        Some(Value::String(text)) if text.parse::<SocketAddr>().is_ok() => {
            "an IP and port such as 127.0.0.1:7600".into()
        }
        Some(Value::String(text)) if humantime::parse_duration(text).is_ok() => {
            "a duration such as 500ms".into()
        }
        Some(Value::String(_)) => "text".into(),
        None if key == "cpu" => "the number of a CPU".into(),
        None if key == "advertise" => "an IP address such as 10.0.0.5".into(),
        _ => return format!("{path}: {}", whole(refused)),
    };
    format!("{path} = {value} has to be {wanted}")
}

fn unknown(path: &str) -> String {
    let meant = nearest(path).map(|key| format!(": did you mean {key}?")).unwrap_or_default();
    format!("{path} is not known{meant} (check-config prints all keys)")
}

/// The key that was most likely meant, with its section.
fn nearest(path: &str) -> Option<String> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let most = (last(path).len() / CHARACTERS_PER_EDIT).clamp(1, EDITS_MAX);
    let distance = |key: &str| {
        let whole = edits(path, key);
        // Without its section, or in another one.
        let bare = edits(&last(path), &last(key)) + usize::from(path.contains('.'));
        whole.min(bare)
    };
    let all = names(refusal(Table::from_iter([("?".to_owned(), Value::Integer(0))]))?.message())
        .skip(1)
        .flat_map(|name| {
            let alone = Table::from_iter([("?".to_owned(), Value::Integer(0))]);
            let refused = refusal(Table::from_iter([(name.to_owned(), Value::Table(alone))]));
            let said = refused.as_ref().map_or("", |error| error.message());
            let keys: Vec<String> = match said.strip_prefix("unknown field") {
                Some(list) => names(list).skip(1).map(|key| format!("{name}.{key}")).collect(),
                None => vec![name.to_owned()],
            };
            keys
        })
        .collect::<Vec<_>>();
    all.into_iter().min_by_key(|key| distance(key)).filter(|key| distance(key) <= most)
}

/// What stands between backticks in serde's words.
fn names(error: &str) -> impl Iterator<Item = &str> {
    error.split('`').skip(1).step_by(2)
}

fn range(path: &str) -> Option<(u64, u64)> {
    RANGES.iter().find(|(key, ..)| *key == path).map(|&(_, least, most)| (least, most))
}

fn whole_number(path: &str) -> String {
    let key = path.rsplit('.').next().unwrap_or(path);
    let is_size = key.contains("bytes") || SIZES.contains(&key);
    let what = if is_size { "bytes as a whole number" } else { "a whole number" };
    match range(path) {
        Some((least, u64::MAX)) => format!("{what}, at least {least}"),
        Some((least, most)) => format!("{what} from {least} to {most}"),
        None => what.into(),
    }
}

/// Characters put in, left out or replaced from one text to the other.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        for (from, to, count) in [("a", "a", 0), ("sesion", "session", 1), ("", "abc", 3), ("abc", "axd", 2)]
        {
            assert_eq!((edits(from, to), edits(to, from)), (count, count), "{from} {to}");
        }
    }

    #[test]
    fn every_range_is_of_a_key_that_there_is() {
        let known = Table::try_from(Config::default()).unwrap();
        for (path, ..) in RANGES {
            let (section, key) = path.split_once('.').unwrap();
            assert!(known[section].get(key).is_some_and(Value::is_integer), "{path}");
        }
        for key in SIZES {
            assert!(
                ["data", "session"].into_iter().any(|section| known[section].get(key).is_some()),
                "{key}"
            );
        }
    }
}
