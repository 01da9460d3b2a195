//! A function as the policy needs it: read at once, changed by way of dom0.

use super::config::access::Access;
use crate::error::{MessageKind, RequestError};
use crate::platform::ConfigSpace;
use alloc::vec::Vec;
use pci::bdf::Bdf;
use xenbus::pciif::MsixEntry;

/// What dom0's service does for us: all that a stub may not do itself.
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

/// One function: its config space, and dom0 for everything that is no read.
///
/// # Errors
/// As [`Dom0`]'s.
pub trait Hardware: ConfigSpace {
    /// Writes the low bytes of `value`; returns when the device has them.
    fn write(&mut self, access: Access, value: u32) -> Result<(), RequestError>;
    /// Turns MSI on; returns the guest's pirq.
    fn enable_msi(&mut self) -> Result<u32, RequestError>;
    /// Turns MSI-X on; returns the guest's pirqs.
    fn enable_msix(&mut self, entries: &[MsixEntry]) -> Result<Vec<u16>, RequestError>;
    /// Turns MSI or MSI-X off.
    fn disable(&mut self, kind: MessageKind) -> Result<(), RequestError>;
}

/// The [`Hardware`] of a function whose config space is mapped.
pub struct Reach<'a, E, D> {
    /// The function's config space.
    pub ecam: &'a E,
    /// Its real address.
    pub bdf: Bdf,
    /// The way to dom0.
    pub dom0: &'a mut D,
}

impl<E: ConfigSpace, D> ConfigSpace for Reach<'_, E, D> {
    fn read(&self, offset: u16, width: u8) -> u32 {
        self.ecam.read(offset, width)
    }
}

impl<E: ConfigSpace, D: Dom0> Hardware for Reach<'_, E, D> {
    fn write(&mut self, access: Access, value: u32) -> Result<(), RequestError> {
        self.dom0.conf_write(self.bdf, access, value)
    }

    fn enable_msi(&mut self) -> Result<u32, RequestError> {
        self.dom0.enable_msi(self.bdf)
    }

    fn enable_msix(&mut self, entries: &[MsixEntry]) -> Result<Vec<u16>, RequestError> {
        self.dom0.enable_msix(self.bdf, entries)
    }

    fn disable(&mut self, kind: MessageKind) -> Result<(), RequestError> {
        self.dom0.disable(self.bdf, kind)
    }
}
