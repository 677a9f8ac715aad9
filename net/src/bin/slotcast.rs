//! The server binary: `slotcast standalone | data | session | meta | local | ctl | check-config | check-data`.

use std::{
    io::{IsTerminal, stderr},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::ensure;
use clap::{Args, Parser, Subcommand};
use slotcast_engine::limits::SLOTS_DEFAULT;
use slotcast_net::{
    allocator::Allocator,
    config::Config,
    ctl::Ctl,
    data::{salvage::salvage_data, storage::check_data},
    local::Local,
    output::{self, print, usage},
    process::{DataProcess, MetaProcess, SessionProcess, end_with, wait_for_end},
};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// A service registry that pushes incremental diffs.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// All roles in one process.
    Standalone(Settings),
    /// A data node.
    Data(Settings),
    /// A session process.
    Session(Settings),
    /// A process of the control plane.
    Meta(Settings),
    /// A cluster on this machine, to try things out.
    Local(Local),
    /// Reads a data directory as a node would, says what is in it or what is wrong with it, and changes nothing in it.
    CheckData {
        /// The directory.
        dir: PathBuf,
        /// Slots of the cluster that wrote it.
        #[arg(long, default_value_t = SLOTS_DEFAULT)]
        slot_count: u32,
        /// Writes what is good in a damaged directory into this one, which must not exist, and lists by file and offset what
        /// is not. The damaged one is not changed.
        #[arg(long, value_name = "OUT")]
        salvage: Option<PathBuf>,
    },
    /// Asks a running process, or tells it something, over HTTP.
    Ctl(Ctl),
    /// Reads and checks a configuration and prints it with all defaults filled in.
    CheckConfig(Settings),
}

#[derive(Args)]
struct Settings {
    /// Configuration file (TOML); every key has a default.
    #[arg(long)]
    config: Option<PathBuf>,
    /// One value over the file, such as `--set session.push_batch_max=16`; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Process that started this one: when it ends, so does this, at once.
    #[arg(long, value_name = "PID", hide = true)]
    end_with: Option<u32>,
}

fn main() -> ExitCode {
    output::end(run().map(|()| ExitCode::SUCCESS))
}

fn run() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(stderr().is_terminal())
        .with_writer(stderr)
        .init();
    match output::arguments::<Cli>().role {
        Role::Standalone(settings) => {
            let config = settings.load()?;
            usage(check_standalone(&config))?;
            let data = DataProcess::start(&config)?;
            let session = SessionProcess::start(&config, None)?;
            println!(
                "ready: clients {}, data http {}, session http {}",
                session.server.addr, data.admin.addr, session.admin.addr
            );
            wait_for_end(|| data.server.is_finished() || session.server.is_finished())?;
            session.server.stop()?;
            data.server.end()
        }
        Role::Data(settings) => {
            let data = DataProcess::start(&settings.load()?)?;
            println!("ready: shards {:?}, http {}", data.server.addrs, data.admin.addr);
            wait_for_end(|| data.server.is_finished())?;
            data.server.end()
        }
        Role::Session(settings) => {
            let session = SessionProcess::start(&settings.load()?, None)?;
            println!("ready: clients {}, http {}", session.server.addr, session.admin.addr);
            wait_for_end(|| session.server.is_finished())?;
            session.server.stop()
        }
        Role::Meta(settings) => {
            let meta = MetaProcess::start(&settings.load()?)?;
            println!("ready: peers {}, http {}", meta.server.addr, meta.admin.addr);
            wait_for_end(|| meta.server.is_finished())?;
            meta.server.stop()
        }
        Role::Local(local) => local.run(),
        Role::CheckData { dir, slot_count, salvage } => {
            let text = match salvage {
                Some(out) => salvage_data(&dir, slot_count, &out)?,
                None => check_data(&dir, slot_count)?,
            };
            Ok(print(text)?)
        }
        Role::Ctl(ctl) => Ok(print(ctl.run()?)?),
        Role::CheckConfig(settings) => {
            let config = settings.load()?;
            usage(config.data_options())?;
            usage(config.session_options())?;
            usage(config.meta_options())?;
            Ok(print(toml::to_string(&config)?)?)
        }
    }
}

fn check_standalone(config: &Config) -> anyhow::Result<()> {
    let nodes = config.nodes.len();
    ensure!(nodes == 1, "standalone runs one data node, the configuration has {nodes}");
    config.data_options().map(|_| ())
}

impl Settings {
    fn load(&self) -> anyhow::Result<Config> {
        self.end_with.map_or(Ok(()), end_with)?;
        Config::load(self.config.as_deref(), &self.set)
    }
}
