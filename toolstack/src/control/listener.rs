//! The service's end of the socket.

use super::error::ControlError;
use super::files::{SERVICE_LOCK, SOCKET};
use super::locks::{make_directory, open_service_lock};
use crate::paths::RUN;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};

/// The service's end of the socket. The launcher has it, and each worker a copy.
pub struct Listener {
    socket: UnixListener,
    /// Held as long as one of these processes runs.
    lock: File,
}

impl Listener {
    /// Becomes the one service of this host. If there is another one, waits for its end if `supervised`, and fails otherwise.
    /// A supervisor would start a service that fails again and again.
    pub fn bind(supervised: bool) -> Result<Self, ControlError> {
        make_directory(RUN)?;
        let lock = open_service_lock()?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            if !supervised {
                return Err(ControlError::Running);
            }
            log::info!("a service that a command has started is running: waiting for its end");
            let locked = flock(&lock, FlockOperation::LockExclusive);
            locked.map_err(|error| ControlError::Directory {
                path: SERVICE_LOCK,
                source: error.into(),
            })?;
        }
        let failed = |source| ControlError::Directory { path: SOCKET, source };
        // This process has the lock, so a socket that exists was left by a service that has died.
        match fs::remove_file(SOCKET) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let socket = UnixListener::bind(SOCKET).map_err(failed)?;
        fs::set_permissions(SOCKET, Permissions::from_mode(0o600)).map_err(failed)?;
        // A client that has gone again must not have the main thread wait in `accept`.
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Self { socket, lock })
    }

    /// A copy of another process's listener, made of its [files](Self::into_files).
    pub fn over(socket: OwnedFd, lock: OwnedFd) -> Self {
        let (socket, lock) = (socket.into(), lock.into());
        Self { socket, lock }
    }

    /// The socket, and the lock.
    pub fn into_files(self) -> (OwnedFd, OwnedFd) {
        (self.socket.into(), self.lock.into())
    }

    /// The next client; `None` if there is none.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.socket.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Becomes ready to be read when there is a client.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Identity (device and inode) of the service's socket and lock. If the socket is replaced, commands do not find the service;
/// if the lock is, another service can start beside it.
#[derive(Debug, PartialEq, Eq)]
pub struct ServiceFiles([Option<(u64, u64)>; 2]);

impl ServiceFiles {
    /// The files that have these names now.
    pub fn now() -> Self {
        Self([SOCKET, SERVICE_LOCK].map(|path| {
            let file = fs::symlink_metadata(path).ok()?;
            Some((file.dev(), file.ino()))
        }))
    }
}
