//! The service under systemd: starts its unit, and notifies systemd that it is ready.

use crate::paths::LOG;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::Command;
use thiserror::Error;

/// The unit of the service.
pub const UNIT: &str = "bulkhead.service";
/// The unit that seizes devices at boot.
pub const SEIZE_UNIT: &str = "bulkhead-seize.service";
/// Directory that exists if systemd is the host's first process (`sd_booted`).
const BOOTED: &str = "/run/systemd/system";
/// Environment variable with the socket on which the service says that it is ready (`sd_notify`).
const NOTIFY: &str = "NOTIFY_SOCKET";

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
    Path::new(BOOTED).exists()
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

fn load_state(shown: &[u8]) -> Unit {
    match shown.trim_ascii() {
        b"loaded" => Unit::Loaded,
        b"masked" => Unit::Masked,
        _ => Unit::Missing,
    }
}

/// Says that the service is ready, if the process that started it asks for that.
pub fn notify_ready() -> io::Result<()> {
    std::env::var_os(NOTIFY).map_or(Ok(()), |socket| notify(&socket, b"READY=1"))
}

fn notify(socket: &OsStr, message: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes() {
        // `@` stands for the zero byte of an abstract socket (`sd_notify`).
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let datagram = UnixDatagram::unbound()?;
    datagram.send_to_addr(message, &address)?;
    Ok(())
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
    fn whoever_wants_to_know_hears_that_the_service_is_ready() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("bulkhead-test-{}", std::process::id());
        let listeners = [
            (path.as_os_str().to_owned(), UnixDatagram::bind(&path).unwrap()),
            (
                format!("@{name}").into(),
                UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
            ),
        ];
        for (address, listener) in listeners {
            notify(&address, b"READY=1").unwrap();
            let mut heard = [0; 64];
            let length = listener.recv(&mut heard).unwrap();
            assert_eq!(&heard[..length], b"READY=1");
        }
        assert!(notify(OsStr::new("/nonexistent/notify"), b"READY=1").is_err());
    }
}
