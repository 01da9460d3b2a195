//! What Linux's sysfs says about PCI functions, and how it resets them.

use crate::config_space::access::ConfigFile;
use crate::config_space::resources;
use inject::Point;
use pci::bdf::Bdf;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;
use xenbus::device::{Bars, Ids};

/// The driver with which dom0 holds a device for passthrough, as sysfs calls it.
pub const PCIBACK: &str = "pciback";

/// How the names of its handlers begin; the device's address follows.
const PCIBACK_HANDLER: &str = "xen-pciback[";
/// `IFF_UP` among the flags of a network interface (`include/uapi/linux/if.h`).
const INTERFACE_UP: u32 = 1;

/// The keys Q to P, Enter, A to L, and Z to M (`include/uapi/linux/input-event-codes.h`).
const LETTERS: u64 = 0x3ff << 16 | 1 << 28 | 0x1ff << 30 | 0x7f << 44;

/// A file of sysfs that could not be used.
#[derive(Debug, Error)]
#[error("{what} of {bdf} ({path})")]
pub struct SysfsError {
    bdf: Bdf,
    what: &'static str,
    path: String,
    #[source]
    source: io::Error,
}

impl SysfsError {
    /// The function whose file it is.
    pub fn bdf(&self) -> Bdf {
        self.bdf
    }
}

/// The PCI part of sysfs.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
    /// Of interrupt lines there is more in `/proc`.
    proc: PathBuf,
}

impl Sysfs {
    /// This machine's.
    pub fn host() -> Self {
        Self {
            proc: "/proc".into(),
            ..Self::at("/sys")
        }
    }

