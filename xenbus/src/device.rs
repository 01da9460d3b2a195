//! What the toolstack tells the stub about a guest's devices: the values of `ids-N`, `bars-N`, `quirks-N` and
//! `slots`.

use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;
use pci::digits::hex;

/// Number of address registers: BAR 0 to 5, and the expansion ROM last.
pub const BAR_COUNT: usize = 7;

/// A node's value has the wrong form.
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

impl ValueError {
    /// What was expected, as the end of a sentence.
    pub const fn expected(self) -> &'static str {
        self.expected
    }
}

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
    let [start, size, flags] = three_numbers(text, ',')?;
    // A range that wraps around would pass for a small one where its ends are compared.
    start.checked_add(size)?;
    (flags <= 0xf).then_some(Bar {
        start,
        size,
        flags: flags as u8,
    })
}

/// Three numbers in hex, separated by `separator`.
fn three_numbers(text: &str, separator: char) -> Option<[u64; 3]> {
    let mut parts = text.split(separator).map(hex);
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(numbers)
}

/// Most [`Quirk`]s of one device: more than any known device needs, and a list of them fits a xenstore node.
pub const MAX_QUIRKS: usize = 32;

/// A register of config space that an administrator lets the guest write, written `REG:SIZE:MASK` in hex.
///
/// Only the bits of the mask are the guest's; the others keep the device's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quirk {
    offset: u16,
    width: u8,
    mask: u32,
}

impl Quirk {
    /// The register of `width` bytes at `offset`, and the bits of it that the guest may write.
    ///
    /// # Errors
    /// A width other than 1, 2 or 4, an offset past 0xfff or not aligned to the width, and a mask of 0 or wider
    /// than the register.
    pub const fn new(offset: u16, width: u8, mask: u32) -> Result<Self, ValueError> {
        const fn wrong(expected: &'static str) -> ValueError {
            ValueError { expected }
        }
        if !matches!(width, 1 | 2 | 4) {
            return Err(wrong("a quirk's size of 1, 2 or 4"));
        }
        if offset > 0xfff {
            return Err(wrong("a quirk's register up to fff"));
        }
        if !offset.is_multiple_of(width as u16) {
            return Err(wrong("a quirk's register that is a multiple of its size"));
        }
        if mask == 0 || mask > u32::MAX >> (32 - 8 * width as u32) {
            return Err(wrong(
                "a quirk's mask that is not 0 and no wider than its register",
            ));
        }
        Ok(Self { offset, width, mask })
    }

    /// First byte, 0 to 0xfff.
    pub const fn offset(self) -> u16 {
        self.offset
    }

    /// Number of bytes: 1, 2 or 4.
    pub const fn width(self) -> u8 {
        self.width
    }

    /// The bits that the guest may write.
    pub const fn mask(self) -> u32 {
        self.mask
    }

    const fn overlaps(self, other: Self) -> bool {
        self.offset < other.offset + other.width as u16 && other.offset < self.offset + self.width as u16
    }
}

impl fmt::Display for Quirk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{:x}:{:x}", self.offset, self.width, self.mask)
    }
}

impl FromStr for Quirk {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let [offset, width, mask] = three_numbers(text, ':').ok_or(ValueError {
            expected: "REG:SIZE:MASK in hex, such as 44:2:ff",
        })?;
        // What does not fit is out of range for `new` as well.
        Self::new(
            offset.try_into().unwrap_or(u16::MAX),
            width.try_into().unwrap_or(0),
            mask.try_into().unwrap_or(0),
        )
    }
}

/// The quirks of a device: no byte twice, ordered by offset, written with `;` between them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Quirks(Vec<Quirk>);

impl Quirks {
    /// Puts one more into the list.
    ///
    /// # Errors
    /// One that shares a byte with another of the list, and one more than [`MAX_QUIRKS`].
    pub fn add(&mut self, quirk: Quirk) -> Result<(), ValueError> {
        // Two masks for one byte: nobody could say which one counts.
        if self.0.iter().any(|other| other.overlaps(quirk)) {
            return Err(ValueError {
                expected: "quirks of different registers",
            });
        }
        if self.0.len() == MAX_QUIRKS {
            return Err(ValueError {
                expected: "at most 32 quirks of a device",
            });
        }
        // Sorted, so that equal lists have equal texts.
        let index = self.0.partition_point(|other| other.offset < quirk.offset);
        self.0.insert(index, quirk);
        Ok(())
    }

