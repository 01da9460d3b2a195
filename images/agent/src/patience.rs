//! Waiting for nodes of xenstore, until a moment at most.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xenbus::client::Store as _;
use xenstore::Store;

/// Waits until `fd` can be read, or until `end`. False if it is too late.
///
/// # Errors
/// `fd` cannot be waited for.
pub fn readable(fd: impl AsFd, end: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        });
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], left.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

/// Reads a node as soon as it is there. `None` if it is not until `end`, or if the domain with this `home` has gone.
///
/// # Errors
/// xenstored refuses, or the connection fails.
pub fn value(store: &mut Store, home: &str, path: &str, end: Instant) -> Result<Option<String>> {
    loop {
        if let Some(value) = store.read_optional(path)? {
            return Ok(Some(value));
        }
        if !exists(store, home)? {
            return Ok(None);
        }
        // One event stands for all that have come.
        while store.next_event()?.is_none() {
            if !readable(store.transport(), Some(end))? {
                return Ok(None);
            }
        }
        while store.next_event()?.is_some() {}
    }
}

/// Whether there is a domain with this home. Its toolstack makes the home first, and all that is in it later.
fn exists(store: &mut Store, home: &str) -> Result<bool> {
    Ok(store.read_optional(home)?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenbus::model::Xenstored;

    #[test]
    fn a_domain_that_is_being_built_exists_and_one_that_has_gone_does_not() {
        let mut store = xenstore::over_model(Xenstored::new().connect(0));
        let home = "/local/domain/1";
        assert!(!exists(&mut store, home).unwrap());
        store.mkdir(home).unwrap();
        assert!(exists(&mut store, home).unwrap());
        store.remove(home).unwrap();
        assert!(!exists(&mut store, home).unwrap());
    }
}
