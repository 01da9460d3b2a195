//! Files that the rig keeps between runs, and the hashes that show whether they are undamaged.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

/// The environment variable that moves the cache elsewhere, e.g. to share it between checkouts.
pub const CACHE_VARIABLE: &str = "BULKHEAD_RIG_CACHE";

/// Cargo's target directory of this workspace, absolute.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .and_then(|dir| std::path::absolute(dir).ok())
        .unwrap_or_else(|| workspace_dir().join("target"))
}

/// The root of the workspace that this crate was built in.
pub fn workspace_dir() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.parent().unwrap_or(crate_dir).to_owned()
}

/// The cache: `BULKHEAD_RIG_CACHE`, else `rig` in the target directory.
pub fn cache_dir() -> PathBuf {
    std::env::var_os(CACHE_VARIABLE).map_or_else(|| target_dir().join("rig"), PathBuf::from)
}

/// Creates a directory and those above it.
///
/// # Errors
/// Names the directory.
pub fn create_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("creating the directory {}", dir.display()))
}

/// An exclusive lock on a directory, held until dropped. Concurrent runs share one cache.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits until nobody else has locked `dir`.
    ///
    /// # Errors
    /// The lock file cannot be created, or the file system has no locks.
    pub fn take(dir: &Path) -> Result<Lock> {
        create_dir(dir)?;
        let path = dir.join("lock");
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        flock(&file, FlockOperation::LockExclusive).with_context(|| format!("locking {}", path.display()))?;
        Ok(Lock { _file: file })
    }
}

/// SHA-256 of a file, in hex.
///
/// # Errors
/// The file cannot be read.
pub fn sha256_of_file(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file
            .read(&mut buffer)
            .with_context(|| format!("reading {}", path.display()))?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
    }
}

/// SHA-256 of bytes, in hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The content of a file.
///
/// # Errors
/// Names the file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// Writes a file so that readers see the old content or the new, never half of it.
///
/// # Errors
/// Names the file.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let part = path.with_extension("part");
    fs::write(&part, content).with_context(|| format!("writing {}", part.display()))?;
    fs::rename(&part, path).with_context(|| format!("moving {} into place", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_is_the_one_of_fips_180() {
        assert_eq!(
            sha256(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
