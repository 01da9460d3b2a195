//! The Debian releases that the rig can boot.

use std::fmt;
use std::str::FromStr;

/// A Debian release, and with it the versions of Xen and Linux under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Suite {
    /// Debian 12: Xen 4.17, Linux 6.1.
    Bookworm,
    /// Debian 13: Xen 4.20, Linux 6.12.
    Trixie,
}

/// What sets one release apart from another.
#[derive(Debug)]
struct Release {
    suite: Suite,
    name: &'static str,
    xen: &'static str,
}

const RELEASES: [Release; 2] = [
    Release {
        suite: Suite::Bookworm,
        name: "bookworm",
        xen: "4.17",
    },
    Release {
        suite: Suite::Trixie,
        name: "trixie",
        xen: "4.20",
    },
];

impl Suite {
    /// All releases, oldest first.
    pub const ALL: [Suite; 2] = [Suite::Bookworm, Suite::Trixie];

    fn release(self) -> &'static Release {
        match self {
            Suite::Bookworm => &RELEASES[0],
            Suite::Trixie => &RELEASES[1],
        }
    }

    /// The release's name as Debian's archive spells it.
    pub fn name(self) -> &'static str {
        self.release().name
    }

    /// Xen's version, as the names of packages, directories and libraries carry it.
    pub fn xen_version(self) -> &'static str {
        self.release().xen
    }

    /// The packages asked for by name. Libraries come along as their dependencies ([`is_wanted`]).
    pub fn packages(self) -> Vec<String> {
        let xen = self.xen_version();
        [
            &format!("xen-hypervisor-{xen}-amd64"),
            &format!("xen-utils-{xen}"),
            "xenstore-utils",
            "linux-image-amd64",
            "busybox-static",
            "pciutils",
            "jq",
        ]
        .map(str::to_owned)
        .to_vec()
    }
}

/// Whether a package of the dependency closure is fetched.
///
/// A whole Debian system hangs off Xen's tools (Python, Perl, udev) and off QEMU. The images have busybox and their
/// own init instead, so of everything that was not asked for they need the kernel (the dependency of
/// `linux-image-amd64`) and shared libraries; QEMU needs these alone.
pub fn is_wanted(package: &str, asked_for: &[String]) -> bool {
    const LIBRARIES: [&str; 2] = ["lib", "zlib1g"];
    const OTHERS: [&str; 2] = ["libpython", "libsystemd-shared"];
    asked_for.iter().any(|name| name == package)
        || package.starts_with("linux-image-")
        || LIBRARIES.iter().any(|prefix| package.starts_with(prefix))
            && !OTHERS.iter().any(|prefix| package.starts_with(prefix))
            && !package.ends_with("-perl")
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Suite {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        RELEASES
            .iter()
            .find(|release| release.name == name)
            .map(|release| release.suite)
            .ok_or_else(|| {
                let known: Vec<_> = RELEASES.iter().map(|release| release.name).collect();
                format!("no suite is named {name}: take one of {}", known.join(", "))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_is_found_by_its_name() {
        for suite in Suite::ALL {
            assert_eq!(suite.name().parse(), Ok(suite));
        }
    }

    #[test]
    fn an_unknown_suite_is_answered_with_the_known_ones() {
        assert_eq!(
            "lenny".parse::<Suite>(),
            Err("no suite is named lenny: take one of bookworm, trixie".to_owned())
        );
    }

    #[test]
    fn of_the_closure_only_libraries_the_kernel_and_what_was_asked_for_are_wanted() {
        let asked_for = Suite::Trixie.packages();
        for package in [
            "libc6",
            "zlib1g",
            "libxenmisc4.20",
            "linux-image-6.12.1-amd64",
            "pciutils",
        ] {
            assert!(is_wanted(package, &asked_for), "{package}");
        }
        for package in [
            "python3",
            "libpython3.13-stdlib",
            "libtext-wrapi18n-perl",
            "systemd",
            "udev",
        ] {
            assert!(!is_wanted(package, &asked_for), "{package}");
        }
    }
}
