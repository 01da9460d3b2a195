//! Describes devices for the record, and collects what the administrator should know about them.

use super::acs::without_acs;
use super::console::has_only_keyboard;
use super::line::{Offer, check_lines, line_sharers};
use super::refusal::Refusal;
use super::surroundings::Surroundings;
use crate::config_space::interrupts::msix_entries;
use crate::handover::idle_intx;
use crate::handover::intx_lines::{Sharers, line, line_is_known};
use crate::handover::reset::{Method, Plan};
use crate::host::sysfs::Sysfs;
use crate::records::Device;
use crate::terms::{Msi, Terms};
use pci::bdf::Bdf;
use pci::registers::register;
use thiserror::Error;

/// Something that the administrator should know about devices that can be given away.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Notice {
    /// The line is shared.
    #[error(
        "INTx of {bdf} is withheld, because its interrupt line (GSI {gsi}) is shared with {others}; MSI and MSI-X \
         work. `share-intx=1` gives it all the same"
    )]
    LineWithheld {
        /// The device.
        bdf: Bdf,
        /// The line.
        gsi: u32,
        /// The devices that use it too.
        others: String,
    },
    /// The device cannot interrupt.
    #[error(
        "{bdf} has no interrupts for its guest: MSI is off ({rule}), and it has no INTx line that could be given"
    )]
    NoInterrupts {
        /// The device.
        bdf: Bdf,
        /// The rule that turned MSI off.
        rule: String,
    },
    /// The line is shared, and given all the same.
    #[error(
        "INTx of {bdf} is given although its interrupt line (GSI {gsi}) is shared with {others}, because {why}: each \
         side sees the other's interrupts, and one that does not let go of the line stops both{answer}"
    )]
    LineShared {
        /// The device.
        bdf: Bdf,
        /// The line.
        gsi: u32,
        /// The devices that use it too.
        others: String,
        /// Why it is given.
        why: &'static str,
        /// A remark that dom0 answers for the line, or nothing.
        answer: &'static str,
    },
    /// A function that nobody drives asserts INTx.
    #[error(
        "{idle} has no driver and asserts INTx, maybe on the line of {bdf}: its INTx is disabled as long as a guest has \
         that line"
    )]
    IdleAsserts {
        /// The device.
        bdf: Bdf,
        /// The function without a driver.
        idle: Bdf,
    },
    /// The guest may not get all its vectors.
    #[error(
        "the devices have {vectors} MSI-X vectors in all, and Xen has {spare} pirqs for a guest: if the guest's \
         drivers ask for more, boot Xen with extra_guest_irqs={vectors}"
    )]
    ManyVectors {
        /// The sum over the devices.
        vectors: u32,
        /// The pirqs that Xen allows a guest.
        spare: u32,
    },
    /// State survives from guest to guest.
    #[error(
        "{bdf} has no reset method{why}: what a guest leaves in its registers stays there, for the next guest and for \
         dom0",
        why = blocked(blocked_by)
    )]
    NoReset {
        /// The device.
        bdf: Bdf,
        /// The devices without which its bus could be reset.
        blocked_by: Vec<Bdf>,
    },
    /// DMA may pass the IOMMU.
    #[error(
        "{bdf} may reach other devices by DMA, and they it, past the IOMMU: ACS is missing or off in {at}. Unless the \
         hardware keeps them apart by other means, give the other devices of {at} to the same guest, or trust its guest",
        at = names(at)
    )]
    NoAcs {
        /// The device.
        bdf: Bdf,
        /// The functions that may pass DMA on.
        at: Vec<Bdf>,
    },
    /// The host loses its display.
    #[error(
        "{bdf} is the display that this host booted with: without it the host is reached by network or serial line only"
    )]
    BootDisplay {
        /// The device.
        bdf: Bdf,
    },
    /// The host loses its keyboard.
    #[error(
        "behind {bdf} is the only keyboard of dom0's console: without it the host is reached by network or serial line \
         only"
    )]
    OnlyKeyboard {
        /// The device.
        bdf: Bdf,
    },
    /// Only a part of a multi-function device is the guest's.
    #[error(
        "{bdf} comes without {others} of its slot, so its reset ({method}) is of this function alone: what they share \
         keeps its state"
    )]
    PartOfSlot {
        /// The device.
        bdf: Bdf,
        /// The other functions, separated by commas.
        others: String,
        /// The reset method.
        method: Method,
    },
}

