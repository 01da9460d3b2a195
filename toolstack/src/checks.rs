//! Whether devices can be given to a guest, and what to say if not.
//!
//! Nothing here changes anything: a refusal leaves the host as it was.

use crate::config::register;
use crate::interrupts::msix_entries;
use crate::mcfg::Mcfg;
use crate::record::{self, Attachment, Device, RecordError};
use crate::resources::shared_frame;
use crate::store::{Store, StoreError};
use crate::sysfs::{Sysfs, SysfsError};
use crate::xl::HostInfo;
use std::io;
use thiserror::Error;
use xenbus::bdf::Bdf;
use xenbus::client::Store as _;
use xenbus::device::Ids;

/// Base class of all bridges (PCI Local Bus Specification 3.0, appendix D).
const CLASS_BRIDGE: u8 = 0x06;
/// The pirqs that Xen has for a guest's messages unless `extra_guest_irqs` says otherwise.
const SPARE_PIRQS: u32 = 32;
/// Bit 7 of the header type marks a device with more than one function.
const HEADER_KIND: u8 = 0x7f;

/// Why devices cannot be given to a guest.
#[derive(Debug, Error)]
pub enum Refusal {
    /// Without an IOMMU a guest's DMA reaches all memory.
    #[error(
        "this host has no IOMMU that Xen uses for PV guests (xl info: virt_caps has no pv_directio), so a \
         device's DMA could reach all memory: turn on VT-d or AMD-Vi in the firmware, and boot Xen with iommu=1"
    )]
    NoIommu,
    /// Xen's protection of configuration space is off.
    #[error(
        "Xen was booted with {option}: the stub's configuration page would be writable, past every check. \
         Boot Xen without that option"
    )]
    EcamWritable {
        /// The option.
        option: String,
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
    /// A bridge, to other buses or to what the mainboard is made of.
    #[error("{bdf} is a bridge (class {class:02x}, header type {kind}): name a device behind it")]
    Bridge {
        /// The device.
        bdf: Bdf,
        /// The base class.
        class: u8,
        /// The header type.
        kind: u8,
    },
    /// All ones.
    #[error("{bdf} does not answer (its configuration space reads all ones): power-cycle the host")]
    Dead {
        /// The device.
        bdf: Bdf,
    },
    /// No page to read configuration space from.
    #[error(
        "{bdf} has no memory-mapped configuration space (the ACPI table MCFG has no entry for its bus), \
         and the stub reads nothing else: turn on MMCONFIG in the firmware"
    )]
    NoEcam {
        /// The device.
        bdf: Bdf,
    },
    /// Someone else's.
    #[error("{bdf} is in use {by}: {next}")]
    InUse {
        /// The device.
        bdf: Bdf,
        /// Who has it.
        by: String,
        /// How to get it.
        next: String,
    },
    /// It did not recover from its last guest.
    #[error(
        "{bdf} is in quarantine, because {reason}: power-cycle the host; if you know that the device is sound, \
         lift it with `xenstore-rm {path}`", path = record::quarantine_path(*bdf)
    )]
    Quarantined {
        /// The device.
        bdf: Bdf,
        /// What happened.
        reason: String,
    },
    /// Access is given by the page.
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

/// Something that the administrator should know about devices that can be given away.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Notice {
    /// The line is shared.
    #[error(
        "INTx of {bdf} is withheld, because its interrupt line (GSI {gsi}) is shared with {others}; MSI and MSI-X \
         work"
    )]
    LineWithheld {
        /// The device.
        bdf: Bdf,
        /// The line.
        gsi: u32,
        /// The devices that use it too.
        others: String,
    },
    /// The guest may not get all its vectors.
    #[error(
        "the devices have {vectors} MSI-X vectors in all, and Xen has {SPARE_PIRQS} pirqs for a guest: if the guest's \
         drivers ask for more, boot Xen with extra_guest_irqs={vectors}"
    )]
    ManyVectors {
        /// The sum over the devices.
        vectors: u32,
    },
    /// State survives from guest to guest.
    #[error("{bdf} has no reset that Linux knows: what one guest leaves in it, the next one finds")]
    NoReset {
        /// The device.
        bdf: Bdf,
    },
}

