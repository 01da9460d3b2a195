//! The kernel's events about errors and removal of PCI functions, over a netlink socket.
//!
//! For each function below the port that heard of an uncorrectable error, Linux sends one event when it begins to
//! handle it, and one when it is done (`pci_uevent_ers` in `drivers/pci/pci-driver.c`).

use pci::bdf::Bdf;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recvfrom, socket_with};
use std::io;

/// The group to which the kernel sends; others are udev's.
const KERNEL_GROUP: u32 = 1;
/// The largest event that Linux makes is 2 KiB and its path.
const LARGEST: usize = 8192;

/// Phase of Linux's error handling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Linux has begun to handle the error.
    Begun,
    /// Linux is done, with success or without.
    Ended,
    /// Linux has removed the function, as it does with virtual functions when `sriov_numvfs` is set to 0.
    Removed,
}

/// An event about a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorEvent {
    /// The function.
    pub bdf: Bdf,
    /// The phase.
    pub phase: Phase,
}

/// The socket by which events come.
#[derive(Debug)]
pub struct Uevents(OwnedFd);

impl Uevents {
    /// Opens a socket that receives events from now on. Events wait until they are read.
    pub fn listen() -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            flags,
            Some(KOBJECT_UEVENT),
        )?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        Ok(socket)
    }

    /// The events of a socket from [`Self::listen`].
    pub const fn over(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// The next event about an error; `None` if there is none now. Other events are dropped.
    pub fn next(&self) -> io::Result<Option<ErrorEvent>> {
        let mut buffer = [0; LARGEST];
        loop {
            let (length, sender) = match recvfrom(&self.0, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _, sender)) => (length, sender),
                Err(Errno::AGAIN) => return Ok(None),
                // Some were lost, which shows in what follows: each recovery has an end of its own.
                Err(Errno::NOBUFS | Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let kernel = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
            // Only the kernel sends from port 0. A process could send an event to this socket too.
            if kernel.is_some_and(|sender| sender.pid() == 0)
                && let Some(event) = parse(&buffer[..length])
            {
                return Ok(Some(event));
            }
        }
    }
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Reads an event: `ACTION@PATH`, then `KEY=VALUE`, each ended by a zero byte.
fn parse(event: &[u8]) -> Option<ErrorEvent> {
    let mut pairs = event
        .split(|&byte| byte == 0)
        .filter_map(|text| std::str::from_utf8(text).ok()?.split_once('='));
    let (mut pci, mut bdf, mut phase) = (false, None, None);
    for (key, value) in &mut pairs {
        match (key, value) {
            ("ACTION", "remove") => phase = Some(Phase::Removed),
            ("SUBSYSTEM", value) => pci = value == "pci",
            ("PCI_SLOT_NAME", value) => bdf = value.parse().ok(),
            ("ERROR_EVENT", "BEGIN_RECOVERY") => phase = Some(Phase::Begun),
            ("ERROR_EVENT", "SUCCESSFUL_RECOVERY" | "FAILED_RECOVERY") => phase = Some(Phase::Ended),
            _ => {}
        }
    }
    Some(ErrorEvent {
        bdf: bdf.filter(|_| pci)?,
        phase: phase?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(lines: &[&str]) -> Option<ErrorEvent> {
        parse(lines.join("\0").as_bytes())
    }

    #[test]
    fn the_events_of_a_recovery_are_understood() {
        for (text, phase) in [
            ("BEGIN_RECOVERY", Phase::Begun),
            ("SUCCESSFUL_RECOVERY", Phase::Ended),
            ("FAILED_RECOVERY", Phase::Ended),
        ] {
            let event = event(&[
                "change@/devices/pci0000:00/0000:00:05.0/0000:01:00.0",
                "ACTION=change",
                "DEVPATH=/devices/pci0000:00/0000:00:05.0/0000:01:00.0",
                "SUBSYSTEM=pci",
                &format!("ERROR_EVENT={text}"),
                "DEVICE_ONLINE=0",
                "DRIVER=pciback",
                "PCI_SLOT_NAME=0000:01:00.0",
                "SEQNUM=1234",
                "",
            ]);
            let bdf = "0000:01:00.0".parse().unwrap();
            assert_eq!(event, Some(ErrorEvent { bdf, phase }));
        }
    }

    #[test]
    fn the_removal_of_a_function_is_understood() {
        let lines = [
            "remove@/devices/x",
            "ACTION=remove",
            "SUBSYSTEM=pci",
            "PCI_SLOT_NAME=0000:01:10.0",
            "",
        ];
        let bdf = "0000:01:10.0".parse().unwrap();
        let phase = Phase::Removed;
        assert_eq!(event(&lines), Some(ErrorEvent { bdf, phase }));
    }

    #[test]
    fn other_events_and_nonsense_are_passed_over() {
        let slot = "PCI_SLOT_NAME=0000:01:00.0";
        for lines in [
            &["add@/devices/x", "SUBSYSTEM=pci", slot][..],
            &[
                "change@/devices/x",
                "SUBSYSTEM=net",
                "ERROR_EVENT=BEGIN_RECOVERY",
                slot,
            ],
            &["change@/devices/x", "SUBSYSTEM=pci", "ERROR_EVENT=BEGIN_RECOVERY"],
            &["change@/devices/x", "SUBSYSTEM=pci", "ERROR_EVENT=OTHER", slot],
            &[
                "change@/devices/x",
                "SUBSYSTEM=pci",
                "ERROR_EVENT=BEGIN_RECOVERY",
                "PCI_SLOT_NAME=x",
            ],
            &[],
        ] {
            assert_eq!(event(lines), None, "{lines:?}");
        }
        assert_eq!(parse(&[0xff; 100]), None);
        assert_eq!(parse(&[]), None);
    }
}
