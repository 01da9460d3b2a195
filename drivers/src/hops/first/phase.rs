//! How far the connection is.

use super::channel::GuestChannel;
use crate::error::SetupError;
use alloc::boxed::Box;

/// How far the connection is.
#[derive(Debug)]
pub enum GuestPhase<Page> {
    /// Nothing is exported.
    Idle,
    /// The devices are exported; the guest is not connected yet.
    Exported {
        /// The guest's nodes have been seen. Only then does their absence mean that the guest has gone.
        seen: bool,
    },
    /// Page and port are in use.
    Connected(GuestChannel<Page>),
    /// The connection has ended. A new one begins when the toolstack sets the backend's state to Initialising, or the
    /// frontend its own.
    Ended {
        /// The reason, if it is still to be written into the error node.
        failure: Option<Box<SetupError>>,
    },
}

impl<Page> GuestPhase<Page> {
    pub const ENDED: Self = Self::Ended { failure: None };

    /// The channel, while the guest is connected.
    pub const fn channel(&self) -> Option<&GuestChannel<Page>> {
        match self {
            Self::Connected(channel) => Some(channel),
            _ => None,
        }
    }

    /// True if the guest has devices.
    pub const fn is_exported(&self) -> bool {
        matches!(self, Self::Exported { .. } | Self::Connected(_))
    }
}
