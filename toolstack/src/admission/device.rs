//! Whether each single device can be given away.

use super::console::{part_of_mainboard, shown_console};
use super::page::page_sharer;
use super::refusal::Refusal;
use super::sriov::check_sriov;
use super::surroundings::Surroundings;
use crate::config_space::capabilities::{Capabilities, port};
use crate::config_space::header;
use crate::host::sysfs::Sysfs;
use pci::bdf::Bdf;
use pci::registers::{header_type, register};
use xenbus::device::SlotMode;

/// Base class of all bridges (PCI Local Bus Specification 3.0, appendix D).
const CLASS_BRIDGE: u8 = 0x06;

/// Checks that the devices can be given to a guest that has the devices `already`, and addresses all in this way; all
/// that speaks against it is returned.
pub fn check_devices(bdfs: &[Bdf], already: &[Bdf], slots: SlotMode, around: &Surroundings) -> Vec<Refusal> {
    let everywhere = match around.sysfs.functions() {
        Ok(functions) => functions,
        Err(error) => return vec![Refusal::NoSysfs(error)],
    };
    let mut refusals = Vec::new();
    for (index, &bdf) in bdfs.iter().enumerate() {
        // Only the second mention is refused.
        if bdfs[..index].contains(&bdf) {
            refusals.push(Refusal::NamedTwice { bdf });
            continue;
        }
        let together = |other: &Bdf| bdfs.contains(other) || already.contains(other);
        let elsewhere = everywhere.iter().copied().filter(|other| !together(other));
        if let Err(refusal) = check_device(bdf, elsewhere, slots, around) {
            refusals.push(refusal);
        }
    }
    refusals
}

fn check_device(
    bdf: Bdf,
    mut elsewhere: impl Iterator<Item = Bdf> + Clone,
    slots: SlotMode,
    around: &Surroundings,
) -> Result<(), Refusal> {
    let (sysfs, claims) = (&around.sysfs, &around.claims);
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
    check_sriov(bdf, claims, sysfs)?;
    if let Some((_, reason)) = claims.quarantined.iter().find(|(other, _)| *other == bdf) {
        let reason = reason.clone();
        return Err(Refusal::Quarantined { bdf, reason });
    }
    if let Some((_, guest)) = claims.mapped.iter().find(|(other, _)| *other == bdf) {
        let guest = guest.name.clone();
        return Err(Refusal::StillMapped { bdf, guest });
    }
    let config = sysfs.config_bytes(bdf)?;
    // A register beyond what can be read counts as all-ones, like one of a device that does not answer.
    let byte = |at: u16| config.get(usize::from(at)).copied().unwrap_or(0xff);
    // The ids of a virtual function read all ones (SR-IOV 1.1, section 3.4.1): its class tells that it is there.
    let telling = if sysfs.physical_function(bdf).is_some() {
        register::CLASS
    } else {
        register::VENDOR
    };
    if (byte(telling), byte(telling + 1)) == (0xff, 0xff) {
        return Err(Refusal::Dead { bdf });
    }
    let (class, kind) = (byte(register::BASE_CLASS), header::kind(&config));
    if kind == header_type::BRIDGE {
        check_bridge(bdf, &config, elsewhere.clone(), slots)?;
    } else if let Some(what) = part_of_mainboard(bdf, sysfs) {
        return Err(Refusal::Chipset { bdf, what });
    } else if class == CLASS_BRIDGE || kind != 0 {
        return Err(Refusal::Mainboard { bdf, class, kind });
    }
    if around.mcfg.frame(bdf).is_none() {
        return Err(Refusal::NoEcam { bdf });
    }
    let used = around.mounts.of(bdf, sysfs);
    if let Some(used) = used.or_else(|| shown_console(bdf, sysfs)) {
        let by = format!("by dom0: {}", used.what);
        let next = used.next;
        return Err(Refusal::InUse { bdf, by, next });
    }
    let group = around.groups.others(bdf);
    if let Some(other) = elsewhere
        .clone()
        // A bridge is in the group of what is behind it, and does no DMA of its own.
        .find(|&other| group.contains(&other) && !is_bridge(other, sysfs))
    {
        return Err(Refusal::SharedGroup { bdf, other });
    }
    let bars = sysfs.bars(bdf)?;
    match page_sharer(&bars, &mut elsewhere, sysfs)? {
        Some((other, frame)) => Err(Refusal::SharedPage { bdf, other, frame }),
        None => Ok(()),
    }
}

