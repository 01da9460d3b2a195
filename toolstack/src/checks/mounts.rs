//! What dom0 does with a device by its own drivers: an interface that is up, a disk that is mounted.

use crate::sysfs::Sysfs;
use std::collections::BTreeMap;
use std::{fs, io};
use xenbus::bdf::Bdf;

/// The block devices that dom0 uses: what for, and how to end that, by name such as `sda1`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts(BTreeMap<String, Use>);

/// A use that dom0 makes of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// Such as `/dev/sda1 is mounted on /mnt`.
    pub what: String,
    /// Such as `umount /mnt`.
    pub end: String,
}

impl Mounts {
    /// This machine's.
    pub fn read() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        // A kernel without swapping has no such file.
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        Ok(Self::parse(&mounts, &swaps))
    }

    /// From the texts of `/proc/self/mounts` (device, directory, …) and `/proc/swaps` (device, …).
    pub fn parse(mounts: &str, swaps: &str) -> Self {
        let mut uses = BTreeMap::new();
        for line in mounts.lines() {
            let mut words = line.split_whitespace();
            if let (Some(device), Some(directory)) = (words.next().and_then(name), words.next()) {
                let what = format!("/dev/{device} is mounted on {directory}");
                let end = format!("umount {directory}");
                uses.entry(device.to_owned()).or_insert(Use { what, end });
            }
        }
        for device in swaps
            .lines()
            .filter_map(|line| line.split_whitespace().next().and_then(name))
        {
            let what = format!("/dev/{device} is swapped to");
            let end = format!("swapoff /dev/{device}");
            uses.insert(device.to_owned(), Use { what, end });
        }
        Self(uses)
    }

    /// The first use that dom0 makes of a function, or of one behind it, that taking it away would break.
    pub fn of(&self, bdf: Bdf, sysfs: &Sysfs) -> Option<Use> {
        for (interface, up) in sysfs.interfaces(bdf) {
            if up {
                let what = format!("its interface {interface} is up");
                let end = format!("ip link set {interface} down");
                return Some(Use { what, end });
            }
        }
        for (disk, holders) in sysfs.disks(bdf) {
            if let Some(mount) = self.0.get(&disk) {
                return Some(mount.clone());
            }
            if let Some(holder) = holders.first() {
                let what = format!("/dev/{disk} is part of /dev/{holder}");
                let end = format!("umount /dev/{holder}` and take it apart, then `bulkhead check {bdf}");
                return Some(Use { what, end });
            }
        }
        None
    }
}

fn name(path: &str) -> Option<&str> {
    path.strip_prefix("/dev/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysfs::tests::Tree;

    const MOUNTS: &str = "proc /proc proc rw 0 0\n/dev/sda1 / ext4 rw 0 0\n/dev/sda1 /copy ext4 rw 0 0\n";
    const SWAPS: &str = "Filename Type Size Used Priority\n/dev/sdb2 partition 1 0 -2\n";

    fn used(tree: &Tree, bdf: &str) -> Option<String> {
        let mounts = Mounts::parse(MOUNTS, SWAPS);
        mounts
            .of(bdf.parse().unwrap(), &tree.sysfs())
            .map(|found| format!("{}: {}", found.what, found.end))
    }

    #[test]
    fn an_interface_that_is_up_is_a_use_and_one_that_is_down_is_none() {
        let tree = Tree::new();
        tree.add("0000:00:05.0", &[]);
        tree.add_class("0000:00:05.0", "net", "eth0", &[("flags", "0x1002\n")]);
        assert_eq!(used(&tree, "00:05.0"), None);
        tree.add_class("0000:00:05.0", "net", "eth1", &[("flags", "0x1003\n")]);
        assert_eq!(
            used(&tree, "00:05.0").as_deref(),
            Some("its interface eth1 is up: ip link set eth1 down")
        );
    }

    #[test]
    fn a_disk_that_is_mounted_or_swapped_to_or_part_of_another_is_a_use() {
        let tree = Tree::new();
        for (bdf, disk, expected) in [
            (
                "0000:00:06.0",
                "sda1",
                Some("/dev/sda1 is mounted on /: umount /"),
            ),
            (
                "0000:00:07.0",
                "sdb2",
                Some("/dev/sdb2 is swapped to: swapoff /dev/sdb2"),
            ),
            ("0000:00:08.0", "sdc", None),
        ] {
            tree.add(bdf, &[]);
            tree.add_class(bdf, "block", disk, &[]);
            assert_eq!(used(&tree, bdf).as_deref(), expected);
        }
        tree.add("0000:00:09.0", &[]);
        let disk = tree.add_class("0000:00:09.0", "block", "sdd", &[]);
        fs::create_dir_all(disk.join("holders/dm-0")).unwrap();
        assert!(
            used(&tree, "00:09.0")
                .unwrap()
                .starts_with("/dev/sdd is part of /dev/dm-0")
        );
    }
}
