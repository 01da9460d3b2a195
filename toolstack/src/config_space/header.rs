//! The first 64 bytes of a configuration space, as they are recorded: which registers hold addresses depends on
//! whether the function is a device (header type 0) or a PCI bridge (1).

use pci::bdf::Bdf;
use pci::registers::{header_type, register};
use std::ops::RangeInclusive;

/// The address registers of a device: six base addresses and the ROM's.
const DEVICE_ADDRESSES: [u16; 7] = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30];
/// The same of a bridge (PCI-to-PCI Bridge Architecture 1.2, section 3.2): two, and the ROM's.
const BRIDGE_ADDRESSES: [u16; 3] = [0x10, 0x14, 0x38];
/// A bridge's bus numbers, and the windows of memory and I/O ports that it passes on: offset and bytes. Secondary
/// Status, beside the I/O window, is left out: a written 1 clears its bits.
const BRIDGE_WINDOWS: [(u16, u8); 8] = [
    (0x18, 4),
    (0x1c, 2),
    (0x20, 4),
    (0x24, 4),
    (0x28, 4),
    (0x2c, 4),
    (0x30, 4),
    (0x3e, 2),
];

/// The header type, without the bit for several functions.
pub fn kind(header: &[u8]) -> u8 {
    header
        .get(usize::from(register::HEADER_TYPE))
        .map_or(header_type::KIND, |kind| kind & header_type::KIND)
}

/// True if the header is that of a PCI bridge.
pub fn is_bridge(header: &[u8]) -> bool {
    kind(header) == header_type::BRIDGE
}

/// The registers, 32 bits each, that hold the function's own addresses. A guest may restore them.
pub fn addresses(header: &[u8]) -> &'static [u16] {
    if is_bridge(header) {
        &BRIDGE_ADDRESSES
    } else {
        &DEVICE_ADDRESSES
    }
}

/// The registers of a bridge's buses and windows, each with its bytes. Only dom0 writes them.
pub fn windows(header: &[u8]) -> &'static [(u16, u8)] {
    if is_bridge(header) { &BRIDGE_WINDOWS } else { &[] }
}

/// The buses behind the bridge at `bdf`; `None` if it is no bridge, or is not configured.
pub fn buses_behind(bdf: Bdf, header: &[u8]) -> Option<RangeInclusive<u8>> {
    let secondary = *header.get(usize::from(register::SECONDARY_BUS))?;
    let subordinate = *header.get(usize::from(register::SUBORDINATE_BUS))?;
    // A bus behind a bridge has a higher number than the bus before it. A bridge that is not configured has 0.
    (is_bridge(header) && secondary > bdf.bus()).then_some(secondary..=subordinate)
}

/// True if the function `other` lies behind the bridge at `bdf`.
pub fn leads_to(bdf: Bdf, header: &[u8], other: Bdf) -> bool {
    bdf.segment() == other.segment()
        && buses_behind(bdf, header).is_some_and(|buses| buses.contains(&other.bus()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The header of a bridge to buses 2 and 3.
    pub fn bridge() -> Vec<u8> {
        let mut header = vec![0; 64];
        header[0x0e] = 0x81;
        header[0x18..0x1b].copy_from_slice(&[0, 2, 3]);
        header
    }

    #[test]
    fn a_bridge_has_fewer_addresses_and_has_windows() {
        assert_eq!(addresses(&bridge()), [0x10, 0x14, 0x38]);
        assert_eq!(addresses(&[0; 64]).len(), 7);
        assert!(windows(&[0; 64]).is_empty());
        let bytes: u32 = windows(&bridge())
            .iter()
            .map(|&(_, width)| u32::from(width))
            .sum();
        assert_eq!(
            bytes,
            0x34 - 0x18 - 2 + 2,
            "all but the secondary status, and the control word"
        );
    }

    #[test]
    fn a_bridge_leads_to_the_buses_behind_it() {
        let at = |text: &str| -> Bdf { text.parse().unwrap() };
        let (bdf, header) = (at("0000:00:07.0"), bridge());
        for (other, behind) in [
            ("0000:02:00.0", true),
            ("0000:03:1f.7", true),
            ("0000:00:05.0", false),
            ("0000:04:00.0", false),
            ("0001:02:00.0", false),
        ] {
            assert_eq!(leads_to(bdf, &header, at(other)), behind, "{other}");
        }
        assert_eq!(buses_behind(bdf, &[0; 64]), None, "no bridge");
        assert_eq!(buses_behind(at("0000:02:00.0"), &header), None, "not set up");
        assert_eq!(buses_behind(bdf, &[]), None, "not recorded");
    }
}
