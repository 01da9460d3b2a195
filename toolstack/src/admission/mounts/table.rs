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

/// The interfaces that default routes lead over, by the texts of `/proc/net/route` (interface, destination, …) and
/// `/proc/net/ipv6_route` (destination, length of its prefix, …, interface). Those of IPv6 on `lo` mean that there is none.
pub(super) fn default_routes(v4: &str, v6: &str) -> Vec<String> {
    let v4 = v4.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (interface, destination) = (words.next()?, words.next()?);
        // The mask stands six words on.
        (destination == "00000000" && words.nth(5)? == "00000000").then_some(interface)
    });
    let v6 = v6.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (destination, prefix) = (words.next()?, words.next()?);
        let is_default = prefix == "00" && destination.bytes().all(|digit| digit == b'0');
        words
            .next_back()
            .filter(|&interface| is_default && interface != "lo")
    });
    v4.chain(v6).map(str::to_owned).collect()
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
    fn default_routes_are_told_from_others() {
        let v4 = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                  eth0 00000000 0202000A 0003 0 0 0 00000000 0 0 0\n\
                  eth1 0002000A 00000000 0001 0 0 0 00FFFFFF 0 0 0\n\
                  tun0 00000000 00000000 0001 0 0 0 00000080 0 0 0\n";
        let zeros = "0".repeat(32);
        let v6 = format!(
            "{zeros} 00 {zeros} 00 fe800000000000000000000000000002 00000400 00000001 00000000 00000003 xenbr0\n\
             {zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200 lo\n\
             fe80{} 40 {zeros} 00 {zeros} 00000100 00000001 00000000 00000001 eth1\n",
            &zeros[4..]
        );
        assert_eq!(default_routes(v4, &v6), ["eth0", "xenbr0"]);
        assert_eq!(default_routes("", "nonsense"), [""; 0]);
    }

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
