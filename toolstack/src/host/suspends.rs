//! Suspends of the host: to memory (ACPI S3), or to idle.

use std::path::Path;
use std::{fmt, fs, io};

/// The kernel's counters. A kernel that cannot suspend has none.
const COUNTERS: &str = "/sys/power/suspend_stats";

/// How often the host has been suspended since it booted. Both counts only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suspends {
    /// Suspends from which the host has come back.
    pub succeeded: u64,
    /// Suspends that the kernel has given up. Devices may have been without power by then.
    pub failed: u64,
}

impl Suspends {
    /// From the text that [`fmt::Display`] makes; `None` if it is another text.
    pub fn from_text(text: &str) -> Option<Self> {
        let (succeeded, failed) = text.split_once(' ')?;
        Some(Self {
            succeeded: succeeded.parse().ok()?,
            failed: failed.parse().ok()?,
        })
    }
}

impl fmt::Display for Suspends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.succeeded, self.failed)
    }
}

/// Reads the kernel's counters.
pub fn count() -> io::Result<Suspends> {
    read(Path::new(COUNTERS))
}

fn read(counters: &Path) -> io::Result<Suspends> {
    let number = |name| match fs::read_to_string(counters.join(name)) {
        Ok(text) => text.trim().parse().map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    };
    Ok(Suspends {
        succeeded: number("success")?,
        failed: number("fail")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_counters_never_suspends_and_a_counter_that_cannot_be_read_is_no_zero() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert_eq!(read(path).unwrap(), Suspends::default());
        fs::write(path.join("success"), "12\n").unwrap();
        fs::write(path.join("fail"), "3\n").unwrap();
        let count = Suspends {
            succeeded: 12,
            failed: 3,
        };
        assert_eq!(read(path).unwrap(), count);
        assert_eq!(Suspends::from_text(&count.to_string()), Some(count));
        fs::write(path.join("success"), "nonsense").unwrap();
        assert!(read(path).is_err());
        assert_eq!(Suspends::from_text("12"), None);
    }
}
