//! The policy tables of the capabilities, and the walk over a function's capability list.

use super::register::{Read, Register, Write};
use crate::platform::ConfigSpace;
use alloc::vec::Vec;
use core::ops::Range;
use pci::registers::{capability, express, msi, msix, power, register, status};

/// VPD address: start a write instead of a read.
pub const VPD_WRITE: u16 = 0x8000;
/// Bits of Device Control that a permissive guest has: relaxed ordering, extended tags, phantom functions, no snoop, the
/// size of read requests. dom0 keeps error reporting; the payload size, which must fit the bridges above; auxiliary power;
/// and the function level reset, which takes BARs and MSI-X away without Xen's knowledge.
const DEVICE_CONTROL: u16 = 0x7b10;
/// Likewise of Device Control 2: completion timeouts and ID-based ordering. dom0 keeps what the bridges above must support
/// too (LTR, OBFF, AtomicOps, 10-bit tags).
const DEVICE_CONTROL_2: u16 = 0x031f;
/// PMC: in which states the device can send PME. Hidden, because nobody would hear it.
const PME_SUPPORT: u32 = 0xf800;

/// First byte after the header.
const FIRST: u16 = 0x40;
/// First byte after the space that capabilities can be in.
const END: u16 = 0x100;

/// A kind of capability that the policy has a table for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapabilityKind {
    /// Power management.
    Pm,
    /// Vital product data.
    Vpd,
    /// Message-signalled interrupts.
    Msi,
    /// The same, extended.
    Msix,
    /// PCI Express.
    Express,
}

