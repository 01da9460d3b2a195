//! What `doctor` reads of the host. Nothing is changed.

use super::known::Vendor;
use super::telemetry::TelemetryFacts;
use crate::admission::network::NetworkFiles;
use crate::control::{self, ControlError, Reply, Request};
use crate::host::dmar::Dmar;
use crate::host::ivrs::Ivrs;
use crate::host::mcfg::{self, Mcfg};
use crate::host::pci_ids::PciIds;
use crate::host::sysfs::Sysfs;
use crate::host::systemd;
use crate::host::xl::{self, HostInfo};
use crate::host::{device_names, store};
use crate::status::{self, Status};
use bulkhead_config::declaration::{self, Declaration, Declarations};
use bulkhead_config::policy::{self, Policy};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use xen::xenctrl::Xenctrl;
use xen::{xenctrl, xenlight};

/// What is known about the host. An `Err` says in words why something is not known.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What Xen says of itself and of dom0.
    pub info: Result<HostInfo, String>,
    /// Xen's log.
    pub messages: Result<String, String>,
    /// Whose IOMMU the firmware describes.
    pub vendor: Option<Vendor>,
    /// True if there are virtual functions.
    pub virtual_functions: bool,
    /// Whether configuration space is mapped in memory.
    pub mcfg: Result<(), String>,
    /// Whether Xen's control interface can be used.
    pub xenctrl: Result<(), String>,
    /// Whether libxenlight is there.
    pub xenlight: Result<(), String>,
    /// Whether xenstore answers.
    pub store: Result<(), String>,
    /// The names of the processes that may be xenstored.
    pub xenstored: Option<&'static str>,
    /// The device nodes that are missing.
    pub missing: Vec<&'static Node>,
    /// xen-pciback.
    pub pciback: Module,
    /// True if there is a list of device names.
    pub pci_ids: bool,
    /// The policy file.
    pub policy: Result<PolicyFacts, String>,
    /// The declarations of guests.
    pub declarations: Result<DeclarationFacts, String>,
    /// What stubs with a network need.
    pub telemetry: TelemetryFacts,
    /// True if the stub's image is installed.
    pub image: bool,
    /// True if the stub's configuration for `xl` is installed.
    pub stubdom: bool,
    /// The units, if systemd runs.
    pub units: Option<Units>,
    /// What guests have, and whether the service answers.
    pub service: Result<Status, String>,
    /// Saved guests, of which the next start of the guest makes use.
    pub saved: Vec<Saved>,
}

/// The file of a guest that was saved, or was to be saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The guest's name.
    pub guest: String,
    /// The file.
    pub path: PathBuf,
}

/// A device node of dom0's kernel.
#[derive(Debug, PartialEq, Eq)]
pub struct Node {
    /// Its path.
    pub path: &'static str,
    /// The module that it comes with.
    pub module: &'static str,
    /// What cannot be done without it.
    pub use_for: &'static str,
    /// True if no guest can have devices without it.
    pub is_needed: bool,
}

/// The nodes that are used.
pub const NODES: [Node; 4] = [
    Node {
        path: "/dev/xen/privcmd",
        module: "xen-privcmd",
        use_for: "calls of the hypervisor",
        is_needed: true,
    },
    Node {
        path: "/dev/xen/evtchn",
        module: "xen-evtchn",
        use_for: "events between the service and the stubs",
        is_needed: true,
    },
    Node {
        path: "/dev/xen/gntdev",
        module: "xen-gntdev",
        use_for: "the pages that the service shares with the stubs",
        is_needed: true,
    },
    Node {
        path: "/dev/xen/gntalloc",
        module: "xen-gntalloc",
        use_for: "interrupt lines that a guest shares with dom0",
        is_needed: false,
    },
];

/// A module of dom0's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// It is loaded, or part of the kernel.
    Loaded,
    /// It can be loaded.
    Installed,
    /// The running kernel has none.
    Missing,
}

/// What the policy file says that concerns the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyFacts {
    /// True if there is a file.
    pub exists: bool,
    /// Entries that name what this host does not have, in words.
    pub without_effect: Vec<String>,
    /// True if a device is marked with `seize = true`.
    pub seizes: bool,
}

/// What the declarations of guests say that concerns the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeclarationFacts {
    /// Names or UUIDs of the declared guests.
    pub guests: Vec<String>,
    /// Number of files.
    pub files: usize,
    /// What is wrong with files, in words.
    pub broken: Vec<String>,
    /// Guests with a device that this host does not have.
    pub missing: Vec<(String, String)>,
}

/// How systemd treats the units, in its words, such as `enabled`; `not-found` if a unit is not installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Units {
    /// That of the service.
    pub service: String,
    /// That which seizes devices at boot.
    pub seize: String,
    /// That of Xen's script for guests.
    pub xendomains: String,
    /// The unit of libvirt's whose start stops that script, if it is started at boot or by `virsh`.
    pub libvirt: Option<&'static str>,
}

