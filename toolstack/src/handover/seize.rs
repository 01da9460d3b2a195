//! Takes a device from dom0's driver, and gives it back.
//!
//! While a device is passed through, dom0's xen-pciback holds it, for three things: no other driver
//! of dom0 binds to it, its MSI-X is prepared in Xen, and Xen keeps it in quarantine between guests.
//! It is exported to nobody: xen-pciback resets a device when its frontend dies, and the frontend
//! would be the stub.

use crate::config_space::access::quieten;
use crate::handover::reset::{self, Method};
use crate::host::Host;
use crate::host::domains::Domain;
use crate::host::sysfs::{PCIBACK, Sysfs};
use crate::host::xl::{self, XlError};
use crate::records::{self, RecordError, Seizure};
use pci::bdf::Bdf;
use pci::registers::register;
use std::io;
use std::process::{Command, Stdio};
use thiserror::Error;

/// Why a device could not be seized or given back.
#[derive(Debug, Error)]
pub enum SeizeError {
    /// The kernel has no xen-pciback.
    #[error(
        "dom0's kernel has no xen-pciback, and `modprobe xen-pciback` did not bring it: install the module that \
         fits the running kernel"
    )]
    NoPciback,
    /// `xl pci-assignable-add` failed.
    #[error("cannot take {bdf} from dom0")]
    Add {
        /// The device.
        bdf: Bdf,
        /// The cause.
        #[source]
        source: XlError,
    },
    /// COMMAND of a device without a driver could not be written.
    #[error("cannot stop DMA and INTx of {bdf}, which has no driver that would")]
    Quieten {
        /// The device.
        bdf: Bdf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// xl succeeded, and xen-pciback does not hold the device.
    #[error(
        "{bdf} is bound to {driver} after `xl pci-assignable-add {bdf}`: does another program bind drivers?",
        driver = driver.as_deref().unwrap_or("no driver")
    )]
    NotHeld {
        /// The device.
        bdf: Bdf,
        /// Its driver.
        driver: Option<String>,
    },
    /// `xl pci-assignable-remove` failed.
    #[error("cannot give {bdf} back to dom0: `xl pci-assignable-remove -r {bdf}` tries it again")]
    Remove {
        /// The device.
        bdf: Bdf,
        /// The cause.
        #[source]
        source: XlError,
    },
    /// The device did not come back from its reset.
    #[error(
        "{bdf} is in quarantine now, because {reason}: `bulkhead release {bdf}` tries its reset again, otherwise \
         power-cycle the host"
    )]
    Quarantined {
        /// The device.
        bdf: Bdf,
        /// The reason, in words.
        reason: String,
    },
    /// The kernel could not be asked to probe the device.
    #[error("{bdf} is dom0's again, but its kernel does not look for a driver: bind one by sysfs")]
    Probe {
        /// The device.
        bdf: Bdf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The record could not be written.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// State of a device before it was seized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// Held by xen-pciback already.
    Held,
    /// Bound to this driver of dom0's.
    Driven(String),
    /// Bound to no driver.
    Idle,
}

/// Where a device is after [`rebind_driver`] or [`release`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rebound {
    /// With this driver of dom0's.
    Driver(String),
    /// In dom0, without a driver.
    Undriven,
    /// Unchanged: it was held before, is in quarantine, or dom0 has it already.
    Stays,
    /// Held: this guest lives and may still have the device's memory mapped.
    MappedBy(Domain),
}

/// Makes xen-pciback hold the device. `by` identifies the command.
pub fn seize(host: &mut Host, bdf: Bdf, seizure: Seizure, by: &str) -> Result<Before, SeizeError> {
    load_pciback(host)?;
    let before = match host.sysfs.driver(bdf) {
        Some(driver) if driver == PCIBACK => Before::Held,
        Some(driver) => Before::Driven(driver),
        None => Before::Idle,
    };
    if before == Before::Idle {
        // Firmware that booted from a disk leaves its controller's DMA on. xen-pciback puts the device back as
        // it found it when it lets go, and dom0 would then get a device whose DMA runs as the guest set it up.
        quieten_idle(&host.sysfs, bdf)?;
    }
    let held = before == Before::Held;
    if !held {
        let driver = if let Before::Driven(driver) = &before {
            driver
        } else {
            ""
        };
        // This is recorded before xl unbinds the driver, so that the device can be given back whatever happens.
        records::record_seized(&mut host.store, seizure, bdf, driver, by)?;
    } else if seizure == Seizure::ForGuest {
        // Another command may have seized it, and be at its end or killed. From now on it is this command's to give back.
        records::adopt_seized(&mut host.store, bdf, by)?;
    }
    // xl runs also for a device that is held already: Xen may not have it in quarantine yet.
    if let Err(source) = xl::assignable_add(bdf) {
        if !held {
            // libxl may have taken it from its driver before it failed.
            if matches!(before, Before::Driven(_)) && host.sysfs.driver(bdf).is_none() {
                let probed = host.sysfs.probe(bdf);
                probed.unwrap_or_else(|error| log::warn!("{bdf}: its driver does not take it back: {error}"));
            }
            records::forget_seized(&mut host.store, seizure, bdf)?;
        }
        return Err(SeizeError::Add { bdf, source });
    }
    match host.sysfs.driver(bdf) {
        Some(now) if now == PCIBACK => Ok(before),
        now => Err(SeizeError::NotHeld { bdf, driver: now }),
    }
}

