//! Names of capabilities, and where they lie. They are for people alone: no judgement goes by them.

use pci::registers::{EXTENDED, capability, register, status};
use std::collections::BTreeMap;

/// Capabilities below 256 (PCI Code and ID Assignment Specification, section 2).
const USUAL: [(u8, &str); 21] = [
    (0x01, "Power Management"),
    (0x02, "AGP"),
    (0x03, "Vital Product Data"),
    (0x04, "Slot Identification"),
    (0x05, "MSI"),
    (0x06, "CompactPCI Hot Swap"),
    (0x07, "PCI-X"),
    (0x08, "HyperTransport"),
    (0x09, "Vendor Specific"),
    (0x0a, "Debug Port"),
    (0x0b, "CompactPCI Resource Control"),
    (0x0c, "PCI Hot-Plug"),
    (0x0d, "Bridge Subsystem ID"),
    (0x0e, "AGP 8x"),
    (0x0f, "Secure Device"),
    (0x10, "PCI Express"),
    (0x11, "MSI-X"),
    (0x12, "Serial ATA"),
    (0x13, "Advanced Features"),
    (0x14, "Enhanced Allocation"),
    (0x15, "Flattening Portal Bridge"),
];

/// Extended capabilities (the same, section 3).
const EXTENDED_NAMES: [(u16, &str); 30] = [
    (0x0001, "Advanced Error Reporting"),
    (0x0002, "Virtual Channel"),
    (0x0003, "Device Serial Number"),
    (0x0004, "Power Budgeting"),
    (0x0005, "Root Complex Link Declaration"),
    (0x0009, "Virtual Channel"),
    (0x000b, "Vendor Specific"),
    (0x000d, "Access Control Services"),
    (0x000e, "Alternative Routing-ID"),
    (0x000f, "Address Translation Services"),
    (0x0010, "SR-IOV"),
    (0x0012, "Multicast"),
    (0x0013, "Page Request"),
    (0x0015, "Resizable BAR"),
    (0x0016, "Dynamic Power Allocation"),
    (0x0017, "TPH Requester"),
    (0x0018, "Latency Tolerance Reporting"),
    (0x0019, "Secondary PCI Express"),
    (0x001b, "PASID"),
    (0x001d, "Downstream Port Containment"),
    (0x001e, "L1 PM Substates"),
    (0x001f, "Precision Time Measurement"),
    (0x0023, "Designated Vendor Specific"),
    (0x0024, "VF Resizable BAR"),
    (0x0025, "Data Link Feature"),
    (0x0026, "Physical Layer 16 GT/s"),
    (0x0027, "Lane Margining"),
    (0x002a, "Physical Layer 32 GT/s"),
    (0x002e, "Data Object Exchange"),
    (0x0030, "Integrity and Data Encryption"),
];

/// Where each capability of a configuration space begins, with its name.
pub fn capabilities(config: &[u8]) -> BTreeMap<u16, &'static str> {
    let byte = |at: u16| config.get(usize::from(at)).copied().unwrap_or(0xff);
    let word = |at: u16| u16::from_le_bytes([byte(at), byte(at + 1)]);
    let mut found = BTreeMap::new();
    let mut at = u16::from(byte(register::CAPABILITIES) & !3);
    // A list that runs in a circle, or that leaves its space, ends there.
    while word(register::STATUS) & status::CAPABILITIES != 0
        && (0x40..EXTENDED).contains(&at)
        && found.len() < capability::MOST
        && byte(at) != u8::MAX
    {
        let name = USUAL.iter().find(|&&(id, _)| id == byte(at));
        if found
            .insert(at, name.map_or("unknown capability", |&(_, name)| name))
            .is_some()
        {
            break;
        }
        at = u16::from(byte(at + 1) & !3);
    }
    let mut at = EXTENDED;
    while (EXTENDED..0xffd).contains(&at) && ![0, u16::MAX].contains(&word(at)) {
        let name = EXTENDED_NAMES.iter().find(|&&(id, _)| id == word(at));
        if found
            .insert(at, name.map_or("unknown capability", |&(_, name)| name))
            .is_some()
        {
            break;
        }
        at = word(at + 2) >> 4 & !3;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_space::capabilities::tests::{extended, space};

    #[test]
    fn capabilities_are_named_where_they_begin() {
        let mut config = extended(&[(0x100, 0x0001), (0x140, 0x7777)]);
        config[..256].copy_from_slice(&space(&[(0x40, 0x01), (0x50, 0x05)])[..256]);
        let found: Vec<_> = capabilities(&config).into_iter().collect();
        assert_eq!(
            found,
            [
                (0x40, "Power Management"),
                (0x50, "MSI"),
                (0x100, "Advanced Error Reporting"),
                (0x140, "unknown capability")
            ]
        );
    }

    #[test]
    fn a_space_that_is_short_or_makes_no_sense_has_an_end() {
        assert!(capabilities(&[]).is_empty());
        for fill in 0..=u8::MAX {
            let _ = capabilities(&[fill; 4096]);
            let _ = capabilities(&[fill; 64]);
        }
    }
}
