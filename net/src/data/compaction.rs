//! What an operator may tell compaction, at the start and at run time: keys, their values, and which of these are refused.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use slotcast_engine::{change_log::ChangeLogLimits, compact::CompactionSettings};

/// Minutes of a day.
const DAY: u32 = 24 * 60;

/// A time of the day in UTC, from one minute up to another, also across midnight: `01:00-05:00`, `22:30-04:00`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Window {
    from: u32,
    to: u32,
}

impl Window {
    /// Whether a minute of the day (0 to 1439) lies in it.
    pub fn contains(&self, minute: u32) -> bool {
        if self.from < self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let minute = |text: &str| {
            let (hour, minute) = text.trim().split_once(':')?;
            let (hour, minute): (u32, u32) = (hour.parse().ok()?, minute.parse().ok()?);
            (hour <= 24 && minute < 60 && hour * 60 + minute <= DAY).then_some(hour * 60 + minute)
        };
        let ends = text.split_once('-').and_then(|(from, to)| Some((minute(from)?, minute(to)?)));
        match ends {
            Some((from, to)) if from != to && from < DAY => Ok(Self { from, to }),
            _ => Err(format!("{text:?} is no time of the day such as 01:00-05:00 (UTC)")),
        }
    }
}

impl From<Window> for String {
    fn from(window: Window) -> String {
        window.to_string()
    }
}

impl TryFrom<String> for Window {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Everything that compaction may be told.
#[derive(Clone, Debug, PartialEq)]
pub struct CompactionOptions {
    /// When steps are taken and how large they are.
    pub settings: CompactionSettings,
    /// Bounds of each slot's history.
    pub history: ChangeLogLimits,
    /// When the eager settings count.
    pub off_peak: Vec<Window>,
}

/// One setting with its new value.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    key: Key,
    value: Value,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Nanos(u64),
    Count(usize),
    Share(f64),
    Windows(Vec<Window>),
}

/// A setting that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which.
    pub key: String,
    /// Its value before.
    pub old: String,
    /// Its value now.
    pub new: String,
}

/// What may be set, by its name in the section `data` of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Interval,
    SleepInterval,
    BatchLimit,
    UtilizationMin,
    OffPeak,
    OffPeakBatchLimit,
    OffPeakUtilizationMin,
    ChangeLogEntries,
    ChangeLogAge,
    ChangeLogBytes,
}

impl Key {
    const ALL: [Key; 10] = [
        Key::Interval,
        Key::SleepInterval,
        Key::BatchLimit,
        Key::UtilizationMin,
        Key::OffPeak,
        Key::OffPeakBatchLimit,
        Key::OffPeakUtilizationMin,
        Key::ChangeLogEntries,
        Key::ChangeLogAge,
        Key::ChangeLogBytes,
    ];

    fn name(self) -> &'static str {
        match self {
            Key::Interval => "compaction_interval",
            Key::SleepInterval => "compaction_sleep_interval",
            Key::BatchLimit => "compaction_batch_limit",
            Key::UtilizationMin => "arena_utilization_min",
            Key::OffPeak => "compaction_off_peak",
            Key::OffPeakBatchLimit => "compaction_off_peak_batch_limit",
            Key::OffPeakUtilizationMin => "arena_off_peak_utilization_min",
            Key::ChangeLogEntries => "change_log_entries",
            Key::ChangeLogAge => "change_log_age",
            Key::ChangeLogBytes => "change_log_bytes",
        }
    }

    /// Values that can work.
    fn check(self, value: &Value) -> Result<(), String> {
        let (good, range) = match (self, value) {
            (Key::Interval, Value::Nanos(nanos)) => {
                ((10_000_000..=86_400_000_000_000).contains(nanos), "from 10ms to 1day")
            }
            (Key::SleepInterval, Value::Nanos(nanos)) => (*nanos <= 10_000_000_000, "at most 10s"),
            (Key::BatchLimit | Key::OffPeakBatchLimit, Value::Count(count)) => {
                ((1..=1_000_000).contains(count), "from 1 to 1000000")
            }
            (Key::UtilizationMin | Key::OffPeakUtilizationMin, Value::Share(share)) => {
                ((0.0..=0.95).contains(share), "from 0 to 0.95")
            }
            (Key::ChangeLogEntries, Value::Count(count)) => (*count <= 1 << 24, "at most 16777216"),
            (Key::ChangeLogAge, Value::Nanos(nanos)) => (*nanos <= 30 * 86_400_000_000_000, "at most 30days"),
            _ => (true, ""),
        };
        if good { Ok(()) } else { Err(format!("{} = {value} has to be {range}", self.name())) }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Nanos(nanos) => humantime::format_duration(Duration::from_nanos(*nanos)).fmt(f),
            Value::Count(count) => count.fmt(f),
            Value::Share(share) => share.fmt(f),
            Value::Windows(windows) if windows.is_empty() => f.write_str("none"),
            Value::Windows(windows) => {
                let all: Vec<String> = windows.iter().map(Window::to_string).collect();
                f.write_str(&all.join(","))
            }
        }
    }
}

