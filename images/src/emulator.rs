//! QEMU: the host's own, or a newer one from packages of a later Debian release.
//!
//! The host's QEMU may be too old for a test's devices (QEMU 7.2 of Debian 12 has no card with virtual functions). The
//! newer QEMU is not installed. Its program, libraries and firmware are in one directory of the cache, and its own
//! dynamic loader starts it with these libraries alone.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result};

use crate::elf::{Libraries, needed};
use crate::installed::{self, find_program};
use crate::observer::Observer;
use crate::packages::Packages;
use crate::store::{cache_dir, read, sha256};
use crate::suite::Suite;

/// The emulator's program.
const QEMU: &str = "qemu-system-x86_64";
/// The dynamic loader of x86-64, as the System V ABI names it.
const LOADER: &str = "ld-linux-x86-64.so.2";

/// Which QEMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// The one on the search path; Debian's package is installed if there is none.
    #[default]
    Host,
    /// QEMU 10, of Debian 13: it has `igb`, a network card with virtual functions.
    Ten,
}

const VERSIONS: [(Version, &str); 2] = [(Version::Host, "host"), (Version::Ten, "10")];

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = VERSIONS.iter().find(|(version, _)| version == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let version = VERSIONS.iter().find(|(_, name)| *name == text);
        version
            .map(|(version, _)| *version)
            .ok_or_else(|| format!("no QEMU is called {text}: take host or 10"))
    }
}

/// Where QEMU 10 comes from.
const SUITE: Suite = Suite::Trixie;
/// Its packages: the program, and firmware.
const PACKAGES: [&str; 4] = ["qemu-system-x86", "qemu-system-data", "seabios", "ipxe-qemu"];
/// Directories of firmware below an unpacked root.
const FIRMWARE_DIRS: [&str; 3] = ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"];
/// The firmware that a machine of the rig loads: the BIOS, the loader of multiboot kernels, and the ROMs of cards.
const FIRMWARE: [&str; 9] = [
    "bios-256k.bin",
    "kvmvapic.bin",
    "linuxboot_dma.bin",
    "multiboot_dma.bin",
    "efi-e1000.rom",
    "efi-e1000e.rom",
    "efi-rtl8139.rom",
    "efi-virtio.rom",
    "efi-vmxnet3.rom",
];

/// A QEMU that can be started.
#[derive(Debug)]
pub struct Emulator {
    /// The program, and the arguments that come first.
    words: Vec<OsString>,
}

impl Emulator {
    /// Installs or fetches a QEMU, unless it is there already.
    ///
    /// # Errors
    /// The host's is missing and cannot be installed without asking (the command to run is in the error), or the
    /// packages of a newer one cannot be fetched.
    pub fn prepare(version: Version, observer: &mut dyn Observer) -> Result<Emulator> {
        match version {
            Version::Host => {
                installed::ensure(QEMU, "qemu-system-x86", observer)?;
                Ok(Emulator {
                    words: vec![QEMU.into()],
                })
            }
            Version::Ten => Emulator::of_packages(observer),
        }
    }

    fn of_packages(observer: &mut dyn Observer) -> Result<Emulator> {
        let name = format!("qemu-{}", Version::Ten);
        let recipe = sha256(format!("{PACKAGES:?} {FIRMWARE_DIRS:?} {FIRMWARE:?}").as_bytes());
        let packages = PACKAGES.map(str::to_owned).to_vec();
        let packages = Packages::new(&name, SUITE, packages, &cache_dir().join(&name));
        let built = packages.build(&recipe, observer, contents)?;
        let loader = built.path(LOADER);
        fs::set_permissions(&loader, Permissions::from_mode(0o755))
            .with_context(|| format!("making {} executable", loader.display()))?;
        let dir = || built.dir().as_os_str().to_owned();
        Ok(Emulator {
            words: vec![
                loader.into(),
                "--library-path".into(),
                dir(),
                built.path(QEMU).into(),
                "-L".into(),
                dir(),
            ],
        })
    }

    /// The command to which the machine's arguments are added. If the host has the program for it, QEMU ends with the
    /// rig even if the rig is killed.
    pub fn command(&self) -> Command {
        let guard: &[&str] = match find_program("setpriv") {
            Some(_) => &["setpriv", "--pdeathsig", "KILL"],
            None => &[],
        };
        let mut words = guard.iter().map(OsString::from).chain(self.words.iter().cloned());
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        command
    }
}

/// The program, every library that it needs, and the firmware, in one directory without any below it.
fn contents(root: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let program = read(&root.join("usr/bin").join(QEMU))?;
    let libraries = Libraries::of(root)?.closure(needed(&program)?)?;
    let mut files = vec![(QEMU.to_owned(), program)];
    for (name, path) in libraries {
        files.push((name, read(&path)?));
    }
    for name in FIRMWARE {
        let mut paths = FIRMWARE_DIRS.iter().map(|dir| root.join(dir).join(name));
        let path = paths.find(|path| path.is_file());
        let path = path.with_context(|| format!("no package has the firmware {name}"))?;
        files.push((name.to_owned(), read(&path)?));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_is_found_by_its_name() {
        for (version, name) in VERSIONS {
            assert_eq!(version.to_string().parse(), Ok(version));
            assert_eq!(version.to_string(), name);
        }
    }

    #[test]
    fn an_unknown_version_is_answered_with_the_known_ones() {
        let error = "9".parse::<Version>().expect_err("there is none");
        assert_eq!(error, "no QEMU is called 9: take host or 10");
    }

    #[test]
    fn the_arguments_of_the_machine_come_last() {
        let emulator = Emulator {
            words: vec!["loader".into(), "qemu".into()],
        };
        let mut command = emulator.command();
        command.arg("-machine");
        let words: Vec<_> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .collect();
        assert!(
            words.ends_with(&["loader".as_ref(), "qemu".as_ref(), "-machine".as_ref()]),
            "{words:?}"
        );
    }
}
