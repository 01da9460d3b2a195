//! The initial file systems of dom0 and of the guest: tables of their files, and the code that builds archives from
//! them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::cpio::Archive;
use crate::elf::{Libraries, needed};
use crate::modules::{self, Modules};
use crate::observer::Observer;
use crate::products::{self, Product};
use crate::store::{read, sha256};

/// Version of the code below. Raise it if the code builds another archive from the same tables.
const FORMAT: u32 = 4;

/// A small file that this crate carries.
#[derive(Debug)]
struct Asset {
    path: &'static str,
    mode: u32,
    content: &'static [u8],
}

macro_rules! assets {
    ($($path:literal $mode:literal $source:literal),* $(,)?) => {
        &[$(Asset { path: $path, mode: $mode, content: include_bytes!(concat!("../rootfs/", $source)) }),*]
    };
}

/// What goes into one initial file system. Programs are looked for below `usr/bin`, `usr/sbin`, their like without
/// `usr`, and the directory of Xen's tools.
#[derive(Debug)]
struct Recipe {
    /// Programs, in addition to busybox.
    programs: &'static [&'static [&'static str]],
    /// Libraries, in addition to those that the programs need. `{xen}` stands for Xen's version.
    libraries: &'static [&'static str],
    /// Directories of files that the programs load at run time. Not all versions of Xen have them.
    plugins: &'static [&'static str],
    modules: &'static [&'static [&'static str]],
    /// Modules that not all kernels have.
    optional_modules: &'static [&'static str],
    directories: &'static [&'static str],
    /// Programs of this workspace, each below a directory of the archive.
    products: &'static [(&'static str, &'static Product)],
    assets: &'static [Asset],
}

/// Drivers of the PCI devices that QEMU can emulate.
const DEVICE_DRIVERS: &[&str] = &[
    "8139cp",
    "8139too",
    "ahci",
    "e1000",
    "e1000e",
    "igb",
    "igbvf",
    "nvme",
    "sd_mod",
    "usb-storage",
    "virtio_blk",
    "virtio_net",
    "virtio_pci",
    "vmxnet3",
    "xhci-pci",
];

/// Drivers of emulated devices that have INTx alone. Only guests get them.
const INTX_DRIVERS: &[&str] = &[
    "e100",
    "ehci-pci",
    "megaraid_sas",
    "mmc_block",
    "ne2k-pci",
    "ohci-pci",
    "pcnet32",
    "sdhci-pci",
    "snd-ens1370",
    "snd-intel8x0",
    "snd-pcm-oss",
    "tulip",
    "uhci-hcd",
];

/// Both dom0 and a guest talk to xenstore and look at PCI devices.
const XENSTORE_PROGRAMS: [&str; 8] = [
    "xenstore-chmod",
    "xenstore-exists",
    "xenstore-list",
    "xenstore-ls",
    "xenstore-read",
    "xenstore-rm",
    "xenstore-watch",
    "xenstore-write",
];
const PCI_PROGRAMS: [&str; 2] = ["lspci", "setpci"];

