//! Devices that were taken from a guest which lives and may still have them mapped.

use super::assignable::{self, Holder};
use super::error::RecordError;
use super::paths::{MAPPED, bdf_of, children, make_root, mapped_path, remove_from};
use crate::host::domains::{Domain, is_alive};
use crate::host::store::Store;
use crate::serde_text::json;
use pci::bdf::Bdf;
use xen::xenctrl::DomId;
use xenbus::client::Store as _;

/// Records that a device was taken from a guest that lives. Xen forbids the guest new mappings of the device's
/// memory, but leaves those that it has.
pub fn record_mapped(store: &mut Store, bdf: Bdf, guest: &Domain) -> Result<(), RecordError> {
    make_root(store)?;
    Ok(store.write(&mapped_path(bdf), &json(guest))?)
}

/// The devices that a guest which lives may still have mapped, each with that guest.
pub fn mapped(store: &mut Store) -> Result<Vec<(Bdf, Domain)>, RecordError> {
    let mut devices = Vec::new();
    for bdf in children(store, MAPPED)?.iter().filter_map(|name| bdf_of(name)) {
        devices.extend(mapped_by(store, bdf)?.map(|guest| (bdf, guest)));
    }
    Ok(devices)
}

/// The guest that lives and may still have a device mapped, if there is one.
pub fn mapped_by(store: &mut Store, bdf: Bdf) -> Result<Option<Domain>, RecordError> {
    let path = mapped_path(bdf);
    let Some(text) = store.read_optional(&path)? else {
        return Ok(None);
    };
    match serde_json::from_str(&text) {
        Ok(guest) => Ok(is_alive(store, &guest)?.then_some(guest)),
        // The guest is unknown, so in doubt it lives.
        Err(_) => Ok(Some(Domain {
            domid: DomId::MAX,
            name: format!("of the damaged note {path}"),
            uuid: String::new(),
        })),
    }
}

/// Removes the record that a guest may have a device mapped. The guest must be dead, or trusted.
pub fn forget_mapped(store: &mut Store, bdf: Bdf) -> Result<(), RecordError> {
    store.transaction(|store| {
        remove_from(store, MAPPED, &mapped_path(bdf))?;
        match assignable::holder(store, bdf)? {
            // A device that a guest has again keeps its node.
            Some(Holder::Mapped { .. } | Holder::Quarantine) => assignable::unclaim(store, bdf),
            _ => Ok(()),
        }
    })?;
    Ok(())
}

/// Removes the records of guests that have ended.
pub fn forget_dead_mappings(store: &mut Store) -> Result<(), RecordError> {
    for bdf in children(store, MAPPED)?.iter().filter_map(|name| bdf_of(name)) {
        if mapped_by(store, bdf)?.is_none() {
            forget_mapped(store, bdf)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::{dom0, introduce};
    use crate::records::tests::domain;
    use xenbus::model::Xenstored;

    #[test]
    fn a_device_may_be_mapped_by_the_guest_that_had_it_until_that_has_ended() {
        let daemon = Xenstored::new();
        introduce(&daemon, 3, "web");
        let mut store = dom0(&daemon);
        let [five, six] = ["00:05.0", "00:06.0"].map(|bdf| bdf.parse().unwrap());
        assert_eq!(mapped(&mut store).unwrap(), []);
        for bdf in [five, six] {
            record_mapped(&mut store, bdf, &domain(3, "web")).unwrap();
        }
        forget_mapped(&mut store, six).unwrap();
        forget_mapped(&mut store, six).expect("once more does no harm");
        forget_dead_mappings(&mut store).unwrap();
        assert_eq!(mapped(&mut store).unwrap(), [(five, domain(3, "web"))]);
        // Another guest that got the number.
        let vm = "/vm/00000000-0000-0000-0000-000000000099";
        store.write("/local/domain/3/vm", vm).unwrap();
        assert_eq!(mapped_by(&mut store, five).unwrap(), None);
        assert_eq!(mapped(&mut store).unwrap(), []);
        forget_dead_mappings(&mut store).unwrap();
        assert_eq!(store.read_optional(MAPPED).unwrap(), None, "nor the directory");
        store.write(&mapped_path(five), "nonsense").unwrap();
        let guest = mapped_by(&mut store, five).unwrap().expect("in doubt it lives");
        assert!(guest.name.contains("mapped/0000-00-05-0"), "{guest:?}");
    }
}
