//! Finds the capabilities of a function that matter here.

use pci::registers::{EXTENDED, capability, express, msi, msix, register, status};
use std::ops::Range;

/// Offsets of the first instance of each capability, and the ranges that no guest may write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Power management (id 0x01).
    pub power: Option<u16>,
    /// Vital product data (id 0x03).
    pub vpd: Option<u16>,
    /// Message signalled interrupts (id 0x05).
    pub msi: Option<u16>,
    /// PCI Express (id 0x10).
    pub express: Option<u16>,
    /// MSI-X (id 0x11).
    pub msix: Option<u16>,
    /// Advanced error reporting (extended, id 0x0001).
    pub aer: Option<u16>,
    /// Access control services (extended, id 0x000d).
    pub acs: Option<u16>,
    /// True if PCI Express has the registers of its version 2.
    pub express_2: bool,
    /// The registers of every instance of MSI and MSI-X.
    pub interrupts: Vec<Range<u16>>,
    /// The registers of every instance of a capability that is dom0's alone.
    pub kept: Vec<Range<u16>>,
}

/// Capabilities below 256 that are dom0's, by id and bytes: HyperTransport, Advanced Features (whose control resets the
/// function), Flattening Portal Bridge.
const KEPT: [(u8, u16); 3] = [(0x08, 0x1c), (0x13, 6), (0x15, 0x24)];
/// Enhanced Allocation, which says to which addresses a function answers: its id, and the bytes of its head and, at most,
/// of each entry.
const EA: u8 = 0x14;
const EA_HEAD: u16 = 8;
const EA_ENTRY: u16 = 20;
const EA_ENTRIES: u8 = 0x3f;
/// Extended capabilities that are dom0's, by id and bytes.
const KEPT_EXTENDED: [(u16, u16); 13] = [
    // What dom0 hears of errors; which functions there are; at which addresses they answer.
    (AER, 0x3c),
    (0x0010, 0x40),
    (0x0012, 0x30),
    (0x0015, 0x34),
    (0x0024, 0x34),
    // Who may speak with whom, and in whose name.
    (ACS, 8),
    (0x000e, 8),
    // What the IOMMU translates: ATS, page requests, PASID.
    (0x000f, 8),
    (0x0013, 0x10),
    (0x001b, 8),
    // What the bridges above have to agree to: LTR, L1 substates, containment.
    (0x0018, 8),
    (0x001e, 0x14),
    (0x001d, 0x30),
];
const AER: u16 = 0x0001;
const ACS: u16 = 0x000d;

/// Limit of entries in the extended list, of eight bytes at least.
const MOST_EXTENDED: usize = 480;

/// Kinds of PCI Express functions that are ports (PCI Express Base 3.0, section 7.8.2).
pub mod port {
    /// A root port.
    pub const ROOT: u8 = 4;
    /// The upstream port of a switch.
    pub const UPSTREAM: u8 = 5;
    /// A downstream port of a switch.
    pub const DOWNSTREAM: u8 = 6;
}

impl Capabilities {
    /// Walks the lists in a copy of the first 256 bytes, or of all 4096. A list that leaves the space, points into
    /// the header or runs in a circle ends there.
    pub fn find(config: &[u8]) -> Self {
        let mut found = Self::find_usual(config);
        found.find_extended(config);
        found
    }

    /// The kind of PCI Express function, such as one of [`port`]; `None` without PCI Express.
    pub fn express_kind(&self, config: &[u8]) -> Option<u8> {
        let express = usize::from(self.express?);
        let flags = config.get(express + usize::from(express::CAPABILITIES))?;
        Some(flags >> 4)
    }

