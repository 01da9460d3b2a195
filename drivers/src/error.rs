//! Errors: what went wrong, who has to change something, and what the guest is told.
//!
//! [`RequestError`] is the answer to one request. [`SetupError`] ends or prevents a connection, or the export of one
//! device. Every message names the thing, the cause and the next step.

use alloc::format;
use alloc::string::String;
use core::fmt;
use core::time::Duration;
use pci::bdf::Bdf;
use xenbus::device::{Ids, Quirk};
use xenbus::pciif;
use xenbus::printable::Printable;

use crate::platform::{DomId, Errno};

/// Who has to change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The guest asked for what it may not have, or wrote nonsense.
    Guest,
    /// The device does not behave as a sound one does.
    Device,
    /// What runs in dom0: the toolstack, or `bulkhead serve`.
    Toolstack,
    /// The stub itself.
    Us,
}

impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guest => "guest",
            Self::Device => "device",
            Self::Toolstack => "toolstack",
            Self::Us => "stub",
        })
    }
}

/// Which kind of message-signalled interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// One vector, in config space.
    Msi,
    /// A table of vectors, in a BAR.
    Msix,
}

impl fmt::Display for MessageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Msi => "MSI",
            Self::Msix => "MSI-X",
        })
    }
}

/// Why MSI or MSI-X is not turned on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageRefusal {
    /// The device has no such capability.
    NoCapability,
    /// It is on already.
    AlreadyOn,
    /// The other kind is on.
    OtherKindOn,
    /// The device does not decode memory, so its vector table cannot be reached (XSA-157).
    MemoryDecodeOff,
    /// The device is not in power state D0: it answers no memory access, although its COMMAND says that it decodes.
    Asleep,
    /// More vectors than a request can hold.
    TooManyVectors(u32),
    /// No vector at all.
    NoVectors,
    /// The same table entry twice: Xen would map it twice without complaint.
    DuplicateEntry(u16),
    /// The toolstack wants none of it for this device.
    SwitchedOff,
    /// An entry past the end of the device's table.
    EntryPastTable {
        /// The entry asked for.
        entry: u16,
        /// Number of entries in the table.
        table: u16,
    },
}

/// Why a request is answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// Nothing at that virtual address. Every scan of the virtual bus meets this.
    NoDevice,
    /// Size, alignment or range of a config access.
    BadAccess {
        /// As the guest sent it.
        offset: i32,
        /// As the guest sent it.
        size: i32,
    },
    /// The policy does not let the guest change this register so.
    Denied {
        /// Name of the register.
        register: &'static str,
    },
    /// The guest sets bits of MSI or MSI-X that only `enable_*` and `disable_*` turn.
    MessageControl {
        /// Name of the register.
        register: &'static str,
    },
    /// No command that a backend answers.
    UnknownCommand(u32),
    /// MSI or MSI-X cannot be turned on.
    Message(MessageKind, MessageRefusal),
    /// The device lacks the power state asked for.
    PowerState(u8),
    /// The device reads all-ones: it is gone, or in a power state without config space.
    DeviceSilent,
    /// There is no second hop at the moment.
    ServiceAbsent,
    /// An earlier request is still unanswered, and nothing may be sent until it is.
    ServiceBusy,
    /// The answer did not come in time.
    ServiceSilent(Duration),
    /// The service said no.
    ServiceRefused(pciif::OpError),
    /// The service's answer makes no sense.
    ServiceNonsense,
    /// This very request has brought the stub down twice.
    Poisonous,
}