    /// One that is mounted elsewhere, with what is of `/proc` in it.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        Self {
            proc: root.join("proc"),
            root,
        }
    }

    /// All functions, in the order of their addresses.
    pub fn functions(&self) -> io::Result<Vec<Bdf>> {
        let mut functions = functions_in(&self.root.join("bus/pci/devices"))?;
        functions.sort_unstable();
        Ok(functions)
    }

    /// The other functions in the slot of a function. A virtual one is in none: its address is only a number.
    pub fn slot_of(&self, bdf: Bdf) -> Vec<Bdf> {
        let is_physical = |&function: &Bdf| self.physical_function(function).is_none();
        if !is_physical(&bdf) {
            return Vec::new();
        }
        (0..8)
            .filter_map(|function| Bdf::new(bdf.segment(), bdf.bus(), bdf.device(), function))
            .filter(|&other| other != bdf && self.exists(other))
            .filter(is_physical)
            .collect()
    }

    /// True if there is such a function.
    pub fn exists(&self, bdf: Bdf) -> bool {
        self.path(bdf, "").is_dir()
    }

    /// The inode of the function's directory. Linux gives another one to a function that it removes and finds again.
    pub fn inode(&self, bdf: Bdf) -> Option<u64> {
        let directory = fs::metadata(self.path(bdf, "")).ok()?;
        Some(std::os::unix::fs::MetadataExt::ino(&directory))
    }

    /// What the function is. Linux knows that of a virtual function too, which does not answer it.
    pub fn ids(&self, bdf: Bdf) -> Result<Ids, SysfsError> {
        Ok(Ids {
            vendor: self.id(bdf, "vendor")?,
            device: self.id(bdf, "device")?,
        })
    }

    /// One half of the ids, such as `0x8086`.
    fn id(&self, bdf: Bdf, file: &str) -> Result<u16, SysfsError> {
        let what = "cannot read the ids";
        let text = self.read(bdf, file, what)?;
        let digits = text.trim().trim_start_matches("0x");
        u16::from_str_radix(digits, 16).map_err(|error| {
            let source = io::Error::new(io::ErrorKind::InvalidData, error);
            self.error(bdf, file, what, source)
        })
    }

    /// The physical function of a virtual one (SR-IOV).
    pub fn physical_function(&self, bdf: Bdf) -> Option<Bdf> {
        self.link(bdf, "physfn")
    }

    /// The virtual functions that a physical one has now, in the order of their numbers; none of any other function.
    pub fn virtual_functions(&self, bdf: Bdf) -> Vec<Bdf> {
        (0..)
            .map_while(|number| self.link(bdf, &format!("virtfn{number}")))
            .collect()
    }

    /// The function that a link of another leads to.
    fn link(&self, bdf: Bdf, name: &str) -> Option<Bdf> {
        let target = fs::read_link(self.path(bdf, name)).ok()?;
        target.file_name()?.to_str()?.parse().ok()
    }

    /// The functions on the bus below a bridge, in the order of their addresses.
    pub fn below(&self, bridge: Bdf) -> Result<Vec<Bdf>, SysfsError> {
        let mut below = functions_in(&self.path(bridge, ""))
            .map_err(|source| self.error(bridge, "", "cannot list what is below", source))?;
        below.sort_unstable();
        Ok(below)
    }

    /// The bridges above a function, the nearest first.
    pub fn bridges_above(&self, bdf: Bdf) -> Result<Vec<Bdf>, SysfsError> {
        let path = fs::canonicalize(self.path(bdf, ""))
            .map_err(|source| self.error(bdf, "", "cannot find the place", source))?;
        let above = path
            .ancestors()
            .skip(1)
            .filter_map(|path| path.file_name()?.to_str());
        // At the host bridge's directory, such as pci0000:00, the functions end.
        Ok(above.map_while(|name| name.parse().ok()).collect())
    }

    /// False if Linux has turned MSI off for all that is below a bridge.
    pub fn msi_below(&self, bridge: Bdf) -> bool {
        let text = fs::read_to_string(self.path(bridge, "msi_bus"));
        text.map_or(true, |text| text.trim() != "0")
    }

    /// True if dom0's kernel hears of the errors of a function: a port above it has the service for that.
    pub fn hears_errors(&self, bdf: Bdf) -> bool {
        // The name of a root port's service (`drivers/pci/pcie/portdrv.c`).
        let service = |port: Bdf| self.path(port, &format!("{port}:pcie002/driver"));
        self.bridges_above(bdf)
            .is_ok_and(|above| above.into_iter().any(|port| service(port).exists()))
    }

    /// How many correctable errors of a function dom0's kernel has heard of since it knows the function; `None` if
    /// it hears of none.
    pub fn correctable_errors(&self, bdf: Bdf) -> Option<u64> {
        let text = fs::read_to_string(self.path(bdf, "aer_dev_correctable")).ok()?;
        let total = text
            .lines()
            .find_map(|line| line.strip_prefix("TOTAL_ERR_COR "))?;
        total.trim().parse().ok()
    }

    /// The function's address ranges.
    pub fn bars(&self, bdf: Bdf) -> Result<Bars, SysfsError> {
        let text = self.read(bdf, "resource", "cannot read the address ranges")?;
        resources::parse(&text).map_err(|error| {
            let source = io::Error::new(io::ErrorKind::InvalidData, error);
            self.error(bdf, "resource", "cannot understand the address ranges", source)
        })
    }

    /// The number of the interrupt line, which for a line of an I/O APIC is the GSI; `None` if the
    /// function has none (0 and 255 both mean that).
    pub fn irq(&self, bdf: Bdf) -> Option<u32> {
        let text = fs::read_to_string(self.path(bdf, "irq")).ok()?;
        text.trim().parse().ok().filter(|irq| !matches!(irq, 0 | 255))
    }

    /// True if dom0 has turned the function on, so that its interrupt line is in use.
    pub fn is_enabled(&self, bdf: Bdf) -> bool {
        let text = fs::read_to_string(self.path(bdf, "enable")).unwrap_or_default();
        text.trim().parse::<i64>().is_ok_and(|count| count > 0)
    }

    /// The name of the driver that the function is bound to.
    pub fn driver(&self, bdf: Bdf) -> Option<String> {
        let link = fs::read_link(self.path(bdf, "driver")).ok()?;
        Some(link.file_name()?.to_str()?.to_owned())
    }

    /// True if the driver that holds devices for passthrough is loaded.
    pub fn has_pciback(&self) -> bool {
        self.pciback().is_dir()
    }

    /// The configuration space as far as it can be read: 64 bytes at least, 256 or 4096 for root.
    pub fn config_bytes(&self, bdf: Bdf) -> Result<Vec<u8>, SysfsError> {
        fs::read(self.path(bdf, "config"))
            .map_err(|source| self.error(bdf, "config", "cannot read the configuration space", source))
    }

    /// Opens the configuration space for reading and writing.
    pub fn open_config(&self, bdf: Bdf) -> Result<ConfigFile, SysfsError> {
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(bdf, "config"));
        open.map(ConfigFile)
            .map_err(|source| self.error(bdf, "config", "cannot open the configuration space", source))
    }

    /// The ways in which Linux would reset the function, in their order, such as `pm bus`; empty before Linux 5.15,
    /// which has no list; `None` if it cannot reset it.
    pub fn reset_methods(&self, bdf: Bdf) -> Option<String> {
        let methods = fs::read_to_string(self.path(bdf, "reset_method")).unwrap_or_default();
        let can = self.path(bdf, "reset").exists();
        can.then(|| methods.trim().to_owned())
    }

    /// Resets the function; Linux keeps its configuration across that.
    pub fn reset(&self, bdf: Bdf) -> Result<(), SysfsError> {
        inject::point(Point::Reset);
        write(&self.path(bdf, "reset"), "1")
            .map_err(|source| self.error(bdf, "reset", "cannot reset", source))
    }

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

    /// The disks and partitions of the function. A path to an NVMe namespace that several controllers may lead to is
    /// none: the namespace itself is, which belongs to the subsystem of the function's controller.
    pub fn disks(&self, bdf: Bdf) -> Vec<Block> {
        let mut disks = self.class_devices("block", bdf);
        let controllers = self.class_devices("nvme", bdf);
        for subsystem in entries(&self.root.join("class/nvme-subsystem")) {
            if controllers.iter().any(|(name, _)| subsystem.join(name).exists()) {
                let subsystem = fs::canonicalize(&subsystem).unwrap_or(subsystem);
                let belongs = |path: &Path| path.starts_with(&subsystem);
                disks.extend(self.class_devices_where("block", belongs));
            }
        }
        let hidden = |path: &Path| is_one(&path.join("hidden"));
        disks.retain(|(_, path)| !hidden(path));
        disks
            .into_iter()
            .map(|(name, path)| self.block_at(name, &path))
            .collect()
    }

    /// A block device of any kind.
    pub fn block(&self, name: &str) -> Option<Block> {
        let path = fs::canonicalize(self.root.join("class/block").join(name)).ok()?;
        Some(self.block_at(name.to_owned(), &path))
    }

    fn block_at(&self, name: String, path: &Path) -> Block {
        let number = fs::read_to_string(path.join("dev")).unwrap_or_default();
        let holders = entries(&path.join("holders"))
            .into_iter()
            .filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
        let holders = holders.map(|name| {
            let mapped = self.root.join("class/block").join(&name).join("dm/name");
            let label = fs::read_to_string(mapped)
                .ok()
                .map(|label| label.trim().to_owned());
            Holder { name, label }
        });
        Block {
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

    /// The drivers of dom0's that have a handler on an interrupt line; those of xen-pciback are none.
    pub fn line_users(&self, irq: u32) -> Vec<String> {
        let path = self.root.join("kernel/irq").join(irq.to_string()).join("actions");
        let text = fs::read_to_string(path).unwrap_or_default();
        let names = text
            .trim()
            .split(',')
            .filter(|name| !name.is_empty() && !name.starts_with(PCIBACK_HANDLER));
        names.map(str::to_owned).collect()
    }

    /// How many of the last interrupts of a line there were, and how many of them nobody in dom0 wanted. At 100,000
    /// Linux counts anew, and if then more than 99,900 were unwanted, it turns the line off. `None` if dom0 does not
    /// use the line.
    pub fn unwanted_interrupts(&self, irq: u32) -> Option<(u32, u32)> {
        let text = fs::read_to_string(self.proc.join("irq").join(irq.to_string()).join("spurious")).ok()?;
        let number = |key| {
            let value = text.lines().find_map(|line| line.strip_prefix(key));
            value.and_then(|value| value.trim().parse().ok())
        };
        Some((number("count ")?, number("unhandled ")?))
    }

    /// xen-pciback's handlers: one line each.
    pub fn irq_handlers(&self) -> io::Result<String> {
        fs::read_to_string(self.pciback().join("irq_handlers"))
    }

    /// Switches xen-pciback's handler for a function on or off.
    pub fn toggle_irq_handler(&self, bdf: Bdf) -> io::Result<()> {
        write(&self.pciback().join("irq_handler_state"), &bdf.to_string())
    }

    fn pciback(&self) -> PathBuf {
        self.root.join("bus/pci/drivers").join(PCIBACK)
    }

    /// Has Linux look for a driver for a function that has none.
    pub fn probe(&self, bdf: Bdf) -> io::Result<()> {
        write(&self.root.join("bus/pci/drivers_probe"), &bdf.to_string())
    }

    fn read(&self, bdf: Bdf, file: &str, what: &'static str) -> Result<String, SysfsError> {
        fs::read_to_string(self.path(bdf, file)).map_err(|source| self.error(bdf, file, what, source))
    }

    fn error(&self, bdf: Bdf, file: &str, what: &'static str, source: io::Error) -> SysfsError {
        SysfsError {
            bdf,
            what,
            path: self.path(bdf, file).display().to_string(),
            source,
        }
    }

    fn path(&self, bdf: Bdf, file: &str) -> PathBuf {
        let device = self.root.join("bus/pci/devices").join(bdf.to_string());
        if file.is_empty() {
            device
        } else {
            device.join(Path::new(file))
        }
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
pub struct Block {
    /// Such as `sda1`.
    pub name: String,
    /// Major and minor number.
    pub number: Option<DeviceNumber>,
    /// The block devices that are made of it.
    pub holders: Vec<Holder>,
}

impl Block {
    /// Its node. Sysfs writes `!` where the name has a slash.
    pub fn node(&self) -> String {
        format!("/dev/{}", self.name.replace('!', "/"))
    }
}

/// A block device that is made of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Such as `dm-0`.
    pub name: String,
    /// Such as `vg-root`.
    pub label: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/dev/{}", self.name)?;
        match &self.label {
            Some(label) => write!(f, " ({label})"),
            None => Ok(()),
        }
    }
}

/// What is in a directory, sorted; nothing if it is not there.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// True if a file says 1.
/// Writes to an attribute. Its file is there, and is not truncated: the service may not create or truncate in sysfs.
fn write(attribute: &Path, text: &str) -> io::Result<()> {
    io::Write::write_all(&mut File::options().write(true).open(attribute)?, text.as_bytes())
}

fn is_one(file: &Path) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.trim() == "1")
}

