//! The memory of a worker that stands by. It may stand by for months, and its pages would be the first that the kernel drops
//! or swaps out. A guest would then wait for the disk when the worker takes over.

use rustix::mm::{MlockAllFlags, mlockall, munlockall};

/// Brings all pages that this process has now into memory, and keeps them there until this is dropped. What cannot be locked
/// is only slower, so a refusal is no error.
#[derive(Debug)]
pub struct LockedMemory {
    is_locked: bool,
}

impl LockedMemory {
    /// Locks. Memory that comes later is not locked.
    pub fn lock() -> Self {
        let locked = mlockall(MlockAllFlags::CURRENT);
        if let Err(error) = locked {
            log::debug!("the memory of the worker that stands by cannot be locked: {error}");
        }
        Self {
            is_locked: locked.is_ok(),
        }
    }
}

impl Drop for LockedMemory {
    fn drop(&mut self) {
        // A locked area that grows counts against the limit for locked memory: a worker that serves could fail to get memory.
        if self.is_locked
            && let Err(error) = munlockall()
        {
            log::warn!("the memory of this worker stays locked: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::confine::tests::confined;
    use std::fs;

    /// KiB that are locked.
    fn locked() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
        line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn a_confined_worker_has_its_memory_locked_while_it_stands_by_and_not_when_it_serves() {
        let [before, meanwhile, after] = confined(|| {
            let before = locked();
            let memory = LockedMemory::lock();
            let meanwhile = locked();
            drop(memory);
            [before, meanwhile, locked()]
        });
        assert_eq!((before, after), (0, 0));
        // Without the right to it nothing is locked, and nothing fails.
        let may_lock = mlockall(MlockAllFlags::CURRENT).is_ok();
        munlockall().unwrap();
        assert_eq!(meanwhile > 1000, may_lock, "{meanwhile} KiB");
    }
}
