//! Locks: that of the service, and that of the commands.

use super::error::ControlError;
use super::files::COMMAND_LOCK;
use crate::paths::RUN;
use crate::say::notice;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Longest number of a process, in bytes.
const LONGEST_PID: u64 = 20;

/// Lock of the commands that change something: two of them must not take the same device.
#[derive(Debug)]
pub struct CommandLock(File);

impl Drop for CommandLock {
    fn drop(&mut self) {
        // The next holder may not have written its own number yet when somebody looks.
        let _ = self.0.set_len(0);
    }
}

/// Waits until no other command changes anything, and tells the administrator if it has to wait.
pub fn lock_commands() -> Result<CommandLock, ControlError> {
    make_directory(RUN)?;
    let lock = open_lock(COMMAND_LOCK)?;
    let locked = lock_or_wait(lock, |holder| {
        let who = holder.map_or_else(String::new, |process| format!(" (process {process})"));
        notice!("another bulkhead command is at work{who}: this one waits for its end");
    });
    locked.map_err(|source| ControlError::Directory {
        path: COMMAND_LOCK,
        source,
    })
}

/// Locks a file and writes the number of this process into it. If another process has the lock, `busy` is called with its
/// number. Only locking itself can fail: the number is for people, and a full disk must not stop a command.
fn lock_or_wait(lock: File, busy: impl FnOnce(Option<u32>)) -> io::Result<CommandLock> {
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {
            // Told before the wait, which may be long.
            busy(holder(&lock));
            flock(&lock, FlockOperation::LockExclusive)?;
        }
        locked => locked?,
    }
    // Emptied first: the number before may have been longer.
    let _ = lock.set_len(0);
    let _ = lock.write_all_at(std::process::id().to_string().as_bytes(), 0);
    Ok(CommandLock(lock))
}

/// The process that has the lock; `None` if the file does not say, or names one that is gone.
fn holder(lock: &File) -> Option<u32> {
    let mut text = String::new();
    lock.take(LONGEST_PID).read_to_string(&mut text).ok()?;
    let process = text.parse().ok()?;
    Path::new("/proc").join(text).exists().then_some(process)
}

/// Opens the file of a lock, and makes it if it is not there.
pub fn open_lock(path: &'static str) -> Result<File, ControlError> {
    let open = OpenOptions::new()
        .create(true)
        // It may be locked by another process, whose number is in it.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens a file as the lock of the commands is opened.
    fn opened(path: &Path) -> File {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .unwrap()
    }

    #[test]
    fn who_waits_for_another_command_hears_whose_the_lock_is_and_has_it_then() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        fs::write(&path, "99999999999999").unwrap();
        let first = lock_or_wait(opened(&path), |_| panic!("nobody has it")).unwrap();
        let ours = std::process::id();
        assert_eq!(fs::read_to_string(&path).unwrap(), ours.to_string());
        let (mut held, mut heard) = (Some(first), None);
        let second = lock_or_wait(opened(&path), |holder| {
            heard = holder;
            held.take();
        });
        let second = second.unwrap();
        assert_eq!((heard, held.is_none()), (Some(ours), true));
        assert_eq!(fs::read_to_string(&path).unwrap(), ours.to_string());
        let third = flock(opened(&path), FlockOperation::NonBlockingLockExclusive);
        assert_eq!(third, Err(Errno::WOULDBLOCK));
        drop(second);
        assert_eq!(fs::read_to_string(&path).unwrap(), "", "nobody has it");
    }

    #[test]
    fn a_lock_that_says_nothing_sound_of_its_holder_is_waited_for_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        for text in ["", "4194305", "-1", "nonsense", "\u{e9}"] {
            fs::write(&path, text).unwrap();
            let file = opened(&path);
            flock(&file, FlockOperation::LockExclusive).unwrap();
            let (mut held, mut heard) = (Some(file), Some(0));
            let locked = lock_or_wait(opened(&path), |holder| {
                heard = holder;
                held.take();
            });
            locked.unwrap();
            assert_eq!(heard, None, "{text}");
        }
    }
}
