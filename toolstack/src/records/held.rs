//! Devices that were seized from dom0's drivers.

use super::error::RecordError;
use super::paths::{ROOT, make_root, node_name};
use crate::host::store::Store;
use pci::bdf::Bdf;
use xenbus::client::Store as _;

/// The purpose for which a device was seized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seizure {
    /// For one guest: the device goes back to dom0 after that.
    ForGuest,
    /// For later guests: the device stays held until `bulkhead release`.
    ToKeep,
}

impl Seizure {
    /// The node of a device that was seized for this purpose. Its value is the driver that it was seized from.
    fn path(self, bdf: Bdf) -> String {
        let directory = match self {
            Self::ForGuest => "seized",
            Self::ToKeep => "kept",
        };
        format!("{ROOT}/{directory}/{}", node_name(bdf))
    }
}

/// Below that node: the command that seized the device.
const BY: &str = "by";

/// Records that a device was seized from a driver of dom0's. The name is empty if there was none. `by` identifies the
/// command.
pub fn record_seized(
    store: &mut Store,
    seizure: Seizure,
    bdf: Bdf,
    driver: &str,
    by: &str,
) -> Result<(), RecordError> {
    make_root(store)?;
    let path = seizure.path(bdf);
    store.transaction(|store| {
        // Both nodes are written at once: without `by`, no undo would give the device back.
        store.write(&path, driver)?;
        store.write(&format!("{path}/{BY}"), by)
    })?;
    Ok(())
}

/// Records that another command goes on with a device that a killed command had seized for a guest.
pub fn adopt_seized(store: &mut Store, bdf: Bdf, by: &str) -> Result<(), RecordError> {
    let path = Seizure::ForGuest.path(bdf);
    store.transaction(|store| match store.read_optional(&path)? {
        // A device that no command has seized gets no record, so it stays held in the end.
        Some(_) => store.write(&format!("{path}/{BY}"), by),
        None => Ok(()),
    })?;
    Ok(())
}

/// True if a device was seized for a guest by this command, and by none since.
pub fn is_seized_by(store: &mut Store, bdf: Bdf, by: &str) -> Result<bool, RecordError> {
    let path = Seizure::ForGuest.path(bdf);
    Ok(store.read_optional(&format!("{path}/{BY}"))?.as_deref() == Some(by))
}

/// The driver that a device was seized from; `None` if it was not seized for this purpose.
pub fn seized_from(store: &mut Store, seizure: Seizure, bdf: Bdf) -> Result<Option<String>, RecordError> {
    Ok(store.read_optional(&seizure.path(bdf))?)
}

/// Removes the record that a device was seized.
pub fn forget_seized(store: &mut Store, seizure: Seizure, bdf: Bdf) -> Result<(), RecordError> {
    Ok(store.remove(&seizure.path(bdf))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::dom0;
    use xenbus::model::Xenstored;

    #[test]
    fn devices_that_were_taken_are_remembered_and_forgotten() {
        let daemon = Xenstored::new();
        let mut store = dom0(&daemon);
        let bdf = "0000:00:05.0".parse().unwrap();
        for (seizure, other) in [
            (Seizure::ForGuest, Seizure::ToKeep),
            (Seizure::ToKeep, Seizure::ForGuest),
        ] {
            record_seized(&mut store, seizure, bdf, "e1000e", "run").unwrap();
            assert_eq!(
                seized_from(&mut store, seizure, bdf).unwrap().as_deref(),
                Some("e1000e")
            );
            assert_eq!(seized_from(&mut store, other, bdf).unwrap(), None);
            forget_seized(&mut store, seizure, bdf).unwrap();
            assert_eq!(seized_from(&mut store, seizure, bdf).unwrap(), None);
        }
    }

    #[test]
    fn a_device_is_taken_by_the_last_command_that_took_it() {
        let mut store = dom0(&Xenstored::new());
        let bdf = "0000:00:05.0".parse().unwrap();
        adopt_seized(&mut store, bdf, "second").unwrap();
        assert!(
            !is_seized_by(&mut store, bdf, "second").unwrap(),
            "nobody has taken it"
        );
        record_seized(&mut store, Seizure::ForGuest, bdf, "e1000e", "first").unwrap();
        assert!(is_seized_by(&mut store, bdf, "first").unwrap());
        adopt_seized(&mut store, bdf, "second").unwrap();
        assert!(!is_seized_by(&mut store, bdf, "first").unwrap());
        assert!(is_seized_by(&mut store, bdf, "second").unwrap());
        let driver = seized_from(&mut store, Seizure::ForGuest, bdf).unwrap();
        assert_eq!(driver.as_deref(), Some("e1000e"));
        forget_seized(&mut store, Seizure::ForGuest, bdf).unwrap();
        assert!(!is_seized_by(&mut store, bdf, "second").unwrap());
        record_seized(&mut store, Seizure::ToKeep, bdf, "e1000e", "first").unwrap();
        assert!(
            !is_seized_by(&mut store, bdf, "first").unwrap(),
            "not for a guest"
        );
    }
}
