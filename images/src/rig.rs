//! All files that a boot of one suite needs, built once and kept.
//!
//! ```text
//! CACHE/SUITE/debs/, manifest.json   the packages, and what they should be
//! CACHE/SUITE/root/                  the packages unpacked
//! CACHE/SUITE/built/KEY/             what is booted; KEY changes with the packages and with the recipe
//! CACHE/SUITE-debian/                the same for a Debian host (`debian`)
//! ```

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use crate::built::Built;
use crate::cpio::Archive;
use crate::debian;
use crate::host::Host;
use crate::kernel;
use crate::observer::Observer;
use crate::packages::Packages;
use crate::rootfs::{Programs, Source};
use crate::store::{cache_dir, read};
use crate::suite::Suite;

/// Xen and dom0 of one suite, ready to boot.
#[derive(Debug)]
pub struct Rig {
    suite: Suite,
    host: Host,
    built: Built,
    disk: Option<PathBuf>,
}

/// Names of what is built.
const XEN: &str = "xen";
const KERNEL: &str = "vmlinux";
const DOM0: &str = "dom0.cpio.gz";
const GUEST: &str = "guest.cpio";

impl Rig {
    /// Fetches the packages of `suite` and builds what boots its `host`, unless that is there already.
    ///
    /// # Errors
    /// Packages cannot be fetched, or a program for guests does not compile. For a Debian host, also: nobody may act as root here.
    pub fn prepare(suite: Suite, host: Host, observer: &mut dyn Observer) -> Result<Rig> {
        let programs = Programs::build(observer)?;
        let build = |root: &Path, dom0: fn(&Source) -> Result<Vec<u8>>| {
            contents(&Source::new(root, &programs)?, dom0, host.overlay())
        };
        let (built, disk) = match host {
            Host::Busybox => {
                let build = |root: &Path| build(root, |source| source.dom0());
                (
                    packages(suite).build(&programs.fingerprint(), observer, build)?,
                    None,
                )
            }
            Host::Debian => {
                let build = |root: &Path| build(root, |source| source.boot());
                let (built, disk) = debian::build(suite, &programs.debian_fingerprint(), observer, build)?;
                (built, Some(disk))
            }
        };
        Ok(Rig {
            suite,
            host,
            built,
            disk,
        })
    }

    /// Forgets the packages of `suite`, so that the next [`Rig::prepare`] fetches the newest.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn forget(suite: Suite) -> Result<()> {
        packages(suite).forget()?;
        debian::forget(suite)
    }

    /// The suite that this rig boots.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// What its dom0 is.
    pub fn host(&self) -> Host {
        self.host
    }

    /// The image of dom0's root file system, if it has one. Runs must not write to it.
    pub fn disk(&self) -> Option<&Path> {
        self.disk.as_deref()
    }

    /// The hypervisor, unpacked: QEMU takes it as a multiboot kernel.
    pub fn xen(&self) -> PathBuf {
        self.built.path(XEN)
    }

    /// Dom0's kernel.
    pub fn kernel(&self) -> PathBuf {
        self.built.path(KERNEL)
    }

    /// The archives that make up dom0's initial file system, in the order in which they are to be joined.
    pub fn initrds(&self) -> [PathBuf; 2] {
        [DOM0, GUEST].map(|name| self.built.path(name))
    }
}

fn packages(suite: Suite) -> Packages {
    let dir = cache_dir().join(suite.name());
    Packages::new(suite.name(), suite, suite.packages(), &dir)
}

/// What is booted, with the initial file system that `dom0` makes. The files of the guest go below `overlay`.
fn contents(
    source: &Source,
    dom0: fn(&Source) -> Result<Vec<u8>>,
    overlay: &str,
) -> Result<Vec<(String, Vec<u8>)>> {
    let kernel = kernel::unpack(&read(&source.kernel())?).context("unpacking Linux")?;
    let mut xen = Vec::new();
    GzDecoder::new(&read(&source.hypervisor())?[..])
        .read_to_end(&mut xen)
        .context("unpacking Xen")?;

    // This archive is not compressed: the emulated processor would need seconds to unpack it.
    let mut guest = Archive::new();
    guest.file(&format!("{overlay}rig/guest/vmlinux"), 0o644, &kernel);
    guest.file(&format!("{overlay}rig/guest/initrd"), 0o644, &source.guest()?);

    let files = [
        (XEN, xen),
        (KERNEL, kernel),
        (DOM0, gzip(&dom0(source)?)?),
        (GUEST, guest.finish()?),
    ];
    Ok(files.map(|(name, content)| (name.to_owned(), content)).into())
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}
