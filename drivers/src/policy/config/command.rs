//! The COMMAND register. Some bits a guest reads from the device, the others as it wrote them.
//!
//! The two sets of bits are xen-pciback's, so that a guest sees no difference.

use pci::registers::command::{INVALIDATE, IO, MASTER, MEMORY};

/// I/O and memory decode.
pub const DECODE: u16 = IO | MEMORY;

/// The bits that a guest reads from the device: bus master, special cycles, MWI, VGA palette, stepping,
/// fast back-to-back. The others it reads back as it wrote them.
pub const FROM_HARDWARE: u16 = 0x02bc;

/// The bits of the device that follow the guest's.
pub const FORWARDED: u16 = MASTER | INVALIDATE;

/// What a guest reads where the device holds `hardware` and the guest last wrote `shadow`.
pub const fn view(hardware: u16, shadow: u16) -> u16 {
    hardware & FROM_HARDWARE | shadow & !FROM_HARDWARE
}

/// Which bits of a function's COMMAND follow a guest's write.
#[derive(Clone, Copy, Debug)]
pub struct CommandMask {
    /// The decode bits that mean something: those that there are BARs for.
    pub decodable: u16,
    /// The bits that follow the guest's: [`FORWARDED`], or [`FROM_HARDWARE`] if the device is permissive.
    pub forwarded: u16,
}

/// The value that the device must hold after the guest wrote `written`.
///
/// Decode goes on with the guest's first decode bit and stays on for ever: an access that nobody claims can
/// bring the host down (XSA-120). Parity, SERR and INTx disable stay as dom0 left them.
pub const fn target(hardware: u16, written: u16, mask: CommandMask) -> u16 {
    // Either bit turns on all that there are BARs for, as Linux's `pci_enable_device` does for xen-pciback.
    let decode = if written & DECODE != 0 { mask.decodable } else { 0 };
    hardware & !mask.forwarded | written & mask.forwarded | decode
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_every_pair_of_values_decode_is_never_turned_off_and_nothing_else_moves() {
        for hardware in 0..=u16::MAX {
            for written in [0, 1, 2, 4, 0x10, 0x400, 0x547, 0xffff, hardware, !hardware] {
                for (decodable, forwarded) in (0..=DECODE).zip([FORWARDED, FROM_HARDWARE].into_iter().cycle())
                {
                    let mask = CommandMask { decodable, forwarded };
                    let after = target(hardware, written, mask);
                    assert_eq!(hardware & DECODE & !after, 0, "decode turned off");
                    assert_eq!((after ^ hardware) & !(forwarded | DECODE), 0, "another bit moved");
                    assert_eq!(
                        (after & !hardware) & DECODE & !decodable,
                        0,
                        "decode without a BAR"
                    );
                    assert_eq!(after & forwarded, written & forwarded);
                }
            }
        }
    }

    #[test]
    fn a_guest_reads_back_its_own_decode_and_interrupt_bits() {
        assert_eq!(view(0x0007, 0x0400), 0x0404);
        assert_eq!(view(0x0403, 0x0000), 0x0000);
        assert_eq!(view(0xffff, 0x0000), FROM_HARDWARE);
    }
}
