//! Opens the lock of the service, and makes the directories.

use super::error::ControlError;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Opens the file of a lock, and makes it if it is not there.
pub fn open_lock(path: &'static str) -> Result<File, ControlError> {
    let open = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path);
    open.map_err(|source| ControlError::Directory { path, source })
}

/// Makes a directory that root alone can change.
pub fn make_directory(path: &'static str) -> Result<(), ControlError> {
    let failed = |source| ControlError::Directory { path, source };
    // Whatever the umask is, others get no access.
    fs::create_dir_all(path).map_err(failed)?;
    fs::set_permissions(Path::new(path), Permissions::from_mode(0o750)).map_err(failed)
}