const DOM0: Recipe = Recipe {
    programs: &[
        &[
            "jq",
            "libxl-save-helper",
            "lsevtchn",
            "oxenstored",
            "xen-hptool",
            "xen-init-dom0",
            "xenconsole",
            "xenconsoled",
            "xenctx",
            "xenstored",
            "xl",
        ],
        &XENSTORE_PROGRAMS,
        &PCI_PROGRAMS,
    ],
    libraries: &[
        // glibc loads it at the first pthread_cancel: without it xl aborts.
        "libgcc_s.so.1",
        // `bulkhead` loads these at run time, and a Rust program of the host may be linked with them.
        "libxencall.so.1",
        "libxenctrl.so.{xen}",
        "libxendevicemodel.so.1",
        "libxenevtchn.so.1",
        "libxenforeignmemory.so.1",
        "libxengnttab.so.1",
        "libxenstore.so.4",
        "libxentoolcore.so.1",
        "libxentoollog.so.1",
        "libdl.so.2",
        "libm.so.6",
        "libpthread.so.0",
        "librt.so.1",
    ],
    // oxenstored's, since Xen 4.20.
    plugins: &["usr/lib/xen-{xen}/ocaml/xsd_glue/xenctrl_plugin"],
    modules: &[
        &[
            "xen-privcmd",
            "xenfs",
            "xen-evtchn",
            "xen-gntdev",
            "xen-gntalloc",
            "xen-pciback",
            "xen-netback",
            "xen-blkback",
            "virtio_console",
        ],
        DEVICE_DRIVERS,
        // For a network of dom0's and its guests' own: a bridge, and raw packets for a DHCP server.
        &["af_packet", "bridge", "dummy", "veth"],
        // For the disk of further packages.
        &["ext4"],
    ],
    // ext4 asks for it by the name of an algorithm. Linux 7 has it in a library.
    optional_modules: &["crc32c_generic"],
    directories: &[
        "etc/xen",
        "proc/xen",
        "rig/guest",
        "root",
        "tmp",
        "var/lib/xen",
        "var/log/xen",
    ],
    products: &[("", &products::GUEST_RUN)],
    assets: assets![
        "init" 0o755 "dom0/init",
        "rig/bin/guest-create" 0o755 "dom0/bin/guest-create",
        "rig/bin/guest-initrd" 0o755 "dom0/bin/guest-initrd",
        "rig/bin/in-packages" 0o755 "dom0/bin/in-packages",
        "rig/bin/qemu-monitor" 0o755 "dom0/bin/qemu-monitor",
        "rig/bin/wait-log" 0o755 "dom0/bin/wait-log",
        "rig/run.sh" 0o644 "dom0/run.sh",
        "etc/passwd" 0o644 "passwd",
        "etc/group" 0o644 "group",
        "etc/machine-id" 0o444 "machine-id",
        "etc/xen/oxenstored.conf" 0o644 "dom0/oxenstored.conf",
        "etc/xen/scripts/vif-bridge" 0o755 "dom0/vif-bridge",
        "etc/xen/xl.conf" 0o644 "dom0/xl.conf",
    ],
};

const GUEST: Recipe = Recipe {
    programs: &[&XENSTORE_PROGRAMS, &PCI_PROGRAMS],
    libraries: &[],
    plugins: &[],
    modules: &[
        &["xen-pcifront", "xen-netfront", "xen-blkfront", "xen-evtchn"],
        DEVICE_DRIVERS,
        INTX_DRIVERS,
    ],
    optional_modules: &[],
    directories: &["root", "tmp", "var/log"],
    products: &[("", &products::GUEST_AGENT)],
    assets: assets![
        "init" 0o755 "guest/init",
        "etc/passwd" 0o644 "passwd",
        "etc/group" 0o644 "group",
    ],
};

/// What boots a Debian host: its initial file system finds the root file system, adds the files of the rig and of the
/// run to it, and starts systemd.
const BOOT: Recipe = Recipe {
    programs: &[],
    libraries: &[],
    plugins: &[],
    modules: &[&["ext4", "virtio_blk", "virtio_console", "virtio_pci"]],
    // ext4 asks for it by the name of an algorithm. Linux 7 has it in a library.
    optional_modules: &["crc32c_generic"],
    directories: &["host"],
    // `overlay` is copied to the root file system.
    products: &[("overlay/", &products::GUEST_RUN)],
    assets: assets![
        "init" 0o755 "debian/init",
        "overlay/etc/systemd/system/rig.service" 0o644 "debian/rig.service",
        "overlay/rig/bin/guest-create" 0o755 "dom0/bin/guest-create",
        "overlay/rig/bin/guest-initrd" 0o755 "dom0/bin/guest-initrd",
        "overlay/rig/bin/in-packages" 0o755 "dom0/bin/in-packages",
        "overlay/rig/bin/qemu-monitor" 0o755 "dom0/bin/qemu-monitor",
        "overlay/rig/bin/wait-log" 0o755 "dom0/bin/wait-log",
        "overlay/rig/run-scenario" 0o755 "debian/run-scenario",
        "overlay/rig/run.sh" 0o644 "dom0/run.sh",
    ],
};

