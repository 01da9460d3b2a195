//! The backend's own nodes: its state, and why a connection has failed.

use crate::error::SetupError;
use crate::platform::DomId;
use crate::store::{self, Nodes};
use alloc::boxed::Box;
use alloc::format;
use xenbus::path::{Device, key};
use xenbus::state::XenbusState;

pub fn set_state(store: &mut dyn Nodes, device: Device, state: XenbusState) -> Result<(), Box<SetupError>> {
    let path = device.backend_node(key::STATE);
    store.set(&path, state.as_str())
}

/// Writes the reason where Linux's xenbus and Bulkhead's toolstack read it, then goes to Closing.
pub fn report_failure(
    store: &mut dyn Nodes,
    stub: DomId,
    directory: &str,
    error: &SetupError,
) -> Result<(), Box<SetupError>> {
    let text = store::error_text(error);
    store::report(store, stub, directory, &text);
    // The state last: whoever sees it finds the reason.
    let closing = XenbusState::Closing.as_str();
    store.set(&format!("{directory}/error"), &text)?;
    store.set(&format!("{directory}/{}", key::STATE), closing)
}
