//! Whether a guest gets the INTx line of a device that others share.

use super::refusal::Refusal;
use super::surroundings::Surroundings;
use crate::config_space::interrupts::{msi_vectors, msix_entries};
use crate::handover::intx_lines::{Sharers, dom0_sharers, line, line_is_known};
use crate::host::sysfs::Sysfs;
use crate::records::claims::Claim;
use crate::terms::{Msi, Terms};
use pci::bdf::Bdf;

/// The sharers of a device's INTx line. The devices `together` do not count: one guest has or gets them.
pub fn line_sharers(bdf: Bdf, together: &[Bdf], around: &Surroundings) -> Result<Sharers, Refusal> {
    let sysfs = &around.sysfs;
    let Some(gsi) = line(bdf, sysfs) else {
        return Ok(Sharers::default());
    };
    // Sharers are handlers in dom0 and devices of other guests. A function without either never handles anything
    // (decision 12).
    let mut sharers = dom0_sharers(gsi, together, sysfs).map_err(Refusal::NoSysfs)?;
    let taken = around.claims.taken.iter().filter(|claim| claim.uses_line);
    let mut guests: Vec<Bdf> = taken.map(|claim: &Claim| claim.bdf).collect();
    guests.retain(|&other| !together.contains(&other) && line(other, sysfs) == Some(gsi));
    guests.sort_unstable();
    guests.dedup();
    sharers.guests = guests;
    Ok(sharers)
}

/// Whether a guest gets the interrupt line of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// The device has no line.
    NoLine,
    /// Nobody shares it.
    Alone,
    /// It is shared, and given because `share-intx=1` says so.
    Shared,
    /// It is shared, and given because the guest can have no other interrupts from the device.
    OnlyInterrupt,
    /// It is shared, and withheld: the guest has MSI or MSI-X.
    Withheld,
    /// It is shared, the guest can have no other interrupts, and `share-intx=0` forbids to share.
    Forbidden,
}

impl Offer {
    /// Decides about the line of a device that has these terms and this configuration space.
    pub fn decide(bdf: Bdf, terms: &Terms, sharers: &Sharers, sysfs: &Sysfs) -> Result<Self, Refusal> {
        if line(bdf, sysfs).is_none() {
            return Ok(Self::NoLine);
        }
        if sharers.is_empty() {
            return Ok(Self::Alone);
        }
        let config = sysfs.config_bytes(bdf)?;
        let has_msi = terms.msi.is_on() && (msi_vectors(&config) > 0 || msix_entries(&config) > 0);
        Ok(match (terms.share_intx, has_msi) {
            // Sharing risks the interrupts of both sides, so it needs `share-intx=1`, or a device that is dead without
            // it.
            (Some(true), _) => Self::Shared,
            (_, true) => Self::Withheld,
            (None, false) => Self::OnlyInterrupt,
            (Some(false), false) => Self::Forbidden,
        })
    }

    /// True if the guest gets the line.
    pub fn is_given(self) -> bool {
        matches!(self, Self::Alone | Self::Shared | Self::OnlyInterrupt)
    }
}

