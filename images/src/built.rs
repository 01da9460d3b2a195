//! Files that are built from packages once, and kept.
//!
//! The files are in `built/KEY/`. KEY is a digest of recipe and packages, so a change of either builds the files again.
//! A list has the hash of each file. A damaged file is built again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::store::{create_dir, sha256, sha256_of_file, write_atomically};

/// The list of the files, in their directory.
const LIST: &str = "artefacts.json";
/// Directory that holds the sets.
const PARENT: &str = "built";
/// How many sets of files are kept. Each change of a recipe leaves some 150 MB behind.
const KEPT: usize = 4;

/// A set of files, which may not be built yet.
#[derive(Debug)]
pub struct Built {
    dir: PathBuf,
}

/// One file of the list.
#[derive(Debug, Serialize, Deserialize)]
struct Artefact {
    name: String,
    sha256: String,
}

impl Built {
    /// The set below `cache` for this `recipe`.
    pub fn of(cache: &Path, recipe: &str) -> Built {
        let key = sha256(recipe.as_bytes());
        Built {
            dir: cache.join(PARENT).join(&key[..16]),
        }
    }

    /// The directory of the files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the file `name` is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Whether the files were built, and are undamaged.
    pub fn is_intact(&self) -> bool {
        let list = fs::read(self.path(LIST)).ok();
        let list: Option<Vec<Artefact>> = list.and_then(|list| serde_json::from_slice(&list).ok());
        let intact = list.is_some_and(|list| {
            list.iter().all(|artefact| {
                sha256_of_file(&self.path(&artefact.name)).is_ok_and(|sha256| sha256 == artefact.sha256)
            })
        });
        if intact {
            // The time marks the last use. If it cannot be set, the set is only removed sooner.
            let _ = File::options()
                .append(true)
                .open(self.path(LIST))
                .and_then(|file| file.set_modified(SystemTime::now()));
        }
        intact
    }

    /// A digest of all files, by the list of their hashes.
    ///
    /// # Errors
    /// The files were not built.
    pub fn digest(&self) -> Result<String> {
        sha256_of_file(&self.path(LIST))
    }

    /// Writes the files, and removes the sets of this cache whose last use is longest ago.
    ///
    /// # Errors
    /// Names what could not be written or removed.
    pub fn write<N: Into<String>>(&self, files: impl IntoIterator<Item = (N, Vec<u8>)>) -> Result<()> {
        create_dir(&self.dir)?;
        let mut list = Vec::new();
        for (name, content) in files {
            let name = name.into();
            write_atomically(&self.path(&name), &content)?;
            let sha256 = sha256(&content);
            list.push(Artefact { name, sha256 });
        }
        self.list(&list, KEPT)
    }

    /// Makes a set of one file, too large for the memory: moves `file` to the set's directory as `name`. Of the sets of
    /// this cache, those that were used last are kept, `kept` of them.
    ///
    /// # Errors
    /// Names what could not be read, written or removed.
    pub fn adopt(&self, name: &str, file: &Path, kept: usize) -> Result<()> {
        create_dir(&self.dir)?;
        let sha256 = sha256_of_file(file)?;
        fs::rename(file, self.path(name)).with_context(|| format!("moving {} into place", file.display()))?;
        let name = name.to_owned();
        self.list(&[Artefact { name, sha256 }], kept)
    }

    fn list(&self, list: &[Artefact], kept: usize) -> Result<()> {
        // The list comes last: if it is there, all other files are complete.
        write_atomically(&self.path(LIST), &serde_json::to_vec_pretty(&list)?)?;
        self.dir
            .parent()
            .map_or(Ok(()), |sets| prune(sets, &self.dir, kept.saturating_sub(1)))
    }
}

/// Removes the sets in `built` but `new`, which is never removed, and the `others` that were used last. A filesystem's
/// clock is coarse: `new` may be as old as the set before it.
fn prune(built: &Path, new: &Path, others: usize) -> Result<()> {
    let mut dirs: Vec<(SystemTime, PathBuf)> = fs::read_dir(built)?
        .filter_map(|entry| {
            let dir = entry.ok()?.path();
            if dir == new {
                return None;
            }
            let used = dir.join(LIST).metadata().and_then(|metadata| metadata.modified());
            Some((used.unwrap_or(SystemTime::UNIX_EPOCH), dir))
        })
        .collect();
    dirs.sort_unstable();
    for (_, dir) in &dirs[..dirs.len().saturating_sub(others)] {
        fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache of its own, removed when dropped.
    struct Cache(PathBuf);

    impl Cache {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("rig-{name}-{}", std::process::id()));
            create_dir(&dir).expect("temporary");
            Cache(dir)
        }
    }

    impl Drop for Cache {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn files_are_intact_until_one_of_them_changes_or_goes() {
        let cache = Cache::new("intact");
        let built = Built::of(&cache.0, "recipe");
        assert!(!built.is_intact());
        let write = || built.write([("a", b"1".to_vec()), ("b", b"2".to_vec())]);
        write().expect("temporary");
        assert!(built.is_intact());
        assert!(!Built::of(&cache.0, "another recipe").is_intact());
        fs::write(built.path("b"), "3").expect("temporary");
        assert!(!built.is_intact());
        write().expect("temporary");
        fs::remove_file(built.path("a")).expect("temporary");
        assert!(!built.is_intact());
    }

    #[test]
    fn a_large_file_is_moved_into_its_set_and_the_set_before_it_goes() {
        let cache = Cache::new("adopt");
        let part = cache.0.join("part");
        for recipe in ["first", "second"] {
            fs::write(&part, recipe).expect("temporary");
            Built::of(&cache.0, recipe)
                .adopt("image", &part, 1)
                .expect("temporary");
        }
        let built = Built::of(&cache.0, "second");
        assert!(built.is_intact() && !part.exists());
        assert_eq!(fs::read(built.path("image")).expect("moved"), b"second");
        assert!(!Built::of(&cache.0, "first").dir().exists());
    }

    #[test]
    fn images_not_used_for_longest_are_removed() {
        let cache = Cache::new("prune");
        let built = &cache.0;
        for (age, name) in ["new", "newer", "newest", "old", "older"].into_iter().enumerate() {
            create_dir(&built.join(name)).expect("temporary");
            let list = File::create(built.join(name).join(LIST)).expect("temporary");
            let minutes = [3, 4, 5, 2, 1][age];
            list.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(60 * minutes))
                .expect("temporary");
        }
        prune(built, &built.join("newest"), 3).expect("temporary");
        let left = ["new", "newer", "newest", "old", "older"].map(|name| built.join(name).exists());
        assert_eq!(left, [true, true, true, true, false]);
    }

    #[test]
    fn the_set_just_made_stays_though_the_clock_says_that_all_are_as_old() {
        let cache = Cache::new("clock");
        for new in ["a", "b", "c"] {
            for name in ["a", "b", "c"] {
                create_dir(&cache.0.join(name)).expect("temporary");
                let list = File::create(cache.0.join(name).join(LIST)).expect("temporary");
                list.set_modified(SystemTime::UNIX_EPOCH).expect("temporary");
            }
            prune(&cache.0, &cache.0.join(new), 0).expect("temporary");
            let left = ["a", "b", "c"].map(|name| cache.0.join(name).exists());
            assert_eq!(left, ["a", "b", "c"].map(|name| name == new));
        }
    }
}
