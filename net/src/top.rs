//! What may be asked about the data and its users, and the answers as they are told over HTTP.

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use slotcast_engine::{
    shard::TopAnswer,
    top::{LIMIT_MAX, Row},
};

use crate::wire::Message;

/// What may be asked. Each process answers what it knows and says so about the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Single registrations with the largest records
    Publishers,
    /// Data ids with the most publishers
    DataIds,
    /// Data ids that change most often, halved every minute (estimated)
    Changed,
    /// Data ids with the most subscribers (at a data node: sessions that read them)
    Subscribed,
    /// Namespaces with the most publishers
    Namespaces,
    /// Requests by kind since the start
    Requests,
    /// Who sends the most requests (at a session: clients, estimated, halved every minute; at a data node: sessions)
    Clients,
    /// Open connections by what they hold
    Connections,
    /// Data ids that nobody reads, the longest unread and unchanged first
    Cold,
}

impl What {
    /// Its name in questions.
    pub fn label(self) -> &'static str {
        match self {
            What::Publishers => "publishers",
            What::DataIds => "data-ids",
            What::Changed => "changed",
            What::Subscribed => "subscribed",
            What::Namespaces => "namespaces",
            What::Requests => "requests",
            What::Clients => "clients",
            What::Connections => "connections",
            What::Cold => "cold",
        }
    }

    /// What the value of a row is.
    pub fn unit(self) -> &'static str {
        match self {
            What::Publishers => "bytes",
            What::DataIds | What::Namespaces => "publishers",
            What::Changed => "changes",
            What::Subscribed => "readers",
            What::Requests | What::Clients => "requests",
            What::Connections => "held",
            What::Cold => "cold_s",
        }
    }
}

/// One question.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct TopAsk {
    /// What is asked.
    pub what: What,
    /// Rows wanted.
    #[serde(default = "limit_default")]
    pub limit: usize,
}

fn limit_default() -> usize {
    20
}

/// Messages received, by kind.
#[derive(Clone, Debug, Default)]
pub struct Requests([u64; KINDS.len()]);

/// The kinds of messages that a server is sent.
const KINDS: [&str; 12] = [
    "hello",
    "link-hello",
    "write",
    "subscribe",
    "unsubscribe",
    "heartbeat",
    "digest-request",
    "holds",
    "goodbye",
    "ping",
    "pong",
    "other",
];

impl Requests {
    /// Counts one.
    pub fn count(&mut self, message: &Message<'_>) {
        let kind = match message {
            Message::Hello { .. } => 0,
            Message::LinkHello { .. } => 1,
            Message::Write { .. } => 2,
            Message::Subscribe(_) => 3,
            Message::Unsubscribe(_) => 4,
            Message::Heartbeat { .. } => 5,
            Message::DigestRequest(_) => 6,
            Message::Holds { .. } => 7,
            Message::Goodbye => 8,
            Message::Ping(_) => 9,
            Message::Pong(_) => 10,
            _ => 11,
        };
        self.0[kind] += 1;
    }

    /// All kinds of which there was one, the most frequent first.
    pub fn report(&self) -> TopReport {
        let mut rows: Vec<Row> = (KINDS.iter().zip(self.0))
            .filter(|(_, count)| *count > 0)
            .map(|(kind, count)| Row::exact(*kind, count))
            .collect();
        rows.sort_by(|a, b| b.value.total_cmp(&a.value));
        TopReport::exact(What::Requests, rows, self.0.iter().sum())
    }
}

/// One row of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopRow {
    /// What it is about.
    pub key: String,
    /// What the rows are ordered by.
    pub value: f64,
    /// What `value` is too large by at most.
    pub error: f64,
    /// What else is worth knowing.
    pub more: BTreeMap<String, String>,
}

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopReport {
    /// What was asked.
    pub what: What,
    /// What the values are.
    pub unit: String,
    /// How the values came about: `exact`, or `space-saving` for what is estimated.
    pub method: String,
    /// Of how many things the rows are the largest; of what is estimated, the weight of all.
    pub of: f64,
    /// What any value is too large by at most.
    pub error_max: f64,
    /// Seconds in which what was counted loses half its weight; 0: it counts since the start, or is as it is now.
    pub half_life_s: f64,
    /// The rows, the largest first.
    pub rows: Vec<TopRow>,
}