    fn find_usual(config: &[u8]) -> Self {
        let byte = |at: usize| config.get(at).copied().unwrap_or(0);
        let word = |at: usize| u16::from_le_bytes([byte(at), byte(at + 1)]);
        let mut found = Self::default();
        if word(register::STATUS.into()) & status::CAPABILITIES == 0 {
            return found;
        }
        let mut at = byte(register::CAPABILITIES.into()) & 0xfc;
        for _ in 0..capability::MOST {
            let here = usize::from(at);
            // Linux and Xen end the list there as well.
            if at < 0x40 || config.len() <= here + 3 || byte(here) == u8::MAX {
                break;
            }
            let start = u16::from(at);
            let length = |bytes| start..start + bytes;
            match byte(here) {
                capability::MSI => found
                    .interrupts
                    .push(length(msi_length(word(here + usize::from(msi::CONTROL))))),
                capability::MSIX => found.interrupts.push(length(msix::LENGTH)),
                EA => found.kept.push(length(
                    EA_HEAD + EA_ENTRY * u16::from(byte(here + 2) & EA_ENTRIES),
                )),
                id => {
                    let kept = KEPT.iter().find(|&&(kept, _)| kept == id);
                    found.kept.extend(kept.map(|&(_, bytes)| length(bytes)));
                }
            }
            let slot = match byte(here) {
                capability::POWER => Some(&mut found.power),
                capability::VPD => Some(&mut found.vpd),
                capability::MSI => Some(&mut found.msi),
                capability::EXPRESS => Some(&mut found.express),
                capability::MSIX => Some(&mut found.msix),
                _ => None,
            };
            if let Some(slot) = slot {
                slot.get_or_insert(u16::from(at));
            }
            at = byte(here + 1) & 0xfc;
        }
        if let Some(express) = found.express {
            found.express_2 = word(usize::from(express + express::CAPABILITIES)) & express::VERSION >= 2;
        }
        found
    }

    fn find_extended(&mut self, config: &[u8]) {
        let mut at = usize::from(EXTENDED);
        for _ in 0..MOST_EXTENDED {
            let header = config.get(at..at + 4).and_then(|raw| raw.try_into().ok());
            let Some(header) = header.map(u32::from_le_bytes) else {
                break;
            };
            if header == u32::MAX {
                break;
            }
            let start = at as u16;
            let kept = KEPT_EXTENDED.iter().find(|&&(id, _)| id == header as u16);
            if let Some(&(id, bytes)) = kept {
                match id {
                    AER => _ = self.aer.get_or_insert(start),
                    ACS => _ = self.acs.get_or_insert(start),
                    _ => {}
                }
                let range = start..start + bytes;
                // Seen before: the list is a circle. Capabilities of other kinds are bounded by the loop.
                if self.kept.contains(&range) {
                    break;
                }
                self.kept.push(range);
            }
            at = (header >> 20) as usize & !3;
            if at < usize::from(EXTENDED) {
                break;
            }
        }
    }
}

/// Bytes that an MSI capability takes, by the two bytes of its control word.
fn msi_length(control: u16) -> u16 {
    let address = if control & msi::WIDE != 0 { 4 } else { 0 };
    let masking = if control & msi::MASKING != 0 { 10 } else { 0 };
    10 + address + masking
}

#[cfg(test)]
// What is compared is a list of one range.
#[allow(clippy::single_range_in_vec_init)]
pub(crate) mod tests {
    use super::*;

    /// A configuration space with the given capabilities, `(offset, id)`, linked in that order.
    pub fn space(list: &[(u8, u8)]) -> Vec<u8> {
        let mut config = vec![0; 256];
        config[usize::from(register::STATUS)] = status::CAPABILITIES as u8;
        let mut link = usize::from(register::CAPABILITIES);
        for &(offset, id) in list {
            config[link] = offset;
            config[usize::from(offset)] = id;
            link = usize::from(offset) + 1;
        }
        config
    }

