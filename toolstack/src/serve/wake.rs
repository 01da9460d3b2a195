//! How other threads of a process, and signals, wake its main thread, which waits in `poll`.

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// A socket that becomes ready to be read at a signal. Reads do not block.
pub fn signal(signal: i32) -> io::Result<UnixStream> {
    let (receiver, sender) = UnixStream::pair()?;
    receiver.set_nonblocking(true)?;
    signal_hook::low_level::pipe::register(signal, sender)?;
    Ok(receiver)
}

/// Wakes the main thread. Clones wake the same thread.
#[derive(Clone, Debug)]
pub struct Wake(Arc<OwnedFd>);

impl Wake {
    /// To be made before the process is confined: its filter does not allow `eventfd`.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?)))
    }

    /// Ends the main thread's wait, or the next one.
    pub fn wake(&self) {
        // A write fails only if the counter is at its maximum. Then the descriptor is ready already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Forgets the calls so far. To be called before the work is looked for, or a call in between would be lost.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    #[test]
    fn a_call_is_seen_until_it_is_taken_in() {
        let wake = Wake::new().unwrap();
        let is_seen = || {
            let now = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            poll(&mut [PollFd::new(&wake, PollFlags::IN)], Some(&now)).unwrap() == 1
        };
        assert!(!is_seen());
        let other = wake.clone();
        std::thread::spawn(move || (0..3).for_each(|_| other.wake()))
            .join()
            .unwrap();
        assert!(is_seen());
        wake.clear();
        assert!(!is_seen());
        wake.clear();
    }
}
