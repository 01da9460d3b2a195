//! The program that this process runs.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// A command that runs this program again: the very file, also when another one has taken its name meanwhile, as when a
/// package is upgraded.
pub fn own() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("bulkhead");
    command
}

/// The variable in the environment of a command that the service has ordered: such a command starts no service, for the one
/// that it belongs to may be about to end.
pub const ORDERED: &str = "BULKHEAD_ORDERED";
