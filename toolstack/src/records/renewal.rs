//! Brings libxl's nodes of devices in line with the records.

use super::assignable::{DEVICES, HOLDER, Holder, claim, is_told, path, unclaim};
use super::attachment::Attachment;
use super::error::RecordError;
use super::mapped::{mapped, mapped_by};
use super::paths::{bdf_of, children};
use super::quarantine::{quarantine_reason, quarantined};
use crate::host::store::{Store, StoreError};
use pci::bdf::Bdf;
use std::collections::BTreeSet;
use xenbus::client::Store as _;

/// Writes the nodes that the records call for, and removes those of ours that no record explains. Returns the devices
/// whose nodes were missing or wrong.
pub fn renew(store: &mut Store, attachments: &[Attachment]) -> Result<Vec<Bdf>, RecordError> {
    let mut devices: BTreeSet<Bdf> = attachments.iter().flat_map(Attachment::bdfs).collect();
    devices.extend(quarantined(store)?.iter().map(|(bdf, _)| bdf));
    devices.extend(mapped(store)?.iter().map(|(bdf, _)| bdf));
    devices.extend(children(store, DEVICES)?.iter().filter_map(|name| bdf_of(name)));
    let mut renewed = Vec::new();
    for bdf in devices {
        renewed.extend(renew_device(store, attachments, bdf)?.then_some(bdf));
    }
    Ok(renewed)
}

/// As [`renew`], for one device. Returns true if its nodes were missing or wrong.
pub fn renew_device(store: &mut Store, attachments: &[Attachment], bdf: Bdf) -> Result<bool, RecordError> {
    let Some(holder) = expected(store, attachments, bdf)? else {
        return Ok(remove_stale(store, bdf).map(|()| false)?);
    };
    if is_told(store, bdf, holder)? {
        return Ok(false);
    }
    // The record may have gone since it was read.
    let claimed = store.transaction(|store| {
        let recorded = holder.is_recorded(store, bdf)?;
        if recorded {
            claim(store, bdf, holder)?;
        }
        Ok(recorded)
    })?;
    if !claimed {
        remove_stale(store, bdf)?;
    }
    Ok(claimed)
}

/// The holder of a device by the records.
fn expected(store: &mut Store, attachments: &[Attachment], bdf: Bdf) -> Result<Option<Holder>, RecordError> {
    // A device that is being taken back is still its guest's.
    let attachment = attachments
        .iter()
        .find(|attachment| attachment.bdfs().any(|other| other == bdf));
    if let Some(attachment) = attachment {
        return Ok(Some(attachment.holder()));
    }
    if quarantine_reason(store, bdf)?.is_some() {
        return Ok(Some(Holder::Quarantine));
    }
    let guest = mapped_by(store, bdf)?;
    Ok(guest.map(|guest| Holder::Mapped { guest: guest.domid }))
}

