//! Why devices cannot be given to a guest, in words.

use crate::host::sysfs::SysfsError;
use pci::bdf::Bdf;
use std::io;
use thiserror::Error;
use xenbus::device::Quirk;

/// Why devices cannot be given to a guest.
#[derive(Debug, Error)]
pub enum Refusal {
    /// A quirk for a register that is not free.
    #[error(
        "{bdf}: quirk {quirk} cannot be had, because the register has rules of its own, or is dom0's or Xen's: take the \
         quirk out (`bulkhead explain {bdf}` shows which bytes are free)"
    )]
    Quirk {
        /// The device.
        bdf: Bdf,
        /// The quirk.
        quirk: Quirk,
    },
    /// The device could not interrupt its guest.
    #[error(
        "{bdf} could not interrupt its guest: {without}, and its INTx line (GSI {gsi}) is shared with {others}, which \
         share-intx=0 forbids: leave share-intx=0 out, or free the line of the others"
    )]
    LineForbidden {
        /// The device.
        bdf: Bdf,
        /// The line.
        gsi: u32,
        /// Who shares it.
        others: String,
        /// Why MSI and MSI-X are no way out.
        without: String,
    },
    /// The same device two times.
    #[error("{bdf} is named twice: name each device once")]
    NamedTwice {
        /// The device.
        bdf: Bdf,
    },
    /// No such device.
    #[error("there is no PCI device {bdf} on this host: `lspci -D` lists those that are")]
    NoDevice {
        /// The device.
        bdf: Bdf,
    },
    /// Xen's interrupt mapping by bus and devfn knows segment 0 only.
    #[error("{bdf} lies in segment {segment:#x}: only devices in segment 0 can be passed through by now", segment = bdf.segment())]
    Segment {
        /// The device.
        bdf: Bdf,
    },
    /// A PCI bridge for a guest with one virtual bus, where nothing is behind it.
    #[error(
        "{bdf} is a PCI bridge: give it with all that is behind it by --slots passthrough, or the devices behind it \
         alone"
    )]
    VirtualBridge {
        /// The bridge.
        bdf: Bdf,
    },
    /// A root port, or a port of a switch.
    #[error(
        "{bdf} is a PCI Express port, whose hotplug and errors the guest's kernel would take over from dom0: give the \
         devices behind it alone"
    )]
    ExpressPort {
        /// The port.
        bdf: Bdf,
    },
    /// A PCI bridge without a device behind it.
    #[error("{bdf} is a PCI bridge, and {other} behind it would stay: give {other} to the guest too")]
    BehindBridge {
        /// The bridge.
        bdf: Bdf,
        /// The device.
        other: Bdf,
    },
    /// A PCI bridge that leaves, and a device behind it that stays.
    #[error(
        "{bdf} is a PCI bridge, and the guest would lose sight of {other} behind it: `bulkhead detach {bdf} {other}` \
         takes both back"
    )]
    BridgeLeaves {
        /// The bridge.
        bdf: Bdf,
        /// The device.
        other: Bdf,
    },
    /// A bridge to what the mainboard is made of, or to CardBus.
    #[error(
        "{bdf} is a bridge (class {class:02x}, header type {kind}) that no guest can have: name a device behind it"
    )]
    Mainboard {
        /// The device.
        bdf: Bdf,
        /// The base class.
        class: u8,
        /// The header type.
        kind: u8,
    },
    /// The device is a part of the mainboard.
    #[error("{bdf} is a part of the mainboard, {what}: it stays in dom0")]
    Chipset {
        /// The device.
        bdf: Bdf,
        /// The part.
        what: &'static str,
    },
    /// The configuration space reads all-ones: the device does not answer.
    #[error("{bdf} does not answer (its configuration space reads all ones): power-cycle the host")]
    Dead {
        /// The device.
        bdf: Bdf,
    },
    /// The device has no ECAM page, from which the stub could read.
    #[error(
        "{bdf} has no memory-mapped configuration space (the ACPI table MCFG has no entry for its bus), \
         and the stub reads nothing else: turn on MMCONFIG in the firmware"
    )]
    NoEcam {
        /// The device.
        bdf: Bdf,
    },
    /// Another guest, or dom0, uses the device.
    #[error("{bdf} is in use {by}: {next}")]
    InUse {
        /// The device.
        bdf: Bdf,
        /// The user, in words.
        by: String,
        /// The next step, in words.
        next: String,
    },
    /// The device is in quarantine.
    #[error(
        "{bdf} is in quarantine, because {reason}: `bulkhead release {bdf}` tries its reset again and frees it if it \
         answers, otherwise power-cycle the host"
    )]
    Quarantined {
        /// The device.
        bdf: Bdf,
        /// The reason, in words.
        reason: String,
    },
    /// A guest that runs may still have its memory mapped.
    #[error(
        "guest {guest}, which had {bdf} until it was detached, runs and may still have its memory mapped: end that guest \
         first, give {bdf} to that guest again, or trust the guest to leave the device alone \
         (`bulkhead release --trusted-guest {bdf}`)"
    )]
    StillMapped {
        /// The device.
        bdf: Bdf,
        /// The guest.
        guest: String,
    },
    /// A physical function that has virtual ones.
    #[error(
        "{bdf} has the virtual functions {list}, which need it and its driver in dom0: give these away, or remove them \
         first (`echo 0 >/sys/bus/pci/devices/{bdf}/sriov_numvfs`){users}",
        list = addresses(virtuals),
        users = users.iter().map(|user| format!("; {user}")).collect::<String>()
    )]
    HasVirtualFunctions {
        /// The device.
        bdf: Bdf,
        /// Its virtual functions.
        virtuals: Vec<Bdf>,
        /// The users of some of them, in words.
        users: Vec<String>,
    },
    /// The physical function of a virtual one is not with its driver in dom0.
    #[error(
        "{bdf} is a virtual function of {physical}, which {by}: it works only while that one is with its driver in dom0"
    )]
    PhysicalFunctionAway {
        /// The device.
        bdf: Bdf,
        /// Its physical function.
        physical: Bdf,
        /// The user of the physical function, in words.
        by: String,
    },
    /// The device shares a page of memory with one that stays elsewhere: access is given by the page.
    #[error(
        "{bdf} shares the 4 KiB page at {address:#x} with {other}, which stays elsewhere, and memory is given away \
         by the page: give both to the guest (--device {bdf} --device {other}), or neither",
        address = frame << 12
    )]
    SharedPage {
        /// The device.
        bdf: Bdf,
        /// The one that it shares with.
        other: Bdf,
        /// The shared machine frame.
        frame: u64,
    },
    /// The IOMMU cannot tell the device's DMA from that of one that stays elsewhere.
    #[error(
        "the IOMMU cannot tell the DMA of {bdf} from that of {other}, which stays elsewhere (they are behind one bridge \
         to conventional PCI): give both to the guest (--device {bdf} --device {other}), or neither"
    )]
    SharedGroup {
        /// The device.
        bdf: Bdf,
        /// The one whose DMA looks the same.
        other: Bdf,
    },
    /// The guest keeps a device whose DMA looks like that of one that leaves.
    #[error(
        "the IOMMU cannot tell the DMA of {bdf} and {other} apart, and the guest would keep the one without its DMA: \
         `bulkhead detach {bdf} {other}` takes both back"
    )]
    GroupStays {
        /// The device that leaves.
        bdf: Bdf,
        /// The one that stays.
        other: Bdf,
    },
    /// The guest keeps access to a page of a device that leaves.
    #[error(
        "{bdf} shares the 4 KiB page at {address:#x} with {other}, which the guest keeps, and memory is taken away by \
         the page: detach both (`bulkhead detach {bdf} {other}`), or neither",
        address = frame << 12
    )]
    PageStays {
        /// The device that is to leave.
        bdf: Bdf,
        /// The one that it shares with.
        other: Bdf,
        /// The shared machine frame.
        frame: u64,
    },
    /// sysfs cannot be read.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// The list of devices cannot be read.
    #[error("cannot list the PCI devices of this host in /sys: is sysfs mounted?")]
    NoSysfs(#[source] io::Error),
}