impl RequestError {
    /// What the guest is told.
    ///
    /// The values are xen-pciback's: one for all that can go wrong with MSI, errno values for MSI-X.
    pub const fn answer(self) -> pciif::OpError {
        use MessageRefusal as R;
        use pciif::OpError as E;
        match self {
            Self::NoDevice => E::DeviceNotFound,
            Self::BadAccess { .. } => E::InvalidOffset,
            Self::Denied { .. } | Self::MessageControl { .. } | Self::PowerState(_) => E::AccessDenied,
            Self::UnknownCommand(_) => E::NotImplemented,
            Self::Message(MessageKind::Msi, _) | Self::Message(_, R::SwitchedOff) => E::OpFailed,
            // What xen-pciback itself checks has its errno; the rest has the one that Linux's MSI core gives it.
            Self::Message(MessageKind::Msix, refusal) => match refusal {
                R::AlreadyOn => E::EALREADY,
                R::OtherKindOn | R::MemoryDecodeOff => E::ENXIO,
                R::SwitchedOff
                | R::NoCapability
                | R::Asleep
                | R::TooManyVectors(_)
                | R::NoVectors
                | R::DuplicateEntry(_)
                | R::EntryPastTable { .. } => E::EINVAL,
            },
            Self::DeviceSilent
            | Self::ServiceAbsent
            | Self::ServiceBusy
            | Self::ServiceSilent(_)
            | Self::ServiceRefused(_)
            | Self::ServiceNonsense
            | Self::Poisonous => E::OpFailed,
        }
    }

    /// Who has to change something.
    pub const fn blame(self) -> Blame {
        match self {
            Self::NoDevice
            | Self::BadAccess { .. }
            | Self::Denied { .. }
            | Self::MessageControl { .. }
            | Self::UnknownCommand(_)
            | Self::PowerState(_) => Blame::Guest,
            // Not the guest: it cannot know of the rule, and asks as any guest does.
            Self::Message(_, MessageRefusal::SwitchedOff) => Blame::Toolstack,
            Self::Message(..) => Blame::Guest,
            Self::DeviceSilent => Blame::Device,
            Self::ServiceAbsent
            | Self::ServiceBusy
            | Self::ServiceSilent(_)
            | Self::ServiceRefused(_)
            | Self::ServiceNonsense => Blame::Toolstack,
            Self::Poisonous => Blame::Us,
        }
    }

    /// True if every stock guest causes this error and means no harm. Linux scans addresses without a device, and sets the
    /// enable bit of MSI-X itself before it sends `enable_msix`; it ignores the refusal (`drivers/pci/msi/msi.c`).
    pub const fn is_routine(self) -> bool {
        matches!(self, Self::NoDevice | Self::MessageControl { .. })
    }
}

impl fmt::Display for MessageRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCapability => f.write_str("the device has no such capability; use what lspci shows"),
            Self::SwitchedOff => {
                f.write_str("switched off for this device; `bulkhead status` in dom0 says by which rule")
            }
            Self::AlreadyOn => f.write_str("it is on already; turn it off first"),
            Self::OtherKindOn => f.write_str("the other kind is on; turn that off first"),
            Self::MemoryDecodeOff => {
                f.write_str("the device does not decode memory; set COMMAND.MEMORY first (XSA-157)")
            }
            Self::Asleep => f.write_str("the device is not in D0; set its power state first"),
            Self::TooManyVectors(count) => {
                write!(f, "{count} vectors asked for; a request holds at most 128")
            }
            Self::NoVectors => f.write_str("no vectors asked for; ask for 1 to 128"),
            Self::DuplicateEntry(entry) => {
                write!(f, "table entry {entry} asked for twice; each may be mapped once")
            }
            Self::EntryPastTable { entry, table } => {
                write!(f, "table entry {entry} asked for; the device has {table}")
            }
        }
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDevice => f.write_str("no device at this address; scan for those that are there"),
            Self::BadAccess { offset, size } => write!(
                f,
                "config access of {size} bytes at {offset:#x}: must be 1, 2 or 4, aligned, and below 4096"
            ),
            Self::Denied { register } => write!(
                f,
                "write to {register}: this change is not the guest's to make; see docs/config-space.md"
            ),
            Self::MessageControl { register } => {
                write!(
                    f,
                    "write to {register}: only enable and disable requests turn these bits"
                )
            }
            Self::UnknownCommand(command) => {
                write!(f, "command {command} is none that a backend answers; use 0 to 5")
            }
            Self::Message(kind, refusal) => write!(f, "{kind} not turned on: {refusal}"),
            Self::PowerState(state) => {
                write!(
                    f,
                    "the device has no power state D{state}; use one that its PMC names"
                )
            }
            Self::DeviceSilent => {
                f.write_str("the device answers all-ones; check in dom0 that it is there and powered")
            }
            Self::ServiceAbsent => {
                f.write_str("dom0's service is not connected; is `bulkhead serve` running?")
            }
            Self::ServiceBusy => f.write_str(
                "dom0's service still owes the answer to an earlier request; is `bulkhead serve` running?",
            ),
            Self::ServiceSilent(waited) => write!(
                f,
                "dom0's service did not answer within {} ms; is `bulkhead serve` running?",
                waited.as_secs() * 1000 + u64::from(waited.subsec_millis())
            ),
            Self::ServiceRefused(error) => write!(f, "dom0's service refused: {error}; see its log in dom0"),
            Self::Poisonous => f.write_str(
                "this very request has brought the stub down twice; please report the bytes that the log shows",
            ),
            Self::ServiceNonsense => f.write_str(
                "the answer of dom0's service makes no sense; are stub and `bulkhead` of one version?",
            ),
        }
    }
}

