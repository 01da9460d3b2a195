//! The machine: QEMU's command line.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::str::FromStr;

use crate::emulator::Version;
use crate::host::Host;

/// Files that QEMU reads and writes, all below its working directory: `-kernel` and `-initrd` split their arguments
/// at spaces and commas, so no name may have any.
pub mod file {
    /// Read: the hypervisor.
    pub const XEN: &str = "xen";
    /// Read: dom0's kernel.
    pub const KERNEL: &str = "vmlinux";
    /// Read: dom0's initial file system.
    pub const INITRD: &str = "initrd";
    /// Read and written: dom0's root file system, if it has one.
    pub const DISK: &str = "root.qcow2";
    /// Read: the disk with further packages, if the script wants any.
    pub const PACKAGES: &str = "packages.img";
    /// Written: output of Xen and dom0 on the serial port.
    pub const SERIAL: &str = "serial";
    /// Written: progress of dom0's init, a line each.
    pub const EVENTS: &str = "events";
    /// Read, a named pipe: the line [`STOP`](super::STOP) ends the script.
    pub const CONTROL: &str = "control";
    /// Written: the script's output.
    pub const OUTPUT: &str = "output";
    /// Written: a tar archive of logs.
    pub const RESULTS: &str = "results.tar";
    /// Created by QEMU, a socket: its monitor (QMP). dom0 injects errors into devices through it.
    pub const MONITOR: &str = "monitor";
    /// Written: QEMU's own messages.
    pub const QEMU_ERRORS: &str = "qemu.stderr";
}

/// Line sent to dom0 when the script's time limit is reached: dom0 ends the script and sends its logs.
pub const STOP: &str = "stop\n";

/// Which xenstored dom0 runs; Debian ships both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Xenstored {
    /// The one in C, the usual one.
    #[default]
    C,
    /// The one in OCaml.
    Ocaml,
}

const XENSTOREDS: [(Xenstored, &str); 2] = [(Xenstored::C, "xenstored"), (Xenstored::Ocaml, "oxenstored")];

impl fmt::Display for Xenstored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = XENSTOREDS.iter().find(|(xenstored, _)| xenstored == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

impl FromStr for Xenstored {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let xenstored = XENSTOREDS.iter().find(|(_, name)| *name == text);
        xenstored
            .map(|(xenstored, _)| *xenstored)
            .ok_or_else(|| format!("no xenstored is called {text}: take xenstored or oxenstored"))
    }
}

/// A PC with a virtual IOMMU that boots Xen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Which QEMU emulates it.
    pub qemu: Version,
    /// QEMU's name of the processor, with features: `qemu64,+rdrand,+svm,+npt` has hardware virtualisation for HVM
    /// guests.
    pub cpu: String,
    /// Physical processors, 1 to 255.
    pub cpus: u8,
    /// Its clocks count instructions, one for each nanosecond, and skip the time in which it idles. Takes one processor.
    pub counts_instructions: bool,
    /// Physical memory in MiB.
    pub memory_mib: u32,
    /// Dom0's memory in MiB.
    pub dom0_memory_mib: u32,
    /// Dom0's virtual processors.
    pub dom0_vcpus: u8,
    /// Which xenstored dom0 runs.
    pub xenstored: Xenstored,
    /// Options to add to Xen's command line.
    pub xen_options: Vec<String>,
    /// Options to add to the command line of dom0's kernel.
    pub dom0_options: Vec<String>,
    /// Arguments of QEMU's `-device`. One with `netdev=NAME` gets a user-mode network of that name that reaches
    /// nothing but its own gateway 10.0.2.2; those whose NAME begins with `wire` are on one network that reaches
    /// nothing but them. One with `drive=NAME` gets a blank disk of that name. `amd-iommu` takes the place of Intel's.
    pub devices: Vec<String>,
}

