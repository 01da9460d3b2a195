//! Functions without a driver whose INTx was disabled ([`crate::handover::idle_intx`]).

use super::error::RecordError;
use super::paths::{INTX_DISABLED, bdf_of, children, intx_disabled_path, make_root, remove_from};
use crate::host::store::Store;
use pci::bdf::Bdf;
use xenbus::client::Store as _;

/// Records that INTx of a function without a driver was disabled.
pub fn record_intx_disabled(store: &mut Store, bdf: Bdf) -> Result<(), RecordError> {
    make_root(store)?;
    Ok(store.write(&intx_disabled_path(bdf), "")?)
}

/// The functions without a driver whose INTx was disabled.
pub fn intx_disabled(store: &mut Store) -> Result<Vec<Bdf>, RecordError> {
    let names = children(store, INTX_DISABLED)?;
    Ok(names.iter().filter_map(|name| bdf_of(name)).collect())
}

/// Removes the record that INTx of a function was disabled.
pub fn forget_intx_disabled(store: &mut Store, bdf: Bdf) -> Result<(), RecordError> {
    Ok(store.transaction(|store| remove_from(store, INTX_DISABLED, &intx_disabled_path(bdf)))?)
}
