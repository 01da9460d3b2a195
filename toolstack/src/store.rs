//! A connection of this process to xenstored.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use thiserror::Error;
use xenbus::client::{Client, Transport};

/// A xenstore client over the socket of the daemon, or the kernel's device.
pub type Store = Client<Stream>;
/// A failed request of [`Store`].
pub type StoreError = xenbus::client::Error<io::Error>;

/// Where the daemon listens.
const SOCKETS: [&str; 2] = ["/run/xenstored/socket", "/var/run/xenstored/socket"];
/// How a xenstore in a domain of its own is reached.
const DEVICE: &str = "/dev/xen/xenbus";

/// No xenstore.
#[derive(Debug, Error)]
#[error("cannot reach xenstore by {socket} or {DEVICE}: is xenstored running? Start Xen's services first", socket = SOCKETS[0])]
pub struct NoStore(#[source] io::Error);

/// Connects to xenstore.
pub fn open() -> Result<Store, NoStore> {
    let sockets = SOCKETS
        .iter()
        .map(|path| UnixStream::connect(path).map(OwnedFd::from));
    let connected = sockets.into_iter().find_map(Result::ok).map(File::from);
    let file = match connected {
        Some(file) => file,
        None => OpenOptions::new()
            .read(true)
            .write(true)
            .open(DEVICE)
            .map_err(NoStore)?,
    };
    Ok(Client::new(Stream(file)))
}

/// The byte stream of a connection.
#[derive(Debug)]
pub struct Stream(File);

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Transport for Stream {
    type Error = io::Error;

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn receive(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.0.read_exact(bytes)
    }

    fn ready(&mut self) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        Ok(poll(&mut fds, Some(&now))? > 0)
    }
}