impl core::error::Error for RequestError {}

/// Why a connection does not come about, or ends.
#[derive(Debug, PartialEq, Eq)]
pub enum SetupError {
    /// A node that must be there is not.
    MissingNode {
        /// Who should have written it.
        blame: Blame,
        /// Its path.
        path: String,
    },
    /// A node's value is not what it should be.
    BadNode {
        /// Who wrote it.
        blame: Blame,
        /// Its path.
        path: String,
        /// Its value, cut to a length that a log can bear.
        value: Excerpt,
        /// What should stand there.
        expected: &'static str,
    },
    /// A device of the first hop that dom0's service does not list for this stub.
    NotServed(Bdf),
    /// The same device twice.
    Duplicate(Bdf),
    /// No free slot on the virtual bus.
    BusFull(Bdf),
    /// No address is left in the stub to map it at.
    NoRoom(Bdf),
    /// Its node names a guest address that it cannot have had.
    Misplaced(Bdf),
    /// A second guest.
    OtherGuest {
        /// The guest that asks.
        guest: DomId,
        /// The guest that this stub serves.
        served: DomId,
    },
    /// A device with a number other than 0: one connection holds all devices of a guest.
    OtherConnection(String),
    /// The device reads all-ones.
    DeviceSilent(Bdf),
    /// The device is another one than the toolstack says.
    WrongIds {
        /// Its address.
        bdf: Bdf,
        /// Vendor and device id that the toolstack named.
        expected: Ids,
        /// Vendor and device id that were read.
        found: Ids,
    },
    /// A CardBus bridge, or a header type that does not exist.
    HeaderType {
        /// Its address.
        bdf: Bdf,
        /// The type: 2 is a CardBus bridge.
        header: u8,
    },
    /// A bridge on the virtual bus, which has no bus behind it.
    VirtualBridge(Bdf),
    /// A quirk for a register that has a rule of its own.
    QuirkTaken {
        /// The device.
        bdf: Bdf,
        /// The quirk.
        quirk: Quirk,
        /// Name of the register.
        register: &'static str,
    },
    /// Xen refused to map a function's ECAM page.
    MapEcam {
        /// The function.
        bdf: Bdf,
        /// Machine frame number.
        frame: u64,
        /// Xen's answer.
        errno: Errno,
    },
    /// Xen would let the stub write a function's ECAM page.
    EcamWritable {
        /// The function.
        bdf: Bdf,
        /// Machine frame number.
        frame: u64,
    },
    /// Xen refused to map the page that a frontend granted.
    MapGrant {
        /// Grant reference.
        grant: u32,
        /// Xen's answer.
        errno: Errno,
    },
    /// Xen refused to bind a frontend's event channel.
    BindPort {
        /// The frontend's port.
        port: u32,
        /// Xen's answer.
        errno: Errno,
    },
    /// Xen refused a page or a port to share with dom0.
    Share(Errno),
    /// xenstore refused a request.
    Store(String),
    /// xenstore cannot be reached any more.
    StoreLost(String),
}

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EIO: i32 = 5;
const ENOMEM: i32 = 12;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;

