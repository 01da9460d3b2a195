//! Programs of this machine, which Debian's packages bring if they are missing.

use crate::apt::output_of;
use crate::observer::Observer;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// Where Debian has the programs for administrators.
const SYSTEM_PROGRAMS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Installs the package of a program that is not on the search path.
///
/// # Errors
/// That takes root without a password, or apt-get fails. The command to run by hand is in the error.
pub fn ensure(program: &str, package: &str, observer: &mut dyn Observer) -> Result<()> {
    if find_program(program).is_some() {
        return Ok(());
    }
    let by_hand = format!("apt-get update && apt-get install --no-install-recommends {package}");
    let Some(privilege) = as_root() else {
        bail!("{program} is missing, and installing it takes root: run '{by_hand}'");
    };
    observer.phase(&format!("installing the package {package}"));
    let steps: [&[&str]; 2] = [
        &["update"],
        &["install", "--yes", "--no-install-recommends", package],
    ];
    for step in steps {
        let words: Vec<&str> = privilege
            .iter()
            .chain(&["apt-get", "-qq"])
            .chain(step)
            .copied()
            .collect();
        output_of(
            Command::new(words[0])
                .args(&words[1..])
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
        .with_context(|| format!("{program} is missing, and '{by_hand}' failed"))?;
    }
    Ok(())
}

/// The words that go before a command to run it as root; `None` if there is no way to do so without a password.
pub fn as_root() -> Option<&'static [&'static str]> {
    if rustix::process::geteuid().is_root() {
        Some(&[])
    } else if find_program("sudo").is_some() {
        Some(&["sudo", "-n"])
    } else {
        None
    }
}

/// Where a program is on the search path, or among the system's programs, which the search path of an ordinary user may
/// lack.
pub fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .chain(SYSTEM_PROGRAMS.map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}
