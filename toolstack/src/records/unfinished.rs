//! Domains that `run` and `attach` create and have not recorded in an attachment yet.
//!
//! Each is recorded by its UUID before it is created, until its devices are recorded ([`crate::records`]) or it is destroyed
//! again. So what a command that was killed has left is known, and nothing else is taken for that: not a paused guest of
//! somebody else's, and not one that has got the name since.

use crate::host::domains;
use crate::host::domains::Domain;
use crate::host::store::Store;
use crate::records::{self, RecordError, children};
use crate::serde_text;
use serde::{Deserialize, Serialize};
use xenbus::client::Store as _;

/// Directory of the records, by UUID.
const UNFINISHED: &str = "/local/domain/0/bulkhead/unfinished";

/// A domain that a command of ours creates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    /// Its UUID.
    pub uuid: String,
    /// The name that it is created with.
    pub name: String,
    /// The UUID of the guest that it is created for: its own if it is a guest.
    pub guest: String,
    /// The name of that guest.
    pub guest_name: String,
}

fn path(uuid: &str) -> String {
    format!("{UNFINISHED}/{uuid}")
}

/// Records a domain that is about to be created.
pub fn record(store: &mut Store, domain: &Unfinished) -> Result<(), RecordError> {
    records::make_root(store)?;
    Ok(store.write(&path(&domain.uuid), &serde_text::json(domain))?)
}

/// True if a command of ours creates the domain with this UUID, and has not recorded its devices yet.
pub fn is_recorded(store: &mut Store, uuid: &str) -> Result<bool, RecordError> {
    Ok(store.read_optional(&path(uuid))?.is_some())
}

/// Removes the record of a domain: it is part of an attachment, or has ended.
pub fn forget(store: &mut Store, uuid: &str) -> Result<(), RecordError> {
    match store.remove(&path(uuid)) {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(()),
    }
}

/// The domains that a killed command has left of the guest `who`, and that live: the guest itself, which never ran,
/// and its stub. `found` is the domain that `who` means now, if there is one. Records of domains that have ended are
/// removed.
pub fn left_of(store: &mut Store, who: &str, found: Option<&Domain>) -> Result<Vec<Domain>, RecordError> {
    let mut left = Vec::new();
    for uuid in children(store, UNFINISHED)? {
        let Some(text) = store.read_optional(&path(&uuid))? else {
            continue;
        };
        // A record that cannot be read names no domain, so nothing is destroyed for it.
        let Ok(recorded) = serde_json::from_str::<Unfinished>(&text) else {
            continue;
        };
        // A domain that exists is compared by UUID: its name may have been another one's.
        let meant = match found {
            Some(found) => [&recorded.uuid, &recorded.guest].contains(&&found.uuid),
            None => recorded.name == who || recorded.guest_name == who,
        };
        if !meant {
            continue;
        }
        // The UUID tells it from a paused guest of somebody else's, and from one that has got the name since (decision
        // 64).
        match domains::with_uuid(store, &recorded.uuid)? {
            Some(domain) => left.push(domain),
            None => forget(store, &recorded.uuid)?,
        }
    }
    // The guest comes first: a stub that goes before it would look like one that died.
    left.sort_by_key(|domain| domain.domid);
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::{dom0, introduce};
    use crate::records::tests::domain;
    use xenbus::model::Xenstored;

    fn recorded(domid: u16, name: &str, guest: u16, guest_name: &str) -> Unfinished {
        Unfinished {
            uuid: domain(domid, name).uuid,
            name: name.into(),
            guest: domain(guest, guest_name).uuid,
            guest_name: guest_name.into(),
        }
    }

    /// A run that was killed when it had created guest 3 and stub 4.
    fn killed_run() -> (Xenstored, Store) {
        let daemon = Xenstored::new();
        let mut store = dom0(&daemon);
        for (domid, name) in [(3, "web"), (4, "web-bulkhead"), (5, "mail")] {
            introduce(&daemon, domid, name);
        }
        record(&mut store, &recorded(3, "web", 3, "web")).unwrap();
        record(&mut store, &recorded(4, "web-bulkhead", 3, "web")).unwrap();
        (daemon, store)
    }

    /// What is left, by the number of each, of what `who` means.
    fn left(store: &mut Store, who: &str) -> Vec<u16> {
        let found = domains::find(store, who).ok();
        let left = left_of(store, who, found.as_ref()).unwrap();
        left.iter().map(|domain| domain.domid).collect()
    }

    #[test]
    fn guest_and_stub_that_were_recorded_are_left_and_nobody_elses() {
        let (_, mut store) = killed_run();
        assert_eq!(left(&mut store, "web"), [3, 4]);
        assert_eq!(left(&mut store, "3"), [3, 4]);
        assert_eq!(left(&mut store, "web-bulkhead"), [4]);
        assert_eq!(left(&mut store, "mail"), [0; 0]);
        assert_eq!(left(&mut store, "nobody"), [0; 0]);
        forget(&mut store, &domain(3, "web").uuid).unwrap();
        forget(&mut store, &domain(3, "web").uuid).expect("once more does no harm");
        assert_eq!(left(&mut store, "web"), [4]);
    }

    #[test]
    fn a_guest_that_was_renamed_is_found_by_its_name_of_now_and_the_new_owner_of_the_old_name_is_safe() {
        let (daemon, mut store) = killed_run();
        store.write("/local/domain/3/name", "www").unwrap();
        assert_eq!(left(&mut store, "www"), [3, 4]);
        assert_eq!(left(&mut store, "web"), [3, 4], "nobody else has the name");
        introduce(&daemon, 9, "web");
        assert_eq!(left(&mut store, "web"), [0; 0]);
        assert_eq!(left(&mut store, "www"), [3, 4]);
    }

    #[test]
    fn a_domain_that_has_the_number_of_one_that_is_gone_is_not_taken_for_it() {
        let (daemon, mut store) = killed_run();
        daemon.release(3);
        store.remove("/local/domain/3").unwrap();
        introduce(&daemon, 3, "web");
        store
            .write("/local/domain/3/vm", "/vm/00000000-0000-0000-0000-000000000099")
            .unwrap();
        assert_eq!(left(&mut store, "web"), [0; 0]);
        assert_eq!(left(&mut store, "web-bulkhead"), [4]);
        // Nor is anything made of its record any more.
        store.write("/local/domain/3/name", "other").unwrap();
        assert_eq!(left(&mut store, "web"), [4]);
        assert_eq!(children(&mut store, UNFINISHED).unwrap().len(), 1);
    }

    #[test]
    fn a_note_that_cannot_be_read_destroys_nobody() {
        let (_, mut store) = killed_run();
        for uuid in children(&mut store, UNFINISHED).unwrap() {
            store.write(&path(&uuid), "{}").unwrap();
        }
        assert_eq!(left(&mut store, "web"), [0; 0]);
    }
}
