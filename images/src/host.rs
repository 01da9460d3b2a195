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