impl SetupError {
    /// True if it is xenstore that failed, whatever was to be done.
    pub const fn is_of_store(&self) -> bool {
        matches!(self, Self::Store(_) | Self::StoreLost(_))
    }

    /// The errno value (positive) that the xenbus error node starts with.
    pub const fn errno(&self) -> i32 {
        match self {
            Self::MissingNode { .. } => ENOENT,
            Self::BadNode { .. } => EINVAL,
            Self::NotServed(_) | Self::OtherGuest { .. } | Self::EcamWritable { .. } => EPERM,
            Self::Duplicate(_) | Self::Misplaced(_) | Self::OtherConnection(_) => EEXIST,
            Self::BusFull(_) | Self::NoRoom(_) => ENOMEM,
            Self::DeviceSilent(_)
            | Self::WrongIds { .. }
            | Self::HeaderType { .. }
            | Self::VirtualBridge(_) => ENODEV,
            Self::QuirkTaken { .. } => EINVAL,
            Self::MapEcam { errno, .. }
            | Self::MapGrant { errno, .. }
            | Self::BindPort { errno, .. }
            | Self::Share(errno) => errno.0,
            Self::Store(_) | Self::StoreLost(_) => EIO,
        }
    }

    /// Who has to change something.
    pub const fn blame(&self) -> Blame {
        match self {
            Self::MissingNode { blame, .. } | Self::BadNode { blame, .. } => *blame,
            // Page and port are the frontend's.
            Self::MapGrant { .. } | Self::BindPort { .. } => Blame::Guest,
            Self::DeviceSilent(_) | Self::HeaderType { .. } => Blame::Device,
            Self::NotServed(_)
            | Self::Duplicate(_)
            | Self::BusFull(_)
            | Self::NoRoom(_)
            | Self::Misplaced(_)
            | Self::OtherGuest { .. }
            | Self::OtherConnection(_)
            | Self::WrongIds { .. }
            | Self::VirtualBridge(_)
            | Self::QuirkTaken { .. }
            | Self::MapEcam { .. }
            | Self::EcamWritable { .. } => Blame::Toolstack,
            Self::Store(_) | Self::StoreLost(_) => Blame::Toolstack,
            Self::Share(_) => Blame::Us,
        }
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingNode { blame, path } => {
                write!(f, "xenstore node {path} is missing; the {blame} must write it")
            }
            Self::BadNode {
                blame,
                path,
                value,
                expected,
            } => write!(
                f,
                "xenstore node {path} is \"{value}\"; the {blame} must write {expected}"
            ),
            Self::NotServed(bdf) => write!(
                f,
                "{bdf} is exported to the guest, but dom0's service does not list it; run `bulkhead attach` again"
            ),
            Self::Duplicate(bdf) => write!(f, "{bdf} is listed twice; list each device once"),
            Self::BusFull(bdf) => {
                write!(
                    f,
                    "no slot is left for {bdf} on the virtual bus; attach at most 32 devices"
                )
            }
            Self::NoRoom(bdf) => write!(
                f,
                "no room is left for {bdf}: a stub maps some 120 functions; give this guest fewer"
            ),
            Self::Misplaced(bdf) => write!(
                f,
                "{bdf} cannot have stood where its vdev node says; detach it and attach it again"
            ),
            Self::OtherGuest { guest, served } => write!(
                f,
                "guest {guest} asks, but this stub serves guest {served}; start a stub of its own for it"
            ),
            Self::OtherConnection(name) => write!(
                f,
                "device {name} of the guest; list all devices of a guest under device 0"
            ),
            Self::DeviceSilent(bdf) => write!(
                f,
                "{bdf} answers all-ones; check in dom0 that it is there and powered, and attach it again"
            ),
            Self::WrongIds { bdf, expected, found } => write!(
                f,
                "{bdf} is {found}, not {expected}; check the address and the ECAM frame, and attach again"
            ),
            Self::HeaderType { bdf, header } => write!(
                f,
                "{bdf} has header type {header}; devices (0) and PCI bridges (1) can be given to a guest"
            ),
            Self::VirtualBridge(bdf) => write!(
                f,
                "{bdf} is a bridge; give it with the devices behind it by --slots passthrough, or give these alone"
            ),
            Self::QuirkTaken { bdf, quirk, register } => write!(
                f,
                "quirk {quirk} of {bdf} is for {register}, which has a rule of its own; leave it out"
            ),
            Self::MapEcam { bdf, frame, errno } => write!(
                f,
                "cannot map the config space of {bdf} (frame {frame:#x}, errno {}); grant it with iomem=",
                errno.0
            ),
            Self::EcamWritable { bdf, frame } => write!(
                f,
                "{bdf} is refused: Xen leaves its config space (frame {frame:#x}) writable; boot Xen without mmcfg="
            ),
            Self::MapGrant { grant, errno } => write!(
                f,
                "cannot map grant {grant} (errno {}); the frontend must grant a page of its own to this domain",
                errno.0
            ),
            Self::BindPort { port, errno } => write!(
                f,
                "cannot bind event channel {port} (errno {}); the frontend must allocate it for this domain",
                errno.0
            ),
            Self::Share(errno) => write!(
                f,
                "Xen refused a page or port to share with dom0 (errno {}); give the stub more memory",
                errno.0
            ),
            Self::Store(error) => write!(f, "xenstore refused: {error}; check the node and its permissions"),
            Self::StoreLost(error) => write!(f, "xenstore is lost: {error}; start the stub anew"),
        }
    }
}