/// libvirt's units that may stop Xen's script for guests, each with the socket that starts it.
const LIBVIRT: [(&str, &str); 2] = [
    ("libvirtd.service", "libvirtd.socket"),
    ("virtxend.service", "virtxend.socket"),
];

impl Units {
    fn read() -> Self {
        let is_used = |unit: &str| is_enabled(&systemd::enablement(unit));
        let stops_xendomains = |(unit, socket): &&(&str, &str)| {
            systemd::stops(unit, systemd::XENDOMAINS) && (is_used(unit) || is_used(socket))
        };
        Self {
            service: systemd::enablement(systemd::UNIT),
            seize: systemd::enablement(systemd::SEIZE_UNIT),
            xendomains: systemd::enablement(systemd::XENDOMAINS),
            libvirt: LIBVIRT.iter().find(stops_xendomains).map(|(unit, _)| *unit),
        }
    }
}

/// True if a unit starts by itself, by systemd's word.
pub fn is_enabled(word: &str) -> bool {
    matches!(word, "enabled" | "enabled-runtime")
}

/// The stub's configuration for `xl create`.
pub const STUBDOM: &str = "/etc/bulkhead/stubdom.cfg";

impl Facts {
    /// Reads them.
    pub fn read() -> Self {
        let sysfs = Sysfs::host();
        let info = xl::info().map_err(in_words);
        let kernel = info.as_ref().map_or("", |info| info.kernel.as_str());
        Self {
            messages: xl::messages().map_err(in_words),
            vendor: vendor(),
            virtual_functions: sysfs.functions().is_ok_and(|functions| {
                functions
                    .iter()
                    .any(|&bdf| sysfs.physical_function(bdf).is_some())
            }),
            mcfg: mcfg(),
            xenctrl: Xenctrl::open().map(drop).map_err(in_words),
            xenlight: xenlight(),
            store: store::open().map(drop).map_err(in_words),
            xenstored: xenstored(Path::new("/proc")),
            missing: NODES
                .iter()
                .filter(|node| !Path::new(node.path).exists())
                .collect(),
            pciback: if sysfs.has_pciback() {
                Module::Loaded
            } else {
                module(&Path::new("/lib/modules").join(kernel), "xen-pciback")
            },
            pci_ids: !PciIds::read().is_empty(),
            policy: policy(&sysfs),
            declarations: declarations(&sysfs),
            telemetry: TelemetryFacts::of(
                Policy::read(None).ok().as_ref(),
                Declarations::read(Path::new(declaration::DIRECTORY))
                    .ok()
                    .as_ref(),
                Path::new(bulkhead_config::NET_KERNEL),
                &NetworkFiles::default(),
            ),
            image: Path::new(bulkhead_config::KERNEL).is_file(),
            stubdom: Path::new(STUBDOM).is_file(),
            units: systemd::is_booted().then(Units::read),
            service: service(&sysfs),
            saved: SAVES
                .iter()
                .flat_map(|(directory, ending)| saved(Path::new(directory), ending))
                .collect(),
            info,
        }
    }
}

/// An error with its causes.
fn in_words(error: impl Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

fn vendor() -> Option<Vendor> {
    let intel = Dmar::read().map(|_| Vendor::Intel);
    intel.or_else(|| Ivrs::read().map(|_| Vendor::Amd))
}

fn mcfg() -> Result<(), String> {
    let table = fs::read(mcfg::PATH).map_err(|error| format!("cannot read {}: {error}", mcfg::PATH))?;
    Mcfg::parse(&table).map(drop).map_err(in_words)
}

fn xenlight() -> Result<(), String> {
    let version = xenctrl::version().map_err(|error| format!("Xen does not tell its version: {error}"))?;
    xenlight::installed(&version).map(drop).map_err(in_words)
}

/// Where libvirt, and Xen's script `xendomains`, save guests, with the ending of the files' names.
const SAVES: [(&str, &str); 2] = [
    ("/var/lib/libvirt/libxl/save", ".save"),
    ("/var/lib/xen/save", ""),
];

fn saved(directory: &Path, ending: &str) -> Vec<Saved> {
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut saved: Vec<Saved> = files
        .filter_map(|file| {
            let guest = file.file_name().to_str()?.strip_suffix(ending)?.to_owned();
            Some(Saved {
                guest,
                path: file.path(),
            })
        })
        .collect();
    saved.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    saved
}

/// The program that answers for xenstore, by the names of processes. It may also run as a domain, without a process.
fn xenstored(proc: &Path) -> Option<&'static str> {
    let processes = fs::read_dir(proc).into_iter().flatten().flatten();
    let names = processes.filter_map(|process| fs::read_to_string(process.path().join("comm")).ok());
    let names: Vec<String> = names.collect();
    ["oxenstored", "xenstored"]
        .into_iter()
        .find(|wanted| names.iter().any(|name| name.trim() == *wanted))
}

