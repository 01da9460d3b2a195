//! What Linux's sysfs says about PCI functions, and how it resets them.

use crate::config_space::access::ConfigFile;
use crate::config_space::resources;
use inject::Point;
use pci::bdf::Bdf;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;
use xenbus::device::{Bars, Ids};

pub mod classes;
mod irq;

/// The driver with which dom0 holds a device for passthrough, as sysfs calls it.
pub const PCIBACK: &str = "pciback";

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
    /// `/proc`, which has more about interrupt lines.
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

    /// A sysfs that is mounted elsewhere, with the files of `/proc` in it.
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
        // sysfs lists its entries in no particular order.
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

    /// True if the function is there, and is the one whose directory had this inode. Without an inode any function will do.
    pub fn is_same(&self, bdf: Bdf, inode: Option<u64>) -> bool {
        let found = self.inode(bdf);
        found.is_some() && (inode.is_none() || found == inode)
    }

    /// Vendor and device. Linux knows them of a virtual function too, whose own registers read all-ones.
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
        // The functions end at the host bridge's directory, such as pci0000:00.
        Ok(above.map_while(|name| name.parse().ok()).collect())
    }

    /// False if Linux has turned MSI off for all that is below a bridge.
    pub fn msi_below(&self, bridge: Bdf) -> bool {
        let text = fs::read_to_string(self.path(bridge, "msi_bus"));
        // Linux forbids nothing where the file is missing.
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

/// The entries of a directory, sorted; none if it does not exist.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Writes to an attribute. Its file is there, and is not truncated: the service may not create or truncate in sysfs.
fn write(attribute: &Path, text: &str) -> io::Result<()> {
    io::Write::write_all(&mut File::options().write(true).open(attribute)?, text.as_bytes())
}

/// True if a file says 1.
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

    pub fn bdf(text: &str) -> Bdf {
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
        type WriteAttribute = fn(&Sysfs, Bdf) -> bool;
        let writes: [(PathBuf, WriteAttribute, &str); 3] = [
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
