//! A connection of this process to xenstored, in dom0 or in a Linux guest.
#![forbid(unsafe_code)]

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

/// Sockets of the daemon.
const SOCKETS: [&str; 2] = ["/run/xenstored/socket", "/var/run/xenstored/socket"];
/// The kernel's device, for a xenstore in a domain of its own.
const DEVICE: &str = "/dev/xen/xenbus";

/// xenstore cannot be reached.
#[derive(Debug, Error)]
#[error("cannot reach xenstore by {socket} or {DEVICE}: is xenstored running? Start Xen's services first", socket = SOCKETS[0])]
pub struct NoStore(#[source] io::Error);

/// Connects to xenstore.
pub fn open() -> Result<Store, NoStore> {
    connect().map(over)
}

/// A connection for a [`Store`] of this process or another one.
pub fn connect() -> Result<OwnedFd, NoStore> {
    let sockets = SOCKETS
        .iter()
        .map(|path| UnixStream::connect(path).map(OwnedFd::from));
    match sockets.into_iter().find_map(Result::ok) {
        Some(socket) => Ok(socket),
        None => {
            let device = OpenOptions::new().read(true).write(true).open(DEVICE);
            device.map(OwnedFd::from).map_err(NoStore)
        }
    }
}

/// A client over a fresh connection.
pub fn over(connection: OwnedFd) -> Store {
    Client::new(Stream(Kind::File(connection.into())))
}

/// The byte stream of a connection.
#[derive(Debug)]
pub struct Stream(Kind);

#[derive(Debug)]
enum Kind {
    File(File),
    #[cfg(feature = "model")]
    Model(xenbus::model::Connection),
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Kind::File(file) => file.as_fd(),
            #[cfg(feature = "model")]
            Kind::Model(_) => panic!("a model cannot be waited for"),
        }
    }
}

impl Transport for Stream {
    type Error = io::Error;

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.0 {
            Kind::File(file) => file.write_all(bytes),
            #[cfg(feature = "model")]
            Kind::Model(connection) => connection.send(bytes).map_err(failed),
        }
    }

    fn receive(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        match &mut self.0 {
            Kind::File(file) => file.read_exact(bytes),
            #[cfg(feature = "model")]
            Kind::Model(connection) => connection.receive(bytes).map_err(failed),
        }
    }

    fn ready(&mut self) -> io::Result<bool> {
        match &mut self.0 {
            Kind::File(file) => {
                let mut fds = [PollFd::new(file, PollFlags::IN)];
                let now = Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                };
                Ok(poll(&mut fds, Some(&now))? > 0)
            }
            #[cfg(feature = "model")]
            Kind::Model(connection) => connection.ready().map_err(failed),
        }
    }
}

/// A client over a connection to a model, for tests.
#[cfg(feature = "model")]
pub fn over_model(connection: xenbus::model::Connection) -> Store {
    Client::new(Stream(Kind::Model(connection)))
}

#[cfg(feature = "model")]
fn failed(error: impl std::fmt::Debug) -> io::Error {
    io::Error::other(format!("{error:?}"))
}
