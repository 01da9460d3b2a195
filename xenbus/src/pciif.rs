//! The page that a PCI frontend shares with its backend (`xen/include/public/io/pciif.h`).
//!
//! Both hops use this protocol: guest to stub, and stub to dom0's service. One
//! request is under way at a time. The frontend writes it, sets [`ACTIVE`] and
//! sends an event; the backend writes the answer, clears [`ACTIVE`] and sends
//! an event. [`backend`] and [`frontend`] are the two sides. Errors of devices
//! take the opposite way: [`aer`].

pub mod aer;
pub mod backend;
pub mod frontend;
pub mod layout;
pub mod page;

use core::fmt;
use pci::bdf::Bdf;

/// Value of the frontend's `magic` node: the version of the protocol.
pub const MAGIC: &str = "7";
/// Most MSI-X vectors in one request (`SH_INFO_MAX_VEC`).
pub const MAX_VECTORS: usize = 128;

/// Flag: a request waits for its answer. Set by the frontend, cleared by the backend.
pub const ACTIVE: u32 = 1 << 0;
/// Flag: the frontend's driver handles errors of devices. Set once by the frontend.
pub const AER_HANDLER: u32 = 1 << 1;
/// Flag: an AER request waits for its answer. Set by the backend, cleared by the frontend.
pub const AER_ACTIVE: u32 = 1 << 2;

/// Memory that another domain writes at the same time.
///
/// Every access is a copy: nothing in the page can be borrowed, so nothing can
/// change between a check and its use (XSA-155). Each byte is accessed once; the
/// `u32` calls are single, naturally aligned and atomic, with the ordering
/// named. In real memory this is [`page`], for tests `model::Page`.
///
/// # Panics
/// Implementors may panic when a range does not lie in the 4 KiB page: the
/// offsets are this crate's constants, never the peer's.
pub trait SharedPage {
    /// Copies `into.len()` bytes out of the page, each byte read once.
    fn copy_out(&self, offset: usize, into: &mut [u8]);
    /// Copies `bytes` into the page.
    fn copy_in(&self, offset: usize, bytes: &[u8]);
    /// Reads a word (acquire).
    fn load(&self, offset: usize) -> u32;
    /// Writes a word (release).
    fn store(&self, offset: usize, value: u32);
    /// Sets bits by a locked read-modify-write (release); returns the word before.
    fn set_bits(&self, offset: usize, bits: u32) -> u32;
    /// Clears bits by a locked read-modify-write (release); returns the word before.
    fn clear_bits(&self, offset: usize, bits: u32) -> u32;
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Read `size` bytes of config space at `offset`; the answer is the value.
    ConfRead,
    /// Write the low `size` bytes of `value` to config space at `offset`.
    ConfWrite,
    /// Turn MSI on, with one vector; the answer is the pirq.
    EnableMsi,
    /// Turn MSI off.
    DisableMsi,
    /// Turn MSI-X on, with `value` vectors; the answer is a pirq for each.
    EnableMsix,
    /// Turn MSI-X off.
    DisableMsix,
    /// Any other number: AER notices, which only a backend may send, `enable_multi_msi`, and undefined numbers.
    Other(u32),
}

impl Command {
    /// The command with number `raw`.
    pub const fn from_raw(raw: u32) -> Self {
        match raw {
            0 => Self::ConfRead,
            1 => Self::ConfWrite,
            2 => Self::EnableMsi,
            3 => Self::DisableMsi,
            4 => Self::EnableMsix,
            5 => Self::DisableMsix,
            other => Self::Other(other),
        }
    }

    /// The number of the command.
    pub const fn raw(self) -> u32 {
        match self {
            Self::ConfRead => 0,
            Self::ConfWrite => 1,
            Self::EnableMsi => 2,
            Self::DisableMsi => 3,
            Self::EnableMsix => 4,
            Self::DisableMsix => 5,
            Self::Other(raw) => raw,
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConfRead => "conf_read",
            Self::ConfWrite => "conf_write",
            Self::EnableMsi => "enable_msi",
            Self::DisableMsi => "disable_msi",
            Self::EnableMsix => "enable_msix",
            Self::DisableMsix => "disable_msix",
            Self::Other(raw) => return write!(f, "command {raw}"),
        })
    }
}

/// Why a request is refused: the negative numbers of the `err` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpError {
    /// `XEN_PCI_ERR_dev_not_found`: no such function on the virtual bus.
    DeviceNotFound,
    /// `XEN_PCI_ERR_invalid_offset`: offset or size out of range, or not aligned.
    InvalidOffset,
    /// `XEN_PCI_ERR_access_denied`: forbidden by policy.
    AccessDenied,
    /// `XEN_PCI_ERR_not_implemented`: unknown command.
    NotImplemented,
    /// `XEN_PCI_ERR_op_failed`: it was tried, and failed.
    OpFailed,
    /// Any other number; Linux's backend sends negative errno values.
    Other(i32),
}

