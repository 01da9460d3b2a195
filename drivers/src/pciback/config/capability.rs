//! The policy tables of the capabilities, and the walk over a function's capability list.

use super::header;
use super::register::{Read, Register, Write};
use crate::platform::ConfigSpace;
use alloc::vec::Vec;
use core::ops::Range;

/// PM: offset of the capabilities word (PMC).
pub const PM_CAPABILITIES: u16 = 2;
/// PM: offset of the control and status word (PMCSR).
pub const PM_CONTROL: u16 = 4;
/// MSI and MSI-X: offset of the message control word.
pub const MESSAGE_CONTROL: u16 = 2;
/// MSI message control: turned on.
pub const MSI_ENABLE: u16 = 0x0001;
/// MSI message control: the address has 64 bits.
const MSI_64_BIT: u16 = 0x0080;
/// MSI message control: each vector can be masked.
const MSI_MASK: u16 = 0x0100;
/// MSI-X message control: turned on.
pub const MSIX_ENABLE: u16 = 0x8000;
/// MSI-X message control: number of table entries, less one.
pub const MSIX_TABLE_SIZE: u16 = 0x07ff;
/// VPD address: start a write instead of a read.
pub const VPD_WRITE: u16 = 0x8000;
/// PMC: in which states the device can send PME. Hidden: no one would hear it.
const PME_SUPPORT: u32 = 0xf800;

/// How many hops the walk makes: 192 bytes hold no more capabilities.
const MAX_HOPS: usize = 48;
/// First byte after the header.
const FIRST: u16 = 0x40;
/// First byte after the space that capabilities can be in.
const END: u16 = 0x100;

/// A kind of capability that the policy has a table for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Power management.
    Pm,
    /// Vital product data.
    Vpd,
    /// Message-signalled interrupts.
    Msi,
    /// The same, extended.
    Msix,
}

/// The table of one kind of capability.
#[derive(Debug)]
pub struct Policy {
    /// Which kind.
    pub kind: Kind,
    /// The id in the list.
    pub id: u8,
    /// The name in the PCI specification.
    pub name: &'static str,
    /// Its registers, by offset from its start. MSI has the last ones only if its message control says so.
    pub registers: &'static [Register],
}

const fn plain(offset: u16, width: u8, name: &'static str) -> Register {
    Register::new(offset, width, name, Read::Hardware, Write::Drop)
}

/// All capabilities that have a table. Of every other one, reads give what the device says and writes are dropped.
pub static POLICIES: [Policy; 4] = [
    Policy {
        kind: Kind::Pm,
        id: 0x01,
        name: "Power Management",
        registers: &[
            plain(0, 2, "PM header"),
            Register::new(
                PM_CAPABILITIES,
                2,
                "PMC",
                Read::HardwareWithout(PME_SUPPORT),
                Write::Drop,
            ),
            Register::new(PM_CONTROL, 2, "PMCSR", Read::Hardware, Write::PowerControl),
            plain(6, 1, "PMCSR_BSE"),
            plain(7, 1, "PM Data"),
        ],
    },
    Policy {
        kind: Kind::Vpd,
        id: 0x03,
        name: "Vital Product Data",
        registers: &[
            plain(0, 2, "VPD header"),
            Register::new(2, 2, "VPD Address", Read::Hardware, Write::VpdAddress),
            plain(4, 4, "VPD Data"),
        ],
    },
    Policy {
        kind: Kind::Msi,
        id: 0x05,
        name: "MSI",
        registers: &[
            plain(0, 2, "MSI header"),
            Register::new(
                MESSAGE_CONTROL,
                2,
                "MSI Message Control",
                Read::Hardware,
                Write::MessageControl,
            ),
            // What they hold depends on the form. All are Xen's, whoever is permissive.
            plain(4, 4, "MSI Address"),
            plain(8, 4, "MSI Upper Address, or Data"),
            plain(0x0c, 4, "MSI Data, or Mask"),
            plain(0x10, 4, "MSI Mask, or Pending"),
            plain(0x14, 4, "MSI Pending"),
        ],
    },
    Policy {
        kind: Kind::Msix,
        id: 0x11,
        name: "MSI-X",
        registers: &[
            plain(0, 2, "MSI-X header"),
            Register::new(
                MESSAGE_CONTROL,
                2,
                "MSI-X Message Control",
                Read::Hardware,
                Write::MessageControl,
            ),
            plain(4, 4, "MSI-X Table"),
            plain(8, 4, "MSI-X PBA"),
        ],
    },
];

