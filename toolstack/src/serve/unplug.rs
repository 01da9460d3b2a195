//! The orderly end of a connection whose stub is dead: dom0 writes what the stub would have written, and the guest
//! lets go of its devices as at any hot unplug.
//!
//! The guest's drivers ask for configuration on the way, and nobody answers: each access takes the two seconds that
//! pcifront waits.

use crate::host::Host;
use crate::nodes::first_hop;
use crate::record::Attachment;
use crate::store::StoreError;
use crate::xenctrl::Life;
use xenbus::client::Store as _;
use xenbus::path::{DeviceType, home, key};
use xenbus::permission::Permission;
use xenbus::state::XenbusState;

/// Tells the guest that its backend closes. Another domain may have the stub's number by now: the one node that is
/// written into its home is dom0's, and nobody else's to read than the guest's.
pub fn begin(host: &mut Host, attachment: &Attachment) -> Result<(), StoreError> {
    let hop = first_hop(attachment);
    let directory = hop.backend_dir();
    host.store.transaction(|store| {
        if store.read_optional(&directory)?.is_some() {
            store.remove(&directory)?;
        }
        store.mkdir(&directory)?;
        store.set_permissions(&directory, &Permission::owned_by(0, hop.frontend()))?;
        store.write(&hop.backend_node(key::STATE), XenbusState::Closing.as_str())
    })
}

/// True once the guest has let go, or if it has never looked.
pub fn is_over(host: &mut Host, attachment: &Attachment) -> Result<bool, StoreError> {
    let state = host
        .store
        .read_optional(&first_hop(attachment).frontend_node(key::STATE))?;
    Ok(matches!(
        XenbusState::parse(state.as_deref().unwrap_or_default()),
        XenbusState::Closed | XenbusState::Initialising | XenbusState::Unknown
    ))
}

/// Removes what [`begin`] wrote.
pub fn clear(host: &mut Host, attachment: &Attachment) -> Result<(), StoreError> {
    let stub = attachment.stub.domid;
    let path = match host.xen.life(stub) {
        // Nobody's home.
        Ok(Life::Absent) => home(stub),
        _ => DeviceType::Pci.backends(stub),
    };
    match host.store.remove(&path) {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}
