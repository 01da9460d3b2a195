//! What the main thread of a process does, by `/proc`.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// What a thread does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadState {
    /// The letter in `stat`, such as `R`, `S`, `D` or `T`; the zero character if it is not known.
    pub state: char,
    /// Time that it has waited for a processor, in all. 0 if the kernel does not count it.
    pub queued: Duration,
}

impl ThreadState {
    /// The main thread of a process; `None` if there is no such process.
    pub fn of_main(process: u32) -> Option<Self> {
        Self::read(&Path::new("/proc").join(process.to_string()))
    }

    fn read(process: &Path) -> Option<Self> {
        let stat = fs::read_to_string(process.join("stat")).ok()?;
        // The name stands in brackets, and may have some itself.
        let (_, behind_name) = stat.rsplit_once(')')?;
        let state = behind_name.trim_start().chars().next()?;
        // Run time, time in the queue, number of runs. Without CONFIG_SCHED_INFO there is no such file.
        let counts = fs::read_to_string(process.join("schedstat")).unwrap_or_default();
        let queued = counts.split_whitespace().nth(1);
        let queued = queued.and_then(|count| count.parse().ok()).unwrap_or(0);
        Some(Self {
            state,
            queued: Duration::from_nanos(queued),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, Signal, kill_process};
    use std::process::Command;
    use std::thread;

    #[test]
    fn the_name_of_a_process_does_not_hide_its_state() {
        let process = tempfile::tempdir().unwrap();
        fs::write(process.path().join("stat"), "77 (a) T (b) D 1 77 77 0\n").unwrap();
        let read = || ThreadState::read(process.path());
        let stopped = |millis| {
            let queued = Duration::from_millis(millis);
            Some(ThreadState { state: 'D', queued })
        };
        assert_eq!(read(), stopped(0));
        fs::write(process.path().join("schedstat"), "1000 5000000 12\n").unwrap();
        assert_eq!(read(), stopped(5));
        fs::remove_file(process.path().join("stat")).unwrap();
        assert_eq!(read(), None);
    }

    #[test]
    fn a_process_that_was_stopped_is_seen_to_be() {
        let mut process = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(process.id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
        while ThreadState::of_main(process.id()).unwrap().state != 'T' {
            thread::yield_now();
        }
        process.kill().unwrap();
        process.wait().unwrap();
        assert_eq!(ThreadState::of_main(process.id()), None);
    }
}
