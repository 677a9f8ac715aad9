//! Runs over a grid of settings, to find values that are measured instead of believed.
//!
//! Each point is a `loadgen run` of its own with the point's settings, in a process of its own. With several runs per point all
//! points are run in turn, then all again, so that a slow hour of the machine falls on all of them. What is finished is noted
//! in the output folder, so that a sweep that was broken off goes on where it stopped.

pub mod choice;

pub mod grid;

pub mod report;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::progress::Progress;
use choice::{Choice, Finding, Point};
use grid::Axis;

/// The file that says what is finished.
const STATE_FILE: &str = "sweep-state.json";

/// What is swept.
#[derive(Clone, Debug)]
pub struct SweepSpec {
    /// The settings and their values.
    pub axes: Vec<Axis>,
    /// Arguments of `loadgen run` that all points share.
    pub arguments: Vec<String>,
    /// Runs of each point.
    pub repeats: usize,
    /// Where results go.
    pub folder: PathBuf,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Swept {
    /// All points, in the order of the grid.
    pub points: Vec<Point>,
    /// What is recommended; `None` when no point was good.
    pub choice: Option<Choice>,
    /// Runs that were finished before.
    pub resumed: usize,
}

/// What is finished, and of which sweep.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    arguments: Vec<String>,
    /// By the point's settings; runs in their order.
    runs: BTreeMap<String, Vec<Finding>>,
}

