//! What may be written to one register, and why a write is refused.

use pci::registers::command;
use thiserror::Error;

/// COMMAND bits that belong to the guest: bus master, special cycles, memory write and invalidate,
/// VGA palette snoop, stepping, fast back-to-back.
const COMMAND_GUEST: u32 = 0x02bc;
const COMMAND_DECODE: u32 = (command::IO | command::MEMORY) as u32;
/// PMCSR: power state, data select and PME status. PME enable stays dom0's.
const PMCSR_GUEST: u32 = 0x9e03;
const BIST_START: u32 = 0x40;
const VPD_WRITE: u32 = 0x8000;

/// Why a write was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum Denial {
    /// No rule for this register in this width.
    #[error("no write of this width is allowed here")]
    Unlisted,
    /// The register holds message addresses, data or enable bits, which are Xen's.
    #[error("MSI and MSI-X registers belong to Xen")]
    Interrupts,
    /// A base address other than the recorded one.
    #[error("a base address may only be written back as it was")]
    BaseAddress,
    /// Turns off decoding, or changes a bit that is dom0's.
    #[error("the command register's decode bits stay on, and only bits 0x02bc may change")]
    Command,
    /// Changes a power management bit that is dom0's.
    #[error("only the power state and bits 0x9e00 may change")]
    Power,
    /// Would write to the device's product data.
    #[error("product data may not be written")]
    VpdWrite,
    /// Changes a bit that neither a quirk nor permission gives to the guest.
    #[error("only the bits of a quirk's mask, or those of this register that are not dom0's, may change")]
    Quirk,
    /// Self test with other bits changed.
    #[error("only the start bit of the self test may change")]
    SelfTest,
}

/// What may be written to one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Anything.
    Any,
    /// The command register.
    Command,
    /// The self test register.
    SelfTest,
    /// This value only.
    Exactly(u32),
    /// The power management control register.
    Power,
    /// The address register of the product data.
    VpdAddress,
    /// These bits.
    Bits(u32),
}

impl Rule {
    /// True if the verdict depends on the register's present value.
    pub fn needs_current(self) -> bool {
        matches!(self, Self::Command | Self::SelfTest | Self::Power | Self::Bits(_))
    }

    /// Judges the writing of `value`, where the register now reads `current`.
    pub fn judge(self, value: u32, current: u32) -> Result<(), Denial> {
        let changed = value ^ current;
        let (allowed, denial) = match self {
            Self::Any => return Ok(()),
            Self::Command => {
                // Decode may be turned on and never off: accesses to a device that does not decode can raise an NMI in
                // the host (XSA-120).
                let turned_on = changed & value & COMMAND_DECODE;
                (changed & !COMMAND_GUEST & !turned_on == 0, Denial::Command)
            }
            Self::SelfTest => (
                // The start bit may be written by itself too, as xen-pciback allows.
                changed & !BIST_START == 0 || value == BIST_START,
                Denial::SelfTest,
            ),
            Self::Exactly(recorded) => (value == recorded, Denial::BaseAddress),
            Self::Power => (changed & !PMCSR_GUEST == 0, Denial::Power),
            // This bit makes the access a write of product data.
            Self::VpdAddress => (value & VPD_WRITE == 0, Denial::VpdWrite),
            Self::Bits(mask) => (changed & !mask == 0, Denial::Quirk),
        };
        if allowed { Ok(()) } else { Err(denial) }
    }
}