/// Extended capabilities that stay dom0's even if the device is permissive, as id and bytes: SR-IOV, resizable BARs, and
/// those of virtual functions. They say what functions there are, and how much of the address space they take.
const KEPT: [(u16, u16); 3] = [(0x0010, 0x40), (0x0015, 0x34), (0x0024, 0x34)];
/// How many hops the walk over extended capabilities makes: the space has room for no more.
const MAX_EXTENDED_HOPS: usize = 480;

/// Where the extended capabilities lie that stay dom0's.
pub fn kept(hardware: &impl ConfigSpace) -> Vec<Range<u16>> {
    let mut ranges = Vec::new();
    let mut next = END;
    for _ in 0..MAX_EXTENDED_HOPS {
        let header = hardware.read(next, 4);
        let id = header as u16;
        if let Some(&(_, length)) = KEPT.iter().find(|&&(kept, _)| kept == id) {
            let range = next..next + length;
            if ranges.contains(&range) {
                break;
            }
            ranges.push(range);
        }
        next = (header >> 20) as u16 & !3;
        if next < END || id == u16::MAX {
            break;
        }
    }
    ranges
}

/// A capability found in a function, with the table that governs it.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Offset of its first byte.
    pub base: u16,
    /// Its table.
    pub policy: &'static Policy,
    /// The registers of that table that it has.
    pub registers: &'static [Register],
}

/// Walks the list of a function, and returns the first capability of each kind that has a table.
///
/// The list is the device's word and may be anything: the walk ends after 48 hops, at an offset inside the
/// header, and at all-ones. A capability that does not fit below 256, or overlaps one found before, is left
/// out: it falls under the default, so reads give what the device says and writes are dropped.
pub fn walk(hardware: &impl ConfigSpace) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    if hardware.read(header::STATUS, 2) as u16 & header::STATUS_CAPABILITIES == 0 {
        return found;
    }
    let mut next = hardware.read(header::CAPABILITIES, 1) as u16 & !3;
    for _ in 0..MAX_HOPS {
        if next < FIRST {
            break;
        }
        let [id, pointer] = (hardware.read(next, 2) as u16).to_le_bytes();
        if id == 0xff {
            break;
        }
        let is_new =
            |policy: &&Policy| policy.id == id && found.iter().all(|other| other.policy.kind != policy.kind);
        if let Some(policy) = POLICIES.iter().find(is_new) {
            let candidate = Found {
                base: next,
                policy,
                registers: present(policy, hardware, next),
            };
            if candidate.end() <= END && !found.iter().any(|other| candidate.overlaps(other)) {
                found.push(candidate);
            }
        }
        next = u16::from(pointer) & !3;
    }
    found
}

