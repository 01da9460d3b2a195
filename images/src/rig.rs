//! All files that a boot of one suite needs, built once and kept.
//!
//! ```text
//! CACHE/SUITE/debs/, manifest.json   the packages, and what they should be
//! CACHE/SUITE/root/                  the packages unpacked
//! CACHE/SUITE/built/KEY/             what is booted; KEY changes with the packages and with the recipe
//! ```

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use crate::built::Built;
use crate::cpio::Archive;
use crate::kernel;
use crate::observer::Observer;
use crate::packages::Packages;
use crate::rootfs::{Source, fingerprint};
use crate::store::{cache_dir, read};
use crate::suite::Suite;

/// Xen and dom0 of one suite, ready to boot.
#[derive(Debug)]
pub struct Rig {
    suite: Suite,
    built: Built,
}

/// Names of what is built.
const XEN: &str = "xen";
const KERNEL: &str = "vmlinux";
const DOM0: &str = "dom0.cpio.gz";
const GUEST: &str = "guest.cpio";

impl Rig {
    /// Fetches the packages of `suite` and builds its initial file systems, unless they are there already.
    ///
    /// # Errors
    /// Packages cannot be fetched.
    pub fn prepare(suite: Suite, observer: &mut dyn Observer) -> Result<Rig> {
        let build = |root: &Path| contents(&Source::new(root)?);
        let built = packages(suite).build(&fingerprint(), observer, build)?;
        Ok(Rig { suite, built })
    }

    /// Forgets the packages of `suite`, so that the next [`Rig::prepare`] fetches the newest.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn forget(suite: Suite) -> Result<()> {
        packages(suite).forget()
    }

    /// The suite that this rig boots.
    pub fn suite(&self) -> Suite {
        self.suite
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

fn contents(source: &Source) -> Result<Vec<(String, Vec<u8>)>> {
    let kernel = kernel::unpack(&read(&source.kernel())?).context("unpacking Linux")?;
    let mut xen = Vec::new();
    GzDecoder::new(&read(&source.hypervisor())?[..])
        .read_to_end(&mut xen)
        .context("unpacking Xen")?;

    // This archive is not compressed: the emulated processor would need seconds to unpack it.
    let mut guest = Archive::new();
    guest.file("rig/guest/vmlinux", 0o644, &kernel);
    guest.file("rig/guest/initrd", 0o644, &source.guest()?);

    let files = [
        (XEN, xen),
        (KERNEL, kernel),
        (DOM0, gzip(&source.dom0()?)?),
        (GUEST, guest.finish()?),
    ];
    Ok(files.map(|(name, content)| (name.to_owned(), content)).into())
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}