impl core::error::Error for SetupError {}

/// Text from outside, made fit for a log line or a node: printable ASCII, at most [`Excerpt::MAX`] bytes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt(String);

impl Excerpt {
    /// Number of bytes that are kept.
    pub const MAX: usize = 32;

    /// Cuts and cleans `text`.
    pub fn of(text: &str) -> Self {
        let (kept, cut) = match text.as_bytes().split_at_checked(Self::MAX) {
            Some((kept, rest)) if !rest.is_empty() => (kept, "..."),
            _ => (text.as_bytes(), ""),
        };
        Self(format!("{}{cut}", Printable(kept)))
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_guest_is_told_what_pciback_would_tell_it() {
        use MessageKind::{Msi, Msix};
        use MessageRefusal as R;
        for (error, told) in [
            (RequestError::NoDevice, -1),
            (RequestError::BadAccess { offset: -4, size: 4 }, -2),
            (RequestError::Denied { register: "Command" }, -3),
            (
                RequestError::MessageControl {
                    register: "MSI Message Control",
                },
                -3,
            ),
            (RequestError::PowerState(1), -3),
            (RequestError::UnknownCommand(6), -4),
            (RequestError::Message(Msi, R::AlreadyOn), -5),
            (RequestError::Message(Msi, R::OtherKindOn), -5),
            (RequestError::Message(Msix, R::AlreadyOn), -114),
            (RequestError::Message(Msix, R::OtherKindOn), -6),
            (RequestError::Message(Msix, R::MemoryDecodeOff), -6),
            (RequestError::Message(Msix, R::Asleep), -22),
            (RequestError::Message(Msi, R::Asleep), -5),
            (RequestError::Message(Msix, R::TooManyVectors(129)), -22),
            (RequestError::Message(Msix, R::DuplicateEntry(0)), -22),
            (RequestError::ServiceSilent(Duration::from_millis(1500)), -5),
            (RequestError::ServiceRefused(pciif::OpError::Other(-38)), -5),
        ] {
            assert_eq!(error.answer().raw(), told, "{error}");
        }
    }

    #[test]
    fn a_silent_service_is_dom0s_fault_and_says_what_to_do() {
        let error = RequestError::ServiceSilent(Duration::from_millis(1500));
        assert_eq!(error.blame(), Blame::Toolstack);
        assert_eq!(
            error.to_string(),
            "dom0's service did not answer within 1500 ms; is `bulkhead serve` running?"
        );
    }

    #[test]
    fn hostile_text_is_cut_and_cleaned() {
        assert_eq!(Excerpt::of("7\n\u{1b}[2J\u{e9}").to_string(), "7??[2J??");
        let long = Excerpt::of(&"x".repeat(5000)).to_string();
        assert_eq!(long.len(), Excerpt::MAX + 3);
    }
}
