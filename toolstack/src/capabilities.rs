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
    /// MSI-X (id 0x11).
    pub msix: Option<u16>,
    /// Bytes that the MSI capability takes: 10, 14, 20 or 24; 0 without one.
    pub msi_length: u16,
}

/// Bytes that the MSI-X capability takes.
pub const MSIX_LENGTH: u16 = 12;

const MSI_64_BIT: u8 = 1 << 7;
const MSI_MASKING: u8 = 1 << 0;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 0x10;
const POINTER: usize = 0x34;
/// The list lies in the 192 bytes after the header; an entry has at least four.
const MOST: usize = 48;

impl Capabilities {
    /// Walks the list in a copy of the first 256 bytes. A list that leaves the space, points into
    /// the header or runs in a circle ends there.
    pub fn find(config: &[u8]) -> Self {
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
            msix: Some(0xa0),
            vpd: None,
            msi_length: 10,
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
}
