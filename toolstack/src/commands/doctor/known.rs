//! Faults of Xen and Linux that concern passthrough to PV guests, by version: a table.

use super::version::Version;

/// Whose IOMMU a host has, by the table of its firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// VT-d: the table DMAR.
    Intel,
    /// AMD-Vi: the table IVRS.
    Amd,
}

/// Which hosts a fault concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concerns {
    /// Each.
    All,
    /// Those whose IOMMU is of this vendor.
    Vendor(Vendor),
    /// Those with virtual functions (SR-IOV).
    VirtualFunctions,
}

/// A fault of a program.
#[derive(Debug)]
pub struct KnownFault {
    /// The first version that has it.
    pub since: Version,
    /// The first versions without it: one for each branch that got a correction. Branches after these never had it. If there
    /// are none, it was seen in the branch of `since`, and nothing is known about later ones.
    pub corrected: &'static [Version],
    /// The hosts that are concerned.
    pub on: Concerns,
    /// What happens.
    pub what: &'static str,
    /// What to do.
    pub next: &'static str,
    /// Where this is from.
    pub source: &'static str,
}

/// What a version tells about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultPresence {
    /// It has the fault, unless the distribution has corrected it.
    Likely,
    /// It is on the way to the release with the correction, or nothing is known about its branch.
    Unclear,
    /// It does not have it.
    Absent,
}

impl KnownFault {
    /// What a version tells about this fault.
    pub fn presence(&self, version: Version) -> FaultPresence {
        if !version.reaches(self.since) {
            return FaultPresence::Absent;
        }
        if self.corrected.is_empty() && version.branch() > self.since.branch() {
            return FaultPresence::Unclear;
        }
        let newest = self.corrected.iter().map(|release| release.branch()).max();
        let of_branch = self
            .corrected
            .iter()
            .find(|release| release.branch() == version.branch());
        match of_branch {
            Some(&release) if version.leads_to(release) => FaultPresence::Unclear,
            Some(&release) if version.reaches(release) => FaultPresence::Absent,
            None if newest.is_some_and(|newest| version.branch() > newest) => FaultPresence::Absent,
            _ => FaultPresence::Likely,
        }
    }
}

const UPDATE_XEN: &str =
    "install your distribution's updates of Xen and reboot; its changelog says whether the correction is in";

/// Faults of Xen.
pub const XEN: &[KnownFault] = &[
    KnownFault {
        since: Version::new(4, 0, 0),
        corrected: &[Version::new(4, 17, 3), Version::new(4, 18, 0)],
        on: Concerns::Vendor(Vendor::Amd),
        what: "on AMD hosts a device may go on reaching memory that was taken from its guest",
        next: UPDATE_XEN,
        source: "XSA-442, https://xenbits.xen.org/xsa/advisory-442.html",
    },
    KnownFault {
        since: Version::new(4, 0, 0),
        corrected: &[
            Version::new(4, 17, 4),
            Version::new(4, 18, 1),
            Version::new(4, 19, 0),
        ],
        on: Concerns::All,
        what: "of a device with phantom functions (Xen's option pci-phantom) a guest may reach memory that is not its own",
        next: UPDATE_XEN,
        source: "XSA-449, https://xenbits.xen.org/xsa/advisory-449.html",
    },
    KnownFault {
        since: Version::new(4, 0, 0),
        corrected: &[
            Version::new(4, 17, 6),
            Version::new(4, 18, 5),
            Version::new(4, 19, 2),
            Version::new(4, 20, 0),
        ],
        on: Concerns::Vendor(Vendor::Intel),
        what: "a guest with a device of conventional PCI can stop the host by setting up interrupts",
        next: UPDATE_XEN,
        source: "XSA-467, https://xenbits.xen.org/xsa/advisory-467.html",
    },
    KnownFault {
        since: Version::new(4, 17, 0),
        corrected: &[],
        on: Concerns::VirtualFunctions,
        what: "the host stops if a guest lets go of interrupts of a device that dom0 has removed under it; measured with 4.17",
        next: "do not remove virtual functions that guests have: `bulkhead detach` them first",
        source: "docs/decisions.md, 39",
    },
];

/// Faults of dom0's Linux.
pub const LINUX: &[KnownFault] = &[KnownFault {
    since: Version::new(2, 6, 37),
    corrected: &[Version::new(5, 13, 0)],
    on: Concerns::All,
    what: "without landlock the process that serves the stubs can open files of dom0's, though it cannot run programs",
    next: "install a newer kernel in dom0",
    source: "docs/trusted-base.md",
}];

/// The branches of Xen that the scenarios run on.
pub const TESTED_XEN: &[(u32, u32)] = &[(4, 17), (4, 20)];
/// The oldest and the newest major version of Linux that the scenarios run on.
pub const TESTED_LINUX: (Version, u32) = (Version::new(6, 1, 0), 7);
/// Where these are from.
pub const TESTED_SOURCE: &str = "docs/support.md";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_correction_counts_for_its_branch_and_all_branches_after_the_last() {
        let fault = &XEN[2];
        for (version, expected) in [
            ("3.4.0", FaultPresence::Absent),
            ("4.16.7", FaultPresence::Likely),
            ("4.17.5", FaultPresence::Likely),
            ("4.17.6-pre", FaultPresence::Unclear),
            ("4.17.6", FaultPresence::Absent),
            ("4.18.4", FaultPresence::Likely),
            ("4.19.2", FaultPresence::Absent),
            ("4.20.0", FaultPresence::Absent),
            ("4.21-unstable", FaultPresence::Absent),
        ] {
            assert_eq!(fault.presence(version.parse().unwrap()), expected, "{version}");
        }
        let uncorrected = &XEN[3];
        assert_eq!(
            uncorrected.presence(Version::new(4, 17, 5)),
            FaultPresence::Likely
        );
        assert_eq!(
            uncorrected.presence(Version::new(4, 25, 0)),
            FaultPresence::Unclear
        );
    }

    #[test]
    fn each_fault_has_a_next_step_and_a_source() {
        for fault in XEN.iter().chain(LINUX) {
            assert!(
                !fault.next.is_empty() && !fault.source.is_empty(),
                "{}",
                fault.what
            );
            assert!(!fault.what.ends_with('.'), "{}", fault.what);
        }
    }
}
