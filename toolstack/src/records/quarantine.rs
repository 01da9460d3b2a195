//! Devices in quarantine, which nobody may have.

use super::assignable::{self, Holder};
use super::error::RecordError;
use super::paths::{QUARANTINE, bdf_of, children, make_root, quarantine_path};
use crate::host::store::Store;
use pci::bdf::Bdf;
use xenbus::client::Store as _;

/// Puts a device into quarantine: it must not be given to anyone.
pub fn quarantine(store: &mut Store, bdf: Bdf, reason: &str) -> Result<(), RecordError> {
    make_root(store)?;
    store.transaction(|store| {
        store.write(&quarantine_path(bdf), reason)?;
        match assignable::holder(store, bdf)? {
            // The device is about to leave its guest. `unclaim` then finds the quarantine.
            Some(_) => Ok(()),
            None => assignable::claim(store, bdf, Holder::Quarantine),
        }
    })?;
    Ok(())
}

/// The devices in quarantine, with the reason for each.
pub fn quarantined(store: &mut Store) -> Result<Vec<(Bdf, String)>, RecordError> {
    let mut devices = Vec::new();
    for name in children(store, QUARANTINE)? {
        let reason = store.read_optional(&format!("{QUARANTINE}/{name}"))?;
        devices.extend(bdf_of(&name).zip(reason));
    }
    Ok(devices)
}

/// The reason for a device's quarantine; `None` if it is in none.
pub fn quarantine_reason(store: &mut Store, bdf: Bdf) -> Result<Option<String>, RecordError> {
    Ok(store.read_optional(&quarantine_path(bdf))?)
}

/// Ends a device's quarantine.
pub fn lift_quarantine(store: &mut Store, bdf: Bdf) -> Result<(), RecordError> {
    store.transaction(|store| {
        if store.read_optional(&quarantine_path(bdf))?.is_some() {
            store.remove(&quarantine_path(bdf))?;
        }
        match assignable::holder(store, bdf)? {
            // A device that is a guest's, or may be mapped, keeps its node.
            Some(Holder::Quarantine) => assignable::unclaim(store, bdf),
            _ => Ok(()),
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::dom0;
    use xenbus::model::Xenstored;

    #[test]
    fn a_device_in_quarantine_is_remembered_with_the_reason() {
        let mut store = dom0(&Xenstored::new());
        let bdf = "0000:00:05.0".parse().unwrap();
        quarantine(&mut store, bdf, "it is mute").unwrap();
        assert_eq!(quarantined(&mut store).unwrap(), [(bdf, "it is mute".to_owned())]);
    }
}