/// Stops DMA and INTx of a device without a driver in dom0. A driver does that itself.
fn quieten_idle(sysfs: &Sysfs, bdf: Bdf) -> Result<(), SeizeError> {
    let config = sysfs.open_config(bdf).map_err(io::Error::other);
    config
        .and_then(|config| quieten(&config))
        .map_err(|source| SeizeError::Quieten { bdf, source })
}

/// Resets a device that xen-pciback holds, so that its next owner finds no state of the last one. A device that does
/// not come back goes into quarantine. Returns the method used; `None` if there is none.
pub fn make_ready<X>(host: &mut Host<X>, bdf: Bdf) -> Result<Option<Method>, SeizeError> {
    // Ids and header are read before anything is changed: the reset compares with them and restores them.
    let now = host.sysfs.config_bytes(bdf).and_then(|config| {
        let header: Vec<u8> = config.into_iter().take(register::HEADER_LENGTH).collect();
        Ok((host.sysfs.ids(bdf)?, header))
    });
    let config = host.sysfs.open_config(bdf).map_err(io::Error::other);
    // xen-pciback has reset it when it took it, but does not look at the result (decision 31).
    let ready = config
        .and_then(|config| reset::quiesce(&config))
        .and(now.map_err(io::Error::other))
        .map_err(reset::ResetError::Restore)
        .and_then(|(ids, header)| reset::reset(&host.sysfs, bdf, ids, &header));
    match ready {
        Ok(method) => Ok(method),
        Err(error) => {
            let reason = error.to_string();
            records::quarantine(&mut host.store, bdf, &reason)?;
            Err(SeizeError::Quarantined { bdf, reason })
        }
    }
}

/// Gives a device that was seized for a guest back to the driver that it was seized from. A device stays held if it
/// was held before, is in quarantine, or may still be mapped by a guest.
pub fn rebind_driver<X>(host: &mut Host<X>, bdf: Bdf) -> Result<Rebound, SeizeError> {
    if records::quarantine_reason(&mut host.store, bdf)?.is_some() {
        return Ok(Rebound::Stays);
    }
    let Some(driver) = records::seized_from(&mut host.store, Seizure::ForGuest, bdf)? else {
        return Ok(Rebound::Stays);
    };
    match records::mapped_by(&mut host.store, bdf)? {
        Some(guest) => Ok(Rebound::MappedBy(guest)),
        None => rebind(host, bdf, Seizure::ForGuest, driver),
    }
}

/// Gives a held device back to dom0, whatever it was seized for: to the driver that it was seized from, or to any
/// that takes it.
pub fn release(host: &mut Host, bdf: Bdf) -> Result<Rebound, SeizeError> {
    for seizure in [Seizure::ToKeep, Seizure::ForGuest] {
        if let Some(driver) = records::seized_from(&mut host.store, seizure, bdf)? {
            return rebind(host, bdf, seizure, driver);
        }
    }
    // The device was held from the start of dom0's kernel. Xen may count it as dom0's, so xl adds it first.
    let removed = xl::assignable_add(bdf).and_then(|()| xl::assignable_remove(bdf, false));
    removed.map_err(|source| SeizeError::Remove { bdf, source })?;
    quieten_idle(&host.sysfs, bdf)?;
    host.sysfs
        .probe(bdf)
        .map_err(|source| SeizeError::Probe { bdf, source })?;
    Ok(host.sysfs.driver(bdf).map_or(Rebound::Undriven, Rebound::Driver))
}

