//! Devices of a function that dom0's programs use: network interfaces, disks, screens, keyboards, shared directories.

use super::{Sysfs, entries, is_one};
use pci::bdf::Bdf;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// `IFF_UP` among the flags of a network interface (`include/uapi/linux/if.h`).
const INTERFACE_UP: u32 = 1;

/// The keys Q to P, Enter, A to L, and Z to M (`include/uapi/linux/input-event-codes.h`).
const LETTERS: u64 = 0x3ff << 16 | 1 << 28 | 0x1ff << 30 | 0x7f << 44;

impl Sysfs {
    /// The network interfaces of the function, each with whether it is up.
    pub fn interfaces(&self, bdf: Bdf) -> Vec<(String, bool)> {
        let interfaces = self.class_devices("net", bdf).into_iter().map(|(name, path)| {
            let flags = fs::read_to_string(path.join("flags")).unwrap_or_default();
            let digits = flags.trim().trim_start_matches("0x");
            let up = u32::from_str_radix(digits, 16).is_ok_and(|flags| flags & INTERFACE_UP != 0);
            (name, up)
        });
        interfaces.collect()
    }

    /// The bridge or bond that an interface is a port of, and what that is a port of, and so on.
    pub fn interfaces_above(&self, interface: &str) -> Vec<String> {
        let mut above: Vec<String> = Vec::new();
        let mut below = interface.to_owned();
        while let Ok(master) = fs::read_link(self.root.join("class/net").join(&below).join("master"))
            && let Some(name) = master.file_name().and_then(|name| name.to_str())
            && !above.iter().any(|known| known == name)
        {
            below = name.to_owned();
            above.push(below.clone());
        }
        above
    }

    /// The disks and partitions of the function. For an NVMe namespace that several controllers may lead to, it is
    /// the namespace itself, which belongs to the controller's subsystem, and not one of the paths to it.
    pub fn disks(&self, bdf: Bdf) -> Vec<BlockDevice> {
        let mut disks = self.class_devices("block", bdf);
        let controllers = self.class_devices("nvme", bdf);
        // Namespaces that several controllers share lie below their subsystem, not below a function.
        for subsystem in entries(&self.root.join("class/nvme-subsystem")) {
            if controllers.iter().any(|(name, _)| subsystem.join(name).exists()) {
                let subsystem = fs::canonicalize(&subsystem).unwrap_or(subsystem);
                let belongs = |path: &Path| path.starts_with(&subsystem);
                disks.extend(self.class_devices_where("block", belongs));
            }
        }
        let hidden = |path: &Path| is_one(&path.join("hidden"));
        // Hidden devices are the paths below a namespace that several controllers share.
        disks.retain(|(_, path)| !hidden(path));
        disks
            .into_iter()
            .map(|(name, path)| self.block_at(name, &path))
            .collect()
    }

    /// A block device of any kind.
    pub fn block(&self, name: &str) -> Option<BlockDevice> {
        let path = fs::canonicalize(self.root.join("class/block").join(name)).ok()?;
        Some(self.block_at(name.to_owned(), &path))
    }

    fn block_at(&self, name: String, path: &Path) -> BlockDevice {
        let number = fs::read_to_string(path.join("dev")).unwrap_or_default();
        let holders = entries(&path.join("holders"))
            .into_iter()
            .filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
        // The device mapper's name says more to people than `dm-0`.
        let holders = holders.map(|name| {
            let mapped = self.root.join("class/block").join(&name).join("dm/name");
            let label = fs::read_to_string(mapped)
                .ok()
                .map(|label| label.trim().to_owned());
            BlockHolder { name, label }
        });
        BlockDevice {
            number: device_number(&number),
            holders: holders.collect(),
            name,
        }
    }

    /// The block devices of the btrfs file system that one belongs to; none if it belongs to none.
    pub fn btrfs_members(&self, name: &str) -> Vec<String> {
        for file_system in entries(&self.root.join("fs/btrfs")) {
            let members = entries(&file_system.join("devices"));
            let members = members
                .iter()
                .filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
            let members: Vec<_> = members.collect();
            if members.iter().any(|member| member == name) {
                return members;
            }
        }
        Vec::new()
    }

