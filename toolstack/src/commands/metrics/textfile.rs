//! The file of metrics that node_exporter reads from its directory (`--collector.textfile.directory`).

use anyhow::{Context as _, Result, ensure};
use std::fs::{self, OpenOptions, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process;

/// Name of the file. node_exporter reads those that end so.
const NAME: &str = "bulkhead.prom";
/// Everybody may read it: node_exporter has a user of its own.
const MODE: u32 = 0o644;

/// Checks that there is such a directory.
pub fn check(directory: &Path) -> Result<()> {
    ensure!(directory.is_dir(), "{} is no directory", directory.display());
    Ok(())
}

/// Replaces the file in `directory`. A reader sees the old file or the new one, never a part.
pub fn write(directory: &Path, text: &str) -> Result<()> {
    check(directory)?;
    let path = directory.join(NAME);
    let failed = || format!("cannot write {}", path.display());
    // In the same directory, for a file can be renamed within one file system only.
    let temporary = directory.join(format!(".{NAME}.{}", process::id()));
    match fs::remove_file(&temporary) {
        // Left by a process with the same number.
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).with_context(failed),
        _ => {}
    }
    // Not through a link that somebody else has put there.
    let opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(&temporary);
    let mut file = opened.with_context(failed)?;
    let written = file
        .write_all(text.as_bytes())
        // Whatever this process's mask takes away.
        .and_then(|()| file.set_permissions(Permissions::from_mode(MODE)))
        .and_then(|()| fs::rename(&temporary, &path));
    if written.is_err() {
        // What matters is the first error.
        let _ = fs::remove_file(&temporary);
    }
    written.with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn the_file_is_replaced_whole_and_everybody_may_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let (path, secret) = (directory.path().join(NAME), directory.path().join("secret"));
        // A link in the place of the file is replaced, and what it points to stays as it is.
        fs::write(&secret, "secret").unwrap();
        std::os::unix::fs::symlink(&secret, &path).unwrap();
        for text in ["first, and longer", "second"] {
            write(directory.path(), text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
        assert_eq!(
            fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777,
            MODE
        );
        assert_eq!(names(directory.path()).len(), 2, "no temporary file is left");
    }

    #[test]
    fn a_file_that_cannot_be_replaced_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join(NAME).join("full")).unwrap();
        let error = write(directory.path(), "text").unwrap_err();
        assert!(error.to_string().contains("cannot write"), "{error:#}");
        assert_eq!(names(directory.path()), [NAME]);
        assert!(write(&directory.path().join("none"), "text").is_err());
    }

    #[test]
    fn a_temporary_file_of_an_earlier_process_is_no_obstacle_and_is_not_written_through() {
        let directory = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        let temporary = directory.path().join(format!(".{NAME}.{}", process::id()));
        std::os::unix::fs::symlink(elsewhere.path(), temporary).unwrap();
        write(directory.path(), "text").unwrap();
        assert_eq!(fs::read(elsewhere.path()).unwrap(), b"");
        assert_eq!(names(directory.path()), [NAME]);
    }
}
