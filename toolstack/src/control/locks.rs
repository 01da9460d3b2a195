//! Opens the files of locks, and makes the directories.

use super::error::ControlError;
use super::files::SERVICE_LOCK;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Opens the file of a lock, and makes it if it is not there.
pub fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        // It may be locked by another process, whose number may be in it.
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
}

/// Opens the lock of the service.
pub fn open_service_lock() -> Result<File, ControlError> {
    open_lock(Path::new(SERVICE_LOCK)).map_err(|source| ControlError::Directory {
        path: SERVICE_LOCK,
        source,
    })
}

/// Makes a directory that root alone can change.
pub fn make_directory(path: &'static str) -> Result<(), ControlError> {
    let failed = |source| ControlError::Directory { path, source };
    // Whatever the umask is, others get no access.
    fs::create_dir_all(path).map_err(failed)?;
    fs::set_permissions(Path::new(path), Permissions::from_mode(0o750)).map_err(failed)
}
