//! Finds the device that a name means on this host.

use crate::host::sysfs::{Sysfs, SysfsError};
use bulkhead_config::name::{Name, Place, Step};
use pci::bdf::Bdf;
use std::io;
use thiserror::Error;
use xenbus::device::Ids;

/// Why a name means no device.
#[derive(Debug, Error)]
pub enum NameError {
    /// There is no device at the address.
    #[error("there is no PCI device {bdf} on this host: `lspci -D` lists those that are")]
    NoDevice {
        /// The address.
        bdf: Bdf,
    },
    /// The device at the address has other ids.
    #[error(
        "{bdf} is {found} and not {expected}: addresses change when cards come and go; `lspci -nD` shows which device \
         is where"
    )]
    Other {
        /// The address.
        bdf: Bdf,
        /// The ids of the device.
        found: Ids,
        /// The ids in the name.
        expected: Ids,
    },
    /// No device has these ids.
    #[error("no device on this host is {ids}: `lspci -nD` lists those that are")]
    None {
        /// The ids in the name.
        ids: Ids,
    },
    /// Several devices have these ids.
    #[error("{ids} is not one device of this host, but each of {which}: name one by its address, such as {ids}@{first}", which = list(bdfs), first = bdfs.first().map_or_else(String::new, Bdf::to_string))]
    Many {
        /// The ids in the name.
        ids: Ids,
        /// The addresses of the devices.
        bdfs: Vec<Bdf>,
    },
    /// A step of the path leads to no device.
    #[error("there is no device {step} on the bus below {bridge}: `lspci -tD` shows what is there")]
    NoStep {
        /// The last device that is there.
        bridge: Bdf,
        /// The step from there.
        step: Step,
    },
    /// A step of the path leads to several devices.
    #[error(
        "below {bridge} there is more than one device {step}: {which}; name it by its address", which = list(bdfs)
    )]
    Fork {
        /// The bridge above the devices.
        bridge: Bdf,
        /// The step from there.
        step: Step,
        /// The devices.
        bdfs: Vec<Bdf>,
    },
    /// sysfs cannot be read.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// The list of devices cannot be read.
    #[error("cannot list the PCI devices of this host in /sys: is sysfs mounted?")]
    NoSysfs(#[source] io::Error),
}

fn list(bdfs: &[Bdf]) -> String {
    let texts: Vec<_> = bdfs.iter().map(Bdf::to_string).collect();
    texts.join(", ")
}

/// The one device that a name means.
pub fn resolve(name: &Name, sysfs: &Sysfs) -> Result<Bdf, NameError> {
    match *name {
        Name::Ids(ids) => {
            let mut bdfs = sysfs.functions().map_err(NameError::NoSysfs)?;
            // A device that goes away at this moment does not count.
            bdfs.retain(|&bdf| sysfs.ids(bdf).is_ok_and(|found| found == ids));
            match bdfs[..] {
                [] => Err(NameError::None { ids }),
                [bdf] => Ok(bdf),
                _ => Err(NameError::Many { ids, bdfs }),
            }
        }
        Name::At { ids, ref place } => {
            let bdf = walk(place, sysfs)?;
            match (ids, sysfs.ids(bdf)?) {
                // Addresses change when cards come and go: with ids in the name, no other card is taken for the one
                // that is meant.
                (Some(expected), found) if found != expected => {
                    Err(NameError::Other { bdf, found, expected })
                }
                _ => Ok(bdf),
            }
        }
    }
}

/// True if the name means this device, or it is one of several with the ids in the name.
pub fn means(name: &Name, bdf: Bdf, sysfs: &Sysfs) -> bool {
    match name {
        Name::Ids(ids) => sysfs.ids(bdf).is_ok_and(|found| found == *ids),
        Name::At { .. } => resolve(name, sysfs).is_ok_and(|meant| meant == bdf),
    }
}

