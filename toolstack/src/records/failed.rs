//! Guests that lost their devices because their stub could not be brought back. `bulkhead status` calls them
//! `failed`.
//!
//! A record is written before the guest's devices are unplugged, and goes when the guest gets devices anew, or ends.

use crate::host::domains::Domain;
use crate::host::store::{Store, StoreError};
use crate::records::{Attachment, RecordError, children, remove_from};
use crate::serde_text;
use pci::bdf::Bdf;
use serde::{Deserialize, Serialize};
use std::fmt;
use xen::xenctrl::DomId;
use xenbus::client::Store as _;

/// Directory of the records, by the guest's domid.
const FAILED: &str = "/local/domain/0/bulkhead/failed";

/// A guest that lost its devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Failed {
    /// The guest.
    pub guest: Domain,
    /// The stub's name.
    pub stub: String,
    /// The devices.
    #[serde(with = "serde_text::texts")]
    #[cfg_attr(test, schemars(with = "Vec<String>"))]
    pub devices: Vec<Bdf>,
    /// The reason, and what was done, in words.
    pub reason: String,
}

impl Failed {
    /// A guest that loses all its devices.
    pub fn new(attachment: &Attachment, reason: &str) -> Self {
        Self {
            guest: attachment.guest.clone(),
            stub: attachment.stub.name.clone(),
            devices: attachment.bdfs().collect(),
            reason: reason.to_owned(),
        }
    }

    /// Writes the record.
    pub fn write(&self, store: &mut Store) -> Result<(), RecordError> {
        Ok(store.write(&path(self.guest.domid), &serde_text::json(self))?)
    }

    /// Reads the record of a guest.
    pub fn of(store: &mut Store, guest: DomId) -> Result<Option<Self>, StoreError> {
        let text = store.read_optional(&path(guest))?;
        // A record that cannot be read is as good as none: it only explains.
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// Reads all records.
    pub fn all(store: &mut Store) -> Result<Vec<Self>, StoreError> {
        let guests = children(store, FAILED)?;
        let guests = guests.iter().filter_map(|name| name.parse().ok());
        let paths: Vec<String> = guests.map(path).collect();
        let texts = store.read_many(&paths)?.into_iter();
        Ok(texts
            .filter_map(|text| serde_json::from_str(&text?).ok())
            .collect())
    }
}

/// In words, with the next step.
impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let devices: Vec<_> = self.devices.iter().map(Bdf::to_string).collect();
        let (guest, devices) = (&self.guest.name, devices.join(" "));
        write!(
            f,
            "guest {guest} lost {devices}, because stub {} {}: `bulkhead attach {guest} --device {devices}` gives it \
             a new stub, once it has let go",
            self.stub, self.reason
        )
    }
}

/// Removes the record of a guest, if there is one, and the directory with the last.
pub fn forget(store: &mut Store, guest: DomId) -> Result<(), StoreError> {
    store.transaction(|store| remove_from(store, FAILED, &path(guest)))
}

fn path(guest: DomId) -> String {
    format!("{FAILED}/{guest}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::dom0;
    use crate::records::tests::{attachment, domain};
    use xenbus::model::Xenstored;

    #[test]
    fn a_failure_is_told_with_its_reason_and_the_next_step_until_the_guest_has_devices_anew() {
        let mut store = dom0(&Xenstored::new());
        assert_eq!(Failed::all(&mut store).unwrap(), []);
        forget(&mut store, 3).unwrap();
        let failed = Failed::new(&attachment(), "crashed 5 times in a row");
        failed.write(&mut store).unwrap();
        let all = Failed::all(&mut store).unwrap();
        assert_eq!(all, [failed]);
        assert_eq!(
            all[0].to_string(),
            "guest web lost 0000:00:05.0 0000:00:06.0, because stub web-bulkhead crashed 5 times in a row: `bulkhead \
             attach web --device 0000:00:05.0 0000:00:06.0` gives it a new stub, once it has let go"
        );
        let other = Failed {
            guest: domain(9, "mail"),
            ..all[0].clone()
        };
        other.write(&mut store).unwrap();
        forget(&mut store, 3).unwrap();
        assert_eq!(Failed::all(&mut store).unwrap(), [other]);
        forget(&mut store, 9).unwrap();
        assert!(store.directory(FAILED).is_err());
    }
}
