//! What the toolstack tells the stub about a device: the values of `ids-N` and `bars-N`.

use core::fmt;
use core::str::FromStr;

/// Number of address registers: BAR 0 to 5, and the expansion ROM last.
pub const BAR_COUNT: usize = 7;

/// A node's value that has not the form it must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueError {
    expected: &'static str,
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.expected)
    }
}

impl core::error::Error for ValueError {}

/// Vendor and device id, written `8086:10d3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ids {
    /// Vendor id, at 0x00 of config space.
    pub vendor: u16,
    /// Device id, at 0x02 of config space.
    pub device: u16,
}

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

impl FromStr for Ids {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let ids = || {
            let (vendor, device) = text.split_once(':')?;
            let id = |text: &str| if text.len() == 4 { hex(text) } else { None };
            Some(Self {
                vendor: id(vendor)?.try_into().ok()?,
                device: id(device)?.try_into().ok()?,
            })
        };
        ids().ok_or(ValueError {
            expected: "VVVV:DDDD in hex, such as 8086:10d3",
        })
    }
}

/// One base address register, written `START,SIZE,FLAGS` in hex.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bar {
    /// Machine or port address where the range starts.
    pub start: u64,
    /// Bytes in the range; 0 if the register is not implemented, or the upper half of the one before.
    pub size: u64,
    /// The low four bits of the register: I/O, 64-bit, prefetchable; of the ROM's: bit 0, enable.
    pub flags: u8,
}

/// All address registers of a function, written with `;` between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bars(pub [Bar; BAR_COUNT]);

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x},{:x},{:x}", self.start, self.size, self.flags)
    }
}

impl fmt::Display for Bars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, bar) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ";" };
            write!(f, "{separator}{bar}")?;
        }
        Ok(())
    }
}

impl FromStr for Bars {
    type Err = ValueError;

    /// Besides the form, checks that `flags` has four bits and that no range wraps around.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let bars = || {
            let mut bars = Self::default();
            let mut texts = text.split(';');
            for bar in &mut bars.0 {
                *bar = parse_bar(texts.next()?)?;
            }
            texts.next().is_none().then_some(bars)
        };
        bars().ok_or(ValueError {
            expected: "seven START,SIZE,FLAGS in hex, separated by ;",
        })
    }
}

fn parse_bar(text: &str) -> Option<Bar> {
    let mut parts = text.split(',').map(hex);
    let (start, size, flags) = (parts.next()??, parts.next()??, parts.next()??);
    start.checked_add(size)?;
    let sound = parts.next().is_none() && flags <= 0xf;
    sound.then_some(Bar {
        start,
        size,
        flags: flags as u8,
    })
}

/// Hex digits only: `from_str_radix` alone would take a sign.
fn hex(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        u64::from_str_radix(text, 16).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn ids_are_two_words_in_hex() {
        let ids = Ids {
            vendor: 0x8086,
            device: 0x0d3,
        };
        assert_eq!(ids.to_string(), "8086:00d3");
        assert_eq!("8086:00d3".parse(), Ok(ids));
        for text in ["", "8086", "8086:d3", "8086:00d3 ", "+086:00d3", "8086:00d3:0"] {
            assert!(text.parse::<Ids>().is_err(), "{text}");
        }
    }

    #[test]
    fn bars_are_seven_ranges_in_hex() {
        let mut bars = Bars::default();
        bars.0[0] = Bar {
            start: 0xfebc_0000,
            size: 0x2_0000,
            flags: 0,
        };
        bars.0[2] = Bar {
            start: 0xc040,
            size: 0x20,
            flags: 1,
        };
        bars.0[4] = Bar {
            start: 0x38_0000_0000,
            size: 0x4000,
            flags: 0xc,
        };
        let text = "febc0000,20000,0;0,0,0;c040,20,1;0,0,0;3800000000,4000,c;0,0,0;0,0,0";
        assert_eq!(bars.to_string(), text);
        assert_eq!(text.parse(), Ok(bars));
    }

    #[test]
    fn what_are_no_bars_is_refused() {
        let six = "0,0,0;0,0,0;0,0,0;0,0,0;0,0,0;0,0,0";
        for seventh in [
            "",
            ";0,0",
            ";0,0,0,0",
            ";0,0,0;0,0,0",
            ";0,0,10",
            ";,0,0",
            ";+1,0,0",
            ";ffffffffffffffff,1,0",
            ";10000000000000000,0,0",
        ] {
            let text = [six, seventh].concat();
            assert!(text.parse::<Bars>().is_err(), "{text}");
        }
        assert!([six, ";0,0,f"].concat().parse::<Bars>().is_ok());
    }
}
