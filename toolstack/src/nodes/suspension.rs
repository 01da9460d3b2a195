//! A domain with devices cannot be saved, migrated or suspended: libxl is told so before it begins.

use crate::host::store::{Store, StoreError};
use xen::xenctrl::DomId;
use xenbus::client::Store as _;
use xenbus::path::home;
use xenbus::permission::Permission;

/// What stands in place of the port. libxl reads a number and stops at the colon (`xs_suspend_evtchn_port`). No domain
/// has port 0 (`evtchn_init` in Xen reserves it).
const NO_PORT: &str =
    "0: Bulkhead has given this domain PCI devices, or made it for them, so it cannot be saved";

/// The node in which libxl looks for the event channel by which it asks a domain to suspend. libxl makes it, empty, for
/// each PV domain. Linux does not use it.
fn port(domid: DomId) -> String {
    format!("{}/device/suspend/event-channel", home(domid))
}

/// Makes libxl refuse to save, migrate or suspend a domain, as long as this domain lives: libxl binds the port first, and
/// gives up when that fails (`libxl__domain_suspend_init`). Nothing has happened to the domain by then.
///
/// A guest that has no devices any more is not exempt. Linux keeps the interrupt of each device that it ever enabled, and
/// a restored Linux that may not map such an interrupt again uses freed memory (`restore_pirqs` in
/// `drivers/xen/events/events_base.c`).
///
/// libxl gives the node to the guest, which could take the refusal back, and old kernels would with a port of their own.
/// So it becomes dom0's.
///
/// # Errors
/// Those of xenstore.
pub fn refuse(store: &mut Store, domid: DomId) -> Result<(), StoreError> {
    store.write(&port(domid), NO_PORT)?;
    store.set_permissions(&port(domid), &Permission::owned_by(0, domid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::{connect, dom0};
    use crate::nodes::hops::HopNodes;
    use crate::records::tests::attachment;
    use xenbus::model::Xenstored;

    #[test]
    fn libxl_reads_port_0_of_a_guest_and_of_its_stub_and_of_nobody_else() {
        let daemon = Xenstored::new();
        [3, 4, 5].into_iter().for_each(|domid| daemon.introduce(domid));
        let mut store = dom0(&daemon);
        for domid in [3, 4, 5] {
            store.write(&port(domid), "").unwrap();
            let libxl = Permission::owned_by(domid, domid);
            store.set_permissions(&port(domid), &libxl).unwrap();
        }
        HopNodes::second(&attachment()).write(&mut store).unwrap();
        HopNodes::first(&attachment()).write(&mut store).unwrap();
        let number = |store: &mut Store, domid| {
            let value = store.read(&port(domid)).unwrap();
            value
                .split(':')
                .next()
                .and_then(|number| number.parse::<u32>().ok())
        };
        assert_eq!(
            [3, 4, 5].map(|domid| number(&mut store, domid)),
            [Some(0), Some(0), None]
        );
        let mut guest = connect(&daemon, 3);
        assert!(guest.read(&port(3)).unwrap().starts_with(NO_PORT));
        assert!(guest.write(&port(3), "17").is_err());
        assert!(guest.remove(&port(3)).is_err());
        assert!(connect(&daemon, 5).write(&port(5), "17").is_ok());
    }
}