    #[test]
    fn the_first_of_each_kind_is_found() {
        let config = space(&[
            (0xc8, 0x01),
            (0xd0, 0x05),
            (0xe0, 0x10),
            (0xa0, 0x11),
            (0x40, 0x05),
            (0x60, 0x13),
        ]);
        let found = Capabilities::find(&config);
        let expected = Capabilities {
            power: Some(0xc8),
            msi: Some(0xd0),
            express: Some(0xe0),
            msix: Some(0xa0),
            interrupts: vec![0xd0..0xda, 0xa0..0xac, 0x40..0x4a],
            kept: vec![0x60..0x66],
            ..Capabilities::default()
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn the_length_of_msi_follows_from_its_control_word() {
        for (control, length) in [(0x0000, 10), (0x0080, 14), (0x0100, 20), (0x0180, 24)] {
            let mut config = space(&[(0x50, 0x05)]);
            config[0x52..0x54].copy_from_slice(&u16::to_le_bytes(control));
            let range = 0x50..0x50 + length;
            assert_eq!(Capabilities::find(&config).interrupts, [range], "{control:#x}");
        }
    }

    #[test]
    fn without_the_status_bit_there_is_no_list() {
        let mut config = space(&[(0x40, 0x11)]);
        config[usize::from(register::STATUS)] = 0;
        assert_eq!(Capabilities::find(&config), Capabilities::default());
    }

    #[test]
    fn a_hostile_list_ends() {
        let mut circle = space(&[(0x40, 0x11), (0x50, 0x01)]);
        circle[0x51] = 0x40;
        assert_eq!(Capabilities::find(&circle).power, Some(0x50));
        let into_header = space(&[(0x10, 0x11)]);
        assert_eq!(Capabilities::find(&into_header), Capabilities::default());
        assert_eq!(Capabilities::find(&[0xff; 256]), Capabilities::default());
        assert_eq!(Capabilities::find(&[0xff; 7]), Capabilities::default());
        let at_the_end = space(&[(0xfc, 0x11)]);
        assert_eq!(Capabilities::find(&at_the_end).msix, Some(0xfc));
    }

    /// A configuration space of 4096 bytes with the given extended capabilities, `(offset, id)`, linked in that order.
    pub fn extended(list: &[(u16, u16)]) -> Vec<u8> {
        let mut config = vec![0; 4096];
        let next = list.iter().skip(1).map(|&(offset, _)| offset).chain([0]);
        for (&(offset, id), next) in list.iter().zip(next) {
            let header = u32::from(next) << 20 | 1 << 16 | u32::from(id);
            config[usize::from(offset)..][..4].copy_from_slice(&header.to_le_bytes());
        }
        config
    }

    #[test]
    fn what_moves_addresses_is_found_in_extended_space() {
        let config = extended(&[(0x100, 0x0001), (0x200, 0x0010), (0x160, 0x0024), (0xff8, 0x0015)]);
        let found = Capabilities::find(&config);
        assert_eq!(found.aer, Some(0x100));
        assert_eq!(
            found.kept,
            [0x100..0x13c, 0x200..0x240, 0x160..0x194, 0xff8..0x102c]
        );
        assert_eq!(Capabilities::find(&config[..256]), Capabilities::default());
        let mut circle = extended(&[(0x100, 0x0001), (0x200, 0x0010)]);
        circle[0x203] = 0x10;
        assert_eq!(Capabilities::find(&circle).kept, [0x100..0x13c, 0x200..0x240]);
        let mut ended = extended(&[(0x100, 0x0002), (0x200, 0x0010)]);
        ended[0x100..0x104].fill(0xff);
        assert!(Capabilities::find(&ended).kept.is_empty());
    }

    #[test]
    fn enhanced_allocation_is_kept_with_its_entries() {
        for (entries, end) in [(0, 0x48), (0xc2, 0x70)] {
            let mut config = space(&[(0x40, 0x14)]);
            config[0x42] = entries;
            assert_eq!(Capabilities::find(&config).kept, [0x40..end]);
        }
    }

    #[test]
    fn the_version_of_pci_express_is_read() {
        for (version, second) in [(1, false), (0x42, true)] {
            let mut config = space(&[(0x40, 0x10)]);
            config[0x42] = version;
            assert_eq!(Capabilities::find(&config).express_2, second);
        }
    }

    #[test]
    fn lists_are_followed_through_all_the_space_that_there_is_and_all_ones_end_them() {
        let mut list: Vec<(u8, u8)> = (0..48).map(|n| (0x40 + 4 * n, 0x09)).collect();
        list[47].1 = 0x13;
        assert_eq!(Capabilities::find(&space(&list)).kept, [0xfc..0x102]);
        list[20].1 = 0xff;
        assert!(Capabilities::find(&space(&list)).kept.is_empty());
        let mut dense: Vec<(u16, u16)> = (0..480).map(|n| (0x100 + 8 * n, 0x000b)).collect();
        dense[479].1 = 0x0010;
        assert_eq!(Capabilities::find(&extended(&dense)).kept, [0xff8..0x1038]);
    }
}