    /// The quirks, by offset.
    pub fn as_slice(&self) -> &[Quirk] {
        &self.0
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Quirks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, quirk) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ";" };
            write!(f, "{separator}{quirk}")?;
        }
        Ok(())
    }
}

impl FromStr for Quirks {
    type Err = ValueError;

    /// An empty text is an empty list.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let mut quirks = Self::default();
        if !text.is_empty() {
            for quirk in text.split(';') {
                quirks.add(quirk.parse()?)?;
            }
        }
        Ok(quirks)
    }
}

/// How a guest's devices are addressed, written `vpci` or `passthrough`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SlotMode {
    /// On one virtual bus, each device in the first free slot.
    #[default]
    Vpci,
    /// Where they are in the host.
    Passthrough,
}

impl fmt::Display for SlotMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vpci => "vpci",
            Self::Passthrough => "passthrough",
        })
    }
}

impl FromStr for SlotMode {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "vpci" => Ok(Self::Vpci),
            "passthrough" => Ok(Self::Passthrough),
            _ => Err(ValueError {
                expected: "vpci or passthrough",
            }),
        }
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

    #[test]
    fn a_quirk_is_a_register_and_the_bits_of_it_that_a_guest_may_write() {
        let quirk: Quirk = "44:2:ff0".parse().unwrap();
        assert_eq!((quirk.offset(), quirk.width(), quirk.mask()), (0x44, 2, 0xff0));
        for text in ["44:2:ff0", "fff:1:ff", "ffc:4:ffffffff", "0:4:1"] {
            assert_eq!(text.parse::<Quirk>().unwrap().to_string(), text);
        }
        assert_eq!("0044:2:00FF".parse::<Quirk>().unwrap().to_string(), "44:2:ff");
    }

    #[test]
    fn a_quirk_that_no_register_can_have_is_refused_in_words() {
        for (text, expected) in [
            ("", "REG:SIZE:MASK in hex, such as 44:2:ff"),
            ("44:2", "REG:SIZE:MASK in hex, such as 44:2:ff"),
            ("44:2:ff:0", "REG:SIZE:MASK in hex, such as 44:2:ff"),
            ("0x44:2:ff", "REG:SIZE:MASK in hex, such as 44:2:ff"),
            ("44:2:", "REG:SIZE:MASK in hex, such as 44:2:ff"),
            ("44:3:ff", "a quirk's size of 1, 2 or 4"),
            ("44:102:ff", "a quirk's size of 1, 2 or 4"),
            ("1000:1:ff", "a quirk's register up to fff"),
            ("10000000044:4:ff", "a quirk's register up to fff"),
            ("45:2:ff", "a quirk's register that is a multiple of its size"),
            (
                "44:1:100",
                "a quirk's mask that is not 0 and no wider than its register",
            ),
            (
                "44:4:100000000",
                "a quirk's mask that is not 0 and no wider than its register",
            ),
            (
                "44:4:0",
                "a quirk's mask that is not 0 and no wider than its register",
            ),
        ] {
            assert_eq!(text.parse::<Quirk>(), Err(ValueError { expected }), "{text}");
        }
    }

    #[test]
    fn quirks_are_a_bounded_list_in_which_no_byte_stands_twice() {
        let quirks: Quirks = "60:4:1;44:2:ff;46:1:1".parse().unwrap();
        assert_eq!(quirks.to_string(), "44:2:ff;46:1:1;60:4:1");
        assert!("".parse::<Quirks>().unwrap().is_empty());
        for text in [
            ";",
            "44:2:ff;",
            "44:2:ff;44:2:f0",
            "44:4:ff;46:1:1",
            "47:1:1;44:4:ff",
        ] {
            assert!(text.parse::<Quirks>().is_err(), "{text}");
        }
        let mut full = Quirks::default();
        for index in 0..MAX_QUIRKS as u16 {
            full.add(Quirk::new(4 * index, 4, u32::MAX).unwrap()).unwrap();
        }
        assert!(full.add(Quirk::new(0x100, 4, 1).unwrap()).is_err());
        assert!(full.to_string().parse::<Quirks>().is_ok());
    }

    #[test]
    fn devices_are_addressed_virtually_unless_asked_for() {
        assert_eq!(SlotMode::default(), SlotMode::Vpci);
        for mode in [SlotMode::Vpci, SlotMode::Passthrough] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("slot".parse::<SlotMode>().is_err());
    }
}
