//! The Debian packages of a suite: fetched once, listed in a manifest, checked against it, unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::apt::{Apt, Candidate, output_of};
use crate::observer::Observer;
use crate::store::{create_dir, sha256_of_file, write_atomically};
use crate::suite::{Suite, is_wanted};

/// Which package files a suite's images are made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The Debian release.
    pub suite: String,
    /// In the order of apt's dependency closure.
    pub packages: Vec<Package>,
}

/// One package file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// The package's name.
    pub name: String,
    /// The package's version.
    pub version: String,
    /// File name below `debs/`.
    pub file: String,
    /// Of the file, in hex.
    pub sha256: String,
}

/// The packages of one suite in the cache: `debs/`, `manifest.json` and the private `apt/`.
#[derive(Debug)]
pub struct Packages {
    suite: Suite,
    dir: PathBuf,
}

impl Packages {
    /// The packages of `suite`, kept in `dir`.
    pub fn new(suite: Suite, dir: &Path) -> Self {
        Packages {
            suite,
            dir: dir.to_owned(),
        }
    }

    fn manifest_path(&self) -> PathBuf {
        self.dir.join("manifest.json")
    }

    fn deb(&self, package: &Package) -> PathBuf {
        self.dir.join("debs").join(&package.file)
    }

    /// What was fetched before; `None` if nothing was, or if the record of it does not parse.
    pub fn manifest(&self) -> Option<Manifest> {
        serde_json::from_slice(&fs::read(self.manifest_path()).ok()?).ok()
    }

    /// Whether all that is asked for is in the manifest, and every package file still the one that it names.
    pub fn is_intact(&self, manifest: &Manifest) -> bool {
        let has = |name: &String| manifest.packages.iter().any(|package| package.name == *name);
        self.suite.packages().iter().all(has)
            && manifest.packages.iter().all(|package| {
                sha256_of_file(&self.deb(package)).is_ok_and(|sha256| sha256 == package.sha256)
            })
    }

    /// Fetches the newest packages of the suite and writes the manifest.
    ///
    /// # Errors
    /// The host has no apt or no Debian mirror, a download fails, or the disk is full.
    pub fn fetch(&self, observer: &mut dyn Observer) -> Result<Manifest> {
        let apt = Apt::create(&self.dir.join("apt"), self.suite)?;
        observer.phase(&format!("{}: fetching package lists", self.suite));
        apt.update()?;
        let asked_for = self.suite.packages();
        let mut wanted = apt.closure(&asked_for)?;
        wanted.retain(|candidate| is_wanted(&candidate.name, &asked_for));

        observer.phase(&format!("{}: fetching {} packages", self.suite, wanted.len()));
        let debs = self.dir.join("debs");
        remove_dir(&debs)?;
        create_dir(&debs)?;
        apt.download(&debs, &wanted, observer)?;

        let packages = wanted
            .into_iter()
            .map(|candidate| record(&debs, candidate))
            .collect::<Result<_>>()?;
        let manifest = Manifest {
            suite: self.suite.name().to_owned(),
            packages,
        };
        write_atomically(&self.manifest_path(), &serde_json::to_vec_pretty(&manifest)?)?;
        Ok(manifest)
    }

    /// Unpacks every package into `root`, which is emptied first.
    ///
    /// # Errors
    /// `dpkg` is not installed or rejects a package.
    pub fn unpack(&self, manifest: &Manifest, root: &Path, observer: &mut dyn Observer) -> Result<()> {
        observer.phase(&format!("{}: unpacking packages", self.suite));
        remove_dir(root)?;
        create_dir(root)?;
        for package in &manifest.packages {
            output_of(Command::new("dpkg").arg("-x").arg(self.deb(package)).arg(root))
                .with_context(|| format!("unpacking {}", package.file))?;
        }
        Ok(())
    }
}

fn record(debs: &Path, candidate: Candidate) -> Result<Package> {
    let sha256 = sha256_of_file(&debs.join(&candidate.file))?;
    Ok(Package {
        name: candidate.name,
        version: candidate.version,
        file: candidate.file,
        sha256,
    })
}

/// Removes a directory with all it holds; none there is fine.
fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}