/// Refuses devices that could not interrupt at all. `wanted` go to a guest that has the devices `already`.
///
/// The line of a device is unknown until dom0 has turned the device on, so this check is repeated afterwards.
pub fn check_lines(wanted: &[(Bdf, &Terms)], already: &[Bdf], around: &Surroundings) -> Vec<Refusal> {
    let bdfs = wanted.iter().map(|&(bdf, _)| bdf);
    let together: Vec<Bdf> = already.iter().copied().chain(bdfs).collect();
    let refused = |&(bdf, terms): &(Bdf, &Terms)| {
        if !line_is_known(bdf, &around.sysfs) {
            return None;
        }
        let checked = line_sharers(bdf, &together, around).and_then(|sharers| {
            let offer = Offer::decide(bdf, terms, &sharers, &around.sysfs)?;
            Ok((offer == Offer::Forbidden).then(|| Refusal::LineForbidden {
                bdf,
                gsi: line(bdf, &around.sysfs).unwrap_or_default(),
                others: sharers.to_string(),
                without: match &terms.msi {
                    Msi::On => "it has no MSI or MSI-X".to_owned(),
                    Msi::Off(rule) => format!("MSI is off ({rule})"),
                },
            }))
        });
        checked.unwrap_or_else(Some)
    };
    wanted.iter().filter_map(refused).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::fixture::{A, B, around, bdf, config, host};
    use crate::handover::intx_lines::NETWORK;
    use crate::host::sysfs::tests::Tree;
    use crate::records::claims::Claims;
    use crate::records::claims::xl_claim;
    use pci::registers::register;

    fn sharers(tree: &Tree, together: &[Bdf], claims: &Claims) -> String {
        let sharers = line_sharers(bdf(A), together, &around(tree, claims)).unwrap();
        assert_eq!(sharers.is_empty(), sharers.to_string().is_empty());
        sharers.to_string()
    }

    fn in_dom0(tree: &Tree) -> String {
        sharers(tree, &[bdf(A)], &Claims::default())
    }

    #[test]
    fn a_line_is_shared_with_a_function_of_dom0_that_has_a_driver_and_a_handler() {
        let tree = host();
        assert_eq!(in_dom0(&tree), "");
        tree.add(B, &[("enable", b"1\n")]);
        assert_eq!(in_dom0(&tree), "", "left enabled, without a driver");
        tree.bind(B, "ehci-pci");
        assert_eq!(in_dom0(&tree), "", "its driver has no handler");
        tree.handlers(20, "ehci_hcd:usb1");
        assert_eq!(in_dom0(&tree), B);
        assert_eq!(sharers(&tree, &[bdf(A), bdf(B)], &Claims::default()), "");
        let mut messages = config(0, 1, 5);
        messages[0x73] |= 0x80;
        tree.add(B, &[("config", &messages)]);
        assert_eq!(
            in_dom0(&tree),
            "dom0's ehci_hcd:usb1",
            "B sends MSI-X, so the handler is another's"
        );
        tree.add(B, &[("irq", b"21\n")]);
        assert_eq!(in_dom0(&tree), "dom0's ehci_hcd:usb1");
        tree.handlers(20, "");
        assert_eq!(in_dom0(&tree), "");
    }

    #[test]
    fn a_function_that_xen_pciback_holds_has_no_handler() {
        let tree = host();
        tree.add(B, &[("enable", b"1\n")]);
        tree.bind(B, "pciback");
        tree.handlers(20, "xen-pciback[0000:00:06.0]");
        assert_eq!(in_dom0(&tree), "");
    }

    #[test]
    fn a_network_driver_counts_before_its_interface_is_up() {
        let tree = host();
        let mut network = config(0, 1, 5);
        network[usize::from(register::BASE_CLASS)] = NETWORK;
        tree.add(B, &[("enable", b"1\n"), ("config", &network)]);
        tree.bind(B, "e1000");
        assert_eq!(in_dom0(&tree), B);
    }

    #[test]
    fn the_handler_of_a_device_that_is_to_be_taken_is_not_another_sharer() {
        let tree = host();
        tree.add(A, &[("enable", b"1\n")]);
        tree.bind(A, "ehci-pci");
        tree.handlers(20, "ehci_hcd:usb1");
        assert_eq!(in_dom0(&tree), "");
    }

    #[test]
    fn a_line_is_shared_with_a_device_of_another_guest_that_has_its_line() {
        let tree = host();
        let mut guest = Claims {
            taken: vec![xl_claim(bdf(B), "7")],
            ..Claims::default()
        };
        assert_eq!(sharers(&tree, &[bdf(A)], &guest), B);
        assert_eq!(sharers(&tree, &[bdf(A), bdf(B)], &guest), "");
        guest.taken[0].uses_line = false;
        assert_eq!(sharers(&tree, &[bdf(A)], &guest), "", "its line was withheld");
        guest.taken[0].uses_line = true;
        tree.add(B, &[("irq", b"21\n")]);
        assert_eq!(sharers(&tree, &[bdf(A)], &guest), "");
    }

    #[test]
    fn a_shared_line_is_withheld_unless_the_guest_has_no_other_interrupts() {
        let tree = host();
        let shared = Sharers {
            dom0: vec![bdf(B)],
            ..Sharers::default()
        };
        let offer = |msi: Msi, share_intx, sharers: &Sharers| {
            let terms = Terms {
                msi,
                share_intx,
                ..Terms::default()
            };
            Offer::decide(bdf(A), &terms, sharers, &tree.sysfs()).unwrap()
        };
        let off = || Msi::Off("command line, msi=0".into());
        for (msi, share, expected) in [
            (Msi::On, None, Offer::Withheld),
            (Msi::On, Some(false), Offer::Withheld),
            (Msi::On, Some(true), Offer::Shared),
            (off(), None, Offer::OnlyInterrupt),
            (off(), Some(false), Offer::Forbidden),
            (off(), Some(true), Offer::Shared),
        ] {
            assert_eq!(offer(msi.clone(), share, &shared), expected, "{msi:?} {share:?}");
            assert_eq!(offer(msi, share, &Sharers::default()), Offer::Alone);
        }
        let without_messages = [config(0, 1, 5)[..64].to_vec(), vec![0; 192]].concat();
        tree.add(A, &[("config", &without_messages)]);
        assert_eq!(offer(Msi::On, None, &shared), Offer::OnlyInterrupt);
        assert_eq!(offer(Msi::On, Some(false), &shared), Offer::Forbidden);
        tree.add(A, &[("config", &config(0, 0, 5))]);
        assert_eq!(offer(off(), Some(false), &shared), Offer::NoLine);
    }

    #[test]
    fn a_device_that_could_not_interrupt_is_refused_with_both_reasons() {
        let tree = host();
        tree.bind(A, "pciback");
        let claims = Claims {
            taken: vec![xl_claim(bdf(B), "7")],
            ..Claims::default()
        };
        let around = around(&tree, &claims);
        let terms = |msi| Terms {
            msi,
            share_intx: Some(false),
            ..Terms::default()
        };
        let off = terms(Msi::Off("command line, msi=0".into()));
        let refusals = check_lines(&[(bdf(A), &off)], &[], &around);
        let text = refusals[0].to_string();
        assert!(text.contains("MSI is off (command line, msi=0)"), "{text}");
        assert!(
            text.contains("GSI 20") && text.contains(B) && text.contains("share-intx=0"),
            "{text}"
        );
        assert!(check_lines(&[(bdf(A), &terms(Msi::On))], &[], &around).is_empty());
        assert!(check_lines(&[(bdf(A), &off)], &[bdf(B)], &around).is_empty());
    }

    #[test]
    fn a_line_is_known_once_dom0_has_turned_the_device_on() {
        let tree = host();
        assert!(!line_is_known(bdf(A), &tree.sysfs()));
        tree.bind(A, "pciback");
        assert!(line_is_known(bdf(A), &tree.sysfs()));
        tree.add(B, &[("enable", b"1\n")]);
        assert!(line_is_known(bdf(B), &tree.sysfs()));
    }
}
