//! The program that this process runs.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// This program's file. That of a test would run tests.
const FILE: &str = if cfg!(test) {
    "/nonexistent/bulkhead"
} else {
    "/proc/self/exe"
};

/// A command that runs this program again: the same file, even if another one has its name by now, as after the
/// upgrade of a package.
pub fn own() -> Command {
    let mut command = Command::new(FILE);
    command.arg0("bulkhead");
    command
}

/// Environment variable of a command that the service has ordered. Such a command starts no service: the one that
/// ordered it may be about to end.
pub const ORDERED: &str = "BULKHEAD_ORDERED";