fn walk(place: &Place, sysfs: &Sysfs) -> Result<Bdf, NameError> {
    let mut bdf = place.root;
    if !sysfs.exists(bdf) {
        return Err(NameError::NoDevice { bdf });
    }
    for &step in &place.steps {
        let bridge = bdf;
        // A bus number may change from boot to boot. The path by device and function below a bridge does not.
        let mut below = sysfs.below(bridge)?;
        below.retain(|bdf| bdf.devfn() == step.devfn());
        bdf = match below[..] {
            [] => return Err(NameError::NoStep { bridge, step }),
            [bdf] => bdf,
            _ => {
                return Err(NameError::Fork {
                    bridge,
                    step,
                    bdfs: below,
                });
            }
        };
    }
    Ok(bdf)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::host::sysfs::tests::Tree;

    /// A network card on the root bus; a bridge with a like card and, behind a second bridge, a disk.
    pub fn host() -> Tree {
        let tree = Tree::new();
        let add = |above: Option<&str>, bdf: &str, vendor: &str, device: &str| {
            let files = [("vendor", vendor.as_bytes()), ("device", device.as_bytes())];
            match above {
                Some(above) => tree.add_below(above, bdf, &files),
                None => tree.add(bdf, &files),
            }
        };
        add(None, "0000:00:05.0", "0x8086\n", "0x10d3\n");
        add(None, "0000:00:1c.0", "0x1b36\n", "0x000c\n");
        add(Some("0000:00:1c.0"), "0000:02:00.0", "0x8086\n", "0x10d3\n");
        add(Some("0000:00:1c.0"), "0000:02:01.0", "0x1b36\n", "0x000e\n");
        add(Some("0000:02:01.0"), "0000:03:1f.7", "0x1b36\n", "0x0010\n");
        tree
    }

    fn resolved(name: &str, tree: &Tree) -> String {
        match resolve(&name.parse().unwrap(), &tree.sysfs()) {
            Ok(bdf) => bdf.to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_device_is_found_by_every_kind_of_name() {
        let tree = host();
        for (name, bdf) in [
            ("00:05.0", "0000:00:05.0"),
            ("8086:10d3@00:05.0", "0000:00:05.0"),
            ("0000:00:1c.0/00.0", "0000:02:00.0"),
            ("0000:00:1c.0/01.0/1f.7", "0000:03:1f.7"),
            ("0000:02:01.0/1f.7", "0000:03:1f.7"),
            ("1b36:0010@00:1c.0/01.0/1f.7", "0000:03:1f.7"),
            ("1b36:0010", "0000:03:1f.7"),
        ] {
            assert_eq!(resolved(name, &tree), bdf, "{name}");
        }
    }

    #[test]
    fn a_path_leads_to_the_same_slot_when_the_bus_numbers_have_changed() {
        let tree = Tree::new();
        let files: [(&str, &[u8]); 2] = [("vendor", b"0x8086\n"), ("device", b"0x10d3\n")];
        tree.add("0000:00:1c.0", &files);
        tree.add_below("0000:00:1c.0", "0000:07:00.0", &files);
        assert_eq!(resolved("8086:10d3@0000:00:1c.0/00.0", &tree), "0000:07:00.0");
    }

    #[test]
    fn another_device_at_the_address_is_refused_and_both_are_named() {
        for (name, bdf, found, expected) in [
            ("8086:10d4@00:05.0", "0000:00:05.0", "8086:10d3", "8086:10d4"),
            ("8086:10d3@00:1c.0/01.0", "0000:02:01.0", "1b36:000e", "8086:10d3"),
        ] {
            let error = resolved(name, &host());
            let start = format!("{bdf} is {found} and not {expected}: ");
            assert!(error.starts_with(&start), "{error}");
        }
    }

    #[test]
    fn what_is_not_there_or_is_there_twice_is_refused_with_what_to_do() {
        for (name, expected) in [
            (
                "00:09.0",
                "there is no PCI device 0000:00:09.0 on this host: `lspci",
            ),
            ("00:09.0/00.0", "there is no PCI device 0000:00:09.0 on this host"),
            (
                "00:1c.0/02.0",
                "there is no device 02.0 on the bus below 0000:00:1c.0: `lspci",
            ),
            (
                "00:05.0/00.0",
                "there is no device 00.0 on the bus below 0000:00:05.0",
            ),
            ("8086:0000", "no device on this host is 8086:0000: `lspci"),
            (
                "8086:10d3",
                "8086:10d3 is not one device of this host, but each of 0000:00:05.0, 0000:02:00.0: name one by its \
                 address, such as 8086:10d3@0000:00:05.0",
            ),
        ] {
            let error = resolved(name, &host());
            assert!(error.starts_with(expected), "{error}");
        }
        let tree = host();
        // As virtual functions may lie: below the same bridge, on a bus of their own.
        tree.add_below("0000:00:1c.0", "0000:04:00.0", &[]);
        let error = resolved("00:1c.0/00.0", &tree);
        assert!(
            error.contains("more than one device 00.0: 0000:02:00.0, 0000:04:00.0"),
            "{error}"
        );
    }

    #[test]
    fn a_name_means_the_device_at_the_place_or_every_device_with_the_ids() {
        let tree = host();
        let means =
            |name: &str, bdf: &str| means(&name.parse().unwrap(), bdf.parse().unwrap(), &tree.sysfs());
        assert!(means("8086:10d3", "00:05.0") && means("8086:10d3", "02:00.0"));
        assert!(!means("8086:10d3", "00:1c.0") && !means("8086:10d3", "00:09.0"));
        assert!(means("00:1c.0/00.0", "02:00.0") && !means("00:1c.0/00.0", "00:05.0"));
        assert!(!means("8086:10d4@00:05.0", "00:05.0"));
    }
}
