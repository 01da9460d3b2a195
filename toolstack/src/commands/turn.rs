//! Commands take turns at changing things, and let others work while they wait.
//!
//! There are two kinds of locks below `/run/bulkhead`: one of all commands, which a command gives up while it waits for a
//! guest, a stub or the service; and one of each guest, which it keeps. A hostile guest that does not let go of a device
//! delays only commands for that guest. Two things go on without any lock: `destroy` ends a guest, and the service takes
//! devices back from a guest that has ended.
//!
//! Whoever waits for a guest's lock does not have the lock of all commands. Whoever waits for that one may have a guest's.

use crate::control::{make_directory, open_lock};
use crate::host::domains::Domain;
use crate::paths::RUN;
use crate::say::notice;
use anyhow::{Context as _, Result, ensure};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use xen::xenctrl::DomId;

/// Longest number of a process, in bytes.
const LONGEST_PID: u64 = 20;

/// The right to change things.
#[derive(Debug)]
pub struct Turn {
    directory: PathBuf,
    /// `None` while others may work.
    all: Option<Lock>,
    /// The guest that this command works for.
    guest: Option<DomId>,
    /// `None` while others may work for the guest.
    of_guest: Option<Lock>,
}

impl Turn {
    /// Waits until no other command is in turn, and tells the administrator if it has to wait.
    ///
    /// # Errors
    /// A lock that cannot be opened.
    pub fn take() -> Result<Self> {
        Ok(Self::take_for(|| Ok((None, ())))?.0)
    }

    /// The same for what `find` finds: until no other command works for its guest either. `find` is called again after
    /// each wait, because others have changed things meanwhile.
    ///
    /// # Errors
    /// Those of `find`; another guest after a wait, because a command that destroys must not do so to a guest that has
    /// got the name or the device since; a lock that cannot be opened.
    pub fn take_for<T>(find: impl FnMut() -> Result<(Option<Domain>, T)>) -> Result<(Self, T)> {
        make_directory(RUN)?;
        Self::take_in(Path::new(RUN), find)
    }

    fn take_in<T>(
        directory: &Path,
        mut find: impl FnMut() -> Result<(Option<Domain>, T)>,
    ) -> Result<(Self, T)> {
        let mut turn = Self {
            directory: directory.to_owned(),
            all: None,
            guest: None,
            of_guest: None,
        };
        let mut meant: Option<Domain> = None;
        loop {
            turn.resume()?;
            let (found, more) = find()?;
            if let Some(meant) = &meant {
                let is_same = |guest: &Domain| (guest.domid, &guest.uuid) == (meant.domid, &meant.uuid);
                ensure!(
                    found.as_ref().is_some_and(is_same),
                    "guest {} (domain {}) has ended or has lost what was named, while another bulkhead command was at work \
                     for it: `bulkhead status` shows what there is now",
                    meant.name,
                    meant.domid
                );
                return Ok((turn, more));
            }
            let Some(guest) = found else {
                return Ok((turn, more));
            };
            if turn.try_guest(guest.domid)? {
                return Ok((turn, more));
            }
            // Now it is waited for, and found again.
            turn.suspend();
            meant = Some(guest);
        }
    }

    /// Takes the lock of a guest that this command has created.
    ///
    /// # Errors
    /// A command that is not at its end with an earlier domain of that number; a lock that cannot be opened.
    pub fn add_guest(&mut self, guest: DomId) -> Result<()> {
        // Not by a wait: what the command has found out so far must stay true.
        ensure!(
            self.try_guest(guest)?,
            "another bulkhead command is still at work for an earlier domain with the number {guest}: try again"
        );
        Ok(())
    }

    /// From now on the turn is for this guest; true if its lock was free.
    fn try_guest(&mut self, guest: DomId) -> Result<bool> {
        self.guest = Some(guest);
        self.of_guest = Lock::take(&self.path_for(guest), true, None)?;
        Ok(self.of_guest.is_some())
    }

    /// Lets other commands work, also for the same guest, until [`Turn::resume`].
    pub fn suspend(&mut self) {
        self.all = None;
        self.of_guest = None;
    }

