//! Devices whose host was suspended: what is still to be done for each.

use crate::host::store::{Store, StoreError};
use crate::host::suspends::Suspends;
use crate::records::{self, Attachment, Due, RecordError, Suspended};
use pci::bdf::Bdf;
use std::collections::{BTreeMap, BTreeSet};
use xen::xenctrl::DomId;

/// The devices, as they are recorded.
#[derive(Debug, Default)]
pub struct SuspendedDevices {
    /// The suspends that are dealt with; `None` before the record was read.
    count: Option<Suspends>,
    devices: BTreeMap<Bdf, Suspended>,
    /// Those of which a recovery has taken charge.
    telling: BTreeSet<Bdf>,
}

impl SuspendedDevices {
    /// Takes in what the kernel has counted by now. After a suspend there is something to do for all devices of guests.
    pub fn take_in(&mut self, store: &mut Store, count: Suspends) -> Result<(), RecordError> {
        if self.count == Some(count) {
            return Ok(());
        }
        let known = match self.count {
            Some(known) => Some(known),
            None => {
                self.devices = records::suspended(store)?;
                records::suspends_dealt_with(store)?
            }
        };
        if known != Some(count) {
            let mut devices = self.devices.clone();
            if let Some(due) = due_after(known, count) {
                let (attachments, _) = Attachment::all(store)?;
                for attachment in &attachments {
                    let stub = attachment.stub.domid;
                    for bdf in attachment.bdfs() {
                        let earlier = devices.get(&bdf).filter(|earlier| earlier.stub == stub);
                        let due = earlier.map_or(due, |earlier| due.max(earlier.due));
                        devices.insert(bdf, Suspended { stub, due });
                    }
                }
            }
            // Before anything is done: a process that dies leaves the rest to the next one.
            records::record_suspends(store, count, &devices)?;
            self.devices = devices;
        }
        self.count = Some(count);
        Ok(())
    }

    /// The devices that are not restored yet.
    pub fn to_restore(&self) -> Vec<(Bdf, Suspended)> {
        let devices = self.devices.iter().map(|(&bdf, &suspended)| (bdf, suspended));
        devices
            .filter(|(_, suspended)| suspended.due != Due::Tell)
            .collect()
    }

    /// A device was restored: now its guest is to be told.
    pub fn restored(&mut self, store: &mut Store, bdf: Bdf) -> Result<(), StoreError> {
        if let Some(suspended) = self.devices.get_mut(&bdf) {
            suspended.due = Due::Tell;
            records::record_suspended(store, bdf, *suspended)?;
        }
        Ok(())
    }

    /// The devices whose guests can be told now, each once, with their stubs.
    pub fn begin_telling(&mut self, has_link: impl Fn(DomId) -> bool) -> Vec<(DomId, Bdf)> {
        let mut found = Vec::new();
        for (&bdf, &Suspended { stub, due }) in &self.devices {
            if due == Due::Tell && has_link(stub) && self.telling.insert(bdf) {
                found.push((stub, bdf));
            }
        }
        found
    }

    /// What a stub's guest was being told is told anew when it has a stub again.
    pub fn tell_again(&mut self, stub: DomId) {
        let devices = &self.devices;
        self.telling
            .retain(|bdf| devices.get(bdf).is_some_and(|suspended| suspended.stub != stub));
    }

    /// Nothing is to be done for a device any more.
    pub fn done(&mut self, store: &mut Store, bdf: Bdf) -> Result<(), StoreError> {
        self.devices.remove(&bdf);
        self.telling.remove(&bdf);
        records::forget_suspended(store, bdf)
    }
}

/// What is to be done for the devices of guests.
fn due_after(known: Option<Suspends>, now: Suspends) -> Option<Due> {
    // Without a record no service of this kind has seen these suspends, and the guests went on after them without its help.
    let Some(known) = known else {
        return (now != Suspends::default()).then_some(Due::Check);
    };
    if now.succeeded > known.succeeded {
        return Some(Due::Restore);
    }
    // Devices may have been without power before the kernel gave up.
    (now.failed > known.failed).then_some(Due::Check)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::dom0;
    use crate::records::tests::attachment;
    use xenbus::model::Xenstored;

    const fn count(succeeded: u64, failed: u64) -> Suspends {
        Suspends { succeeded, failed }
    }

    #[test]
    fn what_is_due_depends_on_what_was_counted_and_on_what_is_known_of_it() {
        for (known, now, due) in [
            (None, count(0, 0), None),
            (None, count(3, 0), Some(Due::Check)),
            (None, count(0, 1), Some(Due::Check)),
            (Some(count(0, 0)), count(1, 0), Some(Due::Restore)),
            (Some(count(3, 1)), count(4, 2), Some(Due::Restore)),
            (Some(count(3, 1)), count(3, 2), Some(Due::Check)),
            (Some(count(3, 1)), count(3, 1), None),
            (Some(count(3, 1)), count(0, 0), None),
        ] {
            assert_eq!(due_after(known, now), due, "{known:?} {now:?}");
        }
    }

    #[test]
    fn a_service_goes_on_where_the_last_one_died() {
        let daemon = Xenstored::new();
        let store = &mut dom0(&daemon);
        let (attachment, linked) = (attachment(), |_| true);
        let stub = attachment.stub.domid;
        let bdfs: Vec<Bdf> = attachment.bdfs().collect();
        attachment.write(store).unwrap();
        SuspendedDevices::default().take_in(store, count(0, 0)).unwrap();

        // It dies before it has done anything.
        SuspendedDevices::default().take_in(store, count(1, 0)).unwrap();
        let mut next = SuspendedDevices::default();
        next.take_in(store, count(1, 0)).unwrap();
        let due = Due::Restore;
        let expected: Vec<_> = bdfs.iter().map(|&bdf| (bdf, Suspended { stub, due })).collect();
        assert_eq!(next.to_restore(), expected);
        assert_eq!(next.begin_telling(linked), []);

        // It dies when the devices are restored, and their guest knows nothing.
        for &bdf in &bdfs {
            next.restored(store, bdf).unwrap();
        }
        let mut last = SuspendedDevices::default();
        last.take_in(store, count(1, 0)).unwrap();
        assert_eq!(last.to_restore(), []);
        assert_eq!(last.begin_telling(|_| false), [], "not yet");
        let told: Vec<_> = bdfs.iter().map(|&bdf| (stub, bdf)).collect();
        assert_eq!(last.begin_telling(linked), told);
        assert_eq!(last.begin_telling(linked), [], "once");
        last.tell_again(stub);
        assert_eq!(last.begin_telling(linked), told, "its stub was another one");

        // A suspend that fails meanwhile changes nothing about that.
        last.take_in(store, count(1, 1)).unwrap();
        assert_eq!(last.to_restore(), []);
        for &bdf in &bdfs {
            last.done(store, bdf).unwrap();
        }
        assert!(records::suspended(store).unwrap().is_empty());
        let mut idle = SuspendedDevices::default();
        idle.take_in(store, count(1, 1)).unwrap();
        assert_eq!(idle.to_restore(), []);
    }
}
