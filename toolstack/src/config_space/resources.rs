//! The address ranges of a function, as Linux lists them in the sysfs file `resource`.
//!
//! One line `START END FLAGS` each; the flags are `IORESOURCE_*` bits (`include/linux/ioport.h`),
//! whose low four are those of the register. Xen gives memory to a domain by the 4 KiB page.

use std::ops::Range;
use thiserror::Error;
use xenbus::device::{BAR_COUNT, Bar, Bars};

/// Index of the expansion ROM among the ranges.
pub const ROM: usize = BAR_COUNT - 1;

const IORESOURCE_IO: u64 = 0x100;
const IORESOURCE_MEM: u64 = 0x200;
const IORESOURCE_DISABLED: u64 = 0x1000_0000;
const IORESOURCE_UNSET: u64 = 0x2000_0000;
/// Bit 0 of a base address register: the range is one of I/O ports.
const PORTS: u8 = 1;
const PAGE_SHIFT: u32 = 12;

/// A line of a `resource` file that is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line} is {text:?}, not three hexadecimal numbers")]
pub struct ResourceError {
    line: usize,
    text: String,
}

/// Reads the text of a `resource` file. Lines after the seventh are windows of bridges and ranges of
/// SR-IOV, and are left out; so is a range that is switched off or has no address.
pub fn parse(text: &str) -> Result<Bars, ResourceError> {
    let mut bars = Bars::default();
    for (index, line) in text.lines().take(BAR_COUNT).enumerate() {
        bars.0[index] = parse_line(line, index).ok_or_else(|| ResourceError {
            line: index + 1,
            text: line.into(),
        })?;
    }
    Ok(bars)
}

fn parse_line(line: &str, index: usize) -> Option<Bar> {
    let mut numbers = line.split_whitespace().map(|word| {
        let digits = word
            .strip_prefix("0x")
            .filter(|digits| !digits.starts_with('+'))?;
        u64::from_str_radix(digits, 16).ok()
    });
    let mut next = || numbers.next().flatten();
    let (start, end, flags) = (next()?, next()?, next()?);
    // Linux lists a range also where it found no room for it, or where the range is turned off.
    let implemented = flags & (IORESOURCE_IO | IORESOURCE_MEM) != 0
        && flags & (IORESOURCE_DISABLED | IORESOURCE_UNSET) == 0
        && start != 0;
    let size = end
        .checked_add(1)
        .and_then(|end| end.checked_sub(start))
        .unwrap_or(0);
    if !implemented || size == 0 {
        return Some(Bar::default());
    }
    // A BAR has its kind in four low bits, the ROM's register its enable bit.
    let register_bits = if index == ROM { 0x1 } else { 0xf };
    Some(Bar {
        start,
        size,
        flags: (flags & register_bits) as u8,
    })
}

/// One implemented range, as Xen gives it to a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Machine frames: every page that the range touches.
    Frames(Range<u64>),
    /// I/O ports.
    Ports(Range<u64>),
}

/// The implemented ranges of a function.
pub fn resources(bars: &Bars) -> impl Iterator<Item = Resource> {
    let implemented = bars.0.iter().enumerate().filter(|(_, bar)| bar.size != 0);
    implemented.map(|(index, bar)| {
        let end = bar.start.saturating_add(bar.size);
        if index != ROM && bar.flags & PORTS != 0 {
            Resource::Ports(bar.start..end)
        } else {
            Resource::Frames(bar.start >> PAGE_SHIFT..((end - 1) >> PAGE_SHIFT) + 1)
        }
    })
}

/// The first machine frame that both functions touch.
pub fn shared_frame(one: &Bars, other: &Bars) -> Option<u64> {
    let pairs = frames(one).flat_map(|a| frames(other).map(move |b| (a.clone(), b)));
    pairs
        .filter_map(|(a, b)| (a.start.max(b.start)..a.end.min(b.end)).next())
        .min()
}

