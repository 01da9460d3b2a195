//! Devices that a guest had when it ended, and has again when it starts the next time: by the guest's UUID, which a reboot
//! keeps.
//!
//! The record is written when the service finds the guest dead. It goes when the guest has its devices again, and when
//! `bulkhead destroy` or `bulkhead release` says that they are not to come back.

use super::attachment::Attachment;
use super::error::RecordError;
use super::paths::{children, make_root, remove_from};
use crate::host::domains::Domain;
use crate::host::guest_config::StubOrigin;
use crate::host::store::{Store, StoreError};
use crate::serde_text;
use crate::terms::Terms;
use pci::bdf::Bdf;
use serde::{Deserialize, Serialize};
use xenbus::client::Store as _;
use xenbus::device::{Ids, SlotMode};

/// Directory of the records, by UUID.
const CARRIED: &str = "/local/domain/0/bulkhead/carried";

/// A device that is carried over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedDevice {
    /// The device.
    #[serde(with = "serde_text::text")]
    pub bdf: Bdf,
    /// Its ids: another device at that address is not the guest's.
    #[serde(with = "serde_text::text")]
    pub ids: Ids,
    /// The terms on which the guest had it.
    pub terms: Terms,
}

/// The devices of a guest that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// The guest that had them.
    pub guest: Domain,
    /// The devices.
    pub devices: Vec<CarriedDevice>,
    /// How the guest addressed them.
    #[serde(with = "serde_text::text")]
    pub slots: SlotMode,
    /// What the stub was created from.
    #[serde(flatten)]
    pub origin: StubOrigin,
}

impl Carried {
    /// The devices of this attachment, whose stub was created from this.
    pub fn new(attachment: &Attachment, origin: StubOrigin) -> Self {
        let devices = attachment.devices.iter();
        Self {
            guest: attachment.guest.clone(),
            devices: devices
                .map(|device| CarriedDevice {
                    bdf: device.bdf,
                    ids: device.ids,
                    terms: device.terms.clone(),
                })
                .collect(),
            slots: attachment.slots,
            origin,
        }
    }

    /// Writes the record. A device is carried over for one guest only: the last that had it.
    pub fn write(&self, store: &mut Store) -> Result<(), RecordError> {
        // Without a UUID nothing tells the guest from another one.
        if self.guest.uuid.is_empty() || self.devices.is_empty() {
            return Ok(());
        }
        for device in &self.devices {
            drop_carried(store, device.bdf)?;
        }
        make_root(store)?;
        Ok(store.write(&path(&self.guest.uuid), &serde_text::json(self))?)
    }

    /// The record of the guest with this UUID.
    pub fn of(store: &mut Store, uuid: &str) -> Result<Option<Self>, StoreError> {
        if uuid.is_empty() {
            return Ok(None);
        }
        let text = store.read_optional(&path(uuid))?;
        // A record that cannot be read names no device, so none is given by it.
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// All records.
    pub fn all(store: &mut Store) -> Result<Vec<Self>, StoreError> {
        let mut all = Vec::new();
        for uuid in children(store, CARRIED)? {
            all.extend(Self::of(store, &uuid)?);
        }
        Ok(all)
    }
}

/// Removes the record of the guest with this UUID, if there is one.
pub fn forget_carried(store: &mut Store, uuid: &str) -> Result<(), StoreError> {
    if uuid.is_empty() {
        return Ok(());
    }
    store.transaction(|store| remove_from(store, CARRIED, &path(uuid)))
}

/// Takes a device out of the record that has it; returns the guest.
pub fn drop_carried(store: &mut Store, bdf: Bdf) -> Result<Option<Domain>, StoreError> {
    let mut had = None;
    for mut carried in Carried::all(store)? {
        let before = carried.devices.len();
        carried.devices.retain(|device| device.bdf != bdf);
        if carried.devices.len() == before {
            continue;
        }
        if carried.devices.is_empty() {
            forget_carried(store, &carried.guest.uuid)?;
        } else {
            store.write(&path(&carried.guest.uuid), &serde_text::json(&carried))?;
        }
        had = Some(carried.guest);
    }
    Ok(had)
}

fn path(uuid: &str) -> String {
    format!("{CARRIED}/{uuid}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::dom0;
    use crate::records::tests::{attachment, domain, origin};
    use xenbus::model::Xenstored;

    fn carried(attachment: &Attachment) -> Carried {
        Carried::new(attachment, origin())
    }

    #[test]
    fn what_a_guest_had_is_found_by_its_uuid_until_it_is_forgotten() {
        let mut store = dom0(&Xenstored::new());
        let web = carried(&attachment());
        let uuid = web.guest.uuid.clone();
        assert_eq!(Carried::of(&mut store, &uuid).unwrap(), None);
        web.write(&mut store).unwrap();
        assert_eq!(Carried::of(&mut store, &uuid).unwrap(), Some(web.clone()));
        assert_eq!(Carried::all(&mut store).unwrap(), [web]);
        for _ in 0..2 {
            forget_carried(&mut store, &uuid).unwrap();
        }
        assert_eq!(store.read_optional(CARRIED).unwrap(), None, "nor the directory");
    }

    #[test]
    fn a_device_is_carried_over_for_the_last_guest_that_had_it() {
        let mut store = dom0(&Xenstored::new());
        let web = carried(&attachment());
        web.write(&mut store).unwrap();
        let mail = carried(&Attachment {
            guest: domain(9, "mail"),
            ..attachment().without(&[web.devices[1].bdf])
        });
        mail.write(&mut store).unwrap();
        let left = Carried::of(&mut store, &web.guest.uuid).unwrap().unwrap();
        assert_eq!(left.devices, web.devices[1..]);
        assert_eq!(Carried::of(&mut store, &mail.guest.uuid).unwrap(), Some(mail));
        assert_eq!(
            drop_carried(&mut store, web.devices[1].bdf).unwrap(),
            Some(web.guest.clone())
        );
        assert_eq!(drop_carried(&mut store, web.devices[1].bdf).unwrap(), None);
        assert_eq!(Carried::of(&mut store, &web.guest.uuid).unwrap(), None);
    }

    #[test]
    fn a_guest_without_a_uuid_is_no_guest_to_wait_for() {
        let mut store = dom0(&Xenstored::new());
        let mut web = carried(&attachment());
        web.guest.uuid.clear();
        web.write(&mut store).unwrap();
        assert_eq!(Carried::all(&mut store).unwrap(), []);
        assert_eq!(Carried::of(&mut store, "").unwrap(), None);
        forget_carried(&mut store, "").unwrap();
    }
}
