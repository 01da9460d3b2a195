//! The rule of one register: what a guest reads, and what its write does.

use super::access::Access;
use core::fmt;

/// Index of a base address register in [`super::bar::Bars`]: 0 to 5, and 6 for the expansion ROM.
pub type BarIndex = u8;

/// One row of a policy table.
#[derive(Clone, Copy, Debug)]
pub struct Register {
    /// First byte: absolute in the header's table, relative to the capability in the others.
    pub offset: u16,
    /// Number of bytes: 1, 2 or 4. The offset is a multiple of it.
    pub width: u8,
    /// The name in the PCI specification.
    pub name: &'static str,
    /// What a guest reads.
    pub read: Read,
    /// What a guest's write does.
    pub write: Write,
}

impl Register {
    pub(super) const fn new(offset: u16, width: u8, name: &'static str, read: Read, write: Write) -> Self {
        Self {
            offset,
            width,
            name,
            read,
            write,
        }
    }

    /// The bytes of this register, for a capability (or header) that starts at `base`.
    pub(super) const fn span(&self, base: u16) -> Access {
        Access::at(base + self.offset, self.width)
    }
}

/// Where the value comes from that a guest reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// The device.
    Hardware,
    /// The device, without these bits.
    HardwareWithout(u32),
    /// The vendor id that the toolstack named and the device confirmed.
    VendorId,
    /// Likewise the device id.
    DeviceId,
    /// Bits of [`super::command::FROM_HARDWARE`] from the device, the others as the guest wrote them.
    Command,
    /// The recorded address, or the size while the guest probes for it.
    Bar(BarIndex),
    /// The pirq of the INTx line in the guest.
    InterruptLine,
    /// The device's pin, or 0 where INTx is withheld.
    InterruptPin,
}

/// What happens to a guest's write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// As with bytes that no table names: dropped and counted, or forwarded for a permissive device or a quirk.
    Default,
    /// Nothing: the write succeeds, changes nothing, and is counted.
    Drop,
    /// As [`Self::Default`], but no more than these bits.
    Permissive(u16),
    /// It goes to the device.
    Forward,
    /// It goes to the device if all it changes is the start bit.
    Bist,
    /// Bus mastering and memory-write-and-invalidate go to the device; decode is turned on there, never off. A guest
    /// that turns decode on brings the device to D0.
    Command,
    /// All-ones starts a size probe. The recorded address is restored in a device that lost it, except for the ROM.
    Bar(BarIndex),
    /// PME status, data select and a supported power state go to the device.
    PowerControl,
    /// It goes to the device, unless it would start a write of vital product data: access denied.
    VpdAddress,
    /// The value that it already has; access denied for any change. Only the enable and disable requests change it.
    MessageControl,
}

impl fmt::Display for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware => f.write_str("device"),
            Self::HardwareWithout(bits) => write!(f, "device, without {bits:#06x}"),
            Self::VendorId | Self::DeviceId => f.write_str("the id checked at export"),
            Self::Command => write!(
                f,
                "{:#06x} from the device, the rest as the guest wrote it",
                super::command::FROM_HARDWARE
            ),
            Self::Bar(_) => f.write_str("recorded address, or size while probed"),
            Self::InterruptLine => f.write_str("pirq of the INTx line"),
            Self::InterruptPin => f.write_str("device; 0 where INTx is withheld"),
        }
    }
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "the default",
            Self::Permissive(bits) => {
                return write!(
                    f,
                    "the default, for no more than {bits:#06x}, where a value changes"
                );
            }
            Self::Drop => "dropped, counted",
            Self::Forward => "forwarded",
            Self::Bist => "forwarded if only the start bit changes",
            Self::Command => {
                "bus master and MWI forwarded, for a permissive device all of 0x02bc; decode turned on in the device, \
                 which brings it to D0, and never off"
            }
            Self::Bar(_) => {
                "all-ones probes the size; the recorded address is restored if the device lost it"
            }
            Self::PowerControl => "PME status, data select and a supported power state forwarded",
            Self::VpdAddress => "forwarded; a write of VPD (bit 15) is denied",
            Self::MessageControl => "denied, unless it changes nothing",
        })
    }
}