/// Whether a kernel has a module, by the lists in the directory of its modules.
fn module(directory: &Path, name: &str) -> Module {
    let file = format!("/{name}.ko");
    let lists = [
        ("modules.builtin", Module::Loaded),
        ("modules.dep", Module::Installed),
    ];
    let found = lists.into_iter().find(|(list, _)| {
        let list = fs::read_to_string(directory.join(list)).unwrap_or_default();
        // Of each line the first word is the module, and the others are those that it needs.
        list.lines()
            .filter_map(|line| line.split(':').next())
            .any(|line| line.contains(&file))
    });
    found.map_or(Module::Missing, |(_, state)| state)
}

fn policy(sysfs: &Sysfs) -> Result<PolicyFacts, String> {
    let policy = Policy::read(None).map_err(in_words)?;
    let bridges = policy.bridges.iter().map(|bridge| &bridge.address);
    let devices = policy.devices.iter().map(|device| &device.name);
    let missing = |name| {
        // Ids may stand for more than one device, so what counts is whether there is any.
        let functions = sysfs.functions().unwrap_or_default();
        let is_meant = functions
            .into_iter()
            .any(|bdf| device_names::means(name, bdf, sysfs));
        (!is_meant).then(|| format!("{name}, which this host does not have"))
    };
    Ok(PolicyFacts {
        exists: Path::new(policy::PATH).exists(),
        without_effect: bridges.chain(devices).filter_map(missing).collect(),
        seizes: policy.devices.iter().any(|device| device.seize),
    })
}

fn declarations(sysfs: &Sysfs) -> Result<DeclarationFacts, String> {
    let files = Declarations::read(Path::new(declaration::DIRECTORY));
    let files = files.map_err(|error| format!("cannot read {}: {error}", declaration::DIRECTORY))?;
    let mut facts = DeclarationFacts {
        files: files.0.len(),
        ..DeclarationFacts::default()
    };
    for file in &files.0 {
        match &file.declaration {
            Ok(Declaration { guest, devices, .. }) => {
                facts.guests.push(guest.clone());
                let missing = devices
                    .iter()
                    .filter(|wanted| device_names::resolve(&wanted.name, sysfs).is_err());
                facts
                    .missing
                    .extend(missing.map(|wanted| (guest.clone(), wanted.name.to_string())));
            }
            Err(error) => facts.broken.push(error.to_string()),
        }
    }
    Ok(facts)
}

fn service(sysfs: &Sysfs) -> Result<Status, String> {
    match control::ask(Request::Status) {
        Ok(Reply::Status(status)) => Ok(*status),
        Ok(_) => Err("the service's answer does not fit the request: another version of it runs".into()),
        // The records tell whether a guest needs the service.
        Err(ControlError::NotRunning(_)) => {
            let mut store = store::open().map_err(in_words)?;
            status::collect(&mut store, None, sysfs, false, BTreeMap::new()).map_err(in_words)
        }
        Err(error) => Err(in_words(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xenstoreds_kind_is_told_by_the_name_of_its_process() {
        for (name, expected) in [
            ("xenstored\n", Some("xenstored")),
            ("oxenstored\n", Some("oxenstored")),
            ("xenconsoled\n", None),
        ] {
            let proc = tempfile::tempdir().unwrap();
            fs::create_dir(proc.path().join("77")).unwrap();
            fs::write(proc.path().join("77/comm"), name).unwrap();
            fs::write(proc.path().join("uptime"), "1").unwrap();
            assert_eq!(xenstored(proc.path()), expected);
        }
    }

    #[test]
    fn saved_guests_are_known_by_the_names_of_their_files() {
        let directory = tempfile::tempdir().unwrap();
        for file in ["web.save", "mail.xml"] {
            fs::write(directory.path().join(file), "").unwrap();
        }
        let names = |ending| {
            let saved = saved(directory.path(), ending).into_iter();
            saved.map(|saved| saved.guest).collect::<Vec<_>>()
        };
        assert_eq!(names(".save"), ["web"]);
        assert_eq!(names(""), ["mail.xml", "web.save"]);
        assert_eq!(saved(Path::new("/nonexistent"), ""), []);
    }

    #[test]
    fn a_module_is_found_in_the_lists_of_its_kernel_and_not_by_what_needs_it() {
        let directory = tempfile::tempdir().unwrap();
        let found = || module(directory.path(), "xen-pciback");
        assert_eq!(found(), Module::Missing);
        fs::write(
            directory.path().join("modules.dep"),
            "kernel/other.ko: kernel/xen-pciback.ko\n",
        )
        .unwrap();
        assert_eq!(found(), Module::Missing);
        let listed = "kernel/drivers/xen/xen-pciback/xen-pciback.ko.xz:\n";
        fs::write(directory.path().join("modules.dep"), listed).unwrap();
        assert_eq!(found(), Module::Installed);
        fs::write(
            directory.path().join("modules.builtin"),
            "kernel/drivers/xen/xen-pciback/xen-pciback.ko\n",
        )
        .unwrap();
        assert_eq!(found(), Module::Loaded);
    }
}
