//! Suspends of the host: to memory (ACPI S3), or to idle.

use std::fs;
use std::path::Path;

/// The kernel's counter. A kernel that cannot suspend has none.
const COUNTER: &str = "/sys/power/suspend_stats/success";

/// How often the host has been suspended since it booted, and has come back.
pub fn count() -> u64 {
    read(Path::new(COUNTER))
}

fn read(counter: &Path) -> u64 {
    let text = fs::read_to_string(counter).ok();
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_the_counter_never_suspends() {
        let directory = tempfile::tempdir().unwrap();
        let counter = directory.path().join("success");
        assert_eq!(read(&counter), 0);
        for (text, count) in [("0\n", 0), ("12\n", 12), ("nonsense", 0)] {
            fs::write(&counter, text).unwrap();
            assert_eq!(read(&counter), count);
        }
    }
}
