//! The host that a command works on: the check of privileges, and handles to xenstore, Xen and sysfs.

pub mod device_names;
pub mod dmar;
pub mod domains;
pub mod domid_history;
pub mod guest_config;
pub mod ivrs;
pub mod launcher;
pub mod mcfg;
pub mod pci_ids;
pub mod program;
pub mod recreate;
pub mod store;
pub mod suspends;
pub mod sysfs;
pub mod systemd;
pub mod thread_state;
pub mod uevent;
pub mod xl;

use crate::host::launcher::{LaunchError, Launcher, Order};
use crate::host::sysfs::Sysfs;
use inject::Point;
use std::fs;
use std::io;
use store::{NoStore, Store};
use thiserror::Error;
use xen::xenctrl::{DomId, Xenctrl, XenctrlError};

/// Why the host cannot be used.
#[derive(Debug, Error)]
pub enum HostError {
    /// The process is not root's.
    #[error("this needs root: run it with sudo, or as root")]
    NotRoot,
    /// The machine is no control domain.
    #[error(
        "this is not the control domain of a Xen host (/proc/xen/capabilities does not say control_d): \
         run it in dom0"
    )]
    NotDom0,
    /// xenfs cannot be read.
    #[error(
        "this machine does not run under Xen, or xenfs is not mounted: boot it under Xen, and \
         `mount -t xenfs xenfs /proc/xen` if that is missing"
    )]
    NoXen(#[source] io::Error),
    /// xenstore cannot be reached.
    #[error(transparent)]
    Store(#[from] NoStore),
    /// Xen's control interface cannot be opened.
    #[error(transparent)]
    Xenctrl(#[from] XenctrlError),
}

/// Handles to xenstore, the hypervisor and sysfs. Tests use a model of the hypervisor.
pub struct Host<X = Xenctrl> {
    /// Xenstore.
    pub store: Store,
    /// The hypervisor.
    pub xen: X,
    /// The PCI devices.
    pub sysfs: Sysfs,
    /// The runner of other programs.
    pub runner: Runner,
}

/// How other programs are run.
#[derive(Debug)]
pub enum Runner {
    /// By this process, as in commands.
    Itself,
    /// By the service's launcher, which alone has the privileges for that.
    Launcher(Launcher),
    /// A model for tests: the domains that were to be destroyed.
    #[cfg(test)]
    Model(Vec<DomId>),
}

impl Runner {
    /// Runs `xl destroy`.
    pub fn destroy(&mut self, domid: DomId) -> Result<(), LaunchError> {
        inject::point(Point::Destroy);
        match self {
            Self::Itself => {
                xl::destroy(&domid.to_string()).map_err(|error| LaunchError::Failed(error.to_string()))
            }
            Self::Launcher(launcher) => launcher.run(Order::DestroyDomain { domid }),
            #[cfg(test)]
            Self::Model(destroyed) => {
                destroyed.push(domid);
                Ok(())
            }
        }
    }
}

impl Host {
    /// Opens the host. The process must be root's in dom0.
    pub fn open() -> Result<Self, HostError> {
        Self::open_with(Runner::Itself)
    }

    /// Opens the host with this `runner` for other programs.
    pub fn open_with(runner: Runner) -> Result<Self, HostError> {
        check_privilege()?;
        Ok(Self {
            store: store::open()?,
            xen: Xenctrl::open()?,
            sysfs: Sysfs::host(),
            runner,
        })
    }
}

/// Checks that this is root in dom0.
pub fn check_privilege() -> Result<(), HostError> {
    if !rustix::process::geteuid().is_root() {
        return Err(HostError::NotRoot);
    }
    let capabilities = fs::read_to_string("/proc/xen/capabilities").map_err(HostError::NoXen)?;
    if is_control_domain(&capabilities) {
        Ok(())
    } else {
        Err(HostError::NotDom0)
    }
}

fn is_control_domain(capabilities: &str) -> bool {
    capabilities
        .split([',', '\n'])
        .any(|capability| capability.trim() == "control_d")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dom0_is_the_domain_with_control() {
        assert!(is_control_domain("control_d\n"));
        assert!(!is_control_domain(""));
        assert!(!is_control_domain("not_control_d\n"));
    }
}
