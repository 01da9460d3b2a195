//! The address of a PCI function: segment, bus, device, function.

use crate::digits;
use core::fmt;
use core::str::FromStr;

/// Address of one PCI function, written `0000:00:05.0`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf {
    segment: u16,
    bus: u8,
    devfn: u8,
}

/// A text that is no PCI address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BdfError;

impl fmt::Display for BdfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a PCI address: expected [SSSS:]BB:DD.F in hex, such as 0000:03:00.0")
    }
}

impl core::error::Error for BdfError {}

impl Bdf {
    /// Builds an address; `None` unless `device` is below 32 and `function` below 8.
    pub const fn new(segment: u16, bus: u8, device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 {
            Some(Self {
                segment,
                bus,
                devfn: device << 3 | function,
            })
        } else {
            None
        }
    }

    /// Builds an address from a packed device and function (`device << 3 | function`).
    pub const fn from_devfn(segment: u16, bus: u8, devfn: u8) -> Self {
        Self { segment, bus, devfn }
    }

    /// PCI segment group (the "domain" of Linux and pciif).
    pub const fn segment(self) -> u16 {
        self.segment
    }

    /// Bus number.
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// Device number, 0 to 31.
    pub const fn device(self) -> u8 {
        self.devfn >> 3
    }

    /// Function number, 0 to 7.
    pub const fn function(self) -> u8 {
        self.devfn & 7
    }

    /// Device and function packed as in pciif: `device << 3 | function`.
    pub const fn devfn(self) -> u8 {
        self.devfn
    }

    /// The address as one word.
    pub const fn word(self) -> u32 {
        (self.segment as u32) << 16 | (self.bus as u32) << 8 | self.devfn as u32
    }

    /// The address whose [`Self::word`] this is.
    pub const fn from_word(word: u32) -> Self {
        Self::from_devfn((word >> 16) as u16, (word >> 8) as u8, word as u8)
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{:x}",
            self.segment,
            self.bus,
            self.device(),
            self.function()
        )
    }
}

impl fmt::Debug for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Bdf {
    type Err = BdfError;

    /// Reads `SSSS:BB:DD.F`, `BB:DD.F`, and the two-digit function of pciback's `vdev-N` nodes.
    fn from_str(text: &str) -> Result<Self, BdfError> {
        let hex = |text: &str, digits| digits::hex(text).filter(|_| text.len() <= digits);
        let address = || {
            let (address, function) = text.rsplit_once('.')?;
            let (rest, device) = address.rsplit_once(':')?;
            let (segment, bus) = rest.split_once(':').unwrap_or(("0", rest));
            let byte = |part| hex(part, 2).map(|value| value as u8);
            Self::new(
                hex(segment, 4)? as u16,
                byte(bus)?,
                byte(device)?,
                byte(function)?,
            )
        };
        address().ok_or(BdfError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn an_address_is_read_in_every_spelling_in_use() {
        let bdf = Bdf::new(0, 3, 0x1f, 7).unwrap();
        for text in ["0000:03:1f.7", "03:1f.7", "0:3:1f.7", "0000:03:1f.07"] {
            assert_eq!(text.parse(), Ok(bdf), "{text}");
        }
        assert_eq!(bdf.to_string(), "0000:03:1f.7");
        assert_eq!(bdf.devfn(), 0xff);
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "03",
            "03:00",
            "03:20.0",
            "03:00.8",
            "0000:03:00.0 ",
            "x:0.0",
            "+1:00.0",
            "10000:00:00.0",
        ] {
            assert_eq!(text.parse::<Bdf>(), Err(BdfError), "{text}");
        }
    }
}
