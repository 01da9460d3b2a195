//! Debian packages: fetched once, listed in a manifest, checked against it, unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::apt::{Apt, Candidate, output_of};
use crate::built::Built;
use crate::observer::Observer;
use crate::store::{Lock, create_dir, sha256_of_file, write_atomically};
use crate::suite::{Suite, is_wanted};

/// Package files, and where they come from.
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
    /// SHA-256 of the file, in hex.
    pub sha256: String,
}

/// Packages in the cache: `debs/`, `manifest.json` and the private `apt/`. They are unpacked in `root/`; files built
/// from them are in `built/`.
#[derive(Debug)]
pub struct Packages {
    name: String,
    suite: Suite,
    asked_for: Vec<String>,
    dir: PathBuf,
    /// Whether all that they depend on is fetched, and not libraries alone.
    whole: bool,
}

impl Packages {
    /// The packages `asked_for` of `suite`, and the libraries that they need, kept in `dir`. Progress shows `name`.
    pub fn new(name: &str, suite: Suite, asked_for: Vec<String>, dir: &Path) -> Self {
        Packages {
            name: name.to_owned(),
            suite,
            asked_for,
            dir: dir.to_owned(),
            whole: false,
        }
    }

    /// The same with everything that the packages depend on.
    pub fn with_dependencies(name: &str, suite: Suite, asked_for: Vec<String>, dir: &Path) -> Self {
        Packages {
            whole: true,
            ..Self::new(name, suite, asked_for, dir)
        }
    }

    /// Returns the files that `make` builds from the directory of unpacked packages, and calls it only if they are not
    /// there. `recipe` must change whenever `make` does.
    ///
    /// # Errors
    /// Packages cannot be fetched or unpacked, the cache cannot be written, or `make` fails.
    pub fn build(
        &self,
        recipe: &str,
        observer: &mut dyn Observer,
        make: impl FnOnce(&Path) -> Result<Vec<(String, Vec<u8>)>>,
    ) -> Result<Built> {
        self.build_with(recipe, observer, |root, built| built.write(make(root)?))
    }

    /// The same for files that are too large for the memory: `make` puts them into the set.
    ///
    /// # Errors
    /// As for [`Packages::build`].
    pub fn build_with(
        &self,
        recipe: &str,
        observer: &mut dyn Observer,
        make: impl FnOnce(&Path, &Built) -> Result<()>,
    ) -> Result<Built> {
        let _lock = Lock::take(&self.dir)?;
        let of = |manifest: &Manifest| Built::of(&self.dir, &format!("{recipe} {manifest:?}"));
        let known = self.manifest();
        if let Some(built) = known.as_ref().map(of).filter(Built::is_intact) {
            return Ok(built);
        }
        let manifest = match known {
            Some(manifest) if self.is_intact(&manifest) => manifest,
            _ => self.fetch(observer)?,
        };
        let root = self.dir.join("root");
        self.unpack(&manifest, &root, observer)?;
        observer.phase(&format!("{}: building", self.name));
        let built = of(&manifest);
        make(&root, &built).with_context(|| format!("building {}", self.name))?;
        Ok(built)
    }

    /// Forgets which packages were fetched, so that the newest are fetched next time.
    ///
    /// # Errors
    /// The cache cannot be written.
    pub fn forget(&self) -> Result<()> {
        let _lock = Lock::take(&self.dir)?;
        let manifest = self.manifest_path();
        if manifest.exists() {
            fs::remove_file(&manifest).with_context(|| format!("removing {}", manifest.display()))?;
        }
        Ok(())
    }

    fn manifest_path(&self) -> PathBuf {
        self.dir.join("manifest.json")
    }

    fn deb(&self, package: &Package) -> PathBuf {
        self.dir.join("debs").join(&package.file)
    }

    /// The manifest; `None` if there is none, or if it does not parse.
    fn manifest(&self) -> Option<Manifest> {
        serde_json::from_slice(&fs::read(self.manifest_path()).ok()?).ok()
    }

    /// Whether the manifest has all packages asked for, and every package file has its hash.
    fn is_intact(&self, manifest: &Manifest) -> bool {
        let has = |name: &String| manifest.packages.iter().any(|package| package.name == *name);
        self.asked_for.iter().all(has)
            && manifest.packages.iter().all(|package| {
                sha256_of_file(&self.deb(package)).is_ok_and(|sha256| sha256 == package.sha256)
            })
    }

    /// Fetches the newest packages and writes the manifest.
    fn fetch(&self, observer: &mut dyn Observer) -> Result<Manifest> {
        let apt = Apt::create(&self.dir.join("apt"), self.suite)?;
        observer.phase(&format!("{}: fetching package lists", self.name));
        apt.update()?;
        let mut wanted = apt.closure(&self.asked_for)?;
        wanted.retain(|candidate| self.whole || is_wanted(&candidate.name, &self.asked_for));

        observer.phase(&format!("{}: fetching {} packages", self.name, wanted.len()));
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
        // The manifest comes last: after an interrupted fetch the files do not match it, and are fetched again.
        write_atomically(&self.manifest_path(), &serde_json::to_vec_pretty(&manifest)?)?;
        Ok(manifest)
    }

    /// Empties `root`, and unpacks every package into it.
    fn unpack(&self, manifest: &Manifest, root: &Path, observer: &mut dyn Observer) -> Result<()> {
        observer.phase(&format!("{}: unpacking packages", self.name));
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
///
/// # Errors
/// Names the directory.
pub fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}
