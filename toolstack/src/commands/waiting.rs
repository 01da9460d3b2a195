//! Waiting for others, with an end, and signals.

use crate::nodes::progress::Progress;
use anyhow::{Context, Result, bail, ensure};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use thiserror::Error;

/// How often xenstore is looked at while something is waited for.
pub const POLL: Duration = Duration::from_millis(50);
/// How long a stub may take to export its devices.
pub const STUB_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a guest may take to connect, to let go of devices, to look for new ones, or to be cleared away.
pub const GUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How long something was waited for in vain.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("gave up after {} s: {what}", .timeout.as_secs())]
pub struct TimedOut {
    timeout: Duration,
    /// What was still waited for.
    pub what: String,
}

/// Looks again and again until it is done, will not happen, or has taken too long ([`TimedOut`]).
pub fn wait(
    timeout: Duration,
    interrupt: &Interrupt,
    mut look: impl FnMut() -> Result<Progress>,
) -> Result<()> {
    // None if that is later than time goes.
    let deadline = Instant::now().checked_add(timeout);
    loop {
        interrupt.check()?;
        match look()? {
            Progress::Connected => return Ok(()),
            Progress::Failed(why) => bail!("{why}"),
            Progress::Waiting(what) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                return Err(TimedOut { timeout, what }.into());
            }
            Progress::Waiting(_) => thread::sleep(POLL),
        }
    }
}

/// Ctrl-C, SIGTERM, and SIGHUP, which comes when the terminal goes away; seen between two steps.
#[derive(Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on the signals are caught; the default catches none. Those that are ignored stay so: `nohup` asks for
    /// that.
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

/// The signals that a process ignores, one bit each, from its `/proc/PID/status`.
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
        let mut looks = 0;
        let failed = wait(Duration::from_secs(9), &Interrupt::default(), || {
            looks += 1;
            match looks {
                1 => waiting(),
                _ => Ok(Progress::Failed("it has ended".into())),
            }
        });
        let error = failed.unwrap_err();
        assert!(error.to_string() == "it has ended" && error.downcast::<TimedOut>().is_err());
    }

    #[test]
    fn the_longest_wait_that_can_be_asked_for_is_no_panic() {
        let mut looks = 0;
        let longest = Duration::from_secs(u64::MAX);
        let connected = wait(longest, &Interrupt::default(), || {
            looks += 1;
            if looks < 3 {
                waiting()
            } else {
                Ok(Progress::Connected)
            }
        });
        connected.unwrap();
        assert_eq!(looks, 3);
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
