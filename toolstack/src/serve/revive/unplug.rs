//! The orderly end of a connection whose stub is dead. Dom0 writes the state that the stub would have written, and the guest
//! lets go of its devices as at any hot unplug.
//!
//! The guest's drivers access configuration space meanwhile, and nobody answers. Each access takes the two seconds that
//! pcifront waits.

use crate::host::domains;
use crate::host::store::{Store, StoreError};
use crate::nodes::hops::first_hop;
use crate::records::Attachment;
use xenbus::client::Store as _;
use xenbus::path::{DeviceType, key};
use xenbus::permission::Permission;
use xenbus::state::XenbusState;

/// Tells the guest that its backend closes. Another domain may have the stub's number by now. The node that is written into
/// its home belongs to dom0, and the guest alone can read it.
pub fn begin(store: &mut Store, attachment: &Attachment) -> Result<(), StoreError> {
    let hop = first_hop(attachment);
    let directory = hop.backend_dir();
    store.transaction(|store| {
        // Removed first: nodes of a dead stub keep its permissions, and a new domain of its number could write them.
        if store.read_optional(&directory)?.is_some() {
            store.remove(&directory)?;
        }
        store.mkdir(&directory)?;
        store.set_permissions(&directory, &Permission::owned_by(0, hop.frontend()))?;
        store.write(&hop.backend_node(key::STATE), XenbusState::Closing.as_str())
    })
}

/// True once the guest has let go, or if its pcifront has never connected.
pub fn is_over(store: &mut Store, attachment: &Attachment) -> Result<bool, StoreError> {
    let state = store.read_state(&first_hop(attachment).frontend_node(key::STATE))?;
    Ok(matches!(
        state,
        XenbusState::Closed | XenbusState::Initialising | XenbusState::Unknown
    ))
}

/// Removes what [`begin`] wrote. Another domain that has the stub's number by now keeps its home.
pub fn clear(store: &mut Store, attachment: &Attachment) -> Result<(), StoreError> {
    let stub = attachment.stub.domid;
    if domains::clear_home(store, stub)? {
        return Ok(());
    }
    let directory = first_hop(attachment).backend_dir();
    store.transaction(|store| {
        if store.read_optional(&directory)?.is_some() {
            store.remove(&directory)?;
        }
        // xenstored makes parent directories by itself, and removes none: the guest's, and that of all guests.
        let parents = [parent(&directory), DeviceType::Pci.backends(stub)];
        for parent in parents {
            if store.read_optional(&parent)?.is_some() && store.directory(&parent)?.is_empty() {
                store.remove(&parent)?;
            }
        }
        Ok(())
    })
}

fn parent(path: &str) -> String {
    path.rsplit_once('/')
        .map_or_else(String::new, |(parent, _)| parent.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::store::tests::{connect, dom0, introduce};
    use crate::records::tests::attachment;
    use xenbus::model::Xenstored;

    #[test]
    fn the_guest_sees_its_backend_close_and_nobody_else_can_write_there() {
        let daemon = Xenstored::new();
        [3, 4].into_iter().for_each(|domid| daemon.introduce(domid));
        let mut store = dom0(&daemon);
        let hop = first_hop(&attachment());
        store.write(&hop.backend_node("vdev-0"), "0000:00:00.00").unwrap();
        begin(&mut store, &attachment()).unwrap();
        assert_eq!(store.directory(&hop.backend_dir()).unwrap(), ["state"]);
        let state = hop.backend_node(key::STATE);
        assert_eq!(connect(&daemon, 3).read(&state).unwrap(), "5");
        for other in [3, 4] {
            assert!(connect(&daemon, other).write(&state, "4").is_err(), "{other}");
        }
        // Cut short and begun again.
        begin(&mut store, &attachment()).unwrap();
        assert_eq!(store.read(&state).unwrap(), "5");
    }

    #[test]
    fn it_is_over_when_the_guest_has_let_go_or_says_nothing_that_is_known() {
        let daemon = Xenstored::new();
        daemon.introduce(3);
        let mut store = dom0(&daemon);
        assert!(is_over(&mut store, &attachment()).unwrap());
        let state = first_hop(&attachment()).frontend_node(key::STATE);
        for (value, over) in [
            (&b"1"[..], true),
            (b"3", false),
            (b"4", false),
            (b"5", false),
            (b"6", true),
            (b"7", false),
            (b"8", false),
            (b"\xff", true),
            (b"", true),
        ] {
            connect(&daemon, 3).write_bytes(&state, value).unwrap();
            assert_eq!(is_over(&mut store, &attachment()).unwrap(), over, "{value:?}");
        }
    }

    #[test]
    fn another_domain_with_the_number_keeps_its_home() {
        for (stays, offers) in [(false, false), (true, false), (true, true)] {
            let daemon = Xenstored::new();
            let mut store = dom0(&daemon);
            if stays {
                introduce(&daemon, 4, "other");
            }
            // What it offers to a guest of its own.
            let own = "/local/domain/4/backend/pci/9/0/state";
            if offers {
                store.write(own, "4").unwrap();
            }
            begin(&mut store, &attachment()).unwrap();
            for _ in 0..2 {
                clear(&mut store, &attachment()).unwrap();
                let backend = store.read_optional(&first_hop(&attachment()).backend_node(key::STATE));
                assert_eq!(backend.unwrap(), None);
                let home = store.directory("/local/domain/4");
                assert_eq!(home.is_ok(), stays);
                let offered = store.read_optional("/local/domain/4/backend/pci").unwrap();
                assert_eq!(offered.is_some(), offers, "no directory of ours stays");
                assert_eq!(store.read_optional(own).unwrap().is_some(), offers);
            }
        }
    }
}