fn rebind<X>(host: &mut Host<X>, bdf: Bdf, seizure: Seizure, driver: String) -> Result<Rebound, SeizeError> {
    // Only what xen-pciback holds is unbound: a driver of dom0's that has the device by now keeps it.
    if host.sysfs.driver(bdf).as_deref() != Some(PCIBACK) {
        // Dom0 has removed it, and perhaps found it again: only the record is left to go.
        records::forget_seized(&mut host.store, seizure, bdf)?;
        return Ok(Rebound::Stays);
    }
    let driver = Some(driver).filter(|driver| !driver.is_empty());
    let removed = xl::assignable_remove(bdf, driver.is_some()).or_else(|error| {
        // Dom0 may have removed the device and found it again. Xen then counts it as dom0's, so xl adds it first.
        xl::assignable_add(bdf).map_err(|_| error)?;
        xl::assignable_remove(bdf, driver.is_some())
    });
    removed.map_err(|source| SeizeError::Remove { bdf, source })?;
    if driver.is_none() {
        // xen-pciback has turned INTx on, and a device without a reset may still assert it for the guest's driver.
        quieten_idle(&host.sysfs, bdf)?;
    }
    records::forget_seized(&mut host.store, seizure, bdf)?;
    Ok(driver.map_or(Rebound::Undriven, Rebound::Driver))
}

fn load_pciback(host: &Host) -> Result<(), SeizeError> {
    if !host.sysfs.has_pciback() {
        let mut modprobe = Command::new("modprobe");
        modprobe
            .arg("xen-pciback")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // sysfs shows below whether it worked.
        let _ = modprobe.status();
    }
    if host.sysfs.has_pciback() {
        Ok(())
    } else {
        Err(SeizeError::NoPciback)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Runner;
    use crate::host::store::tests::{dom0, introduce};
    use crate::host::sysfs::tests::Tree;
    use crate::records::tests::domain;
    use xen::model::Xen;
    use xenbus::model::Xenstored;

    #[test]
    fn a_device_in_doubt_or_in_other_hands_is_not_given_back() {
        let (tree, daemon) = (Tree::new(), Xenstored::new());
        introduce(&daemon, 3, "web");
        let name = "0000:00:07.0";
        let bdf = name.parse().unwrap();
        tree.add(name, &[]);
        tree.bind(name, PCIBACK);
        let mut host = Host {
            store: dom0(&daemon),
            xen: Xen::default(),
            sysfs: tree.sysfs(),
            runner: Runner::Model(Vec::new()),
        };
        assert_eq!(
            rebind_driver(&mut host, bdf).unwrap(),
            Rebound::Stays,
            "held before"
        );
        records::record_seized(&mut host.store, Seizure::ForGuest, bdf, "e1000e", "test").unwrap();
        records::record_mapped(&mut host.store, bdf, &domain(3, "web")).unwrap();
        assert_eq!(
            rebind_driver(&mut host, bdf).unwrap(),
            Rebound::MappedBy(domain(3, "web"))
        );
        records::quarantine(&mut host.store, bdf, "it is mute").unwrap();
        assert_eq!(
            rebind_driver(&mut host, bdf).unwrap(),
            Rebound::Stays,
            "quarantine"
        );
        records::lift_quarantine(&mut host.store, bdf).unwrap();
        records::forget_mapped(&mut host.store, bdf).unwrap();
        let taken =
            |host: &mut Host<Xen>| records::seized_from(&mut host.store, Seizure::ForGuest, bdf).unwrap();
        assert!(taken(&mut host).is_some());

        std::fs::remove_file(tree.device(name).join("driver")).unwrap();
        tree.bind(name, "e1000e");
        assert_eq!(
            rebind_driver(&mut host, bdf).unwrap(),
            Rebound::Stays,
            "another driver's"
        );
        assert_eq!(taken(&mut host), None);
    }

    #[test]
    fn an_idle_device_loses_dma_and_line_and_nothing_else_changes() {
        let tree = Tree::new();
        let mut config = [0x5a; 64];
        config[4..6].copy_from_slice(&0x0107_u16.to_le_bytes());
        tree.add("0000:00:07.0", &[("config", &config)]);
        let bdf = "00:07.0".parse().unwrap();
        quieten_idle(&tree.sysfs(), bdf).unwrap();
        config[4..6].copy_from_slice(&0x0503_u16.to_le_bytes());
        assert_eq!(tree.sysfs().config_bytes(bdf).unwrap(), config);
    }

    #[test]
    fn a_device_that_cannot_be_quietened_is_named() {
        let error = quieten_idle(&Tree::new().sysfs(), "00:07.0".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("INTx of 0000:00:07.0"), "{error}");
    }
}