/// Removes our nodes of a device if no record explains them.
fn remove_stale(store: &mut Store, bdf: Bdf) -> Result<(), StoreError> {
    store.transaction(|store| {
        let stale = match store.read_optional(&path(bdf, HOLDER))? {
            None => false,
            Some(text) => match text.parse::<Holder>() {
                Ok(holder) => !holder.is_recorded(store, bdf)?,
                // A text that is not understood names no record.
                Err(()) => true,
            },
        };
        if stale { unclaim(store, bdf) } else { Ok(()) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::{dom0, introduce};
    use crate::records;
    use crate::records::assignable::*;
    use crate::records::tests::{attachment, device};
    use xenbus::model::Xenstored;

    const FIVE: &str = "/libxl/pci/0000-00-05-0";
    const SIX: &str = "/libxl/pci/0000-00-06-0";

    /// Libxl's notes: each node below its directory, with its value.
    fn notes(store: &mut Store) -> Vec<String> {
        let mut notes = Vec::new();
        for name in records::children(store, DEVICES).unwrap() {
            for key in store.directory(&format!("{DEVICES}/{name}")).unwrap() {
                let value = store.read(&format!("{DEVICES}/{name}/{key}")).unwrap();
                notes.push(format!("{name} {key} {value}"));
            }
        }
        notes.sort();
        notes
    }

    const BOTH: [&str; 4] = [
        "0000-00-05-0 bulkhead guest 3 stub 4",
        "0000-00-05-0 domid 3",
        "0000-00-06-0 bulkhead guest 3 stub 4",
        "0000-00-06-0 domid 3",
    ];

    #[test]
    fn libxl_reads_that_a_device_is_in_use_as_long_as_it_is_recorded() {
        let mut store = dom0(&Xenstored::new());
        let mut attachment = attachment();
        attachment.write(&mut store).unwrap();
        assert_eq!(notes(&mut store), BOTH);

        attachment = attachment.with(vec![device("00:07.0")]);
        attachment.write(&mut store).unwrap();
        assert_eq!(store.read("/libxl/pci/0000-00-07-0/domid").unwrap(), "3");
        attachment = attachment.without(&["00:05.0".parse().unwrap()]);
        attachment.write(&mut store).unwrap();
        assert_eq!(store.directory(DEVICES).unwrap().len(), 2);
        assert_eq!(store.read_optional(FIVE).unwrap(), None);

        attachment.remove(&mut store).unwrap();
        assert_eq!(notes(&mut store), [""; 0]);
    }

    #[test]
    fn what_libxl_noted_itself_stays() {
        let mut store = dom0(&Xenstored::new());
        let driver = format!("{FIVE}/driver_path");
        store.write(&driver, "/sys/bus/pci/drivers/e1000e").unwrap();
        store.write("/libxl/pci/0000-00-09-0/domid", "7").unwrap();
        let attachment = attachment();
        attachment.write(&mut store).unwrap();
        attachment.remove(&mut store).unwrap();
        assert_eq!(renew(&mut store, &[]).unwrap(), []);
        let left = [
            "0000-00-05-0 driver_path /sys/bus/pci/drivers/e1000e",
            "0000-00-09-0 domid 7",
        ];
        assert_eq!(notes(&mut store), left);
    }

    #[test]
    fn a_device_that_libxl_has_given_away_is_not_recorded() {
        let mut store = dom0(&Xenstored::new());
        store.write(&format!("{SIX}/domid"), "9").unwrap();
        let error = attachment().write(&mut store).unwrap_err().to_string();
        assert!(
            error.starts_with("domain 9 has 0000:00:06.0 through dom0's xen-pciback"),
            "{error}"
        );
        assert_eq!(Attachment::read(&mut store, 4).unwrap(), None);
        assert_eq!(notes(&mut store), ["0000-00-06-0 domid 9"]);
    }

    #[test]
    fn a_note_that_libxl_has_removed_or_overwritten_is_written_again() {
        let mut store = dom0(&Xenstored::new());
        let attachments = [attachment()];
        attachments[0].write(&mut store).unwrap();
        assert_eq!(renew(&mut store, &attachments).unwrap(), []);

        store.remove(&format!("{FIVE}/domid")).unwrap();
        store.write(&format!("{SIX}/domid"), "9").unwrap();
        let both: Vec<Bdf> = attachments[0].bdfs().collect();
        assert_eq!(renew(&mut store, &attachments).unwrap(), both);
        assert_eq!(notes(&mut store), BOTH);

        // Without a word of whose it is, libxl's note would count as its own.
        store.remove(&format!("{SIX}/bulkhead")).unwrap();
        assert_eq!(renew(&mut store, &attachments).unwrap(), both[1..]);
        assert_eq!(notes(&mut store), BOTH);

        // Of a record by an earlier version there are none.
        store.remove(FIVE).unwrap();
        assert_eq!(renew(&mut store, &attachments).unwrap(), both[..1]);
        assert_eq!(notes(&mut store), BOTH);
    }

    #[test]
    fn notes_of_ours_that_no_record_explains_are_removed() {
        let mut store = dom0(&Xenstored::new());
        let attachment = attachment();
        attachment.write(&mut store).unwrap();
        for (node, value) in [
            ("/libxl/pci/0000-00-09-0/bulkhead", "guest 3 stub 8"),
            ("/libxl/pci/0000-00-09-0/domid", "3"),
            ("/libxl/pci/0000-00-0a-0/bulkhead", "quarantine"),
            ("/libxl/pci/0000-00-0a-0/domid", "0"),
            ("/libxl/pci/0000-00-0b-0/bulkhead", "of another version"),
            ("/libxl/pci/nonsense/bulkhead", "x"),
        ] {
            store.write(node, value).unwrap();
        }
        assert_eq!(renew(&mut store, &[attachment]).unwrap(), []);
        store.remove("/libxl/pci/nonsense").unwrap();
        assert_eq!(notes(&mut store), BOTH);
    }

    #[test]
    fn a_record_that_went_after_it_was_read_is_not_noted_again() {
        let mut store = dom0(&Xenstored::new());
        let attachment = attachment();
        attachment.write(&mut store).unwrap();
        attachment.remove(&mut store).unwrap();
        assert_eq!(renew(&mut store, &[attachment]).unwrap(), []);
        assert_eq!(notes(&mut store), [""; 0]);
    }

    #[test]
    fn a_device_in_quarantine_is_in_use_until_that_is_lifted() {
        let mut store = dom0(&Xenstored::new());
        let five: Bdf = "00:05.0".parse().unwrap();
        records::quarantine(&mut store, five, "it is mute").unwrap();
        let quarantined = ["0000-00-05-0 bulkhead quarantine", "0000-00-05-0 domid 0"];
        assert_eq!(notes(&mut store), quarantined);
        store.remove(FIVE).unwrap();
        assert_eq!(renew(&mut store, &[]).unwrap(), [five]);
        assert_eq!(notes(&mut store), quarantined);
        records::lift_quarantine(&mut store, five).unwrap();
        assert_eq!(notes(&mut store), [""; 0]);
    }

    #[test]
    fn a_device_that_a_guest_may_still_have_mapped_is_in_use_for_libxl_until_that_has_ended() {
        let daemon = Xenstored::new();
        introduce(&daemon, 3, "web");
        let mut store = dom0(&daemon);
        let attachment = attachment();
        attachment.write(&mut store).unwrap();
        let bdf = attachment.devices[0].bdf;
        records::record_mapped(&mut store, bdf, &attachment.guest).unwrap();
        assert_eq!(holder(&mut store, bdf).unwrap(), Some(attachment.holder()));
        attachment.remove(&mut store).unwrap();
        let mapped = Holder::Mapped { guest: 3 };
        assert_eq!(holder(&mut store, bdf).unwrap(), Some(mapped));
        assert_eq!(store.read(&format!("{FIVE}/domid")).unwrap(), "3");
        assert_eq!(mapped.to_string().parse(), Ok(mapped));
        // As libxl does when it refuses the device.
        store.remove(&format!("{FIVE}/domid")).unwrap();
        assert_eq!(renew(&mut store, &[]).unwrap(), [bdf]);
        assert_eq!(store.read(&format!("{FIVE}/domid")).unwrap(), "3");

        records::quarantine(&mut store, bdf, "it is mute").unwrap();
        records::forget_mapped(&mut store, bdf).unwrap();
        assert_eq!(holder(&mut store, bdf).unwrap(), Some(Holder::Quarantine));
        records::record_mapped(&mut store, bdf, &attachment.guest).unwrap();
        records::lift_quarantine(&mut store, bdf).unwrap();
        assert_eq!(holder(&mut store, bdf).unwrap(), Some(mapped));
        records::forget_mapped(&mut store, bdf).unwrap();
        assert_eq!(notes(&mut store), [""; 0]);

        records::record_mapped(&mut store, bdf, &attachment.guest).unwrap();
        renew(&mut store, &[]).unwrap();
        daemon.release(3);
        records::forget_dead_mappings(&mut store).unwrap();
        assert_eq!(notes(&mut store), [""; 0]);
    }

    #[test]
    fn a_device_that_comes_into_quarantine_when_it_leaves_its_guest_is_never_free_in_between() {
        let mut store = dom0(&Xenstored::new());
        let attachment = attachment();
        attachment.write(&mut store).unwrap();
        let five: Bdf = "00:05.0".parse().unwrap();
        records::quarantine(&mut store, five, "it is mute").unwrap();
        assert_eq!(notes(&mut store), BOTH);
        assert_eq!(renew(&mut store, std::slice::from_ref(&attachment)).unwrap(), []);
        assert_eq!(notes(&mut store), BOTH);
        attachment.remove(&mut store).unwrap();
        assert_eq!(
            notes(&mut store),
            ["0000-00-05-0 bulkhead quarantine", "0000-00-05-0 domid 0"]
        );
        // Of a guest's device it is lifted without setting it free.
        records::lift_quarantine(&mut store, five).unwrap();
        attachment.write(&mut store).unwrap();
        records::quarantine(&mut store, five, "it is mute").unwrap();
        records::lift_quarantine(&mut store, five).unwrap();
        assert_eq!(notes(&mut store), BOTH);
    }
}
