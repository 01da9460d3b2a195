//! The archive: a tree of the files, packed by dpkg-deb.

use crate::contents::{self, DIRECTORIES, Entry, Sources};
use crate::control;
use anyhow::{Context as _, Result, ensure};
use jiff::tz::TimeZone;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Packs the files into `directory`. Returns the path of the package. The same sources make the same package.
///
/// # Errors
/// Names what is missing or cannot be written.
pub fn pack(sources: &Sources, directory: &Path) -> Result<PathBuf> {
    let files = contents::files(sources)?;
    let control_files = contents::control_files(sources, &files)?;
    let tree = tempfile::tempdir_in(directory)
        .with_context(|| format!("making a directory in {}", directory.display()))?;
    set_mode(tree.path(), 0o755)?;
    for path in DIRECTORIES {
        make_directory(tree.path(), Path::new(path))?;
    }
    for file in files.iter().chain(&control_files) {
        write(tree.path(), file)?;
    }
    let package = directory.join(format!("bulkhead_{}_amd64.deb", sources.version));
    let output = Command::new("dpkg-deb")
        // The files belong to root, whoever packs them. Debian's tools of all supported releases read xz.
        .args(["--root-owner-group", "-Zxz", "--build"])
        .args([tree.path(), &package])
        .env("SOURCE_DATE_EPOCH", day_of_release(sources)?.to_string())
        .output()
        .context("running dpkg-deb (Debian: dpkg)")?;
    ensure!(
        output.status.success(),
        "dpkg-deb: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(package)
}

/// The day of the newest version, in seconds since 1970: the time of each file.
fn day_of_release(sources: &Sources) -> Result<i64> {
    let text = fs::read_to_string(sources.workspace.join("CHANGELOG.md")).context("reading CHANGELOG.md")?;
    let releases = control::releases(&text)?;
    let newest = releases.first().context("CHANGELOG.md has no version")?;
    Ok(newest.date.to_zoned(TimeZone::UTC)?.timestamp().as_second())
}

fn write(tree: &Path, file: &Entry) -> Result<()> {
    let path = tree.join(&file.path);
    if let Some(directory) = Path::new(&file.path).parent() {
        make_directory(tree, directory)?;
    }
    fs::write(&path, &file.content).with_context(|| format!("writing {}", path.display()))?;
    set_mode(&path, file.mode)
}

fn make_directory(tree: &Path, directory: &Path) -> Result<()> {
    let mut path = tree.to_owned();
    for part in directory {
        path.push(part);
        if !path.is_dir() {
            fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
            set_mode(&path, 0o755)?;
        }
    }
    Ok(())
}

/// Sets it whatever the umask is.
fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("changing the permissions of {}", path.display()))
}