    /// The kind of file system, and its tag if that is known, that a virtio function brings from the machine below.
    pub fn shared_directory(&self, bdf: Bdf) -> Option<(&'static str, Option<String>)> {
        let devices = entries(&self.path(bdf, ""));
        devices.into_iter().find_map(|device| {
            let driver = fs::read_link(device.join("driver")).ok()?;
            match driver.file_name()?.to_str()? {
                "9pnet_virtio" => {
                    let tag = fs::read_to_string(device.join("mount_tag")).ok();
                    Some(("9p", tag.map(|tag| tag.trim_matches(['\0', '\n']).to_owned())))
                }
                "virtiofs" => Some(("virtiofs", None)),
                _ => None,
            }
        })
    }

    /// True if the firmware showed its pictures by this function.
    pub fn is_boot_display(&self, bdf: Bdf) -> bool {
        is_one(&self.path(bdf, "boot_vga"))
    }

    /// The frame buffers of the function, such as `fb0`.
    pub fn frame_buffers(&self, bdf: Bdf) -> Vec<String> {
        let devices = self.class_devices("graphics", bdf).into_iter();
        devices.map(|(name, _)| name).collect()
    }

    /// The driver of dom0's console on frame buffers, such as `vtcon1`, while it is bound.
    pub fn frame_buffer_console(&self) -> Option<String> {
        let console = entries(&self.root.join("class/vtconsole"))
            .into_iter()
            .find(|console| {
                let name = fs::read_to_string(console.join("name")).unwrap_or_default();
                name.contains("frame buffer") && is_one(&console.join("bind"))
            })?;
        Some(console.file_name()?.to_str()?.to_owned())
    }

    /// For each keyboard: the functions that lead to it.
    pub fn keyboards(&self) -> Vec<Vec<Bdf>> {
        let inputs = entries(&self.root.join("class/input"));
        let keyboards = inputs.iter().filter_map(|input| {
            let keys = fs::read_to_string(input.join("capabilities/key")).ok()?;
            // The last word has the lowest keys.
            let lowest = u64::from_str_radix(keys.split_whitespace().next_back()?, 16).ok()?;
            (lowest & LETTERS == LETTERS).then(|| fs::canonicalize(input).ok())?
        });
        let above = |path: PathBuf| {
            let parts = path
                .components()
                .filter_map(|part| part.as_os_str().to_str()?.parse().ok());
            parts.collect()
        };
        keyboards.map(above).collect()
    }

    /// The devices of a class, such as `net`, that lie below the function: name and directory.
    fn class_devices(&self, class: &str, bdf: Bdf) -> Vec<(String, PathBuf)> {
        let function = bdf.to_string();
        self.class_devices_where(class, |path| {
            path.components()
                .any(|part| part.as_os_str() == function.as_str())
        })
    }

    /// The devices of a class that lie where `belongs` says: name and directory.
    fn class_devices_where(&self, class: &str, belongs: impl Fn(&Path) -> bool) -> Vec<(String, PathBuf)> {
        let devices = entries(&self.root.join("class").join(class))
            .into_iter()
            .filter_map(|entry| {
                let path = fs::canonicalize(&entry).ok().filter(|path| belongs(path))?;
                Some((entry.file_name()?.to_str()?.to_owned(), path))
            });
        devices.collect()
    }
}

/// Major and minor number of a block device.
pub type DeviceNumber = (u32, u32);

/// Such as `8:1`, in decimal digits. Major number 0 is that of file systems without a device of their own.
pub fn device_number(text: &str) -> Option<DeviceNumber> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?)).filter(|&(major, _)| major != 0)
}

/// A disk, a partition, or what is made of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    /// Such as `sda1`.
    pub name: String,
    /// Major and minor number.
    pub number: Option<DeviceNumber>,
    /// The block devices that are made of it.
    pub holders: Vec<BlockHolder>,
}

impl BlockDevice {
    /// Its node. Sysfs writes `!` where the name has a slash.
    pub fn node(&self) -> String {
        format!("/dev/{}", self.name.replace('!', "/"))
    }
}

/// A block device that is made of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockHolder {
    /// Such as `dm-0`.
    pub name: String,
    /// Such as `vg-root`.
    pub label: Option<String>,
}

impl fmt::Display for BlockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/dev/{}", self.name)?;
        match &self.label {
            Some(label) => write!(f, " ({label})"),
            None => Ok(()),
        }
    }
}
