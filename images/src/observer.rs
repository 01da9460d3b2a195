//! Progress of the rig: shown on a terminal, or not at all.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Receives the rig's progress, and may ask the rig to stop.
pub trait Observer {
    /// A new step begins.
    fn phase(&mut self, what: &str);

    /// `done` of `total` bytes of the current step are there.
    fn bytes(&mut self, done: u64, total: u64);

    /// The script in dom0 printed this.
    fn output(&mut self, bytes: &[u8]);

    /// Whether the run should end now.
    fn cancelled(&self) -> bool;
}

/// Shows nothing.
#[derive(Debug, Default)]
pub struct Quiet;

impl Observer for Quiet {
    fn phase(&mut self, _what: &str) {}

    fn bytes(&mut self, _done: u64, _total: u64) {}

    fn output(&mut self, _bytes: &[u8]) {}

    fn cancelled(&self) -> bool {
        false
    }
}

/// Shows steps on stderr, and the script's output on stdout. If stderr is no terminal, each step is one line.
#[derive(Debug)]
pub struct Terminal {
    bar: ProgressBar,
    plain: bool,
    cancel: Arc<AtomicBool>,
}

impl Terminal {
    /// Shows progress until dropped; a run ends early once `cancel` is set.
    pub fn new(cancel: Arc<AtomicBool>) -> Self {
        let plain = !io::stderr().is_terminal();
        let bar = if plain {
            ProgressBar::hidden()
        } else {
            ProgressBar::new_spinner()
        };
        bar.enable_steady_tick(Duration::from_millis(120));
        Terminal { bar, plain, cancel }
    }

    fn style(&self, template: &str) {
        // If the template did not parse, the default would only look plainer.
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
    }
}

impl Observer for Terminal {
    fn phase(&mut self, what: &str) {
        if self.plain {
            eprintln!("rig: {what}");
        }
        self.bar.reset_elapsed();
        self.style("{spinner} {msg} [{elapsed}]");
        self.bar.set_message(what.to_owned());
    }

    fn bytes(&mut self, done: u64, total: u64) {
        self.style("{spinner} {msg} {wide_bar} {bytes}/{total_bytes}");
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    fn output(&mut self, bytes: &[u8]) {
        self.bar.suspend(|| {
            let mut stdout = io::stdout().lock();
            // A closed stdout does not end the run: its logs are still wanted.
            let _ = stdout.write_all(bytes).and_then(|()| stdout.flush());
        });
    }

    fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
