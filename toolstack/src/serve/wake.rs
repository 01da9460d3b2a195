//! How other threads of the service, and signals, wake the thread that waits for everything.

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Becomes ready at a signal. Reads do not wait.
pub fn signal(signal: i32) -> io::Result<UnixStream> {
    let (receiver, sender) = UnixStream::pair()?;
    receiver.set_nonblocking(true)?;
    signal_hook::low_level::pipe::register(signal, sender)?;
    Ok(receiver)
}

/// Wakes the main thread. Clones wake the same one.
#[derive(Clone, Debug)]
pub struct Wake(Arc<OwnedFd>);

impl Wake {
    /// To be made before the process is confined.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?)))
    }

    /// Has the main thread look around.
    pub fn wake(&self) {
        // Fails only when it is as full as can be: then it wakes already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Takes the calls so far in, before what they are about is looked at.
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
