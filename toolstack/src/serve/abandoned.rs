//! Frontends that Linux has given up before their connection stood. The service has them start again.
//!
//! Linux 7.0 and later read a frontend's state at each event below its directory, and compare it with the state that they
//! know. Events of the frontend's own writes are among them. If pcifront is loaded as a module at that moment, it changes both
//! in between, and Linux takes the device for one that was reset: it frees page and port, and probes the device again if its
//! state is Initialising. But pcifront has just written Initialised. From then on neither end moves, with any backend.
//!
//! So dom0 writes Initialising, as it would for a new device. Linux then probes the device in the thread that takes the
//! events, with the driver at hand, so that the same cannot happen again.
//!
//! The port tells such a frontend from a slow one: Xen knows that the guest has closed it.

use crate::host::store::{Store, StoreError};
use crate::nodes::hops::{self, GuestEnd};
use crate::records::Attachment;
use std::collections::BTreeMap;
use std::io;
use xen::xenctrl::DomId;

/// A guest is told at most so often in a row. A guest that never connects is not told without end.
const MOST: u32 = 3;

#[derive(Debug)]
struct Known {
    /// Path of the guest's error node.
    errors: String,
    /// How often in a row it was told.
    told: u32,
}

/// The guests that are watched, by their stubs.
#[derive(Debug, Default)]
pub struct Abandoned(BTreeMap<DomId, Known>);

impl Abandoned {
    /// Watches a guest's error node under `token`. Linux writes it when it gives a frontend up.
    pub fn watch(
        &mut self,
        store: &mut Store,
        attachment: &Attachment,
        token: &str,
    ) -> Result<(), StoreError> {
        let errors = hops::guest_errors(attachment);
        store.watch(&errors, token)?;
        self.0.insert(attachment.stub.domid, Known { errors, told: 0 });
        Ok(())
    }

    /// Ends the watch.
    pub fn forget(&mut self, store: &mut Store, stub: DomId, token: &str) -> Result<(), StoreError> {
        match self
            .0
            .remove(&stub)
            .map(|known| store.unwatch(&known.errors, token))
        {
            Some(Err(error)) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Tells the guest to start its connection again if its frontend waits with a port that it has closed. Returns true if it
    /// was told. `is_port_for` says whether a domain's port leads to another domain.
    pub fn check(
        &mut self,
        store: &mut Store,
        attachment: &Attachment,
        is_port_for: impl FnOnce(DomId, u32, DomId) -> io::Result<bool>,
    ) -> Result<bool, StoreError> {
        let (stub, guest) = (attachment.stub.domid, attachment.guest.domid);
        let Some(known) = self.0.get_mut(&stub) else {
            return Ok(false);
        };
        let port = match hops::guest_end(store, attachment)? {
            GuestEnd::Waits(port) => port,
            GuestEnd::Connected => {
                // Only a connection starts the count again; a frontend that goes back and forth does not.
                known.told = 0;
                return Ok(false);
            }
            GuestEnd::Other => return Ok(false),
        };
        // A question that fails means a port number that cannot exist. The stub refuses it and says so.
        let abandoned = is_port_for(guest, port, stub).is_ok_and(|leads| !leads);
        if !abandoned || known.told >= MOST || !hops::begin_anew(store, attachment, port)? {
            return Ok(false);
        }
        known.told += 1;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::{connect, dom0};
    use crate::nodes::hops::HopNodes;
    use crate::records::tests::attachment;
    use xenbus::client::Store as _;
    use xenbus::model::Xenstored;

    const STATE: &str = "/local/domain/3/device/pci/0/state";
    const ERROR: &str = "/local/domain/3/error/device/pci/0/error";

    /// The nodes of a guest that is at `state` with port 8 published, and has told of an error.
    fn guest_at(state: &str) -> (Xenstored, Store) {
        let daemon = Xenstored::new();
        [3, 4].into_iter().for_each(|domid| daemon.introduce(domid));
        let mut store = dom0(&daemon);
        HopNodes::first(&attachment()).write(&mut store).unwrap();
        let mut guest = connect(&daemon, 3);
        guest
            .write("/local/domain/3/device/pci/0/event-channel", "8")
            .unwrap();
        guest.write(STATE, state).unwrap();
        store.write(ERROR, "22 freeing event channel 8").unwrap();
        (daemon, store)
    }

    fn watching(store: &mut Store) -> Abandoned {
        let mut abandoned = Abandoned::default();
        abandoned.watch(store, &attachment(), "token").unwrap();
        abandoned
    }

    #[test]
    fn a_frontend_that_waits_with_a_closed_port_is_told_to_begin_anew() {
        let (_daemon, mut store) = guest_at("3");
        let mut abandoned = watching(&mut store);
        let asked = |guest, port, stub| {
            assert_eq!((guest, port, stub), (3, 8, 4));
            Ok(false)
        };
        assert!(abandoned.check(&mut store, &attachment(), asked).unwrap());
        assert_eq!(store.read(STATE).unwrap(), "1");
        assert_eq!(store.read_optional(ERROR).unwrap(), None);
    }

    #[test]
    fn a_frontend_that_is_slow_elsewhere_or_whose_port_is_nonsense_is_left_alone() {
        for (state, port) in [
            ("3", Ok(true)),
            ("3", Err(io::ErrorKind::InvalidInput.into())),
            ("1", Ok(false)),
            ("4", Ok(false)),
            ("6", Ok(false)),
            ("7", Ok(false)),
        ] {
            let (_daemon, mut store) = guest_at(state);
            let mut abandoned = watching(&mut store);
            assert!(
                !abandoned
                    .check(&mut store, &attachment(), |_, _, _| port)
                    .unwrap()
            );
            assert_eq!(store.read(STATE).unwrap(), state);
        }
    }

    #[test]
    fn a_guest_that_never_connects_is_told_three_times_and_one_that_has_connected_again() {
        let (daemon, mut store) = guest_at("3");
        let mut abandoned = watching(&mut store);
        let mut guest = connect(&daemon, 3);
        let mut told = |store: &mut Store, guest_state| {
            guest.write(STATE, guest_state).unwrap();
            abandoned
                .check(store, &attachment(), |_, _, _| Ok(false))
                .unwrap()
        };
        let times = (0..10).filter(|_| told(&mut store, "3")).count();
        assert_eq!(times, 3);
        assert!(!told(&mut store, "4"));
        assert!(told(&mut store, "3"));
    }
}