impl Notice {
    /// The device that it is about; `None` if it is about all of them.
    pub fn bdf(&self) -> Option<Bdf> {
        match *self {
            Self::LineWithheld { bdf, .. }
            | Self::LineShared { bdf, .. }
            | Self::IdleAsserts { bdf, .. }
            | Self::NoInterrupts { bdf, .. }
            | Self::NoReset { bdf, .. }
            | Self::NoAcs { bdf, .. }
            | Self::BootDisplay { bdf }
            | Self::OnlyKeyboard { bdf }
            | Self::PartOfSlot { bdf, .. } => Some(bdf),
            Self::ManyVectors { .. } => None,
        }
    }

    /// True if it is about who shares the interrupt line.
    pub fn is_about_line(&self) -> bool {
        matches!(self, Self::LineWithheld { .. } | Self::LineShared { .. })
    }
}

fn blocked(by: &[Bdf]) -> String {
    if by.is_empty() {
        String::new()
    } else {
        format!(" (a reset of its bus would hit {} too)", names(by))
    }
}

fn names(bdfs: &[Bdf]) -> String {
    bdfs.iter().map(Bdf::to_string).collect::<Vec<_>>().join(", ")
}

/// The notice about a device's INTx line, if there is one.
fn about_line(device: &Device, offer: Offer, sharers: &Sharers) -> Option<Notice> {
    let (bdf, gsi, others) = (device.bdf, device.gsi?, sharers.to_string());
    let why = match offer {
        Offer::Withheld => return Some(Notice::LineWithheld { bdf, gsi, others }),
        Offer::Shared => "share-intx=1 says so",
        Offer::OnlyInterrupt => "its guest can have no other interrupts from it",
        Offer::NoLine | Offer::Alone | Offer::Forbidden => return None,
    };
    let answer = if sharers.include_dom0() {
        "; dom0 answers for it"
    } else {
        ""
    };
    Some(Notice::LineShared {
        bdf,
        gsi,
        others,
        why,
        answer,
    })
}

/// The functions without a driver that may hold the line of a device down.
fn about_idle(device: &Device, together: &[Bdf], around: &Surroundings) -> Result<Vec<Notice>, Refusal> {
    if !device.line_offered {
        return Ok(Vec::new());
    }
    let (bdf, sysfs) = (device.bdf, &around.sysfs);
    // An unknown line may be any, so every function that asserts INTx counts.
    let gsi = device.gsi.filter(|_| line_is_known(bdf, sysfs));
    let idle = idle_intx::asserting(gsi, together, &around.claims, sysfs).map_err(Refusal::NoSysfs)?;
    let notices = idle.into_iter().map(|idle| Notice::IdleAsserts { bdf, idle });
    Ok(notices.collect())
}

/// The notice about a device's reset, for a guest that has the devices `together`.
fn about_reset(bdf: Bdf, together: &[Bdf], sysfs: &Sysfs) -> Option<Notice> {
    let plan = Plan::of(bdf, sysfs);
    let Some(method) = plan.used() else {
        let blocked_by = plan.blocked_by().to_vec();
        return Some(Notice::NoReset { bdf, blocked_by });
    };
    let mut others = sysfs.slot_of(bdf);
    others.retain(|other| !together.contains(other));
    // A reset of one function leaves alone what all functions of a card share.
    (!others.is_empty()).then(|| Notice::PartOfSlot {
        bdf,
        others: names(&others),
        method,
    })
}

