//! What a failing run prints: the faults, and everything that concerned one data id.

use slotcast_engine::{batch::ChangeKind, id::DatumKey};
use slotcast_net::wire::{Frame, Message, header::FRAME_BYTES_MAX};

use super::network::MS;

/// Lines of a trace that are printed.
const LINES_MAX: usize = 400;

/// One line: when, which data id if only one, what.
struct Line {
    at: u64,
    datum: Option<DatumKey>,
    text: String,
}

/// Kept only when a seed is replayed.
#[derive(Default)]
pub struct Trace {
    lines: Vec<Line>,
    /// Whether lines are kept at all.
    pub is_on: bool,
}

impl Trace {
    /// Adds a line.
    pub fn add(&mut self, at: u64, datum: Option<DatumKey>, text: impl FnOnce() -> String) {
        if self.is_on {
            self.lines.push(Line { at, datum, text: text() });
        }
    }

    /// The frames of one write.
    pub fn frames(&mut self, at: u64, from: &str, to: &str, mut bytes: &[u8]) {
        while let Ok(Some(frame)) = Frame::read(bytes, FRAME_BYTES_MAX) {
            bytes = &bytes[frame.bytes.len()..];
            if let Ok(message) = Message::read(frame) {
                for (datum, text) in describe(&message) {
                    self.add(at, datum, || format!("{from} -> {to}  {text}"));
                }
            }
        }
    }

    /// The last lines about `datum` and about no data id in particular.
    pub fn print(&self, datum: Option<DatumKey>) -> String {
        let wanted = |line: &&Line| datum.is_none() || line.datum.is_none() || line.datum == datum;
        let lines: Vec<&Line> = self.lines.iter().filter(wanted).collect();
        let skipped = lines.len().saturating_sub(LINES_MAX);
        let shown = lines[skipped..].iter();
        shown.map(|line| format!("{:>12.3} ms  {}\n", line.at as f64 / MS as f64, line.text)).collect()
    }
}

fn describe(message: &Message<'_>) -> Vec<(Option<DatumKey>, String)> {
    match message {
        Message::Write { sequence, entries } => Message::entries(entries)
            .filter_map(Result::ok)
            .filter(|entry| entry.change.kind != ChangeKind::Name)
            .map(|entry| {
                let change = entry.change;
                let payload = entry.record().and_then(|record| record.instance().ok());
                let payload = payload.map(|it| label(&it.payload)).unwrap_or_default();
                let text = format!(
                    "write {sequence}: {:?} {:04x} {}.{} {payload}",
                    change.kind,
                    change.register.0 >> 48,
                    change.version.number,
                    change.version.attach
                );
                (Some(change.datum), text)
            })
            .collect(),
        Message::Diff(diff) => {
            let kind = if diff.is_snapshot { "snapshot" } else { "diff" };
            let removes: Vec<String> =
                diff.removes().map(|register| format!("-{:04x}", register.0 >> 48)).collect();
            let mut owners = diff.owners();
            let puts: Vec<String> = diff
                .puts()
                .map(|record| {
                    let owner = owners.as_mut().and_then(Iterator::next);
                    let payload = record.instance().map(|it| label(&it.payload)).unwrap_or_default();
                    let owner = owner.map(|owner| format!("@{}", owner.0)).unwrap_or_default();
                    format!("+{:04x} {payload}{owner}", record.register().0 >> 48)
                })
                .collect();
            vec![(
                Some(diff.datum),
                format!("{kind} {} .. {}  {} {}", diff.from, diff.to, removes.join(" "), puts.join(" ")),
            )]
        }
        Message::Subscribe(items) => items
            .iter()
            .map(|item| {
                let text = format!("subscribe since {} digest {:x}", item.since, item.digest);
                (Some(item.id.key()), text)
            })
            .collect(),
        Message::Unsubscribe(datums) => {
            datums.iter().map(|datum| (Some(*datum), "unsubscribe".to_string())).collect()
        }
        Message::Holds { datum, registers } => {
            let held: Vec<String> =
                registers.iter().map(|register| format!("{:04x}", register.0 >> 48)).collect();
            vec![(Some(*datum), format!("holds {}", held.join(" ")))]
        }
        Message::WriteAck { sequence, outcomes } => {
            let outcomes: Vec<String> = outcomes
                .iter()
                .map(|outcome| outcome.map_or_else(|refusal| refusal.label().into(), |at| at.to_string()))
                .collect();
            vec![(None, format!("ack {sequence}: {}", outcomes.join(" ")))]
        }
        Message::Ping(_) | Message::Pong(_) => Vec::new(),
        Message::Heartbeat { .. } | Message::HeartbeatAck { differs: None, .. } => Vec::new(),
        other => vec![(None, format!("{other:?}"))],
    }
}

/// The readable part of a payload.
pub fn label(payload: &[u8]) -> String {
    String::from_utf8_lossy(payload).trim_end_matches('.').to_string()
}

/// For times in messages.
pub fn ms(at: u64) -> String {
    format!("{:.3} ms", at as f64 / MS as f64)
}