/// The table of one kind of capability.
#[derive(Debug)]
pub struct Policy {
    /// Which kind.
    pub kind: CapabilityKind,
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

/// All capabilities that have a table. In every other one a guest reads what the device says, and its writes are dropped.
pub static POLICIES: [Policy; 5] = [
    Policy {
        kind: CapabilityKind::Pm,
        id: capability::POWER,
        name: "Power Management",
        registers: &[
            plain(0, 2, "PM header"),
            Register::new(
                power::CAPABILITIES,
                2,
                "PMC",
                Read::HardwareWithout(PME_SUPPORT),
                Write::Drop,
            ),
            Register::new(power::CONTROL, 2, "PMCSR", Read::Hardware, Write::PowerControl),
            plain(6, 1, "PMCSR_BSE"),
            plain(7, 1, "PM Data"),
        ],
    },
    Policy {
        kind: CapabilityKind::Vpd,
        id: capability::VPD,
        name: "Vital Product Data",
        registers: &[
            plain(0, 2, "VPD header"),
            Register::new(2, 2, "VPD Address", Read::Hardware, Write::VpdAddress),
            plain(4, 4, "VPD Data"),
        ],
    },
    Policy {
        kind: CapabilityKind::Msi,
        id: capability::MSI,
        name: "MSI",
        registers: &[
            plain(0, 2, "MSI header"),
            Register::new(
                msi::CONTROL,
                2,
                "MSI Message Control",
                Read::Hardware,
                Write::MessageControl,
            ),
            // Their meaning depends on the form. All are Xen's, also if the device is permissive.
            plain(4, 4, "MSI Address"),
            plain(8, 4, "MSI Upper Address, or Data"),
            plain(0x0c, 4, "MSI Data, or Mask"),
            plain(0x10, 4, "MSI Mask, or Pending"),
            plain(0x14, 4, "MSI Pending"),
        ],
    },
    Policy {
        kind: CapabilityKind::Msix,
        id: capability::MSIX,
        name: "MSI-X",
        registers: &[
            plain(0, 2, "MSI-X header"),
            Register::new(
                msix::CONTROL,
                2,
                "MSI-X Message Control",
                Read::Hardware,
                Write::MessageControl,
            ),
            plain(4, 4, "MSI-X Table"),
            plain(8, 4, "MSI-X PBA"),
        ],
    },
    Policy {
        kind: CapabilityKind::Express,
        id: capability::EXPRESS,
        name: "PCI Express",
        registers: &[
            Register::new(
                8,
                2,
                "Device Control",
                Read::Hardware,
                Write::Permissive(DEVICE_CONTROL),
            ),
            Register::new(
                0x28,
                2,
                "Device Control 2",
                Read::Hardware,
                Write::Permissive(DEVICE_CONTROL_2),
            ),
        ],
    },
];

/// A capability that no guest writes: neither a permissive one nor by a quirk.
#[derive(Debug)]
pub struct Kept {
    /// The id in its list.
    pub id: u16,
    /// Bytes from its start.
    pub length: u16,
    /// The name in the PCI specification.
    pub name: &'static str,
}

const fn whole(id: u16, length: u16, name: &'static str) -> Kept {
    Kept { id, length, name }
}

/// Enhanced Allocation: its length follows from the number of its entries, in the third byte.
const ENHANCED_ALLOCATION: u8 = 0x14;
const EA_ENTRIES: u16 = 0x3f;
/// The words before the first entry, and the most that an entry takes.
const EA_HEAD: u16 = 8;
const EA_ENTRY: u16 = 20;

/// Kept capabilities in the list below 256.
pub static KEPT: [Kept; 4] = [
    // Interrupts that pass by MSI, and links.
    whole(0x08, 0x1c, "HyperTransport"),
    // Its one control bit resets the function.
    whole(0x13, 6, "Advanced Features"),
    // These two set the addresses that a function, or a bridge, answers to.
    whole(
        ENHANCED_ALLOCATION as u16,
        EA_HEAD,
        "Enhanced Allocation; 20 more for each entry",
    ),
    whole(0x15, 0x24, "Flattening Portal Bridge"),
];

/// Kept capabilities in extended space. They control which functions there are and at which addresses, what the IOMMU
/// translates for the device, what the bridges above must support, and which errors dom0 hears of.
pub static KEPT_EXTENDED: [Kept; 13] = [
    whole(0x0001, 0x3c, "Advanced Error Reporting"),
    whole(0x000d, 8, "Access Control Services"),
    whole(0x000e, 8, "Alternative Routing-ID"),
    whole(0x000f, 8, "Address Translation Services"),
    whole(0x0010, 0x40, "SR-IOV"),
    whole(0x0012, 0x30, "Multicast"),
    whole(0x0013, 0x10, "Page Request"),
    whole(0x0015, 0x34, "Resizable BAR"),
    whole(0x0018, 8, "Latency Tolerance Reporting"),
    whole(0x001b, 8, "PASID"),
    whole(0x001d, 0x30, "Downstream Port Containment"),
    whole(0x001e, 0x14, "L1 PM Substates"),
    whole(0x0024, 0x34, "VF Resizable BAR"),
];
/// How many hops the walk over extended capabilities makes: the space has room for no more.
const MAX_EXTENDED_HOPS: usize = 480;

/// Adds where the kept capabilities of extended space lie.
fn walk_extended(ecam: &impl ConfigSpace, kept: &mut Vec<Range<u16>>) {
    let mut next = END;
    for _ in 0..MAX_EXTENDED_HOPS {
        let header = ecam.read(next, 4);
        // The device does not answer, or has no extended space.
        if header == u32::MAX {
            break;
        }
        if let Some(found) = KEPT_EXTENDED.iter().find(|kept| kept.id == header as u16) {
            let range = next..next + found.length;
            // The list is a loop: the rest has been seen.
            if kept.contains(&range) {
                break;
            }
            kept.push(range);
        }
        next = (header >> 20) as u16 & !3;
        if next < END {
            break;
        }
    }
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

/// The result of the walk over a function's capability lists.
#[derive(Debug, Default)]
pub struct Lists {
    /// The first capability of each kind that has a table.
    pub found: Vec<Found>,
    /// Ranges that no guest writes: neither a permissive one nor by a quirk.
    pub kept: Vec<Range<u16>>,
    /// The first power management capability, also if it overlaps another: the function may sleep all the same.
    pub power: Option<u16>,
}

/// Walks the lists of a function.
///
/// The lists are the device's and may hold anything. The walk ends after 48 hops, at an offset inside the header, and at
/// all-ones. A capability with a table that does not fit below 256, overlaps another, or is the second of its kind gets no
/// registers. The bytes that it covers are kept: Xen or dom0 may use it all the same.
pub fn walk(ecam: &impl ConfigSpace) -> Lists {
    let mut lists = Lists::default();
    walk_extended(ecam, &mut lists.kept);
    if ecam.read(register::STATUS, 2) as u16 & status::CAPABILITIES == 0 {
        return lists;
    }
    let mut all: Vec<Found> = Vec::new();
    let mut next = ecam.read(register::CAPABILITIES, 1) as u16 & !3;
    for _ in 0..capability::MOST {
        if next < FIRST {
            break;
        }
        let [id, pointer] = (ecam.read(next, 2) as u16).to_le_bytes();
        // The device does not answer here.
        if id == 0xff {
            break;
        }
        if let Some(policy) = POLICIES.iter().find(|policy| policy.id == id) {
            // A loop. One without a capability that has a table ends by the number of hops.
            if all.iter().any(|other| other.base == next) {
                break;
            }
            all.push(Found {
                base: next,
                policy,
                registers: present(policy, ecam, next),
            });
        } else if let Some(kept) = KEPT.iter().find(|kept| kept.id == id.into()) {
            let mut length = kept.length;
            if id == ENHANCED_ALLOCATION {
                length += EA_ENTRY * (ecam.read(next + 2, 2) as u16 & EA_ENTRIES);
            }
            lists.kept.push(next..next + length);
        }
        // The low two bits are reserved: software must mask them (PCI Local Bus 3.0, section 6.7).
        next = u16::from(pointer) & !3;
    }
    let power = all.iter().find(|one| one.policy.kind == CapabilityKind::Pm);
    lists.power = power.map(|one| one.base);
    // Each against all others: of two that overlap neither can be believed.
    for (index, one) in all.iter().enumerate() {
        let mut others = all.iter().enumerate().filter(|&(at, _)| at != index);
        let clashes = |(at, other): (usize, &Found)| {
            one.overlaps(other) || at < index && one.policy.kind == other.policy.kind
        };
        if one.end() > END || others.any(clashes) {
            lists.kept.push(one.base..one.end());
        } else {
            lists.found.push(*one);
        }
    }
    lists
}

/// The registers that a capability of this kind has at `base`.
fn present(policy: &'static Policy, ecam: &impl ConfigSpace, base: u16) -> &'static [Register] {
    let all = policy.registers;
    // In the third and fourth byte of both.
    let control = ecam.read(base + msi::CONTROL, 2) as u16;
    let missing = match policy.kind {
        CapabilityKind::Msi => {
            // Address, data; the upper address; mask and pending bits.
            let wide = usize::from(control & msi::WIDE != 0);
            let masked = if control & msi::MASKING != 0 { 2 } else { 0 };
            3 - wide - masked
        }
        // Version 1 ends before Device Control 2: what lies there belongs to something else.
        CapabilityKind::Express => usize::from(control & express::VERSION < 2),
        _ => 0,
    };
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
// What is compared is a list of one range.
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;
    use alloc::vec;
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

        fn walk(&self) -> Vec<(u16, CapabilityKind)> {
            walk(self)
                .found
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
            [
                (0xc8, CapabilityKind::Pm),
                (0xd0, CapabilityKind::Msi),
                (0xe0, CapabilityKind::Express),
                (0xa0, CapabilityKind::Msix)
            ]
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
        assert_eq!(space.walk(), [(0x50, CapabilityKind::Msi)]);
        assert!(space.reads.get() <= capability::MOST + 3);
    }

    #[test]
    fn a_pointer_into_the_header_or_with_low_bits_set_is_harmless() {
        assert_eq!(Space::with(0x04, &[(0x04, 0x05, 0)]).walk(), []);
        assert_eq!(
            Space::with(0x43, &[(0x40, 0x05, 0x3f)]).walk(),
            [(0x40, CapabilityKind::Msi)]
        );
    }

    #[test]
    fn msi_has_as_many_registers_as_its_control_word_says() {
        for (control, last) in [(0, 8), (0x0080, 0x0c), (0x0100, 0x10), (0x0180, 0x14)] {
            let mut space = Space::with(0x40, &[(0x40, 0x05, 0)]);
            space.bytes[0x42..0x44].copy_from_slice(&u16::to_le_bytes(control));
            let found = walk(&space).found;
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
        let kept = |list| walk(&Extended(list)).kept;
        assert_eq!(kept(&LIST), [0x100..0x13c, 0x150..0x190, 0x200..0x234]);
        assert!(kept(&[]).is_empty());
        assert!(kept(&[(0x100, u32::MAX)]).is_empty());
    }

    #[test]
    fn all_ones_end_the_list() {
        let mut space = Space::with(0x40, &[]);
        space.bytes[0x40..].fill(0xff);
        assert_eq!(space.walk(), []);
    }

    #[test]
    fn a_capability_that_sticks_out_overlaps_or_comes_twice_is_kept() {
        for (list, found, kept) in [
            // One that ends with the space fits.
            (&[(0xf8, 0x01, 0)][..], &[(0xf8, CapabilityKind::Pm)][..], vec![]),
            (&[(0xfc, 0x11, 0)], &[], vec![0xfc..0x108]),
            (&[(0xf8, 0x11, 0)], &[], vec![0xf8..0x104]),
            (
                &[(0x40, 0x01, 0x44), (0x44, 0x05, 0)],
                &[],
                vec![0x40..0x48, 0x44..0x50],
            ),
            (
                &[(0x44, 0x05, 0x40), (0x40, 0x01, 0x60), (0x60, 0x03, 0)],
                &[(0x60, CapabilityKind::Vpd)],
                vec![0x44..0x50, 0x40..0x48],
            ),
            (
                &[(0x40, 0x11, 0x60), (0x60, 0x11, 0)],
                &[(0x40, CapabilityKind::Msix)],
                vec![0x60..0x6c],
            ),
        ] {
            let space = Space::with(list[0].0, list);
            assert_eq!(space.walk(), found, "{list:?}");
            assert_eq!(walk(&space).kept, kept, "{list:?}");
        }
    }

    #[test]
    fn enhanced_allocation_is_as_long_as_its_entries_may_be() {
        for (entries, end) in [(0, 0x48), (2, 0x70), (0x3f, 0x534)] {
            let mut space = Space::with(0x40, &[(0x40, 0x14, 0)]);
            space.bytes[0x42] = entries | 0xc0;
            assert_eq!(walk(&space).kept, [0x40..end]);
        }
    }

    #[test]
    fn a_list_is_followed_through_all_the_space_that_there_is() {
        let list: Vec<(u8, u8, u8)> = (0..48)
            .map(|n| {
                let at: u8 = 0x40 + 4 * n;
                (at, if n == 47 { 0x13 } else { 0x09 }, at.wrapping_add(4))
            })
            .collect();
        assert_eq!(walk(&Space::with(0x40, &list)).kept, [0xfc..0x102]);

        struct Dense;
        impl ConfigSpace for Dense {
            fn read(&self, offset: u16, _: u8) -> u32 {
                let id = if offset == 0xff8 { 0x0010 } else { 0x000b };
                u32::from(offset + 8) << 20 | 1 << 16 | id
            }
        }
        assert!(walk(&Dense).kept.contains(&(0xff8..0x1038)));
    }
}