impl Default for Machine {
    fn default() -> Self {
        Machine {
            qemu: Version::Host,
            cpu: Host::default().cpu().to_owned(),
            cpus: 2,
            counts_instructions: false,
            memory_mib: 2048,
            dom0_memory_mib: 1024,
            dom0_vcpus: 1,
            xenstored: Xenstored::default(),
            xen_options: Vec::new(),
            dom0_options: Vec::new(),
            devices: Vec::new(),
        }
    }
}

/// Size of a blank disk.
pub const DISK_BYTES: u64 = 16 << 20;

impl Machine {
    /// The arguments for QEMU, with `host` as dom0, and with the disk of further packages if `has_packages`. File names are
    /// relative to its working directory.
    pub fn arguments(&self, host: Host, has_packages: bool) -> Vec<OsString> {
        let xen = [
            "console=com1 com1=115200,8n1 loglvl=all guest_loglvl=all".to_owned(),
            format!(
                "dom0_mem={0}M,max:{0}M dom0_max_vcpus={1}",
                self.dom0_memory_mib, self.dom0_vcpus
            ),
        ]
        .into_iter()
        .chain(host.xen_options().iter().map(|option| (*option).to_owned()))
        .chain(self.xen_options.iter().cloned())
        .collect::<Vec<_>>()
        .join(" ");
        let mut dom0 = vec!["console=hvc0".to_owned()];
        if self.xenstored != Xenstored::default() {
            // For dom0's init; the kernel ignores it.
            dom0.push(format!("rig.xenstored={}", self.xenstored));
        }
        dom0.extend_from_slice(&self.dom0_options);
        // A comma separates the modules of a multiboot kernel; two stand for one.
        let dom0 = dom0.join(" ").replace(',', ",,");

        let mut arguments: Vec<String> = Vec::new();
        let mut add = |option: &str, value: String| arguments.extend([format!("-{option}"), value]);
        add("machine", "q35,kernel-irqchip=off".to_owned());
        if self.counts_instructions {
            // QEMU counts with all processors in one thread.
            add("accel", "tcg,thread=single".to_owned());
            add("icount", "shift=0,sleep=off".to_owned());
        } else {
            add("accel", "tcg,thread=multi".to_owned());
        }
        add("cpu", self.cpu.clone());
        add("smp", self.cpus.to_string());
        add("m", self.memory_mib.to_string());
        // QEMU translates only the DMA of devices that come after the IOMMU on the command line.
        let is_iommu = |device: &&String| device.starts_with("amd-iommu");
        let iommu = self.devices.iter().find(is_iommu);
        add(
            "device",
            iommu
                .map_or("intel-iommu,intremap=on,aw-bits=48", String::as_str)
                .to_owned(),
        );
        add("kernel", file::XEN.to_owned());
        add("append", xen);
        add("initrd", format!("{} {dom0},{}", file::KERNEL, file::INITRD));
        add("display", "none".to_owned());
        // A file is appended to, so that it keeps what was written before a reboot.
        add(
            "chardev",
            format!("file,append=on,id=serial,path={}", file::SERIAL),
        );
        add("serial", "chardev:serial".to_owned());
        // A PVH dom0's addresses are valid for the device only behind the IOMMU. virtio bypasses it without these options.
        // No scenario uses the slot 1e.
        let pvh = self.xen_options.iter().any(|option| option.contains("dom0=pvh"));
        let platform = if pvh {
            ",disable-legacy=on,iommu_platform=on"
        } else {
            ""
        };
        add("device", format!("virtio-serial-pci,id=rig,addr=1e{platform}"));
        // The monitor must listen before dom0's port connects to it.
        add(
            "chardev",
            format!("socket,id=qmp,path={},server=on,wait=off", file::MONITOR),
        );
        add("mon", "chardev=qmp,mode=control".to_owned());
        let ports = [
            ("events", "file,append=on", file::EVENTS),
            ("output", "file,append=on", file::OUTPUT),
            ("results", "file,append=on", file::RESULTS),
            ("control", "pipe", file::CONTROL),
            ("monitor", "socket", file::MONITOR),
        ];
        for (nr, (port, kind, path)) in (1..).zip(ports) {
            add("chardev", format!("{kind},id={port},path={path}"));
            add(
                "device",
                format!("virtserialport,bus=rig.0,nr={nr},chardev={port},name=rig.{port}"),
            );
        }
        for name in self.backends("netdev") {
            let kind = if name.starts_with("wire") {
                "hubport,hubid=0"
            } else {
                "user,restrict=on"
            };
            add("netdev", format!("{kind},id={name}"));
        }
        for name in self.backends("drive") {
            add(
                "drive",
                format!("if=none,id={name},format=raw,file={}", disk_file(name)),
            );
        }
        for name in self.backends("audiodev") {
            add("audiodev", format!("none,id={name}"));
        }
        for device in self.devices.iter().filter(|device| !is_iommu(device)) {
            add("device", device.clone());
        }
        if host == Host::Debian {
            // By the serial number the initial file system tells it from other disks. No scenario uses the slot 1d.
            add(
                "drive",
                // Nobody reads the file after a crash of this host.
                format!("if=none,id=root,format=qcow2,cache=unsafe,file={}", file::DISK),
            );
            add(
                "device",
                format!("virtio-blk-pci,drive=root,serial=root,addr=1d{platform}"),
            );
        }
        if has_packages {
            // No scenario uses the slot 1c.
            add(
                "drive",
                format!(
                    "if=none,id=packages,format=raw,readonly=on,file={}",
                    file::PACKAGES
                ),
            );
            add(
                "device",
                format!("virtio-blk-pci,drive=packages,serial=packages,addr=1c{platform}"),
            );
        }
        // Instead of a reboot QEMU ends, so that a crash of Xen ends the run. If a script asked for the reboot, the rig
        // starts QEMU again.
        arguments.extend(["-nodefaults", "-no-reboot"].map(str::to_owned));
        arguments.into_iter().map(OsString::from).collect()
    }