    /// Waits until no other command is in turn.
    ///
    /// # Errors
    /// A lock that cannot be opened. Nothing may be changed then.
    pub fn resume(&mut self) -> Result<()> {
        if self.all.is_some() {
            return Ok(());
        }
        if let Some(guest) = self.guest
            && self.of_guest.is_none()
        {
            let busy = |holder| notice_busy(&format!(" for domain {guest}"), holder);
            self.of_guest = Lock::take(&self.path_for(guest), true, Some(&busy))?;
        }
        let busy = |holder| notice_busy("", holder);
        self.all = Lock::take(&self.directory.join("command.lock"), false, Some(&busy))?;
        Ok(())
    }

    /// Lets commands for other guests work while `wait` runs. What was found out before has to be looked at again
    /// afterwards: the guest may have ended, and another guest may have a device.
    ///
    /// # Errors
    /// Those of `wait`, and of [`Turn::resume`].
    pub fn give_way<T>(&mut self, wait: impl FnOnce() -> Result<T>) -> Result<T> {
        self.all = None;
        let waited = wait();
        self.resume()?;
        waited
    }

    fn path_for(&self, guest: DomId) -> PathBuf {
        self.directory.join(format!("guest-{guest}.lock"))
    }
}

fn notice_busy(whom: &str, holder: Option<u32>) {
    let who = holder.map_or_else(String::new, |process| format!(" (process {process})"));
    notice!("another bulkhead command is at work{whom}{who}: this one waits for its end");
}

/// A locked file with the number of the process that has it.
#[derive(Debug)]
struct Lock {
    file: File,
    path: PathBuf,
    /// The file is removed with the lock.
    is_temporary: bool,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The next holder may not have written its own number yet when somebody looks.
        let _ = self.file.set_len(0);
        if self.is_temporary && is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Lock {
    /// Locks a file. If another has it, `busy` is called with its process, and it is waited for; without `busy` there is
    /// `None`.
    fn take(path: &Path, is_temporary: bool, busy: Option<&dyn Fn(Option<u32>)>) -> Result<Option<Self>> {
        loop {
            let file = open_lock(path).with_context(|| format!("cannot open {}", path.display()))?;
            let locked = match busy {
                Some(busy) => lock_or_wait(&file, busy).map(|()| true),
                None => try_lock(&file),
            };
            if !locked.with_context(|| format!("cannot lock {}", path.display()))? {
                return Ok(None);
            }
            // The last holder may have removed it since it was opened, and somebody may have made another.
            if is_at(&file, path) {
                return Ok(Some(Self {
                    file,
                    path: path.to_owned(),
                    is_temporary,
                }));
            }
        }
    }
}

/// Whether the path leads to this file, and not to another one of that name.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Locks a file and writes the number of this process into it; false if another has it.
fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(false),
        locked => locked?,
    }
    sign(file);
    Ok(true)
}

/// Locks a file and writes the number of this process into it. If another process has the lock, `busy` is called with its
/// number.
fn lock_or_wait(file: &File, busy: impl FnOnce(Option<u32>)) -> io::Result<()> {
    if !try_lock(file)? {
        // Told before the wait, which may be long.
        busy(holder(file));
        flock(file, FlockOperation::LockExclusive)?;
        sign(file);
    }
    Ok(())
}

/// Only locking itself can fail: the number is for people, and a full disk must not stop a command.
fn sign(file: &File) {
    // Emptied first: the number before may have been longer.
    let _ = file.set_len(0);
    let _ = file.write_all_at(std::process::id().to_string().as_bytes(), 0);
}