impl State {
    /// That of a folder. A folder of a sweep with other arguments is refused: its runs are no use here.
    fn load(folder: &Path, arguments: &[String]) -> Result<Self> {
        let path = folder.join(STATE_FILE);
        let state: State = match fs::read(&path) {
            Ok(bytes) => {
                let broken = || format!("{} cannot be read: take the folder away", path.display());
                serde_json::from_slice(&bytes).with_context(broken)?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                State { arguments: arguments.to_vec(), runs: BTreeMap::new() }
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        ensure!(
            state.arguments == arguments,
            "{} holds a sweep with other arguments ({}): give this one a folder of its own",
            folder.display(),
            state.arguments.join(" ")
        );
        Ok(state)
    }

    /// Written beside and renamed, so that it is whole whenever the sweep is broken off.
    fn save(&self, folder: &Path) -> Result<()> {
        let beside = folder.join(format!("{STATE_FILE}.new"));
        fs::write(&beside, serde_json::to_string_pretty(self)? + "\n")?;
        fs::rename(&beside, folder.join(STATE_FILE))?;
        Ok(())
    }
}

/// Runs what is not finished yet. `run` makes one run: settings and where its files go.
pub fn sweep(
    spec: &SweepSpec,
    progress: &Progress,
    mut run: impl FnMut(&[String], &Path) -> Result<Finding>,
) -> Result<Swept> {
    let points = grid::points(&spec.axes);
    ensure!(!points.is_empty() && spec.repeats > 0, "there is nothing to run");
    fs::create_dir_all(&spec.folder)
        .with_context(|| format!("cannot make the folder {}", spec.folder.display()))?;
    let mut state = State::load(&spec.folder, &spec.arguments)?;
    let of = |state: &State, name: &str| state.runs.get(name).map_or(0, Vec::len);
    let names: Vec<String> = points.iter().map(|at| grid::settings(&spec.axes, at).join(" ")).collect();
    let resumed = names.iter().map(|name| of(&state, name).min(spec.repeats)).sum();
    progress.phase("sweep", (points.len() * spec.repeats) as u64);
    for repeat in 0..spec.repeats {
        for (number, (at, name)) in points.iter().zip(&names).enumerate() {
            if of(&state, name) > repeat {
                continue;
            }
            progress.at((repeat * points.len() + number) as u64, || name.clone());
            let files = spec.folder.join(format!("point-{:03}-run-{}", number + 1, repeat + 1));
            let finding = run(&grid::settings(&spec.axes, at), &files).with_context(|| name.clone())?;
            progress.say(&format!(
                "{name}: {}, p999 {:.1} ms ({} of {})",
                finding.verdict,
                finding.p999_ms,
                repeat * points.len() + number + 1,
                points.len() * spec.repeats
            ));
            state.runs.entry(name.clone()).or_default().push(finding);
            state.save(&spec.folder)?;
        }
    }
    let points: Vec<Point> = points
        .into_iter()
        .zip(&names)
        .map(|(at, name)| {
            let mut runs = state.runs.remove(name).unwrap_or_default();
            runs.truncate(spec.repeats);
            Point { at, runs }
        })
        .collect();
    let choice = choice::choose(&spec.axes, &points);
    Ok(Swept { points, choice, resumed })
}

/// Makes one run in a process of its own, with this same binary.
pub fn run_child(arguments: &[String], settings: &[String], files: &Path) -> Result<Finding> {
    let (json, log) = (files.with_extension("json"), files.with_extension("log"));
    // What an earlier attempt left behind must not pass for this one's.
    _ = fs::remove_file(&json);
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("run").args(arguments);
    settings.iter().for_each(|setting| _ = command.args(["--set", setting]));
    let directory = own_directory(arguments.iter().chain(settings), files);
    if let Some(directory) = &directory {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        command.arg("--set").arg(format!("data.data_dir={:?}", directory.display().to_string()));
    }
    command.arg("--json").arg(&json);
    let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    let status = command.status().context("starting a run")?;
    if let Some(directory) = &directory {
        fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    // A run that is not good ends with an error and has its results all the same.
    let Ok(text) = fs::read(&json) else {
        bail!("the run ended with {status} and without results; {} says why", log.display());
    };
    finding(&serde_json::from_slice(&text)?)
}

/// A data directory for one run below the one that all runs are given, if they are given one: a run would find what the run
/// before it has left.
fn own_directory<'a>(arguments: impl Iterator<Item = &'a String>, files: &Path) -> Option<PathBuf> {
    let given = arguments.filter_map(|argument| {
        argument.strip_prefix("--set=").unwrap_or(argument).strip_prefix("data.data_dir=")
    });
    Some(Path::new(given.last()?.trim_matches('"')).join(files.file_name()?))
}

fn finding(json: &serde_json::Value) -> Result<Finding> {
    let number = |path: &str| {
        json.pointer(path).and_then(serde_json::Value::as_f64).with_context(|| format!("{path} is not told"))
    };
    let cpu = |role: &str| number(&format!("/cpu_s/{role}")).unwrap_or(0.0);
    Ok(Finding {
        verdict: json["verdict"].as_str().context("the verdict is not told")?.to_string(),
        p50_ms: number("/latency_ms/p50")?,
        p999_ms: number("/latency_ms/p999")?,
        pushes_per_min: number("/pushes_per_min")?,
        cpu_s: cpu("data") + cpu("session"),
    })
}

/// The arguments of `loadgen run` among those of `loadgen sweep`: all but its own and those that say where results go.
pub fn shared_arguments(raw: impl IntoIterator<Item = String>) -> Vec<String> {
    const OWN: [&str; 6] = ["--vary", "--into", "--repeats", "--json", "--chart", "--hdr"];
    let (mut shared, mut raw) = (Vec::new(), raw.into_iter());
    while let Some(argument) = raw.next() {
        if OWN.contains(&argument.as_str()) {
            raw.next();
        } else if !OWN.iter().any(|own| argument.strip_prefix(own).is_some_and(|rest| rest.starts_with('=')))
        {
            shared.push(argument);
        }
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(folder: &Path, repeats: usize) -> SweepSpec {
        SweepSpec {
            axes: vec![
                grid::axis("push_batch_max=1,128").unwrap(),
                grid::axis("data.validate_records=true,false").unwrap(),
            ],
            arguments: vec!["--clients".into(), "5".into()],
            repeats,
            folder: folder.into(),
        }
    }

    fn made_up(p999_ms: f64) -> Finding {
        Finding { verdict: "ok".into(), p50_ms: 1.0, p999_ms, pushes_per_min: 1.0, cpu_s: 1.0 }
    }

    #[test]
    fn each_run_has_a_data_directory_of_its_own() {
        let files = Path::new("sweep/point-001-run-2");
        let own = |arguments: &[&str]| {
            let arguments: Vec<String> = arguments.iter().map(|argument| argument.to_string()).collect();
            own_directory(arguments.iter(), files)
        };
        assert_eq!(own(&["--clients", "5", "--set", "data.storage=none"]), None);
        let expected = Some(PathBuf::from("/data/point-001-run-2"));
        assert_eq!(own(&["--set", "data.data_dir=/data"]), expected);
        assert_eq!(
            own(&["--set=data.data_dir=\"/elsewhere\"", "--set", "data.data_dir=\"/data\""]),
            expected
        );
    }

    #[test]
    fn a_sweep_that_was_broken_off_goes_on_where_it_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let (progress, mut made) = (Progress::new(), Vec::new());
        let broken = sweep(&spec(folder.path(), 2), &progress, |settings, _| {
            ensure!(made.len() < 5, "the machine went away");
            made.push(settings.join(" "));
            Ok(made_up(if settings[0].ends_with("=1") { 100.0 } else { 10.0 }))
        });
        assert!(format!("{:#}", broken.unwrap_err()).contains("the machine went away"));
        assert_eq!(made[0], made[4], "every point once, then every point again");
        let mut again = 0;
        let whole = sweep(&spec(folder.path(), 2), &progress, |settings, _| {
            again += 1;
            Ok(made_up(if settings[0].ends_with("=1") { 100.0 } else { 10.0 }))
        })
        .unwrap();
        assert_eq!((again, whole.resumed), (3, 5));
        let choice = whole.choice.clone().unwrap();
        assert_eq!(whole.points[choice.point].at, [1, 0], "of the fast ones the default");
        let other = SweepSpec { arguments: vec!["--clients".into(), "6".into()], ..spec(folder.path(), 2) };
        let refused = sweep(&other, &progress, |_, _| panic!("nothing is run")).unwrap_err().to_string();
        assert!(refused.contains("--clients 5"), "{refused}");
        let text = report::table(&spec(folder.path(), 2).axes, &whole).to_string();
        assert!(text.contains("session.push_batch_max") && text.contains("10.0"), "{text}");
        let chart = folder.path().join("sweep.svg");
        report::chart(&spec(folder.path(), 2).axes, &whole, &chart).unwrap();
        assert!(fs::read_to_string(chart).unwrap().contains("<svg"));
    }

    #[test]
    fn the_arguments_of_the_runs_are_told_apart_from_its_own() {
        let raw = [
            "--vary",
            "a=1,2",
            "--clients",
            "5",
            "--into=x",
            "--set",
            "data.x=1",
            "--json",
            "y",
            "--no-limit",
        ];
        let shared = shared_arguments(raw.map(String::from));
        assert_eq!(shared, ["--clients", "5", "--set", "data.x=1", "--no-limit"]);
    }
}