fn frames(bars: &Bars) -> impl Iterator<Item = Range<u64>> {
    resources(bars).filter_map(|resource| match resource {
        Resource::Frames(frames) => Some(frames),
        Resource::Ports(_) => None,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An e1000e of QEMU, and two lines that do not belong to the seven.
    pub const E1000E: &str = "\
0x00000000febc0000 0x00000000febdffff 0x0000000000040200
0x00000000febe0000 0x00000000febfffff 0x0000000000040200
0x000000000000c000 0x000000000000c01f 0x0000000000040101
0x00000000febd4000 0x00000000febd7fff 0x0000000000040200
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x00000000feb80000 0x00000000febbffff 0x0000000000046200
0x0000000000000001 0x0000000000000002 0x0000000000000200
what?
";

    fn bars(lines: &[&str]) -> Bars {
        parse(&lines.join("\n")).unwrap()
    }

    #[test]
    fn a_resource_file_is_read_into_seven_ranges() {
        assert_eq!(
            parse(E1000E).unwrap().to_string(),
            "febc0000,20000,0;febe0000,20000,0;c000,20,1;febd4000,4000,0;0,0,0;0,0,0;feb80000,40000,0"
        );
    }

    #[test]
    fn the_low_bits_of_the_register_are_kept() {
        let wide = bars(&["0x380000000000 0x380000003fff 0x14220c", "0x0 0x0 0x0"]);
        assert_eq!(wide.0[0].to_string(), "380000000000,4000,c");
        assert_eq!(wide.0[1], Bar::default());
    }

    #[test]
    fn a_range_without_an_address_or_switched_off_is_not_implemented() {
        let lines = [
            "0x0 0xfff 0x200",
            "0x1000 0x1fff 0x10000200",
            "0x1000 0x1fff 0x20000200",
            "0x2000 0x1fff 0x200",
            "0x1000 0x1fff 0x0",
            "0x1000 0xffffffffffffffff 0x200",
        ];
        assert_eq!(bars(&lines), Bars::default());
    }

    #[test]
    fn a_damaged_line_is_named() {
        for text in [
            "",
            "0x1",
            "1000 1fff 200",
            "0x1 0x+2 0x200",
            "0x1 0x2 0x10000000000000200",
        ] {
            let error = parse(&format!("0x0 0x0 0x0\n{text}\n")).unwrap_err();
            assert_eq!(
                error,
                ResourceError {
                    line: 2,
                    text: text.into()
                }
            );
        }
    }

    #[test]
    fn a_domain_gets_every_page_that_a_memory_range_touches() {
        let first = |line| resources(&bars(&[line])).next().unwrap();
        assert_eq!(first("0x1000 0x10ff 0x200"), Resource::Frames(1..2));
        assert_eq!(first("0x1f00 0x20ff 0x200"), Resource::Frames(1..3));
        assert_eq!(
            first("0x380000000000 0x380000003fff 0x14220c"),
            Resource::Frames(0x3_8000_0000..0x3_8000_0004)
        );
        assert_eq!(first("0xc000 0xc01f 0x40101"), Resource::Ports(0xc000..0xc020));
    }

    #[test]
    fn a_rom_that_is_enabled_is_memory() {
        let zero = "0x0 0x0 0x0";
        let rom = bars(&[
            zero,
            zero,
            zero,
            zero,
            zero,
            zero,
            "0xfeb80000 0xfeb80fff 0x46201",
        ]);
        assert_eq!(rom.0[ROM].flags, 1);
        assert_eq!(resources(&rom).next(), Some(Resource::Frames(0xfeb80..0xfeb81)));
    }

    #[test]
    fn two_ranges_in_one_page_are_shared_and_neighbours_are_not() {
        let small = bars(&["0xfe001000 0xfe0010ff 0x200"]);
        let same_page = bars(&["0xc000 0xc01f 0x101", "0xfe001800 0xfe0018ff 0x200"]);
        let next_page = bars(&["0xfe002000 0xfe0020ff 0x200"]);
        assert_eq!(shared_frame(&small, &same_page), Some(0xfe001));
        assert_eq!(shared_frame(&small, &next_page), None);
        assert_eq!(shared_frame(&small, &Bars::default()), None);
    }
}