/// Checks that a PCI bridge can be given away: with all that is behind it, to a guest that has the buses behind it.
fn check_bridge(
    bdf: Bdf,
    config: &[u8],
    mut elsewhere: impl Iterator<Item = Bdf>,
    slots: SlotMode,
) -> Result<(), Refusal> {
    let kind = Capabilities::find(config).express_kind(config);
    // The guest's kernel would drive the port's slot, which it cannot control (decision 25).
    if let Some(port::ROOT | port::UPSTREAM | port::DOWNSTREAM) = kind {
        return Err(Refusal::ExpressPort { bdf });
    }
    // Linux gives devices behind the bridge no memory on the one virtual bus (decision 22).
    if slots == SlotMode::Vpci {
        return Err(Refusal::VirtualBridge { bdf });
    }
    match elsewhere.find(|&other| header::leads_to(bdf, config, other)) {
        // A guest could stop the DMA of what is behind its bridge (decision 24).
        Some(other) => Err(Refusal::BehindBridge { bdf, other }),
        None => Ok(()),
    }
}

/// A bridge has no DMA of its own that a device behind it could be taken for.
fn is_bridge(bdf: Bdf, sysfs: &Sysfs) -> bool {
    let config = sysfs.config_bytes(bdf).unwrap_or_default();
    config.get(usize::from(register::BASE_CLASS)) == Some(&CLASS_BRIDGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::fixture::{A, B, BRIDGE, around, bdf, config, host};
    use crate::admission::group::Groups;
    use crate::admission::mounts::Mounts;
    use crate::host::sysfs::tests::Tree;
    use crate::records;
    use crate::records::claims::Claims;
    use crate::records::claims::{attachment_claims, xl_claim};

    fn refusals(tree: &Tree, names: &[&str], claims: &Claims) -> Vec<String> {
        let bdfs: Vec<_> = names.iter().map(|name| bdf(name)).collect();
        let refusals = check_devices(&bdfs, &[], SlotMode::Vpci, &around(tree, claims));
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
            "0000:00:1c.0 is a PCI bridge: give it with all that is behind it by --slots passthrough",
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
        for (subclass, expected) in [
            (
                0x00,
                "0000:00:05.0 is a part of the mainboard, the host bridge, by which",
            ),
            (
                0x01,
                "0000:00:05.0 is a part of the mainboard, the bridge to its built-in devices",
            ),
            (0x80, "0000:00:05.0 is a bridge (class 06, header type 0)"),
        ] {
            isa[0x0a..0x0c].copy_from_slice(&[subclass, 0x06]);
            tree.add(A, &[("config", &isa)]);
            let told = refusals(&tree, &[A], &Claims::default());
            assert!(told[0].starts_with(expected), "{told:?}");
        }
    }

    #[test]
    fn a_pci_bridge_goes_in_passthrough_mode_with_all_that_is_behind_it() {
        let tree = host();
        let mut bridge = config(1, 0, 1);
        bridge[0x19..0x1b].copy_from_slice(&[2, 2]);
        tree.add(BRIDGE, &[("config", &bridge)]);
        let behind = "0000:02:01.0";
        let files: [(&str, &[u8]); 2] = [
            ("config", &config(0, 1, 5)),
            ("resource", b"0xfe008000 0xfe00ffff 0x200\n"),
        ];
        tree.add(behind, &files);
        let told = |names: &[&str], already: &[&str], slots| -> Vec<String> {
            let bdfs = |names: &[&str]| names.iter().map(|name| bdf(name)).collect::<Vec<_>>();
            let around = around(&tree, &Claims::default());
            let refusals = check_devices(&bdfs(names), &bdfs(already), slots, &around);
            refusals.iter().map(Refusal::to_string).collect()
        };
        let none: [String; 0] = [];
        assert_eq!(told(&[BRIDGE, behind], &[], SlotMode::Passthrough), none);
        assert_eq!(told(&[BRIDGE], &[behind], SlotMode::Passthrough), none);
        assert_eq!(told(&[behind], &[], SlotMode::Vpci), none);
        let alone = told(&[BRIDGE, A], &[], SlotMode::Passthrough);
        assert!(
            alone.len() == 1 && alone[0].contains("give 0000:02:01.0 to the guest too"),
            "{alone:?}"
        );
        let on_one_bus = told(&[BRIDGE, behind], &[], SlotMode::Vpci);
        assert!(on_one_bus[0].contains("--slots passthrough"), "{on_one_bus:?}");
    }

    #[test]
    fn a_pci_express_port_is_refused_and_a_bridge_from_express_to_conventional_pci_is_not() {
        let tree = host();
        let around = around(&tree, &Claims::default());
        for kind in 4..=8 {
            let mut bridge = config(1, 0, 1);
            bridge[0x34] = 0x50;
            bridge[0x50..0x54].copy_from_slice(&[0x10, 0, kind << 4 | 2, 0]);
            tree.add(BRIDGE, &[("config", &bridge)]);
            let refusals = check_devices(&[bdf(BRIDGE)], &[], SlotMode::Passthrough, &around);
            let port = refusals
                .iter()
                .any(|refusal| refusal.to_string().contains("PCI Express port"));
            assert_eq!(port, kind < 7, "{kind}: {refusals:?}");
        }
    }

    #[test]
    fn a_part_of_the_mainboard_and_the_display_of_dom0s_console_stay_in_dom0() {
        let tree = host();
        let mut smbus = config(0, 0, 1);
        smbus[0x0a..0x0c].copy_from_slice(&[0x05, 0x0c]);
        tree.add(A, &[("config", &smbus)]);
        tree.add_class(B, "graphics", "fb0", &[]);
        let console = tree.directory.path().join("class/vtconsole/vtcon1");
        std::fs::create_dir_all(&console).unwrap();
        std::fs::write(console.join("name"), "(M) frame buffer device\n").unwrap();
        std::fs::write(console.join("bind"), "1\n").unwrap();
        let told = refusals(&tree, &[A, B], &Claims::default());
        assert_eq!(
            told,
            [
                "0000:00:05.0 is a part of the mainboard, the bus of its memory modules, sensors and voltage regulators: \
                 it stays in dom0",
                "0000:00:06.0 is in use by dom0: its frame buffer fb0 shows dom0's console: \
                 `echo 0 >/sys/class/vtconsole/vtcon1/bind` frees it",
            ]
        );
    }

    #[test]
    fn a_cardbus_bridge_is_refused_in_either_mode() {
        let tree = host();
        tree.add(BRIDGE, &[("config", &config(2, 0, 1))]);
        let around = around(&tree, &Claims::default());
        for slots in [SlotMode::Vpci, SlotMode::Passthrough] {
            let refusals = check_devices(&[bdf(BRIDGE)], &[], slots, &around);
            assert!(
                refusals[0]
                    .to_string()
                    .contains("header type 2) that no guest can have")
            );
        }
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
            taken: attachment_claims(&records::tests::attachment()).collect(),
            quarantined: vec![(bdf(B), "it did not answer after its reset".into())],
            ..Claims::default()
        };
        let told = refusals(&host(), &[A], &claims);
        assert_eq!(
            told,
            [
                "0000:00:05.0 is in use by guest web (through stub web-bulkhead): \
              `bulkhead detach 0000:00:05.0` or `bulkhead destroy web` frees it"
            ]
        );
        // For a later start that does not matter.
        let mut later = claims.clone();
        later.set_aside(&[bdf(A)]);
        assert_eq!(refusals(&host(), &[A], &later), [""; 0]);
        let quarantined = Claims {
            taken: vec![],
            ..claims
        };
        let told = refusals(&host(), &[B], &quarantined);
        assert!(
            told[0].contains("because it did not answer after its reset: `bulkhead release 0000:00:06.0`"),
            "{told:?}"
        );
    }

    #[test]
    fn a_device_that_a_living_guest_may_have_mapped_goes_to_that_guest_or_to_none() {
        let mut claims = Claims {
            mapped: vec![(bdf(A), records::tests::domain(3, "web"))],
            ..Claims::default()
        };
        let told = refusals(&host(), &[A, B], &claims);
        assert_eq!(
            told,
            [
                "guest web, which had 0000:00:05.0 until it was detached, runs and may still have its memory mapped: end \
                 that guest first, give 0000:00:05.0 to that guest again, or trust the guest to leave the device alone \
                 (`bulkhead release --trusted-guest 0000:00:05.0`)"
            ]
        );
        claims.forgive(3);
        assert_eq!(refusals(&host(), &[A, B], &claims), [""; 0]);
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
    fn a_page_shared_with_what_the_guest_has_already_is_no_obstacle() {
        let tree = host();
        tree.add(B, &[("resource", b"0xfe000800 0xfe0008ff 0x200\n")]);
        let guest = Claims {
            taken: vec![xl_claim(bdf(A), "7")],
            ..Claims::default()
        };
        let refusals =
            |already: &[Bdf]| check_devices(&[bdf(B)], already, SlotMode::Vpci, &around(&tree, &guest)).len();
        assert_eq!((refusals(&[]), refusals(&[bdf(A)])), (1, 0));
    }

    #[test]
    fn a_device_that_dom0_uses_is_refused_with_the_way_to_free_it() {
        let tree = host();
        tree.add_class(A, "net", "eth0", &[("flags", "0x1003\n")]);
        tree.add_class(B, "block", "sda1", &[]);
        let mut around = around(&tree, &Claims::default());
        around.mounts = Mounts::parse("30 28 8:1 / /mnt rw - ext4 /dev/sda1 rw\n", "").with_answers(&[]);
        let refusals = check_devices(&[bdf(A), bdf(B)], &[], SlotMode::Vpci, &around);
        let told: Vec<_> = refusals.iter().map(Refusal::to_string).collect();
        assert_eq!(
            told,
            [
                "0000:00:05.0 is in use by dom0: its interface eth0 is up: `ip link set eth0 down` frees it",
                "0000:00:06.0 is in use by dom0: /dev/sda1 is mounted on /mnt: `umount /mnt` frees it",
            ]
        );
    }

    #[test]
    fn devices_whose_dma_cannot_be_told_apart_go_together_or_not_at_all() {
        let tree = host();
        let xen = xen::model::Xen::default();
        for name in [A, B, BRIDGE] {
            xen.put_in_group(0, bdf(name));
        }
        let mut bridge = config(1, 0, 1);
        bridge[0x0b] = 0x06;
        tree.add(BRIDGE, &[("config", &bridge)]);
        let nobody = Claims::default();
        let mut around = around(&tree, &nobody);
        around.groups = Groups::read(&xen, &[bdf(A), bdf(B)], &nobody).unwrap();
        let refusals = check_devices(&[bdf(A)], &[], SlotMode::Vpci, &around);
        let text = refusals[0].to_string();
        assert!(
            text.contains("cannot tell the DMA of 0000:00:05.0 from that of 0000:00:06.0"),
            "{text}"
        );
        assert!(check_devices(&[bdf(A), bdf(B)], &[], SlotMode::Vpci, &around).is_empty());
        assert!(check_devices(&[bdf(A)], &[bdf(B)], SlotMode::Vpci, &around).is_empty());
    }
}