/// The functions that have an entry in a directory.
fn functions_in(directory: &Path) -> io::Result<Vec<Bdf>> {
    let mut functions = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        functions.extend(name.to_str().and_then(|name| name.parse::<Bdf>().ok()));
    }
    Ok(functions)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A sysfs in a temporary directory.
    pub struct Tree {
        pub directory: tempfile::TempDir,
    }

    impl Tree {
        pub fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            fs::create_dir_all(directory.path().join("bus/pci/devices")).unwrap();
            fs::create_dir_all(directory.path().join("bus/pci/drivers")).unwrap();
            Self { directory }
        }

        pub fn sysfs(&self) -> Sysfs {
            Sysfs::at(self.directory.path())
        }

        pub fn add(&self, bdf: &str, files: &[(&str, &[u8])]) {
            let device = self.device(bdf);
            fs::create_dir_all(&device).unwrap();
            for (name, content) in files {
                fs::write(device.join(name), content).unwrap();
            }
        }

        /// Adds a function below a bridge, as Linux lays that out: the one directory in the other, and a link.
        pub fn add_below(&self, bridge: &str, bdf: &str, files: &[(&str, &[u8])]) {
            let devices = self.directory.path().join("bus/pci/devices");
            let home = fs::canonicalize(devices.join(bridge)).unwrap().join(bdf);
            fs::create_dir_all(&home).unwrap();
            symlink(home, devices.join(bdf)).unwrap();
            self.add(bdf, files);
        }

        /// Makes `virtuals` the virtual functions of `physical`.
        pub fn sriov(&self, physical: &str, virtuals: &[&str]) {
            let devices = self.directory.path().join("bus/pci/devices");
            for (number, name) in virtuals.iter().enumerate() {
                let link = devices.join(physical).join(format!("virtfn{number}"));
                symlink(format!("../{name}"), link).unwrap();
                symlink(format!("../{physical}"), devices.join(name).join("physfn")).unwrap();
            }
        }

        pub fn device(&self, bdf: &str) -> PathBuf {
            self.directory.path().join("bus/pci/devices").join(bdf)
        }

        /// A device of a class, such as `net`, that is the function's; returns its directory.
        pub fn add_class(&self, bdf: &str, class: &str, name: &str, files: &[(&str, &str)]) -> PathBuf {
            let device = self.device(bdf).join(class).join(name);
            fs::create_dir_all(&device).unwrap();
            for (name, content) in files {
                fs::write(device.join(name), content).unwrap();
            }
            let class = self.directory.path().join("class").join(class);
            fs::create_dir_all(&class).unwrap();
            symlink(&device, class.join(name)).unwrap();
            device
        }

        pub fn bind(&self, bdf: &str, driver: &str) {
            let home = self.directory.path().join("bus/pci/drivers").join(driver);
            fs::create_dir_all(&home).unwrap();
            let device = self.device(bdf);
            symlink(home, device.join("driver")).unwrap();
        }

        /// Names the handlers of an interrupt line, separated by commas.
        pub fn handlers(&self, irq: u32, names: &str) {
            let line = self.directory.path().join("kernel/irq").join(irq.to_string());
            fs::create_dir_all(&line).unwrap();
            fs::write(line.join("actions"), format!("{names}\n")).unwrap();
        }
    }

    fn bdf(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    #[test]
    fn functions_are_listed_by_address_and_other_names_are_left_out() {
        let tree = Tree::new();
        tree.add("0000:00:1f.2", &[]);
        tree.add("0000:00:05.0", &[]);
        tree.add("nonsense", &[]);
        let sysfs = tree.sysfs();
        assert_eq!(sysfs.functions().unwrap(), [bdf("00:05.0"), bdf("00:1f.2")]);
        assert!(sysfs.exists(bdf("00:05.0")) && !sysfs.exists(bdf("00:06.0")));
    }

    #[test]
    fn the_bridges_above_a_function_are_told_from_the_nearest_on() {
        let tree = Tree::new();
        tree.add("0000:00:1c.0", &[("msi_bus", b"1\n")]);
        tree.add_below("0000:00:1c.0", "0000:02:01.0", &[("msi_bus", b"0\n")]);
        tree.add_below("0000:02:01.0", "0000:03:00.0", &[]);
        let sysfs = tree.sysfs();
        let above = sysfs.bridges_above(bdf("03:00.0")).unwrap();
        assert_eq!(above, [bdf("02:01.0"), bdf("00:1c.0")]);
        assert_eq!(sysfs.bridges_above(bdf("00:1c.0")).unwrap(), []);
        assert_eq!(sysfs.below(bdf("00:1c.0")).unwrap(), [bdf("02:01.0")]);
        let msi = ["00:1c.0", "02:01.0", "03:00.0"].map(|name| sysfs.msi_below(bdf(name)));
        assert_eq!(msi, [true, false, true]);
    }

    #[test]
    fn errors_are_heard_of_where_a_port_above_has_the_service() {
        let tree = Tree::new();
        tree.add("0000:00:1c.0", &[]);
        tree.add_below("0000:00:1c.0", "0000:02:00.0", &[]);
        tree.add("0000:00:1d.0/0000:00:1d.0:pcie002/driver", &[]);
        let count = (
            "aer_dev_correctable",
            &b"RxErr 2\nBadTLP 1\nTOTAL_ERR_COR 3\n"[..],
        );
        tree.add_below("0000:00:1d.0", "0000:03:00.0", &[count]);
        tree.add_below("0000:03:00.0", "0000:04:00.0", &[]);
        let sysfs = tree.sysfs();
        let heard = ["02:00.0", "03:00.0", "04:00.0", "00:1d.0"].map(|name| sysfs.hears_errors(bdf(name)));
        assert_eq!(heard, [false, true, true, false]);
        assert_eq!(sysfs.correctable_errors(bdf("03:00.0")), Some(3));
        assert_eq!(sysfs.correctable_errors(bdf("02:00.0")), None);
    }

    #[test]
    fn the_driver_is_the_name_of_what_the_link_points_to() {
        let tree = Tree::new();
        tree.add("0000:00:05.0", &[]);
        let sysfs = tree.sysfs();
        assert_eq!(sysfs.driver(bdf("00:05.0")), None);
        assert!(!sysfs.has_pciback());
        tree.bind("0000:00:05.0", "pciback");
        assert_eq!(sysfs.driver(bdf("00:05.0")).as_deref(), Some("pciback"));
        assert!(sysfs.has_pciback());
    }

    #[test]
    fn physical_and_virtual_functions_name_each_other() {
        let tree = Tree::new();
        for name in ["0000:01:00.0", "0000:01:10.0", "0000:01:10.2"] {
            tree.add(name, &[]);
        }
        tree.sriov("0000:01:00.0", &["0000:01:10.0", "0000:01:10.2"]);
        let sysfs = tree.sysfs();
        let virtuals = sysfs.virtual_functions(bdf("01:00.0"));
        assert_eq!(virtuals, [bdf("01:10.0"), bdf("01:10.2")]);
        assert_eq!(sysfs.virtual_functions(bdf("01:10.0")), []);
        let physical = ["01:00.0", "01:10.0", "01:10.2"].map(|name| sysfs.physical_function(bdf(name)));
        assert_eq!(physical, [None, Some(bdf("01:00.0")), Some(bdf("01:00.0"))]);
    }

    #[test]
    fn a_slot_has_the_physical_functions_of_its_device() {
        let tree = Tree::new();
        for name in [
            "0000:01:05.0",
            "0000:01:05.2",
            "0000:01:05.7",
            "0000:01:06.0",
            "0000:02:05.1",
        ] {
            tree.add(name, &[]);
        }
        tree.sriov("0000:01:05.0", &["0000:01:05.7"]);
        let slot_of = |name| tree.sysfs().slot_of(bdf(name));
        assert_eq!(slot_of("01:05.0"), [bdf("01:05.2")]);
        assert_eq!(slot_of("01:05.2"), [bdf("01:05.0")]);
        assert_eq!(slot_of("01:05.7"), [], "virtual");
        assert_eq!(slot_of("01:06.0"), []);
    }

    #[test]
    fn an_interrupt_line_of_0_or_255_is_none() {
        let tree = Tree::new();
        for (name, irq, expected) in [
            ("0000:00:01.0", "16\n", Some(16)),
            ("0000:00:02.0", "0\n", None),
            ("0000:00:03.0", "255\n", None),
            ("0000:00:04.0", "?", None),
        ] {
            tree.add(name, &[("irq", irq.as_bytes())]);
            assert_eq!(tree.sysfs().irq(bdf(name)), expected, "{irq}");
        }
    }

    #[test]
    fn the_users_of_a_line_are_dom0s_drivers_and_not_xen_pciback() {
        let tree = Tree::new();
        let line = tree.directory.path().join("kernel/irq/22");
        fs::create_dir_all(&line).unwrap();
        fs::write(line.join("actions"), "eth0,xen-pciback[0000:00:05.0],ahci\n").unwrap();
        assert_eq!(tree.sysfs().line_users(22), ["eth0", "ahci"]);
        assert_eq!(tree.sysfs().line_users(23), [""; 0]);
    }

    #[test]
    fn the_interrupts_that_nobody_wanted_are_counted_by_line() {
        let tree = Tree::new();
        let line = tree.directory.path().join("proc/irq/22");
        fs::create_dir_all(&line).unwrap();
        fs::write(
            line.join("spurious"),
            "count 1200\nunhandled 1100\nlast_unhandled 4 ms\n",
        )
        .unwrap();
        assert_eq!(tree.sysfs().unwanted_interrupts(22), Some((1200, 1100)));
        assert_eq!(tree.sysfs().unwanted_interrupts(23), None);
    }

    #[test]
    fn the_ways_of_resetting_are_told() {
        let tree = Tree::new();
        tree.add("0000:00:01.0", &[("reset", b""), ("reset_method", b"flr bus\n")]);
        tree.add("0000:00:02.0", &[("reset", b"")]);
        tree.add("0000:00:03.0", &[("reset_method", b"\n")]);
        let methods = |name| tree.sysfs().reset_methods(bdf(name));
        assert_eq!(methods("00:01.0").as_deref(), Some("flr bus"));
        assert_eq!(methods("00:02.0").as_deref(), Some(""));
        assert_eq!(methods("00:03.0"), None);
    }

    #[test]
    fn an_error_names_the_function_the_file_and_the_cause() {
        let tree = Tree::new();
        let error = tree.sysfs().bars(bdf("00:05.0")).unwrap_err();
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(
            text.starts_with("cannot read the address ranges of 0000:00:05.0 ("),
            "{text}"
        );
        assert!(text.contains("bus/pci/devices/0000:00:05.0/resource"), "{text}");
        assert!(text.ends_with("No such file or directory (os error 2)"), "{text}");
    }

    #[test]
    fn attributes_are_neither_created_nor_truncated() {
        let tree = Tree::new();
        let (device, card) = (bdf("00:05.0"), tree.device("0000:00:05.0"));
        let bus = card.parent().unwrap().parent().unwrap().to_owned();
        let pciback = bus.join("drivers/pciback");
        fs::create_dir_all(&pciback).unwrap();
        fs::create_dir_all(&card).unwrap();
        type Write = fn(&Sysfs, Bdf) -> bool;
        let writes: [(PathBuf, Write, &str); 3] = [
            (card.join("reset"), |sysfs, bdf| sysfs.reset(bdf).is_ok(), "1"),
            (
                pciback.join("irq_handler_state"),
                |sysfs, bdf| sysfs.toggle_irq_handler(bdf).is_ok(),
                "0000:00:05.0",
            ),
            (
                bus.join("drivers_probe"),
                |sysfs, bdf| sysfs.probe(bdf).is_ok(),
                "0000:00:05.0",
            ),
        ];
        for (attribute, write, text) in writes {
            assert!(
                !write(&tree.sysfs(), device) && !attribute.exists(),
                "{attribute:?}"
            );
            fs::write(&attribute, "before, and longer").unwrap();
            assert!(write(&tree.sysfs(), device));
            let left = &"before, and longer"[text.len()..];
            assert_eq!(fs::read_to_string(&attribute).unwrap(), format!("{text}{left}"));
        }
    }
}
