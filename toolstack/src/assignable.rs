//! What libxl is told of the devices that guests have through stubs: `/libxl/pci/SSSS-BB-DD-F/domid`.
//!
//! libxl takes a device for free if xen-pciback holds it and it has no such node. It then resets the device, whoever has
//! it, and gives another guest its address ranges, before Xen refuses the assignment (`xl pci-attach`, `pci = […]`,
//! libvirt). So a device has the node from the transaction that records its attachment to the one that ends the record;
//! one in quarantine has it too, and one that a guest may still have mapped. A second node beside it tells whose it is, and libxl does not look at that.
//!
//! libxl removes `domid` whenever it fails to add a device, also where it refused because of that very node. The service
//! watches [`DEVICES`] and writes what is missing again ([`renew`]); until it has, libxl would take the device for free.

use crate::record::{self, Attachment, RecordError};
use crate::store::Store;
use crate::xenctrl::DomId;
use std::fmt;
use std::str::FromStr;
use xenbus::bdf::Bdf;
use xenbus::client::{Error, Store as Nodes};

/// Libxl's directory of devices.
pub const DEVICES: &str = "/libxl/pci";
/// Where libxl notes the guest of a device.
const DOMID: &str = "domid";
/// Our note beside it.
const HOLDER: &str = "bulkhead";

/// Why a device is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A guest has it.
    Guest {
        /// The guest.
        guest: DomId,
        /// Its stub, by which the record is found.
        stub: DomId,
    },
    /// Nobody may have it.
    Quarantine,
    /// No other guest may have it than this one, which had it and may still have it mapped.
    Mapped {
        /// The guest.
        guest: DomId,
    },
}

const QUARANTINE: &str = "quarantine";

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guest { guest, stub } => write!(f, "guest {guest} stub {stub}"),
            Self::Quarantine => f.write_str(QUARANTINE),
            Self::Mapped { guest } => write!(f, "mapped {guest}"),
        }
    }
}

impl FromStr for Holder {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let words: Vec<_> = text.split(' ').collect();
        match words[..] {
            ["guest", guest, "stub", stub] => Ok(Self::Guest {
                guest: guest.parse().map_err(drop)?,
                stub: stub.parse().map_err(drop)?,
            }),
            [QUARANTINE] => Ok(Self::Quarantine),
            ["mapped", guest] => Ok(Self::Mapped {
                guest: guest.parse().map_err(drop)?,
            }),
            _ => Err(()),
        }
    }
}

impl Holder {
    /// What libxl reads. It only looks whether there is anything; a device in quarantine is dom0's.
    fn domid(self) -> DomId {
        match self {
            Self::Guest { guest, .. } | Self::Mapped { guest } => guest,
            Self::Quarantine => 0,
        }
    }

    /// True if records say the same. A note is only as good as they are: whoever wrote it may have been killed.
    fn is_recorded<S: Nodes>(self, store: &mut S, bdf: Bdf) -> Result<bool, Error<S::TransportError>> {
        let path = match self {
            Self::Guest { stub, .. } => record::mode_path(stub, bdf),
            Self::Quarantine => record::quarantine_path(bdf),
            Self::Mapped { .. } => record::mapped_path(bdf),
        };
        Ok(store.read_optional(&path)?.is_some())
    }
}

fn directory(bdf: Bdf) -> String {
    format!("{DEVICES}/{}", record::node_name(bdf))
}

fn path(bdf: Bdf, key: &str) -> String {
    format!("{}/{key}", directory(bdf))
}

/// Whose a device is by our note; `None` if libxl's is its own, or there is none.
pub fn holder<S: Nodes>(store: &mut S, bdf: Bdf) -> Result<Option<Holder>, Error<S::TransportError>> {
    let text = store.read_optional(&path(bdf, HOLDER))?;
    Ok(text.and_then(|text| text.parse().ok()))
}

/// The domain that libxl itself has given a device to; `None` if there is no such, or the note is ours.
pub fn foreign<S: Nodes>(store: &mut S, bdf: Bdf) -> Result<Option<String>, Error<S::TransportError>> {
    match store.read_optional(&path(bdf, HOLDER))? {
        Some(_) => Ok(None),
        None => store.read_optional(&path(bdf, DOMID)),
    }
}

/// Tells libxl that a device is in use.
pub fn claim<S: Nodes>(store: &mut S, bdf: Bdf, holder: Holder) -> Result<(), Error<S::TransportError>> {
    store.write(&path(bdf, HOLDER), &holder.to_string())?;
    store.write(&path(bdf, DOMID), &holder.domid().to_string())
}

/// Tells libxl that a device is free, unless it is in quarantine, or a guest may still have it mapped. What libxl has noted itself stays.
pub fn unclaim<S: Nodes>(store: &mut S, bdf: Bdf) -> Result<(), Error<S::TransportError>> {
    if store.read_optional(&path(bdf, HOLDER))?.is_none() {
        return Ok(());
    }
    if Holder::Quarantine.is_recorded(store, bdf)? {
        return claim(store, bdf, Holder::Quarantine);
    }
    if let Some(guest) = record::mapping_guest(store, bdf)? {
        return claim(store, bdf, Holder::Mapped { guest });
    }
    for key in [HOLDER, DOMID] {
        store.remove(&path(bdf, key))?;
    }
    if store.directory(&directory(bdf))?.is_empty() {
        store.remove(&directory(bdf))?;
    }
    Ok(())
}

