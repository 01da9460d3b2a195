//! The records of attachments, as they were last read. xenstore tells which may have changed, and only those are read again: a
//! look at one stub costs the same however many there are.
//!
//! Interrupt modes change without an event ([`super::agenda::concern`]). Who needs them reads the record itself.

use crate::host::store::Store;
use crate::records::{self, ATTACHMENTS, Attachment, RecordError};
use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use xen::xenctrl::DomId;

/// The records that were read and have not changed since, by stub.
#[derive(Debug, Default)]
pub struct KnownRecords(BTreeMap<DomId, Attachment>);

impl KnownRecords {
    /// The record of a stub may have changed.
    pub fn forget(&mut self, stub: DomId) {
        self.0.remove(&stub);
    }

    /// The record of a stub, if it was read since it last changed.
    pub fn get(&self, stub: DomId) -> Option<&Attachment> {
        self.0.get(&stub)
    }

    /// The record of a stub; `None` if there is none.
    pub fn read(&mut self, store: &mut Store, stub: DomId) -> Result<Option<Attachment>, RecordError> {
        if let Some(known) = self.0.get(&stub) {
            return Ok(Some(known.clone()));
        }
        let read = Attachment::read(store, stub)?;
        if let Some(attachment) = &read {
            self.0.insert(stub, attachment.clone());
        }
        Ok(read)
    }

    /// Reads all records again. Returns the stubs that have one, and of them those whose record is not what was known.
    pub fn read_again(&mut self, store: &mut Store) -> Result<[BTreeSet<DomId>; 2], RecordError> {
        let (attachments, damaged) = Attachment::all(store)?;
        let sound = attachments.iter().map(|attachment| attachment.stub.domid);
        let stubs: BTreeSet<DomId> = sound
            .chain(damaged.iter().filter_map(RecordError::stub))
            .collect();
        let of_stub = attachments
            .into_iter()
            .map(|attachment| (attachment.stub.domid, attachment));
        let known = mem::replace(&mut self.0, of_stub.collect());
        // A damaged record is none that was known.
        let is_new = |stub: &DomId| self.0.get(stub).is_none_or(|now| known.get(stub) != Some(now));
        let changed = stubs.iter().copied().filter(is_new).collect();
        Ok([stubs, changed])
    }

    /// All records that can be read. One that a command has just made is among them, whether or not its event was taken in.
    pub fn all(&mut self, store: &mut Store) -> Result<Vec<Attachment>, RecordError> {
        let mut all = Vec::new();
        for name in records::children(store, ATTACHMENTS)? {
            let Ok(stub) = name.parse() else {
                continue;
            };
            match self.read(store, stub) {
                Ok(attachment) => all.extend(attachment),
                // A damaged record is complained of when its stub has its turn, and does not hide the others.
                Err(error) if error.stub().is_some() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::dom0;
    use crate::records::interrupt_mode::Mode;
    use crate::records::tests::{attachment, device, domain};
    use xenbus::client::Store as _;
    use xenbus::model::Xenstored;

    #[test]
    fn a_record_is_read_again_when_it_may_have_changed_and_not_before() {
        let mut store = dom0(&Xenstored::new());
        let mut known = KnownRecords::default();
        assert_eq!(known.read(&mut store, 4).unwrap(), None);
        attachment().write(&mut store).unwrap();
        assert_eq!(known.read(&mut store, 4).unwrap(), Some(attachment()));
        let smaller = attachment().without(&["00:05.0".parse().unwrap()]);
        smaller.write(&mut store).unwrap();
        assert_eq!(known.read(&mut store, 4).unwrap(), Some(attachment()));
        known.forget(5);
        assert_eq!(known.get(4), Some(&attachment()));
        known.forget(4);
        assert_eq!(known.get(4), None);
        assert_eq!(known.read(&mut store, 4).unwrap(), Some(smaller.clone()));
    }

    #[test]
    fn when_all_are_read_again_those_that_have_changed_are_told() {
        let mut store = dom0(&Xenstored::new());
        let mut known = KnownRecords::default();
        let mut read = |store: &mut Store| known.read_again(store).unwrap().map(Vec::from_iter);
        attachment().write(&mut store).unwrap();
        store
            .write("/local/domain/0/bulkhead/attachment/11", "damaged")
            .unwrap();
        assert_eq!(read(&mut store), [vec![4, 11], vec![4, 11]]);
        assert_eq!(read(&mut store), [vec![4, 11], vec![11]]);
        attachment()
            .without(&["00:05.0".parse().unwrap()])
            .write(&mut store)
            .unwrap();
        assert_eq!(read(&mut store), [vec![4, 11], vec![4, 11]]);
        attachment().remove(&mut store).unwrap();
        store.remove("/local/domain/0/bulkhead/attachment/4").unwrap();
        assert_eq!(read(&mut store), [vec![11], vec![11]]);
    }

    #[test]
    fn to_read_all_again_takes_as_many_round_trips_for_many_stubs_as_for_one() {
        let waits = |stubs: DomId| {
            let daemon = Xenstored::new();
            let mut store = dom0(&daemon);
            for number in 0..stubs {
                let one = Attachment {
                    guest: domain(20 + number, "guest"),
                    stub: domain(40 + number, "stub"),
                    devices: vec![device(&format!("00:{number:02x}.0"))],
                    modes: vec![Mode::Intx.into()],
                    ..attachment()
                };
                one.write(&mut store).unwrap();
            }
            let before = daemon.round_trips();
            let [found, _] = KnownRecords::default().read_again(&mut store).unwrap();
            assert_eq!(found.len(), usize::from(stubs));
            daemon.round_trips() - before
        };
        // The list; the transaction, its beginning and its end: the records, their nodes, the values.
        assert_eq!([waits(1), waits(16)], [6, 6]);
    }

    #[test]
    fn all_records_are_those_that_there_are_now() {
        let mut store = dom0(&Xenstored::new());
        let mut known = KnownRecords::default();
        assert_eq!(known.all(&mut store).unwrap(), []);
        attachment().write(&mut store).unwrap();
        assert_eq!(known.all(&mut store).unwrap(), [attachment()]);
        let mut other = attachment().without(&["00:05.0".parse().unwrap()]);
        (other.guest, other.stub) = (domain(9, "mail"), domain(10, "mail-bulkhead"));
        attachment().remove(&mut store).unwrap();
        other.write(&mut store).unwrap();
        store
            .write("/local/domain/0/bulkhead/attachment/11", "damaged")
            .unwrap();
        assert_eq!(known.all(&mut store).unwrap(), [other]);
    }
}
