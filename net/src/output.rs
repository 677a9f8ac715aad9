//! What a program is told on its command line, prints, writes and ends with: the same for all of them.

use std::{
    fmt::Display,
    fs::OpenOptions,
    io::{self, ErrorKind, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::{Command, CommandFactory, FromArgMatches};

/// Exit status when what was asked for failed.
pub const FAILED: u8 = 1;
/// Exit status when it could not be begun: a mistake in arguments, configuration or input.
pub const USAGE: u8 = 2;

/// A mistake in arguments, configuration or input: nothing was begun.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(String);

/// Takes an error for a mistake of whoever called, so that [`end`] ends with [`USAGE`].
pub fn usage<T>(result: anyhow::Result<T>) -> anyhow::Result<T> {
    result.map_err(|error| UsageError(format!("{error:#}")).into())
}

/// The exit status of a program; an error is printed in one line, without a backtrace.
pub fn end(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        complain(format_args!("error: {error:#}"));
        ExitCode::from(if error.is::<UsageError>() { USAGE } else { FAILED })
    })
}

/// Prints a line. That nobody reads any more (`| head`) is no error: what goes to files still goes there.
pub fn say(text: impl Display) -> io::Result<()> {
    print(format_args!("{text}\n"))
}

/// Prints text as it is, otherwise like [`say`].
pub fn print(text: impl Display) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// A line on standard error, if anybody reads it.
pub fn complain(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The command line. `-5` where a number is wanted is a number, so that the answer is the range.
pub fn arguments<C: CommandFactory + FromArgMatches>() -> C {
    let matches = with_negative_numbers(C::command()).get_matches();
    C::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// Lets the options of a command and all below it take negative numbers, for their ranges to refuse them.
pub fn with_negative_numbers(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        let takes = arg.get_long().is_some() && arg.get_action().takes_values();
        if takes { arg.allow_negative_numbers(true) } else { arg }
    });
    command.mut_subcommands(with_negative_numbers)
}

/// Finds out before long work whether its files can be written at its end. A file that is there keeps what is in it, and none
/// is made. The error is a [`UsageError`].
pub fn check_files<'p>(paths: impl IntoIterator<Item = &'p Path>) -> anyhow::Result<()> {
    let check = |path: &Path| -> anyhow::Result<()> {
        ensure!(!path.is_dir(), "it is a directory");
        if path.exists() {
            OpenOptions::new().append(true).open(path)?;
            return Ok(());
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        ensure!(folder.is_dir(), "there is no directory {}", folder.display());
        tempfile::tempfile_in(folder).map(|_| ()).map_err(|error| anyhow::anyhow!("{}", error.kind()))
    };
    let all = |path: &Path| check(path).with_context(|| format!("cannot write {}", path.display()));
    usage(paths.into_iter().try_for_each(all))
}

/// Finds out whether sessions listen where clients are to connect.
pub fn check_sessions(targets: &[SocketAddr], patience: Duration) -> anyhow::Result<()> {
    for target in targets {
        if let Err(error) = TcpStream::connect_timeout(target, patience) {
            bail!(
                "nothing listens on {target} ({}); --target is a session's client address (session.listen, default 7600)",
                error.kind()
            );
        }
    }
    Ok(())
}

/// Why a process cannot listen at an address, and what to do.
pub fn why_not_listening(addr: SocketAddr, kind: ErrorKind) -> String {
    let why = match kind {
        ErrorKind::AddrInUse => "is another process running there?",
        ErrorKind::AddrNotAvailable => "no interface here has that address",
        ErrorKind::PermissionDenied if addr.port() < 1024 => "ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => return format!("cannot listen on {addr}"),
    };
    format!("cannot listen on {addr}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_looked_at_before_and_left_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (there, new) = (dir.path().join("there"), dir.path().join("new"));
        std::fs::write(&there, "kept").unwrap();
        check_files([there.as_path(), &new]).unwrap();
        assert_eq!((std::fs::read_to_string(&there).unwrap().as_str(), new.exists()), ("kept", false));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        for (path, words) in [
            (dir.path().join("no/such"), "there is no directory"),
            (dir.path().to_owned(), "it is a directory"),
        ] {
            let error = check_files([path.as_path()]).unwrap_err();
            assert!(error.is::<UsageError>() && error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn what_keeps_from_listening_is_told_apart() {
        let addr = |port| SocketAddr::from(([127, 0, 0, 1], port));
        for (kind, port, words) in [
            (ErrorKind::AddrInUse, 7600, "another process"),
            (ErrorKind::AddrNotAvailable, 7600, "no interface"),
            (ErrorKind::PermissionDenied, 80, "CAP_NET_BIND_SERVICE"),
        ] {
            let said = why_not_listening(addr(port), kind);
            assert!(said.contains(words) && said.contains(&addr(port).to_string()), "{said}");
        }
        assert!(!why_not_listening(addr(7600), ErrorKind::PermissionDenied).contains("CAP_"));
    }

    #[test]
    fn a_session_that_is_not_there_is_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap();
        check_sessions(&[addr], Duration::from_secs(3)).unwrap();
        drop(taken);
        let said = check_sessions(&[addr], Duration::from_secs(3)).unwrap_err().to_string();
        assert!(said.contains(&format!("nothing listens on {addr} (connection refused)")), "{said}");
    }
}
