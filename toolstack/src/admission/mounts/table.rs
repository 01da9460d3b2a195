//! The table of mounts, `/proc/self/mountinfo`.

use crate::host::sysfs::classes::{DeviceNumber, device_number};

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub device: Option<DeviceNumber>,
    /// Such as `/dev/sda1`, or a tag.
    pub source: String,
    pub kind: String,
    pub directory: String,
}

impl Mount {
    /// A line of `mountinfo`: …, device number (third), root, directory, options, …, a hyphen, kind, source, ….
    pub fn parse(line: &str) -> Option<Self> {
        let (mount, what) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(2);
        let (number, directory) = (mount.next()?, mount.nth(1)?);
        let mut what = what.split(' ');
        let (kind, source) = (what.next()?, what.next()?);
        Some(Self {
            device: device_number(number),
            source: unescape(source),
            kind: kind.to_owned(),
            directory: unescape(directory),
        })
    }
}

/// Undoes the octal escapes of `/proc`, such as `\040` for a space.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..3).filter(|_| *first == b'\\');
        let value = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(value.unwrap_or(*first));
        rest = if value.is_some() { &tail[3..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_makes_no_sense_is_no_mount() {
        for line in ["", " - ", "1 2 3 - ext4", "a b c d e f - ext4 /dev/sda1"] {
            let parsed = Mount::parse(line);
            assert!(
                parsed.as_ref().is_none_or(|mount| mount.device.is_none()),
                "{parsed:?}"
            );
        }
        assert_eq!(unescape(r"a\040b\134\9"), r"a b\\9");
    }
}
