//! Memory that Intel firmware reserves for the DMA of devices: the RMRR structures of the ACPI table `DMAR`.
//!
//! Intel Virtualization Technology for Directed I/O, sections 8.1, 8.3.1 and 8.4. Xen hides the table from dom0 by
//! spelling its signature backwards, so Linux shows it as `RMAD`.

use crate::config_space::bytes::{u16_at, u64_at};
use crate::host::sysfs::Sysfs;
use pci::bdf::Bdf;
use pci::registers::register;
use std::fs;
use std::ops::RangeInclusive;

const PATHS: [&str; 2] = ["/sys/firmware/acpi/tables/RMAD", "/sys/firmware/acpi/tables/DMAR"];

/// The ACPI header, and what the table says of the host as a whole.
const HEADER: usize = 48;
const TYPE_RMRR: u16 = 1;
/// An RMRR before its device scopes: type, length, reserved, segment (at 6), base (8), limit (16).
const RMRR_HEADER: usize = 24;
/// A device scope before its path: type, length (at 1), …, first bus (5).
const SCOPE_HEADER: usize = 6;

/// The parsed structures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dmar(Vec<Reserved>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Reserved {
    memory: RangeInclusive<u64>,
    segment: u16,
    devices: Vec<Scope>,
}

/// The way to a device: the bus where it begins, and the devices and functions on it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Scope {
    bus: u8,
    path: Vec<(u8, u8)>,
}

impl Dmar {
    /// This machine's; `None` if it has no such table.
    pub fn read() -> Option<Self> {
        let tables = PATHS.iter().filter_map(|path| fs::read(path).ok());
        tables.map(|table| Self::parse(&table)).next()
    }

    /// Parses the table, up to the first structure that is malformed.
    pub fn parse(table: &[u8]) -> Self {
        let mut found = Vec::new();
        let mut rest = table.get(HEADER..).unwrap_or_default();
        while let (Some(kind), Some(length)) = (u16_at(rest, 0), u16_at(rest, 2)) {
            // A structure shorter than its own type and length would never end the loop.
            let Some(structure) = rest.get(..usize::from(length)).filter(|_| length >= 4) else {
                break;
            };
            if kind == TYPE_RMRR {
                found.extend(parse_rmrr(structure));
            }
            rest = &rest[structure.len()..];
        }
        Self(found)
    }

    /// The memory that is reserved for a device. `secondary_bus` tells the bus behind a bridge, by bus and devfn.
    pub fn reserved_for(
        &self,
        bdf: Bdf,
        secondary_bus: impl Fn(u8, u8) -> Option<u8>,
    ) -> impl Iterator<Item = RangeInclusive<u64>> {
        let meant = move |reserved: &&Reserved| {
            let mut devices = reserved.devices.iter();
            reserved.segment == bdf.segment()
                && devices.any(|scope| scope.end(&secondary_bus) == Some((bdf.bus(), bdf.devfn())))
        };
        self.0
            .iter()
            .filter(meant)
            .map(|reserved| reserved.memory.clone())
    }
}

impl Scope {
    /// Bus and devfn of the device at the end of the way.
    fn end(&self, secondary_bus: impl Fn(u8, u8) -> Option<u8>) -> Option<(u8, u8)> {
        let (&last, bridges) = self.path.split_last()?;
        let devfn = |(device, function): (u8, u8)| (device & 0x1f) << 3 | function & 7;
        // The table numbers only the first bus. Those behind bridges have the numbers that dom0 has set.
        let mut bus = self.bus;
        for &step in bridges {
            bus = secondary_bus(bus, devfn(step))?;
        }
        Some((bus, devfn(last)))
    }
}

/// The bus behind the bridge at `bus` and `devfn` of segment 0.
pub fn secondary_bus(bus: u8, devfn: u8, sysfs: &Sysfs) -> Option<u8> {
    let config = sysfs.config_bytes(Bdf::from_devfn(0, bus, devfn)).ok()?;
    config.get(usize::from(register::SECONDARY_BUS)).copied()
}

fn parse_rmrr(structure: &[u8]) -> Option<Reserved> {
    let (base, limit) = (u64_at(structure, 8)?, u64_at(structure, 16)?);
    let mut devices = Vec::new();
    let mut rest = structure.get(RMRR_HEADER..)?;
    while let Some(&length) = rest.get(1) {
        let Some(scope) = rest
            .get(..usize::from(length))
            .filter(|scope| scope.len() >= SCOPE_HEADER)
        else {
            break;
        };
        let steps = scope[SCOPE_HEADER..].chunks_exact(2);
        devices.push(Scope {
            bus: scope[5],
            path: steps.map(|step| (step[0], step[1])).collect(),
        });
        rest = &rest[scope.len()..];
    }
    Some(Reserved {
        memory: base..=limit,
        segment: u16_at(structure, 6)?,
        devices,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A DRHD, which is passed over; memory for 00:1d.0 and for the device 00.0 behind the bridge 00:1c.0.
    fn table() -> Vec<u8> {
        let mut table = vec![0; HEADER];
        table.extend([0, 0, 16, 0, 1, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0]);
        table.extend([1, 0, 42, 0, 0, 0, 0, 0]);
        table.extend(0x7b80_0000_u64.to_le_bytes());
        table.extend(0x7b80_ffff_u64.to_le_bytes());
        table.extend([1, 8, 0, 0, 0, 0, 0x1d, 0]);
        table.extend([1, 10, 0, 0, 0, 0, 0x1c, 0, 0, 0]);
        table
    }

    fn reserved(table: &[u8], bdf: &str) -> Vec<RangeInclusive<u64>> {
        let behind = |bus, devfn| (bus == 0 && devfn == 0x1c << 3).then_some(3);
        Dmar::parse(table)
            .reserved_for(bdf.parse().unwrap(), behind)
            .collect()
    }

    #[test]
    fn memory_is_reserved_for_the_devices_that_the_firmware_names() {
        for bdf in ["00:1d.0", "03:00.0"] {
            assert_eq!(reserved(&table(), bdf), [0x7b80_0000..=0x7b80_ffff]);
        }
        for bdf in ["00:1c.0", "00:05.0", "0001:00:1d.0"] {
            assert_eq!(reserved(&table(), bdf), []);
        }
    }

    #[test]
    fn a_table_that_makes_no_sense_ends_where_it_stops_to() {
        let table = table();
        for length in 0..table.len() {
            reserved(&table[..length], "00:1d.0");
        }
        let mut endless = table.clone();
        endless[HEADER + 2] = 0;
        assert_eq!(reserved(&endless, "00:1d.0"), []);
        let mut without_path = table;
        without_path[HEADER + 16 + RMRR_HEADER + 1] = 0;
        assert_eq!(reserved(&without_path, "00:1d.0"), []);
    }
}
