//! Byte ranges of configuration space, and how the bytes of one range go into another.

use crate::error::RequestError;

/// Size of a function's configuration space in bytes.
pub const CONFIG_SIZE: u16 = 4096;

/// A sound access: 1, 2 or 4 bytes, naturally aligned, below 4096.
///
/// The registers of the policy tables have the same shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    offset: u16,
    width: u8,
}

impl Access {
    /// Checks what a guest asks for.
    ///
    /// # Errors
    /// [`RequestError::BadAccess`] for any other size, an unaligned offset, a negative one, or one past the end. Linux's
    /// xen-pciback checks neither sign nor end.
    pub const fn new(offset: i32, size: i32) -> Result<Self, RequestError> {
        // Aligned and below the end, an access does not reach past the end.
        let sound = matches!(size, 1 | 2 | 4) && offset >= 0 && offset % size == 0;
        if sound && offset < CONFIG_SIZE as i32 {
            Ok(Self {
                offset: offset as u16,
                width: size as u8,
            })
        } else {
            Err(RequestError::BadAccess { offset, size })
        }
    }

    /// An access of ours, at an offset and width that are known to be sound.
    pub(super) const fn at(offset: u16, width: u8) -> Self {
        Self { offset, width }
    }

    /// First byte.
    pub const fn offset(self) -> u16 {
        self.offset
    }

    /// Number of bytes: 1, 2 or 4.
    pub const fn width(self) -> u8 {
        self.width
    }

    /// The byte after the last one.
    pub const fn end(self) -> u16 {
        self.offset + self.width as u16
    }

    /// `base`, a value of this range, with the bytes that `other` covers taken from `value`, a value of `other`.
    ///
    /// The one place where ranges of different width and offset meet. A read overlays registers on what was read; a write
    /// overlays what was written on a register.
    pub fn overlay(self, base: u32, other: Access, value: u32) -> u32 {
        let value = value.to_le_bytes();
        let mut merged = base.to_le_bytes();
        for (byte, offset) in merged.iter_mut().zip(self.offset..self.end()) {
            if (other.offset..other.end()).contains(&offset) {
                *byte = value[usize::from(offset - other.offset)];
            }
        }
        u32::from_le_bytes(merged)
    }

    /// The bits of this range that `other` covers.
    pub fn covered_by(self, other: Access) -> u32 {
        self.overlay(0, other, u32::MAX)
    }

    /// The widest sound accesses that make up the bytes of this range whose bits are set in `bits`.
    pub fn pieces(self, bits: u32) -> impl Iterator<Item = Self> {
        let mut left = bits & self.mask();
        // From the lowest byte on, at each the widest access that is aligned, inside, and covers no other byte.
        core::iter::from_fn(move || {
            let first = left.checked_ilog2().map(|_| left.trailing_zeros() / 8)? as u16;
            let offset = self.offset + first;
            let pieces = [4, 2, 1].map(|width| Self { offset, width });
            let piece = pieces.into_iter().find(|piece| {
                let inside = offset.is_multiple_of(piece.width.into()) && piece.end() <= self.end();
                inside && self.covered_by(*piece) & !left == 0
            })?;
            left &= !self.covered_by(piece);
            Some(piece)
        })
    }

    /// The bytes of `value`, a value of this range, that `part` covers, as a value of `part`.
    pub fn part(self, part: Self, value: u32) -> u32 {
        part.overlay(0, self, value)
    }

    /// All bits of this range.
    pub const fn mask(self) -> u32 {
        u32::MAX >> (32 - 8 * self.width as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn a_sound_access_is_small_aligned_and_inside() {
        for (offset, size) in [(0, 1), (4095, 1), (4094, 2), (4092, 4), (0x10, 4)] {
            let access = Access::new(offset, size).unwrap();
            assert_eq!((access.offset(), access.width()), (offset as u16, size as u8));
        }
    }

    #[test]
    fn every_other_access_is_an_invalid_offset() {
        let bad = [
            (0, 0),
            (0, 3),
            (0, 8),
            (0, -1),
            (0, i32::MIN),
            (1, 2),
            (2, 4),
            (4093, 2),
            (-4, 4),
            (-1, 1),
            (4096, 1),
            (4096, 4),
            (i32::MIN, 4),
            (i32::MAX, 1),
        ];
        for (offset, size) in bad {
            assert_eq!(
                Access::new(offset, size),
                Err(RequestError::BadAccess { offset, size }),
                "{offset} {size}"
            );
        }
    }

    #[test]
    fn bytes_land_where_they_belong() {
        let dword = Access::at(4, 4);
        let high_word = Access::at(6, 2);
        assert_eq!(dword.overlay(0x1122_3344, high_word, 0xaabb), 0xaabb_3344);
        assert_eq!(high_word.overlay(0x1122, dword, 0xaabb_ccdd), 0xaabb);
        assert_eq!(dword.overlay(0x1122_3344, Access::at(8, 4), 0), 0x1122_3344);
        assert_eq!(dword.covered_by(Access::at(5, 1)), 0x0000_ff00);
        assert_eq!(
            (Access::at(0, 1).mask(), Access::at(0, 4).mask()),
            (0xff, u32::MAX)
        );
    }

    #[test]
    fn bytes_are_written_in_the_widest_sound_pieces() {
        let pieces = |offset, width, bits| -> Vec<(u16, u8)> {
            let pieces = Access::at(offset, width).pieces(bits);
            pieces.map(|piece| (piece.offset(), piece.width())).collect()
        };
        assert_eq!(pieces(4, 4, u32::MAX), [(4, 4)]);
        assert_eq!(pieces(4, 4, 0xffff_0000), [(6, 2)]);
        assert_eq!(pieces(4, 4, 0xffff_ff00), [(5, 1), (6, 2)]);
        assert_eq!(pieces(4, 4, 0xff00_ffff), [(4, 2), (7, 1)]);
        assert_eq!(pieces(6, 2, u32::MAX), [(6, 2)]);
        assert_eq!(pieces(4094, 2, 0xff00), [(4095, 1)]);
        assert_eq!(pieces(4, 4, 0), []);
        assert_eq!(Access::at(4, 4).part(Access::at(6, 2), 0x1122_3344), 0x1122);
    }
}
