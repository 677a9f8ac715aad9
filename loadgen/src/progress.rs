//! The progress bar; plain lines where there is no terminal.

use std::{
    io::{IsTerminal, stderr},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use slotcast_net::output::complain;

/// See the module.
pub struct Progress {
    bar: ProgressBar,
    is_terminal: bool,
}

impl Progress {
    /// A bar on standard error.
    pub fn new() -> Self {
        let bar = ProgressBar::new(1);
        if let Ok(style) =
            ProgressStyle::with_template("{elapsed_precise} {prefix:<12} {bar:40} {percent:>3}% {msg}")
        {
            bar.set_style(style);
        }
        let is_terminal = stderr().is_terminal();
        if is_terminal {
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        Self { bar, is_terminal }
    }

    /// Starts another part of the work.
    pub fn phase(&self, name: &str, length: u64) {
        self.bar.set_length(length.max(1));
        self.bar.set_position(0);
        self.bar.set_message("");
        self.bar.set_prefix(name.to_owned());
        if !self.is_terminal {
            complain(format_args!("{name} ..."));
        }
    }

    /// Tells how far it is.
    pub fn at(&self, position: u64, message: impl FnOnce() -> String) {
        if self.is_terminal {
            self.bar.set_position(position);
            self.bar.set_message(message());
        }
    }

    /// Says something that stays.
    pub fn say(&self, text: &str) {
        if self.is_terminal { self.bar.println(text) } else { complain(text) }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}
