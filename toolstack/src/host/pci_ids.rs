//! Names of devices: the host's copy of the list `pci.ids` (<https://pci-ids.ucw.cz>), which comes with lspci.

use std::fs;
use xenbus::device::Ids;

const PATHS: [&str; 3] = [
    "/usr/share/misc/pci.ids",
    "/usr/share/hwdata/pci.ids",
    "/usr/share/pci.ids",
];

/// The list; empty on a host that has none.
#[derive(Clone, Debug, Default)]
pub struct PciIds(String);

impl From<&str> for PciIds {
    fn from(list: &str) -> Self {
        Self(list.to_owned())
    }
}

impl PciIds {
    /// This machine's.
    pub fn read() -> Self {
        let files = PATHS.iter().filter_map(|path| fs::read(path).ok());
        let text = files
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .next();
        Self(text.unwrap_or_default())
    }

    /// True if the host has no list.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names of vendor and device, as far as they are known. In the file, a vendor's line begins with its four
    /// digits. Lines of its devices follow, with a tab before the digits; lines of subsystems have two.
    pub fn name(&self, ids: Ids) -> Option<String> {
        let named = |line: &str, id: u16| {
            let rest = line.strip_prefix(format!("{id:04x}").as_str())?;
            Some(rest.strip_prefix("  ")?.trim().to_owned())
        };
        let mut lines = self.0.lines();
        let vendor = lines.find_map(|line| named(line, ids.vendor))?;
        let device = lines
            .take_while(|line| line.starts_with(['\t', '#']) || line.is_empty())
            .find_map(|line| named(line.strip_prefix('\t')?, ids.device));
        Some(match device {
            Some(device) => format!("{vendor} {device}"),
            None => vendor,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
# A comment
1b36  Red Hat, Inc.
\t0010  QEMU NVM Express Controller
8086  Intel Corporation
# Another
\t10d3  82574L Gigabit Network Connection
\t\t103c 1533  Model 1533
\t1533  I210 Gigabit Network Connection
8087  Another
\t10d4  Of another vendor
C 02  Network controller
";

    fn name(ids: &str) -> Option<String> {
        PciIds::from(LIST).name(ids.parse().unwrap())
    }

    #[test]
    fn a_device_is_called_by_vendor_and_name_as_far_as_the_list_goes() {
        assert_eq!(
            name("8086:10d3").as_deref(),
            Some("Intel Corporation 82574L Gigabit Network Connection")
        );
        assert_eq!(
            name("8086:1533").as_deref(),
            Some("Intel Corporation I210 Gigabit Network Connection")
        );
        assert_eq!(name("8086:10d4").as_deref(), Some("Intel Corporation"));
        assert_eq!(
            name("8086:103c").as_deref(),
            Some("Intel Corporation"),
            "a subsystem's"
        );
        assert_eq!(name("1234:11e8"), None);
        assert_eq!(PciIds::default().name("8086:10d3".parse().unwrap()), None);
    }
}