impl TopReport {
    /// The answer of one thread.
    pub fn new(what: What, answer: TopAnswer) -> Self {
        let method = if answer.half_life > 0 { "space-saving" } else { "exact" };
        Self {
            what,
            unit: what.unit().into(),
            method: method.into(),
            of: answer.of,
            error_max: answer.error_max,
            half_life_s: answer.half_life as f64 / 1e9,
            rows: answer.rows.into_iter().map(TopRow::from).collect(),
        }
    }

    /// An answer of rows that are all known exactly.
    pub fn exact(what: What, rows: Vec<Row>, of: u64) -> Self {
        Self::new(what, TopAnswer { rows, of: of as f64, error_max: 0.0, half_life: 0 })
    }

    /// The answer of all threads of a process together: rows of one key are added up. A key that is among the largest of the
    /// process but of no thread is missing, and so is what a thread that did not tell a key has counted of it.
    pub fn merged(reports: Vec<TopReport>, limit: usize) -> Option<Self> {
        let mut reports = reports.into_iter();
        let mut all = reports.next()?;
        let mut rows: BTreeMap<String, TopRow> =
            all.rows.drain(..).map(|row| (row.key.clone(), row)).collect();
        for report in reports {
            all.of += report.of;
            all.error_max += report.error_max;
            for row in report.rows {
                match rows.get_mut(&row.key) {
                    // How long nobody has looked is no sum.
                    Some(known) if all.what == What::Cold => known.value = known.value.min(row.value),
                    Some(known) => {
                        known.value += row.value;
                        known.error += row.error;
                        add_numbers(&mut known.more, &row.more);
                    }
                    None => _ = rows.insert(row.key.clone(), row),
                }
            }
        }
        all.rows = rows.into_values().collect();
        all.rows.sort_by(|a, b| b.value.total_cmp(&a.value).then_with(|| a.key.cmp(&b.key)));
        all.rows.truncate(limit.min(LIMIT_MAX));
        Some(all)
    }
}

/// Counts of one key in two threads; what is not a plain number in both stays as the first told it.
fn add_numbers(known: &mut BTreeMap<String, String>, other: &BTreeMap<String, String>) {
    for (name, value) in other {
        let Some(first) = known.get_mut(name) else { continue };
        if let (Ok(a), Ok(b)) = (first.parse::<u64>(), value.parse::<u64>()) {
            *first = (a + b).to_string();
        }
    }
}

impl From<Row> for TopRow {
    fn from(row: Row) -> Self {
        let more = row.more.into_iter().map(|(name, value)| (name.into(), value)).collect();
        Self { key: row.key, value: row.value, error: row.error, more }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answers_of_several_threads_are_added_up_and_ordered_again() {
        let report = |rows: &[(&str, u64)]| {
            let rows =
                rows.iter().map(|(key, value)| Row::exact(*key, *value).with("publishers", 2)).collect();
            TopReport::exact(What::Subscribed, rows, 10)
        };
        let all = TopReport::merged(vec![report(&[("a", 5), ("b", 4)]), report(&[("b", 3), ("c", 6)])], 2);
        let all = all.unwrap();
        let keys: Vec<(&str, f64)> = all.rows.iter().map(|row| (&*row.key, row.value)).collect();
        assert_eq!((keys, all.of), (vec![("b", 7.0), ("c", 6.0)], 20.0));
        assert_eq!((&*all.rows[0].more["publishers"], &*all.rows[1].more["publishers"]), ("4", "2"));
        assert_eq!(TopReport::merged(Vec::new(), 2), None);
    }

    #[test]
    fn the_names_of_questions_are_those_of_the_command_line() {
        for what in What::value_variants() {
            assert_eq!(What::from_str(what.label(), false), Ok(*what));
            assert_eq!(serde_json::to_string(what).unwrap(), format!("{:?}", what.label()));
        }
    }
}
