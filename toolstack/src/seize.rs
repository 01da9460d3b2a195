//! Taking a device from dom0's driver, and giving it back.
//!
//! While a device is passed through, dom0's xen-pciback holds it, for three things: no other driver
//! of dom0 binds to it, its MSI-X is prepared in Xen, and Xen keeps it in quarantine between guests.
//! It is exported to nobody: xen-pciback resets a device when its frontend dies, and the frontend
//! would be the stub.

use crate::host::Host;
use crate::record::{self, RecordError};
use crate::sysfs::PCIBACK;
use crate::xl::{self, XlError};
use std::process::{Command, Stdio};
use thiserror::Error;
use xenbus::bdf::Bdf;

/// Why a device could not be taken or given back.
#[derive(Debug, Error)]
pub enum SeizeError {
    /// The module is missing.
    #[error(
        "dom0's kernel has no xen-pciback, and `modprobe xen-pciback` did not bring it: install the module that \
         fits the running kernel"
    )]
    NoPciback,
    /// xl failed.
    #[error("cannot take {bdf} from dom0")]
    Add {
        /// The device.
        bdf: Bdf,
        /// What xl said.
        #[source]
        source: XlError,
    },
    /// xl did not fail, yet the device is elsewhere.
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
    /// xl failed.
    #[error("cannot give {bdf} back to dom0: `xl pci-assignable-remove -r {bdf}` tries it again")]
    Remove {
        /// The device.
        bdf: Bdf,
        /// What xl said.
        #[source]
        source: XlError,
    },
    /// It could not be noted.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// What a device was before it was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// Held by xen-pciback already.
    Held,
    /// Bound to this driver of dom0's.
    Driven(String),
    /// Bound to no driver.
    Idle,
}

/// Makes xen-pciback hold the device.
pub fn seize(host: &mut Host, bdf: Bdf) -> Result<Before, SeizeError> {
    load_pciback(host)?;
    let before = match host.sysfs.driver(bdf) {
        Some(driver) if driver == PCIBACK => Before::Held,
        Some(driver) => Before::Driven(driver),
        None => Before::Idle,
    };
    let held = before == Before::Held;
    if !held {
        let driver = if let Before::Driven(driver) = &before {
            driver
        } else {
            ""
        };
        record::note_seized(&mut host.store, bdf, driver)?;
    }
    // Also of a device that is held already, which may not be in quarantine at Xen's level yet.
    if let Err(source) = xl::assignable_add(bdf) {
        if !held {
            record::forget_seized(&mut host.store, bdf)?;
        }
        return Err(SeizeError::Add { bdf, source });
    }
    match host.sysfs.driver(bdf) {
        Some(now) if now == PCIBACK => Ok(before),
        now => Err(SeizeError::NotHeld { bdf, driver: now }),
    }
}

/// Gives a device back to the driver that it was taken from. One that was held before we came stays
/// held. Returns the driver, if there is one.
pub fn give_back(host: &mut Host, bdf: Bdf) -> Result<Option<String>, SeizeError> {
    let Some(driver) = record::seized_from(&mut host.store, bdf)? else {
        return Ok(None);
    };
    let driver = Some(driver).filter(|driver| !driver.is_empty());
    xl::assignable_remove(bdf, driver.is_some()).map_err(|source| SeizeError::Remove { bdf, source })?;
    record::forget_seized(&mut host.store, bdf)?;
    Ok(driver)
}

fn load_pciback(host: &Host) -> Result<(), SeizeError> {
    if !host.sysfs.has_pciback() {
        let mut modprobe = Command::new("modprobe");
        modprobe
            .arg("xen-pciback")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // Whether it worked shows in sysfs.
        let _ = modprobe.status();
    }
    if host.sysfs.has_pciback() {
        Ok(())
    } else {
        Err(SeizeError::NoPciback)
    }
}
