//! Little-endian numbers in tables, and in copies of configuration space.

/// 16 bits at an offset, if the bytes reach that far.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// 32 bits at an offset.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// 64 bits at an offset.
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// A register of `width` bytes, 4 at most, zero-extended; `None` if the bytes do not reach that far.
pub fn register_at(bytes: &[u8], offset: u16, width: u8) -> Option<u32> {
    let register = bytes.get(usize::from(offset)..)?.get(..usize::from(width))?;
    let value = register.iter().rev();
    Some(value.fold(0, |value, &byte| value << 8 | u32::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_little_endian_and_end_with_the_bytes() {
        let bytes: Vec<u8> = (1..=9).collect();
        assert_eq!(u16_at(&bytes, 7), Some(0x0908));
        assert_eq!(u16_at(&bytes, 8), None);
        assert_eq!(u32_at(&bytes, 5), Some(0x0908_0706));
        assert_eq!(u32_at(&bytes, 6), None);
        assert_eq!(u64_at(&bytes, 1), Some(0x0908_0706_0504_0302));
        assert_eq!(u64_at(&bytes, 2), None);
        for (width, value) in [(1, 0x09), (2, 0x0908), (4, 0x0908_0706)] {
            let offset = 9 - u16::from(width);
            assert_eq!(register_at(&bytes, offset, width), Some(value));
            assert_eq!(register_at(&bytes, offset + 1, width), None);
        }
    }
}
