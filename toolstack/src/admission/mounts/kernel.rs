//! Asks the kernel whether a block device is in use, by opening it with `O_EXCL`.

use crate::host::sysfs::classes::BlockDevice;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
#[cfg(test)]
use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

/// A program that looks at disks, as udev does, may claim one for a moment.
const TRIES: u32 = 3;
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

/// Who is asked whether a block device is in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Kernel {
    /// This machine's kernel.
    #[default]
    Asked,
    /// A model for tests: opening these devices fails with an error.
    #[cfg(test)]
    Pretended(BTreeMap<String, Errno>),
}

impl Kernel {
    /// Claims a block device for a moment.
    pub fn claim(&self, disk: &BlockDevice) -> Result<(), Errno> {
        match self {
            Self::Asked => claim(&disk.node()),
            #[cfg(test)]
            Self::Pretended(errors) => errors.get(&disk.name).map_or(Ok(()), |error| Err(*error)),
        }
    }
}

fn claim(node: &str) -> Result<(), Errno> {
    // NONBLOCK: a drive with its tray open must not close it, and is not waited for.
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
    claim_by(|| open(node, flags, Mode::empty()).map(drop))
}

fn claim_by(mut open: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    let mut tries = TRIES;
    loop {
        tries -= 1;
        match open() {
            // No medium, or the disk has just gone: nobody can use it.
            Ok(()) | Err(Errno::NOMEDIUM | Errno::NXIO | Errno::NODEV) => return Ok(()),
            Err(Errno::BUSY) if tries > 0 => thread::sleep(BETWEEN_TRIES),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_asked_by_opening_the_node() {
        assert_eq!(claim("/nonexistent/disk"), Err(Errno::NOENT));
        assert_eq!(claim("/dev/null"), Ok(()));
    }

    #[test]
    fn a_disk_without_a_medium_is_free_and_one_that_is_busy_is_tried_again() {
        let claimed = |answers: &[Errno]| {
            let mut answers = answers.iter();
            claim_by(|| answers.next().map_or(Ok(()), |&error| Err(error)))
        };
        for gone in [Errno::NOMEDIUM, Errno::NXIO, Errno::NODEV] {
            assert_eq!(claimed(&[gone]), Ok(()), "{gone}");
        }
        for doubt in [Errno::IO, Errno::ACCESS, Errno::PERM, Errno::NOENT] {
            assert_eq!(claimed(&[doubt]), Err(doubt), "at once");
        }
        assert_eq!(claimed(&[Errno::BUSY; 2]), Ok(()), "busy for a moment");
        assert_eq!(claimed(&[Errno::BUSY; 3]), Err(Errno::BUSY));
        assert_eq!(claimed(&[Errno::BUSY, Errno::IO]), Err(Errno::IO));
    }
}
