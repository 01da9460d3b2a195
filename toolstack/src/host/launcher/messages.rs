//! The messages between a worker and its launcher, and the sockets that carry them.

use crate::host::guest_config::StubOrigin;
use crate::host::recreate::NewStub;
use crate::serde_text;
use crate::terms::Terms;
use bulkhead_config::telemetry::Telemetry;
use pci::bdf::Bdf;
use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, send, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::time::Duration;
use xen::xenctrl::DomId;
use xenbus::device::SlotMode;

/// The longest message.
const LONGEST: usize = 64 << 10;

/// Files that all workers of a launcher share. They outlive each worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SharedFile {
    /// The socket on which commands ask the service.
    Socket,
    /// The lock of the one service of this host.
    Lock,
    /// The kernel's events.
    Uevents,
}

/// The orders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "order")]
pub enum Order {
    /// `xl destroy DOMAIN`.
    DestroyDomain {
        /// The domain.
        domid: DomId,
    },
    /// `bulkhead detach BDF`.
    Detach {
        /// The device.
        #[serde(with = "serde_text::text")]
        bdf: Bdf,
    },
    /// `bulkhead destroy BDF`: the guest that has the device.
    DestroyGuest {
        /// The device.
        #[serde(with = "serde_text::text")]
        bdf: Bdf,
    },
    /// `bulkhead start GUEST`: the devices that a guest is to have whenever it starts.
    Start {
        /// The guest.
        guest: DomId,
    },
    /// `bulkhead recreate`: a stub with a number of our choice.
    Recreate(NewStub),
    /// `xl network-attach STUB`: the interface of a stub that was created again.
    Network {
        /// The stub.
        stub: DomId,
        /// Its network, with its Ethernet address.
        #[serde(with = "serde_text::text")]
        telemetry: Telemetry,
    },
    /// Answered when no earlier launcher's process creates a stub any more.
    #[serde(rename = "settle")]
    AwaitCreations,
    /// A connection to xenstore, which a worker cannot open itself.
    Store,
    /// A file that all workers share.
    Share {
        /// The file.
        file: SharedFile,
    },
    /// A further connection to this launcher, for another thread.
    Connection,
    /// Answered when no other worker serves: from then on this one does.
    Serve,
    /// Tells that the worker has begun to serve.
    Begun,
    /// Tells that the loop of the worker that serves goes on. Not answered.
    Alive,
    /// `bulkhead attach GUEST`: devices for a guest that has none, by a new stub.
    Attach {
        /// The guest.
        guest: DomId,
        /// The devices, each with the terms that the guest had it on.
        devices: Vec<(String, Terms)>,
        /// How the guest addresses them.
        #[serde(with = "serde_text::text")]
        slots: SlotMode,
        /// What its stub was created from.
        #[serde(flatten)]
        origin: StubOrigin,
    },
}

impl Order {
    /// True if a command of this program carries it out, which asks the service, or a script that may hang.
    pub const fn is_command(&self) -> bool {
        matches!(
            self,
            Self::Detach { .. }
                | Self::DestroyGuest { .. }
                | Self::Attach { .. }
                | Self::Start { .. }
                | Self::Network { .. }
        )
    }
}

/// Number of an order, by which its answer is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ticket(pub u64);

/// An order with its number.
#[derive(Serialize, Deserialize)]
pub struct PlacedOrder {
    /// The number of the order.
    pub ticket: Ticket,
    #[serde(flatten)]
    /// The order.
    pub order: Order,
}

/// What has become of the service so far. The launcher tells it to a worker whose turn has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ServiceHistory {
    /// When the service was started, in seconds since 1970.
    pub started: u64,
    /// Workers that died while they served. Another one took over.
    pub died: u64,
    /// Workers that were killed because they hung while they served. Another one took over.
    pub hung: u64,
}

/// The answer to an order.
#[derive(Serialize, Deserialize)]
pub struct Answered {
    /// The number of the order.
    pub ticket: Ticket,
    /// The reason if the order failed.
    pub failure: Option<String>,
    /// With the answer to [`Order::Serve`].
    #[serde(default)]
    pub history: Option<ServiceHistory>,
}

/// The two ends of a connection that preserves message boundaries.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(socketpair(family, kind, SocketFlags::CLOEXEC, None)?)
}

/// True if there is a message, or the end, within `longest`.
pub fn ready(socket: &impl AsFd, longest: Duration) -> io::Result<bool> {
    let longest = Timespec::try_from(longest).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&longest)) {
        Ok(ready) => Ok(ready > 0),
        // A signal may ask this process to end: the caller looks again.
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Sends a message, with a file if there is one.
pub fn tell(
    socket: &impl AsFd,
    message: &impl Serialize,
    file: Option<&OwnedFd>,
    flags: SendFlags,
) -> io::Result<()> {
    let text = serde_json::to_string(message)?;
    // A peer that is gone is an error of this call, and no SIGPIPE for the process.
    let flags = flags | SendFlags::NOSIGNAL;
    let Some(file) = file else {
        // Not `sendmsg`, which a worker may not call: a filter cannot see to whom it sends.
        send(socket, text.as_bytes(), flags)?;
        return Ok(());
    };
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [file.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&files));
    let text = [IoSlice::new(text.as_bytes())];
    sendmsg(socket, &text, &mut control, flags)?;
    Ok(())
}

/// The next message, with the file that came along; `None` if the other end is closed.
pub fn hear<T: DeserializeOwned>(socket: &impl AsFd) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let Some(message) = receive(socket, &mut control)? else {
        return Ok(None);
    };
    let mut file = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            file = files.last();
        }
    }
    Ok(Some((message, file)))
}

/// The next message, for a receiver that expects no file. A file that is sent all the same is closed.
pub fn hear_without_file<T: DeserializeOwned>(socket: &impl AsFd) -> io::Result<Option<T>> {
    receive(socket, &mut RecvAncillaryBuffer::default())
}

fn receive<T: DeserializeOwned>(
    socket: &impl AsFd,
    control: &mut RecvAncillaryBuffer<'_>,
) -> io::Result<Option<T>> {
    let mut buffer = vec![0; LONGEST];
    let length = loop {
        let pieces = &mut [IoSliceMut::new(&mut buffer)];
        match recvmsg(socket, pieces, control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            // A peer that ends with messages unread resets the connection.
            Err(Errno::CONNRESET) => return Ok(None),
            received => break received?.bytes,
        }
    };
    // A closed end reads as an empty message; nobody sends one.
    if length == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&buffer[..length])?))
}
