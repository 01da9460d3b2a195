//! The service under systemd: starts its unit, and notifies systemd that it is ready, and that it does not hang.

use crate::paths::LOG;
use sd_notify::NotifyState;
use std::io;
use std::process::Command;
use std::time::{Duration, Instant};
use thiserror::Error;

/// The unit of the service.
pub const UNIT: &str = "bulkhead.service";
/// The unit that seizes devices at boot.
pub const SEIZE_UNIT: &str = "bulkhead-seize.service";

/// The unit of Xen's script that starts guests at boot, and saves or shuts down all guests when it is stopped.
pub const XENDOMAINS: &str = "xendomains.service";

/// Why the unit was not started.
#[derive(Debug, Error)]
pub enum UnitError {
    /// The unit is masked.
    #[error("the unit {UNIT} is masked: `systemctl unmask {UNIT}` lets the service start")]
    Masked,
    /// `systemctl start` failed.
    #[error("`systemctl start {UNIT}` failed ({0}): `systemctl status {UNIT}` says why")]
    Start(String),
}

/// The unit's state in systemd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Loaded,
    Masked,
    /// The unit is not installed.
    Missing,
}

/// Starts the unit, and waits until the service is ready; false if there is no systemd or no unit.
pub fn start_unit() -> Result<bool, UnitError> {
    if !is_booted() {
        return Ok(false);
    }
    let shown = Command::new("systemctl")
        .args(["show", "--property=LoadState", "--value", UNIT])
        .output();
    // A host without systemctl has no unit either.
    let known = shown.map_or(Unit::Missing, |shown| load_state(&shown.stdout));
    match known {
        Unit::Missing => return Ok(false),
        Unit::Masked => return Err(UnitError::Masked),
        Unit::Loaded => {}
    }
    let started = Command::new("systemctl").args(["start", UNIT]).status();
    let started = started.map_err(|error| UnitError::Start(error.to_string()))?;
    if started.success() {
        Ok(true)
    } else {
        Err(UnitError::Start(started.to_string()))
    }
}

/// True if systemd is the host's first process.
pub fn is_booted() -> bool {
    sd_notify::booted().unwrap_or(false)
}

/// Where the service's log is.
pub fn service_log() -> String {
    if is_booted() {
        format!("`journalctl -u {UNIT}`")
    } else {
        LOG.to_owned()
    }
}

/// Whether a unit starts at boot, in systemd's words: `enabled`, `disabled`, `masked`, `not-found` and others.
pub fn enablement(unit: &str) -> String {
    let told = Command::new("systemctl").args(["is-enabled", unit]).output();
    // Older ones say on standard error that there is no such unit.
    let word = told.map_or_else(
        |_| String::new(),
        |told| String::from_utf8_lossy(&told.stdout).trim().to_owned(),
    );
    if word.is_empty() { "not-found".into() } else { word }
}

/// True if the start of one unit stops the other one, and the first one is installed.
pub fn stops(unit: &str, other: &str) -> bool {
    let shown = Command::new("systemctl")
        .args(["show", "--property=Conflicts,ConflictedBy", "--value", unit])
        .output();
    shown.is_ok_and(|shown| lists(&shown.stdout, other))
}

fn lists(shown: &[u8], unit: &str) -> bool {
    String::from_utf8_lossy(shown)
        .split_whitespace()
        .any(|word| word == unit)
}

fn load_state(shown: &[u8]) -> Unit {
    match shown.trim_ascii() {
        b"loaded" => Unit::Loaded,
        b"masked" => Unit::Masked,
        _ => Unit::Missing,
    }
}

/// Says that the service is ready, if the process that started it asks for that.
pub fn notify_ready() -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Ready])
}

/// Says that the service ends because it was told to, or because it cannot go on.
pub fn notify_stopping() -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Stopping])
}

/// Says that the service does not hang.
pub fn notify_alive() -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Watchdog])
}

/// When to say that the service does not hang, if its unit asks for that (`WatchdogSec`). Time is an argument.
#[derive(Debug)]
pub struct Watchdog {
    /// None without a supervisor that waits for it.
    interval: Option<Duration>,
    next: Instant,
}

impl Watchdog {
    /// As this process was started.
    pub fn of_unit(now: Instant) -> Self {
        Self::within(sd_notify::watchdog_enabled(), now)
    }

    /// For a supervisor that kills after a silence of `limit`.
    pub fn within(limit: Option<Duration>, now: Instant) -> Self {
        Self {
            // More than one in each limit, for one may be late on a busy host.
            interval: limit.map(|limit| limit / 4),
            next: now,
        }
    }

    /// True if it is time, which then counts as done.
    pub fn is_due(&mut self, now: Instant) -> bool {
        match self.interval {
            Some(interval) if now >= self.next => {
                self.next = now + interval;
                true
            }
            _ => false,
        }
    }

    /// Time until it is due.
    pub fn idle(&self, now: Instant) -> Option<Duration> {
        self.interval.map(|_| self.next.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_that_is_not_loaded_is_none_of_ours() {
        assert_eq!(load_state(b"loaded\n"), Unit::Loaded);
        assert_eq!(load_state(b"masked\n"), Unit::Masked);
        for other in [&b"not-found\n"[..], b"bad-setting", b"error\n", b""] {
            assert_eq!(load_state(other), Unit::Missing);
        }
    }

    #[test]
    fn a_unit_is_found_among_those_that_another_one_stops() {
        assert!(lists(b"shutdown.target xendomains.service\n", XENDOMAINS));
        for shown in [&b"shutdown.target\n"[..], b"my-xendomains.service\n", b"\n"] {
            assert!(!lists(shown, XENDOMAINS));
        }
    }

    #[test]
    fn a_supervisor_that_waits_is_told_several_times_within_its_limit() {
        let now = Instant::now();
        let mut watchdog = Watchdog::within(Some(Duration::from_secs(30)), now);
        assert!(watchdog.is_due(now));
        assert!(!watchdog.is_due(now));
        let interval = watchdog.idle(now).unwrap();
        assert!(interval * 3 < Duration::from_secs(30), "two may be late");
        assert!(watchdog.is_due(now + interval));
        // One that was late is not made up for.
        assert!(watchdog.is_due(now + interval * 10));
        assert!(!watchdog.is_due(now + interval * 10));
    }

    #[test]
    fn without_one_nothing_is_ever_due() {
        let now = Instant::now();
        let mut watchdog = Watchdog::within(None, now);
        assert!(!watchdog.is_due(now + Duration::from_secs(1000)));
        assert_eq!(watchdog.idle(now), None);
    }
}
