//! The binary: `loadgen demo | run | sweep | replay | limit | links | ingest | chaos | probe`, and the children it starts from itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use loadgen::{
    args::{
        ChaosArgs, ChildArgs, Cli, Command, IngestArgs, LimitArgs, LinksArgs, Output, ProbeArgs, RoleCommand,
        RunArgs, Setting, SweepArgs,
    },
    chaos::{self, network::Network},
    division::Division,
    find_max::{self, Step},
    ingest,
    limit::{self, LimitSpec, ends},
    links, probe, process,
    progress::Progress,
    report::{chart, delays, json, table, verdict::Verdict},
    roles,
    run::{self, Outcome, RECV_BUFFER_BYTES, RECV_BUFFERS},
    source::Source,
    sweep::{self, SweepSpec, grid},
    worker,
};
use slotcast_net::{
    config::Config,
    output::{self, FAILED, say, usage},
};

fn main() -> ExitCode {
    output::end(run())
}

fn run() -> Result<ExitCode> {
    let command = output::arguments::<Cli>().command;
    output::check_files(command.files())?;
    match command {
        // The demo has to end within a minute, so it leaves the bare limit out.
        Command::Demo(args) => {
            drive(&Setting { no_limit: true, ..args.setting.clone() }, &args.output, args.source())
        }
        Command::Run(args) if args.find_max => find_max(&args),
        Command::Run(args) => drive(&args.setting, &args.output, args.source()),
        Command::Sweep(args) => sweep(&args),
        Command::Replay(args) => drive(&args.setting, &args.output, args.source()),
        Command::Limit(args) => limit(&args),
        Command::Links(args) => links(&args),
        Command::Ingest(args) => ingest(&args),
        Command::Chaos(args) => chaos(&args),
        Command::Probe(args) => probe(&args),
        Command::IngestWorker(args) => child(read(&args).and_then(|config| ingest::work(&config))),
        Command::LinksWorker(args) => child(read(&args).and_then(|config| links::work(&config))),
        Command::Role { role: RoleCommand::Data(args) } => child(roles::data(&args.config)),
        Command::Role { role: RoleCommand::Meta(args) } => child(roles::meta(&args.config)),
        Command::Role { role: RoleCommand::Session(args) } => child(roles::session(&args.config)),
        Command::Worker(args) => child(read(&args).and_then(|config| worker::run(&config))),
        Command::LimitSender(args) => child(read(&args).and_then(|config| ends::send(&config))),
        Command::LimitReceiver(args) => child(read(&args).and_then(|config| ends::receive(&config))),
    }
}

fn child(result: Result<()>) -> Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}

fn read<T: serde::de::DeserializeOwned>(args: &ChildArgs) -> Result<T> {
    Ok(serde_json::from_slice(&fs::read(&args.config)?)?)
}

