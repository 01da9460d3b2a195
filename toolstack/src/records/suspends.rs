//! After how many suspends of the host the devices of guests were last looked at, and what is still to be done.
//!
//! The record outlives a service: the next one does what this one has not come to.

use super::error::RecordError;
use super::paths::{ROOT, bdf_of, children, make_root, node_name};
use crate::host::store::{Store, StoreError};
use crate::host::suspends::Suspends;
use pci::bdf::Bdf;
use std::collections::BTreeMap;
use xen::xenctrl::DomId;
use xenbus::client::Store as _;

/// What is still to be done for a device. A later step stands for all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Due {
    /// It is restored if it shows that it has lost its state.
    Check,
    /// It is restored, unless it shows that it has kept its state.
    Restore,
    /// It was restored, and its guest's driver is to set it up again.
    Tell,
}

const WORDS: [(Due, &str); 3] = [
    (Due::Check, "check"),
    (Due::Restore, "restore"),
    (Due::Tell, "tell"),
];

/// A device for which something is still to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspended {
    /// The stub through which its guest had it.
    pub stub: DomId,
    /// What is to be done.
    pub due: Due,
}

fn count_path() -> String {
    format!("{ROOT}/suspends")
}

fn directory() -> String {
    format!("{ROOT}/suspended")
}

fn path(bdf: Bdf) -> String {
    format!("{}/{}", directory(), node_name(bdf))
}

fn text(suspended: Suspended) -> String {
    let word = WORDS.iter().find(|(due, _)| *due == suspended.due);
    format!("{} {}", suspended.stub, word.map_or("", |(_, word)| word))
}

fn from_text(text: &str) -> Option<Suspended> {
    let (stub, word) = text.split_once(' ')?;
    let (due, _) = WORDS.iter().find(|(_, known)| *known == word)?;
    Some(Suspended {
        stub: stub.parse().ok()?,
        due: *due,
    })
}

/// The suspends after which the devices were looked at; `None` without a record.
pub fn suspends_dealt_with(store: &mut Store) -> Result<Option<Suspends>, StoreError> {
    let text = store.read_optional(&count_path())?;
    Ok(text.as_deref().and_then(Suspends::from_text))
}

/// Records at once that so many suspends are known of, and what is to be done for these devices.
pub fn record_suspends(
    store: &mut Store,
    count: Suspends,
    devices: &BTreeMap<Bdf, Suspended>,
) -> Result<(), RecordError> {
    make_root(store)?;
    store.transaction(|store| {
        for (&bdf, &suspended) in devices {
            store.write(&path(bdf), &text(suspended))?;
        }
        store.write(&count_path(), &count.to_string())
    })?;
    Ok(())
}

/// The devices for which something is still to be done.
pub fn suspended(store: &mut Store) -> Result<BTreeMap<Bdf, Suspended>, RecordError> {
    let mut devices = BTreeMap::new();
    for name in children(store, &directory())? {
        let text = store.read_optional(&format!("{}/{name}", directory()))?;
        let suspended = text.as_deref().and_then(from_text);
        devices.extend(bdf_of(&name).zip(suspended));
    }
    Ok(devices)
}

/// Records what is to be done for a device next.
pub fn record_suspended(store: &mut Store, bdf: Bdf, suspended: Suspended) -> Result<(), StoreError> {
    store.write(&path(bdf), &text(suspended))
}

/// Nothing is to be done for a device any more.
pub fn forget_suspended(store: &mut Store, bdf: Bdf) -> Result<(), StoreError> {
    match store.remove(&path(bdf)) {
        Err(error) if error.is_not_found() => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::dom0;
    use xenbus::model::Xenstored;

    #[test]
    fn the_next_service_knows_of_each_suspend_and_of_what_is_still_to_be_done() {
        let daemon = Xenstored::new();
        assert_eq!(suspends_dealt_with(&mut dom0(&daemon)).unwrap(), None);
        let count = Suspends {
            succeeded: 2,
            failed: 1,
        };
        let bdf: Bdf = "00:05.0".parse().unwrap();
        for due in [Due::Check, Due::Restore, Due::Tell] {
            let devices = BTreeMap::from([(bdf, Suspended { stub: 4, due })]);
            record_suspends(&mut dom0(&daemon), count, &devices).unwrap();
            assert_eq!(suspends_dealt_with(&mut dom0(&daemon)).unwrap(), Some(count));
            assert_eq!(suspended(&mut dom0(&daemon)).unwrap(), devices);
        }
        for _ in 0..2 {
            forget_suspended(&mut dom0(&daemon), bdf).unwrap();
            assert!(suspended(&mut dom0(&daemon)).unwrap().is_empty());
        }
    }
}
