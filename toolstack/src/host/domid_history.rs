//! libxl's list of domain numbers that were in use in the last minute. libxl gives them to no new domain, because a
//! tool that still means the old domain would take the new one for it. A stub that comes back with its number is
//! meant to be taken for the old one, so its number, and no other, is removed from the list.

use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use xen::xenctrl::DomId;

/// Directories of libxl's run-time files, by how it was built.
const DIRECTORIES: [&str; 2] = ["/run/xen", "/var/run/xen"];
/// The list: lines `SECONDS NUMBER`.
const LIST: &str = "domid-history";
/// Locked by who changes the list, and replaced with it (`libxl__lock_file`).
const LOCK: &str = "domid-history.lock";
/// Name of the new list until it replaces the old one. libxl uses another name.
const NEW: &str = "domid-history.bulkhead";

/// Removes a number from the list. It is no error if there is no list.
pub fn strike(domid: DomId) -> io::Result<()> {
    DIRECTORIES
        .iter()
        .try_for_each(|directory| strike_in(Path::new(directory), domid))
}

fn strike_in(directory: &Path, domid: DomId) -> io::Result<()> {
    if !directory.join(LIST).exists() {
        return Ok(());
    }
    let _lock = lock(&directory.join(LOCK))?;
    let list = match fs::read_to_string(directory.join(LIST)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        list => list?,
    };
    let left = without(&list, domid);
    if left != list {
        // Readers do not lock: they see the old list or the new one, never half of it.
        fs::write(directory.join(NEW), left)?;
        fs::rename(directory.join(NEW), directory.join(LIST))?;
    }
    Ok(())
}

fn without(list: &str, domid: DomId) -> String {
    let number = domid.to_string();
    let others = |line: &&str| line.split_whitespace().nth(1) != Some(&number);
    list.split_inclusive('\n').filter(others).collect()
}

/// Libxl removes the file when it lets go of the lock: what was locked may be a file that nobody finds any more.
fn lock(path: &Path) -> io::Result<File> {
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        let locked = file.metadata()?;
        match fs::metadata(path) {
            Ok(named) if (named.dev(), named.ino()) == (locked.dev(), locked.ino()) => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "100 4\n101 14\n102 4\n103 40\n";

    #[test]
    fn one_number_is_struck_and_the_others_stay() {
        assert_eq!(without(BEFORE, 4), "101 14\n103 40\n");
        assert_eq!(
            without(BEFORE, 100),
            BEFORE,
            "the seconds are no numbers of domains"
        );
        assert_eq!(without("", 4), "");
    }

    #[test]
    fn the_list_is_replaced_under_libxls_lock() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        strike_in(directory.path(), 4).expect("without a list there is nothing to do");
        assert!(!at(LOCK).exists());

        fs::write(at(LIST), BEFORE).unwrap();
        let held = lock(&at(LOCK)).unwrap();
        let other = {
            let directory = directory.path().to_owned();
            std::thread::spawn(move || strike_in(&directory, 4))
        };
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(fs::read_to_string(at(LIST)).unwrap(), BEFORE);
        // As libxl lets go: the file first, then the lock.
        fs::remove_file(at(LOCK)).unwrap();
        drop(held);
        other.join().unwrap().unwrap();
        assert_eq!(fs::read_to_string(at(LIST)).unwrap(), "101 14\n103 40\n");
        assert!(!at(NEW).exists());
    }
}
