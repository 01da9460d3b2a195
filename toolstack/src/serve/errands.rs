//! Work of the service that concerns no single stub.

use super::known::KnownRecords;
use crate::host::domains::{Domain, are_alive, have_homes};
use crate::host::store::Store;
use crate::records::failed::{self, Failed};
use crate::records::{self, GuestStart, RecordError, assignable, bdf_of, forget_start};
use crate::serve::log_limit::{LogLimit, log_limited};
use log::Level;
use pci::bdf::Bdf;
use std::collections::BTreeSet;
use std::mem;

/// Removes the records of failures, of starts and of mapped devices of guests that have ended.
pub fn tidy(store: &mut Store, known: &mut KnownRecords) -> Result<(), RecordError> {
    let failed = Failed::all(store)?;
    let guests: Vec<&Domain> = failed.iter().map(|failed| &failed.guest).collect();
    for (guest, is_alive) in guests.iter().zip(are_alive(store, &guests)?) {
        if !is_alive {
            failed::forget(store, guest.domid)?;
        }
    }
    let attachments = known.all(store)?;
    let mut starts = GuestStart::all(store)?;
    // It tells whether the devices of a guest that has ended are carried over.
    let has_devices = |domid| {
        attachments
            .iter()
            .any(|attachment| attachment.guest.domid == domid)
    };
    starts.retain(|start| !has_devices(start.guest.domid));
    let guests: Vec<&Domain> = starts.iter().map(|start| &start.guest).collect();
    for (guest, has_home) in guests.iter().zip(have_homes(store, &guests)?) {
        if !has_home {
            forget_start(store, guest.domid)?;
        }
    }
    records::forget_dead_mappings(store)
}

/// libxl's notes of devices that have changed since they were last checked.
#[derive(Debug)]
pub enum Notes {
    /// Perhaps all.
    All,
    /// Those of these devices.
    Some(BTreeSet<Bdf>),
}

impl Notes {
    /// Takes in that this node has changed, at or below [`assignable::DEVICES`].
    pub fn hear(&mut self, node: &str) {
        let below = node
            .strip_prefix(assignable::DEVICES)
            .and_then(|below| below.strip_prefix('/'));
        let bdf = below.and_then(|below| bdf_of(below.split('/').next()?));
        match (self, bdf) {
            (Self::Some(devices), Some(bdf)) => _ = devices.insert(bdf),
            (notes, _) => *notes = Self::All,
        }
    }

    /// Writes notes again where they are missing. Without its note, libxl takes a device for free.
    pub fn renew(
        &mut self,
        store: &mut Store,
        known: &mut KnownRecords,
        complaints: &mut LogLimit,
    ) -> Result<(), RecordError> {
        let attachments = known.all(store)?;
        // If this fails, all are checked the next time.
        let renewed = match mem::replace(self, Self::All) {
            Self::All => records::renew(store, &attachments)?,
            Self::Some(devices) => {
                let mut renewed = Vec::new();
                for bdf in devices {
                    renewed.extend(records::renew_device(store, &attachments, bdf)?.then_some(bdf));
                }
                renewed
            }
        };
        *self = Self::Some(BTreeSet::new());
        for bdf in renewed {
            log_limited!(
                complaints,
                Level::Warn,
                "libxl had lost the note that {bdf} is in use, as it does when it refuses the device to another guest: \
                 written again"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::{dom0, introduce};
    use crate::records::Stage;
    use crate::records::tests::{attachment, domain};
    use std::time::Instant;
    use xenbus::client::Store as _;
    use xenbus::model::Xenstored;

    const NOTES: [&str; 2] = ["/libxl/pci/0000-00-05-0", "/libxl/pci/0000-00-06-0"];

    fn lose(store: &mut Store) {
        NOTES.iter().for_each(|note| store.remove(note).unwrap());
    }

    #[test]
    fn only_notes_of_devices_that_an_event_has_named_are_checked() {
        let mut store = dom0(&Xenstored::new());
        attachment().write(&mut store).unwrap();
        let mut notes = Notes::All;
        let renew = |notes: &mut Notes, store: &mut Store| {
            let mut complaints = LogLimit::new(Instant::now());
            notes
                .renew(store, &mut KnownRecords::default(), &mut complaints)
                .unwrap();
            NOTES.map(|note| store.read_optional(note).unwrap().is_some())
        };
        lose(&mut store);
        assert_eq!(
            renew(&mut notes, &mut store),
            [true, true],
            "a service that starts checks all"
        );
        lose(&mut store);
        notes.hear(&format!("{}/domid", NOTES[1]));
        assert_eq!(renew(&mut notes, &mut store), [false, true]);
        // Events that were folded, or that name no device.
        for node in ["/libxl/pci", "/libxl/pci/nonsense"] {
            lose(&mut store);
            notes.hear(NOTES[1]);
            notes.hear(node);
            notes.hear(NOTES[1]);
            assert_eq!(renew(&mut notes, &mut store), [true, true], "{node}");
        }
    }

    #[test]
    fn the_record_of_a_start_stays_while_the_guest_lives_or_its_devices_are_recorded() {
        let daemon = Xenstored::new();
        let mut store = dom0(&daemon);
        introduce(&daemon, 7, "mail");
        attachment().write(&mut store).unwrap();
        for (domid, name) in [(3, "web"), (7, "mail"), (9, "post")] {
            let stage = Stage::Given { declared: true };
            let guest = domain(domid, name);
            GuestStart { guest, stage }.write(&mut store).unwrap();
        }
        let left = |store: &mut Store| {
            tidy(store, &mut KnownRecords::default()).unwrap();
            GuestStart::domids(store).unwrap()
        };
        assert_eq!(left(&mut store), [3, 7]);
        attachment().remove(&mut store).unwrap();
        assert_eq!(left(&mut store), [7]);
    }
}
