//! Errors of devices: requests from the backend to the frontend's driver.
//!
//! One is under way at a time, beside the requests of the other direction. The backend writes it, sets [`AER_ACTIVE`] and
//! sends an event. The frontend has its driver handle it, writes the driver's verdict and clears [`AER_ACTIVE`]. There
//! are no request numbers, so a request is never withdrawn: a late verdict would be taken for that of the next one. Until
//! the frontend clears the flag it is [`Busy`].

use super::layout::{AER_OP, AER_OP_ERR, AER_OP_SIZE, FLAGS};
use super::{AER_ACTIVE, SharedPage};
use core::fmt;
use pci::bdf::Bdf;

/// What a driver is told. `aer_mmio` of pciif is left out: Linux before 6.12 crashes on it if the driver has no handler for
/// it (decision 35).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The device has reported an error. The channel says what of the device can still be reached.
    Detected(Channel),
    /// The device has been reset.
    SlotReset,
    /// The error is over: go on.
    Resume,
}

/// What of a device can still be reached (Linux's `pci_channel_state_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// All of it.
    Normal,
    /// Nothing, or the device has been reset.
    Frozen,
}

/// What a driver makes of a notice (Linux's `pci_ers_result_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The driver has no handler, or the handler has no opinion.
    None,
    /// It can go on without a reset.
    CanRecover,
    /// It needs the device to be reset.
    NeedReset,
    /// It gives the device up.
    Disconnect,
    /// It has recovered.
    Recovered,
    /// There is no driver.
    NoDriver,
    /// A number that is no verdict.
    Nonsense(i32),
}

impl Verdict {
    /// The verdict with this number.
    pub const fn from_raw(raw: i32) -> Self {
        match raw {
            1 => Self::None,
            2 => Self::CanRecover,
            3 => Self::NeedReset,
            4 => Self::Disconnect,
            5 => Self::Recovered,
            6 => Self::NoDriver,
            other => Self::Nonsense(other),
        }
    }

    /// The verdict's number.
    pub const fn raw(self) -> i32 {
        match self {
            Self::None => 1,
            Self::CanRecover => 2,
            Self::NeedReset => 3,
            Self::Disconnect => 4,
            Self::Recovered => 5,
            Self::NoDriver => 6,
            Self::Nonsense(raw) => raw,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no handler",
            Self::CanRecover => "can recover",
            Self::NeedReset => "needs a reset",
            Self::Disconnect => "gives up",
            Self::Recovered => "recovered",
            Self::NoDriver => "no driver",
            Self::Nonsense(raw) => return write!(f, "nonsense ({raw})"),
        })
    }
}

/// A request as it lies in the page (`struct xen_pcie_aer_op`): nothing in it is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AerRequest {
    /// The number of the notice.
    pub command: u32,
    /// With `aer_detected`, the number of the [`Channel`].
    pub state: i32,
    /// PCI segment.
    pub domain: u32,
    /// Bus number.
    pub bus: u32,
    /// `device << 3 | function`.
    pub devfn: u32,
}

impl AerRequest {
    /// The request that tells the driver of `function` this notice.
    pub const fn new(function: Bdf, notice: Notice) -> Self {
        // The numbers of `XEN_PCI_OP_aer_*` (pciif.h), and of Linux's channel states.
        let (command, state) = match notice {
            Notice::Detected(Channel::Normal) => (6, 1),
            Notice::Detected(Channel::Frozen) => (6, 2),
            Notice::Resume => (7, 0),
            Notice::SlotReset => (9, 0),
        };
        Self {
            command,
            state,
            domain: 0,
            bus: 0,
            devfn: 0,
        }
        .about(function)
    }

    /// The same request about another function.
    pub const fn about(self, function: Bdf) -> Self {
        Self {
            domain: function.segment() as u32,
            bus: function.bus() as u32,
            devfn: function.devfn() as u32,
            ..self
        }
    }

    /// The function that the request is about; `None` if its numbers are out of range.
    pub fn function(&self) -> Option<Bdf> {
        Some(Bdf::from_devfn(
            u16::try_from(self.domain).ok()?,
            u8::try_from(self.bus).ok()?,
            u8::try_from(self.devfn).ok()?,
        ))
    }
}

/// The frontend has not answered the request before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// True while a request waits for the frontend's verdict.
pub fn is_pending(page: &impl SharedPage) -> bool {
    page.load(FLAGS) & AER_ACTIVE != 0
}

/// The backend's side: writes a request and marks it pending. Send the event next.
///
/// # Errors
/// [`Busy`]; nothing was written then.
pub fn post(page: &impl SharedPage, request: &AerRequest) -> Result<(), Busy> {
    if is_pending(page) {
        return Err(Busy);
    }
    let AerRequest {
        command,
        state,
        domain,
        bus,
        devfn,
    } = *request;
    let mut bytes = [0; AER_OP_SIZE];
    let words = [command, state.cast_unsigned(), domain, bus, devfn];
    for (field, word) in bytes.chunks_exact_mut(4).zip(words) {
        field.copy_from_slice(&word.to_le_bytes());
    }
    // The flag last: from then on the frontend may read the request.
    page.copy_in(AER_OP, &bytes);
    page.set_bits(FLAGS, AER_ACTIVE);
    Ok(())
}

/// The backend's side: the verdict on the request that was posted last, as a number, if it is there.
pub fn verdict(page: &impl SharedPage) -> Option<i32> {
    if is_pending(page) {
        return None;
    }
    let mut raw = [0; 4];
    page.copy_out(AER_OP_ERR, &mut raw);
    Some(i32::from_le_bytes(raw))
}

/// The frontend's side: the request that waits for its verdict, if there is one. Each byte is read once.
pub fn pending(page: &impl SharedPage) -> Option<AerRequest> {
    if !is_pending(page) {
        return None;
    }
    let mut bytes = [0; AER_OP_SIZE];
    page.copy_out(AER_OP, &mut bytes);
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Some(AerRequest {
        command: word(0),
        state: word(4).cast_signed(),
        domain: word(8),
        bus: word(12),
        devfn: word(16),
    })
}

/// The frontend's side: writes the verdict and gives the request back. Send the event next.
pub fn answer(page: &impl SharedPage, verdict: i32) {
    // The flag last: from then on the backend may read the verdict, and post another request.
    page.copy_in(AER_OP_ERR, &verdict.to_le_bytes());
    page.clear_bits(FLAGS, AER_ACTIVE);
}
