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
    /// Debian's unstable: the newest Xen and Linux of Debian. The versions change.
    Sid,
}

/// Properties of a release.
#[derive(Debug)]
struct Release {
    suite: Suite,
    name: &'static str,
    /// The packages that bring Xen and its tools.
    xen: &'static [&'static str],
    /// Whether its security updates are in an archive of their own.
    security: bool,
}

const RELEASES: [Release; 3] = [
    Release {
        suite: Suite::Bookworm,
        name: "bookworm",
        xen: &["xen-hypervisor-4.17-amd64", "xen-utils-4.17"],
        security: true,
    },
    Release {
        suite: Suite::Trixie,
        name: "trixie",
        xen: &["xen-hypervisor-4.20-amd64", "xen-utils-4.20"],
        security: true,
    },
    Release {
        suite: Suite::Sid,
        name: "sid",
        // The package depends on hypervisor and tools of the current version.
        xen: &["xen-system-amd64"],
        security: false,
    },
];

impl Suite {
    /// All releases, oldest first.
    pub const ALL: [Suite; 3] = [Suite::Bookworm, Suite::Trixie, Suite::Sid];

    /// Releases whose versions do not change. The repository keeps figures of these.
    pub const STABLE: [Suite; 2] = [Suite::Bookworm, Suite::Trixie];

    fn release(self) -> &'static Release {
        match self {
            Suite::Bookworm => &RELEASES[0],
            Suite::Trixie => &RELEASES[1],
            Suite::Sid => &RELEASES[2],
        }
    }

    /// The release's name as Debian's archive spells it.
    pub fn name(self) -> &'static str {
        self.release().name
    }

    /// Whether Debian's security archive has this release.
    pub fn has_security(self) -> bool {
        self.release().security
    }

    /// The packages asked for by name. Libraries come along as their dependencies ([`is_wanted`]).
    pub fn packages(self) -> Vec<String> {
        const OTHERS: [&str; 5] = [
            "xenstore-utils",
            "linux-image-amd64",
            "busybox-static",
            "pciutils",
            "jq",
        ];
        let packages = self.release().xen.iter().chain(&OTHERS);
        packages.map(|name| (*name).to_owned()).collect()
    }
}

/// Whether a package of the dependency closure is fetched.
///
/// Xen's tools and QEMU depend on a whole Debian system (Python, Perl, udev). The images have busybox and an init of
/// their own instead. Apart from the packages asked for, they need Xen, the kernel (`linux-image-amd64` depends on it;
/// newer kernels come in several packages) and shared libraries. QEMU needs shared libraries alone.
pub fn is_wanted(package: &str, asked_for: &[String]) -> bool {
    const VERSIONED: [&str; 6] = [
        "linux-base-",
        "linux-binary-",
        "linux-image-",
        "linux-modules-",
        "xen-hypervisor-",
        "xen-utils-",
    ];
    const LIBRARIES: [&str; 2] = ["lib", "zlib1g"];
    const OTHERS: [&str; 2] = ["libpython", "libsystemd-shared"];
    let starts_with_one_of = |prefixes: &[&str]| prefixes.iter().any(|prefix| package.starts_with(prefix));
    let has_version = |prefix: &&str| {
        let rest = package.strip_prefix(*prefix);
        rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    asked_for.iter().any(|name| name == package)
        || VERSIONED.iter().any(has_version)
        || starts_with_one_of(&LIBRARIES) && !starts_with_one_of(&OTHERS) && !package.ends_with("-perl")
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
            Err("no suite is named lenny: take one of bookworm, trixie, sid".to_owned())
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
            "linux-base-7.2.13+deb14-amd64",
            "linux-modules-7.2.13+deb14-amd64",
            "linux-binary-7.2.13+deb14-amd64",
            "xen-hypervisor-4.20-amd64",
            "xen-utils-4.21",
            "pciutils",
        ] {
            assert!(is_wanted(package, &asked_for), "{package}");
        }
        for package in [
            "python3",
            "libpython3.13-stdlib",
            "libtext-wrapi18n-perl",
            "systemd",
            "linux-base",
            "linux-base-amd64",
            "xen-utils-common",
            "xen-hypervisor-common",
            "udev",
        ] {
            assert!(!is_wanted(package, &asked_for), "{package}");
        }
    }
}