/// The programs of this workspace that go into the initial file systems.
#[derive(Debug)]
pub struct Programs(Vec<(&'static Product, Vec<u8>)>);

impl Programs {
    /// Builds them.
    ///
    /// # Errors
    /// One of them does not compile.
    pub fn build(observer: &mut dyn Observer) -> Result<Programs> {
        let mut built = |product: &'static Product| Ok((product, read(&product.build(observer)?)?));
        let programs = [&products::GUEST_RUN, &products::GUEST_AGENT].map(&mut built);
        programs.into_iter().collect::<Result<_>>().map(Programs)
    }

    /// Changes whenever the archives change of a dom0 that has busybox.
    pub fn fingerprint(&self) -> String {
        self.digest(&[&DOM0, &GUEST])
    }

    /// Changes whenever the archives change of a dom0 that is a Debian host.
    pub fn debian_fingerprint(&self) -> String {
        self.digest(&[&BOOT, &GUEST])
    }

    fn digest(&self, recipes: &[&Recipe]) -> String {
        let programs: Vec<String> = self.0.iter().map(|(_, content)| sha256(content)).collect();
        sha256(format!("{FORMAT} {recipes:?} {programs:?}").as_bytes())
    }

    fn content(&self, product: &Product) -> Result<&[u8]> {
        let found = self.0.iter().find(|(known, _)| std::ptr::eq(*known, product));
        let (_, content) = found.with_context(|| format!("{product:?} was not built"))?;
        Ok(content)
    }
}

/// The unpacked packages of one suite.
#[derive(Debug)]
pub struct Source<'a> {
    root: &'a Path,
    programs: &'a Programs,
    /// Xen's version, as in the names of directories and libraries.
    xen_version: String,
    libraries: Libraries,
    modules: Modules,
}

impl<'a> Source<'a> {
    /// Looks through the packages unpacked in `root`.
    ///
    /// # Errors
    /// There is no kernel or no Xen, or something cannot be read.
    pub fn new(root: &'a Path, programs: &'a Programs) -> Result<Self> {
        Ok(Source {
            root,
            programs,
            xen_version: xen_version(root)?,
            libraries: Libraries::of(root)?,
            modules: Modules::of(root)?,
        })
    }

    /// Debian's kernel, as it is shipped: in `boot`, or among its modules as of Linux 7.
    pub fn kernel(&self) -> PathBuf {
        let version = &self.modules.version;
        let old = self.root.join("boot").join(format!("vmlinuz-{version}"));
        if old.exists() {
            old
        } else {
            self.root.join("usr/lib/modules").join(version).join("vmlinuz")
        }
    }

    /// Debian's Xen, packed with gzip as it is shipped.
    pub fn hypervisor(&self) -> PathBuf {
        self.root
            .join("boot")
            .join(format!("xen-{}-amd64.gz", self.xen_version))
    }

    /// Dom0's initial file system.
    ///
    /// # Errors
    /// Something in the tables is in no package.
    pub fn dom0(&self) -> Result<Vec<u8>> {
        self.build(&DOM0)
    }

    /// The guest's initial file system.
    ///
    /// # Errors
    /// Something in the tables is in no package.
    pub fn guest(&self) -> Result<Vec<u8>> {
        self.build(&GUEST)
    }

    /// The initial file system that boots a Debian host.
    ///
    /// # Errors
    /// Something in the tables is in no package.
    pub fn boot(&self) -> Result<Vec<u8>> {
        self.build(&BOOT)
    }

    fn build(&self, recipe: &Recipe) -> Result<Vec<u8>> {
        let mut archive = Archive::new();
        for top in ["bin", "sbin", "lib", "lib64"] {
            archive.directory(&format!("usr/{top}"));
            archive.link(top, &format!("usr/{top}"));
        }
        archive.directory("run");
        archive.directory("var");
        archive.link("var/run", "/run");
        archive.link("var/lock", "/run/lock");
        for directory in recipe.directories {
            archive.directory(directory);
        }
        for asset in recipe.assets {
            archive.file(asset.path, asset.mode, asset.content);
        }
        for (below, product) in recipe.products {
            let path = format!("{below}{}", product.target());
            archive.file(&path, 0o755, self.programs.content(product)?);
        }
        let mut libraries: Vec<String> = recipe
            .libraries
            .iter()
            .map(|name| name.replace("{xen}", &self.xen_version))
            .collect();
        for name in recipe.programs.concat().iter().chain(&["busybox"]) {
            libraries.extend(self.program(&mut archive, name)?);
        }
        for directory in recipe.plugins {
            let directory = directory.replace("{xen}", &self.xen_version);
            libraries.extend(self.plugins(&mut archive, &directory)?);
        }
        for (name, path) in self.libraries.closure(libraries)? {
            let content = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            archive.file(&format!("usr/lib/x86_64-linux-gnu/{name}"), 0o755, &content);
            if name.starts_with("ld-linux") {
                archive.link(
                    &format!("usr/lib64/{name}"),
                    &format!("../lib/x86_64-linux-gnu/{name}"),
                );
            }
        }
        let mut modules = recipe.modules.concat();
        modules.extend(
            recipe
                .optional_modules
                .iter()
                .filter(|name| self.modules.has(name)),
        );
        let modules = self.modules.closure(&modules)?;
        modules::install(&mut archive, &self.modules, &modules);
        archive.finish()
    }

    /// Adds the files of a directory, if it is there, and gives the libraries they need.
    fn plugins(&self, archive: &mut Archive, directory: &str) -> Result<Vec<String>> {
        let mut libraries = Vec::new();
        let Ok(entries) = fs::read_dir(self.root.join(directory)) else {
            return Ok(libraries);
        };
        let mut names = entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<String>>>()?;
        names.sort();
        for name in names {
            let path = format!("{directory}/{name}");
            let content = fs::read(self.root.join(&path)).with_context(|| format!("reading {path}"))?;
            libraries.extend(needed(&content).with_context(|| path.clone())?);
            archive.file(&path, 0o644, &content);
        }
        Ok(libraries)
    }

    /// Adds a program where its package has it, links it onto the search path, and gives the libraries it needs.
    fn program(&self, archive: &mut Archive, name: &str) -> Result<Vec<String>> {
        let xen_tools = format!("usr/lib/xen-{}/bin", self.xen_version);
        // Xen's directory comes first: usr/sbin has shell scripts of the same names, which look for the running
        // version.
        let directories = [xen_tools.as_str(), "usr/bin", "usr/sbin", "bin", "sbin"];
        let found = directories
            .iter()
            .map(|dir| format!("{dir}/{name}"))
            .find(|path| self.root.join(path).is_file());
        let path = found.with_context(|| format!("no package has the program {name}"))?;
        let content = fs::read(self.root.join(&path)).with_context(|| format!("reading {path}"))?;
        ensure!(
            !content.starts_with(b"#!"),
            "{path} is a script: the image has no interpreter for it"
        );
        archive.file(&path, 0o755, &content);
        if path.starts_with(&xen_tools) {
            archive.link(&format!("usr/sbin/{name}"), &format!("/{path}"));
        }
        needed(&content).with_context(|| path.clone())
    }
}

/// The version of the one hypervisor below an unpacked root: that of `boot/xen-VERSION-amd64.gz`.
fn xen_version(root: &Path) -> Result<String> {
    let boot = root.join("boot");
    let entries = fs::read_dir(&boot).with_context(|| format!("reading {}", boot.display()))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let version = |name: String| Some(name.strip_prefix("xen-")?.strip_suffix("-amd64.gz")?.to_owned());
    let versions: Vec<String> = names.filter_map(version).collect();
    let [version] = &versions[..] else {
        bail!(
            "{} hypervisors below {}: there should be one xen-VERSION-amd64.gz",
            versions.len(),
            boot.display()
        );
    };
    Ok(version.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_xen_is_that_of_the_one_hypervisor() {
        let root = std::env::temp_dir().join(format!("rig-xen-version-{}", std::process::id()));
        let boot = root.join("boot");
        fs::create_dir_all(&boot).expect("writable");
        fs::write(boot.join("vmlinuz-7.2.13+deb14-amd64"), "").expect("writable");
        let none = xen_version(&root).expect_err("there is none");
        assert!(none.to_string().starts_with("0 hypervisors"), "{none}");
        fs::write(boot.join("xen-4.21-amd64.gz"), "").expect("writable");
        fs::write(boot.join("xen-4.21-amd64.config"), "").expect("writable");
        assert_eq!(xen_version(&root).expect("there is one"), "4.21");
        fs::write(boot.join("xen-4.22-amd64.gz"), "").expect("writable");
        assert!(xen_version(&root).is_err());
        fs::remove_dir_all(&root).expect("writable");
    }
}