/// The process that has the lock; `None` if the file does not say, or names one that is gone.
fn holder(lock: &File) -> Option<u32> {
    let mut text = String::new();
    lock.take(LONGEST_PID).read_to_string(&mut text).ok()?;
    let process = text.parse().ok()?;
    Path::new("/proc").join(text).exists().then_some(process)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::tests::domain;
    use std::sync::mpsc::{Receiver, channel};
    use std::thread::{self, JoinHandle};
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(10);
    const NOT_NOW: Duration = Duration::from_millis(200);

    /// Runs a test that would wait for ever if locks were taken in the wrong order.
    fn in_time(test: impl FnOnce(&Path) + Send + 'static) {
        let (done, hears) = channel();
        let test = thread::spawn(move || {
            let directory = tempfile::tempdir().unwrap();
            test(directory.path());
            drop(done);
        });
        // The channel ends with the thread, however that ends.
        let waited = hears.recv_timeout(Duration::from_secs(60));
        assert_eq!(
            waited,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected),
            "a lock is waited for"
        );
        let _: () = test.join().unwrap();
        let _: Receiver<()> = hears;
    }

    fn take_for(directory: &Path, guest: Option<DomId>) -> Turn {
        let find = || Ok((guest.map(|domid| domain(domid, "web")), ()));
        Turn::take_in(directory, find).unwrap().0
    }

    /// Takes a turn for this guest in a thread, which ends when it has it.
    fn take_elsewhere(directory: &Path, guest: Option<DomId>) -> (Receiver<()>, JoinHandle<Turn>) {
        let (has_it, hears) = channel();
        let directory = directory.to_owned();
        let taken = thread::spawn(move || {
            let turn = take_for(&directory, guest);
            has_it.send(()).unwrap();
            turn
        });
        (hears, taken)
    }

    /// The names of the locks that are there.
    fn locks(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn who_waits_for_another_command_hears_whose_the_lock_is_and_has_it_then() {
        in_time(|directory| {
            let path = directory.join("lock");
            fs::write(&path, "99999999999999").unwrap();
            let ours = std::process::id();
            let first = open_lock(&path).unwrap();
            lock_or_wait(&first, |_| panic!("nobody has it")).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), ours.to_string());
            let (mut held, mut heard) = (Some(first), None);
            let second = open_lock(&path).unwrap();
            let busy = |holder| {
                heard = holder;
                held.take();
            };
            lock_or_wait(&second, busy).unwrap();
            assert_eq!((heard, held.is_none()), (Some(ours), true));
            assert_eq!(fs::read_to_string(&path).unwrap(), ours.to_string());
            assert!(!try_lock(&open_lock(&path).unwrap()).unwrap());
        });
    }

    #[test]
    fn a_lock_that_says_nothing_sound_of_its_holder_is_waited_for_all_the_same() {
        in_time(|directory| {
            let path = directory.join("lock");
            for text in ["", "4194305", "-1", "nonsense", "\u{e9}"] {
                fs::write(&path, text).unwrap();
                let file = open_lock(&path).unwrap();
                flock(&file, FlockOperation::LockExclusive).unwrap();
                let (mut held, mut heard) = (Some(file), Some(0));
                let busy = |holder| {
                    heard = holder;
                    held.take();
                };
                lock_or_wait(&open_lock(&path).unwrap(), busy).unwrap();
                assert_eq!(heard, None, "{text}");
            }
        });
    }

    #[test]
    fn a_lock_that_ends_leaves_no_number_and_a_guests_no_file() {
        in_time(|directory| {
            let turn = take_for(directory, Some(3));
            assert_eq!(locks(directory), ["command.lock", "guest-3.lock"]);
            drop(turn);
            assert_eq!(locks(directory), ["command.lock"]);
            assert_eq!(fs::read_to_string(directory.join("command.lock")).unwrap(), "");
        });
    }

    #[test]
    fn the_file_of_another_holder_is_left_alone() {
        in_time(|directory| {
            let path = directory.join("guest-3.lock");
            let first = Lock::take(&path, true, None).unwrap().unwrap();
            // Somebody else has removed it.
            fs::remove_file(&path).unwrap();
            let second = Lock::take(&path, true, None).unwrap().unwrap();
            drop(first);
            assert!(is_at(&second.file, &path));
            assert!(Lock::take(&path, true, None).unwrap().is_none());
        });
    }

    #[test]
    fn a_lock_on_a_file_that_was_removed_meanwhile_is_none() {
        in_time(|directory| {
            let path = directory.join("guest-3.lock");
            let first = Lock::take(&path, true, None).unwrap().unwrap();
            let there = path.clone();
            let waiter = thread::spawn(move || Lock::take(&there, true, Some(&|_| ())).unwrap().unwrap());
            thread::sleep(NOT_NOW);
            // With it goes the file for which the other one waits.
            drop(first);
            let second = waiter.join().unwrap();
            assert!(is_at(&second.file, &path));
            assert!(Lock::take(&path, true, None).unwrap().is_none());
        });
    }

    #[test]
    fn while_a_command_waits_others_work_but_not_for_its_guest() {
        in_time(|directory| {
            let mut turn = take_for(directory, Some(3));
            let (other, other_turn) = take_elsewhere(directory, Some(4));
            other.recv_timeout(NOT_NOW).unwrap_err();
            let waits = || {
                other.recv_timeout(SOON).expect("another guest's turn");
                drop(other_turn.join().unwrap());
                let (none, none_turn) = take_elsewhere(directory, None);
                none.recv_timeout(SOON).expect("a turn for no guest");
                drop(none_turn.join().unwrap());
                let (same, same_turn) = take_elsewhere(directory, Some(3));
                same.recv_timeout(NOT_NOW).unwrap_err();
                Ok((same, same_turn))
            };
            // Who waits for the guest's lock does not keep the other one.
            let (same, same_turn) = turn.give_way(waits).unwrap();
            same.recv_timeout(NOT_NOW).unwrap_err();
            drop(turn);
            same.recv_timeout(SOON).expect("the guest's lock is free");
            drop(same_turn.join().unwrap());
            assert_eq!(locks(directory), ["command.lock"]);
        });
    }

    #[test]
    fn a_guest_that_is_another_one_after_a_wait_is_not_taken_for_the_one_that_was_meant() {
        in_time(|directory| {
            for later in [domain(4, "web"), domain(3, "web")] {
                let mut turn = take_for(directory, Some(3));
                turn.all = None;
                let (path, expected) = (directory.to_owned(), later.clone());
                let waiter = thread::spawn(move || {
                    let mut found = vec![later, domain(3, "web")];
                    Turn::take_in(&path, || Ok((found.pop(), ()))).map(drop)
                });
                thread::sleep(NOT_NOW);
                assert!(!waiter.is_finished());
                drop(turn);
                let taken = waiter.join().unwrap();
                match expected.domid {
                    3 => taken.unwrap(),
                    _ => assert!(
                        taken
                            .unwrap_err()
                            .to_string()
                            .starts_with("guest web (domain 3) has ended or has lost")
                    ),
                }
            }
        });
    }

    #[test]
    fn a_renamed_guest_is_the_same() {
        in_time(|directory| {
            let mut turn = take_for(directory, Some(3));
            turn.all = None;
            let path = directory.to_owned();
            let waiter = thread::spawn(move || {
                let mut found = vec![domain(3, "renamed"), domain(3, "web")];
                Turn::take_in(&path, || Ok((found.pop(), ()))).map(drop)
            });
            thread::sleep(NOT_NOW);
            drop(turn);
            waiter.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_guest_that_was_created_is_kept_from_others_until_the_turn_is_suspended() {
        in_time(|directory| {
            let mut turn = take_for(directory, None);
            turn.add_guest(3).unwrap();
            turn.resume().expect("once more does no harm");
            let (other, other_turn) = take_elsewhere(directory, None);
            other
                .recv_timeout(NOT_NOW)
                .expect_err("the turn was not given up for it");
            turn.all = None;
            other.recv_timeout(SOON).unwrap();
            drop(other_turn.join().unwrap());
            let (same, same_turn) = take_elsewhere(directory, Some(3));
            same.recv_timeout(NOT_NOW).unwrap_err();
            turn.suspend();
            same.recv_timeout(SOON).unwrap();
            // It has the guest's lock until its end, then this one has it again.
            let same_turn = same_turn.join().unwrap();
            let resumed = thread::spawn(move || {
                turn.resume().unwrap();
                turn
            });
            thread::sleep(NOT_NOW);
            assert!(!resumed.is_finished());
            drop(same_turn);
            assert!(resumed.join().unwrap().of_guest.is_some());
        });
    }

    #[test]
    fn the_lock_of_a_guest_that_another_command_has_yet_is_not_waited_for_when_one_was_created() {
        in_time(|directory| {
            let mut earlier = take_for(directory, Some(3));
            earlier.all = None;
            let mut turn = take_for(directory, None);
            let error = turn.add_guest(3).unwrap_err().to_string();
            assert!(
                error.starts_with("another bulkhead command is still at work"),
                "{error}"
            );
        });
    }

    #[test]
    fn a_turn_ends_when_nothing_is_found_and_is_had_again_also_after_a_wait_in_vain() {
        in_time(|directory| {
            let failed = Turn::take_in(directory, || -> Result<(Option<Domain>, ())> {
                anyhow::bail!("no such guest")
            });
            assert_eq!(failed.unwrap_err().to_string(), "no such guest");
            let mut turn = take_for(directory, None);
            let waited: Result<()> = turn.give_way(|| anyhow::bail!("gave up"));
            assert_eq!(waited.unwrap_err().to_string(), "gave up");
            let (other, other_turn) = take_elsewhere(directory, None);
            other.recv_timeout(NOT_NOW).unwrap_err();
            drop(turn);
            other.recv_timeout(SOON).unwrap();
            drop(other_turn.join().unwrap());
        });
    }
}