/// Notices about what the host loses without the device, and what the device may reach past the IOMMU.
fn about_host(bdf: Bdf, sysfs: &Sysfs) -> Vec<Notice> {
    let at = without_acs(bdf, sysfs);
    let notices = [
        (!at.is_empty()).then_some(Notice::NoAcs { bdf, at }),
        sysfs.is_boot_display(bdf).then_some(Notice::BootDisplay { bdf }),
        has_only_keyboard(bdf, sysfs).then_some(Notice::OnlyKeyboard { bdf }),
    ];
    notices.into_iter().flatten().collect()
}

/// Describes a device for the record. Only of a device that dom0 holds for passthrough, and so has
/// turned on once, the interrupt line is known. `offer` is what becomes of that.
pub fn describe(bdf: Bdf, terms: &Terms, offer: Offer, around: &Surroundings) -> Result<Device, Refusal> {
    let sysfs = &around.sysfs;
    let config = sysfs.config_bytes(bdf)?;
    Ok(Device {
        bdf,
        ids: sysfs.ids(bdf)?,
        bars: sysfs.bars(bdf)?,
        ecam: around.mcfg.frame(bdf).ok_or(Refusal::NoEcam { bdf })?,
        gsi: line(bdf, sysfs),
        line_offered: offer.is_given(),
        // The header as it is before the guest gets the device: resets restore it.
        header: config.into_iter().take(register::HEADER_LENGTH).collect(),
        terms: terms.clone(),
        physical: sysfs.physical_function(bdf),
        inode: sysfs.inode(bdf),
    })
}

