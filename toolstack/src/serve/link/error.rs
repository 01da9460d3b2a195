//! Why a stub is not served.

use super::ring_params::NodeError;
use crate::host::sysfs::SysfsError;
use std::io;
use thiserror::Error;

/// Why a stub is not served.
#[derive(Debug, Error)]
pub enum LinkError {
    /// A node that it has published makes no sense.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Its page cannot be mapped.
    #[error("cannot map the stub's grant {grant}")]
    Page {
        grant: u32,
        #[source]
        source: io::Error,
    },
    /// Its port cannot be bound.
    #[error("cannot bind the stub's event channel {port}")]
    Port {
        /// The stub's port.
        port: u32,
        #[source]
        source: io::Error,
    },
    /// A device cannot be used.
    #[error(transparent)]
    Device(#[from] SysfsError),
    /// A device cannot be used.
    #[error("cannot access the configuration space of a device")]
    Config(#[from] io::Error),
}

impl LinkError {
    /// True if the error is about what the stub has published. Its next offer may be better.
    pub const fn is_of_offer(&self) -> bool {
        matches!(self, Self::Node(_) | Self::Page { .. } | Self::Port { .. })
    }
}
