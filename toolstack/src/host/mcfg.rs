//! The ACPI table `MCFG`: where configuration space lies in memory.
//!
//! PCI Firmware Specification 3.3, section 4.1.2: after the 36-byte ACPI header
//! and 8 reserved bytes follow allocations of 16 bytes each: base address (8),
//! segment group (2), first bus (1), last bus (1), reserved (4). The base is the
//! address of bus 0, even where the first bus is another one.

use crate::config_space::bytes::{u16_at, u32_at, u64_at};
use pci::bdf::Bdf;
use thiserror::Error;

/// File in which Linux shows the table.
pub const PATH: &str = "/sys/firmware/acpi/tables/MCFG";

const HEADER: usize = 44;
const ALLOCATION: usize = 16;
/// A function's configuration space is one page.
const PAGE_SHIFT: u32 = 12;

/// One range of buses whose configuration space is mapped in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    base: u64,
    segment: u16,
    first_bus: u8,
    last_bus: u8,
}

/// The parsed table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mcfg(Vec<Allocation>);

/// Why a table cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum McfgError {
    /// It does not begin with `MCFG`.
    #[error("it does not carry the signature MCFG")]
    Signature,
    /// It ends before its own length field says.
    #[error("it says that it is {said} bytes long, but {got} are there")]
    Length {
        /// The value of the length field, bytes.
        said: usize,
        /// The bytes that there are.
        got: usize,
    },
}

impl Mcfg {
    /// Reads the table; bytes past the length that it states are ignored, and so is an incomplete
    /// allocation at its end.
    pub fn parse(table: &[u8]) -> Result<Self, McfgError> {
        if table.get(..4) != Some(b"MCFG") {
            return Err(McfgError::Signature);
        }
        let got = table.len();
        let said = u32_at(table, 4).map_or(0, |said| said as usize);
        let body = match table.get(HEADER..said) {
            Some(body) => body,
            None => return Err(McfgError::Length { said, got }),
        };
        let allocation = |raw: &[u8]| {
            Some(Allocation {
                base: u64_at(raw, 0)?,
                segment: u16_at(raw, 8)?,
                first_bus: *raw.get(10)?,
                last_bus: *raw.get(11)?,
            })
        };
        Ok(Self(
            body.chunks_exact(ALLOCATION).filter_map(allocation).collect(),
        ))
    }

    /// Machine frame number of the function's ECAM page; `None` if the table does not cover its bus.
    pub fn frame(&self, bdf: Bdf) -> Option<u64> {
        let covers =
            |a: &&Allocation| a.segment == bdf.segment() && (a.first_bus..=a.last_bus).contains(&bdf.bus());
        let allocation = self.0.iter().find(covers)?;
        let function = u64::from(bdf.bus()) << 8 | u64::from(bdf.devfn());
        (allocation.base >> PAGE_SHIFT).checked_add(function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(allocations: &[(u64, u16, u8, u8)]) -> Vec<u8> {
        let length = HEADER + ALLOCATION * allocations.len();
        let mut bytes = b"MCFG".to_vec();
        bytes.extend((length as u32).to_le_bytes());
        bytes.resize(HEADER, 0);
        for (base, segment, first, last) in allocations {
            bytes.extend(base.to_le_bytes());
            bytes.extend(segment.to_le_bytes());
            bytes.extend([*first, *last, 0, 0, 0, 0]);
        }
        bytes
    }

    fn bdf(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    #[test]
    fn the_frame_is_the_base_plus_bus_and_devfn() {
        let mcfg = Mcfg::parse(&table(&[(0xb000_0000, 0, 0, 255)])).unwrap();
        assert_eq!(mcfg.frame(bdf("00:05.0")), Some(0xb0028));
        assert_eq!(mcfg.frame(bdf("ff:1f.7")), Some(0xbffff));
    }

    #[test]
    fn the_base_belongs_to_bus_0_even_if_the_range_begins_later() {
        let mcfg = Mcfg::parse(&table(&[(0xe000_0000, 0, 0x40, 0x7f)])).unwrap();
        assert_eq!(mcfg.frame(bdf("40:00.0")), Some(0xe4000));
        assert_eq!(mcfg.frame(bdf("3f:00.0")), None);
        assert_eq!(mcfg.frame(bdf("80:00.0")), None);
    }

    #[test]
    fn segments_are_told_apart() {
        let mcfg = Mcfg::parse(&table(&[(0xb000_0000, 0, 0, 255), (1 << 40, 1, 0, 255)])).unwrap();
        assert_eq!(mcfg.frame(bdf("0001:00:00.1")), Some((1 << 28) + 1));
        assert_eq!(mcfg.frame(bdf("0002:00:00.0")), None);
    }

    #[test]
    fn a_damaged_table_is_refused_and_says_how() {
        assert_eq!(Mcfg::parse(b""), Err(McfgError::Signature));
        assert_eq!(Mcfg::parse(b"FACP\0\0\0\0"), Err(McfgError::Signature));
        assert_eq!(Mcfg::parse(b"MCFG"), Err(McfgError::Length { said: 0, got: 4 }));
        let mut short = table(&[(0xb000_0000, 0, 0, 255)]);
        short.pop();
        assert_eq!(Mcfg::parse(&short), Err(McfgError::Length { said: 60, got: 59 }));
        let mut tiny = table(&[]);
        tiny[4] = 43;
        assert_eq!(Mcfg::parse(&tiny), Err(McfgError::Length { said: 43, got: 44 }));
    }

    #[test]
    fn an_incomplete_allocation_is_ignored_and_a_base_at_the_end_of_memory_does_not_overflow() {
        let mut odd = table(&[(u64::MAX, 0, 0, 255)]);
        odd.extend([0; 7]);
        odd[4] += 7;
        let mcfg = Mcfg::parse(&odd).unwrap();
        assert_eq!(mcfg.0.len(), 1);
        assert_eq!(mcfg.frame(bdf("00:00.1")), Some((u64::MAX >> 12) + 1));
    }

    #[test]
    fn no_input_makes_the_parser_fail_otherwise() {
        let whole = table(&[(0xb000_0000, 0, 0, 255)]);
        for end in 0..whole.len() {
            for length in [0u8, 1, 43, 44, 60, 255] {
                let mut bytes = whole[..end].to_vec();
                if let Some(byte) = bytes.get_mut(4) {
                    *byte = length;
                }
                let _ = Mcfg::parse(&bytes);
            }
        }
    }
}