/// Describes devices, each with its terms, for a guest that has the devices `already`, and what else the administrator
/// should know about them.
pub fn describe_all(
    wanted: &[(Bdf, &Terms)],
    already: &[Bdf],
    around: &Surroundings,
) -> Result<(Vec<Device>, Vec<Notice>), Refusal> {
    let mut devices = Vec::new();
    let mut notices = Vec::new();
    let bdfs: Vec<Bdf> = wanted.iter().map(|&(bdf, _)| bdf).collect();
    let together = [already, &bdfs].concat();
    // This check is repeated here: the lines are known only now, after dom0 has turned the devices on.
    if let Some(refusal) = check_lines(wanted, already, around).into_iter().next() {
        return Err(refusal);
    }
    for &(bdf, terms) in wanted {
        let sharers = line_sharers(bdf, &together, around)?;
        let offer = Offer::decide(bdf, terms, &sharers, &around.sysfs)?;
        let device = describe(bdf, terms, offer, around)?;
        if let (Msi::Off(rule), false) = (&terms.msi, device.line_offered) {
            let rule = rule.clone();
            notices.push(Notice::NoInterrupts { bdf, rule });
        }
        notices.extend(about_line(&device, offer, &sharers));
        notices.extend(about_idle(&device, &together, around)?);
        notices.extend(about_reset(bdf, &together, &around.sysfs));
        notices.extend(about_host(bdf, &around.sysfs));
        devices.push(device);
    }
    let mut vectors = 0;
    let off = |bdf| {
        wanted
            .iter()
            .any(|&(other, terms)| other == bdf && !terms.msi.is_on())
    };
    // The guest's earlier devices count too: the pirqs are per guest.
    for bdf in together.into_iter().filter(|&bdf| !off(bdf)) {
        vectors += u32::from(msix_entries(&around.sysfs.config_bytes(bdf)?));
    }
    let spare = around.spare_pirqs;
    if vectors > spare {
        notices.push(Notice::ManyVectors { vectors, spare });
    }
    Ok((devices, notices))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::fixture::{A, B, add_function, around, bdf, config, host};
    use crate::host::sysfs::tests::Tree;
    use crate::records::claims::Claims;
    use crate::records::claims::xl_claim;

    #[test]
    fn what_the_guest_has_already_counts_as_its_own() {
        let tree = host();
        let guest = Claims {
            taken: vec![xl_claim(bdf(A), "7")],
            ..Claims::default()
        };
        let offered = |already: &[Bdf]| {
            let (devices, _) =
                describe_all(&[(bdf(B), &Terms::default())], already, &around(&tree, &guest)).unwrap();
            devices[0].line_offered
        };
        assert_eq!((offered(&[]), offered(&[bdf(A)])), (false, true), "a line");
        tree.add(A, &[("config", &config(0, 1, 33))]);
        let usual = Terms::default();
        let (_, notices) = describe_all(&[(bdf(B), &usual)], &[bdf(A)], &around(&tree, &guest)).unwrap();
        let many = Notice::ManyVectors {
            vectors: 38,
            spare: 32,
        };
        assert_eq!(notices, [many]);
    }

    #[test]
    fn a_description_holds_what_the_stub_and_the_release_need() {
        let tree = host();
        let around = around(&tree, &Claims::default());
        let described = |offer| describe(bdf(A), &Terms::default(), offer, &around).unwrap();
        let device = described(Offer::Alone);
        assert_eq!(device.ids.to_string(), "8086:10d3");
        assert_eq!(
            (device.ecam, device.gsi, device.line_offered),
            (0xb0028, Some(20), true)
        );
        assert_eq!(device.header, config(0, 1, 5)[..64]);
        assert_eq!(device.inode, tree.sysfs().inode(bdf(A)));
        assert!(device.inode.is_some() && !described(Offer::Withheld).line_offered);
        tree.add(A, &[("config", &config(0, 0, 5))]);
        let without_pin = described(Offer::NoLine);
        assert_eq!((without_pin.gsi, without_pin.line_offered), (None, false));
    }

    #[test]
    fn the_administrator_is_told_of_a_withheld_line_many_vectors_and_a_missing_reset() {
        let tree = host();
        tree.add(A, &[("config", &config(0, 1, 33))]);
        dom0_uses(&tree);
        std::fs::remove_file(
            tree.directory
                .path()
                .join("bus/pci/devices")
                .join(A)
                .join("reset"),
        )
        .unwrap();
        let around = around(&tree, &Claims::default());
        let usual = Terms::default();
        let (devices, notices) = describe_all(&[(bdf(A), &usual)], &[], &around).unwrap();
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
                Notice::NoReset {
                    bdf: a,
                    blocked_by: vec![]
                },
                Notice::ManyVectors {
                    vectors: 33,
                    spare: 32
                },
            ]
        );
    }

    #[test]
    fn a_device_whose_msi_is_off_needs_no_pirqs_and_must_have_a_line() {
        let tree = host();
        let around = around(&tree, &Claims::default());
        tree.add(A, &[("config", &config(0, 0, 33))]);
        let terms = Terms {
            msi: Msi::Off("policy.toml, all devices".into()),
            ..Terms::default()
        };
        let (_, notices) = describe_all(&[(bdf(A), &terms)], &[], &around).unwrap();
        let rule = "policy.toml, all devices".into();
        assert_eq!(notices, [Notice::NoInterrupts { bdf: bdf(A), rule }]);
    }

    #[test]
    fn a_function_that_comes_without_the_others_of_its_slot_is_reset_alone_and_that_is_told() {
        let tree = host();
        let (first, second) = ("0000:00:07.0", "0000:00:07.1");
        for name in [first, second] {
            add_function(&tree, name, 0, "0xfe100000 0xfe1000ff 0x200\n");
        }
        let around = around(&tree, &Claims::default());
        let told = |bdfs: &[&str], already: &[Bdf]| {
            let usual = Terms::default();
            let wanted: Vec<_> = bdfs.iter().map(|name| (bdf(name), &usual)).collect();
            describe_all(&wanted, already, &around).unwrap().1
        };
        let (bdf, others) = (bdf(second), first.to_owned());
        let method = Method::Unnamed;
        let mut notices = told(&[second], &[]);
        notices.extend(told(&[first], &[bdf]));
        notices.extend(told(&[first, second], &[]));
        notices.retain(|notice| !matches!(notice, Notice::NoAcs { .. }));
        assert_eq!(notices, [Notice::PartOfSlot { bdf, others, method }]);
    }

    #[test]
    fn what_the_host_loses_and_whom_a_device_may_reach_is_told() {
        let tree = host();
        tree.add(A, &[("boot_vga", b"1\n")]);
        tree.add(B, &[("boot_vga", b"0\n")]);
        let home = tree.device(B).join("usb1/1-1/input1");
        std::fs::create_dir_all(home.join("capabilities")).unwrap();
        std::fs::write(home.join("capabilities/key"), "fffffffffffffffe\n").unwrap();
        let class = tree.directory.path().join("class/input");
        std::fs::create_dir_all(&class).unwrap();
        std::os::unix::fs::symlink(home, class.join("input1")).unwrap();
        add_function(&tree, "0000:00:06.1", 0, "0xfe100000 0xfe1000ff 0x200\n");
        let usual = Terms::default();
        let around = around(&tree, &Claims::default());
        let (_, notices) =
            describe_all(&[(bdf(A), &usual), (bdf(B), &usual)], &[bdf("00:06.1")], &around).unwrap();
        assert_eq!(
            notices,
            [
                Notice::BootDisplay { bdf: bdf(A) },
                Notice::NoAcs {
                    bdf: bdf(B),
                    at: vec![bdf(B)]
                },
                Notice::OnlyKeyboard { bdf: bdf(B) },
            ]
        );
    }

    /// Dom0 has B, on the line of A.
    fn dom0_uses(tree: &Tree) {
        tree.add(B, &[("enable", b"1\n")]);
        tree.bind(B, "ehci-pci");
        tree.handlers(20, "ehci_hcd:usb1");
    }

    #[test]
    fn a_shared_line_is_given_on_terms_that_say_so_and_that_is_told() {
        let tree = host();
        dom0_uses(&tree);
        let share = Terms {
            share_intx: Some(true),
            ..Terms::default()
        };
        let around = around(&tree, &Claims::default());
        let (devices, notices) = describe_all(&[(bdf(A), &share)], &[], &around).unwrap();
        assert!(devices[0].line_offered);
        let (bdf, others) = (bdf(A), B.to_owned());
        let shared = Notice::LineShared {
            bdf,
            gsi: 20,
            others,
            why: "share-intx=1 says so",
            answer: "; dom0 answers for it",
        };
        assert_eq!(notices, [shared]);
    }

    #[test]
    fn a_device_without_msi_gets_a_shared_line_and_that_is_told() {
        let tree = host();
        let without_messages = [config(0, 1, 5)[..64].to_vec(), vec![0; 192]].concat();
        tree.add(A, &[("config", &without_messages)]);
        let claims = Claims {
            taken: vec![xl_claim(bdf(B), "7")],
            ..Claims::default()
        };
        let usual = Terms::default();
        let (devices, notices) = describe_all(&[(bdf(A), &usual)], &[], &around(&tree, &claims)).unwrap();
        assert!(devices[0].line_offered);
        let text = notices[0].to_string();
        assert!(
            text.contains("no other interrupts") && text.contains(B) && !text.contains("dom0"),
            "{text}"
        );
    }

    #[test]
    fn a_device_that_could_not_interrupt_is_no_description() {
        let tree = host();
        dom0_uses(&tree);
        tree.bind(A, "pciback");
        let terms = Terms {
            msi: Msi::Off("policy.toml, all devices".into()),
            share_intx: Some(false),
            ..Terms::default()
        };
        let refusal = describe_all(&[(bdf(A), &terms)], &[], &around(&tree, &Claims::default())).unwrap_err();
        assert!(matches!(refusal, Refusal::LineForbidden { .. }), "{refusal}");
    }

    #[test]
    fn a_function_without_a_driver_that_asserts_intx_is_told_where_a_line_is_given() {
        let tree = host();
        let mut asserting = config(0, 1, 5);
        asserting[6] = 8;
        tree.add(B, &[("config", &asserting)]);
        let around = around(&tree, &Claims::default());
        let usual = Terms::default();
        let (a, b) = (bdf(A), bdf(B));
        let idle = Notice::IdleAsserts { bdf: a, idle: b };
        assert_eq!(describe_all(&[(a, &usual)], &[], &around).unwrap().1, [idle]);
        assert_eq!(describe_all(&[(a, &usual)], &[b], &around).unwrap().1, []);
    }
}
