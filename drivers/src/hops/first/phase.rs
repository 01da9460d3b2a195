//! How far the connection is.

use super::channel::GuestChannel;
use crate::error::SetupError;
use alloc::boxed::Box;

/// How far the connection is.
#[derive(Debug)]
pub enum GuestPhase<Page> {
    /// Nothing is exported.
    Idle,
    /// The devices are exported; the guest has not connected yet.
    Exported {
        /// The guest's nodes have been there, so that their absence means that it has gone.
        seen: bool,
    },
    /// In service.
    Connected(GuestChannel<Page>),
    /// It has ended. A new one begins when the toolstack sets our state to Initialising, or the frontend its own.
    Ended {
        /// Why, if that is still to be told.
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
