//! All that a boot needs of one suite, made once and kept.
//!
//! ```text
//! CACHE/SUITE/debs/, manifest.json   the packages, and what they should be
//! CACHE/SUITE/root/                  the packages unpacked
//! CACHE/SUITE/built/KEY/             what is booted; KEY changes with the packages and with the recipe
//! ```

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

use crate::cpio::Archive;
use crate::kernel;
use crate::observer::Observer;
use crate::packages::{Manifest, Packages};
use crate::qemu;
use crate::rootfs::{Source, fingerprint};
use crate::store::{Lock, cache_dir, create_dir, sha256, sha256_of_file, write_atomically};
use crate::suite::Suite;

/// Xen and dom0 of one suite, ready to boot.
#[derive(Debug)]
pub struct Rig {
    suite: Suite,
    dir: PathBuf,
}

/// One file in `built/KEY/`.
#[derive(Debug, Serialize, Deserialize)]
struct Artefact {
    name: String,
    sha256: String,
}

/// Names in `built/KEY/`.
const XEN: &str = "xen";
const KERNEL: &str = "vmlinux";
const DOM0: &str = "dom0.cpio.gz";
const GUEST: &str = "guest.cpio";
const LIST: &str = "artefacts.json";

impl Rig {
    /// Makes everything that booting `suite` takes, or finds it made: packages, initial file systems, QEMU.
    ///
    /// # Errors
    /// Packages cannot be fetched, or QEMU is missing and cannot be installed.
    pub fn prepare(suite: Suite, observer: &mut dyn Observer) -> Result<Rig> {
        qemu::ensure_installed(observer)?;
        let dir = cache_dir().join(suite.name());
        let _lock = Lock::take(&dir)?;
        let packages = Packages::new(suite, &dir);
        if let Some(rig) = packages
            .manifest()
            .and_then(|manifest| Rig::find(suite, &dir, &manifest))
        {
            return Ok(rig);
        }
        let manifest = match packages.manifest() {
            Some(manifest) if packages.is_intact(&manifest) => manifest,
            _ => packages.fetch(observer)?,
        };
        let root = dir.join("root");
        packages.unpack(&manifest, &root, observer)?;
        observer.phase(&format!("{suite}: building initial file systems"));
        let built = built_dir(&dir, &manifest);
        build(&Source::new(suite, &root)?, &built)
            .with_context(|| format!("building the images of {suite}"))?;
        prune(&dir.join("built"))?;
        Ok(Rig { suite, dir: built })
    }

    /// Forgets the packages of `suite`, so that the next [`Rig::prepare`] fetches the newest.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn forget(suite: Suite) -> Result<()> {
        let dir = cache_dir().join(suite.name());
        let _lock = Lock::take(&dir)?;
        let manifest = dir.join("manifest.json");
        if manifest.exists() {
            fs::remove_file(&manifest).with_context(|| format!("removing {}", manifest.display()))?;
        }
        Ok(())
    }

    /// The images made earlier, if they are still what they were.
    fn find(suite: Suite, dir: &Path, manifest: &Manifest) -> Option<Rig> {
        let built = built_dir(dir, manifest);
        let list: Vec<Artefact> = serde_json::from_slice(&fs::read(built.join(LIST)).ok()?).ok()?;
        list.iter()
            .all(|artefact| {
                sha256_of_file(&built.join(&artefact.name)).is_ok_and(|sha256| sha256 == artefact.sha256)
            })
            .then(|| {
                // Tells when it was last used; if that cannot be noted, it only goes sooner.
                let _ = File::options()
                    .append(true)
                    .open(built.join(LIST))
                    .and_then(|file| file.set_modified(SystemTime::now()));
                Rig { suite, dir: built }
            })
    }

    /// The suite that this rig boots.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// The hypervisor, unpacked: QEMU takes it as a multiboot kernel.
    pub fn xen(&self) -> PathBuf {
        self.dir.join(XEN)
    }

    /// Dom0's kernel.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join(KERNEL)
    }

    /// The archives that make up dom0's initial file system, in the order in which they are to be joined.
    pub fn initrds(&self) -> [PathBuf; 2] {
        [DOM0, GUEST].map(|name| self.dir.join(name))
    }
}

fn built_dir(dir: &Path, manifest: &Manifest) -> PathBuf {
    let key = sha256(format!("{} {manifest:?}", fingerprint()).as_bytes());
    dir.join("built").join(&key[..16])
}

fn build(source: &Source, dir: &Path) -> Result<()> {
    let kernel = kernel::unpack(&read(&source.kernel())?).context("unpacking Linux")?;
    let mut xen = Vec::new();
    GzDecoder::new(&read(&source.hypervisor())?[..])
        .read_to_end(&mut xen)
        .context("unpacking Xen")?;

    // An archive of its own that is not compressed: unpacking it would take the emulated processor seconds.
    let mut guest = Archive::new();
    guest.file("rig/guest/vmlinux", 0o644, &kernel);
    guest.file("rig/guest/initrd", 0o644, &source.guest()?);

    create_dir(dir)?;
    let artefacts = [
        (XEN, xen),
        (KERNEL, kernel),
        (DOM0, gzip(&source.dom0()?)?),
        (GUEST, guest.finish()?),
    ]
    .into_iter()
    .map(|(name, content)| {
        write_atomically(&dir.join(name), &content)?;
        Ok(Artefact {
            name: name.to_owned(),
            sha256: sha256(&content),
        })
    })
    .collect::<Result<Vec<_>>>()?;
    // Last: it stands for all the others being there.
    write_atomically(&dir.join(LIST), &serde_json::to_vec_pretty(&artefacts)?)
}

/// Removes images but for those last used: each change of a recipe leaves some 150 MB behind.
fn prune(built: &Path) -> Result<()> {
    const KEPT: usize = 4;
    let mut dirs: Vec<(SystemTime, PathBuf)> = fs::read_dir(built)?
        .filter_map(|entry| {
            let dir = entry.ok()?.path();
            let used = dir.join(LIST).metadata().and_then(|metadata| metadata.modified());
            Some((used.unwrap_or(SystemTime::UNIX_EPOCH), dir))
        })
        .collect();
    dirs.sort_unstable();
    for (_, dir) in &dirs[..dirs.len().saturating_sub(KEPT)] {
        fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_not_used_for_longest_are_removed() {
        let built = std::env::temp_dir().join(format!("rig-prune-{}", std::process::id()));
        for (age, name) in ["new", "newer", "newest", "old", "older"].into_iter().enumerate() {
            create_dir(&built.join(name)).expect("temporary");
            let list = File::create(built.join(name).join(LIST)).expect("temporary");
            let minutes = [3, 4, 5, 2, 1][age];
            list.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(60 * minutes))
                .expect("temporary");
        }
        prune(&built).expect("temporary");
        let left = ["new", "newer", "newest", "old", "older"].map(|name| built.join(name).exists());
        fs::remove_dir_all(&built).expect("temporary");
        assert_eq!(left, [true, true, true, true, false]);
    }
}
