//! Errors of records.

use super::paths;
use crate::host::store::StoreError;
use pci::bdf::Bdf;
use thiserror::Error;
use xen::xenctrl::DomId;

/// A record that could not be read or written.
#[derive(Debug, Error)]
pub enum RecordError {
    /// A request to xenstore failed.
    #[error("cannot use the records of attachments in xenstore")]
    Store(#[from] StoreError),
    /// The record cannot be parsed.
    #[error(
        "the record {path} is damaged ({cause}): end the guest that has its devices and domain {stub}, its stub, with \
         `xl destroy`, then remove it with `xenstore-rm {root}`; `bulkhead release` gives its devices back to dom0",
        root = paths::attachment(*stub)
    )]
    Damaged {
        /// The stub whose record it is.
        stub: DomId,
        /// The node.
        path: String,
        /// The cause.
        cause: String,
    },
    /// A record by a later version of this program.
    #[error(
        "the record {root} is of version {version}, by a newer bulkhead than this one, which knows version {known}: \
         use the newer one for this guest",
        root = paths::attachment(*stub)
    )]
    Newer {
        /// The stub whose record it is.
        stub: DomId,
        /// Its version.
        version: u32,
        /// The latest version that this program knows.
        known: u32,
    },
    /// An attachment whose record is gone, or another's by now.
    #[error(
        "guest {guest} has no devices through this stub any more: `bulkhead status` shows what there is now"
    )]
    Ended {
        /// The guest's name.
        guest: String,
    },
    /// Another domain has a device.
    #[error(transparent)]
    Conflict(#[from] Conflict),
}

/// A domain that has a device which was to be recorded for another one.
#[derive(Debug, Error)]
pub enum Conflict {
    /// libxl has given it away.
    #[error(
        "domain {domid} has {bdf} through dom0's xen-pciback since a moment ago: `xl pci-detach {domid} {bdf}` frees it"
    )]
    Libxl {
        /// The device.
        bdf: Bdf,
        /// The domain, by libxl's node.
        domid: String,
    },
    /// It is in the record of another stub.
    #[error(
        "domain {guest} has {bdf} through stub {stub} since a moment ago: `bulkhead detach {bdf}` frees it"
    )]
    Guest {
        /// The device.
        bdf: Bdf,
        /// The guest that has it.
        guest: DomId,
        /// The stub of that guest.
        stub: DomId,
    },
}

impl RecordError {
    /// The stub whose record cannot be read, if it is about one.
    pub fn stub(&self) -> Option<DomId> {
        match self {
            Self::Damaged { stub, .. } | Self::Newer { stub, .. } => Some(*stub),
            Self::Store(_) | Self::Ended { .. } | Self::Conflict(_) => None,
        }
    }
}