/// The registers that a capability of this kind has at `base`.
fn present(policy: &'static Policy, hardware: &impl ConfigSpace, base: u16) -> &'static [Register] {
    let all = policy.registers;
    if policy.kind != Kind::Msi {
        return all;
    }
    let control = hardware.read(base + MESSAGE_CONTROL, 2) as u16;
    // Address, data; the upper address; mask and pending bits.
    let wide = usize::from(control & MSI_64_BIT != 0);
    let masked = if control & MSI_MASK != 0 { 2 } else { 0 };
    let missing = 3 - wide - masked;
    all.get(..all.len() - missing).unwrap_or(all)
}

impl Found {
    fn end(&self) -> u16 {
        let length = self
            .registers
            .last()
            .map_or(0, |last| last.offset + u16::from(last.width));
        self.base + length
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.base < other.end() && other.base < self.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    /// Config space with the bytes given; counts reads.
    struct Space {
        bytes: [u8; 256],
        reads: Cell<usize>,
    }

    impl Space {
        /// A list of capabilities: offset, id, next.
        fn with(first: u8, list: &[(u8, u8, u8)]) -> Self {
            let mut bytes = [0; 256];
            bytes[0x06] = 0x10;
            bytes[0x34] = first;
            for &(offset, id, next) in list {
                bytes[usize::from(offset)] = id;
                bytes[usize::from(offset) + 1] = next;
            }
            Self {
                bytes,
                reads: Cell::new(0),
            }
        }

        fn walk(&self) -> Vec<(u16, Kind)> {
            walk(self)
                .iter()
                .map(|found| (found.base, found.policy.kind))
                .collect()
        }
    }

    impl ConfigSpace for Space {
        fn read(&self, offset: u16, width: u8) -> u32 {
            self.reads.set(self.reads.get() + 1);
            let mut value = [0; 4];
            for (to, from) in value
                .iter_mut()
                .zip(&self.bytes[usize::from(offset)..])
                .take(usize::from(width))
            {
                *to = *from;
            }
            u32::from_le_bytes(value)
        }
    }

    #[test]
    fn the_first_of_each_kind_is_found() {
        let space = Space::with(
            0xc8,
            &[
                (0xc8, 0x01, 0xd0),
                (0xd0, 0x05, 0xe0),
                (0xe0, 0x10, 0xa0),
                (0xa0, 0x11, 0x40),
                (0x40, 0x01, 0),
            ],
        );
        assert_eq!(
            space.walk(),
            [(0xc8, Kind::Pm), (0xd0, Kind::Msi), (0xa0, Kind::Msix)]
        );
    }

    #[test]
    fn without_the_status_bit_there_is_no_list() {
        let mut space = Space::with(0x40, &[(0x40, 0x01, 0)]);
        space.bytes[0x06] = 0;
        assert_eq!(space.walk(), []);
    }

    #[test]
    fn a_loop_ends() {
        let space = Space::with(0x40, &[(0x40, 0x09, 0x50), (0x50, 0x05, 0x40)]);
        assert_eq!(space.walk(), [(0x50, Kind::Msi)]);
        assert!(space.reads.get() <= MAX_HOPS + 3);
    }

    #[test]
    fn a_pointer_into_the_header_or_with_low_bits_set_is_harmless() {
        assert_eq!(Space::with(0x04, &[(0x04, 0x05, 0)]).walk(), []);
        assert_eq!(
            Space::with(0x43, &[(0x40, 0x05, 0x3f)]).walk(),
            [(0x40, Kind::Msi)]
        );
    }

    #[test]
    fn msi_has_as_many_registers_as_its_control_word_says() {
        for (control, last) in [(0, 8), (0x0080, 0x0c), (0x0100, 0x10), (0x0180, 0x14)] {
            let mut space = Space::with(0x40, &[(0x40, 0x05, 0)]);
            space.bytes[0x42..0x44].copy_from_slice(&u16::to_le_bytes(control));
            let found = walk(&space);
            assert_eq!(found[0].registers.last().unwrap().offset, last, "{control:#x}");
        }
    }

    #[test]
    fn what_stays_dom0s_is_found_and_a_loop_of_extended_capabilities_ends() {
        struct Extended(&'static [(u16, u32)]);
        impl ConfigSpace for Extended {
            fn read(&self, offset: u16, _: u8) -> u32 {
                let found = self.0.iter().find(|&&(at, _)| at == offset);
                found.map_or(0, |&(_, header)| header)
            }
        }
        const LIST: [(u16, u32); 3] = [(0x100, 0x1501_0001), (0x150, 0x2001_0010), (0x200, 0x1001_0015)];
        let found = kept(&Extended(&LIST));
        assert_eq!(found, [0x150..0x190, 0x200..0x234]);
        assert!(kept(&Extended(&[])).is_empty());
        assert!(kept(&Extended(&[(0x100, u32::MAX)])).is_empty());
    }

    #[test]
    fn all_ones_end_the_list() {
        let mut space = Space::with(0x40, &[]);
        space.bytes[0x40..].fill(0xff);
        assert_eq!(space.walk(), []);
    }

    #[test]
    fn a_capability_that_sticks_out_or_overlaps_is_left_to_the_default() {
        assert_eq!(Space::with(0xfc, &[(0xfc, 0x11, 0)]).walk(), []);
        let overlapping = Space::with(0x40, &[(0x40, 0x01, 0x44), (0x44, 0x05, 0)]);
        assert_eq!(overlapping.walk(), [(0x40, Kind::Pm)]);
    }
}