impl OpError {
    /// `-EINVAL`: more vectors than [`MAX_VECTORS`].
    pub const EINVAL: Self = Self::Other(-22);
    /// `-ENXIO`: MSI and MSI-X at once, or MSI-X while the device does not decode memory.
    pub const ENXIO: Self = Self::Other(-6);
    /// `-EALREADY`: the mode asked for is on.
    pub const EALREADY: Self = Self::Other(-114);

    /// The error with number `raw`; 0 is success and no error.
    pub const fn from_raw(raw: i32) -> Option<Self> {
        match raw {
            0 => None,
            -1 => Some(Self::DeviceNotFound),
            -2 => Some(Self::InvalidOffset),
            -3 => Some(Self::AccessDenied),
            -4 => Some(Self::NotImplemented),
            -5 => Some(Self::OpFailed),
            other => Some(Self::Other(other)),
        }
    }

    /// The number of the error.
    pub const fn raw(self) -> i32 {
        match self {
            Self::DeviceNotFound => -1,
            Self::InvalidOffset => -2,
            Self::AccessDenied => -3,
            Self::NotImplemented => -4,
            Self::OpFailed => -5,
            Self::Other(raw) => raw,
        }
    }
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DeviceNotFound => "no such device",
            Self::InvalidOffset => "invalid offset",
            Self::AccessDenied => "access denied",
            Self::NotImplemented => "not implemented",
            Self::OpFailed => "operation failed",
            Self::Other(raw) => return write!(f, "error {raw}"),
        })
    }
}

impl core::error::Error for OpError {}

/// A request as its frontend wrote it: nothing in it is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub command: Command,
    /// PCI segment.
    pub domain: u32,
    /// Bus number.
    pub bus: u32,
    /// `device << 3 | function`.
    pub devfn: u32,
    /// Config space offset, in bytes.
    pub offset: i32,
    /// Access width, in bytes.
    pub size: i32,
    /// Value to write, or number of MSI-X vectors.
    pub value: u32,
    /// Not used by any known frontend.
    pub info: u32,
}

impl Request {
    /// A request that needs no more than a function: the MSI commands.
    pub const fn new(command: Command, function: Bdf) -> Self {
        Self {
            command,
            domain: function.segment() as u32,
            bus: function.bus() as u32,
            devfn: function.devfn() as u32,
            offset: 0,
            size: 0,
            value: 0,
            info: 0,
        }
    }

    /// A read of `size` bytes at `offset`.
    pub const fn conf_read(function: Bdf, offset: u16, size: u8) -> Self {
        Self {
            offset: offset as i32,
            size: size as i32,
            ..Self::new(Command::ConfRead, function)
        }
    }

    /// A write of the low `size` bytes of `value` at `offset`.
    pub const fn conf_write(function: Bdf, offset: u16, size: u8, value: u32) -> Self {
        Self {
            command: Command::ConfWrite,
            value,
            ..Self::conf_read(function, offset, size)
        }
    }

    /// The function that the request is about; `None` if its numbers are out of range.
    pub fn function(&self) -> Option<Bdf> {
        // Checked: the fields are 32 bits, and a cut number would be another function's.
        Some(Bdf::from_devfn(
            u16::try_from(self.domain).ok()?,
            u8::try_from(self.bus).ok()?,
            u8::try_from(self.devfn).ok()?,
        ))
    }
}

impl fmt::Display for Request {
    /// Short form for logs: the command, the function, and what the command uses of the rest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.command)?;
        match self.function() {
            Some(function) => function.fmt(f)?,
            None => write!(f, "{:x}:{:x}:devfn {:x}", self.domain, self.bus, self.devfn)?,
        }
        match self.command {
            Command::ConfRead => write!(f, " offset {:#x} size {}", self.offset, self.size),
            Command::ConfWrite => {
                write!(
                    f,
                    " offset {:#x} size {} value {:#x}",
                    self.offset, self.size, self.value
                )
            }
            // The frontend's own number, whether so many fit or not.
            Command::EnableMsix => write!(f, " with {} vectors", self.value),
            _ => Ok(()),
        }
    }
}

/// One vector of an `enable_msix` request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsixEntry {
    /// The pirq, in the answer. In a request it means nothing.
    pub vector: u16,
    /// Index in the device's MSI-X table.
    pub entry: u16,
}

/// More MSI-X vectors than the page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyVectors(pub u32);

impl fmt::Display for TooManyVectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} MSI-X vectors in one request, at most {MAX_VECTORS} fit",
            self.0
        )
    }
}

impl core::error::Error for TooManyVectors {}
