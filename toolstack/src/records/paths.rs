//! Paths of the records in xenstore.

use crate::host::store::{Store, StoreError, Stream};
use pci::bdf::Bdf;
use xen::xenctrl::DomId;
use xenbus::client::{Error as NodeError, Store as Nodes, Transaction};
use xenbus::permission::{Access, Permission};

/// Directory of everything remembered.
pub const ROOT: &str = "/local/domain/0/bulkhead";
/// Directory of the attachments, by the stub's domid.
pub const ATTACHMENTS: &str = "/local/domain/0/bulkhead/attachment";
/// The directory of the stub's [backup](mod@crate::records::stub_backup), below a record.
pub const STUB_BACKUP: &str = "keepsake";
/// Directory of the devices that did not recover: by [`node_name`], with the reason.
pub const QUARANTINE: &str = "/local/domain/0/bulkhead/quarantine";
/// Directory of the functions without a driver whose INTx was disabled (`crate::handover::idle_intx`): by [`node_name`].
pub const INTX_DISABLED: &str = "/local/domain/0/bulkhead/intx-disabled";
/// Directory of the devices that were taken from a guest that lived on: by [`node_name`], with the guest.
pub const MAPPED: &str = "/local/domain/0/bulkhead/mapped";

/// The key of a device's mode in the record. It goes by the address, because the device's number in the list may
/// change.
pub fn mode_key(bdf: Bdf) -> String {
    format!("{MODE}{}", node_name(bdf))
}

/// The beginning of a [`mode_key`].
pub const MODE: &str = "irq-";

/// The device of a [`mode_key`].
pub fn bdf_of_mode(key: &str) -> Option<Bdf> {
    bdf_of(key.strip_prefix(MODE)?)
}

/// The node that every device of a record has, even if the record is damaged.
pub(crate) fn mode_path(stub: DomId, bdf: Bdf) -> String {
    format!("{}/{}", attachment(stub), mode_key(bdf))
}

/// The node of a device in quarantine.
pub fn quarantine_path(bdf: Bdf) -> String {
    format!("{QUARANTINE}/{}", node_name(bdf))
}

/// The node of a function whose INTx was disabled.
pub fn intx_disabled_path(bdf: Bdf) -> String {
    format!("{INTX_DISABLED}/{}", node_name(bdf))
}

/// The node of a device that a guest may still have mapped.
pub fn mapped_path(bdf: Bdf) -> String {
    format!("{MAPPED}/{}", node_name(bdf))
}

/// A device's address as the name of a node, which holds no colons and dots: `SSSS-BB-DD-F`, as libxl
/// writes it too.
pub fn node_name(bdf: Bdf) -> String {
    bdf.to_string().replace([':', '.'], "-")
}

/// The address in a [`node_name`].
pub fn bdf_of(name: &str) -> Option<Bdf> {
    name.replacen('-', ":", 2).replacen('-', ".", 1).parse().ok()
}

/// The children of a node; none if it does not exist.
pub fn children<S: Nodes>(store: &mut S, path: &str) -> Result<Vec<String>, NodeError<S::TransportError>> {
    match store.directory(path) {
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        children => children,
    }
}

/// Removes a node, if it is there, and its directory with the last one. Outside a transaction, a node that somebody adds
/// meanwhile would go with the directory.
pub fn remove_from(
    store: &mut Transaction<'_, Stream>,
    directory: &str,
    node: &str,
) -> Result<(), StoreError> {
    if store.read_optional(node)?.is_none() {
        return Ok(());
    }
    store.remove(node)?;
    if children(store, directory)?.is_empty() {
        store.remove(directory)?;
    }
    Ok(())
}

/// The record of a stub.
pub fn attachment(stub: DomId) -> String {
    format!("{ATTACHMENTS}/{stub}")
}

/// The directory of a stub's [backup](mod@crate::records::stub_backup). It goes with the record.
pub fn stub_backup_dir(stub: DomId) -> String {
    format!("{}/{STUB_BACKUP}", attachment(stub))
}

/// Makes the directory, closed to every other domain; what is made below inherits that.
pub fn make_root(store: &mut Store) -> Result<(), StoreError> {
    store.mkdir(ROOT)?;
    let dom0_only = Permission {
        domid: 0,
        access: Access::None,
    };
    // xenstore has a new node inherit its parent's permissions, so this closes all that is made below.
    store.set_permissions(ROOT, &[dom0_only])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_can_be_the_name_of_a_node() {
        let bdf = "0000:00:1f.2".parse().unwrap();
        assert_eq!(node_name(bdf), "0000-00-1f-2");
        assert_eq!(bdf_of("0000-00-1f-2"), Some(bdf));
        assert_eq!(bdf_of("0000-00-1f"), None);
    }
}