impl Setting {
    /// Reads one setting: `compaction_interval` and `10s`. A value that cannot work is refused, by the key's name.
    pub fn parse(key: &str, text: &str) -> Result<Self, String> {
        let wanted = key.strip_prefix("data.").unwrap_or(key);
        let Some(key) = Key::ALL.into_iter().find(|known| known.name() == wanted) else {
            let known: Vec<&str> = Key::ALL.into_iter().map(Key::name).collect();
            return Err(format!("{key} cannot be set at run time; what can: {}", known.join(", ")));
        };
        let refuse = |wanted: &str| format!("{} = {text:?} is no {wanted}", key.name());
        let value = match key {
            Key::Interval | Key::SleepInterval | Key::ChangeLogAge => {
                let duration =
                    humantime::parse_duration(text).map_err(|_| refuse("duration such as 10ms"))?;
                Value::Nanos(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
            }
            Key::BatchLimit | Key::OffPeakBatchLimit | Key::ChangeLogEntries | Key::ChangeLogBytes => {
                Value::Count(text.replace('_', "").parse().map_err(|_| refuse("whole number"))?)
            }
            Key::UtilizationMin | Key::OffPeakUtilizationMin => {
                Value::Share(text.parse().map_err(|_| refuse("number"))?)
            }
            Key::OffPeak => {
                let inner = text.trim().trim_start_matches('[').trim_end_matches(']');
                let parts = inner.split(',').map(|part| part.trim().trim_matches('"'));
                let parts = parts.filter(|part| !part.is_empty() && *part != "none");
                let windows: Result<_, String> = parts.map(str::parse).collect();
                Value::Windows(windows.map_err(|error| format!("{}: {error}", key.name()))?)
            }
        };
        key.check(&value)?;
        Ok(Self { key, value })
    }
}

impl CompactionOptions {
    /// Finds values that cannot work.
    pub fn check(&self) -> Result<(), String> {
        Key::ALL.into_iter().try_for_each(|key| key.check(&self.get(key)))
    }

    /// Takes a setting over.
    pub fn set(&mut self, setting: &Setting) -> Change {
        let old = self.get(setting.key).to_string();
        let CompactionOptions { settings, history, off_peak } = self;
        match (setting.key, &setting.value) {
            (Key::Interval, Value::Nanos(nanos)) => settings.interval = *nanos,
            (Key::SleepInterval, Value::Nanos(nanos)) => settings.sleep_interval = *nanos,
            (Key::ChangeLogAge, Value::Nanos(nanos)) => history.age_max = *nanos,
            (Key::BatchLimit, Value::Count(count)) => settings.batch_limit = *count,
            (Key::OffPeakBatchLimit, Value::Count(count)) => settings.off_peak_batch_limit = *count,
            (Key::ChangeLogEntries, Value::Count(count)) => history.entries_max = *count,
            (Key::ChangeLogBytes, Value::Count(count)) => settings.history_bytes_max = *count,
            (Key::UtilizationMin, Value::Share(share)) => settings.utilization_min = *share,
            (Key::OffPeakUtilizationMin, Value::Share(share)) => {
                settings.off_peak_utilization_min = *share;
            }
            (Key::OffPeak, Value::Windows(windows)) => off_peak.clone_from(windows),
            (key, value) => unreachable!("{} has no value like {value}", key.name()),
        }
        let new = self.get(setting.key).to_string();
        Change { key: setting.key.name().into(), old, new }
    }

