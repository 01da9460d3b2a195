//! Waiting with a time limit, and signals.

use crate::nodes::progress::Progress;
use crate::say;
use anyhow::{Context, Result, bail, ensure};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Interval at which xenstore is polled.
pub const POLL: Duration = Duration::from_millis(50);
/// Time limit for a stub to export its devices.
pub const STUB_TIMEOUT: Duration = Duration::from_secs(15);
/// Time limit for a guest to connect, to let go of devices, to take new ones, or to be destroyed.
pub const GUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A wait tells what it waits for after the first time, and again after each of the others, or when that has changed.
const TOLD_FIRST: Duration = Duration::from_secs(5);
const TOLD_AGAIN: Duration = Duration::from_secs(20);

/// The time limit of a wait is over.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("gave up after {} s: {what}", .timeout.as_secs())]
pub struct TimedOut {
    timeout: Duration,
    /// What was still waited for.
    pub what: String,
}

/// Polls until the progress is `Connected`. Fails if it is `Failed`, after `timeout` ([`TimedOut`]), and at a signal.
pub fn wait(
    timeout: Duration,
    interrupt: &Interrupt,
    mut poll: impl FnMut() -> Result<Progress>,
) -> Result<()> {
    let began = Instant::now();
    // `None` for a time that `Instant` cannot express: no limit.
    let deadline = began.checked_add(timeout);
    let mut news = WaitNews::default();
    loop {
        interrupt.check()?;
        match poll()? {
            Progress::Connected => return Ok(()),
            Progress::Failed(why) => bail!("{why}"),
            Progress::Waiting(what) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                return Err(TimedOut { timeout, what }.into());
            }
            Progress::Waiting(what) => {
                let waited = began.elapsed();
                if news.is_due(waited, &what) {
                    let limit = deadline.map(|_| format!(" of {} s", timeout.as_secs()));
                    let limit = limit.unwrap_or_default();
                    say::progress(format_args!("waiting, {} s{limit}: {what}", waited.as_secs()));
                }
                thread::sleep(POLL);
            }
        }
    }
}

/// What a wait has told, and when.
#[derive(Debug, Default)]
struct WaitNews {
    last: Option<(Duration, String)>,
}

impl WaitNews {
    /// True if it is time to tell what is waited for.
    fn is_due(&mut self, waited: Duration, what: &str) -> bool {
        let is_due = waited >= TOLD_FIRST
            && self
                .last
                .as_ref()
                .is_none_or(|(when, told)| told != what || waited.saturating_sub(*when) >= TOLD_AGAIN);
        if is_due {
            self.last = Some((waited, what.to_owned()));
        }
        is_due
    }
}

/// A signal to end: SIGINT (Ctrl-C), SIGTERM, or SIGHUP (the terminal is gone). Commands check for it between two steps, so that
/// no step is left half done.
#[derive(Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches the signals from now on. Ignored signals stay ignored, as `nohup` wants. `Interrupt::default()` catches none.
    pub fn catch() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        let ignored = fs::read_to_string("/proc/self/status").map_or(0, |status| ignored(&status));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            if ignored & 1 << (signal - 1) == 0 {
                signal_hook::flag::register(signal, Arc::clone(&flag)).context("cannot catch signals")?;
            }
        }
        Ok(Self(flag))
    }

    /// Fails if a signal has come.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.0.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }
}

/// Mask of the signals that a process ignores, from its `/proc/PID/status`. Bit 0 is signal 1.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting() -> Result<Progress> {
        Ok(Progress::Waiting("guest web is slow".into()))
    }

    #[test]
    fn a_wait_ends_with_what_was_waited_for() {
        let error = wait(Duration::ZERO, &Interrupt::default(), waiting).unwrap_err();
        assert_eq!(error.to_string(), "gave up after 0 s: guest web is slow");
        assert_eq!(error.downcast::<TimedOut>().unwrap().what, "guest web is slow");
        let mut polls = 0;
        let failed = wait(Duration::from_secs(9), &Interrupt::default(), || {
            polls += 1;
            match polls {
                1 => waiting(),
                _ => Ok(Progress::Failed("it has ended".into())),
            }
        });
        let error = failed.unwrap_err();
        assert!(error.to_string() == "it has ended" && error.downcast::<TimedOut>().is_err());
    }

    #[test]
    fn a_long_wait_tells_what_it_waits_for_when_that_changes_and_now_and_then() {
        let mut news = WaitNews::default();
        let mut due = |seconds, what| news.is_due(Duration::from_secs(seconds), what);
        assert!(!due(4, "the stub"));
        assert!(due(5, "the stub"));
        assert!(!due(6, "the stub"));
        assert!(due(7, "the guest"));
        assert!(!due(26, "the guest"));
        assert!(due(27, "the guest"));
    }

    #[test]
    fn the_longest_wait_that_can_be_asked_for_is_no_panic() {
        let mut polls = 0;
        let longest = Duration::from_secs(u64::MAX);
        let connected = wait(longest, &Interrupt::default(), || {
            polls += 1;
            if polls < 3 {
                waiting()
            } else {
                Ok(Progress::Connected)
            }
        });
        connected.unwrap();
        assert_eq!(polls, 3);
    }

    #[test]
    fn a_signal_ends_a_wait() {
        let interrupt = Interrupt::catch().unwrap();
        interrupt.check().unwrap();
        // The others are ignored below `nohup`, and in the background of a shell.
        signal_hook::low_level::raise(SIGTERM).unwrap();
        let error = wait(Duration::from_secs(9), &interrupt, waiting).unwrap_err();
        assert_eq!(error.to_string(), "interrupted");
    }

    #[test]
    fn ignored_signals_are_read() {
        assert_eq!(
            ignored("SigBlk:\t0000\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"),
            0x1001
        );
        assert_eq!(ignored(""), 0);
    }
}
