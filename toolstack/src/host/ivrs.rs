//! Memory that AMD firmware reserves for the DMA of devices: the IVMD blocks of the ACPI table `IVRS`.
//!
//! AMD I/O Virtualization Technology (IOMMU) Specification, revision 3, sections 5.2.1 and 5.2.3.

use crate::config_space::bytes::{u16_at, u64_at};
use pci::bdf::Bdf;
use std::fs;
use std::ops::RangeInclusive;

const PATH: &str = "/sys/firmware/acpi/tables/IVRS";
/// The ACPI header, and what the table says of the host as a whole.
const HEADER: usize = 48;
/// Kinds of memory blocks: for all devices, for one, and for a range of them.
const FOR_ALL: u8 = 0x20;
const FOR_ONE: u8 = 0x21;
const FOR_RANGE: u8 = 0x22;

/// The parsed blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ivrs(Vec<Block>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Block {
    memory: RangeInclusive<u64>,
    /// Bus in the high byte, devfn in the low one.
    devices: RangeInclusive<u16>,
}

impl Ivrs {
    /// This machine's; `None` if it has no such table.
    pub fn read() -> Option<Self> {
        fs::read(PATH).ok().map(|table| Self::parse(&table))
    }

    /// Parses the table, up to the first block that is malformed.
    pub fn parse(table: &[u8]) -> Self {
        let mut found = Vec::new();
        let mut rest = table.get(HEADER..).unwrap_or_default();
        // A block shorter than its own head would never end the loop.
        while let Some(length) = u16_at(rest, 2).map(usize::from).filter(|&length| length >= 4) {
            let Some(block) = rest.get(..length) else {
                break;
            };
            found.extend(parse_block(block));
            rest = &rest[length..];
        }
        Self(found)
    }

    /// The memory that is reserved for a device.
    pub fn reserved_for(&self, bdf: Bdf) -> impl Iterator<Item = RangeInclusive<u64>> {
        let id = u16::from(bdf.bus()) << 8 | u16::from(bdf.devfn());
        let meant = move |block: &&Block| bdf.segment() == 0 && block.devices.contains(&id);
        self.0.iter().filter(meant).map(|block| block.memory.clone())
    }
}

fn parse_block(block: &[u8]) -> Option<Block> {
    let (first, last) = (u16_at(block, 4)?, u16_at(block, 6)?);
    let devices = match *block.first()? {
        FOR_ALL => 0..=u16::MAX,
        FOR_ONE => first..=first,
        FOR_RANGE => first..=last,
        _ => return None,
    };
    let (start, length) = (u64_at(block, 16)?, u64_at(block, 24)?);
    let memory = start..=start.saturating_add(length.checked_sub(1)?);
    Some(Block { memory, devices })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hardware definition, which is passed over; memory for all, for 00:14.0, and for 01:00.0 to 01:1f.7.
    fn table() -> Vec<u8> {
        let mut table = vec![0; HEADER];
        table.extend([0x10, 0, 24, 0]);
        table.resize(HEADER + 24, 0xff);
        for (kind, first, last, start) in [
            (FOR_ALL, 0u16, 0u16, 0xaaaa_0000_u64),
            (FOR_ONE, 0x00a0, 0, 0xbbbb_0000),
            (FOR_RANGE, 0x0100, 0x01ff, 0xcccc_0000),
        ] {
            table.extend([kind, 1, 32, 0]);
            table.extend(first.to_le_bytes());
            table.extend(last.to_le_bytes());
            table.extend([0; 8]);
            table.extend(start.to_le_bytes());
            table.extend(0x1_0000_u64.to_le_bytes());
        }
        table
    }

    fn reserved(table: &[u8], bdf: &str) -> Vec<RangeInclusive<u64>> {
        Ivrs::parse(table).reserved_for(bdf.parse().unwrap()).collect()
    }

    #[test]
    fn memory_is_reserved_for_the_devices_that_the_firmware_names() {
        let all = 0xaaaa_0000..=0xaaaa_ffff;
        assert_eq!(
            reserved(&table(), "00:14.0"),
            [all.clone(), 0xbbbb_0000..=0xbbbb_ffff]
        );
        for bdf in ["01:00.0", "01:1f.7"] {
            assert_eq!(reserved(&table(), bdf), [all.clone(), 0xcccc_0000..=0xcccc_ffff]);
        }
        assert_eq!(reserved(&table(), "02:00.0"), [all]);
        assert_eq!(reserved(&table(), "0001:00:14.0"), []);
    }

    #[test]
    fn a_table_that_makes_no_sense_ends_where_it_stops_to() {
        let table = table();
        for length in 0..table.len() {
            reserved(&table[..length], "00:14.0");
        }
        let mut endless = table.clone();
        endless[HEADER + 2] = 0;
        assert_eq!(reserved(&endless, "00:14.0"), []);
        let mut empty = table;
        let lengths = [1, 2, 3].map(|block| HEADER + 24 + 32 * block - 8);
        for at in lengths {
            empty[at..at + 8].copy_from_slice(&[0; 8]);
        }
        assert_eq!(reserved(&empty, "00:14.0"), []);
    }
}
