//! The capabilities of a function that matter here, found in its configuration space.

/// Offsets of the first instance of each capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// Single root I/O virtualization (extended, id 0x0010).
    pub sriov: Option<u16>,
    /// Resizable BARs (extended, id 0x0015), and those of the virtual functions (0x0024).
    pub resizable: [Option<u16>; 2],
    /// Bytes that the MSI capability takes: 10, 14, 20 or 24; 0 without one.
    pub msi_length: u16,
}

/// Bytes that the MSI-X capability takes.
pub const MSIX_LENGTH: u16 = 12;
/// Bytes that the SR-IOV capability takes.
pub const SRIOV_LENGTH: u16 = 0x40;
/// Bytes that a capability of resizable BARs takes, at most: six of them.
pub const RESIZABLE_LENGTH: u16 = 4 + 6 * 8;

const MSI_64_BIT: u8 = 1 << 7;
const MSI_MASKING: u8 = 1 << 0;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 0x10;
const POINTER: usize = 0x34;
/// The list lies in the 192 bytes after the header; an entry has at least four.
const MOST: usize = 48;
/// Where the extended list begins, and how many entries of eight bytes it has room for.
const EXTENDED: usize = 0x100;
const MOST_EXTENDED: usize = 480;

impl Capabilities {
    /// Walks the lists in a copy of the first 256 bytes, or of all 4096. A list that leaves the space, points into
    /// the header or runs in a circle ends there.
    pub fn find(config: &[u8]) -> Self {
        let mut found = Self::find_usual(config);
        found.find_extended(config);
        found
    }

    fn find_usual(config: &[u8]) -> Self {
        let byte = |at: usize| config.get(at).copied().unwrap_or(0);
        let mut found = Self::default();
        if byte(STATUS) & STATUS_CAPABILITIES == 0 {
            return found;
        }
        let mut at = byte(POINTER) & 0xfc;
        for _ in 0..MOST {
            let here = usize::from(at);
            if at < 0x40 || config.len() <= here + 3 {
                break;
            }
            let slot = match byte(here) {
                0x01 => Some(&mut found.power),
                0x03 => Some(&mut found.vpd),
                0x05 => Some(&mut found.msi),
                0x10 => Some(&mut found.express),
                0x11 => Some(&mut found.msix),
                _ => None,
            };
            if let Some(slot) = slot {
                slot.get_or_insert(u16::from(at));
            }
            at = byte(here + 1) & 0xfc;
        }
        if let Some(msi) = found.msi.map(usize::from) {
            let wide_address = byte(msi + 2) & MSI_64_BIT != 0;
            let masking = byte(msi + 3) & MSI_MASKING != 0;
            found.msi_length = 10 + if wide_address { 4 } else { 0 } + if masking { 10 } else { 0 };
        }
        found
    }

    fn find_extended(&mut self, config: &[u8]) {
        let mut at = EXTENDED;
        for _ in 0..MOST_EXTENDED {
            let header = config.get(at..at + 4).and_then(|raw| raw.try_into().ok());
            let Some(header) = header.map(u32::from_le_bytes) else {
                break;
            };
            let slot = match header & 0xffff {
                0x0001 => Some(&mut self.aer),
                0x0010 => Some(&mut self.sriov),
                0x0015 => Some(&mut self.resizable[0]),
                0x0024 => Some(&mut self.resizable[1]),
                _ => None,
            };
            if let Some(slot) = slot {
                slot.get_or_insert(at as u16);
            }
            at = (header >> 20) as usize & !3;
            if at < EXTENDED {
                break;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A configuration space with the given capabilities, `(offset, id)`, linked in that order.
    pub fn space(list: &[(u8, u8)]) -> Vec<u8> {
        let mut config = vec![0; 256];
        config[STATUS] = STATUS_CAPABILITIES;
        let mut link = POINTER;
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
        ]);
        let found = Capabilities::find(&config);
        let expected = Capabilities {
            power: Some(0xc8),
            msi: Some(0xd0),
            express: Some(0xe0),
            msix: Some(0xa0),
            msi_length: 10,
            ..Capabilities::default()
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn the_length_of_msi_follows_from_its_control_word() {
        for (control, length) in [(0x0000, 10), (0x0080, 14), (0x0100, 20), (0x0180, 24)] {
            let mut config = space(&[(0x50, 0x05)]);
            config[0x52..0x54].copy_from_slice(&u16::to_le_bytes(control));
            assert_eq!(Capabilities::find(&config).msi_length, length, "{control:#x}");
        }
    }

    #[test]
    fn without_the_status_bit_there_is_no_list() {
        let mut config = space(&[(0x40, 0x11)]);
        config[STATUS] = 0;
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
        assert_eq!(
            (found.aer, found.sriov, found.resizable),
            (Some(0x100), Some(0x200), [Some(0xff8), Some(0x160)])
        );
        assert_eq!(Capabilities::find(&config[..256]), Capabilities::default());
        let mut circle = extended(&[(0x100, 0x0001), (0x200, 0x0010)]);
        circle[0x203] = 0x10;
        assert_eq!(Capabilities::find(&circle).sriov, Some(0x200));
    }
}
