//! A connection of this process to xenstored, in dom0 or in a Linux guest.
#![forbid(unsafe_code)]

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use thiserror::Error;
use xenbus::client::{Client, Transport};
use xenbus::wire;

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
    let file = BufReader::with_capacity(READ_AHEAD, connection.into());
    Client::new(Stream(Kind::File(file)))
}

/// Most bytes that are taken from the descriptor at once: the largest message. A client receives header and payload one after
/// the other, and one read of the descriptor has both.
const READ_AHEAD: usize = wire::Header::SIZE + wire::PAYLOAD_MAX;

/// The byte stream of a connection.
#[derive(Debug)]
pub struct Stream(Kind);

#[derive(Debug)]
enum Kind {
    File(BufReader<File>),
    #[cfg(feature = "model")]
    Model(xenbus::model::Connection),
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Kind::File(file) => file.get_ref().as_fd(),
            #[cfg(feature = "model")]
            Kind::Model(_) => panic!("a model cannot be waited for"),
        }
    }
}

impl Transport for Stream {
    type Error = io::Error;

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.0 {
            Kind::File(file) => file.get_mut().write_all(bytes),
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
        if self.has_read_ahead() {
            return Ok(true);
        }
        match &mut self.0 {
            Kind::File(file) => {
                let mut fds = [PollFd::new(file.get_ref(), PollFlags::IN)];
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

    fn has_read_ahead(&self) -> bool {
        match &self.0 {
            Kind::File(file) => !file.buffer().is_empty(),
            #[cfg(feature = "model")]
            Kind::Model(_) => false,
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

#[cfg(test)]
mod tests {
    use super::*;
    use xenbus::client::{Store as _, WatchEvent};
    use xenbus::wire::{Header, Kind as Message};

    fn message(kind: Message, request: u32, payload: &[u8]) -> Vec<u8> {
        let header = Header {
            kind: kind as u32,
            request,
            transaction: 0,
            length: payload.len() as u32,
        };
        [&header.encode()[..], payload].concat()
    }

    fn is_ready(stream: &Stream) -> bool {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&now)).unwrap() > 0
    }

    #[test]
    fn a_message_takes_one_read_and_what_came_with_it_is_not_forgotten() {
        let (mut daemon, ours) = UnixStream::pair().unwrap();
        let mut store = over(ours.into());
        let event = |path: &str| message(Message::WatchEvent, 0, format!("{path}\0t\0").as_bytes());
        let came = |path: &str| {
            Some(WatchEvent {
                path: path.into(),
                token: "t".into(),
            })
        };
        daemon.write_all(&message(Message::Watch, 1, b"OK\0")).unwrap();
        store.watch("/a", "t").unwrap();
        assert!(!store.has_events());
        // The reply to a reading, and events behind it.
        let behind = [message(Message::Read, 2, b"value"), event("/a/1"), event("/a/2")];
        daemon.write_all(&behind.concat()).unwrap();
        assert_eq!(store.read("/a").unwrap(), "value");
        assert!(!is_ready(store.transport()), "all was read at once");
        assert!(store.has_events(), "nobody may wait for the descriptor now");
        assert_eq!(store.next_event().unwrap(), came("/a/1"));
        assert!(store.has_events());
        assert_eq!(store.next_event().unwrap(), came("/a/2"));
        assert!(!store.has_events());
        assert_eq!(store.next_event().unwrap(), None);
        // One that has not come whole.
        let (first, rest) = (event("/a/3"), event("/a/4"));
        daemon.write_all(&[&first[..], &rest[..9]].concat()).unwrap();
        assert_eq!(store.next_event().unwrap(), came("/a/3"));
        daemon.write_all(&rest[9..]).unwrap();
        assert_eq!(store.next_event().unwrap(), came("/a/4"));
        assert!(!store.has_events() && !is_ready(store.transport()));
    }
}