    /// Every key with its value.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, String)> {
        Key::ALL.into_iter().map(|key| (key.name(), self.get(key).to_string()))
    }

    /// Whether a minute of the day in UTC is off-peak.
    pub fn is_off_peak(&self, minute: u32) -> bool {
        self.off_peak.iter().any(|window| window.contains(minute))
    }

    fn get(&self, key: Key) -> Value {
        let CompactionOptions { settings, history, off_peak } = self;
        match key {
            Key::Interval => Value::Nanos(settings.interval),
            Key::SleepInterval => Value::Nanos(settings.sleep_interval),
            Key::BatchLimit => Value::Count(settings.batch_limit),
            Key::UtilizationMin => Value::Share(settings.utilization_min),
            Key::OffPeak => Value::Windows(off_peak.clone()),
            Key::OffPeakBatchLimit => Value::Count(settings.off_peak_batch_limit),
            Key::OffPeakUtilizationMin => Value::Share(settings.off_peak_utilization_min),
            Key::ChangeLogEntries => Value::Count(history.entries_max),
            Key::ChangeLogAge => Value::Nanos(history.age_max),
            Key::ChangeLogBytes => Value::Count(settings.history_bytes_max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> CompactionOptions {
        CompactionOptions {
            settings: CompactionSettings::default(),
            history: ChangeLogLimits::default(),
            off_peak: Vec::new(),
        }
    }

    #[test]
    fn what_is_told_of_every_key_is_taken_back_and_changes_nothing_else() {
        let mut it = options();
        it.off_peak = vec!["01:00-05:00".parse().unwrap(), "22:30-24:00".parse().unwrap()];
        let before = it.clone();
        let all: Vec<(&str, String)> = it.all().collect();
        for (key, value) in all {
            let change = it.set(&Setting::parse(key, &value).unwrap());
            assert_eq!((change.old, change.new), (value.clone(), value));
        }
        assert_eq!(it, before);
        let samples = ["7ms", "70", "0.7", "03:00-04:00"];
        for (key, _) in before.all() {
            let sample = samples.iter().find_map(|text| {
                let text = if key == "compaction_interval" { "7s" } else { text };
                Setting::parse(key, text).ok()
            });
            let mut other = before.clone();
            let change = other.set(&sample.unwrap());
            assert_eq!(change.key, key);
            let differing: Vec<&str> = (before.all().zip(other.all()))
                .filter_map(|(old, new)| (old != new).then_some(old.0))
                .collect();
            assert_eq!(differing, [key]);
        }
    }

    #[test]
    fn values_that_cannot_work_are_refused_by_name() {
        for (key, value, word) in [
            ("compaction_interval", "0s", "10ms to 1day"),
            ("compaction_interval", "soon", "duration"),
            ("compaction_batch_limit", "0", "from 1"),
            ("compaction_batch_limit", "-1", "whole number"),
            ("compaction_sleep_interval", "1h", "at most 10s"),
            ("arena_utilization_min", "1.5", "0.95"),
            ("arena_utilization_min", "NaN", "0.95"),
            ("compaction_off_peak", "25:00-26:00", "01:00-05:00"),
            ("compaction_off_peak", "01:00-01:00", "01:00-05:00"),
            ("change_log_age", "400days", "30days"),
        ] {
            let said = Setting::parse(key, value).unwrap_err();
            assert!(said.contains(key) && said.contains(word), "{said}");
        }
        let said = Setting::parse("session_lease", "1s").unwrap_err();
        assert!(said.contains("session_lease") && said.contains("compaction_interval"), "{said}");
    }

    #[test]
    fn a_window_may_cross_midnight() {
        let night: Window = "22:30-04:00".parse().unwrap();
        let inside: Vec<u32> =
            [0, 239, 240, 1349, 1350, 1439].into_iter().filter(|minute| night.contains(*minute)).collect();
        assert_eq!(inside, [0, 239, 1350, 1439]);
        let day: Window = "01:00-05:00".parse().unwrap();
        assert!(day.contains(60) && !day.contains(300) && !day.contains(59));
        assert!("00:00-24:00".parse::<Window>().unwrap().contains(1439));
    }
}
