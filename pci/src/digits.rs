//! Numbers in the texts of others.

/// Reads a number of digits alone: without sign, prefix or blanks, and at least one digit. `None` also if it does not
/// fit in 64 bits.
///
/// # Panics
/// If `radix` is above 36.
// `from_str_radix` takes a plus sign, and is in an image once for each type and radix.
#[inline(never)]
pub fn parse(text: &str, radix: u32) -> Option<u64> {
    let mut number: Option<u64> = None;
    for byte in text.bytes() {
        let digit = char::from(byte).to_digit(radix)?;
        number = Some(
            number
                .unwrap_or(0)
                .checked_mul(radix.into())?
                .checked_add(digit.into())?,
        );
    }
    number
}

/// Reads a number in hex, as [`parse`] does.
pub fn hex(text: &str) -> Option<u64> {
    parse(text, 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_digits_alone() {
        assert_eq!(parse("0042", 10), Some(42));
        assert_eq!(hex("b0028"), Some(0xb_0028));
        assert_eq!(hex("FFffFFffFFffFFff"), Some(u64::MAX));
        for bad in ["", "-1", "+1", "0x1", " 1", "1 ", "1\n", "1_0", "g", "\u{663}"] {
            assert_eq!(hex(bad), None, "{bad}");
        }
        assert_eq!(parse("a", 10), None);
    }

    #[test]
    fn a_number_fits_in_64_bits() {
        assert_eq!(parse("18446744073709551615", 10), Some(u64::MAX));
        for bad in ["18446744073709551616", "99999999999999999999"] {
            assert_eq!(parse(bad, 10), None, "{bad}");
        }
        assert_eq!(hex("10000000000000000"), None);
    }
}