fn drive(setting: &Setting, output: &Output, mut source: Source) -> Result<ExitCode> {
    if !setting.target.is_empty() {
        source.set_tag(run::fresh_tag());
    }
    // What is wrong with the input is found before anything is started, and is the caller's to mend.
    let workload = usage(source.build(0..0))?;
    let spec = setting.spec(source);
    usage(spec.disturbance.check(&workload))?;
    // A cluster of our own names the CPU, so that this is not missed here.
    Config::load(None, &[vec!["session.cpu=0".to_owned()], spec.settings.clone()].concat())?;
    let progress = Progress::new();
    let result = run::run(&spec, &workload, &progress);
    progress.finish();
    let outcome = result?;
    let verdict = Verdict::of(&outcome);
    say(table::of_run(&outcome, &verdict))?;
    write(output, &outcome, &verdict)?;
    Ok(if verdict.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Searches the highest good rate; see [`find_max`](loadgen::find_max).
fn find_max(args: &RunArgs) -> Result<ExitCode> {
    let source = args.source();
    let window = Duration::from(args.step_duration).as_nanos() as u64;
    let progress = Progress::new();
    let mut best: Option<(Outcome, Verdict)> = None;
    let mut bare = Vec::new();
    let rate = source.changes_per_sec().context("only a made-up run has a rate")?;
    let steps = find_max::search(rate, args.steps_max, |index, rate| {
        progress.say(&format!("step {}: {rate:.0} changes/s", index + 1));
        let source = source.at_rate(rate, window);
        let workload = source.build(0..0)?;
        let mut spec = args.setting.spec(source);
        spec.limit = spec.limit.filter(|_| index == 0);
        let mut outcome = run::run(&spec, &workload, &progress)?;
        if index == 0 {
            bare.clone_from(&outcome.limit);
        }
        outcome.limit.clone_from(&bare);
        let verdict = Verdict::of(&outcome);
        let step = Step::of(rate, &outcome, &verdict);
        progress.say(&format!(
            "step {}: {}, p999 {:.0} ms, {:.1} million pushes/min",
            index + 1,
            if step.is_good() { "good".into() } else { step.reasons.join(", ") },
            step.p999_ms,
            step.pushes_per_min / 1e6
        ));
        // The searched rates that are good only grow.
        if step.is_good() || best.is_none() {
            best = Some((outcome, verdict));
        }
        Ok(step)
    });
    progress.finish();
    let steps = steps?;
    say(table::of_steps(&steps))?;
    let found = find_max::best(&steps);
    if let (Some(path), Some((outcome, verdict))) = (&args.output.json, &best) {
        write_json(path, &json::of_find_max(&steps, outcome, verdict))?;
    }
    let path = chart_path(&args.output);
    chart::write_steps(&path, &steps).with_context(|| format!("cannot write {}", path.display()))?;
    say(format_args!("chart: {}", path.display()))?;
    Ok(if found.is_some() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Runs a grid of settings; see [`sweep`](loadgen::sweep).
fn sweep(args: &SweepArgs) -> Result<ExitCode> {
    if args.run.find_max {
        return usage(Err(anyhow!("a sweep compares runs of one rate: leave --find-max out")));
    }
    let axes = usage(args.vary.iter().map(|text| grid::axis(text)).collect::<Result<Vec<_>>>())?;
    let arguments = sweep::shared_arguments(std::env::args().skip_while(|it| it != "sweep").skip(1));
    let spec = SweepSpec { axes, arguments, repeats: args.repeats.into(), folder: args.into.clone() };
    let progress = Progress::new();
    let result =
        sweep::sweep(&spec, &progress, |settings, files| sweep::run_child(&spec.arguments, settings, files));
    progress.finish();
    let swept = result?;
    say(sweep::report::table(&spec.axes, &swept))?;
    say(sweep::report::recommendation(&spec.axes, &swept))?;
    let output = &args.run.output;
    let json = output.json.clone().unwrap_or_else(|| spec.folder.join("sweep.json"));
    write_json(&json, &sweep::report::json(&spec.axes, &swept))?;
    let chart = output.chart.clone().unwrap_or_else(|| json.with_extension("svg"));
    sweep::report::chart(&spec.axes, &swept, &chart)
        .with_context(|| format!("cannot write {}", chart.display()))?;
    say(format_args!("results: {}, chart: {}", json.display(), chart.display()))?;
    Ok(if swept.choice.is_some() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn links(args: &LinksArgs) -> Result<ExitCode> {
    let progress = Progress::new();
    let result = links::run(&args.spec(), &progress);
    progress.finish();
    let outcome = result?;
    let verdict = Verdict::of(&outcome);
    say(table::of_links(&outcome, &verdict))?;
    if let Some(path) = &args.json {
        write_json(path, &json::of_links(&outcome, &verdict))?;
    }
    Ok(if verdict.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn ingest(args: &IngestArgs) -> Result<ExitCode> {
    let progress = Progress::new();
    let result = ingest::run(&args.spec(), &progress);
    progress.finish();
    let outcome = result?;
    say(table::of_ingest(&outcome))?;
    if let Some(path) = &args.json {
        write_json(path, &json::of_ingest(&outcome))?;
    }
    Ok(if outcome.reasons().is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn chaos(args: &ChaosArgs) -> Result<ExitCode> {
    let may_cut = args.scenario == chaos::Scenario::Random && !args.no_partitions;
    if may_cut && Network::inside().is_none() && Network::is_permitted() {
        return Network::enter();
    }
    let (spec, load) = (args.spec(), args.load()?);
    let progress = Progress::new();
    if spec.scenario == chaos::Scenario::Random && spec.shape.metas == 1 {
        progress.say(
            "one process of the control plane, with a file: that another takes over, and that its etcd is away, is left out \
             (--meta 2, where etcd is installed)",
        );
    }
    if may_cut && Network::inside().is_none() {
        progress.say("network namespaces are not permitted here: that processes are cut off is left out");
    } else if may_cut && !Network::has_ways() {
        progress
            .say("tc is not installed: that a process is cut off from everybody on one way only is left out");
    }
    if let Some(load) = load {
        let workload = load.source.build(0..0)?;
        let result = chaos::loaded::run(&spec, &load, &workload, &progress);
        progress.finish();
        let outcome = result?;
        say(outcome.table())?;
        if let Some(path) = &args.json {
            write_json(path, &outcome.json(&spec)?)?;
        }
        return Ok(if outcome.is_good() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) });
    }
    let result = chaos::run(&spec, &progress);
    progress.finish();
    let outcome = result?;
    say(outcome.table())?;
    if let Some(path) = &args.json {
        write_json(path, &outcome.json(&spec))?;
    }
    Ok(if outcome.is_good() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn probe(args: &ProbeArgs) -> Result<ExitCode> {
    let progress = Progress::new();
    let result = probe::run(&args.spec(), &progress);
    progress.finish();
    let outcome = result?;
    say(outcome.table())?;
    if let Some(path) = &args.json {
        write_json(path, &outcome.json())?;
    }
    Ok(if outcome.is_good() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn write(output: &Output, outcome: &Outcome, verdict: &Verdict) -> Result<()> {
    if let Some(path) = &output.json {
        write_json(path, &json::of_run(outcome, verdict))?;
    }
    if let Some(path) = &output.hdr {
        delays::write(path, outcome)?;
    }
    let path = chart_path(output);
    chart::write(&path, outcome).with_context(|| format!("cannot write {}", path.display()))?;
    say(format_args!("chart: {}", path.display()))?;
    Ok(())
}

fn chart_path(output: &Output) -> PathBuf {
    let beside = output.json.as_ref().map(|json| json.with_extension("svg"));
    let temporary = || std::env::temp_dir().join(format!("loadgen-{}.svg", std::process::id()));
    output.chart.clone().or(beside).unwrap_or_else(temporary)
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn limit(args: &LimitArgs) -> Result<ExitCode> {
    let division = Division::new(&process::cores(), args.connections, None, args.workers);
    let folder = tempfile::Builder::new().prefix("loadgen-").tempdir()?;
    let progress = Progress::new();
    let frames =
        if args.frames_per_write.is_empty() { vec![1, limit::MERGED] } else { args.frames_per_write.clone() };
    let mut results = Vec::new();
    for frames_per_write in frames {
        let spec = LimitSpec {
            connections: args.connections,
            frame_bytes: args.frame_bytes,
            frames_per_write,
            duration: args.duration.into(),
            recv_buffers: RECV_BUFFERS,
            recv_buffer_bytes: RECV_BUFFER_BYTES,
            sockets: roles::client_sockets(&division, &[])?,
        };
        results.push(limit::measure(&spec, &division, folder.path(), &progress)?);
    }
    progress.finish();
    say(table::of_limit(&results))?;
    if let Some(path) = &args.json {
        write_json(path, &json::of_limit(&results, args.connections))?;
    }
    Ok(ExitCode::SUCCESS)
}
