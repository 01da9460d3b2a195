//! Text from outside, made safe for a log line or a node.

use core::fmt::{self, Write as _};

/// Shows printable ASCII as it is and every other byte as `?`: it cannot steer a terminal or forge a log line.
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub &'a [u8]);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|&byte| {
            let printable = byte == b' ' || byte.is_ascii_graphic();
            f.write_char(if printable { char::from(byte) } else { '?' })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn control_characters_and_what_is_not_ascii_become_question_marks() {
        assert_eq!(Printable(b"dev-0 = ~\x1b[2J\n\0").to_string(), "dev-0 = ~?[2J??");
        assert_eq!(Printable("é".as_bytes()).to_string(), "??");
    }
}
