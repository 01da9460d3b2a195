//! What dom0 is.

use std::fmt;
use std::str::FromStr;

/// The kinds of dom0 that the rig can boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Host {
    /// Busybox and Xen's tools in an initial file system, with an init of the rig's: up in seconds.
    #[default]
    Busybox,
    /// An installed Debian with systemd, libvirt and apt on a disk.
    Debian,
}

const HOSTS: [(Host, &str); 2] = [(Host::Busybox, "busybox"), (Host::Debian, "debian")];

impl Host {
    /// The directory of the initial file system whose files dom0 finds in its root directory: a part of a path, empty or
    /// with a slash at its end.
    pub fn overlay(self) -> &'static str {
        match self {
            Host::Busybox => "",
            Host::Debian => "overlay/",
        }
    }

    /// QEMU's name of the processor, unless something else is asked for.
    pub fn cpu(self) -> &'static str {
        // Without a source of random numbers xl waits three seconds for each identifier that it makes up.
        match self {
            Host::Busybox => "qemu64,+rdrand",
            // libvirt's driver for Xen starts only on a processor that it has a model for. Each of its models has one of
            // the features SEP and VME. Xen hides SEP on processors of AMD's, and QEMU does not emulate VME.
            Host::Debian => "Penryn,+rdrand",
        }
    }

    /// Options for Xen that this host needs.
    pub fn xen_options(self) -> &'static [&'static str] {
        match self {
            Host::Busybox => &[],
            // The processor is an old one of Intel's. What Xen does against its weaknesses costs an emulated one dearly.
            Host::Debian => &["spec-ctrl=no"],
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = HOSTS.iter().find(|(host, _)| host == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let host = HOSTS.iter().find(|(_, name)| *name == text);
        host.map(|(host, _)| *host)
            .ok_or_else(|| format!("no host is called {text}: take busybox or debian"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_is_found_by_its_name() {
        for (host, name) in HOSTS {
            assert_eq!(host.to_string(), name);
            assert_eq!(name.parse(), Ok(host));
        }
        assert_eq!(
            "fedora".parse::<Host>(),
            Err("no host is called fedora: take busybox or debian".to_owned())
        );
    }
}