/// Who has a device, and how to get it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The device.
    pub bdf: Bdf,
    /// Such as `by guest web (through stub web-bulkhead)`.
    pub by: String,
    /// What to do about it.
    pub next: String,
}

/// The devices that are taken, by whomever.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// By a guest.
    pub taken: Vec<Claim>,
    /// By nobody, because they did not recover: with the reason.
    pub quarantined: Vec<(Bdf, String)>,
}

/// The claims on devices could not be read.
#[derive(Debug, Error)]
pub enum ClaimsError {
    /// In xenstore.
    #[error("cannot see in xenstore which devices are in use")]
    Store(#[from] StoreError),
    /// In the records.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Where libxl notes the guest of a device: `SSSS-BB-DD-F/domid`.
const LIBXL_DEVICES: &str = "/libxl/pci";
/// Where xen-pciback's devices are: `GUEST/NUMBER/dev-N`.
const PCIBACK_BACKENDS: &str = "/local/domain/0/backend/pci";

impl Claims {
    /// Collects what xenstore says: our records, those of libxl, and the nodes of xen-pciback.
    pub fn read(store: &mut Store) -> Result<Self, ClaimsError> {
        let (attachments, damaged) = Attachment::all(store)?;
        if let Some(error) = damaged.into_iter().next() {
            return Err(error.into());
        }
        let mut taken: Vec<Claim> = attachments.iter().flat_map(attachment_claims).collect();
        for name in record::children(store, LIBXL_DEVICES)? {
            let domid = store.read_optional(&format!("{LIBXL_DEVICES}/{name}/domid"))?;
            taken.extend(
                record::bdf_of(&name)
                    .zip(domid)
                    .map(|(bdf, domid)| xl_claim(bdf, &domid)),
            );
        }
        for guest in record::children(store, PCIBACK_BACKENDS)? {
            for number in record::children(store, &format!("{PCIBACK_BACKENDS}/{guest}"))? {
                let backend = format!("{PCIBACK_BACKENDS}/{guest}/{number}");
                for key in record::children(store, &backend)? {
                    if key.starts_with("dev-") {
                        let bdf = store.read_optional(&format!("{backend}/{key}"))?;
                        let bdf = bdf.and_then(|bdf| bdf.parse().ok());
                        taken.extend(bdf.map(|bdf| xl_claim(bdf, &guest)));
                    }
                }
            }
        }
        let quarantined = record::quarantined(store)?;
        Ok(Self { taken, quarantined })
    }
}

fn attachment_claims(attachment: &Attachment) -> impl Iterator<Item = Claim> {
    let (guest, stub) = (&attachment.guest.name, &attachment.stub.name);
    attachment.bdfs().map(move |bdf| Claim {
        bdf,
        by: format!("by guest {guest} (through stub {stub})"),
        next: format!("`bulkhead detach {bdf}` or `bulkhead destroy {guest}` frees it"),
    })
}

fn xl_claim(bdf: Bdf, domid: &str) -> Claim {
    Claim {
        bdf,
        by: format!("by domain {domid} (through dom0's xen-pciback)"),
        next: format!("`xl pci-detach {domid} {bdf}` frees it"),
    }
}

/// Checks that devices can leave a guest that keeps the devices `kept`.
pub fn check_leaving(leaving: &[Device], kept: &[Device]) -> Result<(), Refusal> {
    for device in leaving {
        for other in kept {
            if let Some(frame) = shared_frame(&device.bars, &other.bars) {
                let (bdf, other) = (device.bdf, other.bdf);
                return Err(Refusal::PageStays { bdf, other, frame });
            }
        }
    }
    Ok(())
}

/// Checks that the host can keep a device's DMA and configuration space apart.
pub fn check_host(host: &HostInfo) -> Result<(), Refusal> {
    if !host
        .capabilities
        .iter()
        .any(|capability| capability == "pv_directio")
    {
        return Err(Refusal::NoIommu);
    }
    const OFF: [&str; 6] = [
        "mmcfg=0",
        "mmcfg=off",
        "mmcfg=no",
        "mmcfg=false",
        "mmcfg=disable",
        "no-mmcfg",
    ];
    let mut options = host.command_line.split_whitespace();
    match options.find(|option| OFF.contains(option)) {
        Some(option) => Err(Refusal::EcamWritable {
            option: option.into(),
        }),
        None => Ok(()),
    }
}

/// Checks that the devices can be given to a guest that has the devices `already`; all that speaks against it is
/// returned.
pub fn check_devices(
    bdfs: &[Bdf],
    already: &[Bdf],
    sysfs: &Sysfs,
    mcfg: &Mcfg,
    claims: &Claims,
) -> Vec<Refusal> {
    let everywhere = match sysfs.functions() {
        Ok(functions) => functions,
        Err(error) => return vec![Refusal::NoSysfs(error)],
    };
    let mut refusals = Vec::new();
    for (index, &bdf) in bdfs.iter().enumerate() {
        if bdfs[..index].contains(&bdf) {
            refusals.push(Refusal::NamedTwice { bdf });
            continue;
        }
        let together = |other: &Bdf| bdfs.contains(other) || already.contains(other);
        let elsewhere = everywhere.iter().copied().filter(|other| !together(other));
        if let Err(refusal) = check_device(bdf, elsewhere, sysfs, mcfg, claims) {
            refusals.push(refusal);
        }
    }
    refusals
}

fn check_device(
    bdf: Bdf,
    elsewhere: impl Iterator<Item = Bdf>,
    sysfs: &Sysfs,
    mcfg: &Mcfg,
    claims: &Claims,
) -> Result<(), Refusal> {
    if !sysfs.exists(bdf) {
        return Err(Refusal::NoDevice { bdf });
    }
    if bdf.segment() != 0 {
        return Err(Refusal::Segment { bdf });
    }
    if let Some(claim) = claims.taken.iter().find(|claim| claim.bdf == bdf) {
        let (by, next) = (claim.by.clone(), claim.next.clone());
        return Err(Refusal::InUse { bdf, by, next });
    }
    if let Some((_, reason)) = claims.quarantined.iter().find(|(other, _)| *other == bdf) {
        let reason = reason.clone();
        return Err(Refusal::Quarantined { bdf, reason });
    }
    let config = sysfs.config_bytes(bdf)?;
    let byte = |at: u16| config.get(usize::from(at)).copied().unwrap_or(0xff);
    if (byte(register::VENDOR), byte(register::VENDOR + 1)) == (0xff, 0xff) {
        return Err(Refusal::Dead { bdf });
    }
    let (class, kind) = (
        byte(register::BASE_CLASS),
        byte(register::HEADER_TYPE) & HEADER_KIND,
    );
    if class == CLASS_BRIDGE || kind != 0 {
        return Err(Refusal::Bridge { bdf, class, kind });
    }
    if mcfg.frame(bdf).is_none() {
        return Err(Refusal::NoEcam { bdf });
    }
    let bars = sysfs.bars(bdf)?;
    for other in elsewhere {
        if let Some(frame) = shared_frame(&bars, &sysfs.bars(other)?) {
            return Err(Refusal::SharedPage { bdf, other, frame });
        }
    }
    Ok(())
}

/// Describes a device for the record. Only of a device that dom0 holds for passthrough, and so has
/// turned on once, the interrupt line is known. `sharers` are those of [`line_sharers`].
pub fn describe(bdf: Bdf, sharers: &[Bdf], sysfs: &Sysfs, mcfg: &Mcfg) -> Result<Device, Refusal> {
    let config = sysfs.config_bytes(bdf)?;
    let word = |at: usize| {
        config
            .get(at..at + 2)
            .and_then(|raw| raw.try_into().ok())
            .map_or(0xffff, u16::from_le_bytes)
    };
    let gsi = line(bdf, sysfs);
    Ok(Device {
        bdf,
        ids: Ids {
            vendor: word(0),
            device: word(2),
        },
        bars: sysfs.bars(bdf)?,
        ecam: mcfg.frame(bdf).ok_or(Refusal::NoEcam { bdf })?,
        gsi,
        line_offered: gsi.is_some() && sharers.is_empty(),
        header: config.into_iter().take(register::HEADER_LENGTH).collect(),
    })
}

/// The devices outside of `together` that use the same interrupt line: those that dom0 has turned on,
/// and those of other guests.
pub fn line_sharers(bdf: Bdf, together: &[Bdf], sysfs: &Sysfs, claims: &Claims) -> Result<Vec<Bdf>, Refusal> {
    let Some(gsi) = line(bdf, sysfs) else {
        return Ok(Vec::new());
    };
    // A device that nobody uses cannot raise its line, and its number in sysfs may be the firmware's
    // guess.
    let in_use = |other| sysfs.is_enabled(other) || claims.taken.iter().any(|claim| claim.bdf == other);
    let mut others = sysfs.functions().map_err(Refusal::NoSysfs)?;
    others.retain(|&other| !together.contains(&other) && in_use(other) && line(other, sysfs) == Some(gsi));
    Ok(others)
}

fn line(bdf: Bdf, sysfs: &Sysfs) -> Option<u32> {
    let config = sysfs.config_bytes(bdf).ok()?;
    let pin = config.get(usize::from(register::INTERRUPT_PIN)).copied()?;
    if pin == 0 { None } else { sysfs.irq(bdf) }
}

/// Describes devices for a guest that has the devices `already`, and what else the administrator should know
/// about them.
pub fn describe_all(
    bdfs: &[Bdf],
    already: &[Bdf],
    sysfs: &Sysfs,
    mcfg: &Mcfg,
    claims: &Claims,
) -> Result<(Vec<Device>, Vec<Notice>), Refusal> {
    let mut devices = Vec::new();
    let mut notices = Vec::new();
    let together = [already, bdfs].concat();
    for &bdf in bdfs {
        let sharers = line_sharers(bdf, &together, sysfs, claims)?;
        let device = describe(bdf, &sharers, sysfs, mcfg)?;
        if let (Some(gsi), false) = (device.gsi, sharers.is_empty()) {
            let others = sharers.iter().map(Bdf::to_string).collect::<Vec<_>>().join(", ");
            notices.push(Notice::LineWithheld { bdf, gsi, others });
        }
        if sysfs.reset_method(bdf).is_none() {
            notices.push(Notice::NoReset { bdf });
        }
        devices.push(device);
    }
    let mut vectors = 0;
    for bdf in together {
        vectors += u32::from(msix_entries(&sysfs.config_bytes(bdf)?));
    }
    if vectors > SPARE_PIRQS {
        notices.push(Notice::ManyVectors { vectors });
    }
    Ok((devices, notices))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::tests::space;
    use crate::store::tests::dom0;
    use crate::sysfs::tests::Tree;
    use xenbus::model::Xenstored;

    const A: &str = "0000:00:05.0";
    const B: &str = "0000:00:06.0";
    const BRIDGE: &str = "0000:00:1c.0";

    fn bdf(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    fn mcfg() -> Mcfg {
        let mut table = b"MCFG\x3c\0\0\0".to_vec();
        table.resize(44, 0);
        table.extend([0, 0, 0, 0xb0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 0, 0, 0, 0]);
        Mcfg::parse(&table).unwrap()
    }

    fn config(header_type: u8, pin: u8, msix_entries: u8) -> Vec<u8> {
        let mut config = space(&[(0x70, 0x11)]);
        config[..4].copy_from_slice(&[0x86, 0x80, 0xd3, 0x10]);
        config[0x0e] = header_type;
        config[0x3d] = pin;
        config[0x72] = msix_entries - 1;
        config
    }

    /// Two devices whose BARs lie in neighbouring pages, and a bridge whose window holds both.
    fn host() -> Tree {
        let tree = Tree::new();
        let devices = [
            (A, "0xfe000000 0xfe0000ff 0x200\n"),
            (B, "0xfe001000 0xfe0010ff 0x200\n"),
        ];
        for (name, resource) in devices {
            let files: [(&str, &[u8]); 5] = [
                ("config", &config(0, 1, 5)),
                ("resource", resource.as_bytes()),
                ("irq", b"20\n"),
                ("enable", b"0\n"),
                ("reset", b""),
            ];
            tree.add(name, &files);
        }
        let window = "0x0 0x0 0x0\n".repeat(7) + "0xfe000000 0xfe0fffff 0x200\n";
        tree.add(
            BRIDGE,
            &[("config", &config(1, 0, 1)), ("resource", window.as_bytes())],
        );
        tree
    }

    fn refusals(tree: &Tree, names: &[&str], claims: &Claims) -> Vec<String> {
        let bdfs: Vec<_> = names.iter().map(|name| bdf(name)).collect();
        let refusals = check_devices(&bdfs, &[], &tree.sysfs(), &mcfg(), claims);
        refusals.iter().map(Refusal::to_string).collect()
    }

    #[test]
    fn sound_devices_are_accepted() {
        assert_eq!(refusals(&host(), &[A, B], &Claims::default()), [""; 0]);
    }

    #[test]
    fn every_refusal_is_told_at_once_and_names_its_device() {
        let tree = host();
        let told = refusals(&tree, &[A, A, "00:07.0", BRIDGE], &Claims::default());
        let beginnings = [
            "0000:00:05.0 is named twice",
            "there is no PCI device 0000:00:07.0",
            "0000:00:1c.0 is a bridge (class 00, header type 1)",
        ];
        assert_eq!(told.len(), beginnings.len(), "{told:?}");
        for (text, beginning) in told.iter().zip(beginnings) {
            assert!(text.starts_with(beginning), "{text}");
        }
    }

    #[test]
    fn a_bridge_of_the_mainboard_is_one_too() {
        let tree = host();
        let mut isa = config(0, 0, 1);
        isa[0x0b] = 0x06;
        tree.add(A, &[("config", &isa)]);
        let told = refusals(&tree, &[A], &Claims::default());
        assert!(
            told[0].starts_with("0000:00:05.0 is a bridge (class 06, header type 0)"),
            "{told:?}"
        );
    }

    #[test]
    fn a_device_outside_segment_0_or_the_mcfg_is_refused() {
        let tree = host();
        for (name, reason) in [
            ("0001:00:05.0", "lies in segment 0x1"),
            ("0000:80:05.0", "has no memory-mapped"),
        ] {
            let files: [(&str, &[u8]); 2] = [("config", &config(0, 1, 5)), ("resource", b"")];
            tree.add(name, &files);
            let told = refusals(&tree, &[name], &Claims::default());
            assert!(told.len() == 1 && told[0].contains(reason), "{told:?}");
        }
    }

    #[test]
    fn a_device_that_does_not_answer_is_refused() {
        let tree = host();
        for content in [&[0xff; 256][..], &[][..]] {
            tree.add(A, &[("config", content)]);
            let told = refusals(&tree, &[A], &Claims::default());
            assert!(told[0].contains("does not answer"), "{told:?}");
        }
    }

    #[test]
    fn a_device_in_use_or_in_quarantine_is_refused_with_the_way_out() {
        let claims = Claims {
            taken: attachment_claims(&record::tests::attachment()).collect(),
            quarantined: vec![(bdf(B), "it did not answer after its reset".into())],
        };
        let told = refusals(&host(), &[A], &claims);
        assert_eq!(
            told,
            [
                "0000:00:05.0 is in use by guest web (through stub web-bulkhead): \
              `bulkhead detach 0000:00:05.0` or `bulkhead destroy web` frees it"
            ]
        );
        let quarantined = Claims {
            taken: vec![],
            ..claims
        };
        let told = refusals(&host(), &[B], &quarantined);
        assert!(
            told[0].contains("because it did not answer after its reset: power-cycle"),
            "{told:?}"
        );
        assert!(
            told[0].ends_with("`xenstore-rm /local/domain/0/bulkhead/quarantine/0000-00-06-0`"),
            "{told:?}"
        );
    }

    #[test]
    fn a_device_of_xls_is_refused_with_xls_way_out() {
        let claims = Claims {
            taken: vec![xl_claim(bdf(A), "7")],
            ..Claims::default()
        };
        assert_eq!(
            refusals(&host(), &[A], &claims),
            [
                "0000:00:05.0 is in use by domain 7 (through dom0's xen-pciback): \
                 `xl pci-detach 7 0000:00:05.0` frees it"
            ]
        );
    }

    #[test]
    fn claims_are_found_wherever_they_are_written_down() {
        let mut store = dom0(&Xenstored::new());
        assert_eq!(Claims::read(&mut store).unwrap(), Claims::default());
        record::tests::attachment().write(&mut store).unwrap();
        record::quarantine(&mut store, bdf("00:0a.0"), "it is mute").unwrap();
        store.write("/libxl/pci/0000-00-08-0/domid", "7").unwrap();
        // What xl leaves behind for a device that is free again.
        store
            .write("/libxl/pci/0000-00-0b-0/driver_path", "/sys/x")
            .unwrap();
        store
            .write("/local/domain/0/backend/pci/9/0/dev-0", "0000:00:09.0")
            .unwrap();
        let claims = Claims::read(&mut store).unwrap();
        let taken: Vec<_> = claims.taken.iter().map(|claim| claim.bdf).collect();
        assert_eq!(taken, [bdf(A), bdf(B), bdf("00:08.0"), bdf("00:09.0")]);
        assert_eq!(claims.quarantined, [(bdf("00:0a.0"), "it is mute".to_owned())]);
    }

    #[test]
    fn a_page_shared_with_a_device_elsewhere_is_refused_and_with_one_of_the_guest_is_not() {
        let tree = host();
        tree.add(B, &[("resource", b"0xfe000800 0xfe0008ff 0x200\n")]);
        let told = refusals(&tree, &[A], &Claims::default());
        assert_eq!(
            told,
            [
                "0000:00:05.0 shares the 4 KiB page at 0xfe000000 with 0000:00:06.0, which stays elsewhere, and memory \
              is given away by the page: give both to the guest (--device 0000:00:05.0 --device 0000:00:06.0), \
              or neither"
            ]
        );
        assert_eq!(refusals(&tree, &[A, B], &Claims::default()), [""; 0]);
    }

    #[test]
    fn what_the_guest_has_already_counts_as_its_own() {
        let tree = host();
        tree.add(B, &[("resource", b"0xfe000800 0xfe0008ff 0x200\n")]);
        let guest = Claims {
            taken: vec![xl_claim(bdf(A), "7")],
            ..Claims::default()
        };
        let refusals =
            |already: &[Bdf]| check_devices(&[bdf(B)], already, &tree.sysfs(), &mcfg(), &guest).len();
        assert_eq!((refusals(&[]), refusals(&[bdf(A)])), (1, 0), "a page");
        let offered = |already: &[Bdf]| {
            let (devices, _) = describe_all(&[bdf(B)], already, &tree.sysfs(), &mcfg(), &guest).unwrap();
            devices[0].line_offered
        };
        assert_eq!((offered(&[]), offered(&[bdf(A)])), (false, true), "a line");
        tree.add(A, &[("config", &config(0, 1, 33))]);
        let (_, notices) = describe_all(&[bdf(B)], &[bdf(A)], &tree.sysfs(), &mcfg(), &guest).unwrap();
        assert_eq!(notices, [Notice::ManyVectors { vectors: 38 }]);
    }

    #[test]
    fn a_device_does_not_leave_while_the_guest_keeps_one_in_the_same_page() {
        let tree = host();
        let describe = |name| describe(bdf(name), &[], &tree.sysfs(), &mcfg()).unwrap();
        assert!(check_leaving(&[describe(A)], &[describe(B)]).is_ok());
        tree.add(B, &[("resource", b"0xfe000800 0xfe0008ff 0x200\n")]);
        let refusal = check_leaving(&[describe(A)], &[describe(B)])
            .unwrap_err()
            .to_string();
        assert!(
            refusal.contains("`bulkhead detach 0000:00:05.0 0000:00:06.0`"),
            "{refusal}"
        );
        assert!(check_leaving(&[describe(A), describe(B)], &[]).is_ok());
    }

    #[test]
    fn a_line_is_shared_with_devices_elsewhere_that_dom0_or_a_guest_uses() {
        let tree = host();
        let sysfs = tree.sysfs();
        let nobody = Claims::default();
        let guest = Claims {
            taken: vec![xl_claim(bdf(B), "7")],
            ..Claims::default()
        };
        let sharers = |together: &[Bdf], claims| line_sharers(bdf(A), together, &sysfs, claims).unwrap();
        assert_eq!(sharers(&[bdf(A)], &nobody), []);
        assert_eq!(sharers(&[bdf(A)], &guest), [bdf(B)]);
        tree.add(B, &[("enable", b"1\n")]);
        assert_eq!(sharers(&[bdf(A)], &nobody), [bdf(B)]);
        assert_eq!(sharers(&[bdf(A), bdf(B)], &nobody), []);
        tree.add(B, &[("irq", b"21\n")]);
        assert_eq!(sharers(&[bdf(A)], &guest), []);
    }

    #[test]
    fn a_description_holds_what_the_stub_and_the_release_need() {
        let tree = host();
        let device = describe(bdf(A), &[], &tree.sysfs(), &mcfg()).unwrap();
        assert_eq!(device.ids.to_string(), "8086:10d3");
        assert_eq!(
            (device.ecam, device.gsi, device.line_offered),
            (0xb0028, Some(20), true)
        );
        assert_eq!(device.header, config(0, 1, 5)[..64]);
        assert!(
            !describe(bdf(A), &[bdf(B)], &tree.sysfs(), &mcfg())
                .unwrap()
                .line_offered
        );
        tree.add(A, &[("config", &config(0, 0, 5))]);
        let without_pin = describe(bdf(A), &[], &tree.sysfs(), &mcfg()).unwrap();
        assert_eq!((without_pin.gsi, without_pin.line_offered), (None, false));
    }

    #[test]
    fn the_administrator_is_told_of_a_withheld_line_many_vectors_and_a_missing_reset() {
        let tree = host();
        tree.add(A, &[("config", &config(0, 1, 33))]);
        tree.add(B, &[("enable", b"1\n")]);
        std::fs::remove_file(
            tree.directory
                .path()
                .join("bus/pci/devices")
                .join(A)
                .join("reset"),
        )
        .unwrap();
        let sysfs = tree.sysfs();
        let (devices, notices) = describe_all(&[bdf(A)], &[], &sysfs, &mcfg(), &Claims::default()).unwrap();
        assert!(!devices[0].line_offered);
        let (a, others) = (bdf(A), "0000:00:06.0".to_owned());
        assert_eq!(
            notices,
            [
                Notice::LineWithheld {
                    bdf: a,
                    gsi: 20,
                    others
                },
                Notice::NoReset { bdf: a },
                Notice::ManyVectors { vectors: 33 },
            ]
        );
    }

    #[test]
    fn a_host_without_an_iommu_or_with_writable_ecam_is_refused() {
        let host = |capabilities: &str, command_line: &str| HostInfo {
            capabilities: capabilities.split(' ').map(str::to_owned).collect(),
            command_line: command_line.into(),
        };
        assert!(check_host(&host("pv hvm pv_directio", "dom0_mem=1G")).is_ok());
        assert!(matches!(
            check_host(&host("pv hvm hvm_directio", "")),
            Err(Refusal::NoIommu)
        ));
        for option in ["mmcfg=0", "mmcfg=off", "no-mmcfg"] {
            let refusal = check_host(&host("pv_directio", &format!("a {option} b"))).unwrap_err();
            assert!(refusal.to_string().contains(option), "{refusal}");
        }
    }
}
