//! The two directories that hold what the backends gave.

use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What stands before `.suffix` in the names of the files of both directories.
///
/// # Errors
/// A directory that cannot be read, that has no such file, or other ones than the other directory.
pub fn common_names(pciback: &Path, bulkhead: &Path, suffix: &str) -> Result<BTreeSet<String>> {
    let found = names(pciback, suffix)?;
    ensure!(!found.is_empty(), "no *.{suffix} in {}", pciback.display());
    ensure!(
        found == names(bulkhead, suffix)?,
        "{} and {} have different *.{suffix}",
        pciback.display(),
        bulkhead.display()
    );
    Ok(found)
}

fn names(directory: &Path, suffix: &str) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(&format!(".{suffix}")).map(str::to_owned));
    }
    Ok(names)
}