    /// The files of the blank disks. They must exist before QEMU starts.
    pub fn disk_files(&self) -> Vec<String> {
        self.backends("drive").into_iter().map(disk_file).collect()
    }

    /// The values of a property over all devices, each once.
    fn backends(&self, property: &str) -> BTreeSet<&str> {
        self.devices
            .iter()
            .flat_map(|device| device.split(','))
            .filter_map(|pair| pair.split_once('='))
            .filter(|(key, _)| *key == property)
            .map(|(_, name)| name)
            .collect()
    }
}

fn disk_file(name: &str) -> String {
    format!("{name}.img")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(machine: &Machine) -> String {
        let words: Vec<_> = machine
            .arguments(Host::Busybox, false)
            .into_iter()
            .map(|word| word.into_string().expect("text"))
            .collect();
        words.join(" ")
    }

    fn with_devices(devices: &[&str]) -> String {
        let devices = devices.iter().map(|device| (*device).to_owned()).collect();
        arguments(&Machine {
            devices,
            ..Machine::default()
        })
    }

    #[test]
    fn a_netdev_gets_one_network_that_reaches_nothing() {
        let line = with_devices(&["e1000e,netdev=n0,addr=5", "rtl8139,netdev=n1"]);
        assert!(
            line.contains("-netdev user,restrict=on,id=n0 -netdev user,restrict=on,id=n1"),
            "{line}"
        );
        assert!(line.contains("-device e1000e,netdev=n0,addr=5"), "{line}");
    }

    #[test]
    fn two_cards_on_a_wire_reach_each_other_alone() {
        let line = with_devices(&["e1000e,netdev=wire0,addr=5", "e1000,netdev=wire1"]);
        assert!(
            line.contains("-netdev hubport,hubid=0,id=wire0 -netdev hubport,hubid=0,id=wire1"),
            "{line}"
        );
        assert!(!line.contains("user"), "{line}");
    }

    #[test]
    fn a_drive_gets_a_blank_disk() {
        let devices = vec!["nvme,serial=1,drive=d0".to_owned()];
        let machine = Machine {
            devices,
            ..Machine::default()
        };
        assert!(arguments(&machine).contains("-drive if=none,id=d0,format=raw,file=d0.img"));
        assert_eq!(machine.disk_files(), ["d0.img"]);
    }

    #[test]
    fn the_way_to_the_host_leads_through_the_iommu_for_a_pvh_dom0() {
        let with = |option: &str| {
            arguments(&Machine {
                xen_options: vec![option.to_owned()],
                ..Machine::default()
            })
        };
        assert!(
            with("dom0=pvh").contains("virtio-serial-pci,id=rig,addr=1e,disable-legacy=on,iommu_platform=on")
        );
        assert!(!with("loglvl=all").contains("iommu_platform"));
    }

    #[test]
    fn a_debian_host_has_a_disk_that_others_do_not_have() {
        let line = |host| {
            let words = Machine::default().arguments(host, false).into_iter();
            words
                .map(|word| word.into_string().expect("text") + " ")
                .collect::<String>()
        };
        assert!(
            line(Host::Debian)
                .contains("file=root.qcow2 -device virtio-blk-pci,drive=root,serial=root,addr=1d")
        );
        assert!(!line(Host::Busybox).contains("virtio-blk"));
    }

    #[test]
    fn further_packages_are_on_a_disk_that_nobody_writes_to() {
        let words = Machine::default().arguments(Host::Busybox, true);
        let line = words.join(" ".as_ref()).into_string().expect("text");
        assert!(
            line.contains(
                "format=raw,readonly=on,file=packages.img -device virtio-blk-pci,drive=packages,serial=packages"
            ),
            "{line}"
        );
    }

    #[test]
    fn amds_iommu_takes_the_place_of_intels() {
        let line = with_devices(&["edu,addr=6", "amd-iommu,intremap=on"]);
        let at = |device| line.find(device);
        assert!(at("-device amd-iommu,intremap=on") < at("-device edu"), "{line}");
        assert!(!line.contains("intel-iommu"), "{line}");
        assert_eq!(line.matches("amd-iommu").count(), 1);
    }

    #[test]
    fn a_machine_that_counts_instructions_has_one_thread_and_skips_idle_time() {
        let with = |counts_instructions| {
            arguments(&Machine {
                counts_instructions,
                ..Machine::default()
            })
        };
        assert!(with(true).contains("-accel tcg,thread=single -icount shift=0,sleep=off"));
        let usual = with(false);
        assert!(
            usual.contains("thread=multi") && !usual.contains("icount"),
            "{usual}"
        );
    }

    #[test]
    fn a_sound_card_gets_an_output_that_nobody_hears() {
        let line = with_devices(&["AC97,audiodev=a0"]);
        assert!(
            line.contains("-audiodev none,id=a0 -device AC97,audiodev=a0"),
            "{line}"
        );
    }

    #[test]
    fn a_device_without_backend_brings_none() {
        let line = with_devices(&["edu,addr=6"]);
        for backend in ["-netdev", "-drive", "-audiodev"] {
            assert!(!line.contains(backend), "{line}");
        }
    }

    #[test]
    fn every_xenstored_is_found_by_its_name_and_only_the_unusual_one_is_told_to_dom0() {
        for (xenstored, name) in XENSTOREDS {
            assert_eq!(xenstored.to_string(), name);
            assert_eq!(name.parse(), Ok(xenstored));
            let line = arguments(&Machine {
                xenstored,
                ..Machine::default()
            });
            let told = line.contains(&format!("vmlinux console=hvc0 rig.xenstored={name},initrd"));
            assert_eq!(told, xenstored == Xenstored::Ocaml, "{line}");
        }
        assert!("redis".parse::<Xenstored>().is_err());
    }

    #[test]
    fn commas_for_the_kernel_of_dom0_do_not_end_its_command_line() {
        let dom0_options = vec!["xen-pciback.hide=(0000:00:05.0)".into(), "log=a,b".into()];
        let line = arguments(&Machine {
            dom0_options,
            ..Machine::default()
        });
        assert!(
            line.contains("vmlinux console=hvc0 xen-pciback.hide=(0000:00:05.0) log=a,,b,initrd"),
            "{line}"
        );
    }
}
