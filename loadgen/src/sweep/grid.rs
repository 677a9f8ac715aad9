//! The grid of a sweep: which settings, which values of each, which of them are the defaults.

use anyhow::{Context, Result, bail, ensure};
use slotcast_net::config::Config;

/// One setting with its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// `section.key`.
    pub key: String,
    /// As they were written.
    pub values: Vec<String>,
    /// Which of them is the default, if any.
    pub default: Option<usize>,
}

/// Reads `section.key=a,b,c`, or `key=a,b,c` where only one section has the key.
pub fn axis(text: &str) -> Result<Axis> {
    let (name, values) = text
        .split_once('=')
        .with_context(|| format!("{text:?} is not of the form section.key=value,value,..."))?;
    let key = full_key(name.trim())?;
    let values: Vec<String> = values.split(',').map(|value| value.trim().to_string()).collect();
    ensure!(values.iter().all(|value| !value.is_empty()), "{text:?} has an empty value");
    for (at, value) in values.iter().enumerate() {
        ensure!(!values[..at].contains(value), "{text:?} has {value} twice");
    }
    let standard = value_of(&key, &[])?;
    let mut default = None;
    for (at, value) in values.iter().enumerate() {
        if value_of(&key, &[format!("{key}={value}")])? == standard {
            default = Some(at);
        }
    }
    Ok(Axis { key, values, default })
}

/// All points, the last axis turning fastest: for each axis the number of its value.
pub fn points(axes: &[Axis]) -> Vec<Vec<usize>> {
    axes.iter().fold(vec![Vec::new()], |points, axis| {
        let with = |point: &Vec<usize>| {
            let point = point.clone();
            (0..axis.values.len()).map(move |at| [point.clone(), vec![at]].concat())
        };
        points.iter().flat_map(with).collect()
    })
}

/// A point's settings, as `--set` takes them.
pub fn settings(axes: &[Axis], point: &[usize]) -> Vec<String> {
    axes.iter().zip(point).map(|(axis, at)| format!("{}={}", axis.key, axis.values[*at])).collect()
}

fn table(settings: &[String]) -> Result<toml::Table> {
    // One setting alone may contradict a default that the run sets as well; only its value is asked for here.
    let config = Config::load(None, settings)?;
    Ok(toml::Table::try_from(config)?)
}

fn value_of(key: &str, settings: &[String]) -> Result<Option<toml::Value>> {
    let table = table(settings)?;
    let mut value = Some(toml::Value::Table(table));
    for part in key.split('.') {
        value = value.and_then(|value| value.get(part).cloned());
    }
    Ok(value)
}

fn full_key(name: &str) -> Result<String> {
    let table = table(&[])?;
    let sections = table.iter().filter_map(|(section, value)| Some((section, value.as_table()?)));
    if let Some((section, key)) = name.split_once('.') {
        let found = sections.into_iter().any(|(known, keys)| known == section && knows(section, keys, key));
        ensure!(found, "there is no setting {name}; `slotcast check-config` prints all");
        return Ok(name.to_string());
    }
    let found: Vec<String> = sections
        .filter(|(section, keys)| knows(section, keys, name))
        .map(|(section, _)| format!("{section}.{name}"))
        .collect();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => bail!("there is no setting {name}; `slotcast check-config` prints all"),
        more => bail!("{name} may be any of {}: write which", more.join(", ")),
    }
}

fn knows(section: &str, keys: &toml::Table, key: &str) -> bool {
    // Settings that are absent by default are not printed.
    keys.contains_key(key) || key == "cpu" && matches!(section, "data" | "session")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_name_is_found_where_only_one_section_has_it() {
        let found = axis("journal_batch_interval=1ms, 10ms,100ms").unwrap();
        assert_eq!(found.key, "data.journal_batch_interval");
        assert_eq!(found.values, ["1ms", "10ms", "100ms"]);
        assert_eq!(found.default, Some(2), "however it is written");
        assert!(axis("data.journal_batch_interval=soon").is_err(), "it is no duration");
        let both = axis("http=127.0.0.1:1").unwrap_err().to_string();
        assert!(both.contains("data.http") && both.contains("session.http"), "{both}");
        for wrong in
            ["nothing=1", "data.nothing=1", "push_batch_max", "push_batch_max=", "push_batch_max=8,8"]
        {
            assert!(axis(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_grid_has_every_combination_once() {
        let axes = [axis("push_batch_max=1,8,128").unwrap(), axis("history_bytes_max=1024,2048").unwrap()];
        let points = points(&axes);
        assert_eq!(points.len(), 6);
        assert_eq!(
            settings(&axes, &points[3]),
            ["session.push_batch_max=8", "session.history_bytes_max=2048"]
        );
        let mut once = points.clone();
        once.dedup();
        assert_eq!(once, points);
    }
}