fn addresses(bdfs: &[Bdf]) -> String {
    let texts: Vec<_> = bdfs.iter().map(Bdf::to_string).collect();
    texts.join(", ")
}

impl Refusal {
    /// The device that is refused; `None` if sysfs is what stands in the way.
    pub fn bdf(&self) -> Option<Bdf> {
        match self {
            Self::NamedTwice { bdf }
            | Self::NoDevice { bdf }
            | Self::Segment { bdf }
            | Self::VirtualBridge { bdf }
            | Self::BehindBridge { bdf, .. }
            | Self::BridgeLeaves { bdf, .. }
            | Self::Mainboard { bdf, .. }
            | Self::Chipset { bdf, .. }
            | Self::Dead { bdf }
            | Self::NoEcam { bdf }
            | Self::InUse { bdf, .. }
            | Self::Quirk { bdf, .. }
            | Self::Quarantined { bdf, .. }
            | Self::StillMapped { bdf, .. }
            | Self::HasVirtualFunctions { bdf, .. }
            | Self::PhysicalFunctionAway { bdf, .. }
            | Self::SharedPage { bdf, .. }
            | Self::SharedGroup { bdf, .. }
            | Self::ExpressPort { bdf, .. }
            | Self::GroupStays { bdf, .. }
            | Self::LineForbidden { bdf, .. }
            | Self::PageStays { bdf, .. } => Some(*bdf),
            Self::Sysfs(error) => Some(error.bdf()),
            Self::NoSysfs(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::sysfs::Sysfs;

    fn bdf(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    /// One of each kind.
    fn all() -> Vec<Refusal> {
        let (bdf, other) = (bdf("0000:03:00.0"), bdf("0000:03:00.1"));
        vec![
            Refusal::Quirk {
                bdf,
                quirk: "10:4:ffffffff".parse().unwrap(),
            },
            Refusal::LineForbidden {
                bdf,
                gsi: 22,
                others: "0000:00:1f.3".into(),
                without: "it has no MSI and no MSI-X".into(),
            },
            Refusal::NamedTwice { bdf },
            Refusal::NoDevice { bdf },
            Refusal::Segment {
                bdf: "0001:03:00.0".parse().unwrap(),
            },
            Refusal::VirtualBridge { bdf },
            Refusal::ExpressPort { bdf },
            Refusal::BehindBridge { bdf, other },
            Refusal::BridgeLeaves { bdf, other },
            Refusal::Mainboard {
                bdf,
                class: 6,
                kind: 0,
            },
            Refusal::Chipset {
                bdf,
                what: "an interrupt controller",
            },
            Refusal::Dead { bdf },
            Refusal::NoEcam { bdf },
            Refusal::InUse {
                bdf,
                by: "by guest web".into(),
                next: "`bulkhead detach 0000:03:00.0` takes it back".into(),
            },
            Refusal::Quarantined {
                bdf,
                reason: "its reset failed".into(),
            },
            Refusal::StillMapped {
                bdf,
                guest: "web".into(),
            },
            Refusal::HasVirtualFunctions {
                bdf,
                virtuals: vec![other, "0000:03:10.0".parse().unwrap()],
                users: vec!["guest web has 0000:03:10.0".into()],
            },
            Refusal::PhysicalFunctionAway {
                bdf,
                physical: other,
                by: "guest web has".into(),
            },
            Refusal::SharedPage {
                bdf,
                other,
                frame: 0xfeb80,
            },
            Refusal::SharedGroup { bdf, other },
            Refusal::GroupStays { bdf, other },
            Refusal::PageStays {
                bdf,
                other,
                frame: 0xfeb80,
            },
            Refusal::Sysfs(Sysfs::at("/sys-is-not-here").open_config(bdf).unwrap_err()),
            Refusal::NoSysfs(io::ErrorKind::NotFound.into()),
        ]
    }

    #[test]
    fn each_refusal_names_the_thing_the_cause_and_the_next_step() {
        let (source, _) = include_str!("refusal.rs").split_once("mod tests").unwrap();
        assert_eq!(
            all().len(),
            source.matches("#[error").count(),
            "one is missing here"
        );
        let texts: Vec<_> = all().iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(texts.join("\n\n"));
    }
}
