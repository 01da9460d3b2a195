//! What the policy asks of dom0. Configuration reads need no dom0: they come from a [`ConfigSpace`].
//!
//! [`ConfigSpace`]: crate::platform::ConfigSpace

use super::config::access::Access;
use crate::error::{MessageKind, RequestError};
use alloc::vec::Vec;
use pci::bdf::Bdf;
use xenbus::pciif::MsixEntry;

/// What dom0's service does for a stub: all that Xen lets no stub do itself. Functions have their real addresses.
///
/// # Errors
/// Every method fails as the second hop does: with one of [`RequestError`]'s `Service…`.
pub trait Dom0 {
    /// Writes the low bytes of `value`; returns when the device has them, and has woken up if they wake it.
    fn conf_write(&mut self, function: Bdf, access: Access, value: u32) -> Result<(), RequestError>;
    /// Maps one pirq to the guest and turns MSI on; returns the pirq.
    fn enable_msi(&mut self, function: Bdf) -> Result<u32, RequestError>;
    /// Maps a pirq to the guest for each entry and turns MSI-X on; returns the pirqs in the same order.
    fn enable_msix(&mut self, function: Bdf, entries: &[MsixEntry]) -> Result<Vec<u16>, RequestError>;
    /// Turns MSI or MSI-X off and unmaps its pirqs.
    fn disable(&mut self, function: Bdf, kind: MessageKind) -> Result<(), RequestError>;
}
