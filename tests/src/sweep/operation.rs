//! One configuration access.

use std::fmt;

/// A naturally aligned range of 1, 2 or 4 bytes of config space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// First byte.
    pub offset: u16,
    /// Number of bytes.
    pub width: u8,
}

impl Span {
    /// All widths.
    pub const WIDTHS: [u8; 3] = [1, 2, 4];

    /// A range by numbers; the caller keeps the rule above.
    pub const fn new(offset: u16, width: u8) -> Self {
        Self { offset, width }
    }

    /// Every range of a config space of `length` bytes, by width.
    pub fn all(length: u16) -> impl Iterator<Item = Self> {
        Self::WIDTHS.into_iter().flat_map(move |width| {
            (0..length)
                .step_by(width.into())
                .map(move |offset| Self { offset, width })
        })
    }

    /// Its bytes' offsets.
    pub fn bytes(self) -> std::ops::Range<u16> {
        self.offset..self.offset + u16::from(self.width)
    }

    /// Whether the two have a byte in common.
    pub fn touches(self, other: Self) -> bool {
        self.offset < other.bytes().end && other.offset < self.bytes().end
    }

    /// All bits of a value of this range.
    pub const fn mask(self) -> u32 {
        u32::MAX >> (32 - 8 * self.width as u32)
    }

    /// The value that a dump of config space has here; bytes past its end read as 0.
    pub fn value_in(self, dump: &[u8]) -> u32 {
        self.bytes().rev().fold(0, |value, offset| {
            value << 8 | u32::from(dump.get(usize::from(offset)).copied().unwrap_or(0))
        })
    }

    /// The bits of this range that `bits`, a mask for `other`, stands for.
    pub fn bits_of(self, other: Self, bits: u32) -> u32 {
        let bytes = bits.to_le_bytes();
        self.bytes().rev().fold(0, |value, offset| {
            let covered = other.bytes().contains(&offset);
            let byte = if covered {
                bytes[usize::from(offset - other.offset)]
            } else {
                0
            };
            value << 8 | u32::from(byte)
        })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#05x}/{}", self.offset, self.width)
    }
}

/// One access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A read.
    Read(Span),
    /// A write of a value.
    Write(Span, u32),
}

impl Operation {
    /// Where.
    pub const fn span(self) -> Span {
        match self {
            Self::Read(span) | Self::Write(span, _) => span,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(span) => write!(f, "read {span}"),
            Self::Write(span, value) => {
                write!(
                    f,
                    "write {span} {value:#0width$x}",
                    width = 2 + 2 * usize::from(span.width)
                )
            }
        }
    }
}

/// The answer to an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The value of a read as the guest's user space gets it (all-ones after an error), 0 for a write.
    pub value: u32,
    /// What the guest's pcifront answered to the PCI core: 0 or an error of PCI BIOS.
    pub status: i32,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            0 => write!(f, "{:#x}", self.value),
            status => write!(f, "error {status:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_aligned_range_is_there_once() {
        let all: Vec<Span> = Span::all(4096).collect();
        assert_eq!(all.len(), 4096 + 2048 + 1024);
        assert!(all.iter().all(|span| span.offset % u16::from(span.width) == 0));
        assert!(all.iter().all(|span| span.bytes().end <= 4096));
    }

    #[test]
    fn a_value_in_a_dump_is_little_endian() {
        let dump = [0x86, 0x80, 0xd3, 0x10];
        assert_eq!(Span::new(0, 4).value_in(&dump), 0x10d3_8086);
        assert_eq!(Span::new(2, 2).value_in(&dump), 0x10d3);
        assert_eq!(Span::new(4, 2).value_in(&dump), 0);
    }

    #[test]
    fn bits_move_with_the_range() {
        let word = Span::new(0xcc, 2);
        for (span, bits) in [
            (Span::new(0xcc, 1), 0x03),
            (Span::new(0xcd, 1), 0x80),
            (Span::new(0xcc, 2), 0x8003),
            (Span::new(0xcc, 4), 0x8003),
            (Span::new(0xc8, 4), 0),
            (Span::new(0xce, 2), 0),
        ] {
            assert_eq!(span.bits_of(word, 0x8003), bits, "{span}");
        }
        assert_eq!(
            Span::new(0xcc, 4).bits_of(Span::new(0xce, 2), 0x1234),
            0x1234_0000
        );
        assert_eq!(Span::new(0xcf, 1).bits_of(Span::new(0xcc, 4), 0xff00_0000), 0xff);
    }
}