/// True if libxl reads of a device what this holder would have it read.
fn is_told<S: Nodes>(store: &mut S, bdf: Bdf, holder: Holder) -> Result<bool, Error<S::TransportError>> {
    let told = store.read_optional(&path(bdf, DOMID))?;
    let by_us = self::holder(store, bdf)? == Some(holder);
    Ok(by_us && told == Some(holder.domid().to_string()))
}

/// Makes libxl's notes what the records say, and removes ours that no record explains. Returns the devices of which
/// libxl had lost the note.
pub fn renew(store: &mut Store, attachments: &[Attachment]) -> Result<Vec<Bdf>, RecordError> {
    let mut expected: Vec<(Bdf, Holder)> = attachments
        .iter()
        .flat_map(|attachment| attachment.bdfs().map(|bdf| (bdf, attachment.holder())))
        .collect();
    let quarantined = record::quarantined(store)?;
    let quarantined = quarantined.into_iter().map(|(bdf, _)| (bdf, Holder::Quarantine));
    let mapped = record::mapped(store)?.into_iter();
    let mapped = mapped.map(|(bdf, guest)| (bdf, Holder::Mapped { guest: guest.domid }));
    for (bdf, holder) in quarantined.chain(mapped) {
        // One that is taken back at this moment is still its guest's.
        if expected.iter().all(|&(other, _)| other != bdf) {
            expected.push((bdf, holder));
        }
    }
    let mut renewed = Vec::new();
    for (bdf, holder) in expected {
        if is_told(store, bdf, holder)? {
            continue;
        }
        // The record may have gone since it was read.
        let claimed = store.transaction(|store| {
            let recorded = holder.is_recorded(store, bdf)?;
            if recorded {
                claim(store, bdf, holder)?;
            }
            Ok(recorded)
        })?;
        renewed.extend(claimed.then_some(bdf));
    }
    for name in record::children(store, DEVICES)? {
        let Some(bdf) = record::bdf_of(&name) else {
            continue;
        };
        store.transaction(|store| {
            let stale = match store.read_optional(&path(bdf, HOLDER))? {
                None => false,
                Some(text) => match text.parse::<Holder>() {
                    Ok(holder) => !holder.is_recorded(store, bdf)?,
                    Err(()) => true,
                },
            };
            if stale { unclaim(store, bdf) } else { Ok(()) }
        })?;
    }
    Ok(renewed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{attachment, device};
    use crate::store::tests::{dom0, introduce};
    use xenbus::model::Xenstored;

    const FIVE: &str = "/libxl/pci/0000-00-05-0";
    const SIX: &str = "/libxl/pci/0000-00-06-0";

    /// Libxl's notes: each node below its directory, with its value.
    fn notes(store: &mut Store) -> Vec<String> {
        let mut notes = Vec::new();
        for name in record::children(store, DEVICES).unwrap() {
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
        record::quarantine(&mut store, five, "it is mute").unwrap();
        let quarantined = ["0000-00-05-0 bulkhead quarantine", "0000-00-05-0 domid 0"];
        assert_eq!(notes(&mut store), quarantined);
        store.remove(FIVE).unwrap();
        assert_eq!(renew(&mut store, &[]).unwrap(), [five]);
        assert_eq!(notes(&mut store), quarantined);
        record::lift_quarantine(&mut store, five).unwrap();
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
        record::note_mapped(&mut store, bdf, &attachment.guest).unwrap();
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

        record::quarantine(&mut store, bdf, "it is mute").unwrap();
        record::forget_mapped(&mut store, bdf).unwrap();
        assert_eq!(holder(&mut store, bdf).unwrap(), Some(Holder::Quarantine));
        record::note_mapped(&mut store, bdf, &attachment.guest).unwrap();
        record::lift_quarantine(&mut store, bdf).unwrap();
        assert_eq!(holder(&mut store, bdf).unwrap(), Some(mapped));
        record::forget_mapped(&mut store, bdf).unwrap();
        assert_eq!(notes(&mut store), [""; 0]);

        record::note_mapped(&mut store, bdf, &attachment.guest).unwrap();
        renew(&mut store, &[]).unwrap();
        daemon.release(3);
        record::forget_dead_mappings(&mut store).unwrap();
        assert_eq!(notes(&mut store), [""; 0]);
    }

    #[test]
    fn a_device_that_comes_into_quarantine_when_it_leaves_its_guest_is_never_free_in_between() {
        let mut store = dom0(&Xenstored::new());
        let attachment = attachment();
        attachment.write(&mut store).unwrap();
        let five: Bdf = "00:05.0".parse().unwrap();
        record::quarantine(&mut store, five, "it is mute").unwrap();
        assert_eq!(notes(&mut store), BOTH);
        assert_eq!(renew(&mut store, std::slice::from_ref(&attachment)).unwrap(), []);
        assert_eq!(notes(&mut store), BOTH);
        attachment.remove(&mut store).unwrap();
        assert_eq!(
            notes(&mut store),
            ["0000-00-05-0 bulkhead quarantine", "0000-00-05-0 domid 0"]
        );
        // Of a guest's device it is lifted without setting it free.
        record::lift_quarantine(&mut store, five).unwrap();
        attachment.write(&mut store).unwrap();
        record::quarantine(&mut store, five, "it is mute").unwrap();
        record::lift_quarantine(&mut store, five).unwrap();
        assert_eq!(notes(&mut store), BOTH);
    }
}
